"""Fits as curves over one number: the formulas of :mod:`calibration.fit`, evaluated with their bands."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualpath_model.profile import Fit

Floats = npt.NDArray[np.float64]

_LAWS = {
    "typical": r"(\w+) = median of (amount / )?seconds",
    "size": r"seconds = (\w+) \+ amount / (\w+)",
    "depth": r"amount / seconds = (\w+) \* q / \(q \+ half\), q = (\w+); (\w+): at the largest q",
    "roofline": r"seconds = fixed_s \+ max\((\w+) / bytes_per_s, amount / flop_per_s\)",
}


class Band(NamedTuple):
    """A fitted curve: ``value`` with both ends of its band, all of one shape."""

    value: Floats
    low: Floats
    high: Floats


def law(fit: Fit) -> tuple[str, ...]:
    """Return the kind of a fit's model and the names in it; ("other",) for what is not drawn over x."""
    for kind, pattern in _LAWS.items():
        match = re.fullmatch(pattern, fit.model)
        if match:
            names = tuple(name or "" for name in match.groups())
            needed = {
                "typical": names[:1],
                "size": names,
                "depth": (names[0], "half", *names[2:]),
                "roofline": ("bytes_per_s", "flop_per_s"),
            }[kind]
            return (kind, *names) if set(needed) <= set(fit.parameters) else ("other",)
    return ("other",)


def curve(fit: Fit, x: Floats, *, largest: float | None = None) -> Band | None:
    """Evaluate a fit at ``x``; None for a model that is no curve over one number.

    By the model (formulas of :mod:`calibration.fit`): seconds at amounts ``x`` for latency and rate;
    amount per second at depths ``x`` for the saturating curve, which goes through what it reaches at
    the ``largest`` depth where that is given; FLOP/s at ``x`` FLOP per byte for a roofline, without
    its fixed time; the same value everywhere for a median. The band takes all parameters at their
    slow ends together, and at their fast ends, so it is wider than 95 %.
    """
    kind, *names = law(fit)
    found = fit.parameters
    if kind == "typical":
        middle = found[names[0]]
        return Band(*(np.full_like(x, end) for end in (middle.value, middle.low, middle.high)))
    if kind == "size":
        latency, rate = (found[name] for name in names)
        return Band(
            latency.value + x / rate.value,
            latency.low + x / rate.high,
            latency.high + x / rate.low,
        )
    if kind == "depth":
        half = found["half"]

        def shape(at: float) -> Floats:
            part: Floats = x / (x + at)
            return part if largest is None else part * (largest + at) / largest

        top = found[names[0] if largest is None else names[2]]
        return Band(
            top.value * shape(half.value), top.low * shape(half.high), top.high * shape(half.low)
        )
    if kind == "roofline":
        moved, flop = found["bytes_per_s"], found["flop_per_s"]
        return Band(
            np.minimum(flop.value, x * moved.value),
            np.minimum(flop.low, x * moved.low),
            np.minimum(flop.high, x * moved.high),
        )
    return None
