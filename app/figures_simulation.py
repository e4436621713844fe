"""Plotly figures of a simulated run, and the HTML page of them.

Figures hold at most a few hundred points a line, however long the run: quantiles, means of equal spans
of time, thinned samples. Text from a scenario is escaped, so that no name can carry markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app import plan_view as view
from app.page import layout, page, pictures, table
from app.results import samples
from app.show_simulation import arriving, ending
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from solvers.simulator import series
from solvers.simulator import state as arrays
from solvers.simulator.experiments import Outcome

_PARTS = (
    ("scheduling", "submitted", "placed", view.BASIC),
    ("allocating", "placed", "allocated", view.DECODE_SIDE),
    ("reading", "allocated", "read", "#56B4E9"),
    ("prefill", "read", "first_token", view.DUAL_PATH),
)
_SPANS = 60  # of time, in the breakdown
_POINTS = 600  # of a line
_LEAST_S = 1e-4  # what a log axis shows 0 as


def simulation_html(scenario: Scenario, outcome: Outcome, found: Mapping[str, Any]) -> str:
    """Return the page; ``found`` is the summary as ``--json`` prints it."""
    heading = (
        f"{found['turns']:,} turns of {found['agents']:,} agents {arriving(found)}: {ending(found)}"
    )
    if found["interrupted"]:
        heading = f"Interrupted after {found['end_s']:,.0f} s: {heading}"
    constants = found["constants"]["source"]
    below = (
        f"{scenario.name} · policy {found['policy']}, seed {found['seed']}, "
        f"warm-up {found['warmup_s']:g} s, {constants} constants"
    )
    drawn = figures(scenario, outcome)
    parts = [pictures(drawn), "<h2>Times</h2>", _spreads(found)]
    if not len(samples(outcome)[0]):
        note = (
            "The run ended before the first sample, so nothing is drawn over time; lower --sample."
        )
        parts.insert(1, f"<p>{note}</p>")
    return page(f"{scenario.name}: simulation", heading, below, parts)


def figures(scenario: Scenario, outcome: Outcome) -> list[Any]:
    """Return what there is to draw: of turns where some ended, over time where it was sampled."""
    drawn = []
    if outcome.summary.turns_counted:
        drawn += [distributions(scenario, outcome), breakdown(outcome)]
    sampled = bool(len(samples(outcome)[0]))
    if sampled:
        drawn.append(queues(outcome))
    drawn.append(balance(scenario, outcome))
    if sampled:
        drawn += [running(outcome), working_set(scenario, outcome)]
    return drawn


def distributions(scenario: Scenario, outcome: Outcome) -> Any:
    """Return the share of turns within a TTFT, TTST and TPOT (log axis), after the warm-up."""
    figure, summary = _figure(), outcome.summary
    time, output = times(outcome)
    ttft = time["first_token"] - time["submitted"]
    ttst = (time["second_token"] - time["first_token"])[output > 1]
    long = output > 2
    tpot = (time["ended"] - time["second_token"])[long] / (output[long] - 2)
    for name, values, colour, slo_s in (
        ("TTFT", ttft, view.DUAL_PATH, scenario.slo.ttft_s),
        ("TTST", ttst, view.FREE, None),
        ("TPOT", tpot, view.SATURATED, scenario.slo.tpot_s),
    ):
        if not len(values):
            continue
        shares = np.linspace(0, 1, 301)
        figure.add_scatter(
            x=np.maximum(np.quantile(values, shares), _LEAST_S),
            y=shares,
            name=name,
            mode="lines",
            line={"color": colour},
            hovertemplate="%{y:.1%} within %{x:.3g} s<extra>" + name + "</extra>",
        )
        if slo_s is not None:
            figure.add_vline(x=slo_s, line={"color": colour, "dash": "dot", "width": 1})
            figure.add_annotation(
                x=math.log10(slo_s),  # where an axis is logarithmic, notes are placed by exponent
                y=0.5,
                text=f"SLO {_time(slo_s)}",
                textangle=-90,
                xanchor="left",
                showarrow=False,
                font={"color": colour, "size": 12},
            )
    figure.update_xaxes(type="log", title="seconds (log scale)", dtick=1)
    figure.update_yaxes(title="share of turns", tickformat=".0%", range=[0, 1.02])
    spread = summary.ttft_s
    title = f"TTFT: half within {_time(spread['p50'])}, 99 % within {_time(spread['p99'])}"
    return _layout(figure, title, 420)


def breakdown(outcome: Outcome) -> Any:
    """Return what the mean TTFT consists of, by the time of submission."""
    figure = _figure()
    time, _ = times(outcome)
    submitted = time["submitted"]
    edges = np.linspace(submitted.min(), max(submitted.max(), submitted.min() + 1e-3), _SPANS + 1)
    span = np.clip(np.searchsorted(edges, submitted, side="right") - 1, 0, _SPANS - 1)
    count = np.bincount(span, minlength=_SPANS)
    middle = (edges[:-1] + edges[1:]) / 2
    means = {}
    for name, start, end, colour in _PARTS:
        seconds = time[end] - time[start]
        means[name] = float(seconds.mean())
        figure.add_bar(
            x=middle,
            y=np.bincount(span, seconds, _SPANS) / np.maximum(count, 1),
            width=edges[1] - edges[0],
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="%{y:.3g} s<extra>" + name + "</extra>",
        )
    most = max(means, key=lambda name: means[name])
    title = (
        f"What TTFT consists of: most is {most}, {_time(means[most])} of "
        f"{_time(sum(means.values()))} in the mean"
    )
    figure.update_xaxes(title="submitted at, simulated seconds")
    figure.update_yaxes(title="seconds, mean", rangemode="tozero")
    return _layout(figure, title, 400, barmode="stack", bargap=0, hovermode="x unified")


def queues(outcome: Outcome) -> Any:
    """Return who waits for what over time, and below it the tokens that are still to be read."""
    from plotly.subplots import make_subplots

    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.08)
    cluster, nodes = _thinned(outcome)
    waits = (
        ("waiting_prefill", "for a prefill engine", view.DUAL_PATH),
        ("waiting_decode", "for a decode engine", view.SATURATED),
        ("waiting_buffer", "for a DRAM buffer", view.DECODE_SIDE),
    )
    for column, name, colour in waits:
        _line(figure, cluster, cluster[:, series.CLUSTER.index(column)], name, colour, row=1)
    decode = outcome.run.sim.nodes.decode > 0
    queued = nodes[:, :, series.NODE.index("read_queue_tokens")]
    for name, chosen, colour in (
        ("read queue, prefill nodes", ~decode, view.FREE),
        ("read queue, decode nodes", decode, view.COMPUTE),
    ):
        _line(figure, cluster, queued[:, chosen].sum(axis=1), name, colour, row=2)
    figure.update_yaxes(title="requests that wait", rangemode="tozero", row=1)
    figure.update_yaxes(title="tokens", rangemode="tozero", row=2)
    figure.update_xaxes(title="simulated seconds", row=2)
    longest, colour_of = max(
        (float(cluster[:, series.CLUSTER.index(column)].max()), name) for column, name, _ in waits
    )
    title = (
        f"Queues: at most {longest:,.0f} requests wait {colour_of}"
        if longest
        else "Queues: no request waits for an engine or a buffer when sampled"
    )
    return _layout(figure, title, 520)


def balance(scenario: Scenario, outcome: Outcome) -> Any:
    """Return the bytes that each node's storage NICs read in the whole run."""
    figure, sim = _figure(), outcome.run.sim
    token_bytes = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    read = sim.world.work_s[:, -1] * sim.nodes.read_rate * token_bytes
    names = outcome.run.state.node_names
    for pool, chosen, colour in (
        ("prefill nodes", sim.nodes.decode == 0, view.DUAL_PATH),
        ("decode nodes", sim.nodes.decode > 0, view.DECODE_SIDE),
    ):
        figure.add_bar(
            x=[name for name, mine in zip(names, chosen, strict=True) if mine],
            y=read[chosen],
            name=pool,
            marker={"color": colour},
            hovertemplate="%{x}: %{y:.4s}B<extra></extra>",
        )
    if read.any():
        figure.add_hline(y=read.mean(), line={"color": "#888888", "dash": "dot", "width": 1})
    figure.update_xaxes(title="node", type="category")
    figure.update_yaxes(title="bytes read (dotted: mean)", tickformat=".3s", rangemode="tozero")
    most = outcome.summary.snic_max_over_mean
    title = (
        f"Storage NICs: the fullest node reads {most:.2f} times the mean"
        if read.any()
        else "Storage NICs: nothing is read"
    )
    return _layout(figure, title, 360)


