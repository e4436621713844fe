"""Samples over simulated time: each column again from what the run kept of every turn."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.simulator.experiments import Outcome, execute
from solvers.simulator.series import CLUSTER, NODE, Series
from solvers.simulator.state import RESULT_FIELDS, TURNS
from tests.solvers.simulator.small import example, with_buffers

# ---- made up -------------------------------------------------------------------------------------


def series_of(busy: list[list[float]]) -> Series:
    """A series in which each window's storage NICs were busy for these shares."""
    made = Series()
    for shares in busy:
        table = np.full((len(shares), len(NODE)), 1e6)  # other columns must not matter
        table[:, NODE.index("nic_busy")] = shares
        made.nodes.append(table)
    return made


def test_max_over_mean_is_of_windows() -> None:
    """Two NICs in turns: even over the run, all on one in each window."""
    rates = np.array([10.0, 10.0])
    assert series_of([[1.0, 0.0], [0.0, 1.0]]).nic_max_over_mean(rates) == pytest.approx(2.0)
    assert series_of([[0.5, 0.5], [1.0, 0.0]]).nic_max_over_mean(rates) == pytest.approx(1.5)


def test_faster_nics_read_more_in_the_same_time() -> None:
    rates = np.array([30.0, 10.0])
    assert series_of([[0.5, 0.5]]).nic_max_over_mean(rates) == pytest.approx(1.5)
    assert series_of([[0.25, 0.75]]).nic_max_over_mean(rates) == pytest.approx(1.0)


def test_a_window_counts_by_what_was_read_in_it() -> None:
    """An uneven trickle at the end of a run does not make the run uneven."""
    rates = np.ones(4)
    busy = [[0.8, 0.4, 0.4, 0.4], [0.004, 0.0, 0.0, 0.0], [0.0] * 4]
    assert series_of(busy).nic_max_over_mean(rates) == pytest.approx(0.804 / 0.501)
    assert series_of(busy[:1]).nic_max_over_mean(rates) == pytest.approx(1.6)
    assert series_of(busy[1:]).nic_max_over_mean(rates) == pytest.approx(4.0)
    assert series_of(busy[2:]).nic_max_over_mean(rates) == 1.0
    assert Series().nic_max_over_mean(rates) == 1.0


