"""The highest rate within the SLO: the bisection, the interval, the search on runs made up and real."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.workload import Session, Turn, from_sessions
from solvers import planner
from solvers.simulator import capacity as module
from solvers.simulator.arrivals import arrivals
from solvers.simulator.capacity import Capacity, Probe, _bisect, capacity, interval
from solvers.simulator.experiments import Outcome, simulate
from tests.solvers.simulator.small import example

# ---- bisection -----------------------------------------------------------------------------------


@given(
    threshold=st.floats(1e-3, 1e3),
    start=st.floats(-6.0, 6.0),  # natural logarithm of how far off it begins
    step=st.floats(1.01, 3.0),
    tolerance=st.floats(1e-4, 0.5),
)
def test_any_threshold_is_found_from_anywhere(
    threshold: float, start: float, step: float, tolerance: float
) -> None:
    assume(abs(start) / math.log(step) < 2000)
    near = threshold * math.exp(start)
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        assert len(asked) < 10_000, "it does not end"
        return rate <= threshold

    found = _bisect(holds, near, step, tolerance)
    assert found == pytest.approx(threshold, rel=tolerance)
    low = max(rate for rate in asked if rate <= threshold)
    high = min(rate for rate in asked if rate > threshold)
    assert low <= found <= high
    assert high - low <= tolerance * high


@given(near=st.floats(1e-6, 1e6), step=st.floats(1.05, 4.0))
def test_where_nothing_holds_it_is_0(near: float, step: float) -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        assert len(asked) < 10_000, "it does not end"
        return False

    assert _bisect(holds, near, step, 0.01) == 0.0
    assert near / 1000 / step < min(asked) < near / 1000  # looked that far, and no further
    assert len(asked) < 5 + math.log(1000) / math.log(step)


@given(st.floats(1e-4, 0.3), st.floats(1.0, 8.0))
def test_it_asks_as_often_as_halving_needs(tolerance: float, threshold: float) -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        assert len(asked) < 10_000, "it does not end"
        return rate <= threshold

    _bisect(holds, 1.0, 2.0, tolerance)
    doublings = math.floor(math.log2(threshold)) + 2
    assert len(asked) <= doublings + math.ceil(math.log2(1 / tolerance)) + 1


# ---- the interval --------------------------------------------------------------------------------


def test_the_interval_of_two_and_three_values() -> None:
    """Student's quantile has a closed form for one and two degrees of freedom."""
    p = 0.975
    one = math.tan(math.pi * (p - 0.5))
    two = (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    assert interval([3.0, 7.0]) == pytest.approx((5.0, one * 2.0))
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, two / math.sqrt(3)))


def test_the_interval_contains_the_truth_as_often_as_it_says() -> None:
    samples = np.random.default_rng(1).normal(10.0, 3.0, (3000, 4))
    for confidence in (0.5, 0.95):
        found = [interval(row, confidence) for row in samples]
        share = np.mean([abs(mean - 10.0) <= half for mean, half in found])
        error = math.sqrt(confidence * (1 - confidence) / len(samples))
        assert share == pytest.approx(confidence, abs=4 * error)


def test_one_value_says_nothing_of_the_spread() -> None:
    mean, half = interval([4.0])
    assert mean == 4.0
    assert math.isnan(half)


# ---- runs made up --------------------------------------------------------------------------------


