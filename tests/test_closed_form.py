"""The closed form: the paper's range and special case, and the optimum against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dualpath_model.closed_form import bottleneck_free, solve
from dualpath_model.cluster import Efficiencies, Node, movement_capacity
from dualpath_model.loads import Demand, movement
from dualpath_model.paths import PAPER, Direction, Key, Payload, Pool, Resource

LINE_RATE = Efficiencies(
    snic=1.0, cnic=1.0, dram=1.0, hbm=1.0, prefill_mfu=1.0, decode_mfu=1.0, hbm_usable=1.0
)
SNIC_P = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
SNIC_D = Key(Pool.DECODE, Resource.SNIC, Direction.IN)


def paper_range(node: Node) -> dict[str, tuple[float, float]]:
    found = bottleneck_free(
        PAPER,
        movement_capacity(node, Pool.PREFILL, LINE_RATE),
        movement_capacity(node, Pool.DECODE, LINE_RATE),
    )
    named = {str(c.key): (c.low, c.high) for c in found.conditions}
    return {**named, "all": (found.low, found.high)}


def test_bottleneck_free_range_is_exactly_one_seventh_to_seven_halves(paper_node: Node) -> None:
    """Paper, 4.2: g = 8, s = 1, M = 500 GB/s, Bs = 50 GB/s."""
    assert paper_range(paper_node)["all"] == (1 / 7, 7 / 2)


@given(
    g=st.integers(2, 16),
    s=st.floats(0.25, 4.0),
    nic=st.floats(10e9, 100e9),
    memory=st.floats(100e9, 2e12),
)
def test_each_condition_of_the_paper(
    paper_node: Node, g: int, s: float, nic: float, memory: float
) -> None:
    """Section 4.2's six conditions, as functions of g, s, B and M."""
    node = Node("n", paper_node.gpu, g, g, nic, 1, s * nic, dram_bytes_per_s=memory)
    found = paper_range(node)

    def floor(value: float) -> float:
        return value if value >= 0 else math.inf

    close = {"rel_tol": 1e-9, "abs_tol": 1e-12}
    # PE CNIC read: s <= g/2, whatever P/D
    assert found["prefill cnic read"] == ((0.0 if 2 * s <= g else math.inf), math.inf)
    # PE CNIC write: P/D >= s/(g-s)
    expected = s / (g - s) if g > s else math.inf
    assert math.isclose(found["prefill cnic write"][0], floor(expected), **close)
    # DE CNIC read: P/D <= (g-2s)/s
    assert math.isclose(found["decode cnic read"][1], max(0.0, (g - 2 * s) / s), **close)
    # DE CNIC write: P/D <= (g-s)/(2s)
    assert math.isclose(found["decode cnic write"][1], max(0.0, (g - s) / (2 * s)), **close)
    # PE DRAM: 2 s B <= M
    assert found["prefill dram read+write"][0] == (0.0 if 2 * s * nic <= memory else math.inf)
    # DE DRAM: P/D <= (M/(B s) - 3)/2
    expected = max(0.0, (memory / (nic * s) - 3) / 2)
    assert math.isclose(found["decode dram read+write"][1], expected, **close)


def test_range_needs_storage_nics(paper_node: Node) -> None:
    without = Node("n", paper_node.gpu, 8, 8, 50e9)
    with pytest.raises(ValueError, match="storage NIC"):
        paper_range(without)


@given(p=st.integers(1, 64), d=st.integers(1, 64))
def test_storage_bound_split_and_speedup(p: int, d: int) -> None:
    """With only the storage NICs binding: x = D/(P+D), speed-up (P+D)/P."""
    demand = movement(PAPER.carrying(Payload.HIT), {Payload.HIT: 1e9})
    bound = solve(demand, {SNIC_P: p * 50e9, SNIC_D: d * 50e9})
    assert_allclose(bound.split, d / (p + d), rtol=1e-12)
    assert_allclose(bound.speedup_over_basic, (p + d) / p, rtol=1e-12)
    # Both are full; the larger pool's NICs carry more, so more of them is worth more.
    assert bound.keys[int(bound.bottleneck)] == (SNIC_P if p >= d else SNIC_D)
    assert bound.keys[int(bound.bottleneck_basic)] == SNIC_P


