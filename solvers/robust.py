"""When rates are only known within intervals: the worst case over a box, and the chance of a rate.

A spread says by which factor the capacities of one resource of one pool may differ from their nominal
value; all nodes of the pool share the factor (a calibration measures a kind of node, not each of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dualpath_model import closed_form
from dualpath_model.errors import InputError
from dualpath_model.loads import Loads, NodeLoad
from dualpath_model.paths import Key, Pool, Resource
from solvers import linear

Array = npt.NDArray[np.float64]
NORMAL_95 = 1.959963984540054
"""Standard deviations from the middle to either end of a normal distribution's 95 % interval."""

Where = tuple[Pool, Resource]
"""A resource of a pool, in all directions."""


@dataclass(frozen=True, slots=True)
class Spread:
    """An interval of factors. ``uniform`` False: log-normal with these as its 95 % interval.

    Raises InputError unless ``0 < low <= high`` and both are finite.
    """

    low: float
    high: float
    uniform: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no interval."""
        if not (0 < self.low <= self.high < np.inf):
            raise InputError(
                f"the interval {self.low:g} to {self.high:g} is not allowed; give factors above zero, "
                f"the lower one first, such as 0.9 to 1.1"
            )

    def sample(self, draw: np.random.Generator, size: int) -> Array:
        """Draw ``size`` factors."""
        if self.uniform:
            return draw.uniform(self.low, self.high, size)
        middle = 0.5 * (np.log(self.low) + np.log(self.high))
        sigma = (np.log(self.high) - np.log(self.low)) / (2 * NORMAL_95)
        return np.asarray(np.exp(draw.normal(middle, sigma, size)))


Box = Mapping[Where, Spread]


@dataclass(frozen=True)
class WorstCase:
    """The optimum when every capacity of the box is at its lowest, and what each one takes.

    ``by_resource``: requests/s regained if that resource alone were at its nominal value.
    """

    nominal: float
    solution: linear.LinearSolution
    by_resource: dict[Where, float]


def worst_case(loads: Loads, box: Box, *, decode_reads: bool = True) -> WorstCase:
    """Return the throughput that holds for all rates in the box.

    More capacity never hurts, so the worst corner is the lowest one, and flows chosen for it stay
    possible everywhere in the box: knowing the rates in advance is worth nothing here.
    """
    lowest = {where: spread.low for where, spread in box.items()}
    found = linear.solve(scaled(loads, lowest), decode_reads=decode_reads)
    regained = {
        where: linear.solve(scaled(loads, {**lowest, where: 1.0}), decode_reads=decode_reads).value
        - found.value
        for where in box
    }
    nominal = linear.solve(loads, decode_reads=decode_reads).value
    return WorstCase(nominal, found, regained)


@dataclass(frozen=True)
class Chance:
    """Of ``samples`` draws, how many allow the rate: ``replanned`` where flows follow the rates,
    ``planned`` where they stay as planned for the nominal ones. ``throughput`` (samples,) is the
    optimum of each draw; ``standard_error`` that of ``replanned``.
    """

    replanned: float
    planned: float
    standard_error: float
    throughput: Array


def chance(loads: Loads, box: Box, rate: float, *, samples: int = 10_000, seed: int = 0) -> Chance:
    """Return the chance of serving ``rate`` requests/s when rates are drawn from the box.

    Homogeneous pools: the closed form on all draws at once. Others: the LP, solved again from its
    last basis for each draw. Raises InputError for a rate or a number of samples that is not positive.
    """
    if not (0 < rate < np.inf):
        raise InputError(f"rate {rate} is not allowed; give requests/s above zero")
    if samples < 1:
        raise InputError(f"samples {samples} is not allowed; give at least 1")
    draw = np.random.default_rng(seed)
    factors = {where: spread.sample(draw, samples) for where, spread in box.items()}
    nominal = linear.solve(loads)
    throughput = (
        _by_closed_form(loads, factors)
        if loads.homogeneous
        else _by_program(loads, factors, samples)
    )
    used = np.full(samples, 0.0)
    for row in nominal.rows:
        factor = factors.get((row.key.pool, row.key.resource), np.ones(samples))
        used = np.maximum(used, row.utilisation / factor)
    met = throughput >= rate * (1 - 1e-12)
    share = float(met.mean())
    return Chance(
        replanned=share,
        planned=float((used * (rate / nominal.value) <= 1 + 1e-12).mean()),
        standard_error=float(np.sqrt(share * (1 - share) / samples)),
        throughput=throughput,
    )


def scaled(loads: Loads, factors: Mapping[Where, float]) -> Loads:
    """Return the loads with the capacities of each (pool, resource) multiplied."""

    def times(capacity: Mapping[Key, float]) -> dict[Key, float]:
        return {k: rate * factors.get((k.pool, k.resource), 1.0) for k, rate in capacity.items()}

    def group(load: NodeLoad) -> NodeLoad:
        return replace(load, capacity=times(load.capacity))

    return replace(
        loads,
        prefill=tuple(map(group, loads.prefill)),
        decode=tuple(map(group, loads.decode)),
        shared_capacity=times(loads.shared_capacity),
    )


def _by_closed_form(loads: Loads, factors: Mapping[Where, Array]) -> Array:
    demand, capacity = closed_form.of_loads(loads)
    drawn = {
        key: rate * factors.get((key.pool, key.resource), np.float64(1.0))
        for key, rate in capacity.items()
    }
    size = max((len(f) for f in factors.values()), default=1)
    return np.broadcast_to(closed_form.solve(demand, drawn).throughput, (size,)).copy()


def _by_program(loads: Loads, factors: Mapping[Where, Array], samples: int) -> Array:
    program = linear.CapacityProgram(loads, merged=False)
    first = program.solve()
    rows = [r for r in first.rows if (r.key.pool, r.key.resource) in factors]
    found = np.empty(samples)
    for i in range(samples):
        program.change_capacity(
            {
                (r.key.pool, r.node, r.key): float(factors[r.key.pool, r.key.resource][i])
                for r in rows
            }
        )
        found[i] = -program.optimum(tie_break=False)[0].cost * program.unit
    return found
