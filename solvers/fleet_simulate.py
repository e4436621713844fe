"""A fleet in the simulator: does it meet the SLO at the required rate, and how far does it reach?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.loads import Slo
from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.workload import Workload
from solvers.fleet_parts import Loss
from solvers.fleet_question import Case, Counts, Question
from solvers.fleet_serve import after

_MOST_SESSIONS = 20_000
_MOST_TURNS = 2e7
"""Of one run: ten minutes of computing and some gigabytes."""
_ENOUGH_TURNS = 1e5
_LEAST_MEASURED_S = 300.0
_LIVES = 1.5
"""Warm-up in lives of a mean session: long ones, which come up more slowly, count in the mean."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Run:
    """How long, and how often, to simulate.

    None: where agents have several turns, whose cluster fills up slowly, a warm-up of one and a half
    times as long as a mean session lives at the SLO, at least an hour, and as long again, or until a
    hundred thousand turns have ended; five and ten minutes where every request stands alone.
    """

    warmup_s: float | None = None
    measure_s: float | None = None
    replications: int = 1
    tolerance: float = 0.05
    seed: int = 0

    def seconds(self, scenario: Scenario, requests_per_s: float) -> tuple[float, float]:
        """Return warm-up and measured seconds for a scenario's one workload at a rate."""
        workload = scenario.workload
        usual = (300.0, 600.0)
        if workload.turns > workload.session_count:
            long_s = _LIVES * longest_life_s(workload, scenario.slo)
            enough_s = max(_LEAST_MEASURED_S, math.ceil(_ENOUGH_TURNS / requests_per_s))
            usual = (max(3600.0, long_s), min(max(1800.0, long_s), enough_s))
        warmup = usual[0] if self.warmup_s is None else self.warmup_s
        return warmup, usual[1] if self.measure_s is None else self.measure_s


def longest_life_s(workload: Workload, slo: Slo) -> float:
    """Return how long a mean session lives where TTFT and TPOT just meet the SLO, seconds."""
    turns_s = workload.turns * slo.ttft_s + float(workload.output_tokens.sum()) * slo.tpot_s
    return (turns_s + float(workload.think_time_s.sum())) / workload.session_count


@dataclass(frozen=True)
class Tried:
    """One simulation at the required rate. ``loss``: nodes taken away, in words ("": none)."""

    case: str
    loss: str
    ttft_s: float
    tpot_s: float
    holds: bool


@dataclass(frozen=True)
class Reach:
    """The highest rate within the SLO, by simulation, beside what the LP promises; requests/s of all
    classes. ``low`` and ``high``: 95 % interval, nan of one seed. ``filling``: the warm-up was shorter
    than an agent lives, so the rate is flattered. ``limit``: what fails first above it, "ttft" or
    "tpot". ``pool``: whose margin it is, with nodes enough in the other; "": of the whole fleet.
    """

    case: str
    loss: str
    promised: float
    simulated: float
    low: float
    high: float
    filling: bool
    limit: str = ""
    pool: str = ""

    @property
    def share(self) -> float:
        """The share of the promise that is within the SLO."""
        return self.simulated / self.promised


def mixed(scenario: Scenario, rates: np.ndarray) -> tuple[Scenario, float]:
    """Return the scenario with its classes in one workload, and the sessions/s of these rates.

    The simulator runs one kind of traffic: of each class as many sessions are taken as its rate asks
    for, some several times.
    """
    classes = [(c, float(r)) for c, r in zip(scenario.classes, rates, strict=True) if r > 0]
    per_s = [r * c.workload.session_count / c.workload.turns for c, r in classes]
    total = sum(per_s)
    if len(classes) == 1:
        workload = classes[0][0].workload
    else:
        shares = [rate / total for rate in per_s]
        whole = max(c.workload.session_count / s for (c, _), s in zip(classes, shares, strict=True))
        size = min(float(_MOST_SESSIONS), whole)
        workload = _joined(
            [
                (c.workload, np.arange(max(1, round(s * size))) % c.workload.session_count)
                for (c, _), s in zip(classes, shares, strict=True)
            ]
        )
    return replace(scenario, classes=(WorkloadClass("mix", workload, share=1.0),)), total


