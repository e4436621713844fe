"""Re-planning against other routes: every ratio by the plan's LP, conservation, no flapping, costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.loads import decode_step, hbm_space
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, WorkloadClass, load_scenario
from dualpath_model.scheduler.setup import engine_flop_per_s
from dualpath_model.workload import Workload, from_moments
from solvers import planner
from solvers.alternatives import problem_of
from solvers.linear import CapacityProgram
from solvers.replan import decide, sessions_rate, with_mix
from solvers.replan_answer import Decision, Rule, to_json
from solvers.replan_cost import last_residual, node_cost
from solvers.replan_ratios import kinds_of, neighbours_at
from solvers.simulator.constants import Constants, fitted
from tests.conftest import ROOT

ROOFLINE = Constants()
ONE_PART = Rule(parts=1, min_turns=1)


def cluster_of(prefill: int, decode: int) -> Scenario:
    """The shipped ds-27b cluster, on which no expert group spans nodes, with other counts."""
    scenario = load_scenario(ROOT / "examples" / "ds-27b-1p1d.yaml")
    return replace(scenario, slo=replace(scenario.slo, ttft_s=4.0)).with_nodes(prefill, decode)


def mix(hit: float, miss: float, output: float, turns: int = 300) -> Workload:
    """So many turns alike, each a session of its own, a second apart."""
    one = from_moments(hit, miss, output)
    return replace(
        one,
        prompt_tokens=np.full(turns, hit + miss),
        hit_tokens=np.full(turns, float(hit)),
        output_tokens=np.full(turns, float(output)),
        think_time_s=np.zeros(turns),
        start_s=np.arange(turns, dtype=float),
        offsets=np.arange(turns + 1),
        source="a made window",
    )


APPENDS, OUTPUTS = mix(2_000, 6_000, 100), mix(30_000, 300, 1_500)
turns_of = st.builds(
    mix,
    st.sampled_from([0, 4_000, 30_000]),
    st.sampled_from([50, 600, 6_000]),
    st.sampled_from([20, 300, 2_000]),
)


def program(scenario: Scenario, window: Workload) -> float:
    """The plan's LP on these nodes and no others, requests/s."""
    mixed = with_mix(scenario, window)
    problem = problem_of(mixed, mixed.class_loads())
    reads = mixed.serving.table.splits
    return CapacityProgram(problem, decode_reads=reads).solve().throughput


def brute_force(scenario: Scenario, window: Workload) -> dict[int, float]:
    """What the LP gives each ratio of the same nodes."""
    nodes = len(scenario.cluster.prefill) + len(scenario.cluster.decode)
    return {
        prefill: program(scenario.with_nodes(prefill, nodes - prefill), window)
        for prefill in range(1, nodes)
    }


# ---- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [APPENDS, OUTPUTS], ids=["appends", "outputs"])
def test_the_decision_is_that_of_every_ratio_by_the_plans_program(window: Workload) -> None:
    scenario = cluster_of(3, 3)
    rule = replace(ONE_PART, min_gain=0.0, restart_s=0.0, horizon_s=1e6, margin=1.0)
    found = decide(scenario, window, 1e9, rule, parameters=False, constants=ROOFLINE)
    capacities = brute_force(scenario, window)
    assert {o.prefill_nodes: o.capacity_requests_per_s for o in found.options} == pytest.approx(
        capacities, rel=1e-6
    )
    best = max(capacities.values())
    assert found.capacity_requests_per_s.after == pytest.approx(best, rel=1e-6)
    assert found.action == "change"


