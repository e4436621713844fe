"""Rates of copies, in a device's memory and between it and the host's, and the room of all copies.

On a CPU the device's memory is the host's, so there is no link to measure: those figures are left out,
and blocks are copied from memory to memory by the same code. Data is random and taken in turn from
more bytes than caches hold; copies are checked, after the timing, to have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from calibration import fit
from calibration.beside import measure_beside
from calibration.blocks import measure_blocks
from calibration.clock import Clock, Point, Work, in_rounds
from calibration.device import WORD_BYTES, check_arrived, copies, most_bytes, random_words, wait
from calibration.rooms import BLOCK_TOKENS, Measured, Tell
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.profile import Estimate, Fit, Sample, Series, Setting

if TYPE_CHECKING:
    import torch

SIZES = tuple(4096 * 4**step for step in range(9))
"""Bytes of one copy: 4 KiB to 256 MiB."""
LAUNCH_BYTES = 2**18
"""Copies up to this size tell what one costs whatever its size; larger ones may use more cores."""

_POOL_BYTES = 2**29
_LEAST_POOL_BYTES = 2**27
_POOL_BYTES_PER_S = 2**27
"""Filling a pool in the host's memory takes time, so that a short measurement has smaller ones."""


def measure_copies(
    llm: Llm, *, kv_dtype: KvDtype, device: torch.device, seconds: float, tell: Tell, seed: int
) -> Measured:
    """Measure copies on ``device`` in about ``seconds``; blocks are those of ``llm`` in ``kv_dtype``.

    Series: ``device_copy`` and ``host_copy`` (sizes), ``block_copy`` (ways of copying a full block),
    ``beside_products`` and ``beside_copies`` (the rates of each, alone and together). Raises
    InputError where the LLM has no such ``kv_dtype``, DualPathError where a copy did not arrive.
    """
    import torch

    on_gpu = device.type == "cuda"
    block_bytes = BLOCK_TOKENS * llm.kv_bytes_per_token_layer(kv_dtype)
    room = Measured([])

    def blocks(part_s: float, told: Tell) -> None:
        layer_words = max(1, round(block_bytes / WORD_BYTES))
        measure_blocks(room, llm.layers, layer_words, device, part_s, told, seed)

    parts: list[tuple[str, float, Callable[[float, Tell], None]]] = [
        ("in device memory", 0.25, lambda s, t: _measure_device(room, device, s, t, seed)),
        ("host and device", 0.35, lambda s, t: _measure_host(room, device, s, t, seed)),
        ("blocks", 0.2, blocks),
        ("beside products", 0.2, lambda s, t: measure_beside(room, device, s, t, seed)),
    ]
    if not on_gpu:
        del parts[1]
        room.warnings.append(
            "host_to_device_bytes_per_s, device_to_host_bytes_per_s, both_ways_share and "
            "pageable_share are left out: a CPU has no link to a device of its own"
        )
    whole, done = sum(weight for _, weight, _ in parts), 0.0
    for name, weight, measure in parts:
        width = weight / whole

        def part(
            share: float, what: str, name: str = name, begin: float = done, width: float = width
        ) -> None:
            tell(begin + width * share, f"copies {name}: {what}")

        try:
            measure(seconds * width, part)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            room.warnings.append(f"copies {name} are left out: the GPU's memory is full")
        done += width
    return room


def _pool_words(pools: Sequence[tuple[int, torch.device]], seconds: float) -> int:
    """Return the words of each pool, where so many are kept on each device."""
    slow = any(device.type == "cpu" for _, device in pools)
    wanted = max(_LEAST_POOL_BYTES, seconds * _POOL_BYTES_PER_S) if slow else _POOL_BYTES
    wanted = min(_POOL_BYTES, wanted)
    bounds = [most_bytes(device) / many for many, device in pools]
    return int(min(wanted, *bounds)) // 4096 * 4096 // WORD_BYTES


def _sizes(pool_words: int) -> list[int]:
    return [size for size in SIZES if 2 * size <= pool_words * WORD_BYTES]


# In device memory


