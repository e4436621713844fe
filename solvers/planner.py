"""plan(scenario): the whole answer for a capacity planner, from the static models.

The LP gives throughput, flows, utilisation and prices; :mod:`solvers.alternatives` answers for other
node counts and hardware.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dualpath_model import closed_form
from dualpath_model.cluster import movement_capacity
from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import RequestMeans, mix_means
from dualpath_model.parameters import (
    SchedulerParameters,
    read_bytes_per_token,
    scheduler_parameters,
)
from dualpath_model.paths import PAPER, Key, Mover, Payload, Pool, Resource
from dualpath_model.scenario import Scenario
from solvers import alternatives, linear
from solvers.alternatives import (
    Neighbour,
    ResourceName,
    Upgrade,
    bottleneck,
    name_of,
    read_split,
)
from solvers.certificate import Certificate
from solvers.real_traffic import real_traffic_range
from solvers.uncertainty import Uncertainty, uncertainty

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class Condition:
    """One capacity's condition on P/D for a bottleneck-free cluster; None: no bound."""

    pool: str
    resource: str
    direction: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class BottleneckFreeRange:
    """Range of P/D in which saturating all storage NICs saturates nothing else (paper, 4.2).

    ``low``, ``high`` and ``holds`` are for hit traffic alone, as in the paper, and None where the range
    is not defined; ``reason`` then says why. ``low_all_traffic`` and ``high_all_traffic`` count miss
    hand-off and write-back too.
    """

    low: float | None
    high: float | None
    ratio: float
    holds: bool | None
    reason: str | None
    conditions: tuple[Condition, ...]
    low_all_traffic: float | None = None
    high_all_traffic: float | None = None


@dataclass(frozen=True, slots=True)
class Utilisation:
    """One capacity of one node (``node`` None: of the cluster) under Basic and under this plan.

    ``capacity`` in SI (bytes/s, FLOP/s, or bytes for HBM space); ``dual_value`` in requests/s per unit
    of it; ``elasticity``: % of throughput per % of this capacity on this node.
    """

    pool: str
    node: int | None
    resource: str
    direction: str
    capacity: float
    basic: float
    dual_path: float
    dual_value: float
    elasticity: float


@dataclass(frozen=True, slots=True)
class NodeFlow:
    """What one node does in the plan, requests/s and bytes/s."""

    pool: str
    node: int
    name: str
    requests_per_s: float
    storage_reads_per_s: float
    storage_read_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class DecodeEngine:
    """Operating point of a decode engine of one node kind under one class of traffic."""

    traffic: str
    node: str
    batch: float
    step_s: float
    limit: str


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """What one kind of traffic gets; ``share`` or ``required_requests_per_s`` is what it asked for."""

    name: str
    requests_per_s: float
    requests_per_s_basic: float
    split: float
    share: float | None
    required_requests_per_s: float | None
    read_bytes_per_request: float
    prefill_flops_per_request: float


@dataclass(frozen=True, slots=True)
class WorkloadSummary:
    """The workload's means per request; of several classes the mix that the plan serves."""

    source: str
    sessions: int
    requests: int
    hit_rate: float
    mean_prompt_tokens: float
    mean_miss_tokens: float
    mean_output_tokens: float
    read_bytes_per_request: float
    prefill_flops_per_request: float
    cache_compute_bytes_per_flop: float


