"""Read the architecture out of a Hugging Face ``config.json``: one small function a family.

Taken from the file are shape, context and weight format. What no such file says keeps the toolkit's
default (KV-cache in fp8, decompressed prefill attention, LM head not counted in prefill). The
catalog's DeepSeek-V3, GPT-OSS and Qwen2.5 differ from that, to reproduce the paper's Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dualpath_model.catalog.files import MOST
from dualpath_model.errors import InputError, nearest
from dualpath_model.llm import FeedForward, GroupedAttention, Indexer, LatentAttention, Llm

Attention = GroupedAttention | LatentAttention

_MXFP4_BYTES = 4.25 / 8  # 4-bit elements, one 8-bit scale for 32 of them
_DTYPE_BYTES = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0}


class _Config:
    """The fields of one file, each checked when it is asked for."""

    def __init__(self, fields: Mapping[str, Any], file: str) -> None:
        self.fields = fields
        self.file = file

    def refuse(self, field: str, problem: str) -> NoReturn:
        raise InputError(f"{self.file}: {field}: {problem}")

    def whole(self, field: str, default: int | None = None, *, least: int = 0) -> int:
        """Return a whole number of at least ``least``; an absent or null field is ``default``."""
        value = self.fields.get(field)
        if value is None:
            if default is None:
                self.refuse(field, "is required and missing; take the model's full config.json")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
            self.refuse(
                field, f"{value!r} is not a whole number from {least} to {MOST:,}; correct it"
            )
        return value

    def positive(self, field: str, default: int | None = None) -> int:
        """Return a whole number greater than zero."""
        return self.whole(field, default, least=1)

    def flag(self, field: str, default: bool) -> bool:
        """Return a true or false field."""
        value = self.fields.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(field, f"{value!r} is neither true nor false; correct it")
        return value

    def items(self, field: str) -> list[Any]:
        """Return a list; an absent or null field is an empty one."""
        value = self.fields.get(field)
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse(field, f"{value!r} is not a list; correct it")
        return value

    def mapping(self, field: str) -> Mapping[str, Any]:
        """Return a nested object; an absent or null field is an empty one."""
        value = self.fields.get(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.refuse(field, f"{value!r} is not an object of fields; correct it")
        return value


def read_config(fields: Mapping[str, Any], file: str) -> Llm:
    """Return the LLM that the fields of a ``config.json`` describe; ``file`` is for messages.

    A multimodal file's ``text_config`` is read in its place. Raises InputError naming file, field,
    value and remedy for model types of other families, missing fields and impossible values.
    """
    config = _Config(fields, file)
    text = config.mapping("text_config")
    if text:
        # Weight format and tied tables may be given outside, beside the vision part.
        outer = {key: fields[key] for key in _OUTSIDE if key in fields}
        config = _Config({**outer, **text}, file)
    family = _family(config)
    layers = config.positive("num_hidden_layers")
    weight_bytes, expert_bytes, compute_dtype = _weight_format(config)
    return Llm(
        name=_name(Path(file)),
        layers=layers,
        hidden=config.positive("hidden_size"),
        vocab=config.positive("vocab_size"),
        attention=family.attention(config),
        ffn=family.feed_forward(config),
        tied_embeddings=config.flag("tie_word_embeddings", False),
        mtp_layers=family.mtp_layers(config),
        max_context_tokens=config.positive("max_position_embeddings"),
        weight_bytes_per_param=weight_bytes,
        expert_bytes_per_param=expert_bytes,
        compute_dtype=compute_dtype,
        sources=(file,),
    )


def _name(path: Path) -> str:
    """Name an LLM after its folder, where the file is called what they are all called."""
    return path.resolve().parent.name if path.name == "config.json" else path.stem


_OUTSIDE = ("quantization_config", "tie_word_embeddings", "torch_dtype", "dtype")


def _weight_format(config: _Config) -> tuple[float, float, str]:
    """Return bytes of a parameter, bytes of an expert's parameter, and the arithmetic's dtype.

    In fp8 files embeddings, norms and block scales take a little more than the one byte assumed.
    """
    method = config.mapping("quantization_config").get("quant_method")
    if method == "fp8":
        return 1.0, 1.0, "fp8"
    field = "dtype" if config.fields.get("dtype") is not None else "torch_dtype"
    dtype = config.fields.get(field) or "bfloat16"
    if dtype not in _DTYPE_BYTES:
        config.refuse(field, f"{dtype!r} is not supported; allowed are {', '.join(_DTYPE_BYTES)}")
    if method == "mxfp4":
        return _DTYPE_BYTES[dtype], _MXFP4_BYTES, "bf16"
    if method is not None:
        config.refuse(
            "quantization_config.quant_method",
            f"{method!r} is not supported; allowed are fp8 and mxfp4, or remove it to plan with "
            f"weights in {dtype}",
        )
    return _DTYPE_BYTES[dtype], _DTYPE_BYTES[dtype], "bf16"


# ---- attention --------------------------------------------------------------------------------


def _grouped(
    config: _Config, *, bias: bool, window: int = 0, sliding_layers: int = 0
) -> GroupedAttention:
    heads = config.positive("num_attention_heads")
    kv_heads = config.positive("num_key_value_heads", heads)
    if heads % kv_heads:
        config.refuse(
            "num_attention_heads",
            f"{heads} is not a multiple of num_key_value_heads {kv_heads}; correct one of them",
        )
    hidden = config.positive("hidden_size")
    if config.fields.get("head_dim") is None and hidden % heads:
        config.refuse(
            "hidden_size",
            f"{hidden} is not a multiple of num_attention_heads {heads}; mend it or add head_dim",
        )
    head_dim = config.positive("head_dim", hidden // heads)
    if not sliding_layers:
        window = 0
    return GroupedAttention(heads, kv_heads, head_dim, window, sliding_layers, bias)


def _qwen(config: _Config, *, bias: bool) -> GroupedAttention:
    layers = config.positive("num_hidden_layers")
    window = config.whole("sliding_window", 0)
    if not config.flag("use_sliding_window", False) or not window:
        return _grouped(config, bias=bias)
    sliding = _sliding_layers(config, max(layers - config.whole("max_window_layers", layers), 0))
    return _grouped(config, bias=bias, window=window, sliding_layers=sliding)


def _gpt_oss_attention(config: _Config) -> GroupedAttention:
    window = config.positive("sliding_window")
    alternate = (config.positive("num_hidden_layers") + 1) // 2
    sliding = _sliding_layers(config, alternate)
    bias = config.flag("attention_bias", True)
    return _grouped(config, bias=bias, window=window, sliding_layers=sliding)


def _sliding_layers(config: _Config, default: int) -> int:
    types = config.items("layer_types")
    if not types:
        return default
    if len(types) != config.positive("num_hidden_layers"):
        config.refuse("layer_types", f"has {len(types)} entries; give one for each hidden layer")
    known = ("full_attention", "sliding_attention")
    for kind in types:
        if kind not in known:
            config.refuse("layer_types", f"{kind!r} is not supported; allowed are {known}")
    return types.count("sliding_attention")


def _latent(config: _Config) -> LatentAttention:
    indexer = None
    if config.fields.get("index_topk") is not None:
        head_dim = config.positive("index_head_dim")
        indexer = Indexer(
            heads=config.positive("index_n_heads"),
            head_dim=head_dim,
            top_k=config.positive("index_topk"),
            # fp8 keys with one fp32 scale for each 128 of them, as in DeepSeek-V3.2's model.py
            key_bytes_per_token_layer=float(head_dim + 4 * math.ceil(head_dim / 128)),
        )
    return LatentAttention(
        heads=config.positive("num_attention_heads"),
        q_lora_rank=config.whole("q_lora_rank", 0),
        kv_lora_rank=config.positive("kv_lora_rank"),
        qk_nope_head_dim=config.positive("qk_nope_head_dim"),
        qk_rope_head_dim=config.positive("qk_rope_head_dim"),
        v_head_dim=config.positive("v_head_dim"),
        indexer=indexer,
    )


def _sparse_latent(config: _Config) -> LatentAttention:
    config.positive("index_topk")  # required here
    return _latent(config)


# ---- feed-forward layers ----------------------------------------------------------------------


def _dense(config: _Config) -> FeedForward:
    return FeedForward(dense_intermediate=config.positive("intermediate_size"))


def _experts(
    config: _Config, count: str, width: str, *, dense_layers: int = 0, shared: int = 0
) -> FeedForward:
    experts = config.positive(count)
    active = config.positive("num_experts_per_tok")
    if active > experts:
        config.refuse("num_experts_per_tok", f"{active} is more than {count} {experts}")
    layers = config.positive("num_hidden_layers")
    if dense_layers > layers:
        config.refuse("first_k_dense_replace", f"{dense_layers} of only {layers} layers are dense")
    return FeedForward(
        dense_intermediate=config.positive("intermediate_size") if dense_layers else 0,
        expert_intermediate=config.positive(width),
        experts=experts,
        active_experts=active,
        shared_experts=shared,
        first_dense_layers=dense_layers,
    )


def _deepseek_experts(config: _Config) -> FeedForward:
    if config.fields.get("n_routed_experts") is None:
        return _dense(config)
    if config.whole("moe_layer_freq", 1) != 1:
        config.refuse("moe_layer_freq", "only 1 is supported; each later layer has experts")
    return _experts(
        config,
        "n_routed_experts",
        "moe_intermediate_size",
        dense_layers=config.whole("first_k_dense_replace", 0),
        shared=config.whole("n_shared_experts", 0),
    )


def _qwen_experts(config: _Config) -> FeedForward:
    step = config.positive("decoder_sparse_step", 1)
    dense = set(config.items("mlp_only_layers"))
    layers = range(config.positive("num_hidden_layers"))
    # How many are dense counts, not where they are.
    dense_layers = sum(layer in dense or (layer + 1) % step != 0 for layer in layers)
    return _experts(config, "num_experts", "moe_intermediate_size", dense_layers=dense_layers)


def _local_experts(config: _Config) -> FeedForward:
    return _experts(config, "num_local_experts", "intermediate_size")


# ---- multi-token prediction -------------------------------------------------------------------


def _no_mtp(config: _Config) -> int:
    return 0


def _next_n(config: _Config) -> int:
    return config.whole("num_nextn_predict_layers", 0)


def _minimax_mtp(config: _Config) -> int:
    if not config.flag("use_mtp", True):
        return 0
    return config.whole("num_mtp_modules", 0) * config.whole("mtp_transformer_layers", 1)


# ---- families ---------------------------------------------------------------------------------


class _Family:
    """How the files of one ``model_type`` are read."""

    def __init__(
        self,
        attention: Callable[[_Config], Attention],
        feed_forward: Callable[[_Config], FeedForward],
        mtp_layers: Callable[[_Config], int] = _no_mtp,
    ) -> None:
        self.attention = attention
        self.feed_forward = feed_forward
        self.mtp_layers = mtp_layers


def _plain(config: _Config) -> GroupedAttention:
    return _grouped(config, bias=config.flag("attention_bias", False))


_DEEPSEEK = _Family(_latent, _deepseek_experts, _next_n)
_FAMILIES = {
    "llama": _Family(_plain, _dense),
    "qwen2": _Family(lambda config: _qwen(config, bias=True), _dense),
    "qwen3": _Family(
        lambda config: _qwen(config, bias=config.flag("attention_bias", False)), _dense
    ),
    "qwen3_moe": _Family(
        lambda config: _qwen(config, bias=config.flag("attention_bias", False)), _qwen_experts
    ),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _Family(_sparse_latent, _deepseek_experts, _next_n),
    "kimi_k2": _DEEPSEEK,
    "gpt_oss": _Family(_gpt_oss_attention, _local_experts),
    "glm4_moe": _Family(_plain, _deepseek_experts, _next_n),
    "minimax_m2": _Family(_plain, _local_experts, _minimax_mtp),
}


def model_types() -> list[str]:
    """Return the ``model_type`` names that can be read."""
    return sorted(_FAMILIES)


def _family(config: _Config) -> _Family:
    model_type = config.fields.get("model_type")
    if model_type is None:
        config.refuse("model_type", f"is missing; supported are {', '.join(model_types())}")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        close = nearest(str(model_type), _FAMILIES)
        hint = f" (the nearest are {', '.join(close)})" if close else ""
        config.refuse(
            "model_type",
            f"{model_type!r} is not supported{hint}; supported are {', '.join(model_types())}, or "
            f"describe the LLM in a YAML file of your own",
        )
    return family
