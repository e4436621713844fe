"""The highest rate of agents that meets the SLO: bisection, once for each seed, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from dualpath_model.errors import InfeasibleError, InputError, unknown_name
from dualpath_model.scenario import Scenario
from solvers import planner
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import Simulated, execute
from solvers.simulator.model import Switches
from solvers.simulator.probe import SAMPLE_S, agents_for, latencies, overloaded

Statistic = Literal["mean", "p50", "p90", "p99"]
_LEAST_SHARE = 1e-3  # of the LP's rate: below it no rate is looked for
_NEIGHBOUR = 1.06  # the rates of two seeds differ by less, mostly


@dataclass(frozen=True)
class Probe:
    """One run of the search. ``ttft_s`` and ``tpot_s`` are inf where it was stopped as overloaded;
    ``agent_s``: mean life of the agents that ended, nan of none.
    """

    seed: int
    rate_aps: float
    ttft_s: float
    tpot_s: float
    holds: bool
    agent_s: float = math.nan


@dataclass(frozen=True)
class Capacity:
    """The highest rate within the SLO: the mean over the seeds and its 95 % interval.

    ``rates_aps``: one for each seed, for paired comparisons between policies (the seeds give the same
    agents at the same relative times). ``limit``: what fails first above it, "ttft" or "tpot".
    """

    policy: str
    statistic: str
    slo_ttft_s: float
    slo_tpot_s: float
    rate_aps: float
    low_aps: float
    high_aps: float
    turns_per_s: float
    limit: str
    rates_aps: tuple[float, ...]
    warmup_s: float
    measure_s: float
    probes: tuple[Probe, ...]
    interrupted: bool = False

    @property
    def in_transit(self) -> bool:
        """Whether the warm-up was shorter than an agent lives where the SLO still held: the cluster was
        filling up, and the rate is flattered.
        """
        lives = [p.agent_s for p in self.probes if p.holds and math.isfinite(p.agent_s)]
        return not lives or self.warmup_s < max(lives)


def interval(values: list[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of independent values and half the width of its confidence interval (Student).

    Of one value the half width is nan: one run says nothing of the spread.
    """
    from scipy.stats import t

    column = np.asarray(values, dtype=float)
    if len(column) < 2:
        return float(column.mean()), math.nan
    error = float(column.std(ddof=1) / math.sqrt(len(column)))
    return float(column.mean()), error * float(t.ppf(0.5 + confidence / 2, len(column) - 1))