@dataclass(frozen=True)
class Plan:
    """The answer. Quantities in SI; :func:`to_json` gives the stable JSON form."""

    version: int
    scenario: str
    llm: str
    kv_dtype: str
    framework: str
    """Whose paths serve the requests, as in the scenario."""
    prefill_nodes: int
    decode_nodes: int
    workload: WorkloadSummary
    classes: tuple[ClassPlan, ...]
    bottleneck: ResourceName
    bottleneck_basic: ResourceName
    binding: tuple[ResourceName, ...]
    split: float
    throughput_requests_per_s: float
    throughput_basic_requests_per_s: float
    throughput_oracle_requests_per_s: float | None
    """None: nothing but KV movement limits."""
    speedup_over_basic: float
    fraction_of_oracle: float | None
    sessions_per_s: float | None
    """None where the workload has single requests, not sessions."""
    bottleneck_free: BottleneckFreeRange
    payload_bytes: dict[str, float]
    flows: tuple[NodeFlow, ...]
    decode_engines: tuple[DecodeEngine, ...]
    utilisation: tuple[Utilisation, ...]
    certificate: Certificate
    upgrades: tuple[Upgrade, ...]
    neighbours: tuple[Neighbour, ...]
    scheduler_parameters: SchedulerParameters
    notes: tuple[str, ...]
    uncertainty: Uncertainty | None
    """Intervals from the measured rates; None where no node has any."""


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON-ready data."""
    return asdict(plan)


def plan(scenario: Scenario, *, backend: linear.Backend = "auto", intervals: bool = True) -> Plan:
    """Answer everything the static models know about ``scenario``.

    Without ``intervals`` the plan's ``uncertainty`` is None: on measured nodes they take seconds, all
    else milliseconds.

    Raises InfeasibleError if the LLM does not fit the GPUs or the TPOT cannot be met.
    """
    loads = scenario.class_loads()
    problem = alternatives.problem_of(scenario, loads)
    local = scenario.zones is not None
    reads = scenario.serving.table.splits  # else any split is the same
    best = linear.CapacityProgram(problem, backend, decode_reads=reads, locality=local).solve()
    basic = linear.CapacityProgram(problem, backend, decode_reads=False, locality=local).solve()
    oracle = alternatives.oracle_throughput(scenario, loads)
    flows = _flows(scenario, best)
    read_rates = {
        pool: [flow.storage_reads_per_s for flow in flows if flow.pool == pool.value]
        for pool in (Pool.PREFILL, Pool.DECODE)
    }
    split = read_split(scenario, best)
    means = mix_means(scenario.class_means, best.class_rates.tolist())
    return Plan(
        version=PLAN_VERSION,
        scenario=scenario.name,
        llm=scenario.llm.name,
        kv_dtype=scenario.serving.kv_dtype.value,
        framework=scenario.serving.table.name,
        prefill_nodes=len(scenario.cluster.prefill),
        decode_nodes=len(scenario.cluster.decode),
        workload=_summary(scenario, means),
        classes=_classes(scenario, best, basic),
        bottleneck=name_of(bottleneck(best)),
        bottleneck_basic=name_of(bottleneck(basic)),
        binding=tuple(map(name_of, dict.fromkeys(row.key for row in best.binding))),
        split=split,
        throughput_requests_per_s=best.throughput,
        throughput_basic_requests_per_s=basic.throughput,
        throughput_oracle_requests_per_s=oracle,
        speedup_over_basic=best.throughput / basic.throughput,
        fraction_of_oracle=None if oracle is None else best.throughput / oracle,
        sessions_per_s=_sessions_per_s(scenario, best),
        bottleneck_free=_bottleneck_free(scenario),
        payload_bytes={str(p.value): float(amount) for p, amount in means.payloads.items()},
        flows=flows,
        decode_engines=tuple(
            DecodeEngine(traffic.name, group.node.name, point.batch, point.step_s, point.limit)
            for traffic, load in zip(scenario.classes, loads, strict=True)
            for group in load.decode
            if (point := group.decode_point) is not None
        ),
        utilisation=_utilisation(best, basic),
        certificate=best.certificate,
        upgrades=alternatives.upgrades(scenario, best.throughput),
        neighbours=alternatives.neighbours(scenario),
        scheduler_parameters=scheduler_parameters(
            scenario.cluster,
            scenario.llm,
            means,
            scenario.efficiencies,
            scenario.rules,
            split=split,
            read_rates=read_rates,
            token_bytes=read_bytes_per_token(scenario.llm, means, scenario.serving.kv_dtype),
        ),
        notes=_notes(scenario),
        uncertainty=uncertainty(scenario) if intervals else None,
    )


def _classes(
    scenario: Scenario, best: linear.LinearSolution, basic: linear.LinearSolution
) -> tuple[ClassPlan, ...]:
    rates, before, splits = best.class_rates, basic.class_rates, best.class_splits
    return tuple(
        ClassPlan(
            name=traffic.name,
            requests_per_s=float(rates[k]),
            requests_per_s_basic=float(before[k]),
            split=float(splits[k]),
            required_requests_per_s=traffic.rate,
            share=traffic.share,
            read_bytes_per_request=float(means.payloads[Payload.HIT]),
            prefill_flops_per_request=means.prefill_flops,
        )
        for k, (traffic, means) in enumerate(
            zip(scenario.classes, scenario.class_means, strict=True)
        )
    )


def _sessions_per_s(scenario: Scenario, best: linear.LinearSolution) -> float | None:
    if all(c.workload.turns == c.workload.session_count for c in scenario.classes):
        return None
    turns = [c.workload.turns / c.workload.session_count for c in scenario.classes]
    return float(sum(rate / per for rate, per in zip(best.class_rates, turns, strict=True)))


def _flows(scenario: Scenario, solution: linear.LinearSolution) -> tuple[NodeFlow, ...]:
    """Which path reads from storage on which side is the step table's word."""
    table, cached = scenario.serving.table, scenario.serving.dram_cache_hit_share
    hit_bytes = np.array([float(means.payloads[Payload.HIT]) for means in scenario.class_means])
    found = []
    for pool, flows in ((Pool.PREFILL, solution.prefill), (Pool.DECODE, solution.decode)):
        reads = np.array([p.hit_reads(pool) for p in (table.prefill_read, table.decode_read)])
        reads = reads * (1.0 - cached) + table.cache_read.hit_reads(pool) * cached
        for index, (node, flow) in enumerate(zip(scenario.cluster.nodes(pool), flows, strict=True)):
            read = flow @ reads  # of each class, requests/s
            found.append(
                NodeFlow(
                    pool=pool.value,
                    node=index,
                    name=node.name,
                    requests_per_s=float(flow.sum()),
                    storage_reads_per_s=float(read.sum()),
                    storage_read_bytes_per_s=float(read @ hit_bytes),
                )
            )
    return tuple(found)


