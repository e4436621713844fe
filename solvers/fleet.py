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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.workload import Workload
from solvers import alternatives, fleet_conflicts, fleet_explain, fleet_simulate
from solvers.alternatives import ResourceName, name_of
from solvers.fleet_margin import Bench, Margins, Pieces, Simulation, simulated
from solvers.fleet_outlook import Outlook, named, outlook
from solvers.fleet_question import Counts, Question, load_question
from solvers.fleet_search import TOLERANCE, Effort, Found, best
from solvers.fleet_serve import after, losses, served
from solvers.fleet_simulate import Run
from solvers.fleet_uses import Uses, uses_of
from solvers.problem import POOLS

FLEET_VERSION = 2
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
    """What the LP says of one case, requests/s of all classes.

    ``promised``: what could be served, margins not counted; ``within``: with the margins, so within the
    SLO; ``after_loss``: that after the loss that leaves least, ``worst_loss``. ``prefill`` and
    ``decode``: what each pool could serve if the other did not limit, margins not counted.
    ``roofline``: what ``dualpath plan`` promises of this cluster, engines' software not counted;
    ``bottleneck`` and ``split`` are that plan's. ``paced``: decode steps at the TPOT limit before it.
    """

    case: str
    asked: float
    promised: float
    within: float
    prefill: float
    decode: float
    roofline: float
    paced: bool
    split: float
    bottleneck: ResourceName
    worst_loss: str
    after_loss: float


@dataclass(frozen=True)
class Point:
    """One fleet of the front: USD/h against requests/s (of the classes with a share)."""

    cost_usd_per_hour: float
    requests_per_s: float
    counts: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Traffic:
    """The forecast's traffic, means over its turns. ``session_s``: how long a session lives where the
    SLO is just met, the time that agents or people think included.
    """

    llm: str
    sources: tuple[str, ...]
    sessions_per_s: float
    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    hit_rate: float
    slo_ttft_s: float
    slo_tpot_s: float
    session_s: float


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
    margins: Margins
    policy: str
    gap: float
    power_kw: float | None
    racks: int | None
    survive: int
    promises: tuple[Promise, ...]
    simulation: Simulation
    worth: tuple[fleet_explain.Worth, ...]
    front: tuple[Point, ...]
    outlook: Outlook | None
    traffic: Traffic
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
    beyond: Outlook | None = None
    interrupted = False
    try:
        if run is not None:
            bench = Bench(
                uses,
                run,
                partial(_find, uses=uses, effort=effort, tell=tell),
                Pieces(tell.within(0.05, 0.8)),
            )
            asked, found, simulation = simulated(asked, found, bench)
        if explain:
            first, last = (0.8, 0.9) if run else (0.1, 0.6)
            middle = 0.5 * (first + last)
            stage = tell.between(first, middle)
            worth = fleet_explain.explain(asked, uses, found, effort, tell, stage)
            stage = tell.between(middle, last)
            beyond = outlook(asked, uses, found, effort, tell, stage)
        if points and asked.grows and found.rate > 0:
            stage = tell.between(0.9 if run else 0.6, 1.0)
            points_found = fleet_explain.front(asked, uses, found, points, effort, tell, stage)
    except KeyboardInterrupt:
        interrupted = True
    parts = (tuple(worth), tuple(_point(asked, one) for one in points_found), beyond)
    return _fleet(asked, uses, found, simulation, parts, interrupted)


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

    def within(self, first: float, last: float) -> Progress:
        """Return progress of a stage that says itself how much of it is done."""

        def tell(done: float, text: str) -> None:
            self.stage(first + (last - first) * done)
            self(text)

        return tell


def _find(question: Question, uses: Uses, effort: Effort, tell: _Teller) -> Found:
    found = best(question, uses, effort=effort, tell=tell)
    if found is None:
        raise InfeasibleError(fleet_conflicts.explain(question, uses, tell))
    return found


