"""``dualpath replan`` as a user calls it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from app import cli
from app.replan import (
    best_of_ratios,
    change_rows,
    day_page,
    day_words,
    decision_facts,
    decision_page,
    seconds,
    show_day,
)
from dualpath_model.errors import InputError
from solvers.replan import decide
from solvers.replan_answer import Decision, Rule
from solvers.replan_day import DayResult, Driven, Step, Sustained
from tests.app.test_cli import dualpath, json_of, refused
from tests.conftest import ROOT
from tests.solvers.test_replan import KEYS, OUTPUTS, cluster_of

SAMPLE = ROOT / "examples" / "traces" / "agentic_sample"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster with far too many prefill nodes for what the window generates."""
    path = tmp_path_factory.mktemp("replan") / "cluster.yaml"
    nodes = {"node": "paper-hopper"}
    fields = {
        "name": "A <small> cluster",
        "llm": "ds-27b",
        "cluster": {"prefill": {**nodes, "count": 5}, "decode": {**nodes, "count": 1}},
        "workload": {"moments": {"prompt_tokens": 9000, "miss_tokens": 5000, "output_tokens": 50}},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred recorded turns that append little and generate much, ten a second."""
    path = tmp_path_factory.mktemp("window") / "recent.csv"
    rows = ["session,turn,append,generate,start"]
    rows += [f"s{i},1,600,1500,{i / 10}" for i in range(200)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_json_is_the_decision(cluster: Path, window: Path) -> None:
    data = json_of("replan", cluster, "--window", window, "--waiting", "5000")
    assert set(data) == KEYS
    assert data["action"] == "change"
    assert data["window"]["offered_requests_per_s"] == pytest.approx(10.0)
    assert data["window"]["forecast_requests_per_s"] == pytest.approx(10.0)
    assert data["decode_nodes_after"] > data["decode_nodes_before"]
    assert data["turned"][-1]["name"] == "p4"
    capacity = data["capacity_requests_per_s"]
    assert capacity["during"] <= capacity["before"] < capacity["after"]
    assert data["gain"]["net_requests"] > 0
    assert data["parameters_after"]["beta_tokens"] > 0


def test_the_terminal_says_what_to_do_and_why(cluster: Path, window: Path, tmp_path: Path) -> None:
    page = tmp_path / "decision.html"
    options = ("--waiting", "5000", "--switch-time", "20 s", "--html", page)
    done = dualpath("replan", cluster, "--window", window, *options)
    assert done.returncode == 0, done.stderr
    assert "A <small> cluster" in done.stdout
    assert "change 5P1D to" in done.stdout
    assert "until the last of" in done.stdout
    assert "20 s until it serves again" in done.stdout
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "A &lt;small&gt; cluster" in text
    assert "<small>" not in text


def inside(*words: str | Path) -> Result:
    """Run the command in this process, which starts sooner."""
    return CliRunner().invoke(cli.app, ["replan", *map(str, words)])


def test_hysteresis_and_cost_are_options(cluster: Path, window: Path) -> None:
    call = (cluster, "--window", window, "--waiting", "5000", "--json", "-")
    for options, words in (
        (("--since", "5 min"), "dwell"),
        (("--min-gain", "99"), "least gain"),
        (("--switch-time", "3 h"), "would cost"),
        (("--min-turns", "201"), "fewer than"),
    ):
        data = json.loads(inside(*call, *options).stdout)
        assert data["action"] != "change"
        assert words in data["reasons"][0]
    changed = json.loads(inside(*call, "--since", "5 min", "--dwell", "0").stdout)
    assert changed["action"] == "change"


def test_a_bad_call_ends_with_2_and_one_sentence(cluster: Path) -> None:
    assert "no times of arrival" in refused("replan", cluster, "--window", SAMPLE)


def test_bad_input_is_named(cluster: Path, window: Path, tmp_path: Path) -> None:
    empty, heads = tmp_path / "empty.csv", tmp_path / "heads.csv"
    empty.write_text("")
    heads.write_text("session,turn,append,generate\n")
    call = (cluster, "--window", window)
    for words, said in (
        ((cluster,), "either --window TRACE or --day TRACE"),
        ((*call, "--day", window), "one of the two"),
        ((cluster, "--day", SAMPLE), "give --rate"),
        ((*call, "--rate", "-1"), "--rate"),
        ((*call, "--horizon", "1"), "--horizon"),
        ((*call, "--switch-time", "-5 s"), "--switch-time"),
        ((*call, "--min-gain", "-1"), "min gain"),
        ((*call, "--waiting", "-1"), "waiting"),
        ((*call, "--margin", "0"), "margin"),
        ((*call, "--json", window), "is the input"),
        ((cluster, "--window", empty), "empty"),
        ((cluster, "--window", heads), "no request"),
        ((cluster, "--window", tmp_path / "no.csv"), "no such file"),
        (("ds-27b-1p1d", "--window", window), "at least 3 nodes"),
    ):
        ended = inside(*words)
        assert isinstance(ended.exception, InputError), words
        assert said in str(ended.exception)
        assert ended.stdout == ""


def test_no_option_is_taken_and_forgotten(cluster: Path, window: Path, tmp_path: Path) -> None:
    file = tmp_path / "day.yaml"
    file.write_text(f"name: made\nparts:\n  - {{trace: {SAMPLE}, over: 10 min}}\n")
    a_window, a_day = (cluster, "--window", window), (cluster, "--day", window)
    for words, said in (
        ((*a_window, "--every", "15min"), "--every is an option of --day"),
        ((*a_window, "--copies", "1"), "--copies is an option of --day"),
        ((*a_window, "--load", "1"), "--load is an option of --day"),
        ((*a_window, "--search"), "--search is an option of --day"),
        ((*a_window, "--least", "0.9"), "--least is an option of --day"),
        ((*a_day, "--waiting", "0"), "--waiting is an option of --window"),
        ((*a_day, "--since", "1h"), "--since is an option of --window"),
        ((*a_day, "--rate", "10"), "times of arrival are recorded"),
        ((cluster, "--day", file, "--rate", "7"), "a day file says itself"),
        ((cluster, "--day", file, "--copies", "6"), "a day file says itself"),
        ((*a_day, "--copies", "nan"), "copies is nan"),
    ):
        ended = inside(*words)
        assert isinstance(ended.exception, InputError), words
        assert said in str(ended.exception)


def test_durations_are_read_with_units_and_zero_without() -> None:
    assert seconds("--dwell", "0") == 0.0
    assert seconds("--dwell", "15min") == 900.0
    with pytest.raises(InputError, match="--dwell"):
        seconds("--dwell", "soon")


# ---- pages ---------------------------------------------------------------------------------------


def decision() -> Decision:
    rule = Rule(min_turns=1)
    return decide(replace(cluster_of(5, 1), name="<evil>"), OUTPUTS, 5.0, rule, waiting=1e4)


def day_result(gain: float) -> DayResult:
    """A comparison as it is shown; its numbers are made up."""

    def driven(name: str, share: float, changes: int) -> Driven:
        steps = (
            Step(0.0, 10, share, 2, 2, 0.0, "keep", 5.0, 2, "calm"),
            Step(900.0, 0, math.nan, 3, 1, 4.0, "change", 5.0, 3, "<b>more</b> appends"),
        )
        spread = {"mean": 1.0, "p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0}
        return Driven(
            name, 2, 2, 10, share, spread, spread, 1800.0, 2.0, changes, 0.1, (9.0,), steps
        )

    return DayResult(
        day="<day>",
        scenario="four nodes",
        load=1.0,
        every_s=900.0,
        slo_ttft_s=4.0,
        slo_tpot_s=0.05,
        adaptive=driven("adaptive", 0.5 + gain, 1),
        fixed=(driven("1P3D", 0.3, 0), driven("2P2D", 0.5, 0)),
        best_fixed="2P2D",
        gain_within_slo=gain,
        least_within_slo=0.9,
        sustained=(Sustained("adaptive", 1.2, 12), Sustained("2P2D", 1.0, 10)),
        gain_sustained=0.2,
    )


def test_pages_escape_what_comes_from_outside() -> None:
    assert "&lt;evil&gt;" in decision_page(decision())
    text = day_page(day_result(0.1))
    assert "&lt;day&gt;" in text
    assert "&lt;b&gt;more&lt;/b&gt;" in text
    assert "<b>more" not in text


def test_a_day_says_plainly_who_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    assert day_words(day_result(0.1))[0].startswith("re-planning beats the best fixed ratio 2P2D")
    assert "does not beat" in day_words(day_result(-0.1))[0]
    assert "20.0% more load than the best fixed ratio" in day_words(day_result(0.1))[2]
    worse = replace(day_result(-0.1), gain_sustained=-0.05)
    assert "5.0% less load than the best fixed ratio" in day_words(worse)[2]
    for gain in (0.004, 0.0, -0.004):  # no more than seeds move
        assert day_words(day_result(gain))[0].startswith("re-planning does as well as the best")
    assert len(change_rows(day_result(0.1).adaptive)) == 1
    show_day(day_result(0.1))
    printed = capsys.readouterr().out
    for word in ("adaptive", "1P3D", "60.00%", "<b>more</b>"):
        assert word in printed


def test_a_day_says_where_no_ratio_served_the_mix() -> None:
    found = day_result(0.1)
    step = replace(found.adaptive.steps[0], capacity_requests_per_s=math.nan, reason="too long")
    driven = replace(found.adaptive, steps=(step, *found.adaptive.steps[1:]))
    said = day_words(replace(found, adaptive=driven))
    assert any("no ratio serves" in one and "1; the first: too long" in one for one in said)
    assert not any("no ratio serves" in one for one in day_words(found))


def test_a_ratio_of_several_kinds_has_one_point_and_it_is_the_best() -> None:
    scenario = cluster_of(2, 2)
    fast = scenario.cluster.prefill[0]
    slow = replace(fast, name="slow", gpu=replace(fast.gpu, name="slow", fp8_flop_per_s=1e14))
    mixed = scenario.on(replace(scenario.cluster, prefill=(slow, slow)))
    found = decide(mixed, OUTPUTS, 5.0, Rule(min_turns=1), parameters=False)
    best = best_of_ratios(found)
    assert list(best) == ["1P3D", "2P2D", "3P1D"]
    for prefill, most in enumerate(best.values(), start=1):
        options = [one for one in found.options if one.prefill_nodes == prefill]
        assert most == max(one.capacity_requests_per_s for one in options)
        assert len(options) > 1
    text = decision_page(found)
    assert "best choice of kinds" in text
    assert "a row for each choice of kinds" in text
    assert "<h2>Every ratio</h2>" in decision_page(decision())


def test_moving_requests_instead_of_draining_is_shown() -> None:
    found = decision()
    assert found.action == "change"
    (cost,) = found.node_costs
    facts = dict(decision_facts(found))
    assert f"{cost.move_s:,.2f} s" in facts["moving a node's requests instead of draining"]


def test_an_interrupted_day_shows_what_it_has_and_ends_with_130(
    cluster: Path, window: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replace(day_result(0.1), interrupted=True)
    monkeypatch.setattr("solvers.replan_day.replan_day", lambda *_, **__: found)
    ended = CliRunner().invoke(cli.app, ["replan", str(cluster), "--day", str(window)])
    assert ended.exit_code == 130
    assert "interrupted" in ended.output
    shown = CliRunner().invoke(
        cli.app, ["replan", str(cluster), "--day", str(window), "--json", "-"]
    )
    data = json.loads(shown.stdout)
    assert data["adaptive"]["steps"][1]["within_slo"] is None


@pytest.mark.slow
def test_a_day_is_driven_end_to_end(cluster: Path, window: Path, tmp_path: Path) -> None:
    page = tmp_path / "day.html"
    call = ("replan", cluster, "--day", window, "--every", "5 s", "--html", page)
    data = json_of(*call, "--min-turns", "20", "--margin", "0.01", "--switch-time", "2 s")
    assert [one["name"] for one in data["fixed"]] == [f"{p}P{6 - p}D" for p in range(1, 6)]
    assert data["adaptive"]["turns"] == 200
    best = max(one["within_slo"] for one in data["fixed"])
    assert data["gain_within_slo"] == pytest.approx(data["adaptive"]["within_slo"] - best)
    assert "Re-planning and every fixed ratio" in page.read_text()
