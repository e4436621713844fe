"""The catalog of GPUs and nodes: complete, sourced, and changed only on purpose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from dualpath_model.catalog import files
from dualpath_model.catalog.nodes import (
    GpuSpec,
    NodeRef,
    NodeSpec,
    gpu_entry,
    gpu_names,
    load_gpu,
    load_node,
    node_entry,
    node_names,
)
from dualpath_model.errors import InputError

COMPLETE: dict[str, Any] = {"gpu": "h100-sxm", "gpus": 8, "cnics": 8, "cnic": "400 Gbps"}
GPU = {"bf16": "1 PFLOP/s", "hbm": "80 GB", "hbm_bandwidth": "3 TB/s"}


# ---- what the catalog holds ---------------------------------------------------------------------


def test_the_papers_node() -> None:
    assert node_names()[0] == "paper-hopper"
    node = load_node("paper-hopper")
    assert node.name == "paper-hopper"
    assert (node.gpus, node.compute_bytes_per_s, node.storage_bytes_per_s) == (8, 400e9, 50e9)
    assert (node.dram_bytes_per_s, node.buffer_bytes) == (500e9, 80e9)
    assert "only" in (node_entry("paper-hopper").note or "")


@pytest.mark.parametrize("name", gpu_names())
def test_gpus_are_sourced(name: str) -> None:
    entry = gpu_entry(name)
    assert entry.source and all(source.strip() for source in entry.source)
    assert entry.grade in ("a", "b", "c")
    gpu = load_gpu(name)
    assert gpu.name == name
    assert 1e14 < gpu.bf16_flop_per_s < 1e16
    assert 3e10 < gpu.hbm_bytes < 1e12
    assert gpu.fp8_flop_per_s is None or 1.9 < gpu.fp8_flop_per_s / gpu.bf16_flop_per_s < 2.1


@pytest.mark.parametrize("name", node_names())
def test_nodes_are_sourced(name: str) -> None:
    entry = node_entry(name)
    assert entry.source and all(source.strip() for source in entry.source)
    assert entry.grade in ("a", "b", "c")
    assert set(entry.field_grades) <= entry.model_fields_set
    assert entry.gpu in gpu_names()
    node = load_node(name)
    assert node.name == name
    assert node.gpu == load_gpu(str(entry.gpu))
    if node.price_usd_per_hour is not None:
        assert node.price_usd_per_hour > 0
        assert entry.price_region and entry.price_date and entry.price_source
    if node.host_link_bytes_per_s is not None:
        assert node.host_link_bytes_per_s < node.compute_bytes_per_s
        assert any("host_link" in source for source in entry.source)


def test_every_gpu_is_used() -> None:
    assert {node_entry(name).gpu for name in node_names()} == set(gpu_names())


def test_aws_has_no_storage_nic() -> None:
    for name in node_names():
        assert load_node(name).shares_nic is name.startswith("aws-")
    assert load_node("aws-p5.48xlarge").host_link_bytes_per_s == 63e9


@pytest.mark.parametrize(
    ("name", "storage", "compute"),
    [
        ("dgx-h100", 100e9, 400e9),
        ("hgx-h800", 50e9, 400e9),
        ("hgx-h20", 50e9, 200e9),
        ("azure-nd96isr-h100-v5", 10e9, 400e9),
        ("gcp-a3-megagpu-8g", 25e9, 200e9),
        ("oci-bm.gpu.h100.8", 12.5e9, 400e9),
        ("aws-p5en.48xlarge", 400e9, 400e9),
    ],
)
def test_line_rates(name: str, storage: float, compute: float) -> None:
    node = load_node(name)
    assert (node.storage_bytes_per_s, node.compute_bytes_per_s) == (storage, compute)


# ---- files and inline nodes ---------------------------------------------------------------------


def test_a_base_and_its_changes() -> None:
    paper = load_node("paper-hopper")
    assert load_node({"base": "paper-hopper"}) == paper
    degraded = load_node({"base": "paper-hopper", "snic": "200 Gbps"})
    assert degraded.storage_bytes_per_s == 25e9
    assert degraded.compute_bytes_per_s == paper.compute_bytes_per_s
    assert degraded.name == "paper-hopper"
    assert load_node({"base": "paper-hopper", "dram_bandwidth": None}).dram_bytes_per_s is None
    assert load_node({"base": "paper-hopper", "snics": 0}).shares_nic
    assert load_node({"base": "paper-hopper", "gpu": "h20-sxm"}).gpu == load_gpu("h20-sxm")


def test_complete_inline_nodes() -> None:
    node = load_node(COMPLETE)
    assert node.shares_nic
    assert node.dram_bytes is None
    own = load_node(COMPLETE | {"gpu": GPU, "snics": 1, "snic": "50 GB/s"})
    assert own.gpu.hbm_bytes == 80e9
    assert own.gpu.flop_per_s("fp8") == 1e15
    assert own.storage_bytes_per_s == 50e9


def test_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: paper-hopper\nsnic: 200 Gbps\n")
    (tmp_path / "mine.json").write_text(json.dumps({"base": "paper-hopper", "snic": "200 Gbps"}))
    nodes = [load_node("mine.yaml", tmp_path), load_node(str(tmp_path / "mine.json"))]
    assert nodes[0] == nodes[1] == load_node({"base": "paper-hopper", "snic": "200 Gbps"})
    assert [node.name for node in nodes] == ["mine", "mine"]
    path = tmp_path / "bad.yaml"
    path.write_text("base: paper-hopper\nsnic: 200\n")
    with pytest.raises(InputError, match=re.escape(f"{path}:2: snic: 200 has no unit; write it")):
        load_node(str(path))
    path.write_text("gpus: 8\n")
    with pytest.raises(InputError, match=re.escape(f"{path}:1: gpu is required and missing")):
        load_node(str(path))
    with pytest.raises(InputError, match="there is no file"):
        load_node("gone.yaml", tmp_path)


def test_specs_survive_a_round_trip() -> None:
    for name in node_names():
        entry = node_entry(name)
        again = NodeSpec.model_validate_json(entry.model_dump_json(exclude_none=True))
        assert again.to_node(name) == load_node(name)
    gpu = gpu_entry("gb200")
    assert GpuSpec.model_validate(gpu.model_dump(exclude_none=True)) == gpu
    assert load_node(NodeSpec(**COMPLETE)) == load_node(COMPLETE)


def test_as_a_field_of_another_model() -> None:
    class Holder(BaseModel):
        plain: str | NodeSpec
        node: NodeRef

    held = Holder.model_validate({"plain": {"base": "dgx-h100"}, "node": COMPLETE})
    assert isinstance(held.plain, NodeSpec) and isinstance(held.node, NodeSpec)
    assert held.plain.to_node("x").gpus == 8
    assert Holder(plain="dgx-h100", node="dgx-h100").node == "dgx-h100"
    with pytest.raises(ValidationError, match="has no unit") as caught:
        Holder.model_validate({"plain": "a", "node": COMPLETE | {"cnic": 400}})
    assert len(caught.value.errors()) == 1
    assert caught.value.errors()[0]["loc"] == ("node", "inline", "cnic")
    assert "properties" in json.dumps(Holder.model_json_schema())


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "node: gpus: 0 is not allowed"),
        ({"gpus": -8}, "node: gpus: -8 is not allowed"),
        ({"gpus": 7.5}, "node: gpus: 7.5 is not allowed"),
        ({"gpus": "8"}, "node: gpus: '8' is not allowed"),
        ({"cnics": 0}, "node: cnics: 0 is not allowed"),
        ({"snics": -1}, "node: snics: -1 is not allowed"),
        ({"cnic": "-400 Gbps"}, "node: cnic: '-400 Gbps' is out of range"),
        ({"cnic": "0 Gbps"}, "node: cnic: '0 Gbps' is out of range"),
        ({"cnic": 400}, "node: cnic: 400 has no unit"),
        ({"cnic": "400"}, "node: cnic: '400' has no unit"),
        ({"cnic": "400 GB"}, "node: cnic: '400 GB' is in B, but B/s is needed"),
        ({"cnic": "nan Gbps"}, "node: cnic: 'nan Gbps' is not a number"),
        ({"cnic": float("nan")}, "node: cnic: nan has no unit"),
        ({"cnic": "1e400 Gbps"}, "node: cnic: '1e400 Gbps' is out of range"),
        ({"cnic": None}, "node: cnic is required and missing; add it, or name a base"),
        ({"snic": "4 Gbps"}, "node: snics is missing or 0, but snic is given"),
        ({"snics": 1}, "node: snic is required and missing"),
        ({"dram": "1 GB", "buffer": "2 GB"}, r"node: buffer 2e\+09 B is more than dram"),
        ({"price_usd_per_hour": -1.0}, "node: price_usd_per_hour: -1.0 is not allowed"),
        ({"price_usd_per_hour": float("inf")}, "node: price_usd_per_hour: inf is not allowed"),
        ({"snik": "4 Gbps"}, "node: snik: unknown field; did you mean 'snic'"),
        ({"gpu": "h100"}, "node: gpu: GPU 'h100' is unknown; the nearest are h100-sxm"),
        ({"gpu": 100}, "node: gpu: 100 is not allowed"),
        ({"gpu": GPU | {"hbm": "80 Gbps"}}, "node: gpu.hbm: '80 Gbps' is in B/s, but B"),
        ({"gpu": GPU | {"hbn": "80 GB"}}, "node: gpu.hbn: unknown field; did you mean 'hbm'"),
        ({"gpu": {"bf16": "1 PFLOP/s"}}, "node: gpu.hbm: is required and missing"),
        ({"base": "paper-hoper"}, "node: base: node 'paper-hoper' is unknown; .*paper-hopper"),
        ({"base": "paper-hopper", "snics": 2, "snic": None}, "node: snic is required and missing"),
        ({"base": "paper-hopper", "gpus": None}, "node: gpus is required and missing"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    start = {} if "base" in changes else COMPLETE
    with pytest.raises(InputError, match=f"^{message}") as caught:
        load_node(start | changes)
    assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"node 'dgx-h10' is unknown; the nearest are dgx-h100"):
        load_node("dgx-h10")
    with pytest.raises(InputError, match=r"GPU 'mi300' is unknown; the nearest are mi300x"):
        load_gpu("mi300")
    with pytest.raises(InputError, match=r"node 'dgx' is unknown"):
        node_entry("dgx")
    with pytest.raises(InputError, match=r"GPU 'tpu' is unknown"):
        gpu_entry("tpu")
    with pytest.raises(InputError, match=r"node: 3 is neither a name nor a mapping"):
        load_node(3)  # type: ignore[arg-type]


def test_catalog_files_have_no_key_twice() -> None:
    """The fast loader takes the last of two equal keys; the careful one refuses them."""
    folder = Path(files.__file__).parent
    for name in ("llms.yaml", "nodes.yaml", "efficiencies.yaml"):
        assert files.read(folder / name).data == files.shipped(name)
