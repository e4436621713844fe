"""What can be varied of a scenario: each parameter once, with its unit and how it changes a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Flag, auto
from functools import lru_cache
from typing import Any, NamedTuple

from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.cluster import Node, groups
from dualpath_model.errors import DualPathError, InputError, unknown_name
from dualpath_model.llm import Llm
from dualpath_model.paths import Pool
from dualpath_model.scenario import MOST_NODES, Scenario
from dualpath_model.workload import Workload, scaled

Value = float | str


class Touches(Flag):
    """What of a scenario's loads a parameter changes. RATES: capacities of NICs and DRAM alone."""

    LLM = auto()
    PREFILL = auto()
    DECODE = auto()
    RATES = auto()
    TRAFFIC = auto()


@dataclass(frozen=True)
class Parameter:
    """One parameter. ``low`` and ``high``: what can be meant, in ``unit``; ``whole``: a count.

    ``change`` is None for lengths of turns, which :func:`change` changes together. ``change_node``: of
    a parameter of RATES, the change of one node from what ``now`` says to another value. Nodes and
    classes that are unlike each other change in proportion, so that the value of now changes nothing.
    """

    label: str
    unit: str
    touches: Touches
    now: Callable[[Scenario], Value]
    change: Callable[[Scenario, Any], Scenario] | None
    low: float = 0.0
    high: float = 1e18
    whole: bool = False
    change_node: Callable[[Node, Any, Any], Node] | None = None

    def check(self, name: str, value: object) -> None:
        """Raise InputError for a value that cannot be meant."""
        if self.unit == "name":
            if value not in llm_names():
                raise unknown_name(name, str(value), llm_names())
            return
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and self.low <= value <= self.high):  # type: ignore[operator]
            raise InputError(
                f"{name} is {value!r}; it must be a number from {self.low:g} to {self.high:g}"
            )
        if self.whole and value != int(value):  # type: ignore[call-overload]
            raise InputError(f"{name} is {value!r}; it must be a whole number")


class Tokens(NamedTuple):
    """Means per request over all turns of all classes."""

    hit: float
    miss: float
    output: float

    @property
    def hit_rate(self) -> float:
        """Hit tokens over prompt tokens."""
        return self.hit / (self.hit + self.miss)


def mean_tokens(scenario: Scenario) -> Tokens:
    """Return mean hit, miss and output tokens of a request, the classes' turns together."""
    turns = sum(c.workload.turns for c in scenario.classes)
    totals = zip(*(c.workload.token_sums for c in scenario.classes), strict=True)
    return Tokens(*(sum(column) / turns for column in totals))


def commonest(scenario: Scenario, pool: Pool) -> Node:
    """Return the kind of node of which a pool has most."""
    alike = groups(scenario.cluster.nodes(pool))
    return max(alike, key=lambda node: len(alike[node]))


def scaled_workload(
    scenario: Scenario, workload: Workload, values: Mapping[str, Value]
) -> Workload:
    """Return a workload of the scenario with the traffic's parameters changed; ``values`` by name."""
    now = mean_tokens(scenario)
    factors: dict[str, Any] = {}
    for factor, name, mean in (
        ("context", "context_tokens", now.hit),
        ("append", "append_tokens", now.miss),
        ("generate", "generate_tokens", now.output),
    ):
        if name in values:
            if not mean:
                raise InputError(f"{name} cannot be changed: this workload has none")
            factors[factor] = float(values[name]) / mean
    if "hit_rate" in values:
        asked, own = float(values["hit_rate"]), _hit_rate(workload, factors)
        alike = len(scenario.classes) == 1 or now.hit_rate >= 1.0
        missing = (1.0 - asked) / (1.0 - now.hit_rate) if not alike else 1.0
        factors["hit_rate"] = asked if alike else max(0.0, 1.0 - (1.0 - own) * missing)
    return scaled(workload, **factors)


def _hit_rate(workload: Workload, factors: Mapping[str, float]) -> float:
    """Return the hit rate of a workload whose lengths are multiplied by ``factors``."""
    hit, miss, _ = workload.token_sums
    hit, miss = hit * factors.get("context", 1.0), miss * factors.get("append", 1.0)
    return hit / (hit + miss)


# ---- changes ---------------------------------------------------------------------------------------


def _on_nodes(
    change_node: Callable[[Node, Any, Any], Node], now: Callable[[Scenario], float]
) -> Callable[[Scenario, Any], Scenario]:
    def change(scenario: Scenario, value: Any) -> Scenario:
        before = now(scenario)
        for pool in (Pool.PREFILL, Pool.DECODE):
            scenario = scenario.with_each_node(pool, lambda node: change_node(node, value, before))
        return scenario

    return change


def _snics(node: Node, value: float, now: float) -> Node:
    count = value
    if now and node.snics not in (0, now):
        count = max(1, round(node.snics * value / now)) if value else 0
    rate = node.snic_bytes_per_s or node.cnic_bytes_per_s
    return replace(node, snics=int(count), snic_bytes_per_s=rate)


def _scaled(rate: float | None, value: float, now: float) -> float:
    """Return a node's rate where the commonest one goes from ``now`` to ``value``."""
    return float(value) if rate in (None, now) or not now else float(rate) * value / now


def _snic_rate(node: Node, value: float, now: float) -> Node:
    if not node.snics:
        return node
    return replace(node, snic_bytes_per_s=_scaled(node.snic_bytes_per_s, value, now))


