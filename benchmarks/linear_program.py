"""How long the per-node LP takes, building included, on clusters in which no two nodes are alike.

``python -m benchmarks.linear_program [--plot FILE]``: growth with nodes up to 512P1024D, with traffic
classes on 48P96D. "Again" is a second solve after one capacity has changed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.examples import find_scenario
from dualpath_model import Cluster, Node, Scenario, load_scenario
from dualpath_model.scenario import WorkloadClass
from dualpath_model.workload import from_moments
from solvers import linear
from solvers.problem import TrafficClass, from_classes

RUNS = 5


@dataclass(frozen=True)
class Timing:
    """Medians in seconds; ``again`` is the whole second solve, reading back included."""

    building: float
    solving: float
    reading: float
    again: float

    @property
    def total(self) -> float:
        return self.building + self.solving + self.reading


def uneven(scenario: Scenario, prefill: int, decode: int) -> Scenario:
    """Return the scenario on nodes that all differ by up to half in each rate."""
    draw = np.random.default_rng(0)
    node = scenario.cluster.prefill[0]

    def one() -> Node:
        snic, cnic, dram, flop, hbm = draw.uniform(0.5, 1.5, 5)
        gpu = replace(
            node.gpu,
            fp8_flop_per_s=(node.gpu.fp8_flop_per_s or 0.0) * 2 * flop,
            hbm_bytes_per_s=node.gpu.hbm_bytes_per_s * (0.5 + 0.5 * hbm),
        )
        return replace(
            node,
            gpu=gpu,
            snic_bytes_per_s=node.snic_bytes_per_s * snic,
            cnic_bytes_per_s=node.cnic_bytes_per_s * cnic,
            dram_bytes_per_s=(node.dram_bytes_per_s or 0.0) * dram,
        )

    pools = (tuple(one() for _ in range(count)) for count in (prefill, decode))
    return scenario.on(Cluster(*pools))


def classes_of(scenario: Scenario, count: int) -> list[TrafficClass]:
    """Return ``count`` classes of different context and append on one cluster."""
    works = [from_moments(30_000 / (k + 1), 400 * (k + 1), 176) for k in range(count)]
    traffic = tuple(WorkloadClass(f"class {k}", work) for k, work in enumerate(works))
    loads = replace(scenario, classes=traffic).class_loads()
    return [TrafficClass(c.name, load, 1.0 / count) for c, load in zip(traffic, loads, strict=True)]


def timed(scenario: Scenario, classes: int = 1) -> Timing:
    """Measure one size: loads to solution, then again with one capacity 5 % lower."""
    found: list[Timing] = []
    for run in range(RUNS):
        clock = [time.perf_counter()]
        mark: Callable[[], None] = lambda: clock.append(time.perf_counter())  # noqa: E731, B023
        problem = from_classes(classes_of(scenario, classes))
        program = linear.CapacityProgram(problem, merged=False)
        mark()
        raw, x = program.optimum()
        mark()
        answer = program.read_back(raw, x)
        mark()
        row = max(answer.rows, key=lambda r: r.dual_value * r.capacity)
        program.change_capacity({(row.key.pool, row.node, row.key): 0.95 - 0.01 * run})
        mark()
        program.read_back(*program.optimum())
        mark()
        steps = np.diff(clock)
        found.append(Timing(steps[0], steps[1], steps[2], steps[4]))
    return Timing(
        *(
            statistics.median(getattr(t, f) for t in found)
            for f in ("building", "solving", "reading")
        ),
        statistics.median(t.again for t in found),
    )


def table(rows: list[tuple[str, Timing]]) -> None:
    heads = ("building", "solving", "reading", "total", "again", "again/total")
    print(" " * 18 + "".join(f"{head:>12}" for head in heads))
    for name, t in rows:
        figures = (t.building, t.solving, t.reading, t.total, t.again)
        print(f"{name:18}" + "".join(f"{f:12.4f}" for f in figures) + f"{t.again / t.total:12.1%}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot", type=Path, help="write the growth as a picture")
    arguments = parser.parse_args()
    scenario = load_scenario(find_scenario("deepseek-660b-2p4d"))
    sizes = [(12, 24), (24, 48), (48, 96), (128, 256), (256, 512), (512, 1024)]
    by_size = [((p, d), timed(uneven(scenario, p, d))) for p, d in sizes]
    by_class = [(k, timed(uneven(scenario, 48, 96), k)) for k in (1, 2, 4, 8)]
    print(f"seconds, medians of {RUNS} runs; every node differs, nothing is merged")
    table([(f"{p}P{d}D", t) for (p, d), t in by_size])
    print("48P96D by number of classes")
    table([(f"{k} classes", t) for k, t in by_class])
    if arguments.plot:
        plot(by_size, by_class, arguments.plot)
    small, large = dict(by_size)[48, 96], dict(by_size)[512, 1024]
    result = {
        "seconds_48p96d": small.total,
        "seconds_512p1024d": large.total,
        "resolve_fraction": large.again / large.total,
        "resolve_fraction_48p96d": small.again / small.total,
    }
    print(json.dumps(result))


def plot(
    by_size: list[tuple[tuple[int, int], Timing]], by_class: list[tuple[int, Timing]], path: Path
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    nodes = [p + d for (p, d), _ in by_size]
    for axis, x, rows in ((left, nodes, by_size), (right, [k for k, _ in by_class], by_class)):
        for name in ("building", "solving", "reading", "total", "again"):
            axis.plot(x, [getattr(t, name) for _, t in rows], marker="o", label=name)
        axis.set(xscale="log", yscale="log", ylabel="seconds")
        axis.grid(alpha=0.3)
    left.set(xlabel="nodes, no two alike (P:D = 1:2)", title="growth with nodes")
    right.set(xlabel="traffic classes on 48P96D", title="growth with classes")
    left.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
