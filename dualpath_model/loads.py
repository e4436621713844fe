"""Loads: step table x LLM x workload -> what one request asks of each resource, affine in the split x.

``demand(x) = base + slope * x`` for each :class:`paths.Key`: bytes for NICs, memories, fabric and
storage, FLOP for GPUs, byte-seconds for HBM space. Entries may be floats or arrays of any shape that
broadcast, so one call answers for a whole grid of configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dualpath_model.cluster import Cluster, Efficiencies, Node, groups, movement_capacity
from dualpath_model.errors import InfeasibleError
from dualpath_model.llm import KvDtype, Llm, Tokens
from dualpath_model.paths import (
    DE_HBM,
    PAPER,
    Direction,
    Key,
    Passages,
    Path,
    Payload,
    Pool,
    Resource,
    StepTable,
    passages,
)
from dualpath_model.quantities import Dimension, show
from dualpath_model.workload import Workload

Amount = Tokens
Mask = npt.NDArray[np.bool_]
Payloads = Mapping[Payload, Amount]

PREFILL_GPU = Key(Pool.PREFILL, Resource.GPU, Direction.COMPUTE)
DECODE_GPU = Key(Pool.DECODE, Resource.GPU, Direction.COMPUTE)
DECODE_HBM = Key(Pool.DECODE, Resource.HBM, Direction.BOTH)
PREFILL_HBM = Key(Pool.PREFILL, Resource.HBM, Direction.BOTH)
DECODE_SPACE = Key(Pool.DECODE, Resource.HBM_SPACE, Direction.OCCUPY)


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How one pool splits the LLM: GPUs a tensor-parallel group, GPUs an expert-parallel group.

    ``expert`` 0: whole nodes, as few as hold the weights in half of the usable HBM, at most the pool.
    """

    tensor: int = 1
    expert: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """Latency promise to a turn: first token and mean gap of the later ones, seconds."""

    ttft_s: float = 4.0
    tpot_s: float = 0.05


@dataclass(frozen=True)
class Serving:
    """How the LLM is served: everything about a request's load that is not hardware or workload."""

    kv_dtype: KvDtype
    prefill: Parallelism = field(default_factory=Parallelism)
    decode: Parallelism = field(default_factory=Parallelism)
    table: StepTable = PAPER
    dram_cache_hit_share: float = 0.0
    """Fraction of the hit bytes found in the prefill nodes' DRAM (no storage read)."""


@dataclass(frozen=True)
class Demand:
    """What one request asks of each capacity: ``base + slope * x``."""

    base: Mapping[Key, Amount]
    slope: Mapping[Key, Amount] = field(default_factory=dict)

    def at(self, split: Amount) -> dict[Key, Amount]:
        """Return the demand at split x."""
        return {key: base + self.slope.get(key, 0.0) * split for key, base in self.base.items()}

    def __add__(self, other: Demand) -> Demand:
        """Add the demands of two parts of a request."""
        return Demand(_sum(self.base, other.base), _sum(self.slope, other.slope))

    def only(self, *pools: Pool) -> Demand:
        """Keep the capacities of these pools."""
        return Demand(
            {key: amount for key, amount in self.base.items() if key.pool in pools},
            {key: amount for key, amount in self.slope.items() if key.pool in pools},
        )

    def on_shared_nic(self, pool: Pool) -> Demand:
        """Send the storage traffic of ``pool`` over its compute NICs.

        What arrives from storage is written to host memory like any other arrival (SNIC in -> CNIC
        write, host link write); what leaves for storage is read from it (SNIC out -> CNIC read, host
        link read).
        """
        moves = {
            Key(pool, Resource.SNIC, Direction.IN): Direction.WRITE,
            Key(pool, Resource.SNIC, Direction.OUT): Direction.READ,
        }

        def moved(part: Mapping[Key, Amount]) -> dict[Key, Amount]:
            total = {key: amount for key, amount in part.items() if key not in moves}
            for key, direction in moves.items():
                if key in part:
                    for resource in (Resource.CNIC, Resource.HOST_LINK):
                        total = _sum(total, {Key(pool, resource, direction): part[key]})
            return total

        return Demand(moved(self.base), moved(self.slope))


def _sum(left: Mapping[Key, Amount], right: Mapping[Key, Amount]) -> dict[Key, Amount]:
    total = dict(left)
    for key, amount in right.items():
        total[key] = total[key] + amount if key in total else amount
    return total


