"""The generator meets Table 2 for any seed, keeps its invariants, and is fast."""

import dataclasses
import time
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.traces import (
    TABLE_2,
    SyntheticSpec,
    TrajectoryMeans,
    generate,
    trajectory_means,
)
from dualpath_model.workload import Workload, from_sessions

MEANS = ("turns", "append_tokens", "generate_tokens", "total_tokens", "context_tokens")
# arXiv 2602.21548, Table 2
PAPER = {
    "32K": (60, 608, 148, 28639, 17183),
    "48K": (106, 474, 172, 42607, 25120),
    "64K": (157, 429, 176, 55958, 32721),
}


def literal_means(workload: Workload) -> TrajectoryMeans:
    """Table 2's means, turn by turn."""
    rows, appends, outputs = [], [], []
    for session in workload.sessions():
        turns = session.turns
        a = [
            later.prompt_tokens - before.prompt_tokens - before.output_tokens
            for before, later in pairwise(turns)
        ]
        g = [turn.output_tokens for turn in turns]
        total = turns[-1].prompt_tokens + turns[-1].output_tokens
        context = fmean(turn.prompt_tokens for turn in turns)
        rows.append((len(turns), fmean(a), fmean(g), total, context))
        appends += a
        outputs += g
    turns_, append, output, end, middle = (fmean(column) for column in zip(*rows, strict=True))
    return TrajectoryMeans(turns_, append, output, end, middle, fmean(appends), fmean(outputs))


@pytest.mark.parametrize("row", PAPER)
@pytest.mark.parametrize("seed", range(21))
def test_table_2_means_at_500_trajectories(row: str, seed: int) -> None:
    workload = generate(dataclasses.replace(TABLE_2[row], seed=seed))
    assert workload.session_count == 500
    means = trajectory_means(workload)
    found = [getattr(means, name) for name in MEANS]
    assert found == pytest.approx(PAPER[row], rel=0.02)


@pytest.mark.parametrize("row", PAPER)
@pytest.mark.parametrize("sessions", [50, 2_000])
def test_table_2_means_at_other_sizes(row: str, sessions: int) -> None:
    means = trajectory_means(generate(dataclasses.replace(TABLE_2[row], sessions=sessions)))
    assert [getattr(means, name) for name in MEANS] == pytest.approx(PAPER[row], rel=0.03)


def test_means_are_what_they_say() -> None:
    workload = generate(dataclasses.replace(TABLE_2["48K"], sessions=60))
    fast, slow = trajectory_means(workload), literal_means(workload)
    assert dataclasses.astuple(fast) == pytest.approx(dataclasses.astuple(slow))


@pytest.mark.parametrize("row", PAPER)
def test_pooled_appends_are_about_half_of_the_table(row: str) -> None:
    means = trajectory_means(generate(TABLE_2[row]))
    assert 0.4 < means.pooled_append_tokens / TABLE_2[row].append_tokens < 0.6


@pytest.mark.parametrize("row", PAPER)
def test_sigma_is_the_one_of_the_identity(row: str) -> None:
    # paper.md section 7: 2.04, 1.96 and 1.98, so a sigma of about 0.83
    assert TABLE_2[row].sigma == pytest.approx(0.83, abs=0.02)


def test_the_longest_of_500_has_many_times_the_mean_turns() -> None:
    longest = [
        np.diff(generate(dataclasses.replace(TABLE_2["64K"], seed=seed)).offsets).max()
        for seed in range(20)
    ]
    assert 1_200 < np.median(longest) < 2_200


def test_48_000_trajectories_are_vectorised() -> None:
    start = time.perf_counter()
    workload = generate(dataclasses.replace(TABLE_2["64K"], sessions=48_000))
    assert time.perf_counter() - start < 10
    assert workload.turns == pytest.approx(48_000 * 157, rel=0.001)
    means = trajectory_means(workload)
    assert [getattr(means, name) for name in MEANS] == pytest.approx(PAPER["64K"], rel=0.02)


def test_500_trajectories_take_well_under_50_ms() -> None:
    times = []
    for seed in range(5):
        start = time.perf_counter()
        generate(dataclasses.replace(TABLE_2["64K"], seed=seed))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_a_seed_decides_everything() -> None:
    one, same = generate(TABLE_2["32K"]), generate(TABLE_2["32K"])
    other = generate(dataclasses.replace(TABLE_2["32K"], seed=1))
    for field in dataclasses.fields(Workload):
        assert np.array_equal(getattr(one, field.name), getattr(same, field.name))
    assert not np.array_equal(one.offsets, other.offsets)


