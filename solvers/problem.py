"""The assignment problem in numbers: who may use what, as arrays. Every formulation starts from these.

A node's *use* is the share of each of its capacities that one request a second of a class would take on
each read path. Nodes whose uses are proportional are the same node in different sizes: they are merged
into one *kind*, which changes no optimum, makes large clusters small, and gives every cluster one
canonical form (so that the order of nodes, or one node written as two halves, cannot change an answer).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dualpath_model.errors import InputError
from dualpath_model.loads import Demand, Loads, NodeLoad
from dualpath_model.paths import Key, Pool

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

POOLS = (Pool.PREFILL, Pool.DECODE)
PATHS = 2
"""Read paths: 0 through the prefill node, 1 through the decode node."""


@dataclass(frozen=True)
class TrafficClass:
    """One kind of traffic on the cluster: its loads, and either a share of the mix or a fixed rate.

    ``share``: fraction of the requests that are free to grow (the shares of all classes sum to 1);
    ``rate``: requests/s that must be served.
    """

    name: str
    loads: Loads
    share: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class PoolUse:
    """Nodes of one pool. ``use`` is (nodes, keys, classes, paths) per request/s; ``capacity`` is
    (nodes, keys), nan where a node does not have the capacity; ``zone`` is (nodes,).
    """

    keys: tuple[Key, ...]
    use: Array
    capacity: Array
    zone: Index

    @property
    def count(self) -> int:
        """Number of nodes."""
        return int(self.use.shape[0])


@dataclass(frozen=True)
class Problem:
    """Pools, what the cluster shares (``shared`` has one row, the cluster), and the classes.

    ``share`` and ``rate`` are (classes,), nan where the class has the other one.
    """

    names: tuple[str, ...]
    share: Array
    rate: Array
    prefill: PoolUse
    decode: PoolUse
    shared: PoolUse

    @property
    def classes(self) -> int:
        """Number of traffic classes."""
        return len(self.names)

    def pools(self) -> tuple[PoolUse, PoolUse]:
        """Return prefill and decode."""
        return self.prefill, self.decode


def from_classes(
    classes: Sequence[TrafficClass], zones: tuple[Sequence[int], Sequence[int]] | None = None
) -> Problem:
    """Gather classes into one problem. ``zones`` gives each node's zone, prefill and decode.

    Raises InputError for shares that do not sum to 1, a class with both or neither of share and rate,
    a capacity of zero, or a problem too large for the memory.
    """
    _check_requirements(classes)
    if zones is not None:
        for pool, zone in zip(POOLS, zones, strict=True):
            count = sum(group.count for group in classes[0].loads.groups(pool))
            if len(zone) != count:
                raise InputError(
                    f"{len(zone)} zones are given for {count} {pool} nodes; give each node its zone"
                )
    names = tuple(c.name for c in classes)
    pools = [
        _pool_use(names, [[_group(g) for g in c.loads.groups(pool)] for c in classes], zone)
        for pool, zone in zip(POOLS, zones or ((), ()), strict=True)
    ]
    shared: list[list[_Group]] = [
        [((0,), c.loads.shared_demand, c.loads.shared_capacity)] for c in classes
    ]
    return Problem(
        names=names,
        share=np.array([math.nan if c.share is None else c.share for c in classes]),
        rate=np.array([math.nan if c.rate is None else c.rate for c in classes]),
        prefill=pools[0],
        decode=pools[1],
        shared=_pool_use(names, shared, ()),
    )


def single(loads: Loads) -> Problem:
    """Return the problem of one class that grows as far as the cluster allows."""
    return from_classes([TrafficClass("all", loads, share=1.0)])


_Group = tuple[tuple[int, ...], Demand, Mapping[Key, float]]
"""Positions of nodes that are alike, a request's demand there, one node's capacity."""


def _group(load: NodeLoad) -> _Group:
    return load.positions, load.demand, load.capacity


def _pool_use(names: tuple[str, ...], by_class: list[list[_Group]], zone: Sequence[int]) -> PoolUse:
    first = by_class[0]
    keys = tuple(dict.fromkeys(key for _, _, capacity in first for key in capacity))
    count = sum(len(positions) for positions, _, _ in first)
    shape = (count, len(keys), len(names), PATHS)
    _check_memory(shape)
    use, rates = np.zeros(shape), np.full(shape[:2], math.nan)
    for k, groups in enumerate(by_class):
        for positions, demand, capacity in groups:
            nodes = list(positions)
            use[nodes, :, k, :] = _use_of(demand, capacity, keys, f"class '{names[k]}'", nodes[0])
            if k == 0:
                rates[nodes] = [capacity.get(key, math.nan) for key in keys]
    return PoolUse(keys, use, rates, np.asarray(zone or [0] * count, dtype=np.int64))


def _use_of(
    demand: Demand, capacity: Mapping[Key, float], keys: tuple[Key, ...], who: str, node: int
) -> Array:
    used = np.zeros((len(keys), PATHS))
    ends = demand.at(0.0), demand.at(1.0)
    for r, key in enumerate(keys):
        for path, end in enumerate(ends):
            amount = float(end.get(key, 0.0))
            if key in capacity and amount > 0.0:
                if not capacity[key] > 0.0:
                    raise InputError(
                        f"{who}: {key} of node {node} has the capacity {capacity[key]:g}, "
                        f"which serves nothing; give its rate or leave the node out"
                    )
                used[r, path] = amount / capacity[key]
    return used


def _check_requirements(classes: Sequence[TrafficClass]) -> None:
    if not classes:
        raise InputError("there is no traffic class; give at least one")
    names = [c.name for c in classes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"class '{twice}' is given twice; give each class a name of its own")
    for c in classes:
        if (c.share is None) == (c.rate is None):
            raise InputError(f"class '{c.name}': give either share or rate, not both or neither")
        amount = c.share if c.share is not None else c.rate
        if amount is None or not math.isfinite(amount) or amount <= 0:
            field = "share" if c.share is not None else "rate"
            raise InputError(
                f"class '{c.name}': {field} {amount} is not allowed; it must be finite and above zero"
            )
    shares = [c.share for c in classes if c.share is not None]
    if shares and abs(sum(shares) - 1.0) > 1e-6:
        raise InputError(
            f"the shares of the classes sum to {sum(shares):.7g}; they must sum to 1: scale them"
        )


_BYTES_PER_ENTRY = 400  # the tensor, the sparse matrix, the solver's copies and its factors


def _check_memory(shape: tuple[int, ...]) -> None:
    needed = math.prod(shape) * _BYTES_PER_ENTRY
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * present:
        raise InputError(
            f"{shape[0]:,} nodes and {shape[2]} classes need about {needed / 1e9:,.0f} GB, more than "
            f"this machine's {present / 1e9:,.0f} GB; group nodes that are alike, or plan a part"
        )


# ---- the canonical form --------------------------------------------------------------------------


@dataclass(frozen=True)
class Kinds:
    """Nodes of one pool merged by proportion.

    ``use`` (kinds, keys, classes, paths) is for all nodes of a kind together, ``kind`` (nodes,) says
    which kind a node is, ``part`` (nodes,) which fraction of it.
    """

    use: Array
    zone: Index
    kind: Index
    part: Array

    @property
    def count(self) -> int:
        """Number of kinds."""
        return int(self.use.shape[0])


def merge(pool: PoolUse, *, by_zone: bool = False, price: Array | None = None) -> Kinds:
    """Merge the nodes of a pool whose uses are proportional, in an order that only uses decide.

    With ``price`` (nodes,), only nodes that also cost the same for what they can do. A node that uses
    nothing at all cannot limit.
    """
    flat = pool.use.reshape(pool.count, -1)
    largest = flat.max(axis=1, initial=0.0)
    size = np.divide(1.0, largest, out=np.ones_like(largest), where=largest > 0)
    signature = _rounded(flat * size[:, None])
    zone = pool.zone if by_zone else np.zeros_like(pool.zone)
    dear = np.zeros(pool.count) if price is None else _rounded(price / size)
    _, first, kind = np.unique(
        np.column_stack((zone, signature, dear)), axis=0, return_index=True, return_inverse=True
    )
    kind = kind.reshape(-1)
    # Rounded figures also in the program: what differs in the last bit only is the same program.
    total = _rounded(np.asarray(np.bincount(kind, weights=size), dtype=float))
    merged = signature[first] / total[:, None]
    return Kinds(
        use=merged.reshape(len(first), *pool.use.shape[1:]),
        zone=zone[first],
        kind=kind.astype(np.int64),
        part=size / total[kind],
    )


def _rounded(values: Array) -> Array:
    """Round to 40 significant bits (12 digits), whatever the magnitude."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2.0**40) / 2.0**40, exponent)


def apart(pool: PoolUse, *, by_zone: bool = False) -> Kinds:
    """Return every node as a kind of its own, in the given order (for many solves of one matrix)."""
    return Kinds(
        use=pool.use,
        zone=pool.zone if by_zone else np.zeros_like(pool.zone),
        kind=np.arange(pool.count, dtype=np.int64),
        part=np.ones(pool.count),
    )
