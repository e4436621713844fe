"""How long ``dualpath plan`` takes from nothing: a new process for every run, JSON to a pipe.

``python -m benchmarks.cold_start``
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

RUNS = 7
COMMAND = [sys.executable, "-m", "app.cli", "plan", "deepseek-660b-2p4d", "--json", "-"]


def main() -> None:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run(COMMAND, check=True, stdout=subprocess.PIPE)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    print(f"dualpath plan deepseek-660b-2p4d, {RUNS} new processes")
    print(f"median {median:.3f} s, from {min(seconds):.3f} to {max(seconds):.3f} s")
    print(json.dumps({"seconds": median}))


if __name__ == "__main__":
    main()
