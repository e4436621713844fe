"""The simulator against the LP of each framework: throughput grows towards its bound, never past it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dualpath_model.cluster import Node
from dualpath_model.paths import Pool
from solvers import plan
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import execute
from tests.solvers.simulator.test_bound import CASES, LOADS, STOP_S, scenario_of, throughput

pytestmark = pytest.mark.slow  # compiled, so no lines to count

BOUNDS = {  # framework, which hardware is slow -> what then limits it
    ("vllm", "storage NICs"): ("any", "snic"),
    ("vllm", "prefill GPUs"): ("prefill", "gpu"),
    ("vllm-pull", "prefill GPUs"): ("prefill", "gpu"),
    ("vllm-pull", "decode HBM"): ("decode", "hbm"),
    ("sglang", "storage NICs"): ("prefill", "snic"),
    ("sglang", "decode HBM"): ("decode", "hbm"),
}
_STAGES = {  # of a turn, which pass what limits
    "snic": ("read", "read"),
    "gpu": ("first_token", "first_token"),
    "hbm": ("admitted", "ended"),
}


def twice_the_hbm(node: Node) -> Node:
    return replace(node, gpu=replace(node.gpu, hbm_bytes=2 * node.gpu.hbm_bytes))


@pytest.mark.parametrize(("framework", "hardware"), list(BOUNDS))
def test_throughput_approaches_the_bound_of_its_framework(framework: str, hardware: str) -> None:
    assert hardware in CASES
    pool, resource = BOUNDS[framework, hardware]
    scenario = scenario_of(hardware).under(framework)
    if (framework, hardware) == ("vllm-pull", "prefill GPUs"):
        # its turns hold HBM while they wait for prefill, which the LP does not count
        for side in Pool:
            if side is not Pool.CLUSTER:
                scenario = scenario.with_each_node(side, twice_the_hbm)
    bound = plan(scenario, intervals=False)
    assert bound.bottleneck.resource == resource
    assert pool in ("any", bound.bottleneck.pool)
    shares = []
    for agents in LOADS:
        outcome = execute(scenario, agents=agents, until_s=STOP_S, constants=Constants())
        done = throughput(outcome, _STAGES[resource])
        shares.append(done / bound.throughput_requests_per_s)
    print(framework, hardware, [round(share, 4) for share in shares])
    assert max(shares) <= 1.005  # turns that are cut by the window
    assert shares[-1] >= 0.97
    growth = np.diff(shares)
    assert (growth > 0)[np.array(shares[:-1]) < 0.9].all()
    assert (growth > -0.01).all()
