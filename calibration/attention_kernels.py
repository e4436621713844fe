"""Attention of one layer as torch operations: chunks of prefill and steps of decode, every kind.

Shapes: b appended tokens on a cache, keys and values of L = cached + b tokens; B requests with C tokens
each in decode; H query heads on K key-value heads; D = rank + rope, a cached latent. The caches hold
the new tokens already. Each kernel is checked against a plain fp32 loop in the tests.

They are what torch does out of the box, not the best that a GPU can: causal chunks go through
``scaled_dot_product_attention``; windows in blocks, so up to twice the counted work; latents absorbed
or chosen by an indexer through matrix products and a softmax, whose scores pass through memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

SCRATCH_BYTES = {"cuda": 512 * 2**20, "cpu": 32 * 2**20}
"""What the scores of one block of queries may take; a convention, small against the memory."""


class Index(NamedTuple):
    """What a sparse layer chooses tokens by: scores = sum over h of weights * relu(queries . keys)."""

    queries: torch.Tensor
    """[tokens, indexer heads, width]"""
    weights: torch.Tensor
    """[tokens, indexer heads]"""
    keys: torch.Tensor
    """[L, width] of a chunk, [B, C, width] in decode"""
    top_k: int


def causal_mask(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor | None:
    """Return what lets the last ``queries`` of ``keys`` tokens see only what is before them.

    None where the plain causal mask does, without cached tokens. On a GPU torch's own lower-right
    bias, which keeps the fused kernel; else [queries, keys] to add, 0 or minus infinity.
    """
    import torch
    from torch.nn.attention.bias import causal_lower_right

    if queries == keys:
        return None
    if like.device.type == "cuda":
        return causal_lower_right(queries, keys)
    seen = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)
    return _additive(seen, like)


def grouped_prefill(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attend causally: q [b, H, d], k and v [K, L, d], ``mask`` of :func:`causal_mask`: [b, H, d]."""
    from torch.nn import functional

    out = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k[None],
        v[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=k.shape[0] != q.shape[1],
    )
    return out[0].transpose(0, 1)


