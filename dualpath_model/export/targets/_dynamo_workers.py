"""Which workers a plan's nodes are to Dynamo: an engine, or an expert-parallel group of them."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.paths import Pool


@dataclass(frozen=True, slots=True)
class Worker:
    """Workers that are alike: one component of the graph.

    A worker is one vLLM instance: a tensor-parallel engine, or ``data_parallel`` of them where experts
    are spread over more GPUs than one engine has. ``nodes``: that one worker spans; ``gpus``: of a Pod.
    ``expert``: GPUs over which the plan spreads experts; ``buffer_bytes``: DRAM of one engine, of the
    nodes with the least.
    """

    pool: str
    name: str
    kinds: tuple[NodeKind, ...]
    replicas: int
    nodes: int
    gpus: int
    tensor: int
    data_parallel: int
    expert: int
    buffer_bytes: float | None

    @property
    def gpus_of_worker(self) -> int:
        """GPUs of one worker, all its Pods together."""
        return self.nodes * self.gpus


def workers(deployment: Deployment) -> tuple[Worker, ...]:
    """Return the plan's workers, prefill first.

    Nodes that differ in nothing that a Pod could state (their storage NICs) are one component.
    """
    found = []
    for pool in (Pool.PREFILL.value, Pool.DECODE.value):
        parts = _parts(deployment.pool(pool))
        for number, part in enumerate(parts):
            name = pool if len(parts) == 1 else f"{pool}-{number}"
            found.append(_worker(pool, name, part))
    return tuple(found)


def _parts(kinds: tuple[NodeKind, ...]) -> list[tuple[NodeKind, ...]]:
    """Return a pool's nodes by shape; all together where experts need more GPUs than a shape has."""
    ordered = sorted(kinds, key=lambda kind: kind.positions)
    parts: dict[tuple[object, ...], tuple[NodeKind, ...]] = {}
    for kind in ordered:
        parts[_shape(kind)] = (*parts.get(_shape(kind), ()), kind)
    short = any(
        part[0].expert > sum(kind.count * kind.gpus for kind in part) for part in parts.values()
    )
    if short and len({(kind.gpus, kind.tensor) for kind in kinds}) == 1:
        return [tuple(ordered)]
    return list(parts.values())


def _shape(kind: NodeKind) -> tuple[object, ...]:
    return (kind.gpu, kind.gpus, kind.tensor, kind.expert, kind.buffer_bytes)


def _worker(pool: str, name: str, kinds: tuple[NodeKind, ...]) -> Worker:
    kind = kinds[0]
    count = sum(part.count for part in kinds)
    width = max(kind.tensor, *(part.expert for part in kinds))
    nodes = max(1, -(-width // kind.gpus))
    if width > kind.gpus and count % nodes:
        nodes = count  # the group spans nodes of more than one shape: one worker of all of them
    gpus = kind.gpus if nodes > 1 else _filling(kind, width)
    replicas = count // nodes if nodes > 1 else count * (kind.gpus // gpus)
    sizes = [part.buffer_bytes for part in kinds if part.buffer_bytes is not None]
    buffer = min(sizes) / kind.engines if len(sizes) == len(kinds) else None
    return Worker(
        pool=pool,
        name=name,
        kinds=kinds,
        replicas=replicas,
        nodes=nodes,
        gpus=gpus,
        tensor=kind.tensor,
        data_parallel=nodes * gpus // kind.tensor,
        expert=width if width > kind.tensor else 1,
        buffer_bytes=buffer,
    )


def _filling(kind: NodeKind, width: int) -> int:
    """Return the least GPUs from ``width`` on that divide the node into whole workers."""
    return next(
        gpus
        for gpus in range(width, kind.gpus + 1)
        if kind.gpus % gpus == 0 and gpus % kind.tensor == 0
    )
