"""Figures of simulated policies side by side, from the data that a background job returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app import plan_view as view
from app.page import LEGEND, decades, layout
from dualpath_model.quantities import Dimension, show

COLOURS = (view.BASIC, view.DUAL_PATH, view.SATURATED, view.FREE)
_PARTS = (
    ("scheduling_s", "scheduling", view.BASIC),
    ("allocating_s", "waiting for memory", view.DECODE_SIDE),
    ("reading_s", "reading from storage", view.COMPUTE),
    ("prefill_s", "prefill", view.DUAL_PATH),
)
_LEAST_S = 1e-4  # what a log axis shows 0 as


def distribution(found: Mapping[str, Any], name: str, label: str) -> Any:
    """Return the share of requests within a time (log axis), a line a policy, and the SLO.

    ``name``: "ttft_s" or "tpot_s"; ``label``: what it is called.
    """
    figure, slo_s = _figure(), found["slo"][name]
    within = {}
    for policy, colour, run in _policies(found):
        values = np.maximum(np.array(run["quantiles"][name], float), _LEAST_S)
        if not len(values):
            continue
        shares = np.linspace(0, 1, len(values))
        within[policy] = float(np.interp(slo_s, values, shares, left=0.0, right=1.0))
        figure.add_scatter(
            x=values,
            y=shares,
            mode="lines",
            name=policy,
            line={"color": colour},
            hovertemplate="%{y:.0%} within %{x:.3g} s<extra>" + policy + "</extra>",
        )
    figure.add_vline(x=slo_s, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.add_annotation(
        x=math.log10(slo_s),
        y=1.02,
        text=f"promise {_time(slo_s)}",
        showarrow=False,
        yanchor="bottom",
    )
    figure.update_xaxes(
        type="log",
        title=f"{label} (log scale)",
        tickvals=decades(-4, 6),
        ticktext=[_time(seconds) for seconds in decades(-4, 6)],
    )
    figure.update_yaxes(title="share of requests", tickformat=".0%", range=[0, 1.12])
    kept = ", ".join(f"{policy} {share:.0%}" for policy, share in within.items())
    return layout(figure, f"{label} within the promise: {kept or 'no request'}", 400, legend=LEGEND)


def parts(found: Mapping[str, Any]) -> Any:
    """Return what the mean TTFT of each policy consists of."""
    figure = _figure()
    runs = [(policy, run["summary"]) for policy, _, run in _policies(found)]
    for field, label, colour in _PARTS:
        values = [summary[field].get("mean") for _, summary in runs]
        figure.add_bar(
            y=[policy for policy, _ in runs],
            x=values,
            name=label,
            orientation="h",
            marker={"color": colour},
            hovertemplate="%{y}: %{x:.3g} s<extra>" + label + "</extra>",
        )
    figure.update_xaxes(title="seconds, mean", rangemode="tozero")
    figure.update_yaxes(type="category", autorange="reversed")
    means = {policy: summary["ttft_s"].get("mean") for policy, summary in runs}
    known = {policy: mean for policy, mean in means.items() if mean is not None}
    title = "What the time to the first token consists of"
    if known:
        best = min(known, key=lambda policy: known[policy])
        title += f": shortest with {best}, {_time(known[best])}"
    height = 190 + 44 * len(runs)
    return layout(figure, title, height, barmode="stack", legend=LEGEND)


def queues(found: Mapping[str, Any]) -> Any:
    """Return how many requests wait for an engine or memory over time, a line a policy."""
    figure, most = _figure(), {}
    for policy, colour, run in _policies(found):
        figure.add_scatter(
            x=run["time_s"],
            y=run["waiting"],
            mode="lines",
            name=policy,
            line={"color": colour, "width": 1.5},
            hovertemplate="%{x:,.0f} s: %{y:,.0f} wait<extra>" + policy + "</extra>",
        )
        most[policy] = max(run["waiting"], default=0.0)
    figure.update_xaxes(title="simulated seconds")
    figure.update_yaxes(title="requests that wait", rangemode="tozero")
    said = ", ".join(f"{policy} {value:,.0f}" for policy, value in most.items())
    if not any(most.values()):
        # A flat line at the bottom of an axis from 0 to 1 looks like an error.
        figure.update_yaxes(range=[0, 10])
        return layout(figure, "No request had to wait", 260, legend=LEGEND)
    return layout(figure, f"Requests that wait, at most: {said}", 360, legend=LEGEND)


def nics(found: Mapping[str, Any]) -> Any:
    """Return how busy the storage NICs of both pools are over time, a line a policy and pool."""
    figure, means = _figure(), {}
    for policy, colour, run in _policies(found):
        for pool, dash in (("prefill", "solid"), ("decode", "dot")):
            busy = run[f"{pool}_nic_busy"]
            figure.add_scatter(
                x=run["time_s"],
                y=busy,
                mode="lines",
                name=f"{policy}, {pool} nodes",
                line={"color": colour, "dash": dash, "width": 1.5},
                hovertemplate="%{x:,.0f} s: %{y:.0%}<extra>" + f"{policy}, {pool}</extra>",
            )
        busy = [*run["prefill_nic_busy"], *run["decode_nic_busy"]]
        means[policy] = float(np.mean(busy)) if busy else 0.0
    figure.update_xaxes(title="simulated seconds")
    figure.update_yaxes(
        title="storage NICs busy, mean of the pool", tickformat=".0%", range=[0, 1.05]
    )
    said = ", ".join(f"{policy} {value:.0%}" for policy, value in means.items())
    return layout(figure, f"Storage NICs busy, mean of all: {said}", 400, legend=LEGEND)


def curve(found: Mapping[str, Any], statistic: str) -> Any:
    """Return TTFT over the rate of arrivals, a line a policy; ``statistic``: mean or p99."""
    figure, slo_s = _figure(), found["slo"]["ttft_s"]
    policies = list(dict.fromkeys(point["policy"] for point in found["points"]))
    meets = {}
    for policy, colour in zip(policies, COLOURS, strict=False):
        points = [point for point in found["points"] if point["policy"] == policy]
        rates = [point["rate_aps"] for point in points]
        values = [point[f"ttft_{statistic}_s"] for point in points]
        figure.add_scatter(
            x=rates,
            y=values,
            mode="lines+markers",
            name=policy,
            line={"color": colour},
            hovertemplate="%{x:g} agents/s: %{y:.3g} s<extra>" + policy + "</extra>",
        )
        held = [r for r, v in zip(rates, values, strict=True) if v is not None and v <= slo_s]
        meets[policy] = max(held, default=0.0)
    figure.add_hline(y=slo_s, line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_xaxes(title="arrivals, agents/s", rangemode="tozero")
    figure.update_yaxes(
        title=f"TTFT, {statistic}, seconds (dotted: promise)",
        range=[0, 2.5 * slo_s],  # what lies above is far beyond the promise, however far
    )
    said = ", ".join(f"{policy} {rate:g}" for policy, rate in meets.items())
    return layout(figure, f"Agents/s within the promise: {said}", 420, legend=LEGEND)


def capacities(found: Mapping[str, Any]) -> Any:
    """Return each policy's highest rate within the SLO with its interval."""
    figure = _figure()
    rows: Sequence[Mapping[str, Any]] = found["capacity"]
    figure.add_bar(
        x=[row["policy"] for row in rows],
        y=[row["rate_aps"] for row in rows],
        error_y={
            "type": "data",
            "array": [_end(row, "high_aps") - row["rate_aps"] for row in rows],
            "arrayminus": [row["rate_aps"] - _end(row, "low_aps") for row in rows],
        },
        marker={"color": list(COLOURS[: len(rows)])},
        text=[f"{row['rate_aps']:.3g}" for row in rows],
        textposition="inside",
        insidetextanchor="start",
        name="agents/s",
    )
    figure.update_yaxes(title="agents/s within the promise (95 % interval)", rangemode="tozero")
    figure.update_xaxes(type="category")
    best = max(rows, key=lambda row: row["rate_aps"])
    title = f"{best['policy']} serves most within the promise: {best['rate_aps']:.3g} agents/s"
    rivals = [
        str(row["policy"])
        for row in rows
        if row is not best and _end(row, "high_aps") >= _end(best, "low_aps")
    ]
    if rivals:
        title = f"Not told apart within their intervals: {', '.join([best['policy'], *rivals])}"
    return layout(figure, title, 380, showlegend=False)


def _end(row: Mapping[str, Any], name: str) -> float:
    """Return an end of a rate's interval; the rate itself where there is none."""
    rate = float(row["rate_aps"])
    value = rate if row[name] is None else float(row[name])
    return max(rate, value) if name == "high_aps" else max(0.0, min(rate, value))


def _policies(found: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    runs = found["policies"]
    return [
        (run["summary"]["policy"], colour, run) for run, colour in zip(runs, COLOURS, strict=False)
    ]


def _figure() -> Any:
    from plotly import graph_objects

    return graph_objects.Figure()


def _time(seconds: float) -> str:
    return show(seconds, Dimension.SECONDS)