def window_mask(queries: int, kept: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """Return [blocks, 1, S, window + S] to add: each query sees ``window`` tokens, itself the last.

    ``kept`` <= window are the cached tokens that a sliding layer still holds; S = min(window, queries).
    """
    import torch

    size = min(window, queries)
    blocks = math.ceil(queries / size)
    row = torch.arange(size, device=like.device)[:, None]
    column = torch.arange(window + size, device=like.device)[None, :]
    band = (column > row) & (column <= row + window)
    start = torch.arange(blocks, device=like.device)[:, None, None] * size
    there = start + column[None] >= window - kept
    return _additive((band[None] & there)[:, None], like)


def windowed_prefill(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, mask: torch.Tensor
) -> torch.Tensor:
    """Attend within a window: q [b, H, d], k and v [K, kept + b, d], ``mask`` of :func:`window_mask`.

    Blocks of S queries look at the window + S tokens around them, one batch entry each: [b, H, d].
    """
    from torch.nn import functional

    queries, heads, width = q.shape
    blocks, _, size, around = mask.shape
    short = blocks * size - queries
    before = window - (k.shape[1] - queries)
    rows = (
        functional.pad(q, (0, 0, 0, 0, 0, short)).view(blocks, size, heads, width).transpose(1, 2)
    )
    keys, values = (
        functional.pad(x, (0, 0, before, short)).unfold(1, around, size).permute(1, 0, 3, 2)
        for x in (k, v)
    )
    grouped = k.shape[0] != heads
    if grouped and q.device.type == "cuda":  # no fused kernel there takes both a mask and groups
        keys, values = (x.repeat_interleave(heads // k.shape[0], dim=1) for x in (keys, values))
        grouped = False
    out = functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=mask, enable_gqa=grouped
    )
    return out.transpose(1, 2).reshape(blocks * size, heads, width)[:queries]


def decompressed_prefill(
    q: torch.Tensor,
    latent: torch.Tensor,
    up: torch.Tensor,
    v_width: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attend to keys and values decompressed from all ``latent`` [L, D]: [b, H, v].

    q [b, H, nope + rope]; ``up`` [H, nope + v, rank]. Values are padded to the keys' width, because
    fused kernels want one width (vLLM does so too); the padding is work that is not counted.
    """
    import torch
    from torch.nn import functional

    heads, both, rank = up.shape
    nope = both - v_width
    pairs = functional.linear(latent[:, :rank], up.view(heads * both, rank)).view(-1, heads, both)
    rope = latent[:, None, rank:].expand(-1, heads, -1)
    k = torch.cat([pairs[..., :nope], rope], dim=-1)
    v = functional.pad(pairs[..., nope:], (0, k.shape[-1] - v_width))
    return grouped_prefill(q, k.transpose(0, 1), v.transpose(0, 1), mask)[..., :v_width]


def absorb(q: torch.Tensor, up: torch.Tensor, v_width: int) -> torch.Tensor:
    """Bring queries [n, H, nope + rope] into the latent space: [n, H, D]; ``up`` [H, nope + v, rank]."""
    import torch

    nope = up.shape[1] - v_width
    inside = torch.bmm(q[..., :nope].transpose(0, 1), up[:, :nope]).transpose(0, 1)
    return torch.cat([inside, q[..., nope:]], dim=-1)


def emerge(out: torch.Tensor, up: torch.Tensor, v_width: int) -> torch.Tensor:
    """Bring [n, H, rank] back from the latent space: values [n, H, v]; ``up`` [H, nope + v, rank]."""
    import torch

    values = up[:, up.shape[1] - v_width :]
    return torch.bmm(out.transpose(0, 1), values.transpose(1, 2)).transpose(0, 1)


def absorbed_prefill(
    q: torch.Tensor, latent: torch.Tensor, rank: int, scale: float, index: Index | None = None
) -> torch.Tensor:
    """Attend causally in the latent space: q [b, H, D], ``latent`` [L, D]: [b, H, rank].

    With an ``index``, scores of all earlier tokens, then attention to the best ``top_k`` of them,
    gathered for each query by itself; where there are no more than ``top_k``, to all, not gathered.
    Queries go in blocks that look no further than their last token and keep the scores small.
    """
    import torch

    tokens, heads, width = q.shape
    cached = latent.shape[0] - tokens
    kept = min(index.top_k if index else latent.shape[0], latent.shape[0])
    each = max(heads * kept + (width * kept if index else 0), _scores(index) * latent.shape[0])
    rows = max(1, SCRATCH_BYTES[_place(q)] // (each * q.element_size()))
    out = []
    for first in range(0, tokens, rows):
        last = min(first + rows, tokens)
        end = cached + last
        position = torch.arange(cached + first, end, device=q.device)[:, None]
        future = torch.arange(end, device=q.device)[None, :] > position
        seen = latent[:end]
        if index is not None:
            part = Index(
                index.queries[first:last], index.weights[first:last], index.keys[:end], index.top_k
            )
            scores = _index_scores(part).masked_fill(future, -math.inf)
            if end > index.top_k:
                scores, chosen = scores.topk(index.top_k, dim=-1)
                future, seen = scores.isinf(), latent[chosen]
        out.append(_softly(q[first:last], seen, rank, scale, future[:, None]))
    return torch.cat(out)


def grouped_decode(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend to whole caches: q [B, H, d], k and v [B, K, C, d]: [B, H, d].

    The heads of a group become the rows of one product. On a GPU the fused kernel; on a CPU plain
    products, which read the cache up to twice as fast there.
    """
    import torch
    from torch.nn import functional

    batch, heads, width = q.shape
    rows = q.view(batch, k.shape[1], -1, width)
    if q.device.type == "cuda":
        out = functional.scaled_dot_product_attention(rows, k, v)
    else:
        shares = torch.matmul(rows * width**-0.5, k.transpose(-1, -2)).softmax(-1)
        out = torch.matmul(shares, v)
    return out.reshape(batch, heads, width)


def latent_decode(
    q: torch.Tensor, latent: torch.Tensor, rank: int, scale: float, index: Index | None = None
) -> torch.Tensor:
    """Attend in the latent space: q [B, H, D], ``latent`` [B, C, D]: [B, H, rank].

    With an ``index``, to the best ``top_k`` tokens of each request, gathered.
    """
    import torch

    if index is not None:
        scores = _index_scores(index)
        if latent.shape[1] > index.top_k:
            chosen = scores.topk(index.top_k, dim=-1).indices
            request = torch.arange(latent.shape[0], device=q.device)[:, None]
            latent = latent[request, chosen]
    return _softly(q, latent, rank, scale)


def _softly(
    q: torch.Tensor,
    latent: torch.Tensor,
    rank: int,
    scale: float,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """q [n, H, D] on ``latent`` [n, t, D] or, shared, [t, D]; ``hidden`` [n, 1, t]: [n, H, rank]."""
    import torch

    q = q * scale
    scores = torch.matmul(q, latent.transpose(-1, -2))
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -math.inf)
    return torch.matmul(scores.softmax(-1), latent[..., :rank])


def _index_scores(index: Index) -> torch.Tensor:
    """Score the keys for each token: [tokens, keys]."""
    import torch

    products = torch.matmul(index.queries, index.keys.transpose(-1, -2)).relu_()
    return torch.matmul(index.weights[:, None], products)[:, 0]


def _scores(index: Index | None) -> int:
    return index.queries.shape[1] if index else 0


def _place(like: torch.Tensor) -> str:
    return "cuda" if like.device.type == "cuda" else "cpu"


def _additive(seen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    import torch

    zeros = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill_(~seen, -math.inf)
