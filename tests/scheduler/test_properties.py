"""Any sequence of events: the scheduler against the literal rules, its own accounts and laws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dualpath_model.errors import InputError
from dualpath_model.scheduler import events, paper, snapshot
from dualpath_model.scheduler.arrays import Engines
from dualpath_model.scheduler.events import EngineReport, Event, Limits, Prices, Settings
from dualpath_model.scheduler.index import NONE
from dualpath_model.scheduler.ledger import Ledger
from dualpath_model.scheduler.policies import POLICIES
from dualpath_model.scheduler.queues import Request
from dualpath_model.scheduler.reference import Scheduler
from tests.scheduler.literal import Literal, Plain, RefusedError, plain

POOLS = {"P": "prefill", "D": "decode"}
Answer = list[Plain] | None  # None: refused


class Follower(Literal):
    """Keeps the literal accounts, but places requests as it is told, if no law forbids that."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.z_factor)
        self.settings = settings
        self.prefill_group: dict[str, str] = {}
        self.overtaken: dict[int, set[int]] = {}  # by position: later ones that went before it
        self.given: list[Plain] = []

    def follow(self, event: Event, given: list[Plain]) -> None:
        self.given = given
        assert self.handle(event) == given

    def key(self, request: dict[str, Any]) -> tuple[float, int]:
        own = self.settings
        work_s = own.hit_s_per_token * request["hit"]
        work_s += own.miss_s_per_token * (request["length"] - request["hit"])
        moved = own.patience * min(1.0, work_s / own.most_work_s) if own.patience else 0.0
        return request["position"] + moved, request["position"]

    def in_queue_order(self) -> list[dict[str, Any]]:
        return sorted(self.requests.values(), key=self.key)

    def place(self, group: str, pool: str) -> list[Plain]:
        last: dict[str, tuple[float, int]] = {}  # each kind of decision follows the queue
        z: float | None = None
        for kind, name, attempt, *rest in self.given:
            request = self.requests[name]
            if kind == "returned":
                self.check_in_the_way(group, pool, request)
                assert self.start_again(request) == (kind, name, attempt)
                assert self.let_go() == []
                z = None
                continue
            assert request["attempt"] == attempt
            if kind != "read ordered":
                assert last.get(kind, (-1.0, -1)) < self.key(request)
                last[kind] = self.key(request)
            if kind == "group chosen":
                assert self.open_engines(rest[0])
                assert self.pool_of(rest[0]) == pool
                assert request[pool] is None
                self.set_group(pool, request, rest[0])
            elif kind == "prefill placed":
                self.check_prefill(group, request, *rest)
                self.take_prefill(request, rest[0])
            elif kind == "decode placed":
                z = self.z(group) if z is None else z  # all groups are chosen by now
                self.check_decode(group, request, z, *rest)
                self.take_decode(request, rest[0])
                self.check_hbm(rest[0])
            else:
                assert kind == "read ordered"
                self.check_read(request, *rest)
                self.take_read(request, rest[0::2], rest[1::2])
        placed = last.get(f"{pool} placed")
        for request in self.queue(pool, group) if placed is not None else ():
            assert self.key(request) > placed
        return self.given

    def check_in_the_way(self, group: str, pool: str, request: dict[str, Any]) -> None:
        """It has an engine of this group, nothing else, and an earlier request wants it."""
        other = "decode" if pool == "prefill" else "prefill"
        assert request[pool] in self.open_engines(group)
        assert request[other] is None
        assert min(map(self.key, self.queue(pool, group))) < self.key(request)

    def queue(self, pool: str, group: str) -> list[dict[str, Any]]:
        """The requests of the queue from which a fetch of ``group`` takes."""
        waiting = [r for r in self.requests.values() if r[pool] is None and not r["parked"]]
        if pool == "decode":
            return [request for request in waiting if request["group"] == group]
        if POLICIES[self.settings.policy].queues_prefill:
            return [r for r in waiting if self.prefill_group.get(r["id"]) == group]
        return waiting

    def set_group(self, pool: str, request: dict[str, Any], group: str) -> None:
        if pool == "decode":
            assert request["group"] is None
            request["group"] = group
        else:
            assert request["id"] not in self.prefill_group
            self.prefill_group[request["id"]] = group

    def check_prefill(
        self, group: str, request: dict[str, Any], engine: str, key: float, *rest: int
    ) -> None:
        rank, tok, read_q = rest
        assert key == self.key(request)[0]
        limits, queue = self.node_of(engine)["limits"], self.queue("prefill", group)
        assert request in queue
        assert engine in self.open_engines(group)
        assert self.engines[engine]["tok"] == tok <= limits.beta_tokens
        assert self.node_of(engine)["read_q"] == read_q
        assert rank == (2 if read_q <= limits.alpha_tokens else 3)
        for other in queue:
            if other["position"] < request["position"]:
                passed = self.overtaken.setdefault(other["position"], set())
                passed.add(request["position"])
                assert len(passed) < self.settings.patience
        self.prefill_group.pop(request["id"], None)

    def check_decode(
        self, group: str, request: dict[str, Any], z: float, engine: str, balanced: bool, *rest: int
    ) -> None:
        own = self.engines[engine]
        assert request["decode"] is None
        assert request["group"] == group
        assert engine in self.open_engines(group)
        assert rest == (int(z), own["seq"], own["tok"], self.free(engine))
        assert balanced == (own["tok"] + request["length"] <= z)
        assert request["hold"] <= self.free(engine)

    def check_hbm(self, engine: str) -> None:
        holds = sum(r["hold"] for r in self.requests.values() if r["decode"] == engine)
        assert holds == self.engines[engine]["held"]
        assert holds <= self.node_of(engine)["limits"].hbm_tokens

    def check_read(
        self, request: dict[str, Any], first: str, on_first: int, second: str, on_second: int
    ) -> None:
        assert not request["ordered"]
        assert self.engines[request["prefill"]]["node"] == first
        assert self.engines[request["decode"]]["node"] == second
        assert min(on_first, on_second) >= 0
        policy = self.settings.policy
        assert on_first + on_second == (0 if policy == "oracle" else request["hit"])
        assert policy == "split" or 0 in (on_first, on_second)
        assert policy != "basic" or on_second == 0

    def let_go(self) -> list[Plain]:
        decided = super().let_go()
        for name, group in list(self.prefill_group.items()):
            if self.requests[name]["parked"] or not self.open_engines(group):
                del self.prefill_group[name]
        return decided

    def parameters_changed(self, event: events.ParametersChanged) -> list[Plain]:
        decided = super().parameters_changed(event)
        if event.settings is not None:
            self.settings = event.settings
            self.prefill_group.clear()
            self.overtaken.clear()
        return decided

    # ---- what a leader knows ----

    def placed(self, engine: str) -> list[dict[str, Any]]:
        """The unfinished requests of an engine."""
        return [
            request
            for request in self.requests.values()
            if request["decode"] == engine
            or (request["prefill"] == engine and not request["prefilled"])
        ]

    def true_report(self, engine: str) -> EngineReport:
        here = self.placed(engine)
        free = self.node_of(engine)["limits"].hbm_tokens - self.engines[engine]["held"]
        return EngineReport(len(here), sum(r["length"] for r in here), max(0, free))

    def true_reads(self, node: str, *, started: bool) -> int:
        return sum(
            request["reads"].get(node, 0)
            for request in self.requests.values()
            if not started or node in request["started"]
        )


