"""What a profile's samples and fits look like: panels of plain numbers, for plotly and matplotlib alike.

A panel is made from one series and the fits to it: time against size with the latency and the rate,
rate against depth with the curve that saturates, the roof over measured FLOP/s, measured against
predicted time, or a row a setting where there is no curve. :func:`figure` draws one with plotly.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from app import plan_view as view
from app.page import layout
from dualpath_model.profile import FIGURES, Estimate, Fit, Part, PartName, Sample, Series
from dualpath_model.quantities import Dimension, show

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

COLOURS = (view.DUAL_PATH, view.FREE, view.COMPUTE, view.DECODE_SIDE, "#56B4E9", "#000000")
FAR = view.SATURATED
"""The colour of outliers."""
_LAWS = {
    "typical": r"(\w+) = median of (amount / )?seconds",
    "size": r"seconds = (\w+) \+ amount / (\w+)",
    "depth": r"amount / seconds = (\w+) \* q / \(q \+ half\), q = (\w+); (\w+): at the largest q",
    "roofline": r"seconds = fixed_s \+ max\((\w+) / bytes_per_s, amount / flop_per_s\)",
}
_BOOKKEEPING = {"round", "messages", "count"}
"""What samples of one point differ in; "count": of equal products in an LLM."""
_MOST_ROWS, _MOST_TICKS = 40, 9
_POINTS = 120  # of a curve
_WIDE = 20.0  # values that differ by more than this factor get a log axis
_PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "most": "longest"}


# ---- numbers as people read them -------------------------------------------------------------------


def quantity(value: float, unit: str) -> str:
    """Return a value with its unit: B, B/s, s, FLOP or FLOP/s; a share ("") in percent."""
    if unit == "":
        return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"
    if unit == "FLOP":
        return show(value, Dimension.FLOP_PER_S).removesuffix("/s")
    return show(value, Dimension(unit))


def interval(found: Estimate, unit: str) -> str:
    """Return the 95 % interval: "± 4 %" where it is narrow, else from where to where.

    One run, such as another tool's, shows no spread and has an interval of no width.
    """
    if found.low == found.high:
        return "not known"
    wide = max(found.high / found.value, found.value / found.low) - 1
    if wide <= 0.1:
        return f"± {100 * wide:.2g} %"
    return _ends(quantity(found.low, unit), quantity(found.high, unit))


def least_certain(figures: Mapping[str, Estimate]) -> str:
    """Say which figure has the widest interval, and of how many there is none."""
    known = {name: found for name, found in figures.items() if found.high > found.low}
    if not known:
        return "no interval is known"
    widest = max(known, key=lambda name: known[name].high / known[name].low)
    text = f"least certain: {widest}, {interval(known[widest], FIGURES[widest].unit)}"
    unknown = len(figures) - len(known)
    return f"{text}; of {unknown} no interval is known" if unknown else text


def parameter(name: str, value: float) -> str:
    """Return a fit's parameter; its name says the unit."""
    for ending, unit in (("bytes_per_s", "B/s"), ("flop_per_s", "FLOP/s"), ("_s", "s")):
        if f"_{name}".endswith(ending):
            return quantity(value, unit)
    return quantity(value, "s") if name == "seconds" else f"{value:.3g}"


def parameter_interval(name: str, found: Estimate) -> str:
    """Return the 95 % interval of a fit's parameter, from where to where."""
    return _ends(parameter(name, found.low), parameter(name, found.high))


def _ends(low: str, high: str) -> str:
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if unit and high.endswith(f" {unit}") else f"{low} to {high}"


def tick(value: float, unit: str) -> str:
    """Return what stands at a tick of an axis."""
    return f"{value:g}{unit}" if unit in ("", "x") else quantity(value, unit)


# ---- fitted curves ---------------------------------------------------------------------------------


class Band(NamedTuple):
    """A fitted curve: ``value`` with both ends of its band, all of one shape."""

    value: Floats
    low: Floats
    high: Floats


