"""Mooncake's files: figures by another route than the target's, what is left out, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dualpath_model.errors import InputError
from dualpath_model.export import PlanFile, Site, export, target_named
from tests.export.plans import made, plan_file


def with_kinds(plan: PlanFile, **changes: Any) -> PlanFile:
    kinds = tuple(replace(kind, **changes) for kind in plan.deployment.kinds)
    return replace(plan, deployment=replace(plan.deployment, kinds=kinds))


def test_qwen_by_hand() -> None:
    """320 GB for 8 workers; the largest prompt is 469 blocks of 64 tokens of 262144 B."""
    files = made("mooncake", "qwen-32b-1p2d").files
    prompt = 469 * 64 * 262144
    data = json.loads(files["clients/decode-1.json"])
    assert data == {
        "local_hostname": "decode-1.example.internal",
        "metadata_server": "P2PHANDSHAKE",
        "master_server_address": "mooncake-master.example.internal:50051",
        "protocol": "rdma",
        "global_segment_size": 40_000_000_000 - prompt,
        "local_buffer_size": prompt,
    }
    vllm, sglang = (json.loads(files[f"{form}/decode.json"]) for form in ("vllm", "sglang"))
    assert vllm.pop("mode") == "embedded"
    assert vllm | {"local_hostname": data["local_hostname"]} == data
    assert sglang | {"mode": "embedded", "local_buffer_size": prompt} == vllm | {"mode": "embedded"}
    assert len([name for name in files if name.startswith("clients/")]) == 3


def test_the_pool_is_the_plans_buffers() -> None:
    plan, files = plan_file(), made("mooncake").files
    total = 0
    for pool, count in (("prefill", 2), ("decode", 4)):
        for node in range(count):
            data = json.loads(files[f"clients/{pool}-{node}.json"])
            total += 8 * (data["global_segment_size"] + data["local_buffer_size"])
    buffers = [node.buffer_bytes or 0.0 for node in plan.scheduler_parameters.nodes]
    assert total == pytest.approx(sum(buffers), abs=8 * len(buffers))


def test_the_lease_outlives_the_read() -> None:
    plan = plan_file("qwen-32b-1p2d")
    lease = json.loads(made("mooncake", "qwen-32b-1p2d").files["master.json"])[
        "default_kv_lease_ttl"
    ]
    engine = 50e9  # one 400 Gbps NIC a GPU
    most_s = plan.deployment.workload.hit_tokens.most * 262144 / engine
    assert lease == pytest.approx(1000 * (3.0 + most_s), abs=1)


def test_a_buffer_that_is_not_given_is_not_guessed() -> None:
    found = made("mooncake", "heterogeneous")
    assert "global_segment_size" not in json.loads(found.files["vllm/prefill-kind-0.json"])
    assert "mode" not in json.loads(found.files["vllm/prefill-kind-0.json"])
    assert "global_segment_size" in json.loads(found.files["vllm/decode-kind-1.json"])
    assert sum("global_segment_size is left out" in note for note in found.bundle.notes) == 3
    none = export(target_named("mooncake"), with_kinds(plan_file(), buffer_bytes=None))
    assert any("no figure" in dropped.effect for dropped in none.bundle.dropped)


def test_what_the_pool_holds_is_said() -> None:
    plan, found = plan_file("qwen-32b-1p2d"), made("mooncake", "qwen-32b-1p2d")
    tokens = 3 * (320e9 - 8 * 469 * 64 * 262144) / 262144
    (storage,) = (d for d in found.bundle.dropped if "storage" in d.what)
    assert f"{tokens:.4g} tokens" in storage.effect
    assert f"{tokens / plan.deployment.workload.prompt_tokens.mean:.4g} mean" in storage.effect
    assert "1.68x over Basic is 1.00x" in found.bundle.dropped[0].effect


@pytest.mark.parametrize("address", ["host", "host:", ":50051", "host:0", "host:70000", "host:x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="mooncake_master is") as caught:
        made("mooncake", site=Site(mooncake_master=address))
    assert len(str(caught.value).splitlines()) == 1


def test_a_device_that_is_two_is_refused() -> None:
    with pytest.raises(InputError, match="separates devices by commas"):
        made("mooncake", site=Site(compute_devices=["mlx5_0,mlx5_1"]))


def test_a_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"nothing is left for the pool.*more than 17 GB"):
        export(target_named("mooncake"), with_kinds(plan_file(), buffer_bytes=16e9))
    assert export(target_named("mooncake"), with_kinds(plan_file(), buffer_bytes=17e9))
