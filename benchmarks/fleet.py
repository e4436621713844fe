"""How long the fleet search takes: twelve kinds, three classes, four cases, 2,000 nodes, to 1 %."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dualpath_model import yaml_lines
from solvers.fleet_question import Question, question_of
from solvers.fleet_search import Effort, best
from solvers.fleet_spec import parse_fleet
from solvers.fleet_uses import uses_of

# node, USD/h where the catalog has none, at most, owned
_KINDS = (
    ("dgx-h100", 70.0, 500, 60),
    ("dgx-h200", 80.0, 500, 0),
    ("dgx-b200", 115.0, 400, 0),
    ("gb200-nvl72-tray", 64.0, 600, 40),
    ("hgx-h20", 40.0, 400, 0),
    ("hgx-h800", 60.0, 500, 80),
    ("aws-p5en.48xlarge", None, 500, 0),
    ("aws-p6-b200.48xlarge", None, 400, 0),
    ("azure-nd96isr-mi300x-v5", None, 500, 0),
    ("gcp-a3-ultragpu-8g", None, 400, 0),
    ("oci-bm.gpu.h200.8", None, 400, 20),
    ("oci-bm.gpu.b200.8", None, 300, 0),
)


def large(survive: int, rate: float = 40_000.0) -> Question:
    """Return a question whose answer has more than 2,000 nodes."""
    import orjson

    kinds = []
    for number, (node, price, maximum, owned) in enumerate(_KINDS):
        kind: dict[str, Any] = {
            "node": node,
            "maximum": maximum,
            "owned": owned,
            "owned_price_usd_per_hour": 8.0,
            "power_kw": 10.0 + number % 5,
            "nodes_per_rack": 4 - number % 3,
        }
        kinds.append(kind if price is None else kind | {"price_usd_per_hour": price})
    chat = {"moments": {"prompt_tokens": 4000, "miss_tokens": 1500, "output_tokens": 200}}
    agents = {"synthetic": {"row": "64K", "sessions": 200}}
    short = {"synthetic": {"row": "32K", "sessions": 200, "seed": 1}}
    fields = {
        "name": "twelve kinds",
        "llm": "deepseek-v3.2",
        "kv_dtype": "fp8",
        "kinds": kinds,
        "classes": [
            {"name": "agents", "share": 0.6, "growth": 1.2, "workload": agents},
            {"name": "short agents", "share": 0.4, "workload": short},
            {"name": "chat", "requests_per_s": rate / 10, "workload": chat},
        ],
        "scenarios": [
            {"name": "peak hour", "rate": 1.4},
            {"name": "longer contexts", "context": 1.3},
            {"name": "hit rate falls", "hit_rate": 0.97},
        ],
        "require": {"requests_per_s": rate},
        "margin": 0.6,
        "limits": {"survive": survive, "racks": 2200, "power_kw": 50_000.0, "kinds": 8},
    }
    document = yaml_lines.parse(orjson.dumps(fields).decode(), "large.yaml")
    return question_of(parse_fleet(document), Path(), document)


def main() -> None:
    """Print a table, then one JSON object."""
    result: dict[str, float] = {}
    print(f"{'survive':>7} {'nodes':>6} {'USD/h':>12} {'gap':>8} {'wall s':>7} {'cpu s':>7}")
    for survive in (0, 1, 2):
        asked = large(survive)
        begun, cpu = time.perf_counter(), time.process_time()
        found = best(asked, uses_of(asked), effort=Effort(gap=0.01))
        wall, used = time.perf_counter() - begun, time.process_time() - cpu
        assert found is not None
        nodes = int(found.counts.sum())
        print(f"{survive:7} {nodes:6} {found.cost:12,.2f} {found.gap:8.3%} {wall:7.2f} {used:7.2f}")
        result |= {f"seconds_survive_{survive}": wall, f"nodes_survive_{survive}": nodes}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
