"""Arrivals: a Poisson process, and the same agents whatever the rate and however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from dualpath_model.errors import InputError
from dualpath_model.workload import Session, Turn, Workload, from_sessions
from solvers.simulator.arrivals import arrivals

SESSIONS = 50


def workload(start_s: np.ndarray | None = None) -> Workload:
    starts = np.zeros(SESSIONS) if start_s is None else start_s
    return from_sessions(
        [Session(f"s{i}", (Turn(100 + i, 10, 5),), float(s)) for i, s in enumerate(starts)]
    )


@pytest.mark.parametrize("rate", [0.1, 3.0])
def test_gaps_are_those_of_a_poisson_process(rate: float) -> None:
    """Exponential: mean 1 / rate, as large a deviation, and no memory, each within 4 standard errors."""
    agents = 40_000
    _, starts = arrivals(workload(), agents, rate, seed=3)
    gaps = np.diff(starts, prepend=0.0) * rate
    error = 4 / np.sqrt(agents)
    assert gaps.mean() == pytest.approx(1.0, abs=error)
    assert gaps.std() == pytest.approx(1.0, abs=np.sqrt(2) * error)  # Var of s^2 is 8 / n
    assert np.mean(gaps > 1.0) == pytest.approx(np.exp(-1), abs=error * 0.5)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0.0, abs=error)


def test_the_rate_only_scales_the_gaps() -> None:
    slow, fast = (arrivals(workload(), 120, rate, seed=1) for rate in (0.5, 8.0))
    assert (slow[0] == fast[0]).all()
    assert slow[1] == pytest.approx(16.0 * fast[1], rel=1e-12)


def test_the_first_agents_do_not_depend_on_how_many_there_are() -> None:
    few, many = (arrivals(workload(), agents, 2.0, seed=1) for agents in (70, 400))
    assert (few[0] == many[0][:70]).all()
    assert (few[1] == many[1][:70]).all()


def test_sessions_do_not_depend_on_whether_there_is_a_rate() -> None:
    assert (arrivals(workload(), 70, None, 1)[0] == arrivals(workload(), 70, 1.0, 1)[0]).all()


def test_sessions_are_used_equally_and_in_another_order() -> None:
    sessions, _ = arrivals(workload(), 3 * SESSIONS + 7, 1.0, seed=2)
    rounds = sessions[: 3 * SESSIONS].reshape(3, SESSIONS)
    for row in rounds:
        assert (np.sort(row) == np.arange(SESSIONS)).all()
    assert (rounds[0] != rounds[1]).any()
    assert len(set(sessions[3 * SESSIONS :])) == 7


def test_seeds_differ_in_sessions_and_gaps() -> None:
    one, two = (arrivals(workload(), 30, 1.0, seed) for seed in (1, 2))
    assert (one[0] != two[0]).any()
    assert (one[1] != two[1]).all()


@pytest.mark.parametrize("agents", [20, SESSIONS, 3 * SESSIONS])
def test_recorded_starts_are_kept_in_order(agents: int) -> None:
    recorded = np.random.default_rng(0).integers(0, 20, SESSIONS).astype(float)  # with ties
    sessions, starts = arrivals(workload(recorded), agents, None, seed=4)
    assert (np.diff(starts) >= 0).all()
    assert (starts == recorded[sessions]).all()
    counts = np.bincount(sessions, minlength=SESSIONS)
    assert counts.sum() == agents
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("rate", [0.0, -1.0, np.inf, np.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="it must be above 0 and finite"):
        arrivals(workload(), 5, rate, seed=0)
