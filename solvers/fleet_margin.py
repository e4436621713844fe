"""How much of the LP's rate is within the SLO, measured for each pool by itself.

TTFT is prefill's to keep and TPOT is decode's, and they leave different shares of a pool's rate: a
forward batch waits for its slowest engine and grows as work waits, while a decode step is close to what
the LP counts. One number for both pools buys the one what the other lacks. So each is measured with so
many nodes of the other that those do not limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.paths import Pool
from solvers import fleet_simulate
from solvers.fleet_parts import NO_LOSS, Loss
from solvers.fleet_question import Case, Question
from solvers.fleet_search import Found
from solvers.fleet_serve import after, losses, served
from solvers.fleet_simulate import Reach, Run, Tried
from solvers.fleet_uses import Uses
from solvers.problem import POOLS

_MOST_ROUNDS = 6
_MOST_TRIED = 40
"""Losses that are simulated one by one; of more, those that leave least."""
_ROOM = 4.0
"""The other pool has so many times the capacity of the one that is measured."""
_STEP, _STRIDE = 0.97, 0.8
"""On a margin where a run fails although the share is enough: a pool alone does not have to wait for
the other one. The factor is how much the run missed the SLO by, between these two.
"""

Margins = tuple[float, float]
"""Of the prefill and of the decode pool."""


@dataclass(frozen=True)
class Simulation:
    """What the simulator says. ``skipped``: why it was not asked, "" if it was.

    ``reach``: the whole fleet under the forecast; ``pools``: each pool where its margin was measured;
    ``margins``: those that were tried, the last ones hold where they were measured. ``losses``: ways
    to lose as many nodes as must be survived; of many, ``tried`` has those that leave least.
    """

    skipped: str
    reach: tuple[Reach, ...] = ()
    tried: tuple[Tried, ...] = ()
    margins: tuple[Margins, ...] = ()
    pools: tuple[Reach, ...] = ()
    losses: int = 0

    @property
    def losses_tried(self) -> int:
        """How many losses were simulated."""
        return sum(1 for one in self.tried if one.loss)

    @property
    def holds(self) -> bool:
        """Whether every run met the SLO."""
        return bool(self.tried) and all(one.holds for one in self.tried)


@dataclass(frozen=True)
class Bench:
    """What simulating a fleet needs. ``find``: the best fleet of a question; ``pieces``: progress."""

    uses: Uses
    run: Run
    find: Callable[[Question], Found]
    pieces: Pieces


class Pieces:
    """Progress in runs and searches: how many come is known only as far as the round goes."""

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        """``tell`` gets the share of all pieces that is done, and what is being done."""
        self._tell, self._begun, self._expected = tell, 0, 1

    def expect(self, more: int) -> None:
        """So many more pieces come after those that have begun."""
        self._expected = max(1, self._begun + more)

    def begin(self, words: str = "") -> Callable[[float, str], None]:
        """Begin a piece; what is returned gets its own share and what is being done."""
        before, self._begun = self._begun, self._begun + 1

        def tell(done: float, text: str) -> None:
            self._tell(min(1.0, (before + done) / self._expected), words + text)

        return tell


def simulated(question: Question, found: Found, bench: Bench) -> tuple[Question, Found, Simulation]:
    """Simulate the fleet; where the margins are to be measured, find fleets until one holds.

    Raises InputError where they are to be measured and the fleet cannot be simulated,
    InfeasibleError where no margins are found that the simulator agrees with.
    """
    margins, pools = [question.margins], list[Reach]()
    for number in range(_MOST_ROUNDS):
        skipped = fleet_simulate.cannot(question, found.counts, found.rate, bench.run)
        if skipped is not None:
            if question.measured:
                raise InputError(f"margin is 'simulated', but {skipped}; give it as a number")
            return question, found, Simulation(skipped, margins=tuple(margins))
        first = question.measured and number == 0  # with the whole LP as margin: it surely fails
        bench.pieces.expect(_expected(question, found) + len(POOLS) * first)
        tried = [] if first else _tried(question, found, bench)
        failed = [(case, loss) for case, loss, one in tried if not one.holds]
        if not first and not (question.measured and failed):
            whole = _whole(question, found, bench)
            results = tuple(one for _, _, one in tried)
            ways = _ways(question, found)
            told = Simulation("", (whole,), results, tuple(margins), tuple(pools), ways)
            return question, found, told
        case, loss = failed[0] if failed else (question.cases[0], NO_LOSS)
        measured = [_pool(question, found, case, loss, pool, bench) for pool in POOLS]
        pools = pools if failed else measured
        missed = next((one for _, _, one in tried if not one.holds), None)
        question = replace(question, margins=_lower(question, missed, measured))
        margins.append(question.margins)
        found = bench.find(question)
    words = ", ".join(f"{margin:.2f}" for margin in margins[-1])
    raise InfeasibleError(
        f"no margins were found with which the simulator agrees, in {_MOST_ROUNDS} rounds down to "
        f"{words} (prefill, decode); simulate longer, or give margin as a number"
    )


def _expected(question: Question, found: Found) -> int:
    """Return the pieces of one round: a run of each case and loss, and the search on the whole fleet."""
    return len(question.cases) + min(_ways(question, found), _MOST_TRIED) + 1


def _ways(question: Question, found: Found) -> int:
    return sum(1 for _ in losses(found.counts, question.limits.survive))


def _lower(question: Question, missed: Tried | None, measured: list[Reach]) -> Margins:
    """Return the margins after a measurement: the shares that were found, none above what it was."""
    shares = [min(m, one.share) for m, one in zip(question.margins, measured, strict=True)]
    if missed is None:
        return shares[0], shares[1]
    slo = question.scenario.slo
    kept = _part(slo.ttft_s, missed.ttft_s), _part(slo.tpot_s, missed.tpot_s)
    if all(new > _STEP * old for new, old in zip(shares, question.margins, strict=True)):
        shares = [
            min(new, old * min(_STEP, max(_STRIDE, part)) if part < 1.0 else old)
            for new, old, part in zip(shares, question.margins, kept, strict=True)
        ]
    return shares[0], shares[1]


def _part(allowed_s: float, took_s: float) -> float:
    """Return the part of a latency that is allowed: below 1 where it was missed."""
    return allowed_s / took_s if took_s > 0 else math.inf  # no TPOT where no turn has a third token


def _pool(
    question: Question, found: Found, case: Case, loss: Loss, pool: Pool, bench: Bench
) -> Reach:
    """Measure what one pool reaches within the SLO, with enough nodes in the other one."""
    left, s = after(found.counts, loss), question.cases.index(case)
    whole = replace(question, margins=(1.0, 1.0))
    own, other = (
        served(whole, bench.uses, left, s, found.rate, alone=p)
        for p in (pool, POOLS[1 - POOLS.index(pool)])
    )
    if not (math.isfinite(own) and own > 0 and other > 0):
        raise InfeasibleError(
            f"the margin of the {pool} pool cannot be measured in '{case.name}': nothing of it limits "
            f"the rate; give margin as a number"
        )
    counts = left.copy()
    counts[:, 1 - POOLS.index(pool)] *= max(1, math.ceil(_ROOM * own / other))
    promised = own * float(question.rates(case, found.rate).sum())
    tell = bench.pieces.begin(f"what {pool} nodes can do, ")
    reached = fleet_simulate.reach(
        question, case, counts, NO_LOSS, found.rate, promised, bench.run, tell
    )
    return replace(reached, loss=fleet_simulate.words(question, loss), pool=str(pool))


def _whole(question: Question, found: Found, bench: Bench) -> Reach:
    """Measure what the whole fleet reaches under the forecast, beside the LP's promise."""
    whole = replace(question, margins=(1.0, 1.0))
    factor = served(whole, bench.uses, found.counts, 0, found.rate)
    case = question.cases[0]
    promised = factor * float(question.rates(case, found.rate).sum())
    return fleet_simulate.reach(
        question, case, found.counts, NO_LOSS, found.rate, promised, bench.run, bench.pieces.begin()
    )


def _tried(question: Question, found: Found, bench: Bench) -> list[tuple[Case, Loss, Tried]]:
    """Simulate every case with all nodes, and the hardest case after each loss, or the worst losses."""
    rows = [(case, NO_LOSS) for case in question.cases]
    ways = []
    for loss in losses(found.counts, question.limits.survive):
        left = after(found.counts, loss)
        factors = [
            served(question, bench.uses, left, s, found.rate) for s in range(len(question.cases))
        ]
        ways.append((min(factors), factors.index(min(factors)), loss))
    rows += [(question.cases[s], loss) for _, s, loss in sorted(ways)[:_MOST_TRIED]]
    return [
        (
            case,
            loss,
            fleet_simulate.attempt(
                question, case, found.counts, loss, found.rate, bench.run, bench.pieces.begin()
            ),
        )
        for case, loss in rows
    ]
