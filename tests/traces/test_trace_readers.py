"""Each format by small examples that can be checked by hand, and what is wrong in each named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.traces import TABLE_2, generate, load_workload, write_plain
from dualpath_model.workload import Session, Turn, Workload, from_sessions

Row = dict[str, Any]

CALL: Row = {"t": 0.0, "type": "n", "in": 200, "out": 10, "hash_ids": [1, 2, 3]}
REQUEST: Row = {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}
AGENTIC: Row = {"request_id": "a", "session_id": "s", "input_length": 128, "output_length": 5}
AGENTIC |= {"hash_ids": [1, 2], "timestamp": 1000.0}
PLAIN: Row = {"session": "a", "turn": 1, "append": 100, "generate": 10}


def session(*requests: object, **more: object) -> str:
    return json.dumps({"id": "x", "block_size": 64, "requests": list(requests)} | more)


def lines(*rows: Row) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(tmp_path: Path, text: str, **options: Any) -> Workload:
    path = tmp_path / "trace"
    path.write_text(text)
    return load_workload(path, **options)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "trace") in message
    assert "\n" not in message
    return message


# agentic_coding


def test_sub_agents_stand_where_they_are_and_share_blocks(tmp_path: Path) -> None:
    child = {"type": "subagent", "t": 5.0, "requests": [CALL | {"hash_ids": [1, 9], "in": 130}]}
    workload = read(tmp_path, session(CALL, child, CALL | {"hash_ids": [1, 2, 3, 9], "in": 256}))
    assert workload.session_count == 1
    assert workload.prompt_tokens.tolist() == [200, 130, 256]
    assert workload.hit_tokens.tolist() == [0, 64, 256]
    assert (workload.hit_blocks, workload.prompt_blocks) == (5, 9)
    assert (workload.sub_agents, workload.sub_agent_turns) == (1, 1)


def test_hits_never_exceed_the_prompt_and_outputs_may_be_zero(tmp_path: Path) -> None:
    workload = read(tmp_path, session(CALL, CALL | {"in": 150, "out": 0}))
    assert workload.hit_tokens.tolist() == [0, 150]
    assert workload.output_tokens.tolist() == [10, 0]


def test_think_time_is_given_derived_or_none(tmp_path: Path) -> None:
    workload = read(
        tmp_path,
        session(
            CALL | {"t": 0.0, "api_time": 2.0},
            CALL | {"t": 5.0, "api_time": 1.0},
            CALL | {"t": 5.5},
            CALL | {"t": 50.0, "think_time": 7.0},
            {k: v for k, v in CALL.items() if k != "t"},
            CALL | {"think_time": None},
        ),
    )
    assert workload.think_time_s.tolist() == [0.0, 3.0, 0.0, 7.0, 0.0, 0.0]


def test_a_sub_agent_runs_within_the_think_time_of_the_next_call(tmp_path: Path) -> None:
    child = {"requests": [CALL | {"api_time": 2.0}, CALL | {"t": 10.0, "api_time": 1.0}]}
    workload = read(tmp_path, session(CALL, child, CALL | {"think_time": 15.0}))
    assert workload.think_time_s.tolist() == [0.0, 0.0, 8.0, 4.0]


def test_ids_are_local_to_a_file_unless_it_says_otherwise(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(session(CALL, hash_id_scope="local"))
    assert load_workload(tmp_path).hit_blocks == 0
    assert load_workload(tmp_path, scope="global").hit_blocks == 0
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(session(CALL, hash_id_scope="global"))
    assert load_workload(tmp_path).hit_blocks == 3
    assert load_workload(tmp_path, scope="session").hit_blocks == 0


def test_pretty_printed_sessions_and_given_block_size(tmp_path: Path) -> None:
    text = json.dumps({"id": 1, "requests": [CALL, CALL | {"in": 10_000}]}, indent=1)
    assert read(tmp_path, text).hit_tokens.tolist() == [0, 192]
    assert read(tmp_path, text, block_tokens=100).hit_tokens.tolist() == [0, 300]


WRONG_CALLS: list[tuple[object, str]] = [
    (CALL | {"in": -1}, "in is -1"),
    (CALL | {"in": 0}, "in is 0"),
    (CALL | {"in": True}, "in is True"),
    (CALL | {"in": "200"}, "in is '200'"),
    (CALL | {"in": 1.5}, "in is 1.5"),
    (CALL | {"in": float("nan")}, "in is nan"),
    (CALL | {"in": 2**60}, "in is"),
    (CALL | {"out": float("inf")}, "out is inf"),
    (CALL | {"out": None}, "out is missing"),
    ({k: v for k, v in CALL.items() if k != "out"}, "out is missing"),
    ({k: v for k, v in CALL.items() if k != "hash_ids"}, "hash_ids is missing"),
    (CALL | {"hash_ids": None}, "hash_ids is missing"),
    (CALL | {"hash_ids": [1, "2"]}, "hash_ids holds '2'"),
    (CALL | {"hash_ids": [1, [2]]}, "hash_ids holds [2]"),
    (CALL | {"think_time": -1.0}, "think_time is -1.0"),
    (CALL | {"think_time": "soon"}, "think_time is 'soon'"),
    (CALL | {"t": float("nan")}, "t is nan"),
    (7, "must be a JSON object"),
    ({"type": "subagent", "requests": 3}, "requests is 3"),
    ({"type": "subagent"}, "requests is missing"),
]


@pytest.mark.parametrize(("wrong", "expected"), WRONG_CALLS)
def test_wrong_calls_are_named(tmp_path: Path, wrong: object, expected: str) -> None:
    message = refusal(tmp_path, session(CALL, wrong))
    assert "request 2" in message
    assert expected in message


def test_wrong_calls_of_sub_agents_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, session(CALL, {"requests": [CALL, CALL | {"out": -3}]}))
    assert "request 2: request 2: out is -3" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"requests": []}', "no model call"),
        ('{"requests": [{"requests": []}]}', "no model call"),
        ('{"requests": 5}', "requests is 5"),
        ('{"block_size": 0, "requests": []}', "block_size is 0"),
        (session(CALL)[:-20], "line 1"),
        (json.dumps({"requests": [CALL]}, indent=0)[:-8], "line 11"),
        ('{"requests": ' + "[" * 100_000, "line 1"),
    ],
)
def test_wrong_documents(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


# mooncake


def test_mooncake_requests_share_blocks_globally(tmp_path: Path) -> None:
    second = REQUEST | {"timestamp": 2500, "hash_ids": [0, 7], "input_length": 1000}
    third = REQUEST | {"timestamp": 2500, "hash_ids": [0, 1]}
    text = lines(REQUEST, second, third)
    workload = read(tmp_path, text)
    assert workload.start_s.tolist() == [0.0, 2.5, 2.5]
    assert workload.offsets.tolist() == [0, 1, 2, 3]
    assert workload.hit_tokens.tolist() == [0, 512, 700]
    assert (workload.hit_blocks, workload.prompt_blocks) == (3, 6)
    assert read(tmp_path, text, block_tokens=16).hit_tokens.tolist() == [0, 16, 32]
    assert read(tmp_path, text, scope="session").hit_tokens.tolist() == [0, 0, 0]
    assert read(tmp_path, "\r\n\n" + text.replace("\n", "\r\n")).turns == 3


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (REQUEST | {"input_length": -4}, "input_length is -4"),
        (REQUEST | {"input_length": False}, "input_length is False"),
        (REQUEST | {"output_length": "9"}, "output_length is '9'"),
        (REQUEST | {"output_length": float("nan")}, "output_length is nan"),
        (REQUEST | {"timestamp": float("-inf")}, "timestamp is -inf"),
        (REQUEST | {"timestamp": None}, "timestamp is missing"),
        (REQUEST | {"hash_ids": "0 1"}, "hash_ids is '0 1'"),
    ],
)
def test_wrong_requests_are_named_with_their_line(
    tmp_path: Path, wrong: Row, expected: str
) -> None:
    message = refusal(tmp_path, lines(REQUEST) + "\n" + lines(wrong))
    assert "line 3" in message
    assert expected in message


@pytest.mark.parametrize("row", [REQUEST, AGENTIC, PLAIN])
def test_a_line_cut_in_half_is_named(tmp_path: Path, row: Row) -> None:
    text = lines(row)
    assert "line 1 " in refusal(tmp_path, text[:45])
    other = row | {"request_id": "b"} if "request_id" in row else row | {"turn": 2}
    assert "line 2 " in refusal(tmp_path, text + lines(other)[: len(text) // 2])
    assert "line 2 " in refusal(tmp_path, text + '{"\ud7ff'.encode("utf-16").decode("latin-1"))
    assert "line 2" in refusal(tmp_path, text + "[1, 2]\n")


@pytest.mark.parametrize(
    "text", ["hello", "[1, 2]", "a,b\n1,2\n", '{"x": 1}', "{", "\x00\x00", "%PDF"]
)
def test_unknown_formats_are_refused(tmp_path: Path, text: str) -> None:
    assert "none of the known formats" in refusal(tmp_path, text)


# Dynamo's agentic Mooncake


def test_agentic_rows_wait_for_one_another(tmp_path: Path) -> None:
    rows = [
        AGENTIC,
        AGENTIC | {"request_id": "child", "session_id": "c", "wait_for": ["a"], "delay": 250.0},
        AGENTIC | {"request_id": "other", "session_id": "o"},
        AGENTIC
        | {"request_id": "b", "wait_for": ["a", "child"], "delay": 100.0, "tool_wait_ms": 400.0}
        | {"hash_ids": [1, 2, 3], "input_length": 190},
    ]
    del rows[1]["timestamp"]
    workload = read(tmp_path, lines(*rows))
    assert workload.offsets.tolist() == [0, 2, 3, 4]
    assert workload.start_s.tolist() == [1.0, 1.25, 1.0]
    assert workload.think_time_s.tolist() == [0.0, 0.5, 0.0, 0.0]
    # the child shares its parent's blocks, the other session does not
    assert workload.hit_tokens.tolist() == [0, 128, 128, 0]
    assert (workload.sub_agents, workload.sub_agent_turns) == (1, 1)
    everyone = read(tmp_path, lines(*rows), scope="global")
    assert everyone.hit_tokens.tolist() == [0, 128, 128, 128]


def test_version_2_has_a_header_and_local_ids(tmp_path: Path) -> None:
    header: Row = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 32}
    header |= {"hash_id_scope": "local", "source": {"format": "weka", "digest": "x"}}
    first: Row = {"request_id": "a", "play_id": "p", "session_id": "s", "model": "m"}
    first |= {"input_length": 64, "output_length": 5, "hash_ids": [1, 2], "not_before_ms": 500.0}
    wait = {"trigger": "completion", "relation": "sequence", "delay_ms": 2000.0, "request_id": "a"}
    rows = [
        first,
        first | {"request_id": "b", "dependencies": [wait]},
        first | {"request_id": "c", "session_id": "child", "dependencies": [wait]},
        first | {"request_id": "a2", "play_id": "q"},
    ]
    for scope in (None, "session", "global"):
        workload = read(tmp_path, lines(header, *rows), scope=scope)
        assert workload.hit_tokens.tolist() == [0, 64, 64, 0]
        assert workload.think_time_s.tolist() == [0.0, 2.0, 0.0, 0.0]
        assert workload.start_s.tolist() == [0.5, 2.5, 0.5]
        assert workload.sub_agents == 1
    assert "version 3" in refusal(tmp_path, lines(header | {"version": 3}, *rows))
    assert "'other'" in refusal(tmp_path, lines(header | {"schema": "other"}, *rows))


def test_mooncake_rows_with_sessions_and_aliases(tmp_path: Path) -> None:
    row = {"session_id": "s", "input_tokens": 64, "output_tokens": 1, "hash_ids": [5]}
    workload = read(
        tmp_path,
        lines(
            row | {"created_time": 1000},
            row | {"created_time": 4000},
            row | {"delay_ms": 700},
            row | {"session_id": "t", "hash_ids": None},
        ),
    )
    assert workload.think_time_s.tolist() == [0.0, 3.0, 0.7, 0.0]
    assert workload.hit_tokens.tolist() == [0, 64, 64, 0]
    assert workload.prompt_blocks == 3


@settings(deadline=None)  # files are written
@given(block=st.sampled_from([8, 16, 128, 512]), blocks=st.integers(3, 50))
def test_block_size_follows_from_the_rows_where_nothing_states_it(
    tmp_path_factory: pytest.TempPathFactory, block: int, blocks: int
) -> None:
    row = AGENTIC | {"input_length": block * blocks - 1, "hash_ids": list(range(blocks))}
    folder = tmp_path_factory.mktemp("blocks")
    second = row | {"request_id": "b", "wait_for": ["a"], "input_length": block * (blocks - 1) + 1}
    workload = read(folder, lines(row, second))
    assert workload.hit_tokens[1] == block * (blocks - 1) + 1
    last = row | {"request_id": "c", "hash_ids": [0] + [99] * (blocks - 1)}
    assert read(folder, lines(row, second, last)).hit_tokens[2] == block


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (AGENTIC, "'a' is used twice"),
        (AGENTIC | {"request_id": ""}, "request_id is ''"),
        (AGENTIC | {"request_id": "b", "wait_for": ["z"]}, "waits for request 'z'"),
        (AGENTIC | {"request_id": "b", "wait_for": [3]}, "waits for request 3"),
        (AGENTIC | {"request_id": "b", "wait_for": "a"}, "must be lists"),
        (AGENTIC | {"request_id": "b", "dependencies": [{}]}, "request_id is missing"),
        (AGENTIC | {"request_id": "b", "delay": -1.0}, "delay is -1.0"),
        (AGENTIC | {"request_id": "b", "timestamp": True}, "timestamp is True"),
        (AGENTIC | {"request_id": "b", "input_length": None}, "input_length is missing"),
        (AGENTIC | {"request_id": "b", "session_id": 1.5}, "session_id is 1.5"),
    ],
)
def test_wrong_agentic_rows(tmp_path: Path, wrong: Row, expected: str) -> None:
    message = refusal(tmp_path, lines(AGENTIC, wrong))
    assert "line 2" in message
    assert expected in message


def test_a_header_alone_is_no_trace(tmp_path: Path) -> None:
    header = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 32}
    assert "no request" in refusal(tmp_path, lines(header))


# plain


def test_plain_csv(tmp_path: Path) -> None:
    workload = read(
        tmp_path,
        "\ufeffSession, turn, append, generate, think_time, prompt, start\r\n"
        "a,1,1000,100,,,2.5\r\n"
        "b,1,200,0,,,\r\n"
        "a,2,50,10,1.5,,\r\n"
        "a,3,300,10,0.5,500,\r\n"  # compaction: 200 of the context remain
        "a,4,,10,,700,\r\n"  # longer than the context of 510
        "a,5,,10,,90,\r\n"  # shorter: a new context
        '"a",6,0,1,,,\r\n',
    )
    assert workload.offsets.tolist() == [0, 6, 7]
    assert workload.start_s.tolist() == [2.5, 0.0]
    assert workload.prompt_tokens.tolist() == [1000, 1150, 500, 700, 90, 100, 200]
    assert workload.hit_tokens.tolist() == [0, 1088, 192, 448, 0, 64, 0]
    assert workload.think_time_s.tolist() == [0, 1.5, 0.5, 0, 0, 0, 0]
    assert workload.output_tokens.tolist() == [100, 10, 10, 10, 10, 1, 0]
    assert workload.prompt_blocks == 16 + 18 + 8 + 11 + 2 + 2 + 4
    assert workload.hit_blocks * 64 == workload.hit_tokens.sum()


def test_plain_json_lines_are_the_same_as_csv(tmp_path: Path) -> None:
    rows = [PLAIN, PLAIN | {"turn": 2, "think_time": 3}, PLAIN | {"session": 7}]
    workload = read(tmp_path, lines(*rows), block_tokens=10)
    as_csv = "session,turn,append,generate,think_time\na,1,100,10,\na,2,100,10,3\n7,1,100,10,0\n"
    same = read(tmp_path, as_csv, block_tokens=10)
    for column in ("prompt_tokens", "hit_tokens", "output_tokens", "think_time_s", "offsets"):
        assert (getattr(workload, column) == getattr(same, column)).all()
    assert workload.hit_tokens.tolist() == [0, 110, 0]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("a,2,-5,10,0", "append is -5"),
        ("a,2,nan,10,0", "append is nan"),
        ("a,2,many,10,0", "append is 'many'"),
        ("a,2,1.5,10,0", "append is 1.5"),
        ("a,2,True,10,0", "append is 'True'"),
        ("a,2,99999999999999999999,10,0", "append is 1e+20"),
        ("a,2,5,,0", "generate is missing"),
        ("a,2,5,10,-1", "think_time is -1"),
        ("a,1,5,10,0", "turn 1 of 'a' follows its turn 1"),
        (",2,5,10,0", "session is missing"),
        ("a,2,,10,0", "append is missing"),
        ("b,2,0,10,0", "append is 0"),
        ("a,2,5,10", "has 4 cells"),
        ('a,2,"5,10,0', "is not CSV"),
    ],
)
def test_wrong_plain_rows(tmp_path: Path, cells: str, expected: str) -> None:
    text = f"session,turn,append,generate,think_time\na,1,100,10,0\n{cells}\n"
    message = refusal(tmp_path, text)
    assert "line 3" in message
    assert expected in message


def test_plain_rows_that_contradict_themselves(tmp_path: Path) -> None:
    assert "append is 100" in refusal(tmp_path, lines(PLAIN | {"prompt": 50}))
    assert "append is True" in refusal(tmp_path, lines(PLAIN | {"append": True}))
    assert "generate is '10'" in refusal(tmp_path, lines(PLAIN | {"generate": "10"}))
    assert "no request" in refusal(tmp_path, "session,append,generate\n")
    path = tmp_path / "trace"
    path.write_bytes(b"session,append,generate\n\xff\xfe,1,1\n")
    with pytest.raises(InputError, match="line 2 is not CSV in UTF-8"):
        load_workload(path)


def assert_same(one: Workload, other: Workload) -> None:
    for field in dataclasses.fields(Workload):
        if field.name != "source":
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.jsonl", "t.jsonl.gz"])
def test_plain_formats_round_trip(tmp_path: Path, name: str) -> None:
    workload = generate(dataclasses.replace(TABLE_2["32K"], sessions=20))
    write_plain(workload, tmp_path / name)
    assert_same(workload, load_workload(tmp_path / name))


@st.composite
def plain_sessions(draw: st.DrawFn) -> list[Session]:
    """Sessions as the plain format means them: hits are whole blocks of the session's context."""
    sessions = []
    for number in range(draw(st.integers(1, 4))):
        context, turns = 0, []
        for _ in range(draw(st.integers(1, 6))):
            prompt = draw(st.integers(1, 1000))
            hit = draw(st.integers(0, min(prompt, context))) // 64 * 64
            output = draw(st.integers(0, 300))
            turns.append(Turn(prompt, hit, output, draw(st.floats(0, 100))))
            context = prompt + output
        sessions.append(Session(str(number), tuple(turns), draw(st.floats(0, 100))))
    return sessions


