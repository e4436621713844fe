"""Re-planning against every fixed ratio of the same four nodes, on days made of recorded sessions.

Four days, each simulated with `dualpath replan`'s controller and with every fixed ratio:

- *chat*: Mooncake's recorded hour at its recorded arrivals;
- *coding*: all recorded coding-agent sessions, their starts drawn over two hours;
- *chat, coding*: the recorded hour, then the half of the coding sessions that appends least for each
  generated token, their starts drawn over an hour. Made up, to move the mix;
- *chat, coding, chat*: the same, and the recorded hour once more, from one second to the next.

The coding recordings have no clock that sessions share, so when they start is our choice and said here.
Copies superpose populations of the same sessions, so that four nodes have something to do. Of the third
day the highest load with 90 % of the turns within the SLO is searched, too.
"""

from __future__ import annotations

import json
import os
import sys
import time
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


def main() -> None:
    """Print a table, then one JSON object. Names as arguments choose days."""
    if not _TRACES.is_dir():
        print(f"skipped: there are no recorded sessions at {_TRACES}")
        print(json.dumps({"skipped": True}))
        return
    asked = scenario()
    result: dict[str, Any] = {}
    print(f"{'day':18} {'run':10} {'within SLO':>10} {'mean TTFT':>10} {'changes':>8} {'load':>6}")
    for name, day in days(_TRACES).items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        begun = time.perf_counter()
        found = replan_day(
            asked,
            day,
            _RULE,
            every_s=_EVERY_S,
            search=name == "chat_coding",
            tolerance=0.03,
        )
        loads = {one.name: f"{one.load:.2f}" for one in found.sustained}
        for one in (found.adaptive, *found.fixed):
            print(
                f"{name:18} {one.name:10} {one.within_slo:10.2%} {one.ttft_s['mean']:8.2f} s "
                f"{one.changes:8} {loads.get(one.name, ''):>6}",
                flush=True,
            )
        result[name] = row(found, time.perf_counter() - begun)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
