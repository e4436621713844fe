"""The kernel against queueing theory: means over a long run, with the error that theory allows."""

from __future__ import annotations

import numpy as np
import pytest

from solvers.simulator import kernel
from tests.solvers.simulator.bare import column, go, simulation, traffic

AGENTS = 200_000

pytestmark = pytest.mark.slow  # compiled, so no lines to count


def poisson(rate: float, seed: int, agents: int = AGENTS) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, agents))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_storage_nic_is_an_m_m_1_queue(load: float) -> None:
    """Mean sojourn 1 / (mu - lambda)."""
    work = np.random.default_rng(1).exponential(1.0, AGENTS)
    made = simulation(traffic(poisson(load, 0), read=work), read_rate=1.0)
    go(made)
    sojourn = column(made, "read") - column(made, "placed")
    assert sojourn.mean() == pytest.approx(1 / (1 - load), rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_storage_nic_is_an_m_d_1_queue(load: float) -> None:
    """Pollaczek-Khinchine: mean wait rho / (2 (1 - rho)) services."""
    made = simulation(traffic(poisson(load, 0), read=np.ones(AGENTS)), read_rate=1.0)
    go(made)
    sojourn = column(made, "read") - column(made, "placed")
    assert sojourn.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.02)


@pytest.mark.parametrize("shape", ["exponential", "deterministic", "hyperexponential"])
@pytest.mark.parametrize("load", [0.4, 0.7])
def test_a_decode_engine_is_an_m_g_1_processor_sharing_queue(shape: str, load: float) -> None:
    """Mean sojourn 1 / (1 - rho), whatever the distribution of the work."""
    rng = np.random.default_rng(2)
    work = {
        "exponential": lambda: rng.exponential(1.0, AGENTS),
        "deterministic": lambda: np.ones(AGENTS),
        "hyperexponential": lambda: rng.exponential(
            np.where(rng.random(AGENTS) < 0.1, 5.5, 0.5), AGENTS
        ),
    }[shape]()
    work /= work.mean()
    made = simulation(traffic(poisson(load, 3), decode=work), sharing=1.0)
    go(made)
    sojourn = column(made, "ended") - column(made, "admitted")
    assert sojourn.mean() == pytest.approx(1 / (1 - load), rel=0.03)


@pytest.mark.parametrize("customers", [1, 3, 10])
def test_a_closed_network_of_two_stations(customers: int) -> None:
    """A FIFO exponential NIC and a processor-sharing engine: product form, mean value analysis."""
    rng = np.random.default_rng(4)
    turns = 60_000
    demands = (1.0, 0.7)
    read = rng.exponential(demands[0], customers * turns)
    decode = rng.exponential(demands[1], customers * turns)
    work = traffic(np.zeros(customers), read=read, decode=decode, turns=turns)
    made = simulation(work, read_rate=1.0, sharing=1.0)
    go(made, 50_000.0)
    throughput = made.results.totals[kernel.TURNS] / 50_000.0
    lengths = [0.0, 0.0]
    expected = 0.0
    for n in range(1, customers + 1):
        times = [d * (1 + q) for d, q in zip(demands, lengths, strict=True)]
        expected = n / sum(times)
        lengths = [expected * t for t in times]
    assert throughput == pytest.approx(expected, rel=0.015)


def test_without_load_every_stage_takes_its_own_time() -> None:
    work = traffic(np.array([0.0]), read=np.array([2.0]), decode=np.array([3.0]))
    made = simulation(work, read_rate=1.0, sharing=1.0, batch_s=0.5)
    go(made)
    assert column(made, "read") - column(made, "placed") == pytest.approx(2.0, abs=1e-6)
    assert column(made, "first_token") - column(made, "read") == pytest.approx(0.5, abs=1e-6)
    assert column(made, "ended") - column(made, "admitted") == pytest.approx(3.0, abs=1e-5)


def test_little_s_law_and_conservation() -> None:
    """Mean number in the system = rate x mean time; what is read is what the turns hit."""
    work = np.random.default_rng(5).exponential(1.0, AGENTS)
    arrivals = poisson(0.7, 6)
    made = simulation(traffic(arrivals, read=work), read_rate=1.0)
    end = go(made)
    time_in = column(made, "ended") - column(made, "submitted")
    events = np.concatenate((column(made, "submitted"), column(made, "ended")))
    change = np.concatenate((np.ones(AGENTS), -np.ones(AGENTS)))[np.argsort(events, kind="stable")]
    inside = np.cumsum(change)[:-1] @ np.diff(np.sort(events))
    assert inside / end == pytest.approx(AGENTS / end * time_in.mean(), rel=1e-9)
    assert made.world.work_s[:, -1].sum() == pytest.approx(work.sum(), rel=1e-6)
