"""What the intervals of measured rates do to a plan, and which measurement would narrow it most.

Monte Carlo over the figures that the scenario's nodes take from profiles. Each is drawn with its value
as the median and its interval as the 95 % one, log-normal to either side, and independent of the others
(those of one fit are not quite); nodes of one profile share the draw, because a profile measures a kind
of machine. Every draw is planned from its nodes on, so what is not linear (the batch that a decode
engine can run, the split) follows too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dualpath_model.catalog.measured import with_figures
from dualpath_model.cluster import MeasuredFigure, Node
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.profile import FIGURES
from dualpath_model.scenario import Scenario
from solvers.alternatives import quick
from solvers.robust import NORMAL_95

SAMPLES = 400
SAMPLES_UNEVEN = 60
"""Where every draw is an LP: uneven pools, several classes of traffic, or locality."""

Array = npt.NDArray[np.float64]
Name = tuple[str, MeasuredFigure]
"""Profile and figure: profiles of one name (a host, a day) that measured otherwise share no draws."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Of a figure of the plan: value at the measured rates, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What knowing one measured figure exactly would leave of the throughput's interval.

    ``relative_low`` and ``relative_high``: the figure's own interval over its value; ``width_left``: the
    width of the throughput's interval then, over its width now.
    """

    profile: str
    part: str
    figure: str
    relative_low: float
    relative_high: float
    width_left: float


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Intervals of the plan. ``infeasible``: draws in which the scenario cannot be served at all; they
    count as no throughput and are left out of speed-up and split. ``measurements``: best first.
    """

    samples: int
    infeasible: int
    throughput_requests_per_s: Interval
    throughput_basic_requests_per_s: Interval
    speedup_over_basic: Interval
    split: Interval
    measurements: tuple[Narrowing, ...]


def uncertainty(
    scenario: Scenario, *, samples: int | None = None, seed: int = 0
) -> Uncertainty | None:
    """Return the intervals of a plan on measured nodes; None where no figure has an interval.

    Raises InputError for fewer than 20 samples, InfeasibleError where the measured rates themselves
    cannot serve.
    """
    if samples is None:
        samples = SAMPLES if _closed_form(scenario) else SAMPLES_UNEVEN
    if samples < 20:
        raise InputError(f"samples {samples} is not allowed; an interval needs at least 20")
    uncertain = [name for name in measured_figures(scenario) if name[1].high > name[1].low]
    if not uncertain:
        return None
    factors = {
        (profile, found): _factors(found, np.random.default_rng([seed, number]), samples)
        for number, (profile, found) in enumerate(uncertain)
    }
    nominal = np.array(_solved(scenario, {}))
    drawn = _all(scenario, factors, samples)
    served = drawn[drawn[:, 0] > 0]
    now = _width(drawn[:, 0])
    narrowed = []
    for name in uncertain:
        profile, found = name
        others = {other: draws for other, draws in factors.items() if other != name}
        left = _width(_all(scenario, others, samples)[:, 0]) if others else 0.0
        narrowed.append(
            Narrowing(
                profile=profile,
                part=FIGURES[found.name].part.value,
                figure=found.name,
                relative_low=found.low / found.value,
                relative_high=found.high / found.value,
                width_left=left / now if now else 1.0,
            )
        )
    return Uncertainty(
        samples=samples,
        infeasible=samples - len(served),
        throughput_requests_per_s=_interval(nominal[0], drawn[:, 0]),
        throughput_basic_requests_per_s=_interval(nominal[1], drawn[:, 1]),
        speedup_over_basic=_interval(nominal[0] / nominal[1], served[:, 0] / served[:, 1]),
        split=_interval(nominal[2], served[:, 2]),
        measurements=tuple(sorted(narrowed, key=lambda entry: entry.width_left)),
    )


def _factors(figure: MeasuredFigure, draw: np.random.Generator, samples: int) -> Array:
    """Draw factors of a figure: its value is the median, so that half of the plans are worse."""
    deviates = draw.standard_normal(samples) / NORMAL_95
    down, up = math.log(figure.value / figure.low), math.log(figure.high / figure.value)
    factors: Array = np.exp(deviates * np.where(deviates < 0, down, up))
    return factors


def measured_figures(scenario: Scenario) -> tuple[Name, ...]:
    """Return the figures that the scenario's nodes take from profiles, each once."""
    nodes = dict.fromkeys((*scenario.cluster.prefill, *scenario.cluster.decode))
    return tuple(
        dict.fromkeys(
            (node.measured.profile, figure)
            for node in nodes
            if node.measured is not None
            for figure in node.measured.figures
        )
    )


def _closed_form(scenario: Scenario) -> bool:
    """Tell whether draws are quick (:func:`solvers.alternatives.quick`)."""
    one_class = len(scenario.classes) == 1
    return scenario.cluster.homogeneous and one_class and scenario.zones is None


def _all(scenario: Scenario, factors: Mapping[Name, Array], samples: int) -> Array:
    """Return throughput, that of Basic and split of each draw, (samples, 3); zeros if infeasible."""
    found = np.zeros((samples, 3))
    for number in range(samples):
        try:
            found[number] = _solved(scenario, {n: float(f[number]) for n, f in factors.items()})
        except InfeasibleError:
            continue
    return found


def _solved(scenario: Scenario, factors: Mapping[Name, float]) -> tuple[float, float, float]:
    drawn: dict[Node, Node] = {}

    def change(node: Node) -> Node:
        if node not in drawn:
            drawn[node] = _redrawn(node, factors)
        return drawn[node]

    cluster = scenario.cluster
    changed = replace(
        cluster,
        prefill=tuple(map(change, cluster.prefill)),
        decode=tuple(map(change, cluster.decode)),
    )
    bound = quick(scenario.on(changed))
    return bound.throughput, bound.basic, bound.split


def _redrawn(node: Node, factors: Mapping[Name, float]) -> Node:
    """Return the node with its measured figures multiplied; all are set again, for some are shares of
    others.
    """
    measured = node.measured
    if measured is None:
        return node
    figures: Sequence[MeasuredFigure] = [
        figure._replace(value=figure.value * factors.get((measured.profile, figure), 1.0))
        for figure in measured.figures
    ]
    values = {figure.name: figure.value for figure in figures}
    return with_figures(replace(node, measured=replace(measured, figures=tuple(figures))), values)


def _width(values: Array) -> float:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(high - low)


def _interval(nominal: float, values: Array) -> Interval:
    if not len(values):  # every draw is infeasible
        return Interval(float(nominal), float(nominal), float(nominal))
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(nominal), float(min(low, nominal)), float(max(high, nominal)))
