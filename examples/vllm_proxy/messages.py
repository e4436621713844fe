"""What is said to the servers, and read from what they answer: plain functions over JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualpath_model.export.vllm_keys import FROM_PEERS, NO_LOADS
from dualpath_model.routing import Engine

Body = dict[str, Any]

SESSION_HEADER = "x-session-id"
RANK_HEADER = "x-data-parallel-rank"
_ONLY_DECODE = ("stream_options", "min_tokens", "min_completion_tokens", "logprobs", "top_logprobs")
"""What asks for something of the answer: a prefill server makes one token that nobody sees."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a decode server's answer says; None where it does not."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    kv_transfer_params: Body | None = None


def session_of(headers: Mapping[str, str], body: Body) -> str | None:
    """Return the session's name, looked for where vLLM looks."""
    extra = body.get("vllm_xargs")
    for found in (
        body.get("session_id"),
        headers.get(SESSION_HEADER),
        extra.get("session_id") if isinstance(extra, dict) else None,
    ):
        if isinstance(found, str) and found:
            return found
    return None


def prefill_body(
    body: Body,
    *,
    source: Engine | None = None,
    kv_request_id: str = "",
    kept: Body | None = None,
) -> Body:
    """Return the request for the prefill server: one token, and the hand-off prepared.

    ``source``: the decode engine whose p2p tier the hits come from, under ``kv_request_id``; ``kept``:
    what the decode server said of the session's last turn, which the prefill server then pulls.
    """
    params: Body = {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    if kept is not None:
        params |= kept | {"do_remote_decode": True, "do_remote_prefill": False}
        params["kv_load_tiers"] = list(NO_LOADS)
    elif source is not None and source.p2p is not None:
        params["remote_kv_source"] = {
            "kv_request_id": kv_request_id,
            "remote_host": source.p2p.host,
            "remote_port": source.p2p.port,
        }
        params["kv_load_tiers"] = [dict(tier) for tier in FROM_PEERS]
    asked = {key: value for key, value in body.items() if key not in _ONLY_DECODE}
    asked |= {"stream": False, "max_tokens": 1, "n": 1, "kv_transfer_params": params}
    if "max_completion_tokens" in asked:
        asked["max_completion_tokens"] = 1
    return asked


def decode_body(body: Body, handed: Body) -> Body:
    """Return the request for the decode server. ``handed``: ``kv_transfer_params`` of the prefill
    server's answer; the prompt comes from there, so that no tier need be searched for it.
    """
    return {**body, "kv_transfer_params": {**handed, "kv_load_tiers": list(NO_LOADS)}}


def characters(body: Body) -> int:
    """Return about how long the prompt is, characters."""
    prompt = body.get("prompt", body.get("messages"))
    return len(prompt) if isinstance(prompt, str) else len(json.dumps(prompt, ensure_ascii=False))


def prompt_ids(body: Body) -> int | None:
    """Return the prompt's tokens where it is given as token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(part, int) for part in prompt):
        return len(prompt)
    return None


def answered(data: Any) -> Answered:
    """Read a decode server's answer, or one event of its stream."""
    if not isinstance(data, dict):
        return Answered()
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    params = data.get("kv_transfer_params")
    return Answered(
        _whole(usage.get("prompt_tokens")),
        _whole(usage.get("completion_tokens")),
        params if isinstance(params, dict) else None,
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


class StreamReader:
    """Finds what a stream says of itself while its bytes pass by, less what is not for clients."""

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self.found = Answered()
        self.events = 0
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take in the next bytes and return the lines that are complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def end(self) -> bytes:
        """Return what is left when the stream ends inside a line."""
        return self._line(self._rest)

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return line
        self.events += 1
        if b'"usage"' not in line and b'"kv_transfer_params"' not in line:
            return line
        try:
            data = json.loads(line[5:])
        except (ValueError, RecursionError):
            return line
        new, old = answered(data), self.found
        self.found = Answered(
            old.prompt_tokens if new.prompt_tokens is None else new.prompt_tokens,
            old.completion_tokens if new.completion_tokens is None else new.completion_tokens,
            old.kv_transfer_params if new.kv_transfer_params is None else new.kv_transfer_params,
        )
        return b"data: " + without_params(data) if new.kv_transfer_params is not None else line


def without_params(data: Body) -> bytes:
    """Return an answer without ``kv_transfer_params``: addresses inside the cluster are nobody's."""
    rest = {key: value for key, value in data.items() if key != "kv_transfer_params"}
    return json.dumps(rest, ensure_ascii=False, separators=(",", ":")).encode()
