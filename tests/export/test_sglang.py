"""SGLang's files: figures by another route than the target's, what is left out, bad input, and back."""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.deployment import NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export import Export, PlanFile, Site, export, target_named, write
from dualpath_model.export.imports.sglang import read
from dualpath_model.export.imports.skeleton import read_deployment
from dualpath_model.frameworks import table_named
from dualpath_model.scenario import load_scenario
from solvers import plan as planning
from tests.conftest import ROOT
from tests.export.plans import made, plan_file

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "mixed-traffic")


def flags(found: Export, script: str) -> dict[str, str]:
    text = found.files[script].replace("\\\n", " ")
    words = shlex.split(text, comments=True)
    words = words[words.index("sglang.launch_server") + 1 :]
    values: dict[str, str] = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            following = words[number + 1 : number + 2]
            values[word[2:]] = "" if not following or following[0][:2] == "--" else following[0]
    return values


def with_kinds(plan: PlanFile, **changes: Any) -> PlanFile:
    kinds = tuple(replace(kind, **changes) for kind in plan.deployment.kinds)
    return replace(plan, deployment=replace(plan.deployment, kinds=kinds))


def test_the_papers_set_up() -> None:
    """Figures worked out by hand from the scenario: 80 GB for 8 ranks, groups of 16 and 32 GPUs."""
    found = made("sglang")
    prefill = flags(found, "nodes/prefill-1.sh")
    assert prefill["hicache-size"] == "10"
    assert prefill["tp-size"] == prefill["attn-dp-size"] == prefill["ep-size"] == "16"
    assert prefill["nnodes"] == "2"
    assert prefill["node-rank"] == "1"
    assert prefill["dist-init-addr"] == "prefill-0.example.internal:5000"
    assert prefill["disaggregation-bootstrap-port"] == "8998"
    decode = flags(found, "nodes/decode-3.sh")
    assert decode["tp-size"] == "32"
    assert decode["node-rank"] == "3"
    assert "disaggregation-decode-enable-radix-cache" in decode
    assert "disaggregation-bootstrap-port" not in decode
    extra = json.loads(prefill["hicache-storage-backend-extra-config"])
    # 35136 B a token; one 400 Gbps NIC at the efficiency that the plan states
    (kind,) = plan_file().deployment.pool("prefill")
    rate = kind.snic_bytes_per_s * (kind.storage_read_bytes_per_s / kind.snic_bytes_per_s)
    assert extra["prefetch_timeout_per_ki_token"] == pytest.approx(1024 * 35136 / rate, rel=1e-5)
    assert extra["prefetch_timeout_base"] == 3.0
    assert extra["prefetch_threshold"] == 64


@pytest.mark.parametrize("name", EXAMPLES)
def test_engines_and_limits_add_up_to_the_plans(name: str) -> None:
    found, plan = made("sglang", name), plan_file(name)
    deployment = plan.deployment
    for kind in deployment.kinds:
        for position in kind.positions:
            own = flags(found, f"nodes/{kind.pool}-{position}.sh")
            engines = int(own.get("attn-dp-size", 1)) * int(own.get("dp-size", 1))
            assert engines == int(own.get("nnodes", 1)) * kind.engines
            share = int(own.get("attn-dp-size", 1))
            limit = int(own["max-running-requests"]) / share
            if kind.pool == "prefill":
                prompt = deployment.workload.prompt_tokens.mean
                assert limit == kind.beta_tokens // prompt
                chunk = int(own["chunked-prefill-size"]) / share
                assert chunk == int(own["max-prefill-tokens"])
                assert kind.quota_tokens - 66 < chunk <= kind.quota_tokens
            else:
                assert kind.decode_batch is not None
                assert limit == max(
                    math.ceil(k.decode_batch or 0)
                    for k in deployment.pool("decode")
                    if _together(plan, position, k)
                )
            assert own["page-size"] == str(plan.scheduler_parameters.block_tokens)


def _together(plan: PlanFile, position: int, kind: NodeKind) -> bool:
    groups = {n.node: n.group for n in plan.deployment.nodes}
    return any(groups[f"d{p}"] == groups[f"d{position}"] for p in kind.positions)


