"""How to answer a question about a scenario: the LP, and the plan that is built on it."""

from __future__ import annotations

from solvers.linear import LinearSolution, SolverError
from solvers.linear import solve as solve_linear
from solvers.planner import Plan, plan

__all__ = ["LinearSolution", "Plan", "SolverError", "plan", "solve_linear"]
