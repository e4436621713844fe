"""One parameter at a time: what a little less and a little more of each does to the throughput."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dualpath_model.errors import DualPathError, InputError
from dualpath_model.scenario import Scenario
from solvers.alternatives import Quick, quick, quick_many
from solvers.parameters import PARAMETERS, change


@dataclass(frozen=True)
class Sensitivity:
    """Throughput (requests/s) at two values of a parameter; None: that cannot be served, ``reason``."""

    name: str
    low_value: float
    high_value: float
    throughput_low: float | None
    throughput_high: float | None
    throughput_now: float
    reason: str = ""

    @property
    def width(self) -> float:
        """Largest relative change of the throughput; 1 where one of the values cannot be served."""
        if self.throughput_low is None or self.throughput_high is None:
            return 1.0
        changes = (self.throughput_low, self.throughput_high)
        return max(abs(rate / self.throughput_now - 1.0) for rate in changes)


def sensitivities(
    scenario: Scenario, share: float = 0.2, names: Iterable[str] | None = None
) -> tuple[Sensitivity, ...]:
    """Return the effect of ``share`` less and more of each parameter, the strongest first.

    Counts move by one at least; of the hit rate, the misses are scaled. Parameters that the scenario
    does not have (a rate that nobody published, say) are left out. Raises InputError for a share
    outside 0 to 1, InfeasibleError where the scenario itself cannot be served.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"share is {share:g}; it must be between 0 and 1")
    values = {
        name: value
        for name in (PARAMETERS if names is None else names)
        if (value := PARAMETERS[name].now(scenario)) and not isinstance(value, str)
    }
    ends = {name: _ends(name, value, share) for name, value in values.items()}
    asked = [(name, value) for name, pair in ends.items() for value in pair]
    rates = _rates(scenario, asked)
    now = quick(scenario).throughput
    found = []
    for name, (low, high) in ends.items():
        (less, why_less), (more, why_more) = rates[name, low], rates[name, high]
        found.append(Sensitivity(name, low, high, less, more, now, why_less or why_more))
    return tuple(sorted(found, key=lambda row: -row.width))


def _ends(name: str, value: float, share: float) -> tuple[float, float]:
    if name == "hit_rate":
        missing = 1.0 - value
        return max(0.0, 1.0 - missing * (1.0 + share)), 1.0 - missing * (1.0 - share)
    if PARAMETERS[name].whole:
        step = max(1, round(share * value))
        return max(PARAMETERS[name].low, value - step), value + step
    return value * (1.0 - share), value * (1.0 + share)


_Rate = tuple[float | None, str]
"""Requests/s, or None and why it cannot be served."""


def _rates(
    scenario: Scenario, asked: Iterable[tuple[str, float]]
) -> dict[tuple[str, float], _Rate]:
    """Return the throughput at each value of a parameter."""
    found: dict[tuple[str, float], _Rate] = {}
    changed = {}
    for name, value in asked:
        try:
            changed[name, value] = change(scenario, {name: value})
        except DualPathError as error:
            found[name, value] = None, str(error)
    for key, answer in zip(changed, quick_many(changed.values()), strict=True):
        found[key] = (answer.throughput, "") if isinstance(answer, Quick) else (None, str(answer))
    return found
