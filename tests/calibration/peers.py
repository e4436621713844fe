"""Servers for tests of the network: one in a process of its own, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from calibration.children import Child, lines_of
from calibration.flows import Plan
from dualpath_model.errors import InputError

SHORT = Plan(streams=2, there=True, back=False, ramp_s=0.02, window_s=0.1)


@contextmanager
def served(host: str = "127.0.0.1") -> Iterator[tuple[Child, int]]:
    """A server in a process of its own, and its port."""
    child = Child("calibration.peer", {"host": host, "port": 0})
    try:
        yield child, next(lines_of([child], 30.0))["port"]
    finally:
        child.stop()


def sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    """Return what the error says, which is one sentence and how to mend it."""
    text = str(error.value)
    assert "\n" not in text
    assert text.count("; ") >= 1  # what is wrong; how to mend it
    return text
