"""Storage as the KV cache uses it: reads of Full-Block-sized objects by a queue of threads, O_DIRECT.

A queue of depth n is n threads that each read or write one block at a time; the system call leaves the
GIL. Every point of the sweeps is measured again in each round, so that drift of the machine shows as
spread. Reads take the blocks of a file of random data in an order that repeats none until all have had
their turn; writes go over a second file, with new data each time. A cache below the operating system
(of a disk array, of the host of a virtual machine) that holds all the test data is measured with it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np
import numpy.typing as npt

from calibration import fit
from calibration.files_on_disk import (
    ALIGNMENT,
    IN_MEMORY,
    DataFile,
    aligned,
    aligned_buffer,
    check_folder,
    explained,
    file_system,
    randomize,
)
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.profile import Estimate, Fit, Latency, Sample, Series, Setting, estimate
from dualpath_model.quantities import Dimension, show

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ReadLoad", "Stream", "check_folder", "keep_busy", "measure_storage", "nothing_counted"]

DEPTHS = (1, 2, 4, 8, 16, 32)
_SMALLEST_BLOCK = 16 * 1024
_LEAST_BLOCKS = 8
_MOST_BLOCK = 2**30
_READ_SHARE = 0.75
"""Of the space; the rest is written to."""
_FILLING_SHARE = 0.25
"""Of the time, after which the test data is as large as it is."""
_SAMPLE_S = 0.3
_ROUNDS = (3, 8)
_LONG_SAMPLE = 5.0
"""Of a block's p50 latency: the queue runs dry at the end of a sample, which must not matter."""
_TOO_FAST = 1.5
"""Convention: no lasting storage writes so many times as fast as it reads."""
_WORTH_TELLING = 1.1


# The engine: queues of threads.


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


# The measurement.


@dataclass(frozen=True)
class _Point:
    """One point of a sweep: what runs at once, and into which series the reads and writes go."""

    series: str
    at: Mapping[str, Setting]
    streams: Sequence[Stream]


_MEANINGS = {
    "storage_blocks": "random reads of one block at a time, over block sizes",
    "storage_depths": "random reads of full blocks, over how many are read at a time",
    "storage_sequential": "reads of full blocks in rising order",
    "storage_writes": "random writes of full blocks",
    "storage_mixed": "random reads and writes of full blocks at once, one sample for each",
}


def measure_storage(
    folder: Path,
    *,
    block_bytes: int,
    space_bytes: int,
    seconds: float,
    tell: Tell,
    seed: int = 0,
) -> Measured:
    """Measure reads and writes of ``block_bytes`` (rounded up to 4 KiB) in ``folder``.

    At most ``space_bytes`` of disk are used, by files without names, and about ``seconds`` in all, with
    the writing of the test data; where that takes a quarter of the time, less data has to do. Latencies
    are those of single operations, from the call to its return. Raises InputError for what
    :func:`check_folder` refuses, for too little space and for a storage that fails meanwhile.
    """
    begun = time.perf_counter()
    block = _checked_block(block_bytes)
    blocks = _checked_blocks(space_bytes, block)
    if not 0 < seconds <= 86_400:
        raise InputError(
            f"seconds {seconds:g} for storage must be more than 0 and at most a day; 40 is usual"
        )
    check_folder(folder, space_bytes)
    reading = int(blocks * _READ_SHARE)
    used = show(float(blocks * block), Dimension.BYTES)
    tell(0.0, f"writes test data to {folder}, at most {used} of disk until the end")
    rng = np.random.default_rng(seed)
    with (
        DataFile(folder, reading * block) as data,
        DataFile(folder, (blocks - reading) * block) as scratch,
    ):
        _fill(data, scratch, block, begun, _FILLING_SHARE * seconds, rng, tell)
        cached = data.answers_from_memory()
        points = _points(data, scratch, block, rng)
        samples = _rounds(points, begun, seconds, rng, tell)
        kind = file_system(folder)
        measured = _fitted(samples)
        measured.warnings[:0] = _warnings(folder, kind, data.direct, cached)
        measured.settings = {
            "direct": data.direct,
            "huge_pages": True,
            "file_system": kind,
            "folder": str(folder),
            "block_bytes": block,
            "space_bytes": space_bytes,
            "data_bytes": data.size_bytes + scratch.size_bytes,
            "threads": max(stream.depth for point in points for stream in point.streams),
            "seconds": seconds,
            "seed": seed,
        }
    return measured


