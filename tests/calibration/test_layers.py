"""Layers: kernels against plain loops, FLOPs against the models' count, the sweeps' bookkeeping."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.attention.bias
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from calibration import attention_kernels as kernels
from calibration import layers
from calibration.clock import Clock, Work
from calibration.layer_model import (
    Cache,
    Experts,
    Grouped,
    Latent,
    Layer,
    attention_kinds,
    build,
    common_kind,
    drawing,
    evenly,
)
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.llm import (
    FeedForward,
    GroupedAttention,
    Indexer,
    KvDtype,
    LatentAttention,
    Llm,
)

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


def dense(llm: Llm) -> Llm:
    """The same attention without experts, whose rows depend on the position in the batch."""
    return replace(llm, ffn=FeedForward(dense_intermediate=96))


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plainly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One query [d] of one head on the keys [t, d] that it sees."""
    return torch.softmax((k @ q) * scale, dim=0) @ v


def cut(layer: Layer, length: int, batch: int = 0, seed: int = 5) -> Cache:
    """A cache of random numbers of one chunk, or of ``batch`` requests."""
    attention, many = layer.attention, (batch,) if batch else ()
    if isinstance(attention, Grouped):
        shape = (2, *many, attention.kv_heads, length, attention.width)
        return Cache(numbers(*shape, seed=seed))
    indexer = attention.shape.indexer
    keys = numbers(*many, length, indexer.head_dim, seed=seed + 1) if indexer else None
    return Cache(numbers(*many, length, attention.shape.latent_dim, seed=seed), keys)


def sizes(most_cached: int = 24, most: int = 24) -> Any:
    return st.tuples(st.integers(0, most_cached), st.integers(1, most))


# ---- kernels ---------------------------------------------------------------------------------------


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


# ---- the layer -------------------------------------------------------------------------------------


def each_window(kind: str) -> list[int]:
    return [window for _, window in attention_kinds(LLMS[kind])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_decode_step_is_a_prefill_of_one_token(kind: str) -> None:
    layer = build(dense(LLMS[kind]), drawing(CPU, torch.float32, 1))
    x = numbers(3, 64)
    for window in each_window(kind):
        length = min(50, window or 50)
        caches = cut(layer, length, batch=3)
        found = layer.decode(x, Cache(caches.main.clone(), caches.keys))
        for request in range(3):
            grouped = isinstance(layer.attention, Grouped)
            main = caches.main[:, request] if grouped else caches.main[request]
            own = Cache(main.clone(), None if caches.keys is None else caches.keys[request].clone())
            chunk = layer.attention.chunk(length - 1, 1, window)
            expected = layer.prefill(x[request : request + 1], own, chunk)[0]
            torch.testing.assert_close(found[request], expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 7, 29])
def test_a_prefill_in_two_chunks_is_that_in_one(kind: str, first: int) -> None:
    layer = build(dense(LLMS[kind]), drawing(CPU, torch.float32, 1))
    x, total = numbers(30, 64), 30
    for window in each_window(kind):
        whole = cut(layer, total)
        expected = layer.prefill(x, whole, layer.attention.chunk(0, total, window))
        parts = cut(layer, total, seed=9)  # other numbers: all that is read was written before
        chunk = layer.attention.chunk(0, first, window)
        narrow = Cache(*(None if t is None else tokens(t, 0, first) for t in parts))
        one = layer.prefill(x[:first], narrow, chunk)
        later = layer.attention.chunk(first, total - first, window)
        start = first - later.kept
        rest = Cache(*(None if t is None else tokens(t, start, total) for t in parts))
        two = layer.prefill(x[first:], rest, later)
        torch.testing.assert_close(torch.cat([one, two]), expected, **CLOSE)


