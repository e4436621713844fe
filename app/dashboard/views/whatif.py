"""What if? Two parameters as a heat map, each parameter a little, and scenarios side by side."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import numpy as np
import streamlit as st

from app import figures_whatif as drawing
from app import plan_view as view
from app.dashboard import answers, frames, session
from app.dashboard.frames import plain
from app.dashboard.question import Question
from app.dashboard.sidebar import sentence
from app.dashboard.turns import SCRIPTS
from dualpath_model.catalog.llms import llm_names
from dualpath_model.errors import DualPathError
from dualpath_model.scenario import Scenario
from solvers.grid import Axis, Grid, grid, vectorises
from solvers.parameters import PARAMETERS
from solvers.planner import Plan
from solvers.sensitivity import Sensitivity, sensitivities

CELLS = (10, 20, 40)
SPANS = (2, 4, 10)
SHARES = (0.1, 0.2, 0.5)
_MOST_SLOW_CELLS = 6
_MOST_COUNT = 400
_NAME = 36
"""Characters of a name in the table."""


def render(asked: Question) -> None:
    """Draw the page."""
    scenario = answers.scenario_of(asked)
    answers.quick_of(asked)  # where this cannot be served, the page says so instead
    _heat_map(asked, scenario)
    _tornado(asked)
    _comparison(asked, scenario)


# ---- two parameters --------------------------------------------------------------------------------


def _heat_map(asked: Question, scenario: Scenario) -> None:
    st.subheader("Two parameters at once", anchor=False)
    names = [name for name, found in PARAMETERS.items() if found.now(scenario)]

    def label(name: str) -> str:
        return PARAMETERS[name].label

    left, middle, right = st.columns(3)
    x = left.selectbox(
        "Across",
        names,
        format_func=label,
        key=session.control("whatif.x", "decode_nodes", names),
        help="Parameter of the horizontal axis; the scenario's other figures stay as they are.",
    )
    y = middle.selectbox(
        "Up",
        names,
        format_func=label,
        key=session.control("whatif.y", "prefill_nodes", names),
        help="Parameter of the vertical axis; another one than across.",
    )
    what = right.selectbox(
        "Show",
        list(drawing.SHOWN),
        format_func=drawing.SHOWN.__getitem__,
        key=session.control("whatif.show", "throughput", list(drawing.SHOWN)),
        help="What the colour means. Requests/s are the most that the cluster can serve; Basic is "
        "reading with prefill nodes only.",
    )
    left, right = st.columns(2)
    span = left.segmented_control(
        "Range",
        SPANS,
        format_func=lambda times: f"1/{times} to {times} times",
        key=session.control("whatif.span", 4, SPANS),
        help="How far the axes reach, as a multiple of the scenario's own value. Numbers of nodes start "
        "at 1; hit rates reach from 50 % to 99.9 %.",
    )
    cells = right.segmented_control(
        "Cells a side",
        CELLS,
        key=session.control("whatif.cells", 40, CELLS),
        help="How fine the map is.",
    )
    if x == y:
        st.info("Both axes are the same parameter; choose another one for one of them.")
        return
    count = cells or 40
    if not vectorises(scenario):
        count = _MOST_SLOW_CELLS
        st.caption(
            f"Nodes or traffic of this scenario are of several kinds, so each cell is a linear program: "
            f"{count} cells a side."
        )
    with contextlib.nullcontext() if vectorises(scenario) else SCRIPTS.aside():
        found = _grid(asked, x, y, span or 4, count)
    frames.figure(_heat_figure(asked, x, y, span or 4, count, what), "heat-map")
    if found.reasons:
        share = len(found.reasons) / found.throughput.size
        first = next(iter(found.reasons.values()))
        st.caption(plain(f"Grey, {share:.0%}: cannot be served, for instance because {first}."))


@lru_cache(64)
def _grid(asked: Question, x: str, y: str, span: int, cells: int) -> Grid:
    scenario = answers.scenario_of(asked)
    return grid(scenario, axis(scenario, x, span, cells), axis(scenario, y, span, cells))


@lru_cache(64)
def _heat_figure(asked: Question, x: str, y: str, span: int, cells: int, what: str) -> Any:
    scenario = answers.scenario_of(asked)
    nodes = (len(scenario.cluster.prefill), len(scenario.cluster.decode))
    now = (PARAMETERS[x].now(scenario), PARAMETERS[y].now(scenario))
    return drawing.heat_map(_grid(asked, x, y, span, cells), what, nodes, now)


def axis(scenario: Scenario, name: str, span: int, cells: int) -> Axis:
    """Return the values of a parameter around where it stands, which is one of them."""
    parameter = PARAMETERS[name]
    now = parameter.now(scenario)
    if isinstance(now, str):
        return Axis(name, tuple(llm_names()))
    if parameter.whole:
        most = int(min(_MOST_COUNT, max(8, span * now)))
        spaced = np.unique(np.linspace(1, most, min(cells, most)).round())
        values = {int(value) for value in spaced if abs(value - now) >= most / cells / 2} | {
            int(now)
        }
        return Axis(name, tuple(sorted(values)))
    if name == "hit_rate":
        numbers = 1.0 - np.geomspace(0.5, 0.001, cells)
    else:
        numbers = np.geomspace(
            max(parameter.low, now / span), min(parameter.high, now * span), cells
        )
    if numbers[0] <= now <= numbers[-1]:
        numbers[np.argmin(np.abs(numbers - now))] = now
    return Axis(name, tuple(numbers.tolist()))


# ---- one parameter ---------------------------------------------------------------------------------


def _tornado(asked: Question) -> None:
    st.subheader("A little less, a little more", anchor=False)
    share = st.segmented_control(
        "Change each by",
        SHARES,
        format_func=lambda part: f"{part:.0%}",
        key=session.control("whatif.share", 0.2, SHARES),
        help="Each parameter alone is lowered and raised by so much of its value; numbers of nodes and "
        "NICs by one at least; of the hit rate, the share that misses.",
    )
    rows, figure = _tornado_figure(asked, share or 0.2)
    frames.figure(figure, "tornado")
    without = drawing.without_effect(rows)
    if without:
        st.caption(plain(f"Without effect here: {', '.join(without)}."))


@lru_cache(64)
def _tornado_figure(asked: Question, share: float) -> tuple[tuple[Sensitivity, ...], Any]:
    rows = sensitivities(answers.scenario_of(asked), share)
    return rows, drawing.tornado(rows, share)


# ---- pinned scenarios ------------------------------------------------------------------------------


def _comparison(asked: Question, scenario: Scenario) -> None:
    st.subheader("Side by side", anchor=False)
    pins = session.pins()
    with st.form("pin", clear_on_submit=True, border=False):
        left, right = st.columns([3, 1], vertical_alignment="bottom")
        name = left.text_input(
            "Name",
            placeholder=described(asked, scenario),
            max_chars=80,
            help="What the present scenario is called in the table below.",
        )
        pressed = right.form_submit_button(
            "Pin this scenario",
            disabled=len(pins) >= session.MOST_PINS,
            icon=":material/push_pin:",
            width="stretch",
        )
    if pressed:
        session.pin(name.strip() or described(asked, scenario), asked)
        st.rerun()
    if len(pins) >= session.MOST_PINS:
        st.caption("Four scenarios are pinned; remove one to pin another.")
    if not pins:
        st.caption("Pin up to four scenarios and move the knobs: they are compared here.")
        return
    with st.container(horizontal=True):
        for number, pin in enumerate(pins):
            st.button(
                plain(pin.name),
                key=f"_unpin {number}",
                on_click=session.unpin,
                args=(number,),
                icon=":material/close:",
                help="Remove it from the comparison.",
            )
    plans: dict[str, Plan] = {}
    records = []
    named = [*((pin.name, pin.question) for pin in pins), ("as it stands now", asked)]
    for name, question in named:
        called = name
        while called in plans:
            called += " "
        try:
            plan = answers.plan_of(question)
        except DualPathError as error:
            records.append({"scenario": _short(name), "limits today": sentence(error)})
            continue
        plans[called] = plan
        records.append(
            {"scenario": _short(name), **figures_of(plan, answers.scenario_of(question))}
        )
    if plans:
        frames.figure(drawing.comparison(plans), "comparison")
    frames.rows(records, "comparison-table")


def _short(name: str) -> str:
    """Return a name that leaves the table's figures on the page."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 3].rstrip()}..."


def described(asked: Question, scenario: Scenario) -> str:
    """Return a name for a question: its scenario, and what was moved."""
    moved = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asked.knobs)
    return f"{asked.base or scenario.name}{': ' if moved else ''}{moved}"[:80]


def figures_of(plan: Plan, scenario: Scenario) -> dict[str, Any]:
    """Return a plan's row of the comparison."""
    nodes = (*scenario.cluster.prefill, *scenario.cluster.decode)
    prices = [node.price_usd_per_hour for node in nodes]
    rate = plan.throughput_requests_per_s
    cost = None
    if all(price is not None for price in prices):
        cost = sum(price or 0.0 for price in prices) / 3600 / rate * 1e6
    share = plan.fraction_of_oracle
    return {
        "limits today": view.words(plan.bottleneck_basic),
        "limits then": view.words(plan.bottleneck),
        "split": view.split_text(plan),
        "requests/s": round(rate, 1),
        "Basic, requests/s": round(plan.throughput_basic_requests_per_s, 1),
        "times Basic": round(plan.speedup_over_basic, 2),
        "of the GPUs' limit, %": None if share is None else round(100 * share),
        "requests/s a node": round(rate / len(nodes), 2),
        "USD a million requests": None if cost is None else round(cost, 2),
    }
