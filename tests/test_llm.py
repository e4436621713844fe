"""The LLM model: Table 1 of the paper, laws that hold for every shape, and a few known values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.errors import InputError
from dualpath_model.llm import (
    FeedForward,
    GroupedAttention,
    Indexer,
    KvDtype,
    LatentAttention,
    Llm,
    Published,
    cache_compute_bytes_per_flop,
)

NAMES = llm_names()
EXACT = 1e-12

names = st.sampled_from(NAMES)
tokens = st.integers(min_value=0, max_value=1_000_000)
appended = st.integers(min_value=1, max_value=100_000)


def tiny(**changes: object) -> Llm:
    """Two layers, four heads on two KV heads: small enough to count by hand."""
    llm = Llm(
        name="tiny",
        layers=2,
        hidden=8,
        vocab=10,
        attention=GroupedAttention(heads=4, kv_heads=2, head_dim=3),
        ffn=FeedForward(dense_intermediate=5),
    )
    return replace(llm, **changes)  # type: ignore[arg-type]


# ---- the paper's Table 1: GB to load for each PFLOP, append 429, contexts 16K and 64K ----------


@pytest.mark.parametrize(
    ("name", "low", "high", "tolerance"),
    [
        ("qwen2.5-32b", 117, 267, 0.03),
        ("qwen3-235b-a22b", 39, 60, 0.03),
        ("gpt-oss-120b", 47, 95, 0.03),
        ("deepseek-v3.2", 13, 36, 0.03),
        ("deepseek-v3", 4.8, 5.8, 0.12),  # no public convention reproduces this row
    ],
)
def test_table_1(name: str, low: float, high: float, tolerance: float) -> None:
    llm = load_llm(name)
    context = np.array([16_000.0, 64_000.0])
    ratio = 1e6 * cache_compute_bytes_per_flop(llm, context, 429.0, llm.default_kv_dtype)
    assert ratio == pytest.approx([low, high], rel=tolerance)


def test_deepseek_v32_at_the_mean_context() -> None:
    """Section 1: about 22 GB/PFLOP at 32.7K."""
    ratio = cache_compute_bytes_per_flop(load_llm("deepseek-v3.2"), 32_700, 429, KvDtype.FP8)
    assert 1e6 * ratio == pytest.approx(22, rel=0.05)


# ---- known values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "kv_bytes"),
    [
        ("deepseek-v3.2", KvDtype.FP8, 61 * 576),  # 35,136 B, paper.md section 7
        ("deepseek-v3.2", KvDtype.FP8_DS_MLA, 61 * (656 + 132)),  # 48.1 KB, ibid.
        ("deepseek-v3", KvDtype.FP8_DS_MLA, 61 * 656),
        ("deepseek-v3", KvDtype.BF16, 61 * 576 * 2),
        ("qwen2.5-32b", KvDtype.BF16, 64 * 2 * 8 * 128 * 2),
        ("llama-3.1-70b", KvDtype.BF16, 80 * 2 * 8 * 128 * 2),
        ("gpt-oss-120b", KvDtype.FP8, 36 * 2 * 8 * 64),
    ],
)
def test_kv_bytes_of_a_token(name: str, dtype: KvDtype, kv_bytes: int) -> None:
    assert load_llm(name).kv_bytes_per_token(dtype) == kv_bytes


def test_a_sliding_layer_keeps_its_window_only() -> None:
    llm = load_llm("gpt-oss-120b")
    assert llm.kv_bytes(10_000, KvDtype.FP8) == 1024 * 18 * (10_000 + 128)
    assert llm.kv_bytes(100, KvDtype.FP8) == 1024 * 36 * 100


def test_ds_mla_layout_needs_latent_attention() -> None:
    with pytest.raises(InputError, match=r"kv_dtype 'fp8_ds_mla' .* qwen3-32b has gqa; use fp8"):
        load_llm("qwen3-32b").kv_bytes(1, KvDtype.FP8_DS_MLA)


def test_replication() -> None:
    """Four KV heads on eight ranks are held twice; the latent of MLA by every rank."""
    grouped, latent = load_llm("qwen3-235b-a22b"), load_llm("deepseek-v3.2")
    assert [grouped.replication(tp) for tp in (1, 2, 4, 8)] == [1, 1, 1, 2]
    assert [latent.replication(tp) for tp in (1, 2, 8)] == [1, 2, 8]


def test_kinds() -> None:
    assert tiny().attention.kind == "gqa"
    assert GroupedAttention(4, 4, 3).kind == "mha"
    assert GroupedAttention(4, 2, 3, 128, 1).kind == "gqa_sliding"
    assert load_llm("kimi-k2").attention.kind == "mla"
    assert load_llm("ds-27b").attention.kind == "mla_sparse"


# ---- parameters and weights, counted by hand ------------------------------------------------


def test_parameters_by_hand() -> None:
    layer = 8 * 12 * 2 + 8 * 6 * 2 + 3 * 8 * 5 + 2 * 8  # Q and O, K and V, FFN, two norms
    params = tiny().params
    assert params.total == 2 * layer + 2 * 80 + 8
    assert params.active == params.total
    assert (params.input_embedding, params.lm_head, params.experts, params.mtp) == (80, 80, 0, 0)
    biased = tiny(attention=GroupedAttention(4, 2, 3, qkv_bias=True)).params
    assert biased.total - params.total == 2 * (12 + 6 + 6)


def test_expert_parameters_by_hand() -> None:
    ffn = FeedForward(5, 7, experts=6, active_experts=2, shared_experts=1, first_dense_layers=1)
    params, dense = tiny(ffn=ffn).params, tiny().params
    expert = 3 * 8 * 7
    assert params.experts == 6 * expert
    assert params.total - dense.total == 7 * expert + 8 * 6 - 3 * 8 * 5
    assert params.total - params.active == 4 * expert


def test_latent_parameters_by_hand() -> None:
    attention = LatentAttention(2, 4, 3, 5, 6, 7, Indexer(2, 3, 8, 7.0))
    plain = LatentAttention(2, 0, 3, 5, 6, 7)
    query, kv = 8 * 4 + 4 * 2 * 11, 8 * 9 + 3 * 2 * 12
    output, indexer = 2 * 7 * 8, 4 * 2 * 3 + 8 * (3 + 2)
    dense = tiny().params.total - 2 * (8 * 12 * 2 + 8 * 6 * 2)
    assert tiny(attention=attention).params.total == dense + 2 * (query + kv + output + indexer)
    assert tiny(attention=plain).params.total == dense + 2 * (8 * 2 * 11 + kv + output)


def test_tied_table_counts_once_and_is_still_read() -> None:
    tied, untied = tiny(tied_embeddings=True), tiny()
    assert untied.params.total - tied.params.total == 80
    assert tied.params.active == untied.params.active
    total = tied.params.total
    for counts, active in (("both", total), ("head", total), ("none", total - 80)):
        published = Published(active_counts_embeddings=counts)
        assert replace(tied, published=published).params_as_published == (total, active)
    # The table is a look-up on the way in and a matrix on the way out: the same bytes are read.
    read = [float(llm.decode_weight_read_bytes(1, 1, 4)) for llm in (tied, untied)]
    assert read[0] == read[1] == 2 * (untied.params.total - 80)
    assert tied.decode_flops(7) == untied.decode_flops(7)


def test_mtp_layers_are_counted_beside_the_total() -> None:
    ffn = FeedForward(0, 7, experts=6, active_experts=2, shared_experts=1)
    with_mtp, without = tiny(ffn=ffn, mtp_layers=1).params, tiny(ffn=ffn).params
    assert with_mtp._replace(mtp=0, mtp_active=0) == without
    assert with_mtp.mtp - with_mtp.mtp_active == 4 * 3 * 8 * 7
    dense = tiny(mtp_layers=2).params
    one_layer = 8 * 12 * 2 + 8 * 6 * 2 + 2 * 8 + 2 * 8 * 8 + 3 * 8 * 5
    assert dense.mtp == dense.mtp_active == 2 * one_layer


@pytest.mark.parametrize("name", NAMES)
def test_weights_spread_over_gpus(name: str) -> None:
    llm = load_llm(name)
    assert llm.resident_weight_bytes(1, 1) == pytest.approx(llm.weight_bytes, rel=EXACT)
    assert llm.resident_weight_bytes(8, 8) == pytest.approx(llm.weight_bytes / 8, rel=EXACT)
    read = llm.decode_weight_read_bytes(1, 8, np.array([0.0, 1.0, 64.0, 1e6]))
    assert np.all(np.diff(np.broadcast_to(read, 4)) >= 0)
    everything = llm.resident_weight_bytes(1, 8)
    look_up = llm.params.input_embedding * llm.weight_bytes_per_param
    if llm.tied_embeddings:  # the one table is read as the LM head
        look_up = 0.0
    assert np.max(read) == pytest.approx(everything - look_up, rel=1e-9)


def test_one_token_reads_its_active_experts() -> None:
    llm = load_llm("qwen3-235b-a22b")
    experts = 94 * 8 * 3 * 4096 * 1536 * 2.0
    read = llm.decode_weight_read_bytes(1, 1, 1) - llm.decode_weight_read_bytes(1, 1, 0)
    assert read == pytest.approx(experts, rel=1e-9)


# ---- laws ---------------------------------------------------------------------------------------


@given(names, tokens, tokens)
def test_kv_bytes_grow_and_add(name: str, one: int, other: int) -> None:
    llm = load_llm(name)
    dtype = llm.default_kv_dtype
    both = llm.kv_bytes(one + other, dtype)
    assert both >= llm.kv_bytes(one, dtype)
    if getattr(llm.attention, "sliding_layers", 0):
        assert both <= llm.kv_bytes(one, dtype) + llm.kv_bytes(other, dtype)
    else:
        assert both == llm.kv_bytes(one, dtype) + llm.kv_bytes(other, dtype)
    assert both <= llm.kv_bytes_per_token(dtype) * (one + other)


@given(names, tokens, appended, appended)
def test_prefill_in_two_chunks_costs_the_same(name: str, cached: int, one: int, other: int) -> None:
    llm = load_llm(name)
    at_once = llm.prefill_flops(cached, one + other)
    first, second = llm.prefill_flops(cached, one), llm.prefill_flops(cached + one, other)
    assert at_once.linear == pytest.approx(first.linear + second.linear, rel=EXACT)
    assert at_once.attention == pytest.approx(first.attention + second.attention, rel=EXACT)
    assert at_once.total == at_once.linear + at_once.attention


@given(names, st.lists(st.tuples(tokens, appended), min_size=1, max_size=5))
def test_an_array_is_its_scalars(name: str, pairs: list[tuple[int, int]]) -> None:
    llm = load_llm(name)
    dtype = llm.default_kv_dtype
    cached, append = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))

    def all_of(c: float | np.ndarray, a: float | np.ndarray) -> list[object]:
        return [
            llm.kv_bytes(c, dtype),
            *llm.prefill_flops(c, a),
            llm.decode_flops(c),
            llm.decode_read_bytes(c, dtype),
            cache_compute_bytes_per_flop(llm, c, a, dtype),
        ]

    together = [
        np.broadcast_to(np.asarray(x, dtype=float), cached.shape) for x in all_of(cached, append)
    ]
    for index, (c, a) in enumerate(pairs):
        one_by_one = [float(x) for x in all_of(float(c), float(a))]  # type: ignore[arg-type]
        assert one_by_one == pytest.approx([float(x[index]) for x in together], rel=EXACT)


@given(
    st.integers(min_value=0, max_value=600),
    st.integers(min_value=1, max_value=300),
    st.integers(min_value=1, max_value=500),
)
def test_attention_against_a_sum_over_tokens(cached: int, append: int, most: int) -> None:
    """Midpoint sum over the tokens; exact but for the one token in which the limit is reached."""
    llm = tiny(attention=GroupedAttention(4, 2, 3, most, 1))
    seen = cached + np.arange(append) + 0.5
    pairs = float(np.sum(seen) + np.sum(np.minimum(seen, most)))  # one full, one sliding layer
    pair_flops = 4 * 4 * 3
    assert llm.prefill_flops(cached, append).attention == pytest.approx(
        pair_flops * pairs, abs=pair_flops * 0.5
    )


def test_nothing_appended_costs_nothing() -> None:
    for name in NAMES:
        assert load_llm(name).prefill_flops(1000, 0).total == 0


@given(names, tokens)
def test_decoding_costs_grow_with_the_context(name: str, context: int) -> None:
    llm = load_llm(name)
    dtype = llm.default_kv_dtype
    assert llm.decode_flops(context + 1) >= llm.decode_flops(context)
    assert llm.decode_flops(0) == 2 * (llm.params.active - llm.params.input_embedding)
    assert llm.decode_read_bytes(context + 1, dtype) >= llm.decode_read_bytes(context, dtype)


def test_decode_is_prefill_of_one_token_where_attention_has_one_form() -> None:
    """Up to the half token of the integral and the LM head, which prefill leaves out."""
    llm = load_llm("qwen3-32b")
    prefill = llm.prefill_flops(999.5, 1).total + 2 * llm.params.lm_head
    assert llm.decode_flops(1000) == pytest.approx(prefill, rel=EXACT)


def test_sparse_attention_reads_the_best_and_all_keys() -> None:
    llm = load_llm("deepseek-v3.2")
    assert llm.decode_read_bytes(100_000, KvDtype.FP8) == 61 * (576 * 2048 + 132 * 100_000)
    assert llm.decode_read_bytes(100_000, KvDtype.FP8_DS_MLA) == 61 * (656 * 2048 + 132 * 100_000)
    assert llm.decode_read_bytes(1000, KvDtype.FP8_DS_MLA) == llm.kv_bytes(1000, KvDtype.FP8_DS_MLA)
