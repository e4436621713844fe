"""Dynamo's files and the importer: values by another route, gates, refusals, and the way back."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.export import Export, Site, export, parse_plan, target_named, write
from dualpath_model.export.imports.dynamo import read
from dualpath_model.export.imports.skeleton import Skeleton, read_deployment
from dualpath_model.export.targets import _break_even as break_even
from dualpath_model.export.targets._dynamo_workers import workers
from dualpath_model.export.targets._names import key, label
from dualpath_model.scenario import load_scenario
from tests.export.plans import made, plan_data, plan_file, with_nodes

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "ds-27b-1p1d", "mixed-traffic")


def exported(change: Any = None, name: str = "deepseek-660b-2p4d", **more: Any) -> Export:
    data = copy.deepcopy(plan_data(name))
    if change is not None:
        change(data)
    return export(target_named("dynamo"), parse_plan(data), more.pop("site", Site()), **more)


def graph(files: Export) -> list[dict[str, Any]]:
    components: list[dict[str, Any]] = yaml.safe_load(files.files["graph.yaml"])["spec"][
        "components"
    ]
    return components


# ---- values ----------------------------------------------------------------------------------------


def test_break_even_of_the_papers_example() -> None:
    """32,468 hit tokens of 35,136 bytes over a 400 Gbps NIC take 22.8 ms; 4,490 tokens/s compute 102."""
    deployment = plan_file().deployment
    tokens = 32467.808 * 35136 / 50e9 * 4489.9
    assert break_even.break_even_tokens(deployment, deployment.pool("decode")[0]) == pytest.approx(
        tokens, rel=1e-4
    )
    config = json.loads(made("dynamo").files["conditional-disagg.json"])
    assert config["eff_isl_threshold"] == 102
    # the same at the mean turn, so neither of the two conditions hides the other
    ratio = config["eff_isl_ratio_threshold"]
    assert ratio * 32467.8 / (1 - ratio) == pytest.approx(tokens, rel=2e-3)


def test_break_even_follows_the_rates() -> None:
    """Twice the NICs halve it, copies in more ranks raise it, and a slow kind decides."""

    def twice(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["cnic_bytes_per_s"] *= 2

    def copies(data: Any) -> None:
        data["deployment"]["llm"]["copies"]["decode"] = 3.0

    def threshold(change: Any) -> int:
        text = exported(change).files["conditional-disagg.json"]
        return int(json.loads(text)["eff_isl_threshold"])

    assert threshold(None) == 102
    assert threshold(twice) == 51
    assert threshold(copies) == 307
    slow = json.loads(made("dynamo", "heterogeneous").files["conditional-disagg.json"])
    assert slow["eff_isl_threshold"] == 15


def test_the_threshold_is_never_zero() -> None:
    def fast(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["cnic_bytes_per_s"] *= 1e6

    assert json.loads(exported(fast).files["conditional-disagg.json"])["eff_isl_threshold"] == 1


def test_shares_below_the_threshold() -> None:
    """Append percentiles of the example: 140, 531, 2473, at most 14686."""
    deployment = plan_file().deployment
    assert "fewer than 50 %" in break_even.below_threshold(deployment, 140)
    assert "at least 50 %" in break_even.below_threshold(deployment, 141)
    assert "at least 99 %" in break_even.below_threshold(deployment, 2474)
    assert "all turns" in break_even.below_threshold(deployment, 14687)


@pytest.mark.parametrize("name", EXAMPLES)
def test_workers_are_the_plans_gpus(name: str) -> None:
    deployment = plan_file(name).deployment
    for pool in ("prefill", "decode"):
        kinds, found = deployment.pool(pool), [w for w in workers(deployment) if w.pool == pool]
        total = sum(kind.count * kind.gpus for kind in kinds)
        assert sum(w.replicas * w.gpus_of_worker for w in found) == total
        engines = sum(kind.count * kind.engines for kind in kinds)
        assert sum(w.replicas * w.data_parallel for w in found) == engines
        for worker in found:
            assert worker.gpus <= worker.kinds[0].gpus
            assert worker.gpus_of_worker >= max(kind.expert for kind in worker.kinds)
            assert worker.tensor * worker.data_parallel == worker.gpus_of_worker


@given(
    gpus=st.sampled_from([1, 2, 4, 6, 8, 16]),
    tensor=st.sampled_from([1, 2, 4, 8]),
    expert=st.integers(1, 64),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_workers_fill_the_nodes(gpus: int, tensor: int, expert: int, counts: list[int]) -> None:
    """For any shape that a plan could have, every GPU is in one worker of whole engines."""

    def change(data: Any) -> None:
        kinds = [k for k in data["deployment"]["kinds"] if k["pool"] == "prefill"]
        others = [k for k in data["deployment"]["kinds"] if k["pool"] != "prefill"]
        first, made_of = 0, []
        for number, count in enumerate(counts):
            kind = copy.deepcopy(kinds[0])
            kind |= {"gpus": gpus, "tensor": tensor, "expert": min(expert, gpus * count)}
            kind |= {
                "gpu": f"gpu-{number}",
                "positions": list(range(first, first + count)),
            }
            made_of.append(kind)
            first += count
        data["deployment"]["kinds"] = made_of + others
        with_nodes(data)

    data = copy.deepcopy(plan_data())
    change(data)
    if gpus % tensor:
        with pytest.raises(InputError, match=f"{gpus} GPUs in engines of {tensor}"):
            parse_plan(data)
        return
    deployment = parse_plan(data).deployment
    found = [worker for worker in workers(deployment) if worker.pool == "prefill"]
    assert sum(w.replicas * w.gpus_of_worker for w in found) == gpus * sum(counts)
    for worker, count in zip(found, counts, strict=True):
        assert worker.gpus_of_worker >= min(expert, gpus * count)
        assert worker.gpus_of_worker == worker.tensor * worker.data_parallel


def test_kvbm_counts_in_1e9_bytes_of_an_engine() -> None:
    """80 GB a node are 10 for each of 8 engines; 320 GB are 40; no buffer, no setting."""
    for name, value in (("deepseek-660b-2p4d", "10"), ("qwen-32b-1p2d", "40")):
        files = made("dynamo", name).files
        assert f"export DYN_KVBM_CPU_CACHE_GB={value}\n" in files["kvbm-prefill.env"]
        assert f'value: "{value}"' in files["graph.yaml"]
    without = made("dynamo", "heterogeneous")
    assert not [file for file in without.files if file.startswith("kvbm")]
    assert any("DYN_KVBM_CPU_CACHE_GB is left out" in note for note in without.bundle.notes)
    assert "KVBM" not in without.files["graph.yaml"]


def test_one_engine_of_eight_gpus_holds_the_whole_buffer() -> None:
    def wide(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind |= {"tensor": 8, "expert": 1, "buffer_bytes": 80.5e9}
        with_nodes(data)

    files = exported(wide)
    assert "export DYN_KVBM_CPU_CACHE_GB=80.5\n" in files.files["kvbm-prefill.env"]
    prefill = next(part for part in graph(files) if part["type"] == "prefill")
    assert prefill["replicas"] == 2
    assert "multinode" not in prefill
    args = prefill["podTemplate"]["spec"]["containers"][0]["args"]
    assert args[args.index("--tensor-parallel-size") + 1] == "8"
    assert "--enable-expert-parallel" not in args


@pytest.mark.parametrize(
    ("name", "prefill", "decode"), [("deepseek-660b-2p4d", 1, 1), ("qwen-32b-1p2d", 8, 16)]
)
def test_the_planner_by_load(name: str, prefill: int, decode: int) -> None:
    """Z of a decode engine that is a quarter full, and thresholds that one worker less still keeps."""

    def light(data: Any) -> None:
        workload = data["deployment"]["workload"]
        held = workload["prompt_tokens"]["mean"] + workload["output_tokens"]["mean"] / 2
        for kind in data["deployment"]["kinds"]:
            if kind["pool"] == "decode":
                kind["decode_batch"] = kind["hbm_tokens"] / held / 4

    config = yaml.safe_load(exported(light, name).files["planner-load.yaml"])
    assert config["decode_scale_up_kv_rate"] == pytest.approx(105 / 4)
    for up, down, count in (
        ("prefill_scale_up_queue_tokens", "prefill_scale_down_queue_tokens", prefill),
        ("decode_scale_up_kv_rate", "decode_scale_down_kv_rate", decode),
    ):
        # n - 1 workers with what n had at this load are just at the upper threshold; one never goes
        assert config[down] * count == pytest.approx(config[up] * (count - 1), rel=1e-4, abs=count)

    def unknown(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["decode_batch"] = None

    without = exported(unknown)
    assert "planner-load.yaml" not in without.files
    assert any("does not say how many requests" in note for note in without.bundle.notes)


def test_several_kinds_of_nodes() -> None:
    """A component for each, on nodes with its label, and no planner, which would refuse them."""
    files = made("dynamo", "heterogeneous")
    assert [part["name"] for part in graph(files)] == [
        "Frontend",
        "prefill",
        "decode-0",
        "decode-1",
    ]
    assert not [name for name in files.files if name.startswith("planner")]
    assert any("DuplicateSubComponentError" in note for note in files.bundle.notes)
    decode = {part["name"]: part for part in graph(files) if part["type"] == "decode"}
    for name, nodes in (("decode-0", 2), ("decode-1", 4)):
        assert decode[name]["podTemplate"]["spec"]["nodeSelector"] == {"dualpath-nodes": name}
        assert decode[name]["multinode"] == {"nodeCount": nodes}
        lines = files.files["label-nodes.sh"].splitlines()
        assert sum(line.endswith(f"dualpath-nodes={name}") for line in lines) == nodes
    # prefill nodes that differ in their storage NICs only are one component
    assert graph(files)[1]["replicas"] == 2


# ---- what is left out ------------------------------------------------------------------------------


def test_the_split_by_framework() -> None:
    """Dynamo's own step table has the split by the threshold; with others its loss is the plan's."""
    dropped = made("dynamo").bundle.dropped[0]
    assert "2.72x over Basic is 1.00x" in dropped.effect
    assert "whole prefill" in dropped.why

    def own(data: Any) -> None:
        data["deployment"]["framework"] = "dynamo"

    dropped = exported(own).bundle.dropped[0]
    assert "as a number" in dropped.what
    assert "102 tokens" in dropped.effect
    # a version without conditional disaggregation has no split at all
    assert "1.00x" in exported(own, version="1.4.0").bundle.dropped[0].effect


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        ("1.2.1", {"router.yaml", "frontend.sh", "graph.yaml", "conditional-disagg.json"}),
        ("1.4.0", {"graph.yaml", "conditional-disagg.json"}),
        ("1.5.0", set()),
        ("1.7.0", set()),
    ],
)
def test_older_versions(version: str, lacking: set[str]) -> None:
    newest, older = exported(), exported(version=version)
    assert lacking <= set(newest.files) - set(older.files)
    if not lacking:
        assert set(newest.files) == set(older.files)
    planner = yaml.safe_load(older.files["planner.yaml"])
    for pool in ("prefill", "decode"):
        assert (f"{pool}_min_endpoint" in planner) == (version in ("1.5.0", "1.7.0"))
    assert ("planner-load.yaml" in older.files) == (version != "1.2.1")
    notes = " ".join(older.bundle.notes)
    for file in lacking - {"frontend.sh"}:
        assert f"{file} is left out" in notes
    if version == "1.4.0":
        assert "prefill_min_endpoint is left out" in notes
        flags = older.files["frontend.sh"]
        assert "--router-policy-config" in flags
        assert "conditional" not in flags


def test_bad_values_are_refused() -> None:
    def no_beta(data: Any) -> None:
        data["deployment"]["beta_s"] = 1e-9

    with pytest.raises(InputError, match="prefill_busy_threshold is a whole number from 1"):
        exported(no_beta)

    def odd(data: Any) -> None:
        data["deployment"]["kinds"][0]["tensor"] = 3

    with pytest.raises(InputError, match="8 GPUs in engines of 3"):
        exported(odd)
    with pytest.raises(InputError, match="no DNS-1123 label"):
        exported(site=Site(namespace="My_Space"))


# ---- names -----------------------------------------------------------------------------------------


@given(st.text(), st.text())
def test_labels(first: str, second: str) -> None:
    """Whatever a scenario is called, its label is one, and another name gets another."""
    found = label(first, 40)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", found)
    assert label(found, 40) == found
    if first != second:
        assert label(second, 40) != found or found in (first, second)


@given(st.text(min_size=1))
def test_keys(path: str) -> None:
    assert re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key(path))
    assert key(key(path)) == key(path)


def test_good_names_stay() -> None:
    assert label("dualpath") == "dualpath"
    assert label("4 nodes") == f"plan-4-nodes-{label('4 nodes')[-8:]}"
    assert label("Ω") != label("Δ")
    assert key("a/b.yaml").endswith("-a__b.yaml")
    assert key("a_b.yaml") == "a_b.yaml"


# ---- the way back ----------------------------------------------------------------------------------


def loaded(found: Skeleton, tmp_path: Path) -> Any:
    """Return the scenario that a skeleton is, so far as this scenario format has its keys."""
    data = yaml.safe_load(found.to_yaml())
    file = tmp_path / "scenario.yaml"
    try:
        file.write_text(found.to_yaml())
        return load_scenario(file)
    except InputError as error:
        if "framework" not in str(error):
            raise
        data.pop("framework")
        file.write_text(yaml.safe_dump(data))
        return load_scenario(file)


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "qwen-32b-1p2d", "ds-27b-1p1d"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    """Counts, parallelism, buffer, SLO and LLM come back as they were."""
    plan = plan_file(name)
    deployment = plan.deployment
    write(made("dynamo", name), tmp_path / "out")
    found = read_deployment("dynamo", tmp_path / "out")
    scenario = loaded(found, tmp_path)
    assert found.scenario["framework"] == "dynamo"
    assert scenario.llm.name == deployment.llm.name
    assert scenario.slo.ttft_s == pytest.approx(deployment.ttft_s)
    assert scenario.slo.tpot_s == pytest.approx(deployment.tpot_s)
    assert scenario.serving.kv_dtype.value == plan.kv_dtype
    for pool in ("prefill", "decode"):
        (kind,) = deployment.pool(pool)
        nodes = getattr(scenario.cluster, pool)
        assert len(nodes) == kind.count
        assert nodes[0].gpus == kind.gpus
        split = found.scenario["parallelism"][pool]
        assert split["tensor"] == kind.tensor
        assert split.get("expert", kind.tensor) == kind.expert
        if pool == "prefill":
            assert nodes[0].buffer_bytes == kind.buffer_bytes
    assert not [missing for missing in found.missing if missing.startswith("slo")]


def test_several_components_come_back(tmp_path: Path) -> None:
    write(made("dynamo", "heterogeneous"), tmp_path / "out")
    found = read(tmp_path / "out" / "graph.yaml")
    assert [group["count"] for group in found.scenario["cluster"]["decode"]] == [2, 4]
    assert found.scenario["cluster"]["prefill"]["count"] == 4
    assert any(missing.startswith("slo.ttft") for missing in found.missing)


OLD = """
# an older graph
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: today}
spec:
  envs: [{name: DYN_ROUTER_CONDITIONAL_DISAGG, value: "true"}]
  services:
    Frontend: {componentType: frontend, replicas: 1}
    Planner:
      componentType: planner
      extraPodSpec:
        mainContainer:
          args: ["-m", dynamo.planner, --config, '{"ttft": 300, "itl_ms": 20.5}']
    One:
      componentType: worker
      subComponentType: prefill
      replicas: 3
      multinode: {nodeCount: 2}
      resources: {limits: {gpu: "8"}}
      envs: [{name: DYN_KVBM_CPU_CACHE_GB, value: "100"}]
      extraPodSpec:
        mainContainer:
          command: [/bin/sh, -c]
          args: ["python3 -m dynamo.vllm --model deepseek-ai/DeepSeek-V3.2 --tensor-parallel-size=16"]
    Two:
      componentType: worker
      replicas: 4
      resources: {limits: {gpu: "4"}}
      extraPodSpec:
        mainContainer:
          args: [--model, deepseek-ai/DeepSeek-V3.2, -tp, "2", --data-parallel-size, "2",
                 --enable-expert-parallel, --is-decode-worker, --kv-cache-dtype, fp8_e4m3]
