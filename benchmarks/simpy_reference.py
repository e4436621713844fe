"""The simulator as a SimPy model: the same system, told by processes. Read this one first.

A turn is told by :meth:`Model.turn`, from top to bottom. Leaders, prefill units, decode units and each
storage read are processes of their own. Rates and the scheduler's arrays come from a prepared
:class:`Simulation`, and both simulators call the policy's functions; all else is written twice, so that
``tests/solvers/simulator/test_simpy_reference.py`` can hold one against the other.

Times are whole nanoseconds, as in the kernel, which rounds up to the next one: an event never comes
before what it waits for. Events at the same time come in the order of :data:`state.ENTRIES`, see
:class:`Alarm`; what follows from an event at once comes before the next event.

Two things are foreseen instead of waited for, because nothing can change them or nothing depends on
them: a resource's work (:meth:`Node.use`), and the time of the second token (:meth:`DecodeUnit.join`).
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import simpy

from dualpath_model.scheduler import attention, packing, placement
from solvers.simulator import state
from solvers.simulator.model import Simulation, whole_ns
from solvers.simulator.state import APPEND, GENERATE, LOAD, LOAD_AGAIN, MOVE, READ, SECOND

Process = Generator[simpy.Event, Any, None]

_RULES = (
    *(placement.designate_prefill, placement.designate_decode),
    *(placement.place_prefill, placement.place_decode),
    *(placement.add_prefill, placement.add_decode, placement.add_read, placement.add_transfers),
    *(packing.pack, attention.chunk_seconds),
)
_NO_ENGINE = -1
_SAME_STEP = 1e-6  # of a decode step: what rounding to nanoseconds makes of a whole number of steps


class Alarm(simpy.Event):
    """Rings at a time. Of alarms at the same time, the least kind rings first, then the least number.

    SimPy's own priorities are 0 and 1, so all that an alarm sets off at once comes before the next one.
    """

    def __init__(self, env: simpy.Environment, time_ns: float, kind: int, number: int) -> None:
        """``kind``, ``number``: the kernel's entry for such an event."""
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, priority=2 + (kind << 32) + number, delay=int(time_ns) - env.now)


@dataclass(eq=False, slots=True)
class Request:
    """A turn in flight."""

    agent: int
    turn: int
    prompt: int
    hit: int
    output: int
    both_chosen: simpy.Event
    computed: simpy.Event  # its value: when the KV-cache is in the decode engine's HBM
    decoded: simpy.Event
    prefill: int = _NO_ENGINE
    decode: int = _NO_ENGINE
    on_prefill: int = 0  # hit tokens that the prefill node reads
    on_decode: int = 0
    done: int = 0  # miss tokens that are computed
    chunk: int = 0  # those in the forward batch that runs
    context: int = 0  # tokens of KV-cache that a decode step reads

    @property
    def miss(self) -> int:
        return self.prompt - self.hit

    @property
    def hold(self) -> int:
        """Tokens of the decode engine's HBM that it may come to need."""
        return self.prompt + self.output


class Node:
    """A node: its DRAM buffer, its storage NIC, and the resources that KV-cache passes on it."""

    def __init__(self, env: simpy.Environment, run: Simulation, number: int) -> None:
        """``number``: among all nodes."""
        machine, room = run.sim.machine, int(run.sim.world.buffer_free[number])
        self.env = env
        self.number = number
        self.read_rate = float(run.sim.nodes.read_rate[number])
        self.buffer = simpy.Container(env, capacity=room, init=room)
        self.storage_nic = simpy.Resource(env)
        tables = (machine.near_s, machine.far_s, machine.miss_s)
        self.token_s = np.stack([table[:, number] for table in tables], axis=-1).tolist()
        self.shares = machine.own[number].tolist()
        self.busy_until_ns: dict[tuple[int, int], float] = defaultdict(float)

    def use(self, phase: int, engine: int, near: int, far: int, miss: int) -> float:
        """Give the resources the work of tokens that pass in a phase; return when all have done it.

        Each serves in the order of asking at its whole rate, so the end is known when asking. Some are
        shared out: an engine has a part of the rate, and its own order.
        """
        end = now = float(self.env.now)
        for column, (near_s, far_s, miss_s) in enumerate(self.token_s[phase]):
            work_s = near * near_s + far * far_s + miss * miss_s
            if work_s > 0.0:
                shares = self.shares[column] if engine != _NO_ENGINE else 0
                who = (column, engine if shares else _NO_ENGINE)
                until = max(self.busy_until_ns[who], now) + work_s * (shares or 1) * SECOND
                self.busy_until_ns[who] = until
                end = max(end, until)
        return end


