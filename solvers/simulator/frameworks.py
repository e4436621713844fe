"""What serving frameworks do otherwise than the paper, as functions in place of the kernel's own.

The kernel follows a policy because functions are replaced by name when it is compiled
(:mod:`dualpath_model.compilation`); a framework is followed in the same way, so the paper's kernel
has no branch for any of them. Which functions a step table needs follows from the table
(:func:`rules_of`); the costs of each phase do as well (:mod:`model`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dualpath_model.compilation import compilable
from dualpath_model.errors import InputError
from dualpath_model.paths import DE_DRAM, PE_DRAM, Path, Payload, Phase, Pool, StepTable
from dualpath_model.scheduler.arrays import Nodes
from dualpath_model.scheduler.placement import add_decode, add_read, add_transfers
from dualpath_model.scheduler.policies import Policy
from dualpath_model.scheduler.round_robin import read_by_prefill
from solvers.simulator.agenda import NEVER, set_time
from solvers.simulator.prefill import start_batch
from solvers.simulator.state import (
    APPEND,
    BUFFER_ENTRY,
    COMPUTED,
    DECODE,
    KEPT,
    LOAD,
    LOADED,
    NEXT_DECODE,
    NEXT_PREFILL,
    NEXT_READ,
    ON_DECODE,
    ON_PREFILL,
    PLACED,
    PREFILL,
    PREFILL_ENTRY,
    READ_AT,
    TURN,
    Sim,
    append,
    drop,
)
from solvers.simulator.transfers import (
    ask_for_room,
    prefill_room,
    room_is_free,
    use,
    use_both,
)

Rules = dict[str, Callable[..., Any]]


def check_simulated(table: StepTable, policy: Policy) -> None:
    """Raise InputError for a table or a policy that the kernel would not follow."""
    reads = (table.prefill_read, table.decode_read)
    if any(path.prefill_on is Pool.DECODE for path in reads):
        raise InputError(
            f"framework is {table.name}; the simulator does not model prefill on decode nodes, so "
            f"ask `dualpath plan`"
        )
    if policy.name == "split" and table.name != "paper":
        raise InputError(
            f"policy is split, but framework {table.name} does not read one request from both sides by "
            f"parts; take the policy dualpath"
        )


def follow(policy: Policy, table: StepTable) -> Policy:
    """Return the policy with the functions that a table needs; the paper's needs none."""
    rules = rules_of(table)
    if policy.moves_nothing:
        rules.pop("read_tokens", None)
        rules.pop("both_chosen", None)
    return replace(policy, rules={**policy.rules, **rules}) if rules else policy


def rules_of(table: StepTable) -> Rules:
    """Return the kernel's functions that are replaced for a step table."""
    rules: Rules = {}
    if not _steps(table, Phase.HAND_OFF, into=DE_DRAM) and table.name != "paper":
        rules["decode_room"] = room_for_reads
    if any(
        step.destination == PE_DRAM and step.phase is Phase.LOAD for step in table.decode_read.steps
    ):
        rules["prefill_room"] = room_for_hits
    if _stores(table, Pool.PREFILL):
        rules["store"] = store_on_both
    if not table.layerwise:
        rules |= {
            "ready": load_ahead,
            "loaded": is_loaded,
            "load": nothing_to_load,
            "go_on": wait_for_loads,
            "arrived": make_room,
            "call_node": call_engines,
            "computed": nothing_left,
        }
    elif not table.one_layer:
        rules["load"] = load_once
    if not table.splits:
        rules["read_tokens"] = read_on_both
    elif any(path.stays for path in _reads(table)):
        rules |= {
            "read_tokens": read_by_prefill,
            "leave": leave_for_next_turn,
            "ask_for_engines": stay,
            "both_chosen": both_chosen_or_kept,
            "decode_room": no_room,
            "to_read": read_by_prefill_alone,
        }
    return rules


def hit_reads(table: StepTable) -> tuple[int, int]:
    """Return how often a hit token is read from storage on the prefill and on the decode read path."""
    first, second = (sum(map(path.hit_reads, Pool)) for path in _reads(table))
    return first, second


def _reads(table: StepTable) -> tuple[Path, Path]:
    return table.prefill_read, table.decode_read


def _steps(table: StepTable, phase: Phase, into: object) -> bool:
    return any(
        step.phase is phase and step.destination == into
        for path in table.paths
        for step in path.steps
    )


def _stores(table: StepTable, pool: Pool) -> bool:
    return any(
        step.phase is Phase.WRITE_BACK
        and step.source.pool is pool
        and Payload.APPENDED in step.carries
        for path in table.paths
        for step in path.steps
    )


# ---- buffers and storage -------------------------------------------------------------------------


@compilable
def room_for_reads(sim: Sim, agent: int) -> int:
    """The decode node's buffer holds what that node reads; the hand-off goes from GPU to GPU."""
    return int(sim.world.agents[agent, ON_DECODE])


