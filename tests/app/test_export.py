"""Exports from outside: what is printed, exit codes, one clear sentence, nothing half written."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from dualpath_model.export import all_targets
from tests.app.test_cli import dualpath, json_of, refused
from tests.conftest import ROOT
from tests.export.plans import plan_data

EXAMPLE = "deepseek-660b-2p4d"


def test_list_says_what_each_target_can_and_cannot() -> None:
    found = json_of("export", "list")
    assert list(found) == sorted(all_targets())
    for name, target in found.items():
        assert set(target) == {"software", "about", "versions", "expresses", "cannot", "parser"}
        assert name == "scheduler" or target["cannot"], name
    shown = dualpath("export", "list")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in found)


def test_a_scenario_and_its_plan_file_give_the_same_files(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert dualpath("plan", EXAMPLE, "--json", plan).returncode == 0
    out = tmp_path / "out"
    done = dualpath("export", "scheduler", EXAMPLE, "--out", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"wrote 4 files to {out}" in done.stderr
    same = dualpath("export", "scheduler", plan, "--out", out, "--diff")
    assert (same.returncode, same.stdout) == (0, "")
    assert f"no difference: {out}" in same.stderr
    renamed = plan.rename(tmp_path / "plan.txt")
    assert dualpath("export", "scheduler", renamed, "--out", out, "--diff").stdout == ""
    plan = renamed.rename(tmp_path / "plan.json")
    other = dualpath("export", "scheduler", "heterogeneous", "--out", out, "--diff")
    assert other.returncode == 0
    assert "+++ b/scheduler.json" in other.stdout
    assert refused("export", "scheduler", plan, "--out", out).endswith("shows what would change")
    assert dualpath("export", "scheduler", plan, "--out", out, "--force").returncode == 0


def test_a_run_from_the_exported_file_is_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert dualpath("export", "scheduler", EXAMPLE, "--out", out).returncode == 0
    words = ("schedule", "run", EXAMPLE, "--agents", "8", "--seconds", "5")
    file = out / "scheduler.json"
    assert json_of(*words, "--scheduler", file) == json_of(*words)
    file.write_text(file.read_text().replace('"version": 1', '"version": 7'))
    assert "version is 7" in refused(*words, "--scheduler", file)


def plan_with(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(copy.deepcopy(plan_data()) | changes))
    return path


def test_bad_input_is_refused_in_a_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    out = tmp_path / "out"
    newer = plan_with(tmp_path / "newer.json", version=2)
    idle = plan_with(tmp_path / "idle.json", throughput_requests_per_s=0)
    cut = tmp_path / "cut.txt"
    cut.write_text(newer.read_text()[:2000])
    before = sorted(tmp_path.iterdir())
    wanted: list[tuple[tuple[str | Path, ...], str, int]] = [
        (("sheduler", EXAMPLE), "the nearest are scheduler", 2),
        (("sglan", EXAMPLE), "the nearest are sglang", 2),
        (("scheduler", newer), "knows plans up to 1", 2),
        (("scheduler", idle), "serves nothing", 1),
        (("scheduler", cut), "is not JSON, or cut off", 2),
        (("scheduler", "deepsek-660b-2p4d"), "the nearest are deepseek-660b-2p4d", 2),
        (("scheduler", file), "", 2),
        (("scheduler", EXAMPLE, "--wrap", "vllm"), "only kubernetes does", 2),
        (("scheduler", EXAMPLE, "--wrap-version", "1"), "--wrap-version is '1', but scheduler", 2),
        (("kubernetes", EXAMPLE), "--wrap is needed by kubernetes", 2),
        (("kubernetes", EXAMPLE, "--wrap", "kubernetes"), "which wraps others itself", 2),
        (("scheduler", EXAMPLE, "--target-version", "0.0.1"), "is older than", 2),
        (("scheduler", EXAMPLE, "--site", tmp_path / "none.yaml"), "none.yaml", 2),
        (("scheduler", EXAMPLE, "--diff"), "does not exist; --diff compares", 2),
    ]
    for words, sentence, code in wanted:
        assert sentence in refused("export", *words, "--out", out, code=code), words
    assert "is a file; give --out" in refused("export", "scheduler", EXAMPLE, "--out", file)
    assert "--out is missing" in refused("export", "scheduler", EXAMPLE)
    assert "needs a scenario or a plan" in refused("export", "scheduler", "--out", out)
    assert "--json is for" in refused("export", "scheduler", EXAMPLE, "--out", out, "--json", "-")
    assert "takes no further argument" in refused("export", "list", EXAMPLE)
    assert sorted(tmp_path.iterdir()) == before


def test_an_infeasible_scenario_has_no_files(tmp_path: Path) -> None:
    source = (ROOT / "examples" / f"{EXAMPLE}.yaml").read_text()
    data = yaml.safe_load(source) | {"slo": {"tpot": "1 us"}}
    path = tmp_path / "strict.yaml"
    path.write_text(yaml.safe_dump(data))
    sentence = refused("export", "scheduler", path, "--out", tmp_path / "out", code=1)
    assert "slo.tpot" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hosts: {prefil: x}", "hosts.prefil"),
        ("ports: {server: 70000}", "ports.server"),
        ('store: "a\\nb"', "store"),
    ],
    ids=["unknown", "range", "newline"],
)
def test_a_bad_site_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(text + "\n")
    sentence = refused("export", "scheduler", EXAMPLE, "--out", tmp_path / "o", "--site", site)
    assert f"{site}:1" in sentence
    assert words in sentence


def test_an_unknown_deployment_is_refused(tmp_path: Path) -> None:
    assert "nearest are vllm" in refused("scenario", "from", "vlm", tmp_path)
    assert str(tmp_path) in refused("scenario", "from", "vllm", tmp_path)
