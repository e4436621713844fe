"""Plotly figures of a plan, shared by the HTML report and the dashboard.

Every function takes a plan (and its scenario where the step table is needed) and returns a
``plotly.graph_objects.Figure``. Text from a scenario is escaped, so that no name can carry markup.
"""

from __future__ import annotations

import html
import math
from typing import Any

from app import plan_view as view
from dualpath_model.scenario import Scenario
from solvers.planner import Plan

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}


def _layout(figure: Any, title: str, height: int, **more: Any) -> Any:
    figure.update_layout(
        title={"text": html.escape(title), "x": 0, "xanchor": "left", "font": {"size": 16}},
        template="plotly_white",
        font=_FONT,
        height=height,
        margin={"l": 20, "r": 30, "t": 70, "b": 50},
        **more,
    )
    return figure


def sankey(plan: Plan, scenario: Scenario) -> Any:
    """Return the bytes/s of every step under the plan, from storage through both pools and back.

    Links come from the step table; a node's incoming and outgoing bytes differ only where bytes are
    made (prefill compute, decoding) or stay. Saturated resources are marked in colour and label.
    """
    from plotly import graph_objects

    flows = [(f.source, f.target, f.dual_path, f.path) for f in view.step_flows(plan, scenario)]
    links = _through_nics(_by_origin(flows))
    names = list(dict.fromkeys(name for source, target, *_ in links for name in (source, target)))
    at = {name: i for i, name in enumerate(names)}
    full = _saturated_places(plan)
    labels = [f"{name}<br>saturated" if name in full else name for name in names]
    colours = [view.SATURATED if name in full else "#7f8c9b" for name in names]
    figure = graph_objects.Figure(
        graph_objects.Sankey(
            arrangement="snap",
            valueformat=".3s",
            valuesuffix="B/s",
            node={"label": labels, "color": colours, "pad": 22, "thickness": 16},
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
    return _layout(figure, title, 460)


_Link = tuple[str, str, float, str]


def _by_origin(flows: list[_Link]) -> list[_Link]:
    """Send the decode start of hits from the buffer where each read path has left them."""
    kept = sum(value for _, target, value, _ in flows if target == "DE DRAM (read)")
    split: list[_Link] = []
    for source, target, value, path in flows:
        here = 0.0
        if (source, target) == ("DE DRAM (hand-off)", "DE HBM"):
            here = min(kept, value)
            kept -= here
            split.append(("DE DRAM (read)", target, here, path))
        split.append((source, target, value - here, path))
    return split


def _through_nics(flows: list[_Link]) -> list[_Link]:
    """Let reads pass their side's storage NICs, add up equal links and drop empty ones."""
    total: dict[tuple[str, str, str], float] = {}
    for source, target, value, path in flows:
        hops = [(source, target)]
        if source == "storage":
            nics = f"{'prefill' if target.startswith('PE') else 'decode'} storage NICs"
            hops = [(source, nics), (nics, target)]
        for hop in hops:
            total[*hop, path] = total.get((*hop, path), 0.0) + value
    return [
        (source, target, value, path)
        for (source, target, path), value in total.items()
        if value > 0
    ]


_SIDES = {"prefill read": view.DUAL_PATH, "decode read": view.DECODE_SIDE}


def _faded(path: str) -> str:
    colour = _SIDES.get(path, "#8a8a8a").lstrip("#")
    red, green, blue = (int(colour[i : i + 2], 16) for i in (0, 2, 4))
    return f"rgba({red},{green},{blue},0.45)"


def _saturated_places(plan: Plan) -> set[str]:
    """Return the names of sankey nodes that stand for a saturated capacity."""
    places = {
        ("prefill", "snic"): "prefill storage NICs",
        ("decode", "snic"): "decode storage NICs",
        ("prefill", "dram"): "PE DRAM",
        ("decode", "dram"): "DE DRAM (read)",
        ("prefill", "gpu"): "PE HBM",
        ("decode", "gpu"): "DE HBM",
        ("decode", "hbm"): "DE HBM",
        ("cluster", "storage"): "storage",
    }
    return {
        places[row.pool, row.resource]
        for row in plan.utilisation
        if row.dual_path >= view.FULL and (row.pool, row.resource) in places
    }


def utilisation_bars(plan: Plan) -> Any:
    """Return utilisation per capacity, Basic and dual path side by side (fullest node, %)."""
    from plotly import graph_objects

    rows = view.bars(plan)[::-1]
    labels = [row.label for row in rows]
    hover = [f"{row.fullest}, fullest of {row.nodes}" for row in rows]
    colours = [view.SATURATED if row.saturated else view.DUAL_PATH for row in rows]
    figure = graph_objects.Figure(
        [
            graph_objects.Bar(
                name="dual path (saturated in orange)",
                y=labels,
                x=[100 * row.dual_path for row in rows],
                orientation="h",
                marker={"color": colours},
                text=[f"{row.dual_path:.0%}" for row in rows],
                textposition="outside",
                cliponaxis=False,
                hovertext=hover,
                hovertemplate="%{y}: %{x:.1f} % (%{hovertext})<extra>dual path</extra>",
            ),
            graph_objects.Bar(
                name="Basic",
                y=labels,
                x=[100 * row.basic for row in rows],
                orientation="h",
                marker={"color": view.BASIC},
                text=[f"{row.basic:.0%}" for row in rows],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y}: %{x:.1f} %<extra>Basic</extra>",
            ),
        ]
    )
    figure.update_xaxes(title="utilisation of the fullest node, %", range=[0, 112])
    figure.update_yaxes(automargin=True)
    return _layout(
        figure,
        view.saturation_sentence(plan),
        180 + 36 * len(rows),
        barmode="group",
        legend={
            "orientation": "h",
            "y": 1.0,
            "yanchor": "bottom",
            "x": 0,
            "traceorder": "reversed",
        },
    )


def ratio_axis(plan: Plan) -> Any:
    """Return the P/D axis (log): bottleneck-free range, each capacity's bound, and this cluster."""
    from plotly import graph_objects

    found = plan.bottleneck_free
    bounds = view.ratio_bounds(plan)
    marks = [found.ratio, *(bound.at for bound in bounds if bound.at > 0)]
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
    if found.low is not None:
        top = found.high if found.high is not None else high
        if found.low < top:
            figure.add_vrect(
                x0=max(found.low, low), x1=top, fillcolor=view.FREE, opacity=0.15, line_width=0
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
        font={"color": colour},
    )
    figure.update_xaxes(
        type="log",
        range=[math.log10(low), math.log10(high)],
        title="prefill nodes per decode node (P/D)",
    )
    figure.update_yaxes(automargin=True, visible=bool(bounds))
    return _layout(
        figure, view.range_sentence(plan), 190 + 42 * max(len(bounds), 1), showlegend=False
    )


def neighbours_chart(plan: Plan) -> Any:
    """Return throughput of neighbouring node counts, Basic and dual path; this cluster in bold."""
    from plotly import graph_objects

    rows = [row for row in plan.neighbours if row.feasible]
    here = (plan.prefill_nodes, plan.decode_nodes)

    def label(row: Any) -> str:
        text = f"{row.prefill_nodes}P{row.decode_nodes}D"
        return f"<b>{text}</b>" if (row.prefill_nodes, row.decode_nodes) == here else text

    names = [label(row) for row in rows]
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
                text=[f"{value:,.0f}" for value in values],
                textposition="outside",
                cliponaxis=False,
            )
            for name, colour, values in series
        ]
    )
    figure.update_yaxes(title="requests/s", rangemode="tozero")
    figure.update_xaxes(title="prefill and decode nodes", type="category")
    best = max(rows, key=lambda row: row.requests_per_s_per_node)
    title = (
        f"Neighbouring P/D ratios: {best.prefill_nodes}P{best.decode_nodes}D serves most per node, "
        f"{best.requests_per_s_per_node:,.1f} requests/s"
    )
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    return _layout(figure, title, 420, barmode="group", legend=legend)


def upgrades_chart(plan: Plan) -> Any:
    """Return what one more unit of each resource buys, % of throughput."""
    from plotly import graph_objects

    rows = plan.upgrades[::-1]
    gains = [100 * row.gain for row in rows]
    figure = graph_objects.Figure(
        graph_objects.Bar(
            y=[row.change for row in rows],
            x=gains,
            orientation="h",
            marker={"color": [view.FREE if gain > 0.05 else view.BASIC for gain in gains]},
            text=[f"{gain:+.1f} %" for gain in gains],
            textposition="outside",
            cliponaxis=False,
        )
    )
    least, most = min(0.0, *gains), max(1.0, *gains)
    figure.update_xaxes(title="change of throughput, %", range=[1.2 * least, 1.2 * most])
    figure.update_yaxes(automargin=True)
    best = plan.upgrades[0]
    title = f"What one more unit buys: {best.change}, {best.gain:+.1%}"
    return _layout(figure, title, 150 + 34 * len(rows))
