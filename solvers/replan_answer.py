"""The answer of :func:`solvers.replan.decide` and the rule that it follows, as data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dualpath_model.errors import InputError
from dualpath_model.parameters import SchedulerParameters
from solvers.alternatives import ResourceName
from solvers.replan_cost import NodeCost
from solvers.replan_ratios import Turned

DECISION_VERSION = 1
Action = Literal["keep", "retune", "change"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True, slots=True)
class Rule:
    """When to change. Times in seconds.

    ``horizon_s``: how long the next load is taken to be like the window's. ``min_gain``: least
    relative gain of LP capacity. ``dwell_s``: least time between two changes. ``margin``: share of the
    LP's rate that is within the SLO. ``growth``: the next load over the window's. ``restart_s``: from a
    node's last request to its first in the new role; None: ``start_s`` and the load of the weights.
    ``at_once``: nodes that turn together; None: all, or in up to eight batches where that loses less.
    ``min_turns``: with fewer turns the window's means are not trusted. ``parts``: the gain has to show
    in each of so many parts of the window: of three, the turns 1, 4, 7, ..., then 2, 5, 8, ..., then
    3, 6, 9, ...
    """

    horizon_s: float = 3600.0
    min_gain: float = 0.1
    dwell_s: float = 1800.0
    margin: float = 0.4
    growth: float = 1.0
    restart_s: float | None = None
    start_s: float = 30.0
    at_once: int | None = None
    min_turns: int = 100
    parts: int = 3

    def __post_init__(self) -> None:
        """Refuse numbers that no rule can have."""
        for name, value, least in (
            ("horizon", self.horizon_s, 1.0),
            ("min gain", self.min_gain, 0.0),
            ("dwell", self.dwell_s, 0.0),
            ("growth", self.growth, 1e-3),
            ("switch time", 0.0 if self.restart_s is None else self.restart_s, 0.0),
            ("start time", self.start_s, 0.0),
        ):
            if not (math.isfinite(value) and value >= least):
                raise InputError(f"{name} is {value:g}; it must be a finite number from {least:g}")
        if not 0.0 < self.margin <= 1.0:
            raise InputError(f"margin is {self.margin:g}; it must be above 0 and at most 1")
        if self.at_once is not None and self.at_once < 1:
            raise InputError(f"at once is {self.at_once}; at least one node turns at a time")
        if self.min_turns < 1:
            raise InputError(f"min turns is {self.min_turns}; at least 1 is needed")
        if not 1 <= self.parts <= 100:
            raise InputError(f"parts is {self.parts}; it must be 1 to 100")


@dataclass(frozen=True, slots=True)
class Capacity:
    """The LP's requests/s before, after and in the least step of the switch."""

    before: float
    during: float
    after: float


@dataclass(frozen=True, slots=True)
class KindRoles:
    """How many nodes of a kind have each role."""

    node: str
    prefill_nodes: int
    decode_nodes: int


@dataclass(frozen=True, slots=True)
class Option:
    """One ratio: its capacity, what the switch to it takes and what it is worth, in requests.

    ``name``: "4P4D"; of several kinds "1P2D: 1 slow | 2 fast", since several options can have one ratio
    in all. ``kinds``: the same by kind.
    ``net_requests``: gain - cost over the horizon. ``nodes_at_once``: how many turn together.
    """

    name: str
    prefill_nodes: int
    decode_nodes: int
    kinds: tuple[KindRoles, ...]
    turned: int
    capacity_requests_per_s: float
    during_requests_per_s: float
    served_requests_per_s: float
    switch_s: float
    nodes_at_once: int
    gain_requests: float
    cost_requests: float
    net_requests: float


@dataclass(frozen=True, slots=True)
class KindCounts:
    """How many nodes of a kind have each role, before and after."""

    node: str
    prefill_before: int
    decode_before: int
    prefill_after: int
    decode_after: int


@dataclass(frozen=True, slots=True)
class Gain:
    """What a change is expected to bring over the horizon.

    ``requests_per_s``: more of them within the SLO at the forecast load; ``capacity_ratio``: LP after
    over before; ``node_hours``: of nodes like today's, which would serve as many requests more.
    """

    requests_per_s: float
    capacity_ratio: float
    gain_requests: float
    cost_requests: float
    net_requests: float
    node_hours: float


@dataclass(frozen=True, slots=True)
class Latency:
    """What bears on TTFT. ``load_before``, ``load_after``: forecast load over the LP's capacity, the
    share that queues follow. ``ttft_floor_mean_s`` and ``_p90_s``: reading the hits over one storage NIC
    and computing the misses on one engine, without any queue; no ratio changes it.
    """

    load_before: float
    load_after: float
    ttft_floor_mean_s: float
    ttft_floor_p90_s: float
    slo_ttft_s: float


@dataclass(frozen=True, slots=True)
class Window:
    """The turns that the decision rests on: means per turn, and the load that is expected next."""

    source: str
    sessions: int
    turns: int
    mean_hit_tokens: float
    mean_miss_tokens: float
    mean_output_tokens: float
    offered_requests_per_s: float
    forecast_requests_per_s: float
    waiting_requests: float
    behind: bool
    """More wait than come within the SLO's TTFT: the load is taken as without limit."""


@dataclass(frozen=True)
class Decision:
    """The answer. Rates in requests/s of the window's mix; ``reasons`` are sentences."""

    version: int
    scenario: str
    action: Action
    prefill_nodes_before: int
    decode_nodes_before: int
    prefill_nodes_after: int
    decode_nodes_after: int
    kinds: tuple[KindCounts, ...]
    turned: tuple[Turned, ...]
    capacity_requests_per_s: Capacity
    headroom_before: float | None
    """Capacity over the forecast load; None where no load is offered."""
    headroom_after: float | None
    bottleneck_before: ResourceName
    bottleneck_after: ResourceName
    gain: Gain
    switch_s: float
    nodes_at_once: int
    node_costs: tuple[NodeCost, ...]
    lost_bytes: float
    latency: Latency
    window: Window
    best: Option
    """The ratio with the largest gain - cost, be it taken or not."""
    options: tuple[Option, ...]
    searched: str
    """"all ratios", or "step by step" where the kinds are many."""
    parameters_before: SchedulerParameters | None
    """For the scenario's own workload, as deployed."""
    parameters_after: SchedulerParameters | None
    """For the window's mix on the nodes as they will be."""
    reasons: tuple[str, ...]


def to_json(decision: Decision) -> dict[str, Any]:
    """Return the decision as JSON-ready data."""
    return asdict(decision)
