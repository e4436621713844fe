"""The step table: what each way of loading moves, over which resources. Written down here and only here.

A *step* moves one payload from one memory to another. Which resources it uses, and in which direction,
follows from its two ends and from who moves it (:func:`uses`), so the table itself is only a list of
moves. In the paper every byte in or out of a GPU goes through a compute NIC (section 5.1); serving
frameworks leave copies between host memory and a GPU of the same node to the GPU's copy engine.
Everything else in the toolkit (loads, closed form, LP, symbolic derivation, simulator stages, pictures,
documents) reads the table.

The paths here are those of section 4.1 of the paper; the numbers in the labels are the paper's own. A
new way of loading is one more :class:`Path`: ``PREFILL_CACHE`` (hits found in the prefill node's DRAM)
is an example that the paper does not have. :mod:`frameworks` has the tables of serving frameworks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple


class Pool(StrEnum):
    """Where a resource is: on each prefill node, on each decode node, or shared by the cluster."""

    PREFILL = "prefill"
    DECODE = "decode"
    CLUSTER = "cluster"


class Resource(StrEnum):
    """Something with a rate that can run out."""

    SNIC = "snic"
    """Storage NIC of a node."""
    CNIC = "cnic"
    """Compute NICs of a node, all together. Also carries storage traffic where there is no SNIC."""
    DRAM = "dram"
    """Host memory bandwidth, reads and writes together (half duplex)."""
    HOST_LINK = "host_link"
    """The way between host memory and the compute NICs, where it is slower than the NICs; copies by a
    GPU's copy engine take it as well (``read``: out of host memory)."""
    HBM = "hbm"
    """GPU memory bandwidth of a node."""
    HBM_SPACE = "hbm_space"
    """GPU memory that decoding requests occupy (byte-seconds per second)."""
    GPU = "gpu"
    """Arithmetic of a node's GPUs."""
    FABRIC = "fabric"
    """Compute network between the two pools."""
    STORAGE = "storage"
    """The storage service as a whole."""


class Direction(StrEnum):
    """Which way the bytes go, seen from the resource's own node."""

    IN = "in"
    OUT = "out"
    READ = "read"
    """The NIC reads the node's memory (sends)."""
    WRITE = "write"
    """The NIC writes the node's memory (receives)."""
    BOTH = "read+write"
    TO_DECODE = "prefill to decode"
    TO_PREFILL = "decode to prefill"
    COMPUTE = "compute"
    OCCUPY = "occupied"


class Key(NamedTuple):
    """Names one capacity: a resource of a pool in one direction."""

    pool: Pool
    resource: Resource
    direction: Direction

    @property
    def moves_kv(self) -> bool:
        """Whether this capacity serves KV movement (the Oracle has these for free)."""
        return self.resource not in (Resource.GPU, Resource.HBM, Resource.HBM_SPACE)

    def __str__(self) -> str:
        """Print as people say it: "prefill snic in"."""
        return f"{self.pool} {self.resource} {self.direction}"


class Payload(StrEnum):
    """What a step carries; the bytes of each follow from LLM and workload (:mod:`loads`)."""

    HIT = "hit"
    """R: KV-cache of the hit tokens."""
    MISS = "miss"
    """m: KV-cache of the miss tokens, as attention needs it."""
    APPENDED = "appended"
    """KV-cache of the miss tokens as it is stored (all layers, also those with a window)."""
    GENERATED = "generated"
    """KV-cache of the generated tokens as it is stored."""


class Phase(StrEnum):
    """When a step happens in the life of a turn."""

    READ = "read"
    LOAD = "load"
    """Layer by layer, hidden behind prefill compute."""
    HAND_OFF = "hand-off"
    DECODE_START = "decode start"
    WRITE_BACK = "write-back"


class Place(NamedTuple):
    """A memory that a step starts from or ends in."""

    pool: Pool
    memory: str  # "storage", "dram" or "hbm"

    def __str__(self) -> str:
        """Print as in the paper: "PE HBM"."""
        if self.memory == "storage":
            return "storage"
        return f"{'PE' if self.pool is Pool.PREFILL else 'DE'} {self.memory.upper()}"


STORAGE = Place(Pool.CLUSTER, "storage")
PE_DRAM = Place(Pool.PREFILL, "dram")
PE_HBM = Place(Pool.PREFILL, "hbm")
DE_DRAM = Place(Pool.DECODE, "dram")
DE_HBM = Place(Pool.DECODE, "hbm")


class Mover(StrEnum):
    """Who moves the bytes of a step between memories."""

    NIC = "compute NIC"
    """RDMA, also between host memory and a GPU of one node (paper, section 5.1)."""
    COPY = "copy engine"
    """The GPU's copy engine over PCIe, inside one node."""


