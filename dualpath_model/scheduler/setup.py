"""From a scenario to a scheduler: its nodes as they join, its settings, its engines' quota model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from dualpath_model.cluster import Node, movement_capacity
from dualpath_model.errors import InputError
from dualpath_model.loads import (
    NodeLoad,
    Parallelism,
    compute_throughput,
    expert_degree,
    hbm_space,
    movement,
)
from dualpath_model.parameters import (
    prompt_tokens_per_s,
    read_bytes_per_token,
    read_tokens_per_s,
)
from dualpath_model.paths import Direction, Key, Payload, Pool, Resource, Step
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.attention import AttentionTime, attention_time
from dualpath_model.scheduler.checks import MOST_RATE
from dualpath_model.scheduler.events import MOST_TOKENS, Limits, NodeJoined, Prices, Settings


def node_name(pool: Pool, position: int) -> str:
    """Return the name that a scenario's node has in the scheduler: p0, p1, … and d0, d1, …"""
    return f"{pool.value[0]}{position}"


def parallelism(scenario: Scenario, pool: Pool) -> Parallelism:
    """Return how a pool splits the LLM."""
    return scenario.serving.prefill if pool is Pool.PREFILL else scenario.serving.decode


def scheduler_nodes(scenario: Scenario) -> tuple[NodeJoined, ...]:
    """Return every node of the scenario as it joins, with the limits that follow from its rates.

    An engine is a tensor-parallel group of GPUs, named like ``p0/3``. A group is as many neighbours as
    one expert-parallel group spans, split alike, or one node where it is less: engines that run in step.
    Prices are those of no plan (:func:`solvers.scheduling.with_prices` adds them). Raises InputError
    where an engine spans nodes, InfeasibleError where the LLM does not fit.
    """
    loads, joined = scenario.loads(), []
    for pool in (Pool.PREFILL, Pool.DECODE):
        kinds = [(group, _kind(scenario, pool, group)) for group in loads.groups(pool)]
        places = sorted(  # by position: no two are alike
            (position, kind) for group, kind in kinds for position in group.positions
        )
        number, last, held = -1, None, 0
        for position, kind in places:
            split = (kind.gpus, kind.tensor, kind.together)
            if split != last or held == kind.together:
                number, last, held = number + 1, split, 0
            held += 1
            joined.append(_node_joined(pool, position, kind, number))
    return tuple(joined)


def scheduler_settings(scenario: Scenario, policy: str = "dualpath", patience: int = 0) -> Settings:
    """Return the settings of a scenario: the paper's constants, and the work of a request in seconds.

    Work is the read at one storage NIC's rate and the computation of the misses on one engine, of the
    slowest prefill node; the workload's largest request counts in full. ``expected_split`` is left at
    its default (:func:`solvers.scheduling.configure` takes the plan's).
    """
    means, workload = scenario.means, scenario.workload
    slowest = min(
        scenario.cluster.prefill,
        key=lambda node: engine_flop_per_s(scenario, node),
    )
    flop_per_s = engine_flop_per_s(scenario, slowest)
    miss_tokens = means.prompt_tokens - means.hit_tokens
    hit_s = 1.0 / read_tokens_per_s(slowest, scenario.efficiencies, _read_bytes(scenario))
    miss_s = means.prefill_work(slowest) / flop_per_s / miss_tokens
    most = float((hit_s * workload.hit_tokens + miss_s * workload.miss_tokens).max())
    return Settings(
        policy=policy,
        z_factor=scenario.rules.z_factor,
        block_tokens=scenario.rules.block_tokens,
        patience=patience,
        hit_s_per_token=hit_s,
        miss_s_per_token=miss_s,
        most_work_s=most,
        hit_share=means.hit_tokens / means.prompt_tokens,
        price_weight_s=scenario.rules.alpha_s,
    )


def engine_flop_per_s(scenario: Scenario, node: Node) -> float:
    """Return the FLOP/s that one prefill engine of ``node`` sustains, all its GPUs together."""
    share = scenario.efficiencies.on(node).prefill_mfu
    rate = node.gpu.flop_per_s(scenario.llm.compute_dtype) * share
    return rate * scenario.serving.prefill.tensor


def hbm_tokens(scenario: Scenario, pool: Pool, node: Node) -> float:
    """Return the tokens whose KV-cache fits one engine of ``node``. Raises InfeasibleError if none."""
    llm, split = scenario.llm, parallelism(scenario, pool)
    pool_gpus = sum(n.gpus for n in scenario.cluster.nodes(pool))
    space = hbm_space(llm, node, split, scenario.efficiencies, pool_gpus) * split.tensor
    token = llm.kv_bytes_per_token(scenario.serving.kv_dtype) * llm.replication(split.tensor)
    return space / token


def quota_model(scenario: Scenario, node: Node) -> AttentionTime:
    """Return the attention-time model of one prefill engine of ``node``: the one that was measured for
    this LLM and tensor parallelism, else from the architecture and the node's rates.
    """
    tensor = scenario.serving.prefill.tensor
    for fitted in node.measured.attention if node.measured is not None else ():
        if (fitted.llm, fitted.tensor) == (scenario.llm.name, tensor):
            return AttentionTime(**dict(fitted.coefficients))
    efficiencies = scenario.efficiencies.on(node)
    return attention_time(
        scenario.llm,
        flop_per_s=node.gpu.flop_per_s(scenario.llm.compute_dtype)
        * efficiencies.prefill_mfu
        * node.attention_speed,
        hbm_bytes_per_s=node.gpu.hbm_bytes_per_s * efficiencies.hbm,
        kv_dtype=scenario.serving.kv_dtype,
        tensor_parallel=tensor,
    )


