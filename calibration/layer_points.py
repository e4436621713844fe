"""The points of the three sweeps over one layer, and their work: attention, prefill, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calibration.clock import Work
from calibration.layer_attention import Cache, Queries, attention_kinds
from calibration.layer_model import Layer
from calibration.layer_room import NARROW, Room
from calibration.layer_sizes import (
    attended_width,
    attention_cost,
    attention_flops,
    chunk_fits,
    cold_sets,
    decode_scratch,
    kv_elements,
    kv_read_bytes,
    linear_flops,
)
from calibration.layer_sweep import CostedPoint, Parts
from dualpath_model.llm import GroupedAttention
from dualpath_model.profile import Setting

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
    *((0, bsz) for bsz in (16, 64, 256, 1024, 4096)),
    *((2048, bsz) for bsz in (64, 512, 4096)),
    *((16384, bsz) for bsz in (256, 2048)),
    *((65536, bsz) for bsz in (64, 1024)),
)
_WITHOUT_ATTENTION = (16, 64, 256, 1024, 4096, 8192)
_BATCH = {"cpu": (1, 4, 16, 64, 256), "cuda": (1, 4, 16, 64, 256, 512)}
_CONTEXT = (128, 1024, 8192, 65536)

_RIDGE = {"cpu": 20.0, "cuda": 200.0}
"""FLOP in the time of a byte, roughly: only to foretell what a point takes."""
_ATTENTION_COST = {"cpu": 5.0, "cuda": 2.0}
"""How many FLOPs of a plain product take as long as one of attention; likewise rough."""


def attention_points(room: Room) -> list[CostedPoint]:
    """Return a forward batch's attention alone, of one chunk or several, where it fits."""
    batches: list[tuple[tuple[int, int], ...]] = [((c, b),) for c in _CACHED for b in _BSZ]
    batches += _SEVERAL
    points = []
    for batch in batches:
        if all(chunk_fits(room, cached, bsz) for cached, bsz in batch):
            text = ",".join(f"{cached}:{bsz}" for cached, bsz in batch)
            amount = sum(attention_flops(room, cached, bsz) for cached, bsz in batch)
            cost = sum(attention_cost(room, cached, bsz) for cached, bsz in batch)
            points.append(CostedPoint({"chunks": text}, amount, cost, _attention_work(room, batch)))
    return points


def prefill_points(room: Room) -> list[CostedPoint]:
    """Return a whole layer's forward passes of one chunk, and some without attention, where they fit.

    Those without (``attention_flop`` 0) tell the rest's rate even where attention takes most time.
    """
    points = []
    for cached, bsz in _FORWARD:
        if chunk_fits(room, cached, bsz) and room.shelf.fits(bsz, room.llm.hidden):
            attention = attention_flops(room, cached, bsz)
            cost = _ATTENTION_COST[room.place] * attention_cost(room, cached, bsz)
            work = _prefill_work(room, cached, bsz)
            points.append(_prefill_point(room, cached, bsz, attention, cost, work))
    widest = max(room.llm.hidden, attended_width(room), kv_elements(room))
    points += [
        _prefill_point(room, 0, bsz, 0.0, 0.0, _rest_work(room, bsz))
        for bsz in _WITHOUT_ATTENTION
        if room.shelf.fits(bsz, widest)
    ]
    return points


def _prefill_point(
    room: Room, cached: int, bsz: int, attention: float, cost: float, work: Callable[[], Parts]
) -> CostedPoint:
    at: dict[str, Setting] = {"cached": cached, "bsz": bsz, "attention_flop": attention}
    linear = linear_flops(room) * bsz
    cost += linear + _RIDGE[room.place] * room.layers[0].touched_bytes(bsz)
    return CostedPoint(at, linear + attention, cost, work)


