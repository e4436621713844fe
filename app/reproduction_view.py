"""What the reproduction looks like: a table for the terminal, plotly figures, one HTML file."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.files import write_atomically
from app.page import LEGEND, layout, page, pictures, table
from solvers.reproduction.effects import OUTCOMES

AIM = 0.10
"""How near a ratio should come."""
COLOURS = {
    "basic": "#D55E00",
    "layerwise": "#E69F00",
    "dual path": "#56B4E9",
    "dualpath": "#0072B2",
    "oracle": "#7f7f7f",
}
NAMES = {
    "basic": "Basic",
    "layerwise": "+ layerwise",
    "dual path": "+ dual path",
    "dualpath": "+ scheduler (DualPath)",
    "oracle": "Oracle",
}
_PARTS = {
    "scheduling_s": ("scheduling", "#999999"),
    "allocating_s": ("allocating", "#CC79A7"),
    "reading_s": ("reading", "#56B4E9"),
    "prefill_s": ("prefill", "#0072B2"),
}


_LABEL = 34  # characters of a line that leave room for the plot on a narrow page


def standing(row: Mapping[str, Any]) -> str:
    """Say in a word how a figure came out."""
    if row["fitted"]:
        return "fitted"
    if row["kind"] == "bound":
        return "holds" if row["ours"] <= row["paper"] else "broken"
    return "within 10 %" if abs(row["error"]) <= AIM else "off"


def number(value: float, digits: int = 4) -> str:
    """Return a figure as people read it; bytes of a working set in GB."""
    if value >= 1e8:
        return f"{value / 1e9:,.1f} GB"
    if 0 < value < 1e-2:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{digits}g}"


def amount(row: Mapping[str, Any], whose: str, digits: int = 4) -> str:
    """Return what the "paper" has or is "ours", with a unit where the quantity does not name one."""
    if row["quantity"].startswith("JCT less"):
        return f"{100 * row[whose]:.3g} %"
    return number(row[whose], digits)


def summary(rows: list[Mapping[str, Any]]) -> str:
    """Return one sentence on how the figures came out."""
    counted = ("ratio", "absolute")
    predicted = [row for row in rows if not row["fitted"] and row["kind"] in counted]
    near = sum(1 for row in predicted if abs(row["error"]) <= AIM)
    ratios = [row for row in predicted if row["kind"] == "ratio"]
    near_ratios = sum(1 for row in ratios if abs(row["error"]) <= AIM)
    return (
        f"{near} of {len(predicted)} predicted figures are within 10 % of the paper's, "
        f"{near_ratios} of {len(ratios)} ratios"
    )


def show_reproduction(found: Mapping[str, Any]) -> None:
    """Print the figures, and the effects of assumptions where they were asked for."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    shown = Table(box=None, pad_edge=False)
    for heading in ("figure", "quantity", "paper", "ours", "error", "", "how"):
        right = heading in ("paper", "ours", "error")
        shown.add_column(heading, justify="right" if right else "left", overflow="fold")
    before = ""
    for row in found["rows"]:
        error = "" if row["kind"] == "bound" else f"{row['error']:+.1%}"
        first = row["figure"] if row["figure"] != before else ""
        before = row["figure"]
        how = standing(row)
        colour = {"off": "red", "broken": "red", "fitted": "dim"}.get(how, "green")
        cells = (
            escape(first),
            escape(row["quantity"]),
            amount(row, "paper"),
            amount(row, "ours"),
            error,
        )
        shown.add_row(*cells, f"[{colour}]{how}[/{colour}]", escape(row["note"]))
    console.print(shown)
    if found["rows"]:
        console.print(summary(found["rows"]))
    if found["effects"]:
        effects = Table(box=None, pad_edge=False, title="what each assumption moves")
        effects.add_column("assumption instead")
        for name in OUTCOMES.values():
            effects.add_column(name, justify="right")
        for entry in found["effects"]:
            effects.add_row(escape(entry["meaning"]), *_changes(entry))
        console.print(effects)


def _changes(entry: Mapping[str, Any]) -> list[str]:
    if entry["meaning"] == "as assumed":
        return [number(entry["outcomes"][name]) for name in OUTCOMES]
    return [f"{entry['change'][name]:+.1%}" for name in OUTCOMES]


def write_reproduction(found: Mapping[str, Any], path: Path) -> None:
    """Write the report. Raises InputError, one sentence, if ``path`` cannot be written to."""
    constants = ", ".join(f"{k} {v:.3g}" for k, v in found["constants"].items())
    parts = [pictures(figures(found)), "<h2>Every figure</h2>", _figures_table(found)]
    if found["effects"]:
        heads = ("assumption instead", *OUTCOMES.values())
        rows = [(entry["meaning"], *_changes(entry)) for entry in found["effects"]]
        parts += ["<h2>What each assumption moves</h2>", table(heads, rows, ["here"], text=1)]
    assumed = [(name, str(value)) for name, value in found["assumptions"].items()]
    parts += ["<h2>Assumptions</h2>", table(("name", "value"), assumed, text=2)]
    below = (
        f"Predicted with three constants fitted to three figures ({constants}); "
        f"{summary(found['rows'])}."
    )
    text = page(
        "The paper's evaluation, simulated", "The paper's evaluation, simulated", below, parts
    )
    write_atomically(path, text)


def _figures_table(found: Mapping[str, Any]) -> str:
    rows = [
        (
            row["figure"],
            row["quantity"],
            f"{standing(row)}; {row['note']}" if row["note"] else standing(row),
            amount(row, "paper"),
            amount(row, "ours"),
            "" if row["kind"] == "bound" else f"{row['error']:+.1%}",
        )
        for row in found["rows"]
    ]
    kinds = ["full" if standing(row) in ("off", "broken") else "" for row in found["rows"]]
    heads = ("figure", "quantity", "how it came out", "paper", "ours", "error")
    return table(heads, rows, kinds, text=3)


