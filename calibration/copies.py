"""Rates of copies: in a device's memory, to and from it, of small blocks, and beside products.

On a CPU the device's memory is the host's, so there is no link to measure: those figures are left out,
and blocks are copied from memory to memory by the same code. Data is random and taken in turn from
more bytes than caches hold; copies are checked, after the timing, to have arrived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from calibration import fit
from calibration.clock import Clock, Point, Work, in_rounds
from calibration.products import Matrices, kinds, most_bytes, repeated, square
from calibration.rooms import Measured, Tell
from dualpath_model.errors import DualPathError
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.profile import Estimate, Fit, Sample, Series, Setting

if TYPE_CHECKING:
    from types import TracebackType

    import torch

SIZES = tuple(4096 * 4**step for step in range(9))
"""Bytes of one copy: 4 KiB to 256 MiB."""
BLOCK_TOKENS = 64
LAUNCH_BYTES = 2**18
"""Copies up to this size tell what one costs whatever its size; larger ones may use more cores."""
WAYS = ("one", "layers", "gather")
DIRECTIONS = ("load", "save")

_WORD = 8
_POOL_BYTES = 2**29
_LEAST_POOL_BYTES = 2**27
_POOL_BYTES_PER_S = 2**27
"""Filling a pool takes time, so that a short measurement has smaller ones."""
_PLACES = 256
_DRAWN = 2**20 - 3
_BLOCK_POOL_BYTES = 2**27
_MOST_BLOCKS = 32


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
        layer_words = max(1, round(block_bytes / _WORD))
        _measure_blocks(room, llm.layers, layer_words, device, part_s, told, seed)

    parts: list[tuple[str, float, Callable[[float, Tell], None]]] = [
        ("in device memory", 0.25, lambda s, t: _measure_device(room, device, s, t, seed)),
        ("host and device", 0.35, lambda s, t: _measure_host(room, device, s, t, seed)),
        ("blocks", 0.2, blocks),
        ("beside products", 0.2, lambda s, t: _measure_beside(room, device, s, t, seed)),
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


# Buffers


def random_words(count: int, device: torch.device, seed: int, *, pinned: bool) -> torch.Tensor:
    """Return ``count`` random words of 8 bytes, repeated after the first 8 MiB."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.empty(min(count, _DRAWN), dtype=torch.int64, device=device)
    return repeated(drawn.random_(generator=generator), count, pinned=pinned)


