"""Figures of what-if questions: two parameters as a heat map, sensitivities as a tornado, scenarios side
by side.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app import plan_view as view
from app.page import layout
from solvers.alternatives import name_of
from solvers.grid import Axis, Grid
from solvers.parameters import PARAMETERS
from solvers.planner import Plan
from solvers.sensitivity import Sensitivity

Array = npt.NDArray[np.float64]

SHOWN = {
    "throughput": "requests/s with both paths",
    "speedup": "times Basic",
    "split": "split: % read through decode nodes",
    "per_node": "requests/s a node",
    "bottleneck": "what limits",
}
"""What a heat map can show, by its name in the link."""

_UNITS = {
    "snic_bytes_per_s": (1e9 / 8, "Gbps"),
    "cnic_bytes_per_s": (1e9 / 8, "Gbps"),
    "dram_bytes_per_s": (1e9, "GB/s"),
    "hit_rate": (0.01, "%"),
    "context_tokens": (1.0, "tokens"),
    "append_tokens": (1.0, "tokens"),
    "generate_tokens": (1.0, "tokens"),
}
_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#999999",
)
_MOST_TICKS = 9
_NO_EFFECT = 5e-4


def shown(name: str, value: float | str) -> str:
    """Return a parameter's value with its unit, as people write it."""
    if isinstance(value, str):
        return value
    scale, unit = _UNITS.get(name, (1.0, ""))
    number = value / scale
    if name == "hit_rate":
        text = f"{number:.4g}" if number < 99 else f"{number:.2f}"
    else:
        text = f"{number:,.0f}" if number >= 1000 or number == int(number) else f"{number:.4g}"
    return f"{text} {unit}".rstrip()


def labels(axis: Axis) -> list[str]:
    """Return the values of an axis as labels, all different."""
    found = [shown(axis.name, value) for value in axis.values]
    if len(set(found)) == len(found):
        return found
    scale, unit = _UNITS.get(axis.name, (1.0, ""))
    return [f"{float(value) / scale:.7g} {unit}".rstrip() for value in axis.values]


def title_of(axis: Axis) -> str:
    """Return the title of an axis, with its unit."""
    unit = _UNITS.get(axis.name, (1.0, ""))[1]
    label = axis.parameter.label
    return (
        f"{label}, {unit}"
        if unit and not label.endswith("request")
        else (f"{label.removesuffix(' a request')}, {unit} a request" if unit else label)
    )


def values_of(found: Grid, what: str, nodes: tuple[int, int]) -> Array:
    """Return what a heat map shows of each cell; ``nodes``: P and D where no axis says another."""
    if what == "speedup":
        return found.throughput / found.throughput_basic
    if what == "split":
        return 100 * found.split
    if what == "per_node":
        counts = [
            np.reshape(found.x.values, (1, -1))
            if found.x.name == name
            else np.reshape(found.y.values, (-1, 1))
            if found.y.name == name
            else now
            for name, now in zip(("prefill_nodes", "decode_nodes"), nodes, strict=True)
        ]
        return found.throughput / (counts[0] + counts[1])
    if what == "bottleneck":
        return np.where(found.bottleneck >= 0, found.bottleneck, np.nan).astype(float)
    return found.throughput