@settings(max_examples=25)
@given(
    window=turns_of,
    prefill=st.integers(1, 5),
    load=st.sampled_from([0.3, 0.9, 3.0]),
    restart_s=st.sampled_from([0.0, 120.0, 2_000.0]),
    horizon_s=st.sampled_from([600.0, 3_600.0]),
)
def test_the_best_ratio_is_the_one_of_largest_gain_less_cost(
    window: Workload, prefill: int, load: float, restart_s: float, horizon_s: float
) -> None:
    """By hand: all nodes at once, so that the cost is one batch's."""
    scenario = cluster_of(prefill, 6 - prefill)
    rule = replace(ONE_PART, restart_s=restart_s, horizon_s=horizon_s, at_once=6, min_gain=0.05)
    capacities = brute_force(scenario, window)
    offered = load * capacities[prefill]
    found = decide(scenario, window, offered, rule, parameters=False, constants=ROOFLINE)

    def served(capacity: float) -> float:
        return min(rule.margin * capacity, offered)

    net = {prefill: 0.0}
    passing = []
    for option in found.options:
        if not option.turned:
            continue
        assert option.switch_s >= restart_s
        gain = served(capacities[option.prefill_nodes]) - served(capacities[prefill])
        stay = min(prefill, option.prefill_nodes), min(6 - prefill, option.decode_nodes)
        # what serves while the others turn: never more than before
        left = program(scenario.with_nodes(*stay), window) if min(stay) else 0.0
        assert option.during_requests_per_s == pytest.approx(
            min(left, capacities[prefill]), rel=1e-6
        )
        dip = max(0.0, served(capacities[prefill]) - served(left))
        kept = gain * max(0.0, horizon_s - option.switch_s)
        worth = net[option.prefill_nodes] = kept - dip * option.switch_s
        better = capacities[option.prefill_nodes] > capacities[prefill] * (1 + rule.min_gain)
        if better and worth > 1e-6:
            passing.append(worth)
    wanted = max(passing or net.values())
    assert found.best.net_requests == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert (found.action == "change") == bool(passing)
    ratio = found.best.capacity_requests_per_s / capacities[prefill]
    if found.action == "change":
        assert found.gain.net_requests > 0
        assert ratio > 1 + rule.min_gain
        assert found.prefill_nodes_after == found.best.prefill_nodes
    else:
        assert found.best.net_requests <= 1e-6 or ratio <= 1 + rule.min_gain + 1e-6


@settings(max_examples=40)
@given(window=turns_of, prefill=st.integers(1, 6), size=st.integers(1, 3))
def test_capacity_during_a_switch_is_never_above_that_before(
    window: Workload, prefill: int, size: int
) -> None:
    scenario = cluster_of(prefill, 7 - prefill)
    rule = replace(ONE_PART, at_once=size)
    found = decide(scenario, window, 1e6, rule, parameters=False)
    for option in found.options:
        assert option.during_requests_per_s <= found.capacity_requests_per_s.before * (1 + 1e-9)
        assert option.cost_requests >= 0


@settings(max_examples=25)
@given(window=turns_of, prefill=st.integers(1, 6), load=st.floats(0.01, 5.0))
def test_a_constant_load_never_flaps(window: Workload, prefill: int, load: float) -> None:
    """It settles within a few decisions (a change may only pay after another), even without dwell."""
    scenario = cluster_of(prefill, 7 - prefill)
    rule = replace(ONE_PART, dwell_s=0.0, min_gain=0.0, restart_s=0.0)
    capacity = decide(scenario, window, 0.0, rule, parameters=False).capacity_requests_per_s
    offered = load * capacity.before
    for _ in range(3):
        found = decide(scenario, window, offered, rule, parameters=False)
        scenario = scenario.with_nodes(found.prefill_nodes_after, found.decode_nodes_after)
        if found.action == "keep":
            break
    again = decide(scenario, window, offered, rule, parameters=False)
    assert again.action == "keep"


