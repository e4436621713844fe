"""How to answer a question about a scenario: the LP, the plan built on it, the driven scheduler, the
simulator.
"""

from __future__ import annotations

from solvers.driver import Driven, drive
from solvers.linear import LinearSolution, SolverError
from solvers.linear import solve as solve_linear
from solvers.planner import Plan, plan
from solvers.scheduling import configure
from solvers.simulator.capacity import Capacity, capacity
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import Simulated, simulate
from solvers.simulator.model import Switches

__all__ = [
    "Capacity",
    "Constants",
    "Driven",
    "LinearSolution",
    "Plan",
    "Simulated",
    "SolverError",
    "Switches",
    "capacity",
    "configure",
    "drive",
    "plan",
    "simulate",
    "solve_linear",
]
