"""The catalog of LLMs: complete, sourced, and in agreement with what the vendors publish."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.catalog import files
from dualpath_model.catalog.llms import llm_entry, llm_names, load_llm, parse_llm
from dualpath_model.errors import InputError
from dualpath_model.llm import KvDtype

EXPECTED = {
    "deepseek-v3",
    "deepseek-v3.2",
    "ds-27b",
    "qwen2.5-0.5b",
    "qwen2.5-32b",
    "qwen3-32b",
    "qwen3-235b-a22b",
    "qwen3-coder-480b-a35b",
    "gpt-oss-120b",
    "kimi-k2",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "glm-4.6",
    "minimax-m2",
}
OWN = """\
layers: 2
hidden: 8
vocab: 10
attention: {kind: gqa, heads: 4, kv_heads: 2, head_dim: 3}
feed_forward: {dense_intermediate: 5}
max_context_tokens: 1000
weight_bytes_per_param: 2
"""


def own(**changes: Any) -> dict[str, Any]:
    """The fields of ``OWN``, some of them changed; None takes one away."""
    fields = yaml.safe_load(OWN) | changes
    return {key: value for key, value in fields.items() if value is not None}


def one_sentence(message: str) -> bool:
    return "\n" not in message and len(message) < 400


def test_names() -> None:
    assert set(llm_names()) == EXPECTED
    assert len(llm_names()) == len(EXPECTED)


@pytest.mark.parametrize("name", llm_names())
def test_entries_are_sourced(name: str) -> None:
    entry = llm_entry(name)
    assert entry.source and all(source.strip() for source in entry.source)
    assert entry.grade in ("a", "b", "c")
    llm = load_llm(name)
    assert llm.name == name
    assert llm.sources == tuple(entry.source)


@pytest.mark.parametrize("name", llm_names())
def test_counts_agree_with_the_published_ones(name: str) -> None:
    """Within 2 %, counting the tables and MTP layers that the vendor counts."""
    llm = load_llm(name)
    total, active = llm.params_as_published
    assert total == pytest.approx(llm.published.total_params, rel=0.02)
    if llm.published.active_params is None:
        assert "No active count is published" in (llm_entry(name).note or "")
    else:
        assert active == pytest.approx(llm.published.active_params, rel=0.02)


def test_dtypes() -> None:
    kv = {name: load_llm(name).default_kv_dtype for name in llm_names()}
    assert kv.pop("qwen2.5-32b") is kv.pop("qwen2.5-0.5b") is KvDtype.BF16
    assert kv.pop("deepseek-v3") is KvDtype.FP8_DS_MLA
    assert set(kv.values()) == {KvDtype.FP8}
    gpt_oss = load_llm("gpt-oss-120b")
    assert gpt_oss.expert_bytes_per_param == 4.25 / 8
    assert gpt_oss.weight_bytes < 80e9  # the README: runs on one 80 GB GPU


def test_loading_by_name_is_fast() -> None:
    files.shipped.cache_clear()
    start = time.perf_counter()
    load_llm("minimax-m2")
    assert time.perf_counter() - start < 0.15  # 2 ms here; ten times that on a bad day


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"LLM 'qwen3-23b' is unknown; .*qwen3-32b"):
        load_llm("qwen3-23b")
    with pytest.raises(InputError, match=r"LLM '' is unknown"):
        load_llm("")
    with pytest.raises(InputError, match=r"LLM 'kimi' is unknown; .*kimi-k2"):
        llm_entry("kimi")


# ---- a user's own LLM ---------------------------------------------------------------------------


def test_own_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(OWN)
    llm = load_llm("mine.yaml", tmp_path)
    assert llm == parse_llm(own(), "mine")
    assert llm.name == "mine"
    assert llm.grade == "given"
    assert llm.expert_bytes_per_param == 2
    assert load_llm(str(tmp_path / "mine.yaml")) == llm
    assert parse_llm(own(name="named")).name == "named"


def test_missing_file_offers_the_catalog(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*check the path or take .*qwen3-32b"):
        load_llm("Qwen/qwen3-32b", tmp_path)
    for impossible in ("a" * 5000 + ".yaml", "~nobody-has-this-home/x.yaml"):
        with pytest.raises(InputError, match="there is no file"):
            load_llm(impossible, tmp_path)


def test_errors_in_files_have_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("layers: 2", "layers: 0"))
    with pytest.raises(InputError, match=re.escape(f"{path}:1: layers: 0 is not allowed")):
        load_llm(str(path))
    path.write_text(OWN + "hiden: 3\n")
    with pytest.raises(InputError, match=re.escape(f"{path}:8: hiden: unknown field; did you")):
        load_llm(str(path))
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="must be a mapping"):
        load_llm(str(path))


GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 3}
MLA = {
    "kind": "mla",
    "heads": 4,
    "q_lora_rank": 0,
    "kv_lora_rank": 2,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 2,
}
EXPERTS = {"expert_intermediate": 5, "experts": 4, "active_experts": 2}


def test_other_shapes_are_accepted() -> None:
    indexer = {"heads": 2, "head_dim": 4, "top_k": 8, "key_bytes_per_token_layer": 8}
    sparse = MLA | {"kind": "mla_sparse", "indexer": indexer}
    assert parse_llm(own(attention=sparse)).attention.kind == "mla_sparse"
    assert parse_llm(own(attention=MLA, default_kv_dtype="fp8_ds_mla")).attention.kind == "mla"
    assert parse_llm(own(attention=GQA | {"kind": "mha", "kv_heads": 4})).attention.kind == "mha"
    assert parse_llm(own(feed_forward=EXPERTS, expert_bytes_per_param=0.5)).ffn.experts == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": None}, "llm: layers: is required and missing; add it"),
        ({"layers": -1}, "llm: layers: -1 is not allowed"),
        ({"layers": 2.5}, "llm: layers: 2.5 is not allowed"),
        ({"layers": True}, "llm: layers: True is not allowed"),
        ({"layers": 10**400}, "llm: layers: 1000"),
        ({"source": [3]}, "llm: source.0: 3 is not allowed"),
        ({"vocab": "many"}, "llm: vocab: 'many' is not allowed"),
        ({"weight_bytes_per_param": float("nan")}, "llm: weight_bytes_per_param: nan is not"),
        ({"weight_bytes_per_param": float("inf")}, "llm: weight_bytes_per_param: inf is not"),
        ({"default_kv_dtype": "fp4"}, "llm: default_kv_dtype: 'fp4' is not allowed"),
        ({"default_kv_dtype": "fp8_ds_mla"}, "llm: default_kv_dtype 'fp8_ds_mla' needs"),
        ({"attention": 3}, "llm: attention: 3 is not allowed"),
        ({"attention": {"heads": 4}}, "llm: attention.kind: is required and missing; add it"),
        ({"attention": GQA | {"kind": "linear"}}, "llm: attention.kind: 'linear' is not a kind"),
        ({"attention": GQA | {"kv_heads": 3}}, "llm: attention: heads 4 is not a multiple of"),
        ({"attention": GQA | {"kind": "mha"}}, "llm: attention: kind is 'mha', but .* 'gqa'"),
        ({"attention": GQA | {"haeds": 1}}, "llm: attention.haeds: unknown field; did you mean"),
        ({"attention": GQA | {"sliding_layers": 1}}, "llm: attention: sliding_layers and"),
        ({"attention": MLA | {"kind": "mla_sparse"}}, "llm: attention: kind is 'mla_sparse'"),
        (
            {
                "attention": GQA
                | {"kind": "gqa_sliding", "sliding_layers": 3, "sliding_window_tokens": 9}
            },
            r"llm: attention.sliding_layers 3 is more than layers 2",
        ),
        ({"feed_forward": {}}, "llm: feed_forward: dense_intermediate is required"),
        ({"feed_forward": {"experts": 4}}, "llm: feed_forward: experts needs"),
        ({"feed_forward": EXPERTS | {"active_experts": 9}}, "llm: feed_forward: active_experts 9"),
        (
            {"feed_forward": EXPERTS | {"first_dense_layers": 3, "dense_intermediate": 5}},
            "llm: feed_forward.first_dense_layers 3 is more than layers 2",
        ),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_llm(own(**changes))
    assert one_sentence(str(caught.value))
