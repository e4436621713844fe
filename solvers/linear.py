"""The linear program: the best assignment of reads to nodes and paths, with the price of each resource.

Every node has its own flows: requests/s of each class that it prefills or decodes, on each read path.
Every capacity of every node bounds its load, so do those of the cluster; both pools serve the same of
each class on each path. Any such flow can be routed between the pools, because a request's load on its
prefill node does not depend on which decode node it gets (:mod:`solvers.pairs` checks that).

Nodes alike up to size are merged first (:mod:`solvers.problem`); among several optima the one with the
least peak utilisation of the capacities that depend on the split and have no price is taken. Each
solution carries a certificate of optimality that does not trust the solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dualpath_model.errors import DualPathError, InfeasibleError, InputError
from dualpath_model.loads import Loads
from dualpath_model.paths import Key, Pool
from solvers import conflicts, matrix, reference
from solvers.certificate import Certificate, certify
from solvers.form import SLACK, Form, Mask, Objective, build, with_peak, with_usage_peak
from solvers.problem import (
    PATHS,
    POOLS,
    Array,
    Kinds,
    PoolUse,
    Problem,
    TrafficClass,
    apart,
    from_classes,
    merge,
    single,
)

Backend = Literal["auto", "highs", "cbc", "matrix"]
"""PuLP on HiGHS (the readable reference), PuLP on CBC, the sparse matrix on HiGHS; "auto" takes the
matrix beyond 64 kinds of nodes, where building a PuLP model dominates the time."""

_AUTO_KINDS = 64
_PRICED = 1e-9
"""A dual below this (in units of the optimum) is no price: its capacity has room."""


class SolverError(DualPathError):
    """The solver stopped without an answer, or its answer does not prove itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One capacity of one node (``node`` is its position in the pool, None for the cluster).

    ``dual_value``: change of the objective (requests/s, or the peak, or the cost) for each unit of
    capacity more. It holds while the capacity stays between ``low`` and ``high`` (all nodes of its
    kind changing alike); nan where ranges were not asked for.
    """

    node: int | None
    key: Key
    capacity: float
    utilisation: float
    dual_value: float
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """The optimum. ``prefill`` and ``decode`` are flows in requests/s, (nodes, classes, paths)."""

    objective: Objective
    value: float
    """Requests/s of all classes, or the peak utilisation, or USD/h."""
    class_names: tuple[str, ...]
    prefill: Array
    decode: Array
    rows: tuple[Row, ...]
    certificate: Certificate

    @property
    def throughput(self) -> float:
        """Requests/s of all classes together."""
        return float(self.prefill.sum())

    @property
    def class_rates(self) -> Array:
        """Requests/s of each class."""
        return np.asarray(self.prefill.sum(axis=(0, 2)))

    @property
    def class_splits(self) -> Array:
        """Split of each class: fraction of its requests that take the decode read path."""
        rates = self.class_rates
        pulled = self.prefill[:, :, 1].sum(axis=0)
        return np.asarray(np.divide(pulled, rates, out=np.zeros_like(rates), where=rates > 0))

    @property
    def split(self) -> float:
        """Split of all requests together."""
        return float(self.prefill[:, :, 1].sum() / self.prefill.sum())

    @property
    def prefill_flows(self) -> tuple[tuple[float, float], ...]:
        """Flows of each prefill node on both paths, all classes together."""
        return tuple((float(a), float(b)) for a, b in self.prefill.sum(axis=1))

    @property
    def decode_flows(self) -> tuple[tuple[float, float], ...]:
        """Flows of each decode node on both paths, all classes together."""
        return tuple((float(a), float(b)) for a, b in self.decode.sum(axis=1))

    @property
    def binding(self) -> tuple[Row, ...]:
        """Return the capacities that are used up, within 1e-7."""
        return tuple(row for row in self.rows if row.utilisation > 1 - 1e-7)

    def row(self, key: Key, node: int | None = None) -> Row:
        """Return the row of one capacity."""
        return next(row for row in self.rows if row.key == key and row.node == node)


class CapacityProgram:
    """The LP of one problem, built once; capacities and rates may change between solves.

    ``merged`` False keeps every node apart, so that single capacities can be changed cheaply.
    ``prices``: USD/h of each prefill and each decode node, for LEAST_COST.
    """

    def __init__(
        self,
        problem: Problem | Loads,
        backend: Backend = "auto",
        *,
        objective: Objective = Objective.MOST_REQUESTS,
        decode_reads: bool = True,
        locality: bool = False,
        prices: tuple[Sequence[float], Sequence[float]] | None = None,
        merged: bool = True,
    ) -> None:
        """Build the matrix. Raises InputError if the objective lacks rates or prices."""
        self.problem = single(problem) if isinstance(problem, Loads) else problem
        self._locality = locality
        self._objective = objective
        self._check(prices)
        if backend in ("highs", "cbc") and objective is not Objective.MOST_REQUESTS:
            raise InputError(
                f"the {backend} solver has 'most requests' only; '{objective}' is solved by the matrix, "
                f"so leave the solver out"
            )
        price: list[Array | None] = [None, None]
        self._price_unit = 1.0
        if prices is not None and objective is Objective.LEAST_COST:
            given = [np.array(pool, dtype=float) for pool in prices]
            self._price_unit = float(max(pool.max() for pool in given)) or 1.0
            price = [pool / self._price_unit for pool in given]
        self._kinds = tuple(
            merge(pool, by_zone=locality, price=p) if merged else apart(pool, by_zone=locality)
            for pool, p in zip(self.problem.pools(), price, strict=True)
        )
        self.form = build(
            self.problem,
            self._pair(),
            objective,
            decode_reads=decode_reads,
            locality=locality,
            prices=self._kind_prices(price),
        )
        kinds = sum(kind.count for kind in self._kinds)
        if objective is not Objective.MOST_REQUESTS or not merged:
            backend = "matrix"
        elif backend == "auto":
            backend = "matrix" if kinds > _AUTO_KINDS else "highs"
        self._backend = backend
        self._low, self._high = self.form.low.copy(), self.form.high.copy()
        self._rates = self.problem.rate.copy()
        self._highs: matrix.Highs | None = None
        self._relaxed: _Relaxed | None = None

    def _kind_prices(self, price: list[Array | None]) -> tuple[Array, Array] | None:
        totals = [
            np.asarray(np.bincount(kind.kind, weights=p), dtype=float)
            for kind, p in zip(self._kinds, price, strict=True)
            if p is not None
        ]
        return (totals[0], totals[1]) if totals else None

    def _pair(self) -> tuple[Kinds, Kinds]:
        return self._kinds[0], self._kinds[1]

    def _check(self, prices: tuple[Sequence[float], Sequence[float]] | None) -> None:
        problem = self.problem
        if self._objective is Objective.MOST_REQUESTS:
            if np.isnan(problem.share).all():
                raise InputError(
                    "no class has a share, so none can grow; give one a share, or choose the objective "
                    "'least peak' or 'least cost'"
                )
            return
        without = [n for n, rate in zip(problem.names, problem.rate, strict=True) if np.isnan(rate)]
        if without:
            raise InputError(
                f"'{self._objective}' needs a rate for each class, but '{without[0]}' has a share; "
                f"give its requests/s"
            )
        if self._objective is Objective.LEAST_COST:
            counts = [pool.count for pool in problem.pools()]
            given = [] if prices is None else [len(prices[0]), len(prices[1])]
            if given != counts or not all(
                np.isfinite(p) and p >= 0 for pool in prices or () for p in pool
            ):
                raise InputError(
                    f"'{self._objective}' needs a price of zero or more for each of the {counts[0]} "
                    f"prefill and {counts[1]} decode nodes; add price_usd_per_hour"
                )

    def solve(self, *, ranges: bool = False) -> LinearSolution:
        """Return the optimum. Raises InfeasibleError, in words, if the fixed rates cannot be met."""
        return self.read_back(*self.optimum(), ranges=ranges)

    @property
    def unit(self) -> float:
        """What the cost of an answer is counted in: requests/s, 1 (a peak) or USD/h."""
        return self._value_unit()

    def optimum(self, *, tie_break: bool = True) -> tuple[matrix.Raw, Array]:
        """Return the solver's answer and the flows chosen among all optima."""
        raw = self._first()
        if raw.status != "optimal":
            raise self._without_answer(raw.status)
        if self._objective is Objective.LEAST_PEAK and raw.cost * self.form.level > 1.0 + _PRICED:
            raise self._without_answer("infeasible")
        if not tie_break:
            return raw, raw.x
        return raw, self._among_best(self._now(), raw)

    def read_back(self, raw: matrix.Raw, x: Array, *, ranges: bool = False) -> LinearSolution:
        """Turn an answer into flows, rows and a certificate. Raises SolverError if that fails."""
        form = self._now()
        final = replace(
            raw, x=x, cost=float(form.cost @ x)
        )  # the flows returned, not the first ones
        certificate = certify(form, final)
        if not certificate.holds:
            raise SolverError(
                f"the {self._backend} solver's answer does not prove itself (primal "
                f"{certificate.primal:.1e}, dual {certificate.dual:.1e}, gap {certificate.gap:.1e}); "
                f"try another solver"
            )
        limits = None
        if ranges and self._objective is Objective.MOST_REQUESTS:
            limits = self._ranges()
        return self._solution(raw, x, certificate, limits)

    def change_capacity(self, factors: Mapping[tuple[Pool, int | None, Key], float]) -> None:
        """Multiply capacities (pool, node, key), from the original ones, for the next solve.

        Raises InputError if the node is merged with others (build with ``merged=False``), unknown, or
        the factor is not positive. Only for MOST_REQUESTS.
        """
        if self._objective is not Objective.MOST_REQUESTS:
            raise InputError(
                f"capacities cannot be changed under '{self._objective}'; build the program again"
            )
        rows = self._row_index()
        for (pool, node, key), factor in factors.items():
            if not 0 < factor < np.inf:
                raise InputError(
                    f"the factor {factor} of {key} is not allowed; give one above zero"
                )
            place = (POOLS.index(pool) if pool in POOLS else 2, 0 if node is None else node, key)
            if place not in rows:
                raise InputError(
                    f"{key} of node {node} does not limit this program; check the name"
                )
            self._high[rows[place]] = factor
            if self._highs is not None:
                self._highs.set_row(rows[place], -np.inf, factor)

    def change_rates(self, rates: Mapping[str, float]) -> None:
        """Set the fixed rates of classes, requests/s, for the next solve.

        Raises InputError for a class that is unknown or has a share, and for a rate below zero.
        """
        names, form = self.problem.names, self.form
        for name, rate in rates.items():
            if name not in names or np.isnan(self.problem.rate[names.index(name)]):
                fixed = [
                    n for n, r in zip(names, self.problem.rate, strict=True) if not np.isnan(r)
                ]
                raise InputError(
                    f"class '{name}' has no fixed rate here; with one: {', '.join(fixed) or 'none'}"
                )
            if not 0 <= rate < np.inf:
                raise InputError(f"class '{name}': rate {rate} is not allowed; give zero or more")
            row = form.rate_rows + names.index(name)
            self._low[row] = self._high[row] = rate / form.row_height[row]
            self._rates[names.index(name)] = rate
            if self._highs is not None:
                self._highs.set_row(row, self._low[row], self._high[row])

    def _row_index(self) -> dict[tuple[int, int, Key], int]:
        form, pools = self.form, (*self.problem.pools(), self.problem.shared)
        if any(kind.count != pool.count for kind, pool in zip(self._kinds, pools, strict=False)):
            raise InputError(
                "nodes are merged into kinds here; build with merged=False to change one"
            )
        return {
            (int(w), int(k), pools[w].keys[r]): row
            for row, (w, k, r) in enumerate(zip(form.pool, form.kind, form.key, strict=True))
        }

    # ---- solving ------------------------------------------------------------------------------

    def _now(self) -> Form:
        """Return the form with the capacities and rates of now."""
        return replace(self.form, low=self._low, high=self._high)

    def _first(self) -> matrix.Raw:
        if self._backend == "matrix":
            if self._highs is None:
                self._highs = matrix.Highs(self._now())
            return self._highs.solve()
        solver: reference.Solver = "cbc" if self._backend == "cbc" else "highs"
        raw = reference.solve(
            self.problem, self._pair(), self.form, solver, locality=self._locality
        )
        if raw.status == "missing":
            raise SolverError(
                f"the {solver} solver cannot be run here; use --solver matrix or highs"
            )
        return raw

    def _among_best(self, form: Form, raw: matrix.Raw) -> Array:
        """Return, of all optima, one with the least peak utilisation of what has room left.

        For most requests that is the unpriced capacities that depend on the split, for least cost the
        nodes; least peak has it already.
        """
        if self._objective is Objective.LEAST_PEAK:
            return raw.x
        if self._objective is Objective.LEAST_COST:
            flattest = matrix.Highs(with_usage_peak(form, raw.cost)).solve()
            x = flattest.x[: len(raw.x)]
            same = flattest.status == "optimal" and form.cost @ x <= raw.cost * (1 + 1e-8)
            return x if same else raw.x  # at extreme scales rounding may leave no second choice
        room = form.sloped & (np.abs(raw.row_dual[: form.capacities]) <= _PRICED)
        if not room.any():
            return raw.x
        if self._relaxed is None:
            self._relaxed = _Relaxed(form, room, raw.cost)
        relaxed = self._relaxed.solve(form, room, raw.cost)
        return raw.x if relaxed is None else relaxed[: len(raw.x)]

    def _ranges(self) -> tuple[Array, Array]:
        solver = self._highs
        if solver is None:
            solver = matrix.Highs(self._now())
            solver.solve()
        return solver.ranges(self.form.capacities)

    # ---- reading back -------------------------------------------------------------------------

    def _solution(
        self,
        raw: matrix.Raw,
        x: Array,
        certificate: Certificate,
        limits: tuple[Array, Array] | None,
    ) -> LinearSolution:
        form = self.form
        rate = np.maximum(x, 0.0) * form.unit
        cuts = np.cumsum(form.flows)
        flows = []
        for kind, part in zip(self._kinds, np.split(rate[: cuts[1]], cuts[:1]), strict=True):
            of_kind = part.reshape(kind.count, self.problem.classes, PATHS)
            flows.append(of_kind[kind.kind] * kind.part[:, None, None])
        value = raw.cost * self._value_unit()
        if self._objective is Objective.MOST_REQUESTS:
            fixed = float(np.nansum(self._rates))
            value = fixed - value
            if not fixed:  # what the second objective gave away, at most SLACK
                flows = [flow * (value / flow.sum()) for flow in flows]
        return LinearSolution(
            objective=self._objective,
            value=value,
            class_names=self.problem.names,
            prefill=flows[0],
            decode=flows[1],
            rows=self._rows(raw, flows, limits),
            certificate=certificate,
        )

    def _rows(
        self, raw: matrix.Raw, flows: list[Array], limits: tuple[Array, Array] | None
    ) -> tuple[Row, ...]:
        """Spread each kind's rows over its nodes: a node has its part of the kind's price."""
        form = self.form
        most = self._objective is Objective.MOST_REQUESTS
        factor = self._high[: form.capacities] if most else np.ones(form.capacities)
        price = -raw.row_dual[: form.capacities] * self._value_unit() / form.level
        low, high = limits if limits is not None else (np.full(form.capacities, np.nan),) * 2
        pools: tuple[PoolUse, ...] = (*self.problem.pools(), self.problem.shared)
        leads = [*flows, flows[0].sum(axis=0, keepdims=True)]
        found: list[Row] = []
        for where, (pool, lead) in enumerate(zip(pools, leads, strict=True)):
            own = where < len(POOLS)
            kind = self._kinds[where].kind if own else np.zeros(1, dtype=np.int64)
            part = self._kinds[where].part if own else np.ones(1)
            row_of = np.full((int(kind.max()) + 1, len(pool.keys)), -1)
            mine = np.flatnonzero(form.pool == where)
            row_of[form.kind[mine], form.key[mine]] = mine
            rows = row_of[kind]  # (nodes, keys)
            n, r = np.nonzero(rows >= 0)
            row, capacity = rows[n, r], pool.capacity[n, r]
            used = np.einsum("nrkp,nkp->nr", pool.use, lead)[n, r]
            dual = price[row] * part[n] / capacity
            if not most:
                dual = -dual * used  # a row's bound is its capacity times the peak
            found += map(
                Row,
                n.tolist() if own else [None] * len(n),
                [pool.keys[i] for i in r.tolist()],
                (capacity * factor[row]).tolist(),
                (used / factor[row]).tolist(),
                dual.tolist(),
                (low[row] * capacity).tolist(),
                (high[row] * capacity).tolist(),
            )
        return tuple(found)

    def _value_unit(self) -> float:
        if self._objective is Objective.MOST_REQUESTS:
            return float(self.form.unit[self.form.mix]) if self.form.mix is not None else 0.0
        return self.form.level * self._price_unit

    def _without_answer(self, status: str) -> DualPathError:
        """Say in words why there is no optimum."""
        if status == "infeasible":
            return InfeasibleError(
                conflicts.explain(
                    replace(self.problem, rate=self._rates), self._pair(), self._locality
                )
            )
        if status == "unbounded":
            return InputError(
                f"nothing limits the classes {', '.join(self.problem.names)}: no resource in `limits` "
                f"serves them; name one that does"
            )
        return SolverError(f"the {self._backend} solver ended with '{status}'; try another solver")


