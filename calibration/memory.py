"""Host memory: large arrays copied by all cores, counted as STREAM counts, 2 bytes for each one copied.

Each core's thread copies its own part of one array to another, with ``numpy.copyto``, which is memcpy;
for large parts that stores past the cache, so that no line is read only to be overwritten. Threads
touch their parts first, which puts them into the memory next to their core.

Source: J. McCalpin, STREAM (www.cs.virginia.edu/stream/ref.html), its "Copy" and its counting.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibration import fit
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.profile import Sample, Series
from dualpath_model.quantities import Dimension, show

Bytes8 = npt.NDArray[np.uint8]

_SMALLEST = 2**20
_USUAL = 2**29
_LEAST = 2**24
_LEAST_CACHES = 4
"""STREAM's rule: each array at least 4 times as large as all caches together."""
_FREE_SHARE = 0.25
"""Of free memory, for each of the two arrays."""
_SAMPLE_S = 0.15
_ROUNDS = (3, 12)


def measure_memory(*, seconds: float, tell: Tell) -> Measured:
    """Measure copies in host memory over array sizes, with all cores this process may use.

    The figure is of the largest array, which is 512 MiB or 4 times the last-level cache, less where
    little memory is free. Raises InputError for too little free memory and a bad ``seconds``.
    """
    if not 0 < seconds <= 86_400:
        raise InputError(
            f"seconds {seconds:g} for memory must be more than 0 and at most a day; 10 is usual"
        )
    begun = time.perf_counter()
    cache = last_level_cache_bytes()
    free = free_memory_bytes()
    largest = array_bytes(free, cache)
    threads = len(os.sched_getaffinity(0))
    tell(0.0, f"memory, two arrays of {show(float(largest), Dimension.BYTES)}")
    copy = Copy(largest, threads)
    sizes = _sizes(largest)
    samples: list[Sample] = []
    ends = begun + seconds
    left = ends - time.perf_counter()
    rounds = max(_ROUNDS[0], min(_ROUNDS[1], int(left / (_SAMPLE_S * len(sizes)))))
    for turn in range(rounds):
        for number, size in enumerate(sizes):
            done = (time.perf_counter() - begun) / seconds
            tell(
                min(0.99, done),
                f"memory, {show(float(size), Dimension.BYTES)}, round {turn + 1} of {rounds}",
            )
            to_come = (rounds - turn) * len(sizes) - number
            taken, copies = copy.run(size, max(0.0, (ends - time.perf_counter()) / to_come))
            at = {"array_bytes": size, "threads": threads, "copies": copies}
            # Counted for one copy, so that repeats of a point have one amount.
            samples.append(Sample(at=dict(at), seconds=taken / copies, amount=2.0 * size))
    tell(1.0, "memory is measured")
    series = Series(
        name="memory_copy",
        unit="B",
        meaning="array copied in host memory by all cores; amount: bytes read and bytes written; "
        "seconds: of one of at.copies copies",
        samples=samples,
    )
    chosen = [i for i, sample in enumerate(samples) if sample.at["array_bytes"] == largest]
    found = fit.typical("memory_copy_largest", series, chosen, parameter="bytes_per_s")
    figure = fit.figure(found, "bytes_per_s")
    warnings = []
    if largest < _LEAST_CACHES * cache:
        warnings.append(
            f"memory: arrays of {show(float(largest), Dimension.BYTES)} are less than {_LEAST_CACHES} "
            f"times the last-level cache of {show(float(cache), Dimension.BYTES)}, so dram_bytes_per_s "
            f"may be too high; free some memory and measure again"
        )
    return Measured(
        series=[series],
        fits=[found],
        figures={"dram_bytes_per_s": figure},
        settings={
            "threads": threads,
            "array_bytes": largest,
            "last_level_cache_bytes": cache,
            "seconds": seconds,
        },
        warnings=warnings,
    )


