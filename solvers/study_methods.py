"""The three methods of a study: many scenarios in, one answer each out, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dualpath_model import loads as model_loads
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.scenario import Scenario
from solvers import alternatives, linear
from solvers.alternatives import Quick, name_of
from solvers.study_metrics import CLOSED_FORM, Metric, figure
from solvers.study_spec import SimulationSpec

Figures = dict[str, object]
"""The metrics of a point by name; with replications also both ends of their intervals."""


@dataclass(frozen=True)
class Failure:
    """Why a point has no answer. ``kind``: "input", "infeasible", "error" or "worker died"."""

    kind: str
    reason: str


def failure_of(error: BaseException) -> Failure:
    """Return an error as a table holds it: its kind, and one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    reason = lines[0][:500]
    if isinstance(error, InputError):
        return Failure("input", reason)
    if isinstance(error, InfeasibleError):
        return Failure("infeasible", reason)
    return Failure("error", f"{type(error).__name__}: {reason}" if reason else type(error).__name__)


# ---- closed form -----------------------------------------------------------------------------------


def closed_forms(
    scenarios: Sequence[Scenario | Failure], metrics: Sequence[Metric]
) -> list[Figures | Failure]:
    """Answer by the closed form, all at once. It needs pools of one kind of node and one class."""
    found: list[Figures | Failure] = []
    asked: list[Scenario] = []
    for scenario in scenarios:
        if isinstance(scenario, Scenario) and not _closed(scenario):
            scenario = Failure(  # noqa: PLW2901
                "input",
                "the closed form needs pools whose nodes are alike, one class of traffic and no "
                "locality; set method: LP",
            )
        if isinstance(scenario, Scenario):
            asked.append(scenario)
            found.append({})
        else:
            found.append(scenario)
    answers = iter(_quick(asked))
    ready = iter(asked)
    for place, one in enumerate(found):
        if isinstance(one, Failure):
            continue
        scenario, answer = next(ready), next(answers)
        try:
            if not isinstance(answer, Quick):
                raise answer
            found[place] = _named(scenario, answer, metrics)
        except Exception as error:  # whatever a point meets is its own
            found[place] = failure_of(error)
    return found


def _closed(scenario: Scenario) -> bool:
    return len(scenario.classes) == 1 and scenario.cluster.homogeneous and scenario.zones is None


def _quick(scenarios: Sequence[Scenario]) -> Iterable[Quick | Exception]:
    try:
        return alternatives.quick_many(scenarios)
    except Exception:  # one of them; find out which
        found: list[Quick | Exception] = []
        for scenario in scenarios:
            try:
                found.append(alternatives.quick_many([scenario])[0])
            except Exception as error:
                found.append(error)
        return found


def _named(scenario: Scenario, answer: Quick, metrics: Sequence[Metric]) -> Figures:
    prefill, decode = len(scenario.cluster.prefill), len(scenario.cluster.decode)
    named: dict[str, object] = {
        "throughput_requests_per_s": answer.throughput,
        "throughput_basic_requests_per_s": answer.basic,
        "speedup_over_basic": answer.throughput / answer.basic,
        "requests_per_s_per_node": answer.throughput / (prefill + decode),
        "split": answer.split,
        "bottleneck": name_of(answer.bottleneck),
        "prefill_nodes": prefill,
        "decode_nodes": decode,
        **_of_workload(scenario, metrics),
    }
    if _any(metrics, "throughput_oracle_requests_per_s", "fraction_of_oracle"):
        rate = model_loads.oracle_throughput(scenario.loads())
        oracle = rate if math.isfinite(rate) else None
        named["throughput_oracle_requests_per_s"] = oracle
        named["fraction_of_oracle"] = None if oracle is None else answer.throughput / oracle
    return {metric.name: figure(named, metric) for metric in metrics}


def _any(metrics: Sequence[Metric], *names: str) -> bool:
    return any(metric.name in names for metric in metrics)


def _of_workload(scenario: Scenario, metrics: Sequence[Metric]) -> dict[str, object]:
    if not any(metric.parts[0] == "workload" for metric in metrics):
        return {}
    means = scenario.means
    return {
        "workload": {
            "hit_rate": means.hit_tokens / means.prompt_tokens,
            "mean_prompt_tokens": means.prompt_tokens,
            "mean_miss_tokens": means.prompt_tokens - means.hit_tokens,
            "mean_output_tokens": means.output_tokens,
        }
    }


# ---- LP --------------------------------------------------------------------------------------------

_LEAN = frozenset(CLOSED_FORM) - {"requests_per_s_per_node"}
"""Names for which two solves are enough; the whole plan has thirty, for its neighbours and upgrades."""


