"""The step table against the paper: each load of section 4.2 comes out of it, none is typed in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dualpath_model.loads import movement
from dualpath_model.paths import (
    DE_DRAM,
    DE_HBM,
    DECODE_READ,
    PAPER,
    PE_DRAM,
    PE_HBM,
    PREFILL_CACHE,
    PREFILL_READ,
    STORAGE,
    Direction,
    Key,
    Path,
    Payload,
    Phase,
    Pool,
    Resource,
    Step,
    passages,
    uses,
)

HITS = PAPER.carrying(Payload.HIT)


def hit_load(pool: Pool, resource: Resource, direction: Direction) -> tuple[float, float]:
    """Bytes over a capacity per hit byte on the prefill-read and on the decode-read path."""
    demand = movement(HITS, {Payload.HIT: 1.0})
    key = Key(pool, resource, direction)
    base = demand.base.get(key, 0.0)
    return float(base), float(base + demand.slope.get(key, 0.0))


# Paper, section 4.2: load of each capacity as multiples of (Tp, Tc), per PE-DE pair.
PAPER_LOADS = [
    (Pool.PREFILL, Resource.CNIC, Direction.READ, (2, 0)),
    (Pool.PREFILL, Resource.CNIC, Direction.WRITE, (1, 1)),
    (Pool.DECODE, Resource.CNIC, Direction.READ, (1, 2)),
    (Pool.DECODE, Resource.CNIC, Direction.WRITE, (2, 1)),
    (Pool.PREFILL, Resource.DRAM, Direction.BOTH, (2, 0)),
    (Pool.DECODE, Resource.DRAM, Direction.BOTH, (2, 3)),
    (Pool.PREFILL, Resource.SNIC, Direction.IN, (1, 0)),
    (Pool.DECODE, Resource.SNIC, Direction.IN, (0, 1)),
]


@pytest.mark.parametrize(("pool", "resource", "direction", "expected"), PAPER_LOADS)
def test_hit_loads_are_those_of_the_paper(
    pool: Pool, resource: Resource, direction: Direction, expected: tuple[int, int]
) -> None:
    assert hit_load(pool, resource, direction) == expected


@pytest.mark.parametrize("path", PAPER.paths, ids=lambda path: path.name)
def test_bytes_are_conserved_in_every_buffer(path: Path) -> None:
    """What a path brings into the decode node's DRAM or takes out is what the paths before left."""
    for step in path.steps:
        assert step.source != step.destination
        assert step.carries


@pytest.mark.parametrize("read", [PREFILL_READ, DECODE_READ, PREFILL_CACHE], ids=lambda p: p.name)
def test_every_read_path_ends_with_the_hits_where_they_are_needed(read: Path) -> None:
    """After any read path the hits have been in the PE's HBM and lie in the DE's DRAM."""
    reached = {step.destination for step in read.steps}
    assert {PE_HBM, DE_DRAM} <= reached


def test_a_step_between_nodes_crosses_the_fabric_once() -> None:
    across = Step("x", DE_DRAM, PE_HBM, (Payload.HIT,), Phase.LOAD)
    within = Step("x", PE_DRAM, PE_HBM, (Payload.HIT,), Phase.LOAD)
    fabric = [key for key in uses(across) if key.resource is Resource.FABRIC]
    assert fabric == [Key(Pool.CLUSTER, Resource.FABRIC, Direction.TO_PREFILL)]
    assert not [key for key in uses(within) if key.resource is Resource.FABRIC]


def test_host_device_copies_pass_the_compute_nic_both_ways() -> None:
    """Paper, 5.1: also host to device, through the GPU's own NIC."""
    copy = Step("x", DE_DRAM, DE_HBM, (Payload.HIT,), Phase.DECODE_START)
    directions = [key.direction for key in uses(copy) if key.resource is Resource.CNIC]
    assert directions == [Direction.READ, Direction.WRITE]


def test_hit_only_table_has_no_other_payload() -> None:
    carried = {p for path in HITS.paths for step in path.steps for p in step.carries}
    assert carried == {Payload.HIT}


def test_write_back_sends_appended_and_generated_tokens_to_storage_once() -> None:
    counted = passages(step for path in PAPER.always for step in path.steps)
    out = counted[Key(Pool.DECODE, Resource.SNIC, Direction.OUT)]
    assert out == {Payload.APPENDED: 1.0, Payload.GENERATED: 1.0}


def test_cache_hits_use_no_storage() -> None:
    """The path that the paper does not have is one entry: no storage NIC, the rest as prefill read."""
    counted = passages(PREFILL_CACHE.steps)
    assert not [k for k in counted if k.resource in (Resource.SNIC, Resource.STORAGE)]
    full = movement(PAPER, {Payload.HIT: 1.0}, cache_share=1.0)
    assert full.at(0.3)[Key(Pool.PREFILL, Resource.SNIC, Direction.IN)] == 0.0


def test_a_new_path_is_one_entry() -> None:
    """Reading straight into the prefill GPU (GPUDirect Storage, no buffer) needs no other change."""
    direct = Path(
        "direct read",
        "storage to HBM without a host buffer",
        (
            Step("1", STORAGE, PE_HBM, (Payload.HIT,), Phase.READ),
            Step("2", PE_HBM, DE_DRAM, (Payload.HIT,), Phase.HAND_OFF),
        ),
    )
    demand = movement(replace(PAPER, prefill_read=direct), {Payload.HIT: 1.0})
    assert demand.at(0.0).get(Key(Pool.PREFILL, Resource.DRAM, Direction.BOTH), 0.0) == 0.0
    assert demand.at(0.0)[Key(Pool.PREFILL, Resource.SNIC, Direction.IN)] == 1.0
    assert demand.at(0.0)[Key(Pool.PREFILL, Resource.CNIC, Direction.WRITE)] == 0.0


def test_replication_multiplies_what_goes_into_hbm_only() -> None:
    counted = passages(PREFILL_READ.steps, {Pool.PREFILL: 4.0})
    assert counted[Key(Pool.PREFILL, Resource.CNIC, Direction.WRITE)][Payload.HIT] == 4.0
    assert counted[Key(Pool.PREFILL, Resource.SNIC, Direction.IN)][Payload.HIT] == 1.0
    assert counted[Key(Pool.DECODE, Resource.CNIC, Direction.WRITE)][Payload.HIT] == 1.0
