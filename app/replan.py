"""``dualpath replan``: whether to turn prefill nodes into decode nodes or back, and what a day gains."""

from __future__ import annotations

import html as markup
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.options import ConstantsOption, ScenarioArgument
from app.output import JsonOption, emit, say
from dualpath_model.errors import InputError

if TYPE_CHECKING:
    from solvers.replan_answer import Decision
    from solvers.replan_day import DayResult, Driven

_OPTION_HEADS = ("ratio", "turned", "LP requests/s", "meanwhile", "switch s", "gain", "cost", "net")
_DAY_HEADS = (
    "run",
    "within SLO",
    "mean TTFT",
    "p90 TTFT",
    "mean TPOT",
    "changes",
    "away",
    "sustains",
)
_STEP_HEADS = ("from", "turns", "within SLO", "nodes", "decision", "why")


_AS_GOOD = 0.01
"""Shares of turns within the SLO that differ by less are as good: the draw of a day's starts alone moves
their difference by up to 0.008 (`python -m benchmarks.replan --seeds 3`)."""
_OF_A_DAY = ("every", "copies", "load", "search", "least")
_OF_A_WINDOW = ("waiting", "since")


def replan_command(
    context: typer.Context,
    scenario: ScenarioArgument,
    window: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="Recent sessions: a file or folder of a known format."),
    ] = None,
    day: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE|FILE.yaml",
            help="Instead of a window: simulate a whole day, re-planned and with every fixed ratio.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Sessions/s of the window, or of a day's trace without times; default: from the times "
            "of arrival."
        ),
    ] = None,
    waiting: Annotated[
        float, typer.Option(help="Turns that wait for an engine at the end of the window.")
    ] = 0.0,
    horizon: Annotated[
        str, typer.Option(help="How long the next load will be like the window's.")
    ] = "1h",
    growth: Annotated[float, typer.Option(help="The next load over the window's.")] = 1.0,
    switch_time: Annotated[
        str | None,
        typer.Option(
            help="A node's last request to its first in the new role; default: --start-time and the "
            "LLM's weights over the storage NIC."
        ),
    ] = None,
    start_time: Annotated[
        str, typer.Option(help="Of an engine, beside loading weights ('0' for none).")
    ] = "30s",
    min_gain: Annotated[float, typer.Option(help="Least relative gain of capacity.")] = 0.1,
    dwell: Annotated[str, typer.Option(help="Least time between two changes ('0').")] = "30min",
    since: Annotated[
        str | None, typer.Option(help="Time since the last change; default: long ago.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Share of the LP's rate that is within the SLO.")
    ] = 0.4,
    at_once: Annotated[
        int | None, typer.Option(help="Nodes that turn together; default: what loses least.")
    ] = None,
    min_turns: Annotated[int, typer.Option(help="Turns that a window's means need.")] = 100,
    parts: Annotated[
        int, typer.Option(help="The gain must show in so many parts of the window.")
    ] = 3,
    every: Annotated[str, typer.Option(help="Length of a day's windows.")] = "15min",
    copies: Annotated[
        float | None, typer.Option(help="Populations of a day's trace at once; default: 1.")
    ] = None,
    load: Annotated[float, typer.Option(help="Times the sessions of the day.")] = 1.0,
    search: Annotated[
        bool, typer.Option("--search", help="Also find the highest load that each sustains.")
    ] = False,
    least: Annotated[
        float, typer.Option(help="Share of turns within the SLO that counts as sustained.")
    ] = 0.9,
    constants: ConstantsOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    json: JsonOption = None,
) -> None:
    """Say whether to change the P/D ratio, or drive a day with and without changing it."""
    from app.examples import find_scenario
    from app.files import check_targets
    from app.simulate import read_constants
    from dualpath_model.scenario import load_scenario
    from solvers.replan_answer import Rule

    if (window is None) == (day is None):
        raise InputError("give either --window TRACE or --day TRACE, one of the two")
    _check_use(context, of_day=day is not None)
    check_targets(json, html, None, reads=window or day)
    rule = Rule(
        horizon_s=seconds("--horizon", horizon),
        min_gain=min_gain,
        dwell_s=seconds("--dwell", dwell),
        margin=margin,
        growth=growth,
        restart_s=None if switch_time is None else seconds("--switch-time", switch_time),
        start_s=seconds("--start-time", start_time),
        at_once=at_once,
        min_turns=min_turns,
        parts=parts,
    )
    asked = load_scenario(find_scenario(scenario))
    # None: by the profiles of the nodes, in whatever roles they are
    chosen = None if constants is None else read_constants(constants, asked).constants
    if window is not None:
        from dualpath_model.traces import load_workload
        from solvers.replan import decide, sessions_rate
        from solvers.replan_answer import to_json

        seen = load_workload(window)
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError(f"--rate is {rate:g} sessions/s; it must be above 0 and finite")
        per_s = sessions_rate(seen) if rate is None else rate
        decision = decide(
            asked,
            seen,
            per_s * seen.turns / seen.session_count,
            rule,
            waiting=waiting,
            since_change_s=math.inf if since is None else seconds("--since", since),
            constants=chosen,
        )
        if html is not None:
            write_page(html, decision_page(decision))
        emit(json, lambda: _finite(to_json(decision)), lambda: show_decision(decision))
        return
    from app.progress import COMPILING, bar
    from solvers.replan_compose import read_day
    from solvers.replan_day import Lab, replan_day
    from solvers.replan_day import to_json as day_to_json

    assert day is not None
    lived = read_day(day, rate_aps=rate, copies=copies)
    with bar("driving", COMPILING) as tell:
        found = replan_day(
            asked,
            lived,
            rule,
            every_s=seconds("--every", every),
            load=load,
            search=search,
            least_within_slo=least,
            lab=Lab(constants=chosen),
            progress=tell,
        )
    if html is not None:
        write_page(html, day_page(found))
    emit(json, lambda: _finite(day_to_json(found)), lambda: show_day(found))
    if found.interrupted:
        raise typer.Exit(130)


