"""From a measurement of this machine to a plan and a simulation, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.catalog.measured import TAKEN
from dualpath_model.profile import load_profile
from tests.app.test_cli import dualpath

SCENARIO = """
name: measured here
llm: qwen2.5-0.5b
cluster:
  prefill: {{node: profile.json, count: 2}}
  decode: {{node: profile.json, count: 2}}
workload:
  synthetic: {{row: 32K, sessions: 4, turns: 4, append_tokens: 500, generate_tokens: 20,
              total_tokens: 2500, context_tokens: 1600}}
slo: {{ttft: 60 min, tpot: 10 min}}
efficiencies: {{hbm_usable: 0.9{others}}}
"""
EFFICIENCY = {
    "snic": "storage_read_bytes_per_s",
    "cnic": "network_both_ways_bytes_per_s",
    "dram": "dram_bytes_per_s",
    "hbm": "hbm_copy_bytes_per_s",
    "prefill_mfu": "prefill_flop_per_s",
    "decode_mfu": "decode_flop_per_s",
}


def answer(*arguments: str | Path) -> dict[str, Any]:
    done = dualpath(*map(str, arguments), "--json", "-")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_calibration_of_this_machine_plans_and_simulates_without_catalog_numbers(
    tmp_path: Path,
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    done = dualpath(
        *("calibrate", "run", "--llm", "qwen2.5-0.5b", "--seconds", "60", "--space", "128 MB"),
        *("--path", str(storage), "--out", str(tmp_path / "profile.json")),
    )
    assert done.returncode == 0, done.stderr
    assert list(storage.iterdir()) == []
    profile = load_profile(tmp_path / "profile.json")
    assert {str(part) for part in profile.parts} == {"gpu", "memory", "storage", "network"}
    figures = profile.figures

    bare = tmp_path / "bare.yaml"
    bare.write_text(SCENARIO.format(others=""))
    plan = answer("plan", bare)
    capacity = {
        (row["pool"], row["resource"], row["direction"]): row["capacity"]
        for row in plan["utilisation"]
    }
    assert capacity["prefill", "snic", "in"] == figures["storage_read_bytes_per_s"].value
    assert capacity["decode", "snic", "out"] == figures["storage_write_bytes_per_s"].value
    assert capacity["decode", "cnic", "read"] == figures["network_both_ways_bytes_per_s"].value
    assert capacity["prefill", "dram", "read+write"] == figures["dram_bytes_per_s"].value
    if "prefill_flop_per_s" in figures:  # left out, with a warning, where load hides it
        assert capacity["prefill", "gpu", "compute"] == pytest.approx(
            figures["prefill_flop_per_s"].value, rel=1e-12
        )
    uncertain = plan["uncertainty"]["throughput_requests_per_s"]
    assert uncertain["low"] <= uncertain["value"] <= uncertain["high"]
    assert uncertain["value"] == pytest.approx(plan["throughput_requests_per_s"], rel=1e-9)
    assert {row["figure"] for row in plan["uncertainty"]["measurements"]} <= set(TAKEN)

    # Efficiencies are the catalog's say on a resource: where a figure stands, none may matter.
    replaced = [name for name, figure in EFFICIENCY.items() if figure in figures]
    assert {"snic", "cnic", "dram", "hbm"} <= set(replaced)
    other = tmp_path / "other.yaml"
    other.write_text(SCENARIO.format(others="".join(f", {name}: 0.01" for name in replaced)))
    assert answer("plan", other) == plan

    simulated = answer("simulate", bare, "--agents", "4")
    assert simulated["turns"] > 4
    assert simulated["jct_s"] > 0
    known = {"prefill_layer_s", "decode_layer_s"} & set(figures)
    assert simulated["constants"]["source"] == ("measured" if known else "fitted")
    again = answer("simulate", other, "--agents", "4")
    assert {**again, "wall_s": 0} == {**simulated, "wall_s": 0}
