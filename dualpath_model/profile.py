"""A profile: what one machine was measured to do, with intervals, raw samples and provenance. JSON.

The format is here, because every model takes a profile where a catalog entry stands; the package
``calibration`` measures, imports, fits, merges and compares. A profile has parts (gpu, memory, storage,
network), each measured in one go on one machine, so that parts of several machines can be joined.
All numbers are SI: bytes, seconds, FLOP; shares are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dualpath_model.catalog import files
from dualpath_model.errors import InputError
from dualpath_model.quantities import LIMITS, Dimension

FORMAT = "dualpath-profile"
VERSION = 1


class PartName(StrEnum):
    """What is measured in one go."""

    GPU = "gpu"
    MEMORY = "memory"
    STORAGE = "storage"
    NETWORK = "network"


class FigureMeaning(NamedTuple):
    """One fitted figure: its unit ("" for a share) and what it is, in a sentence."""

    part: PartName
    unit: str
    meaning: str
    feeds: str = ""
    """What of a node it replaces; "": it is shown, and no model takes it."""


_G, _M, _S, _N = PartName.GPU, PartName.MEMORY, PartName.STORAGE, PartName.NETWORK

FIGURES: dict[str, FigureMeaning] = {
    "gemm_bf16_flop_per_s": FigureMeaning(
        _G, "FLOP/s", "dense matrix products in bf16, the shapes of the LLM", "GPU arithmetic, bf16"
    ),
    "gemm_fp8_flop_per_s": FigureMeaning(
        _G, "FLOP/s", "dense matrix products in fp8, the shapes of the LLM", "GPU arithmetic, fp8"
    ),
    "gemm_fp32_flop_per_s": FigureMeaning(
        _G, "FLOP/s", "dense matrix products in fp32, the shapes of the LLM"
    ),
    "prefill_flop_per_s": FigureMeaning(
        _G, "FLOP/s", "a layer's prefill without its attention", "prefill_mfu"
    ),
    "prefill_layer_s": FigureMeaning(
        _G, "s", "of a layer's forward pass, whatever its tokens", "constants.batch_layer_s"
    ),
    "attention_flop_per_s": FigureMeaning(
        _G, "FLOP/s", "a layer's attention in prefill", "attention_speed"
    ),
    "decode_flop_per_s": FigureMeaning(
        _G, "FLOP/s", "a layer's decode step where arithmetic limits it", "decode_mfu"
    ),
    "decode_bytes_per_s": FigureMeaning(
        _G, "B/s", "a layer's decode step where reading memory limits it", "HBM bandwidth"
    ),
    "decode_layer_s": FigureMeaning(
        _G, "s", "of a layer's decode step, whatever its batch", "constants.step_layer_s"
    ),
    "hbm_copy_bytes_per_s": FigureMeaning(
        _G, "B/s", "copy inside GPU memory, reads and writes counted", "HBM bandwidth, if no decode"
    ),
    "host_to_device_bytes_per_s": FigureMeaning(_G, "B/s", "pinned host memory to GPU memory"),
    "device_to_host_bytes_per_s": FigureMeaning(_G, "B/s", "GPU memory to pinned host memory"),
    "both_ways_share": FigureMeaning(
        _G, "", "of the two one-way rates together, when both copy at once"
    ),
    "pageable_share": FigureMeaning(_G, "", "of the pinned rate, from pageable memory"),
    "copy_launch_s": FigureMeaning(_G, "s", "of one copy, whatever its size"),
    "layer_block_share": FigureMeaning(
        _G, "", "of one full block's copy rate, when its layer blocks are copied one by one"
    ),
    "gather_share": FigureMeaning(
        _G, "", "of one full block's copy rate, when its layer blocks are gathered in one kernel"
    ),
    "interference_share": FigureMeaning(
        _G, "", "of the matrix products' rate that is left while copies run"
    ),
    "dram_bytes_per_s": FigureMeaning(
        _M, "B/s", "copy in host memory, all cores, reads and writes counted", "DRAM bandwidth"
    ),
    "storage_read_bytes_per_s": FigureMeaning(
        _S, "B/s", "random reads of full blocks, deep queue", "storage NIC, in"
    ),
    "storage_write_bytes_per_s": FigureMeaning(
        _S, "B/s", "writes of full blocks, deep queue", "storage NIC, out, if reads are measured"
    ),
    "storage_sequential_bytes_per_s": FigureMeaning(_S, "B/s", "sequential reads, deep queue"),
    "storage_read_latency_s": FigureMeaning(_S, "s", "of one read, whatever its size"),
    "storage_read_p99_s": FigureMeaning(_S, "s", "99th percentile of one full block, deep queue"),
    "storage_small_pages_share": FigureMeaning(
        _S, "", "of the read rate that is left where buffers have no huge pages"
    ),
    "storage_read_while_writing_share": FigureMeaning(
        _S, "", "of the read rate that is left while writes run"
    ),
    "network_bytes_per_s": FigureMeaning(
        _N, "B/s", "one direction, nothing in the other", "compute NIC, if not measured both ways"
    ),
    "network_both_ways_bytes_per_s": FigureMeaning(
        _N, "B/s", "each direction while both are busy", "compute NIC"
    ),
    "network_latency_s": FigureMeaning(_N, "s", "of one message, whatever its size"),
    "network_with_storage_share": FigureMeaning(
        _N, "", "of the one-way rate that is left while storage is read"
    ),
    "collective_bytes_per_s": FigureMeaning(
        _N, "B/s", "torch.distributed point to point, large messages"
    ),
    "collective_latency_s": FigureMeaning(_N, "s", "torch.distributed point to point, one message"),
}
"""The figures that a profile can hold, in the order of showing; the one home of their names."""


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not allowed; a number is needed")
    return value


_Positive = Annotated[float, BeforeValidator(_no_truth), Field(gt=0, le=1e30, allow_inf_nan=False)]
_Number = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
Setting = bool | int | float | str | None
_MEANT = {
    "B/s": LIMITS[Dimension.BYTES_PER_S],
    "FLOP/s": LIMITS[Dimension.FLOP_PER_S],
    "s": LIMITS[Dimension.SECONDS],
}
"""What a figure of a unit can be: no other than in a scenario, for models' numbers would overflow."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Spec):
    """A figure with its 95 % interval. ``source``: the fit or the series that it comes from."""

    value: _Positive
    low: _Positive
    high: _Positive
    source: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"the interval {self.low:g} to {self.high:g} does not hold value {self.value:g}; "
                f"low <= value <= high is needed"
            )
        return self


