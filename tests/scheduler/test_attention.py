"""The attention-time model: the FLOPs of the LLM, laws of any coefficients, and fits of known ones."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.compilation import bound
from dualpath_model.errors import InputError
from dualpath_model.llm import GroupedAttention, KvDtype
from dualpath_model.scheduler.attention import (
    AttentionTime,
    Sample,
    attention_time,
    batch_seconds,
    chunk_seconds,
    fit,
)
from tests.strategies import SMALL_LLM

NAMES = llm_names()
EXACT = 1e-12
RATE = 400e12

tokens = st.integers(min_value=0, max_value=1_000_000)
appended = st.integers(min_value=1, max_value=100_000)
coefficient = st.just(0.0) | st.floats(1e-12, 1e-2)
limits = st.just(0.0) | st.integers(1, 5000).map(float)
models = st.builds(AttentionTime, *[coefficient] * 6, limits)

KNOWN = AttentionTime(2e-3, 1e-4, 2e-7, 3e-8, 4e-11, 5e-11, 2048.0)


def batch(chunks: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    cached, bsz = np.array(chunks, dtype=np.int64).reshape(-1, 2).T
    return np.ascontiguousarray(cached), np.ascontiguousarray(bsz)


def seconds_of(model: AttentionTime, chunks: list[tuple[int, int]]) -> float:
    return batch_seconds(model, *batch(chunks))


def some_batches(seed: int, count: int) -> list[list[tuple[int, int]]]:
    """Batches of 1 to 8 chunks whose sizes are spread evenly on a logarithmic scale."""
    rng = np.random.default_rng(seed)

    def sizes(low: float, high: float, chunks: int) -> list[int]:
        return [int(x) for x in np.exp(rng.uniform(np.log(low), np.log(high), chunks))]

    chunks = [int(x) for x in rng.integers(1, 9, count)]
    return [list(zip(sizes(16, 100_000, n), sizes(1, 8000, n), strict=True)) for n in chunks]


def measured(
    model: AttentionTime, batches: list[list[tuple[int, int]]], noise: float = 0.0, seed: int = 0
) -> list[Sample]:
    factors = 1.0 + noise * np.random.default_rng(seed).standard_normal(len(batches))
    return [
        Sample(chunks, seconds_of(model, chunks) * float(factor))
        for chunks, factor in zip(batches, factors, strict=True)
    ]


# ---- prediction from the architecture -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@given(cached=tokens, bsz=appended)
def test_flops_are_those_of_the_llm(name: str, cached: int, bsz: int) -> None:
    llm = load_llm(name)
    model = attention_time(llm, flop_per_s=RATE)
    flops = RATE * chunk_seconds(model, cached, bsz)
    assert flops == pytest.approx(float(llm.prefill_flops(cached, bsz).attention), rel=EXACT)


@given(tokens, appended, st.integers(1, 300_000), st.integers(1, 32))
def test_flops_under_any_window(cached: int, bsz: int, window: int, layers: int) -> None:
    """Up to all layers sliding, where nothing is left of the unlimited pairs."""
    llm = replace(SMALL_LLM, attention=GroupedAttention(32, 8, 128, window, layers))
    model = attention_time(llm, flop_per_s=RATE)
    assert model.pair_s >= 0
    flops = RATE * chunk_seconds(model, cached, bsz)
    assert flops == pytest.approx(float(llm.prefill_flops(cached, bsz).attention), rel=EXACT)


def test_kinds_of_pairs() -> None:
    dense = attention_time(load_llm("qwen2.5-32b"), flop_per_s=RATE)
    assert (dense.limited_pair_s, dense.limit_tokens) == (0.0, 0.0)
    assert dense.pair_s * RATE == pytest.approx(64 * 4 * 40 * 128, rel=EXACT)
    sparse = attention_time(load_llm("deepseek-v3.2"), flop_per_s=RATE)
    assert sparse.limit_tokens == 2048
    assert sparse.pair_s * RATE == pytest.approx(61 * 2 * 64 * 128, rel=EXACT)
    assert sparse.limited_pair_s * RATE == pytest.approx(61 * 2 * 128 * 320, rel=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_split_heads_but_not_the_indexer(name: str) -> None:
    llm = load_llm(name)
    one = attention_time(llm, flop_per_s=RATE)
    two = attention_time(llm, flop_per_s=RATE, tensor_parallel=2)
    assert two.limited_pair_s == one.limited_pair_s / 2
    sparse = llm.attention.kind == "mla_sparse"
    assert two.pair_s == (one.pair_s if sparse else one.pair_s / 2)


@pytest.mark.parametrize("name", NAMES)
@given(cached=st.integers(200, 1_000_000), bsz=appended)
def test_a_chunk_reads_what_the_cache_holds_of_its_context(
    name: str, cached: int, bsz: int
) -> None:
    """From a full window on; under a window each appended token is read beside the window."""
    llm, dtype, hbm = load_llm(name), KvDtype.FP8, 3e12
    compute = attention_time(llm, flop_per_s=RATE)
    both = attention_time(llm, flop_per_s=RATE, hbm_bytes_per_s=hbm, kv_dtype=dtype)
    reads = both._replace(pair_s=0.0, limited_pair_s=0.0)
    assert both._replace(chunk_s=0.0, token_s=0.0, context_token_s=0.0) == compute
    read_bytes = hbm * chunk_seconds(reads, cached, bsz)
    if llm.attention.kind == "mla_sparse":  # all keys of the indexer, and KV that any token chose
        whole = (cached + bsz) * llm.decode_read_bytes(1, dtype)
    else:
        appended_bytes = bsz * llm.kv_bytes_per_token(dtype)
        whole = llm.kv_bytes(cached, dtype) + appended_bytes
    assert read_bytes == pytest.approx(float(whole), rel=1e-9)


def test_reads_of_ranks() -> None:
    """Eight KV heads on eight ranks are split, the latent is held by all of them."""
    for name, split in (("qwen2.5-32b", 8), ("deepseek-v3.2", 1)):
        one, eight = (
            attention_time(
                load_llm(name), flop_per_s=RATE, hbm_bytes_per_s=3e12, tensor_parallel=ranks
            )
            for ranks in (1, 8)
        )
        assert one.context_token_s == pytest.approx(split * eight.context_token_s, rel=EXACT)


def test_bad_rates_and_ranks() -> None:
    llm = load_llm("qwen2.5-32b")
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"flop_per_s .* must be finite and more than 0; give"):
            attention_time(llm, flop_per_s=rate)
        with pytest.raises(InputError, match=r"hbm_bytes_per_s .* more than 0; leave it out"):
            attention_time(llm, flop_per_s=RATE, hbm_bytes_per_s=rate)
    for ranks in (0, 3):
        with pytest.raises(InputError, match=rf"tensor_parallel {ranks} does not divide the 40"):
            attention_time(llm, flop_per_s=RATE, tensor_parallel=ranks)
    with pytest.raises(InputError, match="needs latent attention"):
        attention_time(llm, flop_per_s=RATE, hbm_bytes_per_s=1e12, kv_dtype=KvDtype.FP8_DS_MLA)


# ---- laws ---------------------------------------------------------------------------------------


@given(models, tokens, appended)
def test_a_token_more_never_costs_less(model: AttentionTime, cached: int, bsz: int) -> None:
    """Without tolerance: binary search over the chunk relies on it."""
    assert chunk_seconds(model, cached, bsz) <= chunk_seconds(model, cached, bsz + 1)


@given(models, tokens, appended)
def test_longer_context_never_costs_less(model: AttentionTime, cached: int, bsz: int) -> None:
    assert chunk_seconds(model, cached, bsz) <= chunk_seconds(model, cached + 1, bsz) * (1 + EXACT)


@given(models, tokens, appended, appended)
def test_two_chunks_cost_one_and_their_overhead(
    model: AttentionTime, cached: int, one: int, other: int
) -> None:
    """Pairs add up exactly; cutting costs one more chunk and reads the first part's context twice."""
    at_once = chunk_seconds(model, cached, one + other)
    cut = chunk_seconds(model, cached, one) + chunk_seconds(model, cached + one, other)
    overhead = model.chunk_s + model.context_token_s * (cached + one)
    assert cut == pytest.approx(at_once + overhead, rel=EXACT)


