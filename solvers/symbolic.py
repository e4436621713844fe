"""The model in symbols: demands, crossings and throughput bounds, derived from the step table.

Nothing here is typed in that :data:`paths.PAPER` already says: counts of passages come from
:func:`loads.movement` with one byte of each payload, and every condition is solved for, not stated.
:mod:`solvers.symbolic_range` has the conditions on P/D, :mod:`solvers.derivation` numbers it all.
The numeric code that they must equal is :mod:`closed_form` and :mod:`solvers.real_traffic`.

Letters are the paper's. The generated KV-cache is ``o`` (for output) because ``g`` is GPUs a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
from sympy import Expr, Max, Min, Rational, Symbol

from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import Demand, movement
from dualpath_model.paths import PAPER, Direction, Key, Payload, Pool, Resource, StepTable

P, D, g, B, s, M, H, W, F, Q = sympy.symbols("P D g B s M H W F Q", positive=True)
R = Symbol("R", positive=True)
m, a, o, x = sympy.symbols("m a o x", nonnegative=True)
mu, alpha, gamma = sympy.symbols("mu alpha gamma", nonnegative=True)
p_r, d_r, N_r = sympy.symbols("p_r d_r N_r", positive=True)
T_p, T_c, lam = sympy.symbols("T_p T_c lam", positive=True)

MEANING: dict[Symbol, str] = {
    P: "prefill nodes",
    D: "decode nodes",
    g: "GPUs a node, one compute NIC each",
    B: "bandwidth of a compute NIC, per direction, bytes/s",
    s: "bandwidth of a node's storage NIC, in units of B",
    M: "DRAM bandwidth of a node, reads and writes together, bytes/s",
    H: "host link of a node, per direction, bytes/s",
    W: "HBM bandwidth of a node, reads and writes together, bytes/s",
    F: "compute network between the pools, per direction, bytes/s",
    Q: "storage service as a whole, per direction, bytes/s",
    R: "KV-cache of the hit tokens, bytes a request",
    m: "KV-cache of the miss tokens, bytes a request",
    a: "the miss tokens' KV-cache as it is stored, bytes a request",
    o: "the generated tokens' KV-cache as it is stored, bytes a request",
    mu: "m/R",
    alpha: "a/R",
    gamma: "o/R",
    x: "split: fraction of R that is read through decode nodes",
    T_p: "rate of one PE-DE pair on the prefill read path, bytes/s",
    T_c: "rate of one PE-DE pair on the decode read path, bytes/s",
    lam: "requests/s",
}
PAYLOADS: dict[Payload, Symbol] = {
    Payload.HIT: R,
    Payload.MISS: m,
    Payload.APPENDED: a,
    Payload.GENERATED: o,
}
RATIOS: dict[Symbol, Symbol] = {m: mu, a: alpha, o: gamma}
"""Payloads in units of R: miss traffic and write-back relative to what is read."""

SNIC_P = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
SNIC_D = Key(Pool.DECODE, Resource.SNIC, Direction.IN)
COUNT: dict[Pool, Expr] = {Pool.PREFILL: P, Pool.DECODE: D, Pool.CLUSTER: sympy.Integer(1)}
_PAPER_RATE: dict[Resource, Expr] = {
    Resource.SNIC: s * B,
    Resource.CNIC: g * B,
    Resource.DRAM: M,
    Resource.HOST_LINK: H,
    Resource.HBM: W,
    Resource.FABRIC: F,
    Resource.STORAGE: Q,
}


def paper_rate(key: Key) -> Expr:
    """Return the rate of one node (or of what the cluster shares) in the paper's letters, bytes/s."""
    return _PAPER_RATE[key.resource]


def own_rate(key: Key) -> Symbol:
    """Return a letter for this capacity alone: nodes of the two pools may then differ."""
    words = f"{key.pool}_{key.resource}_{key.direction}".replace(" ", "_").replace("+", "_")
    return Symbol(f"C_{words}", positive=True)


Rate = Callable[[Key], Expr]


def reading_order(keys: Iterable[Key]) -> list[Key]:
    """Sort as the paper's table: by resource, prefill before decode, read before write."""
    resources, pools = list(Resource), list(Pool)
    return sorted(
        keys, key=lambda k: (resources.index(k.resource), pools.index(k.pool), k.direction.value)
    )


# ---- what a request asks -------------------------------------------------------------------------


@lru_cache
def demand(table: StepTable = PAPER) -> Demand:
    """Return the bytes that one request moves over each capacity, in R, m, a and o; split as usual."""
    base: dict[Key, Expr] = {}
    slope: dict[Key, Expr] = {}
    for payload, amount in PAYLOADS.items():
        unit = movement(table, {payload: 1.0})
        for part, whole in ((unit.base, base), (unit.slope, slope)):
            for key, count in part.items():
                whole[key] = whole.get(key, 0) + Rational(float(count)) * amount
    return Demand({key: base[key] for key in reading_order(base)}, slope)


def load_at(table: StepTable = PAPER) -> dict[Key, Expr]:
    """Return the bytes per request at split x, as the table of docs/model.md prints them."""
    return {key: _in_payloads(amount) for key, amount in demand(table).at(x).items()}


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes over one capacity per hit byte read, if it is read by prefill or by decode."""

    prefill: Expr
    decode: Expr


def weights(table: StepTable = PAPER) -> dict[Key, Weights]:
    """Return each capacity's bytes per hit byte on each path, in mu, alpha and gamma."""
    asked = demand(table)
    in_hits = {letter: ratio * R for letter, ratio in RATIOS.items()}

    def per_hit(amount: Expr) -> Expr:
        return sympy.expand(amount.subs(in_hits) / R)

    return {
        key: Weights(per_hit(base), per_hit(base + asked.slope.get(key, 0)))
        for key, base in asked.base.items()
    }


