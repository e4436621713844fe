"""From a scenario to a scheduler: limits against the plan's parameters, costs against the loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dualpath_model import load_scenario
from dualpath_model.errors import InputError
from dualpath_model.loads import Parallelism, cluster_loads
from dualpath_model.paths import Pool, Resource
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.reference import Scheduler
from dualpath_model.scheduler.setup import (
    quota_model,
    resource_name,
    scheduler_nodes,
    scheduler_settings,
    transfer_costs,
)
from solvers import plan, solve_linear
from solvers.scheduling import configure, with_prices
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def example(name: str) -> Scenario:
    return load_scenario(ROOT / "examples" / f"{name}.yaml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_gives_a_scheduler(path: Path) -> None:
    settings, nodes = configure(load_scenario(path), "priced")
    scheduler = Scheduler(settings)
    for node in nodes:
        scheduler.handle(node)
    assert scheduler.ledger.state().prefill.tok.size > 0


def test_an_expert_group_is_of_neighbours_that_are_split_alike() -> None:
    """Experts of two H200 nodes and of four H20 nodes: no group has some of both."""
    groups: dict[str, list[str]] = {}
    for node in scheduler_nodes(example("heterogeneous")):
        groups.setdefault(node.group, []).append(node.node)
    assert groups == {
        "prefill-0": ["p0", "p1"],
        "prefill-1": ["p2", "p3"],
        "decode-0": ["d0", "d1"],
        "decode-1": ["d2", "d3", "d4", "d5"],
    }


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d"])
def test_limits_are_the_plan_s_parameters(name: str) -> None:
    scenario = example(name)
    parameters = plan(scenario).scheduler_parameters
    for node, parameter in zip(scheduler_nodes(scenario), parameters.nodes, strict=True):
        assert node.pool == parameter.pool
        assert node.limits.alpha_tokens == int(parameter.alpha_tokens)
        assert node.limits.beta_tokens == int(parameter.beta_tokens)
        assert node.limits.read_tokens_per_s * 3.0 == pytest.approx(parameter.alpha_tokens)


def test_hbm_tokens_hold_what_the_decode_point_holds() -> None:
    """The largest batch of the static model is mean contexts in the room that the scheduler counts."""
    scenario = example("qwen-32b-1p2d")
    (group,) = scenario.loads().decode
    assert group.decode_point is not None
    (node, *_) = (n for n in scheduler_nodes(scenario) if n.pool == "decode")
    token = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    contexts = group.decode_point.batch * scenario.means.decode_context_bytes / token
    assert node.limits.hbm_tokens == pytest.approx(contexts, rel=1e-3)


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "deepseek-v3.2-aws-p5"])
@pytest.mark.parametrize("pool", [Pool.PREFILL, Pool.DECODE])
@pytest.mark.parametrize("split", [0.0, 1.0])
def test_costs_add_up_to_the_loads(name: str, pool: Pool, split: float) -> None:
    """Seconds per token, for the mean request, are the loads' bytes over the capacities.

    All but the storage read, and the write-back of generated tokens, which nobody knows beforehand.
    """
    scenario = example(name)
    no_output = replace(scenario.means, output_tokens=0.0)
    payloads = {p: a for p, a in scenario.means.payloads.items() if p.value != "generated"}
    loads = cluster_loads(
        scenario.cluster,
        scenario.llm,
        replace(no_output, payloads=payloads),
        scenario.serving,
        scenario.slo,
        scenario.efficiencies,
    )
    (group,) = loads.groups(pool)
    costs = transfer_costs(scenario, pool, group.node)
    near_side = 0.0 if pool is Pool.PREFILL else 1.0
    per_hit = costs.near_s if split == near_side else costs.far_s
    misses = scenario.means.prompt_tokens - scenario.means.hit_tokens
    demand = group.demand.at(split)
    for column, name_ in enumerate(costs.resources):
        key = next(k for k in group.capacity if resource_name(k) == name_)
        seconds = scenario.means.hit_tokens * per_hit[column] + misses * costs.miss_s[column]
        expected = float(demand.get(key, 0.0)) / group.capacity[key]
        assert seconds == pytest.approx(expected, rel=1e-9, abs=1e-15), name_


@pytest.mark.parametrize(
    "name", ["deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "deepseek-v3.2-aws-p5"]
)
def test_shares_of_the_dual_value_add_up(name: str) -> None:
    """Strong duality: prices x capacities are the throughput, so the shares of all rows are 1."""
    scenario = example(name)
    solution = solve_linear(scenario.loads())
    nodes = with_prices(scenario, solution)
    shared = sum(
        row.dual_value * row.capacity for row in solution.rows if row.key.pool is Pool.CLUSTER
    )
    shares = sum(
        n.limits.prices.read_price + n.limits.prices.engine_price + sum(n.limits.prices.price)
        for n in nodes
    )
    assert shares == pytest.approx(1.0 - shared / solution.throughput, rel=1e-6)


def test_settings_are_the_scenario_s() -> None:
    scenario = example("deepseek-660b-2p4d")
    settings = scheduler_settings(scenario, "dualpath", 7)
    assert (settings.z_factor, settings.block_tokens, settings.patience) == (1.05, 64, 7)
    work = (
        settings.hit_s_per_token * scenario.workload.hit_tokens
        + settings.miss_s_per_token * scenario.workload.miss_tokens
    )
    assert work.max() == pytest.approx(settings.most_work_s)
    configured, _ = configure(scenario)
    assert configured.expected_split == pytest.approx(plan(scenario).split)


def test_an_engine_that_spans_nodes_is_refused() -> None:
    scenario = example("deepseek-660b-2p4d")
    serving = replace(scenario.serving, prefill=Parallelism(tensor=16, expert=16))
    with pytest.raises(InputError, match=r"parallelism.prefill.tensor is 16"):
        scheduler_nodes(replace(scenario, serving=serving))


def test_the_quota_model_uses_the_calibrated_rate() -> None:
    scenario = example("deepseek-660b-2p4d")
    node = scenario.cluster.prefill[0]
    halved = replace(
        scenario,
        efficiencies=replace(
            scenario.efficiencies, prefill_mfu=scenario.efficiencies.prefill_mfu / 2
        ),
    )
    assert quota_model(halved, node).pair_s == pytest.approx(2 * quota_model(scenario, node).pair_s)


def test_what_is_not_a_limit_has_no_price() -> None:
    scenario = replace(
        example("deepseek-660b-2p4d"), limits=frozenset({Resource.SNIC, Resource.GPU})
    )
    costs = transfer_costs(scenario, Pool.DECODE, scenario.cluster.decode[0])
    assert costs.resources == ("snic out",)
