"""Which roles the nodes of a cluster could have, and what the LP gives each of them.

An *assignment* says how many nodes of each kind are prefill nodes and how many are decode nodes:
``((prefill, decode), ...)`` in the order of the kinds. Nodes keep their hardware.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import DualPathError, InfeasibleError, InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.setup import node_name
from solvers.alternatives import Quick, quick_many
from solvers.replan_overheads import slowed
from solvers.simulator.constants import Constants, of_cluster

Assignment = tuple[tuple[int, int], ...]
"""(prefill, decode) nodes of each kind."""

MOST_ASSIGNMENTS = 600
"""Beyond so many, the best is looked for step by step instead of among all."""


@dataclass(frozen=True)
class Kinds:
    """The distinct machines of a cluster, and where each stands in the pools."""

    nodes: tuple[Node, ...]
    prefill: tuple[tuple[int, ...], ...]
    """Positions in the prefill pool, by kind."""
    decode: tuple[tuple[int, ...], ...]

    @property
    def now(self) -> Assignment:
        """The assignment that the cluster has."""
        return tuple((len(p), len(d)) for p, d in zip(self.prefill, self.decode, strict=True))


def kinds_of(cluster: Cluster) -> Kinds:
    """Return the kinds of a cluster, in the order in which they first stand in it."""
    nodes = tuple(dict.fromkeys((*cluster.prefill, *cluster.decode)))

    def places(pool: tuple[Node, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(i for i, one in enumerate(pool) if one == node) for node in nodes)

    return Kinds(nodes, places(cluster.prefill), places(cluster.decode))


@dataclass
class Capacities:
    """The LP's answer for assignments of a scenario's nodes, each asked once.

    The scenario's workload is the mix that is served. ``constants`` and ``token_limit``: what engines
    add to the roofline (:mod:`solvers.replan_overheads`); by default nothing, the LP of
    ``dualpath plan``; None: what the nodes' profiles measured in the roles that they have then.
    """

    scenario: Scenario
    kinds: Kinds
    constants: Constants | None = field(default_factory=Constants)
    token_limit: int = 0
    _known: dict[Assignment, Quick | None] = field(default_factory=dict)

    def ask(self, assignments: Iterable[Assignment]) -> None:
        """Answer many at once, which is cheaper than one by one."""
        new = [one for one in dict.fromkeys(assignments) if one not in self._known]
        fit = [one for one in new if both_pools(one)]
        self._known.update((one, None) for one in new if not both_pools(one))
        asked: list[Scenario] = []
        able: list[Assignment] = []
        for one in fit:
            try:
                asked.append(self.scenario.on(self._as_run(one)))
                able.append(one)
            except InfeasibleError:
                self._known[one] = None
        for assignment, answer in zip(able, quick_many(asked), strict=True):
            if isinstance(answer, DualPathError) and not isinstance(answer, InfeasibleError):
                raise answer
            self._known[assignment] = answer if isinstance(answer, Quick) else None

    def quick(self, assignment: Assignment) -> Quick | None:
        """Return split, throughput and bottleneck; None where the LLM or the SLO does not fit."""
        if assignment not in self._known:
            self.ask([assignment])
        return self._known[assignment]

    def of(self, assignment: Assignment) -> float:
        """Return the LP's requests/s, 0 where nothing can be served."""
        found = self.quick(assignment)
        return 0.0 if found is None else found.throughput

    def _as_run(self, assignment: Assignment) -> Cluster:
        cluster = self.cluster(assignment)
        constants = self.constants_in(cluster)
        return slowed(self.scenario, cluster, constants, self.token_limit)

    def constants_in(self, cluster: Cluster) -> Constants:
        """Return what engines of a cluster add: as given, or by the profiles of its pools."""
        return of_cluster(cluster) if self.constants is None else self.constants

    def cluster(self, assignment: Assignment) -> Cluster:
        """Return the cluster that an assignment makes."""
        pools = [
            tuple(
                node
                for node, counts in zip(self.kinds.nodes, assignment, strict=True)
                for _ in range(counts[pool])
            )
            for pool in (0, 1)
        ]
        return replace(self.scenario.cluster, prefill=pools[0], decode=pools[1])


