"""Links by which somebody means harm, or that were cut: the page works without what cannot be meant."""

from __future__ import annotations

import json
import math
import random
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.dashboard import knobs, session, uploads
from app.dashboard.question import Pin, Question
from app.dashboard.session import MOST_LINK, State, read, written
from app.dashboard.uploads import Kind, keep
from tests.conftest import ROOT

ZEROS = "0" * 64
SCENARIO = (ROOT / "examples" / "paper-mean-turn.yaml").read_text()
TRACE = b"session,append,generate\na,2000,100\na,300,50\nb,900,80\n"

# ---- whatever a link says --------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=8)  # lone surrogates, too
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 2**53, 2**53 + 1])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    LEAVES,
    lambda part: st.one_of(st.lists(part, max_size=4), st.dictionaries(TEXTS, part, max_size=3)),
    max_leaves=8,
)
NAMES = st.sampled_from(["a.json", "traces", "../a.json", "\ud800.json", ""])
DIGESTS = st.sampled_from([ZEROS, "x", "\ud800" * 64])
FILES = st.lists(st.tuples(NAMES | JSON, DIGESTS | JSON, st.sampled_from(Kind) | JSON, NUMBERS))
PINS = st.lists(
    st.fixed_dictionaries(
        {"name": TEXTS},
        optional={
            "question": st.fixed_dictionaries(
                {"base": TEXTS | JSON, "text": TEXTS | JSON},
                optional={
                    "files": st.lists(st.tuples(NAMES, DIGESTS), max_size=2),
                    "knobs": st.lists(
                        st.tuples(st.sampled_from(["prefill_nodes", "llm", "x"]), JSON), max_size=3
                    ),
                    "own": DIGESTS | JSON,
                },
            )
        },
    ),
    max_size=5,
)
KEYS = st.sampled_from(
    ["scenario", "yaml", "own", "files", "pins", "prefill_nodes", "llm", "simulate.policies", "a.b"]
)
SHOWN = st.one_of(TEXTS, JSON.map(json.dumps), JSON.map(lambda value: packed(json.dumps(value))))
LINKS = st.builds(
    lambda link, parts: {**link, **parts},
    st.dictionaries(KEYS | TEXTS, SHOWN, max_size=5),
    st.fixed_dictionaries(
        {},
        optional={
            "files": FILES.map(json.dumps),
            "pins": PINS.map(lambda entries: packed(json.dumps(entries))),
        },
    ),
)


def packed(text: str) -> str:
    return session._packed(text)


