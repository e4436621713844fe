"""The layers room: one layer of an LLM on one device, in prefill and in decode, and its attention alone.

Three sweeps over sizes, each as far as time and memory allow: points go from cheap to costly in a first
pass that also warms up, until the rounds that follow would not fit the time any more. Rounds visit all
points in a new random order, so that a drift of the machine shows as spread and not as bias.

Not in it: sampling, the LM head, communication, rotary encoding, kernels tuned for one GPU. An engine's
own kernels may be faster; `calibration.layer_model` and `attention_kernels` say what is run.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from calibration import fit
from calibration.clock import Clock, Work
from calibration.layer_model import (
    Cache,
    Layer,
    Queries,
    attention_kinds,
    build,
    check_tensor,
    common_kind,
    drawing,
)
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.llm import GroupedAttention, KvDtype, Llm
from dualpath_model.profile import Estimate, Fit, Sample, Series
from dualpath_model.quantities import Dimension, show
from dualpath_model.scheduler.attention import attention_time, chunk_seconds

if TYPE_CHECKING:
    import torch

MEMORY_SHARE = 0.25
"""Of the free memory; half for weights, a quarter each for KV and for what a pass needs meanwhile."""

ROUNDS = (2, 8)
"""At least and at most, after the pass that warms up; three are planned for."""

PLANNED_ROUNDS = 3
SHARES = {"attention": 0.35, "prefill": 0.3, "decode": 0.35}
"""Of the time that is left once the weights are there."""

LARGE = 0.1
"""Attention samples of at least this share of the largest amount make attention_flop_per_s."""

_CACHED = (0, 512, 2048, 8192, 32768, 65536)
_BSZ = (16, 128, 512, 2048)
_SEVERAL = (
    ((512, 16),) * 4,
    ((512, 128),) * 4,
    ((8192, 16),) * 4,
    ((0, 128),) * 8,
    ((0, 256), (2048, 64)),
    ((0, 256), (2048, 64), (8192, 16)),
    ((32768, 64), (8192, 512), (0, 1024)),
)
_FORWARD = (
    *((0, bsz) for bsz in (1, 16, 64, 256, 1024, 4096)),
    *((2048, bsz) for bsz in (64, 512, 4096)),
    *((16384, bsz) for bsz in (256, 2048)),
    *((65536, bsz) for bsz in (64, 1024)),
)
_BATCH = {"cpu": (1, 4, 16, 64, 256), "cuda": (1, 4, 16, 64, 256, 512)}
_CONTEXT = (128, 1024, 8192, 65536)
_NARROW = 8
_NARROW_BATCH = (1, 4, 16)
"""A layer with an eighth of the feed-forward width is measured in decode too: the same operations on
fewer bytes. Without it all samples read about the same weights, whose time looks like a fixed one."""

_RIDGE = {"cpu": 20.0, "cuda": 200.0}
"""FLOP in the time of a byte, roughly: only to foretell what a point takes."""
_ATTENTION_COST = {"cpu": 5.0, "cuda": 2.0}
"""How many FLOPs of a plain product take as long as one of attention; likewise rough."""
_BYTES_PER_BUDGET_S = {"cpu": 40e6, "cuda": 2e9}
"""Held weights for each second to spend, so that a pass over them takes about 1/500 to 1/1000 of it."""


@dataclass
class _Point:
    """A point of a sweep. ``make`` gives (share of the layers, variants of the work) of each kind."""

    at: dict[str, int | str | float]
    amount: float
    cost: float
    make: Callable[[], list[tuple[float, list[Work]]]]


@dataclass
class _Ready:
    """A point that is measured: its work, and how often it runs inside one sample."""

    point: _Point
    parts: list[tuple[float, list[Work]]]
    inside: int = 1
    turn: int = 0

    def seconds(self, clock: Clock) -> float:
        """Time it once: of an average layer, kinds weighted by their share."""
        total = 0.0
        for share, variants in self.parts:
            first = self.turn

            def together(variants: list[Work] = variants, first: int = first) -> None:
                for step in range(self.inside):
                    variants[(first + step) % len(variants)]()

            total += share * clock.seconds(together) / self.inside
        self.turn += self.inside
        return total


@dataclass
class _Shelf:
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
class _Room:
    """What the three sweeps share."""

    llm: Llm
    """With all layers' feed-forward of the most common kind."""
    tensor: int
    device: torch.device
    clock: Clock
    layers: list[Layer]
    """Copies with weights of their own, so many that the last-level cache does not hold them."""
    shelf: _Shelf
    scratch_bytes: float
    cache_bytes: float
    """Of the device's last-level cache."""
    element_bytes: int
    tell: Tell
    rng: random.Random
    batches: tuple[int, ...] = ()
    """Of the decode sweep; (): those of :data:`_BATCH`, with the LLM's own feed-forward."""
    warnings: list[str] = field(default_factory=list)
    graph_pool: Any = None
    """Memory of recorded steps on a GPU."""


