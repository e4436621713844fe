"""The rows of the integer program in which requests flow: nodes that are left serve a case's rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from solvers.fleet_parts import Built, Loss, Wish
from solvers.fleet_question import Question
from solvers.fleet_uses import Uses
from solvers.problem import PATHS, POOLS


def available(uses: Uses, floor: tuple[int, int]) -> list[int]:
    """Return the options worth having: of those that the pool surely has GPUs for, the last.

    More GPUs hold more experts together, so they leave more room for KV-cache on each.
    """
    kept = []
    for number, option in enumerate(uses.options):
        sure = floor[POOLS.index(option.pool)]
        mine = uses.of(option.kind, option.pool)
        later = [j for j in mine if j > number and uses.options[j].least_gpus <= sure]
        if not later:
            kept.append(number)
    return kept


def serve(
    question: Question,
    uses: Uses,
    built: Built,
    wish: Wish,
    unit: float,
    case: int,
    loss: Loss,
    degrees: dict[tuple[Loss, int, int], Any],
) -> None:
    """Add: what is left of the fleet serves the case's rates."""
    import pulp

    model = built.model
    what = question.cases[case]
    ones = np.ones(len(question.share))
    share = what.factors * np.nan_to_num(question.share) * unit
    fixed = what.factors * question.fixed
    scale = np.where(share + fixed > 0, share + fixed, ones)  # a flow of 1 is a class's whole rate
    flows: dict[tuple[int, int, int], Any] = {}
    floor = _left_of(question, wish.floor, loss)
    chosen = [
        o
        for o in available(uses, floor)
        if built.most[uses.options[o].kind][POOLS.index(uses.options[o].pool)]
    ]
    classes, paths = range(len(ones)), range(PATHS if uses.decode_reads else 1)
    for o in chosen:
        for k in classes:
            for q in paths:
                flows[o, k, q] = built.fresh("flow", lowBound=0.0)
    for p in range(len(POOLS)):
        _pool_rows(question, uses, built, floor, case, loss, p, chosen, flows, scale, degrees)
    sides = [[o for o in chosen if uses.options[o].pool is pool] for pool in POOLS]
    for k in classes:
        for q in paths:
            model += pulp.lpSum(flows[o, k, q] for o in sides[0]) == pulp.lpSum(
                flows[o, k, q] for o in sides[1]
            )
        asked = float(share[k] / scale[k]) * built.rho + float(fixed[k] / scale[k])
        model += pulp.lpSum(flows[o, k, q] for o in sides[0] for q in paths) >= asked
    for row in uses.shared[case]:
        used = [
            float(row[k, q] * scale[k] / min(question.margins)) * flows[o, k, q]
            for o in sides[0]
            for k in classes
            for q in paths
            if row[k, q]
        ]
        if used:
            model += pulp.lpSum(used) <= 1.0


def _left_of(question: Question, floor: tuple[int, int], loss: Loss) -> tuple[int, int]:
    """Return the GPUs that each pool surely has after a loss."""
    left = list(floor)
    for kind, pool, nodes in loss:
        left[pool] -= nodes * question.kinds[kind].node.gpus
    return max(0, left[0]), max(0, left[1])


def _taking_part(
    question: Question,
    uses: Uses,
    built: Built,
    floor: tuple[int, int],
    lost_here: Loss,
    p: int,
    there: dict[int, Any],
) -> Any:
    """Leave out of ``there`` nodes whose GPUs cannot hold the LLM in so small a pool; return its GPUs.

    Without a loss no such node may be in the fleet at all. After one, they stay idle, and the experts
    are spread over the GPUs of the others.
    """
    import pulp

    model = built.model
    asked = []
    for i in list(there):
        least = uses.options[uses.of(i, POOLS[p])[0]].least_gpus
        if least <= floor[p]:
            continue
        known = built.part.get((lost_here, i, p))
        if known is None:
            fits = built.fresh("fits", cat="Binary")
            known = there[i]
            if lost_here:
                known = built.fresh("part", lowBound=0.0, upBound=built.most[i][p])
                model += known <= there[i]
            model += known <= built.most[i][p] * fits
            built.part[lost_here, i, p] = known
            asked.append((least, fits))
        there[i] = known
    gpus = pulp.lpSum(question.kinds[i].node.gpus * count for i, count in there.items())
    for least, fits in asked:
        model += least * fits <= gpus
    return gpus


def _pool_rows(
    question: Question,
    uses: Uses,
    built: Built,
    floor: tuple[int, int],
    case: int,
    loss: Loss,
    p: int,
    chosen: Sequence[int],
    flows: dict[tuple[int, int, int], Any],
    scale: Any,
    degrees: dict[tuple[Loss, int, int], Any],
) -> None:
    """Add the capacity rows of a pool's nodes that are left after a loss."""
    import pulp

    model = built.model
    mine = [o for o in chosen if uses.options[o].pool is POOLS[p]]
    there: dict[int, Any] = {}
    for i in dict.fromkeys(uses.options[o].kind for o in mine):
        gone = sum(nodes for kind, pool, nodes in loss if (kind, pool) == (i, p))
        there[i] = built.count[i][p] - sum(built.left[i, p][:gone]) if gone else built.count[i][p]
    lost_here = tuple(part for part in loss if part[1] == p)
    gpus = _taking_part(question, uses, built, floor, lost_here, p, there)
    for i, count in there.items():
        options = [o for o in mine if uses.options[o].kind == i]
        capacity: dict[int, Any] = {}
        for o in options:
            least = uses.options[o].least_gpus
            if least <= floor[p]:
                capacity[o] = count
                continue
            key = (lost_here, p, least)
            if key not in degrees:
                degrees[key] = built.fresh("gpus", cat="Binary")
                model += least * degrees[key] <= gpus
            capacity[o] = built.fresh("nodes", lowBound=0.0, upBound=built.most[i][p])
            model += capacity[o] <= built.most[i][p] * degrees[key]
        if len(options) > 1 or capacity[options[0]] is not count:
            named = []
            for o in options:
                if capacity[o] is count:
                    capacity[o] = built.fresh("nodes", lowBound=0.0)
                named.append(capacity[o])
            model += pulp.lpSum(named) <= count
        for o in options:
            for row in uses.options[o].use[case]:
                used = [
                    float(row[k, q] * scale[k] / question.margins[p]) * flow
                    for (option, k, q), flow in flows.items()
                    if option == o and row[k, q]
                ]
                if used:
                    model += pulp.lpSum(used) <= capacity[o]