@dataclass(frozen=True)
class RequestMeans:
    """What the static models need of LLM and workload: means per request (turn), all turns equal.

    The three ``decode_*`` figures are means per generated token.
    """

    payloads: Payloads
    prefill_flops: float
    attention_flops: float
    """The part of ``prefill_flops`` that attends to the context."""
    prompt_tokens: float
    hit_tokens: float
    output_tokens: float
    decode_read_bytes: float
    decode_flops: float
    decode_context_bytes: float
    hit_byte_seconds: float = 0.0
    """Hit bytes times the think time before the turn: what keeping them between turns occupies."""

    def prefill_work(self, node: Node) -> float:
        """Return the prefill's FLOPs, attention counted in FLOPs that take the other ones' time."""
        return self.prefill_flops + self.attention_flops * (1.0 / node.attention_speed - 1.0)


def request_means(llm: Llm, workload: Workload, dtype: KvDtype) -> RequestMeans:
    """Average over the turns: exact also where a quantity is not linear in the tokens."""
    hits = llm.kv_bytes(workload.hit_tokens, dtype)
    hit = float(np.mean(hits))
    prompt = float(np.mean(llm.kv_bytes(workload.prompt_tokens, dtype)))
    stored = llm.kv_bytes_per_token(dtype)
    output = workload.output_tokens
    weights = output if output.any() else np.ones_like(output)
    context = (
        workload.prompt_tokens + 0.5 * output
    )  # the mean over the tokens that a turn generates

    def per_token(amount: Amount) -> float:
        return float(np.average(amount, weights=weights))

    prefill = llm.prefill_flops(workload.hit_tokens, workload.miss_tokens)
    return RequestMeans(
        payloads={
            Payload.HIT: hit,
            Payload.MISS: prompt - hit,
            Payload.APPENDED: float(workload.miss_tokens.mean()) * stored,
            Payload.GENERATED: workload.mean_output_tokens * stored,
        },
        prefill_flops=float(np.mean(prefill.total)),
        attention_flops=float(np.mean(prefill.attention)),
        prompt_tokens=workload.mean_prompt_tokens,
        hit_tokens=float(workload.hit_tokens.mean()),
        output_tokens=workload.mean_output_tokens,
        decode_read_bytes=per_token(llm.decode_read_bytes(context, dtype)),
        decode_flops=per_token(llm.decode_flops(context)),
        decode_context_bytes=per_token(llm.kv_bytes(context, dtype)),
        hit_byte_seconds=float(np.mean(hits * workload.think_time_s)),
    )


def movement(
    table: StepTable,
    payloads: Payloads,
    *,
    cache_share: Amount = 0.0,
    replication: Mapping[Pool, float] | None = None,
) -> Demand:
    """Return the bytes that one request moves over each capacity.

    Each payload amount and ``cache_share`` may be an array; all broadcast. A missing payload is zero.
    """
    always = _amounts(
        passages((step for path in table.always for step in path.steps), replication), payloads
    )
    prefill = _amounts(passages(table.prefill_read.steps, replication), payloads)
    decode = _amounts(passages(table.decode_read.steps, replication), payloads)
    cache = _amounts(passages(table.cache_read.steps, replication), payloads)
    from_storage = 1.0 - cache_share
    base = _sum(always, {key: amount * from_storage for key, amount in prefill.items()})
    if np.any(np.asarray(cache_share) > 0):
        base = _sum(base, {key: amount * cache_share for key, amount in cache.items()})
    slope = {
        key: (decode.get(key, 0.0) - prefill.get(key, 0.0)) * from_storage
        for key in prefill | decode
    }
    slope = {key: amount for key, amount in slope.items() if np.any(np.asarray(amount) != 0)}
    return Demand(_sum(base, dict.fromkeys(slope, 0.0)), slope)


def _amounts(counted: Passages, payloads: Payloads) -> dict[Key, Amount]:
    amounts: dict[Key, Amount] = {}
    for key, counts in counted.items():
        parts = [count * payloads[p] for p, count in counts.items() if p in payloads]
        if parts:
            amounts[key] = sum(parts[1:], start=parts[0])
    return amounts


# ---- decode: the operating point of an engine ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """How a decode engine (a tensor-parallel group of GPUs) runs at its largest allowed batch."""

    batch: float
    step_s: float
    limit: str
    """What stops the batch from growing: "tpot" or "hbm space"."""
    weight_bytes: float
    """Weight bytes that one GPU reads in a step."""


