"""The simulator for people: run it, with progress, and return what it shows as JSON-ready data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from app.progress import Tell
from dualpath_model import yaml_lines
from dualpath_model.errors import InputError, unknown_name
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.file import SchedulerFile
from solvers.simulator.capacity import interval
from solvers.simulator.constants import Constants, fitted, of_scenario
from solvers.simulator.experiments import Outcome, Simulated, execute
from solvers.simulator.model import Switches

_AGENTS = 200
SAMPLE_S = 10.0
"""Between two samples of the series where files are asked for."""


class Named(NamedTuple):
    """Efficiency constants, and where they come from: "fitted", "measured", "none" or a file."""

    source: str
    constants: Constants

    def to_json(self) -> dict[str, Any]:
        """Return the source and the three values."""
        return {"source": self.source, **asdict(self.constants)}


def read_constants(source: str | None, scenario: Scenario | None = None) -> Named:
    """Return the constants that ``--constants`` names: "none" the bare roofline, None those that the
    profiles of ``scenario`` measured, and the fitted ones for what they did not.

    Raises InputError, one sentence, for a file that is none of constants.
    """
    if source is None:
        constants = fitted() if scenario is None else of_scenario(scenario)
        return Named("fitted" if constants == fitted() else "measured", constants)
    if source == "none":
        return Named("none", Constants())
    document = yaml_lines.read(Path(source))
    names = [field.name for field in fields(Constants)]
    values: dict[str, float] = {}
    for name, value in document.data.items():
        where = f"{source}:{document.lines.get((str(name),), 1)}"
        if name not in names:
            raise InputError(f"{where}: {unknown_name('constant', str(name), names)}")
        try:
            values[name] = float("no" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"{where}: constant {name} is {str(value)[:60]!r}; give seconds per layer as a number"
            ) from None
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"{source}: {missing[0]} is missing; add it (0 adds nothing)")
    try:
        return Named(source, Constants(**values))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def agents_of(agents: int | None, rate_aps: float | None, seconds: float | None) -> int:
    """Return how many agents to run: as many as surely arrive in the given time, or as said, or 200."""
    if agents is not None:
        return agents
    if rate_aps is None or seconds is None:
        return _AGENTS
    expected = rate_aps * seconds
    return math.ceil(expected + 4 * math.sqrt(expected))


def run_simulation(
    scenario: Scenario,
    policy: str | None,
    *,
    agents: int | None,
    rate_aps: float | None,
    until_s: float | None,
    warmup_s: float,
    sample_s: float | None,
    seed: int,
    replications: int,
    constants: Named,
    switches: Switches,
    tell: Tell,
    scheduler: SchedulerFile | None = None,
) -> tuple[dict[str, Any], Outcome]:
    """Run ``replications`` simulations, ``seed`` and those that follow it.

    Returns the first one's figures as JSON-ready data (with more than one, each one's and their 95 %
    intervals beside them), and the whole first run. ``sample_s``: of the first one only. Ctrl-C keeps
    what is finished: ``interrupted`` is then true, and later runs that it cut off are left out.

    Raises as :func:`solvers.simulator.experiments.execute` does.
    """
    runs: list[Simulated] = []
    first: Outcome | None = None
    for number in range(replications):

        def progress(done: float, simulated_s: float, turns: int, number: int = number) -> None:
            which = f", run {number + 1} of {replications}" if replications > 1 else ""
            text = f"{simulated_s:,.0f} s simulated, {turns:,} turns{which}"
            tell((number + done) / replications, text)

        try:
            outcome = execute(
                scenario,
                policy,
                agents=agents_of(agents, rate_aps, until_s),
                rate_aps=rate_aps,
                seed=seed + number,
                until_s=math.inf if until_s is None else until_s,
                warmup_s=warmup_s,
                sample_s=sample_s if first is None else None,
                constants=constants.constants,
                switches=switches,
                progress=progress,
                scheduler=scheduler,
            )
        except KeyboardInterrupt:  # between two pieces of a run
            if first is None:
                raise
            return _data(scenario, constants, switches, runs, replications, True), first
        first = first or outcome
        runs.append(outcome.summary)
        if outcome.summary.interrupted:
            break
    assert first is not None
    cut = runs[-1].interrupted
    return _data(scenario, constants, switches, runs, replications, cut), first


def _data(
    scenario: Scenario,
    constants: Named,
    switches: Switches,
    runs: Sequence[Simulated],
    replications: int,
    interrupted: bool,
) -> dict[str, Any]:
    found = {
        "scenario": scenario.name,
        **asdict(runs[0]),
        "interrupted": interrupted,
        "framework": scenario.serving.table.name,
        "layerwise": switches.loads_layerwise(scenario.serving.table),
        "token_limit": switches.token_limit,
        "constants": constants.to_json(),
    }
    if replications > 1:
        whole = [run for run in runs if not run.interrupted]
        found["replications"] = [{name: getattr(run, name) for name in _KEPT} for run in whole]
        found["interval_95"] = {
            name: _interval([_value(run, *path) for run in whole]) for name, path in _PATHS.items()
        }
    return found


_KEPT = (
    "seed",
    "jct_s",
    "turns",
    "turns_per_s_simulated",
    "wall_s",
    "ttft_s",
    "ttst_s",
    "tpot_s",
    "snic_max_over_mean",
)
_PATHS = {
    "jct_s": ("jct_s",),
    "ttft_mean_s": ("ttft_s", "mean"),
    "ttft_p99_s": ("ttft_s", "p99"),
    "tpot_mean_s": ("tpot_s", "mean"),
    "snic_max_over_mean": ("snic_max_over_mean",),
}


def _value(run: Simulated, name: str, part: str | None = None) -> float | None:
    """Return a figure of a run, None where no turn shows it."""
    found: Any = getattr(run, name)
    value: float | None = found if part is None else found.get(part)
    return value


def _interval(values: Sequence[float | None]) -> list[float] | None:
    """Return both ends of the 95 % interval of the mean; None of fewer than two runs."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    mean, half = interval(known)
    return [mean - half, mean + half]
