"""The capacity search for people: run it, with progress, and return it as JSON-ready data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from app.progress import Tell
from app.simulate import Named
from dualpath_model.scenario import Scenario
from solvers.simulator.capacity import Statistic, capacity
from solvers.simulator.model import Switches


def run_capacity(
    scenario: Scenario,
    policy: str,
    *,
    statistic: Statistic,
    replications: int,
    seed: int,
    warmup_s: float,
    measure_s: float,
    tolerance: float,
    constants: Named,
    switches: Switches,
    tell: Tell,
) -> dict[str, Any]:
    """Search the highest rate within the SLO (see :func:`solvers.simulator.capacity.capacity`)."""
    found = capacity(
        scenario,
        policy,
        statistic=statistic,
        replications=replications,
        first_seed=seed,
        warmup_s=warmup_s,
        measure_s=measure_s,
        tolerance=tolerance,
        constants=constants.constants,
        switches=switches,
        progress=lambda done, runs: tell(done, f"{runs} runs"),
    )
    return {
        "scenario": scenario.name,
        **asdict(found),
        "in_transit": found.in_transit,
        "seed": seed,
        "tolerance": tolerance,
        "framework": scenario.serving.table.name,
        "layerwise": switches.loads_layerwise(scenario.serving.table),
        "token_limit": switches.token_limit,
        "constants": constants.to_json(),
    }
