"""Profiles as wholes: from an imported output, joined from parts, compared with each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from calibration.rooms import Measured
from calibration.run import default_name, measured_part
from dualpath_model.errors import InputError
from dualpath_model.profile import (
    FIGURES,
    Estimate,
    Fit,
    Machine,
    Part,
    PartName,
    Profile,
)


def imported(
    name: PartName, found: Measured, *, host: str | None = None, title: str = ""
) -> Profile:
    """Return a tool's output as a profile of one part; ``host`` None: it ran on this machine."""
    part = measured_part(found, None if host is None else Machine(host=host))
    parts = {name: part}
    return Profile(name=title or default_name(parts), parts=parts)


def merge(profiles: Sequence[Profile], *, prefer: int | None = None, name: str = "") -> Profile:
    """Join profiles of which each has other parts, or other figures of the same part.

    ``prefer``: the one (by position) whose figures and settings stand where several have them; without
    it that is an error. A part that comes from several machines keeps the first one's, and says so.
    Raises InputError, one sentence.
    """
    if not profiles:
        raise InputError("no profile is given; give at least one")
    order = list(profiles)
    if prefer is not None:
        order.insert(0, order.pop(prefer))
    parts: dict[PartName, Part] = {}
    origin: dict[PartName, str] = {}
    for profile in order:
        for part_name, part in profile.parts.items():
            if part_name not in parts:
                parts[part_name], origin[part_name] = part, profile.name
                continue
            twice = sorted(set(part.figures) & set(parts[part_name].figures))
            if twice and prefer is None:
                raise InputError(
                    f"{twice[0]} is in both {origin[part_name]} and {profile.name}; say which one "
                    f"counts with --prefer, or leave one profile out"
                )
            parts[part_name] = _joined(parts[part_name], part)
    ordered = {part_name: parts[part_name] for part_name in PartName if part_name in parts}
    title = name or "+".join(dict.fromkeys(profile.name for profile in profiles))[:200]
    return Profile(name=title, parts=ordered)


def _joined(first: Part, second: Part) -> Part:
    """Return both as one part; what both have is the first one's, equal names get a number."""
    second = _renamed(second, {series.name for series in first.series})
    second = _with_fits_renamed(second, {fit.name for fit in first.fits})
    warnings = [*first.warnings, *second.warnings]
    if first.machine.host != second.machine.host:
        warnings.append(
            f"joined from two machines, {first.machine.host} and {second.machine.host}; this part names "
            f"the first"
        )
    here = {(fit.llm, fit.tensor) for fit in first.attention}
    more = [fit for fit in second.attention if (fit.llm, fit.tensor) not in here]
    return first.model_copy(
        update={
            "tools": {**second.tools, **first.tools},
            "settings": {**second.settings, **first.settings},
            "series": [*first.series, *second.series],
            "fits": [*first.fits, *second.fits],
            "figures": {**second.figures, **first.figures},
            "attention": [*first.attention, *more],
            "warnings": warnings,
        }
    )


def _renamed(part: Part, taken: Collection[str]) -> Part:
    names = {series.name: _free(series.name, taken) for series in part.series}
    return part.model_copy(
        update={
            "series": [s.model_copy(update={"name": names[s.name]}) for s in part.series],
            "fits": [
                fit.model_copy(update={"series": names.get(fit.series, fit.series)})
                for fit in part.fits
            ],
            "figures": {n: _from(e, names) for n, e in part.figures.items()},
        }
    )


def _with_fits_renamed(part: Part, taken: Collection[str]) -> Part:
    names = {fit.name: _free(fit.name, taken) for fit in part.fits}

    def fit_of(fit: Fit) -> Fit:
        return fit.model_copy(update={"name": names[fit.name]})

    return part.model_copy(
        update={
            "fits": [fit_of(fit) for fit in part.fits],
            "figures": {n: _from(e, names) for n, e in part.figures.items()},
        }
    )


def _from(found: Estimate, names: dict[str, str]) -> Estimate:
    return found.model_copy(update={"source": names.get(found.source, found.source)})


def _free(name: str, taken: Collection[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free = f"{name} ({number})"
        number += 1
    return free


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in two profiles. ``ratio`` is after over before with its 95 % interval;
    ``beyond_noise``: that interval does not hold 1. None: the figure is in one of both only.
    """

    figure: str
    unit: str
    before: Estimate | None
    after: Estimate | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    beyond_noise: bool | None


def compare(before: Profile, after: Profile) -> tuple[Change, ...]:
    """Return every figure of either profile, in the order of showing.

    The intervals are those of one calibration: a machine whose speed drifts from hour to hour changes
    beyond them.
    """
    old, new = before.figures, after.figures
    return tuple(
        _change(name, old.get(name), new.get(name))
        for name in FIGURES
        if name in old or name in new
    )


def _change(name: str, old: Estimate | None, new: Estimate | None) -> Change:
    unit = FIGURES[name].unit
    if old is None or new is None:
        return Change(name, unit, old, new, None, None, None, None)
    ratio = new.value / old.value
    # Independent errors: the distances of both ends from the value add as squares, in logs.
    down = math.hypot(math.log(new.value / new.low), math.log(old.high / old.value))
    up = math.hypot(math.log(new.high / new.value), math.log(old.value / old.low))
    low, high = ratio * math.exp(-down), ratio * math.exp(up)
    return Change(name, unit, old, new, ratio, low, high, not low <= 1.0 <= high)
