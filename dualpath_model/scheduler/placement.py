"""Placing requests: the loops of a fetch around the policy's rules, and the accounts they keep.

This is the algorithm of section 6.1 as it runs: the reference scheduler, the simulator and the testbed
call these functions, and a policy is a set of replacements for the rules (:mod:`policies`).
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import Engines, Nodes
from dualpath_model.scheduler.index import NONE, IntArray, set_value
from dualpath_model.scheduler.paper import (
    balanced_tokens,
    choose_decode,
    choose_decode_group,
    choose_prefill,
    choose_prefill_group,
    decode_key,
    group_key,
    prefill_key,
    read_tokens,
    refresh_node_cost,
)

# ---- accounts ------------------------------------------------------------------------------------


@compilable
def refresh_prefill(engines: Engines, nodes: Nodes, engine: int) -> None:
    """Bring the index up to date with one prefill engine."""
    key = prefill_key(engines, nodes, engine) if engines.open[engine] else NONE
    set_value(engines.key_tree, engine, key)


@compilable
def refresh_decode(engines: Engines, nodes: Nodes, engine: int) -> None:
    """Bring the index up to date with one decode engine."""
    if engines.open[engine]:
        set_value(engines.key_tree, engine, decode_key(engines, nodes, engine))
        set_value(engines.tok_tree, engine, engines.tok[engine])
        set_value(engines.room_tree, engine, -engines.free[engine])
    else:
        set_value(engines.key_tree, engine, NONE)
        set_value(engines.tok_tree, engine, NONE)
        set_value(engines.room_tree, engine, NONE)


@compilable
def refresh_node(prefill: Engines, decode: Engines, nodes: Nodes, node: int) -> None:
    """Bring the index up to date after a change of a node's queues."""
    refresh_node_cost(nodes, node)
    for engine in range(nodes.first[node], nodes.last[node]):
        if nodes.decode[node]:
            set_value(
                decode.key_tree,
                engine,
                decode_key(decode, nodes, engine) if decode.open[engine] else NONE,
            )
        else:
            refresh_prefill(prefill, nodes, engine)


@compilable
def refresh_all(prefill: Engines, decode: Engines, nodes: Nodes) -> None:
    """Build the index from the accounts."""
    for node in range(nodes.read_q.shape[0]):
        refresh_node_cost(nodes, node)
    for engine in range(prefill.tok.shape[0]):
        refresh_prefill(prefill, nodes, engine)
    for engine in range(decode.tok.shape[0]):
        refresh_decode(decode, nodes, engine)
    for group in range(prefill.group_tok.shape[0]):
        recount_group(prefill, group)
    for group in range(decode.group_tok.shape[0]):
        recount_group(decode, group)


@compilable
def recount_group(engines: Engines, group: int) -> None:
    """Sum up a group after its engines were reported, opened or closed."""
    held, free, count, rate, largest = 0, 0, 0, 0.0, 0
    for engine in range(engines.group_first[group], engines.group_first[group + 1]):
        rate += engines.rate[engine]
        if engines.open[engine]:
            held += engines.tok[engine]
            free += engines.free[engine]
            count += 1
            largest = max(largest, engines.limit[engine])
    engines.group_held[group] = held
    engines.group_free[group] = free
    engines.group_open[group] = count
    engines.group_rate[group] = rate
    set_value(engines.group_room_tree, group, -largest)
    refresh_group(engines, group)


@compilable
def refresh_group(engines: Engines, group: int) -> None:
    """Bring the index up to date with one group; without open engines it gets no requests."""
    key = group_key(engines, group) if engines.group_open[group] > 0 else NONE
    set_value(engines.group_tree, group, key)


@compilable
def add_group_tokens(engines: Engines, group: int, tokens: int) -> None:
    """Count tokens that come to (or leave) a group."""
    engines.group_tok[group] += tokens
    refresh_group(engines, group)


