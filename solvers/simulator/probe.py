"""What every search in the simulator means by a run at a rate: how many agents, when it is hopeless."""

from __future__ import annotations

import math
from collections.abc import Callable

from solvers.simulator.experiments import Simulated
from solvers.simulator.model import Simulation

SAMPLE_S = 20.0
"""Simulated seconds between two looks at whether a run is hopeless."""
_OVERLOADED = 5.0
"""A run stops when so many times the requests wait that a TTFT at the SLO would leave waiting."""
_END_S = 1e-6
"""The kernel's time is whole nanoseconds: a run that went to its end may end a little before."""


def agents_for(rate_aps: float, seconds: float) -> int:
    """Return so many agents that Poisson arrivals surely last for ``seconds``."""
    expected = rate_aps * seconds
    return math.ceil(expected + 4 * math.sqrt(expected) + 1)


def overloaded(slo_ttft_s: float, requests_per_s: float) -> Callable[[Simulation], bool]:
    """Return what says that a run at a rate has so much waiting that it cannot meet the SLO."""
    waiting_allowed = _OVERLOADED * slo_ttft_s * requests_per_s

    def hopeless(run: Simulation) -> bool:
        world = run.sim.world
        queues = (world.prefill_queues, world.decode_queues, world.buffer_queues)
        return sum(float(queue.length.sum()) for queue in queues) > waiting_allowed

    return hopeless


def latencies(summary: Simulated, horizon_s: float, statistic: str = "mean") -> tuple[float, float]:
    """Return a statistic of TTFT and TPOT of a run that was to last ``horizon_s``, seconds.

    Both are inf where it was stopped as hopeless, TTFT is where no turn ended in the time measured;
    TPOT is 0 where none had one.
    """
    if summary.end_s < horizon_s - _END_S and summary.agents_ended < summary.agents:
        return math.inf, math.inf
    return summary.ttft_s.get(statistic, math.inf), summary.tpot_s.get(statistic, 0.0)
