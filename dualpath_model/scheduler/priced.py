"""Drift plus penalty: choose side and engines by what they cost, all resources counted.

A request's work on a resource costs (backlog + V price) x seconds of that resource: backlog in seconds
of work ordered and not done, price the resource's share of the LP's dual value (all together 1), V the
weight of prices in seconds. Minimising the first term alone is the drift of the queues (Tassiulas and
Ephremides 1992); the second steers away from what the LP says is scarce before a queue shows it (Neely
2010, drift plus penalty). With V = 0 and only storage NICs it levels read queues as `dualpath` does.

Expected over `dualpath`: the same where storage NICs alone bind on equal nodes; better where compute
NICs or DRAM of one side bind (P/D outside the bottleneck-free range), and on unequal nodes, since it
compares seconds where the paper compares tokens.

The policy also counts the whole forward batch in the quota (``Policy.whole_batch_quota``), where most of
its gain in the simulator comes from: docs/simulator.md, section 6.
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import HIT_SHARE, PRICE_WEIGHT_S, SPLIT, Engines, Nodes
from dualpath_model.scheduler.index import NONE, least_within

_UNITS = 1e15  # of a cost in s^2 per token in an index: five digits and more even on idle engines
_MOST = 1e18


@compilable
def refresh_node_cost(nodes: Nodes, node: int) -> None:
    """Bring up to date what a token costs on a node, in s^2."""
    weight = nodes.knobs[PRICE_WEIGHT_S]
    rate = nodes.read_rate[node]
    near = (nodes.read_q[node] / rate + weight * nodes.read_price[node]) / rate
    far, miss = 0.0, 0.0
    for column in range(nodes.backlog_s.shape[1]):
        cost = nodes.backlog_s[node, column] + weight * nodes.price[node, column]
        near += cost * nodes.near_s[node, column]
        far += cost * nodes.far_s[node, column]
        miss += cost * nodes.miss_s[node, column]
    nodes.near_cost[node] = near
    nodes.far_cost[node] = far
    nodes.miss_cost[node] = miss


@compilable
def engine_cost(engines: Engines, nodes: Nodes, engine: int) -> int:
    """Return what a token of a mean request costs on an engine and its node, in units of an index."""
    node = engines.node[engine]
    split, hits = nodes.knobs[SPLIT], nodes.knobs[HIT_SHARE]
    near_share = split if nodes.decode[node] else 1.0 - split
    moved = near_share * nodes.near_cost[node] + (1.0 - near_share) * nodes.far_cost[node]
    rate = engines.rate[engine]
    weight = nodes.knobs[PRICE_WEIGHT_S] * nodes.engine_price[node]
    computed = (engines.tok[engine] / rate + weight) / rate
    cost = computed + hits * moved + (1.0 - hits) * nodes.miss_cost[node]
    return int(min(_MOST, cost * _UNITS))


@compilable
def prefill_key(engines: Engines, nodes: Nodes, engine: int) -> int:
    """What the choice of a prefill engine minimises: its cost; above beta it gets nothing."""
    if engines.tok[engine] > engines.limit[engine]:
        return NONE
    return engine_cost(engines, nodes, engine)


@compilable
def group_key(engines: Engines, group: int) -> int:
    """What the choice of a group minimises: seconds of its tokens at its engines' rates."""
    return int(min(_MOST, 1e9 * engines.group_tok[group] / engines.group_rate[group]))


@compilable
def choose_decode(
    engines: Engines, group: int, length: int, hold: int, balanced: int
) -> tuple[int, bool]:
    """Return the decode engine of least cost with room, and whether tok + length <= Z, or -1."""
    first, last = engines.group_first[group], engines.group_first[group + 1]
    key = engines.key_tree
    engine = least_within(key, first, last, key, NONE - 1, engines.room_tree, hold)
    return engine, engine >= 0 and engines.tok[engine] + length <= balanced


@compilable
def read_tokens(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """Return the tokens that each node reads: all on the side where they cost less.

    Equal costs are settled as the paper's rule settles equal queues (:mod:`paper`).
    """
    by_prefill = nodes.near_cost[prefill_node] + nodes.far_cost[decode_node]
    by_decode = nodes.far_cost[prefill_node] + nodes.near_cost[decode_node]
    if by_prefill == by_decode:
        by_prefill, by_decode = float(nodes.given[prefill_node]), float(nodes.given[decode_node])
    if by_prefill <= by_decode:
        return hit, 0
    return 0, hit
