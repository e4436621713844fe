"""Days with nodes that change roles: against the plain simulator, by conservation, as a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from dualpath_model.cluster import Node
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.workload import Workload
from solvers import replan_day as days
from solvers.replan import decide, with_mix
from solvers.replan_answer import Decision, Rule
from solvers.replan_compose import Day, Part
from solvers.replan_day import Driven, Lab, _batches, _sustained, drive, replan_day, to_json
from solvers.replan_ratios import kinds_of, ratio_name
from solvers.replan_roles import RoleSimulation, window_of
from solvers.simulator import state as arrays
from solvers.simulator.experiments import simulate
from tests.solvers.test_replan import OUTPUTS, cluster_of, mix

PLAIN = Lab(compiled=False)
AT = {field: column for column, field in enumerate(arrays.RESULT_FIELDS)}


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
    assert not sim.drained([3])
    while not sim.drained([3]):
        sim.go(sim.now_ns / arrays.SECOND + 0.25)
    opened_ns = sim.now_ns
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
    last_ns = placed[:, AT["ended"]].max()
    assert opened_ns - 0.26 * arrays.SECOND <= last_ns <= opened_ns
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


def limits(sim: RoleSimulation) -> tuple[list[int], list[int]]:
    """What bounds the scheduler: alpha of every node, beta of every prefill engine."""
    return list(sim.run.state.nodes.alpha), list(sim.run.state.prefill.limit)


def test_limits_are_those_of_a_scenario_with_that_mix_from_the_start() -> None:
    sim = RoleSimulation(small(), compiled=False)
    before = limits(sim)
    mixed = with_mix(small(), OUTPUTS)
    sim.set_limits(mixed)
    assert limits(sim) == limits(RoleSimulation(mixed, compiled=False)) != before


# ---- days ----------------------------------------------------------------------------------------


def joined(*parts: Workload) -> Workload:
    """All turns of some workloads, one after the other."""
    columns = ("prompt_tokens", "hit_tokens", "output_tokens", "think_time_s", "start_s")
    turns = sum(part.turns for part in parts)
    return Workload(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
        offsets=np.arange(turns + 1),
    )


def shifting(turns: int) -> Scenario:
    """Appends, then outputs: the best ratio moves from one end to the other."""
    day = joined(mix(2_000, 6_000, 100, turns), mix(30_000, 300, 1_500, turns))
    return busy(cluster_of(2, 2), day, 0.1)


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
    """Begun at 1P3D under a load of appends that it does not hold, by the margin, and 3P1D does."""
    rule = Rule(min_turns=10, dwell_s=0.0, restart_s=1.0, margin=0.02)
    told: list[Decision] = []
    driven = drive(
        busy(cluster_of(1, 3), mix(2_000, 6_000, 100, 200), 0.2),
        rule,
        every_s=4.0,
        lab=PLAIN,
        decisions=lambda _, decision: told.append(decision),
    )
    assert told[0].best.turned > 0
    assert [one.action for one in told] == ["change"] + ["keep"] * (len(told) - 1)
    assert len(told) >= 5
    assert driven.changes == 1


@pytest.mark.parametrize(("dwell_s", "apart_s"), [(0.0, 30.0), (45.0, 50.0)])
def test_the_second_change_waits_for_the_dwell(dwell_s: float, apart_s: float) -> None:
    """The mix moves after 30 s; windows are 10 s long, so 45 s are over at the end of the fifth."""
    rule = Rule(min_turns=20, dwell_s=dwell_s, restart_s=3.0, margin=0.02)
    changed: list[float] = []
    drive(
        shifting(300),
        rule,
        every_s=10.0,
        lab=PLAIN,
        decisions=lambda s, d: changed.append(s) if d.action == "change" else None,
    )
    assert len(changed) == 2
    assert changed[1] - changed[0] == apart_s


@pytest.mark.parametrize("restart_s", [0.0, 3.0, 8.0])
def test_a_node_that_turns_is_away_for_its_drain_and_its_restart(restart_s: float) -> None:
    rule = Rule(min_turns=20, dwell_s=0.0, restart_s=restart_s, margin=0.02, at_once=4)
    told: list[Decision] = []
    driven = drive(
        shifting(300), rule, every_s=10.0, lab=PLAIN, decisions=lambda _, d: told.append(d)
    )
    turned = [len(one.turned) for one in told if one.action == "change"]
    assert len(turned) == len(driven.drains_s) >= 1  # all nodes of a change at once
    away_s = sum(n * (drain + restart_s) for n, drain in zip(turned, driven.drains_s, strict=True))
    assert driven.closed_node_hours * 3600 == pytest.approx(away_s)


def test_a_turn_is_within_the_slo_only_if_its_ttft_and_its_tpot_are() -> None:
    """Halves of a day with short and with long contexts, which make decode steps longer."""
    scenario = busy(
        cluster_of(2, 2), joined(mix(2_000, 500, 60, 40), mix(90_000, 500, 60, 40)), 0.1
    )

    def within(ttft_s: float, tpot_s: float) -> Driven:
        slo = replace(scenario.slo, ttft_s=ttft_s, tpot_s=tpot_s)
        return drive(replace(scenario, slo=slo), None, every_s=4.0, lab=PLAIN)

    wide = within(60.0, 1.0)
    assert wide.within_slo == 1.0
    assert within(60.0, wide.tpot_s["p50"]).within_slo == pytest.approx(0.5, abs=0.15)
    assert within(wide.ttft_s["p50"], 1.0).within_slo == pytest.approx(0.5, abs=0.15)
    assert within(60.0, wide.tpot_s["p50"]).steps[0].within_slo == 1.0


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[RoleSimulation]:
    """Keep the simulations of the days that are driven."""
    kept: list[RoleSimulation] = []

    class Kept(RoleSimulation):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.turned: list[tuple[int, str, tuple[int, ...]]] = []
            kept.append(self)

        def close(self, nodes: Sequence[int]) -> None:
            super().close(nodes)
            self.turned.append((self.now_ns, "close", tuple(nodes)))

        def open(self, nodes: Sequence[int], role: Pool) -> None:
            super().open(nodes, role)
            self.turned.append((self.now_ns, role.value, tuple(nodes)))

    monkeypatch.setattr(days, "RoleSimulation", Kept)
    return kept


def test_the_schedulers_of_fixed_ratios_follow_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the ratio alone is compared: at the end alpha and beta are those of the last mix."""
    kept = recorded(monkeypatch)
    appends, outputs = mix(2_000, 6_000, 100, 40), mix(30_000, 300, 300, 40)
    scenario = busy(cluster_of(2, 2), joined(appends, outputs), 0.1)
    drive(scenario, None, every_s=4.0, lab=PLAIN)
    (sim,) = kept
    assert limits(sim) == limits(RoleSimulation(with_mix(scenario, outputs), compiled=False))
    assert limits(sim) != limits(RoleSimulation(scenario, compiled=False))


