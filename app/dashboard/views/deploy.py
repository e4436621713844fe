"""Deploy: the scheduler's parameters, and the files that take the plan elsewhere."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import orjson
import streamlit as st

from app import plan_view as view
from app.dashboard import answers, frames, references, session
from app.dashboard.frames import plain
from app.dashboard.question import Question
from app.output import dump
from app.page import layout
from dualpath_model import yaml_lines
from dualpath_model.errors import DualPathError
from dualpath_model.export import Export, all_targets, export, parse_plan, target_named
from solvers.deployment import plan_document

_PREVIEW = 4_000


_MEANINGS = """
- **alpha**: a storage read queue of up to so many tokens is short; a request goes to an engine whose
  node has a short queue if there is one.
- **beta**: a prefill GPU with more unfinished prompt tokens than this gets no further request.
- **quota**: a forward batch takes requests until their attention would take this long, so that the
  GPUs of a group end at about the same time.
- **Z factor**: a decode GPU gets a request only while its tokens are at most Z times the mean of all.
- **block**: KV-cache is read and written in blocks of so many tokens, all layers together.
- **split x**: the share of all bytes read from storage that decode nodes read for the prefill nodes.
- **read weight**: each node's share of the reads, for schedulers that choose by weights.
"""


@dataclass(frozen=True)
class Deliverable:
    """One file: its label, its name, what it is for, and how to make it. ``language``: of the preview,
    None where it is not text. ``readme``: of a packed folder, shown below it; raises InputError where
    the folder cannot be made.
    """

    label: str
    file_name: str
    mime: str
    about: str
    content: Callable[[], bytes]
    language: str | None
    readme: Callable[[], str] | None = None


def render(asked: Question) -> None:
    """Draw the page."""
    plan, scenario = answers.plan_of(asked), answers.scenario_of(asked)
    st.subheader("Scheduler parameters", anchor=False)
    st.caption(
        "What a scheduler that picks the read path for each request needs to know of this cluster."
    )
    heads = ("parameter", "value", "where it comes from")
    frames.rows(
        [dict(zip(heads, row, strict=True)) for row in view.parameter_rows(plan, scenario)],
        "scheduler-parameters",
    )
    with st.expander("What these mean"):
        st.markdown(_MEANINGS)
    figure = _weights(asked)
    if figure is not None:
        frames.figure(figure, "read-weights")
    st.subheader("Files", anchor=False)
    found = {item.label: item for item in _deliverables(asked)}
    label = st.selectbox(
        "File",
        list(found),
        key=session.control("deploy.file", next(iter(found)), list(found)),
        help="What to take with you; each is what the command line makes of the same scenario.",
    )
    item = found[label]
    st.markdown(item.about)
    try:
        readme = None if item.readme is None else item.readme()
    except DualPathError as error:  # a value that the target cannot take
        st.error(plain(str(error)))
        return
    content = None if item.language is None else item.content()
    st.download_button(
        f"Download {item.file_name}",
        item.content if content is None else content,  # made only when it is asked for
        file_name=item.file_name,
        mime=item.mime,
        key=f"deliver {item.label}",
        on_click="ignore",
        type="primary",
        icon=":material/download:",
        help="Saves the file through the browser.",
    )
    if content is not None:
        text = content.decode()
        st.code(text[:_PREVIEW], language=item.language)
        if len(text) > _PREVIEW:
            st.caption(f"The first {_PREVIEW:,} of {len(text):,} characters.")
    if readme is not None:
        with st.expander("README of the folder", expanded=True):
            st.markdown(re.sub("(?m)^#", "####", readme))  # below the page's own headings
    if plan.notes:
        st.caption(plain("Notes: " + "; ".join(plan.notes)))


def _deliverables(asked: Question) -> list[Deliverable]:
    stem = asked.base or "scenario"
    text = not _refers(asked)
    return [
        Deliverable(
            "Scheduler parameters (JSON)",
            f"{stem}-parameters.json",
            "application/json",
            "Alpha, beta, quota, Z, split and each node's read weight, in SI units, for a scheduler or "
            "proxy of your own: `scheduler_parameters` of `dualpath plan FILE --json -`.",
            lambda: dump(asdict(answers.plan_of(asked).scheduler_parameters)).encode(),
            "json",
        ),
        Deliverable(
            "Scenario (YAML)",
            f"{stem}.yaml" if text else f"{stem}.zip",
            "application/yaml" if text else "application/zip",
            "This scenario with everything that was moved: `dualpath plan FILE` gives the same numbers, "
            "`dualpath simulate FILE` runs it."
            + ("" if text else " Packed with the files that it refers to; unpack it first."),
            lambda: answers.bundle_of(asked)[1],
            "yaml" if text else None,
        ),
        Deliverable(
            "Plan (JSON)",
            f"{stem}-plan.json",
            "application/json",
            "The whole plan, as `dualpath plan FILE --json FILE` writes it (without intervals); its "
            "schema is `dualpath schema plan`.",
            lambda: dump(_document(asked)).encode(),
            "json",
        ),
        Deliverable(
            "Report (HTML)",
            f"{stem}-plan.html",
            "text/html",
            "One page with the figures of the plan, which needs no network: `dualpath plan FILE --html "
            "FILE`.",
            lambda: _report(asked),
            None,
        ),
        *(
            Deliverable(
                f"For {target.software} (zip)",
                f"{stem}-{name}.zip",
                "application/zip",
                f"{target.about} With a README that says how to apply them and what they leave out: "
                f"`dualpath export {name} FILE --out DIR`.",
                partial(_packed, asked, name),
                None,
                partial(_readme, asked, name),
            )
            for name, target in all_targets().items()
            if not target.wraps
        ),
    ]


@lru_cache(8)
def _document(asked: Question) -> dict[str, Any]:
    """Return the plan as ``dualpath plan --json`` writes it."""
    return plan_document(answers.scenario_of(asked), answers.plan_of(asked))


@lru_cache(32)
def _export(asked: Question, name: str) -> Export:
    """Return the files of an export target. Raises InputError for values that it cannot take."""
    return export(target_named(name), parse_plan(orjson.loads(dump(_document(asked)))))


def _readme(asked: Question, name: str) -> str:
    return _export(asked, name).files["README.md"]


def _packed(asked: Question, name: str) -> bytes:
    """Return an export's files in a zip: the same plan gives the same bytes."""
    made = _export(asked, name)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in made.files.items():
            entry = zipfile.ZipInfo(f"{name}/{file}")  # of 1980, not of now
            entry.external_attr = (0o755 if file in made.executable else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)
    return packed.getvalue()


