"""Dynamo's own parsers and Kubernetes' schemas accept the files, and refuse wrong ones."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.export import write
from tests.export.environment import CHECKERS, Answer, check, folder_of
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "ds-27b-1p1d")
PLANNED = tuple(name for name in EXAMPLES if name != "heterogeneous")


def folder(tmp_path: Path, name: str) -> Path:
    write(made("dynamo", name), tmp_path / name)
    return tmp_path / name


def frontend_flags(out: Path) -> list[str]:
    """Return the flags of frontend.sh as bash reads them."""
    words = shlex.split((out / "frontend.sh").read_text(), comments=True)
    start = words.index("dynamo.frontend") + 1
    # shlex does not take a line's last backslash away
    return [word for word in words[start:] if word.strip()]


def route(tmp_path: Path, flags: list[str], policy: Path | None = None) -> Answer:
    flags = [str(policy) if word == "router.yaml" and policy else word for word in flags]
    file = tmp_path / "flags.json"
    file.write_text(json.dumps(flags))
    return check("dynamo", "router", file, checker="dynamo_files")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_router_takes_flags_and_policy(tmp_path: Path, name: str) -> None:
    out = folder(tmp_path, name)
    answer = route(tmp_path, frontend_flags(out), out / "router.yaml")
    assert answer.accepted, answer.output
    deployment = plan_file(name).deployment
    hits = deployment.workload.hit_tokens.mean * deployment.llm.read_bytes_per_token
    even = min(
        hits / (kind.cnics * kind.cnic_bytes_per_s / kind.engines) * kind.prefill_tokens_per_s
        for kind in deployment.kinds
        if kind.pool == "decode"
    )
    values = answer.values
    assert values["conditional_disagg_enabled"] is True
    assert values["conditional_disagg_eff_isl_threshold"] == int(even)
    share = even / (even + deployment.workload.hit_tokens.mean)
    assert values["conditional_disagg_eff_isl_ratio_threshold"] == pytest.approx(share, rel=1e-3)
    # the policy has no reader but the Rust type, which took it
    busy = yaml.safe_load((out / "router.yaml").read_text())["policy_classes"][0]
    slowest = min(k.prefill_tokens_per_s for k in deployment.kinds if k.pool == "prefill")
    assert busy["prefill_busy_threshold"] == int(deployment.beta_s * slowest)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quantum: 1", "quantm: 1"),
        ("quantum: 1", "quantum: 0"),
        ("queue_policy: fcfs", "queue_policy: first"),
        ("cache_bucket: any", "cache_bucket: other"),
        ("min_tokens: 0", "min_tokens: 5"),
    ],
)
def test_the_router_refuses_a_wrong_policy(tmp_path: Path, old: str, new: str) -> None:
    out = folder(tmp_path, EXAMPLES[0])
    text = (out / "router.yaml").read_text()
    assert old in text
    (out / "router.yaml").write_text(text.replace(old, new))
    answer = route(tmp_path, frontend_flags(out), out / "router.yaml")
    assert not answer.accepted, answer.output


@pytest.mark.parametrize(
    "wrong",
    [
        {"eff_isl_treshold": 100},
        {"eff_isl_threshold": 100.5},
        {"eff_isl_ratio_threshold": 1.5},
        {"policy": "other"},
    ],
)
def test_the_router_refuses_wrong_conditions(tmp_path: Path, wrong: dict[str, Any]) -> None:
    config = {**json.loads(made("dynamo").files["conditional-disagg.json"]), **wrong}
    flags = ["--router-mode", "kv", "--router-conditional-disagg"]
    flags += ["--router-conditional-disagg-config", json.dumps(config)]
    assert not route(tmp_path, flags).accepted


def test_the_router_refuses_an_unknown_flag(tmp_path: Path) -> None:
    assert not route(tmp_path, ["--router-mode", "kv", "--router-policy-confg", "x"]).accepted


def plan_with(file: Path) -> Answer:
    return check("dynamo", "planner", file, checker="dynamo_files")


@pytest.mark.parametrize("name", PLANNED)
def test_the_planner_takes_both_configs(tmp_path: Path, name: str) -> None:
    out, plan = folder(tmp_path, name), plan_file(name)
    answer = plan_with(out / "planner.yaml")
    assert answer.accepted, answer.output
    values, deployment = answer.values, plan.deployment
    assert values["ttft_ms"] == pytest.approx(deployment.ttft_s * 1e3)
    assert values["itl_ms"] == pytest.approx(deployment.tpot_s * 1e3)
    gpus = {
        pool: sum(kind.count * kind.gpus for kind in deployment.pool(pool))
        for pool in ("prefill", "decode")
    }
    assert values["min_gpu_budget"] == values["max_gpu_budget"] == sum(gpus.values())
    for pool, total in gpus.items():
        assert values[f"{pool}_min_endpoint"] * values[f"{pool}_engine_num_gpu"] == total
    by_load = plan_with(out / "planner-load.yaml")
    assert by_load.accepted, by_load.output
    prefill = deployment.pool("prefill")[0]
    beta = int(deployment.beta_s * prefill.prefill_tokens_per_s)
    assert by_load.values["prefill_scale_up_queue_tokens"] == beta
    assert by_load.values["optimization_target"] == "load"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("planner.yaml", "ttft_ms:", "ttft_mss:"),
        ("planner.yaml", "ttft_ms: 4000.0", "ttft_ms: 0"),
        ("planner.yaml", "mode: disagg", "mode: pd"),
        ("planner.yaml", "prefill_min_endpoint: 1", "prefill_min_endpoint: 0"),
        ("planner-load.yaml", "decode_scale_up_kv_rate: 100.0", "decode_scale_up_kv_rate: 101"),
        ("planner-load.yaml", "prefill_scale_down_queue_tokens", "prefill_scale_down_tokens"),
    ],
)
def test_the_planner_refuses_wrong_configs(tmp_path: Path, file: str, old: str, new: str) -> None:
    out = folder(tmp_path, EXAMPLES[0])
    text = (out / file).read_text()
    assert old in text
    (out / file).write_text(text.replace(old, new))
    answer = plan_with(out / file)
    assert not answer.accepted, answer.output


def test_kvbm_has_the_setting() -> None:
    text = made("dynamo").files["kvbm-prefill.env"]
    names = re.findall(r"^export ([A-Z_]+)=", text, re.MULTILINE)
    assert names == ["DYN_KVBM_CPU_CACHE_GB"]
    assert check("dynamo", "kvbm", *names, checker="dynamo_files").accepted
    assert not check("dynamo", "kvbm", "DYN_KVBM_CPU_CACHE_GIB", checker="dynamo_files").accepted


def graph_of(file: Path) -> Answer:
    return check("kubernetes", "graph", file, "1.34.0", checker="kubernetes_files")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_graph_has_known_keys_and_valid_pods(tmp_path: Path, name: str) -> None:
    out = folder(tmp_path, name)
    answer = graph_of(out / "graph.yaml")
    assert answer.accepted, answer.output
    config = check("kubernetes", out / "config.yaml", "1.34.0", checker="kubernetes_files")
    assert config.accepted, config.output
    assert config.values[0]["data"]["router.yaml"] == (out / "router.yaml").read_text()
    gpus = {"prefill": 0, "decode": 0}
    for part in answer.values["spec"]["components"]:
        if part["type"] in gpus:
            (container,) = part["podTemplate"]["spec"]["containers"]
            of_pod = int(container["resources"]["limits"]["nvidia.com/gpu"])
            nodes = part.get("multinode", {}).get("nodeCount", 1)
            gpus[part["type"]] += part["replicas"] * nodes * of_pod
    for pool, found in gpus.items():
        kinds = plan_file(name).deployment.pool(pool)
        assert found == sum(kind.count * kind.gpus for kind in kinds)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replicas: 1", "replica: 1"),
        ("nodeCount", "nodes"),
        ("image:", "imag:"),
        ("readOnly: true", "readonly: true"),
        ("type: prefill", "type: prefiller"),
        ("v1beta1", "v1beta2"),
        ('nvidia.com/gpu: "8"', "nvidia.com/gpu: [8]"),
    ],
)
def test_a_wrong_graph_is_refused(tmp_path: Path, old: str, new: str) -> None:
    file = folder(tmp_path, EXAMPLES[0]) / "graph.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    answer = graph_of(file)
    assert not answer.accepted, answer.output


def test_the_list_of_keys_fits_the_wheels_own_templates(tmp_path: Path) -> None:
    """The shipped templates pass our check, and use the keys that the list says they use."""
    keys = yaml.safe_load((CHECKERS / "dynamo_graph.yaml").read_text())
    packages = folder_of("dynamo") / "venv" / "lib"
    templates = sorted(packages.glob("*/site-packages/dynamo/profiler/templates/dgd/*/disagg.yaml"))
    assert len(templates) >= 3
    used: set[str] = set()
    for number, template in enumerate(templates):
        text = template.read_text().replace("apiVersion: v1\n", "")
        document = next(
            d for d in yaml.safe_load_all(text) if d and d["kind"] == "DynamoGraphDeployment"
        )
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(document))
        answer = graph_of(file)
        assert answer.accepted, (template, answer.output)
        for part in document["spec"]["components"]:
            used |= set(part)
    assert set(keys["shipped"]) <= used
    ours = {
        key
        for name in EXAMPLES
        for part in yaml.safe_load(made("dynamo", name).files["graph.yaml"])["spec"]["components"]
        for key in part
    }
    assert ours <= set(keys["shipped"]) | set(keys["examples"])


def test_engine_flags_are_vllms_or_dynamos() -> None:
    """Of Dynamo's own vLLM worker and of the vLLM that it starts, found in their sources."""
    packages = next((folder_of("dynamo") / "venv" / "lib").glob("*/site-packages/dynamo/vllm"))
    own = (packages / "backend_args.py").read_text()
    parts = yaml.safe_load(made("dynamo").files["graph.yaml"])["spec"]["components"]
    flags = {
        word
        for part in parts
        if part["type"] in ("prefill", "decode")
        for word in part["podTemplate"]["spec"]["containers"][0]["args"]
        if word.startswith("--")
    }
    # vllm/engine/arg_utils.py of 0.33.0 has them
    vllm = {
        "--model",
        "--tensor-parallel-size",
        "--data-parallel-size",
        "--enable-expert-parallel",
        "--max-num-batched-tokens",
        "--kv-cache-dtype",
        "--kv-transfer-config",
    }
    assert flags - vllm == {"--disaggregation-mode"}
    assert '"--disaggregation-mode"' in own
