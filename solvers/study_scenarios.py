"""The scenario of each point, resolved no oftener than its parts change.

Reading a trace, scaling its turns and averaging over them take a thousand times as long as a closed
form. So sections of a scenario file that do not depend on each other are resolved once for each of
their values, kept while there is room, and put together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualpath_model.errors import DualPathError, InputError
from dualpath_model.loads import RequestMeans
from dualpath_model.scenario import (
    Scenario,
    ScenarioSpec,
    WorkloadSpec,
    parse_spec,
    read_workload,
    resolve,
)
from dualpath_model.workload import Workload
from dualpath_model.yaml_lines import Document
from solvers.study_axes import Axis, Point, Space
from solvers.study_fields import Data, with_value

_OWNED: Mapping[str, tuple[str, ...]] = {
    "workload": ("classes",),
    "classes": ("classes",),
    "cluster": ("cluster", "zones"),
    "slo": ("slo",),
    "efficiencies": ("efficiencies",),
}
"""Fields of a resolved scenario that one section of its file decides, given all other sections."""

_MEANS = ("workload", "classes")  # what the means over turns depend on, beside the rest
_MOST_TURNS = 4_000_000  # kept in scenarios: 48 bytes each
_MOST_ENTRIES = 50_000

Key = tuple[str, ...]


class Scenarios:
    """Makes the scenarios of a study's points.

    ``data`` and ``folder``: the base scenario's file and where its relative paths start.
    """

    def __init__(self, space: Space, data: Data, folder: Path, file: str) -> None:
        """See the class."""
        self._data, self._folder, self._file = data, folder, file
        self._axes = [
            (place, axis) for place, axis in enumerate(space.axes) if not axis.in_simulation
        ]
        self._groups = _groups([axis for _, axis in self._axes])
        self._read: dict[tuple[str, int], Workload] = {}
        self._kept = _Kept()
        self._means: OrderedDict[Key, tuple[RequestMeans, ...]] = OrderedDict()

    def base(self) -> Scenario:
        """Return the base scenario. Raises InputError if it is none."""
        return self._resolved({})

    def of(self, point: Point) -> Scenario:
        """Return a point's scenario. Raises InputError where its values make none."""
        values = {axis.name: point.written[place] for place, axis in self._axes}
        rest = {n: v for n, v in values.items() if self._groups[n] is None}
        found = self._part(rest)
        for group in dict.fromkeys(self._groups.values()):
            if group is None:
                continue
            mine = {n: v for n, v in values.items() if self._groups[n] == group}
            part = self._part({**rest, **mine})
            owned = {field: getattr(part, field) for s in group for field in _OWNED[s]}
            found = replace(found, **owned)
        decisive = {
            name: value
            for name, value in values.items()
            if (group := self._groups[name]) is None or any(s in group for s in _MEANS)
        }
        self._remember_means(found, _key(decisive))
        return found

    def _part(self, values: Mapping[str, object]) -> Scenario:
        key = _key(values)
        found = self._kept.get(key)
        if found is None:
            try:
                found = self._resolved(values)
            except InputError as error:
                found = error
            self._kept.put(key, found)
        if isinstance(found, DualPathError):
            raise found
        return found

    def _resolved(self, values: Mapping[str, object]) -> Scenario:
        data = self._data
        for _, axis in self._axes:
            if axis.name in values:
                for path in axis.paths:
                    data = with_value(data, path, values[axis.name])
        document = Document(data, {(): 1}, self._file)
        if not values:
            return resolve(parse_spec(document), self._folder, read=self._reader)
        try:
            spec = ScenarioSpec.model_validate(data)
        except ValueError:
            spec = parse_spec(_lined(document))  # says what is wrong
        return resolve(spec, self._folder, read=self._reader)

    def _reader(self, spec: WorkloadSpec, folder: Path, block_tokens: int) -> Workload:
        key = (spec.model_dump_json(), block_tokens)
        if key not in self._read:
            if len(self._read) > 16:  # an axis of traces, say
                self._read.clear()
            self._read[key] = read_workload(spec, folder, block_tokens)
        return self._read[key]

    def _remember_means(self, scenario: Scenario, key: Key) -> None:
        """Give the scenario its means over the turns, worked out once for each workload and LLM."""
        if key not in self._means:
            if len(self._means) >= _MOST_ENTRIES:
                self._means.popitem(last=False)
            self._means[key] = scenario.class_means
        scenario.__dict__["class_means"] = self._means[key]


def _groups(axes: list[Axis]) -> dict[str, tuple[str, ...] | None]:
    """Return, for each axis, the sections that are resolved together with it; None: with all.

    Sampled axes change at every point, so that they share one resolving.
    """
    touched = {axis.name: {str(path[0]) for path in axis.paths} for axis in axes}
    found: dict[str, tuple[str, ...] | None] = {}
    joint: set[str] = set()
    for axis in axes:
        if axis.values is None and touched[axis.name] <= set(_OWNED):
            joint |= touched[axis.name]
    for axis in axes:
        sections = touched[axis.name]
        if not sections <= set(_OWNED):
            found[axis.name] = None
        elif sections & joint:
            joint |= sections
    for axis in axes:
        if axis.name not in found:
            sections = touched[axis.name]
            found[axis.name] = tuple(sorted(joint if sections & joint else sections))
    several = [group for group in dict.fromkeys(found.values()) if group is not None]
    sections_of = [section for group in several for section in group]
    if len(sections_of) > len(set(sections_of)):  # axes with fields in two sections: all together
        together = tuple(sorted(set(sections_of)))
        return {name: None if group is None else together for name, group in found.items()}
    return found


def _key(values: Mapping[str, object]) -> Key:
    return tuple(f"{name}={value!r}" for name, value in values.items())


def _lined(document: Document) -> Document:
    """Give every part of the document a line, so that messages name its fields."""
    lines: dict[tuple[str | int, ...], int] = {}

    def record(value: Any, location: tuple[str | int, ...]) -> None:
        lines[location] = 1
        items = value.items() if isinstance(value, dict) else ()
        for name, child in items if items else enumerate(value if isinstance(value, list) else ()):
            record(child, (*location, name))

    record(document.data, ())
    return document._replace(lines=lines)


class _Kept:
    """Scenarios by key, the least recently used ones dropped when their turns fill the room."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, Scenario | DualPathError] = OrderedDict()
        self._turns = 0

    def get(self, key: Key) -> Scenario | DualPathError | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: Key, found: Scenario | DualPathError) -> None:
        self._entries[key] = found
        self._turns += _turns(found)
        while (self._turns > _MOST_TURNS and len(self._entries) > 2) or (
            len(self._entries) > _MOST_ENTRIES
        ):
            _, dropped = self._entries.popitem(last=False)
            self._turns -= _turns(dropped)


def _turns(found: Scenario | DualPathError) -> int:
    if isinstance(found, DualPathError):
        return 0
    return sum(part.workload.turns for part in found.classes)
