"""The bottleneck-free range of P/D in symbols: section 4.2 of the paper, and the same with all traffic.

Both are one argument. With the storage NICs of both sides saturated, what every other capacity carries
is affine in P/D (decode side) or in D/P (prefill side); asking that it fits bounds P/D from one side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sympy
from sympy import Expr, Max, Min, Symbol

from dualpath_model.paths import PAPER, Key, Payload, Pool, Resource, StepTable
from solvers.symbolic import (
    COUNT,
    SNIC_D,
    SNIC_P,
    B,
    D,
    P,
    Rate,
    T_c,
    T_p,
    Weights,
    g,
    paper_rate,
    weights,
)

# P/D, and whichever of it and its inverse a load is affine in, while being solved for
_rho, _z = sympy.symbols("rho z", positive=True)


def hits_only(table: StepTable = PAPER) -> StepTable:
    """Return the table of the paper's analysis."""
    return table.carrying(Payload.HIT)


# ---- section 4.2: a PE-DE pair -------------------------------------------------------------------


def pair_load(key: Key, weight: Weights) -> Expr:
    """Return the load in T_p and T_c on one GPU's compute NIC, or on a node's SNIC or DRAM.

    A PE is paired with the D g engines of the decode nodes, a DE with the P g of the prefill nodes;
    what belongs to a node serves its g engines.
    """
    partners = (D if key.pool is Pool.PREFILL else P) * g
    engines = 1 if key.resource is Resource.CNIC else g
    return (weight.prefill * T_p + weight.decode * T_c) * partners * engines


def pair_capacity(key: Key) -> Expr:
    """Return the capacity that bounds :func:`pair_load`: B for one compute NIC."""
    return B if key.resource is Resource.CNIC else paper_rate(key)


def pair_rates(table: StepTable = PAPER) -> dict[Symbol, Expr]:
    """Return T_p and T_c with the storage NICs of both sides saturated: equations (1) and (2)."""
    weight = weights(hits_only(table))
    saturated = [sympy.Eq(pair_load(key, weight[key]), paper_rate(key)) for key in (SNIC_P, SNIC_D)]
    (found,) = sympy.solve(saturated, [T_p, T_c], dict=True)
    return dict(found)


# ---- conditions on P/D ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RatioCondition:
    """``load <= capacity`` and what it says of P/D; None: no bound on that side.

    ``own <= limit`` is what remains of the condition as P/D grows: it must hold (strictly, for ``low``
    to be finite) or no ratio will do. None where there is a ``high``: it then is part of that.
    """

    load: Expr
    capacity: Expr
    low: Expr | None = None
    high: Expr | None = None
    own: Expr | None = None
    limit: Expr | None = None


def solve_ratio(load: Expr, capacity: Expr) -> RatioCondition:
    """Solve ``load <= capacity`` for P/D. Raises ValueError unless affine in P/D or in D/P."""
    in_ratio = sympy.expand(load.subs(P, _rho * D))
    rises = bool(sympy.diff(in_ratio, _rho).is_nonnegative)
    ratio = P / D if rises else D / P
    affine = in_ratio.subs(_rho, _z if rises else 1 / _z)
    constant, per_ratio = affine.coeff(_z, 0), affine.coeff(_z, 1)
    if sympy.expand(affine - constant - per_ratio * _z) != 0 or in_ratio.has(D):
        raise ValueError(f"{load} is affine neither in P/D nor in D/P")
    tidy = sympy.collect(sympy.factor(affine), _z).subs(_z, ratio)
    room, own, other = _reduced(capacity, constant, per_ratio)
    if per_ratio == 0:
        return RatioCondition(tidy, capacity, own=own, limit=room)
    if rises:
        return RatioCondition(tidy, capacity, high=(room - own) / other)
    return RatioCondition(tidy, capacity, low=other / (room - own), own=own, limit=room)


def _reduced(*terms: Expr) -> tuple[Expr, ...]:
    """Multiply by the common denominator and divide by the common factor."""
    denominator = sympy.lcm_list([sympy.denom(sympy.together(term)) for term in terms])
    whole = [sympy.cancel(term * denominator) for term in terms]
    factor = sympy.gcd_list(whole)
    return tuple(sympy.factor(sympy.cancel(term / factor)) for term in whole)


def paper_conditions(table: StepTable = PAPER) -> dict[Key, RatioCondition]:
    """Return the loads (3)-(8) of section 4.2 and what each asks of P/D, in the paper's order."""
    rates = pair_rates(table)
    return {
        key: solve_ratio(pair_load(key, weight).subs(rates), pair_capacity(key))
        for key, weight in weights(hits_only(table)).items()
        if key.resource in (Resource.CNIC, Resource.DRAM)
    }


def traffic_load(key: Key, weight: Weights, rate: Rate = paper_rate) -> Expr:
    """Return the load on one node (or on what the cluster shares) with all storage NICs saturated.

    The prefill pool then reads P S_p hit bytes a second, the decode pool D S_d, and all traffic
    of a request comes with its hits: ``weight`` bytes for each.
    """
    flow = weight.prefill * P * rate(SNIC_P) + weight.decode * D * rate(SNIC_D)
    return flow / COUNT[key.pool]


def traffic_conditions(
    table: StepTable = PAPER, rate: Rate = paper_rate
) -> dict[Key, RatioCondition]:
    """Return each node capacity's condition on P/D with miss, hand-off and write-back traffic.

    The storage NICs' arrivals are left out (they are what is saturated), and so is what the cluster
    shares (it bounds the number of nodes, see :func:`shared_conditions`).
    """
    return {
        key: solve_ratio(traffic_load(key, weight, rate), rate(key))
        for key, weight in weights(table).items()
        if key.pool is not Pool.CLUSTER and key not in (SNIC_P, SNIC_D)
    }


def shared_conditions(table: StepTable = PAPER) -> dict[Key, RatioCondition]:
    """Return load and capacity of the fabric and the storage service: no bound on P/D alone."""
    return {
        key: RatioCondition(
            sympy.collect(sympy.factor(traffic_load(key, weight)), [P, D]), paper_rate(key)
        )
        for key, weight in weights(table).items()
        if key.pool is Pool.CLUSTER
    }


@dataclass(frozen=True, slots=True)
class RatioRange:
    """What all conditions together allow: ``low <= P/D <= high``, if each ``own < limit`` holds."""

    low: Expr
    high: Expr


def ratio_range(conditions: Iterable[RatioCondition]) -> RatioRange:
    """Return the intersection of conditions on P/D."""
    found = list(conditions)
    lows = [c.low for c in found if c.low is not None]
    highs = [c.high for c in found if c.high is not None]
    return RatioRange(
        low=Max(*lows, evaluate=False) if len(lows) > 1 else sympy.Add(*lows),
        high=Min(*highs, evaluate=False) if highs else sympy.oo,
    )
