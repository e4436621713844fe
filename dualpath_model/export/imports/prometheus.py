"""What Prometheus measured of a running cluster becomes the skeleton of a scenario.

Nodes and their roles from labels, storage NICs from node_exporter, the mean turn from the engines.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualpath_model.errors import InputError
from dualpath_model.export.imports._prometheus_series import Series, percentile, read_series
from dualpath_model.export.imports.skeleton import STAND_IN, Skeleton, catalog_llm
from dualpath_model.export.quoting import one_line

ROLES = ("prefill", "decode")
_ROLE_LABELS = ("pool", "role", "engine_type", "component", "job", "service", "pod", "instance")
_NOT_STORAGE = re.compile(r"(lo|docker|veth|br-|cni|flannel|cali|ifb|virbr|tun|tap|dummy)")
_RECEIVED = re.compile(r"network_receive_bytes|data_received_bytes|storage_read_bytes")
_SENT = re.compile(r"network_transmit_bytes|data_transmitted_bytes|storage_write_bytes")
_SPEED = re.compile(r"network_speed_bytes")
_ENGINE = re.compile(r"(?:vllm|sglang):([a-z0-9_]+)")
# a series without a name may be a rate of any of them
_KNOWN = re.compile("|".join(p.pattern for p in (_RECEIVED, _SENT, _SPEED, _ENGINE)) + r"|\A\Z")


@dataclass
class Host:
    """One node: rates by device, received and sent, and the links' speeds, bytes/s."""

    role: str | None = None
    received: dict[str, list[float]] = field(default_factory=dict)
    sent: dict[str, list[float]] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[int, float]:
        """What tells kinds of nodes apart: number of NICs and link speed (0: not known)."""
        return len(self.received), min(self.speed.values(), default=0.0)


def read(path: Path) -> Skeleton:
    """Read range queries (JSON): one answer of ``/api/v1/query_range``, or a list of them.

    Raises InputError, one sentence, for what is no such answer or holds nothing that a scenario needs.
    """
    everything = read_series(path)
    hosts = _hosts(everything)
    engines = [s for s in everything if _ENGINE.search(s.name)]
    if not engines and not any(host.received for host in hosts.values()):
        raise InputError(
            f"{path}: has neither bytes of network devices (node_network_receive_bytes_total) nor "
            f"metrics of vLLM or SGLang; query at least one of them"
        )
    found: list[str] = []
    missing: list[str] = []
    lost = sum(series.lost for series in everything)
    if lost:
        found.append(f"{lost} samples were no finite number (NaN or Inf) and do not count")
    scenario: dict[str, Any] = {"name": path.stem}
    scenario["llm"] = _llm(engines, found, missing)
    scenario["cluster"] = _cluster(hosts, found, missing)
    scenario["workload"] = _workload(engines, found, missing)
    missing.append("parallelism: no metric states it; give tensor (and expert) of each pool")
    missing.append("slo: no metric states it; left out, it is a TTFT of 4 s and a TPOT of 50 ms")
    if any(not series.name for series in everything):
        missing.append(
            "cluster: series without a name were taken for rates of received bytes; check that, or put "
            "the query's text into the answer as a key 'query'"
        )
    return Skeleton(scenario, tuple(found), tuple(missing))


# ---- nodes -----------------------------------------------------------------------------------------


def _hosts(everything: Iterable[Series]) -> dict[str, Host]:
    hosts: dict[str, Host] = defaultdict(Host)
    for series in everything:
        name, labels = _host_name(series.labels), series.labels
        if name is None or not series.values or not _KNOWN.search(series.name):
            continue
        role = _role(labels)
        device = labels.get("device", "all")
        host = hosts[name]
        host.role = host.role or role
        if _NOT_STORAGE.match(device):
            continue
        if _SPEED.search(series.name):
            if series.values[-1] > 0:  # -1: the driver does not say
                host.speed[device] = series.values[-1]
        elif _SENT.search(series.name):
            host.sent.setdefault(device, []).extend(series.rates())
        elif _RECEIVED.search(series.name) or (not series.name and "device" in labels):
            host.received.setdefault(device, []).extend(series.rates())
    for host in hosts.values():
        host.speed = {d: speed for d, speed in host.speed.items() if d in host.received}
    return dict(sorted(hosts.items()))


