"""The points of a study: which values each has, and in which order they are numbered.

Lists and stepped ranges make a grid, the last axis fastest; with a Latin hypercube every cell of the
grid gets all of its samples, and those come fastest of all.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from dualpath_model.errors import InputError
from solvers.study_fields import (
    SCENARIO,
    Data,
    Kind,
    Parts,
    check_value,
    kind_of,
    split_path,
    with_value,
)
from solvers.study_spec import MOST_POINTS, RangeSpec, SimulationSpec, StudySpec, ValuesSpec

_SIMULATION = "simulation"
_CHECKED = 2000  # values of an axis that are looked at one by one before a study starts


@dataclass(frozen=True)
class Axis:
    """One thing that is varied. ``paths``: fields that get the same value, the first one's name is
    the axis's. ``values`` as the file holds them, in order; None where the axis is sampled.
    """

    name: str
    paths: tuple[Parts, ...]
    kind: Kind
    values: tuple[object, ...] | None
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def in_simulation(self) -> bool:
        """Whether it changes the study's own ``simulation``, not the scenario."""
        return self.paths[0][0] == _SIMULATION

    @cached_property
    def shown(self) -> tuple[object, ...]:
        """The values as a table holds them."""
        return tuple(self.kind.shown(value) for value in self.values or ())

    def at(self, share: float) -> float:
        """Return the number at a share (0 to 1) of the range.

        A whole number has the part of the range that is rounded to it, half a step beyond the ends too.
        """
        if self.kind.type != "int":
            return _between(self.low, self.high, share, self.log)
        place = _between(self.low - 0.5, self.high + 0.5, share, self.log)
        return min(self.high, math.floor(place + 0.5))

    @property
    def seeds(self) -> tuple[int, ...]:
        """What sets its draws apart from other axes': its name, wherever it stands among them."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return tuple(int.from_bytes(digest[at : at + 4]) for at in range(0, len(digest), 4))


def _between(low: float, high: float, share: float, log: bool) -> float:
    if share in (0.0, 1.0):
        return high if share else low
    return float(low * (high / low) ** share) if log else low + (high - low) * share


@dataclass(frozen=True)
class Point:
    """One point: its number, the values as the files hold them, and as a table does."""

    number: int
    written: tuple[object, ...]
    shown: tuple[object, ...]


@dataclass(frozen=True)
class Space:
    """All points. ``samples``: of each cell of the grid; 0 where nothing is sampled."""

    axes: tuple[Axis, ...]
    samples: int
    sample_seed: int
    sizes: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Note the lengths of the grid's axes."""
        sizes = tuple(len(axis.values) for axis in self.axes if axis.values is not None)
        object.__setattr__(self, "sizes", sizes)

    @property
    def count(self) -> int:
        """How many points there are."""
        return math.prod(self.sizes) * max(1, self.samples)

    @cached_property
    def _shares(self) -> npt.NDArray[np.float64]:
        """Where each sample lies on each sampled axis, shape (samples, axes): one in each stratum.

        Each axis has a stream of its own, of its name, so that other axes and their order do not matter.
        """
        columns = []
        for axis in self.axes:
            if axis.values is not None:
                continue
            seeds = np.random.SeedSequence(self.sample_seed, spawn_key=axis.seeds)
            draw = np.random.default_rng(seeds)
            strata = draw.permutation(self.samples)
            columns.append((strata + draw.random(self.samples)) / self.samples)
        return np.array(columns).T

    def point(self, number: int) -> Point:
        """Return a point by its number, 0 to ``count - 1``."""
        cell, sample = divmod(number, max(1, self.samples))
        places = []
        for size in reversed(self.sizes):
            cell, place = divmod(cell, size)
            places.append(place)
        written: list[object] = []
        shown: list[object] = []
        column = 0
        for axis in self.axes:
            if axis.values is None:
                value = axis.at(float(self._shares[sample, column]))
                column += 1
                written.append(axis.kind.written(value))
                shown.append(round(value) if axis.kind.type == "int" else value)
            else:
                place = places.pop()
                written.append(axis.values[place])
                shown.append(axis.shown[place])
        return Point(number, tuple(written), tuple(shown))


