"""A day to drive a cluster through: recorded sessions, each with its start.

A *part* of a day is a trace whose sessions start between two times. Where the recording has times of
arrival they are kept; where it has none (the coding-agent format has no clock that sessions share) the
starts are drawn uniformly over a stretch that the day's file says, which is a choice of its author and
no recording. ``copies`` superposes that many populations of the same sessions, each session of a copy
shifted at random, because one recording is too little load for a cluster. Think times are recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.quantities import Duration, Seconds
from dualpath_model.traces import load_workload
from dualpath_model.workload import FloatArray, IntArray, Workload

_MOST_COPIES = 10_000
_SHIFT_S = 60.0
"""Within so many seconds each session of a further copy of a recording with times is shifted."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PartSpec(_Spec):
    """Sessions of one trace (``trace``: path, relative to the file).

    ``begin``: added to the recorded starts, or where the stretch begins over which starts are drawn.
    ``over``: its length; of a recording with times, how far copies are shifted. ``longest_prompt``:
    sessions with a longer one are left out, because no engine has room for it. ``half``: only the half
    of the sessions with the most ("append") or the fewest ("output") appended tokens for each
    generated one.
    """

    trace: str
    begin: Duration | None = None
    over: Seconds | None = None
    copies: Annotated[float, Field(gt=0.0, le=_MOST_COPIES, strict=True)] = 1.0
    longest_prompt: Annotated[int, Field(ge=1, strict=True)] | None = None
    half: Literal["append", "output"] | None = None


class DaySpec(_Spec):
    """A day file."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    parts: Annotated[list[PartSpec], Field(min_length=1, max_length=20)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)] = 0


@dataclass(frozen=True)
class Part:
    """A trace in a day. Seconds; ``timed``: its starts are recorded."""

    workload: Workload
    begin_s: float
    over_s: float
    copies: float
    left_out: int = 0
    """Sessions whose prompts are too long."""

    @property
    def timed(self) -> bool:
        """Whether the recording has times of arrival."""
        return bool(np.ptp(self.workload.start_s) > 0)


@dataclass(frozen=True)
class Day:
    """Recorded sessions and when they start."""

    name: str
    parts: tuple[Part, ...]
    seed: int = 0

    def workload(self, load: float = 1.0) -> Workload:
        """Return the sessions of the day, sorted by start, with ``load`` times the copies.

        A higher load has all sessions of a lower one, at the same times, and more. Raises InputError
        for a load that leaves no session.
        """
        if not (math.isfinite(load) and load > 0):
            raise InputError(f"load is {load:g}; it must be a number above 0")
        found = [
            _instances(part, load, np.random.default_rng((self.seed, number)))
            for number, part in enumerate(self.parts)
        ]
        return _gather([part.workload for part in self.parts], found, f"{self.name}, load {load:g}")


def read_day(path: Path, *, rate_aps: float | None = None, copies: float | None = None) -> Day:
    """Read a day: a YAML file of parts, or a trace (file or folder) that is the whole day.

    ``rate_aps``: sessions/s of a trace without times: its starts are drawn over as long as that takes.
    ``copies``: populations of a trace at once, 1 if None.
    Raises InputError for a bad file, for a trace that has no times where no rate is given, for a rate of
    one whose times are recorded, and for a rate or copies of a day file, which says both itself.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        for name, value in (("--rate", rate_aps), ("--copies", copies)):
            if value is not None:
                raise InputError(
                    f"{path}: {name} is {value:g}, but a day file says itself when the sessions of each "
                    f"part start and in how many copies; change the file, or use --load for more of all"
                )
        return _read_file(path)
    copies = 1.0 if copies is None else copies
    if not 0.0 < copies <= _MOST_COPIES:
        raise InputError(f"copies is {copies:g}; it must be above 0 and at most {_MOST_COPIES:,}")
    workload = load_workload(path)
    begin, over = 0.0, _SHIFT_S
    if np.ptp(workload.start_s) > 0:
        if rate_aps is not None:
            raise InputError(
                f"{path}: --rate is {rate_aps:g} sessions/s, but its times of arrival are recorded and "
                f"a day keeps them; use --load or --copies for more sessions"
            )
    else:
        if rate_aps is None:
            raise InputError(
                f"{path}: its sessions have no times of arrival; give --rate in sessions/s, or a day "
                f"file (.yaml) that says over which time each trace's sessions start"
            )
        if not (math.isfinite(rate_aps) and rate_aps > 0):
            raise InputError(f"rate is {rate_aps} sessions/s; it must be above 0 and finite")
        over = workload.session_count * copies / rate_aps
    return Day(path.name, (Part(workload, begin, over, copies),))