@given(
    st.lists(st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(0.5, 100.0),
)
def test_max_over_mean_lies_between_1_and_the_number_of_nics(
    busy: list[list[float]], rate: float
) -> None:
    found = series_of(busy).nic_max_over_mean(np.full(3, rate))
    assert 1.0 - 1e-12 <= found < 3.0
    assert found == pytest.approx(series_of(busy[::-1]).nic_max_over_mean(np.ones(3)))


def test_the_mean_of_a_column_begins_where_it_should() -> None:
    made = Series(cluster=[(float(t), 10.0 * t, 0.0, 0.0, 0.0, -t, 0.0) for t in range(1, 5)])
    assert made.mean("agents", 0.0) == pytest.approx(25.0)
    assert made.mean("agents", 3.0) == pytest.approx(35.0)
    assert made.mean("working_set_tokens", 4.0) == -4.0
    assert made.mean("agents", 5.0) == 0.0


# ---- of a run ------------------------------------------------------------------------------------

EVERY_S = 0.37


@cache
def sampled() -> Outcome:
    """Ten agents within seconds, room for a prompt or two at a node, to the end of all."""
    return execute(
        with_buffers(example(), 60_000, 60_000),
        agents=10,
        rate_aps=4.0,
        seed=5,
        sample_s=EVERY_S,
        compiled=False,
    )


def cluster(name: str) -> np.ndarray:
    return np.array(sampled().series.cluster)[:, CLUSTER.index(name)]


def node(name: str) -> np.ndarray:
    """(samples, nodes)"""
    return np.array(sampled().series.nodes)[:, :, NODE.index(name)]


def kept(name: str) -> np.ndarray:
    """A column of what the run kept, times in seconds."""
    at = RESULT_FIELDS.index(name)
    column = sampled().run.rows[:, at]
    return column / 1e9 if at >= RESULT_FIELDS.index("submitted") else column


def number_between(begin: str, end: str) -> np.ndarray:
    """Turns that had passed the one moment and not the other, at each sample."""
    times = cluster("time_s")[:, None]
    return ((kept(begin) <= times) & (times < kept(end))).sum(axis=1)


def test_samples_are_evenly_apart() -> None:
    times = cluster("time_s")
    assert len(times) > 50
    assert times == pytest.approx(EVERY_S * np.arange(1, len(times) + 1), abs=1e-8)


def test_agents_are_those_that_have_begun_and_not_ended() -> None:
    traffic = sampled().run.sim.traffic
    ends = np.zeros(len(traffic.first))
    np.maximum.at(ends, kept("agent"), kept("ended"))
    times = cluster("time_s")[:, None]
    active = (traffic.start_ns / 1e9 <= times) & (times < ends)
    assert (cluster("agents") == active.sum(axis=1)).all()
    assert cluster("agents").max() >= 5
    turns = (kept("ended")[None, :] <= times).sum(axis=1)
    assert (cluster("turns_ended") == turns).all()
    # the working set: of each active agent the prompt of the turn that it is at
    for row, time_s in enumerate(times[:, 0]):
        done = np.bincount(kept("agent")[kept("ended") <= time_s], minlength=len(ends))
        turn = traffic.first + done
        prompts = traffic.prompt[turn[active[row]]].sum()
        assert cluster("working_set_tokens")[row] == prompts


def test_the_summary_takes_the_working_set_from_the_samples() -> None:
    outcome = sampled()
    scenario = with_buffers(example(), 60_000, 60_000)
    token = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    expected = cluster("working_set_tokens").mean() * token
    assert outcome.summary.working_set_bytes == pytest.approx(expected)


def test_who_waits_is_counted_where_it_waits() -> None:
    """A request may wait for both kinds of engine, or for room on both nodes, at once."""
    for names, begin, end in (
        (("waiting_prefill", "waiting_decode"), "submitted", "placed"),
        (("waiting_buffer",), "placed", "allocated"),
    ):
        waiting = number_between(begin, end)
        assert waiting.max() > 0
        columns = [cluster(name) for name in names]
        assert (sum(columns) >= waiting).all()
        if len(names) == 2:
            assert (np.maximum(*columns) <= waiting).all()
        else:
            assert (columns[0] <= 2 * waiting).all()


def test_requests_in_hbm_are_those_that_decode() -> None:
    """... and those that are read and have no token yet are ready at a prefill engine."""
    assert (node("decoding").sum(axis=1) == number_between("admitted", "ended")).all()
    assert (node("ready").sum(axis=1) == number_between("read", "first_token")).all()
    decode = sampled().run.sim.nodes.decode.astype(bool)
    assert (node("decoding")[:, ~decode] == 0).all()
    assert (node("ready")[:, decode] == 0).all()


def test_buffers_stay_within_their_room_and_end_empty() -> None:
    used, room = node("buffer_tokens"), sampled().run.buffer_tokens
    assert (used >= 0).all()
    assert (used <= room).all()
    assert used.max() > 0.4 * room.max()
    assert sampled().run.ended
    assert (sampled().run.sim.world.buffer_free == room).all()


def test_shares_of_windows_add_up_to_what_the_nics_read() -> None:
    run = sampled().run
    busy_s = node("nic_busy").sum(axis=0) * EVERY_S
    total_s = run.sim.world.work_s[:, -1]
    assert (busy_s <= total_s * (1 + 1e-6)).all()
    tail_s = sampled().summary.end_s - cluster("time_s")[-1]
    assert (busy_s >= total_s - tail_s - 1e-6).all()
    assert (node("nic_busy") >= 0).all()
    tokens = (total_s * run.sim.nodes.read_rate).sum()
    assert tokens == pytest.approx(run.sim.traffic.hit[kept("turn")].sum())
    assert run.total(TURNS) == len(run.rows)
