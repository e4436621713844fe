"""The state of a session, and its link: what is asked, the controls of the pages, what is pinned.

The link is read when a session begins and written after every run of the script, so that a copied
address reproduces the view. Values of controls live in ``st.session_state`` under their name in the
link; they are kept for pages that are not shown.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar, cast
from urllib.parse import urlencode

import streamlit as st

from app.dashboard import knobs, uploads
from app.dashboard.question import Pin, Question, Value
from app.dashboard.uploads import Kind, Upload
from dualpath_model.errors import InputError

MOST_PINS = 4
MOST_LINK = 8_000
"""Characters of a link that servers and proxies take; many refuse a longer one."""
_MOST_TEXT = 2**20
_MOST_NUMBER = 2**53  # JavaScript counts no further
_MOST_VALUE, _MOST_VALUES = 1_000, 100
_STATE = "_state"
_DAMAGED = (ValueError, TypeError, KeyError, OverflowError, RecursionError)

T = TypeVar("T")
D = TypeVar("D")


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
    most: int | None = None,
) -> str:
    """Return the key of a widget whose value is in the link under ``name``.

    A value of another type than the default's, not ``among`` the allowed ones, not from ``low`` to
    ``high``, or of more than ``most`` members, becomes the default.
    """
    now = state()
    now.defaults[name] = default
    seeded = name in st.session_state
    value = st.session_state[name] if seeded else now.controls.get(name, default)
    kept = _admitted(value, default, among, most)
    if isinstance(kept, (int, float)) and not _within(kept, low, high):
        kept = default
    if not seeded or kept != value:
        st.session_state[name] = kept
    return name


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _admitted(value: Any, default: T, among: Sequence[T] | None, most: int | None) -> T:
    if isinstance(default, tuple):
        return cast(T, _chosen(value, default, cast("Sequence[Any] | None", among), most))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _MOST_NUMBER:
            return default
        value = float(value)
    if type(value) is not type(default) or (among is not None and value not in among):
        return default
    return value


def _chosen(
    value: Any, default: tuple[Any, ...], among: Sequence[Any] | None, most: int | None
) -> list[Any]:
    """Return what several choices are, each once."""
    chosen: list[Any] = []
    for part in value if isinstance(value, (list, tuple)) else default:
        if among is not None and part not in among:
            return list(default)
        if part not in chosen:
            chosen.append(part)
    return list(default) if most is not None and len(chosen) > most else chosen


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
    """Return the state as the parameters of a link; what is as usual is left out.

    A scenario of one's own is in it as a text. Where the link would be too long for that, an uploaded
    one is named by its SHA-256 instead, as other uploads are.
    """
    found = _written(now, by_digest=False)
    return found if _fits(found) else _written(now, by_digest=True)


def too_long(now: State) -> bool:
    """Tell whether the state's link is longer than servers take."""
    return not _fits(written(now))


def _fits(link: Mapping[str, str]) -> bool:
    return len(urlencode(link)) <= MOST_LINK


