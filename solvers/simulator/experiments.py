"""Experiments: a batch of agents at once, or arrivals at a rate, and what comes out of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil

from dualpath_model.errors import InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.file import SchedulerFile
from dualpath_model.scheduler.setup import node_name, transfer_costs
from dualpath_model.workload import Workload
from solvers.scheduling import configure, from_file
from solvers.simulator import laws
from solvers.simulator import state as arrays
from solvers.simulator.arrivals import arrivals
from solvers.simulator.constants import Constants, of_scenario
from solvers.simulator.model import Simulation, Switches, prepare, traffic_of, whole_ns
from solvers.simulator.series import Series
from solvers.spread import spread

_EVENTS_AT_ONCE = 1_000_000  # between two looks at the clock, half a second or so
_BYTES_PER_TURN = 8 * (
    len(arrays.RESULT_FIELDS) + 20
)  # a row, the columns and what a summary makes
_BYTES_PER_AGENT = 8 * (len(arrays.AGENT_FIELDS) + 20)

Progress = Callable[[float, float, int], None]
"""Gets the share of the run that is done, simulated seconds and ended turns."""


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
    """What a run shows. Times in seconds; spreads are over the turns that ended after the warm-up.

    ``jct_s``: first submission to the last end, nan if the run stopped before. ``ttft_s``: submission
    of a turn to its first token; its parts: ``scheduling_s`` until both engines are chosen,
    ``allocating_s`` until buffers have room, ``reading_s`` until the hits are in memory, ``prefill_s``
    until the first token.
    ``ttst_s``: first to second token, hand-off and decode start included. ``tpot_s``: mean gap of a
    turn's later tokens. ``agent_s``: an agent's own time, start to end. Over the whole run, warm-up
    included: ``snic_max_over_mean`` of the tokens that the storage NICs read,
    ``attention_max_over_mean`` of a prefill unit's engines in batches in which all have work (1 where a
    unit is one engine), ``utilisation``.
    ``working_set_bytes``: mean KV-cache that agents come back to, nan without samples. ``interrupted``:
    stopped by Ctrl-C.
    """

    policy: str
    agents: int
    rate_aps: float | None
    seed: int
    warmup_s: float
    end_s: float
    interrupted: bool
    jct_s: float
    turns: int
    turns_counted: int
    agents_ended: int
    events: int
    turns_per_s_simulated: float
    wall_s: float
    ttft_s: dict[str, float]
    ttst_s: dict[str, float]
    tpot_s: dict[str, float]
    scheduling_s: dict[str, float]
    allocating_s: dict[str, float]
    reading_s: dict[str, float]
    prefill_s: dict[str, float]
    agent_s: dict[str, float]
    snic_max_over_mean: float
    attention_max_over_mean: float
    working_set_bytes: float
    utilisation: tuple[Utilisation, ...]


@dataclass(frozen=True)
class Outcome:
    """A finished run: its summary, and everything behind it."""

    summary: Simulated
    run: Simulation
    series: Series

    def whole(self) -> Outcome:
        """Return the run if it went to its end. Raises KeyboardInterrupt if Ctrl-C cut it off."""
        if self.summary.interrupted:
            raise KeyboardInterrupt
        return self


def simulate(
    scenario: Scenario,
    policy: str | None = None,
    *,
    agents: int = 200,
    rate_aps: float | None = None,
    seed: int = 0,
    until_s: float = math.inf,
    warmup_s: float = 0.0,
    constants: Constants | None = None,
    switches: Switches | None = None,
    compiled: bool = True,
    progress: Progress | None = None,
    scheduler: SchedulerFile | None = None,
) -> Simulated:
    """Run ``agents`` sessions of the scenario's workload and sum up; see :func:`execute`."""
    return execute(
        scenario,
        policy,
        agents=agents,
        rate_aps=rate_aps,
        seed=seed,
        until_s=until_s,
        warmup_s=warmup_s,
        constants=constants,
        switches=switches,
        compiled=compiled,
        progress=progress,
        scheduler=scheduler,
    ).summary


