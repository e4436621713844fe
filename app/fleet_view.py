"""A fleet in words and rows, for the terminal and the report alike."""

from __future__ import annotations

import math

from app.plan_view import words
from solvers.fleet import Fleet, Promise

NODE_HEADS = ("node", "prefill", "decode", "owned", "bought", "USD/h each", "USD/h")
PROMISE_HEADS = (
    "case",
    "limited by",
    "worst loss",
    "asked",
    "LP promises",
    "prefill alone",
    "decode alone",
    "within the SLO",
    "after the loss",
)
BREAK_HEADS = ("figure of the forecast", "all nodes", "after the worst loss")
PURCHASE_HEADS = ("for", "nodes to add (prefill + decode)", "USD/h more")
WITHOUT_HEADS = ("without", "fleet (prefill + decode)", "USD/h", "dearer by")
HOURS_A_MONTH = 730.0
TRIED_HEADS = ("case", "nodes lost", "within the SLO", "mean TTFT", "mean TPOT")
WORTH_HEADS = ("change", "decides", "worth")
POINT_HEADS = (
    "fleet (prefill + decode)",
    "USD/h",
    "requests/s today",
    "USD per million of today's requests",
)


def money(amount: float) -> str:
    """Print USD/h."""
    return f"{amount:,.2f}"


def headline(fleet: Fleet) -> str:
    """Say what the fleet is, in one line."""
    counts = f"{fleet.prefill_nodes} prefill and {fleet.decode_nodes} decode nodes"
    if not fleet.requests_per_s:
        return f"{counts}, {money(fleet.cost_usd_per_hour)} USD/h, serve what is asked"
    rate = f"{fleet.requests_per_s:,.1f} requests/s"
    return f"{counts}, {money(fleet.cost_usd_per_hour)} USD/h, serve {rate}"


def facts(fleet: Fleet) -> list[tuple[str, str]]:
    """Return the headline figures, name and value."""
    rows = [
        ("asked for", fleet.goal),
        ("cost", f"{money(fleet.cost_usd_per_hour)} USD/h"),
        ("a month", f"{money(month_cost(fleet))} USD ({HOURS_A_MONTH:g} hours)"),
        ("a year", f"{fleet.cost_usd_per_hour * 8760 / 1e6:,.2f} million USD"),
        ("nodes", f"{fleet.prefill_nodes} prefill, {fleet.decode_nodes} decode"),
    ]
    if fleet.requests_per_s:
        served = f"{fleet.requests_per_s:,.1f} requests/s"
        if math.isfinite(fleet.sessions_per_s):
            served += f", {fleet.sessions_per_s:,.3g} sessions/s"
        rows.append(("serves today's", served))
    rows.append(
        ("margin", f"{margin_words(fleet.margins)} of the LP's rate counts as within the SLO")
    )
    rows.append(("scheduler's policy", fleet.policy))
    rows.append(("survives", f"the loss of any {fleet.survive}" if fleet.survive else "no loss"))
    if fleet.power_kw is not None:
        rows.append(("power", f"{fleet.power_kw:,.1f} kW"))
    if fleet.racks is not None:
        rows.append(("racks", f"{fleet.racks:,}"))
    rows.append(("to the best", f"at most {fleet.gap:.2%}" if fleet.gap > 1e-6 else "proven best"))
    return rows


def node_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a kind that is used."""
    return [
        (
            one.kind,
            f"{one.prefill}",
            f"{one.decode}",
            f"{one.owned}",
            f"{one.bought}",
            money(one.price),
            money(one.cost),
        )
        for one in fleet.nodes
    ]


def promise_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a case: what is asked and what the LP promises."""
    return [
        (
            one.case,
            limit_words(fleet, one),
            one.worst_loss,
            _rate(one.asked),
            _rate(one.promised),
            _rate(one.prefill),
            _rate(one.decode),
            _rate(one.within),
            "" if math.isnan(one.after_loss) else _rate(one.after_loss),
        )
        for one in fleet.promises
    ]


def limit_words(fleet: Fleet, one: Promise) -> str:
    """Say what limits a case, margins counted: a pool, and its resource where the LP names one of it."""
    prefill, decode = fleet.margins
    pool = "prefill" if prefill * one.prefill < decode * one.decode else "decode"
    if pool == "decode" and one.paced:
        return "decode steps at the SLO's TPOT"
    return words(one.bottleneck) if one.bottleneck.pool in (pool, "cluster") else f"{pool} nodes"


def _rate(requests_per_s: float) -> str:
    return "no limit" if math.isinf(requests_per_s) else f"{requests_per_s:,.1f}"


