"""Attention kernels against plain loops over queries and heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.attention.bias
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import attention_kernels as kernels
from tests.calibration.tiny_llms import CLOSE, numbers


def plainly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One query [d] of one head on the keys [t, d] that it sees."""
    return torch.softmax((k @ q) * scale, dim=0) @ v


def sizes(most_cached: int = 24, most: int = 24) -> Any:
    return st.tuples(st.integers(0, most_cached), st.integers(1, most))


@given(chunk=sizes(), groups=st.sampled_from([(4, 4), (6, 2), (3, 1)]))
@settings(max_examples=12)
def test_grouped_attention_is_that_of_a_plain_loop(
    chunk: tuple[int, int], groups: tuple[int, int]
) -> None:
    (cached, bsz), (heads, kv_heads) = chunk, groups
    q = numbers(bsz, heads, 8)
    k, v = numbers(2, kv_heads, cached + bsz, 8, seed=1)
    found = kernels.grouped_prefill(q, k, v, kernels.causal_mask(bsz, cached + bsz, q))
    for t in range(bsz):
        for head in range(heads):
            seen, kv = slice(0, cached + t + 1), head // (heads // kv_heads)
            expected = plainly(q[t, head], k[kv, seen], v[kv, seen], 8**-0.5)
            torch.testing.assert_close(found[t, head], expected, **CLOSE)


def test_torchs_own_lower_right_bias_means_the_same_as_our_mask() -> None:
    """On a GPU the mask is torch's bias; its meaning can be checked without one."""
    q, (k, v) = numbers(5, 6, 8), numbers(2, 2, 14, 8, seed=1)
    bias = torch.nn.attention.bias.causal_lower_right(5, 14)
    with torch.inference_mode():
        found = kernels.grouped_prefill(q, k, v, bias)
    expected = kernels.grouped_prefill(q, k, v, kernels.causal_mask(5, 14, q))
    torch.testing.assert_close(found, expected, **CLOSE)


@given(chunk=sizes(), window=st.sampled_from([1, 3, 8, 32]))
@settings(max_examples=12)
def test_a_window_is_that_of_a_plain_loop(chunk: tuple[int, int], window: int) -> None:
    cached, bsz = chunk
    kept = min(cached, window)
    q = numbers(bsz, 4, 8)
    k, v = numbers(2, 2, kept + bsz, 8, seed=1)
    mask = kernels.window_mask(bsz, kept, window, q)
    found = kernels.windowed_prefill(q, k, v, window, mask)
    assert found.shape == (bsz, 4, 8)
    for t in range(bsz):
        for head in range(4):
            end = kept + t + 1
            seen = slice(max(0, end - window), end)
            expected = plainly(q[t, head], k[head // 2, seen], v[head // 2, seen], 8**-0.5)
            torch.testing.assert_close(found[t, head], expected, **CLOSE)


@given(chunk=sizes())
@settings(max_examples=12)
def test_latent_attention_decompressed_and_absorbed_are_that_of_a_plain_loop(
    chunk: tuple[int, int],
) -> None:
    cached, bsz = chunk
    length = cached + bsz
    q, latent, up = numbers(bsz, 4, 12), numbers(length, 20, seed=1), numbers(4, 14, 16, seed=2)
    mask = kernels.causal_mask(bsz, length, q)
    decompressed = kernels.decompressed_prefill(q, latent, up, 6, mask)
    inside = kernels.absorbed_prefill(kernels.absorb(q, up, 6), latent, 16, 12**-0.5)
    absorbed = kernels.emerge(inside, up, 6)
    for t in range(bsz):
        for head in range(4):
            seen = latent[: cached + t + 1]
            pairs = seen[:, :16] @ up[head].T
            k = torch.cat([pairs[:, :8], seen[:, 16:]], dim=1)
            expected = plainly(q[t, head], k, pairs[:, 8:], 12**-0.5)
            torch.testing.assert_close(decompressed[t, head], expected, **CLOSE)
            torch.testing.assert_close(absorbed[t, head], expected, **CLOSE)


@pytest.mark.parametrize("scratch", [1, 20_000, 2**20])
@pytest.mark.parametrize(("cached", "bsz"), [(0, 5), (0, 40), (7, 3), (20, 1), (30, 25), (200, 9)])
def test_sparse_attention_sees_the_best_of_its_scores_whatever_the_block(
    cached: int, bsz: int, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.SCRATCH_BYTES, "cpu", scratch)
    length, top_k = cached + bsz, 16
    q, latent = numbers(bsz, 3, 20), numbers(length, 20, seed=1)
    index = kernels.Index(
        numbers(bsz, 16, 8, seed=2), numbers(bsz, 16, seed=3), numbers(length, 8, seed=4), top_k
    )
    found = kernels.absorbed_prefill(q, latent, 16, 0.3, index)
    for t in range(bsz):
        seen = slice(0, cached + t + 1)
        scores = index.weights[t] @ torch.relu(index.queries[t] @ index.keys[seen].T)
        best = scores.topk(min(top_k, len(scores))).indices
        for head in range(3):
            expected = plainly(q[t, head], latent[best], latent[best, :16], 0.3)
            torch.testing.assert_close(found[t, head], expected, **CLOSE)