def figures(found: Mapping[str, Any]) -> list[Any]:
    """Return the plotly figures of what was run."""
    drawn = [_errors(found["rows"])] if found["rows"] else []
    if found["batches"]:
        drawn.append(_batches(found["batches"]))
    if found["curves"]:
        drawn += [_latency(found["curves"]), _breakdown(found["curves"])]
    return drawn


def _errors(rows: list[Mapping[str, Any]]) -> Any:
    from plotly import graph_objects

    kept = [row for row in rows if row["kind"] != "bound"][::-1]
    names = [f"{row['figure']}: {row['quantity']}" for row in kept]
    labels = [_label(row) for row in kept]
    colours = {"fitted": "#999999", "within 10 %": "#0072B2", "off": "#D55E00"}
    figure = graph_objects.Figure()
    figure.add_vrect(x0=-AIM, x1=AIM, fillcolor="#0072B2", opacity=0.08, line_width=0)
    for how, colour in colours.items():
        mine = [i for i, row in enumerate(kept) if standing(row) == how]
        figure.add_scatter(
            x=[kept[i]["error"] for i in mine],
            y=[names[i] for i in mine],
            mode="markers+text",
            text=[f" {amount(kept[i], 'ours', 3)} " for i in mine],
            # Away from the line of no error, over which they could not be read.
            textposition=["middle left" if kept[i]["error"] < 0 else "middle right" for i in mine],
            textfont={"size": 11},
            cliponaxis=False,
            marker={"size": 10, "color": colour},
            name=how,
        )
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=names,
        tickvals=names,
        ticktext=labels,
        tickfont={"size": 11},
        range=[-0.7, len(names) - 0.3],
        automargin=True,
    )
    errors = [row["error"] for row in kept] or [0.0]
    low, high = min(*errors, -AIM), max(*errors, AIM)
    room = 0.6 * (high - low)  # for the numbers beside the outermost dots, on a narrow page too
    figure.update_xaxes(
        title="ours over the paper's, minus one<br>(shaded: within 10 %)",
        tickformat="+.0%",
        range=[low - room, high + room],
        zeroline=True,
        zerolinecolor="#888888",
    )
    lines = sum(1 + label.count("<br>") for label in labels)
    height = 170 + max(24 * len(kept), 18 * lines)
    return layout(figure, "Ours against the paper's (labels: ours)", height, legend=LEGEND)


def _label(row: Mapping[str, Any]) -> str:
    """Return a row's name in two short lines, if need be without the details of its set-up."""
    quantity = re.sub(r' ?\("[^"]*"\)', "", row["quantity"])
    quantity = quantity.replace("+ ", "+\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(f"{row['figure']}: {quantity}", _LABEL, break_on_hyphens=False)
    if len(lines) > 2:
        short = f"{row['figure'].split(',')[0]}: {quantity}"
        lines = textwrap.wrap(short, _LABEL, break_on_hyphens=False)
    return "<br>".join(html.escape(line) for line in lines)


def _batches(batches: list[Mapping[str, Any]]) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for arm, name in NAMES.items():
        figure.add_bar(
            x=[f"{batch['agents']:,} agents" for batch in batches],
            y=[batch["jct_s"][arm] for batch in batches],
            name=name,
            marker_color=COLOURS[arm],
        )
    figure.update_yaxes(title="completion time, s")
    return layout(
        figure, "Offline: a batch of 64K agents on 2P4D", 420, barmode="group", legend=LEGEND
    )


def _latency(curves: list[Mapping[str, Any]]) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for arm in ("basic", "dualpath"):
        points = [point for point in curves if point["arm"] == arm]
        for part, dash in (("mean", "solid"), ("p99", "dot")):
            figure.add_scatter(
                x=[point["rate_aps"] for point in points],
                y=[point["ttft_s"][part] for point in points],
                mode="lines+markers",
                name=f"{NAMES[arm]}, {part}",
                line={"color": COLOURS[arm], "dash": dash},
            )
    figure.add_hline(y=4.0, line={"color": "#888888", "dash": "dash"})
    # Of its own: plotly puts a line's label at 4 on the exponents of a log axis.
    figure.add_annotation(
        x=0,  # where no curve comes near the line
        xref="paper",
        y=math.log10(4.0),
        text="SLO, 4 s",
        showarrow=False,
        xanchor="left",
        yanchor="bottom",
    )
    figure.update_yaxes(title="TTFT, s (log scale)", type="log", dtick=1)
    figure.update_xaxes(title="agents/s")
    return layout(figure, "Online: TTFT against load, 2P4D", 420, legend=LEGEND)


def _breakdown(curves: list[Mapping[str, Any]]) -> Any:
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    # One scale for both: else the lower of both looks as slow as the higher.
    figure = make_subplots(1, 2, subplot_titles=("Basic", "DualPath"), shared_yaxes=True)
    for column, arm in enumerate(("basic", "dualpath"), start=1):
        points = [point for point in curves if point["arm"] == arm]
        for part, (name, colour) in _PARTS.items():
            bar = graph_objects.Bar(
                x=[f"{point['rate_aps']:g}" for point in points],
                y=[point["parts_s"][part] for point in points],
                name=name,
                marker_color=colour,
                showlegend=column == 1,
            )
            figure.add_trace(bar, row=1, col=column)
    figure.update_xaxes(title="agents/s")
    figure.update_yaxes(title="seconds, mean of requests", col=1)
    return layout(
        figure,
        "What TTFT consists of, both on one scale",
        420,
        barmode="stack",
        legend=LEGEND | {"y": 1.1},
    )