def _summary(scenario: Scenario, means: RequestMeans) -> WorkloadSummary:
    workloads = [traffic.workload for traffic in scenario.classes]
    hit_bytes = float(means.payloads[Payload.HIT])
    return WorkloadSummary(
        source="; ".join(workload.source for workload in workloads),
        sessions=sum(workload.session_count for workload in workloads),
        requests=sum(workload.turns for workload in workloads),
        hit_rate=means.hit_tokens / means.prompt_tokens,
        mean_prompt_tokens=means.prompt_tokens,
        mean_miss_tokens=means.prompt_tokens - means.hit_tokens,
        mean_output_tokens=means.output_tokens,
        read_bytes_per_request=hit_bytes * (1.0 - scenario.serving.dram_cache_hit_share),
        prefill_flops_per_request=means.prefill_flops,
        cache_compute_bytes_per_flop=hit_bytes / means.prefill_flops
        if means.prefill_flops
        else 0.0,
    )


def _utilisation(
    best: linear.LinearSolution, basic: linear.LinearSolution
) -> tuple[Utilisation, ...]:
    return tuple(
        Utilisation(
            pool=row.key.pool.value,
            node=row.node,
            resource=row.key.resource.value,
            direction=row.key.direction.value,
            capacity=row.capacity,
            basic=before.utilisation,
            dual_path=row.utilisation,
            dual_value=row.dual_value,
            elasticity=row.dual_value * row.capacity / best.throughput,
        )
        for row, before in zip(best.rows, basic.rows, strict=True)
    )


