"""Recorded coding-agent sessions: one JSON object a file, a list of calls with nested sub-agents.

Format (github callanjfox/kv-cache-tester, commit 94f6046): ``block_size`` in tokens,
``hash_id_scope`` ("local": ids mean something within the file only) and ``requests``. A call has
``in`` and ``out`` tokens, ``hash_ids`` (one a full block of the prompt), and perhaps ``t``,
``api_time`` and ``think_time`` in s; a sub-agent has ``requests`` of its own, whose ``t`` count
from the sub-agent's start and whose ids are shared with the parent. Contexts can shrink
(compaction).

Rules: calls in file order, a sub-agent's where it stands; hit tokens = min(leading seen blocks x
block size, input tokens). The file is one session, sub-agents included, that starts at 0 s: the
format has no clock that sessions share.
"""

from __future__ import annotations

from dualpath_model.errors import InputError
from dualpath_model.traces.calls import Calls, ReadOptions, Scope, SeenBlocks
from dualpath_model.traces.fields import Row, as_row, parse_json, seconds, shown, tokens
from dualpath_model.traces.files import TraceFile

BLOCK_TOKENS = 64


def read(file: TraceFile, calls: Calls, options: ReadOptions) -> None:
    """Append the session in ``file``. Raises InputError naming file, request and field."""
    where = str(file.path)
    document = as_row(parse_json(file.document(), file.path), where)
    block_tokens = options.block_tokens
    if block_tokens is None:
        stated = document if "block_size" in document else {"block_size": BLOCK_TOKENS}
        block_tokens = tokens(stated, "block_size", where, least=1)
    # ids that are local cannot be compared between files, whatever scope is asked for
    comparable = document.get("hash_id_scope") == Scope.GLOBAL
    shared = comparable and options.scope is not Scope.SESSION
    seen = options.folder_blocks if shared else SeenBlocks()
    session = _Session(calls, calls.begin_session(), seen, block_tokens)
    before = len(calls)
    session.read_level(document.get("requests"), where, agent=0)
    if len(calls) == before:
        raise InputError(f"{where}: there is no model call in its requests; leave the file out")


class _Session:
    """One session while it is read: where its calls go and which blocks it has seen."""

    def __init__(self, calls: Calls, number: int, seen: SeenBlocks, block_tokens: int) -> None:
        self._calls = calls
        self._number = number
        self._seen = seen
        self._block_tokens = block_tokens
        self._sub_agents = 0

    def read_level(self, entries: object, where: str, *, agent: int) -> float:
        """Append the calls of one agent, its sub-agents included, and return its length in s."""
        if not isinstance(entries, list):
            raise InputError(
                f"{where}: requests is {shown(entries)}; it must be a list of requests"
            )
        end_s: float | None = None
        # A sub-agent runs during the think time of the next call. Calls of a session are played one
        # after another, so what the sub-agent took must not pass a second time.
        inside_s = 0.0
        for number, value in enumerate(entries, 1):
            here = f"{where}: request {number}"
            entry = as_row(value, here)
            if "requests" in entry or entry.get("type") == "subagent":
                self._sub_agents += 1
                inside_s += self.read_level(entry.get("requests"), here, agent=self._sub_agents)
                continue
            start_s, api_s = seconds(entry, "t", here), seconds(entry, "api_time", here)
            think_s = seconds(entry, "think_time", here)
            if think_s is None:
                known = start_s is not None and end_s is not None
                think_s = max(0.0, start_s - end_s) if known else 0.0  # type: ignore[operator]
            self._add(entry, here, max(0.0, think_s - inside_s), agent)
            inside_s = 0.0
            end_s = None if start_s is None else start_s + (api_s or 0.0)
        return end_s or 0.0

    def _add(self, entry: Row, where: str, think_s: float, agent: int) -> None:
        if "hash_ids" not in entry:
            raise InputError(f"{where}: the field hash_ids is missing; without it hits are unknown")
        prompt_tokens = tokens(entry, "in", where, least=1)
        output_tokens = tokens(entry, "out", where)
        ids = entry["hash_ids"]
        leading = self._seen.leading(ids, where)
        self._calls.add(
            self._number,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            think_time_s=think_s,
            hit_blocks=leading,
            prompt_blocks=len(ids),
            block_tokens=self._block_tokens,
            agent=agent,
        )
