"""Mooncake, vLLM and SGLang read their clients' files; the master starts with its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.export import Site, write
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def read(form: str, *files: Path) -> Answer:
    return check("mooncake", form, *files, checker="mooncake_files")


@pytest.mark.parametrize("form", ["client", "vllm", "sglang"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_clients_read_what_the_plan_says(tmp_path: Path, name: str, form: str) -> None:
    site = Site(compute_devices=["mlx5_0", "mlx5_1"], mooncake_master="here:50051")
    write(made("mooncake", name, site=site), tmp_path / name)
    folder = tmp_path / name / ("clients" if form == "client" else form)
    files = sorted(folder.glob("*.json"))
    answer = read(form, *files)
    assert answer.accepted, answer.output
    deployment = plan_file(name).deployment
    for file, values in zip(files, answer.values, strict=True):
        pool, number = file.stem.partition("-")[0], file.stem.rpartition("-")[2]
        if form == "client":
            (kind,) = (k for k in deployment.pool(pool) if int(number) in k.positions)
            assert values["local_hostname"] == f"{pool}-{number}.example.internal"
        else:
            kind = deployment.pool(pool)[int(number) if number.isdigit() else 0]
        assert values["device_name"] == "mlx5_0,mlx5_1"
        assert values["master_server_address"] == "here:50051"
        longest = deployment.workload.prompt_tokens.most * deployment.llm.kv_bytes_per_token
        if form != "sglang":
            block = 64 * deployment.llm.kv_bytes_per_token
            assert longest <= values["local_buffer_size"] < longest + block
        if kind.buffer_bytes is None:
            assert "global_segment_size" not in values
        elif form != "sglang":
            both = values["global_segment_size"] + values["local_buffer_size"]
            assert both * kind.gpus == pytest.approx(kind.buffer_bytes, abs=kind.gpus)


def test_the_master_starts_with_the_file(tmp_path: Path) -> None:
    write(made("mooncake"), tmp_path / "out")
    answer = read("master", tmp_path / "out" / "master.json")
    assert answer.accepted, answer.output
    deployment = plan_file().deployment
    most = deployment.workload.hit_tokens.most * deployment.llm.read_bytes_per_token
    rate = min(k.cnics * k.cnic_bytes_per_s / k.engines for k in deployment.kinds)
    lease_ms = int(answer.values[0]["default_kv_lease_ttl"])
    assert lease_ms == pytest.approx(1000 * (deployment.alpha_s + most / rate), abs=1)


def changed(tmp_path: Path, name: str, **values: Any) -> Path:
    data = json.loads(made("mooncake", "qwen-32b-1p2d").files[name])
    for key, value in values.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    file = tmp_path / "changed.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.parametrize(
    ("form", "name", "values", "words"),
    [
        ("client", "clients/prefill-0.json", {"metadata_server": None}, "Missing required"),
        ("client", "clients/prefill-0.json", {"global_segment_sise": 1}, "unknown keys"),
        ("client", "clients/prefill-0.json", {"global_segment_size": "gb"}, "missing number"),
        ("client", "clients/prefill-0.json", {"local_buffer_size": "80gb"}, "was read as"),
        ("client", "clients/prefill-0.json", {"local_buffer_size": -1}, "non-negative"),
        ("vllm", "vllm/prefill.json", {"mode": "alone"}, "unknown Mooncake mode"),
        ("vllm", "vllm/prefill.json", {"global_segment_size": 0}, "requires global_segment_size"),
        ("vllm", "vllm/prefill.json", {"local_hostname": "x"}, "unknown keys"),
        ("sglang", "sglang/prefill.json", {"master_server_address": None}, "is required"),
        ("sglang", "sglang/prefill.json", {"local_buffer_size": 1}, "unknown keys"),
        ("sglang", "sglang/prefill.json", {"global_segment_size": "4.5gb"}, "refused"),
        ("master", "master.json", {"rpc_port": "x"}, "not convertible"),
        ("master", "master.json", {"eviction_high_watermark_ratio": 1.7}, "did not start"),
        ("master", "master.json", {"default_kv_leese_ttl": 5}, "unknown keys"),
    ],
)
def test_wrong_files_are_refused(
    tmp_path: Path, form: str, name: str, values: dict[str, Any], words: str
) -> None:
    answer = read(form, changed(tmp_path, name, **values))
    assert not answer.accepted
    assert words in answer.output
