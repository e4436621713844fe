"""Sizes, bytes and FLOPs of one layer's work: what it counts as, what it costs, whether it fits."""

from __future__ import annotations

import math

from calibration.layer_attention import attention_kinds
from calibration.layer_room import Room
from dualpath_model.llm import GroupedAttention
from dualpath_model.scheduler.attention import attention_time, chunk_seconds


def cold_sets(room: Room, read_bytes: float) -> int:
    """Return how many sets of data make the last-level cache useless, at most 8."""
    return max(1, min(8, math.ceil(2 * room.cache_bytes / read_bytes)))


def kv_elements(room: Room) -> int:
    """Elements that a token has in one layer's cache on one GPU, indexer's keys included."""
    attention = room.llm.attention
    if isinstance(attention, GroupedAttention):
        return 2 * max(1, attention.kv_heads // room.tensor) * attention.head_dim
    return attention.latent_dim + (attention.indexer.head_dim if attention.indexer else 0)


def kv_read_bytes(room: Room, batch: int, context: int) -> float:
    """Bytes of KV that a decode step of an average layer has to read, as they are stored here."""
    attention = room.llm.attention
    if isinstance(attention, GroupedAttention):
        tokens = sum(s * min(context, w or context) for s, w in attention_kinds(room.llm))
        return batch * tokens * kv_elements(room) * room.element_bytes
    keys = 0
    chosen = context
    if attention.indexer:
        keys = attention.indexer.head_dim * context
        chosen = min(context, attention.indexer.top_k)
    return float(batch * (attention.latent_dim * chosen + keys) * room.element_bytes)


def chunk_fits(room: Room, cached: int, bsz: int) -> bool:
    """Tell whether cache, mask and decompressed context of a chunk fit what they may take."""
    attention, length = room.llm.attention, cached + bsz
    if length > room.llm.max_context_tokens or not room.shelf.fits(length * kv_elements(room)):
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


def decode_scratch(room: Room, batch: int, context: int) -> float:
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


def linear_flops(room: Room) -> float:
    """FLOPs of a token's matrix products in one layer on one GPU, as the models count them."""
    return float(room.llm.prefill_flops(0.0, 1.0).linear) / room.llm.layers / room.tensor


def attended_width(room: Room) -> int:
    """Elements that attention returns for a token on one GPU."""
    attention = room.llm.attention
    if isinstance(attention, GroupedAttention):
        return attention.heads // room.tensor * attention.head_dim
    return attention.heads // room.tensor * attention.v_head_dim


def attention_flops(room: Room, cached: int, bsz: int) -> float:
    """FLOPs of a chunk's attention in an average layer on one GPU, as the models count them."""
    counted = attention_time(room.llm, flop_per_s=1.0, tensor_parallel=room.tensor)
    return chunk_seconds(counted, cached, bsz) / room.llm.layers


def attention_cost(room: Room, cached: int, bsz: int) -> float:
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
