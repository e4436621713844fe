"""Figures of what-if questions: two parameters as a heat map, sensitivities as a tornado, scenarios side
by side.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app import plan_view as view
from app.page import LEGEND, layout
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
_BAR_TITLES = {"throughput": "requests/s", "split": "read through decode nodes, %"}
_FLAT = 1e-3
"""Relative range of values below which a map is of one colour: what is left is rounding."""

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
    "#882255",
)
_UNSERVED = "#BBBBBB"  # none of the colours above
_MOST_TICKS, _MOST_NAMES = 9, 20
_NO_EFFECT = 5e-4
_SAME = 5e-3
"""Relative difference up to which a sentence calls two rates the same."""
_NAME_LINE, _NAME_LINES = 22, 3


def shown(name: str, value: float | str, digits: int = 3) -> str:
    """Return a parameter's value with its unit, as people write it; whole numbers are not rounded."""
    if isinstance(value, str):
        return value
    scale, unit = _UNITS.get(name, (1.0, ""))
    number = value / scale
    if name == "hit_rate":
        text = f"{number:.4g}" if number < 99 else f"{number:.2f}"
    elif number == int(number):
        text = f"{number:,.0f}"
    else:
        rounded = float(f"{number:.{digits}g}") if number < 1000 else number
        text = f"{rounded:,.0f}" if rounded >= 10 ** (digits - 1) else f"{rounded:g}"
    return f"{text} {unit}".rstrip()


def labels(axis: Axis) -> list[str]:
    """Return the values of an axis as labels, all different."""
    found = [shown(axis.name, value, digits=4) for value in axis.values]
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
        basic = np.where(found.throughput_basic > 0, found.throughput_basic, np.nan)
        return found.throughput / basic
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
        "colorbar": {
            "title": {"text": _BAR_TITLES.get(what, SHOWN[what]), "side": "right"},
            "x": 1.0,
            "y": 0.45,
            "len": 0.9,  # below the figure's own buttons
        },
    }
    if _flat(values):
        middle = float(np.nanmean(values))
        look |= {"zmin": 0.9 * middle - 0.1, "zmax": 1.1 * middle + 0.1}
    if what == "bottleneck":
        place = {k: i for i, k in enumerate(used)}
        values = np.vectorize(lambda k: place.get(k, np.nan), otypes=[float])(found.bottleneck)
        look = _categories([limits[k] for k in used])
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=values,
        customdata=_cells(found, limits),
        hovertemplate=(
            f"{found.y.parameter.label}: %{{y}}<br>{found.x.parameter.label}: %{{x}}<br>"
            "%{customdata[0]:,.1f} requests/s, Basic %{customdata[1]:,.1f}<br>"
            "%{customdata[2]:.0%} read through decode nodes<br>"
            "limit: %{customdata[3]}<extra></extra>"
        ),
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
            # Filled with white: seen on every colour of the map.
            marker={"size": 13, "color": "white", "line": {"width": 4, "color": view.SATURATED}},
            text=[_hover(found, columns, rows, limits, j, i)],
            hovertemplate="this scenario<br>%{text}<extra></extra>",
            showlegend=True,
        )
    axes = {
        side: _ticks(axis, texts)
        for side, axis, texts in (("xaxis", found.x, columns), ("yaxis", found.y, rows))
    }
    title = _finding(found, what, values, here, limits)
    return layout(figure, title, 520, legend=LEGEND, **axes)


def _flat(values: Array) -> bool:
    """Tell whether all cells that are served say the same."""
    found = values[np.isfinite(values)]
    return bool(found.size and np.ptp(found) <= _FLAT * abs(float(found.mean())))


