"""Dynamo's own settings: planner, router, conditional disaggregation, KVBM."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dualpath_model.deployment import NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export.documents import File, json_file, settings_file, yaml_file
from dualpath_model.export.target import Asked
from dualpath_model.export.targets._break_even import append_ratio, append_threshold
from dualpath_model.export.targets._dynamo_workers import Worker
from dualpath_model.export.values import Document, Value, derived, fixed

# First version with a field, of the wheels ai-dynamo 1.2.1, 1.3.1, 1.4.0, 1.5.0, 1.6.1 (router: the
# names in ai-dynamo-runtime 1.2.1, 1.3.1, 1.4.2, 1.5.1, 1.6.1).
PLANNER_SINCE = {"prefill_min_endpoint": "1.5.0", "decode_min_endpoint": "1.5.0"}
# The runtime of 1.2.1 has no policy classes; that of 1.4.2 knows the names of conditional
# disaggregation, but the frontend of 1.4.0 has no flags for it.
ROUTER_SINCE = "1.3.1"
CONDITIONAL_SINCE = "1.5.0"
BETA_HOW = (
    "beta_s x tokens/s that an engine computes: the router counts the tokens of a prompt that "
    "are still to be computed (hits are subtracted), for each worker and data-parallel rank; of "
    "the slowest kind"
)


def slowest_prefill(asked: Asked) -> NodeKind:
    """Return the prefill nodes whose engines compute the fewest tokens a second."""
    return min(asked.deployment.pool("prefill"), key=lambda kind: kind.prefill_tokens_per_s)


def beta(asked: Asked) -> Value:
    """Return beta in the tokens that Dynamo counts: those to compute, of one engine.

    Raises InputError where it is less than one token.
    """
    kind = slowest_prefill(asked)
    tokens = asked.deployment.beta_s * kind.prefill_tokens_per_s
    if tokens < 1:
        raise InputError(
            f"plan: deployment.beta_s x prefill_tokens_per_s is {tokens:.3g} tokens, but Dynamo's "
            "prefill_busy_threshold is a whole number from 1; raise scheduler.beta of the "
            "scenario"
        )
    return derived(
        math.floor(tokens),
        BETA_HOW,
        "tokens",
        beta_s=asked.deployment.beta_s,
        prefill_tokens_per_s=kind.prefill_tokens_per_s,
    )


def planner(asked: Asked, found: tuple[Worker, ...]) -> tuple[File, tuple[str, ...]]:
    """Return the planner's config for its SLA mode, and notes."""
    document, notes = _pinned(asked, found)
    deployment = asked.deployment
    document = {
        "optimization_target": fixed(
            "sla", "only this target of the planner reads ttft_ms and itl_ms"
        ),
        "ttft_ms": derived(
            deployment.ttft_s * 1e3, "SLO of the scenario", "ms", ttft_s=deployment.ttft_s
        ),
        "itl_ms": derived(
            deployment.tpot_s * 1e3,
            "SLO of the scenario: time per output token",
            "ms",
            tpot_s=deployment.tpot_s,
        ),
        "pre_deployment_sweeping_mode": fixed(
            "none", "no profile comes with a plan: the planner learns from the engines it sees"
        ),
        **document,
    }
    about = "planner (`python -m dynamo.planner --config`): SLO, counts, GPUs"
    return yaml_file("planner.yaml", about, document, head=_head(asked, "planner")), notes


def planner_by_load(asked: Asked, found: tuple[Worker, ...]) -> tuple[File | None, tuple[str, ...]]:
    """Return the planner's config for its load mode; None where the plan lacks the decode batch."""
    deployment = asked.deployment
    if not asked.since("1.3.1"):  # 1.2.1 has no thresholds
        return None, ("planner-load.yaml is left out: its thresholds came with version 1.3.1",)
    kinds = [kind for kind in deployment.pool("decode") if kind.decode_batch is not None]
    if len(kinds) < len(deployment.pool("decode")):
        note = (
            "planner-load.yaml is left out: the plan does not say how many requests decode at once"
        )
        return None, (note,)
    prefill, decode = (
        sum(worker.replicas for worker in found if worker.pool == pool)
        for pool in ("prefill", "decode")
    )
    up = beta(asked)
    held = deployment.workload.prompt_tokens.mean + deployment.workload.output_tokens.mean / 2
    fullest = max(kinds, key=lambda kind: (kind.decode_batch or 0.0) / kind.hbm_tokens)
    batch = fullest.decode_batch or 0.0
    z = asked.plan.scheduler_parameters.z_factor
    rate = min(100.0, 100.0 * z * batch * held / fullest.hbm_tokens)
    down = (
        "the scale-up threshold x (n - 1) / n of n workers: what n - 1 take over stays below it; "
        "0 for one worker, which is never taken away"
    )
    document: dict[str, Document] = {
        "optimization_target": fixed(
            "load", "only this target of the planner reads the thresholds"
        ),
        "prefill_scale_up_queue_tokens": up,
        "prefill_scale_down_queue_tokens": derived(
            _one_less(up.value, prefill), down, "tokens", workers=prefill
        ),
        "decode_scale_up_kv_rate": derived(
            round(rate, 3),
            "Z: z_factor x KV-cache in use at the operating point = batch x (prompt + half the "
            "output) / tokens that fit the HBM; at most 100",
            "% of the engine's KV-cache",
            z_factor=z,
            decode_batch=batch,
            tokens_held=held,
            hbm_tokens=fullest.hbm_tokens,
        ),
        "decode_scale_down_kv_rate": derived(
            round(rate * (decode - 1) / decode, 3),
            down,
            "% of the engine's KV-cache",
            workers=decode,
        ),
    }
    pinned, notes = _pinned(asked, found)
    about = "planner, the other mode: scales by beta and Z instead of the SLO; use one of the two"
    head = _head(asked, "planner")
    return yaml_file("planner-load.yaml", about, document | pinned, head=head), notes


