"""The hardware: GPUs and NICs in nodes, nodes in a prefill and a decode pool, pools in a cluster.

Everything is SI and per direction; a node's NICs count as one (traffic is spread evenly over them).
Figures that nobody published are ``None``: that capacity is then left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dualpath_model.errors import InputError
from dualpath_model.paths import Direction, Key, Pool, Resource


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator: dense rates (``fp8`` None: no fp8 arithmetic) and memory."""

    name: str = field(compare=False)
    bf16_flop_per_s: float
    hbm_bytes: float
    hbm_bytes_per_s: float
    fp8_flop_per_s: float | None = None

    def flop_per_s(self, dtype: str) -> float:
        """Dense FLOP/s for "bf16" or "fp8"; without fp8 units, fp8 weights run at the bf16 rate."""
        if dtype == "fp8" and self.fp8_flop_per_s is not None:
            return self.fp8_flop_per_s
        return self.bf16_flop_per_s


class MeasuredFigure(NamedTuple):
    """A figure of a profile (``profile.FIGURES``) that a node takes, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


class MeasuredAttention(NamedTuple):
    """A fitted attention-time model: fields of ``scheduler.attention.AttentionTime`` and values."""

    llm: str
    tensor: int
    coefficients: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What of a node comes from a profile. ``llm``: the one whose kernels the GPU figures are of.

    ``remarks``: what a reader of a plan has to know of these figures, each a sentence.
    """

    profile: str
    llm: str
    figures: tuple[MeasuredFigure, ...]
    attention: tuple[MeasuredAttention, ...] = ()
    remarks: tuple[str, ...] = ()

    def value(self, figure: str) -> float | None:
        """Return a figure's value, None where the node does not take it."""
        return next((found.value for found in self.figures if found.name == figure), None)


@dataclass(frozen=True, slots=True)
class Node:
    """One machine. ``snics`` 0: storage traffic shares the compute NICs.

    ``host_link_bytes_per_s`` is the rate between host memory and all compute NICs, per direction,
    where it is less than the NICs can do; ``buffer_bytes`` is the DRAM set aside for KV in transit.
    ``snic_write_bytes_per_s``: towards storage, where it differs. ``shares``: fields of
    :class:`Efficiencies` that are this node's own; they win over the scenario's. ``attention_speed``:
    FLOP/s of attention in prefill over those of the matrix products, where it was measured.
    """

    name: str = field(compare=False)
    gpu: Gpu
    gpus: int
    cnics: int
    cnic_bytes_per_s: float
    snics: int = 0
    snic_bytes_per_s: float = 0.0
    dram_bytes: float | None = None
    dram_bytes_per_s: float | None = None
    host_link_bytes_per_s: float | None = None
    buffer_bytes: float | None = None
    price_usd_per_hour: float | None = field(default=None, compare=False)
    snic_write_bytes_per_s: float | None = None
    shares: tuple[tuple[str, float], ...] = ()
    attention_speed: float = 1.0
    measured: Measured | None = None

    @property
    def shares_nic(self) -> bool:
        """Whether one NIC serves both as storage and as compute NIC."""
        return self.snics == 0

    @property
    def storage_bytes_per_s(self) -> float:
        """Line rate from storage, all NICs that carry it."""
        if self.shares_nic:
            return self.cnics * self.cnic_bytes_per_s
        return self.snics * self.snic_bytes_per_s

    @property
    def storage_write_bytes_per_s(self) -> float:
        """Line rate to storage, all NICs that carry it."""
        if self.shares_nic or self.snic_write_bytes_per_s is None:
            return self.storage_bytes_per_s
        return self.snics * self.snic_write_bytes_per_s

    @property
    def compute_bytes_per_s(self) -> float:
        """Line rate of all compute NICs together, per direction."""
        return self.cnics * self.cnic_bytes_per_s


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """Share of the data-sheet rate that a resource delivers.

    The defaults and their sources are in catalog/efficiencies.yaml and nowhere else
    (:func:`catalog.efficiencies.default_efficiencies`).
    """

    snic: float
    cnic: float
    dram: float
    hbm: float
    prefill_mfu: float
    decode_mfu: float
    hbm_usable: float

    def on(self, node: Node) -> Efficiencies:
        """Return these with the node's own in their place."""
        own: Mapping[str, float] = dict(node.shares)
        return replace(self, **own) if own else self


