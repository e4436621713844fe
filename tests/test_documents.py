"""Examples in documents run, and print what the documents say."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import fields
from typing import Any, get_args

import pytest

from dualpath_model.scheduler.events import Event
from tests.conftest import ROOT

SCHEDULER = (ROOT / "docs" / "scheduler.md").read_text()
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLE.findall(SCHEDULER))
def test_an_example_prints_what_it_shows(example: tuple[str, str]) -> None:
    code, shown = example
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == shown


def test_there_is_an_example() -> None:
    assert len(EXAMPLE.findall(SCHEDULER)) == 1


def test_the_state_diagram_has_every_event_in_a_request_s_life() -> None:
    diagram = SCHEDULER[SCHEDULER.index("```mermaid") : SCHEDULER.index("## 2.")]
    kinds: list[Any] = [
        next(field.default for field in fields(event) if field.name == "kind")
        for event in get_args(Event)
    ]
    for kind in kinds:
        if kind not in ("node joined", "engine joined", "parameters changed"):
            assert kind in diagram, kind
