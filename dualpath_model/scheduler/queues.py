"""Requests and the queues in which they wait for their two engines."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from dualpath_model.scheduler.events import PoolName


@dataclass(slots=True)
class Request:
    """One unfinished request. ``position`` counts submissions and never changes."""

    id: str
    position: int
    prompt_tokens: int
    hit_tokens: int
    hold_tokens: int
    """HBM that it will hold on its decode engine: prompt and reserve."""
    key: float = 0.0
    """Its place in every queue."""
    attempt: int = 1
    parked: bool = False
    """In no queue: none of the decode engines that there are could hold it."""
    group: dict[PoolName, str] = field(default_factory=dict)
    """Groups in whose private queues it waits, by pool; else it waits in the pool's common queue."""
    prefill: str | None = None
    """Prefill engine, kept after prefill has finished."""
    decode: str | None = None
    prefill_finished: bool = False
    ordered: tuple[int, int] | None = None
    """Hit tokens that the prefill node and the decode node read."""
    reads: dict[str, int] = field(default_factory=dict)
    """Tokens still to read, by node."""
    started: set[str] = field(default_factory=set)
    """Nodes that have taken up their read."""

    @property
    def miss_tokens(self) -> int:
        """Prompt tokens that prefill computes."""
        return self.prompt_tokens - self.hit_tokens

    @property
    def place(self) -> tuple[float, int]:
        """Its place in every queue: key, and among equal keys position."""
        return self.key, self.position

    def waits_for(self, pool: PoolName) -> bool:
        """Return whether it is in a queue for an engine of ``pool``."""
        return not self.parked and self.engine(pool) is None

    def engine(self, pool: PoolName) -> str | None:
        """Return its engine in ``pool``."""
        return self.prefill if pool == "prefill" else self.decode

    def is_on(self, engines: Collection[str]) -> bool:
        """Return whether losing ``engines`` costs the request what it has so far."""
        in_prefill = self.prefill in engines and not self.prefill_finished
        return in_prefill or self.decode in engines

    def start_again(self) -> None:
        """Forget all placement, for the next attempt."""
        self.prefill = self.decode = self.ordered = None
        self.prefill_finished = False
        self.started.clear()
        self.attempt += 1


class Queue:
    """Waiting requests, least key first; equal keys in the order of submission."""

    def __init__(self) -> None:
        """Start empty."""
        self._entries: SortedList = SortedList()

    def __len__(self) -> int:
        """Count the requests."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        """Go through them in order."""
        return (entry[2] for entry in self._entries)

    def add(self, request: Request) -> None:
        """Put a request in its place."""
        # positions are unique, so requests themselves are never compared
        self._entries.add((*request.place, request))

    def drop_first(self, count: int) -> None:
        """Take the first ``count`` out."""
        del self._entries[:count]

    def remove(self, request: Request) -> None:
        """Take one out. Raises ValueError if it is not there."""
        self._entries.remove((*request.place, request))

    def later_than(self, request: Request) -> Iterator[Request]:
        """Go through those behind ``request``, the last one first."""
        for entry in reversed(self._entries):
            if entry[:2] <= request.place:
                return
            yield entry[2]

    def drain(self) -> list[Request]:
        """Take all out, in order."""
        everything = list(self)
        self._entries.clear()
        return everything
