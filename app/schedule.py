"""The reference scheduler for people: drive it with a scenario, replay its log."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app import interrupt
from app.files import written_aside
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.file import read_scheduler
from dualpath_model.scheduler.log import DecisionLog, Line, Replayed, replay
from dualpath_model.scheduler.reference import Scheduler
from solvers.driver import drive
from solvers.scheduling import configure, from_file

_EVERY = 20_000  # events between two words of progress


def run_schedule(
    scenario: Scenario,
    policy: str | None,
    patience: int,
    log: Path | None,
    scheduler: Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Drive the scheduler (``how``: see :func:`solvers.driver.drive`) and return what happened.

    ``scheduler``: a scheduler file to start from, whose policy is taken where ``policy`` is None.
    ``log``: where to write the decision log, all of it or nothing. Raises InputError for an unknown
    policy, InfeasibleError where the scenario cannot be served.
    """
    if scheduler is None:
        settings, nodes = configure(scenario, policy or "dualpath", patience)
    else:
        scenario, settings, nodes = from_file(scenario, read_scheduler(scheduler), policy)
        settings = replace(settings, patience=patience)
    with contextlib.ExitStack() as stack:
        file = None if log is None else stack.enter_context(written_aside(log))

        def prepare(scheduler: Scheduler) -> None:
            if file is not None:
                DecisionLog(scheduler, file)

        driven = drive(scenario, settings, nodes, prepare=prepare, progress=_say_time, **how)
    return {"scenario": scenario.name, "patience": patience, **asdict(driven)}


def replay_log(log: Path, *, compiled: bool, each: bool) -> dict[str, Any]:
    """Replay a decision log and return how it compares. Raises InputError if it is not one."""
    counts: Counter[str] = Counter()
    events = refused = different = 0
    first: dict[str, Any] | None = None
    for step in replay(log, compiled=compiled):
        events += 1
        if isinstance(step.again, str):
            refused += 1
        else:
            counts.update(decision["kind"] for decision in step.again)
        if not step.same:
            different += 1
            first = first or {
                "line": step.line,
                "event": step.event,
                "logged": step.logged,
                "now": step.again,
            }
        if each:
            _print_step(step)
        elif events % _EVERY == 0:
            print(f"{events} events", file=sys.stderr)
    return {
        "log": os.fsencode(log).decode(errors="replace"),
        "events": events,
        "refused": refused,
        "decisions": dict(counts),
        "different": different,
        "first_difference": first,
    }


def event_schema() -> dict[str, Any]:
    """Return the JSON Schema of a line of a decision log, events and decisions in it."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Written(GenerateJsonSchema):
        """What we write has every field, defaults too."""

        def field_is_required(self, *_: Any, **__: Any) -> bool:
            return True

    return TypeAdapter(Line).json_schema(mode="serialization", schema_generator=Written)


def _print_step(step: Replayed) -> None:
    mark = " " if step.same else "!"
    event = _fields(step.event) if isinstance(step.event, dict) else step.event
    print(f"{mark} {step.line:6} {event}")
    outcome = (
        [f"refused: {step.again}"] if isinstance(step.again, str) else map(_fields, step.again)
    )
    for line in outcome:
        print(f"{mark}        -> {line}")


def _fields(record: dict[str, Any]) -> str:
    """Return a record as one line, its kind first."""
    words = [f"{name}={value}" for name, value in record.items() if name != "kind" and value != {}]
    return " ".join([str(record.get("kind")), *words])


def _say_time(simulated_s: float, turns: int) -> None:
    interrupt.check()
    print(f"{simulated_s:.0f} s simulated, {turns} turns", file=sys.stderr)
