"""plan(scenario): the whole answer for a capacity planner, from the static models.

The LP gives throughput, flows, utilisation and prices; the closed form answers for neighbouring node
counts where the pools are homogeneous (the LP where they are not).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from dualpath_model import closed_form
from dualpath_model.cluster import Node, movement_capacity
from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import Loads, oracle_throughput
from dualpath_model.parameters import (
    SchedulerParameters,
    read_bytes_per_token,
    scheduler_parameters,
)
from dualpath_model.paths import Key, Payload, Pool, Resource
from dualpath_model.scenario import Scenario
from solvers import linear

PLAN_VERSION = 1


@dataclass(frozen=True, slots=True)
class ResourceName:
    """A capacity by name."""

    pool: str
    resource: str
    direction: str


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

    ``low``, ``high`` and ``holds`` are None where it is not defined; ``reason`` then says why.
    """

    low: float | None
    high: float | None
    ratio: float
    holds: bool | None
    reason: str | None
    conditions: tuple[Condition, ...]


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
class Neighbour:
    """Another pair of node counts; ``reason`` says why where it cannot serve at all."""

    prefill_nodes: int
    decode_nodes: int
    feasible: bool
    split: float
    throughput_requests_per_s: float
    throughput_basic_requests_per_s: float
    speedup_over_basic: float
    requests_per_s_per_node: float
    bottleneck: ResourceName | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What one change to the hardware would give, by solving again (not by extrapolating a dual)."""

    change: str
    throughput_requests_per_s: float
    gain: float
    """Relative gain over this plan: 0.1 is 10 %."""


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
    """Operating point of a decode engine of one node kind."""

    node: str
    batch: float
    step_s: float
    limit: str


@dataclass(frozen=True, slots=True)
class WorkloadSummary:
    """The workload's means per request."""

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
    prefill_nodes: int
    decode_nodes: int
    workload: WorkloadSummary
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
    sessions_per_s: float
    bottleneck_free: BottleneckFreeRange
    payload_bytes: dict[str, float]
    flows: tuple[NodeFlow, ...]
    decode_engines: tuple[DecodeEngine, ...]
    utilisation: tuple[Utilisation, ...]
    upgrades: tuple[Upgrade, ...]
    neighbours: tuple[Neighbour, ...]
    scheduler_parameters: SchedulerParameters
    notes: tuple[str, ...]


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON-ready data."""
    return asdict(plan)


def plan(scenario: Scenario, *, backend: linear.Backend = "auto") -> Plan:
    """Answer everything the static models know about ``scenario``.

    Raises InfeasibleError if the LLM does not fit the GPUs or the TPOT cannot be met.
    """
    loads = scenario.loads()
    best = linear.solve(loads, backend=backend)
    basic = linear.solve(loads, decode_reads=False, backend=backend)
    oracle = oracle_throughput(loads)
    flows = _flows(scenario, best)
    reads = {
        pool: [flow.storage_reads_per_s for flow in flows if flow.pool == pool.value]
        for pool in (Pool.PREFILL, Pool.DECODE)
    }
    hit_tokens = float(scenario.workload.hit_tokens.mean())
    means, workload = scenario.means, scenario.workload
    return Plan(
        version=PLAN_VERSION,
        scenario=scenario.name,
        llm=scenario.llm.name,
        kv_dtype=scenario.serving.kv_dtype.value,
        prefill_nodes=len(scenario.cluster.prefill),
        decode_nodes=len(scenario.cluster.decode),
        workload=_summary(scenario),
        bottleneck=_name(_bottleneck(best)),
        bottleneck_basic=_name(_bottleneck(basic)),
        binding=tuple(map(_name, dict.fromkeys(row.key for row in best.binding))),
        split=best.split,
        throughput_requests_per_s=best.throughput,
        throughput_basic_requests_per_s=basic.throughput,
        throughput_oracle_requests_per_s=oracle if math.isfinite(oracle) else None,
        speedup_over_basic=best.throughput / basic.throughput,
        fraction_of_oracle=best.throughput / oracle if math.isfinite(oracle) else None,
        sessions_per_s=best.throughput * workload.session_count / workload.turns,
        bottleneck_free=_bottleneck_free(scenario),
        payload_bytes={str(p.value): float(amount) for p, amount in means.payloads.items()},
        flows=flows,
        decode_engines=tuple(
            DecodeEngine(group.node.name, point.batch, point.step_s, point.limit)
            for group in loads.decode
            if (point := group.decode_point) is not None
        ),
        utilisation=_utilisation(best, basic),
        upgrades=_upgrades(scenario, best.throughput),
        neighbours=_neighbours(scenario),
        scheduler_parameters=scheduler_parameters(
            scenario.cluster,
            scenario.llm,
            means,
            scenario.efficiencies,
            scenario.rules,
            split=best.split,
            read_rates=reads,
            token_bytes=read_bytes_per_token(
                scenario.llm, means, scenario.serving.kv_dtype, hit_tokens
            ),
        ),
        notes=_notes(scenario),
    )


def _name(key: Key) -> ResourceName:
    return ResourceName(key.pool.value, key.resource.value, key.direction.value)


def _bottleneck(solution: linear.LinearSolution) -> Key:
    """Return the capacity of which more would help most; where none is priced, the fullest."""
    worth: dict[Key, float] = {}
    for row in solution.rows:
        worth[row.key] = worth.get(row.key, 0.0) + row.dual_value * row.capacity
    best = max(worth, key=lambda key: worth[key])
    if worth[best] > 1e-6 * solution.throughput:
        return best
    return max(solution.rows, key=lambda row: row.utilisation).key


def _flows(scenario: Scenario, solution: linear.LinearSolution) -> tuple[NodeFlow, ...]:
    """Storage reads happen on the prefill node on one path, on the decode node on the other."""
    from_storage = 1.0 - scenario.serving.dram_cache_hit_share
    hit_bytes = float(scenario.means.payloads[Payload.HIT])
    return tuple(
        NodeFlow(
            pool=pool.value,
            node=index,
            name=node.name,
            requests_per_s=flow[0] + flow[1],
            storage_reads_per_s=flow[path] * from_storage,
            storage_read_bytes_per_s=flow[path] * from_storage * hit_bytes,
        )
        for pool, path, node_flows in (
            (Pool.PREFILL, 0, solution.prefill_flows),
            (Pool.DECODE, 1, solution.decode_flows),
        )
        for index, (node, flow) in enumerate(
            zip(scenario.cluster.nodes(pool), node_flows, strict=True)
        )
    )


def _summary(scenario: Scenario) -> WorkloadSummary:
    workload, means = scenario.workload, scenario.means
    hit_bytes = float(means.payloads[Payload.HIT])
    return WorkloadSummary(
        source=workload.source,
        sessions=workload.session_count,
        requests=workload.turns,
        hit_rate=workload.hit_rate,
        mean_prompt_tokens=workload.mean_prompt_tokens,
        mean_miss_tokens=float(workload.miss_tokens.mean()),
        mean_output_tokens=workload.mean_output_tokens,
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
    if not cluster.homogeneous:
        reason = "the pools are not homogeneous; see the utilisation of each node instead"
        return BottleneckFreeRange(None, None, ratio, None, reason, ())
    if cluster.prefill[0].shares_nic or cluster.decode[0].shares_nic:
        reason = "a pool has no storage NIC of its own, so there is none to saturate"
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
    low, high = found.low, found.high if math.isfinite(found.high) else None
    return BottleneckFreeRange(low, high, ratio, found.holds(ratio), None, conditions)


def _words(key: Key) -> tuple[str, str, str]:
    return key.pool.value, key.resource.value, key.direction.value


# ---- other clusters ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Quick:
    """Throughput with and without decode reads, without prices."""

    split: float
    throughput: float
    basic: float
    bottleneck: Key


def _quick(loads: Loads) -> _Quick:
    """Solve by the closed form where it applies, else by the LP."""
    if loads.homogeneous:
        bound = closed_form.solve(*closed_form.of_loads(loads))
        first = bound.keys[int(bound.bottleneck)]
        return _Quick(
            float(bound.split), float(bound.throughput), float(bound.throughput_basic), first
        )
    best, basic = linear.solve(loads), linear.solve(loads, decode_reads=False)
    return _Quick(best.split, best.throughput, basic.throughput, _bottleneck(best))


def _neighbour_counts(prefill: int, decode: int) -> Iterable[tuple[int, int]]:
    """The same number of nodes divided otherwise (up to three steps), and one node more or less."""
    shifts = [(prefill + step, decode - step) for step in range(-3, 4)]
    singles = [
        (prefill - 1, decode),
        (prefill + 1, decode),
        (prefill, decode - 1),
        (prefill, decode + 1),
    ]
    counts = {(p, d) for p, d in [*shifts, *singles] if p >= 1 and d >= 1}
    return sorted(counts, key=lambda pair: (pair[0] + pair[1], pair[0]))


def _neighbours(scenario: Scenario) -> tuple[Neighbour, ...]:
    counts = _neighbour_counts(len(scenario.cluster.prefill), len(scenario.cluster.decode))
    found = []
    for prefill, decode in counts:
        try:
            quick = _quick(scenario.with_nodes(prefill, decode).loads())
        except InfeasibleError as error:
            found.append(
                Neighbour(prefill, decode, False, 0.0, 0.0, 0.0, 0.0, 0.0, None, str(error))
            )
            continue
        found.append(
            Neighbour(
                prefill_nodes=prefill,
                decode_nodes=decode,
                feasible=True,
                split=quick.split,
                throughput_requests_per_s=quick.throughput,
                throughput_basic_requests_per_s=quick.basic,
                speedup_over_basic=quick.throughput / quick.basic,
                requests_per_s_per_node=quick.throughput / (prefill + decode),
                bottleneck=_name(quick.bottleneck),
                reason=None,
            )
        )
    return tuple(found)


def _upgrades(scenario: Scenario, throughput: float) -> tuple[Upgrade, ...]:
    """One more unit of each resource: a NIC on each node, memory bandwidth, a node."""

    def scaled(pool: Pool, change: Callable[[Node], Node]) -> Scenario:
        return scenario.with_each_node(pool, change)

    options: list[tuple[str, Scenario]] = []
    for pool in (Pool.PREFILL, Pool.DECODE):
        nodes = scenario.cluster.nodes(pool)
        if not any(node.shares_nic for node in nodes):
            options.append((f"one more storage NIC on each {pool} node", scaled(pool, _add_snic)))
        options.append((f"one more compute NIC on each {pool} node", scaled(pool, _add_cnic)))
        if all(node.dram_bytes_per_s for node in nodes):
            options.append(
                (f"10 % more DRAM bandwidth on each {pool} node", scaled(pool, _faster_dram))
            )
    options.append(("10 % more FLOP/s on each prefill node", scaled(Pool.PREFILL, _faster_gpu)))
    options.append(
        ("10 % more HBM bandwidth on each decode node", scaled(Pool.DECODE, _faster_hbm))
    )
    prefill, decode = len(scenario.cluster.prefill), len(scenario.cluster.decode)
    options.append(("one more prefill node", scenario.with_nodes(prefill + 1, decode)))
    options.append(("one more decode node", scenario.with_nodes(prefill, decode + 1)))
    found = []
    for change, changed in options:
        rate = _quick(changed.loads()).throughput
        gain = rate / throughput - 1.0
        found.append(Upgrade(change, rate, gain if abs(gain) > 1e-9 else 0.0))
    return tuple(sorted(found, key=lambda upgrade: -upgrade.gain))


def _add_snic(node: Node) -> Node:
    return replace(node, snics=node.snics + 1)


def _add_cnic(node: Node) -> Node:
    return replace(node, cnics=node.cnics + 1)


def _faster_dram(node: Node) -> Node:
    return replace(node, dram_bytes_per_s=1.1 * (node.dram_bytes_per_s or 0.0))


def _faster_gpu(node: Node) -> Node:
    gpu = node.gpu
    fp8 = None if gpu.fp8_flop_per_s is None else 1.1 * gpu.fp8_flop_per_s
    faster = replace(gpu, bf16_flop_per_s=1.1 * gpu.bf16_flop_per_s, fp8_flop_per_s=fp8)
    return replace(node, gpu=faster)


def _faster_hbm(node: Node) -> Node:
    return replace(node, gpu=replace(node.gpu, hbm_bytes_per_s=1.1 * node.gpu.hbm_bytes_per_s))


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
    share = scenario.serving.dram_cache_hit_share
    if share:
        notes.append(f"{share:.0%} of the hit bytes come from the prefill nodes' DRAM")
    if Resource.GPU not in scenario.limits:
        notes.append(
            "GPUs do not limit here, so there is no compute limit (Oracle) to compare with"
        )
    return tuple(notes)