def space_of(spec: StudySpec, base: Data, file: str) -> Space:
    """Return the points of a study over a base scenario's data.

    Raises InputError, naming the axis, for fields that there are not, values that they cannot hold,
    empty axes and more points than can be meant.
    """
    axes = tuple(
        _axis(name, given, spec, base, f"{file}: axes.{name}") for name, given in spec.axes.items()
    )
    sampled = [axis.name for axis in axes if axis.values is None]
    if spec.sample is not None and not sampled:
        raise InputError(
            f"{file}: sample.latin_hypercube is given, but every axis has values or steps; leave steps "
            f"out of the ranges to sample"
        )
    if sampled and spec.sample is None:
        raise InputError(
            f"{file}: axes.{sampled[0]} is a range without steps; add steps, or sample: "
            f"{{latin_hypercube: 100}} to draw points over the ranges"
        )
    _check_disjoint(axes, file)
    space = Space(
        axes,
        spec.sample.latin_hypercube if spec.sample else 0,
        spec.sample.seed if spec.sample else 0,
    )
    if space.count > MOST_POINTS:
        raise InputError(
            f"{file}: axes make {space.count:,} points; at most {MOST_POINTS:,} are allowed, so give "
            f"fewer values, or sample the ranges by latin_hypercube"
        )
    return space


def _axis(name: str, given: object, spec: StudySpec, base: Data, where: str) -> Axis:
    also = given.also if isinstance(given, (RangeSpec, ValuesSpec)) else []
    paths = tuple(split_path(path) for path in (name, *also))
    targets = [_target(path, spec, base, where) for path in paths]
    kinds = [kind_of(parts, model, where) for parts, model, _ in targets]
    for path, kind in zip(also, kinds[1:], strict=True):
        if kind != kinds[0]:
            raise InputError(
                f"{where}: also names {path}, which holds something else; leave it out"
            )
    if isinstance(given, RangeSpec):
        axis = _range(name, paths, kinds[0], given, where)
    else:
        values = given.values if isinstance(given, ValuesSpec) else given
        assert isinstance(values, list)
        if not values:
            raise InputError(f"{where} has no values; give at least one")
        axis = Axis(name, paths, kinds[0], tuple(values))
    looked = axis.values[:_CHECKED] if axis.values is not None else ()
    ends = looked or (axis.kind.written(axis.low), axis.kind.written(axis.high))
    for parts, model, data in targets:
        for value in ends:
            try:
                changed = with_value(data, parts, value)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            check_value(changed, parts, model, where)
    if axis.values is not None:  # raises for quantities past those looked at
        try:
            repeated = len(set(map(repr, axis.shown))) < len(axis.shown)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if repeated:
            raise InputError(f"{where} has a value twice; keep one")
    return axis


def _target(
    path: Parts, spec: StudySpec, base: Data, where: str
) -> tuple[Parts, type[BaseModel], Data]:
    """Return the field within its file, the file's model and its data."""
    if path[0] != _SIMULATION:
        return path, SCENARIO, base
    if spec.method != "simulation":
        raise InputError(f"{where}: the method is {spec.method}; set method: simulation to vary it")
    if len(path) == 1 or path[1] == "replications":
        raise InputError(f"{where} cannot be varied; name a field of it, such as simulation.agents")
    given = spec.simulation or SimulationSpec()
    return path[1:], SimulationSpec, given.model_dump(exclude_defaults=True)


def _range(name: str, paths: tuple[Parts, ...], kind: Kind, given: RangeSpec, where: str) -> Axis:
    low, high = (kind.number(end, where) for end in (given.start, given.to))
    if not low < high:
        mend = "swap them" if low > high else "give a list of one value"
        raise InputError(f"{where}: from {given.start} is not below to {given.to}; {mend}")
    log = given.scale == "log"
    if log and low <= 0:
        raise InputError(f"{where}: scale is log and from is {given.start}; start above 0")
    if given.steps is None:
        return Axis(name, paths, kind, None, low, high, log)
    numbers = [_between(low, high, i / (given.steps - 1), log) for i in range(given.steps)]
    if kind.type == "int":
        numbers = sorted({float(round(number)) for number in numbers})
        if len(numbers) < given.steps:
            raise InputError(
                f"{where}: steps is {given.steps}, but only {len(numbers)} whole numbers come of it "
                f"from {low:g} to {high:g}; give fewer steps, or a list of values"
            )
    return Axis(name, paths, kind, tuple(map(kind.written, numbers)), low, high, log)


def _check_disjoint(axes: tuple[Axis, ...], file: str) -> None:
    """Refuse two axes that change the same thing: the later would undo the earlier."""
    paths = [(path, axis.name) for axis in axes for path in axis.paths]
    for i, (one, name) in enumerate(paths):
        for other, other_name in paths[i + 1 :]:
            short = min(len(one), len(other))
            if one[:short] == other[:short]:
                raise InputError(
                    f"{file}: axes.{name} and axes.{other_name} change the same field; keep one"
                )
