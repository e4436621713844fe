"""The GPU room on a CPU: what it finds, what it keeps to, and what it says where it cannot."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
import torch

from calibration import gpu, products, rooms
from calibration.clock import Clock, Cover, Point, in_rounds
from calibration.rooms import Measured, join
from dualpath_model.errors import InputError
from dualpath_model.llm import FeedForward, GroupedAttention, KvDtype, Llm
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
    block = rooms.BLOCK_TOKENS * SMALL.kv_bytes_per_token(KvDtype.BF16)
    assert all(sample.amount == block for sample in series["block_copy"].samples)


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


def test_joined_rooms_keep_everything_in_order() -> None:
    def part(name: str) -> Measured:
        sample = Sample(at={}, seconds=1.0)
        series = Series(name=name, unit="", meaning="", samples=[sample])
        figure = Estimate(value=1.0, low=1.0, high=1.0, source=name)
        return Measured(
            [series], figures={name: figure}, settings={name: 1}, tools={name: "1"}, warnings=[name]
        )

    whole = join([part("one"), part("two")])
    assert [series.name for series in whole.series] == ["one", "two"]
    assert list(whole.figures) == ["one", "two"]
    assert whole.settings == {"one": 1, "two": 1}
    assert whole.tools == {"one": "1", "two": "1"}
    assert whole.warnings == ["one", "two"]


def test_of_equal_names_the_first_figure_counts_and_the_last_setting() -> None:
    def part(value: float) -> Measured:
        figures = {"rate": Estimate(value=value, low=value, high=value)}
        return Measured([], figures=figures, settings={"size": value}, tools={"torch": str(value)})

    parts = [part(1.0), part(2.0)]
    whole = join(parts)
    assert whole.figures["rate"].value == 1.0
    assert whole.settings == {"size": 2.0}
    assert whole.tools == {"torch": "2.0"}
    assert parts[0].settings == {"size": 1.0}  # theirs are left as they were


def test_what_covers_launching_grows_with_it_up_to_a_limit() -> None:
    cover = Cover(CPU)
    assert not cover.lengthen(1e-4)  # covered already
    assert cover.lengthen(1e-3)
    assert not cover.lengthen(1e-3)
    assert cover.lengthen(1.0)  # as far as the limit
    assert not cover.lengthen(1.0)
    cover.launch()
