"""Two parameters at once: throughput, split and bottleneck over a grid of values, in array operations.

Of a homogeneous cluster with one kind of traffic everything is worked out by the closed form over
arrays: what a request asks of a pool, and what the pool has, is evaluated only over the parameters that
touch it, and the rest broadcasts. Other scenarios are solved cell by cell.

Means over the turns of a workload are not linear in its lengths (attention, sliding windows). Where two
lengths (or one, and the LLM) vary over a large workload, turns that are alike are averaged and the means
interpolated between Chebyshev nodes: rates are then within 1 % of the exact ones (0.7 % at most on the
shipped workloads), which all other grids give.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from dualpath_model import closed_form
from dualpath_model.cluster import Node, groups, movement_capacity
from dualpath_model.errors import DualPathError, InfeasibleError, InputError
from dualpath_model.loads import (
    DecodePoint,
    Demand,
    NodeLoad,
    RequestMeans,
    decode_points,
    node_load,
    request_means,
    request_movement,
)
from dualpath_model.paths import Key, Payload, Pool
from dualpath_model.scenario import Scenario
from dualpath_model.workload import Workload
from solvers.alternatives import quick
from solvers.parameters import (
    PARAMETERS,
    Parameter,
    Touches,
    change,
    mean_tokens,
    scaled_workload,
)

Array = npt.NDArray[np.float64]
Cell = tuple[int, int]

_EXACT_TURNS = 4_000_000
"""Turns times points up to which means are averaged anew at every point."""
_NODES_1D, _NODES_2D = 12, 10
_CONDENSED_TURNS, _STRIPS, _BLOCK = 20_000, 60, 32


@dataclass(frozen=True)
class Axis:
    """A parameter (a name of :data:`PARAMETERS`) and the values that it takes."""

    name: str
    values: tuple[float | str, ...]

    @property
    def parameter(self) -> Parameter:
        """Its entry in the table."""
        return PARAMETERS[self.name]


@dataclass(frozen=True)
class Grid:
    """Answers for every pair of values; arrays have the shape (values of y, values of x).

    Rates are requests/s, nan where the cell cannot be served, for the reason in ``reasons``.
    ``bottleneck`` indexes ``keys``, -1 where there is none.
    """

    x: Axis
    y: Axis
    split: Array
    throughput: Array
    throughput_basic: Array
    bottleneck: npt.NDArray[np.intp]
    keys: tuple[Key, ...]
    reasons: Mapping[Cell, str]


def grid(
    scenario: Scenario, x: Axis, y: Axis, *, tell: Callable[[float], None] | None = None
) -> Grid:
    """Return the answers for all pairs of values.

    ``tell`` gets the share that is done where cells are solved one by one; it may raise to stop that.
    Raises InputError for equal or empty axes and for values that a parameter cannot have.
    """
    _check(x, y)
    if vectorises(scenario) and not _moves_storage_traffic(scenario, x, y):
        return _vectorised(scenario, x, y)
    return _cell_by_cell(scenario, x, y, tell or (lambda share: None))


def vectorises(scenario: Scenario) -> bool:
    """Tell whether a grid of the scenario is a matter of milliseconds."""
    return len(scenario.classes) == 1 and scenario.cluster.homogeneous and scenario.zones is None


def _moves_storage_traffic(scenario: Scenario, x: Axis, y: Axis) -> bool:
    """Tell whether storage traffic is on compute NICs in some cells and not in others."""
    nodes = (scenario.cluster.prefill[0], scenario.cluster.decode[0])
    return any(
        axis.name == "snics" and (0 in axis.values or any(node.shares_nic for node in nodes))
        for axis in (x, y)
    )


def _check(x: Axis, y: Axis) -> None:
    for axis in (x, y):
        if axis.name not in PARAMETERS:
            raise InputError(
                f"axis '{axis.name}' is no parameter; it must be one of {', '.join(PARAMETERS)}"
            )
        if not axis.values:
            raise InputError(f"axis {axis.name} has no values; give at least one")
        for value in axis.values:
            axis.parameter.check(axis.name, value)
    if x.name == y.name:
        raise InputError(f"both axes are {x.name}; choose another parameter for one of them")


# ---- all at once -----------------------------------------------------------------------------------


class _Plane:
    """The grid's shape, and arrays that vary along some of its axes."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self.axes = (y, x)
        self.shape = (len(y.values), len(x.values))

    def along(self, touches: Touches) -> tuple[int, ...]:
        """Return the axes whose parameter touches something."""
        return tuple(i for i, axis in enumerate(self.axes) if axis.parameter.touches & touches)

    def combinations(self, along: Sequence[int]) -> Iterator[tuple[Any, dict[str, float | str]]]:
        """Yield, for each pair of values of the given axes, where it is and the values by name."""
        ranges = [range(self.shape[i]) if i in along else (None,) for i in (0, 1)]
        for pair in itertools.product(*ranges):
            where = tuple(slice(None) if k is None else slice(k, k + 1) for k in pair)
            values = {
                axis.name: axis.values[k]
                for axis, k in zip(self.axes, pair, strict=True)
                if k is not None
            }
            yield where, values


