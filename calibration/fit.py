"""From raw samples to parameters with 95 % intervals: one robust least-squares fit for every room.

Each law says that a sample's seconds are a sum of parts that are not negative, and is fitted to the
*logarithms* of the seconds, so that microseconds count as much as minutes. Samples far off pull little
(Cauchy's loss); they are reported and stay in. Intervals come from a wild bootstrap with a fixed seed:
each residual is put back with a random sign, and where repeats of a point agree better with each other
than with the law, the point as a whole moves too: an interval holds what the law does not explain.

What the samples do not settle is named in ``Fit.undetermined``. A part of less than
:data:`calibration.robust.INVISIBLE` of the sample that it matters to most is not told from none, which
bounds every parameter: a latency from below, a rate from above. An undetermined latency keeps its best
value ("at most ``high``"); an undetermined rate is the least that the samples allow ("at least
``low``").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.robust import (
    INVISIBLE,
    SEED,
    TAIL,
    Bools,
    Floats,
    Found,
    Problem,
    resamples,
    roofs,
    solve,
    spread,
    student,
    sum_of_parts,
)
from dualpath_model.errors import InputError
from dualpath_model.profile import AttentionFit, Estimate, Fit, Sample, Series, estimate
from dualpath_model.scheduler import attention as attention_model

NO_SPREAD = 10.0
"""Convention: with no more samples than parameters an interval is this factor either way."""

Chunks = tuple[tuple[int, int], ...]

_NONE: Bools = np.array([False, False])
_FAR_APART = 1.5
"""Samples of one rate that range over more than this factor are perhaps of two."""
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
        draws = np.random.default_rng(SEED).integers(0, count, (resamples(count), count))
        medians = np.median(np.sort(values)[draws], axis=1)
    again = middle * (medians / middle) ** student(max(1.0, count - 1.0))
    asked = _Asked(np.append(middle, again))
    residual = np.log(values / middle) * (1.0 if timed else -1.0)
    what = "seconds" if timed else "amount / seconds"
    found = _fit(
        name,
        f"{parameter} = median of {what}",
        series,
        indices,
        {parameter: asked},
        residual,
        free=1,
    )
    low, high = np.quantile(values, (0.05, 0.95))
    if high <= _FAR_APART * low:
        return found
    note = f"of samples that range over a factor {high / low:.1f}: the interval is their median's"
    told = found.parameters[parameter].model_copy(update={"note": note})
    return found.model_copy(update={"parameters": {parameter: told}})


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
    problem = Problem(_seconds(chosen), np.column_stack([np.ones_like(amount), amount]))
    settled = len(np.unique(amount)) > 1
    found = solve(problem, [sum_of_parts(problem, free=(settled, True))])
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
    problem = Problem(_seconds(chosen), np.column_stack([amount, amount / q]))
    settled = len(np.unique(q)) > 1
    found = solve(problem, [sum_of_parts(problem, free=(True, settled))])
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
    problem = Problem(_seconds(chosen), np.column_stack([np.ones_like(flop), moved, flop]))
    settled = len(np.unique(problem.columns, axis=0)) > 2
    moving = problem.scaled[(moved > 0) | (flop > 0)]
    angles = np.unique(np.arctan2(moving[:, 2], moving[:, 1]).round(9))
    found = solve(problem, roofs(problem, fixed=settled, bends=angles))
    one_sided = not settled or len(angles) < 2  # bytes may limit or arithmetic: both are at least
    asked = {
        "fixed_s": _time(problem, found, 0, lacking=not settled),
        "bytes_per_s": _rate(problem, found, 1, lacking=one_sided),
        "flop_per_s": _rate(problem, found, 2, lacking=one_sided),
    }
    model = f"seconds = fixed_s + max({bytes_at} / bytes_per_s, amount / flop_per_s)"
    return _fit(name, model, series, indices, asked, found.residual, free=3 if settled else 1)


def layer(name: str, series: Series, indices: Sequence[int], *, attention_at: str) -> Fit:
    """Fit seconds = fixed_s + (amount - attention) / flop_per_s + attention / attention_flop_per_s.

    Both are FLOP, attention = ``at[attention_at]``: matrix products and attention run at rates of their
    own; samples without attention have 0. Raises InputError for unusable samples, and where all have 0.
    """
    chosen = _chosen(name, series, indices)
    amount = _amounts(chosen, rate="flop_per_s", name=name, each=True)
    attended = _numbers(name, series, chosen, attention_at, positive=False)
    if not attended.any():
        raise InputError(
            f"{name}: all {attention_at} of series {series.name} are 0, so there is no "
            f"attention_flop_per_s to fit; choose samples with attention"
        )
    products = amount - attended
    if (products <= 0).any():
        raise InputError(
            f"{name}: {attention_at} of a sample of series {series.name} is all of its amount; it must "
            f"be a part of it"
        )
    columns = np.column_stack([np.ones_like(amount), products, attended])
    problem = Problem(_seconds(chosen), columns)
    settled = len(np.unique(columns, axis=0)) > 2
    found = solve(problem, [sum_of_parts(problem, free=(settled, True, settled))])
    asked = {
        "fixed_s": _time(problem, found, 0, lacking=not settled),
        "flop_per_s": _rate(problem, found, 1, lacking=not settled),
        "attention_flop_per_s": _rate(problem, found, 2, lacking=not settled),
    }
    model = (
        f"seconds = fixed_s + (amount - {attention_at}) / flop_per_s "
        f"+ {attention_at} / attention_flop_per_s"
    )
    return _fit(name, model, series, indices, asked, found.residual, free=3 if settled else 1)


def figure(found: Fit, parameter: str) -> Estimate:
    """Return a fit's parameter as a figure of a profile, which names the fit as its source."""
    return found.parameters[parameter].model_copy(update={"source": found.name})


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

    ``at["chunks"]`` of each sample is text, "cached:bsz" of each chunk with commas between. The fit is
    to the median of each batch's samples, so that one interrupted sample does not pull it; intervals are
    those of 200 resamples of batches, and of samples within them. ``Fit.parameters`` has the
    coefficients above 0; ``Fit.undetermined`` those that cannot be told apart, or not from 0. Raises
    InputError for unusable samples, too few batches, and bad chunks.
    """
    if layers < 1:
        raise InputError(f"{name}: layers {layers} must be at least 1; give the LLM's layers")
    chosen = _chosen(name, series, indices)
    batches = [
        attention_model.Sample(_chunks(name, series, sample), sample.seconds * layers)
        for sample in chosen
    ]
    # In an order of their own: the result does not depend on that of the samples.
    points: dict[Chunks, list[float]] = {}
    for batch in sorted(batches, key=lambda batch: (list(batch.chunks), batch.seconds)):
        points.setdefault(tuple(batch.chunks), []).append(batch.seconds)

    def fitted(drawn: Sequence[tuple[Chunks, Floats]]) -> attention_model.Fit:
        medians = [attention_model.Sample(c, float(np.median(seconds))) for c, seconds in drawn]
        return attention_model.fit(medians, limit_tokens=limit_tokens)

    measured = [(chunks, np.array(seconds)) for chunks, seconds in points.items()]
    try:
        best = fitted(measured)
    except InputError as error:
        raise InputError(f"{name}: series {series.name}: {error}") from None
    rng = np.random.default_rng(SEED)
    again = [best.model]
    for picks in rng.integers(0, len(measured), (200, len(measured))):
        drawn = [measured[pick] for pick in picks]
        again.append(fitted([(c, rng.choice(s, len(s))) for c, s in drawn]).model)
    coefficients = best.model._asdict()
    asked = {}
    for key, value in coefficients.items():
        values = np.array([getattr(model, key) for model in again])
        if key != "limit_tokens" and value > 0:
            least = INVISIBLE * value
            asked[key] = _Asked(np.maximum(values, least), below=values <= least)
    predicted = [
        attention_model.batch_seconds(best.model, *np.array(batch.chunks, dtype=np.int64).T)
        for batch in batches
    ]
    residual = np.log([batch.seconds for batch in batches]) - np.log(predicted)
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
        relative_error_p50=float(np.median(np.abs(np.expm1(residual)))),
        relative_error_max=float(np.max(np.abs(np.expm1(residual)))),
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
        tail = TAIL / self.laws  # an interval holds that of each explanation
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


def _time(problem: Problem, found: Found, part: int, *, lacking: bool) -> _Asked:
    """A fixed time: not told from 0 where its part is not seen."""
    return _Asked(
        found.parts[:, part],
        below=~found.seen[:, part] | lacking,
        top=float(problem.seconds.max()),
        lacking=lacking,
        laws=found.laws,
    )


def _rate(problem: Problem, found: Found, part: int, *, lacking: bool) -> _Asked:
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
    far = max(_OUTLIER_LEAST, _OUTLIER_SPREADS * spread(residual, len(residual) - free))
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
