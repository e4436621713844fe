"""The llm-d router's config: what it means by version, what it leaves out, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from dualpath_model.errors import InputError
from dualpath_model.export import Export, export, parse_plan, target_named
from dualpath_model.export.targets._break_even import break_even_tokens
from tests.export.plans import made, plan_data, plan_file


def exported(change: Any = None, **more: Any) -> Export:
    data = copy.deepcopy(plan_data())
    if change is not None:
        change(data)
    return export(target_named("llm-d"), parse_plan(data), **more)


def plugins(files: Export) -> dict[str, dict[str, Any]]:
    config = yaml.safe_load(files.files["epp-config.yaml"])
    return {plugin["type"]: plugin.get("parameters", {}) for plugin in config["plugins"]}


def test_beta_in_what_each_version_counts() -> None:
    """0.8.0 counts whole prompts and 1.5 times as much output; 0.9.0 only what is to be computed.

    Both are the same load: the work of beta_s.
    """
    deployment = plan_file().deployment
    kind = deployment.pool("prefill")[0]
    old, new = plugins(exported()), plugins(exported(version="0.9.0"))
    assert old["concurrency-detector"]["maxTokenConcurrency"] == int(2.5 * kind.beta_tokens)
    computed = deployment.beta_s * kind.prefill_tokens_per_s
    assert new["concurrency-detector"]["maxTokenConcurrency"] == int(computed)
    # turns of beta in both units
    prompt, append = deployment.workload.prompt_tokens.mean, deployment.workload.append_tokens.mean
    assert kind.beta_tokens / prompt == pytest.approx(computed / append, rel=1e-6)
    for found in (old, new):
        limit = found["concurrency-detector"]["maxTokenConcurrency"]
        assert found["token-load-scorer"]["queueThresholdTokens"] == limit
        assert found["concurrency-detector"]["concurrencyMode"] == "tokens"


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d"])
def test_the_append_break_even(name: str) -> None:
    deployment = plan_file(name).deployment
    least = min(break_even_tokens(deployment, kind) for kind in deployment.pool("decode"))
    found = plugins(made("llm-d", name))["prefix-based-pd-decider"]
    assert found == {"nonCachedTokens": int(least)}
    # Dynamo's threshold is the same: both compare the tokens that the decode engine would compute
    dynamo = yaml.safe_load(made("dynamo", name).files["conditional-disagg.json"])
    assert dynamo["eff_isl_threshold"] == int(least)


def test_zero_is_never_written() -> None:
    def fast(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["cnic_bytes_per_s"] *= 1e9

    assert plugins(exported(fast))["prefix-based-pd-decider"] == {"nonCachedTokens": 1}


def test_whole_prompts_are_matched() -> None:
    """With the default of 4,096 tokens a hit of 32,468 would leave 28,372 that look uncached."""
    longest = plugins(exported())["approx-prefix-cache-producer"]["maxPrefixTokensToMatch"]
    assert longest == plan_file().deployment.workload.prompt_tokens.most
    assert longest > 4096


def test_the_slowest_kind_decides() -> None:
    def uneven(data: Any) -> None:
        kinds = [k for k in data["deployment"]["kinds"] if k["pool"] == "prefill"]
        other = copy.deepcopy(kinds[0])
        kinds[0]["positions"], other["positions"] = [0], [1]
        other["beta_tokens"] /= 4
        data["deployment"]["kinds"].append(other)

    files = exported(uneven)
    slow = plan_file().deployment.pool("prefill")[0].beta_tokens / 4
    assert plugins(files)["concurrency-detector"]["maxTokenConcurrency"] == int(2.5 * slow)
    assert any("25%" in dropped.effect for dropped in files.bundle.dropped)


def test_what_is_left_out() -> None:
    dropped = {entry.what.split(" ")[0]: entry for entry in exported().bundle.dropped}
    assert set(dropped) == {"split", "alpha", "Z", "quota", "QoS"}
    assert "2.72x over Basic is 1.00x" in dropped["split"].effect
    assert "1.7 times" in dropped["Z"].effect


def test_a_limit_below_one_token_is_refused() -> None:
    def none(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["beta_tokens"] = 0.0

    with pytest.raises(InputError, match="maxTokenConcurrency must be at least 1"):
        exported(none)
