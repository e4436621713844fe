"""The derivation: the paper's inequalities as typed from it, and numbers equal to the numeric code."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import orjson
import pytest
import sympy
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sympy import Rational, simplify

from app.derive import derive_data, derive_text
from dualpath_model import closed_form
from dualpath_model.cluster import Node, movement_capacity
from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import Demand, movement
from dualpath_model.paths import PAPER, Direction, Key, Payload, Phase, Pool, Resource
from dualpath_model.scenario import load_scenario
from solvers import symbolic as sy
from solvers.derivation import COUNTED, equations
from solvers.derivation_text import to_data, to_latex, to_text
from solvers.real_traffic import ratio_range, real_traffic_range
from solvers.statements import Chain, Equation
from solvers.symbolic import B, D, M, P, R, T_c, T_p, a, alpha, evaluate, g, gamma, m, mu, o, s, x
from solvers.symbolic_range import (
    hits_only,
    pair_rates,
    paper_conditions,
    solve_ratio,
    traffic_conditions,
)
from tests.strategies import EFFICIENCIES, nodes

DERIVATION = equations()
BY_NUMBER = {equation.number: equation for equation in DERIVATION}
PAPER_VALUES = {g: 8, s: 1, M: 500 * 10**9, B: 50 * 10**9}
EXAMPLES = Path(__file__).parents[2] / "examples"


def key(pool: Pool, resource: Resource, direction: Direction) -> Key:
    return Key(pool, resource, direction)


PE, DE = Pool.PREFILL, Pool.DECODE
CNIC, DRAM = Resource.CNIC, Resource.DRAM
READ, WRITE, BOTH = Direction.READ, Direction.WRITE, Direction.BOTH


def same(left: sympy.Expr, right: sympy.Expr) -> bool:
    return bool(simplify(left - right) == 0)


# ---- section 4.2, each expected side typed from the paper ----------------------------------------


def test_1_prefill_pair_rate() -> None:
    assert same(pair_rates()[T_p], B * s / (D * g**2))


def test_2_decode_pair_rate() -> None:
    assert same(pair_rates()[T_c], B * s / (P * g**2))


def check(number: str, where: Key, in_pairs: sympy.Expr, load: sympy.Expr) -> Equation:
    """Compare an equation's load, in T_p and T_c and without, and return it."""
    equation = BY_NUMBER[number]
    assert equation.key == where
    first, second, capacity = equation.statement.terms
    assert equation.statement.signs == ("=", "<=")
    assert same(first, in_pairs)
    assert same(second, load)
    assert capacity == (M if where.resource is DRAM else B)
    return equation


def solved(equation: Equation) -> Chain:
    assert equation.condition is not None
    return equation.condition


def at_most(equation: Equation, bound: sympy.Expr) -> bool:
    """Whether the equation says P/D <= bound."""
    condition = solved(equation)
    return condition.signs == ("<=",) and same(
        condition.terms[1] - condition.terms[0], bound - P / D
    )


def test_3_pe_cnic_read() -> None:
    found = check("3", key(PE, CNIC, READ), 2 * T_p * D * g, 2 * B * s / g)
    left, right = solved(found).terms
    assert same((right - left) / 2, g / 2 - s)  # s <= g/2


def test_4_pe_cnic_write() -> None:
    found = check("4", key(PE, CNIC, WRITE), (T_p + T_c) * D * g, (B * s / g) * (1 + D / P))
    assert solved(found).signs == (">=",)
    assert same(solved(found).terms[0] - solved(found).terms[1], P / D - s / (g - s))
    assert [chain.text() for chain in found.provided] == ["s < g"]


def test_5_de_cnic_read() -> None:
    found = check("5", key(DE, CNIC, READ), (T_p + 2 * T_c) * P * g, (B * s / g) * (P / D + 2))
    assert at_most(found, (g - 2 * s) / s)


def test_6_de_cnic_write() -> None:
    found = check("6", key(DE, CNIC, WRITE), (2 * T_p + T_c) * P * g, (B * s / g) * (2 * P / D + 1))
    assert at_most(found, (g - s) / (2 * s))


def test_7_pe_dram() -> None:
    found = check("7", key(PE, DRAM, BOTH), 2 * T_p * D * g * g, 2 * s * B)
    left, right = solved(found).terms
    assert same(right - left, M - 2 * s * B)


def test_8_de_dram() -> None:
    pairs = (2 * T_p + 3 * T_c) * P * g * g
    found = check("8", key(DE, DRAM, BOTH), pairs, (3 + 2 * P / D) * B * s)
    assert at_most(found, (M / (B * s) - 3) / 2)


