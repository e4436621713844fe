"""Mooncake's traces: independent requests, one a line, whose blocks are shared by all of them.

Format (github kvcache-ai/Mooncake, FAST25-release/traces, commit 3b5a594): ``timestamp`` in ms,
``input_length`` and ``output_length`` in tokens, ``hash_ids`` (one a block of 512 tokens, the last
may be partial). Ids mean the same throughout a file, not between files. Each request is a session
of one turn, so that the scope "session" leaves no hits at all; the format's own scope is global.
"""

from __future__ import annotations

from dualpath_model.errors import InputError
from dualpath_model.traces.calls import Calls, ReadOptions, Scope, SeenBlocks
from dualpath_model.traces.fields import as_row, parse_json, seconds, tokens
from dualpath_model.traces.files import TraceFile

BLOCK_TOKENS = 512


def read(file: TraceFile, calls: Calls, options: ReadOptions) -> None:
    """Append the requests in ``file``. Raises InputError naming file, line and field."""
    block_tokens = options.block_tokens or BLOCK_TOKENS
    seen = SeenBlocks()
    for number, line in file.lines():
        where = f"{file.path}: line {number}"
        row = as_row(parse_json(line, file.path, number), where)
        prompt_tokens = tokens(row, "input_length", where, least=1)
        output_tokens = tokens(row, "output_length", where)
        start_ms = seconds(row, "timestamp", where, unit="ms")
        for field, value in (("timestamp", start_ms), ("hash_ids", row.get("hash_ids"))):
            if value is None:
                raise InputError(f"{where}: the field {field} is missing; each request needs it")
        if options.scope is Scope.SESSION:
            seen = SeenBlocks()
        leading = seen.leading(row["hash_ids"], where)
        calls.add(
            calls.begin_session((start_ms or 0.0) / 1000),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            think_time_s=0.0,
            hit_blocks=leading,
            prompt_blocks=len(row["hash_ids"]),
            block_tokens=block_tokens,
        )
