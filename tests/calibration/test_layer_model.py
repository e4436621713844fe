"""A layer: decode against prefill, chunks against the whole, experts against loops, FLOPs as counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from calibration import attention_kernels as kernels
from calibration.clock import Work
from calibration.layer_attention import Cache, Grouped, Latent, attention_kinds
from calibration.layer_feed_forward import Experts, evenly
from calibration.layer_model import Layer, build, common_kind
from calibration.layer_weights import drawing
from dualpath_model.llm import FeedForward, Llm
from tests.calibration.tiny_llms import CLOSE, CPU, KINDS, LLMS, numbers


def dense(llm: Llm) -> Llm:
    """The same attention without experts, whose rows depend on the position in the batch."""
    return replace(llm, ffn=FeedForward(dense_intermediate=96))


def cut(layer: Layer, length: int, batch: int = 0, seed: int = 5) -> Cache:
    """A cache of random numbers of one chunk, or of ``batch`` requests."""
    attention, many = layer.attention, (batch,) if batch else ()
    if isinstance(attention, Grouped):
        shape = (2, *many, attention.kv_heads, length, attention.width)
        return Cache(numbers(*shape, seed=seed))
    indexer = attention.shape.indexer
    keys = numbers(*many, length, indexer.head_dim, seed=seed + 1) if indexer else None
    return Cache(numbers(*many, length, attention.shape.latent_dim, seed=seed), keys)


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
        layer.finish(x, numbers(64, layer.attention.out.shape[1]))

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
