"""The vllm target: figures by another route than its own, what it leaves out, and back to a scenario."""

from __future__ import annotations

import copy
import json
import math
import shlex
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.output import dump
from dualpath_model.errors import InputError
from dualpath_model.export import Export, Site, export, parse_plan, target_named, write
from dualpath_model.export.imports.vllm import read
from dualpath_model.export.targets._vllm_layout import servers
from dualpath_model.export.vllm_keys import (
    FLAGS,
    MULTI_KEYS,
    NIXL_KEYS,
    OFFLOADING_KEYS,
    TIER_KEYS,
    VERSIONS,
)
from dualpath_model.scenario import load_scenario
from dualpath_model.scheduler.attention import AttentionTime, chunk_seconds
from solvers import planner
from solvers.deployment import plan_document
from tests.conftest import ROOT
from tests.export.plans import made, plan_data, plan_file

TARGET = target_named("vllm")


def edited(change: Callable[[Any], None], name: str = "deepseek-660b-2p4d", **more: Any) -> Export:
    data = copy.deepcopy(plan_data(name))
    change(data)
    return export(TARGET, parse_plan(data), more.pop("site", Site()), **more)


def config(found: Export, node: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(found.files[f"nodes/{node}.json"])
    return data


def child(found: Export, node: str, name: str) -> dict[str, Any]:
    (entry,) = [
        entry
        for entry in config(found, node)["kv_connector_extra_config"]["connectors"]
        if entry["kv_connector"] == name
    ]
    extra: dict[str, Any] = entry.get("kv_connector_extra_config", {})
    return extra


def store(found: Export, node: str) -> dict[str, Any]:
    return child(found, node, "OffloadingConnector")


def words(found: Export, node: str) -> list[str]:
    text = found.files[f"nodes/{node}.sh"]
    lines = [line for line in text.splitlines() if not line.startswith(("#", "set "))]
    return shlex.split("\n".join(lines).replace("\\\n", " "))


def flags(found: Export, node: str) -> dict[str, str | bool]:
    listed = words(found, node)
    rest = listed[listed.index("serve") + 2 :]
    result: dict[str, str | bool] = {}
    while rest:
        name = rest.pop(0)
        result[name] = rest.pop(0) if rest and not rest[0].startswith("--") else True
    return result


def dropped(found: Export) -> str:
    return "\n".join(f"{d.what}: {d.why}: {d.effect}" for d in found.bundle.dropped)


@cache
def pull_plan(workload: str) -> Any:
    """Return a plan of framework vllm-pull as data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pull.yaml"
        path.write_text(
            "name: pull\nllm: deepseek-v3.2\nkv_dtype: fp8_ds_mla\nframework: vllm-pull\n"
            f"cluster: paper-2p4d\nworkload: {workload}\n"
        )
        scenario = load_scenario(path)
    answer = planner.plan(scenario, intervals=False)
    return json.loads(dump(plan_document(scenario, answer)))


RECORDED = f"{{trace: {ROOT / 'examples' / 'traces' / 'agentic_sample'}}}"


# ---- figures ---------------------------------------------------------------------------------------


def test_tiers_in_order_and_sizes() -> None:
    found = made("vllm")
    for node in ("prefill-0", "prefill-1", "decode-0", "decode-3"):
        extra = store(found, node)
        assert [tier["type"] for tier in extra["secondary_tiers"]] == ["p2p", "fs"]
        assert extra["cpu_bytes_to_use"] * 8 == 80e9  # the example's buffer, 8 engines
        assert extra["blocks_per_chunk"] * int(flags(found, node)["--block-size"]) == 64
        assert extra["secondary_tiers"][0]["host"] == f"{node}.example.internal"
    assert "offload_prompt_only" not in store(found, "prefill-0")
    assert store(found, "decode-0")["offload_prompt_only"] is False
    assert config(found, "prefill-0")["kv_role"] == "kv_producer"
    assert config(found, "decode-0")["kv_role"] == "kv_consumer"


def test_flags_carry_the_plan() -> None:
    plan = plan_file()
    found = made("vllm")
    for pool in ("prefill", "decode"):
        (kind,) = plan.deployment.pool(pool)
        given = flags(found, f"{pool}-1")
        assert given["--tensor-parallel-size"] == "1"
        assert given["--data-parallel-size"] == str(8 * kind.count)
        assert given["--data-parallel-size-local"] == "8"
        assert given["--data-parallel-start-rank"] == "8"
        assert given["--enable-expert-parallel"] is True
        assert given["--kv-cache-dtype"] == "fp8"
    (prefill,) = plan.deployment.pool("prefill")
    given = flags(found, "prefill-0")
    tokens = int(given["--max-num-batched-tokens"])
    assert prefill.attention is not None
    model = AttentionTime(**prefill.attention)
    hits = round(plan.deployment.workload.hit_tokens.mean)
    assert model.fixed_s + chunk_seconds(model, hits, tokens) <= 0.3
    assert model.fixed_s + chunk_seconds(model, hits, tokens + 1) > 0.3
    mean = plan.deployment.workload.prompt_tokens.mean
    parameters = plan.scheduler_parameters
    assert int(given["--max-num-seqs"]) == math.floor(parameters.beta_tokens / mean)
    (decode,) = plan.deployment.pool("decode")
    assert decode.decode_batch is not None
    batch = int(flags(found, "decode-2")["--max-num-seqs"])
    assert batch - 1 < decode.decode_batch <= batch


def test_the_command_has_the_config_in_one_line() -> None:
    for name in ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d"):
        found = made("vllm", name)
        nodes = [
            file[6:-3] for file in found.files if file.startswith("nodes/") and file.endswith(".sh")
        ]
        for node in nodes:
            text = flags(found, node)["--kv-transfer-config"]
            assert json.loads(str(text)) == config(found, node)


def test_engines_that_share_nothing_are_servers_of_their_own() -> None:
    found = made("vllm", "qwen-32b-1p2d")
    names = sorted(
        file for file in found.files if file.startswith("nodes/") and file.endswith(".sh")
    )
    assert len(names) == 24
    gpus, ports, peers, sides = set(), set(), set(), set()
    for number in range(8):
        node = f"decode-1-server-{number}"
        environment = dict(w.split("=", 1) for w in words(found, node)[1:] if "=" in w[:40])
        gpus.add(environment["CUDA_VISIBLE_DEVICES"])
        sides.add(environment["VLLM_NIXL_SIDE_CHANNEL_PORT"])
        ports.add(flags(found, node)["--port"])
        peers.add(store(found, node)["secondary_tiers"][0]["port"])
        assert store(found, node)["cpu_bytes_to_use"] == 40_000_000_000  # 320 GB / 8
        assert "--data-parallel-size" not in flags(found, node)
        assert "--enable-expert-parallel" not in flags(found, node)
    assert gpus == {str(number) for number in range(8)}
    assert ports == {str(8000 + number) for number in range(8)}
    assert peers == {7777 + number for number in range(8)}
    assert sides == {str(5600 + number) for number in range(8)}


def test_nodes_of_other_kinds() -> None:
    """Experts are spread inside a kind's groups: 16 GPUs on the large decode nodes, 32 on the small."""
    found = made("vllm", "heterogeneous")
    sizes = {node: flags(found, f"decode-{node}")["--data-parallel-size"] for node in range(6)}
    assert sizes == dict.fromkeys((0, 1), "16") | dict.fromkeys((2, 3, 4, 5), "32")
    ranks = [flags(found, f"decode-{node}")["--data-parallel-start-rank"] for node in range(6)]
    assert ranks == ["0", "8", "0", "8", "16", "24"]
    heads = {
        str(flags(found, f"decode-{node}")["--data-parallel-address"]) for node in (2, 3, 4, 5)
    }
    assert heads == {"decode-2.example.internal"}
    assert "cpu_bytes_to_use" not in store(found, "decode-0")
    assert store(found, "decode-5")["cpu_bytes_to_use"] == 10_000_000_000
    assert "left out on p0, p1, p2, p3, d0, d1" in " ".join(found.bundle.notes)


def test_a_node_may_hold_several_expert_groups() -> None:
    def change(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["tensor"], kind["expert"] = 2, 4
        for node in data["deployment"]["nodes"]:
            node["group"] = node["node"]
            node["engines"] = node["engines"][:4]

    found = edited(change)
    one, two = flags(found, "decode-0-server-0"), flags(found, "decode-0-server-1")
    assert one["--data-parallel-size"] == two["--data-parallel-size"] == "2"
    assert "--data-parallel-address" not in one
    assert words(found, "decode-0-server-1")[1] == "CUDA_VISIBLE_DEVICES=4,5,6,7"
    routing = json.loads(found.files["routing.json"])
    ports = [entry["p2p"]["port"] for entry in routing["decode"][:4]]
    # vLLM adds the rank to what each server is told
    told = [store(found, f"decode-0-server-{n}")["secondary_tiers"][0]["port"] for n in (0, 1)]
    assert ports == [told[0], told[0] + 1, told[1], told[1] + 1]
    assert len(set(ports)) == 4
    ranks = [entry["data_parallel_rank"] for entry in routing["decode"][:4]]
    assert ranks == [0, 1, 0, 1]


def test_routing() -> None:
    plan = plan_file("heterogeneous")
    found = made("vllm", "heterogeneous")
    routing = json.loads(found.files["routing.json"])
    assert (routing["decode_reads"], routing["split"]) == ("p2p", plan.split)
    assert routing["scheduler"] in found.files
    own = {(n.pool, n.node): n.read_weight for n in plan.scheduler_parameters.nodes}
    for pool, share in (("prefill", 1.0 - plan.split), ("decode", plan.split)):
        entries = routing[pool]
        assert sum(entry["read_weight"] for entry in entries) == pytest.approx(1.0)
        assert sum(entry["other_weight"] for entry in entries) == pytest.approx(1.0)
        for position in range(4):
            mine = [e for e in entries if e["node"] == f"{pool[0]}{position}"]
            got = sum(entry["read_weight"] for entry in mine)
            assert got * share == pytest.approx(own[pool, position], rel=1e-6)
    for position, server in enumerate(s for s in servers(plan.deployment) if s.pool == "decode"):
        mine = [e for e in routing["decode"] if e["node"] == f"d{position}"]
        told = store(found, server.name)["secondary_tiers"][0]["port"]
        # the rank that vLLM adds is the one in the whole deployment, the header's that in the server
        assert [e["p2p"]["port"] - told - server.first_rank for e in mine] == list(range(8))
        assert [e["data_parallel_rank"] for e in mine] == list(range(8))


def test_different_tensor_parallelism_needs_one_layout() -> None:
    def change(data: Any) -> None:
        for kind in data["deployment"]["kinds"]:
            kind["expert"] = 1
            if kind["pool"] == "decode":
                kind["tensor"] = 2
        for node in data["deployment"]["nodes"]:
            node["group"] = node["node"]
            if node["pool"] == "decode":
                node["engines"] = node["engines"][:4]

    found = edited(change)
    assert store(found, "prefill-0-server-0")["canonical_layout"] is True
    assert store(found, "decode-0-server-3")["canonical_layout"] is True
    assert "canonical_layout" not in store(made("vllm"), "decode-0")
    old = edited(change, version="0.27.0")
    assert "canonical_layout" not in store(old, "decode-0-server-3")
    assert "canonical_layout is left out: it came with version 0.28.0" in " ".join(old.bundle.notes)


@pytest.mark.parametrize(("block", "size"), [(128, 64), (96, 32), (48, 16)])
def test_blocks(block: int, size: int) -> None:
    def change(data: Any) -> None:
        data["scheduler_parameters"]["block_tokens"] = block

    found = edited(change, "qwen-32b-1p2d")
    assert flags(found, "prefill-0-server-0")["--block-size"] == str(size)
    assert store(found, "prefill-0-server-0")["blocks_per_chunk"] == block // size


# ---- bidirectional transfers -----------------------------------------------------------------------


def test_pull() -> None:
    data = pull_plan(RECORDED)
    found = export(TARGET, parse_plan(data))
    prefill, decode = (child(found, f"{p}-0", "NixlConnector") for p in ("prefill", "decode"))
    think = data["deployment"]["workload"]["think_s"]["p99"]
    assert think > 0
    assert decode == {
        "bidirectional_kv_xfer": True,
        "decoder_kv_blocks_ttl": math.ceil(think + data["deployment"]["ttft_s"]),
    }
    assert prefill["bidirectional_kv_xfer"] is True
    assert prefill["kv_recompute_threshold"] == 64
    for node in ("prefill-0", "decode-0"):
        assert [tier["type"] for tier in store(found, node)["secondary_tiers"]] == ["fs"]
    routing = json.loads(found.files["routing.json"])
    assert routing["decode_reads"] == "pull"
    assert routing["keep_s"] == decode["decoder_kv_blocks_ttl"]
    assert "p2p" not in routing["decode"][0]
    if data["split"] < 1:
        assert "keeps the blocks of every turn" in dropped(found)
    assert "layer-wise" not in dropped(found)  # the plan is of vLLM: it counts that itself


def test_pull_without_think_times() -> None:
    data = pull_plan("{synthetic: {row: 64K}}")
    found = export(TARGET, parse_plan(data))
    assert "decoder_kv_blocks_ttl" not in child(found, "decode-0", "NixlConnector")
    assert "decoder_kv_blocks_ttl is left out" in " ".join(found.bundle.notes)
    assert "keep_s" not in json.loads(found.files["routing.json"])


# ---- versions, what is left out, bad input -----------------------------------------------------------


def test_versions_without_decode_reads() -> None:
    plan = plan_file()
    for version in VERSIONS:
        found = made("vllm", version=version)
        tiers = [tier["type"] for tier in store(found, "prefill-0")["secondary_tiers"]]
        routing = json.loads(found.files["routing.json"])
        if version in ("0.25.0", "0.26.0"):
            assert tiers == ["fs"]
            assert (routing["decode_reads"], routing["split"]) == ("none", 0.0)
            assert f"{plan.speedup_over_basic:.2f}x over Basic is 1.00x" in dropped(found)
        else:
            assert tiers == ["p2p", "fs"]
            assert "over Basic is 1.00x" not in dropped(found)
        extra = store(found, "decode-0")
        assert extra.get("blocks_per_chunk", extra.get("block_size")) == (
            64 if version == "0.25.0" else 1
        )
        locality = "locality" in extra["secondary_tiers"][-1]
        assert locality == (version != "0.25.0")


def test_what_is_left_out_has_its_effect() -> None:
    plan = plan_file()
    text = dropped(made("vllm"))
    hits = plan.deployment.workload.hit_tokens.mean * plan.deployment.llm.kv_bytes_per_token
    moved = hits * plan.throughput_requests_per_s
    (prefill,) = plan.deployment.pool("prefill")
    nics = 2 * prefill.cnics * prefill.cnic_bytes_per_s
    assert f"{moved / nics:.1%} of the prefill" in text
    read_s = (
        plan.deployment.workload.hit_tokens.mean
        * plan.deployment.llm.read_bytes_per_token
        / prefill.storage_read_bytes_per_s
    )
    assert f"its read takes {read_s:.3g} s" in text
    assert "Z = 1.05" in text


def test_many_engines_need_room_for_peers() -> None:
    def change(data: Any) -> None:
        deployment = data["deployment"]
        kind = next(k for k in deployment["kinds"] if k["pool"] == "decode")
        node = next(n for n in deployment["nodes"] if n["pool"] == "decode")
        count = data["decode_nodes"] = 20
        kind["positions"] = list(range(count))
        deployment["nodes"] = [n for n in deployment["nodes"] if n["pool"] == "prefill"]
        parameters = data["scheduler_parameters"]["nodes"]
        one = next(n for n in parameters if n["pool"] == "decode")
        parameters[:] = [n for n in parameters if n["pool"] == "prefill"]
        for number in range(count):
            engines = [f"d{number}/{rank}" for rank in range(8)]
            deployment["nodes"].append(node | {"node": f"d{number}", "engines": engines})
            parameters.append(one | {"node": number})

    notes = " ".join(edited(change).bundle.notes)
    assert "set VLLM_P2P_MAX_PEERS to 160" in notes
    assert "VLLM_P2P_MAX_PEERS" not in " ".join(made("vllm").bundle.notes)


def _block(data: Any, tokens: int = 24) -> None:
    data["scheduler_parameters"]["block_tokens"] = tokens


def _buffer(data: Any) -> None:
    for kind in data["deployment"]["kinds"]:
        kind["buffer_bytes"] = 4.0


def _engines(data: Any) -> None:
    data["deployment"]["nodes"][0]["engines"].pop()


def _left_over(data: Any) -> None:
    for kind in data["deployment"]["kinds"]:
        kind["expert"] = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_block, "block_tokens is 24, but vLLM keeps deepseek-v3.2 in blocks of 64 tokens"),
        (_buffer, "the buffer of prefill node 0 is 4 bytes, none for 8 engines"),
        (_engines, "prefill node 0 has 7 engines"),
        (_left_over, "expert parallelism 3 of prefill nodes of 8 GPUs .* leaves GPUs over"),
    ],
)
def test_bad_plans(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edited(change)


def test_a_dense_llm_takes_smaller_blocks() -> None:
    with pytest.raises(InputError, match="in blocks of 16 tokens or more"):
        edited(_block, "qwen-32b-1p2d")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"hosts": {"decode": "fd00::{index}"}}, "hosts.decode is 'fd00::0'.*knows no IPv6"),
        ({"hosts": {"decode": ["a", "b"]}}, "hosts.decode names 2 nodes"),
        ({"ports": {"p2p": 65530}}, "ports.p2p is 65530, .* set it to 65504 or lower"),
        ({"ports": {"p2p": 5604}}, "ports.side_channel and ports.p2p meet at 5604"),
        ({"ports": {"server": 7780}}, "ports.server and ports.p2p meet at 7780"),
    ],
)
def test_bad_sites(site: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made("vllm", site=Site.model_validate(site))


def test_only_known_keys_are_written() -> None:
    pull = pull_plan(RECORDED)
    exports = [made("vllm", name) for name in ("deepseek-660b-2p4d", "qwen-32b-1p2d")]
    exports += [made("vllm", version=version) for version in VERSIONS]
    for found in [*exports, export(TARGET, parse_plan(pull))]:
        for node in [
            file[6:-5] for file in found.files if file.startswith("nodes/") and ".json" in file
        ]:
            assert set(config(found, node)["kv_connector_extra_config"]) <= MULTI_KEYS
            assert set(child(found, node, "NixlConnector")) <= NIXL_KEYS
            assert set(store(found, node)) <= OFFLOADING_KEYS
            for tier in store(found, node)["secondary_tiers"]:
                assert set(tier) <= TIER_KEYS[tier["type"]]
            assert set(flags(found, node)) <= FLAGS


# ---- back to a scenario ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d"])
def test_an_export_reads_back(tmp_path: Path, name: str) -> None:
    write(made("vllm", name), tmp_path / "out")
    found = read(tmp_path / "out")
    plan = plan_file(name)
    scenario = found.scenario
    assert (scenario["name"], scenario["llm"], scenario["framework"]) == (
        plan.scenario,
        plan.llm,
        "vllm",
    )
    assert scenario["kv_dtype"] == plan.kv_dtype
    assert scenario["scheduler"] == {"block_tokens": plan.scheduler_parameters.block_tokens}
    for pool in ("prefill", "decode"):
        groups = scenario["cluster"][pool]
        groups = groups if isinstance(groups, list) else [groups]
        kinds = plan.deployment.pool(pool)
        assert sum(group["count"] for group in groups) == sum(kind.count for kind in kinds)
        buffers = {
            group["node"].get("buffer") if isinstance(group["node"], dict) else None
            for group in groups
        }
        wanted = {None if k.buffer_bytes is None else f"{k.buffer_bytes / 1e9:g} GB" for k in kinds}
        assert buffers == wanted
        assert scenario["parallelism"][pool]["tensor"] == kinds[0].tensor
        narrow = min(kind.expert for kind in kinds)
        assert scenario["parallelism"][pool].get("expert", 1) == narrow
    (tmp_path / "back.yaml").write_text(found.to_yaml())
    again = load_scenario(tmp_path / "back.yaml")
    assert len(again.cluster.decode) == sum(kind.count for kind in plan.deployment.pool("decode"))


def test_a_config_alone(tmp_path: Path) -> None:
    file = tmp_path / "decode-0.json"
    file.write_text(made("vllm").files["nodes/decode-0.json"])
    found = read(file)
    assert found.scenario["cluster"]["decode"]["node"]["buffer"] == "10 GB"  # one engine is known
    assert "cluster.prefill: nothing with this role is stated" in found.missing[0]


SPANNING = """
vllm serve deepseek-ai/DeepSeek-V3.2 --data-parallel-size 16 --data-parallel-size-local 8 -ep \\
  --data-parallel-start-rank $RANK \\
  --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_producer"}'
vllm serve deepseek-ai/DeepSeek-V3.2 -dp 32 -dpl 8 -ep -dpr $RANK -dpa 10.0.0.1 \\
  --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}'
"""


def test_the_script_of_one_node_stands_for_all(tmp_path: Path) -> None:
    """16 engines, 8 on each node: two nodes; 32: four; one role alone: the other gets as many."""
    file = tmp_path / "serve.sh"
    file.write_text(SPANNING)
    found = read(file)
    counts = {role: found.scenario["cluster"][role]["count"] for role in ("prefill", "decode")}
    assert counts == {"prefill": 2, "decode": 4}
    assert any("3 of them have no command: --data-parallel-size 32" in s for s in found.found)
    file.write_text(SPANNING.partition("vllm serve deepseek-ai/DeepSeek-V3.2 -dp 32")[0])
    found = read(file)
    assert found.scenario["cluster"]["decode"]["count"] == 2
    scenario = yaml.safe_load(found.to_yaml())
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario))
    assert planner.plan(load_scenario(path)).throughput_requests_per_s > 0