def _vectorised(scenario: Scenario, x: Axis, y: Axis) -> Grid:
    plane = _Plane(x, y)
    base: dict[Key, Array] = {}
    slope: dict[Key, Array] = {}
    capacity: dict[Key, Array] = {}
    reasons: dict[Cell, str] = {}

    def put(into: dict[Key, Array], key: Key, where: Any, value: Any) -> None:
        if key not in into:
            into[key] = np.zeros(plane.shape)
        into[key][where] = value

    llms = plane.along(Touches.LLM)
    for there, llm in plane.combinations(llms):
        try:
            asked = change(scenario, llm)
            means = _means(asked, plane, there)
        except DualPathError as error:
            _note(reasons, plane, there, str(error))
            continue
        moved = request_movement(asked.llm, means, asked.serving)
        _put_demand(put, base, slope, moved.only(Pool.CLUSTER), there)
        for key, rate in asked.cluster.capacity().items():
            if key.resource in asked.limits:
                put(capacity, key, there, rate)
        for pool, touching in ((Pool.PREFILL, Touches.PREFILL), (Pool.DECODE, Touches.DECODE)):
            counted = tuple(sorted({*plane.along(touching), *llms}))
            for where, values in plane.combinations(counted):
                if not _inside(where, there):
                    continue
                try:
                    on = change(scenario, values)
                    load, why = _pool(on, pool, means, moved, where, there)
                except DualPathError as error:
                    _note(reasons, plane, where, str(error))
                    continue
                _put_demand(put, base, slope, load.demand, where)
                count = len(on.cluster.nodes(pool))
                for key, rate in load.capacity.items():
                    put(capacity, key, where, rate * count)
                for text, mask in why.items():
                    _note_where(reasons, plane, where, mask, text)
                _put_rates(put, capacity, plane, on, pool, where, values)
    return _solved(plane, base, slope, capacity, reasons)


def _pool(
    scenario: Scenario, pool: Pool, means: RequestMeans, moved: Demand, where: Any, there: Any
) -> tuple[NodeLoad, dict[str, npt.NDArray[np.bool_]]]:
    """Return the load of a pool's nodes, and where it cannot be served."""
    ((node, positions),) = groups(scenario.cluster.nodes(pool)).items()
    gpus = node.gpus * len(positions)
    here = tuple(
        slice(None) if outer == inner else inner for outer, inner in zip(there, where, strict=True)
    )
    means, moved = _cut_means(means, here), _cut_demand(moved, here)
    point: DecodePoint | None = None
    why: dict[str, npt.NDArray[np.bool_]] = {}
    if pool is Pool.DECODE:
        point, why = decode_points(
            scenario.llm,
            means,
            node,
            scenario.serving,
            scenario.slo,
            scenario.efficiencies,
            gpus,
        )
    load = node_load(
        pool,
        node,
        tuple(positions),
        moved,
        scenario.llm,
        means,
        scenario.serving,
        scenario.efficiencies,
        gpus,
        point,
        scenario.limits,
    )
    return load, why


