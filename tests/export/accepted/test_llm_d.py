"""The router's config against our list of its keys: there is no parser of its own here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.export import write
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "ds-27b-1p1d")


def checked(file: Path) -> Answer:
    # of the environment only its YAML reader is used
    return check("kubernetes", file, checker="llm_d_files")


@pytest.mark.parametrize("name", EXAMPLES)
def test_accepted_and_read_back(tmp_path: Path, name: str) -> None:
    write(made("llm-d", name), tmp_path / "out")
    answer = checked(tmp_path / "out" / "epp-config.yaml")
    assert answer.accepted, answer.output
    parameters = {p["type"]: p.get("parameters", {}) for p in answer.values["plugins"]}
    deployment = plan_file(name).deployment
    beta = min(kind.beta_tokens for kind in deployment.pool("prefill"))
    assert parameters["concurrency-detector"]["maxTokenConcurrency"] == int(2.5 * beta)
    assert parameters["token-load-scorer"]["queueThresholdTokens"] == int(2.5 * beta)
    assert parameters["prefix-based-pd-decider"]["nonCachedTokens"] >= 1
    longest = parameters["approx-prefix-cache-producer"]["maxPrefixTokensToMatch"]
    assert longest >= deployment.workload.prompt_tokens.most


def spoilt(config: Any, how: str) -> Any:
    plugins = {p["type"]: p for p in config["plugins"]}
    if how == "unknown plugin":
        plugins["queue-scorer"]["type"] = "queue-score"
    elif how == "unknown key":
        config["pluggins"] = []
    elif how == "unknown parameter":
        plugins["token-load-scorer"]["parameters"]["queueThreshold"] = 1
    elif how == "zero turns disaggregation off":
        plugins["prefix-based-pd-decider"]["parameters"]["nonCachedTokens"] = 0
    elif how == "undeclared reference":
        config["schedulingProfiles"][0]["plugins"][0]["pluginRef"] = "prefil-filter"
    elif how == "two handlers":
        config["plugins"].append({"type": "single-profile-handler"})
    elif how == "no decider":
        config["plugins"].remove(plugins["prefix-based-pd-decider"])
    elif how == "limit in a mode that does not read it":
        del plugins["concurrency-detector"]["parameters"]["concurrencyMode"]
    else:
        config["apiVersion"] = "inference.networking.x-k8s.io/v1alpha1"
    return config


@pytest.mark.parametrize(
    "how",
    [
        "unknown plugin",
        "unknown key",
        "unknown parameter",
        "zero turns disaggregation off",
        "undeclared reference",
        "two handlers",
        "no decider",
        "limit in a mode that does not read it",
        "old group",
    ],
)
def test_wrong_ones_are_refused(tmp_path: Path, how: str) -> None:
    config = yaml.safe_load(made("llm-d").files["epp-config.yaml"])
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert checked(file).accepted
    file.write_text(yaml.safe_dump(spoilt(config, how)))
    answer = checked(file)
    assert not answer.accepted, answer.output