def test_one_part_s_draws_do_not_shift_another_s() -> None:
    one = generate(TABLE_2["32K"])
    other = generate(dataclasses.replace(TABLE_2["32K"], append_variation=0.2))
    assert np.array_equal(one.offsets, other.offsets)
    assert np.array_equal(one.output_tokens, other.output_tokens)
    assert not np.array_equal(one.prompt_tokens, other.prompt_tokens)


@st.composite
def specs(draw: st.DrawFn) -> SyntheticSpec:
    turns = draw(st.integers(2, 60))
    append, output = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    first = draw(st.integers(2, 20_000))
    product = draw(st.floats(1.0, 3.0))
    growth = max(turns * (append + output) / product, 5 * turns)
    sigma = None if growth <= turns * (append + output) else 0.5
    return SyntheticSpec(
        turns=turns,
        append_tokens=append,
        generate_tokens=output,
        total_tokens=first + growth,
        context_tokens=first + growth / 2,
        sessions=draw(st.integers(1, 60)),
        seed=draw(st.integers(0, 2**32)),
        turns_sigma=draw(st.sampled_from([sigma, 0.0, 1.2])),
        growth_spread=draw(st.sampled_from([0.0, 0.05, 0.2])),
        first_prompt_spread=draw(st.sampled_from([0.0, 0.5])),
        append_variation=draw(st.sampled_from([0.0, 1.0, 4.0])),
        generate_variation=draw(st.sampled_from([0.0, 1.0])),
        max_len_tokens=int((first * 1.5 + growth * 1.2) + 2),
        block_tokens=draw(st.sampled_from([1, 16, 64])),
    )


@given(specs())
@settings(max_examples=200, deadline=None)
def test_invariants(spec: SyntheticSpec) -> None:
    workload = generate(spec)
    turns = np.diff(workload.offsets)
    assert workload.session_count == spec.sessions
    assert turns.min() >= 2
    assert workload.output_tokens.min() >= 1
    for column in (workload.prompt_tokens, workload.hit_tokens, workload.output_tokens):
        assert np.array_equal(column, np.rint(column))
    end = workload.prompt_tokens + workload.output_tokens
    assert end.max() <= spec.max_len_tokens
    first = np.zeros(workload.turns, dtype=bool)
    first[workload.offsets[:-1]] = True
    append = workload.prompt_tokens[1:] - end[:-1]
    assert append[~first[1:]].min() >= 1
    expected = np.concatenate(([0.0], end[:-1])) // spec.block_tokens * spec.block_tokens
    assert np.array_equal(workload.hit_tokens, np.where(first, 0, expected))
    assert workload.hit_blocks * spec.block_tokens == workload.hit_tokens.sum()
    blocks = np.ceil(workload.prompt_tokens / spec.block_tokens).sum()
    assert workload.prompt_blocks == blocks


def test_no_spread_and_no_variation_make_even_trajectories() -> None:
    spec = dataclasses.replace(
        TABLE_2["32K"],
        sessions=30,
        turns_sigma=0.0,
        growth_spread=0.0,
        first_prompt_spread=0.0,
        append_variation=0.0,
        generate_variation=0.0,
    )
    workload = generate(spec)
    assert set(np.diff(workload.offsets)) == {60}
    assert np.ptp(workload.output_tokens) <= 1
    assert np.ptp(workload.prompt_tokens.reshape(30, 60), axis=0).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"turns": 1.5},
        {"turns": float("nan")},
        {"append_tokens": 0},
        {"append_tokens": True},
        {"generate_tokens": "176"},
        {"sessions": 0},
        {"sessions": 1.5},
        {"sessions": 10**9},
        {"seed": -1},
        {"turns_sigma": -0.1},
        {"turns_sigma": 11.0},
        {"growth_spread": 1.0},
        {"append_variation": -1.0},
        {"context_tokens": 27_000},
        {"context_tokens": 60_000},
        {"max_len_tokens": 56_000},
        {"turns": 20_000},
        {"append_tokens": 10.0},
        {"block_tokens": 0},
    ],
    ids=repr,
)
def test_specs_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"synthetic\.{next(iter(change))}") as caught:
        dataclasses.replace(TABLE_2["64K"], **change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_means_of_single_turns() -> None:
    from dualpath_model.workload import Session, Turn

    means = trajectory_means(from_sessions([Session("a", (Turn(100, 0, 5),))]))
    assert dataclasses.astuple(means) == (1, 0, 5, 105, 100, 0, 5)