def execute(
    scenario: Scenario,
    policy: str | None = None,
    *,
    agents: int = 200,
    rate_aps: float | None = None,
    seed: int = 0,
    until_s: float = math.inf,
    warmup_s: float = 0.0,
    sample_s: float | None = None,
    constants: Constants | None = None,
    switches: Switches | None = None,
    compiled: bool = True,
    progress: Progress | None = None,
    hopeless: Callable[[Simulation], bool] | None = None,
    scheduler: SchedulerFile | None = None,
) -> Outcome:
    """Run ``agents`` sessions of the scenario's workload, again in another order if it has fewer.

    ``rate_aps``: agents a second, Poisson; None: all start when their sessions say (at once where they
    say nothing). ``warmup_s``: turns that end before are not counted. ``sample_s``: simulated seconds
    between samples of the series (None: none). ``constants``: None takes those that profiles measured,
    and the fitted ones. ``compiled``: False runs the kernel as plain Python, hundreds of times slower
    but without the minute that compiling takes once for each policy. ``progress`` is called now and
    then; KeyboardInterrupt from it, or from Ctrl-C between two pieces, ends the run and keeps what is
    finished. ``hopeless``: asked at each sample, True stops the run.

    ``scheduler``: a scheduler file to start from; ``policy`` None is then the file's, else "dualpath".

    Raises InputError for bad numbers, InfeasibleError where the scenario cannot be served.
    """
    _check(agents, until_s, warmup_s, sample_s)
    _check_memory(scenario.workload, agents)
    sessions, starts = arrivals(scenario.workload, agents, rate_aps, seed)
    traffic = traffic_of(scenario.workload, sessions, starts)
    if scheduler is None:
        settings, nodes = configure(scenario, policy or "dualpath")
    else:
        scenario, settings, nodes = from_file(scenario, scheduler, policy)
    run = prepare(
        scenario,
        settings,
        nodes,
        traffic,
        constants=of_scenario(scenario) if constants is None else constants,
        switches=switches,
        compiled=compiled,
    )
    run.go(0.0)  # compiled now, so that wall_s is the run alone
    begun = time.perf_counter()
    series = Series()
    end_s, interrupted = _go(run, series, until_s, sample_s, progress, hopeless)
    wall_s = time.perf_counter() - begun
    laws.check(run, end_s)
    asked = (agents, rate_aps, seed, warmup_s)
    summary = _summary(scenario, run, series, asked, end_s, wall_s, interrupted)
    return Outcome(summary, run, series)


def _go(
    run: Simulation,
    series: Series,
    until_s: float,
    sample_s: float | None,
    progress: Progress | None,
    hopeless: Callable[[Simulation], bool] | None,
) -> tuple[float, bool]:
    """Run in pieces; return the simulated seconds, and whether Ctrl-C ended it."""
    turns = float((run.sim.traffic.last - run.sim.traffic.first).sum())
    until_ns, now_ns = whole_ns(until_s), 0
    every_ns = until_ns if sample_s is None else max(1, whole_ns(sample_s))
    sample_ns = every_ns
    try:
        while now_ns < until_ns and not run.ended:
            now_ns = run.go_ns(min(until_ns, sample_ns), _EVENTS_AT_ONCE)
            now_s = now_ns / arrays.SECOND
            if sample_s is not None and now_ns >= sample_ns:
                series.sample(run, now_s)
                sample_ns += every_ns
                if hopeless is not None and hopeless(run):
                    break
            if progress is not None:
                done = max(run.total(arrays.TURNS) / turns, now_ns / until_ns)
                progress(min(1.0, done), now_s, int(run.total(arrays.TURNS)))
    except KeyboardInterrupt:
        return now_ns / arrays.SECOND, True
    return now_ns / arrays.SECOND, False


def _check(agents: int, until_s: float, warmup_s: float, sample_s: float | None) -> None:
    if agents < 1:
        raise InputError(f"agents is {agents}; at least 1 is needed")
    if not until_s > 0:
        raise InputError(f"seconds is {until_s}; it must be above 0")
    if not (math.isfinite(warmup_s) and 0 <= warmup_s < until_s):
        raise InputError(f"warmup is {warmup_s} s; it must be 0 or more and end before {until_s} s")
    if sample_s is not None and not (math.isfinite(sample_s) and sample_s > 0):
        raise InputError(f"sample is {sample_s} s; it must be above 0")