def _ticks(axis: Axis, texts: Sequence[str]) -> dict[str, Any]:
    """Return the look of an axis: as many ticks as there is room for, the unit in its title."""
    unit = _UNITS.get(axis.name, (1.0, ""))[1]
    most = _MOST_NAMES if isinstance(axis.values[0], str) else _MOST_TICKS
    every = -(-len(texts) // most)
    short = [shown(axis.name, value) for value in axis.values[::every]]
    if len(set(short)) < len(short):
        short = list(texts[::every])
    return {
        "type": "category",
        "title": title_of(axis),
        "tickvals": texts[::every],
        "ticktext": [text.removesuffix(f" {unit}") if unit else text for text in short],
        "showgrid": False,
    }


def _cells(found: Grid, limits: Mapping[int, str]) -> npt.NDArray[np.object_]:
    """Return what a cell tells besides where it is: requests/s, Basic's, split, and what limits."""
    names = np.array([limits.get(k, "none") for k in range(len(found.keys))] + ["none"], object)
    numbers = (found.throughput, found.throughput_basic, found.split)
    rounded = [np.round(part, 4).astype(object) for part in numbers]
    return np.dstack([*rounded, names[found.bottleneck]])  # of none, -1: the last


def _hover(
    found: Grid,
    columns: Sequence[str],
    rows: Sequence[str],
    limits: Mapping[int, str],
    j: int,
    i: int,
) -> str:
    return (
        f"{found.y.parameter.label}: {rows[j]}<br>{found.x.parameter.label}: {columns[i]}<br>"
        f"{found.throughput[j, i]:,.1f} requests/s, Basic {found.throughput_basic[j, i]:,.1f}<br>"
        f"{found.split[j, i]:.0%} read through decode nodes<br>"
        f"limit: {limits.get(int(found.bottleneck[j, i]), 'none')}"
    )


def _categories(names: Sequence[str]) -> dict[str, Any]:
    """Return the look of a heat map whose values are numbers of categories."""
    count = max(1, len(names))
    scale = [
        [edge / count, _COLOURS[k % len(_COLOURS)]] for k in range(count) for edge in (k, k + 1)
    ]
    return {
        "colorscale": scale,
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorbar": {
            "tickvals": list(range(len(names))),
            "ticktext": [_wrapped(name, 16, 3) for name in names],
            "y": 0.45,
            "len": 0.9,
        },
    }


def _add_unserved(figure: Any, found: Grid, columns: list[str], rows: list[str]) -> None:
    mask = np.full(found.throughput.shape, np.nan)
    texts = np.full(found.throughput.shape, "", dtype=object)
    for cell, reason in found.reasons.items():
        mask[cell] = 1.0
        texts[cell] = _wrapped(reason, 70, 4)
    figure.add_heatmap(
        x=columns,
        y=rows,
        z=mask,
        text=texts,
        colorscale=[[0, _UNSERVED], [1, _UNSERVED]],
        showscale=False,
        hoverongaps=False,
        hovertemplate="%{y}; %{x}<br>cannot be served: %{text}<extra></extra>",
        name="cannot be served",
        showlegend=True,
    )


def _wrapped(text: str, width: int, lines: int) -> str:
    """Return a text as HTML of a few lines of some width; what has no room is cut with an ellipsis."""
    found = textwrap.wrap(text, width, max_lines=lines, placeholder=" ...") or [""]
    return "<br>".join(html.escape(line) for line in found)


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
    served = np.isfinite(values)
    if not served.any():
        return "None of these can be served"
    if what == "bottleneck":
        return _limits(found, here, limits)
    # Of cells that are as good, the first: fewer nodes, slower parts.
    best = float(np.nanmax(values))
    j, i = np.argwhere(served & (values >= best - 1e-6 * abs(best)))[0]
    form = {
        "speedup": "{:.2f} times Basic",
        "split": "{:.0f} % through decode nodes",
        "per_node": "{:,.1f} requests/s a node",
    }
    worded = form.get(what, "{:,.1f} requests/s").format
    most = worded(best)
    if _flat(values):
        return f"The same everywhere: {most}"
    counted = what in ("throughput", "per_node") and here is not None and values[here] > 0
    if counted and best / values[here] < 1 + _SAME:
        return f"Nothing here beats the {worded(values[here])} of this scenario"
    x = f"{found.x.parameter.label} {shown(found.x.name, found.x.values[i])}"
    y = f"{found.y.parameter.label} {shown(found.y.name, found.y.values[j])}"
    text = f"Most: {most} at {y}, {x}"
    return f"{text}; {best / values[here]:.2f} times this scenario" if counted else text


def _limits(found: Grid, here: tuple[int, int] | None, limits: Mapping[int, str]) -> str:
    """Return what limits, by the share of the cells that are served, and which of it limits today."""
    keys = found.bottleneck[found.bottleneck >= 0]
    shares = sorted(((float((keys == k).mean()), k) for k in limits), reverse=True)
    now = None if here is None else int(found.bottleneck[here])
    parts = [
        f"{limits[k]} ({share:.0%} of the map{', this scenario too' if k == now else ''})"
        for share, k in shares
    ]
    return "What limits: " + "; ".join(parts[:3]) + ("; ..." if len(parts) > 3 else "")


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
            text=["" if c is None else _signed(c) for c in changes],
            customdata=[
                shown(row.name, value) for row, (value, _) in zip(kept, points, strict=True)
            ],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{customdata}: %{text}<extra></extra>",
        )
    _add_unserved_ends(figure, kept)
    rates = [r for row in kept for r in (row.throughput_low, row.throughput_high) if r is not None]
    span = max(1.0, *(100 * abs(rate / kept[0].throughput_now - 1) for rate in rates), 0.0)
    legend = {**LEGEND, "traceorder": "reversed"}
    axis = {"title": "change of throughput, %", "range": [-1.5 * span, 1.5 * span]}
    title = _strongest(kept[-1]) if kept else "Nothing moves the throughput"
    return layout(figure, title, 170 + 52 * len(kept), barmode="group", legend=legend, xaxis=axis)


