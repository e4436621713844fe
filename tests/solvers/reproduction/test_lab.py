"""The laboratory: every assumption reaches the run, a run is made once, appends are scaled as said."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.scenario import Scenario
from dualpath_model.traces.synthetic import TABLE_2, SyntheticSpec, generate, trajectory_means
from dualpath_model.workload import Session, Turn, Workload, from_sessions
from solvers.reproduction import lab as module
from solvers.reproduction.effects import VARIANTS
from solvers.reproduction.lab import (
    ARMS,
    DS_27B,
    DS_660B,
    LARGE_OFFLINE,
    Assumptions,
    Lab,
    scaled_appends,
)
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import Outcome, execute
from solvers.simulator.model import Switches

GIVEN: dict[str, Any] = {
    "kv_dtype": "fp8",
    "batch_tokens": 1234,
    "batch_requests": 7,
    "fetch_s": 0.02,
    "append_variation": 0.0,
    "generate_variation": 0.0,
    "turns_sigma": 0.05,
    "workload_seed": 3,
    "snic": 0.7,
    "prefill_mfu": 0.31,
    "decode_mfu": 0.11,
    "hbm": 0.61,
    "buffer_bytes": 40e9,
    "statistic": "p90",
    "warmup_s": 100.0,
    "measure_s": 200.0,
    "balance_window_s": 3.0,
    "constants": Constants(1e-3, 2e-4, 3e-5),
}
"""A value other than the default for each assumption."""


class Recorder:
    """In the place of ``execute`` and ``capacity``: keeps what each was called with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.interrupted = False

    def execute(self, scenario: Scenario, policy: str, **how: Any) -> Outcome:
        self.calls.append({"scenario": scenario, "policy": policy, **how})
        run = SimpleNamespace(sim=SimpleNamespace(nodes=SimpleNamespace(read_rate=None)))
        series = SimpleNamespace(nic_max_over_mean=lambda rates: 1.25)
        summary = SimpleNamespace(interrupted=self.interrupted)
        return Outcome(summary, run, series)  # type: ignore[arg-type]

    def capacity(self, scenario: Scenario, policy: str, **how: Any) -> SimpleNamespace:
        self.calls.append({"scenario": scenario, "policy": policy, **how})
        return SimpleNamespace(interrupted=self.interrupted)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(module, "execute", made.execute)
    monkeypatch.setattr(module, "capacity", made.capacity)
    return made


# ---- assumptions ---------------------------------------------------------------------------------


@cache
def scenario_with(name: str | None = None) -> Scenario:
    """The scenario where one assumption is another; None: as assumed."""
    return Lab(Assumptions(**({} if name is None else {name: GIVEN[name]}))).scenario(DS_660B)


def per_session(workload: Workload, column: np.ndarray) -> list[np.ndarray]:
    return np.split(column, workload.offsets[1:-1])


def variation(parts: list[np.ndarray]) -> float:
    """Standard deviation over mean within a session, the mean over sessions of some turns."""
    return float(np.mean([part.std() / part.mean() for part in parts if len(part) > 5]))


def appends(workload: Workload) -> np.ndarray:
    """Tokens that each turn adds to the turn before; the first adds its prompt."""
    before = np.concatenate(([0.0], workload.prompt_tokens[:-1] + workload.output_tokens[:-1]))
    before[workload.offsets[:-1]] = 0.0
    return workload.prompt_tokens - before


def test_this_test_knows_every_assumption() -> None:
    assert set(GIVEN) == {field.name for field in fields(Assumptions)}
    for name, value in GIVEN.items():
        assert getattr(Assumptions(), name) != value


def test_the_layout_of_the_cache_counts() -> None:
    """Table 1: 576 B a token and layer. Deployed: 512 B of latents, 16 of scales, 128 of RoPE in bf16,
    and the indexer's key of 128 B with its scale of 4.
    """
    for name, a_layer in (("kv_dtype", 576), (None, 512 + 16 + 128 + 128 + 4)):
        scenario = scenario_with(name)
        token = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
        assert (scenario.llm.layers, token) == (61, 61 * a_layer)


@pytest.mark.parametrize("name", ["snic", "prefill_mfu", "decode_mfu", "hbm"])
def test_an_efficiency_changes_itself_alone(name: str) -> None:
    usual, changed = scenario_with().efficiencies, scenario_with(name).efficiencies
    assert changed == replace(usual, **{name: GIVEN[name]})
    assert changed != usual


