"""The full LP for people: who reads what where, what each capacity is worth, and the proof."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal

from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from solvers import alternatives, linear
from solvers.form import Objective


def assignment(
    scenario: Scenario,
    objective: Literal["most requests", "least peak", "least cost"] = "most requests",
    backend: linear.Backend = "auto",
) -> dict[str, Any]:
    """Return the optimal assignment as JSON-ready data; SI, requests/s.

    ``holds_from`` and ``holds_to`` bound the capacity (of all nodes of a kind alike) for which a dual
    value is exact; None is no bound. They are computed for "most requests" only (``ranges_computed``).

    Raises InputError for rates or prices that the objective needs and the scenario lacks,
    InfeasibleError if required rates cannot be met.
    """
    best = Objective(objective)
    program = linear.CapacityProgram(
        alternatives.problem_of(scenario, scenario.class_loads()),
        backend,
        objective=best,
        locality=scenario.zones is not None,
        prices=_prices(scenario) if best is Objective.LEAST_COST else None,
    )
    found = program.solve(ranges=True)
    units = {
        Objective.MOST_REQUESTS: "requests/s",
        Objective.LEAST_PEAK: "utilisation",
        Objective.LEAST_COST: "USD/h",
    }
    return {
        "scenario": scenario.name,
        "objective": best.value,
        "value": found.value,
        "unit": units[best],
        "classes": [
            {"name": name, "requests_per_s": float(rate), "split": float(split)}
            for name, rate, split in zip(
                found.class_names, found.class_rates, found.class_splits, strict=True
            )
        ],
        "nodes": [
            {
                "pool": pool.value,
                "node": index,
                "name": node.name,
                "requests_per_s": [
                    {"class": name, "prefill_read": float(a), "decode_read": float(b)}
                    for name, (a, b) in zip(found.class_names, flow, strict=True)
                ],
            }
            for pool, flows in ((Pool.PREFILL, found.prefill), (Pool.DECODE, found.decode))
            for index, (node, flow) in enumerate(
                zip(scenario.cluster.nodes(pool), flows, strict=True)
            )
        ],
        "capacities": [
            {
                "pool": row.key.pool.value,
                "node": row.node,
                "resource": row.key.resource.value,
                "direction": row.key.direction.value,
                "capacity": row.capacity,
                "utilisation": row.utilisation,
                "dual_value": row.dual_value,
                "holds_from": _number(row.low),
                "holds_to": _number(row.high),
            }
            for row in found.rows
        ],
        "binding": [
            {"node": row.node, **asdict(alternatives.name_of(row.key))} for row in found.binding
        ],
        "ranges_computed": best is Objective.MOST_REQUESTS,
        "certificate": asdict(found.certificate),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _prices(scenario: Scenario) -> tuple[list[float], list[float]]:
    """Return each node's price; a missing one is nan, which the program refuses by name."""
    nodes = (scenario.cluster.nodes(pool) for pool in (Pool.PREFILL, Pool.DECODE))
    prefill, decode = (
        [math.nan if node.price_usd_per_hour is None else node.price_usd_per_hour for node in pool]
        for pool in nodes
    )
    return prefill, decode