def test_9_range() -> None:
    low, ratio, high = BY_NUMBER["9"].statement.terms
    assert ratio == P / D
    assert same(low, s / (g - s))
    expected = [(g - 2 * s) / s, (g - s) / (2 * s), (M / (B * s) - 3) / 2]
    assert len(high.args) == len(expected)
    assert all(any(same(bound, one) for one in high.args) for bound in expected)


def test_9_is_one_seventh_to_seven_halves() -> None:
    low, _, high = BY_NUMBER["9"].statement.terms
    assert low.subs(PAPER_VALUES) == Rational(1, 7)
    assert high.subs(PAPER_VALUES) == Rational(7, 2)
    needs = [relation for c in BY_NUMBER["9"].provided for relation in c.relations]
    assert all(relation.subs(PAPER_VALUES) == sympy.true for relation in needs)


def test_the_paper_is_six_conditions() -> None:
    assert list(paper_conditions()) == [BY_NUMBER[str(number)].key for number in range(3, 9)]


# ---- beyond the paper ----------------------------------------------------------------------------


def test_storage_bound() -> None:
    split, throughput = sy.storage_bound()
    assert same(split, D / (P + D))
    assert same(throughput, (P + D) * s * B / R)
    assert same(BY_NUMBER["13"].statement.terms[1], (P + D) / P)


def test_range_with_all_traffic_is_the_papers_without_it() -> None:
    """Each load on a node is g or one times the paper's, whose CNIC is one GPU's."""
    nothing = {mu: 0, alpha: 0, gamma: 0}
    real = traffic_conditions()
    for where, condition in paper_conditions().items():
        engines = g if where.resource is CNIC else 1
        assert same(real[where].load.subs(nothing), condition.load * engines)
        for mine, theirs in ((real[where].low, condition.low), (real[where].high, condition.high)):
            if theirs is not None:
                assert mine is not None
                assert same(mine.subs(nothing), theirs)
    # Without miss tokens PE CNIC reads set no bound, but still have to fit.
    low = real[key(PE, CNIC, READ)].low
    assert low is not None
    assert low.subs(nothing) == 0


def test_range_with_all_traffic_by_hand() -> None:
    real = traffic_conditions()
    assert same(real[key(PE, CNIC, READ)].low, mu * s / (g - (2 + mu) * s))
    assert same(
        real[key(DE, CNIC, WRITE)].high,
        (g - (1 + 2 * mu + gamma) * s) / ((2 + 2 * mu + gamma) * s),
    )
    more = 2 * mu + alpha + 2 * gamma
    assert same(real[key(DE, DRAM, BOTH)].high, (M / (B * s) - 3 - more) / (2 + more))
    snic_out = real[key(DE, Resource.SNIC, Direction.OUT)]
    assert same(snic_out.high, 1 / (alpha + gamma) - 1)


def test_third_resource_is_what_each_condition_says() -> None:
    """Equation (18) with a capacity's weights is the load that (19) compares with it."""
    least = BY_NUMBER["18"].statement.terms[1]
    weights = sy.weights()
    for where, condition in traffic_conditions().items():
        values = {
            sy.p_r: weights[where].prefill,
            sy.d_r: weights[where].decode,
            sy.N_r: sy.COUNT[where.pool],
        }
        assert same(least.subs(values), condition.load)


def test_the_derivation_follows_the_step_table() -> None:
    """Without the hand-off, DE CNIC writes are decode start alone: P/D <= (g - s)/s."""
    table = PAPER.where(lambda step: step.phase is not Phase.HAND_OFF)
    found = paper_conditions(table)[key(DE, CNIC, WRITE)]
    assert same(found.high, (g - s) / s)
    assert same(paper_conditions()[key(DE, CNIC, WRITE)].high, (g - s) / (2 * s))


def test_a_load_that_is_no_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="affine neither in P/D nor in D/P"):
        solve_ratio(B * (P / D) ** 2, M)
    with pytest.raises(ValueError, match="affine neither in P/D nor in D/P"):
        solve_ratio(B * (P + D), M)


# ---- equal to the numeric code -------------------------------------------------------------------

KEYS = [where for where in sy.demand().base if where.resource in COUNTED]
positive = st.floats(0.01, 10.0).map(lambda value: round(value, 4))
amounts = st.fixed_dictionaries(dict.fromkeys(Payload, positive))
Amounts = dict[Payload, float]


def payload_values(payloads: Amounts) -> dict[sympy.Symbol, float]:
    return {sy.PAYLOADS[payload]: amount for payload, amount in payloads.items()}


