"""Calibration: what a profile measured, how surely, and how two profiles differ."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from app import profile_view as view
from app.dashboard import frames, session, uploads
from app.dashboard.frames import plain
from app.dashboard.question import Question
from app.dashboard.uploads import Kind
from app.examples import example_dir
from app.figures_profile import changes, figure
from app.profile_panels import intervals, panels
from app.profile_words import interval, quantity
from dualpath_model.profile import PartName, Profile, load_profile

_NONE = "none"


def render(asked: Question) -> None:
    """Draw the page; it shows profiles, whatever the scenario takes."""
    known = _profiles()
    names = list(known)
    left, right = st.columns(2)
    chosen = left.selectbox(
        "Profile",
        names,
        key=session.control("calibration.profile", names[0], names),
        help="Measured rates of a machine: yours, uploaded in the sidebar, or those shipped. `dualpath "
        "calibrate run` writes one.",
    )
    other = right.selectbox(
        "Compare with",
        [_NONE, *(name for name in names if name != chosen)],
        key=session.control("calibration.other", _NONE, [_NONE, *names]),
        help="A profile measured before or elsewhere.",
    )
    profile = _loaded(known[chosen])
    st.subheader(plain(view.finding(profile)), anchor=False)
    for text in view.origins(profile):
        st.caption(plain(text))
    if other != _NONE:
        _compare(_loaded(known[other]), profile, other)
    parts = [part.value for part in profile.parts]
    if not parts:
        st.info("This profile has no parts.")
        return
    overview = _overview(known[chosen])
    if overview is not None:
        frames.figure(overview, "figures")
    part = st.segmented_control(
        "Part",
        parts,
        key=session.control("calibration.part", parts[0], parts),
        help="What was measured: GPU, host memory, storage or network.",
    )
    _part(known[chosen], PartName(part or parts[0]))


def _profiles() -> dict[str, Path]:
    """Return the profiles to choose from: the session's uploads first, then those shipped."""
    found = {
        name: uploads.path(digest)
        for name, digest, kind in session.files()
        if kind == Kind.PROFILE.value
    }
    shipped = sorted((example_dir() / "profiles").glob("*.json"))
    return {**found, **{f"{path.stem} (shipped)": path for path in shipped}}


@lru_cache(16)
def _loaded(path: Path) -> Profile:
    return load_profile(path)


@lru_cache(16)
def _overview(path: Path) -> Any:
    panel = intervals(_loaded(path).figures)
    return None if panel is None else figure(panel)


@lru_cache(32)
def _drawn(path: Path, name: PartName) -> list[Any]:
    return [figure(panel) for panel in panels(name, _loaded(path).parts[name])]


def _part(path: Path, name: PartName) -> None:
    part = _loaded(path).parts[name]
    heads = ("figure", "value", "95 % interval", "what it is", "replaces in a node")
    records = [dict(zip(heads, row, strict=True)) for row in view.figure_rows(part)]
    if records:
        frames.rows(records, f"figures-{name.value}")
    for text in part.warnings:
        st.warning(plain(text), icon=":material/warning:")
    for text in view.remarks(part):
        st.caption(plain(text))
    for number, drawn in enumerate(_drawn(path, name), start=1):
        frames.figure(drawn, f"{name.value}-{number}")
    with st.expander("How it was measured"):
        said = {
            **part.settings,
            **{f"version of {key}": value for key, value in part.tools.items()},
        }
        frames.rows(
            [
                {"setting": "date", "value": part.date},
                *({"setting": key.replace("_", " "), "value": str(v)} for key, v in said.items()),
            ],
            f"settings-{name.value}",
        )


def _compare(before: Profile, after: Profile, name: str) -> None:
    from calibration.profile import compare, differences

    found = compare(before, after)
    st.subheader(plain(f"Against {name}: {view.changes_summary(found)}"), anchor=False)
    for text in view.differences_in_words(differences(before, after)):
        st.caption(plain(text))
    if any(change.ratio is not None for change in found):
        frames.figure(changes(found), "changes")
    frames.rows(
        [
            {
                "figure": change.figure,
                "before": ""
                if change.before is None
                else quantity(change.before.value, change.unit),
                "its interval": (
                    "" if change.before is None else interval(change.before, change.unit)
                ),
                "after": "" if change.after is None else quantity(change.after.value, change.unit),
                "after's interval": (
                    "" if change.after is None else interval(change.after, change.unit)
                ),
                "verdict": view.verdict(change),
            }
            for change in found
        ],
        "changes-table",
    )
