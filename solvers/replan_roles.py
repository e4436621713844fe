"""A simulated cluster whose nodes change their roles while it runs.

Every node stands in both pools, as a prefill node and as a decode node, and only the engines of the role
that it has are open: the scheduler gives a closed engine nothing. What a closed engine has begun, it
finishes, which is the drain. Turns that only wait for an engine are placed anew at every change. The
kernel and the scheduler are those of every other run (:mod:`solvers.simulator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dualpath_model.errors import InputError
from dualpath_model.parameters import prompt_tokens_per_s, read_bytes_per_token, read_tokens_per_s
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler import placement
from dualpath_model.scheduler.arrays import Engines
from dualpath_model.scheduler.setup import node_name
from dualpath_model.workload import Workload
from solvers.scheduling import configure
from solvers.simulator import laws
from solvers.simulator import state as arrays
from solvers.simulator.agenda import set_time
from solvers.simulator.constants import Constants, of_scenario
from solvers.simulator.model import Simulation, Switches, prepare, traffic_of, whole_ns

_EVENTS_AT_ONCE = 2_000_000
IntArray = npt.NDArray[np.int64]


def both_roles(scenario: Scenario) -> Scenario:
    """Return the scenario with every node in both pools, prefill nodes first in each."""
    nodes = (*scenario.cluster.prefill, *scenario.cluster.decode)
    return scenario.on(replace(scenario.cluster, prefill=nodes, decode=nodes))


class RoleSimulation:
    """A run in which nodes are closed and opened. Nodes are numbered prefill first, as at the start."""

    def __init__(
        self,
        scenario: Scenario,
        policy: str = "dualpath",
        *,
        constants: Constants | None = None,
        switches: Switches | None = None,
        compiled: bool = True,
    ) -> None:
        """Begin with the roles and the sessions of ``scenario``, each at its own start.

        Raises InputError for what the simulator does not model, and where experts are spread over
        nodes, because then no node can change its role alone.
        """
        self.scenario = scenario
        wide = both_roles(scenario)
        workload = scenario.workload
        order = np.argsort(workload.start_s, kind="stable")
        settings, joined = configure(wide, policy)
        if scenario.llm.ffn.experts and len({n.group for n in joined}) < len(joined):
            raise InputError(
                f"experts of {scenario.llm.name} are spread over several nodes, so that one alone "
                f"cannot change its role in the simulation; set parallelism.prefill.expert and "
                f"parallelism.decode.expert to the GPUs of a node"
            )
        self.run: Simulation = prepare(
            wide,
            settings,
            joined,
            traffic_of(workload, order, workload.start_s[order]),
            constants=of_scenario(scenario) if constants is None else constants,
            switches=switches,
            compiled=compiled,
        )
        self.now_ns = 0
        self.count = len(wide.cluster.prefill)
        self.names = tuple(
            node_name(pool, i)
            for pool in (Pool.PREFILL, Pool.DECODE)
            for i in range(len(scenario.cluster.nodes(pool)))
        )
        self._nodes = wide.cluster.prefill
        state = self.run.state
        self._engines = {
            pool: [
                np.flatnonzero(engines.node == state.node[node_name(pool, i)])
                for i in range(self.count)
            ]
            for pool, engines in ((Pool.PREFILL, state.prefill), (Pool.DECODE, state.decode))
        }
        first_decode = len(scenario.cluster.prefill)
        self.roles: list[Pool | None] = [
            Pool.PREFILL if i < first_decode else Pool.DECODE for i in range(self.count)
        ]
        self._apply()

    def go(self, until_s: float) -> None:
        """Run on to ``until_s``, or to the end of the last session."""
        until_ns = whole_ns(until_s)
        while self.now_ns < until_ns and not self.run.ended:
            self.now_ns = self.run.go_ns(until_ns, _EVENTS_AT_ONCE)

    @property
    def ended(self) -> bool:
        """Whether every session is done."""
        return self.run.ended

    @property
    def end_s(self) -> float:
        """When the last turn ended so far."""
        return self.run.total(arrays.END_NS) / arrays.SECOND

    # ---- roles -----------------------------------------------------------------------------------

    def close(self, nodes: Sequence[int]) -> None:
        """Give these nodes nothing more."""
        for node in nodes:
            self.roles[node] = None
        self._apply()

    def open(self, nodes: Sequence[int], role: Pool) -> None:
        """Let these nodes serve in a role."""
        for node in nodes:
            self.roles[node] = role
        self._apply()

    def drained(self, nodes: Sequence[int]) -> bool:
        """Return whether these nodes have nothing left to do in either role."""
        state = self.run.state
        engines = ((state.prefill, Pool.PREFILL), (state.decode, Pool.DECODE))
        return not any(
            pool_engines.seq[self._engines[pool][node]].any()
            for pool_engines, pool in engines
            for node in nodes
        )

    def set_limits(self, mixed: Scenario) -> None:
        """Give the scheduler the alpha and beta that follow from the means of ``mixed``."""
        rules, means, efficiencies = mixed.rules, mixed.means, mixed.efficiencies
        token_bytes = read_bytes_per_token(mixed.llm, means, mixed.serving.kv_dtype)
        tensor = mixed.serving.prefill.tensor
        state = self.run.state
        for i, node in enumerate(self._nodes):
            alpha = rules.alpha_s * read_tokens_per_s(node, efficiencies, token_bytes)
            for pool in (Pool.PREFILL, Pool.DECODE):
                state.nodes.alpha[state.node[node_name(pool, i)]] = int(alpha)
            beta = rules.beta_s * tensor * prompt_tokens_per_s(node, mixed.llm, means, efficiencies)
            state.prefill.limit[self._engines[Pool.PREFILL][i]] = int(beta)
        self._refresh()

    def _apply(self) -> None:
        """Open the engines of each node's role, and none else."""
        state = self.run.state
        for engines, pool in ((state.prefill, Pool.PREFILL), (state.decode, Pool.DECODE)):
            for node, mine in enumerate(self._engines[pool]):
                engines.open[mine] = int(self.roles[node] is pool)
        _start_over(self.run)
        self._space_leaders(state.prefill, arrays.PREFILL_LEADER_ENTRY)
        self._space_leaders(state.decode, arrays.DECODE_LEADER_ENTRY)
        self.run.sim.world.stopped[0] = 0  # those without work stop again by themselves
        self._refresh()

    def _space_leaders(self, engines: Engines, first_entry: int) -> None:
        """Let the leaders of groups with open engines fetch evenly apart, the others with the last.

        A leader takes what has come since the leader before it, so a gap would load its group.
        """
        sim = self.run.sim
        every, first = sim.machine.fetch_ns, int(sim.entries[first_entry])
        offset = first - int(sim.entries[arrays.PREFILL_LEADER_ENTRY])
        firsts = engines.group_first
        has_open = [
            bool(engines.open[firsts[g] : firsts[g + 1]].any()) for g in range(len(firsts) - 1)
        ]
        count, number = max(1, sum(has_open)), 0
        for group, is_open in enumerate(has_open):
            number += is_open
            tick = (number if is_open else count) * every // count
            rounds = max(0, (self.now_ns - tick) // every + 1)
            sim.world.leader_ns[offset + group] = tick
            set_time(sim.world.agenda, first + group, tick + rounds * every)

    def _refresh(self) -> None:
        state = self.run.state
        bound = self.run.bind(placement.refresh_all)
        bound(state.prefill, state.decode, state.nodes)

    # ---- what is seen ----------------------------------------------------------------------------

    def submitted(self, from_s: float, to_s: float) -> IntArray:
        """Return the turns (rows of the workload) that were submitted in [from_s, to_s), so far."""
        rows, world, traffic = self.run.rows, self.run.sim.world, self.run.sim.traffic
        low, high = round(from_s * arrays.SECOND), round(to_s * arrays.SECOND)
        at = {field: column for column, field in enumerate(arrays.RESULT_FIELDS)}
        times = rows[:, at["submitted"]]
        ended = rows[(times >= low) & (times < high), at["turn"]]
        inside = np.ones(len(traffic.first), dtype=bool)
        inside[world.sleepers[: world.sleeping[0]]] = False
        inside &= world.agents[:, arrays.TURN] < traffic.last
        flight = world.agents[inside]
        times = flight[:, arrays.SUBMITTED]
        return np.concatenate((ended, flight[(times >= low) & (times < high), arrays.TURN]))

    def waiting(self) -> IntArray:
        """Return the turns (rows of the workload) that have been submitted and wait for an engine."""
        world = self.run.sim.world
        agents = world.agents
        found = [
            agent
            for queues, link in (
                (world.prefill_queues, arrays.NEXT_PREFILL),
                (world.decode_queues, arrays.NEXT_DECODE),
            )
            for queue in range(len(queues.length))
            for agent in _members(queues, queue, agents, link)
        ]
        turns: IntArray = agents[np.unique(np.array(found, dtype=np.int64)), arrays.TURN]
        return turns

    def check(self) -> None:
        """Hold the run to the laws that every run keeps. Raises ConservationError."""
        laws.check(self.run, self.end_s)


def _members(queues: arrays.Queues, queue: int, agents: IntArray, link: int) -> list[int]:
    """Return the agents in a list, first to last."""
    found, agent = [], int(queues.first[queue])
    for _ in range(int(queues.length[queue])):
        found.append(agent)
        agent = int(agents[agent, link])
    return found


def _start_over(run: Simulation) -> None:
    """Take back what was chosen for turns that still wait, and queue them as they were submitted.

    All of them, not only those of nodes that close: the prefill and the decode queue hold turns in one
    order, and if some went behind others in one of them, turns with a prefill engine could wait for
    decode engines that are set aside for turns without one, and neither would ever go on.
    """
    sim = run.sim
    world, traffic, agents = sim.world, sim.traffic, sim.world.agents
    found: set[int] = set()
    for engines, queues, link, chosen in (
        (sim.prefill, world.prefill_queues, arrays.NEXT_PREFILL, arrays.DECODE),
        (sim.decode, world.decode_queues, arrays.NEXT_DECODE, arrays.PREFILL),
    ):
        for queue in range(len(queues.length)):
            for agent in _members(queues, queue, agents, link):
                turn, other = agents[agent, arrays.TURN], int(agents[agent, chosen])
                prompt, hold = traffic.prompt[turn], traffic.prompt[turn] + traffic.output[turn]
                if queue < len(engines.group_tok):  # a private queue
                    engines.group_tok[queue] -= prompt
                if other >= 0 and chosen == arrays.DECODE:
                    placement.add_decode(sim.decode, sim.nodes, other, -1, -prompt, -hold)
                elif other >= 0:
                    placement.add_prefill(sim.prefill, sim.nodes, other, -1, -prompt)
                found.add(agent)
            queues.length[queue] = 0
    prefill, decode = len(sim.prefill.group_tok), len(sim.decode.group_tok)  # the common queues
    for agent in sorted(found, key=lambda one: (agents[one, arrays.SUBMITTED], one)):
        agents[agent, arrays.PREFILL] = agents[agent, arrays.DECODE] = -1
        arrays.append(world.prefill_queues, prefill, agents, arrays.NEXT_PREFILL, agent)
        arrays.append(world.decode_queues, decode, agents, arrays.NEXT_DECODE, agent)


def window_of(workload: Workload, turns: IntArray, source: str) -> Workload:
    """Return some turns of a workload, each a session of its own.

    Raises InputError if there are none, or none with anything to prefill.
    """
    zeros = np.zeros(len(turns))
    return Workload(
        prompt_tokens=workload.prompt_tokens[turns],
        hit_tokens=workload.hit_tokens[turns],
        output_tokens=workload.output_tokens[turns],
        think_time_s=zeros,
        start_s=zeros,
        offsets=np.arange(len(turns) + 1, dtype=np.int64),
        source=source,
    )
