"""What the sweeps of one layer share, ready before anything is timed: weights, caches, limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from calibration.clock import Clock
from calibration.device import most_bytes
from calibration.layer_model import Layer, build, common_kind
from calibration.layer_weights import drawing
from calibration.memory import last_level_cache_bytes
from dualpath_model.errors import InputError
from dualpath_model.llm import Llm
from dualpath_model.quantities import Dimension, show

if TYPE_CHECKING:
    import torch

NARROW = 8
_USUAL_CACHE_BYTES = 32e6
_NARROW_BATCH = (1, 4, 16)
"""A layer with an eighth of the feed-forward width is measured in decode too: the same operations on
fewer bytes. Without it all samples read about the same weights, whose time looks like a fixed one."""
_BYTES_PER_BUDGET_S = {"cpu": 40e6, "cuda": 2e9}
"""Held weights for each second to spend, so that a pass over them takes about 1/500 to 1/1000 of it."""


@dataclass
class Shelf:
    """Random memory out of which caches and inputs are cut one after the other, around and around."""

    flat: torch.Tensor
    cursor: int = 0

    def fits(self, *shape: int) -> bool:
        """Tell whether a tensor of this shape can be cut."""
        return math.prod(shape) <= self.flat.numel()

    def cut(self, *shape: int) -> torch.Tensor:
        """Return the next piece."""
        count = math.prod(shape)
        if self.cursor + count > self.flat.numel():
            self.cursor = 0
        piece = self.flat[self.cursor : self.cursor + count]
        self.cursor += -(-count // 64) * 64
        return piece.view(shape)


@dataclass
class Room:
    """What the three sweeps share."""

    llm: Llm
    """With all layers' feed-forward of the most common kind."""
    tensor: int
    device: torch.device
    clock: Clock
    layers: list[Layer]
    """Copies with weights of their own, so many that the last-level cache does not hold them."""
    shelf: Shelf
    scratch_bytes: float
    cache_bytes: float
    """Of the device's last-level cache."""
    element_bytes: int
    batches: tuple[int, ...] = ()
    """Of the decode sweep, with a narrow layer; (): the usual ones, with the LLM's own feed-forward."""
    warnings: list[str] = field(default_factory=list)
    graph_pool: Any = None
    """Memory of recorded steps on a GPU."""

    @property
    def place(self) -> str:
        """Return "cuda" or "cpu"."""
        return _place(self.device)


def furnish(
    llm: Llm, *, device: torch.device, dtype: torch.dtype, tensor: int, seconds: float, seed: int
) -> tuple[Room, Room, int]:
    """Draw weights and caches; return them, the same with a narrow layer, and the experts held.

    Of the memory that they may take, half is for weights, a quarter each for KV and for what a pass
    needs meanwhile. Raises InputError if the weights of a layer do not fit their half.
    """
    llm_common = common_kind(llm)
    most = most_bytes(device)
    speed = _BYTES_PER_BUDGET_S[_place(device)] * seconds
    element = dtype.itemsize
    params, ffn = llm_common.params, llm_common.ffn
    tables = params.input_embedding + (0.0 if llm.tied_embeddings else params.lm_head)
    rest = (params.total - params.experts - tables) / llm.layers / tensor * element
    one = 3.0 * llm.hidden * ffn.expert_intermediate * element
    held = held_experts(
        ffn.experts, ffn.active_experts, (min(most / 2, speed) - rest) / max(one, 1.0)
    )
    weights = rest + held * one
    if weights > most / 2:
        raise InputError(
            f"llm {llm.name}: one layer needs {show(weights, Dimension.BYTES)} of weights, more than "
            f"an eighth of the free memory, {show(most / 2, Dimension.BYTES)}; free memory, raise "
            f"tensor, or choose a smaller LLM"
        )
    cache = _last_level_cache_bytes(device)
    draw = drawing(device, dtype, seed)

    def built(of: Llm, bytes_each: float) -> list[Layer]:
        copies = max(1, min(4, math.ceil(2 * cache / bytes_each), int(most / 2 / bytes_each)))
        return [build(of, draw, tensor=tensor, held=held) for _ in range(copies)]

    narrow = replace(
        llm_common,
        ffn=replace(
            ffn,
            dense_intermediate=math.ceil(ffn.dense_intermediate / NARROW),
            expert_intermediate=math.ceil(ffn.expert_intermediate / NARROW),
        ),
    )
    room = Room(
        llm_common,
        tensor,
        device,
        Clock(device, ahead=True),
        built(llm_common, weights),
        Shelf(draw(int(min(most / 4, max(speed / 2, 4 * cache)) / element))),
        scratch_bytes=most / 4,
        cache_bytes=cache,
        element_bytes=element,
    )
    narrow_layers = built(narrow, rest / NARROW + held * one / NARROW)
    return room, replace(room, llm=narrow, layers=narrow_layers, batches=_NARROW_BATCH), held


def faster_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 on a GPU; on a CPU the faster of bf16 and fp32 in a product of 256 x 1024 x 1024.

    A small one: CPUs without bf16 arithmetic are a hundred times slower in it. By a weight [rows,
    columns] as a layer has it: the other way round torch is slower still there.
    """
    import torch
    from torch.nn import functional

    if device.type == "cuda":
        return torch.bfloat16
    clock, best = Clock(device), {}
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        best[dtype] = min(
            clock.samples([partial(functional.linear, x, weight)], budget_s=0.1, most=5)
        )
    return min(best, key=lambda dtype: best[dtype])


def held_experts(experts: int, active: int, affordable: float) -> int:
    """Return a power of two, so that powers of two of tokens divide evenly; at least the active ones."""
    if not experts:
        return 0
    most = max(float(active), affordable)
    held = 1
    while held < active:
        held *= 2
    while 2 * held <= most:
        held *= 2
    return min(held, experts)


def _last_level_cache_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(device).L2_cache_size)
    return float(last_level_cache_bytes() or _USUAL_CACHE_BYTES)


def _place(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"
