"""Our policies against the paper's, on the paper's workloads and on recorded sessions.

``python -m benchmarks.policies [--traces DIR] [--replications N]``: capacity under the SLO, TTFT, TPOT,
balance at 85 % of the capacity that the paper's policy has, and the completion time of a batch; changes
are means over seeds of the relative difference with the same seed, with 95 % intervals. Minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from dualpath_model.scenario import Scenario, WorkloadClass
from dualpath_model.traces import load_workload
from solvers.reproduction.lab import DS_27B, DS_660B, Assumptions, Lab
from solvers.reproduction.policies import MEASURES, Case, Comparison, compare

TRACES = Path("../shared/traces/agentic_coding")


def main() -> None:
    """Print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--replications", type=int, default=5)
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    asked = parser.parse_args()
    found: list[Comparison] = []
    for case in cases(asked.traces):
        if asked.case and not any(part in case.name for part in asked.case):
            continue
        rows = list(compare(case, replications=asked.replications, said=_say))
        found += rows
        _show(case, rows)
    print(json.dumps({"comparisons": [asdict(row) for row in found]}))


def cases(traces: Path) -> Iterator[Case]:
    """Yield the paper's main set-ups, and the recorded sessions where they are."""
    lab = Lab()
    for row in ("32K", "48K", "64K"):
        name = f"DS 660B 2P4D, {row}"
        yield Case(name, lab.scenario(DS_660B._replace(row=row)), 1024)
    yield Case("DS 27B 1P1D, 64K", lab.scenario(DS_27B), 512)
    if traces.exists():
        # think times of hours: sessions live long and few come, so it fills and is measured for longer
        recorded = _with_sessions(Lab(Assumptions(kv_dtype="fp8")).scenario(DS_660B), traces)
        yield Case("DS 660B 2P4D, recorded", recorded, 192, warmup_s=14_400.0, measure_s=86_400.0)
    else:
        _say(f"{traces} is not there: no recorded sessions")


def _with_sessions(scenario: Scenario, traces: Path) -> Scenario:
    workload = load_workload(traces)
    return replace(scenario, classes=(WorkloadClass("recorded", workload, share=1.0),))


def _show(case: Case, rows: list[Comparison]) -> None:
    print(f"\n{case.name}")
    print(f"{'policy':>24}" + "".join(f"{name:>30}" for name in MEASURES))
    for policy in dict.fromkeys(row.policy for row in rows):
        cells = []
        for row in (row for row in rows if row.policy == policy):
            change = f" ({row.change:+.1%} +-{row.change_half_width:.1%})"
            cells.append(f"{row.mean:.4g}{'' if policy == 'dualpath' else change}")
        print(f"{policy:>24}" + "".join(f"{cell:>30}" for cell in cells))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
