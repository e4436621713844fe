"""The kernel against queueing theory: means over several long runs, with their standard error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from solvers.simulator import kernel
from tests.solvers.simulator.bare import column, go, simulation, traffic

pytestmark = pytest.mark.slow  # compiled, so no lines to count

AGENTS = 100_000
SEEDS = range(6)


def agrees(measure: Callable[[int], float], expected: float) -> None:
    """Assert that the mean over seeds is within 1 % of theory, or its 99 % confidence interval is."""
    values = np.array([measure(seed) for seed in SEEDS])
    student = 4.03  # 5 degrees of freedom, 99 %
    error = student * values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.1 * expected  # an interval that says something
    assert abs(values.mean() - expected) <= max(0.01 * expected, error)


def poisson(rate: float, rng: np.random.Generator) -> np.ndarray:
    return np.cumsum(rng.exponential(1.0 / rate, AGENTS))


def reading(
    load: float, draw: Callable[[np.random.Generator], np.ndarray]
) -> Callable[[int], float]:
    """Mean sojourn in a storage NIC that does one unit of work a second."""

    def measure(seed: int) -> float:
        rng = np.random.default_rng(seed)
        made = simulation(traffic(poisson(load, rng), read=draw(rng)), read_rate=1.0)
        go(made)
        return float((column(made, "read") - column(made, "placed")).mean())

    return measure


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_storage_nic_is_an_m_m_1_queue(load: float) -> None:
    """Mean sojourn 1 / (mu - lambda)."""
    agrees(reading(load, lambda rng: rng.exponential(1.0, AGENTS)), 1 / (1 - load))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_storage_nic_is_an_m_d_1_queue(load: float) -> None:
    """Pollaczek-Khinchine: mean wait rho / (2 (1 - rho)) services."""
    agrees(reading(load, lambda rng: np.ones(AGENTS)), 1 + load / (2 * (1 - load)))


SHAPES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "exponential": lambda rng: rng.exponential(1.0, AGENTS),
    "deterministic": lambda rng: np.ones(AGENTS),
    "hyperexponential": lambda rng: rng.exponential(
        np.where(rng.random(AGENTS) < 0.1, 5.5, 0.5), AGENTS
    ),
}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("load", [0.4, 0.7])
def test_a_decode_engine_is_an_m_g_1_processor_sharing_queue(shape: str, load: float) -> None:
    """Mean sojourn 1 / (1 - rho), whatever the distribution of the work."""

    def measure(seed: int) -> float:
        rng = np.random.default_rng(seed)
        made = simulation(traffic(poisson(load, rng), decode=SHAPES[shape](rng)), sharing=1.0)
        go(made)
        return float((column(made, "ended") - column(made, "admitted")).mean())

    agrees(measure, 1 / (1 - load))


@pytest.mark.parametrize("customers", [1, 3, 10])
def test_a_closed_network_of_two_stations(customers: int) -> None:
    """A FIFO exponential NIC and a processor-sharing engine: product form, mean value analysis."""
    demands, seconds = (1.0, 0.7), 20_000.0
    turns = 25_000

    def measure(seed: int) -> float:
        rng = np.random.default_rng(seed)
        read, decode = (rng.exponential(demand, customers * turns) for demand in demands)
        work = traffic(np.zeros(customers), read=read, decode=decode, turns=turns)
        made = simulation(work, read_rate=1.0, sharing=1.0)
        go(made, seconds)
        return float(made.results.totals[kernel.TURNS]) / seconds

    lengths = [0.0, 0.0]
    expected = 0.0
    for n in range(1, customers + 1):
        times = [d * (1 + q) for d, q in zip(demands, lengths, strict=True)]
        expected = n / sum(times)
        lengths = [expected * t for t in times]
    agrees(measure, expected)


def test_without_load_every_stage_takes_its_own_time() -> None:
    work = traffic(np.array([0.0]), read=np.array([2.0]), decode=np.array([3.0]))
    made = simulation(work, read_rate=1.0, sharing=1.0, batch_s=0.5)
    go(made)
    assert column(made, "read") - column(made, "placed") == pytest.approx(2.0, abs=1e-6)
    assert column(made, "first_token") - column(made, "read") == pytest.approx(0.5, abs=1e-6)
    assert column(made, "ended") - column(made, "admitted") == pytest.approx(3.0, abs=1e-5)


def test_little_s_law_and_conservation() -> None:
    """Mean number in the system = rate x mean time; what is read is what the turns hit."""
    rng = np.random.default_rng(5)
    work = rng.exponential(1.0, AGENTS)
    made = simulation(traffic(poisson(0.7, rng), read=work), read_rate=1.0)
    end = go(made)
    time_in = column(made, "ended") - column(made, "submitted")
    events = np.concatenate((column(made, "submitted"), column(made, "ended")))
    change = np.concatenate((np.ones(AGENTS), -np.ones(AGENTS)))[np.argsort(events, kind="stable")]
    inside = np.cumsum(change)[:-1] @ np.diff(np.sort(events))
    assert inside / end == pytest.approx(AGENTS / end * time_in.mean(), rel=1e-9)
    assert made.world.work_s[:, -1].sum() == pytest.approx(work.sum(), rel=1e-6)
