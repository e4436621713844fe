"""Every solver takes the scenario's table: closed form, LP, grid and pictures agree for each."""

from __future__ import annotations

import graphlib
from collections import defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from app import compare, plan_view
from dualpath_model import closed_form, load_scenario
from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InfeasibleError
from dualpath_model.frameworks import FRAMEWORKS
from dualpath_model.llm import KvDtype
from dualpath_model.loads import (
    Serving,
    Slo,
    cluster_loads,
    compute_only,
    movement,
    request_means,
)
from dualpath_model.paths import Payload, StepTable
from dualpath_model.scenario import Scenario
from dualpath_model.workload import Workload
from solvers import linear, planner
from solvers.alternatives import oracle_throughput, quick
from solvers.derivation import equations
from solvers.grid import Axis, grid
from solvers.parameters import change
from solvers.real_traffic import real_traffic_range
from solvers.symbolic import PAYLOADS, demand, storage_bound
from tests.conftest import ROOT
from tests.strategies import EFFICIENCIES, SMALL_LLM, nodes, shared_limits, workloads

NAMES = list(FRAMEWORKS)


@cache
def scenario_of(framework: str, example: str = "deepseek-660b-2p4d") -> Scenario:
    return load_scenario(ROOT / "examples" / f"{example}.yaml").under(framework)


@cache
def plan_of(framework: str, example: str = "deepseek-660b-2p4d") -> planner.Plan:
    return planner.plan(scenario_of(framework, example), intervals=False)


def thinking(workload: Workload, seconds: float) -> Workload:
    return replace(workload, think_time_s=np.full(workload.turns, seconds))


@settings(max_examples=150)
@given(
    table=st.sampled_from(list(FRAMEWORKS.values())),
    prefill=nodes(),
    decode=nodes(),
    counts=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shared=shared_limits(),
    workload=workloads(),
    think_s=st.sampled_from([0.0, 5.0, 60.0]),
    share=st.sampled_from([0.0, 0.3]),
)
def test_lp_equals_closed_form_for_every_table(
    table: StepTable,
    prefill: Node,
    decode: Node,
    counts: tuple[int, int],
    shared: dict[str, float | None],
    workload: Workload,
    think_s: float,
    share: float,
) -> None:
    cluster = Cluster((prefill,) * counts[0], (decode,) * counts[1], **shared)
    means = request_means(SMALL_LLM, thinking(workload, think_s), KvDtype.FP8)
    serving = Serving(KvDtype.FP8, table=table, dram_cache_hit_share=share)
    loads = cluster_loads(cluster, SMALL_LLM, means, serving, Slo(tpot_s=0.1), EFFICIENCIES)
    bound = closed_form.solve(*closed_form.of_loads(loads))
    best = linear.solve(loads, decode_reads=table.splits)
    assert_allclose(best.throughput, bound.throughput, rtol=1e-9)
    basic = linear.solve(loads, decode_reads=False)
    assert_allclose(basic.throughput, bound.throughput_basic, rtol=1e-9)
    assert_allclose(best.split, bound.split, atol=1e-6)


@pytest.mark.parametrize("example", ["deepseek-660b-2p4d", "recorded-sessions", "dram-cache"])
@pytest.mark.parametrize("name", NAMES)
def test_plan_and_closed_form_agree(name: str, example: str) -> None:
    found, fast = plan_of(name, example), quick(scenario_of(name, example))
    assert_allclose(found.throughput_requests_per_s, fast.throughput, rtol=1e-9)
    assert_allclose(found.split, fast.split, atol=1e-6)
    assert found.framework == name


