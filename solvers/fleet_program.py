"""The integer program: counts of nodes of each kind in each role, and flows that they can serve.

Nodes that are alike have one block of capacity rows, and the capacity is count times one node's, so
with the counts as variables the assignment problem stays linear: ``use . flow <= count``. Every case
of the forecast, and every loss of nodes that is asked for, has flows of its own over the same counts.

A loss takes nodes away only where there are some: ``max(0, count - lost)`` is written with binaries
``left[t]`` = "at least t nodes". Expert degrees (:mod:`solvers.fleet_uses`) have binaries "the pool has
at least so many GPUs"; degrees that the pool surely reaches (``floor``) need none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dualpath_model.errors import DualPathError, InputError
from solvers._quiet import silence_highs
from solvers.fleet_flows import serve
from solvers.fleet_parts import Answer, Built, Goal, Loss, Wish
from solvers.fleet_question import Question
from solvers.fleet_uses import Uses
from solvers.problem import POOLS


def solve(question: Question, uses: Uses, wish: Wish) -> Answer:
    """Solve the program once.

    Raises InputError if nothing bounds the answer, DualPathError if HiGHS gives up.
    """
    import pulp

    silence_highs()
    model = pulp.LpProblem("fleet", pulp.LpMinimize)
    unit = rate_unit(question, uses, wish.rate)
    built = _counts(question, uses, wish, model)
    fixed = None if wish.rate is None else wish.rate / unit
    if wish.goal is Goal.MOST_RATE:
        most = None if wish.ceiling is None else wish.ceiling / unit
        built.rho = built.fresh("rate", lowBound=fixed or 0.0, upBound=most)
    else:
        built.rho = fixed or 0.0
    _limits(question, built)
    cost = _cost(question, built)
    if wish.cost is not None:
        model += cost <= wish.cost
    degrees: dict[tuple[Loss, int, int], Any] = {}
    for case, loss in wish.rows:
        serve(question, uses, built, wish, unit, case, loss, degrees)
    nodes = pulp.lpSum(built.count[i][p] for i in range(len(question.kinds)) for p in (0, 1))
    gpus = pulp.lpSum(
        kind.node.gpus * row[wish.pool]
        for kind, row in zip(question.kinds, built.count, strict=True)
    )
    objectives = {
        Goal.LEAST_COST: cost,
        Goal.MOST_RATE: -1.0 * built.rho,
        Goal.FEWEST_NODES: nodes,
        Goal.FEWEST_GPUS: gpus,
    }
    model.setObjective(1.0 * objectives[wish.goal])
    return _run(model, built, wish, unit)


def _run(model: Any, built: Built, wish: Wish, unit: float) -> Answer:
    import pulp

    tight = {"primal_feasibility_tolerance": 1e-9, "mip_feasibility_tolerance": 1e-9}
    solver = pulp.HiGHS(
        mip=not wish.relaxed,
        msg=False,
        threads=1,
        gapRel=wish.gap,
        gapAbs=0.0,
        timeLimit=wish.time_s,
        **tight,
    )
    model.solve(solver)
    status = pulp.LpStatus[model.status]
    shape = (len(built.count), len(POOLS))
    if status == "Infeasible":
        return Answer("infeasible", np.zeros(shape, dtype=np.int64))
    if status == "Unbounded":
        raise InputError(
            "nothing bounds the rate: no resource limits it; name one that does in resources"
        )
    counted = [v for row in built.count for v in row if not isinstance(v, int)]
    # No count may be a variable: then the limits leave no node at all, and that is an answer.
    if counted[0].value() is None if counted else status != "Optimal":
        raise DualPathError(
            f"the solver ended with '{status}' and no fleet; allow more time or a larger gap"
        )
    counts = np.array(
        [[0 if isinstance(v, int) else round(v.value() or 0.0) for v in row] for row in built.count]
    )
    info = model.solverModel.getInfo()
    value, bound = float(info.objective_function_value), float(info.mip_dual_bound)
    if wish.goal is Goal.MOST_RATE:
        value, bound = -value * unit, -bound * unit
    return Answer("optimal", counts.astype(np.int64), value, bound)


# ---- counts and limits ---------------------------------------------------------------------------


def rate_unit(question: Question, uses: Uses, rate: float | None) -> float:
    """Return the requests/s that the rate is counted in, so that the matrix's entries are near 1."""
    if rate:
        return rate
    share = np.nan_to_num(question.share)
    if not share.any():
        return 1.0
    busiest = [float(o.use[0].max(axis=(0, 2)) @ share) for o in uses.options if o.use.size]
    return 1.0 / min((b for b in busiest if b > 0), default=1.0)


