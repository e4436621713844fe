"""What other clusters would give: neighbouring node counts, and one more unit of each resource.

The closed form answers where pools are homogeneous and there is one kind of traffic, else the LP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model import closed_form
from dualpath_model import loads as model_loads
from dualpath_model.cluster import Node
from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import Loads
from dualpath_model.paths import Key, Pool, Resource
from dualpath_model.scenario import Scenario
from solvers import linear
from solvers.problem import Problem, TrafficClass, from_classes


@dataclass(frozen=True, slots=True)
class ResourceName:
    """A capacity by name."""

    pool: str
    resource: str
    direction: str


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


def name_of(key: Key) -> ResourceName:
    """Return a capacity's name in words."""
    return ResourceName(key.pool.value, key.resource.value, key.direction.value)


def bottleneck(solution: linear.LinearSolution) -> Key:
    """Return the capacity of which more would help most; where none is priced, the fullest."""
    worth: dict[Key, float] = {}
    for row in solution.rows:
        worth[row.key] = worth.get(row.key, 0.0) + row.dual_value * row.capacity
    best = max(worth, key=lambda key: worth[key])
    if worth[best] > 1e-6 * solution.throughput:
        return best
    return max(solution.rows, key=lambda row: row.utilisation).key


def problem_of(scenario: Scenario, loads: Sequence[Loads]) -> Problem:
    """Return the LP's problem for a scenario's classes and their loads."""
    classes = [
        TrafficClass(traffic.name, load, traffic.share, traffic.rate)
        for traffic, load in zip(scenario.classes, loads, strict=True)
    ]
    return from_classes(classes, scenario.zones)


def oracle_throughput(scenario: Scenario, loads: Sequence[Loads]) -> float | None:
    """Return requests/s if moving KV-cache cost nothing; None where then nothing limits."""
    if len(loads) == 1:
        rate = model_loads.oracle_throughput(loads[0])
        return rate if np.isfinite(rate) else None
    if not scenario.limits & {Resource.GPU, Resource.HBM, Resource.HBM_SPACE}:
        return None
    bare = [model_loads.compute_only(load) for load in loads]
    return linear.CapacityProgram(problem_of(scenario, bare), "matrix").solve().throughput


@dataclass(frozen=True, slots=True)
class _Quick:
    """Throughput with and without decode reads, without prices."""

    split: float
    throughput: float
    basic: float
    bottleneck: Key


def _quick(scenario: Scenario) -> _Quick:
    """Solve by the closed form where it applies, else by the LP."""
    loads = scenario.class_loads()
    if len(loads) == 1 and loads[0].homogeneous and scenario.zones is None:
        bound = closed_form.solve(*closed_form.of_loads(loads[0]))
        first = bound.keys[int(bound.bottleneck)]
        return _Quick(
            float(bound.split), float(bound.throughput), float(bound.throughput_basic), first
        )
    problem, local = problem_of(scenario, loads), scenario.zones is not None
    best = linear.CapacityProgram(problem, locality=local).solve()
    basic = linear.CapacityProgram(problem, decode_reads=False, locality=local).solve()
    return _Quick(best.split, best.throughput, basic.throughput, bottleneck(best))


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


def neighbours(scenario: Scenario) -> tuple[Neighbour, ...]:
    """Return what neighbouring node counts would give; counts that cannot serve say why."""
    counts = _neighbour_counts(len(scenario.cluster.prefill), len(scenario.cluster.decode))
    found = []
    for prefill, decode in counts:
        try:
            quick = _quick(scenario.with_nodes(prefill, decode))
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
                bottleneck=name_of(quick.bottleneck),
                reason=None,
            )
        )
    return tuple(found)


def upgrades(scenario: Scenario, throughput: float) -> tuple[Upgrade, ...]:
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
        rate = _quick(changed).throughput
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
