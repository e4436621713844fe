"""The search for a smallest conflict, on requirements whose conflicts are known."""

from __future__ import annotations

import pytest

from solvers.conflicts import _smallest


def peak_of(conflicts: dict[frozenset[str], float]):  # type: ignore[no-untyped-def]
    """Return a peak function: the worst known conflict that the chosen requirements contain."""

    def peak(chosen: list[str]) -> float:
        return max((p for c, p in conflicts.items() if c <= set(chosen)), default=0.5)

    return peak


@pytest.mark.parametrize(
    ("conflicts", "expected"),
    [
        ({frozenset("b"): 2.0}, ["b"]),
        ({frozenset("b"): 1.5, frozenset("d"): 3.0}, ["d"]),  # of several the one that allows least
        ({frozenset("ac"): 1.2, frozenset("abd"): 9.0}, ["a", "c"]),  # smaller before worse
        ({frozenset("abd"): 1.1}, ["a", "b", "d"]),  # beyond pairs: nothing can be left out
    ],
)
def test_smallest(conflicts: dict[frozenset[str], float], expected: list[str]) -> None:
    assert _smallest(list("abcd"), peak_of(conflicts)) == expected
