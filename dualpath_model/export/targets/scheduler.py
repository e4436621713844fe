"""Target ``scheduler``: our own file, from which the reference scheduler and the simulator start."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dualpath_model.deployment import NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export.documents import File, json_file
from dualpath_model.export.quoting import json_text
from dualpath_model.export.target import Asked, Bundle, Target
from dualpath_model.export.values import Document, Value, derived, fixed
from dualpath_model.parameters import NodeParameters, SchedulerParameters
from dualpath_model.scheduler.events import NodeJoined
from dualpath_model.scheduler.file import FILE_VERSION, FORMAT, json_schema
from dualpath_model.scheduler.policies import policy_named

_PRICES = "dual values of the LP and bytes of the step table (policy `priced`)"
_SETTINGS = {
    "policy": ("which policy decides", ""),
    "z_factor": ("scheduler.z_factor of the scenario", "multiple of the mean tokens"),
    "block_tokens": ("scheduler.block_tokens of the scenario", "tokens"),
    "patience": ("0: first in, first out", "requests"),
    "hit_s_per_token": (
        "read bytes of a token / rate of the slowest prefill node's storage NIC",
        "s",
    ),
    "miss_s_per_token": ("prefill FLOPs of a mean turn / (engine FLOP/s x miss tokens)", "s"),
    "most_work_s": ("work of the workload's largest turn", "s"),
    "expected_split": ("split of the LP's optimum", "fraction"),
    "hit_share": ("hit tokens / prompt tokens of the mean turn", "fraction"),
    "price_weight_s": ("scheduler.alpha of the scenario", "s"),
}


def build(asked: Asked) -> Bundle:
    """Return the scheduler file and its schema."""
    plan, deployment = asked.plan, asked.deployment
    policy_named(asked.site.policy)
    parameters = plan.scheduler_parameters
    kinds = {(k.pool, position): k for k in deployment.kinds for position in k.positions}
    own = {(node.pool, node.node): node for node in parameters.nodes}
    settings = asdict(deployment.settings) | {"policy": asked.site.policy}
    document: Document = {
        "format": fixed(FORMAT, "what the file is"),
        "version": fixed(FILE_VERSION, "of this format"),
        "scenario": derived(plan.scenario, "name of the scenario"),
        "split": derived(
            plan.split,
            "storage reads of the decode nodes / all storage reads, in the LP's optimum",
            "fraction",
            throughput_requests_per_s=plan.throughput_requests_per_s,
        ),
        "alpha_s": derived(deployment.alpha_s, "scheduler.alpha of the scenario", "s"),
        "beta_s": derived(deployment.beta_s, "scheduler.beta of the scenario", "s"),
        "quota_s": derived(deployment.quota_s, "scheduler.quota of the scenario", "s"),
        "settings": {
            name: derived(settings[name], how, unit) for name, (how, unit) in _SETTINGS.items()
        },
        "nodes": [_node(node, asked, kinds) for node in deployment.nodes],
        "extras": {node.node: _extras(node, own, kinds) for node in deployment.nodes},
        "qos": _qos(parameters),
    }
    schema = File(
        "scheduler.schema.json", "JSON Schema of scheduler.json", json_text(json_schema())
    )
    about = "settings, nodes with their limits, split, read weights, buffers and QoS weights"
    return Bundle((json_file("scheduler.json", about, document), schema))


def _node(
    node: NodeJoined, asked: Asked, kinds: dict[tuple[str, int], NodeKind]
) -> dict[str, Document]:
    kind = kinds[node.pool, _position(node)]
    deployment, limits = asked.deployment, node.limits
    rate = kind.storage_read_bytes_per_s
    token = deployment.llm.read_bytes_per_token
    prices = asdict(limits.prices)
    return {
        "node": derived(node.node, "pool and position in the scenario's cluster"),
        "pool": derived(node.pool, "pool of the scenario's cluster"),
        "group": derived(node.group, "nodes that one expert-parallel group spans run in step"),
        "engines": derived(list(node.engines), "GPUs of the node / tensor parallelism"),
        "limits": {
            "alpha_tokens": derived(
                limits.alpha_tokens,
                "alpha_s x storage read rate / bytes read for a hit token, rounded down",
                "tokens",
                alpha_s=deployment.alpha_s,
                storage_read_bytes_per_s=rate,
                read_bytes_per_token=token,
            ),
            "beta_tokens": derived(
                limits.beta_tokens,
                "beta_s x prompt tokens that one engine prefills a second; 0 on decode nodes",
                "tokens",
                beta_s=deployment.beta_s,
            ),
            "hbm_tokens": derived(
                limits.hbm_tokens,
                "HBM beside the weights / KV-cache of a token; 0 on prefill nodes",
                "tokens",
                hbm_tokens=kind.hbm_tokens,
            ),
            "read_tokens_per_s": derived(
                limits.read_tokens_per_s,
                "storage read rate / bytes read for a hit token",
                "tokens/s",
                storage_read_bytes_per_s=rate,
                read_bytes_per_token=token,
            ),
            "engine_tokens_per_s": derived(
                limits.engine_tokens_per_s, "prompt tokens that one engine turns over", "tokens/s"
            ),
            "prices": {name: derived(_listed(part), _PRICES) for name, part in prices.items()},
        },
        "kind": fixed(node.kind, "the event that a node's joining is"),
    }


def _extras(
    node: NodeJoined,
    own: dict[tuple[str, int], NodeParameters],
    kinds: dict[tuple[str, int], NodeKind],
) -> dict[str, Value]:
    place = (node.pool, _position(node))
    if place not in own or place not in kinds:
        raise InputError(
            f"plan: scheduler_parameters.nodes has no {node.pool} node {place[1]}, which "
            f"deployment.nodes has; make the plan again with `dualpath plan SCENARIO --json FILE`"
        )
    parameters, kind = own[place], kinds[place]
    return {
        "read_weight": derived(
            parameters.read_weight,
            "the node's storage reads / all storage reads, in the LP",
            "fraction",
        ),
        "buffer_bytes": derived(
            parameters.buffer_bytes, "buffer of the node in its catalog", "bytes"
        ),
        "attention": derived(
            kind.attention,
            "measured coefficients of the attention time, else from the LLM and the node's rates",
            "s",
        ),
    }


def _qos(parameters: SchedulerParameters) -> dict[str, Value]:
    how = "weight of the paper's appendix A.1"
    return {
        "collective": derived(parameters.qos_collective_weight, how, "weight"),
        "kv": derived(parameters.qos_kv_weight, how, "weight"),
        "high_limit": derived(parameters.qos_high_limit, how, "x 4096 bytes"),
    }


def _position(node: NodeJoined) -> int:
    return int(node.node[1:])


def _listed(part: Any) -> Any:
    return list(part) if isinstance(part, tuple) else part


TARGET = Target(
    name="scheduler",
    software="dualpath reference scheduler",
    about="Everything that the reference scheduler and the simulator start from, as one JSON file.",
    versions=("0.1.0",),
    expresses=(
        "split, alpha, beta, quota, Z, block size",
        "each node's limits, read weight and buffer",
        "policy and dual values",
        "QoS weights",
    ),
    cannot=(),
    parser="our own reader and the JSON Schema; the reference scheduler and the simulator run from it",
    apply=(
        "Simulate it: `dualpath simulate SCENARIO --scheduler scheduler.json`.",
        "Drive the reference scheduler: `dualpath schedule run SCENARIO --scheduler scheduler.json`, or "
        "in Python `Scheduler(file.settings)` and one `NodeJoined` of `file.nodes` for each node.",
        "A running scheduler takes new limits by a `ParametersChanged` event.",
    ),
    check=(
        "`dualpath schedule run SCENARIO --scheduler scheduler.json --log FILE` and "
        "`dualpath schedule replay FILE`: the first line of the log is the scheduler's state.",
    ),
    roll_back=("Send `ParametersChanged` with the settings and limits of the file before.",),
    build=build,
)
