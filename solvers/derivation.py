"""The derivation as numbered equations; :mod:`solvers.derivation_text` prints them.

(1)-(9) are section 4.2 of the paper, in its order; what follows goes beyond it with the same table.
:mod:`solvers.symbolic` and :mod:`solvers.symbolic_range` derive the expressions; here each gets a
number, a title and a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable

import sympy
from sympy import Symbol

from dualpath_model.errors import InfeasibleError
from dualpath_model.paths import PAPER, Direction, Key, Pool, Resource, StepTable
from solvers import symbolic as sy
from solvers import symbolic_range as sr
from solvers.statements import LAM_IJ, SPEEDUP, X_IJ, X_STAR, Chain, Equation, chain

PAPER_SOURCE = "arXiv 2602.21548, section 4.2"
BEYOND = "beyond the paper, from the same step table"


def equations(table: StepTable = PAPER) -> tuple[Equation, ...]:
    """Return the whole derivation for a step table, in order.

    Raises InfeasibleError, with the reason, for a table to which the paper's argument does not apply.
    """
    if table.no_range is not None:
        raise InfeasibleError(table.no_range)
    return (*_pairs(table), *_paper(table), *_demands(table), *_throughput(table), *_beyond(table))


def _label(key: Key) -> str:
    """Name a capacity as the paper does: "PE CNIC read", "DE DRAM"."""
    side = {Pool.PREFILL: "PE ", Pool.DECODE: "DE ", Pool.CLUSTER: ""}[key.pool]
    resource = key.resource.value.replace("_", " ")
    name = resource if " " in resource or key.pool is Pool.CLUSTER else resource.upper()
    way = "" if key.direction is Direction.BOTH else f" {key.direction}"
    return f"{side}{name}{way}"


def _on_ratio(found: sr.RatioCondition) -> tuple[Chain, tuple[Chain, ...]]:
    """Return what a condition says of P/D, and what it needs whatever P/D is."""
    ratio = sy.P / sy.D
    if found.high is not None:
        return chain(ratio, "<=", found.high), ()
    if found.low is not None:
        return chain(ratio, ">=", found.low), (chain(found.own, "<", found.limit),)
    return chain(found.own, "<=", found.limit), ()


def _range(
    number: int, found: Iterable[sr.RatioCondition], source: str, title: str, meaning: str
) -> Equation:
    conditions = list(found)
    both = sr.ratio_range(conditions)
    needs: list[Chain] = []
    for condition in conditions:
        solved, provided = _on_ratio(condition)
        if condition.low is None and condition.high is None:
            needs.append(solved)
        needs += provided
    return Equation(
        number=str(number),
        title=title,
        meaning=meaning,
        source=source,
        statement=chain(both.low, "<=", sy.P / sy.D, "<=", both.high),
        provided=tuple(dict.fromkeys(needs)),
    )


def _pairs(table: StepTable) -> list[Equation]:
    rates = sr.pair_rates(table)
    return [
        Equation(
            str(number),
            f"{side} read rate of a PE-DE pair",
            f"A {side} node's storage NIC, saturated, is shared by its g engines, and each engine's "
            f"part by the {partners} engines of the other side.",
            PAPER_SOURCE,
            chain(symbol, "=", rates[symbol]),
        )
        for number, symbol, side, partners in (
            (1, sy.T_p, "prefill", "D g"),
            (2, sy.T_c, "decode", "P g"),
        )
    ]


def _paper(table: StepTable) -> list[Equation]:
    found = sr.paper_conditions(table)
    weights = sy.weights(sr.hits_only(table))
    listed = []
    for number, (key, condition) in enumerate(found.items(), start=3):
        solved, provided = _on_ratio(condition)
        where = "one GPU's compute NIC" if key.resource is Resource.CNIC else "one node's DRAM"
        listed.append(
            Equation(
                number=str(number),
                title=_label(key),
                meaning=f"Load on {where} with the storage NICs of both sides saturated by hits.",
                source=PAPER_SOURCE,
                statement=chain(
                    sr.pair_load(key, weights[key]), "=", condition.load, "<=", condition.capacity
                ),
                condition=solved,
                provided=provided,
                key=key,
            )
        )
    listed.append(
        _range(
            3 + len(found),
            found.values(),
            PAPER_SOURCE,
            "bottleneck-free range, hits only",
            "Within it both sides' storage NICs can be saturated before anything else is.",
        )
    )
    return listed


def _demands(table: StepTable) -> list[Equation]:
    return [
        Equation(
            number=f"10.{index}",
            title=_label(key),
            meaning="Bytes that one request moves over this capacity at split x.",
            source=BEYOND,
            statement=chain(Symbol(f"L_{index}"), "=", amount),
            key=key,
        )
        for index, (key, amount) in enumerate(sy.load_at(table).items(), start=1)
    ]


def _throughput(table: StepTable) -> list[Equation]:
    split, storage = sy.storage_bound(table)
    basic = sy.line(sy.SNIC_P, table)
    at_zero = basic.capacity / basic.base
    falling, rising = (
        sy.Line(*(Symbol(f"{letter}_{index}") for letter in "bkC")) for index in "ij"
    )
    crossing_split, crossing_rate = sy.crossing(falling, rising)
    keys = [key for key in sy.demand(table).base if key.resource in COUNTED]
    plain: list[tuple[str, str, Chain]] = [
        (
            "storage-bound split",
            "Where the storage NICs bind, the split follows the storage NICs; no payload enters.",
            chain(X_STAR, "=", split),
        ),
        (
            "storage-bound throughput",
            "All storage NICs together over the hit bytes of a request. Miss tokens and write-back do "
            "not lower it: they only use what is not a storage NIC's inward side.",
            chain(sy.lam, "=", storage),
        ),
        (
            "storage-bound speed-up over Basic",
            "Basic reads with the prefill side's storage NICs alone (x = 0).",
            chain(SPEEDUP, "=", sympy.factor(sympy.cancel(storage / at_zero))),
        ),
        (
            "throughput at split x",
            "The scarcest of the capacities that section 4.2 counts, with all traffic.",
            chain(sy.lam, "=", sy.throughput_at(keys, table)),
        ),
        (
            "split where two capacities meet",
            "A request takes b + k x of a capacity C of its pool, falling in i and rising in j.",
            chain(X_IJ, "=", crossing_split),
        ),
        (
            "throughput where two capacities meet",
            "An upper bound at any split: moving reads off one of the two fills the other.",
            chain(LAM_IJ, "=", crossing_rate),
        ),
    ]
    listed = [
        Equation(str(number), title, meaning, BEYOND, statement)
        for number, (title, meaning, statement) in enumerate(plain, start=11)
    ]
    for index, limit in enumerate(sy.throughput_limits(keys, table), start=1):
        listed.append(
            Equation(
                number=f"17.{index}",
                title=_limit_title(limit),
                meaning="The throughput at the best split is the least of all (17).",
                source=BEYOND,
                statement=chain(sy.lam, "<=", limit.throughput),
                key=limit.level or limit.falling or limit.rising,
            )
        )
    return listed


COUNTED = (Resource.SNIC, Resource.CNIC, Resource.DRAM)
"""What section 4.2 counts; the other capacities of the table have conditions of their own in (19)."""


def _limit_title(limit: sy.Limit) -> str:
    if limit.level is not None:
        return f"{_label(limit.level)}, at any split"
    if limit.falling is not None and limit.rising is not None:
        return f"{_label(limit.falling)} with {_label(limit.rising)}"
    if limit.falling is not None:
        return f"{_label(limit.falling)}, even at x = 1"
    assert limit.rising is not None
    return f"{_label(limit.rising)}, even at x = 0"


def _beyond(table: StepTable) -> list[Equation]:
    found = sr.traffic_conditions(table)
    listed = [
        Equation(
            number="18",
            title="a third resource binds before storage",
            meaning="Exactly where a resource of N_r nodes has less than this a node, if it carries "
            "p_r bytes for each hit byte read by prefill and d_r for each one read by decode.",
            source=BEYOND,
            statement=chain(Symbol("C_r"), "<", sy.third_resource(table)),
        )
    ]
    for index, (key, condition) in enumerate(found.items(), start=1):
        solved, provided = _on_ratio(condition)
        listed.append(
            Equation(
                number=f"19.{index}",
                title=_label(key),
                meaning="Load on a node with the storage NICs of both sides saturated, all traffic; "
                "if it is more than the node has, this binds before storage.",
                source=BEYOND,
                statement=chain(condition.load, "<=", condition.capacity),
                condition=solved,
                provided=provided,
                key=key,
            )
        )
    listed.append(
        _range(
            20,
            (c for key, c in found.items() if key.resource in COUNTED),
            BEYOND,
            "bottleneck-free range, all traffic",
            "Equation (9) with miss hand-off and write-back, and the storage NICs' outward side.",
        )
    )
    listed += [
        Equation(
            number=f"21.{index}",
            title=_label(key),
            meaning="What the cluster shares bounds the number of nodes, not their ratio.",
            source=BEYOND,
            statement=chain(condition.load, "<=", condition.capacity),
            key=key,
        )
        for index, (key, condition) in enumerate(sr.shared_conditions(table).items(), start=1)
    ]
    return listed