def test_several_kinds_keep_their_hardware_and_match_brute_force() -> None:
    scenario = cluster_of(2, 2)
    slow = replace(scenario.cluster.prefill[0], name="slow", cnics=4)
    slow = replace(slow, gpu=replace(slow.gpu, name="slow", fp8_flop_per_s=4e14))
    cluster = replace(
        scenario.cluster, prefill=(*scenario.cluster.prefill, slow), decode=(slow,) * 2
    )
    mixed = scenario.on(cluster)
    rule = replace(ONE_PART, min_gain=0.0, restart_s=0.0, margin=1.0)
    found = decide(mixed, OUTPUTS, 1e9, rule, parameters=False, constants=ROOFLINE)
    fast = scenario.cluster.prefill[0]
    best = 0.0
    for p_fast in range(3):
        for p_slow in range(4):
            if not 0 < p_fast + p_slow < 5:
                continue
            other = replace(
                cluster,
                prefill=(fast,) * p_fast + (slow,) * p_slow,
                decode=(fast,) * (2 - p_fast) + (slow,) * (3 - p_slow),
            )
            best = max(best, program(mixed.on(other), OUTPUTS))
    assert max(o.capacity_requests_per_s for o in found.options) == pytest.approx(best, rel=1e-6)
    for kind in found.kinds:
        before = kind.prefill_before + kind.decode_before
        assert before == kind.prefill_after + kind.decode_after
    names = [one.name for one in found.turned]
    assert len(set(names)) == len(names) == found.best.turned
    # every option says who has which role, and no two say the same
    roles = [option.kinds for option in found.options]
    assert len(set(roles)) == len(roles) == 3 * 4 - 2
    for option in found.options:
        assert sum(kind.prefill_nodes for kind in option.kinds) == option.prefill_nodes
        assert sum(kind.decode_nodes for kind in option.kinds) == option.decode_nodes
    after = [(kind.node, kind.prefill_after, kind.decode_after) for kind in found.kinds]
    assert [(k.node, k.prefill_nodes, k.decode_nodes) for k in found.best.kinds] == after


def test_many_nodes_are_searched_step_by_step_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = cluster_of(40, 40)
    kinds = kinds_of(scenario.cluster)
    (counts,) = kinds.now
    assert counts == (40, 40)
    assert ((39, 41),) in neighbours_at(kinds.now, 1)
    whole = decide(scenario, OUTPUTS, 1e9, ONE_PART, parameters=False)
    assert whole.searched == "all ratios"
    monkeypatch.setattr("solvers.replan_ratios.MOST_ASSIGNMENTS", 10)
    steps = decide(scenario, OUTPUTS, 1e9, ONE_PART, parameters=False)
    assert steps.searched == "step by step"
    assert len(steps.options) < len(whole.options)
    assert steps.best.net_requests == pytest.approx(whole.best.net_requests, rel=0.01)


# ---- hysteresis ----------------------------------------------------------------------------------


def change(**rule: object) -> Decision:
    """A decision for which everything speaks, under another rule."""
    base = {"min_turns": 1, "horizon_s": 7_200.0}
    return decide(cluster_of(5, 1), OUTPUTS, 1e6, Rule(**{**base, **rule}), parameters=False)  # type: ignore[arg-type]


def test_no_change_below_the_least_gain_within_the_dwell_or_of_few_turns() -> None:
    found = change()
    assert found.action == "change"
    gain = found.gain.capacity_ratio - 1
    kept = change(min_gain=gain + 0.01)
    assert (kept.action, kept.turned) == ("keep", ())
    assert "least gain" in kept.reasons[0]
    assert kept.best.net_requests > 0
    assert "fewer than" in change(min_turns=301).reasons[0]
    scenario = cluster_of(5, 1)
    early = decide(scenario, OUTPUTS, 1e6, since_change_s=10.0, parameters=False)
    assert early.action == "keep"
    assert "dwell" in early.reasons[0]


def test_a_switch_that_costs_more_than_it_gains_is_not_made() -> None:
    kept = change(restart_s=7_200.0)
    assert kept.action == "keep"
    assert kept.gain.cost_requests == 0.0


