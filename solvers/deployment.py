"""The plan as a file that the exporters need nothing beside: its JSON, and what a deployment knows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dualpath_model.deployment import describe
from dualpath_model.scenario import Scenario
from solvers.planner import Plan, to_json
from solvers.scheduling import configure


def plan_document(scenario: Scenario, plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON-ready data, with its ``deployment``.

    Raises InputError, InfeasibleError as :func:`configure`.
    """
    settings, nodes = configure(scenario)
    rates = tuple(traffic.requests_per_s for traffic in plan.classes)
    return {**to_json(plan), "deployment": asdict(describe(scenario, settings, nodes, rates))}
