"""The scheduler's state as arrays: what the decision functions read and change.

Engines of a pool are numbered in the order of their groups and, inside a group, of their nodes, so that
a group and a node are ranges. Ties go to the lowest number everywhere. Token columns are int64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualpath_model.scheduler.index import IntArray

FloatArray = npt.NDArray[np.float64]


class Engines(NamedTuple):
    """One pool: E engines in G groups."""

    seq: IntArray
    """Unfinished requests, (E,)."""
    tok: IntArray
    """Tokens of the unfinished requests, (E,)."""
    held: IntArray
    """Tokens of the requests placed here, by our own account: prompts; decode: with reserves, what is
    set aside of the HBM. (E,)"""
    free: IntArray
    """Decode: tokens of HBM that are free, (E,); less than limit - held where a report said so."""
    limit: IntArray
    """Prefill: beta. Decode: tokens that fit the HBM. (E,)"""
    rate: FloatArray
    """Tokens that the engine turns over, tokens/s, (E,)."""
    open: IntArray
    """0 while the engine is given nothing because its last report was impossible, (E,)."""
    node: IntArray
    """Number of its node among all nodes, (E,)."""
    group: IntArray
    """Number of its group, (E,)."""
    group_first: IntArray
    """First engine of each group, and E, (G + 1,)."""
    group_tok: IntArray
    """Tokens in each group: unfinished ones of its engines and those of its private queue, (G,)."""
    group_held: IntArray
    """Tokens unfinished on the open engines of each group, (G,)."""
    group_free: IntArray
    """Decode: free HBM of the open engines of each group, tokens, (G,)."""
    group_open: IntArray
    """Open engines of each group, (G,)."""
    group_rate: FloatArray
    """Sum of the engines' rates, tokens/s, (G,)."""
    cursor: IntArray
    """Engine chosen last in each group, and in the pool, -1 at first (round robin), (G + 1,)."""
    key_tree: IntArray
    """Index of what the policy minimises, NONE where the engine must get nothing."""
    tok_tree: IntArray
    """Decode: index of ``tok``."""
    room_tree: IntArray
    """Decode: index of ``-free``."""
    group_tree: IntArray
    """Index of the groups by what the policy minimises, NONE for one without open engines."""
    group_room_tree: IntArray
    """Index of the negative of the largest limit among each group's open engines."""


class Nodes(NamedTuple):
    """All nodes, prefill nodes first: N nodes, K resources beside the storage NIC (`priced` only)."""

    read_q: IntArray
    """Tokens that wait to be read or are being read, (N,)."""
    alpha: IntArray
    """Tokens up to which a read queue is short, (N,)."""
    read_rate: FloatArray
    """Rate of the storage NIC, tokens/s, (N,)."""
    first: IntArray
    """First of the node's engines in its pool, (N,)."""
    last: IntArray
    """One past the node's last engine in its pool, (N,)."""
    decode: IntArray
    """1 for a decode node, (N,)."""
    backlog_s: FloatArray
    """Work that has been ordered and not done, seconds, (N, K)."""
    price: FloatArray
    """The resource's share of the LP's dual value, (N, K); the storage NIC's is ``read_price``."""
    near_s: FloatArray
    """Seconds a hit token read by this node takes on each resource, (N, K)."""
    far_s: FloatArray
    """Seconds a hit token read by the other side takes, (N, K)."""
    miss_s: FloatArray
    """Seconds a miss token takes, (N, K)."""
    read_price: FloatArray
    """Share of the dual value that the storage NIC carries, (N,)."""
    engine_price: FloatArray
    """Share of the dual value that the node's engines carry (GPU, HBM), (N,)."""
    near_cost: FloatArray
    """Cost of a hit token read by this node, s^2, (N,); kept by `priced`."""
    far_cost: FloatArray
    """Cost of a hit token read by the other side, s^2, (N,)."""
    miss_cost: FloatArray
    """Cost of a miss token, s^2, (N,)."""
    orders: IntArray
    """Reads ordered so far, (1,)."""
    given: IntArray
    """Tokens that the node was ever given to read, (N,): settles equal queues."""
    knobs: FloatArray
    """Weight of the prices in seconds, split, hit share; block size in tokens: (4,), see KNOBS."""


KNOBS = ("price_weight_s", "expected_split", "hit_share", "block_tokens")
PRICE_WEIGHT_S, SPLIT, HIT_SHARE, BLOCK_TOKENS = range(4)
