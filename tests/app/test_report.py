"""The HTML report: complete, self-contained, safe, and never half written."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from app import files
from app.report import report_html, write_report
from dualpath_model import InputError, Scenario
from solvers import Plan
from tests.app.conftest import EVIL

Case = tuple[Plan, Scenario]


class Tags(HTMLParser):
    """Collects what a browser would fetch, and text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.scripts = 0
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v]
        self._inside = tag in ("script", "style")
        self.scripts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.text.append(data)


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def test_report_needs_nothing_else(paper: Case) -> None:
    tags = parsed(report_html(*paper))
    assert tags.fetched == []
    words = " ".join(tags.text)
    for part in (
        "Prefill storage NICs limit Basic",
        "2.72x",
        "bottleneck-free range",
        "alpha",
        "beta",
    ):
        assert part in words


def test_every_case_reports(case: Case) -> None:
    text = report_html(*case)
    assert text.count("plotly-graph-div") >= 5
    assert "nan%" not in text


def test_names_cannot_be_markup(evil: Case, paper: Case) -> None:
    text = report_html(*evil)
    assert EVIL not in text
    assert '<script>alert("x")' not in text
    assert parsed(text).scripts == parsed(report_html(*paper)).scripts


def test_nodes_alike_share_a_line(paper: Case) -> None:
    text = report_html(*paper)
    assert len(re.findall(r"<td>0-3</td><td>decode storage NICs, in</td>", text)) == 1


def test_report_is_written_whole(paper: Case, tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    write_report(*paper, path)
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.html"]


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.html"
    path.write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="cannot be written"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.html"]


def test_impossible_places(paper: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        write_report(*paper, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        write_report(*paper, tmp_path / "no" / "plan.html")


def test_what_is_not_an_ordinary_file_stays(tmp_path: Path) -> None:
    """Renaming over a device or a pipe would take it away."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not an ordinary file"):
        files.write_atomically(pipe, "x")
    assert pipe.is_fifo()
    for path in (Path("/proc/plan.html"), tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            files.write_atomically(path, "x")


def test_parameters_name_the_scenarios_own_rules(paper: Case) -> None:
    plan, scenario = paper
    text = report_html(plan, replace(scenario, rules=replace(scenario.rules, alpha_s=7.0)))
    assert "readable in 7 s" in text
    assert "prefilled by a GPU in 5 s" in text


def test_written_files_have_the_usual_mode(tmp_path: Path) -> None:
    files.write_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
