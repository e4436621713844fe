"""Interference: products while copies run and copies while products run, each against itself alone.

On a GPU copies come from pinned host memory on a stream of their own; on a CPU one core makes them.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from calibration import fit
from calibration.clock import Clock, Work
from calibration.device import WORD_BYTES, copies, places, random_words
from calibration.products import Matrices, kinds, square
from calibration.rooms import Measured, Tell
from dualpath_model.profile import Estimate, Sample, Series

if TYPE_CHECKING:
    from types import TracebackType

    import torch


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


def measure_beside(
    room: Measured, device: torch.device, seconds: float, tell: Tell, seed: int
) -> None:
    """Add to ``room`` the rates of products and copies, each alone and both at once, in turn.

    Series: ``beside_copies`` and ``beside_products``; figure: ``interference_share``.
    """
    on_gpu = device.type == "cuda"
    copy_once, bytes_each = _stream_copy(device, seed) if on_gpu else _core_copy(device, seed)
    clock, shape = Clock(device), square(8192 if on_gpu else 1024)
    kind = kinds(device)[0][0]
    works = Matrices(kind, [shape], device, seed).works(shape)
    once_s = min(clock.samples(works, budget_s=0.02))
    window_s = max(20e-3, min(0.2, seconds / 40))  # many copies long, some ten rounds
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
    while rounds < 4 or (rounds < 20 and time.perf_counter() - begun < seconds * 0.8):
        tell(min(0.99, (time.perf_counter() - begun) / seconds), f"round {rounds + 1}")
        copying("none", lambda: time.sleep(window_s))
        # In turn, because a GPU that has rested is allowed a higher clock than one that has not.
        if rounds % 2 == 0:
            product("none")
            copying("running", lambda: product("running"))
        else:
            copying("running", lambda: product("running"))
            product("none")
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

    return copy_once, float(words * WORD_BYTES)


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

    return copy_once, float(many * words * WORD_BYTES)
