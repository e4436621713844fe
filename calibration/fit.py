"""From raw samples to parameters with 95 % intervals: one robust least-squares fit for every room.

Each law says that a sample's seconds are a sum of parts that are not negative, and is fitted to the
*logarithms* of the seconds, so that microseconds count as much as minutes. Samples far off pull little
(Cauchy's loss); they are reported and stay in. Intervals come from a wild bootstrap with a fixed seed:
each residual is put back with a random sign, and where repeats of a point agree better with each other
than with the law, the point as a whole moves too: an interval holds what the law does not explain.

What the samples do not settle is named in ``Fit.undetermined``. A part of less than :data:`INVISIBLE`
of the sample that it matters to most is not told from none, which bounds every parameter: a latency
from below, a rate from above. An undetermined latency keeps its best value ("at most ``high``"); an
undetermined rate is the least that the samples allow ("at least ``low``").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dualpath_model.errors import InputError
from dualpath_model.profile import AttentionFit, Estimate, Fit, Sample, Series, estimate
from dualpath_model.scheduler import attention as attention_model

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

INVISIBLE = 1e-3
"""A part below this share of any sample's seconds cannot be told from none."""

NO_SPREAD = 10.0
"""Convention: with no more samples than parameters an interval is this factor either way."""

_NONE: Bools = np.array([False, False])

_NO_WORSE = 1.05
"""By how much Cauchy's loss may be more for a law to stay plausible: 6 squared deviations."""
_LARGEST = 1e9
"""Of a part in the scale of :class:`_Problem`, where 1 is all of a sample: keeps a stray step finite."""
_SEED = 20260713
_TAIL = 0.025
_CAUCHY = 2.385
"""Width of Cauchy's loss in standard deviations: 95 % as efficient as least squares on normal errors."""
_WITHIN = 0.6827
"""Share of normal errors within one standard deviation."""
_LEAST_SPREAD = 1e-7
"""Of log seconds: samples without noise (made, not measured) must not divide by 0."""
_OUTLIER_SPREADS = 5.0
_OUTLIER_LEAST = 0.05
"""A sample within 5 % of the law is no outlier, however well the others agree."""


def typical(name: str, series: Series, indices: Sequence[int], *, parameter: str) -> Fit:
    """Return the median of amount / seconds, or of the seconds where all amounts are 0.

    The interval is that of a bootstrap of the samples, widened as Student's t is for few of them.
    Raises InputError for unusable samples and where only some of the amounts are 0.
    """
    chosen = _chosen(name, series, indices)
    seconds, amount = _seconds(chosen), _amounts(chosen)
    if 0 < np.count_nonzero(amount) < len(amount):
        raise InputError(
            f"{name}: series {series.name} has amounts that are 0 beside others; choose samples that "
            f"all have an amount, or none"
        )
    timed = not amount.any()
    values = seconds if timed else amount / seconds
    count = len(values)
    middle = np.median(values)
    medians = np.array([])
    if count > 1:
        draws = np.random.default_rng(_SEED).integers(0, count, (_resamples(count), count))
        medians = np.median(np.sort(values)[draws], axis=1)
    again = middle * (medians / middle) ** _student(max(1.0, count - 1.0))
    asked = _Asked(np.append(middle, again))
    residual = np.log(values / middle) * (1.0 if timed else -1.0)
    what = "seconds" if timed else "amount / seconds"
    return _fit(
        name,
        f"{parameter} = median of {what}",
        series,
        indices,
        {parameter: asked},
        residual,
        free=1,
    )


def latency_bandwidth(
    name: str,
    series: Series,
    indices: Sequence[int],
    *,
    latency: str = "latency_s",
    rate: str = "bytes_per_s",
) -> Fit:
    """Fit seconds = latency + amount / rate.

    Samples of one amount settle neither: the rate is then the one without a latency. Raises
    InputError for unusable samples and where all amounts are 0.
    """
    chosen = _chosen(name, series, indices)
    amount = _amounts(chosen, rate=rate, name=name)
    problem = _Problem(_seconds(chosen), np.column_stack([np.ones_like(amount), amount]))
    settled = len(np.unique(amount)) > 1
    found = _solve(problem, [_sum_of_parts(problem, free=(settled, True))])
    asked = {
        latency: _time(problem, found, 0, lacking=not settled),
        rate: _rate(problem, found, 1, lacking=not settled),
    }
    model = f"seconds = {latency} + amount / {rate}"
    return _fit(name, model, series, indices, asked, found.residual, free=2 if settled else 1)


