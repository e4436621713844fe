"""The check of the aggregated LP: flows of every (prefill node, decode node) pair, nothing merged.

``P x D`` times as many variables as the aggregated program and the same optimum: a request's load on
its prefill node does not depend on its decode node. For small clusters and for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from dualpath_model.errors import InputError
from solvers.form import Form, Objective
from solvers.matrix import Highs
from solvers.problem import PATHS, Array, Problem

_MOST_FLOWS = 2_000_000


@dataclass(frozen=True, eq=False)
class PairSolution:
    """``flows`` in requests/s, (prefill nodes, decode nodes, classes, paths).

    ``value``: requests/s, or the peak, or the cost, by objective.
    """

    status: str
    value: float
    flows: Array


def solve(
    problem: Problem,
    *,
    locality: bool = False,
    objective: Objective = Objective.MOST_REQUESTS,
    prices: tuple[Array, Array] | None = None,
) -> PairSolution:
    """Solve over pair flows. With ``locality`` a decode-read pair must share a zone.

    ``prices`` (prefill nodes, decode nodes) are for LEAST_COST. Raises InputError if there are more
    than two million flows.
    """
    p, d, classes = problem.prefill.count, problem.decode.count, problem.classes
    shape = (p, d, classes, PATHS)
    size = int(np.prod(shape))
    if size > _MOST_FLOWS:
        raise InputError(
            f"{p} x {d} nodes and {classes} classes make {size:,} pair flows, more than "
            f"{_MOST_FLOWS:,}; use solvers.linear, which has the same optimum"
        )
    at = np.arange(size).reshape(shape)
    rows: list[sparse.csr_matrix] = []
    node_of: list[int] = []  # of each capacity row; -1: the cluster
    for where, pool in enumerate(problem.pools()):
        for n in range(pool.count):
            columns = at[n] if where == 0 else at[:, n]  # (others, classes, paths)
            rows += [
                _row(columns, np.broadcast_to(use, columns.shape), size + 1)
                for use in pool.use[n]
                if use.any()
            ]
            node_of += [n + where * p] * (len(rows) - len(node_of))
    rows += [
        _row(at, np.broadcast_to(u, shape), size + 1) for u in problem.shared.use[0] if u.any()
    ]
    capacities = len(rows)
    node_of += [-1] * (capacities - len(node_of))
    fixed = np.nan_to_num(problem.rate)
    for k in range(classes):
        share = 0.0 if np.isnan(problem.share[k]) else problem.share[k]
        columns = np.append(at[:, :, k].ravel(), size)
        rows.append(_row(columns, np.append(np.ones(columns.size - 1), -share), size + 1))
    most = np.full(size + 1, np.inf)
    if locality:
        apart = problem.prefill.zone[:, None] != problem.decode.zone[None, :]
        most[at[:, :, :, 1][apart].ravel()] = 0.0
    # Scale flows to what the slowest-filling single flow could be, as the aggregated form does.
    matrix = sparse.csr_matrix(sparse.vstack(rows))
    scale = 1.0 / float(abs(matrix[:capacities]).max(axis=1).toarray().mean())
    low = np.concatenate((np.full(capacities, -np.inf), fixed / scale))
    high = np.concatenate((np.ones(capacities), fixed / scale))
    body = sparse.csr_matrix(
        sparse.diags(np.concatenate((np.full(capacities, scale), np.ones(classes)))) @ matrix
    )
    cost = np.zeros(size + 1)
    cost[size] = -1.0
    if objective is not Objective.MOST_REQUESTS:
        peak = objective is Objective.LEAST_PEAK
        paid = np.zeros(capacities, dtype=np.int64) if peak else np.array(node_of)
        price = np.ones(1) if peak or prices is None else np.concatenate(prices)
        on = np.flatnonzero(paid >= 0)
        entries = (np.full(on.size, -1.0), (on, paid[on]))
        used = sparse.csr_matrix(entries, shape=(body.shape[0], price.size))
        body, high[on] = sparse.csr_matrix(sparse.hstack([body, used])), 0.0
        cost = np.concatenate((np.zeros(size + 1), price))
        most = np.append(most, np.full(price.size, np.inf if peak else 1.0))
    none = np.zeros(0, dtype=np.int64)
    form = Form(
        *(body, low, high, cost, most, np.full(len(cost), scale)),
        *(none, none, none, np.zeros(0, dtype=bool)),
        flows=(size, 0),
        mix=size,
        rate_rows=capacities,
        row_height=np.ones(len(low)),
    )
    answer = Highs(form).solve()
    flows = (
        answer.x[:size].reshape(shape) * scale if answer.status == "optimal" else np.zeros(shape)
    )
    value = float(flows.sum()) if objective is Objective.MOST_REQUESTS else answer.cost
    return PairSolution(answer.status, value, flows)


def _row(columns: npt.NDArray[Any], values: Array, width: int) -> sparse.csr_matrix:
    flat = np.asarray(columns).ravel()
    return sparse.csr_matrix(
        (np.asarray(values).ravel(), (np.zeros(flat.size, int), flat)), (1, width)
    )
