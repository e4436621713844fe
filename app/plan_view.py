"""What every picture of a plan shows, as plain numbers: computed once for plotly and matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dualpath_model.paths import DE_DRAM, STORAGE, Payload, Phase, Place, Pool, Step
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from solvers.alternatives import ResourceName
from solvers.planner import Plan, Utilisation

# Okabe and Ito's palette: told apart with any colour vision.
BASIC = "#999999"
DUAL_PATH = "#0072B2"
SATURATED = "#D55E00"
FREE = "#009E73"
DECODE_SIDE = "#CC79A7"
COMPUTE = "#E69F00"

FULL = 1 - 1e-6
"""Utilisation from which a capacity is marked as saturated."""

POOLS = {"prefill": "prefill", "decode": "decode", "cluster": "cluster"}
RESOURCES = {
    "snic": "storage NICs",
    "cnic": "compute NICs",
    "dram": "DRAM",
    "host_link": "host link",
    "hbm": "HBM bandwidth",
    "hbm_space": "HBM space",
    "gpu": "GPU compute",
    "fabric": "fabric",
    "storage": "storage service",
}
_PLAIN = {"compute", "occupied", "read+write"}


def words(name: ResourceName | Utilisation) -> str:
    """Return a capacity's name for people: "prefill storage NICs, in"."""
    pool = "" if name.pool == "cluster" else f"{name.pool} "
    direction = "" if name.direction in _PLAIN else f", {name.direction}"
    return f"{pool}{RESOURCES[name.resource]}{direction}"


def subject(name: ResourceName) -> str:
    """Return a capacity as the subject of a sentence: "Prefill storage NICs"."""
    pool = "" if name.pool == "cluster" else f"{name.pool} "
    text = f"{pool}{RESOURCES[name.resource]}"
    return text[:1].upper() + text[1:]


def rate(value: float) -> str:
    """Print bytes/s for people."""
    return show(value, Dimension.BYTES_PER_S)


@dataclass(frozen=True, slots=True)
class Bar:
    """One capacity of a pool: its fullest node under Basic and under the plan (fractions)."""

    label: str
    basic: float
    dual_path: float
    nodes: int
    fullest: str

    @property
    def saturated(self) -> bool:
        """Whether some node of the pool is full under the plan."""
        return self.dual_path >= FULL


def bars(plan: Plan) -> list[Bar]:
    """Return one bar a capacity and pool, in the plan's order."""
    grouped: dict[tuple[str, str, str], list[Utilisation]] = {}
    for row in plan.utilisation:
        grouped.setdefault((row.pool, row.resource, row.direction), []).append(row)
    found = []
    for rows in grouped.values():
        top = max(rows, key=lambda row: row.dual_path)
        where = "the cluster" if top.node is None else f"{top.pool} node {top.node}"
        basic = max(row.basic for row in rows)
        found.append(Bar(words(top), basic, top.dual_path, len(rows), where))
    return found


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes/s that a step moves under the plan, and would under Basic at Basic's throughput."""

    source: str
    target: str
    carries: str
    path: str
    dual_path: float
    basic: float


def step_flows(plan: Plan, scenario: Scenario) -> list[Flow]:
    """Return the flow of every step of the scenario's table, places named so that none is a cycle."""
    found = []
    for path, step, rates in _rated_steps(plan, scenario):
        for payload in step.carries:
            size = plan.payload_bytes[payload.value]
            source, target = _end(step, step.source, payload), _end(step, step.destination, payload)
            found.append(
                Flow(source, target, payload.value, path, rates[0] * size, rates[1] * size)
            )
    return found


def _rated_steps(plan: Plan, scenario: Scenario) -> Iterator[tuple[str, Step, tuple[float, float]]]:
    """Yield each step with its requests/s under the plan and under Basic."""
    table, cached = scenario.serving.table, scenario.serving.dram_cache_hit_share
    total, basic = plan.throughput_requests_per_s, plan.throughput_basic_requests_per_s
    stored = 1.0 - cached
    shares = {
        table.prefill_read: (total * stored * (1 - plan.split), basic * stored),
        table.decode_read: (total * stored * plan.split, 0.0),
        table.cache_read: (total * cached, basic * cached),
        **dict.fromkeys(table.always, (total, basic)),
    }
    for path, rates in shares.items():
        for step in path.steps:
            yield path.name, step, rates