def measure_layers(
    llm: Llm,
    *,
    kv_dtype: KvDtype,
    device: torch.device,
    tensor: int = 1,
    seconds: float,
    tell: Tell,
    seed: int = 0,
) -> Measured:
    """Measure one layer of ``llm`` as one GPU of ``tensor`` runs it, in about ``seconds``.

    Series "attention" (a forward batch's attention alone; ``at["chunks"]`` is "cached:bsz,..."),
    "prefill_layer" (a whole layer; ``cached``, ``bsz``, ``attention_flop``) and "decode_layer"
    (``batch``, ``context`` in tokens, ``bytes`` of weights touched and KV; some points with an eighth
    of the ``feed_forward``).
    Amounts are FLOPs as the models count them, of one layer on one GPU; where kinds of attention
    alternate, seconds are of their mean. A layer's feed-forward is of the LLM's most common kind.

    Latent attention decompresses its context in prefill (that time is in, its FLOPs are not counted);
    with an indexer it runs absorbed on the tokens gathered for each query, which is more arithmetic
    than the decompressed form that the models count. Causal kernels on a CPU also compute what their
    mask hides.

    Weights, activations and KV are bf16 on a GPU, on a CPU bf16 or fp32, what multiplies faster;
    ``kv_dtype`` is noted, and bytes are those really stored. Raises InputError if ``tensor`` does not
    divide the heads, or a layer's weights do not fit an eighth of the free memory.
    """
    import torch

    check_tensor(llm, tensor)
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds {seconds!r} must be finite and more than 0, such as 30")
    begun = time.perf_counter()
    with torch.inference_mode():
        tell(0.0, "layers: weights")
        dtype = _faster_dtype(device)
        room, narrow, held = _furnish(
            llm, device=device, dtype=dtype, tensor=tensor, seconds=seconds, tell=tell, seed=seed
        )
        samples: dict[str, list[Sample]] = {}
        done = 0.05
        to_come = 1.0
        for name, points in (
            ("attention", _attention_points(room)),
            ("prefill", _prefill_points(room)),
            ("decode", _decode_points(room) + _decode_points(narrow)),
        ):
            # Of what is really left: a sweep that took longer or less is made up for by the later ones.
            left = max(seconds - (time.perf_counter() - begun), 0.5 * to_come * seconds)
            budget = left * SHARES[name] / to_come
            share = (1.0 - done) * SHARES[name] / to_come
            samples[name] = _sweep(room, name, points, budget, (done, done + share))
            done += share
            to_come -= SHARES[name]
    measured = _fitted(room, samples)
    stored = str(dtype).removeprefix("torch.")
    measured.settings = {
        "llm": llm.name,
        "tensor": tensor,
        "seed": seed,
        "layers_dtype": stored,
        "layers_kv_dtype": stored,
        "layers_kv_dtype_asked": str(kv_dtype),
        "layers_held_experts": held,
        "layers_weight_copies": len(room.layers),
        "layers_feed_forward": "experts" if room.llm.ffn.experts else "dense",
        "layers_largest_context": max(int(s.at["context"] or 0) for s in samples["decode"]),
    }
    measured.warnings = _notes(llm, room, stored, kv_dtype, held) + room.warnings
    tell(1.0, "layers: done")
    return measured


# ---- what is there before anything is timed --------------------------------------------------------


