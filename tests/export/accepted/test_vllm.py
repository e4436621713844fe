"""vLLM's own configuration class and source on what we write, and on what is wrong."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.export import Export, export, parse_plan, target_named, write
from dualpath_model.export.vllm_keys import FLAGS, NIXL_KEYS, OFFLOADING_KEYS, TIER_KEYS
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file
from tests.export.test_vllm import RECORDED, pull_plan

pytestmark = pytest.mark.exports

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "recorded-sessions")


def commands(found: Export) -> dict[str, list[str]]:
    listed = {}
    for name, text in found.files.items():
        if name.startswith("nodes/") and name.endswith(".sh"):
            lines = [line for line in text.splitlines() if not line.startswith(("#", "set "))]
            listed[name[6:-3]] = shlex.split("\n".join(lines).replace("\\\n", " "))
    return listed


def checked(tmp_path: Path, listed: list[list[str]]) -> Answer:
    file = tmp_path / "commands.json"
    file.write_text(json.dumps(listed))
    return check("vllm", "commands", file, checker="vllm_config")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_files_are_accepted_and_say_what_the_plan_says(tmp_path: Path, name: str) -> None:
    plan, found = plan_file(name), made("vllm", name)
    write(found, tmp_path / "out")
    files = sorted((tmp_path / "out" / "nodes").glob("*.json"))
    alone = check("vllm", "configs", *files, checker="vllm_config")
    assert alone.accepted, alone.output
    listed = commands(found)
    answer = checked(tmp_path, list(listed.values()))
    assert answer.accepted, answer.output
    read = dict(zip(listed, answer.values, strict=True))
    assert {file.stem for file in files} == set(read)
    for file, config in zip(files, alone.values, strict=True):
        assert read[file.stem]["config"] == config
    for kind in plan.deployment.kinds:
        for position in kind.positions:
            prefix = f"{kind.pool}-{position}"
            mine = [read[n] for n in read if n == prefix or n.startswith(f"{prefix}-")]
            engines = 0
            for server in mine:
                flags, store = (
                    server["flags"],
                    server["config"]["connectors"]["OffloadingConnector"],
                )
                own = int(
                    flags.get("--data-parallel-size-local", flags.get("--data-parallel-size", 1))
                )
                engines += own
                assert int(flags["--tensor-parallel-size"]) == kind.tensor
                block = int(flags["--block-size"]) * store["blocks_per_chunk"]
                assert block == plan.scheduler_parameters.block_tokens
                if kind.buffer_bytes is not None:
                    assert store["cpu_bytes_to_use"] == int(kind.buffer_bytes // kind.engines)
                assert [tier["type"] for tier in store["secondary_tiers"]] == ["p2p", "fs"]
                role = {"prefill": "kv_producer", "decode": "kv_consumer"}[kind.pool]
                assert server["config"]["kv_role"] == role
                assert server["config"]["connectors"]["NixlConnector"]["kv_role"] == role
                assert server["config"]["kv_load_failure_policy"] == "recompute"
            assert engines == kind.engines


def test_bidirectional_transfers_are_accepted(tmp_path: Path) -> None:
    data = pull_plan(RECORDED)
    found = export(target_named("vllm"), parse_plan(data))
    listed = commands(found)
    answer = checked(tmp_path, list(listed.values()))
    assert answer.accepted, answer.output
    for name, server in zip(listed, answer.values, strict=True):
        nixl = server["config"]["connectors"]["NixlConnector"]
        assert nixl["bidirectional_kv_xfer"] is True
        if name.startswith("decode"):
            assert nixl["decoder_kv_blocks_ttl"] >= data["deployment"]["workload"]["think_s"]["p99"]


# ---- wrong files are refused -------------------------------------------------------------------------


def _at(config: Any, *path: Any) -> Any:
    for part in path:
        config = config[part]
    return config


_STORE = ("kv_connector_extra_config", "connectors", 1, "kv_connector_extra_config")


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        _at(config, *path[:-1])[path[-1]] = to

    return change


def _without_role(config: Any) -> None:
    del config["kv_role"]


def _child_with_engine(config: Any) -> None:
    config["kv_connector_extra_config"]["connectors"][0]["engine_id"] = "x"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("kv_buffer_size", to=1e9), "kv_buffer_size"),
        (_set("kv_role", to="kv_prefill"), "kv_role"),
        (_without_role, "kv_role"),
        (_set("kv_load_failure_policy", to="retry"), "kv_load_failure_policy"),
        (_set("kv_connector", to="MultiConector"), "MultiConector is not registered"),
        (_child_with_engine, "engine_id"),
        (
            _set("kv_connector_extra_config", "connectors", 0, "kv_connector", to="Nixl"),
            "Nixl is not registered",
        ),
        (
            _set("kv_connector_extra_config", "connectors", 1, "kv_role", to="both"),
            "kv_role",
        ),
        (_set(*_STORE, "cpu_bytes", to=1), "does not read .'cpu_bytes'"),
        (_set(*_STORE, "spec_name", to="Tiering"), "spec Tiering is not registered"),
        (_set(*_STORE, "block_size", to=64), "only one of"),
        (_set(*_STORE, "secondary_tiers", 0, "type", to="peer"), "tier peer is not registered"),
        (_set(*_STORE, "secondary_tiers", 0, "hosts", to="x"), "p2p does not take .'hosts'"),
        (_set(*_STORE, "secondary_tiers", 1, "root", to="x"), "fs does not take .'root'"),
    ],
)
def test_wrong_configs_are_refused(
    tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    config = json.loads(made("vllm").files["nodes/decode-0.json"])
    wrong = copy.deepcopy(config)
    change(wrong)
    assert wrong != config
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(wrong))
    answer = check("vllm", "configs", file, checker="vllm_config")
    assert not answer.accepted
    assert re.search(says, answer.output), answer.output


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("--max-num-seqs", "--max-num-seq", "has no --max-num-seq"),
        ("fp8", "fp7", "no --kv-cache-dtype fp7"),
        ("VLLM_NIXL_SIDE_CHANNEL_PORT=5600", "VLLM_NIXL_PORT=5600", "reads no .'VLLM_NIXL_PORT'"),
        ("serve", "run", "no `vllm serve MODEL`"),
    ],
)
def test_wrong_commands_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    words = commands(made("vllm"))["decode-0"]
    assert old in words
    answer = checked(tmp_path, [[new if word == old else word for word in words]])
    assert not answer.accepted
    assert re.search(says, answer.output), answer.output


def test_the_lists_of_keys_are_vllms() -> None:
    answer = check("vllm", "names", checker="vllm_config")
    assert answer.accepted, answer.output
    names = {key: set(value) for key, value in answer.values.items()}
    assert names["NixlConnector"] >= NIXL_KEYS
    assert names["OffloadingConnector"] >= OFFLOADING_KEYS
    assert names["flags"] >= FLAGS
    for tier, keys in TIER_KEYS.items():
        assert names[f"tier {tier}"] >= keys
