"""Trace files as bytes: plain or gzip'd, streamed, and never more of them than was agreed.

Whether a file is gzip'd is told by its first bytes, not by its name. What comes out is limited
twice: in all (``max_inflated_bytes``) and for one line (``max_line_bytes``), because a few
megabytes of gzip can inflate to gigabytes and one line is parsed as a whole.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dualpath_model.errors import InputError

DEFAULT_MAX_INFLATED_BYTES = 2 * 1024**3
# a line of block numbers takes about eight times its size once parsed: 128 MiB stay below 1.5 GB
DEFAULT_MAX_LINE_BYTES = 128 * 1024**2

_GZIP_MAGIC = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 256 * 1024
_CHUNK_BYTES = 1024**2
# DEFLATE cannot do better (zlib's technical notes), so a small enough file needs no counting
_MOST_INFLATION = 1032
_NOT_TRACES = {".md", ".txt", ".rst", ".py", ".yaml", ".yml", ".toml", ".html", ".pdf", ".png"}


class _LimitedReader(io.RawIOBase):
    """Pass bytes through, count them, and turn every way to fail into an InputError."""

    def __init__(self, path: Path, stream: BinaryIO, limit: int) -> None:
        self._path = path
        self._stream = stream
        self._limit = limit
        self._count = 0

    def readable(self) -> bool:
        """Say that this is a source."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer`` and return the number of bytes, 0 at the end. Raises InputError."""
        try:
            data = self._stream.read(len(buffer))
        except EOFError:
            raise InputError(
                f"{self._path}: the gzip stream ends in the middle; copy or download the file again"
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(
                f"{self._path}: the gzip stream is damaged ({error}); "
                f"copy or download the file again"
            ) from None
        except OSError as error:
            raise _unreadable(self._path, error) from None
        buffer[: len(data)] = data
        self._count += len(data)
        if self._count > self._limit:
            raise _too_large(self._path, self._limit)
        return len(data)


@dataclass(frozen=True)
class TraceFile:
    """An open trace: its path, its first bytes (inflated) and the way to read it once."""

    path: Path
    head: bytes
    max_line_bytes: int
    _stream: io.BufferedReader[_LimitedReader]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line number from 1, line) without blank lines. Raises InputError."""
        number = 0
        while line := self._stream.readline(self.max_line_bytes + 1):
            number += 1
            if len(line) > self.max_line_bytes:
                raise InputError(
                    f"{self.path}: line {number} is longer than {self.max_line_bytes:,} bytes; "
                    f"a line may hold one request only, so split it"
                )
            if number == 1:
                line = line.removeprefix(_UTF8_MARK)  # a mark is no part of JSON
            if line := line.strip():
                yield number, line

    def document(self) -> bytearray:
        """Return the whole file. Raises InputError if it is larger than a line may be."""
        text = bytearray()
        while chunk := self._stream.read(_CHUNK_BYTES):
            text += chunk
            if len(text) > self.max_line_bytes:
                raise InputError(
                    f"{self.path}: this one session has more than {self.max_line_bytes:,} bytes of "
                    f"JSON; split it into several files"
                )
        return text


@contextmanager
def open_trace(
    path: Path,
    *,
    max_inflated_bytes: int = DEFAULT_MAX_INFLATED_BYTES,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
) -> Iterator[TraceFile]:
    """Open one trace file, gzip'd or not.

    Raises InputError, here or while it is read, if the file is missing, not a file, unreadable,
    empty, a damaged or cut gzip, or inflates to more than ``max_inflated_bytes``; the last is found
    out before anything is parsed and in little memory.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; check the path")
    if not path.is_file():
        raise InputError(f"{path}: this is not a file that can be read as a trace; name a file")
    try:
        raw = path.open("rb")
        magic = raw.peek(2)[:2]  # a disk that cannot be read says so here
    except OSError as error:
        raise _unreadable(path, error) from None
    with raw:
        size = path.stat().st_size
        stream: BinaryIO = raw
        if magic == _GZIP_MAGIC:
            if size * _MOST_INFLATION > max_inflated_bytes:
                _refuse_bomb(path, max_inflated_bytes)
            stream = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
        elif size > max_inflated_bytes:
            raise _too_large(path, max_inflated_bytes)
        limited = _LimitedReader(path, stream, max_inflated_bytes)
        buffered = io.BufferedReader(limited, _HEAD_BYTES)
        head = buffered.peek(_HEAD_BYTES)
        if not head.strip():
            raise InputError(f"{path}: the file is empty; a trace has at least one request")
        yield TraceFile(path, head.removeprefix(_UTF8_MARK), max_line_bytes, buffered)


def trace_paths(path: Path) -> list[Path]:
    """Return the trace files that ``path`` names: itself, or the files of the folder by name.

    In a folder hidden files, sub-folders and documentation (.md, .txt, .py and the like) are passed
    over. Raises InputError if nothing is there.
    """
    if not path.is_dir():
        return [path]  # open_trace says what is wrong with it, if anything
    try:
        found = sorted(
            entry
            for entry in path.iterdir()
            if entry.is_file()
            and not entry.name.startswith(".")
            and entry.suffix.lower() not in _NOT_TRACES
        )
    except OSError as error:
        raise _unreadable(path, error) from None
    if not found:
        raise InputError(
            f"{path}: there is no trace file in this folder; name the folder that holds the files "
            f"(sub-folders are not searched)"
        )
    return found


def _refuse_bomb(path: Path, limit: int) -> None:
    """Inflate the file into one small buffer, only to learn whether it stays within ``limit``."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as inflated:
        counter = _LimitedReader(path, inflated, limit)  # type: ignore[arg-type]
        while counter.readinto(buffer):
            pass


def _too_large(path: Path, limit: int) -> InputError:
    return InputError(
        f"{path}: it holds more than {limit:,} bytes once inflated, the most that is read; "
        f"split it or raise max_inflated_bytes if you trust its source"
    )


def _unreadable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"{path}: it cannot be read ({reason}); check its permissions and the disk")
