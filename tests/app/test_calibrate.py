"""``dualpath calibrate`` from outside: what it writes is a profile, what it refuses it leaves alone."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from app.cli import app
from dualpath_model.errors import InputError
from dualpath_model.profile import FIGURES, load_profile
from tests.app.test_cli import dualpath, json_of, refused
from tests.conftest import ROOT
from tests.profiles import FIGURE_VALUES, profile_data, write_profile

OUTPUTS = ROOT / "tests" / "calibration" / "outputs"
QUICK = ("--only", "memory", "--seconds", "2")


def part(name: str) -> dict[str, float]:
    return {n: v for n, v in FIGURE_VALUES.items() if FIGURES[n].part.value == name}


def left(folder: Path) -> list[str]:
    """Return the names of everything in a folder, hidden files too."""
    return sorted(entry.name for entry in folder.iterdir())


def refused_here(*words: str | Path) -> str:
    """Return the sentence with which a command refuses, without a process: for the many."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(done.exception, InputError), (done.output, done.exception)
    sentence = str(done.exception)
    assert "\n" not in sentence
    assert done.stdout == ""
    return sentence


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real profile of this machine: its memory only, which needs no torch."""
    out = tmp_path_factory.mktemp("measured") / "memory.json"
    shown = json_of("calibrate", "run", *QUICK, "--out", out, "--name", "real")
    assert left(out.parent) == ["memory.json"]
    assert shown == load_profile(out).model_dump(mode="json")
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles to read: gpu.json, storage.json, twice.json (a storage of its own), whole.json."""
    made = tmp_path_factory.mktemp("profiles")
    write_profile(made / "gpu.json", figures=part("gpu"), name="gpu")
    write_profile(made / "storage.json", figures=part("storage"), name="storage")
    faster = {name: 2 * value for name, value in part("storage").items()}
    write_profile(made / "twice.json", figures=faster, name="twice")
    # one rate with an interval is enough for a plan, and quick
    write_profile(made / "whole.json", spread=0.0, spreads={"storage_read_bytes_per_s": 0.1})
    return made


# ---- run -----------------------------------------------------------------------------------------


def test_a_run_writes_a_profile(measured: Path) -> None:
    found = load_profile(measured)
    assert (found.name, list(found.parts)) == ("real", ["memory"])
    memory = found.parts[next(iter(found.parts))]
    rate = memory.figures["dram_bytes_per_s"]
    assert 1e8 < rate.low <= rate.value <= rate.high < 1e14
    assert rate.source in {fit.name for fit in memory.fits}
    assert memory.machine.cores == os.cpu_count()
    for fit in memory.fits:
        (series,) = (series for series in memory.series if series.name == fit.series)
        assert max(fit.indices) < len(series.samples)


def test_the_schema_of_a_profile_accepts_a_real_one(measured: Path) -> None:
    schema = json.loads(dualpath("schema", "profile").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(measured.read_text()), schema)
    for mistake in ({"version": 2}, {"format": "other"}, {"nmae": "x"}, {"parts": {"disk": {}}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**json.loads(measured.read_text()), **mistake}, schema)


