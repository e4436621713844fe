"""promtool 2.42 reads rules, tests and configuration; the alerts fire as their tests say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.export import write
from tests.export.environment import folder_of, tool
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports

EXAMPLES = (
    "deepseek-660b-2p4d",
    "heterogeneous",
    "qwen-32b-1p2d",
    "mixed-traffic",
    "recorded-sessions",
)


def promtool(folder: Path, *words: str) -> tuple[bool, str]:
    """Return whether promtool accepts, and what it says."""
    command, variables = tool("monitoring", "promtool")
    done = subprocess.run(
        [*command, *words],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_promtool_accepts_all_three_files(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(made("prometheus", name), out)
    for words in (
        ("check", "rules", "dualpath.rules.yml"),
        ("test", "rules", "dualpath.test.yml"),
        ("check", "config", "prometheus.yml"),
    ):
        accepted, said = promtool(out, *words)
        assert accepted, said
    cases = yaml.safe_load((out / "dualpath.test.yml").read_text())["tests"]
    raised = [c for c in cases if any(t["exp_alerts"] for t in c["alert_rule_test"])]
    alerts = [rule for rule in rules_of(out) if "alert" in rule]
    # one case for each alerting rule, and one in which all are silent
    assert len(raised) == len(alerts)
    assert len(cases) == len(raised) + 1


def rules_of(out: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((out / "dualpath.rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous"])
def test_the_thresholds_are_the_plans(name: str, tmp_path: Path) -> None:
    """A NIC just below its threshold is silent, one just above raises: read back by promtool."""
    out = tmp_path / "out"
    write(made("prometheus", name), out)
    for number, kind in enumerate(plan_file(name).deployment.pool("prefill")):
        rate, node = kind.storage_read_bytes_per_s, f"p{kind.positions[0]}"
        used = next(
            u.dual_path
            for u in plan_file(name).utilisation
            if (u.pool, u.node, u.resource, u.direction)
            == ("prefill", kind.positions[0], "snic", "in")
        )
        level = min(0.98, max(0.95, (1 + used) / 2))
        for factor, count in ((0.999, 0), (1.001, 1)):
            step = f"{rate * level * factor * 15:.0f}"
            labels = f'pool="prefill",node="{node}",device="storage0"'
            series = f"node_network_receive_bytes_total{{{labels}}}"
            test = {
                "rule_files": ["dualpath.rules.yml"],
                "evaluation_interval": "15s",
                "tests": [
                    {
                        "interval": "15s",
                        "input_series": [{"series": series, "values": f"0+{step}x40"}],
                        "promql_expr_test": [
                            {
                                "expr": "count(ALERTS{alertname="
                                f'"DualPathStorageNicSaturated",alertstate="firing",kind="prefill-{number}"}}'
                                ") or vector(0)",
                                "eval_time": "10m",
                                "exp_samples": [{"labels": "{}", "value": count}],
                            }
                        ],
                    }
                ],
            }
            (out / "own.yml").write_text(yaml.safe_dump(test))
            accepted, said = promtool(out, "test", "rules", "own.yml")
            assert accepted, said


@pytest.mark.parametrize(
    ("file", "right", "wrong", "words"),
    [
        ("dualpath.rules.yml", "sum by (pool, node)", "sum by (pool, node", "check rules"),
        ("dualpath.rules.yml", "record:", "recorded:", "check rules"),
        ("dualpath.rules.yml", '"1m15s"', '"soon"', "check rules"),
        ("dualpath.rules.yml", "$labels.node }}", "$labels.node", "check rules"),
        ("dualpath.rules.yml", "> 4.", "> 14.", "test rules"),
        ("dualpath.test.yml", "exp_labels", "labels", "test rules"),
        ("dualpath.test.yml", "node: p0", "node: p1", "test rules"),
        ("prometheus.yml", "static_configs", "static_config", "check config"),
        ("prometheus.yml", "scrape_interval", "scrape_intervall", "check config"),
    ],
)
def test_a_wrong_file_is_refused(
    file: str, right: str, wrong: str, words: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write(made("prometheus"), out)
    text = (out / file).read_text()
    assert right in text
    (out / file).write_text(text.replace(right, wrong))
    names = {"rules": "dualpath.rules.yml", "config": "prometheus.yml"}
    of = "dualpath.test.yml" if words == "test rules" else names[words.split()[1]]
    accepted, said = promtool(out, *words.split(), of)
    assert not accepted, said


def sources() -> str:
    site = folder_of("monitoring") / "site"
    return "\n".join(path.read_text() for path in sorted(site.rglob("*.py")))


def unknown_metrics(rules: str, said: str) -> set[str]:
    """Return the engines' metrics in rules that no source names."""
    names = set(re.findall(r"(?:vllm|sglang):[a-z_]+", rules))
    assert names
    return {name for name in names if not _named(name, said)}


def _named(name: str, said: str) -> bool:
    # what the client library puts behind the name of a counter or a histogram
    return any(f'"{name.removesuffix(end)}"' in said for end in ("", "_total", "_bucket"))


def test_engines_have_the_metrics_that_rules_ask_for() -> None:
    """By their sources of the pinned versions; labels too."""
    said = sources()
    rules = made("prometheus").files["dualpath.rules.yml"]
    assert unknown_metrics(rules, said) == set()
    assert unknown_metrics(rules + "vllm:kv_offload_bytes_by_medium", said)
    assert 'labelnames = ["model_name", "engine"]' in said
    assert 'labelnames + ["stage"]' in said
    assert 'TIER_LABEL = "tier"' in said
    assert 'f"{tier_idx + 1}:{self._tier_types[tier_idx]}"' in said
    for tier in ("fs", "obj"):
        assert re.search(rf'register_tier\(\s*"{tier}"', said)
    for stage in ("waiting_to_start", "in_progress"):
        assert f"'{stage}'" in said