@dataclass(frozen=True, slots=True)
class Step:
    """Move ``carries`` from ``source`` to ``destination``; ``label`` is the paper's numbering.

    Raises ValueError for a copy engine that would have to leave its node.
    """

    label: str
    source: Place
    destination: Place
    carries: tuple[Payload, ...]
    phase: Phase
    mover: Mover = Mover.NIC

    def __post_init__(self) -> None:
        """Refuse what no copy engine reaches."""
        if self.mover is Mover.COPY and self.source.pool is not self.destination.pool:
            raise ValueError(f"step {self.label}: a copy engine stays inside its node")


@dataclass(frozen=True, slots=True)
class Stay:
    """``carries`` lies in ``place`` from the end of the turn before until the path takes it up.

    It so occupies that memory during the think time between the turns.
    """

    place: Place
    carries: tuple[Payload, ...]


@dataclass(frozen=True, slots=True)
class Path:
    """A named list of steps. ``meaning`` is one sentence for documents and help texts.

    ``prefill_on``: whose GPUs compute the prefill of a request on this path; ``stays``: what has been
    kept for it between the turns.
    """

    name: str
    meaning: str
    steps: tuple[Step, ...]
    prefill_on: Pool = Pool.PREFILL
    stays: tuple[Stay, ...] = ()

    def hit_reads(self, pool: Pool) -> int:
        """Return how often nodes of ``pool`` read the hits from storage."""
        return sum(
            step.source == STORAGE and step.destination.pool is pool and Payload.HIT in step.carries
            for step in self.steps
        )


_HIT, _MISS = (Payload.HIT,), (Payload.MISS,)
_HAND_OFF_HIT = Step("(5)-(7)", PE_HBM, DE_DRAM, _HIT, Phase.HAND_OFF)

PREFILL_READ = Path(
    "prefill read",
    "hits are read by the prefill node and handed to the decode node after prefill",
    (
        Step("(1)-(2)", STORAGE, PE_DRAM, _HIT, Phase.READ),
        Step("(3)-(4)", PE_DRAM, PE_HBM, _HIT, Phase.LOAD),
        _HAND_OFF_HIT,
    ),
)
DECODE_READ = Path(
    "decode read",
    "hits are read by the decode node, which keeps them and sends each layer to the prefill node",
    (
        Step("(1)-(2)", STORAGE, DE_DRAM, _HIT, Phase.READ),
        Step("(3)-(5)", DE_DRAM, PE_HBM, _HIT, Phase.LOAD),
    ),
)
PREFILL_CACHE = Path(
    "prefill DRAM cache",
    "hits are already in the prefill node's DRAM: no storage NIC, otherwise as prefill read",
    (Step("cache", PE_DRAM, PE_HBM, _HIT, Phase.LOAD), _HAND_OFF_HIT),
)
HAND_OFF = Path(
    "miss hand-off",
    "KV-cache of the miss tokens goes to the decode node, on either path",
    (Step("(5)-(7)", PE_HBM, DE_DRAM, _MISS, Phase.HAND_OFF),),
)
DECODE_START = Path(
    "decode start",
    "the whole prompt's KV-cache goes up into the decode engine's HBM",
    (
        Step(
            "(8)-(9), DE (6)-(7)",
            DE_DRAM,
            DE_HBM,
            (Payload.HIT, Payload.MISS),
            Phase.DECODE_START,
        ),
    ),
)
WRITE_BACK = Path(
    "write-back",
    "appended and generated tokens' KV-cache is stored, in full blocks as each is complete",
    (
        Step("append", DE_DRAM, STORAGE, (Payload.APPENDED,), Phase.WRITE_BACK),
        Step("generate", DE_HBM, DE_DRAM, (Payload.GENERATED,), Phase.WRITE_BACK),
        Step("generate", DE_DRAM, STORAGE, (Payload.GENERATED,), Phase.WRITE_BACK),
    ),
)


