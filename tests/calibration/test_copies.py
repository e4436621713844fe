"""Copies on a CPU: layouts of blocks, traffic beside products, and a GPU's link by a stand-in."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from calibration import beside, blocks, copies, device
from calibration.clock import Work
from calibration.rooms import Measured
from dualpath_model.errors import DualPathError, InputError
from dualpath_model.llm import FeedForward, GroupedAttention, KvDtype, Llm

CPU = torch.device("cpu")
LINK = {"host_to_device_bytes_per_s", "device_to_host_bytes_per_s", "both_ways_share"}
LINK |= {"pageable_share"}
VAST = Llm("vast", 2000, 256, 1000, GroupedAttention(8, 8, 128), FeedForward(512))


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


@pytest.mark.parametrize("seed", [0, 1])
def test_both_layouts_of_a_block_give_the_same_bytes(seed: int) -> None:
    held = blocks.Blocks(5, 24, 7, CPU, seed)
    held.check()
    for way in blocks.WAYS:
        for work in held.works("load", way):
            work()
    # Whole or scattered, a block's layers are the ones sent.
    for block, sent in enumerate(held.sent):
        assert torch.equal(held.whole[block], sent)
        for layer, slot in enumerate(held.order[block].tolist()):
            assert torch.equal(held.slots[slot], sent[layer])
    assert len(set(held.order.flatten().tolist())) == 35


def test_a_copy_that_goes_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = blocks.Blocks(3, 8, 2, CPU, 0)
    monkeypatch.setattr(held, "_layers", lambda direction, block: lambda: None)
    with pytest.raises(DualPathError, match="layers"):
        held.check()


def test_every_copy_of_a_pool_arrives_where_it_should() -> None:
    source = device.random_words(10_000, CPU, 3, pinned=False)
    assert torch.equal(source, device.random_words(10_000, CPU, 3, pinned=False))
    destination = torch.zeros_like(source)
    works = device.copies(source, destination, 512)
    assert len(works) == 10_000 // 512
    for work in works:
        work()
    for sent, arrived in zip(
        device.places(source, 512), device.places(destination, 512), strict=True
    ):
        assert torch.equal(sent, arrived)
    device.check_arrived("all", source[:512], destination[:512])


def test_traffic_flows_while_the_block_runs_and_then_stops() -> None:
    with beside.Traffic(lambda: None, 10.0) as traffic:
        assert traffic.arrived_bytes >= 10.0
    after = traffic.arrived_bytes
    assert not traffic._thread.is_alive()
    assert traffic.arrived_bytes == after


def test_an_error_of_the_traffic_is_raised_and_does_not_hang() -> None:
    def broken() -> None:
        raise InputError("no copy")

    with pytest.raises(InputError, match="no copy"), beside.Traffic(broken, 1.0):
        pass


def test_traffic_stops_when_its_user_is_interrupted() -> None:
    traffic = beside.Traffic(lambda: None, 1.0)
    with pytest.raises(KeyboardInterrupt), traffic:
        raise KeyboardInterrupt
    assert not traffic._thread.is_alive()


def test_blocks_that_do_not_fit_are_left_out_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda _: 2.0**27)
    found = copies.measure_copies(
        VAST, kv_dtype=KvDtype.BF16, device=CPU, seconds=0.5, tell=quiet, seed=0
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
    make = device.copies

    def seen(source: torch.Tensor, destination: torch.Tensor, words: int) -> list[Work]:
        pools.extend([source, destination])
        return make(source, destination, words)

    monkeypatch.setattr(beside, "copies", seen)
    copy_once, bytes_each = beside._stream_copy(CPU, 0)
    copy_once()
    assert torch.equal(*pools)
    assert pools[0].nbytes == bytes_each


def test_a_kv_dtype_that_the_llm_lacks_is_one_sentence() -> None:
    with pytest.raises(InputError, match="fp8_ds_mla"):
        copies.measure_copies(
            VAST, kv_dtype=KvDtype.FP8_DS_MLA, device=CPU, seconds=1.0, tell=quiet, seed=0
        )