@compilable
def add_to_engine(engines: Engines, engine: int, requests: int, tokens: int, hold: int) -> None:
    """Count requests and tokens that come to (or leave) an engine, not below zero.

    A leader's report may have counted down already what now leaves, or have counted growth that leaves
    with it: an engine without any of our requests has nothing, until a report says otherwise.
    """
    engines.held[engine] += hold
    empty = engines.held[engine] == 0
    before = engines.tok[engine]
    engines.seq[engine] = 0 if empty else max(0, engines.seq[engine] + requests)
    engines.tok[engine] = 0 if empty else max(0, before + tokens)
    change = engines.tok[engine] - before
    if engines.open[engine]:
        engines.group_held[engines.group[engine]] += change
    add_group_tokens(engines, engines.group[engine], change)


@compilable
def add_prefill(engines: Engines, nodes: Nodes, engine: int, requests: int, tokens: int) -> None:
    """Count requests that come to (or leave) a prefill engine."""
    add_to_engine(engines, engine, requests, tokens, tokens)
    refresh_prefill(engines, nodes, engine)


@compilable
def add_decode(
    engines: Engines, nodes: Nodes, engine: int, requests: int, tokens: int, hold: int
) -> None:
    """Count requests that come to (or leave) a decode engine and its HBM."""
    add_to_engine(engines, engine, requests, tokens, hold)
    before = engines.free[engine]
    room = max(0, engines.limit[engine] - engines.held[engine])  # 0 where the limit was lowered
    engines.free[engine] = room if engines.held[engine] == 0 else min(room, before - hold)
    if engines.open[engine]:
        engines.group_free[engines.group[engine]] += engines.free[engine] - before
    refresh_decode(engines, nodes, engine)


@compilable
def add_read(prefill: Engines, decode: Engines, nodes: Nodes, node: int, tokens: int) -> None:
    """Count tokens that a node has to read (or has read), not below zero."""
    if tokens != 0:
        nodes.read_q[node] = max(0, nodes.read_q[node] + tokens)
        refresh_node(prefill, decode, nodes, node)


@compilable
def add_transfers(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    prefill_node: int,
    decode_node: int,
    on_prefill: int,
    on_decode: int,
    miss: int,
    sign: int,
) -> None:
    """Count (sign 1) or take back (-1) a request's transfers between the memories of both nodes."""
    if nodes.backlog_s.shape[1] == 0:
        return
    for column in range(nodes.backlog_s.shape[1]):
        for side in range(2):
            node = decode_node if side else prefill_node
            near = on_decode if side else on_prefill
            far = on_prefill if side else on_decode
            seconds = near * nodes.near_s[node, column] + far * nodes.far_s[node, column]
            seconds += miss * nodes.miss_s[node, column]
            nodes.backlog_s[node, column] = max(0.0, nodes.backlog_s[node, column] + sign * seconds)
    refresh_node(prefill, decode, nodes, prefill_node)
    refresh_node(prefill, decode, nodes, decode_node)


@compilable
def order_read(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    prefill_node: int,
    decode_node: int,
    hit: int,
    miss: int,
) -> tuple[int, int]:
    """Decide who reads a request's hits, and count it; return the tokens of both nodes."""
    on_prefill, on_decode = read_tokens(nodes, prefill_node, decode_node, hit)
    nodes.orders[0] += 1
    nodes.given[prefill_node] += on_prefill
    nodes.given[decode_node] += on_decode
    add_read(prefill, decode, nodes, prefill_node, on_prefill)
    add_read(prefill, decode, nodes, decode_node, on_decode)
    add_transfers(prefill, decode, nodes, prefill_node, decode_node, on_prefill, on_decode, miss, 1)
    return on_prefill, on_decode


# ---- a fetch -------------------------------------------------------------------------------------


@compilable
def designate_prefill(engines: Engines, length: int) -> int:
    """Return the group that a request waits for (-1: any), its tokens counted there."""
    group = choose_prefill_group(engines)
    if group >= 0:
        add_group_tokens(engines, group, length)
    return group


@compilable
def designate_decode(engines: Engines, length: int, hold: int) -> int:
    """Phase 1 for one request: return its group (-1: there is none), its tokens counted there."""
    group = choose_decode_group(engines, hold)
    if group >= 0:
        add_group_tokens(engines, group, length)
    return group