def _checked_block(block_bytes: int) -> int:
    if not 0 < block_bytes <= _MOST_BLOCK:
        raise InputError(
            f"block_bytes {block_bytes} must be from 1 to {_MOST_BLOCK} (1 GiB); a Full Block of most "
            f"LLMs has 1 to 16 MiB"
        )
    return aligned(block_bytes)


def _checked_blocks(space_bytes: int, block: int) -> int:
    blocks = space_bytes // block
    if blocks < _LEAST_BLOCKS:
        raise InputError(
            f"space {show(float(space_bytes), Dimension.BYTES)} holds {blocks} blocks of {block} bytes, "
            f"but {_LEAST_BLOCKS} are needed to measure storage; allow at least "
            f"{_LEAST_BLOCKS * block} bytes"
        )
    return blocks


def _fill(
    data: DataFile,
    scratch: DataFile,
    block: int,
    begun: float,
    budget_s: float,
    rng: np.random.Generator,
    tell: Tell,
) -> None:
    """Write random data to both, each with its share of the time."""
    whole = data.size_bytes + scratch.size_bytes
    step = block * max(1, 2**20 // block)
    until = begun
    for file, least in ((data, _READ_SHARE * _LEAST_BLOCKS), (scratch, 2)):
        until += budget_s * file.size_bytes / whole

        def told(share: float, until: float = until) -> bool:
            now = time.perf_counter()
            tell(
                min(_FILLING_SHARE, (now - begun) / budget_s * _FILLING_SHARE),
                f"writes test data, {share:.0%}",
            )
            return now < until

        file.fill(rng, step_bytes=step, least_bytes=int(least) * block, told=told)


def _points(
    data: DataFile, scratch: DataFile, block: int, rng: np.random.Generator
) -> list[_Point]:
    """All points of all sweeps. No depth is above the number of blocks there are."""
    depths = [depth for depth in DEPTHS if depth <= data.size_bytes // block]
    deep = depths[-1]
    writing = min(deep, scratch.size_bytes // block)
    sizes = [_SMALLEST_BLOCK * 4**power for power in range(10)]
    sizes = [size for size in sizes if size <= block / 2] + [block]

    def reads(size: int, depth: int) -> Stream:
        return Stream.random(data, size, depth, rng)

    def writes() -> Stream:
        return Stream.random(scratch, block, writing, rng, writes=True)

    points = [
        _Point("storage_blocks", {"block_bytes": size, "depth": 1}, [reads(size, 1)])
        for size in sizes
    ]
    points += [
        _Point("storage_depths", {"block_bytes": block, "depth": depth}, [reads(block, depth)])
        for depth in depths
    ]
    rising = Stream(data, Order(data.size_bytes // block), block, deep)
    at = {"block_bytes": block, "depth": deep}
    return [
        *points,
        _Point("storage_sequential", at, [rising]),
        _Point("storage_writes", {**at, "depth": writing}, [writes()]),
        _Point("storage_mixed", at, [reads(block, deep), writes()]),
    ]


def _rounds(
    points: Sequence[_Point],
    begun: float,
    seconds: float,
    rng: np.random.Generator,
    tell: Tell,
) -> dict[str, list[Sample]]:
    """Measure all points in turn, round by round, until ``seconds`` after ``begun``.

    What a slow sample takes too long is taken off those to come; two rounds are measured in any case.
    """
    ends = begun + seconds
    left = ends - time.perf_counter()
    rounds = max(_ROUNDS[0], min(_ROUNDS[1], int(left / (_SAMPLE_S * len(points)))))
    samples: dict[str, list[Sample]] = {name: [] for name in _MEANINGS}
    for turn in range(rounds):
        if turn >= 2 and time.perf_counter() > ends:
            break
        # Where their pages lie in memory decides how many pieces a read is cut into: that is luck, and
        # has to show as spread.
        buffers = Buffers(rng)
        for number, point in enumerate(points):
            done = (time.perf_counter() - begun) / seconds
            at = ", ".join(f"{key} {value}" for key, value in point.at.items())
            tell(min(0.99, done), f"{point.series}, {at}, round {turn + 1} of {rounds}")
            to_come = (rounds - turn) * len(points) - number
            length = max(0.02, (ends - time.perf_counter()) / to_come)
            found = keep_busy(point.streams, length, buffers)
            for stream, busy in zip(point.streams, found, strict=True):
                samples[point.series].append(_sample(point, stream, busy))
    tell(1.0, "storage is measured")
    return samples


def _sample(point: _Point, stream: Stream, busy: Busy) -> Sample:
    """Return one sample, counted for one block, so that repeats of a point have one amount."""
    operations = len(busy.latencies_s)
    return Sample(
        at={
            **point.at,
            "depth": stream.depth,
            "operation": "write" if stream.writes else "read",
        },
        seconds=busy.seconds / operations,
        amount=stream.block_bytes,
        latency=latency(busy.latencies_s),
    )


def latency(latencies_s: Sequence[float]) -> Latency:
    """Return the percentiles of single operations; each is one that was measured."""
    values: npt.NDArray[np.float64] = np.maximum(np.asarray(latencies_s, float), 1e-9)
    p50, p90, p99, p999 = np.percentile(values, [50, 90, 99, 99.9], method="inverted_cdf").tolist()
    return Latency(
        count=len(values), p50=p50, p90=p90, p99=p99, p999=p999, most=float(values.max())
    )


# From samples to figures.


def _fitted(samples: Mapping[str, list[Sample]]) -> Measured:
    series = {
        name: Series(
            name=name,
            unit="B",
            meaning=f"{meaning}; seconds: a sample's time over its latency.count blocks",
            samples=samples[name],
        )
        for name, meaning in _MEANINGS.items()
    }
    depths = series["storage_depths"]
    deepest = max(_depth(sample) for sample in depths.samples)

    def typical(name: str, sweep: Series, **at: Setting) -> Fit:
        return fit.typical(name, sweep, _where(sweep, **at), parameter="bytes_per_s")

    # Read at the deepest queue, as measured: a cluster's loaders all ask at once and cannot choose the
    # depth. The best of several depths would be the luckiest one too, and the curve through all depths
    # says less about the deepest one than its own samples do, where the rate bends sharply or falls.
    read = typical("storage_read", depths, depth=deepest)
    written = typical("storage_write", series["storage_writes"])
    rising = typical("storage_sequential_read", series["storage_sequential"])
    mixed = typical("storage_read_while_writing", series["storage_mixed"], operation="read")
    sizes = series["storage_blocks"]
    by_size = fit.latency_bandwidth("storage_block_size", sizes, range(len(sizes.samples)))
    by_depth = fit.saturating("storage_depth", depths, range(len(depths.samples)), over="depth")
    figures = {
        "storage_read_bytes_per_s": _figure(read, "bytes_per_s"),
        "storage_write_bytes_per_s": _figure(written, "bytes_per_s"),
        "storage_sequential_bytes_per_s": _figure(rising, "bytes_per_s"),
        "storage_read_latency_s": _figure(by_size, "latency_s"),
        "storage_read_p99_s": _p99([depths.samples[i] for i in _where(depths, depth=deepest)]),
        "storage_read_while_writing_share": fit.share(
            mixed.parameters["bytes_per_s"], read.parameters["bytes_per_s"], source=mixed.name
        ),
    }
    warnings = _doubts(depths, deepest)
    write_rate, read_rate = (figures[f"storage_{k}_bytes_per_s"].value for k in ("write", "read"))
    if write_rate > _TOO_FAST * read_rate:
        warnings.append(
            f"writes are {write_rate / read_rate:.1f} times as fast as reads, flushes counted, so a "
            f"cache below takes them in; a longer burst of writes may be slower"
        )
    if "latency_s" in by_size.undetermined:
        del figures["storage_read_latency_s"]
        warnings.append(
            "storage_read_latency_s is left out: the time of a read does not tell it from 0; give "
            "storage more seconds"
        )
    fits = [by_size, by_depth, read, written, rising, mixed]
    return Measured(list(series.values()), fits, figures, warnings=warnings)


def _where(series: Series, **at: Setting) -> list[int]:
    return [
        index
        for index, sample in enumerate(series.samples)
        if all(sample.at[key] == value for key, value in at.items())
    ]


def _depth(sample: Sample) -> int:
    return int(sample.at["depth"] or 0)


def _figure(found: Fit, parameter: str) -> Estimate:
    return found.parameters[parameter].model_copy(update={"source": found.name})


def _p99(samples: Sequence[Sample]) -> Estimate:
    """Return the median of the samples' percentiles, from the least to the most of them.

    That range holds the true median of n samples with probability 1 - 2**(1 - n): 97 % for 6.
    """
    found = [sample.latency for sample in samples if sample.latency is not None]
    values = sorted(each.p99 for each in found)
    fewest = min(each.count for each in found)
    note = "median of the samples' percentiles; interval: all of them"
    if fewest < 100:
        note += f"; a sample has as few as {fewest} reads, of which the slowest counts"
    return estimate(float(np.median(values)), values[0], values[-1], "storage_depths", note)


def _doubts(depths: Series, deepest: int) -> list[str]:
    """Tell where the deepest queue is not the fastest, and where its samples were too short."""
    rates = {
        depth: [depths.samples[i].amount / depths.samples[i].seconds for i in which]
        for depth in sorted({_depth(sample) for sample in depths.samples})
        if (which := _where(depths, depth=depth))
    }
    found: list[str] = []
    best = max(rates, key=lambda depth: float(np.median(rates[depth])))
    apart = float(np.median(rates[best])) > _WORTH_TELLING * float(np.median(rates[deepest]))
    if apart and min(rates[best]) > max(rates[deepest]):
        found.append(
            f"random reads are fastest {best} at a time, "
            f"{_rate(float(np.median(rates[best])))}, not {deepest} at a time, "
            f"{_rate(float(np.median(rates[deepest])))}, which is what the figures hold; limit the "
            f"depth of the real loaders, too"
        )
    deep = [depths.samples[i] for i in _where(depths, depth=deepest)]
    short = [
        each.latency
        for each in deep
        if each.latency is not None
        and each.seconds * each.latency.count < _LONG_SAMPLE * each.latency.p50
    ]
    if 2 * len(short) > len(deep):
        found.append(
            f"samples of the deepest queue lasted less than {_LONG_SAMPLE:g} times a read, so rates may "
            f"be too low; give storage more seconds"
        )
    return found


def _warnings(folder: Path, kind: str, direct: bool, cached: bool) -> list[str]:
    if kind in IN_MEMORY:
        return [
            f"folder {folder} is on {kind}, which is memory: the figures are of memory, not of storage; "
            f"name a folder on the storage itself"
        ]
    found: list[str] = []
    if not direct:
        found.append(
            f"folder {folder} is on {kind}, which refuses O_DIRECT: reads go through the page cache, "
            f"emptied of each block, and writes wait for the storage, so both are slower than could be"
        )
    if cached:
        found.append(
            f"folder {folder} is on {kind}, which keeps test data in memory all the same: reads may be "
            f"of memory; compare with the storage's data sheet"
        )
    return found


def _rate(bytes_per_s: float) -> str:
    return show(bytes_per_s, Dimension.BYTES_PER_S)


# A load that goes on while something else is measured.


class ReadLoad:
    """Random reads in a process of their own, from ``with`` to its end, beside what is measured there.

    The process ends with the block, and with this process however that ends: its standard input is a
    pipe from here, and it looks whose child it is. The test file has no name, so nothing stays.
    """

    def __init__(self, folder: Path, block_bytes: int, space_bytes: int, depth: int) -> None:
        """Check the folder; raises InputError as :func:`measure_storage` does."""
        self.folder, self.depth = folder, depth
        self.block_bytes = _checked_block(block_bytes)
        self.size_bytes = _checked_blocks(space_bytes, self.block_bytes) * self.block_bytes
        if not 1 <= depth <= 1024:
            raise InputError(
                f"depth {depth} of the storage load must be from 1 to 1024; 16 is usual"
            )
        check_folder(folder, space_bytes)
        self._end = contextlib.ExitStack()
        self._board: npt.NDArray[np.int64] = np.zeros(depth + 1, np.int64)
        self._failure: InputError | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Write the test data and start reading; returns when the first block has been read."""
        with contextlib.ExitStack() as end:
            file = end.enter_context(DataFile(self.folder, self.size_bytes))
            file.fill(
                np.random.default_rng(0),
                step_bytes=self.block_bytes,
                least_bytes=self.size_bytes,
                told=lambda _: True,
            )
            board = os.memfd_create("dualpath-read-load")
            end.callback(os.close, board)
            os.ftruncate(board, 8 * (self.depth + 1))
            self._board = _shared(board, self.depth)
            numbers = (file.fd, file.size_bytes, file.direct, board, self.block_bytes, self.depth)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import sys; from calibration.storage import _serve_load; _serve_load(sys.argv[1:])",
                    str(self.folder),
                    str(os.getpid()),
                    *(str(int(number)) for number in numbers),
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(file.fd, board),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
            end.callback(self._stop)
            while self.bytes_read == 0:
                if self._process.poll() is not None:
                    break
                time.sleep(0.005)
            if self._process.poll() is None:
                self._end = end.pop_all()
                return self
        # It ended before it had read a block; the stack has been unwound, and stopping told why.
        raise self._failure or InputError(
            f"the storage load on folder {self.folder} ended at once; measure again"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the reads; raises InputError where they had ended before."""
        self._end.close()
        if self._failure is not None and kind is None:
            raise self._failure

    @property
    def bytes_read(self) -> int:
        """Bytes read until now."""
        return int(self._board[:-1].sum())

    @property
    def process_id(self) -> int:
        """The number of the process that reads; raises InputError before the load is started."""
        if self._process is None:
            raise InputError("the storage load has not been started; use it in a `with` block")
        return self._process.pid

    def _stop(self) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stderr is None:
            return
        try:
            self._board[-1] = 1
            process.stdin.close()
            if process.wait(timeout=5.0) != 0:
                said = process.stderr.read().decode(errors="replace").strip().splitlines()
                why = said[-1] if said else f"its exit status is {process.returncode}"
                self._failure = InputError(
                    f"the storage load on folder {self.folder} ended early ({why}); measure again"
                )
        except subprocess.TimeoutExpired:
            pass
        finally:  # after Ctrl-C, too
            process.kill()
            process.wait()
            process.stderr.close()


def _shared(board: int, depth: int) -> npt.NDArray[np.int64]:
    """Bytes read by each thread, and whether to stop."""
    return np.frombuffer(mmap.mmap(board, 8 * (depth + 1)), np.int64)


def _serve_load(arguments: Sequence[str]) -> NoReturn:
    """Read until standard input closes or the parent is another: the load's process."""
    folder = Path(arguments[0])
    parent, fd, size, direct, board, block, depth = map(int, arguments[1:])
    stop = threading.Event()
    shared = _shared(board, depth)
    rng = np.random.default_rng(1)
    stream = Stream.random(DataFile.inherited(folder, fd, size, bool(direct)), block, depth, rng)

    def watch() -> None:
        # The pipe alone does not do: a sibling that was forked meanwhile may hold its other end.
        while shared[-1] == 0 and os.getppid() == parent and not select.select([0], [], [], 0.1)[0]:
            pass
        stop.set()
        # What was begun ends within a moment, or hangs with the storage; nobody waits for it.
        time.sleep(2.0)
        os._exit(0)

    def count(thread: int, moved_bytes: int) -> None:
        shared[thread] += moved_bytes

    threading.Thread(target=watch, daemon=True).start()
    try:
        keep_busy([stream], float("inf"), Buffers(rng), stop=stop, count=count, record=False)
    except InputError as error:
        sys.exit(str(error))
    sys.exit(0)
