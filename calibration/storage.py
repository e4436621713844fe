"""Storage as the KV cache uses it: reads of Full-Block-sized objects by a queue of threads, O_DIRECT.

Every point of the sweeps is measured again in each round, so that drift of the machine shows as spread.
Reads take the blocks of a file of random data in an order that repeats none until all have had their
turn; writes go over a second file, with new data each time. A cache below the operating system (of a
disk array, of the host of a virtual machine) that holds all the test data is measured with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration import fit
from calibration.block_io import (
    LEAST_BLOCKS,
    Buffers,
    Busy,
    Order,
    Stream,
    checked_block,
    checked_blocks,
    keep_busy,
    latency,
)
from calibration.files_on_disk import IN_MEMORY, DataFile, check_folder, file_system
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.profile import Estimate, Fit, Sample, Series, Setting, estimate
from dualpath_model.quantities import Dimension, show

DEPTHS = (1, 2, 4, 8, 16, 32)
_SMALLEST_BLOCK = 16 * 1024
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


@dataclass(frozen=True)
class _Point:
    """One point of a sweep: what runs at once, and into which series the reads and writes go."""

    series: str
    at: Mapping[str, Setting]
    streams: Sequence[Stream]
    huge_pages: bool = True


_MEANINGS = {
    "storage_blocks": "random reads of one block at a time, over block sizes",
    "storage_depths": "random reads of full blocks, over how many are read at a time",
    "storage_small_pages": "the deepest queue again, into buffers without huge pages",
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
    block = checked_block(block_bytes)
    blocks = checked_blocks(space_bytes, block)
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
    for file, least in ((data, _READ_SHARE * LEAST_BLOCKS), (scratch, 2)):
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
        _Point("storage_small_pages", at, [reads(block, deep)], huge_pages=False),
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
        buffers = {huge: Buffers(rng, huge_pages=huge) for huge in (True, False)}
        for number, point in enumerate(points):
            done = (time.perf_counter() - begun) / seconds
            at = ", ".join(f"{key} {value}" for key, value in point.at.items())
            tell(min(0.99, done), f"{point.series}, {at}, round {turn + 1} of {rounds}")
            to_come = (rounds - turn) * len(points) - number
            length = max(0.02, (ends - time.perf_counter()) / to_come)
            found = keep_busy(point.streams, length, buffers[point.huge_pages])
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
    scattered = typical("storage_small_pages", series["storage_small_pages"])
    sizes = series["storage_blocks"]
    by_size = fit.latency_bandwidth("storage_block_size", sizes, range(len(sizes.samples)))
    by_depth = fit.saturating("storage_depth", depths, range(len(depths.samples)), over="depth")
    figures = {
        "storage_read_bytes_per_s": fit.figure(read, "bytes_per_s"),
        "storage_write_bytes_per_s": fit.figure(written, "bytes_per_s"),
        "storage_sequential_bytes_per_s": fit.figure(rising, "bytes_per_s"),
        "storage_read_latency_s": fit.figure(by_size, "latency_s"),
        "storage_read_p99_s": _p99([depths.samples[i] for i in _where(depths, depth=deepest)]),
        "storage_read_while_writing_share": fit.share(
            mixed.parameters["bytes_per_s"], read.parameters["bytes_per_s"], source=mixed.name
        ),
    }
    small_pages = fit.share(
        scattered.parameters["bytes_per_s"], read.parameters["bytes_per_s"], source=scattered.name
    )
    figures["storage_small_pages_share"] = small_pages
    warnings = _doubts(depths, deepest)
    if small_pages.high < 1:
        warnings.append(
            f"into buffers of small pages reads reach {small_pages.value:.0%} of this rate, because the "
            f"disk cuts a block into more requests; a loader without huge pages gets that"
        )
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
    fits = [by_size, by_depth, read, scattered, written, rising, mixed]
    return Measured(list(series.values()), fits, figures, warnings=warnings)


def _where(series: Series, **at: Setting) -> list[int]:
    return [
        index
        for index, sample in enumerate(series.samples)
        if all(sample.at[key] == value for key, value in at.items())
    ]


def _depth(sample: Sample) -> int:
    return int(sample.at["depth"] or 0)


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