@lru_cache(32)
def _refers(asked: Question) -> bool:
    """Tell whether the scenario's file refers to others, which are packed with it."""
    document = yaml_lines.parse(answers.yaml_of(asked), asked.base or "scenario")
    return bool(references.needed(document.data))


@lru_cache(8)
def _report(asked: Question) -> bytes:
    from app.report import report_html

    return report_html(answers.plan_of(asked), answers.scenario_of(asked)).encode()


@lru_cache(32)
def _weights(asked: Question) -> Any:
    """Return the nodes' read weights as bars, None where the nodes of a pool are alike."""
    from plotly import graph_objects

    nodes = answers.plan_of(asked).scheduler_parameters.nodes
    alike = {(node.pool, round(node.read_weight, 6)) for node in nodes}
    if len(alike) == len({node.pool for node in nodes}):
        return None
    figure = graph_objects.Figure()
    for pool, colour in (("prefill", view.DUAL_PATH), ("decode", view.DECODE_SIDE)):
        mine = [node for node in nodes if node.pool == pool]
        figure.add_bar(
            x=[f"{pool} {number}" for number in range(len(mine))],
            y=[node.read_weight for node in mine],
            name=f"{pool} nodes",
            marker={"color": colour},
        )
    figure.update_xaxes(type="category", title="node")
    figure.update_yaxes(title="share of all reads", tickformat=".1%", rangemode="tozero")
    legend = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    return layout(figure, "Which node reads how much", 360, legend=legend)
