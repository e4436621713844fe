"""Products on a CPU: the LLM's shapes, the results that are timed, and how many fit into the time."""

from __future__ import annotations

import pytest
import torch

from calibration import products
from calibration.shapes import GemmShape
from dualpath_model.errors import InputError
from dualpath_model.llm import FeedForward, LatentAttention, Llm

CPU = torch.device("cpu")
LATENT = Llm(
    name="latent",
    layers=3,
    hidden=256,
    vocab=1000,
    attention=LatentAttention(8, 64, 64, 32, 16, 32),
    ffn=FeedForward(512, 128, 8, 2, 1, 1),
    compute_dtype="fp8",
)


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


def test_an_llm_with_experts_and_latent_attention_is_measured() -> None:
    found = products.measure_products(LATENT, device=CPU, tensor=2, seconds=1.0, tell=quiet, seed=0)
    shapes = {sample.at["shape"] for sample in found.series[0].samples}
    assert shapes >= {"q_a", "kv_b", "mlp_down", "router", "shared_gate_up", "expert_down"}
    assert set(found.figures) == {"gemm_bf16_flop_per_s", "gemm_fp32_flop_per_s"}
    with pytest.raises(InputError, match="tensor 3 does not divide the 8"):
        products.measure_products(LATENT, device=CPU, tensor=3, seconds=1.0, tell=quiet, seed=0)


def test_the_same_seed_draws_the_same_matrices() -> None:
    kind, shape = products.kinds(CPU)[0][0], GemmShape("any", 16, 64, 32, 1.0)
    first, second, other = (
        products.Matrices(kind, [shape], CPU, seed).numbers[:4096] for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert 0.9 < first.float().std().item() < 1.1


@pytest.mark.parametrize("index", [0, 1])
def test_the_timed_products_are_right(index: int) -> None:
    kind, shape = products.kinds(CPU)[0][index], GemmShape("any", 48, 96, 80, 1.0)
    matrices = products.Matrices(kind, [shape], CPU, 0)
    works = matrices.works(shape)
    assert len(works) == 8
    results = []
    for work in works:
        product = work()
        assert isinstance(product, torch.Tensor)
        assert product.shape == (48, 96)
        results.append(product.clone())
    assert not torch.equal(results[0], results[1])
    weight = matrices.numbers[: 96 * 80].view(96, 80).double()
    begin = (len(matrices.numbers) - 48 * 80) // 64 * 64
    tokens = matrices.numbers[begin:][: 48 * 80].view(48, 80).double()
    torch.testing.assert_close(results[0].double(), tokens @ weight.t(), rtol=2e-2, atol=0.2)


def test_precision_is_set_back_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyboardInterrupt), products.exact_fp32():
        raise KeyboardInterrupt
    assert torch.get_float32_matmul_precision() == before


def test_less_time_means_fewer_squares_and_rows() -> None:
    assert products.squares_in(0.0, 2**40) == [256, 512]
    assert products.squares_in(1e18, 2**40) == list(products.SQUARES)
    assert products.squares_in(1e18, 3 * 2048**2) == [256, 512, 1024, 2048]
    shapes = [GemmShape("o", products.TOKENS, 4096, 4096, 10.0)]
    assert products.parts_in(shapes, 1e18, 2**40) == (products.TOKENS, shapes)
    rows, parts = products.parts_in(shapes, 0.0, 2**40)
    assert rows == products.LEAST_ROWS
    assert parts[0].count == 10.0 * products.TOKENS / rows


@pytest.mark.slow
def test_our_products_keep_up_with_a_bare_loop() -> None:
    from benchmarks.against_torch import compare

    found = compare(device="cpu", runs=5)
    assert 0.5 < found["gemm_over_torch"] < 2.0
    rates = {
        name.split("_")[2]: rate for name, rate in found.items() if name.endswith("_flop_per_s")
    }
    assert set(rates) == {"bf16", "fp32"}
    assert min(rates.values()) > 0