def tokens(cached: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """The tokens from ``first`` to ``last`` of a chunk's cache, a view."""
    return cached[..., first:last, :]


def test_latent_attention_is_the_same_decompressed_and_absorbed() -> None:
    llm = LLMS["mla"]
    one = build(llm, drawing(CPU, torch.float32, 3))
    other = build(replace(llm, prefill_attention_form="absorbed"), drawing(CPU, torch.float32, 3))
    assert isinstance(one.attention, Latent)
    assert isinstance(other.attention, Latent)
    assert (one.attention.absorbed, other.attention.absorbed) == (False, True)
    x = numbers(20, 64)
    results = [
        layer.prefill(x, cut(layer, 50), layer.attention.chunk(30, 20)) for layer in (one, other)
    ]
    torch.testing.assert_close(*results, **CLOSE)


@given(rows=st.integers(0, 5000), held=st.integers(1, 300))
def test_rows_are_split_evenly_over_experts(rows: int, held: int) -> None:
    parts = evenly(rows, held)
    assert sum((last - first) * each for first, last, each in parts) == rows
    assert sum(last - first for first, last, _ in parts) == min(rows, held)
    assert [first for first, _, _ in parts] == [0, *(last for _, last, _ in parts)][: len(parts)]
    sizes_found = [each for *_, each in parts]
    assert not sizes_found or max(sizes_found) - min(sizes_found) <= 1


@pytest.mark.parametrize(("count", "held", "tensor"), [(6, 8, 1), (5, 4, 1), (1, 8, 1), (8, 2, 4)])
def test_experts_do_what_a_loop_over_their_rows_does(count: int, held: int, tensor: int) -> None:
    layer = build(LLMS["mla_sparse"], drawing(CPU, torch.float32, 1), held=held, tensor=tensor)
    experts, x = layer.ffn, numbers(count, 64)
    assert isinstance(experts, Experts)
    assert experts.shared is not None
    shares = (x @ experts.router.T).topk(2, dim=-1).values.softmax(-1)
    expected = experts.shared.forward(x)
    total = round(count * 2 / tensor)
    owners = [e for first, last, each in evenly(total, held) for e in range(first, last)
              for _ in range(each)]  # fmt: skip
    for row, expert in enumerate(owners):
        gate, up = (x[row % count] @ experts.gate_up[expert].T).chunk(2)
        out = (torch.nn.functional.silu(gate) * up) @ experts.down[expert].T
        expected[row % count] += out * shares[row % count, row // count]
    torch.testing.assert_close(experts.forward(x), expected, **CLOSE)


def test_touched_weights_are_all_but_the_experts_without_a_row() -> None:
    layer = build(LLMS["mla_sparse"], drawing(CPU, torch.float32, 1))
    one = 3 * 64 * 32 * 4
    assert layer.touched_bytes(4) == layer.touched_bytes(400)
    assert layer.touched_bytes(4) - layer.touched_bytes(1) == 6 * one
    params = common_kind(LLMS["mla_sparse"]).params
    in_layers = params.total - params.input_embedding - params.lm_head
    assert layer.touched_bytes(400) == pytest.approx(in_layers / 4 * 4, rel=0.01)


BIG: dict[str, Llm] = {
    kind: replace(
        llm,
        hidden=512,
        ffn=replace(
            llm.ffn,
            dense_intermediate=2 * llm.ffn.dense_intermediate,
            expert_intermediate=4 * llm.ffn.expert_intermediate,
        ),
    )
    for kind, llm in LLMS.items()
}
"""Wide enough that norms and the index's weighted sums are small beside the rest."""


def counted_flops(run: Work) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_does_the_flops_that_the_models_count(kind: str) -> None:
    """Prefill without attention's pairs: those are in the test below, kernel by kernel."""
    llm = common_kind(BIG[kind])
    layer = build(BIG[kind], drawing(CPU, torch.float32, 1))
    x = numbers(64, 512)

    def run() -> None:
        queries, new = layer.attention.project(x)
        layer.attention.append(new, cut(layer, 64))
        if isinstance(layer.attention, Latent):  # the new tokens go up, absorbed or decompressed
            up, v_width = layer.attention.up, layer.attention.shape.v_head_dim
            kernels.emerge(kernels.absorb(queries.q, up, v_width)[..., :16], up, v_width)
        layer._finish(x, numbers(64, layer.attention.out.shape[1]))

    expected = float(llm.prefill_flops(0, 64).linear) / llm.layers
    assert counted_flops(run) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_does_the_flops_that_the_models_count(kind: str) -> None:
    """One query on a long context: no causal half that a kernel computes and the models do not."""
    llm = replace(BIG[kind], layers=4)
    layer = build(llm, drawing(CPU, torch.float32, 1))
    assert layer.attention.heads == llm.attention.heads
    context = 1024
    cache = cut(layer, context, batch=2)
    queries, _ = layer.attention.project(numbers(2, 512))
    windows = attention_kinds(llm)
    found = 0.0
    for share, window in windows:
        part = cache
        if window:
            part = Cache(cache.main[..., -window:, :])
        found += share * counted_flops(lambda part=part: layer.attention.attend_each(queries, part))
    pairs = float(llm.decode_flops(context) - llm.decode_flops(0)) / llm.layers * 2
    # Absorbing and emerging are counted with the linear part: 2 heads rank (nope + v) a token.
    if isinstance(layer.attention, Latent):
        pairs += 2 * 2 * 4 * 16 * (8 + 6)
    if kind == "mla_sparse":  # an indexer's weighted sum over its 16 heads is not counted
        pairs += 2 * 2 * 16 * context
    assert found == pytest.approx(pairs, rel=0.001)


def test_a_layer_of_a_tensor_parallel_group_has_its_share_of_the_work() -> None:
    one = build(LLMS["gqa"], drawing(CPU, torch.float32, 1))
    two = build(LLMS["gqa"], drawing(CPU, torch.float32, 1), tensor=2)
    x = numbers(8, 64)

    def flops(layer: Layer) -> float:
        chunk = layer.attention.chunk(24, 8)
        return counted_flops(lambda: layer.prefill(x, cut(layer, 32), chunk))

    assert flops(two) == pytest.approx(flops(one) / 2)


def test_random_numbers_are_random_and_the_same_again() -> None:
    long = drawing(CPU, torch.float32, 4)(3, 2**21, scale=0.5)
    assert torch.equal(long, drawing(CPU, torch.float32, 4)(3, 2**21, scale=0.5))
    assert float(long.std()) == pytest.approx(0.5, rel=0.01)
    assert not torch.equal(long[0], long[2])


# ---- measuring -------------------------------------------------------------------------------------


@cache
def measured(kind: str) -> tuple[Measured, float, list[float]]:
    told: list[float] = []
    begun = time.perf_counter()
    found = layers.measure_layers(
        LLMS[kind],
        kv_dtype=KvDtype.FP8,
        device=CPU,
        seconds=1.5,
        tell=lambda share, _: told.append(share),
    )
    return found, time.perf_counter() - begun, told


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_gives_whole_series_fits_and_figures(kind: str) -> None:
    found, took, told = measured(kind)
    assert [series.name for series in found.series] == [
        "attention",
        "prefill_layer",
        "decode_layer",
    ]
    for series in found.series:
        repeats = Counter(str(sample.at) for sample in series.samples)
        assert max(repeats.values()) - min(repeats.values()) <= 1  # rounds; the last may be cut off
        assert all(sample.amount > 0 for sample in series.samples)
    left_out = [note for note in found.warnings if "is left out" in note]
    assert len(found.figures) + len(left_out) == 6
    assert "attention_flop_per_s" in found.figures
    names = {fit.name for fit in found.fits}
    assert {estimate.source for estimate in found.figures.values()} <= names
    (coefficients,) = found.attention
    assert (coefficients.llm, coefficients.tensor) == (LLMS[kind].name, 1)
    limit = {"gqa_sliding": 16.0, "mla_sparse": 16.0}.get(kind, 0.0)
    assert coefficients.coefficients["limit_tokens"] == limit
    assert took < 60.0  # hangs end; 1.5 s on an idle machine
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_what_was_not_measured_as_asked_is_said() -> None:
    found, *_ = measured("mla_sparse")
    said = " ".join(found.warnings)
    assert "KV was asked for as fp8" in said
    assert "computes in fp8" in said
    assert "the expert ones were measured" in said
    assert found.settings["layers_held_experts"] == 8
    element = {"bfloat16": 2, "float32": 4}[str(found.settings["layers_kv_dtype"])]
    decode = {(s.at["batch"], s.at["context"]): s.at["bytes"] for s in found.series[2].samples
              if s.at["feed_forward"] == "whole"}  # fmt: skip
    more = float(str(decode[4, 1024])) - float(str(decode[4, 128]))
    assert more == 4 * 8 * (1024 - 128) * element  # beyond top_k only the indexer's keys grow


def test_amounts_are_what_the_models_count_for_one_layer() -> None:
    found, *_ = measured("gqa_sliding")
    llm = LLMS["gqa_sliding"]
    for sample in found.series[0].samples:
        chunks = [tuple(map(float, c.split(":"))) for c in str(sample.at["chunks"]).split(",")]
        total = sum(float(llm.prefill_flops(*chunk).attention) for chunk in chunks)
        assert sample.amount == pytest.approx(total / 4)
    for sample in found.series[1].samples:
        total = llm.prefill_flops(
            float(str(sample.at["cached"])), float(str(sample.at["bsz"]))
        ).total
        assert sample.amount == pytest.approx(float(total) / 4)


def test_ctrl_c_is_passed_on() -> None:
    def tell(share: float, what: str) -> None:
        if share > 0.3:
            raise KeyboardInterrupt(what)

    with pytest.raises(KeyboardInterrupt):
        layers.measure_layers(
            LLMS["gqa"], kv_dtype=KvDtype.BF16, device=CPU, seconds=0.5, tell=tell
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor": 4}, "tensor 4 does not split the 6 heads"),
        ({"tensor": 0}, "tensor 0"),
        ({"seconds": 0.0}, "seconds 0.0 must be"),
        ({"seconds": math.nan}, "seconds nan must be"),
    ],
)
def test_a_wrong_argument_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {"seconds": 1.0, "tensor": 1} | changes
    with pytest.raises(InputError, match=said):
        layers.measure_layers(
            LLMS["gqa"], kv_dtype=KvDtype.BF16, device=CPU, tell=lambda *_: None, **asked
        )


def test_a_layer_that_does_not_fit_the_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "_free_bytes", lambda _: 1e5)
    with pytest.raises(InputError, match="more than an eighth of the free memory"):
        layers.measure_layers(
            LLMS["gqa"], kv_dtype=KvDtype.BF16, device=CPU, seconds=1.0, tell=lambda *_: None
        )


