"""A DynamoGraphDeployment, its planner's config, or both become the skeleton of a scenario."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.export.imports._dynamo_graph import (
    ROLES,
    Worker,
    components,
    container,
    environment,
    flag,
    positive,
    whole,
    words_of,
    worker_of,
)
from dualpath_model.export.imports.skeleton import (
    KV_DTYPES,
    STAND_IN,
    STAND_IN_GPUS,
    Skeleton,
    known_llm,
    stand_in,
)
from dualpath_model.export.quoting import one_line

_PLANNER_KEYS = {"ttft_ms", "ttft", "itl_ms", "itl", "max_gpu_budget", "optimization_target"}
_TRUE = {"1", "true", "yes", "on"}


def read(path: Path) -> Skeleton:
    """Read a graph (v1alpha1 or v1beta1), a planner config (YAML or JSON), or a folder with them.

    Raises InputError, one sentence, for a file that is neither, or whose counts are no counts.
    """
    graphs: list[tuple[str, Mapping[str, Any]]] = []
    planners: list[tuple[str, Mapping[str, Any]]] = []
    for where, data in _documents(path):
        if data.get("kind") == "DynamoGraphDeployment":
            graphs.append((where, data))
            planners += _inline_planner(where, data)
        elif data.get("kind") == "ConfigMap":
            planners += _mounted_planner(where, data)
        elif "kind" not in data and data.keys() & _PLANNER_KEYS:
            planners.append((where, data))
    if len(graphs) > 1:
        raise InputError(
            f"{path}: has {len(graphs)} DynamoGraphDeployments; give the file of the one to read"
        )
    if not graphs and not planners:
        raise InputError(
            f"{path}: has no DynamoGraphDeployment and no planner config (ttft_ms, itl_ms, "
            "max_gpu_budget); give the graph's YAML file, the planner's, or a folder with both"
        )
    found: list[str] = []
    missing: list[str] = []
    scenario: dict[str, Any] = {"name": path.stem}
    if graphs:
        _from_graph(*graphs[0], scenario, found, missing)
    else:
        _from_planner_counts(*planners[0], scenario, found, missing)
    _slo(planners, scenario, found, missing)
    scenario["workload"] = {"synthetic": {"row": "64K"}}
    missing.append("workload: a graph states none; give your traces, or change this stand-in")
    return Skeleton(scenario, tuple(found), tuple(missing))


# ---- files -----------------------------------------------------------------------------------------


def _documents(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each YAML document with a word that says where it is."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml", ".json"))
    else:
        files = [path]
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not text"
            raise InputError(
                f"{file}: cannot be read ({why}); give the YAML file of a DynamoGraphDeployment"
            ) from None
        for part in _parts(text):
            if path.is_dir() and not re.search(r"DynamoGraphDeployment|ConfigMap|ttft|itl", part):
                continue
            yield str(file), yaml_lines.parse(part, str(file)).data


def _parts(text: str) -> list[str]:
    """Return the documents, each with as many empty lines above it as it had lines."""
    parts, above = [], 0
    for part in re.split(r"(?m)^---[ \t]*$", text):
        if _has_content(part):
            parts.append("\n" * above + part)
        above += part.count("\n")
    return parts or [text]


def _has_content(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())


def _inline_planner(
    where: str, graph: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for at, part in components(where, graph):
        words = words_of(container(part))
        value = flag(words, ("--config",))
        if value is not None and value.lstrip().startswith("{"):
            yield f"{where}, {at}", yaml_lines.parse(value, f"{where}: {at}: --config").data


def _mounted_planner(
    where: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    data = config.get("data")
    for name, text in data.items() if isinstance(data, Mapping) else ():
        if isinstance(text, str) and "planner" in str(name):
            yield f"{where}, data.{name}", yaml_lines.parse(text, f"{where}: data.{name}").data


# ---- scenario --------------------------------------------------------------------------------------


def _from_graph(
    where: str,
    graph: Mapping[str, Any],
    scenario: dict[str, Any],
    found: list[str],
    missing: list[str],
) -> None:
    metadata = graph.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if isinstance(name, str) and name:
        scenario["name"] = name
        found.append(f"name {one_line(name)}: metadata.name ({where})")
    workers = [w for w in (worker_of(where, graph, *c) for c in components(where, graph)) if w]
    for role in ROLES:
        if not any(worker.role == role and worker.replicas for worker in workers):
            raise InputError(
                f"{where}: has no {role} workers (type or subComponentType {role}, or "
                f"--disaggregation-mode {role}); a scenario needs prefill and decode apart"
            )
    _llm(workers, scenario, found, missing)
    scenario["cluster"] = {
        role: _groups(role, [w for w in workers if w.role == role], found) for role in ROLES
    }
    missing += [
        f"cluster.{role}: node {STAND_IN} is a stand-in; name the machine (GPU, NICs, GPUs of a "
        "node)"
        for role in ROLES
    ]
    scenario["parallelism"] = {
        role: _parallelism(role, [w for w in workers if w.role == role], found, missing)
        for role in ROLES
    }
    conditional = _conditional(where, graph)
    scenario["framework"] = "dynamo" if conditional else "vllm"
    said = f"on ({conditional})" if conditional else "off"
    found.append(
        f"framework {scenario['framework']}: conditional disaggregation is {said} ({where})"
    )


def _llm(
    workers: list[Worker], scenario: dict[str, Any], found: list[str], missing: list[str]
) -> None:
    model = next((worker.model for worker in workers if worker.model), None)
    if model is None:
        scenario["llm"] = "deepseek-v3.2"
        missing.append("llm: no worker has --model; deepseek-v3.2 is a stand-in")
    else:
        scenario["llm"] = known_llm(model, missing)
        found.append(f"llm {one_line(scenario['llm'])}: --model {one_line(model)}")
    dtype = next((worker.kv_dtype for worker in workers if worker.kv_dtype), None)
    name = KV_DTYPES.get(dtype or "")
    if name is not None:
        scenario["kv_dtype"] = name
        found.append(f"kv_dtype {name}: --kv-cache-dtype {one_line(dtype)}")
    else:
        missing.append(
            "kv_dtype: say it if the engines do not keep the LLM's own (--kv-cache-dtype)"
        )


def _groups(role: str, workers: list[Worker], found: list[str]) -> Any:
    groups: list[dict[str, Any]] = []
    for worker in workers:
        if not worker.replicas:
            continue
        total = worker.replicas * worker.nodes * worker.gpus
        of_node = worker.gpus if worker.nodes > 1 else max(STAND_IN_GPUS, worker.gpus)
        of_node = min(of_node, total)
        count = -(-total // of_node)
        buffer = None
        if worker.kvbm_gb is not None:
            buffer = f"{worker.kvbm_gb * (of_node // worker.tensor):.10g} GB"
            found.append(
                f"{role} buffer {buffer} of a node: DYN_KVBM_CPU_CACHE_GB {worker.kvbm_gb:g} x "
                f"{of_node // worker.tensor} engines ({worker.where})"
            )
        node = stand_in(of_node, buffer)
        groups.append({"node": node if len(node) > 1 else STAND_IN, "count": count})
        found.append(
            f"{role}.count {count}: {worker.replicas} workers x {worker.nodes * worker.gpus} GPUs "
            f"/ {of_node} GPUs of a node ({worker.where})"
        )
    return groups[0] if len(groups) == 1 else groups


def _parallelism(
    role: str, workers: list[Worker], found: list[str], missing: list[str]
) -> dict[str, int]:
    first = workers[0]
    if len({(w.tensor, bool(w.expert)) for w in workers}) > 1:
        missing.append(
            f"parallelism.{role}: its components differ, a scenario has one; that of "
            f"{first.where} is taken"
        )
    found.append(
        f"parallelism.{role}.tensor {first.tensor}: --tensor-parallel-size, else 1 ({first.where})"
    )
    if not first.expert:
        return {"tensor": first.tensor}
    # several groups: the narrowest fits all of them
    experts = sorted({worker.expert for worker in workers if worker.expert})
    expert = experts[0]
    if len(experts) > 1:
        missing.append(
            f"parallelism.{role}.expert: its components have {' and '.join(map(str, experts))}, a "
            f"scenario has one for a role; {expert} is taken, leave it out for as few GPUs as "
            "hold the experts"
        )
    found.append(
        f"parallelism.{role}.expert {expert}: tensor x data parallelism with "
        "--enable-expert-parallel"
    )
    return {"tensor": first.tensor, "expert": expert}


def _conditional(where: str, graph: Mapping[str, Any]) -> str | None:
    """Return the word that turns conditional disaggregation on, None where nothing does."""
    for _, part in components(where, graph):
        words = words_of(container(part))
        if "--no-router-conditional-disagg" in words:
            return None
        if "--router-conditional-disagg" in words:
            return "--router-conditional-disagg"
        value = environment(graph, part).get("DYN_ROUTER_CONDITIONAL_DISAGG", "")
        if value.lower() in _TRUE:
            return "DYN_ROUTER_CONDITIONAL_DISAGG"
    return None


def _from_planner_counts(
    where: str,
    config: Mapping[str, Any],
    scenario: dict[str, Any],
    found: list[str],
    missing: list[str],
) -> None:
    """Take the counts of a planner config that comes without its graph."""
    scenario["llm"] = "deepseek-v3.2"
    missing.append("llm: a planner config does not name it; deepseek-v3.2 is a stand-in")
    cluster: dict[str, Any] = {}
    parallelism: dict[str, Any] = {}
    for role in ROLES:
        gpus = whole(where, f"{role}_engine_num_gpu", config.get(f"{role}_engine_num_gpu") or 1)
        count = config.get(f"{role}_min_endpoint", config.get("min_endpoint", 1))
        workers = whole(where, f"{role}_min_endpoint", 1 if count is None else count)
        nodes = -(-gpus * workers // STAND_IN_GPUS)
        cluster[role] = {"node": STAND_IN, "count": nodes}
        parallelism[role] = {"tensor": 1}
        found.append(
            f"{role}.count {nodes}: {workers} workers of {gpus} GPUs / {STAND_IN_GPUS} of a node "
            f"({where})"
        )
        missing.append(
            f"cluster.{role}: node {STAND_IN} is a stand-in, and the count the planner's least; "
            "name machine and count"
        )
        missing.append(
            f"parallelism.{role}: a planner config has no engine flags; give tensor and expert"
        )
    scenario |= {"cluster": cluster, "parallelism": parallelism, "framework": "vllm"}
    missing.append("framework: say dynamo if the router has conditional disaggregation on")


def _slo(
    planners: list[tuple[str, Mapping[str, Any]]],
    scenario: dict[str, Any],
    found: list[str],
    missing: list[str],
) -> None:
    slo: dict[str, str] = {}
    for name, keys in (("ttft", ("ttft_ms", "ttft")), ("tpot", ("itl_ms", "itl"))):
        for where, config in planners:
            key = next((key for key in keys if config.get(key) is not None), None)
            if key is not None and name not in slo:
                value = positive(where, key, config[key])
                slo[name] = f"{value:.10g} ms"
                found.append(f"slo.{name} {slo[name]}: {key} of the planner ({where})")
        if name not in slo:
            missing.append(f"slo.{name}: no planner config states it")
    if slo:
        scenario["slo"] = slo