def mix_means(means: Sequence[RequestMeans], weights: Sequence[float]) -> RequestMeans:
    """Return the means of a mix of requests; ``weights`` are requests of each kind, not all zero."""
    weight = np.asarray(weights, dtype=float) / np.sum(weights)
    tokens = np.array([m.output_tokens for m in means]) * weight
    per_token = tokens / tokens.sum() if tokens.any() else weight

    def mean(amounts: list[float], by: Amount) -> float:
        return float(np.dot(amounts, by))

    return RequestMeans(
        payloads={p: mean([float(m.payloads[p]) for m in means], weight) for p in Payload},
        prefill_flops=mean([m.prefill_flops for m in means], weight),
        attention_flops=mean([m.attention_flops for m in means], weight),
        prompt_tokens=mean([m.prompt_tokens for m in means], weight),
        hit_tokens=mean([m.hit_tokens for m in means], weight),
        output_tokens=mean([m.output_tokens for m in means], weight),
        decode_read_bytes=mean([m.decode_read_bytes for m in means], per_token),
        decode_flops=mean([m.decode_flops for m in means], per_token),
        decode_context_bytes=mean([m.decode_context_bytes for m in means], per_token),
        hit_byte_seconds=mean([m.hit_byte_seconds for m in means], weight),
    )


def decode_point(
    llm: Llm,
    means: RequestMeans,
    node: Node,
    serving: Serving,
    slo: Slo,
    efficiencies: Efficiencies,
    pool_gpus: int,
) -> DecodePoint:
    """Return the largest batch whose step stays within the TPOT and whose KV-cache fits the HBM.

    Step time = max(bytes read / HBM rate, FLOPs / GPU rate), as in a roofline. Raises InfeasibleError
    if the weights or one request do not fit, or if a batch of one is already slower than the TPOT.
    """
    copies = llm.replication(serving.decode.tensor) / serving.decode.tensor
    free = hbm_space(llm, node, serving.decode, efficiencies, pool_gpus)
    step = decode_step(llm, means, node, serving, efficiencies, pool_gpus)
    step_s, weights = step.seconds, step.weight_bytes
    request = means.decode_context_bytes * copies
    fits = free / request
    if fits < 1:
        raise InfeasibleError(
            f"{node.name}: {show(free, Dimension.BYTES)} of a decode GPU's HBM are left beside the "
            f"weights, less than one request's {show(request, Dimension.BYTES)} of KV-cache; raise "
            f"parallelism.decode or take a GPU with more HBM"
        )
    if step_s(1.0) > slo.tpot_s:
        raise InfeasibleError(
            f"slo.tpot {show(slo.tpot_s, Dimension.SECONDS)} cannot be met: on {node.name} a decode "
            f"step of a single request already takes {show(step_s(1.0), Dimension.SECONDS)}"
        )
    if step_s(fits) <= slo.tpot_s:
        return DecodePoint(fits, step_s(fits), "hbm space", weights(fits))
    low, high = 1.0, fits
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if step_s(middle) <= slo.tpot_s else (low, middle)
    return DecodePoint(low, step_s(low), "tpot", weights(low))


def decode_points(
    llm: Llm,
    means: RequestMeans,
    node: Node,
    serving: Serving,
    slo: Slo,
    efficiencies: Efficiencies,
    pool_gpus: int,
) -> tuple[DecodePoint, dict[str, Mask]]:
    """Return :func:`decode_point` for means that are arrays (which broadcast), the point's figures too.

    The masks say where it cannot be, by reason; the figures there are those of a batch of one. Raises
    InfeasibleError where the weights alone do not fit.
    """
    copies = llm.replication(serving.decode.tensor) / serving.decode.tensor
    free = hbm_space(llm, node, serving.decode, efficiencies, pool_gpus)
    step = decode_step(llm, means, node, serving, efficiencies, pool_gpus)
    fits = free / (np.asarray(means.decode_context_bytes) * copies)
    one = np.ones_like(fits * np.asarray(means.decode_read_bytes))
    too_large, too_slow = one * fits < 1.0, np.asarray(step.seconds(one)) > slo.tpot_s
    low, high = one, np.maximum(one * fits, one)
    roomy = np.asarray(step.seconds(high)) <= slo.tpot_s
    for _ in range(60):  # to the last bits of a float
        middle = 0.5 * (low + high)
        within = np.asarray(step.seconds(middle)) <= slo.tpot_s
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    batch = np.where(roomy, np.maximum(one * fits, one), low)
    point = DecodePoint(batch, step.seconds(batch), "", step.weight_bytes(batch))
    why = {
        f"one request's KV-cache does not fit beside the weights in the HBM of {node.name}": too_large,
        f"slo.tpot cannot be met on {node.name}, not even by one request at a time": too_slow
        & ~too_large,
    }
    return point, why


