"""The errors that a user can cause or meet, and nothing else.

DualPathError
├── InputError        the question is malformed: exit code 2
└── InfeasibleError   the question is well put and has no answer: exit code 1

Each message is one sentence that names the field, the value, what is allowed and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DualPathError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(DualPathError):
    """An input that cannot be used as it is."""

    exit_code = 2


class InfeasibleError(DualPathError):
    """A well-formed question without an answer, for example an LLM that does not fit the HBM."""

    exit_code = 1


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` of the ``allowed`` names that look most like ``name``, best first."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    found = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.4)
    return [by_lower[match] for match in found]


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> InputError:
    """Build the error for a name that is in none of our lists, with the nearest ones that are."""
    names = sorted(allowed)
    close = nearest(name, names)
    hint = f"the nearest are {', '.join(close)}" if close else f"known are {', '.join(names)}"
    return InputError(f"{kind} '{name}' is unknown; {hint}")
