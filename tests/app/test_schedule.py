"""``dualpath schedule`` and ``dualpath schema events`` from outside: output, exit codes, files."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from app import schedule
from dualpath_model import load_scenario
from dualpath_model.errors import InputError
from dualpath_model.scheduler.events import Submit
from dualpath_model.scheduler.log import DecisionLog
from dualpath_model.scheduler.policies import POLICIES
from dualpath_model.scheduler.reference import Scheduler
from tests.app.test_cli import dualpath, json_of, refused
from tests.conftest import ROOT

SMALL = ("schedule", "run", "paper-analysis", "--agents", "20", "--seconds", "5")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the log of a small run."""
    path = tmp_path_factory.mktemp("logs") / "run.jsonl"
    done = dualpath(*SMALL, "--log", path, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["turns"] > 0
    assert f"wrote {path}" in done.stderr
    assert [other.name for other in path.parent.iterdir()] == ["run.jsonl"]
    return path


def written(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log after the first."""
    return [orjson.loads(line) for line in log.read_bytes().splitlines()[1:]]


# ---- policies ------------------------------------------------------------------------------------


def test_policies_as_text_and_json() -> None:
    assert json_of("schedule", "policies") == {p.name: p.meaning for p in POLICIES.values()}
    done = dualpath("schedule", "policies")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(POLICIES)


# ---- run -----------------------------------------------------------------------------------------


def test_run_json_has_the_keys_of_the_stable_surface() -> None:
    found = json_of(*SMALL, "--policy", "split", "--patience", "3", "--seed", "7")
    assert (found["policy"], found["patience"], found["seed"]) == ("split", 3, 7)
    assert found["agents"] == 20
    assert 0 < found["simulated_s"] <= 5
    assert set(found["ttft_s"]) == set(found["tpot_s"]) == {"mean", "p50", "p90", "p99", "max"}
    for key in (
        "snic_max_over_mean",
        "snic_max_over_mean_windows",
        "attention_max_over_mean",
    ):
        assert found[key] >= 1.0, key
    assert {"scenario", "turns", "sessions_finished", "read_tokens", "window_s"} <= set(found)


def test_the_same_seed_gives_the_same_run_with_and_without_a_log(tmp_path: Path) -> None:
    words = (*SMALL, "--rate", "20", "--seed", "3")
    assert json_of(*words) == json_of(*words, "--log", tmp_path / "x.jsonl")


def test_run_text(tmp_path: Path) -> None:
    done = dualpath(*SMALL, "--policy", "split", "--json", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("split: ")
    for words in ("20 agents", "TTFT, s", "storage NICs, max over mean", "tokens read: p0 "):
        assert words in done.stdout, words
    assert json.loads((tmp_path / "run.json").read_text())["policy"] == "split"


def test_a_run_that_ends_before_it_began() -> None:
    found = json_of("schedule", "run", "ds-27b-1p1d", "--agents", "1", "--seconds", "0.1")
    assert (found["turns"], found["ttft_s"], found["snic_max_over_mean"]) == (0, {}, 1.0)


def test_a_cluster_that_cannot_serve_is_exit_code_one(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "deepseek-660b-2p4d.yaml").read_text()
    path = tmp_path / "small.yaml"
    path.write_text(text.replace("count: 2", "count: 1"))
    log = tmp_path / "run.jsonl"
    assert "does not fit" in refused("schedule", "run", path, "--log", log, code=1)
    assert not log.exists()


def test_unknown_policies_offer_the_nearest() -> None:
    assert "the nearest are dualpath" in refused(*SMALL, "--policy", "dualpth")
    assert "known are basic, dualpath" in refused(*SMALL, "--policy", "zzz")


@pytest.mark.parametrize(
    "option, value",
    [
        ("--agents", "0"),
        ("--rate", "nan"),
        ("--rate", "0"),
        ("--rate", "1.1e9"),
        ("--rate", "inf"),
        ("--seconds", "nan"),
        ("--seconds", "inf"),
        ("--patience", "-1"),
        ("--seed", str(2**63)),
    ],
)
def test_bad_numbers(option: str, value: str) -> None:
    done = dualpath(*SMALL, option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert option in done.stderr
    assert "Traceback" not in done.stderr


# ---- the log is written whole or not at all ------------------------------------------------------


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    assert str(tmp_path / "no") in refused(*SMALL, "--log", tmp_path / "no" / "x.jsonl")
    assert "is a folder" in refused(*SMALL, "--log", tmp_path)
    assert "not an ordinary file" in refused(*SMALL, "--log", "/dev/null")
    same = tmp_path / "x"
    assert "two outputs" in refused(*SMALL, "--log", same, "--json", same)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_policy_leaves_the_old_log_alone(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    log.write_text("old")
    refused(*SMALL, "--policy", "zzz", "--log", log)
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]
    assert log.read_text() == "old"


@pytest.mark.parametrize(
    "error, seen",
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (ValueError("a bug"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disk full", "bug", "interrupted"],
)
def test_a_run_that_breaks_off_leaves_the_old_log_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
) -> None:
    def breaks_off(*_: Any, prepare: Any, **__: Any) -> None:
        scheduler = Scheduler(compiled=False)
        prepare(scheduler)
        for i in range(1000):  # more than a buffer
            scheduler.handle(Submit(f"r{i}", 5, 5))
        assert len(list(tmp_path.iterdir())) == 2, "it is written beside the old one"
        raise error

    monkeypatch.setattr(schedule, "drive", breaks_off)
    log = tmp_path / "run.jsonl"
    log.write_text("old")
    scenario = load_scenario(ROOT / "examples" / "paper-analysis.yaml")
    with pytest.raises(seen, match="No space left" if seen is InputError else None):
        schedule.run_schedule(scenario, "dualpath", 0, log, agents=1)
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]
    assert log.read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_control_c_leaves_nothing_behind(tmp_path: Path) -> None:
    words = ("schedule", "run", "ds-27b-1p1d", "--agents", "20000", "--seconds", "100000")
    command = [sys.executable, "-m", "app.cli", *words, "--log", str(tmp_path / "run.jsonl")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < give_up:
        if any(path.stat().st_size > 100_000 for path in tmp_path.iterdir()):
            run.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    stdout, stderr = run.communicate(timeout=180)  # compiling may have to end first
    assert (run.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


# ---- replay --------------------------------------------------------------------------------------


def test_replay_finds_every_decision_again(log: Path) -> None:
    found = json_of("schedule", "replay", log)
    assert found["log"] == str(log)
    assert found["events"] == len(written(log))
    assert (found["refused"], found["different"], found["first_difference"]) == (0, 0, None)
    decisions = [decision["kind"] for line in written(log) for decision in line["decisions"]]
    assert found["decisions"] == {kind: decisions.count(kind) for kind in dict.fromkeys(decisions)}
    assert json_of("schedule", "replay", log, "--compiled") == found


def test_replay_text_and_each_step(log: Path) -> None:
    done = dualpath("schedule", "replay", log)
    assert done.returncode == 0, done.stderr
    assert "every decision was made again" in done.stdout
    assert len(done.stdout.splitlines()) == 2
    each = dualpath("schedule", "replay", log, "--each")
    assert each.returncode == 0, each.stderr
    assert each.stdout.endswith(done.stdout)
    steps = each.stdout.splitlines()[:-2]
    decided = sum(len(line["decisions"]) for line in written(log))
    assert len(steps) == len(written(log)) + decided
    assert not any(step.startswith("!") for step in steps)
    assert "node joined node=p0" in steps[0]
    json_of("schedule", "replay", log, "--each")  # one JSON object and nothing else


def test_a_tampered_decision_is_exit_code_one(log: Path, tmp_path: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"prefill placed"' in line)
    event, decisions = lines[number].split(b'"decisions"')
    lines[number] = event + b'"decisions"' + decisions.replace(b'"tok":0,', b'"tok":1,', 1)
    tampered = tmp_path / "run.jsonl"
    tampered.write_bytes(b"".join(lines))
    done = dualpath("schedule", "replay", tampered, "--json", "-")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found["different"] == 1
    first = found["first_difference"]
    assert first["line"] == number + 1
    assert first["logged"] != first["now"]
    assert first["event"] == orjson.loads(lines[number])["event"]
    done = dualpath("schedule", "replay", tampered, "--each")
    assert done.returncode == 1
    assert f"the first is on line {number + 1}" in done.stdout
    marked = [line for line in done.stdout.splitlines() if line.startswith("!")]
    assert f"{number + 1}" in marked[0]


def test_a_log_with_refused_events_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with path.open("wb") as file:
        scheduler = Scheduler(compiled=False)
        DecisionLog(scheduler, file)
        for event in (Submit("a", 5, 6), Submit("a", 5, 5)):
            try:
                scheduler.handle(event)
            except InputError:
                continue
    found = json_of("schedule", "replay", path)
    assert (found["events"], found["refused"], found["different"]) == (2, 1, 0)
    done = dualpath("schedule", "replay", path, "--each")
    assert "-> refused: request 'a': hit_tokens is 6" in done.stdout


def test_what_is_no_log_is_exit_code_two(log: Path, tmp_path: Path) -> None:
    assert "No such file" in refused("schedule", "replay", tmp_path / "no.jsonl")
    assert "directory" in refused("schedule", "replay", tmp_path)
    assert "line 1 is not JSON" in refused("schedule", "replay", ROOT / "README.md")
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(log.read_bytes()[:-10])
    number = len(written(log)) + 1
    assert f"cut.jsonl: line {number} is cut short" in refused("schedule", "replay", cut)
    assert refused("schedule", "replay", cut, "--json", tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_a_replay_does_not_write_over_its_own_log(log: Path, tmp_path: Path) -> None:
    copy, link = tmp_path / "run.jsonl", tmp_path / "link.jsonl"
    copy.write_bytes(log.read_bytes())
    link.symlink_to(copy)
    for target in (copy, link, tmp_path / "." / "run.jsonl"):
        assert "is the input" in refused("schedule", "replay", copy, "--json", target)
    assert "is the input" in refused("schedule", "replay", link, "--json", copy)
    assert copy.read_bytes() == log.read_bytes()
    assert link.is_symlink()


def test_a_file_name_that_is_not_utf8(log: Path, tmp_path: Path) -> None:
    odd = tmp_path / "\udcff.jsonl"
    odd.write_bytes(log.read_bytes())
    found = json_of("schedule", "replay", odd)
    assert found["log"] == f"{tmp_path}/\N{REPLACEMENT CHARACTER}.jsonl"
    done = dualpath("schedule", "replay", odd)
    assert done.returncode == 0, done.stderr  # 1 would say that a decision differs


# ---- schema --------------------------------------------------------------------------------------


def test_the_schema_accepts_what_is_logged_and_nothing_else(log: Path, tmp_path: Path) -> None:
    done = dualpath("schema", "events")
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    lines = written(log)
    kinds = {line["event"]["kind"]: line for line in lines if line.get("decisions")}
    kinds |= {line["event"]["kind"]: line for line in lines if not line.get("decisions")}
    for line in [*lines[:100], *kinds.values()]:
        validator.validate(line)
    with (tmp_path / "x").open("wb") as file:
        scheduler = Scheduler(compiled=False)
        DecisionLog(scheduler, file)
        for event in (Submit("a", 5, 6), Submit("a", 2**70, 0)):
            with pytest.raises(InputError):
                scheduler.handle(event)
    start, *odd = map(orjson.loads, (tmp_path / "x").read_bytes().splitlines())
    assert start["kind"] == "start"
    assert [type(line["event"]) for line in odd] == [dict, str]
    for line in (start, *odd):
        validator.validate(line)
        for field in line:
            assert not validator.is_valid({k: v for k, v in line.items() if k != field}), field
    submit = next(line["event"] for line in lines if line["event"]["kind"] == "submit")
    for bad in (
        {**submit, "kind": "explode"},
        {**submit, "prompt_tokens": "5"},
        {**submit, "prompt_tokens": None},
        {**submit, "request": 7},
        {"kind": "submit"},
        {"request": "a", "attempt": 1},
        {},
        7,
    ):
        assert not validator.is_valid({"event": bad, "decisions": []}), bad
    no_lines: tuple[Any, ...] = ({}, 7, [], submit, [submit], {"event": submit}, {"decisions": []})
    for no_line in no_lines:
        assert not validator.is_valid(no_line), no_line


def test_the_schema_requires_every_field_of_a_line(log: Path) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(dualpath("schema", "events").stdout))
    decided = {d["kind"]: line for line in written(log) for d in line["decisions"]}
    events = {line["event"]["kind"]: line for line in written(log)}
    assert len(decided) > 3
    assert len(events) > 3
    for kind, line in events.items():
        for field in line["event"]:
            less = {k: v for k, v in line["event"].items() if k != field}
            assert not validator.is_valid({**line, "event": less}), (kind, field)
    for kind, line in decided.items():
        decision = next(d for d in line["decisions"] if d["kind"] == kind)
        for field in decision:
            less = {k: v for k, v in decision.items() if k != field}
            assert not validator.is_valid({**line, "decisions": [less]}), (kind, field)
