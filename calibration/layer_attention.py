"""Attention of one layer, grouped or latent, with its weights: one GPU's part of a group of ``tensor``.

Merged where engines merge (q, k and v). The group splits heads; what engines repeat on each rank
(latents' and indexer's projections) is repeated here. Left out: rotary encoding and communication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from calibration import attention_kernels as kernels
from calibration.layer_weights import Draw, matrix
from dualpath_model.errors import InputError
from dualpath_model.llm import GroupedAttention, LatentAttention, Llm

if TYPE_CHECKING:
    import torch


def attention_kinds(llm: Llm) -> list[tuple[float, int]]:
    """Return (share of the layers, window in tokens; 0: none) of each kind of attention layer."""
    attention = llm.attention
    if not isinstance(attention, GroupedAttention) or not attention.sliding_layers:
        return [(1.0, 0)]
    sliding = attention.sliding_layers / llm.layers
    both = [(1.0 - sliding, 0), (sliding, attention.sliding_window_tokens)]
    return [(share, window) for share, window in both if share > 0]


class Cache(NamedTuple):
    """KV of one chunk's or one batch's tokens, the new ones last."""

    main: torch.Tensor
    """Grouped: [2, K, L, d] of a chunk, [2, B, K, C, d] in decode; latent: [L, D], [B, C, D]."""
    keys: torch.Tensor | None = None
    """Of the indexer: [L, width], [B, C, width]."""


class Queries(NamedTuple):
    """What the new tokens ask with."""

    q: torch.Tensor
    """[tokens, H, width]"""
    indexer: torch.Tensor | None = None
    """[tokens, indexer heads, width]"""
    indexer_weights: torch.Tensor | None = None
    """[tokens, indexer heads]"""


@dataclass(frozen=True)
class Chunk:
    """``tokens`` appended on ``kept`` cached ones that the layer looks at; ``window`` 0: no window."""

    kept: int
    tokens: int
    window: int = 0
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Grouped:
    """Weights of multi-head or grouped-query attention, the part of one of ``tensor`` GPUs."""

    heads: int
    kv_heads: int
    width: int
    qkv: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor

    def chunk(self, cached: int, tokens: int, window: int = 0) -> Chunk:
        """Prepare the mask of a chunk; a sliding layer keeps only its window of ``cached``."""
        if not window:
            return Chunk(cached, tokens, 0, kernels.causal_mask(tokens, cached + tokens, self.out))
        kept = min(cached, window)
        mask = kernels.window_mask(tokens, kept, window, self.out)
        return Chunk(kept, tokens, window, mask)

    def project(self, x: torch.Tensor) -> tuple[Queries, Cache]:
        """Return queries [n, H, d] and new KV [2, n, K, d] of x [n, hidden]."""
        from torch.nn import functional

        joined = functional.linear(x, self.qkv, self.bias).view(len(x), -1, self.width)
        pairs = joined[:, self.heads :].view(len(x), 2, self.kv_heads, self.width)
        return Queries(joined[:, : self.heads]), Cache(pairs.transpose(0, 1))

    def append(self, new: Cache, cache: Cache) -> None:
        """Write a chunk's new KV to the end of its cache."""
        cache.main[:, :, -new.main.shape[1] :].copy_(new.main.transpose(1, 2))

    def append_each(self, new: Cache, cache: Cache) -> None:
        """Write one new token of each request to the end of its cache."""
        cache.main[:, :, :, -1].copy_(new.main)

    def attend(self, queries: Queries, cache: Cache, chunk: Chunk) -> torch.Tensor:
        """Attention of a chunk: [b, H, d]."""
        k, v = cache.main
        if chunk.window:
            assert chunk.mask is not None
            return kernels.windowed_prefill(queries.q, k, v, chunk.window, chunk.mask)
        return kernels.grouped_prefill(queries.q, k, v, chunk.mask)

    def attend_each(self, queries: Queries, cache: Cache) -> torch.Tensor:
        """Attention of one new token of each request: [B, H, d]."""
        return kernels.grouped_decode(queries.q, cache.main[0], cache.main[1])


