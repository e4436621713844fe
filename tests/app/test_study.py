"""``dualpath study`` from end to end: exit codes, JSON, HTML, CSV, going on, and mistakes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml

from app import figures_study as figures
from app.study import study_run
from app.study_report import best_points, lower_is_better, reasons, report_html
from solvers.study import read_manifest, read_study
from tests.conftest import ROOT
from tests.solvers.studies import GRID, write


def dualpath(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that has run; some of its points have no answer."""
    folder = tmp_path_factory.mktemp("study")
    evil = {**GRID, "name": "<script>alert(1)</script>", "base": "paper-mean-turn"}
    evil["axes"] = {**GRID["axes"], "cluster.prefill.count": [1, 2, 3]}
    file = write(folder, evil)
    done = dualpath("study", "run", file, "--out", folder / "out", "--workers", "1", "--json", "-")
    found = json.loads(done.stdout)
    assert found["points"] == found["points_total"] == 24
    assert 0 < found["failed"] < 24
    return folder / "out"


def test_a_second_run_has_nothing_to_do(ran: Path) -> None:
    before = (ran / "results.parquet").stat().st_mtime_ns
    done = dualpath("study", "run", ran.parent / "study.yaml", "--out", ran)
    assert "there already           24" in done.stdout
    assert (ran / "results.parquet").stat().st_mtime_ns == before


def test_ctrl_c_says_how_many_points_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, tell: Callable[[int, float, str], None], **__: object) -> None:
        tell(1234, 0.5, "words")
        raise KeyboardInterrupt

    monkeypatch.setattr("solvers.study.run_study", stopped)
    with pytest.raises(KeyboardInterrupt):
        study_run(write(tmp_path, GRID), tmp_path / "out")
    assert "stopped; 1,234 of 24 points are in" in capsys.readouterr().err


def test_the_report_is_a_page_and_a_table(ran: Path, tmp_path: Path) -> None:
    page, table = tmp_path / "r.html", tmp_path / "r.csv"
    done = dualpath("study", "report", ran, "--html", page, "--csv", table, "--json", "-")
    found = json.loads(done.stdout)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["point"]) for row in rows] == list(range(24))
    rates = [float(row["throughput_requests_per_s"]) for row in rows if not row["failure"]]
    best = found["best"]["throughput_requests_per_s"]
    assert best["is"] == "highest"
    assert best["points"][0]["throughput_requests_per_s"] == pytest.approx(max(rates))
    failed = sum(failure["points"] for failure in found["failures"])
    assert failed == sum(bool(row["failure"]) for row in rows)
    text = page.read_text()
    assert "<script>alert(1)</script>" not in text and "&lt;script&gt;alert(1)" in text
    assert not re.findall(r'<(?:script|link|img)[^>]*\s(?:src|href)="https?:', text)
    for axis in GRID["axes"]:
        assert axis in text


def test_the_report_on_a_terminal_names_the_best_and_the_reasons(ran: Path) -> None:
    said = dualpath("study", "report", ran).stdout
    assert "highest throughput_requests_per_s" in said
    assert "without an answer (infeasible): deepseek-v3.2 does not fit" in said


def test_figures_show_medians_of_the_table(ran: Path) -> None:
    table = read_study(ran)
    drawn = figures.along(table, "split", "cluster.prefill.count")
    frame = table.to_pandas()
    frame = frame[frame.failure.isna()]
    wanted = frame.groupby("cluster.prefill.count").split.median()
    line = next(trace for trace in drawn.data if trace.name == "median")
    assert list(line.x) == list(wanted.index)
    assert list(line.y) == pytest.approx(list(wanted))
    maps = figures.maps(table, ["split"], list(GRID["axes"]))
    assert len(maps) == 3
    cell = frame[(frame["cluster.prefill.count"] == 3) & (frame["slo.tpot"] == 0.05)].split.median()
    pair = next(f for f in maps if "count and slo.tpot" in f.layout.title.text)
    assert pair.data[0].z[-1][-1] == pytest.approx(cell)


