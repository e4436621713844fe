"""Shipped examples and stored results, found by name in a checkout and in an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

from dualpath_model.errors import InputError, nearest


def example_dir() -> Path:
    """Return the folder of shipped scenarios: the checkout's, or the wheel's data folder."""
    checkout = Path(__file__).parent.parent / "examples"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "dualpath" / "examples"


def stored_result(name: str) -> Path:
    """Return the file of a long run's stored result: the checkout's, or the wheel's data folder."""
    checkout = Path(__file__).parent.parent / "docs" / "results"
    folder = checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "dualpath" / "results"
    return folder / f"{name}.json"


def example_names() -> list[str]:
    """Return the names that ``dualpath plan NAME`` takes."""
    return sorted(path.stem for path in example_dir().glob("*.yaml"))


def find_scenario(given: str) -> Path:
    """Return the scenario file that ``given`` means: a path, or the name of a shipped example.

    Raises InputError with the nearest names if it is neither.
    """
    path = Path(given)
    if path.exists() or path.suffix in {".yaml", ".yml", ".json"} or "/" in given:
        return path  # reading it reports a missing file or a folder
    names = example_names()
    if given in names:
        return example_dir() / f"{given}.yaml"
    close = nearest(given, names)
    hint = f"the nearest are {', '.join(close)}" if close else f"there are {', '.join(names)}"
    raise InputError(f"scenario '{given}' is neither a file nor a shipped example; {hint}")
