"""``dualpath reproduce``: what it returns, with what progress, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app import reproduce as module
from app.reproduce import run_reproduction
from app.reproduction_view import (
    amount,
    figures,
    number,
    show_reproduction,
    standing,
    summary,
    write_reproduction,
)
from dualpath_model.errors import InputError
from solvers.reproduction import figures as figures_of
from solvers.reproduction.effects import OUTCOMES, VARIANTS, Effect
from solvers.reproduction.figures import paper_figures
from solvers.reproduction.lab import Assumptions, Lab
from solvers.simulator.constants import fitted
from tests.app.conftest import EVIL
from tests.app.test_cli import dualpath, json_of
from tests.app.test_page import Seen

ROW = {"figure", "quantity", "paper", "ours", "error", "fitted"}


def quiet(done: float, text: str) -> None: ...


# ---- running -------------------------------------------------------------------------------------


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three experiments that take no time; returns the names of those that have begun."""
    begun: list[str] = []

    def experiment(name: str, ids: tuple[str, ...]) -> Callable[[Lab], Iterator[Any]]:
        def run(lab: Lab) -> Iterator[tuple[str, float, str]]:
            begun.append(name)
            for figure in ids:
                lab.said(f"{name}: {figure}")
                yield figure, 1.1 * paper_figures()[figure].paper, name

        return run

    made = {
        name: experiment(name, ids)
        for name, ids in {
            "offline": ("660b-speedup", "660b-oracle"),
            "scale": ("scale-2p4d", "scheduler-cores"),
            "capacity": ("capacity-660b", "capacity-27b", "capacity-mean"),
        }.items()
    }
    monkeypatch.setattr(figures_of, "EXPERIMENTS", made)
    monkeypatch.setattr(module, "EXPERIMENTS", made)
    return begun


def ids(found: dict[str, Any]) -> list[str]:
    return [row["id"] for row in found["rows"]]


@pytest.mark.usefixtures("stubs")
def test_all_experiments_or_those_named() -> None:
    found = run_reproduction((), False, False, quiet)
    assert len(found["rows"]) == 7
    for row in found["rows"]:
        assert set(row) >= ROW
        assert row["ours"] == pytest.approx(1.1 * row["paper"])
        assert row["error"] == pytest.approx(0.1)
    named = run_reproduction(("scale",), False, False, quiet)
    assert ids(named) == ["scale-2p4d", "scheduler-cores"]
    assert [row["fitted"] for row in named["rows"]] == [True, False]
    assert not found["interrupted"]
    assert found["effects"] == found["curves"] == found["batches"] == []


@pytest.mark.usefixtures("stubs")
def test_it_says_with_what_constants_and_assumptions() -> None:
    found = run_reproduction(("scale",), False, False, quiet)
    assert found["constants"] == asdict(fitted())
    assert found["assumptions"] == {
        name: value for name, value in asdict(Assumptions()).items() if name != "constants"
    }
    json.dumps(found)  # nothing in it that JSON does not know