def most_nodes(question: Question, uses: Uses, wish: Wish) -> list[list[int]]:
    """Return how many nodes of each kind and role an answer can have at most.

    For a given rate no more than serve it alone, lost ones and the GPUs for the experts included; else
    what budget, power, racks and nodes allow. Raises InputError where nothing bounds a kind.
    """
    found = []
    for i, kind in enumerate(question.kinds):
        bounds = [b for b in (kind.maximum, question.limits.nodes) if b is not None]
        if question.limits.power_kw is not None and kind.power_kw:
            bounds.append(math.floor(question.limits.power_kw / kind.power_kw + 1e-9))
        if question.limits.racks is not None and kind.per_rack:
            bounds.append(question.limits.racks * kind.per_rack)
        if wish.cost is not None and kind.price > 0:
            bounds.append(kind.owned + math.floor(wish.cost / kind.price + 1e-9))
        row = []
        for pool in POOLS:
            mine = uses.of(i, pool)
            if not mine:
                row.append(0)
                continue
            own = list(bounds)
            highest = wish.ceiling if wish.goal is Goal.MOST_RATE else wish.rate or 0.0
            if highest is not None:
                option = uses.options[mine[-1]]
                alone = max(
                    float(
                        option.use[s].max(axis=(0, 2), initial=0.0) @ question.rates(case, highest)
                    )
                    for s, case in enumerate(question.cases)
                )
                spare = question.limits.survive + -(-option.least_gpus // kind.node.gpus)
                own.append(
                    max(
                        kind.minimum, math.ceil(alone / question.margins[POOLS.index(pool)]) + spare
                    )
                )
            if not own:
                raise InputError(
                    f"nothing bounds how many of '{kind.name}' are taken: it costs nothing; give it a "
                    f"maximum, or limits.nodes"
                )
            row.append(min(own))
        found.append(row)
    return found


def _counts(question: Question, uses: Uses, wish: Wish, model: Any) -> Built:
    most = most_nodes(question, uses, wish)
    built = Built(model, 0.0, [], most)
    lost: dict[tuple[int, int], int] = {}
    for _, loss in wish.rows:
        for i, p, nodes in loss:
            lost[i, p] = max(nodes, lost.get((i, p), 0))
    for i in range(len(question.kinds)):
        row: list[Any] = []
        for p in range(len(POOLS)):
            if most[i][p] == 0:
                row.append(0)
                continue
            count = built.fresh(f"count_{i}_{p}", lowBound=0, upBound=most[i][p], cat="Integer")
            row.append(count)
            if (i, p) in lost:
                steps = [built.fresh("left", cat="Binary") for _ in range(lost[i, p])]
                for t, step in enumerate(steps):
                    model += count <= t + (most[i][p] - t) * step
                    if t:
                        model += step <= steps[t - 1]
                model += count >= sum(steps)
                built.left[i, p] = steps
        built.count.append(row)
    return built


def _limits(question: Question, built: Built) -> None:
    import pulp

    model, limits = built.model, question.limits
    totals = [row[0] + row[1] for row in built.count]
    for kind, total in zip(question.kinds, totals, strict=True):
        if isinstance(total, int):
            if kind.minimum > 0:
                _impossible(built)
            continue
        if kind.maximum is not None:
            model += total <= kind.maximum
        if kind.minimum:
            model += total >= kind.minimum
    if limits.nodes is not None:
        model += pulp.lpSum(totals) <= limits.nodes
    if limits.power_kw is not None:
        drawn = [kind.power_kw or 0.0 for kind in question.kinds]
        model += pulp.lpSum(kw * t for kw, t in zip(drawn, totals, strict=True)) <= limits.power_kw
    if limits.racks is not None:
        _few_racks(question, built, limits.racks)
    if limits.kinds is not None:
        _few_kinds(built, built.count, built.most, limits.kinds)
    if limits.kinds_per_role is not None:
        for p in range(len(POOLS)):
            counts, most = ([row[p : p + 1] for row in rows] for rows in (built.count, built.most))
            _few_kinds(built, counts, most, limits.kinds_per_role)
    if limits.places is not None:
        _few_places(question, built, limits.places)


def _few_racks(question: Question, built: Built, most_racks: int) -> None:
    """Add: racks, each of one kind, hold all nodes."""
    import pulp

    racks = []
    for kind, row in zip(question.kinds, built.count, strict=True):
        total = row[0] + row[1]
        if not isinstance(total, int):
            racks.append(built.fresh("racks", lowBound=0, upBound=most_racks, cat="Integer"))
            built.model += total <= (kind.per_rack or 1) * racks[-1]
    built.model += pulp.lpSum(racks) <= most_racks


def _few_kinds(built: Built, counts: list[Any], mosts: list[Any], most_kinds: int) -> None:
    import pulp

    used = []
    for row, most in zip(counts, mosts, strict=True):
        counted = [(c, m) for c, m in zip(row, most, strict=True) if not isinstance(c, int)]
        if counted:
            used.append(built.fresh("used", cat="Binary"))
        for count, bound in counted:
            built.model += count <= bound * used[-1]
    built.model += pulp.lpSum(used) <= most_kinds


def _few_places(question: Question, built: Built, most_places: int) -> None:
    """Add: nodes of kinds with a place stand in few places."""
    import pulp

    places = dict.fromkeys(kind.place for kind in question.kinds if kind.place is not None)
    if len(places) <= most_places:
        return
    used = {place: built.fresh("place", cat="Binary") for place in places}
    for kind, counts, most in zip(question.kinds, built.count, built.most, strict=True):
        if kind.place is not None:
            for count, bound in zip(counts, most, strict=True):
                if not isinstance(count, int):
                    built.model += count <= bound * used[kind.place]
    built.model += pulp.lpSum(used.values()) <= most_places


def _impossible(built: Built) -> None:
    never = built.fresh("never", lowBound=0.0, upBound=0.0)
    built.model += never >= 1


def _cost(question: Question, built: Built) -> Any:
    """Return USD/h as an expression; owned nodes are used first, where they are the cheaper ones."""
    import pulp

    parts = []
    for kind, row in zip(question.kinds, built.count, strict=True):
        total = row[0] + row[1]
        if isinstance(total, int):
            continue
        if not kind.owned or kind.owned_price > kind.price:
            parts.append(kind.price * total)
            continue
        bought = built.fresh("bought", lowBound=0.0)
        built.model += bought >= total - kind.owned
        parts.append(kind.owned_price * total + (kind.price - kind.owned_price) * bought)
    return pulp.lpSum(parts)