@given(payloads=amounts, split=st.floats(0.0, 1.0))
def test_loads_equal_the_numeric_loads(payloads: Amounts, split: float) -> None:
    numeric = movement(PAPER, payloads).at(split)
    values = {**payload_values(payloads), x: split}
    symbolic = {where: evaluate(load, values) for where, load in sy.load_at().items()}
    assert symbolic.keys() == numeric.keys()
    for where, load in symbolic.items():
        assert_allclose(load, numeric[where], rtol=1e-12, atol=1e-12)


def test_evaluate_takes_arrays_and_names_what_is_missing() -> None:
    split = np.linspace(0.0, 1.0, 11)
    load = sy.load_at()[key(DE, DRAM, BOTH)]
    values = {R: 2.0, m: 0.5, a: 0.25, o: 0.125}
    assert_allclose(evaluate(load, {**values, x: split}), 2 * (2 + split) + 1.0 + 0.25 + 0.25)
    with pytest.raises(ValueError, match=r"no value given for x; give one"):
        evaluate(load, values)


BOUND = sy.throughput_bound(KEYS, rate=sy.own_rate)
AT_SPLIT = sy.throughput_at(KEYS, rate=sy.own_rate)
capacities = st.fixed_dictionaries(dict.fromkeys(KEYS, positive))


@given(amounts, capacities, st.integers(1, 40), st.integers(1, 40))
def test_bound_equals_the_closed_form(
    payloads: Amounts, capacity: dict[Key, float], prefill: int, decode: int
) -> None:
    pooled = {
        where: rate * (prefill if where.pool is PE else decode) for where, rate in capacity.items()
    }
    numeric = closed_form.solve(movement(PAPER, payloads), pooled)
    values = {**payload_values(payloads), P: prefill, D: decode}
    values |= {sy.own_rate(where): rate for where, rate in capacity.items()}
    assert_allclose(evaluate(BOUND, values), numeric.throughput, rtol=1e-9)
    if 0.0 < numeric.split < 1.0:
        at_split = evaluate(AT_SPLIT, {**values, x: float(numeric.split)})
        assert_allclose(at_split, numeric.throughput, rtol=1e-9)


@given(amounts, st.integers(1, 40), st.integers(1, 40), positive, positive)
def test_storage_bound_equals_the_closed_form(
    payloads: Amounts, prefill: int, decode: int, of_prefill: float, of_decode: float
) -> None:
    values = {**payload_values(payloads), P: prefill, D: decode}
    values |= {sy.own_rate(sy.SNIC_P): of_prefill, sy.own_rate(sy.SNIC_D): of_decode}
    pooled = {sy.SNIC_P: prefill * of_prefill, sy.SNIC_D: decode * of_decode}
    numeric = closed_form.solve(movement(PAPER, payloads), pooled)
    split, throughput = sy.storage_bound(rate=sy.own_rate)
    assert_allclose(evaluate(split, values), numeric.split, rtol=1e-12)
    assert_allclose(evaluate(throughput, values), numeric.throughput, rtol=1e-12)


REAL = traffic_conditions(rate=sy.own_rate)


@given(payloads=amounts, prefill=nodes(), decode=nodes())
def test_real_traffic_range_equals_the_symbolic_one(
    payloads: Amounts, prefill: Node, decode: Node
) -> None:
    assume(prefill.snics and decode.snics)
    capacity = movement_capacity(prefill, PE, EFFICIENCIES) | movement_capacity(
        decode, DE, EFFICIENCIES
    )
    hit = payloads[Payload.HIT]
    values = {sy.own_rate(where): rate for where, rate in capacity.items()}
    values |= {
        mu: payloads[Payload.MISS] / hit,
        alpha: payloads[Payload.APPENDED] / hit,
        gamma: payloads[Payload.GENERATED] / hit,
    }
    found = ratio_range(movement(PAPER, payloads), capacity)
    assert {c.key for c in found.conditions} == capacity.keys() & REAL.keys()
    for condition in found.conditions:
        symbolic = REAL[condition.key]
        room = math.inf
        if symbolic.own is not None and symbolic.limit is not None:
            room = evaluate(symbolic.limit - symbolic.own, values)
        if abs(room) < 1.0:  # bytes/s: which side of zero is rounding
            continue
        low = high = None
        if symbolic.low is not None:
            low = evaluate(symbolic.low, values)
        if symbolic.high is not None:
            high = max(0.0, evaluate(symbolic.high, values))
        low = math.inf if room < 0 else low
        assert_allclose(condition.low, 0.0 if low is None else low, rtol=1e-6)
        assert_allclose(condition.high, math.inf if high is None else high, rtol=1e-6, atol=1e-9)


