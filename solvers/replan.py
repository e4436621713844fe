"""Whether to turn prefill nodes into decode nodes or back, given what was served of late.

:func:`decide` looks at a window of recent turns and the cluster as it is, asks the LP for every ratio
that the nodes could have, and says *keep*, *retune* (the scheduler's parameters alone) or *change*. The
rule, with its formulas, is in docs/replanning.md:

- served(C) = min(margin C, growth offered): of the LP's C requests/s a share is within the SLO, and
  nobody is served twice;
- gain = (served(after) - served(before)) x (horizon - duration of the switch);
- cost = sum over the batches of nodes that turn (served(before) - served(meanwhile)) x its seconds,
  and the requests' worth of reads that refilling lost KV-cache takes;
- change only where gain > cost, after / before > 1 + least gain (on the whole window, and on each of
  several parts of it, so that no handful of huge turns decides), the last change is long enough ago and
  the window has turns enough to trust its means. Of the ratios, the one with the largest gain - cost.

A constant load never flaps: after a change the ratio it came from has less capacity, so the quotient
is below 1. :mod:`solvers.replan_day` drives the same function over a recorded day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.parameters import SchedulerParameters
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.scheduler.setup import scheduler_settings
from dualpath_model.workload import Workload
from solvers import planner
from solvers.alternatives import ResourceName, name_of
from solvers.replan_cost import NodeCost, node_cost, refill_requests
from solvers.replan_cost import words as cost_words
from solvers.replan_ratios import (
    Assignment,
    Capacities,
    Kinds,
    Turned,
    assignments,
    check_cluster,
    kinds_of,
    neighbours_at,
    turned_nodes,
)
from solvers.simulator.constants import Constants, of_scenario

DECISION_VERSION = 1
Action = Literal["keep", "retune", "change"]
ACTIONS: tuple[Action, ...] = get_args(Action)
_BATCHES = 8  # of nodes that turn one after another, where the caller leaves it to us
_RETUNE = 0.1  # relative change of alpha, beta or (absolute) of the split that is worth a word
_SAME = 1e-9
TOKEN_LIMIT = 8192
"""Of solvers.simulator.model.Switches, which is slow to import."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When to change. Times in seconds.

    ``horizon_s``: how long the next load is taken to be like the window's. ``min_gain``: least
    relative gain of LP capacity. ``dwell_s``: least time between two changes. ``margin``: share of the
    LP's rate that is within the SLO. ``growth``: the next load over the window's. ``restart_s``: from a
    node's last request to its first in the new role; None: ``start_s`` and the load of the weights.
    ``at_once``: nodes that turn together; None: all, or in up to eight batches where that loses less.
    ``min_turns``: with fewer turns the window's means are not trusted. ``parts``: the gain has to show
    in each of so many parts of the window: of three, the turns 1, 4, 7, ..., then 2, 5, 8, ..., then
    3, 6, 9, ...
    """

    horizon_s: float = 3600.0
    min_gain: float = 0.1
    dwell_s: float = 1800.0
    margin: float = 0.4
    growth: float = 1.0
    restart_s: float | None = None
    start_s: float = 30.0
    at_once: int | None = None
    min_turns: int = 100
    parts: int = 3

    def __post_init__(self) -> None:
        """Refuse numbers that no rule can have."""
        for name, value, least in (
            ("horizon", self.horizon_s, 1.0),
            ("min gain", self.min_gain, 0.0),
            ("dwell", self.dwell_s, 0.0),
            ("growth", self.growth, 1e-3),
            ("switch time", 0.0 if self.restart_s is None else self.restart_s, 0.0),
            ("start time", self.start_s, 0.0),
        ):
            if not (math.isfinite(value) and value >= least):
                raise InputError(f"{name} is {value:g}; it must be a finite number from {least:g}")
        if not 0.0 < self.margin <= 1.0:
            raise InputError(f"margin is {self.margin:g}; it must be above 0 and at most 1")
        if self.at_once is not None and self.at_once < 1:
            raise InputError(f"at once is {self.at_once}; at least one node turns at a time")
        if self.min_turns < 1:
            raise InputError(f"min turns is {self.min_turns}; at least 1 is needed")
        if not 1 <= self.parts <= 100:
            raise InputError(f"parts is {self.parts}; it must be 1 to 100")


@dataclass(frozen=True, slots=True)
class Capacity:
    """The LP's requests/s before, after and in the least step of the switch."""

    before: float
    during: float
    after: float


