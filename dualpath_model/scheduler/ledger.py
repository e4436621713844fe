"""The ledger: which nodes there are, and the accounts of their engines, queues and HBM.

It knows no requests and no events, only names and amounts; the amounts are kept in arrays by the
functions of :mod:`placement`, bound to the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.scheduler import checks, placement
from dualpath_model.scheduler.events import (
    MOST_TOKENS,
    EngineReport,
    Fetch,
    Limits,
    NodeJoined,
    PoolName,
    Settings,
)
from dualpath_model.scheduler.index import IntArray
from dualpath_model.scheduler.policies import policy_named
from dualpath_model.scheduler.topology import Accounts, EngineAccount, NodeAccount, State, build


class ReportError(InputError):
    """A report with impossible numbers; ``closed``: the engines that get no work for it."""

    def __init__(self, message: str, closed: tuple[str, ...]) -> None:
        """Keep the names of the engines."""
        super().__init__(message)
        self.closed = closed


class PrefillRow(NamedTuple):
    """One row of ``placed`` of :func:`placement.place_prefill`; reads are -1 while not decided."""

    engine: str
    engine_class: int
    on_prefill: int
    on_decode: int
    tok: int
    read_q: int


class DecodeRow(NamedTuple):
    """One row of ``placed`` of :func:`placement.place_decode`; reads are -1 while not decided."""

    engine: str
    balanced: int
    on_prefill: int
    on_decode: int
    seq: int
    tok: int
    free_tokens: int


class Ledger:
    """Nodes, engines and their accounts under one policy."""

    def __init__(self, settings: Settings, *, compiled: bool) -> None:
        """Start without nodes."""
        self.compiled = compiled
        self.joined: dict[str, NodeJoined] = {}
        self.node_of: dict[str, str] = {}
        """Node of each engine."""
        self.lost_engines: set[str] = set()
        self.lost_nodes: set[str] = set()
        self.lost_groups: set[str] = set()
        self.queued: dict[str, int] = {}
        """Tokens in each group's private queue."""
        self._accounts: Accounts | None = Accounts()
        self._state: State | None = None
        self.follow(settings)

    def follow(self, settings: Settings) -> None:
        """Take the functions of :mod:`placement` that follow the policy of ``settings``."""
        self.by_name()
        self.settings = settings
        self.policy = policy_named(settings.policy)

        def bind(function: Callable[..., Any]) -> Callable[..., Any]:
            return self.policy.bind(function, compiled=self.compiled)

        self._place_prefill = bind(placement.place_prefill)
        self._place_decode = bind(placement.place_decode)
        self._designate_prefill = bind(placement.designate_prefill)
        self._designate_decode = bind(placement.designate_decode)
        self._add_prefill = bind(placement.add_prefill)
        self._add_decode = bind(placement.add_decode)
        self._add_read = bind(placement.add_read)
        self._add_transfers = bind(placement.add_transfers)
        self._refresh_prefill = bind(placement.refresh_prefill)
        self._refresh_decode = bind(placement.refresh_decode)
        self._refresh_node = bind(placement.refresh_node)
        self._refresh_all = bind(placement.refresh_all)
        self._add_group_tokens = bind(placement.add_group_tokens)
        self._recount_group = bind(placement.recount_group)

    # ---- two forms of the same accounts ------------------------------------------------------

    def by_name(self) -> Accounts:
        """Return the accounts by name; the arrays are made again when next needed."""
        if self._accounts is None:
            assert self._state is not None
            self._accounts = self._state.accounts()
            self._state = None
        return self._accounts

    def state(self) -> State:
        """Return the accounts as arrays, with the index."""
        if self._state is None:
            assert self._accounts is not None
            self._state = build(self.joined, self._accounts, self.queued, self.settings)
            self._accounts = None
            self._refresh_all(self._state.prefill, self._state.decode, self._state.nodes)
        return self._state

    def accounts(self) -> Accounts:
        """Return a copy of the accounts by name; the arrays stay as they are."""
        return self.state().accounts()

    def restore(self, joined: Sequence[NodeJoined], accounts: Accounts) -> None:
        """Take over nodes and accounts, as :meth:`accounts` gave them."""
        self.joined = {node.node: node for node in joined}
        self.node_of = {engine: node.node for node in joined for engine in node.engines}
        self._accounts, self._state = accounts, None

    # ---- membership --------------------------------------------------------------------------

    def join_node(self, node: NodeJoined) -> None:
        """Add a node with its engines. Raises InputError if it contradicts what is there."""
        checks.node_joined(node)
        if node.node in self.joined:
            raise InputError(f"node '{node.node}' has joined already; report its loss first")
        pool = self.pool_of(node.group)
        if pool not in (None, node.pool):
            raise InputError(
                f"node '{node.node}': group '{node.group}' is of the {pool} pool; a group has one "
                f"pool, so give another name"
            )
        self._check_new(node.engines)
        accounts = self.by_name()
        given = [account.given for account in accounts.nodes.values()]
        self.joined[node.node] = node
        # a newcomer counts as average, or it would win every tie until it has caught up with the rest
        accounts.nodes[node.node] = NodeAccount(given=sum(given) // max(1, len(given)))
        self.lost_nodes.discard(node.node)
        self.lost_groups.discard(node.group)
        self.queued.setdefault(node.group, 0)
        self._welcome(node.node, node.engines)

    def join_engine(self, engine: str, node: str) -> None:
        """Add an engine to a node. Raises InputError if it cannot be."""
        checks.named("engine", engine)
        if node not in self.joined:
            raise InputError(f"engine '{engine}': node '{node}' is unknown; the node joins first")
        self._check_new((engine,))
        self.by_name()
        owner = self.joined[node]
        self.joined[node] = replace(owner, engines=(*owner.engines, engine))
        self._welcome(node, (engine,))

    def lose_engines(self, node: str, engines: Sequence[str]) -> None:
        """Remove engines of one node; nothing may be placed on them any more."""
        accounts = self.by_name()
        for engine in engines:
            del accounts.engines[engine]
            del self.node_of[engine]
        owner = self.joined[node]
        left = tuple(engine for engine in owner.engines if engine not in engines)
        self.joined[node] = replace(owner, engines=left)
        self.lost_engines.update(engines)

    def lose_node(self, node: str) -> None:
        """Remove a node that has no engines any more."""
        accounts = self.by_name()
        group = self.joined.pop(node).group
        del accounts.nodes[node]
        self.lost_nodes.add(node)
        if self.pool_of(group) is None:
            self.lost_groups.add(group)
            del self.queued[group]

    def set_limits(self, limits: Mapping[str, Limits]) -> None:
        """Change the limits of nodes. Raises InputError for an unknown node or a bad value."""
        for name, value in limits.items():
            if name not in self.joined:
                raise InputError(f"limits of node '{name}': it is unknown; it joins first")
            checks.limits(name, self.joined[name].pool, value)
        accounts = self.by_name()
        for name, value in limits.items():
            if value.hbm_tokens != self.joined[name].limits.hbm_tokens:
                for engine in self.joined[name].engines:
                    accounts.engines[engine].free = None
            self.joined[name] = replace(self.joined[name], limits=value)
        for account in accounts.nodes.values():  # counted at the old costs: the caller counts again
            account.backlog_s = ()

    def group_of(self, engine: str) -> str:
        """Return the group of a joined engine."""
        return self.joined[self.node_of[engine]].group

    def pool_of(self, group: str) -> PoolName | None:
        """Return the pool of a group; None if it has no nodes."""
        if self._state is not None:
            return next((p for p, n in self._state.numbers.items() if group in n.group), None)
        return next((n.pool for n in self.joined.values() if n.group == group), None)

    def largest_hbm_tokens(self) -> int | None:
        """Return the HBM of the largest decode engine, closed ones too; None where there is none."""
        limit = self.state().decode.limit
        return int(limit.max()) if limit.size else None

    def largest_open_tokens(self, group: str) -> int:
        """Return the limit of the group's largest open engine: HBM or beta; -1 where there is none."""
        state = self.state()
        pool = self.pool_of(group)
        assert pool is not None
        engines, number = state.pool(pool), state.numbers[pool].group[group]
        first, last = engines.group_first[number], engines.group_first[number + 1]
        limits = engines.limit[first:last][engines.open[first:last] > 0]
        return int(limits.max()) if limits.size else -1

    def can_hold(self, engine: str, hold_tokens: int, spared: int) -> bool:
        """Return whether an open decode engine has room once ``spared`` tokens are given back."""
        state = self.state()
        number = state.numbers["decode"].engine[engine]
        room = int(state.decode.free[number]) + spared
        return bool(state.decode.open[number]) and room >= hold_tokens

    def can_prefill(self, engine: str, spared: int) -> bool:
        """Return whether an open prefill engine is within beta once ``spared`` tokens are given back."""
        state = self.state()
        number = state.numbers["prefill"].engine[engine]
        tok = int(state.prefill.tok[number]) - spared
        return bool(state.prefill.open[number]) and tok <= state.prefill.limit[number]

    def engine_number(self, pool: PoolName, engine: str) -> int:
        """Return an engine's number in its pool."""
        return self.state().numbers[pool].engine[engine]

    def _check_new(self, engines: Iterable[str]) -> None:
        for engine in engines:
            if engine in self.node_of:
                raise InputError(f"engine '{engine}' has joined already; report its loss first")

    def _welcome(self, node: str, engines: Iterable[str]) -> None:
        accounts = self.by_name()
        for engine in engines:
            accounts.engines[engine] = EngineAccount()
            self.node_of[engine] = node
            self.lost_engines.discard(engine)

    # ---- reports -----------------------------------------------------------------------------

    def take_report(self, fetch: Fetch, pool: PoolName) -> None:
        """Adopt what a leader reports, all of it or nothing.

        Raises ReportError for impossible numbers, with the engines to :meth:`close` for them; InputError
        for names of others.
        """
        checks.report(fetch)
        state = self.state()
        numbers = state.numbers[pool]
        engines = {
            numbers.engine[name]: (name, report)
            for name, report in fetch.engines.items()
            if self._is_in(fetch.group, self.node_of.get(name))
        }
        nodes = {
            state.node[name]: (name, tokens)
            for name, tokens in fetch.read_q.items()
            if self._is_in(fetch.group, name)
        }
        at_fault, faults = self._faults(state, pool, engines, nodes)
        if faults:
            closed = tuple(numbers.engines[engine] for engine in sorted(set(at_fault)))
            raise ReportError(
                f"{faults[0]}; the engine gets no work until a good report names it", closed
            )
        self._check_names(fetch)
        named = {*engines, *(engine for node in nodes for engine in _engines_of(state, node))}
        for engine, (_, report) in engines.items():
            _adopt(state, pool, engine, report)
        for node, (_, tokens) in nodes.items():
            state.nodes.read_q[node] = tokens + state.unannounced[node]
            self._refresh_node(state.prefill, state.decode, state.nodes, node)
        self._open(state, pool, named, True)

    def _faults(
        self,
        state: State,
        pool: PoolName,
        engines: Mapping[int, tuple[str, EngineReport]],
        nodes: Mapping[int, tuple[str, int]],
    ) -> tuple[list[int], list[str]]:
        """Return the engines with impossible numbers, and what is wrong, a sentence each."""
        at_fault: list[int] = []
        faults: list[str] = []
        for engine, (name, report) in engines.items():
            most = int(state.decode.limit[engine]) if pool == "decode" else MOST_TOKENS
            try:
                checks.engine_report(name, report, most)
            except InputError as error:
                at_fault.append(engine)
                faults.append(str(error))
        for node, (name, tokens) in nodes.items():
            try:
                checks.whole(f"report on node '{name}': read_q", tokens)
            except InputError as error:
                at_fault.extend(_engines_of(state, node))
                faults.append(str(error))
        return at_fault, faults

    def close(self, engines: Iterable[str]) -> None:
        """Give engines no more work until an accepted report names them."""
        state = self.state()
        for pool, numbers in state.numbers.items():
            mine = [numbers.engine[name] for name in engines if name in numbers.engine]
            self._open(state, pool, mine, False)

    def _is_in(self, group: str, node: str | None) -> bool:
        return node in self.joined and self.joined[node].group == group

    def _check_names(self, fetch: Fetch) -> None:
        """Raise InputError for a name that is not the group's, unless it is lost."""
        for kind, names, lost in (
            ("engine", fetch.engines, self.lost_engines),
            ("node", fetch.read_q, self.lost_nodes),
        ):
            for name in names:
                node = self.node_of.get(name) if kind == "engine" else name
                if name not in lost and not self._is_in(fetch.group, node):
                    raise InputError(
                        f"report of group '{fetch.group}': {kind} '{name}' is not one of its {kind}s; "
                        f"a leader reports on its own, once they have joined"
                    )

    def _open(self, state: State, pool: PoolName, numbers: Iterable[int], is_open: bool) -> None:
        """Let engines get work or not, and bring the index up to date with them."""
        engines = state.pool(pool)
        refresh = self._refresh_prefill if pool == "prefill" else self._refresh_decode
        groups = set()
        for engine in numbers:
            engines.open[engine] = int(is_open)
            refresh(engines, state.nodes, engine)
            groups.add(int(engines.group[engine]))
        for group in groups:
            self._recount_group(engines, group)

    # ---- placing and leaving -----------------------------------------------------------------

    def designate(self, pool: PoolName, prompt_tokens: int, hold_tokens: int) -> str | None:
        """Choose the group that a request waits for, its tokens counted there; None: any, or none."""
        state = self.state()
        if pool == "prefill":
            number = self._designate_prefill(state.prefill, prompt_tokens)
        else:
            number = self._designate_decode(state.decode, prompt_tokens, hold_tokens)
        if number < 0:
            return None
        group = state.numbers[pool].groups[number]
        self.queued[group] += prompt_tokens
        return str(group)

    def unqueue(self, group: str, prompt_tokens: int) -> None:
        """Take tokens out of a group's private queue again."""
        state = self.state()
        pool = self.pool_of(group)
        assert pool is not None
        self._add_group_tokens(state.pool(pool), state.numbers[pool].group[group], -prompt_tokens)
        self.queued[group] -= prompt_tokens

    def place_prefill(
        self,
        group: str,
        prompt: Sequence[int],
        hit: Sequence[int],
        decode_engine: Sequence[str | None],
    ) -> list[PrefillRow]:
        """Place requests in order until one finds no engine; return where each of those went."""
        state = self.state()
        numbers = state.numbers["prefill"]
        queued_here = self.policy.queues_prefill
        placed = np.zeros((len(prompt), 6), dtype=np.int64)
        count = self._place_prefill(
            state.prefill,
            state.decode,
            state.nodes,
            numbers.group[group],
            queued_here,
            _column(prompt),
            _column(hit),
            _numbers(decode_engine, state.numbers["decode"].engine),
            placed,
        )
        if queued_here:
            self.queued[group] -= sum(prompt[:count])
        return [PrefillRow(numbers.engines[row[0]], *row[1:]) for row in placed[:count].tolist()]

    def place_decode(
        self,
        group: str,
        prompt: Sequence[int],
        hit: Sequence[int],
        hold: Sequence[int],
        prefill_engine: Sequence[str | None],
    ) -> tuple[list[DecodeRow], int]:
        """Place requests of the group's queue in order: as :meth:`place_prefill`, and Z in tokens."""
        state = self.state()
        numbers = state.numbers["decode"]
        placed = np.zeros((len(prompt), 7), dtype=np.int64)
        count, balanced = self._place_decode(
            state.prefill,
            state.decode,
            state.nodes,
            numbers.group[group],
            self.settings.z_factor,
            _column(prompt),
            _column(hit),
            _column(hold),
            _numbers(prefill_engine, state.numbers["prefill"].engine),
            placed,
        )
        self.queued[group] -= sum(prompt[:count])
        rows = [DecodeRow(numbers.engines[row[0]], *row[1:]) for row in placed[:count].tolist()]
        return rows, int(balanced)

    def free_tokens(self, group: str) -> int:
        """Return the free HBM of a decode group's open engines, tokens."""
        state = self.state()
        return int(state.decode.group_free[state.numbers["decode"].group[group]])

    def order_read(self, node: str, tokens: int) -> None:
        """Note a read that was counted when it was decided; the node's reports do not have it yet."""
        state = self.state()
        state.reads[state.node[node]] += 1
        state.unannounced[state.node[node]] += tokens

    def announce(self, node: str, tokens: int) -> None:
        """Note that the node's own reports have a read from now on."""
        state = self.state()
        state.unannounced[state.node[node]] -= tokens

    def leave_read(self, node: str, tokens: int) -> None:
        """Count a node's read as done or given up; a node without any read has an empty queue."""
        state = self.state()
        number = state.node[node]
        state.reads[number] -= 1
        left = -tokens if state.reads[number] else -int(state.nodes.read_q[number])
        self._add_read(state.prefill, state.decode, state.nodes, number, left)

    def leave_prefill(self, engine: str, prompt_tokens: int) -> None:
        """Count a request as gone from a prefill engine."""
        state = self.state()
        number = state.numbers["prefill"].engine[engine]
        self._add_prefill(state.prefill, state.nodes, number, -1, -prompt_tokens)

    def leave_decode(self, engine: str, prompt_tokens: int, hold_tokens: int) -> None:
        """Count a request as gone from a decode engine and its HBM."""
        state = self.state()
        number = state.numbers["decode"].engine[engine]
        self._add_decode(state.decode, state.nodes, number, -1, -prompt_tokens, -hold_tokens)

    def count_transfers(
        self,
        prefill_engine: str,
        decode_engine: str,
        read: tuple[int, int],
        miss_tokens: int,
        sign: int,
    ) -> None:
        """Count a request's transfers between its nodes' memories: 1 to do, -1 done or given up."""
        state = self.state()
        self._add_transfers(
            state.prefill,
            state.decode,
            state.nodes,
            state.node[self.node_of[prefill_engine]],
            state.node[self.node_of[decode_engine]],
            *read,
            miss_tokens,
            sign,
        )


def _engines_of(state: State, node: int) -> range:
    return range(int(state.nodes.first[node]), int(state.nodes.last[node]))


def _adopt(state: State, pool: PoolName, engine: int, report: EngineReport) -> None:
    engines = state.pool(pool)
    if report.seq is not None:
        engines.seq[engine] = report.seq
    if report.tok is not None:
        engines.group_tok[engines.group[engine]] += report.tok - engines.tok[engine]
        engines.tok[engine] = report.tok
    if report.free_tokens is not None and pool == "decode":
        room = max(0, int(engines.limit[engine] - engines.held[engine]))
        engines.free[engine] = min(room, report.free_tokens)


def _column(values: Sequence[int]) -> IntArray:
    return np.array(values, dtype=np.int64)


def _numbers(names: Sequence[str | None], numbers: Mapping[str, int]) -> IntArray:
    return _column([-1 if name is None else numbers[name] for name in names])