class PrefillEngine:
    """One engine of a prefill unit: what is ready is computed first in, first out."""

    def __init__(self, model: Model, number: int) -> None:
        """``number``: among all prefill engines."""
        self.model, self.machine = model, model.machine
        self.attention = attention.AttentionTime(*self.machine.attention[number].tolist())
        more_s = float(self.machine.quota_token_s[number])
        self.quota = self.attention._replace(token_s=self.attention.token_s + more_s)
        self.linear_s = float(self.machine.linear_s[number])
        self.hbm_tokens = int(self.machine.batch_room[number])
        self.ready: deque[Request] = deque()
        self.batch: list[Request] = []

    def fill(self) -> float:
        """Choose the next batch by the compute quota; return how long it computes."""
        self.batch = []
        if not self.ready:
            return 0.0
        rules, machine, fitting = self.model.rules, self.machine, self.fitting()
        cached = [request.hit + request.done for request in fitting]
        left = [request.miss - request.done for request in fitting]
        limits = (machine.quota_s, machine.token_limit)
        whole, part = rules.pack(self.quota, np.array(cached), np.array(left), *limits)
        if whole == 0 and part == 0:  # one block of the head alone, so that it advances
            part = min(machine.block_tokens, left[0])
        chunks = left[:whole] + ([int(part)] if part > 0 else [])
        seconds = self.attention.fixed_s
        for request, start, request.chunk in zip(fitting, cached, chunks, strict=False):
            self.batch.append(request)
            seconds += rules.chunk_seconds(self.attention, start, request.chunk)
        return float(seconds + sum(chunks) * self.linear_s)

    def fitting(self) -> list[Request]:
        """Return the first requests whose context fits HBM together; the head always does."""
        found: list[Request] = []
        room = self.hbm_tokens
        for request in self.ready:
            room -= request.prompt
            if len(found) == self.model.batch_requests or (room < 0 and found):
                break
            found.append(request)
        return found


class PrefillUnit:
    """Prefill engines that run forward batches in step."""

    def __init__(self, model: Model, number: int) -> None:
        """``number``: among the prefill units."""
        self.model, self.env, self.machine = model, model.env, model.machine
        self.number = number
        first, last = self.machine.prefill_first[number : number + 2].tolist()
        self.engines = {engine: PrefillEngine(model, engine) for engine in range(first, last)}
        self.work = self.env.event()
        self.env.process(self.serve())

    def take_up(self, request: Request) -> None:
        """A request's hits are in memory."""
        self.engines[request.prefill].ready.append(request)
        if not self.work.triggered:
            self.work.succeed()

    def serve(self) -> Process:
        """Run one batch after the other while any engine has work."""
        while True:
            if not any(engine.ready for engine in self.engines.values()):
                self.work = self.env.event()
                yield self.work
                yield Alarm(self.env, self.env.now, state.PREFILL_ENTRY, self.number)
            yield Alarm(self.env, self.start_batch() + 1, state.PREFILL_ENTRY, self.number)
            self.end_batch()

    def start_batch(self) -> float:
        """Fill a batch on every engine; return when the slowest has computed it, in ns."""
        loaded_ns, compute_s = float(self.env.now), 0.0
        for engine in self.engines.values():
            compute_s = max(compute_s, engine.fill())
            for request in engine.batch:
                first = request.done == 0
                if first or self.machine.layerwise:  # a layer at a time: again with every chunk
                    phase = LOAD if first else LOAD_AGAIN
                    loaded_ns = max(loaded_ns, self.model.use_both(phase, request, 0))
        compute_ns = (compute_s + self.machine.batch_s) * SECOND
        begun_ns = self.env.now if self.machine.layerwise else loaded_ns
        return max(begun_ns + compute_ns, loaded_ns)

    def end_batch(self) -> None:
        """Requests with all their misses computed go on to decode."""
        for engine in self.engines.values():
            for request in engine.batch:
                request.done += request.chunk
                if request.done == request.miss:
                    engine.ready.popleft()
                    self.model.first_token(request)


