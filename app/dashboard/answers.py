"""Answers to questions, each worked out once a process: what every page and session shares.

A question becomes a scenario file first and is answered from that file, by the functions that the
command line calls: the page, its download and ``dualpath plan`` cannot differ.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import yaml

from app.dashboard import knobs, references, uploads
from app.dashboard.question import Question
from app.examples import example_dir, example_names
from dualpath_model import yaml_lines
from dualpath_model.errors import InputError, unknown_name
from dualpath_model.scenario import Scenario, WorkloadSpec, parse_spec, read_workload, resolve
from dualpath_model.workload import Workload
from dualpath_model.yaml_lines import Document
from solvers import planner
from solvers.alternatives import Quick, quick
from solvers.planner import Plan
from solvers.uncertainty import Uncertainty, uncertainty

_REMEMBERED = 128
_SCENARIOS = 48
"""Scenarios hold their sessions, some 25 bytes a turn and knob position, so that not all are kept; but
more than there are users at once, who ask for theirs several times a move."""
MOST_TURNS = 500_000
"""Of one scenario's sessions, so that many users' scenarios fit the server's memory."""
_HEADER = "# From the dualpath dashboard. Plan it with: dualpath plan FILE\n"


@lru_cache(_SCENARIOS)
def scenario_of(question: Question) -> Scenario:
    """Return the scenario that is asked about. Raises InputError."""
    name = question.base or "scenario"
    return _resolved(yaml_lines.parse(yaml_of(question), name), question)


@lru_cache(_REMEMBERED)
def plan_of(question: Question) -> Plan:
    """Return its plan, without intervals. Raises InputError, and InfeasibleError with the reason."""
    return planner.plan(scenario_of(question), intervals=False)


@lru_cache(_REMEMBERED)
def quick_of(question: Question) -> Quick:
    """Return throughput and split alone, in a tenth of a plan's time. Raises as :func:`plan_of`."""
    return quick(scenario_of(question))


@lru_cache(_REMEMBERED)
def intervals_of(question: Question) -> Uncertainty | None:
    """Return the plan's intervals, which takes seconds; None where nothing was measured."""
    return uncertainty(scenario_of(question))


@lru_cache(_SCENARIOS)
def start_of(question: Question) -> Scenario:
    """Return the scenario from which the knobs start, uploads that were chosen included."""
    sources = tuple(knob for knob in question.knobs if knob[0] in knobs.SOURCES)
    return scenario_of(replace(question, knobs=sources))


@lru_cache(_REMEMBERED)
def yaml_of(question: Question) -> str:
    """Return the scenario file: as it was given where no knob is moved. Raises InputError."""
    document = _document(question.unmoved())
    if not question.knobs:
        return _text(question)
    names = [name for name, _ in question.files]
    sources = tuple(knob for knob in question.knobs if knob[0] in knobs.SOURCES)
    others = tuple(knob for knob in question.knobs if knob[0] not in knobs.SOURCES)
    data = document.data
    if sources:
        before = scenario_of(question.unmoved())
        data = knobs.moved(data, sources, before, names)
    if others:
        data = knobs.moved(data, others, start_of(question), names)
    return _HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def folder_of(question: Question) -> Path:
    """Return the folder in which relative paths of the scenario start."""
    base = example_dir() if question.base else None
    return uploads.folder(question.files, base) if question.files or base is None else base


def bundle_of(question: Question) -> tuple[str, bytes]:
    """Return the file to download and its content: the YAML, or a zip of it with what it refers to."""
    text = yaml_of(question)
    stem = question.base or "scenario"
    needed = references.needed(yaml_lines.parse(text, stem).data)
    if not needed:
        return f"{stem}.yaml", text.encode()
    packed = io.BytesIO()
    folder = folder_of(question)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{stem}.yaml", text)
        for name in needed:
            found = folder / name
            parts = sorted(found.rglob("*")) if found.is_dir() else [found]
            for part in parts:
                if part.is_file():
                    archive.writestr(str(part.relative_to(folder)), part.read_bytes())
    return f"{stem}.zip", packed.getvalue()


@lru_cache(_REMEMBERED)
def _text(question: Question) -> str:
    """Return the file that the question starts from."""
    if not question.base:
        return question.text
    if question.base not in example_names():
        raise unknown_name("scenario", question.base, example_names())
    return (example_dir() / f"{question.base}.yaml").read_text(encoding="utf-8")


@lru_cache(_SCENARIOS)
def _document(question: Question) -> Document:
    """Return the parsed file. One that was uploaded may only refer to the catalog and to uploads."""
    document = yaml_lines.parse(_text(question), question.base or "scenario")
    if not question.base:
        parse_spec(document)
        references.check(document.data, [name for name, _ in question.files])
    return document


def _resolved(document: Document, question: Question) -> Scenario:
    if not question.base:
        parse_spec(document)
        references.check(document.data, [name for name, _ in question.files])
    folder = folder_of(question)
    try:
        return resolve(parse_spec(document), folder, document, read=_read)
    except InputError as error:  # where our folders are is nobody's business
        raise InputError(str(error).replace(f"{folder}/", "")) from None


def _read(spec: WorkloadSpec, folder: Path, block_tokens: int) -> Workload:
    return _sessions(spec.model_dump_json(), folder, block_tokens)


@lru_cache(_SCENARIOS)
def _sessions(spec: str, folder: Path, block_tokens: int) -> Workload:
    found = read_workload(WorkloadSpec.model_validate_json(spec), folder, block_tokens)
    if found.turns > MOST_TURNS:
        raise InputError(
            f"{found.source} has {found.turns:,} turns; the dashboard takes at most {MOST_TURNS:,}: "
            f"upload fewer sessions, or plan with `dualpath plan` on the command line"
        )
    return found
