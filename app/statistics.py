"""The numbers behind ``dualpath trace``, ``llm`` and ``node``: plain dictionaries, SI, units in keys."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from dualpath_model.catalog.llms import load_llm
from dualpath_model.catalog.nodes import load_node
from dualpath_model.errors import InputError
from dualpath_model.llm import KvDtype, cache_compute_bytes_per_flop
from dualpath_model.loads import request_means
from dualpath_model.paths import Payload
from dualpath_model.traces import load_workload
from dualpath_model.traces.stats import workload_statistics

TABLE_1_LLMS = ("qwen2.5-32b", "qwen3-235b-a22b", "gpt-oss-120b", "deepseek-v3.2", "deepseek-v3")


def trace_statistics(
    path: Path,
    llms: list[str],
    *,
    scope: Literal["session", "global"] | None = None,
    max_inflated_bytes: int | None = None,
) -> dict[str, Any]:
    """Return what ``path`` contains and, for each LLM, what reading its hits back costs."""
    loaded = {name: load_llm(name) for name in llms}  # a misspelt name fails before the long read
    limit = {} if max_inflated_bytes is None else {"max_inflated_bytes": max_inflated_bytes}
    workload = load_workload(path, scope=scope, **limit)
    found: dict[str, Any] = dict(workload_statistics(workload))
    found["llms"] = {}
    for name, llm in loaded.items():
        dtype = llm.default_kv_dtype
        means = request_means(llm, workload, dtype)
        hit = float(means.payloads[Payload.HIT])
        found["llms"][name] = {
            "kv_dtype": dtype.value,
            "kv_bytes_per_token": llm.kv_bytes_per_token(dtype),
            "read_bytes": hit * workload.turns,
            "read_bytes_per_call": hit,
            "prefill_flops_per_call": means.prefill_flops,
            "cache_compute_bytes_per_flop": hit / means.prefill_flops,
        }
    return found


def llm_summary(name: str) -> dict[str, Any]:
    """Return one line of ``dualpath llm list``."""
    llm = load_llm(name)
    return {
        "attention": llm.attention.kind,
        "total_params": llm.params.total,
        "active_params": llm.params.active,
        "kv_dtype": llm.default_kv_dtype.value,
        "kv_bytes_per_token": llm.kv_bytes_per_token(llm.default_kv_dtype),
        "weight_bytes": llm.weight_bytes,
        "max_context_tokens": llm.max_context_tokens,
    }


def llm_details(name: str) -> dict[str, Any]:
    """Return everything known of one LLM, its shape and its sources included."""
    llm = load_llm(name)
    latent = llm.attention.kind.startswith("mla")
    dtypes = [d for d in KvDtype if latent or d is not KvDtype.FP8_DS_MLA]
    shape = asdict(llm)
    sources, grade = shape.pop("sources"), shape.pop("grade")
    return {
        **llm_summary(name),
        "kv_bytes_per_token_by_dtype": {d.value: llm.kv_bytes_per_token(d) for d in dtypes},
        "kv_bytes_per_token_layer_by_dtype": {
            d.value: llm.kv_bytes_per_token_layer(d) for d in dtypes
        },
        "prefill_flops_429_on_32k": float(llm.prefill_flops(32_000.0, 429.0).total),
        "decode_flops_at_32k": float(llm.decode_flops(32_000.0)),
        "decode_read_bytes_at_32k": float(llm.decode_read_bytes(32_000.0, llm.default_kv_dtype)),
        "shape": shape,
        "grade": grade,
        "sources": list(sources),
    }


def cache_compute(
    name: str, contexts: list[int], append: int, kv_dtype: str | None
) -> list[dict[str, float]]:
    """Return the cache-compute ratio of one LLM at each context (paper, Table 1)."""
    if append < 1:
        raise InputError(f"--append {append} is not allowed; prefill computes at least 1 token")
    llm = load_llm(name)
    dtype = KvDtype(kv_dtype) if kv_dtype else llm.default_kv_dtype
    return [
        {
            "context_tokens": context,
            "append_tokens": append,
            "kv_bytes": float(llm.kv_bytes(float(context), dtype)),
            "flops": float(llm.prefill_flops(float(context), float(append)).total),
            "gb_per_pflop": 1e6
            * float(cache_compute_bytes_per_flop(llm, float(context), float(append), dtype)),
        }
        for context in contexts
    ]


def node_summary(name: str) -> dict[str, Any]:
    """Return one line of ``dualpath node list``."""
    node = load_node(name)
    return {
        "gpu": node.gpu.name,
        "gpus": node.gpus,
        "hbm_bytes_per_gpu": node.gpu.hbm_bytes,
        "bf16_flop_per_s_per_gpu": node.gpu.bf16_flop_per_s,
        "compute_bytes_per_s": node.compute_bytes_per_s,
        "storage_bytes_per_s": node.storage_bytes_per_s,
        "shares_nic": node.shares_nic,
        "host_link_bytes_per_s": node.host_link_bytes_per_s,
        "dram_bytes_per_s": node.dram_bytes_per_s,
        "price_usd_per_hour": node.price_usd_per_hour,
    }