def test_a_ratio_that_just_carries_the_load_does_not_hide_a_better_one() -> None:
    """13P19D carries this load in full with 8 % more capacity; 14P18D has 17 % more, at the same net."""
    scenario = cluster_of(12, 20)
    capacity = decide(scenario, APPENDS, 0.0, ONE_PART, parameters=False, constants=ROOFLINE)
    offered = 1.05 * ONE_PART.margin * capacity.capacity_requests_per_s.before
    rule = replace(ONE_PART, restart_s=60.0)
    found = decide(scenario, APPENDS, offered, rule, parameters=False, constants=ROOFLINE)
    nearer = [o for o in found.options if o.prefill_nodes == found.prefill_nodes_after - 1]
    assert found.action == "change"
    assert found.gain.capacity_ratio > 1 + rule.min_gain
    assert [o.served_requests_per_s for o in nearer] == [pytest.approx(offered)]
    assert (
        nearer[0].capacity_requests_per_s
        < (1 + rule.min_gain) * found.capacity_requests_per_s.before
    )


def test_parameters_have_the_same_patience_as_roles() -> None:
    scenario, load = cluster_of(2, 2), 1e-3
    assert decide(scenario, APPENDS, load).action == "retune"
    early = decide(scenario, APPENDS, load, since_change_s=10.0)
    assert early.action == "keep"
    assert any("dwell" in one for one in early.reasons)
    few = decide(scenario, mix(2_000, 6_000, 100, turns=3), load)
    assert few.action == "keep"
    assert any("fewer than the 100" in one for one in few.reasons)
    assert few.parameters_after != few.parameters_before


def test_parameters_that_one_part_of_the_window_moves_alone_are_left() -> None:
    """Every third turn is long: the mean moves, two of three parts do not."""
    scenario = cluster_of(2, 2)
    usual = scenario.means
    append = usual.prompt_tokens - usual.hit_tokens
    calm = mix(usual.hit_tokens, append, usual.output_tokens)
    miss = calm.miss_tokens.copy()
    miss[::3] *= 4
    lumpy = replace(calm, prompt_tokens=calm.hit_tokens + miss)
    trusting = decide(scenario, lumpy, 1e-3, Rule(parts=1))
    doubting = decide(scenario, lumpy, 1e-3)
    assert trusting.action == "retune"
    assert doubting.action == "keep"
    assert any("does not show in every part" in one for one in doubting.reasons)


def test_a_mix_that_no_ratio_serves_is_one_sentence() -> None:
    huge = mix(0, 5e8, 100, turns=200)
    with pytest.raises(InfeasibleError, match="no ratio of these 4 nodes serves the mix of a made"):
        decide(cluster_of(2, 2), huge, 1.0)


def test_growth_is_a_higher_load() -> None:
    scenario = cluster_of(5, 1)
    grown = decide(scenario, OUTPUTS, 1.0, replace(ONE_PART, growth=3.0), parameters=False)
    more = decide(scenario, OUTPUTS, 3.0, ONE_PART, parameters=False)
    assert grown.options == more.options
    assert grown.window.forecast_requests_per_s == more.window.forecast_requests_per_s == 3.0
    assert grown.headroom_before == more.headroom_before


def test_a_load_that_is_served_anyway_changes_nothing() -> None:
    kept = decide(cluster_of(5, 1), OUTPUTS, 1e-6, ONE_PART, parameters=False)
    assert kept.action == "keep"
    assert "within the SLO" in kept.reasons[0]
    behind = decide(cluster_of(5, 1), OUTPUTS, 1e-6, ONE_PART, waiting=50, parameters=False)
    assert behind.action == "change"
    assert behind.window.behind