def _joined(parts: list[tuple[Workload, np.ndarray]]) -> Workload:
    """Return the picked sessions of several workloads as one, all starting at 0."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    lengths: list[np.ndarray] = []
    for workload, picked in parts:
        length = np.diff(workload.offsets)[picked]
        ends = np.cumsum(length)
        turns = np.repeat(workload.offsets[picked] - (ends - length), length) + np.arange(ends[-1])
        own = workload.prompt_tokens, workload.hit_tokens, workload.output_tokens
        for column, values in zip(columns, (*own, workload.think_time_s), strict=True):
            column.append(values[turns])
        lengths.append(length)
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int64)
    prompt, hit, output, think = (np.concatenate(column) for column in columns)
    return Workload(
        prompt_tokens=prompt,
        hit_tokens=hit,
        output_tokens=output,
        think_time_s=think,
        start_s=np.zeros(len(offsets) - 1),
        offsets=offsets,
        source="; ".join(workload.source for workload, _ in parts),
    )


def cannot(question: Question, counts: Counts, rate: float, run: Run) -> str | None:
    """Return why the fleet cannot be simulated, None if it can."""
    cluster = question.scenario.cluster
    if cluster.capacity():
        return "the simulator has no limits of the storage service or of the fabric"
    for case in question.cases:
        rates = question.rates(case, rate)
        scenario, _ = mixed(question.on(case, counts, rate), rates)
        turns = float(rates.sum()) * sum(run.seconds(scenario, float(rates.sum())))
        if turns > _MOST_TURNS:
            return (
                f"{case.name}: {turns / 1e6:,.0f} million turns are too many to simulate (at most "
                f"{_MOST_TURNS / 1e6:.0f}); give a shorter warm-up and measuring time"
            )
    return None


def words(question: Question, loss: Loss) -> str:
    """Say which nodes are lost."""
    named = [
        f"{nodes} {question.kinds[kind].name} ({'prefill' if pool == 0 else 'decode'})"
        for kind, pool, nodes in loss
    ]
    return " and ".join(named)


def attempt(
    question: Question,
    case: Case,
    counts: Counts,
    loss: Loss,
    rate: float,
    run: Run,
    progress: Progress,
) -> Tried:
    """Simulate the case's rates on what a loss leaves, and hold mean TTFT and TPOT against the SLO."""
    from solvers.simulator.experiments import execute
    from solvers.simulator.probe import SAMPLE_S, agents_for, latencies, overloaded

    rates = question.rates(case, rate)
    left = after(counts, loss)
    name = words(question, loss)
    if not left.sum(axis=0).all():
        return Tried(case.name, name, math.inf, math.inf, False)
    scenario, sessions_per_s = mixed(question.on(case, left, rate), rates)
    warmup_s, measure_s = run.seconds(scenario, float(rates.sum()))
    slo = scenario.slo
    horizon_s = warmup_s + measure_s
    try:
        outcome = execute(
            scenario,
            question.policy,
            agents=agents_for(sessions_per_s, horizon_s),
            rate_aps=sessions_per_s,
            seed=run.seed,
            until_s=horizon_s,
            warmup_s=warmup_s,
            sample_s=SAMPLE_S,
            hopeless=overloaded(slo.ttft_s, float(rates.sum())),
            progress=lambda done, _s, turns: progress(done, f"{case.name}: {turns:,} turns"),
        ).whole()
    except InfeasibleError:  # what is left does not hold the LLM
        return Tried(case.name, name, math.inf, math.inf, False)
    ttft, tpot = latencies(outcome.summary, horizon_s)
    return Tried(case.name, name, ttft, tpot, ttft <= slo.ttft_s and tpot <= slo.tpot_s)


def reach(
    question: Question,
    case: Case,
    counts: Counts,
    loss: Loss,
    rate: float,
    promised: float,
    run: Run,
    progress: Progress,
) -> Reach:
    """Search the highest rate within the SLO of a case on what a loss leaves.

    ``promised``: requests/s that the LP gives there, to which the answer is compared.
    """
    from solvers.simulator.capacity import capacity

    rates = question.rates(case, rate)
    asked = question.on(case, after(counts, loss), rate)
    scenario, _ = mixed(asked, rates)
    warmup_s, measure_s = run.seconds(scenario, float(rates.sum()))
    try:
        found = capacity(
            scenario,
            question.policy,
            replications=run.replications,
            first_seed=run.seed,
            warmup_s=warmup_s,
            measure_s=measure_s,
            tolerance=run.tolerance,
            progress=lambda done, runs: progress(done, f"{case.name}: {runs} runs"),
        )
    except InputError as error:
        raise InputError(f"simulating the fleet: {error}; or switch it off") from None
    turns = found.turns_per_s / found.rate_aps
    return Reach(
        case.name,
        words(question, loss),
        promised,
        found.turns_per_s,
        found.low_aps * turns,
        found.high_aps * turns,
        found.in_transit,
        found.limit,
    )