def _written(now: State, *, by_digest: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    if now.question.base != DEFAULT and now.question.base:
        found["scenario"] = now.question.base
    if not now.question.base:
        digest = _kept(now.question.text) if by_digest else None
        if digest is not None:
            found["own"] = digest
        else:
            found["yaml"] = _packed(now.question.text)
    if now.uploads:
        kept = [(u.name, u.digest, u.kind.value, u.size_bytes) for u in now.uploads]
        found["files"] = json.dumps(kept, separators=(",", ":"))
    found |= {name: _shown(value) for name, value in now.question.knobs}
    for name, value in now.controls.items():
        if name not in now.defaults or value != now.defaults[name]:  # or of a page not shown yet
            found[name] = _shown(value)
    if now.pins:
        found["pins"] = _packed(json.dumps([_pin_entry(pin, by_digest) for pin in now.pins]))
    return found


def _pin_entry(pinned: Pin, by_digest: bool) -> dict[str, Any]:
    entry = asdict(pinned)
    digest = _kept(pinned.question.text) if by_digest and not pinned.question.base else None
    if digest is not None:
        entry["question"] |= {"text": "", "own": digest}
    return entry


def _kept(text: str) -> str | None:
    """Return the SHA-256 of a text that is among the uploaded files; None if it is not."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        uploads.text(digest)
    except InputError:
        return None
    return digest


def read(link: Mapping[str, str]) -> State:
    """Return the state of a link. What cannot be meant is left out and noted, never raised.

    Whatever a link says is checked here: its texts can be encoded, its numbers are finite and no
    larger than a browser's, its uploads have names and digests that uploads have.
    """
    now = State()
    link = {name: text for name, text in link.items() if _encodes(name) and _encodes(text)}
    now.uploads = _tried(now, "files", lambda: _uploads(link.get("files")), ())
    names = tuple((u.name, u.digest) for u in now.uploads)
    text = _tried(now, "yaml", lambda: _own(link), None)
    base = "" if text is not None else link.get("scenario", DEFAULT)
    moved: dict[str, Value] = {}
    for name, shown in link.items():
        if name in knobs.BY_NAME:
            value = _value(shown)
            if _is_value(value):
                moved[name] = value
            else:
                _note(now, _damaged(name))
        elif "." in name:
            value = _value(shown)
            value = tuple(value) if isinstance(value, list) else value
            if _is_control(value):
                now.controls[name] = value
    now.question = Question(base, text or "", names, ordered(moved))
    entries = _tried(now, "pins", lambda: _pins(link.get("pins")), ())
    pinned = [_tried(now, "pins", partial(_pin, entry), None) for entry in entries]
    now.pins = tuple(found for found in pinned if found is not None)
    return now


def _tried(now: State, name: str, part: Callable[[], T], default: D) -> T | D:
    """Return a part of a link; its default, and a note about it, if that cannot be meant."""
    try:
        return part()
    except InputError as error:
        words = str(error)
        _note(now, f"{words[:1].upper()}{words[1:]}.")
    except _DAMAGED:
        _note(now, _damaged(name))
    return default


def _damaged(name: str) -> str:
    return f"This link is damaged (its part '{name}'); copy it again."


def _note(now: State, words: str) -> None:
    if words not in now.notes:
        now.notes.append(words)


def _encodes(text: str) -> bool:
    """Tell whether a text is one: lone surrogates, which JSON can name, are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_value(value: object) -> bool:
    """Tell whether a value can be a knob's."""
    if isinstance(value, str):
        return len(value) <= _MOST_VALUE and _encodes(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST_NUMBER


def _is_control(value: object) -> bool:
    """Tell whether a value can be a control's: what a knob's can, yes or no, or several of these."""
    if isinstance(value, tuple):
        return len(value) <= _MOST_VALUES and all(_is_value(part) for part in value)
    return isinstance(value, bool) or _is_value(value)


def ordered(values: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    """Return knobs in the order of their table, so that equal questions are the same."""
    return tuple((knob.name, values[knob.name]) for knob in knobs.KNOBS if knob.name in values)


def _own(link: Mapping[str, str]) -> str | None:
    """Return the text of one's own scenario, None where the link has none."""
    if "own" in link:
        return uploads.text(link["own"])
    return _unpacked(link["yaml"]) if "yaml" in link else None


def _uploads(text: str | None) -> tuple[Upload, ...]:
    if text is None:
        return ()
    found: dict[str, Upload] = {}  # a name once
    for name, digest, kind, size in json.loads(text):
        _check_file(name, digest)
        if not isinstance(size, int) or not 0 <= size <= _MOST_NUMBER:
            raise ValueError("size")
        found.setdefault(name, Upload(name, digest, Kind(kind), int(size)))
    return tuple(found.values())


def _check_file(name: object, digest: object) -> None:
    if not uploads.is_name(name):
        raise ValueError("name")
    if not isinstance(digest, str) or not uploads.is_digest(digest):
        raise ValueError("digest")


def _pins(text: str | None) -> list[Any]:
    found = [] if text is None else json.loads(_unpacked(text))
    if not isinstance(found, list):
        raise TypeError("pins")
    return found[:MOST_PINS]


def _pin(entry: Any) -> Pin:
    asked = entry["question"]
    for file, digest in asked["files"]:
        _check_file(file, digest)
    question = Question(
        _text(asked["base"]),
        uploads.text(_text(asked["own"])) if "own" in asked else _text(asked["text"]),
        tuple((file, digest) for file, digest in asked["files"]),
        ordered({_text(knob): value for knob, value in asked["knobs"] if _is_value(value)}),
    )
    return Pin(_text(entry["name"])[:80], question)


def _text(value: object) -> str:
    if not isinstance(value, str) or not _encodes(value):
        raise ValueError("text")
    return value


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


@lru_cache(8)  # both the address and the sidebar ask, at every move
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