def linear_program(scenario: Scenario, metrics: Sequence[Metric]) -> Figures:
    """Answer by the LP. Raises InfeasibleError where the scenario cannot be served."""
    if all(metric.name in _LEAN for metric in metrics) and len(scenario.classes) == 1:
        return _lean(scenario, metrics)
    from solvers.planner import plan

    intervals = any(metric.parts[0] == "uncertainty" for metric in metrics)
    found = plan(scenario, intervals=intervals)
    return {metric.name: figure(found, metric) for metric in metrics}


def _lean(scenario: Scenario, metrics: Sequence[Metric]) -> Figures:
    loads = scenario.class_loads()
    problem, local = alternatives.problem_of(scenario, loads), scenario.zones is not None
    best = linear.CapacityProgram(problem, locality=local).solve()
    named: dict[str, object] = {
        "throughput_requests_per_s": best.throughput,
        "split": alternatives.read_split(scenario, best),
        "bottleneck": name_of(alternatives.bottleneck(best)),
        "prefill_nodes": len(scenario.cluster.prefill),
        "decode_nodes": len(scenario.cluster.decode),
        **_of_workload(scenario, metrics),
    }
    if _any(metrics, "throughput_basic_requests_per_s", "speedup_over_basic"):
        basic = linear.CapacityProgram(problem, decode_reads=False, locality=local).solve()
        named["throughput_basic_requests_per_s"] = basic.throughput
        named["speedup_over_basic"] = best.throughput / basic.throughput
    if _any(metrics, "throughput_oracle_requests_per_s", "fraction_of_oracle"):
        oracle = alternatives.oracle_throughput(scenario, loads)
        named["throughput_oracle_requests_per_s"] = oracle
        named["fraction_of_oracle"] = None if oracle is None else best.throughput / oracle
    return {metric.name: figure(named, metric) for metric in metrics}


# ---- simulation ------------------------------------------------------------------------------------


def point_seeds(study_seed: int, number: int, count: int) -> list[int]:
    """Return the seeds of a point's replications: of the study's seed and the point's number alone."""
    state = np.random.SeedSequence(study_seed, spawn_key=(number,)).generate_state(count, np.uint64)
    return [int(word >> np.uint64(1)) for word in state]  # at most 2**63 - 1


def simulation(
    scenario: Scenario, asked: SimulationSpec, seeds: Sequence[int], metrics: Sequence[Metric]
) -> Figures:
    """Answer by simulating once for each seed; of several by :func:`over_runs`, intervals of 95 %.

    Raises as :func:`solvers.simulator.experiments.execute` does.
    """
    from solvers.simulator.experiments import execute
    from solvers.simulator.model import Switches

    runs: list[Figures] = []
    for seed in seeds:
        outcome = execute(
            scenario,
            asked.policy,
            agents=_agents(asked),
            rate_aps=asked.rate_aps,
            seed=seed,
            until_s=math.inf if asked.seconds is None else asked.seconds,
            warmup_s=asked.warmup_s,
            switches=Switches(layerwise=asked.layerwise, token_limit=asked.batch_tokens),
        )
        summary = outcome.whole().summary
        runs.append({metric.name: figure(summary, metric) for metric in metrics})
    if len(runs) == 1:
        return runs[0]
    return over_runs(runs, metrics)


def _agents(asked: SimulationSpec) -> int:
    """Return as many agents as surely arrive where a rate and a time are given, else those asked for."""
    if asked.rate_aps is None or asked.seconds is None or "agents" in asked.model_fields_set:
        return asked.agents
    expected = asked.rate_aps * asked.seconds
    return math.ceil(expected + 4 * math.sqrt(expected))


def over_runs(runs: Sequence[Figures], metrics: Sequence[Metric]) -> Figures:
    """Return what several runs of a point say together.

    Of a number the mean and its interval, if every run has one: a mean of those that have it would be
    of the easier runs alone. Of words those of all runs, each once ("a or b"); of yes or no what all
    agree on. Otherwise None.
    """
    from solvers.simulator.capacity import interval

    found: Figures = {}
    for metric in metrics:
        values = [run[metric.name] for run in runs]
        whole = None not in values
        if metric.type in ("text", "bool"):
            found[metric.name] = _agreed(values) if whole else None
            continue
        numbers = [float(value) for value in values if isinstance(value, (int, float))]
        mean, half = interval(numbers) if whole else (math.nan, math.nan)
        found[metric.name] = _number(mean)
        found[f"{metric.name}.low"] = _number(mean - half)
        found[f"{metric.name}.high"] = _number(mean + half)
    return found


def _agreed(values: Sequence[object]) -> object:
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return distinct[0]
    return " or ".join(map(str, distinct)) if isinstance(distinct[0], str) else None


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