def _pinned(asked: Asked, found: tuple[Worker, ...]) -> tuple[dict[str, Document], tuple[str, ...]]:
    """Return what both modes have: the plan's counts, pinned."""
    by_pool = {pool: [w for w in found if w.pool == pool] for pool in ("prefill", "decode")}
    total = sum(worker.replicas * worker.gpus_of_worker for worker in found)
    document: dict[str, Document] = {
        "environment": fixed("kubernetes", "the planner scales the DynamoGraphDeployment"),
        "backend": fixed("vllm", "engine of the graph"),
        "mode": fixed("disagg", "prefill and decode workers apart"),
    }
    for pool, part in by_pool.items():
        count = sum(worker.replicas for worker in part)
        document[f"{pool}_min_endpoint"] = derived(
            count, f"{pool} workers of the plan", "workers", nodes=sum(_nodes(w) for w in part)
        )
    how = "GPUs of the plan; least = most, so that the planner keeps the total (its default is 8)"
    document["min_gpu_budget"] = derived(total, how, "GPUs")
    document["max_gpu_budget"] = derived(total, how, "GPUs")
    for pool, part in by_pool.items():
        document[f"{pool}_engine_num_gpu"] = derived(
            part[0].gpus_of_worker,
            "GPUs of one worker: tensor x data parallelism; used until the operator reports its "
            "count",
            "GPUs",
            tensor=part[0].tensor,
            data_parallel=part[0].data_parallel,
        )
    return asked.gated(document, PLANNER_SINCE)


def router(asked: Asked) -> File:
    """Return the router's policy: one class of requests, which waits while all engines have beta."""
    document: Document = {
        "default_policy_family": fixed("turns", "all requests are of one family"),
        "uncached_isl_buckets": [
            {
                "min_tokens": fixed(0, "one bucket for every length"),
                "bucket": fixed("any", "its name"),
            }
        ],
        "policy_classes": [
            {
                "name": fixed("turns", "the one class"),
                "policy_family": fixed("turns", "see default_policy_family"),
                "cache_bucket": fixed("any", "see uncached_isl_buckets"),
                "queue_policy": fixed("fcfs", "the plan's scheduler is first come, first served"),
                "quantum": fixed(1, "share of a class; with one class it gets everything"),
                "prefill_busy_threshold": beta(asked),
            }
        ],
    }
    about = "router (`--router-policy-config`): a request waits while every prefill engine has beta"
    return yaml_file("router.yaml", about, document, head=_head(asked, "router"))


def conditional(asked: Asked) -> dict[str, Value]:
    """Return the config of conditional disaggregation."""
    return {
        "policy": fixed(
            "isl_bounding", "decides by the tokens that the decode engine would compute"
        ),
        "eff_isl_threshold": append_threshold(asked.deployment),
        "eff_isl_ratio_threshold": append_ratio(asked.deployment),
    }


def conditional_file(asked: Asked) -> File:
    """Return it as JSON, the value of ``--router-conditional-disagg-config``."""
    about = "`--router-conditional-disagg-config`: appends below it are prefilled where they decode"
    return json_file("conditional-disagg.json", about, conditional(asked))


def kvbm(worker: Worker) -> Mapping[str, Value]:
    """Return KVBM's environment of one worker; nothing where the plan has no buffer.

    The unit is 1e9 bytes (``compute_num_blocks`` of lib/llm's block manager), of one engine: each has a
    leader of its own.
    """
    if worker.buffer_bytes is None:
        return {}
    engines = worker.kinds[0].engines
    return {
        "DYN_KVBM_CPU_CACHE_GB": derived(
            f"{worker.buffer_bytes / 1e9:.9f}".rstrip("0").rstrip("."),
            "DRAM buffer of the node / engines on it",
            "1e9 bytes of an engine",
            buffer_bytes=worker.buffer_bytes * engines,
            engines=engines,
        )
    }


def kvbm_file(worker: Worker) -> File | None:
    """Return the environment as a file for workers outside Kubernetes."""
    settings = kvbm(worker)
    if not settings:
        return None
    about = f"environment of KVBM on {worker.name} workers that run outside Kubernetes"
    return settings_file(f"kvbm-{worker.name}.env", about, settings, form="export {key}={value}")


def _nodes(worker: Worker) -> int:
    return sum(kind.count for kind in worker.kinds)


def _one_less(value: int, workers: int) -> int:
    return value * (workers - 1) // workers


def _head(asked: Asked, part: str) -> list[str]:
    return [f"Dynamo {asked.version} {part}, from plan {asked.plan.scenario}"]