def law(fit: Fit) -> tuple[str, ...]:
    """Return the kind of a fit's model and the names in it; ("other",) for what is not drawn over x."""
    for kind, pattern in _LAWS.items():
        match = re.fullmatch(pattern, fit.model)
        if match:
            names = tuple(name or "" for name in match.groups())
            needed = {
                "typical": names[:1],
                "size": names,
                "depth": (names[0], "half", *names[2:]),
                "roofline": ("bytes_per_s", "flop_per_s"),
            }[kind]
            return (kind, *names) if set(needed) <= set(fit.parameters) else ("other",)
    return ("other",)


def curve(fit: Fit, x: Floats, *, largest: float | None = None) -> Band | None:
    """Evaluate a fit at ``x``; None for a model that is no curve over one number.

    By the model (formulas of :mod:`calibration.fit`): seconds at amounts ``x`` for latency and rate;
    amount per second at depths ``x`` for the saturating curve, which goes through what it reaches at
    the ``largest`` depth where that is given; FLOP/s at ``x`` FLOP per byte for a roofline, without
    its fixed time; the same value everywhere for a median. The band takes all parameters at their
    slow ends together, and at their fast ends, so it is wider than 95 %.
    """
    kind, *names = law(fit)
    found = fit.parameters
    if kind == "typical":
        middle = found[names[0]]
        return Band(*(np.full_like(x, end) for end in (middle.value, middle.low, middle.high)))
    if kind == "size":
        latency, rate = (found[name] for name in names)
        return Band(
            latency.value + x / rate.value,
            latency.low + x / rate.high,
            latency.high + x / rate.low,
        )
    if kind == "depth":
        half = found["half"]

        def shape(at: float) -> Floats:
            part: Floats = x / (x + at)
            return part if largest is None else part * (largest + at) / largest

        top = found[names[0] if largest is None else names[2]]
        return Band(
            top.value * shape(half.value), top.low * shape(half.high), top.high * shape(half.low)
        )
    if kind == "roofline":
        moved, flop = found["bytes_per_s"], found["flop_per_s"]
        return Band(
            np.minimum(flop.value, x * moved.value),
            np.minimum(flop.low, x * moved.low),
            np.minimum(flop.high, x * moved.high),
        )
    return None


# ---- panels ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dots:
    """Points of one kind. ``low`` and ``high``: ends of intervals, along x where there are rows."""

    name: str
    x: Floats
    y: Floats
    colour: str
    far: Bools | None = None
    hover: Sequence[str] = ()
    symbol: str = "circle"
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Line:
    """A fitted curve over x."""

    name: str
    x: Floats
    band: Band
    colour: str


@dataclass(frozen=True)
class Axis:
    """``unit`` "x": times some value. ``ends`` and ``ticks`` are in that unit."""

    title: str
    unit: str
    log: bool
    ends: tuple[float, float]
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A picture of one thing. ``rows``: names of the places y = 0, 1, ... from the top.

    ``legend``: the names of dots and lines say more than the title and the rows.
    """

    kind: str
    part: PartName | None
    unit: str
    title: str
    x: Axis
    y: Axis
    dots: list[Dots]
    lines: list[Line] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    legend: bool = False


def panels(name: PartName, part: Part) -> list[Panel]:
    """Return what there is to draw of a part: every series, latencies, residuals."""
    found = []
    for series in part.series:
        found.append(_series_panel(name, part, series))
        if any(sample.latency for sample in series.samples):
            found.append(_latencies(name, series))
    residuals = _residuals(name, part)
    return [*found, residuals] if residuals else found


def intervals(found: Mapping[str, Estimate]) -> Panel | None:
    """Return all figures' intervals next to their values; None where there is no figure."""
    names = list(found)
    if not names:
        return None
    value, low, high = (
        np.array([getattr(found[n], key) for n in names]) for key in ("value", "low", "high")
    )
    dots = Dots(
        "figures",
        np.ones(len(names)),
        np.arange(len(names), dtype=float),
        COLOURS[0],
        hover=[
            f"{n}: {quantity(found[n].value, FIGURES[n].unit)}, {interval(found[n], FIGURES[n].unit)}"
            for n in names
        ],
        low=low / value,
        high=high / value,
    )
    return Panel(
        "intervals",
        None,
        "",
        f"{least_certain(found)[0].upper()}{least_certain(found)[1:]}",
        _axis("95 % interval over the value", "x", np.concatenate([low / value, high / value])),
        _no_axis(names),
        [dots],
        rows=[f"{name}  {quantity(found[name].value, FIGURES[name].unit)}" for name in names],
    )