@dataclass(frozen=True)
class Cluster:
    """A prefill pool, a decode pool, and what they share (``None``: not a limit)."""

    prefill: tuple[Node, ...]
    decode: tuple[Node, ...]
    storage_read_bytes_per_s: float | None = None
    storage_write_bytes_per_s: float | None = None
    fabric_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse a cluster that cannot serve."""
        for pool, nodes in (("prefill", self.prefill), ("decode", self.decode)):
            if not nodes:
                raise InputError(f"cluster.{pool} has no nodes; give a count of at least 1")

    def nodes(self, pool: Pool) -> tuple[Node, ...]:
        """Return the nodes of one pool."""
        return self.prefill if pool is Pool.PREFILL else self.decode

    @property
    def homogeneous(self) -> bool:
        """Whether the nodes inside each pool are all alike."""
        return len(set(self.prefill)) == 1 and len(set(self.decode)) == 1

    def capacity(self) -> dict[Key, float]:
        """Capacities that belong to no node: the storage service and the fabric, bytes/s."""
        limits = {
            Key(Pool.CLUSTER, Resource.STORAGE, Direction.READ): self.storage_read_bytes_per_s,
            Key(Pool.CLUSTER, Resource.STORAGE, Direction.WRITE): self.storage_write_bytes_per_s,
            Key(Pool.CLUSTER, Resource.FABRIC, Direction.TO_DECODE): self.fabric_bytes_per_s,
            Key(Pool.CLUSTER, Resource.FABRIC, Direction.TO_PREFILL): self.fabric_bytes_per_s,
        }
        return {key: limit for key, limit in limits.items() if limit is not None}


def groups(nodes: tuple[Node, ...]) -> dict[Node, list[int]]:
    """Return each distinct node (every figure alike, names aside) with the positions of its likes."""
    found: dict[Node, list[int]] = {}
    for position, node in enumerate(nodes):
        found.setdefault(node, []).append(position)
    return found


def movement_capacity(node: Node, pool: Pool, efficiencies: Efficiencies) -> dict[Key, float]:
    """Rates at which one node moves KV-cache, bytes/s by capacity; unknown ones are left out.

    A node without a storage NIC has no SNIC entry: :meth:`loads.Demand.on_shared_nic` sends its storage
    traffic over the compute NICs (in = CNIC write, out = CNIC read).
    """
    efficiencies = efficiencies.on(node)
    cnic = node.compute_bytes_per_s * efficiencies.cnic
    rates: dict[Key, float | None] = {
        Key(pool, Resource.CNIC, Direction.READ): cnic,
        Key(pool, Resource.CNIC, Direction.WRITE): cnic,
        Key(pool, Resource.HOST_LINK, Direction.READ): node.host_link_bytes_per_s,
        Key(pool, Resource.HOST_LINK, Direction.WRITE): node.host_link_bytes_per_s,
    }
    if not node.shares_nic:
        read, written = node.storage_bytes_per_s, node.storage_write_bytes_per_s
        rates[Key(pool, Resource.SNIC, Direction.IN)] = read * efficiencies.snic
        rates[Key(pool, Resource.SNIC, Direction.OUT)] = written * efficiencies.snic
    if node.dram_bytes_per_s is not None:
        rates[Key(pool, Resource.DRAM, Direction.BOTH)] = node.dram_bytes_per_s * efficiencies.dram
    return {key: rate for key, rate in rates.items() if rate is not None}
