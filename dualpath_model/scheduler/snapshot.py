"""The whole scheduler as JSON and back: what runs on afterwards decides as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dualpath_model.errors import InputError
from dualpath_model.scheduler import checks
from dualpath_model.scheduler.events import Decision, NodeJoined, Settings, Submit
from dualpath_model.scheduler.queues import Queue, Request
from dualpath_model.scheduler.reference import Observer, Scheduler
from dualpath_model.scheduler.topology import Accounts

VERSION = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a scheduler holds. ``groups`` and ``joined`` are in the order of joining."""

    version: int
    settings: Settings
    submitted: int
    groups: tuple[str, ...]
    joined: tuple[NodeJoined, ...]
    accounts: Accounts
    requests: tuple[Request, ...]
    answers: dict[str, tuple[int, tuple[Decision, ...]]]
    lost_engines: tuple[str, ...]
    lost_nodes: tuple[str, ...]
    lost_groups: tuple[str, ...]


def take(scheduler: Scheduler) -> dict[str, Any]:
    """Return a scheduler's state as plain data that any JSON writer accepts."""
    ledger = scheduler.ledger
    state = Snapshot(
        version=VERSION,
        settings=scheduler.settings,
        submitted=scheduler.submitted,
        groups=tuple(scheduler.private),
        joined=tuple(ledger.joined.values()),
        accounts=ledger.accounts(),
        requests=tuple(scheduler.requests.values()),
        answers=dict(scheduler.answers),
        lost_engines=tuple(sorted(ledger.lost_engines)),
        lost_nodes=tuple(sorted(ledger.lost_nodes)),
        lost_groups=tuple(sorted(ledger.lost_groups)),
    )
    plain: dict[str, Any] = _adapter().dump_python(state, mode="json")
    for request in plain["requests"]:
        request["started"].sort()  # a set has no order of its own
    return plain


def restore(data: Any, *, compiled: bool = False, observer: Observer | None = None) -> Scheduler:
    """Return a scheduler that goes on where :func:`take` was called.

    Raises InputError if ``data`` is not a snapshot of this version, or contradicts itself.
    """
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION or isinstance(version, bool):
        raise InputError(
            f"snapshot: version is {version!r}; this scheduler reads version {VERSION}"
        )
    try:
        state = _adapter().validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"snapshot: {where}: {first['msg'].lower()}; give what a scheduler wrote"
        ) from None
    scheduler = Scheduler(state.settings, compiled=compiled, observer=observer)
    try:
        _Check(state).everything()
    except InputError as error:
        raise InputError(f"snapshot: {error}") from None
    scheduler.submitted = state.submitted
    scheduler.requests = {request.id: request for request in state.requests}
    scheduler.answers = state.answers
    scheduler.private = {group: Queue() for group in state.groups}
    ledger = scheduler.ledger
    ledger.restore(state.joined, state.accounts)
    ledger.lost_engines = set(state.lost_engines)
    ledger.lost_nodes = set(state.lost_nodes)
    ledger.lost_groups = set(state.lost_groups)
    ledger.queued = dict.fromkeys(state.groups, 0)
    for request in state.requests:
        scheduler.file(request)
        for group in request.group.values():
            ledger.queued[group] += request.prompt_tokens
    return scheduler


class _Check:
    """What must hold between the parts of a snapshot; each method raises InputError if it does not."""

    def __init__(self, state: Snapshot) -> None:
        self.state = state
        self.pool_of = {engine: node.pool for node in state.joined for engine in node.engines}
        self.nodes = {node.node for node in state.joined}
        self.group_pool = {node.group: node.pool for node in state.joined}

    def everything(self) -> None:
        state = self.state
        checks.whole("submitted", state.submitted, 0, 2**62)
        self.unique("node", [node.node for node in state.joined])
        self.unique("engine", [engine for node in state.joined for engine in node.engines])
        for node in state.joined:
            checks.limits(node.node, node.pool, node.limits)
            self.hold(
                node.pool == self.group_pool[node.group], f"group '{node.group}' has two pools"
            )
        self.same("groups", state.groups, self.group_pool)
        self.same("accounts.engines", state.accounts.engines, self.pool_of)
        self.same("accounts.nodes", state.accounts.nodes, self.nodes)
        self.accounts()
        self.unique("request", [request.id for request in state.requests])
        self.unique("position", [request.position for request in state.requests])
        for request in state.requests:
            self.request(request)

    def accounts(self) -> None:
        accounts = self.state.accounts
        checks.whole("orders", accounts.orders, 0, 2**62)
        for where, records, names in (
            ("engine", accounts.engines, ("seq", "tok", "held", "free")),
            ("node", accounts.nodes, ("read_q", "given", "unannounced", "reads")),
        ):
            for name, record in records.items():
                for field in names:
                    value = getattr(record, field)
                    if value is not None:
                        checks.whole(f"{where} '{name}': {field}", value, 0, 2**60)
        for name, node in accounts.nodes.items():
            for seconds in node.backlog_s:
                checks.number(f"node '{name}': backlog_s", seconds, 0.0, 1e18)

    def request(self, request: Request) -> None:
        where = f"request '{request.id}'"
        reserve = request.hold_tokens - request.prompt_tokens
        checks.submit(Submit(request.id, request.prompt_tokens, request.hit_tokens, reserve))
        checks.whole(f"{where}: position", request.position, 0, self.state.submitted - 1)
        checks.whole(f"{where}: attempt", request.attempt, 1, 2**62)
        checks.number(f"{where}: key", request.key, 0.0, 2.0**63)
        prefill, decode = (
            self.pool_of.get(request.prefill or ""),
            self.pool_of.get(request.decode or ""),
        )
        gone = request.prefill_finished and request.prefill is not None
        self.hold(
            request.prefill is None or gone or prefill == "prefill",
            f"{where} has no prefill engine",
        )
        self.hold(request.decode is None or decode == "decode", f"{where} has no decode engine")
        engines = {request.prefill, request.decode} - {None}
        self.hold(not (request.parked and engines), f"{where} is parked on an engine")
        both = request.prefill is not None and request.decode is not None
        self.hold(both == (request.ordered is not None), f"{where} has a read without both engines")
        self.hold(both or not request.prefill_finished, f"{where} has finished on no engine")
        self.hold(set(request.reads) <= self.nodes, f"{where} reads on a node that is not there")
        self.hold(
            request.started <= set(request.reads), f"{where} has started what it does not read"
        )
        for tokens in (*request.reads.values(), *(request.ordered or ())):
            checks.whole(f"{where}: tokens to read", tokens, 0)
        for pool, group in request.group.items():
            waits = request.waits_for(pool) and self.group_pool.get(group) == pool
            self.hold(waits, f"{where} waits for a group that it cannot wait for")

    def unique(self, kind: str, names: list[Any]) -> None:
        self.hold(len(set(names)) == len(names), f"a {kind} is there twice")

    def same(self, where: str, found: Iterable[str], expected: Iterable[str]) -> None:
        self.hold(sorted(found) == sorted(expected), f"{where} does not match the joined nodes")

    @staticmethod
    def hold(condition: bool, sentence: str) -> None:
        if not condition:
            raise InputError(f"{sentence}; give what a scheduler wrote")


@cache
def _adapter() -> TypeAdapter[Snapshot]:
    return TypeAdapter(Snapshot)
