"""Who runs when: scripts one after the other, in the order in which they came.

A move takes a tenth of a second of Python, of which only one thread can run at a time anyway. Side by
side, twenty of them take each other's turns at every message that they send, and all end last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class Turns:
    """So many at once, first come first served; used with ``with``."""

    def __init__(self, at_once: int = 1) -> None:
        """Let ``at_once`` run at a time."""
        self._lock = threading.Lock()
        self._free = at_once
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        """Wait for one's turn."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hand the turn to who waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Step aside for work that takes seconds, so that others go on, and line up again."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


SCRIPTS = Turns()
"""The server's scripts."""