@given(models, st.lists(st.tuples(tokens, appended), max_size=6))
def test_a_batch_is_the_sum_of_its_chunks(
    model: AttentionTime, chunks: list[tuple[int, int]]
) -> None:
    parts = [chunk_seconds(model, *chunk) for chunk in chunks]
    assert seconds_of(model, chunks) == pytest.approx(model.fixed_s + sum(parts), rel=EXACT)


def test_compiled_is_the_same_to_the_last_bit() -> None:
    compiled = bound(batch_seconds, compiled=True)
    for chunks in [[], *some_batches(seed=1, count=50)]:
        assert compiled(KNOWN, *batch(chunks)) == seconds_of(KNOWN, chunks)


def test_json_round_trip() -> None:
    assert AttentionTime(**json.loads(json.dumps(KNOWN._asdict()))) == KNOWN


# ---- fitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [None, *AttentionTime._fields[:-1]])
def test_fit_recovers_known_coefficients(absent: str | None) -> None:
    """Also where one of them is 0, the edge of what is allowed."""
    model = KNOWN if absent is None else KNOWN._replace(**{absent: 0.0})
    found = fit(measured(model, some_batches(seed=2, count=60)), limit_tokens=2048)
    assert np.all(np.abs(np.subtract(found.model, model)) <= 1e-5 * np.array(KNOWN))
    assert found.relative_error_max < 1e-6
    assert found.r_squared == pytest.approx(1.0, abs=1e-9)
    assert found.undetermined == ()