def decode_points(room: Room) -> list[CostedPoint]:
    """Return a whole layer's decode steps, where they fit."""
    points = []
    for batch in room.batches or _BATCH[room.place]:
        for context in _CONTEXT:
            kv = batch * context * kv_elements(room)
            if context > room.llm.max_context_tokens or not room.shelf.fits(kv):
                continue
            if decode_scratch(room, batch, context) > room.scratch_bytes:
                continue
            moved = room.layers[0].touched_bytes(batch) + kv_read_bytes(room, batch, context)
            linear = float(room.llm.decode_flops(context)) - 2.0 * room.llm.params.lm_head
            amount = batch * linear / room.llm.layers / room.tensor
            cost = amount + _RIDGE[room.place] * moved
            at: dict[str, Setting] = {"batch": batch, "context": context, "bytes": moved}
            at["feed_forward"] = f"1/{NARROW}" if room.batches else "whole"
            points.append(CostedPoint(at, amount, cost, _decode_work(room, batch, context)))
    return points


def _attention_work(room: Room, batch: Sequence[tuple[int, int]]) -> Callable[[], Parts]:
    def make() -> Parts:
        parts: Parts = []
        for share, window in attention_kinds(room.llm):
            one_read = sum(c + b for c, b in batch) * kv_elements(room) * room.element_bytes
            variants = [
                _together([_chunk_attention(room, turn, c, b, window) for c, b in batch])
                for turn in range(cold_sets(room, one_read))
            ]
            parts.append((share, variants))
        return parts

    return make


def _chunk_attention(room: Room, turn: int, cached: int, bsz: int, window: int) -> Work:
    attention = room.layers[turn % len(room.layers)].attention
    chunk = attention.chunk(cached, bsz, window)
    cache = _cache(room, chunk.kept + bsz)
    queries = _queries(room, bsz)
    return lambda: attention.attend(queries, cache, chunk)


def _prefill_work(room: Room, cached: int, bsz: int) -> Callable[[], Parts]:
    def variant(layer: Layer, window: int) -> Work:
        chunk = layer.attention.chunk(cached, bsz, window)
        cache = _cache(room, chunk.kept + bsz)
        x = room.shelf.cut(bsz, room.llm.hidden)
        return lambda: layer.prefill(x, cache, chunk)

    def make() -> Parts:
        kinds = attention_kinds(room.llm)
        return [
            (share, [variant(layer, window) for layer in room.layers]) for share, window in kinds
        ]

    return make


def _rest_work(room: Room, bsz: int) -> Callable[[], Parts]:
    def variant(layer: Layer) -> Work:
        cache = _cache(room, bsz)
        x = room.shelf.cut(bsz, room.llm.hidden)
        attended = room.shelf.cut(bsz, attended_width(room))
        return lambda: layer.prefill_rest(x, cache, attended)

    return lambda: [(1.0, [variant(layer) for layer in room.layers])]


def _decode_work(room: Room, batch: int, context: int) -> Callable[[], Parts]:
    def variant(turn: int, window: int) -> Work:
        layer = room.layers[turn % len(room.layers)]
        cache = _cache(room, min(context, window or context), batch)
        x = room.shelf.cut(batch, room.llm.hidden)
        return _as_graph(room, lambda: layer.decode(x, cache))

    def make() -> Parts:
        moved = room.layers[0].touched_bytes(batch) + kv_read_bytes(room, batch, context)
        count = max(len(room.layers), cold_sets(room, moved))
        kinds = attention_kinds(room.llm)
        return [
            (share, [variant(turn, window) for turn in range(count)]) for share, window in kinds
        ]

    return make


def _as_graph(room: Room, work: Work) -> Work:
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


def _cache(room: Room, length: int, *batch: int) -> Cache:
    """Cut the KV of one chunk, or of each request of a batch, of ``length`` tokens."""
    attention, cut = room.llm.attention, room.shelf.cut
    if isinstance(attention, GroupedAttention):
        kv_heads = max(1, attention.kv_heads // room.tensor)
        return Cache(cut(2, *batch, kv_heads, length, attention.head_dim))
    keys = cut(*batch, length, attention.indexer.head_dim) if attention.indexer else None
    return Cache(cut(*batch, length, attention.latent_dim), keys)


def _queries(room: Room, tokens: int) -> Queries:
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
