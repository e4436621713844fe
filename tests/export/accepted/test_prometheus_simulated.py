"""Alerts on simulated runs: silent while DualPath has room, raised where Basic fills a storage NIC."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dualpath_model.export import write
from dualpath_model.export.targets._alert_tests import rendered
from dualpath_model.scenario import load_scenario
from solvers.simulator.experiments import Outcome, execute
from solvers.simulator.series import NODE
from tests.conftest import ROOT
from tests.export.accepted.test_prometheus import promtool
from tests.export.plans import made, plan_file
from tests.export.simulated_series import STEP_S, promtool_values, scraped

pytestmark = pytest.mark.exports

EXAMPLE = "ds-27b-1p1d"
SATURATED = "DualPathStorageNicSaturated"


@cache
def run_of(policy: str) -> Outcome:
    """Basic with 600 agents at once, or DualPath at six tenths of the plan's rate."""
    scenario = load_scenario(ROOT / "examples" / f"{EXAMPLE}.yaml")
    if policy == "basic":
        return execute(scenario, policy, agents=600, until_s=300, sample_s=STEP_S)
    return execute(scenario, policy, agents=3500, rate_aps=3.5, until_s=960, sample_s=STEP_S)


def promtool_says(
    folder: Path, policy: str, expected: dict[int, list[tuple[str, list[Any]]]]
) -> tuple[bool, str]:
    """Run ``promtool test rules`` on a run's series; ``expected``: alerts by name at seconds."""
    out = folder / "out"
    if not out.exists():
        write(made("prometheus", EXAMPLE), out)
    samples = scraped(run_of(policy), plan_file(EXAMPLE))
    test = {
        "rule_files": ["dualpath.rules.yml"],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [
            {
                "interval": f"{STEP_S}s",
                "input_series": [
                    {"series": name, "values": promtool_values(values)}
                    for name, values in samples.items()
                ],
                "alert_rule_test": [
                    {"eval_time": f"{seconds}s", "alertname": name, "exp_alerts": alerts}
                    for seconds, parts in expected.items()
                    for name, alerts in parts
                ],
            }
        ],
    }
    (out / "simulated.yml").write_text(yaml.safe_dump(test))
    return promtool(out, "test", "rules", "simulated.yml")


def alert_names() -> list[str]:
    groups = yaml.safe_load(made("prometheus", EXAMPLE).files["dualpath.rules.yml"])["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return sorted({rule["alert"] for rule in rules if "alert" in rule})


def busy_of(policy: str, node: str) -> np.ndarray:
    outcome = run_of(policy)
    table = np.array(outcome.series.nodes)[:, :, NODE.index("nic_busy")]
    return np.asarray(table[:, outcome.run.state.node[node]])


def saturated_until() -> int:
    """Return a second near the end of the first time, at least 150 s, that Basic fills a prefill NIC."""
    full = busy_of("basic", "p0") > 0.99
    begin = int(np.argmax(full))
    rest = full[begin:]
    end = begin + (int(np.argmin(rest)) if not rest.all() else len(rest))
    assert (end - begin) * STEP_S >= 150
    # sample n is of the time (n + 1) x STEP_S; the last one may already be partly idle, and would show
    # in the rate that the alert's text names
    return (end - 1) * STEP_S


def saturation(policy: str, seconds: int) -> list[Any]:
    groups = yaml.safe_load(made("prometheus", EXAMPLE).files["dualpath.rules.yml"])["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    rule = next(
        r for r in rules if r.get("alert") == SATURATED and r["labels"]["kind"] == "prefill-0"
    )
    last = seconds // STEP_S
    rate = float(busy_of(policy, "p0")[last - 4 : last].mean())
    value = rate * plan_file(EXAMPLE).deployment.kinds[0].storage_read_bytes_per_s
    labels = {"pool": "prefill", "node": "p0", **rule["labels"]}
    texts = {name: rendered(t, labels, value) for name, t in rule["annotations"].items()}
    return [{"exp_labels": labels, "exp_annotations": texts}]


def test_a_full_storage_nic_raises_its_alert(tmp_path: Path) -> None:
    seconds = saturated_until()
    alerts = saturation("basic", seconds)
    accepted, said = promtool_says(tmp_path, "basic", {seconds: [(SATURATED, alerts)]})
    assert accepted, said
    # and only the right one passes: nothing expected, or before it has lasted
    refused, _ = promtool_says(tmp_path, "basic", {seconds: [(SATURATED, [])]})
    assert not refused
    accepted, said = promtool_says(tmp_path, "basic", {60: [(SATURATED, [])]})
    assert accepted, said


def test_a_healthy_run_raises_nothing(tmp_path: Path) -> None:
    plan = plan_file(EXAMPLE)
    outcome = run_of("dualpath")
    steady = outcome.series.cluster[20:]
    rate = (steady[-1][-1] - steady[0][-1]) / (steady[-1][0] - steady[0][0])
    # busy enough that the alerts which wait for half the plan's rate look at it
    assert 0.5 < rate / plan.throughput_requests_per_s < 0.8
    quiet: list[tuple[str, list[Any]]] = [(name, []) for name in alert_names()]
    times = dict.fromkeys(range(60, 960, 60), quiet)
    accepted, said = promtool_says(tmp_path, "dualpath", times)
    assert accepted, said
    wrong = {900: [(SATURATED, saturation("dualpath", 900))]}
    accepted, _ = promtool_says(tmp_path, "dualpath", wrong)
    assert not accepted
