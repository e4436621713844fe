"""Defects of the simulator that planning fleets brought to light."""

from __future__ import annotations

from dataclasses import replace

from solvers.simulator.capacity import _judge
from solvers.simulator.experiments import simulate
from tests.solvers.simulator.small import example


def test_a_run_to_an_end_between_two_nanoseconds_was_not_stopped() -> None:
    """Times are whole nanoseconds, so such a run ends before its horizon; it counted as overloaded,
    and with such a warm-up no rate at all was found to meet the SLO.
    """
    horizon = 20.0 + 1e5 / 310 % 1
    ran = simulate(example(), agents=50, rate_aps=1.0, until_s=horizon, compiled=False)
    ran = replace(ran, end_s=round(horizon * 1e9) / 1e9)
    assert ran.agents_ended < ran.agents
    judged = _judge(ran, 0, 1.0, horizon + 4e-10, "mean", 1e3, 1e3)
    assert judged.holds
    early = replace(ran, end_s=horizon - 1.0)
    assert not _judge(early, 0, 1.0, horizon, "mean", 1e3, 1e3).holds
