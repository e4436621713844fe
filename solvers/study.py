"""Studies: thousands of scenarios from one YAML file, on this machine or on a cluster, resumable.

>>> study = load_study("study.yaml")                                       # doctest: +SKIP
>>> run_study(study, "results", engine="local")                            # doctest: +SKIP
>>> read_study("results").to_pandas()                                      # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.scenario import parse_spec
from solvers.study_engines import engine_of
from solvers.study_run import Progress, Ran, drive
from solvers.study_spec import StudySpec
from solvers.study_store import VERSION, opened, read_manifest, read_study
from solvers.study_work import Work, digest_of, files_of, schema_of

__all__ = ["Ran", "Study", "load_study", "read_manifest", "read_study", "run_study"]


@dataclass(frozen=True)
class Study:
    """A study that is ready to run: its file, checked, and everything that workers need.

    ``files``: digests of what the files hold that its base and its axes name.
    """

    work: Work
    files: Mapping[str, str]

    @property
    def spec(self) -> StudySpec:
        """The file."""
        return self.work.spec

    @property
    def points(self) -> int:
        """How many points it has."""
        return self.work.space.count

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What its folder says of it; ``digest`` is of ``question``: what its results depend on."""
        spec = self.spec.model_dump(mode="json", by_alias=True)
        named = {name: spec[name] for name in ("method", "axes", "sample", "simulation", "seed")}
        question = {
            **named,
            "metrics": [metric.name for metric in self.work.metrics],
            "base": self.work.base,
            "files": dict(self.files),
            "toolkit": self.work.toolkit,
        }
        text = json.dumps(question, sort_keys=True, default=str)
        return {
            "version": VERSION,
            "name": spec["name"],
            "description": spec["description"],
            "digest": hashlib.sha256(text.encode()).hexdigest(),
            "points": self.points,
            "method": spec["method"],
            "axes": [axis.name for axis in self.work.space.axes],
            "metrics": [metric.name for metric in self.work.metrics],
            "best": spec["best"] or {},
            "question": json.loads(text),
            "schema": schema_of(self.work).serialize().to_pybytes().hex(),
        }


def load_study(path: str | Path, find: Callable[[str], Path] | None = None) -> Study:
    """Read a study file and its base scenario, and check both.

    ``find`` returns the file of a base that is none beside the study: a shipped example's, say.
    Raises InputError with file, line, field, value and remedy.
    """
    path = Path(path)
    document = yaml_lines.read(path)
    try:
        spec = StudySpec.model_validate(document.data)
    except ValidationError as error:
        raise yaml_lines.explain(error, document, StudySpec) from None
    beside = path.parent / spec.base
    file = beside if find is None or beside.is_file() else find(spec.base)
    try:
        base = yaml_lines.read(file)
    except InputError as error:
        raise InputError(f"{path}:{document.lines.get(('base',), 1)}: base: {error}") from None
    parse_spec(base)
    work = Work(spec, base.data, str(file.resolve()), str(path))
    _ = work.space, work.metrics  # checked before a trace is read
    _check_best(work)
    files = files_of(work)
    return Study(replace(work, content=digest_of(files)), files)


def _check_best(work: Work) -> None:
    numeric = {m.name for m in work.metrics if m.type in ("float", "int")}
    for name in work.spec.best or {}:
        if name not in numeric:
            raise InputError(
                f"{work.study_file}: best names {name}, which is none of the numbers in metrics; "
                f"add it there, or take one of {', '.join(sorted(numeric)) or 'none'}"
            )


def run_study(
    study: Study,
    out: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    tell: Progress | None = None,
) -> Ran:
    """Work on all points that ``out`` misses, and write ``results.parquet`` when there are all.

    ``engine``: "local", "dask://HOST:PORT", "ray" or "ray://HOST:PORT"; ``workers``: how many to use.
    Raises InputError as its parts do; KeyboardInterrupt leaves what is finished.
    """
    if workers is not None and not 1 <= workers <= 10_000:
        raise InputError(f"workers is {workers}; it must be 1 to 10000")
    with opened(Path(out), study.work, study.manifest) as store:
        if not store.missing():
            store.finish()
            return Ran(0, 0, 0.0, 0.0, 0.0, 0.0, 0)
        with engine_of(engine, study.work, workers) as place:
            ran = drive(study.work, store, place, tell or (lambda *_: None))
        store.finish()
    return ran
