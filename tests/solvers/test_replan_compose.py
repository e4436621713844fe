"""Days that are composed of recorded sessions: which sessions start when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualpath_model.errors import InputError
from solvers.replan_compose import Day, Part, half_of, read_day
from tests.conftest import ROOT
from tests.solvers.test_replan import APPENDS, OUTPUTS, mix

SAMPLE = ROOT / "examples" / "traces" / "agentic_sample"


def test_recorded_times_are_kept_and_more_load_only_adds() -> None:
    recorded = replace(mix(1_000, 100, 10, 20), start_s=np.arange(20) ** 1.5)
    day = Day("d", (Part(recorded, 100.0, 30.0, 1.0),))
    once, more = day.workload(), day.workload(2.5)
    assert once.start_s == pytest.approx(np.sort(100.0 + recorded.start_s))
    assert more.session_count == 50
    assert set(once.start_s) <= set(more.start_s)
    assert (np.diff(more.start_s) >= 0).all()


def test_times_that_were_not_recorded_are_drawn_over_the_stretch() -> None:
    day = Day("d", (Part(replace(OUTPUTS, start_s=np.zeros(300)), 50.0, 200.0, 3.0),), seed=4)
    drawn = day.workload().start_s
    assert drawn.min() >= 50.0
    assert drawn.max() <= 250.0
    assert drawn.mean() == pytest.approx(150.0, abs=10.0)
    assert (day.workload().start_s == drawn).all()


def test_half_of_the_sessions_by_what_they_append() -> None:
    both = Day("d", (Part(APPENDS, 0.0, 1.0, 1.0), Part(OUTPUTS, 0.0, 1.0, 1.0))).workload()
    appends, outputs = half_of(both, "append"), half_of(both, "output")
    assert appends.turns == outputs.turns == 300
    assert (appends.miss_tokens == 6_000).all()
    assert (outputs.output_tokens == 1_500).all()


def test_a_day_file_says_which_sessions_start_when(tmp_path: Path) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(
        f"name: made\nparts:\n  - {{trace: {SAMPLE}, begin: 1 h, over: 10 min, copies: 2.5}}\n"
    )
    day = read_day(file)
    workload = day.workload()
    assert workload.session_count == 15
    assert workload.start_s.min() >= 3600
    assert workload.start_s.max() <= 4200
    file.write_text(file.read_text().replace("begin: 1 h", "begin: 0 s"))
    assert 0 <= read_day(file).workload().start_s.max() <= 600
    whole = read_day(SAMPLE, rate_aps=0.1)
    assert whole.parts[0].over_s == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: d\nparts:\n  - {{trace: {0}}}\n", "give `over`"),
        ("name: d\nparts: []\n", "parts"),
        ("name: d\nparts:\n  - {{trace: {0}, over: 1 h, copies: -1}}\n", "copies"),
        ("name: d\nparts:\n  - {{trace: {0}, over: 1 h, longest_prompt: 3}}\n", "give at least"),
        ("name: d\nparts:\n  - {{trace: no/where, over: 1 h}}\n", "no such file"),
    ],
)
def test_bad_day_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(text.format(SAMPLE))
    with pytest.raises(InputError, match=words):
        read_day(file).workload()


def test_a_trace_without_times_needs_a_rate() -> None:
    with pytest.raises(InputError, match="--rate"):
        read_day(SAMPLE)
    with pytest.raises(InputError, match="above 0"):
        read_day(SAMPLE, rate_aps=-1.0)


def test_what_a_day_says_itself_is_not_given_again(tmp_path: Path) -> None:
    """Neither a rate nor copies are taken and then forgotten."""
    file, timed = tmp_path / "day.yaml", tmp_path / "timed.csv"
    file.write_text(f"name: made\nparts:\n  - {{trace: {SAMPLE}, over: 10 min}}\n")
    timed.write_text("session,turn,append,generate,start\na,1,600,50,0\nb,1,600,50,9\n")
    for path, options, words in (
        (file, {"rate_aps": 7.0}, "--rate is 7, but a day file says itself"),
        (file, {"copies": 6.0}, "--copies is 6, but a day file says itself"),
        (file, {"copies": 1.0}, "--copies is 1"),
        (
            timed,
            {"rate_aps": 10.0},
            "--rate is 10 sessions/s, but its times of arrival are recorded",
        ),
    ):
        with pytest.raises(InputError, match=words):
            read_day(path, **options)  # type: ignore[arg-type]
    assert read_day(timed).workload().session_count == 2
    assert read_day(timed, copies=3.0).workload().session_count == 6


@pytest.mark.parametrize("copies", [0.0, -1.0, float("nan"), float("inf"), 1e5])
def test_copies_that_no_day_has_are_refused(copies: float) -> None:
    with pytest.raises(InputError, match="copies is"):
        read_day(SAMPLE, rate_aps=1.0, copies=copies)
