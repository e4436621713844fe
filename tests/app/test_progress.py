"""Progress where nobody looks at a terminal: lines, the first of them before anything is told."""

from __future__ import annotations

import threading

import pytest

from app import progress


def test_long_starting_is_explained_and_short_work_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.bar("simulating", "a policy is compiled"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_LINE_S", 0.0)
    with progress.bar("simulating", "a policy is compiled"):
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join()
    assert capsys.readouterr().err == "simulating: a policy is compiled\n"


def test_work_that_tells_before_has_its_own_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_S", 0.0)
    with progress.bar("simulating") as tell:
        tell(0.5, "half of it")
    said = capsys.readouterr().err
    assert said.startswith("simulating: 50%, about ")
    assert said.endswith("s left; half of it\n")
