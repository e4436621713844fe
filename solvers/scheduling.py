"""What a plan tells the scheduler: the split, and each resource's share of the LP's dual value."""

from __future__ import annotations

from dataclasses import replace

from dualpath_model.errors import InputError
from dualpath_model.paths import Key, Pool, Resource
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.events import NodeJoined, Settings
from dualpath_model.scheduler.file import SchedulerFile
from dualpath_model.scheduler.setup import (
    node_name,
    read_key,
    resource_name,
    scheduler_nodes,
    scheduler_settings,
)
from solvers import alternatives, linear

_ENGINE = (Resource.GPU, Resource.HBM, Resource.HBM_SPACE)


def configure(
    scenario: Scenario, policy: str = "dualpath", patience: int = 0
) -> tuple[Settings, tuple[NodeJoined, ...]]:
    """Return the settings and nodes of a scenario's scheduler under ``policy``, prices included.

    Raises InputError for an unknown policy, InfeasibleError where the LP has no answer.
    """
    settings = scheduler_settings(scenario, policy, patience)
    solution = linear.CapacityProgram(
        alternatives.problem_of(scenario, scenario.class_loads()),
        decode_reads=scenario.serving.table.splits,
        locality=scenario.zones is not None,
    ).solve()
    return replace(settings, expected_split=solution.split), with_prices(scenario, solution)


def from_file(
    scenario: Scenario, file: SchedulerFile, policy: str | None = None
) -> tuple[Scenario, Settings, tuple[NodeJoined, ...]]:
    """Return what :func:`configure` does, from a scheduler file, and the scenario with its quota.

    ``policy``: None takes the file's. Raises InputError if the file is of another cluster: its nodes,
    their pools and engines must be those of the scenario.
    """
    of_scenario = {node.node: (node.pool, node.engines) for node in scheduler_nodes(scenario)}
    of_file = {node.node: (node.pool, node.engines) for node in file.nodes}
    for name in dict.fromkeys([*of_scenario, *of_file]):
        if of_scenario.get(name) != of_file.get(name):
            raise InputError(
                f"scheduler file: nodes: {name} is {_engines(of_file.get(name))}, but "
                f"{_engines(of_scenario.get(name))} in scenario '{scenario.name}'; export the scheduler "
                f"from this scenario"
            )
    settings = file.settings if policy is None else replace(file.settings, policy=policy)
    rules = replace(scenario.rules, quota_s=file.quota_s)
    return replace(scenario, rules=rules), settings, file.nodes


def _engines(found: tuple[str, tuple[str, ...]] | None) -> str:
    return "not there" if found is None else f"a {found[0]} node of {len(found[1])} engines"


def with_prices(scenario: Scenario, solution: linear.LinearSolution) -> tuple[NodeJoined, ...]:
    """Return the scenario's nodes with the shares of dual value that their resources carry.

    A resource's share is dual value x capacity, over the sum of that over all rows: by strong duality
    the sum is the throughput where all demand can grow.
    """
    worth = {
        (row.key, row.node): row.dual_value * row.capacity
        for row in solution.rows
        if row.dual_value > 0
    }
    total = sum(worth.values()) or 1.0

    def priced(joined: NodeJoined, pool: Pool, position: int) -> NodeJoined:
        def share(key: Key) -> float:
            return worth.get((key, position), 0.0) / total

        mine = [key for key, node in worth if node == position and key.pool is pool]
        prices = joined.limits.prices
        by_name = {resource_name(key): share(key) for key in mine}
        return replace(
            joined,
            limits=replace(
                joined.limits,
                prices=replace(
                    prices,
                    read_price=share(read_key(pool)),
                    engine_price=sum((share(key) for key in mine if key.resource in _ENGINE), 0.0),
                    price=tuple(by_name.get(name, 0.0) for name in prices.resources),
                ),
            ),
        )

    positions = {
        node_name(pool, position): (pool, position)
        for pool in (Pool.PREFILL, Pool.DECODE)
        for position in range(len(scenario.cluster.nodes(pool)))
    }
    return tuple(priced(node, *positions[node.node]) for node in scheduler_nodes(scenario))
