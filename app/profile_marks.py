"""What a panel is: dots, lines and axes as plain numbers, for plotly and matplotlib alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from app import plan_view as view
from app.profile_curves import Band, Floats
from dualpath_model.profile import PartName

Bools = npt.NDArray[np.bool_]

COLOURS = (view.DUAL_PATH, view.FREE, view.COMPUTE, view.DECODE_SIDE, "#56B4E9", "#000000")
FAR = view.SATURATED
"""The colour of outliers."""
_WIDE = 20.0  # values that differ by more than this factor get a log axis
_TIMES = (1, 10, 0.1, 100, 0.01, 2, 0.5, 3, 0.3, 5, 0.2, 20, 0.05, 1.5, 0.7, 1.2, 0.8)
"""Ticks of an axis of "times some value", those first that it should have."""
_APART = 0.14  # of such an axis: on a narrow page ticks that are nearer run into each other


@dataclass(frozen=True)
class Dots:
    """Points of one kind. ``low`` and ``high``: ends of intervals, along x where there are rows."""

    name: str
    x: Floats
    y: Floats
    colour: str
    far: Bools | None = None
    hover: Sequence[str] = ()
    symbol: str = "circle"
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Line:
    """A fitted curve over x."""

    name: str
    x: Floats
    band: Band
    colour: str


@dataclass(frozen=True)
class Axis:
    """``unit`` "x": times some value. ``ends`` and ``ticks`` are in that unit."""

    title: str
    unit: str
    log: bool
    ends: tuple[float, float]
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A picture of one thing. ``rows``: names of the places y = 0, 1, ... from the top.

    ``legend``: the names of dots and lines say more than the title and the rows.
    """

    kind: str
    part: PartName | None
    unit: str
    title: str
    x: Axis
    y: Axis
    dots: list[Dots]
    lines: list[Line] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    legend: bool = False


def axis(title: str, unit: str, values: Floats, *, log: bool | None = None) -> Axis:
    """Return an axis that holds ``values`` with some room; without ``log`` their spread decides."""
    low, high = float(values.min()), float(values.max())
    if unit == "x":
        low, high = min(low, 1.0), max(high, 1.0)
        log = high / low > 2 if log is None else log
    if log is None:
        log = high / low > _WIDE
    if log:
        room = max(1.15, (high / low) ** 0.06)
        ends = (low / room, high * room)
        ticks = _times_ticks(*ends) if unit == "x" else _log_ticks(*ends)
        return Axis(title, unit, log, ends, ticks)
    if unit == "x":
        room = 0.08 * max(high - low, 0.02)
        ends = (low - room, high + room)
    else:
        ends = (0.0, 1.1 * high)
    return Axis(title, unit, log, ends, _even_ticks(*ends))


def row_axis(rows: Sequence[object]) -> Axis:
    """Return the axis of named rows, the first at the top."""
    return Axis("", "", log=False, ends=(len(rows) - 0.5, -0.5))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers between the ends of a log axis, few enough to be read."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 8)
    steps = (1, 2, 5) if high / low < 1e2 else (1,)
    found = (step * 10.0**power for power in range(first, last + 1, every) for step in steps)
    return tuple(at for at in found if low <= at <= high)


def _times_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return what tells widths on a log axis around 1: 0.5, 0.7, 1, 1.5 and 2 of 0.5 to 2."""
    if high / low > 1e3:
        return _log_ticks(low, high)
    chosen: list[float] = []
    for at in _TIMES:
        near = (abs(math.log(at / other)) < _APART * math.log(high / low) for other in chosen)
        if low <= at <= high and not any(near):
            chosen.append(at)
    # So narrow that it is as good as linear.
    return tuple(sorted(chosen)) if len(chosen) > 2 else _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return a few round numbers between the ends of an axis."""
    rough = (high - low) / 5
    ten = 10.0 ** math.floor(math.log10(rough))
    step = next(ten * times for times in (1, 2, 5, 10) if ten * times >= rough)
    return tuple(step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1))
