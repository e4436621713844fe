"""A sweep from cheap points to costly ones: as many as the time allows, then rounds in random order.

The first pass also warms up; it ends where the rounds that follow would not fit the time any more.
Rounds visit all points in a new random order, so that a drift of the machine shows as spread and not as
bias.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibration.clock import Clock, Repeated, Work
from calibration.rooms import Tell
from dualpath_model.profile import Sample, Setting

ROUNDS = (2, 8)
"""At least and at most, after the pass that warms up; three are planned for."""

_PLANNED_ROUNDS = 3

Parts = list[tuple[float, list[Work]]]
"""(share of the layers, variants of the work) of each kind of layer."""


@dataclass(frozen=True)
class CostedPoint:
    """A point of a sweep: ``cost`` foretells its time, up to a factor; ``make`` prepares its work."""

    at: dict[str, Setting]
    amount: float
    cost: float
    make: Callable[[], Parts]


@dataclass(frozen=True)
class _Ready:
    """A point that is measured, and the repeated work of each kind of layer with its share."""

    point: CostedPoint
    parts: list[tuple[float, Repeated]]

    def seconds(self, clock: Clock) -> float:
        """Time it once: of an average layer, kinds weighted by their share."""
        return sum(
            share * clock.seconds(together) / together.inside for share, together in self.parts
        )


def sweep(
    points: Sequence[CostedPoint],
    clock: Clock,
    *,
    seconds: float,
    least_points: int,
    rng: random.Random,
    tell: Tell,
) -> list[Sample]:
    """Measure as many of ``points`` as fit ``seconds``, cheapest first, in rounds of random order.

    ``least_points`` are measured whatever they take.
    """
    begun = time.perf_counter()

    def spent() -> float:
        return time.perf_counter() - begun

    def told(point: CostedPoint) -> None:
        tell(min(1.0, spent() / seconds), _spell(point))

    ready: list[_Ready] = []
    round_s = expected = 0.0
    rates: list[float] = []
    for point in sorted(points, key=lambda point: point.cost):
        if rates:  # the best of the last three: one may have been disturbed
            expected = min(rates[-3:]) * point.cost
        planned = (round_s + expected) * (1 + _PLANNED_ROUNDS)
        if planned > seconds and len(ready) >= least_points:
            break
        told(point)
        item, took = _warm(point, clock, seconds)
        inside = clock.repeats(took)
        for _, together in item.parts:
            together.inside = inside
        ready.append(item)
        rates.append(took / point.cost)
        round_s += took * inside
    samples: list[Sample] = []
    for turn in range(ROUNDS[1]):
        round_begun = spent()
        if turn >= ROUNDS[0] and round_begun + round_s > seconds:
            break
        for item in rng.sample(ready, len(ready)):
            if turn and spent() > seconds:  # foretold on a quieter machine
                return samples
            told(item.point)
            taken = item.seconds(clock)
            samples.append(Sample(at=dict(item.point.at), seconds=taken, amount=item.point.amount))
        round_s = spent() - round_begun
    return samples


def _warm(point: CostedPoint, clock: Clock, budget_s: float) -> tuple[_Ready, float]:
    """Run a point for the first time; return it and the seconds of one run."""
    item = _Ready(point, [(share, Repeated(variants)) for share, variants in point.make()])
    took = item.seconds(clock)
    if took < 0.01 * budget_s:
        took = min(took, item.seconds(clock))
    return item, took


def _spell(point: CostedPoint) -> str:
    return " ".join(f"{key} {value}" for key, value in point.at.items() if key != "bytes")
