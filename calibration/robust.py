"""Robust least squares of laws whose seconds are a sum of parts that are not negative, and resamples.

``seconds = columns @ parts``, fitted to the logarithms of the seconds with Cauchy's loss; a wild
bootstrap refits each resample, all of them at once. :mod:`calibration.fit` says what the laws are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

INVISIBLE = 1e-3
"""A part below this share of any sample's seconds cannot be told from none."""
SEED = 20260713
TAIL = 0.025
_NO_WORSE = 1.05
"""By how much Cauchy's loss may be more for a law to stay plausible: 6 squared deviations."""
_LARGEST = 1e9
"""Of a part in the scale of :class:`Problem`, where 1 is all of a sample: keeps a stray step finite."""
_CAUCHY = 2.385
"""Width of Cauchy's loss in standard deviations: 95 % as efficient as least squares on normal errors."""
_WITHIN = 0.6827
"""Share of normal errors within one standard deviation."""
_LEAST_SPREAD = 1e-7
"""Of log seconds: samples without noise (made, not measured) must not divide by 0."""


# The problem: each part counted in its largest share of a sample.


@dataclass(frozen=True)
class Problem:
    """``seconds`` [n] and what a unit of each part takes in each sample, ``columns`` [n, p]."""

    seconds: Floats
    columns: Floats

    @property
    def scale(self) -> Floats:
        """The largest share of a sample's seconds that one unit of each part makes, [p]."""
        shares: Floats = np.max(self.columns / self.seconds[:, None], axis=0)
        return shares

    @property
    def scaled(self) -> Floats:
        """Columns such that a part of 1 is all of the sample that it matters to most."""
        scaled: Floats = self.columns / self.scale
        return scaled


@dataclass(frozen=True)
class Law:
    """One explanation of the samples, by parts [resamples, p] in the problem's scale."""

    slopes: Callable[[Floats], Floats]
    """Seconds of a unit of each part at given parts, [resamples or 1, n, p]; their sum is the law."""
    complete: Callable[[Floats], tuple[Floats, Bools]]
    """Fill in the parts that the explanation leaves out, and tell which are seen."""
    start: Floats
    free: tuple[bool, ...]


@dataclass(frozen=True)
class Found:
    """``parts`` and whether each is ``seen``: [1 + resamples, p], the best fit first, in SI."""

    parts: Floats
    seen: Bools
    residual: Floats
    """Of log seconds, [n]: measured minus fitted."""
    laws: int
    """How many laws explain the samples about as well; each has its share of the resamples."""


def _visible(parts: Floats) -> tuple[Floats, Bools]:
    return parts, parts > 1.01 * INVISIBLE


def _linear_start(columns: Floats, seconds: Floats, free: tuple[bool, ...]) -> Floats:
    """Least squares of relative errors, never negative."""
    from scipy.optimize import nnls

    weighted = columns / seconds[:, None]
    start = np.full(columns.shape[1], INVISIBLE)
    start[list(free)] = nnls(weighted[:, list(free)], np.ones(len(seconds)))[0]
    kept: Floats = np.maximum(start, INVISIBLE)
    return kept


def sum_of_parts(problem: Problem, free: tuple[bool, ...]) -> Law:
    """Return the law that all parts add up; parts that are not ``free`` stay invisible."""
    columns = problem.scaled
    start = _linear_start(columns, problem.seconds, free)
    return Law(lambda parts: columns[None], _visible, start, free)