@dataclass(frozen=True)
class DecodeStep:
    """One decode step of an engine as a function of its batch, as in a roofline."""

    llm: Llm
    means: RequestMeans
    tensor: int
    expert: int
    hbm_bytes_per_s: float
    flop_per_s: float
    fixed_s: float = 0.0
    """Of a step whatever its batch, where it was measured."""

    def weight_bytes(self, batch: float) -> float:
        """Return the weight bytes that one GPU reads with ``batch`` requests on every engine."""
        tokens = batch * self.expert / self.tensor
        read = self.llm.decode_weight_read_bytes(self.tensor, self.expert, tokens)
        return read if isinstance(batch, np.ndarray) else float(read)

    def seconds(self, batch: float) -> float:
        """Return fixed_s + max(bytes read / HBM rate, FLOPs / GPU rate) of one GPU, seconds."""
        copies = self.llm.replication(self.tensor) / self.tensor
        read = self.weight_bytes(batch) + batch * self.means.decode_read_bytes * copies
        larger = np.maximum if isinstance(batch, np.ndarray) else max
        return self.fixed_s + larger(
            read / self.hbm_bytes_per_s,
            batch * self.means.decode_flops / self.tensor / self.flop_per_s,
        )


def decode_step(
    llm: Llm,
    means: RequestMeans,
    node: Node,
    serving: Serving,
    efficiencies: Efficiencies,
    pool_gpus: int,
) -> DecodeStep:
    """Return the step of a decode engine on ``node``. Raises InfeasibleError as expert_degree does."""
    efficiencies = efficiencies.on(node)
    layer_s = node.measured.value("decode_layer_s") if node.measured is not None else None
    return DecodeStep(
        llm,
        means,
        serving.decode.tensor,
        expert_degree(llm, node, serving.decode, efficiencies, pool_gpus),
        node.gpu.hbm_bytes_per_s * efficiencies.hbm,
        node.gpu.flop_per_s(llm.compute_dtype) * efficiencies.decode_mfu,
        llm.layers * (layer_s or 0.0),
    )


def expert_degree(
    llm: Llm, node: Node, parallelism: Parallelism, efficiencies: Efficiencies, pool_gpus: int
) -> int:
    """Return the GPUs over which the experts are spread; see :class:`Parallelism`."""
    if max(parallelism.expert, parallelism.tensor) > pool_gpus:
        raise InfeasibleError(
            f"tensor parallelism {parallelism.tensor} or expert parallelism {parallelism.expert} needs "
            f"more GPUs than the {pool_gpus} of the pool; lower it or add nodes"
        )
    if parallelism.expert:
        return parallelism.expert
    if not llm.ffn.experts:
        return parallelism.tensor
    half = 0.5 * node.gpu.hbm_bytes * efficiencies.on(node).hbm_usable
    degree = max(node.gpus, parallelism.tensor)
    while degree < pool_gpus and llm.resident_weight_bytes(parallelism.tensor, degree) > half:
        degree += node.gpus
    return min(degree, pool_gpus)


def hbm_space(
    llm: Llm, node: Node, parallelism: Parallelism, efficiencies: Efficiencies, pool_gpus: int
) -> float:
    """Return the HBM bytes of one GPU left for KV-cache. Raises InfeasibleError if there are none."""
    expert = expert_degree(llm, node, parallelism, efficiencies, pool_gpus)
    usable = node.gpu.hbm_bytes * efficiencies.on(node).hbm_usable
    resident = llm.resident_weight_bytes(parallelism.tensor, expert)
    if resident >= usable:
        raise InfeasibleError(
            f"{llm.name} does not fit: with tensor parallelism {parallelism.tensor} and expert "
            f"parallelism {expert} each GPU of {node.name} would hold "
            f"{show(resident, Dimension.BYTES)} of weights, but {show(usable, Dimension.BYTES)} of its "
            f"HBM are usable; raise parallelism or add nodes"
        )
    return usable - resident


# ---- a cluster under a workload ------------------------------------------------------------------