def running(outcome: Outcome) -> Any:
    """Return the agents that are active, and their requests by where they are, over time."""
    figure = _figure()
    cluster, nodes = _thinned(outcome)
    _line(figure, cluster, cluster[:, series.CLUSTER.index("agents")], "agents", view.BASIC)
    for column, name, colour in (
        ("decoding", "decoding", view.DUAL_PATH),
        ("ready", "ready for prefill or in it", view.COMPUTE),
    ):
        values = nodes[:, :, series.NODE.index(column)].sum(axis=1)
        _line(figure, cluster, values, name, colour)
    figure.update_xaxes(title="simulated seconds")
    figure.update_yaxes(title="number", rangemode="tozero")
    decoding = nodes[:, :, series.NODE.index("decoding")].sum(axis=1)
    mean, most = decoding.mean(), decoding.max()
    title = f"Requests: {mean:,.0f} decode at a time in the mean, {most:,.0f} at most"
    return _layout(figure, title, 360)


def working_set(scenario: Scenario, outcome: Outcome) -> Any:
    """Return the bytes of KV-cache that active agents come back to, over time."""
    figure = _figure()
    cluster, _ = _thinned(outcome)
    token_bytes = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    size = cluster[:, series.CLUSTER.index("working_set_tokens")] * token_bytes
    _line(figure, cluster, size, "working set", view.DUAL_PATH)
    figure.update_xaxes(title="simulated seconds")
    figure.update_yaxes(title="bytes", tickformat=".3s", rangemode="tozero")
    most = show(float(size.max()), Dimension.BYTES)
    return _layout(figure, f"Working set: at most {most} of KV-cache", 320, showlegend=False)


