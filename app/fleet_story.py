"""A fleet told to whoever signs the order: plain words, every figure computed from the answer."""

from __future__ import annotations

import math

from app import fleet_view as view
from solvers.fleet import Fleet

NODES = (
    "A node is one server with its GPUs. Prefill nodes read prompts and compute their new part, "
    "decode nodes write the answers; prices are an hour's, bought or rented nodes at list price."
)
BREAKS = (
    "One figure at a time is made worse until this fleet can no longer serve what is asked for "
    "in time, the others staying as foreseen. By the planning model with the fleet file's "
    "margins; the search stops at 16 times the forecast."
)
NEXT = (
    "The cheapest nodes to add to this fleet if traffic grows. Negative counts: nodes that "
    "change their role, from prefill to decode or back."
)
FRONT = (
    "Each point is a fleet that serves most for its money, under the same forecast, margins and "
    "failures: for less money none serves as much. Between the points there are others."
)
PROMISES = (
    "Requests a second. The planning model (a linear program, LP) knows rates and means, not "
    "queues, so it promises more than is served in time; 'within the SLO' is what counts here."
)
WORTH = (
    "Every requirement by itself is loosened by one step or dropped, a required rate is raised by "
    "1 %, and the fleet is found again."
)

GLOSSARY = (
    ("turn (request)", "one question to the LLM and its answer; an agent's session has many"),
    ("session", "one agent's run, from its first prompt to its last answer"),
    ("prefill, decode", "computing the prompt; writing the answer token by token"),
    ("token", "a piece of a word; LLMs read and write these"),
    (
        "context, hit rate",
        "what a prompt repeats from earlier turns; its share of the prompt. Its intermediate "
        "results (KV-cache) are read back from storage in place of being computed again",
    ),
    ("TTFT", "time to first token: how long a turn waits before its answer begins"),
    ("TPOT", "time per output token: how fast the answer is written after that"),
    ("SLO, in time", "the promise to users: mean TTFT and mean TPOT at most so long"),
    ("margin", "share of the planning model's rate that is served in time, by simulation"),
    ("forecast, case", "the traffic that is expected; a way in which it may be worse"),
)


def holds(fleet: Fleet) -> bool | None:
    """Return whether every simulation met the SLO; None: none was run."""
    return fleet.simulation.holds if fleet.simulation.tried else None


def answer(fleet: Fleet) -> list[str]:
    """Return the answer in three sentences."""
    return [_what(fleet), _whether(fleet), _how_safe(fleet)]


def _what(fleet: Fleet) -> str:
    kinds = " and ".join(
        ", ".join(
            f"{count} {one.kind}"
            for one in fleet.nodes
            for count in [one.prefill if pool == "prefill" else one.decode]
            if count
        )
        + f" for {words}"
        for pool, words in (("prefill", "prompts (prefill)"), ("decode", "answers (decode)"))
    )
    cost = (
        f"{view.money(fleet.cost_usd_per_hour)} USD an hour, {view.month_cost(fleet):,.0f} USD a "
        "month"
    )
    turns, sessions = view.per_thousand(fleet)
    each = "" if math.isnan(turns) else f" ({turns:,.2f} USD for 1,000 turns"
    if each:
        each += "" if math.isnan(sessions) else f", {sessions:,.0f} USD for 1,000 sessions"
        each += ")"
    return f"Take {kinds}: {cost}{each}."


def _whether(fleet: Fleet) -> str:
    traffic = fleet.traffic
    served = f"{traffic.requests_per_s:,.1f} turns a second"
    if traffic.session_s > 600:
        open_now = traffic.sessions_per_s * traffic.session_s
        served += f" (about {_round(open_now):,} sessions under way at any time)"
    promise = (
        f"a first token within {traffic.slo_ttft_s:g} s and {traffic.slo_tpot_s * 1e3:g} ms for "
        "each further one, on average"
    )
    others = [one.case for one in fleet.promises[1:]]
    also = f", and also if {_listed(others, 'or')} comes true" if others else ""
    lost = ""
    if fleet.survive:
        which = "the hardest of these" if others else "this"
        lost = f", {which} with any {view.nodes_words(fleet.survive)} down too"
    tried = fleet.simulation.tried
    if not tried:
        return (
            f"By the planning model it serves {served} with {promise}{also}{lost}; not simulated."
        )
    if fleet.simulation.holds:
        first = tried[0]
        if untried := view.untried_words(fleet):
            lost += f" ({untried})"
        return (
            f"In simulation it serves {served} with {promise}{also}{lost}; as foreseen it takes "
            f"{first.ttft_s:.2f} s and {first.tpot_s * 1e3:.1f} ms."
        )
    missed = [
        one.case + (f" without {one.loss}" if one.loss else "") for one in tried if not one.holds
    ]
    return (
        f"It is to serve {served} with {promise}, but in simulation it does not in {len(missed)} "
        f"of {len(tried)} runs ({_listed(missed, 'and')}): do not sign yet."
    )


def _how_safe(fleet: Fleet) -> str:
    outlook = fleet.outlook
    if outlook is None:
        return "How wrong the forecast may be was not asked."
    parts = []
    for one in outlook.breaks:
        factor = one.factor if math.isnan(one.after_loss) else one.after_loss
        if math.isnan(factor) or math.isinf(factor):
            continue
        if one.figure == "rate":
            parts.append(f"traffic {_times(factor)} what is foreseen")
        if one.figure == "context":
            parts.append(f"contexts {_times(factor)} as long")
        if one.figure == "hit_rate" and factor > 0:
            rate = fleet.traffic.hit_rate
            parts.append(
                "a hit rate (what a prompt repeats and need not be computed again) of "
                f"{factor * rate:.1%} in place of {rate:.1%}"
            )
    lost = f"With {view.nodes_words(fleet.survive)} down it" if fleet.survive else "It"
    said = f"{lost} is large enough up to {_listed(parts, 'or')}, one of these at a time"
    bought = next((one for one in outlook.purchases if one.counts), None)
    if bought is None:
        return f"{said}."
    return (
        f"{said}; for {bought.growth - 1.0:.0%} more traffic the next to buy "
        f"{'is' if sum(map(sum, bought.counts.values())) == 1 else 'are'} "
        f"{_bought_words(bought.counts)} ({view.money(bought.cost)} USD an hour more)."
    )


