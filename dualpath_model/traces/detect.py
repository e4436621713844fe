"""Tell the format from the first bytes of the content, never from the name, then read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dualpath_model.errors import InputError
from dualpath_model.traces import agentic_coding, agentic_mooncake, mooncake, plain
from dualpath_model.traces.calls import Calls, ReadOptions, Scope
from dualpath_model.traces.files import (
    DEFAULT_MAX_INFLATED_BYTES,
    DEFAULT_MAX_LINE_BYTES,
    TraceFile,
    open_trace,
    trace_paths,
)
from dualpath_model.workload import Workload

Reader = Callable[[TraceFile, Calls, ReadOptions], None]

_READERS: dict[str, Reader] = {
    "agentic_coding": agentic_coding.read,
    "mooncake": mooncake.read,
    "agentic_mooncake": agentic_mooncake.read,
    "plain CSV": plain.read_csv,
    "plain JSON lines": plain.read_json_lines,
}
_KEY = re.compile(rb'"(\w+)"\s*:')


def load_workload(
    path: str | Path,
    *,
    scope: str | None = None,
    block_tokens: int | None = None,
    max_inflated_bytes: int = DEFAULT_MAX_INFLATED_BYTES,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
) -> Workload:
    """Read a recorded trace: one file, or all trace files of a folder, one after another by name.

    ``scope`` is whose blocks a request can hit: "session" or "global" (all earlier sessions, as far
    as ids can be compared: within a file, unless the file declares them global); None is the
    format's own. ``block_tokens`` replaces the format's or the file's block size.
    ``max_inflated_bytes`` is the most that a file may inflate to, ``max_line_bytes`` the most for
    one line, or one session's JSON document.

    Raises InputError, one sentence that names the file and the line or request, for anything that
    cannot be read as a trace.
    """
    allowed = [entry.value for entry in Scope]
    if scope is not None and scope not in allowed:
        raise InputError(f"scope is '{scope}'; it must be {' or '.join(allowed)}, or left out")
    limits = (("max_inflated_bytes", max_inflated_bytes), ("max_line_bytes", max_line_bytes))
    for field, value in (*limits, ("block_tokens", 1 if block_tokens is None else block_tokens)):
        if type(value) is not int or value < 1:
            raise InputError(f"{field} is {value!r}; it must be a whole number, 1 or more")
    options = ReadOptions(None if scope is None else Scope(scope), block_tokens)
    calls = Calls()
    formats: dict[str, int] = {}
    for file_path in trace_paths(Path(path)):
        with open_trace(
            file_path, max_inflated_bytes=max_inflated_bytes, max_line_bytes=max_line_bytes
        ) as file:
            found = recognise(file)
            formats[found] = formats.get(found, 0) + 1
            _READERS[found](file, calls, options)
    described = ", ".join(
        f"{found}, {count} file{'s' * (count > 1)}" for found, count in formats.items()
    )
    return calls.workload(f"{path} ({described})")


def recognise(file: TraceFile) -> str:
    """Return the name of the format of an open file. Raises InputError if it is none of ours."""
    head = file.head.lstrip()
    first_line = head.split(b"\n", 1)[0]
    found = _json_format(first_line, head) if head[:1] == b"{" else _csv_format(first_line)
    if found is None:
        raise InputError(
            f"{file.path}: line 1 is in none of the known formats ({', '.join(_READERS)}); "
            f"it starts with {first_line[:40]!r}; convert it to one of them, CSV with the columns "
            f"session, append and generate being the plainest"
        )
    return found


def _json_format(first_line: bytes, head: bytes) -> str | None:
    # keys alone decide, so that a line that is cut off is still reported by its own reader
    keys = set(_KEY.findall(first_line))
    if b"requests" in keys or b"requests" in _KEY.findall(head):  # perhaps over many lines
        return "agentic_coding"
    if keys & {b"request_id", b"session_id", b"schema"}:
        return "agentic_mooncake"
    if b"session" in keys and keys & {b"append", b"prompt", b"generate"}:
        return "plain JSON lines"
    if keys & {b"input_length", b"output_length", b"hash_ids"}:
        return "mooncake"
    return None


def _csv_format(first_line: bytes) -> str | None:
    columns = {cell.strip(b' "\r').lower() for cell in first_line.split(b",")}
    return "plain CSV" if {b"session", b"generate"} <= columns else None
