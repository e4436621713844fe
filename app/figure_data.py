"""What a plotly figure shows, as CSV: a line a mark, whatever kind of figure it is."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.quantities import Dimension, parse

_TAG = re.compile(r"<[^>]*>")
_NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?(?=\s*%?$)")
_KINDS = (
    *("series", "panel", "source", "target", "x", "y"),
    *("low", "high", "z", "value", "unit", "label"),
)
"""What a column can hold, in the order of the columns."""
_DIGITS = 12
"""Significant digits of the ends of an interval, which are sums: without what rounding adds."""

_Column = tuple[str, str]
"""Its kind and its title, empty where the kind is all that there is to say."""
_Row = dict[_Column, Any]


@dataclass(frozen=True)
class _Axis:
    """``names``: what the ticks call the positions, empty where these are values."""

    title: str = ""
    names: Mapping[Any, str] | None = None
    domain: tuple[float, float] | None = None

    def cell(self, value: Any) -> Any:
        """Return what stands for a value: the name of the position if it has one."""
        return self.names.get(value, value) if self.names else value


def csv_of(figure: Any) -> str:
    """Return the figure's data: series, x, y and z (heat maps), or source, target and value (flows).

    Columns of values are headed by the titles of their axes, which have the units; intervals are low
    and high. Columns that no mark has are left out. Labels lose their markup; cells that a spreadsheet
    would take for a formula get a quote in front.
    """
    layout = figure.layout.to_plotly_json()
    axes = _axes(figure.data, layout)
    both = len({side for trace in figure.data for side in "xy" if _spread(trace, side)}) > 1
    rows = [row for trace in figure.data for row in _rows(trace, axes, layout, both)]
    heads = _heads(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_guarded, heads.values()))
    for row in rows:
        cells = (row.get(column) for column in heads)
        writer.writerow([plain_cell(cell) if _there(cell) else None for cell in cells])
    return text.getvalue()


def _heads(rows: Sequence[_Row]) -> dict[_Column, str]:
    """Return the columns that any row fills, in their order, each with a head of its own."""
    filled = dict.fromkeys(column for row in rows for column, cell in row.items() if _there(cell))
    columns = sorted(filled, key=lambda column: _KINDS.index(column[0]))
    taken = Counter(title or kind for kind, title in columns)
    return {
        (kind, title): f"{title} ({kind})" if title and taken[title] > 1 else title or kind
        for kind, title in columns
    }


# ---- axes ------------------------------------------------------------------------------------------


def _axes(traces: Iterable[Any], layout: Mapping[str, Any]) -> dict[str, _Axis]:
    """Return the axes that traces are on, by what traces call them ("x", "y2")."""
    values: dict[str, list[Any]] = {}
    for trace in traces:
        for side in "xy":
            own = getattr(trace, side, None)
            values.setdefault(_axis_of(trace, side), []).extend(() if own is None else own)
    found = {}
    for name, own in values.items():
        look = layout.get(f"{name[0]}axis{name[1:]}", {})
        title, domain = _axis_title(name, layout), look.get("domain")
        names = {}
        # On an axis of numbers a tick's text is a rounded value with a unit, not a name.
        if look.get("type") in ("linear", "log", "date"):
            title = _with_unit(title, look)
        else:
            names = _names(look, own)
        found[name] = _Axis(title, names, None if domain is None else tuple(domain))
    return found


def _axis_of(trace: Any, side: str) -> str:
    return getattr(trace, f"{side}axis", None) or side


def _axis_title(name: str, layout: Mapping[str, Any]) -> str:
    """Return the title of an axis, or the one that it shares with a subplot beside or below it."""
    own = layout.get(f"{name[0]}axis{name[1:]}", {})
    title = _title(own)
    if title or "domain" not in own or "overlaying" in own:
        return title
    in_line = (
        _title(other)
        for key, other in layout.items()
        if key.startswith(f"{name[0]}axis") and other.get("domain") == own["domain"]
    )
    return next(filter(None, in_line), "")


def _title(look: Mapping[str, Any]) -> str:
    return _plain((look.get("title") or {}).get("text"))


def _with_unit(title: str, look: Mapping[str, Any]) -> str:
    """Return the title of an axis whose unit may stand at its ticks only: "rate" with "2 GB/s"."""
    ticks = {val: text for val, text in _ticks(look).items() if val != 0}  # which is 0 in any unit
    for dimension in Dimension:
        try:
            meant = [parse(text, dimension) for text in ticks.values()]
        except InputError:
            continue
        # The marks have the unit without a prefix if the ticks do, up to the rounding of their texts.
        same = bool(meant) and np.allclose(meant, list(ticks), rtol=0.01, atol=0)
        if same and dimension.name.lower() not in title:
            return f"{title}, {dimension.value}" if title else dimension.value
    return title


def _names(look: Mapping[str, Any], values: Iterable[Any]) -> dict[Any, str]:
    """Return the texts of the ticks by position, empty unless they name every value.

    Values that are texts are names already, which ticks only shorten.
    """
    names = _ticks(look)
    named = all(isinstance(v, Real) and v in names for v in values if _there(v))
    return names if named else {}


def _ticks(look: Mapping[str, Any]) -> dict[Any, str]:
    """Return the texts at the ticks of an axis or a colour bar by their positions."""
    vals, texts = look.get("tickvals"), look.get("ticktext")
    if vals is None or texts is None:
        return {}
    return {val: str(text) for val, text in zip(vals, texts, strict=False) if text}


def _panel(x: _Axis, y: _Axis, layout: Mapping[str, Any]) -> str | None:
    """Return the title of a subplot: plotly makes it a note centred over it."""
    if x.domain is None or y.domain is None:
        return None
    for note in layout.get("annotations") or ():
        if (note.get("xref"), note.get("yref")) != ("paper", "paper"):
            continue
        at = (note.get("x", math.nan), note.get("y", math.nan))
        if np.allclose(at, (sum(x.domain) / 2, y.domain[1])):
            return str(note.get("text"))
    return None


# ---- rows ------------------------------------------------------------------------------------------


def _rows(
    trace: Any, axes: Mapping[str, _Axis], layout: Mapping[str, Any], both: bool
) -> Iterator[_Row]:
    """Return a row a mark of a trace; ``both``: the figure has intervals along x and along y."""
    if trace.type == "sankey":
        yield from _flows(trace)
        return
    x, y = (axes[_axis_of(trace, side)] for side in "xy")
    # The band of a fitted curve has no name of its own.
    name = getattr(trace, "name", None) or getattr(trace, "legendgroup", None)
    start: _Row = {("series", ""): name, ("panel", ""): _panel(x, y, layout)}
    marks = _cells(trace, x, y) if trace.type == "heatmap" else _points(trace, x, y, both)
    for mark in marks:
        yield start | mark


def _flows(trace: Any) -> Iterator[_Row]:
    labels = trace.node.label if trace.node.customdata is None else trace.node.customdata
    link = trace.link
    for i, (source, target, value) in enumerate(
        zip(link.source, link.target, link.value, strict=True)
    ):
        yield {
            ("series", ""): None if link.customdata is None else link.customdata[i],
            ("source", ""): labels[source],
            ("target", ""): labels[target],
            ("value", ""): value,
            ("unit", ""): trace.valuesuffix,
        }


def _cells(trace: Any, x: _Axis, y: _Axis) -> Iterator[_Row]:
    """Return a row a cell of a heat map; of a mask, which has one colour and no scale, no gaps."""
    z = np.asarray(trace.z)
    values = [value for value in z.ravel().tolist() if _there(value)]
    columns = range(z.shape[1]) if trace.x is None else trace.x
    lines = range(z.shape[0]) if trace.y is None else trace.y
    mask = trace.showscale is False and len(set(values)) <= 1
    bar = {} if mask else trace.colorbar.to_plotly_json()
    names = _names(bar, values)
    name, title = _plain(trace.name), _title(bar)
    # A name that begins like the title goes on to say the unit.
    head = ("z", name if name.startswith(title) else title)
    for j, line in enumerate(lines):
        for i, column in enumerate(columns):
            row = {("x", x.title): x.cell(column), ("y", y.title): y.cell(line)}
            value = z[j, i]
            if not mask:
                yield row | {head: names.get(value, value) if names else value}
            elif _there(value):
                # The text, why there is no value, is all that such a cell tells.
                yield row | {("label", ""): None if trace.text is None else trace.text[j][i]}


def _points(trace: Any, x: _Axis, y: _Axis, both: bool) -> Iterator[_Row]:
    """Return a row a point or bar, with the ends of its interval and what is written at it."""
    xs, ys = getattr(trace, "x", None), getattr(trace, "y", None)
    count = max(0 if values is None else len(values) for values in (xs, ys))
    nothing = [None] * count
    xs, ys = (nothing if values is None else values for values in (xs, ys))
    labels = _labels(trace, xs, ys)
    spreads = {side: _spread(trace, side) for side in "xy"}
    for i in range(count):
        row: _Row = {("x", x.title): x.cell(xs[i]), ("y", y.title): y.cell(ys[i])}
        for side, value in (("x", xs[i]), ("y", ys[i])):
            for end, sizes in spreads[side].items():
                column = (end, f"{end}, {side}" if both else "")
                row[column] = _end(value, sizes[i], end) if i < len(sizes) else None
        yield row | {("label", ""): labels[i] if labels else None}


def _spread(trace: Any, side: str) -> dict[str, Sequence[float]]:
    """Return how far a trace's error bars go to the low and the high end, empty where it has none."""
    bars = getattr(trace, f"error_{side}", None)
    if bars is None or bars.array is None or bars.visible is False:
        return {}
    # As plotly draws it: one length for both ends unless the lower ones are given.
    below = bars.array if bars.symmetric or bars.arrayminus is None else bars.arrayminus
    return {"low": below, "high": bars.array}


