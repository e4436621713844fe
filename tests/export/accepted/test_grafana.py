"""Grafana's data model gives every key of the dashboard back; promtool reads every expression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.export.accepted.test_prometheus import promtool
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def read_by_model(document: Any, folder: Path) -> Answer:
    path = folder / "dashboard.json"
    path.write_text(json.dumps(document))
    return check("monitoring", path, checker="monitoring_dashboard")


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_key_is_lost(name: str, tmp_path: Path) -> None:
    answer = read_by_model(json.loads(made("grafana", name).files["dashboard.json"]), tmp_path)
    assert answer.accepted, answer.output
    plan = plan_file(name)
    lines = [tuple(line) for line in answer.values["lines"]]
    served = plan.deployment
    for legend, value in (
        ("plan: x", plan.split),
        ("plan: most", plan.throughput_requests_per_s),
        ("plan: SLO", served.ttft_s),
        ("plan: SLO", served.tpot_s),
        *(("plan: full", kind.storage_read_bytes_per_s) for kind in served.kinds),
        *(
            ("plan: beta", kind.beta_tokens / served.workload.prompt_tokens.mean)
            for kind in served.pool("prefill")
        ),
    ):
        shown = [float(expr[7:-1]) for said, expr in lines if said == legend]
        assert any(abs(one - value) <= 1e-5 * value for one in shown), (legend, value, shown)


@pytest.mark.parametrize("name", EXAMPLES)
def test_promtool_reads_every_expression(name: str, tmp_path: Path) -> None:
    document = json.loads(made("grafana", name).files["dashboard.json"])
    found = [query["expr"] for panel in document["panels"] for query in panel.get("targets", [])]
    assert len(found) > 20
    accepted, said = promtool(_rules(found, tmp_path), "check", "rules", "rules.yml")
    assert accepted, said
    accepted, _ = promtool(_rules([*found, "sum(("], tmp_path), "check", "rules", "rules.yml")
    assert not accepted


def _rules(expressions: list[str], folder: Path) -> Path:
    rules = [{"record": f"own:number{n}", "expr": text} for n, text in enumerate(expressions)]
    document = {"groups": [{"name": "dashboard", "rules": rules}]}
    (folder / "rules.yml").write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(tittle="x"),
        lambda d: d["panels"][1].update(unit="Bps"),
        lambda d: d["panels"][1]["targets"][0].update(expression="up"),
        lambda d: d["panels"][1]["fieldConfig"]["defaults"].update(minimum=0),
        lambda d: d["panels"][1]["gridPos"].update(width=3),
        lambda d: d.update(panels=5),
    ],
)
def test_a_key_that_grafana_does_not_know_is_found(change: Any, tmp_path: Path) -> None:
    document = json.loads(made("grafana").files["dashboard.json"])
    change(document)
    answer = read_by_model(document, tmp_path)
    assert not answer.accepted, answer.output
