"""Buffers: DRAM that is finite is never exceeded, and nobody waits for ever; HBM bounds a prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model.cluster import Node
from dualpath_model.errors import InputError
from dualpath_model.paths import Pool
from dualpath_model.scheduler.attention import AttentionTime, chunk_seconds
from solvers.simulator import laws
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import execute
from solvers.simulator.model import Simulation, Switches
from solvers.simulator.series import NODE
from tests.solvers.simulator.small import begin, column, example, traffic, with_buffers


def sessions_up_to(prompt: int) -> st.SearchStrategy[list[list[tuple[int, int, int]]]]:
    turn = st.tuples(st.integers(1, prompt), st.floats(0, 1), st.integers(1, 80)).map(
        lambda drawn: (drawn[0], int(drawn[1] * (drawn[0] - 1)), drawn[2])
    )
    return st.lists(st.lists(turn, min_size=1, max_size=4), min_size=2, max_size=8)


SESSIONS = st.sampled_from([20, 400, 40_000]).flatmap(sessions_up_to)


def finish_one_by_one(run: Simulation) -> None:
    """Run event by event; every buffer stays within its size, and gets all its room back."""
    now_s, steps = 0.0, 0
    while not run.ended:
        now_s = run.go(most_events=1)
        steps += 1
        free = run.sim.world.buffer_free
        assert (free >= 0).all()
        assert (free <= run.buffer_tokens).all()
        assert steps < 50_000 and now_s < 4e9, "it stands still"
    laws.check(run, now_s)
    assert (run.sim.world.buffer_free == run.buffer_tokens).all()


@given(
    SESSIONS,
    st.floats(1.0, 2.5),
    st.floats(1.0, 2.5),
    st.sampled_from(["dualpath", "basic", "round-robin", "priced", "split"]),
)
@settings(max_examples=60)
def test_any_buffer_that_holds_the_largest_prompt_serves_all(
    sessions: list[list[tuple[int, int, int]]], prefill: float, decode: float, policy: str
) -> None:
    largest = max(turn[0] for session in sessions for turn in session)
    scenario = with_buffers(
        example().with_nodes(2, 2), int(prefill * largest), int(decode * largest)
    )
    run = begin(traffic(sessions), scenario, policy)
    rooms = [int(prefill * largest), int(decode * largest)]
    assert run.buffer_tokens.tolist() == list(np.repeat(rooms, 2))
    finish_one_by_one(run)
    assert len(run.rows) == sum(map(len, sessions))


def test_requests_wait_for_room_in_a_small_buffer_and_not_in_a_large_one() -> None:
    scenario = example("deepseek-660b-2p4d")
    largest = int(scenario.workload.prompt_tokens.max())
    found = {}
    for name, room in (("small", largest), ("large", 1000 * largest)):
        outcome = execute(
            with_buffers(scenario, room, room),
            agents=12,
            until_s=20.0,
            sample_s=0.5,
            constants=Constants(),
            compiled=False,
        )
        used = np.array(outcome.series.nodes)[:, :, NODE.index("buffer_tokens")]
        assert (used <= outcome.run.buffer_tokens).all()
        assert used.any()
        found[name] = outcome.summary
    assert found["small"].allocating_s["mean"] > 0
    assert found["large"].allocating_s["max"] == 0
    assert found["small"].turns < found["large"].turns


def test_room_is_given_in_the_order_of_asking() -> None:
    """A small prompt does not slip past a large one that waits."""
    sessions = [[(900, 800, 400)], [(800, 700, 400)], [(50, 40, 400)]]
    starts = [0.0, 0.1, 0.2]  # fetches apart
    storage = example().with_each_node(Pool.PREFILL, slow_nic).with_each_node(Pool.DECODE, slow_nic)
    run = begin(traffic(sessions, starts), with_buffers(storage, 1000, 1000))
    run.go(600.0)
    assert run.ended
    agent = column(run, "agent")
    allocated = dict(zip(agent, column(run, "allocated"), strict=True))
    placed = dict(zip(agent, column(run, "placed"), strict=True))
    assert allocated[0] == placed[0]
    assert allocated[1] > placed[2]  # the second still waits when the third comes
    assert allocated[2] >= allocated[1] > placed[1]


def slow_nic(node: Node) -> Node:
    return replace(node, snic_bytes_per_s=node.snic_bytes_per_s / 2000)


def test_a_buffer_smaller_than_a_prompt_is_refused() -> None:
    scenario, work = example(), traffic([[(1000, 500, 5)]])
    begin(work, with_buffers(scenario, 1000, 1000))
    with pytest.raises(
        InputError, match=r"1000 tokens .* than the 999 that the DRAM buffer of node d0"
    ):
        begin(work, with_buffers(scenario, 1000, 999))


def test_without_layerwise_loading_a_prompt_must_fit_the_prefill_hbm() -> None:
    def larger(node: Node) -> Node:
        return replace(
            node, buffer_bytes=None, gpu=replace(node.gpu, hbm_bytes=4 * node.gpu.hbm_bytes)
        )

    def endless_buffer(node: Node) -> Node:
        return replace(node, buffer_bytes=None)

    scenario = example().with_each_node(Pool.DECODE, larger)
    scenario = scenario.with_each_node(Pool.PREFILL, endless_buffer)
    whole = Switches(layerwise=False)
    room = int(begin(traffic([[(10, 5, 5)]]), scenario, switches=whole).sim.machine.batch_room[0])
    fits, too_long = (traffic([[(prompt, prompt - 10, 5)]]) for prompt in (room, room + 1))
    run = begin(fits, scenario, switches=whole)
    run.go()
    assert run.ended
    with pytest.raises(InputError, match=f"{room + 1} tokens .* than the {room} that a prefill"):
        begin(too_long, scenario, switches=whole)
    begin(too_long, scenario)  # layer by layer it fits


def test_unequal_prefill_gpus_each_run_at_their_own_pace() -> None:
    """Batches of one request without hits, on a dense LLM: no waiting for other engines."""
    scenario = example("qwen-32b-1p2d").with_nodes(2, 2)
    fast, node = scenario.cluster.prefill
    gpu = replace(node.gpu, bf16_flop_per_s=node.gpu.bf16_flop_per_s / 3, fp8_flop_per_s=None)
    slow = replace(node, gpu=gpu)
    scenario = scenario.on(replace(scenario.cluster, prefill=(fast, slow)))
    engines = 2 * fast.gpus // scenario.serving.prefill.tensor
    run = begin(traffic([[(2000, 0, 3)] * engines]), scenario, "basic")
    run.go()
    machine, sim = run.sim.machine, run.sim
    took_ns = column(run, "first_token") - column(run, "read")
    assert set(column(run, "prefill")) == set(range(engines))
    for engine, ns in zip(column(run, "prefill"), took_ns, strict=True):
        model = AttentionTime(*machine.attention[engine])
        seconds = model.fixed_s + chunk_seconds(model, 0, 2000) + 2000 * machine.linear_s[engine]
        assert ns / 1e9 == pytest.approx(seconds, abs=3e-9)
    paces = [took_ns[sim.prefill.node[column(run, "prefill")] == node].mean() for node in (0, 1)]
    assert paces[1] > 2 * paces[0]
