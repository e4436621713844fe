"""Time on a device: CUDA events where there is a GPU, the process's clock on a CPU, one code path."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dualpath_model.profile import Sample, Setting

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]

SHORT_S = 0.05
"""Work that takes less is called twice before it is timed, so that its first call's costs are seen."""

_FIRST_COVER_S, _LONGEST_COVER_S = 2e-4, 5e-3
_COVER_BYTES = 2**27


class Clock:
    """Times work on one device; the work may be queued (GPU) or done when it returns (CPU).

    ``ahead``: a GPU has other work to do while the timed work is being launched, as in an engine that
    launches ahead. Else the time holds what the host takes to launch the first of it (and more, where
    that takes longer than running it), as for a copy that somebody waits for.
    """

    def __init__(self, device: torch.device, *, ahead: bool = False) -> None:
        """Take the device on which the work runs."""
        self.device = device
        self._cover = Cover(device) if ahead and device.type == "cuda" else None

    def seconds(self, work: Work) -> float:
        """Return how long ``work`` takes, from when all before it is done until its results are there.

        On a GPU that is all on the current stream; others may go on, where interference is measured.
        """
        if self.device.type != "cuda":
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun
        taken, launch_s = self._timed(work)
        if self._cover is not None and self._cover.lengthen(launch_s):
            taken, _ = self._timed(work)
        return taken

    def _timed(self, work: Work) -> tuple[float, float]:
        """Return the GPU's seconds for ``work``, and the host's for launching it."""
        import torch

        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self.device)
        stream.synchronize()
        if self._cover is not None:
            self._cover.launch()
        begun = time.perf_counter()
        before.record(stream)
        work()
        launch_s = time.perf_counter() - begun
        after.record(stream)
        after.synchronize()
        return float(before.elapsed_time(after)) * 1e-3, launch_s

    def samples(
        self, variants: Sequence[Work], *, budget_s: float, least: int = 3, most: int = 50
    ) -> list[float]:
        """Time ``variants`` of the same work in turn, so that no data is in the cache from before.

        One call warms up and is not counted. Short work is repeated inside a sample until it takes a
        millisecond on a CPU, a third of one on a GPU. At least ``least`` samples, at most ``most``,
        until ``budget_s`` is spent.
        """
        begun = time.perf_counter()
        warm = self.seconds(variants[0])
        warm = min(warm, self.seconds(variants[-1])) if warm < budget_s / (least + 1) else warm
        together = Repeated(variants, self.repeats(warm))
        found: list[float] = []
        while len(found) < most and (len(found) < least or time.perf_counter() - begun < budget_s):
            found.append(self.seconds(together) / together.inside)
        return found

    def repeats(self, call_s: float) -> int:
        """Return how often work of ``call_s`` is repeated inside one sample."""
        long_enough_s = 3e-4 if self.device.type == "cuda" else 1e-3
        return max(1, min(1000, round(long_enough_s / call_s)))


class Cover:
    """Fills of a stretch of GPU memory that last about as long as launching the timed work does."""

    def __init__(self, device: torch.device) -> None:
        """Measure what one fill takes on ``device``."""
        import torch

        self._filled = torch.empty(_COVER_BYTES // 4, dtype=torch.int32, device=device)
        self._cover_s = _FIRST_COVER_S
        clock = Clock(device)
        clock.seconds(self._fill_many)
        self._fill_s = clock.seconds(self._fill_many) / 16

    def _fill_many(self) -> None:
        for _ in range(16):
            self._filled.zero_()

    def launch(self) -> None:
        """Queue the fills."""
        for _ in range(math.ceil(self._cover_s / self._fill_s)):
            self._filled.zero_()

    def lengthen(self, launch_s: float) -> bool:
        """Make the next fills cover work that takes ``launch_s`` to launch, if these did not.

        Work that waits for its own results cannot be covered, so that there is a limit.
        """
        wanted = min(_LONGEST_COVER_S, 1.5 * launch_s)
        if launch_s <= self._cover_s or wanted <= self._cover_s:
            return False
        self._cover_s = wanted
        return True


class Repeated:
    """Calls variants in turn, ``inside`` of them at a time, and goes on where it stopped."""

    def __init__(self, variants: Sequence[Work], inside: int = 1) -> None:
        """Take the variants; the first call begins with the first."""
        self.variants, self.inside, self.turn = variants, inside, 0

    def __call__(self) -> None:
        """Call the next ``inside`` of the variants."""
        for _ in range(self.inside):
            self.variants[self.turn % len(self.variants)]()
            self.turn += 1


@dataclass(frozen=True)
class Point:
    """One point of a sweep: ``works`` are variants of the same work, each of ``amount``."""

    at: dict[str, Setting]
    amount: float
    works: Sequence[Work]


def in_rounds(
    clock: Clock,
    points: Sequence[Point],
    *,
    seconds: float,
    tell: Callable[[float, str], None],
    left_out: list[str],
    least: int = 3,
    most: int = 30,
) -> list[Sample]:
    """Time every point once a round, so that a machine's drift shows as spread and not as bias.

    Samples come in measuring order, ``at["round"]`` counts from 0. ``least`` to ``most`` rounds,
    until ``seconds`` are spent; where even ``least`` would take 1.3 times as long, fewer. A point that
    a GPU has no memory for is left out, and a sentence about it is added to ``left_out``.
    """
    begun = time.perf_counter()

    def spent() -> float:
        return time.perf_counter() - begun

    ready: list[tuple[Point, Repeated]] = []
    for point in points:
        tell(min(0.99, spent() / seconds), "warming up")
        call_s = _warm(clock, point, left_out)
        if call_s is not None:
            ready.append((point, Repeated(point.works, clock.repeats(call_s))))
    found: list[Sample] = []
    for number in range(most if ready else 0):
        round_begun = spent()
        for point, together in ready:
            tell(min(0.99, spent() / seconds), f"round {number + 1}")
            taken = clock.seconds(together) / together.inside
            at = {**point.at, "round": number}
            found.append(Sample(at=at, seconds=taken, amount=point.amount))
        after_next = 2.0 * spent() - round_begun
        if after_next > seconds * (1.0 if number + 1 >= least else 1.3):
            break
    return found


def _warm(clock: Clock, point: Point, left_out: list[str]) -> float | None:
    """Return the seconds of a call after the first, or None where memory does not suffice."""
    import torch

    try:
        first = clock.seconds(point.works[0])
        return min(first, clock.seconds(point.works[-1])) if first < SHORT_S else first
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        where = ", ".join(f"{key} {value}" for key, value in point.at.items())
        left_out.append(f"{where} is left out: it does not fit into the GPU's free memory")
        return None
