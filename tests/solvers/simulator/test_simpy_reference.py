"""The kernel against the same system written as SimPy processes: every time of every turn.

Only rates, the policies' functions and the order of simultaneous events are shared, so the two agree
to the nanosecond up to the order in which floats are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.simpy_reference import Model
from dualpath_model import load_scenario
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.policies import POLICIES
from solvers.scheduling import configure
from solvers.simulator.arrivals import arrivals
from solvers.simulator.constants import Constants
from solvers.simulator.model import Simulation, Switches, prepare, traffic_of
from solvers.simulator.state import RESULT_FIELDS, RESULT_TIMES, Traffic
from tests.conftest import ROOT

DEEPSEEK = "deepseek-660b-2p4d"
ROOFLINE = Constants()
FIRST_TIME = RESULT_FIELDS.index("submitted")
SAME_NS = 1_000

Rows = np.ndarray
Change = Callable[[Simulation], None]


@cache
def example(name: str) -> Scenario:
    """A shipped scenario, without the limits of storage and fabric that are not modelled."""
    made = load_scenario(ROOT / "examples" / f"{name}.yaml")
    free = replace(
        made.cluster,
        storage_read_bytes_per_s=None,
        storage_write_bytes_per_s=None,
        fabric_bytes_per_s=None,
    )
    return made.on(free)


def sessions(
    name: str, agents: int, rate_aps: float | None = None, turns: int | None = None
) -> Traffic:
    """The first ``turns`` turns of each agent's session (None: all)."""
    workload = example(name).workload
    traffic = traffic_of(workload, *arrivals(workload, agents, rate_aps, seed=1))
    if turns is None:
        return traffic
    return traffic._replace(last=np.minimum(traffic.last, traffic.first + turns))


def by_both(
    name: str,
    traffic: Traffic,
    policy: str = "dualpath",
    *,
    until_s: float = math.inf,
    change: Change | None = None,
    constants: Constants = ROOFLINE,
    switches: Switches | None = None,
) -> tuple[Rows, Rows]:
    """Return the turns that end, in the order of agents and turns: the kernel's and SimPy's."""
    settings, nodes = configure(example(name), policy)

    def begin() -> Simulation:
        run = prepare(
            example(name),
            settings,
            nodes,
            traffic,
            constants=constants,
            switches=switches,
            compiled=False,
        )
        if change is not None:
            change(run)
        return run

    run = begin()
    run.go(until_s)
    found = run.rows, Model(begin()).run(until_s)
    if until_s == math.inf:
        assert len(run.rows) == (traffic.last - traffic.first).sum()
    return tuple(rows[np.lexsort((rows[:, 1], rows[:, 0]))] for rows in found)


def times(rows: Rows, name: str) -> np.ndarray:
    return rows[:, RESULT_FIELDS.index(name)] / 1e9


def agree(kernel: Rows, reference: Rows) -> None:
    assert len(kernel) == len(reference) > 20
    assert (kernel[:, :FIRST_TIME] == reference[:, :FIRST_TIME]).all()
    apart_ns = np.abs(kernel[:, FIRST_TIME:] - reference[:, FIRST_TIME:]).max(axis=0)
    assert (apart_ns <= SAME_NS).all(), dict(zip(RESULT_TIMES, apart_ns.tolist(), strict=True))


@pytest.mark.parametrize("rate_aps", [None, 2.0])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy(policy: str, rate_aps: float | None) -> None:
    """All at once, so that many wait, and as a Poisson stream."""
    agree(*by_both(DEEPSEEK, sessions(DEEPSEEK, 12, rate_aps), policy, until_s=20.0))


@pytest.mark.parametrize("policy", ["dualpath", "basic"])
def test_loads_that_come_before_computing(policy: str) -> None:
    switches = Switches(layerwise=False, token_limit=4096, batch_requests=2)
    traffic = sessions(DEEPSEEK, 12)
    agree(*by_both(DEEPSEEK, traffic, policy, until_s=20.0, switches=switches))


@pytest.mark.parametrize("name", ["ds-27b-1p1d", "qwen-32b-1p2d", "heterogeneous"])
def test_other_clusters_and_llms(name: str) -> None:
    """Dense ones, whose engines are units of their own, and nodes that differ."""
    agree(*by_both(name, sessions(name, 10), until_s=30.0))


def test_to_the_end_of_every_session() -> None:
    kernel, reference = by_both(DEEPSEEK, sessions(DEEPSEEK, 10, turns=5))
    agree(kernel, reference)
    assert np.ptp(times(kernel, "ended")) > 1.0


def test_agents_that_think() -> None:
    """Half of the turns come at once, others after a while, some of them at the same time."""
    traffic = sessions(DEEPSEEK, 10)
    think_ns = np.random.default_rng(0).choice(
        [0, 10**9, 2 * 10**9], len(traffic.prompt), p=[0.5, 0.3, 0.2]
    )
    agree(*by_both(DEEPSEEK, traffic._replace(think_ns=think_ns), until_s=30.0))


def test_what_an_engine_adds_to_the_roofline() -> None:
    constants = Constants(batch_layer_s=0.01, step_layer_s=3e-4, request_layer_s=3e-5)
    agree(*by_both(DEEPSEEK, sessions(DEEPSEEK, 12), until_s=40.0, constants=constants))


@pytest.mark.parametrize("policy", ["dualpath", "split"])
def test_requests_that_wait_for_room_on_decode_nodes(policy: str) -> None:
    def little_room(run: Simulation) -> None:
        most = run.sim.traffic.prompt.max()
        run.sim.world.buffer_free[run.sim.nodes.decode == 1] = most

    traffic = sessions(DEEPSEEK, 30)
    kernel, reference = by_both(DEEPSEEK, traffic, policy, until_s=30.0, change=little_room)
    agree(kernel, reference)
    assert (times(kernel, "allocated") - times(kernel, "placed")).max() > 0.1


@pytest.mark.parametrize(
    ("policy", "nodes", "agents"),
    [("basic", "prefill", 40), ("basic", "all", 40), ("dualpath", "prefill", 80)],
)
def test_requests_that_wait_for_room_on_prefill_nodes(policy: str, nodes: str, agents: int) -> None:
    """Under `basic` each turn needs room there, as each has a hit; under `dualpath` some need none, and
    do not wait behind those who do."""

    def little_room(run: Simulation) -> None:
        most, chosen = run.sim.traffic.prompt.max(), run.sim.nodes.decode == 0
        run.sim.world.buffer_free[chosen if nodes == "prefill" else slice(None)] = most

    traffic = sessions(DEEPSEEK, agents)
    traffic = traffic._replace(prompt=np.maximum(traffic.prompt, 2), hit=np.maximum(traffic.hit, 1))
    kernel, reference = by_both(DEEPSEEK, traffic, policy, until_s=30.0, change=little_room)
    agree(kernel, reference)
    assert (times(kernel, "allocated") - times(kernel, "placed")).max() > 0.1


def test_it_would_notice() -> None:
    """One rate that differs by 0.1 % shows: the comparison is not between a thing and itself."""
    scenario = example(DEEPSEEK)
    settings, nodes = configure(scenario)
    ended = []
    for factor in (1.0, 1.001):
        run = prepare(
            scenario,
            settings,
            nodes,
            sessions(DEEPSEEK, 6),
            constants=ROOFLINE,
            compiled=False,
        )
        run.sim.machine.kv_s[:] *= factor
        ended.append(Model(run).run(10.0)[:20, -1])
    assert np.abs(ended[0] - ended[1]).max() > SAME_NS
