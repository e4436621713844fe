"""A fleet file: which machines may be had, what must be served, and within which limits. YAML in.

:class:`FleetSpec` is the file as people write it; :mod:`solvers.fleet_question` looks everything up.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualpath_model import yaml_lines
from dualpath_model.catalog.nodes import NodeSpec
from dualpath_model.errors import InputError
from dualpath_model.quantities import BytesPerSecond
from dualpath_model.scenario import (
    MOST_CLASSES,
    EfficienciesSpec,
    Framework,
    Name,
    PoolsParallelismSpec,
    ResourceName,
    SchedulerSpec,
    SloSpec,
    StorageSpec,
    TrafficSpec,
    WorkloadSpec,
)
from dualpath_model.yaml_lines import Document

MOST_KINDS = 40
MOST_FLEET = 100_000
"""Nodes of one kind."""
MOST_LOST = 4
"""Nodes lost together: the number of ways to lose k grows with the k-th power of the kinds."""
MOST_CASES = 20

Money = Annotated[float, Field(ge=0.0, le=1e9, strict=True)]
Nodes = Annotated[int, Field(ge=0, le=MOST_FLEET, strict=True)]
Positive = Annotated[float, Field(gt=0.0, le=1e12, strict=True)]
Factor = Annotated[float, Field(ge=1e-3, le=1e3, strict=True)]
Margin = Annotated[float, Field(gt=0.0, le=1.0, strict=True)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KindSpec(_Spec):
    """One kind of node that may be had. ``node``: as in a scenario."""

    node: str | NodeSpec
    name: Name | None = Field(default=None, description="left out: the node's own")
    roles: Annotated[list[Literal["prefill", "decode"]], Field(min_length=1)] = [
        "prefill",
        "decode",
    ]
    price_usd_per_hour: Money | None = Field(
        default=None, description="left out: the catalog's price of the node"
    )
    owned: Nodes = Field(default=0, description="nodes that are there already")
    owned_price_usd_per_hour: Money = Field(
        default=0.0, description="of an owned node while it is used: power, space, staff"
    )
    minimum: Nodes = Field(default=0, description="at least so many, both roles together")
    maximum: Nodes | None = Field(default=None, description="at most so many, owned ones included")
    power_kw: Positive | None = None
    nodes_per_rack: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None
    place: Name | None = Field(
        default=None,
        description="the cloud, region or hall where it can be had; left out: wherever the others are",
    )

    @model_validator(mode="after")
    def _in_order(self) -> KindSpec:
        if self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"minimum {self.minimum} is more than maximum {self.maximum}; lower it, or raise maximum"
            )
        if len(set(self.roles)) < len(self.roles):
            raise ValueError(f"role '{self.roles[0]}' is given twice; give each role once")
        return self


class RequireSpec(_Spec):
    """The rate that all classes with a share serve together, today; growth comes on top."""

    requests_per_s: Positive | None = None
    sessions_per_s: Positive | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RequireSpec:
        if (self.requests_per_s is None) == (self.sessions_per_s is None):
            raise ValueError("give either requests_per_s or sessions_per_s, not both or neither")
        return self


class LimitsSpec(_Spec):
    """What the fleet as a whole may take up, and what it must survive."""

    budget_usd_per_hour: Annotated[float, Field(gt=0.0, le=1e9, strict=True)] | None = None
    power_kw: Positive | None = None
    racks: Annotated[int, Field(ge=1, le=MOST_FLEET, strict=True)] | None = None
    nodes: Annotated[int, Field(ge=2, le=MOST_FLEET, strict=True)] | None = None
    kinds: Annotated[int, Field(ge=1, le=MOST_KINDS, strict=True)] | None = Field(
        default=None, description="at most so many different kinds are used"
    )
    kinds_per_role: Annotated[int, Field(ge=1, le=MOST_KINDS, strict=True)] | None = Field(
        default=None, description="at most so many different kinds in the same pool"
    )
    places: Annotated[int, Field(ge=1, le=MOST_KINDS, strict=True)] | None = Field(
        default=1,
        description="kinds of at most so many places are used together: KV-cache is handed over by RDMA",
    )
    survive: Annotated[int, Field(ge=0, le=MOST_LOST, strict=True)] = Field(
        default=0, description="any so many nodes lost, and everything is still served"
    )


class FleetClassSpec(_Spec):
    """One kind of traffic: a share of the required rate, or a rate of its own, and how it grows."""

    name: Name
    workload: WorkloadSpec
    share: Annotated[float, Field(gt=0.0, le=1.0, strict=True)] | None = None
    requests_per_s: Positive | None = None
    growth: Factor = Field(default=1.0, description="factor on its rate")

    @model_validator(mode="after")
    def _one_of_both(self) -> FleetClassSpec:
        if (self.share is None) == (self.requests_per_s is None):
            raise ValueError("give either share or requests_per_s, not both or neither")
        return self


class PoolMarginsSpec(_Spec):
    """A margin for each pool: TTFT limits the prefill nodes, TPOT the decode nodes."""

    prefill: Margin
    decode: Margin


class CaseSpec(_Spec):
    """A way in which the forecast may be wrong; the fleet serves every one. Factors on every class."""

    name: Name
    rate: Factor = 1.0
    context: Factor = Field(default=1.0, description="on the hit tokens of a turn")
    append: Factor = Field(default=1.0, description="on the miss tokens of a turn")
    generate: Factor = Field(default=1.0, description="on the output tokens of a turn")
    hit_rate: Annotated[float, Field(ge=0.0, le=1.0, strict=True)] = Field(
        default=1.0, description="factor on each class's hit rate, at the same prompts"
    )
    classes: dict[str, Factor] = Field(
        default_factory=dict, description="further factors on the rates of single classes"
    )


class FleetSpec(_Spec):
    """A fleet file."""

    name: Name
    description: str = ""
    llm: str | dict[str, Any]
    kv_dtype: Literal["bf16", "fp8", "fp8_ds_mla"] | None = None
    framework: Framework = "paper"
    kinds: Annotated[list[KindSpec], Field(min_length=1, max_length=MOST_KINDS)]
    workload: WorkloadSpec | None = None
    growth: Factor = Field(default=1.0, description="factor on the rate of the one workload")
    classes: Annotated[list[FleetClassSpec], Field(max_length=MOST_CLASSES)] | None = None
    require: RequireSpec | None = Field(
        default=None, description="left out: the most that limits.budget_usd_per_hour buys"
    )
    scenarios: Annotated[list[CaseSpec], Field(max_length=MOST_CASES)] = []
    margin: Margin | PoolMarginsSpec | Literal["simulated"] = Field(
        default=1.0,
        description="share of the LP's rate that is within the SLO, of both pools or of each: given, "
        "or found by simulation",
    )
    policy: str = Field(default="dualpath", description="the scheduler's, for the simulation")
    software: Annotated[bool, Field(strict=True)] = Field(
        default=True,
        description="count what an engine's software adds to each decode step, as the simulator does; "
        "false: the plan's roofline alone",
    )
    limits: LimitsSpec = LimitsSpec()
    storage: StorageSpec = StorageSpec()
    fabric: BytesPerSecond | None = None
    parallelism: PoolsParallelismSpec = PoolsParallelismSpec()
    slo: SloSpec = SloSpec()
    efficiencies: EfficienciesSpec = EfficienciesSpec()
    traffic: TrafficSpec = TrafficSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    resources: Annotated[list[ResourceName], Field(min_length=1)] | None = Field(
        default=None, description="resources that can run out; left out: all that are known"
    )

    @model_validator(mode="after")
    def _whole(self) -> FleetSpec:
        if (self.workload is None) == (not self.classes):
            raise ValueError("give either workload or classes, one of which is needed")
        if self.classes and self.growth != 1.0:
            raise ValueError("growth goes with workload; of classes, give each its own growth")
        _distinct("class", [part.name for part in self.classes or []])
        _distinct("scenario", ["forecast", *(case.name for case in self.scenarios)])
        known = [part.name for part in self.classes or []]
        for case in self.scenarios:
            other = next((name for name in case.classes if name not in known), None)
            if other is not None:
                raise ValueError(
                    f"scenario '{case.name}' names class '{other}', which is not there; classes are "
                    f"{', '.join(known) or 'not given'}"
                )
        self._check_goal()
        return self

    def _check_goal(self) -> None:
        shares = [c.share for c in self.classes or [] if c.share is not None]
        grows = self.workload is not None or bool(shares)
        if shares and abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(
                f"the shares of the classes sum to {sum(shares):.7g}; they must sum to 1: scale them"
            )
        if self.require is not None and not grows:
            raise ValueError(
                "require is given, but every class has requests_per_s of its own; drop require, or "
                "give a class a share"
            )
        if self.require is None and grows and self.limits.budget_usd_per_hour is None:
            raise ValueError(
                "what is asked is open: give require (the rate, at least cost), or "
                "limits.budget_usd_per_hour (the most for that money), or both"
            )


def _distinct(what: str, names: list[str]) -> None:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        taken = ", which is the name of the file's own traffic" if twice == "forecast" else " twice"
        raise ValueError(f"{what} '{twice}' is given{taken}; give each {what} a name of its own")


def parse_fleet(document: Document) -> FleetSpec:
    """Validate a parsed file. Raises InputError for its first mistake, with file and line."""
    try:
        return FleetSpec.model_validate(document.data)
    except ValidationError as error:
        raise yaml_lines.explain(error, document, FleetSpec) from None


def read_fleet(path: Path) -> tuple[FleetSpec, Document]:
    """Read and validate a fleet file. Raises InputError."""
    document = yaml_lines.read(path)
    return parse_fleet(document), document


def located(document: Document | None, location: tuple[str | int, ...], text: str) -> InputError:
    """Return the error with the file and the line of ``location`` in front."""
    if document is None:
        return InputError(text)
    known = location
    while known and known not in document.lines:
        known = known[:-1]
    field = ".".join(map(str, location))
    return InputError(f"{document.file}:{document.lines.get(known, 1)}: {field}: {text}")
