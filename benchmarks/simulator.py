"""The simulator: the paper's batches, 2P4D with 2K agents and 48P96D with 48K, on one core.

``python -m benchmarks.simulator`` compiles first (its own line) and measures the run alone.
"""

from __future__ import annotations

import json
import resource
import statistics
import time

from dualpath_model.scenario import load_scenario
from solvers.simulator.experiments import simulate

CASES = ((2, 4, 250), (2, 4, 2_000), (12, 24, 12_000), (48, 96, 48_000))


def main() -> None:
    """Print a table, then one JSON object."""
    scenario = load_scenario("examples/deepseek-660b-2p4d.yaml")
    begun = time.perf_counter()
    simulate(scenario, agents=1)
    print(f"compiling, or reading what was compiled: {time.perf_counter() - begun:.1f} s")
    found: dict[str, float] = {}
    print(
        f"{'cluster':>10} {'agents':>8} {'turns':>10} {'wall, s':>9} {'turns/s':>10} {'JCT, s':>8}"
    )
    for prefill, decode, agents in CASES:
        sized = scenario.with_nodes(prefill, decode)
        runs = [simulate(sized, agents=agents) for _ in range(3 if agents < 10_000 else 1)]
        wall = statistics.median(run.wall_s for run in runs)
        run = runs[0]
        print(
            f"{f'{prefill}P{decode}D':>10} {agents:>8,} {run.turns:>10,} {wall:>9.2f} "
            f"{run.turns / wall:>10,.0f} {run.jct_s:>8.0f}"
        )
        name = f"{prefill}p{decode}d_{agents // 1000}k"
        found[f"wall_s_{name}"] = wall
        found["turns_per_s"] = run.turns / wall
    found["peak_bytes_48p96d_48k"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    print(json.dumps(found))


if __name__ == "__main__":
    main()
