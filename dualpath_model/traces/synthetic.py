"""Agent trajectories made to the means of a table: the paper's Table 2 and what you make of it.

Table 2 states five means, and they do not multiply: 157 turns of 429 + 176 tokens are 95.0K, the
mean total is 56.0K. They fit if each is a mean over trajectories of the trajectory's own mean
(paper.md section 7, an inference and not the paper's word):

- A trajectory's first prompt is about 2 x context - total, and it grows by about total - first,
  whatever its number of turns. So short trajectories have long appends, and the append *pooled over
  turns* is about half of the table's (:func:`trajectory_means` shows both).
- Then turns x (append + generate) / growth = E[turns] E[1/turns], which a lognormal number of turns
  meets with sigma = sqrt(ln of it), about 0.83 in all three rows.

The number of turns is drawn from equally likely strata and its two parameters are solved on the
sample itself, so that every seed has the means and the seeds differ in everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from statistics import NormalDist

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.workload import FloatArray, IntArray, Workload

_FEWEST_TURNS = 2
# below, integer appends and generations of one token each would no longer follow the means
_LEAST_GROWTH_A_TURN = 4.0
# about 80 bytes each while they are made
_MOST_TURNS_IN_ALL = 200_000_000


@dataclass(frozen=True)
class SyntheticSpec:
    """What to generate: means over trajectories, and how much single values differ from them.

    ``turns``: mean turns. ``append_tokens``, ``generate_tokens``: mean over trajectories of the
    trajectory's mean append (turns after the first) and output. ``total_tokens``: mean context at
    the end, the last output included. ``context_tokens``: mean over trajectories of the mean
    prompt. ``max_len_tokens``: longest context allowed.

    ``turns_sigma``: sigma of the lognormal number of turns; None solves it so that the append and
    generate means come out, a given one leaves them to follow from the growth. ``growth_spread``,
    ``first_prompt_spread``: trajectories differ uniformly by up to this fraction.
    ``append_variation``, ``generate_variation``: standard deviation over mean of the turns within a
    trajectory (lognormal; 0 makes them equal; the recorded sessions in agentic_coding have about 2
    and 1.2). ``block_tokens``: hits are whole blocks of it.

    Raises InputError if a value is out of range or the means contradict each other.
    """

    turns: float
    append_tokens: float
    generate_tokens: float
    total_tokens: float
    context_tokens: float
    sessions: int = 500
    seed: int = 0
    turns_sigma: float | None = None
    max_len_tokens: int = 2**62
    growth_spread: float = 0.05
    first_prompt_spread: float = 0.05
    append_variation: float = 1.0
    generate_variation: float = 1.0
    block_tokens: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot be generated."""
        least = {"turns": _FEWEST_TURNS, "seed": 0} | dict.fromkeys(_AT_MOST, 0)
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "turns_sigma" and value is None:
                continue
            whole = entry.name in _WHOLE
            allowed = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            lowest = least.get(entry.name, 1)
            good = isinstance(value, allowed) and not isinstance(value, bool)
            if not (good and math.isfinite(value) and value >= lowest):
                kind = "a whole number" if whole else "a finite number"
                raise InputError(
                    f"synthetic.{entry.name} is {value!r}; it must be {kind}, {lowest} or more"
                )
        for name, most in _AT_MOST.items():
            if (getattr(self, name) or 0) > most:
                raise InputError(
                    f"synthetic.{name} is {getattr(self, name)!r}; it must be between 0 and {most}"
                )
        self._check_tokens()

    def _check_tokens(self) -> None:
        if not self.total_tokens / 2 + 1 <= self.context_tokens < self.total_tokens:
            raise InputError(
                f"synthetic.context_tokens is {self.context_tokens:g}; it must lie between half of "
                f"total_tokens ({self.total_tokens:g}) and all of it: a context grows evenly"
            )
        longest = self.first_prompt * (1 + self.first_prompt_spread)
        longest += self.growth * (1 + self.growth_spread)
        if longest > self.max_len_tokens:
            raise InputError(
                f"synthetic.max_len_tokens is {self.max_len_tokens}, but total_tokens with its "
                f"spreads reaches {longest:.0f}; lower growth_spread, first_prompt_spread or "
                f"total_tokens"
            )
        if self.turns > self._most_turns:
            raise InputError(
                f"synthetic.turns is {self.turns:g}, too many for a growth of "
                f"{self.growth:.0f} tokens; it must be {self._most_turns:g} or less"
            )
        if self.sessions * self.turns > _MOST_TURNS_IN_ALL:
            raise InputError(
                f"synthetic.sessions is {self.sessions} of {self.turns:g} turns; all together must "
                f"have {_MOST_TURNS_IN_ALL:,} turns or less to fit into memory"
            )
        if self.turns_sigma is None and self._turns_times_inverse < 0.98:
            raise InputError(
                f"synthetic.append_tokens and generate_tokens are {self.append_tokens:g} and "
                f"{self.generate_tokens:g}; over {self.turns:g} turns they must add up to the "
                f"growth of {self.growth:.0f}, 2 x (total - context), or more: "
                f"raise them or lower total_tokens"
            )

    @property
    def first_prompt(self) -> float:
        """Mean first prompt in tokens, 2 x context - total."""
        return 2 * self.context_tokens - self.total_tokens

    @property
    def growth(self) -> float:
        """Mean tokens by which a trajectory grows, total - first prompt."""
        return self.total_tokens - self.first_prompt

    @property
    def sigma(self) -> float:
        """Sigma of the lognormal number of turns: the given one, or the identity's of section 7."""
        if self.turns_sigma is not None:
            return self.turns_sigma
        return math.sqrt(math.log(max(1.0, self._turns_times_inverse)))

    @property
    def _turns_times_inverse(self) -> float:
        return self.turns * (self.append_tokens + self.generate_tokens) / self.growth

    @property
    def _most_turns(self) -> float:
        return max(2.0, self.growth * (1 - self.growth_spread) // _LEAST_GROWTH_A_TURN)


_AT_MOST = {
    "turns_sigma": 10,
    "growth_spread": 0.9,
    "first_prompt_spread": 0.9,
    "append_variation": 100,
    "generate_variation": 100,
}
_WHOLE = ("sessions", "seed", "max_len_tokens", "block_tokens")

# Table 2 of the paper (arXiv 2602.21548): turns, append, generate, total, context, by MaxLen
TABLE_2: dict[str, SyntheticSpec] = {
    "32K": SyntheticSpec(60, 608, 148, 28_639, 17_183, max_len_tokens=32_768),
    "48K": SyntheticSpec(106, 474, 172, 42_607, 25_120, max_len_tokens=49_152),
    "64K": SyntheticSpec(157, 429, 176, 55_958, 32_721, max_len_tokens=65_536),
}


def generate(spec: SyntheticSpec) -> Workload:
    """Return ``spec.sessions`` trajectories, all starting at 0 s without think time.

    A turn's prompt is the context before it (previous prompt and output) and its append; it hits
    all of that context, cut down to whole blocks, and the first turn hits nothing. The same spec
    gives the same workload on any machine with the same numpy.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(spec.seed).spawn(5)]
    turn_rng, growth_rng, first_rng, append_rng, generate_rng = streams
    growth = _spread(spec.growth, spec.growth_spread, spec.sessions, growth_rng)
    first = _spread(spec.first_prompt, spec.first_prompt_spread, spec.sessions, first_rng)
    first = np.maximum(1.0, np.rint(first))
    growth = np.minimum(np.rint(growth), spec.max_len_tokens - first)
    turns = _turn_counts(spec, growth, turn_rng)

    # all but the last output and the first prompt are appends and outputs in the table's proportion
    share = spec.generate_tokens / spec.append_tokens
    appended = np.rint((turns - 1) * growth / (turns * (1 + share) - 1))
    appended = np.clip(appended, turns - 1, np.maximum(turns - 1, growth - turns))
    generated = np.maximum(turns, growth - appended)
    draw = partial(_apportion, spec.sessions)
    append_after_first = draw(appended, turns - 1, spec.append_variation, append_rng)
    output = draw(generated, turns, spec.generate_variation, generate_rng)

    offsets = np.concatenate(([0], np.cumsum(turns))).astype(np.int64)
    append = np.zeros(offsets[-1])
    later = np.ones(offsets[-1], dtype=bool)
    later[offsets[:-1]] = False
    append[later] = append_after_first
    grown = np.cumsum(append + output)
    before = np.concatenate(([0.0], grown[offsets[1:-1] - 1]))
    prompt = grown - output
    prompt += np.repeat(first - before, turns)
    hit = (prompt - append) // spec.block_tokens * spec.block_tokens
    hit[~later] = 0.0
    return Workload(
        prompt_tokens=prompt,
        hit_tokens=hit,
        output_tokens=output,
        think_time_s=np.zeros_like(prompt),
        start_s=np.zeros(spec.sessions),
        offsets=offsets,
        source=f"synthetic (seed {spec.seed})",
        hit_blocks=int(hit.sum()) // spec.block_tokens,
        prompt_blocks=int(np.ceil(prompt / spec.block_tokens).sum()),
    )


@dataclass(frozen=True)
class TrajectoryMeans:
    """A workload measured as Table 2 is understood, in tokens but for ``turns``.

    ``turns`` to ``context_tokens`` are means over trajectories, as in SyntheticSpec; the two pooled
    ones are means over all turns (all turns but the first of each trajectory for the append).
    """

    turns: float
    append_tokens: float
    generate_tokens: float
    total_tokens: float
    context_tokens: float
    pooled_append_tokens: float
    pooled_generate_tokens: float


def trajectory_means(workload: Workload) -> TrajectoryMeans:
    """Measure a workload. A trajectory of one turn has no append and counts elsewhere only.

    An append is prompt - (previous prompt + previous output), negative where a context shrinks.
    """
    offsets, prompt, output = workload.offsets, workload.prompt_tokens, workload.output_tokens
    turns = np.diff(offsets)
    starts, ends = offsets[:-1], offsets[1:] - 1
    end_context = prompt + output
    sum_output = np.add.reduceat(output, starts)
    sum_append = end_context[ends] - prompt[starts] - sum_output
    several = turns > 1
    appends = np.maximum(1, turns - 1)
    return TrajectoryMeans(
        turns=float(turns.mean()),
        append_tokens=float((sum_append / appends)[several].mean()) if several.any() else 0.0,
        generate_tokens=float((sum_output / turns).mean()),
        total_tokens=float(end_context[ends].mean()),
        context_tokens=float((np.add.reduceat(prompt, starts) / turns).mean()),
        pooled_append_tokens=float(sum_append.sum() / max(1, int((turns - 1).sum()))),
        pooled_generate_tokens=float(output.mean()),
    )


def _spread(mean: float, spread: float, count: int, rng: np.random.Generator) -> FloatArray:
    """Return values evenly spread over mean x (1 +- spread) in random order."""
    middle = (np.arange(count) + 0.5) / count
    return mean * (1 + spread * (2 * rng.permutation(middle) - 1))


def _turn_counts(spec: SyntheticSpec, growth: FloatArray, rng: np.random.Generator) -> IntArray:
    """Draw the number of turns of each trajectory and fit it to the means of this very sample."""
    strata = (np.arange(spec.sessions) + rng.random(spec.sessions)) / spec.sessions
    quantile = NormalDist().inv_cdf
    normal = np.array([quantile(probability) for probability in np.clip(strata, 1e-15, 1 - 1e-15)])
    rng.shuffle(normal)
    share = spec.generate_tokens / spec.append_tokens

    def counts(sigma: float) -> FloatArray:
        shape: FloatArray = np.exp(sigma * normal)
        turns = shape
        scale = spec.turns / shape.mean()
        for _ in range(50):  # clipping moves the mean, so the scale moves against it
            turns = (scale * shape).clip(_FEWEST_TURNS, spec._most_turns)
            off = spec.turns / turns.mean()
            scale *= off
            if abs(off - 1) < 1e-6:
                break
        return turns

    def mean_append(sigma: float) -> float:
        return float((growth / (counts(sigma) * (1 + share) - 1)).mean())

    sigma = spec.sigma
    if spec.turns_sigma is None and spec.sessions > 1:
        # the append rises with sigma, since E[1/turns] does; a few sessions may not reach it
        low, high = 0.0, 2 * sigma + 0.1
        while high - low > 1e-6:
            sigma = (low + high) / 2
            low, high = (sigma, high) if mean_append(sigma) < spec.append_tokens else (low, sigma)
    return np.rint(counts(sigma)).astype(np.int64)


def _apportion(
    sessions: int, totals: FloatArray, counts: IntArray, variation: float, rng: np.random.Generator
) -> FloatArray:
    """Split each session's total into ``counts`` whole numbers of at least 1 that differ randomly.

    The parts follow lognormal weights whose standard deviation over mean is ``variation``; rounding
    the running sum, not the parts, keeps the totals exact.
    """
    ends = np.cumsum(counts)
    sigma = math.sqrt(math.log1p(variation**2))
    weight = np.exp(sigma * rng.standard_normal(int(ends[-1])))
    running = np.cumsum(weight)
    running -= np.repeat(np.concatenate(([0.0], running[ends[:-1] - 1])), counts)
    spare = totals - counts
    running *= np.repeat(spare / running[ends - 1], counts)
    np.rint(running, out=running)
    running[ends - 1] = spare
    parts = np.diff(running, prepend=0.0)
    starts = ends[:-1]
    parts[starts] = running[starts]
    return parts + 1.0
