"""LMCache's files: figures by another route than the target's, what is left out, and bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from dualpath_model.errors import InputError
from dualpath_model.export import Export, PlanFile, Site, export, target_named
from dualpath_model.export.target import no_decode_reads
from tests.export.plans import made, plan_file

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def documents(found: Export) -> dict[str, Any]:
    return {
        name.removesuffix(".yaml"): yaml.safe_load(text)
        for name, text in found.files.items()
        if name.endswith(".yaml")
    }


def with_kinds(plan: PlanFile, **changes: Any) -> PlanFile:
    kinds = tuple(replace(kind, **changes) for kind in plan.deployment.kinds)
    return replace(plan, deployment=replace(plan.deployment, kinds=kinds))


def test_qwen_by_hand() -> None:
    """320 GB for 8 workers; the largest prompt is 29983 tokens, 469 blocks of 64, 262144 B each."""
    files = documents(made("lmcache", "qwen-32b-1p2d"))
    assert len(files) == 1 + 2 * 8
    prefill, decode = files["prefill"], files["decode-1-engine-3"]
    prompt = 469 * 64 * 262144
    assert prefill["chunk_size"] == decode["chunk_size"] == 64
    assert prefill["pd_buffer_size"] == prompt
    assert prefill["max_local_cpu_size"] == pytest.approx((40e9 - prompt) / 2**30, abs=1e-3)
    assert decode["pd_buffer_size"] == (40e9 - prompt) // (64 * 262144) * 64 * 262144
    assert decode["max_local_cpu_size"] == pytest.approx(prompt / 2**30, abs=1e-3)
    assert prefill["pd_max_prefill_len"] == 29983
    assert prefill["min_retrieve_tokens"] == 64
    assert (prefill["pd_role"], decode["pd_role"]) == ("sender", "receiver")
    assert decode["pd_peer_init_port"] == [7303]
    assert decode["pd_peer_alloc_port"] == [7403]
    assert prefill["extra_config"] == {"remote_storage_plugin.fs.base_path": "/mnt/kv-cache"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_memory_is_never_more_than_the_buffer(name: str) -> None:
    files, plan = documents(made("lmcache", name)), plan_file(name)
    for kind in plan.deployment.kinds:
        for position in kind.positions if kind.buffer_bytes is not None else ():
            ours = [
                data for file, data in files.items() if file.startswith(f"decode-{position}-")
            ] or [files.get("prefill")]
            for data in ours if kind.pool == "decode" else [files.get("prefill")]:
                assert data is not None
                both = data["max_local_cpu_size"] * 2**30 + data["pd_buffer_size"]
                assert both * kind.gpus <= kind.buffer_bytes


def test_ports_follow_the_ranks_of_an_engine() -> None:
    plan = plan_file("qwen-32b-1p2d")
    kinds = tuple(replace(k, tensor=4, buffer_bytes=960e9) for k in plan.deployment.kinds)
    plan = replace(plan, deployment=replace(plan.deployment, kinds=kinds))
    files = documents(export(target_named("lmcache"), plan))
    assert files["decode-0-engine-1"]["pd_peer_init_port"] == [7304, 7305, 7306, 7307]
    assert len([name for name in files if name.startswith("decode")]) == 2 * 2
    # a rank holds a fourth of the grouped heads
    assert files["prefill"]["pd_buffer_size"] == 469 * 64 * 262144 / 4


def test_a_buffer_that_is_not_given_is_not_guessed() -> None:
    found = made("lmcache", "heterogeneous")
    files = documents(found)
    assert "max_local_cpu_size" not in files["prefill-kind-0"]
    assert "max_local_cpu_size" in files["decode-2-engine-0"]
    assert sum("max_local_cpu_size is left out" in note for note in found.bundle.notes) == 3


def test_reading_that_is_slower_than_computing_has_no_least() -> None:
    slow = with_kinds(plan_file(), storage_read_bytes_per_s=1e6)
    found = export(target_named("lmcache"), slow)
    assert "min_retrieve_tokens" not in documents(found)["prefill"]
    assert any("min_retrieve_tokens is left out" in note for note in found.bundle.notes)


def test_the_missing_split_is_said_with_its_effect() -> None:
    found = made("lmcache")
    assert found.bundle.dropped[0] == no_decode_reads(plan_file(), found.bundle.dropped[0].why)
    assert "2.72x over Basic is 1.00x" in found.bundle.dropped[0].effect


def test_a_store_of_two_folders_is_refused() -> None:
    with pytest.raises(InputError, match="site: store is") as caught:
        made("lmcache", site=Site(store="/a,/b"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"room for the largest prompt twice.*at least 33 GB"):
        export(target_named("lmcache"), with_kinds(plan_file(), buffer_bytes=30e9))
    enough = with_kinds(plan_file(), buffer_bytes=33e9)
    assert export(target_named("lmcache"), enough)


def test_ports_above_the_last_are_refused() -> None:
    site = Site.model_validate({"ports": {"lmcache_init": 65530}})
    with pytest.raises(InputError, match=r"ports.lmcache_init is 65530.*set it to 65528 or lower"):
        made("lmcache", site=site)
