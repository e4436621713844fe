"""Whole runs: laws of every run, a second route to the same numbers, order of the policies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from dualpath_model import load_scenario
from dualpath_model.errors import InputError
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.policies import POLICIES
from solvers import drive
from solvers.scheduling import configure
from solvers.simulator import kernel
from solvers.simulator.experiments import Simulated, simulate
from solvers.simulator.model import Constants, Switches, prepare, traffic_of
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # compiled, so no lines to count


@cache
def example(name: str) -> Scenario:
    return load_scenario(ROOT / "examples" / f"{name}.yaml")


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy_serves_every_turn(policy: str) -> None:
    """The laws (order of times, bytes read, empty accounts) are checked inside each run."""
    scenario = example("deepseek-660b-2p4d")
    run = simulate(scenario, policy, agents=5, compiled=False)
    assert run.turns == scenario.workload.offsets[5]
    assert run.agents_ended == 5
    parts = [run.waiting_s["mean"], run.reading_s["mean"], run.prefill_s["mean"]]
    assert sum(parts) == pytest.approx(run.ttft_s["mean"])
    assert all(0 <= row.busy <= 1 + 1e-9 for row in run.utilisation)
    shares = {"basic": (3.0, 0.1), "round-robin": (1.5, 0.1), "oracle": (1.0, 1e-9)}
    if policy in shares:
        share, error = shares[policy]
        assert run.snic_max_over_mean <= 3.0 + error
        assert run.snic_max_over_mean >= share - error


def test_compiled_and_plain_are_the_same() -> None:
    """The same kernel as plain Python: every time of every turn, to the nanosecond."""
    scenario = example("deepseek-660b-2p4d")
    settings, nodes = configure(scenario)
    rows = []
    for compiled in (True, False):
        traffic = traffic_of(scenario.workload, 12)
        run = prepare(scenario, settings, nodes, traffic, compiled=compiled)
        run.go(until_s=15.0)
        assert run.results.totals[kernel.TURNS] > 50
        rows.append(run.results.rows)
    assert (rows[0] == rows[1]).all()


def test_it_agrees_with_the_driver() -> None:
    """Two independent routes: the driver spends no time on transfers between memories, and reports
    what it sees; at this load both differences are small.
    """
    scenario = example("deepseek-660b-2p4d")
    settings, nodes = configure(scenario)
    driven = drive(scenario, settings, nodes, agents=300, stop_s=150.0)
    run = simulate(scenario, agents=300, until_s=150.0)
    assert run.turns == pytest.approx(driven.turns, rel=0.05)
    assert run.ttft_s["mean"] == pytest.approx(driven.ttft_s["mean"], rel=0.1)
    assert run.tpot_s["mean"] == pytest.approx(driven.tpot_s["mean"], rel=0.05)


def test_seeds_repeat_and_differ() -> None:
    scenario = example("deepseek-660b-2p4d")

    def run(seed: int) -> Simulated:
        done = simulate(scenario, agents=30, rate_aps=1.0, seed=seed, until_s=60.0)
        return replace(done, wall_s=0.0)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_run_in_pieces_is_the_run_in_one() -> None:
    scenario = example("deepseek-660b-2p4d")
    settings, nodes = configure(scenario)
    traffic = traffic_of(scenario.workload, 40)
    whole = prepare(scenario, settings, nodes, traffic)
    whole.go(until_s=30.0)
    pieces = prepare(scenario, settings, nodes, traffic)
    while pieces.go(until_s=30.0, most_events=997) < 30.0:
        pass
    assert (whole.results.rows == pieces.results.rows).all()


def test_slower_parts_take_longer() -> None:
    scenario = example("deepseek-660b-2p4d")
    plain = simulate(scenario, agents=50, until_s=60.0)
    exposed = simulate(scenario, agents=50, until_s=60.0, switches=Switches(layerwise=False))
    slower = simulate(scenario, agents=50, until_s=60.0, constants=Constants(batch_s=0.5))
    steps = simulate(scenario, agents=50, until_s=60.0, constants=Constants(step_s=0.01))
    assert exposed.ttft_s["mean"] > plain.ttft_s["mean"]
    assert slower.prefill_s["mean"] > plain.prefill_s["mean"] + 0.4
    assert steps.tpot_s["mean"] == pytest.approx(plain.tpot_s["mean"] + 0.01, rel=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agents": 0}, "agents is 0"),
        ({"rate_aps": 0.0}, "rate is 0.0"),
        ({"rate_aps": np.nan}, "rate is nan"),
        ({"policy": "dualpth"}, "nearest are dualpath"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        simulate(example("deepseek-660b-2p4d"), **change)  # type: ignore[arg-type]


def test_a_turn_that_no_engine_holds_is_refused() -> None:
    scenario = example("deepseek-660b-2p4d")
    settings, nodes = configure(scenario)
    small = [replace(node, limits=replace(node.limits, hbm_tokens=1000)) for node in nodes]
    with pytest.raises(InputError, match="more than the 1000 that the largest decode engine"):
        prepare(scenario, settings, small, traffic_of(scenario.workload, 5))