@pytest.mark.parametrize("name", NAMES)
def test_storage_reads_are_those_of_the_storage_nics(name: str) -> None:
    """The flows by the table against the utilisation of each side's NICs, on every shipped mix."""
    for example in ("deepseek-660b-2p4d", "mixed-traffic", "dram-cache"):
        plan = plan_of(name, example)
        for pool in ("prefill", "decode"):
            used = sum(
                row.dual_path * row.capacity
                for row in plan.utilisation
                if (row.pool, row.resource, row.direction) == (pool, "snic", "in")
            )
            read = sum(f.storage_read_bytes_per_s for f in plan.flows if f.pool == pool)
            assert_allclose(read, used, rtol=1e-6, atol=1e-3)
        basic = sum(
            row.basic * row.capacity
            for row in plan.utilisation
            if (row.pool, row.resource, row.direction) == ("prefill", "snic", "in")
        )
        assert_allclose(plan_view.side_rates(plan).basic, basic, rtol=1e-6)


@pytest.mark.parametrize("example", ["deepseek-660b-2p4d", "dram-cache"])
@pytest.mark.parametrize("name", NAMES)
def test_the_sankey_has_no_cycle_and_loses_nothing(name: str, example: str) -> None:
    plan, scenario = plan_of(name, example), scenario_of(name, example)
    sources: dict[str, set[str]] = defaultdict(set)
    into: dict[tuple[str, str], float] = defaultdict(float)
    out: dict[tuple[str, str], float] = defaultdict(float)
    for flow in plan_view.step_flows(plan, scenario):
        sources[flow.target].add(flow.source)
        into[flow.target, flow.carries] += flow.bytes_per_s
        out[flow.source, flow.carries] += flow.bytes_per_s
    list(graphlib.TopologicalSorter(sources).static_order())  # raises CycleError
    for (place, payload), moved in out.items():
        if "DRAM" not in place or (place == "prefill DRAM" and example == "dram-cache"):
            continue
        if payload == Payload.APPENDED.value:  # arrives by hand-off as a miss, or is written back
            assert into[place, payload] + into[place, Payload.MISS.value] > 0
        elif name == "paper" and payload == Payload.HIT.value and place == "decode DRAM (read)":
            assert_allclose(moved, 2 * into[place, payload])  # to the prefill node, and up
        else:
            assert_allclose(moved, into[place, payload], atol=1e-3)
    assert plan_view.headline(plan)


def test_sglang_reads_every_hit_twice_and_has_no_split() -> None:
    plan, paper = plan_of("sglang"), plan_of("paper")
    assert plan.split == 0.0
    assert plan.speedup_over_basic == 1.0
    assert_allclose(plan.throughput_basic_requests_per_s, paper.throughput_basic_requests_per_s)
    assert any("no split to choose" in note for note in plan.notes)
    by_pool = {
        pool: sum(f.storage_read_bytes_per_s for f in plan.flows if f.pool == pool)
        for pool in ("prefill", "decode")
    }
    assert_allclose(by_pool["prefill"], by_pool["decode"])


def test_ranges_and_derivations_say_why_they_do_not_apply() -> None:
    for name in ("vllm-pull", "sglang"):
        scenario, table = scenario_of(name), FRAMEWORKS[name]
        found = plan_of(name).bottleneck_free
        assert found.low is found.high is found.holds is None
        assert found.reason is not None and name in found.reason
        for asked in (
            lambda scenario=scenario: real_traffic_range(scenario),
            lambda table=table: storage_bound(table),
            lambda table=table: equations(table),
        ):
            with pytest.raises(InfeasibleError, match=f"framework {name} has no bottleneck-free"):
                asked()
    for name in ("paper", "vllm", "dynamo"):
        assert plan_of(name).bottleneck_free.reason is None
        assert equations(FRAMEWORKS[name])


def test_vllms_range_by_hand() -> None:
    """g = 8, s = 1, M = 500 GB/s, Bs = 50 GB/s: loads with both sides' storage NICs saturated.

    PE CNIC read B s (1 + D/P), PE DRAM 2 B s (1 + D/P), DE CNIC write B s (1 + P/D), DE DRAM
    B s (2 + P/D).
    """
    found = plan_of("vllm").bottleneck_free
    assert found.low is not None and found.high is not None
    assert_allclose(found.low, max(1 / 7, 2 / (500 / 50 - 2)))
    assert_allclose(found.high, min(7.0, 500 / 50 - 2))


