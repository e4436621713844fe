"""The dashboard: a row a resource, the plan's values as lines, metrics that the rules record."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml

from dualpath_model.export import export, parse_plan, target_named
from tests.export.plans import made, plan_data, plan_file

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def dashboard(name: str = "deepseek-660b-2p4d") -> Any:
    return json.loads(made("grafana", name).files["dashboard.json"])


def lines_of(document: Any) -> list[tuple[str, str, str]]:
    return [
        (panel["title"], query["legendFormat"], query["expr"])
        for panel in document["panels"]
        for query in panel.get("targets", [])
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_rows_and_lines(name: str) -> None:
    document, plan = dashboard(name), plan_file(name)
    rows = [panel["title"] for panel in document["panels"] if panel["type"] == "row"]
    assert rows == [
        "Storage NICs",
        "Split",
        "Latency",
        "Queues",
        "Load",
        "QoS of the compute network",
    ]
    lines = lines_of(document)
    full = [float(expr[7:-1]) for _, legend, expr in lines if legend == "plan: full"]
    assert full == [kind.storage_read_bytes_per_s for kind in plan.deployment.kinds]
    alpha = [float(expr[7:-1]) for _, legend, expr in lines if legend == "plan: alpha"]
    hits = plan.deployment.workload.hit_tokens.mean
    assert alpha == pytest.approx(
        [kind.alpha_tokens / hits for kind in plan.deployment.pool("prefill")], rel=1e-5
    )
    share = next(expr for _, legend, expr in lines if legend == "plan: share while all send")
    assert share == "vector(0.1)"


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_metric_is_recorded_by_the_rules(name: str) -> None:
    rules = yaml.safe_load(made("prometheus", name).files["dualpath.rules.yml"])
    recorded = {
        rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule
    }
    asked = {
        metric
        for _, _, expr in lines_of(dashboard(name))
        for metric in re.findall(r"dualpath:[a-z_:0-9]+", expr)
    }
    assert asked
    assert asked <= recorded


@pytest.mark.parametrize("name", EXAMPLES)
def test_panels_do_not_overlap_and_have_ids_of_their_own(name: str) -> None:
    panels = dashboard(name)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_one_scenario_is_one_dashboard() -> None:
    data = copy.deepcopy(plan_data())
    data["split"] = 0.5  # of the same scenario
    other = json.loads(export(target_named("grafana"), parse_plan(data)).files["dashboard.json"])
    assert other["uid"] == dashboard()["uid"]
    assert other["uid"] != dashboard("heterogeneous")["uid"]
    assert len(other["uid"]) <= 40


def test_what_the_plan_lacks_has_no_line() -> None:
    data = copy.deepcopy(plan_data())
    for kind in data["deployment"]["kinds"]:
        kind["decode_batch"] = None
    data["deployment"]["workload"]["hit_tokens"]["mean"] = 0.0
    document = json.loads(export(target_named("grafana"), parse_plan(data)).files["dashboard.json"])
    legends = {legend for _, legend, _ in lines_of(document)}
    assert "plan: batch" not in legends
    assert "plan: alpha" not in legends
    assert "plan: beta" in legends
