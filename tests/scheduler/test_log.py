"""The decision log: what it holds, that a replay makes the same decisions, how a bad one is refused."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter

from dualpath_model.errors import InputError
from dualpath_model.scheduler import snapshot
from dualpath_model.scheduler.events import (
    DecodeFinished,
    EngineJoined,
    EngineLost,
    EngineReport,
    Event,
    Fetch,
    Limits,
    NodeJoined,
    NodeLost,
    ParametersChanged,
    PrefillFinished,
    ReadFinished,
    ReadStarted,
    Settings,
    Submit,
)
from dualpath_model.scheduler.log import DecisionLog, replay
from dualpath_model.scheduler.policies import POLICIES
from dualpath_model.scheduler.reference import Scheduler

LIMITS = Limits(alpha_tokens=300, beta_tokens=2000, hbm_tokens=3000)
NODES = (
    NodeJoined("p0", "prefill", "P", ("p0/0", "p0/1"), LIMITS),
    NodeJoined("p1", "prefill", "Q", ("p1/0", "p1/1"), LIMITS),
    NodeJoined("d0", "decode", "D", ("d0/0", "d0/1"), LIMITS),
    NodeJoined("d1", "decode", "E", ("d1/0", "d1/1"), LIMITS),
)


def some_events(  # noqa: PLR0912  one branch for each kind
    scheduler: Scheduler, seed: int, count: int
) -> Iterator[Event]:
    """Yield a random run with losses and bad events, whatever suits the scheduler's state then."""
    draw = random.Random(seed)
    numbers = dict.fromkeys("PQDE", 0)
    for turn in range(count):
        requests = list(scheduler.requests.values())
        joined = scheduler.ledger.joined
        kind = draw.choices(
            ["submit", "fetch", "go on", "lose", "join", "bad", "change"], [4, 8, 12, 1, 2, 2, 0.2]
        )[0]
        if kind == "submit":
            prompt = draw.randint(1, 900)
            yield Submit(f"r{turn}", prompt, draw.randint(0, prompt), draw.randint(0, 100))
        elif kind == "fetch":
            group = draw.choice("PQDE")
            engines = [e for node in joined.values() if node.group == group for e in node.engines]
            reports = {
                name: EngineReport(2, draw.randint(2, 1500), draw.choice([None, 2500]))
                for name in engines
                if draw.random() < 0.2
            }
            numbers[group] += 1
            yield Fetch(group, numbers[group], reports, {})
        elif kind == "go on" and requests:
            request = draw.choice(requests)
            if request.reads:
                owner = draw.choice(list(request.reads))
                event = draw.choice([ReadStarted, ReadFinished])
                yield event(request.id, owner, request.attempt)
            elif request.ordered is not None:
                done = DecodeFinished if request.prefill_finished else PrefillFinished
                yield done(request.id, request.attempt)
        elif kind == "lose":
            engine = draw.choice([e for node in NODES for e in node.engines])
            known = engine in scheduler.ledger.node_of
            yield NodeLost(engine[:2]) if draw.random() < 0.3 and known else EngineLost(engine)
        elif kind == "join":
            missing = [node for node in NODES if node.node not in joined]
            if missing:
                yield missing[0]
            for node in NODES:
                for engine in node.engines:
                    if node.node in joined and engine not in scheduler.ledger.node_of:
                        yield EngineJoined(engine, node.node)
        elif kind == "bad":
            yield draw.choice(
                [
                    Submit("bad", 5, 6),
                    Fetch("P", 10**6, {"p0/0": EngineReport(seq=-1)}),
                    Fetch("X", 1),
                    NodeLost("x"),
                    DecodeFinished(requests[0].id, requests[0].attempt)
                    if requests
                    else Fetch("", 1),
                    ParametersChanged(Settings(z_factor=0.0)),
                ]
            )
        elif kind == "change":
            yield ParametersChanged(
                Settings(scheduler.settings.policy, patience=draw.randint(0, 9))
            )