def tried_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a simulation at the required rate."""
    return [
        (
            one.case,
            one.loss or "none",
            "yes" if one.holds else "NO",
            _time(one.ttft_s),
            _time(one.tpot_s),
        )
        for one in fleet.simulation.tried
    ]


def _time(seconds: float) -> str:
    if math.isinf(seconds):
        return "overloaded"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def simulation_words(fleet: Fleet) -> list[str]:
    """Say what the simulator found, sentence by sentence."""
    found = fleet.simulation
    if found.skipped:
        return [f"not simulated: {found.skipped}"]
    said = []
    if len(found.margins) > 1:
        steps = "; ".join(margin_words(margins) for margins in found.margins)
        said.append(f"margin measured, fleet after fleet: {steps}")
    said += [
        f"{one.pool} nodes alone ({one.case}): within the SLO up to {one.simulated:,.1f} requests/s, "
        f"{one.share:.1%} of what the LP promises of them; above, {one.limit.upper()} is too long"
        for one in found.pools
    ]
    said += [
        f"{one.case}: within the SLO up to {one.simulated:,.1f} requests/s by simulation, "
        f"{one.share:.1%} of the {one.promised:,.1f} that the LP promises"
        + (f"; above, {one.limit.upper()} is too long" if one.limit else "")
        + (" (flattered: agents live longer than --warmup)" if one.filling else "")
        for one in found.reach
    ]
    if found.tried:
        runs = f"all {len(found.tried)} runs" if len(found.tried) > 1 else "the run"
        bad = sum(not one.holds for one in found.tried)
        said.append(
            f"at the required rate {runs} met the SLO"
            if not bad
            else f"at the required rate {bad} of {len(found.tried)} runs missed the SLO: "
            f"lower margin, or let it be measured with margin: simulated"
        )
    if untried := untried_words(fleet):
        said.append(untried)
    return said


def untried_words(fleet: Fleet) -> str:
    """Say how many of the losses were simulated; "" where all were."""
    found = fleet.simulation
    if found.losses_tried >= found.losses:
        return ""
    return (
        f"of {found.losses:,} ways to lose {nodes_words(fleet.survive)} the {found.losses_tried} that "
        f"leave least were simulated"
    )


def margin_words(margins: tuple[float, float]) -> str:
    """Say the margins of both pools, as one where they are the same."""
    prefill, decode = margins
    if prefill == decode:
        return f"{prefill:.1%}"
    return f"{prefill:.1%} (prefill) and {decode:.1%} (decode)"


def month_cost(fleet: Fleet) -> float:
    """Return USD a month of 730 hours."""
    return fleet.cost_usd_per_hour * HOURS_A_MONTH


def nodes_words(count: int) -> str:
    """Say so many nodes: "1 node", "2 nodes"."""
    return f"{count} node{'s' * (count != 1)}"


def counts_words(counts: dict[str, tuple[int, int]]) -> str:
    """Say counts by kind: "dgx-h100 2 + 3"."""
    return ", ".join(f"{kind} {p} + {d}" for kind, (p, d) in counts.items())


def figure_words(figure: str) -> str:
    """Say which figure of the forecast is meant."""
    return {
        "rate": "traffic (turns a second)",
        "context": "context read back (tokens)",
        "append": "new tokens of a prompt",
        "generate": "generated tokens",
        "hit_rate": "hit rate",
    }[figure]


def change_words(factor: float) -> str:
    """Say a factor as a change: "+35 %", "no limit"."""
    if math.isnan(factor):
        return ""
    if math.isinf(factor) or factor == 0.0:
        return "no limit found"
    return f"{factor - 1.0:+.1%}"


def break_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a figure of the forecast: by how much it may change."""
    if fleet.outlook is None:
        return []
    return [
        (figure_words(one.figure), change_words(one.factor), change_words(one.after_loss))
        for one in fleet.outlook.breaks
    ]


def purchase_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a growth: what would be added to the fleet."""
    if fleet.outlook is None:
        return []
    return [
        (
            f"{one.growth - 1.0:.0%} more traffic",
            counts_words(one.counts)
            or ("no fleet within the limits" if math.isinf(one.cost) else "nothing"),
            "" if math.isinf(one.cost) else money(one.cost),
        )
        for one in fleet.outlook.purchases
    ]


def without_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a kind that is used: the fleet without it."""
    if fleet.outlook is None:
        return []
    return [
        (
            one.kind,
            counts_words(one.counts) or "no fleet",
            "" if math.isinf(one.cost) else money(one.cost),
            ""
            if math.isinf(one.cost)
            else f"{one.cost / fleet.cost_usd_per_hour - 1.0:.1%}"
            if fleet.cost_usd_per_hour
            else "",
        )
        for one in fleet.outlook.without
    ]


def per_thousand(fleet: Fleet) -> tuple[float, float]:
    """Return USD for 1,000 turns and for 1,000 sessions, at the forecast's rate around the clock."""
    hours = [3600.0 * rate for rate in (fleet.traffic.requests_per_s, fleet.traffic.sessions_per_s)]
    found = [1e3 * fleet.cost_usd_per_hour / hour if hour else math.nan for hour in hours]
    return found[0], found[1]


def worth_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a change, what is worth most first."""
    least = fleet.goal == "least cost"
    rows: list[tuple[str, ...]] = []
    for one in sorted(fleet.worth, key=lambda one: (one.what, -abs(one.worth or 0.0))):
        if one.worth is None:
            rows.append((one.change, "", "no fleet, or no bound"))
            continue
        if least:
            text = f"{'costs' if one.worth < 0 else 'saves'} {money(abs(one.worth))} USD/h"
        else:
            text = f"{'loses' if one.worth < 0 else 'gains'} {abs(one.worth):,.2f} requests/s"
        rows.append(
            (one.change, "yes" if one.binding else "no", text if one.binding else "nothing")
        )
    return rows


def point_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Return one row a point of the front."""
    return [
        (
            counts_words(point.counts),
            money(point.cost_usd_per_hour),
            f"{point.requests_per_s:,.1f}",
            money(per_million(point.cost_usd_per_hour, point.requests_per_s)),
        )
        for point in fleet.front
    ]


def per_million(cost: float, rate: float) -> float:
    """Return USD for a million requests."""
    return cost / rate / 3600.0 * 1e6 if rate else 0.0