def _series_panel(name: PartName, part: Part, series: Series) -> Panel:
    count = len(series.samples)
    fits = [
        fit
        for fit in part.fits
        if fit.series == series.name and fit.indices and 0 <= min(fit.indices) <= max(fit.indices)
        if max([*fit.indices, *fit.outliers]) < count
    ]
    by: dict[str, list[Fit]] = {}
    for fit in fits:
        by.setdefault(law(fit)[0], []).append(fit)
    for fit in by.get("depth", []):
        depths = _numbers(series, law(fit)[2])
        if (depths > 0).all() and _amounts(series).all():
            return _depth(name, series, fit, depths, by.get("typical", []))
    for fit in by.get("roofline", []):
        moved = _numbers(series, law(fit)[1])
        if (moved > 0).all() and _amounts(series).all():
            return _roofline(name, series, fit, moved)
    sized = [sample.amount == sample.at.get("bytes") for sample in series.samples]
    if _amounts(series).all() and ("size" in by or (all(sized) and len(set(_amounts(series))) > 2)):
        return _size(name, series, by.get("size", []), by.get("typical", []))
    if "other" in by:
        return _predicted(name, series, by["other"][0])
    return _rows(name, series, by.get("typical", []))


def _size(name: PartName, series: Series, fits: list[Fit], typical: list[Fit]) -> Panel:
    """Time against bytes or FLOP, both log; a curve a fit, and a median where it is of one size."""
    amount, seconds = _amounts(series), _seconds(series)
    taken: set[int] = set()
    dots, lines = [], []
    for fit, colour in zip(fits, _cycle(fits), strict=True):
        mine = [i for i in fit.indices if i not in taken]
        taken.update(mine)
        if mine:
            dots.append(_measured(fit.name, series, mine, amount, seconds, colour, [fit]))
        grid = np.geomspace(amount[fit.indices].min(), amount[fit.indices].max(), _POINTS)
        band = curve(fit, grid)
        if band is not None:
            lines.append(Line(fit.name, grid, band, colour))
    rest = [i for i in range(len(amount)) if i not in taken]
    if rest:
        title = "in no curve" if fits else series.name
        dots.insert(0, _measured(title, series, rest, amount, seconds, view.BASIC, typical))
    for fit in typical:
        sizes = np.unique(amount[fit.indices])
        band = curve(fit, sizes[:1])
        if len(sizes) == 1 and band is not None and law(fit)[2]:
            over = Band(*(sizes / end for end in (band.value, band.high, band.low)))
            dots.append(_median(fit, sizes, over, along_x=False))
    finding = ""
    if len(fits) == 1 and not set(law(fits[0])[1:]) & set(fits[0].undetermined):
        said = [parameter(key, fits[0].parameters[key].value) for key in law(fits[0])[1:]]
        finding = f": {said[0]}, then {said[1]}"
    return Panel(
        "size",
        name,
        series.unit,
        f"{_title(name, series)}{finding}",
        _axis("FLOP" if series.unit == "FLOP" else "bytes", series.unit, amount, log=True),
        _axis("seconds", "s", seconds, log=True),
        dots,
        lines,
        legend=len(lines) > 1,
    )


