"""Why fixed rates cannot be met: the smallest set of requirements that contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TypeVar

import numpy as np

from dualpath_model.paths import Key
from solvers.form import Objective, build
from solvers.matrix import Highs
from solvers.problem import Kinds, Problem

Item = TypeVar("Item")

_MOST_TOGETHER = 2
"""Requirements tried together before taking a set that is irreducible but perhaps not smallest."""


def explain(problem: Problem, kinds: tuple[Kinds, Kinds], locality: bool) -> str:
    """Return one sentence: which rates and which capacities conflict, and what would be possible."""
    pools = (*problem.pools(), problem.shared)
    form = build(_at_fixed_rates(problem), kinds, Objective.LEAST_PEAK, locality=locality)
    names = [pools[w].keys[r] for w, r in zip(form.pool, form.key, strict=True)]
    fixed = [k for k in range(problem.classes) if not np.isnan(problem.rate[k])]

    def peak(classes: Sequence[int], keys: Sequence[Key]) -> float:
        """Least peak utilisation of ``keys`` alone when ``classes`` alone have their rates."""
        low, high = form.low.copy(), form.high.copy()
        kept = np.isin([str(name) for name in names], [str(key) for key in keys])
        high[: form.capacities][~kept] = np.inf
        others = [form.rate_rows + k for k in range(problem.classes) if k not in classes]
        low[others] = high[others] = 0.0
        return Highs(replace(form, low=low, high=high)).solve().cost * form.level

    keys = _smallest(sorted(set(names), key=str), lambda chosen: peak(fixed, chosen))
    classes = _smallest(fixed, lambda chosen: peak(chosen, keys))
    rates = " and ".join(
        f"{problem.rate[k]:,.4g} requests/s of '{problem.names[k]}'" for k in classes
    )
    return (
        f"the cluster cannot serve {rates}: this conflicts with {' and '.join(map(str, keys))}, which "
        f"allows {1.0 / peak(classes, keys):.1%} of it; lower the rate or add that capacity"
    )


def _at_fixed_rates(problem: Problem) -> Problem:
    """Return the problem in which the classes that may grow get nothing."""
    none = np.full(problem.classes, np.nan)
    return replace(problem, share=none, rate=np.nan_to_num(problem.rate))


def _smallest(items: list[Item], peak: Callable[[list[Item]], float]) -> list[Item]:
    """Return the smallest subset whose peak is above 1, of several the one with the highest."""
    for size in range(1, min(_MOST_TOGETHER, len(items)) + 1):
        peaks = {chosen: peak(list(chosen)) for chosen in combinations(items, size)}
        worst = max(peaks, key=lambda chosen: peaks[chosen])
        if peaks[worst] > 1.0:
            return list(worst)
    kept = list(items)
    for item in items:
        fewer = [other for other in kept if other != item]
        if fewer and peak(fewer) > 1.0:
            kept = fewer
    return kept