class Latency(_Spec):
    """How long single operations took, seconds; ``count`` of them."""

    count: Annotated[int, Field(gt=0)]
    p50: _Positive
    p90: _Positive
    p99: _Positive
    p999: _Positive
    most: _Positive


class Sample(_Spec):
    """One raw measurement: ``amount`` (bytes or FLOP; 0 where only time counts) in ``seconds``."""

    at: dict[str, Setting] = Field(description="the point of the sweep, such as block_bytes, depth")
    seconds: _Positive
    amount: Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)] = 0.0
    latency: Latency | None = None


class Series(_Spec):
    """One sweep, in the order in which it was measured. ``unit``: of the samples' amounts."""

    name: str
    unit: Literal["B", "FLOP", ""]
    meaning: str
    samples: Annotated[list[Sample], Field(min_length=1)]


class Fit(_Spec):
    """A model fitted to samples of one series.

    ``indices``: the samples used, by position in the series. ``residuals``: of each of them, measured
    over predicted minus 1. ``outliers``: those of ``indices`` that lie far off; they are in the fit.
    """

    name: str
    model: str = Field(description="the formula, such as seconds = latency_s + bytes / bytes_per_s")
    series: str
    parameters: dict[str, Estimate]
    indices: list[int]
    residuals: list[_Number]
    outliers: list[int] = []
    undetermined: list[str] = Field(default=[], description="parameters the samples do not settle")

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.indices) != len(self.residuals):
            raise ValueError(
                f"residuals has {len(self.residuals)} entries, but indices {len(self.indices)}; "
                f"one residual belongs to each sample"
            )
        return self


COEFFICIENTS = (
    "fixed_s",
    "chunk_s",
    "token_s",
    "context_token_s",
    "pair_s",
    "limited_pair_s",
    "limit_tokens",
)
"""Fields of :class:`scheduler.attention.AttentionTime`, which is slow to import; a test compares."""


class AttentionFit(_Spec):
    """The quota's attention-time model of one LLM (:class:`scheduler.attention.AttentionTime`).

    ``coefficients`` are seconds of all layers on one GPU of a tensor-parallel group of ``tensor``.
    """

    llm: str
    tensor: Annotated[int, Field(ge=1)]
    coefficients: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    relative_error_p50: float
    relative_error_max: float
    undetermined: list[str] = []

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.coefficients:
            if name not in COEFFICIENTS:
                raise ValueError(
                    f"coefficients.{name} is unknown; known are {', '.join(COEFFICIENTS)}; remove it"
                )
        return self


class Machine(_Spec):
    """Where a part was measured. ``gpu`` "" and ``gpus`` 0: on the CPU, which stands for one GPU.

    What is not known of another machine, whose tool's output was imported, is left out.
    """

    host: str
    system: str = ""
    cpu: str = ""
    cores: Annotated[int, Field(ge=1)] | None = None
    memory_bytes: _Positive | None = None
    gpu: str = ""
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_memory_bytes: _Positive | None = None


