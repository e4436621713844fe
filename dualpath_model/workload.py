"""What is served: sessions of turns, kept as columns so that a million turns are a few arrays.

A *session* (trajectory) is one agent's run, a *turn* one request of it. The prompt of a turn has *hit*
tokens, whose KV-cache is read back from storage, and *miss* tokens, which prefill computes; the turn
then generates *output* tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dualpath_model.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. ``think_time_s`` passes between the end of the turn before and this submission."""

    prompt_tokens: int
    hit_tokens: int
    output_tokens: int
    think_time_s: float = 0.0

    @property
    def miss_tokens(self) -> int:
        """Prompt tokens without KV-cache in storage: what prefill computes."""
        return self.prompt_tokens - self.hit_tokens


@dataclass(frozen=True, slots=True)
class Session:
    """One agent's run: turns in order, each submitted after the one before has ended."""

    name: str
    turns: tuple[Turn, ...]
    start_s: float = 0.0


@dataclass(frozen=True, eq=False)
class Workload:
    """Sessions as columns. The turns of session ``i`` are ``offsets[i]:offsets[i + 1]``.

    Shapes: ``prompt_tokens``, ``hit_tokens``, ``output_tokens`` and ``think_time_s`` are (turns,),
    ``start_s`` is (sessions,), ``offsets`` is (sessions + 1,). Token columns are floats because a
    workload given by its moments has fractional tokens.

    Raises InputError if a turn has more hit than prompt tokens, no prompt, a negative or non-finite
    number, or if there is no turn at all.
    """

    prompt_tokens: FloatArray
    hit_tokens: FloatArray
    output_tokens: FloatArray
    think_time_s: FloatArray
    start_s: FloatArray
    offsets: IntArray
    source: str = "given"
    hit_blocks: int = 0
    prompt_blocks: int = 0
    agent: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Shape (turns,): 0 for the session's own turns, k for those of its k-th nested sub-agent.
    Empty: there are no sub-agents."""

    def __post_init__(self) -> None:
        """Refuse columns that no cluster could serve."""
        columns = {
            "prompt_tokens": self.prompt_tokens,
            "hit_tokens": self.hit_tokens,
            "output_tokens": self.output_tokens,
            "think_time_s": self.think_time_s,
            "start_s": self.start_s,
        }
        for name, column in columns.items():
            bad = ~(np.isfinite(column) & (column >= 0))
            if bad.any():
                where = int(np.argmax(bad))
                raise InputError(
                    f"{self.source}: {name} of entry {where + 1} is {column[where]:g}; "
                    f"it must be finite and zero or more"
                )
        if self.turns == 0:
            raise InputError(f"{self.source}: there is no request in it; give at least one turn")
        over = self.hit_tokens > self.prompt_tokens
        if over.any():
            where = int(np.argmax(over))
            raise InputError(
                f"{self.source}: turn {where + 1} has hit_tokens {self.hit_tokens[where]:g}, more than "
                f"its prompt_tokens {self.prompt_tokens[where]:g}; hits are a part of the prompt"
            )
        if (self.prompt_tokens <= 0).any():
            where = int(np.argmax(self.prompt_tokens <= 0))
            raise InputError(f"{self.source}: turn {where + 1} has an empty prompt; leave it out")
        if not (self.hit_tokens < self.prompt_tokens).any():
            raise InputError(
                f"{self.source}: no turn has miss tokens, so there is nothing to prefill; every real "
                f"request appends at least one token"
            )

    @property
    def turns(self) -> int:
        """Number of requests, those of sub-agents included."""
        return int(self.prompt_tokens.size)

    @property
    def session_count(self) -> int:
        """Number of sessions."""
        return int(self.start_s.size)

    @cached_property
    def miss_tokens(self) -> FloatArray:
        """Prompt tokens that prefill computes, shape (turns,)."""
        return self.prompt_tokens - self.hit_tokens

    @cached_property
    def token_sums(self) -> tuple[float, float, float]:
        """Hit, miss and output tokens of all turns together."""
        columns = (self.hit_tokens, self.miss_tokens, self.output_tokens)
        hit, miss, output = (float(column.sum()) for column in columns)
        return hit, miss, output

    @cached_property
    def sub_agent_turns(self) -> int:
        """Number of requests made by nested sub-agents."""
        return int(np.count_nonzero(self.agent))

    @cached_property
    def sub_agents(self) -> int:
        """Number of nested sub-agents, all sessions together."""
        if not self.agent.size:
            return 0
        session = np.repeat(np.arange(self.session_count), np.diff(self.offsets))
        nested = self.agent > 0
        pairs = np.stack((session[nested], self.agent[nested]), axis=1)
        return len(np.unique(pairs, axis=0))

    @property
    def hit_rate(self) -> float:
        """Hit tokens over prompt tokens, all turns together."""
        return float(self.hit_tokens.sum() / self.prompt_tokens.sum())

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean prompt of a turn."""
        return float(self.prompt_tokens.mean())

    @property
    def mean_output_tokens(self) -> float:
        """Mean generated tokens of a turn."""
        return float(self.output_tokens.mean())

    def sessions(self) -> Iterator[Session]:
        """Yield each session as objects, for code that reads better turn by turn."""
        for i in range(self.session_count):
            rows = range(int(self.offsets[i]), int(self.offsets[i + 1]))
            turns = tuple(
                Turn(
                    int(self.prompt_tokens[t]),
                    int(self.hit_tokens[t]),
                    int(self.output_tokens[t]),
                    float(self.think_time_s[t]),
                )
                for t in rows
            )
            yield Session(f"{self.source}#{i}", turns, float(self.start_s[i]))


