"""Why fixed rates cannot be met: the smallest set of requirements that contradict each other.

Requirements are the classes' fixed rates, the capacities (one name for all nodes of a pool) and, if it
was asked for, that decode reads stay in their zones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from dualpath_model.paths import Key
from solvers.form import Form, Objective, build
from solvers.matrix import Highs
from solvers.problem import Kinds, Problem, merge

_MOST_TOGETHER = 4
"""Requirements tried together before taking a set that is irreducible but perhaps not smallest."""

Rates = tuple[int, ...]
Keys = tuple[Key, ...]
Peak = Callable[[Rates, Keys], float]


def explain(problem: Problem, kinds: tuple[Kinds, Kinds], locality: bool) -> str:
    """Return one sentence: which rates and which capacities conflict, and what would be possible."""
    form, names = _form(problem, kinds, locality)
    zoned = ""
    if locality:
        free = merge(problem.prefill), merge(problem.decode)
        anywhere, free_names = _form(problem, free, locality=False)
        fixed = _fixed(problem)
        if _peak(problem, anywhere, free_names)(fixed, tuple(set(free_names))) > 1.0:
            form, names = anywhere, free_names  # in conflict even without zones
        else:
            zoned = " while decode reads stay in their zones"
    peak = _peak(problem, form, names)
    rates, keys = _smallest(_fixed(problem), tuple(sorted(set(names), key=str)), peak)
    asked = " and ".join(
        f"{problem.rate[k]:,.4g} requests/s of '{problem.names[k]}'" for k in rates
    )
    return (
        f"the cluster cannot serve {asked}{zoned}: this conflicts with {' and '.join(map(str, keys))}, "
        f"which allows {1.0 / peak(rates, keys):.1%} of it; lower the rate or add that capacity"
    )


def _fixed(problem: Problem) -> Rates:
    return tuple(k for k in range(problem.classes) if not np.isnan(problem.rate[k]))


def _form(problem: Problem, kinds: tuple[Kinds, Kinds], locality: bool) -> tuple[Form, list[Key]]:
    """Return the least-peak form in which classes that may grow get nothing, and its rows' names."""
    none = np.full(problem.classes, np.nan)
    at_rates = replace(problem, share=none, rate=np.nan_to_num(problem.rate))
    form = build(at_rates, kinds, Objective.LEAST_PEAK, locality=locality)
    pools = (*problem.pools(), problem.shared)
    return form, [pools[w].keys[r] for w, r in zip(form.pool, form.key, strict=True)]


def _peak(problem: Problem, form: Form, names: Sequence[Key]) -> Peak:
    """Return the function: least peak of some capacities alone at some classes' rates alone."""

    def peak(rates: Rates, keys: Keys) -> float:
        low, high = form.low.copy(), form.high.copy()
        kept = np.array([name in keys for name in names])
        high[: form.capacities][~kept] = np.inf
        others = [form.rate_rows + k for k in range(problem.classes) if k not in rates]
        low[others] = high[others] = 0.0
        return Highs(replace(form, low=low, high=high)).solve().cost * form.level

    return peak


def _smallest(rates: Rates, keys: Keys, peak: Peak) -> tuple[Rates, Keys]:
    """Return the smallest set of rates and keys with a peak above 1; of several, the highest peak."""
    for size in range(2, _MOST_TOGETHER + 1):
        worst = max(_sets(rates, keys, size), key=lambda chosen: peak(*chosen), default=None)
        if worst is not None and peak(*worst) > 1.0:
            return worst
    for rate in rates:  # leave out what is not needed, one after the other
        fewer = tuple(k for k in rates if k != rate)
        if fewer and peak(fewer, keys) > 1.0:
            rates = fewer
    for key in keys:
        less = tuple(k for k in keys if k != key)
        if less and peak(rates, less) > 1.0:
            keys = less
    return rates, keys


def _sets(rates: Rates, keys: Keys, size: int) -> Iterator[tuple[Rates, Keys]]:
    """Yield every choice of at least one rate and one key, ``size`` in all."""
    for count in range(1, size):
        for some_rates in combinations(rates, count):
            for some_keys in combinations(keys, size - count):
                yield some_rates, some_keys
