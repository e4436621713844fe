"""Which ``vllm serve`` commands a plan needs: one for each node, or for each part of it.

Engines that share experts are the data-parallel ranks of one deployment, which may span nodes; each of
its nodes has a command with the node's own ranks (vLLM's hybrid load balancing), or one for a deployment
inside the node. Engines that share nothing are servers of their own, as vLLM advises for LLMs without
experts, each on its part of the node's GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.errors import InputError
from dualpath_model.paths import Pool

Member = tuple[int, tuple[str, ...]]
"""A node of a group: its position in the pool, and its engines' names."""


@dataclass(frozen=True, slots=True)
class Server:
    """One ``vllm serve``.

    ``position``: its node in the pool; ``number``: of the command on its node, of ``of``; ``engines``:
    their names in the scheduler, in rank order; ``first_rank``: of its engines in the deployment of
    ``ranks`` engines, whose first node is ``head`` and least quota ``quota_tokens``: its engines run in
    step.
    """

    pool: str
    position: int
    kind: NodeKind
    number: int
    of: int
    engines: tuple[str, ...]
    first_rank: int
    ranks: int
    head: int
    quota_tokens: int

    @property
    def name(self) -> str:
        """What its files are called."""
        part = f"-server-{self.number}" if self.of > 1 else ""
        return f"{self.pool}-{self.position}{part}"

    @property
    def node(self) -> str:
        """The node's name in the scheduler."""
        return self.engines[0].partition("/")[0]

    @property
    def spans_nodes(self) -> bool:
        """Whether other nodes have engines of the same deployment."""
        return self.ranks > len(self.engines)

    @property
    def gpus(self) -> tuple[int, ...]:
        """The node's GPUs that it takes."""
        count = len(self.engines) * self.kind.tensor
        return tuple(range(self.number * count, (self.number + 1) * count))

    @property
    def base(self) -> int:
        """What is added to a port of the site for what the server is told: servers of a node differ."""
        return self.number * len(self.engines)

    def port_offset(self, place: int) -> int:
        """Return what lies between a port of the site and that of its engine ``place``: vLLM adds the
        engine's rank to the port that it is told.
        """
        return self.base + self.first_rank + place


def servers(deployment: Deployment) -> tuple[Server, ...]:
    """Return the plan's servers, prefill first, in node order.

    Raises InputError for expert groups that do not fill their nodes.
    """
    kinds = {
        (kind.pool, position): kind for kind in deployment.kinds for position in kind.positions
    }
    found: list[Server] = []
    for pool in (Pool.PREFILL.value, Pool.DECODE.value):
        members = sorted(
            (int(node.node[1:]), node.engines) for node in deployment.nodes if node.pool == pool
        )
        for together in _groups([(member, kinds[pool, member[0]]) for member in members]):
            found += _of_group(pool, together)
    return tuple(found)


def _groups(members: list[tuple[Member, NodeKind]]) -> list[list[tuple[Member, NodeKind]]]:
    """Return which nodes share experts: neighbours that are split alike, as many as the plan's expert
    group spans.
    """
    groups: list[list[tuple[Member, NodeKind]]] = []
    for member, kind in members:
        last = groups[-1] if groups else []
        alike = last and _split(last[0][1]) == _split(kind)
        if alike and len(last) < max(1, kind.expert // kind.gpus):
            last.append((member, kind))
        else:
            groups.append([(member, kind)])
    return groups


def _split(kind: NodeKind) -> tuple[int, int, int]:
    return (kind.gpus, kind.tensor, kind.expert)


def _of_group(pool: str, members: list[tuple[Member, NodeKind]]) -> list[Server]:
    if len(members) == 1:
        (((position, engines), kind),) = members
        return _of_node(pool, position, engines, kind)
    ranks = sum(len(engines) for (_, engines), _ in members)
    quota = min(kind.quota_tokens for _, kind in members)
    head = members[0][0][0]
    found, first = [], 0
    for (position, engines), kind in members:
        found.append(Server(pool, position, kind, 0, 1, engines, first, ranks, head, quota))
        first += len(engines)
    return found


def _of_node(pool: str, position: int, engines: tuple[str, ...], kind: NodeKind) -> list[Server]:
    width = min(max(kind.tensor, kind.expert), kind.gpus)
    if kind.gpus % width or width % kind.tensor:
        raise InputError(
            f"plan: expert parallelism {kind.expert} of {pool} nodes of {kind.gpus} GPUs with tensor "
            f"parallelism {kind.tensor} leaves GPUs over; vLLM needs tensor to divide expert and expert "
            f"to divide the node's GPUs, so make the plan again with another parallelism"
        )
    each = width // kind.tensor
    of = kind.gpus // width
    return [
        Server(
            pool,
            position,
            kind,
            number,
            of,
            engines[number * each : (number + 1) * each],
            first_rank=0,
            ranks=each,
            head=position,
            quota_tokens=kind.quota_tokens,
        )
        for number in range(of)
    ]
