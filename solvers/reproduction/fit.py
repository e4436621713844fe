"""The fit of the efficiency constants: three of them, to three figures of the paper, and to no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from solvers.reproduction.figures import paper_figures
from solvers.reproduction.lab import DS_660B, Assumptions, Lab
from solvers.simulator.constants import Constants

TARGETS = ("scale-2p4d", "online-ttft", "online-tpot")
_SEEDS = (0, 1, 2)
_START = (1.5e-3, 3e-4, 1e-5)
_LEAST, _MOST = 1e-8, 1e-1


@dataclass(frozen=True)
class Fit:
    """The constants, and how well the figures come out: ours / paper - 1, by id."""

    constants: Constants
    errors: dict[str, float]
    evaluations: int


def fit(assumptions: Assumptions, said: Callable[[str], None] = lambda _: None) -> Fit:
    """Return the constants with which the three target figures come out best (least squares of their
    relative errors, means over three seeds). Minutes.
    """
    from scipy.optimize import least_squares

    names = list(asdict(Constants()))
    figures = [paper_figures()[name].paper for name in TARGETS]
    count = 0

    def errors(logs: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        constants = Constants(**dict(zip(names, np.exp(logs).tolist(), strict=True)))
        ours = _measure(replace(assumptions, constants=constants))
        found = ours / np.array(figures) - 1.0
        worst = float(np.abs(found).max())
        said(f"evaluation {count}: worst of the three figures {worst:.2%} off")
        return np.asarray(found)

    solved = least_squares(
        errors,
        np.log(_START),
        bounds=(np.log(_LEAST), np.log(_MOST)),
        diff_step=0.01,
        ftol=1e-5,
        xtol=1e-3,
        max_nfev=12,
    )
    constants = Constants(**dict(zip(names, np.exp(solved.x).tolist(), strict=True)))
    return Fit(constants, dict(zip(TARGETS, solved.fun.tolist(), strict=True)), count)


def _measure(assumptions: Assumptions) -> np.ndarray:
    """Return the three figures, means over the seeds."""
    lab = Lab(assumptions)
    rows = []
    for seed in _SEEDS:
        online = lab.online(DS_660B, 0.4, seed=seed)
        jct_s = lab.offline(DS_660B, 2000, seed=seed).jct_s
        rows.append((jct_s, online.ttft_s["mean"], online.tpot_s["mean"]))
    return np.asarray(np.mean(rows, axis=0))
