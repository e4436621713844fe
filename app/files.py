"""Files out: written aside and renamed, so that nobody ever finds half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dualpath_model.errors import InputError


def check_writable(path: Path) -> None:
    """Raise InputError if ``path`` cannot become a file, before any work is done for it."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file in it")
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
        if path.exists() and not path.is_file():  # renaming over /dev/null would take it away
            raise InputError(f"{path} is not an ordinary file; give another name")
    except OSError as error:
        raise _refused(path, error) from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to; choose another")


def check_targets(
    json: str | None, other: Path | None, picture: Path | None, *, reads: Path | None = None
) -> None:
    """Raise InputError if one of several outputs cannot be written: then none of them is.

    ``json`` "-" is standard output; a picture ends in .png or .svg; no two may be the same file, nor
    one the input that the command ``reads``.
    """
    targets = [] if json in (None, "-") else [Path(str(json))]
    targets += [path for path in (other, picture) if path is not None]
    if picture is not None and picture.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{picture}: a picture ends in .png or .svg; rename it")
    for path in targets:
        check_writable(path)
        try:  # permission alone does not tell: /proc, a disk mounted for reading
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise _refused(path, error) from None
    if reads is not None and _place(reads) in {_place(path) for path in targets}:
        raise InputError(f"{reads} is the input; give the output another name")
    if len({_place(path) for path in targets}) < len(targets):
        raise InputError(f"{targets[-1]} is named for two outputs; give each a file of its own")


def _place(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise InputError(f"{path} is a symbolic link to itself; give another name") from None


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``: all of it or nothing.

    Raises InputError, one sentence, if the place cannot be written to or the disk is full.
    """
    with written_aside(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to that becomes ``path`` when all went well, and else never was.

    Raises InputError, one sentence, if the place cannot be written to or the disk is full.
    """
    check_writable(path)
    path = path.resolve()  # a symbolic link stays, its target is written
    try:
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    except OSError as error:
        raise _refused(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(aside, 0o666 & ~_umask())  # noqa: PTH101
        Path(aside).replace(path)
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        Path(aside).unlink(missing_ok=True)


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror}); choose another")


def _umask() -> int:
    """Return the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
