"""Days with nodes that change roles: against the plain simulator, by conservation, as a comparison."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dualpath_model.errors import InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.workload import Workload
from solvers.replan_answer import Decision, Rule
from solvers.replan_compose import Day, Part, half_of, read_day
from solvers.replan_day import Lab, _sustained, drive, replan_day, to_json
from solvers.replan_roles import RoleSimulation, window_of
from solvers.simulator import state as arrays
from solvers.simulator.experiments import simulate
from tests.conftest import ROOT
from tests.solvers.test_replan import APPENDS, OUTPUTS, cluster_of, mix

PLAIN = Lab(compiled=False)
SAMPLE = ROOT / "examples" / "traces" / "agentic_sample"


def busy(scenario: Scenario, workload: Workload, every_s: float = 0.537) -> Scenario:
    """The scenario with turns that come one every so many seconds, not in step with the leaders."""
    starts = np.arange(workload.session_count) * every_s
    timed = replace(workload, start_s=starts)
    return replace(scenario, classes=(WorkloadClass("day", timed, share=1.0),))


def small(turns: int = 60) -> Scenario:
    return busy(cluster_of(2, 2), mix(8_000, 2_000, 120, turns=turns))


# ---- roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 3), (2, 2), (3, 1)])
def test_fixed_roles_are_the_plain_simulator(counts: tuple[int, int]) -> None:
    """Every node stands in both pools here, yet times are those of a run without closed engines."""
    scenario = small(120).with_nodes(*counts)
    driven = drive(scenario, None, every_s=1e6, lab=PLAIN)
    plain = simulate(scenario, agents=120, compiled=False)
    assert driven.turns == plain.turns
    for key in ("mean", "p50"):
        assert driven.ttft_s[key] == pytest.approx(plain.ttft_s[key], rel=0.05)
        assert driven.tpot_s[key] == pytest.approx(plain.tpot_s[key], rel=0.05)


def test_a_closed_node_finishes_what_it_has_and_gets_nothing_more() -> None:
    sim = RoleSimulation(
        busy(cluster_of(2, 2), mix(20_000, 8_000, 300, 300), 0.0537), compiled=False
    )
    sim.go(2.5)
    assert not sim.ended
    sim.close([3])  # d1
    assert sim.roles == [Pool.PREFILL, Pool.PREFILL, Pool.DECODE, None]
    closed_ns = sim.now_ns
    while not sim.drained([3]):
        sim.go(sim.now_ns / arrays.SECOND + 0.25)
    sim.open([3], Pool.PREFILL)
    sim.go(1e6)
    assert sim.ended
    sim.check()  # nothing lost, nothing twice, every account empty
    rows = sim.run.rows
    assert len(rows) == 300
    names = sim.run.state.numbers
    mine = [i for i, e in enumerate(names["decode"].engines) if e.startswith("d3/")]
    placed = rows[np.isin(rows[:, arrays.RESULT_FIELDS.index("decode")], mine)]
    assert len(placed) > 0
    assert (placed[:, arrays.RESULT_FIELDS.index("placed")] <= closed_ns).all()
    after = [i for i, e in enumerate(names["prefill"].engines) if e.startswith("p3/")]
    assert np.isin(rows[:, arrays.RESULT_FIELDS.index("prefill")], after).any()


def test_roles_may_change_under_a_backlog_without_anything_stuck() -> None:
    """Turns with one engine chosen of two wait in each queue when nodes close: none of them is stuck."""
    workload = mix(20_000, 20_000, 600, 500)
    scenario = busy(cluster_of(2, 2), workload, 0.00537)
    tight = replace(scenario, rules=replace(scenario.rules, beta_s=0.2))
    sim = RoleSimulation(tight, compiled=False)
    for turn, (node, role) in enumerate([(0, Pool.DECODE), (2, Pool.PREFILL), (0, Pool.PREFILL)]):
        sim.go(5.0 * (turn + 1))
        assert sim.waiting().size
        sim.close([node])
        sim.go(5.0 * (turn + 1) + 2.5)
        sim.open([node], role)
    sim.go(1e6)
    assert sim.ended
    sim.check()


def test_what_was_submitted_in_a_window_is_seen_once() -> None:
    sim = RoleSimulation(small(40), compiled=False)
    seen = []
    for number in range(40):
        sim.go(number + 1.0)
        seen.append(sim.submitted(float(number), number + 1.0))
    assert sorted(np.concatenate(seen)) == list(range(40))
    window = window_of(sim.scenario.workload, seen[0], "w")
    assert window.turns == len(seen[0])


def test_experts_over_several_nodes_cannot_change_roles_alone() -> None:
    scenario = small()
    wide = replace(scenario.serving.decode, expert=16)
    with pytest.raises(InputError, match=r"parallelism\.decode\.expert"):
        RoleSimulation(replace(scenario, serving=replace(scenario.serving, decode=wide)))


# ---- days ----------------------------------------------------------------------------------------


def shifting(turns: int) -> Scenario:
    """Appends, then outputs: the best ratio moves from one end to the other."""
    first = replace(APPENDS, start_s=np.zeros(300))
    parts = [mix(2_000, 6_000, 100, turns), mix(30_000, 300, 1_500, turns)]
    assert first.turns == 300
    day = Workload(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("prompt_tokens", "hit_tokens", "output_tokens", "think_time_s")
        },
        start_s=np.concatenate((np.arange(turns) * 0.1, turns * 0.1 + np.arange(turns) * 0.1)),
        offsets=np.arange(2 * turns + 1),
    )
    return replace(cluster_of(2, 2), classes=(WorkloadClass("day", day, share=1.0),))


def test_the_controller_turns_nodes_and_every_turn_ends() -> None:
    told: list[tuple[float, Decision]] = []
    rule = Rule(min_turns=20, dwell_s=0.0, restart_s=3.0, margin=0.02)
    driven = drive(
        shifting(300), rule, every_s=10.0, lab=PLAIN, decisions=lambda s, d: told.append((s, d))
    )
    assert driven.turns == 600
    assert driven.changes == sum(d.action == "change" for _, d in told) >= 1
    assert driven.closed_node_hours > 0
    assert len(driven.drains_s) >= driven.changes
    assert all(s.prefill_nodes + s.decode_nodes <= 4 for s in driven.steps)
    assert min(min(s.prefill_nodes, s.decode_nodes) for s in driven.steps) >= 1
    assert sum(step.turns for step in driven.steps) == 600
    goods = [s.within_slo * s.turns for s in driven.steps if not math.isnan(s.within_slo)]
    assert sum(goods) / 600 == pytest.approx(driven.within_slo)


def test_no_node_turns_on_a_constant_mix_after_the_first_choice() -> None:
    rule = Rule(min_turns=10, dwell_s=0.0, restart_s=1.0)
    told: list[Decision] = []
    drive(
        busy(cluster_of(2, 2), mix(8_000, 2_000, 120, 200), 0.2),
        rule,
        every_s=8.0,
        lab=PLAIN,
        decisions=lambda _, decision: told.append(decision),
    )
    actions = [one.action for one in told]
    assert actions.count("change") <= 1


def test_the_comparison_has_every_fixed_ratio_and_the_same_turns() -> None:
    workload = replace(mix(8_000, 2_000, 120, 60), start_s=np.arange(60) * 0.4)
    day = Day("a made day", (Part(workload, 0.0, 5.0, 1.0),))
    told: list[float] = []
    found = replan_day(
        cluster_of(2, 2),
        day,
        Rule(min_turns=10),
        every_s=10.0,
        lab=PLAIN,
        progress=lambda done, _: told.append(done),
    )
    assert [one.name for one in found.fixed] == ["1P3D", "2P2D", "3P1D"]
    assert {one.turns for one in (found.adaptive, *found.fixed)} == {60}
    best = max(one.within_slo for one in found.fixed)
    assert found.gain_within_slo == pytest.approx(found.adaptive.within_slo - best)
    assert told == sorted(told)
    assert to_json(found)["adaptive"]["name"] == "adaptive"
    assert found.sustained == ()


def test_bad_days_are_refused() -> None:
    day = Day("d", (Part(OUTPUTS, 0.0, 5.0, 1.0),))
    for wrong in ({"every_s": 0.5}, {"least_within_slo": 1.0}, {"tolerance": 0.0}, {"load": 0.0}):
        with pytest.raises(InputError):
            replan_day(cluster_of(2, 2), day, lab=PLAIN, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 3 nodes"):
        replan_day(cluster_of(1, 1), day, lab=PLAIN)


# ---- composing -----------------------------------------------------------------------------------


def test_recorded_times_are_kept_and_more_load_only_adds() -> None:
    recorded = replace(mix(1_000, 100, 10, 20), start_s=np.arange(20) ** 1.5)
    day = Day("d", (Part(recorded, 100.0, 30.0, 1.0),))
    once, more = day.workload(), day.workload(2.5)
    assert once.start_s == pytest.approx(np.sort(100.0 + recorded.start_s))
    assert more.session_count == 50
    assert set(once.start_s) <= set(more.start_s)
    assert (np.diff(more.start_s) >= 0).all()


def test_times_that_were_not_recorded_are_drawn_over_the_stretch() -> None:
    day = Day("d", (Part(replace(OUTPUTS, start_s=np.zeros(300)), 50.0, 200.0, 3.0),), seed=4)
    drawn = day.workload().start_s
    assert drawn.min() >= 50.0
    assert drawn.max() <= 250.0
    assert drawn.mean() == pytest.approx(150.0, abs=10.0)
    assert (day.workload().start_s == drawn).all()


def test_half_of_the_sessions_by_what_they_append() -> None:
    both = Day("d", (Part(APPENDS, 0.0, 1.0, 1.0), Part(OUTPUTS, 0.0, 1.0, 1.0))).workload()
    appends, outputs = half_of(both, "append"), half_of(both, "output")
    assert appends.turns == outputs.turns == 300
    assert (appends.miss_tokens == 6_000).all()
    assert (outputs.output_tokens == 1_500).all()


def test_a_day_file_says_which_sessions_start_when(tmp_path: Path) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(
        f"name: made\nparts:\n  - {{trace: {SAMPLE}, begin: 1 h, over: 10 min, copies: 2.5}}\n"
    )
    day = read_day(file)
    workload = day.workload()
    assert workload.session_count == 15
    assert workload.start_s.min() >= 3600
    assert workload.start_s.max() <= 4200
    whole = read_day(SAMPLE, rate_aps=0.1)
    assert whole.parts[0].over_s == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: d\nparts:\n  - {{trace: {0}}}\n", "give `over`"),
        ("name: d\nparts: []\n", "parts"),
        ("name: d\nparts:\n  - {{trace: {0}, over: 1 h, copies: -1}}\n", "copies"),
        ("name: d\nparts:\n  - {{trace: {0}, over: 1 h, longest_prompt: 3}}\n", "no session"),
        ("name: d\nparts:\n  - {{trace: no/where, over: 1 h}}\n", "no such file"),
    ],
)
def test_bad_day_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(text.format(SAMPLE))
    with pytest.raises(InputError, match=words):
        read_day(file).workload()


def test_a_trace_without_times_needs_a_rate() -> None:
    with pytest.raises(InputError, match="--rate"):
        read_day(SAMPLE)
    with pytest.raises(InputError, match="above 0"):
        read_day(SAMPLE, rate_aps=-1.0)


@pytest.mark.parametrize("near", [0.3, 1.0, 4.0])
def test_the_highest_load_that_holds_was_driven_itself(near: float) -> None:
    """Its turns are those of that very run; a day that holds at no load has none."""
    driven: dict[float, Any] = {}

    def run(load: float) -> Any:
        within = 0.95 if load <= 1.37 else 0.5
        driven[load] = SimpleNamespace(name="2P2D", within_slo=within, turns=int(100 * load))
        return driven[load]

    found = _sustained(run, run(near), near, 0.9, 0.01)
    assert 1.37 * 0.99 <= found.load <= 1.37
    assert found.turns == driven[found.load].turns
    assert _sustained(run, run(1e6), 1e6, 0.9, 0.01).load == 0.0
