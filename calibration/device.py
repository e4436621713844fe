"""A device's memory: what a room may take of it, what fills it, and copies between places in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration.clock import Work
from calibration.memory import free_memory_bytes
from dualpath_model.errors import DualPathError

if TYPE_CHECKING:
    import torch

MEMORY_SHARE = 0.25
"""At most this share of a device's free memory is taken."""
WORD_BYTES = 8
"""Of one word: buffers of copies are counted in words."""

_DRAWN = 2**20 - 3
"""Random words drawn; more are these again. Odd, so that no two places of a pool begin alike."""
_PLACES = 256


def free_bytes(device: torch.device) -> float:
    """Return the bytes that are free on the device; of a CPU, in host memory."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info(device)[0])
    return float(free_memory_bytes())


def most_bytes(device: torch.device) -> float:
    """Return the bytes that a room may take of the device's memory."""
    return MEMORY_SHARE * free_bytes(device)


def repeated(drawn: torch.Tensor, count: int, *, pinned: bool = False) -> torch.Tensor:
    """Return ``count`` elements: those of ``drawn``, over and over, where that has fewer."""
    import torch

    whole = torch.empty(count, dtype=drawn.dtype, device=drawn.device, pin_memory=pinned)
    for begin in range(0, count, len(drawn)):
        part = whole[begin : begin + len(drawn)]
        part.copy_(drawn[: len(part)])
    return whole


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
        copy_work(a, b)
        for a, b in zip(places(source, words), places(destination, words), strict=True)
    ]


def copy_work(source: torch.Tensor, destination: torch.Tensor) -> Work:
    """Return a work that copies ``source`` to ``destination``; on a GPU it may only queue that."""
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
