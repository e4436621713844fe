"""Do our rooms measure what torch does? Their products against a bare loop; on a GPU, its rates too.

``python -m benchmarks.against_torch`` times both in turn, on the GPU if there is one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU_SIZE, GPU_SIZE = 2048, 8192
COPY_BYTES = 2**28
_LONGEST_S = 0.25
"""Of one product: slower arithmetic gets smaller ones, or a shared core's load changes within a pair."""


def bare_rate(dtype: torch.dtype, size: int, device: torch.device) -> Callable[[], float]:
    """Return a loop over torch.mm, three times, as anyone would write it: FLOP/s at each call."""
    import torch

    tokens = torch.randn(size, size, device=device).to(dtype)
    weight = torch.randn(size, size, device=device).to(dtype)
    result = torch.empty(size, size, dtype=dtype, device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def once() -> float:
        torch.mm(tokens, weight.t(), out=result)
        wait()
        begun = time.perf_counter()
        for _ in range(3):
            torch.mm(tokens, weight.t(), out=result)
        wait()
        return 3 * 2.0 * size**3 / (time.perf_counter() - begun)

    return once


def side(dtype: torch.dtype, device: torch.device) -> int:
    """Return the size to compare: on a CPU halved until a product takes at most :data:`_LONGEST_S`."""
    if device.type == "cuda":
        return GPU_SIZE
    size = CPU_SIZE
    rate = bare_rate(dtype, 512, device)()
    while size > 512 and 2.0 * size**3 / rate > _LONGEST_S:
        size //= 2
    return size


def compare(*, device: str = "auto", runs: int = 11) -> dict[str, float]:
    """Return our products' rate over a bare loop's, ratios of medians of ``runs`` taken in turn.

    ``gemm_over_torch`` is the one farthest from 1, of those of each kind of arithmetic. On a GPU also
    its copy and bf16 rates. Raises InputError where torch or the device is missing.
    """
    from calibration.copies import copy_rate
    from calibration.gpu import pick_device
    from calibration.products import exact_fp32, kinds, square_rate

    chosen = pick_device(device)
    on_gpu = chosen.type == "cuda"
    ratios: dict[str, float] = {}
    found: dict[str, float] = {}
    for kind in kinds(chosen)[0]:
        if kind.name == "bf16" or (kind.name == "fp32" and not on_gpu):
            size = side(kind.dtype, chosen)
            ours = square_rate(kind, size, chosen)
            bare = bare_rate(kind.dtype, size, chosen)
            with exact_fp32():
                pairs = [(ours(), bare()) for _ in range(runs + 1)][1:]
            measured = median(rate for rate, _ in pairs)
            ratios[kind.name] = measured / median(rate for _, rate in pairs)
            found[f"gemm_{size}_{kind.name}_flop_per_s"] = measured
    if on_gpu:
        copied = copy_rate(chosen, COPY_BYTES)
        found["hbm_copy_bytes_per_s"] = median(copied() for _ in range(runs))
    found |= {f"gemm_{name}_over_torch": ratio for name, ratio in ratios.items()}
    found["gemm_over_torch"] = max(ratios.values(), key=lambda ratio: abs(ratio - 1.0))
    return found


def main() -> None:
    found = compare()
    for name, value in found.items():
        print(f"{name:32} {value:.4g}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
