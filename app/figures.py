"""Plotly figures of a plan, shared by the HTML report and the dashboard.

Every function takes a plan (and its scenario where the step table is needed) and returns a
``plotly.graph_objects.Figure``. Text from a scenario is escaped, so that no name can carry markup.
"""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from typing import Any

from app import plan_view as view
from app.page import LEGEND, decades, layout
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from solvers.planner import Plan


def sankey(plan: Plan, scenario: Scenario) -> Any:
    """Return the bytes/s of every step under the plan, from storage through both pools and back.

    Links come from the step table; a node's incoming and outgoing bytes differ only where bytes are
    made (prefill compute, decoding), stay, or go to several tensor-parallel ranks. Saturated
    capacities are named, in colour, at the place that they feed.
    """
    from plotly import graph_objects

    links = _through_nics(plan, scenario)
    names = list(dict.fromkeys(name for source, target, *_ in links for name in (source, target)))
    at = {name: i for i, name in enumerate(names)}
    full = _saturated(plan, scenario)
    through = _through(links)
    labels = ["<br>".join([name, *full.get(name, [view.rate(through[name])])]) for name in names]
    # Pale, so that labels in the page's own colour are read on them, whether it is light or dark.
    colours = [
        _faded_colour(view.SATURATED, 0.4) if name in full else _faded_colour("#7f8c9b", 0.15)
        for name in names
    ]
    figure = graph_objects.Figure(
        graph_objects.Sankey(
            arrangement="snap",
            orientation="v",  # from above: labels have the width that a column has not
            valueformat=".3s",
            valuesuffix="B/s",
            textfont={"size": 11},
            node={
                "label": labels,
                "customdata": names,
                "hovertemplate": "%{customdata}: %{value}<extra></extra>",
                "color": colours,
                "pad": 40,
                "thickness": 30,
            },
            link={
                "source": [at[source] for source, *_ in links],
                "target": [at[target] for _, target, *_ in links],
                "value": [value for *_, value, _ in links],
                "color": [_faded(path) for *_, path in links],
                "customdata": [path for *_, path in links],
                "hovertemplate": "%{customdata}: %{value}<extra></extra>",
            },
        )
    )
    sides = view.side_rates(plan)
    title = (
        f"Both paths: {view.rate(sides.prefill)} of KV-cache read by prefill nodes, "
        f"{view.rate(sides.decode)} by decode nodes"
    )
    # For labels of narrow places, which reach beyond them to the right.
    return layout(figure, title, 640, margin={"l": 20, "r": 110, "t": 60, "b": 30})


_Link = tuple[str, str, float, str]


def _through(links: list[_Link]) -> dict[str, float]:
    """Return the bytes/s that pass each place: what comes in or what goes out, whichever is more."""
    into: dict[str, float] = defaultdict(float)
    out: dict[str, float] = defaultdict(float)
    for source, target, value, _ in links:
        out[source] += value
        into[target] += value
    return {name: max(into[name], out[name]) for name in {*into, *out}}


def _through_nics(plan: Plan, scenario: Scenario) -> list[_Link]:
    """Let reads pass their side's NICs, add up equal links and drop empty ones."""
    total: dict[tuple[str, str, str], float] = {}
    for flow in view.step_flows(plan, scenario):
        hops = [(flow.source, flow.target)]
        if flow.source == "storage":
            nics = _nics(scenario, flow.pools[1])
            hops = [(flow.source, nics), (nics, flow.target)]
        for hop in hops:
            total[*hop, flow.path] = total.get((*hop, flow.path), 0.0) + flow.bytes_per_s
    return [
        (source, target, value, path)
        for (source, target, path), value in total.items()
        if value > 0
    ]


def _nics(scenario: Scenario, pool: str) -> str:
    """Name the NICs that carry a pool's storage traffic."""
    sharing = {node.shares_nic for node in scenario.cluster.nodes(Pool(pool))}
    kinds = {True: "compute NICs", False: "storage NICs"}
    return f"{pool} {kinds[sharing.pop()] if len(sharing) == 1 else 'NICs'}"


_SIDES = view.path_colours()


def _faded(path: str) -> str:
    return _faded_colour(_SIDES.get(path, "#8a8a8a"), 0.45)


def _faded_colour(colour: str, share: float) -> str:
    red, green, blue = (int(colour.lstrip("#")[i : i + 2], 16) for i in (0, 2, 4))
    return f"rgba({red},{green},{blue},{share})"


