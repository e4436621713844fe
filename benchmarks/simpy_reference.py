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
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from dualpath_model.scheduler import attention, packing, placement
from solvers.simulator import state
from solvers.simulator.model import Simulation
from solvers.simulator.state import APPEND, GENERATE, LOAD, MOVE, READ, SECOND

Process = Generator[simpy.Event, Any, None]

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
    prefill: int = -1  # engine
    decode: int = -1
    on_prefill: int = 0  # hit tokens that the prefill node reads
    on_decode: int = 0
    done: int = 0  # miss tokens that are computed
    chunk: int = 0  # those in the forward batch that runs
    times: list[int] = field(default_factory=list)  # ``state.RESULT_TIMES`` so far

    @property
    def left(self) -> int:
        """Tokens that are still to be computed."""
        return self.prompt - self.hit - self.done

    def row(self) -> tuple[int, ...]:
        """Return a turn that has ended as a row of the results."""
        *before, second, ended = self.times
        names = (self.agent, self.turn, self.prefill, self.decode, self.on_decode)
        return (*names, *before, min(second, ended), ended)


class Scheduler:
    """The policy's own functions over the prepared arrays, plain or compiled."""

    def __init__(self, run: Simulation) -> None:
        """``run``: whose arrays these are from now on."""
        self.prefill, self.decode, self.nodes = run.sim.prefill, run.sim.decode, run.sim.nodes
        self.all = (self.prefill, self.decode, self.nodes)
        self.z_factor, self.private = run.sim.machine.z_factor, run.sim.machine.private
        self.designate_prefill = run.bind(placement.designate_prefill)
        self.designate_decode = run.bind(placement.designate_decode)
        self.place_prefill = run.bind(placement.place_prefill)
        self.place_decode = run.bind(placement.place_decode)
        self.add_prefill = run.bind(placement.add_prefill)
        self.add_decode = run.bind(placement.add_decode)
        self.add_read = run.bind(placement.add_read)
        self.add_transfers = run.bind(placement.add_transfers)
        self.pack = run.bind(packing.pack)
        self.chunk_seconds = run.bind(attention.chunk_seconds)

    def prefill_group(self, request: Request) -> int:
        return int(self.designate_prefill(self.prefill, request.prompt))

    def decode_group(self, request: Request) -> int:
        hold = request.prompt + request.output
        return int(self.designate_decode(self.decode, request.prompt, hold))

    def offer_prefill(self, group: int, request: Request) -> bool:
        """Offer a request to a prefill group; tell whether an engine takes it."""
        placed = np.empty((1, 6), dtype=np.int64)
        columns = np.array([[request.prompt], [request.hit], [request.decode]])
        if self.place_prefill(*self.all, group, self.private, *columns, placed) == 0:
            return False
        request.prefill, request.on_prefill, request.on_decode = placed[0, [0, 2, 3]].tolist()
        return True

    def offer_decode(self, group: int, waiting: Sequence[Request]) -> int:
        """Offer requests to a decode group; return how many, from the first on, have an engine now."""
        rows = [(r.prompt, r.hit, r.prompt + r.output, r.prefill) for r in waiting]
        columns = np.array(rows).T.copy()
        placed = np.empty((len(rows), 7), dtype=np.int64)
        count, _ = self.place_decode(*self.all, group, self.z_factor, *columns, placed)
        for request, row in zip(waiting, placed[:count].tolist(), strict=False):
            request.decode, request.on_prefill, request.on_decode = row[0], row[2], row[3]
        return int(count)


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
        self.busy_until_ns = [0.0] * machine.near_s.shape[-1]

    def use(self, phase: int, near: int, far: int, miss: int) -> float:
        """Give the resources the work of tokens that pass in a phase; return when all have done it.

        Each serves in the order of asking at its whole rate, so the end is known when asking.
        """
        end = now = float(self.env.now)
        for column, (near_s, far_s, miss_s) in enumerate(self.token_s[phase]):
            work_s = near * near_s + far * far_s + miss * miss_s
            if work_s > 0.0:
                until = max(self.busy_until_ns[column], now) + work_s * SECOND
                self.busy_until_ns[column] = until
                end = max(end, until)
        return end

    def read(self, tokens: int) -> float:
        """Begin a storage read; return its end: as fast as the NIC and the memory behind it allow."""
        nic_ns = self.env.now + tokens / self.read_rate * SECOND
        return max(nic_ns, self.use(READ, tokens, 0, 0))