# ---- real_traffic_range against brute force ------------------------------------------------------


def fits(demand: Demand, capacity: dict[Key, float], prefill: float, decode: float) -> bool:
    """Whether saturated storage NICs leave every other capacity at most full, by utilisation."""
    read = prefill * capacity[sy.SNIC_P], decode * capacity[sy.SNIC_D]
    per_request = float(demand.base[sy.SNIC_P])
    load = demand.at(read[1] / sum(read))
    rate = sum(read) / per_request
    return all(
        rate * float(load[where]) <= each * (prefill if where.pool is PE else decode) * (1 + 1e-9)
        for where, each in capacity.items()
        if where in load and where not in (sy.SNIC_P, sy.SNIC_D)
    )


RATIOS = sorted({Fraction(p, d) for p in range(1, 25) for d in range(1, 25)})


@given(payloads=amounts, prefill=nodes(), decode=nodes())
def test_range_against_a_scan_of_ratios(payloads: Amounts, prefill: Node, decode: Node) -> None:
    assume(prefill.snics and decode.snics)
    capacity = movement_capacity(prefill, PE, EFFICIENCIES) | movement_capacity(
        decode, DE, EFFICIENCIES
    )
    demand = movement(PAPER, payloads)
    found = ratio_range(demand, capacity)
    for ratio in RATIOS[::7]:
        near = min(abs(float(ratio) - found.low), abs(float(ratio) - found.high))
        if near > 1e-6 * float(ratio):
            held = fits(demand, capacity, ratio.numerator, ratio.denominator)
            assert held == found.holds(float(ratio))


@pytest.mark.parametrize(
    "name", ["deepseek-660b-2p4d", "ds-27b-1p1d", "dram-cache", "paper-analysis"]
)
def test_ranges_of_scenarios_against_a_scan(name: str) -> None:
    scenario = load_scenario(EXAMPLES / f"{name}.yaml")
    found = real_traffic_range(scenario)
    loads = scenario.loads()
    demand = loads.prefill[0].demand + loads.decode[0].demand
    capacity = {**loads.prefill[0].capacity, **loads.decode[0].capacity}
    moving = {where: rate for where, rate in capacity.items() if where.moves_kv}
    assert found.ratio == loads.prefill[0].count / loads.decode[0].count
    for ratio in RATIOS:
        counts = ratio.numerator, ratio.denominator
        assert fits(demand, moving, *counts) == found.traffic.holds(float(ratio))
        assert fits(demand, capacity, *counts) == found.serving.holds(float(ratio))


def test_storage_binds_exactly_inside_the_range() -> None:
    """The closed form's throughput reaches the storage NICs' inside ``traffic``, and only there."""
    scenario = load_scenario(EXAMPLES / "deepseek-660b-2p4d.yaml")
    found = real_traffic_range(scenario).traffic
    inside = 0
    for prefill, decode in [(2, 16), (2, 15), (2, 13), (2, 4), (6, 2), (17, 5), (24, 7), (7, 2)]:
        scaled = scenario.with_nodes(prefill, decode)
        demand, pooled = closed_form.of_loads(scaled.loads())
        moving = {where: rate for where, rate in pooled.items() if where.moves_kv}
        storage = (pooled[sy.SNIC_P] + pooled[sy.SNIC_D]) / float(demand.base[sy.SNIC_P])
        reached = float(closed_form.solve(demand, moving).throughput) > storage * (1 - 1e-9)
        assert reached == found.holds(prefill / decode), (prefill, decode)
        inside += reached
    assert inside == 4


def test_ds_660b_numbers() -> None:
    """Hits alone give the paper's range; real traffic moves its upper end, compute both ends."""
    found = real_traffic_range(load_scenario(EXAMPLES / "deepseek-660b-2p4d.yaml"))
    assert (found.hits.low, found.hits.high) == (1 / 7, 7 / 2)
    assert found.traffic.low == pytest.approx(1 / 7, rel=1e-12)
    assert 3.3 < found.traffic.high < 3.5
    assert found.traffic.holds(0.5)
    assert not found.serving.holds(0.5)


def test_hits_alone_equal_the_closed_forms_range(paper_node: Node) -> None:
    rates = (
        movement_capacity(paper_node, PE, EFFICIENCIES),
        movement_capacity(paper_node, DE, EFFICIENCIES),
    )
    expected = closed_form.bottleneck_free(PAPER, *rates)
    found = ratio_range(movement(hits_only(PAPER), {Payload.HIT: 3e9}), rates[0] | rates[1])
    assert_allclose((found.low, found.high), (expected.low, expected.high), rtol=1e-12)
    assert {c.key for c in found.conditions} == {c.key for c in expected.conditions}


