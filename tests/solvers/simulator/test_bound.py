"""The simulator against the LP: throughput grows with load towards the bound, and never passes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from dualpath_model import load_scenario
from dualpath_model.cluster import Node
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, Slo, WorkloadClass
from dualpath_model.workload import Workload
from solvers import plan
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import Outcome, execute
from solvers.simulator.state import RESULT_FIELDS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # compiled, so no lines to count

BEGIN_S, END_S, STOP_S = 100.0, 1000.0, 1100.0
"""Counted window, and a margin in which the turns of the window end."""
LOADS = (100, 200, 400, 800, 1600)


def endless(output: int, turns: int = 20_000) -> Workload:
    """One session whose every turn is the paper's mean turn, but for its output."""
    ones = np.ones(turns)
    return Workload(
        prompt_tokens=32721 * ones,
        hit_tokens=(32721 - 429) * ones,
        output_tokens=output * ones,
        think_time_s=0 * ones,
        start_s=np.zeros(1),
        offsets=np.array([0, turns]),
    )


def slower_storage(node: Node) -> Node:
    return replace(node, snic_bytes_per_s=node.snic_bytes_per_s / 4)


def slower_gpus(node: Node) -> Node:
    bf16, fp8 = node.gpu.bf16_flop_per_s, node.gpu.fp8_flop_per_s
    assert fp8 is not None
    return replace(node, gpu=replace(node.gpu, bf16_flop_per_s=bf16 / 4, fp8_flop_per_s=fp8 / 4))


def slower_hbm(node: Node) -> Node:
    return replace(node, gpu=replace(node.gpu, hbm_bytes_per_s=node.gpu.hbm_bytes_per_s / 4))


def same(node: Node) -> Node:
    return node


@dataclass(frozen=True)
class Case:
    """A cluster with one bottleneck, and the stage of a turn that passes it.

    Outputs are long where decode limits: what a turn holds of a decode engine's HBM before it decodes
    (a read, a prefill) is not in the LP, and must be short against the decoding itself.
    """

    prefill: Callable[[Node], Node]
    decode: Callable[[Node], Node]
    output: int
    bottleneck: tuple[str, str]
    stage: tuple[str, str]


CASES = {
    "storage NICs": Case(slower_storage, slower_storage, 176, ("any", "snic"), ("read", "read")),
    "prefill GPUs": Case(same, same, 176, ("prefill", "gpu"), ("first_token", "first_token")),
    "decode GPUs": Case(same, slower_gpus, 800, ("decode", "gpu"), ("admitted", "ended")),
    "decode HBM": Case(same, slower_hbm, 800, ("decode", "hbm"), ("admitted", "ended")),
}


@cache
def scenario_of(name: str) -> Scenario:
    case = CASES[name]
    mean_turn = load_scenario(ROOT / "examples" / "paper-mean-turn.yaml")
    return (
        replace(
            mean_turn,
            classes=(WorkloadClass("all", endless(case.output), share=1.0),),
            slo=Slo(ttft_s=1.0, tpot_s=1.0),  # so that nothing but hardware sets the LP's batch
        )
        .with_each_node(Pool.PREFILL, case.prefill)
        .with_each_node(Pool.DECODE, case.decode)
    )


def throughput(outcome: Outcome, stage: tuple[str, str]) -> float:
    """Turns per second through a stage in the window; one that is cut counts by its time inside."""
    begin, end = (outcome.run.rows[:, RESULT_FIELDS.index(name)] / 1e9 for name in stage)
    inside = np.minimum(end, END_S) - np.maximum(begin, BEGIN_S)
    took = end - begin
    instant = took == 0
    share = np.where(
        instant, (begin >= BEGIN_S) & (end < END_S), inside / np.where(instant, 1.0, took)
    )
    return float(np.maximum(share, 0.0).sum() / (END_S - BEGIN_S))


@pytest.mark.parametrize("name", list(CASES))
def test_throughput_approaches_the_bound_from_below(name: str) -> None:
    case, scenario = CASES[name], scenario_of(name)
    bound = plan(scenario)
    pool, resource = case.bottleneck
    assert bound.bottleneck.resource == resource
    assert pool in ("any", bound.bottleneck.pool)
    shares = []
    for agents in LOADS:
        outcome = execute(scenario, agents=agents, until_s=STOP_S, constants=Constants())
        shares.append(throughput(outcome, case.stage) / bound.throughput_requests_per_s)
    assert max(shares) <= 1.005  # turns that are cut by the window
    assert shares[-1] >= 0.97
    growth = np.diff(shares)
    assert (growth > 0)[np.array(shares[:-1]) < 0.9].all()
    assert (growth > -0.01).all()  # once the bound is near, more load takes nothing away
