"""The closed form: optimal split, throughput bound and bottleneck of homogeneous pools, in array ops.

Serving one request a second at split x uses the share ``u_r(x) = (base_r + slope_r x) / capacity_r`` of
each capacity r, a straight line in x. The best split minimises the highest line; the throughput bound is
one over that height. Over 0 <= x <= 1 the lowest point of the upper envelope is, by LP duality in one
variable, the greatest of: every level line, every falling line at x = 1, every rising line at x = 0, and
the crossing of every falling with every rising line. No iteration, so it runs over arrays of any shape.

Where a level line (GPU compute, say) is the highest there is a whole interval of optimal splits; the one
returned minimises the highest *sloped* line, so that answers are unique and leave most room.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import Amount, Demand, Loads, movement
from dualpath_model.paths import Direction, Key, Payload, Pool, Resource, StepTable

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

_CHUNK = 16_384  # elements: the working set of a chunk stays in the second-level cache


@dataclass(frozen=True)
class Bound:
    """Answers for one configuration or an array of them; all arrays have the broadcast shape.

    ``bottleneck`` and ``bottleneck_basic`` index into ``keys``. Rates are requests/s.
    """

    keys: tuple[Key, ...]
    split: Array
    throughput: Array
    throughput_basic: Array
    bottleneck: Positions
    bottleneck_basic: Positions

    @property
    def speedup_over_basic(self) -> Array:
        """Throughput bound over that of reading on the prefill nodes only."""
        return self.throughput / self.throughput_basic


def solve(demand: Demand, capacity: Mapping[Key, Amount]) -> Bound:
    """Return optimal split, throughput and bottleneck where ``capacity`` limits ``demand``.

    Demands and capacities may be scalars or arrays, which broadcast against each other. Keys without
    a capacity do not limit. Capacities must be positive; at least one key must be in both.
    """
    keys = tuple(key for key in capacity if key in demand.base)
    lines = [
        (
            np.asarray(demand.base[key] / np.asarray(capacity[key], dtype=float)),
            np.asarray(demand.slope.get(key, 0.0) / np.asarray(capacity[key], dtype=float)),
        )
        for key in keys
    ]
    shape = np.broadcast_shapes(*(part.shape for line in lines for part in line))
    if not shape:
        return Bound(keys, *_lowest_envelope(lines))
    rates = [np.empty(shape) for _ in range(3)]
    positions = [np.empty(shape, np.intp) for _ in range(2)]
    rows = max(1, _CHUNK * shape[0] // math.prod(shape))
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        found = _lowest_envelope(
            [
                (_rows(base, part, len(shape)), _rows(slope, part, len(shape)))
                for base, slope in lines
            ]
        )
        for whole, piece in zip((*rates, *positions), found, strict=True):
            whole[part] = piece
    return Bound(keys, rates[0], rates[1], rates[2], positions[0], positions[1])


def _rows(values: Array, part: slice, dims: int) -> Array:
    """Cut the leading axis of ``values`` if it has one that varies."""
    return values[part] if values.ndim == dims and values.shape[0] > 1 else values


_Found = tuple[Array, Array, Array, Positions, Positions]


def _lowest_envelope(lines: list[tuple[Array, Array]]) -> _Found:
    """Minimise over x in [0, 1] the highest of the lines ``base + slope x``.

    Returns x, one over the height there, one over the height at x = 0, and which line is the highest
    at each of the two.
    """
    falling = [line for line in lines if (line[1] < 0).any()]
    rising = [line for line in lines if (line[1] > 0).any()]
    height, split = np.asarray(-np.inf), np.asarray(0.0)
    for base, slope in rising:  # at its lowest at x = 0
        candidate = np.where(slope > 0, base, -np.inf)
        height = np.maximum(height, candidate)
    for base, slope in falling:  # at its lowest at x = 1
        candidate = np.where(slope < 0, base + slope, -np.inf)
        split = np.where(candidate > height, 1.0, split)
        height = np.maximum(height, candidate)
    for base, slope in falling:
        for other_base, other_slope in rising:
            crosses = (slope < 0) & (other_slope > 0)
            x = (base - other_base) / np.where(crosses, other_slope - slope, np.inf)
            candidate = base + slope * x
            # A crossing outside [0, 1] lies below an end of the envelope, which is in the race.
            higher = crosses & (candidate > height) & (x > 0.0) & (x < 1.0)
            split = np.where(higher, x, split)
            height = np.where(higher, candidate, height)
    at_split = [base + slope * split for base, slope in lines]
    highest = functools.reduce(np.maximum, at_split)
    first = _most_worth(at_split, [slope for _, slope in lines], highest)
    basic, first_basic = _highest([base for base, _ in lines])
    return split, 1.0 / highest, 1.0 / basic, first, first_basic


EQUAL_WORTH = 1e-6
"""Capacities whose worth differs by less are equals, here and where the LP prices them."""

_TIE = 1.0 + 1e-12
"""Two lines that cross are equal but for rounding."""


def _highest(heights: list[Array]) -> tuple[Array, Positions]:
    """Return the highest and which it is, of equals the one listed first."""
    highest = heights[0]
    first: Positions = np.zeros(highest.shape, dtype=np.intp)
    for index, height in enumerate(heights[1:], start=1):
        first = np.where(height > highest * _TIE, index, first)
        highest = np.maximum(highest, height)
    return highest, first


def _most_worth(heights: list[Array], slopes: list[Array], highest: Array) -> Positions:
    """Return the line of which more capacity would help most, of those that are the highest.

    Where a falling line f and a rising line r cross, throughput grows by the share s_r / (s_r - s_f)
    of what f's capacity grows by, and by the rest of r's: the flatter line is worth more, as the dual
    values of the LP say. Of equals the one listed first.
    """
    first: Positions = np.zeros(highest.shape, dtype=np.intp)
    flattest = np.full(highest.shape, np.inf)
    for index, (height, slope) in enumerate(zip(heights, slopes, strict=True)):
        steep = np.abs(slope)
        better = (height * _TIE >= highest) & (steep < flattest * (1.0 - EQUAL_WORTH))
        first = np.where(better, index, first)
        flattest = np.where(better, steep, flattest)
    return first


def of_loads(loads: Loads) -> tuple[Demand, dict[Key, float]]:
    """Return demand and pooled capacity of a homogeneous cluster, ready for :func:`solve`.

    Raises ValueError if a pool has more than one kind of node (the LP takes those).
    """
    if not loads.homogeneous:
        raise ValueError("the closed form needs homogeneous pools; use solvers.linear")
    demand = loads.shared_demand
    capacity = dict(loads.shared_capacity)
    for _, group in loads.all_groups():
        demand = demand + group.demand
        capacity |= {key: rate * group.count for key, rate in group.capacity.items()}
    return demand, {key: capacity[key] for key in sorted(capacity, key=reading_order)}


_RESOURCE_ORDER = {resource: position for position, resource in enumerate(Resource)}
_POOL_ORDER = {pool: position for position, pool in enumerate(Pool)}


def reading_order(key: Key) -> tuple[int, int, str]:
    """Prefill before decode before shared; within a pool as :class:`Resource` lists them."""
    return _POOL_ORDER[key.pool], _RESOURCE_ORDER[key.resource], key.direction.value


# ---- the bottleneck-free range (paper, section 4.2) ----------------------------------------------


@dataclass(frozen=True, slots=True)
class RatioCondition:
    """One capacity's condition on P/D: ``low <= P/D <= high`` (0 and inf where it sets none)."""

    key: Key
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BottleneckFree:
    """The range of P/D in which saturated storage NICs on both sides saturate nothing else."""

    low: float
    high: float
    conditions: tuple[RatioCondition, ...]

    def holds(self, ratio: float) -> bool:
        """Whether a P/D ratio lies in the range (its ends included)."""
        return self.low <= ratio <= self.high


