"""Figures of a fleet's report: what it serves, how wrong the forecast may be, cost against capacity."""

from __future__ import annotations

import html
import math
from typing import Any

from app import fleet_view as view
from app.page import layout
from solvers.fleet import Fleet

ASKED, SERVED, LOST, PAST = "#0072B2", "#009E73", "#E69F00", "#BBBBBB"
_LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
_FARTHEST = 4.0
"""Factors beyond this one are cut off in the drawing, and written out."""


def cases(fleet: Fleet) -> Any:
    """Draw, for each case, what is asked and what is served in time, with all nodes and without some."""
    from plotly import graph_objects

    shown = fleet.promises[::-1]
    names = [html.escape(one.case) for one in shown]
    bars = [("asked for", [one.asked for one in shown], ASKED)]
    if fleet.survive:
        words = f"served in time, any {view.nodes_words(fleet.survive)} down"
        bars.insert(0, (words, [one.after_loss for one in shown], LOST))
    bars.insert(0, ("served in time, all nodes", [one.within for one in shown], SERVED))
    figure = graph_objects.Figure()
    for label, values, colour in bars:
        figure.add_bar(
            name=label,
            y=names,
            x=values,
            orientation="h",
            marker_color=colour,
            text=[f"{value:,.3g}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:,.1f} turns/s<extra>" + label + "</extra>",
        )
    largest = max(max(values) for _, values, _ in bars)
    return layout(
        figure,
        "What is asked for, and what this fleet serves in time",
        130 + 34 * len(bars) * len(names),
        xaxis={"title": {"text": "turns a second"}, "range": [0, 1.12 * largest]},
        yaxis={"automargin": True},
        barmode="group",
        legend={**_LEGEND, "traceorder": "reversed"},
        margin={"l": 20, "r": 50, "t": 96, "b": 50},
    )


def breaks(fleet: Fleet) -> Any:
    """Draw by how much each figure of the forecast may change before the fleet is too small."""
    from plotly import graph_objects

    assert fleet.outlook is not None
    rows = [one for one in fleet.outlook.breaks if not math.isnan(one.factor)][::-1]
    names = [html.escape(view.figure_words(one.figure)) for one in rows]
    figure = graph_objects.Figure()
    drawn = [("with all nodes", [one.factor for one in rows], SERVED)]
    if fleet.survive:
        label = f"any {view.nodes_words(fleet.survive)} down"
        drawn.insert(0, (label, [one.after_loss for one in rows], LOST))
    for label, factors, colour in drawn:
        figure.add_bar(
            name=label,
            y=names,
            x=[_change(factor) for factor in factors],
            orientation="h",
            marker_color=colour,
            text=[view.change_words(factor) for factor in factors],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra>" + label + "</extra>",
        )
    figure.add_vline(x=0, line={"color": "#444", "width": 1.5})
    ends = [_change(factor) for _, factors, _ in drawn for factor in factors] + [0.0]
    low, high = min(ends), max(ends)
    room = 0.18 * max(high - low, 0.1)
    return layout(
        figure,
        "How far each figure may be from the forecast, the others as foreseen",
        130 + 30 * len(drawn) * len(names),
        xaxis={
            "title": {"text": "change against the forecast"},
            "tickformat": "+.0%",
            "range": [low - room, high + room],
        },
        barmode="group",
        legend={**_LEGEND, "traceorder": "reversed"},
        margin={"l": 20, "r": 50, "t": 96, "b": 50},
    )


def _change(factor: float) -> float:
    return min(factor, _FARTHEST) - 1.0 if math.isfinite(factor) else _FARTHEST - 1.0


def front(fleet: Fleet) -> Any:
    """Draw cost against capacity, the chosen fleet marked."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[point.cost_usd_per_hour for point in fleet.front],
        y=[point.requests_per_s for point in fleet.front],
        mode="lines+markers",
        name="the most for the money",
        line={"dash": "dot", "width": 1, "color": ASKED},
        text=[html.escape(row[0]) for row in view.point_rows(fleet)],
        hovertemplate="%{y:,.1f} turns/s for %{x:,.2f} USD/h<br>%{text}<extra></extra>",
    )
    figure.add_scatter(
        x=[fleet.cost_usd_per_hour],
        y=[fleet.requests_per_s],
        mode="markers",
        name="this fleet, at the required rate" if fleet.goal == "least cost" else "this fleet",
        marker={"size": 13, "symbol": "diamond", "color": "#D55E00"},
    )
    return layout(
        figure,
        "Cost against capacity",
        420,
        xaxis={"title": {"text": "USD an hour"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "turns a second, today"}, "rangemode": "tozero"},
        legend=_LEGEND,
        margin={"l": 20, "r": 50, "t": 96, "b": 50},
    )