@dataclass(frozen=True, slots=True)
class Option:
    """One ratio: its capacity, what the switch to it takes and what it is worth, in requests.

    ``net_requests``: gain - cost over the horizon. ``nodes_at_once``: how many turn together.
    """

    prefill_nodes: int
    decode_nodes: int
    turned: int
    capacity_requests_per_s: float
    during_requests_per_s: float
    served_requests_per_s: float
    switch_s: float
    nodes_at_once: int
    gain_requests: float
    cost_requests: float
    net_requests: float


@dataclass(frozen=True, slots=True)
class KindCounts:
    """How many nodes of a kind have each role, before and after."""

    node: str
    prefill_before: int
    decode_before: int
    prefill_after: int
    decode_after: int


@dataclass(frozen=True, slots=True)
class Gain:
    """What a change is expected to bring over the horizon.

    ``requests_per_s``: more of them within the SLO at the forecast load; ``capacity_ratio``: LP after
    over before; ``node_hours``: of nodes like today's, which would serve as many requests more.
    """

    requests_per_s: float
    capacity_ratio: float
    gain_requests: float
    cost_requests: float
    net_requests: float
    node_hours: float


@dataclass(frozen=True, slots=True)
class Latency:
    """What bears on TTFT. ``load_before``, ``load_after``: forecast load over the LP's capacity, the
    share that queues follow. ``ttft_floor_mean_s`` and ``_p90_s``: reading the hits over one storage NIC
    and computing the misses on one engine, without any queue; no ratio changes it.
    """

    load_before: float
    load_after: float
    ttft_floor_mean_s: float
    ttft_floor_p90_s: float
    slo_ttft_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """The turns that the decision rests on: means per turn, and the load that is expected next."""

    source: str
    sessions: int
    turns: int
    mean_hit_tokens: float
    mean_miss_tokens: float
    mean_output_tokens: float
    offered_requests_per_s: float
    forecast_requests_per_s: float
    waiting_requests: float
    behind: bool
    """More wait than come within the SLO's TTFT: the load is taken as without limit."""


@dataclass(frozen=True)
class Decision:
    """The answer. Rates in requests/s of the window's mix; ``reasons`` are sentences."""

    version: int
    scenario: str
    action: Action
    prefill_nodes_before: int
    decode_nodes_before: int
    prefill_nodes_after: int
    decode_nodes_after: int
    kinds: tuple[KindCounts, ...]
    turned: tuple[Turned, ...]
    capacity_requests_per_s: Capacity
    headroom_before: float | None
    """Capacity over the forecast load; None where no load is offered."""
    headroom_after: float | None
    bottleneck_before: ResourceName
    bottleneck_after: ResourceName
    gain: Gain
    switch_s: float
    nodes_at_once: int
    node_costs: tuple[NodeCost, ...]
    lost_bytes: float
    latency: Latency
    window: Window
    best: Option
    """The ratio with the largest gain - cost, be it taken or not."""
    options: tuple[Option, ...]
    searched: str
    """"all ratios", or "step by step" where the kinds are many."""
    parameters_before: SchedulerParameters | None
    """For the scenario's own workload, as deployed."""
    parameters_after: SchedulerParameters | None
    """For the window's mix on the nodes as they will be."""
    reasons: tuple[str, ...]


def to_json(decision: Decision) -> dict[str, Any]:
    """Return the decision as JSON-ready data."""
    return asdict(decision)


def sessions_rate(window: Workload) -> float:
    """Return sessions/s of a window that has times: those after the first, over the time they took.

    Raises InputError where it has none.
    """
    span = float(np.ptp(window.start_s))
    if window.session_count < 2 or span <= 0:
        raise InputError(
            f"{window.source}: its sessions have no times of arrival, so their rate is not known; "
            f"give --rate in sessions/s"
        )
    return (window.session_count - 1) / span


