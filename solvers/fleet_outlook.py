"""What lies beyond the forecast: how wrong it may be, what would be bought next, what else was possible.

Break points are of the integer program's own rows on the fleet as it is, margins counted: a factor on
one figure of the forecast at which what is asked is just served within the SLO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model.errors import DualPathError, InfeasibleError, InputError
from dualpath_model.workload import Workload
from solvers.fleet_question import Case, Counts, Question, changed
from solvers.fleet_search import Effort, Found, Tell, best
from solvers.fleet_serve import after, losses, served
from solvers.fleet_spec import CaseSpec
from solvers.fleet_uses import Uses, uses_of

FIGURES = ("rate", "context", "append", "generate", "hit_rate")
_MOST = 16.0
"""Factors are looked for up to this one; nobody's forecast is worse."""
_WIDTH = 2e-3
GROWTH = (1.1, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class Break:
    """By what factor one figure of the forecast may change before the fleet is too small.

    ``figure``: of :data:`FIGURES`; all others are as in the forecast. ``factor``: with all nodes;
    ``after_loss``: after the loss that leaves least (nan: none is to be survived). inf (0 for the hit
    rate): never, as far as was looked; nan: there is none. Below 1 the forecast itself is too much.
    """

    figure: str
    factor: float
    after_loss: float


@dataclass(frozen=True)
class Purchase:
    """Nodes to add to the fleet for ``growth`` times the rate, by kind: prefill and decode.

    None of the fleet's nodes is given back, but one may change its role: then a count is negative.
    ``cost``: USD/h more; inf: no fleet within the limits.
    """

    growth: float
    counts: dict[str, tuple[int, int]]
    cost: float


@dataclass(frozen=True)
class Without:
    """The fleet of least cost without one kind. ``cost`` USD/h, inf where there is none."""

    kind: str
    counts: dict[str, tuple[int, int]]
    cost: float


@dataclass(frozen=True)
class Outlook:
    """What lies beyond the forecast."""

    breaks: tuple[Break, ...]
    purchases: tuple[Purchase, ...]
    without: tuple[Without, ...]


def outlook(
    question: Question,
    uses: Uses,
    found: Found,
    effort: Effort,
    tell: Tell,
    stage: Callable[[float], None],
) -> Outlook:
    """Return the outlook of a fleet. ``stage`` gets the share that is done."""
    breaks = []
    for number, figure in enumerate(FIGURES):
        stage(0.5 * number / len(FIGURES))
        tell(f"how far the {figure.replace('_', ' ')} may be wrong")
        breaks.append(_break(question, found, figure))
    if question.required is None:
        return Outlook(tuple(breaks), (), ())
    stage(0.5)
    tell("what would be bought next")
    purchases = tuple(_purchases(question, uses, found, effort))
    stage(0.8)
    tell("the fleet without one of its kinds")
    return Outlook(tuple(breaks), purchases, tuple(_without(question, uses, found, effort)))


def named(question: Question, counts: Counts) -> dict[str, tuple[int, int]]:
    """Return the counts by the names of the kinds, those that are not zero."""
    return {
        kind.name: (int(row[0]), int(row[1]))
        for kind, row in zip(question.kinds, counts, strict=True)
        if row.any()
    }


# ---- how wrong the forecast may be ---------------------------------------------------------------


def _break(question: Question, found: Found, figure: str) -> Break:
    asked, counts = _of_fleet(question, found.counts)
    whole = [counts]
    lost = [after(counts, loss) for loss in losses(counts, question.limits.survive)]
    return Break(
        figure,
        _factor(asked, found.rate, figure, whole),
        _factor(asked, found.rate, figure, lost) if lost else math.nan,
    )


def _of_fleet(question: Question, counts: Counts) -> tuple[Question, Counts]:
    """Return the question of the forecast alone, with the fleet's kinds alone, and its counts."""
    used = np.flatnonzero(counts.any(axis=1)).tolist()
    kinds = tuple(question.kinds[i] for i in used)
    return replace(question, kinds=kinds, cases=question.cases[:1]), counts[used]


def _factor(question: Question, rate: float, figure: str, fleets: list[Counts]) -> float:
    """Return the factor at which the worst of some fleets just serves the forecast."""

    def least(factor: float) -> float:
        try:
            asked = replace(question, cases=(_changed(question, figure, factor),))
            uses = uses_of(asked)
            return min(served(asked, uses, counts, 0, rate) for counts in fleets)
        except (InfeasibleError, InputError):  # a turn does not fit, or nothing is left to compute
            return 0.0

    if figure == "rate":
        return least(1.0)
    falls = figure == "hit_rate"
    good, bad = (0.0, 1.0) if falls else (_MOST, 1.0)
    if least(1.0) >= 1.0:
        good, bad = bad, good
        if least(max(bad, 1e-6)) >= 1.0:
            return 0.0 if falls else math.inf
    elif falls:
        return math.nan  # no lower hit rate helps
    else:
        good, bad = 1e-3, 1.0
    hits = max(_hit_rate(kind.workload) for kind in question.scenario.classes) if falls else 0.0
    # of what is computed: at 99 % hits a per mille fewer is a tenth more of that
    while abs(good - bad) * (hits or 1.0) > _WIDTH * (
        1.0 - hits * good if falls else max(good, bad)
    ):
        middle = 0.5 * (good + bad) if falls or max(good, bad) < 2.0 else math.sqrt(good * bad)
        good, bad = (middle, bad) if least(middle) >= 1.0 else (good, middle)
    return good


def _hit_rate(workload: Workload) -> float:
    return float(workload.hit_tokens.sum() / workload.prompt_tokens.sum())


def _changed(question: Question, figure: str, factor: float) -> Case:
    forecast = question.cases[0]
    if factor == 1.0:
        return forecast
    return changed(forecast, CaseSpec.model_validate({"name": "changed", figure: factor}))


# ---- what would be bought ------------------------------------------------------------------------


def _purchases(question: Question, uses: Uses, found: Found, effort: Effort) -> Iterator[Purchase]:
    kept = question
    for i, count in enumerate(found.counts.sum(axis=1).tolist()):
        kept = kept.with_kind(i, minimum=max(count, question.kinds[i].minimum))
    for growth in GROWTH:
        asked = replace(
            kept.with_limits(budget=None),
            required=growth * found.rate,
            fixed=growth * question.fixed,
        )
        more = _cheapest(asked, uses, effort)
        if more is None:
            yield Purchase(growth, {}, math.inf)
            continue
        added = named(question, more.counts - found.counts)
        yield Purchase(growth, added, more.cost - found.cost)


def _without(question: Question, uses: Uses, found: Found, effort: Effort) -> Iterator[Without]:
    for i, count in enumerate(found.counts.sum(axis=1).tolist()):
        if not count or question.kinds[i].minimum:
            continue
        asked = question.with_kind(i, maximum=0).with_limits(budget=None)
        other = _cheapest(asked, uses, effort)
        name = question.kinds[i].name
        if other is None:
            yield Without(name, {}, math.inf)
        else:
            yield Without(name, named(question, other.counts), other.cost)


def _cheapest(question: Question, uses: Uses, effort: Effort) -> Found | None:
    try:
        return best(question, uses, effort=effort)
    except DualPathError:  # not found in the time that is given
        return None
