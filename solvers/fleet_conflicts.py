"""Why there is no fleet: the smallest set of requirements that contradict each other.

Requirements are taken away one after the other (a deletion filter): one without which there is still
no fleet is no part of the conflict. What is left cannot be made smaller; smaller sets elsewhere are
looked for as far as :data:`_MOST_TRIED` goes. The pattern is that of :mod:`solvers.conflicts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from dualpath_model.errors import DualPathError
from solvers.fleet_parts import Goal
from solvers.fleet_question import Question, margin_words
from solvers.fleet_search import Effort, Tell, best, least_rate, nothing
from solvers.fleet_uses import Uses

_ANY = Effort(gap=1e6, time_s=20.0)  # the first fleet that is found is enough
_MOST_TRIED = 150
_COUNTED = 3
"""Larger sets than this are not looked for among all."""

Asked = tuple[Question, Uses]


@dataclass(frozen=True)
class Requirement:
    """A requirement in words, and how to do without it."""

    words: str
    drop: Callable[[Question, Uses], Asked]
    case: int | None = None


def requirements(question: Question, uses: Uses) -> list[Requirement]:
    """Return all that is required, what people would give up first in front."""
    return [*_safety(question), *_of_kinds(question, uses), *_of_fleet(question)]


def _safety(question: Question) -> Iterator[Requirement]:
    for s, case in enumerate(question.cases[1:], start=1):
        yield Requirement(f"scenario '{case.name}'", _without_case(case.name), s)
    if min(question.margins) < 1.0:
        words = f"margin {margin_words(question.margins)}"
        yield Requirement(words, lambda q, u: (replace(q, margins=(1.0, 1.0)), u))
    lost = question.limits.survive
    if lost:
        words = f"the loss of any {lost} node{'s' * (lost > 1)} (limits.survive)"
        yield Requirement(words, lambda q, u: (q.with_limits(survive=0), u))


def _of_kinds(question: Question, uses: Uses) -> Iterator[Requirement]:
    for i, kind in enumerate(question.kinds):
        if kind.minimum:
            yield Requirement(f"at least {kind.minimum} of {kind.name}", _kind(i, "minimum"))
    for name in uses.shared_names:
        yield Requirement(f"the {name} rate", _without_shared(name))
    for i, kind in enumerate(question.kinds):
        if kind.maximum is not None:
            yield Requirement(f"at most {kind.maximum} of {kind.name}", _kind(i, "maximum"))


def _of_fleet(question: Question) -> Iterator[Requirement]:
    limits = question.limits
    for field, words in (
        ("kinds", f"at most {limits.kinds} kind{'s' * (limits.kinds != 1)} (limits.kinds)"),
        (
            "kinds_per_role",
            f"at most {limits.kinds_per_role} kind{'s' * (limits.kinds_per_role != 1)} in a role "
            f"(limits.kinds_per_role)",
        ),
        ("places", f"kinds of {limits.places} place{'s' * (limits.places != 1)} (limits.places)"),
        ("racks", f"{limits.racks} racks (limits.racks)"),
        ("nodes", f"{limits.nodes} nodes (limits.nodes)"),
        ("power_kw", f"{limits.power_kw} kW (limits.power_kw)"),
        ("budget", f"{limits.budget} USD/h (limits.budget_usd_per_hour)"),
    ):
        if field == "places" and len({kind.place for kind in question.kinds} - {None}) < 2:
            continue
        if getattr(limits, field) is not None:
            yield Requirement(words, _without_limit(field))
    for k, rate in enumerate(question.fixed.tolist()):
        if rate:
            name = question.scenario.classes[k].name
            yield Requirement(f"{rate:,.4g} requests/s of '{name}'", _without_fixed(k))
    if question.required is None or question.required > 0:
        words = "any rate at all"
        if question.required is not None:
            words = f"{question.required:,.4g} requests/s (require)"
        yield Requirement(words, lambda q, u: (replace(q, required=0.0), u))


def explain(question: Question, uses: Uses, tell: Tell = nothing) -> str:
    """Return one sentence: what contradicts what, and what would be possible."""
    everything = requirements(question, uses)
    if question.required is None:
        # The least rate that is one: unlike the most rate, its cost is bounded without a budget.
        question = replace(question, required=least_rate(question, uses))
    kept = smallest(question, uses, everything, tell)
    if not kept:
        return "there is no fleet, and the solver cannot say why; relax a limit"
    words = [r.words for r in kept]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    together = "cannot be met" if len(words) == 1 else "cannot be met together"
    return f"no fleet: {listed} {together}{_possible(question, uses, everything, kept)}"


def smallest(
    question: Question, uses: Uses, everything: Sequence[Requirement], tell: Tell = nothing
) -> list[Requirement]:
    """Return the smallest conflict that is found; empty if all can be met after all."""

    def impossible(kept: Sequence[Requirement]) -> bool:
        tell(f"looking for what conflicts, {len(kept)} requirements")
        q, u = _only(question, uses, everything, kept)
        try:
            return best(q, u, effort=_ANY) is None
        except DualPathError:  # unbounded, or no answer in time: no proof of a conflict
            return False

    if not impossible(everything):
        return []
    kept = list(everything)
    for one in everything:
        fewer = [r for r in kept if r is not one]
        if impossible(fewer):
            kept = fewer
    tried = 0
    for size in range(1, min(len(kept), _COUNTED + 1)):
        for some in combinations(reversed(everything), size):
            tried += 1
            if tried > _MOST_TRIED:
                return kept
            if impossible(some):
                return list(some)[::-1]
    return kept


def _only(
    question: Question, uses: Uses, everything: Sequence[Requirement], kept: Sequence[Requirement]
) -> Asked:
    asked = question, uses
    for one in everything:
        if not any(one is r for r in kept):
            asked = one.drop(*asked)
    return asked


def _possible(
    question: Question,
    uses: Uses,
    everything: Sequence[Requirement],
    kept: Sequence[Requirement],
) -> str:
    """Say what rate would be possible with the other requirements of the conflict."""
    rest = [r for r in kept if "(require)" not in r.words]
    if len(rest) == len(kept):
        return "; give up or relax one of them"
    asked = _only(question, uses, everything, kept)
    try:
        most = best(*asked, goal=Goal.MOST_RATE, effort=_NEAR)
    except DualPathError:
        return "; give up or relax one of them"
    if most is None:
        return "; give up or relax one of them (without the last, no rate at all is possible)"
    return (
        f"; give up or relax one of them (without the last, up to {_down(most.rate):,} requests/s are "
        f"possible)"
    )


_NEAR = Effort(gap=1e-3, time_s=30.0)


def _down(rate: float) -> float:
    """Round to four digits, downwards."""
    if rate <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(rate)) - 3)
    return float(f"{math.floor(rate / unit) * unit:.4g}")


# ---- doing without -------------------------------------------------------------------------------


def without_case(question: Question, uses: Uses, name: str) -> Asked:
    """Return question and uses without one case."""
    s = [case.name for case in question.cases].index(name)
    options = tuple(replace(o, use=np.delete(o.use, s, axis=0)) for o in uses.options)
    cases = tuple(case for case in question.cases if case.name != name)
    shared = np.delete(uses.shared, s, axis=0)
    return replace(question, cases=cases), replace(uses, options=options, shared=shared)


def _without_case(name: str) -> Callable[[Question, Uses], Asked]:
    return lambda q, u: without_case(q, u, name)


def _without_limit(field: str) -> Callable[[Question, Uses], Asked]:
    return lambda q, u: (q.with_limits(**{field: None}), u)


def _without_fixed(k: int) -> Callable[[Question, Uses], Asked]:
    def drop(question: Question, uses: Uses) -> Asked:
        fixed = question.fixed.copy()
        fixed[k] = 0.0
        return replace(question, fixed=fixed), uses

    return drop


def _without_shared(name: str) -> Callable[[Question, Uses], Asked]:
    def drop(question: Question, uses: Uses) -> Asked:
        row = uses.shared_names.index(name)
        names = tuple(n for n in uses.shared_names if n != name)
        shared = np.delete(uses.shared, row, axis=1)
        return question, replace(uses, shared=shared, shared_names=names)

    return drop


def _kind(index: int, field: str) -> Callable[[Question, Uses], Asked]:
    none = 0 if field == "minimum" else None
    return lambda q, u: (q.with_kind(index, **{field: none}), u)
