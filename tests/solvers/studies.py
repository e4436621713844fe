"""Small studies for tests, and workers that die at chosen points."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dualpath_model.scenario import Scenario
from solvers.study import Study, load_study
from solvers.study_axes import Point
from solvers.study_scenarios import Scenarios
from solvers.study_work import Work
from tests.conftest import ROOT

BASE = str(ROOT / "examples" / "paper-mean-turn.yaml")

GRID: dict[str, Any] = {
    "name": "grid",
    "base": BASE,
    "axes": {
        "cluster.prefill.count": [1, 2, 3],
        "workload.scale.hit_rate": {"from": 0.9, "to": 0.99, "steps": 4},
        "slo.tpot": ["30 ms", "50 ms"],
    },
}
LP: dict[str, Any] = {**GRID, "name": "lp", "method": "LP"}
SIMULATION: dict[str, Any] = {
    "name": "simulated",
    "base": str(ROOT / "examples" / "ds-27b-1p1d.yaml"),
    "axes": {"simulation.agents": [2, 3], "workload.scale.context": [0.25, 0.5]},
    "method": "simulation",
    "seed": 3,
}


def write(folder: Path, study: dict[str, Any], name: str = "study.yaml") -> Path:
    """Write a study file."""
    path = folder / name
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def traced(folder: Path, *traces: str) -> dict[str, Any]:
    """Return a study over traces, which it writes with their base scenario; the first is the base's."""
    for place, name in enumerate(traces):
        trace(folder / name, 1000 + place)
    base = yaml.safe_load(Path(BASE).read_text()) | {"workload": {"trace": traces[0]}}
    write(folder, base, "base.yaml")
    return {
        "name": "traced",
        "base": "base.yaml",
        "axes": {"workload.trace": list(traces), "cluster.decode.count": [4, 5]},
        "metrics": ["throughput_requests_per_s", "workload.mean_prompt_tokens"],
    }


def trace(path: Path, first: int) -> None:
    """Write a trace of one session, whose first turn appends so many tokens."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"session,turn,append,generate\na,1,{first},10\na,2,2000,10\n")


def made(folder: Path, study: dict[str, Any]) -> Study:
    """Return a study, loaded from a file."""
    return load_study(write(folder, study))


class _Mined(Scenarios):
    """Scenarios of which some kill the process that asks for them."""

    deadly: frozenset[int] = frozenset()

    def of(self, point: Point) -> Scenario:
        if point.number in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().of(point)


@dataclass(frozen=True)
class Deadly(Work):
    """A study whose points of these numbers kill their worker."""

    deadly: frozenset[int] = frozenset()

    @cached_property
    def scenarios(self) -> Scenarios:
        """The scenarios, mined."""
        found = _Mined(self.space, self.base, self.folder, self.base_file)
        found.deadly = self.deadly
        return found


def deadly(study: Study, *numbers: int) -> Study:
    """Return the study with deadly points."""
    work = study.work
    mined = Deadly(
        work.spec,
        work.base,
        work.base_file,
        work.study_file,
        work.content,
        deadly=frozenset(numbers),
    )
    return replace(study, work=mined)