def _depth(name: PartName, series: Series, fit: Fit, depths: Floats, typical: list[Fit]) -> Panel:
    """Rate against depth, from 0, with the curve that saturates and the medians of one depth."""
    rates, unit = _rates(series)
    own = depths[fit.indices]
    grid = np.geomspace(own.min(), own.max(), _POINTS)
    band = curve(fit, grid, largest=float(own.max()))
    found = law(fit)
    rest = [i for i in range(len(rates)) if i not in set(fit.indices)]
    dots = [_measured(fit.name, series, fit.indices, depths, rates, COLOURS[0], [fit])]
    if rest:
        dots.append(_measured("in no curve", series, rest, depths, rates, view.BASIC, []))
    for median in typical:
        at = np.unique(depths[median.indices])
        over = curve(median, at[:1])
        if len(at) == 1 and over is not None:
            dots.append(_median(median, at, over, along_x=False))
    top = fit.parameters[found[3]].value
    medians = [one.high for one in dots if one.high is not None]
    # An interval that is much wider than the samples' spread leaves the picture.
    shown = np.minimum(np.concatenate([rates, *medians]), 3 * rates.max())
    steps = tuple(np.unique(depths).tolist())
    across = _axis(f"{found[2].replace('_', ' ')} (log scale)", "", depths, log=True)
    return Panel(
        "depth",
        name,
        series.unit,
        f"{_title(name, series)}: the curve reaches {quantity(top, unit)} at {own.max():g}",
        replace(across, ticks=steps) if len(steps) <= _MOST_TICKS else across,
        _axis("rate", unit, shown, log=False),
        dots,
        [] if band is None else [Line(fit.name, grid, band, COLOURS[0])],
    )


def _roofline(name: PartName, series: Series, fit: Fit, moved: Floats) -> Panel:
    """FLOP/s against FLOP per byte: measured, as the fit says (fixed time counted), and the roof."""
    rates, unit = _rates(series)
    x = _amounts(series) / moved
    own = x[fit.indices]
    grid = np.geomspace(own.min() / 1.5, own.max() * 1.5, _POINTS)
    band = curve(fit, grid)
    predicted, kept = _predictions(series, fit)
    dots = [_measured("measured", series, range(len(rates)), x, rates, COLOURS[0], [fit])]
    said = _amounts(series)[kept] / predicted
    dots.append(Dots("fitted, with fixed time", x[kept], said, COLOURS[2], symbol="open"))
    settled = [
        f"{parameter(key, fit.parameters[key].value)}"
        for key in ("bytes_per_s", "flop_per_s")
        if key not in fit.undetermined
    ]
    finding = f"roof of {' and '.join(settled)}" if settled else "the samples settle no roof"
    lines = [] if band is None else [Line("roof", grid, band, COLOURS[1])]
    shown = np.concatenate([rates, said])
    return Panel(
        "roofline",
        name,
        series.unit,
        f"{_title(name, series)}: {finding}",
        _axis("FLOP per byte", "", grid, log=True),
        _axis("rate", unit, shown, log=True),
        dots,
        lines,
        legend=True,
    )


def _predicted(name: PartName, series: Series, fit: Fit) -> Panel:
    """Measured against predicted seconds, both log; on the line they agree."""
    predicted, kept = _predictions(series, fit)
    x = np.ones(len(series.samples))
    x[kept] = predicted
    seconds = _seconds(series)
    both = np.concatenate([predicted, seconds[kept]])
    ends = np.array([both.min(), both.max()])
    off = float(np.median(np.abs(1 - predicted / seconds[kept])))
    return Panel(
        "predicted",
        name,
        series.unit,
        f"{_title(name, series)}: {fit.name} is off by {off:.1%} in the median",
        _axis("predicted seconds", "s", both, log=True),
        _axis("measured seconds", "s", both, log=True),
        [_measured("measured", series, kept, x, seconds, COLOURS[0], [fit])],
        [Line("as predicted", ends, Band(ends, ends, ends), view.BASIC)],
    )