def capacity(
    scenario: Scenario,
    policy: str = "dualpath",
    *,
    statistic: Statistic = "mean",
    replications: int = 3,
    first_seed: int = 0,
    warmup_s: float = 3600.0,
    measure_s: float = 3600.0,
    tolerance: float = 0.01,
    constants: Constants | None = None,
    switches: Switches | None = None,
    compiled: bool = True,
    progress: Callable[[float, int], None] | None = None,
) -> Capacity:
    """Return the highest Poisson rate of agents whose TTFT and TPOT meet the scenario's SLO.

    ``statistic`` of the turns that end in the ``measure_s`` seconds after ``warmup_s``: agents that
    live long keep arriving into a system that fills for about three of their lifetimes, so a short
    warm-up flatters. ``tolerance``: relative width at which a bisection stops. ``progress`` gets the
    share that is done and the runs made; KeyboardInterrupt from it ends the search and keeps the seeds
    that are finished.

    Raises InputError for bad numbers, InfeasibleError where no rate meets the SLO.
    """
    if statistic not in get_args(Statistic):
        raise unknown_name("statistic", statistic, get_args(Statistic))
    if not 1 <= replications <= 1000:
        raise InputError(f"replications is {replications}; it must be 1 to 1000")
    if not 1e-4 <= tolerance <= 0.5:
        raise InputError(f"tolerance is {tolerance}; it must be 0.0001 to 0.5")
    for name, value in (("warmup", warmup_s), ("measure", measure_s)):
        if not (math.isfinite(value) and value >= (0 if name == "warmup" else 1)):
            raise InputError(f"{name} is {value} s; give seconds, at least {int(name != 'warmup')}")
    turns = scenario.workload.turns / scenario.workload.session_count
    slo = scenario.slo
    probes: list[Probe] = []
    found: list[float] = []
    likely = replications * (3 + math.ceil(math.log2(0.1 / tolerance))) + 6  # probes, for progress

    def still_here(done: float, now_s: float, turns_ended: int) -> None:
        if progress is not None:  # may raise KeyboardInterrupt, in the middle of a run too
            progress(min(1.0, len(probes) / likely), len(probes))

    def probe(seed: int, rate: float) -> bool:
        horizon = warmup_s + measure_s
        outcome = execute(
            scenario,
            policy,
            agents=agents_for(rate, horizon),
            rate_aps=rate,
            seed=seed,
            until_s=horizon,
            warmup_s=warmup_s,
            sample_s=SAMPLE_S,
            constants=constants,
            switches=switches,
            compiled=compiled,
            hopeless=overloaded(slo.ttft_s, rate * turns),
            progress=still_here,
        )
        summary = outcome.whole().summary
        judged = _judge(summary, seed, rate, horizon, statistic, slo.ttft_s, slo.tpot_s)
        probes.append(judged)
        still_here(1.0, horizon, 0)
        return judged.holds

    interrupted = False
    near = _bound_aps(scenario)
    step = 2.0
    try:
        for seed in range(first_seed, first_seed + replications):
            near = _bisect(partial(probe, seed), near, step, tolerance)
            found.append(near)
            step = _NEIGHBOUR
            if near <= 0.0:
                break
    except KeyboardInterrupt:
        interrupted = True
        if not found:
            raise
    if min(found) <= 0.0:
        known = [p for p in probes if math.isfinite(p.ttft_s)]
        if not known:
            raise InfeasibleError(
                "no rate meets the SLO: at every rate tried the cluster was overloaded or no turn ended "
                "in the time measured; measure longer, or change the cluster"
            )
        lowest = min(known, key=lambda p: p.rate_aps)
        raise InfeasibleError(
            f"no rate meets the SLO: at {lowest.rate_aps:.3g} agents/s the {statistic} TTFT is "
            f"{lowest.ttft_s:.3g} s (allowed {slo.ttft_s:g}) and the {statistic} TPOT "
            f"{lowest.tpot_s * 1e3:.3g} ms (allowed {slo.tpot_s * 1e3:g}); relax the SLO or change the "
            f"cluster"
        )
    rate, half = interval(found)
    return Capacity(
        policy=policy,
        statistic=statistic,
        slo_ttft_s=slo.ttft_s,
        slo_tpot_s=slo.tpot_s,
        rate_aps=rate,
        low_aps=float(np.maximum(0.0, rate - half)),  # nan stays nan
        high_aps=rate + half,
        turns_per_s=rate * turns,
        limit=_limit(probes, slo.ttft_s),
        rates_aps=tuple(found),
        warmup_s=warmup_s,
        measure_s=measure_s,
        probes=tuple(probes),
        interrupted=interrupted,
    )


def _bound_aps(scenario: Scenario) -> float:
    """Return agents/s that the LP gives, a rate to start from."""
    plan = planner.plan(scenario)
    return (
        plan.throughput_requests_per_s * scenario.workload.session_count / scenario.workload.turns
    )


def _bisect(holds: Callable[[float], bool], near: float, step: float, tolerance: float) -> float:
    """Return the highest rate that holds, to ``tolerance``; 0 if none from ``near`` / 1,000 on does."""
    ends = bracket(holds, near, step, tolerance, _LEAST_SHARE)
    return 0.0 if ends is None else (ends[0] + ends[1]) / 2


def bracket(
    holds: Callable[[float], bool], near: float, step: float, tolerance: float, least: float
) -> tuple[float, float] | None:
    """Return a load that holds and one that does not, ``tolerance`` of the latter apart.

    The bracket grows from ``near`` by factors of ``step`` until one end holds and the other does not;
    None if no load from ``least`` x ``near`` on holds.
    """
    low = high = near
    if holds(near):
        while holds(high := low * step):
            low = high
    else:
        while not holds(low := high / step):
            high = low
            if high < least * near:
                return None
    while high - low > tolerance * high:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low, high


def _judge(
    summary: Simulated,
    seed: int,
    rate: float,
    horizon: float,
    statistic: str,
    ttft_slo_s: float,
    tpot_slo_s: float,
) -> Probe:
    """Hold a run against the SLO; one in which no turn ends after the warm-up says nothing, so no."""
    ttft, tpot = latencies(summary, horizon, statistic)
    holds = ttft <= ttft_slo_s and tpot <= tpot_slo_s
    return Probe(seed, rate, ttft, tpot, holds, summary.agent_s.get("mean", math.nan))


def _limit(probes: list[Probe], ttft_slo_s: float) -> str:
    """Say what fails at the lowest rate that fails."""
    failed = [p for p in probes if not p.holds]
    lowest = min(failed, key=lambda p: p.rate_aps)
    return "ttft" if lowest.ttft_s > ttft_slo_s else "tpot"