def _measure_device(
    room: Measured, device: torch.device, seconds: float, tell: Tell, seed: int
) -> None:
    import torch

    words = _pool_words([(2, device)], seconds)
    source = random_words(words, device, seed, pinned=False)
    destination = torch.zeros_like(source)
    points = [
        # Each byte is read and written.
        Point({"bytes": size}, 2.0 * size, copies(source, destination, size // WORD_BYTES))
        for size in _sizes(words)
    ]
    clock = Clock(device, ahead=True)
    samples = in_rounds(clock, points, seconds=seconds, tell=tell, left_out=room.warnings, most=50)
    last = _sizes(words)[-1] // WORD_BYTES
    destination.zero_()
    copies(source, destination, last)[0]()
    wait(device)
    check_arrived("device_copy", source[:last], destination[:last])
    series = Series(
        name="device_copy",
        unit="B",
        meaning="one copy inside device memory; amounts count reads and writes",
        samples=samples,
    )
    room.series.append(series)
    largest = max(_bytes(sample) for sample in samples)
    at = [i for i, sample in enumerate(samples) if _bytes(sample) == largest]
    found = fit.typical("device_copy", series, at, parameter="bytes_per_s")
    room.fits.append(found)
    _take(room, found, "bytes_per_s", "hbm_copy_bytes_per_s")
    if device.type != "cuda":
        at = [i for i, sample in enumerate(samples) if _bytes(sample) <= LAUNCH_BYTES]
        _fit_launch(room, "device_copy_launch", series, at)


def _bytes(sample: Sample) -> int:
    return int(sample.at["bytes"] or 0)


def _fit_launch(room: Measured, name: str, series: Series, at: Sequence[int]) -> Fit:
    found = fit.latency_bandwidth(name, series, at)
    room.fits.append(found)
    _take(room, found, "latency_s", "copy_launch_s")
    return found


def _take(room: Measured, found: Fit, parameter: str, figure: str) -> None:
    room.figures[figure] = fit.figure(found, parameter)


def copy_rate(device: torch.device, size: int, seed: int = 0) -> Callable[[], float]:
    """Return what measures, at each call, a copy of ``size`` bytes in device memory as the room does.

    Bytes a second, reads and writes counted.
    """
    import torch

    clock = Clock(device, ahead=True)
    source = random_words(2 * size // WORD_BYTES, device, seed, pinned=False)
    works = copies(source, torch.zeros_like(source), size // WORD_BYTES)

    def once() -> float:
        taken = clock.samples(works, budget_s=0.0, least=3)
        return 2.0 * size * len(taken) / sum(taken)

    return once


# Host and device


def _measure_host(
    room: Measured, device: torch.device, seconds: float, tell: Tell, seed: int
) -> None:
    """Copies between the host's memory, pinned or not, and a GPU's, one way and both at once."""
    import torch

    host = torch.device("cpu")
    words = _pool_words([(4, host), (2, device)], seconds)
    on_device = random_words(words, device, seed, pinned=False)
    arrived = torch.zeros_like(on_device)
    points: list[Point] = []
    checks: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    sizes = _sizes(words)
    ways: dict[str, list[Work]] = {}
    for pinned in (True, False):
        sent = random_words(words, host, seed + 1, pinned=pinned)
        fetched = torch.zeros(words, dtype=torch.int64, pin_memory=pinned)
        for direction, source, destination in (
            ("to_device", sent, arrived),
            ("to_host", on_device, fetched),
        ):
            for size in sizes:
                at: dict[str, Setting] = {
                    "direction": direction,
                    "pinned": pinned,
                    "bytes": size,
                }
                works = copies(source, destination, size // WORD_BYTES)
                points.append(Point(at, size, works))
            checks.append((f"host_copy {direction}", source, destination))
            if pinned:
                ways[direction] = works
    side = torch.cuda.Stream(device)
    both = [
        _at_once(up, down, side, device)
        for up, down in zip(ways["to_device"], ways["to_host"], strict=True)
    ]
    points.append(
        Point({"direction": "both", "pinned": True, "bytes": sizes[-1]}, 2.0 * sizes[-1], both)
    )
    clock = Clock(device)
    samples = in_rounds(clock, points, seconds=seconds, tell=tell, left_out=room.warnings)
    last = sizes[-1] // WORD_BYTES
    for what, source, destination in checks:
        destination.zero_()
        destination[:last].copy_(source[:last])
        check_arrived(what, source[:last], destination[:last])
    series = Series(
        name="host_copy",
        unit="B",
        meaning="one copy between host memory and device memory, or one each way at once",
        samples=samples,
    )
    room.series.append(series)

    def chosen(direction: str, pinned: bool) -> list[int]:
        return [
            i
            for i, sample in enumerate(samples)
            if sample.at["direction"] == direction and sample.at["pinned"] is pinned
        ]

    up = _fit_launch(room, "to_device", series, chosen("to_device", True))
    down = fit.latency_bandwidth("to_host", series, chosen("to_host", True))
    pageable = fit.latency_bandwidth("to_device_pageable", series, chosen("to_device", False))
    back = fit.latency_bandwidth("to_host_pageable", series, chosen("to_host", False))
    at_once = fit.typical("both_ways", series, chosen("both", True), parameter="bytes_per_s")
    room.fits += [down, pageable, back, at_once]
    _take(room, up, "bytes_per_s", "host_to_device_bytes_per_s")
    _take(room, down, "bytes_per_s", "device_to_host_bytes_per_s")
    one_way = [found.parameters["bytes_per_s"] for found in (up, down)]
    together = Estimate(
        value=sum(rate.value for rate in one_way),
        low=sum(rate.low for rate in one_way),
        high=sum(rate.high for rate in one_way),
    )
    room.figures["both_ways_share"] = fit.share(
        at_once.parameters["bytes_per_s"], together, source="both_ways"
    )
    room.figures["pageable_share"] = fit.share(
        pageable.parameters["bytes_per_s"], one_way[0], source="to_device_pageable"
    )


def _at_once(up: Work, down: Work, side: torch.cuda.Stream, device: torch.device) -> Work:
    """Return a work that is over when both copies are; one runs on a stream beside the current."""
    import torch

    def work() -> None:
        current = torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            up()
        down()
        current.wait_stream(side)

    return work
