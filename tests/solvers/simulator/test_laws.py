"""The laws hold in real runs, at any moment; and each of them notices when it is broken."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from dualpath_model import load_scenario
from solvers.scheduling import configure
from solvers.simulator import laws, state
from solvers.simulator.laws import ConservationError
from solvers.simulator.model import Simulation, prepare, traffic_of
from tests.conftest import ROOT


@cache
def scenario() -> object:
    return load_scenario(ROOT / "examples" / "ds-27b-1p1d.yaml")


def begin(policy: str = "dualpath", agents: int = 2) -> Simulation:
    found = scenario()
    settings, nodes = configure(found, policy)
    traffic = traffic_of(found.workload, np.arange(agents), np.zeros(agents))
    return prepare(found, settings, nodes, traffic, compiled=False)


def finished() -> tuple[Simulation, float]:
    run = begin()
    end_s = run.go()
    assert run.ended
    laws.check(run, end_s)
    return run, end_s


@pytest.mark.parametrize("policy", ["dualpath", "basic", "priced", "oracle"])
def test_they_hold_at_any_moment(policy: str) -> None:
    """Also in the middle of reads, batches and steps: after every 7 events."""
    run, checks = begin(policy, agents=3), 0
    while not run.ended:
        now_s = run.go(most_events=7)
        laws.check(run, now_s)
        checks += 1
    assert checks > 100


Spoil = Callable[[Simulation], None]


def at(array: np.ndarray, *place: int, by: float) -> None:
    array[place] += by


def swap(run: Simulation, first: str, second: str) -> None:
    columns = [state.RESULT_FIELDS.index(name) for name in (first, second)]
    turn = int(np.argmax(run.rows[:, columns[1]] - run.rows[:, columns[0]]))
    run.rows[turn, columns] = run.rows[turn, columns[::-1]]


def resource(run: Simulation, *, shared: bool) -> int:
    """The first resource of the decode node that its engines share, or have their own parts of."""
    return int(np.argmax((run.sim.machine.own[1] == 0) == shared))


SPOILED: dict[str, tuple[Spoil, str]] = {
    "first token before its read": (
        lambda run: swap(run, "read", "first_token"),
        "'first_token' is before 'read'",
    ),
    "ended before its second token": (
        lambda run: swap(run, "second_token", "ended"),
        "'ended' is before 'second_token'",
    ),
    "read more than ordered": (
        lambda run: at(run.sim.world.work_s, 0, -1, by=1e-3),
        "tokens were read for",
    ),
    "read less than hit": (
        lambda run: at(run.sim.world.work_s, 0, -1, by=-1e-3),
        "tokens were read for",
    ),
    "a block too many": (
        lambda run: at(run.sim.results.totals, state.WRITTEN_TOKENS, by=64),
        "tokens were stored",
    ),
    "a block too few": (
        lambda run: at(run.sim.results.totals, state.WRITTEN_TOKENS, by=-64),
        "tokens were stored",
    ),
    "more work than time": (
        lambda run: at(run.sim.world.work_s, 1, resource(run, shared=True), by=1e6),
        "a resource did more work than it had time for",
    ),
    "more work than engines had time for": (
        lambda run: at(run.sim.world.work_s, 1, resource(run, shared=False), by=1e6),
        "a resource did more work than it had time for",
    ),
    "time inside that nobody spent": (
        lambda run: at(run.sim.results.totals, state.INSIDE_NS, by=1e6),
        "turns were inside for",
    ),
    "a turn inside that is none": (
        lambda run: at(run.sim.results.totals, state.INSIDE, by=1),
        "turns were inside for",
    ),
}


@pytest.mark.parametrize("name", list(SPOILED))
def test_a_spoiled_run_is_noticed(name: str) -> None:
    spoil, words = SPOILED[name]
    run, end_s = finished()
    spoil(run)
    with pytest.raises(ConservationError, match=words):
        laws.check(run, end_s)


def test_a_nic_that_reads_longer_than_the_run_is_noticed() -> None:
    run, _ = finished()
    with pytest.raises(ConservationError, match="storage NIC 0 read for"):
        laws.check(run, 0.5 * float(run.sim.world.work_s[0, -1]))


ACCOUNTS: dict[str, Callable[[Simulation], np.ndarray]] = {
    "requests on prefill engines": lambda run: run.sim.prefill.seq,
    "requests on decode engines": lambda run: run.sim.decode.seq,
    "tokens held by prefill engines": lambda run: run.sim.prefill.held,
    "tokens held by decode engines": lambda run: run.sim.decode.held,
    "tokens to read": lambda run: run.sim.nodes.read_q,
    "requests decoding": lambda run: run.sim.world.decoding,
    "requests running": lambda run: run.sim.world.running,
    "requests ready": lambda run: run.sim.world.ready_queues.length,
    "requests waiting for a buffer": lambda run: run.sim.world.buffer_queues.length,
}


@pytest.mark.parametrize("name", list(ACCOUNTS))
def test_what_is_left_in_an_account_is_noticed(name: str) -> None:
    run, end_s = finished()
    ACCOUNTS[name](run)[0] = 1
    with pytest.raises(ConservationError, match=f"{name} at the end: 1"):
        laws.check(run, end_s)


def test_room_that_a_buffer_did_not_get_back_is_noticed() -> None:
    run, end_s = finished()
    run.sim.world.buffer_free[0] -= 1
    with pytest.raises(ConservationError, match="buffer"):
        laws.check(run, end_s)
