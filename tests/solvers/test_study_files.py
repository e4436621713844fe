"""Which files a study's axes name, and that a changed one is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.catalog.files import shipped
from solvers import study_files
from tests.solvers.studies import GRID, made, trace, traced, write


def llm_file() -> dict[str, Any]:
    entry: dict[str, Any] = shipped("llms.yaml")["deepseek-v3.2"]
    return entry


def seen(folder: Path, axes: dict[str, Any]) -> dict[str, str]:
    """Return the files that a study over these axes names, its base's left out."""
    found = dict(made(folder, {**GRID, "base": "base.yaml", "axes": axes}).files)
    del found["the base's"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base scenario, and beside it a file of each kind that an axis may name."""
    traced(tmp_path, "one.csv")
    for name in ("a.csv", "b.csv"):
        trace(tmp_path / "many" / name, 1000)
    (tmp_path / "many" / "README.md").write_text("words")
    write(tmp_path, llm_file(), "llm.yaml")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    write(tmp_path, {"base": "paper-hopper", "profile": "profile.json"}, "node.yaml")
    (tmp_path / "profile.json").write_text(json.dumps({"format": "none"}))
    pool = {"node": "node.yaml", "count": 4}
    write(tmp_path, {"prefill": pool, "decode": pool}, "cluster.yaml")
    return tmp_path


NAMED: list[tuple[str, list[Any], str, list[str]]] = [
    ("workload.trace", ["one.csv"], "trace one.csv", ["one.csv"]),
    ("workload.trace", [{"path": "one.csv"}], "trace one.csv", ["one.csv"]),
    ("workload.trace.path", ["one.csv"], "trace one.csv", ["one.csv"]),
    ("workload.trace", ["many"], "trace many", ["many/a.csv", "many/b.csv"]),
    ("llm", ["llm.yaml"], "llm llm.yaml", ["llm.yaml"]),
    ("llm", ["./weights"], "llm ./weights", ["weights/config.json"]),
    ("cluster.prefill.node", ["node.yaml"], "node node.yaml", ["node.yaml", "profile.json"]),
    (
        "cluster.prefill.node",
        [{"base": "paper-hopper", "profile": "profile.json"}],
        "profile profile.json",
        ["profile.json"],
    ),
    ("cluster.prefill.node.profile", ["profile.json"], "profile profile.json", ["profile.json"]),
    (
        "cluster",
        ["cluster.yaml"],
        "cluster cluster.yaml",
        ["cluster.yaml", "node.yaml", "profile.json"],
    ),
]


@pytest.mark.parametrize(("axis", "values", "name", "files"), NAMED, ids=lambda v: str(v)[:30])
def test_a_change_of_any_file_that_an_axis_names_is_seen(
    folder: Path, axis: str, values: list[Any], name: str, files: list[str]
) -> None:
    before = seen(folder, {axis: values})
    assert list(before) == [name] and before[name] != "none"
    for file in files:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content + b"\n")
        assert seen(folder, {axis: values}) != before, file
        (folder / file).write_bytes(content)
    assert seen(folder, {axis: values}) == before


def test_names_and_numbers_are_no_files(folder: Path) -> None:
    axes = {
        "llm": ["deepseek-v3.2"],
        "cluster.prefill.node": ["paper-hopper"],
        "cluster.decode.count": [1, 2],
        "slo.tpot": ["30 ms"],
        "scheduler.alpha": {"from": "1 s", "to": "2 s", "steps": 3},
        "workload.scale.hit_rate": [0.5],
    }
    assert seen(folder, axes) == {}


def test_what_cannot_be_read_is_none_until_it_can(folder: Path) -> None:
    (folder / "empty").mkdir()
    names = ["gone.yaml", "/dev/zero.yaml", "./empty", "~nobody-of-that-name/x.yaml", "a\0.yaml"]
    assert set(seen(folder, {"llm": names}).values()) == {"none"}
    write(folder, llm_file(), "gone.yaml")
    assert seen(folder, {"llm": names})["llm gone.yaml"] != "none"


def test_documentation_beside_traces_does_not_count(folder: Path) -> None:
    axes = {"workload.trace": ["many"]}
    before = seen(folder, axes)
    (folder / "many" / "README.md").write_text("other words")
    assert seen(folder, axes) == before


def test_each_file_is_read_once_however_often_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = study_files._digest

    def counted(field: str, text: str, where: Path) -> str:
        read.append(text)
        return digest(field, text, where)

    monkeypatch.setattr(study_files, "_digest", counted)
    nodes = [{"base": "paper-hopper", "profile": "profile.json", "snics": n} for n in range(1, 5)]
    also = ["cluster.decode.node"]
    seen(folder, {"cluster.prefill.node": {"values": nodes, "also": also}})
    assert read == ["profile.json"]
