"""Decode units: engines that step together. A unit goes from one event to the next in one jump.

An event is a request that joins, one that completes a block of KV-cache, or one that ends; between two
of them a step takes the same time, that of the slowest engine. Requests join at the next whole step.
"""

from __future__ import annotations

import math

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.placement import add_decode
from solvers.simulator.agenda import NEVER, heap_pop, heap_push, set_time
from solvers.simulator.state import (
    ADMITTED,
    DECODE,
    DECODE_BUSY_S,
    DECODE_ENTRY,
    DECODE_TOKENS,
    GENERATE,
    GENERATED,
    MOVE_END,
    MOVE_ENTRY,
    NEXT_DECODE,
    SECOND,
    SECOND_TOKEN,
    TURN,
    WRITTEN_TOKENS,
    Sim,
    drop,
)
from solvers.simulator.transfers import decode_room, give_room_back, use

_SAME_STEP = 1e-6  # of a step: rounding of times to nanoseconds


@compilable
def engine_seconds(sim: Sim, engine: int) -> float:
    """Return the seconds of a decode step of what runs on an engine: overhead and roofline."""
    machine, count = sim.machine, sim.world.running[engine]
    if count == 0:
        return 0.0
    read_s = machine.weights_s[machine.step_kind[engine], count]
    read_s += sim.world.context[engine] * machine.kv_s[engine]
    roofline_s = max(read_s, count * machine.flop_s[engine])
    return float(machine.step_s + count * machine.request_step_s + roofline_s)


@compilable
def reckon(sim: Sim, unit: int, engine: int) -> None:
    """Bring a unit's step time up to date after a change of one of its engines."""
    world = sim.world
    before, after = world.engine_step_s[engine], engine_seconds(sim, engine)
    world.engine_step_s[engine] = after
    if after >= world.slowest_s[unit]:
        world.slowest_s[unit] = after
    elif before == world.slowest_s[unit]:
        slowest = 0.0
        for other in range(sim.machine.decode_first[unit], sim.machine.decode_first[unit + 1]):
            slowest = max(slowest, world.engine_step_s[other])
        world.slowest_s[unit] = slowest


@compilable
def advance(sim: Sim, unit: int, now: int) -> None:
    """Bring a unit's progress up to date."""
    world, totals = sim.world, sim.results.totals
    if world.decoding[unit] > 0:
        seconds = (now - world.since_ns[unit]) / SECOND
        steps = seconds / world.slowest_s[unit]
        world.progress[unit] += steps
        totals[DECODE_BUSY_S] += seconds
        totals[DECODE_TOKENS] += steps * world.decoding[unit]
    else:
        world.progress[unit] = 0.0  # so that steps stay exact over any time
    world.since_ns[unit] = now


@compilable
def next_event(sim: Sim, unit: int, now: int) -> None:
    """Say when the first of a unit's requests ends or completes a block, if nothing changes before."""
    world = sim.world
    entry = sim.entries[DECODE_ENTRY] + unit
    if world.decoding[unit] == 0:
        set_time(world.agenda, entry, NEVER)
        return
    steps = max(0.0, world.end_steps[unit, 0] - world.progress[unit])
    set_time(world.agenda, entry, now + int(steps * world.slowest_s[unit] * SECOND) + 1)


@compilable
def push(sim: Sim, unit: int, agent: int, from_step: float, generated: int) -> None:
    """A request with ``generated`` tokens goes on to the end of its block, or to its own."""
    world, turn = sim.world, sim.world.agents[agent, TURN]
    block = sim.machine.block_tokens
    steps = block - (sim.traffic.prompt[turn] + generated) % block
    steps = max(1, min(steps, sim.traffic.output[turn] - generated))
    world.agents[agent, GENERATED] = generated + steps
    heap_push(
        world.end_steps[unit],
        world.end_agents[unit],
        world.decoding[unit],
        from_step + steps,
        agent,
    )
    world.decoding[unit] += 1


@compilable
def admit(sim: Sim, node: int, now: int) -> None:
    """The head of a transfer queue is in HBM: its engine decodes it from the next step on."""
    world = sim.world
    agents, queues = world.agents, world.move_queues
    agent = queues.first[node]
    drop(queues, node, agents, NEXT_DECODE, 1)
    later = agents[queues.first[node], MOVE_END] if queues.length[node] > 0 else NEVER
    set_time(world.agenda, sim.entries[MOVE_ENTRY] + node, later)
    engine, prompt = agents[agent, DECODE], sim.traffic.prompt[agents[agent, TURN]]
    room = decode_room(sim, agent)
    if room > 0:
        give_room_back(sim, node, room, now)
    arrived(sim, agent, now)
    agents[agent, ADMITTED] = now
    unit = sim.machine.decode_unit[engine]
    advance(sim, unit, now)
    begins = math.ceil(world.progress[unit] - _SAME_STEP)
    push(sim, unit, agent, begins, 1)  # the first token came with prefill
    world.running[engine] += 1
    world.context[engine] += prompt
    reckon(sim, unit, engine)
    steps = begins + 1.0 - world.progress[unit]
    agents[agent, SECOND_TOKEN] = now + int(steps * world.slowest_s[unit] * SECOND)
    next_event(sim, unit, now)


@compilable
def arrived(sim: Sim, agent: int, now: int) -> None:
    """A request's KV-cache has left the prefill node; nothing waits for that."""


@compilable
def leave(sim: Sim, agent: int) -> None:
    """A request that has its last token leaves its decode engine, and its KV-cache with it."""
    engine, turn = sim.world.agents[agent, DECODE], sim.world.agents[agent, TURN]
    prompt, output = sim.traffic.prompt[turn], sim.traffic.output[turn]
    add_decode(sim.decode, sim.nodes, engine, -1, -prompt, -(prompt + output))


@compilable
def block_or_end(sim: Sim, unit: int, now: int) -> int:
    """A unit's next request has completed a block, which is stored, or has its last token; return the
    agent that has ended (-1: none).
    """
    world, traffic = sim.world, sim.traffic
    advance(sim, unit, now)
    agent, step = world.end_agents[unit, 0], world.end_steps[unit, 0]
    heap_pop(world.end_steps[unit], world.end_agents[unit], world.decoding[unit])
    world.decoding[unit] -= 1
    turn, engine = world.agents[agent, TURN], world.agents[agent, DECODE]
    prompt, output = traffic.prompt[turn], traffic.output[turn]
    generated, block = world.agents[agent, GENERATED], sim.machine.block_tokens
    if (prompt + generated) % block == 0 and generated <= output:
        number = sim.prefill.tok.shape[0] + engine
        use(sim, GENERATE, sim.decode.node[engine], number, 0, 0, block, now)
        sim.results.totals[WRITTEN_TOKENS] += block
    if generated < output:
        world.context[engine] += block
        push(sim, unit, agent, step, generated)
        agent = -1
    else:
        blocks = (prompt + generated - 1) // block - (prompt + 1) // block
        world.running[engine] -= 1
        world.context[engine] -= prompt + blocks * block
        if world.running[engine] == 0:
            world.context[engine] = 0.0
        leave(sim, agent)
    reckon(sim, unit, engine)
    next_event(sim, unit, now)
    return int(agent)
