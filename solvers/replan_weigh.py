"""What each ratio of a cluster's nodes is worth under a rule and a load: see docs/replanning.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from solvers.replan_answer import KindRoles, Option, Rule
from solvers.replan_cost import NodeCost, node_cost, refill_requests
from solvers.replan_ratios import (
    Assignment,
    Capacities,
    Kinds,
    assignments,
    kind_names,
    neighbours_at,
    ratio_name,
)

_BATCHES = 8
"""Of nodes that turn one after another, where the caller leaves it to us."""


@dataclass(frozen=True, slots=True)
class Way:
    """How nodes are turned: requests lost meanwhile, time, least LP capacity, nodes at once."""

    lost_requests: float
    seconds: float
    least_requests_per_s: float
    at_once: int


class Weigh:
    """What each assignment is worth under a rule and a load."""

    def __init__(
        self, mixed: Scenario, kinds: Kinds, capacities: Capacities, rule: Rule, load: float
    ) -> None:
        """Take the cluster with the window's mix, and the load in requests/s that is expected."""
        self.mixed, self.kinds, self.capacities, self.rule = mixed, kinds, capacities, rule
        self.load = load
        self.before = capacities.of(kinds.now)
        self._costs: dict[tuple[int, Pool], NodeCost] = {}
        self._known: dict[Assignment, Option] = {}

    def served(self, capacity: float) -> float:
        """Return the requests/s within the SLO at the forecast load."""
        return min(self.rule.margin * capacity, self.load)

    def costs(self, after: Assignment) -> tuple[NodeCost, ...]:
        """Return what one node of each kind that turns costs."""
        found = []
        for kind, ((p, _), (p2, _)) in enumerate(zip(self.kinds.now, after, strict=True)):
            if p != p2:
                found.append(self._cost(kind, Pool.PREFILL if p2 < p else Pool.DECODE))
        return tuple(found)

    def lost_bytes(self, after: Assignment) -> float:
        """Return the KV-cache that the turned nodes lose, bytes."""
        moved = [abs(p2 - p) for (p, _), (p2, _) in zip(self.kinds.now, after, strict=True)]
        costs = self.costs(after)
        return float(
            sum(n * c.lost_bytes for n, c in zip([n for n in moved if n], costs, strict=True))
        )

    def option(self, after: Assignment) -> Option:
        """Return what a switch to ``after`` takes and is worth."""
        if after not in self._known:
            self._known[after] = self._option(after)
        return self._known[after]

    def _option(self, after: Assignment) -> Option:
        capacity, rule = self.capacities.of(after), self.rule
        turned = sum(abs(p2 - p) for (p, _), (p2, _) in zip(self.kinds.now, after, strict=True))
        served, now = self.served(capacity), self.served(self.before)
        way, refilled = Way(0.0, 0.0, self.before, 0), 0.0

        def gained(way: Way) -> float:
            return (served - now) * max(0.0, rule.horizon_s - way.seconds)

        if turned and capacity > 0:
            # the first of equals: all at once
            way = max(self._ways(after, turned), key=lambda way: gained(way) - way.lost_requests)
            refilled = refill_requests(self.mixed, self.lost_bytes(after))
        gain, cost = gained(way), way.lost_requests + refilled
        return Option(
            name=ratio_name(self.kinds, after),
            prefill_nodes=sum(p for p, _ in after),
            decode_nodes=sum(d for _, d in after),
            kinds=tuple(
                KindRoles(name, p, d)
                for name, (p, d) in zip(kind_names(self.kinds), after, strict=True)
            ),
            turned=turned,
            capacity_requests_per_s=capacity,
            during_requests_per_s=way.least_requests_per_s,
            served_requests_per_s=served,
            switch_s=way.seconds,
            nodes_at_once=way.at_once,
            gain_requests=gain,
            cost_requests=cost,
            net_requests=gain - cost,
        )

    def _ways(self, after: Assignment, turned: int) -> list[Way]:
        """Return each way to turn them, all at once first."""
        if self.rule.at_once is not None:
            sizes = [min(self.rule.at_once, turned)]
        else:
            sizes = sorted({turned, math.ceil(turned / _BATCHES)}, reverse=True)
        return [self._batches(after, size) for size in sizes]

    def _batches(self, after: Assignment, size: int) -> Way:
        now = self.served(self.before)
        states = [
            (meanwhile, max(self._cost(*node).switch_s for node in turning))
            for turning, meanwhile in _steps(self.kinds.now, after, size)
        ]
        self.capacities.ask(meanwhile for meanwhile, _ in states)
        # what is turned already may serve more than before: that is not counted as a gain
        found = [(min(self.before, self.capacities.of(one)), seconds) for one, seconds in states]
        lost = sum(max(0.0, now - self.served(capacity)) * seconds for capacity, seconds in found)
        return Way(lost, sum(s for _, s in found), min(c for c, _ in found), size)

    def _cost(self, kind: int, pool: Pool) -> NodeCost:
        if (kind, pool) not in self._costs:
            node = self.kinds.nodes[kind]
            each = len(self.mixed.cluster.nodes(pool))
            rate = min(self.before, self.load) / each
            constants = self.capacities.constants_in(self.mixed.cluster)
            self._costs[kind, pool] = node_cost(
                self.mixed, pool, node, rate, self.rule.restart_s, self.rule.start_s, constants
            )
        return self._costs[kind, pool]


def _steps(
    now: Assignment, after: Assignment, size: int
) -> list[tuple[list[tuple[int, Pool]], Assignment]]:
    """Return the batches in which nodes turn: those of it as (kind, pool that they leave), and the
    nodes that serve meanwhile.
    """
    moves = [
        (kind, Pool.PREFILL if p2 < p else Pool.DECODE)
        for kind, ((p, _), (p2, _)) in enumerate(zip(now, after, strict=True))
        for _ in range(abs(p2 - p))
    ]
    found = []
    for first in range(0, len(moves), size):
        counts = [list(one) for one in now]
        for number, (kind, pool) in enumerate(moves[: first + size]):
            leaves, joins = (0, 1) if pool is Pool.PREFILL else (1, 0)
            counts[kind][leaves] -= 1
            if number < first:
                counts[kind][joins] += 1
        found.append((moves[first : first + size], tuple((p, d) for p, d in counts)))
    return found


def search(now: Assignment, weigh: Weigh) -> tuple[list[tuple[Assignment, Option]], str]:
    """Return the options looked at, today's among them, and how they were looked for."""
    every = assignments(now)
    if every is not None:
        weigh.capacities.ask(every)
        return [(one, weigh.option(one)) for one in every], "all ratios"
    # Steps of doubling size from the best so far, until none of them is better.
    here, seen = now, {now: weigh.option(now)}
    while True:
        most = max(p + d for p, d in now)
        near = [
            one
            for power in range(most.bit_length())
            for one in neighbours_at(here, 2**power)
            if one not in seen
        ]
        weigh.capacities.ask(near)
        seen.update((one, weigh.option(one)) for one in near)
        best = max(seen, key=lambda one: (seen[one].net_requests, -seen[one].turned))
        if best == here:
            return list(seen.items()), "step by step"
        here = best