# ---- split and throughput ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes a request ``base + slope x`` on a capacity of a whole pool."""

    base: Expr
    slope: Expr
    capacity: Expr

    def height(self, split: Expr) -> Expr:
        """Return the share of the capacity that one request a second uses."""
        return (self.base + self.slope * split) / self.capacity


def line(key: Key, table: StepTable = PAPER, rate: Rate = paper_rate) -> Line:
    """Return a capacity's line, with all traffic of ``table``."""
    asked = demand(table)
    return Line(
        asked.base[key], sympy.sympify(asked.slope.get(key, 0)), COUNT[key.pool] * rate(key)
    )


def crossing(falling: Line, rising: Line) -> tuple[Expr, Expr]:
    """Return split and throughput where two lines meet: x_ij and lambda_ij of the closed form."""
    (split,) = sympy.solve(sympy.Eq(falling.height(x), rising.height(x)), x)
    above, below = sympy.fraction(sympy.factor(split))
    return sympy.expand(above) / below, sympy.factor(sympy.cancel(1 / falling.height(split)))


def storage_bound(table: StepTable = PAPER, rate: Rate = paper_rate) -> tuple[Expr, Expr]:
    """Return x* and requests/s where the storage NICs of both sides are all that binds.

    Raises InfeasibleError for a table whose paths do not each read on their own side: no split then
    shares the reads between the two.
    """
    if table.no_range is not None:
        raise InfeasibleError(table.no_range)
    return crossing(line(SNIC_P, table, rate), line(SNIC_D, table, rate))


def throughput_at(keys: Iterable[Key], table: StepTable = PAPER, rate: Rate = paper_rate) -> Expr:
    """Return the most requests/s at split x that the capacities ``keys`` allow."""
    lines = (line(key, table, rate) for key in keys)
    return Min(
        *(one.capacity / _in_payloads(one.base + one.slope * x) for one in lines), evaluate=False
    )


def _in_payloads(amount: Expr) -> Expr:
    return sympy.collect(sympy.expand(amount), list(PAYLOADS.values()))


@dataclass(frozen=True, slots=True)
class Limit:
    """One of the bounds of which the throughput bound is the least.

    ``falling`` alone: at x = 1; ``rising`` alone: at x = 0; both: where they cross; ``level``: anywhere.
    """

    throughput: Expr
    falling: Key | None = None
    rising: Key | None = None
    level: Key | None = None


def throughput_limits(
    keys: Iterable[Key], table: StepTable = PAPER, rate: Rate = paper_rate
) -> tuple[Limit, ...]:
    """Return every bound on the requests/s at the best split (docs/model.md, sections 3 and 4).

    Level lines, falling lines at x = 1, rising lines at x = 0, and all crossings of a falling with a
    rising line; bounds that are infinite are left out.
    """
    lines = {key: line(key, table, rate) for key in keys}
    falling = {key: one for key, one in lines.items() if one.slope.is_negative}
    rising = {key: one for key, one in lines.items() if one.slope.is_positive}
    found = [
        *(Limit(one.capacity / one.base, level=k) for k, one in lines.items() if one.slope == 0),
        *(
            Limit(one.capacity / (one.base + one.slope), falling=k)
            for k, one in falling.items()
            if one.base + one.slope != 0
        ),
        *(Limit(one.capacity / one.base, rising=k) for k, one in rising.items() if one.base != 0),
    ]
    found += [
        Limit(crossing(down, up)[1], falling=i, rising=j)
        for i, down in falling.items()
        for j, up in rising.items()
    ]
    return tuple(found)


def throughput_bound(
    keys: Iterable[Key], table: StepTable = PAPER, rate: Rate = paper_rate
) -> Expr:
    """Return the most requests/s at the best split: the least of :func:`throughput_limits`."""
    # One over the greatest share, not the least bound: a payload of zero bytes then divides nothing.
    shares = (1 / found.throughput for found in throughput_limits(keys, table, rate))
    return 1 / Max(*shares, evaluate=False)


def third_resource(table: StepTable = PAPER) -> Expr:
    """Return the rate below which a third resource binds before storage, for any weights.

    With p and d bytes a hit byte on the two paths it carries ``lambda (p (1 - x) + d x) R``; at the
    storage-bound x* and lambda that must be within N C.
    """
    split, rate = storage_bound(table)
    load = R * (p_r + (d_r - p_r) * split) * rate
    return sympy.collect(sympy.factor(sympy.cancel(load / N_r)), [P, D])


# ---- numbers -------------------------------------------------------------------------------------

_Numbers = Mapping[Symbol, Any]


def evaluate(expression: Expr, values: _Numbers) -> Any:
    """Return an expression's value; ``values`` may be arrays, which broadcast.

    Raises ValueError if a symbol has no value.
    """
    needed = sorted(sympy.sympify(expression).free_symbols, key=str)
    missing = [str(symbol) for symbol in needed if symbol not in values]
    if missing:
        raise ValueError(f"no value given for {', '.join(missing)}; give one for each symbol")
    return _compiled(expression, tuple(needed))(*(values[symbol] for symbol in needed))


@lru_cache(maxsize=256)
def _compiled(expression: Expr, symbols: tuple[Symbol, ...]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = sympy.lambdify(symbols, expression, modules="numpy")
    return compiled
