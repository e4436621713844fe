"""How to answer a question about a scenario: the LP, the plan built on it, the driven scheduler."""

from __future__ import annotations

from solvers.driver import Driven, drive
from solvers.linear import LinearSolution, SolverError
from solvers.linear import solve as solve_linear
from solvers.planner import Plan, plan
from solvers.scheduling import configure

__all__ = [
    "Driven",
    "LinearSolution",
    "Plan",
    "SolverError",
    "configure",
    "drive",
    "plan",
    "solve_linear",
]