def with_mix(scenario: Scenario, window: Workload) -> Scenario:
    """Return the scenario with the window as its only traffic."""
    return replace(scenario, classes=(WorkloadClass("window", window, share=1.0),))


def decide(
    scenario: Scenario,
    window: Workload,
    requests_per_s: float,
    rule: Rule | None = None,
    *,
    waiting: float = 0.0,
    since_change_s: float = math.inf,
    parameters: bool = True,
    constants: Constants | None = None,
    token_limit: int = TOKEN_LIMIT,
) -> Decision:
    """Say whether to change roles: ``scenario`` is the cluster as it is, ``window`` what came of late.

    ``requests_per_s``: turns/s that were offered. ``waiting``: turns that waited for an engine at the
    window's end; where more wait than come within the SLO's TTFT, the cluster is behind, and since a
    session sends its next turn only after the last one, what was offered is what was served: the load is
    then taken as without limit. ``since_change_s``: seconds since the last change.
    Without ``parameters`` those of the scheduler are left out, which takes most of the time.
    ``constants``: what an engine adds to the roofline, None as in the simulator (measured by profiles
    or fitted), ``Constants()`` nothing: capacities are then those of ``dualpath plan``.
    ``token_limit``: most tokens of a forward batch.

    Raises InputError for a cluster whose nodes cannot change and for a bad rate, InfeasibleError if no
    ratio can serve the window's mix.
    """
    rule = rule or Rule()
    check_cluster(scenario)
    if not (math.isfinite(requests_per_s) and requests_per_s >= 0):
        raise InputError(f"rate is {requests_per_s} requests/s; it must be finite and not negative")
    mixed = with_mix(scenario, window)
    kinds = kinds_of(scenario.cluster)
    if constants is None:
        constants = of_scenario(scenario)
    capacities = Capacities(mixed, kinds, constants, token_limit)
    if not (math.isfinite(waiting) and waiting >= 0):
        raise InputError(f"waiting is {waiting} turns; it must be finite and not negative")
    behind = waiting > requests_per_s * scenario.slo.ttft_s
    forecast = math.inf if behind else requests_per_s * rule.growth
    weigh = _Weigh(mixed, kinds, capacities, rule, forecast)
    options, searched = _search(kinds.now, weigh)
    best = max(options, key=lambda one: (one[1].net_requests, -one[1].turned))
    refused = _refusals(weigh, best[1], window, since_change_s, rule)
    if best[1].turned and not refused and rule.parts > 1:
        refused = _doubts(capacities, window, kinds.now, best[0], rule)
    chosen = kinds.now if refused else best[0]
    if not refused and chosen == kinds.now:
        refused = _content(weigh)
    here = weigh.option(chosen)
    retuned: list[str] = []
    before = after = None
    if parameters:
        before, after, retuned = _parameters(scenario, mixed, capacities, chosen)
    action: Action = "change" if chosen != kinds.now else "retune" if retuned else "keep"
    costs = weigh.costs(chosen)
    quick, then = capacities.quick(kinds.now), capacities.quick(chosen)
    # a cluster that serves nothing today has no bottleneck of its own: that of what it becomes
    now_quick = quick or then
    if now_quick is None or then is None:
        raise InfeasibleError(
            f"'{scenario.name}' as it is cannot serve this window's mix, and {'; '.join(refused)}"
        )
    load = requests_per_s * rule.growth
    return Decision(
        version=DECISION_VERSION,
        scenario=scenario.name,
        action=action,
        prefill_nodes_before=len(scenario.cluster.prefill),
        decode_nodes_before=len(scenario.cluster.decode),
        prefill_nodes_after=here.prefill_nodes,
        decode_nodes_after=here.decode_nodes,
        kinds=tuple(
            KindCounts(node.name, p, d, p2, d2)
            for node, (p, d), (p2, d2) in zip(kinds.nodes, kinds.now, chosen, strict=True)
        ),
        turned=turned_nodes(kinds, chosen),
        capacity_requests_per_s=Capacity(
            weigh.before, here.during_requests_per_s, here.capacity_requests_per_s
        ),
        headroom_before=weigh.before / load if load else None,
        headroom_after=here.capacity_requests_per_s / load if load else None,
        bottleneck_before=name_of(now_quick.bottleneck),
        bottleneck_after=name_of(then.bottleneck),
        gain=_gain(weigh, here, rule),
        switch_s=here.switch_s,
        nodes_at_once=here.nodes_at_once,
        node_costs=costs,
        lost_bytes=weigh.lost_bytes(chosen),
        latency=_latency(mixed, load, weigh.before, here.capacity_requests_per_s),
        window=_window(window, requests_per_s, load, waiting, behind),
        best=best[1],
        options=tuple(
            sorted((one for _, one in options), key=lambda o: (o.prefill_nodes, -o.net_requests))
        ),
        searched=searched,
        parameters_before=before,
        parameters_after=after,
        reasons=(*_reasons(weigh, here, costs, refused, rule), *retuned),
    )