def _faster_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 on a GPU; on a CPU the faster of bf16 and fp32 in a product of 512 x 2048 x 2048."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16
    clock, best = Clock(device), {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.ones(512, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
        best[dtype] = min(clock.samples([partial(torch.matmul, a, b)], budget_s=0.1, most=5))
    return min(best, key=lambda dtype: best[dtype])


def _furnish(
    llm: Llm,
    *,
    device: torch.device,
    dtype: torch.dtype,
    tensor: int,
    seconds: float,
    tell: Tell,
    seed: int,
) -> tuple[_Room, _Room, int]:
    """Draw weights and caches; return them, the same with a narrow layer, and the experts held."""
    llm_common = common_kind(llm)
    free = MEMORY_SHARE * _free_bytes(device)
    speed = _BYTES_PER_BUDGET_S[_place(device)] * seconds
    element = dtype.itemsize
    params, ffn = llm_common.params, llm_common.ffn
    tables = params.input_embedding + (0.0 if llm.tied_embeddings else params.lm_head)
    rest = (params.total - params.experts - tables) / llm.layers / tensor * element
    one = 3.0 * llm.hidden * ffn.expert_intermediate * element
    held = _held_experts(
        ffn.experts, ffn.active_experts, (min(free / 2, speed) - rest) / max(one, 1.0)
    )
    weights = rest + held * one
    if weights > free / 2:
        raise InputError(
            f"llm {llm.name}: one layer needs {show(weights, Dimension.BYTES)} of weights, more than "
            f"an eighth of the free memory, {show(free / 2, Dimension.BYTES)}; free memory, raise "
            f"tensor, or choose a smaller LLM"
        )
    cache = _last_level_cache_bytes(device)
    draw = drawing(device, dtype, seed)

    def built(of: Llm, bytes_each: float) -> list[Layer]:
        copies = max(1, min(4, math.ceil(2 * cache / bytes_each), int(free / 2 / bytes_each)))
        return [build(of, draw, tensor=tensor, held=held) for _ in range(copies)]

    narrow = replace(
        llm_common,
        ffn=replace(
            ffn,
            dense_intermediate=math.ceil(ffn.dense_intermediate / _NARROW),
            expert_intermediate=math.ceil(ffn.expert_intermediate / _NARROW),
        ),
    )
    room = _Room(
        llm_common,
        tensor,
        device,
        Clock(device),
        built(llm_common, weights),
        _Shelf(draw(int(min(free / 4, max(speed / 2, 4 * cache)) / element))),
        scratch_bytes=free / 4,
        cache_bytes=cache,
        element_bytes=element,
        tell=tell,
        rng=random.Random(seed),
    )
    narrow_layers = built(narrow, rest / _NARROW + held * one / _NARROW)
    return room, replace(room, llm=narrow, layers=narrow_layers, batches=_NARROW_BATCH), held


def _held_experts(experts: int, active: int, affordable: float) -> int:
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


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    return float(psutil.virtual_memory().available)


def _last_level_cache_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        return float(os.sysconf("SC_LEVEL3_CACHE_SIZE")) or 32e6
    except (ValueError, OSError):  # not a Linux with glibc
        return 32e6


def _place(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"


# ---- the points of the three sweeps ----------------------------------------------------------------


def _attention_points(room: _Room) -> list[_Point]:
    batches: list[tuple[tuple[int, int], ...]] = [((c, b),) for c in _CACHED for b in _BSZ]
    batches += _SEVERAL
    points = []
    for batch in batches:
        if all(_chunk_fits(room, cached, bsz) for cached, bsz in batch):
            text = ",".join(f"{cached}:{bsz}" for cached, bsz in batch)
            amount = sum(_attention_flops(room, cached, bsz) for cached, bsz in batch)
            cost = sum(_attention_cost(room, cached, bsz) for cached, bsz in batch)
            points.append(_Point({"chunks": text}, amount, cost, _attention_work(room, batch)))
    return points


def _attention_work(
    room: _Room, batch: Sequence[tuple[int, int]]
) -> Callable[[], list[tuple[float, list[Work]]]]:
    def make() -> list[tuple[float, list[Work]]]:
        parts: list[tuple[float, list[Work]]] = []
        for share, window in attention_kinds(room.llm):
            one_read = sum(c + b for c, b in batch) * _kv_elements(room) * room.element_bytes
            variants = [
                _together([_chunk_attention(room, turn, c, b, window) for c, b in batch])
                for turn in range(_variants(room, one_read))
            ]
            parts.append((share, variants))
        return parts

    return make


def _chunk_attention(room: _Room, turn: int, cached: int, bsz: int, window: int) -> Work:
    attention = room.layers[turn % len(room.layers)].attention
    chunk = attention.chunk(cached, bsz, window)
    cache = _chunk_cache(room, chunk.kept + bsz)
    queries = _queries(room, bsz)
    return lambda: attention.attend(queries, cache, chunk)


def _prefill_points(room: _Room) -> list[_Point]:
    points = []
    for cached, bsz in _FORWARD:
        if _chunk_fits(room, cached, bsz) and room.shelf.fits(bsz, room.llm.hidden):
            linear = _linear_flops(room) * bsz
            attention = _attention_flops(room, cached, bsz)
            place = _place(room.device)
            cost = linear + _RIDGE[place] * room.layers[0].touched_bytes(bsz)
            cost += _ATTENTION_COST[place] * _attention_cost(room, cached, bsz)
            at: dict[str, int | str | float] = {"cached": cached, "bsz": bsz}
            at["attention_flop"] = attention
            points.append(_Point(at, linear + attention, cost, _prefill_work(room, cached, bsz)))
    return points


def _prefill_work(
    room: _Room, cached: int, bsz: int
) -> Callable[[], list[tuple[float, list[Work]]]]:
    def variant(layer: Layer, window: int) -> Work:
        chunk = layer.attention.chunk(cached, bsz, window)
        cache = _chunk_cache(room, chunk.kept + bsz)
        x = room.shelf.cut(bsz, room.llm.hidden)
        return lambda: layer.prefill(x, cache, chunk)

    def make() -> list[tuple[float, list[Work]]]:
        kinds = attention_kinds(room.llm)
        return [
            (share, [variant(layer, window) for layer in room.layers]) for share, window in kinds
        ]

    return make


def _decode_points(room: _Room) -> list[_Point]:
    place = _place(room.device)
    points = []
    for batch in room.batches or _BATCH[place]:
        for context in _CONTEXT:
            kv = batch * context * _kv_elements(room)
            if context > room.llm.max_context_tokens or not room.shelf.fits(kv):
                continue
            if _decode_scratch(room, batch, context) > room.scratch_bytes:
                continue
            moved = room.layers[0].touched_bytes(batch) + _kv_read_bytes(room, batch, context)
            linear = float(room.llm.decode_flops(context)) - 2.0 * room.llm.params.lm_head
            amount = batch * linear / room.llm.layers / room.tensor
            cost = amount + _RIDGE[place] * moved
            at: dict[str, int | str | float] = {"batch": batch, "context": context, "bytes": moved}
            at["feed_forward"] = f"1/{_NARROW}" if room.batches else "whole"
            points.append(_Point(at, amount, cost, _decode_work(room, batch, context)))
    return points


def _decode_work(
    room: _Room, batch: int, context: int
) -> Callable[[], list[tuple[float, list[Work]]]]:
    def variant(turn: int, window: int) -> Work:
        layer = room.layers[turn % len(room.layers)]
        cache = _batch_cache(room, batch, min(context, window or context))
        x = room.shelf.cut(batch, room.llm.hidden)
        return _as_graph(room, lambda: layer.decode(x, cache))

    def make() -> list[tuple[float, list[Work]]]:
        moved = room.layers[0].touched_bytes(batch) + _kv_read_bytes(room, batch, context)
        count = max(len(room.layers), _variants(room, moved))
        kinds = attention_kinds(room.llm)
        return [
            (share, [variant(turn, window) for turn in range(count)]) for share, window in kinds
        ]

    return make


def _as_graph(room: _Room, work: Work) -> Work:
    """On a GPU, record the step once and replay it, as engines do: launching it op by op takes longer
    than running it. Where that fails, the step stays as it is, with a warning.
    """
    if room.device.type != "cuda":
        return work
    import torch

    beside = torch.cuda.Stream(room.device)
    beside.wait_stream(torch.cuda.current_stream(room.device))
    with torch.cuda.stream(beside):
        work()
    torch.cuda.current_stream(room.device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    if room.graph_pool is None:  # one for all graphs: they run one after the other
        room.graph_pool = torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool=room.graph_pool):
            work()
    except RuntimeError as error:
        said = f"decode steps were launched op by op, so decode_layer_s is high: {error}"
        if said not in room.warnings:
            room.warnings.append(said)
        return work
    return graph.replay


# ---- sizes, bytes and FLOPs ------------------------------------------------------------------------


def _variants(room: _Room, read_bytes: float) -> int:
    """Return how many sets of data make the last-level cache useless, at most 8."""
    return max(1, min(8, math.ceil(2 * room.cache_bytes / read_bytes)))


def _kv_elements(room: _Room) -> int:
    """Elements that a token has in one layer's cache on one GPU, indexer's keys included."""
    attention = room.llm.attention
    if isinstance(attention, GroupedAttention):
        return 2 * max(1, attention.kv_heads // room.tensor) * attention.head_dim
    return attention.latent_dim + (attention.indexer.head_dim if attention.indexer else 0)


def _kv_read_bytes(room: _Room, batch: int, context: int) -> float:
    """Bytes of KV that a decode step of an average layer has to read, as they are stored here."""
    attention = room.llm.attention
    if isinstance(attention, GroupedAttention):
        tokens = sum(s * min(context, w or context) for s, w in attention_kinds(room.llm))
        return batch * tokens * _kv_elements(room) * room.element_bytes
    keys = 0
    chosen = context
    if attention.indexer:
        keys = attention.indexer.head_dim * context
        chosen = min(context, attention.indexer.top_k)
    return float(batch * (attention.latent_dim * chosen + keys) * room.element_bytes)


def _chunk_fits(room: _Room, cached: int, bsz: int) -> bool:
    """Tell whether cache, mask and decompressed context of a chunk fit what they may take."""
    attention, length = room.llm.attention, cached + bsz
    if length > room.llm.max_context_tokens or not room.shelf.fits(length * _kv_elements(room)):
        return False
    heads = attention.heads // room.tensor
    mask = bsz * length if room.device.type != "cuda" and cached else 0
    if isinstance(attention, GroupedAttention):
        needed = mask + 4 * bsz * heads * attention.head_dim
    elif attention.indexer or room.llm.prefill_attention_form == "absorbed":
        needed = 4 * bsz * heads * attention.latent_dim
    else:
        keys = attention.qk_nope_head_dim + attention.qk_rope_head_dim
        pairs = attention.qk_nope_head_dim + attention.v_head_dim
        needed = mask + (length * (pairs + 2 * keys) + 3 * bsz * keys) * heads
    queries = bsz * heads * max(getattr(attention, "head_dim", 0), 192)
    return needed * room.element_bytes <= room.scratch_bytes and room.shelf.fits(queries)


def _decode_scratch(room: _Room, batch: int, context: int) -> float:
    """Bytes of scores and gathered latents that are there at once."""
    attention = room.llm.attention
    scores = batch * context * 3 * attention.heads / room.tensor
    if isinstance(attention, GroupedAttention):
        return scores * room.element_bytes if room.device.type != "cuda" else 0.0
    if attention.indexer:
        chosen = min(context, attention.indexer.top_k)
        scores = batch * context * 2 * attention.indexer.heads
        scores += batch * chosen * (attention.latent_dim + 3 * attention.heads / room.tensor)
    return scores * room.element_bytes


def _linear_flops(room: _Room) -> float:
    """FLOPs of a token's matrix products in one layer on one GPU, as the models count them."""
    return float(room.llm.prefill_flops(0.0, 1.0).linear) / room.llm.layers / room.tensor


def _attention_flops(room: _Room, cached: int, bsz: int) -> float:
    """FLOPs of a chunk's attention in an average layer on one GPU, as the models count them."""
    counted = attention_time(room.llm, flop_per_s=1.0, tensor_parallel=room.tensor)
    return chunk_seconds(counted, cached, bsz) / room.llm.layers


def _attention_cost(room: _Room, cached: int, bsz: int) -> float:
    """FLOPs about as they are really executed, to order points by: hidden pairs, decompression."""
    attention, length = room.llm.attention, cached + bsz
    heads = attention.heads / room.tensor
    if isinstance(attention, GroupedAttention):
        seen = sum(s * min(length, 2 * w or length) for s, w in attention_kinds(room.llm))
        return 4.0 * heads * attention.head_dim * bsz * seen
    pairs = attention.qk_nope_head_dim + attention.v_head_dim
    if attention.indexer or room.llm.prefill_attention_form == "absorbed":
        chosen, scored = float(length), 0.0
        if attention.indexer:
            chosen = min(length, attention.indexer.top_k)
            scored = 2.0 * attention.indexer.heads * attention.indexer.head_dim * length
        inside = 2.0 * heads * (attention.latent_dim + attention.kv_lora_rank) * chosen
        return bsz * (inside + scored + 2.0 * heads * pairs * attention.kv_lora_rank)
    width = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    decompressed = 2.0 * heads * pairs * attention.kv_lora_rank * length
    return 4.0 * heads * width * bsz * length + decompressed


def _chunk_cache(room: _Room, length: int) -> Cache:
    attention, cut = room.llm.attention, room.shelf.cut
    if isinstance(attention, GroupedAttention):
        kv_heads = max(1, attention.kv_heads // room.tensor)
        return Cache(cut(2, kv_heads, length, attention.head_dim))
    keys = cut(length, attention.indexer.head_dim) if attention.indexer else None
    return Cache(cut(length, attention.latent_dim), keys)


def _batch_cache(room: _Room, batch: int, context: int) -> Cache:
    attention, cut = room.llm.attention, room.shelf.cut
    if isinstance(attention, GroupedAttention):
        kv_heads = max(1, attention.kv_heads // room.tensor)
        return Cache(cut(2, batch, kv_heads, context, attention.head_dim))
    keys = cut(batch, context, attention.indexer.head_dim) if attention.indexer else None
    return Cache(cut(batch, context, attention.latent_dim), keys)


def _queries(room: _Room, tokens: int) -> Queries:
    attention, cut = room.llm.attention, room.shelf.cut
    heads = attention.heads // room.tensor
    if isinstance(attention, GroupedAttention):
        return Queries(cut(tokens, heads, attention.head_dim))
    q = cut(tokens, heads, attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    indexer = attention.indexer
    if indexer is None:
        return Queries(q)
    return Queries(q, cut(tokens, indexer.heads, indexer.head_dim), cut(tokens, indexer.heads))


def _together(works: Sequence[Work]) -> Work:
    def run() -> None:
        for work in works:
            work()

    return run


# ---- rounds over points ----------------------------------------------------------------------------

_LEAST_POINTS = {"attention": 8, "prefill": 4, "decode": 5}
"""Measured whatever they take: what the fits need."""


def _sweep(
    room: _Room, name: str, points: list[_Point], budget_s: float, shares: tuple[float, float]
) -> list[Sample]:
    """Measure as many of ``points`` as fit ``budget_s``, cheapest first, in rounds of random order."""
    begun = time.perf_counter()

    def told(what: str) -> None:
        done = min(1.0, (time.perf_counter() - begun) / budget_s)
        room.tell(shares[0] + done * (shares[1] - shares[0]), f"layers: {name} {what}")

    ready: list[_Ready] = []
    round_s = expected = 0.0
    rates: list[float] = []
    for point in sorted(points, key=lambda point: point.cost):
        if rates:  # the best of the last three: one may have been disturbed
            expected = min(rates[-3:]) * point.cost
        planned = (round_s + expected) * (1 + PLANNED_ROUNDS)
        if planned > budget_s and len(ready) >= _LEAST_POINTS[name]:
            break
        told(_spell(point))
        item, took = _warm(room, point, budget_s)
        ready.append(item)
        rates.append(took / point.cost)
        round_s += took * item.inside
    samples: list[Sample] = []
    for turn in range(ROUNDS[1]):
        spent = time.perf_counter() - begun
        if turn >= ROUNDS[0] and spent + round_s > budget_s:
            break
        for item in room.rng.sample(ready, len(ready)):
            if turn and time.perf_counter() - begun > budget_s:  # foretold on a quieter machine
                return samples
            told(_spell(item.point))
            seconds = item.seconds(room.clock)
            samples.append(
                Sample(at=dict(item.point.at), seconds=seconds, amount=item.point.amount)
            )
        round_s = time.perf_counter() - begun - spent
    return samples


def _warm(room: _Room, point: _Point, budget_s: float) -> tuple[_Ready, float]:
    """Run a point for the first time; return it and the seconds of one run."""
    item = _Ready(point, point.make())
    took = item.seconds(room.clock)
    if took < 0.01 * budget_s:
        took = min(took, item.seconds(room.clock))
    least_s = 1e-4 if room.device.type == "cuda" else 1e-3
    item.inside = max(1, min(1000, round(least_s / took)))
    return item, took


def _spell(point: _Point) -> str:
    return " ".join(f"{key} {value}" for key, value in point.at.items() if key != "bytes")


# ---- from samples to figures -----------------------------------------------------------------------

_MEANINGS = {
    "attention": "attention of one layer for a forward batch of chunks cached:bsz",
    "prefill": "forward pass of one whole layer for one chunk",
    "decode": "decode step of one whole layer: batch requests with context tokens each",
}


def _fitted(room: _Room, samples: dict[str, list[Sample]]) -> Measured:
    """Fit the three sweeps; figures whose parameter is undetermined are left out, with a warning."""
    series = {
        name: Series(
            name=name if name == "attention" else f"{name}_layer",
            unit="FLOP",
            meaning=_MEANINGS[name],
            samples=found,
        )
        for name, found in samples.items()
    }
    llm, every = room.llm, {name: list(range(len(found))) for name, found in samples.items()}
    quota, coefficients = fit.attention(
        "attention_time",
        series["attention"],
        every["attention"],
        llm_name=llm.name,
        tensor=room.tensor,
        layers=llm.layers,
        limit_tokens=attention_time(llm, flop_per_s=1.0).limit_tokens,
    )
    most = max(sample.amount for sample in samples["attention"])
    large = [i for i in every["attention"] if samples["attention"][i].amount >= LARGE * most]
    rate = fit.typical(
        "attention_rate", series["attention"], large, parameter="attention_flop_per_s"
    )
    prefill = fit.layer(
        "prefill_layer", series["prefill"], every["prefill"], attention_at="attention_flop"
    )
    within = "attention_flop_per_s" not in prefill.undetermined
    decode = fit.roofline("decode_layer", series["decode"], every["decode"])
    figures: dict[str, Estimate] = {}
    for figure, source, parameter in (
        ("attention_flop_per_s", prefill if within else rate, "attention_flop_per_s"),
        ("prefill_flop_per_s", prefill, "flop_per_s"),
        ("prefill_layer_s", prefill, "fixed_s"),
        ("decode_flop_per_s", decode, "flop_per_s"),
        ("decode_bytes_per_s", decode, "bytes_per_s"),
        ("decode_layer_s", decode, "fixed_s"),
    ):
        _take(figures, room.warnings, figure, source, parameter)
    return Measured(
        series=list(series.values()),
        fits=[quota, rate, prefill, decode],
        figures=figures,
        attention=[coefficients],
    )


def _take(
    figures: dict[str, Estimate], warnings: list[str], figure: str, source: Fit, parameter: str
) -> None:
    if parameter in source.undetermined or parameter not in source.parameters:
        warnings.append(
            f"{figure} is left out: the samples of {source.series} do not settle {parameter}"
        )
        return
    figures[figure] = source.parameters[parameter].model_copy(update={"source": source.name})


def _notes(llm: Llm, room: _Room, stored: str, kv_dtype: KvDtype, held: int) -> list[str]:
    """Say where what was measured is not what was asked for."""
    notes = []
    if kv_dtype is not KvDtype.BF16 or stored != "bfloat16":
        notes.append(
            f"KV was asked for as {kv_dtype}, but measured as {stored}; bytes are as stored"
        )
    if llm.compute_dtype != "bf16" or stored != "bfloat16":
        notes.append(f"{llm.name} computes in {llm.compute_dtype}, but layers ran in {stored}")
    ffn = room.llm.ffn
    if ffn.experts and held < ffn.experts:
        notes.append(f"{held} of {ffn.experts} experts were held, as on one of many GPUs")
    if llm.ffn.experts and llm.ffn.first_dense_layers:
        kind = "expert" if ffn.experts else "dense"
        notes.append(f"layers are of two kinds of feed-forward; the {kind} ones were measured")
    return notes
