"""The full LP: several classes on uneven clusters, by every formulation and back end, and in words
where there is no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.loads import Loads
from dualpath_model.paths import Direction, Key, Pool, Resource
from dualpath_model.workload import from_moments
from solvers import linear, pairs
from solvers.form import Objective
from solvers.problem import Problem, TrafficClass, from_classes
from tests.strategies import loads_of, nodes, shared_limits, workloads


def classes_of(
    cluster: Cluster, works: list[object], shares: list[float], fixed: list[bool]
) -> list[TrafficClass]:
    """Classes on one cluster; fixed ones at a rate low enough to be met."""
    loads = [loads_of(cluster, work) for work in works]  # type: ignore[arg-type]
    growing = [s for s, f in zip(shares, fixed, strict=True) if not f]
    made = []
    for i, (load, share, is_fixed) in enumerate(zip(loads, shares, fixed, strict=True)):
        if is_fixed:
            most = linear.solve(load, decode_reads=False).throughput
            made.append(TrafficClass(f"c{i}", load, rate=0.1 * most / len(loads)))
        else:
            made.append(TrafficClass(f"c{i}", load, share=share / sum(growing)))
    return made


@st.composite
def instances(draw: st.DrawFn, most_nodes: int = 12) -> list[TrafficClass]:
    """1 to 12 different nodes a side, 1 to 4 classes, some with fixed rates."""
    cluster = Cluster(
        tuple(draw(st.lists(nodes(), min_size=1, max_size=most_nodes))),
        tuple(draw(st.lists(nodes(), min_size=1, max_size=most_nodes))),
        **draw(shared_limits()),
    )
    count = draw(st.integers(1, 4))
    works = [draw(workloads()) for _ in range(count)]
    shares = [draw(st.floats(0.1, 1.0)) for _ in range(count)]
    fixed = [False, *(draw(st.booleans()) for _ in range(count - 1))]
    return classes_of(cluster, works, shares, fixed)  # type: ignore[arg-type]


def value(problem: Problem, backend: linear.Backend) -> float:
    return linear.CapacityProgram(problem, backend).solve().value


@settings(max_examples=200)
@given(instances())
def test_aggregated_equals_per_pair_and_back_ends_agree(classes: list[TrafficClass]) -> None:
    """Three formulations of one optimum: merged matrix, PuLP, and every pair of nodes by itself."""
    problem = from_classes(classes)
    best = value(problem, "matrix")
    assert_allclose(pairs.solve(problem).value, best, rtol=1e-6)
    assert_allclose(value(problem, "highs"), best, rtol=1e-6)
    assert_allclose(value(problem, "cbc"), best, rtol=1e-6)
    assert_allclose(linear.CapacityProgram(problem, merged=False).solve().value, best, rtol=1e-6)


@settings(max_examples=100)
@given(instances())
def test_certificates_hold_and_flows_are_possible(classes: list[TrafficClass]) -> None:
    problem = from_classes(classes)
    found = linear.CapacityProgram(problem, "matrix").solve()
    assert found.certificate.holds
    assert max(row.utilisation for row in found.rows) <= 1 + 1e-7
    assert_allclose(found.prefill.sum(axis=0), found.decode.sum(axis=0), rtol=1e-7, atol=1e-9)
    for name, rate, split in zip(
        found.class_names, found.class_rates, found.class_splits, strict=True
    ):
        wanted = next(c for c in classes if c.name == name)
        if wanted.rate is not None:
            assert_allclose(rate, wanted.rate, rtol=1e-7)
        assert -1e-9 <= split <= 1 + 1e-9


def rearranged(problem: Problem, order: list[np.ndarray], parts: list[np.ndarray]) -> Problem:
    """Return the problem with its nodes in another order, each in so many equal parts."""
    pools = []
    for pool, index, part in zip(problem.pools(), order, parts, strict=True):
        rows = np.repeat(index, part[index])
        size = part[rows]
        pools.append(
            replace(
                pool,
                use=pool.use[rows] * size[:, None, None, None],
                capacity=pool.capacity[rows] / size[:, None],
                zone=pool.zone[rows],
            )
        )
    return replace(problem, prefill=pools[0], decode=pools[1])


@settings(max_examples=200)
@given(instances(), st.integers(0, 2**32 - 1))
def test_permuting_nodes_permutes_the_answer(classes: list[TrafficClass], seed: int) -> None:
    draw = np.random.default_rng(seed)
    problem = from_classes(classes)
    order = [draw.permutation(pool.count) for pool in problem.pools()]
    ones = [np.ones(pool.count, dtype=int) for pool in problem.pools()]
    here = linear.CapacityProgram(problem, "matrix").solve()
    there = linear.CapacityProgram(rearranged(problem, order, ones), "matrix").solve()
    atol = 1e-7 * here.value
    assert_allclose(there.value, here.value, rtol=1e-9)
    assert_allclose(there.prefill, here.prefill[order[0]], atol=atol)
    assert_allclose(there.decode, here.decode[order[1]], atol=atol)


@settings(max_examples=200)
@given(instances(), st.integers(0, 2**32 - 1))
def test_splitting_a_node_changes_nothing(classes: list[TrafficClass], seed: int) -> None:
    draw = np.random.default_rng(seed)
    problem = from_classes(classes)
    order = [np.arange(pool.count) for pool in problem.pools()]
    parts = [draw.integers(1, 4, pool.count) for pool in problem.pools()]
    here = linear.CapacityProgram(problem, "matrix").solve()
    there = linear.CapacityProgram(rearranged(problem, order, parts), "matrix").solve()
    atol = 1e-7 * here.value
    assert_allclose(there.value, here.value, rtol=1e-9)
    for mine, theirs, part in zip(
        (here.prefill, here.decode), (there.prefill, there.decode), parts, strict=True
    ):
        starts = np.concatenate(([0], np.cumsum(part)[:-1]))
        assert_allclose(np.add.reduceat(theirs, starts, axis=0), mine, atol=atol)


@settings(max_examples=60)
@given(instances(most_nodes=4))
def test_duals_hold_inside_their_ranges(classes: list[TrafficClass]) -> None:
    """Move each priced capacity halfway to the ends of its range: the dual is exact there (to 1 %)."""
    problem = from_classes(classes)
    program = linear.CapacityProgram(problem, "matrix", merged=False)
    found = program.solve(ranges=True)
    priced = [r for r in found.rows if r.dual_value * r.capacity > 1e-4 * found.value]
    for row in priced[:4]:
        assert row.low <= row.capacity * (1 + 1e-9)
        assert row.high >= row.capacity * (1 - 1e-9)
        where = (row.key.pool, row.node, row.key)
        for end in (max(row.low, 0.5 * row.capacity), min(row.high, 2 * row.capacity)):
            to = 0.5 * (row.capacity + end)
            program.change_capacity({where: to / row.capacity})
            change = program.solve().value - found.value
            expected = row.dual_value * (to - row.capacity)
            assert change == pytest.approx(expected, rel=0.01, abs=1e-7 * found.value)
        program.change_capacity({where: 1.0})


def test_ranges_of_merged_nodes_are_for_all_of_a_kind(paper_node: Node) -> None:
    """Move a capacity of every node of a kind inside the range: the duals together are exact."""
    slow = replace(paper_node, snic_bytes_per_s=30e9)
    cluster = Cluster((paper_node,) * 3, (paper_node,) * 2 + (slow,) * 2)
    problem = from_classes(
        [TrafficClass("a", loads_of(cluster, from_moments(40_000, 200, 100)), 1.0)]
    )
    found = linear.CapacityProgram(problem).solve(ranges=True)
    priced = {r.key for r in found.rows if r.dual_value * r.capacity > 1e-4 * found.value}
    assert priced
    for key in priced:
        name = "prefill" if key.pool is Pool.PREFILL else "decode"
        pool = problem.prefill if key.pool is Pool.PREFILL else problem.decode
        alike = [row for row in found.rows if row.key == key and row.dual_value > 0]
        kind = [row for row in alike if row.capacity == alike[0].capacity]
        for end in (
            max(kind[0].low, 0.5 * kind[0].capacity),
            min(kind[0].high, 2 * kind[0].capacity),
        ):
            factor = 0.5 * (1 + end / kind[0].capacity)
            scale = np.ones_like(pool.capacity)
            scale[[row.node for row in kind], pool.keys.index(key)] = factor
            moved = replace(pool, use=pool.use / scale[:, :, None, None])
            change = linear.CapacityProgram(replace(problem, **{name: moved})).solve().value
            expected = sum(row.dual_value * row.capacity * (factor - 1) for row in kind)
            assert change - found.value == pytest.approx(expected, rel=0.01, abs=1e-7 * found.value)


@settings(max_examples=60)
@given(instances(most_nodes=4), st.integers(0, 2**32 - 1))
def test_solving_again_equals_building_again(classes: list[TrafficClass], seed: int) -> None:
    draw = np.random.default_rng(seed)
    problem = from_classes(classes)
    program = linear.CapacityProgram(problem, merged=False)
    program.solve()
    factors = {}
    changed = []
    for pool, where in zip(problem.pools(), (Pool.PREFILL, Pool.DECODE), strict=True):
        scale = draw.uniform(0.7, 1.5, pool.capacity.shape)
        changed.append(
            replace(pool, use=pool.use / scale[:, :, None, None], capacity=pool.capacity * scale)
        )
        for n in range(pool.count):
            for r, key in enumerate(pool.keys):
                if pool.use[n, r].any():
                    factors[where, n, key] = float(scale[n, r])
    again = replace(problem, prefill=changed[0], decode=changed[1])
    try:
        fresh = linear.CapacityProgram(again, merged=False).solve()
    except InfeasibleError:
        return  # a fixed rate no longer fits; both would say so
    program.change_capacity(factors)
    found = program.solve()
    assert_allclose(found.value, fresh.value, rtol=1e-8)
    by_name = {(r.key, r.node): r for r in fresh.rows}
    for row in found.rows:
        assert_allclose(row.capacity, by_name[row.key, row.node].capacity, rtol=1e-9)


def test_changed_rates_equal_building_again(paper_node: Node) -> None:
    classes = two_classes(paper_node, 10.0)
    program = linear.CapacityProgram(from_classes(classes), merged=False)
    before = program.solve()
    program.change_rates({"chat": 60.0})
    after = program.solve()
    fresh = linear.solve_classes(two_classes(paper_node, 60.0))
    assert_allclose(after.value, fresh.value, rtol=1e-8)
    assert_allclose(after.class_rates, fresh.class_rates, rtol=1e-7)
    assert after.class_rates[0] < before.class_rates[0]
    program.change_rates({"chat": 1e6})
    with pytest.raises(InfeasibleError, match="1e\\+06 requests/s of 'chat'"):
        program.solve()
    with pytest.raises(InputError, match="class 'agents' has no fixed rate here"):
        program.change_rates({"agents": 1.0})
    with pytest.raises(InputError, match="rate -1"):
        program.change_rates({"chat": -1.0})


# ---- other objectives ----------------------------------------------------------------------------


@settings(max_examples=60)
@given(instances(most_nodes=5), st.floats(0.1, 0.95))
def test_least_peak_is_the_inverse_of_most_requests(
    classes: list[TrafficClass], part: float
) -> None:
    """At a fraction f of the largest rates the least peak is f, when all classes grow together."""
    growing = [replace(c, share=1.0 / len(classes), rate=None) for c in classes]
    most = linear.solve_classes(growing)
    fixed = [replace(c, share=None, rate=part * most.value / len(classes)) for c in growing]
    found = linear.solve_classes(fixed, objective=Objective.LEAST_PEAK)
    assert_allclose(found.value, part, rtol=1e-6)
    assert_allclose(max(row.utilisation for row in found.rows), part, rtol=1e-6)
    assert found.certificate.holds


@settings(max_examples=200)
@given(instances(), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_peak_and_cost_by_two_routes(classes: list[TrafficClass], part: float, seed: int) -> None:
    """The merged matrix against a flow for every pair of nodes, for the other two objectives."""
    growing = [replace(c, share=1.0 / len(classes), rate=None) for c in classes]
    most = linear.solve_classes(growing).value
    fixed = [replace(c, share=None, rate=part * most / len(classes)) for c in growing]
    problem = from_classes(fixed)
    peak = linear.solve_classes(fixed, objective=Objective.LEAST_PEAK)
    by_pairs = pairs.solve(problem, objective=Objective.LEAST_PEAK)
    assert_allclose(by_pairs.value, peak.value, rtol=1e-6)
    draw = np.random.default_rng(seed)
    prices = tuple(draw.integers(1, 5, pool.count).astype(float) for pool in problem.pools())
    cost = linear.solve_classes(fixed, objective=Objective.LEAST_COST, prices=prices)
    by_pairs = pairs.solve(problem, objective=Objective.LEAST_COST, prices=prices)
    assert_allclose(by_pairs.value, cost.value, rtol=1e-6)


def test_nodes_alike_in_use_and_price_share_evenly(paper_node: Node) -> None:
    cluster = Cluster((paper_node,) * 2, (paper_node,) * 3)
    loads = loads_of(cluster, from_moments(32_000, 429, 176))
    at_rate = [TrafficClass("all", loads, rate=0.3 * linear.solve(loads).value)]
    prices = ([1.0] * 2, [1.0, 1.0, 9.0])
    found = linear.solve_classes(at_rate, objective=Objective.LEAST_COST, prices=prices)
    assert_allclose(found.decode[0], found.decode[1])
    assert found.decode[2].sum() < 1e-6 * found.throughput
    with pytest.raises(InputError, match="leave the solver out"):
        linear.solve_classes(at_rate, objective=Objective.LEAST_COST, prices=prices, backend="cbc")


def uneven(paper_node: Node) -> tuple[Cluster, Loads]:
    slow = replace(paper_node, snic_bytes_per_s=25e9)
    cluster = Cluster((paper_node, slow), (paper_node, slow, slow))
    return cluster, loads_of(cluster, from_moments(32_000, 429, 176))


def test_least_cost_takes_the_cheap_nodes(paper_node: Node) -> None:
    """A dear node of the same kind stays idle while the cheap ones have room."""
    _, loads = uneven(paper_node)
    most = linear.solve(loads).value
    at_rate = [TrafficClass("all", loads, rate=0.3 * most)]
    prices = ([10.0, 1.0], [1.0, 1.0, 30.0])
    found = linear.solve_classes(at_rate, objective=Objective.LEAST_COST, prices=prices)
    assert_allclose(found.throughput, 0.3 * most, rtol=1e-7)
    assert found.decode[2].sum() <= 1e-6 * most
    used = {}
    for row in found.rows:
        name = (row.key.pool, row.node)
        used[name] = max(used.get(name, 0.0), row.utilisation)
    paid = sum(
        price * used[pool, n]
        for pool, pool_prices in zip((Pool.PREFILL, Pool.DECODE), prices, strict=True)
        for n, price in enumerate(pool_prices)
    )
    assert_allclose(found.value, paid, rtol=1e-6)


def test_duals_of_peak_and_cost_are_derivatives(paper_node: Node) -> None:
    _, loads = uneven(paper_node)
    rate = 0.5 * linear.solve(loads).value
    problem = from_classes([TrafficClass("all", loads, rate=rate)])
    prices = ([10.0, 7.0], [1.0, 2.0, 3.0])
    for objective in (Objective.LEAST_PEAK, Objective.LEAST_COST):
        given_prices = prices if objective is Objective.LEAST_COST else None

        def solved(at: Problem, objective=objective, prices=given_prices):  # type: ignore[no-untyped-def]
            return linear.CapacityProgram(
                at, objective=objective, prices=prices, merged=False
            ).solve()

        found = solved(problem)
        for row in found.rows:
            if abs(row.dual_value) * row.capacity < 1e-3 * found.value or row.node is None:
                continue
            pool = problem.prefill if row.key.pool is Pool.PREFILL else problem.decode
            name = "prefill" if row.key.pool is Pool.PREFILL else "decode"
            slopes = []
            for step in (1e-3, -1e-3):
                scale = np.ones_like(pool.capacity)
                scale[row.node, pool.keys.index(row.key)] = 1 + step
                changed = replace(pool, use=pool.use / scale[:, :, None, None])
                slopes.append(
                    (solved(replace(problem, **{name: changed})).value - found.value) / step
                )
            slack = 0.01 * max(map(abs, slopes))  # at a kink the dual lies between the two slopes
            assert min(slopes) - slack <= row.dual_value * row.capacity <= max(slopes) + slack


# ---- locality ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(instances(most_nodes=5), st.integers(0, 2**32 - 1))
def test_locality_equals_its_per_pair_form_and_never_gains(
    classes: list[TrafficClass], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    counts = [pool.count for pool in from_classes(classes).pools()]
    zones = ([*draw.integers(0, 3, counts[0])], [*draw.integers(0, 3, counts[1])])
    problem = from_classes(classes, zones)
    free = linear.CapacityProgram(problem, "matrix").solve().value
    local = linear.CapacityProgram(problem, "matrix", locality=True).solve().value
    assert local <= free * (1 + 1e-7)
    assert_allclose(pairs.solve(problem, locality=True).value, local, rtol=1e-6)
    by_pulp = linear.CapacityProgram(problem, "highs", locality=True).solve().value
    assert_allclose(by_pulp, local, rtol=1e-6)


# ---- no answer, in words -------------------------------------------------------------------------


def two_classes(paper_node: Node, rate: float) -> list[TrafficClass]:
    cluster = Cluster((paper_node,) * 2, (paper_node,) * 4)
    return [
        TrafficClass("agents", loads_of(cluster, from_moments(32_000, 429, 176)), share=1.0),
        TrafficClass("chat", loads_of(cluster, from_moments(2_000, 1_000, 400)), rate=rate),
    ]


def test_rates_that_cannot_be_met_are_explained(paper_node: Node) -> None:
    alone = linear.solve(two_classes(paper_node, 1.0)[1].loads)
    with pytest.raises(InfeasibleError) as caught:
        linear.solve_classes(two_classes(paper_node, 2.0 * alone.value))
    message = str(caught.value)
    assert "requests/s of 'chat'" in message
    assert "agents" not in message  # not part of the conflict
    assert any(str(row.key) in message for row in alone.binding)
    assert "allows 50.0% of it" in message


@pytest.mark.parametrize("objective", [Objective.LEAST_PEAK, Objective.LEAST_COST])
def test_impossible_rates_are_no_answer_under_any_objective(
    paper_node: Node, objective: Objective
) -> None:
    _, loads = uneven(paper_node)
    at_rate = [TrafficClass("all", loads, rate=2.0 * linear.solve(loads).value)]
    with pytest.raises(InfeasibleError, match="the cluster cannot serve"):
        linear.solve_classes(at_rate, objective=objective, prices=([1.0] * 2, [1.0] * 3))


def test_a_conflict_of_two_rates_names_both(paper_node: Node) -> None:
    """Each rate alone is possible, both together are not: storage reads of one and of the other."""
    cluster = Cluster((paper_node,) * 2, (paper_node,) * 4)
    loads = [loads_of(cluster, from_moments(hit, 200, 100)) for hit in (40_000, 20_000)]
    fixed = [
        TrafficClass(name, load, rate=0.7 * linear.solve(load).value)
        for name, load in zip(("agents", "chat"), loads, strict=True)
    ]
    with pytest.raises(InfeasibleError) as caught:
        linear.solve_classes([*fixed, TrafficClass("rest", loads[0], share=1.0)])
    message = str(caught.value)
    assert "'agents' and" in message
    assert "'chat'" in message
    assert "prefill snic in and decode snic in" in message.replace(
        "decode snic in and prefill snic in", "prefill snic in and decode snic in"
    )


def test_bad_requirements(paper_node: Node) -> None:
    a, b = two_classes(paper_node, 1.0)
    for classes, message in [
        ([], "there is no traffic class"),
        ([replace(a, share=0.5)], "sum to 0.5; they must sum to 1"),
        ([a, replace(b, share=0.7, rate=None)], "sum to 1.7"),
        ([a, a], "class 'agents' is given twice"),
        ([replace(a, rate=1.0)], "either share or rate"),
        ([replace(a, share=None)], "either share or rate"),
        ([replace(a, share=-1.0)], "share -1.0 is not allowed"),
        ([a, replace(b, rate=float("nan"))], "rate nan is not allowed"),
        ([b], "no class has a share"),
    ]:
        with pytest.raises(InputError, match=message):
            linear.solve_classes(classes)
    with pytest.raises(InputError, match="needs a rate for each class, but 'agents' has a share"):
        linear.solve_classes([a, b], objective=Objective.LEAST_PEAK)
    with pytest.raises(InputError, match="needs a price"):
        linear.solve_classes([b], objective=Objective.LEAST_COST)


def test_the_certificate_is_of_the_flows_returned(paper_node: Node) -> None:
    """Wrong flows, wrong prices and nan: none of them passes for an optimum."""
    _, loads = uneven(paper_node)
    program = linear.CapacityProgram(loads)
    raw, x = program.optimum()
    assert program.read_back(raw, x).certificate.holds
    for wrong in (1.01 * x, 0.99 * x, np.full_like(x, np.nan)):
        with pytest.raises(linear.SolverError, match="does not prove itself"):
            program.read_back(raw, wrong)
    with pytest.raises(linear.SolverError, match="does not prove itself"):
        program.read_back(replace(raw, row_dual=0.9 * raw.row_dual), x)


def test_all_prices_zero_cost_nothing(paper_node: Node) -> None:
    _, loads = uneven(paper_node)
    at_rate = [TrafficClass("all", loads, rate=1.0)]
    prices = ([0.0] * 2, [0.0] * 3)
    found = linear.solve_classes(at_rate, objective=Objective.LEAST_COST, prices=prices)
    assert found.value == 0.0


def test_capacities_of_other_objectives_cannot_be_changed(paper_node: Node) -> None:
    _, loads = uneven(paper_node)
    problem = from_classes([TrafficClass("all", loads, rate=1.0)])
    program = linear.CapacityProgram(problem, objective=Objective.LEAST_PEAK, merged=False)
    key = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
    with pytest.raises(InputError, match="build the program again"):
        program.change_capacity({(Pool.PREFILL, 0, key): 2.0})


def test_names_that_look_alike_are_kept_apart(paper_node: Node) -> None:
    a, b = two_classes(paper_node, 5.0)
    classes = [replace(a, name="a b"), replace(b, name="a_b")]
    assert_allclose(
        linear.solve_classes(classes, backend="cbc").value,
        linear.solve_classes(classes, backend="matrix").value,
        rtol=1e-6,
    )


def test_a_solver_that_is_not_there(paper_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    import pulp

    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", "/nonexistent/cbc")
    with pytest.raises(linear.SolverError, match="the cbc solver cannot be run here"):
        linear.solve(uneven(paper_node)[1], backend="cbc")


def test_zones_for_every_node(paper_node: Node) -> None:
    with pytest.raises(InputError, match="2 zones are given for 4 decode nodes"):
        linear.solve_classes(two_classes(paper_node, 1.0), zones=([0, 0], [0, 1]))


def test_a_zero_capacity_is_refused(paper_node: Node) -> None:
    dead = replace(paper_node, cnic_bytes_per_s=0.0)
    loads = loads_of(Cluster((paper_node,), (paper_node, dead)), from_moments(1000, 100, 10))
    with pytest.raises(InputError, match=r"decode cnic .* of node 1 has the capacity 0"):
        linear.solve(loads)


def test_nothing_that_limits_is_refused(paper_node: Node) -> None:
    loads = loads_of(Cluster((paper_node,), (paper_node,)), from_moments(1000, 100, 10))
    free = replace(
        loads,
        prefill=tuple(replace(g, capacity={}) for g in loads.prefill),
        decode=tuple(replace(g, capacity={}) for g in loads.decode),
    )
    with pytest.raises(InputError, match="nothing limits"):
        linear.solve(free)


def test_more_nodes_than_memory_is_refused(
    paper_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster((paper_node,) * 3, (paper_node,) * 3)
    loads = loads_of(cluster, from_moments(1000, 100, 10))
    monkeypatch.setattr("os.sysconf", lambda name: 1000)
    linear.solve(loads)
    monkeypatch.setattr("os.sysconf", lambda name: 50)
    with pytest.raises(InputError, match="more than this machine's"):
        linear.solve(loads)


@pytest.mark.parametrize("magnitude", [1e-12, 1e15])
@pytest.mark.parametrize("backend", ["matrix", "highs", "cbc"])
def test_any_scale_gives_the_scaled_answer(
    paper_node: Node, magnitude: float, backend: linear.Backend
) -> None:
    """All capacities times 1e-12 or 1e15: throughput scales alike, to 1e-6."""
    _, loads = uneven(paper_node)
    there = replace(
        loads,
        prefill=tuple(_times(g, magnitude) for g in loads.prefill),
        decode=tuple(_times(g, magnitude) for g in loads.decode),
    )
    here = linear.solve(loads).value
    assert_allclose(linear.solve(there, backend=backend).value, magnitude * here, rtol=1e-6)


@pytest.mark.parametrize("magnitude", [1e-12, 1e15])
def test_one_node_of_another_scale(paper_node: Node, magnitude: float) -> None:
    """One prefill node 1e-12 or 1e15 times the others: as without it, or as limited by the rest."""
    _, loads = uneven(paper_node)
    odd = replace(loads, prefill=(loads.prefill[0], _times(loads.prefill[1], magnitude)))
    found = linear.solve(odd, backend="matrix")
    assert found.certificate.holds
    if magnitude < 1:
        without = replace(loads, prefill=(loads.prefill[0],))
        assert_allclose(found.value, linear.solve(without).value, rtol=1e-6)
    else:
        assert found.value >= linear.solve(loads).value
        decode = replace(odd, prefill=(odd.prefill[1],))
        moved = replace(decode, prefill=(replace(decode.prefill[0], positions=(0,)),))
        assert_allclose(found.value, linear.solve(moved).value, rtol=1e-6)


def _times(group, factor):  # type: ignore[no-untyped-def]
    return replace(group, capacity={key: rate * factor for key, rate in group.capacity.items()})


@pytest.mark.parametrize("rate", [1e-12, 1e-6, 1.0])
def test_any_rate_is_served(paper_node: Node, rate: float) -> None:
    """A required rate however small is served to 1e-6, and its peak and cost go with it."""
    _, loads = uneven(paper_node)
    fixed = [TrafficClass("small", loads, rate=rate)]
    mixed = linear.solve_classes([TrafficClass("rest", loads, share=1.0), *fixed])
    assert_allclose(mixed.class_rates[1], rate, rtol=1e-6)
    most = linear.solve(loads).value
    peak = linear.solve_classes(fixed, objective=Objective.LEAST_PEAK)
    assert_allclose(peak.value, rate / most, rtol=1e-6)
    assert_allclose(peak.throughput, rate, rtol=1e-6)
    prices = ([1.0] * 2, [1.0] * 3)
    cost = linear.solve_classes(fixed, objective=Objective.LEAST_COST, prices=prices)
    one = linear.solve_classes(
        [replace(fixed[0], rate=1.0)], objective=Objective.LEAST_COST, prices=prices
    )
    assert_allclose(cost.value, rate * one.value, rtol=1e-6)


def test_a_small_share_is_served(paper_node: Node) -> None:
    a, b = two_classes(paper_node, 1.0)
    classes = [replace(a, share=1 - 1e-9), replace(b, share=1e-9, rate=None)]
    for backend in ("matrix", "highs", "cbc"):
        rates = linear.solve_classes(classes, backend=backend).class_rates
        assert_allclose(rates[1] / rates[0], 1e-9, rtol=1e-5)


def test_an_unknown_capacity_cannot_be_changed(paper_node: Node) -> None:
    _, loads = uneven(paper_node)
    key = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
    program = linear.CapacityProgram(loads, merged=False)
    with pytest.raises(InputError, match="does not limit this program"):
        program.change_capacity({(Pool.PREFILL, 7, key): 2.0})
    with pytest.raises(InputError, match="above zero"):
        program.change_capacity({(Pool.PREFILL, 0, key): 0.0})
    same = loads_of(Cluster((paper_node,) * 2, (paper_node,)), from_moments(1000, 100, 10))
    with pytest.raises(InputError, match="merged=False"):
        linear.CapacityProgram(same).change_capacity({(Pool.PREFILL, 0, key): 2.0})
