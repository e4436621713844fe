"""Figures of a workload: how contexts grow, how long appends and answers are, what is read per FLOP."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from app import plan_view as view
from app.page import LEGEND, layout
from dualpath_model.traces import TABLE_2, TrajectoryMeans, trajectory_means
from dualpath_model.workload import Workload

Array = npt.NDArray[np.float64]

_POINTS = 200  # of a line
_SINGLE = 6  # sessions that are drawn one by one


def by_turn(workload: Workload, column: Array) -> tuple[Array, Array]:
    """Return turn numbers from 1, at most a few hundred, and p10, p50 and p90 over the sessions there.

    Shapes (points,) and (3, points). Only turns that a tenth of the sessions reach are there.
    """
    lengths = np.diff(workload.offsets)
    most = int(np.quantile(lengths, 0.9)) or 1
    numbers = np.unique(np.linspace(0, most - 1, min(most, _POINTS)).round().astype(int))
    spread = [
        np.quantile(column[workload.offsets[:-1][lengths > number] + number], [0.1, 0.5, 0.9])
        for number in numbers
    ]
    return numbers + 1.0, np.array(spread).T


def growth(workload: Workload) -> Any:
    """Return prompt tokens over the turns of a session: the middle, most of them, and some alone."""
    figure = _figure()
    turns, (low, middle, high) = by_turn(workload, workload.prompt_tokens)
    figure.add_scatter(
        x=np.concatenate([turns, turns[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=view.DUAL_PATH,
        opacity=0.2,
        line={"width": 0},
        mode="lines",
        name="8 of 10 sessions",
        hoverinfo="skip",
    )
    chosen = np.linspace(0, workload.session_count - 1, min(_SINGLE, workload.session_count))
    for number, session in enumerate(chosen.round().astype(int)):
        first, last = workload.offsets[session], workload.offsets[session + 1]
        every = max(1, (last - first) // _POINTS)
        figure.add_scatter(
            x=np.arange(1.0, last - first + 1)[::every],
            y=workload.prompt_tokens[first:last][::every],
            mode="lines",
            line={"color": "#999999", "width": 1},
            name="single sessions",
            legendgroup="single",
            showlegend=number == 0,
            hovertemplate="turn %{x}: %{y:,.0f} tokens<extra></extra>",
        )
    figure.add_scatter(
        x=turns,
        y=middle,
        mode="lines+markers" if len(turns) < 20 else "lines",
        line={"color": view.DUAL_PATH, "width": 3},
        name="median",
        hovertemplate="turn %{x}: %{y:,.0f} tokens<extra>median</extra>",
    )
    figure.update_xaxes(title="turn of the session")
    figure.update_yaxes(title="prompt, tokens", rangemode="tozero")
    title = (
        f"Prompts grow from {middle[0]:,.0f} tokens at the first turn to {middle[-1]:,.0f} at turn "
        f"{turns[-1]:,.0f} (median)"
    )
    return layout(figure, title, 420, legend=LEGEND)


def lengths(workload: Workload) -> Any:
    """Return the share of requests within a length: append, generated and read-back tokens (log)."""
    figure = _figure()
    for name, column, colour in (
        ("append", workload.miss_tokens, view.SATURATED),
        ("generate", workload.output_tokens, view.FREE),
        ("read back", workload.hit_tokens, view.DUAL_PATH),
    ):
        shares = np.linspace(0, 1, _POINTS + 1)
        values = np.maximum(np.quantile(column, shares), 1.0)
        figure.add_scatter(
            x=values,
            y=shares,
            mode="lines",
            name=name,
            line={"color": colour},
            hovertemplate="%{y:.0%} within %{x:,.0f} tokens<extra>" + name + "</extra>",
        )
        marks = np.quantile(column, [0.5, 0.9, 0.99])
        figure.add_scatter(
            x=np.maximum(marks, 1.0),
            y=[0.5, 0.9, 0.99],
            mode="markers",
            marker={"color": colour, "size": 8},
            name=f"{name}: p50, p90, p99",
            showlegend=False,
            hovertemplate="%{y:.0%} within %{x:,.0f} tokens<extra>" + name + "</extra>",
        )
    figure.update_xaxes(type="log", title="tokens a request (log scale; 0 is shown as 1)", dtick=1)
    figure.update_yaxes(title="share of requests", tickformat=".0%", range=[0, 1.02])
    title = (
        f"Half the requests append at most {np.median(workload.miss_tokens):,.0f} tokens and generate "
        f"{np.median(workload.output_tokens):,.0f}; dots: p50, p90, p99"
    )
    return layout(figure, title, 420, legend=LEGEND)


def hit_rates(workload: Workload) -> Any:
    """Return the hit rate over the turns of a session, all sessions together."""
    figure = _figure()
    turns, _ = by_turn(workload, workload.prompt_tokens)
    sizes = np.diff(workload.offsets)
    rates = []
    for turn in turns.astype(int):
        at = workload.offsets[:-1][sizes >= turn] + turn - 1
        rates.append(workload.hit_tokens[at].sum() / workload.prompt_tokens[at].sum())
    figure.add_scatter(
        x=turns,
        y=rates,
        mode="lines+markers" if len(turns) < 20 else "lines",
        line={"color": view.DUAL_PATH},
        name="hit rate",
        hovertemplate="turn %{x}: %{y:.1%}<extra></extra>",
    )
    figure.add_hline(y=workload.hit_rate, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_xaxes(title="turn of the session")
    figure.update_yaxes(title="hit rate (dotted: of all)", tickformat=".0%", range=[0, 1.03])
    title = f"{workload.hit_rate:.1%} of all prompt tokens are read back instead of computed"
    return layout(figure, title, 340, showlegend=False)


def ratios(found: Mapping[str, float], chosen: str) -> Any:
    """Return GB of KV-cache to read per PFLOP of prefill for each LLM; the chosen one stands out."""
    figure = _figure()
    names = sorted(found, key=lambda name: found[name])
    figure.add_bar(
        y=[html.escape(name) for name in names],
        x=[found[name] for name in names],
        orientation="h",
        marker={"color": [view.DUAL_PATH if n == chosen else view.BASIC for n in names]},
        text=[f"{found[name]:,.3g}" for name in names],
        textposition="outside",
        cliponaxis=False,
        name="cache-compute ratio",
    )
    most = max(found.values())
    figure.update_xaxes(title="GB of KV-cache read per PFLOP of prefill", range=[0, 1.15 * most])
    title = (
        f"{chosen} reads {found[chosen]:,.3g} GB per PFLOP that it computes: the more, the sooner "
        f"storage limits"
    )
    return layout(figure, title, 150 + 26 * len(names), showlegend=False)


def grows(workload: Workload) -> bool:
    """Tell whether contexts grow over sessions; else their mean growth a turn says nothing.

    They shrink where an agent compacts its context, or calls a sub-agent that starts anew.
    """
    longer = np.diff(workload.prompt_tokens) >= 0
    longer[workload.offsets[1:-1] - 1] = True  # from a session to the next
    return bool(longer.all()) and trajectory_means(workload).append_tokens > 0


def against_paper(found: TrajectoryMeans, *, growing: bool = True) -> Any:
    """Return the sessions' means over those of the paper's three data sets (Table 2).

    ``growing``: contexts do, so that there is a growth to compare.
    """
    figure = _figure()
    fields = {
        "turns": "turns<br>a session",
        "append_tokens": "growth a turn,<br>tokens" if growing else "growth<br>a turn: n/a",
        "generate_tokens": "generate<br>a turn, tokens",
        "context_tokens": "prompt,<br>tokens",
        "total_tokens": "at the<br>end, tokens",
    }
    colours = (view.DECODE_SIDE, view.COMPUTE, view.DUAL_PATH)
    for (row, spec), colour in zip(TABLE_2.items(), colours, strict=True):
        times = [
            None if name == "append_tokens" and not growing else share
            for name in fields
            for share in [getattr(found, name) / getattr(spec, name)]
        ]
        figure.add_bar(
            x=list(fields.values()),
            y=times,
            name=f"over the paper's {row}",
            marker={"color": colour},
            text=["" if share is None else f"{share:.2g}" for share in times],
            textposition="outside",
            cliponaxis=False,
        )
    figure.add_hline(y=1.0, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_yaxes(title="times the paper's mean (dotted: equal)", rangemode="tozero")
    near = min(
        TABLE_2, key=lambda row: abs(np.log(found.context_tokens / TABLE_2[row].context_tokens))
    )
    title = f"Nearest to the paper's {near} agents by the length of prompts"
    return layout(figure, title, 400, barmode="group", legend=LEGEND)


def _figure() -> Any:
    from plotly import graph_objects

    return graph_objects.Figure()
