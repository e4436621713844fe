"""Moving KV-cache: a node's resources, its storage NIC, its DRAM buffer.

A resource (DRAM, host link, storage NIC out) serves what it is given in the order of asking, at its
whole rate; of the compute NICs each engine has its GPUs' own. A move is done when every resource that it
passes has done its part. The storage NIC reads one request after the other. A buffer gives room in the
order of asking.
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.placement import add_read
from solvers.simulator.agenda import NEVER, set_time
from solvers.simulator.state import (
    ALLOCATED,
    BUFFER_ENTRY,
    DECODE,
    NEXT_PREFILL,
    NEXT_READ,
    NIC_ENTRY,
    ON_DECODE,
    ON_PREFILL,
    PREFILL,
    PREFILL_ENTRY,
    READ,
    READ_AT,
    READS,
    SECOND,
    TURN,
    Sim,
    append,
    drop,
)


@compilable
def use(
    sim: Sim, phase: int, node: int, engine: int, near: int, far: int, miss: int, now: int
) -> float:
    """Give a node's resources the work of tokens passing in a phase; return when all have done it.

    ``engine``: whose tokens they are, prefill engines first, -1 for none: they pass its own NICs.
    """
    world, machine = sim.world, sim.machine
    end = float(now)
    for column in range(world.busy_ns.shape[1]):
        work_s = (
            near * machine.near_s[phase, node, column]
            + far * machine.far_s[phase, node, column]
            + miss * machine.miss_s[phase, node, column]
        )
        if work_s > 0.0:
            world.work_s[node, column] += work_s
            own = machine.own[node, column]
            if own > 0 and engine >= 0:
                start = max(world.own_busy_ns[engine, column], float(now))
                done = start + work_s * own * SECOND
                world.own_busy_ns[engine, column] = done
            else:
                done = max(world.busy_ns[node, column], float(now)) + work_s * SECOND
                world.busy_ns[node, column] = done
            end = max(end, done)
    return end


@compilable
def use_both(sim: Sim, phase: int, agent: int, miss: int, now: int) -> float:
    """Give the resources of a request's two nodes the work of a phase; return when all have done it."""
    agents = sim.world.agents
    here, there = agents[agent, ON_PREFILL], agents[agent, ON_DECODE]
    first, second = agents[agent, PREFILL], agents[agent, DECODE]
    end = use(sim, phase, sim.prefill.node[first], first, here, there, miss, now)
    other = sim.prefill.tok.shape[0] + second
    return max(end, use(sim, phase, sim.decode.node[second], other, there, here, miss, now))


# ---- buffers -------------------------------------------------------------------------------------


@compilable
def decode_room(sim: Sim, agent: int) -> int:
    """Return the tokens that a request needs in its decode node's buffer: the prompt is handed there."""
    return int(sim.traffic.prompt[sim.world.agents[agent, TURN]])


@compilable
def prefill_room(sim: Sim, agent: int) -> int:
    """Return the tokens that a request needs in its prefill node's buffer: what that node reads."""
    return int(sim.world.agents[agent, ON_PREFILL])


@compilable
def ask_for_room(sim: Sim, agent: int, now: int) -> None:
    """A request has both engines: it needs room for its prompt on the decode node, then for what the
    prefill node reads there. The decode side comes first everywhere, so nobody waits in a circle.
    """
    world = sim.world
    node = sim.decode.node[world.agents[agent, DECODE]]
    tokens = decode_room(sim, agent)
    if world.buffer_queues.length[node] == 0 and world.buffer_free[node] >= tokens:
        world.buffer_free[node] -= tokens
        ask_for_prefill_room(sim, agent, now)
    else:
        append(world.buffer_queues, node, world.agents, NEXT_READ + 1, agent)


@compilable
def ask_for_prefill_room(sim: Sim, agent: int, now: int) -> None:
    """A request has its room on the decode node."""
    world = sim.world
    node = sim.prefill.node[world.agents[agent, PREFILL]]
    tokens = prefill_room(sim, agent)
    if tokens == 0:
        queue_reads(sim, agent, now)
    elif world.buffer_queues.length[node] == 0 and world.buffer_free[node] >= tokens:
        world.buffer_free[node] -= tokens
        queue_reads(sim, agent, now)
    else:
        append(world.buffer_queues, node, world.agents, NEXT_READ, agent)


@compilable
def give_room_back(sim: Sim, node: int, tokens: int, now: int) -> None:
    """Tokens leave a node's buffer."""
    sim.world.buffer_free[node] += tokens
    if sim.world.buffer_queues.length[node] > 0:
        set_time(sim.world.agenda, sim.entries[BUFFER_ENTRY] + node, now)