def test_a_capacity_that_carries_nothing_sets_no_bound(paper_node: Node) -> None:
    capacity = movement_capacity(paper_node, PE, EFFICIENCIES) | movement_capacity(
        paper_node, DE, EFFICIENCIES
    )
    nothing = {Payload.APPENDED: 0.0, Payload.GENERATED: 0.0}
    found = ratio_range(movement(PAPER, {Payload.HIT: 1.0, **nothing}), capacity)
    bounds = {c.key: (c.low, c.high) for c in found.conditions}
    assert bounds[key(DE, Resource.SNIC, Direction.OUT)] == (0.0, math.inf)


def test_where_the_range_is_not_defined() -> None:
    with pytest.raises(InfeasibleError, match="alike nodes in each pool"):
        real_traffic_range(load_scenario(EXAMPLES / "heterogeneous.yaml"))
    scenario = load_scenario(EXAMPLES / "deepseek-660b-2p4d.yaml")
    shared = scenario.with_each_node(PE, lambda node: replace(node, snics=0))
    with pytest.raises(InfeasibleError, match="storage NICs that can run out"):
        real_traffic_range(shared)
    cached = replace(scenario, serving=replace(scenario.serving, dram_cache_hit_share=1.0))
    with pytest.raises(InfeasibleError, match="read no hits from storage"):
        real_traffic_range(cached)


# ---- printing ------------------------------------------------------------------------------------

LETTERS = {
    str(symbol): symbol
    for equation in DERIVATION
    for term in equation.statement.terms
    for symbol in term.free_symbols
}


def chains(equation: Equation) -> list[Chain]:
    condition = [equation.condition] if equation.condition else []
    return [equation.statement, *condition, *equation.provided]


@pytest.mark.parametrize("equation", DERIVATION, ids=lambda equation: equation.number)
def test_text_parses_back(equation: Equation) -> None:
    for chain in chains(equation):
        text = chain.text()
        for sign in ("<=", ">=", "<", "="):
            text = text.replace(f" {sign} ", " ; ")
        parsed = [sympy.sympify(part, locals=LETTERS) for part in text.split(" ; ")]
        assert len(parsed) == len(chain.terms)
        for back, term in zip(parsed, chain.terms, strict=True):
            if isinstance(term, sympy.Max | sympy.Min):
                assert type(back) is type(term)
                assert all(any(same(one, other) for other in back.args) for one in term.args)
            else:
                assert same(back, term)


def test_text_and_latex_have_every_equation() -> None:
    text, latex = to_text(DERIVATION), to_latex(DERIVATION)
    for equation in DERIVATION:
        assert f"({equation.number}) {equation.title}: {equation.statement.text()}" in text
        assert rf"\tag{{{equation.number}}}" in latex
        assert equation.statement.latex() in latex
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\left") == latex.count(r"\right")
    assert latex.count(r"\begin{equation*}") == len(DERIVATION)
    numbers = {equation.group for equation in DERIVATION}
    assert numbers == {str(number) for number in range(1, 22)}


def test_every_letter_of_the_text_is_explained() -> None:
    explained = {str(symbol) for symbol in sy.MEANING}
    own = {"x_star", "x_ij", "lam_ij", "speedup", "C_r", "N_r", "p_r", "d_r"}
    generic = {f"{letter}_{index}" for letter in "bkC" for index in "ij"}
    loads = {f"L_{index}" for index in range(1, 19)}
    assert set(LETTERS) <= explained | own | generic | loads


def test_derive_command_data() -> None:
    data = orjson.loads(orjson.dumps(derive_data()))
    assert data == to_data(DERIVATION)
    assert [row["number"] for row in data["equations"]] == list(BY_NUMBER)
    four = data["equations"][3]
    assert four["condition"]["text"] == "P/D >= s/(g - s)"
    assert four["capacity"] == {"pool": "prefill", "resource": "cnic", "direction": "write"}
    assert derive_text(latex=False) == to_text(DERIVATION)
    assert derive_text(latex=True) == to_latex(DERIVATION)


def test_sympy_is_imported_only_when_used() -> None:
    code = "import sys, app.derive, solvers.real_traffic; sys.exit('sympy' in sys.modules);"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_printing_does_not_depend_on_hash_order() -> None:
    code = "from app.derive import derive_text; print(derive_text(False))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(EXAMPLES.parent)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
