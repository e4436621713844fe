"""Target ``vllm``: a command and a ``--kv-transfer-config`` for each server, and ``routing.json``.

Prefill nodes read hits from their own ``fs`` tier, or, for requests that the proxy tags with
``remote_kv_source``, from the ``p2p`` tier of a decode node, which promotes what its DRAM lacks from its
own ``fs`` tier. That is the plan's decode-side read, by way of the prefill node's DRAM and request by
request. Plans of framework ``vllm-pull`` get bidirectional Nixl transfers instead. The wheels of the
versions in :mod:`vllm_keys` were read.
"""

from __future__ import annotations

from collections.abc import Sequence

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.export.documents import File, command_file, json_file
from dualpath_model.export.site import check_apart, in_front, of_site, port
from dualpath_model.export.target import (
    Asked,
    Bundle,
    Dropped,
    Step,
    Target,
    no_decode_reads,
    no_qos,
)
from dualpath_model.export.targets import scheduler
from dualpath_model.export.targets._vllm_layout import Server, servers
from dualpath_model.export.targets._vllm_routing import routing_document
from dualpath_model.export.targets._vllm_transfer import (
    blocks_ttl_s,
    buffer_of_engine,
    command,
    peers,
    pull_is_sooner,
    pulls,
    transfer_config,
)
from dualpath_model.export.values import fixed
from dualpath_model.export.vllm_keys import REMOTE_SOURCE_SINCE, VERSIONS
from dualpath_model.paths import Pool
from dualpath_model.scheduler.attention import AttentionTime, chunk_seconds

_MOST_PEERS = 128
"""VLLM_P2P_MAX_PEERS: sessions that one p2p tier holds unless it is set."""


def build(asked: Asked) -> Bundle:
    """Return the files of every server of the plan, for the proxy and for the scheduler."""
    found = servers(asked.deployment)
    _check_ports(asked, found)
    files: list[File] = []
    lacking: dict[str, None] = {}
    for server in found:
        config, notes = transfer_config(asked, server)
        lacking |= dict.fromkeys(notes)
        about = f"--kv-transfer-config of {_what(server)}"
        files.append(json_file(f"nodes/{server.name}.json", about, config))
        files.append(
            command_file(
                f"nodes/{server.name}.sh",
                f"starts vLLM: {_what(server)}",
                [command(asked, server, config)],
                head=(
                    f"vLLM {asked.version}: {_what(server)}, nodes of kind {server.kind.name}.",
                    f"--kv-transfer-config is {server.name}.json in one line.",
                ),
            )
        )
    about = "engines, split, weights and p2p addresses, for a proxy (examples/vllm_proxy)"
    files.append(json_file("routing.json", about, routing_document(asked, found)))
    files += scheduler.build(asked).files
    files.append(_proxy(asked))
    return Bundle(tuple(files), _dropped(asked), (*lacking, *_notes(asked, found)))


def _proxy(asked: Asked) -> File:
    flags = {
        "--host": of_site(asked.site, "hosts.proxy"),
        "--port": of_site(asked.site, "ports.proxy", port(asked.site, "proxy")),
        "--mode": fixed("plan", "by the plan's weights; live: the reference scheduler decides"),
    }
    return command_file(
        "proxy.sh",
        "starts the example proxy in front; run it in this folder",
        [(("python", "-m", "examples.vllm_proxy", "routing.json"), flags)],
        head=(
            "PYTHONPATH must name a checkout of the toolkit, whose examples/ has the proxy;",
            "Python needs dualpath-model, httpx and uvicorn.",
        ),
    )


def _what(server: Server) -> str:
    part = f", server {server.number} of {server.of}" if server.of > 1 else ""
    return f"{server.pool} node {server.position}{part}"


def _check_ports(asked: Asked, found: Sequence[Server]) -> None:
    """Raise InputError where two things of a node would listen on the same port."""
    most = max(server.port_offset(len(server.engines) - 1) for server in found)
    for field in ("side_channel", *(["p2p"] if peers(asked) else [])):
        port(asked.site, field, most)  # of all nodes, so that the remedy is for all of them
    nodes: dict[str, list[tuple[str, list[int]]]] = {}
    for server in found:
        wanted = nodes.setdefault(f"{server.pool} node {server.position}", [])
        engines = [server.port_offset(place) for place in range(len(server.engines))]
        wanted += [("server", [server.number]), ("side_channel", engines)]
        if peers(asked):
            wanted.append(("p2p", engines))
        if server.spans_nodes and server.position == server.head:
            wanted.append(("data_parallel", [0]))
        if server.number == 0 and in_front(asked.site, server.pool, server.position):
            wanted.append(("proxy", [0]))
    for node, wanted in nodes.items():
        check_apart(asked.site, node, wanted)


# ---- what is left out ------------------------------------------------------------------------------


