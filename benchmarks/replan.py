"""Re-planning against every fixed ratio of the same four nodes, on days made of recorded sessions.

Four days, each simulated with `dualpath replan`'s controller and with every fixed ratio:

- *chat*: Mooncake's recorded hour at its recorded arrivals;
- *coding*: all recorded coding-agent sessions, their starts drawn over two hours;
- *chat, coding*: the recorded hour, then the half of the coding sessions that appends least for each
  generated token, their starts drawn over an hour. Made up, to move the mix;
- *chat, coding, chat*: the same, and the recorded hour once more, from one second to the next.

The coding recordings have no clock that sessions share, so when they start is our choice and said here.
Copies superpose populations of the same sessions, so that four nodes have something to do. Of the third
day the highest load with 90 % of the turns within the SLO is searched, too; `--seeds N` drives it with N
seeds of its starts and prints the range of the gains over them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualpath_model import yaml_lines
from dualpath_model.scenario import Scenario, parse_spec, resolve
from dualpath_model.traces import load_workload
from solvers.replan_answer import Rule
from solvers.replan_compose import Day, Part, half_of
from solvers.replan_day import DayResult, replan_day

_TRACES = Path(os.environ.get("DUALPATH_TRACES", Path(__file__).parents[2] / "shared" / "traces"))
_HOUR_S = 3600.0
_EVERY_S = 120.0
_RULE = Rule(dwell_s=600.0)
_TOLERANCE = 0.03  # of the highest loads
_COMPOSED = "chat_coding"

SCENARIO = {
    "name": "gpt-oss-120b on four DGX H100",
    "llm": "gpt-oss-120b",
    "cluster": {
        "prefill": {"node": "dgx-h100", "count": 2},
        "decode": {"node": "dgx-h100", "count": 2},
    },
    "parallelism": {"prefill": {"expert": 8}, "decode": {"expert": 8}},
    "workload": {"moments": {"prompt_tokens": 60000, "miss_tokens": 4000, "output_tokens": 400}},
    "slo": {"ttft": "4 s", "tpot": "50 ms"},
}


def scenario() -> Scenario:
    """Return the cluster as it is in the morning: two prefill and two decode nodes."""
    text = json.dumps(SCENARIO)
    document = yaml_lines.parse(text, "benchmarks/replan.py")
    return resolve(parse_spec(document), Path(), document)


def days(traces: Path) -> dict[str, Day]:
    """Return the days by name."""
    chat = load_workload(traces / "mooncake")
    coding = load_workload(traces / "agentic_coding")
    outputs = half_of(coding, "output")
    hour = Part(chat, 0.0, 60.0, 6.0)
    shift = Part(outputs, _HOUR_S, _HOUR_S, 37.0)
    back = Part(chat, 3 * _HOUR_S, 60.0, 6.0)
    return {
        "chat": Day("chat", (hour,)),
        "coding": Day("coding", (Part(coding, 0.0, 2 * _HOUR_S, 10.0),)),
        "chat_coding": Day("chat, coding", (hour, shift)),
        "chat_coding_chat": Day("chat, coding, chat", (hour, shift, back)),
    }


def row(found: DayResult, wall_s: float) -> dict[str, Any]:
    """Return what the last line keeps of a day."""
    best = next(one for one in found.fixed if one.name == found.best_fixed)
    return {
        "adaptive_within_slo": found.adaptive.within_slo,
        "fixed_within_slo": {one.name: one.within_slo for one in found.fixed},
        "best_fixed": best.name,
        "gain_within_slo": found.gain_within_slo,
        "turns": found.adaptive.turns,
        "changes": found.adaptive.changes,
        "closed_node_hours": found.adaptive.closed_node_hours,
        "drains_s": list(found.adaptive.drains_s),
        "sustained_load": {one.name: one.load for one in found.sustained},
        "gain_sustained": found.gain_sustained,
        "wall_s": wall_s,
    }


def drive(name: str, day: Day, seed: int) -> dict[str, Any]:
    """Compare re-planning with every fixed ratio on a day, print a line for each, return its row."""
    begun = time.perf_counter()
    found = replan_day(
        scenario(),
        replace(day, seed=seed),
        _RULE,
        every_s=_EVERY_S,
        search=name == _COMPOSED,
        tolerance=_TOLERANCE,
    )
    loads = {one.name: f"{one.load:.2f}" for one in found.sustained}
    for one in (found.adaptive, *found.fixed):
        print(
            f"{name:18} {seed:4} {one.name:10} {one.within_slo:10.2%} {one.ttft_s['mean']:8.2f} s "
            f"{one.changes:8} {loads.get(one.name, ''):>6}",
            flush=True,
        )
    return row(found, time.perf_counter() - begun)


def spans(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the least and the most of each gain over the seeds, and print them."""
    found = {}
    for field, said in (
        ("gain_within_slo", "points of turns within the SLO"),
        ("gain_sustained", f"load sustained, searched to {_TOLERANCE:.0%}"),
    ):
        values = [one[field] for one in rows if one[field] is not None]
        if values:
            found[field] = [min(values), max(values)]
            print(
                f"{_COMPOSED}: gain over the best fixed ratio with {len(values)} seeds: "
                f"{min(values):+.1%} to {max(values):+.1%} ({said})"
            )
    return found


def main() -> None:
    """Print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("days", nargs="*", metavar="DAY", help="default: all four")
    parser.add_argument(
        "--seeds", type=int, default=1, help=f"drive {_COMPOSED} with so many seeds of its starts"
    )
    asked = parser.parse_args()
    if asked.seeds < 1:
        parser.error(f"--seeds is {asked.seeds}; at least one is needed")
    if not _TRACES.is_dir():
        print(f"skipped: there are no recorded sessions at {_TRACES}")
        print(json.dumps({"skipped": True}))
        return
    every = days(_TRACES)
    if unknown := [name for name in asked.days if name not in every]:
        parser.error(f"there is no day {unknown[0]}; there are {', '.join(every)}")
    result: dict[str, Any] = {}
    print(
        f"{'day':18} {'seed':>4} {'run':10} {'within SLO':>10} {'mean TTFT':>10} {'changes':>8} "
        f"{'load':>6}"
    )
    for name, day in every.items():
        if asked.days and name not in asked.days:
            continue
        seeds = asked.seeds if name == _COMPOSED else 1
        rows = [drive(name, day, seed) for seed in range(seeds)]
        result[name] = rows[0]
        if seeds > 1:
            result[name] |= {"seeds": rows[1:], "over_seeds": spans(rows)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
