"""What is remembered of sessions: how long their context is, and what a decode server keeps of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from examples.vllm_proxy.messages import Answered, characters, prompt_ids

_FIRST_GUESS = 0.25
"""Tokens a character, until an answer tells."""


@dataclass(slots=True)
class Session:
    """``context_tokens``: prompt and answer of the last turn; ``kept``: the decode server's
    ``kv_transfer_params`` of it, until ``kept_until``.
    """

    context_tokens: int = 0
    kept: dict[str, Any] | None = None
    kept_until: float = 0.0


class Sessions:
    """The last ``most`` sessions, and how many tokens a character makes on the average."""

    def __init__(self, block_tokens: int, most: int = 100_000) -> None:
        """Start empty. ``block_tokens``: hits are whole blocks."""
        self.block_tokens = block_tokens
        self.most = most
        self.seen = {True: 0, False: 0}
        """Sessions so far, by whether they read through a decode node at first."""
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._characters = 0.0
        self._tokens = 0.0

    def get(self, name: str) -> Session | None:
        """Return what is known of a session, now the most recent one."""
        session = self._sessions.get(name)
        if session is not None:
            self._sessions.move_to_end(name)
        return session

    def add(self, name: str, through_decode: bool) -> Session:
        """Return a session, a new one if it is not known."""
        session = self.get(name)
        if session is None:
            session = self._sessions[name] = Session()
            self.seen[through_decode] += 1
            while len(self._sessions) > self.most:
                self._sessions.popitem(last=False)
        return session

    def tokens(self, name: str, body: dict[str, Any]) -> tuple[int, int]:
        """Return about how many tokens a prompt has, and how many of them are hits."""
        exact = prompt_ids(body)
        ratio = self._tokens / self._characters if self._characters else _FIRST_GUESS
        prompt = exact if exact is not None else max(1, round(characters(body) * ratio))
        session = self.get(name)
        known = session.context_tokens if session is not None else 0
        # the last token is always computed
        hits = min(known, prompt - 1) // self.block_tokens * self.block_tokens
        return prompt, max(0, hits)

    def learn(self, name: str, body: dict[str, Any], found: Answered, events: int) -> None:
        """Note what a turn's answer says. ``events``: of its stream, about one a token."""
        session = self.get(name)
        prompt, _ = self.tokens(name, body)
        if found.prompt_tokens is not None:
            prompt = found.prompt_tokens
            if prompt_ids(body) is None:
                # old prompts fade, so that another kind of text is learnt
                self._characters = 0.99 * self._characters + characters(body)
                self._tokens = 0.99 * self._tokens + prompt
        if session is not None:
            made = found.completion_tokens if found.completion_tokens is not None else events
            session.context_tokens = prompt + made
