"""The scheduler as a file: everything that the reference scheduler and the simulator start from.

``dualpath export scheduler`` writes it; ``dualpath simulate --scheduler FILE`` and ``dualpath schedule
run --scheduler FILE`` start from it, exactly as from the scenario that it was made of. Its JSON Schema
lies beside it (:func:`json_schema`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from dualpath_model.errors import InputError
from dualpath_model.records import validated
from dualpath_model.scheduler.events import NodeJoined, Settings

FILE_VERSION = 1
FORMAT: Literal["dualpath-scheduler"] = "dualpath-scheduler"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


@dataclass(frozen=True, slots=True)
class QosWeights:
    """Weights of the compute network's virtual lanes (paper, appendix A.1): 0 to 255 each."""

    collective: Annotated[int, Field(ge=0, le=255)]
    kv: Annotated[int, Field(ge=0, le=255)]
    high_limit: Annotated[int, Field(ge=0, le=255)]


@dataclass(frozen=True, slots=True)
class NodeExtras:
    """What a scheduler may want to know of a node beside its limits.

    ``read_weight``: its part of all storage reads; ``buffer_bytes``: DRAM for KV-cache in transit;
    ``attention``: coefficients of the attention time that the quota limits, prefill only.
    """

    read_weight: Fraction
    buffer_bytes: Positive | None = None
    attention: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class SchedulerFile:
    """The file. Tokens, seconds and bytes; the limits of each node are in ``nodes``."""

    format: Literal["dualpath-scheduler"]
    version: Annotated[int, Field(ge=1)]
    scenario: str
    split: Fraction
    alpha_s: Positive
    beta_s: Positive
    quota_s: Positive
    settings: Settings
    nodes: tuple[NodeJoined, ...]
    extras: Mapping[str, NodeExtras] = field(default_factory=dict)
    qos: QosWeights | None = None


def read_scheduler(path: Path) -> SchedulerFile:
    """Read a scheduler file. Raises InputError, one sentence, for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a file of `dualpath export scheduler`"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise InputError(
            f"{path}: is not JSON; give a file of `dualpath export scheduler`"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(
            f"{path}: format is not '{FORMAT}'; give scheduler.json of `dualpath export scheduler`"
        )
    version = data.get("version")
    if isinstance(version, int) and version > FILE_VERSION:
        raise InputError(
            f"{path}: version is {version}, but this dualpath knows {FILE_VERSION}; update dualpath, or "
            f"export with this one"
        )
    return validated(_adapter(), data, path, "export again")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_adapter().json_schema(mode="validation"),
    }


@cache
def _adapter() -> TypeAdapter[SchedulerFile]:
    return TypeAdapter(SchedulerFile)
