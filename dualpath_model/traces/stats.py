"""What a workload contains, in numbers that depend on no LLM."""

from __future__ import annotations

from typing import Any

import numpy as np

from dualpath_model.workload import FloatArray, Workload

_PERCENTILES = (10, 50, 90, 99)


def workload_statistics(workload: Workload) -> dict[str, Any]:
    """Return counts, means, hit rates and percentiles as plain Python numbers, ready for JSON.

    | key | meaning |
    |---|---|
    | ``model_calls``, ``turns`` | all requests; those at top level, without ``sub_agent_calls`` |
    | ``mean_append_tokens`` | mean of prompt - hit over all calls, first prompts included |
    | ``hit_rate`` | hit tokens over prompt tokens |
    | ``block_hit_rate`` | leading seen blocks over all blocks; None if the workload has no blocks |
    | ``compactions`` | calls with a shorter prompt than the session's call before |
    | ``percentiles`` | p10, p50, p90, p99 (interpolated) and max over all calls |

    Calls of a nested sub-agent are turns of its session here: they count in ``turns_per_session``,
    and the step down to its first prompt counts as a compaction.
    """
    turns_per_session = np.diff(workload.offsets).astype(float)
    columns = {
        "prompt_tokens": workload.prompt_tokens,
        "append_tokens": workload.miss_tokens,
        "output_tokens": workload.output_tokens,
        "think_time_s": workload.think_time_s,
        "turns_per_session": turns_per_session,
    }
    shorter = np.diff(workload.prompt_tokens) < 0
    shorter[workload.offsets[1:-1] - 1] = False  # from one session to the next
    blocks = workload.prompt_blocks
    return {
        "source": workload.source,
        "sessions": workload.session_count,
        "model_calls": workload.turns,
        "turns": workload.turns - workload.sub_agent_turns,
        "sub_agents": workload.sub_agents,
        "sub_agent_calls": workload.sub_agent_turns,
        "mean_prompt_tokens": workload.mean_prompt_tokens,
        "mean_output_tokens": workload.mean_output_tokens,
        "mean_append_tokens": float(workload.miss_tokens.mean()),
        "hit_rate": workload.hit_rate,
        "block_hit_rate": workload.hit_blocks / blocks if blocks else None,
        "compactions": int(shorter.sum()),
        "percentiles": {name: _percentiles(column) for name, column in columns.items()},
    }


def _percentiles(column: FloatArray) -> dict[str, float]:
    values = np.percentile(column, _PERCENTILES)
    found = {f"p{p}": float(value) for p, value in zip(_PERCENTILES, values, strict=True)}
    return found | {"max": float(column.max())}