def test_a_handful_of_huge_turns_does_not_decide() -> None:
    """One prompt of a hundred times the others moves the mean, but shows in one part only."""
    scenario = cluster_of(2, 4)
    calm = mix(30_000, 300, 1_500, turns=120)
    miss = calm.miss_tokens.copy()
    miss[7] = 3e6
    lumpy = replace(calm, prompt_tokens=calm.hit_tokens + miss)
    rule = Rule(min_turns=1)
    trusting = decide(scenario, lumpy, 1e6, replace(rule, parts=1), parameters=False)
    doubting = decide(scenario, lumpy, 1e6, rule, parameters=False)
    assert trusting.action == "change"
    assert doubting.action == "keep"
    assert "may be chance" in doubting.reasons[0]


# ---- cost ----------------------------------------------------------------------------------------


@given(
    outputs=st.lists(st.integers(1, 5_000), min_size=1, max_size=50),
    running=st.floats(0.01, 500.0),
)
def test_the_last_residual_is_the_quantile_of_the_equilibrium_distribution(
    outputs: list[int], running: float
) -> None:
    column = np.array(outputs, dtype=float)
    left = last_residual(column, running)
    assert 0 <= left <= column.max()
    survival = np.maximum(column - left, 0.0).sum() / column.sum()
    assert survival == pytest.approx(min(1.0, 0.05 / running), rel=1e-6, abs=1e-9)


def test_nineteen_of_twenty_drains_are_as_short_as_said() -> None:
    """Drawn: requests met in proportion to their length, each at a uniform place of it."""
    random = np.random.default_rng(11)
    outputs = np.round(random.lognormal(5.0, 1.2, size=2_000)) + 1
    for running in (3, 40):
        met = random.choice(outputs, size=(20_000, running), p=outputs / outputs.sum())
        last = (met * random.random(met.shape)).max(axis=1)
        assert (last > last_residual(outputs, running)).mean() == pytest.approx(0.05, abs=0.006)


def test_restart_is_given_or_follows_from_the_weights() -> None:
    scenario = with_mix(cluster_of(2, 2), OUTPUTS)
    node = scenario.cluster.prefill[0]
    cost = node_cost(scenario, Pool.DECODE, node, 2.0, None, 30.0, ROOFLINE)
    line = node.storage_bytes_per_s * scenario.efficiencies.snic
    # what the HBM of a prefill node has no room for are the weights: with three of them then
    prefill, gpus = scenario.serving.prefill, 3 * node.gpus
    room = hbm_space(scenario.llm, node, prefill, scenario.efficiencies, gpus)
    weights = node.gpu.hbm_bytes * scenario.efficiencies.hbm_usable - room
    assert cost.load_s * line == pytest.approx(weights * node.gpus)
    assert cost.restart_s == pytest.approx(30.0 + cost.load_s)
    given_s = node_cost(scenario, Pool.DECODE, node, 2.0, 12.0, 30.0, ROOFLINE)
    assert given_s.restart_s == 12.0
    assert given_s.drain_s == cost.drain_s > 0
    turned = node_cost(scenario, Pool.PREFILL, node, 2.0, 0.0, 0.0, ROOFLINE)
    assert turned.drain_s == scenario.rules.beta_s


