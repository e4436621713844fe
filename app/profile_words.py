"""Numbers of a profile as people read them: values with units, intervals, a fit's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from dualpath_model.profile import FIGURES, Estimate
from dualpath_model.quantities import Dimension, show


def quantity(value: float, unit: str) -> str:
    """Return a value with its unit: B, B/s, s, FLOP or FLOP/s; a share ("") in percent."""
    if unit == "":
        return f"{100 * value:,.0f} %" if value >= 1 else f"{100 * value:.3g} %"
    if unit == "FLOP":
        return show(value, Dimension.FLOP_PER_S).removesuffix("/s")
    return show(value, Dimension(unit))


def interval(found: Estimate, unit: str) -> str:
    """Return the 95 % interval: "± 4 %" where it is narrow, else from where to where.

    One run, such as another tool's, shows no spread and has an interval of no width.
    """
    if found.low == found.high:
        return "not known"
    wide = max(found.high / found.value, found.value / found.low) - 1
    if wide <= 0.1:
        return f"± {100 * wide:.2g} %"
    return _ends(quantity(found.low, unit), quantity(found.high, unit))


def least_certain(figures: Mapping[str, Estimate]) -> str:
    """Say which figure has the widest interval, and of how many there is none."""
    known = {name: found for name, found in figures.items() if found.high > found.low}
    if not known:
        return "no interval is known"
    widest = max(known, key=lambda name: known[name].high / known[name].low)
    text = f"least certain: {widest}, {interval(known[widest], FIGURES[widest].unit)}"
    unknown = len(figures) - len(known)
    return f"{text}; of {unknown} no interval is known" if unknown else text


def parameter(name: str, value: float) -> str:
    """Return a fit's parameter; its name says the unit."""
    for ending, unit in (("bytes_per_s", "B/s"), ("flop_per_s", "FLOP/s"), ("_s", "s")):
        if f"_{name}".endswith(ending):
            return quantity(value, unit)
    return quantity(value, "s") if name == "seconds" else f"{value:.3g}"


def parameter_interval(name: str, found: Estimate) -> str:
    """Return the 95 % interval of a fit's parameter, from where to where."""
    return _ends(parameter(name, found.low), parameter(name, found.high))


def _ends(low: str, high: str) -> str:
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if unit and high.endswith(f" {unit}") else f"{low} to {high}"


def tick(value: float, unit: str) -> str:
    """Return what stands at a tick of an axis."""
    return f"{value:g}{unit}" if unit in ("", "x") else quantity(value, unit)
