"""The scheduler's own file: valid by its schema, and a scheduler started from it decides the same."""

from __future__ import annotations

import io
import json
from pathlib import Path

import jsonschema
import pytest

from dualpath_model.errors import InputError
from dualpath_model.export import Site, export, target_named, write
from dualpath_model.export.targets import scheduler as target
from dualpath_model.scenario import load_scenario
from dualpath_model.scheduler.events import Settings
from dualpath_model.scheduler.file import SchedulerFile, read_scheduler
from dualpath_model.scheduler.log import DecisionLog
from dualpath_model.scheduler.reference import Scheduler
from solvers.driver import drive
from solvers.scheduling import configure, from_file
from solvers.simulator.experiments import execute
from tests.conftest import ROOT
from tests.export.plans import made, plan_file

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def file_of(tmp_path: Path, name: str, **more: str) -> SchedulerFile:
    write(made("scheduler", name, site=Site(**more)), tmp_path / name)  # type: ignore[arg-type]
    return read_scheduler(tmp_path / name / "scheduler.json")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_file_is_what_the_scheduler_is_configured_with(tmp_path: Path, name: str) -> None:
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    settings, nodes = configure(scenario)
    file = file_of(tmp_path, name)
    assert file.settings == settings
    assert file.nodes == nodes
    again, *configured = from_file(scenario, file)
    assert again.rules == scenario.rules
    assert configured == [settings, nodes]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_read_weights_are_the_plans(tmp_path: Path, name: str) -> None:
    file, plan = file_of(tmp_path, name), plan_file(name)
    weights = [extras.read_weight for extras in file.extras.values()]
    assert weights == [node.read_weight for node in plan.scheduler_parameters.nodes]
    assert sum(weights) == pytest.approx(1.0)
    decode = [file.extras[node.node].read_weight for node in file.nodes if node.pool == "decode"]
    assert sum(decode) == pytest.approx(plan.split)


def test_it_is_valid_by_its_schema_and_other_files_are_not() -> None:
    files = made("scheduler").files
    schema = json.loads(files["scheduler.schema.json"])
    data = json.loads(files["scheduler.json"])
    jsonschema.validate(data, schema)
    for wrong in ({"split": 1.5}, {"quota_s": 0}, {"format": "other"}, {"nodes": [{}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**data, **wrong}, schema)


@pytest.mark.parametrize("policy", ["dualpath", "priced"])
def test_the_reference_scheduler_decides_the_same(tmp_path: Path, policy: str) -> None:
    """To the byte of its decision log, whichever it started from."""
    scenario = load_scenario(ROOT / "examples" / "heterogeneous.yaml")
    file = file_of(tmp_path, "heterogeneous", policy=policy)

    def log_of(asked: object, settings: Settings, nodes: object) -> bytes:
        kept = io.BytesIO()

        def prepare(scheduler: Scheduler) -> None:
            DecisionLog(scheduler, kept)

        drive(asked, settings, nodes, prepare=prepare, agents=20, stop_s=15.0)  # type: ignore[arg-type]
        return kept.getvalue()

    direct = log_of(scenario, *configure(scenario, policy))
    assert len(direct.splitlines()) > 100
    assert log_of(*from_file(scenario, file)) == direct


@pytest.mark.slow
def test_the_simulator_runs_the_same(tmp_path: Path) -> None:
    """Every turn of every agent at the same nanosecond, and not so with another quota."""
    scenario = load_scenario(ROOT / "examples" / "deepseek-660b-2p4d.yaml")
    file = file_of(tmp_path, "deepseek-660b-2p4d")
    direct = execute(scenario, agents=60, seed=3)
    again = execute(scenario, agents=60, seed=3, scheduler=file)
    assert (again.run.rows == direct.run.rows).all()
    assert len(direct.run.rows) > 1000
    data = json.loads((tmp_path / "deepseek-660b-2p4d" / "scheduler.json").read_text())
    data["quota_s"] /= 10
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(data))
    other = execute(scenario, agents=60, seed=3, scheduler=read_scheduler(changed))
    assert not (other.run.rows == direct.run.rows).all()


def test_a_file_of_another_cluster_is_refused(tmp_path: Path) -> None:
    scenario = load_scenario(ROOT / "examples" / "qwen-32b-1p2d.yaml")
    with pytest.raises(InputError, match="p1 is a prefill node of 8 engines, but not there"):
        from_file(scenario, file_of(tmp_path, "deepseek-660b-2p4d"))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError, match="nearest"):
        export(target_named("scheduler"), plan_file(), Site(policy="dualpaths"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "format is not 'dualpath-scheduler'"),
        (
            '{"format": "dualpath-scheduler", "version": 2}',
            "version is 2, but this dualpath knows 1",
        ),
        ('{"format": "dualpath-scheduler", "version": 1}', "field required"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_scheduler(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_scheduler(tmp_path)


def test_every_setting_has_its_origin() -> None:
    assert set(target._SETTINGS) == set(Settings.__dataclass_fields__)