def _read_file(path: Path) -> Day:
    document = yaml_lines.read(path)
    try:
        spec = DaySpec.model_validate(document.data)
    except ValidationError as error:
        raise yaml_lines.explain(error, document, DaySpec) from None
    parts = []
    for number, part in enumerate(spec.parts):
        whole = load_workload(path.parent / part.trace)
        line = document.lines.get(("parts", number), 1)
        where = f"{path}:{line}: parts.{number}"
        workload = whole
        if part.longest_prompt is not None:
            workload = _shorter(whole, part.longest_prompt, where)
        left_out = whole.session_count - workload.session_count
        if part.half is not None:
            workload = half_of(workload, part.half)
        timed = bool(np.ptp(workload.start_s) > 0)
        if part.over is None and not timed:
            raise InputError(
                f"{where}: {part.trace} has no times of arrival; give `over`, the "
                f"time over which its sessions start"
            )
        over = _SHIFT_S if part.over is None else part.over
        parts.append(Part(workload, part.begin or 0.0, over, part.copies, left_out))
    return Day(spec.name, tuple(parts), spec.seed)


def half_of(workload: Workload, which: Literal["append", "output"]) -> Workload:
    """Return the half of the sessions that append most, or least, for each token that they generate."""
    firsts = workload.offsets[:-1]
    appended = np.add.reduceat(workload.miss_tokens, firsts)
    generated = np.add.reduceat(workload.output_tokens, firsts)
    order = np.argsort(-appended / np.maximum(generated, 1.0), kind="stable")
    middle = -(-len(order) // 2)
    kept = np.sort(order[:middle] if which == "append" else order[-middle:])
    return _gather([workload], [(kept, workload.start_s[kept])], workload.source)


def _shorter(workload: Workload, longest: int, where: str) -> Workload:
    """Return the sessions without a prompt above ``longest`` tokens. Raises InputError of none."""
    most = np.maximum.reduceat(workload.prompt_tokens, workload.offsets[:-1])
    kept = np.flatnonzero(most <= longest)
    if not kept.size:
        raise InputError(
            f"{where}: longest_prompt is {longest} tokens, but every session has a longer prompt; give "
            f"at least {most.min():.0f}"
        )
    return _gather([workload], [(kept, workload.start_s[kept])], workload.source)


def _instances(part: Part, load: float, random: np.random.Generator) -> tuple[IntArray, np.ndarray]:
    """Return the sessions that a part plays and their starts.

    Copies come one after the other, each in a random order, so that more load only adds sessions.
    """
    sessions = part.workload.session_count
    count = round(part.copies * load * sessions)
    chosen, starts = [], []
    for copy in range(-(-count // sessions)):
        order = random.permutation(sessions)
        drawn = part.begin_s + part.over_s * random.random(sessions)
        if part.timed:
            shift = drawn - part.begin_s if copy else np.zeros(sessions)
            drawn = part.begin_s + part.workload.start_s[order] + shift
        chosen.append(order)
        starts.append(drawn)
    if not chosen:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    return np.concatenate(chosen)[:count].astype(np.int64), np.concatenate(starts)[:count]


def _gather(
    workloads: list[Workload], instances: list[tuple[IntArray, np.ndarray]], source: str
) -> Workload:
    rows: list[np.ndarray] = []
    starts = np.concatenate([start for _, start in instances])
    if not starts.size:
        raise InputError(f"{source}: no session is left; raise the load or the copies")
    lengths: list[int] = []
    first = 0
    for workload, (sessions, _) in zip(workloads, instances, strict=True):
        for session in sessions:
            low, high = int(workload.offsets[session]), int(workload.offsets[session + 1])
            rows.append(np.arange(first + low, first + high))
            lengths.append(high - low)
        first += workload.turns
    order = np.argsort(starts, kind="stable")
    picked = np.concatenate([rows[i] for i in order])
    sizes = np.array(lengths, dtype=np.int64)[order]

    def column(name: str) -> FloatArray:
        whole: FloatArray = np.concatenate([getattr(workload, name) for workload in workloads])
        found: FloatArray = whole[picked]
        return found

    return Workload(
        prompt_tokens=column("prompt_tokens"),
        hit_tokens=column("hit_tokens"),
        output_tokens=column("output_tokens"),
        think_time_s=column("think_time_s"),
        start_s=starts[order],
        offsets=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        source=source,
    )
