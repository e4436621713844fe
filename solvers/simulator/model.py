"""From a scenario to the kernel's arrays: rates of nodes and engines, sessions, an empty world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dualpath_model.compilation import Function
from dualpath_model.errors import InputError
from dualpath_model.loads import decode_step
from dualpath_model.paths import Phase, Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler import placement
from dualpath_model.scheduler.events import NodeJoined, Settings
from dualpath_model.scheduler.index import tree_of
from dualpath_model.scheduler.policies import Policy, policy_named
from dualpath_model.scheduler.setup import (
    engine_flop_per_s,
    node_name,
    quota_model,
    transfer_costs,
)
from dualpath_model.scheduler.topology import Accounts, EngineAccount, NodeAccount, State, build
from dualpath_model.workload import Workload
from solvers.simulator import kernel
from solvers.simulator.agenda import NEVER

FETCH_S = 0.05
"""How often a group's leader fetches."""
_PHASES = {
    kernel.READ: (Phase.READ,),
    kernel.LOAD: (Phase.LOAD,),
    kernel.MOVE: (Phase.HAND_OFF, Phase.DECODE_START, Phase.WRITE_BACK),
}
_MOST_OFFERED = 4096


@dataclass(frozen=True)
class Constants:
    """What the paper does not give, each an assumption with a name.

    ``batch_s``: seconds of a prefill forward batch that do not depend on its tokens. ``step_s``:
    seconds of a decode step beside its roofline. ``request_step_s``: what each running request adds to
    a decode step beside its KV-cache.
    """

    batch_s: float = 0.0
    step_s: float = 0.0
    request_step_s: float = 0.0


@dataclass(frozen=True)
class Switches:
    """What a run leaves out or limits; the defaults are DualPath."""

    layerwise: bool = True
    token_limit: int = 0
    fetch_s: float = FETCH_S


@dataclass(frozen=True)
class Simulation:
    """Arrays of a run that has not begun; :attr:`run` is the kernel under the policy."""

    policy: Policy
    machine: kernel.Machine
    traffic: kernel.Traffic
    world: kernel.World
    state: State
    results: kernel.Results
    unit_of: np.ndarray
    compiled: bool

    def bind(self, function: Function) -> Function:
        """Return a function of the kernel that follows the policy."""
        return self.policy.bind(function, compiled=self.compiled)

    def go(self, until_s: float = np.inf, most_events: int = 2**62) -> float:
        """Run on; return the simulated seconds."""
        until_ns = int(min(until_s, 4e9) * 1e9)
        run = self.bind(kernel.run)
        state = self.state
        return (
            run(
                self.world,
                self.machine,
                self.traffic,
                state.prefill,
                state.decode,
                state.nodes,
                self.results,
                self.unit_of,
                self.policy.queues_prefill,
                until_ns,
                most_events,
            )
            / 1e9
        )


def traffic_of(
    workload: Workload, agents: int, start_s: np.ndarray | None = None
) -> kernel.Traffic:
    """Return the sessions of ``agents`` agents; with more of them than sessions, sessions repeat."""
    sessions = np.arange(agents) % workload.session_count
    starts = np.zeros(agents) if start_s is None else start_s
    whole = [
        np.ascontiguousarray(np.rint(column), dtype=np.int64)
        for column in (workload.prompt_tokens, workload.hit_tokens, workload.output_tokens)
    ]
    prompt, hit, output = whole
    hit = np.minimum(hit, prompt - 1)  # the last prompt token is always computed
    return kernel.Traffic(
        prompt=prompt,
        hit=np.maximum(hit, 0),
        output=np.maximum(output, 1),
        think_ns=np.rint(workload.think_time_s * 1e9).astype(np.int64),
        first=workload.offsets[sessions].astype(np.int64),
        last=workload.offsets[sessions + 1].astype(np.int64),
        start_ns=np.rint(starts * 1e9).astype(np.int64),
    )