def _bottleneck_free(scenario: Scenario) -> BottleneckFreeRange:
    cluster = scenario.cluster
    ratio = len(cluster.prefill) / len(cluster.decode)
    if scenario.serving.table.no_range is not None:
        return BottleneckFreeRange(None, None, ratio, None, scenario.serving.table.no_range, ())
    if not cluster.homogeneous:
        reason = "the pools are not homogeneous; see the utilisation of each node instead"
        return BottleneckFreeRange(None, None, ratio, None, reason, ())
    if cluster.prefill[0].shares_nic or cluster.decode[0].shares_nic:
        reason = "a pool has no storage NIC of its own, so there is none to saturate"
        return BottleneckFreeRange(None, None, ratio, None, reason, ())
    if not scenario.means.payloads[Payload.HIT]:
        reason = "no hits are read from storage, so nothing saturates its NICs"
        return BottleneckFreeRange(None, None, ratio, None, reason, ())
    found = closed_form.bottleneck_free(
        scenario.serving.table,
        movement_capacity(cluster.prefill[0], Pool.PREFILL, scenario.efficiencies),
        movement_capacity(cluster.decode[0], Pool.DECODE, scenario.efficiencies),
    )
    conditions = tuple(
        Condition(*_words(c.key), c.low or None, c.high if math.isfinite(c.high) else None)
        for c in found.conditions
    )
    try:
        real = real_traffic_range(scenario).traffic
        all_traffic = _finite(real.low), _finite(real.high)
    except InfeasibleError:  # no hits, or storage NICs that are not among the limits
        all_traffic = None, None
    return BottleneckFreeRange(
        _finite(found.low),
        _finite(found.high),
        ratio,
        found.holds(ratio),
        None,
        conditions,
        *all_traffic,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _words(key: Key) -> tuple[str, str, str]:
    return key.pool.value, key.resource.value, key.direction.value


def _notes(scenario: Scenario) -> tuple[str, ...]:
    """Say what was left out for want of a figure, and what the answer rests on."""
    notes = []
    for pool in (Pool.PREFILL, Pool.DECODE):
        nodes = {node.name: node for node in scenario.cluster.nodes(pool)}.values()
        notes += [
            f"{pool} node {node.name} has no DRAM bandwidth in the catalog: DRAM is not a limit here"
            for node in nodes
            if node.dram_bytes_per_s is None
        ]
        notes += [
            f"{pool} node {node.name} has no storage NIC of its own: storage traffic shares its "
            f"compute NICs"
            for node in nodes
            if node.shares_nic
        ]
    for measured in dict.fromkeys(
        node.measured
        for pool in (Pool.PREFILL, Pool.DECODE)
        for node in scenario.cluster.nodes(pool)
    ):
        if measured is None:
            continue
        if measured.llm not in ("", scenario.llm.name):
            notes.append(
                f"profile {measured.profile} has GPU figures of {measured.llm}, not of "
                f"{scenario.llm.name}: measure with --llm to be sure of them"
            )
        notes += [f"profile {measured.profile} {remark}" for remark in measured.remarks]
    notes += _framework_notes(scenario)
    share = scenario.serving.dram_cache_hit_share
    if share:
        notes.append(f"{share:.0%} of the hit bytes come from the prefill nodes' DRAM")
    if Resource.GPU not in scenario.limits:
        notes.append(
            "GPUs do not limit here, so there is no compute limit (Oracle) to compare with"
        )
    return tuple(notes)


def _framework_notes(scenario: Scenario) -> list[str]:
    """Say what to know of a framework's paths; nothing for the paper's."""
    table = scenario.serving.table
    if table.name == PAPER.name:
        return []
    notes = [f"framework {table.name} ({table.software}): {table.remark}"]
    if not table.splits:
        notes.append(f"framework {table.name} reads the same on both paths: no split to choose")
    steps = [step for path in table.paths for step in path.steps]
    for pool in (Pool.PREFILL, Pool.DECODE):
        copies = any(s.mover is Mover.COPY and s.source.pool is pool for s in steps)
        unknown = {n.name for n in scenario.cluster.nodes(pool) if n.host_link_bytes_per_s is None}
        notes += [
            f"{pool} node {name} has no host link in the catalog: copies between host memory and "
            f"GPUs are not a limit here"
            for name in sorted(unknown)
            if copies
        ]
    if any(path.stays for path in table.paths):
        thinking = any(means.hit_byte_seconds for means in scenario.class_means)
        notes.append(
            f"framework {table.name} keeps KV-cache on the decode GPUs between turns: "
            + (
                "for the think time alone, so its pull path is at best as good as this"
                if thinking
                else "this workload has no think time, so keeping it costs nothing here"
            )
        )
        share = _first_turns(scenario)
        if share > 0.001:
            notes.append(
                f"{share:.1%} of the hit tokens are of sessions' first turns, for which nothing was "
                f"kept: framework {table.name} can pull at most the rest"
            )
    return notes


def _first_turns(scenario: Scenario) -> float:
    """Return the share of the hit tokens that belong to first turns; 0 of single requests."""
    first, every = 0.0, 0.0
    for traffic in scenario.classes:
        workload = traffic.workload
        if workload.turns > workload.session_count:
            first += float(workload.hit_tokens[workload.offsets[:-1]].sum())
            every += float(workload.hit_tokens.sum())
    return first / every if every else 0.0