@pytest.mark.usefixtures("stubs")
def test_the_share_that_is_done_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_batch", lambda lab, agents: lab.said("batch"))
    monkeypatch.setattr(module, "_point", lambda lab, arm, rate: lab.said("point"))
    nothing = dict.fromkeys(OUTCOMES, 0.0)
    made = [Effect(meaning, nothing, nothing) for meaning in ("as assumed", *VARIANTS)]
    monkeypatch.setattr(module.effects_of, "effects", lambda assumptions: iter(made))
    told: list[tuple[float, str]] = []
    run_reproduction((), True, True, lambda done, text: told.append((done, text)))
    shares = [done for done, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.5 < shares[-1] <= 1.0
    assert [text for _, text in told[:2]] == ["offline: 660b-speedup", "offline: 660b-oracle"]
    assert len(told) == 7 + len(module.AGENTS) + 2 * len(module.RATES) + len(made)


def test_ctrl_c_keeps_the_experiments_that_are_finished(stubs: list[str]) -> None:
    def say(done: float, text: str) -> None:
        if text.startswith("scale"):
            raise KeyboardInterrupt

    found = run_reproduction((), True, True, say)
    assert found["interrupted"]
    assert ids(found)[:2] == ["660b-speedup", "660b-oracle"]
    assert stubs == ["offline", "scale"]
    assert found["effects"] == found["curves"] == []


@pytest.mark.usefixtures("stubs")
def test_ctrl_c_keeps_the_figures_that_are_finished() -> None:
    """Those of half an experiment too: a capacity takes minutes."""

    def say(done: float, text: str) -> None:
        if text == "capacity: capacity-27b":
            raise KeyboardInterrupt

    found = run_reproduction((), False, False, say)
    assert found["interrupted"]
    assert ids(found)[-1] == "capacity-660b"


def test_an_unknown_experiment_is_refused(stubs: list[str]) -> None:
    with pytest.raises(InputError, match="experiment 'scael' is unknown; the nearest are scale"):
        run_reproduction(("scael",), False, False, quiet)
    assert stubs == []


def test_every_name_is_looked_at_before_anything_runs(stubs: list[str]) -> None:
    with pytest.raises(InputError, match="experiment 'scael' is unknown"):
        run_reproduction(("offline", "scael"), False, False, quiet)
    assert stubs == []


@pytest.mark.usefixtures("stubs")
def test_a_name_that_is_given_twice_counts_once() -> None:
    found = run_reproduction(("scale", "scale"), False, False, quiet)
    assert ids(found) == ["scale-2p4d", "scheduler-cores"]


def test_what_the_report_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each arm's batch, and the parts of TTFT, from runs made up."""
    seconds = {"basic": 9.0, "layerwise": 8.0, "dual path": 7.0, "dualpath": 6.0, "oracle": 5.0}
    parts = {"scheduling_s": 1.0, "allocating_s": 2.0, "reading_s": 3.0, "prefill_s": 4.0}

    class Made(Lab):
        def offline(self, setup: Any, agents: int, arm: Any = "dualpath", seed: int = 0) -> Any:
            return SimpleNamespace(jct_s=seconds[arm] * agents)

        def online(self, setup: Any, rate_aps: float, arm: Any = "dualpath", **how: Any) -> Any:
            times = {name: {"mean": value} for name, value in parts.items()}
            return SimpleNamespace(
                ttft_s={"mean": 10.0, "p99": 20.0},
                tpot_s={"mean": 0.04},
                working_set_bytes=1e11 * rate_aps,
                **times,
            )

    monkeypatch.setattr(module, "Lab", Made)
    monkeypatch.setattr(figures_of, "EXPERIMENTS", {})
    monkeypatch.setattr(module, "EXPERIMENTS", {})
    found = run_reproduction((), False, True, quiet)
    assert {batch["agents"]: batch["jct_s"] for batch in found["batches"]} == {
        agents: {arm: value * agents for arm, value in seconds.items()} for agents in module.AGENTS
    }
    assert {(point["arm"], point["rate_aps"]) for point in found["curves"]} == {
        (arm, rate) for arm in ("basic", "dualpath") for rate in module.RATES
    }
    for point in found["curves"]:
        assert point["parts_s"] == parts
        assert sum(point["parts_s"].values()) == point["ttft_s"]["mean"]
    assert len(figures(found)) == 3
    bars = {bar.name: list(bar.y) for bar in figures(found)[0].data}
    assert bars["Basic"] == [9.0 * agents for agents in module.AGENTS]


# ---- showing -------------------------------------------------------------------------------------


def row(
    ours: float, paper: float = 1.0, kind: str = "ratio", fitted: bool = False, text: str = "a"
) -> dict[str, Any]:
    return {
        "id": text,
        "figure": f"figure {text}",
        "quantity": f"quantity {text}",
        "paper": paper,
        "ours": ours,
        "error": ours / paper - 1,
        "kind": kind,
        "fitted": fitted,
        "note": f"note {text}",
    }


@pytest.mark.parametrize(
    ("case", "word"),
    [
        (row(1.09), "within 10 %"),
        (row(0.91), "within 10 %"),
        (row(1.11), "off"),
        (row(0.89), "off"),
        (row(329.0, 300.0, "absolute"), "within 10 %"),
        (row(400.0, 300.0, "absolute"), "off"),
        (row(0.01, 10.0, "bound"), "holds"),
        (row(10.0, 10.0, "bound"), "holds"),
        (row(10.1, 10.0, "bound"), "broken"),
        (row(1.0, fitted=True), "fitted"),
        (row(2.0, fitted=True), "fitted"),
    ],
)
def test_how_a_figure_came_out(case: dict[str, Any], word: str) -> None:
    assert standing(case) == word


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (69e9, "69.0 GB"),
        (1e8, "0.1 GB"),
        (3167.4, "3,167"),
        (48_000.0, "48,000"),
        (100.0, "100"),
        (99.94, "99.94"),
        (1.8703, "1.87"),
        (0.039, "0.039"),
        (0.0055, "0.0055"),
        (0.000123, "0.00012"),
        (0.0, "0"),
    ],
)
def test_numbers_as_people_read_them(value: float, text: str) -> None:
    assert number(value) == text


