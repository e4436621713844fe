"""A cluster in which everything is free but what a test asks for, so that theory applies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from dualpath_model import load_scenario
from dualpath_model.compilation import compilable
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.attention import AttentionTime
from dualpath_model.scheduler.placement import refresh_all
from solvers.scheduling import configure
from solvers.simulator.agenda import set_time
from solvers.simulator.kernel import run as kernel_run
from solvers.simulator.model import Simulation, Switches, prepare
from solvers.simulator.state import (
    AGENTS_ENDED,
    MOVE_ENTRY,
    PREFILL_LEADER_ENTRY,
    RESULT_FIELDS,
    Sim,
    Traffic,
)
from tests.conftest import ROOT

SCALE = 1_000_000
"""Tokens that stand for one unit of work, so that whole tokens are fine enough."""
_HUGE = 2**55


@cache
def one_node_a_side() -> Scenario:
    scenario = load_scenario(ROOT / "examples" / "ds-27b-1p1d.yaml")
    for pool in (Pool.PREFILL, Pool.DECODE):
        scenario = scenario.with_each_node(pool, lambda node: replace(node, buffer_bytes=None))
    return scenario


def traffic(
    start_s: np.ndarray,
    *,
    read: np.ndarray | None = None,
    prefill: np.ndarray | None = None,
    decode: np.ndarray | None = None,
    turns: int = 1,
) -> Traffic:
    """Agents of ``turns`` turns each; ``read``, ``prefill`` and ``decode``: units of work of each turn,
    (agents * turns,); left out: none, but for the one token that every turn computes and generates.
    """
    agents = len(start_s)
    nothing = np.zeros(agents * turns)

    def tokens(work: np.ndarray | None) -> np.ndarray:
        return np.rint((nothing if work is None else work) * SCALE).astype(np.int64)

    hit, output = tokens(read), np.ones(agents * turns, dtype=np.int64)
    return Traffic(
        prompt=hit + np.maximum(1, tokens(prefill)),
        hit=hit,
        output=output if decode is None else 1 + np.maximum(1, tokens(decode)),
        think_ns=np.zeros(agents * turns, dtype=np.int64),
        first=np.arange(agents, dtype=np.int64) * turns,
        last=np.arange(1, agents + 1, dtype=np.int64) * turns,
        start_ns=np.rint(start_s * 1e9).astype(np.int64),
    )


def simulation(
    work: Traffic,
    *,
    read_rate: float = 1e9,
    prefilling: float = 0.0,
    sharing: float = 0.0,
    alone: bool = False,
    **changes: Any,
) -> Simulation:
    """A run of one prefill and one decode engine under the policy "basic".

    ``read_rate``: units/s of each storage NIC. ``prefilling``: seconds of a unit of prefill; ``alone``:
    a forward batch takes one request. ``sharing``: seconds of a unit of decode on an engine of its own;
    n requests on an engine take n times as long (processor sharing). ``changes``: fields of the machine.
    """
    settings, nodes = configure(one_node_a_side(), "basic")
    room = 2**36
    roomy = [
        replace(node, limits=replace(node.limits, hbm_tokens=room, beta_tokens=room))
        for node in nodes
    ]
    switches = Switches(token_limit=0, batch_requests=1 if alone else 64)
    made = prepare(one_node_a_side(), settings, roomy, work, switches=switches)
    sim = made.sim
    sim.nodes.read_rate[:] = read_rate * SCALE
    sim.prefill.limit[:] = _HUGE
    sim.prefill.open[1:] = 0
    sim.decode.open[1:] = 0
    machine = sim.machine
    steps = np.arange(machine.weights_s.shape[1]) * max(sharing, 1e-12) / SCALE
    free: dict[str, Any] = {
        "near_s": machine.near_s * 0,
        "far_s": machine.far_s * 0,
        "miss_s": machine.miss_s * 0,
        "own": machine.own * 0,  # a node moves KV-cache at its whole rate
        "linear_s": machine.linear_s * 0 + prefilling / SCALE,
        "attention": np.tile(np.array(AttentionTime(), dtype=float), (len(machine.linear_s), 1)),
        "batch_room": machine.batch_room * 0 + _HUGE,
        "weights_s": np.tile(steps, (len(machine.weights_s), 1)),
        "kv_s": machine.kv_s * 0,
        "flop_s": machine.flop_s * 0,
        "batch_s": 0.0,
        "step_s": 0.0,
        "request_step_s": 0.0,
        "block_tokens": _HUGE,  # no block is ever complete
        "fetch_ns": 2**60,  # run_on_demand fetches
    }
    made.bind(refresh_all)(sim.prefill, sim.decode, sim.nodes)
    return replace(made, sim=sim._replace(machine=machine._replace(**(free | changes))))


@compilable
def run_on_demand(sim: Sim, until_ns: int) -> int:
    """As ``kernel.run``, but leaders fetch after every event, so that nothing waits for a tick."""
    first, last = sim.entries[PREFILL_LEADER_ENTRY], sim.entries[MOVE_ENTRY]
    now = 0
    while sim.results.totals[AGENTS_ENDED] < sim.traffic.first.shape[0] and now < until_ns:
        for entry in range(first, last):
            set_time(sim.world.agenda, entry, now)
        now = kernel_run(sim, until_ns, last - first + 1)
    return now


def go(made: Simulation, until_s: float = 4e9) -> float:
    """Run without waiting for ticks; return the simulated seconds."""
    return float(made.bind(run_on_demand)(made.sim, int(until_s * 1e9))) / 1e9


def column(made: Simulation, name: str) -> np.ndarray:
    """A column of the results in seconds, in the order of ending."""
    return made.rows[:, RESULT_FIELDS.index(name)] / 1e9
