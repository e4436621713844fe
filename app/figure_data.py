"""What a plotly figure shows, as CSV: a line a mark, whatever kind of figure it is."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

_TAG = re.compile(r"<[^>]*>")
_COLUMNS = ("series", "x", "y", "z")


def csv_of(figure: Any) -> str:
    """Return the figure's data: series, x, y and z (heat maps), or source, target and value (flows).

    Columns that no mark has are left out. Labels lose their markup; cells that a spreadsheet would take
    for a formula get a quote in front.
    """
    rows = [row for trace in figure.data for row in _rows(trace)]
    heads = ("series", "source", "target", "value") if _flows(figure) else _COLUMNS
    kept = [head for head in heads if any(row.get(head) is not None for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, kept, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _flows(figure: Any) -> bool:
    return any(trace.type == "sankey" for trace in figure.data)


def _rows(trace: Any) -> Iterator[dict[str, Any]]:
    name = getattr(trace, "name", None)
    if trace.type == "sankey":
        labels = trace.node.label
        paths = trace.link.customdata
        for i, (source, target, value) in enumerate(
            zip(trace.link.source, trace.link.target, trace.link.value, strict=True)
        ):
            path = None if paths is None else paths[i]
            yield {"series": path, "source": labels[source], "target": labels[target]} | {
                "value": value
            }
    elif trace.type == "heatmap":
        z = np.asarray(trace.z)
        columns = range(z.shape[1]) if trace.x is None else trace.x
        lines = range(z.shape[0]) if trace.y is None else trace.y
        for j, y in enumerate(lines):
            for i, x in enumerate(columns):
                yield {"series": name, "x": x, "y": y, "z": z[j, i]}
    else:
        xs, ys = getattr(trace, "x", None), getattr(trace, "y", None)
        count = max(0 if column is None else len(column) for column in (xs, ys))
        for i in range(count):
            yield {
                "series": name,
                "x": None if xs is None else xs[i],
                "y": None if ys is None else ys[i],
            }


def plain_cell(value: Any) -> Any:
    """Return a value as a cell: text without markup, and never a formula."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str):
        return value
    plain = html.unescape(_TAG.sub(" ", value)).strip()
    return f"'{plain}" if plain[:1] in ("=", "+", "-", "@", "\t") else plain
