"""A vLLM deployment's commands or configs become the skeleton of a scenario."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dualpath_model.export.imports._vllm_commands import Command, commands
from dualpath_model.export.imports.skeleton import Skeleton
from dualpath_model.export.quoting import one_line

STAND_IN = "paper-hopper"
"""The node that stands in for the real ones, which no command states: 8 GPUs."""
STAND_IN_GPUS = 8
_KV_DTYPES = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "fp8_ds_mla": "fp8_ds_mla",
}
Node = tuple[int, int | None]
"""GPUs of a node, and the bytes of its buffer."""


def read(path: Path) -> Skeleton:
    """Read a script, a JSON list of words, a compose file, a config, or a folder with such files.

    Raises InputError, one sentence, for a file that is none of these, or with values that are none.
    """
    listed = commands(path)
    found: list[str] = []
    missing: list[str] = []
    scenario: dict[str, Any] = {"name": _name(path, found)}
    _llm(listed, scenario, found, missing)
    scenario["cluster"] = {}
    scenario["parallelism"] = {}
    for role in ("prefill", "decode"):
        mine = [command for command in listed if command.role == role]
        if not mine:
            missing.append(
                f"cluster.{role}: no command has this role; one node stands in, give count and machine"
            )
        scenario["cluster"][role] = _pool(role, mine, found, missing)
        scenario["parallelism"][role] = _parallelism(role, mine, found, missing)
    _framework(listed, scenario, found)
    blocks = Counter(c.block_tokens for c in listed if c.block_tokens is not None)
    if blocks:
        scenario["scheduler"] = {"block_tokens": blocks.most_common(1)[0][0]}
        found.append(
            f"scheduler.block_tokens {scenario['scheduler']['block_tokens']}: the store's chunk"
        )
    scenario["slo"] = {"ttft": "4 s", "tpot": "50 ms"}
    missing.append("slo: no command states it; 4 s and 50 ms are the defaults")
    scenario["workload"] = {"synthetic": {"row": "64K"}}
    missing.append("workload: no command states one; give your traces, or change this stand-in")
    return Skeleton(scenario, tuple(found), tuple(dict.fromkeys(missing)))


def _name(path: Path, found: list[str]) -> str:
    """Return the scenario's name of an export's folder, else the file's."""
    place = path / "routing.json"
    if place.is_file():
        try:
            name = json.loads(place.read_text(encoding="utf-8")).get("scenario")
        except (OSError, ValueError, AttributeError, RecursionError):
            name = None
        if isinstance(name, str) and name:
            found.append(f"name {one_line(name)}: {place}")
            return name
    return path.stem


def _llm(
    listed: list[Command], scenario: dict[str, Any], found: list[str], missing: list[str]
) -> None:
    from dualpath_model.catalog.llms import llm_names

    stated = [command for command in listed if command.model]
    if not stated:
        scenario["llm"] = "deepseek-v3.2"
        missing.append("llm: a config does not name it; deepseek-v3.2 is a stand-in")
    else:
        model = str(stated[0].model)
        short = model.rstrip("/").rsplit("/", 1)[-1].lower()
        known = [name for name in llm_names() if short == name or short.startswith(f"{name}-")]
        scenario["llm"] = max(known, key=len) if known else model
        found.append(f"llm {one_line(scenario['llm'])}: `vllm serve` ({stated[0].where})")
        if not known:
            missing.append(
                f"llm: '{one_line(model)}' is in no catalog; take a name of `dualpath llm list`, or "
                f"give its config.json"
            )
        others = {command.model for command in stated} - {model}
        if others:
            missing.append(
                f"llm: other commands serve {', '.join(sorted(map(one_line, others)))}; a scenario has "
                f"one LLM"
            )
    dtypes = [command for command in listed if command.kv_dtype in _KV_DTYPES]
    if dtypes:
        name = _KV_DTYPES[str(dtypes[0].kv_dtype)]
        scenario["kv_dtype"] = name
        found.append(f"kv_dtype {name}: --kv-cache-dtype ({dtypes[0].where})")
    else:
        missing.append(
            "kv_dtype: no command has --kv-cache-dtype; say it if it is not the LLM's own"
        )


def _pool(role: str, mine: list[Command], found: list[str], missing: list[str]) -> Any:
    if not mine:
        return {"node": STAND_IN, "count": 1}
    kinds = _nodes(mine)
    groups: list[dict[str, Any]] = []
    for (gpus, buffer), count in kinds.items():
        node: dict[str, Any] = {"base": STAND_IN}
        if gpus != STAND_IN_GPUS:
            node |= {"gpus": gpus, "cnics": gpus}
        if buffer is not None:
            node["buffer"] = f"{buffer / 1e9:.12g} GB"
            found.append(
                f"{role} buffer {node['buffer']} of a node: cpu_bytes_to_use of its engines together"
            )
        groups.append({"node": node if len(node) > 1 else STAND_IN, "count": count})
        missing.append(
            f"cluster.{role}: node {STAND_IN} with {gpus} GPUs is a stand-in; name the machine"
        )
        if buffer is None:
            missing.append(f"cluster.{role}: no cpu_bytes_to_use is stated; give the node's buffer")
    total, where = sum(kinds.values()), mine[0].where
    many = sum(command.times for command in mine)
    by = "hosts of " if all(command.host for command in mine) else ""
    found.append(f"{role}.count {total}: {by}{many} servers, the first of them {where}")
    if not by:
        missing.append(
            f"cluster.{role}: no host is stated, so each command is taken for a node; correct the count"
        )
    return groups[0] if len(groups) == 1 else groups


def _nodes(mine: list[Command]) -> dict[Node, int]:
    """Return how many nodes there are of each kind, in order: servers with the same host share one."""
    hosts: dict[str, list[Command]] = {}
    for number, command in enumerate(mine):
        hosts.setdefault(command.host or f" {number}", []).append(command)
    kinds: dict[Node, int] = {}
    for together in hosts.values():
        sizes = [c.buffer_bytes * c.engines for c in together if c.buffer_bytes is not None]
        buffer = sum(sizes) if len(sizes) == len(together) else None
        kind = (sum(command.gpus for command in together), buffer)
        kinds[kind] = kinds.get(kind, 0) + max(command.times for command in together)
    return kinds


def _parallelism(
    role: str, mine: list[Command], found: list[str], missing: list[str]
) -> dict[str, int]:
    if not mine:
        return {"tensor": 1}
    first = mine[0]
    if len({(c.tensor, c.expert) for c in mine}) > 1:
        missing.append(
            f"parallelism.{role}: its commands differ, a scenario has one; taken: {first.where}"
        )
    found.append(
        f"parallelism.{role}.tensor {first.tensor}: --tensor-parallel-size, else 1 ({first.where})"
    )
    if not first.expert:
        return {"tensor": first.tensor}
    # several groups: the narrowest fits all of them
    expert = min(command.tensor * command.ranks for command in mine if command.expert)
    found.append(
        f"parallelism.{role}.expert {expert}: tensor x data parallelism with --enable-expert-parallel"
    )
    return {"tensor": first.tensor, "expert": expert}


def _framework(listed: list[Command], scenario: dict[str, Any], found: list[str]) -> None:
    pulling = next((command for command in listed if command.pulls), None)
    scenario["framework"] = "vllm" if pulling is None else "vllm-pull"
    why = (
        "no bidirectional_kv_xfer"
        if pulling is None
        else f"bidirectional_kv_xfer ({pulling.where})"
    )
    found.append(f"framework {scenario['framework']}: {why}")
