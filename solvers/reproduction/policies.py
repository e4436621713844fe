"""Our policies against the paper's: the same sessions under each, differences seed by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model.scenario import Scenario
from solvers.simulator.capacity import capacity, interval
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import Simulated, execute
from solvers.simulator.model import Switches

BASE = "dualpath"
TUNED = "dualpath, 1,024 tokens"
"""The paper's policy with forward batches of the size that gives it the highest capacity on 64K
sessions: ours cut batches by themselves, so they have to be compared with this too."""
_TOKEN_LIMITS = {TUNED: ("dualpath", 1024)}
MEASURES = (
    "capacity_aps",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "snic_max_over_mean",
    "jct_s",
)
"""Of each policy; the first is better when more, the others when less."""


@dataclass(frozen=True)
class Case:
    """A scenario to compare on: ``share`` of the paper's policy's capacity at which latencies are
    measured, ``agents`` of the batch whose completion time is.
    """

    name: str
    scenario: Scenario
    agents: int
    share: float = 0.85
    warmup_s: float = 3600.0
    measure_s: float = 3600.0


@dataclass(frozen=True)
class Comparison:
    """One measure of one policy: its mean with its 95 % interval, and the relative change against the
    paper's policy, seed by seed, with the interval of the mean change.
    """

    case: str
    policy: str
    measure: str
    mean: float
    half_width: float
    change: float
    change_half_width: float

    @property
    def better_by(self) -> float:
        """By how much it is better than the paper's policy, as a fraction; negative is worse."""
        return self.change if self.measure == "capacity_aps" else -self.change


def compare(
    case: Case,
    policies: tuple[str, ...] = (TUNED, "split", "priced"),
    *,
    replications: int = 5,
    constants: Constants | None = None,
    switches: Switches | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> Iterator[Comparison]:
    """Yield every measure of the paper's policy and of ``policies`` (names, or TUNED) on one case.

    Latencies and balance are measured at the same rate for all, ``case.share`` of the capacity that the
    paper's policy has here.
    """
    values: dict[tuple[str, str], np.ndarray] = {}
    rate = math.nan
    for policy in (BASE, *policies):
        said(f"{case.name}: capacity under {policy}")
        name, limit = _TOKEN_LIMITS.get(policy, (policy, None))
        mine = switches if limit is None else replace(switches or Switches(), token_limit=limit)
        found = capacity(
            case.scenario,
            name,
            replications=replications,
            warmup_s=case.warmup_s,
            measure_s=case.measure_s,
            constants=constants,
            switches=mine,
        )
        values[policy, "capacity_aps"] = np.array(found.rates_aps)
        if policy == BASE:
            rate = case.share * found.rate_aps
        said(f"{case.name}: latencies at {rate:.3g} agents/s under {policy}")
        runs = [_online(case, name, rate, seed, constants, mine) for seed in range(replications)]
        values[policy, "ttft_p50_s"] = np.array([run.ttft_s["p50"] for run in runs])
        values[policy, "ttft_p99_s"] = np.array([run.ttft_s["p99"] for run in runs])
        values[policy, "tpot_mean_s"] = np.array([run.tpot_s["mean"] for run in runs])
        values[policy, "snic_max_over_mean"] = np.array([run.snic_max_over_mean for run in runs])
        said(f"{case.name}: a batch under {policy}")
        batches = [
            execute(
                case.scenario,
                name,
                agents=case.agents,
                seed=seed,
                constants=constants,
                switches=mine,
            )
            .whole()
            .summary
            for seed in range(replications)
        ]
        values[policy, "jct_s"] = np.array([run.jct_s for run in batches])
        for measure in MEASURES:
            yield _comparison(case.name, policy, measure, values)


def _online(
    case: Case,
    policy: str,
    rate: float,
    seed: int,
    constants: Constants | None,
    switches: Switches | None,
) -> Simulated:
    until_s = case.warmup_s + case.measure_s
    expected = rate * until_s
    outcome = execute(
        case.scenario,
        policy,
        agents=math.ceil(expected + 4 * math.sqrt(expected) + 1),
        rate_aps=rate,
        seed=seed,
        until_s=until_s,
        warmup_s=case.warmup_s,
        constants=constants,
        switches=switches,
    )
    return outcome.whole().summary


def _comparison(
    case: str, policy: str, measure: str, values: dict[tuple[str, str], np.ndarray]
) -> Comparison:
    mine, base = values[policy, measure], values[BASE, measure]
    mean, half = interval(mine)
    change, change_half = interval(mine / base - 1.0)
    return Comparison(case, policy, measure, mean, half, change, change_half)
