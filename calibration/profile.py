"""Profiles as wholes: from an imported output, joined from parts, compared with each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from calibration.fit import share
from calibration.importers import TOOLS
from calibration.rooms import Measured
from calibration.run import LONGEST_NAME, checked_name, default_name, measured_part
from dualpath_model.errors import InputError
from dualpath_model.profile import (
    FIGURES,
    Estimate,
    Fit,
    Machine,
    Part,
    PartName,
    Profile,
    Setting,
)

_COUNT: dict[PartName, tuple[str, ...]] = {
    PartName.GPU: (
        "device",
        "llm",
        "tensor",
        "kv_dtype",
        "compute_dtype",
        "layers_dtype",
        "layers_feed_forward",
        "layers_held_experts",
        "torch_threads",
    ),
    PartName.MEMORY: ("threads",),
    PartName.STORAGE: (
        *("folder", "file_system", "direct", "huge_pages", "block_bytes", "threads"),
        *("device", "directory", "filename", "bs", "iodepth", "numjobs", "ioengine"),  # fio's
    ),
    PartName.NETWORK: (
        *("peer", "streams", "congestion_control", "congestion_control_of_peer"),
        *("collective_backend", "nixl_backend"),
        *("remote", "protocol", "direction", "block_bytes"),  # iperf3's
        *("device", "connection", "tx_depth", "mtu", "link"),  # perftest's
        *("test", "ranks", "options"),  # that of nccl-tests
    ),
}
"""Settings without which a part's figures mean something else."""


def imported(
    name: PartName, found: Measured, *, host: str | None = None, title: str = ""
) -> Profile:
    """Return a tool's output as a profile of one part; ``host`` None: it ran on this machine.

    Raises InputError for a title that is too long.
    """
    part = measured_part(found, None if host is None else Machine(host=host))
    parts = {name: part}
    return Profile(name=checked_name(title) or default_name(parts), parts=parts)


def merge(
    profiles: Sequence[Profile],
    *,
    prefer: int | None = None,
    name: str = "",
    files: Sequence[str] = (),
) -> Profile:
    """Join profiles of which each has other parts, or other figures of the same part.

    ``prefer``: the one (by position) whose figures and settings stand where it and others have them; a
    figure that several have is an error otherwise. A part that several have all alike counts once. A
    part that comes from several machines keeps the first one's, and says so. ``files``: what messages
    call the profiles, where their names do not tell.

    Raises InputError, one sentence.
    """
    if not profiles:
        raise InputError("no profile is given; give at least one")
    called = files or [profile.name for profile in profiles]
    order = list(zip(profiles, called, strict=True))
    preferred: Collection[str] = ()
    if prefer is not None:
        order.insert(0, order.pop(prefer))
        preferred = order[0][0].figures
    parts: dict[PartName, Part] = {}
    owners: dict[str, str] = {}
    for profile, file in order:
        for part_name, part in profile.parts.items():
            have = parts.get(part_name)
            if part == have:
                continue
            twice = [n for n in FIGURES if n in part.figures and n in owners and n not in preferred]
            if twice:
                raise InputError(
                    f"{twice[0]} is in both {owners[twice[0]]} and {file}; leave one of them out, or "
                    f"say which one counts with --prefer of `dualpath calibrate merge`"
                )
            parts[part_name] = part if have is None else _joined(have, part)
            owners |= {figure: file for figure in part.figures if figure not in owners}
    ordered = {part_name: parts[part_name] for part_name in PartName if part_name in parts}
    joined_names = "+".join(dict.fromkeys(profile.name for profile in profiles))
    title = checked_name(name) or joined_names[:LONGEST_NAME]
    return Profile(name=title, parts=ordered)


def _joined(first: Part, second: Part) -> Part:
    """Return both as one part; what both have is the first one's, equal names get a number."""
    second = _renamed(second, first)
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


def _renamed(part: Part, first: Part) -> Part:
    """Return ``part`` with names of series and fits that ``first`` does not have; all sources follow."""
    series = _free_names([s.name for s in part.series], [s.name for s in first.series])
    fits = _free_names([f.name for f in part.fits], [f.name for f in first.fits])
    sources = {**series, **fits}  # a fit that is called like its series is the nearer source

    def moved(found: Estimate) -> Estimate:
        return found.model_copy(update={"source": sources.get(found.source, found.source)})

    def moved_fit(fit: Fit) -> Fit:
        return fit.model_copy(
            update={
                "name": fits[fit.name],
                "series": series.get(fit.series, fit.series),
                "parameters": {name: moved(found) for name, found in fit.parameters.items()},
            }
        )

    return part.model_copy(
        update={
            "series": [s.model_copy(update={"name": series[s.name]}) for s in part.series],
            "fits": [moved_fit(fit) for fit in part.fits],
            "figures": {name: moved(found) for name, found in part.figures.items()},
        }
    )


def _free_names(names: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Return for each of ``names`` itself, or, if it is taken, the first free one with a number."""
    used = {*names, *taken}
    found: dict[str, str] = {}
    for name in names:
        free, number = name, 2
        while name in taken and free in used:
            free, number = f"{name} ({number})", number + 1
        used.add(free)
        found[name] = free
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """One figure in two profiles. ``ratio`` is after over before with its 95 % interval;
    ``beyond_noise``: that interval does not hold 1. None: the figure is in one of both only; or,
    where there is a ratio, one of both is of a single run (low == high), whose spread is unknown.
    """

    figure: str
    unit: str
    before: Estimate | None
    after: Estimate | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    beyond_noise: bool | None


@dataclass(frozen=True, slots=True)
class Difference:
    """How a part that both profiles have was measured otherwise, so that its figures differ anyway.

    ``setting``: one of the part's settings, "tool", or host, cpu, cores or gpu of the machine.
    """

    part: PartName
    setting: str
    before: Setting
    after: Setting


def differences(before: Profile, after: Profile) -> tuple[Difference, ...]:
    """Return what was measured otherwise, of parts with a figure in both profiles.

    What either profile does not state is left out. Of two tools only the tools are named: they call
    their settings by other names.
    """
    return tuple(
        Difference(name, setting, old[setting], new[setting])
        for name in PartName
        if name in before.parts and name in after.parts
        if before.parts[name].figures.keys() & after.parts[name].figures.keys()
        for old, new in [(_stated(name, before.parts[name]), _stated(name, after.parts[name]))]
        for setting in old
        if setting in new and str(old[setting]) != str(new[setting])
        if old["tool"] == new["tool"] or setting not in _COUNT[name]
    )


def _stated(name: PartName, part: Part) -> dict[str, Setting]:
    """Return what a part says of where and how it was measured, in the order of showing."""
    machine = part.machine
    found: dict[str, Setting] = {"host": machine.host, "cpu": machine.cpu, "cores": machine.cores}
    if name is PartName.GPU:
        found["gpu"] = machine.gpu
    found["tool"] = ", ".join(tool for tool in TOOLS if tool in part.tools) or "dualpath"
    found |= {setting: part.settings.get(setting) for setting in _COUNT[name]}
    return {setting: value for setting, value in found.items() if value not in (None, "")}


def compare(before: Profile, after: Profile) -> tuple[Change, ...]:
    """Return every figure of either profile, in the order of showing; ask :func:`differences` too.

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
    if old.low == old.high or new.low == new.high:
        return Change(name, unit, old, new, ratio, None, None, None)
    found = share(new, old)
    beyond = not found.low <= 1.0 <= found.high
    return Change(name, unit, old, new, ratio, found.low, found.high, beyond)