def handle_all(scheduler: Scheduler, seed: int, count: int) -> int:
    """Give the random events to the scheduler; return how many it refused."""
    refused = 0
    for event in some_events(scheduler, seed, count):
        try:
            scheduler.handle(event)
        except InputError:
            refused += 1
    return refused


def started(policy: str = "dualpath") -> Scheduler:
    scheduler = Scheduler(Settings(policy=policy), compiled=False)
    for node in NODES:
        scheduler.handle(node)
    return scheduler


def logged(path: Path, scheduler: Scheduler, *events: Event) -> list[dict[str, Any]]:
    """Log these events; return the lines after the first."""
    with path.open("wb") as file:
        DecisionLog(scheduler, file)
        for event in events:
            try:
                scheduler.handle(event)
            except InputError:
                continue
    return [orjson.loads(line) for line in path.read_bytes().splitlines()[1:]]


def write(path: Path, *lines: bytes | dict[str, Any], start: bool = True) -> None:
    """Write a log by hand, after the first line of a proper one."""
    first = [{"kind": "start", "snapshot": snapshot.take(started())}] if start else []
    texts = [orjson.dumps(x) if isinstance(x, dict) else x for x in (*first, *lines)]
    path.write_bytes(b"\n".join(texts) + b"\n")


def refusal(path: Path) -> str:
    """Return the one sentence with which a replay refuses."""
    with pytest.raises(InputError) as error:
        list(replay(path))
    sentence = str(error.value)
    assert "\n" not in sentence
    assert ";" in sentence, "what is wrong; how to mend it"
    return sentence


EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
SUBMIT = {"kind": "submit", "request": "a", "prompt_tokens": 5, "hit_tokens": 1}

AFTERWARDS = (Fetch("P", 2), Fetch("D", 2), Submit("k", 9, 3), Fetch("Q", 2), Fetch("E", 2))
NAN = float("nan")
NO_DECISIONS: tuple[Any, ...] = (None, "none", 0, {}, True)

# ---- the same decisions again --------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_makes_every_decision_again(tmp_path: Path, policy: str, seed: int) -> None:
    path = tmp_path / "run.jsonl"
    with path.open("wb") as file:
        scheduler = Scheduler(Settings(policy=policy), compiled=False)
        DecisionLog(scheduler, file)  # from the very start: the nodes' joining is in it
        for node in NODES:
            scheduler.handle(node)
        refused = handle_all(scheduler, seed, 600)
    steps = list(replay(path))
    assert [step.line for step in steps] == list(range(2, 2 + len(steps)))
    assert all(step.same for step in steps)
    assert sum(isinstance(step.again, str) for step in steps) == refused > 20
    kinds = {d["kind"] for step in steps if not isinstance(step.again, str) for d in step.again}
    assert {"prefill placed", "decode placed", "read ordered", "returned"} <= kinds


