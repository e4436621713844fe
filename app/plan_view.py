"""What every picture of a plan shows, as plain numbers: computed once for plotly and matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dualpath_model.frameworks import FRAMEWORKS, table_named
from dualpath_model.paths import (
    DE_DRAM,
    DE_HBM,
    STORAGE,
    Direction,
    Key,
    Mover,
    Payload,
    Phase,
    Place,
    Pool,
    Resource,
    Step,
    StepTable,
    passages,
    uses,
)
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from solvers.alternatives import ResourceName
from solvers.planner import Plan, Utilisation
from solvers.uncertainty import Uncertainty

# Okabe and Ito's palette: told apart with any colour vision.
BASIC = "#999999"
DUAL_PATH = "#0072B2"
SATURATED = "#D55E00"
FREE = "#009E73"
DECODE_SIDE = "#CC79A7"
COMPUTE = "#E69F00"

FULL = 1 - 1e-6
NO_GAIN = 5e-4
"""Relative change of throughput up to which an upgrade is said to have no effect."""
_GAINS = 1.005
"""Speed-up from which a second read path is said to gain something."""
"""Utilisation from which a capacity is marked as saturated."""

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
    nodes: str
    """Which nodes are how full under the plan: "nodes 0-2: 87.1 %; node 3: 25.7 %"."""
    saturated: bool
    """Whether it limits the plan (:func:`limiting`)."""


_Name = tuple[str, str, str]
"""Pool, resource and direction of a capacity."""


def limiting(plan: Plan) -> set[_Name]:
    """Return the capacities that are used up: on every node of the pool, or more of it would help.

    Of uneven nodes the LP may fill one and leave its likes empty; that limits nothing.
    """
    return {
        name
        for name, rows in _grouped(plan).items()
        if any(row.dual_path >= FULL and row.elasticity > _PRICED for row in rows)
        or all(row.dual_path >= FULL for row in rows)
    }


_PRICED = 1e-6
"""Elasticity from which a capacity has a price."""


def _grouped(plan: Plan) -> dict[_Name, list[Utilisation]]:
    grouped: dict[_Name, list[Utilisation]] = {}
    for row in plan.utilisation:
        grouped.setdefault((row.pool, row.resource, row.direction), []).append(row)
    return grouped


def bars(plan: Plan) -> list[Bar]:
    """Return one bar a capacity and pool, in the plan's order."""
    found, used_up = [], limiting(plan)
    for name, rows in _grouped(plan).items():
        top = max(rows, key=lambda row: row.dual_path)
        basic = max(row.basic for row in rows)
        found.append(Bar(words(top), basic, top.dual_path, _by_node(rows), name in used_up))
    return found


def percent(share: float) -> str:
    """Return a utilisation in whole percent; 100 % is written only of what is used up."""
    return ">99%" if 0.995 <= share < FULL else f"{share:.0%}"


def no_effect(plan: Plan) -> list[str]:
    """Return the upgrades that change nothing."""
    return [row.change for row in plan.upgrades if abs(row.gain) <= NO_GAIN]


def split_text(plan: Plan) -> str:
    """Return the split, or that it does not matter: then any is as good as reading as today."""
    return "any, no gain" if plan.speedup_over_basic < _GAINS else f"{plan.split:.1%}"


def _by_node(rows: list[Utilisation], most: int = 8) -> str:
    """Say which nodes are how full, alike ones together, the fullest first."""
    alike: dict[str, list[int | None]] = {}
    for row in sorted(rows, key=lambda row: -row.dual_path):
        alike.setdefault(f"{100 * row.dual_path:.1f} %", []).append(row.node)
    parts = []
    for value, nodes in alike.items():
        noun = "" if nodes == [None] else "nodes " if len(nodes) > 1 else "node "
        parts.append(f"{noun}{node_runs(nodes)}: {value}")
    return "; ".join(parts[:most] + ["..."] * (len(parts) > most))


