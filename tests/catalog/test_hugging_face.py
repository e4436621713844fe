"""Reading config.json: each family to the shape of the catalog, and every mistake named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.catalog.hugging_face import model_types, read_config
from dualpath_model.catalog.llms import load_llm
from dualpath_model.errors import InputError
from dualpath_model.llm import GroupedAttention, Llm

CONFIGS = Path(__file__).parent / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))


def fields(name: str, **changes: Any) -> dict[str, Any]:
    """The fields of a config, some of them changed; ``...`` takes one away."""
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return {key: value for key, value in (content | changes).items() if value is not ...}


def read(name: str, **changes: Any) -> Llm:
    return read_config(fields(name, **changes), "config.json")


def test_every_family_has_a_config() -> None:
    assert {fields(name)["model_type"] for name in NAMES} == set(model_types())


@pytest.mark.parametrize("name", NAMES)
def test_same_llm_as_in_the_catalog(name: str) -> None:
    """All but what no config.json says: conventions, published counts, provenance."""
    found, catalog = load_llm(f"{name}.json", CONFIGS), load_llm(name)
    said_elsewhere = (
        "default_kv_dtype",
        "prefill_attention_form",
        "count_lm_head",
        "published",
        "sources",
        "grade",
    )
    same = {field: getattr(catalog, field) for field in said_elsewhere}
    assert replace(found, **same) == catalog
    assert found.sources == (str(CONFIGS / f"{name}.json"),)
    assert found.grade == "given"


def test_a_folder_stands_for_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "my-llm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields("qwen3-32b")))
    for reference in ("./my-llm", "my-llm/config.json", str(folder)):
        llm = load_llm(reference, tmp_path)
        assert llm.name == "my-llm"
        assert llm.params == load_llm("qwen3-32b").params


def test_text_config_of_a_multimodal_file() -> None:
    inner = fields("kimi-k2", quantization_config=...)
    outer = {"model_type": "kimi_k25", "vision_config": {}, "text_config": inner}
    assert read_config(outer, "config.json").weight_bytes_per_param == 2
    outer["quantization_config"] = {"quant_method": "fp8"}
    llm = read_config(outer, "config.json")
    assert replace(llm, sources=()) == replace(read("kimi-k2"), sources=())


# ---- optional fields ----------------------------------------------------------------------------


def test_defaults_of_the_families() -> None:
    llama = read("llama-3.1-70b", num_key_value_heads=..., attention_bias=..., torch_dtype=...)
    assert isinstance(llama.attention, GroupedAttention)
    assert (llama.attention.kv_heads, llama.attention.head_dim) == (64, 128)
    assert llama.weight_bytes_per_param == 2
    assert read("deepseek-v3", q_lora_rank=None).params.total > 0
    assert read("deepseek-v3", num_nextn_predict_layers=...).mtp_layers == 0
    assert read("deepseek-v3", n_routed_experts=None).ffn.experts == 0
    assert read("minimax-m2", use_mtp=False).mtp_layers == 0
    assert read("gpt-oss-120b", layer_types=None).attention == read("gpt-oss-120b").attention
    assert read("qwen3-32b", tie_word_embeddings=True).tied_embeddings


def test_weight_formats() -> None:
    assert read("qwen3-32b", torch_dtype="float32").weight_bytes_per_param == 4
    assert read("qwen3-32b", torch_dtype=..., dtype="float16").weight_bytes_per_param == 2
    fp8 = read("glm-4.6", quantization_config={"quant_method": "fp8"})
    assert (fp8.weight_bytes_per_param, fp8.compute_dtype) == (1, "fp8")


def test_qwen_windows() -> None:
    on = {"use_sliding_window": True, "sliding_window": 4096}
    llm = read("qwen2.5-32b", **on, max_window_layers=48)
    assert llm.attention == GroupedAttention(40, 8, 128, 4096, 16, True)
    assert read("qwen2.5-32b", **on).attention == GroupedAttention(40, 8, 128, qkv_bias=True)
    types = ["full_attention"] * 60 + ["sliding_attention"] * 4
    llm = read("qwen3-32b", **on, layer_types=types)
    assert llm.attention == GroupedAttention(64, 8, 128, 4096, 4)


def test_qwen_dense_layers_among_experts() -> None:
    assert read("qwen3-235b-a22b", mlp_only_layers=[0, 5]).ffn.first_dense_layers == 2
    ffn = read("qwen3-235b-a22b", decoder_sparse_step=2).ffn
    assert (ffn.first_dense_layers, ffn.dense_intermediate) == (47, 12288)


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama-3.1-70b", {"model_type": ...}, "model_type: is missing; supported are"),
        ("llama-3.1-70b", {"model_type": "mamba"}, "model_type: 'mamba' is not supported"),
        ("llama-3.1-70b", {"model_type": "qwen3_mo"}, "nearest are qwen3_moe"),
        ("llama-3.1-70b", {"model_type": 7}, "model_type: 7 is not supported"),
        ("llama-3.1-70b", {"num_hidden_layers": 0}, "num_hidden_layers: 0 is not a whole number"),
        ("llama-3.1-70b", {"num_hidden_layers": -2}, "num_hidden_layers: -2 is not a whole"),
        ("llama-3.1-70b", {"num_hidden_layers": 80.0}, "num_hidden_layers: 80.0 is not a whole"),
        ("llama-3.1-70b", {"hidden_size": float("nan")}, "hidden_size: nan is not a whole number"),
        ("llama-3.1-70b", {"vocab_size": 10**400}, "is not a whole number from 1 to 1,000,000,000"),
        ("llama-3.1-70b", {"hidden_size": True}, "hidden_size: True is not a whole number"),
        ("llama-3.1-70b", {"hidden_size": "8192"}, "hidden_size: '8192' is not a whole number"),
        ("llama-3.1-70b", {"hidden_size": 8191}, "hidden_size: 8191 is not a multiple of num_att"),
        ("llama-3.1-70b", {"hidden_size": ...}, "hidden_size: is required and missing; take"),
        ("llama-3.1-70b", {"vocab_size": None}, "vocab_size: is required and missing"),
        ("llama-3.1-70b", {"intermediate_size": ...}, "intermediate_size: is required"),
        ("llama-3.1-70b", {"max_position_embeddings": ...}, "max_position_embeddings: is required"),
        ("llama-3.1-70b", {"num_key_value_heads": 7}, "64 is not a multiple of num_key_value_hea"),
        ("llama-3.1-70b", {"torch_dtype": "int3"}, "torch_dtype: 'int3' is not supported"),
        ("llama-3.1-70b", {"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no' is neither"),
        ("llama-3.1-70b", {"text_config": [1]}, r"text_config: \[1\] is not an object"),
        ("qwen3-32b", {"quantization_config": {"quant_method": "awq"}}, "'awq' is not supported"),
        ("qwen3-235b-a22b", {"num_experts": ...}, "num_experts: is required and missing"),
        ("qwen3-235b-a22b", {"num_experts_per_tok": 129}, "129 is more than num_experts 128"),
        ("qwen3-235b-a22b", {"mlp_only_layers": 3}, "mlp_only_layers: 3 is not a list"),
        ("deepseek-v3", {"kv_lora_rank": ...}, "kv_lora_rank: is required and missing"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq: only 1 is supported"),
        ("deepseek-v3", {"first_k_dense_replace": 62}, "62 of only 61 layers are dense"),
        ("deepseek-v3.2", {"index_topk": ...}, "index_topk: is required and missing"),
        ("gpt-oss-120b", {"layer_types": ["full_attention"]}, "layer_types: has 1 entries"),
        ("gpt-oss-120b", {"layer_types": ["linear"] * 36}, "layer_types: 'linear' is not supp"),
        ("gpt-oss-120b", {"sliding_window": None}, "sliding_window: is required and missing"),
    ],
)
def test_mistakes_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^config.json: .*{message}") as caught:
        read(name, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r":1: not valid JSON"),
        ("", r":1: not valid JSON"),
        ("[1, 2]", "must be a JSON object of fields, but it is a list"),
        ("null", "must be a JSON object of fields, but it is a null"),
        ("7", "must be a JSON object of fields, but it is a number"),
        ("[" * 200_000, "nested too deeply"),
        ("9" * 5000, "not usable JSON"),
        ("{}", "model_type: is missing"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_llm(str(path))
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        load_llm(str(path))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.json: there is no such file"):
        load_llm(str(tmp_path))
