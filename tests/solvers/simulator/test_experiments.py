"""Whole runs: laws of every run, a second route to the same numbers, order of the policies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from dualpath_model import load_scenario
from dualpath_model.errors import InputError
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.policies import POLICIES
from solvers import drive
from solvers.scheduling import configure
from solvers.simulator import experiments
from solvers.simulator.agenda import set_time
from solvers.simulator.arrivals import arrivals
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import Simulated, execute, simulate
from solvers.simulator.model import FETCH_S, Simulation, Switches, prepare, traffic_of
from solvers.simulator.state import MOVE_ENTRY, PREFILL_LEADER_ENTRY, RESULT_FIELDS, TURNS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # compiled, so no lines to count

BARE = Constants()


@cache
def example(name: str) -> Scenario:
    return load_scenario(ROOT / "examples" / f"{name}.yaml")


def first_agents(scenario: Scenario, agents: int, *, compiled: bool = True) -> Simulation:
    """The workload's first sessions, all at once: what the driver runs."""
    settings, nodes = configure(scenario)
    traffic = traffic_of(scenario.workload, np.arange(agents), np.zeros(agents))
    return prepare(scenario, settings, nodes, traffic, compiled=compiled)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy_serves_every_turn(policy: str) -> None:
    """The laws (order of times, bytes read, empty accounts) are checked inside each run."""
    scenario = example("deepseek-660b-2p4d")
    run = simulate(scenario, policy, agents=5, constants=BARE, compiled=False)
    sessions, _ = arrivals(scenario.workload, 5, None, 0)
    assert run.turns == np.diff(scenario.workload.offsets)[sessions].sum()
    assert run.agents_ended == 5
    parts = [run.scheduling_s, run.allocating_s, run.reading_s, run.prefill_s]
    assert sum(part["mean"] for part in parts) == pytest.approx(run.ttft_s["mean"])
    assert all(0 <= row.busy <= 1 + 1e-9 for row in run.utilisation)
    shares = {"basic": (3.0, 0.1), "round-robin": (1.5, 0.1), "oracle": (1.0, 1e-9)}
    if policy in shares:
        share, error = shares[policy]
        assert run.snic_max_over_mean <= 3.0 + error
        assert run.snic_max_over_mean >= share - error


def test_compiled_and_plain_are_the_same() -> None:
    """The same kernel as plain Python: every time of every turn, to the nanosecond."""
    rows = []
    for compiled in (True, False):
        run = first_agents(example("deepseek-660b-2p4d"), 12, compiled=compiled)
        run.go(until_s=15.0)
        assert run.total(TURNS) > 50
        rows.append(run.sim.results.rows)
    assert (rows[0] == rows[1]).all()


@pytest.mark.parametrize("agents", [60, 300])
def test_it_agrees_with_the_driver(agents: int) -> None:
    """Two independent routes over the same sessions, comparable where buffers are not full and moving
    between memories is free, as it is for the driver. What is left: its decode steps are at the mean
    context, engines do not step together, and a request joins at once, not at the next step.
    """
    scenario, stop_s = example("deepseek-660b-2p4d"), 150.0
    settings, nodes = configure(scenario)
    limit = Switches().token_limit
    driven = drive(scenario, settings, nodes, agents=agents, stop_s=stop_s, batch_tokens=limit)
    run = first_agents(scenario, agents)
    for seconds in (run.sim.machine.near_s, run.sim.machine.far_s, run.sim.machine.miss_s):
        seconds[:] = 0.0
    first, last = (run.sim.entries[kind] for kind in (PREFILL_LEADER_ENTRY, MOVE_ENTRY))
    for leader in range(last - first):  # the driver's leaders of both pools take turns together
        at_ns = round(FETCH_S * 1e9 * (leader + 1) / (last - first))
        set_time(run.sim.world.agenda, first + leader, at_ns)
        run.sim.world.leader_ns[leader] = at_ns
    run.go(stop_s)
    time_of = {name: run.rows[:, RESULT_FIELDS.index(name)] / 1e9 for name in RESULT_FIELDS}
    assert (time_of["allocated"] == time_of["placed"]).all()  # room in every buffer
    output = run.sim.traffic.output[run.rows[:, 1]]
    ttft = time_of["first_token"] - time_of["submitted"]
    tpot = (time_of["ended"] - time_of["first_token"]) / output
    assert len(run.rows) == pytest.approx(driven.turns, rel=0.02)
    assert ttft.mean() == pytest.approx(driven.ttft_s["mean"], rel=0.04)
    assert tpot.mean() == pytest.approx(driven.tpot_s["mean"], rel=0.03)


def test_seeds_repeat_and_differ() -> None:
    scenario = example("deepseek-660b-2p4d")

    def run(seed: int) -> Simulated:
        done = simulate(scenario, agents=30, rate_aps=1.0, seed=seed, until_s=60.0, constants=BARE)
        return replace(done, wall_s=0.0)

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_run_in_pieces_is_the_run_in_one() -> None:
    whole, pieces = (first_agents(example("deepseek-660b-2p4d"), 40) for _ in range(2))
    whole.go(until_s=30.0)
    while pieces.go(until_s=30.0, most_events=997) < 30.0:
        pass
    assert len(whole.rows) > 500
    assert (whole.sim.results.rows == pieces.sim.results.rows).all()


