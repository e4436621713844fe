"""The append below which a turn is better prefilled where it decodes: what routers have a threshold for.

A turn that is prefilled on a prefill engine has its hits' KV-cache moved to the decode engine: hit bytes
/ rate of the decode engine's compute NICs. Prefilled on the decode engine itself, nothing moves, but its
GPUs compute the append: append tokens / rate. Below the append at which both take the same time the
second is the shorter. Nothing else is weighed: neither queues nor what the prefill costs the engine's
decoding.
"""

from __future__ import annotations

import math
from typing import Any

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.export.values import Value, derived


def break_even_tokens(deployment: Deployment, kind: NodeKind) -> float:
    """Return the break-even append of a mean turn on the engines of a decode node, tokens."""
    seconds = _hit_bytes(deployment) / _engine_bytes_per_s(kind)
    return seconds * kind.prefill_tokens_per_s


def worth_reading(deployment: Deployment, kind: NodeKind) -> bool:
    """Tell whether a hit token is read sooner than an engine computes it: then a read is worth it from
    one block on, and otherwise at no length.
    """
    read_s = deployment.llm.read_bytes_per_token / kind.storage_read_bytes_per_s
    return read_s < 1.0 / kind.prefill_tokens_per_s


def slowest(deployment: Deployment) -> NodeKind:
    """Return the decode nodes with the least break-even: a router's one threshold is theirs."""
    return min(deployment.pool("decode"), key=lambda kind: break_even_tokens(deployment, kind))


def append_threshold(deployment: Deployment) -> Value:
    """Return the threshold, whole tokens, at least 1 (0 means "off" to those that take it)."""
    kind = slowest(deployment)
    tokens = break_even_tokens(deployment, kind)
    return derived(
        max(1, math.floor(tokens)),
        "append below which the decode engine computes it sooner than the hits' KV-cache arrives: hit "
        "bytes of a mean turn / rate of the engine's compute NICs x tokens/s that the engine prefills; "
        "rounded down, at least 1, of the kind of decode node with the least",
        "tokens",
        **_inputs(deployment, kind),
        break_even_tokens=tokens,
    )


def append_ratio(deployment: Deployment) -> Value:
    """Return the same break-even as a fraction of the prompt. It is one for turns of every length, as
    both the hits' bytes and the append in the break-even grow with the hits.
    """
    kind = slowest(deployment)
    tokens = break_even_tokens(deployment, kind)
    prompt = tokens + deployment.workload.hit_tokens.mean
    return derived(
        float(f"{tokens / prompt:.4g}") if prompt > 0 else 0.0,
        "the same break-even as append / prompt, which holds for turns of any length",
        "fraction",
        **_inputs(deployment, kind),
        break_even_tokens=tokens,
    )


def below_threshold(deployment: Deployment, tokens: int) -> str:
    """Say what part of the turns has a shorter append than ``tokens``, from the percentiles known."""
    append = deployment.workload.append_tokens
    points = ((0.5, append.p50), (0.9, append.p90), (0.99, append.p99), (1.0, append.most))
    reached = [share for share, value in points if value < tokens]
    if not reached:
        return (
            f"fewer than 50 % of the turns append less than {tokens} tokens (p50 {append.p50:.0f})"
        )
    if reached[-1] == 1.0:
        return f"all turns append less than {tokens} tokens (most {append.most:.0f})"
    return f"at least {reached[-1]:.0%} of the turns append less than {tokens} tokens".replace(
        "%", " %"
    )


def _hit_bytes(deployment: Deployment) -> float:
    llm = deployment.llm
    copies = llm.copies.get("decode", 1.0)
    return deployment.workload.hit_tokens.mean * llm.read_bytes_per_token * copies


def _engine_bytes_per_s(kind: NodeKind) -> float:
    return kind.cnics * kind.cnic_bytes_per_s / kind.engines


def _inputs(deployment: Deployment, kind: NodeKind) -> dict[str, Any]:
    return {
        "decode_nodes": kind.name,
        "hit_tokens": deployment.workload.hit_tokens.mean,
        "read_bytes_per_token": deployment.llm.read_bytes_per_token,
        "copies": deployment.llm.copies.get("decode", 1.0),
        "engine_bytes_per_s": _engine_bytes_per_s(kind),
        "prefill_tokens_per_s": kind.prefill_tokens_per_s,
    }
