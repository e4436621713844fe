"""Queues of threads that each read or write one block of a file at a time, and how long that takes.

A queue of depth n is n threads that each do one operation at a time; the system call leaves the GIL.
What is written is new each time. Storage is measured, and loaded beside other measurements, with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from calibration.files_on_disk import (
    ALIGNMENT,
    DataFile,
    aligned,
    aligned_buffer,
    explained,
    randomize,
)
from dualpath_model.errors import InputError
from dualpath_model.profile import Latency
from dualpath_model.quantities import Dimension, show

LEAST_BLOCKS = 8
"""That the space for test data must hold."""
_MOST_BLOCK = 2**30


def checked_block(block_bytes: int) -> int:
    """Return the size rounded up to 4 KiB. Raises InputError for none and for more than 1 GiB."""
    if not 0 < block_bytes <= _MOST_BLOCK:
        raise InputError(
            f"block_bytes {block_bytes} must be from 1 to {_MOST_BLOCK} (1 GiB); a Full Block of most "
            f"LLMs has 1 to 16 MiB"
        )
    return aligned(block_bytes)


def checked_blocks(space_bytes: int, block: int) -> int:
    """Return how many blocks ``space_bytes`` holds. Raises InputError where they are too few."""
    blocks = space_bytes // block
    if blocks < LEAST_BLOCKS:
        raise InputError(
            f"space {show(float(space_bytes), Dimension.BYTES)} holds {blocks} blocks of {block} bytes, "
            f"but {LEAST_BLOCKS} are needed to measure storage; allow at least "
            f"{LEAST_BLOCKS * block} bytes"
        )
    return blocks


class Order:
    """Which block comes next: each of them once, in random or rising order, then again likewise."""

    def __init__(self, blocks: int, rng: np.random.Generator | None = None) -> None:
        """Take the number of blocks, and what to shuffle them with; None: they rise."""
        self._order: list[int] = (
            list(range(blocks)) if rng is None else rng.permutation(blocks).tolist()
        )
        self._next = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        """Return the next block's number; threads may call it at once."""
        with self._lock:
            block = self._order[self._next]
            self._next = (self._next + 1) % len(self._order)
        return block


