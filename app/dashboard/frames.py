"""Figures, tables and tiles on a page, each with its downloads."""

from __future__ import annotations

import csv
import html
import io
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import streamlit as st

from app.dashboard import session

FORMATS = ("PNG", "SVG")
FORMAT = "picture.format"
_KEPT = 64
_lock = threading.Lock()
_untitled: dict[int, tuple[Any, Any, str]] = {}


class Tile(NamedTuple):
    """One headline figure: what it is, its value, and what that means."""

    label: str
    value: str
    help: str


def figure(fig: Any, name: str) -> None:
    """Draw a plotly figure with its downloads; ``name`` is that of the files, once a page.

    The camera above the figure saves it as the sidebar says, PNG or SVG; the button below it saves the
    data as CSV.
    """
    from app.figure_data import csv_of

    shown, title = _without_title(fig)
    st.markdown(f"**{plain(title)}**")
    form = str(st.session_state.get(FORMAT, FORMATS[0])).lower()
    config = {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
        "toImageButtonOptions": {
            "format": form,
            "filename": name,
            "scale": 2 if form == "png" else 1,
        },
    }
    st.plotly_chart(shown, key=f"figure {name}", config=config)
    st.download_button(
        "data (CSV)",
        lambda: csv_of(fig).encode(),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"data {name}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
        help="What the figure above shows, as comma-separated values in its units.",
    )


def _without_title(fig: Any) -> tuple[Any, str]:
    """Return a figure without its title, and the title: as text above, it wraps on a narrow page.

    The figure itself, which other sessions draw at the same time, stays as it is. Its copy takes as
    long as all else here, so copies of the latest figures are kept, each with the figure that it is of.
    """
    with _lock:
        known = _untitled.get(id(fig))
        if known is not None and known[0] is fig:
            return known[1:]
    title = html.unescape(fig.layout.title.text or "")
    shown = type(fig)(fig)
    if title:
        top = min(fig.layout.margin.t, 60)
        shown.update_layout(title={"text": ""}, meta={"title": title}, margin={"t": top})
    with _lock:
        while len(_untitled) >= _KEPT:
            del _untitled[next(iter(_untitled))]
        _untitled[id(fig)] = (fig, shown, title)
    return shown, title


def plain(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "".join(
        f"\\{letter}" if letter in "\\`*_{}[]<>()#+-!|~$:" else letter for letter in text
    )


def rows(records: Sequence[dict[str, Any]], name: str) -> None:
    """Show a table; its own toolbar searches, its button saves it as CSV."""
    st.dataframe(list(records), hide_index=True, key=f"table {name}", width="stretch")
    st.download_button(
        "table (CSV)",
        lambda: _csv(records),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"rows {name}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
        help="The table above as comma-separated values.",
    )


def _csv(records: Sequence[dict[str, Any]]) -> bytes:
    from app.figure_data import plain_cell

    text = io.StringIO()
    heads = list(dict.fromkeys(head for record in records for head in record))
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows({head: plain_cell(cell) for head, cell in row.items()} for row in records)
    return text.getvalue().encode()


def tiles(found: Sequence[tuple[str, str, str]]) -> None:
    """Show headline figures side by side, as many a line as there is room for."""
    with st.container(horizontal=True, gap="small"):
        for tile in found:
            label, value, help_text = tile
            st.metric(label, value, help=help_text, border=True, width="content")


def pick_format() -> None:
    """Let the sidebar say in which format figures are saved."""
    st.segmented_control(
        "Save pictures as",
        FORMATS,
        key=session.control(FORMAT, FORMATS[0], FORMATS),
        help="What the camera above each figure saves: PNG (pixels, for slides) or SVG (vectors, for "
        "print).",
    )
