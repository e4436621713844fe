"""The grid against single answers, cell by cell; what holds of every grid; and what it refuses."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model import load_scenario
from dualpath_model.catalog.llms import llm_names
from dualpath_model.errors import DualPathError, InputError
from dualpath_model.scenario import Scenario
from solvers import planner
from solvers.alternatives import name_of, quick
from solvers.grid import Axis, Grid, grid, vectorises
from solvers.parameters import PARAMETERS, change, mean_tokens
from tests.conftest import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))


@cache
def scenario(name: str) -> Scenario:
    return load_scenario(ROOT / "examples" / f"{name}.yaml")


def axis(asked: Scenario, name: str, count: int = 5) -> Axis:
    now = PARAMETERS[name].now(asked)
    if name == "llm":
        return Axis(name, tuple(llm_names()[:count]))
    if PARAMETERS[name].whole:
        return Axis(name, tuple(range(1, count + 1)))
    if name == "hit_rate":
        return Axis(name, tuple((1 - np.geomspace(0.5, 0.002, count)).tolist()))
    assert isinstance(now, float)
    return Axis(name, tuple(np.geomspace(now / 4, now * 4, count).tolist()))


def agree(asked: Scenario, found: Grid, relative: float) -> int:
    """Compare every cell with its own answer; return how many are served."""
    served = 0
    x, y = found.x, found.y
    for (j, b), (i, a) in itertools.product(enumerate(y.values), enumerate(x.values)):
        try:
            one = quick(change(asked, {x.name: a, y.name: b}))
        except DualPathError:
            assert (j, i) in found.reasons
            assert np.isnan(found.throughput[j, i]) and found.bottleneck[j, i] == -1
            continue
        served += 1
        assert (j, i) not in found.reasons
        assert found.throughput[j, i] == pytest.approx(one.throughput, rel=relative)
        assert found.throughput_basic[j, i] == pytest.approx(one.basic, rel=relative)
        assert found.split[j, i] == pytest.approx(one.split, abs=max(1e-6, 3 * relative))
        if relative < 1e-6:
            assert found.keys[found.bottleneck[j, i]] == one.bottleneck
    return served


@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations(PARAMETERS, 2)), ids=lambda name: name
)
def test_every_pair_agrees_with_single_answers(first: str, second: str) -> None:
    asked = scenario("recorded-sessions")
    found = grid(asked, axis(asked, first), axis(asked, second))
    assert agree(asked, found, 1e-9) > 0


@pytest.mark.parametrize("name", ["deepseek-v3.2-aws-p5", "calibrated-cpu", "dram-cache"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("prefill_nodes", "decode_nodes"), ("cnic_bytes_per_s", "context_tokens"), ("snics", "llm")],
)
def test_other_kinds_of_nodes(name: str, first: str, second: str) -> None:
    asked = scenario(name)
    found = grid(asked, axis(asked, first, 4), axis(asked, second, 4))
    agree(asked, found, 1e-9)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("context_tokens", "hit_rate"),
        ("append_tokens", "generate_tokens"),
        ("hit_rate", "generate_tokens"),
        ("context_tokens", "append_tokens"),
    ],
)
def test_two_lengths_of_a_large_workload_are_within_a_hundredth(first: str, second: str) -> None:
    asked = scenario("deepseek-660b-2p4d")
    wide = grid(asked, axis(asked, first, 40), axis(asked, second, 40))
    cells = [(0, 0), (39, 39), (0, 39), (39, 0), (20, 20), (5, 30), (30, 5), (12, 18)]
    for j, i in cells:
        one = quick(change(asked, {first: wide.x.values[i], second: wide.y.values[j]}))
        assert wide.throughput[j, i] == pytest.approx(one.throughput, rel=0.01)
        assert wide.throughput_basic[j, i] == pytest.approx(one.basic, rel=0.01)


def test_one_length_of_a_large_workload_is_exact() -> None:
    asked = scenario("deepseek-660b-2p4d")
    found = grid(asked, axis(asked, "context_tokens"), axis(asked, "decode_nodes"))
    assert agree(asked, found, 1e-9) > 0


@pytest.mark.parametrize("name", ["heterogeneous", "mixed-traffic"])
def test_uneven_clusters_are_solved_cell_by_cell(name: str) -> None:
    asked = scenario(name)
    assert not vectorises(asked)
    told: list[float] = []
    x, y = axis(asked, "prefill_nodes", 2), axis(asked, "context_tokens", 2)
    found = grid(asked, x, y, tell=told.append)
    assert agree(asked, found, 1e-6) > 0
    assert told == [0.0, 0.25, 0.5, 0.75]


def test_cells_that_cannot_be_served_say_why_and_spoil_no_others() -> None:
    asked = scenario("deepseek-660b-2p4d")
    found = grid(asked, axis(asked, "decode_nodes", 3), Axis("llm", tuple(llm_names())))
    agree(asked, found, 1e-9)
    assert found.reasons
    assert all(reason for reason in found.reasons.values())


RATES = st.lists(st.floats(1e9, 1e12), min_size=2, max_size=5, unique=True).map(sorted)
NAMES = st.permutations(["snic_bytes_per_s", "cnic_bytes_per_s", "dram_bytes_per_s"])


@settings(max_examples=30)
@given(RATES, RATES, NAMES)
def test_more_never_hurts_and_axes_may_be_swapped(
    first: list[float], second: list[float], names: list[str]
) -> None:
    asked = scenario("paper-mean-turn")
    x, y = Axis(names[0], tuple(first)), Axis(names[1], tuple(second))
    found = grid(asked, x, y)
    assert (np.diff(found.throughput, axis=0) >= -1e-9 * found.throughput[1:]).all()
    assert (np.diff(found.throughput, axis=1) >= -1e-9 * found.throughput[:, 1:]).all()
    assert (found.throughput >= found.throughput_basic * (1 - 1e-12)).all()
    swapped = grid(asked, y, x)
    np.testing.assert_allclose(swapped.throughput, found.throughput.T)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (Axis("speed", (1.0,)), Axis("snics", (1,)), "'speed' is no parameter; it must be one of"),
        (Axis("snics", ()), Axis("hit_rate", (0.5,)), "has no values"),
        (Axis("snics", (1,)), Axis("snics", (2,)), "both axes are snics"),
        (Axis("prefill_nodes", (0,)), Axis("snics", (2,)), "prefill_nodes is 0; it must be"),
        (Axis("prefill_nodes", (1.5,)), Axis("snics", (2,)), "must be a whole number"),
        (Axis("hit_rate", (1.0,)), Axis("snics", (2,)), "hit_rate is 1.0"),
        (Axis("append_tokens", (-3.0,)), Axis("snics", (2,)), "append_tokens is -3.0"),
        (Axis("cnic_bytes_per_s", (float("nan"),)), Axis("snics", (2,)), "is nan"),
        (Axis("llm", ("gpt-0",)), Axis("snics", (2,)), "gpt-0"),
    ],
)
def test_what_is_refused(x: Axis, y: Axis, words: str) -> None:
    with pytest.raises(InputError, match=words):
        grid(scenario("paper-mean-turn"), x, y)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_parameter_is_now_changes_nothing(name: str) -> None:
    """Uneven nodes and classes change in proportion: the scenario itself is in every map."""
    asked = scenario(name)
    before = quick(asked)
    for parameter, entry in PARAMETERS.items():
        now = entry.now(asked)
        if not now:
            continue
        after = quick(change(asked, {parameter: now}))
        assert after.throughput == pytest.approx(before.throughput, rel=1e-9), parameter
        assert after.basic == pytest.approx(before.basic, rel=1e-9), parameter
        assert after.split == pytest.approx(before.split, abs=1e-6), parameter


def test_unlike_nodes_and_classes_change_in_proportion() -> None:
    asked = scenario("heterogeneous")
    assert PARAMETERS["snics"].now(asked) == 2
    doubled = change(asked, {"snics": 4})
    for old, new in zip(asked.cluster.prefill, doubled.cluster.prefill, strict=True):
        assert new.snics == 2 * old.snics
    assert {node.snics for node in doubled.cluster.decode} == {2, 4}
    slow = replace(asked.cluster.decode[0], snic_bytes_per_s=10e9)
    uneven = asked.on(replace(asked.cluster, decode=(slow, *asked.cluster.decode[1:])))
    halved = change(uneven, {"snic_bytes_per_s": 25e9})
    assert {node.snic_bytes_per_s for node in halved.cluster.decode} == {5e9, 25e9}
    mixed = scenario("mixed-traffic")
    before = mean_tokens(mixed).hit_rate
    fewer = change(mixed, {"hit_rate": 1 - 2 * (1 - before)})
    for old, new in zip(mixed.classes, fewer.classes, strict=True):
        missing = 2 * old.workload.miss_tokens.sum()
        assert new.workload.miss_tokens.sum() == pytest.approx(missing)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_quick_answer_is_the_plans(name: str) -> None:
    asked = scenario(name)
    one, whole = quick(asked), planner.plan(asked, intervals=False)
    assert one.throughput == pytest.approx(whole.throughput_requests_per_s, rel=1e-6)
    assert one.basic == pytest.approx(whole.throughput_basic_requests_per_s, rel=1e-6)
    assert one.split == pytest.approx(whole.split, abs=1e-5)
    assert name_of(one.bottleneck) == whole.bottleneck


@pytest.mark.parametrize(
    ("first", "second"),
    [("decode_nodes", "prefill_nodes"), ("snic_bytes_per_s", "dram_bytes_per_s")],
)
def test_cells_name_the_plans_bottleneck(first: str, second: str) -> None:
    """Where two capacities are full at the best split, the map must name the one that is worth more."""
    asked = scenario("deepseek-660b-2p4d")
    found = grid(asked, axis(asked, first, 12), axis(asked, second, 12))
    rng = np.random.default_rng(3)
    cells = np.argwhere(found.bottleneck >= 0)
    for j, i in rng.choice(cells, 12, replace=False):
        values = {second: found.y.values[j], first: found.x.values[i]}
        whole = planner.plan(change(asked, values), intervals=False)
        assert name_of(found.keys[found.bottleneck[j, i]]) == whole.bottleneck
        assert found.split[j, i] == pytest.approx(whole.split, abs=1e-5)
