"""What all readers fill: the calls of a trace as growing columns, and the blocks seen so far."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.traces.fields import shown
from dualpath_model.workload import Workload


class Scope(StrEnum):
    """Whose blocks count as seen: the session's own, or those of every session before it."""

    SESSION = "session"
    GLOBAL = "global"


class SeenBlocks:
    """An infinite cache of blocks: every id that was part of a prompt."""

    __slots__ = ("_last", "_seen")

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._seen: set[int] = set()
        self._last: list[int] = []

    def leading(self, ids: object, where: str) -> int:
        """Return how many leading ``ids`` were seen before, then count all of them as seen.

        Ids are whole numbers, one a block of the prompt. Raises InputError for anything else.
        """
        if not isinstance(ids, list):
            raise InputError(
                f"{where}: hash_ids is {shown(ids)}; it must be a list of whole numbers"
            )
        # most prompts continue the one before: one comparison in C saves a look-up for each block
        known = len(self._last)
        if ids[:known] != self._last:
            known = 0
        rest = ids[known:]
        try:
            first_new = bytes(map(self._seen.__contains__, rest)).find(0)  # a 1 for each seen
        except TypeError:
            first_new = 0  # something unhashable, which the check below names
        if first_new >= 0:
            new = rest[first_new:]
            if not set(map(type, new)) <= {int}:
                wrong = next(value for value in new if type(value) is not int)
                raise InputError(
                    f"{where}: hash_ids holds {shown(wrong)}; ids must be whole numbers"
                )
            self._seen.update(new)
        self._last = ids
        return len(ids) if first_new < 0 else known + first_new


@dataclass(frozen=True)
class ReadOptions:
    """What the caller wants read differently; None means as the format has it.

    ``folder_blocks`` are the blocks seen in all files of the folder, for ids that mean the same in
    all.
    """

    scope: Scope | None = None
    block_tokens: int | None = None
    folder_blocks: SeenBlocks = field(default_factory=SeenBlocks)


class Calls:
    """Model calls in the order in which they are read; sessions may be interleaved."""

    def __init__(self) -> None:
        """Begin without calls."""
        # arrays take 8 bytes an entry, lists about 40
        self._session = array("q")
        self._prompt = array("q")
        self._hit = array("q")
        self._output = array("q")
        self._think_s = array("d")
        self._start_s = array("d")
        self._agent = array("q")
        self._hit_blocks = 0
        self._prompt_blocks = 0

    def __len__(self) -> int:
        """Return the number of calls so far."""
        return len(self._prompt)

    def begin_session(self, start_s: float = 0.0) -> int:
        """Open a session that starts at ``start_s`` and return its number."""
        self._start_s.append(start_s)
        return len(self._start_s) - 1

    def add(
        self,
        session: int,
        *,
        prompt_tokens: int,
        output_tokens: int,
        think_time_s: float,
        hit_blocks: int,
        prompt_blocks: int,
        block_tokens: int,
        agent: int = 0,
    ) -> None:
        """Append one call. A hit block counts in full, but hits never exceed the prompt.

        ``agent`` is 0 for the session's own calls and k for those of its k-th sub-agent.
        """
        self._session.append(session)
        self._prompt.append(prompt_tokens)
        self._hit.append(min(hit_blocks * block_tokens, prompt_tokens))
        self._output.append(output_tokens)
        self._think_s.append(think_time_s)
        self._agent.append(agent)
        self._hit_blocks += hit_blocks
        self._prompt_blocks += prompt_blocks

    def workload(self, source: str) -> Workload:
        """Return the columns, sessions together and each in reading order.

        A session without a call (a file with an empty list of requests) is left out. Raises
        InputError if there is no call at all.
        """
        if not self._prompt:
            raise InputError(f"{source}: there is no request in it; a trace has at least one")
        session = np.array(self._session, dtype=np.int64)
        order = np.argsort(session, kind="stable")
        counts = np.bincount(session, minlength=len(self._start_s))
        used = counts > 0
        agent = np.array(self._agent, dtype=np.int64)[order]
        return Workload(
            prompt_tokens=np.array(self._prompt, dtype=float)[order],
            hit_tokens=np.array(self._hit, dtype=float)[order],
            output_tokens=np.array(self._output, dtype=float)[order],
            think_time_s=np.array(self._think_s, dtype=float)[order],
            start_s=np.array(self._start_s, dtype=float)[used],
            offsets=np.concatenate(([0], np.cumsum(counts[used]))).astype(np.int64),
            source=source,
            hit_blocks=self._hit_blocks,
            prompt_blocks=self._prompt_blocks,
            agent=agent if agent.any() else agent[:0],
        )
