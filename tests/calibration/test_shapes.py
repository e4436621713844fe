"""The products of an LLM against the FLOPs that the models count."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.shapes import HEAD, LEAST_SIDE, GemmShape, counted, cut, gemm_shapes
from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.errors import InputError
from dualpath_model.llm import FeedForward, GroupedAttention, Indexer, LatentAttention, Llm

NAMES = llm_names()
MOE = FeedForward(512, 96, 16, 3, 2, 1)
SIZES = st.integers(1, 4096)


def norms_and_biases(llm: Llm) -> float:
    """Parameters that are no matrix's, and which the models count as if they were."""
    biases = 0
    attention = llm.attention
    if isinstance(attention, GroupedAttention) and attention.qkv_bias:
        biases = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    return llm.layers * (2.0 * llm.hidden + biases) + llm.hidden


def all_flop(llm: Llm, tokens: int, tensor: int = 1) -> float:
    return sum(s.flop * s.count for s in counted(gemm_shapes(llm, tokens, tensor), llm))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tokens", [1, 7, 8192])
def test_the_shapes_of_a_catalog_llm_have_its_prefill_flops(name: str, tokens: int) -> None:
    llm = load_llm(name)
    linear = float(llm.prefill_flops(1000.0, float(tokens)).linear)
    elsewhere = 2.0 * tokens * norms_and_biases(llm)
    assert all_flop(llm, tokens) + elsewhere == pytest.approx(linear, rel=1e-9)
    assert elsewhere < 1e-3 * linear


@st.composite
def llms(draw: st.DrawFn) -> Llm:
    heads = draw(st.sampled_from([1, 2, 4, 8]))
    grouped = GroupedAttention(heads, 1, draw(st.integers(1, 128)), qkv_bias=draw(st.booleans()))
    indexer = draw(st.sampled_from([None, Indexer(4, 32, 64, 36)]))
    latent = LatentAttention(heads, draw(st.sampled_from([0, 96])), 64, 32, 16, 32, indexer)
    experts = draw(st.integers(1, 300))
    moe = FeedForward(512, 64, experts, draw(st.integers(1, experts)), draw(st.integers(0, 2)), 1)
    return Llm(
        name="drawn",
        layers=draw(st.integers(1, 8)),
        hidden=draw(SIZES),
        vocab=draw(SIZES),
        attention=draw(st.sampled_from([grouped, latent])),
        ffn=draw(st.sampled_from([moe, FeedForward(640)])),
        tied_embeddings=draw(st.booleans()),
        count_lm_head=draw(st.booleans()),
    )


@given(llms(), st.integers(1, 20_000))
def test_the_shapes_of_any_llm_have_its_prefill_flops(llm: Llm, tokens: int) -> None:
    linear = float(llm.prefill_flops(0.0, float(tokens)).linear)
    found = all_flop(llm, tokens) + 2.0 * tokens * norms_and_biases(llm)
    assert found == pytest.approx(linear, rel=1e-9)


@given(st.tuples(*[st.integers(1, 100_000)] * 3), st.integers(1, 10_000), st.integers(2**20, 2**30))
def test_cutting_keeps_the_flops_and_the_limits(
    sides: tuple[int, int, int], rows: int, elements: int
) -> None:
    whole = GemmShape("any", *sides, count=3.0)
    part = cut(whole, rows, elements)
    assert part.flop * part.count == pytest.approx(whole.flop * whole.count)
    assert part.m <= rows
    assert part.elements <= max(elements, 3 * LEAST_SIDE**2)
    for before, after in ((whole.m, part.m), (whole.n, part.n), (whole.k, part.k)):
        assert min(before, rows, LEAST_SIDE) <= after <= before


def test_what_fits_is_not_cut() -> None:
    shape = GemmShape("qkv", 512, 4096, 1024, 61)
    assert cut(shape, 512, shape.elements) == shape


@pytest.mark.parametrize("name", ["qwen3-32b", "deepseek-v3.2", "qwen3-235b-a22b"])
def test_a_group_of_gpus_shares_the_products(name: str) -> None:
    llm = load_llm(name)
    alone = {shape.name: shape for shape in gemm_shapes(llm, 4096)}
    for shape in gemm_shapes(llm, 4096, 4):
        part = shape.flop * shape.count / (alone[shape.name].flop * alone[shape.name].count)
        whole = {"q_a", "kv_a", "indexer_q", "indexer_k", "router"}
        assert part == pytest.approx(1.0 if shape.name in whole else 0.25), shape.name


def test_a_kv_head_is_repeated_where_there_are_more_gpus_than_heads() -> None:
    llm = Llm("few", 2, 256, 1000, GroupedAttention(8, 2, 32), FeedForward(512))
    qkv = {s.name: s for s in gemm_shapes(llm, 16, 8)}["qkv"]
    assert qkv.n == 32 + 2 * 32


def test_an_expert_sees_its_share_of_the_tokens() -> None:
    llm = load_llm("deepseek-v3")
    shapes = {shape.name: shape for shape in gemm_shapes(llm, 8192)}
    assert shapes["expert_gate_up"].m == 8192 * 8 // 256
    assert shapes["expert_gate_up"].count == 58 * 256
    assert shapes["mlp_gate_up"].count == 3


def test_the_head_sees_one_token_unless_it_is_counted() -> None:
    llm = Llm("small", 2, 256, 1000, GroupedAttention(8, 2, 32), MOE)
    assert gemm_shapes(llm, 16)[-1] == GemmShape(HEAD, 1, 1000, 256, 1)
    assert HEAD not in {shape.name for shape in counted(gemm_shapes(llm, 16), llm)}
    counting = replace(llm, count_lm_head=True)
    assert counted(gemm_shapes(counting, 16), counting)[-1].m == 16


@pytest.mark.parametrize(
    ("tokens", "tensor", "named"), [(0, 1, "tokens 0"), (1, 3, "tensor 3"), (1, 0, "tensor 0")]
)
def test_sizes_that_make_no_sense_are_one_sentence(tokens: int, tensor: int, named: str) -> None:
    llm = Llm("small", 2, 256, 1000, GroupedAttention(8, 2, 32), FeedForward(512))
    with pytest.raises(InputError, match=named):
        gemm_shapes(llm, tokens, tensor)