# ---- the answer ----------------------------------------------------------------------------------


def _fleet(
    question: Question,
    uses: Uses,
    found: Found,
    simulation: Simulation,
    parts: tuple[tuple[fleet_explain.Worth, ...], tuple[Point, ...], Outlook | None],
    interrupted: bool,
) -> Fleet:
    worth, points, beyond = parts
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
        margins=question.margins,
        policy=question.policy,
        gap=found.gap,
        power_kw=None if None in power else sum((k.power_kw or 0.0) * n for k, n in kinds),
        racks=None if None in racks else sum(-(-n // (k.per_rack or 1)) for k, n in kinds),
        survive=question.limits.survive,
        promises=promises,
        simulation=simulation,
        worth=worth,
        front=points,
        outlook=beyond,
        traffic=traffic_of(question, found.rate),
        notes=tuple(_notes(question, uses, found, promises)),
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
    whole = replace(question, margins=(1.0, 1.0))
    promised = served(whole, uses, found.counts, s, found.rate) * asked
    pools = [served(whole, uses, found.counts, s, found.rate, alone=pool) for pool in POOLS]
    worst, left = "", math.nan
    for loss in losses(found.counts, question.limits.survive):
        now = served(question, uses, after(found.counts, loss), s, found.rate) * asked
        if not left <= now:
            worst, left = fleet_simulate.words(question, loss), now
    return Promise(
        case=case.name,
        asked=asked,
        promised=promised,
        within=served(question, uses, found.counts, s, found.rate) * asked,
        prefill=pools[0] * asked,
        decode=pools[1] * asked,
        roofline=quick.throughput,
        paced=question.software and promised < quick.throughput * (1.0 - 100 * TOLERANCE),
        split=quick.split,
        bottleneck=name_of(quick.bottleneck),
        worst_loss=worst,
        after_loss=left,
    )


def _point(question: Question, found: Found) -> Point:
    return Point(found.cost, found.rate, named(question, found.counts))


def traffic_of(question: Question, rate: float) -> Traffic:
    """Return the means of the forecast's traffic at a rate of the classes with a share."""
    scenario = question.scenario
    rates = question.rates(question.cases[0], rate)
    weights = rates / rates.sum() if rates.any() else np.full(len(rates), 1.0 / len(rates))
    parts = [c.workload for c in scenario.classes]

    def mean(of: Callable[[Workload], float]) -> float:
        return float(sum(w * of(part) for w, part in zip(weights, parts, strict=True)))

    hit = mean(lambda w: float(w.hit_tokens.mean()))
    prompt = mean(lambda w: float(w.prompt_tokens.mean()))
    return Traffic(
        llm=scenario.llm.name,
        sources=tuple(part.source for part in parts),
        sessions_per_s=float(
            sum(r * w.session_count / w.turns for r, w in zip(rates, parts, strict=True))
        ),
        requests_per_s=float(rates.sum()),
        prompt_tokens=prompt,
        output_tokens=mean(lambda w: float(w.output_tokens.mean())),
        hit_rate=hit / prompt if prompt else 0.0,
        slo_ttft_s=scenario.slo.ttft_s,
        slo_tpot_s=scenario.slo.tpot_s,
        session_s=mean(lambda w: fleet_simulate.longest_life_s(w, scenario.slo)),
    )


def _notes(
    question: Question, uses: Uses, found: Found, promises: tuple[Promise, ...]
) -> list[str]:
    counts, rate = found.counts, found.rate
    notes = [
        f"{question.kinds[kind].name} cannot do {pool}: {why}"
        for (kind, pool), why in uses.reasons.items()
    ]
    bare = uses if not question.software else uses_of(replace(question, software=False))
    whole = replace(question, margins=(1.0, 1.0))
    off = max(
        abs(p.roofline / (p.asked * served(whole, bare, counts, s, rate)) - 1.0)
        for s, p in enumerate(promises)
    )
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
