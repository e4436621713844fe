"""What a study costs beside the model: seconds a closed-form point, and what a second core brings.

``python -m benchmarks.studies [--points N] [--programs N]``. The overhead is everything that is not the
closed form itself: making each point's scenario, pieces, Parquet, the folder: the processor time of the
driver and of all workers, less what the bare closed form takes for the same scenarios, a point.
Processor time, because a shared machine's clock measures the neighbours too. The projection multiplies
measured figures out, nothing more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from app.examples import find_scenario
from solvers import alternatives
from solvers.study import Ran, Study, load_study, run_study
from solvers.study_work import Done, evaluate

RUNS = 5
BASE = str(find_scenario("paper-mean-turn").resolve())


def study_of(folder: Path, method: str, points: int) -> Study:
    """Return a grid of so many points: nodes, hit rates and TPOTs, all numbers."""
    rates = max(2, points // 40)
    spec: dict[str, Any] = {
        "name": f"benchmark {method}",
        "base": BASE,
        "axes": {
            "workload.scale.hit_rate": {"from": 0.7, "to": 0.99, "steps": rates},
            "cluster.prefill.count": [2, 3, 4, 5],
            "cluster.decode.count": [2, 3, 4, 6, 8],
            "slo.tpot": ["50 ms", "80 ms"],
        },
        "method": method,
    }
    path = folder / f"{method}.yaml".replace(" ", "-")
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return load_study(path)


def timed(study: Study, workers: int) -> Ran:
    with tempfile.TemporaryDirectory() as out:
        return run_study(study, Path(out) / "out", workers=workers)


def bare_s(study: Study, points: int) -> float:
    """Return seconds of the closed form alone, a point, scenarios ready."""
    make, space = study.work.scenarios, study.work.space
    step = max(1, study.points // points)
    ready = [make.of(space.point(number)) for number in range(0, study.points, step)]
    begun = time.process_time()
    alternatives.quick_many(ready)
    return (time.process_time() - begun) / len(ready)


def inside_s(study: Study, points: int) -> tuple[float, Done]:
    """Return seconds a point of a worker's whole task, in this process, and what it makes."""
    evaluate(study.work, 0, 1)  # looks the base scenario up
    done = evaluate(study.work, 0, points)
    return done.cpu_s / points, done


def _busy(_: int) -> None:
    total = 0
    for number in range(10_000_000):
        total += number * number % 7


def machine_speedup() -> float:
    """Return what two processes of plain arithmetic do here over one: no study can do better."""
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(_busy, range(2)))  # both have started
        seconds = []
        for count in (1, 2):
            begun = time.perf_counter()
            list(pool.map(_busy, range(count)))
            seconds.append(time.perf_counter() - begun)
    return 2 * seconds[0] / seconds[1]


def writing_s(done: Done) -> float:
    """Return seconds for the driver to write a piece."""
    import os

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        for number in range(20):
            with (Path(folder) / f"{number}").open("wb") as file:
                file.write(done.parquet)
                file.flush()
                os.fsync(file.fileno())
        return (time.perf_counter() - begun) / 20


def _cpu_s(ran: Ran) -> float:
    return ran.worker_cpu_s + ran.driver_cpu_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=20_000, help="closed-form points")
    parser.add_argument("--programs", type=int, default=800, help="LP points")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        closed = study_of(Path(name), "closed form", asked.points)
        program = study_of(Path(name), "LP", asked.programs)
        # In turn, and the best of each: a shared core's speed doubles and halves within seconds.
        rounds = [
            (bare_s(closed, 1000), inside_s(closed, 1000), timed(closed, 2)) for _ in range(RUNS)
        ]
        bare = min(bare for bare, _, _ in rounds)
        task, piece = min((inside for _, inside, _ in rounds), key=lambda inside: inside[0])
        whole = min((whole for _, _, whole in rounds), key=_cpu_s)
        write = writing_s(piece)
        pairs, limits = [], []
        for _ in range(RUNS):
            pairs.append((timed(program, 1), timed(program, 2)))
            limits.append(machine_speedup())
    each = _cpu_s(whole) / whole.points
    overhead = each - bare
    one, two = max(pairs, key=lambda pair: pair[0].seconds / pair[1].seconds)
    ratios = [a.seconds / b.seconds for a, b in pairs]
    speedup = statistics.median(ratios)
    print(f"closed form, {whole.points:,} points on 2 workers, best of {RUNS}")
    print(f"  whole study              {whole.seconds:8.2f} s by the clock")
    print(
        f"  processor time a point   {each * 1e3:8.3f} ms, of which the closed form {bare * 1e3:.3f}"
    )
    print(f"  overhead a point         {overhead * 1e3:8.3f} ms")
    driver = whole.driver_cpu_s / whole.points
    print(f"  of it the driver's       {driver * 1e6:8.3f} us")
    print(
        f"  task alone, one process  {task * 1e3:8.3f} ms a point: {(task - bare) * 1e3:.3f} overhead"
    )
    print(f"  a piece of 1,000 written {write * 1e3:8.3f} ms, {len(piece.parquet):,} bytes")
    print(f"LP, {program.points:,} points, medians of {RUNS}")
    print(f"  one worker, two          {one.seconds:8.2f} s, {two.seconds:.2f} s (best pair)")
    print(f"  speed-up                 {speedup:8.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    in_tasks = statistics.median(b.work_s / (2 * b.seconds) for _, b in pairs)
    print(
        f"  plain arithmetic         {statistics.median(limits):8.2f}, from {min(limits):.2f} to "
        f"{max(limits):.2f}: what two processes of this machine reach"
    )
    print(
        f"  inside tasks             {in_tasks:8.1%} of the two workers' time by the clock, their start "
        f"included; a task that waits for a core counts too"
    )
    million = 1_000_000
    print("1 million closed-form points on 100 workers, on paper")
    worker = whole.worker_cpu_s / whole.points
    print(
        f"  workers                  {million * worker / 100:8.1f} s at {worker * 1e3:.3f} ms a point"
    )
    print(
        f"  the driver               {million * driver:8.1f} s, {million / 1000 * write:.1f} s of disk"
    )
    result = {
        "overhead_s_per_point": overhead,
        "speedup_two_cores": speedup,
        "machine_speedup_two_cores": statistics.median(limits),
        "in_tasks_share_two_workers": in_tasks,
        "closed_form_s_per_point": bare,
        "task_s_per_point": task,
        "task_overhead_s_per_point": task - bare,
        "driver_s_per_point": driver,
        "write_s_per_piece": write,
        "projected_s_million_points_100_workers": max(
            million * worker / 100, million * driver + million / 1000 * write
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
