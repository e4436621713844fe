"""Scheduler parameters from rates: the paper's rules (section 6.1) with this cluster's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_model.cluster import Cluster, Efficiencies, Node
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.loads import RequestMeans
from dualpath_model.paths import Payload, Pool


@dataclass(frozen=True, slots=True)
class SchedulerRules:
    """The paper's constants, from which the parameters follow."""

    alpha_s: float = 3.0
    """A read queue is short while it can be read within this time."""
    beta_s: float = 5.0
    """An engine is full when its unfinished requests take longer than this."""
    quota_s: float = 0.3
    """Attention time of one forward batch."""
    z_factor: float = 1.05
    """A decode engine is balanced while it holds at most this multiple of the mean tokens."""
    block_tokens: int = 64
    """Tokens of a full block, the unit of storage."""


@dataclass(frozen=True, slots=True)
class NodeParameters:
    """What the scheduler needs to know of one node."""

    pool: str
    node: int
    alpha_tokens: float
    """Tokens that the node's storage NIC reads in ``alpha_s``."""
    beta_tokens: float
    """Prompt tokens (hit and miss, the unit of tok_e) that one GPU prefills in ``beta_s``; 0 on
    decode nodes."""
    read_weight: float
    """Fraction of all storage reads that this node should do."""
    buffer_bytes: float | None
    """DRAM set aside for KV-cache in transit; None where the scenario gives none."""


@dataclass(frozen=True, slots=True)
class SchedulerParameters:
    """Everything the reference scheduler is configured with. Scalars alpha and beta are those of the
    slowest prefill node; ``nodes`` has each one's own. QoS weights are the paper's (appendix A.1).
    """

    alpha_tokens: float
    beta_tokens: float
    quota_s: float
    z_factor: float
    block_tokens: int
    split: float
    nodes: tuple[NodeParameters, ...]
    qos_collective_weight: int = 192
    qos_kv_weight: int = 64
    qos_high_limit: int = 240


def read_bytes_per_token(llm: Llm, means: RequestMeans, dtype: KvDtype) -> float:
    """Return the bytes that storage delivers per hit token (less than a token's KV under a window)."""
    if means.hit_tokens <= 0:
        return llm.kv_bytes_per_token(dtype)
    return float(means.payloads[Payload.HIT]) / means.hit_tokens


def read_tokens_per_s(node: Node, efficiencies: Efficiencies, token_bytes: float) -> float:
    """Return the hit tokens that a node's storage NIC reads in a second; alpha is 3 s of it."""
    return node.storage_bytes_per_s * efficiencies.on(node).snic / token_bytes


def prompt_tokens_per_s(
    node: Node, llm: Llm, means: RequestMeans, efficiencies: Efficiencies
) -> float:
    """Return the prompt tokens (hit and miss, the unit of tok_e) that one GPU prefills in a second,
    their misses computed; beta is 5 s of it.
    """
    gpu_rate = node.gpu.flop_per_s(llm.compute_dtype) * efficiencies.on(node).prefill_mfu
    return gpu_rate / means.prefill_work(node) * means.prompt_tokens


def scheduler_parameters(
    cluster: Cluster,
    llm: Llm,
    means: RequestMeans,
    efficiencies: Efficiencies,
    rules: SchedulerRules,
    *,
    split: float,
    read_rates: dict[Pool, list[float]],
    token_bytes: float,
) -> SchedulerParameters:
    """Derive the parameters.

    ``read_rates``: storage reads of each node in the plan, requests/s, in node order;
    ``token_bytes``: bytes read per hit token (:func:`read_bytes_per_token`).
    """
    total = sum(map(sum, read_rates.values())) or 1.0

    def of_node(pool: Pool, index: int, node: Node) -> NodeParameters:
        beta = rules.beta_s * prompt_tokens_per_s(node, llm, means, efficiencies)
        return NodeParameters(
            pool=pool.value,
            node=index,
            alpha_tokens=rules.alpha_s * read_tokens_per_s(node, efficiencies, token_bytes),
            beta_tokens=beta if pool is Pool.PREFILL else 0.0,
            read_weight=read_rates[pool][index] / total,
            buffer_bytes=node.buffer_bytes,
        )

    nodes = [
        of_node(pool, index, node)
        for pool in (Pool.PREFILL, Pool.DECODE)
        for index, node in enumerate(cluster.nodes(pool))
    ]
    prefill = [node for node in nodes if node.pool == Pool.PREFILL.value]
    return SchedulerParameters(
        alpha_tokens=min(node.alpha_tokens for node in prefill),
        beta_tokens=min(node.beta_tokens for node in prefill),
        quota_s=rules.quota_s,
        z_factor=rules.z_factor,
        block_tokens=rules.block_tokens,
        split=split,
        nodes=tuple(nodes),
    )
