"""The simulator for people: run it, with progress, and return what it shows as JSON-ready data."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from typing import Any

from app import interrupt
from dualpath_model.scenario import Scenario
from solvers.simulator.experiments import simulate
from solvers.simulator.model import Switches


def run_simulation(
    scenario: Scenario,
    policy: str,
    *,
    agents: int,
    rate_aps: float | None,
    until_s: float | None,
    seed: int,
    layerwise: bool,
    token_limit: int,
) -> dict[str, Any]:
    """Run a simulation (see :func:`solvers.simulator.experiments.simulate`)."""
    found = simulate(
        scenario,
        policy,
        agents=agents,
        rate_aps=rate_aps,
        seed=seed,
        until_s=math.inf if until_s is None else until_s,
        switches=Switches(layerwise=layerwise, token_limit=token_limit),
        progress=_say,
    )
    return {"scenario": scenario.name, **asdict(found)}


def _say(done: float, simulated_s: float, turns: int) -> None:
    interrupt.check()
    print(f"{simulated_s:.0f} s simulated, {turns} turns", file=sys.stderr)