class _Relaxed:
    """The second solve, kept for the next time: lowest peak among the optima of the first."""

    def __init__(self, form: Form, room: Mask, best: float) -> None:
        self._form = with_peak(form, room, best=best)
        self._room, self._high = room.copy(), form.high.copy()
        self._highs = matrix.Highs(self._form)  # bounds that change later are set again

    def solve(self, form: Form, room: Mask, best: float) -> Array | None:
        """Return the flows, or None where rounding left no room for the second objective."""
        capacities = slice(form.capacities)
        changed = (room != self._room) | (form.high[capacities] != self._high[capacities])
        peak = self._form.matrix.shape[1] - 1
        for row in map(int, np.flatnonzero(changed)):
            self._highs.set_entry(row, peak, -form.high[row] if room[row] else 0.0)
            self._highs.set_row(row, -np.inf, 0.0 if room[row] else form.high[row])
        self._room, self._high = room.copy(), form.high.copy()
        for row in range(form.rate_rows, form.matrix.shape[0]):
            self._highs.set_row(row, form.low[row], form.high[row])
        self._highs.set_row(self._form.matrix.shape[0] - 1, -np.inf, best + SLACK * abs(best))
        raw = self._highs.solve()
        return raw.x if raw.status == "optimal" else None


def solve(
    loads: Loads,
    *,
    decode_reads: bool = True,
    backend: Backend = "auto",
    ranges: bool = False,
) -> LinearSolution:
    """Maximise requests/s of one workload on a cluster; ``decode_reads`` False is Basic."""
    return CapacityProgram(loads, backend, decode_reads=decode_reads).solve(ranges=ranges)


def solve_classes(
    classes: Sequence[TrafficClass],
    *,
    objective: Objective = Objective.MOST_REQUESTS,
    backend: Backend = "auto",
    zones: tuple[Sequence[int], Sequence[int]] | None = None,
    prices: tuple[Sequence[float], Sequence[float]] | None = None,
    ranges: bool = False,
) -> LinearSolution:
    """Solve for several classes at once. ``zones`` (of prefill, of decode nodes) switches locality on.

    Raises InputError for impossible shares or rates, InfeasibleError if fixed rates cannot be met.
    """
    program = CapacityProgram(
        from_classes(classes, zones),
        backend,
        objective=objective,
        locality=zones is not None,
        prices=prices,
    )
    return program.solve(ranges=ranges)