def _put_rates(
    put: Callable[..., None],
    capacity: dict[Key, Array],
    plane: _Plane,
    scenario: Scenario,
    pool: Pool,
    where: Any,
    values: Mapping[str, float | str],
) -> None:
    """Write the capacities that parameters of NICs and DRAM change."""
    rates = plane.along(Touches.RATES)
    if not rates:
        return
    node = scenario.cluster.nodes(pool)[0]
    count = len(scenario.cluster.nodes(pool))
    now = {name: parameter.now(scenario) for name, parameter in PARAMETERS.items()}
    for at, rated in plane.combinations(rates):
        found: Node = node
        for name in PARAMETERS:
            if name in rated:
                change_node = PARAMETERS[name].change_node
                assert change_node is not None
                found = change_node(found, rated[name], now[name])
        spot = tuple(
            outer if inner == slice(None) else inner for outer, inner in zip(where, at, strict=True)
        )
        for key, rate in movement_capacity(found, pool, scenario.efficiencies).items():
            if key.resource in scenario.limits:
                put(capacity, key, spot, rate * count)


def _solved(
    plane: _Plane,
    base: dict[Key, Array],
    slope: dict[Key, Array],
    capacity: dict[Key, Array],
    reasons: dict[Cell, str],
) -> Grid:
    ordered = sorted(capacity, key=closed_form.reading_order)
    served = np.ones(plane.shape, bool)
    for cell in reasons:
        served[cell] = False
    y, x = plane.axes
    blank = np.full(plane.shape, np.nan)
    keys: tuple[Key, ...] = ()
    bottleneck = np.full(plane.shape, -1, np.intp)
    split, throughput, basic = blank.copy(), blank.copy(), blank.copy()
    if served.any():
        # Cells that are not served, and limits that are none in some cells, must not divide by zero.
        found = closed_form.solve(
            Demand(
                {key: np.where(served, base[key], 1.0) for key in ordered if key in base},
                {key: np.where(served, slope[key], 0.0) for key in ordered if key in slope},
            ),
            {
                key: np.where(served, np.where(capacity[key] > 0, capacity[key], np.inf), 1.0)
                for key in ordered
            },
        )
        keys = found.keys
        split = np.where(served, found.split, np.nan)
        throughput = np.where(served, found.throughput, np.nan)
        basic = np.where(served, found.throughput_basic, np.nan)
        bottleneck = np.where(served, found.bottleneck, -1)
    return Grid(x, y, split, throughput, basic, bottleneck, keys, reasons)


def _put_demand(
    put: Callable[..., None],
    base: dict[Key, Array],
    slope: dict[Key, Array],
    demand: Demand,
    where: Any,
) -> None:
    for into, part in ((base, demand.base), (slope, demand.slope)):
        for key, amount in part.items():
            put(into, key, where, amount)


def _inside(where: Any, there: Any) -> bool:
    return all(
        outer == slice(None) or outer == inner for outer, inner in zip(there, where, strict=True)
    )


def _cut(value: Any, here: Any) -> Any:
    """Cut an array of the plane, or of what is there of it, to a part; a number stays itself."""
    if np.ndim(value) == 0:
        return value
    return value[
        tuple(
            part if size > 1 else slice(None) for part, size in zip(here, value.shape, strict=True)
        )
    ]


def _cut_means(means: RequestMeans, here: Any) -> RequestMeans:
    changed = {
        field.name: _cut(getattr(means, field.name), here)
        for field in fields(RequestMeans)
        if field.name != "payloads"
    }
    payloads = {payload: _cut(value, here) for payload, value in means.payloads.items()}
    return RequestMeans(payloads=payloads, **changed)


def _cut_demand(demand: Demand, here: Any) -> Demand:
    return Demand(
        {key: _cut(amount, here) for key, amount in demand.base.items()},
        {key: _cut(amount, here) for key, amount in demand.slope.items()},
    )


def _note(reasons: dict[Cell, str], plane: _Plane, where: Any, text: str) -> None:
    rows, columns = (
        range(*part.indices(size)) for part, size in zip(where, plane.shape, strict=True)
    )
    for cell in itertools.product(rows, columns):
        reasons.setdefault(cell, text)