@dataclass(frozen=True)
class StepTable:
    """A way of serving: two read paths to split between, an optional cache, and what always happens.

    ``split`` x is the fraction of the hit bytes not found in the cache that take ``decode_read``.
    ``layerwise``: hits are loaded layer by layer while prefill computes. ``one_layer``: a prefill
    engine's HBM then holds one layer of a batch's context, not all. ``software``: what the table was
    read from. ``remark``: what to know of the first token's latency.
    """

    name: str
    prefill_read: Path = PREFILL_READ
    decode_read: Path = DECODE_READ
    cache_read: Path = PREFILL_CACHE
    always: tuple[Path, ...] = (HAND_OFF, DECODE_START, WRITE_BACK)
    layerwise: bool = True
    one_layer: bool = True
    software: str = "arXiv 2602.21548"
    remark: str = "layer by layer, hidden behind prefill"

    @property
    def splits(self) -> bool:
        """Whether there is anything to split: the two read paths differ."""
        one, other = self.prefill_read, self.decode_read
        return (one.steps, one.prefill_on, one.stays) != (
            other.steps,
            other.prefill_on,
            other.stays,
        )

    @property
    def no_range(self) -> str | None:
        """Say why the table has no bottleneck-free range; None where it has one.

        The range (paper, section 4.2) saturates the storage NICs of both sides by choosing a path, so
        each path has to read the hits once, on its own side alone.
        """
        sides = (Pool.PREFILL, Pool.DECODE)
        reads = [
            [p.hit_reads(pool) for pool in sides] for p in (self.prefill_read, self.decode_read)
        ]
        if reads == [[1, 0], [0, 1]]:
            return None
        if not self.splits:
            why = "both sides read the hits of each request, so there is no split"
        else:
            why = "one of its read paths does not read the hits on its own side"
        return f"framework {self.name} has no bottleneck-free range: {why}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every path of the table, reads first."""
        return (self.prefill_read, self.decode_read, self.cache_read, *self.always)

    def where(self, keep: Callable[[Step], bool]) -> StepTable:
        """Return the table with only the steps for which ``keep`` holds."""
        return self._mapped(lambda step: step if keep(step) else None)

    def carrying(self, *payloads: Payload) -> StepTable:
        """Return the table with only these payloads moved; the paper's analysis has HIT alone."""

        def thin(step: Step) -> Step | None:
            carries = tuple(payload for payload in step.carries if payload in payloads)
            return replace(step, carries=carries) if carries else None

        return self._mapped(thin)

    def _mapped(self, change: Callable[[Step], Step | None]) -> StepTable:
        """Return the table with every step changed, or left out where ``change`` gives None."""

        def over(path: Path) -> Path:
            changed = (change(step) for step in path.steps)
            return replace(path, steps=tuple(step for step in changed if step is not None))

        return replace(
            self,
            prefill_read=over(self.prefill_read),
            decode_read=over(self.decode_read),
            cache_read=over(self.cache_read),
            always=tuple(over(path) for path in self.always),
        )


PAPER = StepTable("paper")


def uses(step: Step) -> tuple[Key, ...]:
    """Return the capacities that a step uses, one entry for each passage of its bytes.

    Storage to memory: storage service, the node's SNIC in, the memory. Memory to memory: the source
    memory, its node's CNIC read, the fabric if the nodes differ, the destination's CNIC write, the
    destination memory; where an end is host memory, that node's host link as well. A copy engine's
    copy: both memories and the host link, no NIC.
    """
    source, destination = step.source, step.destination
    if source == STORAGE:
        pool = destination.pool
        return (
            Key(Pool.CLUSTER, Resource.STORAGE, Direction.READ),
            Key(pool, Resource.SNIC, Direction.IN),
            _memory(destination),
        )
    if destination == STORAGE:
        pool = source.pool
        return (
            _memory(source),
            Key(pool, Resource.SNIC, Direction.OUT),
            Key(Pool.CLUSTER, Resource.STORAGE, Direction.WRITE),
        )
    if step.mover is Mover.COPY:
        way = Direction.READ if source.memory == "dram" else Direction.WRITE
        return (
            _memory(source),
            Key(source.pool, Resource.HOST_LINK, way),
            _memory(destination),
        )
    keys = [_memory(source)]
    if source.memory == "dram":
        keys.append(Key(source.pool, Resource.HOST_LINK, Direction.READ))
    keys.append(Key(source.pool, Resource.CNIC, Direction.READ))
    if source.pool is not destination.pool:
        to_decode = destination.pool is Pool.DECODE
        way = Direction.TO_DECODE if to_decode else Direction.TO_PREFILL
        keys.append(Key(Pool.CLUSTER, Resource.FABRIC, way))
    keys.append(Key(destination.pool, Resource.CNIC, Direction.WRITE))
    if destination.memory == "dram":
        keys.append(Key(destination.pool, Resource.HOST_LINK, Direction.WRITE))
    keys.append(_memory(destination))
    return tuple(keys)


def _memory(place: Place) -> Key:
    resource = Resource.DRAM if place.memory == "dram" else Resource.HBM
    return Key(place.pool, resource, Direction.BOTH)


Passages = Mapping[Key, Mapping[Payload, float]]
"""How often each payload passes each capacity, per byte of payload."""


def passages(steps: Iterable[Step], replication: Mapping[Pool, float] | None = None) -> Passages:
    """Count how often each payload passes each capacity.

    A step into HBM moves ``replication[pool]`` copies (tensor-parallel ranks that each need all of
    it, see :meth:`Llm.replication`), except from storage, where one copy arrives.
    """
    counted: dict[Key, Counter[Payload]] = {}
    for step in steps:
        copies = 1.0
        if step.destination.memory == "hbm" and step.source != STORAGE:
            copies = (replication or {}).get(step.destination.pool, 1.0)
        for key in uses(step):
            for payload in step.carries:
                counted.setdefault(key, Counter())[payload] += copies  # type: ignore[assignment]
    return counted
