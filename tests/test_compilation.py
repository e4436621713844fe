"""Plain functions, bound with hooks or compiled: the same answers, and no stale machine code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.compilation import bound, compilable


@compilable
def weight(value: int) -> int:
    return value + 1


@compilable
def double(value: int) -> int:
    return 2 * value


@compilable
def total(values: np.ndarray) -> int:
    found = 0
    for value in values:
        found += weight(value)
    return found


def test_without_hooks_or_compiler_it_is_the_function_itself() -> None:
    assert bound(total) is total
    assert bound(total, {"weight": double}) is bound(total, {"weight": double})


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_plain_and_compiled_agree(values: list[int]) -> None:
    column = np.array(values, dtype=np.int64)
    for hooks in (None, {"weight": double}):
        expected = sum(2 * v if hooks else v + 1 for v in values)
        assert bound(total, hooks)(column) == expected
        assert bound(total, hooks, compiled=True)(column) == expected


def test_a_changed_callee_is_compiled_again(tmp_path: Path) -> None:
    """numba's disk cache looks at the caller's file only; the digest in the name looks further."""
    (tmp_path / "callee.py").write_text(
        "from typing import NamedTuple\n"
        "from dualpath_model.compilation import compilable\n"
        "class Pair(NamedTuple):\n    first: int\n    second: int\n"
        "@compilable\ndef inner(pair):\n    return pair.first\n"
    )
    (tmp_path / "caller.py").write_text(
        "from callee import Pair, inner\n"
        "from dualpath_model.compilation import bound, compilable\n"
        "@compilable\ndef outer(pair):\n    return inner(pair)\n"
        "print(bound(outer, compiled=True)(Pair(first=1, second=2)))\n"
    )

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "caller.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert run() == "1"
    callee = (tmp_path / "callee.py").read_text()
    (tmp_path / "callee.py").write_text(callee.replace("return pair.first", "return 10"))
    assert run() == "10"
    swapped = callee.replace("    first: int\n    second: int", "    second: int\n    first: int")
    (tmp_path / "callee.py").write_text(swapped)
    assert run() == "1"
