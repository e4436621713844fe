"""torch.distributed and NIXL between two processes: what they give, and how they fail."""

from __future__ import annotations

import importlib.util

import psutil
import pytest

from calibration.collectives import MESSAGE_BYTES, ROUNDS, measure_collectives
from calibration.nixl_transfer import measure_nixl
from dualpath_model.errors import InputError


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


def test_two_ranks_yield_every_size_in_every_round() -> None:
    shares: list[float] = []
    found = measure_collectives(
        seconds=1.0, tell=lambda share, what: shares.append(share), backend="gloo"
    )
    messages, latency = found.series
    assert [s.amount for s in messages.samples] == list(MESSAGE_BYTES[1:]) * ROUNDS
    assert [s.at["bytes"] for s in latency.samples] == [MESSAGE_BYTES[0]] * ROUNDS
    assert 1e5 < found.figures["collective_bytes_per_s"].value < 1e12
    assert 1e-7 < found.figures["collective_latency_s"].value < 1.0
    assert {fit.series for fit in found.fits} == {messages.name, latency.name}
    assert found.tools["torch"]
    assert found.settings == {"collective_backend": "gloo"}
    assert "no network" in found.warnings[0]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert not psutil.Process().children()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_measurement_in_one_sentence(rank: int) -> None:
    def kill(share: float, what: str) -> None:
        children = sorted(psutil.Process().children(), key=lambda child: child.pid)
        if share > 0 and len(children) == 2:  # both measure by now
            children[rank].kill()

    with pytest.raises(InputError, match=r"gloo failed .*; see") as error:
        measure_collectives(seconds=5.0, tell=kill, backend="gloo")
    assert "\n" not in str(error.value)
    assert not psutil.Process().children()


def test_ctrl_c_leaves_no_process_behind() -> None:
    def stop(share: float, what: str) -> None:
        if share > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_collectives(seconds=1.0, tell=stop, backend="gloo")
    assert not psutil.Process().children()


def test_a_missing_package_is_one_sentence_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dualpath-model\[calibration\]'"):
        measure_collectives(seconds=1.0, tell=quiet)
    with pytest.raises(InputError, match="pip install nixl"):
        measure_nixl(seconds=1.0, tell=quiet)


def test_nccl_needs_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"two GPUs .*1 GPUs are here; use gloo"):
        measure_collectives(seconds=1.0, tell=quiet, backend="nccl")


@pytest.mark.parametrize("seconds", [0.5, 1e9, float("nan")])
def test_seconds_out_of_bounds_are_one_sentence(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    for measure in (measure_collectives, measure_nixl):
        with pytest.raises(InputError, match="must be from 1 to 3600; 10 are usual"):
            measure(seconds=seconds, tell=quiet)
