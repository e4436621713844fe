"""A series' samples as plain numbers, the points of its sweep as rows, and both in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.profile_curves import Floats
from app.profile_words import quantity
from dualpath_model.profile import Fit, PartName, Sample, Series

_BOOKKEEPING = {"round", "messages", "count"}
"""What samples of one point differ in; "count": of equal products in an LLM."""
_MOST_ROWS = 40


def seconds(series: Series) -> Floats:
    """Return the seconds of each sample."""
    return np.array([sample.seconds for sample in series.samples])


def amounts(series: Series) -> Floats:
    """Return the amount of each sample; 0 where only time counts."""
    return np.array([sample.amount for sample in series.samples])


def rates(series: Series) -> tuple[Floats, str]:
    """Return amount per second with its unit, or the seconds where there are no amounts."""
    amount = amounts(series)
    if not series.unit or not amount.all():
        return seconds(series), "s"
    return amount / seconds(series), f"{series.unit}/s"


def numbers(series: Series, key: str) -> Floats:
    """Return a number of each sample's point; nan where it is none."""
    values = [sample.at.get(key) for sample in series.samples]
    numeric = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    return np.array(
        [float(v or 0) if ok else math.nan for v, ok in zip(values, numeric, strict=True)]
    )


def predictions(series: Series, fit: Fit) -> tuple[Floats, list[int]]:
    """Return the seconds that a fit predicts, and of which samples."""
    pairs = [(i, r) for i, r in zip(fit.indices, fit.residuals, strict=True) if r > -1]
    kept = [i for i, _ in pairs]
    return seconds(series)[kept] / (1 + np.array([r for _, r in pairs])), kept


def misses(fit: Fit) -> tuple[float, float]:
    """Return by how much samples miss a fit: the median and the largest of its |residuals|.

    So are the relative errors of an attention model defined too.
    """
    off = np.abs(fit.residuals)
    return float(np.median(off)), float(off.max())


def settings(series: Series) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return names of the points of a sweep in their order, and each sample's place among them."""
    keys = list(dict.fromkeys(key for sample in series.samples for key in sample.at))
    kept = [key for key in keys if _names_a_point([s.at.get(key) for s in series.samples], key)]
    points = [_sorting(sample, kept) for sample in series.samples]
    if len(set(points)) > _MOST_ROWS:  # such as intervals of a run: only what is said in words
        kept = [key for key in kept if any(isinstance(s.at.get(key), str) for s in series.samples)]
        points = [_sorting(sample, kept) for sample in series.samples]
    order = sorted(set(points))
    first = {point: points.index(point) for point in order}
    names = [_point(series.samples[first[point]], kept) for point in order]
    place = {point: i for i, point in enumerate(order)}
    return names, np.array([place[point] for point in points])


def _names_a_point(values: list[Any], key: str) -> bool:
    """Tell whether a setting varies, and was chosen and not itself measured (a fraction)."""
    fraction = any(isinstance(v, float) and v != int(v) for v in values)
    return len(set(map(repr, values))) > 1 and not fraction and key not in _BOOKKEEPING


def _sorting(sample: Sample, keys: Sequence[str]) -> tuple[tuple[bool, float, str], ...]:
    values = [sample.at.get(key) for key in keys]
    return tuple(
        (True, 0.0, str(v)) if isinstance(v, str | None) else (False, float(v), "") for v in values
    )


def _point(sample: Sample, keys: Sequence[str]) -> str:
    if {"m", "n", "k"} <= set(keys):
        shape = " × ".join(str(sample.at.get(key)) for key in ("m", "n", "k"))
        words = [_setting(key, sample.at.get(key)) for key in keys if key not in ("m", "n", "k")]
        return " ".join([*words, shape])
    return ", ".join(_setting(key, sample.at.get(key)) for key in keys) or "all samples"


def _setting(key: str, value: object) -> str:
    words = key.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"not {words}"
    if isinstance(value, int | float):
        if key.endswith("bytes"):
            return f"{words.removesuffix('bytes')}{quantity(value, 'B')}"
        return f"{words} {value:,.6g}"
    if value is None:
        return f"no {words}"
    return f"{words} {value}" if value in ("none", "running") else str(value)


def title(name: PartName, series: Series) -> str:
    """Return what a series is called in titles: its part in front, unless its name begins with it."""
    words = series.name.replace("_", " ")
    return words if words.startswith(name) else f"{name}: {words}"


def described(sample: Sample) -> str:
    """Return where a sample was taken: all its settings as they are in the profile."""
    return ", ".join(f"{key} {value}" for key, value in sample.at.items())


def hover(series: Series, sample: Sample) -> str:
    """Return what a dot says of its sample: where it was taken, its seconds, its rate if it has one."""
    time = f"{described(sample)}: {quantity(sample.seconds, 's')}"
    if not series.unit or not sample.amount:
        return time
    return f"{time}, {quantity(sample.amount / sample.seconds, f'{series.unit}/s')}"
