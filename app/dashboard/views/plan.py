"""The plan of the scenario: what limits, how to split the reads, what that gains, what to buy."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import streamlit as st

from app import figures
from app import plan_view as view
from app.dashboard import answers, frames, session
from app.dashboard.frames import plain
from app.dashboard.question import Question
from app.dashboard.turns import SCRIPTS
from solvers.planner import Plan


def render(asked: Question) -> None:
    """Draw the page."""
    plan = answers.plan_of(asked)
    st.subheader(plain(view.headline(plan)), anchor=False)
    st.caption(plain(f"{plan.scenario} · {view.about(plan)}"))
    frames.tiles(_tiles(plan))
    for name, drawn in _figures(asked).items():
        frames.figure(drawn, name)
        if name in _ABOUT:
            st.caption(_ABOUT[name])
        if name == "upgrades" and 0 < len(view.no_effect(plan)) < len(plan.upgrades):
            st.caption(plain(f"Without effect here: {', '.join(view.no_effect(plan))}."))
    if not view.ratio_bounds(plan) and view.free_range(plan) is None:
        st.info(plain(_capitalised(view.range_sentence(plan))))
    _intervals(asked)
    if plan.notes:
        st.subheader("Notes", anchor=False)
        st.markdown("\n".join(f"- {plain(note)}" for note in plan.notes))


_ABOUT = {
    "flows": "Blue: read by the prefill nodes. Pink: read by the decode nodes and sent on to the "
    "prefill nodes over the compute network. Grey: handed to the decode nodes, decoding, written back. "
    "Orange: used up. DRAM is a node's host memory, HBM its GPUs' memory.",
    "ratio": "Inside the green range the storage NICs are used up before any other NIC or DRAM is: the "
    "range that dual-path loading is made for; GPUs may limit before. *Hits alone* counts only KV-cache "
    "that is read back, *all traffic* also what prefill hands over and what is written back.",
}


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tiles(plan: Plan) -> list[tuple[str, str, str]]:
    compute = (
        "not limiting" if plan.fraction_of_oracle is None else f"{plan.fraction_of_oracle:.0%}"
    )
    return [
        (
            "limits today",
            view.words(plan.bottleneck_basic),
            "What runs out first while only the prefill nodes read from storage (called Basic).",
        ),
        (
            "limits then",
            view.words(plan.bottleneck),
            "Of what is used up with both read paths, that of which more would help most. Used up: "
            f"{', '.join(map(view.words, plan.binding)) or 'nothing'}.",
        ),
        (
            "read through decode nodes",
            view.split_text(plan),
            "The split: share of the bytes read from storage that should go through the decode nodes' "
            "storage NICs and on to the prefill nodes over the compute network.",
        ),
        (
            "with both paths",
            f"{plan.throughput_requests_per_s:,.1f} requests/s",
            "The most requests a second that the cluster can serve at the best split.",
        ),
        (
            "over Basic",
            f"{plan.speedup_over_basic:.2f}x",
            f"Against {plan.throughput_basic_requests_per_s:,.1f} requests/s while only prefill nodes "
            "read.",
        ),
        (
            "of the GPUs' limit",
            compute,
            "How near that comes to what the GPUs, their arithmetic and memory, could serve if moving "
            "KV-cache cost nothing (called Oracle).",
        ),
    ]


@lru_cache(64)
def _figures(asked: Question) -> dict[str, Any]:
    plan, scenario = answers.plan_of(asked), answers.scenario_of(asked)
    drawn = {
        "flows": figures.sankey(plan, scenario),
        "utilisation": figures.utilisation_bars(plan),
        "ratio": figures.ratio_axis(plan),
        "upgrades": figures.upgrades_chart(plan),
        "neighbours": figures.neighbours_chart(plan),
    }
    if not view.ratio_bounds(plan) and view.free_range(plan) is None:
        del drawn["ratio"]  # there is nothing in it
    return drawn


def _intervals(asked: Question) -> None:
    """Show how sure the plan is where nodes were measured; that takes seconds, so it is asked for."""
    nodes = (
        *answers.scenario_of(asked).cluster.prefill,
        *answers.scenario_of(asked).cluster.decode,
    )
    if all(node.measured is None for node in nodes):
        return
    st.subheader("How sure is this?", anchor=False)
    if not st.toggle(
        "Work out the intervals from the measured rates",
        key=session.control("plan.intervals", False),
        help="95 % intervals, by planning again with rates drawn from the profile's own intervals; "
        "takes some seconds.",
    ):
        return
    with st.spinner("Planning again and again"), SCRIPTS.aside():
        found = answers.intervals_of(asked)
    if found is None:
        st.info("None of the measured figures has an interval.")
        return
    heads = ("figure", "value", "95 % interval")
    frames.rows(
        [dict(zip(heads, row, strict=True)) for row in view.interval_rows(found)], "intervals"
    )
    narrow = view.narrowing_rows(found)
    if narrow:
        heads = ("measured figure", "its interval", "if it were known exactly")
        frames.rows([dict(zip(heads, row, strict=True)) for row in narrow], "narrowing")
    for text in view.uncertainty_remarks(found):
        st.caption(plain(text))
