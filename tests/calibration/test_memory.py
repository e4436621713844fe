"""Host memory: what is counted, how large arrays are, and what is said where there is no room."""

import shutil
import statistics
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import memory
from calibration.rooms import Measured
from dualpath_model.errors import InputError

MIB = 2**20


@pytest.fixture(scope="module")
def measured() -> Measured:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_memory_bytes", lambda: 256 * MIB)
        return memory.measure_memory(seconds=0.5, tell=lambda share, what: None)


def test_memory_is_counted_as_stream_counts(measured: Measured) -> None:
    (series,) = measured.series
    for sample in series.samples:
        size = sample.at["array_bytes"]
        assert isinstance(size, int)
        assert sample.amount == 2 * size
    assert max(sample.amount for sample in series.samples) == 2 * 64 * MIB


def test_the_figure_is_of_the_largest_array_only(measured: Measured) -> None:
    (found,) = measured.fits
    largest = measured.settings["array_bytes"]
    used = {measured.series[0].samples[index].at["array_bytes"] for index in found.indices}
    assert used == {largest}
    assert measured.figures["dram_bytes_per_s"].source == found.name
    assert 1e8 < measured.figures["dram_bytes_per_s"].value < 1e13


def test_sizes_are_measured_in_turn(measured: Measured) -> None:
    sizes = [sample.at["array_bytes"] for sample in measured.series[0].samples]
    one_round = sorted(set(sizes), key=sizes.index)
    assert len(sizes) >= 3 * len(one_round)
    assert sizes == one_round * (len(sizes) // len(one_round))


def test_little_free_memory_means_small_arrays_and_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 64 * MIB)
    monkeypatch.setattr(memory, "last_level_cache_bytes", lambda: 32 * MIB)
    found = memory.measure_memory(seconds=0.1, tell=lambda share, what: None)
    assert found.settings["array_bytes"] == 16 * MIB
    assert any("free some memory" in warning for warning in found.warnings)


@given(st.integers(0, 2**44), st.integers(0, 2**32))
def test_arrays_leave_half_of_the_free_memory(free: int, cache: int) -> None:
    try:
        size = memory.array_bytes(free, cache)
    except InputError as error:
        assert free < 64 * MIB
        assert "is needed to measure memory" in str(error)
    else:
        assert size >= 16 * MIB
        assert 2 * size <= free / 2
        assert size % MIB == 0
        assert size == max(512 * MIB, 4 * cache) // MIB * MIB or size > free / 4 - MIB


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_time_is_a_sentence(seconds: float) -> None:
    with pytest.raises(InputError, match="for memory must be more than 0"):
        memory.measure_memory(seconds=seconds, tell=lambda share, what: None)


@given(st.integers(1, 7), st.integers(1, 64), st.integers(1, 64))
def test_threads_copy_all_of_a_size_and_no_more(threads: int, pages: int, part: int) -> None:
    whole = pages * 4096 * threads
    copy = memory.Copy(whole, threads)
    assert not copy.copied()
    size = min(whole, part * 4096)
    copy.run(size, 0.0)
    assert copy.bytes_copied() == size
    copy.run(whole, 0.0)
    assert copy.copied()


def test_the_time_is_kept_and_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 128 * MIB)
    before = threading.active_count()
    shares: list[float] = []
    begun = time.perf_counter()
    memory.measure_memory(seconds=0.5, tell=lambda share, what: shares.append(share))
    assert time.perf_counter() - begun < 30.0  # asked for 0.5
    assert threading.active_count() == before
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_ctrl_c_that_tell_raises_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 64 * MIB)

    def tell(share: float, what: str) -> None:
        if "round 2" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.measure_memory(seconds=0.5, tell=tell)


def test_free_memory_is_within_the_control_group(tmp_path: Path) -> None:
    unlimited = memory.free_memory_bytes(tmp_path)
    assert unlimited > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert memory.free_memory_bytes(tmp_path) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory_bytes(tmp_path) > 600_000


def test_caches_that_cores_share_count_once(tmp_path: Path) -> None:
    def cache(cpu: int, index: int, level: int, shared: str, size: str, kind: str) -> None:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in {
            "level": str(level),
            "shared_cpu_list": shared,
            "size": size,
            "type": kind,
        }.items():
            (folder / name).write_text(text + "\n")

    for cpu in range(4):
        cache(cpu, 0, 1, str(cpu), "32K", "Data")
        cache(cpu, 1, 1, str(cpu), "32K", "Instruction")
        cache(cpu, 2, 3, "0-1" if cpu < 2 else "2-3", "16384K", "Unified")
    assert memory.last_level_cache_bytes(tmp_path) == 2 * 16384 * 1024
    assert memory.last_level_cache_bytes(tmp_path / "none") == 0


def test_the_comparison_with_stream_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import against_stream

    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="apt-get install gcc"):
        against_stream.compare()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_comparison_with_stream_alternates(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import against_stream

    monkeypatch.setattr(memory, "free_memory_bytes", lambda: 512 * MIB)
    found = against_stream.compare(runs=2)
    assert len(found["ours_bytes_per_s"]) == len(found["stream_bytes_per_s"]) == 2
    # Beside other tests the ratio is noise; it is for `python -m benchmarks.against_stream`.
    assert found["ratio_of_medians"] == pytest.approx(
        statistics.median(found["ours_bytes_per_s"])
        / statistics.median(found["stream_bytes_per_s"])
    )
    pairs = zip(found["ours_bytes_per_s"], found["stream_bytes_per_s"], strict=True)
    assert found["copy_over_stream"] == pytest.approx(statistics.median(a / b for a, b in pairs))
    assert min(found["ours_bytes_per_s"] + found["stream_bytes_per_s"]) > 1e8