def _rows(name: PartName, series: Series, typical: list[Fit]) -> Panel:
    """A row a setting, with all samples; below them the fitted medians with their intervals."""
    labels, place = _settings(series)
    values, unit = _rates(series)
    dots = [
        _measured(
            "samples", series, range(len(values)), values, place.astype(float), COLOURS[0], typical
        )
    ]
    shown = [values]
    for fit in typical:
        band = curve(fit, np.array([float(len(labels))]))
        if band is not None and bool(law(fit)[2]) is (unit != "s"):
            dots.append(_median(fit, np.array([float(len(labels))]), band, along_x=True))
            shown += [band.low, band.high]
            own = fit.name.removeprefix(series.name).lstrip(":_ ")
            labels.append(f"median: {own}" if own else "median")
    medians = [one for one in dots if one.symbol == "diamond"]
    finding = f": {quantity(float(medians[0].x[0]), unit)}" if len(medians) == 1 else ""
    return Panel(
        "rows",
        name,
        series.unit,
        f"{_title(name, series)}{finding}",
        _axis("seconds" if unit == "s" else "rate", unit, np.concatenate(shown)),
        _no_axis(labels),
        dots,
        rows=labels,
    )


def _latencies(name: PartName, series: Series) -> Panel:
    """A row a setting, with the percentiles of every sample."""
    with_latency = [sample for sample in series.samples if sample.latency]
    kept = series.model_copy(update={"samples": with_latency})
    labels, place = _settings(kept)
    dots = [
        Dots(
            title,
            np.array([getattr(sample.latency, key) for sample in with_latency]),
            place.astype(float),
            colour,
            hover=[f"{title}: {_at(sample)}" for sample in with_latency],
        )
        for (key, title), colour in zip(_PERCENTILES.items(), _cycle(_PERCENTILES), strict=True)
    ]
    every = np.concatenate([one.x for one in dots])
    return Panel(
        "latency",
        name,
        "s",
        f"{_title(name, series)}: single operations took up to {quantity(float(every.max()), 's')}",
        _axis("seconds (percentiles of each sample)", "s", every, log=True),
        _no_axis(labels),
        dots,
        rows=labels,
        legend=True,
    )


def _residuals(name: PartName, part: Part) -> Panel | None:
    """Measured over fitted, a row a fit; None where no fit has more than one sample."""
    fits = [fit for fit in part.fits if len(fit.indices) > 1 and min(fit.residuals) > -1]
    if not fits:
        return None
    ratio = np.concatenate([1 + np.array(fit.residuals) for fit in fits])
    place = np.repeat(np.arange(len(fits), dtype=float), [len(fit.indices) for fit in fits])
    far = np.concatenate([np.isin(fit.indices, fit.outliers) for fit in fits])
    hover = [f"{fit.name}, sample {i}" for fit in fits for i in fit.indices]
    return Panel(
        "residuals",
        name,
        "x",
        f"{name}: what the fits leave, {int(far.sum())} of {len(ratio)} samples lie far off",
        _axis("measured over fitted seconds", "x", ratio),
        _no_axis(fits),
        [Dots("samples", ratio, place, COLOURS[0], far, hover)],
        rows=[fit.name for fit in fits],
    )


# ---- what panels are made of -----------------------------------------------------------------------


def _measured(
    name: str,
    series: Series,
    chosen: Iterable[int],
    x: Floats,
    y: Floats,
    colour: str,
    fits: Sequence[Fit],
) -> Dots:
    indices = list(chosen)
    outliers = {i for fit in fits for i in fit.outliers}
    far = np.array([i in outliers for i in indices])
    hover = [_hover(series, series.samples[i]) for i in indices]
    return Dots(name, x[indices], y[indices], colour, far, hover)