def test_a_container_s_own_entry_point(tmp_path: Path) -> None:
    config = '{"kv_connector":"NixlConnector","kv_role":"ROLE"}'
    file = tmp_path / "run.sh"
    file.write_text(
        "".join(
            f"docker run --gpus all vllm/vllm-openai:v0.33.0 --model Qwen/Qwen3-32B -tp 4 "
            f"--kv-transfer-config '{config.replace('ROLE', role)}'\n"
            for role in ("kv_producer", "kv_consumer")
        )
    )
    found = read(file)
    assert found.scenario["llm"] == "qwen3-32b"
    assert found.scenario["parallelism"]["decode"] == {"tensor": 4}


def test_every_node_of_a_deployment_has_its_command(tmp_path: Path) -> None:
    """What `export vllm` writes has a command for each node: none is counted twice."""
    write(made("vllm"), tmp_path / "out")
    found = read(tmp_path / "out")
    assert [found.scenario["cluster"][role]["count"] for role in ("prefill", "decode")] == [2, 4]
    assert not any("have no command" in sentence for sentence in found.found)


SCRIPT = """#!/bin/bash
# vllm serve in a comment, with an ' apostrophe
export X=1
vllm bench serve --model x
CUDA_VISIBLE_DEVICES=0,1 vllm serve meta-llama/Llama-3.1-70B-Instruct -tp 2 --port=8100 \\
  --kv-transfer-config '{"kv_connector": "NixlConnector",
     "kv_role": "kv_producer", "kv_connector_extra_config": {"bidirectional_kv_xfer": true}}' &
vllm serve /models/Llama-3.1-70B --tensor-parallel-size=4 --kv_cache_dtype fp8 \\
  --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}'
"""