def saturating(
    name: str,
    series: Series,
    indices: Sequence[int],
    *,
    over: str,
    limit: str = "bytes_per_s",
    reached: str = "reached_bytes_per_s",
) -> Fit:
    """Fit amount / seconds = limit q / (q + half), where q = ``at[over]``, such as a queue depth.

    ``reached`` is the curve at the largest q; it is settled even where the curve does not bend yet,
    and limit and half are not. Raises InputError for unusable samples, amounts or q that are 0.
    """
    chosen = _chosen(name, series, indices)
    amount = _amounts(chosen, rate=limit, name=name, each=True)
    q = _numbers(name, series, chosen, over, positive=True)
    problem = _Problem(_seconds(chosen), np.column_stack([amount, amount / q]))
    settled = len(np.unique(q)) > 1
    found = _solve(problem, [_sum_of_parts(problem, free=(True, settled))])
    slowest, half_slowness = found.parts.T
    straight, flat = ~found.seen.T
    asked = {
        limit: _rate(problem, found, 0, lacking=not settled),
        "half": _Asked(
            half_slowness / slowest,
            above=straight | (not settled),
            below=flat,
            top=float(q.max()) / INVISIBLE,
            lacking=not settled,
        ),
        reached: _Asked(1.0 / (slowest + half_slowness / q.max())),
    }
    model = f"amount / seconds = {limit} * q / (q + half), q = {over}; {reached}: at the largest q"
    return _fit(name, model, series, indices, asked, found.residual, free=2 if settled else 1)


def roofline(name: str, series: Series, indices: Sequence[int], *, bytes_at: str = "bytes") -> Fit:
    """Fit seconds = fixed_s + max(``at[bytes_at]`` / bytes_per_s, amount / flop_per_s).

    A rate that limits no sample is undetermined and at least what the samples would need. So are both
    where all samples have the same FLOP per byte. Raises InputError for unusable samples, and where
    all bytes or all amounts are 0.
    """
    chosen = _chosen(name, series, indices)
    flop = _amounts(chosen, rate="flop_per_s", name=name)
    moved = _numbers(name, series, chosen, bytes_at, positive=False)
    if not moved.any():
        raise InputError(
            f"{name}: all {bytes_at} of series {series.name} are 0, so there is no bytes_per_s to fit; "
            f"choose samples that move bytes"
        )
    problem = _Problem(_seconds(chosen), np.column_stack([np.ones_like(flop), moved, flop]))
    settled = len(np.unique(problem.columns, axis=0)) > 2
    moving = problem.scaled[(moved > 0) | (flop > 0)]
    angles = np.unique(np.arctan2(moving[:, 2], moving[:, 1]).round(9))
    found = _solve(problem, _roofs(problem, fixed=settled, bends=angles))
    one_sided = not settled or len(angles) < 2  # bytes may limit or arithmetic: both are at least
    asked = {
        "fixed_s": _time(problem, found, 0, lacking=not settled),
        "bytes_per_s": _rate(problem, found, 1, lacking=one_sided),
        "flop_per_s": _rate(problem, found, 2, lacking=one_sided),
    }
    model = f"seconds = fixed_s + max({bytes_at} / bytes_per_s, amount / flop_per_s)"
    return _fit(name, model, series, indices, asked, found.residual, free=3 if settled else 1)


def share(above: Estimate, below: Estimate, *, source: str = "", note: str = "") -> Estimate:
    """Return above / below; each end adds the two independent distances in quadrature, in logarithms.

    Raises InputError where the quotient is no positive finite number.
    """
    up = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    down = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    value = above.value / below.value
    return estimate(value, value * math.exp(-down), value * math.exp(up), source, note)


