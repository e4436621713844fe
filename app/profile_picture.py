"""A profile as one picture: how sure each figure is, and the most telling samples with their fits."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from app.files import check_writable
from app.picture import save
from app.profile_marks import FAR, Axis, Dots, Line, Panel
from app.profile_panels import intervals, panels
from app.profile_view import finding
from app.profile_words import tick
from dualpath_model.profile import PartName, Profile

_TELLING = (
    (PartName.STORAGE, "depth", "B"),
    (PartName.NETWORK, "size", "B"),
    (PartName.GPU, "rows", "FLOP"),
    (PartName.GPU, "size", "FLOP"),
    (PartName.GPU, "roofline", "FLOP"),
    (PartName.GPU, "predicted", "FLOP"),
    (PartName.STORAGE, "size", "B"),
    (PartName.MEMORY, "rows", "B"),
    (PartName.GPU, "size", "B"),
    (PartName.STORAGE, "latency", "s"),
    (PartName.NETWORK, "rows", "B"),
)
"""Of what to draw a panel, the most telling first; then whatever else there is."""
_KEY = (
    "dots: raw samples; crosses: those far off; lines: fits; bands: all parameters at their slow or "
    "fast ends together; diamonds: medians with 95 % intervals"
)
_MOST_PANELS = 6
_MOST_ROWS = 16


def draw_profile(profile: Profile, path: Path) -> None:
    """Write the picture (.png or .svg). Raises InputError if ``path`` cannot be written to."""
    check_writable(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "svg.hashsalt": "dualpath", "text.parse_math": False}):
        overview, chosen = intervals(profile.figures), telling(profile)
        columns = 2 if len(chosen) > 1 else 1
        lines = -(-len(chosen) // columns)
        inches = max(3.0 * lines, 1.6 + 0.28 * len(profile.figures))
        figure = Figure(figsize=(16, min(max(inches, 4.0), 9.0)), layout="constrained")
        figure.suptitle(_shortened(f"{profile.name}: {finding(profile)}", 150), fontsize=13)
        figure.supxlabel(_KEY, fontsize=9, color="#555555")
        if overview is None and not chosen:
            figure.text(0.5, 0.5, "nothing was measured", ha="center", fontsize=16)
        left, right = _sides(figure, overview is not None, bool(chosen))
        if overview is not None:
            _draw(left.subplots(), overview)
        for place, panel in enumerate(chosen):
            axes = right.add_subplot(lines, columns, place + 1)
            _draw(axes, panel)
        save(figure, path)


def telling(profile: Profile) -> list[Panel]:
    """Return the panels to draw: one of each kind in order of what they tell, then the others."""
    left = [panel for name, part in profile.parts.items() for panel in panels(name, part)]
    left = [panel for panel in left if panel.kind != "residuals"]
    chosen = []
    for wanted in _TELLING:
        found = next((p for p in left if (p.part, p.kind, p.unit) == wanted), None)
        if found is not None:
            chosen.append(found)
            left.remove(found)
    return [*chosen, *left][:_MOST_PANELS]


def _sides(figure: Any, overview: bool, others: bool) -> tuple[Any, Any]:
    if overview and others:
        left, right = figure.subfigures(1, 2, width_ratios=(0.38, 0.62))
        return left, right
    return figure, figure


def _draw(axes: Any, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    for dots in panel.dots:
        _draw_dots(axes, dots, bool(panel.rows))
    _draw_axis(axes, axes.xaxis, panel.x)
    if panel.rows:
        small = len(panel.rows) > _MOST_ROWS and panel.kind != "intervals"
        names = [
            _shortened(row, 60 if panel.part is None else 34 if small else 30) for row in panel.rows
        ]
        axes.set_yticks(range(len(names)), names, fontsize=6 if small else 8)
        axes.set_ylim(*panel.y.ends)
        axes.tick_params(axis="y", length=0)
    else:
        _draw_axis(axes, axes.yaxis, panel.y)
    if panel.kind == "intervals":
        axes.axvline(1.0, color="#333333", lw=0.8, ls=":")
    wide = 42 if panel.rows and panel.part is not None else 48
    title = "\n".join(textwrap.wrap(_shortened(panel.title, 2 * wide), wide))
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.grid(visible=True, color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.legend:
        handles, names = axes.get_legend_handles_labels()
        once = dict(zip(reversed(names), reversed(handles), strict=True))  # of a name, the first
        order = list(dict.fromkeys(names))
        axes.legend(
            [once[name] for name in order], order, fontsize=7.5, framealpha=0.7, edgecolor="none"
        )


def _draw_line(axes: Any, line: Line) -> None:
    axes.plot(line.x, line.band.value, "-", color=line.colour, lw=1.5, label=line.name)
    axes.fill_between(line.x, line.band.low, line.band.high, color=line.colour, alpha=0.15, lw=0)


def _draw_dots(axes: Any, dots: Dots, along_x: bool) -> None:
    far = np.zeros(len(dots.x), bool) if dots.far is None else dots.far
    shape = {"circle": "o", "open": "o", "diamond": "D"}[dots.symbol]
    face = "none" if dots.symbol == "open" else dots.colour
    axes.plot(dots.x[~far], dots.y[~far], shape, color=dots.colour, mfc=face, ms=4, label=dots.name)
    if far.any():
        axes.plot(dots.x[far], dots.y[far], "x", color=FAR, ms=6, label="outliers")
    if dots.low is not None and dots.high is not None:
        middle = dots.x if along_x else dots.y
        ends = np.maximum(np.vstack([middle - dots.low, dots.high - middle]), 0.0)
        sides: dict[str, Any] = {"xerr" if along_x else "yerr": ends}
        axes.errorbar(dots.x, dots.y, fmt="none", ecolor=dots.colour, lw=1.5, capsize=2.5, **sides)


def _draw_axis(axes: Any, axis: Any, wanted: Axis) -> None:
    from matplotlib.ticker import NullLocator

    horizontal = axis is axes.xaxis
    (axes.set_xlabel if horizontal else axes.set_ylabel)(wanted.title)
    if wanted.log:
        (axes.set_xscale if horizontal else axes.set_yscale)("log")
    axis.set_ticks(wanted.ticks, [tick(value, wanted.unit) for value in wanted.ticks])
    axis.set_minor_locator(NullLocator())
    (axes.set_xlim if horizontal else axes.set_ylim)(*wanted.ends)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
