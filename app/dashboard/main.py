"""The script that Streamlit runs for every move: sidebar, one page, and the link."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import streamlit as st

from app import plan_view as view
from app.dashboard import session, sidebar
from app.dashboard.turns import SCRIPTS
from app.dashboard.views import simulate
from dualpath_model.errors import DualPathError, InfeasibleError

PAGES = {
    "plan": ("Plan", ":material/route:"),
    "whatif": ("What-if", ":material/grid_on:"),
    "workload": ("Workload", ":material/timeline:"),
    "simulate": ("Simulate", ":material/play_circle:"),
    "calibration": ("Calibration", ":material/speed:"),
    "deploy": ("Deploy", ":material/download:"),
    "paper": ("Paper", ":material/menu_book:"),
}
"""Name in the address, title and icon of each page; its module is in ``app.dashboard.views``."""


# A laptop's screen shows the headline and the first picture without scrolling.
_STYLE = """<style>
[data-testid="stMetricValue"] { font-size: 1.3rem; }
[data-testid="stMetric"] { padding: 0.4rem 0.9rem !important; }
[data-testid="stMainBlockContainer"] { padding: 2.5rem 2.5rem 4rem; }
[data-testid="stMain"] h1 { padding: 0; font-size: 1.8rem; }
[data-testid="stMain"] h3 { padding: 0.3rem 0; font-size: 1.25rem; }
</style>"""


def run() -> None:
    """Draw the page that the address names."""
    st.set_page_config(page_title="dualpath", page_icon=_icon(), layout="wide", menu_items={})
    shown = st.navigation(
        [
            st.Page(_draws(name), title=title, icon=icon, url_path=name, default=name == "plan")
            for name, (title, icon) in PAGES.items()
        ]
    )
    shown.run()


@lru_cache(1)
def _icon() -> Any:
    """Return the icon of the browser's tab: two paths. Streamlit's own icons come from the internet."""
    import numpy as np
    from PIL import Image  # a dependency of Streamlit

    icon = np.zeros((32, 32, 4), np.uint8)
    for rows, colour in ((slice(5, 13), view.DUAL_PATH), (slice(19, 27), view.DECODE_SIDE)):
        icon[rows, 2:30] = [*bytes.fromhex(colour.lstrip("#")), 255]
    return Image.fromarray(icon)


def run_page(name: str) -> None:
    """Draw one page; ``name`` is one of :data:`PAGES`."""
    with SCRIPTS:
        _run_page(name)
    _settle()


@lru_cache(1)
def _settle() -> None:
    """After the first run: what has been imported stays, so that no collection looks at it again."""
    gc.collect()
    gc.freeze()


def _run_page(name: str) -> None:
    try:
        asked = sidebar.ask()
        st.html(_STYLE)
        st.title(PAGES[name][0], anchor=False)
        try:
            importlib.import_module(f"app.dashboard.views.{name}").render(asked)
        except InfeasibleError as error:
            st.warning(
                sidebar.sentence(error) + " Move a knob, or go back to the scenario as it is.",
                icon=":material/block:",
            )
        except DualPathError as error:
            st.error(sidebar.sentence(error), icon=":material/error:")
        if simulate.STARTED in st.session_state:
            simulate.going()
    finally:
        session.save()


def _draws(name: str) -> Callable[[], None]:
    def draw() -> None:
        run_page(name)

    return draw


if __name__ == "__main__":
    run()