def roofs(problem: Problem, fixed: bool, bends: Floats) -> list[Law]:
    """Bytes limit all samples; arithmetic does; or each limits some. The simplest first.

    ``bends``: the distinct directions (bytes, FLOP) of samples; the roof bends between two of them.
    """
    columns = problem.scaled
    ones, moved, flop = columns.T

    def only(limiting: int, other: int) -> Law:
        kept = columns.copy()
        kept[:, other] = 0.0
        counted = columns[:, other] > 0

        def complete(parts: Floats) -> tuple[Floats, Bools]:
            seen = _visible(parts)[1]
            # The slowest that the other can be without limiting a sample.
            edge = parts[:, [limiting]] * (
                columns[counted, limiting] / columns[counted, other]
            ).min(initial=np.inf)
            filled = parts.copy()
            filled[:, other] = np.maximum(edge[:, 0], INVISIBLE)
            seen[:, other] = False
            return filled, seen

        free = (fixed, limiting == 1, limiting == 2)
        return Law(
            lambda parts: kept[None],
            complete,
            _linear_start(kept, problem.seconds, free),
            free,
        )

    def split(parts: Floats) -> Floats:
        by_bytes = parts[:, [1]] * moved >= parts[:, [2]] * flop
        return np.stack(
            [np.broadcast_to(ones, by_bytes.shape), moved * by_bytes, flop * ~by_bytes], axis=-1
        )

    laws = [only(1, 2), only(2, 1)]
    if fixed and len(bends) > 1:
        angle = np.arctan2(flop, moved)
        starts = []
        middles = 0.5 * (bends[1:] + bends[:-1])
        for middle in middles[:: max(1, len(middles) // 24)]:
            below = angle < middle
            cut = np.column_stack([ones, moved * below, flop * ~below])
            starts.append(_linear_start(cut, problem.seconds, (True, True, True)))
        log_seconds = np.log(problem.seconds)[None]
        misses = [np.abs(log_seconds - np.log(split(s[None]) @ s)).sum() for s in starts]
        start = starts[int(np.argmin(misses))]
        laws.append(Law(split, _visible, start, (True, True, True)))
    return laws


# The solution: robust, and again for every resample.


def solve(problem: Problem, laws: Sequence[Law]) -> Found:
    """Fit the laws, and again to a bootstrap's redrawn samples."""
    log_seconds = np.log(problem.seconds)
    started = [replace(law, start=_soft_start(law, log_seconds)) for law in laws]
    misses = [log_seconds - _log_sums(law, law.start[None])[0] for law in started]
    free = max(sum(law.free) for law in laws)
    rough = min(misses, key=lambda miss: float(np.abs(miss).sum()))
    width = _CAUCHY * spread(rough, len(rough) - free)

    each = [_descend(law, log_seconds[None], width, tolerance=1e-10) for law in started]
    begun = [replace(law, start=parts[0]) for law, (parts, _) in zip(started, each, strict=True)]
    best, best_seen, taken = _explained(begun, log_seconds[None], width)
    fitted = _log_sums(begun[taken[0]], best)[0]
    parts, seen = [best], [best_seen]
    least = min(float(loss[0]) for _, loss in each)
    plausible = [
        law for law, (_, loss) in zip(begun, each, strict=True) if loss[0] < least + _NO_WORSE
    ]
    if len(log_seconds) > free:
        for law in plausible:
            centre = _log_sums(law, law.start[None])[0]
            drawn, factor = _redrawn(problem, law, log_seconds - centre, width)
            again, again_seen, _ = _explained(begun, centre + drawn, width * factor)
            parts.append(again)
            seen.append(again_seen)
    return Found(
        np.vstack(parts) / problem.scale, np.vstack(seen), log_seconds - fitted, len(plausible)
    )


def _log_sums(law: Law, parts: Floats) -> Floats:
    slopes = law.slopes(parts)
    total = slopes[..., 0] * parts[:, [0]]
    for part in range(1, parts.shape[1]):
        total = total + slopes[..., part] * parts[:, [part]]
    return np.log(total)


def _soft_start(law: Law, log_seconds: Floats) -> Floats:
    """Fit with soft L1 loss, which needs no spread known: where to begin, and what spread there is."""
    from scipy.optimize import least_squares

    free = np.flatnonzero(law.free)

    def parts(logs: Floats) -> Floats:
        found = law.start.copy()
        found[free] = np.exp(logs)
        return found

    def miss(logs: Floats) -> Floats:
        misses: Floats = _log_sums(law, parts(logs)[None])[0] - log_seconds
        return misses

    def slope(logs: Floats) -> Floats:
        at = parts(logs)
        shares: Floats = law.slopes(at[None])[0] * at
        relative: Floats = (shares / shares.sum(axis=1, keepdims=True))[:, free]
        return relative

    lowest = np.full(len(free), math.log(INVISIBLE) - 1e-9)
    highest = math.log(_LARGEST)
    found = least_squares(
        miss,
        np.maximum(np.log(law.start[free]), lowest + 1e-6),
        slope,
        bounds=(lowest, highest),
        loss="soft_l1",
        f_scale=0.03,
    )
    best: Floats = np.maximum(parts(found.x), INVISIBLE)
    return best


def _explained(
    laws: Sequence[Law], log_seconds: Floats, width: float
) -> tuple[Floats, Bools, npt.NDArray[np.int64]]:
    """Return parts, which are seen, and the law taken, of each row: a later law must fit better."""
    found, loss = _descend(laws[0], log_seconds, width)
    parts, seen = laws[0].complete(found)
    taken = np.zeros(len(log_seconds), dtype=np.int64)
    for index, law in enumerate(laws[1:], start=1):
        found, other = _descend(law, log_seconds, width)
        filled, visible = law.complete(found)
        better = other < loss * (1.0 - 1e-6)
        parts[better], seen[better], taken[better] = filled[better], visible[better], index
        loss = np.minimum(loss, other)
    return parts, seen, taken


def _descend(
    law: Law, log_seconds: Floats, width: float, tolerance: float = 1e-5
) -> tuple[Floats, Floats]:
    """Minimise Cauchy's loss of each row of ``log_seconds`` [b, n]: parts [b, p] and losses [b].

    Levenberg-Marquardt for all rows at once, parts kept at or above :data:`INVISIBLE`.
    """
    rows, count = len(log_seconds), law.start.size
    parts = np.tile(law.start, (rows, 1))
    damping = np.full((rows, 1), 1e-3)
    fixed = ~np.array(law.free)
    sums = _log_sums(law, parts)
    loss = _loss(log_seconds - sums, width)
    for _ in range(60):
        slopes = law.slopes(parts) / np.exp(sums)[..., None]
        miss = log_seconds - sums
        weight = 1.0 / (1.0 + (miss / width) ** 2)
        pull = np.stack([(slopes[..., k] * weight * miss).sum(axis=1) for k in range(count)], -1)
        held = fixed | ((parts <= INVISIBLE) & (pull < 0))
        pull[held] = 0.0
        bend = np.empty((rows, count, count))
        for k in range(count):
            weighted = slopes[..., k] * weight
            for other in range(k, count):
                bend[:, k, other] = (weighted * slopes[..., other]).sum(axis=1)
                bend[:, other, k] = bend[:, k, other]
        bend[held[:, :, None] | held[:, None, :]] = 0.0
        diagonal = np.arange(count)
        bend[:, diagonal, diagonal] *= 1.0 + damping
        bend[:, diagonal, diagonal] += np.where(held, 1.0, 1e-12)
        step = np.linalg.solve(bend, pull[..., None])[..., 0]
        tried = np.clip(parts + step, INVISIBLE, _LARGEST)
        tried_sums = _log_sums(law, tried)
        tried_loss = _loss(log_seconds - tried_sums, width)
        better = tried_loss <= loss
        moved = np.abs(np.where(better[:, None], tried - parts, step)).max()
        parts = np.where(better[:, None], tried, parts)
        sums = np.where(better[:, None], tried_sums, sums)
        loss = np.where(better, tried_loss, loss)
        damping = np.clip(np.where(better[:, None], 0.2, 10.0) * damping, 1e-9, 1e9)
        if moved < tolerance * min(1.0, 10.0 * width):
            break
    return parts, loss


def _loss(miss: Floats, width: float) -> Floats:
    losses: Floats = np.log1p((miss / width) ** 2).sum(axis=-1)
    return losses


def _redrawn(problem: Problem, law: Law, residual: Floats, width: float) -> tuple[Floats, float]:
    """Return log errors of redrawn samples [resamples, n], and by how much they are wider than seen.

    Wild bootstrap: each sample keeps its own spread, and no draw lacks a point. Residuals are freed of
    what the fit took from them (leverage); Student's t stands for the spread being estimated.
    """
    count, free = len(residual), sum(law.free)
    shares = law.slopes(law.start[None])[0] * law.start
    slopes = (shares / shares.sum(axis=1, keepdims=True))[:, list(law.free)]
    influence = np.linalg.pinv(slopes)
    leverage = np.clip((slopes * influence.T).sum(axis=1), 0.0, 0.9)
    # As many degrees of freedom as samples that settle the parameter settled by the fewest.
    squares = influence[np.any(influence != 0.0, axis=1)] ** 2
    fewest = float((squares.sum(axis=1) ** 2 / (squares**2).sum(axis=1)).min())
    _, point = np.unique(problem.columns, axis=0, return_inverse=True)
    point = point.reshape(-1)
    apart, degrees = _between_points(residual, point, free, width, min(count - free, fewest))
    # Draws belong to the samples' ranks: the result does not depend on the order of measuring.
    order = np.lexsort((problem.seconds, *problem.columns.T))
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    rng = np.random.default_rng(SEED)
    rows = resamples(count)
    signs = rng.choice((-1.0, 1.0), (rows, count))[:, rank]
    shifts = rng.standard_normal((rows, int(point.max()) + 1))[:, point]
    factor = student(degrees)
    drawn = factor * (signs * residual / (1.0 - leverage) + apart * shifts)
    return drawn, factor


def _between_points(
    residual: Floats, point: npt.NDArray[np.int64], free: int, width: float, degrees: float
) -> tuple[float, float]:
    """Return how far points lie off beyond what the spread of their repeats explains; and the degrees
    of freedom of the two spreads together (Satterthwaite).

    Convention: not below 2 for the points, since 1 says next to nothing (Student's t is 13).
    """
    count, points = len(residual), int(point.max()) + 1
    if not free < points < count:
        return 0.0, degrees
    weight = 1.0 / (1.0 + (residual / width) ** 2)
    middle = np.bincount(point, weight * residual) / np.bincount(point, weight)
    repeats = count / points
    within = spread(residual - middle[point], count - points) ** 2 / repeats
    seen = float((np.bincount(point) * middle**2).sum()) / (points - free) / repeats
    between = max(0.0, seen - within)
    both = (within + between) ** 2 / (within**2 / degrees + between**2 / max(2, points - free))
    return math.sqrt(between), both


def spread(residual: Floats, degrees: int) -> float:
    """Standard deviation: what 68 % of the deviations stay below, so that outliers hardly count.

    Steadier for a few dozen samples than the scaled median deviation, and sound up to 30 % outliers.
    """
    corrected = math.sqrt(len(residual) / max(1, degrees))
    return max(_LEAST_SPREAD, corrected * float(np.quantile(np.abs(residual), _WITHIN)))


def student(degrees: float) -> float:
    """How much wider than the normal distribution Student's is, in its 95 %."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(degrees, 1.0 - TAIL) / ndtri(1.0 - TAIL))


def resamples(count: int) -> int:
    """Return how many resamples to draw of so many samples: enough for the tails, fewer of many."""
    return min(500, max(200, 100_000 // count))