# ---- what the figures share ----------------------------------------------------------------------


def _figure() -> Any:
    from plotly import graph_objects

    return graph_objects.Figure()


def _line(
    figure: Any,
    cluster: np.ndarray,
    values: np.ndarray,
    name: str,
    colour: str,
    row: int | None = None,
) -> None:
    place = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=cluster[:, 0],
        y=values,
        name=name,
        mode="lines" if len(values) > 1 else "markers",
        line={"color": colour, "width": 1.5},
        **place,
    )


def _layout(figure: Any, title: str, height: int, **more: Any) -> Any:
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return layout(
        figure,
        title,
        height,
        title_y=0.97,
        title_yanchor="top",
        margin={"l": 70, "r": 50, "t": 80, "b": 55},
        legend=legend,
        **more,
    )


def times(outcome: Outcome) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the times in seconds, and the output tokens, of the turns that count."""
    rows = outcome.run.rows
    rows = rows[np.searchsorted(rows[:, -1], outcome.summary.warmup_s * arrays.SECOND) :]
    names = arrays.RESULT_FIELDS
    time = {name: rows[:, names.index(name)] / arrays.SECOND for name in arrays.RESULT_TIMES}
    return time, outcome.run.sim.traffic.output[rows[:, names.index("turn")]]


def _thinned(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """Return at most so many samples, evenly apart."""
    cluster, nodes = samples(outcome)
    every = -(-len(cluster) // _POINTS)
    return cluster[::every], nodes[::every]


def _time(seconds: float) -> str:
    return show(seconds, Dimension.SECONDS)


def _spreads(found: Mapping[str, Any]) -> str:
    heads: Sequence[str] = ("seconds", "mean", "p50", "p90", "p99", "max")
    names = {
        "ttft_s": "TTFT",
        "scheduling_s": "TTFT: scheduling",
        "allocating_s": "TTFT: allocating",
        "reading_s": "TTFT: reading",
        "prefill_s": "TTFT: prefill",
        "ttst_s": "TTST",
        "tpot_s": "TPOT",
        "agent_s": "agent, start to end",
    }
    rows = [
        (label, *(f"{found[name][key]:.4g}" for key in heads[1:]))
        for name, label in names.items()
        if found[name]
    ]
    return table(heads, rows, text=1)