"""


def test_an_older_graph(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(OLD)
    found = read(file)
    assert found.scenario["name"] == "today"
    assert found.scenario["llm"] == "deepseek-v3.2"
    assert found.scenario["kv_dtype"] == "fp8"
    assert found.scenario["cluster"]["prefill"]["count"] == 6
    assert found.scenario["cluster"]["decode"] == {"node": "paper-hopper", "count": 2}
    assert found.scenario["parallelism"]["prefill"] == {"tensor": 16}
    assert found.scenario["parallelism"]["decode"] == {"tensor": 2, "expert": 4}
    assert found.scenario["slo"] == {"ttft": "300 ms", "tpot": "20.5 ms"}
    assert found.scenario["framework"] == "dynamo"


def test_a_planner_config_alone(tmp_path: Path) -> None:
    files = made("dynamo").files
    file = tmp_path / "planner.yaml"
    file.write_text(files["planner.yaml"])
    found = read(file)
    assert found.scenario["cluster"]["prefill"]["count"] == 2
    assert found.scenario["cluster"]["decode"]["count"] == 4
    assert found.scenario["slo"] == {"ttft": "4000 ms", "tpot": "50 ms"}
    assert loaded(found, tmp_path).slo.ttft_s == pytest.approx(4.0)
    assert any(missing.startswith("llm") for missing in found.missing)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("kind: Deployment", "no DynamoGraphDeployment and no planner config"),
        ("kind: DynamoGraphDeployment", "neither spec.components"),
        ("kind: DynamoGraphDeployment\nspec: {components: [1]}", "must be a mapping"),
        ("kind: DynamoGraphDeployment\nspec: {services: {a: 1}}", "must be a mapping"),
        ("kind: DynamoGraphDeployment\nspec: {components: []}", "has no prefill workers"),
        (
            OLD.replace("replicas: 3", "replicas: many"),
            "replicas is many; it must be a whole number",
        ),
        (OLD.replace("replicas: 3", "replicas: -1"), "replicas is -1"),
        (OLD.replace("replicas: 3", "replicas: true"), "replicas is True"),
        (OLD.replace("replicas: 3", "replicas: 0"), "has no prefill workers"),
        (OLD.replace('gpu: "8"', 'gpu: "8x"'), "GPUs of a Pod is 8x"),
        (OLD.replace('value: "100"', "value: lots"), "DYN_KVBM_CPU_CACHE_GB is lots"),
        (OLD.replace('"ttft": 300', '"ttft": -300'), "ttft is -300; it must be a number above 0"),
        (OLD.replace('"itl_ms": 20.5}', '"itl_ms": '), "not valid YAML"),
        (OLD + "---\n" + OLD, "has 2 DynamoGraphDeployments"),
        ("prefill_min_endpoint: x\nttft_ms: 3", "prefill_min_endpoint is x"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "graph.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        read(file)
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "binary.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DynamoGraphDeployment"):
        read(tmp_path / "empty")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "name",
                        "type",
                        "replicas",
                        "podTemplate",
                        "spec",
                        "containers",
                        "args",
                        "env",
                        "value",
                        "resources",
                        "limits",
                        "nvidia.com/gpu",
                        "multinode",
                        "nodeCount",
                        "componentType",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=15,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_component_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, part: Any
) -> None:
    """Nothing but an InputError, whatever stands where a component should."""
    good = [{"name": role, "type": role} for role in ("prefill", "decode")]
    file = tmp_path_factory.mktemp("graph") / "graph.yaml"
    graph = {"kind": "DynamoGraphDeployment", "spec": {"components": [*good, part]}}
    file.write_text(yaml.safe_dump(graph))
    try:
        found = read(file)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert set(found.scenario["cluster"]) == {"prefill", "decode"}