def _note_where(reasons: dict[Cell, str], plane: _Plane, where: Any, mask: Any, text: str) -> None:
    if not mask.any():
        return
    whole = np.zeros(plane.shape, bool)
    whole[where] = mask
    for row, column in np.argwhere(whole):
        reasons.setdefault((int(row), int(column)), text)


# ---- means over the turns --------------------------------------------------------------------------


def _means(scenario: Scenario, plane: _Plane, there: Any) -> RequestMeans:
    """Return the request's means over the traffic's axes, as arrays that broadcast on the plane."""
    along = plane.along(Touches.TRAFFIC)
    if not along:
        return scenario.means
    axes = [plane.axes[i] for i in along]
    # Of two LLMs the means are not the same: what is allowed holds for all of them together.
    points = plane.shape[0] * plane.shape[1] if plane.along(Touches.LLM) else 1
    points = max(points, int(np.prod([len(axis.values) for axis in axes])))
    meshed = np.meshgrid(*(np.array(axis.values, float) for axis in axes), indexing="ij")
    columns = {axis.name: part.ravel() for axis, part in zip(axes, meshed, strict=True)}
    if points * scenario.workload.turns <= _EXACT_TURNS:
        stacked = np.array([_row(scenario, named) for named in _records(columns)]).T
    else:
        small = _condensed(scenario)
        exact, near = np.array(_flat(scenario.means)), np.array(_flat(small.means))
        share = np.divide(exact, near, out=np.ones_like(exact), where=near != 0)
        stacked = _interpolated(small, columns) * share[:, None]
    shape = tuple(plane.shape[i] if i in along else 1 for i in (0, 1))
    return _unstacked(stacked.reshape(len(stacked), *shape))


