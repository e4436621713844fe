"""Which nodes, how many, in which role, at what cost: the question behind the purchase order.

The integer program (:mod:`solvers.fleet_program`) chooses whole counts of kinds in roles. Its answer is
checked three times over: by :func:`solvers.plan`'s own LP on the cluster that it means, for each case;
by the same after every loss of nodes that it must survive; and by the simulator. Where the margin
between the LP and the SLO is to be simulated, it is measured on the fleet that was found, and the fleet
is found anew with it, until the simulator agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dualpath_model.errors import InfeasibleError, InputError
from solvers import alternatives, fleet_conflicts, fleet_explain, fleet_simulate
from solvers.alternatives import ResourceName, name_of
from solvers.fleet_parts import NO_LOSS, Loss
from solvers.fleet_question import Case, Counts, Question, load_question
from solvers.fleet_search import TOLERANCE, Effort, Found, best
from solvers.fleet_serve import after, losses, served
from solvers.fleet_simulate import Reach, Run, Tried
from solvers.fleet_uses import Uses, uses_of

FLEET_VERSION = 1
_MOST_MARGINS = 5
_MOST_TRIED = 40
"""Losses that are simulated one by one; of more, those that leave least."""

Progress = Callable[[float, str], None]
"""Gets the share that is done, roughly, and what is being done; may raise KeyboardInterrupt."""


@dataclass(frozen=True)
class Bought:
    """Nodes of one kind in the fleet. ``price``: USD/h of one bought node."""

    kind: str
    prefill: int
    decode: int
    owned: int
    bought: int
    price: float
    cost: float


@dataclass(frozen=True)
class Promise:
    """What the LP says of one case: requests/s asked, margin not counted, and what could be served.

    ``program`` is what the integer program counted on; it differs from ``promised`` where an expert
    degree had to be left out. ``worst_loss``: nodes lost that leave least, ``after_loss`` what is left.
    """

    case: str
    asked: float
    promised: float
    program: float
    split: float
    bottleneck: ResourceName
    worst_loss: str
    after_loss: float


@dataclass(frozen=True)
class Simulation:
    """What the simulator says. ``skipped``: why it was not asked, "" if it was.

    ``margins``: those that were tried, the last one holds where it was measured.
    """

    skipped: str
    reach: tuple[Reach, ...] = ()
    tried: tuple[Tried, ...] = ()
    margins: tuple[float, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every run met the SLO."""
        return bool(self.tried) and all(one.holds for one in self.tried)


@dataclass(frozen=True)
class Point:
    """One fleet of the front: USD/h against requests/s (of the classes with a share)."""

    cost_usd_per_hour: float
    requests_per_s: float
    counts: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Fleet:
    """The answer. Costs in USD/h, rates in requests/s of the classes with a share, before growth."""

    version: int
    name: str
    goal: str
    nodes: tuple[Bought, ...]
    prefill_nodes: int
    decode_nodes: int
    cost_usd_per_hour: float
    requests_per_s: float
    sessions_per_s: float
    margin: float
    gap: float
    power_kw: float | None
    racks: int | None
    survive: int
    promises: tuple[Promise, ...]
    simulation: Simulation
    worth: tuple[fleet_explain.Worth, ...]
    front: tuple[Point, ...]
    notes: tuple[str, ...]
    interrupted: bool = False


def to_json(fleet: Fleet) -> dict[str, Any]:
    """Return the fleet as JSON-ready data."""
    found = asdict(fleet)
    found["simulation"]["holds"] = fleet.simulation.holds
    for part, one in zip(found["simulation"]["reach"], fleet.simulation.reach, strict=True):
        part["share"] = one.share
    return found