def test_buffers_are_those_of_every_node() -> None:
    for name, size in ((None, 80e9), ("buffer_bytes", 40e9)):
        cluster = scenario_with(name).cluster
        assert [node.buffer_bytes for node in (*cluster.prefill, *cluster.decode)] == [size] * 6


def test_variations_are_those_of_the_sessions() -> None:
    for name in ("append_variation", "generate_variation"):
        for workload, low, high in (
            (scenario_with().workload, 0.5, 2.0),
            (scenario_with(name).workload, 0.0, 0.02),
        ):
            column = appends(workload) if name.startswith("append") else workload.output_tokens
            later = [part[1:] for part in per_session(workload, column)]  # after the first prompt
            assert low <= variation(later) <= high


def test_the_spread_of_turns_and_the_seed_reach_the_sessions() -> None:
    usual = np.diff(scenario_with().workload.offsets)
    alike = np.diff(scenario_with("turns_sigma").workload.offsets)
    assert usual.mean() == pytest.approx(157, rel=0.01)
    assert alike.mean() == pytest.approx(157, rel=0.01)
    assert alike.std() / alike.mean() == pytest.approx(0.05, rel=0.1)
    assert usual.std() / usual.mean() > 0.5
    other = np.diff(scenario_with("workload_seed").workload.offsets)
    assert sorted(other) != sorted(usual)


def test_the_rest_reaches_every_run(recorder: Recorder) -> None:
    made = Assumptions(**GIVEN)
    lab = Lab(made)
    lab.offline(DS_660B, 5)
    lab.online(DS_660B, 0.5)
    lab.nic_balance(DS_660B, 5, "dualpath")
    lab.capacity(DS_660B, "dualpath")
    offline, online, balance, capacity = recorder.calls
    for call in recorder.calls:
        assert call["switches"] == Switches(True, 1234, 7, 0.02)
        assert call["constants"] == made.constants
        assert call["scenario"].efficiencies.hbm == 0.61
    assert (offline["agents"], offline["seed"]) == (5, 0)
    assert "rate_aps" not in offline
    assert (online["rate_aps"], online["warmup_s"], online["until_s"]) == (0.5, 100.0, 300.0)
    assert online["sample_s"] > 0  # or there is no working set
    assert online["agents"] > 0.5 * 300 + 3 * np.sqrt(0.5 * 300)
    assert (balance["agents"], balance["sample_s"]) == (5, 3.0)
    assert (capacity["statistic"], capacity["warmup_s"], capacity["measure_s"]) == (
        "p90",
        100.0,
        200.0,
    )


def test_the_simulation_is_built_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One session through a real run in plain Python, and the kernel's own arrays."""
    outcomes: list[Outcome] = []

    def kept(*args: Any, **how: Any) -> Outcome:
        outcomes.append(execute(*args, **how, compiled=False))
        return outcomes[-1]

    monkeypatch.setattr(module, "execute", kept)
    given = Assumptions(**GIVEN)
    short = DS_27B._replace(row="32K")
    lab = Lab(given)
    summary = lab.offline(short, 1)
    (outcome,) = outcomes
    assert outcome.summary is summary
    run, scenario = outcome.run, lab.scenario(short)
    machine, layers = run.sim.machine, scenario.llm.layers
    assert machine.token_limit == 1234
    assert machine.batch_s == pytest.approx(1e-3 * layers)
    assert machine.step_s == pytest.approx(2e-4 * layers)
    assert machine.request_step_s == pytest.approx(3e-5 * layers)
    assert machine.fetch_ns == 20_000_000
    assert len(run.sim.world.cached) == 7
    token = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    assert (run.buffer_tokens == int(40e9 / token)).all()
    node = scenario.cluster.prefill[0]
    rate = 0.7 * node.snics * node.snic_bytes_per_s / token
    assert run.sim.nodes.read_rate == pytest.approx(rate)
    assert summary.agents_ended == 1


@pytest.mark.parametrize(
    ("arm", "policy", "layerwise"),
    [
        ("basic", "basic", False),
        ("layerwise", "basic", True),
        ("dual path", "round-robin", True),
        ("dualpath", "dualpath", True),
        ("oracle", "oracle", True),
    ],
)
def test_arms_are_the_papers(recorder: Recorder, arm: Any, policy: str, layerwise: bool) -> None:
    """The ablation: layerwise loads, then both paths in turn, then the scheduler."""
    Lab().offline(DS_660B, 5, arm)
    Lab().online(DS_660B, 0.5, arm)
    Lab().nic_balance(DS_660B, 5, arm)
    Lab().capacity(DS_660B, arm)
    for call in recorder.calls:
        assert (call["policy"], call["switches"].layerwise) == (policy, layerwise)


