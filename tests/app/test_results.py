"""``dualpath simulate --out``: what the files hold, and when there are none."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from app import results
from app.results import check_folder
from dualpath_model import InputError
from solvers.simulator import series
from solvers.simulator.state import RESULT_TIMES
from tests.app.test_cli import dualpath, refused
from tests.app.test_report import parsed

FILES = ["cluster.parquet", "figures.html", "requests.parquet", "series.parquet", "summary.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of results, and the JSON that was printed beside it."""
    out = tmp_path_factory.mktemp("results") / "run"
    words = ("simulate", "deepseek-660b-2p4d", "--agents", "30", "--seconds", "60", "--sample", "5")
    done = dualpath(*words, "--out", out, "--json", "-")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.mark.slow
def test_the_summary_is_what_json_prints(made: tuple[Path, str]) -> None:
    out, printed = made
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert (out / "summary.json").read_text() == printed
    assert [path.name for path in out.parent.iterdir()] == ["run"]


@pytest.mark.slow
def test_requests_are_the_turns_that_ended(made: tuple[Path, str]) -> None:
    out, printed = made
    found = pyarrow.parquet.read_table(out / "requests.parquet")
    summary = json.loads(printed)
    assert len(found) == summary["turns"] > 0
    stored = pyarrow.parquet.read_metadata(out / "requests.parquet").row_group(0)
    assert stored.column(0).compression == "ZSTD"
    column = {name: found[name].to_numpy() for name in found.column_names}
    times = [column[f"{name}_s"] for name in RESULT_TIMES]
    assert all(values.dtype == np.float64 for values in times)
    names = [f"{name}_s" for name in RESULT_TIMES if name != "admitted"]
    for before, after in pairwise(names):
        assert (column[before] <= column[after]).all(), (before, after)
    assert (np.diff(column["ended_s"]) >= 0).all()
    assert column["ttft_s"].mean() == pytest.approx(summary["ttft_s"]["mean"], rel=1e-12)
    tpot = found["tpot_s"].drop_null().to_numpy()
    assert tpot.mean() == pytest.approx(summary["tpot_s"]["mean"], rel=1e-9)
    assert found["tpot_s"].null_count == (column["output_tokens"] <= 2).sum()
    assert (column["hit_tokens"] < column["prompt_tokens"]).all()
    assert (column["read_by_decode_tokens"] <= column["hit_tokens"]).all()
    for agent in range(30):  # turns of a session follow each other
        mine = column["turn"][column["agent"] == agent]
        assert (mine == np.arange(len(mine))).all()
    assert {name.split("/")[0] for name in found["decode_engine"].to_pylist()} <= {
        "d0",
        "d1",
        "d2",
        "d3",
    }


@pytest.mark.slow
def test_series_have_a_row_for_each_sample_and_node(made: tuple[Path, str]) -> None:
    out, _ = made
    nodes = pyarrow.parquet.read_table(out / "series.parquet")
    cluster = pyarrow.parquet.read_table(out / "cluster.parquet")
    assert nodes.column_names == ["time_s", "node", "pool", *series.NODE]
    assert cluster.column_names == [*series.CLUSTER, "working_set_bytes"]
    assert cluster["time_s"].to_pylist() == list(range(5, 65, 5))
    assert len(nodes) == 6 * len(cluster)
    assert nodes["node"].to_pylist()[:6] == ["p0", "p1", "d0", "d1", "d2", "d3"]
    assert nodes["pool"].to_pylist()[:6] == 2 * ["prefill"] + 4 * ["decode"]
    assert (np.diff(nodes["time_s"].to_numpy()) >= 0).all()


@pytest.mark.slow
def test_figures_are_one_page_that_needs_nothing_else(made: tuple[Path, str]) -> None:
    text = (made[0] / "figures.html").read_text()
    tags = parsed(text)
    assert tags.fetched == []
    for words in (
        "TTFT: half within",
        "What TTFT consists of",
        "Queues: ",
        "Storage NICs: the fullest node reads",
        "Requests: ",
        "Working set: at most",
    ):
        assert words in text, words
    assert "turns of 30 agents" in " ".join(tags.text)


@pytest.mark.slow
def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    out = tmp_path / "short"
    words = ("simulate", "deepseek-660b-2p4d", "--agents", "2", "--seconds", "0.1", "--out", out)
    done = dualpath(*words)
    assert done.returncode == 0, done.stderr
    assert "no turn ended" in done.stdout
    assert pyarrow.parquet.read_metadata(out / "requests.parquet").num_rows == 0
    assert "before the first sample" in (out / "figures.html").read_text()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    words = ("simulate", "deepseek-660b-2p4d", "--out")
    assert "not an empty folder" in refused(*words, tmp_path)
    assert "not an empty folder" in refused(*words, tmp_path / "mine.txt")
    assert "does not exist" in refused(*words, tmp_path / "no" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_json_is_not_written_into_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json of its own"):
        check_folder(tmp_path, str(tmp_path / "x.json"))
    check_folder(tmp_path, "-")
    check_folder(tmp_path / "new")


def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "_write", full)
    monkeypatch.setattr(results, "requests_tables", lambda _: iter([]))
    with pytest.raises(InputError, match="No space left"):
        results.write_results(_Nothing(), None, {}, "", tmp_path / "run")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


class _Nothing:
    run = None
