"""What frameworks do otherwise in the kernel, by hand on small runs in plain Python."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dualpath_model.cluster import Node
from dualpath_model.errors import InputError
from dualpath_model.frameworks import FRAMEWORKS
from dualpath_model.paths import Pool
from dualpath_model.scenario import Slo
from dualpath_model.scheduler.placement import refresh_all
from dualpath_model.scheduler.policies import policy_named
from dualpath_model.scheduler.setup import transfer_costs
from solvers import plan
from solvers.simulator import laws
from solvers.simulator import state as arrays
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import execute, simulate
from solvers.simulator.frameworks import follow, rules_of
from solvers.simulator.model import Simulation, Switches
from tests.solvers.simulator.small import Turns, begin, column, example, traffic, with_buffers
from tests.solvers.simulator.test_bound import endless

SIMULATED = ["vllm", "vllm-pull", "sglang"]


def test_the_paper_replaces_nothing() -> None:
    """So its kernel is what it was, whatever frameworks need."""
    assert rules_of(FRAMEWORKS["paper"]) == {}
    policy = policy_named("dualpath")
    assert follow(policy, FRAMEWORKS["paper"]) is policy


def session(turns: int, first: int = 640, append: int = 128, output: int = 64) -> Turns:
    """Turns that each hit all of the one before."""
    found, hit, miss = [], 0, first
    for _ in range(turns):
        found.append((hit + miss, hit, output))
        hit, miss = hit + miss + output, append
    return found


@settings(max_examples=15)
@given(
    framework=st.sampled_from(SIMULATED),
    policy=st.sampled_from(["dualpath", "round-robin", "basic", "priced", "oracle"]),
    sessions=st.lists(
        st.builds(
            session,
            st.integers(1, 6),
            st.integers(64, 4000),
            st.integers(1, 900),
            st.integers(1, 300),
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_laws_hold_in_every_framework(framework: str, policy: str, sessions: list[Turns]) -> None:
    run = begin(traffic(sessions), example().under(framework), policy)
    end_s = run.go()
    laws.check(run, end_s)
    assert run.ended


def test_layerwise_is_the_tables_word() -> None:
    work = traffic([session(2)])
    for name, table in FRAMEWORKS.items():
        assert Switches().loads_layerwise(table) is (name in ("paper", "sglang"))
        assert Switches(layerwise=False).loads_layerwise(table) is False
    for name in ("vllm", "vllm-pull"):
        with pytest.raises(InputError, match=f"framework {name} loads request by request"):
            begin(work, example().under(name), switches=Switches(layerwise=True))
    assert begin(work, example().under("sglang"), switches=Switches(layerwise=True))


def test_dynamo_and_split_reads_are_refused() -> None:
    with pytest.raises(InputError, match="does not model prefill on decode nodes, so ask"):
        simulate(example().under("dynamo"), agents=1, compiled=False)
    for name in SIMULATED:
        with pytest.raises(InputError, match=f"policy is split, but framework {name}"):
            begin(traffic([session(1)]), example().under(name), "split")


def test_only_the_papers_prefill_hbm_holds_one_layer() -> None:
    work, layers = traffic([session(1)]), example().llm.layers
    one = begin(work, example()).sim.machine.batch_room
    for name in SIMULATED:
        whole = begin(work, example().under(name)).sim.machine.batch_room
        assert_allclose(one, whole * layers, rtol=1e-6)


def reads(framework: str, turns: Turns) -> tuple[float, float]:
    """Tokens that the prefill and the decode node of a 1P1D cluster read from storage."""
    run = begin(traffic([turns]), example().under(framework))
    laws.check(run, run.go())
    nodes = run.sim.nodes
    tokens = run.sim.world.work_s[:, -1] * nodes.read_rate
    return float(tokens[nodes.decode == 0].sum()), float(tokens[nodes.decode != 0].sum())


def test_who_reads_from_storage() -> None:
    turns = session(4)
    hits = sum(hit for _, hit, _ in turns)
    assert_allclose(sum(reads("paper", turns)), hits)
    assert_allclose(sum(reads("vllm", turns)), hits)
    assert_allclose(reads("sglang", turns), (hits, hits))
    assert reads("vllm-pull", turns) == (0.0, 0.0)  # each turn's hits are the last turn's
    # hits that no turn before has left come from storage, through the prefill node
    assert_allclose(reads("vllm-pull", [(1000, 900, 10)]), (900, 0))


def test_sglang_is_ready_when_both_sides_have_read() -> None:
    """With a decode node that reads at half the rate, the read takes twice as long."""
    scenario = example().under("sglang")
    work = traffic([[(10_000, 9_984, 2)]])
    took = []
    for slower in (1.0, 2.0):
        run = begin(work, scenario)
        run.sim.nodes.read_rate[run.sim.nodes.decode != 0] /= slower
        run.go()
        took.append(int((column(run, "read") - column(run, "allocated"))[0]))
    assert_allclose(took[1], 2 * took[0], rtol=1e-6)


def test_buffers_hold_what_the_framework_puts_there() -> None:
    """vLLM: hits on the prefill node whoever reads them, on the decode node only its own reads."""
    prompt, hit = 2000, 1920
    work = traffic([[(prompt, hit, 5)]])
    scenario = with_buffers(example(), 4000, 4000)
    taken: dict[str, list[tuple[int, ...]]] = {}
    for name in ("paper", *SIMULATED):
        run = begin(work, scenario.under(name))
        seen = taken.setdefault(name, [])
        while run.go_ns(2**60, 1) < 2**60 and not run.ended:
            seen.append(tuple((run.buffer_tokens - run.sim.world.buffer_free).tolist()))
    top = {name: tuple(np.max(seen, axis=0).tolist()) for name, seen in taken.items()}
    read_by_decode = top["vllm"] == (hit, hit)
    assert top["paper"] in ((hit, prompt), (0, prompt))
    assert read_by_decode or top["vllm"] == (hit, 0)
    assert top["vllm-pull"] == (hit, 0)  # read from storage: there was no turn before
    assert top["sglang"] == (hit, hit)


def one_prefill_engine(run: Simulation) -> None:
    """Close all prefill engines but the first."""
    run.sim.prefill.open[1:] = 0
    run.bind(refresh_all)(run.sim.prefill, run.sim.decode, run.sim.nodes)


def test_loads_run_while_other_requests_are_computed() -> None:
    """A slow load does not hold up the batch of a request without hits, but its own does wait."""
    scenario = example("qwen-32b-1p2d").under("vllm")
    work = traffic([[(6400, 6384, 5)], [(3000, 0, 5)]])
    run = begin(work, scenario, "basic")
    machine = run.sim.machine
    machine.near_s[arrays.LOAD] *= 1000.0
    machine.far_s[arrays.LOAD] *= 1000.0
    one_prefill_engine(run)
    run.go()
    agent = column(run, "agent")
    first = dict(zip(agent.tolist(), column(run, "first_token").tolist(), strict=True))
    read = dict(zip(agent.tolist(), column(run, "read").tolist(), strict=True))
    load_ns = 1e9 * max(
        6384 * float(machine.near_s[arrays.LOAD, 0].max()),
        6384 * float((machine.near_s[arrays.LOAD, 0] * machine.own[0]).max()),
    )
    assert first[1] < read[0] + load_ns / 2  # long before the other one's hits are there
    assert first[0] >= read[0] + load_ns


def test_prompts_wait_for_room_in_the_prefill_hbm() -> None:
    scenario = example().under("vllm")
    work = traffic([[(1000, 960, 5)]] * 3)
    run = begin(work, scenario, "basic")
    one_prefill_engine(run)
    run.sim.world.hbm_free[:] = 1500  # one at a time
    run.sim.machine.batch_room[:] = 1500
    laws.check(run, run.go())
    order = np.argsort(column(run, "first_token"))
    first, admitted = column(run, "first_token")[order], column(run, "admitted")[order]
    assert (first[1:] > admitted[:-1]).all()


def test_pulled_turns_go_back_to_their_decode_engine_and_hold_it_meanwhile() -> None:
    work = traffic([session(3), session(3)])
    think = np.zeros(6, dtype=np.int64)
    think[[1, 2, 4, 5]] = 5_000_000_000
    run = begin(work._replace(think_ns=think), example().under("vllm-pull"))
    run.go(4.0)  # both think before their second turn
    turns = session(3)
    kept = turns[1][1]
    assert run.sim.decode.held.sum() == 2 * kept
    run.go()
    engines = column(run, "decode")
    agents = column(run, "agent")
    for agent in (0, 1):
        assert len(set(engines[agents == agent].tolist())) == 1
    assert run.sim.decode.held.sum() == 0
    pulled = column(run, "on_decode")
    turn = column(run, "turn") % 3
    assert (pulled == np.array([hit for _, hit, _ in turns])[turn]).all()


def test_a_decode_engine_without_room_gives_up_what_it_kept() -> None:
    """The turn is then read from storage, and may go to any engine."""
    turns = session(2, first=6400, append=6400, output=64)
    run = begin(traffic([turns]), example().under("vllm-pull"))
    run.go(1e-9)
    room = turns[0][0] + turns[0][2] + 10
    run.sim.decode.limit[:] = run.sim.decode.free[:] = room
    big = turns[1][0] + turns[1][2]
    run.sim.decode.limit[1], run.sim.decode.free[1] = big, big
    run.bind(refresh_all)(run.sim.prefill, run.sim.decode, run.sim.nodes)
    run.sim.decode.open[1] = 0
    run.bind(refresh_all)(run.sim.prefill, run.sim.decode, run.sim.nodes)
    run.go(0.2)
    run.sim.decode.open[1] = 1
    run.bind(refresh_all)(run.sim.prefill, run.sim.decode, run.sim.nodes)
    laws.check(run, run.go())
    assert run.ended
    assert column(run, "on_decode").tolist() == [0, 0]
    assert column(run, "decode")[1] == 1


def test_both_nodes_have_a_part_in_storing_the_prompt() -> None:
    """vLLM: the prefill node writes appended tokens to storage, the decode node only copies them."""
    work = traffic([[(1024, 0, 1)]])
    for name, writer in (("paper", "decode"), ("vllm", "prefill"), ("sglang", "prefill")):
        summary = simulate_one(work, name)
        assert {pool for pool, busy in summary.items() if busy > 0} == {writer}


def simulate_one(work: arrays.Traffic, framework: str) -> dict[str, float]:
    """Busy seconds of each side's storage NICs outwards."""
    scenario = example().under(framework)
    run = begin(work, scenario)
    run.go()
    found = {}
    for number, pool in enumerate((Pool.PREFILL, Pool.DECODE)):
        names = transfer_costs(scenario, pool, scenario.cluster.nodes(pool)[0]).resources
        found[pool.value] = float(run.sim.world.work_s[number, names.index("snic out")])
    return found