def node_runs(nodes: list[int | None]) -> str:
    """Return node numbers as runs, "0-3, 7"; "cluster" for what belongs to no node."""
    numbers = sorted(node for node in nodes if node is not None)
    if not numbers:
        return "cluster"
    runs = [[numbers[0], numbers[0]]]
    for number in numbers[1:]:
        if number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes/s of one payload that a step moves under the plan.

    ``pools``: where it starts and ends (:class:`Pool` values); ``full``: whether it passes a capacity
    that is used up, a compute NIC that stands in for a storage NIC included.
    """

    source: str
    target: str
    carries: str
    path: str
    pools: tuple[str, str]
    bytes_per_s: float
    full: bool


def step_flows(plan: Plan, scenario: Scenario) -> list[Flow]:
    """Return the flow of every step of the scenario's table, places named so that none is a cycle.

    Copies for tensor-parallel ranks count, as in :func:`dualpath_model.loads.movement`.
    """
    serving, full = scenario.serving, _full_keys(plan, scenario)
    copies = {
        Pool.PREFILL: scenario.llm.replication(serving.prefill.tensor),
        Pool.DECODE: scenario.llm.replication(serving.decode.tensor),
    }
    from_decode = plan.split * (1.0 - serving.dram_cache_hit_share)
    written = _written(serving.table)
    found = []
    for path, step, rate_of_path in _rated_steps(plan, scenario):
        keys, counted = uses(step), passages((step,), copies)
        for payload in step.carries:
            moved = rate_of_path * plan.payload_bytes[payload.value] * counted[keys[0]][payload]
            for source, share in _origins(step, payload, from_decode, written):
                found.append(
                    Flow(
                        source=source,
                        target=_end(step, step.destination, payload, written),
                        carries=payload.value,
                        path=path,
                        pools=(step.source.pool.value, step.destination.pool.value),
                        bytes_per_s=moved * share,
                        full=not full.isdisjoint(keys),
                    )
                )
    return found


def _full_keys(plan: Plan, scenario: Scenario) -> set[Key]:
    """Return the capacities that are used up, also under the name that steps give them."""
    full = {
        Key(Pool(pool), Resource(resource), Direction(direction))
        for pool, resource, direction in limiting(plan)
    }
    for pool in (Pool.PREFILL, Pool.DECODE):
        if any(node.shares_nic for node in scenario.cluster.nodes(pool)):
            for nic, storage in ((Direction.WRITE, Direction.IN), (Direction.READ, Direction.OUT)):
                if Key(pool, Resource.CNIC, nic) in full:
                    full.add(Key(pool, Resource.SNIC, storage))
    return full


def _rated_steps(plan: Plan, scenario: Scenario) -> Iterator[tuple[str, Step, float]]:
    """Yield each step with its path's requests/s under the plan."""
    table, cached = scenario.serving.table, scenario.serving.dram_cache_hit_share
    total = plan.throughput_requests_per_s
    stored = 1.0 - cached
    shares = [
        (table.prefill_read, total * stored * (1 - plan.split)),
        (table.decode_read, total * stored * plan.split),
        (table.cache_read, total * cached),
        *((path, total) for path in table.always),
    ]
    for path, rate_of_path in shares:
        for step in path.steps:
            yield path.name, step, rate_of_path


_Written = frozenset[tuple[Place, Payload]]
"""What the table writes back by way of a host memory: there it does not lie with what is read."""


def _written(table: StepTable) -> _Written:
    return frozenset(
        (step.destination, payload)
        for path in table.paths
        for step in path.steps
        for payload in step.carries
        if step.phase is Phase.WRITE_BACK
    )


def _origins(
    step: Step, payload: Payload, from_decode: float, written: _Written
) -> list[tuple[str, float]]:
    """Return where a step's bytes lie, with their shares.

    Hits start decode from the buffer where their path has left them: of the paper's paths one hands them
    off into host memory, the other has read them there.
    """
    if step.phase is Phase.DECODE_START and payload is Payload.HIT:
        if step.mover is Mover.COPY:  # the decode node has read them itself
            return [("decode DRAM (read)", 1.0)]
        return [("decode DRAM (read)", from_decode), ("decode DRAM (hand-off)", 1.0 - from_decode)]
    return [(_end(step, step.source, payload, written), 1.0)]


def _end(step: Step, place: Place, payload: Payload, written: _Written) -> str:
    """Name a step's end. A host memory is a buffer for reads, hand-off or write-back, by what lies
    there; what a decode GPU has kept of the turn before lies apart from what it decodes now.
    """
    if place == STORAGE:
        return "storage" if step.phase is Phase.READ else "write-back"
    if place.memory == "dram" and step.phase is Phase.WRITE_BACK and (place, payload) in written:
        kind = "generated" if payload is Payload.GENERATED else "write-back"
        return f"{place.pool} DRAM ({kind})"
    if place == DE_HBM and place == step.source and step.phase is Phase.LOAD:
        return "decode HBM (last turn)"
    if place == DE_DRAM:
        if step.phase in (Phase.READ, Phase.LOAD):
            return "decode DRAM (read)"
        return "decode DRAM (hand-off)"
    return f"{place.pool} {place.memory.upper()}"


