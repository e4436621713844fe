"""A piece of a study as a worker gets it: a range of points in, a Parquet file's bytes out.

The same function runs in local processes, on Dask and on Ray. What it returns depends on the study and
the numbers of the points alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import dualpath_model
from dualpath_model.errors import InputError
from dualpath_model.scenario import Scenario
from solvers import study_methods as methods
from solvers.study_axes import Point, Space, space_of
from solvers.study_fields import Data
from solvers.study_files import named_files
from solvers.study_methods import Failure, Figures
from solvers.study_metrics import Metric, metrics_of
from solvers.study_scenarios import Scenarios
from solvers.study_spec import SimulationSpec, StudySpec

Row = tuple[Point, Figures | Failure]


@dataclass(frozen=True)
class Work:
    """All that a worker needs to know. ``content``: digest of what the files hold that the base
    scenario and the axes name, which a worker's own must give too; empty: not known yet.
    """

    spec: StudySpec
    base: Data
    base_file: str
    study_file: str
    content: str = ""
    toolkit: str = dualpath_model.__version__

    @property
    def folder(self) -> Path:
        """Where relative paths of the base scenario start."""
        return Path(self.base_file).parent

    @cached_property
    def space(self) -> Space:
        """The points. Raises InputError for axes that make none."""
        return space_of(self.spec, self.base, self.study_file)

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics. Raises InputError for one that the method does not give."""
        taken = {*_FIRST, *_LAST, *(axis.name for axis in self.space.axes)}
        spec = self.spec
        return metrics_of(spec.method, spec.metrics, taken, self.study_file)

    @cached_property
    def scenarios(self) -> Scenarios:
        """What makes the points' scenarios."""
        return Scenarios(self.space, self.base, self.folder, self.base_file)

    @property
    def replications(self) -> int:
        """Runs of a point."""
        return self.spec.simulation.replications if self.spec.simulation else 1

    def __getstate__(self) -> dict[str, Any]:
        """Send the study, not what was worked out from it here."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Done:
    """Finished points ``start`` to ``stop - 1``: a Parquet file, how many failed, and what it took.

    ``seconds`` by the clock, ``cpu_s`` of this thread alone: less where others use the machine.
    """

    start: int
    stop: int
    parquet: bytes
    failed: int
    seconds: float
    cpu_s: float = 0.0


BASE_FILES = "the base's"
"""All files of the base scenario, among a study's files."""

_FIRST = ("point", "seed")
_LAST = ("failure", "reason")
_ARROW = {"float": "float64", "int": "int64", "bool": "bool_", "text": "string"}
_BATCH = 2000  # closed forms solved at a time

_ready: dict[str, Work] = {}
"""Of this process: the study that it works on, with everything that it has looked up for it."""


def evaluate(work: Work, start: int, stop: int) -> Done:
    """Answer the points ``start`` to ``stop - 1``.

    What a point meets is recorded with it. Raises InputError where this worker cannot do the study at
    all: another version of the toolkit, or other files.
    """
    mine = _prepared(work)
    begun, cpu = time.perf_counter(), time.thread_time()
    rows = answers(mine, start, stop)
    failed = sum(isinstance(answer, Failure) for _, answer in rows)
    parquet = parquet_of(mine, rows)
    spent, cpu_s = time.perf_counter() - begun, time.thread_time() - cpu
    return Done(start, stop, parquet, failed, spent, cpu_s)


def _prepared(work: Work) -> Work:
    # a cluster's workers outlive a study: the next one may differ in its base alone
    base = json.dumps(work.base, sort_keys=True, default=str)
    key = " ".join(
        (work.content, work.base_file, work.study_file, work.spec.model_dump_json(), base)
    )
    if key not in _ready:
        if work.toolkit != dualpath_model.__version__:
            raise InputError(
                f"a worker has dualpath {dualpath_model.__version__} and the study was started by "
                f"{work.toolkit}; install the same on both"
            )
        if work.content and digest_of(files_of(work)) != work.content:
            raise InputError(
                f"a worker's copies of the files that {work.base_file} or an axis names differ from "
                f"those here; put the same files at the same place"
            )
        _ready.clear()
        _ready[key] = work
    return _ready[key]


def answers(work: Work, start: int, stop: int) -> list[Row]:
    """Answer points, in order; of one without an answer, why."""
    points = [work.space.point(number) for number in range(start, stop)]
    if work.spec.method == "closed form":
        found: list[Figures | Failure] = []
        for at in range(0, len(points), _BATCH):
            scenarios = [_scenario(work, point) for point in points[at : at + _BATCH]]
            found += methods.closed_forms(scenarios, work.metrics)
        return list(zip(points, found, strict=True))
    return [(point, _answer(work, point)) for point in points]


