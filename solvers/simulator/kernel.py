"""The event kernel: one loop over an agenda, compiled by numba, with the scheduler's rules inside.

A turn: submitted -> both engines chosen (:mod:`fetch`) -> room in the DRAM buffers -> read by one or
both storage NICs (:mod:`transfers`) -> computed in forward batches of its prefill unit, its hits loaded
meanwhile (:mod:`prefill`) -> handed to the decode node and into the decode engine's HBM -> decoded in
step with the engine's other requests (:mod:`decode`) -> the session's next turn.

Events at the same time happen in the order of the agenda's entries (:data:`state.ENTRIES`).
"""

from __future__ import annotations

import numpy as np

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import FloatArray
from dualpath_model.scheduler.index import IntArray
from solvers.simulator.agenda import NEVER, first_entry, heap_pop, heap_push, set_time
from solvers.simulator.decode import admit, block_or_end
from solvers.simulator.fetch import fetch_decode, fetch_prefill
from solvers.simulator.prefill import batch_ended
from solvers.simulator.state import (
    ADMITTED,
    AGENTS_ENDED,
    ALLOCATED,
    BUFFER_ENTRY,
    COMPUTED,
    DECODE,
    DECODE_ENTRY,
    DECODE_LEADER_ENTRY,
    END_NS,
    EVENTS,
    FIRST_TOKEN,
    INSIDE,
    INSIDE_NS,
    INSIDE_SINCE_NS,
    MOVE_ENTRY,
    NEXT_DECODE,
    NEXT_PREFILL,
    NIC_ENTRY,
    ON_DECODE,
    PLACED,
    PREFILL,
    PREFILL_ENTRY,
    PREFILL_LEADER_ENTRY,
    READ_AT,
    SECOND_TOKEN,
    SLEEP_ENTRY,
    SUBMITTED,
    TURN,
    TURNS,
    Sim,
    append,
)
from solvers.simulator.transfers import call_node, read_ended


@compilable
def submit(sim: Sim, agent: int, now: int) -> None:
    """An agent's next turn waits for its engines."""
    world = sim.world
    agents = world.agents
    agents[agent, SUBMITTED] = now
    agents[agent, PREFILL] = -1
    agents[agent, COMPUTED] = 0
    count_inside(sim.results.totals, 1, now)
    call_leaders(sim, now)
    ask_for_engines(sim, agent)


@compilable
def ask_for_engines(sim: Sim, agent: int) -> None:
    """A turn waits for a prefill and for a decode engine."""
    world = sim.world
    agents = world.agents
    agents[agent, DECODE] = -1
    common = world.prefill_queues.first.shape[0] - 1
    append(world.prefill_queues, common, agents, NEXT_PREFILL, agent)
    common = world.decode_queues.first.shape[0] - 1
    append(world.decode_queues, common, agents, NEXT_DECODE, agent)


@compilable
def count_inside(totals: FloatArray, change: int, now: int) -> None:
    """Count turns in flight, and the integral of their number: Little's law is held to it."""
    totals[INSIDE_NS] += totals[INSIDE] * (now - totals[INSIDE_SINCE_NS])
    totals[INSIDE_SINCE_NS] = now
    totals[INSIDE] += change


@compilable
def fetch(sim: Sim, entry: int, now: int) -> None:
    """A leader fetches, or stops until the next turn is submitted because no turn is in flight."""
    entries = sim.entries
    if sim.results.totals[INSIDE] == 0.0:
        set_time(sim.world.agenda, entry, NEVER)
        sim.world.stopped[0] += 1
        return
    set_time(sim.world.agenda, entry, now + sim.machine.fetch_ns)
    if entry < entries[DECODE_LEADER_ENTRY]:
        fetch_prefill(sim, entry - entries[PREFILL_LEADER_ENTRY], now)
    else:
        fetch_decode(sim, entry - entries[DECODE_LEADER_ENTRY], now)