@settings(deadline=None)
@given(plain_sessions())
def test_any_plain_workload_round_trips(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[Session]
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    given_workload = from_sessions(sessions)
    for name in ("t.csv", "t.jsonl"):
        write_plain(given_workload, folder / name)
        found = load_workload(folder / name)
        for column in ("prompt_tokens", "hit_tokens", "output_tokens", "think_time_s", "start_s"):
            assert np.array_equal(getattr(given_workload, column), getattr(found, column)), column


def test_writing_to_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_plain(generate(TABLE_2["32K"]), tmp_path / "no" / "folder.csv")


# anything at all


VALID = [
    session(CALL, {"requests": [CALL]}, CALL),
    lines(REQUEST, REQUEST),
    lines(AGENTIC, AGENTIC | {"request_id": "b", "wait_for": ["a"], "delay": 5}),
    lines(PLAIN, PLAIN | {"turn": 2}),
    "session,turn,append,generate,think_time\na,1,100,10,0\na,2,5,10,1\n",
]


@settings(deadline=None, max_examples=300)
@given(
    text=st.sampled_from(VALID),
    place=st.floats(0, 1),
    removed=st.integers(0, 8),
    put=st.binary(max_size=4)
    | st.sampled_from([b"null", b"{}", b"[]", b"-1", b'""', b"\n", b"NaN"]),
)
@example(text="", place=0, removed=0, put=b"\xff")
def test_a_spoiled_trace_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, text: str, place: float, removed: int, put: bytes
) -> None:
    data = text.encode()
    start = int(place * len(data))
    path = tmp_path_factory.mktemp("spoiled") / "trace"
    path.write_bytes(data[:start] + put + data[start + removed :])
    try:
        workload = load_workload(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert (workload.hit_tokens <= workload.prompt_tokens).all()
