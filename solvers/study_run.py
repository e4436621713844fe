"""The loop that drives a study: pieces out to an engine, finished ones to disk, deaths traced.

Pieces hold about a second of work, so that a kill costs little and handing out costs less. Where a
worker dies nobody knows which of the pieces under way did it: each of them is worked on again, alone;
one that dies alone is taken apart down to single points, and a point that alone has killed two
workers is recorded as failed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dualpath_model.errors import InputError
from solvers.study_engines import Engine, WorkerDiedError
from solvers.study_spec import Method
from solvers.study_store import Range, Store
from solvers.study_work import Done, Work, died

Progress = Callable[[int, float, str], None]
"""Gets how many points of the study are finished, which share of this run that is, and both in words;
may raise KeyboardInterrupt."""

_PIECE_S = 1.0
_LOOK_S = 0.5  # between two looks at progress and Ctrl-C
_FEW = 64  # points that are tried one by one: new processes take longer than most points
_UNDER_WAY = 2  # pieces for each worker, so that none waits for the next
_FIRST: dict[Method, int] = {"closed form": 100, "LP": 4, "simulation": 1}
_MOST: dict[Method, int] = {"closed form": 10_000, "LP": 1000, "simulation": 1000}


@dataclass(frozen=True)
class Ran:
    """What a run did: points done by it, failed ones among them, and seconds that it took.

    ``work_s``: seconds that workers spent on the points, of all workers together, ``worker_cpu_s`` of
    processor time; ``driver_cpu_s``: of this process. ``deaths``: pieces whose worker died.
    """

    points: int
    failed: int
    seconds: float
    work_s: float
    worker_cpu_s: float
    driver_cpu_s: float
    deaths: int


def drive(work: Work, store: Store, engine: Engine, tell: Progress) -> Ran:
    """Work on all points that the store misses.

    Raises InputError if the engine or the disk gives up; what is finished is on disk then, and also
    when KeyboardInterrupt comes out of ``tell``.
    """
    return _Drive(work, store, engine, tell).run()


class _Drive:
    """State of one run."""

    def __init__(self, work: Work, store: Store, engine: Engine, tell: Progress) -> None:
        self.work, self.store, self.engine, self.tell = work, store, engine, tell
        self.todo = deque(store.missing())
        self.left = self.asked = sum(stop - start for start, stop in self.todo)
        self.suspects: deque[Range] = deque()
        self.under_way: dict[Range, bool] = {}  # and whether it runs alone
        self.killers: set[int] = set()  # points with which a worker has died, nothing beside it
        self.failed = self.deaths = 0
        self.work_s = self.cpu_s = 0.0
        self.point_s: float | None = None

    def run(self) -> Ran:
        """Hand out and take back until nothing is left."""
        begun, cpu = time.perf_counter(), time.process_time()
        self._tell()
        while self.left:
            self._hand_out()
            for piece, outcome in self.engine.finished(_LOOK_S):
                alone = self.under_way.pop(piece)
                if isinstance(outcome, Done):
                    self._keep(outcome)
                elif isinstance(outcome, WorkerDiedError):
                    self._after_death(piece, alone)
                elif isinstance(outcome, InputError):
                    raise outcome
                else:
                    raise InputError(
                        f"a worker cannot do this study ({type(outcome).__name__}: "
                        f"{str(outcome).splitlines()[0] if str(outcome) else ''}); check that it has "
                        f"the same dualpath as this machine"
                    ) from outcome
            self._tell()
        seconds = time.perf_counter() - begun
        own = time.process_time() - cpu
        return Ran(self.asked, self.failed, seconds, self.work_s, self.cpu_s, own, self.deaths)

    def _hand_out(self) -> None:
        if self.suspects:  # one at a time, with nothing beside it
            if not self.under_way:
                piece = self.suspects.popleft()
                self.under_way[piece] = True
                self.engine.submit(piece)
            return
        while self.todo and len(self.under_way) < _UNDER_WAY * self.engine.workers:
            size = self._size()
            start, stop = self.todo.popleft()
            cut = min(stop, start + size)
            if cut < stop:
                self.todo.appendleft((cut, stop))
            self.under_way[start, cut] = False
            self.engine.submit((start, cut))

    def _size(self) -> int:
        """Return how many points make a piece now; towards the end fewer, so that all end together."""
        method = self.work.spec.method
        if self.point_s is None:
            size = _FIRST[method]
        else:
            size = min(_MOST[method], round(_PIECE_S / max(self.point_s, 1e-9)))
        waiting = sum(stop - start for start, stop in self.todo)
        return max(1, min(size, math.ceil(waiting / (_UNDER_WAY * self.engine.workers))))

    def _keep(self, done: Done) -> None:
        self.store.add(done)
        points = done.stop - done.start
        self.left -= points
        self.failed += done.failed
        self.work_s += done.seconds
        self.cpu_s += done.cpu_s
        if done.seconds:
            now = done.seconds / points
            self.point_s = now if self.point_s is None else 0.7 * self.point_s + 0.3 * now

    def _after_death(self, piece: Range, alone: bool) -> None:
        self.deaths += 1
        start, stop = piece
        if not alone:
            self.suspects.append(piece)
        elif stop - start == 1:
            if start in self.killers:
                self._keep(died(self.work, start))
            else:  # once may be chance: memory that something else took, an operator's hand
                self.killers.add(start)
                self.suspects.appendleft(piece)
        else:
            step = 1 if stop - start <= _FEW else -(-(stop - start) // 2)
            parts = [(at, min(stop, at + step)) for at in range(start, stop, step)]
            self.suspects.extendleft(reversed(parts))

    def _tell(self) -> None:
        done = self.asked - self.left
        total = self.store.asked["points"]
        finished = total - self.left
        text = f"{finished:,} of {total:,} points"
        if self.failed:
            text += f", {self.failed:,} failed"
        self.tell(finished, done / self.asked if self.asked else 1.0, text)