class DecodeUnit:
    """Decode engines that step together, as fast as the slowest.

    The unit sleeps until its next milestone: a request completes a block of KV-cache, or ends.
    """

    def __init__(self, model: Model, number: int) -> None:
        """``number``: among the decode units."""
        self.model, self.env, self.machine = model, model.env, model.machine
        self.number = number
        first, last = self.machine.decode_first[number : number + 2].tolist()
        self.requests = dict.fromkeys(range(first, last), 0)
        self.context = dict.fromkeys(range(first, last), 0)
        self.engine_step_s = dict.fromkeys(range(first, last), 0.0)
        self.step_s = 0.0
        self.progress, self.since_ns = 0.0, 0
        self.milestones: list[tuple[float, int, int, Request]] = []  # step, agent, tokens generated
        self.process = self.env.process(self.serve())

    def serve(self) -> Process:
        """Go from milestone to milestone; who joins interrupts the wait."""
        while True:
            milestone = self.env.event()  # never, if there is none
            if self.milestones:
                steps = max(0.0, self.milestones[0][0] - self.progress)
                time_ns = self.env.now + int(steps * self.step_s * SECOND) + 1
                milestone = Alarm(self.env, time_ns, state.DECODE_ENTRY, self.number)
            try:
                yield milestone
            except simpy.Interrupt:
                continue
            self.milestone()

    def join(self, request: Request) -> int:
        """Decode a request from the next step on, its second token; return when that comes."""
        self.advance()
        begins = math.ceil(self.progress - _SAME_STEP)
        self.aim(request, begins, 1)
        self.change(request, 1, request.prompt)
        self.process.interrupt()
        steps = begins + 1 - self.progress  # those who join before then are not foreseen
        return self.env.now + int(steps * self.step_s * SECOND)

    def milestone(self) -> None:
        """The next request has completed a block, which is stored, or has its last token."""
        self.advance()
        step, _, generated, request = heapq.heappop(self.milestones)
        engine, block = request.decode, self.machine.block_tokens
        if (request.prompt + generated) % block == 0 and generated <= request.output:
            self.model.decode_node[engine].use(GENERATE, engine, 0, 0, block)
        if generated < request.output:
            self.aim(request, step, generated)
            self.change(request, 0, block)
        else:
            self.change(request, -1, -request.context)
            request.decoded.succeed()

    def aim(self, request: Request, step: float, generated: int) -> None:
        """A request with ``generated`` tokens at a step goes on to the end of its block, or its own."""
        block = self.machine.block_tokens
        steps = block - (request.prompt + generated) % block
        steps = max(1, min(steps, request.output - generated))
        entry = (step + steps, request.agent, generated + steps, request)
        heapq.heappush(self.milestones, entry)

    def advance(self) -> None:
        """Bring the progress up to date; an empty unit starts again at a whole step."""
        if self.milestones:
            self.progress += (self.env.now - self.since_ns) / SECOND / self.step_s
        else:
            self.progress = 0.0
        self.since_ns = self.env.now

    def change(self, request: Request, requests: int, tokens: int) -> None:
        """A request comes, grows or goes: its engine's next steps take overhead and roofline of that."""
        machine, engine = self.machine, request.decode
        request.context += tokens
        self.context[engine] += tokens
        self.requests[engine] += requests
        count, seconds = self.requests[engine], 0.0
        if count > 0:
            read_s = machine.weights_s[machine.step_kind[engine], count]
            read_s += self.context[engine] * machine.kv_s[engine]
            seconds = machine.step_s + count * machine.request_step_s
            seconds += max(read_s, count * machine.flop_s[engine])
        self.engine_step_s[engine] = float(seconds)
        self.step_s = max(self.engine_step_s.values())


