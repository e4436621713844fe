"""Workloads: columns and objects agree, and columns that nobody could serve are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.workload import Session, Turn, Workload, from_moments, from_sessions, scaled

SESSIONS = [
    Session("a", (Turn(100, 0, 10), Turn(150, 64, 20, 3.5)), 0.0),
    Session("b", (Turn(40, 0, 5),), 7.0),
]


def test_sessions_round_trip() -> None:
    workload = from_sessions(SESSIONS, "s")
    assert (workload.session_count, workload.turns) == (2, 3)
    assert workload.hit_rate == 64 / 290
    assert [session.turns for session in workload.sessions()] == [s.turns for s in SESSIONS]
    assert [session.start_s for session in workload.sessions()] == [0.0, 7.0]
    assert SESSIONS[0].turns[1].miss_tokens == 86


def columns(**changed: object) -> Workload:
    given = {
        "prompt_tokens": np.array([100.0]),
        "hit_tokens": np.array([64.0]),
        "output_tokens": np.array([10.0]),
        "think_time_s": np.zeros(1),
        "start_s": np.zeros(1),
        "offsets": np.array([0, 1]),
    }
    return Workload(**{**given, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hit_tokens": np.array([101.0])}, "turn 1 has hit_tokens 101, more than its prompt"),
        ({"output_tokens": np.array([np.nan])}, "output_tokens of entry 1 is nan"),
        ({"think_time_s": np.array([-1.0])}, "think_time_s of entry 1 is -1"),
        (
            {"prompt_tokens": np.array([0.0]), "hit_tokens": np.zeros(1)},
            "turn 1 has an empty prompt",
        ),
        ({"prompt_tokens": np.array([np.inf])}, "prompt_tokens of entry 1 is inf"),
    ],
)
def test_impossible_columns_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        columns(**changed)


def test_a_workload_without_turns_is_refused() -> None:
    with pytest.raises(InputError, match="there is no request in it"):
        from_sessions([])


def test_sub_agents_are_counted_by_session() -> None:
    workload = Workload(
        prompt_tokens=np.full(5, 100.0),
        hit_tokens=np.zeros(5),
        output_tokens=np.ones(5),
        think_time_s=np.zeros(5),
        start_s=np.zeros(2),
        offsets=np.array([0, 3, 5]),
        agent=np.array([0, 1, 1, 1, 2]),
    )
    assert (workload.sub_agents, workload.sub_agent_turns) == (3, 4)
    assert from_moments(10, 5, 1).sub_agents == 0


# ---- other lengths ----------------------------------------------------------------------------------


def _turns(hit: list[float], miss: list[float], output: list[float]) -> Workload:
    count = len(hit)
    return Workload(
        prompt_tokens=np.array(hit) + np.array(miss),
        hit_tokens=np.array(hit, dtype=float),
        output_tokens=np.array(output, dtype=float),
        think_time_s=np.zeros(count),
        start_s=np.zeros(1),
        offsets=np.array([0, count]),
    )


LENGTHS = st.floats(0.5, 1e5)


@given(
    st.lists(st.tuples(LENGTHS, LENGTHS, LENGTHS), min_size=1, max_size=6),
    st.floats(0.0, 10.0),
    st.floats(0.01, 10.0),
    st.floats(0.0, 10.0),
)
def test_factors_multiply_every_turn(
    turns: list[tuple[float, float, float]], context: float, append: float, generate: float
) -> None:
    before = _turns(*(list(column) for column in zip(*turns, strict=True)))
    found = scaled(before, context=context, append=append, generate=generate)
    np.testing.assert_allclose(found.hit_tokens, before.hit_tokens * context)
    np.testing.assert_allclose(found.miss_tokens, before.miss_tokens * append, atol=1e-6)
    np.testing.assert_allclose(found.output_tokens, before.output_tokens * generate)
    assert found.session_count == before.session_count


@given(
    st.lists(st.tuples(LENGTHS, LENGTHS, LENGTHS), min_size=1, max_size=6), st.floats(0.0, 0.9999)
)
def test_a_hit_rate_keeps_the_prompts(turns: list[tuple[float, float, float]], rate: float) -> None:
    before = _turns(*(list(column) for column in zip(*turns, strict=True)))
    found = scaled(before, hit_rate=rate)
    np.testing.assert_allclose(found.prompt_tokens, before.prompt_tokens)
    assert found.hit_rate == pytest.approx(rate, abs=1e-9)
    more = found.hit_tokens - before.hit_tokens
    assert (more >= -1e-6).all() or (more <= 1e-6).all(), "all turns go the same way"


def test_what_cannot_be_scaled_is_said() -> None:
    cold = _turns([0.0], [10.0], [1.0])
    with pytest.raises(InputError, match=r"hit_rate is 0.5, but no turn .* hits"):
        scaled(cold, hit_rate=0.5)
    with pytest.raises(InputError, match="from 0 to below 1"):
        scaled(cold, hit_rate=1.0)
    with pytest.raises(InputError, match=r"scale\.context is nan"):
        scaled(cold, context=float("nan"))
    with pytest.raises(InputError, match="nothing to prefill"):
        scaled(_turns([5.0], [10.0], [1.0]), append=0.0)
