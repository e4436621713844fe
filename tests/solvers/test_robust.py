"""Robust and stochastic answers against hand counts, brute force and each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InputError
from dualpath_model.loads import Loads
from dualpath_model.paths import Pool, Resource
from dualpath_model.workload import from_moments
from solvers import linear, robust
from solvers.robust import Spread, chance, scaled, worst_case
from tests.strategies import loads_of

AGENT = from_moments(32_000, 100, 50)
SNIC_P, SNIC_D = (Pool.PREFILL, Resource.SNIC), (Pool.DECODE, Resource.SNIC)


def even(node: Node) -> Loads:
    return loads_of(Cluster((node,) * 2, (node,) * 4), AGENT)


def uneven(node: Node) -> Loads:
    slow = replace(node, snic_bytes_per_s=30e9)
    return loads_of(Cluster((node, slow), (node, slow, slow)), AGENT)


@pytest.mark.parametrize("make", [even, uneven])
def test_worst_case_is_the_least_over_the_box(paper_node: Node, make: object) -> None:
    loads: Loads = make(paper_node)  # type: ignore[operator]
    box = {
        SNIC_P: Spread(0.8, 1.1),
        SNIC_D: Spread(0.7, 1.2),
        (Pool.PREFILL, Resource.GPU): Spread(0.5, 1),
    }
    found = worst_case(loads, box)
    draw = np.random.default_rng(3)
    for _ in range(50):
        at = {where: float(draw.uniform(s.low, s.high)) for where, s in box.items()}
        assert linear.solve(scaled(loads, at)).value >= found.solution.value * (1 - 1e-9)
    assert found.solution.value <= found.nominal
    assert all(gain >= -1e-9 for gain in found.by_resource.values())
    assert max(found.by_resource.values()) > 0


def test_chance_of_one_limit_is_known(paper_node: Node) -> None:
    """Only storage NICs limit, the prefill side's uniform on [0.8, 1.2]: throughput goes with 2 f + 4,
    so the nominal rate is met by half of the draws and nine tenths of it by all."""
    others = [r for r in Resource if r is not Resource.SNIC]
    free = {(pool, r): 1e6 for pool in (Pool.PREFILL, Pool.DECODE) for r in others}
    loads = scaled(even(paper_node), free)
    box = {SNIC_P: Spread(0.8, 1.2, uniform=True)}
    nominal = linear.solve(loads).value
    assert chance(loads, box, 0.9 * nominal).replanned == 1.0
    found = chance(loads, box, nominal)
    assert found.replanned == pytest.approx(0.5, abs=5 * found.standard_error)
    assert_allclose(found.throughput.max(), nominal * (2 * 1.2 + 4) / 6, rtol=1e-3)


def test_both_routes_give_the_same_draws(paper_node: Node) -> None:
    """The closed form on all draws at once equals the LP solved again for each."""
    loads = even(paper_node)
    box = {
        SNIC_P: Spread(0.7, 1.3),
        SNIC_D: Spread(0.7, 1.3),
        (Pool.PREFILL, Resource.GPU): Spread(0.6, 1.4),
    }
    quick = chance(loads, box, 100.0, samples=40, seed=1)
    draw = np.random.default_rng(1)
    factors = {where: spread.sample(draw, 40) for where, spread in box.items()}
    assert_allclose(robust._by_program(loads, factors, 40), quick.throughput, rtol=1e-8)


def test_uneven_clusters_are_sampled_too(paper_node: Node) -> None:
    loads = uneven(paper_node)
    nominal = linear.solve(loads).value
    box = {SNIC_P: Spread(0.8, 1.25), SNIC_D: Spread(0.8, 1.25)}
    found = chance(loads, box, 0.95 * nominal, samples=200)
    assert 0 < found.planned <= found.replanned <= 1
    assert found.throughput.shape == (200,)
    repeated = chance(loads, box, 0.95 * nominal, samples=200)
    assert_allclose(repeated.throughput, found.throughput)


def test_lognormal_interval_holds_95_percent() -> None:
    drawn = Spread(0.8, 1.3).sample(np.random.default_rng(0), 200_000)
    assert np.mean((drawn >= 0.8) & (drawn <= 1.3)) == pytest.approx(0.95, abs=0.005)


def test_bad_questions(paper_node: Node) -> None:
    for low, high in ((0.0, 1.0), (1.2, 0.8), (0.5, np.inf), (np.nan, 1.0)):
        with pytest.raises(InputError, match="is not allowed"):
            Spread(low, high)
    with pytest.raises(InputError, match="rate 0"):
        chance(even(paper_node), {}, 0.0)
    with pytest.raises(InputError, match="samples 0"):
        chance(even(paper_node), {}, 1.0, samples=0)
