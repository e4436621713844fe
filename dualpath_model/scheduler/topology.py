"""Names and numbers: the arrays of a set of nodes, and the accounts by name that outlive them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from dualpath_model.scheduler.arrays import Engines, Nodes
from dualpath_model.scheduler.events import NodeJoined, PoolName, Settings
from dualpath_model.scheduler.index import tree_of

POOL_NAMES: tuple[PoolName, PoolName] = ("prefill", "decode")


@dataclass(slots=True)
class EngineAccount:
    """What is known of one engine; ``free`` None: all that is not held."""

    seq: int = 0
    tok: int = 0
    held: int = 0
    free: int | None = None
    open: bool = True


@dataclass(slots=True)
class NodeAccount:
    """What is known of one node.

    ``given``: all tokens that it was ever to read; ``reads``: reads that it has to do, ``unannounced``:
    tokens of those that it has not taken up.
    """

    read_q: int = 0
    given: int = 0
    unannounced: int = 0
    reads: int = 0
    backlog_s: tuple[float, ...] = ()


@dataclass(slots=True)
class Accounts:
    """The state that is not in a request, by name."""

    engines: dict[str, EngineAccount] = field(default_factory=dict)
    nodes: dict[str, NodeAccount] = field(default_factory=dict)
    group_cursors: dict[str, str] = field(default_factory=dict)
    """Engine chosen last in turn, by group."""
    pool_cursors: dict[str, str] = field(default_factory=dict)
    """Engine whose group was chosen last in turn, by pool."""
    orders: int = 0


class PoolNumbers:
    """The engines and groups of one pool: names by number and numbers by name."""

    def __init__(self, nodes: list[NodeJoined], groups: Iterable[str]) -> None:
        """Number them: ``groups`` in their order, the nodes of a group together as they joined."""
        present = {node.group for node in nodes}
        self.groups = [group for group in groups if group in present]
        self.group = {name: number for number, name in enumerate(self.groups)}
        self.nodes = sorted(nodes, key=lambda node: self.group[node.group])  # stable: by joining
        self.engines = [engine for node in self.nodes for engine in node.engines]
        self.engine = {name: number for number, name in enumerate(self.engines)}


@dataclass(slots=True)
class State:
    """The arrays of a set of nodes, with the names of their entries."""

    prefill: Engines
    decode: Engines
    nodes: Nodes
    numbers: dict[PoolName, PoolNumbers]
    node_names: list[str]
    node: dict[str, int]
    unannounced: list[int]
    reads: list[int]

    def pool(self, name: PoolName) -> Engines:
        """Return the arrays of one pool."""
        return self.prefill if name == "prefill" else self.decode

    def accounts(self) -> Accounts:
        """Read the accounts back by name."""
        found = Accounts(orders=int(self.nodes.orders[0]))
        for pool in POOL_NAMES:
            numbers, engines = self.numbers[pool], self.pool(pool)
            for i, name in enumerate(numbers.engines):
                found.engines[name] = EngineAccount(
                    int(engines.seq[i]),
                    int(engines.tok[i]),
                    int(engines.held[i]),
                    int(engines.free[i]),
                    bool(engines.open[i]),
                )
            *by_group, of_pool = engines.cursor.tolist()
            for group, last in zip(numbers.groups, by_group, strict=True):
                if last >= 0:
                    found.group_cursors[group] = numbers.engines[last]
            if of_pool >= 0:
                found.pool_cursors[pool] = numbers.engines[of_pool]
        for i, name in enumerate(self.node_names):
            found.nodes[name] = NodeAccount(
                int(self.nodes.read_q[i]),
                int(self.nodes.given[i]),
                self.unannounced[i],
                self.reads[i],
                tuple(self.nodes.backlog_s[i].tolist()),
            )
        return found


def build(
    joined: Mapping[str, NodeJoined],
    accounts: Accounts,
    queued: Mapping[str, int],
    settings: Settings,
) -> State:
    """Return the arrays of the ``joined`` nodes.

    ``queued``: the groups in the order in which they came, with the tokens in their private queues.

    The indexes are left empty: :func:`placement.refresh_all` of the policy fills them.
    """
    numbers = {
        pool: PoolNumbers([node for node in joined.values() if node.pool == pool], queued)
        for pool in POOL_NAMES
    }
    nodes = [*numbers["prefill"].nodes, *numbers["decode"].nodes]
    first_decode = len(numbers["prefill"].nodes)
    prefill = _engines(numbers["prefill"], 0, accounts, queued, "prefill")
    decode = _engines(numbers["decode"], first_decode, accounts, queued, "decode")
    return State(
        prefill,
        decode,
        _nodes(nodes, first_decode, accounts, settings),
        numbers,
        [node.node for node in nodes],
        {node.node: number for number, node in enumerate(nodes)},
        [accounts.nodes[node.node].unannounced for node in nodes],
        [accounts.nodes[node.node].reads for node in nodes],
    )


def _engines(
    numbers: PoolNumbers,
    first_node: int,
    accounts: Accounts,
    queued: Mapping[str, int],
    pool: PoolName,
) -> Engines:
    def ints(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    owners = [node for node in numbers.nodes for _ in node.engines]
    found = [accounts.engines[name] for name in numbers.engines]
    limit = ints(
        [
            node.limits.beta_tokens if pool == "prefill" else node.limits.hbm_tokens
            for node in owners
        ]
    )
    tok, held = ints([account.tok for account in found]), ints([account.held for account in found])
    room = np.maximum(0, limit - held)
    reported = ints([2**62 if account.free is None else account.free for account in found])
    group = ints([numbers.group[node.group] for node in owners])
    node_number = {node.node: first_node + i for i, node in enumerate(numbers.nodes)}
    count, groups = len(found), len(numbers.groups)
    group_tok = ints([queued.get(name, 0) for name in numbers.groups])
    np.add.at(group_tok, group, tok)
    cursors = [accounts.group_cursors.get(group, "") for group in numbers.groups]
    cursors.append(accounts.pool_cursors.get(pool, ""))
    empty = tree_of(np.full(count, 2**62, dtype=np.int64))
    return Engines(
        seq=ints([account.seq for account in found]),
        tok=tok,
        held=held,
        free=np.minimum(room, reported) if pool == "decode" else np.zeros(count, dtype=np.int64),
        limit=limit,
        rate=np.array([node.limits.engine_tokens_per_s for node in owners], dtype=np.float64),
        open=ints([int(account.open) for account in found]),
        node=ints([node_number[node.node] for node in owners]),
        group=group,
        group_first=np.searchsorted(group, np.arange(groups + 1)).astype(np.int64),
        group_tok=group_tok,
        group_held=np.zeros(groups, dtype=np.int64),
        group_free=np.zeros(groups, dtype=np.int64),
        group_open=np.zeros(groups, dtype=np.int64),
        group_rate=np.zeros(groups),
        cursor=ints([numbers.engine.get(name, -1) for name in cursors]),
        key_tree=empty,
        tok_tree=empty.copy(),
        room_tree=empty.copy(),
        group_tree=tree_of(np.full(groups, 2**62, dtype=np.int64)),
        group_room_tree=tree_of(np.full(groups, 2**62, dtype=np.int64)),
    )


def _nodes(
    nodes: list[NodeJoined], first_decode: int, accounts: Accounts, settings: Settings
) -> Nodes:
    count = len(nodes)
    columns = max((len(node.limits.prices.resources) for node in nodes), default=0)
    counts = [len(node.engines) for node in nodes]
    ends = np.concatenate((np.cumsum(counts[:first_decode]), np.cumsum(counts[first_decode:])))
    last = ends.astype(np.int64)
    found = [accounts.nodes[node.node] for node in nodes]
    prices = [node.limits.prices for node in nodes]

    def table(rows: list[tuple[float, ...]]) -> np.ndarray:
        filled = np.zeros((count, columns))
        for i, row in enumerate(rows):
            filled[i, : len(row)] = row[:columns]
        return filled

    return Nodes(
        read_q=np.array([account.read_q for account in found], dtype=np.int64),
        alpha=np.array([node.limits.alpha_tokens for node in nodes], dtype=np.int64),
        read_rate=np.array([node.limits.read_tokens_per_s for node in nodes], dtype=np.float64),
        first=last - np.array(counts, dtype=np.int64),
        last=last,
        decode=np.array([int(i >= first_decode) for i in range(count)], dtype=np.int64),
        backlog_s=table([account.backlog_s for account in found]),
        price=table([price.price for price in prices]),
        near_s=table([price.near_s for price in prices]),
        far_s=table([price.far_s for price in prices]),
        miss_s=table([price.miss_s for price in prices]),
        read_price=np.array([price.read_price for price in prices], dtype=np.float64),
        engine_price=np.array([price.engine_price for price in prices], dtype=np.float64),
        near_cost=np.zeros(count),
        far_cost=np.zeros(count),
        miss_cost=np.zeros(count),
        given=np.array([account.given for account in found], dtype=np.int64),
        orders=np.array([accounts.orders], dtype=np.int64),
        knobs=np.array(
            [
                settings.price_weight_s,
                settings.expected_split,
                settings.hit_share,
                float(settings.block_tokens),
            ]
        ),
    )