# ---- weighing a ratio ----------------------------------------------------------------------------


class _Weigh:
    """What each assignment is worth under a rule and a load."""

    def __init__(
        self, mixed: Scenario, kinds: Kinds, capacities: Capacities, rule: Rule, load: float
    ) -> None:
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
        switch_s, during, lost, at_once = 0.0, self.before, 0.0, 0
        if turned and capacity > 0:
            lost, switch_s, during, at_once = min(self._ways(after, turned))
            lost += refill_requests(self.mixed, self.lost_bytes(after))
        gain = (served - now) * max(0.0, rule.horizon_s - switch_s)
        return Option(
            prefill_nodes=sum(p for p, _ in after),
            decode_nodes=sum(d for _, d in after),
            turned=turned,
            capacity_requests_per_s=capacity,
            during_requests_per_s=during,
            served_requests_per_s=served,
            switch_s=switch_s,
            nodes_at_once=at_once,
            gain_requests=gain,
            cost_requests=lost,
            net_requests=gain - lost,
        )

    def _ways(self, after: Assignment, turned: int) -> list[tuple[float, float, float, int]]:
        """Return (requests lost, seconds, least capacity, nodes at once) of each way to turn them."""
        if self.rule.at_once is not None:
            sizes = [min(self.rule.at_once, turned)]
        else:
            sizes = sorted({turned, math.ceil(turned / _BATCHES)})
        return [self._batches(after, size) for size in sizes]

    def _batches(self, after: Assignment, size: int) -> tuple[float, float, float, int]:
        now = self.served(self.before)
        states = []
        for first, last, out in _steps(self.kinds.now, after, size):
            states.append((out, max(self._cost(*one).switch_s for one in first[last:])))
        self.capacities.ask(out for out, _ in states)
        # what is turned already may serve more than before: that is not counted as a gain
        found = [(min(self.before, self.capacities.of(out)), seconds) for out, seconds in states]
        lost = sum(max(0.0, now - self.served(capacity)) * seconds for capacity, seconds in found)
        return lost, sum(s for _, s in found), min(c for c, _ in found), size

    def _cost(self, kind: int, pool: Pool) -> NodeCost:
        if (kind, pool) not in self._costs:
            node = self.kinds.nodes[kind]
            each = len(self.mixed.cluster.nodes(pool))
            rate = min(self.before, self.load) / each
            self._costs[kind, pool] = node_cost(
                self.mixed, pool, node, rate, self.rule.restart_s, self.rule.start_s
            )
        return self._costs[kind, pool]


def _steps(
    now: Assignment, after: Assignment, size: int
) -> list[tuple[list[tuple[int, Pool]], int, Assignment]]:
    """Return the batches in which nodes turn: (all nodes turned by its end as (kind, pool they leave),
    how many of them before it, the nodes that serve meanwhile).
    """
    moves = [
        (kind, Pool.PREFILL if p2 < p else Pool.DECODE)
        for kind, ((p, _), (p2, _)) in enumerate(zip(now, after, strict=True))
        for _ in range(abs(p2 - p))
    ]
    found = []
    for first in range(0, len(moves), size):
        last = min(first + size, len(moves))
        counts = [list(one) for one in now]
        for number, (kind, pool) in enumerate(moves[:last]):
            leaves, joins = (0, 1) if pool is Pool.PREFILL else (1, 0)
            counts[kind][leaves] -= 1
            if number < first:
                counts[kind][joins] += 1
        found.append((moves[:last], first, tuple((p, d) for p, d in counts)))
    return found