@pytest.mark.parametrize("sample_s", [0.5, 0.7])
def test_samples_do_not_change_a_run(sample_s: float) -> None:
    """0.7 is no sum of powers of two: the times of samples are rounded."""
    scenario, pieces = example("deepseek-660b-2p4d"), 0

    def count(share: float, seconds: float, turns: int) -> None:
        nonlocal pieces
        pieces += 1
        assert pieces < 1000, f"the run stands still at {seconds} s"

    plain = execute(scenario, agents=40, until_s=30.0, constants=BARE)
    sampled = execute(
        scenario, agents=40, until_s=30.0, sample_s=sample_s, constants=BARE, progress=count
    )
    assert (plain.run.rows == sampled.run.rows).all()
    times = np.array([row[0] for row in sampled.series.cluster])
    assert times == pytest.approx(sample_s * np.arange(1, int(30.0 / sample_s) + 1), abs=1e-8)


def test_slower_parts_take_longer() -> None:
    scenario = example("deepseek-660b-2p4d")
    layers = scenario.llm.layers

    def run(constants: Constants = BARE, switches: Switches | None = None) -> Simulated:
        return simulate(scenario, agents=50, until_s=60.0, constants=constants, switches=switches)

    plain, exposed = run(), run(switches=Switches(layerwise=False))
    slower = run(Constants(batch_layer_s=0.5 / layers))
    steps = run(Constants(step_layer_s=0.01 / layers))
    assert exposed.ttft_s["mean"] > plain.ttft_s["mean"]
    assert slower.prefill_s["mean"] > plain.prefill_s["mean"] + 0.4
    assert steps.tpot_s["mean"] == pytest.approx(plain.tpot_s["mean"] + 0.01, rel=0.1)


def test_warm_up_and_stop_choose_what_is_counted() -> None:
    run = execute(
        example("deepseek-660b-2p4d"), agents=40, until_s=30.0, warmup_s=10.0, constants=BARE
    )
    ended = run.run.rows[:, -1] / 1e9
    assert run.summary.turns_counted == (ended >= 10.0).sum()
    assert run.summary.turns == len(ended)
    assert run.summary.turns_per_s_simulated == pytest.approx((ended >= 10.0).sum() / 20.0)
    assert ended.max() <= 30.0 == run.summary.end_s


def test_ctrl_c_keeps_what_is_finished() -> None:
    def stop(share: float, seconds: float, turns: int) -> None:
        if seconds >= 10.0:
            raise KeyboardInterrupt

    run = simulate(
        example("deepseek-660b-2p4d"), agents=40, constants=BARE, progress=stop, until_s=10.0
    )
    assert run.interrupted
    assert 0 < run.turns == run.turns_counted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agents": 0}, "agents is 0"),
        ({"rate_aps": 0.0}, "rate is 0.0"),
        ({"rate_aps": np.nan}, "rate is nan"),
        ({"until_s": 0.0}, "seconds is 0.0"),
        ({"until_s": 5.0, "warmup_s": 5.0}, "warmup is 5.0 s"),
        ({"sample_s": 0.0}, "sample is 0.0 s"),
        ({"policy": "dualpth"}, "nearest are dualpath"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        execute(example("deepseek-660b-2p4d"), **change)  # type: ignore[arg-type]


def test_a_run_that_does_not_fit_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """... and the number of agents that the message gives does fit, but for rounding."""

    def free(available: int) -> None:
        memory = SimpleNamespace(available=available)
        monkeypatch.setattr(experiments.psutil, "virtual_memory", lambda: memory)

    scenario = example("deepseek-660b-2p4d")
    free(10_000_000)
    with pytest.raises(InputError, match=r"agents is 3000: .* at most about") as refused:
        simulate(scenario, agents=3000)
    fitting = int(str(refused.value).split("at most about ")[1].split()[0])
    assert 0 < fitting < 3000
    simulate(scenario, agents=int(0.9 * fitting), until_s=1.0, constants=BARE)


def test_a_turn_that_no_engine_holds_is_refused() -> None:
    scenario = example("deepseek-660b-2p4d")
    settings, nodes = configure(scenario)
    small = [replace(node, limits=replace(node.limits, hbm_tokens=1000)) for node in nodes]
    traffic = traffic_of(scenario.workload, np.arange(5), np.zeros(5))
    with pytest.raises(InputError, match="more than the 1000 that the largest decode engine"):
        prepare(scenario, settings, small, traffic)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mixed-traffic", "classes of traffic"),
        ("dram-cache", "dram_cache"),
        ("heterogeneous", "cluster.storage"),
    ],
)
def test_what_is_not_modelled_is_refused(name: str, words: str) -> None:
    """Better no answer than one that leaves a part of the question out."""
    with pytest.raises(InputError, match=words):
        simulate(example(name), agents=2, compiled=False)
