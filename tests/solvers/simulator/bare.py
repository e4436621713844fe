"""A cluster in which everything is free but what a test asks for, so that theory applies."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from dualpath_model import load_scenario
from dualpath_model.compilation import compilable
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.arrays import Engines, Nodes
from dualpath_model.scheduler.attention import AttentionTime
from dualpath_model.scheduler.index import IntArray
from solvers.scheduling import configure
from solvers.simulator import kernel
from solvers.simulator.agenda import set_time
from solvers.simulator.kernel import first_entries
from solvers.simulator.kernel import run as kernel_run
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
        fetch_ns=2**60,
        **changes,
    )
    from dualpath_model.scheduler.placement import refresh_all

    made.bind(refresh_all)(state.prefill, state.decode, state.nodes)
    return Simulation(**{**made.__dict__, "machine": free})


@compilable
def run_on_demand(
    world: kernel.World,
    machine: kernel.Machine,
    traffic: kernel.Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    results: kernel.Results,
    unit_of: IntArray,
    private: bool,
    until_ns: int,
) -> int:
    """As ``kernel.run``, but leaders fetch after every event, so that nothing waits for a tick."""
    entries = first_entries(machine, prefill, decode, nodes)
    leaders = entries[4] - entries[2]
    agents = traffic.first.shape[0]
    now = 0
    while results.totals[9] < agents and now < until_ns:
        for entry in range(entries[2], entries[4]):
            set_time(world.agenda, entry, now)
        now = kernel_run(
            world,
            machine,
            traffic,
            prefill,
            decode,
            nodes,
            results,
            unit_of,
            private,
            until_ns,
            leaders + 1,
        )
    return now


def go(made: Simulation, until_s: float = 4e9) -> float:
    """Run without waiting for ticks; return the simulated seconds."""
    state = made.state
    done = made.bind(run_on_demand)(
        made.world,
        made.machine,
        made.traffic,
        state.prefill,
        state.decode,
        state.nodes,
        made.results,
        made.unit_of,
        made.policy.queues_prefill,
        int(until_s * 1e9),
    )
    return float(done) / 1e9


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
