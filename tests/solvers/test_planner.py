"""The plan against its parts: LP, closed form, parameters, and what a planner would ask of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from numpy.testing import assert_allclose

from dualpath_model import Pool, Scenario, closed_form, load_scenario
from dualpath_model.llm import KvDtype
from solvers import plan, planner
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def paper() -> Scenario:
    return load_scenario(EXAMPLES / "deepseek-660b-2p4d.yaml")


@pytest.fixture(scope="module")
def paper_plan(paper: Scenario) -> planner.Plan:
    return plan(paper)


def test_plan_equals_the_closed_form(paper: Scenario, paper_plan: planner.Plan) -> None:
    bound = closed_form.solve(*closed_form.of_loads(paper.loads()))
    assert_allclose(paper_plan.throughput_requests_per_s, bound.throughput, rtol=1e-9)
    assert_allclose(paper_plan.split, bound.split, rtol=1e-6)
    assert_allclose(paper_plan.throughput_basic_requests_per_s, bound.throughput_basic, rtol=1e-9)


def test_basic_is_limited_by_the_prefill_storage_nics(paper_plan: planner.Plan) -> None:
    """2 storage NICs of 50 GB/s over the bytes that a request reads: no other number is needed."""
    assert paper_plan.bottleneck_basic == planner.ResourceName("prefill", "snic", "in")
    by_hand = 100e9 / paper_plan.workload.read_bytes_per_request
    assert_allclose(paper_plan.throughput_basic_requests_per_s, by_hand, rtol=1e-9)


def test_bounds_are_in_order(paper_plan: planner.Plan) -> None:
    oracle = paper_plan.throughput_oracle_requests_per_s
    assert oracle is not None
    assert (
        paper_plan.throughput_basic_requests_per_s
        <= paper_plan.throughput_requests_per_s
        <= oracle * (1 + 1e-9)
    )
    assert paper_plan.speedup_over_basic <= 3.0 + 1e-9  # (P + D) / P


def test_flows_add_up(paper_plan: planner.Plan) -> None:
    for pool in ("prefill", "decode"):
        total = sum(flow.requests_per_s for flow in paper_plan.flows if flow.pool == pool)
        assert_allclose(total, paper_plan.throughput_requests_per_s, rtol=1e-9)
    reads = sum(flow.storage_reads_per_s for flow in paper_plan.flows)
    assert_allclose(reads, paper_plan.throughput_requests_per_s, rtol=1e-9)
    decode = sum(flow.storage_reads_per_s for flow in paper_plan.flows if flow.pool == "decode")
    assert_allclose(decode / reads, paper_plan.split, rtol=1e-9)


def test_scheduler_parameters_follow_the_papers_rules(
    paper: Scenario, paper_plan: planner.Plan
) -> None:
    found = paper_plan.scheduler_parameters
    # alpha: tokens readable in 3 s at 50 GB/s and 35,136 B a token
    assert_allclose(found.alpha_tokens, 3 * 50e9 / 35_136, rtol=1e-9)
    # beta: prompt tokens that a GPU prefills in 5 s
    gpu = 1979e12 * paper.efficiencies.prefill_mfu
    prompts_per_s = gpu / paper_plan.workload.prefill_flops_per_request
    assert_allclose(found.beta_tokens, 5 * prompts_per_s * paper.workload.mean_prompt_tokens)
    assert (found.quota_s, found.z_factor, found.block_tokens) == (0.3, 1.05, 64)
    assert_allclose(sum(node.read_weight for node in found.nodes), 1.0, rtol=1e-9)
    assert found.nodes[0].buffer_bytes == 80e9


def test_neighbours_are_what_planning_them_gives(paper: Scenario, paper_plan: planner.Plan) -> None:
    here = [n for n in paper_plan.neighbours if (n.prefill_nodes, n.decode_nodes) == (2, 4)]
    assert_allclose(here[0].throughput_requests_per_s, paper_plan.throughput_requests_per_s)
    other = next(n for n in paper_plan.neighbours if (n.prefill_nodes, n.decode_nodes) == (3, 3))
    assert_allclose(
        other.throughput_requests_per_s,
        plan(paper.with_nodes(3, 3)).throughput_requests_per_s,
        rtol=1e-9,
    )
    alone = next(n for n in paper_plan.neighbours if n.prefill_nodes == 1)
    assert not alone.feasible  # DeepSeek-V3.2 does not fit the 8 GPUs of one prefill node
    assert "does not fit" in str(alone.reason)


def test_upgrades_are_what_planning_them_gives(paper: Scenario, paper_plan: planner.Plan) -> None:
    faster = next(u for u in paper_plan.upgrades if "FLOP/s" in u.change)
    changed = paper.with_each_node(
        Pool.PREFILL,
        lambda node: replace(
            node, gpu=replace(node.gpu, fp8_flop_per_s=1.1 * (node.gpu.fp8_flop_per_s or 0.0))
        ),
    )
    assert_allclose(
        faster.throughput_requests_per_s, plan(changed).throughput_requests_per_s, rtol=1e-9
    )
    gains = [upgrade.gain for upgrade in paper_plan.upgrades]
    assert gains == sorted(gains, reverse=True)


def test_a_cloud_shape_without_storage_nic() -> None:
    """The decode path lives on host memory's 63 GB/s; the range is not defined and says why."""
    found = plan(load_scenario(EXAMPLES / "deepseek-v3.2-aws-p5.yaml"))
    assert found.bottleneck.resource == "host_link"
    assert found.bottleneck_free.holds is None
    assert "no storage NIC" in str(found.bottleneck_free.reason)
    assert any("shares its compute NICs" in note for note in found.notes)
    assert any("DRAM is not a limit" in note for note in found.notes)
    assert 0 < found.split < 4 / 6


def test_an_uneven_cluster() -> None:
    found = plan(load_scenario(EXAMPLES / "heterogeneous.yaml"))
    rates = [flow.storage_read_bytes_per_s for flow in found.flows if flow.pool == "prefill"]
    assert rates[3] <= 50e9 * (1 + 1e-9)  # the node that lost a NIC reads within its one
    assert len(found.decode_engines) == 2
    assert found.bottleneck_free.holds is None
    assert all(row.dual_path <= 1 + 1e-7 for row in found.utilisation)


def test_the_papers_analysis_has_no_oracle() -> None:
    found = plan(load_scenario(EXAMPLES / "paper-analysis.yaml"))
    assert found.throughput_oracle_requests_per_s is None
    assert_allclose(found.split, 4 / 6, rtol=1e-9)
    assert_allclose(found.speedup_over_basic, 3.0, rtol=1e-9)
    assert found.bottleneck_free.low == 1 / 7
    assert found.bottleneck_free.high == 7 / 2


def test_dram_cache_lowers_reads_not_work(paper_plan: planner.Plan) -> None:
    found = plan(load_scenario(EXAMPLES / "dram-cache.yaml"))
    assert_allclose(
        found.workload.read_bytes_per_request,
        0.7 * paper_plan.workload.read_bytes_per_request,
        rtol=1e-9,
    )
    assert_allclose(
        found.throughput_basic_requests_per_s,
        paper_plan.throughput_basic_requests_per_s / 0.7,
        rtol=1e-9,
    )


def test_a_scenario_kept_on_another_cluster_keeps_its_means(paper: Scenario) -> None:
    assert paper.with_nodes(4, 8).means is paper.means
    assert paper.serving.kv_dtype is KvDtype.FP8
