"""From a scenario to the kernel's arrays: rates of nodes and engines, sessions, an empty world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model.cluster import Node
from dualpath_model.compilation import Function
from dualpath_model.errors import InputError
from dualpath_model.loads import decode_step
from dualpath_model.paths import Payload, Phase, Pool, Resource, Step, StepTable
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler import placement
from dualpath_model.scheduler.events import NodeJoined, Prices, Settings
from dualpath_model.scheduler.index import tree_of
from dualpath_model.scheduler.policies import Policy, policy_named
from dualpath_model.scheduler.setup import (
    engine_flop_per_s,
    hbm_tokens,
    node_name,
    parallelism,
    quota_model,
    transfer_costs,
)
from dualpath_model.scheduler.topology import Accounts, EngineAccount, NodeAccount, State, build
from dualpath_model.workload import Workload
from solvers.simulator import kernel
from solvers.simulator import state as arrays
from solvers.simulator.agenda import NEVER
from solvers.simulator.constants import TOKEN_LIMIT, Constants
from solvers.simulator.frameworks import check_simulated, follow

FETCH_S = 0.05
"""How often a group's leader fetches."""
_MOST_OFFERED = 4096
_UNLIMITED = 2**60
_MOST_S = 4e9


@dataclass(frozen=True)
class Switches:
    """What a run leaves out or limits; the defaults are DualPath.

    ``layerwise``: hits are loaded and handed on layer by layer while prefill computes, and HBM holds one
    layer of a batch's context; otherwise loads come first, hand-off after, and HBM holds all layers.
    None: as the scenario's framework does; True is refused where it does not.
    ``token_limit``: most tokens of a forward batch of an engine (0: no limit); the default is
    SGLang's chunked prefill size on such GPUs. ``batch_requests``: most requests of an engine in it.
    ``fetch_s``: seconds between two fetches of a leader.
    """

    layerwise: bool | None = None
    token_limit: int = TOKEN_LIMIT
    batch_requests: int = 64
    fetch_s: float = FETCH_S

    def __post_init__(self) -> None:
        """Refuse what no engine can do."""
        if not 1 <= self.batch_requests <= 65536:
            raise InputError(f"batch_requests is {self.batch_requests}; it must be 1 to 65536")
        if not 0 <= self.token_limit <= 2**32:
            raise InputError(f"token_limit is {self.token_limit}; it must be 0 (none) to 2^32")
        if not 1e-6 <= self.fetch_s <= 60:
            raise InputError(f"fetch_s is {self.fetch_s}; it must be 0.000001 to 60 seconds")

    def loads_layerwise(self, table: StepTable) -> bool:
        """Return whether loads are layer by layer. Raises InputError if the table's never are."""
        if self.layerwise and not table.layerwise:
            raise InputError(
                f"layerwise is given, but framework {table.name} loads request by request; leave it out"
            )
        return table.layerwise if self.layerwise is None else self.layerwise


@dataclass(frozen=True)
class Simulation:
    """Arrays of a run that has not begun; :meth:`go` runs the kernel under the policy."""

    policy: Policy
    sim: arrays.Sim
    state: State
    buffer_tokens: np.ndarray
    """Tokens of KV-cache that each node's DRAM buffer holds, (N,)."""
    compiled: bool
    table: StepTable
    """Whose paths the run follows."""

    def bind(self, function: Function) -> Function:
        """Return a function of the kernel that follows the policy."""
        return self.policy.bind(function, compiled=self.compiled)

    def go(self, until_s: float = np.inf, most_events: int = 2**62) -> float:
        """Run on; return the simulated seconds."""
        return self.go_ns(whole_ns(until_s), most_events) / arrays.SECOND

    def go_ns(self, until_ns: int, most_events: int = 2**62) -> int:
        """Run on; return the simulated nanoseconds: ``until_ns``, or less where events ran out."""
        return int(self.bind(kernel.run)(self.sim, until_ns, most_events))

    def total(self, field: int) -> float:
        """Return one of the sums over the run, see ``state.TOTALS``."""
        return float(self.sim.results.totals[field])

    @property
    def rows(self) -> np.ndarray:
        """What is kept of the turns that have ended, (turns, len(state.RESULT_FIELDS))."""
        return self.sim.results.rows[: int(self.total(arrays.TURNS))]

    @property
    def ended(self) -> bool:
        """Whether every agent is done."""
        return self.total(arrays.AGENTS_ENDED) >= len(self.sim.traffic.first)