def test_a_window_that_no_ratio_serves_keeps_all_roles_and_the_day_goes_on() -> None:
    """One turn of 3M tokens alone in its window does not fit the TPOT; fixed ratios run through it."""
    scenario = cluster_of(2, 2)
    tight = replace(scenario, slo=replace(scenario.slo, tpot_s=0.012))
    calm, huge = mix(8_000, 2_000, 120, 60), mix(3_000_000, 100, 50, 1)
    day = joined(calm, huge)
    starts = np.append(np.arange(60) * 0.5, 40.0)
    asked = replace(tight, classes=(WorkloadClass("day", replace(day, start_s=starts), share=1.0),))
    driven = drive(asked, Rule(), every_s=10.0, lab=PLAIN)
    assert driven.turns == 61
    assert driven.changes == 0
    assert driven.within_slo == drive(asked, None, every_s=10.0, lab=PLAIN).within_slo


def test_a_window_that_no_ratio_serves_says_why() -> None:
    def deciding(*_: Any, **__: Any) -> Decision:
        raise InfeasibleError("no ratio of these 4 nodes serves the window's mix")

    with patch.object(days, "decide", deciding):
        driven = drive(small(), Rule(), every_s=10.0, lab=PLAIN)
    asked = [step for step in driven.steps if step.turns]
    assert {step.action for step in asked} == {"keep"}
    assert {step.reason for step in asked} == {"no ratio of these 4 nodes serves the window's mix"}
    assert all(math.isnan(step.capacity_requests_per_s) for step in asked)
    assert {(step.prefill_nodes, step.decode_nodes) for step in driven.steps} == {(2, 2)}


def test_bad_input_of_a_window_still_ends_the_day() -> None:
    def deciding(*_: Any, **__: Any) -> Decision:
        raise InputError("a bad rule")

    with patch.object(days, "decide", deciding), pytest.raises(InputError, match="a bad rule"):
        drive(small(), Rule(), every_s=10.0, lab=PLAIN)


# ---- several kinds -------------------------------------------------------------------------------


def two_kinds() -> tuple[Scenario, Node, Node]:
    """A slow node that prefills and two fast ones that decode; return both kinds as well."""
    scenario = cluster_of(2, 2)
    fast = scenario.cluster.prefill[0]
    fast = replace(fast, name="fast")
    gpu = replace(fast.gpu, name="slow", fp8_flop_per_s=1e14)
    slow = replace(fast, name="slow", gpu=gpu, snic_bytes_per_s=fast.snic_bytes_per_s / 4)
    return scenario.on(replace(scenario.cluster, prefill=(slow,), decode=(fast, fast))), slow, fast


SWAP = Rule(min_turns=10, dwell_s=0.0, restart_s=20.0, parts=1, at_once=3)