def heat_map(
    found: Grid, what: str, nodes: tuple[int, int], now: tuple[float | str, float | str]
) -> Any:
    """Return the grid as a heat map; ``now``: x and y of the scenario, which is marked in it.

    ``nodes``: prefill and decode nodes of the scenario. Cells that cannot be served are grey and say
    why.
    """
    from plotly import graph_objects

    values = values_of(found, what, nodes)
    columns, rows = labels(found.x), labels(found.y)
    used = sorted(set(found.bottleneck[found.bottleneck >= 0].tolist()))
    limits = {k: view.words(name_of(found.keys[k])) for k in used}
    figure = graph_objects.Figure()
    look: dict[str, Any] = {
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": SHOWN[what].split(":")[0], "side": "right"}},
    }
    if what == "bottleneck":
        place = {k: i for i, k in enumerate(used)}
        values = np.vectorize(lambda k: place.get(k, np.nan), otypes=[float])(found.bottleneck)
        look = _categories([limits[k] for k in used])
    hover = [
        [
            f"{row}; {column}<br>{throughput:,.1f} requests/s, {limits.get(limit, '')} limits"
            for column, throughput, limit in zip(columns, rates, keys, strict=True)
        ]
        for row, rates, keys in zip(rows, found.throughput, found.bottleneck.tolist(), strict=True)
    ]
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=values,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        name=SHOWN[what],
        **look,
    )
    if found.reasons:
        _add_unserved(figure, found, columns, rows)
    here = _place(found, now)
    if here is not None:
        j, i = here
        figure.add_scatter(
            x=[columns[i]],
            y=[rows[j]],
            mode="markers",
            name="this scenario",
            marker={
                "symbol": "circle-open",
                "size": 15,
                "color": view.SATURATED,
                "line": {"width": 3},
            },
            hovertemplate="this scenario<extra></extra>",
        )
    for update, axis, texts in (
        (figure.update_xaxes, found.x, columns),
        (figure.update_yaxes, found.y, rows),
    ):
        every = -(-len(texts) // _MOST_TICKS)
        update(
            type="category",
            title=title_of(axis),
            tickvals=texts[::every],
            ticktext=[_bare(axis, text) for text in texts[::every]],
            showgrid=False,
        )
    return layout(figure, _finding(found, what, values, here, limits), 520, showlegend=False)


def _bare(axis: Axis, text: str) -> str:
    unit = _UNITS.get(axis.name, (1.0, ""))[1]
    return text.removesuffix(f" {unit}") if unit else text


def _categories(names: Sequence[str]) -> dict[str, Any]:
    """Return the look of a heat map whose values are numbers of categories."""
    count = len(names)
    scale = [
        [edge / count, _COLOURS[k % len(_COLOURS)]] for k in range(count) for edge in (k, k + 1)
    ]
    return {
        "colorscale": scale,
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorbar": {"tickvals": list(range(count)), "ticktext": list(names), "len": 0.9},
    }


def _add_unserved(figure: Any, found: Grid, columns: list[str], rows: list[str]) -> None:
    mask = np.full(found.throughput.shape, np.nan)
    texts = np.full(found.throughput.shape, "", dtype=object)
    for cell, reason in found.reasons.items():
        mask[cell] = 1.0
        texts[cell] = html.escape(reason if len(reason) <= 110 else f"{reason[:107]}...")
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=mask,
        text=texts,
        colorscale=[[0, "#BBBBBB"], [1, "#BBBBBB"]],
        showscale=False,
        hoverongaps=False,
        hovertemplate="%{y}; %{x}<br>cannot be served: %{text}<extra></extra>",
        name="cannot be served",
    )


def _place(found: Grid, now: tuple[float | str, float | str]) -> tuple[int, int] | None:
    """Return row and column of the scenario, None where it is outside the grid."""
    places = []
    for axis, value in ((found.y, now[1]), (found.x, now[0])):
        if isinstance(value, str):
            if value not in axis.values:
                return None
            places.append(axis.values.index(value))
            continue
        numbers = np.array(axis.values, float)
        if not numbers.min() * 0.999 <= value <= numbers.max() * 1.001:
            return None
        places.append(int(np.argmin(np.abs(numbers - value))))
    return places[0], places[1]