def whole_ns(seconds: float) -> int:
    """Return a time as the kernel counts it, at most a century."""
    return round(min(seconds, _MOST_S) * arrays.SECOND)


def traffic_of(workload: Workload, sessions: np.ndarray, start_s: np.ndarray) -> arrays.Traffic:
    """Return the traffic of agents that each run one of the workload's sessions.

    ``sessions``: (agents,), its number; ``start_s``: (agents,). A prompt's last token is no hit.
    """
    whole = [
        np.ascontiguousarray(np.rint(column), dtype=np.int64)
        for column in (workload.prompt_tokens, workload.hit_tokens, workload.output_tokens)
    ]
    prompt, hit, output = whole
    return arrays.Traffic(
        prompt=np.maximum(prompt, 1),
        hit=np.clip(hit, 0, np.maximum(prompt, 1) - 1),
        output=np.maximum(output, 1),
        think_ns=np.rint(workload.think_time_s * 1e9).astype(np.int64),
        first=workload.offsets[sessions].astype(np.int64),
        last=workload.offsets[sessions + 1].astype(np.int64),
        start_ns=np.rint(start_s * 1e9).astype(np.int64),
    )


def prepare(
    scenario: Scenario,
    settings: Settings,
    nodes: Sequence[NodeJoined],
    traffic: arrays.Traffic,
    *,
    constants: Constants | None = None,
    switches: Switches | None = None,
    rows: int | None = None,
    compiled: bool = True,
) -> Simulation:
    """Return a run at its beginning: every agent asleep until it starts.

    ``nodes`` and ``settings`` are those of :func:`solvers.scheduling.configure`; ``constants``: None
    adds nothing to the roofline; ``rows``: turns to keep results of (None: all).

    Raises InputError if a turn does not fit the decode engines, the buffers or (without layerwise
    loading) the prefill engines, InfeasibleError if the LLM does not fit.
    """
    constants, switches = constants or Constants(), switches or Switches()
    table = scenario.serving.table
    policy = policy_named(settings.policy)
    _check_modelled(scenario)
    check_simulated(table, policy)
    policy = follow(policy, table)
    switches = replace(switches, layerwise=switches.loads_layerwise(table))
    if settings.patience:
        raise InputError(
            f"settings.patience is {settings.patience}; the simulator's queues are first in, first out, "
            f"so it must be 0"
        )
    joined = {node.node: node for node in nodes}
    accounts = Accounts(
        {engine: EngineAccount() for node in nodes for engine in node.engines},
        {name: NodeAccount() for name in joined},
    )
    groups = dict.fromkeys((node.group for node in nodes), 0)
    state = build(joined, accounts, groups, settings)
    policy.bind(placement.refresh_all, compiled=compiled)(state.prefill, state.decode, state.nodes)
    most_requests = _most_requests(state, traffic)
    machine = _machine(scenario, settings, policy, state, constants, switches, most_requests)
    buffers = _buffers(scenario, policy, state)
    _check_room(state, machine, buffers, traffic)
    world, entries = _world(state, machine, traffic, buffers, switches, most_requests)
    turns = int((traffic.last - traffic.first).sum())
    keep = turns if rows is None else min(rows, turns)
    results = arrays.Results(
        np.zeros((keep, len(arrays.RESULT_FIELDS)), dtype=np.int64), np.zeros(len(arrays.TOTALS))
    )
    sim = arrays.Sim(
        world, machine, traffic, state.prefill, state.decode, state.nodes, results, entries
    )
    return Simulation(policy, sim, state, buffers, compiled, table)


def _check_modelled(scenario: Scenario) -> None:
    """Refuse a scenario with parts that the simulator would leave out without a word."""
    cluster, serving = scenario.cluster, scenario.serving
    left_out = {
        f"{len(scenario.classes)} classes of traffic": len(scenario.classes) > 1,
        "dram_cache": serving.dram_cache_hit_share > 0,
        "cluster.storage (a limit of the storage service)": cluster.storage_read_bytes_per_s
        is not None
        or cluster.storage_write_bytes_per_s is not None,
        "cluster.fabric": cluster.fabric_bytes_per_s is not None,
        "locality": scenario.zones is not None,
    }
    for name, there in left_out.items():
        if there:
            raise InputError(
                f"the scenario has {name}, which the simulator does not model; leave it out, or ask "
                f"`dualpath plan`, which does"
            )


