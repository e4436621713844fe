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
_lock = threading.Lock()


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

    st.markdown(f"**{plain(_title(fig))}**")
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
    st.plotly_chart(fig, key=f"figure {name}", config=config)
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


def _title(fig: Any) -> str:
    """Take a figure's title out of it and return it: as text above, it wraps on a narrow page.

    Figures are shared between sessions. Each comes here before it draws one, and only the first changes
    it, so that nobody sees half of the change; copying figures instead takes longer than all else here.
    """
    with _lock:
        meta = fig.layout.meta
        if meta is None:
            meta = {"title": html.unescape(fig.layout.title.text or "")}
            if meta["title"]:
                fig.layout.title.text, fig.layout.margin.t = "", min(fig.layout.margin.t, 60)
            fig.layout.meta = meta  # set one by one: plotly's update takes ten times as long
        return str(meta["title"])


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