@pytest.mark.parametrize("name", NAMES)
def test_symbols_count_what_the_numbers_count(name: str) -> None:
    amounts = {Payload.HIT: 7.0, Payload.MISS: 3.0, Payload.APPENDED: 2.0, Payload.GENERATED: 5.0}
    table = FRAMEWORKS[name]
    numbers, symbols = movement(table, amounts), demand(table)
    values = {PAYLOADS[payload]: amount for payload, amount in amounts.items()}
    for split in (0.0, 0.3, 1.0):
        for key, amount in numbers.at(split).items():
            found = sympy.sympify(symbols.at(split)[key]).subs(values)
            assert_allclose(float(found), amount, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("example", ["deepseek-660b-2p4d", "recorded-sessions"])
def test_a_grid_gives_what_single_plans_give(name: str, example: str) -> None:
    """Also over lengths, where means are interpolated and the think time goes with them."""
    scenario = scenario_of(name, example)
    x, y = Axis("append_tokens", (200.0, 800.0)), Axis("decode_nodes", (3, 6))
    found = grid(scenario, x, y)
    for j, count in enumerate(y.values):
        for i, append in enumerate(x.values):
            single = quick(change(scenario, {"append_tokens": append, "decode_nodes": count}))
            assert_allclose(found.throughput[j, i], single.throughput, rtol=0.01)
            if name != "sglang":
                assert_allclose(found.split[j, i], single.split, atol=0.02)


def test_keeping_kv_cache_through_think_time_costs_throughput() -> None:
    """The more agents think, the less the pull path is worth; at no think time a note says so."""
    scenario = scenario_of("vllm-pull")
    (traffic,) = scenario.classes
    assert any("no think time" in note for note in plan_of("vllm-pull").notes)
    rates, splits = [], []
    for seconds in (0.0, 30.0, 300.0):
        changed = replace(
            scenario, classes=(replace(traffic, workload=thinking(traffic.workload, seconds)),)
        )
        found = quick(changed)
        rates.append(found.throughput)
        splits.append(found.split)
    assert rates == sorted(rates, reverse=True)
    assert splits == sorted(splits, reverse=True)
    assert splits[0] == 1.0 and splits[-1] < 0.2
    assert rates[-1] < 0.6 * rates[0]


def test_dynamos_oracle_shares_the_prefill() -> None:
    """With movement for free, the split that uses both pools' GPUs: at least each pool's own bound."""
    scenario = scenario_of("dynamo")
    found = oracle_throughput(scenario, scenario.class_loads())
    paper = oracle_throughput(scenario_of("paper"), scenario_of("paper").class_loads())
    assert found is not None and paper is not None
    assert found > paper
    best = planner.plan(scenario, intervals=False)
    assert best.throughput_requests_per_s <= found * (1 + 1e-9)
    bare = closed_form.of_loads(compute_only(scenario.loads()))
    assert_allclose(found, closed_form.solve(*bare).throughput, rtol=1e-9)


def test_comparison_has_every_framework_in_order() -> None:
    scenario = scenario_of("vllm")
    found = compare.compare(scenario)
    assert found.own == "vllm"
    assert [row.framework for row in found.frameworks] == NAMES
    for row in found.frameworks:
        plan = plan_of(row.framework)
        assert row.throughput_requests_per_s is not None and row.fraction_of_paper is not None
        assert_allclose(row.throughput_requests_per_s, plan.throughput_requests_per_s, rtol=1e-9)
        assert row.bottleneck == plan.bottleneck
        assert_allclose(
            row.fraction_of_paper,
            plan.throughput_requests_per_s / plan_of("paper").throughput_requests_per_s,
            rtol=1e-9,
        )
        assert (row.split is None) == (row.framework == "sglang")


def test_comparison_says_why_nothing_can_serve() -> None:
    scenario = replace(scenario_of("paper"), slo=Slo(ttft_s=1.0, tpot_s=1e-9))
    for row in compare.compare(scenario).frameworks:
        assert row.throughput_requests_per_s is None and row.bottleneck is None
        assert row.fraction_of_paper is None
        assert row.reason is not None and "slo.tpot" in row.reason
