"""SGLang's launch commands, ``--config`` YAML or server info become the skeleton of a scenario.

Sizes as in 0.5.23: ``--hicache-size`` is in 1e9 bytes for each rank, a page is a block, and an engine is
a group of ``tp-size / attn-dp-size`` GPUs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualpath_model.export.imports._sglang_commands import ROLES, Launch, launches
from dualpath_model.export.imports.skeleton import (
    KV_DTYPES,
    STAND_IN,
    Skeleton,
    known_llm,
    like_the_other,
    stand_in,
)


def read(path: Path) -> Skeleton:
    """Read a script, a YAML or JSON file, or a folder of scripts (as ``export sglang`` writes).

    Raises InputError, one sentence, for a file that states no servers of these roles.
    """
    found: list[str] = []
    missing: list[str] = []
    servers = _servers(launches(path))
    scenario: dict[str, Any] = {"name": path.stem or "sglang"}
    _llm(servers, scenario, found, missing)
    scenario["framework"] = "sglang"
    found.append("framework sglang: hits are read on both sides")
    scenario["cluster"] = {}
    scenario["parallelism"] = {}
    stated = {role: [s for s in servers if s[0].role == role] for role in ROLES}
    for role, mine in stated.items():
        if mine:
            scenario["cluster"][role] = _pool(role, mine, found, missing)
            scenario["parallelism"][role] = _parallelism(role, [s[0] for s in mine], found, missing)
    for role, mine in stated.items():
        if not mine:
            like_the_other(scenario, role, missing)
    _block(servers, scenario, found, missing)
    scenario["workload"] = {"synthetic": {"row": "64K"}}
    missing.append("workload: no server states it; give your traces, or change this stand-in")
    missing.append("slo: no server states it; give ttft and tpot")
    return Skeleton(scenario, tuple(found), tuple(missing))


def _servers(stated: list[Launch]) -> list[list[Launch]]:
    """Put the launches of one server, or of servers that share a node, together."""
    together: dict[tuple[str, str], list[Launch]] = {}
    on_part = {(s.role, s.host) for s in stated if s.first_gpu and s.host}
    for number, launch in enumerate(stated):
        if launch.nodes > 1 and launch.group and launch.rank is not None:
            name = f"group {launch.group}"
        elif (launch.role, launch.host) in on_part:
            name = f"host {launch.host}"
        else:
            name = f"alone {number}"
        together.setdefault((launch.role, name), []).append(launch)
    return list(together.values())


def _nodes(server: list[Launch]) -> list[tuple[int, float | None, str]]:
    """Return GPUs, buffer in GB and place of each node that a server, or several of one node, take."""
    first = server[0]
    if first.nodes == 1:
        return [(sum(s.gpus_of_node for s in server), _buffer(server), first.where)]
    by_rank = {launch.rank: launch for launch in server}
    known = [(s.gpus_of_node, _buffer([s]), s.where) for s in by_rank.values()]
    lacking = first.nodes - len(known)  # the command of one node may stand for all
    return known + [(first.gpus_of_node, _buffer([first]), first.where)] * max(0, lacking)


def _buffer(on_node: list[Launch]) -> float | None:
    sizes = [s.hicache_gb * s.gpus_of_node if s.hicache_gb else None for s in on_node]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _pool(
    role: str, servers: list[list[Launch]], found: list[str], missing: list[str]
) -> dict[str, Any] | list[dict[str, Any]]:
    groups: dict[tuple[int, float | None], list[str]] = {}
    for server in servers:
        for gpus, buffer, where in _nodes(server):
            groups.setdefault((gpus, buffer), []).append(where)
    listed: list[dict[str, Any]] = []
    for (gpus, buffer), places in groups.items():
        node = stand_in(gpus, None if buffer is None else f"{buffer:.10g} GB")
        if buffer is not None:
            found.append(
                f"{role}.buffer {buffer:.10g} GB: hicache-size x {gpus} GPUs of a node ({places[0]})"
            )
        else:
            # the stand-in's own buffer would look like one that was read
            node["buffer"] = None
            missing.append(f"cluster.{role}: no hicache-size ({places[0]}); give the node's buffer")
        listed.append({"node": node, "count": len(places)})
        found.append(
            f"{role}.count {len(places)}: nodes of {gpus} GPUs ({', '.join(dict.fromkeys(places))})"
        )
    missing.append(
        f"cluster.{role}: node {STAND_IN} is a stand-in; name the machine (GPU, NICs, DRAM)"
    )
    return listed[0] if len(listed) == 1 else listed


def _parallelism(
    role: str, servers: list[Launch], found: list[str], missing: list[str]
) -> dict[str, int]:
    first = servers[0]
    if len({s.tensor for s in servers}) > 1:
        missing.append(
            f"parallelism.{role}: its servers differ, a scenario has one; that of {first.where} is taken"
        )
    found.append(
        f"parallelism.{role}.tensor {first.tensor}: tp-size {first.tensor_group} / "
        f"attn-dp-size {first.attention} ({first.where})"
    )
    experts = {s.expert for s in servers}
    if experts == {1}:
        return {"tensor": first.tensor}
    if len(experts) > 1:
        missing.append(
            f"parallelism.{role}.expert: ep-size is {' and '.join(map(str, sorted(experts)))}; left "
            f"out, which means as few nodes as hold the experts"
        )
        return {"tensor": first.tensor}
    found.append(f"parallelism.{role}.expert {first.expert}: ep-size ({first.where})")
    return {"tensor": first.tensor, "expert": first.expert}


def _llm(
    servers: list[list[Launch]], scenario: dict[str, Any], found: list[str], missing: list[str]
) -> None:
    every = [launch for server in servers for launch in server]
    stated = next((s for s in every if s.model), None)
    if stated is None or stated.model is None:
        scenario["llm"] = "deepseek-v3.2"
        missing.append("llm: no server has model-path; deepseek-v3.2 is a stand-in")
    else:
        scenario["llm"] = known_llm(stated.model, missing)
        found.append(f"llm {scenario['llm']}: model-path {stated.model} ({stated.where})")
    dtype = next((s for s in every if s.kv_dtype), None)
    name = KV_DTYPES.get(dtype.kv_dtype or "") if dtype is not None else None
    if dtype is None or name is None:
        missing.append("kv_dtype: kv-cache-dtype is not said or auto; say what the KV-cache is in")
        return
    scenario["kv_dtype"] = name
    found.append(f"kv_dtype {name}: kv-cache-dtype {dtype.kv_dtype} ({dtype.where})")
    if name == "fp8" and str(scenario["llm"]).startswith("deepseek-v3.2"):
        missing.append(
            "kv_dtype: fp8_ds_mla also counts the scales and indexer keys that SGLang keeps for this LLM"
        )


def _block(
    servers: list[list[Launch]], scenario: dict[str, Any], found: list[str], missing: list[str]
) -> None:
    every = [launch for server in servers for launch in server]
    pages = {s.page_tokens: s for s in reversed(every) if s.page_tokens is not None}
    if not pages:
        missing.append("scheduler.block_tokens: no page-size is stated; 64 is the default")
        return
    tokens, stated = list(pages.items())[-1]  # of the first
    assert tokens is not None
    scenario["scheduler"] = {"block_tokens": tokens}
    found.append(f"scheduler.block_tokens {tokens}: page-size ({stated.where})")
    if len(pages) > 1:
        missing.append(
            f"scheduler.block_tokens: servers have pages of {sorted(filter(None, pages))} tokens; that "
            f"of {stated.where} is taken"
        )
    if not all(s.hicache for s in every):
        missing.append(
            "framework: not every server has enable-hierarchical-cache, without which it reads no hits "
            "from storage; the model assumes that all do"
        )
