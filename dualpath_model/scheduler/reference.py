"""The reference scheduler: events in, decisions out; no clock, no threads, no randomness.

The same events give the same decisions. Whoever drives it (a router, the simulator, the testbed) calls
:meth:`Scheduler.handle` for everything that happens and does what the answer says. A request's life:

    waiting for both engines -> read ordered (both known) -> prefill -> decode -> gone

A bad event raises InputError and changes nothing, except that an engine with impossible numbers in a
report is given no more work until an accepted report names it or its node. An event about an earlier
attempt of a request, or about an engine, node or group that is lost, is stale: answered with nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

from dualpath_model.errors import InputError
from dualpath_model.scheduler import checks, events
from dualpath_model.scheduler.events import Decision, Event, PoolName, Settings
from dualpath_model.scheduler.ledger import Ledger, ReportError
from dualpath_model.scheduler.placement import queue_key
from dualpath_model.scheduler.queues import Queue, Request

_BATCH = 256  # requests offered at once: a fetch costs what it places, not what waits

Observer = Callable[[Event, tuple[Decision, ...], InputError | None], None]
"""Called after each event with the decisions, or with the error by which it was refused. What it raises
reaches the caller of ``handle`` after the event was taken in; the same fetch again gives its answer."""


class Scheduler:
    """Section 6.1 of the paper, or another policy, as a state machine."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        compiled: bool = False,
        observer: Observer | None = None,
    ) -> None:
        """Start empty: nodes join by events.

        ``compiled``: run the decision functions through numba (seconds once, then cached on disk).
        Raises InputError for bad settings.
        """
        self.settings = settings or Settings()
        checks.settings(self.settings)
        self.observer = observer
        self.ledger = Ledger(self.settings, compiled=compiled)
        self.requests: dict[str, Request] = {}
        self.submitted = 0
        self.waiting: dict[PoolName, Queue] = {"prefill": Queue(), "decode": Queue()}
        """Requests that wait for no particular group."""
        self.private: dict[str, Queue] = {}
        """Requests that wait for one group, by its name."""
        self.half: dict[PoolName, Queue] = {"prefill": Queue(), "decode": Queue()}
        """Requests that have an engine of this pool and still wait for one of the other."""
        self.answers: dict[str, tuple[int, tuple[Decision, ...]]] = {}
        """Number and answer of each group's last fetch."""

    def handle(self, event: Event) -> tuple[Decision, ...]:
        """Take in one event and return what is decided. Raises InputError for a bad event."""
        try:
            checks.event(event)
            decisions = self._HANDLERS[type(event)](self, event)
        except InputError as error:
            if self.observer is not None:
                self.observer(event, (), error)
            raise
        if self.observer is not None:
            self.observer(event, decisions, None)
        return decisions

    def close(self, engines: Iterable[str]) -> None:
        """Give engines no more work until an accepted report names them."""
        self.ledger.close(engines)
        self._settle()

    # ---- the life of a request ---------------------------------------------------------------

    def _submit(self, event: events.Submit) -> tuple[Decision, ...]:
        checks.submit(event)
        if event.request in self.requests:
            raise InputError(
                f"request '{event.request}' is not finished yet; submit each request once, under an "
                f"id of its own"
            )
        hold = event.prompt_tokens + event.reserve_tokens
        room = self.ledger.largest_hbm_tokens()
        if room is not None and hold > room:
            raise InputError(
                f"request '{event.request}': prompt_tokens + reserve_tokens is {hold}, more than the "
                f"{room} that the largest decode engine holds; lower reserve_tokens or add HBM"
            )
        request = Request(
            event.request, self.submitted, event.prompt_tokens, event.hit_tokens, hold
        )
        request.key = self._key(request)
        self.submitted += 1
        self.requests[request.id] = request
        for queue in self.waiting.values():
            queue.add(request)
        return ()

    def _read_started(self, event: events.ReadStarted) -> tuple[Decision, ...]:
        request = self._with_read(event)
        if request is not None and event.node not in request.started:
            request.started.add(event.node)
            self.ledger.announce(event.node, request.reads[event.node])
        return ()

    def _read_finished(self, event: events.ReadFinished) -> tuple[Decision, ...]:
        request = self._with_read(event)
        if request is not None:
            self._end_read(request, event.node)
        return ()

    def _prefill_finished(self, event: events.PrefillFinished) -> tuple[Decision, ...]:
        request = self._current(event)
        if request is None or request.prefill_finished:
            return ()
        if request.ordered is None or request.reads:
            what = "it has not both engines" if request.ordered is None else "reads are under way"
            raise InputError(
                f"request '{request.id}' cannot have finished prefill, {what}; report each event once "
                f"it has happened"
            )
        self._leave_prefill(request)
        request.prefill_finished = True
        return ()

    def _decode_finished(self, event: events.DecodeFinished) -> tuple[Decision, ...]:
        request = self._current(event)
        if request is None:
            return ()
        if not request.prefill_finished:
            raise InputError(
                f"request '{request.id}' cannot have finished decode before prefill; report prefill "
                f"finished first"
            )
        self._leave_decode(request)
        del self.requests[request.id]
        return ()

    def _current(
        self,
        event: events.ReadStarted
        | events.ReadFinished
        | events.PrefillFinished
        | events.DecodeFinished,
    ) -> Request | None:
        """Return the request if the event is about its current attempt; None: stale."""
        request = self.requests.get(event.request)
        return request if request is not None and request.attempt == event.attempt else None

    def _with_read(self, event: events.ReadStarted | events.ReadFinished) -> Request | None:
        """Return the request if it still has a read to do on the event's node; None: stale."""
        request = self._current(event)
        if request is None or event.node in request.reads:
            return request
        if event.node not in self.ledger.joined and event.node not in self.ledger.lost_nodes:
            raise InputError(f"node '{event.node}' is unknown; only one that joined can read")
        if request.ordered is None:
            raise InputError(
                f"request '{request.id}' has no read to do on node '{event.node}', none is ordered "
                f"yet; report each event once it has happened"
            )
        return None

    # ---- fetches -----------------------------------------------------------------------------

    def _fetch(self, event: events.Fetch) -> tuple[Decision, ...]:
        checks.whole(f"fetch of group '{event.group}': number", event.number, 0, 2**62)
        if event.group in self.ledger.lost_groups:
            return ()
        number, answer = self.answers.get(event.group, (-1, ()))
        if event.number <= number:
            return tuple(filter(self._holds, answer)) if event.number == number else ()
        pool = self.ledger.pool_of(event.group)
        if pool is None:
            raise InputError(f"group '{event.group}' is unknown; one of its nodes joins first")
        try:
            self.ledger.take_report(event, pool)
        except ReportError as error:
            self.close(error.closed)
            raise
        decisions = tuple(self._place(pool, event.group))
        self.answers[event.group] = (event.number, decisions)
        return decisions

    def _holds(self, decision: Decision) -> bool:
        """Return whether a decision of before is still about the request's current attempt."""
        request = self.requests.get(decision.request)
        return request is not None and request.attempt == decision.attempt

    def _place(self, pool: PoolName, group: str) -> Iterator[Decision]:
        """Place what can be placed; where the first in line finds nothing, later ones make way for it.

        Both engines are taken apart, so two requests could each hold what the other one needs. The
        earlier one goes first: whoever has only one engine, and no read ordered, gives it back.
        """
        place = self._place_prefill if pool == "prefill" else self._place_decode
        queue = self.waiting[pool]
        if pool == "decode" or self.ledger.policy.queues_prefill:
            yield from self._designate(pool)
            queue = self.private[group]
        while True:
            yield from place(group, queue)
            in_the_way = self._in_the_way(pool, group, next(iter(queue), None))
            if not in_the_way:
                return
            for request in in_the_way:
                yield self._give_back(request)
            yield from self._settle()  # limits may have been lowered since it was placed

    def _place_prefill(self, group: str, queue: Queue) -> Iterator[Decision]:
        while queue:
            batch = list(islice(queue, _BATCH))
            rows = self.ledger.place_prefill(
                group,
                [request.prompt_tokens for request in batch],
                [request.hit_tokens for request in batch],
                [request.decode for request in batch],
            )
            queue.drop_first(len(rows))
            for request, row in zip(batch, rows, strict=False):
                self._take(request, "prefill", row.engine)
                yield events.PrefillPlaced(
                    request.id,
                    request.attempt,
                    row.engine,
                    request.key,
                    row.engine_class,
                    row.tok,
                    row.read_q,
                )
                yield from self._order(request, row.on_prefill, row.on_decode)
            if len(rows) < len(batch):
                break

    def _place_decode(self, group: str, queue: Queue) -> Iterator[Decision]:
        batch = list(_up_to(queue, self.ledger.free_tokens(group)))
        rows, balanced = self.ledger.place_decode(
            group,
            [request.prompt_tokens for request in batch],
            [request.hit_tokens for request in batch],
            [request.hold_tokens for request in batch],
            [request.prefill for request in batch],
        )
        queue.drop_first(len(rows))
        for request, row in zip(batch, rows, strict=False):
            self._take(request, "decode", row.engine)
            yield events.DecodePlaced(
                request.id,
                request.attempt,
                row.engine,
                row.balanced == 1,
                balanced,
                row.seq,
                row.tok,
                row.free_tokens,
            )
            yield from self._order(request, row.on_prefill, row.on_decode)

    def _take(self, request: Request, pool: PoolName, engine: str) -> None:
        """Note that a request is out of its queue and has an engine."""
        request.group.pop(pool, None)
        if pool == "prefill":
            request.prefill = engine
        else:
            request.decode = engine
        other: PoolName = "decode" if pool == "prefill" else "prefill"
        if request.engine(other) is None:
            self.half[pool].add(request)
        else:
            self.half[other].remove(request)

    def _in_the_way(self, pool: PoolName, group: str, head: Request | None) -> list[Request]:
        """Return later requests whose engine ``head`` could have if they gave it back: on the lowest
        engine where that helps, the last ones, no more than needed.
        """
        by_engine: dict[str, list[Request]] = {}
        for request in self.half[pool].later_than(head) if head is not None else ():
            engine = request.engine(pool)
            if engine is not None and self.ledger.group_of(engine) == group:
                by_engine.setdefault(engine, []).append(request)
        for engine in sorted(by_engine, key=lambda e: self.ledger.engine_number(pool, e)):
            spared = 0
            for count, request in enumerate(by_engine[engine], start=1):
                assert head is not None
                if pool == "prefill":
                    spared += request.prompt_tokens
                    enough = self.ledger.can_prefill(engine, spared)
                else:
                    spared += request.hold_tokens
                    enough = self.ledger.can_hold(engine, head.hold_tokens, spared)
                if enough:
                    return by_engine[engine][:count]
        return []

    def _designate(self, pool: PoolName) -> Iterator[Decision]:
        """Phase 1: move the requests of the pool's common queue to private queues of groups."""
        for request in self.waiting[pool].drain():
            group = self.ledger.designate(pool, request.prompt_tokens, request.hold_tokens)
            if group is None:  # no engine is open, or none that could hold it
                self.waiting[pool].add(request)
                continue
            request.group[pool] = group
            self.private[group].add(request)
            yield events.GroupChosen(request.id, request.attempt, group)

    def _order(self, request: Request, on_prefill: int, on_decode: int) -> Iterator[Decision]:
        """Note the read that was decided with the second of a request's engines (else -1)."""
        if on_prefill < 0:
            return
        assert request.prefill is not None
        assert request.decode is not None
        request.ordered = (on_prefill, on_decode)
        prefill_node = self.ledger.node_of[request.prefill]
        decode_node = self.ledger.node_of[request.decode]
        for node, tokens in ((prefill_node, on_prefill), (decode_node, on_decode)):
            if tokens:
                request.reads[node] = tokens
                self.ledger.order_read(node, tokens)
        yield events.ReadOrdered(
            request.id, request.attempt, prefill_node, on_prefill, decode_node, on_decode
        )

    # ---- leaving engines and queues ----------------------------------------------------------

    def _end_read(self, request: Request, node: str) -> None:
        tokens = request.reads.pop(node)
        if node in request.started:
            request.started.remove(node)
        else:
            self.ledger.announce(node, tokens)
        self.ledger.leave_read(node, tokens)

    def _leave_prefill(self, request: Request) -> None:
        assert request.prefill is not None
        self.ledger.leave_prefill(request.prefill, request.prompt_tokens)
        self._count_transfers(request, -1)

    def _count_transfers(self, request: Request, sign: int) -> None:
        if request.ordered is not None:
            assert request.prefill is not None
            assert request.decode is not None
            self.ledger.count_transfers(
                request.prefill, request.decode, request.ordered, request.miss_tokens, sign
            )

    def _leave_decode(self, request: Request) -> None:
        assert request.decode is not None
        self.ledger.leave_decode(request.decode, request.prompt_tokens, request.hold_tokens)

    def _give_back(self, request: Request) -> Decision:
        """Take a request off its engines and return it to its old position, for another attempt."""
        for node in list(request.reads):
            self._end_read(request, node)
        if request.prefill is None or request.decode is None:
            self.half["prefill" if request.decode is None else "decode"].remove(request)
        if request.prefill is not None:
            if not request.prefill_finished:
                self._leave_prefill(request)
            self.waiting["prefill"].add(request)
        if request.decode is not None:
            self._leave_decode(request)
            self.waiting["decode"].add(request)
        request.start_again()
        return events.Returned(request.id, request.attempt)

    def _leave_queue(self, request: Request, pool: PoolName) -> None:
        """Take a waiting request out of its queue."""
        group = request.group.pop(pool, None)
        if group is None:
            self.waiting[pool].remove(request)
        else:
            self.private[group].remove(request)
            self.ledger.unqueue(group, request.prompt_tokens)

    def _settle(self) -> list[Decision]:
        """After a change of what there is, let every waiting request wait where it can be served.

        One that no decode engine could hold is parked, and gives back its prefill engine; one that
        waits for a group whose open engines cannot take it goes back to the common queue.
        """
        decisions: list[Decision] = []
        if not self.requests:  # a cluster that starts up need not count after every node
            return decisions
        room = self.ledger.largest_hbm_tokens()
        for request in self.requests.values():
            if request.decode is None:
                fits = room is None or request.hold_tokens <= room
                if request.parked and fits:
                    request.parked = False
                    for queue in self.waiting.values():
                        queue.add(request)
                elif not request.parked and not fits:
                    if request.prefill is not None:
                        decisions.append(self._give_back(request))
                    for pool in self.waiting:
                        self._leave_queue(request, pool)
                    request.parked = True
            for pool, group in list(request.group.items()):
                need = request.hold_tokens if pool == "decode" else 0
                if self.ledger.largest_open_tokens(group) < need:
                    self._leave_queue(request, pool)
                    self.waiting[pool].add(request)
        return decisions

    # ---- nodes and engines -------------------------------------------------------------------

    def _node_joined(self, event: events.NodeJoined) -> tuple[Decision, ...]:
        self.ledger.join_node(event)
        if event.group not in self.private:
            self.private[event.group] = Queue()
            self.answers.pop(event.group, None)  # a new leader counts its fetches anew
        return tuple(self._settle())

    def _engine_joined(self, event: events.EngineJoined) -> tuple[Decision, ...]:
        self.ledger.join_engine(event.engine, event.node)
        return tuple(self._settle())

    def _engine_lost(self, event: events.EngineLost) -> tuple[Decision, ...]:
        node = self.ledger.node_of.get(event.engine)
        if node is None:
            if event.engine in self.ledger.lost_engines:
                return ()
            raise InputError(
                f"engine '{event.engine}' is unknown; only one that joined can be lost"
            )
        return self._lose(node, (event.engine,))

    def _node_lost(self, event: events.NodeLost) -> tuple[Decision, ...]:
        node = self.ledger.joined.get(event.node)
        if node is None:
            if event.node in self.ledger.lost_nodes:
                return ()
            raise InputError(f"node '{event.node}' is unknown; only one that joined can be lost")
        decisions = self._lose(event.node, node.engines)
        self.ledger.lose_node(event.node)
        if node.group in self.ledger.lost_groups:
            del self.private[node.group]
        return decisions

    def _lose(self, node: str, engines: tuple[str, ...]) -> tuple[Decision, ...]:
        hurt = [request for request in self.requests.values() if request.is_on(engines)]
        decisions = list(map(self._give_back, sorted(hurt, key=lambda r: r.position)))
        self.ledger.lose_engines(node, engines)
        return (*decisions, *self._settle())

    def _parameters_changed(self, event: events.ParametersChanged) -> tuple[Decision, ...]:
        checks.parameters(event)
        decisions: list[Decision] = []
        if event.limits:
            self.ledger.set_limits(event.limits)
            for request in self.requests.values():
                if not request.prefill_finished:
                    self._count_transfers(request, 1)
            decisions = self._settle()
        if event.settings is not None:
            self.settings = event.settings
            self.ledger.follow(event.settings)
            self._queue_again()
        return tuple(decisions)

    def _queue_again(self) -> None:
        """Put every waiting request where it waits for no particular group, keys renewed."""
        for queue in (*self.waiting.values(), *self.private.values(), *self.half.values()):
            queue.drain()
        for group in self.private:
            self.ledger.queued[group] = 0
        for request in self.requests.values():
            request.group.clear()
            request.key = self._key(request)
            self.file(request)

    def file(self, request: Request) -> None:
        """Put a request into the queues where it belongs."""
        for pool, queue in self.waiting.items():
            if request.waits_for(pool):
                group = request.group.get(pool)
                (queue if group is None else self.private[group]).add(request)
            elif not request.parked and request.ordered is None:
                self.half[pool].add(request)

    def _key(self, request: Request) -> float:
        settings = self.settings
        work_s = settings.hit_s_per_token * request.hit_tokens
        work_s += settings.miss_s_per_token * request.miss_tokens
        return queue_key(request.position, work_s, settings.patience, settings.most_work_s)

    _HANDLERS: ClassVar[dict[type, Callable[[Scheduler, Any], tuple[Decision, ...]]]] = {
        events.Submit: _submit,
        events.Fetch: _fetch,
        events.ReadStarted: _read_started,
        events.ReadFinished: _read_finished,
        events.PrefillFinished: _prefill_finished,
        events.DecodeFinished: _decode_finished,
        events.EngineLost: _engine_lost,
        events.NodeLost: _node_lost,
        events.NodeJoined: _node_joined,
        events.EngineJoined: _engine_joined,
        events.ParametersChanged: _parameters_changed,
    }


def _up_to(queue: Queue, room_tokens: int) -> Iterator[Request]:
    """Yield the first requests that fit into ``room_tokens`` of HBM together."""
    for request in queue:
        room_tokens -= request.hold_tokens
        if room_tokens < 0:
            return
        yield request