KEYS = [
    Key(pool, resource, direction)
    for pool in (Pool.PREFILL, Pool.DECODE)
    for resource in (Resource.CNIC, Resource.DRAM, Resource.SNIC)
    for direction in (Direction.IN, Direction.BOTH)
]
amount = st.floats(0.0, 10.0).map(lambda v: round(v, 6))


@st.composite
def envelopes(draw: st.DrawFn) -> tuple[Demand, dict[Key, float]]:
    """Lines through random heights at x = 0 and x = 1 (so that demands are never negative)."""
    count = draw(st.integers(1, len(KEYS)))
    base, slope, capacity = {}, {}, {}
    for key in KEYS[:count]:
        left, right = draw(amount), draw(amount)
        base[key], slope[key] = left, right - left
        capacity[key] = draw(st.floats(0.1, 10.0))
    base[KEYS[0]] += 0.01  # something must limit
    return Demand(base, slope), capacity


@given(envelopes())
def test_optimum_against_brute_force(case: tuple[Demand, dict[Key, float]]) -> None:
    demand, capacity = case
    bound = solve(demand, capacity)
    keys = list(capacity)
    base = np.array([float(demand.base[k]) / capacity[k] for k in keys])
    slope = np.array([float(demand.slope[k]) / capacity[k] for k in keys])
    # The envelope is lowest at an end or where two lines cross: try them all.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossings = (base[:, None] - base) / (slope - slope[:, None])
    candidates = np.append(crossings[np.isfinite(crossings)], [0.0, 1.0])
    candidates = candidates[(candidates >= 0) & (candidates <= 1)]
    heights = (base[:, None] + slope[:, None] * candidates).max(axis=0)
    assert 0.0 <= bound.split <= 1.0
    assert_allclose(1.0 / bound.throughput, heights.min(), rtol=1e-9, atol=1e-12)
    assert_allclose(1.0 / bound.throughput_basic, base.max(), rtol=1e-12)
    assert bound.throughput >= bound.throughput_basic * (1 - 1e-12)


@given(envelopes(), st.integers(0, 11), st.floats(1.0, 10.0))
def test_more_of_anything_never_hurts(
    case: tuple[Demand, dict[Key, float]], which: int, factor: float
) -> None:
    demand, capacity = case
    more = dict(capacity)
    more[list(more)[which % len(more)]] *= factor
    assert solve(demand, more).throughput >= solve(demand, capacity).throughput * (1 - 1e-12)


def test_arrays_equal_scalars_and_chunks_change_nothing() -> None:
    """A grid larger than a chunk, with axes that vary separately, equals one call a cell."""
    draw = np.random.default_rng(1)
    p = draw.uniform(1, 60, (300, 1))
    d = draw.uniform(1, 60, (1, 70))
    hit = draw.uniform(1e8, 2e9, (300, 70))
    demand = movement(PAPER, {Payload.HIT: hit, Payload.MISS: 1e7})
    capacity = {
        SNIC_P: p * 50e9,
        SNIC_D: d * 50e9,
        Key(Pool.DECODE, Resource.DRAM, Direction.BOTH): d * 100e9,
    }
    grid = solve(demand, capacity)
    assert grid.split.shape == (300, 70)
    for i, j in [(0, 0), (17, 3), (150, 69), (299, 42)]:
        cell = solve(
            movement(PAPER, {Payload.HIT: hit[i, j], Payload.MISS: 1e7}),
            {
                SNIC_P: p[i, 0] * 50e9,
                SNIC_D: d[0, j] * 50e9,
                Key(Pool.DECODE, Resource.DRAM, Direction.BOTH): d[0, j] * 100e9,
            },
        )
        assert grid.split[i, j] == cell.split
        assert grid.throughput[i, j] == cell.throughput
        assert grid.bottleneck[i, j] == cell.bottleneck


def test_level_bottleneck_leaves_the_split_where_most_room_is() -> None:
    """Compute binds at any split near D/(P+D); the split returned balances the storage NICs."""
    gpu = Key(Pool.PREFILL, Resource.GPU, Direction.COMPUTE)
    hits = movement(PAPER.carrying(Payload.HIT), {Payload.HIT: 1e9})
    bound = solve(hits + Demand({gpu: 1.0}), {SNIC_P: 100e9, SNIC_D: 200e9, gpu: 10.0})
    assert bound.keys[int(bound.bottleneck)] == gpu
    assert_allclose(bound.split, 2 / 3, rtol=1e-12)
