"""The fleet as one HTML file (:mod:`page`)."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from app import fleet_view as view
from app.files import check_writable, write_atomically
from app.page import layout, page, pictures, table
from solvers.fleet import Fleet


def write_fleet(fleet: Fleet, path: Path) -> None:
    """Write the report. Raises InputError, one sentence, if ``path`` cannot be written to."""
    check_writable(path)
    write_atomically(path, fleet_html(fleet))


def fleet_html(fleet: Fleet) -> str:
    """Return the report as text; everything from the file is escaped."""
    drawn = [_cases(fleet)]
    if len(fleet.front) > 1:
        drawn.append(_front(fleet))
    tables: list[str] = []
    for title, heads, rows, words in (
        ("Nodes", view.NODE_HEADS, view.node_rows(fleet), 1),
        ("What is asked and what the LP promises", view.PROMISE_HEADS, view.promise_rows(fleet), 3),
        ("Simulated at the required rate", view.TRIED_HEADS, view.tried_rows(fleet), 3),
        ("What decides it", view.WORTH_HEADS, view.worth_rows(fleet), 2),
        ("Cost against capacity", view.POINT_HEADS, view.point_rows(fleet), 1),
    ):
        if rows:
            tables += [f"<h2>{title}</h2>", table(heads, rows, text=words)]
        if heads is view.PROMISE_HEADS:
            said = "".join(f"<li>{html.escape(s)}</li>" for s in view.simulation_words(fleet))
            tables.append(f"<h2>Simulation</h2><ul>{said}</ul>")
    if fleet.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in fleet.notes)
        tables.append(f"<h2>Notes</h2><ul>{notes}</ul>")
    return page(
        f"{fleet.name}: fleet",
        view.headline(fleet),
        fleet.name + (" · interrupted: this is what was finished" if fleet.interrupted else ""),
        [_tiles(fleet), pictures(drawn), *tables],
    )


def _tiles(fleet: Fleet) -> str:
    cells = (
        f'<div class="tile"><span>{html.escape(label)}</span><b>{html.escape(value)}</b></div>'
        for label, value in view.facts(fleet)
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _cases(fleet: Fleet) -> Any:
    """Draw, for each case, what is asked, what counts as within the SLO, and what the LP promises."""
    from plotly import graph_objects

    names = [html.escape(one.case) for one in fleet.promises]
    figure = graph_objects.Figure()
    bars = (
        ("asked", [one.asked for one in fleet.promises], "#0072B2"),
        ("within the margin", [one.promised * fleet.margin for one in fleet.promises], "#009E73"),
        ("LP promises", [one.promised for one in fleet.promises], "#BBBBBB"),
    )
    for label, values, colour in bars:
        figure.add_bar(name=label, x=names, y=values, marker_color=colour)
    if fleet.survive:
        left = [one.after_loss * fleet.margin for one in fleet.promises]
        words = f"within the margin after any {fleet.survive} lost"
        figure.add_bar(name=words, x=names, y=left, marker_color="#E69F00")
    return layout(
        figure,
        "Every case, all classes together",
        380,
        yaxis={"title": {"text": "requests/s"}, "rangemode": "tozero"},
        barmode="group",
        legend={"orientation": "h", "y": -0.15},
    )


def _front(fleet: Fleet) -> Any:
    """Draw cost against capacity, the chosen fleet marked."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[point.cost_usd_per_hour for point in fleet.front],
        y=[point.requests_per_s for point in fleet.front],
        mode="lines+markers",
        name="the most for the money",
        line={"shape": "hv", "color": "#0072B2"},
        text=[html.escape(row[0]) for row in view.point_rows(fleet)],
        hovertemplate="%{y:,.1f} requests/s for %{x:,.2f} USD/h<br>%{text}<extra></extra>",
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
        xaxis={"title": {"text": "USD/h"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "requests/s"}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.2},
    )