def path_colours() -> dict[str, str]:
    """Return the colour of each read path by its name, of all frameworks."""
    second = {table.decode_read.name: DECODE_SIDE for table in FRAMEWORKS.values()}
    return second | {table.prefill_read.name: DUAL_PATH for table in FRAMEWORKS.values()}


@dataclass(frozen=True, slots=True)
class SideRates:
    """Storage reads of each side under the plan, and of the prefill side under Basic; bytes/s."""

    prefill: float
    decode: float
    basic: float


def full_pools(plan: Plan) -> set[str]:
    """Return the pools of which some capacity is used up."""
    return {pool for pool, _, _ in limiting(plan)}


def side_rates(plan: Plan) -> SideRates:
    """Return how much each side reads from storage."""
    read = dict.fromkeys((Pool.PREFILL.value, Pool.DECODE.value), 0.0)
    for flow in plan.flows:
        read[flow.pool] += flow.storage_read_bytes_per_s
    # Classes read differently much, and Basic serves another mix of them; in every framework its prefill
    # nodes read all hits that no cache has.
    basic = sum(c.requests_per_s_basic * c.read_bytes_per_request for c in plan.classes)
    hits, stored = plan.payload_bytes[Payload.HIT.value], plan.workload.read_bytes_per_request
    return SideRates(read["prefill"], read["decode"], basic * stored / hits if hits else 0.0)


@dataclass(frozen=True, slots=True)
class Stream:
    """All bytes/s between two places of a schematic; ``full``: a capacity on the way is used up."""

    bytes_per_s: float
    full: bool


def streams(plan: Plan, scenario: Scenario) -> dict[tuple[str, str], Stream]:
    """Return what passes between storage ("cluster") and the pools, and between the pools."""
    found: dict[tuple[str, str], Stream] = {}
    for flow in step_flows(plan, scenario):
        if flow.pools[0] != flow.pools[1] and flow.bytes_per_s > 0:
            before = found.get(flow.pools, Stream(0.0, False))
            rate_so_far = before.bytes_per_s + flow.bytes_per_s
            found[flow.pools] = Stream(rate_so_far, before.full or flow.full)
    return found


def headline(plan: Plan) -> str:
    """Return the finding in one sentence."""
    gain = plan.speedup_over_basic
    today = subject(plan.bottleneck_basic)
    verb = "limit" if today.endswith("NICs") else "limits"
    if gain < _GAINS:
        return (
            f"{today} {verb} this cluster at "
            f"{plan.throughput_basic_requests_per_s:,.1f} requests/s; a second read path gains nothing"
        )
    return (
        f"{today} {verb} Basic at "
        f"{plan.throughput_basic_requests_per_s:,.1f} requests/s; {_second_path(plan)} "
        f"gives {plan.throughput_requests_per_s:,.1f}, {gain:.2f}x"
    )


def _second_path(plan: Plan) -> str:
    """Say what the split is a share of."""
    path = table_named(plan.framework).decode_read
    if path.hit_reads(Pool.DECODE) and path.prefill_on is Pool.PREFILL:
        return f"reading {plan.split:.0%} through the decode nodes"
    return f"serving {plan.split:.0%} of the hits by '{path.name}'"


