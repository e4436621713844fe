"""Decode: what a step takes, what TTST and TPOT mean, and engines that go in step."""

from __future__ import annotations

import numpy as np
import pytest

from dualpath_model.loads import decode_step
from dualpath_model.scenario import Scenario
from solvers.simulator import state
from solvers.simulator.constants import Constants
from solvers.simulator.model import Simulation
from tests.solvers.simulator.small import begin, column, example, traffic

SOME = Constants(batch_layer_s=1e-5, step_layer_s=2e-5, request_layer_s=3e-6)


def step_seconds(run: Simulation, engine: int, contexts: list[int]) -> float:
    """The roofline of a step of these requests on an engine, and what is beside it."""
    machine, count = run.sim.machine, len(contexts)
    read_s = (
        machine.weights_s[machine.step_kind[engine], count] + sum(contexts) * machine.kv_s[engine]
    )
    beside_s = machine.step_s + count * machine.request_step_s
    return float(beside_s + max(read_s, count * machine.flop_s[engine]))


def context(prompt: int, generated: int, block: int) -> int:
    """Tokens that a step reads: the prompt, and generated ones by whole blocks."""
    return prompt + ((prompt + generated) // block - (prompt + 1) // block) * block


def hand_off_seconds(run: Simulation, prompt: int, hit: int) -> float:
    """What the slowest resource of both nodes takes for one request that moves alone."""
    machine, slowest = run.sim.machine, 0.0
    on_decode = int(column(run, "on_decode")[0])
    for node, near in ((0, hit - on_decode), (1, on_decode)):
        work = (
            near * machine.near_s[state.MOVE, node] + (hit - near) * machine.far_s[state.MOVE, node]
        )
        work = work + (prompt - hit) * machine.miss_s[state.MOVE, node]
        shares = np.maximum(machine.own[node], 1)  # its own NICs are one part of the node's
        slowest = max(slowest, float((work * shares).max()))
    return slowest


@pytest.mark.parametrize("constants", [Constants(), SOME], ids=["bare", "constants"])
@pytest.mark.parametrize("output", [2, 3, 64, 1000])
@pytest.mark.parametrize("prompt", [63, 64, 30_000])
def test_a_request_alone_decodes_at_the_step_time(
    prompt: int, output: int, constants: Constants
) -> None:
    hit = prompt // 2
    run = begin(traffic([[(prompt, hit, output)]]), constants=constants)
    run.go()
    block = run.sim.machine.block_tokens
    engine = int(column(run, "decode")[0])
    steps = [step_seconds(run, engine, [context(prompt, made, block)]) for made in range(1, output)]
    rounding = 2e-9 * (2 + output // block)  # of each event
    first, admitted, second, ended = (
        float(column(run, name)[0]) / 1e9
        for name in ("first_token", "admitted", "second_token", "ended")
    )
    assert admitted - first == pytest.approx(hand_off_seconds(run, prompt, hit), abs=2e-9)
    assert second - admitted == pytest.approx(steps[0], abs=2e-9)
    assert ended - admitted == pytest.approx(sum(steps), abs=rounding)
    if output > 2:
        tpot_s = (ended - second) / (output - 2)
        assert tpot_s == pytest.approx(np.mean(steps[1:]), abs=rounding)


def test_the_mean_step_is_that_of_the_static_model() -> None:
    """A second route: the plan's DecodeStep for the mean turn; context grows by blocks, not tokens."""
    scenario = example("paper-mean-turn")
    means, node = scenario.means, scenario.cluster.decode[0]
    output = round(means.output_tokens)
    run = begin(
        traffic([[(round(means.prompt_tokens), round(means.hit_tokens), output)]]), scenario
    )
    run.go()
    gpus = sum(n.gpus for n in scenario.cluster.decode)
    step = decode_step(scenario.llm, means, node, scenario.serving, scenario.efficiencies, gpus)
    took_s = float(column(run, "ended")[0] - column(run, "admitted")[0]) / 1e9
    assert took_s / (output - 1) == pytest.approx(step.seconds(1.0), rel=64 / means.prompt_tokens)


def two_engines(scenario: Scenario, heavy: int) -> tuple[Simulation, dict[str, dict[int, float]]]:
    """A long request on one engine; a short one comes to another engine while it decodes."""
    sessions = [[(heavy, heavy // 2, 20_000)], [(500, 250, 300)]]
    run = begin(traffic(sessions, [0.0, 5.0]), scenario, "basic")
    run.go()
    names = ("agent", "decode", "admitted", "second_token", "ended")
    rows = {name: dict(zip(column(run, "agent"), column(run, name), strict=True)) for name in names}
    assert rows["decode"][0] != rows["decode"][1]
    assert rows["admitted"][0] < rows["admitted"][1] < rows["ended"][1] < rows["ended"][0]
    return run, rows


def bounds(run: Simulation, engine: int, prompt: int, output: int) -> tuple[float, float]:
    """The shortest and the longest step of a request alone on an engine."""
    return step_seconds(run, engine, [prompt]), step_seconds(run, engine, [prompt + output])


def test_engines_of_a_unit_step_at_the_slowest_one_s_pace() -> None:
    run, rows = two_engines(example("ds-27b-1p1d"), 30_000)
    engines = [int(rows["decode"][agent]) for agent in (0, 1)]
    unit = run.sim.machine.decode_unit
    assert unit[engines[0]] == unit[engines[1]]
    low, high = bounds(run, engines[0], 30_000, 20_000)
    alone = bounds(run, engines[1], 500, 300)[1]
    pace_s = (rows["ended"][1] - rows["second_token"][1]) / 1e9 / 298
    assert alone < low < pace_s < high
    block = run.sim.machine.block_tokens
    steps = [
        step_seconds(run, engines[0], [context(30_000, made, block)]) for made in range(1, 20_000)
    ]
    ends_s = rows["admitted"][0] / 1e9 + np.cumsum(steps)
    begins = np.searchsorted(ends_s, rows["admitted"][1] / 1e9)  # the step that goes on must end
    assert rows["second_token"][1] / 1e9 == pytest.approx(ends_s[begins + 1], abs=1e-6)


def test_a_unit_goes_on_faster_when_the_slowest_has_left() -> None:
    """The light request outlives the heavy one: before and after it goes at either's pace."""
    sessions = [[(30_000, 15_000, 200)], [(500, 250, 4000)]]
    run = begin(traffic(sessions), None, "basic")
    run.go()
    rows = {int(row[0]): row for row in run.rows}
    engines = [int(rows[agent][state.RESULT_FIELDS.index("decode")]) for agent in (0, 1)]
    assert engines[0] != engines[1]
    at = state.RESULT_FIELDS.index
    both_s = (rows[0][at("ended")] - rows[0][at("second_token")]) / 1e9
    alone_s = (rows[1][at("ended")] - rows[0][at("ended")]) / 1e9
    slow = bounds(run, engines[0], 30_000, 200)
    fast = bounds(run, engines[1], 500, 4000)
    assert slow[0] <= both_s / 198 * (1 + 1e-6)
    assert both_s / 198 <= slow[1]
    made_before = (rows[0][at("ended")] - rows[1][at("admitted")]) / 1e9 / slow[0]
    left = 3999 - made_before
    assert fast[0] * (left - 2) <= alone_s <= fast[1] * (left + 60)
    assert slow[0] > 1.02 * fast[1]  # so that the two cases are apart


def test_engines_of_units_of_their_own_do_not_wait() -> None:
    run, rows = two_engines(example("qwen-32b-1p2d"), 20_000)
    engines = [int(rows["decode"][agent]) for agent in (0, 1)]
    low, high = bounds(run, engines[1], 500, 300)
    pace_s = (rows["ended"][1] - rows["second_token"][1]) / 1e9 / 298
    assert low <= pace_s <= high
    assert step_seconds(run, engines[0], [20_000]) > high
