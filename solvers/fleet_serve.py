"""What a given fleet serves in a case, as a share of what is asked: a small LP over kinds, not nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dualpath_model.paths import Pool
from solvers.fleet_parts import Loss
from solvers.fleet_question import Array, Counts, Question
from solvers.fleet_uses import Uses
from solvers.problem import PATHS, POOLS


def after(counts: Counts, loss: Loss) -> Counts:
    """Return the counts that a loss leaves."""
    left = counts.copy()
    for kind, pool, nodes in loss:
        left[kind, pool] = max(0, left[kind, pool] - nodes)
    return left


def losses(counts: Counts, survive: int) -> Iterator[Loss]:
    """Yield every way to lose ``survive`` nodes of the fleet, nodes of a kind and role being alike.

    Of a fleet that has no more than that: the loss of them all.
    """
    there = [(int(i), int(p), int(counts[i, p])) for i, p in np.argwhere(counts > 0)]

    def choose(first: int, left: int) -> Iterator[Loss]:
        if left == 0 or first == len(there):
            if left == 0:
                yield ()
            return
        kind, pool, have = there[first]
        for nodes in range(min(have, left) + 1):
            for rest in choose(first + 1, left - nodes):
                yield ((kind, pool, nodes), *rest) if nodes else rest

    if survive:
        yield from choose(0, min(survive, int(counts.sum())))


def served(
    question: Question,
    uses: Uses,
    counts: Counts,
    case: int,
    rate: float,
    *,
    alone: Pool | None = None,
) -> float:
    """Return the factor by which the case's rates could grow (or must shrink) on these nodes.

    The margins count: 1 means that what is asked is served with them. 0 where a pool is empty or its
    GPUs do not hold the LLM. ``alone``: only this pool's own capacities limit.
    """
    from scipy.optimize import linprog

    asked = question.rates(question.cases[case], rate)
    if not asked.any():
        return math.inf
    chosen: list[tuple[int, float]] = []  # option, nodes
    for p, pool in enumerate(POOLS):
        here = _taking_part(question, uses, counts, p)
        if not here:
            return 0.0
        gpus = sum(int(counts[i, p]) * question.kinds[i].node.gpus for i in here)
        for i in here:
            fit = [o for o in uses.of(i, pool) if uses.options[o].least_gpus <= gpus]
            chosen.append((fit[-1], float(counts[i, p])))
    classes, paths = len(asked), PATHS if uses.decode_reads else 1
    scale = np.where(asked > 0, asked, 1.0)
    width = classes * paths
    columns = len(chosen) * width + 1
    upper: list[Array] = []
    balance = np.zeros((width, columns))
    rate_rows = np.zeros((classes, columns))
    shared = np.zeros((uses.shared.shape[1], columns))
    for j, (o, nodes) in enumerate(chosen):
        option = uses.options[o]
        own = slice(j * width, (j + 1) * width)
        limits = alone is None or option.pool is alone
        whole = nodes * question.margins[POOLS.index(option.pool)]
        for row in option.use[case] if limits else ():
            line = np.zeros(columns)
            line[own] = (row[:, :paths] * scale[:, None]).ravel() / whole
            upper.append(line)
        sign = 1.0 if option.pool is POOLS[0] else -1.0
        balance[:, own] = sign * np.eye(width)
        if sign > 0:
            rate_rows[:, own] = np.kron(np.eye(classes), np.ones(paths))
            if alone is None:
                part = uses.shared[case][:, :, :paths] * scale[:, None] / min(question.margins)
                shared[:, own] = part.reshape(len(shared), width)
    rate_rows[:, -1] = -asked / scale
    equal = np.vstack((balance, rate_rows))
    cost = np.zeros(columns)
    cost[-1] = -1.0
    found = linprog(
        cost,
        A_ub=np.vstack((*upper, shared)),
        b_ub=np.ones(len(upper) + len(shared)),
        A_eq=equal,
        b_eq=np.zeros(len(equal)),
        method="highs",
    )
    if found.status == 3:
        return math.inf
    return float(-found.fun)


def _taking_part(question: Question, uses: Uses, counts: Counts, p: int) -> list[int]:
    """Return the kinds of a pool whose GPUs hold the LLM, experts spread over those of all of them."""
    here = [i for i in np.flatnonzero(counts[:, p]).tolist() if uses.of(i, POOLS[p])]
    while True:
        gpus = sum(int(counts[i, p]) * question.kinds[i].node.gpus for i in here)
        fit = [i for i in here if uses.options[uses.of(i, POOLS[p])[0]].least_gpus <= gpus]
        if fit == here:
            return here
        here = fit