def about(plan: Plan) -> str:
    """Return what was planned, in one line."""
    work = plan.workload
    return (
        f"{plan.llm} ({plan.kv_dtype} KV-cache), {plan.prefill_nodes} prefill and {plan.decode_nodes} "
        f"decode nodes; {work.hit_rate:.1%} of {work.mean_prompt_tokens:,.0f} prompt tokens are read "
        f"back, {show(work.read_bytes_per_request, Dimension.BYTES)} a request"
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


def free_range(plan: Plan) -> tuple[float, float] | None:
    """Return the bottleneck-free range of P/D (its upper end may be inf); None where there is none."""
    found = plan.bottleneck_free
    if found.low is None or not math.isfinite(found.low):
        return None
    high = math.inf if found.high is None else found.high
    return (found.low, high) if found.low <= high and high > 0 else None


def range_sentence(plan: Plan) -> str:
    """Return where the cluster stands on the P/D axis."""
    found = plan.bottleneck_free
    if found.reason is not None:
        return f"bottleneck-free range not defined: {found.reason}"
    ends = free_range(plan)
    if ends is None:
        return f"P/D = {found.ratio:.3g}; no ratio is bottleneck-free: {_why_none(plan)}"
    inside = "inside" if found.holds else "outside"
    text = (
        f"P/D = {found.ratio:.3g}, {inside} the bottleneck-free range {ends[0]:.3g} to "
        f"{_or_infinite(ends[1])}"
    )
    low, high = found.low_all_traffic, found.high_all_traffic
    if low is None or high is None or low > high:
        return text
    return f"{text} (hits alone; {low:.3g} to {high:.3g} with all traffic)"


def _or_infinite(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def _why_none(plan: Plan) -> str:
    """Say which capacities exclude every P/D: alone, or two of them against each other."""
    alone = [
        words(ResourceName(c.pool, c.resource, c.direction))
        for c in plan.bottleneck_free.conditions
        if c.high == 0 or (c.low is not None and not math.isfinite(c.low))
    ]
    if alone:
        others = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        return f"saturated storage NICs overload {alone[0]}{others}"
    lower, upper = (
        next((bound for bound in ratio_bounds(plan) if bound.upper is end), None)
        for end in (False, True)
    )
    if lower is None or upper is None:
        return "its ends cross"
    return (
        f"{lower.label} asks for {lower.at:.3g} or more, {upper.label} for {upper.at:.3g} or less"
    )


@dataclass(frozen=True, slots=True)
class Bound:
    """One end of the P/D axis set by a capacity; ``upper`` says which end."""

    label: str
    at: float
    upper: bool


def ratio_bounds(plan: Plan) -> list[Bound]:
    """Return the conditions on P/D that bound something at a finite P/D, tightest first."""
    found = []
    for condition in plan.bottleneck_free.conditions:
        name = words(ResourceName(condition.pool, condition.resource, condition.direction))
        if condition.low is not None and math.isfinite(condition.low):
            found.append(Bound(name, condition.low, upper=False))
        if condition.high:
            found.append(Bound(name, condition.high, upper=True))
    return sorted(found, key=lambda bound: (bound.upper, bound.at if bound.upper else -bound.at))


def parameter_rows(plan: Plan, scenario: Scenario) -> list[tuple[str, str, str]]:
    """Return the scheduler's parameters: name, value, where it comes from."""
    found, rules = plan.scheduler_parameters, scenario.rules
    alpha_s, beta_s = (show(s, Dimension.SECONDS) for s in (rules.alpha_s, rules.beta_s))
    weights = sorted({(n.pool, f"{n.read_weight:.4f}") for n in found.nodes}, reverse=True)
    return [
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


def interval_rows(found: Uncertainty) -> list[tuple[str, str, str]]:
    """Return what the plan's intervals are: figure, value, 95 % interval."""
    rates, plain, share = "{:,.1f} requests/s", "{:.2f}x", "{:.1%}"
    return [
        (label, form.format(part.value), f"{form.format(part.low)} to {form.format(part.high)}")
        for label, part, form in (
            ("with both paths", found.throughput_requests_per_s, rates),
            ("Basic", found.throughput_basic_requests_per_s, rates),
            ("over Basic", found.speedup_over_basic, plain),
            ("split x", found.split, share),
        )
    ]


def narrowing_rows(found: Uncertainty) -> list[tuple[str, str, str]]:
    """Return the measurements that matter, best first: figure, its interval, what knowing it does."""
    return [
        (
            f"{row.part}: {row.figure} ({row.profile})",
            f"{row.relative_low - 1:+.1%} to {row.relative_high - 1:+.1%}",
            f"narrows the throughput's interval by {1 - row.width_left:.0%}",
        )
        for row in found.measurements
        if row.width_left < 0.995
    ]


def uncertainty_remarks(found: Uncertainty) -> list[str]:
    """Return what else to know of the intervals."""
    remarks = []
    if not narrowing_rows(found):
        remarks.append("no single measurement would narrow the throughput's interval")
    if found.infeasible:
        remarks.append(
            f"in {found.infeasible} of {found.samples} draws the scenario cannot be served at all"
        )
    return remarks