class PrefillEngine:
    """One engine of a prefill unit: what is ready is computed first in, first out."""

    def __init__(self, model: Model, number: int) -> None:
        """``number``: among all prefill engines."""
        machine = model.machine
        self.model = model
        self.quota = attention.AttentionTime(*machine.attention[number].tolist())
        self.linear_s = float(machine.linear_s[number])
        self.hbm_tokens = int(machine.batch_room[number])
        self.ready: deque[Request] = deque()
        self.batch: list[Request] = []

    def fill(self) -> float:
        """Choose the next batch by the compute quota; return how long it computes."""
        rules, machine = self.model.scheduler, self.model.machine
        self.batch = self.fitting()
        if not self.batch:
            return 0.0
        cached = [request.hit + request.done for request in self.batch]
        left = [request.left for request in self.batch]
        limits = (machine.quota_s, machine.token_limit)
        whole, part = rules.pack(self.quota, np.array(cached), np.array(left), *limits)
        if whole == 0 and part == 0:  # one block of the head alone, so that it advances
            part = min(machine.block_tokens, left[0])
        chunks = left[:whole] + ([int(part)] if part > 0 else [])
        self.batch = self.batch[: len(chunks)]
        seconds = self.quota.fixed_s
        for request, start, chunk in zip(self.batch, cached, chunks, strict=False):
            request.chunk = chunk
            seconds += rules.chunk_seconds(self.quota, start, chunk)
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
                if request.done == 0:  # its hits come with its first chunk
                    loaded_ns = max(loaded_ns, self.model.use_both(LOAD, request, 0))
        compute_ns = (compute_s + self.machine.batch_s) * SECOND
        if self.machine.layerwise:
            return max(self.env.now + compute_ns, loaded_ns)
        return loaded_ns + compute_ns

    def end_batch(self) -> None:
        """Requests with all their misses computed go on to decode."""
        for engine in self.engines.values():
            for request in engine.batch:
                request.done += request.chunk
                if request.left == 0:
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
            try:
                yield self.next_milestone()
            except simpy.Interrupt:
                continue
            self.milestone()

    def next_milestone(self) -> simpy.Event:
        """Return the event of the next milestone, if nothing changes before."""
        if not self.milestones:
            return self.env.event()
        steps = max(0.0, self.milestones[0][0] - self.progress)
        time_ns = self.env.now + int(steps * self.step_s * SECOND) + 1
        return Alarm(self.env, time_ns, state.DECODE_ENTRY, self.number)

    def join(self, request: Request) -> None:
        """Decode a request from the next step on; its first token came with prefill."""
        self.advance()
        begins = math.ceil(self.progress - _SAME_STEP)
        self.aim(request, begins, 1)
        self.requests[request.decode] += 1
        self.context[request.decode] += request.prompt
        self.reckon(request.decode)
        steps = begins + 1 - self.progress  # those who join before then are not foreseen
        request.times.append(self.env.now + int(steps * self.step_s * SECOND))
        self.process.interrupt()

    def milestone(self) -> None:
        """The next request has completed a block, which is stored, or has its last token."""
        self.advance()
        step, _, generated, request = heapq.heappop(self.milestones)
        engine, length, block = (
            request.decode,
            request.prompt + generated,
            self.machine.block_tokens,
        )
        if length % block == 0 and generated <= request.output:
            self.model.decode_node[engine].use(GENERATE, 0, 0, block)
        if generated < request.output:
            self.context[engine] += block
            self.aim(request, step, generated)
        else:
            counted = (length - 1) // block - (request.prompt + 1) // block
            self.requests[engine] -= 1
            self.context[engine] -= request.prompt + counted * block
            self.model.last_token(request)
        self.reckon(engine)

    def aim(self, request: Request, step: float, generated: int) -> None:
        """A request with ``generated`` tokens at a step goes on to the end of its block, or its own."""
        block = self.machine.block_tokens
        steps = block - (request.prompt + generated) % block
        steps = max(1, min(steps, request.output - generated))
        milestone = (step + steps, request.agent, generated + steps, request)
        heapq.heappush(self.milestones, milestone)

    def advance(self) -> None:
        """Bring the progress up to date; an empty unit starts again at a whole step."""
        if self.milestones:
            self.progress += (self.env.now - self.since_ns) / SECOND / self.step_s
        else:
            self.progress = 0.0
        self.since_ns = self.env.now

    def reckon(self, engine: int) -> None:
        """Bring the step time up to date with one engine: overhead and roofline."""
        machine, count = self.machine, self.requests[engine]
        seconds = 0.0
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
        self.scheduler = Scheduler(run)
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
        self.start_leaders()
        agents = [self.env.process(self.agent(agent)) for agent in range(len(sim.traffic.first))]
        self.all_ended = self.env.all_of(agents)

    def run(self, until_s: float = math.inf) -> np.ndarray:
        """Run until every agent is done, or ``until_s``; return the turns that ended, by their end.

        Columns as ``state.RESULT_FIELDS``, times in ns.
        """
        stop = self.all_ended
        if math.isfinite(until_s):
            stop = stop | Alarm(self.env, until_s * SECOND, state.ALL_ENTRIES, 0)
        self.env.run(until=stop)
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
            sizes = (int(column[turn]) for column in columns)
            yield from self.turn(
                Request(agent, turn, *sizes, env.event(), env.event(), env.event())
            )

    def turn(self, request: Request) -> Process:
        """A turn from submission to its last token."""
        times = request.times
        times.append(self.env.now)  # submitted
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
        in_hbm_ns = yield request.computed  # and the first token is out
        yield Alarm(self.env, in_hbm_ns, state.MOVE_ENTRY, there.number)
        there.buffer.put(request.prompt)
        times.append(self.env.now)  # admitted

        self.decode_unit[request.decode].join(request)
        yield request.decoded
        times.append(self.env.now)  # ended
        self.rows.append(request.row())

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
            yield Alarm(self.env, node.read(tokens) + 1, state.NIC_ENTRY, node.number)
        self.scheduler.add_read(*self.scheduler.all, node.number, -tokens)

    def first_token(self, request: Request) -> None:
        """Prefill is done: the KV-cache moves into the decode engine's HBM, new blocks are stored."""
        rules, block = self.scheduler, self.machine.block_tokens
        here, there = self.prefill_node[request.prefill], self.decode_node[request.decode]
        prompt, miss = request.prompt, request.prompt - request.hit
        request.times.append(self.env.now)
        rules.add_prefill(rules.prefill, rules.nodes, request.prefill, -1, -prompt)
        reads = (request.on_prefill, request.on_decode)
        rules.add_transfers(*rules.all, here.number, there.number, *reads, miss, -1)
        moved_ns = int(self.use_both(MOVE, request, miss)) + 1
        there.use(APPEND, 0, 0, ((prompt + 1) // block - request.hit // block) * block)
        if request.on_prefill > 0:
            here.buffer.put(request.on_prefill)
        self.in_hbm_ns[there] = max(moved_ns, self.in_hbm_ns[there])  # in the order of asking
        request.computed.succeed(self.in_hbm_ns[there])

    def last_token(self, request: Request) -> None:
        """The decode engine has done with a request."""
        rules, prompt = self.scheduler, request.prompt
        hold = prompt + request.output
        rules.add_decode(rules.decode, rules.nodes, request.decode, -1, -prompt, -hold)
        request.decoded.succeed()

    def use_both(self, phase: int, request: Request, miss: int) -> float:
        """Give the resources of a request's two nodes the work of a phase; return when it is done."""
        near, far = request.on_prefill, request.on_decode
        end = self.prefill_node[request.prefill].use(phase, near, far, miss)
        return max(end, self.decode_node[request.decode].use(phase, far, near, miss))

    # ---- leaders ---------------------------------------------------------------------------------

    def start_leaders(self) -> None:
        """One leader for each group; they are not in step with each other."""
        prefill = [(self.fetch_prefill, group) for group in range(len(self.prefill_queues))]
        decode = [(self.fetch_decode, group) for group in range(len(self.decode_queues))]
        leaders = prefill + decode
        for place, (fetch, group) in enumerate(leaders):
            first_ns = (place + 1) * self.machine.fetch_ns // len(leaders)
            self.env.process(self.lead(fetch, group, place, first_ns))

    def lead(self, fetch: Callable[[int], None], group: int, place: int, next_ns: int) -> Process:
        """A group's leader fetches every so often."""
        while True:
            yield Alarm(self.env, next_ns, state.PREFILL_LEADER_ENTRY, place)
            fetch(group)
            next_ns += self.machine.fetch_ns

    def fetch_prefill(self, group: int) -> None:
        """Give the group's engines to those who wait, in order, until none takes one."""
        queue = self.for_prefill
        if self.machine.private:
            designate(queue, self.prefill_queues, self.scheduler.prefill_group)
            queue = self.prefill_queues[group]
        while queue and self.scheduler.offer_prefill(group, queue[0]):
            self.chosen(queue.popleft())

    def fetch_decode(self, group: int) -> None:
        """Phase 1 for all who wait, phase 2 in the group."""
        designate(self.for_decode, self.decode_queues, self.scheduler.decode_group)
        queue = self.decode_queues[group]
        if queue:
            for _ in range(self.scheduler.offer_decode(group, queue)):
                self.chosen(queue.popleft())

    def chosen(self, request: Request) -> None:
        """A request has got an engine; with both, it is known who reads what, and it goes on."""
        if request.prefill >= 0 and request.decode >= 0:
            request.both_chosen.succeed()


def designate(
    common: deque[Request],
    queues: Sequence[deque[Request]],
    group_of: Callable[[Request], int],
) -> None:
    """Move those who wait to the queues of their groups, in order, until one has no group."""
    while common and (group := group_of(common[0])) >= 0:
        queues[group].append(common.popleft())
