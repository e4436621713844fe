"""The loop and the folder: no point lost, none twice, whatever dies and in whatever order."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from solvers import study_work
from solvers.study import Study, load_study, read_study, run_study
from solvers.study_engines import Outcome, WorkerDiedError
from solvers.study_run import drive
from solvers.study_store import MANIFEST, POINTS, RESULTS, Range, opened
from solvers.study_work import Done, evaluate
from tests.solvers.studies import GRID, made, trace, traced, write


class Fake:
    """An engine in this process that ends pieces in any order and dies at chosen points."""

    def __init__(self, study: Study, deadly: set[int], shared: bool, seed: int) -> None:
        self.workers = 2
        self.study, self.deadly, self.shared = study, deadly, shared
        self.draw = random.Random(seed)
        self.pieces: list[Range] = []
        self.tried: dict[int, int] = {}
        self.most = 0

    def submit(self, piece: Range) -> None:
        self.pieces.append(piece)
        self.most = max(self.most, len(self.pieces))

    def finished(self, timeout_s: float) -> list[tuple[Range, Outcome]]:
        self.draw.shuffle(self.pieces)
        piece = self.pieces.pop()
        kills = [n for n in range(*piece) if n in self.deadly]
        for number in kills[:1]:
            self.tried[number] = self.tried.get(number, 0) + 1
        if not kills:
            return [(piece, evaluate(self.study.work, *piece))]
        died = [piece, *self.pieces] if self.shared else [piece]
        self.pieces = [] if self.shared else self.pieces
        return [(one, WorkerDiedError("killed")) for one in died]

    def close(self) -> None:
        pass


@given(
    deadly=st.sets(st.integers(0, 23), max_size=4),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_whatever_dies_every_point_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, deadly: set[int], shared: bool, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("study")
    study = made(folder, GRID)
    engine = Fake(study, deadly, shared, seed)
    with opened(folder / "out", study.work, study.manifest) as store:
        ran = drive(study.work, store, engine, lambda *_: None)
    table = read_study(folder / "out")
    assert table.column("point").to_pylist() == list(range(24))
    kinds = table.column("failure").to_pylist()
    assert {n for n, kind in enumerate(kinds) if kind == "worker died"} == deadly
    assert all(engine.tried[number] >= 2 for number in deadly)
    assert ran.points == 24 and engine.most <= 4


def test_results_do_not_depend_on_the_pieces(tmp_path: Path) -> None:
    study = made(tmp_path, GRID)
    files = []
    for name, cuts in (("a", [0, 24]), ("b", [0, 1, 7, 8, 20, 24])):
        with opened(tmp_path / name, study.work, study.manifest) as store:
            pieces = list(itertools.pairwise(cuts))
            for start, stop in reversed(pieces):
                store.add(evaluate(study.work, start, stop))
            assert store.missing() == []
            files.append(store.finish().read_bytes())
    assert files[0] == files[1]


def test_a_second_run_works_on_what_is_missing_alone(tmp_path: Path) -> None:
    study = made(tmp_path, GRID)
    with opened(tmp_path / "out", study.work, study.manifest) as store:
        store.add(evaluate(study.work, 3, 9))
        store.add(evaluate(study.work, 12, 13))
        assert store.missing() == [(0, 3), (9, 12), (13, 24)]
        (tmp_path / "out" / POINTS / ".aside-points-x").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / POINTS).glob("points-*")}
    engine = Fake(study, set(), False, 0)
    with opened(tmp_path / "out", study.work, study.manifest) as store:
        assert not list((tmp_path / "out" / POINTS).glob(".aside-*"))
        told: list[int] = []
        ran = drive(study.work, store, engine, lambda finished, share, text: told.append(finished))
    assert ran.points == 24 - 7 and (told[0], told[-1]) == (7, 24)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert read_study(tmp_path / "out").column("point").to_pylist() == list(range(24))


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    study = made(tmp_path, GRID)
    told = []

    def tell(finished: int, share: float, text: str) -> None:
        told.append(share)
        assert finished == round(24 * share) and text.startswith(f"{finished} of 24 points")
        if len(told) == 3:
            raise KeyboardInterrupt

    with (
        opened(tmp_path / "out", study.work, study.manifest) as store,
        pytest.raises(KeyboardInterrupt),
    ):
        drive(study.work, store, Fake(study, set(), False, 1), tell)
    done = read_study(tmp_path / "out").num_rows
    assert 0 < done < 24 and told == sorted(told)
    assert not (tmp_path / "out" / RESULTS).exists()


def test_a_point_s_row_says_where_it_came_from(tmp_path: Path) -> None:
    study = made(tmp_path, GRID)
    run_study(study, tmp_path / "out", workers=1)
    table = pyarrow.parquet.read_table(tmp_path / "out" / RESULTS)
    assert table.schema.field("slo.tpot").metadata[b"unit"] == b"s"
    assert table.num_rows == study.points
    frame = table.to_pandas()
    assert list(frame.columns[:2]) == ["point", "seed"] and frame.seed.is_unique
    assert frame[frame.failure.isna()].throughput_requests_per_s.gt(0).all()


def test_another_study_is_not_mixed_in(tmp_path: Path) -> None:
    run_study(made(tmp_path, GRID), tmp_path / "out", workers=1)
    other = made(tmp_path, {**GRID, "seed": 1, "metrics": ["split"]})
    with pytest.raises(InputError, match="another study, 'grid', which differs in metrics, seed"):
        run_study(other, tmp_path / "out", workers=1)


def test_files_that_an_axis_names_are_not_mixed_once_changed(tmp_path: Path) -> None:
    spec = traced(tmp_path, "one.csv", "two.csv")
    study = made(tmp_path, spec)
    with opened(tmp_path / "out", study.work, study.manifest) as store:
        store.add(evaluate(study.work, 0, 3))
    trace(tmp_path / "two.csv", 500_000)
    with pytest.raises(
        InputError, match=r"another study, 'traced', which differs in files \(trace two.csv\); give"
    ):
        run_study(made(tmp_path, spec), tmp_path / "out", workers=1)
    trace(tmp_path / "two.csv", 1001)  # as it was: goes on
    assert run_study(made(tmp_path, spec), tmp_path / "out", workers=1).points == 1


def test_a_message_names_a_few_of_many_files(tmp_path: Path) -> None:
    spec = traced(tmp_path, *(f"{n}.csv" for n in range(9)))
    run_study(made(tmp_path, spec), tmp_path / "out", workers=1)
    for n in range(1, 9):
        trace(tmp_path / f"{n}.csv", 7)
    with pytest.raises(
        InputError, match=r"differs in files \(trace 1.csv, trace 2.csv, trace 3.csv, 5 more\)"
    ):
        run_study(made(tmp_path, spec), tmp_path / "out", workers=1)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds other files and no study"):
        run_study(made(tmp_path, GRID), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_run_keeps_a_second_one_out(tmp_path: Path) -> None:
    study = made(tmp_path, GRID)
    with (
        opened(tmp_path / "out", study.work, study.manifest),
        pytest.raises(InputError, match="another run is at this study now"),
        opened(tmp_path / "out", study.work, study.manifest),
    ):
        pass


def test_damaged_files_are_named(tmp_path: Path) -> None:
    study = made(tmp_path, GRID)
    with opened(tmp_path / "out", study.work, study.manifest) as store:
        store.add(Done(0, 2, b"no parquet", 0, 0.0))
        with pytest.raises(InputError, match=r"points-000000000-000000002.parquet is damaged"):
            store.missing()
    with pytest.raises(InputError, match="is damaged"):
        read_study(tmp_path / "out")


def test_a_damaged_table_of_all_points_is_made_again_of_their_files(tmp_path: Path) -> None:
    study, out = made(tmp_path, GRID), tmp_path / "out"
    run_study(study, out, workers=1)
    whole = (out / "results.parquet").read_bytes()
    (out / "results.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"results.parquet is damaged; delete it and run the study"
    ):
        read_study(out)
    assert run_study(study, out, workers=1).points == 0
    assert (out / "results.parquet").read_bytes() == whole


def test_a_folder_that_is_no_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no study: it has no study.json"):
        read_study(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        run_study(made(tmp_path, GRID), tmp_path / "out")


def test_places_that_cannot_be_folders_are_refused(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, GRID))
    with pytest.raises(InputError, match="does not exist; make it first"):
        run_study(study, tmp_path / "no" / "out")
    with pytest.raises(InputError, match="is a file"):
        run_study(study, tmp_path / "study.yaml")
    with pytest.raises(InputError, match=r"cannot be written|does not exist"):
        run_study(study, Path("/proc/out"))


def test_a_worker_that_lives_on_answers_the_next_study(tmp_path: Path) -> None:
    """Workers of a cluster have answered others before: one that differs in its base's SLO alone."""
    base = yaml.safe_load(Path(GRID["base"]).read_text())
    spec = {**GRID, "base": "base.yaml", "axes": {"cluster.decode.count": [4, 5]}, "method": "LP"}
    found = []
    for tpot in ("50 ms", "12 ms"):
        write(tmp_path, base | {"slo": {"ttft": "4 s", "tpot": tpot}}, "base.yaml")
        work = made(tmp_path, spec).work
        here = evaluate(work, 0, 2).parquet
        study_work._ready.clear()
        assert evaluate(work, 0, 2).parquet == here
        found.append(here)
    assert found[0] != found[1]


def test_a_worker_that_lives_on_reads_an_axis_s_file_again(tmp_path: Path) -> None:
    spec, found = traced(tmp_path, "one.csv", "two.csv"), []
    for first in (5000, 500_000):
        trace(tmp_path / "two.csv", first)
        work = made(tmp_path, spec).work
        found.append(evaluate(work, 0, 4).parquet)
        study_work._ready.clear()
        assert evaluate(work, 0, 4).parquet == found[-1]
    assert found[0] != found[1]


def test_a_worker_with_another_copy_of_an_axis_s_file_refuses(tmp_path: Path) -> None:
    work = made(tmp_path, traced(tmp_path, "one.csv", "two.csv")).work
    trace(tmp_path / "two.csv", 500_000)
    with pytest.raises(InputError, match=r"copies of the files that .*base.yaml or an axis names"):
        evaluate(work, 0, 4)


def test_what_is_best_may_change_without_another_study(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(made(tmp_path, GRID), out, workers=1)
    other = {**GRID, "name": "renamed", "best": {"speedup_over_basic": "highest"}}
    run_study(made(tmp_path, other), out, workers=1)
    assert json.loads((out / MANIFEST).read_text())["name"] == "renamed"