def _search(now: Assignment, weigh: _Weigh) -> tuple[list[tuple[Assignment, Option]], str]:
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


# ---- the rule ------------------------------------------------------------------------------------


def _refusals(
    weigh: _Weigh, best: Option, window: Workload, since_change_s: float, rule: Rule
) -> list[str]:
    """Return why the best ratio is not taken; nothing if it is (or is today's)."""
    if not best.turned:
        return []
    if best.capacity_requests_per_s <= 0:
        raise InfeasibleError(
            f"no ratio of these {best.prefill_nodes + best.decode_nodes} nodes serves the window's mix: "
            f"the LLM or a request does not fit, or the TPOT cannot be met"
        )
    found = []
    ratio = best.capacity_requests_per_s / weigh.before if weigh.before else math.inf
    to = f"{best.prefill_nodes}P{best.decode_nodes}D"
    if ratio <= 1 + rule.min_gain + _SAME:
        found.append(
            f"{to} has {ratio - 1:.1%} more capacity, not more than the least gain of "
            f"{rule.min_gain:.1%}"
        )
    if best.net_requests <= 0:
        found.append(
            f"turning to {to} would cost {best.cost_requests:,.0f} requests and gain "
            f"{best.gain_requests:,.0f} over {rule.horizon_s:,.0f} s"
        )
    if since_change_s < rule.dwell_s:
        found.append(
            f"the last change was {since_change_s:,.0f} s ago, less than the dwell of "
            f"{rule.dwell_s:,.0f} s"
        )
    if window.turns < rule.min_turns:
        found.append(
            f"the window has {window.turns} turns, fewer than the {rule.min_turns} that its means need"
        )
    return found


def _doubts(
    capacities: Capacities, window: Workload, now: Assignment, after: Assignment, rule: Rule
) -> list[str]:
    """Say so if the gain does not show in every part of the window."""
    ratios = []
    for number in range(rule.parts):
        part = _every(window, number, rule.parts)
        if part is None:
            return [f"the window has too few turns to look at {rule.parts} parts of it"]
        asked = replace(capacities, scenario=with_mix(capacities.scenario, part), _known={})
        before = asked.of(now)
        ratios.append(asked.of(after) / before if before else math.inf)
    if min(ratios) > 1 + rule.min_gain + _SAME:
        return []
    total = [sum(p for p, _ in after), sum(d for _, d in after)]
    shown = ", ".join(f"{ratio - 1:+.1%}" for ratio in ratios)
    return [
        f"the gain of {total[0]}P{total[1]}D does not show in every part of the window ({shown}; the "
        f"least gain is {rule.min_gain:.1%}), so it may be chance"
    ]


def _every(window: Workload, first: int, step: int) -> Workload | None:
    """Return every ``step``-th turn of a window, None where that leaves nothing to prefill."""
    turns = np.arange(first, window.turns, step)
    if not turns.size or not (window.miss_tokens[turns] > 0).any():
        return None
    return Workload(
        prompt_tokens=window.prompt_tokens[turns],
        hit_tokens=window.hit_tokens[turns],
        output_tokens=window.output_tokens[turns],
        think_time_s=window.think_time_s[turns],
        start_s=np.zeros(len(turns)),
        offsets=np.arange(len(turns) + 1, dtype=np.int64),
        source=window.source,
    )


def _content(weigh: _Weigh) -> list[str]:
    """Say why nothing is better than today's ratio."""
    within = weigh.rule.margin * weigh.before
    if weigh.load <= within:
        return [
            f"the load of {weigh.load:,.2f} requests/s is within the {within:,.2f} that this ratio "
            f"serves within the SLO, so no other ratio would serve more"
        ]
    return ["no other ratio serves more over the horizon than the switch to it would cost"]


