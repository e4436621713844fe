"""``dualpath fleet`` as a user calls it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from app import cli, fleet_view
from app.fleet_report import fleet_html
from app.show_fleet import show_fleet
from solvers.fleet import Fleet, fleet
from solvers.fleet_margin import Simulation
from solvers.fleet_outlook import FIGURES, GROWTH
from solvers.fleet_question import load_question
from solvers.fleet_search import Effort
from solvers.fleet_simulate import Reach, Tried
from tests.app.test_cli import dualpath, json_of, refused
from tests.conftest import ROOT

SHIPPED = sorted((ROOT / "examples" / "fleets").glob("*.yaml"))
QUICK = ("--no-simulate", "--points", "3")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet that is found in a moment."""
    path = tmp_path_factory.mktemp("fleet") / "small.yaml"
    moments = {"prompt_tokens": 32000, "miss_tokens": 600, "output_tokens": 300}
    fields = {
        "name": "A <small> fleet",
        "llm": "deepseek-v3.2",
        "kv_dtype": "fp8",
        "kinds": [
            {"node": "paper-hopper", "price_usd_per_hour": 50.0, "power_kw": 10.2},
            {"node": "dgx-h200", "price_usd_per_hour": 75.0, "power_kw": 10.2, "owned": 1},
        ],
        "workload": {"moments": moments},
        "require": {"requests_per_s": 40.0},
        "scenarios": [{"name": "peak & more", "rate": 1.3}],
        "margin": 0.5,
        "limits": {"survive": 1, "power_kw": 300.0},
    }
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.fixture(scope="module")
def found(file: Path) -> Fleet:
    return fleet(file, points=3)


def test_json_has_counts_costs_promises_worth_and_front(file: Path) -> None:
    data = json_of("fleet", file, *QUICK)
    assert data["goal"] == "least cost"
    assert data["cost_usd_per_hour"] == pytest.approx(sum(n["cost"] for n in data["nodes"]))
    assert data["prefill_nodes"] == sum(n["prefill"] for n in data["nodes"])
    assert data["power_kw"] == pytest.approx(10.2 * (data["prefill_nodes"] + data["decode_nodes"]))
    assert [p["case"] for p in data["promises"]] == ["forecast", "peak & more"]
    for promise in data["promises"]:
        assert promise["within"] >= promise["after_loss"] >= promise["asked"] * (1 - 1e-6)
        assert promise["promised"] <= promise["roofline"] * (1 + 1e-6)
        assert promise["promised"] <= min(promise["prefill"], promise["decode"]) * (1 + 1e-6)
    assert data["margins"] == [0.5, 0.5]
    assert [b["figure"] for b in data["outlook"]["breaks"]] == list(FIGURES)
    assert [p["growth"] for p in data["outlook"]["purchases"]] == list(GROWTH)
    assert {w["what"] for w in data["worth"]} == {"requirement", "forecast", "one more"}
    assert len(data["front"]) == 3
    assert data["simulation"]["skipped"] == "switched off"
    assert data["interrupted"] is False


