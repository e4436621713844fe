"""The linear program as one sparse matrix, scaled so that every entry is of order one.

Columns: requests/s of each (kind, class, read path), prefill kinds first, then decode kinds; then the
rate of the mix; then what the objective adds (the peak, or how much of each kind is used). Rows: one a
capacity, then balances between the pools, then one a class's rate, then what the objective adds.

Scaling: a column is counted in what its kind could serve alone (or what the whole other pool could, if
that is less), a row in its capacity or its largest entry. Rates of 1e-12 or 1e15 then make the same
matrix as rates of 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from solvers.problem import PATHS, Array, Index, Kinds, Problem

Mask = npt.NDArray[np.bool_]

SLACK = 1e-10
"""How far, relatively, a second objective may push the first one back."""


class Objective(StrEnum):
    """What is best."""

    MOST_REQUESTS = "most requests"
    """Most requests/s of the mix, after the fixed rates are served."""
    LEAST_PEAK = "least peak"
    """Lowest highest utilisation at given rates."""
    LEAST_COST = "least cost"
    """Least price of the nodes at given rates, a node paid by its highest utilisation."""


@dataclass(frozen=True)
class Form:
    """Minimise ``cost @ x`` with ``low <= matrix @ x <= high`` and ``0 <= x <= most``.

    ``pool`` (0 prefill, 1 decode, 2 shared), ``kind`` and ``key`` describe the capacity rows, which
    come first; ``sloped`` marks those that depend on the read path. Column j in real units is
    ``x[j] * unit[j]``. ``rate_rows`` is the first of the classes' rate rows.
    """

    matrix: sparse.csr_matrix
    low: Array
    high: Array
    cost: Array
    most: Array
    unit: Array
    pool: Index
    kind: Index
    key: Index
    sloped: Mask
    flows: tuple[int, int]
    mix: int | None
    rate_rows: int
    row_height: Array
    """What each row was divided by: ``level`` for capacities, the largest entry for the others."""
    level: float = 1.0
    """Utilisation that the fixed rates are about to cause: what a peak is counted in."""

    @property
    def capacities(self) -> int:
        """Number of capacity rows."""
        return len(self.pool)


class _Rows:
    """Sparse entries and row bounds, gathered block by block."""

    def __init__(self) -> None:
        self.count = 0
        self._row: list[Index] = []
        self._col: list[Index] = []
        self._value: list[Array] = []
        self._low: list[Array] = []
        self._high: list[Array] = []

    def add(self, row: Index, col: Index, value: Array, low: Array, high: Array) -> None:
        """Add ``len(low)`` rows; ``row`` counts from the first of them."""
        self._row.append(row + self.count)
        self._col.append(col)
        self._value.append(value)
        self._low.append(low)
        self._high.append(high)
        self.count += len(low)

    def matrix(self, columns: int) -> tuple[sparse.csr_matrix, Array, Array]:
        """Return the matrix and its row bounds."""
        entries = (np.concatenate(self._row), np.concatenate(self._col))
        matrix = sparse.csr_matrix(
            (np.concatenate(self._value), entries), shape=(self.count, columns)
        )
        return matrix, np.concatenate(self._low), np.concatenate(self._high)


def build(
    problem: Problem,
    kinds: tuple[Kinds, Kinds],
    objective: Objective = Objective.MOST_REQUESTS,
    *,
    decode_reads: bool = True,
    locality: bool = False,
    prices: tuple[Array, Array] | None = None,
) -> Form:
    """Build the matrix.

    ``decode_reads`` False is Basic: nothing is read on the decode side. ``locality``: a decode node
    reads only for requests prefilled in its own zone. ``prices`` of each prefill and each decode kind
    are needed for LEAST_COST.
    """
    flows = _columns(kinds[0]), _columns(kinds[1])
    rows = _Rows()
    described = _capacity_rows(rows, problem, kinds, flows)
    _balance_rows(rows, problem.classes, kinds, flows, locality)
    rate_rows = rows.count
    mixed = np.flatnonzero(~np.isnan(problem.share))
    mix = sum(flows) if mixed.size else None
    _rate_rows(rows, problem, mixed, flows)
    unit, level = _units(problem, kinds, flows, mixed)
    if objective is Objective.MOST_REQUESTS:
        level = 1.0
    matrix, low, high = rows.matrix(len(unit))
    matrix = matrix @ sparse.diags(unit)
    capacities = len(described["pool"])
    height = np.full(matrix.shape[0], level)
    largest = abs(matrix).max(axis=1).toarray().ravel()
    height[capacities:] = np.where(largest[capacities:] > 0, largest[capacities:], 1.0)
    most = np.full(len(unit), np.inf)
    if not decode_reads:
        most[: sum(flows)][1::PATHS] = 0.0
    cost = np.zeros(len(unit))
    if mix is not None:
        cost[mix] = -1.0
    form = Form(
        matrix=sparse.csr_matrix(sparse.diags(1.0 / height) @ matrix),
        low=low / height,
        high=high / height,
        level=level,
        cost=cost,
        most=most,
        unit=unit,
        **described,
        flows=flows,
        mix=mix,
        rate_rows=rate_rows,
        row_height=height,
    )
    if objective is Objective.LEAST_PEAK:
        return with_peak(form, np.ones(capacities, dtype=bool))
    if objective is Objective.LEAST_COST:
        assert prices is not None
        return _with_cost(form, kinds, prices)
    return form


def _columns(kinds: Kinds) -> int:
    count, _, classes, paths = kinds.use.shape
    return int(count * classes * paths)


def _capacity_rows(
    rows: _Rows, problem: Problem, kinds: tuple[Kinds, Kinds], flows: tuple[int, int]
) -> dict[str, Any]:
    """Add one row a (kind, key) that something uses, and one a shared key; describe them."""
    pools, kind_of, key_of, sloped = [], [], [], []
    for where, pool in enumerate(kinds):
        kind, key = np.nonzero(pool.use.any(axis=(2, 3)))
        use = pool.use[kind, key]  # (rows, classes, paths)
        width = problem.classes * PATHS
        row = np.repeat(np.arange(len(kind)), width)
        first = kind * width + (flows[0] if where else 0)
        col = (first[:, None] + np.arange(width)).ravel()
        rows.add(row, col, use.ravel(), np.full(len(kind), -np.inf), np.ones(len(kind)))
        pools.append(np.full(len(kind), where))
        kind_of.append(kind)
        key_of.append(key)
        sloped.append((use[:, :, 0] != use[:, :, 1]).any(axis=1))
    use = problem.shared.use[0]
    key = np.flatnonzero(use.any(axis=(1, 2)))
    use = use[key]
    width = problem.classes * PATHS
    tiled = np.tile(use.reshape(len(key), width), kinds[0].count)  # for every prefill kind
    row = np.repeat(np.arange(len(key)), flows[0])
    col = np.tile(np.arange(flows[0]), len(key))
    rows.add(row, col, tiled.ravel(), np.full(len(key), -np.inf), np.ones(len(key)))
    return {
        "pool": np.concatenate([*pools, np.full(len(key), 2)]),
        "kind": np.concatenate([*kind_of, np.zeros(len(key), dtype=np.int64)]),
        "key": np.concatenate([*key_of, key]),
        "sloped": np.concatenate([*sloped, (use[:, :, 0] != use[:, :, 1]).any(axis=1)]),
    }


def _balance_rows(
    rows: _Rows, classes: int, kinds: tuple[Kinds, Kinds], flows: tuple[int, int], locality: bool
) -> None:
    """Add: what one pool serves of each class on each path, the other serves too.

    With locality decode reads balance in each zone; hand-offs of prefill reads may cross zones.
    """
    zones = np.unique(np.concatenate([pool.zone for pool in kinds]))
    per_path = classes * PATHS
    for path in range(PATHS):
        areas = zones if locality and path == 1 else zones[:1]
        row, col, sign = [], [], []
        for where, pool in enumerate(kinds):
            for area_index, area in enumerate(areas):
                whole = len(areas) == 1 and not (locality and path == 1)
                kind = np.flatnonzero((pool.zone == area) | whole)
                of_class = np.arange(classes)
                columns = kind[:, None] * per_path + of_class * PATHS + path
                col.append(columns.ravel() + (flows[0] if where else 0))
                row.append(np.tile(area_index * classes + of_class, len(kind)))
                sign.append(np.full(columns.size, -1.0 if where else 1.0))
        zero = np.zeros(len(areas) * classes)
        rows.add(np.concatenate(row), np.concatenate(col), np.concatenate(sign), zero, zero)


def _rate_rows(rows: _Rows, problem: Problem, mixed: Index, flows: tuple[int, int]) -> None:
    """Add: the prefill flows of a class sum to its fixed rate, or to its share of the mix."""
    col = np.arange(flows[0])
    row = (col // PATHS) % problem.classes
    fixed = np.where(np.isnan(problem.rate), 0.0, problem.rate)
    rows.add(
        np.concatenate((row, mixed)),
        np.concatenate((col, np.full(mixed.size, sum(flows)))),
        np.concatenate((np.ones(flows[0]), -problem.share[mixed])),
        fixed,
        fixed,
    )


def _units(
    problem: Problem, kinds: tuple[Kinds, Kinds], flows: tuple[int, int], mixed: Index
) -> tuple[Array, float]:
    """Return each column's unit in requests/s, and the utilisation that fixed rates are about to cause.

    A unit is what the flow could be, were it alone, and at most what its class may have.
    """
    shared = problem.shared.use[0].max(axis=0, initial=0.0)  # (classes, paths)
    alone = []
    for pool in kinds:
        with np.errstate(divide="ignore"):
            alone.append(1.0 / np.maximum(pool.use.max(axis=1, initial=0.0), shared))
    limited = []
    for where, rate in enumerate(alone):
        most = np.minimum(rate, alone[1 - where].sum(axis=0))
        limited.append(np.where(np.isfinite(most), most, 1.0).ravel())
    reach = limited[0].reshape(-1, problem.classes, PATHS).max(axis=2).sum(axis=0)
    most_of_class = np.where(np.isnan(problem.rate), np.inf, problem.rate)
    level = float(np.max(np.where(np.isfinite(most_of_class), most_of_class, 0.0) / reach)) or 1.0
    mix = np.zeros(0)
    if mixed.size:
        mix = np.array([np.min(reach[mixed] / problem.share[mixed])])
        most_of_class[mixed] = problem.share[mixed] * mix
    most_of_class[most_of_class == 0.0] = 1.0
    capped = [
        np.minimum(part.reshape(-1, problem.classes, PATHS), most_of_class[:, None]).ravel()
        for part in limited
    ]
    return np.concatenate((*capped, mix)), level


def with_peak(form: Form, rows: Mask, *, best: float | None = None) -> Form:
    """Return the form that minimises the highest utilisation of the capacity ``rows``.

    The peak is the last column. ``best``: the old objective, as the last row, must stay at that value.
    """
    count, columns = form.matrix.shape
    peak = np.zeros(count)
    peak[: form.capacities][rows] = -form.high[: form.capacities][rows] * form.level
    blocks = [[form.matrix, sparse.csr_matrix(peak[:, None])]]
    low, high = form.low, np.where(peak < 0, 0.0, form.high)
    if best is not None:
        blocks.append([sparse.csr_matrix(form.cost), None])
        low = np.append(low, -np.inf)
        high = np.append(high, best + SLACK * abs(best))
    return replace(
        form,
        matrix=sparse.csr_matrix(sparse.bmat(blocks)),
        low=low,
        high=high,
        cost=np.append(np.zeros(columns), 1.0),
        most=np.append(form.most, np.inf),
        unit=np.append(form.unit, form.level),
    )


def with_usage_peak(form: Form, best: float) -> Form:
    """Return the form that, at the least cost ``best``, minimises how much of any node is used."""
    first = sum(form.flows) + (form.mix is not None)
    used = form.matrix.shape[1] - first
    pick = sparse.hstack([sparse.csr_matrix((used, first)), sparse.identity(used)])
    peak = sparse.csr_matrix(np.full((used, 1), -1.0))
    blocks = [[form.matrix, None], [pick, peak], [sparse.csr_matrix(form.cost), None]]
    none = np.full(used, -np.inf)
    return replace(
        form,
        matrix=sparse.csr_matrix(sparse.bmat(blocks)),
        low=np.concatenate((form.low, none, [-np.inf])),
        high=np.concatenate((form.high, np.zeros(used), [best + SLACK * abs(best)])),
        cost=np.append(np.zeros(first + used), 1.0),
        most=np.append(form.most, np.inf),
        unit=np.append(form.unit, form.level),
    )


def _with_cost(form: Form, kinds: tuple[Kinds, Kinds], prices: tuple[Array, Array]) -> Form:
    """Return the form that minimises the price of the nodes, each paid by its highest utilisation."""
    price = np.concatenate(prices)
    node = np.where(form.pool == 0, form.kind, kinds[0].count + form.kind)
    own = np.flatnonzero(form.pool < 2)
    used = sparse.csr_matrix(
        (np.full(len(own), -1.0), (own, node[own])), shape=(form.matrix.shape[0], len(price))
    )
    high = form.high.copy()
    high[own] = 0.0
    return replace(
        form,
        matrix=sparse.csr_matrix(sparse.hstack([form.matrix, used])),
        high=high,
        cost=np.append(np.zeros(form.matrix.shape[1]), price),
        most=np.append(form.most, np.full(len(price), 1.0 / form.level)),
        unit=np.append(form.unit, np.full(len(price), form.level)),
    )
