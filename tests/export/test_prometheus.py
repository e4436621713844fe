"""Rules from the plan: thresholds are its values, alerts name them, what it needs not is left out."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml

from dualpath_model.export import Site, export, parse_plan, target_named
from dualpath_model.export.targets import _metrics as metrics
from dualpath_model.export.targets._alert_tests import rendered
from dualpath_model.export.targets._alerts import Figures, full_share, split_limits
from tests.export.plans import made, plan_data, plan_file

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def alerts_of(name: str = "deepseek-660b-2p4d", **more: Any) -> dict[str, list[dict[str, Any]]]:
    return _alerts(made("prometheus", name, **more).files["dualpath.rules.yml"])


def _alerts(text: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                found.setdefault(rule["alert"], []).append(rule)
    return found


def last_number(text: str) -> float:
    return float(re.findall(r"[0-9.]+(?:e[+-]?[0-9]+)?", text)[-1])


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_alert_is_there_and_names_the_plans_value(name: str) -> None:
    found = alerts_of(name)
    assert set(found) == {
        "DualPathStorageNicSaturated",
        "DualPathStorageReadImbalance",
        "DualPathSplitOffPlan",
        "DualPathTtftP90AboveSlo",
        "DualPathTtftP99AboveSlo",
        "DualPathTpotP90AboveSlo",
        "DualPathPrefillQueueBeyondBeta",
        "DualPathLoadBeyondPlan",
    }
    for rules in found.values():
        for rule in rules:
            assert set(rule["annotations"]) == {"summary", "description", "plan"}
            assert re.search(r"[0-9]", rule["annotations"]["plan"])
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert re.fullmatch(r"([0-9]+[hms])+", rule["for"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_thresholds_are_the_plans(name: str) -> None:
    plan, found = plan_file(name), alerts_of(name)
    served = plan.deployment
    one = {key: last_number(rules[0]["expr"]) for key, rules in found.items()}
    assert one["DualPathTtftP90AboveSlo"] == served.ttft_s
    assert one["DualPathTtftP99AboveSlo"] == served.ttft_s
    assert one["DualPathTpotP90AboveSlo"] == served.tpot_s
    assert one["DualPathLoadBeyondPlan"] == pytest.approx(plan.throughput_requests_per_s, rel=1e-5)
    for rule, kind in zip(
        found["DualPathPrefillQueueBeyondBeta"], served.pool("prefill"), strict=True
    ):
        beta = kind.beta_tokens / served.workload.prompt_tokens.mean
        assert beta - 1 < last_number(rule["expr"]) <= beta
        assert f"{kind.beta_tokens:.6g}" in rule["annotations"]["plan"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_kind_of_node_has_its_own_saturation(name: str) -> None:
    plan = plan_file(name)
    rules = alerts_of(name)["DualPathStorageNicSaturated"]
    for rule, kind in zip(rules, plan.deployment.kinds, strict=True):
        used = [
            u.dual_path
            for u in plan.utilisation
            if (u.pool, u.resource, u.direction) == (kind.pool, "snic", "in")
            and u.node in kind.positions
        ]
        share = last_number(rule["expr"]) / kind.storage_read_bytes_per_s
        assert share == pytest.approx(min(0.98, max(0.95, (1 + max(used)) / 2)), rel=1e-5)
        nodes = [f"{kind.pool[0]}{position}" for position in kind.positions]
        assert re.search(r'node=~"([^"]+)"', rule["expr"]).group(1).split("|") == nodes  # type: ignore[union-attr]
        assert f"{kind.storage_read_bytes_per_s:.6g}" in rule["annotations"]["plan"]


def test_the_splits_limits_are_where_a_pool_runs_over() -> None:
    """2 prefill nodes of 50 GB/s and 4 decode nodes, 272 GB/s to read: from 0.633 to 0.734."""
    plan = plan_file()
    hit_bytes = plan.deployment.workload.hit_tokens.mean * plan.deployment.llm.read_bytes_per_token
    reads = plan.throughput_requests_per_s * hit_bytes
    low, high = split_limits(Figures(plan))
    assert low == pytest.approx(1 - 100e9 / reads, rel=1e-4)
    assert high == pytest.approx(200e9 / reads, rel=1e-4)
    assert (round(low, 3), round(high, 3)) == (0.633, 0.734)
    (rule,) = alerts_of()["DualPathSplitOffPlan"]
    assert f"< {low:.6g}" in rule["expr"]
    assert f"> {high:.6g}" in rule["expr"]
    assert f"{plan.split:.4f}" in rule["annotations"]["plan"]


def test_without_a_limit_on_the_split_there_is_no_alert_but_a_note() -> None:
    """The recorded sessions read so little that the NICs serve them at any split."""
    assert "DualPathSplitOffPlan" not in alerts_of("recorded-sessions")
    notes = made("prometheus", "recorded-sessions").bundle.notes
    assert any("any split" in note for note in notes)


def test_how_long_a_rate_must_stay_up() -> None:
    """A window of 60 s and a TTFT of 4 s, in evaluations of 15 s."""
    assert {rule["for"] for rule in alerts_of()["DualPathStorageNicSaturated"]} == {"1m15s"}
    data = copy.deepcopy(plan_data())
    data["deployment"]["ttft_s"] = 20.0
    text = export(target_named("prometheus"), parse_plan(data)).files["dualpath.rules.yml"]
    assert {rule["for"] for rule in _alerts(text)["DualPathStorageNicSaturated"]} == {"1m30s"}


@pytest.mark.parametrize(
    ("used", "share"), [(0.0, 0.95), (0.9, 0.95), (0.92, 0.96), (0.97, 0.98), (1.0, 0.98)]
)
def test_from_where_a_nic_is_full(used: float, share: float) -> None:
    assert full_share(used) == pytest.approx(share)


@pytest.mark.parametrize("rate", [1e-3, 1.0, 20.0, 1e5])
def test_windows_are_long_enough_for_chance(rate: float) -> None:
    """Twice (3 / 0.05)^2 reads a node at the plan's rate, between 5 minutes and an hour."""
    deployment = plan_file().deployment
    found = metrics.window_s(deployment, rate)
    assert found == min(3600, max(300, 60 * -(-7200 * 6 // (rate * 60))))


def test_scrapes_have_the_labels_that_rules_ask_for() -> None:
    site = Site.model_validate({"hosts": {"decode": "fd00::{index}"}, "ports": {"server": 9000}})
    found = yaml.safe_load(made("prometheus", site=site).files["prometheus.yml"])
    jobs = {job["job_name"]: job["static_configs"] for job in found["scrape_configs"]}
    labels = {(c["labels"]["pool"], c["labels"]["node"]) for c in jobs["dualpath-nodes"]}
    assert labels == {("prefill", f"p{n}") for n in range(2)} | {
        ("decode", f"d{n}") for n in range(4)
    }
    assert jobs["dualpath-nodes"][2]["targets"] == ["[fd00::0]:9100"]
    assert jobs["dualpath-engines"][0]["targets"] == ["prefill-0.example.internal:9000"]


def test_names_of_interfaces_are_no_expressions() -> None:
    site = Site(storage_interfaces=['a"b', "c.d", "e|f", "g\\h"])
    text = made("prometheus", site=site).files["dualpath.rules.yml"]
    first = yaml.safe_load(text)["groups"][0]["rules"][0]["expr"]
    quoted = re.search(r'device=~("(?:[^"\\]|\\.)*")', first)
    assert quoted is not None
    pattern = re.compile(json.loads(quoted.group(1)))
    for name in site.storage_interfaces or []:
        assert pattern.fullmatch(name)
    for other in ("cxd", "e", "f", "a"):
        assert not pattern.fullmatch(other)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (15, "15s"), (60, "1m"), (75, "1m15s"), (3600, "1h"), (3675, "1h1m15s")],
)
def test_durations(seconds: int, text: str) -> None:
    assert metrics.duration(seconds) == text


def test_templates_are_rendered_as_prometheus_does() -> None:
    text = '{{ $labels.node }} reads {{ printf "%.4g" $value }}'
    assert rendered(text, {"node": "p0"}, 5e10) == "p0 reads 5e+10"
    assert rendered(text, {"node": "p0"}, 1.23456) == "p0 reads 1.235"


def test_nothing_to_read_is_no_division_by_zero() -> None:
    data = copy.deepcopy(plan_data())
    for used in data["utilisation"]:
        used["dual_path"] = 0.0
    made_of = export(target_named("prometheus"), parse_plan(data))
    found = _alerts(made_of.files["dualpath.rules.yml"])
    assert "DualPathStorageReadImbalance" not in found
    assert "DualPathSplitOffPlan" not in found
    assert any("reads nothing" in note for note in made_of.bundle.notes)


def test_nodes_without_storage_nics_read_through_their_compute_nics() -> None:
    data = copy.deepcopy(plan_data())
    kinds = data["deployment"]["kinds"]
    kinds[1]["snics"] = 0
    plan = parse_plan(data)
    found = metrics.interfaces(plan.deployment, Site())
    assert found == ["storage0", *(f"compute{n}" for n in range(8))]
    named = Site(compute_interfaces=[f"eth{n}" for n in range(9)])
    assert metrics.interfaces(plan.deployment, named)[1:] == [f"eth{n}" for n in range(8)]


def test_interfaces_without_a_site_are_said_to_be_invented() -> None:
    assert "the interfaces storage0: without" in made("prometheus").files["README.md"]


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        (["p0"], "p0"),
        (["p0", "p1", "p2"], "p0, p1, p2"),
        (["d0", "d1", "d2", "d3"], "d0 to d3"),
        ([f"d{n}" for n in (*range(9), 20)], "d0, d1, d2, d3, d4, d5, d6, d7 and 2 more"),
    ],
)
def test_many_nodes_are_said_in_few_words(nodes: list[str], text: str) -> None:
    assert metrics.spoken(nodes) == text


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d"])
def test_what_is_scraped_is_where_vllm_listens(name: str) -> None:
    config = yaml.safe_load(made("prometheus", name).files["prometheus.yml"])
    job = next(j for j in config["scrape_configs"] if j["job_name"] == "dualpath-engines")
    scraped = {target for group in job["static_configs"] for target in group["targets"]}
    routing = json.loads(made("vllm", name).files["routing.json"])
    urls = {engine["url"] for pool in ("prefill", "decode") for engine in routing[pool]}
    assert {f"http://{target}" for target in scraped} == urls