def _bought_words(counts: dict[str, tuple[int, int]]) -> str:
    words = []
    for kind, pair in counts.items():
        words += [
            f"{count:+d} {kind} for {role}"
            for count, role in zip(pair, ("prefill", "decode"), strict=True)
            if count
        ]
    return _listed(words, "and")


def _times(factor: float) -> str:
    return f"{factor:.2f} times" if factor < 3.0 else f"{factor:.1f} times"


def _listed(words: list[str], last: str) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def _round(number: float) -> int:
    """Round to two digits."""
    if number < 100:
        return round(number)
    return round(float(f"{number:.1e}"))


def tiles(fleet: Fleet) -> list[tuple[str, str]]:
    """Return the figures of the first page."""
    turns, sessions = view.per_thousand(fleet)
    found = [
        ("cost an hour", f"{view.money(fleet.cost_usd_per_hour)} USD"),
        (f"a month ({view.HOURS_A_MONTH:g} hours)", f"{view.month_cost(fleet):,.0f} USD"),
        ("a year", f"{fleet.cost_usd_per_hour * 8760 / 1e6:,.2f} million USD"),
    ]
    if not math.isnan(turns):
        found.append(("1,000 turns, at the forecast's rate", f"{turns:,.2f} USD"))
    if not math.isnan(sessions):
        found.append(("1,000 sessions", f"{sessions:,.0f} USD"))
    found += [
        ("nodes", f"{fleet.prefill_nodes} prefill, {fleet.decode_nodes} decode"),
        ("nodes that may fail at once", f"{fleet.survive}"),
        ("traffic foreseen", f"{fleet.traffic.requests_per_s:,.1f} turns/s"),
        ("headroom of the hardest case", f"{_headroom(fleet):.0%}"),
    ]
    if fleet.power_kw is not None:
        found.append(("power", f"{fleet.power_kw:,.1f} kW"))
    return found


def _headroom(fleet: Fleet) -> float:
    """Return by how much the rate of the hardest case could still grow, a lost node counted."""
    return min(
        (one.within if math.isnan(one.after_loss) else one.after_loss) / one.asked - 1.0
        for one in fleet.promises
        if one.asked
    )


def failure(fleet: Fleet) -> str:
    """Say what happens when nodes fail."""
    if not fleet.survive:
        return (
            "Nothing is held in reserve: with a node down, turns wait longer than promised, or "
            "are turned away. limits.survive in the fleet file asks for a reserve."
        )
    hardest = min(fleet.promises, key=lambda one: one.after_loss / one.asked if one.asked else 9e9)
    lost = [one for one in fleet.simulation.tried if one.loss]
    kept = hardest.after_loss >= hardest.asked * (1.0 - 1e-6)
    said = (
        f"Any {view.nodes_words(fleet.survive)} may be down and everything is "
        f"{'still' if kept else 'NOT'} served in time. The worst loss is {hardest.worst_loss}: in "
        f"the case '{hardest.case}' {hardest.after_loss:,.1f} turns a second are then served in "
        f"time where {hardest.asked:,.1f} are asked for."
    )
    if lost:
        slowest = max(lost, key=lambda one: one.ttft_s)
        good = sum(one.holds for one in lost)
        waits = "overloaded" if math.isinf(slowest.ttft_s) else f"a TTFT of {slowest.ttft_s:.2f} s"
        said += (
            f" {good} of {len(lost)} simulated failures kept the promise; the slowest "
            f"({slowest.loss}, '{slowest.case}') had {waits}."
        )
        if untried := view.untried_words(fleet):
            said += f" {untried.capitalize()}; the others by the planning model alone."
    return said + (
        " What is in flight on a failed node is lost and starts again; that moment is not simulated."
    )


def assumptions(fleet: Fleet) -> list[str]:
    """Say what the plan rests on."""
    traffic = fleet.traffic
    said = [
        f"Traffic: {'; '.join(traffic.sources)}: {traffic.prompt_tokens:,.0f} tokens a prompt, of "
        f"which {traffic.hit_rate:.1%} were there before, and {traffic.output_tokens:,.0f} "
        "generated.",
        f"The LLM is {traffic.llm}. Machines and list prices are the catalog's, with source and "
        "date of each (dualpath_model/catalog/nodes.yaml), or those of the fleet file. "
        "Discounts, network, storage and staff are not in them.",
        "Rates are shares of the data sheets from public measurements "
        "(dualpath_model/catalog/efficiencies.yaml): measure your own with `dualpath calibrate "
        "run`.",
        "Sessions begin at random and independently (Poisson); the SLO is held against means, so "
        "single turns wait longer.",
        "Costs for 1,000 turns and sessions are those of a fleet that runs around the clock at "
        "the forecast's rate; a fleet that idles at night costs more for each.",
    ]
    if fleet.simulation.tried:
        said.append(
            "The simulator follows every turn through storage, network and GPUs; what engines "
            "add to each step is fitted to the paper's cluster (docs/simulator.md), not measured "
            "here."
        )
    return said
