"""Our measurements beside the field's tools, in one run: fio, iperf3, bare torch, a STREAM copy in C.

``python -m benchmarks.calibration [FOLDER]``; FOLDER is on the storage to compare (default: a temporary
folder here). Needs gcc, and Debian's ``fio`` and ``iperf3``. Runs alternate, ratios are of medians.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import against_fio, against_iperf3, against_stream, against_torch

KEYS = {
    "storage_over_fio": 0.05,
    "network_over_iperf3": 0.10,
    "gemm_over_torch": 0.05,
    "copy_over_stream": 0.10,
}
"""The ratio of each comparison, and how far from 1 it may be."""


def main() -> None:
    """Compare, print a table, and one JSON object as the last line."""
    with tempfile.TemporaryDirectory(dir=Path(), prefix=".calibration-") as aside:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(aside)
        comparisons: dict[str, Callable[[], dict[str, Any]]] = {
            "storage_over_fio": lambda: against_fio.compare(folder),
            "network_over_iperf3": against_iperf3.compare,
            "gemm_over_torch": against_torch.compare,
            "copy_over_stream": against_stream.compare,
        }
        found = {name: compare() for name, compare in comparisons.items()}
    for name, most in KEYS.items():
        ratio = found[name][name]
        verdict = "within" if abs(ratio - 1.0) <= most else "OUTSIDE"
        print(f"{name:22} {ratio:.3f}   {verdict} {most:.0%}")
    print(json.dumps({**{name: found[name][name] for name in KEYS}, "details": found}))


if __name__ == "__main__":
    main()