def _finding(
    found: Grid,
    what: str,
    values: Array,
    here: tuple[int, int] | None,
    limits: Mapping[int, str],
) -> str:
    if np.isnan(found.throughput).all():
        return "None of these can be served"
    if what == "bottleneck":
        return f"What limits: {', '.join(limits.values())}"
    j, i = np.unravel_index(int(np.nanargmax(values)), values.shape)
    x = f"{found.x.parameter.label} {shown(found.x.name, found.x.values[i])}"
    y = f"{found.y.parameter.label} {shown(found.y.name, found.y.values[j])}"
    form = {"speedup": "{:.2f} times Basic", "split": "{:.0f} % through decode nodes"}
    most = form.get(what, "{:,.1f} requests/s").format(values[j, i])
    text = f"Most: {most} at {y}, {x}"
    if here is not None and what in ("throughput", "per_node") and values[here] > 0:
        text += f"; {values[j, i] / values[here]:.2f} times this scenario"
    return text


# ---- one at a time ---------------------------------------------------------------------------------


def tornado(rows: Sequence[Sensitivity], share: float) -> Any:
    """Return the change of throughput at ``share`` less and more of each parameter that has any."""
    from plotly import graph_objects

    kept = [row for row in rows if row.width > _NO_EFFECT][::-1]
    figure = graph_objects.Figure()
    series = (
        (f"{share:.0%} less", view.COMPUTE, [(r.low_value, r.throughput_low) for r in kept]),
        (f"{share:.0%} more", view.DUAL_PATH, [(r.high_value, r.throughput_high) for r in kept]),
    )
    for name, colour, points in series:
        changes = [
            None if rate is None else 100 * (rate / row.throughput_now - 1)
            for row, (_, rate) in zip(kept, points, strict=True)
        ]
        figure.add_bar(
            name=name,
            y=[_effect_label(row) for row in kept],
            x=changes,
            orientation="h",
            marker={"color": colour},
            text=[
                f"{shown(row.name, value)}: " + ("not served" if c is None else f"{c:+.1f} %")
                for row, (value, _), c in zip(kept, points, changes, strict=True)
            ],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    known = [c for trace in figure.data for c in trace.x if c is not None] or [0.0]
    span = max(1.0, *(abs(c) for c in known))
    figure.update_xaxes(title="change of throughput, %", range=[-1.75 * span, 1.75 * span])
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "reversed"}
    title = (
        f"Most depends on {PARAMETERS[rows[0].name].label}"
        if kept
        else "Nothing moves the throughput"
    )
    return layout(figure, title, 170 + 52 * len(kept), barmode="group", legend=legend)


def _effect_label(row: Sensitivity) -> str:
    return html.escape(PARAMETERS[row.name].label)


def without_effect(rows: Sequence[Sensitivity]) -> list[str]:
    """Return the labels of parameters that a tornado leaves out."""
    return [PARAMETERS[row.name].label for row in rows if row.width <= _NO_EFFECT]


# ---- scenarios side by side ------------------------------------------------------------------------


def comparison(plans: Mapping[str, Plan]) -> Any:
    """Return throughput of named plans: Basic, dual path and the compute limit."""
    from plotly import graph_objects

    names = [html.escape(name) for name in plans]
    series = (
        ("Basic", view.BASIC, [p.throughput_basic_requests_per_s for p in plans.values()]),
        ("dual path", view.DUAL_PATH, [p.throughput_requests_per_s for p in plans.values()]),
        (
            "compute limit",
            view.COMPUTE,
            [p.throughput_oracle_requests_per_s for p in plans.values()],
        ),
    )
    figure = graph_objects.Figure()
    for name, colour, values in series:
        figure.add_bar(
            name=name,
            x=names,
            y=values,
            marker={"color": colour},
            text=["" if value is None else f"{value:,.0f}" for value in values],
            textposition="outside",
            cliponaxis=False,
        )
    best = max(plans, key=lambda name: plans[name].throughput_requests_per_s)
    figure.update_yaxes(title="requests/s", rangemode="tozero")
    figure.update_xaxes(type="category")
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    title = f"{best} serves most: {plans[best].throughput_requests_per_s:,.1f} requests/s"
    return layout(figure, title, 420, barmode="group", legend=legend)
