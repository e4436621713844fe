"""The paper's evaluation beside ours: a stored run of ``dualpath reproduce``."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import streamlit as st

from app import reproduction_view as view
from app.dashboard import frames, session
from app.dashboard.frames import plain
from app.dashboard.question import Question
from app.examples import stored_result
from dualpath_model.errors import InputError

_ALL = "all"
_NAMES = ("errors", "batches", "latency", "parts")


def render(asked: Question) -> None:
    """Draw the page; it does not depend on the scenario."""
    found = _stored()
    rows = found["rows"]
    st.subheader(plain(view.summary(rows)), anchor=False)
    st.caption(
        "The DualPath paper (arXiv 2602.21548) measured a real cluster; we simulate the same set-ups, "
        "with three constants fitted to three of its figures, and everything else predicted. JCT is the "
        "completion time of a batch of agents, TTFT the time to a request's first token, TPOT the time "
        "between later tokens, APS agents that arrive a second. Basic reads with prefill nodes only."
    )
    st.caption(
        "TTST is the time from the first token to the second; the hand-off to a decode node is in it. "
        "Layerwise: KV-cache comes and goes a layer at a time while other layers compute, instead of "
        "all before and after. TTFT consists of scheduling (until the scheduler has named the nodes), "
        "allocating (until the nodes' memory has room for the prompt), reading KV-cache from storage, "
        "and prefill."
    )
    for name, figure in zip(_NAMES, _figures(), strict=False):
        frames.figure(figure, f"paper-{name}")
    st.subheader("Every figure", anchor=False)
    hows = [_ALL, *dict.fromkeys(view.standing(row) for row in rows)]
    how = st.segmented_control(
        "How it came out",
        hows,
        key=session.control("paper.how", _ALL, hows),
        help="Fitted: one of the three that constants were fitted to. Within 10 %, or off: how near a "
        "prediction comes to the paper's figure.",
    )
    frames.rows(
        [
            {
                "where in the paper": row["figure"],
                "quantity": row["quantity"],
                "paper": view.amount(row, "paper"),
                "ours": view.amount(row, "ours"),
                "error": "" if row["kind"] == "bound" else f"{row['error']:+.1%}",
                "how": view.standing(row),
                "note": row["note"],
            }
            for row in rows
            if how in (None, _ALL, view.standing(row))
        ],
        "paper-figures",
    )
    with st.expander("Constants and assumptions"):
        st.caption(
            "Stored with the package; `dualpath reproduce --effects --json FILE` makes it anew in about "
            "three minutes. `docs/simulator.md` says what was chosen and why."
        )
        named = {**found["constants"], **found["assumptions"]}
        frames.rows([{"name": k, "value": str(v)} for k, v in named.items()], "paper-assumptions")


@lru_cache(1)
def _stored() -> dict[str, Any]:
    path = stored_result("reproduction")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            "the stored reproduction is not installed with this package; reinstall it, or run "
            "dualpath reproduce"
        ) from None
    return found


@lru_cache(1)
def _figures() -> list[Any]:
    return view.figures(_stored())
