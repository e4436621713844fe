"""Random numbers for weights, caches and activations: drawn once, and repeated out of step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from calibration.device import repeated

if TYPE_CHECKING:
    import torch

Draw = Callable[..., "torch.Tensor"]
"""``draw(*shape, scale=1.0)`` gives a tensor of random numbers, normal with that deviation."""

_PERIOD = 2**22 + 15
"""Random numbers drawn afresh; larger tensors repeat them, never in step with their rows. Drawing
each number of a layer of billions would take longer than measuring it."""


def drawing(device: torch.device, dtype: torch.dtype, seed: int) -> Draw:
    """Return a :data:`Draw` on ``device``; equal seeds give equal numbers."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    pool = torch.randn(_PERIOD, generator=generator, device=device, dtype=dtype)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return repeated(pool, math.prod(shape)).mul_(scale).view(shape)

    return draw


def matrix(draw: Draw, rows: int, columns: int) -> torch.Tensor:
    """Draw a weight whose products with normal numbers are about normal again."""
    return draw(rows, columns, scale=columns**-0.5)