def _check_use(context: typer.Context, *, of_day: bool) -> None:
    """Raise InputError for an option that was given and has no meaning for a window, or for a day."""
    here, there = ("--day", "--window") if of_day else ("--window", "--day")
    for name in _OF_A_WINDOW if of_day else _OF_A_DAY:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise InputError(
                f"--{name} is an option of {there} and would do nothing with {here}; leave it out, or "
                f"give {there}"
            )


def seconds(name: str, text: str) -> float:
    """Read a duration such as "15min"; "0" is no time. Raises InputError naming the option."""
    from dualpath_model.quantities import parse_duration

    try:
        return parse_duration(text)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _finite(data: Any) -> Any:
    """Return JSON-ready data with null for what is no number: without limit, or of no turn."""
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


# ---- a decision ----------------------------------------------------------------------------------


def headline(decision: Decision) -> str:
    """Say what to do, in one line."""
    was = f"{decision.prefill_nodes_before}P{decision.decode_nodes_before}D"
    now = f"{decision.prefill_nodes_after}P{decision.decode_nodes_after}D"
    return {
        "keep": f"keep {was}",
        "retune": f"keep {was} and set the scheduler's parameters anew",
        "change": f"change {was} to {now}",
    }[decision.action]


def decision_facts(decision: Decision) -> list[tuple[str, str]]:
    """Return the headline figures, name and value."""
    window, capacity = decision.window, decision.capacity_requests_per_s
    load = f"{window.offered_requests_per_s:,.2f} requests/s offered"
    if window.behind:
        load += f", {window.waiting_requests:,.0f} waiting: the cluster is behind"
    rows = [
        (
            "window",
            f"{window.sessions:,} sessions, {window.turns:,} turns of {window.mean_hit_tokens:,.0f} "
            f"hit, {window.mean_miss_tokens:,.0f} miss, {window.mean_output_tokens:,.0f} output tokens",
        ),
        ("load", load),
        (
            "capacity (LP)",
            f"{capacity.before:,.2f} now, {capacity.during:,.2f} during the switch, "
            f"{capacity.after:,.2f} requests/s after",
        ),
    ]
    if decision.headroom_before is not None and decision.headroom_after is not None:
        rows.append(
            (
                "headroom",
                f"{decision.headroom_before:.2f} of the load now, {decision.headroom_after:.2f} after",
            )
        )
    gain, latency = decision.gain, decision.latency
    if decision.action == "change":
        rows += [
            ("turn", ", ".join(f"{t.name} ({t.node}) to {t.after}" for t in decision.turned)),
            (
                "gain",
                f"{gain.requests_per_s:,.2f} requests/s within the SLO, {gain.net_requests:,.0f} "
                f"requests net over the horizon, worth {gain.node_hours:,.2f} node-hours",
            ),
            ("switch", f"{decision.switch_s:,.0f} s, {decision.nodes_at_once} at a time"),
            ("moving a node's requests instead of draining", _moves(decision)),
        ]
    rows.append(
        (
            "TTFT without queues",
            f"{latency.ttft_floor_mean_s:.2f} s mean, {latency.ttft_floor_p90_s:.2f} s p90 "
            f"(SLO {latency.slo_ttft_s:g} s)",
        )
    )
    for label, parameters in (
        ("scheduler now", decision.parameters_before),
        ("scheduler then", decision.parameters_after),
    ):
        if parameters is not None:
            rows.append(
                (
                    label,
                    f"alpha {parameters.alpha_tokens:,.0f}, beta {parameters.beta_tokens:,.0f} tokens, "
                    f"split {parameters.split:.1%}",
                )
            )
    return rows