def test_without_a_command_it_runs(tmp_path: Path) -> None:
    done = dualpath("calibrate", "--out", tmp_path / "p.json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert set(load_profile(tmp_path / "p.json").figures) == {"dram_bytes_per_s"}
    assert left(tmp_path) == ["p.json"]


def test_without_anything_it_helps() -> None:
    done = dualpath("calibrate")
    assert done.returncode == 0
    for command in ("run", "serve", "import", "merge", "show", "compare"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([*QUICK], ["--out is missing"]),
        (["--out", "profile.txt", *QUICK], ["--out profile.txt", "ends in .json"]),
        (["--out", "nowhere/p.json", *QUICK], ["nowhere does not exist", "make it first"]),
        (["--out", "old.json", "--only", "disk"], ["part 'disk' is unknown", "storage"]),
        (["--out", "old.json", "--llm", "ds-28b"], ["ds-28b", "ds-27b"]),
        (["--out", "old.json", "--only", "storage", "--space", "much"], ["'much'", "GiB"]),
        (["--out", "old.json", "--only", "storage", "--space", "-1 GB"], ["-1 GB"]),
        (["--out", "old.json", "--only", "storage", "--space", "1000"], ["'1000' has no unit"]),
        (["--out", "old.json", "--only", "storage", "--path", "nowhere"], ["nowhere does not"]),
        (["--out", "old.json", "--only", "gpu", "--tensor", "3"], ["tensor 3", "128 heads"]),
        (["--out", "old.json", "--seconds", "nan"], ["seconds nan", "34 to 86400"]),
        (["--out", "old.json", "--seconds", "-5"], ["seconds -5", "34 to 86400"]),
        (["--out", "old.json", "--seconds", "1e9"], ["seconds 1e+09", "34 to 86400"]),
        (["--out", "old.json", "--only", "memory", "--seconds", "1"], ["seconds 1", "2 to 86400"]),
        (["--out", "old.json", *QUICK, "--name", "x" * 201], ["name", "at most 200"]),
        (["--out", "old.json", "--json", "old.json", *QUICK], ["two outputs"]),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], shown: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.json").write_text("what was there")
    sentence = refused_here("calibrate", "run", *words)
    for word in shown:
        assert word in sentence
    assert left(tmp_path) == ["old.json"]
    assert Path("old.json").read_text() == "what was there"


@pytest.mark.parametrize("option", ["--seconds", "--tensor", "--device", "--streams", "--seed"])
def test_options_that_are_no_such_thing_are_refused(tmp_path: Path, option: str) -> None:
    words = ["calibrate", "run", "--out", str(tmp_path / "p.json"), option, "nonsense"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert option in done.stderr
    assert left(tmp_path) == []


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path, folder: Path) -> None:
    """The same in a process, as a user sees it: no traceback, nothing on standard output."""
    out = tmp_path / "p.json"
    assert "seconds nan" in refused("calibrate", "run", "--out", out, "--seconds", "nan")
    assert "--prefer" in refused(
        *("calibrate", "merge", folder / "gpu.json", "--out", out, "--prefer", out)
    )
    assert left(tmp_path) == []


def test_a_gpu_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # as on this machine, mostly
    words = ("calibrate", "run", "--only", "gpu", "--device", "cuda", "--out", tmp_path / "p.json")
    sentence = refused_here(*words)
    assert "device 'cuda' needs a GPU" in sentence
    assert "use cpu" in sentence
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measures(*_: object) -> None:
        pytest.fail("it measures first")

    monkeypatch.setattr("calibration.run.calibrate", measures)
    (tmp_path / "folder.json").mkdir()
    words = ("calibrate", "run", *QUICK, "--out")
    sentence = refused_here(*words, tmp_path / "folder.json")
    assert "is a folder; give the name of a file in it" in sentence
    # here even root cannot write
    assert "/proc/p.json: cannot be written" in refused_here(*words, "/proc/p.json")
    assert left(tmp_path) == ["folder.json"]


# ---- show, compare, merge ------------------------------------------------------------------------


def test_show_prints_the_profile_as_json(folder: Path) -> None:
    found = json_of("calibrate", "show", folder / "whole.json")
    assert found == load_profile(folder / "whole.json").model_dump(mode="json")


def test_compare_prints_every_figure_as_json(folder: Path) -> None:
    found = json_of("calibrate", "compare", folder / "storage.json", folder / "twice.json")
    assert (found["before"], found["after"]) == ("storage", "twice")
    assert [row["figure"] for row in found["figures"]] == list(part("storage"))
    for row in found["figures"]:
        assert row["ratio"] == pytest.approx(2.0)
        assert row["ratio_low"] < 2.0 < row["ratio_high"]
        assert row["beyond_noise"] is True
        assert row["after"]["value"] == 2 * row["before"]["value"]
    other = json_of("calibrate", "compare", folder / "storage.json", folder / "gpu.json")
    assert {row["ratio"] for row in other["figures"]} == {None}
    assert found["differences"] == other["differences"] == []


def test_compare_tells_profiles_of_one_name_and_other_settings_apart(tmp_path: Path) -> None:
    files = [
        write_profile(tmp_path / f"{llm}.json", figures=part("gpu"), llm=llm, spread=spread)
        for llm, spread in (("ds-27b", 0.05), ("qwen2.5-0.5b", 0.0))
    ]
    found = json_of("calibrate", "compare", *files)
    assert (found["before"], found["after"]) == (f"made ({files[0]})", f"made ({files[1]})")
    assert found["differences"] == [
        {"part": "gpu", "setting": "llm", "before": "ds-27b", "after": "qwen2.5-0.5b"}
    ]
    for row in found["figures"]:
        assert row["ratio"] == 1.0
        assert (row["ratio_low"], row["ratio_high"], row["beyond_noise"]) == (None, None, None)
    done = CliRunner().invoke(app, ["calibrate", "compare", *map(str, files)])
    assert done.exit_code == 0, done.output
    shown = done.stdout.replace("\n", "")
    assert f"before made ({files[0]})" in shown
    assert f"after  made ({files[1]})" in shown
    assert "measured differently: gpu llm: ds-27b -> qwen2.5-0.5b" in shown


def test_merge_joins_parts(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.json"
    words = ("calibrate", "merge", folder / "storage.json", folder / "gpu.json", "--out", out)
    done = dualpath(*words, "--name", "both")
    assert done.returncode == 0, done.stderr
    found = load_profile(out)
    assert (found.name, list(found.parts)) == ("both", ["gpu", "storage"])
    assert {n: e.value for n, e in found.figures.items()} == {**part("gpu"), **part("storage")}


def test_merge_takes_the_preferred_one(folder: Path, tmp_path: Path) -> None:
    files = (folder / "storage.json", folder / "twice.json")
    # the same file by another path is one of the profiles too
    prefer = folder / ".." / folder.name / "twice.json"
    done = dualpath(
        "calibrate", "merge", *files, "--prefer", prefer, "--out", tmp_path / "out.json"
    )
    assert done.returncode == 0, done.stderr
    assert load_profile(tmp_path / "out.json").figures == load_profile(files[1]).figures


def test_a_conflict_names_both_files(folder: Path, tmp_path: Path) -> None:
    files = (folder / "storage.json", folder / "twice.json")
    sentence = refused_here("calibrate", "merge", *files, "--out", tmp_path / "out.json")
    assert f"storage_read_bytes_per_s is in both {files[0]} and {files[1]}" in sentence
    assert "--prefer" in sentence
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["merge", "a.json", "b.json", "--out", "a.json"], ["a.json is an input"]),
        (["merge", "a.json", "b.json", "--out", "./b.json"], ["b.json is an input"]),
        (["merge", "a.json", "b.json", "--out", "c.txt"], ["--out c.txt", "ends in .json"]),
        (["merge", "a.json", "--out", "c.json", "--prefer", "b.json"], ["--prefer b.json is none"]),
        (["merge", "a.json", "c.json", "--out", "d.json"], ["c.json: there is no such file"]),
        (["merge", "a.json", "--out", "c.json", "--name", "x" * 201], ["at most 200 characters"]),
        (["compare", "a.json", "b.json", "--json", "a.json"], ["a.json is an input"]),
        (["compare", "a.json", "c.json", "--json", "-"], ["c.json: there is no such file"]),
        (["show", "a.json", "--json", "a.json"], ["a.json is the input"]),
        (["show", "c.json"], ["c.json: there is no such file"]),
        (["show", "a.json", "--picture", "a.pdf"], ["ends in .png or .svg"]),
        (["import", "fio", "c.json", "--out", "d.json"], ["c.json", "is not there"]),
        (["import", "foi", "a.json", "--out", "d.json"], ["tool 'foi' is unknown", "fio"]),
        (["import", "fio", "a.json", "--out", "a.json"], ["a.json is an input"]),
        (["import", "fio", "a.json", "--json", "a.json"], ["a.json is an input"]),
        (["import", "fio", "a.json", "--out", "d.json"], ["a.json"]),
        (["import", "fio", "a.json", "--out", "d.fio"], ["--out d.fio", "ends in .json"]),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    shown: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {"a.json": (folder / "gpu.json").read_text(), "b.json": "{}"}
    for name, text in before.items():
        Path(name).write_text(text)
    sentence = refused_here("calibrate", *words)
    for word in shown:
        assert word in sentence
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def _rate(**fields: object) -> dict[str, Any]:
    data = copy.deepcopy(profile_data(part("storage")))
    data["parts"]["storage"]["figures"]["storage_read_bytes_per_s"].update(fields)
    return data


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({**_rate(), "version": 2}, "version 2 is newer than the 1"),
        ({"format": "dualpath-profile"}, "version is missing"),
        ({"figures": {}}, "is not a profile"),
        (_rate(value=float("nan")), "storage_read_bytes_per_s.value: nan is not allowed"),
        (_rate(high=float("inf")), "storage_read_bytes_per_s.high: inf is not allowed"),
        (_rate(low=0), "storage_read_bytes_per_s.low: 0 is not allowed"),
        (_rate(low=50e9), "does not hold value"),
    ],
)
def test_a_bad_profile_is_one_sentence_wherever_it_is_read(
    tmp_path: Path, data: Mapping[str, Any], shown: str
) -> None:
    path, out = tmp_path / "bad.json", tmp_path / "out.json"
    path.write_text(json.dumps(data))
    for words in (["show", path], ["compare", path, path], ["merge", path, "--out", out]):
        sentence = refused_here("calibrate", *words)
        assert sentence.startswith(str(path))
        assert shown in sentence
    assert left(tmp_path) == ["bad.json"]