class Model:
    """The whole system; :meth:`run` runs it."""

    def __init__(self, run: Simulation) -> None:
        """``run``: prepared and not begun. It is used up: the scheduler's arrays are its own."""
        sim = run.sim
        self.env = simpy.Environment()
        self.machine, self.traffic = sim.machine, sim.traffic
        self.batch_requests = len(sim.world.cached)
        self.rules = SimpleNamespace(**{rule.__name__: run.bind(rule) for rule in _RULES})
        self.accounts = self.prefill, self.decode, self.nodes = sim.prefill, sim.decode, sim.nodes
        nodes = [Node(self.env, run, node) for node in range(len(sim.nodes.read_q))]
        self.prefill_node = [nodes[node] for node in sim.prefill.node]  # of each engine
        self.decode_node = [nodes[node] for node in sim.decode.node]
        prefilling = [PrefillUnit(self, unit) for unit in range(len(sim.machine.prefill_first) - 1)]
        self.prefill_unit = [prefilling[unit] for unit in sim.machine.prefill_unit]
        decoding = [DecodeUnit(self, unit) for unit in range(len(sim.machine.decode_first) - 1)]
        self.decode_unit = [decoding[unit] for unit in sim.machine.decode_unit]
        self.in_hbm_ns = dict.fromkeys(nodes, 0)
        self.for_prefill: deque[Request] = deque()
        self.for_decode: deque[Request] = deque()
        self.prefill_queues: list[deque[Request]] = [deque() for _ in sim.prefill.group_tok]
        self.decode_queues: list[deque[Request]] = [deque() for _ in sim.decode.group_tok]
        self.rows: list[tuple[int, ...]] = []
        for kind, fetch, queues in (
            (state.PREFILL_LEADER_ENTRY, self.fetch_prefill, self.prefill_queues),
            (state.DECODE_LEADER_ENTRY, self.fetch_decode, self.decode_queues),
        ):
            for group in range(len(queues)):
                self.env.process(self.lead(kind, fetch, group, len(queues)))
        agents = [self.env.process(self.agent(agent)) for agent in range(len(sim.traffic.first))]
        self.all_ended = self.env.all_of(agents)

    def run(self, until_s: float = math.inf) -> np.ndarray:
        """Run until every agent is done, or ``until_s``; return the turns that ended, by their end.

        Columns as ``state.RESULT_FIELDS``, times in ns.
        """
        time_is_up = Alarm(self.env, whole_ns(until_s), state.ALL_ENTRIES, 0)
        self.env.run(until=self.all_ended | time_is_up)
        return np.array(self.rows, dtype=np.int64).reshape(-1, len(state.RESULT_FIELDS))

    # ---- agents and their turns ------------------------------------------------------------------

    def agent(self, agent: int) -> Process:
        """An agent runs its session: one turn after the other, thinking before each but the first."""
        traffic, env = self.traffic, self.env
        yield Alarm(env, traffic.start_ns[agent], state.SLEEP_ENTRY, agent)
        for turn in range(traffic.first[agent], traffic.last[agent]):
            if turn > traffic.first[agent] and traffic.think_ns[turn] > 0:
                yield Alarm(env, env.now + traffic.think_ns[turn], state.SLEEP_ENTRY, agent)
            columns = (traffic.prompt, traffic.hit, traffic.output)
            events = (env.event(), env.event(), env.event())
            request = Request(agent, turn, *(int(column[turn]) for column in columns), *events)
            yield from self.turn(request)

    def turn(self, request: Request) -> Process:
        """A turn from submission to its last token."""
        times = [self.env.now]  # submitted, and so on as in ``state.RESULT_TIMES``
        self.for_prefill.append(request)
        self.for_decode.append(request)
        yield request.both_chosen
        times.append(self.env.now)  # placed
        here, there = self.prefill_node[request.prefill], self.decode_node[request.decode]

        # The decode side comes first everywhere, so nobody waits in a circle.
        yield from self.take_room(there, request.prompt)
        yield from self.take_room(here, request.on_prefill)
        times.append(self.env.now)  # allocated

        parts = ((here, request.on_prefill), (there, request.on_decode))
        yield self.env.all_of([self.env.process(self.read(*part)) for part in parts if part[1] > 0])
        times.append(self.env.now)  # read

        self.prefill_unit[request.prefill].take_up(request)
        in_hbm_ns = yield request.computed
        times.append(self.env.now)  # first token
        yield Alarm(self.env, in_hbm_ns, state.MOVE_ENTRY, there.number)
        there.buffer.put(request.prompt)
        times.append(self.env.now)  # admitted

        second_ns = self.decode_unit[request.decode].join(request)
        yield request.decoded
        left = (-1, -request.prompt, -request.hold)
        self.rules.add_decode(self.decode, self.nodes, request.decode, *left)
        times += [min(second_ns, self.env.now), self.env.now]  # second token, ended
        names = (request.agent, request.turn, request.prefill, request.decode, request.on_decode)
        self.rows.append((*names, *times))

    def take_room(self, node: Node, tokens: int) -> Process:
        """Wait for room in a node's buffer; who finds room goes on before anybody else moves."""
        if tokens > 0:
            taken = node.buffer.get(tokens)
            if not taken.triggered:
                yield taken

    def read(self, node: Node, tokens: int) -> Process:
        """A node reads its part of a request's hits from storage."""
        with node.storage_nic.request() as mine:
            yield mine
            node.use(READ, _NO_ENGINE, tokens, 0, 0)  # memory works too; the read does not queue
            behind_s = max(tokens * near_s for near_s, _, _ in node.token_s[READ])
            seconds = max(tokens / node.read_rate, behind_s)
            end_ns = self.env.now + int(seconds * SECOND) + 1
            yield Alarm(self.env, end_ns, state.NIC_ENTRY, node.number)
        self.rules.add_read(*self.accounts, node.number, -tokens)

    def first_token(self, request: Request) -> None:
        """Prefill is done: the KV-cache moves into the decode engine's HBM, new blocks are stored."""
        rules, block, prompt = self.rules, self.machine.block_tokens, request.prompt
        here, there = self.prefill_node[request.prefill], self.decode_node[request.decode]
        rules.add_prefill(self.prefill, self.nodes, request.prefill, -1, -prompt)
        tokens = (request.on_prefill, request.on_decode, request.miss)
        rules.add_transfers(*self.accounts, here.number, there.number, *tokens, -1)
        moved_ns = int(self.use_both(MOVE, request, request.miss)) + 1
        blocks = (prompt + 1) // block - request.hit // block
        there.use(APPEND, request.decode, 0, 0, blocks * block)
        if request.on_prefill > 0:
            here.buffer.put(request.on_prefill)
        self.in_hbm_ns[there] = max(moved_ns, self.in_hbm_ns[there])  # in the order of asking
        request.computed.succeed(self.in_hbm_ns[there])

    def use_both(self, phase: int, request: Request, miss: int) -> float:
        """Give the resources of a request's two nodes the work of a phase; return when it is done."""
        engine, other = request.prefill, request.decode
        near, far = request.on_prefill, request.on_decode
        end = self.prefill_node[engine].use(phase, engine, near, far, miss)
        return max(end, self.decode_node[other].use(phase, other, far, near, miss))

    # ---- leaders ---------------------------------------------------------------------------------

    def lead(self, kind: int, fetch: Callable[[int], None], group: int, groups: int) -> Process:
        """A group's leader fetches every so often; the leaders of a pool take turns, evenly apart."""
        next_ns = (group + 1) * self.machine.fetch_ns // groups
        while True:
            yield Alarm(self.env, next_ns, kind, group)
            fetch(group)
            next_ns += self.machine.fetch_ns

    def fetch_prefill(self, group: int) -> None:
        """Give the group's engines to those who wait, in order, until none takes one."""
        queue, private = self.for_prefill, self.machine.private
        if private:
            while (
                queue and (to := self.rules.designate_prefill(self.prefill, queue[0].prompt)) >= 0
            ):
                self.prefill_queues[to].append(queue.popleft())
            queue = self.prefill_queues[group]
        placed = np.empty((1, 6), dtype=np.int64)
        while queue:
            request = queue[0]
            columns = np.array([[request.prompt], [request.hit], [request.decode]])
            if self.rules.place_prefill(*self.accounts, group, private, *columns, placed) == 0:
                break
            request.prefill, _, request.on_prefill, request.on_decode = placed[0, :4].tolist()
            self.chosen(queue.popleft())

    def fetch_decode(self, group: int) -> None:
        """Phase 1 for all who wait, until one finds no group; phase 2 in the leader's own."""
        while self.for_decode:
            sizes = (self.for_decode[0].prompt, self.for_decode[0].hold)
            to = self.rules.designate_decode(self.decode, *sizes)
            if to < 0:
                break
            self.decode_queues[to].append(self.for_decode.popleft())
        queue, z_factor = self.decode_queues[group], self.machine.z_factor
        if not queue:
            return
        columns = np.array([(r.prompt, r.hit, r.hold, r.prefill) for r in queue]).T.copy()
        placed = np.empty((len(queue), 7), dtype=np.int64)
        count, _ = self.rules.place_decode(*self.accounts, group, z_factor, *columns, placed)
        for row in placed[:count, :4].tolist():
            request = queue.popleft()
            request.decode, _, request.on_prefill, request.on_decode = row
            self.chosen(request)

    def chosen(self, request: Request) -> None:
        """A request has got an engine; with both, it is known who reads what, and it goes on."""
        if _NO_ENGINE not in (request.prefill, request.decode):
            request.both_chosen.succeed()