def test_nodes_that_swap_roles_turn_in_the_steps_of_the_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch is closed together, drains together, restarts and opens, each node in its own role."""
    kept = recorded(monkeypatch)
    told: list[Decision] = []
    scenario, _, _ = two_kinds()
    driven = drive(
        busy(scenario, mix(2_000, 6_000, 100, 400), 0.05),
        SWAP,
        every_s=15.0,
        lab=PLAIN,
        decisions=lambda _, d: told.append(d),
    )
    (change,) = [one for one in told if one.action == "change"]
    assert {one.after for one in change.turned} == {"prefill", "decode"}
    (sim,) = kept
    (closed_ns, _, closed), *opened = sim.turned  # type: ignore[attr-defined]
    assert sorted(closed) == [0, 1, 2]
    assert [(role, nodes) for _, role, nodes in opened] == [("prefill", (1, 2)), ("decode", (0,))]
    assert len({ns for ns, *_ in opened}) == 1
    rows = sim.run.rows
    begun = rows[rows[:, AT["placed"]] <= closed_ns]
    drain_s = (begun[:, AT["ended"]].max() - closed_ns) / arrays.SECOND
    (looked_s,) = driven.drains_s
    assert drain_s <= looked_s <= drain_s + 1.0
    away_s = (opened[0][0] - closed_ns) / arrays.SECOND
    assert away_s == pytest.approx(looked_s + 20.0)
    # of the estimate's seconds only the drain is a guess
    drain_guess_s = max(cost.drain_s for cost in change.node_costs)
    assert away_s - looked_s == pytest.approx(change.switch_s - drain_guess_s)


def test_a_batch_restarts_as_slowly_as_the_slowest_of_its_own_kinds() -> None:
    scenario, _, _ = two_kinds()
    rule = replace(SWAP, restart_s=None, start_s=0.0)
    places = {Pool.PREFILL: [0], Pool.DECODE: [1, 2]}
    window = mix(2_000, 6_000, 100, 300)
    found = decide(scenario, window, 1e9, rule, parameters=False)
    load_s = {cost.node: cost.restart_s for cost in found.node_costs}
    assert load_s["slow"] > 2 * load_s["fast"] > 0
    (whole,) = _batches(found, places)
    assert whole.roles == {0: Pool.DECODE, 1: Pool.PREFILL, 2: Pool.PREFILL}
    assert whole.restart_s == load_s["slow"]
    single = _batches(replace(found, nodes_at_once=1), places)
    assert [one.restart_s for one in single] == [load_s["slow"], load_s["fast"], load_s["fast"]]


def test_fixed_ratios_of_several_kinds_are_all_ways_to_give_them_their_roles() -> None:
    """Re-planning may choose any of them, so each is a ratio that it has to beat."""
    scenario, slow, fast = two_kinds()
    workload = replace(mix(2_000, 6_000, 100, 200), start_s=np.arange(200) * 0.05)
    day = Day("two kinds", (Part(workload, 0.0, 1.0, 1.0),))
    found = replan_day(scenario, day, SWAP, every_s=5.0, lab=PLAIN)
    pools = {
        "1P2D: 1 slow | 2 fast": ((slow,), (fast, fast)),
        "1P2D: 1 fast | 1 slow, 1 fast": ((fast,), (slow, fast)),
        "2P1D: 2 fast | 1 slow": ((fast, fast), (slow,)),
        "2P1D: 1 slow, 1 fast | 1 fast": ((slow, fast), (fast,)),
    }
    assert {one.name for one in found.fixed} == set(pools)
    for one in found.fixed:
        prefill, decode = pools[one.name]
        other = scenario.on(replace(scenario.cluster, prefill=prefill, decode=decode))
        alone = drive(busy(other, workload, 0.05), None, every_s=5.0, lab=PLAIN)
        assert one.ttft_s == pytest.approx(alone.ttft_s)
        assert (one.prefill_nodes, one.decode_nodes) == (len(prefill), len(decode))
    shares = {one.name: one.within_slo for one in found.fixed}
    assert shares[found.best_fixed] == max(shares.values())


def test_kinds_of_one_name_are_told_apart() -> None:
    scenario, slow, fast = two_kinds()
    alike = scenario.on(replace(scenario.cluster, prefill=(replace(slow, name="fast"),)))
    kinds = kinds_of(alike.cluster)
    assert ratio_name(kinds, kinds.now) == "1P2D: 1 fast #1 | 2 fast #2"
    one_kind = kinds_of(replace(scenario.cluster, prefill=(fast,)))
    assert ratio_name(one_kind, one_kind.now) == "1P2D"


def test_more_ways_than_days_can_be_driven_are_refused_at_once() -> None:
    scenario, slow, fast = two_kinds()
    third = replace(fast, name="third", cnics=4)
    many = replace(scenario.cluster, prefill=(slow, fast) * 9, decode=(third,) * 9)
    day = Day("d", (Part(OUTPUTS, 0.0, 5.0, 1.0),))
    with pytest.raises(InputError, match=r"9 slow, 9 fast, 9 third.* fewer kinds or fewer nodes"):
        replan_day(scenario.on(many), day, lab=PLAIN)


# ---- comparisons ---------------------------------------------------------------------------------


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
