"""The paper's scheduler rules for `dualpath` with FIFO, word for word, with nothing made fast.

Written from section 6.1 of the paper and the docstrings of the events, not from the scheduler: plain
dicts and full scans. A decision is a tuple, its kind first: what :func:`plain` makes of a real one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from dualpath_model.scheduler import events
from dualpath_model.scheduler.events import MOST_TOKENS, Decision, Event

Plain = tuple[Any, ...]


class RefusedError(Exception):
    """The event contradicts what happened before."""


def plain(decision: Decision) -> Plain:
    """Return a decision as a tuple, its kind first."""
    return (decision.kind, *astuple(decision)[:-1])


def impossible(report: events.EngineReport, most_free: int) -> bool:
    """Return whether a leader cannot have counted this."""
    seq, tok, free = report.seq, report.tok, report.free_tokens
    for value, most in ((seq, MOST_TOKENS), (tok, MOST_TOKENS), (free, most_free)):
        if value is not None and not 0 <= value <= most:
            return True
    if seq is None or tok is None:
        return False
    return tok < seq or (seq == 0 and tok > 0)


class Literal:
    """Nodes, engines and requests as dicts of dicts, in the order in which they came."""

    def __init__(self, z_factor: float = 1.05) -> None:
        self.z_factor = z_factor
        self.nodes: dict[str, dict[str, Any]] = {}
        self.engines: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, dict[str, Any]] = {}
        self.submitted = 0
        self.group_order: list[str] = []
        self.gone: set[tuple[str, str]] = set()  # (what, name) of the lost
        self.last_fetch: dict[str, tuple[int, list[Plain]]] = {}

    def handle(self, event: Event) -> list[Plain]:
        """Return the decisions; raise RefusedError for an event that cannot be."""
        return getattr(self, event.kind.replace(" ", "_"))(event)

    # ---- what there is, by full scans ----

    def groups(self, pool: str) -> list[str]:
        """Names in the order in which the groups came."""
        return [group for group in self.group_order if self.pool_of(group) == pool]

    def pool_of(self, group: str) -> str | None:
        for node in self.nodes.values():
            if node["group"] == group:
                return str(node["pool"])
        return None

    def engines_of(self, group: str) -> list[str]:
        """Lowest number first: nodes in the order of joining, each one's engines likewise."""
        return [
            engine
            for node in self.nodes.values()
            if node["group"] == group
            for engine in node["engines"]
        ]

    def open_engines(self, group: str) -> list[str]:
        return [name for name in self.engines_of(group) if self.engines[name]["open"]]

    def node_of(self, engine: str) -> dict[str, Any]:
        return self.nodes[self.engines[engine]["node"]]

    def free(self, engine: str) -> int:
        """HBM that neither the requests placed here hold nor, by its report, anything else."""
        own = self.engines[engine]
        return int(max(0, self.node_of(engine)["limits"].hbm_tokens - own["held"]) - own["foreign"])

    def in_order(self) -> list[dict[str, Any]]:
        return sorted(self.requests.values(), key=lambda request: request["position"])

    def in_queue_order(self) -> list[dict[str, Any]]:
        """FIFO; requests that return keep their position."""
        return self.in_order()

    def current(self, event: Any) -> dict[str, Any] | None:
        request = self.requests.get(event.request)
        return request if request and request["attempt"] == event.attempt else None

    # ---- a request's life ----

    def submit(self, event: events.Submit) -> list[Plain]:
        hold = event.prompt_tokens + event.reserve_tokens
        rooms = [
            n["limits"].hbm_tokens
            for n in self.nodes.values()
            if n["pool"] == "decode" and n["engines"]
        ]
        if event.request in self.requests or (rooms and hold > max(rooms)):
            raise RefusedError
        if event.prompt_tokens < 1 or not 0 <= event.hit_tokens <= event.prompt_tokens:
            raise RefusedError
        self.requests[event.request] = {
            "id": event.request,
            "position": self.submitted,
            "length": event.prompt_tokens,
            "hit": event.hit_tokens,
            "hold": hold,
            "attempt": 1,
            "prefill": None,
            "prefilled": False,
            "decode": None,
            "group": None,
            "parked": False,
            "ordered": False,
            "reads": {},
            "started": set(),
        }
        self.submitted += 1
        return []

    def read_started(self, event: events.ReadStarted) -> list[Plain]:
        request = self.current(event)
        if request is not None:
            if not request["ordered"]:
                raise RefusedError
            if event.node in request["reads"]:
                request["started"].add(event.node)
        return []

    def read_finished(self, event: events.ReadFinished) -> list[Plain]:
        request = self.current(event)
        if request is not None:
            if not request["ordered"]:
                raise RefusedError
            self.end_read(request, event.node)
        return []

    def prefill_finished(self, event: events.PrefillFinished) -> list[Plain]:
        request = self.current(event)
        if request is not None and not request["prefilled"]:
            if not request["ordered"] or request["reads"]:
                raise RefusedError
            request["prefilled"] = True
            self.leave(request["prefill"], request)
        return []

    def decode_finished(self, event: events.DecodeFinished) -> list[Plain]:
        request = self.current(event)
        if request is not None:
            if not request["prefilled"]:
                raise RefusedError
            self.leave_decode(request)
            del self.requests[request["id"]]
        return []

    def leave(self, engine: str, request: dict[str, Any]) -> None:
        """Whatever was reported before, an engine without requests of ours has nothing."""
        own = self.engines[engine]
        own["ours"].remove(request["id"])
        own["seq"] = max(0, own["seq"] - 1) if own["ours"] else 0
        own["tok"] = max(0, own["tok"] - request["length"]) if own["ours"] else 0

    def leave_decode(self, request: dict[str, Any]) -> None:
        self.leave(request["decode"], request)
        own = self.engines[request["decode"]]
        own["held"] -= request["hold"]
        if not own["ours"]:
            own["foreign"] = 0

    def end_read(self, request: dict[str, Any], node: str) -> None:
        if node in request["reads"]:
            left = self.nodes[node]["read_q"] - request["reads"].pop(node)
            busy = any(node in other["reads"] for other in self.requests.values())
            self.nodes[node]["read_q"] = max(0, left) if busy else 0

    # ---- a fetch ----

    def fetch(self, event: events.Fetch) -> list[Plain]:
        if event.number < 0:
            raise RefusedError
        if ("group", event.group) in self.gone:
            return []
        number, answer = self.last_fetch.get(event.group, (-1, []))
        if event.number == number:
            attempts = {name: request["attempt"] for name, request in self.requests.items()}
            return [d for d in answer if attempts.get(d[1]) == d[2]]
        if event.number < number:
            return []
        pool = self.pool_of(event.group)
        if pool is None:
            raise RefusedError
        self.report(event, pool)
        answer = self.place(event.group, pool)
        self.last_fetch[event.group] = (event.number, answer)
        return answer

    def place(self, group: str, pool: str) -> list[Plain]:
        decided = self.phase_1() if pool == "decode" else []
        while True:
            decided += self.prefill(group) if pool == "prefill" else self.decode(group)
            others = self.in_the_way(group, pool)
            if not others:
                return decided
            decided += [self.start_again(request) for request in others]
            decided += self.let_go()

    def report(self, event: events.Fetch, pool: str) -> None:
        mine = self.engines_of(event.group)
        engines = {n: r for n, r in event.engines.items() if n in mine}
        nodes = {
            n: q
            for n, q in event.read_q.items()
            if n in self.nodes and self.nodes[n]["group"] == event.group
        }
        foreign = {("engine", n) for n in event.engines if n not in engines}
        foreign |= {("node", n) for n in event.read_q if n not in nodes}
        bad = [
            name
            for name, report in engines.items()
            if impossible(report, self.most_free(name, pool))
        ]
        wrong = [name for name, tokens in nodes.items() if not 0 <= tokens <= MOST_TOKENS]
        for name in bad + [engine for node in wrong for engine in self.nodes[node]["engines"]]:
            self.engines[name]["open"] = False
        if bad or wrong:
            self.let_go()
            raise RefusedError
        if not foreign <= self.gone:
            raise RefusedError
        self.adopt(engines, nodes, pool)

    def most_free(self, engine: str, pool: str) -> int:
        return int(self.node_of(engine)["limits"].hbm_tokens) if pool == "decode" else MOST_TOKENS

    def adopt(
        self, engines: dict[str, events.EngineReport], nodes: dict[str, int], pool: str
    ) -> None:
        """Believe what is reported; reads that a node was given and has not started come on top."""
        for name, report in engines.items():
            own = self.engines[name]
            own["open"] = True
            if report.seq is not None:
                own["seq"] = report.seq
            if report.tok is not None:
                own["tok"] = report.tok
            if report.free_tokens is not None and pool == "decode":
                own["foreign"] = 0
                own["foreign"] = max(0, self.free(name) - report.free_tokens)
        for name, tokens in nodes.items():
            self.nodes[name]["read_q"] = tokens + sum(
                request["reads"].get(name, 0)
                for request in self.requests.values()
                if name not in request["started"]
            )
            for engine in self.nodes[name]["engines"]:
                self.engines[engine]["open"] = True

    def prefill(self, group: str) -> list[Plain]:
        """FIFO. Never tok > beta; short read queues (class 2) before long ones; least tok."""
        decided: list[Plain] = []
        for request in self.in_queue_order():
            if request["prefill"] is not None or request["parked"]:
                continue
            best: tuple[int, int] | None = None
            chosen = ""
            for name in self.open_engines(group):
                node, tok = self.node_of(name), self.engines[name]["tok"]
                if tok > node["limits"].beta_tokens:
                    continue
                rank = (2 if node["read_q"] <= node["limits"].alpha_tokens else 3, tok)
                if best is None or rank < best:
                    best, chosen = rank, name
            if best is None:
                break
            queue = self.node_of(chosen)["read_q"]
            went_by = (float(request["position"]), *best, queue)
            decided.append(("prefill placed", request["id"], request["attempt"], chosen, *went_by))
            self.take_prefill(request, chosen)
            decided += self.order_read(request)
        return decided

    def phase_1(self) -> list[Plain]:
        """Every request of the global queue goes to the group with the least total tok."""
        decided: list[Plain] = []
        waiting = [
            request
            for request in self.in_queue_order()
            if request["decode"] is None and not request["parked"]
        ]
        for request in waiting:
            groups = [
                name
                for name in self.groups("decode")
                if self.most_room(self.open_engines(name)) >= request["hold"]
            ]
            if request["group"] is None and groups:
                request["group"] = min(groups, key=self.total_tok)  # the first of the least
                decided.append(
                    ("group chosen", request["id"], request["attempt"], request["group"])
                )
        return decided

    def decode(self, group: str) -> list[Plain]:
        """Phase 2 in this group."""
        decided: list[Plain] = []
        engines = self.open_engines(group)
        prefix = self.fitting(group)
        z = self.z(group)  # once, before the first is placed
        for request in prefix:
            roomy = [name for name in engines if self.free(name) >= request["hold"]]
            if not roomy:
                break
            calm = [n for n in roomy if self.engines[n]["tok"] + request["length"] <= z]
            if calm:
                chosen = min(calm, key=lambda name: self.engines[name]["seq"])
            else:
                chosen = min(roomy, key=lambda name: self.engines[name]["tok"])
            own = self.engines[chosen]
            balance = (bool(calm), math.floor(z), own["seq"], own["tok"], self.free(chosen))
            decided.append(("decode placed", request["id"], request["attempt"], chosen, *balance))
            self.take_decode(request, chosen)
            decided += self.order_read(request)
        return decided

    def in_the_way(self, group: str, pool: str) -> list[dict[str, Any]]:
        """The first in line could have an engine if later requests, with this one only, gave it up."""
        other = "decode" if pool == "prefill" else "prefill"
        line = [
            request
            for request in self.in_queue_order()
            if request[pool] is None
            and not request["parked"]
            and (pool == "prefill" or request["group"] == group)
        ]
        for name in self.open_engines(group) if line else []:
            own, limits = self.engines[name], self.node_of(name)["limits"]
            tok, free, yielding = own["tok"], self.free(name), []
            for request in reversed(self.in_order()):
                if request["position"] <= line[0]["position"]:
                    break
                if request[pool] == name and request[other] is None:
                    yielding.append(request)
                    tok -= request["length"]
                    free += request["hold"]
                    if tok <= limits.beta_tokens if pool == "prefill" else free >= line[0]["hold"]:
                        return yielding
        return []

    def most_room(self, engines: Sequence[str]) -> int:
        """HBM of the largest of these engines."""
        return max((self.node_of(name)["limits"].hbm_tokens for name in engines), default=-1)

    def fitting(self, group: str) -> list[dict[str, Any]]:
        """R: the longest prefix of the group's private queue that fits its free HBM."""
        room = sum(map(self.free, self.open_engines(group)))
        prefix = []
        for request in self.in_queue_order():
            if request["decode"] is None and request["group"] == group:
                room -= request["hold"]
                if room < 0:
                    break
                prefix.append(request)
        return prefix

    def z(self, group: str) -> float:
        """Z = 1.05 (sum of len over R + sum of tok over E) / |E|."""
        engines = self.open_engines(group)
        tokens = sum(request["length"] for request in self.fitting(group))
        tokens += sum(self.engines[name]["tok"] for name in engines)
        return self.z_factor * tokens / len(engines) if engines else 0.0

    def total_tok(self, group: str) -> int:
        """Unfinished tokens of the group's engines and those of the requests that wait for it."""
        placed = sum(self.engines[name]["tok"] for name in self.engines_of(group))
        waiting = [r["length"] for r in self.requests.values() if r["group"] == group]
        return int(placed + sum(waiting))

    def order_read(self, request: dict[str, Any]) -> list[Plain]:
        """Once both engines are known, the node with the shorter read queue reads all hits.

        Equal queues: the node that was given fewer tokens so far; then the prefill node.
        """
        if request["prefill"] is None or request["decode"] is None:
            return []
        sides = [self.engines[request[pool]]["node"] for pool in ("prefill", "decode")]
        loads = [(self.nodes[name]["read_q"], self.nodes[name]["given"]) for name in sides]
        tokens = (request["hit"], 0) if loads[0] <= loads[1] else (0, request["hit"])
        self.take_read(request, sides, tokens)
        both = (sides[0], tokens[0], sides[1], tokens[1])
        return [("read ordered", request["id"], request["attempt"], *both)]

    # ---- accounts ----

    def take_prefill(self, request: dict[str, Any], engine: str) -> None:
        request["prefill"] = engine
        self.engines[engine]["ours"].append(request["id"])
        self.engines[engine]["seq"] += 1
        self.engines[engine]["tok"] += request["length"]

    def take_decode(self, request: dict[str, Any], engine: str) -> None:
        request["decode"], request["group"] = engine, None
        self.engines[engine]["ours"].append(request["id"])
        self.engines[engine]["seq"] += 1
        self.engines[engine]["tok"] += request["length"]
        self.engines[engine]["held"] += request["hold"]

    def take_read(
        self, request: dict[str, Any], sides: Sequence[str], tokens: Sequence[int]
    ) -> None:
        request["ordered"] = True
        for name, part in zip(sides, tokens, strict=True):
            if part:
                request["reads"][name] = part
                self.nodes[name]["read_q"] += part
                self.nodes[name]["given"] += part

    # ---- nodes and engines ----

    def node_joined(self, event: events.NodeJoined) -> list[Plain]:
        pool = self.pool_of(event.group)
        if event.node in self.nodes or pool not in (None, event.pool):
            raise RefusedError
        if any(name in self.engines for name in event.engines):
            raise RefusedError
        if pool is None:
            self.last_fetch.pop(event.group, None)
            self.group_order.append(event.group)
        given = [node["given"] for node in self.nodes.values()]
        self.nodes[event.node] = {
            "pool": event.pool,
            "group": event.group,
            "engines": [],
            "limits": event.limits,
            "read_q": 0,
            "given": sum(given) // len(given) if given else 0,  # a newcomer counts as average
        }
        self.gone -= {("node", event.node), ("group", event.group)}
        for name in event.engines:
            self.add_engine(name, event.node)
        return self.let_go()

    def engine_joined(self, event: events.EngineJoined) -> list[Plain]:
        if event.node not in self.nodes or event.engine in self.engines:
            raise RefusedError
        self.add_engine(event.engine, event.node)
        return self.let_go()

    def add_engine(self, name: str, node: str) -> None:
        self.nodes[node]["engines"].append(name)
        self.engines[name] = {
            "node": node,
            "seq": 0,
            "tok": 0,
            "ours": [],
            "held": 0,
            "foreign": 0,
            "open": True,
        }
        self.gone.discard(("engine", name))

    def engine_lost(self, event: events.EngineLost) -> list[Plain]:
        if event.engine not in self.engines:
            if ("engine", event.engine) in self.gone:
                return []
            raise RefusedError
        return self.lose([event.engine])

    def node_lost(self, event: events.NodeLost) -> list[Plain]:
        if event.node not in self.nodes:
            if ("node", event.node) in self.gone:
                return []
            raise RefusedError
        decided = self.lose(list(self.nodes[event.node]["engines"]))
        group = self.nodes.pop(event.node)["group"]
        self.gone.add(("node", event.node))
        if self.pool_of(group) is None:
            self.gone.add(("group", group))
            self.group_order.remove(group)
        return decided

    def lose(self, names: list[str]) -> list[Plain]:
        """Every request that loses what it still needs starts again from nothing."""
        decided: list[Plain] = []
        for request in self.in_order():
            needs = {request["decode"]} | (set() if request["prefilled"] else {request["prefill"]})
            if not needs & set(names):
                continue
            decided.append(self.start_again(request))
        for name in names:
            self.nodes[self.engines.pop(name)["node"]]["engines"].remove(name)
            self.gone.add(("engine", name))
        return decided + self.let_go()

    def start_again(self, request: dict[str, Any]) -> Plain:
        """From nothing, in the old position."""
        for node in list(request["reads"]):
            self.end_read(request, node)
        if request["prefill"] is not None and not request["prefilled"]:
            self.leave(request["prefill"], request)
        if request["decode"] is not None:
            self.leave_decode(request)
        request |= {"prefill": None, "prefilled": False, "decode": None, "ordered": False}
        request["started"] = set()
        request["attempt"] += 1
        return ("returned", request["id"], request["attempt"])

    def let_go(self) -> list[Plain]:
        """A request waits for no group whose open engines could not hold it, and for nothing at all
        (giving back its prefill engine) while no engine of the whole pool could.
        """
        decided: list[Plain] = []
        largest = max(
            (self.most_room(self.engines_of(g)) for g in self.groups("decode")), default=-1
        )
        for request in self.requests.values():
            if request["decode"] is None:
                parked = 0 <= largest < request["hold"]
                if parked and not request["parked"] and request["prefill"] is not None:
                    decided.append(self.start_again(request))
                request["parked"] = parked
                group = request["group"]
                if group is not None and (
                    parked or self.most_room(self.open_engines(group)) < request["hold"]
                ):
                    request["group"] = None
        return decided

    def parameters_changed(self, event: events.ParametersChanged) -> list[Plain]:
        if any(name not in self.nodes for name in event.limits):
            raise RefusedError
        for name, limits in event.limits.items():
            if limits.hbm_tokens != self.nodes[name]["limits"].hbm_tokens:
                for engine in self.nodes[name]["engines"]:
                    self.engines[engine]["foreign"] = 0  # a report of before tells nothing any more
            self.nodes[name]["limits"] = limits
        decided = self.let_go() if event.limits else []
        if event.settings is not None:
            self.z_factor = event.settings.z_factor
            for request in self.requests.values():
                request["group"] = None
        return decided