def _cnic_rate(node: Node, value: float, now: float) -> Node:
    return replace(node, cnic_bytes_per_s=_scaled(node.cnic_bytes_per_s, value, now))


def _dram_rate(node: Node, value: float, now: float) -> Node:
    return replace(node, dram_bytes_per_s=_scaled(node.dram_bytes_per_s, value, now))


@lru_cache
def _catalog_llm(name: str) -> Llm:
    return load_llm(name)


def _llm(scenario: Scenario, name: str) -> Scenario:
    llm, dtype = _catalog_llm(name), scenario.serving.kv_dtype
    try:
        llm.kv_bytes_per_token(dtype)
    except DualPathError:  # the new one cannot be stored like that
        dtype = llm.default_kv_dtype
    return replace(scenario, llm=llm, serving=replace(scenario.serving, kv_dtype=dtype))


def _of_commonest(field: str) -> Callable[[Scenario], float]:
    """Return what reads a field of the commonest prefill node, 0 where nobody knows it."""

    def now(scenario: Scenario) -> float:
        return float(getattr(commonest(scenario, Pool.PREFILL), field) or 0.0)

    return now


_SNICS_NOW, _SNIC_NOW = _of_commonest("snics"), _of_commonest("snic_bytes_per_s")
_CNIC_NOW, _DRAM_NOW = _of_commonest("cnic_bytes_per_s"), _of_commonest("dram_bytes_per_s")


PARAMETERS: Mapping[str, Parameter] = {
    "prefill_nodes": Parameter(
        "prefill nodes (P)",
        "",
        Touches.PREFILL,
        lambda scenario: float(len(scenario.cluster.prefill)),
        lambda scenario, value: scenario.with_nodes(int(value), len(scenario.cluster.decode)),
        low=1,
        high=MOST_NODES,
        whole=True,
    ),
    "decode_nodes": Parameter(
        "decode nodes (D)",
        "",
        Touches.DECODE,
        lambda scenario: float(len(scenario.cluster.decode)),
        lambda scenario, value: scenario.with_nodes(len(scenario.cluster.prefill), int(value)),
        low=1,
        high=MOST_NODES,
        whole=True,
    ),
    "snics": Parameter(
        "storage NICs a node",
        "",
        Touches.RATES,
        _SNICS_NOW,
        _on_nodes(_snics, _SNICS_NOW),
        low=0,
        high=1000,
        whole=True,
        change_node=_snics,
    ),
    "snic_bytes_per_s": Parameter(
        "rate of a storage NIC",
        "B/s",
        Touches.RATES,
        _SNIC_NOW,
        _on_nodes(_snic_rate, _SNIC_NOW),
        low=1,
        change_node=_snic_rate,
    ),
    "cnic_bytes_per_s": Parameter(
        "rate of a compute NIC",
        "B/s",
        Touches.RATES,
        _CNIC_NOW,
        _on_nodes(_cnic_rate, _CNIC_NOW),
        low=1,
        change_node=_cnic_rate,
    ),
    "dram_bytes_per_s": Parameter(
        "DRAM bandwidth a node",
        "B/s",
        Touches.RATES,
        _DRAM_NOW,
        _on_nodes(_dram_rate, _DRAM_NOW),
        low=1,
        change_node=_dram_rate,
    ),
    "context_tokens": Parameter(
        "context read back a request",
        "tokens",
        Touches.TRAFFIC,
        lambda scenario: mean_tokens(scenario).hit,
        None,
        low=1e-3,  # a mean: of a trace with little to append it is below one token
        high=1e9,
    ),
    "append_tokens": Parameter(
        "append a request",
        "tokens",
        Touches.TRAFFIC,
        lambda scenario: mean_tokens(scenario).miss,
        None,
        low=1e-3,  # a mean: of a trace with little to append it is below one token
        high=1e9,
    ),
    "generate_tokens": Parameter(
        "generate a request",
        "tokens",
        Touches.TRAFFIC,
        lambda scenario: mean_tokens(scenario).output,
        None,
        low=1e-3,  # a mean: of a trace with little to append it is below one token
        high=1e9,
    ),
    "hit_rate": Parameter(
        "hit rate",
        "of the prompt tokens",
        Touches.TRAFFIC,
        lambda scenario: mean_tokens(scenario).hit_rate,
        None,
        high=1 - 1e-9,
    ),
    "llm": Parameter("LLM", "name", Touches.LLM, lambda scenario: scenario.llm.name, _llm),
}
"""In the order in which several of them are changed (the LLM last: node counts ask for means)."""


def change(scenario: Scenario, values: Mapping[str, Value]) -> Scenario:
    """Return the scenario with parameters changed, by name, in the order of :data:`PARAMETERS`.

    Token counts are those of the scenario before. Raises InputError for what cannot be meant.
    """
    for name, value in values.items():
        if name not in PARAMETERS:
            raise unknown_name("parameter", name, PARAMETERS)
        PARAMETERS[name].check(name, value)
    traffic = {name: value for name, value in values.items() if PARAMETERS[name].change is None}
    if traffic:
        scenario = replace(
            scenario,
            classes=tuple(
                replace(part, workload=scaled_workload(scenario, part.workload, traffic))
                for part in scenario.classes
            ),
        )
    for name, parameter in PARAMETERS.items():
        if name in values and parameter.change is not None:
            scenario = parameter.change(scenario, values[name])
    return scenario