def _check_memory(workload: Workload, agents: int) -> None:
    """Refuse a run whose results would not fit the memory that is free."""
    turns = int(agents * workload.turns / workload.session_count)
    needed = turns * _BYTES_PER_TURN + agents * _BYTES_PER_AGENT
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"agents is {agents}: their {turns:,} turns need about {needed / 1e9:.0f} GB of memory, and "
            f"{free / 1e9:.0f} GB are free; at most about {int(agents * free / needed)} agents fit"
        )


def _summary(
    scenario: Scenario,
    run: Simulation,
    series: Series,
    asked: tuple[int, float | None, int, float],
    end_s: float,
    wall_s: float,
    interrupted: bool,
) -> Simulated:
    agents, rate_aps, seed, warmup_s = asked
    traffic, rows = run.sim.traffic, run.rows
    all_turns = len(rows)
    last_end = float(rows[-1, -1] / 1e9) if all_turns else 0.0
    rows = rows[np.searchsorted(rows[:, -1], warmup_s * 1e9) :]
    agent, turn = rows[:, 0], rows[:, 1]
    time_of = {
        name: rows[:, arrays.RESULT_FIELDS.index(name)] / 1e9 for name in arrays.RESULT_TIMES
    }
    submitted, first, second = time_of["submitted"], time_of["first_token"], time_of["second_token"]
    ended, output = time_of["ended"], traffic.output[turn]
    last = traffic.last[agent] - 1 == turn
    nics = run.sim.world.work_s[:, -1] * run.sim.nodes.read_rate
    attention = run.total(arrays.ATTENTION_MEAN_S)
    window = max(end_s - warmup_s, 1e-9)
    token_bytes = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    return Simulated(
        policy=run.policy.name,
        agents=agents,
        rate_aps=rate_aps,
        seed=seed,
        warmup_s=warmup_s,
        end_s=end_s,
        interrupted=interrupted,
        jct_s=last_end - float(traffic.start_ns.min() / 1e9) if run.ended else math.nan,
        turns=all_turns,
        turns_counted=len(rows),
        agents_ended=int(run.total(arrays.AGENTS_ENDED)),
        events=int(run.total(arrays.EVENTS)),
        turns_per_s_simulated=len(rows) / window,
        wall_s=wall_s,
        ttft_s=spread(first - submitted),
        ttst_s=spread((second - first)[output > 1]),
        tpot_s=spread(((ended - second)[output > 2]) / (output[output > 2] - 2)),
        scheduling_s=spread(time_of["placed"] - submitted),
        allocating_s=spread(time_of["allocated"] - time_of["placed"]),
        reading_s=spread(time_of["read"] - time_of["allocated"]),
        prefill_s=spread(first - time_of["read"]),
        agent_s=spread(ended[last] - traffic.start_ns[agent[last]] / 1e9),
        snic_max_over_mean=float(nics.max() / nics.mean()) if nics.any() else 1.0,
        attention_max_over_mean=(
            run.total(arrays.ATTENTION_MAX_S) / attention if attention > 0 else 1.0
        ),
        working_set_bytes=(
            series.mean("working_set_tokens", warmup_s) * token_bytes
            if series.cluster
            else math.nan
        ),
        utilisation=_utilisation(scenario, run, end_s),
    )


def _utilisation(scenario: Scenario, run: Simulation, end_s: float) -> tuple[Utilisation, ...]:
    """Return the busy share of each resource: work that it has been given, over the time."""
    found = []
    for pool in (Pool.PREFILL, Pool.DECODE):
        names: dict[object, tuple[str, ...]] = {}
        for position, node in enumerate(scenario.cluster.nodes(pool)):
            if node not in names:
                names[node] = transfer_costs(scenario, pool, node).resources
            number = run.state.node[node_name(pool, position)]
            work = run.sim.world.work_s[number] / max(end_s, 1e-9)
            for name, busy in zip(names[node], work, strict=False):
                resource, _, direction = name.partition(" ")
                found.append(Utilisation(pool.value, position, resource, direction, float(busy)))
            found.append(Utilisation(pool.value, position, "snic", "in", float(work[-1])))
    return tuple(found)
