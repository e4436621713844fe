"""What decides a fleet: each requirement a little looser, or gone, and the answer found anew.

Only a required rate is raised in place of lowered: what a little more of it costs is what is asked.

Integer programs have no dual values, so the price of a limit is what one more of it changes, by
solving again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dualpath_model.errors import DualPathError
from solvers.fleet_conflicts import requirements, without_case
from solvers.fleet_parts import Goal
from solvers.fleet_question import Question
from solvers.fleet_search import Effort, Found, Tell, best
from solvers.fleet_uses import Uses


@dataclass(frozen=True)
class Worth:
    """What a change is worth: USD/h saved at the same rate, or requests/s gained for the budget.

    ``what``: "requirement", "one more" or "forecast". None: not found in the time given.
    """

    what: str
    change: str
    worth: float | None
    binding: bool


_Change = tuple[str, str, Question, Uses]
"""What it is ("requirement", "forecast", "one more"), in words, and the question with it."""


def explain(
    question: Question,
    uses: Uses,
    found: Found,
    effort: Effort,
    tell: Tell,
    stage: Callable[[float], None],
) -> list[Worth]:
    """Return the worth of every requirement that could be looser, of 1 % more required rate, and of one
    more node of each kind.

    ``stage`` gets the share that is done. Below the gap of the two solutions a difference is rounding
    and not binding.
    """
    least = question.required is not None
    totals = found.counts.sum(axis=1).tolist()
    changes: list[_Change] = [
        *_of_fleet(question, uses),
        *_of_kinds(question, uses, totals),
        *_of_forecast(question, uses),
        *_one_more(question, uses),
    ]
    result = []
    for number, (what, change, asked, others) in enumerate(changes):
        stage(number / len(changes))
        tell(f"worth of {change}")
        worth: float | None = None
        try:
            other = best(asked, others, effort=effort)
        except DualPathError:  # without this limit nothing bounds the answer
            other = None
        if other is not None:
            worth = found.cost - other.cost if least else other.rate - found.rate
        size = found.cost if least else found.rate
        noise = max(2e-9, found.gap + (0.0 if other is None else other.gap)) * size
        binding = worth is not None and abs(worth) > noise
        result.append(Worth(what, change, worth if binding or worth is None else 0.0, binding))
    return result


def _of_fleet(question: Question, uses: Uses) -> Iterator[_Change]:
    limits = question.limits
    if question.required:
        more = replace(question.with_limits(budget=None), required=1.01 * question.required)
        yield "requirement", "1 % more required rate", more, uses
    elif limits.budget is not None:
        rich = question.with_limits(budget=1.01 * limits.budget)
        yield "requirement", "1 % more budget", rich, uses
    if limits.power_kw is not None:
        step = max(kind.power_kw or 0.0 for kind in question.kinds)
        words = f"{step:g} kW more power (one node of the hungriest kind)"
        yield "requirement", words, question.with_limits(power_kw=limits.power_kw + step), uses
    for field, words in (("racks", "one more rack"), ("nodes", "one more node allowed")):
        now = getattr(limits, field)
        if now is not None:
            yield "requirement", words, question.with_limits(**{field: now + 1}), uses
    if limits.kinds is not None and limits.kinds < len(question.kinds):
        yield "requirement", "one more kind", question.with_limits(kinds=limits.kinds + 1), uses
    if limits.kinds_per_role is not None and limits.kinds_per_role < len(question.kinds):
        more_kinds = question.with_limits(kinds_per_role=limits.kinds_per_role + 1)
        yield "requirement", "one more kind in a role", more_kinds, uses
    places = {kind.place for kind in question.kinds} - {None}
    if limits.places is not None and limits.places < len(places):
        yield "requirement", "one more place", question.with_limits(places=limits.places + 1), uses
    if limits.survive:
        words = f"survive {limits.survive - 1} lost nodes instead of {limits.survive}"
        yield "requirement", words, question.with_limits(survive=limits.survive - 1), uses
    if min(question.margins) < 1.0:
        whole = replace(question, margins=(1.0, 1.0))
        yield "requirement", "no margin (all of the LP's rate)", whole, uses


def _of_kinds(question: Question, uses: Uses, totals: list[int]) -> Iterator[_Change]:
    for i, (kind, count) in enumerate(zip(question.kinds, totals, strict=True)):
        if kind.maximum is not None and count >= kind.maximum > 0:
            more = question.with_kind(i, maximum=kind.maximum + 1)
            yield "requirement", f"one more {kind.name} allowed", more, uses
        if kind.minimum and count <= kind.minimum:
            less = question.with_kind(i, minimum=kind.minimum - 1)
            yield "requirement", f"one {kind.name} less prescribed", less, uses
    for one in requirements(question, uses):
        if one.words in [f"the {name} rate" for name in uses.shared_names]:
            yield "requirement", f"no limit of {one.words}", *one.drop(question, uses)


def _of_forecast(question: Question, uses: Uses) -> Iterator[_Change]:
    for case in question.cases[1:]:
        asked = without_case(question, uses, case.name)
        yield "forecast", f"without scenario '{case.name}'", *asked


def _one_more(question: Question, uses: Uses) -> Iterator[_Change]:
    for i, kind in enumerate(question.kinds):
        if any(uses.can(i, pool) for pool in kind.roles):
            maximum = None if kind.maximum is None else kind.maximum + 1
            given = question.with_kind(i, owned=kind.owned + 1, maximum=maximum)
            yield "one more", f"one more {kind.name} owned", given, uses


def front(
    question: Question,
    uses: Uses,
    found: Found,
    points: int,
    effort: Effort,
    tell: Tell,
    stage: Callable[[float], None],
) -> list[Found]:
    """Return fleets of which none is both cheaper and larger, from a quarter to twice the rate.

    Each is the least cost for a rate, and then the most rate for that cost.
    """
    result: list[Found] = []
    for number in range(points):
        rate = found.rate * (0.25 + 1.75 * number / max(1, points - 1))
        if result and rate <= result[-1].rate:
            continue  # the last point serves it at its cost
        stage(number / points)
        tell(f"cost against capacity, {number + 1} of {points}")
        asked = replace(question.with_limits(budget=None), required=rate)
        cheapest = best(asked, uses, effort=effort)
        if cheapest is None:
            break
        try:
            money = replace(question.with_limits(budget=cheapest.cost), required=None)
            most = best(money, uses, goal=Goal.MOST_RATE, effort=effort)
        except DualPathError:  # nodes that cost nothing bound no rate
            most = None
        best_of_both = most if most is not None and most.rate >= cheapest.rate else cheapest
        result = [f for f in result if f.cost < best_of_both.cost - 1e-9]
        result.append(best_of_both)
    return result