@dataclass(frozen=True)
class NodeLoad:
    """Nodes that are alike: their positions in the pool, a request's demand, one node's capacity."""

    node: Node
    positions: tuple[int, ...]
    demand: Demand
    compute: Demand
    """The part of ``demand`` that is not KV movement: what the Oracle still has to do."""
    capacity: Mapping[Key, float]
    decode_point: DecodePoint | None = None

    @property
    def count(self) -> int:
        """Number of nodes in the group."""
        return len(self.positions)


@dataclass(frozen=True)
class Loads:
    """Everything a static solver needs: grouped nodes of both pools, and what the cluster shares."""

    prefill: tuple[NodeLoad, ...]
    decode: tuple[NodeLoad, ...]
    shared_demand: Demand
    shared_capacity: Mapping[Key, float]

    @property
    def homogeneous(self) -> bool:
        """Whether each pool has one kind of node."""
        return len(self.prefill) == 1 and len(self.decode) == 1

    def groups(self, pool: Pool) -> tuple[NodeLoad, ...]:
        """Return the node groups of a pool."""
        return self.prefill if pool is Pool.PREFILL else self.decode

    def all_groups(self) -> Iterator[tuple[Pool, NodeLoad]]:
        """Yield each group with its pool, prefill first."""
        for pool in (Pool.PREFILL, Pool.DECODE):
            for group in self.groups(pool):
                yield pool, group


def request_movement(llm: Llm, means: RequestMeans, serving: Serving) -> Demand:
    """Return the bytes that a request of these means moves over each capacity, for all its ranks.

    With them the HBM that a path occupies between turns (:class:`paths.Stay`), in byte-seconds: it is
    the price of moving less.
    """
    moved = movement(
        serving.table,
        means.payloads,
        cache_share=serving.dram_cache_hit_share,
        replication={
            Pool.PREFILL: llm.replication(serving.prefill.tensor),
            Pool.DECODE: llm.replication(serving.decode.tensor),
        },
    )
    return moved + _kept(llm, means, serving)


def _kept(llm: Llm, means: RequestMeans, serving: Serving) -> Demand:
    """Return the byte-seconds of HBM that the hits take up on the decode nodes between turns."""

    def keeps(path: Path) -> bool:
        return any(stay.place == DE_HBM and Payload.HIT in stay.carries for stay in path.stays)

    if not any(map(keeps, _reads(serving.table))):
        return Demand({})
    amount = means.hit_byte_seconds * llm.replication(serving.decode.tensor)
    return _by_path(DECODE_SPACE, amount, keeps, serving)


def _reads(table: StepTable) -> tuple[Path, Path, Path]:
    return table.prefill_read, table.decode_read, table.cache_read


def _by_path(key: Key, amount: Amount, applies: Callable[[Path], bool], serving: Serving) -> Demand:
    """Return the demand of ``amount`` for the requests on the read paths that it applies to."""
    first, second, cached = (float(applies(path)) for path in _reads(serving.table))
    from_storage = 1.0 - serving.dram_cache_hit_share
    base = first
    if cached != first:
        base = first * from_storage + cached * serving.dram_cache_hit_share
    slope = (second - first) * from_storage
    return Demand({key: amount * base}, {key: amount * slope} if slope else {})


def node_load(
    pool: Pool,
    node: Node,
    positions: tuple[int, ...],
    moved: Demand,
    llm: Llm,
    means: RequestMeans,
    serving: Serving,
    efficiencies: Efficiencies,
    pool_gpus: int,
    point: DecodePoint | None,
    limits: frozenset[Resource] = frozenset(Resource),
) -> NodeLoad:
    """Return what a request asks of nodes that are alike, and what one of them has.

    ``moved``: :func:`request_movement`; ``point``: the operating point of a decode node. Means and point
    may be arrays, which broadcast. Raises InfeasibleError if the LLM does not fit the GPUs.
    """
    parallelism = serving.prefill if pool is Pool.PREFILL else serving.decode
    space = hbm_space(llm, node, parallelism, efficiencies, pool_gpus)
    capacity = movement_capacity(node, pool, efficiencies)
    own = efficiencies.on(node)
    hbm = node.gpus * node.gpu.hbm_bytes_per_s * own.hbm
    rate = node.gpus * node.gpu.flop_per_s(llm.compute_dtype)
    work = _by_path(
        PREFILL_GPU if pool is Pool.PREFILL else DECODE_GPU,
        means.prefill_work(node),
        lambda path: path.prefill_on is pool,
        serving,
    )
    if point is None:
        compute = work
        capacity |= {PREFILL_HBM: hbm, PREFILL_GPU: rate * own.prefill_mfu}
    else:
        # Prefill's arithmetic, at its own share of the peak, in FLOPs that take decode's time.
        share = own.decode_mfu / own.prefill_mfu
        compute = _decode_compute(llm, means, serving, point)
        if any(path.prefill_on is pool for path in _reads(serving.table)):
            compute = compute + _scaled(work, share)
        capacity |= {DECODE_HBM: hbm, DECODE_SPACE: node.gpus * space}
        capacity[DECODE_GPU] = rate * own.decode_mfu
    demand = moved.only(pool) + compute
    if node.shares_nic:
        demand = demand.on_shared_nic(pool)
    limiting = {key: rate for key, rate in capacity.items() if key.resource in limits}
    return NodeLoad(node, positions, demand, compute, limiting, point)


