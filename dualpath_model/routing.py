"""Which way a request's hits come: the rule for a proxy in front of vLLM servers.

Two ways to decide, from the files of ``dualpath export vllm``:

:class:`PlanRoutes` keeps to the plan. A session reads through its decode node if a hash of its name,
uniform in [0, 1), is below the split x: so a share x of sessions does, each one stays with its choice,
and a change of x by d moves a share d of them and no more. Its decode engine is taken by weighted
rendezvous hashing: every engine has the score ``-ln(hash) / weight`` and the least wins; a share of
sessions in proportion to the weight, and a change of one weight moves only sessions to or from that
engine. Weights are those of the sessions that read through decode nodes (the LP's reads), or of the
others (what is left of each node's part of the compute). The prefill engine is not sticky, since
hits come from storage: the one with the least outstanding tokens for its weight, and of those that are
idle the one that was given least.

:class:`LiveRoutes` asks the reference scheduler (section 6.1 of the paper) for each request: it goes by
the queues of the moment, and a request may wait for room.

Only standard library and this package; no clock, no threads, no randomness.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from dualpath_model.errors import InfeasibleError, InputError, unknown_name
from dualpath_model.records import validated
from dualpath_model.scheduler.events import (
    Decision,
    DecodeFinished,
    DecodePlaced,
    EngineJoined,
    EngineLost,
    Event,
    Fetch,
    PrefillFinished,
    PrefillPlaced,
    ReadFinished,
    ReadOrdered,
    ReadStarted,
    Returned,
    Submit,
)
from dualpath_model.scheduler.file import SchedulerFile
from dualpath_model.scheduler.reference import Scheduler

VERSION = 1
FORMAT: Literal["dualpath-routing"] = "dualpath-routing"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a decode engine's p2p tier listens."""

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine as a proxy addresses it.

    ``data_parallel_rank``: of the header that chooses it among its server's; None: the server has one.
    ``read_weight``: its part of the sessions that read on this side; ``other_weight``: of all others.
    """

    engine: str
    node: str
    url: str
    data_parallel_rank: Annotated[int, Field(ge=0)] | None
    read_weight: Fraction
    other_weight: Fraction
    p2p: Peer | None = None


@dataclass(frozen=True, slots=True)
class RoutingFile:
    """``routing.json`` of ``dualpath export vllm``.

    ``decode_reads``: "p2p" (tag the request with ``remote_kv_source``), "pull" (carry the decode
    server's ``kv_transfer_params`` to the next turn) or "none". ``scheduler``: the file beside it that
    live routing starts from. ``keep_s``: how long there is something to pull.
    """

    format: Literal["dualpath-routing"]
    version: Annotated[int, Field(ge=1)]
    scenario: str
    decode_reads: Literal["p2p", "pull", "none"]
    split: Fraction
    alpha_s: float
    beta_s: float
    scheduler: str
    prefill: tuple[Engine, ...]
    decode: tuple[Engine, ...]
    keep_s: float | None = None


def read_routing(path: Path) -> RoutingFile:
    """Read a routing file. Raises InputError, one sentence, for anything else."""
    remedy = "give routing.json of `dualpath export vllm`"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise InputError(f"{path}: is not JSON; {remedy}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: format is not '{FORMAT}'; {remedy}")
    if isinstance(data.get("version"), int) and data["version"] > VERSION:
        raise InputError(
            f"{path}: version is {data['version']}, but this dualpath knows {VERSION}; update dualpath, "
            f"or export with this one"
        )
    found: RoutingFile = validated(_adapter(), data, path, "export again")
    for pool in ("prefill", "decode"):
        if not getattr(found, pool):
            raise InputError(f"{path}: {pool} has no engines; export again")
    if found.decode_reads == "p2p" and any(engine.p2p is None for engine in found.decode):
        raise InputError(f"{path}: decode: an engine has no p2p address; export again")
    return found


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes: names of engines, and whether its hits come through the decode node."""

    prefill: str
    decode: str
    through_decode: bool


# ---- by the plan -----------------------------------------------------------------------------------


def unit_hash(*parts: str) -> float:
    """Return a number in (0, 1) that depends on the parts only, uniform over them."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = part.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "big") + text)
    return (int.from_bytes(digest.digest(), "big") + 0.5) / 2.0**64


def reads_through_decode(session: str, split: float) -> bool:
    """Tell whether a session's hits come through its decode node: for a share ``split`` of them."""
    return unit_hash("path", session) < split


def rendezvous(session: str, weights: Mapping[str, float]) -> str:
    """Return one of the names, each for a share of sessions in proportion to its weight.

    Raises ValueError if no weight is above 0.
    """
    best, least = None, math.inf
    for name, weight in weights.items():
        if weight > 0:
            score = -math.log(unit_hash("engine", session, name)) / weight
            if score < least or (score == least and best is not None and name < best):
                best, least = name, score
    if best is None:
        raise ValueError(f"no weight is above 0 among {len(weights)} names")
    return best


def other_weights(
    work: Mapping[str, float], reads: Mapping[str, float], share: float
) -> dict[str, float]:
    """Return the weights of requests that do not read here, so that all together each node gets its
    part of the work, as far as possible.

    ``work``, ``reads``: each node's part, both 1 in all; ``share``: of all requests that read here.
    """
    rest = {node: max(0.0, part - share * reads[node]) for node, part in work.items()}
    total = sum(rest.values())
    if share >= 1.0 or total <= 1e-9:
        return dict(work)
    return {node: part / total for node, part in rest.items()}


class PlanRoutes:
    """The plan's split, sticky by session."""

    def __init__(self, file: RoutingFile) -> None:
        """Start with nothing outstanding."""
        self.split = file.split if file.decode_reads != "none" else 0.0
        self._decode = {
            True: {engine.engine: engine.read_weight for engine in file.decode},
            False: {engine.engine: engine.other_weight for engine in file.decode},
        }
        self._prefill = {
            True: {engine.engine: engine.other_weight for engine in file.prefill},
            False: {engine.engine: engine.read_weight for engine in file.prefill},
        }
        self.outstanding = dict.fromkeys(self._prefill[True], 0)
        """Tokens of requests under way, by prefill engine."""
        self.lost: set[str] = set()
        """Engines that get nothing: their sessions go elsewhere, and come back with them."""
        self._given = dict.fromkeys(self._prefill[True], 0)

    def route(self, session: str, prompt_tokens: int = 1) -> Route:
        """Return a request's route and count its tokens as outstanding on the prefill engine.

        Raises InfeasibleError if all engines of a pool are lost.
        """
        through = reads_through_decode(session, self.split)
        decode = rendezvous(session, self._open(self._decode, through, "decode"))
        weights = self._open(self._prefill, through, "prefill")
        prefill = min(
            weights,
            key=lambda name: (
                self.outstanding[name] / weights[name],
                (self._given[name] + prompt_tokens) / weights[name],
                name,
            ),
        )
        self.outstanding[prefill] += prompt_tokens
        self._given[prefill] += prompt_tokens
        return Route(prefill, decode, through)

    def _open(
        self, weights: Mapping[bool, Mapping[str, float]], through: bool, pool: str
    ) -> dict[str, float]:
        """Return the weights of engines that are there; if those have none, of the other sessions."""
        for which in (through, not through):
            found = {
                name: weight
                for name, weight in weights[which].items()
                if weight > 0 and name not in self.lost
            }
            if found:
                return found
        raise InfeasibleError(f"no {pool} engine can be reached; start one, or wait for it")

    def prefill_finished(self, route: Route, prompt_tokens: int = 1) -> None:
        """Take a request's tokens off its prefill engine."""
        self.outstanding[route.prefill] -= prompt_tokens


# ---- by live queues --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Placed:
    tokens: int
    attempt: int = 1
    prefill: str | None = None
    decode: str | None = None
    reads: list[str] = field(default_factory=list)
    ordered: bool = False
    prefilled: bool = False
    gone: bool = False


class LiveRoutes:
    """The reference scheduler's choice, request by request.

    Every method returns the routes that were decided by then, by request: of requests that waited, too.
    A request is read on the side that the scheduler gives more of its tokens (policy `split`: both),
    since vLLM takes a request's hits from one side.
    """

    def __init__(self, file: SchedulerFile, *, compiled: bool = False) -> None:
        """Let the file's nodes join. ``compiled``: decide through numba (seconds once)."""
        self.scheduler = Scheduler(file.settings, compiled=compiled)
        for node in file.nodes:
            self.scheduler.handle(node)
        self._group_of = {node.node: node.group for node in file.nodes}
        self._group_of_engine = {
            engine: node.group for node in file.nodes for engine in node.engines
        }
        self._node_of_engine = {engine: node.node for node in file.nodes for engine in node.engines}
        self._lost: set[str] = set()
        self._engines = Counter[str]()
        self._pool: dict[str, str] = {}
        for node in file.nodes:
            self._engines[node.group] += len(node.engines)
            self._pool[node.group] = node.pool
        self._unfinished = dict.fromkeys(self._pool, 0)
        self._given = dict.fromkeys(self._pool, 0)
        self._number = 0
        self._placed: dict[str, _Placed] = {}

    def submit(
        self, request: str, prompt_tokens: int, hit_tokens: int, reserve_tokens: int = 0
    ) -> dict[str, Route]:
        """A request arrives. Raises InputError for a name that is in use, or one that fits nowhere."""
        self.scheduler.handle(Submit(request, prompt_tokens, hit_tokens, reserve_tokens))
        self._placed[request] = _Placed(prompt_tokens)
        return self._fetch()

    def report(self, read_q: Mapping[str, int]) -> dict[str, Route]:
        """Tokens that wait to be read, by node, as measured: replaces the scheduler's own count."""
        return self._fetch(read_q)

    def read_finished(self, request: str) -> dict[str, Route]:
        """A request's hits are in the prefill engine. Nothing, if its engine has been lost meanwhile."""
        placed = self._placed[request]
        for node in placed.reads:
            self._handle(ReadFinished(request, node, placed.attempt))
        placed.reads.clear()
        return self._fetch()

    def prefill_finished(self, request: str) -> dict[str, Route]:
        """A request's prefill is done, its reads with it."""
        placed = self._placed[request]
        if not placed.ordered or placed.prefilled:
            return {}
        found = self.read_finished(request)
        placed.prefilled = True
        self._count(placed, -1)
        self._handle(PrefillFinished(request, placed.attempt))
        return found | self._fetch()

    def finished(self, request: str) -> dict[str, Route]:
        """A request has its last token, failed, or its client is gone, wherever it was."""
        placed = self._placed[request]
        if not placed.ordered:
            placed.gone = True  # taken out as soon as it is placed: the scheduler has no such event
            return {}
        found = {} if placed.prefilled else self.prefill_finished(request)
        self._handle(DecodeFinished(request, placed.attempt))
        del self._placed[request]
        return found | self._fetch()

    def engine_lost(self, engine: str) -> dict[str, Route]:
        """An engine cannot be reached: requests on it are placed again, and it gets no more."""
        self._lost.add(engine)
        found = dict(self._routes(self._handle(EngineLost(engine))))
        return found | self._fetch()

    def engine_joined(self, engine: str) -> dict[str, Route]:
        """A lost engine is back."""
        if engine not in self._lost:
            return {}
        self._lost.remove(engine)
        self._handle(EngineJoined(engine, self._node_of_engine[engine]))
        return self._fetch()

    def _fetch(self, read_q: Mapping[str, int] | None = None) -> dict[str, Route]:
        """Let all groups ask for work until none gets any; what is reported counts once."""
        found: dict[str, Route] = {}
        reported: dict[str, dict[str, int]] = {}
        for node, tokens in (read_q or {}).items():
            reported.setdefault(self._known(node), {})[node] = tokens
        going = True
        while going:
            going = False
            for group in self._order_of_groups():
                self._number += 1
                fetch = Fetch(group, self._number, {}, reported.pop(group, {}))
                decisions = self._handle(fetch)
                going = going or bool(decisions)
                found |= dict(self._routes(decisions))
        for request in [name for name in found if self._placed[name].gone]:
            del found[request]
            found |= self.finished(request)
        return found

    def _order_of_groups(self) -> list[str]:
        """Return decode groups, then prefill groups, least work for their engines first.

        A prefill group takes whatever it is offered up to beta, so that the first one asked would get
        it all; leaders that ask by themselves do so as they finish.
        """
        return sorted(
            self._pool,
            key=lambda group: (
                self._pool[group] == "prefill",
                self._unfinished[group] / self._engines[group],
                self._given[group] / self._engines[group],
                group,
            ),
        )

    def _count(self, placed: _Placed, sign: int) -> None:
        """Add a request's tokens to its prefill group's, or take them off."""
        if placed.prefill is not None:
            group = self._group_of_engine[placed.prefill]
            self._unfinished[group] += sign * placed.tokens
            self._given[group] += max(0, sign) * placed.tokens

    def _known(self, node: str) -> str:
        if node not in self._group_of:
            raise unknown_name("node", node, self._group_of)
        return self._group_of[node]

    def _routes(self, decisions: Iterable[Decision]) -> Iterator[tuple[str, Route]]:
        for decision in decisions:
            placed = self._placed[decision.request]
            if isinstance(decision, Returned):
                if not placed.prefilled:
                    self._count(placed, -1)
                self._placed[decision.request] = _Placed(
                    placed.tokens, decision.attempt, gone=placed.gone
                )
            elif isinstance(decision, PrefillPlaced):
                placed.prefill = decision.engine
                self._count(placed, 1)
            elif isinstance(decision, DecodePlaced):
                placed.decode = decision.engine
            elif isinstance(decision, ReadOrdered):
                yield decision.request, self._order(placed, decision)

    def _order(self, placed: _Placed, decision: ReadOrdered) -> Route:
        parts = (
            (decision.prefill_node, decision.prefill_tokens),
            (decision.decode_node, decision.decode_tokens),
        )
        for node, tokens in parts:
            if tokens:
                placed.reads.append(node)
                self._handle(ReadStarted(decision.request, node, decision.attempt))
        placed.ordered = True
        assert placed.prefill is not None
        assert placed.decode is not None
        return Route(
            placed.prefill, placed.decode, decision.decode_tokens > decision.prefill_tokens
        )

    def _handle(self, event: Event) -> tuple[Decision, ...]:
        return self.scheduler.handle(event)


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(RoutingFile)
