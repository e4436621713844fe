"""Panels of a profile drawn with plotly, for the page."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.page import layout
from app.profile_marks import FAR, Axis, Bools, Dots, Line, Panel, axis
from app.profile_panels import CALLED
from app.profile_words import tick

if TYPE_CHECKING:
    from calibration.profile import Change

_LONGEST_TITLE = 45  # of an axis, characters that a page of 820 pixels has room for
_LONGEST_BESIDE_ROWS = 32  # names of rows leave less room
_LONGEST_ROW = 36
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=\S+$)")
_LINE = 16  # pixels of a line of a row's name


def figure(panel: Panel) -> Any:
    """Draw a panel with plotly; text of the profile is escaped."""
    from plotly import graph_objects

    drawn = graph_objects.Figure()
    for line in panel.lines:
        _draw_line(drawn, line)
    far_shown = False
    # Of several curves, each with dots of its colour, the legend names the curves only: it gets long.
    curves = {line.name for line in panel.lines} if len(panel.lines) > 1 else set()
    for dots in panel.dots:
        far = np.zeros(len(dots.x), bool) if dots.far is None else dots.far
        if not far.all():
            _draw_dots(drawn, dots, ~far, bool(panel.rows), listed=dots.name not in curves)
        if far.any():
            _draw_dots(drawn, dots, far, bool(panel.rows), first_far=not far_shown)
            far_shown = True
    _draw_axis(drawn.update_xaxes, panel.x, beside_rows=bool(panel.rows))
    if panel.rows:
        drawn.update_yaxes(
            tickvals=list(range(len(panel.rows))),
            ticktext=[folded(row, _LONGEST_ROW) for row in panel.rows],
            range=panel.y.ends,
            automargin=True,
        )
    else:
        _draw_axis(drawn.update_yaxes, panel.y)
    if panel.kind in ("intervals", "residuals"):
        drawn.add_vline(x=1.0, line={"color": "#888888", "dash": "dot", "width": 1})
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return layout(
        drawn,
        panel.title,
        160 + _row_height(panel.rows) * len(panel.rows) if panel.rows else 430,
        margin={"l": 80, "r": 50, "t": 80, "b": 55},
        title_y=0.97 if not panel.rows else None,
        title_yanchor="top",
        legend=legend,
        showlegend=panel.legend or not panel.rows,
    )


def folded(text: str, longest: int = _LONGEST_TITLE) -> str:
    """Return a text, escaped, in lines that are no longer; a word that is stays whole.

    A number at the end stays with its unit.
    """
    glued = _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(glued, longest, break_long_words=False, break_on_hyphens=False)
    return "<br>".join(html.escape(line) for line in lines).replace("\N{NO-BREAK SPACE}", " ")


def _row_height(rows: Sequence[str]) -> int:
    """Return the pixels of each row: all are as high as the one with the most lines."""
    most = max(folded(row, _LONGEST_ROW).count("<br>") for row in rows)
    return 21 + _LINE * most


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
    drawn: Any,
    dots: Dots,
    mask: Bools,
    along_x: bool,
    *,
    first_far: bool | None = None,
    listed: bool = True,
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
        showlegend=listed and first_far is not False,
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


def _draw_axis(update: Any, axis: Axis, *, beside_rows: bool = False) -> None:
    ends = [math.log10(end) for end in axis.ends] if axis.log else list(axis.ends)
    update(
        type="log" if axis.log else "linear",
        range=ends,
        title={"text": folded(axis.title, _LONGEST_BESIDE_ROWS if beside_rows else _LONGEST_TITLE)},
        tickvals=axis.ticks,
        ticktext=[_tick(value, axis.unit) for value in axis.ticks],
        automargin=True,
    )


def _tick(value: float, unit: str) -> str:
    """Return what stands at a tick; times some value in full, 0.00001x and not 1e-05x."""
    if unit != "x":
        return tick(value, unit)
    return f"{np.format_float_positional(float(f'{value:g}'), trim='-')}x"


def changes(found: Sequence[Change], incomparable: Collection[str] = ()) -> Any:
    """Return figures after over before with their 95 % intervals (log axis); 1 is no change.

    Those that are ``incomparable``, such as of other LLMs, are grey whatever they are.
    """
    from plotly import graph_objects

    kept = [change for change in found if change.ratio is not None]
    told = [change for change in kept if change.figure not in incomparable]
    drawn = graph_objects.Figure()
    reached = [1.0]
    for name, colour, mine in (
        ("beyond the noise", "#D55E00", [c for c in told if c.beyond_noise]),
        ("within it, or not known", "#0072B2", [c for c in told if not c.beyond_noise]),
        ("not comparable", "#999999", [c for c in kept if c.figure in incomparable]),
    ):
        if not mine:
            continue
        ratios = np.array([c.ratio for c in mine], float)
        low = np.array([c.ratio if c.ratio_low is None else c.ratio_low for c in mine], float)
        high = np.array([c.ratio if c.ratio_high is None else c.ratio_high for c in mine], float)
        reached += [*low.tolist(), *high.tolist()]
        drawn.add_scatter(
            x=ratios,
            y=[CALLED[c.figure] for c in mine],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": high - ratios,
                "arrayminus": ratios - low,
            },
            text=[c.figure for c in mine],
            hovertemplate="%{text}: %{x:.3f}<extra>" + name + "</extra>",
        )
    drawn.add_vline(x=1.0, line={"color": "#888888", "dash": "dot", "width": 1})
    title = "after over before (log scale; dotted: no change)"
    _draw_axis(drawn.update_xaxes, axis(title, "x", np.array(reached), log=True), beside_rows=True)
    names = [CALLED[change.figure] for change in kept][::-1]
    drawn.update_yaxes(
        categoryorder="array",
        categoryarray=names,
        tickvals=names,
        ticktext=[folded(name, _LONGEST_ROW) for name in names],
        range=[-0.5, len(names) - 0.5],
        automargin=True,
    )
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    return layout(drawn, "What changed", 190 + 22 * len(kept), legend=legend)