def test_the_summary_counts_predictions_only() -> None:
    rows = [
        row(1.05),
        row(1.5),
        row(1.0, fitted=True),
        row(5.0, 10.0, "bound"),
        row(99.0, 100.0, "absolute"),
    ]
    assert summary(rows) == (
        "2 of 3 predicted figures are within 10 % of the paper's, 1 of 2 ratios"
    )


def made_up(text: str = "a") -> dict[str, Any]:
    """As ``run_reproduction`` returns it, with every kind of row."""
    outcomes = dict.fromkeys(OUTCOMES, 2.0)
    return {
        "constants": asdict(fitted()),
        "assumptions": {"kv_dtype": "fp8", "snic": None, text: text},
        "rows": [
            row(1.05, text=text),
            row(1.5, text=f"{text}1"),
            row(3100.0, 3167.0, "absolute", fitted=True, text=f"{text}2"),
            row(0.3, 10.0, "bound", text=f"{text}3"),
            row(11.0, 10.0, "bound", text=f"{text}4"),
        ],
        "effects": [
            {"meaning": "as assumed", "outcomes": outcomes, "change": outcomes},
            {
                "meaning": f"other {text}",
                "outcomes": outcomes,
                "change": dict.fromkeys(OUTCOMES, -0.125),
            },
        ],
        "curves": [],
        "batches": [],
        "interrupted": False,
    }


def seen(found: dict[str, Any], tmp_path: Path) -> Seen:
    path = tmp_path / "report.html"
    write_reproduction(found, path)
    return Seen(path.read_text())


def test_the_report_has_every_figure(tmp_path: Path) -> None:
    found = made_up()
    shown = seen(found, tmp_path)
    for entry in found["rows"]:
        for cell in (
            entry["figure"],
            entry["quantity"],
            f"{standing(entry)}; {entry['note']}",
            number(entry["paper"]),
            number(entry["ours"]),
        ):
            assert cell in shown.text
    assert "+50.0%" in shown.text
    assert "+10.0%" not in shown.text  # a bound has no error
    assert shown.text.count("-12.5%") == len(OUTCOMES)
    assert any(summary(found["rows"]) in text for text in shown.text)
    marked = [a.get("class") for tag, a in shown.tags if tag == "tr"]
    assert marked.count("full") == 2  # the one that is off, the bound that is broken
    assert not [a for tag, a in shown.tags if tag == "script" and "src" in a]


def test_the_report_escapes_text(tmp_path: Path) -> None:
    plain, evil = (seen(made_up(text), tmp_path) for text in ("a", EVIL))
    assert evil.count("script") == plain.count("script")
    for cell in (f"figure {EVIL}", f"quantity {EVIL}", f"other {EVIL}", EVIL):
        assert cell in evil.text


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path) -> None:
    nothing = {**made_up(), "rows": [], "effects": [], "interrupted": True}
    shown = seen(nothing, tmp_path)
    assert shown.count("table") == 2
    assert any("0 of 0 predicted" in text for text in shown.text)


