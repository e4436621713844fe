"""Drive a day through a simulated cluster, with and without re-planning, and compare.

The controller is a fold over windows: at the end of each it sees the turns that were submitted in it, as
a monitor would, and asks :func:`solvers.replan.decide`. What it decides happens in the same simulation:
the nodes that turn are closed, finish what they have, are away for the restart, and open in their new
role. Where no ratio serves a window's mix, all roles stay. Fixed ratios run through the same code
without decisions; alpha and beta of their schedulers follow each window's mix as well, so that what is
compared is the ratio alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.workload import Workload
from solvers.replan import decide, with_mix
from solvers.replan_answer import Decision, Rule
from solvers.replan_compose import Day
from solvers.replan_ratios import (
    MOST_ASSIGNMENTS,
    Capacities,
    assignments,
    check_cluster,
    kind_names,
    kinds_of,
    ratio_name,
)
from solvers.replan_roles import RoleSimulation, window_of
from solvers.simulator import state as arrays
from solvers.simulator.capacity import bracket
from solvers.simulator.constants import TOKEN_LIMIT, Constants
from solvers.simulator.model import Switches
from solvers.spread import spread

_CLOSE = 0.6  # ratios with a smaller part of the best one's share are not searched for their load
_STEP = 1.25  # between two loads before the bracket is closed
_LOOK_S = 1.0  # between two looks at a node that drains
_MOST_WINDOWS = 20_000
Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """A window of the day: what came, who served it, and what was decided at its end.

    ``within_slo``: share of the turns submitted in it whose TTFT and TPOT met the SLO; nan of none.
    ``prefill_nodes`` and ``decode_nodes``: open at its end. ``closed_node_s``: node-seconds in which
    nodes that turn served nothing new. ``reason``: the first of the decision's; where no ratio serves
    the window's mix, why, with the action "keep", a capacity of nan and no best ratio.
    """

    begin_s: float
    turns: int
    within_slo: float
    prefill_nodes: int
    decode_nodes: int
    closed_node_s: float
    action: str
    capacity_requests_per_s: float
    best_prefill_nodes: int
    reason: str


@dataclass(frozen=True)
class Driven:
    """A day under one way of running the cluster. ``name``: "adaptive", "4P4D", or of several kinds
    "1P2D: 1 slow | 2 fast", the prefill nodes before the line.

    Spreads are over all turns. ``closed_node_hours``: what the switches cost; ``drains_s``: how long
    each batch of nodes took to run empty. ``node_hours``: all nodes until the last turn ended.
    """

    name: str
    prefill_nodes: int
    decode_nodes: int
    turns: int
    within_slo: float
    ttft_s: dict[str, float]
    tpot_s: dict[str, float]
    end_s: float
    node_hours: float
    changes: int
    closed_node_hours: float
    drains_s: tuple[float, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Sustained:
    """The highest load at which a share of ``least_within_slo`` of the day's turns met the SLO.

    In units of the day as written; ``turns``: of the whole day at that load.
    """

    name: str
    load: float
    turns: int


@dataclass(frozen=True)
class DayResult:
    """The comparison. ``fixed`` has every ratio of the same nodes (of several kinds: every way to give
    them their roles), ``best_fixed`` the one that does best in hindsight. ``sustained``: of re-planning
    and of every ratio that comes near the best one; empty where the highest load was not asked for.
    """

    day: str
    scenario: str
    load: float
    every_s: float
    slo_ttft_s: float
    slo_tpot_s: float
    adaptive: Driven
    fixed: tuple[Driven, ...]
    best_fixed: str
    gain_within_slo: float
    """Adaptive minus the best fixed share of turns within the SLO."""
    least_within_slo: float
    sustained: tuple[Sustained, ...]
    gain_sustained: float | None
    """Adaptive over the best fixed highest load, minus 1."""
    interrupted: bool = False


def to_json(result: DayResult) -> dict[str, Any]:
    """Return the comparison as JSON-ready data."""
    return asdict(result)


@dataclass(frozen=True)
class Lab:
    """How to simulate: policy, constants (None: measured or fitted), switches, compiled or not."""

    policy: str = "dualpath"
    constants: Constants | None = None
    switches: Switches | None = None
    compiled: bool = True

    @property
    def token_limit(self) -> int:
        """Most tokens of a forward batch."""
        return TOKEN_LIMIT if self.switches is None else self.switches.token_limit


def replan_day(
    scenario: Scenario,
    day: Day,
    rule: Rule | None = None,
    *,
    every_s: float = 900.0,
    load: float = 1.0,
    search: bool = False,
    least_within_slo: float = 0.9,
    tolerance: float = 0.02,
    lab: Lab | None = None,
    progress: Tell | None = None,
) -> DayResult:
    """Drive ``day`` with re-planning, from the scenario's roles on, and with every fixed ratio.

    Of several kinds of nodes every way to give them their roles is one: re-planning may choose it, too.

    ``search``: also find the highest load of each at which ``least_within_slo`` of the turns met the
    SLO, to a relative ``tolerance``. KeyboardInterrupt from ``progress`` during the search keeps the
    rest.

    Raises InputError for bad numbers, for what the simulator does not model and for more than
    MOST_ASSIGNMENTS ways to give the nodes their roles, InfeasibleError where the scenario cannot be
    served.
    """
    rule, lab = rule or Rule(), lab or Lab()
    check_cluster(scenario)
    if not (math.isfinite(every_s) and every_s >= 1.0):
        raise InputError(f"every is {every_s:g} s; a window has at least 1 s")
    if not 0.0 < least_within_slo < 1.0:
        raise InputError(
            f"least within SLO is {least_within_slo:g}; it must be between 0 and 1, both excluded"
        )
    if not 1e-3 <= tolerance <= 0.5:
        raise InputError(f"tolerance is {tolerance:g}; it must be 0.001 to 0.5")
    starts = dict(_fixed(scenario))
    runs = len(starts) + 1
    done = 0

    def told(name: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            whole = runs * (1 + 5 * search)
            progress(min(1.0, done / whole), name)

    def run(name: str, at: float) -> Driven:
        busy = _with_day(starts.get(name, scenario), day, at)
        found = drive(busy, None if name in starts else rule, every_s=every_s, lab=lab, name=name)
        told(f"{name} at load {at:.3g}: {found.within_slo:.1%} within the SLO")
        return found

    adaptive = run("adaptive", load)
    fixed = tuple(run(name, load) for name in starts)
    best = max(fixed, key=lambda one: one.within_slo)
    sustained: tuple[Sustained, ...] = ()
    interrupted = False
    if search:
        try:
            close = [one for one in fixed if one.within_slo >= _CLOSE * best.within_slo]
            sustained = tuple(
                _sustained(partial(run, one.name), one, load, least_within_slo, tolerance)
                for one in (adaptive, *close)
            )
        except KeyboardInterrupt:
            interrupted = True
    most = max((one.load for one in sustained[1:]), default=0.0)
    return DayResult(
        day=day.name,
        scenario=scenario.name,
        load=load,
        every_s=every_s,
        slo_ttft_s=scenario.slo.ttft_s,
        slo_tpot_s=scenario.slo.tpot_s,
        adaptive=adaptive,
        fixed=fixed,
        best_fixed=best.name,
        gain_within_slo=adaptive.within_slo - best.within_slo,
        least_within_slo=least_within_slo,
        sustained=sustained,
        gain_sustained=sustained[0].load / most - 1 if most else None,
        interrupted=interrupted,
    )


def _with_day(scenario: Scenario, day: Day, load: float) -> Scenario:
    return replace(scenario, classes=(WorkloadClass("day", day.workload(load), share=1.0),))


def _fixed(scenario: Scenario) -> Iterable[tuple[str, Scenario]]:
    """Yield every way to give the scenario's nodes their roles, by name, fewest prefill nodes first."""
    kinds = kinds_of(scenario.cluster)
    every = assignments(kinds.now)
    if every is None:
        counts = ", ".join(
            f"{p + d} {name}" for (p, d), name in zip(kinds.now, kind_names(kinds), strict=True)
        )
        raise InputError(
            f"the nodes of '{scenario.name}' ({counts}) can be given their roles in more than "
            f"{MOST_ASSIGNMENTS} ways, too many to drive a day with each; use fewer kinds or fewer nodes"
        )
    clusters = Capacities(scenario, kinds)
    for one in sorted(every, key=lambda one: sum(p for p, _ in one)):
        as_is = one == kinds.now
        yield ratio_name(kinds, one), scenario if as_is else scenario.on(clusters.cluster(one))