def prepare(
    scenario: Scenario,
    settings: Settings,
    nodes: Sequence[NodeJoined],
    traffic: kernel.Traffic,
    *,
    constants: Constants | None = None,
    switches: Switches | None = None,
    rows: int = 0,
    compiled: bool = True,
) -> Simulation:
    """Return a run at its beginning: every agent asleep until it starts.

    ``nodes`` and ``settings`` are those of :func:`solvers.scheduling.configure`; ``rows``: turns to keep
    results of (0: all). Raises InputError if a turn does not fit any decode engine.
    """
    constants, switches = constants or Constants(), switches or Switches()
    policy = policy_named(settings.policy)
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
    hold = traffic.prompt + traffic.output
    if hold.max() > state.decode.limit.max():
        raise InputError(
            f"a turn holds {hold.max()} tokens of KV-cache, more than the {state.decode.limit.max()} "
            f"that the largest decode engine has room for; shorten it or raise parallelism.decode"
        )
    machine, unit_of = _machine(scenario, settings, state, constants, switches)
    world = _world(state, machine, traffic, int(hold.min()))
    turns = int((traffic.last - traffic.first).sum())
    keep = turns if rows == 0 else min(rows, turns)
    results = kernel.Results(
        np.zeros((keep, len(kernel.RESULT_FIELDS)), dtype=np.int64), np.zeros(len(kernel.TOTALS))
    )
    return Simulation(policy, machine, traffic, world, state, results, unit_of, compiled)


def _machine(
    scenario: Scenario,
    settings: Settings,
    state: State,
    constants: Constants,
    switches: Switches,
) -> tuple[kernel.Machine, np.ndarray]:
    named = {
        node_name(pool, i): (pool, node)
        for pool in (Pool.PREFILL, Pool.DECODE)
        for i, node in enumerate(scenario.cluster.nodes(pool))
    }
    owners = [named[name] for name in state.node_names]
    tables: list[list[list[tuple[float, ...]]]] = [
        [
            [
                getattr(transfer_costs(scenario, pool, node, _PHASES[phase]), part)
                for pool, node in owners
            ]
            for phase in range(3)
        ]
        for part in ("near_s", "far_s", "miss_s")
    ]
    columns = max(len(row) for row in tables[0][0])
    near, far, miss = (
        np.array([[(*row, *(0.0,) * (columns - len(row))) for row in rows] for rows in part])
        for part in tables
    )
    linear_flops = float(scenario.llm.prefill_flops(0.0, 1.0).linear)
    rates = [engine_flop_per_s(scenario, owners[n][1]) for n in state.prefill.node]
    models = {quota_model(scenario, owners[n][1]) for n in state.prefill.node}
    if len(models) > 1:
        raise InputError(
            "the prefill nodes have GPUs of different kinds; the simulator takes one attention model "
            "for all, so give them the same GPU"
        )
    steps, kinds = _steps(scenario, state, constants)
    unit_of = _units(scenario, state)
    machine = kernel.Machine(
        near_s=near,
        far_s=far,
        miss_s=miss,
        unit_first=np.searchsorted(unit_of, np.arange(unit_of[-1] + 2)).astype(np.int64),
        linear_s=linear_flops / np.array(rates),
        step_s=steps,
        step_kind=kinds,
        kv_s=_context_seconds(scenario, state),
        batch_s=constants.batch_s,
        quota_s=scenario.rules.quota_s,
        token_limit=switches.token_limit,
        layerwise=switches.layerwise,
        fetch_ns=max(1, round(switches.fetch_s * 1e9)),
        z_factor=settings.z_factor,
        block_tokens=settings.block_tokens,
        attention=models.pop(),
    )
    return machine, unit_of


def _units(scenario: Scenario, state: State) -> np.ndarray:
    """Return the prefill unit of each engine: its group where experts tie the ranks, else itself."""
    if scenario.llm.ffn.experts:
        return state.prefill.group.copy()
    return np.arange(state.prefill.tok.shape[0], dtype=np.int64)


