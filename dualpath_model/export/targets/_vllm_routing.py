"""``routing.json``: what a proxy before the servers needs; :mod:`dualpath_model.routing` reads it."""

from __future__ import annotations

from collections.abc import Sequence

from dualpath_model.deployment import NodeKind
from dualpath_model.export.quoting import one_line
from dualpath_model.export.site import bracketed, host, of_fields, of_site, port
from dualpath_model.export.target import Asked
from dualpath_model.export.targets._vllm_layout import Server
from dualpath_model.export.targets._vllm_transfer import (
    blocks_ttl_s,
    checked_host,
    peers,
    pulls,
)
from dualpath_model.export.values import Document, Value, derived, fixed
from dualpath_model.paths import Pool
from dualpath_model.routing import FORMAT, VERSION, other_weights


def routing_document(asked: Asked, found: Sequence[Server]) -> dict[str, Document]:
    """Return the file as a document."""
    plan, deployment = asked.plan, asked.deployment
    can = peers(asked) or pulls(deployment)
    document: dict[str, Document] = {
        "format": fixed(FORMAT, "what the file is"),
        "version": fixed(VERSION, "of this format"),
        "scenario": derived(plan.scenario, "name of the scenario"),
        "decode_reads": derived(
            "pull" if pulls(deployment) else "p2p" if can else "none",
            "how hits come through a decode node: from its p2p tier, by a pull from its HBM, or not at "
            "all in this version of vLLM",
        ),
        "split": derived(
            plan.split if can else 0.0,
            "share of sessions that read through their decode node: the plan's split"
            if can
            else "0: this version of vLLM cannot",
            "fraction",
            split=plan.split,
        ),
        "alpha_s": derived(
            deployment.alpha_s, "scheduler.alpha: a read queue is short up to here", "s"
        ),
        "beta_s": derived(deployment.beta_s, "scheduler.beta: an engine is full from here", "s"),
        "scheduler": fixed("scheduler.json", "limits of each node, for routing by live queues"),
    }
    ttl = blocks_ttl_s(deployment)
    if pulls(deployment) and ttl is not None:
        document["keep_s"] = derived(
            ttl, "decoder_kv_blocks_ttl: later than this there is nothing to pull", "s"
        )
    document["prefill"] = _engines(asked, found, Pool.PREFILL.value)
    document["decode"] = _engines(asked, found, Pool.DECODE.value)
    return document


def _engines(asked: Asked, found: Sequence[Server], pool: str) -> list[Document]:
    servers = [server for server in found if server.pool == pool]
    reads, others = _weights(asked, servers)
    entries: list[Document] = []
    for server in servers:
        for place, engine in enumerate(server.engines):
            entry: dict[str, Document] = {
                "engine": derived(engine, "name of the engine in the scheduler"),
                "node": derived(server.node, "name of the node in the scheduler"),
                "url": _url(asked, server),
                "data_parallel_rank": derived(
                    place if server.ranks > 1 else None,
                    "X-data-parallel-rank of a request: place among the server's engines",
                ),
                "read_weight": _weight(reads[server.node], server, "sessions that read here"),
                "other_weight": _weight(others[server.node], server, "all other sessions"),
            }
            if pool == Pool.DECODE.value and peers(asked):
                number = port(asked.site, "p2p", server.port_offset(place))
                entry["p2p"] = {
                    "host": checked_host(asked, server),
                    "port": of_site(asked.site, "ports.p2p", number),
                }
            entries.append(entry)
    return entries


def _url(asked: Asked, server: Server) -> Value:
    name = bracketed(str(host(asked.site, server.pool, server.position).value))
    url = f"http://{name}:{port(asked.site, 'server', server.number)}"
    return of_fields(asked.site, (f"hosts.{server.pool}", "ports.server"), url)


def _weight(of_node: float, server: Server, who: str) -> Value:
    # rounded: the figure comes from a solver, and the file must not change with its last digits
    return derived(
        float(f"{of_node / server.kind.engines:.9g}"),
        f"part of the pool's {who}: the node's / its engines; from the LP's read weights and each "
        f"node's part of the pool's compute",
        "fraction",
        node=one_line(server.node),
        engines=server.kind.engines,
    )


def _weights(asked: Asked, servers: Sequence[Server]) -> tuple[dict[str, float], dict[str, float]]:
    """Return each node's part of the reads of its pool, and of the sessions that read elsewhere."""
    plan = asked.plan
    pool = servers[0].pool
    kinds = {server.node: server.kind for server in servers}
    own = {
        f"{p.pool[0]}{p.node}": p.read_weight
        for p in plan.scheduler_parameters.nodes
        if p.pool == pool
    }
    reads = {node: own.get(node, 0.0) for node in kinds}
    total = sum(reads.values())
    work = {node: _compute(kind) for node, kind in kinds.items()}
    everything = sum(work.values())
    work = {node: part / everything for node, part in work.items()}
    reads = {node: part / total for node, part in reads.items()} if total > 0 else dict(work)
    share = plan.split if pool == Pool.DECODE.value else 1.0 - plan.split
    return reads, other_weights(work, reads, share)


def _compute(kind: NodeKind) -> float:
    """Return what a node's part of its pool's requests goes by."""
    if kind.pool == Pool.PREFILL.value:
        return kind.engines * kind.prefill_tokens_per_s
    batch, step = kind.decode_batch, kind.decode_step_s
    return kind.engines * (batch / step if batch is not None and step else 1.0)
