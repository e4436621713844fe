"""Plans that the tests of exports start from, made once a process."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from app.output import dump
from dualpath_model.export import Export, PlanFile, Site, export, parse_plan, target_named
from dualpath_model.scenario import load_scenario
from solvers import planner
from solvers.deployment import plan_document
from tests.conftest import ROOT


@cache
def plan_data(name: str = "deepseek-660b-2p4d") -> Any:
    """Return the plan of a shipped example as data (do not change it)."""
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    answer = planner.plan(scenario, intervals=False)
    return json.loads(dump(plan_document(scenario, answer)))


@cache
def plan_file(name: str = "deepseek-660b-2p4d") -> PlanFile:
    """Return the plan of a shipped example as exporters take it."""
    return parse_plan(plan_data(name))


def with_nodes(data: Any) -> None:
    """Give a plan's data the nodes that its kinds say, each like the first of its pool."""
    nodes = {node["pool"]: node for node in data["deployment"]["nodes"]}
    data["deployment"]["nodes"] = [
        nodes[kind["pool"]]
        | {
            "node": f"{kind['pool'][0]}{position}",
            "group": f"{kind['pool']}-{position}",
            "engines": [
                f"{kind['pool'][0]}{position}/{rank}"
                for rank in range(kind["gpus"] // kind["tensor"])
            ],
        }
        for kind in data["deployment"]["kinds"]
        for position in kind["positions"]
    ]
    for pool in ("prefill", "decode"):
        data[f"{pool}_nodes"] = sum(n["pool"] == pool for n in data["deployment"]["nodes"])


def made(target: str, name: str = "deepseek-660b-2p4d", **more: Any) -> Export:
    """Return a target's export of a shipped example."""
    site = more.pop("site", Site())
    return export(target_named(target), plan_file(name), site, **more)
