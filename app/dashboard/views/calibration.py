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
from app.profile_marks import Panel
from app.profile_panels import CALLED, in_words, intervals, panels
from app.profile_words import interval, parameter, parameter_interval, quantity
from dualpath_model.profile import FIGURES, Part, PartName, Profile, load_profile

_NONE = "none"
_OF_SHAPES = frozenset(
    (
        *("gemm_bf16_flop_per_s", "gemm_fp8_flop_per_s", "gemm_fp32_flop_per_s"),
        *("prefill_flop_per_s", "prefill_layer_s", "attention_flop_per_s"),
        *("decode_flop_per_s", "decode_bytes_per_s", "decode_layer_s"),
        *("layer_block_share", "gather_share", "interference_share"),
    )
)
"""Figures that are measured with an LLM's shapes, so that another LLM alone changes them."""


def render(asked: Question) -> None:
    """Draw the page; it shows profiles, whatever the scenario takes."""
    known = _profiles()
    names = list(known)
    left, right = st.columns(2)
    chosen = left.selectbox(
        "Profile (in a comparison: after)",
        names,
        key=session.control("calibration.profile", names[0], names),
        help="Measured rates of a machine: yours, uploaded in the sidebar, or those shipped. `dualpath "
        "calibrate run` writes one.",
    )
    other = right.selectbox(
        "Compare with (before)",
        [_NONE, *(name for name in names if name != chosen)],
        key=session.control("calibration.other", _NONE, [_NONE, *names]),
        help="A profile measured before or elsewhere: how the one on the left differs from this one.",
    )
    profile = _loaded(known[chosen])
    st.subheader(plain(in_words(view.finding(profile))), anchor=False)
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
    # Those of GPUs first: a CPU that stands for one says least.
    shipped = sorted(
        (example_dir() / "profiles").glob("*.json"), key=lambda path: (path.stem[:3] == "cpu", path)
    )
    return {**found, **{f"{path.stem} (shipped)": path for path in shipped}}


@lru_cache(16)
def _loaded(path: Path) -> Profile:
    return load_profile(path)


@lru_cache(16)
def _overview(path: Path) -> Any:
    panel = intervals(_loaded(path).figures)
    return None if panel is None else figure(panel)


@lru_cache(32)
def _panels(path: Path, name: PartName) -> list[Panel]:
    return panels(name, _loaded(path).parts[name])


@lru_cache(64)
def _drawn(path: Path, name: PartName, number: int) -> Any:
    return figure(_panels(path, name)[number])


def _part(path: Path, name: PartName) -> None:
    part = _loaded(path).parts[name]
    records = [
        {
            "figure": CALLED[key],
            "value": value,
            "95 % interval": ends,
            "what it is": meaning,
            "replaces in a node": feeds,
            "key in the profile": key,
        }
        for key, value, ends, meaning, feeds in view.figure_rows(part)
    ]
    if records:
        frames.rows(records, f"figures-{name.value}")
    for text in part.warnings:
        st.warning(plain(in_words(text)), icon=":material/warning:")
    for text in view.remarks(part):
        st.caption(plain(text))
    _fits(path, name, part)
    _series(path, name)
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


def _fits(path: Path, name: PartName, part: Part) -> None:
    """Draw what the fits leave, and list their parameters."""
    if not part.fits:
        return
    st.subheader("Fits", anchor=False)
    for number, panel in enumerate(_panels(path, name)):
        if panel.kind == "residuals":
            frames.figure(_drawn(path, name, number), f"{name.value}-residuals")
    frames.rows(
        [
            {
                "fit": fit.name,
                "parameter": key.replace("_", " "),
                "value": parameter(key, found.value),
                "95 % interval": parameter_interval(key, found),
                "samples": len(fit.indices),
                "far off": len(fit.outliers),
                "note": found.note,
            }
            for fit in part.fits
            for key, found in fit.parameters.items()
        ],
        f"fits-{name.value}",
    )


def _series(path: Path, name: PartName) -> None:
    """Offer the raw samples series by series, closed: all of them are ten screens and more."""
    groups: list[list[int]] = []
    found = _panels(path, name)
    for number, panel in enumerate(found):
        if panel.kind == "latency":  # of the series before it
            groups[-1].append(number)
        elif panel.kind != "residuals":
            groups.append([number])
    if not groups:
        return
    st.subheader("Raw samples, by series", anchor=False)
    st.caption(
        "Dots are samples, crosses those that lie far off; lines are fitted, diamonds are medians with "
        "their 95 % intervals."
    )
    for numbers in groups:
        key = f"series {path.name} {name.value} {numbers[0]}"
        # Rerun: what is closed is neither drawn nor sent.
        with st.expander(plain(found[numbers[0]].title), key=key, on_change="rerun") as opened:
            if opened.open:
                for number in numbers:
                    frames.figure(_drawn(path, name, number), f"{name.value}-{number + 1}")


def _compare(before: Profile, after: Profile, name: str) -> None:
    from calibration.profile import compare, differences

    found, otherwise = compare(before, after), differences(before, after)
    llms = next((one for one in otherwise if one.setting == "llm"), None)
    apart = frozenset() if llms is None else _OF_SHAPES
    summary = view.changes_summary([change for change in found if change.figure not in apart])
    if llms is None:
        st.subheader(plain(f"Against {name}: {summary}"), anchor=False)
    else:
        st.subheader(
            plain(
                f"Measured with different LLMs ({llms.before} before, {llms.after} after): the figures "
                f"of its shapes cannot be compared"
            ),
            anchor=False,
        )
        st.markdown(plain(f"Of the figures that no LLM shapes, against {name}: {summary}."))
    if otherwise:
        said = "; ".join(view.differences_in_words(otherwise))
        st.caption(plain(f"Measured otherwise (before -> after): {said}"))
    if any(change.ratio is not None for change in found):
        frames.figure(changes(found, apart), "changes")
    frames.rows(
        [
            {
                "figure": CALLED[change.figure],
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
                "verdict": (
                    "other LLM: not comparable"
                    if change.figure in apart and change.ratio is not None
                    else view.verdict(change)
                ),
                "what it is": FIGURES[change.figure].meaning,
                "key in the profile": change.figure,
            }
            for change in found
        ],
        "changes-table",
    )
