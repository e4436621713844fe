"""The list of targets: every module in ``export/targets`` that has a ``TARGET``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dualpath_model.errors import unknown_name
from dualpath_model.export import targets
from dualpath_model.export.target import Target


@cache
def all_targets() -> dict[str, Target]:
    """Return every target by name, in alphabetical order."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(targets.__path__):
        target = getattr(
            importlib.import_module(f"{targets.__name__}.{module.name}"), "TARGET", None
        )
        if isinstance(target, Target):
            found[target.name] = target
    return dict(sorted(found.items()))


def target_named(name: str) -> Target:
    """Return a target. Raises InputError with the nearest names."""
    found = all_targets()
    if name not in found:
        raise unknown_name("export target", name, found)
    return found[name]
