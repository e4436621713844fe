"""What a deployment needs to know of a plan: hardware, LLM, workload and scheduler as plain records.

``dualpath plan --json`` writes a :class:`Deployment` into the plan (key ``deployment``), and the
exporters (:mod:`dualpath_model.export`) read nothing else: a plan file is enough to make the files for
a cluster again, without the scenario, its traces or its catalogs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dualpath_model.cluster import Node, groups
from dualpath_model.llm import KvDtype
from dualpath_model.loads import Loads, expert_degree
from dualpath_model.parameters import (
    prompt_tokens_per_s,
    read_bytes_per_token,
    read_tokens_per_s,
)
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.attention import AttentionTime, chunk_seconds
from dualpath_model.scheduler.events import NodeJoined, Settings
from dualpath_model.scheduler.setup import hbm_tokens, parallelism, quota_model

DEPLOYMENT_VERSION = 1
_MOST_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class ServedLlm:
    """The LLM as it is served. ``copies``: of each token's KV-cache that the ranks of one engine hold
    together, by pool (latent attention: one a rank; grouped heads: 1 until ranks outnumber them).
    """

    name: str
    layers: int
    kv_dtype: str
    kv_bytes_per_token: float
    read_bytes_per_token: float
    """Less than a token's KV-cache where layers have a window."""
    copies: dict[str, float]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of a quantity over the turns."""

    mean: float
    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class ServedWorkload:
    """The turns, all classes together by their numbers in the plan. ``think_s``: between the end of a
    turn and the next one of its session; zeros where the source says nothing of it.
    """

    prompt_tokens: Distribution
    hit_tokens: Distribution
    append_tokens: Distribution
    output_tokens: Distribution
    think_s: Distribution
    turns_per_session: float


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes of a pool that are alike. Rates in bytes/s and tokens/s; None: not known.

    An engine is a tensor-parallel group of ``tensor`` GPUs; a node has ``gpus / tensor`` of them.
    ``alpha_tokens`` is of a node, ``beta_tokens``, ``hbm_tokens`` (decode: room for KV-cache) and
    ``prefill_tokens_per_s`` (appended tokens computed, at the mean turn) of one engine.
    ``quota_tokens``: tokens appended to a mean turn's hits whose attention takes the quota.
    ``decode_batch``: requests that one engine decodes at once at the operating point.
    """

    pool: str
    name: str
    positions: tuple[int, ...]
    gpu: str
    gpus: int
    tensor: int
    expert: int
    snics: int
    snic_bytes_per_s: float
    cnics: int
    cnic_bytes_per_s: float
    storage_read_bytes_per_s: float
    """All NICs that carry storage traffic, as far as the efficiency lets them."""
    dram_bytes: float | None
    buffer_bytes: float | None
    alpha_tokens: float
    beta_tokens: float
    hbm_tokens: float
    prefill_tokens_per_s: float
    quota_tokens: int
    decode_batch: float | None
    decode_step_s: float | None
    attention: dict[str, float] | None
    """The fields of AttentionTime of a prefill engine: what the quota is predicted with."""

    @property
    def engines(self) -> int:
        """Engines on one node."""
        return self.gpus // self.tensor

    @property
    def count(self) -> int:
        """Nodes of this kind."""
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything that files for a deployment are made from, beside the plan's own figures.

    ``settings`` and ``nodes`` are what the reference scheduler starts from, dual values included.
    """

    version: int
    framework: str
    ttft_s: float
    tpot_s: float
    quota_s: float
    alpha_s: float
    beta_s: float
    llm: ServedLlm
    workload: ServedWorkload
    kinds: tuple[NodeKind, ...]
    settings: Settings
    nodes: tuple[NodeJoined, ...]

    def pool(self, pool: Pool | str) -> tuple[NodeKind, ...]:
        """Return the kinds of nodes of one pool."""
        return tuple(kind for kind in self.kinds if kind.pool == str(pool))


def describe(
    scenario: Scenario,
    settings: Settings,
    nodes: tuple[NodeJoined, ...],
    rates: tuple[float, ...],
) -> Deployment:
    """Return what a deployment of ``scenario`` needs to know.

    ``settings``, ``nodes``: of the scheduler (``solvers.configure``); ``rates``: requests/s of each
    class in the plan. Raises InfeasibleError where the LLM does not fit.
    """
    llm, serving, rules = scenario.llm, scenario.serving, scenario.rules
    dtype: KvDtype = serving.kv_dtype
    return Deployment(
        version=DEPLOYMENT_VERSION,
        framework=serving.table.name,
        ttft_s=scenario.slo.ttft_s,
        tpot_s=scenario.slo.tpot_s,
        quota_s=rules.quota_s,
        alpha_s=rules.alpha_s,
        beta_s=rules.beta_s,
        llm=ServedLlm(
            name=llm.name,
            layers=llm.layers,
            kv_dtype=dtype.value,
            kv_bytes_per_token=llm.kv_bytes_per_token(dtype),
            read_bytes_per_token=read_bytes_per_token(llm, scenario.means, dtype),
            copies={
                pool.value: llm.replication(parallelism(scenario, pool).tensor)
                for pool in (Pool.PREFILL, Pool.DECODE)
            },
        ),
        workload=_workload(scenario, rates),
        kinds=_kinds(scenario, scenario.loads()),
        settings=settings,
        nodes=nodes,
    )


def _workload(scenario: Scenario, rates: tuple[float, ...]) -> ServedWorkload:
    workloads = [traffic.workload for traffic in scenario.classes]
    shares = np.concatenate(
        [np.full(w.turns, rate / w.turns) for w, rate in zip(workloads, rates, strict=True)]
    )

    def of(name: str) -> Distribution:
        values = np.concatenate([np.asarray(getattr(w, name), dtype=float) for w in workloads])
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(shares[order]) / shares.sum()

        def at(share: float) -> float:
            place = min(int(np.searchsorted(reached, share - 1e-12)), len(values) - 1)
            return float(values[order[place]])

        mean = float(np.dot(values, shares) / shares.sum())
        return Distribution(mean, at(0.5), at(0.9), at(0.99), float(values.max()))

    turns = sum(rate * w.turns / w.session_count for w, rate in zip(workloads, rates, strict=True))
    return ServedWorkload(
        prompt_tokens=of("prompt_tokens"),
        hit_tokens=of("hit_tokens"),
        append_tokens=of("miss_tokens"),
        output_tokens=of("output_tokens"),
        think_s=of("think_time_s"),
        turns_per_session=turns / sum(rates),
    )


def _kinds(scenario: Scenario, loads: Loads) -> tuple[NodeKind, ...]:
    points = {
        position: group.decode_point for group in loads.decode for position in group.positions
    }
    found = []
    for pool in (Pool.PREFILL, Pool.DECODE):
        for node, positions in groups(scenario.cluster.nodes(pool)).items():
            point = points[positions[0]] if pool is Pool.DECODE else None
            batch = None if point is None else point.batch
            step_s = None if point is None else point.step_s
            found.append(_kind(scenario, pool, node, tuple(positions), batch, step_s))
    return tuple(found)


def _kind(
    scenario: Scenario,
    pool: Pool,
    node: Node,
    positions: tuple[int, ...],
    batch: float | None,
    step_s: float | None,
) -> NodeKind:
    llm, means, rules = scenario.llm, scenario.means, scenario.rules
    split, efficiencies = parallelism(scenario, pool), scenario.efficiencies
    token = read_bytes_per_token(llm, means, scenario.serving.kv_dtype)
    prompt_rate = split.tensor * prompt_tokens_per_s(node, llm, means, efficiencies)
    missed = (means.prompt_tokens - means.hit_tokens) / means.prompt_tokens
    prefill = pool is Pool.PREFILL
    attention = quota_model(scenario, node) if prefill else None
    pool_gpus = sum(n.gpus for n in scenario.cluster.nodes(pool))
    return NodeKind(
        pool=pool.value,
        name=node.name,
        positions=positions,
        gpu=node.gpu.name,
        gpus=node.gpus,
        tensor=split.tensor,
        expert=expert_degree(llm, node, split, efficiencies, pool_gpus),
        snics=node.snics,
        snic_bytes_per_s=node.snic_bytes_per_s,
        cnics=node.cnics,
        cnic_bytes_per_s=node.cnic_bytes_per_s,
        storage_read_bytes_per_s=node.storage_bytes_per_s * efficiencies.on(node).snic,
        dram_bytes=node.dram_bytes,
        buffer_bytes=node.buffer_bytes,
        alpha_tokens=rules.alpha_s * read_tokens_per_s(node, efficiencies, token),
        beta_tokens=rules.beta_s * prompt_rate if prefill else 0.0,
        hbm_tokens=hbm_tokens(scenario, pool, node),
        prefill_tokens_per_s=prompt_rate * missed,
        quota_tokens=_quota_tokens(attention, round(means.hit_tokens), rules.quota_s)
        if attention is not None
        else 0,
        decode_batch=batch,
        decode_step_s=step_s,
        attention=None if attention is None else attention._asdict(),
    )


def _quota_tokens(model: AttentionTime, cached: int, quota_s: float) -> int:
    """Return the most tokens of one chunk on ``cached`` ones whose attention stays within the quota;
    at least 1, at most :data:`_MOST_CHUNK`.
    """
    low, high = 1, _MOST_CHUNK
    while low < high:
        middle = (low + high + 1) // 2
        fits = model.fixed_s + chunk_seconds(model, cached, middle) <= quota_s
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
