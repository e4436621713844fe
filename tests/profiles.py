"""Profiles made for tests: figures with intervals, and the least around them that the format needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualpath_model.profile import FIGURES, FORMAT, VERSION

FIGURE_VALUES: dict[str, float] = {
    "gemm_bf16_flop_per_s": 700e12,
    "prefill_flop_per_s": 350e12,
    "attention_flop_per_s": 280e12,
    "prefill_layer_s": 40e-6,
    "decode_flop_per_s": 300e12,
    "decode_bytes_per_s": 2.5e12,
    "decode_layer_s": 20e-6,
    "hbm_copy_bytes_per_s": 2.8e12,
    "dram_bytes_per_s": 400e9,
    "storage_read_bytes_per_s": 40e9,
    "storage_write_bytes_per_s": 20e9,
    "network_bytes_per_s": 48e9,
    "network_both_ways_bytes_per_s": 45e9,
}
MACHINE = {
    "host": "here",
    "system": "Linux",
    "cpu": "a CPU",
    "cores": 64,
    "memory_bytes": 2e12,
    "gpu": "a GPU",
    "gpus": 8,
    "gpu_memory_bytes": 80e9,
}


def profile_data(
    figures: Mapping[str, float] = FIGURE_VALUES,
    *,
    spread: float = 0.05,
    spreads: Mapping[str, float] | None = None,
    name: str = "made",
    llm: str = "ds-27b",
) -> dict[str, Any]:
    """Return a profile as JSON data; intervals are ``spread`` to both sides, or as ``spreads`` says."""
    parts: dict[str, Any] = {}
    for figure, value in figures.items():
        part = parts.setdefault(
            FIGURES[figure].part.value,
            {
                "machine": MACHINE,
                "date": "2026-11-24T12:00:00+00:00",
                "tools": {"dualpath": "0.1.0"},
                "settings": {},
                "series": [],
                "figures": {},
            },
        )
        wide = (spreads or {}).get(figure, spread)
        part["figures"][figure] = {
            "value": value,
            "low": value / (1 + wide),
            "high": value * (1 + wide),
        }
    if "gpu" in parts:
        parts["gpu"]["settings"]["llm"] = llm
    return {"format": FORMAT, "version": VERSION, "name": name, "parts": parts}


def write_profile(path: Path, **options: Any) -> Path:
    """Write a profile of :func:`profile_data` and return its path."""
    path.write_text(json.dumps(profile_data(**options)))
    return path
