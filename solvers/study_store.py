"""A study's folder: what was asked, a Parquet file for each finished piece, and all of it in order.

``study.json`` says what the study is; ``points/points-START-STOP.parquet`` holds the points START to
STOP - 1 and is renamed into place when it is whole, so that its name alone says that they are done;
``results.parquet`` has all points in order once there are all. A lock keeps a second run out.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualpath_model.errors import InputError
from solvers.study_work import Done, Work, to_parquet

MANIFEST, RESULTS, POINTS, LOCK = "study.json", "results.parquet", "points", ".lock"
VERSION = 1
_NAMED = 3  # files that a message names
_PART = re.compile(r"points-(\d+)-(\d+)\.parquet")

Range = tuple[int, int]
"""Points from the first up to, not including, the second."""


class Store:
    """The folder of one study; made by :func:`opened`."""

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        """Take the folder, and the manifest of the study that is asked for."""
        self.path, self.asked = path, asked

    def missing(self) -> list[Range]:
        """Return the ranges of points that no file has yet, in order.

        Raises InputError if a file is damaged or two have the same point.
        """
        found: list[Range] = []
        at = 0
        for (start, stop), file in _parts(self.path):
            if start < at:
                raise InputError(f"{file} repeats points of another file; delete one of them")
            _check_part(file, stop - start)
            if start > at:
                found.append((at, start))
            at = stop
        if at < self.asked["points"]:
            found.append((at, self.asked["points"]))
        return found

    def add(self, done: Done) -> None:
        """Write finished points: all of them or none. Raises InputError if the place refuses."""
        name = f"points-{done.start:09d}-{done.stop:09d}.parquet"
        _write(self.path / POINTS / name, done.parquet, self.path)

    def finish(self) -> Path:
        """Write all points in order into one file, the same bytes whoever worked them out."""
        path = self.path / RESULTS
        if not _whole(path, self.asked["points"]):
            _write(path, to_parquet(_table(self.asked["schema"], _in_order(self.path))), self.path)
        return path


@contextmanager
def opened(path: Path, work: Work, asked: dict[str, Any]) -> Iterator[Store]:
    """Open a study's folder to add to it, or make it.

    Raises InputError if it cannot be written to, holds another study or something else, or another
    run is at it.
    """
    _check_place(path)
    manifest = path / MANIFEST
    try:
        new = not manifest.exists()
        if new and path.exists() and {p.name for p in path.iterdir()} - {LOCK, POINTS}:
            raise InputError(f"{path} holds other files and no study; give --out a new name")
        (path / POINTS).mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as error:
        raise _refused(path, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{path}: another run is at this study now; wait for it, or give --out a new name"
            ) from None
        for left in path.glob("**/.aside-*"):  # of a run that was killed
            left.unlink(missing_ok=True)
        if manifest.exists():
            _check_same(path, read_manifest(path), asked)
        content = (json.dumps(asked, indent=1) + "\n").encode()
        if new or manifest.read_bytes() != content:  # its name or what is best may have changed
            _write(manifest, content, path)
        yield Store(path, asked)


def _check_place(path: Path) -> None:
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; give --out the name of a folder")
        parent = path if path.exists() else path.resolve().parent
        if not parent.is_dir():
            raise InputError(f"{path}: the folder {parent} does not exist; make it first")
    except OSError as error:
        raise _refused(path, error) from None
    if not os.access(parent, os.W_OK):
        raise InputError(f"{path}: the folder {parent} cannot be written to; choose another")


def _check_same(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    if there["digest"] == asked["digest"]:
        return
    was, now = there["question"], asked["question"]
    differ = [
        name + (_which(was.get(name), now[name]) if name == "files" else "")
        for name in now
        if was.get(name) != now[name]
    ]
    raise InputError(
        f"{path} holds another study, '{there['name']}', which differs in {', '.join(differ)}; give "
        f"--out a new name, or delete that folder"
    )


def _which(was: object, now: dict[str, str]) -> str:
    """Return which files differ, in brackets, some of them."""
    if not isinstance(was, dict):
        return ""
    differ = [name for name in {**now, **was} if was.get(name) != now.get(name)]
    more = [f"{len(differ) - _NAMED} more"] if len(differ) > _NAMED else []
    return f" ({', '.join(differ[:_NAMED] + more)})"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a study's folder says that it is. Raises InputError if it is none."""
    file = Path(path) / MANIFEST
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise InputError(
                f"{file} is of version {found['version']}; this toolkit reads {VERSION}"
            )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path} is no study: it has no {MANIFEST}; give the folder that "
            f"`dualpath study run --out` wrote"
        ) from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); check permissions") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged; run the study again into a new folder") from None
    return dict(found)


def _parts(path: Path) -> list[tuple[Range, Path]]:
    found = []
    for file in (path / POINTS).iterdir():
        match = _PART.fullmatch(file.name)
        if match is not None:
            found.append(((int(match[1]), int(match[2])), file))
    return sorted(found)


def _in_order(path: Path) -> list[Path]:
    return [file for _, file in _parts(path)]


def _check_part(file: Path, rows: int) -> None:
    if not _whole(file, rows):
        raise InputError(f"{file} is damaged; delete it and run the study again")


def _whole(file: Path, rows: int) -> bool:
    """Say whether a Parquet file is there, ends as one does, and has so many rows."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return bool(read_metadata(file).num_rows == rows)
    except (ArrowException, OSError):
        return False


def read_study(path: str | Path) -> Any:
    """Return a study's finished points as a pyarrow table, in order; also while it still runs.

    ``.to_pandas()`` makes a data frame of it, ``polars.from_arrow`` too. Raises InputError if ``path``
    is no study's folder or a file in it is damaged.
    """
    path = Path(path)
    schema, results = read_manifest(path)["schema"], path / RESULTS
    return _table(schema, [results] if results.exists() else _in_order(path))


def _table(schema: str, files: list[Path]) -> Any:
    import pyarrow
    from pyarrow import ArrowException, ipc
    from pyarrow.parquet import ParquetFile

    tables = [ipc.read_schema(pyarrow.py_buffer(bytes.fromhex(schema))).empty_table()]
    for file in files:
        try:
            tables.append(ParquetFile(file).read())
        except (ArrowException, OSError):
            raise InputError(f"{file} is damaged; delete it and run the study again") from None
    return pyarrow.concat_tables(tables).combine_chunks()


def _write(path: Path, content: bytes, study: Path) -> None:
    aside = path.with_name(f".aside-{path.name}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _refused(study, error) from None


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be written ({error.strerror}); mend that, or choose another, and run again: "
        f"finished points are kept"
    )