def _dropped(asked: Asked) -> tuple[Dropped, ...]:
    plan, deployment = asked.plan, asked.deployment
    dropped = []
    if not pulls(deployment) and not peers(asked):
        dropped.append(
            no_decode_reads(
                plan,
                "requests have remote_kv_source and kv_load_tiers from vLLM "
                f"{REMOTE_SOURCE_SINCE} on, these files are for {asked.version}",
            )
        )
    if pulls(deployment) and plan.split < 1.0:
        dropped.append(_pinned(asked))
    if deployment.framework not in ("vllm", "vllm-pull"):
        dropped.append(_other_framework(asked))
        dropped.append(_layers(deployment))
    quota = _quota(deployment)
    if quota is not None:
        dropped.append(quota)
    dropped.append(
        Dropped(
            f"Z = {plan.scheduler_parameters.z_factor:g}, alpha and beta as limits of queues",
            "a server's queue is its own; --max-num-seqs bounds what runs, not what waits",
            "none with the proxy's live mode, which asks the reference scheduler; in plan mode "
            "queues follow the weights of routing.json: compare `vllm:num_requests_waiting` of "
            "the servers",
        )
    )
    dropped.append(no_qos(plan))
    return tuple(dropped)


def _pinned(asked: Asked) -> Dropped:
    plan, deployment = asked.plan, asked.deployment
    ttl = blocks_ttl_s(deployment) or 480
    room = sum(k.count * k.engines * k.hbm_tokens for k in deployment.pool(Pool.DECODE))
    prompt = deployment.workload.prompt_tokens.mean + deployment.workload.output_tokens.mean
    held = (1.0 - plan.split) * plan.throughput_requests_per_s * ttl * prompt
    return Dropped(
        f"split x = {plan.split:.3f}: turns whose KV-cache is not kept",
        "with bidirectional_kv_xfer a decode node keeps the blocks of every turn until they are "
        "pulled or their time is over; no request can say otherwise",
        f"the other {1 - plan.split:.0%} of the turns hold up to {held:.3g} tokens of HBM at the "
        f"plan's rate, {held / room:.0%} of what decode nodes have",
    )


def _other_framework(asked: Asked) -> Dropped:
    plan, deployment = asked.plan, asked.deployment
    rates = [
        sum(k.count * k.cnics * k.cnic_bytes_per_s for k in deployment.pool(pool))
        for pool in (Pool.PREFILL, Pool.DECODE)
    ]
    size = deployment.workload.hit_tokens.mean * deployment.llm.kv_bytes_per_token
    moved = plan.throughput_requests_per_s * size
    return Dropped(
        f"the paths of framework {deployment.framework}, which the plan is of",
        "vLLM hands the whole prompt from GPU to GPU after prefill, hits too, and reads through "
        "a decode node by way of the prefill node's DRAM",
        f"hits of a mean turn ({size:.3g} bytes) cross the compute network once more: {moved:.3g} "
        f"bytes/s at the plan's rate, {moved / rates[0]:.1%} of the prefill and "
        f"{moved / rates[1]:.1%} of the decode nodes' compute NICs. `framework: vllm` in the "
        "scenario plans for it",
    )


def _layers(deployment: Deployment) -> Dropped:
    size = deployment.workload.hit_tokens.mean * deployment.llm.read_bytes_per_token
    slowest = min(deployment.pool(Pool.PREFILL), key=lambda k: k.storage_read_bytes_per_s)
    read_s = size / slowest.storage_read_bytes_per_s
    compute_s = deployment.workload.append_tokens.mean / slowest.prefill_tokens_per_s
    return Dropped(
        "layer-wise loading: prefill beside its own loads",
        "OffloadingConnector loads all layers of a request's hits before its prefill",
        f"up to {min(read_s, compute_s):.3g} s more TTFT of a mean turn: its read takes "
        f"{read_s:.3g} s with a storage NIC to itself, its prefill {compute_s:.3g} s, one after "
        "the other",
    )


def _quota(deployment: Deployment) -> Dropped | None:
    kinds: list[tuple[float, NodeKind]] = []
    for kind in deployment.pool(Pool.PREFILL):
        if kind.attention is not None:
            model = AttentionTime(**kind.attention)
            hits = round(deployment.workload.hit_tokens.p99)
            kinds.append((model.fixed_s + chunk_seconds(model, hits, kind.quota_tokens), kind))
    if not kinds:
        return None
    longest, kind = max(kinds, key=lambda pair: pair[0])
    return Dropped(
        f"quota of {deployment.quota_s:g} s of attention a batch, whatever the context",
        "--max-num-batched-tokens counts tokens",
        f"a chunk of {kind.quota_tokens} tokens takes the quota after a mean turn's hits and "
        f"{longest:.3g} s after the p99 turn's",
    )