def test_the_terminal_shows_the_fleet(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "fleet.html"
    done = dualpath("fleet", file, "--no-simulate", "--no-explain", "--points", "0", "--html", page)
    assert done.returncode == 0, done.stderr
    assert "A <small> fleet" in done.stdout
    assert "the loss of any 1" in done.stdout
    assert "not simulated: switched off" in done.stdout
    assert "peak & more" in done.stdout
    assert f"wrote {page}" in done.stderr
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "A &lt;small&gt; fleet" in text
    assert "<small>" not in text


def test_the_report_has_every_row_of_the_terminal(
    found: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    show_fleet(found)
    printed = capsys.readouterr().out
    page = fleet_html(found)
    for rows in (fleet_view.node_rows(found), fleet_view.point_rows(found)):
        for row in rows:
            for cell in row:
                assert cell in printed
                assert cell in page
    assert "saves" in printed
    assert "Cost against capacity" in page


def test_what_the_simulator_says_is_shown(found: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    runs = (
        Tried("forecast", "", 1.5, 0.04, True),
        Tried("peak & more", "1 dgx-h200 (decode)", float("inf"), float("inf"), False),
    )
    nan = float("nan")
    reach = Reach("forecast", "", 100.0, 62.5, nan, nan, True)
    pool = Reach("forecast", "", 200.0, 80.0, nan, nan, False, "ttft", "prefill")
    margins = ((1.0, 1.0), (0.4, 0.9))
    simulated = replace(found, simulation=Simulation("", (reach,), runs, margins, (pool,)))
    show_fleet(simulated)
    printed = capsys.readouterr().out
    assert "62.5% of the 100.0 that the LP promises (flattered" in printed
    assert "1 of 2 runs missed the SLO" in printed
    assert "overloaded" in printed
    assert "100.0%; 40.0% (prefill) and 90.0% (decode)" in printed
    assert "prefill nodes alone (forecast): within the SLO up to 80.0 requests/s, 40.0%" in printed
    assert "above, TTFT is too long" in printed
    assert "1.50 s" in fleet_html(simulated)
    good = replace(simulated, simulation=replace(simulated.simulation, tried=runs[:1]))
    show_fleet(good)
    assert "at the required rate the run met the SLO" in capsys.readouterr().out


def test_an_interrupted_search_shows_what_it_has_and_ends_with_130(
    file: Path, found: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solvers.fleet.fleet", lambda *_, **__: replace(found, interrupted=True))
    ended = CliRunner().invoke(cli.app, ["fleet", str(file)])
    assert ended.exit_code == 130
    assert "interrupted: this is what was finished" in ended.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"limits": {"power_kw": 35.0}},
            ["35.0 kW (limits.power_kw)", "40 requests/s (require)"],
        ),
        (
            {"limits": {"nodes": 4, "survive": 2}},
            ["4 nodes (limits.nodes)", "the loss of any 2 nodes (limits.survive)"],
        ),
    ],
)
def test_an_infeasible_fleet_ends_with_1_and_the_conflict(
    file: Path, tmp_path: Path, change: dict[str, object], words: list[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    done = dualpath("fleet", other, "--no-simulate")
    assert done.returncode == 1
    assert done.stdout == ""
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("dualpath: no fleet: ")
    assert [part for part in words if part not in said] == []


@pytest.mark.parametrize(
    ("budget", "survive", "words"),
    [
        (40.0, 0, "40.0 USD/h (limits.budget_usd_per_hour) and any rate at all"),
        (110.0, 0, "110.0 USD/h (limits.budget_usd_per_hour) and any rate at all"),
        (360.0, 4, "the loss of any 4 nodes (limits.survive), 360.0 USD/h"),
    ],
)
def test_a_budget_for_no_fleet_ends_with_1_and_the_conflict(
    file: Path, tmp_path: Path, budget: float, survive: int, words: str
) -> None:
    fields = yaml.safe_load(file.read_text())
    del fields["require"], fields["kinds"][1]["owned"]
    fields["limits"] = {"budget_usd_per_hour": budget, "survive": survive}
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(fields))
    done = dualpath("fleet", small, "--no-simulate")
    assert done.returncode == 1
    assert done.stdout == ""
    said = done.stderr.strip().splitlines()[-1]  # after what was said of progress
    assert said.startswith(f"dualpath: no fleet: {words}")


def test_bad_calls_are_refused_in_one_sentence(file: Path, tmp_path: Path) -> None:
    assert "neither a file nor a shipped one" in refused("fleet", "coding-agent")
    assert "coding-agents" in refused("fleet", "coding-agent")
    assert "there is no such file" in refused("fleet", tmp_path / "no.yaml")
    assert "is the input" in refused("fleet", file, "--json", file)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(file.read_text().replace("survive:", "survives:"))
    assert "did you mean 'survive'?" in refused("fleet", wrong)
    measured = tmp_path / "measured.yaml"
    measured.write_text(file.read_text().replace("margin: 0.5", "margin: simulated"))
    assert "needs the simulator" in refused("fleet", measured, "--no-simulate")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_fleets_have_an_answer(path: Path) -> None:
    question = load_question(path)
    answer = fleet(question, effort=Effort(gap=0.02), explain=False, points=0)
    assert answer.nodes
    for promise in answer.promises:
        assert promise.within >= promise.asked * (1 - 1e-6)


@pytest.mark.slow
def test_the_simulator_checks_the_fleet(file: Path) -> None:
    data = json_of(
        "fleet", file, "--no-explain", "--points", "0", "--warmup", "30", "--measure", "60"
    )
    simulation = data["simulation"]
    assert simulation["skipped"] == ""
    losses = [one["loss"] for one in simulation["tried"]]
    assert losses[:2] == ["", ""]
    assert len(losses) > 3
    (reach,) = simulation["reach"]
    assert reach["share"] == pytest.approx(reach["simulated"] / reach["promised"])


def test_the_schema_of_fleet_files_accepts_the_shipped_ones_and_refuses_a_wrong_field() -> None:
    done = dualpath("schema", "fleet")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described["$schema"].endswith("2020-12/schema")
    assert described["title"] == "FleetSpec"
    known = described["properties"]
    for path in SHIPPED:
        data = yaml.safe_load(path.read_text())
        assert set(described["required"]) <= set(data) <= set(known)
    assert described["additionalProperties"] is False
    assert {"margin", "policy", "software", "kinds", "scenarios"} <= set(known)


def test_other_recordings_take_the_place_of_the_workload(file: Path, tmp_path: Path) -> None:
    sample = ROOT / "examples" / "traces" / "agentic_sample"
    quick = ("--no-simulate", "--no-explain", "--points", "0")
    data = json_of("fleet", file, *quick, "--trace", sample)
    assert data["traffic"]["prompt_tokens"] != 32000
    assert str(sample) in data["traffic"]["sources"][0]
    assert "there is no such" in refused("fleet", file, *quick, "--trace", tmp_path / "none")
    assert "has classes" in refused("fleet", "coding-agents", *quick, "--trace", sample)


def test_the_report_opens_with_three_sentences_and_one_picture(found: Fleet) -> None:
    text = fleet_html(found)
    first = text.index('<ul class="answer">')
    said = text[first : text.index("</ul>", first)]
    assert said.count("<li>") == 3
    assert f"{found.cost_usd_per_hour:,.2f} USD an hour" in said
    assert f"{730 * found.cost_usd_per_hour:,.0f} USD a month" in said
    assert "USD for 1,000 turns" in said
    assert "the hardest of these with any 1 node down too" in said
    assert "not simulated" in said
    assert "is large enough up to traffic" in said
    assert text.index("plotly-graph-div") < text.index("In figures")
    assert text.count("plotly-graph-div") == 3
    # Self-contained: the one script that could be fetched, plotly, is in the page.
    assert not re.search(r"<(script|link|img|iframe)[^>]*\s(src|href)=", text)
    for heading in (
        "When a node fails",
        "How wrong the forecast may be",
        "What would be bought next",
        "Without one kind of node",
        "What this rests on",
        "Words",
    ):
        assert f"<h2>{heading}</h2>" in text


def test_a_fleet_that_misses_the_slo_is_not_recommended(found: Fleet) -> None:
    runs = (
        Tried("forecast", "", 1.5, 0.04, True),
        Tried("peak & more", "1 dgx-h200 (decode)", 9.0, 0.04, False),
    )
    missed = replace(found, simulation=Simulation("", (), runs, ((0.5, 0.5),)))
    text = fleet_html(missed)
    assert '<ul class="answer bad">' in text
    assert "does not in 1 of 2 runs (peak &amp; more without 1 dgx-h200 (decode))" in text
    assert "do not sign yet" in text
    good = replace(found, simulation=Simulation("", (), runs[:1], ((0.5, 0.5),)))
    assert "as foreseen it takes 1.50 s and 40.0 ms" in fleet_html(good)


def test_losses_that_were_not_simulated_are_told(
    found: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = (Tried("forecast", "", 1.5, 0.04, True), Tried("forecast", "1 a", 2.0, 0.04, True))
    said = "f 3 ways to lose 1 node the 1 that leave least were simulated"
    for ways in (1, 3):
        part = replace(
            found, simulation=Simulation("", (), runs, ((0.5, 0.5),), losses=ways), survive=1
        )
        show_fleet(part)
        assert (said in capsys.readouterr().out) is (ways == 3)
        text = fleet_html(part)
        assert text.count(said) == (3 if ways == 3 else 0)  # the answer, failures, simulation
        assert (f"with any 1 node down too (o{said})" in text) is (ways == 3)


def test_a_fleet_without_reserve_or_outlook_says_so(file: Path, tmp_path: Path) -> None:
    fields = yaml.safe_load(file.read_text())
    bare = tmp_path / "bare.yaml"
    bare.write_text(yaml.safe_dump(fields | {"limits": {}, "scenarios": []}))
    text = fleet_html(fleet(bare, explain=False, points=0))
    assert "Nothing is held in reserve" in text
    assert "was not asked" in text
    assert text.count("plotly-graph-div") == 1