@dataclass(frozen=True)
class Stream:
    """Reads (or writes) of equal blocks, ``depth`` of them at a time."""

    file: DataFile
    order: Order
    block_bytes: int
    depth: int
    writes: bool = False

    @classmethod
    def random(
        cls,
        file: DataFile,
        block_bytes: int,
        depth: int,
        rng: np.random.Generator,
        *,
        writes: bool = False,
    ) -> Stream:
        """Take all blocks of ``file`` in random order."""
        order = Order(file.size_bytes // block_bytes, rng)
        return cls(file, order, block_bytes, depth, writes)


@dataclass
class Busy:
    """What came of one stream: bytes moved and, of each operation, its seconds."""

    moved_bytes: int = 0
    seconds: float = 0.0
    """From the first operation's begin to the last one's end; of writes, until they are flushed, too."""
    latencies_s: list[float] = field(default_factory=list)

    @property
    def bytes_per_s(self) -> float:
        """Of the whole stream."""
        return self.moved_bytes / self.seconds


class Buffers:
    """Memory to read into and to write from, a block for each thread, kept from sample to sample."""

    def __init__(self, rng: np.random.Generator, *, huge_pages: bool = True) -> None:
        """Take what makes the data that is written, and whether huge pages are asked for."""
        self._rng = rng
        self._huge_pages = huge_pages
        self._areas: dict[bool, memoryview] = {}

    def take(self, stream: Stream) -> list[memoryview]:
        """Return ``stream.depth`` buffers of a block; those to write from hold random data."""
        needed = stream.depth * stream.block_bytes
        area = self._areas.get(stream.writes)
        if area is None or len(area) < needed:
            area = aligned_buffer(needed, huge_pages=self._huge_pages)
            if stream.writes:
                randomize(area, self._rng)
            self._areas[stream.writes] = area
        edges = range(0, needed, stream.block_bytes)
        return [area[edge : edge + stream.block_bytes] for edge in edges]


def nothing_counted(thread: int, moved_bytes: int) -> None:
    """Count nothing: what :func:`keep_busy` calls after each operation where nobody listens."""


def keep_busy(
    streams: Sequence[Stream],
    seconds: float,
    buffers: Buffers,
    *,
    stop: threading.Event | None = None,
    count: Callable[[int, int], None] = nothing_counted,
    record: bool = True,
) -> list[Busy]:
    """Keep all ``streams`` going at once for ``seconds``, then let what was begun end, and flush writes.

    Each thread does one operation at least. ``stop`` ends it sooner; ``count(thread, bytes)`` is called
    after each operation, in its thread. Without ``record``, for a load without an end, only each
    thread's last operation is in what is returned. Raises InputError where the storage fails.
    """
    stop = stop or threading.Event()
    threads = sum(stream.depth for stream in streams)
    starting = threading.Barrier(threads)
    failures: list[BaseException] = []
    spans: list[list[tuple[float, float]]] = [[] for _ in range(threads)]

    def work(thread: int, stream: Stream, buffer: memoryview) -> None:
        stamp = _Stamp(buffer) if stream.writes else None
        operate = stream.file.write if stream.writes else stream.file.read
        block_bytes, take, mine = stream.block_bytes, stream.order.take, spans[thread]
        try:
            starting.wait()
            deadline = time.perf_counter() + seconds
            while True:
                if stamp is not None:
                    stamp.renew()
                offset = take() * block_bytes
                begun = time.perf_counter()
                operate(buffer, offset)
                ended = time.perf_counter()
                if not record:
                    mine.clear()
                mine.append((begun, ended))
                count(thread, block_bytes)
                if ended >= deadline or stop.is_set():
                    return
        except threading.BrokenBarrierError:
            return
        except BaseException as error:  # told by the thread that waits for this one
            failures.append(error)
            stop.set()
            starting.abort()

    pairs = [(stream, buffer) for stream in streams for buffer in buffers.take(stream)]
    running: list[threading.Thread] = []
    try:
        for number, (stream, buffer) in enumerate(pairs):
            running.append(threading.Thread(target=work, args=(number, stream, buffer)))
            running[-1].start()
        for thread in running:
            thread.join()
        flushed = [_flushed(stream, failures) for stream in streams]
    except BaseException:  # Ctrl-C, or no more threads to be had
        stop.set()
        starting.abort()
        for thread in running:
            if thread.ident is not None:
                thread.join()
        raise
    if failures:
        with explained(streams[0].file.folder):
            raise failures[0]
    return list(_summed(streams, spans, flushed))


def _flushed(stream: Stream, failures: list[BaseException]) -> float:
    """Wait until what was written is on the storage; returns when that was, 0 for reads."""
    if not stream.writes:
        return 0.0
    try:
        os.fdatasync(stream.file.fd)
    except OSError as error:
        failures.append(error)
    return time.perf_counter()


def _summed(
    streams: Sequence[Stream], spans: list[list[tuple[float, float]]], flushed: Sequence[float]
) -> Iterator[Busy]:
    first = 0
    for stream, safe in zip(streams, flushed, strict=True):
        mine = [span for thread in spans[first : first + stream.depth] for span in thread]
        first += stream.depth
        begun, ended = min(b for b, _ in mine), max(e for _, e in mine)
        yield Busy(
            moved_bytes=len(mine) * stream.block_bytes,
            seconds=max(ended, safe) - begun,
            latencies_s=[e - b for b, e in mine],
        )


class _Stamp:
    """Makes a buffer new for each write: 8 bytes of every 4 KiB, or storage could spare itself work.

    That suffices against what finds equal blocks; all bytes anew would take a core for each 5 GB/s.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._words = np.frombuffer(buffer, np.uint64)[:: ALIGNMENT // 8]
        self._step = np.uint64(0x9E3779B97F4A7C15)  # odd: 2**64 steps until a value comes again

    def renew(self) -> None:
        self._words += self._step


def latency(latencies_s: Sequence[float]) -> Latency:
    """Return the percentiles of single operations; each is one that was measured."""
    values: npt.NDArray[np.float64] = np.maximum(np.asarray(latencies_s, float), 1e-9)
    p50, p90, p99, p999 = np.percentile(values, [50, 90, 99, 99.9], method="inverted_cdf").tolist()
    return Latency(
        count=len(values), p50=p50, p90=p90, p99=p99, p999=p999, most=float(values.max())
    )