@pytest.mark.parametrize("policy", POLICIES)
def test_a_log_may_start_in_the_middle_of_a_run(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "run.jsonl"
    scheduler = started(policy)
    handle_all(scheduler, 1, 300)
    scheduler.handle(Submit("waits", 5, 5))
    with path.open("wb") as file:
        DecisionLog(scheduler, file)
        handle_all(scheduler, 2, 300)
    first = orjson.loads(path.read_bytes().splitlines()[0])
    assert first["kind"] == "start"
    assert "waits" in [request["id"] for request in first["snapshot"]["requests"]]
    assert all(step.same for step in replay(path))


def test_a_replay_ends_in_the_state_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    scheduler = started()
    with path.open("wb") as file:
        DecisionLog(scheduler, file)
        handle_all(scheduler, 4, 300)
    again = snapshot.restore(orjson.loads(path.read_bytes().splitlines()[0])["snapshot"])
    for step in replay(path):
        try:
            again.handle(EVENTS.validate_python(step.event))  # plain data, as in the file
        except InputError as error:
            assert str(error) == step.logged
    assert snapshot.take(again) == snapshot.take(scheduler)


def test_a_second_log_takes_over_from_the_first() -> None:
    first, second = io.BytesIO(), io.BytesIO()
    scheduler = started()
    DecisionLog(scheduler, first)
    scheduler.handle(Submit("a", 5, 1))
    DecisionLog(scheduler, second)
    scheduler.handle(Fetch("P", 1))
    assert len(first.getvalue().splitlines()) == 2
    assert len(second.getvalue().splitlines()) == 2


def test_what_a_line_says(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    events = (Submit("a", 5, 1), Submit('请求🚀"\\', 5, 1), Fetch("P", 1), NodeLost("x"))
    lines = logged(path, started(), *events)
    assert lines[0] == {"event": {**SUBMIT, "reserve_tokens": 0}, "decisions": []}
    assert lines[1]["event"]["request"] == '请求🚀"\\'
    assert [d["engine"] for d in lines[2]["decisions"]] == ["p0/0", "p0/1"]
    assert lines[3] == {
        "event": {"kind": "node lost", "node": "x"},
        "refused": "node 'x' is unknown; only one that joined can be lost",
        "closed": [],
    }
    assert all(step.same for step in replay(path))


# ---- differences ---------------------------------------------------------------------------------


def test_a_tampered_decision_is_found_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    scheduler = started()
    with path.open("wb") as file:
        DecisionLog(scheduler, file)
        handle_all(scheduler, 0, 200)
    lines = path.read_bytes().splitlines()
    number = next(i for i, line in enumerate(lines) if b'"engine":"d0/1"' in line and i > 50)
    original = lines[number]
    lines[number] = original.replace(b'"engine":"d0/1"', b'"engine":"d0/0"', 1)
    path.write_bytes(b"\n".join(lines) + b"\n")
    (different,) = (step for step in replay(path) if not step.same)
    assert different.line == number + 1
    assert different.again == orjson.loads(original)["decisions"]
    assert different.logged != different.again


@pytest.mark.parametrize(
    "line",
    [
        {"event": SUBMIT, "decisions": [{"kind": "returned", "request": "a", "attempt": 2}]},
        {"event": SUBMIT, "refused": "no"},
        {"event": {**SUBMIT, "hit_tokens": 9}, "decisions": []},
        {"event": {**SUBMIT, "hit_tokens": 9}, "refused": "another sentence"},
    ],
)
def test_other_outcomes_differ_and_the_replay_goes_on(tmp_path: Path, line: dict[str, Any]) -> None:
    path = tmp_path / "run.jsonl"
    other = {"event": {**SUBMIT, "request": "b"}, "decisions": []}
    write(path, line, other)
    assert [step.same for step in replay(path)] == [False, True]


def test_a_missing_line_shows_where_it_matters(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    logged(path, started(), Submit("a", 5, 1), Submit("b", 5, 1), Fetch("P", 1))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    assert [step.same for step in replay(path)] == [True, False]


# ---- what is no log ------------------------------------------------------------------------------


def test_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    logged(path, started(), Submit("a", 5, 1), Fetch("P", 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    steps = replay(path)
    assert next(steps).same  # what comes before is replayed
    with pytest.raises(InputError, match=r"line 3 is cut short; remove it or log again$"):
        next(steps)
    path.write_bytes(whole[:-1])  # all there but the end of the line
    assert len(list(replay(path))) == 2
    path.write_bytes(whole[:100])
    assert "line 1 is cut short" in refusal(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "line 1 does not start a decision log"),
        (b"{}\n", "line 1 does not start a decision log"),
        (b'{"kind":"stop"}\n', "line 1 does not start a decision log"),
        (b'{"event":{},"decisions":[]}\n', "line 1 does not start a decision log"),
        (b"[]\n", "line 1 is not a JSON object"),
        (b"null\n", "line 1 is not a JSON object"),
        (b"name: x\n", "line 1 is not JSON"),
        (b"\n", "line 1 is not JSON"),
        (b"\x1f\x8b\x08\n", "line 1 is not JSON"),
        (b"\x00" * 1000, "line 1 is cut short"),
        (b'{"kind":"start"}\n', "line 1: snapshot: version is None"),
        (b'{"kind":"start","snapshot":7}\n', "line 1: snapshot: version is None"),
        (b'{"kind":"start","snapshot":{}}\n', "line 1: snapshot: version is None"),
        (b'{"kind":"start","snapshot":{"version":1}}\n', "line 1: snapshot: settings"),
    ],
)
def test_files_that_are_no_log(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    sentence = refusal(path)
    assert sentence.startswith(f"{path}: line 1")
    assert words in sentence


def test_folders_and_missing_files(tmp_path: Path) -> None:
    assert "directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "no.jsonl")
    assert str(tmp_path) in refusal(tmp_path / "no.jsonl")


@pytest.mark.parametrize(
    "line, words",
    [
        (b"", "is not JSON"),
        (b"7", "is not a JSON object"),
        (b"[" * 5000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"event":NaN}', "is not JSON"),
        ({}, "has neither decisions nor refused; mend the file"),
        ({"decisions": []}, "event: "),
        ({"event": 5, "decisions": []}, "event: "),
        ({"event": {}, "decisions": []}, "event: "),
        ({"event": {"kind": "explode"}, "decisions": []}, "'explode'"),
        ({"event": {"kind": []}, "decisions": []}, "event: "),
        ({"kind": "start", "snapshot": {}}, "has neither decisions nor refused"),
        ({"event": {"kind": "submit"}, "decisions": []}, "event.request: "),
        ({"event": {**SUBMIT, "prompt_tokens": "5"}, "decisions": []}, "event.prompt_tokens: "),
        ({"event": {**SUBMIT, "prompt_tokens": 5.0}, "decisions": []}, "event.prompt_tokens: "),
        ({"event": {**SUBMIT, "prompt_tokens": True}, "decisions": []}, "event.prompt_tokens: "),
        ({"event": {**SUBMIT, "request": 7}, "decisions": []}, "event.request: "),
        (
            {"event": {"kind": "fetch", "group": "P", "number": 1, "engines": []}, "decisions": []},
            "event.engines: ",
        ),
        (
            {
                "event": {
                    "kind": "fetch",
                    "group": "P",
                    "number": 1,
                    "engines": {"p0/0": {"seq": 1.5}},
                },
                "decisions": [],
            },
            "event.engines.p0/0.seq: ",
        ),
        ({"event": SUBMIT}, "has neither decisions nor refused"),
        *(
            ({"event": SUBMIT, "decisions": other}, "has neither decisions nor refused")
            for other in NO_DECISIONS
        ),
    ],
    ids=repr,
)
def test_bad_lines_are_named_by_number(tmp_path: Path, line: Any, words: str) -> None:
    path = tmp_path / "run.jsonl"
    good = {"event": {**SUBMIT, "request": "b"}, "decisions": []}
    write(path, good, line, good)
    sentence = refusal(path)
    assert sentence.startswith(f"{path}: line 3")
    assert words in sentence


def test_fields_that_nobody_knows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    write(path, {"event": {**SUBMIT, "colour": "red"}, "decisions": [], "time": 7})
    assert [step.same for step in replay(path)] == [True]


# ---- refused events ------------------------------------------------------------------------------


def test_a_refused_event_is_logged_as_it_is(tmp_path: Path) -> None:
    (line,) = logged(tmp_path / "run.jsonl", started(), Submit("a", 2**63, 0))
    assert line["event"]["prompt_tokens"] == 2**63
    assert line["refused"].startswith("request 'a': prompt_tokens is ")


@pytest.mark.parametrize(
    "value",
    [NAN, float("inf"), 1.5, True, None, "5", {"a": [1]}, b"5", 1j, 2**70, object()],
    ids=lambda value: repr(value)[:7],
)
def test_what_json_does_not_give_back_is_logged_as_text(tmp_path: Path, value: Any) -> None:
    event = Submit("a", value, 0)
    lines = logged(tmp_path / "run.jsonl", started(), event, Submit("b", 5, 0))
    assert lines[0]["event"] == str(event)
    assert lines[0]["refused"].startswith(f"request 'a': prompt_tokens is {value!r}; it must be")
    assert lines[1]["decisions"] == []


def test_what_cannot_even_be_printed_is_logged(tmp_path: Path) -> None:
    events = (Submit("a", 10**5000, 0), Submit("\ud800", 5, 0), Submit("b", 5, 0))
    lines = logged(tmp_path / "run.jsonl", started(), *events)
    assert lines[0]["event"] == "a Submit that cannot be printed"
    assert "prompt_tokens is a int" in lines[0]["refused"]
    assert "\\ud800" in lines[1]["event"]
    assert "is not a name" in lines[1]["refused"]
    assert lines[2]["decisions"] == []


RIGHT_FORM = (
    Submit("a", 5, 6),
    Submit("a", -5, 0),
    Submit("", 5, 0),
    Submit("a" * 300, 5, 0),
    Submit("a\n", 5, 0),
    Submit("a", 2**63, 0),
    Fetch("P", -1),
    Fetch("P", 1, {"p0/0": EngineReport(seq=-1)}, {"p0": -1}),
    Fetch("P", 1, {"p0/0": EngineReport(2, 20), "p0/1": EngineReport(1, 0), "x": EngineReport()}),
    DecodeFinished("b", 0),
    EngineLost("x"),
    ParametersChanged(Settings(policy="nope")),
    ParametersChanged(Settings(z_factor=0.5)),
    ParametersChanged(limits={"p0": Limits(-1)}),
    NodeJoined("x", "prefill", "D", ("e",), LIMITS),
    NodeJoined("x", "prefill", "X", (), LIMITS),
)
WRONG_FORM: tuple[Any, ...] = (
    None,
    7,
    "submit",
    object(),
    [Submit("a", 5, 0)],
    EngineReport(),
    {"kind": "explode"},
    Submit("a", 5.0, 0),  # type: ignore[arg-type]
    Submit("a", True, 0),
    Submit("a", NAN, 0),  # type: ignore[arg-type]
    Submit("a", None, 0),  # type: ignore[arg-type]
    Submit("a", 2**70, 0),
    Submit("a", 10**5000, 0),
    Submit(7, 5, 0),  # type: ignore[arg-type]
    Submit("\ud800", 5, 0),
    DecodeFinished("b", True),
    Fetch("P", 2**70),
    Fetch("P", 1, None),  # type: ignore[arg-type]
    Fetch("P", 1, {1: EngineReport()}),  # type: ignore[dict-item]
    Fetch("\ud800", 1),
    NodeLost([]),  # type: ignore[arg-type]
    NodeJoined("x", "gpu", "X", ("e",), LIMITS),  # type: ignore[arg-type]
    NodeJoined("x", "prefill", "X", "e", LIMITS),  # type: ignore[arg-type]
    NodeJoined("x", "prefill", "X", ("\udfff",), LIMITS),
    ParametersChanged(Settings(z_factor=NAN)),
    ParametersChanged("basic"),  # type: ignore[arg-type]
)
CLOSING: tuple[Any, ...] = (  # wrong by their form, but not before some numbers were found to be
    Fetch("P", 1, {"p0/0": EngineReport(seq=True)}),
    Fetch("P", 1, {"p0/0": EngineReport(2**70)}),
    Fetch("P", 1, {"p0/0": EngineReport(10**5000)}),
    Fetch("P", 1, {"p0/0": None}),  # type: ignore[dict-item]
    Fetch("P", 1, {"p0/0": object()}),  # type: ignore[dict-item]
    Fetch("P", 1, {"p0/0": EngineReport(seq=-1), "\ud800": EngineReport()}),
    Fetch("P", 1, {}, {"p0": 1.0}),  # type: ignore[dict-item]
    Fetch("P", 1, {}, {"p0": 2**70}),
)
# JSON, or what reads it, makes an event in proper form of each of these
LOOK_RIGHT: tuple[Any, ...] = (
    {**SUBMIT, "request": "z"},
    Fetch("P", 1, {"p0/0": EngineReport(seq=NAN)}),  # type: ignore[arg-type]
    NodeJoined("x", "prefill", "X", ["e"], LIMITS),  # type: ignore[arg-type]
    Fetch("P", 1, {"p0/0": {"seq": 1, "tok": 5}}),  # type: ignore[dict-item]
    ParametersChanged(Settings(z_factor=True)),
    ParametersChanged(Settings(z_factor="2.0")),  # type: ignore[arg-type]
    ParametersChanged({"policy": "basic"}),  # type: ignore[arg-type]
    ParametersChanged(limits={"p0": Limits(5, read_tokens_per_s="9")}),  # type: ignore[arg-type]
    ParametersChanged(limits={"p0": {"alpha_tokens": 5}}),  # type: ignore[dict-item]
)


@pytest.mark.parametrize(
    "number", range(4), ids=["right form", "wrong form", "closing", "look right"]
)
def test_a_log_with_refused_events_is_replayed_to_the_end(tmp_path: Path, number: int) -> None:
    """A loop, for no worker of pytest-xdist can carry all of these in a name or a traceback."""
    path = tmp_path / "run.jsonl"
    wrong = []
    for event in (RIGHT_FORM, WRONG_FORM, CLOSING, LOOK_RIGHT)[number]:
        scheduler = started()
        for name in "bcdefghi":
            scheduler.handle(Submit(name, 300, 200))
        lines = logged(path, scheduler, Submit("j", 5, 0), event, *AFTERWARDS)
        assert "refused" in lines[1], ascii(event)[:200]
        closed = lines[1]["closed"]
        assert closed if number == 2 else not closed or number in (0, 3)
        steps = list(replay(path))
        if [step.same for step in steps] != [True] * (2 + len(AFTERWARDS)):
            differs = [step for step in steps if not step.same]
            wrong.append(f"{ascii(event)[:200]}: {ascii(differs[0].again)[:200]}")
        assert steps[1].logged == lines[1]["refused"]
        placed = {d["engine"] for step in steps[2:] for d in step.logged if "engine" in d}
        assert not placed & set(closed)
        assert placed
    assert not wrong, "\n".join(wrong)


def test_a_closed_engine_is_closed_in_the_replay_until_a_report_names_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    scheduler = started()
    scheduler.handle(Submit("a", 5, 0))
    odd = Fetch("P", 1, {"p0/0": EngineReport(seq=2**70)})
    good = Fetch("P", 3, {"p0/0": EngineReport(0, 0)})
    lines = logged(path, scheduler, odd, Fetch("P", 2), Submit("b", 5, 0), good)
    assert lines[0]["closed"] == ["p0/0"]
    assert [[d["engine"] for d in lines[i]["decisions"]] for i in (1, 3)] == [["p0/1"], ["p0/0"]]
    assert all(step.same for step in replay(path))
    # without the names, the replay differs
    text = path.read_bytes()
    assert text.count(b'"closed":["p0/0"]') == 1
    path.write_bytes(text.replace(b'"closed":["p0/0"]', b'"closed":[]'))
    assert [step.same for step in replay(path)] == [True, False, True, True]


def test_a_name_that_no_log_can_hold_is_refused(tmp_path: Path) -> None:
    scheduler = started()
    with (tmp_path / "run.jsonl").open("wb") as file:
        DecisionLog(scheduler, file)
        for event in (Submit("\ud800", 5, 0), Fetch("\ud800", 1), EngineLost("\ud800")):
            assert outcome(scheduler, event) == "InputError"


def outcome(scheduler: Scheduler, event: Event) -> str:
    """Return what is raised, by name: pytest-xdist cannot carry half a character in a traceback."""
    try:
        scheduler.handle(event)
    except Exception as error:
        return type(error).__name__
    return "accepted"
