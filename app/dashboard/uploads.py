"""Uploaded files: checked, then kept under their SHA-256 in one folder that ends with the server.

A name that a user gives is a label; nothing on disk is called by it but a link in a folder of our own,
after it was cleaned. Digests and names also come from links (URLs), so they are checked again here.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from app.dashboard import references
from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.profile import load_profile
from dualpath_model.scenario import parse_spec
from dualpath_model.traces import load_workload


class Kind(StrEnum):
    """What an upload can be."""

    SCENARIO = "scenario"
    PROFILE = "profile"
    TRACE = "trace"


MOST_BYTES = {Kind.SCENARIO: 10**6, Kind.PROFILE: 50 * 10**6, Kind.TRACE: 100 * 10**6}
"""Of one file of each kind."""
ENDINGS = {
    Kind.SCENARIO: (".yaml", ".yml"),
    Kind.PROFILE: (".json",),
    Kind.TRACE: (".csv", ".json", ".jsonl", ".gz"),
}
_ANY_ENDING = tuple(dict.fromkeys(ending for endings in ENDINGS.values() for ending in endings))
MOST_STORED_BYTES = 10**9
"""Of all files together; beyond it the one that was not used for the longest time goes."""

_MOST_INFLATED_BYTES = 256 * 2**20
_MOST_LINE_BYTES = 32 * 2**20
_MOST_NAME = 80
_CHUNK_BYTES = 2**20
_BASE_FOLDERS = ("traces", "profiles")
_LIBRARY_ADVICE = "split it or raise max_inflated_bytes if you trust its source"
_ADVICE = "split it, or read it with the command line"
_lock = threading.Lock()
_making = threading.Lock()


@dataclass(frozen=True)
class Upload:
    """A file that is kept: its cleaned name, its SHA-256 and its kind."""

    name: str
    digest: str
    kind: Kind
    size_bytes: int


def keep(name: str, content: bytes | BinaryIO, kind: Kind) -> Upload:
    """Check an uploaded file and keep it.

    Raises InputError, for a full disk of the server too, and then nothing is left of the file.
    """
    called = clean(name)
    ending = Path(called).suffix.lower()
    if ending not in ENDINGS[kind]:
        raise InputError(
            f"'{called}' is not taken as a {kind}: its name must end in {' or '.join(ENDINGS[kind])}, "
            f"so rename it or give another"
        )
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    with _disk():
        aside, digest, size = _copied(stream, called, kind, ending)
    try:
        _check(aside, called, kind)
        with _disk(), _lock:
            _make_room(size, digest)
            aside.replace(_store() / f"{digest}{ending}")
    finally:
        aside.unlink(missing_ok=True)
    return Upload(called, digest, kind, size)


def path(digest: str) -> Path:
    """Return where a kept file is. Raises InputError if it is not here, or no longer."""
    return _found(digest, _ANY_ENDING)


def text(digest: str) -> str:
    """Return a kept scenario as it was given. Raises InputError if it is not here, or no longer."""
    found = _found(digest, ENDINGS[Kind.SCENARIO])
    with _disk():
        return found.read_bytes().decode()  # line ends stay, so that its digest does


def _found(digest: str, endings: tuple[str, ...]) -> Path:
    if is_digest(digest):
        for ending in endings:
            found = _store() / f"{digest}{ending}"
            try:
                os.utime(found)  # used now, so others go before it
            except OSError:  # not there, or gone just now
                continue
            return found
    raise InputError(
        "an uploaded file of this link is not on this server, or no longer; upload it again"
    )


def is_digest(digest: str) -> bool:
    """Tell whether a text is a SHA-256 as files are kept under."""
    return re.fullmatch("[0-9a-f]{64}", digest) is not None


def is_name(name: object) -> bool:
    """Tell whether a name, of a link say, is one that an upload can have."""
    return isinstance(name, str) and clean(name) == name and name not in _BASE_FOLDERS


def folder(files: tuple[tuple[str, str], ...], base: Path | None) -> Path:
    """Return a folder in which each name of ``files`` is the upload of that digest.

    With ``base``, the folder of shipped examples, the traces and profiles of the examples are there,
    too. Raises InputError for a name that is not clean, a file that is gone, or a full disk.
    """
    for name, digest in files:
        if not is_name(name):
            raise InputError(f"'{clean(name)}' is no name of an uploaded file; upload it again")
        path(digest)
    key = hashlib.sha256(repr((files, base)).encode()).hexdigest()
    found = _store() / "views" / key
    if found.is_dir():
        return found
    links = {name: path(digest) for name, digest in files}
    if base is not None:
        links |= {name: base / name for name in _BASE_FOLDERS if (base / name).is_dir()}
    with _disk():
        (_store() / "views").mkdir(exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=_store()))
        try:
            for name, target in links.items():
                (aside / name).symlink_to(target)
            _moved(aside, found)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # there only if it was not moved
    return found


def _moved(made: Path, to: Path) -> None:
    try:
        made.rename(to)
    except OSError:
        if not to.is_dir():  # else another thread was quicker
            raise


def clean(name: str) -> str:
    """Return the label that a user's file name gives: its last part, of harmless letters."""
    last = re.split(r"[/\\]", name)[-1]
    kept = re.sub(r"[^\w.\- ]", "_", last, flags=re.ASCII).strip(" .")
    stem, dot, ending = kept.rpartition(".")
    if len(kept) > _MOST_NAME:
        kept = (stem[: _MOST_NAME - len(ending) - 1] + dot + ending)[-_MOST_NAME:].strip(" .")
    return kept or "upload"


