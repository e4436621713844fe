"""Answers: the page, its download and the command line say the same."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from app.dashboard import answers
from app.dashboard.question import Question, Value
from app.dashboard.session import ordered
from app.examples import example_names
from dualpath_model import load_scenario
from dualpath_model.errors import DualPathError, InputError
from solvers import planner


def asked(base: str, **values: Value) -> Question:
    return Question(base, knobs=ordered(values))


def unpacked(bundle: tuple[str, bytes], folder: Path) -> Path:
    name, content = bundle
    if name.endswith(".yaml"):
        (folder / name).write_bytes(content)
        return folder / name
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(folder)
    return folder / name.replace(".zip", ".yaml")


@pytest.mark.parametrize("base", example_names())
def test_a_download_plans_as_the_page_does(base: str, tmp_path: Path) -> None:
    question = asked(base, prefill_nodes=3, decode_snics=2, generate_tokens=150)
    try:
        shown = answers.plan_of(question)
    except DualPathError as error:
        pytest.fail(str(error))
    scenario = load_scenario(unpacked(answers.bundle_of(question), tmp_path))
    found = planner.plan(scenario, intervals=False)
    assert found.throughput_requests_per_s == shown.throughput_requests_per_s
    assert found.split == shown.split
    assert found.utilisation == shown.utilisation


def test_answers_are_worked_out_once() -> None:
    question = asked("deepseek-660b-2p4d", decode_nodes=5)
    again = asked("deepseek-660b-2p4d", decode_nodes=5)
    assert answers.plan_of(question) is answers.plan_of(again)
    other = answers.scenario_of(asked("deepseek-660b-2p4d", decode_nodes=6))
    assert other.workload is answers.scenario_of(question).workload, "sessions are read once"


def test_mistakes_are_sentences() -> None:
    with pytest.raises(InputError, match="scenario 'nothing'"):
        answers.plan_of(Question("nothing"))
    with pytest.raises(InputError, match="not valid YAML"):
        answers.plan_of(Question("", "a: ["))