class Part(_Spec):
    """What was measured in one go, or imported. ``tools``: name to version."""

    machine: Machine
    date: str
    tools: dict[str, str]
    settings: dict[str, Setting]
    series: list[Series]
    fits: list[Fit] = []
    figures: dict[str, Estimate] = {}
    attention: list[AttentionFit] = []
    warnings: list[str] = []

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, found in self.figures.items():
            if name not in FIGURES:
                raise ValueError(
                    f"figures.{name} is unknown; known are {', '.join(FIGURES)}; remove it"
                )
            unit = FIGURES[name].unit
            least, most = _MEANT.get(unit, (0.0, math.inf))
            if not least <= found.low <= found.high <= most:
                raise ValueError(
                    f"figures.{name} of {found.low:g} to {found.high:g} {unit} is out of range; it must "
                    f"be from {least:g} to {most:g} {unit}, so correct it or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _fits_of_samples(self) -> Self:
        """Refuse fits of series or samples that are not here."""
        counts: dict[str, int] = {}
        for series in self.series:
            count = len(series.samples)
            counts[series.name] = min(count, counts.get(series.name, count))
        for number, fit in enumerate(self.fits):
            where = f"fits.{number} ({fit.name!r})"
            if fit.series not in counts:
                raise ValueError(
                    f"{where} is of series {fit.series!r}, which this part does not have; add that "
                    f"series or remove the fit"
                )
            count = counts[fit.series]
            for field in ("indices", "outliers"):
                for index in getattr(fit, field):
                    if not 0 <= index < count:
                        raise ValueError(
                            f"{where}: {field} has {index}, but series {fit.series!r} has {count} "
                            f"samples; correct it to one of 0 to {count - 1}"
                        )
        return self


class Profile(_Spec):
    """A whole profile. Equal figures of two parts do not happen: each belongs to one part."""

    format: Literal["dualpath-profile"] = "dualpath-profile"
    version: Literal[1] = 1
    name: Annotated[str, Field(max_length=200)]
    parts: dict[PartName, Part]

    @model_validator(mode="after")
    def _in_their_parts(self) -> Self:
        for name, part in self.parts.items():
            for figure in part.figures:
                if FIGURES[figure].part is not name:
                    raise ValueError(
                        f"parts.{name}.figures.{figure} belongs to part {FIGURES[figure].part}; "
                        f"move it there"
                    )
        return self

    @property
    def figures(self) -> dict[str, Estimate]:
        """All fitted figures, in the order of :data:`FIGURES`."""
        found = {n: e for part in self.parts.values() for n, e in part.figures.items()}
        return {name: found[name] for name in FIGURES if name in found}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a version to the next: takes and returns the file's data. Add one with each new version."""


def is_profile(data: Mapping[str, Any]) -> bool:
    """Tell whether a parsed JSON file means to be a profile."""
    return data.get("format") == FORMAT


def load_profile(path: Path) -> Profile:
    """Read a profile; one of an older version is brought up to date.

    Raises InputError, one sentence that names file, field, value and remedy.
    """
    document = files.read(path)
    if not is_profile(document.data):
        raise InputError(
            f"{path}: is not a profile (its format is {document.data.get('format')!r}, not "
            f"'{FORMAT}'); `dualpath calibrate run` writes one"
        )
    upgraded = upgrade(document.data, str(path))
    return files.validated(Profile, document._replace(data=upgraded))


def upgrade(data: dict[str, Any], where: str) -> dict[str, Any]:
    """Bring a profile's data to :data:`VERSION`. Raises InputError for a version we do not know."""
    version = data.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        shown = "missing" if version is None else repr(version)
        raise InputError(f"{where}: version is {shown}; it must be a whole number from 1 on")
    if version > VERSION:
        raise InputError(
            f"{where}: version {version} is newer than the {VERSION} that this program knows; "
            f"update dualpath, or write the profile with this version of it"
        )
    while version < VERSION:
        data = {**UPGRADES[version](data), "version": version + 1}
        version += 1
    return data


def dump(profile: Profile) -> str:
    """Return the profile as JSON text. Fields that are at their defaults are written too."""
    return profile.model_dump_json(indent=1) + "\n"


def estimate(value: float, low: float, high: float, source: str = "", note: str = "") -> Estimate:
    """Make an estimate from a value and an interval that may miss it by rounding."""
    if not all(map(math.isfinite, (value, low, high))) or min(value, low) <= 0:
        raise InputError(
            f"{source or 'a figure'}: {value:g} ({low:g} to {high:g}) is no measured rate; numbers "
            f"must be finite and more than 0, so measure again"
        )
    return Estimate(
        value=value, low=min(low, value), high=max(high, value), source=source, note=note
    )