def attention(
    name: str,
    series: Series,
    indices: Sequence[int],
    *,
    llm_name: str,
    tensor: int,
    layers: int,
    limit_tokens: float,
) -> tuple[Fit, AttentionFit]:
    """Fit the quota's attention-time model to the seconds of one layer; results are of all ``layers``.

    ``at["chunks"]`` of each sample is text, "cached:bsz" of each chunk with commas between. Intervals
    are those of 200 resamples of the samples. ``Fit.parameters`` has the coefficients above 0;
    ``Fit.undetermined`` those that cannot be told apart, or not from 0. Not robust: outliers are
    reported, and pull. Raises InputError for unusable samples, too few of them, and bad chunks.
    """
    if layers < 1:
        raise InputError(f"{name}: layers {layers} must be at least 1; give the LLM's layers")
    chosen = _chosen(name, series, indices)
    batches = [
        attention_model.Sample(_chunks(name, series, sample), sample.seconds * layers)
        for sample in chosen
    ]
    try:
        best = attention_model.fit(batches, limit_tokens=limit_tokens)
    except InputError as error:
        raise InputError(f"{name}: series {series.name}: {error}") from None
    # In an order of their own: the result does not depend on that of the samples.
    ordered = sorted(batches, key=lambda batch: (list(batch.chunks), batch.seconds))
    rng = np.random.default_rng(_SEED)
    again = [best.model] + [
        attention_model.fit([ordered[i] for i in picks], limit_tokens=limit_tokens).model
        for picks in rng.integers(0, len(ordered), (200, len(ordered)))
    ]
    coefficients = best.model._asdict()
    asked = {}
    for key, value in coefficients.items():
        values = np.array([getattr(model, key) for model in again])
        if key != "limit_tokens" and value > 0:
            least = INVISIBLE * value
            asked[key] = _Asked(np.maximum(values, least), below=values <= least)
    seconds = np.array([batch.seconds for batch in batches])
    residual = np.log(seconds) - np.log(seconds - np.array(best.residual_s))
    found = _fit(
        name,
        f"seconds of {layers} layers = AttentionTime(chunks), limit_tokens = {limit_tokens:g}",
        series,
        indices,
        asked,
        residual,
        free=len(asked),
    )
    apart = [key for key in best.undetermined if key not in found.undetermined]
    return found.model_copy(update={"undetermined": found.undetermined + apart}), AttentionFit(
        llm=llm_name,
        tensor=tensor,
        coefficients=coefficients,
        relative_error_p50=best.relative_error_p50,
        relative_error_max=best.relative_error_max,
        undetermined=list(best.undetermined),
    )


# What comes in.


def _chosen(name: str, series: Series, indices: Sequence[int]) -> list[Sample]:
    count = len(series.samples)
    if len(indices) == 0:
        raise InputError(
            f"{name}: no sample of series {series.name} was chosen; measure at least one"
        )
    if len(set(indices)) < len(indices):
        raise InputError(f"{name}: indices name a sample twice; name each sample once")
    for index in indices:
        if not 0 <= index < count:
            raise InputError(
                f"{name}: index {index} is outside series {series.name}, which has {count} samples; "
                f"use 0 to {count - 1}"
            )
        sample = series.samples[index]
        if not (math.isfinite(sample.seconds) and sample.seconds > 0):
            raise InputError(
                f"{name}: samples[{index}].seconds of series {series.name} is {sample.seconds}; it must "
                f"be finite and more than 0, so measure again"
            )
        if not (math.isfinite(sample.amount) and sample.amount >= 0):
            raise InputError(
                f"{name}: samples[{index}].amount of series {series.name} is {sample.amount}; it must "
                f"be finite and at least 0, so measure again"
            )
    return [series.samples[index] for index in indices]


def _seconds(samples: Sequence[Sample]) -> Floats:
    return np.array([sample.seconds for sample in samples], dtype=float)


def _amounts(
    samples: Sequence[Sample], *, rate: str = "", name: str = "", each: bool = False
) -> Floats:
    amount = np.array([sample.amount for sample in samples], dtype=float)
    if rate and not (amount.all() if each else amount.any()):
        raise InputError(
            f"{name}: {'an amount is' if each else 'all amounts are'} 0, so there is no {rate} to fit; "
            f"choose samples with bytes or FLOP"
        )
    return amount


