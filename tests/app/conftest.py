"""Plans to draw: the paper's cluster, an uneven one with several classes, one without storage NICs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from dualpath_model import Scenario, load_scenario
from solvers import Plan, plan
from tests.conftest import ROOT

NAMES = (
    "deepseek-660b-2p4d",
    "mixed-traffic",
    "deepseek-v3.2-aws-p5",
    "dram-cache",
    "paper-analysis",
)


@cache
def planned(name: str) -> tuple[Plan, Scenario]:
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    return plan(scenario), scenario


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Plan, Scenario]:
    return planned(request.param)


@pytest.fixture
def paper() -> tuple[Plan, Scenario]:
    return planned("deepseek-660b-2p4d")


EVIL = """<script>alert("x")</script> & $\\frac{1}{0}$ 'quoted'"""


@pytest.fixture
def evil() -> tuple[Plan, Scenario]:
    """A scenario whose names try to be markup, LaTeX and shell."""
    made, scenario = planned("mixed-traffic")
    classes = tuple(replace(c, name=EVIL) for c in made.classes)
    notes = (EVIL,)
    return replace(made, scenario=EVIL, llm=EVIL, classes=classes, notes=notes), scenario
