"""One layer of an LLM as torch operations: what a single GPU of a balanced group runs for it.

A layer is: norm, projections, attention over cached and new tokens, output projection, norm, gated
feed-forward or experts. Merged where engines merge (q, k and v; gate and up). A group of ``tensor``
GPUs splits heads, dense and shared feed-forward; what engines repeat on each rank (latents' and
indexer's projections, router) is repeated here. Left out: rotary encoding and communication.

Experts: the GPU holds ``held`` of them and gives them together tokens * active_experts / tensor rows,
as evenly as whole rows go. That is what one GPU of a balanced expert-parallel group computes: the
tokens that its neighbours send are as many as those that it sends away. Router, shared experts, the
copy of rows to the experts and their weighted sum are done as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from calibration import attention_kernels as kernels
from dualpath_model.errors import InputError
from dualpath_model.llm import FeedForward, GroupedAttention, LatentAttention, Llm

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
        flat = torch.empty(math.prod(shape), device=device, dtype=dtype)
        for part in flat.split(_PERIOD):
            torch.mul(pool[: len(part)], scale, out=part)
        return flat.view(shape)

    return draw


def common_kind(llm: Llm) -> Llm:
    """Return the LLM with all feed-forward layers of its most common kind, and no LM head counted.

    Its FLOPs over ``layers`` are those of one measured layer. Sliding layers stay as they are: both
    kinds of attention are measured and averaged.
    """
    ffn = llm.ffn
    sparse = bool(ffn.experts) and 2 * ffn.first_dense_layers < llm.layers
    if sparse:
        ffn = replace(ffn, first_dense_layers=0)
    else:
        ffn = FeedForward(dense_intermediate=ffn.dense_intermediate)
    return replace(llm, ffn=ffn, count_lm_head=False)


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


@dataclass(frozen=True)
class Dense:
    """A gated feed-forward block: ``gate_up`` [2 intermediate, hidden], ``down`` [hidden, ...]."""

    gate_up: torch.Tensor
    down: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [n, hidden] of x [n, hidden]."""
        from torch.nn import functional

        gate, up = functional.linear(x, self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down)

    def touched_bytes(self, tokens: int) -> float:
        """Weight bytes that a pass of ``tokens`` reads: all."""
        return float(self.gate_up.nbytes + self.down.nbytes)