def _moves(decision: Decision) -> str:
    """Say how long the KV-cache of what a node of each kind runs takes over its compute NICs."""
    return ", ".join(f"{cost.node} {cost.move_s:,.2f} s" for cost in decision.node_costs)


def option_rows(decision: Decision) -> list[tuple[str, ...]]:
    """Return a row for each ratio looked at."""
    return [
        (
            one.name,
            f"{one.turned}",
            f"{one.capacity_requests_per_s:,.2f}",
            f"{one.during_requests_per_s:,.2f}",
            f"{one.switch_s:,.0f}",
            f"{one.gain_requests:,.0f}",
            f"{one.cost_requests:,.0f}",
            f"{one.net_requests:,.0f}",
        )
        for one in decision.options
    ]


def best_of_ratios(decision: Decision) -> dict[str, float]:
    """Return the most LP requests/s of each ratio, fewest prefill nodes first.

    Nodes of several kinds have several choices for one ratio.
    """
    most: dict[tuple[int, int], float] = {}
    for one in decision.options:
        ratio = one.prefill_nodes, one.decode_nodes
        most[ratio] = max(most.get(ratio, 0.0), one.capacity_requests_per_s)
    return {f"{p}P{d}D": most[p, d] for p, d in sorted(most)}


def show_decision(decision: Decision) -> None:
    """Print what to do, why, and what every ratio would be worth."""
    from rich.markup import escape

    from app.show import terminal

    console = terminal()
    console.print(f"[bold]{escape(decision.scenario)}[/bold]")
    console.print(escape(headline(decision)))
    for reason in decision.reasons:
        console.print(f"- {escape(reason)}")
    console.print()
    _print_facts(console, decision_facts(decision))
    console.print()
    _print_table(console, _OPTION_HEADS, option_rows(decision), 1)


def decision_page(decision: Decision) -> str:
    """Return the decision as an HTML page; everything from outside is escaped."""
    from plotly import graph_objects

    from app.page import layout, page, pictures, table

    figure = graph_objects.Figure()
    best = best_of_ratios(decision)
    several = len(decision.kinds) > 1
    of_each = "each ratio's best choice of kinds" if several else "each ratio"
    figure.add_scatter(
        x=list(best),
        y=list(best.values()),
        mode="lines+markers",
        name="LP capacity",
    )
    if decision.window.offered_requests_per_s:
        figure.add_hline(y=decision.window.offered_requests_per_s, line_dash="dot")
    layout(
        figure,
        f"Capacity of {of_each} for the window's mix; dotted: the load offered",
        380,
        yaxis={"title": {"text": "requests/s"}, "rangemode": "tozero"},
    )
    reasons = "".join(f"<li>{markup.escape(one)}</li>" for one in decision.reasons)
    return page(
        f"{decision.scenario}: re-planning",
        headline(decision),
        decision.scenario,
        [
            _tiles(decision_facts(decision)),
            f"<h2>Why</h2><ul>{reasons}</ul>",
            pictures([figure]),
            f"<h2>{'Ratios, a row for each choice of kinds' if several else 'Every ratio'}</h2>",
            table(_OPTION_HEADS, option_rows(decision), text=1),
        ],
    )


# ---- a day ---------------------------------------------------------------------------------------


def day_words(result: DayResult) -> list[str]:
    """Say how re-planning compares with the best fixed ratio, in sentences."""
    adaptive = result.adaptive
    best = next(one for one in result.fixed if one.name == result.best_fixed)
    better = "beats" if result.gain_within_slo > 0 else "does not beat"
    if abs(result.gain_within_slo) < _AS_GOOD:
        better = "does as well as"
    found = [
        f"re-planning {better} the best fixed ratio {best.name}: {adaptive.within_slo:.2%} of "
        f"{adaptive.turns:,} turns within the SLO against {best.within_slo:.2%}",
        f"changes of the ratio: {adaptive.changes}; nodes that turned were away for "
        f"{adaptive.closed_node_hours:,.2f} of {adaptive.node_hours:,.0f} node-hours",
    ]
    unserved = [
        one for one in adaptive.steps if one.action and math.isnan(one.capacity_requests_per_s)
    ]
    if unserved:
        found.append(
            f"windows whose mix no ratio serves, where all roles stayed: {len(unserved):,}; the first: "
            f"{unserved[0].reason}"
        )
    if result.gain_sustained is not None:
        found.append(
            f"with {result.least_within_slo:.0%} of the turns within the SLO it sustains "
            f"{abs(result.gain_sustained):.1%} {'less' if result.gain_sustained < 0 else 'more'} load "
            f"than the best fixed ratio"
        )
    if result.interrupted:
        found.append("interrupted: this is what was finished")
    return found


