"""A fleet in words and rows, for the terminal and the report alike."""

from __future__ import annotations

import math

from app.plan_view import words
from solvers.fleet import Fleet

NODE_HEADS = ("node", "prefill", "decode", "owned", "bought", "USD/h each", "USD/h")
PROMISE_HEADS = (
    "case",
    "limited by",
    "worst loss",
    "asked",
    "LP promises",
    "of it needed",
    "after the loss",
)
TRIED_HEADS = ("case", "nodes lost", "within the SLO", "mean TTFT", "mean TPOT")
WORTH_HEADS = ("change", "decides", "worth")
POINT_HEADS = ("fleet (prefill + decode)", "USD/h", "requests/s", "USD per million requests")


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
        ("a year", f"{fleet.cost_usd_per_hour * 8760 / 1e6:,.2f} million USD"),
        ("nodes", f"{fleet.prefill_nodes} prefill, {fleet.decode_nodes} decode"),
    ]
    if fleet.requests_per_s:
        served = f"{fleet.requests_per_s:,.1f} requests/s"
        if math.isfinite(fleet.sessions_per_s):
            served += f", {fleet.sessions_per_s:,.3g} sessions/s"
        rows.append(("serves today's", served))
    rows.append(("margin", f"{fleet.margin:.1%} of the LP's rate counts as within the SLO"))
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
            words(one.bottleneck),
            one.worst_loss,
            f"{one.asked:,.1f}",
            f"{one.promised:,.1f}",
            f"{one.asked / one.promised:.1%}",
            "" if math.isnan(one.after_loss) else f"{one.after_loss:,.1f}",
        )
        for one in fleet.promises
    ]


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
        steps = ", ".join(f"{margin:.1%}" for margin in found.margins)
        said.append(f"margin measured, fleet after fleet: {steps}")
    said += [
        f"{one.case}: within the SLO up to {one.simulated:,.1f} requests/s by simulation, "
        f"{one.share:.1%} of the {one.promised:,.1f} that the LP promises"
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
    return said


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
            ", ".join(f"{kind} {p} + {d}" for kind, (p, d) in point.counts.items()),
            money(point.cost_usd_per_hour),
            f"{point.requests_per_s:,.1f}",
            money(per_million(point.cost_usd_per_hour, point.requests_per_s)),
        )
        for point in fleet.front
    ]


def per_million(cost: float, rate: float) -> float:
    """Return USD for a million requests."""
    return cost / rate / 3600.0 * 1e6 if rate else 0.0
