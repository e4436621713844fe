"""How the simulator's time grows: the exponent, n log n beside it, and the picture of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Timed:
    """A run until every agent is done: its size, and the seconds that preparing and the kernel took."""

    prefill: int
    decode: int
    agents: int
    turns: int
    prepare_s: float
    wall_s: float
    jct_s: float

    @property
    def cluster(self) -> str:
        return f"{self.prefill}P{self.decode}D"


def exponent(runs: Sequence[Timed]) -> float:
    """Return the slope of log seconds over log turns."""
    turns = [run.turns for run in runs]
    return float(np.polyfit(np.log(turns), np.log([run.wall_s for run in runs]), 1)[0])


def n_log_n(first: Timed, turns: float) -> float:
    """Return the seconds of ``turns`` if the first run's grew like n log n."""
    return float(first.wall_s * turns * np.log(turns) / (first.turns * np.log(first.turns)))


def n_log_n_exponent(runs: Sequence[Timed]) -> float:
    """Return the slope that n log n itself has over the sizes of these runs."""
    turns = np.array([run.turns for run in runs])
    return float(np.polyfit(np.log(turns), np.log(turns * np.log(turns)), 1)[0])


def draw(growing: Sequence[Timed], fixed: Sequence[Timed], path: Path) -> None:
    """Draw seconds over turns: a cluster that grows with its agents, and one that stays."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 5.5), layout="constrained")
    for runs, label, colour, where in (
        (growing, "cluster grows: 1,000 agents a prefill node", "tab:blue", (-9, 17)),
        (fixed, f"{fixed[0].cluster}, more agents", "tab:orange", (9, -14)),
    ):
        turns = [run.turns for run in runs]
        slope = f"{label}\n(exponent {exponent(runs):.2f}; n log n: {n_log_n_exponent(runs):.2f})"
        axis.plot(turns, [run.wall_s for run in runs], "-o", ms=4, color=colour, label=slope)
        sizes = np.geomspace(turns[0], turns[-1], 50)
        axis.plot(sizes, [n_log_n(runs[0], size) for size in sizes], ":", color=colour)
        for run in runs:
            axis.annotate(
                _name(run, fixed),
                (run.turns, run.wall_s),
                textcoords="offset points",
                xytext=where,
                ha="right" if where[0] < 0 else "left",
                fontsize=8,
                color=colour,
            )
    axis.plot([], [], ":", color="black", label="n log n through each first point")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="turns",
        ylabel="seconds on one core, compiling and preparing not counted",
        title="What a simulation costs as it grows",
    )
    axis.margins(0.1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="upper left")
    figure.savefig(path, dpi=150)


def _name(run: Timed, fixed: Sequence[Timed]) -> str:
    agents = f"{run.agents / 1000:g}K" if run.agents >= 1000 else str(run.agents)
    return agents if run in fixed else f"{run.cluster} {agents}"
