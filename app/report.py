"""The plan as one HTML file (:mod:`page`)."""

from __future__ import annotations

import html
from pathlib import Path

from app import figures
from app import plan_view as view
from app.files import check_writable, write_atomically
from app.page import page, pictures, table
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from solvers.planner import Plan
from solvers.uncertainty import Uncertainty


def write_report(plan: Plan, scenario: Scenario, path: Path) -> None:
    """Write the report. Raises InputError, one sentence, if ``path`` cannot be written to."""
    check_writable(path)
    write_atomically(path, report_html(plan, scenario))


def report_html(plan: Plan, scenario: Scenario) -> str:
    """Return the report as text; everything from the scenario is escaped."""
    drawn = [
        figures.sankey(plan, scenario),
        figures.utilisation_bars(plan),
        figures.ratio_axis(plan),
        figures.upgrades_chart(plan),
        figures.neighbours_chart(plan),
    ]
    name = plan.scenario
    return page(
        f"{name}: plan",
        view.headline(plan),
        f"{name} · {view.about(plan)}",
        [_tiles(plan), pictures(drawn), _tables(plan, scenario)],
    )


def _tiles(plan: Plan) -> str:
    free = plan.bottleneck_free
    compute = (
        "not limiting" if plan.fraction_of_oracle is None else f"{plan.fraction_of_oracle:.0%}"
    )
    inside = {True: "inside", False: "outside", None: "not defined"}[free.holds]
    if free.holds is False and view.free_range(plan) is None:
        inside = "there is none"
    tiles = [
        ("limits today (Basic)", view.words(plan.bottleneck_basic), "warn"),
        ("then limits", view.words(plan.bottleneck), ""),
        ("read through decode nodes", view.split_text(plan), ""),
        ("with both paths", f"{plan.throughput_requests_per_s:,.1f} requests/s", ""),
        ("over Basic", f"{plan.speedup_over_basic:.2f}x", ""),
        ("of the GPUs' limit", compute, ""),
        ("bottleneck-free range", inside, "warn" if free.holds is False else ""),
    ]
    cells = (
        f'<div class="tile {kind}"><span>{html.escape(label)}</span><b>{html.escape(value)}</b></div>'
        for label, value, kind in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _tables(plan: Plan, scenario: Scenario) -> str:
    parts = []
    if len(plan.classes) > 1:
        rows = [
            (
                c.name,
                f"{c.share:.0%} of the mix" if c.share is not None else "fixed rate",
                f"{c.requests_per_s:,.1f}",
                f"{c.requests_per_s_basic:,.1f}",
                f"{c.split:.1%}",
            )
            for c in plan.classes
        ]
        heads = ("class", "asked", "requests/s", "Basic", "split x")
        parts += ["<h2>Classes of traffic</h2>", table(heads, rows, text=2)]
    parts += ["<h2>Utilisation and prices</h2>", _utilisation(plan)]
    parts += ["<h2>Neighbouring P/D ratios</h2>", _neighbours(plan)]
    parts += ["<h2>Scheduler parameters</h2>", _parameters(plan, scenario)]
    if plan.uncertainty is not None:
        parts += ["<h2>Intervals from the measured rates</h2>", _uncertainty(plan.uncertainty)]
    if plan.notes:
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in plan.notes)
        parts.append(f"<h2>Notes</h2><ul>{notes}</ul>")
    return "\n".join(parts)


def _utilisation(plan: Plan) -> str:
    """Return one line a capacity; nodes with the same figures share it."""
    alike: dict[tuple[str, ...], list[int | None]] = {}
    for row in plan.utilisation:
        unit = {"gpu": "FLOP/s", "hbm_space": "B"}.get(row.resource, "B/s")
        priced = row.elasticity > 5e-6
        figures_of = (
            view.words(row),
            show(row.capacity, Dimension.BYTES).removesuffix("B") + unit,
            f"{row.basic:.1%}",
            f"{row.dual_path:.1%}",
            f"{row.dual_value:.3g}" if priced else "",
            f"{row.elasticity:.3f} %" if priced else "",
        )
        alike.setdefault(figures_of, []).append(row.node)
    rows = [(view.node_runs(nodes), *figures_of) for figures_of, nodes in alike.items()]
    kinds = ["full" if row[4] == "100.0%" else "" for row in rows]
    heads = (
        "nodes",
        "capacity",
        "each has",
        "Basic",
        "dual path",
        "requests/s per unit",
        "1 % more on one gives",
    )
    return table(heads, rows, kinds, text=2)


def _neighbours(plan: Plan) -> str:
    rows, kinds = [], []
    for row in plan.neighbours:
        here = (row.prefill_nodes, row.decode_nodes) == (plan.prefill_nodes, plan.decode_nodes)
        kinds.append("here" if here else "")
        name = f"{row.prefill_nodes}P{row.decode_nodes}D"
        if row.bottleneck is None:
            rows.append((name, row.reason or "", "", "", "", ""))
            continue
        rows.append(
            (
                name,
                view.words(row.bottleneck),
                f"{row.split:.1%}",
                f"{row.throughput_requests_per_s:,.1f}",
                f"{row.requests_per_s_per_node:,.1f}",
                f"{row.speedup_over_basic:.2f}x",
            )
        )
    heads = ("nodes", "limited by", "split x", "requests/s", "a node", "over Basic")
    return table(heads, rows, kinds, text=2)


def _uncertainty(found: Uncertainty) -> str:
    intervals = table(("of the plan", "value", "95 % interval"), view.interval_rows(found), text=1)
    rows = view.narrowing_rows(found)
    heads = ("measured figure", "its interval", "if it were known exactly")
    worth = table(heads, rows, text=3) if rows else ""
    remarks = "".join(f"<p>{html.escape(text)}</p>" for text in view.uncertainty_remarks(found))
    return intervals + worth + remarks


def _parameters(plan: Plan, scenario: Scenario) -> str:
    heads = ("parameter", "value", "where it comes from")
    return table(heads, view.parameter_rows(plan, scenario), text=3)
