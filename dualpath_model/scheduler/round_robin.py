"""Engines in turn, reads by the prefill nodes (`basic`) or by both sides in turn (`round-robin`).

`basic` is the paper's baseline. `round-robin` is dual-path loading without its scheduler: the paper's
storage-NIC imbalance for it, 1.53 max/mean at 2P4D, is what taking turns gives there, since half of the
reads on 2 of 6 NICs are 1.5 times the mean. Both keep beta and the HBM as limits.
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import Engines, Nodes
from dualpath_model.scheduler.index import NONE, least, least_within


@compilable
def prefill_key(engines: Engines, nodes: Nodes, engine: int) -> int:
    """Every engine that is not overloaded is as good as any other."""
    return NONE if engines.tok[engine] > engines.limit[engine] else 0


@compilable
def decode_key(engines: Engines, nodes: Nodes, engine: int) -> int:
    """Every engine is as good as any other."""
    return 0


@compilable
def choose_prefill_group(engines: Engines) -> int:
    """Return the group of the pool's next open engine in turn, or -1 if there is none."""
    return choose_decode_group(engines, 0)


@compilable
def choose_decode_group(engines: Engines, hold: int) -> int:
    """Return the group of the next open engine in turn that could ever hold the request, or -1."""
    pool = engines.group_tok.shape[0]
    count = engines.tok.shape[0]
    for step in range(1, count + 1):
        engine = (engines.cursor[pool] + step) % count
        if engines.open[engine] and engines.limit[engine] >= hold:
            engines.cursor[pool] = engine
            return int(engines.group[engine])
    return -1


@compilable
def choose_prefill(engines: Engines, group: int) -> int:
    """Return the group's next engine in turn that is not overloaded, or -1."""
    first, last = engines.group_first[group], engines.group_first[group + 1]
    after = max(first, engines.cursor[group] + 1)
    engine = least(engines.key_tree, after, last)
    if engine < 0:
        engine = least(engines.key_tree, first, min(after, last))
    if engine >= 0:
        engines.cursor[group] = engine
    return engine


@compilable
def choose_decode(
    engines: Engines, group: int, length: int, hold: int, balanced: int
) -> tuple[int, bool]:
    """Return the group's next engine in turn that has room, and whether tok + length <= Z, or -1."""
    first, last = engines.group_first[group], engines.group_first[group + 1]
    after = max(first, engines.cursor[group] + 1)
    key, room = engines.key_tree, engines.room_tree
    engine = least_within(key, after, last, key, NONE - 1, room, hold)
    if engine < 0:
        engine = least_within(key, first, min(after, last), key, NONE - 1, room, hold)
    if engine < 0:
        return -1, False
    engines.cursor[group] = engine
    return engine, engines.tok[engine] + length <= balanced


@compilable
def read_by_prefill(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """Prefill nodes read everything."""
    return hit, 0


@compilable
def read_in_turn(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """The two sides take turns."""
    if nodes.orders[0] % 2 == 0:
        return hit, 0
    return 0, hit