@compilable
def call_node(sim: Sim, node: int, now: int) -> None:
    """A node's memory has room."""
    room_is_free(sim, node, now)


@compilable
def room_is_free(sim: Sim, node: int, now: int) -> None:
    """Those who wait for a buffer take the room that has become free, in order."""
    world, side = sim.world, sim.nodes.decode[node]
    agents = world.agents
    while world.buffer_queues.length[node] > 0:
        agent = world.buffer_queues.first[node]
        tokens = decode_room(sim, agent) if side else prefill_room(sim, agent)
        if tokens > world.buffer_free[node]:
            break
        drop(world.buffer_queues, node, agents, NEXT_READ + side, 1)
        world.buffer_free[node] -= tokens
        if side:
            ask_for_prefill_room(sim, agent, now)
        else:
            queue_reads(sim, agent, now)
    set_time(world.agenda, sim.entries[BUFFER_ENTRY] + node, NEVER)


# ---- storage reads -------------------------------------------------------------------------------


@compilable
def to_read(sim: Sim, agent: int, side: int) -> int:
    """Return the tokens that a request's prefill (side 0) or decode node reads from storage."""
    return int(sim.world.agents[agent, ON_DECODE if side else ON_PREFILL])


@compilable
def queue_reads(sim: Sim, agent: int, now: int) -> None:
    """A request has all its room: queue its reads."""
    agents, queues = sim.world.agents, sim.world.read_queues
    agents[agent, ALLOCATED] = now
    agents[agent, READS] = 0
    for side in range(2):
        tokens = to_read(sim, agent, side)
        if tokens == 0:
            continue
        if side:
            node = sim.decode.node[agents[agent, DECODE]]
        else:
            node = sim.prefill.node[agents[agent, PREFILL]]
        agents[agent, READS] += 1
        append(queues, node, agents, NEXT_READ + side, agent)
        if queues.length[node] == 1:
            start_read(sim, node, tokens, now)
    if agents[agent, READS] == 0:
        ready(sim, agent, now)


@compilable
def start_read(sim: Sim, node: int, tokens: int, now: int) -> None:
    """The head of a read queue is read as fast as the storage NIC, and what is behind it, can.

    Its way into memory is work for the memory, but the read does not queue for it: in the order of
    asking, a NIC would idle behind one engine's burst of loads. Where memory is what limits, loads wait,
    buffers fill, and reads stop for want of room.
    """
    world, machine = sim.world, sim.machine
    seconds = tokens / sim.nodes.read_rate[node]
    world.work_s[node, world.work_s.shape[1] - 1] += seconds
    use(sim, READ, node, -1, tokens, 0, 0, now)
    for column in range(world.busy_ns.shape[1]):
        seconds = max(seconds, tokens * machine.near_s[READ, node, column])
    set_time(world.agenda, sim.entries[NIC_ENTRY] + node, now + int(seconds * SECOND) + 1)


@compilable
def read_ended(sim: Sim, node: int, now: int) -> None:
    """The head of a read queue is in memory."""
    agents, queues = sim.world.agents, sim.world.read_queues
    side = sim.nodes.decode[node]
    agent = queues.first[node]
    tokens = agents[agent, ON_DECODE] if side else agents[agent, ON_PREFILL]
    drop(queues, node, agents, NEXT_READ + side, 1)
    add_read(sim.prefill, sim.decode, sim.nodes, node, -tokens)
    if queues.length[node] > 0:
        following = queues.first[node]
        tokens = agents[following, ON_DECODE] if side else agents[following, ON_PREFILL]
        start_read(sim, node, tokens, now)
    else:
        set_time(sim.world.agenda, sim.entries[NIC_ENTRY] + node, NEVER)
    agents[agent, READS] -= 1
    if agents[agent, READS] == 0:
        ready(sim, agent, now)


@compilable
def ready(sim: Sim, agent: int, now: int) -> None:
    """All hits are in memory: the prefill engine may take the request up."""
    world = sim.world
    world.agents[agent, READ_AT] = now
    engine = world.agents[agent, PREFILL]
    append(world.ready_queues, engine, world.agents, NEXT_PREFILL, agent)
    entry = sim.entries[PREFILL_ENTRY] + sim.machine.prefill_unit[engine]
    if world.agenda[world.agenda.shape[0] // 2 + entry] == NEVER:  # the unit is idle
        set_time(world.agenda, entry, now)
