"""The event kernel: one function over arrays, compiled by numba, with the scheduler's own rules inside.

A turn: submitted -> both engines chosen (fetches of the groups' leaders) -> read by one or both storage
NICs, first in, first out -> computed in forward batches of its prefill unit, whose engines all wait for
the slowest, with its hits loaded layer by layer meanwhile -> handed to the decode node and into the
decode engine's HBM -> decoded in step with the engine's other requests -> the session's next turn.

Times are whole nanoseconds. Events at the same time happen in the order of the agenda's entries: storage
NICs, prefill units, prefill leaders, decode leaders, transfer queues, decode engines, sleeping agents.
A session has one turn at a time, so a request is named by its agent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import Engines, FloatArray, Nodes
from dualpath_model.scheduler.attention import AttentionTime, chunk_seconds
from dualpath_model.scheduler.index import IntArray
from dualpath_model.scheduler.packing import pack
from dualpath_model.scheduler.placement import (
    add_decode,
    add_prefill,
    add_read,
    add_transfers,
    designate_decode,
    designate_prefill,
    place_decode,
    place_prefill,
)
from solvers.simulator.agenda import NEVER, first_entry, heap_pop, heap_push, set_time

_BATCH = 64  # requests of an engine that a forward batch looks at
_SECOND = 1e9
READ, LOAD, MOVE = range(3)  # rows of ``Machine.near_s``: storage read, prefill load, the rest


class Machine(NamedTuple):
    """The hardware and the LLM on it: N nodes, K resources of a node, U prefill units, E engines."""

    near_s: FloatArray
    """Seconds a hit token takes on each resource of a node that reads it, (3, N, K)."""
    far_s: FloatArray
    """The same where the other side reads it, (3, N, K)."""
    miss_s: FloatArray
    """Seconds a miss token takes, (3, N, K)."""
    unit_first: IntArray
    """First prefill engine of each unit, and their number, (U + 1,)."""
    linear_s: FloatArray
    """Seconds that a miss token's matrix products take on a prefill engine, (Ep,)."""
    step_s: FloatArray
    """Seconds of a decode step of n requests without their KV-cache, (kinds, n)."""
    step_kind: IntArray
    """Row of ``step_s``, (Ed,)."""
    kv_s: FloatArray
    """Seconds that reading a token of context takes in a decode step, (Ed,)."""
    batch_s: float
    """Seconds of a forward batch that do not depend on its tokens."""
    quota_s: float
    token_limit: int
    layerwise: bool
    """Loads overlap with computing; otherwise they come first."""
    fetch_ns: int
    """Between two fetches of a leader."""
    z_factor: float
    block_tokens: int
    attention: AttentionTime


class Traffic(NamedTuple):
    """The sessions: columns of turns, and what each agent runs. A agents, T turns."""

    prompt: IntArray
    """(T,)"""
    hit: IntArray
    """(T,)"""
    output: IntArray
    """(T,)"""
    think_ns: IntArray
    """Before a turn, (T,)."""
    first: IntArray
    """First turn of each agent, (A,)."""
    last: IntArray
    """One past its last, (A,)."""
    start_ns: IntArray
    """When each agent starts, (A,)."""


AGENT_FIELDS = (
    "turn",
    "prefill",
    "decode",
    "unit",
    "reads",  # still to do
    "on_prefill",  # hit tokens that the prefill node reads
    "on_decode",
    "computed",  # miss tokens
    "chunk",  # tokens in the forward batch that runs
    "submitted",  # times from here on, ns
    "placed",
    "read",
    "first_token",
    "move_end",
    "admitted",
    "next_prefill",  # in the queue for a prefill engine, then among the engine's ready ones
    "next_decode",  # in the queue for a decode engine, then in the decode node's transfer queue
    "next_read",  # in the read queue of the prefill node
    "next_read_decode",  # in that of the decode node
)
"""Columns of the table of agents: what each one's turn in flight is doing. One row is three cache
lines; a column each would be one line a field.
"""
(
    TURN,
    PREFILL,
    DECODE,
    UNIT,
    READS,
    ON_PREFILL,
    ON_DECODE,
    COMPUTED,
    CHUNK,
    SUBMITTED,
    PLACED,
    READ_AT,
    FIRST_TOKEN,
    MOVE_END,
    ADMITTED,
    NEXT_PREFILL,
    NEXT_DECODE,
    NEXT_READ,
    NEXT_READ_DECODE,
) = range(19)


