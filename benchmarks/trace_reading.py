"""How fast recorded sessions are read, beside plain gzip and json.loads of the same files.

Prints a table, then one JSON object: ``seconds`` for all files, ``calls`` in them (asserted, so
that a speed-up that loses requests fails) and ``ratio_to_gzip_and_json`` (our time over theirs).
Reads ../shared/traces/agentic_coding, or what DUALPATH_TRACES names, or else the shipped sample.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualpath_model.traces import load_workload

ROOT = Path(__file__).resolve().parents[1]
RECORDED_CALLS = 7_521
ROUNDS = 3


def recorded_folder() -> Path:
    """Return the folder of recorded sessions, or the shipped sample where there is none."""
    traces = Path(os.environ.get("DUALPATH_TRACES", ROOT.parent / "shared" / "traces"))
    recorded = traces / "agentic_coding"
    return recorded if recorded.is_dir() else ROOT / "examples" / "traces" / "agentic_sample"


def plain_parse(folder: Path) -> int:
    """Inflate and parse all files and do nothing with them; return the number of inflated bytes."""
    inflated = 0
    for path in sorted(folder.iterdir()):
        text = gzip.decompress(path.read_bytes())
        inflated += len(text)
        json.loads(text)
    return inflated


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    folder = recorded_folder()
    ours, plain, calls, inflated = [], [], 0, 0
    for _ in range(ROUNDS):  # taking turns, so that a slow spell of the machine hits both
        seconds, workload = timed(lambda: load_workload(folder))
        ours.append(seconds)
        calls = workload.turns
        seconds, inflated = timed(lambda: plain_parse(folder))
        plain.append(seconds)
    if folder.name == "agentic_coding" and calls != RECORDED_CALLS:
        raise SystemExit(f"{folder}: {calls} calls were read, {RECORDED_CALLS} are in it")
    seconds, reference = statistics.median(ours), statistics.median(plain)
    print(f"{folder}: {calls:,} calls, {inflated / 1e6:.1f} MB of JSON, median of {ROUNDS}")
    print(f"{'':24}{'s':>8}{'MB/s':>8}{'calls/s':>10}")
    for name, value in (("load_workload", seconds), ("gzip and json.loads", reference)):
        print(f"{name:24}{value:8.3f}{inflated / value / 1e6:8.0f}{calls / value:10.0f}")
    result = {
        "seconds": seconds,
        "calls": calls,
        "ratio_to_gzip_and_json": seconds / reference,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
