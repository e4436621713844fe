"""A cluster in which everything is free but what a test asks for, so that theory applies."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from dualpath_model import load_scenario
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.attention import AttentionTime
from solvers.scheduling import configure
from solvers.simulator import kernel
from solvers.simulator.model import Simulation, prepare
from tests.conftest import ROOT

SCALE = 1_000_000
"""Tokens that stand for one unit of work, so that whole tokens are fine enough."""


@cache
def one_node_a_side() -> Scenario:
    return load_scenario(ROOT / "examples" / "ds-27b-1p1d.yaml")


def traffic(
    start_s: np.ndarray,
    *,
    read: np.ndarray | None = None,
    decode: np.ndarray | None = None,
    turns: int = 1,
) -> kernel.Traffic:
    """Agents of ``turns`` turns each; ``read`` and ``decode``: work of each turn, (agents * turns,)."""
    agents = len(start_s)
    ones = np.ones(agents * turns)
    hit = np.zeros(agents * turns, dtype=np.int64)
    if read is not None:
        hit = np.rint(read * SCALE).astype(np.int64)
    output = ones if decode is None else 1 + np.maximum(1.0, np.rint(decode * SCALE))
    return kernel.Traffic(
        prompt=hit + 1,
        hit=hit,
        output=output.astype(np.int64),
        think_ns=np.zeros(agents * turns, dtype=np.int64),
        first=np.arange(agents, dtype=np.int64) * turns,
        last=np.arange(1, agents + 1, dtype=np.int64) * turns,
        start_ns=np.rint(start_s * 1e9).astype(np.int64),
    )


def simulation(
    work: kernel.Traffic,
    *,
    policy: str = "basic",
    read_rate: float = 1e9,
    sharing: float = 0.0,
    engines: int = 1,
    **changes: Any,
) -> Simulation:
    """``read_rate``: units/s of each storage NIC. ``sharing``: seconds of a unit of decode on an engine
    of its own; n requests on an engine take n times as long (processor sharing). ``engines``: decode
    engines that get work.
    """
    settings, nodes = configure(one_node_a_side(), policy)
    huge = 2**55
    made = prepare(one_node_a_side(), settings, _with_room(nodes), work)
    state = made.state
    state.nodes.read_rate[:] = read_rate * SCALE
    state.prefill.limit[:] = huge
    for engine in range(engines, len(state.decode.open)):
        state.decode.open[engine] = 0
    machine = made.machine
    steps = np.arange(machine.step_s.shape[1]) * max(sharing, 1e-12) / SCALE
    free = machine._replace(
        near_s=machine.near_s * 0,
        far_s=machine.far_s * 0,
        miss_s=machine.miss_s * 0,
        linear_s=machine.linear_s * 0,
        step_s=np.tile(steps, (len(machine.step_s), 1)),
        kv_s=machine.kv_s * 0,
        attention=AttentionTime(),
        fetch_ns=0,
        **changes,
    )
    from dualpath_model.scheduler.placement import refresh_all

    made.bind(refresh_all)(state.prefill, state.decode, state.nodes)
    return Simulation(**{**made.__dict__, "machine": free})


def _with_room(nodes: Any) -> Any:
    from dataclasses import replace

    room = 2**36
    return tuple(
        replace(node, limits=replace(node.limits, hbm_tokens=room, beta_tokens=room))
        for node in nodes
    )


def column(made: Simulation, name: str) -> np.ndarray:
    """A column of the results in seconds, in the order of ending."""
    return made.results.rows[:, kernel.RESULT_FIELDS.index(name)] / 1e9
