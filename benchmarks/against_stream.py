"""Our memory copy against STREAM's Copy in C with OpenMP, in turn, on arrays of one size.

``python -m benchmarks.against_stream [--runs N]`` prints one JSON object; half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from calibration import memory
from dualpath_model.errors import InputError

SOURCE = Path(__file__).with_name("stream_copy.c")
REPETITIONS = 10
"""STREAM's own; the first is not counted, as there."""


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    print(json.dumps(compare(runs=parser.parse_args().runs), indent=1))


def compare(*, runs: int = 5) -> dict[str, Any]:
    """Alternate ours and STREAM's ``runs`` times; "copy_over_stream" is the ratio of the medians.

    Each run is the median of 9 copies of the size that :func:`calibration.memory.measure_memory` takes,
    after one that is not counted; bytes read and written per second. Raises InputError without gcc.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise InputError("gcc is not installed; `apt-get install gcc` gives it")
    threads = len(os.sched_getaffinity(0))
    free, cache = memory.free_memory_bytes(), memory.last_level_cache_bytes()
    size = memory.array_bytes(free // 2, cache)  # both programs hold arrays at once
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "stream_copy"
        # As STREAM is usually built; gcc makes the loop a memcpy.
        build = [gcc, "-O3", "-march=native", "-fopenmp", str(SOURCE), "-o", str(program)]
        subprocess.run(build, check=True)
        copy = memory.Copy(size, threads)
        for _ in range(runs):
            ours.append(_ours(copy, size))
            theirs.append(_stream(program, size, threads))
    return {
        "copy_over_stream": statistics.median(ours) / statistics.median(theirs),
        "ours_bytes_per_s": ours,
        "stream_bytes_per_s": theirs,
        "settings": {"array_bytes": size, "threads": threads, "build": " ".join(build[1:4])},
    }


def _ours(copy: memory.Copy, size: int) -> float:
    rates = []
    for _ in range(REPETITIONS - 1):
        seconds, copies = copy.run(size, 0.0)
        rates.append(2.0 * size * copies / seconds)
    return statistics.median(rates)


def _stream(program: Path, size: int, threads: int) -> float:
    ran = subprocess.run(
        [str(program), str(size), str(REPETITIONS)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return statistics.median([float(line) for line in ran.stdout.split()][1:])


if __name__ == "__main__":
    main()
