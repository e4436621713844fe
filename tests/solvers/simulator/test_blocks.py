"""Storing: whole blocks of what is appended and generated, no more, no less, as they complete."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.paths import Pool
from dualpath_model.scheduler.setup import transfer_costs
from solvers.simulator import laws
from solvers.simulator.model import Simulation
from solvers.simulator.state import WRITTEN_TOKENS
from tests.solvers.simulator.small import begin, column, example, traffic

BLOCK = 64
EDGES = st.sampled_from([-1, 0, 1])


def near_a_block(blocks: int, off: int, least: int) -> int:
    return max(least, blocks * BLOCK + off)


LENGTH = st.one_of(
    st.integers(1, 400), st.builds(near_a_block, st.integers(1, 6), EDGES, st.just(1))
)
TURN = st.tuples(LENGTH, st.floats(0, 1), LENGTH).map(
    lambda drawn: (drawn[0], round(drawn[1] * (drawn[0] - 1)), drawn[2])
)


def completed(prompt: int, hit: int, output: int) -> int:
    """Tokens of the blocks whose last token is neither a hit nor beyond the end: counted one by one."""
    return BLOCK * sum(1 for token in range(hit + 1, prompt + output + 1) if token % BLOCK == 0)


def seconds_out(run: Simulation) -> float:
    """What the decode nodes' storage NICs have been given to write."""
    names = transfer_costs(example(), Pool.DECODE, example().cluster.decode[0]).resources
    return float(run.sim.world.work_s[1, names.index("snic out")])


@given(st.lists(st.lists(TURN, min_size=1, max_size=3), min_size=1, max_size=4))
@case([[(63, 0, 1)]])
@case([[(64, 0, 1), (64, 63, 1), (128, 64, 1)]])
@case([[(65, 64, 63), (1, 0, 64), (127, 127 - 1, 2)]])
def test_whole_blocks_of_appended_and_generated_tokens(
    sessions: list[list[tuple[int, int, int]]],
) -> None:
    run = begin(traffic(sessions))
    assert run.sim.machine.block_tokens == BLOCK
    laws.check(run, run.go())
    expected = sum(completed(*turn) for turns in sessions for turn in turns)
    assert run.total(WRITTEN_TOKENS) == expected
    scenario = example()
    node = scenario.cluster.decode[0]
    rate = node.storage_bytes_per_s * scenario.efficiencies.snic
    written_s = expected * scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype) / rate
    assert seconds_out(run) == pytest.approx(written_s, rel=1e-9)


def test_blocks_are_stored_while_the_request_decodes() -> None:
    """At any moment what is stored is within a block of what is generated."""
    prompt, output = 1000, 20 * BLOCK
    run = begin(traffic([[(prompt, 960, output)]]))
    whole = begin(traffic([[(prompt, 960, output)]]))
    whole.go()
    (admitted,), (ended,) = column(whole, "admitted") / 1e9, column(whole, "ended") / 1e9
    for share in np.linspace(0.05, 0.95, 10):
        run.go(admitted + share * (ended - admitted))
        generated = 1 + share * (output - 1)  # steps are alike within 1 %
        stored = run.total(WRITTEN_TOKENS)
        assert stored % BLOCK == 0
        assert prompt - 960 + generated - BLOCK - 15 <= stored <= prompt - 960 + generated + 15