def transfer_costs(
    scenario: Scenario,
    pool: Pool,
    node: Node,
    keep: Callable[[Step], bool] = lambda step: True,
    missed: Collection[Payload] = (Payload.MISS, Payload.APPENDED),
) -> Prices:
    """Return the seconds that tokens take on each resource of ``node`` that moves KV-cache, in the
    steps that ``keep`` holds for; ``missed``: what a token that is not a hit carries.

    From the step table, all of its resources but the storage NIC, whose queue the scheduler counts in
    tokens (without one, reads are on the compute NICs and counted here too). Dual values are 0.
    """
    llm, serving = scenario.llm, scenario.serving
    token = {Payload.HIT: _read_bytes(scenario)}
    stored = llm.kv_bytes_per_token(serving.kv_dtype)
    rest = dict.fromkeys(missed, stored)

    tensor = parallelism(scenario, pool).tensor
    copies = {pool: llm.replication(tensor)}
    table = serving.table.where(keep)
    hit = movement(table, token, replication=copies).only(pool)
    miss = movement(table, rest, replication=copies).only(pool)
    if node.shares_nic:
        hit, miss = hit.on_shared_nic(pool), miss.on_shared_nic(pool)
    near_split = 0.0 if pool is Pool.PREFILL else 1.0
    near, far, always = hit.at(near_split), hit.at(1.0 - near_split), miss.at(0.0)
    if not serving.table.splits:  # both nodes read every hit: all of it is their own
        far = {}
    columns = [
        (key, rate)
        for key, rate in movement_capacity(node, pool, scenario.efficiencies).items()
        if key.resource in scenario.limits and key != read_key(pool)
    ]
    return Prices(
        resources=tuple(resource_name(key) for key, _ in columns),
        price=(0.0,) * len(columns),
        near_s=tuple(float(near.get(key, 0.0)) / rate for key, rate in columns),
        far_s=tuple(float(far.get(key, 0.0)) / rate for key, rate in columns),
        miss_s=tuple(float(always.get(key, 0.0)) / rate for key, rate in columns),
    )


def read_key(pool: Pool) -> Key:
    """Return the capacity that a storage read uses on a node of ``pool``."""
    return Key(pool, Resource.SNIC, Direction.IN)


def resource_name(key: Key) -> str:
    """Return what ``Prices.resources`` calls a capacity of a node."""
    return f"{key.resource} {key.direction}"


class _Kind(NamedTuple):
    """What nodes that are alike have in common; ``together``: that one expert-parallel group spans."""

    gpus: int
    tensor: int
    together: int
    limits: Limits


def _kind(scenario: Scenario, pool: Pool, group: NodeLoad) -> _Kind:
    node, split = group.node, parallelism(scenario, pool)
    if node.gpus % split.tensor:
        raise InputError(
            f"parallelism.{pool}.tensor is {split.tensor}, but {node.name} has {node.gpus} GPUs; the "
            f"scheduler places requests on engines inside a node, so it must divide them"
        )
    pool_gpus = sum(n.gpus for n in scenario.cluster.nodes(pool))
    expert = expert_degree(scenario.llm, node, split, scenario.efficiencies, pool_gpus)
    limits = _limits(scenario, pool, group, pool_gpus)
    return _Kind(node.gpus, split.tensor, max(1, expert // node.gpus), limits)


def _node_joined(pool: Pool, position: int, kind: _Kind, group: int) -> NodeJoined:
    name = node_name(pool, position)
    return NodeJoined(
        node=name,
        pool="prefill" if pool is Pool.PREFILL else "decode",
        group=f"{pool.value}-{group}",
        engines=tuple(f"{name}/{rank}" for rank in range(kind.gpus // kind.tensor)),
        limits=kind.limits,
    )


def _limits(scenario: Scenario, pool: Pool, group: NodeLoad, pool_gpus: int) -> Limits:
    node, split = group.node, parallelism(scenario, pool)
    llm, means, rules = scenario.llm, scenario.means, scenario.rules
    rate = read_tokens_per_s(node, scenario.efficiencies, _read_bytes(scenario))
    engines = node.gpus // split.tensor
    if pool is Pool.PREFILL:
        turnover = split.tensor * prompt_tokens_per_s(node, llm, means, scenario.efficiencies)
        beta, room = rules.beta_s * turnover, 0.0
    else:
        turnover = compute_throughput(group) * means.prompt_tokens / engines
        beta, room = 0.0, hbm_tokens(scenario, pool, node)
    return Limits(
        alpha_tokens=_whole(rules.alpha_s * rate),
        beta_tokens=_whole(beta),
        hbm_tokens=_whole(room),
        read_tokens_per_s=min(rate, MOST_RATE),
        engine_tokens_per_s=min(turnover, MOST_RATE),
        prices=transfer_costs(scenario, pool, node),
    )


def _read_bytes(scenario: Scenario) -> float:
    return read_bytes_per_token(scenario.llm, scenario.means, scenario.serving.kv_dtype)


def _whole(tokens: float) -> int:
    return math.floor(min(tokens, float(MOST_TOKENS)))