def test_setups_are_clusters(recorder: Recorder) -> None:
    Lab().offline(LARGE_OFFLINE, 5)
    Lab().offline(DS_27B._replace(prefill=2, row="48K"), 5)
    large, small = (call["scenario"] for call in recorder.calls)
    assert (len(large.cluster.prefill), len(large.cluster.decode)) == (48, 96)
    assert (large.serving.prefill.expert, large.serving.decode.expert) == (16, 32)
    assert (len(small.cluster.prefill), len(small.cluster.decode)) == (2, 1)
    means = trajectory_means(small.workload)
    assert means.turns == pytest.approx(TABLE_2["48K"].turns, rel=0.01)
    assert small.llm.layers == 30  # of the paper's DS 27B


def test_variants_of_the_effects_can_be_run() -> None:
    for changes in VARIANTS.values():
        Lab(Assumptions(**changes)).scenario(DS_660B)


# ---- what is kept --------------------------------------------------------------------------------


def test_a_run_is_made_once(recorder: Recorder) -> None:
    said: list[str] = []
    lab = Lab(said=said.append)
    ways = [
        partial(lab.offline, DS_660B, 5),
        partial(lab.offline, DS_660B, 6),
        partial(lab.offline, DS_660B, 5, "basic"),
        partial(lab.offline, DS_660B, 5, "basic", 1),
        partial(lab.offline, DS_660B._replace(append_factor=2.0), 5),
        partial(lab.offline, DS_27B, 5),
        partial(lab.online, DS_660B, 5),  # a rate that looks like a number of agents
        partial(lab.online, DS_660B, 5, measure_s=7.0),
        partial(lab.capacity, DS_660B, "basic"),
        partial(lab.capacity, DS_660B, "basic", 5),
    ]
    first = [way() for way in ways]
    again = [way() for way in ways]
    assert len(recorder.calls) == len(ways) == len(said) == len({id(run) for run in first})
    for one, other in zip(first, again, strict=True):
        assert one is other
    assert lab.nic_balance(DS_660B, 5, "basic") == lab.nic_balance(DS_660B, 5, "basic") == 1.25
    assert len(recorder.calls) == len(said) == len(ways) + 1


def test_what_is_done_is_said_first(recorder: Recorder) -> None:
    before: list[int] = []
    lab = Lab(said=lambda text: before.append(len(recorder.calls)))
    lab.offline(DS_660B, 5)
    lab.online(DS_660B, 0.5)
    assert before == [0, 1]


@pytest.mark.parametrize("what", ["offline", "online", "nic_balance", "capacity"])
def test_a_run_that_is_cut_off_is_not_kept(recorder: Recorder, what: str) -> None:
    lab = Lab()
    call = {
        "offline": partial(lab.offline, DS_660B, 5),
        "online": partial(lab.online, DS_660B, 0.5),
        "nic_balance": partial(lab.nic_balance, DS_660B, 5, "dualpath"),
        "capacity": partial(lab.capacity, DS_660B, "dualpath"),
    }[what]
    recorder.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        call()
    recorder.interrupted = False
    call()
    assert len(recorder.calls) == 2