def day_rows(result: DayResult) -> list[tuple[str, ...]]:
    """Return a row for re-planning and for every fixed ratio."""
    loads = {one.name: f"{one.load:.2f}" for one in result.sustained}
    return [
        (
            one.name,
            f"{one.within_slo:.2%}",
            f"{one.ttft_s['mean']:,.2f} s",
            f"{one.ttft_s['p90']:,.2f} s",
            f"{one.tpot_s['mean'] * 1e3:,.1f} ms" if one.tpot_s else "",
            f"{one.changes}",
            f"{one.closed_node_hours:,.2f} h",
            loads.get(one.name, ""),
        )
        for one in (result.adaptive, *result.fixed)
    ]


def change_rows(driven: Driven) -> list[tuple[str, ...]]:
    """Return a row for each window in which something was changed."""
    return [
        (
            f"{step.begin_s / 3600:.2f} h",
            f"{step.turns:,}",
            "" if math.isnan(step.within_slo) else f"{step.within_slo:.1%}",
            f"{step.prefill_nodes}P{step.decode_nodes}D",
            step.action,
            step.reason,
        )
        for step in driven.steps
        if step.action == "change"
    ]


def show_day(result: DayResult) -> None:
    """Print the comparison and the changes."""
    from rich.markup import escape

    from app.show import terminal

    console = terminal()
    console.print(f"[bold]{escape(result.day)}[/bold] on {escape(result.scenario)}")
    for sentence in day_words(result):
        console.print(escape(sentence))
    console.print()
    _print_table(console, _DAY_HEADS, day_rows(result), 1)
    rows = change_rows(result.adaptive)
    if rows:
        console.print()
        _print_table(console, _STEP_HEADS, rows, 6)


def day_page(result: DayResult) -> str:
    """Return the day as an HTML page; everything from outside is escaped."""
    from plotly import graph_objects

    from app.page import layout, page, pictures, table

    best = next(one for one in result.fixed if one.name == result.best_fixed)
    figure = graph_objects.Figure()
    for one in (result.adaptive, best):
        figure.add_scatter(
            x=[step.begin_s / 3600 for step in one.steps],
            y=[None if math.isnan(step.within_slo) else step.within_slo for step in one.steps],
            name=f"{one.name}: within the SLO",
        )
    nodes = graph_objects.Figure()
    for label, counts in (
        ("prefill nodes", [step.prefill_nodes for step in result.adaptive.steps]),
        ("decode nodes", [step.decode_nodes for step in result.adaptive.steps]),
    ):
        nodes.add_scatter(
            x=[step.begin_s / 3600 for step in result.adaptive.steps],
            y=counts,
            name=label,
            line={"shape": "hv"},
        )
    hours = {"title": {"text": "h"}}
    layout(figure, "Turns within the SLO, by window", 380, xaxis=hours)
    layout(nodes, "Roles under re-planning", 320, xaxis=hours)
    words = "".join(f"<li>{markup.escape(one)}</li>" for one in day_words(result))
    parts = [
        f"<ul>{words}</ul>",
        pictures([figure, nodes]),
        "<h2>Re-planning and every fixed ratio</h2>",
        table(_DAY_HEADS, day_rows(result), text=1),
    ]
    changes = change_rows(result.adaptive)
    if changes:
        parts += ["<h2>Changes</h2>", table(_STEP_HEADS, changes, text=6)]
    return page(f"{result.day}: re-planning", result.day, result.scenario, parts)


# ---- both ----------------------------------------------------------------------------------------


def write_page(path: Path, text: str) -> None:
    """Write a page. Raises InputError, one sentence, if ``path`` cannot be written to."""
    from app.files import write_atomically

    write_atomically(path, text)
    say(f"wrote {path}")


def _tiles(facts: list[tuple[str, str]]) -> str:
    cells = (
        f'<div class="tile"><span>{markup.escape(label)}</span><b>{markup.escape(value)}</b></div>'
        for label, value in facts
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _print_facts(console: Any, facts: list[tuple[str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for row in facts:
        table.add_row(*map(escape, row))
    console.print(table)


def _print_table(
    console: Any, heads: tuple[str, ...], rows: list[tuple[str, ...]], words: int
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < words else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
