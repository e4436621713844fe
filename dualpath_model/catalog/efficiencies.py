"""What share of its data-sheet rate a resource delivers (``efficiencies.yaml``), with sources."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from pydantic import Field

from dualpath_model.catalog import files
from dualpath_model.catalog.files import Grade, Source, Spec
from dualpath_model.cluster import Efficiencies

_FILE = "efficiencies.yaml"


class EfficiencyEntry(Spec):
    """One default: a share between 0 and 1, what it means in one sentence, and where it is from."""

    value: Annotated[float, Field(gt=0, le=1)]
    meaning: str
    source: Source
    grade: Grade
    note: str | None = None


@lru_cache
def efficiency_entries() -> dict[str, EfficiencyEntry]:
    """Return every default with its meaning and source, by field of :class:`Efficiencies`."""
    return {
        name: files.validated(EfficiencyEntry, files.inline(entry, f"{_FILE}: {name}"))
        for name, entry in files.shipped(_FILE).items()
    }


def default_efficiencies() -> Efficiencies:
    """Return the defaults of ``efficiencies.yaml``."""
    return Efficiencies(**{name: entry.value for name, entry in efficiency_entries().items()})
