"""The words of the integer program: what is asked of a solve, what comes back, losses of nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from solvers.fleet_question import Counts

Loss = tuple[tuple[int, int, int], ...]
"""(kind, pool, nodes) that are lost together, in ascending order."""
NO_LOSS: Loss = ()


class Goal(StrEnum):
    """What the program makes best."""

    LEAST_COST = "least cost"
    MOST_RATE = "most rate"
    FEWEST_NODES = "fewest nodes"
    FEWEST_GPUS = "fewest GPUs of a pool"


@dataclass(frozen=True)
class Wish:
    """What is asked of one solve. ``rate``: requests/s that must be served, None: none;
    ``cost``: USD/h at most; ``rows``: (case, loss) that must be served; ``gap``: relative;
    ``floor``: GPUs that each pool surely has; ``pool``: of FEWEST_GPUS; ``relaxed``: counts need not
    be whole; ``ceiling``: of MOST_RATE, more is not looked for.
    """

    goal: Goal
    rate: float | None
    cost: float | None
    rows: tuple[tuple[int, Loss], ...]
    gap: float = 0.0
    floor: tuple[int, int] = (0, 0)
    time_s: float | None = None
    pool: int = 0
    relaxed: bool = False
    ceiling: float | None = None


@dataclass(frozen=True)
class Answer:
    """``status`` "optimal" or "infeasible"; ``counts`` (kinds, 2); ``bound``: on the objective."""

    status: str
    counts: Counts
    value: float = math.nan
    bound: float = math.nan


@dataclass
class Built:
    """The PuLP model and its variables, while it is built."""

    model: Any
    rho: Any
    count: list[list[Any]]
    """By kind, by pool; the number 0 where a kind has no such role."""
    most: list[list[int]]
    left: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    part: dict[tuple[Loss, int, int], Any] = field(default_factory=dict)
    names: int = 0

    def fresh(self, kind: str, **bounds: Any) -> Any:
        """Return a new variable."""
        self.names += 1
        return self.model.add_variable(f"{kind}_{self.names}", **bounds)
