"""Terminal output for people: rich tables over the same data that ``--json`` prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app import plan_view
from dualpath_model.frameworks import table_named
from dualpath_model.paths import PAPER
from dualpath_model.quantities import Dimension, show
from solvers.alternatives import ResourceName
from solvers.planner import Plan, Utilisation
from solvers.uncertainty import Uncertainty

_RATE = Dimension.BYTES_PER_S
_UNITS = {"gpu": "FLOP/s", "hbm_space": "B"}


def terminal() -> Console:
    """Return a console that does not fold tables to 80 columns where nobody looks at a terminal."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(highlight=False, width=width)


def column(table: Table, heading: str, words: Collection[str]) -> None:
    """Add a column: words to the left and never cut off, numbers to the right."""
    if heading in words:
        table.add_column(heading, no_wrap=True)
    else:
        table.add_column(heading, justify="right", overflow="fold")


def _name(name: ResourceName) -> str:
    return f"{name.pool} {name.resource} {name.direction}"


def _si(value: float, unit: str) -> str:
    return show(value, Dimension.BYTES).removesuffix("B") + unit


def show_plan(plan: Plan) -> None:
    """Print a plan: the finding first, then the tables behind it."""
    console = terminal()
    console.print(f"[bold]{escape(plan.scenario)}[/bold]")
    console.print(
        f"{escape(plan.llm)} ({plan.kv_dtype} KV) on {plan.prefill_nodes} prefill and "
        f"{plan.decode_nodes} decode nodes; {plan.workload.hit_rate:.1%} of "
        f"{plan.workload.mean_prompt_tokens:,.0f} prompt tokens are read back, "
        f"{show(plan.workload.read_bytes_per_request, Dimension.BYTES)} a request\n"
    )
    console.print(_headline(plan))
    if len(plan.classes) > 1:
        console.print(_class_table(plan))
    console.print(_utilisation_table(plan))
    console.print(_upgrade_table(plan))
    console.print(_neighbour_table(plan))
    console.print(_parameter_table(plan))
    if plan.uncertainty is not None:
        for table in _uncertainty_tables(plan.uncertainty):
            console.print(table)
    for note in plan.notes:
        console.print(f"note: {escape(note)}")


def _headline(plan: Plan) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    basic, best = plan.throughput_basic_requests_per_s, plan.throughput_requests_per_s
    if plan.framework != PAPER.name:
        served = table_named(plan.framework)
        table.add_row("framework", f"{served.name} ({escape(served.software)})")
    table.add_row(
        "limits today (Basic)", f"{_name(plan.bottleneck_basic)}, {basic:,.1f} requests/s"
    )
    table.add_row(*_split_row(plan))
    table.add_row(
        "with both paths",
        f"{best:,.1f} requests/s ({plan.speedup_over_basic:.2f}x Basic"
        + (")" if plan.sessions_per_s is None else f", {plan.sessions_per_s:.3g} sessions/s)"),
    )
    if plan.speedup_over_basic < 1.0005 and table_named(plan.framework).splits:
        table.add_row("", "any split serves as much; this one leaves the NICs most room")
    table.add_row("then limited by", ", ".join(map(_name, plan.binding)) or _name(plan.bottleneck))
    if plan.throughput_oracle_requests_per_s is not None:
        table.add_row(
            "compute limit (Oracle)",
            f"{plan.throughput_oracle_requests_per_s:,.1f} requests/s; the plan reaches "
            f"{plan.fraction_of_oracle:.1%}",
        )
    table.add_row("P/D ratio", _range_text(plan))
    for engine in plan.decode_engines:
        who = "" if len(plan.classes) == 1 else f", {escape(engine.traffic)}"
        table.add_row(
            "decode engine",
            f"{escape(engine.node)}{who}: batch {engine.batch:,.1f}, "
            f"{show(engine.step_s, Dimension.SECONDS)} a step (limit: {engine.limit})",
        )
    return table


def _split_row(plan: Plan) -> tuple[str, str]:
    table = table_named(plan.framework)
    if not table.splits:
        return "split x", f"no choice: {table.decode_read.meaning}"
    if table.name == PAPER.name:
        return "read through decode", f"{plan.split:.1%} of the KV bytes (split x)"
    return table.decode_read.name, f"{plan.split:.1%} of the hits (split x)"


def _range_text(plan: Plan) -> str:
    found = plan.bottleneck_free
    if found.reason is None and plan_view.free_range(plan) is None:
        return plan_view.range_sentence(plan).removeprefix("P/D = ")
    if found.low is None:
        return f"{found.ratio:.3g}; bottleneck-free range not defined ({found.reason})"
    high = "∞" if found.high is None else f"{found.high:.3g}"
    verdict = "inside" if found.holds else "OUTSIDE"
    text = f"{found.ratio:.3g}, {verdict} the bottleneck-free range [{found.low:.3g}, {high}]"
    if found.low_all_traffic is None or found.high_all_traffic is None:
        return text
    low, top = found.low_all_traffic, found.high_all_traffic
    return f"{text} of hits alone, [{low:.3g}, {top:.3g}] of all traffic"