def test_what_is_read_on_both_sides_is_said_with_its_figures() -> None:
    plan = plan_file()
    first = made("sglang").bundle.dropped[0]
    hit = plan.deployment.workload.hit_tokens.mean * plan.deployment.llm.read_bytes_per_token
    for pool, count in (("prefill", 2), ("decode", 4)):
        (kind,) = plan.deployment.pool(pool)
        used = plan.throughput_requests_per_s * hit / (count * kind.storage_read_bytes_per_s)
        assert f"{used:.1%} on {pool}" in first.effect
    assert "1.00x Basic instead of 2.72x" in first.effect
    mine = replace(plan, deployment=replace(plan.deployment, framework="sglang"))
    dropped = export(target_named("sglang"), mine).bundle.dropped
    assert not any("both sides" in part.why for part in dropped)


def test_older_versions_have_the_older_spelling() -> None:
    new, old = made("sglang"), made("sglang", version="0.5.21")
    assert flags(old, "nodes/prefill-0.sh")["dp-size"] == "16"
    assert "enable-dp-attention" in flags(old, "nodes/prefill-0.sh")
    assert "attn-dp-size" not in flags(old, "nodes/prefill-0.sh")
    assert "enable-dp-attention" not in flags(new, "nodes/prefill-0.sh")
    qwen = made("sglang", "qwen-32b-1p2d", version="0.5.15")
    assert any("came with version 0.5.21" in note for note in qwen.bundle.notes)


def test_a_buffer_that_is_not_given_is_not_guessed() -> None:
    found = export(target_named("sglang"), with_kinds(plan_file(), buffer_bytes=None))
    for name, text in found.files.items():
        assert "hicache-size:" not in text, name
        assert "--hicache-size " not in text, name
    assert sum("hicache-size is left out" in note for note in found.bundle.notes) == 2


def test_reading_that_is_slower_than_computing_has_no_threshold() -> None:
    slow = with_kinds(plan_file(), storage_read_bytes_per_s=1e6)
    found = export(target_named("sglang"), slow)
    assert not any("prefetch_threshold" in t for n, t in found.files.items() if n.endswith(".sh"))
    assert any("prefetch_threshold is left out" in note for note in found.bundle.notes)


def test_devices_go_to_their_gpus() -> None:
    eight = [f"mlx5_{n}" for n in range(8)]
    one_node = made("sglang", "qwen-32b-1p2d", site=Site(compute_devices=eight))
    mapping = json.loads(flags(one_node, "nodes/prefill-0.sh")["disaggregation-ib-device"])
    assert mapping == {str(n): f"mlx5_{n}" for n in range(8)}
    many = made("sglang", site=Site(compute_devices=eight))
    assert json.loads(flags(many, "nodes/prefill-1.sh")["disaggregation-ib-device"]) == mapping
    five = made("sglang", site=Site(compute_devices=eight[:5]))
    listed = flags(five, "nodes/prefill-0.sh")["disaggregation-ib-device"]
    assert listed == "mlx5_0,mlx5_1,mlx5_2,mlx5_3,mlx5_4"
    assert any("names 5 compute_devices, the plan counts 8" in note for note in five.bundle.notes)


def test_an_llm_with_windows_reads_on_prefill_nodes_alone() -> None:
    """As SGLang refuses the decode radix cache with HiCache for it."""
    plan = plan_file("qwen-32b-1p2d")
    llm = replace(plan.deployment.llm, read_bytes_per_token=131072.0)
    plan = replace(plan, deployment=replace(plan.deployment, llm=llm))
    found = export(target_named("sglang"), plan)
    decode = flags(found, "nodes/decode-0.sh")
    assert "disaggregation-decode-enable-offload-kvcache" in decode
    assert "enable-hierarchical-cache" not in decode
    assert "hicache-storage-prefetch-policy" not in decode
    assert "enable-hierarchical-cache" in flags(found, "nodes/prefill-0.sh")
    assert "1.68x over Basic is 1.00x" in found.bundle.dropped[0].effect


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous"])
def test_the_estimate_is_what_the_planner_says(name: str) -> None:
    """Of a plan of the paper's paths: reads on both sides, by NICs and by the storage they share."""
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    serving = replace(scenario.serving, table=table_named("sglang"))
    rate = planning(replace(scenario, serving=serving), intervals=False).throughput_requests_per_s
    said = made("sglang", name).bundle.dropped[0].effect
    assert f"at most {rate:.4g} requests/s" in said


