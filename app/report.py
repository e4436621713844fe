"""The plan as one HTML file that needs nothing else: plotly inside, no network, no script of ours."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app import figures
from app import plan_view as view
from app.files import check_writable, write_atomically
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from solvers.planner import Plan

_STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; color: #222;
       margin: 0 auto; max-width: 1180px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
p.sub { color: #555; margin: 0 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
.tile { border: 1px solid #ddd; border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 22px; } .tile span { color: #555; font-size: 13px; }
.warn b { color: #D55E00; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; border-bottom: 2px solid #ccc; padding: 4px 8px; }
td { border-bottom: 1px solid #eee; padding: 4px 8px; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.here { font-weight: 600; background: #e8f1f8; } tr.full td { color: #B04A00; }
"""


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
    config = {"displaylogo": False, "responsive": True}
    pictures = "\n".join(
        figure.to_html(
            full_html=False, include_plotlyjs="inline" if i == 0 else False, config=config
        )
        for i, figure in enumerate(drawn)
    )
    name = html.escape(plan.scenario)
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{name}: plan</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(view.headline(plan))}</h1>",
            f'<p class="sub">{name} · {html.escape(_about(plan))}</p>',
            _tiles(plan),
            pictures,
            _tables(plan, scenario),
            "</body></html>",
        ]
    )


def _about(plan: Plan) -> str:
    work = plan.workload
    return (
        f"{plan.llm} ({plan.kv_dtype} KV-cache), {plan.prefill_nodes} prefill and {plan.decode_nodes} "
        f"decode nodes; {work.hit_rate:.1%} of {work.mean_prompt_tokens:,.0f} prompt tokens are read "
        f"back, {show(work.read_bytes_per_request, Dimension.BYTES)} a request"
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
        ("read through decode nodes", f"{plan.split:.1%}", ""),
        ("with both paths", f"{plan.throughput_requests_per_s:,.1f} requests/s", ""),
        ("over Basic", f"{plan.speedup_over_basic:.2f}x", ""),
        ("of the compute limit", compute, ""),
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
        parts += ["<h2>Classes of traffic</h2>", _table(heads, rows, text=2)]
    parts += ["<h2>Utilisation and prices</h2>", _utilisation(plan)]
    parts += ["<h2>Neighbouring P/D ratios</h2>", _neighbours(plan)]
    parts += ["<h2>Scheduler parameters</h2>", _parameters(plan, scenario)]
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
    return _table(heads, rows, kinds, text=2)


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
    return _table(heads, rows, kinds, text=2)


def _parameters(plan: Plan, scenario: Scenario) -> str:
    found, rules = plan.scheduler_parameters, scenario.rules
    alpha_s, beta_s = (show(s, Dimension.SECONDS) for s in (rules.alpha_s, rules.beta_s))
    weights = sorted({(n.pool, f"{n.read_weight:.4f}") for n in found.nodes}, reverse=True)
    rows = [
        (
            "alpha",
            f"{found.alpha_tokens:,.0f} tokens",
            f"readable in {alpha_s}: storage rate over bytes a hit token",
        ),
        (
            "beta",
            f"{found.beta_tokens:,.0f} prompt tokens",
            f"prefilled by a GPU in {beta_s} at the mean request",
        ),
        (
            "quota",
            show(found.quota_s, Dimension.SECONDS),
            "attention time of a forward batch (paper, 6)",
        ),
        ("Z factor", f"{found.z_factor:g}", "decode balance (paper, 6)"),
        ("block", f"{found.block_tokens} tokens", "full block, the unit of storage (paper, 4.1)"),
        ("split x", f"{found.split:.4f}", "fraction of reads through decode nodes (LP)"),
        *(
            (f"read weight, {pool}", weight, "of a node's share of reads (LP)")
            for pool, weight in weights
        ),
    ]
    return _table(("parameter", "value", "where it comes from"), rows, text=3)


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = (), *, text: int
) -> str:
    """Return an HTML table whose first ``text`` columns are words and the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i >= text else ''}>{html.escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body: list[Any] = []
    for i, row in enumerate(rows):
        kind = f' class="{kinds[i]}"' if kinds and kinds[i] else ""
        body.append(f"<tr{kind}>{cells('td', row)}</tr>")
    return (
        f"<table><thead><tr>{cells('th', heads)}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