def test_a_scenario_says_what_is_wrong_with_its_profile(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(profile_data())[:1000])
    group = "{node: bad.json, count: 1}"
    (tmp_path / "s.yaml").write_text(
        f"name: s\nllm: ds-27b\ncluster:\n  prefill: {group}\n  decode: {group}\n"
        "workload: {moments: {hit_tokens: 1000, miss_tokens: 100, output_tokens: 10}}\n"
    )
    for command in ("plan", "simulate"):
        sentence = refused(command, tmp_path / "s.yaml")
        assert "s.yaml:4" in sentence
        assert "bad.json:1: not valid JSON" in sentence


# ---- a measured plan -----------------------------------------------------------------------------


def test_plan_takes_a_profile_and_shows_intervals(folder: Path, tmp_path: Path) -> None:
    group = f"{{node: {folder / 'whole.json'}, count: 1}}"
    (tmp_path / "s.yaml").write_text(
        f"name: s\nllm: ds-27b\ncluster:\n  prefill: {group}\n  decode: {group}\n"
        "workload: {moments: {hit_tokens: 30000, miss_tokens: 400, output_tokens: 100}}\n"
        "limits: [snic]\n"
    )
    found = json_of("plan", tmp_path / "s.yaml")
    interval = found["uncertainty"]["throughput_requests_per_s"]
    assert interval["low"] < found["throughput_requests_per_s"] < interval["high"]
    assert found["uncertainty"]["measurements"][0]["figure"] == "storage_read_bytes_per_s"
    schema = json.loads(dualpath("schema", "plan").stdout)
    jsonschema.validate(found, schema)
    done = dualpath("plan", tmp_path / "s.yaml")
    assert done.returncode == 0, done.stderr
    assert "storage_read_bytes_per_s" in done.stdout


# ---- import --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "file", "figure"),
    [
        ("fio", "fio_randread.json", "storage_read_bytes_per_s"),
        ("iperf3", "iperf3_one.json", "network_bytes_per_s"),
        ("nvbandwidth", "nvbandwidth_one_gpu.json", "host_to_device_bytes_per_s"),
    ],
)
def test_the_output_of_a_tool_becomes_a_profile(
    tmp_path: Path, tool: str, file: str, figure: str
) -> None:
    out = tmp_path / "p.json"
    words = ("calibrate", "import", tool, OUTPUTS / file, "--host", "far", "--out", out)
    found = json_of(*words)
    assert found == load_profile(out).model_dump(mode="json")
    (only,) = found["parts"].values()
    assert only["machine"]["host"] == "far"
    assert figure in only["figures"]
    assert found["name"].startswith("far")


def test_outputs_that_have_the_same_figure_are_a_conflict(tmp_path: Path) -> None:
    files = (OUTPUTS / "fio_randread.json", OUTPUTS / "fio_several_jobs.json")
    sentence = refused_here("calibrate", "import", "fio", *files, "--out", tmp_path / "p.json")
    assert f"is in both {files[0]} and {files[1]}" in sentence
    assert left(tmp_path) == []