def sound(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return bool(value.encode()) or not value
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53


@given(LINKS)
def test_what_is_read_of_a_link_is_sound(link: dict[str, str]) -> None:
    found = read(link)
    for question in (found.question, *(pin.question for pin in found.pins)):
        hash(question)
        assert all(name in knobs.BY_NAME and sound(value) for name, value in question.knobs)
        assert all(uploads.is_name(name) for name, _ in question.files)
    for value in found.controls.values():
        for part in value if isinstance(value, tuple) else (value,):
            assert isinstance(part, bool) or sound(part)
    link = written(found)
    urlencode(link).encode()
    again = read(link)
    assert (again.question, again.pins) == (found.question, found.pins)
    assert (again.controls, again.uploads) == (found.controls, found.uploads)
    assert not again.notes


def pin(name: str = "p", **changed: Any) -> str:
    question = {"base": session.DEFAULT, "text": "", "files": [], "knobs": [], **changed}
    return packed(json.dumps([{"name": name, "question": question}]))


LONG = "1" + "0" * 400
ALL = '["basic","dualpath","split","priced","round-robin","oracle"]'
CASES: list[tuple[str, dict[str, str]]] = [
    ("plan", {"prefill_nodes": "[1]"}),
    ("plan", {"prefill_nodes": "true"}),
    ("plan", {"prefill_nodes": "1e999"}),
    ("plan", {"prefill_nodes": LONG}),
    ("plan", {"llm": '{"a":1}'}),
    ("plan", {"llm": '"\\ud800"'}),
    ("plan", {"a.b": '"\\ud800"'}),
    ("plan", {"a.b": "[" * 900 + "]" * 900}),
    ("plan", {"a.b": "[" * 100_000}),
    ("plan", {"files": "[" * 100_000}),
    ("plan", {"files": f'[["a.json","{ZEROS}","trace",1e999]]'}),
    ("plan", {"files": f'[["../a.json","{ZEROS}","trace",1]]'}),
    ("plan", {"files": f'[["\\ud800.json","{ZEROS}","trace",1]]'}),
    ("plan", {"files": '[["a.json","\\ud800","trace",1]]'}),
    ("plan", {"pins": packed("[" * 900_000)}),
    ("plan", {"own": ZEROS}),
    ("whatif", {"pins": pin(knobs=[["prefill_nodes", [1]]])}),
    ("whatif", {"pins": pin(knobs=[["prefill_nodes", 1e999]])}),
    ("whatif", {"pins": pin("\ud800")}),
    ("whatif", {"pins": pin(base="\ud800")}),
    ("whatif", {"pins": pin(files=[["\ud800", ZEROS]])}),
    ("simulate", {"simulate.policies": "[[1]]"}),
    ("simulate", {"simulate.policies": ALL}),
    ("simulate", {"simulate.policies": '["basic","basic"]'}),
    ("simulate", {"simulate.kind": "curve", "simulate.most": LONG}),
    ("simulate", {"simulate.mode": "agents that arrive", "simulate.rate": LONG}),
    ("simulate", {"simulate.agents": LONG}),
]


def opened(name: str, link: dict[str, str]) -> AppTest:
    page = AppTest.from_string(
        f"from app.dashboard.main import run_page; run_page('{name}')", default_timeout=90
    )
    for key, value in link.items():
        page.query_params[key] = value
    return page.run()


@pytest.mark.parametrize(("name", "link"), CASES, ids=lambda part: str(part)[:50])
def test_no_link_stops_a_page(name: str, link: dict[str, str]) -> None:
    page = opened(name, {"whatif.cells": "10", **link})
    assert not page.exception
    assert not page.error, [error.value for error in page.error]
    assert page.title
    assert page.selectbox(key="_preset").value == session.DEFAULT


def test_what_is_left_out_is_noted() -> None:
    assert read({"prefill_nodes": "[1]"}).notes == [
        "This link is damaged (its part 'prefill_nodes'); copy it again."
    ]
    found = read({"files": "[1]", "pins": "AAAA", "decode_nodes": "3"})
    assert [note.split("'")[1] for note in found.notes] == ["files", "pins"]
    assert found.question.knobs == (("decode_nodes", 3),), "the rest is taken"


def test_a_bad_pin_leaves_the_others() -> None:
    good = {"base": "", "text": "x", "files": [], "knobs": [["prefill_nodes", 2], ["llm", [1]]]}
    entries = [{"name": "bad", "question": 1}, {"name": "good", "question": good}]
    found = read({"pins": packed(json.dumps(entries))})
    assert found.pins == (Pin("good", Question("", "x", (), (("prefill_nodes", 2),))),)
    assert len(found.notes) == 1


@pytest.mark.parametrize("name", ["scenario", "decode_gpu"])
def test_what_a_link_says_is_shown_as_it_is(name: str) -> None:
    page = opened("plan", {name: "![x](http://example.org)"})
    (shown,) = [warning.value for warning in page.warning]
    assert "\\!\\[x" in shown


def test_too_many_choices_are_the_usual_ones() -> None:
    page = opened("simulate", {"simulate.policies": ALL})
    assert page.multiselect[0].value == ["basic", "dualpath"]


# ---- how long a link is ----------------------------------------------------------------------------


def long_text(seed: int = 1) -> str:
    """Return a scenario that packing does not shorten much."""
    return f"{SCENARIO}\r\n# {random.Random(seed).randbytes(6_000).hex()}\r\n"


def test_a_long_scenario_is_in_the_link_by_its_digest() -> None:
    text = long_text()
    keep("mine.yaml", text.encode(), Kind.SCENARIO)
    asked = Question("", text, (), (("prefill_nodes", 3),))
    now = State(question=asked, pins=tuple(Pin(f"pin {i}", asked) for i in range(4)))
    link = written(now)
    assert "yaml" not in link
    assert len(urlencode(link)) < 1_000
    assert not session.too_long(now)
    found = read(link)
    assert (found.question, found.pins, found.notes) == (asked, now.pins, [])


def test_a_short_scenario_is_in_the_link_itself() -> None:
    keep("mine.yaml", SCENARIO.encode(), Kind.SCENARIO)
    link = written(State(question=Question("", SCENARIO)))
    assert set(link) == {"yaml"}


def test_a_link_that_stays_too_long_is_said() -> None:
    text = long_text(2)  # nobody uploaded it
    link = written(State(question=Question("", text)))
    assert len(urlencode(link)) > MOST_LINK
    page = opened("plan", link)
    assert not page.exception
    assert any("8,000 characters" in caption.value for caption in page.sidebar.caption)
    short = opened("plan", {})
    assert not any("8,000 characters" in caption.value for caption in short.sidebar.caption)


def test_a_scenario_that_is_gone_is_said() -> None:
    found = read({"own": ZEROS, "prefill_nodes": "3"})
    assert found.question == Question(session.DEFAULT, knobs=(("prefill_nodes", 3),))
    assert "upload it again" in found.notes[0]


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "", "A" * 64])
def test_only_scenarios_are_opened_for_a_link(digest: str) -> None:
    trace = keep("t.csv", TRACE, Kind.TRACE)
    for given_digest in (digest, trace.digest):
        found = read({"own": given_digest})
        assert found.question.base == session.DEFAULT
        assert "upload it again" in found.notes[0]
