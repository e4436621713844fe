"""Ctrl-C that is not lost: numba can swallow a KeyboardInterrupt that falls into its compiling."""

from __future__ import annotations

import signal
from types import FrameType

_asked = False


def listen() -> None:
    """Remember Ctrl-C beside raising KeyboardInterrupt; for the main thread."""
    signal.signal(signal.SIGINT, _on_interrupt)


def check() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed; long work calls this now and then."""
    if _asked:
        raise KeyboardInterrupt


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    global _asked  # noqa: PLW0603
    _asked = True
    raise KeyboardInterrupt
