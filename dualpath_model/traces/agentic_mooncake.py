"""Dynamo's agentic Mooncake traces: requests of sessions that wait for one another, one a line.

Read from the crate dynamo-data-gen, 1.4.0 (rows without a header, here "version 1") and 1.6.0
("version 2", with a header line), and from "Agent Simulation" in docs.nvidia.com/dynamo. Times are
in ms.

| | version 1 | version 2 |
|---|---|---|
| header line | none | ``schema`` "dynamo.agentic_mooncake", ``version`` 2, ``block_size`` |
| names | ``request_id``, ``session_id`` | and ``play_id``: an agent with its children |
| tokens | ``input_length``, ``output_length``, ``hash_ids`` | the same |
| start | ``timestamp`` | ``not_before_ms`` |
| waits for | ``wait_for`` [request_id] | ``dependencies`` [{``request_id``, ``delay_ms``}] |
| and then | ``delay`` + ``tool_wait_ms`` | the longest ``delay_ms`` |

The aliases ``input_tokens``, ``output_tokens``, ``created_time`` and ``delay_ms`` are read too, and
Mooncake rows with a ``session_id`` but no ``request_id``. Fields that do not change load or order
(``branches``, ``tool_events``, ``model``, priorities) are passed over.

Rules: a session's rows are its turns, in file order. A session whose first row waits for a row of
another session is a sub-agent: it stays a session of its own, shares the blocks of the session that
it came from under the scope "session", and starts no earlier than that one. Scope "global" shares
the blocks of the whole file, except that version 2 calls ids local: those of different plays are
never compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dualpath_model.errors import InputError
from dualpath_model.traces.calls import Calls, ReadOptions, Scope, SeenBlocks
from dualpath_model.traces.fields import Row, as_row, name, parse_json, seconds, shown, tokens
from dualpath_model.traces.files import TraceFile

SCHEMA = "dynamo.agentic_mooncake"
BLOCK_TOKENS = 64
_POWERS = tuple(2**k for k in range(3, 13))
_ALIASES = {
    "input_tokens": "input_length",
    "output_tokens": "output_length",
    "created_time": "timestamp",
    "delay_ms": "delay",
}


@dataclass(slots=True)
class _Session:
    """A session while it is read: number, blocks, start and last timestamp in ms."""

    number: int
    seen: SeenBlocks
    start_ms: float
    last_ms: float | None
    is_sub_agent: bool


@dataclass(frozen=True, slots=True)
class _Call:
    """A row with its hits, before the block size is known."""

    session: int
    prompt_tokens: int
    output_tokens: int
    think_time_s: float
    hit_blocks: int
    prompt_blocks: int
    agent: int


def read(file: TraceFile, calls: Calls, options: ReadOptions) -> None:
    """Append the sessions in ``file`` to ``calls``. Raises InputError naming file, line and field.

    The block size is ``options.block_tokens``, else the header's, else the power of two from 8 to
    4,096 that explains the length of every row's hash_ids (64 where several or none do).
    """
    reader = _Reader(calls, options)
    fitting = set(_POWERS)
    found: list[_Call] = []
    for where, row in _rows(file, reader):
        call = reader.call(row, where)
        if call.prompt_blocks:
            fitting = {b for b in fitting if -(-call.prompt_tokens // b) == call.prompt_blocks}
        found.append(call)
    guess = fitting.pop() if len(fitting) == 1 else BLOCK_TOKENS
    block_tokens = options.block_tokens or reader.block_tokens or guess
    for call in found:
        calls.add(
            call.session,
            prompt_tokens=call.prompt_tokens,
            output_tokens=call.output_tokens,
            think_time_s=call.think_time_s,
            hit_blocks=call.hit_blocks,
            prompt_blocks=call.prompt_blocks,
            block_tokens=block_tokens,
            agent=call.agent,
        )


def _rows(file: TraceFile, reader: _Reader) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) and hand a header to the reader."""
    for number, line in file.lines():
        where = f"{file.path}: line {number}"
        row = as_row(parse_json(line, file.path, number), where)
        if "schema" in row and "request_id" not in row:
            reader.header(row, where)
        else:
            yield where, {_ALIASES.get(field, field): value for field, value in row.items()}