@pytest.mark.parametrize("constants", [ROOFLINE, fitted()], ids=["roofline", "fitted"])
def test_as_many_requests_run_as_their_own_step_takes(constants: Constants) -> None:
    """Little's law with the step of those that run, and never more than a full batch."""
    scenario = with_mix(cluster_of(2, 2), OUTPUTS)
    node, layers, tpot_s = scenario.cluster.decode[0], scenario.llm.layers, scenario.slo.tpot_s
    gpus = 2 * node.gpus
    step = decode_step(
        scenario.llm, scenario.means, node, scenario.serving, scenario.efficiencies, gpus
    )
    engines = node.gpus / scenario.serving.decode.tensor
    for rate in (0.5, 5.0):
        cost = node_cost(scenario, Pool.DECODE, node, rate, 0.0, 0.0, constants)
        each = cost.running / engines
        fixed_s = (constants.step_layer_s + each * constants.request_layer_s) * layers
        step_s = step.seconds(each) + fixed_s
        assert cost.running == pytest.approx(rate * 1_500 * step_s, rel=1e-6)
        assert step_s < tpot_s
        left = last_residual(scenario.workload.output_tokens, cost.running)
        assert cost.drain_s == pytest.approx(left * step_s, rel=1e-6)
    full = node_cost(scenario, Pool.DECODE, node, 1e6, 0.0, 0.0, constants)
    batch = full.running / engines
    fixed_s = (constants.step_layer_s + batch * constants.request_layer_s) * layers
    room = (
        hbm_space(scenario.llm, node, scenario.serving.decode, scenario.efficiencies, gpus)
        / scenario.means.decode_context_bytes
    )
    binds = [step.seconds(batch) + fixed_s == pytest.approx(tpot_s), batch == pytest.approx(room)]
    assert any(binds)
    assert step.seconds(batch) + fixed_s <= tpot_s * (1 + 1e-9)
    assert batch <= room * (1 + 1e-9)


def test_nodes_turn_in_the_way_that_is_worth_more() -> None:
    scenario, rule = cluster_of(20, 4), replace(ONE_PART, restart_s=300.0)
    before = decide(scenario, OUTPUTS, 0.0, rule, parameters=False).capacity_requests_per_s.before
    load = 1.2 * rule.margin * before
    free = decide(scenario, OUTPUTS, load, rule, parameters=False)
    ways = {}
    for size in range(1, 20):
        fixed = decide(scenario, OUTPUTS, load, replace(rule, at_once=size), parameters=False)
        ways.update({(o.prefill_nodes, size): o.net_requests for o in fixed.options})
    together = set()
    for o in free.options:
        if o.turned:
            sizes = o.turned, math.ceil(o.turned / 8)
            best = max(ways[o.prefill_nodes, size] for size in sizes)
            assert o.net_requests == pytest.approx(best)
            together.add(o.nodes_at_once == o.turned)
    assert together == {True, False}, "this cluster has ratios of both"


def test_kv_cache_in_dram_is_lost_with_a_prefill_node_and_read_again() -> None:
    scenario = cluster_of(5, 1)
    nodes = tuple(replace(node, dram_bytes=2e12) for node in scenario.cluster.prefill)
    scenario = scenario.on(replace(scenario.cluster, prefill=nodes, decode=nodes[:1]))
    cached = replace(scenario, serving=replace(scenario.serving, dram_cache_hit_share=0.5))
    without = decide(scenario, OUTPUTS, 1e6, ONE_PART, parameters=False)
    found = decide(cached, OUTPUTS, 1e6, ONE_PART, parameters=False)
    assert without.lost_bytes == 0.0
    assert found.lost_bytes > 1e12 * len(found.turned)
    assert found.gain.cost_requests > without.gain.cost_requests


# ---- the record ----------------------------------------------------------------------------------

KEYS = {
    "version",
    "scenario",
    "action",
    "prefill_nodes_before",
    "decode_nodes_before",
    "prefill_nodes_after",
    "decode_nodes_after",
    "kinds",
    "turned",
    "capacity_requests_per_s",
    "headroom_before",
    "headroom_after",
    "bottleneck_before",
    "bottleneck_after",
    "gain",
    "switch_s",
    "nodes_at_once",
    "node_costs",
    "lost_bytes",
    "latency",
    "window",
    "best",
    "options",
    "searched",
    "parameters_before",
    "parameters_after",
    "reasons",
}