def _scenario(work: Work, point: Point) -> Scenario | Failure:
    try:
        return work.scenarios.of(point)
    except Exception as error:  # whatever a point meets is its own
        return methods.failure_of(error)


def _answer(work: Work, point: Point) -> Figures | Failure:
    try:
        scenario = work.scenarios.of(point)
        if work.spec.method == "LP":
            return methods.linear_program(scenario, work.metrics)
        seeds = methods.point_seeds(work.spec.seed, point.number, work.replications)
        return methods.simulation(scenario, _simulation(work, point), seeds, work.metrics)
    except Exception as error:
        return methods.failure_of(error)


def _simulation(work: Work, point: Point) -> SimulationSpec:
    asked = work.spec.simulation or SimulationSpec()
    changed: Data = asked.model_dump(exclude_unset=True)
    for axis, value in zip(work.space.axes, point.written, strict=True):
        if axis.in_simulation:
            changed |= {str(path[1]): value for path in axis.paths}
    return SimulationSpec.model_validate(changed)


# ---- tables ----------------------------------------------------------------------------------------


def schema_of(work: Work) -> Any:
    """Return the columns of the study's table, as pyarrow's schema.

    Columns of quantities have their SI unit as metadata.
    """
    import pyarrow

    def field(name: str, kind: str, unit: str = "") -> Any:
        metadata = {"unit": unit} if unit else None
        return pyarrow.field(name, getattr(pyarrow, _ARROW[kind])(), metadata=metadata)

    several = work.replications > 1
    columns = [field("point", "int"), field("seed", "int")]
    for axis in work.space.axes:
        dimension = axis.kind.dimension
        columns.append(field(axis.name, axis.kind.type, dimension.value if dimension else ""))
    for metric in work.metrics:
        numeric = metric.type in ("float", "int")
        columns.append(field(metric.name, "float" if several and numeric else metric.type))
        if several and numeric:
            columns += [field(f"{metric.name}.{end}", "float") for end in ("low", "high")]
    columns += [field("failure", "text"), field("reason", "text")]
    return pyarrow.schema(columns)


def table_of(work: Work, rows: Sequence[Row]) -> Any:
    """Return answers as a pyarrow table, in the order of ``rows``."""
    import pyarrow

    schema = schema_of(work)
    columns: dict[str, list[object]] = {name: [] for name in schema.names}
    axes = [columns[axis.name] for axis in work.space.axes]
    figures = [n for n in schema.names[len(_FIRST) + len(axes) :] if n not in _LAST]
    for point, answer in rows:
        columns["point"].append(point.number)
        columns["seed"].append(methods.point_seeds(work.spec.seed, point.number, 1)[0])
        for column, value in zip(axes, point.shown, strict=True):
            column.append(value)
        failed = isinstance(answer, Failure)
        for name in figures:
            columns[name].append(None if isinstance(answer, Failure) else answer[name])
        columns["failure"].append(answer.kind if failed else None)  # type: ignore[union-attr]
        columns["reason"].append(answer.reason if failed else None)  # type: ignore[union-attr]
    arrays = [pyarrow.array(columns[f.name], type=f.type) for f in schema]
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def parquet_of(work: Work, rows: Sequence[Row]) -> bytes:
    """Return answers as a Parquet file."""
    return to_parquet(table_of(work, rows))


def to_parquet(table: Any) -> bytes:
    """Return a table as the bytes of a Parquet file; the same table gives the same bytes."""
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(table.combine_chunks(), file, compression="zstd", row_group_size=131_072)
    return file.getvalue()


def died(work: Work, number: int) -> Done:
    """Return the record of a point at which workers die."""
    reason = "the worker process died at this point, twice (out of memory, or killed)"
    row = (work.space.point(number), Failure("worker died", reason))
    return Done(number, number + 1, parquet_of(work, [row]), 1, 0.0)


# ---- digest ----------------------------------------------------------------------------------------


def files_of(work: Work) -> dict[str, str]:
    """Return digests of what a study's files hold: the base's together, and each that an axis names."""
    return {BASE_FILES: _content_of(work.scenarios.base()), **named_files(work.space, work.folder)}


def digest_of(files: Mapping[str, str]) -> str:
    """Return one digest of all of :func:`files_of`."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _content_of(scenario: Scenario) -> str:
    """Return a digest of what a scenario's files hold: its sessions, its LLM and its nodes."""
    found = hashlib.sha256()
    for part in scenario.classes:
        work = part.workload
        columns = (
            work.prompt_tokens,
            work.hit_tokens,
            work.output_tokens,
            work.think_time_s,
            work.start_s,
            work.offsets,
        )
        for column in columns:
            found.update(np.ascontiguousarray(column).tobytes())
    nodes = (*scenario.cluster.prefill, *scenario.cluster.decode)
    found.update(repr((scenario.llm, *dict.fromkeys(nodes))).encode())
    return found.hexdigest()
