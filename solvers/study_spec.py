"""A study file as people write it: base scenario, axes, method, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from dualpath_model.scenario import MOST_SEED, Name
from solvers.simulator.constants import TOKEN_LIMIT

Method = Literal["closed form", "LP", "simulation"]
MOST_POINTS = 10_000_000
MOST_STEPS = 100_000
MOST_AXES = 30


class _Spec(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True
    )


Also = Annotated[list[str], Field(max_length=MOST_AXES)]


class RangeSpec(_Spec):
    """From one value to another: in ``steps``, or without them sampled (see ``sample``)."""

    start: float | str = Field(alias="from", description="a number, or a quantity with its unit")
    to: float | str
    steps: Annotated[int, Field(ge=2, le=MOST_STEPS, strict=True)] | None = None
    scale: Literal["linear", "log"] = "linear"
    also: Also = Field(default=[], description="other fields that get the same value")


class ValuesSpec(_Spec):
    """A list of values, with other fields that get the same ones."""

    values: Annotated[list[Any], Field(max_length=MOST_STEPS)]
    also: Also = []


def _form(value: object) -> str:
    if isinstance(value, (Mapping, ValuesSpec, RangeSpec)):
        listed = isinstance(value, ValuesSpec) or (
            isinstance(value, Mapping) and "values" in value and "from" not in value
        )
        return "values" if listed else "range"
    return "list"


AxisSpec = Annotated[
    Annotated[list[Any], Field(max_length=MOST_STEPS), Tag("list")]
    | Annotated[ValuesSpec, Tag("values")]
    | Annotated[RangeSpec, Tag("range")],
    Discriminator(_form),
]


class SampleSpec(_Spec):
    """Points drawn over the ranges without ``steps``, each range covered evenly."""

    latin_hypercube: Annotated[int, Field(ge=1, le=MOST_POINTS, strict=True)]
    seed: Annotated[int, Field(ge=0, le=MOST_SEED, strict=True)] = 0


class SimulationSpec(_Spec):
    """How a point is simulated; as the options of ``dualpath simulate``."""

    policy: str = "dualpath"
    agents: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 200
    rate_aps: Annotated[float, Field(gt=0, le=1e9, strict=True)] | None = None
    seconds: Annotated[float, Field(ge=0.1, le=1e9, strict=True)] | None = None
    warmup_s: Annotated[float, Field(ge=0, le=1e9, strict=True)] = 0.0
    replications: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        default=1,
        description="runs of a point, each with a seed of its own; metrics are their mean",
    )
    layerwise: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="layer by layer; left out: as the scenario's framework does"
    )
    batch_tokens: Annotated[int, Field(ge=0, le=2**32, strict=True)] = TOKEN_LIMIT


class StudySpec(_Spec):
    """A study file."""

    name: Name
    description: str = ""
    base: str = Field(description="a scenario file, or the name of a shipped example")
    axes: Annotated[dict[str, AxisSpec], Field(max_length=MOST_AXES)] = Field(
        description="what is varied: a field of the scenario file, dotted, and its values"
    )
    sample: SampleSpec | None = None
    method: Method = "closed form"
    metrics: Annotated[list[str], Field(max_length=200)] | None = Field(
        default=None, description="names of the plan's JSON or of a simulation's, dotted"
    )
    best: dict[str, Literal["highest", "lowest"]] | None = Field(
        default=None, description="metrics by which reports rank the points"
    )
    simulation: SimulationSpec | None = Field(
        default=None,
        description="for the method simulation; axes may be simulation.agents and so on",
    )
    seed: Annotated[int, Field(ge=0, le=MOST_SEED, strict=True)] = Field(
        default=0, description="from which every point's own seed derives"
    )

    @model_validator(mode="after")
    def _whole(self) -> StudySpec:
        if not self.axes:
            raise ValueError("axes is empty; give at least one field with its values")
        if self.metrics is not None and not self.metrics:
            raise ValueError("metrics is empty; name at least one, or leave metrics out")
        if self.simulation is not None and self.method != "simulation":
            raise ValueError(
                f"simulation is given, but the method is {self.method}; set method: simulation, or "
                f"leave simulation out"
            )
        return self
