"""Folders are written whole or not at all, replaced only on request, and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualpath_model.errors import InputError
from dualpath_model.export import diff, folder, write
from tests.export.plans import made


def test_every_value_says_where_it_comes_from() -> None:
    files = made("scheduler").files
    derivations = json.loads(files["derivations.json"])["files"]["scheduler.json"]
    alpha = derivations["/nodes/0/limits/alpha_tokens"]
    assert alpha["unit"] == "tokens"
    inputs = alpha["inputs"]
    found = inputs["alpha_s"] * inputs["storage_read_bytes_per_s"] / inputs["read_bytes_per_token"]
    assert alpha["value"] == int(found)


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(made("scheduler"), out)
    assert {path.name for path in out.iterdir()} == set(made("scheduler").files)
    with pytest.raises(InputError, match="is there already; --force replaces it"):
        write(made("scheduler"), out)
    write(made("scheduler", "heterogeneous"), out, force=True)
    assert diff(made("scheduler", "heterogeneous"), out) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_replaced_that_no_export_wrote(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(InputError, match="a folder that no export wrote"):
        write(made("scheduler"), tmp_path, force=True)
    with pytest.raises(InputError, match="is a file; give --out the name of a new folder"):
        write(made("scheduler"), tmp_path / "precious", force=True)
    with pytest.raises(InputError, match="is a file; give --out another name"):
        write(made("scheduler"), tmp_path / "precious" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_folders_above_are_made_and_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", full)
        with pytest.raises(InputError, match="No space left"):
            write(made("scheduler"), tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.iterdir())
    write(made("scheduler"), tmp_path / "a" / "b" / "out")
    assert (tmp_path / "a" / "b" / "out" / "README.md").is_file()


def test_places_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="symbolic link"):
        write(made("scheduler"), tmp_path / "loop" / "x")
    for place in (Path("/"), Path("//")):
        with pytest.raises(InputError, match="a folder that no export wrote"):
            write(made("scheduler"), place, force=True)


def test_versions_beyond_those_looked_at_are_said() -> None:
    assert "is newer than" not in made("sglang").files["README.md"]
    newer = made("sglang", version="9.0").files["README.md"]
    assert "SGLang 9.0 is newer than 0.5.23, the newest whose fields were looked at" in newer


def test_a_failure_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(made("scheduler"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(self: Path, *_: object, **__: object) -> int:
        if self.name == "scheduler.schema.json":  # after others are written
            raise OSError(28, "No space left on device")
        return write_text(self, *_, **__)  # type: ignore[arg-type]

    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        write(made("scheduler", "heterogeneous"), out, force=True)
    with pytest.raises(InputError, match="No space left"):
        write(made("scheduler"), tmp_path / "new")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_difference_is_shown(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(made("scheduler"), out)
    assert diff(made("scheduler"), out) == ""
    (out / "scheduler.schema.json").unlink()
    shown = diff(made("scheduler", "deepseek-660b-2p4d"), out)
    assert "--- /dev/null\n+++ b/scheduler.schema.json" in shown
    other = diff(made("scheduler", "heterogeneous"), out)
    assert '-  "split":' in other
    assert '+  "split":' in other
    with pytest.raises(InputError, match="does not exist; --diff compares with a folder"):
        diff(made("scheduler"), tmp_path / "none")


def test_files_of_the_user_are_never_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(made("opensm"), out)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"no export wrote \(\.git, notes\.txt\); move them"):
        write(made("opensm"), out, force=True)
    assert (out / ".git" / "HEAD").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(InputError, match="a folder that no export wrote"):
        diff(made("opensm"), tmp_path / "other")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(made("opensm"), tmp_path / "real")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    write(made("opensm", "heterogeneous"), link, force=True)
    assert link.is_symlink()
    assert diff(made("opensm", "heterogeneous"), tmp_path / "real") == ""
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="a symbolic link to nothing"):
        write(made("opensm"), tmp_path / "dangling")


def test_relative_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(made("scheduler"), Path("out"))
    write(made("scheduler"), Path("./out/"), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_mark_is_among_the_files() -> None:
    assert folder.MARK in made("scheduler").files
