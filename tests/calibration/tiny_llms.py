"""Tiny LLMs of every kind of attention and feed-forward, and numbers to run them on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dualpath_model.llm import FeedForward, GroupedAttention, Indexer, LatentAttention, Llm

CPU = torch.device("cpu")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}  # fp32 sums of some hundred terms
MLA = LatentAttention(4, 24, 16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6)
GQA = GroupedAttention(heads=6, kv_heads=2, head_dim=8, qkv_bias=True)

LLMS = {
    "gqa": Llm(
        "gqa", 4, 64, 100, GQA, FeedForward(dense_intermediate=96), weight_bytes_per_param=2
    ),
    "gqa_sliding": Llm(
        "sliding",
        4,
        64,
        100,
        GroupedAttention(8, 4, 8, sliding_window_tokens=16, sliding_layers=3),
        FeedForward(expert_intermediate=32, experts=8, active_experts=2),
    ),
    "mla": Llm("mla", 4, 64, 100, MLA, FeedForward(dense_intermediate=96)),
    "mla_sparse": Llm(
        "sparse",
        4,
        64,
        100,
        replace(MLA, indexer=Indexer(16, 8, top_k=16, key_bytes_per_token_layer=8)),
        FeedForward(96, 32, 8, 2, shared_experts=1, first_dense_layers=1),
        compute_dtype="fp8",
    ),
}
KINDS = sorted(LLMS)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