def _host_name(labels: Mapping[str, str]) -> str | None:
    """Return the node that a series is of: its ``node``, else the host of its ``instance``."""
    if labels.get("node"):
        return labels["node"]
    instance = labels.get("instance")
    return re.sub(r":\d+\Z", "", instance) if instance else None


def _role(labels: Mapping[str, str]) -> str | None:
    for label in _ROLE_LABELS:
        roles = [role for role in ROLES if role in labels.get(label, "").lower()]
        if len(roles) == 1:
            return roles[0]
    return None


def _cluster(hosts: Mapping[str, Host], found: list[str], missing: list[str]) -> dict[str, Any]:
    cluster: dict[str, Any] = {}
    for role in ROLES:
        nodes = {name: host for name, host in hosts.items() if host.role == role}
        if nodes:
            cluster[role] = _groups(role, nodes, found, missing)
            missing.append(
                f"cluster.{role}: node {STAND_IN} is a stand-in; name the machine (GPU, compute NICs, "
                f"DRAM)"
            )
        else:
            missing.append(
                f"cluster.{role}: no series is of a {role} node (labels pool, role, job or instance say "
                f"so); nodes {STAND_IN}, as many as of the other role, stand in"
            )
    for role in ROLES:
        if role not in cluster:
            other = sum(host.role is not None for host in hosts.values())
            cluster[role] = {"node": STAND_IN, "count": max(1, other)}
    unknown = [name for name, host in hosts.items() if host.role is None]
    if unknown:
        some = ", ".join(map(one_line, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        missing.append(f"cluster: {len(unknown)} nodes have no role and were left out ({some})")
    return cluster


def _groups(
    role: str, nodes: Mapping[str, Host], found: list[str], missing: list[str]
) -> dict[str, Any] | list[dict[str, Any]]:
    kinds: dict[tuple[int, float], list[str]] = defaultdict(list)
    for name, host in nodes.items():
        kinds[host.kind].append(name)
    groups = []
    for (nics, speed), names in sorted(kinds.items(), reverse=True):
        node: str | dict[str, Any] = STAND_IN
        reached = _reached([nodes[name].received for name in names])
        if nics and (speed or reached):
            node = {"base": STAND_IN, "snics": nics, "snic": _gbps(speed or reached)}
            _say_rates(role, names, nodes, reached, speed, found, missing)
        groups.append({"node": node, "count": len(names)})
        found.append(f"{role}.count {len(names)}: {_listed(names)}")
    return groups[0] if len(groups) == 1 else groups


def _reached(devices: Sequence[Mapping[str, list[float]]]) -> float:
    """Return the greatest p99 of any NIC's rate."""
    every = [rates for found in devices for rates in found.values() if rates]
    return max((percentile(rates, 0.99) for rates in every), default=0.0)


def _say_rates(
    role: str,
    names: Sequence[str],
    nodes: Mapping[str, Host],
    reached: float,
    speed: float,
    found: list[str],
    missing: list[str],
) -> None:
    devices = sorted({device for name in names for device in nodes[name].received})
    sent = _reached([nodes[name].sent for name in names])
    found.append(
        f"{role} NICs {_listed(devices)}: p99 of the rate reached {_gbps(reached)} in"
        + (f", {_gbps(sent)} out" if sent else "")
        + (f"; link speed {_gbps(speed)} (node_network_speed_bytes)" if speed else "")
    )
    missing.append(
        f"cluster.{role}: {_listed(devices)} are taken for storage NICs; query only those that carry "
        f"storage traffic"
    )
    if not speed:
        missing.append(
            f"cluster.{role}: snic is the rate reached, as no node_network_speed_bytes is there; a NIC "
            f"that was not full can do more"
        )
    elif reached > 0:
        missing.append(
            f"efficiencies.snic: {min(1.0, reached / speed):.3f} of the {role} links' speed was "
            f"reached; set it if the NICs were full then"
        )


def _gbps(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e9:.6g} Gbps"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(one_line, names[:8])) + (", ..." if len(names) > 8 else "")


# ---- LLM and workload ------------------------------------------------------------------------------


def _llm(engines: Sequence[Series], found: list[str], missing: list[str]) -> str:
    models = sorted({s.labels["model_name"] for s in engines if s.labels.get("model_name")})
    if not models:
        missing.append("llm: no series has a model_name; deepseek-v3.2 is a stand-in")
        return "deepseek-v3.2"
    llm = catalog_llm(models[0])
    if llm is None:
        missing.append(
            f"llm: '{one_line(models[0])}' is in no catalog and deepseek-v3.2 a stand-in; take a name "
            f"of `dualpath llm list` or give its config.json"
        )
        return "deepseek-v3.2"
    found.append(f"llm {llm}: model_name {one_line(models[0])}")
    if len(models) > 1:
        missing.append(f"llm: the series are of {len(models)} models; {llm} is taken")
    return llm


def _workload(engines: Sequence[Series], found: list[str], missing: list[str]) -> dict[str, Any]:
    amounts = _amounts(engines)

    def ratio(role: str, over: Sequence[str], under: Sequence[str]) -> float | None:
        top, bottom = (_sum(amounts, role, names) for names in (over, under))
        return top / bottom if top is not None and bottom else None

    ended = ("request_success",) if _has(amounts, "request_success") else ("num_requests",)
    prompt = ratio("prefill", ["request_prompt_tokens_sum"], ["request_prompt_tokens_count"])
    prompt = prompt or ratio("prefill", ["prompt_tokens"], ended)
    output = ratio("decode", ["request_generation_tokens_sum"], ["request_generation_tokens_count"])
    output = output or ratio("decode", ["generation_tokens"], ended)
    cached = "prompt_tokens_cached" if _has(amounts, "prompt_tokens_cached") else "cached_tokens"
    share = ratio("prefill", [cached], ["prompt_tokens"])
    if share is None:
        # the store is asked for what the engine's own cache has not, so both add up
        hits = ["prefix_cache_hits"]
        hits += (
            ["external_prefix_cache_hits"] if _has(amounts, "external_prefix_cache_hits") else []
        )
        share = ratio("prefill", hits, ["prefix_cache_queries"])
    for what, value in (("prompt", prompt), ("output", output), ("hit share", share)):
        if value is None:
            missing.append(
                f"workload: mean {what} is not in the series; query the engines' counters"
            )
        else:
            found.append(
                f"workload: mean {what} {value:.6g}, from the growth of the engines' counters"
            )
    if prompt is None or output is None or share is None or not prompt > 0:
        missing.append("workload: the paper's 64K agents are a stand-in; give traces or moments")
        return {"synthetic": {"row": "64K"}}
    missing.append("workload: one mean turn stands for all; traces say more")
    if all(role is None for _, role in amounts):
        missing.append(
            "workload: no series of an engine says its pool; if prefill engines are among them, the one "
            "token that each prefill gives counts as an output, and the mean output is too small"
        )
    hit = round(min(share, 1.0) * prompt, 1)
    moments = {"prompt_tokens": round(prompt, 1), "hit_tokens": hit}
    return {"moments": {**moments, "output_tokens": round(output, 1)}}


def _amounts(engines: Iterable[Series]) -> dict[tuple[str, str | None], float]:
    """Return by how much each metric grew, by name without prefix and ``_total``, and role."""
    found: dict[tuple[str, str | None], float] = defaultdict(float)
    for series in engines:
        match = _ENGINE.search(series.name)
        if match is not None and series.values:
            name = match.group(1).removesuffix("_total")
            found[name, _role(series.labels)] += series.amount()
    return dict(found)


def _has(amounts: Mapping[tuple[str, str | None], float], name: str) -> bool:
    return any(metric == name for metric, _ in amounts)


def _sum(
    amounts: Mapping[tuple[str, str | None], float], role: str, names: Sequence[str]
) -> float | None:
    """Return the growth of metrics on the nodes of a role; where none has a role, on all."""
    if not all(_has(amounts, name) for name in names):
        return None
    of_role = [amounts[name, role] for name in names if (name, role) in amounts]
    if len(of_role) == len(names):
        return sum(of_role)
    return sum(value for (metric, _), value in amounts.items() if metric in names)