def random_limits(rng: Random) -> Limits:
    prices = Prices(rng.choice((0.0, 0.3)), rng.choice((0.0, 0.4)))
    if rng.random() < 0.6:
        columns = [(round(rng.random(), 2),) for _ in range(3)]
        prices = Prices(0.2, 0.1, ("cnic",), (round(rng.random(), 2),), *columns)
    rates = (1.0, 2.0, 3.5)
    return Limits(
        rng.choice((0, 5, 10, 20)),
        rng.choice((0, 5, 5, 10, 20)),
        rng.choice((6, 8, 12, 12, 18, 30)),
        rng.choice(rates),
        rng.choice(rates),
        prices,
    )


def agreed(tree: np.ndarray, leaves: Sequence[int]) -> bool:
    """Whether a tree has these leaves and every inner node the least of its two."""
    size = len(tree) // 2
    inner = all(tree[k] == min(tree[2 * k], tree[2 * k + 1]) for k in range(1, size))
    unused = [NONE] * (size - len(leaves))
    return inner and tree[size:].tolist() == [*leaves, *unused]


seeds = st.integers(0, 2**32 - 1)


class SchedulerMachine(RuleBasedStateMachine):
    """Random clusters and events; small numbers, so that equal candidates are common."""

    settings = Settings()
    switches = False  # whether a change of the settings changes policy and patience too

    def __init__(self) -> None:
        super().__init__()
        self.real = Scheduler(self.settings)
        self.twin = Scheduler(self.settings)  # is told the same, and never restored or looked into
        self.follower = Follower(self.settings)
        self.literal = Literal(self.settings.z_factor)
        self.compares = self.settings == Settings() and not self.switches
        self.reported = self.repriced = self.honest = False
        self.names = 0
        self.fetches: dict[str, int] = {}
        self.done: list[Event] = []  # to be told again when they are stale

    # ---- telling ----

    def tell(self, event: Event) -> Answer:
        """Tell all of them one event and compare the answers."""
        before = len(self.follower.requests)
        answer = self.answer_of(self.real, event)
        assert self.answer_of(self.twin, event) == answer
        if self.compares:
            try:
                assert self.literal.handle(event) == answer
            except RefusedError:
                assert answer is None
        if answer is None:
            try:
                self.follower.handle(event)
            except RefusedError:
                assert len(self.follower.requests) == before
            else:
                raise AssertionError(f"{event} is refused but possible")
        else:
            self.follower.follow(event, answer)
        return answer

    @staticmethod
    def answer_of(scheduler: Scheduler, event: Event) -> Answer:
        try:
            return list(map(plain, scheduler.handle(event)))
        except InputError:
            return None

    def new(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def groups(self) -> list[str]:
        return self.follower.groups("prefill") + self.follower.groups("decode")

    def join(self, rng: Random, group: str) -> None:
        node = self.new(group[0].lower())
        engines = tuple(f"{node}.{i}" for i in range(rng.randint(1, 3)))
        pool = POOLS[group[0]]
        self.tell(events.NodeJoined(node, pool, group, engines, random_limits(rng)))

    # ---- rules: the usual ----

    @initialize(seed=seeds)
    def start(self, seed: int) -> None:
        rng = Random(seed)
        self.honest = rng.random() < 0.4  # leaders report what is true
        for _ in range(rng.randint(1, 3)):
            self.join(rng, rng.choice(("P1", "P2")))
        for _ in range(rng.randint(1, 4)):
            self.join(rng, rng.choice(("D1", "D2", "D3")))
        self.submit([(3, 2, 1)])

    @rule(
        requests=st.lists(
            st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 4)),
            min_size=1,
            max_size=5,
        )
    )
    def submit(self, requests: list[tuple[int, int, int]]) -> None:
        for prompt, hit, reserve in requests:
            self.tell(events.Submit(self.new("r"), prompt, min(prompt, hit), reserve))

    @rule(seed=seeds, report=st.sampled_from(("none", "true", "random", "random")))
    def fetch(self, seed: int, report: str) -> None:
        rng = Random(seed)
        if self.groups():
            self.fetch_of(rng.choice(self.groups()), rng, report)

    @rule(seed=seeds, first=st.sampled_from(tuple(POOLS)))
    def half(self, seed: int, first: str) -> None:
        """One pool places what it can before the other one places anything."""
        rng = Random(seed)
        for _ in range(rng.randint(1, 6)):
            size = rng.randint(1, 8)
            self.tell(events.Submit(self.new("r"), size, rng.randint(0, size), rng.randint(0, 2)))
        for pool in (first, *(pool for pool in POOLS if pool != first)):
            groups = [group for group in self.groups() if group[0] == pool]
            for group in rng.sample(groups, rng.randint(0, len(groups))):
                self.fetch_of(group, rng, "none")

    @rule(seed=seeds)
    def fetch_all(self, seed: int) -> None:
        rng = Random(seed)
        for group in rng.sample(self.groups(), len(self.groups())):
            self.fetch_of(group, rng, "none")

    def fetch_of(self, group: str, rng: Random, report: str) -> None:
        number = self.fetches.get(group, -1) + rng.randint(1, 2)
        own = self.follower
        engines: dict[str, EngineReport] = {}
        read_q: dict[str, int] = {}
        if report == "true" or (report == "random" and self.honest):
            engines = {name: own.true_report(name) for name in own.engines_of(group)}
            nodes = [name for name, node in own.nodes.items() if node["group"] == group]
            read_q = {name: own.true_reads(name, started=True) for name in nodes}
        elif report == "random":
            self.reported = True
            engines, read_q = self.random_report(group, rng)
        event = events.Fetch(group, number, engines, read_q)
        answer = self.tell(event)
        assert answer is not None
        self.fetches[group] = number
        if rng.random() < 0.2:
            assert self.tell(events.Fetch(group, number)) == answer
            older = self.tell(events.Fetch(group, number - 1, engines, read_q))
            assert older == ([] if number else None)

    def random_report(
        self, group: str, rng: Random
    ) -> tuple[dict[str, EngineReport], dict[str, int]]:
        engines = {}
        for name in self.follower.engines_of(group):
            hbm = self.follower.node_of(name)["limits"].hbm_tokens
            seq = rng.choice((None, 0, 1, 2))
            tok = rng.choice((None, rng.randint(2, 30))) if seq else rng.choice((None, 0))
            free = rng.choice((None, rng.randint(0, hbm)))
            if rng.random() < 0.6:
                engines[name] = EngineReport(seq, tok, free)
        nodes = [name for name, node in self.follower.nodes.items() if node["group"] == group]
        read_q = {name: rng.randint(0, 25) for name in nodes if rng.random() < 0.6}
        lost = [name for what, name in sorted(self.follower.gone) if what == "engine"]
        if lost and rng.random() < 0.3:
            engines[rng.choice(lost)] = EngineReport(1, 1)  # its leader does not know it yet
        return engines, read_q

    @rule(seed=seeds, count=st.integers(1, 12))
    def progress(self, seed: int, count: int) -> None:
        """Some requests go one step further, each."""
        rng = Random(seed)
        for _ in range(count):
            moving = [r for r in self.follower.requests.values() if r["ordered"]]
            if moving:
                event = self.next_of(rng.choice(moving), rng)
                assert self.tell(event) == []
                self.done.append(event)

    @staticmethod
    def next_of(request: dict[str, Any], rng: Random) -> Event:
        name, attempt = request["id"], request["attempt"]
        if request["reads"]:
            node = rng.choice(sorted(request["reads"]))
            if node in request["started"] or rng.random() < 0.3:
                return events.ReadFinished(name, node, attempt)
            return events.ReadStarted(name, node, attempt)
        if not request["prefilled"]:
            return events.PrefillFinished(name, attempt)
        return events.DecodeFinished(name, attempt)

    # ---- rules: the unusual ----

    @rule(seed=seeds, whole_node=st.booleans())
    def loss(self, seed: int, whole_node: bool) -> None:
        rng, own = Random(seed), self.follower
        if whole_node and own.nodes:
            event: Event = events.NodeLost(rng.choice(list(own.nodes)))
        elif own.engines:
            event = events.EngineLost(rng.choice(list(own.engines)))
        else:
            return
        assert self.tell(event) is not None
        assert self.tell(event) == []  # told twice
        for group in set(self.fetches) - set(self.groups()):
            assert self.tell(events.Fetch(group, self.fetches.pop(group) + 1)) == []

    @rule(seed=seeds, what=st.sampled_from(("node", "engine", "old node", "old engine")))
    def joins(self, seed: int, what: str) -> None:
        rng, own = Random(seed), self.follower
        lost = [name for kind, name in sorted(own.gone) if what.endswith(kind)]
        if what == "node" and len(own.nodes) < 8:
            self.join(rng, rng.choice(("P1", "P2", "D1", "D2", "D3")))
        elif what == "engine" and own.nodes:
            self.tell(events.EngineJoined(self.new("e"), rng.choice(list(own.nodes))))
        elif what == "old node" and lost and len(own.nodes) < 8:
            name = rng.choice(lost)
            group = f"{name[0].upper()}{rng.randint(1, 2)}"
            pool = POOLS[name[0].upper()]
            fresh = (self.new("e"), self.new("e"))
            self.tell(events.NodeJoined(name, pool, group, fresh, random_limits(rng)))
        elif what == "old engine" and lost and own.nodes:
            self.tell(events.EngineJoined(rng.choice(lost), rng.choice(list(own.nodes))))

    @rule(seed=seeds, z_factor=st.sampled_from((None, None, 1.0, 1.05, 1.2, 2.0)))
    def change(self, seed: int, z_factor: float | None) -> None:
        rng, own = Random(seed), self.follower
        nodes = [name for name in own.nodes if rng.random() < 0.4]
        limits = {name: random_limits(rng) for name in nodes}
        changed = None
        if z_factor is not None:
            changed = replace(own.settings, z_factor=z_factor)
            if self.switches:
                policy, patience = rng.choice(list(POLICIES)), rng.choice((0, 3))
                changed = replace(changed, policy=policy, patience=patience)
        self.repriced |= bool(limits)
        self.tell(events.ParametersChanged(changed, limits))

    @rule(seed=seeds)
    def stale(self, seed: int) -> None:
        """What is told again, too late, or about another attempt, changes nothing."""
        rng = Random(seed)
        for event in rng.sample(self.done, min(3, len(self.done))):
            request = self.follower.requests.get(event.request)
            if request is None or request["attempt"] != event.attempt:
                assert self.tell(event) == []
            elif isinstance(event, events.ReadStarted):
                assert event.node not in request["reads"] or event.node in request["started"]
                assert self.tell(event) == []
        for request in rng.sample(
            list(self.follower.requests), min(2, len(self.follower.requests))
        ):
            attempt = self.follower.requests[request]["attempt"]
            wrong = attempt + (rng.choice((-1, 1)) if attempt > 1 else 1)
            node = rng.choice([*self.follower.nodes, "nowhere"])
            for kind in (events.ReadStarted, events.ReadFinished):
                assert self.tell(kind(request, node, wrong)) == []
            for kind in (events.PrefillFinished, events.DecodeFinished):
                assert self.tell(kind(request, wrong)) == []

    @rule(seed=seeds)
    def impossible(self, seed: int) -> None:
        """What cannot be is refused."""
        rng, own = Random(seed), self.follower
        if any(node["pool"] == "decode" and node["engines"] for node in own.nodes.values()):
            assert self.tell(events.Submit(self.new("r"), 10, 0, 51)) is None
        assert self.tell(events.Submit(self.new("r"), 2, 3)) is None
        self.tell(events.EngineLost("nobody"))
        assert self.tell(events.Fetch("nobody", 0)) is None
        for request in list(own.requests.values())[:3]:
            name, attempt = request["id"], request["attempt"]
            assert self.tell(events.Submit(name, 1, 0)) is None
            if not request["prefilled"]:
                assert self.tell(events.DecodeFinished(name, attempt)) is None
            if request["reads"] or not request["ordered"]:
                assert self.tell(events.PrefillFinished(name, attempt)) is None
        for node, group in [(n, own.nodes[n]["group"]) for n in own.nodes]:
            if rng.random() < 0.2:
                number = self.fetches.get(group, -1) + 1
                assert self.tell(events.Fetch(group, number, {}, {node: -1})) is None
                for engine in own.nodes[node]["engines"][:1]:
                    bad = rng.choice((EngineReport(2, 1), EngineReport(0, 3), EngineReport(-1)))
                    reports = {engine: bad}
                    assert self.tell(events.Fetch(group, number, reports, {node: 3})) is None
                    reports = {engine: EngineReport(), "nobody": EngineReport()}
                    assert self.tell(events.Fetch(group, number, reports)) is None

    @rule(seed=seeds)
    def drain(self, seed: int) -> None:
        """Liveness: while leaders fetch and requests move on, every one is served that can be."""
        rng, own = Random(seed), self.follower
        if not (own.groups("prefill") and own.groups("decode")):
            return
        if not all(any(map(own.engines_of, own.groups(pool))) for pool in POOLS.values()):
            return
        honest, self.honest = self.honest, True
        for _ in range(4 * len(own.requests) + 4):
            for group in rng.sample(self.groups(), len(self.groups())):
                self.fetch_of(group, rng, "true")
            moving = [name for name, r in own.requests.items() if r["ordered"]]
            for name in moving:
                while name in own.requests and own.requests[name]["ordered"]:
                    assert self.tell(self.next_of(own.requests[name], rng)) == []
        self.honest = honest
        assert all(request["parked"] for request in own.requests.values())
        if not own.requests:
            self.empty()

    def empty(self) -> None:
        """Nothing is left in any account."""
        found = self.real.ledger.accounts()
        for name, engine in found.engines.items():
            assert (engine.seq, engine.tok, engine.held) == (0, 0, 0)
            assert self.follower.nodes[self.real.ledger.node_of[name]]["pool"] == "prefill" or (
                engine.free
                == self.real.ledger.joined[self.real.ledger.node_of[name]].limits.hbm_tokens
            )
        for node in found.nodes.values():
            assert (node.read_q, node.unannounced, node.reads) == (0, 0, 0)
            assert sum(node.backlog_s) < 1e-9

    @rule()
    def restore(self) -> None:
        """Through JSON and back; the twin goes on undisturbed."""
        text = json.dumps(snapshot.take(self.real))
        self.real = snapshot.restore(json.loads(text))
        assert json.dumps(snapshot.take(self.real)) == text

    # ---- laws ----

    @invariant()
    def laws(self) -> None:
        self.every_request_is_placed_or_waits_once()
        self.accounts_are_right()
        self.index_agrees_with_the_accounts()
        self.node_costs_are_up_to_date()
        self.transfers_are_right()

    def every_request_is_placed_or_waits_once(self) -> None:
        requests = self.real.requests
        assert set(requests) == set(self.follower.requests)
        ledger = self.real.ledger
        for pool in ("prefill", "decode"):
            waiting = [r.id for r in self.real.waiting[pool]]
            for group, queue in self.real.private.items():
                if ledger.pool_of(group) == pool:
                    waiting += [r.id for r in queue]
            placed = [r.id for r in requests.values() if self.engine_of(r, pool)]
            parked = [r.id for r in requests.values() if r.parked]
            assert sorted(waiting + placed + parked) == sorted(requests)
            half = [r.id for r in self.real.half[pool]]
            other = "decode" if pool == "prefill" else "prefill"
            assert sorted(half) == sorted(
                r["id"] for r in self.follower.requests.values() if r[pool] and not r[other]
            )
            for request in requests.values():
                assert request.parked == self.follower.requests[request.id]["parked"]
        assert set(self.real.private) == set(self.groups())

    def engine_of(self, request: Request, pool: str) -> str | None:
        engine = request.prefill if pool == "prefill" else request.decode
        own = self.follower.requests[request.id]
        assert engine == own[pool]
        assert engine is None or engine in self.follower.engines or own["prefilled"]
        return engine

    def accounts_are_right(self) -> None:
        own = self.follower
        found = self.real.ledger.accounts()
        assert set(found.engines) == set(own.engines)
        for name, engine in found.engines.items():
            true = own.engines[name]
            assert (engine.seq, engine.tok, engine.open) == (true["seq"], true["tok"], true["open"])
            if own.nodes[true["node"]]["pool"] == "decode":
                assert (engine.held, engine.free) == (true["held"], own.free(name))
            if not self.reported:
                here = own.placed(name)
                if own.nodes[true["node"]]["pool"] == "prefill":
                    assert engine.held == sum(r["length"] for r in here)
                assert (engine.seq, engine.tok) == (len(here), sum(r["length"] for r in here))
        assert set(found.nodes) == set(own.nodes)
        for name, node in found.nodes.items():
            assert (node.read_q, node.given) == (
                own.nodes[name]["read_q"],
                own.nodes[name]["given"],
            )
            started = own.true_reads(name, started=True)
            every = own.true_reads(name, started=False)
            assert node.reads == sum(name in request["reads"] for request in own.requests.values())
            assert node.unannounced == every - started
            if not self.reported:
                assert node.read_q == every

    def index_agrees_with_the_accounts(self) -> None:
        ledger = self.real.ledger
        state, rules = ledger.state(), ledger.policy.rules
        for pool in ("prefill", "decode"):
            engines, name = state.pool(pool), f"{pool}_key"
            key = rules.get(name, getattr(paper, name))
            opened = [bool(is_open) for is_open in engines.open]
            keys = [
                int(key(engines, state.nodes, e)) if is_open else NONE
                for e, is_open in enumerate(opened)
            ]
            assert agreed(engines.key_tree, keys)
            if pool == "decode":
                for tree, column in (
                    (engines.tok_tree, engines.tok),
                    (engines.room_tree, -engines.free),
                ):
                    leaves = [
                        int(v) if is_open else NONE
                        for v, is_open in zip(column, opened, strict=True)
                    ]
                    assert agreed(tree, leaves)
            self.check_groups(ledger, pool, engines)

    def check_groups(self, ledger: Ledger, pool: str, engines: Engines) -> None:
        names = ledger.state().numbers[pool].groups  # type: ignore[index]
        assert names == self.follower.groups(pool)
        keys = []
        for number, group in enumerate(names):
            span = range(engines.group_first[number], engines.group_first[number + 1])
            opened = [e for e in span if engines.open[e]]
            queued = sum(request.prompt_tokens for request in self.real.private[group])
            assert ledger.queued[group] == queued
            assert engines.group_tok[number] == sum(engines.tok[e] for e in span) + queued
            assert engines.group_held[number] == sum(engines.tok[e] for e in opened)
            assert engines.group_free[number] == sum(engines.free[e] for e in opened)
            assert engines.group_open[number] == len(opened)
            key = ledger.policy.rules.get("group_key", paper.group_key)
            keys.append(int(key(engines, number)) if opened else NONE)
        assert agreed(engines.group_tree, keys)

    def node_costs_are_up_to_date(self) -> None:
        refresh = self.real.ledger.policy.rules.get("refresh_node_cost")
        nodes = self.real.ledger.state().nodes
        if refresh is not None:
            again = nodes._replace(
                near_cost=nodes.near_cost * 0,
                far_cost=nodes.far_cost * 0,
                miss_cost=nodes.miss_cost * 0,
            )
            for node in range(len(nodes.read_q)):
                refresh(again, node)
            for name in ("near_cost", "far_cost", "miss_cost"):
                assert getattr(again, name).tolist() == getattr(nodes, name).tolist()

    def transfers_are_right(self) -> None:
        """Seconds of work between memories: that of the requests ordered and not yet prefilled.

        None, whatever changed, where there are no such requests.
        """
        own = self.follower
        true = dict.fromkeys(own.nodes, 0.0)
        for request in own.requests.values():
            if request["ordered"] and not request["prefilled"]:
                sides = [
                    self.follower.engines[request[pool]]["node"] for pool in ("prefill", "decode")
                ]
                near = self.real.requests[request["id"]].ordered
                assert near is not None
                miss = request["length"] - request["hit"]
                for node, here, there in zip(sides, near, near[::-1], strict=True):
                    prices = own.nodes[node]["limits"].prices
                    if prices.resources:
                        true[node] += here * prices.near_s[0] + there * prices.far_s[0]
                        true[node] += miss * prices.miss_s[0]
        found = self.real.ledger.accounts().nodes
        under_way = any(r["ordered"] and not r["prefilled"] for r in own.requests.values())
        for name, seconds in true.items() if not (self.repriced and under_way) else ():
            assert abs(sum(found[name].backlog_s) - seconds) < 1e-9


