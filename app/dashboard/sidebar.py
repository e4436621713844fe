"""The sidebar: which scenario, which uploads, and the knobs that change it."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app.dashboard import answers, frames, knobs, session
from app.dashboard.frames import plain
from app.dashboard.knobs import Choice, Control, Knob, Slider
from app.dashboard.question import Question, Value
from app.dashboard.uploads import MOST_BYTES, Kind, keep, text
from app.examples import example_names
from dualpath_model.errors import DualPathError
from dualpath_model.scenario import Scenario

_OWN = "your own scenario"
_UPLOADS = {
    Kind.SCENARIO: (
        "Scenario (YAML)",
        ["yaml", "yml"],
        "A scenario file as `dualpath plan` takes it. It may name entries of the catalogs and files "
        "that you have uploaded here.",
    ),
    Kind.PROFILE: (
        "Calibration profile (JSON)",
        ["json"],
        "Measured rates of a machine, written by `dualpath calibrate`. Choose below which nodes they "
        "stand for.",
    ),
    Kind.TRACE: (
        "Recorded sessions",
        ["json", "jsonl", "csv", "gz"],
        "Agent sessions in any format that `dualpath trace stats` reads: CSV, JSON lines, Mooncake.",
    ),
}
_OPEN = (knobs.CLUSTER, knobs.WORKLOAD)


def ask() -> Question:
    """Draw the sidebar and return what it asks; mistakes are shown in it."""
    with st.sidebar:
        _presets()
        _uploads()
        notes = st.container()
        asked = _knobs()
        for note in session.state().notes:  # some are the knobs'
            notes.warning(note, icon=":material/warning:")
        session.state().question = asked
        if session.too_long(session.state()):
            notes.caption(
                f"The address of this page is longer than {session.MOST_LINK:,} characters, which many "
                "servers refuse, so as a link it may not open; save the scenario from the Deploy page "
                "instead, or remove pinned scenarios."
            )
        st.divider()
        frames.pick_format()
    return asked


def _presets() -> None:
    now = session.question()
    options = example_names() + ([] if now.base else [_OWN])
    if now.base not in ("", *options):
        session.state().notes.append(f"There is no shipped scenario '{plain(now.base[:80])}'.")
        session.ask(Question(session.DEFAULT, "", now.files))
        now = session.question()
    st.session_state["_preset"] = now.base or _OWN
    st.selectbox(
        "Scenario",
        options,
        key="_preset",
        on_change=_preset,
        help="A shipped example to start from (`dualpath examples` lists them), or your upload below.",
    )


def _preset() -> None:
    chosen = st.session_state["_preset"]
    if chosen != _OWN:
        session.state().notes.clear()
        session.ask(Question(chosen, "", session.question().files))


def _uploads() -> None:
    now = session.state()
    with st.expander("Upload your own", icon=":material/upload:"):
        for kind, (label, endings, help_text) in _UPLOADS.items():
            turn = st.session_state.setdefault(f"_turn {kind}", 0)
            most = MOST_BYTES[kind] // 10**6
            st.file_uploader(
                label,
                endings,
                key=f"_upload {kind} {turn}",
                on_change=_upload,
                args=(kind,),
                max_upload_size=most,
                help=f"{help_text} At most {most} MB; kept on this server until it ends.",
            )
        for found in now.uploads:
            st.caption(f"{found.kind.value}: {plain(found.name)}, {found.size_bytes:,} bytes")


def _upload(kind: Kind) -> None:
    """Take what was uploaded; a file that cannot be used changes nothing but the note about it."""
    key = f"_upload {kind} {st.session_state[f'_turn {kind}']}"
    given = st.session_state.get(key)
    if given is None:
        return
    now = session.state()
    now.notes.clear()
    st.session_state[f"_turn {kind}"] += 1  # an empty uploader, ready for the next file
    try:
        found = keep(given.name, given, kind)
    except DualPathError as error:
        now.notes.append(f"Nothing was changed. {sentence(error)}")
        return
    asked = now.question
    if kind is Kind.SCENARIO:
        try:
            candidate = Question("", text(found.digest), asked.files)
            answers.scenario_of(candidate)
        except DualPathError as error:
            now.notes.append(f"Nothing was changed. {plain(found.name)}: {sentence(error)}")
            return
        session.ask(candidate)
        return
    session.uploaded(found)
    files = tuple((u.name, u.digest) for u in now.uploads)
    if kind is Kind.TRACE:
        values = {**dict(asked.knobs), "trace": found.name}
    else:
        values = {**dict(asked.knobs), "profile_prefill": found.name, "profile_decode": found.name}
    session.ask(replace(asked, files=files, knobs=session.ordered(values)))


def _knobs() -> Question:
    """Draw the knobs from where the scenario stands and return what they ask."""
    asked = session.question()
    names = [name for name, _ in asked.files]
    try:
        before = answers.start_of(asked)
    except DualPathError as error:
        st.error(sentence(error))
        before = None
    values = dict(asked.knobs)
    for group in (knobs.CLUSTER, knobs.WORKLOAD, knobs.NODES, knobs.LLM, knobs.PROMISE):
        with st.expander(group, expanded=group in _OPEN):
            for knob in knobs.KNOBS:
                if knob.group == group:
                    _knob(knob, before, names, values)
    st.button(
        "Back to the scenario as it is",
        on_click=_reset,
        disabled=not values,
        icon=":material/undo:",
        help="Undo everything that was moved above.",
        width="stretch",
    )
    return replace(asked, knobs=session.ordered(values))


def _knob(knob: Knob, before: Scenario | None, names: list[str], values: dict[str, Value]) -> None:
    """Draw one knob; ``values`` keeps it if it is moved."""
    if before is None and knob.ask is not None:
        return
    control = (
        knob.control(before, names)
        if before is not None
        else Choice(knobs.AS_IS, (knobs.AS_IS, *names))
    )
    if control is None:
        return
    value = _widget(knob, control, values.get(knob.name, control.now))
    if value == control.now:
        values.pop(knob.name, None)
    else:
        values[knob.name] = value


def _widget(knob: Knob, control: Control, value: Value) -> Value:
    key = f"knob.{knob.name}"
    if key not in st.session_state or not control.admits(st.session_state[key]):
        admitted = control.admits(value)
        if not admitted:
            session.state().notes.append(
                f"{knob.label}: {plain(repr(value)[:80])} cannot be chosen here."
            )
        st.session_state[key] = value if admitted else control.now
    if isinstance(control, Choice):
        return str(st.selectbox(knob.label, control.options, key=key, help=knob.help))
    real = any(isinstance(part, float) for part in (control.low, control.high, control.step))
    number = float if real else int
    st.session_state[key] = number(st.session_state[key])
    found: int | float = st.slider(
        knob.label,
        number(control.low),
        number(control.high),
        step=number(control.step),
        format=control.format,
        key=key,
        help=f"{knob.help} The scenario has {_said(control)}.",
    )
    return found


def _said(control: Slider) -> str:
    return (control.format % control.now) if "%d" not in control.format else f"{control.now:,}"


def _reset() -> None:
    session.state().notes.clear()
    session.ask(session.question().unmoved())


def sentence(error: DualPathError) -> str:
    """Return an error as a sentence in Markdown."""
    text = str(error)
    if text.split(" ", 1)[0].isalpha():  # and no file's or field's name
        text = text[:1].upper() + text[1:]
    return plain(text if text.endswith(".") else f"{text}.")