def _median(fit: Fit, at: Floats, band: Band, *, along_x: bool) -> Dots:
    x, y = (band.value, at) if along_x else (at, band.value)
    name = f"median: {fit.name}"
    return Dots(
        name, x, y, view.COMPUTE, hover=[name], symbol="diamond", low=band.low, high=band.high
    )


def _predictions(series: Series, fit: Fit) -> tuple[Floats, list[int]]:
    """Return the seconds that a fit predicts, and of which samples."""
    pairs = [(i, r) for i, r in zip(fit.indices, fit.residuals, strict=True) if r > -1]
    kept = [i for i, _ in pairs]
    return _seconds(series)[kept] / (1 + np.array([r for _, r in pairs])), kept


def _title(name: PartName, series: Series) -> str:
    words = series.name.replace("_", " ")
    return words if words.startswith(name) else f"{name}: {words}"


def _seconds(series: Series) -> Floats:
    return np.array([sample.seconds for sample in series.samples])


def _amounts(series: Series) -> Floats:
    return np.array([sample.amount for sample in series.samples])


def _rates(series: Series) -> tuple[Floats, str]:
    """Return amount per second with its unit, or the seconds where there are no amounts."""
    amount = _amounts(series)
    if not series.unit or not amount.all():
        return _seconds(series), "s"
    return amount / _seconds(series), f"{series.unit}/s"


def _numbers(series: Series, key: str) -> Floats:
    """Return a number of each sample's point; nan where it is none."""
    values = [sample.at.get(key) for sample in series.samples]
    numeric = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    return np.array(
        [float(v or 0) if ok else math.nan for v, ok in zip(values, numeric, strict=True)]
    )


def _settings(series: Series) -> tuple[list[str], npt.NDArray[np.int64]]:
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


def _at(sample: Sample) -> str:
    return ", ".join(f"{key} {value}" for key, value in sample.at.items())


def _hover(series: Series, sample: Sample) -> str:
    time = f"{_at(sample)}: {quantity(sample.seconds, 's')}"
    if not series.unit or not sample.amount:
        return time
    return f"{time}, {quantity(sample.amount / sample.seconds, f'{series.unit}/s')}"


def _cycle(things: Iterable[object]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i, _ in enumerate(things)]


def _axis(title: str, unit: str, values: Floats, *, log: bool | None = None) -> Axis:
    """Return an axis that holds ``values`` with some room; without ``log`` their spread decides."""
    low, high = float(values.min()), float(values.max())
    if unit == "x":
        low, high = min(low, 1.0), max(high, 1.0)
        log = high / low > 2 if log is None else log
    if log is None:
        log = high / low > _WIDE
    if log:
        room = max(1.15, (high / low) ** 0.06)
        ends = (low / room, high * room)
        return Axis(title, unit, log, ends, _log_ticks(*ends))
    if unit == "x":
        room = 0.08 * max(high - low, 0.02)
        ends = (low - room, high + room)
    else:
        ends = (0.0, 1.1 * high)
    return Axis(title, unit, log, ends, _even_ticks(*ends))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers between the ends of a log axis, few enough to be read."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 8)
    steps = (1, 2, 5) if high / low < 1e2 else (1,)
    found = (step * 10.0**power for power in range(first, last + 1, every) for step in steps)
    return tuple(at for at in found if low <= at <= high)


