"""Our memory copy against STREAM's Copy in C with OpenMP, in turn, on arrays of one size.

``python -m benchmarks.against_stream [--runs N]`` prints one JSON object; half a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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

_NEAR = 2**30
"""Bytes of static data, from which on x86 the compiler must be told."""


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    print(json.dumps(compare(runs=parser.parse_args().runs), indent=1))


def compare(*, runs: int = 5) -> dict[str, Any]:
    """Alternate ours and STREAM's ``runs`` times; "copy_over_stream" is the median of the ratios.

    Of neighbouring runs, because a shared machine's memory may change its rate twofold from one moment
    to the next, which moves the ratio of the medians (given, too) but few of those ratios.

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
        # As STREAM is usually built, the size included.
        build = [gcc, "-O3", "-march=native", "-fopenmp", f"-DITEMS={size // 8}L"]
        if 2 * size >= _NEAR and platform.machine() == "x86_64":
            build.append("-mcmodel=medium")
        build += [str(SOURCE), "-o", str(program)]
        subprocess.run(build, check=True)
        copy = memory.Copy(size, threads)
        for _ in range(runs):
            ours.append(_ours(copy, size))
            theirs.append(_stream(program, threads))
    return {
        "copy_over_stream": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "ratio_of_medians": statistics.median(ours) / statistics.median(theirs),
        "ours_bytes_per_s": ours,
        "stream_bytes_per_s": theirs,
        "settings": {"array_bytes": size, "threads": threads, "build": " ".join(build[1:-3])},
    }


def _ours(copy: memory.Copy, size: int) -> float:
    rates = []
    for _ in range(REPETITIONS - 1):
        seconds, copies = copy.run(size, 0.0)
        rates.append(2.0 * size * copies / seconds)
    return statistics.median(rates)


def _stream(program: Path, threads: int) -> float:
    ran = subprocess.run(
        [str(program), str(REPETITIONS)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return statistics.median([float(line) for line in ran.stdout.split()][1:])


if __name__ == "__main__":
    main()
