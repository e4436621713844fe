"""How many configurations a second the closed form answers on one core, building the loads included.

``python -m benchmarks.closed_form`` sweeps prefill nodes, decode nodes, SNICs, hit rate and append.
"""

from __future__ import annotations

import json
import time

import numpy as np

from dualpath_model.closed_form import Bound, solve
from dualpath_model.loads import PREFILL_GPU, Demand, movement
from dualpath_model.paths import PAPER, Direction, Key, Payload, Pool, Resource

KV_BYTES_PER_TOKEN = 35_136.0
RUNS = 7


def sweep(size: int, seed: int = 0) -> tuple[Demand, dict[Key, np.ndarray | float]]:
    """Return demand and capacity arrays of ``size`` random configurations."""
    draw = np.random.default_rng(seed)
    prefill = draw.integers(1, 65, size).astype(float)
    decode = draw.integers(1, 129, size).astype(float)
    snic = draw.uniform(10e9, 100e9, size)
    hit = draw.uniform(1e3, 6e4, size) * KV_BYTES_PER_TOKEN
    miss = draw.uniform(50, 5e3, size) * KV_BYTES_PER_TOKEN
    demand = movement(
        PAPER,
        {
            Payload.HIT: hit,
            Payload.MISS: miss,
            Payload.APPENDED: miss,
            Payload.GENERATED: 176 * KV_BYTES_PER_TOKEN,
        },
    )
    demand = demand + Demand({PREFILL_GPU: miss / KV_BYTES_PER_TOKEN * 1.2e11})
    capacity: dict[Key, np.ndarray | float] = {}
    for pool, nodes in ((Pool.PREFILL, prefill), (Pool.DECODE, decode)):
        capacity[Key(pool, Resource.SNIC, Direction.IN)] = nodes * snic
        capacity[Key(pool, Resource.CNIC, Direction.READ)] = nodes * 400e9
        capacity[Key(pool, Resource.CNIC, Direction.WRITE)] = nodes * 400e9
        capacity[Key(pool, Resource.DRAM, Direction.BOTH)] = nodes * 500e9
    capacity[Key(Pool.DECODE, Resource.SNIC, Direction.OUT)] = decode * snic
    capacity[PREFILL_GPU] = prefill * 4.7e15
    return demand, capacity


def answer(demand: Demand, capacity: dict[Key, np.ndarray | float]) -> Bound:
    return solve(demand, capacity)


def main() -> None:
    size = 1_000_000
    built, solved = [], []
    for _ in range(RUNS):
        start = time.perf_counter()
        demand, capacity = sweep(size)
        ready = time.perf_counter()
        answer(demand, capacity)
        built.append(ready - start)
        solved.append(time.perf_counter() - ready)
    rate = size / float(np.median(solved))
    print(f"{size:,} configurations with 10 capacities, median of {RUNS} runs on one core")
    print(f"drawing and loads   {np.median(built):8.3f} s")
    print(f"closed form         {np.median(solved):8.3f} s   {rate / 1e6:.1f} million a second")
    print(json.dumps({"configurations_per_s": rate, "configurations": size}))


if __name__ == "__main__":
    main()
