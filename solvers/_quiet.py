"""Keep a C library's greeting off standard output, which belongs to ``--json -``."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what native code writes to file descriptor 1 to nowhere while the block runs."""
    sys.stdout.flush()
    libc = ctypes.CDLL(None)
    saved = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
        libc.fflush(None)  # native buffers are not Python's: empty them before 1 points back
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


@cache
def silence_highs() -> None:
    """Make HiGHS print its banner now, unseen: it greets once a process, before any option is set."""
    import highspy

    with quiet_stdout():
        highspy.Highs()  # type: ignore[no-untyped-call]