def _sustained(
    run: Callable[[float], Driven], first: Driven, near: float, least: float, tolerance: float
) -> Sustained:
    """Return the highest load that holds; ``first`` is the run at ``near``, where the bracket begins."""
    known: dict[float, Driven] = {near: first}
    name = first.name

    def holds(load: float) -> bool:
        if load not in known:
            known[load] = run(load)
        return known[load].within_slo >= least

    ends = bracket(holds, near, _STEP, tolerance, least=1e-2)
    if ends is None:
        return Sustained(name, 0.0, 0)
    low, _ = ends
    return Sustained(name, low, known[low].turns)


# ---- one run -------------------------------------------------------------------------------------


def drive(
    scenario: Scenario,
    rule: Rule | None,
    *,
    every_s: float,
    lab: Lab | None = None,
    name: str = "",
    decisions: Callable[[float, Decision], None] | None = None,
) -> Driven:
    """Run the sessions of ``scenario`` at their starts, re-planned under ``rule`` (None: fixed roles).

    ``decisions`` gets each one with its time.
    """
    lab = lab or Lab()
    sim = RoleSimulation(
        scenario,
        lab.policy,
        constants=lab.constants,
        switches=lab.switches,
        compiled=lab.compiled,
    )
    control = _Control(scenario, sim, rule, lab, decisions)
    steps: list[_Seen] = []
    for number in range(_MOST_WINDOWS):
        if sim.ended:
            break
        end_s = (number + 1) * every_s
        closed = control.advance(end_s)
        steps.append(control.window(number * every_s, end_s, closed))
    if not sim.ended:
        raise InputError(
            f"the day has not ended after {_MOST_WINDOWS:,} windows of {every_s:g} s; make them longer, "
            f"or lower the load"
        )
    sim.check()
    return _driven(scenario, sim, name, steps, control, every_s)