def _even_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return a few round numbers between the ends of an axis."""
    rough = (high - low) / 5
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(ten * times for times in (1, 2, 5, 10) if ten * times >= rough)
    return tuple(step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))


def _no_axis(rows: Sequence[object]) -> Axis:
    return Axis("", "", log=False, ends=(len(rows) - 0.5, -0.5))


# ---- plotly ----------------------------------------------------------------------------------------


def figure(panel: Panel) -> Any:
    """Draw a panel with plotly; text of the profile is escaped."""
    from plotly import graph_objects

    drawn = graph_objects.Figure()
    for line in panel.lines:
        _draw_line(drawn, line)
    far_shown = False
    for dots in panel.dots:
        far = np.zeros(len(dots.x), bool) if dots.far is None else dots.far
        if not far.all():
            _draw_dots(drawn, dots, ~far, bool(panel.rows))
        if far.any():
            _draw_dots(drawn, dots, far, bool(panel.rows), first_far=not far_shown)
            far_shown = True
    _draw_axis(drawn.update_xaxes, panel.x)
    if panel.rows:
        drawn.update_yaxes(
            tickvals=list(range(len(panel.rows))),
            ticktext=[html.escape(row) for row in panel.rows],
            range=panel.y.ends,
            automargin=True,
        )
    else:
        _draw_axis(drawn.update_yaxes, panel.y)
    if panel.kind in ("intervals", "residuals"):
        drawn.add_vline(x=1.0, line={"color": "#333", "dash": "dot", "width": 1})
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return layout(
        drawn,
        panel.title,
        160 + 21 * len(panel.rows) if panel.rows else 430,
        margin={"l": 80, "r": 30, "t": 80, "b": 55},
        title_y=0.97 if not panel.rows else None,
        title_yanchor="top",
        legend=legend,
        showlegend=panel.legend or not panel.rows,
    )


def _draw_line(drawn: Any, line: Line) -> None:
    name = html.escape(line.name)
    colour = {"color": line.colour, "width": 2}
    if (line.band.high > line.band.low).any():
        drawn.add_scatter(
            x=np.concatenate([line.x, line.x[::-1]]),
            y=np.concatenate([line.band.high, line.band.low[::-1]]),
            fill="toself",
            fillcolor=line.colour,
            opacity=0.15,
            line={"width": 0},
            mode="lines",
            legendgroup=f"line {name}",
            showlegend=False,
            hoverinfo="skip",
        )
    drawn.add_scatter(
        x=line.x,
        y=line.band.value,
        mode="lines",
        line=colour,
        name=f"{name}, fitted" if (line.band.high > line.band.low).any() else name,
        legendgroup=f"line {name}",
        hovertemplate="%{x:.3s}: %{y:.3s}<extra>" + name + "</extra>",
    )


def _draw_dots(
    drawn: Any, dots: Dots, mask: Bools, along_x: bool, *, first_far: bool | None = None
) -> None:
    """Draw some of the dots; ``first_far``: outliers, and whether the legend does not have them yet."""
    outlying = first_far is not None
    symbols = {"open": "circle-open", "diamond": "diamond", "circle": "circle"}
    more: dict[str, Any] = {}
    if dots.low is not None and dots.high is not None:
        middle = dots.x if along_x else dots.y
        more["error_x" if along_x else "error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": (dots.high - middle)[mask],
            "arrayminus": (middle - dots.low)[mask],
            "thickness": 1.5,
            "width": 4,
        }
    hover = [html.escape(text) for text, kept in zip(dots.hover, mask, strict=False) if kept]
    drawn.add_scatter(
        x=dots.x[mask],
        y=dots.y[mask],
        mode="markers",
        name="outliers" if outlying else html.escape(dots.name),
        legendgroup="outliers" if outlying else html.escape(dots.name),
        showlegend=first_far is not False,
        marker={
            "symbol": "x" if outlying else symbols[dots.symbol],
            "color": FAR if outlying else dots.colour,
            "size": 9 if dots.symbol != "circle" else 7,
            "opacity": 0.75 if dots.symbol == "circle" else 1.0,
        },
        text=hover or None,
        hovertemplate="%{text}<extra></extra>" if hover else None,
        **more,
    )


def _draw_axis(update: Any, axis: Axis) -> None:
    ends = [math.log10(end) for end in axis.ends] if axis.log else list(axis.ends)
    update(
        type="log" if axis.log else "linear",
        range=ends,
        title={"text": html.escape(axis.title)},
        tickvals=axis.ticks,
        ticktext=[tick(value, axis.unit) for value in axis.ticks],
        automargin=True,
    )
