"""The paper's rules (section 6.1), each as one function; other policies put their own in their place.

Tie rule: among equal engines or groups the lowest number is taken. Of two equal read queues that of the
node is taken that was given fewer tokens to read so far, then the prefill node's. That is not a detail:
below saturation most queues are empty, and deciding them all for one side would load its NICs alone.
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import Engines, Nodes
from dualpath_model.scheduler.index import NONE, least, least_within

_CLASS_3 = 2**60  # above any token count: class 2 always comes first


@compilable
def prefill_class(tok: int, beta: int, read_q: int, alpha: int) -> int:
    """Return 1: overloaded, gets nothing; 2: short read queue, preferred; 3: long read queue."""
    if tok > beta:
        return 1
    return 2 if read_q <= alpha else 3


@compilable
def prefill_key(engines: Engines, nodes: Nodes, engine: int) -> int:
    """What the choice of a prefill engine minimises: the class, then tok."""
    node = engines.node[engine]
    tok = engines.tok[engine]
    rank = prefill_class(tok, engines.limit[engine], nodes.read_q[node], nodes.alpha[node])
    if rank == 1:
        return NONE
    return int(tok if rank == 2 else tok + _CLASS_3)


@compilable
def decode_key(engines: Engines, nodes: Nodes, engine: int) -> int:
    """What the choice of a balanced decode engine minimises: seq."""
    return int(engines.seq[engine])


@compilable
def group_key(engines: Engines, group: int) -> int:
    """What the choice of a group minimises: its total tok."""
    return int(engines.group_tok[group])


@compilable
def refresh_node_cost(nodes: Nodes, node: int) -> None:
    """Bring up to date what the policy keeps for each node: here nothing."""


@compilable
def choose_prefill_group(engines: Engines) -> int:
    """Return the group that a new request waits for, or -1: any may fetch it."""
    return -1


@compilable
def choose_prefill(engines: Engines, group: int) -> int:
    """Return the prefill engine of ``group`` for the next request, or -1: the fetch ends."""
    return least(engines.key_tree, engines.group_first[group], engines.group_first[group + 1])


@compilable
def choose_decode_group(engines: Engines, hold: int) -> int:
    """Phase 1: return the group with the least total tok, or -1 if there is none.

    A group counts only if one of its engines could ever ``hold`` the request: the paper's groups are
    alike, and elsewhere a request that fits nowhere would block its group's queue for good.
    """
    count = engines.group_tok.shape[0]
    tree = engines.group_tree
    return least_within(tree, 0, count, tree, NONE - 1, engines.group_room_tree, hold)


@compilable
def balanced_tokens(z_factor: float, queued: int, held: int, engines: int) -> int:
    """Return Z in whole tokens: ``z_factor`` x (queued + held) / engines.

    ``queued``: tokens of R, the requests that fit the group's free HBM; ``held``: tok of its engines.
    """
    return int(z_factor * (queued + held) / engines)


@compilable
def choose_decode(
    engines: Engines, group: int, length: int, hold: int, balanced: int
) -> tuple[int, bool]:
    """Phase 2: return the decode engine for a request of ``length`` tokens that will ``hold`` so many
    in HBM, and whether it stays balanced there (tok + length <= Z); -1: the fetch ends.
    """
    first, last = engines.group_first[group], engines.group_first[group + 1]
    tok, room = engines.tok_tree, engines.room_tree
    engine = least_within(engines.key_tree, first, last, tok, balanced - length, room, hold)
    if engine >= 0:
        return engine, True
    return least_within(tok, first, last, tok, NONE - 1, room, hold), False


@compilable
def read_tokens(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """Return the tokens that the prefill node and the decode node read: the shorter queue, all."""
    queue_p, queue_d = nodes.read_q[prefill_node], nodes.read_q[decode_node]
    if queue_p == queue_d:
        queue_p, queue_d = nodes.given[prefill_node], nodes.given[decode_node]
    if queue_p <= queue_d:
        return hit, 0
    return 0, hit
