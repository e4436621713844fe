"""The best fleet for a question: the integer program, with losses of nodes added as they matter.

There are many ways to lose k nodes, and few of them decide. So the program starts with none, and every
loss that its answer does not survive (a small LP for each, :mod:`solvers.fleet_serve`) is added with
flows of its own, until the answer survives them all. It is then the best of the whole program: what
was left out holds without being asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model.errors import DualPathError
from solvers.fleet_parts import NO_LOSS, Answer, Goal, Loss, Wish
from solvers.fleet_program import rate_unit, solve
from solvers.fleet_question import Counts, Question
from solvers.fleet_serve import after, losses, served
from solvers.fleet_uses import Uses

TOLERANCE = 1e-6
"""Share of the rate by which rounding in the solver may miss it."""
_LEAST_RATE = 1e-5
"""Of what one node serves: less is rounding, and no rate."""
_ENOUGH = 1 << 24
_MOST_ROUNDS = 200
_DISAGREE = 1e-3
"""What the program may promise beyond the LP after a loss, by the solvers' tolerances."""
_AT_ONCE = 3
"""Losses added in a round: each has flows of its own, and the worst often stand for the others."""

Tell = Callable[[str], None]
"""Gets what is being done; may raise KeyboardInterrupt."""


@dataclass(frozen=True)
class Effort:
    """``gap``: relative distance to the best that is good enough; ``time_s``: of one solve."""

    gap: float = 1e-4
    time_s: float = 120.0


@dataclass(frozen=True)
class Found:
    """A fleet. ``cost`` USD/h; ``rate``: requests/s of the classes with a share, before growth;
    ``gap``: how far it may be from the best, relative; ``losses``: those that decided.
    """

    counts: Counts
    cost: float
    rate: float
    gap: float
    losses: tuple[tuple[int, Loss], ...]


def nothing(text: str) -> None:
    """Tell nobody."""


def best(
    question: Question,
    uses: Uses,
    *,
    effort: Effort | None = None,
    goal: Goal | None = None,
    tell: Tell = nothing,
) -> Found | None:
    """Return the fleet of least cost for the required rate, or of the most rate for the budget.

    None where there is none, or none that serves any rate where the most is asked for. ``goal``:
    MOST_RATE where a rate is required asks for as much of it as is possible.
    Raises InputError if nothing bounds the answer.
    """
    effort = effort or Effort()
    if goal is not Goal.MOST_RATE and question.required is not None:
        return _least_cost(question, uses, question.required, effort, tell)
    return _most_rate(question, uses, effort, tell)


def _least_cost(
    question: Question, uses: Uses, rate: float, effort: Effort, tell: Tell
) -> Found | None:
    wish = Wish(
        Goal.LEAST_COST,
        rate,
        question.limits.budget,
        _start(question),
        gap=effort.gap,
        time_s=effort.time_s,
    )
    wish = replace(wish, floor=_floor(question, uses, wish))
    answer, wish = _surviving(question, uses, wish, tell)
    if answer is None:
        return None
    cost = question.cost(answer.counts)
    gap = _gap(cost, answer.bound)
    if any(kind.owned for kind in question.kinds) and effort.gap < 1e-3:
        # Idle nodes that cost nothing are no part of an answer.
        fewer = replace(wish, goal=Goal.FEWEST_NODES, cost=cost * (1 + 1e-9) + 1e-9)
        fewest, wish = _surviving(question, uses, fewer, tell)
        answer = fewest or answer
    return Found(answer.counts, question.cost(answer.counts), rate, gap, _decided(wish))


def _most_rate(question: Question, uses: Uses, effort: Effort, tell: Tell) -> Found | None:
    wish = Wish(
        Goal.MOST_RATE,
        None,
        question.limits.budget,
        _start(question),
        gap=effort.gap,
        time_s=effort.time_s,
        ceiling=question.required,
    )
    answer, wish = _surviving(question, uses, wish, tell)
    if answer is None or answer.value < least_rate(question, uses):
        return None
    gap = _gap(answer.value, answer.bound)
    rate = answer.value * (1.0 - 1e-9)
    cheaper = replace(
        question,
        required=rate,
        limits=replace(question.limits, budget=question.cost(answer.counts)),
    )
    least = _least_cost(cheaper, uses, rate, effort, tell)
    if least is not None:
        return replace(least, gap=gap)
    return Found(answer.counts, question.cost(answer.counts), rate, gap, _decided(wish))


def least_rate(question: Question, uses: Uses) -> float:
    """Return the requests/s from which on the most rate is one, and not the solver's rounding."""
    return _LEAST_RATE * rate_unit(question, uses, None)


def _start(question: Question) -> tuple[tuple[int, Loss], ...]:
    return tuple((case, NO_LOSS) for case in range(len(question.cases)))


def _decided(wish: Wish) -> tuple[tuple[int, Loss], ...]:
    return tuple(row for row in wish.rows if row[1])


def _gap(value: float, bound: float) -> float:
    if not math.isfinite(bound) or value == 0:
        return 0.0 if value == 0 else math.inf
    return max(0.0, abs(value - bound) / abs(value))


def _floor(question: Question, uses: Uses, wish: Wish) -> tuple[int, int]:
    """Return GPUs that each pool has in any answer, by the program without whole numbers."""
    found = []
    for pool in (0, 1):
        least = solve(
            question,
            uses,
            replace(wish, goal=Goal.FEWEST_GPUS, pool=pool, relaxed=True, floor=(_ENOUGH, _ENOUGH)),
        )
        found.append(0 if least.status != "optimal" else math.ceil(least.value - 1e-6))
    return found[0], found[1]


def _surviving(
    question: Question, uses: Uses, wish: Wish, tell: Tell
) -> tuple[Answer | None, Wish]:
    """Solve, add what the answer does not survive, and solve again. None: infeasible."""
    for _ in range(_MOST_ROUNDS):
        added = len(wish.rows) - len(question.cases)
        tell(f"{wish.goal}, {added} losses of nodes" if added else str(wish.goal))
        answer = solve(question, uses, wish)
        if answer.status == "infeasible":
            return None, wish
        rate = wish.rate or 0.0
        if wish.goal is Goal.MOST_RATE and answer.value >= least_rate(question, uses):
            rate = answer.value
        found = _not_survived(question, uses, answer.counts, rate)
        missing = [row for _, row in found if row not in wish.rows]
        if not missing:
            if found and found[0][0] < 1.0 - _DISAGREE:
                raise DualPathError(
                    f"after a loss that the program counts as survived the LP serves "
                    f"{found[0][0]:.1%} of the rate; this is a mistake of ours: report it with the file"
                )
            return answer, wish
        wish = replace(wish, rows=(*wish.rows, *missing))
    raise DualPathError(
        f"after {_MOST_ROUNDS} rounds there are still losses of nodes that the fleet does not survive; "
        f"lower limits.survive"
    )


def _not_survived(
    question: Question, uses: Uses, counts: Counts, rate: float
) -> list[tuple[float, tuple[int, Loss]]]:
    """Return the losses that are survived least, what is served of the rate, and the worst case."""
    found: list[tuple[float, tuple[int, Loss]]] = []
    for loss in losses(counts, question.limits.survive):
        left = after(counts, loss)
        factors = [served(question, uses, left, s, rate) for s in range(len(question.cases))]
        if min(factors) < 1.0 - TOLERANCE:
            found.append((min(factors), (int(np.argmin(factors)), loss)))
    return sorted(found)[:_AT_ONCE]