def _saturated(plan: Plan, scenario: Scenario) -> dict[str, list[str]]:
    """Return, for each place of the sankey that a used-up capacity feeds, what is used up there."""
    buffers = {
        "prefill": ["prefill DRAM"],
        "decode": ["decode DRAM (read)", "decode DRAM (hand-off)", "decode DRAM (generated)"],
    }
    # Short, because a label has the room between two columns.
    inside = {"gpu": "compute", "hbm": "bandwidth", "hbm_space": "space", "cnic": "NICs"}
    found: dict[str, list[str]] = {}
    used_up = view.limiting(plan)
    for row in plan.utilisation:
        if (row.pool, row.resource, row.direction) not in used_up:
            continue
        places, what = ["storage"], "saturated"
        if row.pool == "cluster":
            if row.direction == "write":
                places = ["write-back"]
            elif row.resource == "fabric":
                to_decode = row.direction == "prefill to decode"
                places = ["decode DRAM (hand-off)" if to_decode else "prefill HBM"]
                what = "fabric saturated"
        elif row.resource == "snic":
            inwards = row.direction == "in"
            places = [_nics(scenario, row.pool) if inwards else "write-back"]
            what = "saturated" if inwards else "NICs saturated"
        elif row.resource in ("dram", "host_link"):
            places = buffers[row.pool]
            what = "saturated" if row.resource == "dram" else "host link saturated"
        else:
            places = ["prefill HBM" if row.pool == "prefill" else "decode HBM"]
            what = f"{inside[row.resource]} saturated"
        for place in places:
            if what not in found.setdefault(place, []):
                found[place].append(what)
    return found