def from_moments(hit_tokens: float, miss_tokens: float, output_tokens: float) -> Workload:
    """Return the workload whose every turn is the mean turn. Raises InputError as Workload does."""
    return Workload(
        prompt_tokens=np.array([hit_tokens + miss_tokens]),
        hit_tokens=np.array([hit_tokens], dtype=float),
        output_tokens=np.array([output_tokens], dtype=float),
        think_time_s=np.zeros(1),
        start_s=np.zeros(1),
        offsets=np.array([0, 1]),
        source="workload.moments",
    )


def scaled(
    workload: Workload,
    *,
    context: float = 1.0,
    append: float = 1.0,
    generate: float = 1.0,
    hit_rate: float | None = None,
) -> Workload:
    """Return the same turns with other lengths: what if contexts were half as long?

    Hit tokens are multiplied by ``context``, miss tokens by ``append``, output tokens by ``generate``.
    ``hit_rate`` (of all turns together, 0 to below 1) then moves tokens between hit and miss while
    prompts stay as long: fewer hits in proportion, or fewer misses. Counts of blocks are dropped.
    Raises InputError for factors that leave nothing to prefill, and for a hit rate above 0 where
    there is no hit to start from.
    """
    for name, factor in (("context", context), ("append", append), ("generate", generate)):
        if not (np.isfinite(factor) and factor >= 0):
            raise InputError(f"scale.{name} is {factor:g}; it must be a number of 0 or more")
    hit, miss = workload.hit_tokens * context, workload.miss_tokens * append
    if hit_rate is not None:
        hit, miss = _with_hit_rate(hit, miss, hit_rate)
    return replace(
        workload,
        prompt_tokens=hit + miss,
        hit_tokens=hit,
        output_tokens=workload.output_tokens * generate,
        source=f"{workload.source}, scaled",
        hit_blocks=0,
        prompt_blocks=0,
    )


def _with_hit_rate(hit: FloatArray, miss: FloatArray, rate: float) -> tuple[FloatArray, FloatArray]:
    if not 0.0 <= rate < 1.0:
        raise InputError(f"scale.hit_rate is {rate:g}; it must be from 0 to below 1")
    prompt = hit + miss
    now = float(hit.sum() / prompt.sum())
    if rate <= now:
        kept = hit * (rate / now) if now else hit
        return kept, prompt - kept
    if now == 0.0:
        raise InputError(
            f"scale.hit_rate is {rate:g}, but no turn of this workload hits anything; "
            f"which tokens would hit is not known, so leave it out"
        )
    left = miss * ((1.0 - rate) / (1.0 - now))
    return prompt - left, left


def from_sessions(sessions: list[Session], source: str = "given") -> Workload:
    """Gather session objects into columns. Raises InputError as Workload does."""
    turns = [turn for session in sessions for turn in session.turns]
    lengths = [len(session.turns) for session in sessions]
    return Workload(
        prompt_tokens=np.array([turn.prompt_tokens for turn in turns], dtype=float),
        hit_tokens=np.array([turn.hit_tokens for turn in turns], dtype=float),
        output_tokens=np.array([turn.output_tokens for turn in turns], dtype=float),
        think_time_s=np.array([turn.think_time_s for turn in turns], dtype=float),
        start_s=np.array([session.start_s for session in sessions], dtype=float),
        offsets=np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64),
        source=source,
    )