class Queues(NamedTuple):
    """Linked lists of agents: first, last and length of each; an empty one has length 0."""

    first: IntArray
    last: IntArray
    length: IntArray


RESULT_FIELDS = (
    "agent",
    "turn",
    "submitted",
    "placed",
    "read",
    "first_token",
    "admitted",
    "ended",
)
"""Columns of the results; times in ns."""


class Results(NamedTuple):
    """What is kept: a row for each turn that ended, in the order of ending, and sums over the run."""

    rows: IntArray
    """See RESULT_FIELDS, (R, 8); turns beyond R are counted and not kept."""
    totals: FloatArray
    """See TOTALS."""


TOTALS = (
    "turns",
    "events",
    "end_ns",
    "attention_max_s",
    "attention_mean_s",
    "prefill_busy_s",
    "decode_busy_s",
    "decode_tokens",
    "batches",
    "agents_ended",
)
(
    TURNS,
    EVENTS,
    END_NS,
    ATTENTION_MAX_S,
    ATTENTION_MEAN_S,
    PREFILL_BUSY_S,
    DECODE_BUSY_S,
    DECODE_TOKENS,
    BATCHES,
    AGENTS_ENDED,
) = range(10)


class World(NamedTuple):
    """Everything that changes while the kernel runs."""

    agents: IntArray
    """See AGENT_FIELDS, (A, 19)."""
    prefill_queues: Queues
    """By prefill group; the last one is the common queue."""
    decode_queues: Queues
    """By decode group; the last one is the common queue."""
    read_queues: Queues
    """By node."""
    ready_queues: Queues
    """By prefill engine."""
    move_queues: Queues
    """By decode node (its number among all nodes)."""
    in_batch: IntArray
    """Requests of each prefill engine in the batch that runs, (Ep,)."""
    busy_ns: FloatArray
    """When each resource of a node has done what it has been given, (N, K)."""
    work_s: FloatArray
    """Seconds of work that each resource has been given, (N, K + 1); the last column: storage NIC."""
    progress: FloatArray
    """Steps that each decode engine has made, (Ed,)."""
    since_ns: IntArray
    """When ``progress`` was brought up to date, (Ed,)."""
    running: IntArray
    """Requests in each decode engine, (Ed,)."""
    context: FloatArray
    """Tokens of context of the running requests, (Ed,)."""
    end_steps: FloatArray
    """Heap of each decode engine: steps at which a request ends, (Ed, B)."""
    end_agents: IntArray
    """Whose it is, (Ed, B)."""
    agenda: IntArray
    sleep_ns: IntArray
    sleepers: IntArray
    sleeping: IntArray
    """Length of the heap of sleepers, (1,)."""
    offered: IntArray
    """Scratch: prompt, hit, hold, prefill engine and agent of requests offered to a group, (5, B)."""
    placed: IntArray
    """Scratch: where they went, (B, 7)."""


# ---- linked lists --------------------------------------------------------------------------------


@compilable
def append(queues: Queues, queue: int, agents: IntArray, link: int, agent: int) -> None:
    """Put an agent at the end of a list that is linked by the column ``link``."""
    if queues.length[queue] == 0:
        queues.first[queue] = agent
    else:
        agents[queues.last[queue], link] = agent
    queues.last[queue] = agent
    queues.length[queue] += 1


@compilable
def drop(queues: Queues, queue: int, agents: IntArray, link: int, count: int) -> None:
    """Take the first ``count`` agents off a list."""
    for _ in range(count):
        queues.first[queue] = agents[queues.first[queue], link]
    queues.length[queue] -= count


# ---- entries of the agenda -----------------------------------------------------------------------


@compilable
def first_entries(machine: Machine, prefill: Engines, decode: Engines, nodes: Nodes) -> IntArray:
    """Return the first entry of each kind: NICs, units, prefill leaders, decode leaders, transfer
    queues, decode engines, sleepers, and the number of all.
    """
    counts = np.zeros(8, dtype=np.int64)
    counts[1] = nodes.read_q.shape[0]
    counts[2] = machine.unit_first.shape[0] - 1
    counts[3] = prefill.group_tok.shape[0]
    counts[4] = decode.group_tok.shape[0]
    counts[5] = nodes.read_q.shape[0]
    counts[6] = decode.tok.shape[0]
    counts[7] = 1
    return np.cumsum(counts)


