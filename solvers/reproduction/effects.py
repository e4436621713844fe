"""What each assumption does to the figures: one changed at a time, the constants left as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from solvers.reproduction.lab import DS_660B, Assumptions, Lab

OUTCOMES = {
    "jct_2k_s": "JCT of 2P4D, 2K agents, s",
    "speedup": "speed-up over Basic, 2,048 agents",
    "ttft_s": "TTFT at 0.4 agents/s, s",
    "tpot_s": "TPOT at 0.4 agents/s, s",
    "basic_ttft_s": "Basic's TTFT at 0.25 agents/s, s",
    "working_set_bytes": "working set at 0.4 agents/s, bytes",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "KV-cache of 576 B a token and layer, as in Table 1": {"kv_dtype": "fp8"},
    "forward batches without a token limit": {"batch_tokens": 0},
    "forward batches of at most 4,096 tokens": {"batch_tokens": 4096},
    "at most 16 requests of an engine in a forward batch": {"batch_requests": 16},
    "leaders fetch every 10 ms instead of 50": {"fetch_s": 0.01},
    "appends and generations of a session all equal": {
        "append_variation": 0.0,
        "generate_variation": 0.0,
    },
    "appends vary twice as much (as in the recorded sessions)": {"append_variation": 2.0},
    "all sessions of about the same number of turns": {"turns_sigma": 0.05},
    "other sessions (seed 1)": {"workload_seed": 1},
    "other sessions (seed 2)": {"workload_seed": 2},
    "other sessions (seed 3)": {"workload_seed": 3},
    "storage NICs at 86 % of line rate, as measured with 3FS": {"snic": 0.859},
    "prefill at an MFU of 0.35 instead of 0.25": {"prefill_mfu": 0.35},
    "decode HBM at 0.6 of the data sheet instead of 0.8": {"hbm": 0.6},
    "DRAM buffers of 160 GB instead of 80": {"buffer_bytes": 160e9},
    "DRAM buffers of 40 GB": {"buffer_bytes": 40e9},
    "a warm-up of 900 s instead of 3,600": {"warmup_s": 900.0},
}
"""Changes of :class:`Assumptions`, each with its meaning."""


@dataclass(frozen=True)
class Effect:
    """Outcomes (see OUTCOMES) under a changed assumption; ``change``: relative to the default's."""

    meaning: str
    outcomes: dict[str, float]
    change: dict[str, float]


def effects(base: Assumptions, variants: dict[str, dict[str, Any]] = VARIANTS) -> Iterator[Effect]:
    """Yield the default's outcomes, then those of each variant."""
    usual = _outcomes(base)
    yield Effect("as assumed", usual, dict.fromkeys(usual, 0.0))
    for meaning, changes in variants.items():
        found = _outcomes(replace(base, **changes))
        yield Effect(meaning, found, {name: found[name] / usual[name] - 1.0 for name in usual})


def _outcomes(assumptions: Assumptions) -> dict[str, float]:
    lab = Lab(assumptions)
    online = lab.online(DS_660B, 0.4)
    dual, basic = lab.offline(DS_660B, 2048), lab.offline(DS_660B, 2048, "basic")
    return {
        "jct_2k_s": lab.offline(DS_660B, 2000).jct_s,
        "speedup": basic.jct_s / dual.jct_s,
        "ttft_s": online.ttft_s["mean"],
        "tpot_s": online.tpot_s["mean"],
        "basic_ttft_s": lab.online(DS_660B, 0.25, "basic").ttft_s["mean"],
        "working_set_bytes": online.working_set_bytes,
    }