def _gain(weigh: _Weigh, here: Option, rule: Rule) -> Gain:
    served, now = here.served_requests_per_s, weigh.served(weigh.before)
    nodes = here.prefill_nodes + here.decode_nodes
    within = rule.margin * weigh.before  # of all nodes
    hours = here.net_requests / within * nodes / 3600 if within else 0.0
    return Gain(
        requests_per_s=served - now,
        capacity_ratio=here.capacity_requests_per_s / weigh.before if weigh.before else math.inf,
        gain_requests=here.gain_requests,
        cost_requests=here.cost_requests,
        net_requests=here.net_requests,
        node_hours=hours,
    )


def _latency(mixed: Scenario, load: float, before: float, after: float) -> Latency:
    settings, workload = scheduler_settings(mixed), mixed.workload
    floor = (
        settings.hit_s_per_token * workload.hit_tokens
        + settings.miss_s_per_token * workload.miss_tokens
    )
    return Latency(
        load_before=load / before if before else math.inf,
        load_after=load / after if after else math.inf,
        ttft_floor_mean_s=float(floor.mean()),
        ttft_floor_p90_s=float(np.quantile(floor, 0.9)),
        slo_ttft_s=mixed.slo.ttft_s,
    )


def _window(window: Workload, offered: float, load: float, waiting: float, behind: bool) -> Window:
    return Window(
        source=window.source,
        sessions=window.session_count,
        turns=window.turns,
        mean_hit_tokens=float(window.hit_tokens.mean()),
        mean_miss_tokens=float(window.miss_tokens.mean()),
        mean_output_tokens=window.mean_output_tokens,
        offered_requests_per_s=offered,
        forecast_requests_per_s=load,
        waiting_requests=waiting,
        behind=behind,
    )


def _parameters(
    scenario: Scenario, mixed: Scenario, capacities: Capacities, chosen: Assignment
) -> tuple[SchedulerParameters | None, SchedulerParameters, list[str]]:
    """Return the scheduler's parameters as deployed and as they should be, and what changes."""
    then = planner.plan(mixed.on(capacities.cluster(chosen)), intervals=False).scheduler_parameters
    try:
        now = planner.plan(scenario, intervals=False).scheduler_parameters
    except InfeasibleError:  # what was planned for once cannot be served by what is there
        return None, then, []
    said = []
    for name, was, is_ in (
        ("alpha", now.alpha_tokens, then.alpha_tokens),
        ("beta", now.beta_tokens, then.beta_tokens),
    ):
        if abs(is_ - was) > _RETUNE * was:
            said.append(f"the scheduler's {name} goes from {was:,.0f} to {is_:,.0f} tokens")
    if abs(then.split - now.split) > _RETUNE:
        said.append(
            f"the share of reads through decode nodes goes from {now.split:.1%} to {then.split:.1%}"
        )
    return now, then, said


def _reasons(
    weigh: _Weigh,
    here: Option,
    costs: Sequence[NodeCost],
    refused: Sequence[str],
    rule: Rule,
) -> list[str]:
    if not here.turned:
        return list(refused)
    prefill = sum(p for p, _ in weigh.kinds.now)
    nodes = here.prefill_nodes + here.decode_nodes
    was, becomes = f"{prefill}P{nodes - prefill}D", f"{here.prefill_nodes}P{here.decode_nodes}D"
    ratio = here.capacity_requests_per_s / weigh.before - 1 if weigh.before else math.inf
    turned = f"{here.turned} node{'s' if here.turned > 1 else ''}"
    load = "any load, for the cluster is behind," if math.isinf(weigh.load) else "the forecast load"
    return [
        f"{was} limits this mix at {weigh.before:,.2f} requests/s; with {turned} turned {becomes} has "
        f"{here.capacity_requests_per_s:,.2f} ({ratio:+.1%})",
        f"over {rule.horizon_s:,.0f} s that gains {here.gain_requests:,.0f} requests within the SLO at "
        f"{load} and the switch costs {here.cost_requests:,.0f}",
        f"the switch takes {here.switch_s:,.0f} s, {here.nodes_at_once} at a time: "
        + "; ".join(map(cost_words, costs)),
    ]
