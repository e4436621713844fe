"""The linear program: the best assignment of reads to nodes and paths, with the price of each resource.

Variables (requests/s), one pair a node and read path:

* ``read[p]``, ``pull[p]``: requests prefilled on node p whose hits take the prefill / decode read path;
* ``keep[d]``, ``send[d]``: requests decoded on node d whose hits took the prefill / decode read path.

Every capacity of every node bounds its load, so do those of the cluster; both paths balance over the
pools (sum read = sum keep, sum pull = sum send); the sum of all is maximised. Any such flow can be
routed between the pools, because a request's load on its prefill node does not depend on which decode
node it gets. A second solve picks, among the optima, one with the least peak utilisation of the
capacities that have no price; nodes that are alike then share their load evenly, which keeps it optimal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dualpath_model.errors import DualPathError
from dualpath_model.loads import Loads, NodeLoad
from dualpath_model.paths import Key, Pool
from solvers._quiet import silence_highs

if TYPE_CHECKING:
    import pulp

Backend = Literal["highs", "cbc"]


class SolverError(DualPathError):
    """The solver stopped without an optimum, which a well-formed capacity LP always has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One capacity of one node (``node`` is its position in the pool, None for the cluster).

    ``dual_value``: requests/s gained for each unit of capacity more, while the optimal basis holds.
    """

    node: int | None
    key: Key
    capacity: float
    utilisation: float
    dual_value: float


@dataclass(frozen=True)
class LinearSolution:
    """The optimum. Flows are requests/s by node: (prefill-read path, decode-read path)."""

    throughput: float
    split: float
    prefill_flows: tuple[tuple[float, float], ...]
    decode_flows: tuple[tuple[float, float], ...]
    rows: tuple[Row, ...]

    @property
    def binding(self) -> tuple[Row, ...]:
        """Return the capacities that are used up, within 1e-7."""
        return tuple(row for row in self.rows if row.utilisation > 1 - 1e-7)

    def row(self, key: Key, node: int | None = None) -> Row:
        """Return the row of one capacity."""
        return next(row for row in self.rows if row.key == key and row.node == node)


@dataclass(frozen=True, slots=True)
class _Limit:
    """``on_prefill_read * a + on_decode_read * b <= capacity`` over the flows a, b of one node."""

    node: int | None
    key: Key
    on_prefill_read: float
    on_decode_read: float
    capacity: float

    @property
    def sloped(self) -> bool:
        return self.on_prefill_read != self.on_decode_read


def _limits(node: int | None, demand: Any, capacity: Mapping[Key, float]) -> list[_Limit]:
    at_zero, at_one = demand.at(0.0), demand.at(1.0)
    return [
        _Limit(node, key, float(at_zero[key]), float(at_one[key]), rate)
        for key, rate in capacity.items()
        if key in at_zero and (at_zero[key] or at_one[key])
    ]


class CapacityProgram:
    """The LP of one cluster and workload; :meth:`solve` may be called with and without decode reads."""

    def __init__(self, loads: Loads, backend: Backend = "highs") -> None:
        """Gather the limits of every node. Flows are scaled to a typical rate, rows to capacity 1."""
        self._backend = backend
        self._groups: dict[Pool, tuple[NodeLoad, ...]] = {
            Pool.PREFILL: loads.prefill,
            Pool.DECODE: loads.decode,
        }
        self._limits: dict[Pool, list[list[_Limit]]] = {}
        for pool, group_list in self._groups.items():
            by_node: dict[int, list[_Limit]] = {}
            for group in group_list:
                for node in group.positions:
                    by_node[node] = _limits(node, group.demand, group.capacity)
            self._limits[pool] = [by_node[node] for node in sorted(by_node)]
        self._shared = _limits(None, loads.shared_demand, loads.shared_capacity)
        every = [limit for nodes in self._limits.values() for node in nodes for limit in node]
        self._scale = float(
            np.median(
                [
                    limit.capacity / max(limit.on_prefill_read, limit.on_decode_read)
                    for limit in every
                ]
            )
        )

    def solve(self, *, decode_reads: bool = True) -> LinearSolution:
        """Maximise requests/s. ``decode_reads=False`` is Basic: all hits read on the prefill side."""
        first = self._build(decode_reads)
        first.problem.setObjective(-1.0 * first.total)
        self._run(first.problem)
        throughput = float(first.total.value()) * self._scale
        duals = [-self._scale * float(constraint.pi or 0.0) for constraint in first.constraints]
        flows = self._relax(duals, throughput, decode_reads)
        return self._solution(throughput, flows, first.limits, duals)

    def _build(self, decode_reads: bool) -> _Model:
        import pulp

        problem = pulp.LpProblem("capacity", pulp.LpMinimize)  # of what is not wanted
        most = None if decode_reads else 0.0
        flows: dict[Pool, list[tuple[Any, Any]]] = {}
        for pool, nodes in self._limits.items():
            flows[pool] = [
                (
                    problem.add_variable(f"{pool}{i}_prefill_read", lowBound=0.0),
                    problem.add_variable(f"{pool}{i}_decode_read", lowBound=0.0, upBound=most),
                )
                for i in range(len(nodes))
            ]
        on_path = [
            {pool: pulp.lpSum(node[path] for node in flows[pool]) for pool in flows}
            for path in (0, 1)
        ]
        for balance in on_path:
            problem += balance[Pool.PREFILL] == balance[Pool.DECODE]
        limits: list[_Limit] = []
        loads: list[Any] = []
        for pool, nodes in self._limits.items():
            for (a, b), node_limits in zip(flows[pool], nodes, strict=True):
                for limit in node_limits:
                    limits.append(limit)
                    loads.append(self._load(limit, a, b))
        for limit in self._shared:
            limits.append(limit)
            loads.append(self._load(limit, on_path[0][Pool.PREFILL], on_path[1][Pool.PREFILL]))
        constraints = []
        for load in loads:
            constraint = load <= 1.0
            problem += constraint
            constraints.append(constraint)
        total = on_path[0][Pool.PREFILL] + on_path[1][Pool.PREFILL]
        return _Model(problem, total, flows, limits, loads, constraints)

    def _load(self, limit: _Limit, a: Any, b: Any) -> Any:
        unit = self._scale / limit.capacity
        return limit.on_prefill_read * unit * a + limit.on_decode_read * unit * b

    def _relax(
        self, duals: list[float], throughput: float, decode_reads: bool
    ) -> dict[Pool, np.ndarray[Any, np.dtype[np.float64]]]:
        """Among the optima take the one whose unpriced, split-dependent capacities peak lowest."""
        model = self._build(decode_reads)
        problem = model.problem
        peak = problem.add_variable("peak", lowBound=0.0)
        problem += model.total >= throughput / self._scale * (1 - 1e-10)
        for limit, load, dual in zip(model.limits, model.loads, duals, strict=True):
            if limit.sloped and dual * limit.capacity <= 1e-9 * throughput:
                problem += load <= peak
        problem.setObjective(1.0 * peak)
        self._run(problem)
        flows: dict[Pool, np.ndarray[Any, np.dtype[np.float64]]] = {}
        for pool, nodes in model.flows.items():
            values = np.array([[a.value() or 0.0, b.value() or 0.0] for a, b in nodes]).clip(
                min=0.0
            )
            for group in self._groups[pool]:  # likes share evenly: still optimal, by convexity
                values[list(group.positions)] = values[list(group.positions)].mean(axis=0)
            flows[pool] = values * (throughput / values.sum())
        return flows

    def _run(self, problem: pulp.LpProblem) -> None:
        import pulp

        if self._backend == "cbc":
            # The CBC that PuLP ships; pulp[cbc] would bring another one of 600 MB.
            solver = pulp.COIN_CMD(msg=False, path=pulp.PULP_CBC_CMD.pulp_cbc_path)
        else:
            silence_highs()
            solver = pulp.HiGHS(msg=False, threads=1)
        problem.solve(solver)
        status = pulp.LpStatus[problem.status]
        if status != "Optimal":
            raise SolverError(f"the {self._backend} solver ended with '{status}' on a capacity LP")

    def _solution(
        self,
        throughput: float,
        flows: dict[Pool, np.ndarray[Any, np.dtype[np.float64]]],
        limits: list[_Limit],
        duals: list[float],
    ) -> LinearSolution:
        prices = self._share_prices(limits, duals)
        totals = flows[Pool.PREFILL].sum(axis=0)
        rows = []
        for limit, price in zip(limits, prices, strict=True):
            a, b = totals if limit.node is None else flows[limit.key.pool][limit.node]
            used = (limit.on_prefill_read * a + limit.on_decode_read * b) / limit.capacity
            rows.append(Row(limit.node, limit.key, limit.capacity, float(used), price))
        return LinearSolution(
            throughput=throughput,
            split=float(totals[1] / totals.sum()),
            prefill_flows=tuple((float(a), float(b)) for a, b in flows[Pool.PREFILL]),
            decode_flows=tuple((float(a), float(b)) for a, b in flows[Pool.DECODE]),
            rows=tuple(rows),
        )

    def _share_prices(self, limits: list[_Limit], duals: list[float]) -> list[float]:
        """Duals per unit of capacity, averaged over nodes that are alike (still dual optimal)."""
        price = {
            (limit.node, limit.key): dual / limit.capacity
            for limit, dual in zip(limits, duals, strict=True)
        }
        for group_list in self._groups.values():
            for group in group_list:
                for key in group.capacity:
                    alike = [(node, key) for node in group.positions if (node, key) in price]
                    if alike:
                        mean = sum(price[name] for name in alike) / len(alike)
                        price |= dict.fromkeys(alike, mean)
        return [price[limit.node, limit.key] for limit in limits]


@dataclass(frozen=True)
class _Model:
    problem: Any
    total: Any
    flows: dict[Pool, list[tuple[Any, Any]]]
    limits: list[_Limit]
    loads: list[Any]
    constraints: list[Any]


def solve(loads: Loads, *, decode_reads: bool = True, backend: Backend = "highs") -> LinearSolution:
    """Solve the capacity LP of ``loads``; see :class:`CapacityProgram`."""
    return CapacityProgram(loads, backend).solve(decode_reads=decode_reads)