def test_parts_of_a_node_are_servers_of_their_own() -> None:
    """Experts over 4 of 8 GPUs: two servers a node, on ports and GPUs of their own."""
    plan = plan_file("ds-27b-1p1d")
    found = export(target_named("sglang"), with_kinds(plan, expert=4))
    first = flags(found, "nodes/prefill-0-server-0.sh")
    second = flags(found, "nodes/prefill-0-server-1.sh")
    assert (first["base-gpu-id"], second["base-gpu-id"]) == ("0", "4")
    assert (first["port"], second["port"]) == ("8000", "8001")
    assert (first["tp-size"], first["ep-size"], first["attn-dp-size"]) == ("4", "4", "4")
    assert found.files["router.sh"].count("--prefill ") == 2 + 1  # and the comment


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"buffer_bytes": 7e9}, "is 7 GB, which is less than 1 GB for each of 8 GPUs"),
    ],
)
def test_plans_that_sglang_cannot_serve_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        export(target_named("sglang"), with_kinds(plan_file(), **change))


def test_experts_that_leave_gpus_over_are_refused() -> None:
    with pytest.raises(InputError, match="leaves GPUs over"):
        export(target_named("sglang"), with_kinds(plan_file("ds-27b-1p1d"), expert=3))


def test_a_page_that_the_kernels_do_not_take_is_refused() -> None:
    plan = plan_file()
    other = replace(plan, scheduler_parameters=replace(plan.scheduler_parameters, block_tokens=16))
    with pytest.raises(InputError, match=r"block_tokens is 16, .* in pages of 64 tokens only"):
        export(target_named("sglang"), other)
    qwen = plan_file("qwen-32b-1p2d")
    other = replace(qwen, scheduler_parameters=replace(qwen.scheduler_parameters, block_tokens=16))
    assert export(target_named("sglang"), other)


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="no name of an RDMA device"):
        made("sglang", site=Site(compute_devices=["mlx5_0,mlx5_1"]))


# ---- and back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_exported_is_read_back(tmp_path: Path, name: str) -> None:
    """Roles, sizes, buffers; and the skeleton is a scenario as it stands."""
    write(made("sglang", name), tmp_path / "out")
    skeleton = read(tmp_path / "out")
    file = tmp_path / "back.yaml"
    file.write_text(skeleton.to_yaml())
    back, asked = load_scenario(file), load_scenario(ROOT / "examples" / f"{name}.yaml")
    assert back.llm.name == asked.llm.name
    assert back.serving.kv_dtype == asked.serving.kv_dtype
    assert back.serving.table.name == "sglang"
    assert back.rules.block_tokens == asked.rules.block_tokens
    for pool in ("prefill", "decode"):
        ours, theirs = getattr(back.cluster, pool), getattr(asked.cluster, pool)
        assert [n.gpus for n in ours] == [n.gpus for n in theirs]
        parallelism = getattr(back.serving, pool)
        assert parallelism.tensor == getattr(asked.serving, pool).tensor
    if name != "mixed-traffic":
        for pool in ("prefill", "decode"):
            for ours, theirs in zip(
                getattr(back.cluster, pool), getattr(asked.cluster, pool), strict=True
            ):
                assert ours.buffer_bytes == theirs.buffer_bytes


