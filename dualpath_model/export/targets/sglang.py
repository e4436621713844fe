"""Target ``sglang``: a command for each node, the same flags as YAML, and the router's command.

Flags were read in the wheels of the versions below (srt/server_args.py, srt/arg_groups/fields); all are
in 0.5.15, the first whose HiCache takes a host pool smaller than the device's and which reads hits on
decode nodes (``decode_hicache_mixin``), but one: see ``_sglang_flags.ATTN_DP_SINCE``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dualpath_model.deployment import Deployment
from dualpath_model.export.documents import File, command_file, json_word, yaml_file
from dualpath_model.export.plan_file import PlanFile
from dualpath_model.export.site import bracketed, check_apart, host, in_front, of_site, port
from dualpath_model.export.target import Asked, Bundle, Dropped, Target, no_decode_reads, no_qos
from dualpath_model.export.targets._break_even import worth_reading
from dualpath_model.export.targets._sglang_flags import (
    EXTRA,
    host_pool_tokens,
    node_flags,
    server_flags,
    windowed,
)
from dualpath_model.export.targets._sglang_servers import Server, servers
from dualpath_model.export.values import Document, Value, fixed
from dualpath_model.paths import Pool

ROUTER = "0.3.2"
"""The sglang-router whose flags were read (sglang_router/router_args.py)."""
ROLE_SWITCH_SINCE = "0.5.21"
_LAUNCH = ("python", "-m", "sglang.launch_server")


def build(asked: Asked) -> Bundle:
    """Return the files of every server of the plan."""
    found = servers(asked.deployment)
    _check_ports(asked, found)
    configs = _config_names(found)
    files: list[File] = []
    for shape, name in configs.items():
        first = next(server for server in found if server.shape == shape)
        files.append(_config(asked, first, name))
    for server in found:
        flags = server_flags(asked, server)
        for rank in range(len(server.positions)):
            own = node_flags(asked, server, rank)
            files.append(_command(asked, server, rank, {**flags, **own}, configs[server.shape]))
    files.append(_router(asked, found))
    return Bundle(tuple(files), _dropped(asked), _notes(asked, found))


def _check_ports(asked: Asked, found: tuple[Server, ...]) -> None:
    """Raise InputError where two things of a node would listen on the same port."""
    nodes: dict[str, list[tuple[str, list[int]]]] = {}
    for server in found:
        for position in server.positions:
            wanted = nodes.setdefault(f"{server.pool} node {position}", [])
            wanted.append(("server", [server.number]))
            if server.pool == Pool.PREFILL.value:
                wanted.append(("bootstrap", [server.number]))
            if len(server.positions) > 1 and position == server.positions[0]:
                wanted.append(("rendezvous", [0]))
            if server.number == 0 and in_front(asked.site, server.pool, position):
                wanted.append(("proxy", [0]))
    for node, wanted in nodes.items():
        check_apart(asked.site, node, wanted)


def _config_names(found: tuple[Server, ...]) -> dict[tuple[object, ...], str]:
    shapes = {server.shape: server.pool for server in found}
    names: dict[tuple[object, ...], str] = {}
    for shape, pool in shapes.items():
        same = [other for other, its in shapes.items() if its == pool]
        number = "" if len(same) == 1 else f"-{same.index(shape)}"
        names[shape] = f"config/{pool}{number}.yaml"
    return names


def _config(asked: Asked, server: Server, name: str) -> File:
    kinds = ", ".join(kind.name for kind in server.kinds)
    return yaml_file(
        name,
        f"the flags that {server.pool} servers share, for `--config`",
        server_flags(asked, server),
        head=(
            f"SGLang {asked.version}: {server.pool} servers on nodes of kind {kinds}.",
            "python -m sglang.launch_server --config THIS --host ... and what else nodes/*.sh has of a "
            "node; flags beside --config win.",
        ),
    )


def _command(
    asked: Asked, server: Server, rank: int, flags: Mapping[str, Document], config: str
) -> File:
    number = f"-server-{server.number}" if server.of > 1 else ""
    position = server.positions[rank]
    options: dict[str, Value | None] = {}
    for flag, part in flags.items():
        options[f"--{flag}"] = part if isinstance(part, Value) else json_word(part)
    return command_file(
        f"nodes/{server.pool}-{position}{number}.sh",
        f"starts SGLang on {server.pool} node {position}; flags as in `{config}`, and its own",
        [(_LAUNCH, options)],
        head=(f"SGLang {asked.version}: {server.pool} node {position} of the plan.",),
    )


def _router(asked: Asked, found: tuple[Server, ...]) -> File:
    site = asked.site
    words = ["python", "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    for server in found:
        name = bracketed(str(host(site, server.pool, server.positions[0]).value))
        url = f"http://{name}:{port(site, 'server', server.number)}"
        if server.pool == Pool.PREFILL.value:
            words += ["--prefill", url, str(port(site, "bootstrap", server.number))]
        else:
            words += ["--decode", url]
    flags = {
        "--policy": fixed(
            "power_of_two", "the less loaded of two: hits come from storage, wherever a turn goes"
        ),
        "--port": of_site(site, "ports.proxy"),
    }
    return command_file(
        "router.sh",
        f"starts the router in front (sglang-router {ROUTER})",
        [(words, flags)],
        head=(
            f"sglang-router {ROUTER}: --prefill URL BOOTSTRAP-PORT or --decode URL for each server, of",
            "its first node: hosts, ports.server and ports.bootstrap of the site, as in nodes/*.sh.",
        ),
    )


# ---- what is left out ------------------------------------------------------------------------------


def _dropped(asked: Asked) -> tuple[Dropped, ...]:
    plan, deployment = asked.plan, asked.deployment
    dropped = [
        Dropped(
            f"Z = {plan.scheduler_parameters.z_factor:g}: decode engines within a multiple of the mean",
            "`--load-balance-method total_tokens` takes the engine with the fewest tokens, inside one "
            "server; between servers the router compares requests, not tokens",
            "no figure follows from the plan; compare `sglang:num_used_tokens` of the decode servers",
        ),
        Dropped(
            "dual values and read weights",
            "no flag of server or router has a price",
            "none where all nodes are alike; else reads follow the router's load, not the plan's shares",
        ),
        no_qos(plan),
    ]
    if windowed(deployment):
        dropped.insert(
            0,
            no_decode_reads(
                plan,
                "layers of this LLM keep a window only, and SGLang refuses a decode radix cache with "
                "HiCache for such: prefill nodes read all hits",
            ),
        )
    elif deployment.framework != "sglang" and deployment.workload.hit_tokens.mean > 0:
        dropped.insert(0, _both_sides(plan, deployment))
    return tuple(dropped)


def _both_sides(plan: PlanFile, deployment: Deployment) -> Dropped:
    token = deployment.workload.hit_tokens.mean * deployment.llm.read_bytes_per_token
    shares = {
        pool.value: plan.throughput_requests_per_s * token / _read_rate(deployment, pool)
        for pool in (Pool.PREFILL, Pool.DECODE)
    }
    most = min(_read_rate(deployment, pool) for pool in (Pool.PREFILL, Pool.DECODE)) / token
    rate = min(most, _twice_from_storage(plan), plan.throughput_requests_per_s)
    return Dropped(
        f"split x = {plan.split:.3f}: each hit read once, on the side that has room",
        f"the plan is of framework {deployment.framework}; SGLang reads every hit on both sides, the "
        f"prefill node for its prefill and the decode node for itself",
        f"at the plan's {plan.throughput_requests_per_s:.4g} requests/s storage NICs would be used "
        f"{shares['prefill']:.1%} on prefill and {shares['decode']:.1%} on decode nodes, reads "
        f"alone, and what a storage service gives twice as much; so at most {rate:.4g} requests/s, "
        f"{rate / plan.throughput_basic_requests_per_s:.2f}x Basic instead of "
        f"{plan.speedup_over_basic:.2f}x. `framework: sglang` in the scenario plans for it",
    )


def _twice_from_storage(plan: PlanFile) -> float:
    """Return the requests/s at which a storage service that all nodes share gives every hit twice."""
    used = [u.dual_path for u in plan.utilisation if u.node is None and u.resource == "storage"]
    most = max(used, default=0.0)
    return plan.throughput_requests_per_s / (2.0 * most) if most > 0 else math.inf


def _read_rate(deployment: Deployment, pool: Pool) -> float:
    return sum(k.count * k.storage_read_bytes_per_s for k in deployment.pool(pool))


def _notes(asked: Asked, found: tuple[Server, ...]) -> tuple[str, ...]:
    notes = [
        f"site store {asked.site.store} is the shared folder of HiCache's file backend, in "
        f"--{EXTRA}; it must be mounted on every node",
        *([] if windowed(asked.deployment) else [_offload_note()]),
        _role_switch_note(asked, found),
        *_buffer_notes(asked, found),
        *_unworthy_notes(asked, found),
        *_site_notes(asked, found),
        *_quota_notes(asked, found),
        *_key_notes(asked.deployment),
    ]
    return tuple(notes)


def _offload_note() -> str:
    return (
        "--disaggregation-decode-enable-offload-kvcache is left out: with the decode radix cache and a "
        "hierarchical cache, write_through stores what decode nodes generate, and the offload would "
        "build a second host pool of hicache-size beside it"
    )


def _role_switch_note(asked: Asked, found: tuple[Server, ...]) -> str:
    name = "--enable-pd-role-switch"
    if not asked.since(ROLE_SWITCH_SINCE):
        return f"{name} is left out: it came with version {ROLE_SWITCH_SINCE}, these are {asked.version}"
    if any(server.expert > 1 for server in found):
        return (
            f"{name} (a replan without a restart) is left out: SGLang refuses it with expert "
            f"parallelism, which this plan has; to change a node's role restart it with the other file"
        )
    return (
        f"{name} can be added to all servers for a replan without a restart: drain one, then POST "
        f"/pd_role_switch with new_role, and decode_cuda_graph_memory_gb on the way to decode. It "
        f"must be idle, loses its prefix cache, and cannot go with expert or pipeline parallelism, "
        f"speculative decoding or MoE all-to-all; batch limits stay those of the old role"
    )


def _buffer_notes(asked: Asked, found: tuple[Server, ...]) -> list[str]:
    notes = []
    for pool in (Pool.PREFILL, Pool.DECODE):
        mine = [server for server in found if server.pool == pool.value]
        sizes = [(host_pool_tokens(asked, server), server) for server in mine]
        if any(size is None for size, _ in sizes):
            notes.append(
                f"hicache-size is left out on {pool.value} nodes whose buffer the scenario does not "
                f"give: SGLang then takes twice the device pool, within 0.8 of the host's free memory; "
                f"set `buffer` of the node to fix it"
            )
        small = [
            size
            for size, server in sizes
            if size is not None
            and pool is Pool.DECODE
            and size < min(kind.hbm_tokens / kind.tensor for kind in server.kinds)
        ]
        if small:
            notes.append(
                f"the host pool of a decode rank ({min(small):.0f} tokens) is smaller than its device "
                f"pool: SGLang warns at the start; it stages what is read rather than keeping it"
            )
    return notes


def _unworthy_notes(asked: Asked, found: tuple[Server, ...]) -> list[str]:
    slow = sorted(
        {s.pool for s in found for k in s.kinds if not worth_reading(asked.deployment, k)},
        reverse=True,
    )
    return [
        f"prefetch_threshold is left out on {pool} nodes: one engine computes a hit token sooner than "
        f"the node's storage reads it, so no length is worth reading for time alone"
        for pool in slow
    ]


def _site_notes(asked: Asked, found: tuple[Server, ...]) -> list[str]:
    devices = asked.site.compute_devices
    if devices is None:
        return [
            "--disaggregation-ib-device is left out: the site names no compute_devices, so Mooncake "
            "chooses by itself and may take storage NICs too"
        ]
    other = {k.cnics for server in found for k in server.kinds if k.cnics != len(devices)}
    return [
        f"the site names {len(devices)} compute_devices, the plan counts {number} compute NICs a node; "
        f"its rates are of {number}"
        for number in sorted(other)
    ]


def _quota_notes(asked: Asked, found: tuple[Server, ...]) -> list[str]:
    page = asked.plan.scheduler_parameters.block_tokens
    return [
        f"chunked-prefill-size is one page of {page} tokens, more than the quota's {least} tokens: "
        f"SGLang computes no less than a page at a time"
        for least in sorted(
            {min(k.quota_tokens for k in s.kinds) for s in found if s.pool == "prefill"}
        )
        if least < page
    ]


def _key_notes(deployment: Deployment) -> list[str]:
    """srt/mem_cache/hicache_storage.py: the rank is in the name of a file unless ranks hold the same."""
    tensors = {kind.pool: kind.tensor for kind in deployment.kinds}
    alike = all(deployment.llm.copies.get(pool) == tensor for pool, tensor in tensors.items())
    if len(set(tensors.values())) == 1 or alike:
        return []
    return [
        f"prefill engines have {tensors['prefill']} ranks and decode engines {tensors['decode']}: the "
        f"file backend names what it stores by rank, so neither side finds what the other has stored; "
        f"take the same tensor parallelism on both"
    ]


TARGET = Target(
    name="sglang",
    software="SGLang",
    about="A `launch_server` command for each node, the same flags as YAML, and the router's command.",
    versions=("0.5.15", "0.5.21", "0.5.22", "0.5.23"),
    expresses=(
        "roles, tensor, data and expert parallelism, nodes of a server",
        "quota as chunk and batch tokens at mean context, beta and decode batch as running requests",
        "DRAM buffer per rank, storage backend, Full Block layout, block size as page size",
        "alpha and read rate as the prefetch's time limit",
        "reads on decode nodes (decode radix cache with HiCache)",
        "compute NICs",
    ),
    cannot=(
        "split x: every hit is read on both sides",
        "Z between servers, dual values, read weights",
        "QoS weights (see opensm and roce)",
    ),
    parser="SGLang's own `ServerArgs` with unknown flags refused and its checks of disaggregation, "
    "HiCache and cache compatibility; its parser of the storage's extra config; its merging of "
    "`--config`; the router's argparse",
    apply=(
        f"Install `sglang` in the version above on every node and `sglang-router=={ROUTER}` in front.",
        "Mount the site's store on every node in the same place.",
        "Start `nodes/prefill-N.sh` and `nodes/decode-N.sh` on their nodes (of a server over several "
        "nodes all together), or `python -m sglang.launch_server --config FILE` with that of `config/` "
        "for the node and the flags of the node.",
        "Wait until each answers `GET /health`, then start `router.sh`.",
    ),
    check=(
        "`GET /server_info` of each server shows `disaggregation_mode`, `page_size` and `hicache_size` "
        "as in its file.",
        "The log says `Allocating kv hierarchical KV host pool` with the size per rank.",
        "Send one long prompt twice to `POST /generate` of the router: the second time "
        "`meta_info.cached_tokens` is more than 0.",
    ),
    roll_back=(
        "Take the server out of the router, drain it, and start it with the files of the export before.",
        "What is in the store stays valid if page size, KV type and layout are the same; else empty the "
        "folder.",
    ),
    build=build,
)