class Made:
    """Runs whose TTFT and TPOT follow from rate and seed; ``asked`` is how each was asked for."""

    def __init__(
        self,
        ttft: Callable[[float, int], float] = lambda rate, seed: 4.0 * rate / (1.5 + 0.2 * seed),
        tpot: Callable[[float, int], float] = lambda rate, seed: 0.01,
    ) -> None:
        self.ttft, self.tpot = ttft, tpot
        self.asked: list[dict[str, Any]] = []
        self.most = 200

    def __call__(self, scenario: Scenario, policy: str, **how: Any) -> Any:
        self.asked.append({"policy": policy, **how})
        assert len(self.asked) <= self.most, "the search does not end"
        rate, seed = how["rate_aps"], how["seed"]

        def times(mean: float) -> dict[str, float]:
            # of a few slow turns among many fast ones: the quantiles are known
            return {"mean": mean, "p50": 0.5 * mean, "p90": 2 * mean, "p99": 4 * mean}

        summary = SimpleNamespace(
            interrupted=False,
            end_s=how["until_s"],
            agents=how["agents"],
            agents_ended=0,
            turns_counted=100,
            ttft_s=times(self.ttft(rate, seed)),
            tpot_s=times(self.tpot(rate, seed)),
            agent_s={},
        )
        return Outcome(summary, None, None)  # type: ignore[arg-type]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    runs = Made()
    monkeypatch.setattr(module, "execute", runs)
    return runs


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("statistic", "slower"), [("mean", 1.0), ("p50", 0.5), ("p99", 4.0)])
def test_each_seed_has_its_rate_for_any_statistic(statistic: Any, slower: float) -> None:
    truth = [(1.5 + 0.2 * seed) / slower for seed in (3, 4, 5)]
    found = capacity(example(), statistic=statistic, first_seed=3, tolerance=0.001)
    assert found.rates_aps == pytest.approx(truth, rel=0.001)
    mean, half = interval(list(found.rates_aps))
    assert (found.rate_aps, found.low_aps, found.high_aps) == pytest.approx(
        (mean, mean - half, mean + half)
    )
    workload = example().workload
    assert found.turns_per_s == pytest.approx(mean * workload.turns / workload.session_count)
    assert found.statistic == statistic


def test_what_fails_first_is_the_limit(made: Made) -> None:
    assert capacity(example()).limit == "ttft"
    made.ttft, made.tpot = lambda rate, seed: 1.0, lambda rate, seed: 0.05 * rate / 0.7
    found = capacity(example())
    assert found.limit == "tpot"
    assert found.rate_aps == pytest.approx(0.7, rel=0.01)


def test_policies_are_asked_the_same_seeds_and_windows(made: Made) -> None:
    for policy in ("dualpath", "basic"):
        made.asked.clear()
        capacity(example(), policy, first_seed=7, replications=3, warmup_s=50.0, measure_s=70.0)
        assert {how["policy"] for how in made.asked} == {policy}
        assert list(dict.fromkeys(how["seed"] for how in made.asked)) == [7, 8, 9]
        assert {(how["warmup_s"], how["until_s"]) for how in made.asked} == {(50.0, 120.0)}


def test_enough_agents_arrive_to_fill_the_window(made: Made) -> None:
    capacity(example(), replications=1, warmup_s=100.0, measure_s=500.0)
    for how in made.asked:
        for seed in range(40):
            _, starts = arrivals(example().workload, how["agents"], how["rate_aps"], seed)
            assert starts[-1] > 600.0