def test_the_picture_of_errors_has_every_figure_but_bounds() -> None:
    (drawn,) = figures(made_up())
    points = {name: x for trace in drawn.data for name, x in zip(trace.y, trace.x, strict=True)}
    assert points == pytest.approx(
        {
            "figure a: quantity a": 0.05,
            "figure a1: quantity a1": 0.5,
            "figure a2: quantity a2": 3100 / 3167 - 1,
        }
    )


def test_numbers_stand_away_from_the_line_of_no_error_and_have_room() -> None:
    (drawn,) = figures({**made_up(), "rows": [row(0.5), row(1.7, text="b"), row(1.0, text="c")]})
    sides = {
        x: side
        for trace in drawn.data
        for x, side in zip(trace.x, trace.textposition or (), strict=True)
    }
    assert {x < 0: side for x, side in sides.items()} == {
        True: "middle left",
        False: "middle right",
    }
    low, high = drawn.layout.xaxis.range
    assert low < -0.5 - 0.3
    assert high > 0.7 + 0.3


def test_long_names_are_two_short_lines() -> None:
    long = row(1.2) | {"figure": "append length scaled, DS 660B, 1024 agents"}
    long |= {"quantity": 'speed-up over Basic, least ("about")'}
    (drawn,) = figures({**made_up(EVIL), "rows": [long, row(1.2, text=EVIL)]})
    labels = list(drawn.layout.yaxis.ticktext)
    assert labels[-1] == "append length scaled: speed-up<br>over Basic, least"
    assert "<script" not in labels[0]


def test_a_share_is_in_per_cent() -> None:
    share = row(0.11487) | {"quantity": "JCT less than Basic's: + layerwise"}
    assert amount(share, "ours") == "11.5 %"
    assert amount(row(0.11487), "ours") == number(0.11487)
    assert amount(row(0.11487), "ours", 2) == "0.11"


def test_both_policies_are_on_one_scale() -> None:
    parts = dict.fromkeys(("scheduling_s", "allocating_s", "reading_s", "prefill_s"), 1.0)
    curves = [
        {"arm": arm, "rate_aps": 0.1, "ttft_s": {"mean": 4.0, "p99": 5.0}, "parts_s": parts}
        for arm in ("basic", "dualpath")
    ]
    drawn = figures({**made_up(), "curves": curves})[-1]
    assert drawn.layout.yaxis2.matches == "y"


def test_the_terminal_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found = made_up()
    show_reproduction(found)
    shown = capsys.readouterr().out
    for entry in found["rows"]:
        assert entry["quantity"] in shown
        assert standing(entry) in shown
    assert summary(found["rows"]) in " ".join(shown.split())
    assert "-12.5%" in shown


@pytest.mark.parametrize("text", ["[at 64K] agents", "in [/] brackets"])
def test_the_terminal_shows_brackets_as_they_are(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made_up()
    found["rows"][0]["note"] = text
    show_reproduction(found)
    assert text in capsys.readouterr().out


# ---- as a user calls it --------------------------------------------------------------------------


@pytest.mark.slow
def test_json_has_the_stable_keys() -> None:
    found = json_of("reproduce", "--only", "working-set")
    assert set(found) >= {"constants", "rows"}
    assert found["constants"] == pytest.approx(asdict(fitted()))
    low, high = found["rows"]
    for entry in (low, high):
        assert set(entry) >= ROW
        assert entry["error"] == pytest.approx(entry["ours"] / entry["paper"] - 1)
        assert entry["fitted"] is False
    assert (low["paper"], high["paper"]) == (69e9, 681e9)
    # more than in proportion to the rate, as in the paper: agents live longer
    assert high["ours"] / low["ours"] > 0.45 / 0.1


@pytest.mark.slow
def test_a_report_is_written(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    done = dualpath("reproduce", "--only", "working-set", "--json", path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(path.read_text())["rows"]) == 2
    assert "at 0.1 APS" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "working-sets"), "experiment 'working-sets' is unknown; the nearest are"),
        (("--html", "/no/such/folder/report.html"), "does not exist"),
        (("--fit", "/no/such/folder/constants.yaml"), "does not exist"),
    ],
)
def test_bad_options_are_refused(words: tuple[str, ...], said: str) -> None:
    done = dualpath("reproduce", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