@compilable
def place_prefill(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    group: int,
    queued_here: bool,
    prompt: IntArray,
    hit: IntArray,
    decode_engine: IntArray,
    placed: IntArray,
) -> int:
    """Give prefill engines of ``group`` to requests in order until one finds none; return how many.

    ``prompt``, ``hit``, ``decode_engine`` (-1: none yet): (requests,). ``queued_here``: the requests
    come from the group's private queue. ``placed`` (requests, 6) receives engine, class, the tokens that
    the prefill and the decode node read (-1: not decided yet), and tok and read_q before.
    """
    for i in range(prompt.shape[0]):
        engine = choose_prefill(prefill, group)
        if engine < 0:
            return i
        node = prefill.node[engine]
        placed[i, 0] = engine
        placed[i, 1] = 2 if nodes.read_q[node] <= nodes.alpha[node] else 3
        placed[i, 2], placed[i, 3] = -1, -1
        placed[i, 4], placed[i, 5] = prefill.tok[engine], nodes.read_q[node]
        if queued_here:
            add_group_tokens(prefill, group, -prompt[i])
        add_prefill(prefill, nodes, engine, 1, prompt[i])
        if decode_engine[i] >= 0:
            other = decode.node[decode_engine[i]]
            placed[i, 2], placed[i, 3] = order_read(
                prefill, decode, nodes, node, other, hit[i], prompt[i] - hit[i]
            )
    return int(prompt.shape[0])


@compilable
def fitting_prefix(decode: Engines, group: int, prompt: IntArray, hold: IntArray) -> int:
    """Return how many of the queued requests, in order, fit the group's free HBM together: R."""
    room = decode.group_free[group]
    for i in range(prompt.shape[0]):
        room -= hold[i]
        if room < 0:
            return i
    return int(prompt.shape[0])


@compilable
def place_decode(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    group: int,
    z_factor: float,
    prompt: IntArray,
    hit: IntArray,
    hold: IntArray,
    prefill_engine: IntArray,
    placed: IntArray,
) -> tuple[int, int]:
    """Phase 2: give decode engines of ``group`` to the requests of its private queue, in order, until
    one finds no room; return how many, and Z in tokens.

    Arrays as in :func:`place_prefill`; ``hold``: tokens that the request will hold in HBM. ``placed``
    (requests, 7) receives engine, 1 if balanced (else 0), the tokens that both nodes read, and seq, tok
    and free before.
    """
    if decode.group_open[group] == 0:
        return 0, 0
    fitting = fitting_prefix(decode, group, prompt, hold)
    queued = 0
    for i in range(fitting):
        queued += prompt[i]
    balanced = balanced_tokens(z_factor, queued, decode.group_held[group], decode.group_open[group])
    for i in range(fitting):
        engine, within = choose_decode(decode, group, prompt[i], hold[i], balanced)
        if engine < 0:
            return i, balanced
        placed[i, 0] = engine
        placed[i, 1] = 1 if within else 0
        placed[i, 2], placed[i, 3] = -1, -1
        placed[i, 4], placed[i, 5] = decode.seq[engine], decode.tok[engine]
        placed[i, 6] = decode.free[engine]
        add_group_tokens(decode, group, -prompt[i])
        add_decode(decode, nodes, engine, 1, prompt[i], hold[i])
        if prefill_engine[i] >= 0:
            other = prefill.node[prefill_engine[i]]
            placed[i, 2], placed[i, 3] = order_read(
                prefill, decode, nodes, other, decode.node[engine], hit[i], prompt[i] - hit[i]
            )
    return fitting, balanced


# ---- order of the queue --------------------------------------------------------------------------


@compilable
def queue_key(position: int, work_s: float, patience: int, most_work_s: float) -> float:
    """Return the place of a request in the queue, least first: its position, moved back by work.

    A later request comes first only if its key is less, so a request is overtaken by fewer than
    ``patience`` later ones, whatever arrives; patience 0 is FIFO.
    """
    if patience == 0 or most_work_s <= 0.0:
        return float(position)
    return position + patience * min(1.0, work_s / most_work_s)