def test_an_overloaded_run_does_not_hold(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was stopped shows short TTFTs, those of the turns that got through."""
    made.ttft = lambda rate, seed: 0.5

    def stopped(scenario: Scenario, policy: str, **how: Any) -> Any:
        found = made(scenario, policy, **how)
        if how["rate_aps"] > 2.5:
            found.summary.end_s = 40.0
        return found

    monkeypatch.setattr(module, "execute", stopped)
    found = capacity(example(), replications=1)
    assert found.rate_aps == pytest.approx(2.5, rel=0.01)
    assert {probe.ttft_s for probe in found.probes if not probe.holds} == {math.inf}
    assert found.limit == "ttft"


def test_a_run_is_hopeless_when_more_wait_than_five_slos_let_in(made: Made) -> None:
    capacity(example(), replications=1)
    turns = example().workload.turns / example().workload.session_count
    how = made.asked[0]
    allowed = 5 * example().slo.ttft_s * how["rate_aps"] * turns

    def waiting(*counts: float) -> SimpleNamespace:
        queues = [SimpleNamespace(length=np.array([count / 2, count / 2])) for count in counts]
        names = ("prefill_queues", "decode_queues", "buffer_queues")
        world = SimpleNamespace(**dict(zip(names, queues, strict=True)))
        return SimpleNamespace(sim=SimpleNamespace(world=world))

    assert not how["hopeless"](waiting(0.3 * allowed, 0.3 * allowed, 0.3 * allowed))
    assert how["hopeless"](waiting(0.4 * allowed, 0.4 * allowed, 0.3 * allowed))


def test_an_slo_that_no_rate_meets_is_said(made: Made) -> None:
    made.ttft, made.tpot = lambda rate, seed: 9.0, lambda rate, seed: 0.02
    with pytest.raises(InfeasibleError) as refused:
        capacity(example())
    assert "no rate meets the SLO: at " in str(refused.value)
    assert "agents/s the mean TTFT is 9 s (allowed 4) and the mean TPOT 20 ms (allowed 50)" in str(
        refused.value
    )
    assert str(refused.value).endswith("; relax the SLO or change the cluster")
    assert {how["seed"] for how in made.asked} == {0}


def test_the_share_that_is_done_rises_to_1_at_most(made: Made) -> None:
    told: list[tuple[float, int]] = []
    found = capacity(example(), replications=4, progress=lambda *done: told.append(done))
    shares = [share for share, _ in told]
    assert [runs for _, runs in told] == list(range(1, len(told) + 1))
    assert len(shares) == len(found.probes) == len(made.asked)
    assert shares == sorted(shares)
    assert 0.3 < shares[-1] <= 1.0


@pytest.mark.usefixtures("made")
def test_ctrl_c_keeps_the_seeds_that_are_finished() -> None:
    whole = capacity(example(), replications=4)
    first = sum(probe.seed == 0 for probe in whole.probes)

    def stopped_after(runs: int) -> Capacity:
        shares: list[float] = []

        def progress(share: float, made_so_far: int) -> None:
            shares.append(share)
            if len(shares) > runs:
                raise KeyboardInterrupt

        return capacity(example(), replications=4, progress=progress)

    kept = stopped_after(first + 1)
    assert kept.interrupted
    assert not whole.interrupted
    assert kept.rates_aps == whole.rates_aps[:1]
    with pytest.raises(KeyboardInterrupt):
        stopped_after(first - 1)


def test_ctrl_c_within_a_run_keeps_them_too(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(scenario: Scenario, policy: str, **how: Any) -> Any:
        found = made(scenario, policy, **how)
        found.summary.interrupted = how["seed"] == cut
        return found

    monkeypatch.setattr(module, "execute", cut_off)
    cut = 2
    kept = capacity(example(), replications=4)
    assert kept.interrupted
    assert len(kept.rates_aps) == 2
    assert {probe.seed for probe in kept.probes} == {0, 1}
    cut = 0
    with pytest.raises(KeyboardInterrupt):
        capacity(example(), replications=4)


@pytest.mark.usefixtures("made")
def test_one_seed_has_no_interval() -> None:
    found = capacity(example(), replications=1)
    assert math.isnan(found.high_aps)
    assert math.isnan(found.low_aps)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replications": 0}, "replications is 0"),
        ({"replications": 1001}, "replications is 1001"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"tolerance": 0.6}, "tolerance is 0.6"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"warmup_s": -1.0}, "warmup is -1.0 s; give seconds, at least 0"),
        ({"warmup_s": math.nan}, "warmup is nan s"),
        ({"measure_s": 0.5}, "measure is 0.5 s; give seconds, at least 1"),
        ({"measure_s": math.inf}, "measure is inf s"),
    ],
)
def test_bad_numbers_are_refused(made: Made, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        capacity(example(), **change)
    assert not made.asked


def test_an_unknown_statistic_is_refused(made: Made) -> None:
    with pytest.raises(InputError, match="statistic"):
        capacity(example(), statistic="p95")  # type: ignore[arg-type]


def test_a_window_in_which_no_turn_ends_does_not_hold(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must end, and not with a rate: nothing was measured."""

    def empty(scenario: Scenario, policy: str, **how: Any) -> Any:
        found = made(scenario, policy, **how)
        found.summary.turns_counted, found.summary.ttft_s, found.summary.tpot_s = 0, {}, {}
        return found

    monkeypatch.setattr(module, "execute", empty)
    with pytest.raises((InputError, InfeasibleError)):
        capacity(example(), replications=1)


# ---- runs ----------------------------------------------------------------------------------------


@cache
def short_sessions(ttft_s: float = 4.0) -> Scenario:
    """Two turns an agent, so that a minute fills the system and plain Python is fast enough."""
    sessions = [
        Session(f"s{i}", (Turn(9000 + 64 * i, 0, 8), Turn(20_000, 64 * (140 + i), 8)))
        for i in range(20)
    ]
    classes = (WorkloadClass("all", from_sessions(sessions), share=1.0),)
    return replace(example(), classes=classes, slo=replace(example().slo, ttft_s=ttft_s))


SEARCH: dict[str, Any] = {
    "warmup_s": 5.0,
    "measure_s": 30.0,
    "tolerance": 0.2,
    "compiled": False,
}


@cache
def searched(ttft_s: float = 4.0, replications: int = 1) -> Capacity:
    return capacity(short_sessions(ttft_s), replications=replications, **SEARCH)


def test_it_holds_below_and_fails_above() -> None:
    found = searched()
    below = max(probe.rate_aps for probe in found.probes if probe.holds)
    above = min(probe.rate_aps for probe in found.probes if not probe.holds)
    assert below <= found.rate_aps <= above
    assert above - below <= 0.2 * above
    for probe in found.probes:
        slo = short_sessions().slo
        assert probe.holds == (probe.ttft_s <= slo.ttft_s and probe.tpot_s <= slo.tpot_s)
        assert probe.holds == (probe.rate_aps < found.rate_aps)


def test_a_probe_is_a_run_as_anyone_can_make_it() -> None:
    probe = next(probe for probe in searched().probes if probe.holds)
    expected = probe.rate_aps * 35.0
    run = simulate(
        short_sessions(),
        rate_aps=probe.rate_aps,
        agents=math.ceil(expected + 4 * math.sqrt(expected) + 1),
        seed=0,
        until_s=35.0,
        warmup_s=5.0,
        compiled=False,
    )
    assert (run.ttft_s["mean"], run.tpot_s["mean"]) == (probe.ttft_s, probe.tpot_s)


def test_a_tighter_slo_has_a_lower_capacity() -> None:
    assert searched(ttft_s=1.0).rate_aps < 0.95 * searched().rate_aps


def test_an_slo_below_the_time_on_an_empty_cluster_has_no_rate() -> None:
    """9,000 tokens take a third of a second to prefill, whatever the rate."""
    with pytest.raises(InfeasibleError, match="no rate meets the SLO"):
        searched(ttft_s=1e-3)


@pytest.mark.slow
def test_dualpath_is_above_basic_and_both_below_what_the_hardware_can() -> None:
    """The LP knows neither queues nor batches, so no policy beats it (4 %: an hour of arrivals)."""
    scenario = example("deepseek-660b-2p4d")
    plan = planner.plan(scenario)
    dual, basic = (
        capacity(scenario, policy, replications=1, tolerance=0.02)
        for policy in ("dualpath", "basic")
    )
    assert dual.rate_aps > 1.2 * basic.rate_aps
    assert dual.turns_per_s < 1.04 * plan.throughput_requests_per_s
    assert basic.turns_per_s < 1.04 * plan.throughput_basic_requests_per_s


def test_a_warm_up_shorter_than_an_agent_lives_is_noticed() -> None:
    def found(warmup_s: float, agent_s: float) -> Capacity:
        probes = (Probe(0, 1.0, 1.0, 0.01, True, agent_s), Probe(0, 2.0, 9.0, 0.01, False, 1e9))
        return Capacity(
            "dualpath", "mean", 4.0, 0.05, 1.0, 1.0, 1.0, 1.0, "ttft", (1.0,), warmup_s, 1.0, probes
        )

    assert not found(100.0, 90.0).in_transit
    assert found(100.0, 110.0).in_transit
    assert found(100.0, math.nan).in_transit  # not one agent ended
