"""The GPU room on a CPU: what it finds, what it keeps to, and what it says where it cannot."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from calibration import copies, gpu, products
from calibration.clock import Clock, Point, Work, in_rounds
from calibration.rooms import Measured
from calibration.shapes import GemmShape
from dualpath_model.errors import DualPathError, InputError
from dualpath_model.llm import (
    FeedForward,
    GroupedAttention,
    KvDtype,
    LatentAttention,
    Llm,
)
from dualpath_model.profile import FIGURES, Estimate, PartName, Sample, Series

CPU = torch.device("cpu")
SMALL = Llm(
    name="small",
    layers=4,
    hidden=256,
    vocab=1000,
    attention=GroupedAttention(heads=8, kv_heads=2, head_dim=32),
    ffn=FeedForward(dense_intermediate=512),
)
LATENT = Llm(
    name="latent",
    layers=3,
    hidden=256,
    vocab=1000,
    attention=LatentAttention(8, 64, 64, 32, 16, 32),
    ffn=FeedForward(512, 128, 8, 2, 1, 1),
    compute_dtype="fp8",
)
LINK = {"host_to_device_bytes_per_s", "device_to_host_bytes_per_s", "both_ways_share"}
LINK |= {"pageable_share"}
OURS = {"gemm_bf16_flop_per_s", "gemm_fp32_flop_per_s", "hbm_copy_bytes_per_s", "copy_launch_s"}
OURS |= {"layer_block_share", "gather_share", "interference_share"}


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


@pytest.fixture(scope="module")
def room() -> tuple[Measured, float, list[tuple[float, str]]]:
    told: list[tuple[float, str]] = []
    begun = time.perf_counter()
    found = gpu.measure_gpu(
        SMALL,
        kv_dtype=KvDtype.BF16,
        device="cpu",
        seconds=6.0,
        tell=lambda share, what: told.append((share, what)),
        seed=1,
    )
    return found, time.perf_counter() - begun, told


Room = tuple[Measured, float, list[tuple[float, str]]]


def test_a_cpu_gives_every_figure_that_it_has(room: Room) -> None:
    found, _, _ = room
    assert set(found.figures) >= OURS
    assert not LINK & set(found.figures)
    assert "gemm_fp8_flop_per_s" not in found.figures
    assert all(FIGURES[name].part is PartName.GPU for name in found.figures)
    assert {series.name for series in found.series} >= {
        "gemm_bf16",
        "gemm_llm_bf16",
        "gemm_fp32",
        "gemm_llm_fp32",
        "device_copy",
        "block_copy",
        "beside_copies",
        "beside_products",
    }


def test_what_a_cpu_cannot_measure_is_said(room: Room) -> None:
    said = " ".join(room[0].warnings)
    for name in (*LINK, "gemm_fp8_flop_per_s"):
        assert name in said


def test_figures_name_a_fit_of_a_series_that_is_there(room: Room) -> None:
    found = room[0]
    series = {one.name: one for one in found.series}
    fits = {fit.name: fit for fit in found.fits}
    assert len(series) == len(found.series)
    assert len(fits) == len(found.fits)
    for name in OURS:
        assert found.figures[name].source in fits, name
    for fit in found.fits:
        assert max(fit.indices) < len(series[fit.series].samples), fit.name


def test_the_small_room_keeps_to_its_time(room: Room) -> None:
    assert room[1] < 6.0 * 4  # 1.3 on an idle machine; the tests' machine is not


def test_what_is_done_only_grows(room: Room) -> None:
    shares = [share for share, _ in room[2]]
    assert shares == sorted(shares)
    assert shares[0] >= 0.0
    assert shares[-1] <= 1.0


def test_settings_and_tools_say_what_ran(room: Room) -> None:
    found = room[0]
    assert found.settings["llm"] == "small"
    assert found.settings["device"] == "cpu"
    assert found.settings["kv_dtype"] == "bf16"
    assert found.settings["tensor"] == 1
    assert found.settings["compute_dtype"] == "bf16"
    assert found.settings["torch_threads"] == torch.get_num_threads()
    assert found.tools["torch"] == str(torch.__version__)


def test_the_llms_rate_is_its_flops_over_its_time(room: Room) -> None:
    series = {one.name: one for one in room[0].series}
    for kind in ("bf16", "fp32"):
        each, passes = series[f"gemm_{kind}"].samples, series[f"gemm_llm_{kind}"].samples
        for one in passes:
            flop = seconds = 0.0
            for sample in each:
                if sample.at["round"] == one.at["round"]:
                    flop += sample.amount * float(sample.at["count"] or 0)
                    seconds += sample.seconds * float(sample.at["count"] or 0)
            assert (one.amount, one.seconds) == pytest.approx((flop, seconds))
        linear = SMALL.prefill_flops(0.0, float(products.TOKENS)).linear
        assert passes[0].amount == pytest.approx(linear, rel=0.01)


def test_points_are_visited_in_rounds(room: Room) -> None:
    series = {one.name: one for one in room[0].series}
    for name in ("gemm_bf16", "device_copy", "block_copy"):
        rounds = [int(sample.at["round"] or 0) for sample in series[name].samples]
        assert rounds == sorted(rounds)
        each = len(rounds) // (rounds[-1] + 1)
        assert len(rounds) == each * (rounds[-1] + 1)


def test_copies_count_reads_and_writes_in_memory_and_bytes_elsewhere(room: Room) -> None:
    series = {one.name: one for one in room[0].series}
    assert all(s.amount == 2 * int(s.at["bytes"] or 0) for s in series["device_copy"].samples)
    block = copies.BLOCK_TOKENS * SMALL.kv_bytes_per_token(KvDtype.BF16)
    assert all(sample.amount == block for sample in series["block_copy"].samples)


def test_an_llm_with_experts_and_latent_attention_is_measured() -> None:
    found = products.measure_products(LATENT, device=CPU, tensor=2, seconds=1.0, tell=quiet, seed=0)
    shapes = {sample.at["shape"] for sample in found.series[0].samples}
    assert shapes >= {"q_a", "kv_b", "mlp_down", "router", "shared_gate_up", "expert_down"}
    assert set(found.figures) == {"gemm_bf16_flop_per_s", "gemm_fp32_flop_per_s"}
    with pytest.raises(InputError, match="tensor 3 does not divide the 8"):
        products.measure_products(LATENT, device=CPU, tensor=3, seconds=1.0, tell=quiet, seed=0)


# Products


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


# Copies


@pytest.mark.parametrize("seed", [0, 1])
def test_both_layouts_of_a_block_give_the_same_bytes(seed: int) -> None:
    blocks = copies.Blocks(5, 24, 7, CPU, seed)
    blocks.check()
    for way in copies.WAYS:
        for work in blocks.works("load", way):
            work()
    # Whole or scattered, a block's layers are the ones sent.
    for block, sent in enumerate(blocks.sent):
        assert torch.equal(blocks.whole[block], sent)
        for layer, slot in enumerate(blocks.order[block].tolist()):
            assert torch.equal(blocks.slots[slot], sent[layer])
    assert len(set(blocks.order.flatten().tolist())) == 35


def test_a_copy_that_goes_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = copies.Blocks(3, 8, 2, CPU, 0)
    monkeypatch.setattr(blocks, "_layers", lambda direction, block: lambda: None)
    with pytest.raises(DualPathError, match="layers"):
        blocks.check()


def test_every_copy_of_a_pool_arrives_where_it_should() -> None:
    source = copies.random_words(10_000, CPU, 3, pinned=False)
    assert torch.equal(source, copies.random_words(10_000, CPU, 3, pinned=False))
    destination = torch.zeros_like(source)
    works = copies.copies(source, destination, 512)
    assert len(works) == 10_000 // 512
    for work in works:
        work()
    for sent, arrived in zip(
        copies.places(source, 512), copies.places(destination, 512), strict=True
    ):
        assert torch.equal(sent, arrived)
    copies.check_arrived("all", source[:512], destination[:512])


def test_traffic_flows_while_the_block_runs_and_then_stops() -> None:
    with copies.Traffic(lambda: None, 10.0) as traffic:
        assert traffic.arrived_bytes >= 10.0
    after = traffic.arrived_bytes
    assert not traffic._thread.is_alive()
    assert traffic.arrived_bytes == after


def test_an_error_of_the_traffic_is_raised_and_does_not_hang() -> None:
    def broken() -> None:
        raise InputError("no copy")

    with pytest.raises(InputError, match="no copy"), copies.Traffic(broken, 1.0):
        pass


def test_traffic_stops_when_its_user_is_interrupted() -> None:
    traffic = copies.Traffic(lambda: None, 1.0)
    with pytest.raises(KeyboardInterrupt), traffic:
        raise KeyboardInterrupt
    assert not traffic._thread.is_alive()


def test_blocks_that_do_not_fit_are_left_out_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copies, "most_bytes", lambda device: 2.0**25)
    vast = Llm("vast", 2000, 256, 1000, GroupedAttention(8, 8, 128), FeedForward(512))
    found = copies.measure_copies(
        vast, kv_dtype=KvDtype.BF16, device=CPU, seconds=0.5, tell=quiet, seed=0
    )
    assert "block_copy" not in {series.name for series in found.series}
    assert any("layer_block_share" in text for text in found.warnings)
    assert "hbm_copy_bytes_per_s" in found.figures


class StandInStream:
    """A stream of a GPU that is not there: what is queued is done at once, in the CPU's memory."""

    def __init__(self, device: object = None) -> None:
        self.waited = 0

    def wait_stream(self, other: object) -> None:
        self.waited += 1

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandInStream:
    """Let the code for a GPU's link run on the CPU; its rates mean nothing, its bookkeeping does."""
    current = StandInStream()
    monkeypatch.setattr(torch.cuda, "Stream", StandInStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name in ("empty", "zeros"):  # pinning needs a driver
        make = getattr(torch, name)

        def unpinned(*size: Any, make: Any = make, pin_memory: bool = False, **how: Any) -> Any:
            return make(*size, **how)

        monkeypatch.setattr(torch, name, unpinned)
    return current


def test_the_link_is_measured_in_all_its_ways(stand_in: StandInStream) -> None:
    found = Measured([])
    copies._measure_host(found, CPU, 0.5, quiet, 0)
    series = found.series[0]
    ways = {(s.at["direction"], s.at["pinned"]) for s in series.samples}
    one_way = {("to_device", True), ("to_device", False), ("to_host", True), ("to_host", False)}
    assert ways == {*one_way, ("both", True)}
    for sample in series.samples:
        both = sample.at["direction"] == "both"
        assert sample.amount == int(sample.at["bytes"] or 0) * (2 if both else 1)
    assert set(found.figures) == {*LINK, "copy_launch_s"}
    assert stand_in.waited > 0
    rate = {fit.name: fit.parameters["bytes_per_s"].value for fit in found.fits}
    one_way_rate = rate["to_device"] + rate["to_host"]
    share = found.figures["both_ways_share"].value
    assert share == pytest.approx(rate["both_ways"] / one_way_rate)


def test_the_stream_copies_all_that_it_counts(
    stand_in: StandInStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[torch.Tensor] = []
    make = copies.copies

    def seen(source: torch.Tensor, destination: torch.Tensor, words: int) -> list[Work]:
        pools.extend([source, destination])
        return make(source, destination, words)

    monkeypatch.setattr(copies, "copies", seen)
    copy_once, bytes_each = copies._stream_copy(CPU, 0)
    copy_once()
    assert torch.equal(*pools)
    assert pools[0].nbytes == bytes_each


# The clock


def test_every_round_times_every_point_and_variants_take_turns() -> None:
    calls: list[str] = []

    def work(name: str) -> Callable[[], object]:
        def slow() -> None:
            calls.append(name)
            end = time.perf_counter() + 2e-3  # one call a sample
            while time.perf_counter() < end:
                pass

        return slow

    points = [Point({"which": "a"}, 1.0, [work("a0"), work("a1")]), Point({}, 2.0, [work("b")])]
    samples = in_rounds(Clock(CPU), points, seconds=0.01, tell=quiet, left_out=[], least=3, most=3)
    assert calls[:4] == ["a0", "a1", "b", "b"]  # warming up
    rounds = int(samples[-1].at["round"] or 0) + 1
    assert calls[4:] == ["a0", "b", "a1", "b", "a0", "b"][: 2 * rounds]
    assert [sample.amount for sample in samples] == [1.0, 2.0] * rounds


def test_a_point_without_memory_is_left_out_with_a_sentence() -> None:
    def full() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    left_out: list[str] = []
    points = [Point({"size": 9}, 1.0, [full]), Point({"size": 1}, 1.0, [lambda: None])]
    samples = in_rounds(Clock(CPU), points, seconds=0.01, tell=quiet, left_out=left_out)
    assert {sample.at["size"] for sample in samples} == {1}
    assert len(left_out) == 1
    assert "size 9 is left out" in left_out[0]


def test_an_interrupt_goes_through() -> None:
    def stop(share: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.measure_gpu(SMALL, kv_dtype=KvDtype.BF16, device="cpu", seconds=6.0, tell=stop)


# The door


@pytest.mark.parametrize(
    ("device", "named"),
    [("tpu", "'tpu' is unknown"), ("cuda:x", "'cuda:x' is unknown"), ("", "'' is unknown")],
)
def test_an_unknown_device_is_one_sentence(device: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        gpu.pick_device(device)


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'cuda' needs a GPU"):
        gpu.pick_device("cuda")
    assert gpu.pick_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu.pick_device("cuda:1") == torch.device("cuda", 1)
    assert gpu.pick_device("auto") == torch.device("cuda", 0)
    with pytest.raises(InputError, match="'cuda:2' does not exist; there are 2"):
        gpu.pick_device("cuda:2")


def test_a_missing_torch_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'dualpath-model\[calibration\]'"):
        gpu.pick_device("auto")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_one_sentence(seconds: float) -> None:
    with pytest.raises(InputError, match="seconds"):
        gpu.measure_gpu(SMALL, kv_dtype=KvDtype.BF16, device="cpu", seconds=seconds, tell=quiet)


def test_a_kv_dtype_that_the_llm_lacks_is_one_sentence() -> None:
    with pytest.raises(InputError, match="fp8_ds_mla"):
        copies.measure_copies(
            SMALL, kv_dtype=KvDtype.FP8_DS_MLA, device=CPU, seconds=1.0, tell=quiet, seed=0
        )


def test_joined_rooms_keep_everything_in_order() -> None:
    def part(name: str) -> Measured:
        sample = Sample(at={}, seconds=1.0)
        series = Series(name=name, unit="", meaning="", samples=[sample])
        figure = Estimate(value=1.0, low=1.0, high=1.0, source=name)
        return Measured(
            [series], figures={name: figure}, settings={name: 1}, tools={name: "1"}, warnings=[name]
        )

    whole = gpu.join([part("one"), part("two")])
    assert [series.name for series in whole.series] == ["one", "two"]
    assert list(whole.figures) == ["one", "two"]
    assert whole.settings == {"one": 1, "two": 1}
    assert whole.tools == {"one": "1", "two": "1"}
    assert whole.warnings == ["one", "two"]


@pytest.mark.slow
def test_our_products_keep_up_with_a_bare_loop() -> None:
    from benchmarks.against_torch import compare

    found = compare(device="cpu", runs=5)
    assert 0.5 < found["gemm_over_torch"] < 2.0
    assert found["gemm_2048_bf16_flop_per_s"] > 0