@compilable
def call_leaders(sim: Sim, now: int) -> None:
    """Leaders that have stopped go on at the next of their own times."""
    if sim.world.stopped[0] == 0:
        return
    sim.world.stopped[0] = 0
    every, first = sim.machine.fetch_ns, sim.entries[PREFILL_LEADER_ENTRY]
    for entry in range(first, sim.entries[MOVE_ENTRY]):
        begun = sim.world.leader_ns[entry - first]
        set_time(sim.world.agenda, entry, begun + max(0, (now - begun) // every + 1) * every)


@compilable
def turn_ended(sim: Sim, agent: int, now: int) -> None:
    """A turn has its last token: keep its times; its agent goes on, thinks, or is done."""
    agents, rows, totals = sim.world.agents, sim.results.rows, sim.results.totals
    turn = agents[agent, TURN]
    row = int(totals[TURNS])
    if row < rows.shape[0]:
        rows[row, 0], rows[row, 1] = agent, turn
        rows[row, 2] = agents[agent, PREFILL]
        rows[row, 3] = agents[agent, DECODE]
        rows[row, 4] = agents[agent, ON_DECODE]
        rows[row, 5] = agents[agent, SUBMITTED]
        rows[row, 6] = agents[agent, PLACED]
        rows[row, 7] = agents[agent, ALLOCATED]
        rows[row, 8] = agents[agent, READ_AT]
        rows[row, 9] = agents[agent, FIRST_TOKEN]
        rows[row, 10] = agents[agent, ADMITTED]
        rows[row, 11] = min(agents[agent, SECOND_TOKEN], now)
        rows[row, 12] = now
    totals[TURNS] += 1
    totals[END_NS] = now
    count_inside(totals, -1, now)
    agents[agent, TURN] += 1
    if agents[agent, TURN] == sim.traffic.last[agent]:
        totals[AGENTS_ENDED] += 1
    elif sim.traffic.think_ns[agents[agent, TURN]] > 0:
        sleep(sim, agent, now + sim.traffic.think_ns[agents[agent, TURN]])
    else:
        submit(sim, agent, now)


@compilable
def sleep(sim: Sim, agent: int, until: int) -> None:
    """An agent submits its next turn later."""
    world = sim.world
    heap_push(world.sleep_ns, world.sleepers, world.sleeping[0], until, agent)
    world.sleeping[0] += 1
    set_time(world.agenda, sim.entries[SLEEP_ENTRY], world.sleep_ns[0])


@compilable
def wake(sim: Sim, now: int) -> None:
    """The first sleeper submits its next turn."""
    world = sim.world
    agent = world.sleepers[0]
    heap_pop(world.sleep_ns, world.sleepers, world.sleeping[0])
    world.sleeping[0] -= 1
    later = world.sleep_ns[0] if world.sleeping[0] > 0 else NEVER
    set_time(world.agenda, sim.entries[SLEEP_ENTRY], later)
    submit(sim, agent, now)


@compilable
def run(sim: Sim, until_ns: int, most_events: int) -> int:
    """Run until every agent is done, ``until_ns``, or ``most_events`` more events; return the time.

    Called again, it goes on where it stopped.
    """
    agenda, entries, totals = sim.world.agenda, sim.entries, sim.results.totals
    agents = sim.traffic.first.shape[0]
    now = 0
    for _ in range(most_events):
        if totals[AGENTS_ENDED] >= agents:
            break
        entry = first_entry(agenda)
        now = agenda[agenda.shape[0] // 2 + entry]
        if now > until_ns:
            now = until_ns
            break
        totals[EVENTS] += 1
        if entry < entries[PREFILL_ENTRY]:
            read_ended(sim, entry - entries[NIC_ENTRY], now)
        elif entry < entries[BUFFER_ENTRY]:
            batch_ended(sim, entry - entries[PREFILL_ENTRY], now)
        elif entry < entries[PREFILL_LEADER_ENTRY]:
            call_node(sim, entry - entries[BUFFER_ENTRY], now)
        elif entry < entries[MOVE_ENTRY]:
            fetch(sim, entry, now)
        elif entry < entries[DECODE_ENTRY]:
            admit(sim, entry - entries[MOVE_ENTRY], now)
        elif entry < entries[SLEEP_ENTRY]:
            ended = block_or_end(sim, entry - entries[DECODE_ENTRY], now)
            if ended >= 0:
                turn_ended(sim, ended, now)
        else:
            wake(sim, now)
    return now


def first_entries(
    nodes: int,
    prefill_units: int,
    prefill_groups: int,
    decode_groups: int,
    decode_units: int,
) -> IntArray:
    """Return the first entry of each kind in the agenda, and the number of all, (9,)."""
    counts = (nodes, prefill_units, nodes, prefill_groups, decode_groups, nodes, decode_units, 1)
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