def _end(value: Any, size: Any, end: str) -> float | None:
    """Return an end of an interval, None where the interval is not known."""
    if not (_there(value) and _there(size)):
        return None
    return float(f"{value - size if end == 'low' else value + size:.{_DIGITS}g}")


def _labels(trace: Any, xs: Sequence[Any], ys: Sequence[Any]) -> list[str] | None:
    """Return what is written at each point, None where it is lists or says nothing new.

    Where nothing is written at them, what their hovers say.
    """
    written = getattr(trace, "text", None)
    texts = getattr(trace, "hovertext", None) if written is None else written
    if texts is None or isinstance(texts, str) or len(texts) != len(xs):
        return None
    found = ["" if text is None else str(text) for text in texts]
    if any("<br" in text for text in found):
        return None
    said = all(
        text in ("", trace.name) or _says(text, x) or _says(text, y)
        for text, x, y in zip(found, xs, ys, strict=True)
    )
    return None if said else found


def _says(text: str, value: Any) -> bool:
    """Return whether a text is a value, as people write it: rounded, or in per cent."""
    if not isinstance(value, Real):
        return bool(text == value)
    plain = _plain(text)
    number = _NUMBER.match(plain)
    if number is None:
        return False
    digits, _, power = number[0].replace(",", "").partition("e")
    decimals = len(digits.partition(".")[2])
    half = 0.5 * 10.0 ** (int(power or 0) - decimals)
    written = float(f"{digits}e{power or 0}")
    meant = [float(value), *([100 * float(value)] if plain.endswith("%") else [])]
    return any(abs(written - one) <= 1.001 * half for one in meant)


# ---- cells -----------------------------------------------------------------------------------------


def _there(value: Any) -> bool:
    """Return whether there is a value; plotly leaves a gap for NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _plain(text: Any) -> str:
    """Return a title or a text on one line, without markup."""
    return " ".join(_unmarked(str(text or "")).split())


def plain_cell(value: Any) -> Any:
    """Return a value as a cell: text without markup, and never a formula."""
    if isinstance(value, np.generic):
        value = value.item()
    return _guarded(_unmarked(value)) if isinstance(value, str) else value


def _unmarked(text: str) -> str:
    return html.unescape(_TAG.sub(" ", text)).strip()


def _guarded(plain: str) -> str:
    return f"'{plain}" if plain[:1] in ("=", "+", "-", "@", "\t") else plain