def _store() -> Path:
    """Return the folder of this server, made at first and removed at the end. Raises InputError."""
    with _making, _disk():  # a cache alone lets two who come first make one each
        return _folder_of_server()


@lru_cache(1)
def _folder_of_server() -> Path:
    made = Path(tempfile.mkdtemp(prefix="dualpath-dashboard-"))  # for this user alone
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@contextmanager
def _disk() -> Iterator[None]:
    """Say in a sentence that the server's disk does not take what is written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the server has no room for the file, and nothing was changed"
        else:
            reason = error.strerror or type(error).__name__
            why = f"the server cannot keep the file ({reason}), and nothing was changed"
        raise InputError(f"{why}; try again later, or tell who runs it") from None


def _copied(stream: BinaryIO, name: str, kind: Kind, ending: str) -> tuple[Path, str, int]:
    """Copy at most what is allowed; return the copy, its SHA-256 and size."""
    digest, size = hashlib.sha256(), 0
    handle, aside = tempfile.mkstemp(ending, dir=_store())
    try:
        with os.fdopen(handle, "wb") as file:
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > MOST_BYTES[kind]:
                    raise InputError(
                        f"'{name}' is larger than {MOST_BYTES[kind] // 10**6} MB, the most for a "
                        f"{kind}; shorten it, or use the command line"
                    )
                digest.update(chunk)
                file.write(chunk)
    except BaseException:
        Path(aside).unlink()
        raise
    return Path(aside), digest.hexdigest(), size


def _check(file: Path, name: str, kind: Kind) -> None:
    """Raise InputError, with the user's name of the file, if it is not what it should be."""
    try:
        if kind is Kind.SCENARIO:
            document = yaml_lines.read(file)
            parse_spec(document)
            references.check(document.data, None)
        elif kind is Kind.PROFILE:
            load_profile(file)
        else:
            load_workload(
                file, max_inflated_bytes=_MOST_INFLATED_BYTES, max_line_bytes=_MOST_LINE_BYTES
            )
    except InputError as error:
        words = str(error).replace(str(file), name)
        # who uploads cannot call the library with other limits
        raise InputError(words.replace(_LIBRARY_ADVICE, _ADVICE)) from None


def _make_room(size: int, digest: str) -> None:
    """Let go of the files that were not used for the longest time."""
    files = [found for found in _store().iterdir() if is_digest(found.stem)]
    files.sort(key=lambda found: found.stat().st_mtime)
    total = sum(found.stat().st_size for found in files)
    for found in files:
        if total + size <= MOST_STORED_BYTES:
            return
        if found.stem != digest:
            total -= found.stat().st_size
            found.unlink()