def ratio_name(kinds: Kinds, assignment: Assignment) -> str:
    """Return "4P4D"; of several kinds also which nodes these are: "1P2D: 1 slow | 2 fast"."""
    ratio = f"{sum(p for p, _ in assignment)}P{sum(d for _, d in assignment)}D"
    if len(kinds.nodes) == 1:
        return ratio
    names = kind_names(kinds)
    pools = [
        ", ".join(
            f"{counts[pool]} {name}"
            for name, counts in zip(names, assignment, strict=True)
            if counts[pool]
        )
        for pool in (0, 1)
    ]
    return f"{ratio}: {pools[0]} | {pools[1]}"


def kind_names(kinds: Kinds) -> list[str]:
    """Return the names of the kinds; of different kinds with one name also which of them it is."""
    names = [node.name for node in kinds.nodes]
    return [
        name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]


def both_pools(assignment: Assignment) -> bool:
    """Return whether each pool has a node."""
    return sum(p for p, _ in assignment) > 0 and sum(d for _, d in assignment) > 0


def neighbours_at(assignment: Assignment, distance: int) -> list[Assignment]:
    """Return what turning ``distance`` nodes of one kind gives, and of two kinds in opposite ways."""

    def moved(by: dict[int, int]) -> Assignment | None:
        found = tuple(
            (p + by.get(kind, 0), d - by.get(kind, 0)) for kind, (p, d) in enumerate(assignment)
        )
        return found if all(min(one) >= 0 for one in found) and both_pools(found) else None

    kinds = range(len(assignment))
    single = [moved({kind: sign * distance}) for kind in kinds for sign in (1, -1)]
    double = [moved({a: distance, b: -distance}) for a in kinds for b in kinds if a != b]
    return [one for one in (*single, *double) if one is not None]


def assignments(now: Assignment) -> list[Assignment] | None:
    """Return every way to give the nodes their roles; None where there are too many to ask each."""
    totals = [p + d for p, d in now]
    if math.prod(total + 1 for total in totals) > MOST_ASSIGNMENTS:
        return None
    every = itertools.product(*(range(total + 1) for total in totals))
    found = [tuple((p, t - p) for p, t in zip(one, totals, strict=True)) for one in every]
    return [one for one in found if both_pools(one)]


@dataclass(frozen=True, slots=True)
class Turned:
    """A node that changes its role. ``name``: as the scheduler calls it before (p0, d3)."""

    name: str
    node: str
    before: str
    after: str
    position: int


def turned_nodes(kinds: Kinds, after: Assignment) -> tuple[Turned, ...]:
    """Return which nodes to turn: of each kind the last ones of the pool that gives."""
    found = []
    for i, ((p, d), (p2, _)) in enumerate(zip(kinds.now, after, strict=True)):
        gives, count = (Pool.PREFILL, p - p2) if p2 < p else (Pool.DECODE, p2 - p)
        places = kinds.prefill[i] if gives is Pool.PREFILL else kinds.decode[i]
        takes = Pool.DECODE if gives is Pool.PREFILL else Pool.PREFILL
        found += [
            Turned(node_name(gives, at), kinds.nodes[i].name, gives.value, takes.value, at)
            for at in places[len(places) - count :]
        ]
        assert p + d == sum(after[i])
    return tuple(found)


def check_cluster(scenario: Scenario) -> None:
    """Raise InputError where no node may change its role."""
    cluster = scenario.cluster
    if len(cluster.prefill) + len(cluster.decode) < 3:
        raise InputError(
            f"the cluster of '{scenario.name}' has {len(cluster.prefill)} prefill and "
            f"{len(cluster.decode)} decode nodes: each pool needs one, so none can be turned; "
            f"re-planning needs at least 3 nodes"
        )
    if scenario.zones is not None:
        raise InputError(
            f"scenario '{scenario.name}' has locality: a node that is turned would need a zone; "
            f"leave locality out to re-plan"
        )
