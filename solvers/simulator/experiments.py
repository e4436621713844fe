"""Experiments: a batch of agents at once, or arrivals at a rate, and what comes out of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.setup import node_name, transfer_costs
from solvers.scheduling import configure
from solvers.simulator import kernel
from solvers.simulator.model import Constants, Simulation, Switches, prepare, traffic_of
from solvers.spread import spread

_EVENTS_AT_ONCE = 2_000_000  # between two looks at the clock, a second or so


class ConservationError(AssertionError):
    """A run broke a law that holds for every run: a bug of the simulator, never of the input."""


@dataclass(frozen=True)
class Utilisation:
    """How busy one resource of one node was, of the simulated time."""

    pool: str
    node: int
    resource: str
    direction: str
    busy: float


@dataclass(frozen=True)
class Simulated:
    """What a run shows. Spreads are over the turns that ended; times in seconds.

    ``jct_s``: first submission to the end of the last agent that ended. ``ttft_s``: submission of a turn
    to its first token. ``ttst_s``: first to second token. ``tpot_s``: mean gap of a turn's later tokens.
    ``waiting_s``, ``reading_s``, ``prefill_s``: the parts of TTFT until both engines are chosen, until
    the hits are in memory, and until the first token. ``snic_max_over_mean``: bytes read by the NICs.
    """

    policy: str
    agents: int
    rate_aps: float | None
    seed: int
    jct_s: float
    turns: int
    agents_ended: int
    events: int
    turns_per_s_simulated: float
    wall_s: float
    ttft_s: dict[str, float]
    ttst_s: dict[str, float]
    tpot_s: dict[str, float]
    waiting_s: dict[str, float]
    reading_s: dict[str, float]
    prefill_s: dict[str, float]
    agent_s: dict[str, float]
    snic_max_over_mean: float
    attention_max_over_mean: float
    utilisation: tuple[Utilisation, ...]


def simulate(
    scenario: Scenario,
    policy: str = "dualpath",
    *,
    agents: int = 200,
    rate_aps: float | None = None,
    seed: int = 0,
    until_s: float = np.inf,
    constants: Constants | None = None,
    switches: Switches | None = None,
    compiled: bool = True,
    progress: Callable[[float, int], None] | None = None,
) -> Simulated:
    """Run ``agents`` sessions of the scenario's workload, again from the first if it has fewer.

    ``rate_aps``: agents a second, Poisson; None: all start when their sessions say (at once where they
    say nothing). ``compiled``: False runs the kernel as plain Python, hundreds of times slower but
    without the 40 s that compiling takes once for each policy. ``progress`` gets simulated seconds and
    ended turns now and then.

    Raises InputError for bad numbers, InfeasibleError where the scenario cannot be served.
    """
    if agents < 1:
        raise InputError(f"agents is {agents}; at least 1 is needed")
    if rate_aps is not None and not (np.isfinite(rate_aps) and rate_aps > 0):
        raise InputError(f"rate is {rate_aps} agents a second; it must be above 0 and finite")
    settings, nodes = configure(scenario, policy)
    traffic = traffic_of(scenario.workload, agents, _starts(scenario, agents, rate_aps, seed))
    run = prepare(
        scenario,
        settings,
        nodes,
        traffic,
        constants=constants,
        switches=switches,
        compiled=compiled,
    )
    run.go(0.0)  # compiled now, so that wall_s is the run alone
    begun = time.perf_counter()
    ended = 0.0
    while ended < until_s and run.results.totals[kernel.AGENTS_ENDED] < agents:
        ended = run.go(until_s, _EVENTS_AT_ONCE)
        if progress is not None:
            progress(ended, int(run.results.totals[kernel.TURNS]))
    wall_s = time.perf_counter() - begun
    check(run, traffic)
    return _summary(scenario, run, agents, rate_aps, seed, ended, wall_s)


def _starts(scenario: Scenario, agents: int, rate_aps: float | None, seed: int) -> np.ndarray:
    if rate_aps is not None:
        return np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_aps, agents))
    workload = scenario.workload
    return workload.start_s[np.arange(agents) % workload.session_count]


def check(run: Simulation, traffic: kernel.Traffic) -> None:
    """Hold a run to the laws of every run. Raises ConservationError.

    What the scheduler's accounts still hold is what is still in flight; NICs have read what the ended
    turns hit and no more than all that was ordered; times of a turn are in order.
    """
    rows = run.results.rows[: int(run.results.totals[kernel.TURNS])]
    times = rows[:, 2:]
    if not (np.diff(times, axis=1) >= 0).all():
        raise ConservationError("a turn's times are out of order")
    state = run.state
    rates = state.nodes.read_rate
    read = float((run.world.work_s[:, -1] * rates).sum())
    ended = float(traffic.hit[rows[:, 1]].sum())
    given = float(state.nodes.given.sum())
    if run.policy.name != "oracle" and not ended * (1 - 1e-9) <= read <= given * (1 + 1e-9) + 1:
        raise ConservationError(
            f"{read} tokens were read for {ended} of ended turns, {given} ordered"
        )
    if int(run.results.totals[kernel.AGENTS_ENDED]) == len(traffic.first):
        left = int(state.prefill.seq.sum() + state.decode.seq.sum() + state.decode.held.sum())
        if left or int(state.nodes.read_q.sum()):
            raise ConservationError("the scheduler's accounts are not empty at the end")


def _summary(
    scenario: Scenario,
    run: Simulation,
    agents: int,
    rate_aps: float | None,
    seed: int,
    ended_s: float,
    wall_s: float,
) -> Simulated:
    totals = run.results.totals
    rows = run.results.rows[: int(totals[kernel.TURNS])]
    agent, turn = rows[:, 0], rows[:, 1]
    submitted, placed, read, first, admitted, ended = (rows[:, k] / 1e9 for k in range(2, 8))
    later = np.maximum(1, run.traffic.output[turn] - 1)
    gap = (ended - admitted) / later
    last = run.traffic.last[agent] - 1 == turn
    agent_s = ended[last] - run.traffic.start_ns[agent[last]] / 1e9
    nics = run.world.work_s[:, -1] * run.state.nodes.read_rate
    attention = totals[kernel.ATTENTION_MEAN_S]
    return Simulated(
        policy=run.policy.name,
        agents=agents,
        rate_aps=rate_aps,
        seed=seed,
        jct_s=float(totals[kernel.END_NS] / 1e9 - run.traffic.start_ns.min() / 1e9),
        turns=len(rows),
        agents_ended=int(totals[kernel.AGENTS_ENDED]),
        events=int(totals[kernel.EVENTS]),
        turns_per_s_simulated=len(rows) / ended_s if ended_s > 0 else 0.0,
        wall_s=wall_s,
        ttft_s=spread(first - submitted),
        ttst_s=spread(admitted - first + gap),
        tpot_s=spread(gap),
        waiting_s=spread(placed - submitted),
        reading_s=spread(read - placed),
        prefill_s=spread(first - read),
        agent_s=spread(agent_s),
        snic_max_over_mean=float(nics.max() / nics.mean()) if nics.any() else 1.0,
        attention_max_over_mean=(
            float(totals[kernel.ATTENTION_MAX_S] / attention) if attention > 0 else 1.0
        ),
        utilisation=_utilisation(scenario, run, ended_s),
    )


def _utilisation(scenario: Scenario, run: Simulation, ended_s: float) -> tuple[Utilisation, ...]:
    found = []
    for pool in (Pool.PREFILL, Pool.DECODE):
        for position, node in enumerate(scenario.cluster.nodes(pool)):
            number = run.state.node[node_name(pool, position)]
            work = run.world.work_s[number] / max(ended_s, 1e-9)
            names = transfer_costs(scenario, pool, node).resources
            for name, busy in zip(names, work, strict=False):
                resource, _, direction = name.partition(" ")
                found.append(Utilisation(pool.value, position, resource, direction, float(busy)))
            found.append(Utilisation(pool.value, position, "snic", "in", float(work[-1])))
    return tuple(found)