PATIENT = Settings(patience=3, most_work_s=6.0, hit_s_per_token=0.25)


def machine(name: str, chosen: Settings, examples: int, *, switches: bool = False) -> type:
    """A test case of its own for some settings."""
    made = type(name, (SchedulerMachine,), {"settings": chosen, "switches": switches})
    case = made.TestCase
    case.settings = settings(max_examples=examples, stateful_step_count=60)
    case.__name__ = case.__qualname__ = name
    marked: type = pytest.mark.slow(case)
    return marked


TestDualpath = machine("TestDualpath", Settings(), 240)
TestPatience = machine("TestPatience", PATIENT, 90)
TestBasic = machine("TestBasic", Settings(policy="basic"), 80)
TestRoundRobin = machine("TestRoundRobin", Settings(policy="round-robin"), 80)
TestOracle = machine("TestOracle", Settings(policy="oracle"), 40)
TestSplit = machine("TestSplit", Settings(policy="split", block_tokens=2), 80)
TestPriced = machine("TestPriced", Settings(policy="priced"), 80)
TestSwitches = machine("TestSwitches", PATIENT, 80, switches=True)


def test_every_policy_has_a_machine() -> None:
    cases = (TestDualpath, TestBasic, TestRoundRobin, TestOracle, TestSplit, TestPriced)
    assert len(cases) == len(POLICIES)