def _class_table(plan: Plan) -> Table:
    table = Table(title="Classes of traffic", title_justify="left")
    table.add_column("class")
    for heading in ("asked", "requests/s", "Basic", "split", "read a request"):
        table.add_column(heading, justify="right")
    for row in plan.classes:
        asked = f"{row.share:.0%} of the mix" if row.share is not None else "a fixed rate"
        table.add_row(
            escape(row.name),
            asked,
            f"{row.requests_per_s:,.1f}",
            f"{row.requests_per_s_basic:,.1f}",
            f"{row.split:.1%}",
            show(row.read_bytes_per_request, Dimension.BYTES),
        )
    return table


def _utilisation_table(plan: Plan) -> Table:
    """One line a pool and resource: the fullest node; single nodes are in the JSON."""
    table = Table(
        title="Utilisation (fullest node), and what 1 % more in the pool gives",
        title_justify="left",
    )
    table.add_column("resource", no_wrap=True)
    for heading in ("a node has", "Basic", "both", "+1 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    grouped: dict[tuple[str, str, str], list[Utilisation]] = {}
    for row in plan.utilisation:
        grouped.setdefault((row.pool, row.resource, row.direction), []).append(row)
    for (pool, resource, direction), rows in grouped.items():
        fullest = max(rows, key=lambda row: row.dual_path)
        gain = sum(row.elasticity for row in rows)
        table.add_row(
            f"{pool} {resource} {direction}",
            _si(fullest.capacity, _UNITS.get(resource, "B/s")),
            f"{max(row.basic for row in rows):.1%}",
            f"{fullest.dual_path:.1%}",
            f"+{gain:.2f} %" if gain > 5e-5 else "",
        )
    return table


def _upgrade_table(plan: Plan) -> Table:
    table = Table(title="What one more unit buys", title_justify="left")
    table.add_column("change")
    table.add_column("requests/s", justify="right")
    table.add_column("gain", justify="right")
    for upgrade in plan.upgrades:
        rate = f"{upgrade.throughput_requests_per_s:,.1f}"
        table.add_row(upgrade.change, rate, f"{upgrade.gain:+.1%}")
    return table


def _neighbour_table(plan: Plan) -> Table:
    table = Table(title="Neighbouring P/D ratios", title_justify="left")
    reasons: dict[str, None] = {}
    for heading in ("P", "D", "split", "requests/s", "a node", "over Basic", "limited by"):
        table.add_column(heading, justify="left" if heading == "limited by" else "right")
    for row in plan.neighbours:
        here = (row.prefill_nodes, row.decode_nodes) == (plan.prefill_nodes, plan.decode_nodes)
        style = "bold" if here else None
        if row.bottleneck is None:
            reasons[row.reason or ""] = None
            cells = ["-", "-", "-", "-", "cannot serve, see below"]
        else:
            cells = [
                f"{row.split:.1%}",
                f"{row.throughput_requests_per_s:,.1f}",
                f"{row.requests_per_s_per_node:,.1f}",
                f"{row.speedup_over_basic:.2f}x",
                _name(row.bottleneck),
            ]
        table.add_row(str(row.prefill_nodes), str(row.decode_nodes), *cells, style=style)
    if reasons:
        table.caption = "; ".join(map(escape, reasons))
        table.caption_justify = "left"
    return table


def _uncertainty_tables(found: Uncertainty) -> list[Table]:
    title = f"95 % intervals from the measured rates ({found.samples} draws)"
    intervals = Table(title=title, title_justify="left")
    for heading in ("of the plan", "value", "interval"):
        column(intervals, heading, ("of the plan",))
    for row in plan_view.interval_rows(found):
        intervals.add_row(*row)
    worth = Table(title="Which measurement to sharpen", title_justify="left")
    for heading in ("figure", "its interval", "known exactly"):
        worth.add_column(heading)
    for row in plan_view.narrowing_rows(found):
        worth.add_row(*map(escape, row))
    worth.caption = "; ".join(plan_view.uncertainty_remarks(found))
    worth.caption_justify = "left"
    return [intervals, worth]


def _parameter_table(plan: Plan) -> Table:
    found = plan.scheduler_parameters
    table = Table(title="Scheduler parameters", title_justify="left")
    table.add_column("parameter")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    weights: dict[tuple[str, float], int] = {}
    for node in found.nodes:
        kind = (node.pool, round(node.read_weight, 6))
        weights[kind] = weights.get(kind, 0) + 1
    rows = [
        ("alpha", f"{found.alpha_tokens:,.0f} tokens", "a read queue up to this is short"),
        ("beta", f"{found.beta_tokens:,.0f} tokens", "an engine beyond this gets no work"),
        ("quota", show(found.quota_s, Dimension.SECONDS), "attention time of a forward batch"),
        ("Z factor", f"{found.z_factor:g}", "decode balance: at most this times the mean"),
        ("block", f"{found.block_tokens} tokens", "full block, the unit of storage"),
        ("split x", f"{found.split:.4f}", "fraction of reads through decode nodes"),
    ]
    for (pool, weight), count in weights.items():
        rows.append((f"read weight, {pool}", f"{weight:.4f}", f"share of reads of {count} node(s)"))
    for row in rows:
        table.add_row(*row)
    return table


def show_trace_statistics(found: Mapping[str, Any]) -> None:
    """Print ``dualpath trace stats``."""
    console = terminal()
    console.print(f"[bold]{escape(str(found['source']))}[/bold]")
    console.print(
        f"{found['sessions']:,} sessions, {found['model_calls']:,} model calls "
        f"({found['turns']:,} turns, {found['sub_agent_calls']:,} calls of "
        f"{found['sub_agents']:,} sub-agents), {found['compactions']:,} compactions"
    )
    console.print(
        f"mean prompt {found['mean_prompt_tokens']:,.0f} tokens, append "
        f"{found['mean_append_tokens']:,.0f}, output {found['mean_output_tokens']:,.0f}; hit rate "
        f"{found['hit_rate']:.1%} of tokens"
        + (f", {found['block_hit_rate']:.1%} of blocks" if found.get("block_hit_rate") else "")
    )
    table = Table(title="Percentiles", title_justify="left")
    table.add_column("")
    names = list(next(iter(found["percentiles"].values())))
    for name in names:
        table.add_column(name, justify="right")
    for quantity, values in found["percentiles"].items():
        table.add_row(quantity, *(_figure(values[name]) for name in names))
    console.print(table)
    table = Table(title="Reading the hits back", title_justify="left")
    for heading in ("LLM", "KV", "bytes/token", "read a call", "read in all", "GB/PFLOP"):
        table.add_column(heading, justify="left" if heading in ("LLM", "KV") else "right")
    for name, llm in found["llms"].items():
        table.add_row(
            escape(name),
            llm["kv_dtype"],
            show(llm["kv_bytes_per_token"], Dimension.BYTES),
            show(llm["read_bytes_per_call"], Dimension.BYTES),
            show(llm["read_bytes"], Dimension.BYTES),
            f"{1e6 * llm['cache_compute_bytes_per_flop']:.3g}",
        )
    console.print(table)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.4g}"