def test_fit_without_a_limit() -> None:
    model = KNOWN._replace(limited_pair_s=0.0, limit_tokens=0.0)
    found = fit(measured(model, some_batches(seed=3, count=60)))
    assert np.all(np.abs(np.subtract(found.model, model)) <= 1e-5 * np.array(model))
    assert found.undetermined == ()


def test_fit_sees_through_noise() -> None:
    """Tolerances from least squares: an unseen batch is predicted with an error of about
    noise * sqrt(coefficients / samples); the median residual is that of a normal distribution.
    """
    noise, count = 0.03, 400
    found = fit(
        measured(KNOWN, some_batches(seed=4, count=count), noise, seed=5), limit_tokens=2048
    )
    fresh = some_batches(seed=6, count=100)
    errors = [seconds_of(found.model, b) / seconds_of(KNOWN, b) - 1.0 for b in fresh]
    assert np.sqrt(np.mean(np.square(errors))) < 2 * noise * np.sqrt(6 / count)
    median, standard_error = 0.6745 * noise, 0.787 * noise / np.sqrt(count)
    assert found.relative_error_p50 == pytest.approx(median, abs=4 * standard_error)
    assert found.relative_error_p50 < found.relative_error_max < 6 * noise
    assert 0.95 < found.r_squared < 1.0


def test_residuals_are_measured_minus_predicted() -> None:
    samples = measured(KNOWN, some_batches(seed=7, count=30), noise=0.05, seed=8)
    found = fit(samples, limit_tokens=2048)
    predicted = [seconds_of(found.model, list(sample.chunks)) for sample in samples]
    residual = [s.seconds - p for s, p in zip(samples, predicted, strict=True)]
    assert found.residual_s == pytest.approx(residual, rel=1e-6, abs=1e-12)
    worst = max(abs(r) / s.seconds for r, s in zip(residual, samples, strict=True))
    assert found.relative_error_max == pytest.approx(worst)


def test_scale_of_time_and_tokens_does_not_matter() -> None:
    batches = some_batches(seed=9, count=40)
    slow = fit(measured(KNOWN, batches), limit_tokens=2048).model
    thousandth = AttentionTime(*(x / 1000 for x in KNOWN))._replace(limit_tokens=2048.0)
    fast = fit(measured(thousandth, batches), limit_tokens=2048).model
    assert fast[:-1] == pytest.approx([x / 1000 for x in slow[:-1]], rel=1e-6, abs=1e-18)


def test_what_cannot_be_told_apart_is_shared() -> None:
    singles = [chunks[:1] for chunks in some_batches(seed=10, count=60)]
    found = fit(measured(KNOWN, singles), limit_tokens=2048)
    assert found.undetermined == ("fixed_s", "chunk_s")
    half = (KNOWN.fixed_s + KNOWN.chunk_s) / 2
    assert found.model[:2] == pytest.approx([half, half], rel=1e-4)
    assert found.relative_error_max < 1e-5
    alike = fit([Sample([(1000, 100)], 0.01)] * 6, limit_tokens=2048)
    assert alike.undetermined == AttentionTime._fields[:-1]
    assert seconds_of(alike.model, [(1000, 100)]) == pytest.approx(0.01, rel=1e-6)
    assert alike.r_squared == 0.0  # no variance to explain


def test_bad_samples() -> None:
    good = measured(KNOWN, some_batches(seed=11, count=6))
    fit(good, limit_tokens=2048)
    with pytest.raises(InputError, match=r"samples has 5 batches, but 6 .* need at least 6; meas"):
        fit(good[:5], limit_tokens=2048)
    fit(good[:5])
    with pytest.raises(InputError, match=r"samples has 4 batches, but 5 coefficients"):
        fit(good[:4])
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        bad = [*good, Sample([(0, 1)], seconds)]
        with pytest.raises(InputError, match=r"samples\[6\].seconds .* measure this batch again"):
            fit(bad)
    with pytest.raises(InputError, match=r"samples\[6\].chunks is empty, .*; leave it out"):
        fit([*good, Sample([], 1.0)])
    for chunk in ((-1, 5), (5, 0)):
        with pytest.raises(InputError, match=r"samples\[6\].chunks has .* correct the chunk"):
            fit([*good, Sample([(0, 1), chunk], 1.0)])
    for limit in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"limit_tokens .* at least 0; give the window"):
            fit(good, limit_tokens=limit)