def _scaled(demand: Demand, factor: float) -> Demand:
    return Demand(
        {key: amount * factor for key, amount in demand.base.items()},
        {key: amount * factor for key, amount in demand.slope.items()},
    )


def cluster_loads(
    cluster: Cluster,
    llm: Llm,
    means: RequestMeans,
    serving: Serving,
    slo: Slo,
    efficiencies: Efficiencies,
    limits: frozenset[Resource] = frozenset(Resource),
) -> Loads:
    """Return the loads of a workload's ``means`` on ``cluster``; only ``limits`` can run out.

    Raises InfeasibleError if the LLM does not fit the GPUs or the TPOT cannot be met.
    """
    moved = request_movement(llm, means, serving)
    grouped: dict[Pool, tuple[NodeLoad, ...]] = {}
    for pool in (Pool.PREFILL, Pool.DECODE):
        pool_gpus = sum(node.gpus for node in cluster.nodes(pool))
        grouped[pool] = tuple(
            node_load(
                pool,
                node,
                tuple(positions),
                moved,
                llm,
                means,
                serving,
                efficiencies,
                pool_gpus,
                decode_point(llm, means, node, serving, slo, efficiencies, pool_gpus)
                if pool is Pool.DECODE
                else None,
                limits,
            )
            for node, positions in groups(cluster.nodes(pool)).items()
        )
    return Loads(
        prefill=grouped[Pool.PREFILL],
        decode=grouped[Pool.DECODE],
        shared_demand=moved.only(Pool.CLUSTER),
        shared_capacity={k: r for k, r in cluster.capacity().items() if k.resource in limits},
    )


def _decode_compute(llm: Llm, means: RequestMeans, serving: Serving, point: DecodePoint) -> Demand:
    """Return what generating a request's tokens asks of a node's GPUs at the operating point."""
    tensor = serving.decode.tensor
    copies = llm.replication(tensor)
    read = tensor * point.weight_bytes / point.batch + means.decode_read_bytes * copies
    return Demand(
        {
            DECODE_GPU: means.output_tokens * means.decode_flops,
            DECODE_HBM: means.output_tokens * read,
            DECODE_SPACE: means.output_tokens * point.step_s * means.decode_context_bytes * copies,
        }
    )


def compute_only(loads: Loads) -> Loads:
    """Return the loads of the Oracle, for which moving KV-cache costs nothing."""

    def bare(group: NodeLoad) -> NodeLoad:
        return replace(group, demand=group.compute)

    return replace(
        loads,
        prefill=tuple(map(bare, loads.prefill)),
        decode=tuple(map(bare, loads.decode)),
        shared_capacity={},
    )


def compute_depends_on_split(loads: Loads) -> bool:
    """Return whether the split decides which pool's GPUs compute."""
    return any(group.compute.slope for _, group in loads.all_groups())


def oracle_throughput(loads: Loads) -> float:
    """Return requests/s if moving KV-cache cost nothing: GPUs and HBM alone (inf: none limits).

    With all prefill on the prefill nodes; where the split can move it elsewhere
    (:func:`compute_depends_on_split`) the best split is a question for the closed form or the LP.
    """
    best: dict[Pool, float] = {}
    for pool, group in loads.all_groups():
        best[pool] = best.get(pool, 0.0) + group.count * compute_throughput(group)
    return min(best.values())


def compute_throughput(group: NodeLoad) -> float:
    """Return the requests/s that the GPUs and HBM of one node of the group do (inf: none limits).

    At split 0.
    """
    rates = [
        rate / group.compute.base[key]
        for key, rate in group.capacity.items()
        if group.compute.base.get(key)
    ]
    return float(min(rates, default=np.inf))
