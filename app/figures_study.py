"""Plotly figures of a study: a metric along each axis, and over each pair of axes."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.page import LEGEND, layout
from dualpath_model.quantities import Dimension, show

Array = npt.NDArray[np.float64]

_SCATTERED = 60  # more values of an axis than this are grouped
_BINS = 24
_PAIRS = 10
_DOTS = 3000  # of a scatter: more are no clearer, and a page of many is slow
_BAND, _LINE = "rgba(0,114,178,0.18)", "#0072B2"


def numeric(metrics: Sequence[str], table: Any) -> list[str]:
    """Return the metrics that are numbers and of which there are any."""
    import pyarrow

    def number(name: str) -> bool:
        kind = table.schema.field(name).type
        counts = pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)
        return bool(counts) and bool(table.column(name).null_count < table.num_rows)

    return [name for name in metrics if number(name)]


def text(value: object, unit: str = "") -> str:
    """Return a value of the table for people; ``unit``: of a quantity, as :func:`unit_of` has it."""
    if value is None:
        return ""
    if unit and isinstance(value, (int, float)):
        return show(float(value), Dimension(unit))
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def along(table: Any, metric: str, axis: str) -> Any | None:
    """Return the metric over one axis: median, and the middle 80 %, of all points at each value.

    An axis of many values (a sampled one) is cut into groups of as many points each, and some points
    are shown themselves. None where the axis has one value.
    """
    from plotly import graph_objects

    places, values = _known(table, axis, metric)
    if len(set(places)) < 2:
        return None
    unit = unit_of(table, axis)
    words = isinstance(places[0], (str, bool))
    drawn = graph_objects.Figure()
    distinct = list(dict.fromkeys(places)) if words else sorted(set(places))
    scattered = len(distinct) > _SCATTERED and not words
    if scattered:
        order = np.argsort(np.array(places, float), kind="stable")
        groups = np.array_split(order, min(_BINS, max(2, len(order) // 5)))
        at: list[Any] = [float(np.median(np.array(places, float)[g])) for g in groups]
        parts = [values[g] for g in groups]
        step = -(-len(places) // _DOTS)
        drawn.add_scatter(
            x=[places[i] for i in order[::step]],
            y=values[order[::step]],
            mode="markers",
            marker={"size": 4, "color": "rgba(120,120,120,0.35)"},
            name="points",
        )
    else:
        index: dict[Any, list[int]] = {value: [] for value in distinct}
        for i, place in enumerate(places):
            index[place].append(i)
        at = [_short(value) for value in distinct]
        parts = [values[index[value]] for value in distinct]
    low, middle, high = (np.array([np.quantile(p, q) for p in parts]) for q in (0.1, 0.5, 0.9))
    if (high > low).any() and not words:
        drawn.add_scatter(
            x=[*at, *at[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=_BAND,
            line={"width": 0},
            hoverinfo="skip",
            name="middle 80 %",
        )
    error = None
    if words:
        error = {"type": "data", "array": high - middle, "arrayminus": middle - low}
    drawn.add_scatter(
        x=at,
        y=middle,
        mode="markers" if words else "lines+markers",
        error_y=error,
        line={"color": _LINE},
        name="median",
    )
    heading = f"{metric} along {axis}"
    label = html.escape(axis + (f" ({unit})" if unit else ""))
    return layout(
        drawn,
        heading,
        380,
        xaxis={
            "title": {"text": label},
            "type": "category" if words else "linear",
            "exponentformat": "SI",  # 10G of bytes, where plotly would write 10B for a billion
        },
        yaxis={"title": {"text": html.escape(metric)}},
        showlegend=True,
        legend=LEGEND,
    )


def maps(table: Any, metrics: Sequence[str], axes: Sequence[str]) -> list[Any]:
    """Return a heat map of the first metric's median for each pair of axes, ten at most."""
    found = []
    for metric in metrics[:1]:
        for x, y in itertools.islice(itertools.combinations(axes, 2), _PAIRS):
            drawn = _map(table, metric, x, y)
            if drawn is not None:
                found.append(drawn)
    return found


def _map(table: Any, metric: str, x: str, y: str) -> Any | None:
    from plotly import graph_objects

    known = [
        (a, b, value)
        for a, b, value in zip(
            table.column(x).to_pylist(),
            table.column(y).to_pylist(),
            table.column(metric).to_pylist(),
            strict=True,
        )
        if a is not None and b is not None and value is not None
    ]
    if not known:
        return None
    columns, rows = (
        _binned([one[i] for one in known], unit_of(table, axis)) for i, axis in enumerate((x, y))
    )
    if len(columns[0]) < 2 or len(rows[0]) < 2:
        return None
    cells: dict[tuple[int, int], list[float]] = {}
    for column, row, one in zip(columns[1], rows[1], known, strict=True):
        cells.setdefault((row, column), []).append(one[2])
    shade: list[list[float | None]] = [[None] * len(columns[0]) for _ in rows[0]]
    for (row, column), values in cells.items():
        shade[row][column] = float(np.median(values))
    drawn = graph_objects.Figure(
        graph_objects.Heatmap(
            x=columns[0],
            y=rows[0],
            z=shade,
            colorscale="Viridis",
            colorbar={"title": {"text": ""}},
            hovertemplate="%{x}, %{y}: %{z:.4g}<extra></extra>",
        )
    )
    return layout(
        drawn,
        f"{metric} over {x} and {y} (median)",
        420,
        xaxis={"title": {"text": html.escape(x)}, "type": "category"},
        yaxis={"title": {"text": html.escape(y)}, "type": "category"},
    )


def _binned(values: list[Any], unit: str) -> tuple[list[str], list[int]]:
    """Return labels in order, and the place of each value among them; many numbers are grouped."""
    words = isinstance(values[0], (str, bool))
    distinct = list(dict.fromkeys(values)) if words else sorted(set(values))
    if words or len(distinct) <= _SCATTERED:
        at = {value: i for i, value in enumerate(distinct)}
        return [_short(text(value, unit)) for value in distinct], [at[value] for value in values]
    column = np.array(values, float)
    edges = np.quantile(column, np.linspace(0, 1, _BINS + 1))
    place = np.clip(np.searchsorted(edges, column, side="right") - 1, 0, _BINS - 1)
    ends = [text(edge, unit) if unit else f"{edge:.3g}" for edge in map(float, edges)]
    labels = [f"{a} – {b}" for a, b in itertools.pairwise(ends)]
    return labels, [int(i) for i in place]


def _known(table: Any, axis: str, metric: str) -> tuple[list[Any], Array]:
    pairs = [
        (place, value)
        for place, value in zip(
            table.column(axis).to_pylist(), table.column(metric).to_pylist(), strict=True
        )
        if place is not None and value is not None
    ]
    return [place for place, _ in pairs], np.array([value for _, value in pairs], float)


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return html.escape(value if len(value) <= 40 else value[:37] + "...")


def unit_of(table: Any, name: str) -> str:
    """Return the SI unit of a column of quantities, such as "B/s"; "" of all others."""
    metadata = table.schema.field(name).metadata or {}
    return str(metadata.get(b"unit", b"").decode())