def _most_requests(state: State, traffic: arrays.Traffic) -> int:
    """Return how many requests a decode engine can hold at most."""
    hold = traffic.prompt + traffic.output
    return int(min(len(traffic.first), state.decode.limit.max() // hold.min() + 1))


def _check_room(
    state: State, machine: arrays.Machine, buffers: np.ndarray, traffic: arrays.Traffic
) -> None:
    hold, prompt = int((traffic.prompt + traffic.output).max()), int(traffic.prompt.max())
    if hold > state.decode.limit.max():
        raise InputError(
            f"a turn holds {hold} tokens of KV-cache, more than the {state.decode.limit.max()} that the "
            f"largest decode engine has room for; shorten it or raise parallelism.decode"
        )
    if prompt > buffers.min():
        node = state.node_names[int(buffers.argmin())]
        raise InputError(
            f"a prompt has {prompt} tokens of KV-cache, more than the {buffers.min()} that the DRAM "
            f"buffer of node {node} holds; shorten it or raise the node's buffer"
        )
    if prompt > machine.batch_room.min():
        raise InputError(
            f"a prompt has {prompt} tokens of KV-cache, more than the {machine.batch_room.min()} that a "
            f"prefill engine has HBM for; shorten it, raise parallelism.prefill or load layerwise"
        )


# ---- hardware ------------------------------------------------------------------------------------


def _machine(
    scenario: Scenario,
    settings: Settings,
    policy: Policy,
    state: State,
    constants: Constants,
    switches: Switches,
    most_requests: int,
) -> arrays.Machine:
    owners = _owners(scenario, state)
    prefill = [owners[node][1] for node in state.prefill.node]
    table, layerwise = scenario.serving.table, bool(switches.layerwise)
    near, far, miss = _transfers(scenario, owners, layerwise)
    if policy.moves_nothing:
        near, far, miss = near * 0.0, far * 0.0, miss * 0.0
    layers = scenario.llm.layers
    # a layer of the batch's context, or all of it
    together = layers if layerwise and table.one_layer else 1
    prefill_unit, decode_unit = _units(scenario, state)
    weights, kinds = _weights(scenario, state, most_requests)
    kv_s, flop_s = _request_seconds(scenario, state)
    linear_flops = float(scenario.llm.prefill_flops(0.0, 1.0).linear)
    linear_s = np.array([linear_flops / engine_flop_per_s(scenario, node) for node in prefill])
    return arrays.Machine(
        near_s=near,
        far_s=far,
        miss_s=miss,
        own=_own(scenario, state),
        prefill_unit=prefill_unit,
        prefill_first=_firsts(prefill_unit),
        decode_unit=decode_unit,
        decode_first=_firsts(decode_unit),
        linear_s=linear_s,
        attention=np.array([tuple(quota_model(scenario, node)) for node in prefill]),
        quota_token_s=linear_s if policy.whole_batch_quota else 0.0 * linear_s,
        batch_room=np.array(
            [int(hbm_tokens(scenario, Pool.PREFILL, node)) * together for node in prefill],
            dtype=np.int64,
        ),
        weights_s=weights,
        step_kind=kinds,
        kv_s=kv_s,
        flop_s=flop_s,
        batch_s=constants.batch_layer_s * layers,
        step_s=constants.step_layer_s * layers,
        request_step_s=constants.request_layer_s * layers,
        quota_s=scenario.rules.quota_s,
        token_limit=switches.token_limit,
        layerwise=layerwise,
        fetch_ns=max(1, round(switches.fetch_s * 1e9)),
        z_factor=settings.z_factor,
        block_tokens=settings.block_tokens,
        private=policy.queues_prefill,
    )


def _owners(scenario: Scenario, state: State) -> list[tuple[Pool, Node]]:
    """Return pool and hardware of each of the scheduler's nodes, in its order."""
    named = {
        node_name(pool, i): (pool, node)
        for pool in (Pool.PREFILL, Pool.DECODE)
        for i, node in enumerate(scenario.cluster.nodes(pool))
    }
    return [named[name] for name in state.node_names]


def _steps_of(phase: int, layerwise: bool) -> Callable[[Step], bool]:
    """Return which steps of the table belong to a phase of the kernel.

    Loaded layer by layer, hits are also handed on layer by layer, while prefill computes.
    """

    def belongs(step: Step) -> bool:
        generated = step.carries == (Payload.GENERATED,)
        early = layerwise and step.phase is Phase.HAND_OFF and step.carries == (Payload.HIT,)
        return {
            arrays.READ: step.phase is Phase.READ,
            arrays.LOAD: step.phase is Phase.LOAD or early,
            arrays.LOAD_AGAIN: step.phase is Phase.LOAD,
            arrays.MOVE: step.phase in (Phase.HAND_OFF, Phase.DECODE_START) and not early,
            arrays.APPEND: step.phase is Phase.WRITE_BACK and not generated,
            arrays.GENERATE: step.phase is Phase.WRITE_BACK and generated,
        }[phase]

    return belongs


def _transfers(
    scenario: Scenario, owners: list[tuple[Pool, Node]], layerwise: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``near_s``, ``far_s`` and ``miss_s`` of the kernel's phases, (6, N, K) each."""
    rest = (Payload.MISS, Payload.APPENDED, Payload.GENERATED)

    def of(phase: int) -> list[Prices]:
        keep, seen = _steps_of(phase, layerwise), {}
        for owner in dict.fromkeys(owners):  # nodes that are alike share the work
            seen[owner] = transfer_costs(scenario, *owner, keep, rest)
        return [seen[owner] for owner in owners]

    costs = [of(phase) for phase in arrays.PHASES]
    columns = max(len(cost.resources) for cost in costs[0])

    def table(part: str) -> np.ndarray:
        padded = np.zeros((len(costs), len(owners), columns))
        for phase, row in enumerate(costs):
            for number, cost in enumerate(row):
                padded[phase, number, : len(cost.resources)] = getattr(cost, part)
        return padded

    return table("near_s"), table("far_s"), table("miss_s")


def _own(scenario: Scenario, state: State) -> np.ndarray:
    """Return how many engines share a node's compute NICs, each its own GPUs' part, (N, K).

    0 for other resources, and where storage traffic, which is no engine's, is on the same NICs.
    """
    rows = []
    for pool, node in _owners(scenario, state):
        engines = node.gpus // parallelism(scenario, pool).tensor
        names = transfer_costs(scenario, pool, node).resources
        mine = {Resource.CNIC, Resource.HOST_LINK} if not node.shares_nic else set()
        rows.append([engines if name.split()[0] in mine else 0 for name in names])
    columns = max(map(len, rows))
    return np.array([row + [0] * (columns - len(row)) for row in rows], dtype=np.int64)


def _units(scenario: Scenario, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit of each prefill and decode engine: its group where experts tie the ranks, else
    the engine alone.
    """
    if scenario.llm.ffn.experts:
        return state.prefill.group.copy(), state.decode.group.copy()
    engines = (state.prefill.tok.shape[0], state.decode.tok.shape[0])
    alone = [np.arange(count, dtype=np.int64) for count in engines]
    return alone[0], alone[1]


def _firsts(unit: np.ndarray) -> np.ndarray:
    """Return the first engine of each unit, and the number of engines."""
    return np.searchsorted(unit, np.arange(unit[-1] + 2)).astype(np.int64)


def _weights(scenario: Scenario, state: State, most_requests: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds of reading the weights by kind of node and batch, and each engine's kind."""
    machines = scenario.cluster.decode
    gpus = sum(machine.gpus for machine in machines)
    distinct = list(dict.fromkeys(machines))
    table = np.zeros((len(distinct), most_requests + 1))
    for kind, machine in enumerate(distinct):
        step = decode_step(
            scenario.llm, scenario.means, machine, scenario.serving, scenario.efficiencies, gpus
        )
        batches = np.arange(1, most_requests + 1, dtype=float)
        table[kind, 1:] = [step.weight_bytes(batch) for batch in batches]
        table[kind] /= step.hbm_bytes_per_s
    kind_of = {node_name(Pool.DECODE, i): distinct.index(m) for i, m in enumerate(machines)}
    kinds = [kind_of[state.node_names[node]] for node in state.decode.node]
    return table, np.array(kinds, dtype=np.int64)


def _request_seconds(scenario: Scenario, state: State) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds that a token of context, and that a request's arithmetic, adds to a decode
    step on each decode engine; both at the workload's mean context.
    """
    means, tensor = scenario.means, scenario.serving.decode.tensor
    copies = scenario.llm.replication(tensor) / tensor
    context = means.prompt_tokens + 0.5 * means.output_tokens
    owners, machines = _owners(scenario, state), scenario.cluster.decode
    gpus = sum(machine.gpus for machine in machines)
    steps = {
        machine: decode_step(
            scenario.llm, means, machine, scenario.serving, scenario.efficiencies, gpus
        )
        for machine in dict.fromkeys(machines)
    }
    of_engine = [steps[owners[node][1]] for node in state.decode.node]
    read = means.decode_read_bytes * copies / context
    flops = means.decode_flops / tensor
    return (
        np.array([read / step.hbm_bytes_per_s for step in of_engine]),
        np.array([flops / step.flop_per_s for step in of_engine]),
    )


def _buffers(scenario: Scenario, policy: Policy, state: State) -> np.ndarray:
    """Return the tokens of KV-cache that each node's DRAM buffer holds."""
    token = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    found = [
        _UNLIMITED
        if node.buffer_bytes is None or policy.moves_nothing
        else int(node.buffer_bytes / token)
        for _, node in _owners(scenario, state)
    ]
    return np.array(found, dtype=np.int64)


# ---- the empty world -----------------------------------------------------------------------------


def _world(
    state: State,
    machine: arrays.Machine,
    traffic: arrays.Traffic,
    buffers: np.ndarray,
    switches: Switches,
    most_requests: int,
) -> tuple[arrays.World, np.ndarray]:
    agents = len(traffic.first)
    nodes, columns = machine.near_s.shape[1:]
    engines_p, engines_d = state.prefill.tok.shape[0], state.decode.tok.shape[0]
    groups_p, groups_d = state.prefill.group_tok.shape[0], state.decode.group_tok.shape[0]
    units_p, units_d = len(machine.prefill_first) - 1, len(machine.decode_first) - 1
    entries = kernel.first_entries(nodes, units_p, groups_p, groups_d, units_d)
    heap = min(agents, most_requests * int(np.diff(machine.decode_first).max())) + 1
    order = np.lexsort((np.arange(agents), traffic.start_ns))  # a sorted array is a heap
    times = np.full(entries[arrays.ALL_ENTRIES], NEVER, dtype=np.int64)
    # A leader takes what has come since the leader before it, so a pool's are evenly apart in time.
    for first, leaders in (
        (arrays.PREFILL_LEADER_ENTRY, groups_p),
        (arrays.DECODE_LEADER_ENTRY, groups_d),
    ):
        ticks = np.arange(1, leaders + 1) * machine.fetch_ns // leaders
        times[entries[first] : entries[first] + leaders] = ticks
    times[entries[arrays.SLEEP_ENTRY]] = traffic.start_ns[order[0]]

    def ints(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.int64)

    def queues(count: int) -> arrays.Queues:
        return arrays.Queues(ints(count), ints(count), ints(count))

    table = ints(agents, len(arrays.AGENT_FIELDS))
    table[:, arrays.TURN] = traffic.first
    world = arrays.World(
        agents=table,
        prefill_queues=queues(groups_p + 1),
        decode_queues=queues(groups_d + 1),
        buffer_queues=queues(nodes),
        read_queues=queues(nodes),
        ready_queues=queues(engines_p),
        move_queues=queues(nodes),
        buffer_free=buffers.copy(),
        in_batch=ints(engines_p),
        busy_ns=np.zeros((nodes, columns)),
        own_busy_ns=np.zeros((engines_p + engines_d, columns)),
        work_s=np.zeros((nodes, columns + 1)),
        progress=np.zeros(units_d),
        since_ns=ints(units_d),
        decoding=ints(units_d),
        slowest_s=np.zeros(units_d),
        engine_step_s=np.zeros(engines_d),
        running=ints(engines_d),
        context=np.zeros(engines_d),
        end_steps=np.zeros((units_d, heap)),
        end_agents=ints(units_d, heap),
        agenda=tree_of(times),
        leader_ns=times[entries[arrays.PREFILL_LEADER_ENTRY] : entries[arrays.MOVE_ENTRY]].copy(),
        stopped=ints(1),
        sleep_ns=traffic.start_ns[order].copy(),
        sleepers=order.astype(np.int64),
        sleeping=np.array([agents], dtype=np.int64),
        cached=ints(switches.batch_requests),
        left=ints(switches.batch_requests),
        offered=ints(5, min(agents, _MOST_OFFERED)),
        placed=ints(min(agents, _MOST_OFFERED), 7),
        hbm_free=machine.batch_room.copy(),
        load_queues=queues(engines_p),
        loading_queues=queues(engines_p),
    )
    return world, entries
