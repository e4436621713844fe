"""A plain event loop around the reference scheduler: what a router and its leaders do, in one page.

It exists to try and compare policies through the very event API that a deployment uses, and to write
decision logs. Time is spent where the scheduler's choices show: first in, first out reads on each
storage NIC; prefill rounds in which all engines of a group wait for the slowest, packed by the quota;
decode steps that slow down with the batch. Transfers between memories take no time here, so what needs
compute NICs or DRAM to run out needs the simulator.

Agents run their sessions turn after turn: all start at once, or as a Poisson process.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualpath_model.compilation import bound
from dualpath_model.loads import DecodeStep, decode_step
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler import events
from dualpath_model.scheduler.attention import AttentionTime, batch_seconds
from dualpath_model.scheduler.events import Decision, EngineReport, NodeJoined
from dualpath_model.scheduler.packing import pack
from dualpath_model.scheduler.policies import policy_named
from dualpath_model.scheduler.reference import Scheduler
from dualpath_model.scheduler.setup import engine_flop_per_s, node_name, quota_model
from solvers.spread import spread

FETCH_S = 0.05
"""How often each group's leader fetches."""


@dataclass(frozen=True)
class Driven:
    """What happened. Imbalances are max over mean, 1 being even."""

    policy: str
    agents: int
    simulated_s: float
    """When the last turn ended, or when the run was stopped."""
    turns: int
    """Turns that ended."""
    sessions_finished: int
    ttft_s: dict[str, float]
    """mean, p50, p90, p99 and max over the turns that had a first token."""
    tpot_s: dict[str, float]
    snic_max_over_mean: float
    """Bytes read by the storage NICs over the whole run."""
    snic_max_over_mean_windows: float
    """Mean over windows of ``window_s``, each weighted by its bytes."""
    attention_max_over_mean: float
    """Attention time of the engines of a group in a forward round, over all rounds in which every
    engine of the group has work: sum of the maxima over sum of the means."""
    read_tokens: dict[str, int]
    """Tokens read, by node."""
    window_s: float
    seed: int


@dataclass(slots=True)
class _Turn:
    """One request on its way."""

    session: int
    index: int
    submitted_s: float
    hit: int
    miss: int
    output: int
    attempt: int = 1
    prefill: str = ""
    decode: str = ""
    key: float = 0.0
    computed: int = 0
    first_token_s: float = -1.0
    read: dict[str, int] = field(default_factory=dict)


class _PrefillEngine:
    def __init__(self, model: AttentionTime, linear_s_per_token: float, whole: bool) -> None:
        self.model = model
        more_s = linear_s_per_token if whole else 0.0
        self.quota = model._replace(token_s=model.token_s + more_s)
        self.linear_s_per_token = linear_s_per_token
        self.ready: list[tuple[float, str]] = []
        self.assigned: dict[str, _Turn] = {}


class _DecodeEngine:
    """Requests progress together, one token a step; ``progress`` is the tokens made since the start."""

    def __init__(self, step: DecodeStep) -> None:
        self.step = step
        self.progress = 0.0
        self.since_s = 0.0
        self.epoch = 0
        self.running: list[tuple[float, str]] = []  # progress at the end, request
        self.assigned: dict[str, _Turn] = {}

    def advance(self, now_s: float) -> None:
        if self.running:
            self.progress += (now_s - self.since_s) / self.step.seconds(len(self.running))
        self.since_s = now_s


