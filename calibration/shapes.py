"""The matrix products that an LLM makes of its tokens: which shapes, and how often each.

A product is [m, k] times [k, n]: ``m`` tokens, a weight of n rows and k columns. The FLOPs of all
shapes together are ``Llm.prefill_flops(...).linear`` less the norms and biases, which the models count
like matrix elements, and plus the LM head where the models leave it out (see :func:`gemm_shapes`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dualpath_model.errors import InputError
from dualpath_model.llm import GroupedAttention, LatentAttention, Llm

HEAD = "lm_head"
"""Name of the LM head's shape, which :attr:`Llm.count_lm_head` decides about."""

LEAST_SIDE = 1024
"""A side of a product is not cut below this: less would be another product, not a part of one."""


@dataclass(frozen=True)
class GemmShape:
    """``count`` products of [m, k] by [k, n]; it is a fraction where a product was cut in parts."""

    name: str
    m: int
    n: int
    k: int
    count: float

    @property
    def flop(self) -> float:
        """FLOP of one product; a multiply-add is 2."""
        return 2.0 * self.m * self.n * self.k

    @property
    def elements(self) -> int:
        """Elements of the two factors and the result."""
        return self.m * self.k + self.n * self.k + self.m * self.n


def gemm_shapes(llm: Llm, tokens: int, tensor: int = 1) -> list[GemmShape]:
    """Return the products of all layers, on one GPU of ``tensor``, when ``tokens`` pass through.

    Engines' usual layout: q, k and v are one matrix, gate and up too, and so are all shared experts.
    Heads and dense FFN columns are split over ``tensor``, KV heads down to one a GPU; the low-rank
    inputs of MLA, router and indexer are repeated on each; whole experts are spread, and each sees
    tokens x active / experts of the tokens. The LM head is split by vocabulary and sees all tokens
    where ``llm.count_lm_head``, else one, the last of a prompt.

    Raises InputError where tokens or tensor is below 1, or heads do not split.
    """
    if tokens < 1:
        raise InputError(f"tokens {tokens} must be at least 1; give the tokens of a batch")
    if tensor < 1 or llm.attention.heads % tensor:
        raise InputError(
            f"tensor {tensor} does not divide the {llm.attention.heads} attention heads of "
            f"{llm.name}; use a number that does"
        )
    if isinstance(llm.attention, GroupedAttention):
        matrices = _grouped(llm, llm.attention, tensor)
    else:
        matrices = _latent(llm, llm.attention, tensor)
    found = [GemmShape(name, tokens, n, k, llm.layers) for name, n, k in matrices]
    found += _feed_forward(llm, tokens, tensor)
    head_tokens = tokens if llm.count_lm_head else 1
    return [*found, GemmShape(HEAD, head_tokens, _split(llm.vocab, tensor), llm.hidden, 1)]


def counted(shapes: list[GemmShape], llm: Llm) -> list[GemmShape]:
    """Return the shapes that the models count as prefill: without the LM head unless it is counted."""
    return [shape for shape in shapes if shape.name != HEAD or llm.count_lm_head]


def cut(shape: GemmShape, rows: int, elements: int) -> GemmShape:
    """Return a part of the product, with at most ``rows`` tokens and ``elements`` in its matrices.

    The FLOPs of all parts together stay the same: ``count`` grows as the part shrinks. Sides are
    halved, but not below :data:`LEAST_SIDE`, so that ``elements`` can be missed by tiny limits.
    """
    m, n, k = min(shape.m, rows), shape.n, shape.k
    while m * k + n * k + m * n > elements and max(m, n, k) > LEAST_SIDE:
        side = max(m, n, k)
        if n == side:
            n = max(LEAST_SIDE, n // 2)
        elif k == side:
            k = max(LEAST_SIDE, k // 2)
        else:
            m = max(LEAST_SIDE, m // 2)
    part = replace(shape, m=m, n=n, k=k)
    return replace(part, count=shape.count * (shape.flop / part.flop))


def _split(size: int, tensor: int) -> int:
    return -(-size // tensor)


def _grouped(llm: Llm, attention: GroupedAttention, tensor: int) -> list[tuple[str, int, int]]:
    """Name, n and k of a layer's attention matrices."""
    heads, kv_heads = attention.heads // tensor, max(1, _split(attention.kv_heads, tensor))
    width = heads * attention.head_dim
    return [
        ("qkv", width + 2 * kv_heads * attention.head_dim, llm.hidden),
        ("o", llm.hidden, width),
    ]


def _latent(llm: Llm, attention: LatentAttention, tensor: int) -> list[tuple[str, int, int]]:
    """Name, n and k of a layer's attention matrices, the indexer's included."""
    heads, rank = attention.heads // tensor, attention.q_lora_rank
    query = heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    found = [("q_a", rank, llm.hidden), ("q_b", query, rank)] if rank else []
    found = found or [("q", query, llm.hidden)]
    decompressed = heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    found += [
        ("kv_a", attention.latent_dim, llm.hidden),
        ("kv_b", decompressed, attention.kv_lora_rank),
        ("o", llm.hidden, heads * attention.v_head_dim),
    ]
    indexer = attention.indexer
    if indexer:
        found += [
            ("indexer_q", indexer.heads * indexer.head_dim, rank or llm.hidden),
            ("indexer_k", indexer.head_dim + indexer.heads, llm.hidden),
        ]
    return found


def _feed_forward(llm: Llm, tokens: int, tensor: int) -> list[GemmShape]:
    ffn = llm.ffn
    moe_layers = llm.layers - ffn.first_dense_layers if ffn.experts else 0
    found: list[GemmShape] = []

    def gated(name: str, m: int, intermediate: int, count: float) -> None:
        if intermediate and count:
            found.append(GemmShape(f"{name}_gate_up", m, 2 * intermediate, llm.hidden, count))
            found.append(GemmShape(f"{name}_down", m, llm.hidden, intermediate, count))

    gated("mlp", tokens, _split(ffn.dense_intermediate, tensor), llm.layers - moe_layers)
    if moe_layers:
        found.append(GemmShape("router", tokens, ffn.experts, llm.hidden, moe_layers))
        shared = _split(ffn.shared_experts * ffn.expert_intermediate, tensor)
        gated("shared", tokens, shared, moe_layers)
        # Rows of one expert, rounded to a whole number; the count keeps the FLOPs exact.
        seen = tokens * ffn.active_experts
        rows = max(1, round(seen / ffn.experts))
        gated("expert", rows, ffn.expert_intermediate, moe_layers * seen / rows / tensor)
    return found
