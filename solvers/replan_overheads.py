"""The LP's nodes as slow as the simulator's: what a serving engine adds to the roofline, as shares.

The LP knows rates, a real engine also has time that no token takes: a forward batch and a decode step
have a part that does not shrink (:mod:`solvers.simulator.constants`). Both pools lose by it, but not
alike, so the ratio that the bare LP likes best is not the one that serves most. Here the GPU shares of
prefill nodes and the HBM and GPU shares of decode nodes are lowered, so that a full batch and a full
step take as long in the LP as in the simulator. Nothing else of the model changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dualpath_model.cluster import Cluster, Node
from dualpath_model.loads import DecodeStep, decode_step, hbm_space
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.setup import engine_flop_per_s
from solvers.simulator.constants import Constants

_ROUNDS = 60


def slowed(scenario: Scenario, cluster: Cluster, constants: Constants, token_limit: int) -> Cluster:
    """Return ``cluster`` with the overheads in its nodes' shares, at the means of ``scenario``.

    ``token_limit``: most tokens of a forward batch of an engine (0: no limit). Raises InfeasibleError
    where the LLM does not fit.
    """
    if constants == Constants():
        return cluster
    gpus = sum(node.gpus for node in cluster.decode)
    prefill = {
        node: _with_shares(
            scenario,
            node,
            {"prefill_mfu": _batch_share(scenario, node, constants, token_limit)},
        )
        for node in set(cluster.prefill)
    }
    decode = {}
    for node in set(cluster.decode):
        share = _step_share(scenario, node, gpus, constants)
        decode[node] = _with_shares(scenario, node, {"hbm": share, "decode_mfu": share})
    return replace(
        cluster,
        prefill=tuple(prefill[node] for node in cluster.prefill),
        decode=tuple(decode[node] for node in cluster.decode),
    )


def _with_shares(scenario: Scenario, node: Node, factors: Mapping[str, float]) -> Node:
    has = scenario.efficiencies.on(node)
    shares = {name: getattr(has, name) * factor for name, factor in factors.items()}
    return replace(node, shares=tuple({**dict(node.shares), **shares}.items()))


def _batch_share(scenario: Scenario, node: Node, constants: Constants, token_limit: int) -> float:
    """Return the share of a full forward batch that is the roofline's work.

    A batch is full at ``token_limit`` tokens or where its attention takes the quota.
    """
    means, fixed_s = scenario.means, constants.batch_layer_s * scenario.llm.layers
    miss = means.prompt_tokens - means.hit_tokens
    rate = engine_flop_per_s(scenario, node)
    token_s = means.prefill_work(node) / rate / miss
    attention_s = means.attention_flops / node.attention_speed / rate / miss
    tokens = float(token_limit) if token_limit else float("inf")
    if attention_s > 0:
        tokens = min(tokens, scenario.rules.quota_s / attention_s)
    if tokens == float("inf"):
        return 1.0
    work_s = max(1.0, tokens) * token_s
    return work_s / (work_s + fixed_s)


def _step_share(scenario: Scenario, node: Node, pool_gpus: int, constants: Constants) -> float:
    """Return the share of a full decode step that is the roofline's work.

    A step is full where the HBM is, or where it takes the whole TPOT. Raises InfeasibleError as
    :func:`dualpath_model.loads.hbm_space` does.
    """
    engine = Engine.of(scenario, node, pool_gpus, constants)
    batch = engine.full_batch(scenario.slo.tpot_s)
    roofline_s = engine.step.seconds(batch) - engine.step.fixed_s
    return roofline_s / (roofline_s + engine.added_s(batch))


@dataclass(frozen=True)
class Engine:
    """A decode engine as the simulator has it: its roofline, and what software adds to a step.

    ``fits``: requests whose KV-cache its HBM holds, at least 1.
    """

    step: DecodeStep
    constants: Constants
    layers: int
    fits: float

    @classmethod
    def of(cls, scenario: Scenario, node: Node, pool_gpus: int, constants: Constants) -> Engine:
        """Return the engine of a node. Raises InfeasibleError where the LLM does not fit."""
        llm, means, split = scenario.llm, scenario.means, scenario.serving.decode
        step = decode_step(llm, means, node, scenario.serving, scenario.efficiencies, pool_gpus)
        copies = llm.replication(split.tensor) / split.tensor
        free = hbm_space(llm, node, split, scenario.efficiencies, pool_gpus)
        fits = max(1.0, free / (means.decode_context_bytes * copies))
        return cls(step, constants, llm.layers, fits)

    def added_s(self, batch: float) -> float:
        """Return what software adds to a step of ``batch`` requests beyond what its profile measured.

        A measured step has the software in it: it is never made shorter, whatever the constants say.
        """
        each = self.constants.step_layer_s + batch * self.constants.request_layer_s
        return max(0.0, each * self.layers - self.step.fixed_s)

    def seconds(self, batch: float) -> float:
        """Return the seconds of a step of ``batch`` requests."""
        return self.step.seconds(batch) + self.added_s(batch)

    def full_batch(self, tpot_s: float) -> float:
        """Return the largest batch within the TPOT whose KV-cache fits, at least 1."""
        if self.seconds(self.fits) <= tpot_s:
            return self.fits
        low, high = 1.0, self.fits
        for _ in range(_ROUNDS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.seconds(middle) <= tpot_s else (low, middle)
        return low

    def running(self, tokens_per_s: float, tpot_s: float) -> float:
        """Return how many requests run while ``tokens_per_s`` are generated: Little's law.

        A step is as long as those that run make it; at most a full batch runs.
        """
        most, batch = self.full_batch(tpot_s), 0.0
        for _ in range(_ROUNDS):  # rises to the least batch that keeps up
            batch = min(most, tokens_per_s * self.seconds(batch))
        return batch