@given(affordable=st.floats(-10, 1000), experts=st.integers(1, 400), active=st.integers(1, 12))
def test_held_experts_are_enough_for_a_token(affordable: float, experts: int, active: int) -> None:
    active = min(active, experts)
    held = layers._held_experts(experts, active, affordable)
    assert active <= held <= experts
    assert held == experts or math.log2(held).is_integer()
    assert held < 2 * max(active, affordable)


class _CountingClock(Clock):
    """Runs nothing; a call takes as long as its work says."""

    def seconds(self, work: Work) -> float:
        work()
        return spent.pop()


spent: list[float] = []


def _swept(budget_s: float) -> list[dict[str, Any]]:
    def point(cost: float) -> layers._Point:
        return layers._Point(
            {"cost": cost}, cost, cost, lambda: [(1.0, [lambda: spent.append(cost)])]
        )

    room = layers._Room(
        LLMS["gqa"], 1, CPU, _CountingClock(CPU), [], layers._Shelf(torch.empty(1)), 0.0, 0.0, 4,
        lambda *_: None, random.Random(1),
    )  # fmt: skip
    points = [point(cost) for cost in (64.0, 1.0, 8.0, 2.0, 32.0, 4.0, 16.0, 128.0)]
    return [sample.at for sample in layers._sweep(room, "prefill", points, budget_s, (0.0, 1.0))]


@pytest.mark.parametrize(
    ("budget_s", "most"), [(1.0, 8.0), (254.0, 32.0), (256.0, 32.0), (508.0, 64.0), (1e9, 128.0)]
)
def test_a_sweep_measures_the_cheapest_points_that_fit_in_whole_rounds(
    budget_s: float, most: float
) -> None:
    counts = Counter(at["cost"] for at in _swept(budget_s))
    assert max(counts) == most
    assert sorted(counts) == [2.0**n for n in range(int(math.log2(most)) + 1)]
    assert set(counts.values()) <= {layers.ROUNDS[1]}  # the fake seconds pass in no time


def test_pieces_of_the_shelf_lie_apart_until_it_is_used_up() -> None:
    shelf = layers._Shelf(torch.zeros(950))
    pieces = [shelf.cut(10, 10) for _ in range(7)]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    assert [float(piece.max()) for piece in pieces] == list(range(7))
    shelf.cut(10, 10).fill_(9.0)  # no room for an eighth: from the start again
    assert float(pieces[0].max()) == 9.0
    assert not shelf.fits(951)
