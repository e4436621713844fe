"""The workload: what the sessions look like, as they stand after the knobs."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import streamlit as st

from app import figures_workload as drawing
from app.dashboard import answers, frames, session
from app.dashboard.frames import plain
from app.dashboard.question import Question
from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.errors import DualPathError
from dualpath_model.loads import request_means
from dualpath_model.paths import Payload
from dualpath_model.traces import (
    TABLE_2,
    SyntheticSpec,
    TrajectoryMeans,
    trajectory_means,
    workload_statistics,
)
from dualpath_model.workload import Workload

_PARTS = {
    "prompt_tokens": "prompt, tokens",
    "append_tokens": "append a request, tokens",
    "output_tokens": "generate a request, tokens",
    "think_time_s": "time between turns, s",
    "turns_per_session": "turns a session",
}


def render(asked: Question) -> None:
    """Draw the page."""
    scenario = answers.scenario_of(asked)
    names = [part.name for part in scenario.classes]
    number = 0
    if len(names) > 1:
        chosen = st.selectbox(
            "Kind of traffic",
            names,
            key=session.control("workload.class", names[0], names),
            help="The scenario has several kinds of traffic; each has sessions of its own.",
        )
        number = names.index(chosen)
    workload = scenario.classes[number].workload
    found = _statistics(asked, number)
    st.subheader(
        plain(
            f"{found['hit_rate']:.1%} of {found['mean_prompt_tokens']:,.0f} prompt tokens a request are "
            f"read back; {found['mean_append_tokens']:,.0f} are new"
        ),
        anchor=False,
    )
    st.caption(plain(origin(found["source"])))
    frames.tiles(
        [
            ("sessions", f"{found['sessions']:,}", "One session is one agent's run."),
            ("requests", f"{found['model_calls']:,}", "Calls of the LLM, sub-agents' included."),
            ("hit rate", f"{found['hit_rate']:.1%}", "Prompt tokens whose KV-cache is in storage."),
            (
                "append a request",
                f"{found['mean_append_tokens']:,.0f} tokens",
                "Mean over all requests of the prompt tokens that are not read back, which prefill "
                "computes.",
            ),
            (
                "generate a request",
                f"{found['mean_output_tokens']:,.0f} tokens",
                "Mean over all requests of the tokens that the LLM writes.",
            ),
        ]
    )
    for name, figure in _figures(asked, number).items():
        frames.figure(figure, name)
    if workload.turns == workload.session_count:
        st.info(
            "This workload is single requests, not sessions: there is no growth over turns to show, and "
            "nothing to compare with the paper's sessions.",
            icon=":material/info:",
        )
    else:
        st.subheader("Beside the paper's agents: means over sessions", anchor=False)
        growing = drawing.grows(workload)
        st.caption(plain(_how_means_differ(growing)))
        frames.figure(_paper_figure(asked, number), "against-paper")
        frames.rows(_paper_rows(workload, growing=growing), "paper-rows")
    st.subheader("Percentiles", anchor=False)
    frames.rows(
        [
            {
                "of": label,
                **{key: round(value, 2) for key, value in found["percentiles"][name].items()},
            }
            for name, label in _PARTS.items()
        ],
        "percentiles",
    )


def origin(source: str) -> str:
    """Return where sessions come from, in words, of what a workload says of itself."""
    words = source.removesuffix(", scaled")
    if words == "workload.moments":
        said = "One request that stands for all: the scenario states the means, and no sessions"
    elif made := re.fullmatch(r"synthetic \(seed (\d+)\)", words):
        said = (
            f"Sessions made up at random (number {made[1]} of the random choices) to the means that the "
            f"scenario states; none was recorded"
        )
    else:
        said = f"Recorded sessions: {words.rsplit('/', 1)[-1].replace('_', ' ')}"
    return f"{said}; lengths changed by the scenario or the sidebar" if words != source else said


def _how_means_differ(growing: bool) -> str:
    """Say why one page has two means of what seems the same."""
    text = (
        "Here every session counts alike, as in the paper's Table 2; above, every request does, so that "
        "long sessions count more. Growth a turn is by how much a prompt is longer than the prompt and "
        "the answer before it; append a request is whatever of a prompt is not read back, and has the "
        "whole first prompt in it."
    )
    if not growing:
        text += (
            " Contexts of these sessions shrink between turns (they are compacted, or a sub-agent "
            "starts anew), so a mean growth would say nothing: n/a."
        )
    return text


@lru_cache(64)
def _statistics(asked: Question, number: int) -> dict[str, Any]:
    return workload_statistics(answers.scenario_of(asked).classes[number].workload)


@lru_cache(32)
def _figures(asked: Question, number: int) -> dict[str, Any]:
    scenario = answers.scenario_of(asked)
    workload = scenario.classes[number].workload
    drawn = {}
    if workload.turns > workload.session_count:
        drawn["growth"] = drawing.growth(workload)
    if workload.turns > 1:
        drawn["lengths"] = drawing.lengths(workload)
    if workload.turns > workload.session_count:
        drawn["hit-rate"] = drawing.hit_rates(workload)
    found = _ratios(asked, number)
    if found[scenario.llm.name] > 0:
        drawn["cache-compute"] = drawing.ratios(found, scenario.llm.name)
    return drawn


@lru_cache(32)
def _ratios(asked: Question, number: int) -> dict[str, float]:
    """Return GB of KV-cache to read per PFLOP of prefill, of the scenario's LLM and the catalog's."""
    scenario = answers.scenario_of(asked)
    workload = _thinned(scenario.classes[number].workload)
    found = {}
    for name in dict.fromkeys((*llm_names(), scenario.llm.name)):
        chosen = name == scenario.llm.name
        llm = scenario.llm if chosen else load_llm(name)
        dtype = scenario.serving.kv_dtype if chosen else llm.default_kv_dtype
        means = request_means(llm, workload, dtype)
        found[name] = 1e6 * float(means.payloads[Payload.HIT]) / means.prefill_flops
    exact = scenario.class_means[number]
    found[scenario.llm.name] = 1e6 * float(exact.payloads[Payload.HIT]) / exact.prefill_flops
    return found


def _thinned(workload: Workload, most: int = 5_000) -> Workload:
    """Return every so many turns: enough to compare LLMs, which all have the same sessions."""
    import numpy as np

    every = -(-workload.turns // most)
    if every == 1:
        return workload
    kept = slice(None, None, every)
    prompt = workload.prompt_tokens[kept]
    return Workload(
        prompt_tokens=prompt,
        hit_tokens=workload.hit_tokens[kept],
        output_tokens=workload.output_tokens[kept],
        think_time_s=np.zeros(len(prompt)),
        start_s=np.zeros(1),
        offsets=np.array([0, len(prompt)]),
    )


@lru_cache(32)
def _paper_figure(asked: Question, number: int) -> Any:
    workload = answers.scenario_of(asked).classes[number].workload
    return drawing.against_paper(trajectory_means(workload), growing=drawing.grows(workload))


def _paper_rows(workload: Workload, *, growing: bool) -> list[dict[str, Any]]:
    try:
        found = trajectory_means(workload)
    except DualPathError:
        return []
    named: dict[str, TrajectoryMeans | SyntheticSpec] = {
        "these sessions": found,
        **{f"the paper's {row} agents": spec for row, spec in TABLE_2.items()},
    }

    def growth(part: TrajectoryMeans | SyntheticSpec) -> int | str:
        if growing:
            return round(part.append_tokens)
        # A column of a table is all numbers or all text.
        return "n/a" if part is found else f"{part.append_tokens:,.0f}"

    return [
        {
            "means over sessions": name,
            "turns": round(part.turns, 1),
            "growth a turn, tokens": growth(part),
            "generate a turn, tokens": round(part.generate_tokens),
            "prompt, tokens": round(part.context_tokens),
            "at the end, tokens": round(part.total_tokens),
        }
        for name, part in named.items()
    ]
