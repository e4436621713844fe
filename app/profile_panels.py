"""How series and their fits become panels: the kind of a panel follows from the fits' models.

Time against size with the latency and the rate, rate against depth with the curve that saturates, the
roof over measured FLOP/s, measured against predicted time, or a row a setting where there is no curve.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from app import plan_view as view
from app import profile_samples as samples
from app.profile_curves import Band, Floats, curve, law
from app.profile_marks import COLOURS, Dots, Line, Panel, axis, row_axis
from app.profile_words import interval, least_certain, parameter, quantity
from dualpath_model.profile import FIGURES, Estimate, Fit, Part, PartName, Series

_POINTS = 120  # of a curve
_MOST_TICKS = 9
CALLED = {
    "gemm_bf16_flop_per_s": "matrix products in bf16",
    "gemm_fp8_flop_per_s": "matrix products in fp8",
    "gemm_fp32_flop_per_s": "matrix products in fp32",
    "prefill_flop_per_s": "prefill without attention",
    "prefill_layer_s": "a layer's forward pass, fixed time",
    "attention_flop_per_s": "attention in prefill",
    "decode_flop_per_s": "decode where arithmetic limits",
    "decode_bytes_per_s": "decode where reading memory limits",
    "decode_layer_s": "a layer's decode step, fixed time",
    "hbm_copy_bytes_per_s": "copy inside GPU memory",
    "host_to_device_bytes_per_s": "copy from host to GPU memory",
    "device_to_host_bytes_per_s": "copy from GPU to host memory",
    "both_ways_share": "copies both ways at once, share",
    "pageable_share": "copies of pageable memory, share",
    "copy_launch_s": "one copy, fixed time",
    "layer_block_share": "layer blocks one by one, share",
    "gather_share": "layer blocks gathered, share",
    "interference_share": "products beside copies, share",
    "dram_bytes_per_s": "copy in host memory",
    "storage_read_bytes_per_s": "storage, random reads",
    "storage_write_bytes_per_s": "storage, writes",
    "storage_sequential_bytes_per_s": "storage, sequential reads",
    "storage_read_latency_s": "one read, fixed time",
    "storage_read_p99_s": "one read, 99th percentile",
    "storage_small_pages_share": "reads to small pages, share",
    "storage_read_while_writing_share": "reads beside writes, share",
    "network_bytes_per_s": "network, one direction",
    "network_both_ways_bytes_per_s": "network, each of both directions",
    "network_latency_s": "one message, fixed time",
    "network_with_storage_share": "network beside storage, share",
    "collective_bytes_per_s": "torch.distributed, large messages",
    "collective_latency_s": "torch.distributed, one message",
}
"""What figures are called in pictures and headlines: short for the meanings in FIGURES."""
_KEYS = re.compile(rf"\b(?:{'|'.join(CALLED)})\b")
_PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "most": "longest"}


def panels(name: PartName, part: Part) -> list[Panel]:
    """Return what there is to draw of a part: every series, latencies, residuals."""
    found = []
    for series in part.series:
        found.append(_series_panel(name, part, series))
        if any(sample.latency for sample in series.samples):
            found.append(_latencies(name, series))
    residuals = _residuals(name, part)
    return [*found, residuals] if residuals else found


def in_words(text: str) -> str:
    """Return a sentence with words in place of the keys of figures."""
    return _KEYS.sub(lambda key: CALLED[key[0]], text)


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
            f"{n}, {FIGURES[n].meaning}: {quantity(found[n].value, FIGURES[n].unit)}, "
            f"{interval(found[n], FIGURES[n].unit)}"
            for n in names
        ],
        low=low / value,
        high=high / value,
    )
    said = in_words(least_certain(found))
    return Panel(
        "intervals",
        None,
        "",
        f"{said[0].upper()}{said[1:]}",
        axis("95 % interval over the value", "x", np.concatenate([low / value, high / value])),
        row_axis(names),
        [dots],
        rows=[f"{CALLED[n]}: {quantity(found[n].value, FIGURES[n].unit)}" for n in names],
    )


def _series_panel(name: PartName, part: Part, series: Series) -> Panel:
    fits = [fit for fit in part.fits if fit.series == series.name and fit.indices]
    by: dict[str, list[Fit]] = {}
    for fit in fits:
        by.setdefault(law(fit)[0], []).append(fit)
    for fit in by.get("depth", []):
        depths = samples.numbers(series, law(fit)[2])
        if (depths > 0).all() and samples.amounts(series).all():
            return _depth(name, series, fit, depths, by.get("typical", []))
    for fit in by.get("roofline", []):
        moved = samples.numbers(series, law(fit)[1])
        if (moved > 0).all() and samples.amounts(series).all():
            return _roofline(name, series, fit, moved)
    sized = [sample.amount == sample.at.get("bytes") for sample in series.samples]
    if samples.amounts(series).all() and (
        "size" in by or (all(sized) and len(set(samples.amounts(series))) > 2)
    ):
        return _size(name, series, by.get("size", []), by.get("typical", []))
    if "other" in by and samples.predictions(series, by["other"][0])[1]:
        return _predicted(name, series, by["other"][0])
    return _rows(name, series, by.get("typical", []))


def _size(name: PartName, series: Series, fits: list[Fit], typical: list[Fit]) -> Panel:
    """Time against bytes or FLOP, both log; a curve a fit, and a median where it is of one size."""
    amount, seconds = samples.amounts(series), samples.seconds(series)
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
        f"{samples.title(name, series)}{finding}",
        axis("FLOP" if series.unit == "FLOP" else "bytes", series.unit, amount, log=True),
        axis("seconds", "s", seconds, log=True),
        dots,
        lines,
        legend=len(lines) > 1,
    )


def _depth(name: PartName, series: Series, fit: Fit, depths: Floats, typical: list[Fit]) -> Panel:
    """Rate against depth, from 0, with the curve that saturates and the medians of one depth."""
    rates, unit = samples.rates(series)
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
    across = axis(f"{found[2].replace('_', ' ')} (log scale)", "", depths, log=True)
    return Panel(
        "depth",
        name,
        series.unit,
        f"{samples.title(name, series)}: the curve reaches {quantity(top, unit)} at {own.max():g}",
        replace(across, ticks=steps) if len(steps) <= _MOST_TICKS else across,
        axis("rate", unit, shown, log=False),
        dots,
        [] if band is None else [Line(fit.name, grid, band, COLOURS[0])],
    )


def _roofline(name: PartName, series: Series, fit: Fit, moved: Floats) -> Panel:
    """FLOP/s against FLOP per byte: measured, as the fit says (fixed time counted), and the roof."""
    rates, unit = samples.rates(series)
    x = samples.amounts(series) / moved
    own = x[fit.indices]
    grid = np.geomspace(own.min() / 1.5, own.max() * 1.5, _POINTS)
    band = curve(fit, grid)
    predicted, kept = samples.predictions(series, fit)
    dots = [_measured("measured", series, range(len(rates)), x, rates, COLOURS[0], [fit])]
    said = samples.amounts(series)[kept] / predicted
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
        f"{samples.title(name, series)}: {finding}",
        axis("FLOP per byte", "", grid, log=True),
        axis("rate", unit, shown, log=True),
        dots,
        lines,
        legend=True,
    )


def _predicted(name: PartName, series: Series, fit: Fit) -> Panel:
    """Measured against predicted seconds, both log; on the line they agree."""
    predicted, kept = samples.predictions(series, fit)
    x = np.ones(len(series.samples))
    x[kept] = predicted
    seconds = samples.seconds(series)
    both = np.concatenate([predicted, seconds[kept]])
    ends = np.array([both.min(), both.max()])
    median, most = samples.misses(fit)
    return Panel(
        "predicted",
        name,
        series.unit,
        f"{samples.title(name, series)}: {fit.name} is off by {median:.1%} in the median, "
        f"{most:.1%} at most",
        axis("predicted seconds", "s", both, log=True),
        axis("measured seconds", "s", both, log=True),
        [_measured("measured", series, kept, x, seconds, COLOURS[0], [fit])],
        [Line("as predicted", ends, Band(ends, ends, ends), view.BASIC)],
    )


def _rows(name: PartName, series: Series, typical: list[Fit]) -> Panel:
    """A row a setting, with all samples; below them the fitted medians with their intervals."""
    labels, place = samples.settings(series)
    values, unit = samples.rates(series)
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
        f"{samples.title(name, series)}{finding}",
        axis("seconds" if unit == "s" else "rate", unit, np.concatenate(shown)),
        row_axis(labels),
        dots,
        rows=labels,
    )


def _latencies(name: PartName, series: Series) -> Panel:
    """A row a setting, with the percentiles of every sample."""
    with_latency = [sample for sample in series.samples if sample.latency]
    kept = series.model_copy(update={"samples": with_latency})
    labels, place = samples.settings(kept)
    dots = [
        Dots(
            title,
            np.array([getattr(sample.latency, key) for sample in with_latency]),
            place.astype(float),
            colour,
            hover=[f"{title}: {samples.described(sample)}" for sample in with_latency],
        )
        for (key, title), colour in zip(_PERCENTILES.items(), _cycle(_PERCENTILES), strict=True)
    ]
    every = np.concatenate([one.x for one in dots])
    longest = quantity(float(every.max()), "s")
    return Panel(
        "latency",
        name,
        "s",
        f"{samples.title(name, series)}: single operations took up to {longest}",
        axis("seconds (percentiles of each sample)", "s", every, log=True),
        row_axis(labels),
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
        axis("measured over fitted seconds", "x", ratio),
        row_axis(fits),
        [Dots("samples", ratio, place, COLOURS[0], far, hover)],
        rows=[fit.name for fit in fits],
    )


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
    hover = [samples.hover(series, series.samples[i]) for i in indices]
    return Dots(name, x[indices], y[indices], colour, far, hover)


def _median(fit: Fit, at: Floats, band: Band, *, along_x: bool) -> Dots:
    x, y = (band.value, at) if along_x else (at, band.value)
    name = f"median: {fit.name}"
    return Dots(
        name, x, y, view.COMPUTE, hover=[name], symbol="diamond", low=band.low, high=band.high
    )


def _cycle(things: Iterable[object]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i, _ in enumerate(things)]