def test_every_form_says_the_same(tmp_path: Path) -> None:
    write(made("sglang", "qwen-32b-1p2d"), tmp_path / "out")
    nodes = tmp_path / "out" / "nodes"
    names = ("prefill-0", "decode-0", "decode-1")
    scripts = read(nodes).scenario
    one = tmp_path / "all.sh"
    one.write_text("".join((nodes / f"{name}.sh").read_text() for name in names))
    infos = []
    for name in names:
        config = tmp_path / "out" / "config" / f"{name.partition('-')[0]}.yaml"
        data = yaml.safe_load(config.read_text())
        infos.append({key.replace("-", "_"): value for key, value in data.items()})
    info = tmp_path / "info.json"
    info.write_text(json.dumps(infos))
    argv = tmp_path / "argv.json"
    found = made("sglang", "qwen-32b-1p2d")
    argv.write_text(
        json.dumps(
            [
                [
                    word
                    for key, value in flags(found, f"nodes/{name}.sh").items()
                    for word in (f"--{key}", value)
                    if word
                ]
                for name in names
            ]
        )
    )
    by_config = tmp_path / "out" / "start.sh"
    by_config.write_text(
        "for node in 1; do python3 -m sglang.launch_server --config config/prefill.yaml & done\n"
        "sglang serve --config config/decode.yaml --host a && echo up\n"
        "sglang serve --host=b --config config/decode.yaml; wait\n"
    )
    for file in (one, info, argv, by_config):
        assert dict(read(file).scenario) | {"name": ""} == dict(scripts) | {"name": ""}, file


def test_a_command_for_all_nodes_counts_as_many(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text(
        "# the operator's own\n"
        "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3.2 \\\n"
        "  --disaggregation-mode prefill --tp 16 --dp 16 --enable-dp-attention --nnodes 2 \\\n"
        "  --node-rank $RANK --hicache-size 20 --enable-hicache --page-size=64 --json '{\"a\":\n 1}' &\n"
        "python -m sglang.launch_server --disaggregation-mode decode --tensor-parallel-size 8\n"
    )
    skeleton = read_deployment("sglang", script)
    assert skeleton.scenario["cluster"] == {
        "prefill": {"node": {"base": "paper-hopper", "buffer": "160 GB"}, "count": 2},
        "decode": {"node": {"base": "paper-hopper", "buffer": None}, "count": 1},
    }
    assert skeleton.scenario["parallelism"] == {"prefill": {"tensor": 1}, "decode": {"tensor": 8}}
    assert skeleton.scenario["llm"] == "deepseek-v3.2"
    assert f"prefill.count 2: nodes of 8 GPUs ({script}:2)" in skeleton.found
    assert any("kv_dtype" in sentence for sentence in skeleton.missing)


def test_one_role_alone_leaves_the_other_to_fill_in(tmp_path: Path) -> None:
    write(made("sglang", "qwen-32b-1p2d"), tmp_path / "out")
    skeleton = read(tmp_path / "out" / "config" / "prefill.yaml")
    assert skeleton.scenario["cluster"]["decode"] == skeleton.scenario["cluster"]["prefill"]
    assert "cluster.decode: nothing with this role is stated" in skeleton.missing[0]


LAUNCH = "python -m sglang.launch_server --disaggregation-mode prefill "


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.sh", "echo hello\n", "has no SGLang server"),
        ("a.sh", "echo 'never closed\n", "has no SGLang server"),
        ("a.sh", "python -m sglang.launch_server --tp 8\n", "a.sh:1: disaggregation-mode is None"),
        ("a.sh", f"\n{LAUNCH} --tp $TP\n", r"a.sh:2: tp-size is \$TP; it must be a whole number"),
        ("a.sh", f"{LAUNCH} --tp 8 --attn-dp-size 3\n", "cannot be shared by 3 engines"),
        ("a.sh", f"{LAUNCH} --hicache-size big\n", "hicache-size is big"),
        ("a.sh", f"{LAUNCH} --tp 99999\n", "more than 8192"),
        ("a.sh", f"{LAUNCH} --config none.yaml\n", "none.yaml: cannot be read"),
        ("a.json", "[", "is not JSON"),
        ("a.json", "[1]", "it must be an object"),
        ("a.json", "[]", "has no SGLang server"),
        ("a.yaml", "- 1\n", "a.yaml"),
        ("a.yaml", "tp-size: 8\n", "disaggregation-mode is None"),
        ("a.yaml", "disaggregation-mode: decode\npage-size: [1]\n", "page-size is"),
        ("a.sh", b"\xff\xfe", "not text"),
        ("missing/a.sh", None, "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, words: str
) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read(file)
    assert len(str(caught.value).splitlines()) == 1
