"""What it costs to turn nodes from one role into the other: time to drain, to restart, and what is lost.

A node that is turned is given no more requests; those that it has run to their end (drain), the process
starts again in its new role (restart), and what it held of the KV-cache is gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dualpath_model.cluster import Node
from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import expert_degree, hbm_space
from dualpath_model.paths import Payload, Pool
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from dualpath_model.workload import FloatArray
from solvers.replan_overheads import Engine
from solvers.simulator.constants import Constants

_LONGER = 0.05
"""Chance that a drain takes longer than is said."""


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Turning one node of a kind away from ``pool``. Seconds and bytes.

    ``drain_s``: until its last request has ended. ``load_s``: the LLM's weights over its storage NIC.
    ``restart_s``: from the last request to the first in the new role, loading included.
    ``running``: requests in it at the offered load. ``move_s``: what moving their KV-cache over the
    compute NICs instead would take; a remark, the drain is what counts. ``lost_bytes``: KV-cache that
    is read from storage again because this node held it.
    """

    node: str
    pool: str
    running: float
    drain_s: float
    load_s: float
    restart_s: float
    move_s: float
    lost_bytes: float

    @property
    def switch_s(self) -> float:
        """How long the node serves nothing new."""
        return self.drain_s + self.restart_s


def node_cost(
    scenario: Scenario,
    pool: Pool,
    node: Node,
    requests_per_s: float,
    restart_s: float | None,
    start_s: float,
    constants: Constants,
) -> NodeCost:
    """Return what turning a ``node`` of ``pool`` away costs while it serves ``requests_per_s``.

    ``restart_s``: as given; None: ``start_s`` and the load of the weights. ``constants``: what software
    adds to a decode step. The workload is that of ``scenario``. Raises InfeasibleError if one request
    does not fit the node.
    """
    load_s = weight_seconds(scenario, pool, node)
    if pool is Pool.PREFILL:
        # An engine takes nothing beyond what it does in beta seconds.
        drain_s, running = scenario.rules.beta_s, requests_per_s * scenario.rules.beta_s
        held = 0.0
        if scenario.serving.dram_cache_hit_share > 0 and node.dram_bytes is not None:
            held = max(0.0, node.dram_bytes - (node.buffer_bytes or 0.0))
    else:
        outputs, engines = scenario.workload.output_tokens, _engines(scenario, node)
        engine = Engine.of(scenario, node, _pool_gpus(scenario), constants)
        tokens_per_s = requests_per_s * float(outputs.mean()) / engines
        each = engine.running(tokens_per_s, scenario.slo.tpot_s)
        running = each * engines
        drain_s = last_residual(outputs, running) * engine.seconds(each)
        stays = any(path.stays for path in scenario.serving.table.paths)
        held = _hbm_bytes(scenario, node) if stays else 0.0
    moved = running * scenario.means.decode_context_bytes
    return NodeCost(
        node=node.name,
        pool=pool.value,
        running=running,
        drain_s=drain_s,
        load_s=load_s,
        restart_s=start_s + load_s if restart_s is None else restart_s,
        move_s=moved / (node.compute_bytes_per_s * scenario.efficiencies.on(node).cnic),
        lost_bytes=held,
    )


def weight_seconds(scenario: Scenario, pool: Pool, node: Node) -> float:
    """Return the seconds in which the storage NIC reads the weights that the node's GPUs hold next.

    Each GPU reads its own share; the node's NIC carries all of them.
    """
    other = scenario.serving.decode if pool is Pool.PREFILL else scenario.serving.prefill
    efficiencies = scenario.efficiencies.on(node)
    gpus = node.gpus * (1 + len(scenario.cluster.nodes(_other(pool))))
    expert = expert_degree(scenario.llm, node, other, scenario.efficiencies, gpus)
    resident = float(scenario.llm.resident_weight_bytes(other.tensor, expert)) * node.gpus
    return resident / (node.storage_bytes_per_s * efficiencies.snic)


def last_residual(outputs: FloatArray, running: float) -> float:
    """Return the tokens that the last of ``running`` requests still has to generate, at most.

    Requests in decode are met in proportion to their length, so what is left of one has the
    distribution P(left > x) = sum(max(0, output - x)) / sum(output) (renewal theory's equilibrium
    distribution). Of n requests all have less left than its quantile 1 - 0.05/n in 19 of 20 cases.
    """
    total = float(outputs.sum())
    if total <= 0 or running <= _LONGER:
        return 0.0
    ordered = np.sort(outputs)
    above = total - np.cumsum(ordered)  # of the longer ones
    count = np.arange(len(ordered) - 1, -1, -1)
    survival = (above - count * ordered) / total  # P(left > ordered[i]), falling
    target = _LONGER / running
    index = int(np.searchsorted(-survival, -target))
    if index == 0:
        # below the shortest output all of them count: a straight line from 1 at 0
        return float((1.0 - target) * total / len(ordered))
    high = ordered[min(index, len(ordered) - 1)]
    low, here = ordered[index - 1], survival[index - 1]
    slope = max(1, count[index - 1]) / total
    return float(min(high, low + (here - target) / slope))


def _engines(scenario: Scenario, node: Node) -> float:
    return node.gpus / scenario.serving.decode.tensor


def _pool_gpus(scenario: Scenario) -> int:
    return sum(one.gpus for one in scenario.cluster.decode)


def _hbm_bytes(scenario: Scenario, node: Node) -> float:
    serving, gpus = scenario.serving, _pool_gpus(scenario)
    try:
        space = hbm_space(scenario.llm, node, serving.decode, scenario.efficiencies, gpus)
    except InfeasibleError:
        return 0.0
    return float(space) * node.gpus


def _other(pool: Pool) -> Pool:
    return Pool.DECODE if pool is Pool.PREFILL else Pool.PREFILL


def refill_requests(scenario: Scenario, lost_bytes: float) -> float:
    """Return how many requests' storage reads it takes to read the lost KV-cache again."""
    read = float(scenario.means.payloads[Payload.HIT])
    return lost_bytes / read if read > 0 and math.isfinite(lost_bytes) else 0.0


def words(cost: NodeCost) -> str:
    """Say where the seconds of a turn go."""

    def seconds(value: float) -> str:
        return show(value, Dimension.SECONDS) if value > 0 else "0 s"

    return (
        f"{seconds(cost.drain_s)} until the last of {cost.running:,.0f} requests of a {cost.node} "
        f"({cost.pool}) has ended and {seconds(cost.restart_s)} until it serves again"
    )