def _notes(asked: Asked, found: Sequence[Server]) -> tuple[str, ...]:
    deployment = asked.deployment
    notes = [
        f"site store {asked.site.store} is the shared folder of the fs tier: mount it on every "
        "node in the same place. n_read_threads and n_write_threads are left at vLLM's 16: how "
        "many files a storage wants in flight follows from its latency, which the plan does not "
        "have",
        "hosts of the site must resolve to the node's own address there: "
        f"{'the p2p tier and ' if peers(asked) else ''}Nixl's side channel listens on them",
        "all nodes need the same model name, KV type, block size and hash seed (PYTHONHASHSEED, "
        "or none set): they name what is "
        f"stored{', and p2p tiers refuse others' if peers(asked) else ''}",
        *_buffer_notes(found),
    ]
    if pulls(deployment):
        notes += _pull_notes(deployment)
    elif peers(asked):
        engines = {pool: sum(len(s.engines) for s in found if s.pool == pool) for pool in Pool}
        if max(engines.values()) > _MOST_PEERS:
            notes.append(
                f"the plan has {engines[Pool.PREFILL]} prefill and {engines[Pool.DECODE]} decode "
                f"engines, but a p2p tier holds {_MOST_PEERS} sessions: set VLLM_P2P_MAX_PEERS to "
                f"{max(engines.values())} on every node"
            )
    else:
        notes.append(
            "p2p tiers are left out: this version's requests cannot name a peer to read from"
        )
    return tuple(notes)


def _buffer_notes(found: Sequence[Server]) -> list[str]:
    notes = []
    unknown = {s.node: None for s in found if buffer_of_engine(s) is None}
    if unknown:
        notes.append(
            f"cpu_bytes_to_use is left out on {', '.join(unknown)}: the scenario gives these "
            "nodes no `buffer`; vLLM does not start without it, so set `buffer` of the node and "
            "export again"
        )
    sizes = {s.kind.buffer_bytes for s in found if s.kind.buffer_bytes is not None}
    if sizes:
        notes.append(
            f"the DRAM tier lies in /dev/shm: it must hold the node's buffer, {max(sizes):.4g} bytes"
        )
    return notes


def _pull_notes(deployment: Deployment) -> list[str]:
    notes = []
    if blocks_ttl_s(deployment) is None:
        notes.append(
            "decoder_kv_blocks_ttl is left out: the workload says nothing of think times (all "
            "are 0); vLLM keeps blocks for 480 s"
        )
    slow = [k.name for k in deployment.pool(Pool.PREFILL) if not pull_is_sooner(deployment, k)]
    if slow:
        notes.append(
            f"kv_recompute_threshold is left out on {', '.join(slow)}: an engine computes a hit "
            "token sooner than it is pulled, so no length is worth a pull for time alone"
        )
    return notes


TARGET = Target(
    name="vllm",
    software="vLLM",
    about="A `vllm serve` command and a `--kv-transfer-config` for each server, `routing.json` "
    "for the proxy and `scheduler.json`.",
    versions=VERSIONS,
    expresses=(
        "roles, tensor, data and expert parallelism, engines of a node",
        "reads through decode nodes: p2p tier before fs on prefill nodes, fs behind the decode nodes'",
        "split x: share of sessions that the proxy tags, sticky; read weight of each node",
        "DRAM buffer per engine, full block as chunk, block size, storage folder",
        "quota as tokens at mean context, beta and decode batch as sequences",
        "write-back of what decode nodes generate",
        "framework vllm-pull: bidirectional transfers, how long blocks are kept (think time)",
    ),
    cannot=(
        "layer-wise loading",
        "quota as attention time at any context",
        "Z, alpha and beta inside vLLM (the proxy's live mode has them)",
        "QoS weights (see opensm and roce)",
    ),
    parser="vLLM's own KVTransferConfig; names of connectors, extra keys, tier arguments and "
    "flags against its source; requests of the proxy by its own request classes",
    apply=(
        "Install `vllm` in the version above and `nixl` on every node; mount the site's store there.",
        "Run `nodes/prefill-N.sh` and `nodes/decode-N.sh` on their nodes; those of a deployment "
        "over several nodes together.",
        "Wait until each server answers `GET /health`.",
        "On the site's proxy host, with `dualpath-model`, `httpx` and `uvicorn` installed, start "
        "the proxy in this folder: `PYTHONPATH=CHECKOUT ./proxy.sh`, where CHECKOUT is the "
        "toolkit's source (`--mode live` instead of `plan` for the reference scheduler).",
    ),
    check=(
        "The log of each engine says `Created TieringOffloadingManager` with its number of chunks.",
        Step("It also says `Created secondary tier #0 (p2p)`.", when=peers),
        Step(
            "`vllm:kv_offload_tiering_read_bytes` with tier p2p grows on prefill nodes, with fs on "
            "both.",
            when=peers,
        ),
        Step(
            "`vllm:kv_offload_tiering_read_bytes` with tier fs grows on prefill nodes.",
            when=lambda asked: not peers(asked),
        ),
        "`GET /metrics` of the proxy: `dualpath_proxy_split` is near the plan's x after some "
        "hundred sessions.",
    ),
    roll_back=(
        "Point clients at the proxy of before, drain these servers and start them with the files "
        "of the export before.",
        "`--split 0` at the proxy alone stops reads through decode nodes; nothing else need change.",
        "What is in the store stays valid if model name, block size, KV type and layout are the same.",
    ),
    build=build,
)
