"""The link: what is written is read again, and what cannot be meant is left out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.dashboard import session
from app.dashboard.question import Pin, Question
from app.dashboard.session import State, read, written
from app.dashboard.uploads import Kind, Upload

VALUES = st.one_of(
    st.text(max_size=30),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
KNOBS = st.fixed_dictionaries(
    {},
    optional={
        "prefill_nodes": st.integers(1, 16),
        "hit_rate": st.floats(0, 99.9),
        "decode_gpu": st.text(max_size=10),
        "trace": st.text(max_size=10),
    },
)
DIGEST = "a" * 64


@st.composite
def questions(draw: st.DrawFn) -> Question:
    own = draw(st.booleans())
    text = draw(st.text(max_size=200)) if own else ""
    base = "" if own else draw(st.sampled_from(["deepseek-660b-2p4d", "heterogeneous"]))
    return Question(base, text, (), session.ordered(draw(KNOBS)))


@given(
    questions(),
    st.dictionaries(st.sampled_from(["whatif.x", "a.b", "sim.rate"]), VALUES, max_size=3),
    st.lists(questions(), max_size=4),
)
def test_what_is_written_is_read_again(
    asked: Question, controls: dict[str, object], pinned: list[Question]
) -> None:
    now = State(question=asked, controls=controls)
    now.pins = tuple(Pin(f"pin {i} <b>", question) for i, question in enumerate(pinned))
    found = read(written(now))
    assert found.question == asked
    assert found.controls == controls
    assert found.pins == now.pins
    assert not found.notes


def test_uploads_are_in_the_link_by_digest() -> None:
    upload = Upload("my trace.csv", DIGEST, Kind.TRACE, 12)
    files = ((upload.name, upload.digest),)
    now = State(question=Question(session.DEFAULT, "", files), uploads=(upload,))
    found = read(written(now))
    assert found.uploads == (upload,)
    assert found.question.files == files


def test_the_usual_view_has_an_empty_link() -> None:
    assert written(State()) == {}


@given(
    st.dictionaries(
        st.sampled_from(["scenario", "yaml", "pins", "files", "hit_rate", "whatif.x", "junk"]),
        st.text(max_size=40),
    )
)
def test_no_link_breaks_a_session(link: dict[str, str]) -> None:
    found = read(link)
    assert isinstance(found.question, Question)
    for note in found.notes:
        assert note.startswith("This link is damaged")


def test_a_packed_text_cannot_blow_up() -> None:
    bomb = session._packed("0" * 5_000_000)
    assert len(bomb) < 10_000
    found = read({"yaml": bomb})
    assert found.notes
    assert found.question.base == session.DEFAULT