SNIC_P = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
SNIC_D = Key(Pool.DECODE, Resource.SNIC, Direction.IN)


def bottleneck_free(
    table: StepTable,
    prefill_rate: Mapping[Key, float],
    decode_rate: Mapping[Key, float],
) -> BottleneckFree:
    """Return the bottleneck-free range of P/D for hit traffic alone (paper, section 4.2).

    ``prefill_rate`` and ``decode_rate`` are one node's capacities in bytes/s; both need an SNIC in.
    Raises ValueError if a pool has no storage NIC of its own, or if the paths of the table do not each
    read on their own side: the range is not defined.
    """
    if table.no_range is not None:
        raise ValueError(table.no_range)
    capacity = {**prefill_rate, **decode_rate}
    if SNIC_P not in capacity or SNIC_D not in capacity:
        raise ValueError("the bottleneck-free range needs a storage NIC on both sides")
    return ratio_range(movement(table.carrying(Payload.HIT), {Payload.HIT: 1.0}), capacity)


def ratio_range(demand: Demand, capacity: Mapping[Key, float]) -> BottleneckFree:
    """Return the P/D for which ``demand`` fits one node's ``capacity`` at saturated storage NICs.

    With SNIC rates S_p and S_d a prefill node carries S_p of prefill-read traffic and S_d D/P of
    decode-read traffic, a decode node S_p P/D and S_d: each capacity bounds P/D from one side.
    Raises InfeasibleError if requests read nothing from storage: there is nothing to saturate with.
    """
    by_prefill = float(demand.base.get(SNIC_P, 0.0))
    by_decode = float(demand.base.get(SNIC_D, 0.0) + demand.slope.get(SNIC_D, 0.0))
    if by_prefill <= 0 or by_decode <= 0:
        raise InfeasibleError(
            "requests read no hits from storage, so no load saturates the storage NICs; give the "
            "workload hits or a dram_cache.hit_share below 1"
        )
    conditions = []
    for key, rate in capacity.items():
        if key in (SNIC_P, SNIC_D) or key not in demand.base:
            continue
        base = float(demand.base[key])
        on_prefill = base / by_prefill * capacity[SNIC_P]
        on_decode = (base + float(demand.slope.get(key, 0.0))) / by_decode * capacity[SNIC_D]
        if key.pool is Pool.PREFILL:  # on_prefill + on_decode / ratio <= rate
            conditions.append(RatioCondition(key, _least(on_decode, rate - on_prefill), math.inf))
        else:  # on_prefill * ratio + on_decode <= rate
            conditions.append(RatioCondition(key, 0.0, _greatest(rate - on_decode, on_prefill)))
    return BottleneckFree(
        low=max((c.low for c in conditions), default=0.0),
        high=min((c.high for c in conditions), default=math.inf),
        conditions=tuple(conditions),
    )


def _least(load: float, room: float) -> float:
    """Least ratio with ``load / ratio <= room``; inf: none."""
    if load == 0:
        return 0.0 if room >= 0 else math.inf
    return load / room if room > 0 else math.inf


def _greatest(room: float, load: float) -> float:
    """Greatest ratio with ``load * ratio <= room``; 0: none."""
    if load == 0:
        return math.inf if room >= 0 else 0.0
    return max(room, 0.0) / load