def fleet(
    question: Question | str | Path,
    *,
    effort: Effort | None = None,
    run: Run | None = None,
    explain: bool = True,
    points: int = 8,
    progress: Progress | None = None,
) -> Fleet:
    """Find the fleet for a question or a fleet file.

    ``run``: how to simulate, None not at all (a margin to be simulated is then an error). ``explain``:
    say what decides it; ``points``: of the front of cost against capacity. KeyboardInterrupt after the
    fleet is found ends the rest, and what is finished is kept.

    Raises InputError for a file that cannot be used, InfeasibleError, with the smallest set of
    requirements that conflict, where there is no fleet.
    """
    asked = question if isinstance(question, Question) else load_question(question)
    effort = effort or Effort()
    tell = _Teller(progress)
    if asked.measured and run is None:
        raise InputError(
            "margin is 'simulated', which needs the simulator; give margin as a number, or let it run"
        )
    uses = uses_of(asked)
    found = _find(asked, uses, effort, tell)
    simulation = Simulation("switched off")
    worth: list[fleet_explain.Worth] = []
    points_found: list[Found] = []
    interrupted = False
    try:
        if run is not None:
            asked, found, simulation = _simulated(asked, uses, found, effort, run, tell)
        if explain:
            stage = tell.between(0.6 if run else 0.1, 0.8 if run else 0.6)
            worth = fleet_explain.explain(asked, uses, found, effort, tell, stage)
        if points and asked.grows and found.rate > 0:
            stage = tell.between(0.8 if run else 0.6, 1.0)
            points_found = fleet_explain.front(asked, uses, found, points, effort, tell, stage)
    except KeyboardInterrupt:
        interrupted = True
    return _fleet(asked, uses, found, simulation, worth, points_found, interrupted)