@compilable
def no_room(sim: Sim, agent: int) -> int:
    """Nothing of a request lies in the decode node's buffer."""
    return 0


@compilable
def room_for_hits(sim: Sim, agent: int) -> int:
    """The prefill node's buffer holds all hits, from its own storage NIC or from the decode node."""
    return int(sim.world.agents[agent, ON_PREFILL] + sim.world.agents[agent, ON_DECODE])


@compilable
def read_on_both(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """Both nodes read all hits."""
    return hit, hit


@compilable
def read_by_prefill_alone(sim: Sim, agent: int, side: int) -> int:
    """Only the prefill node reads from storage."""
    return 0 if side else int(sim.world.agents[agent, ON_PREFILL])


@compilable
def store_on_both(sim: Sim, agent: int, tokens: int, now: int) -> None:
    """Both nodes have a part in storing what was appended, and in keeping the hits with it."""
    agents = sim.world.agents
    here, there = agents[agent, ON_PREFILL], agents[agent, ON_DECODE]
    first, second = agents[agent, PREFILL], agents[agent, DECODE]
    use(sim, APPEND, sim.prefill.node[first], first, here, there, tokens, now)
    other = sim.prefill.tok.shape[0] + second
    use(sim, APPEND, sim.decode.node[second], other, there, here, tokens, now)


# ---- loads that come before prefill, while the engine computes other requests ----------------------


@compilable
def load_once(sim: Sim, agent: int, now: int) -> float:
    """Hits are loaded with a prompt's first chunk and stay for the later ones."""
    if sim.world.agents[agent, COMPUTED] == 0:
        return float(use_both(sim, LOAD, agent, 0, now))
    return float(now)


@compilable
def nothing_to_load(sim: Sim, agent: int, now: int) -> float:
    """A forward batch loads nothing: its requests have been loaded."""
    return float(now)


@compilable
def is_loaded(sim: Sim, agent: int, now: int) -> bool:
    """A forward batch takes requests whose hits are in HBM."""
    return bool(sim.world.agents[agent, LOADED] <= now)


@compilable
def load_ahead(sim: Sim, agent: int, now: int) -> None:
    """All hits are in memory: they are loaded as soon as the prefill engine's HBM has room for the
    prompt, in order, whatever the engine computes meanwhile.
    """
    world = sim.world
    world.agents[agent, READ_AT] = now
    engine = world.agents[agent, PREFILL]
    append(world.load_queues, engine, world.agents, NEXT_PREFILL, agent)
    set_time(world.agenda, sim.entries[BUFFER_ENTRY] + sim.prefill.node[engine], now)


@compilable
def call_engines(sim: Sim, node: int, now: int) -> None:
    """A node's memory has room, in DRAM or in the HBM of its prefill engines, or something to put there.

    Loads begin here alone, because the kernel is compiled in one piece and this is much code.
    """
    earliest = NEVER
    if sim.nodes.decode[node] == 0:
        for engine in range(sim.nodes.first[node], sim.nodes.last[node]):
            end_loads(sim, engine, node, now)
            begin_loads(sim, engine, now)
            if sim.world.loading_queues.length[engine] > 0:
                first = sim.world.loading_queues.first[engine]
                earliest = min(earliest, sim.world.agents[first, LOADED])
    room_is_free(sim, node, now)
    due = sim.world.agenda[sim.world.agenda.shape[0] // 2 + sim.entries[BUFFER_ENTRY] + node]
    if earliest < due:
        set_time(sim.world.agenda, sim.entries[BUFFER_ENTRY] + node, earliest)


@compilable
def end_loads(sim: Sim, engine: int, node: int, now: int) -> None:
    """Hits that have been loaded into an engine leave the node's buffer."""
    world = sim.world
    agents, queues = world.agents, world.loading_queues
    while queues.length[engine] > 0:
        agent = queues.first[engine]
        if agents[agent, LOADED] > now:
            break
        drop(queues, engine, agents, NEXT_READ, 1)
        world.buffer_free[node] += prefill_room(sim, agent)


@compilable
def nothing_left(sim: Sim, agent: int, now: int) -> None:
    """Hits have left the prefill node's buffer before prefill."""


@compilable
def begin_loads(sim: Sim, engine: int, now: int) -> None:
    """Load those at the head of an engine's queue for HBM that have room."""
    world = sim.world
    agents, queues = world.agents, world.load_queues
    while queues.length[engine] > 0:
        agent = queues.first[engine]
        prompt = sim.traffic.prompt[agents[agent, TURN]]
        if prompt > world.hbm_free[engine]:
            break
        drop(queues, engine, agents, NEXT_PREFILL, 1)
        world.hbm_free[engine] -= prompt
        end = int(use_both(sim, LOAD, agent, 0, now)) + 1
        agents[agent, LOADED] = end
        append(world.ready_queues, engine, agents, NEXT_PREFILL, agent)
        append(world.loading_queues, engine, agents, NEXT_READ, agent)
        entry = sim.entries[PREFILL_ENTRY] + sim.machine.prefill_unit[engine]
        due = world.agenda[world.agenda.shape[0] // 2 + entry]
        if due == NEVER or (end < due and is_waiting(sim, sim.machine.prefill_unit[engine])):
            set_time(world.agenda, entry, end)


@compilable
def is_waiting(sim: Sim, unit: int) -> bool:
    """Tell whether a unit computes nothing."""
    for engine in range(sim.machine.prefill_first[unit], sim.machine.prefill_first[unit + 1]):
        if sim.world.in_batch[engine] > 0:
            return False
    return True


@compilable
def wait_for_loads(sim: Sim, unit: int, now: int) -> None:
    """A unit without a batch starts one when the first of its requests is loaded."""
    world = sim.world
    earliest = NEVER
    for engine in range(sim.machine.prefill_first[unit], sim.machine.prefill_first[unit + 1]):
        if world.ready_queues.length[engine] > 0:
            earliest = min(earliest, world.agents[world.ready_queues.first[engine], LOADED])
    if earliest <= now:
        start_batch(sim, unit, now)
    else:
        set_time(world.agenda, sim.entries[PREFILL_ENTRY] + unit, earliest)


@compilable
def make_room(sim: Sim, agent: int, now: int) -> None:
    """A prompt leaves the prefill engine's HBM once the decode node has it."""
    world = sim.world
    engine = world.agents[agent, PREFILL]
    world.hbm_free[engine] += sim.traffic.prompt[world.agents[agent, TURN]]
    set_time(world.agenda, sim.entries[BUFFER_ENTRY] + sim.prefill.node[engine], now)


# ---- KV-cache that stays on the decode engine between turns ----------------------------------------


@compilable
def leave_for_next_turn(sim: Sim, agent: int) -> None:
    """A request leaves its decode engine; what the session's next turn hits stays."""
    agents, traffic = sim.world.agents, sim.traffic
    engine, turn = agents[agent, DECODE], agents[agent, TURN]
    hold = traffic.prompt[turn] + traffic.output[turn]
    kept = traffic.hit[turn + 1] if turn + 1 < traffic.last[agent] else 0
    if kept > hold:  # hits of another request are among them: they come from storage
        kept = 0
    agents[agent, KEPT] = kept
    add_decode(sim.decode, sim.nodes, engine, -1, -traffic.prompt[turn], kept - hold)


@compilable
def stay(sim: Sim, agent: int) -> None:
    """A turn goes back to the decode engine that keeps its hits, if that has room for the rest of it;
    else what is kept is given up, and both engines are chosen anew.
    """
    world, traffic = sim.world, sim.traffic
    agents, turn = world.agents, world.agents[agent, TURN]
    prompt, kept = traffic.prompt[turn], agents[agent, KEPT]
    common = world.prefill_queues.first.shape[0] - 1
    append(world.prefill_queues, common, agents, NEXT_PREFILL, agent)
    if kept > 0:
        engine, more = agents[agent, DECODE], prompt + traffic.output[turn] - kept
        if sim.decode.free[engine] >= more:
            add_decode(sim.decode, sim.nodes, engine, 1, prompt, more)
            return
        add_decode(sim.decode, sim.nodes, engine, 0, 0, -kept)
        agents[agent, KEPT] = 0
    agents[agent, DECODE] = -1
    common = world.decode_queues.first.shape[0] - 1
    append(world.decode_queues, common, agents, NEXT_DECODE, agent)


@compilable
def both_chosen_or_kept(sim: Sim, agent: int, on_prefill: int, on_decode: int, now: int) -> None:
    """Both engines are known; hits that the decode engine keeps are pulled from it, not read."""
    agents, nodes = sim.world.agents, sim.nodes
    agents[agent, PLACED] = now
    agents[agent, ON_PREFILL], agents[agent, ON_DECODE] = on_prefill, on_decode
    if agents[agent, KEPT] > 0:
        here, there = (
            sim.prefill.node[agents[agent, PREFILL]],
            sim.decode.node[agents[agent, DECODE]],
        )
        nodes.given[here] -= on_prefill
        add_read(sim.prefill, sim.decode, nodes, here, -on_prefill)
        add_transfers(sim.prefill, sim.decode, nodes, here, there, on_prefill, on_decode, 0, -1)
        add_transfers(sim.prefill, sim.decode, nodes, here, there, on_decode, on_prefill, 0, 1)
        agents[agent, ON_PREFILL], agents[agent, ON_DECODE] = on_decode, on_prefill
        agents[agent, KEPT] = 0
    ask_for_room(sim, agent, now)
