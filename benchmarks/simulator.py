"""The simulator: the paper's batches, 2P4D with 2K agents and 48P96D with 48K, on one core.

``python -m benchmarks.simulator [--picture FILE]`` compiles first (its own line) and measures the run
alone: until every agent is done, on the bare roofline (no constants). Preparing has its own column: the
arrays, and writing zeros over those of the results, so that the system's handing out of memory, page by
page at the first write, is not in the run; ``wall_s_48p96d_48k_untouched`` is a run that does without.
Cases take turns, the same number of runs each, and the fastest counts, since whatever else the machine
does only adds; the slowest stands beside it.
Then the same against the SimPy model of :mod:`benchmarks.simpy_reference`, which must give the same
turns, and growth with the cluster and without.

The last line is one JSON object. ``turns_per_s`` is that of the largest case; ``peak_bytes_48p96d_48k``
is the process's peak with the laws checked and a summary made. ``ratio_to_simpy``: turns a second over
those of the SimPy model where it is fastest, with the policy's functions compiled;
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
from solvers.simulator import laws
from solvers.simulator.arrivals import arrivals
from solvers.simulator.constants import Constants
from solvers.simulator.experiments import simulate
from solvers.simulator.model import Simulation, prepare, traffic_of
from solvers.simulator.state import SECOND

GROWING = ((2, 2_000), (4, 4_000), (8, 8_000), (16, 16_000), (24, 24_000), (48, 48_000))
"""Prefill nodes and agents; twice as many decode nodes."""
FIXED = tuple((2, agents) for agents in (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000))
ROUNDS = 3
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
    nodes, agents = GROWING[-1]
    whole = simulate(scenario.with_nodes(nodes, 2 * nodes), agents=agents, constants=Constants())
    print(f"{growing[-1].cluster}, results not touched before: {whole.wall_s:.3f} s")
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
        "wall_s_48p96d_48k_untouched": whole.wall_s,
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
    rounds = [[timed(scenario, *case) for case in cases] for _ in range(ROUNDS)]
    print(
        f"{'cluster':>10}{'agents':>9}{'turns':>12}{'prepare, s':>12}{'wall, s':>10}{'slowest':>10}"
        f"{'n log n':>10}{'turns/s':>12}{'JCT, s':>9}"
    )
    found: list[Timed] = []
    for runs in zip(*rounds, strict=True):
        run, slowest = (choose(runs, key=lambda run: run.wall_s) for choose in (min, max))
        found.append(run)
        print(
            f"{run.cluster:>10}{run.agents:>9,}{run.turns:>12,}{run.prepare_s:>12.3f}"
            f"{run.wall_s:>10.3f}{slowest.wall_s:>10.3f}{n_log_n(found[0], run.turns):>10.3f}"
            f"{run.turns / run.wall_s:>12,.0f}{run.jct_s:>9,.0f}"
        )
    above = found[-1].wall_s / n_log_n(found[0], found[-1].turns) - 1
    print(f"the last is {above:+.1%} from what n log n makes of the first")
    print(f"time ~ turns^{exponent(found):.3f}; n log n would be {n_log_n_exponent(found):.3f}")
    return found


def timed(scenario: Scenario, prefill: int, agents: int) -> Timed:
    """Time a run of a case until every agent is done; every turn must have ended, by the laws."""
    begun = time.perf_counter()
    run = begin(scenario.with_nodes(prefill, 2 * prefill), agents)
    run.sim.results.rows.fill(0)
    run.go(0.0)
    prepared = time.perf_counter()
    end_s = run.go()
    wall_s = time.perf_counter() - prepared
    laws.check(run, end_s)
    turns = int((run.sim.traffic.last - run.sim.traffic.first).sum())
    assert run.ended and len(run.rows) == turns
    jct_s = float(run.rows[-1, -1] / SECOND)
    return Timed(prefill, 2 * prefill, agents, turns, prepared - begun, wall_s, jct_s)


def begin(scenario: Scenario, agents: int, compiled: bool = True) -> Simulation:
    """Prepare a batch of agents on the bare roofline."""
    settings, nodes = configure(scenario)
    traffic = traffic_of(scenario.workload, *arrivals(scenario.workload, agents, None, 0))
    return prepare(scenario, settings, nodes, traffic, constants=Constants(), compiled=compiled)


def turns_of(scenario: Scenario, agents: int) -> int:
    """Return the turns of the sessions that the agents run."""
    sessions, _ = arrivals(scenario.workload, agents, None, 0)
    return int(np.diff(scenario.workload.offsets)[sessions].sum())


# ---- SimPy ---------------------------------------------------------------------------------------


def against_simpy(scenario: Scenario) -> dict[str, float]:
    """Time the kernel and the SimPy model on the same case; their turns must be the same."""

    def kernel() -> tuple[float, np.ndarray]:
        run = begin(scenario, SIMPY_AGENTS)
        run.go(0.0)
        return clocked(lambda: (run.go(), run.rows)[1])

    def simpy(compiled: bool) -> tuple[float, np.ndarray]:
        return clocked(Model(begin(scenario, SIMPY_AGENTS, compiled)).run)

    Model(begin(scenario, SIMPY_AGENTS)).run(until_s=1.0)  # the policy's functions are compiled
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
