"""Prefill units: engines that run forward batches in step, all waiting for the slowest."""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import FloatArray
from dualpath_model.scheduler.attention import AttentionTime, chunk_seconds
from dualpath_model.scheduler.packing import pack
from dualpath_model.scheduler.placement import add_prefill, add_transfers
from solvers.simulator.agenda import NEVER, set_time
from solvers.simulator.state import (
    APPEND,
    ATTENTION_MAX_S,
    ATTENTION_MEAN_S,
    BATCHES,
    CHUNK,
    COMPUTED,
    DECODE,
    FIRST_TOKEN,
    LOAD,
    LOAD_AGAIN,
    MOVE,
    MOVE_END,
    MOVE_ENTRY,
    NEXT_DECODE,
    NEXT_PREFILL,
    ON_DECODE,
    ON_PREFILL,
    PREFILL,
    PREFILL_BUSY_S,
    PREFILL_ENTRY,
    SECOND,
    TURN,
    WRITTEN_TOKENS,
    Sim,
    append,
    drop,
)
from solvers.simulator.transfers import give_room_back, prefill_room, use, use_both


@compilable
def batch_ended(sim: Sim, unit: int, now: int) -> None:
    """A unit's forward batch is done, or it was idle and has work: finish the one, start the next."""
    world, traffic = sim.world, sim.traffic
    agents = world.agents
    waiting = 0
    for engine in range(sim.machine.prefill_first[unit], sim.machine.prefill_first[unit + 1]):
        agent = world.ready_queues.first[engine]
        for _ in range(world.in_batch[engine]):
            following = agents[agent, NEXT_PREFILL]
            agents[agent, COMPUTED] += agents[agent, CHUNK]
            turn = agents[agent, TURN]
            if agents[agent, COMPUTED] == traffic.prompt[turn] - traffic.hit[turn]:
                drop(world.ready_queues, engine, agents, NEXT_PREFILL, 1)
                first_token(sim, agent, now)
            agent = following
        world.in_batch[engine] = 0
        waiting += world.ready_queues.length[engine]
    if waiting > 0:
        go_on(sim, unit, now)
    else:
        set_time(world.agenda, sim.entries[PREFILL_ENTRY] + unit, NEVER)


@compilable
def go_on(sim: Sim, unit: int, now: int) -> None:
    """A unit has work and no batch."""
    start_batch(sim, unit, now)


@compilable
def load(sim: Sim, agent: int, now: int) -> float:
    """Load a request's hits for the chunk that starts now; return when they are there."""
    if sim.world.agents[agent, COMPUTED] == 0:
        return float(use_both(sim, LOAD, agent, 0, now))
    if sim.machine.layerwise:  # a layer at a time, so every chunk needs them again
        return float(use_both(sim, LOAD_AGAIN, agent, 0, now))
    return float(now)


@compilable
def start_batch(sim: Sim, unit: int, now: int) -> None:
    """One forward batch on every engine of a unit: the slowest says when it ends."""
    world, machine, totals = sim.world, sim.machine, sim.results.totals
    agents = world.agents
    compute_s, attention_max, attention_sum, everyone = 0.0, 0.0, 0.0, True
    loaded_ns = float(now)
    first, last = machine.prefill_first[unit], machine.prefill_first[unit + 1]
    for engine in range(first, last):
        model = attention_of(machine.attention, engine, 0.0)
        quota = attention_of(machine.attention, engine, machine.quota_token_s[engine])
        head = world.ready_queues.first[engine]
        count = looked_at(sim, engine, now)
        cached, left = world.cached[:count], world.left[:count]
        whole, part = pack(quota, cached, left, machine.quota_s, machine.token_limit)
        taken = whole + (1 if part > 0 else 0)
        if taken == 0 and count > 0:  # one block of the head alone, so that it advances
            taken, part = 1, min(machine.block_tokens, left[0])
        tokens = 0
        attention_s = model.fixed_s if taken > 0 else 0.0
        agent = head
        for i in range(taken):
            size = left[i] if i < whole else part
            agents[agent, CHUNK] = size
            tokens += size
            attention_s += chunk_seconds(model, cached[i], size)
            loaded_ns = max(loaded_ns, load(sim, agent, now))
            agent = agents[agent, NEXT_PREFILL]
        world.in_batch[engine] = taken
        compute_s = max(compute_s, attention_s + tokens * machine.linear_s[engine])
        attention_max = max(attention_max, attention_s)
        attention_sum += attention_s
        everyone = everyone and taken > 0
    if everyone:
        totals[ATTENTION_MAX_S] += attention_max
        totals[ATTENTION_MEAN_S] += attention_sum / (last - first)
    compute_ns = (compute_s + machine.batch_s) * SECOND
    end = max(now + compute_ns, loaded_ns) if machine.layerwise else loaded_ns + compute_ns
    totals[PREFILL_BUSY_S] += (end - now) / SECOND
    totals[BATCHES] += 1
    set_time(world.agenda, sim.entries[PREFILL_ENTRY] + unit, int(end) + 1)


