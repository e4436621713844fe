"""A vLLM deployment's commands or configs become the skeleton of a scenario."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dualpath_model.export.imports._vllm_commands import Command, commands
from dualpath_model.export.imports.skeleton import (
    KV_DTYPES,
    STAND_IN,
    Skeleton,
    known_llm,
    like_the_other,
    stand_in,
)
from dualpath_model.export.quoting import one_line

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
    stated = {role: [c for c in listed if c.role == role] for role in ("prefill", "decode")}
    for role, mine in stated.items():
        if mine:
            scenario["cluster"][role] = _pool(role, mine, found, missing)
            scenario["parallelism"][role] = _parallelism(role, mine, found, missing)
    for role, mine in stated.items():
        if not mine:
            like_the_other(scenario, role, missing)
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
    stated = [command for command in listed if command.model]
    if not stated:
        scenario["llm"] = "deepseek-v3.2"
        missing.append("llm: a config does not name it; deepseek-v3.2 is a stand-in")
    else:
        model = str(stated[0].model)
        scenario["llm"] = known_llm(model, missing)
        found.append(f"llm {one_line(scenario['llm'])}: `vllm serve` ({stated[0].where})")
        others = {command.model for command in stated} - {model}
        if others:
            missing.append(
                f"llm: other commands serve {', '.join(sorted(map(one_line, others)))}; a scenario has "
                f"one LLM"
            )
    dtypes = [command for command in listed if command.kv_dtype in KV_DTYPES]
    if dtypes:
        name = KV_DTYPES[str(dtypes[0].kv_dtype)]
        scenario["kv_dtype"] = name
        found.append(f"kv_dtype {name}: --kv-cache-dtype ({dtypes[0].where})")
    else:
        missing.append(
            "kv_dtype: no command has --kv-cache-dtype; say it if it is not the LLM's own"
        )


def _pool(role: str, mine: list[Command], found: list[str], missing: list[str]) -> Any:
    kinds = _nodes(mine)
    groups: list[dict[str, Any]] = []
    for (gpus, buffer), count in kinds.items():
        size = None if buffer is None else f"{buffer / 1e9:.12g} GB"
        node = stand_in(gpus, size)
        groups.append({"node": node if len(node) > 1 else STAND_IN, "count": count})
        missing.append(
            f"cluster.{role}: node {STAND_IN} with {gpus} GPUs is a stand-in; name the machine"
        )
        if size is None:
            missing.append(f"cluster.{role}: no cpu_bytes_to_use is stated; give the node's buffer")
        else:
            found.append(
                f"{role} buffer {size} of a node: cpu_bytes_to_use of its engines together"
            )
    total, where = sum(kinds.values()), mine[0].where
    by = "hosts of " if all(command.host for command in mine) else ""
    servers = sum(command.times for command in mine)
    found.append(f"{role}.count {total}: {by}{servers} servers, the first of them {where}")
    for command, nodes in _lacking(mine):
        found.append(
            f"{role}.count: {nodes} of them have no command: --data-parallel-size {command.ranks} with "
            f"{command.engines} engines on a node ({command.where})"
        )
    if not by:
        missing.append(
            f"cluster.{role}: no host is stated, so each command is taken for a node; correct the count"
        )
    return groups[0] if len(groups) == 1 else groups


def _nodes(mine: list[Command]) -> dict[Node, int]:
    """Return how many nodes there are of each kind, in order: servers with the same host share one, and
    a deployment over several nodes has as many as its engines fill.
    """
    hosts: dict[str, list[Command]] = {}
    for number, command in enumerate(mine):
        hosts.setdefault(command.host or f" {number}", []).append(command)
    kinds: dict[Node, int] = {}
    for together in hosts.values():
        kind = _kind(together)
        kinds[kind] = kinds.get(kind, 0) + max(command.times for command in together)
    for command, nodes in _lacking(mine):
        kind = _kind([command])
        kinds[kind] = kinds.get(kind, 0) + nodes
    return kinds


def _kind(together: list[Command]) -> Node:
    sizes = [c.buffer_bytes * c.engines for c in together if c.buffer_bytes is not None]
    buffer = sum(sizes) if len(sizes) == len(together) else None
    return sum(command.gpus for command in together), buffer


def _lacking(mine: list[Command]) -> list[tuple[Command, int]]:
    """Return deployments over several nodes of which only some have a command: the first of these, and
    how many nodes the other engines fill. The script of one node may stand for all.
    """
    deployments: dict[tuple[int, str | None], list[Command]] = {}
    for command in mine:
        if command.ranks > command.engines:
            deployments.setdefault((command.ranks, command.address), []).append(command)
    found = []
    for (ranks, _), together in deployments.items():
        alone = len({command.start_rank for command in together}) < len(together)
        for part in [[command] for command in together] if alone else [together]:
            rest = ranks - sum(command.engines * command.times for command in part)
            if rest > 0:
                found.append((part[0], -(-rest // part[0].engines)))
    return found


def _parallelism(
    role: str, mine: list[Command], found: list[str], missing: list[str]
) -> dict[str, int]:
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
