"""The state of a session, and its link: what is asked, the controls of the pages, what is pinned.

The link is read when a session begins and written after every run of the script, so that a copied
address reproduces the view. Values of controls live in ``st.session_state`` under their name in the
link; they are kept for pages that are not shown.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, cast

import streamlit as st

from app.dashboard import knobs
from app.dashboard.question import Pin, Question, Value
from app.dashboard.uploads import Kind, Upload

MOST_PINS = 4
_MOST_TEXT = 2**20
_STATE, _LINK = "_state", "_link"

T = TypeVar("T")


DEFAULT = "deepseek-660b-2p4d"


@dataclass
class State:
    """What a session has beside its widgets. ``notes``: what to say once about its link."""

    question: Question = field(default_factory=lambda: Question(DEFAULT))
    controls: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    uploads: tuple[Upload, ...] = ()
    notes: list[str] = field(default_factory=list)


def state() -> State:
    """Return the session's state, read from its link at first."""
    if _STATE not in st.session_state:
        st.session_state[_STATE] = read(st.query_params.to_dict())
    return cast(State, st.session_state[_STATE])


def control(
    name: str,
    default: T,
    among: Sequence[T] | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """Return the key of a widget whose value is in the link under ``name``.

    A value of another type than the default's, not ``among`` the allowed ones, or not from ``low`` to
    ``high``, becomes the default.
    """
    now = state()
    now.defaults[name] = default
    seeded = name in st.session_state
    value = st.session_state[name] if seeded else now.controls.get(name, default)
    kept = _admitted(value, default, among)
    if isinstance(kept, (int, float)) and not _within(kept, low, high):
        kept = default
    if not seeded or kept != value:
        st.session_state[name] = kept
    return name


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _admitted(value: Any, default: T, among: Sequence[T] | None) -> T:
    if isinstance(default, tuple):
        chosen = tuple(value) if isinstance(value, (list, tuple)) else default
        if among is not None and not set(chosen) <= set(cast(Sequence[Any], among)):
            return default
        return cast(T, list(chosen))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default) or (among is not None and value not in among):
        return default
    return value


def question() -> Question:
    """Return what is asked now."""
    return state().question


def ask(asked: Question) -> None:
    """Ask something else; the knobs' widgets start anew from it."""
    state().question = asked
    for knob in knobs.KNOBS:
        st.session_state.pop(f"knob.{knob.name}", None)


def pins() -> tuple[Pin, ...]:
    """Return what is pinned, oldest first."""
    return state().pins


def pin(name: str, asked: Question) -> None:
    """Keep a question for comparison; at most four are kept, and a fifth is not taken."""
    if len(state().pins) < MOST_PINS:
        state().pins = (*state().pins, Pin(name[:80] or "scenario", asked))


def unpin(index: int) -> None:
    """Let go of a pinned question."""
    state().pins = state().pins[:index] + state().pins[index + 1 :]


def files() -> tuple[tuple[str, str, str], ...]:
    """Return name, digest and kind of what this session has uploaded, a name once, newest first."""
    return tuple((found.name, found.digest, found.kind.value) for found in state().uploads)


def uploaded(found: Upload) -> None:
    """Remember an upload; one of the same name takes the other's place."""
    now = state()
    now.uploads = (found, *(other for other in now.uploads if other.name != found.name))


# ---- the link ------------------------------------------------------------------------------------


def save() -> None:
    """Write the state into the address, if it changed."""
    now = state()
    for name, default in now.defaults.items():
        if name in st.session_state:
            value = st.session_state[name]
            now.controls[name] = tuple(value) if isinstance(default, tuple) else value
    link = written(now)
    if link != st.query_params.to_dict():
        st.query_params.from_dict(link)


def written(now: State) -> dict[str, str]:
    """Return the state as the parameters of a link; what is as usual is left out."""
    found: dict[str, str] = {}
    if now.question.base != DEFAULT and now.question.base:
        found["scenario"] = now.question.base
    if not now.question.base:
        found["yaml"] = _packed(now.question.text)
    if now.uploads:
        kept = [(u.name, u.digest, u.kind.value, u.size_bytes) for u in now.uploads]
        found["files"] = json.dumps(kept, separators=(",", ":"))
    found |= {name: _shown(value) for name, value in now.question.knobs}
    for name, value in now.controls.items():
        if name not in now.defaults or value != now.defaults[name]:  # or of a page not shown yet
            found[name] = _shown(value)
    if now.pins:
        found["pins"] = _packed(json.dumps([asdict(pin) for pin in now.pins]))
    return found


def read(link: Mapping[str, str]) -> State:
    """Return the state of a link. What cannot be meant is left out and noted, never raised."""
    now = State()
    try:
        now.uploads = _uploads(link.get("files"))
        names = tuple((u.name, u.digest) for u in now.uploads)
        if "yaml" in link:
            now.question = Question("", _unpacked(link["yaml"]), names)
        else:
            now.question = Question(link.get("scenario", DEFAULT), "", names)
        now.pins = _pins(link.get("pins"))
    except (ValueError, TypeError, KeyError) as error:
        now.notes.append(f"This link is damaged ({type(error).__name__}); copy it again.")
    moved: list[tuple[str, Value]] = []
    for name, text in link.items():
        if name in knobs.BY_NAME:
            moved.append((name, _value(text)))
        elif "." in name:
            value = _value(text)
            now.controls[name] = tuple(value) if isinstance(value, list) else value
    now.question = Question(
        now.question.base, now.question.text, now.question.files, ordered(dict(moved))
    )
    return now


def ordered(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Return knobs in the order of their table, so that equal questions are the same."""
    return tuple((knob.name, values[knob.name]) for knob in knobs.KNOBS if knob.name in values)


def _uploads(text: str | None) -> tuple[Upload, ...]:
    if text is None:
        return ()
    return tuple(
        Upload(str(name), str(digest), Kind(kind), int(size))
        for name, digest, kind, size in json.loads(text)
    )


def _pins(text: str | None) -> tuple[Pin, ...]:
    if text is None:
        return ()
    found = []
    for entry in json.loads(_unpacked(text))[:MOST_PINS]:
        asked = entry["question"]
        found.append(
            Pin(
                str(entry["name"])[:80],
                Question(
                    str(asked["base"]),
                    str(asked["text"]),
                    tuple((str(name), str(digest)) for name, digest in asked["files"]),
                    ordered({str(name): value for name, value in asked["knobs"]}),
                ),
            )
        )
    return tuple(found)


def _shown(value: object) -> str:
    """Return a value as a parameter: a text as it is, unless it could be taken for something else."""
    if isinstance(value, str) and _value(value) == value:
        return value
    return json.dumps(value, separators=(",", ":"))


def _value(text: str) -> Any:
    """Return what a parameter says: JSON where it is any, else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(text: str) -> None:
    raise ValueError(text)


def _packed(text: str) -> str:
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")


def _unpacked(text: str) -> str:
    """Return a packed text of at most a megabyte. Raises ValueError for anything else."""
    inflating = zlib.decompressobj()
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        found = inflating.decompress(data, _MOST_TEXT)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from None
    if not inflating.eof:
        raise ValueError("cut off, or too long")
    return found.decode()