def test_replaced_rules_leave_the_oracle_without_movement() -> None:
    for name in SIMULATED:
        policy = follow(policy_named("oracle"), FRAMEWORKS[name])
        assert policy.moves_nothing
        run = begin(traffic([session(3)]), example().under(name), "oracle")
        run.go()
        assert not run.sim.world.work_s.any()


@pytest.mark.parametrize(
    ("framework", "hardware"),
    [("vllm", "snic"), ("sglang", "snic"), ("vllm", "gpu"), ("vllm-pull", "gpu")],
)
def test_a_small_cluster_comes_near_the_bound_of_its_framework(
    framework: str, hardware: str
) -> None:
    """As test_framework_bound.py, which is compiled, but on one node a side: more agents, more turns,
    up to the LP's bound and not past it.
    """
    slower = _slower_gpus if hardware == "gpu" else _slower_storage
    scenario = example().under(framework).with_each_node(Pool.PREFILL, slower)
    if hardware == "snic":
        scenario = scenario.with_each_node(Pool.DECODE, slower)
    traffic_class = replace(scenario.classes[0], workload=endless(176, turns=2_000))
    scenario = replace(scenario, classes=(traffic_class,), slo=Slo(ttft_s=1.0, tpot_s=1.0))
    bound = plan(scenario, intervals=False)
    assert bound.bottleneck.resource == hardware
    begin_s, end_s = 20.0, 60.0
    passed = "read" if hardware == "snic" else "first_token"
    shares = []
    for agents in (1, 5, 60):
        run = execute(
            scenario, agents=agents, until_s=end_s + 10, constants=Constants(), compiled=False
        ).run
        at = column(run, passed) / 1e9
        done = int(((at >= begin_s) & (at < end_s)).sum()) / (end_s - begin_s)
        shares.append(done / bound.throughput_requests_per_s)
    assert max(shares) <= 1.01  # a turn more or less in the window
    assert shares[-1] >= 0.97
    assert (np.diff(shares) > -0.01).all()
    assert shares[0] < 0.9


def _slower_storage(node: Node) -> Node:
    return replace(node, snic_bytes_per_s=node.snic_bytes_per_s / 8)


def _slower_gpus(node: Node) -> Node:
    bf16, fp8 = node.gpu.bf16_flop_per_s, node.gpu.fp8_flop_per_s
    assert fp8 is not None
    gpu = replace(node.gpu, bf16_flop_per_s=bf16 / 64, fp8_flop_per_s=fp8 / 64)
    return replace(node, gpu=gpu)
