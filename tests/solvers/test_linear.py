"""The LP against the closed form, against itself (duality, monotonicity), and CBC against HiGHS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dualpath_model import closed_form
from dualpath_model.cluster import Cluster, Gpu, Node
from dualpath_model.loads import Loads, NodeLoad
from dualpath_model.paths import Key, Pool
from dualpath_model.workload import from_moments
from solvers import linear
from tests.strategies import heterogeneous_loads, homogeneous_loads, loads_of

Changed = tuple[int | None, Key]


def scaled(loads: Loads, what: Changed, factor: float) -> Loads:
    """Return the loads with one capacity of one node (None: of the cluster) times ``factor``.

    The node leaves its group of likes: it is no longer like them.
    """
    node, key = what
    if node is None:
        return replace(loads, shared_capacity=_times(loads.shared_capacity, key, factor))
    groups: list[NodeLoad] = []
    for group in loads.groups(key.pool):
        if node not in group.positions:
            groups.append(group)
            continue
        others = tuple(p for p in group.positions if p != node)
        if others:
            groups.append(replace(group, positions=others))
        capacity = _times(group.capacity, key, factor)
        groups.append(replace(group, positions=(node,), capacity=capacity))
    name = "prefill" if key.pool is Pool.PREFILL else "decode"
    return replace(loads, **{name: tuple(groups)})


def _times(capacity: object, key: Key, factor: float) -> dict[Key, float]:
    changed = dict(capacity)  # type: ignore[call-overload]
    changed[key] *= factor
    return changed


@settings(max_examples=200)
@given(homogeneous_loads())
def test_lp_equals_closed_form(loads: Loads) -> None:
    bound = closed_form.solve(*closed_form.of_loads(loads))
    best, basic = linear.solve(loads), linear.solve(loads, decode_reads=False)
    assert_allclose(best.throughput, bound.throughput, rtol=1e-9)
    assert_allclose(basic.throughput, bound.throughput_basic, rtol=1e-9)
    assert_allclose(max(row.utilisation for row in best.rows), 1.0, rtol=1e-9)
    assert_allclose(best.split, bound.split, atol=1e-6)


@settings(max_examples=60)
@given(heterogeneous_loads())
def test_the_optimum_proves_itself(loads: Loads) -> None:
    """Primal feasible, dual feasible, complementary, and primal = dual objective (strong duality)."""
    found = linear.solve(loads)
    assert all(row.utilisation <= 1 + 1e-8 for row in found.rows)
    assert all(row.dual_value * row.capacity >= -1e-8 * found.throughput for row in found.rows)
    assert_allclose(sum(r.dual_value * r.capacity for r in found.rows), found.throughput, rtol=1e-7)
    for row in found.rows:
        slack = (1.0 - row.utilisation) * row.dual_value * row.capacity
        assert abs(slack) <= 1e-6 * found.throughput
    for path in (0, 1):
        assert_allclose(
            sum(flow[path] for flow in found.prefill_flows),
            sum(flow[path] for flow in found.decode_flows),
            rtol=1e-7,
            atol=1e-9 * found.throughput,
        )


@settings(max_examples=40)
@given(heterogeneous_loads(), st.randoms(use_true_random=False))
def test_doubling_a_capacity_never_lowers_the_optimum(loads: Loads, choose: object) -> None:
    found = linear.solve(loads)
    row = choose.choice(found.rows)  # type: ignore[attr-defined]
    more = linear.solve(scaled(loads, (row.node, row.key), 2.0))
    assert more.throughput >= found.throughput * (1 - 1e-9)


@settings(max_examples=100)
@given(heterogeneous_loads() | homogeneous_loads())
def test_dual_values_predict_a_small_change(loads: Loads) -> None:
    """Change each priced capacity by 0.1 % up and down: the dual predicts the effect to 1 %.

    The optimum is concave in every capacity, so where it has a kink within that 0.1 % the dual lies
    between the two slopes; everywhere else the two agree, and the dual with both.
    """
    found = linear.solve(loads)
    priced = [r for r in found.rows if r.dual_value * r.capacity > 1e-3 * found.throughput]
    assert priced  # something always has a price
    for row in priced[:4]:
        what = (row.node, row.key)
        predicted = row.dual_value * row.capacity * 1e-3
        gain = linear.solve(scaled(loads, what, 1.001)).throughput - found.throughput
        loss = found.throughput - linear.solve(scaled(loads, what, 0.999)).throughput
        assert gain <= 1.01 * predicted
        assert predicted <= 1.01 * loss


def test_dual_values_where_there_is_no_kink() -> None:
    """On a cluster in general position the prediction is within 1 % both ways, for every capacity."""
    draw = np.random.default_rng(7)
    nodes = [
        Node("n", Gpu("g", rate, 80e9, 3e12), 8, 8, cnic, 1, snic, dram_bytes_per_s=dram)
        for rate, cnic, snic, dram in zip(
            draw.uniform(3e14, 9e14, 7),
            draw.uniform(20e9, 60e9, 7),
            draw.uniform(10e9, 60e9, 7),
            draw.uniform(2e11, 6e11, 7),
            strict=True,
        )
    ]
    loads = loads_of(Cluster(tuple(nodes[:3]), tuple(nodes[3:])), from_moments(30_000, 400, 176))
    found = linear.solve(loads)
    for row in found.rows:
        changed = linear.solve(scaled(loads, (row.node, row.key), 1.001))
        assert changed.throughput - found.throughput == pytest.approx(
            row.dual_value * row.capacity * 1e-3, rel=0.01, abs=1e-9 * found.throughput
        )


@settings(max_examples=25)
@given(heterogeneous_loads())
def test_cbc_agrees_with_highs(loads: Loads) -> None:
    highs, cbc = linear.solve(loads), linear.solve(loads, backend="cbc")
    assert_allclose(cbc.throughput, highs.throughput, rtol=1e-6)


@settings(max_examples=30)
@given(homogeneous_loads())
def test_likes_get_the_same(loads: Loads) -> None:
    found = linear.solve(loads)
    assert len(set(found.prefill_flows)) == 1
    assert len(set(found.decode_flows)) == 1


@settings(max_examples=30)
@given(heterogeneous_loads())
def test_basic_never_beats_dual_path(loads: Loads) -> None:
    basic, best = linear.solve(loads, decode_reads=False), linear.solve(loads)
    assert basic.split == 0.0
    assert best.throughput >= basic.throughput * (1 - 1e-9)
