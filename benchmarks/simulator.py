"""The simulator: the paper's batches, 2P4D with 2K agents and 48P96D with 48K, on one core.

``python -m benchmarks.simulator [--picture FILE]`` compiles first (its own line) and measures the run
alone: until every agent is done, on the bare roofline (no constants). Then the same against the SimPy
model of :mod:`benchmarks.simpy_reference`, which must give the same turns, and growth with the cluster
and without.

The last line is one JSON object. ``turns_per_s`` is that of the largest case. ``ratio_to_simpy``: turns
a second over those of the SimPy model where it is fastest, with the policy's functions compiled;
``ratio_to_plain_simpy``: all of it plain Python.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.growth import Timed, draw, exponent, n_log_n, n_log_n_exponent
from benchmarks.simpy_reference import Model
from dualpath_model.scenario import Scenario, load_scenario
from solvers.scheduling import configure
from solvers.simulator.arrivals import arrivals
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import simulate
from solvers.simulator.model import Simulation, prepare, traffic_of

GROWING = ((2, 2_000), (4, 4_000), (8, 8_000), (16, 16_000), (24, 24_000), (48, 48_000))
"""Prefill nodes and agents; twice as many decode nodes."""
FIXED = tuple((2, agents) for agents in (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000))
REPEATED_UP_TO = 8_000  # agents: three runs each, the median counts
SIMPY_AGENTS = 250


def main() -> None:
    """Print tables, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    scenario = load_scenario("examples/deepseek-660b-2p4d.yaml")
    begun = time.perf_counter()
    simulate(scenario, agents=1, constants=Constants())
    print(f"compiling, or reading what was compiled: {time.perf_counter() - begun:.1f} s")

    print("\ncluster and agents grow")
    growing = measure(scenario, GROWING)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    print(f"at most {peak_bytes / 1e9:.2f} GB of memory")
    print("\nagents grow")
    fixed = measure(scenario, FIXED)
    ratios = against_simpy(scenario)

    if arguments.picture:
        draw(growing, fixed, arguments.picture)
    largest = growing[-1]
    result = {
        "wall_s_2p4d_2k": growing[0].wall_s,
        "wall_s_48p96d_48k": largest.wall_s,
        "peak_bytes_48p96d_48k": peak_bytes,
        "turns_per_s": largest.turns / largest.wall_s,
        **ratios,
        "growth_exponent": exponent(growing),
        "growth_exponent_fixed_cluster": exponent(fixed),
        "growth_exponent_n_log_n": n_log_n_exponent(growing),
    }
    print(json.dumps(result))


# ---- growth --------------------------------------------------------------------------------------


def measure(scenario: Scenario, cases: tuple[tuple[int, int], ...]) -> list[Timed]:
    """Print a row for each case, with what n log n would make of the first."""
    print(
        f"{'cluster':>10}{'agents':>9}{'turns':>12}{'wall, s':>10}{'n log n':>10}"
        f"{'turns/s':>12}{'JCT, s':>9}"
    )
    found: list[Timed] = []
    for prefill, agents in cases:
        run = timed(scenario, prefill, agents)
        found.append(run)
        print(
            f"{run.cluster:>10}{agents:>9,}{run.turns:>12,}{run.wall_s:>10.3f}"
            f"{n_log_n(found[0], run.turns):>10.3f}{run.turns / run.wall_s:>12,.0f}{run.jct_s:>9,.0f}",
            flush=True,
        )
    print(f"time ~ turns^{exponent(found):.3f}; n log n would be {n_log_n_exponent(found):.3f}")
    return found


def timed(scenario: Scenario, prefill: int, agents: int) -> Timed:
    """Time runs of a case until every agent is done; every turn must have ended."""
    sized = scenario.with_nodes(prefill, 2 * prefill)
    times = 3 if agents <= REPEATED_UP_TO else 1
    runs = [simulate(sized, agents=agents, constants=Constants()) for _ in range(times)]
    expected = turns_of(scenario, agents)
    assert all((run.turns, run.agents_ended) == (expected, agents) for run in runs)
    assert len({run.events for run in runs}) == 1
    wall_s = statistics.median(run.wall_s for run in runs)
    return Timed(prefill, 2 * prefill, agents, expected, wall_s, runs[0].jct_s)


def turns_of(scenario: Scenario, agents: int) -> int:
    """Return the turns of the sessions that the agents run."""
    sessions, _ = arrivals(scenario.workload, agents, None, 0)
    return int(np.diff(scenario.workload.offsets)[sessions].sum())


# ---- SimPy ---------------------------------------------------------------------------------------


def against_simpy(scenario: Scenario) -> dict[str, float]:
    """Time the kernel and the SimPy model on the same case; their turns must be the same."""
    settings, nodes = configure(scenario)
    traffic = traffic_of(scenario.workload, *arrivals(scenario.workload, SIMPY_AGENTS, None, 0))

    def begin(compiled: bool) -> Simulation:
        return prepare(scenario, settings, nodes, traffic, compiled=compiled)

    def kernel() -> tuple[float, np.ndarray]:
        run = begin(compiled=True)
        run.go(0.0)
        return clocked(lambda: (run.go(), run.rows)[1])

    def simpy(compiled: bool) -> tuple[float, np.ndarray]:
        return clocked(Model(begin(compiled)).run)

    Model(begin(compiled=True)).run(until_s=1.0)  # the policy's functions are compiled
    kernels = [kernel() for _ in range(9)]
    compiled = [simpy(compiled=True) for _ in range(3)]
    plain = [simpy(compiled=False)]
    rows = kernels[0][1]
    assert all((other == rows).all() for _, other in kernels + compiled + plain)

    print(f"\nSimPy, {SIMPY_AGENTS} agents, {len(rows):,} turns, the same to the nanosecond")
    seconds = [statistics.median(s for s, _ in runs) for runs in (kernels, compiled, plain)]
    names = ("kernel", "SimPy, decisions compiled", "SimPy, all plain Python")
    print(f"{'':28}{'wall, s':>10}{'turns/s':>12}{'kernel is':>12}")
    for name, wall_s in zip(names, seconds, strict=True):
        print(f"{name:28}{wall_s:>10.3f}{len(rows) / wall_s:>12,.0f}{wall_s / seconds[0]:>9.0f} x")
    return {
        "ratio_to_simpy": min(seconds[1:]) / seconds[0],
        "ratio_to_plain_simpy": seconds[2] / seconds[0],
    }


def clocked(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the seconds that a run takes, and its turns."""
    begun = time.perf_counter()
    rows = run()
    return time.perf_counter() - begun, rows


if __name__ == "__main__":
    main()