@dataclass
class _Seen:
    """A window as the controller saw it. ``unserved``: why no ratio serves its mix, or nothing."""

    begin_s: float
    prefill_nodes: int
    decode_nodes: int
    closed_node_s: float
    decision: Decision | None
    unserved: str = ""

    @property
    def action(self) -> str:
        """What was decided; nothing where nobody was asked."""
        return "keep" if self.unserved else "" if self.decision is None else self.decision.action

    @property
    def reason(self) -> str:
        """The first reason for it."""
        if self.decision is None or not self.decision.reasons:
            return self.unserved
        return self.decision.reasons[0]


@dataclass(frozen=True)
class _Batch:
    """Nodes that turn together, the role that each takes, and the restart of the slowest."""

    roles: dict[int, Pool]
    restart_s: float

    @property
    def nodes(self) -> list[int]:
        """All of them, of either role."""
        return list(self.roles)


@dataclass
class _Switching:
    """Nodes that turn, batch by batch. ``ready_s``: when the first batch opens, None while it drains."""

    batches: list[_Batch]
    closed_s: float = 0.0
    ready_s: float | None = None


class _Control:
    """The controller of a run: what it has decided and what is under way."""

    def __init__(
        self,
        scenario: Scenario,
        sim: RoleSimulation,
        rule: Rule | None,
        lab: Lab,
        told: Callable[[float, Decision], None] | None,
    ) -> None:
        self.scenario, self.sim, self.rule, self.lab, self.told = scenario, sim, rule, lab, told
        self.now_s = 0.0
        self.changed_s = -math.inf
        self.changes = 0
        self.drains_s: list[float] = []
        self.switching: _Switching | None = None
        self.nodes = (*scenario.cluster.prefill, *scenario.cluster.decode)

    # ---- time ------------------------------------------------------------------------------------

    def advance(self, to_s: float) -> float:
        """Run to ``to_s``, nodes turning meanwhile; return the node-seconds that were closed."""
        closed = 0.0
        while self.now_s < to_s:
            switch = self.switching
            if switch is None:
                self.sim.go(to_s)
                self.now_s = to_s
                return closed
            batch = switch.batches[0]
            until = min(to_s, self.now_s + _LOOK_S if switch.ready_s is None else switch.ready_s)
            if not self.sim.ended:
                self.sim.go(until)
            closed += len(batch.nodes) * (until - self.now_s)
            self.now_s = until
            if switch.ready_s is None:
                if self.sim.drained(batch.nodes):
                    self.drains_s.append(self.now_s - switch.closed_s)
                    switch.ready_s = self.now_s + batch.restart_s
            elif self.now_s >= switch.ready_s:
                for role in (Pool.PREFILL, Pool.DECODE):
                    self.sim.open([i for i, to in batch.roles.items() if to is role], role)
                switch.batches.pop(0)
                self._next_batch()
        return closed

    def _next_batch(self) -> None:
        switch = self.switching
        assert switch is not None
        if not switch.batches:
            self.switching = None
            return
        switch.closed_s, switch.ready_s = self.now_s, None
        self.sim.close(switch.batches[0].nodes)

    # ---- decisions -------------------------------------------------------------------------------

    def window(self, begin_s: float, end_s: float, closed_s: float) -> _Seen:
        """Look at a window that has just ended, and act."""
        waiting = self.sim.waiting()
        came = self.sim.submitted(begin_s, end_s)
        # What waits from before has to be served next, whenever it came.
        turns = np.union1d(came, waiting)
        decision, unserved = None, ""
        workload = self.scenario.workload
        if turns.size and (workload.miss_tokens[turns] > 0).any():
            seen = window_of(workload, turns, f"{begin_s:g} to {end_s:g} s")
            self.sim.set_limits(with_mix(self.scenario, seen))
            if self.rule is not None and self.switching is None:
                rate = len(came) / (end_s - begin_s)
                try:
                    decision = self._decide(seen, rate, len(waiting), end_s)
                except InfeasibleError as error:  # of these turns alone; the day goes on
                    unserved = str(error)
        roles = self.sim.roles
        prefill, decode = roles.count(Pool.PREFILL), roles.count(Pool.DECODE)
        return _Seen(begin_s, prefill, decode, closed_s, decision, unserved)

    def _decide(self, seen: Workload, rate: float, waiting: int, now_s: float) -> Decision:
        assert self.rule is not None
        places = {
            pool: [i for i, role in enumerate(self.sim.roles) if role is pool]
            for pool in (Pool.PREFILL, Pool.DECODE)
        }
        cluster = replace(
            self.scenario.cluster,
            prefill=tuple(self.nodes[i] for i in places[Pool.PREFILL]),
            decode=tuple(self.nodes[i] for i in places[Pool.DECODE]),
        )
        decision = decide(
            self.scenario.on(cluster),
            seen,
            rate,
            self.rule,
            waiting=waiting,
            since_change_s=now_s - self.changed_s,
            parameters=False,
            constants=self.lab.constants,
            token_limit=self.lab.token_limit,
        )
        if self.told is not None:
            self.told(now_s, decision)
        if decision.action == "change":
            self.switching = _Switching(_batches(decision, places))
            self.changed_s, self.changes = now_s, self.changes + 1
            self._next_batch()
        return decision