def test_a_script_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "start.sh"
    file.write_text(SCRIPT)
    found = read(file)
    scenario = found.scenario
    assert (scenario["llm"], scenario["framework"]) == ("llama-3.1-70b", "vllm-pull")
    assert scenario["kv_dtype"] == "fp8"
    assert scenario["parallelism"] == {"prefill": {"tensor": 2}, "decode": {"tensor": 4}}
    assert scenario["cluster"]["prefill"]["node"] == {"base": "paper-hopper", "gpus": 2, "cnics": 2}
    assert any(f"{file}:5" in sentence for sentence in found.found)
    assert any("no host is stated" in sentence for sentence in found.missing)
    (tmp_path / "back.yaml").write_text(found.to_yaml())
    assert load_scenario(tmp_path / "back.yaml").llm.name == "llama-3.1-70b"


def test_a_compose_file(tmp_path: Path) -> None:
    role = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    services = {
        "prefill": {
            "image": "vllm/vllm-openai",
            "command": [
                "--model",
                "qwen3-32b",
                "--kv-transfer-config",
                json.dumps(role),
            ],
            "deploy": {"replicas": 3},
        },
        "decode": {"command": f"vllm serve qwen3-32b --kv-transfer-config '{json.dumps(role)}'"},
        "proxy": {"command": "nginx"},
    }
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump({"services": services}))
    scenario = read(file).scenario
    assert scenario["llm"] == "qwen3-32b"
    counts = {pool: part["count"] for pool, part in scenario["cluster"].items()}
    assert counts == {"prefill": 3, "decode": 1}