def drive(
    scenario: Scenario,
    settings: events.Settings,
    nodes: Sequence[NodeJoined],
    *,
    agents: int,
    rate_aps: float | None = None,
    stop_s: float = np.inf,
    window_s: float = 10.0,
    seed: int = 0,
    batch_tokens: int = 0,
    compiled: bool = True,
    prepare: Callable[[Scheduler], None] | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> Driven:
    """Run ``agents`` sessions of the scenario's workload (again from the first if it has fewer).

    ``rate_aps``: agents a second, Poisson; None: all at once. ``batch_tokens``: most tokens of an
    engine's forward batch, beside the quota (0: no limit). ``stop_s``: simulated seconds after which
    to stop. ``prepare`` gets the scheduler before its first event, ``progress`` simulated seconds and
    ended turns now and then.
    """
    run = _Run(
        scenario, Scheduler(settings, compiled=compiled), nodes, seed, window_s, batch_tokens
    )
    if prepare is not None:
        prepare(run.scheduler)
    for node in nodes:
        run.scheduler.handle(node)
    starts = np.zeros(agents)
    if rate_aps is not None:
        starts = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate_aps, agents))
    for agent, start in enumerate(starts):
        run.at(float(start), run.submit, agent, 0)
    run.loop(stop_s, progress)
    return run.result(settings.policy, agents)


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        scheduler: Scheduler,
        nodes: Sequence[NodeJoined],
        seed: int,
        window_s: float,
        batch_tokens: int,
    ) -> None:
        self.batch_tokens = batch_tokens
        self.workload = scenario.workload
        self.rules = scenario.rules
        self.scheduler = scheduler
        self.seed = seed
        self.window_s = window_s
        self.now_s = 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.counter = 0
        self.turns: dict[str, _Turn] = {}
        self.nic_free_s = {node.node: 0.0 for node in nodes}
        self.nic_rate = {node.node: node.limits.read_tokens_per_s for node in nodes}
        self.node_of = {engine: node.node for node in nodes for engine in node.engines}
        self.engines: dict[str, list[str]] = {}
        self.nodes: dict[str, list[str]] = {}
        for node in nodes:
            self.engines.setdefault(node.group, []).extend(node.engines)
            self.nodes.setdefault(node.group, []).append(node.node)
        self.group_of = {e: group for group, names in self.engines.items() for e in names}
        self.prefill: dict[str, _PrefillEngine] = {}
        self.decode: dict[str, _DecodeEngine] = {}
        self.whole_quota = policy_named(scheduler.settings.policy).whole_batch_quota
        self._make_engines(scenario, nodes)
        self.busy = dict.fromkeys(self.engines, False)
        self.fetches = dict.fromkeys(self.engines, 0)
        self.pack = bound(pack, compiled=scheduler.ledger.compiled)
        self.read_tokens = dict.fromkeys(self.nic_rate, 0)
        self.windows: dict[int, dict[str, float]] = {}
        self.attention_max_s = self.attention_mean_s = 0.0
        self.ttft_s: list[float] = []
        self.tpot_s: list[float] = []
        self.ended = self.finished = self.live = 0
        self.last_end_s = 0.0
        for i, group in enumerate(self.engines):  # leaders are not in step with each other
            self.at(FETCH_S * (i + 1) / len(self.engines), self.fetch, group)

    def _make_engines(self, scenario: Scenario, nodes: Sequence[NodeJoined]) -> None:
        efficiencies, llm = scenario.efficiencies, scenario.llm
        linear_flops = float(llm.prefill_flops(0.0, 1.0).linear)
        by_name = {node.node: node for node in nodes}
        for pool in (Pool.PREFILL, Pool.DECODE):
            machines = scenario.cluster.nodes(pool)
            gpus = sum(machine.gpus for machine in machines)
            for position, machine in enumerate(machines):
                for engine in by_name[node_name(pool, position)].engines:
                    if pool is Pool.DECODE:
                        step = decode_step(
                            llm, scenario.means, machine, scenario.serving, efficiencies, gpus
                        )
                        self.decode[engine] = _DecodeEngine(step)
                        continue
                    rate = engine_flop_per_s(scenario, machine)
                    self.prefill[engine] = _PrefillEngine(
                        quota_model(scenario, machine), linear_flops / rate, self.whole_quota
                    )

    # ---- the clock ---------------------------------------------------------------------------

    def at(self, time_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something later; equal times in the order of asking."""
        self.counter += 1
        heapq.heappush(self.heap, (time_s, self.counter, action, arguments))

    def loop(self, stop_s: float, progress: Callable[[float, int], None] | None) -> None:
        """Run until every session has ended, or until ``stop_s``."""
        sessions = sum(1 for entry in self.heap if entry[2] == self.submit)
        happened = 0
        while self.heap and self.finished < sessions:
            time_s, _, action, arguments = heapq.heappop(self.heap)
            if time_s > stop_s:
                self.now_s = stop_s
                break
            self.now_s = time_s
            action(*arguments)
            happened += 1
            if progress is not None and happened % 20_000 == 0:
                progress(self.now_s, self.ended)

    # ---- what happens ------------------------------------------------------------------------

    def submit(self, agent: int, index: int) -> None:
        """Submit a session's turn."""
        session = agent % self.workload.session_count
        row = int(self.workload.offsets[session]) + index
        prompt, hit = int(self.workload.prompt_tokens[row]), int(self.workload.hit_tokens[row])
        output = max(1, int(self.workload.output_tokens[row]))
        name = f"{agent}.{index}"
        self.turns[name] = _Turn(agent, index, self.now_s, hit, prompt - hit, output)
        self.follow(self.scheduler.handle(events.Submit(name, prompt, hit, output)))

    def fetch(self, group: str) -> None:
        """A leader reports and fetches, as it does every so often."""
        reports = {}
        for name in self.engines[group]:
            if name in self.prefill:
                mine = self.prefill[name].assigned.values()
                left = sum(turn.hit + turn.miss - turn.computed for turn in mine)
                reports[name] = EngineReport(len(mine), left)
            else:
                engine = self.decode[name]
                engine.advance(self.now_s)
                held = sum(turn.hit + turn.miss for turn in engine.assigned.values())
                made = sum(
                    self.turns[r].output - (end - engine.progress) for end, r in engine.running
                )
                reports[name] = EngineReport(len(engine.assigned), held + int(made))
        read_q = {
            node: int(max(0.0, self.nic_free_s[node] - self.now_s) * self.nic_rate[node])
            for node in self.nodes[group]
        }
        self.fetches[group] += 1
        self.follow(
            self.scheduler.handle(events.Fetch(group, self.fetches[group], reports, read_q))
        )
        self.at(self.now_s + FETCH_S, self.fetch, group)

    def follow(self, decisions: Sequence[Decision]) -> None:
        """Do what the scheduler decided."""
        for decision in decisions:
            turn = self.turns.get(decision.request)
            if turn is None:
                continue
            if isinstance(decision, events.PrefillPlaced):
                turn.prefill, turn.key = decision.engine, decision.key
                self.prefill[decision.engine].assigned[decision.request] = turn
            elif isinstance(decision, events.DecodePlaced):
                turn.decode = decision.engine
                self.decode[decision.engine].assigned[decision.request] = turn
            elif isinstance(decision, events.ReadOrdered):
                self.read(decision, turn)
            elif isinstance(decision, events.Returned):
                self.give_back(decision, turn)

    def give_back(self, returned: events.Returned, turn: _Turn) -> None:
        """Forget the one engine that a request had; nothing of it is under way (no engine is lost)."""
        if turn.prefill:
            del self.prefill[turn.prefill].assigned[returned.request]
        if turn.decode:
            del self.decode[turn.decode].assigned[returned.request]
        turn.prefill = turn.decode = ""
        turn.attempt = returned.attempt

    def read(self, order: events.ReadOrdered, turn: _Turn) -> None:
        """Queue a read on the storage NICs that do it."""
        parts = {order.prefill_node: order.prefill_tokens, order.decode_node: order.decode_tokens}
        turn.read = {node: tokens for node, tokens in parts.items() if tokens}
        for node, tokens in turn.read.items():
            self.scheduler.handle(events.ReadStarted(order.request, node, order.attempt))
            start = max(self.now_s, self.nic_free_s[node])
            end = start + tokens / self.nic_rate[node]
            self.nic_free_s[node] = end
            self.read_tokens[node] += tokens
            self._count(node, start, end)
            self.at(end, self.read_ended, order.request, node)
        if not turn.read:
            self.ready(order.request)

    def _count(self, node: str, start: float, end: float) -> None:
        """Spread a read's tokens over the windows in which they arrive."""
        rate = self.nic_rate[node]
        while start < end:
            window = int(start / self.window_s + 1e-9)
            until = min(end, (window + 1) * self.window_s)
            row = self.windows.setdefault(window, dict.fromkeys(self.nic_rate, 0.0))
            row[node] += (until - start) * rate
            start = until

    def read_ended(self, name: str, node: str) -> None:
        """A node has read its part."""
        turn = self.turns[name]
        self.scheduler.handle(events.ReadFinished(name, node, turn.attempt))
        del turn.read[node]
        if not turn.read:
            self.ready(name)

    def ready(self, name: str) -> None:
        """All hits are in memory: the prefill engine may take the request up."""
        turn = self.turns[name]
        engine = turn.prefill
        insort(self.prefill[engine].ready, (turn.key, name))
        group = self.group_of[engine]
        if not self.busy[group]:
            self.busy[group] = True
            self.at(self.now_s, self.round, group)

    def round(self, group: str) -> None:
        """One forward batch on every engine of a group; all wait for the slowest."""
        seconds, attention = 0.0, []
        chunks: list[tuple[str, int]] = []
        for name in self.engines[group]:
            engine = self.prefill[name]
            turns = [self.turns[request] for _, request in engine.ready]
            cached = np.array([turn.hit + turn.computed for turn in turns], dtype=np.int64)
            left = np.array([turn.miss - turn.computed for turn in turns], dtype=np.int64)
            whole, part = self.pack(
                engine.quota, cached, left, self.rules.quota_s, self.batch_tokens
            )
            taken = left[:whole].tolist() + ([part] if part else [])
            if turns and not taken:  # one block of the head alone, so that it advances
                taken = [min(self.rules.block_tokens, int(left[0]))]
            sizes = np.array(taken, dtype=np.int64)
            busy_s = batch_seconds(engine.model, cached[: len(sizes)], sizes) if taken else 0.0
            attention.append(busy_s)
            seconds = max(seconds, busy_s + engine.linear_s_per_token * float(sizes.sum()))
            chunks.extend(
                (request, n) for (_, request), n in zip(engine.ready, taken, strict=False)
            )
        if min(attention) > 0:
            self.attention_max_s += max(attention)
            self.attention_mean_s += sum(attention) / len(attention)
        self.at(self.now_s + seconds, self.round_ended, group, chunks)

    def round_ended(self, group: str, chunks: list[tuple[str, int]]) -> None:
        """A forward batch is done: requests with all their misses computed go on to decode."""
        for name, tokens in chunks:
            turn = self.turns[name]
            turn.computed += tokens
            if turn.computed == turn.miss:
                engine = self.prefill[turn.prefill]
                engine.ready.remove((turn.key, name))
                del engine.assigned[name]
                self.first_token(name, turn)
        self.busy[group] = any(self.prefill[name].ready for name in self.engines[group])
        if self.busy[group]:
            self.round(group)

    def first_token(self, name: str, turn: _Turn) -> None:
        """Prefill is done, and with it the first token."""
        self.scheduler.handle(events.PrefillFinished(name, turn.attempt))
        turn.first_token_s = self.now_s
        self.ttft_s.append(self.now_s - turn.submitted_s)
        engine = self.decode[turn.decode]
        engine.advance(self.now_s)
        heapq.heappush(engine.running, (engine.progress + turn.output, name))
        self._next_end(turn.decode)

    def _next_end(self, name: str) -> None:
        """Note when the engine's next request ends, if nothing changes before."""
        engine = self.decode[name]
        engine.epoch += 1
        if engine.running:
            left = max(0.0, engine.running[0][0] - engine.progress)
            end = self.now_s + left * engine.step.seconds(len(engine.running))
            self.at(end, self.last_token, name, engine.epoch)

    def last_token(self, name: str, epoch: int) -> None:
        """A request has its last token; its session's next turn follows at once."""
        engine = self.decode[name]
        if epoch != engine.epoch:
            return
        engine.advance(self.now_s)
        _, request = heapq.heappop(engine.running)
        del engine.assigned[request]
        turn = self.turns.pop(request)
        self.scheduler.handle(events.DecodeFinished(request, turn.attempt))
        self.ended += 1
        self.last_end_s = self.now_s
        self.tpot_s.append((self.now_s - turn.first_token_s) / turn.output)
        self._next_end(name)
        session = turn.session % self.workload.session_count
        turns = int(self.workload.offsets[session + 1] - self.workload.offsets[session])
        if turn.index + 1 < turns:
            think = float(
                self.workload.think_time_s[int(self.workload.offsets[session]) + turn.index + 1]
            )
            self.at(self.now_s + think, self.submit, turn.session, turn.index + 1)
        else:
            self.finished += 1

    # ---- what it was like --------------------------------------------------------------------

    def result(self, policy: str, agents: int) -> Driven:
        """Sum up."""
        totals = np.array(list(self.read_tokens.values()), dtype=float)
        full = int(self.now_s / self.window_s)  # only windows that the run has ended
        rows = [np.array(list(row.values())) for w, row in self.windows.items() if w < full]
        means = sum(float(row.mean()) for row in rows)
        return Driven(
            policy=policy,
            agents=agents,
            simulated_s=self.now_s,
            turns=self.ended,
            sessions_finished=self.finished,
            ttft_s=spread(self.ttft_s),
            tpot_s=spread(self.tpot_s),
            snic_max_over_mean=_ratio(float(totals.max()), float(totals.mean())),
            snic_max_over_mean_windows=_ratio(sum(float(row.max()) for row in rows), means),
            attention_max_over_mean=_ratio(self.attention_max_s, self.attention_mean_s),
            read_tokens=dict(self.read_tokens),
            window_s=self.window_s,
            seed=self.seed,
        )


def _ratio(most: float, mean: float) -> float:
    return most / mean if mean > 0 else 1.0
