"""Sessions in the plainest form: a row a turn, as CSV with a header line or as JSON lines.

| column | meaning |
|---|---|
| ``session`` | name of the session |
| ``turn`` | number that rises from row to row of a session; optional, sessions may be interleaved |
| ``append`` | tokens that the turn adds to the context, on the first turn the whole prompt |
| ``generate`` | tokens that the turn generates |
| ``think_time`` | s between the end of the turn before and this one; optional, 0 |
| ``prompt`` | optional: prompt tokens, where the context was reset (compacted) and is not the sum |
| ``start`` | optional, on a session's first turn: s at which it starts, 0 |

A prompt is the context before it (previous prompt and output) and the append. Hits are everything
of that context, cut down to whole blocks. Where ``prompt`` is given, ``prompt - append`` tokens of
the context remain; with ``prompt`` alone a longer prompt continues the context, a shorter one
begins a new context. There are no ids, so sessions share nothing and both scopes are the same.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dualpath_model.errors import InputError
from dualpath_model.traces.calls import Calls, ReadOptions
from dualpath_model.traces.fields import Row, as_row, name, parse_json, seconds, tokens
from dualpath_model.traces.files import TraceFile
from dualpath_model.workload import Session, Workload

BLOCK_TOKENS = 64
COLUMNS = ("session", "turn", "append", "generate", "think_time", "prompt", "start")
_WHOLE = re.compile(r"[+-]?[0-9]+")


@dataclass(slots=True)
class _Session:
    """A session while it is read: its number, its last turn and the tokens of its context."""

    number: int
    turn: int = -1
    context: int = 0


def read_csv(file: TraceFile, calls: Calls, options: ReadOptions) -> None:
    """Append the sessions of a CSV file. Raises InputError naming file, line and column."""
    _read(_csv_rows(file), calls, options)


def read_json_lines(file: TraceFile, calls: Calls, options: ReadOptions) -> None:
    """Append the sessions of a JSON-lines file. Raises InputError naming file, line and field."""
    rows = ((f"{file.path}: line {n}", parse_json(line, file.path, n)) for n, line in file.lines())
    _read(((where, as_row(row, where)) for where, row in rows), calls, options)


def write(workload: Workload, path: Path) -> None:
    """Write a workload as CSV, as JSON lines if the name has .jsonl, gzip'd if it ends in .gz.

    Reading it back gives the same columns if hits are whole blocks of the session's own context, as
    the plain format means them. Raises InputError if the file cannot be written.
    """
    as_json = ".jsonl" in path.suffixes
    try:
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as out:
            if not as_json:
                out.write(",".join(COLUMNS) + "\n")
            for session in workload.sessions():
                for row in _plain_rows(session):
                    text = json.dumps(row) if as_json else ",".join(str(v) for v in row.values())
                    out.write(text + "\n")
    except OSError as error:
        raise InputError(
            f"{path}: it cannot be written ({error.strerror}); check the path"
        ) from None


def _plain_rows(session: Session) -> Iterator[Row]:
    context = 0
    for number, turn in enumerate(session.turns, 1):
        cut = context - turn.hit_tokens
        # less than a block is missing: the whole context is meant, cut down to blocks
        kept = (
            context
            if 0 <= cut < BLOCK_TOKENS and context <= turn.prompt_tokens
            else turn.hit_tokens
        )
        values = (
            session.name,
            number,
            turn.prompt_tokens - kept,
            turn.output_tokens,
            turn.think_time_s,
            turn.prompt_tokens,
            session.start_s,
        )
        yield dict(zip(COLUMNS, values, strict=True))
        context = turn.prompt_tokens + turn.output_tokens


def _read(rows: Iterator[tuple[str, Row]], calls: Calls, options: ReadOptions) -> None:
    block_tokens = options.block_tokens or BLOCK_TOKENS
    sessions: dict[str, _Session] = {}
    for where, row in rows:
        session_name = name(row, "session", where)
        session = sessions.get(session_name)
        if session is None:
            number = calls.begin_session(seconds(row, "start", where) or 0.0)
            session = sessions[session_name] = _Session(number)
        turn = _optional(row, "turn", where)
        turn = session.turn + 1 if turn is None else turn
        if turn <= session.turn:
            raise InputError(
                f"{where}: turn {turn} of '{session_name}' follows its turn {session.turn}; "
                f"number its turns upwards in the order of the rows"
            )
        prompt, kept = _prompt(row, where, session.context)
        generate = tokens(row, "generate", where)
        calls.add(
            session.number,
            prompt_tokens=prompt,
            output_tokens=generate,
            think_time_s=seconds(row, "think_time", where) or 0.0,
            hit_blocks=kept // block_tokens,
            prompt_blocks=-(-prompt // block_tokens),
            block_tokens=block_tokens,
        )
        session.turn = turn
        session.context = prompt + generate


def _optional(row: Row, field: str, where: str, *, least: int = 0) -> int | None:
    return None if row.get(field) is None else tokens(row, field, where, least=least)


def _prompt(row: Row, where: str, context: int) -> tuple[int, int]:
    """Return the prompt and how much of the earlier context is still in it, in tokens."""
    append, prompt = _optional(row, "append", where), _optional(row, "prompt", where, least=1)
    if append is None and prompt is None:
        raise InputError(f"{where}: the field append is missing; give append, prompt or both")
    if prompt is None:
        prompt = context + (append or 0)
        if prompt == 0:
            raise InputError(f"{where}: append is 0 on the first turn; a prompt cannot be empty")
        return prompt, context
    if append is None:
        return prompt, context if context <= prompt else 0
    if append > prompt:
        raise InputError(
            f"{where}: append is {append}, more than the prompt of {prompt}; "
            f"it is the part of the prompt that is new, so lower it"
        )
    return prompt, min(prompt - append, context)


def _csv_rows(file: TraceFile) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) with numbers as numbers; other text stays, for the checks to name."""
    lines = file.lines()
    header: list[str] = []
    for number, line in lines:
        where = f"{file.path}: line {number}"
        try:
            cells = [cell.strip() for cell in next(csv.reader([line.decode()], strict=True))]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{where} is not CSV in UTF-8 ({error}); mend the line") from None
        if not header:
            header = [cell.lower() for cell in cells]
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{where} has {len(cells)} cells, the header has {len(header)}; "
                f"give each column a cell, empty if need be"
            )
        row = {column: _value(cell) for column, cell in zip(header, cells, strict=True) if cell}
        if "session" in row:
            row["session"] = str(row["session"])
        yield where, row


def _value(cell: str) -> int | float | str:
    if _WHOLE.fullmatch(cell):
        return int(cell) if len(cell) < 20 else float(cell)
    try:
        return float(cell)
    except ValueError:
        return cell