def show_llms(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print ``dualpath llm list``."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("LLM", "attention", "params", "active", "KV", "bytes/token", "context"):
        column(table, heading, ("LLM", "attention", "KV"))
    for name, llm in found.items():
        table.add_row(
            name,
            llm["attention"],
            f"{llm['total_params'] / 1e9:,.0f}B",
            f"{llm['active_params'] / 1e9:,.1f}B",
            llm["kv_dtype"],
            show(llm["kv_bytes_per_token"], Dimension.BYTES, 4),
            f"{llm['max_context_tokens']:,}",
        )
    terminal().print(table)


def show_nodes(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print ``dualpath node list``."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("node", "GPUs", "CNICs", "SNICs", "host link", "DRAM", "USD/h"):
        column(table, heading, ("node",))
    for name, node in found.items():
        link, dram = node["host_link_bytes_per_s"], node["dram_bytes_per_s"]
        price = node["price_usd_per_hour"]
        table.add_row(
            name,
            f"{node['gpus']} x {node['gpu'].removesuffix('-sxm')}",
            show(node["compute_bytes_per_s"], _RATE),
            "shared" if node["shares_nic"] else show(node["storage_bytes_per_s"], _RATE),
            "" if link is None else show(link, _RATE),
            "" if dram is None else show(dram, _RATE),
            "" if price is None else f"{price:,.2f}",
        )
    terminal().print(table)


def show_cache_compute(found: Mapping[str, list[dict[str, float]]]) -> None:
    """Print ``dualpath llm cache-compute``."""
    table = Table(title="KV-cache to load per compute (paper, Table 1)", title_justify="left")
    for heading in ("LLM", "context", "append", "KV bytes", "FLOPs", "GB/PFLOP"):
        table.add_column(heading, justify="left" if heading == "LLM" else "right")
    for name, rows in found.items():
        for row in rows:
            table.add_row(
                escape(name),
                f"{row['context_tokens']:,}",
                f"{row['append_tokens']:,}",
                show(row["kv_bytes"], Dimension.BYTES),
                _si(row["flops"], "FLOP"),
                f"{row['gb_per_pflop']:.1f}",
            )
    terminal().print(table)


def show_fields(title: str, found: Mapping[str, Any]) -> None:
    """Print nested fields as an indented list."""
    console = terminal()
    console.print(f"[bold]{escape(title)}[/bold]")

    def lines(value: Any, name: str, depth: int) -> None:
        indent = "  " * depth
        if isinstance(value, Mapping):
            console.print(f"{indent}{escape(name)}:")
            for key, inner in value.items():
                lines(inner, str(key), depth + 1)
        elif isinstance(value, list):
            console.print(f"{indent}{escape(name)}:")
            for inner in value:
                console.print(f"{indent}  - {escape(str(inner))}", soft_wrap=True)
        else:
            text = f"{value:,.6g}" if isinstance(value, float) else str(value)
            console.print(f"{indent}{escape(name)}: {escape(text)}", soft_wrap=True)

    for key, value in found.items():
        lines(value, key, 1)


def show_driven(found: Mapping[str, Any]) -> None:
    """Print what a driven scheduler did."""
    print(
        f"{found['policy']}: {found['turns']} turns of {found['agents']} agents in "
        f"{found['simulated_s']:.1f} simulated seconds, {found['sessions_finished']} sessions ended"
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("", "mean", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, unit in (("ttft_s", "TTFT, s"), ("tpot_s", "TPOT, s")):
        spread = found[name]
        if spread:
            table.add_row(
                unit, *(f"{spread[key]:.4g}" for key in ("mean", "p50", "p90", "p99", "max"))
            )
    terminal().print(table)
    windows = f"{found['window_s']:g} s windows"
    print(
        f"storage NICs, max over mean: {found['snic_max_over_mean']:.3f} in all, "
        f"{found['snic_max_over_mean_windows']:.3f} in {windows}"
    )
    print(
        f"attention time of a group's engines, max over mean: {found['attention_max_over_mean']:.3f}"
    )
    reads = ", ".join(f"{node} {tokens}" for node, tokens in found["read_tokens"].items())
    print(f"tokens read: {reads}")


def show_replay(found: Mapping[str, Any]) -> None:
    """Print the outcome of a replay."""
    counts = ", ".join(f"{count} {kind}" for kind, count in found["decisions"].items()) or "none"
    print(f"{found['events']} events, {found['refused']} refused; decisions: {counts}")
    difference = found["first_difference"]
    if difference is None:
        print("every decision was made again")
        return
    print(
        f"{found['different']} events were decided otherwise; the first is on line {difference['line']}"
    )
    print(f"  event   {difference['event']}")
    print(f"  logged  {difference['logged']}")
    print(f"  now     {difference['now']}")


def show_assignment(found: Mapping[str, Any]) -> None:
    """Print ``dualpath assign``."""
    console = terminal()
    console.print(f"[bold]{escape(found['scenario'])}[/bold]")
    console.print(f"{found['objective']}: {found['value']:,.4g} {found['unit']}")
    table = Table(title="Requests/s by node (read path: prefill / decode)", title_justify="left")
    table.add_column("node", no_wrap=True)
    for part in found["classes"]:
        table.add_column(f"{escape(part['name'])}, split {part['split']:.1%}", justify="right")
    for node in found["nodes"]:
        cells = [
            f"{f['prefill_read']:,.1f} / {f['decode_read']:,.1f}" for f in node["requests_per_s"]
        ]
        table.add_row(f"{node['pool']} {node['node']} {escape(node['name'])}", *cells)
    totals = [f"{part['requests_per_s']:,.1f}" for part in found["classes"]]
    table.add_row("all", *totals, style="bold")
    console.print(table)
    table = Table(title="Capacities with a price", title_justify="left")
    table.add_column("capacity", no_wrap=True)
    ranges = ("price holds",) if found["ranges_computed"] else ()
    for heading in ("has", "used", "1 % more gives", *ranges):
        table.add_column(heading, justify="right")
    for row in found["capacities"]:
        gain = 0.01 * row["dual_value"] * row["capacity"]
        if abs(gain) <= 1e-9 * max(abs(found["value"]), 1e-300):
            continue
        unit = _UNITS.get(row["resource"], "B/s")
        ends = [row["holds_from"], row["holds_to"]]
        holds = " to ".join("any" if e is None else _si(max(e, 0.0), unit) for e in ends)
        node = "" if row["node"] is None else f" {row['node']}"
        table.add_row(
            f"{row['pool']}{node} {row['resource']} {row['direction']}",
            _si(row["capacity"], unit),
            f"{row['utilisation']:.1%}",
            f"{gain:+,.3g} {found['unit']}",
            *([holds] if ranges else []),
        )
    console.print(table)
    proof = found["certificate"]
    console.print(
        f"certificate: primal {proof['primal']:.0e}, dual {proof['dual']:.0e}, gap {proof['gap']:.0e}"
    )
