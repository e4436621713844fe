"""Panels of a profile drawn with plotly, for the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from app.page import layout
from app.profile_marks import FAR, Axis, Bools, Dots, Line, Panel
from app.profile_words import tick

if TYPE_CHECKING:
    from calibration.profile import Change


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
        drawn.add_vline(x=1.0, line={"color": "#888888", "dash": "dot", "width": 1})
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return layout(
        drawn,
        panel.title,
        160 + 21 * len(panel.rows) if panel.rows else 430,
        margin={"l": 80, "r": 50, "t": 80, "b": 55},
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


def changes(found: Sequence[Change]) -> Any:
    """Return figures after over before with their 95 % intervals (log axis); 1 is no change."""
    from plotly import graph_objects

    kept = [change for change in found if change.ratio is not None][::-1]
    drawn = graph_objects.Figure()
    for name, colour, mine in (
        ("beyond the noise", "#D55E00", [c for c in kept if c.beyond_noise]),
        ("within it, or not known", "#0072B2", [c for c in kept if not c.beyond_noise]),
    ):
        ratios = np.array([c.ratio for c in mine], float)
        low = np.array([c.ratio if c.ratio_low is None else c.ratio_low for c in mine], float)
        high = np.array([c.ratio if c.ratio_high is None else c.ratio_high for c in mine], float)
        drawn.add_scatter(
            x=ratios,
            y=[html.escape(c.figure) for c in mine],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": high - ratios,
                "arrayminus": ratios - low,
            },
            hovertemplate="%{y}: %{x:.3f}<extra>" + name + "</extra>",
        )
    drawn.add_vline(x=1.0, line={"color": "#888888", "dash": "dot", "width": 1})
    drawn.update_xaxes(type="log", title="after over before (log scale; dotted: no change)")
    names = [html.escape(change.figure) for change in kept]
    drawn.update_yaxes(categoryorder="array", categoryarray=names, automargin=True)
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    return layout(drawn, "What changed", 170 + 22 * len(kept), legend=legend)