@dataclass(frozen=True)
class Latent:
    """Weights of multi-head latent attention, the part of one of ``tensor`` GPUs.

    Prefill is decompressed; absorbed where there is an indexer, or the LLM's ``prefill_attention_form``
    says so. Decode is absorbed.
    """

    heads: int
    shape: LatentAttention
    absorbed: bool
    down: torch.Tensor
    """To the queries' rank, or to the queries if they have none, and to the latent."""
    query_norm: torch.Tensor | None
    query_up: torch.Tensor | None
    latent_norm: torch.Tensor
    up: torch.Tensor
    """[H, nope + v, rank]"""
    out: torch.Tensor
    index_q: torch.Tensor | None = None
    index_k: torch.Tensor | None = None
    """To the indexer's key and to its heads' weights."""

    def chunk(self, cached: int, tokens: int, window: int = 0) -> Chunk:
        """Prepare the mask of a chunk; the absorbed form makes its own, block by block."""
        assert not window
        mask = None if self.absorbed else kernels.causal_mask(tokens, cached + tokens, self.out)
        return Chunk(cached, tokens, 0, mask)

    def project(self, x: torch.Tensor) -> tuple[Queries, Cache]:
        """Return queries [n, H, nope + rope] and new latents [n, D] of x [n, hidden]."""
        import torch
        from torch.nn import functional

        rank, latent_width = self.shape.kv_lora_rank, self.shape.latent_dim
        joined = functional.linear(x, self.down)
        q, latent = joined[:, :-latent_width], joined[:, -latent_width:]
        compressed = functional.rms_norm(latent[:, :rank], (rank,), self.latent_norm)
        latent = torch.cat([compressed, latent[:, rank:]], dim=-1)
        source = x
        if self.query_up is not None:
            source = functional.rms_norm(q, q.shape[-1:], self.query_norm)
            q = functional.linear(source, self.query_up)
        q = q.reshape(len(x), self.heads, -1)
        indexer = self.shape.indexer
        if indexer is None or self.index_q is None or self.index_k is None:
            return Queries(q), Cache(latent)
        index = functional.linear(source, self.index_q).view(
            len(x), indexer.heads, indexer.head_dim
        )
        keys = functional.linear(x, self.index_k)
        weights = keys[:, indexer.head_dim :]
        return Queries(q, index, weights), Cache(latent, keys[:, : indexer.head_dim])

    def append(self, new: Cache, cache: Cache) -> None:
        """Write a chunk's new latents and keys to the end of its cache."""
        cache.main[-len(new.main) :].copy_(new.main)
        if cache.keys is not None and new.keys is not None:
            cache.keys[-len(new.keys) :].copy_(new.keys)

    def append_each(self, new: Cache, cache: Cache) -> None:
        """Write one new token of each request to the end of its cache."""
        cache.main[:, -1].copy_(new.main)
        if cache.keys is not None and new.keys is not None:
            cache.keys[:, -1].copy_(new.keys)

    def attend(self, queries: Queries, cache: Cache, chunk: Chunk) -> torch.Tensor:
        """Attention of a chunk, with decompressing its context or absorbing its queries: [b, H, v]."""
        v_width = self.shape.v_head_dim
        if not self.absorbed:
            return kernels.decompressed_prefill(queries.q, cache.main, self.up, v_width, chunk.mask)
        q = kernels.absorb(queries.q, self.up, v_width)
        rank = self.shape.kv_lora_rank
        index = self._index(queries, cache)
        out = kernels.absorbed_prefill(q, cache.main, rank, self._scale, index)
        return kernels.emerge(out, self.up, v_width)

    def attend_each(self, queries: Queries, cache: Cache) -> torch.Tensor:
        """Attention of one new token of each request, absorbed: [B, H, v]."""
        v_width = self.shape.v_head_dim
        q = kernels.absorb(queries.q, self.up, v_width)
        rank = self.shape.kv_lora_rank
        index = self._index(queries, cache)
        out = kernels.latent_decode(q, cache.main, rank, self._scale, index)
        return kernels.emerge(out, self.up, v_width)

    @property
    def _scale(self) -> float:
        return float((self.shape.qk_nope_head_dim + self.shape.qk_rope_head_dim) ** -0.5)

    def _index(self, queries: Queries, cache: Cache) -> kernels.Index | None:
        if self.shape.indexer is None or cache.keys is None:
            return None
        assert queries.indexer is not None
        assert queries.indexer_weights is not None
        top_k = self.shape.indexer.top_k
        return kernels.Index(queries.indexer, queries.indexer_weights, cache.keys, top_k)


def draw_attention(llm: Llm, draw: Draw, tensor: int) -> Grouped | Latent:
    """Draw the weights of one layer's attention, the part of one of ``tensor`` GPUs.

    Raises InputError if ``tensor`` does not divide the heads.
    """
    check_tensor(llm, tensor)
    if isinstance(llm.attention, GroupedAttention):
        return _grouped(llm, llm.attention, draw, tensor)
    return _latent(llm, llm.attention, draw, tensor)


def check_tensor(llm: Llm, tensor: int) -> None:
    """Raise InputError unless ``tensor`` GPUs can split the heads evenly."""
    heads = llm.attention.heads
    kv_heads = getattr(llm.attention, "kv_heads", 1)
    if tensor < 1 or heads % tensor or (kv_heads % tensor and tensor % kv_heads):
        raise InputError(
            f"tensor {tensor} does not split the {heads} heads of {llm.name} evenly; give a divisor "
            f"such as 1"
        )


def _grouped(llm: Llm, shape: GroupedAttention, draw: Draw, tensor: int) -> Grouped:
    heads, kv_heads = shape.heads // tensor, max(1, shape.kv_heads // tensor)
    rows = (heads + 2 * kv_heads) * shape.head_dim
    return Grouped(
        heads,
        kv_heads,
        shape.head_dim,
        qkv=matrix(draw, rows, llm.hidden),
        bias=draw(rows) if shape.qkv_bias else None,
        out=matrix(draw, llm.hidden, heads * shape.head_dim),
    )


def _latent(llm: Llm, shape: LatentAttention, draw: Draw, tensor: int) -> Latent:
    heads, rank = shape.heads // tensor, shape.q_lora_rank
    width = heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim)
    up_rows = heads * (shape.qk_nope_head_dim + shape.v_head_dim)
    index_q = index_k = None
    if indexer := shape.indexer:
        index_q = matrix(draw, indexer.heads * indexer.head_dim, rank or llm.hidden)
        index_k = matrix(draw, indexer.head_dim + indexer.heads, llm.hidden)
    return Latent(
        heads,
        shape,
        absorbed=shape.indexer is not None or llm.prefill_attention_form == "absorbed",
        down=matrix(draw, (rank or width) + shape.latent_dim, llm.hidden),
        query_norm=draw(rank) if rank else None,
        query_up=matrix(draw, width, rank) if rank else None,
        latent_norm=draw(shape.kv_lora_rank),
        up=matrix(draw, up_rows, shape.kv_lora_rank).view(heads, -1, shape.kv_lora_rank),
        out=matrix(draw, llm.hidden, heads * shape.v_head_dim),
        index_q=index_q,
        index_k=index_k,
    )