def test_many_values_are_grouped() -> None:
    count = 500
    table = pyarrow.table(
        {"x": [i / count for i in range(count)], "y": [float(i) for i in range(count)]}
    )
    drawn = figures.along(table, "y", "x")
    line = next(trace for trace in drawn.data if trace.name == "median")
    assert len(line.x) == 24 and list(line.y) == sorted(line.y)


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("jct_s", True),
        ("ttft_s.p99", True),
        ("snic_max_over_mean", True),
        ("throughput_requests_per_s", False),
        ("turns_per_s_simulated", False),
        ("split", False),
    ],
)
def test_times_and_imbalance_are_best_low(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def test_best_points_and_reasons_of_a_known_table() -> None:
    table = pyarrow.table(
        {
            "point": [0, 1, 2, 3],
            "m": [2.0, 5.0, None, 5.0],
            "failure": [None, None, "input", None],
            "reason": [None, None, "bad", None],
        }
    )
    assert [row["point"] for row in best_points(table, "m", "highest", 3)] == [1, 3, 0]
    assert [row["point"] for row in best_points(table, "m", "lowest", 1)] == [0]
    assert reasons(table) == [("input", "bad", 1)]


def test_a_report_of_a_study_that_runs_says_how_far_it_is(ran: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    (half / "points").mkdir(parents=True)
    (half / "study.json").write_text((ran / "study.json").read_text())
    assert "0 of 24 points so far" in dualpath("study", "report", half).stdout
    page = report_html(read_manifest(half), read_study(half))
    assert "0 of 24 points so far" in page


MISTAKES: list[tuple[dict[str, Any], list[str], str]] = [
    ({"axes": {}}, [], "axes is empty; give at least one field with its values"),
    ({"axes": {"slo.tpt": ["1 s"]}}, [], "the nearest are slo.tpot"),
    ({"metrics": ["throughputs"]}, [], "the nearest are throughput_requests_per_s"),
    ({"base": "deepseek-660b"}, [], "is neither a file nor a shipped example; the nearest are"),
    pytest.param(
        {}, ["--engine", "dask://127.0.0.1:9"], "does not answer", marks=pytest.mark.clusters
    ),
    pytest.param(
        {}, ["--engine", "ray://127.0.0.1:9"], "does not answer", marks=pytest.mark.clusters
    ),
    ({}, ["--out", "/proc/nowhere"], "cannot be written"),
    ({}, ["--out", "no/such/place"], "does not exist; make it first"),
]


@pytest.mark.parametrize(("change", "more", "sentence"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, change: dict[str, Any], more: list[str], sentence: str
) -> None:
    file = write(tmp_path, {**GRID, **change})
    done = dualpath("study", "run", file, "--out", tmp_path / "out", *more, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""
    assert not (tmp_path / "out" / "results.parquet").exists()


def test_a_folder_of_another_study_is_refused(ran: Path, tmp_path: Path) -> None:
    file = write(tmp_path, {**GRID, "seed": 5})
    done = dualpath("study", "run", file, "--out", ran, code=2)
    assert "holds another study" in done.stderr and "differs in seed" in done.stderr


def test_a_report_of_no_study_is_refused(tmp_path: Path) -> None:
    done = dualpath("study", "report", tmp_path, code=2)
    assert "is no study: it has no study.json" in done.stderr


def test_the_schema_takes_the_shipped_studies() -> None:
    import jsonschema

    schema = json.loads(dualpath("schema", "study").stdout)
    for path in (ROOT / "examples" / "studies").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.slow
@pytest.mark.xdist_group("studies")
def test_a_simulation_study_has_means_intervals_and_its_own_seeds(tmp_path: Path) -> None:
    study = {
        "name": "simulated",
        "base": "ds-27b-1p1d",
        "axes": {"simulation.agents": [2, 4], "workload.scale.context": [0.5]},
        "method": "simulation",
        "simulation": {"replications": 2},
        "metrics": ["jct_s", "ttft_s.mean", "turns"],
    }
    file = write(tmp_path, study)
    dualpath("study", "run", file, "--out", tmp_path / "a", "--workers", "1")
    dualpath("study", "run", file, "--out", tmp_path / "b", "--workers", "2")
    rows = read_study(tmp_path / "a").to_pylist()
    assert [row["simulation.agents"] for row in rows] == [2, 4]
    for row in rows:
        assert row["jct_s.low"] <= row["jct_s"] <= row["jct_s.high"]
        assert row["failure"] is None
    assert rows[0]["seed"] != rows[1]["seed"]
    files = [(tmp_path / name / "results.parquet").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_values_are_shown_with_their_units(tmp_path: Path) -> None:
    base = ROOT / "examples" / "deepseek-660b-2p4d.yaml"
    (tmp_path / "study.yaml").write_text(
        f"name: units\nbase: {base}\naxes:\n"
        "  cluster.prefill.node.snic: [400 Gbps, 800 Gbps]\n"
        "  slo.tpot: [50 ms, 80 ms]\n"
        "method: closed form\nmetrics: [throughput_requests_per_s]\n"
    )
    out = tmp_path / "out"
    dualpath("study", "run", tmp_path / "study.yaml", "--out", out, "--workers", "1")
    page = tmp_path / "report.html"
    said = dualpath("study", "report", out, "--html", page)
    for text in (said.stdout, page.read_text()):
        assert "100 GB/s" in text
        assert "80 ms" in text
    found = json.loads(dualpath("study", "report", out, "--json", "-").stdout)
    assert found["units"] == {"cluster.prefill.node.snic": "B/s", "slo.tpot": "s"}
    assert found["best"]["throughput_requests_per_s"]["points"][0]["slo.tpot"] in (0.05, 0.08)