@compilable
def use(
    world: World,
    machine: Machine,
    phase: int,
    node: int,
    near: int,
    far: int,
    miss: int,
    now: int,
) -> float:
    """Give a node's resources the work of tokens passing in a phase; return when all have done it.

    Each resource serves what it is given in the order of asking, at its whole rate.
    """
    end = float(now)
    for column in range(world.busy_ns.shape[1]):
        work_s = (
            near * machine.near_s[phase, node, column]
            + far * machine.far_s[phase, node, column]
            + miss * machine.miss_s[phase, node, column]
        )
        if work_s > 0.0:
            world.work_s[node, column] += work_s
            start = max(world.busy_ns[node, column], float(now))
            world.busy_ns[node, column] = start + work_s * _SECOND
            end = max(end, world.busy_ns[node, column])
    return end


@compilable
def use_both(
    world: World,
    machine: Machine,
    prefill: Engines,
    decode: Engines,
    phase: int,
    agent: int,
    miss: int,
    now: int,
) -> float:
    """Give the resources of a request's two nodes the work of a phase; return when all have done it."""
    agents = world.agents
    here, there = agents[agent, ON_PREFILL], agents[agent, ON_DECODE]
    first = prefill.node[agents[agent, PREFILL]]
    second = decode.node[agents[agent, DECODE]]
    end = use(world, machine, phase, first, here, there, miss, now)
    return max(end, use(world, machine, phase, second, there, here, miss, now))


# ---- turns ---------------------------------------------------------------------------------------


@compilable
def submit(world: World, agent: int, now: int) -> None:
    """An agent's next turn waits for its engines."""
    agents = world.agents
    agents[agent, SUBMITTED] = now
    agents[agent, PREFILL] = -1
    agents[agent, DECODE] = -1
    agents[agent, COMPUTED] = 0
    common = world.prefill_queues.first.shape[0] - 1
    append(world.prefill_queues, common, agents, NEXT_PREFILL, agent)
    common = world.decode_queues.first.shape[0] - 1
    append(world.decode_queues, common, agents, NEXT_DECODE, agent)


@compilable
def order(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    entries: IntArray,
    totals: FloatArray,
    agent: int,
    on_prefill: int,
    on_decode: int,
    now: int,
) -> None:
    """Both engines are known: queue the reads."""
    agents = world.agents
    agents[agent, PLACED] = now
    agents[agent, ON_PREFILL], agents[agent, ON_DECODE] = on_prefill, on_decode
    agents[agent, READS] = 0
    for side in range(2):
        tokens = on_decode if side else on_prefill
        if tokens == 0:
            continue
        node = decode.node[agents[agent, DECODE]] if side else prefill.node[agents[agent, PREFILL]]
        agents[agent, READS] += 1
        append(world.read_queues, node, agents, NEXT_READ + side, agent)
        if world.read_queues.length[node] == 1:
            start_read(world, machine, nodes, entries, node, tokens, now)
    if agents[agent, READS] == 0:
        ready(world, machine, traffic, prefill, decode, entries, totals, agent, now)


@compilable
def start_read(
    world: World,
    machine: Machine,
    nodes: Nodes,
    entries: IntArray,
    node: int,
    tokens: int,
    now: int,
) -> None:
    """The head of a read queue is read."""
    seconds = tokens / nodes.read_rate[node]
    world.work_s[node, world.work_s.shape[1] - 1] += seconds
    use(world, machine, READ, node, tokens, 0, 0, now)
    set_time(world.agenda, entries[0] + node, now + int(seconds * _SECOND) + 1)


@compilable
def read_ended(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    entries: IntArray,
    totals: FloatArray,
    node: int,
    now: int,
) -> None:
    """The head of a read queue is in memory."""
    agents = world.agents
    side = nodes.decode[node]
    agent = world.read_queues.first[node]
    tokens = agents[agent, ON_DECODE] if side else agents[agent, ON_PREFILL]
    drop(world.read_queues, node, agents, NEXT_READ + side, 1)
    add_read(prefill, decode, nodes, node, -tokens)
    if world.read_queues.length[node] > 0:
        following = world.read_queues.first[node]
        tokens = agents[following, ON_DECODE] if side else agents[following, ON_PREFILL]
        start_read(world, machine, nodes, entries, node, tokens, now)
    else:
        set_time(world.agenda, entries[0] + node, NEVER)
    agents[agent, READS] -= 1
    if agents[agent, READS] == 0:
        ready(world, machine, traffic, prefill, decode, entries, totals, agent, now)


