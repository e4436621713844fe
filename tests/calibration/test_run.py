"""A calibration as a whole: what is refused before anything is measured, and what it warns of."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from calibration import run
from calibration.run import Wish, calibrate, check
from dualpath_model.catalog.llms import load_llm
from dualpath_model.errors import InputError
from dualpath_model.profile import PartName


def wish(folder: Path, *parts: PartName, seconds: float = 2.0, space_bytes: int = 2**27) -> Wish:
    return Wish(
        llm=load_llm("qwen2.5-0.5b"),
        folder=folder,
        parts=parts,
        seconds=seconds,
        space_bytes=space_bytes,
    )


def never(share: float, text: str) -> None:
    raise AssertionError("something was measured")


def test_too_little_space_is_refused_before_memory_is_measured(tmp_path: Path) -> None:
    asked = wish(tmp_path, PartName.MEMORY, PartName.STORAGE, seconds=12.0, space_bytes=10**6)
    with pytest.raises(InputError, match=r"space 1 MB holds 1 blocks .* allow at least"):
        calibrate(asked, never)


def test_parts_share_the_time(tmp_path: Path) -> None:
    asked = wish(tmp_path, *PartName, seconds=100.0)
    check(wish(tmp_path, PartName.MEMORY))
    assert sum(asked.seconds_of(part) for part in PartName) == pytest.approx(100.0)


@pytest.mark.parametrize(("busy", "warned"), [(3.0, False), (40.0, True)])
def test_a_busy_machine_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, warned: bool
) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy)
    profile = calibrate(wish(tmp_path, PartName.MEMORY), lambda share, text: None)
    warnings = profile.parts[PartName.MEMORY].warnings
    assert any("other programs had 40% of the processor" in text for text in warnings) is warned


def test_the_load_beside_the_network_is_small_whatever_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written anew in each round: 16 GiB would take the calibration's time many times over."""
    sizes: list[int] = []

    def measured(**options: object) -> run.Measured:
        load = options["storage_load"]
        assert callable(load)
        sizes.append(load().size_bytes)
        return run.Measured([])

    monkeypatch.setattr("calibration.network.measure_network", measured)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = wish(tmp_path, PartName.STORAGE, PartName.NETWORK, space_bytes=2**30)
    run._network(asked, lambda share, text: None)
    assert sizes[0] <= 2**27
