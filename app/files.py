"""Files out: written aside and renamed, so that nobody ever finds half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``: all of it or nothing.

    Raises InputError, one sentence, if the place cannot be written to or the disk is full.
    """
    check_writable(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    except OSError as error:
        raise _refused(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
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