def _batches(decision: Decision, places: dict[Pool, list[int]]) -> list[_Batch]:
    """Return the batches in which the nodes of a decision turn. ``places``: the nodes of each pool."""
    turns = [abs(one.prefill_after - one.prefill_before) for one in decision.kinds]
    # both lists go kind by kind: a cost for each kind that turns, and its nodes
    restarts_s = [
        cost.restart_s
        for cost, count in zip(decision.node_costs, [n for n in turns if n], strict=True)
        for _ in range(count)
    ]
    moves = [
        (places[Pool(one.before)][one.position], Pool(one.after), restart_s)
        for one, restart_s in zip(decision.turned, restarts_s, strict=True)
    ]
    size = decision.nodes_at_once
    cut = [moves[i : i + size] for i in range(0, len(moves), size)]
    return [
        _Batch({node: to for node, to, _ in batch}, max(restart_s for *_, restart_s in batch))
        for batch in cut
    ]


def _driven(
    scenario: Scenario,
    sim: RoleSimulation,
    name: str,
    seen: list[_Seen],
    control: _Control,
    every_s: float,
) -> Driven:
    rows = sim.run.rows
    at = {field: i for i, field in enumerate(arrays.RESULT_FIELDS)}
    output = sim.run.sim.traffic.output[rows[:, at["turn"]]]
    submitted = rows[:, at["submitted"]] / arrays.SECOND
    ttft_s = (rows[:, at["first_token"]] - rows[:, at["submitted"]]) / arrays.SECOND
    gaps = output > 2
    tpot_s = np.zeros(len(rows))
    spent = (rows[:, at["ended"]] - rows[:, at["second_token"]]) / arrays.SECOND
    tpot_s[gaps] = spent[gaps] / (output[gaps] - 2)
    good = (ttft_s <= scenario.slo.ttft_s) & (tpot_s <= scenario.slo.tpot_s)
    number = np.minimum((submitted // every_s).astype(int), len(seen) - 1)
    counts = np.bincount(number, minlength=len(seen))
    goods = np.bincount(number, weights=good, minlength=len(seen))
    steps = tuple(
        Step(
            begin_s=one.begin_s,
            turns=int(counts[i]),
            within_slo=float(goods[i] / counts[i]) if counts[i] else math.nan,
            prefill_nodes=one.prefill_nodes,
            decode_nodes=one.decode_nodes,
            closed_node_s=one.closed_node_s,
            action=one.action,
            capacity_requests_per_s=math.nan
            if one.decision is None
            else one.decision.capacity_requests_per_s.before,
            best_prefill_nodes=0 if one.decision is None else one.decision.best.prefill_nodes,
            reason=one.reason,
        )
        for i, one in enumerate(seen)
    )
    end_s = sim.end_s
    return Driven(
        name=name,
        prefill_nodes=len(scenario.cluster.prefill),
        decode_nodes=len(scenario.cluster.decode),
        turns=len(rows),
        within_slo=float(good.mean()),
        ttft_s=spread(ttft_s),
        tpot_s=spread(tpot_s[gaps]),
        end_s=end_s,
        node_hours=len(control.nodes) * end_s / 3600,
        changes=control.changes,
        closed_node_hours=sum(step.closed_node_s for step in steps) / 3600,
        drains_s=tuple(control.drains_s),
        steps=steps,
    )