def _strongest(row: Sensitivity) -> str:
    """Return the effect of a parameter as a sentence: its stronger end."""
    label = PARAMETERS[row.name].label
    ends = ((row.low_value, row.throughput_low), (row.high_value, row.throughput_high))
    for value, rate in ends:
        if rate is None:
            return f"Most depends on {label}: with {shown(row.name, value)} it cannot be served"
    changes = [(value, 100 * (rate / row.throughput_now - 1)) for value, rate in ends if rate]
    value, change = max(changes, key=lambda end: abs(end[1]))
    return f"Most depends on {label}: {change:+.1f} % with {shown(row.name, value)}"


def _add_unserved_ends(figure: Any, kept: Sequence[Sensitivity]) -> None:
    """Say which values cannot be served, opposite the bar of the other; there is no bar for them."""
    texts, places, reasons, labelled = [], [], [], []
    for row in kept:
        ends = ((row.low_value, row.throughput_low), (row.high_value, row.throughput_high))
        missing = [shown(row.name, value) for value, rate in ends if rate is None]
        if not missing:
            continue
        other = next((rate for _, rate in ends if rate is not None), row.throughput_now)
        places.append("middle left" if other >= row.throughput_now else "middle right")
        texts.append(f" {' and '.join(missing)}: not served ")
        reasons.append(_wrapped(row.reason, 70, 4))
        labelled.append(_effect_label(row))
    if texts:
        figure.add_scatter(
            name="cannot be served",
            y=labelled,
            x=[0.0] * len(texts),
            mode="text",
            text=texts,
            textposition=places,
            hovertext=reasons,
            hovertemplate="cannot be served: %{hovertext}<extra></extra>",
            showlegend=False,
        )


def _effect_label(row: Sensitivity) -> str:
    """Return a parameter and, below, its two values: beside the bars they would not have room."""
    label = PARAMETERS[row.name].label.removesuffix(" a request")
    low, high = shown(row.name, row.low_value), shown(row.name, row.high_value)
    return f"{html.escape(label)}<br>{html.escape(_range(low, high))}"


def _range(low: str, high: str) -> str:
    """Return "98.9 to 99.3 %" of "98.9 %" and "99.3 %": the unit once."""
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if unit and high.endswith(unit) else f"{low} to {high}"


def _signed(change: float) -> str:
    return f"{change:+.1f} %" if abs(change) >= 0.05 else "0"


def without_effect(rows: Sequence[Sensitivity]) -> list[str]:
    """Return the labels of parameters that a tornado leaves out."""
    return [PARAMETERS[row.name].label for row in rows if row.width <= _NO_EFFECT]


# ---- scenarios side by side ------------------------------------------------------------------------


def comparison(plans: Mapping[str, Plan]) -> Any:
    """Return throughput of named plans: Basic, dual path and the compute limit."""
    from plotly import graph_objects

    names = [_wrapped(name, _NAME_LINE, _NAME_LINES) for name in list(plans)[::-1]]
    places = list(range(len(names)))
    kept = list(plans.values())[::-1]
    series = (
        ("compute limit", view.COMPUTE, [p.throughput_oracle_requests_per_s for p in kept]),
        ("dual path", view.DUAL_PATH, [p.throughput_requests_per_s for p in kept]),
        ("Basic", view.BASIC, [p.throughput_basic_requests_per_s for p in kept]),
    )
    figure = graph_objects.Figure()
    for name, colour, values in series:
        figure.add_bar(
            name=name,
            y=places,
            x=values,
            orientation="h",
            marker={"color": colour},
            text=["" if value is None else _rate(value) for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{x:.4g} requests/s<extra>" + name + "</extra>",
        )
    best = max(plans, key=lambda name: plans[name].throughput_requests_per_s)
    most = max(value for *_, values in series for value in values if value is not None)
    rates = {"title": "requests/s", "range": [0, 1.15 * most]}
    # By place and not by name: two long names may be cut to the same text.
    ticks = {"tickvals": places, "ticktext": names, "automargin": True}
    title = f"{best} serves most: {plans[best].throughput_requests_per_s:,.1f} requests/s"
    if len({(plan.llm, round(plan.workload.mean_prompt_tokens)) for plan in kept}) > 1:
        title += " (requests of other LLMs or lengths are other work)"
    height = 170 + 90 * len(names)
    legend = {**LEGEND, "traceorder": "reversed"}
    return layout(figure, title, height, barmode="group", legend=legend, xaxis=rates, yaxis=ticks)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