def _condensed(scenario: Scenario) -> Scenario:
    """Return the scenario with turns that are alike averaged, so that a few thousand stand for all."""
    workload = scenario.workload
    size = -(-workload.turns // _CONDENSED_TURNS)
    kept = workload.turns // size * size
    by_miss = np.argsort(workload.miss_tokens, kind="stable")
    by_miss = by_miss[np.linspace(0, workload.turns - 1, kept).round().astype(int)]
    order = by_miss
    for column, parts in ((workload.hit_tokens, _STRIPS), (workload.output_tokens, kept // _BLOCK)):
        pieces = np.array_split(order, max(1, parts))
        order = np.concatenate([part[np.argsort(column[part], kind="stable")] for part in pieces])

    def mean(column: Array) -> Array:
        averaged: Array = column[order].reshape(-1, size).mean(axis=1)
        return averaged

    turns = kept // size
    small = Workload(
        prompt_tokens=mean(workload.prompt_tokens),
        hit_tokens=mean(workload.hit_tokens),
        output_tokens=mean(workload.output_tokens),
        think_time_s=mean(workload.think_time_s),
        start_s=np.zeros(1),
        offsets=np.array([0, turns]),
    )
    return replace(scenario, classes=(replace(scenario.classes[0], workload=small),))


def _records(columns: Mapping[str, Array]) -> Iterator[dict[str, float]]:
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        yield dict(zip(columns, values, strict=True))


def _row(scenario: Scenario, named: Mapping[str, float]) -> list[float]:
    """Return every mean of the workload at these values."""
    workload = scaled_workload(scenario, scenario.workload, named)
    return _flat(request_means(scenario.llm, workload, scenario.serving.kv_dtype))


def _interpolated(scenario: Scenario, columns: Mapping[str, Array]) -> Array:
    """Return every mean at every point, shape (means, points), by Chebyshev interpolation.

    A hit rate below what it would be lowers the hits, one above it lowers the misses: two functions
    that are smooth in that factor, not one that is smooth in the rate.
    """
    lengths = {name: np.log(part) for name, part in columns.items() if name != "hit_rate"}
    if "hit_rate" not in columns:
        return _tensor(
            lengths, lambda named: _row(scenario, {n: np.exp(v) for n, v in named.items()})
        )
    rate, before = columns["hit_rate"], _rate_before(scenario, columns)
    fewer = rate <= before
    found = np.empty((len(_flat(scenario.means)), len(rate)))

    def lower(named: Mapping[str, float]) -> list[float]:
        values = {n: np.exp(v) for n, v in named.items() if n != "factor"}
        kept = min(1.0, max(0.0, named["factor"]))
        return _row(scenario, {**values, "hit_rate": kept * _rate_before(scenario, values)})

    def higher(named: Mapping[str, float]) -> list[float]:
        values = {n: np.exp(v) for n, v in named.items() if n != "factor"}
        missing = np.exp(min(0.0, named["factor"])) * (1.0 - _rate_before(scenario, values))
        return _row(scenario, {**values, "hit_rate": 1.0 - missing})

    for mask, factor, function in (
        (fewer, rate / before, lower),
        (~fewer, np.log((1.0 - rate) / (1.0 - before)), higher),
    ):
        if mask.any():
            part = {name: column[mask] for name, column in lengths.items()}
            found[:, mask] = _tensor({**part, "factor": factor[mask]}, function)
    return found


def _rate_before(scenario: Scenario, columns: Mapping[str, Any]) -> Any:
    """Return the hit rate that other lengths give."""
    now = mean_tokens(scenario)
    hit = columns.get("context_tokens", now.hit)
    return hit / (hit + columns.get("append_tokens", now.miss))


def _tensor(
    coordinates: Mapping[str, Array], function: Callable[[dict[str, float]], list[float]]
) -> Array:
    """Interpolate ``function`` at points over a grid of Chebyshev nodes; shape (figures, points)."""
    count = _NODES_1D if len(coordinates) == 1 else _NODES_2D
    unit = np.polynomial.chebyshev.chebpts1(count)
    inverse = np.linalg.inv(np.polynomial.chebyshev.chebvander(unit, count - 1))
    nodes, weights = [], None
    for column in coordinates.values():
        low, high = float(column.min()), float(column.max())
        half = 0.5 * (high - low) or 1.0
        nodes.append((low + half + half * unit).tolist())
        at = np.polynomial.chebyshev.chebvander((column - low - half) / half, count - 1) @ inverse
        weights = (
            at if weights is None else (weights[:, :, None] * at[:, None]).reshape(len(at), -1)
        )
    exact = np.array(
        [function(dict(zip(coordinates, pair, strict=True))) for pair in itertools.product(*nodes)]
    )
    assert weights is not None
    found: Array = exact.T @ weights.T
    return found


def _flat(means: RequestMeans) -> list[float]:
    numbers = [getattr(means, f.name) for f in fields(RequestMeans) if f.name != "payloads"]
    return [*(float(value) for value in means.payloads.values()), *numbers]


def _unstacked(stacked: Array) -> RequestMeans:
    payloads = (Payload.HIT, Payload.MISS, Payload.APPENDED, Payload.GENERATED)
    names = [f.name for f in fields(RequestMeans) if f.name != "payloads"]
    rest: dict[str, Any] = dict(zip(names, stacked[len(payloads) :], strict=True))
    return RequestMeans(payloads=dict(zip(payloads, stacked, strict=False)), **rest)


# ---- one by one ------------------------------------------------------------------------------------


def _cell_by_cell(scenario: Scenario, x: Axis, y: Axis, tell: Callable[[float], None]) -> Grid:
    shape = (len(y.values), len(x.values))
    split, throughput, basic = (np.full(shape, np.nan) for _ in range(3))
    bottleneck = np.full(shape, -1, np.intp)
    keys: dict[Key, int] = {}
    reasons: dict[Cell, str] = {}
    for number, (j, i) in enumerate(np.ndindex(*shape)):
        tell(number / (shape[0] * shape[1]))
        try:
            found = quick(change(scenario, {y.name: y.values[j], x.name: x.values[i]}))
        except (InfeasibleError, InputError) as error:
            reasons[j, i] = str(error)
            continue
        split[j, i], throughput[j, i], basic[j, i] = found.split, found.throughput, found.basic
        bottleneck[j, i] = keys.setdefault(found.bottleneck, len(keys))
    return Grid(x, y, split, throughput, basic, bottleneck, tuple(keys), reasons)