def test_the_record_has_its_keys_and_adds_up() -> None:
    scenario = cluster_of(5, 1)
    found = decide(scenario, OUTPUTS, 2.0, ONE_PART, waiting=1_000)
    data = to_json(found)
    assert set(data) == KEYS
    assert data["version"] == 1
    assert set(data["capacity_requests_per_s"]) == {"before", "during", "after"}
    assert found.headroom_before == pytest.approx(found.capacity_requests_per_s.before / 2.0)
    assert len(found.turned) == found.prefill_nodes_before - found.prefill_nodes_after
    assert [one.name for one in found.turned] == [f"p{i}" for i in range(5 - len(found.turned), 5)]
    assert all((one.before, one.after) == ("prefill", "decode") for one in found.turned)
    assert found.gain.net_requests == pytest.approx(
        found.gain.gain_requests - found.gain.cost_requests
    )
    # as many requests as so many hours of today's six nodes serve within the SLO
    within = ONE_PART.margin * found.capacity_requests_per_s.before
    assert found.gain.node_hours * 3_600 * within / 6 == pytest.approx(found.gain.net_requests)
    target = scenario.with_nodes(found.prefill_nodes_after, found.decode_nodes_after)
    plan = planner.plan(with_mix(target, OUTPUTS), intervals=False)
    assert found.parameters_after == plan.scheduler_parameters
    assert found.parameters_before == planner.plan(scenario).scheduler_parameters


def test_a_mix_that_moves_parameters_alone_is_a_retune() -> None:
    found = decide(cluster_of(2, 2), APPENDS, 1e-3, ONE_PART)
    assert found.action == "retune"
    assert any("beta" in one for one in found.reasons)


def test_the_floor_of_ttft_is_a_read_and_a_computation_without_waiting() -> None:
    scenario = cluster_of(2, 2)
    found = decide(scenario, OUTPUTS, 1.0, ONE_PART, parameters=False).latency
    mixed = with_mix(scenario, OUTPUTS)
    node, llm = scenario.cluster.prefill[0], scenario.llm
    read = 30_000 * llm.kv_bytes_per_token(mixed.serving.kv_dtype)
    line = node.storage_bytes_per_s * scenario.efficiencies.snic
    compute = mixed.means.prefill_flops / engine_flop_per_s(mixed, node)
    assert found.ttft_floor_mean_s == pytest.approx(read / line + compute, rel=1e-6)
    assert found.ttft_floor_p90_s == pytest.approx(found.ttft_floor_mean_s)
    assert found.load_before == pytest.approx(
        1.0 / decide(scenario, OUTPUTS, 1.0, parameters=False).capacity_requests_per_s.before
    )


def test_the_rate_of_a_window_comes_from_its_times() -> None:
    assert sessions_rate(APPENDS) == pytest.approx(1.0)
    with pytest.raises(InputError, match="give --rate"):
        sessions_rate(replace(APPENDS, start_s=np.zeros(300)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon_s", 0.0),
        ("min_gain", -0.1),
        ("dwell_s", math.nan),
        ("margin", 0.0),
        ("margin", 1.5),
        ("growth", 0.0),
        ("restart_s", -1.0),
        ("start_s", -1.0),
        ("at_once", 0),
        ("min_turns", 0),
        ("parts", 0),
    ],
)
def test_rules_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError):
        Rule(**{field: value})  # type: ignore[arg-type]


def test_clusters_whose_nodes_cannot_change_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3 nodes"):
        decide(cluster_of(1, 1), OUTPUTS, 1.0)
    with pytest.raises(InputError, match="locality"):
        decide(replace(cluster_of(2, 2), zones=((0, 0), (0, 0))), OUTPUTS, 1.0)
    with pytest.raises(InputError, match="rate"):
        decide(cluster_of(2, 2), OUTPUTS, -1.0)
    with pytest.raises(InputError, match="waiting"):
        decide(cluster_of(2, 2), OUTPUTS, 1.0, waiting=-1.0)


def test_classes_of_the_scenario_give_way_to_the_window() -> None:
    scenario = cluster_of(2, 2)
    two = (
        WorkloadClass("a", APPENDS, share=0.5),
        WorkloadClass("b", OUTPUTS, share=0.5),
    )
    assert with_mix(replace(scenario, classes=two), APPENDS).classes[0].workload is APPENDS