@compilable
def loaded(sim: Sim, agent: int, now: int) -> bool:
    """Tell whether a forward batch may take a ready request: its hits are loaded with the batch."""
    return True


@compilable
def looked_at(sim: Sim, engine: int, now: int) -> int:
    """Write what the first ready requests of an engine have and need into the scratch arrays; return
    how many: as many as a batch looks at and the engine's HBM has room for, at least one.
    """
    world, traffic = sim.world, sim.traffic
    room = sim.machine.batch_room[engine]
    count = 0
    agent = world.ready_queues.first[engine]
    while count < min(world.cached.shape[0], world.ready_queues.length[engine]):
        if not loaded(sim, agent, now):
            break
        turn = world.agents[agent, TURN]
        room -= traffic.prompt[turn]
        if room < 0 and count > 0:
            break
        done = world.agents[agent, COMPUTED]
        world.cached[count] = traffic.hit[turn] + done
        world.left[count] = traffic.prompt[turn] - traffic.hit[turn] - done
        agent = world.agents[agent, NEXT_PREFILL]
        count += 1
    return count


@compilable
def attention_of(table: FloatArray, engine: int, more_s: float) -> AttentionTime:
    """Return a prefill engine's attention-time model, with ``more_s`` for each appended token."""
    return AttentionTime(
        table[engine, 0],
        table[engine, 1],
        table[engine, 2] + more_s,
        table[engine, 3],
        table[engine, 4],
        table[engine, 5],
        table[engine, 6],
    )


@compilable
def computed(sim: Sim, agent: int, now: int) -> None:
    """Prefill is done: the prefill node's buffer no longer needs the hits."""
    room = prefill_room(sim, agent)
    if room > 0:
        give_room_back(sim, sim.prefill.node[sim.world.agents[agent, PREFILL]], room, now)


@compilable
def store(sim: Sim, agent: int, tokens: int, now: int) -> None:
    """Store appended tokens: the decode node does."""
    engine = sim.world.agents[agent, DECODE]
    number = sim.prefill.tok.shape[0] + engine
    use(sim, APPEND, sim.decode.node[engine], number, 0, 0, tokens, now)


@compilable
def first_token(sim: Sim, agent: int, now: int) -> None:
    """Prefill is done: the KV-cache moves to the decode node and into the decode engine's HBM, and the
    blocks that the appended tokens and the first generated one complete are stored.
    """
    world = sim.world
    agents, block = world.agents, sim.machine.block_tokens
    turn = agents[agent, TURN]
    prompt, hit = sim.traffic.prompt[turn], sim.traffic.hit[turn]
    agents[agent, FIRST_TOKEN] = now
    add_prefill(sim.prefill, sim.nodes, agents[agent, PREFILL], -1, -prompt)
    node = sim.prefill.node[agents[agent, PREFILL]]
    other = sim.decode.node[agents[agent, DECODE]]
    here, there = agents[agent, ON_PREFILL], agents[agent, ON_DECODE]
    add_transfers(sim.prefill, sim.decode, sim.nodes, node, other, here, there, prompt - hit, -1)
    end = int(use_both(sim, MOVE, agent, prompt - hit, now)) + 1
    stored = ((prompt + 1) // block - hit // block) * block
    store(sim, agent, stored, now)
    sim.results.totals[WRITTEN_TOKENS] += stored
    computed(sim, agent, now)
    if world.move_queues.length[other] > 0:  # in the order of asking
        end = max(end, agents[world.move_queues.last[other], MOVE_END])
    agents[agent, MOVE_END] = end
    append(world.move_queues, other, agents, NEXT_DECODE, agent)
    if world.move_queues.length[other] == 1:
        set_time(world.agenda, sim.entries[MOVE_ENTRY] + other, end)