def places(pool: torch.Tensor, words: int) -> list[torch.Tensor]:
    """Return stretches of ``words`` spread over the pool, at most 256, none overlapping."""
    many = min(_PLACES, len(pool) // words)
    step = len(pool) // many
    return [pool[i * step :][:words] for i in range(many)]


def copies(source: torch.Tensor, destination: torch.Tensor, words: int) -> list[Work]:
    """Return works that each copy ``words`` from a place of one pool to the same of the other."""
    return [
        _copy(a, b) for a, b in zip(places(source, words), places(destination, words), strict=True)
    ]


def _copy(source: torch.Tensor, destination: torch.Tensor) -> Work:
    return lambda: destination.copy_(source, non_blocking=True)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that is queued; a CPU has done it already."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def check_arrived(what: str, source: torch.Tensor, destination: torch.Tensor) -> None:
    """Raise DualPathError unless both, which no copy is on its way to, hold the same bytes."""
    import torch

    if not torch.equal(source.cpu(), destination.cpu()):
        raise DualPathError(
            f"{what}: what arrived differs from what was sent; the machine's memory or driver is at "
            f"fault, so check them and measure again"
        )


def _pool_words(pools: Sequence[tuple[int, torch.device]], seconds: float) -> int:
    """Return the words of each pool, where so many are kept on each device."""
    wanted = min(_POOL_BYTES, max(_LEAST_POOL_BYTES, seconds * _POOL_BYTES_PER_S))
    bounds = [most_bytes(device) / many for many, device in pools]
    return int(min(wanted, *bounds)) // 4096 * 4096 // _WORD


def _sizes(pool_words: int) -> list[int]:
    return [size for size in SIZES if 2 * size <= pool_words * _WORD]


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
        Point({"bytes": size}, 2.0 * size, copies(source, destination, size // _WORD))
        for size in _sizes(words)
    ]
    samples = in_rounds(
        Clock(device), points, seconds=seconds, tell=tell, left_out=room.warnings, most=50
    )
    last = _sizes(words)[-1] // _WORD
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
    room.figures[figure] = found.parameters[parameter].model_copy(update={"source": found.name})


def copy_rate(device: torch.device, size: int, seed: int = 0) -> Callable[[], float]:
    """Return what measures, at each call, a copy of ``size`` bytes in device memory as the room does.

    Bytes a second, reads and writes counted.
    """
    import torch

    clock = Clock(device)
    source = random_words(2 * size // _WORD, device, seed, pinned=False)
    works = copies(source, torch.zeros_like(source), size // _WORD)

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
                works = copies(source, destination, size // _WORD)
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
    last = sizes[-1] // _WORD
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


# Small blocks


class Blocks:
    """Full blocks on the host, whole, and on the device: whole, and as layer blocks in scattered slots.

    A full block is [layers, words]; ``many`` of them, each word 8 bytes. Slot ``order[b, l]`` on the
    device belongs to layer l of block b.
    """

    def __init__(self, layers: int, words: int, many: int, device: torch.device, seed: int) -> None:
        """Fill the host's blocks with random words, and take the rest of the memory."""
        import torch

        pinned = device.type == "cuda"
        shape = (many, layers, words)
        host = torch.device("cpu")
        self.sent = random_words(many * layers * words, host, seed, pinned=pinned).view(shape)
        self.fetched = torch.zeros(shape, dtype=torch.int64, pin_memory=pinned)
        self.whole = torch.zeros(shape, dtype=torch.int64, device=device)
        self.slots = torch.zeros((many * layers, words), dtype=torch.int64, device=device)
        self.gathered = torch.zeros((layers, words), dtype=torch.int64, device=device)
        shuffled = torch.randperm(many * layers, generator=torch.Generator().manual_seed(seed))
        self.order = shuffled.view(many, layers)
        self._order = self.order.to(device)

    def works(self, direction: str, way: str) -> list[Work]:
        """Return works that each move one block: "load" from the host, "save" to it.

        ``way``: "one" copy of the whole block, a copy for each of its "layers" blocks, or one copy
        and one "gather" kernel between it and the slots.
        """
        blocks = range(len(self.sent))
        if way == "one":
            return [self._one(direction, block) for block in blocks]
        if way == "layers":
            return [self._layers(direction, block) for block in blocks]
        return [self._gather(direction, block) for block in blocks]

    def _one(self, direction: str, block: int) -> Work:
        if direction == "load":
            return _copy(self.sent[block], self.whole[block])
        return _copy(self.whole[block], self.fetched[block])

    def _layers(self, direction: str, block: int) -> Work:
        # Views are made before: an engine's loop is no slower for being written in Python.
        slots = [self.slots[slot] for slot in self.order[block].tolist()]
        host = self.sent[block] if direction == "load" else self.fetched[block]
        pairs = list(zip(host, slots, strict=True))
        if direction == "load":
            return lambda: [slot.copy_(layer, non_blocking=True) for layer, slot in pairs]
        return lambda: [layer.copy_(slot, non_blocking=True) for layer, slot in pairs]

    def _gather(self, direction: str, block: int) -> Work:
        import torch

        order, gathered, slots = self._order[block], self.gathered, self.slots
        sent, fetched = self.sent[block], self.fetched[block]

        def load() -> None:
            gathered.copy_(sent, non_blocking=True)
            slots.index_copy_(0, order, gathered)

        def save() -> None:
            torch.index_select(slots, 0, order, out=gathered)
            fetched.copy_(gathered, non_blocking=True)

        return load if direction == "load" else save

    def check(self) -> None:
        """Load and save the blocks in every way, and see that the same bytes come back.

        Raises DualPathError where they do not.
        """
        for way in WAYS:
            for buffer in (self.whole, self.slots, self.gathered):
                buffer.zero_()
            self.fetched.zero_()
            for work in [*self.works("load", way), *self.works("save", way)]:
                work()
            wait(self.slots.device)
            held = self.whole if way == "one" else self.slots[self._order]
            check_arrived(f"block_copy load {way}", self.sent, held)
            check_arrived(f"block_copy save {way}", self.sent, self.fetched)


def _measure_blocks(
    room: Measured,
    layers: int,
    words: int,
    device: torch.device,
    seconds: float,
    tell: Tell,
    seed: int,
) -> None:
    import torch

    host = torch.device("cpu")
    block_bytes = layers * words * _WORD
    # On the host two pools, on the device two and the gathered block; on a CPU they are all one's.
    share = [(3, device), (2, host)] if device.type == "cuda" else [(5, device)]
    room_for = int(min([_BLOCK_POOL_BYTES, *(most_bytes(d) / n for n, d in share)]) // block_bytes)
    many = max(2, min(_MOST_BLOCKS, room_for))
    if any(n * many * block_bytes > most_bytes(d) for n, d in share):
        room.warnings.append(
            f"layer_block_share and gather_share are left out: full blocks of {block_bytes:,} bytes do "
            f"not fit into a quarter of the free memory"
        )
        return
    blocks = Blocks(layers, words, many, device, seed)
    points = [
        Point({"direction": direction, "way": way}, block_bytes, blocks.works(direction, way))
        for direction in DIRECTIONS
        for way in WAYS
    ]
    clock = Clock(device)
    samples = in_rounds(clock, points, seconds=seconds, tell=tell, left_out=room.warnings, most=50)
    blocks.check()
    series = Series(
        name="block_copy",
        unit="B",
        meaning=(
            f"a full block of {layers} layers x {words * _WORD} bytes, loaded from host memory or saved "
            f"to it"
        ),
        samples=samples,
    )
    room.series.append(series)
    rates: dict[str, Estimate] = {}
    for direction in DIRECTIONS:
        for way in WAYS:
            at = [
                i
                for i, sample in enumerate(samples)
                if (sample.at["direction"], sample.at["way"]) == (direction, way)
            ]
            name = f"block_{direction}_{way}"
            found = fit.typical(name, series, at, parameter="bytes_per_s")
            room.fits.append(found)
            rates[name] = found.parameters["bytes_per_s"]
    for way, figure in (("layers", "layer_block_share"), ("gather", "gather_share")):
        name = f"block_load_{way}"
        room.figures[figure] = fit.share(rates[name], rates["block_load_one"], source=name)


# Beside products


class Traffic:
    """Copies without end on a thread of its own, while the ``with`` block runs."""

    def __init__(self, copy_once: Work, bytes_each: float) -> None:
        """``copy_once`` is over when its ``bytes_each`` have arrived."""
        self._copy_once, self._bytes_each = copy_once, bytes_each
        self._copied = 0
        self._flows, self._stop = threading.Event(), threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def arrived_bytes(self) -> float:
        """Bytes that have arrived so far."""
        return self._copied * self._bytes_each

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._copy_once()
                self._copied += 1
                self._flows.set()
        except BaseException as error:
            self._failed = error
        finally:
            self._flows.set()

    def __enter__(self) -> Self:
        """Start, and wait for the first copy."""
        self._thread.start()
        self._flows.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, and raise what went wrong on the thread."""
        self._stop.set()
        self._thread.join()
        if self._failed is not None and error is None:
            raise self._failed


def _measure_beside(
    room: Measured, device: torch.device, seconds: float, tell: Tell, seed: int
) -> None:
    """Products and copies, each alone and both at once, in turn."""
    on_gpu = device.type == "cuda"
    copy_once, bytes_each = _stream_copy(device, seed) if on_gpu else _core_copy(device, seed)
    clock, shape = Clock(device), square(8192 if on_gpu else 1024)
    kind = kinds(device)[0][0]
    works = Matrices(kind, [shape], device, seed).works(shape)
    once_s = min(clock.samples(works, budget_s=0.02))
    window_s = max(20e-3, min(0.2, seconds / 40))  # many copies long, and some ten rounds of three
    repeats = max(1, round(window_s / once_s))

    def products() -> None:
        for turn in range(repeats):
            works[turn % len(works)]()

    product_samples: list[Sample] = []
    copy_samples: list[Sample] = []

    def product(beside: str) -> None:
        taken = clock.seconds(products)
        amount = repeats * shape.flop
        product_samples.append(Sample(at={"copies": beside}, seconds=taken, amount=amount))

    def copying(beside: str, work: Work) -> None:
        with Traffic(copy_once, bytes_each) as traffic:
            before, begun = traffic.arrived_bytes, time.perf_counter()
            work()
            moved, taken = traffic.arrived_bytes - before, time.perf_counter() - begun
        copy_samples.append(Sample(at={"products": beside}, seconds=taken, amount=moved))

    product("none")
    product_samples.clear()  # that was the warm-up
    begun = time.perf_counter()
    rounds = 0
    while rounds < 3 or (rounds < 20 and time.perf_counter() - begun < seconds * 0.8):
        tell(min(0.99, (time.perf_counter() - begun) / seconds), f"round {rounds + 1}")
        product("none")
        copying("none", lambda: time.sleep(window_s))
        copying("running", lambda: product("running"))
        rounds += 1
    series = Series(
        name="beside_copies",
        unit="FLOP",
        meaning=f"{kind.name} products of {shape.m} squares, alone and while copies run",
        samples=product_samples,
    )
    where = "from pinned host memory" if on_gpu else "in memory, by one core"
    copied = Series(
        name="beside_products",
        unit="B",
        meaning=f"copies {where}, alone and while products run; each byte counts once",
        samples=copy_samples,
    )
    room.series += [series, copied]
    rates: dict[str, Estimate] = {}
    for beside in ("none", "running"):
        at = [i for i, s in enumerate(product_samples) if s.at["copies"] == beside]
        found = fit.typical(f"products_copies_{beside}", series, at, parameter="flop_per_s")
        room.fits.append(found)
        rates[beside] = found.parameters["flop_per_s"]
    room.figures["interference_share"] = fit.share(
        rates["running"], rates["none"], source="products_copies_running"
    )


def _core_copy(device: torch.device, seed: int) -> tuple[Work, float]:
    """Return a copy in memory by one core, which NumPy makes; torch would take them all."""
    import numpy as np
    import torch

    words = 2**19
    source = random_words(16 * words, device, seed, pinned=False)
    destination = torch.zeros_like(source)
    pairs = [
        (a.numpy(), b.numpy())
        for a, b in zip(places(source, words), places(destination, words), strict=True)
    ]
    turn = 0

    def copy_once() -> None:
        nonlocal turn
        sent, arrived = pairs[turn % len(pairs)]
        np.copyto(arrived, sent)
        turn += 1

    return copy_once, float(words * _WORD)


def _stream_copy(device: torch.device, seed: int) -> tuple[Work, float]:
    """Return four copies from pinned host memory on a stream of their own."""
    import torch

    words, many = 2**21, 4
    source = random_words(many * words, torch.device("cpu"), seed, pinned=True)
    destination = torch.zeros(many * words, dtype=torch.int64, device=device)
    works = copies(source, destination, words)
    stream = torch.cuda.Stream(device)

    def copy_once() -> None:
        with torch.cuda.stream(stream):
            for work in works:
                work()
        stream.synchronize()

    return copy_once, float(many * words * _WORD)