@dataclass(frozen=True)
class Experts:
    """Routed experts that one GPU holds, and the shared one that all tokens go through."""

    router: torch.Tensor
    gate_up: torch.Tensor
    """[held, 2 intermediate, hidden]"""
    down: torch.Tensor
    """[held, hidden, intermediate]"""
    active: int
    tensor: int
    shared: Dense | None

    @property
    def held(self) -> int:
        """Number of experts on this GPU."""
        return len(self.gate_up)

    def rows(self, tokens: int) -> int:
        """Rows that this GPU's experts get together from ``tokens`` on each GPU of the group."""
        return max(1, round(tokens * self.active / self.tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [n, hidden] of x [n, hidden]."""
        import torch
        from torch.nn import functional

        tokens, hidden = x.shape
        shares = functional.linear(x, self.router).topk(self.active, dim=-1).values.softmax(-1)
        count = self.rows(tokens)
        turns = math.ceil(count / tokens)
        sent = x.repeat(turns, 1)
        done = torch.zeros_like(sent) if turns * tokens > count else torch.empty_like(sent)
        row = 0
        for first, last, each in evenly(count, self.held):
            end = row + (last - first) * each
            part = sent[row:end].view(last - first, each, hidden)
            gate, up = torch.bmm(part, self.gate_up[first:last].transpose(1, 2)).chunk(2, dim=-1)
            result = torch.bmm(functional.silu(gate) * up, self.down[first:last].transpose(1, 2))
            done[row:end].copy_(result.view(-1, hidden))
            row = end
        joined = (done.view(turns, tokens, hidden) * shares.T[:turns, :, None]).sum(0)
        return joined if self.shared is None else joined + self.shared.forward(x)

    def touched_bytes(self, tokens: int) -> float:
        """Weight bytes that a pass of ``tokens`` reads: of the experts those that get a row."""
        one = (self.gate_up.nbytes + self.down.nbytes) / self.held
        shared = self.shared.touched_bytes(tokens) if self.shared else 0.0
        return float(self.router.nbytes + shared + one * min(self.held, self.rows(tokens)))


def evenly(rows: int, held: int) -> list[tuple[int, int, int]]:
    """Split ``rows`` over ``held`` experts: (first, last, rows of each), at most one row apart."""
    each, more = divmod(rows, held)
    parts = [(0, more, each + 1), (more, held, each)]
    return [part for part in parts if part[1] > part[0] and part[2] > 0]


@dataclass(frozen=True)
class Layer:
    """A whole layer; x [n, hidden] in and out."""

    norms: tuple[torch.Tensor, torch.Tensor]
    attention: Grouped | Latent
    ffn: Dense | Experts

    def prefill(self, x: torch.Tensor, cache: Cache, chunk: Chunk) -> torch.Tensor:
        """Run a chunk's tokens; their KV is written to the end of ``cache``."""
        attention = self.attention
        queries, new = attention.project(self._norm(x, 0))
        attention.append(new, cache)
        return self._finish(x, attention.attend(queries, cache, chunk))

    def decode(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Run one token of each of B requests; its KV is written to the end of their caches."""
        attention = self.attention
        queries, new = attention.project(self._norm(x, 0))
        attention.append_each(new, cache)
        return self._finish(x, attention.attend_each(queries, cache))

    def touched_bytes(self, tokens: int) -> float:
        """Weight bytes that a pass of ``tokens`` reads."""
        own = [value for value in vars(self.attention).values() if hasattr(value, "nbytes")]
        return float(sum(tensor.nbytes for tensor in own)) + self.ffn.touched_bytes(tokens)

    def _norm(self, x: torch.Tensor, which: int) -> torch.Tensor:
        from torch.nn import functional

        return functional.rms_norm(x, x.shape[-1:], self.norms[which])

    def _finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        x = x + functional.linear(attended.reshape(len(x), -1), self.attention.out)
        return x + self.ffn.forward(self._norm(x, 1))


def build(llm: Llm, draw: Draw, *, tensor: int = 1, held: int = 0) -> Layer:
    """Draw the weights of one layer of :func:`common_kind`; ``held`` experts, 0: all of them.

    Raises InputError if ``tensor`` does not divide the heads.
    """
    norms = (draw(llm.hidden), draw(llm.hidden))
    ffn = _feed_forward(common_kind(llm), draw, tensor, held)
    if isinstance(llm.attention, GroupedAttention):
        return Layer(norms, _grouped(llm, llm.attention, draw, tensor), ffn)
    return Layer(norms, _latent(llm, llm.attention, draw, tensor), ffn)


def check_tensor(llm: Llm, tensor: int) -> None:
    """Raise InputError unless ``tensor`` GPUs can split the heads evenly."""
    heads = llm.attention.heads
    kv_heads = getattr(llm.attention, "kv_heads", 1)
    if tensor < 1 or heads % tensor or (kv_heads % tensor and tensor % kv_heads):
        raise InputError(
            f"tensor {tensor} does not split the {heads} heads of {llm.name} evenly; give a divisor "
            f"such as 1"
        )


def _matrix(draw: Draw, rows: int, columns: int) -> torch.Tensor:
    return draw(rows, columns, scale=columns**-0.5)


def _grouped(llm: Llm, shape: GroupedAttention, draw: Draw, tensor: int) -> Grouped:
    check_tensor(llm, tensor)
    heads, kv_heads = shape.heads // tensor, max(1, shape.kv_heads // tensor)
    rows = (heads + 2 * kv_heads) * shape.head_dim
    return Grouped(
        heads,
        kv_heads,
        shape.head_dim,
        qkv=_matrix(draw, rows, llm.hidden),
        bias=draw(rows) if shape.qkv_bias else None,
        out=_matrix(draw, llm.hidden, heads * shape.head_dim),
    )


def _latent(llm: Llm, shape: LatentAttention, draw: Draw, tensor: int) -> Latent:
    check_tensor(llm, tensor)
    heads, rank = shape.heads // tensor, shape.q_lora_rank
    width = heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim)
    up_rows = heads * (shape.qk_nope_head_dim + shape.v_head_dim)
    index_q = index_k = None
    if indexer := shape.indexer:
        index_q = _matrix(draw, indexer.heads * indexer.head_dim, rank or llm.hidden)
        index_k = _matrix(draw, indexer.head_dim + indexer.heads, llm.hidden)
    return Latent(
        heads,
        shape,
        absorbed=shape.indexer is not None or llm.prefill_attention_form == "absorbed",
        down=_matrix(draw, (rank or width) + shape.latent_dim, llm.hidden),
        query_norm=draw(rank) if rank else None,
        query_up=_matrix(draw, width, rank) if rank else None,
        latent_norm=draw(shape.kv_lora_rank),
        up=_matrix(draw, up_rows, shape.kv_lora_rank).view(heads, -1, shape.kv_lora_rank),
        out=_matrix(draw, llm.hidden, heads * shape.v_head_dim),
        index_q=index_q,
        index_k=index_k,
    )


def _feed_forward(llm: Llm, draw: Draw, tensor: int, held: int) -> Dense | Experts:
    ffn, hidden = llm.ffn, llm.hidden

    def dense(intermediate: int) -> Dense:
        mine = math.ceil(intermediate / tensor)
        return Dense(_matrix(draw, 2 * mine, hidden), _matrix(draw, hidden, mine))

    if not ffn.experts:
        return dense(ffn.dense_intermediate)
    count, width = held or ffn.experts, ffn.expert_intermediate
    return Experts(
        router=_matrix(draw, ffn.experts, hidden),
        gate_up=draw(count, 2 * width, hidden, scale=hidden**-0.5),
        down=draw(count, hidden, width, scale=width**-0.5),
        active=ffn.active_experts,
        tensor=tensor,
        shared=dense(ffn.shared_experts * width) if ffn.shared_experts else None,
    )
