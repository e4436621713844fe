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
    | ``compactions`` | calls with a shorter prompt than the same agent's call before |
    | ``percentiles`` | p10, p50, p90, p99 (interpolated) and max over all calls |

    Calls of a nested sub-agent are turns of its session: they count in ``turns_per_session``.
    """
    turns_per_session = np.diff(workload.offsets).astype(float)
    columns = {
        "prompt_tokens": workload.prompt_tokens,
        "append_tokens": workload.miss_tokens,
        "output_tokens": workload.output_tokens,
        "think_time_s": workload.think_time_s,
        "turns_per_session": turns_per_session,
    }
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
        "compactions": _compactions(workload),
        "percentiles": {name: _percentiles(column) for name, column in columns.items()},
    }


def _compactions(workload: Workload) -> int:
    """Count the calls whose prompt is shorter than that of the same agent's call before."""
    session = np.repeat(np.arange(workload.session_count), np.diff(workload.offsets))
    agent = workload.agent if workload.agent.size else np.zeros_like(session)
    order = np.lexsort((agent, session))  # stable: calls of one agent stay in their order
    same = (np.diff(session[order]) == 0) & (np.diff(agent[order]) == 0)
    return int(np.count_nonzero(same & (np.diff(workload.prompt_tokens[order]) < 0)))


def _percentiles(column: FloatArray) -> dict[str, float]:
    values = np.percentile(column, _PERCENTILES)
    found = {f"p{p}": float(value) for p, value in zip(_PERCENTILES, values, strict=True)}
    return found | {"max": float(column.max())}