class Copy:
    """Two arrays of ``array_bytes``, and threads that each copy their part from one to the other."""

    def __init__(self, array_bytes: int, threads: int) -> None:
        """Make both arrays; each thread touches its part first."""
        self.threads = threads
        self._from = np.empty(array_bytes, np.uint8)
        self._to = np.empty(array_bytes, np.uint8)

        def touch(source: Bytes8, target: Bytes8) -> None:
            source.fill(1)
            target.fill(2)

        pairs = self._parts(array_bytes)
        workers = [threading.Thread(target=touch, args=pair) for pair in pairs]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _parts(self, size_bytes: int) -> list[tuple[Bytes8, Bytes8]]:
        """Return each thread's part of the first ``size_bytes`` of each array *it* touched first.

        A thread's part of a smaller size lies in its part of the whole, so in its own memory.
        """
        whole = len(self._from)
        edges = [whole * k // self.threads // 4096 * 4096 for k in range(self.threads)] + [whole]
        sizes = [size_bytes * (k + 1) // self.threads for k in range(self.threads)]
        lengths = [after - before for before, after in zip([0, *sizes], sizes, strict=False)]
        if size_bytes == whole:
            lengths = [after - before for before, after in itertools.pairwise(edges)]
        return [
            (self._from[edge : edge + length], self._to[edge : edge + length])
            for edge, length in zip(edges, lengths, strict=False)
        ]

    def run(self, size_bytes: int, seconds: float) -> tuple[float, int]:
        """Copy ``size_bytes`` again and again for about ``seconds``; return seconds and copies, >= 1.

        All threads make as many copies, without waiting for one another in between; time runs from
        when the first begins until the last has ended.
        """
        parts = self._parts(size_bytes)
        once = self._together(parts, 1)
        copies = max(1, min(1_000_000, int(seconds / once)))
        return self._together(parts, copies), copies

    def _together(self, parts: Sequence[tuple[Bytes8, Bytes8]], copies: int) -> float:
        starting = threading.Barrier(len(parts))
        spans = [(0.0, 0.0)] * len(parts)

        def work(number: int) -> None:
            source, target = parts[number]
            starting.wait()
            begun = time.perf_counter()
            for _ in range(copies):
                np.copyto(target, source)
            spans[number] = (begun, time.perf_counter())

        workers = [threading.Thread(target=work, args=(n,)) for n in range(len(parts))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return max(ended for _, ended in spans) - min(begun for begun, _ in spans)

    def bytes_copied(self) -> int:
        """Return how many bytes of the second array have been copied from the first until now."""
        return int(np.count_nonzero(self._from == self._to))

    def copied(self) -> bool:
        """Tell whether the two arrays hold the same."""
        return self.bytes_copied() == len(self._from)


def array_bytes(free_bytes: int, cache_bytes: int) -> int:
    """Return how large each of the two arrays is to be; a multiple of 1 MiB.

    Raises InputError where ``free_bytes`` is too little for arrays of 16 MiB.
    """
    wanted = max(_USUAL, _LEAST_CACHES * cache_bytes)
    most = int(free_bytes * _FREE_SHARE)
    if most < _LEAST:
        raise InputError(
            f"free memory is {show(float(max(1, free_bytes)), Dimension.BYTES)}, but at least "
            f"{show(_LEAST / _FREE_SHARE, Dimension.BYTES)} is needed to measure memory; end other "
            f"programs, or leave out this part"
        )
    return min(wanted, most) // 2**20 * 2**20


def free_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that can be had without swapping, within the limit of the control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no control group of version 2, or no limit ("max")
        return free
    return max(0, min(free, limit - used))


def last_level_cache_bytes(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the last-level caches' size, all of them together; 0 where the system does not tell."""
    sizes: dict[tuple[int, str], int] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            shared = (index / "shared_cpu_list").read_text().strip()
            size = (index / "size").read_text().strip()
            kind = (index / "type").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size.endswith("K") and size[:-1].isdigit():
            sizes[level, shared] = int(size[:-1]) * 1024
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last)


def _sizes(largest: int) -> list[int]:
    """Powers of 4 from 1 MiB, and the largest."""
    smaller = [_SMALLEST * 4**power for power in range(12)]
    return [size for size in smaller if size <= largest / 2] + [largest]