def _end(step: Step, place: Place, payload: Payload) -> str:
    """Name a step's end. The decode DRAM is a read buffer or a hand-off buffer, by what lies there."""
    if place == STORAGE:
        return "storage" if step.phase is Phase.READ else "write-back"
    if place == DE_DRAM:
        if step.phase in (Phase.READ, Phase.LOAD):
            return "DE DRAM (read)"
        if payload is Payload.GENERATED:
            return "DE DRAM (generated)"
        return "DE DRAM (hand-off)"
    return str(place)


@dataclass(frozen=True, slots=True)
class SideRates:
    """Storage reads of each side, bytes/s, under the plan and under Basic."""

    prefill: float
    decode: float
    basic: float
    prefill_full: bool
    decode_full: bool


def side_rates(plan: Plan) -> SideRates:
    """Return how much each side reads from storage."""
    read = dict.fromkeys((Pool.PREFILL.value, Pool.DECODE.value), 0.0)
    for flow in plan.flows:
        read[flow.pool] += flow.storage_read_bytes_per_s
    full = {
        row.pool
        for row in plan.utilisation
        if row.resource in ("snic", "cnic", "host_link") and row.dual_path >= FULL
    }
    per_request = plan.workload.read_bytes_per_request
    return SideRates(
        read["prefill"],
        read["decode"],
        plan.throughput_basic_requests_per_s * per_request,
        "prefill" in full,
        "decode" in full,
    )


def headline(plan: Plan) -> str:
    """Return the finding in one sentence."""
    gain = plan.speedup_over_basic
    today = subject(plan.bottleneck_basic)
    verb = "limit" if today.endswith("NICs") else "limits"
    if gain < 1.005:
        return (
            f"{today} {verb} this cluster at "
            f"{plan.throughput_basic_requests_per_s:,.1f} requests/s; a second read path gains nothing"
        )
    return (
        f"{today} {verb} Basic at "
        f"{plan.throughput_basic_requests_per_s:,.1f} requests/s; reading {plan.split:.0%} through the "
        f"decode nodes gives {plan.throughput_requests_per_s:,.1f}, {gain:.2f}x"
    )


def saturation_sentence(plan: Plan) -> str:
    """Return which capacities the plan uses up."""
    full = [bar.label for bar in bars(plan) if bar.saturated]
    return f"With both paths, saturated: {'; '.join(full) or 'nothing'}"


def oracle_sentence(plan: Plan) -> str:
    """Return how far the plan is from the compute limit."""
    if plan.throughput_oracle_requests_per_s is None or plan.fraction_of_oracle is None:
        return "compute does not limit in this scenario"
    return (
        f"{plan.fraction_of_oracle:.0%} of the compute limit "
        f"({plan.throughput_oracle_requests_per_s:,.1f} requests/s)"
    )


def range_sentence(plan: Plan) -> str:
    """Return where the cluster stands on the P/D axis."""
    found = plan.bottleneck_free
    if found.low is None:
        return f"bottleneck-free range not defined: {found.reason}"
    high = "∞" if found.high is None else f"{found.high:.3g}"
    inside = "inside" if found.holds else "outside"
    text = f"P/D = {found.ratio:.3g}, {inside} the bottleneck-free range {found.low:.3g} to {high}"
    if found.low_all_traffic is None or found.high_all_traffic is None:
        return text
    return (
        f"{text} (hits alone; {found.low_all_traffic:.3g} to {found.high_all_traffic:.3g} with all "
        f"traffic)"
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of the P/D axis set by a capacity; ``upper`` says which end."""

    label: str
    at: float
    upper: bool


def ratio_bounds(plan: Plan) -> list[Bound]:
    """Return the conditions on P/D that bound something, tightest first."""
    found = []
    for condition in plan.bottleneck_free.conditions:
        name = words(ResourceName(condition.pool, condition.resource, condition.direction))
        if condition.low is not None:
            found.append(Bound(name, condition.low, upper=False))
        if condition.high is not None:
            found.append(Bound(name, condition.high, upper=True))
    return sorted(found, key=lambda bound: (bound.upper, bound.at if bound.upper else -bound.at))
