"""The kernel against queueing theory: means over several long runs, with their standard error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from solvers.simulator import laws
from solvers.simulator.model import Simulation
from solvers.simulator.state import MOVE, TURNS
from tests.solvers.simulator.bare import SCALE, column, go, simulation, traffic

pytestmark = pytest.mark.slow  # compiled, so no lines to count

AGENTS = 100_000
SEEDS = range(6)
Draw = Callable[[np.random.Generator], np.ndarray]


def agrees(measure: Callable[[int], float], expected: float) -> None:
    """Assert that the mean over seeds is within 1 % of theory, or its 99 % confidence interval is."""
    values = np.array([measure(seed) for seed in SEEDS])
    student = 4.03  # 5 degrees of freedom, 99 %
    error = student * values.std(ddof=1) / np.sqrt(len(values))
    assert error < 0.1 * expected  # an interval that says something
    assert abs(values.mean() - expected) <= max(0.01 * expected, error)


def poisson(rate: float, rng: np.random.Generator) -> np.ndarray:
    return np.cumsum(rng.exponential(1.0 / rate, AGENTS))


def stay(made: Simulation, begins: str, ends: str) -> float:
    go(made)
    return float((column(made, ends) - column(made, begins)).mean())


SHAPES: dict[str, Draw] = {
    "exponential": lambda rng: rng.exponential(1.0, AGENTS),
    "deterministic": lambda rng: np.ones(AGENTS),
    "hyperexponential": lambda rng: rng.exponential(
        np.where(rng.random(AGENTS) < 0.1, 5.5, 0.5), AGENTS
    ),
}
SECOND_MOMENT = {
    "exponential": 2.0,
    "deterministic": 1.0,
    "hyperexponential": 2 * (0.1 * 5.5**2 + 0.9 * 0.5**2),
}
FIRST_COME = [
    *((load, shape) for shape in ("exponential", "deterministic") for load in (0.3, 0.6, 0.8)),
    (0.5, "hyperexponential"),
]


def pollaczek_khinchine(load: float, shape: str) -> float:
    """Mean sojourn of M/G/1 in services: M/M/1 is 1 / (1 - rho), M/D/1 waits half as long."""
    return 1 + load * SECOND_MOMENT[shape] / (2 * (1 - load))


@pytest.mark.parametrize(("load", "shape"), FIRST_COME)
def test_a_storage_nic_is_an_m_g_1_queue(load: float, shape: str) -> None:
    def measure(seed: int) -> float:
        rng = np.random.default_rng(seed)
        made = simulation(traffic(poisson(load, rng), read=SHAPES[shape](rng)), read_rate=1.0)
        return stay(made, "allocated", "read")

    agrees(measure, pollaczek_khinchine(load, shape))


@pytest.mark.parametrize(("load", "shape"), [(0.7, "exponential"), (0.7, "deterministic")])
def test_a_prefill_engine_that_batches_nothing_is_an_m_g_1_queue(load: float, shape: str) -> None:
    def measure(seed: int) -> float:
        rng = np.random.default_rng(seed)
        work = traffic(poisson(load, rng), prefill=SHAPES[shape](rng))
        return stay(simulation(work, prefilling=1.0, alone=True), "read", "first_token")

    agrees(measure, pollaczek_khinchine(load, shape))


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("load", [0.4, 0.7])
def test_a_decode_engine_is_an_m_g_1_processor_sharing_queue(shape: str, load: float) -> None:
    """Mean sojourn 1 / (1 - rho), whatever the distribution of the work."""

    def measure(seed: int) -> float:
        rng = np.random.default_rng(seed)
        made = simulation(traffic(poisson(load, rng), decode=SHAPES[shape](rng)), sharing=1.0)
        return stay(made, "admitted", "ended")

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
        return made.total(TURNS) / seconds

    lengths = [0.0, 0.0]
    expected = 0.0
    for n in range(1, customers + 1):
        times = [d * (1 + q) for d, q in zip(demands, lengths, strict=True)]
        expected = n / sum(times)
        lengths = [expected * t for t in times]
    agrees(measure, expected)


READING, PREFILL, MOVING = 1.0, 0.5, 0.25


@pytest.mark.parametrize(
    ("side", "cycle"),
    [
        (None, READING),  # stages overlap: the slowest sets the pace
        (0, READING + PREFILL),  # held until the first token
        (1, READING + PREFILL + MOVING),  # held until the KV-cache is in HBM
    ],
)
def test_a_buffer_of_one_request_serves_one_at_a_time(side: int | None, cycle: float) -> None:
    """``side``: the node (0 prefill, 1 decode) whose buffer holds a single request."""
    agents, turns = 4, 50
    work = traffic(np.zeros(agents), read=np.full(agents * turns, READING), turns=turns)
    moving = np.zeros_like(simulation(work).sim.machine.near_s)
    moving[MOVE, 1, 0] = MOVING / SCALE
    made = simulation(work, read_rate=1.0, batch_s=PREFILL, far_s=moving)
    if side is not None:
        made.sim.world.buffer_free[side] = made.buffer_tokens[side] = work.prompt.max()
    go(made)
    pace = np.diff(column(made, "ended"))
    assert pace == pytest.approx(np.full(agents * turns - 1, cycle), abs=1e-7)


def test_without_load_every_stage_takes_its_own_time() -> None:
    work = traffic(np.array([0.0]), read=np.array([2.0]), decode=np.array([3.0]))
    made = simulation(work, read_rate=1.0, sharing=1.0, batch_s=0.5)
    go(made)
    assert column(made, "read") - column(made, "allocated") == pytest.approx(2.0, abs=1e-6)
    assert column(made, "first_token") - column(made, "read") == pytest.approx(0.5, abs=1e-6)
    assert column(made, "ended") - column(made, "admitted") == pytest.approx(3.0, abs=1e-5)


def test_little_s_law_and_conservation() -> None:
    """Mean number in the system = rate x mean time; what is read is what the turns hit."""
    rng = np.random.default_rng(5)
    work = rng.exponential(1.0, AGENTS)
    made = simulation(traffic(poisson(0.7, rng), read=work), read_rate=1.0)
    end = go(made)
    laws.check(made, end)
    time_in = column(made, "ended") - column(made, "submitted")
    events = np.concatenate((column(made, "submitted"), column(made, "ended")))
    change = np.concatenate((np.ones(AGENTS), -np.ones(AGENTS)))[np.argsort(events, kind="stable")]
    inside = np.cumsum(change)[:-1] @ np.diff(np.sort(events))
    assert inside / end == pytest.approx(AGENTS / end * time_in.mean(), rel=1e-9)
    assert made.sim.world.work_s[:, -1].sum() == pytest.approx(work.sum(), rel=1e-6)
