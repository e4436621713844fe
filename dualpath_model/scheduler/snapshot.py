"""The whole scheduler as JSON and back: what runs on afterwards decides as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dualpath_model.errors import InputError
from dualpath_model.scheduler.events import Decision, NodeJoined, Settings
from dualpath_model.scheduler.queues import Queue, Request
from dualpath_model.scheduler.reference import Observer, Scheduler
from dualpath_model.scheduler.topology import Accounts

VERSION = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a scheduler holds; ``private``: requests in each group's queue, in order."""

    version: int
    settings: Settings
    submitted: int
    joined: tuple[NodeJoined, ...]
    accounts: Accounts
    requests: tuple[Request, ...]
    private: dict[str, tuple[str, ...]]
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
        joined=tuple(ledger.joined.values()),
        accounts=ledger.accounts(),
        requests=tuple(scheduler.requests.values()),
        private={group: tuple(r.id for r in queue) for group, queue in scheduler.private.items()},
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

    Raises InputError if ``data`` is not a snapshot of this version.
    """
    try:
        state = _adapter().validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InputError(
            f"snapshot: {where}: {first['msg'].lower()}; give what a scheduler wrote"
        ) from None
    if state.version != VERSION:
        raise InputError(f"snapshot: version is {state.version}; this scheduler reads {VERSION}")
    scheduler = Scheduler(state.settings, compiled=compiled, observer=observer)
    scheduler.submitted = state.submitted
    scheduler.requests = {request.id: request for request in state.requests}
    scheduler.answers = state.answers
    ledger = scheduler.ledger
    ledger.restore(state.joined, state.accounts)
    ledger.lost_engines = set(state.lost_engines)
    ledger.lost_nodes = set(state.lost_nodes)
    ledger.lost_groups = set(state.lost_groups)
    queued: dict[str, set[str]] = {"prefill": set(), "decode": set()}
    for group, names in state.private.items():
        scheduler.private[group] = Queue()
        pool = ledger.pool_of(group)
        assert pool is not None
        queued[pool].update(names)
        for name in names:
            scheduler.private[group].add(scheduler.requests[name])
        ledger.queued[group] = sum(scheduler.requests[name].prompt_tokens for name in names)
    for request in scheduler.requests.values():
        if request.waits_for_prefill and request.id not in queued["prefill"]:
            scheduler.waiting["prefill"].add(request)
        if request.decode is None and request.id not in queued["decode"]:
            scheduler.waiting["decode"].add(request)
    return scheduler


@cache
def _adapter() -> TypeAdapter[Snapshot]:
    return TypeAdapter(Snapshot)
