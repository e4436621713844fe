"""Time on a device: CUDA events where there is a GPU, the process's clock on a CPU, one code path."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]


class Clock:
    """Times work on one device; the work may be queued (GPU) or done when it returns (CPU)."""

    def __init__(self, device: torch.device) -> None:
        """Take the device on which the work runs."""
        self.device = device

    def seconds(self, work: Work) -> float:
        """Return how long ``work`` takes, from an idle device until its results are there."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun
        import torch

        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) * 1e-3

    def samples(
        self, variants: Sequence[Work], *, budget_s: float, least: int = 3, most: int = 50
    ) -> list[float]:
        """Time ``variants`` of the same work in turn, so that no data is in the cache from before.

        One call warms up and is not counted. Short work is repeated inside a sample until it takes a
        millisecond on a CPU, a tenth of one on a GPU. At least ``least`` samples, at most ``most``,
        until ``budget_s`` is spent.
        """
        begun = time.perf_counter()
        warm = self.seconds(variants[0])
        warm = min(warm, self.seconds(variants[-1])) if warm < budget_s / (least + 1) else warm
        inside = max(1, min(1000, round((1e-4 if self.device.type == "cuda" else 1e-3) / warm)))
        turn = 0
        found: list[float] = []

        def together() -> None:
            nonlocal turn
            for _ in range(inside):
                variants[turn % len(variants)]()
                turn += 1

        while len(found) < most and (len(found) < least or time.perf_counter() - begun < budget_s):
            found.append(self.seconds(together) / inside)
        return found