class _Teller:
    """Progress of stages whose length is not known: the share says how many are done."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._done = progress, 0.0

    def stage(self, done: float) -> None:
        """Begin a stage."""
        self._done = done

    def between(self, first: float, last: float) -> Callable[[float], None]:
        """Return a stage of many steps: it gets the share of them that is done."""
        return lambda done: self.stage(first + (last - first) * done)

    def __call__(self, text: str) -> None:
        if self._progress is not None:
            self._progress(self._done, text)

    def part(self, _done: float, text: str) -> None:
        """Tell of a simulation that runs."""
        self(text)


def _find(question: Question, uses: Uses, effort: Effort, tell: _Teller) -> Found:
    found = best(question, uses, effort=effort, tell=tell)
    if found is None:
        raise InfeasibleError(fleet_conflicts.explain(question, uses, tell))
    return found


# ---- simulation ----------------------------------------------------------------------------------


def _simulated(
    question: Question, uses: Uses, found: Found, effort: Effort, run: Run, tell: _Teller
) -> tuple[Question, Found, Simulation]:
    """Simulate the fleet; where the margin is to be measured, find fleets until one holds."""
    margins = [question.margin]
    for number in range(_MOST_MARGINS):
        tell.stage(0.1 + 0.5 * number / _MOST_MARGINS)
        skipped = fleet_simulate.cannot(question, found.counts, found.rate, run)
        if skipped is not None:
            if question.measured:
                raise InputError(f"margin is 'simulated', but {skipped}; give it as a number")
            return question, found, Simulation(skipped, margins=tuple(margins))
        first = question.measured and number == 0  # with the whole LP as margin: it surely fails
        tried = [] if first else _tried(question, uses, found, run, tell)
        failed = [one for one in tried if not one[2].holds]
        if not first and not (question.measured and failed):
            whole = question.cases[0], NO_LOSS
            reach = [_reach(question, found, *whole, run, tell)]
            results = tuple(one[2] for one in tried)
            return question, found, Simulation("", tuple(reach), results, tuple(margins))
        measured = [
            _reach(question, found, case, loss, run, tell)
            for case, loss in [(case, loss) for case, loss, _ in failed[:3]]
            or [(question.cases[0], NO_LOSS)]
        ]
        share = min(one.share for one in measured)
        # Where it fails although the share is enough, one search was too kind.
        margin = min(1.0, share) if first else min(share, 0.97 * margins[-1])
        margins.append(margin)
        question = replace(question, margin=margin)
        found = _find(question, uses, effort, tell)
    raise InfeasibleError(
        f"no margin was found with which the simulator agrees, in {_MOST_MARGINS} rounds down to "
        f"{margins[-1]:.2f}; simulate longer, or give margin as a number"
    )


def _reach(
    question: Question, found: Found, case: Case, loss: Loss, run: Run, tell: _Teller
) -> Reach:
    return fleet_simulate.reach(question, case, found.counts, loss, found.rate, run, tell.part)


def _tried(
    question: Question, uses: Uses, found: Found, run: Run, tell: _Teller
) -> list[tuple[Case, Loss, Tried]]:
    """Simulate every case with all nodes, and the hardest case after each loss."""
    rows = [(case, NO_LOSS) for case in question.cases]
    ways = []
    for loss in losses(found.counts, question.limits.survive):
        left = after(found.counts, loss)
        factors = [served(question, uses, left, s, found.rate) for s in range(len(question.cases))]
        ways.append((min(factors), factors.index(min(factors)), loss))
    rows += [(question.cases[s], loss) for _, s, loss in sorted(ways)[:_MOST_TRIED]]
    return [
        (
            case,
            loss,
            fleet_simulate.attempt(question, case, found.counts, loss, found.rate, run, tell.part),
        )
        for case, loss in rows
    ]


# ---- the answer ----------------------------------------------------------------------------------


def _fleet(
    question: Question,
    uses: Uses,
    found: Found,
    simulation: Simulation,
    worth: list[fleet_explain.Worth],
    points: list[Found],
    interrupted: bool,
) -> Fleet:
    totals = found.counts.sum(axis=1).tolist()
    kinds = list(zip(question.kinds, totals, strict=True))
    power = [kind.power_kw for kind, count in kinds if count]
    racks = [kind.per_rack for kind, count in kinds if count]
    promises = tuple(_promise(question, uses, found, s) for s in range(len(question.cases)))
    return Fleet(
        version=FLEET_VERSION,
        name=question.name,
        goal="least cost" if question.required is not None else "most rate",
        nodes=tuple(_bought(question, found.counts, i) for i, n in enumerate(totals) if n),
        prefill_nodes=int(found.counts[:, 0].sum()),
        decode_nodes=int(found.counts[:, 1].sum()),
        cost_usd_per_hour=found.cost,
        requests_per_s=found.rate,
        sessions_per_s=found.rate * question.sessions_per_request if question.grows else 0.0,
        margin=question.margin,
        gap=found.gap,
        power_kw=None if None in power else sum((k.power_kw or 0.0) * n for k, n in kinds),
        racks=None if None in racks else sum(-(-n // (k.per_rack or 1)) for k, n in kinds),
        survive=question.limits.survive,
        promises=promises,
        simulation=simulation,
        worth=tuple(worth),
        front=tuple(_point(question, one) for one in points),
        notes=tuple(_notes(question, uses, promises)),
        interrupted=interrupted,
    )


def _bought(question: Question, counts: Counts, index: int) -> Bought:
    kind, count = question.kinds[index], int(counts[index].sum())
    owned = min(count, kind.owned) if kind.owned_price <= kind.price else 0
    alone = counts.copy()
    alone[:index] = alone[index + 1 :] = 0
    return Bought(
        kind=kind.name,
        prefill=int(counts[index, 0]),
        decode=int(counts[index, 1]),
        owned=owned,
        bought=count - owned,
        price=kind.price,
        cost=question.cost(alone),
    )


def _promise(question: Question, uses: Uses, found: Found, s: int) -> Promise:
    case = question.cases[s]
    asked = float(question.rates(case, found.rate).sum())
    quick = alternatives.quick(question.on(case, found.counts, found.rate))
    margin = question.margin
    worst, left = "", math.nan
    for loss in losses(found.counts, question.limits.survive):
        now = served(question, uses, after(found.counts, loss), s, found.rate) * asked / margin
        if not left <= now:
            worst, left = fleet_simulate.words(question, loss), now
    return Promise(
        case=case.name,
        asked=asked,
        promised=quick.throughput,
        program=served(question, uses, found.counts, s, found.rate) * asked / margin,
        split=quick.split,
        bottleneck=name_of(quick.bottleneck),
        worst_loss=worst,
        after_loss=left,
    )


def _point(question: Question, found: Found) -> Point:
    counts = {
        kind.name: (int(row[0]), int(row[1]))
        for kind, row in zip(question.kinds, found.counts, strict=True)
        if row.any()
    }
    return Point(found.cost, found.rate, counts)


def _notes(question: Question, uses: Uses, promises: tuple[Promise, ...]) -> list[str]:
    notes = [
        f"{question.kinds[kind].name} cannot do {pool}: {why}"
        for (kind, pool), why in uses.reasons.items()
    ]
    off = max(abs(p.promised / p.program - 1.0) for p in promises)
    if off > 100 * TOLERANCE:
        notes.append(
            f"the plan's LP on this cluster differs from the integer program by up to {off:.2%}: "
            f"expert degrees between those that were tried"
        )
    if question.limits.racks is not None:
        notes.append("a rack holds nodes of one kind")
    dram = {
        kind.name for kind in question.kinds if kind.node.dram_bytes_per_s is None and kind.roles
    }
    if dram:
        notes.append(
            f"no DRAM bandwidth in the catalog, so DRAM is not a limit there: {', '.join(sorted(dram))}"
        )
    return notes