def _numbers(
    name: str, series: Series, samples: Sequence[Sample], key: str, *, positive: bool
) -> Floats:
    found = []
    for sample in samples:
        value = sample.at.get(key)
        number = math.nan if value is None or isinstance(value, bool | str) else float(value)
        if not (math.isfinite(number) and (number > 0 or (number == 0 and not positive))):
            raise InputError(
                f"{name}: at.{key} of a sample of series {series.name} is {value!r}; it must be a "
                f"number {'more than' if positive else 'of at least'} 0, so record it or leave the "
                f"sample out"
            )
        found.append(number)
    return np.array(found)


def _chunks(name: str, series: Series, sample: Sample) -> list[tuple[int, int]]:
    text = sample.at.get("chunks")
    try:
        pairs = [part.split(":") for part in str(text).split(",")]
        return [(int(cached), int(bsz)) for cached, bsz in pairs]
    except ValueError:
        raise InputError(
            f"{name}: at.chunks of a sample of series {series.name} is {text!r}; write cached:bsz of "
            f"each chunk, such as 0:512,4096:64"
        ) from None


# The problem: seconds = columns @ parts, parts >= 0, each counted in its largest share of a sample.


@dataclass(frozen=True)
class _Problem:
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
class _Law:
    """One explanation of the samples, by parts [resamples, p] in the problem's scale."""

    slopes: Callable[[Floats], Floats]
    """Seconds of a unit of each part at given parts, [resamples or 1, n, p]; their sum is the law."""
    complete: Callable[[Floats], tuple[Floats, Bools]]
    """Fill in the parts that the explanation leaves out, and tell which are seen."""
    start: Floats
    free: tuple[bool, ...]


@dataclass(frozen=True)
class _Found:
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


def _sum_of_parts(problem: _Problem, free: tuple[bool, ...]) -> _Law:
    columns = problem.scaled
    start = _linear_start(columns, problem.seconds, free)
    return _Law(lambda parts: columns[None], _visible, start, free)