GOOD = '{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.sh", "echo nothing", "has no `vllm serve` command and no kv_connector"),
        (
            "a.sh",
            "vllm serve x --kv-transfer-config 'open",
            "cannot be taken apart as a shell does",
        ),
        ("a.sh", "vllm serve x --port 1", "has no --kv-transfer-config"),
        ("a.sh", "vllm serve x --kv-transfer-config '{'", "--kv-transfer-config: is not JSON"),
        ("a.sh", "vllm serve x --kv-transfer-config 3", "--kv-transfer-config is no mapping"),
        (
            "a.sh",
            f"vllm serve x -tp two --kv-transfer-config '{GOOD}'",
            "--tensor-parallel-size is two",
        ),
        (
            "a.sh",
            """vllm serve x --kv-transfer-config '{"kv_connector":"N","kv_role":"kv_both"}'""",
            "kv_role is kv_both, which does not tell prefill from decode",
        ),
        ("a.json", "{}", "is JSON without kv_connector"),
        ("a.json", "[1, 2]", "is no list of words"),
        ("a.json", "{", "is not JSON"),
        (
            "a.json",
            json.dumps(
                {
                    "kv_connector": "OffloadingConnector",
                    "kv_role": "kv_consumer",
                    "kv_connector_extra_config": {"cpu_bytes_to_use": "much"},
                }
            ),
            "cpu_bytes_to_use is much; it must be bytes",
        ),
        ("a.yaml", "x: 1", "has no services"),
        ("a.bin", "\udcff", "cannot be read"),
    ],
)
def test_bad_deployments(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        read(file)
    assert len(str(error.value).splitlines()) == 1


def test_no_deployment_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.sh")
    with pytest.raises(InputError, match="has no `vllm serve` command"):
        read(tmp_path)