def _steps(scenario: Scenario, state: State, constants: Constants) -> tuple[np.ndarray, np.ndarray]:
    """Return the table of step times by kind of node and batch, without KV-cache, and kinds."""
    machines = scenario.cluster.decode
    gpus = sum(machine.gpus for machine in machines)
    distinct = list(dict.fromkeys(machines))
    most = 1024
    table = np.zeros((len(distinct), most))
    for kind, machine in enumerate(distinct):
        step = decode_step(
            scenario.llm, scenario.means, machine, scenario.serving, scenario.efficiencies, gpus
        )
        for batch in range(1, most):
            table[kind, batch] = (
                constants.step_s
                + batch * constants.request_step_s
                + step.weight_bytes(batch) / step.hbm_bytes_per_s
            )
    kind_of = {node_name(Pool.DECODE, i): distinct.index(m) for i, m in enumerate(machines)}
    kinds = [kind_of[state.node_names[node]] for node in state.decode.node]
    return table, np.array(kinds, dtype=np.int64)


def _context_seconds(scenario: Scenario, state: State) -> np.ndarray:
    """Return the seconds that a token of context adds to a decode step, on each decode engine."""
    means, tensor = scenario.means, scenario.serving.decode.tensor
    copies = scenario.llm.replication(tensor) / tensor
    context = means.prompt_tokens + 0.5 * means.output_tokens
    per_token = means.decode_read_bytes * copies / context
    rates = {
        node_name(Pool.DECODE, i): m.gpu.hbm_bytes_per_s * scenario.efficiencies.hbm
        for i, m in enumerate(scenario.cluster.decode)
    }
    return np.array([per_token / rates[state.node_names[node]] for node in state.decode.node])


def _world(
    state: State, machine: kernel.Machine, traffic: kernel.Traffic, least_hold: int
) -> kernel.World:
    agents = len(traffic.first)
    nodes, columns = machine.near_s.shape[1:]
    engines_p, engines_d = state.prefill.tok.shape[0], state.decode.tok.shape[0]

    def ints(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype=np.int64)

    def queues(count: int) -> kernel.Queues:
        return kernel.Queues(ints(count), ints(count), ints(count))

    batch = int(min(agents, state.decode.limit.max() // least_hold)) + 1
    order = np.lexsort((np.arange(agents), traffic.start_ns))  # a sorted array is a heap
    entries = kernel.first_entries(machine, state.prefill, state.decode, state.nodes)
    times = np.full(entries[7], NEVER, dtype=np.int64)
    groups = entries[4] - entries[2]
    ticks = np.arange(1, groups + 1) * machine.fetch_ns // groups
    times[entries[2] : entries[4]] = ticks  # leaders are not in step with each other
    times[entries[6]] = traffic.start_ns[order[0]]
    table = ints(agents, len(kernel.AGENT_FIELDS))
    table[:, kernel.TURN] = traffic.first
    return kernel.World(
        agents=table,
        prefill_queues=queues(state.prefill.group_tok.shape[0] + 1),
        decode_queues=queues(state.decode.group_tok.shape[0] + 1),
        read_queues=queues(nodes),
        ready_queues=queues(engines_p),
        move_queues=queues(nodes),
        in_batch=ints(engines_p),
        busy_ns=np.zeros((nodes, columns)),
        work_s=np.zeros((nodes, columns + 1)),
        progress=np.zeros(engines_d),
        since_ns=ints(engines_d),
        running=ints(engines_d),
        context=np.zeros(engines_d),
        end_steps=np.zeros((engines_d, batch)),
        end_agents=ints(engines_d, batch),
        agenda=tree_of(times),
        sleep_ns=traffic.start_ns[order].copy(),
        sleepers=order.astype(np.int64),
        sleeping=np.array([agents], dtype=np.int64),
        offered=ints(5, min(agents, _MOST_OFFERED)),
        placed=ints(min(agents, _MOST_OFFERED), 7),
    )
