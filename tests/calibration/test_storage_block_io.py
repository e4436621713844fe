"""Queues of threads: which blocks come, what is written, what is counted, and disks that fail."""

import errno
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.block_io import Buffers, Order, Stream, keep_busy, latency
from calibration.files_on_disk import ALIGNMENT, DataFile, aligned_buffer, randomize
from dualpath_model.errors import InputError

MIB = 2**20


@given(st.lists(st.floats(1e-7, 10.0), min_size=1, max_size=300))
def test_percentiles_are_latencies_that_were_measured(latencies: list[float]) -> None:
    found = latency(latencies)
    values = [found.p50, found.p90, found.p99, found.p999, found.most]
    assert values == sorted(values)
    assert set(values) <= set(latencies)
    assert found.most == max(latencies)
    for value, share in zip(values, (0.5, 0.9, 0.99, 0.999), strict=False):
        assert sum(each <= value for each in latencies) >= share * len(latencies) * (1 - 1e-9)
        assert sum(each < value for each in latencies) < share * len(latencies) * (1 + 1e-9)


def test_a_read_finds_what_was_written_where_it_was_written(tmp_path: Path) -> None:
    with DataFile(tmp_path, MIB) as file:
        data = aligned_buffer(64 * 1024)
        randomize(data, np.random.default_rng(5))
        file.write(data, 128 * 1024)
        back = aligned_buffer(64 * 1024)
        file.read(back, 128 * 1024)
        assert back == data


def test_test_data_repeats_no_block_and_cannot_be_compressed(tmp_path: Path) -> None:
    import zlib

    rng = np.random.default_rng(1)
    with DataFile(tmp_path, 4 * MIB) as file:
        file.fill(rng, step_bytes=MIB, least_bytes=0, told=lambda _: True)
        stream = Stream.random(file, MIB, 2, rng, writes=True)
        before = whole(file)
        keep_busy([stream], 0.05, Buffers(rng))
        after = whole(file)
    for data in (before, after):
        blocks = [data[at : at + ALIGNMENT] for at in range(0, len(data), ALIGNMENT)]
        assert len(set(blocks)) == len(blocks)
        assert len(zlib.compress(blocks[0] + blocks[-1])) > 2 * ALIGNMENT
    changed = sum(before[at] != after[at] for at in range(0, len(before), ALIGNMENT))
    assert changed > 0, "writes have new data"


def whole(file: DataFile) -> bytes:
    buffer = aligned_buffer(file.size_bytes)
    file.read(buffer, 0)
    return bytes(buffer)


@given(st.integers(1, 300), st.integers(0, 3), st.booleans())
def test_no_block_comes_again_before_all_have_come(blocks: int, seed: int, shuffled: bool) -> None:
    order = Order(blocks, np.random.default_rng(seed) if shuffled else None)
    for _ in range(2):
        taken = [order.take() for _ in range(blocks)]
        assert sorted(taken) == list(range(blocks))
        assert shuffled or taken == sorted(taken)


def test_threads_share_an_order_without_taking_a_block_twice() -> None:
    order = Order(4000, np.random.default_rng(0))
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda: taken.extend([order.take() for _ in range(500)]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(4000))


def test_no_two_writes_have_the_same_page(tmp_path: Path) -> None:
    seen: list[bytes] = []

    class Watched(DataFile):
        def write(self, data: memoryview, offset: int) -> None:
            seen.extend(bytes(data[at : at + ALIGNMENT]) for at in range(0, len(data), ALIGNMENT))

    rng = np.random.default_rng(2)
    with Watched(tmp_path, MIB) as file:
        stream = Stream.random(file, 64 * 1024, 3, rng, writes=True)
        keep_busy([stream], 0.02, Buffers(rng))
    assert len(seen) >= 3 * 16
    assert len(set(seen)) == len(seen)


def test_bytes_counted_are_bytes_moved(tmp_path: Path) -> None:
    counted: Counter[int] = Counter()

    def count(thread: int, moved_bytes: int) -> None:
        counted[thread] += moved_bytes

    rng = np.random.default_rng(3)
    with DataFile(tmp_path, 2 * MIB) as file:
        file.fill(rng, step_bytes=MIB, least_bytes=0, told=lambda _: True)
        stream = Stream.random(file, 64 * 1024, 4, rng)
        (busy,) = keep_busy([stream], 0.1, Buffers(rng), count=count)
    assert busy.moved_bytes == sum(counted.values()) == len(busy.latencies_s) * 64 * 1024
    assert len(counted) == 4
    # Four threads cannot have been busy for longer than four times the time that went by.
    assert sum(busy.latencies_s) <= 4 * busy.seconds
    assert busy.seconds >= 0.1


def test_a_disk_that_fails_in_a_thread_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DataFile(tmp_path, MIB) as file:
        stream = Stream.random(file, 64 * 1024, 8, np.random.default_rng(0))

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(InputError, match=r"failed \(Input/output error\); check that disk"):
            keep_busy([stream], 5.0, Buffers(np.random.default_rng(0)))
    assert threading.active_count() == 1 or all(
        thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()
    )