class _Reader:
    """The sessions of one file and which session each request belongs to."""

    def __init__(self, calls: Calls, options: ReadOptions) -> None:
        self._calls = calls
        self._global = options.scope is Scope.GLOBAL
        self._all_blocks = SeenBlocks()
        self._play_blocks: dict[str, SeenBlocks] = {}
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._session_of_request: dict[str, _Session] = {}
        self.block_tokens: int | None = None

    def header(self, row: Row, where: str) -> None:
        """Take the block size from a header. Raises InputError for another schema or version."""
        if row["schema"] != SCHEMA or row.get("version") != 2:
            raise InputError(
                f"{where}: the schema is {shown(row['schema'])}, "
                f"version {shown(row.get('version'))}; "
                f"'{SCHEMA}' version 2, or rows without a header, can be read, so convert the trace"
            )
        self.block_tokens = tokens(row, "block_size", where, least=1)

    def call(self, row: Row, where: str) -> _Call:
        """Turn one row into a call of its session."""
        prompt_tokens = tokens(row, "input_length", where, least=1)
        output_tokens = tokens(row, "output_length", where)
        request = name(row, "request_id", where) if "request_id" in row else ""
        if request and request in self._session_of_request:
            raise InputError(
                f"{where}: request_id '{request}' is used twice; give each row its own"
            )
        parents, wait_ms = self._waits(row, where)
        at = "not_before_ms" if "not_before_ms" in row else "timestamp"
        at_ms = seconds(row, at, where, unit="ms")
        play = name(row, "play_id", where) if row.get("play_id") is not None else ""
        # a row without any name is a session of its own
        own = row.get("session_id") is None
        key = (play, request or where if own else "=" + name(row, "session_id", where))
        session = self._sessions.get(key)
        if session is None:
            session = self._begin(play, parents, at_ms, wait_ms)
            self._sessions[key] = session
            think_s = 0.0
        elif parents or wait_ms is not None:
            think_s = (wait_ms or 0.0) / 1000
        else:
            known = at_ms is not None and session.last_ms is not None
            think_s = max(0.0, at_ms - session.last_ms) / 1000 if known else 0.0  # type: ignore[operator]
        if request:
            self._session_of_request[request] = session
        session.last_ms = at_ms
        ids = row.get("hash_ids")
        ids = [] if ids is None else ids
        hits = session.seen.leading(ids, where)
        return _Call(
            session.number,
            prompt_tokens,
            output_tokens,
            think_s,
            hits,
            len(ids),
            agent=int(session.is_sub_agent),
        )

    def _waits(self, row: Row, where: str) -> tuple[list[_Session], float | None]:
        """Return the sessions that a row waits for, and for how long after them in ms."""
        waits = row.get("wait_for") or []
        delays = [seconds(row, field, where, unit="ms") for field in ("delay", "tool_wait_ms")]
        given = [delay for delay in delays if delay is not None]
        wait_ms = sum(given) if given else None
        dependencies = row.get("dependencies") or []
        if not isinstance(waits, list) or not isinstance(dependencies, list):
            raise InputError(f"{where}: wait_for and dependencies must be lists; mend the row")
        for entry in dependencies:
            dependency = as_row(entry, f"{where}: an entry of dependencies")
            waits = [*waits, name(dependency, "request_id", where)]
            delay_ms = seconds(dependency, "delay_ms", where, unit="ms") or 0.0
            wait_ms = max(wait_ms or 0.0, delay_ms)
        for request in waits:
            if not isinstance(request, str) or request not in self._session_of_request:
                raise InputError(
                    f"{where}: it waits for request {shown(request)}, which does not precede it "
                    f"in the file; put the rows in the order in which they can run"
                )
        return [self._session_of_request[request] for request in waits], wait_ms

    def _begin(
        self, play: str, parents: list[_Session], at_ms: float | None, wait_ms: float | None
    ) -> _Session:
        """Open the session of a first row, as a sub-agent if it waits for a row of another one."""
        earliest_ms = max((parent.start_ms for parent in parents), default=0.0) + (wait_ms or 0.0)
        start_ms = max(at_ms or 0.0, earliest_ms) if parents else (at_ms or 0.0)
        if play:
            seen = self._play_blocks.setdefault(play, SeenBlocks())
        elif self._global:
            seen = self._all_blocks
        else:
            seen = parents[0].seen if parents else SeenBlocks()
        number = self._calls.begin_session(start_ms / 1000)
        return _Session(number, seen, start_ms, at_ms, bool(parents))