def _roofs(problem: _Problem, fixed: bool, bends: Floats) -> list[_Law]:
    """Bytes limit all samples; arithmetic does; or each limits some. The simplest first.

    ``bends``: the distinct directions (bytes, FLOP) of samples; the roof bends between two of them.
    """
    columns = problem.scaled
    ones, moved, flop = columns.T

    def only(limiting: int, other: int) -> _Law:
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
        return _Law(
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
        laws.append(_Law(split, _visible, start, (True, True, True)))
    return laws


# The solution: robust, and again for every resample.


def _solve(problem: _Problem, laws: Sequence[_Law]) -> _Found:
    """Fit the laws, and again to a bootstrap's redrawn samples."""
    log_seconds = np.log(problem.seconds)
    started = [replace(law, start=_soft_start(law, log_seconds)) for law in laws]
    misses = [log_seconds - _log_sums(law, law.start[None])[0] for law in started]
    free = max(sum(law.free) for law in laws)
    rough = min(misses, key=lambda miss: float(np.abs(miss).sum()))
    width = _CAUCHY * _spread(rough, len(rough) - free)

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
    return _Found(
        np.vstack(parts) / problem.scale, np.vstack(seen), log_seconds - fitted, len(plausible)
    )


def _log_sums(law: _Law, parts: Floats) -> Floats:
    slopes = law.slopes(parts)
    total = slopes[..., 0] * parts[:, [0]]
    for part in range(1, parts.shape[1]):
        total = total + slopes[..., part] * parts[:, [part]]
    return np.log(total)


def _soft_start(law: _Law, log_seconds: Floats) -> Floats:
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
    laws: Sequence[_Law], log_seconds: Floats, width: float
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
    law: _Law, log_seconds: Floats, width: float, tolerance: float = 1e-5
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


def _redrawn(problem: _Problem, law: _Law, residual: Floats, width: float) -> tuple[Floats, float]:
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
    rng = np.random.default_rng(_SEED)
    rows = _resamples(count)
    signs = rng.choice((-1.0, 1.0), (rows, count))[:, rank]
    shifts = rng.standard_normal((rows, int(point.max()) + 1))[:, point]
    factor = _student(degrees)
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
    within = _spread(residual - middle[point], count - points) ** 2 / repeats
    seen = float((np.bincount(point) * middle**2).sum()) / (points - free) / repeats
    between = max(0.0, seen - within)
    both = (within + between) ** 2 / (within**2 / degrees + between**2 / max(2, points - free))
    return math.sqrt(between), both


def _spread(residual: Floats, degrees: int) -> float:
    """Standard deviation: what 68 % of the deviations stay below, so that outliers hardly count.

    Steadier for a few dozen samples than the scaled median deviation, and sound up to 30 % outliers.
    """
    corrected = math.sqrt(len(residual) / max(1, degrees))
    return max(_LEAST_SPREAD, corrected * float(np.quantile(np.abs(residual), _WITHIN)))


def _student(degrees: float) -> float:
    """How much wider than the normal distribution Student's is, in its 95 %."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(degrees, 1.0 - _TAIL) / ndtri(1.0 - _TAIL))


def _resamples(count: int) -> int:
    return min(500, max(200, 100_000 // count))


# What goes out.


@dataclass(frozen=True)
class _Asked:
    """A parameter's ``values``: the best, and of each resample.

    ``above``: in which of these the samples set no upper end; ``below``: no lower end. ``top``: the
    upper end of one without; ``lacking``: there are too few points to settle it. ``laws``:
    explanations that share the resamples evenly.
    """

    values: Floats
    above: Bools = field(default_factory=lambda: _NONE)
    below: Bools = field(default_factory=lambda: _NONE)
    top: float = 0.0
    lacking: bool = False
    laws: int = 1

    def estimate(self, enough: bool) -> tuple[Estimate, bool]:
        """Return it with its interval, and whether the samples settle it."""
        best, again = float(self.values[0]), self.values[1:]
        tail = _TAIL / self.laws  # an interval holds that of each explanation
        above = bool(self.above[1:].mean() > tail) if enough else bool(self.above[0])
        below = bool(self.below[1:].mean() > tail) if enough else bool(self.below[0])
        low, high = best / NO_SPREAD, best * NO_SPREAD
        if enough:
            low, high = (float(end) for end in np.quantile(again, (tail, 1.0 - tail)))
        if above:
            best = min(best, low)
        if above or self.lacking or not enough:
            high = max(high, self.top)
        notes = {
            (True, False): "at least: the samples show no upper end",
            (False, True): "at most the interval's upper end: not told from 0",
            (True, True): "the samples do not settle it",
        }
        note = notes.get((above, below), "" if enough else "too few samples to see any spread")
        return estimate(best, low, high, note=note), enough and not (above or below)


def _time(problem: _Problem, found: _Found, part: int, *, lacking: bool) -> _Asked:
    """A fixed time: not told from 0 where its part is not seen."""
    return _Asked(
        found.parts[:, part],
        below=~found.seen[:, part] | lacking,
        top=float(problem.seconds.max()),
        lacking=lacking,
        laws=found.laws,
    )


def _rate(problem: _Problem, found: _Found, part: int, *, lacking: bool) -> _Asked:
    """One over a time per unit: without an upper end where its part is not seen."""
    return _Asked(
        1.0 / found.parts[:, part],
        above=~found.seen[:, part] | lacking,
        top=float(problem.scale[part]) / INVISIBLE,
        lacking=lacking,
        laws=found.laws,
    )


def _fit(
    name: str,
    model: str,
    series: Series,
    indices: Sequence[int],
    asked: Mapping[str, _Asked],
    residual: Floats,
    *,
    free: int,
) -> Fit:
    """Put a fit together; ``residual`` is of log seconds, in the order of ``indices``."""
    far = max(_OUTLIER_LEAST, _OUTLIER_SPREADS * _spread(residual, len(residual) - free))
    estimates = {key: one.estimate(len(residual) > free) for key, one in asked.items()}
    return Fit(
        name=name,
        model=model,
        series=series.name,
        parameters={key: found for key, (found, _) in estimates.items()},
        indices=[int(index) for index in indices],
        residuals=np.expm1(residual).tolist(),
        outliers=[
            int(index) for index, off in zip(indices, residual, strict=True) if abs(off) > far
        ],
        undetermined=[key for key, (_, settled) in estimates.items() if not settled],
    )