@compilable
def ready(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    entries: IntArray,
    totals: FloatArray,
    agent: int,
    now: int,
) -> None:
    """All hits are in memory: the prefill engine may take the request up."""
    agents = world.agents
    agents[agent, READ_AT] = now
    append(world.ready_queues, agents[agent, PREFILL], agents, NEXT_PREFILL, agent)
    unit = agents[agent, UNIT]
    entry = entries[1] + unit
    if world.agenda[world.agenda.shape[0] // 2 + entry] == NEVER:  # it is idle
        start_batch(world, machine, traffic, prefill, decode, entries, totals, unit, now)


# ---- prefill -------------------------------------------------------------------------------------


@compilable
def start_batch(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    entries: IntArray,
    totals: FloatArray,
    unit: int,
    now: int,
) -> None:
    """One forward batch on every engine of a unit: the slowest says when it ends."""
    agents = world.agents
    cached = np.empty(_BATCH, dtype=np.int64)
    left = np.empty(_BATCH, dtype=np.int64)
    compute_s, attention_max, attention_sum, everyone = 0.0, 0.0, 0.0, True
    loaded_ns = float(now)
    first, last = machine.unit_first[unit], machine.unit_first[unit + 1]
    for engine in range(first, last):
        count = 0
        head = world.ready_queues.first[engine]
        agent = head
        while count < min(_BATCH, world.ready_queues.length[engine]):
            turn = agents[agent, TURN]
            done = agents[agent, COMPUTED]
            cached[count] = traffic.hit[turn] + done
            left[count] = traffic.prompt[turn] - traffic.hit[turn] - done
            agent = agents[agent, NEXT_PREFILL]
            count += 1
        whole, part = pack(
            machine.attention, cached[:count], left[:count], machine.quota_s, machine.token_limit
        )
        taken = whole + (1 if part > 0 else 0)
        if taken == 0 and count > 0:  # one block of the head alone, so that it advances
            taken, part = 1, min(machine.block_tokens, left[0])
        tokens = 0
        attention_s = machine.attention.fixed_s if taken > 0 else 0.0
        agent = head
        for i in range(taken):
            size = left[i] if i < whole else part
            agents[agent, CHUNK] = size
            tokens += size
            attention_s += chunk_seconds(machine.attention, cached[i], size)
            if agents[agent, COMPUTED] == 0:  # its hits come with its first chunk
                end = use_both(world, machine, prefill, decode, LOAD, agent, 0, now)
                loaded_ns = max(loaded_ns, end)
            agent = agents[agent, NEXT_PREFILL]
        world.in_batch[engine] = taken
        compute_s = max(compute_s, attention_s + tokens * machine.linear_s[engine])
        attention_max = max(attention_max, attention_s)
        attention_sum += attention_s
        everyone = everyone and taken > 0
    if everyone:
        totals[ATTENTION_MAX_S] += attention_max
        totals[ATTENTION_MEAN_S] += attention_sum / (last - first)
    compute_ns = (compute_s + machine.batch_s) * _SECOND
    end = max(now + compute_ns, loaded_ns) if machine.layerwise else loaded_ns + compute_ns
    totals[PREFILL_BUSY_S] += (end - now) / _SECOND
    totals[BATCHES] += 1
    set_time(world.agenda, entries[1] + unit, int(end) + 1)


@compilable
def batch_ended(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    entries: IntArray,
    totals: FloatArray,
    unit: int,
    now: int,
) -> None:
    """A forward batch is done: requests with all their misses computed go on to their decode node."""
    agents = world.agents
    waiting = 0
    for engine in range(machine.unit_first[unit], machine.unit_first[unit + 1]):
        agent = world.ready_queues.first[engine]
        finished = 0
        for _ in range(world.in_batch[engine]):
            following = agents[agent, NEXT_PREFILL]
            agents[agent, COMPUTED] += agents[agent, CHUNK]
            turn = agents[agent, TURN]
            if agents[agent, COMPUTED] == traffic.prompt[turn] - traffic.hit[turn]:
                finished += 1
                drop(world.ready_queues, engine, agents, NEXT_PREFILL, 1)
                first_token(world, machine, traffic, prefill, decode, nodes, entries, agent, now)
            agent = following
        world.in_batch[engine] = 0
        waiting += world.ready_queues.length[engine]
    if waiting > 0:
        start_batch(world, machine, traffic, prefill, decode, entries, totals, unit, now)
    else:
        set_time(world.agenda, entries[1] + unit, NEVER)


@compilable
def first_token(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    entries: IntArray,
    agent: int,
    now: int,
) -> None:
    """Prefill is done: the KV-cache moves to the decode node and into the decode engine's HBM."""
    agents = world.agents
    turn = agents[agent, TURN]
    prompt, miss = traffic.prompt[turn], traffic.prompt[turn] - traffic.hit[turn]
    agents[agent, FIRST_TOKEN] = now
    add_prefill(prefill, nodes, agents[agent, PREFILL], -1, -prompt)
    node, other = prefill.node[agents[agent, PREFILL]], decode.node[agents[agent, DECODE]]
    here, there = agents[agent, ON_PREFILL], agents[agent, ON_DECODE]
    add_transfers(prefill, decode, nodes, node, other, here, there, miss, -1)
    end = int(use_both(world, machine, prefill, decode, MOVE, agent, miss, now)) + 1
    if world.move_queues.length[other] > 0:  # in the order of asking
        end = max(end, world.agents[world.move_queues.last[other], MOVE_END])
    world.agents[agent, MOVE_END] = end
    append(world.move_queues, other, agents, NEXT_DECODE, agent)
    if world.move_queues.length[other] == 1:
        set_time(world.agenda, entries[4] + other, end)


# ---- decode --------------------------------------------------------------------------------------


@compilable
def step_seconds(world: World, machine: Machine, engine: int) -> float:
    """Return the seconds of a decode step of what runs on an engine."""
    kind = machine.step_kind[engine]
    count = min(world.running[engine], machine.step_s.shape[1] - 1)
    return float(machine.step_s[kind, count] + world.context[engine] * machine.kv_s[engine])


@compilable
def advance(world: World, machine: Machine, totals: FloatArray, engine: int, now: int) -> None:
    """Bring an engine's progress up to date."""
    if world.running[engine] > 0:
        seconds = (now - world.since_ns[engine]) / _SECOND
        steps = seconds / step_seconds(world, machine, engine)
        world.progress[engine] += steps
        totals[DECODE_BUSY_S] += seconds
        totals[DECODE_TOKENS] += steps * world.running[engine]
    else:
        world.progress[engine] = 0.0  # so that steps stay exact over any time
    world.since_ns[engine] = now


@compilable
def next_end(world: World, machine: Machine, entries: IntArray, engine: int, now: int) -> None:
    """Say when the first of an engine's requests ends, if nothing changes before."""
    entry = entries[5] + engine
    if world.running[engine] == 0:
        set_time(world.agenda, entry, NEVER)
        return
    steps = max(0.0, world.end_steps[engine, 0] - world.progress[engine])
    seconds = steps * step_seconds(world, machine, engine)
    set_time(world.agenda, entry, now + int(seconds * _SECOND) + 1)


@compilable
def admit(
    world: World,
    machine: Machine,
    traffic: Traffic,
    decode: Engines,
    entries: IntArray,
    totals: FloatArray,
    node: int,
    now: int,
) -> None:
    """The head of a transfer queue is in HBM: its engine decodes it from now on."""
    agents = world.agents
    agent = world.move_queues.first[node]
    drop(world.move_queues, node, agents, NEXT_DECODE, 1)
    entry = entries[4] + node
    if world.move_queues.length[node] > 0:
        set_time(world.agenda, entry, world.agents[world.move_queues.first[node], MOVE_END])
    else:
        set_time(world.agenda, entry, NEVER)
    agents[agent, ADMITTED] = now
    engine = agents[agent, DECODE]
    advance(world, machine, totals, engine, now)
    turn = agents[agent, TURN]
    steps = max(1, traffic.output[turn] - 1)  # the first token came with prefill
    heap_push(
        world.end_steps[engine],
        world.end_agents[engine],
        world.running[engine],
        world.progress[engine] + steps,
        agent,
    )
    world.running[engine] += 1
    world.context[engine] += traffic.prompt[turn] + 0.5 * traffic.output[turn]
    next_end(world, machine, entries, engine, now)


@compilable
def last_token(
    world: World,
    machine: Machine,
    traffic: Traffic,
    decode: Engines,
    nodes: Nodes,
    results: Results,
    entries: IntArray,
    engine: int,
    now: int,
) -> None:
    """A request has its last token; its agent goes on, thinks, or is done."""
    agents, totals = world.agents, results.totals
    advance(world, machine, totals, engine, now)
    agent = world.end_agents[engine, 0]
    heap_pop(world.end_steps[engine], world.end_agents[engine], world.running[engine])
    world.running[engine] -= 1
    turn = agents[agent, TURN]
    prompt, output = traffic.prompt[turn], traffic.output[turn]
    world.context[engine] -= prompt + 0.5 * output
    add_decode(decode, nodes, engine, -1, -prompt, -(prompt + output))
    next_end(world, machine, entries, engine, now)
    row = int(totals[TURNS])
    if row < results.rows.shape[0]:
        results.rows[row, 0], results.rows[row, 1] = agent, turn
        results.rows[row, 2] = agents[agent, SUBMITTED]
        results.rows[row, 3] = agents[agent, PLACED]
        results.rows[row, 4] = agents[agent, READ_AT]
        results.rows[row, 5] = agents[agent, FIRST_TOKEN]
        results.rows[row, 6] = agents[agent, ADMITTED]
        results.rows[row, 7] = now
    totals[TURNS] += 1
    totals[END_NS] = now
    agents[agent, TURN] += 1
    if agents[agent, TURN] == traffic.last[agent]:
        totals[AGENTS_ENDED] += 1
    elif traffic.think_ns[agents[agent, TURN]] > 0:
        sleep(world, entries, agent, now + traffic.think_ns[agents[agent, TURN]])
    else:
        submit(world, agent, now)


@compilable
def sleep(world: World, entries: IntArray, agent: int, until: int) -> None:
    """An agent submits its next turn later."""
    heap_push(world.sleep_ns, world.sleepers, world.sleeping[0], until, agent)
    world.sleeping[0] += 1
    set_time(world.agenda, entries[6], world.sleep_ns[0])


@compilable
def wake(world: World, entries: IntArray, now: int) -> None:
    """The first sleeper submits its next turn."""
    agent = world.sleepers[0]
    heap_pop(world.sleep_ns, world.sleepers, world.sleeping[0])
    world.sleeping[0] -= 1
    later = world.sleep_ns[0] if world.sleeping[0] > 0 else NEVER
    set_time(world.agenda, entries[6], later)
    submit(world, agent, now)


# ---- fetches -------------------------------------------------------------------------------------


@compilable
def fetch_prefill(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    entries: IntArray,
    totals: FloatArray,
    unit_of: IntArray,
    group: int,
    private: bool,
    now: int,
) -> None:
    """The leader of a prefill group fetches. ``private``: the policy queues requests by group."""
    agents, queues = world.agents, world.prefill_queues
    common = queues.first.shape[0] - 1
    queue = common
    if private:
        queue = group
        while queues.length[common] > 0:
            agent = queues.first[common]
            chosen = designate_prefill(prefill, traffic.prompt[agents[agent, TURN]])
            if chosen < 0:
                break
            drop(queues, common, agents, NEXT_PREFILL, 1)
            append(queues, chosen, agents, NEXT_PREFILL, agent)
    column = np.empty((3, 1), dtype=np.int64)
    placed = np.empty((1, 6), dtype=np.int64)
    while queues.length[queue] > 0:
        agent = queues.first[queue]
        turn = agents[agent, TURN]
        column[0, 0], column[1, 0] = traffic.prompt[turn], traffic.hit[turn]
        column[2, 0] = agents[agent, DECODE]
        count = place_prefill(
            prefill, decode, nodes, group, private, column[0], column[1], column[2], placed
        )
        if count == 0:
            break
        drop(queues, queue, agents, NEXT_PREFILL, 1)
        agents[agent, PREFILL] = placed[0, 0]
        agents[agent, UNIT] = unit_of[placed[0, 0]]
        if placed[0, 2] >= 0:
            order(
                world,
                machine,
                traffic,
                prefill,
                decode,
                nodes,
                entries,
                totals,
                agent,
                placed[0, 2],
                placed[0, 3],
                now,
            )


@compilable
def fetch_decode(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    entries: IntArray,
    totals: FloatArray,
    group: int,
    now: int,
) -> None:
    """The leader of a decode group fetches: phase 1 for all that wait, phase 2 in the group."""
    agents, queues = world.agents, world.decode_queues
    common = queues.first.shape[0] - 1
    while queues.length[common] > 0:
        agent = queues.first[common]
        turn = agents[agent, TURN]
        prompt = traffic.prompt[turn]
        chosen = designate_decode(decode, prompt, prompt + traffic.output[turn])
        if chosen < 0:
            break
        drop(queues, common, agents, NEXT_DECODE, 1)
        append(queues, chosen, agents, NEXT_DECODE, agent)
    offered, placed = world.offered, world.placed
    room, count = decode.group_free[group], 0
    if queues.length[group] == 0:
        return
    agent = queues.first[group]
    while count < min(offered.shape[1], queues.length[group]):
        turn = agents[agent, TURN]
        prompt, output = traffic.prompt[turn], traffic.output[turn]
        room -= prompt + output
        if room < 0:
            break
        offered[4, count] = agent
        offered[0, count], offered[1, count] = prompt, traffic.hit[turn]
        offered[2, count], offered[3, count] = prompt + output, agents[agent, PREFILL]
        agent = agents[agent, NEXT_DECODE]
        count += 1
    done, _ = place_decode(
        prefill,
        decode,
        nodes,
        group,
        machine.z_factor,
        offered[0, :count],
        offered[1, :count],
        offered[2, :count],
        offered[3, :count],
        placed,
    )
    drop(queues, group, agents, NEXT_DECODE, done)
    for i in range(done):
        agents[offered[4, i], DECODE] = placed[i, 0]
        if placed[i, 2] >= 0:
            order(
                world,
                machine,
                traffic,
                prefill,
                decode,
                nodes,
                entries,
                totals,
                offered[4, i],
                placed[i, 2],
                placed[i, 3],
                now,
            )


# ---- the loop ------------------------------------------------------------------------------------


@compilable
def run(
    world: World,
    machine: Machine,
    traffic: Traffic,
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    results: Results,
    unit_of: IntArray,
    private: bool,
    until_ns: int,
    most_events: int,
) -> int:
    """Run until every agent is done, ``until_ns``, or ``most_events`` more events; return the time.

    Called again, it goes on where it stopped.
    """
    entries = first_entries(machine, prefill, decode, nodes)
    totals = results.totals
    agents = traffic.first.shape[0]
    now = 0
    for _ in range(most_events):
        if totals[AGENTS_ENDED] >= agents:
            break
        entry = first_entry(world.agenda)
        now = world.agenda[world.agenda.shape[0] // 2 + entry]
        if now > until_ns:
            now = until_ns
            break
        totals[EVENTS] += 1
        if entry < entries[1]:
            read_ended(world, machine, traffic, prefill, decode, nodes, entries, totals, entry, now)
        elif entry < entries[2]:
            unit = entry - entries[1]
            batch_ended(world, machine, traffic, prefill, decode, nodes, entries, totals, unit, now)
        elif entry < entries[3]:
            group = entry - entries[2]
            set_time(world.agenda, entry, now + machine.fetch_ns)
            fetch_prefill(
                world,
                machine,
                traffic,
                prefill,
                decode,
                nodes,
                entries,
                totals,
                unit_of,
                group,
                private,
                now,
            )
        elif entry < entries[4]:
            group = entry - entries[3]
            set_time(world.agenda, entry, now + machine.fetch_ns)
            fetch_decode(
                world, machine, traffic, prefill, decode, nodes, entries, totals, group, now
            )
        elif entry < entries[5]:
            admit(world, machine, traffic, decode, entries, totals, entry - entries[4], now)
        elif entry < entries[6]:
            engine = entry - entries[5]
            last_token(world, machine, traffic, decode, nodes, results, entries, engine, now)
        else:
            wake(world, entries, now)
    return now
