"""What attention kernels ask of an LLM's blocks, the same in every engine that has them."""

from __future__ import annotations

from dualpath_model.deployment import ServedLlm

SPARSE_BLOCK = 64
"""Tokens of a block: the only one of DeepSeek's kernels of sparse latent attention on CUDA."""


def attends_sparsely(llm: ServedLlm) -> bool:
    """Tell whether those kernels serve the LLM: by its name, or by its KV-cache's own type."""
    return llm.kv_dtype == "fp8_ds_mla" or "deepseek-v3.2" in llm.name.lower()
