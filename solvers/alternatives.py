"""What other clusters would give: neighbouring node counts, and one more unit of each resource.

The closed form answers where pools are homogeneous and there is one kind of traffic, else the LP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model import closed_form
from dualpath_model import loads as model_loads
from dualpath_model.cluster import Node
from dualpath_model.errors import DualPathError, InfeasibleError
from dualpath_model.loads import Demand, Loads
from dualpath_model.paths import Key, Payload, Pool, Resource
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
    most = max(worth.values())
    if most > 1e-6 * solution.throughput:
        # Of equals, which a symmetric cluster has, the first in reading order.
        least = (1.0 - closed_form.EQUAL_WORTH) * most
        equals = [key for key, value in worth.items() if value >= least]
        return min(equals, key=closed_form.reading_order)
    return max(solution.rows, key=lambda row: row.utilisation).key


def read_split(scenario: Scenario, solution: linear.LinearSolution) -> float:
    """Return the fraction of the bytes read from storage that decode nodes read, of all classes."""
    read = solution.class_rates * [float(m.payloads[Payload.HIT]) for m in scenario.class_means]
    total = float(read.sum())
    return float(read @ solution.class_splits) / total if total else 0.0


def problem_of(scenario: Scenario, loads: Sequence[Loads]) -> Problem:
    """Return the LP's problem for a scenario's classes and their loads."""
    classes = [
        TrafficClass(traffic.name, load, traffic.share, traffic.rate)
        for traffic, load in zip(scenario.classes, loads, strict=True)
    ]
    return from_classes(classes, scenario.zones)


def oracle_throughput(scenario: Scenario, loads: Sequence[Loads]) -> float | None:
    """Return requests/s if moving KV-cache cost nothing; None where then nothing limits."""
    if len(loads) == 1 and not model_loads.compute_depends_on_split(loads[0]):
        rate = model_loads.oracle_throughput(loads[0])
        return rate if np.isfinite(rate) else None
    if not scenario.limits & {Resource.GPU, Resource.HBM, Resource.HBM_SPACE}:
        return None
    bare = [model_loads.compute_only(load) for load in loads]
    return linear.CapacityProgram(problem_of(scenario, bare), "matrix").solve().throughput


@dataclass(frozen=True, slots=True)
class Quick:
    """Throughput with and without decode reads, without prices."""

    split: float
    throughput: float
    basic: float
    bottleneck: Key


def quick(scenario: Scenario) -> Quick:
    """Solve by the closed form where it applies, else by the LP."""
    (found,) = quick_many([scenario])
    if isinstance(found, Quick):
        return found
    raise found


def quick_many(scenarios: Iterable[Scenario]) -> list[Quick | DualPathError]:
    """Solve many at once; of a scenario without an answer, the error that says why.

    Closed forms of the same capacities are one solution over arrays: most of what one of them takes is
    the same for a hundred.
    """
    found: list[Quick | DualPathError | None] = []
    alike: dict[tuple[Key, ...], list[tuple[int, Demand, dict[Key, float]]]] = {}
    for number, scenario in enumerate(scenarios):
        found.append(None)
        try:
            loads = scenario.class_loads()
            if len(loads) > 1 or not loads[0].homogeneous or scenario.zones is not None:
                found[-1] = _by_program(scenario, loads)
                continue
        except DualPathError as error:
            found[-1] = error
            continue
        demand, capacity = closed_form.of_loads(loads[0])
        asked = tuple(key for key in capacity if key in demand.base)
        alike.setdefault(asked, []).append((number, demand, capacity))
    for keys, group in alike.items():
        for (number, *_), one in zip(group, _by_closed_form(keys, group), strict=True):
            found[number] = one
    return [one for one in found if one is not None]


def _by_closed_form(
    keys: tuple[Key, ...], group: Sequence[tuple[int, Demand, dict[Key, float]]]
) -> Iterator[Quick]:
    demand = Demand(
        {key: np.array([d.base[key] for _, d, _ in group]) for key in keys},
        {key: np.array([d.slope.get(key, 0.0) for _, d, _ in group]) for key in keys},
    )
    bound = closed_form.solve(demand, {k: np.array([c[k] for *_, c in group]) for k in keys})
    for i in range(len(group)):
        first = bound.keys[int(bound.bottleneck[i])]
        split, most, basic = (
            float(part[i]) for part in (bound.split, bound.throughput, bound.throughput_basic)
        )
        yield Quick(split, most, basic, first)


def _by_program(scenario: Scenario, loads: Sequence[Loads]) -> Quick:
    problem, local = problem_of(scenario, loads), scenario.zones is not None
    reads = scenario.serving.table.splits
    best = linear.CapacityProgram(problem, decode_reads=reads, locality=local).solve()
    basic = linear.CapacityProgram(problem, decode_reads=False, locality=local).solve()
    return Quick(read_split(scenario, best), best.throughput, basic.throughput, bottleneck(best))


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
    counts = list(_neighbour_counts(len(scenario.cluster.prefill), len(scenario.cluster.decode)))
    answers = quick_many(scenario.with_nodes(prefill, decode) for prefill, decode in counts)
    found = []
    for (prefill, decode), bound in zip(counts, answers, strict=True):
        if isinstance(bound, InfeasibleError):
            found.append(
                Neighbour(prefill, decode, False, 0.0, 0.0, 0.0, 0.0, 0.0, None, str(bound))
            )
            continue
        if not isinstance(bound, Quick):
            raise bound
        found.append(
            Neighbour(
                prefill_nodes=prefill,
                decode_nodes=decode,
                feasible=True,
                split=bound.split,
                throughput_requests_per_s=bound.throughput,
                throughput_basic_requests_per_s=bound.basic,
                speedup_over_basic=bound.throughput / bound.basic,
                requests_per_s_per_node=bound.throughput / (prefill + decode),
                bottleneck=name_of(bound.bottleneck),
                reason=None,
            )
        )
    return tuple(found)


def upgrades(scenario: Scenario, throughput: float) -> tuple[Upgrade, ...]:
    """Return what one more unit of each resource gives that can run out here, best first.

    NICs and nodes come one at a time, rates and sizes by 10 %.
    """
    options = list(_options(scenario))
    found = []
    for (change, _), bound in zip(options, quick_many(o for _, o in options), strict=True):
        if not isinstance(bound, Quick):
            raise bound
        gain = bound.throughput / throughput - 1.0
        found.append(Upgrade(change, bound.throughput, gain if abs(gain) > 1e-9 else 0.0))
    return tuple(sorted(found, key=lambda upgrade: -upgrade.gain))


def _options(scenario: Scenario) -> Iterable[tuple[str, Scenario]]:
    loads = scenario.loads()
    for pool in (Pool.PREFILL, Pool.DECODE):
        there = {key.resource for group in loads.groups(pool) for key in group.capacity}
        for resource, (what, change) in _NODE_CHANGES.items():
            if resource in there:
                yield f"{what} on each {pool} node", scenario.with_each_node(pool, change)
    cluster = scenario.cluster
    for field, what in _SHARED_CHANGES.items():
        rate = getattr(cluster, field)
        if rate is not None and any(key in loads.shared_capacity for key in cluster.capacity()):
            more = {field: 1.1 * rate}
            yield f"10 % more {what}", scenario.on(replace(cluster, **more))
    prefill, decode = len(cluster.prefill), len(cluster.decode)
    yield "one more prefill node", scenario.with_nodes(prefill + 1, decode)
    yield "one more decode node", scenario.with_nodes(prefill, decode + 1)


def _add_snic(node: Node) -> Node:
    return replace(node, snics=node.snics + 1) if node.snics else node


def _add_cnic(node: Node) -> Node:
    return replace(node, cnics=node.cnics + 1)


def _faster_dram(node: Node) -> Node:
    rate = node.dram_bytes_per_s
    return replace(node, dram_bytes_per_s=None if rate is None else 1.1 * rate)


def _faster_link(node: Node) -> Node:
    rate = node.host_link_bytes_per_s
    return replace(node, host_link_bytes_per_s=None if rate is None else 1.1 * rate)


def _faster_gpu(node: Node) -> Node:
    gpu = node.gpu
    fp8 = None if gpu.fp8_flop_per_s is None else 1.1 * gpu.fp8_flop_per_s
    faster = replace(gpu, bf16_flop_per_s=1.1 * gpu.bf16_flop_per_s, fp8_flop_per_s=fp8)
    return replace(node, gpu=faster)


def _faster_hbm(node: Node) -> Node:
    return replace(node, gpu=replace(node.gpu, hbm_bytes_per_s=1.1 * node.gpu.hbm_bytes_per_s))


def _larger_hbm(node: Node) -> Node:
    return replace(node, gpu=replace(node.gpu, hbm_bytes=1.1 * node.gpu.hbm_bytes))


_NODE_CHANGES: dict[Resource, tuple[str, Callable[[Node], Node]]] = {
    Resource.SNIC: ("one more storage NIC", _add_snic),
    Resource.CNIC: ("one more compute NIC", _add_cnic),
    Resource.DRAM: ("10 % more DRAM bandwidth", _faster_dram),
    Resource.HOST_LINK: ("10 % more host link", _faster_link),
    Resource.GPU: ("10 % more FLOP/s", _faster_gpu),
    Resource.HBM: ("10 % more HBM bandwidth", _faster_hbm),
    Resource.HBM_SPACE: ("10 % more HBM", _larger_hbm),
}
_SHARED_CHANGES = {
    "storage_read_bytes_per_s": "read rate of the storage service",
    "storage_write_bytes_per_s": "write rate of the storage service",
    "fabric_bytes_per_s": "fabric between the pools",
}