# ---- appends -------------------------------------------------------------------------------------


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Sessions that grow as agents do: a first prompt, then appends, hits in whole blocks."""
    sessions = []
    for i in range(draw(st.integers(1, 4))):
        context, turns = draw(st.integers(1, 5000)), []
        hit = 0
        for _ in range(draw(st.integers(1, 8))):
            output = draw(st.integers(1, 600))
            turns.append(Turn(context, hit, output))
            hit = (context + output) // 64 * 64
            context += output + draw(st.integers(1, 900))
        sessions.append(Session(f"s{i}", tuple(turns)))
    return from_sessions(sessions)


@given(workloads())
def test_a_factor_of_1_changes_nothing(workload: Workload) -> None:
    same = scaled_appends(workload, 1.0, 2**62)
    for name in ("prompt_tokens", "hit_tokens", "output_tokens", "offsets"):
        assert (getattr(same, name) == getattr(workload, name)).all()


@pytest.mark.parametrize("row", list(TABLE_2))
def test_a_factor_of_1_changes_no_session_of_table_2(row: str) -> None:
    workload = generate(TABLE_2[row])
    same = scaled_appends(workload, 1.0, TABLE_2[row].max_len_tokens)
    for name in ("prompt_tokens", "hit_tokens", "output_tokens", "offsets"):
        assert (getattr(same, name) == getattr(workload, name)).all()


@given(workloads(), st.floats(0.01, 10.0), st.integers(6000, 30_000))
def test_laws_of_scaled_appends(workload: Workload, factor: float, most: int) -> None:
    scaled = scaled_appends(workload, factor, most)
    assert scaled.session_count == workload.session_count
    context = scaled.prompt_tokens + scaled.output_tokens
    assert context.max() <= most
    before = np.concatenate(([0.0], context[:-1]))
    before[scaled.offsets[:-1]] = 0.0
    assert (scaled.hit_tokens % 64 == 0).all()
    assert (scaled.hit_tokens <= before).all()
    assert (before - scaled.hit_tokens < 64).all()  # and all whole blocks are hit
    assert (scaled.hit_tokens < scaled.prompt_tokens).all()
    for old, new, prompt_old, prompt_new, output_old, output_new in zip(
        per_session(workload, appends(workload)),
        per_session(scaled, appends(scaled)),
        per_session(workload, workload.prompt_tokens),
        per_session(scaled, scaled.prompt_tokens),
        per_session(workload, workload.output_tokens),
        per_session(scaled, scaled.output_tokens),
        strict=True,
    ):
        count = len(new)
        assert prompt_new[0] == prompt_old[0]
        assert (output_new == output_old[:count]).all()
        assert (abs(new[1:] - np.maximum(1.0, old[1:count] * factor)) <= 0.5).all()
        if count < len(old):  # it ended because the next turn would not fit
            append = max(1.0, np.rint(old[count] * factor))
            assert prompt_new[-1] + output_new[-1] + append + output_old[count] > most


def test_a_context_may_be_as_long_as_the_limit() -> None:
    workload = from_sessions([Session("s", (Turn(500, 0, 10), Turn(600, 448, 10)))])
    assert [scaled_appends(workload, 2.0, most).turns for most in (700, 699)] == [2, 1]


def test_a_first_turn_that_is_too_long_is_kept_alone() -> None:
    workload = from_sessions([Session("s", (Turn(500, 0, 10), Turn(600, 448, 10)))])
    scaled = scaled_appends(workload, 2.0, 100)
    assert (scaled.turns, scaled.prompt_tokens[0]) == (1, 500)


def test_setups_scale_the_appends_of_their_row() -> None:
    lab = Lab(Assumptions(warmup_s=1.0))
    plain = lab.scenario(DS_660B).workload
    for factor in (0.5, 4.0):
        scaled = lab.scenario(DS_660B._replace(append_factor=factor)).workload
        first = scaled.offsets[:-1]
        assert (scaled.prompt_tokens[first] == plain.prompt_tokens[plain.offsets[:-1]]).all()
        later = [np.delete(appends(w), w.offsets[:-1]).mean() for w in (plain, scaled)]
        assert later[1] / later[0] == pytest.approx(factor, rel=0.25)  # long sessions are cut
        assert (scaled.prompt_tokens + scaled.output_tokens).max() <= 65_536


def test_the_rows_are_the_papers() -> None:
    """Turns, append, generation, total and context of Table 2."""
    rows = {
        "32K": (60, 608, 148, 28639, 17183),
        "48K": (106, 474, 172, 42607, 25120),
        "64K": (157, 429, 176, 55958, 32721),
    }
    names = ("turns", "append_tokens", "generate_tokens", "total_tokens", "context_tokens")
    for row, means in rows.items():
        spec: SyntheticSpec = TABLE_2[row]
        assert tuple(getattr(spec, name) for name in names) == means
        assert spec.sessions == 500
        found = trajectory_means(Lab().scenario(DS_660B._replace(row=row)).workload)
        assert [getattr(found, name) for name in names] == pytest.approx(means, rel=0.03)


def test_arms_name_policies_that_exist() -> None:
    from dualpath_model.scheduler.policies import POLICIES

    assert {policy for policy, _ in ARMS.values()} <= set(POLICIES)
