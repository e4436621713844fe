"""Which of a plan's nodes run one SGLang server together, and how its GPUs are split.

SGLang's tensor-parallel group is all GPUs of a server; engines (groups of ``tensor`` GPUs) are its
attention data parallelism, experts its expert parallelism. Without experts spread over engines, the
engines of a node are replicas in one server.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.errors import InputError
from dualpath_model.paths import Pool


@dataclass(frozen=True, slots=True)
class Server:
    """One ``launch_server``: a command on each of its nodes.

    ``positions``: its nodes in the pool; ``kinds``: of what kinds they are; ``width``: GPUs of its
    tensor-parallel group; ``replicas``: engines beside each other, no experts shared; ``attention``:
    engines that share experts; ``expert``: GPUs over which experts are spread, 1: as the tensors are;
    ``number``: of the server on its node, from 0; ``of``: servers on that node.
    """

    pool: str
    positions: tuple[int, ...]
    kinds: tuple[NodeKind, ...]
    width: int
    replicas: int
    attention: int
    expert: int
    number: int = 0
    of: int = 1

    @property
    def shape(self) -> tuple[object, ...]:
        """What servers with the same flags have in common, but host, rank and number."""
        kinds = tuple(kind.positions for kind in self.kinds)
        sizes = (
            len(self.positions),
            self.width,
            self.replicas,
            self.attention,
            self.expert,
            self.of,
        )
        return (self.pool, kinds, sizes)

    @property
    def first_gpu(self) -> int:
        """The first of its node's GPUs that it takes."""
        return self.number * self.width * self.replicas

    @property
    def gpus(self) -> int:
        """GPUs of the server."""
        return self.width * self.replicas


def servers(deployment: Deployment) -> tuple[Server, ...]:
    """Return the plan's servers, prefill first.

    Raises InputError for nodes that one server cannot span and expert groups that do not fill them.
    """
    kinds = {
        (kind.pool, position): kind for kind in deployment.kinds for position in kind.positions
    }
    found: list[Server] = []
    for pool in (Pool.PREFILL.value, Pool.DECODE.value):
        groups: dict[str, list[int]] = {}
        for node in deployment.nodes:
            if node.pool == pool:
                groups.setdefault(node.group, []).append(int(node.node[1:]))
        for positions in groups.values():
            members = tuple(kinds[pool, position] for position in positions)
            found += _servers(pool, tuple(positions), members)
    return tuple(found)


def _servers(pool: str, positions: tuple[int, ...], members: tuple[NodeKind, ...]) -> list[Server]:
    kinds = tuple({member.positions: member for member in members}.values())
    kind = kinds[0]
    if len({(k.gpus, k.tensor) for k in kinds}) > 1:
        listed = " and ".join(f"{k.gpus}" for k in kinds)
        raise InputError(
            f"plan: {pool} nodes {', '.join(map(str, positions))} share experts but have {listed} GPUs; "
            f"SGLang takes the same number on every node of a server, so put nodes that are alike "
            f"beside each other in the scenario"
        )
    if len(positions) > 1:
        width = kind.gpus * len(positions)
        return [Server(pool, positions, kinds, width, 1, width // kind.tensor, width)]
    width = min(max(kind.tensor, kind.expert), kind.gpus)
    if width == kind.tensor:
        return [Server(pool, positions, kinds, width, kind.engines, 1, 1)]
    if kind.gpus % width or width % kind.tensor:
        raise InputError(
            f"plan: expert parallelism {kind.expert} of {pool} nodes of {kind.gpus} GPUs with tensor "
            f"parallelism {kind.tensor} leaves GPUs over; SGLang needs tensor to divide expert and "
            f"expert to divide the node's GPUs, so make the plan again with another parallelism"
        )
    of = kind.gpus // width
    return [
        Server(pool, positions, kinds, width, 1, width // kind.tensor, width, number, of)
        for number in range(of)
    ]