def utilisation_bars(plan: Plan) -> Any:
    """Return utilisation per capacity, Basic and dual path side by side (fullest node, %).

    Saturated capacities are a series of their own, in the place of the dual path's bar.
    """
    from plotly import graph_objects

    rows = view.bars(plan)[::-1]
    series = (
        ("dual path, saturated", view.SATURATED, [row for row in rows if row.saturated], True),
        ("dual path", view.DUAL_PATH, [row for row in rows if not row.saturated], True),
        ("Basic", view.BASIC, rows, False),
    )
    figure = graph_objects.Figure()
    for name, colour, chosen, dual in series:
        values = [row.dual_path if dual else row.basic for row in chosen]
        figure.add_bar(
            name=name,
            offsetgroup="dual path" if dual else "Basic",
            y=[row.label for row in chosen],
            x=[100 * value for value in values],
            orientation="h",
            marker={"color": colour},
            text=[view.percent(value) for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertext=[row.nodes if dual else "fullest node" for row in chosen],
            hovertemplate="%{y}: %{x:.1f} %<br>%{hovertext}<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title="utilisation of the fullest node, %", range=[0, 112])
    labels = [row.label for row in rows]
    figure.update_yaxes(automargin=True, categoryorder="array", categoryarray=labels)
    return layout(
        figure,
        view.saturation_sentence(plan),
        180 + 36 * len(rows),
        barmode="group",
        legend={**LEGEND, "traceorder": "reversed"},
    )


def ratio_axis(plan: Plan) -> Any:
    """Return the P/D axis (log): bottleneck-free range, each capacity's bound, and this cluster."""
    from plotly import graph_objects

    found = plan.bottleneck_free
    bounds = view.ratio_bounds(plan)
    marks = [found.ratio, *(bound.at for bound in bounds)]
    low, high = min(marks) / 3, max(marks) * 3
    figure = graph_objects.Figure(
        graph_objects.Scatter(
            x=[bound.at for bound in bounds],
            y=[bound.label for bound in bounds],
            mode="markers",
            marker={
                "symbol": ["triangle-left" if b.upper else "triangle-right" for b in bounds],
                "size": 13,
                "color": view.FREE,
            },
            hovertext=[f"P/D {'at most' if b.upper else 'at least'} {b.at:.3g}" for b in bounds],
            hovertemplate="%{y}: %{hovertext}<extra></extra>",
            name="bound",
        )
    )
    ends = view.free_range(plan)
    if ends is not None:
        figure.add_vrect(
            x0=max(ends[0], low),
            x1=min(ends[1], high),
            fillcolor=view.FREE,
            opacity=0.15,
            line_width=0,
        )
    colour = view.DUAL_PATH if found.holds in (True, None) else view.SATURATED
    figure.add_vline(x=found.ratio, line={"color": colour, "width": 3})
    figure.add_annotation(
        x=math.log10(found.ratio),
        y=1.0,
        yref="paper",
        yanchor="bottom",
        text=f"this cluster: {found.ratio:.3g}",
        showarrow=False,
    )
    figure.update_xaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=_ratio_ticks(low, high),
        ticktext=[f"{value:g}" for value in _ratio_ticks(low, high)],
        title="P/D: prefill nodes a decode node (log)",
        tickangle=0,
    )
    figure.update_yaxes(automargin=True, visible=bool(bounds))
    return layout(
        figure, view.range_sentence(plan), 190 + 42 * max(len(bounds), 1), showlegend=False
    )


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a log axis: 1, 2 and 5 of each decade, of more than three decades the powers."""
    parts = (1, 2, 5) if high / low < 300 else (1,)
    return [value for value in decades(-6, 7, parts) if low <= value <= high]


def neighbours_chart(plan: Plan) -> Any:
    """Return throughput of neighbouring node counts, Basic and dual path; this cluster in bold."""
    from plotly import graph_objects

    rows = [row for row in plan.neighbours if row.feasible]
    here = (plan.prefill_nodes, plan.decode_nodes)

    def label(row: Any) -> str:
        text = f"{row.prefill_nodes}P{row.decode_nodes}D"
        return f"<b>{text}</b>" if (row.prefill_nodes, row.decode_nodes) == here else text

    names = [f"{label(row)}<br>{row.requests_per_s_per_node:,.3g}" for row in rows]
    series = (
        ("Basic", view.BASIC, [row.throughput_basic_requests_per_s for row in rows]),
        ("dual path", view.DUAL_PATH, [row.throughput_requests_per_s for row in rows]),
    )
    figure = graph_objects.Figure(
        [
            graph_objects.Bar(
                name=name,
                x=names,
                y=values,
                marker={"color": colour},
                # One number a pair: two would meet on a narrow page.
                text=[f"{value:,.0f}" if name == "dual path" else "" for value in values],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y:.4g} requests/s<extra>" + name + "</extra>",
            )
            for name, colour, values in series
        ]
    )
    figure.update_yaxes(title="requests/s", rangemode="tozero")
    figure.update_xaxes(
        title="prefill and decode nodes<br>below: requests/s a node",
        type="category",
        tickangle=0,
    )
    most = max(row.requests_per_s_per_node for row in rows)
    best = [
        f"{row.prefill_nodes}P{row.decode_nodes}D"
        for row in rows
        if row.requests_per_s_per_node > (1 - _EQUAL) * most
    ]
    serve = "serves" if len(best) == 1 else "serve"
    title = (
        f"Neighbouring P/D ratios: {_listed(best)} {serve} most per node, {most:,.1f} requests/s"
    )
    return layout(figure, title, 440, barmode="group", legend=LEGEND)


_EQUAL = 5e-3
"""Relative difference up to which a title calls two answers equally good."""


def _listed(names: list[str], most: int = 3) -> str:
    """Return names as people list them; of many the first few."""
    if len(names) > most:
        return ", ".join(names[:most]) + f" and {len(names) - most} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def upgrades_chart(plan: Plan) -> Any:
    """Return what one more unit of each resource buys, % of throughput."""
    from plotly import graph_objects

    # Those without effect are named by who shows the figure; where none has one, all are shown.
    rows = [row for row in plan.upgrades if abs(row.gain) > view.NO_GAIN] or list(plan.upgrades)
    rows = rows[::-1]
    gains = [100 * row.gain for row in rows]
    figure = graph_objects.Figure(
        graph_objects.Bar(
            y=["<br>".join(textwrap.wrap(row.change, 26)) for row in rows],
            x=gains,
            orientation="h",
            marker={"color": [view.FREE if gain > 0.05 else view.BASIC for gain in gains]},
            text=[f"{gain:+.1f} %" if abs(gain) > 0.05 else "0" for gain in gains],
            textposition="outside",
            cliponaxis=False,
        )
    )
    least, most = min(0.0, *gains), max(1.0, *gains)
    figure.update_xaxes(title="change of throughput, %", range=[1.2 * least, 1.35 * most])
    figure.update_yaxes(automargin=True)
    most = plan.upgrades[0].gain
    best = [row.change for row in plan.upgrades if row.gain > (1 - _EQUAL) * most]
    title = "One more unit of anything alone buys nothing"
    if most > view.NO_GAIN:
        title = f"What one more unit buys: {' or '.join(best[:2])}, {most:+.1%}"
    return layout(figure, title, 150 + 34 * len(rows))
