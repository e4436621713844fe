"""A server's flags, by what they are for; each value with its origin. Names as in ``--help``."""

from __future__ import annotations

import json
import math
import re

from dualpath_model.deployment import Deployment
from dualpath_model.errors import InputError
from dualpath_model.export.quoting import one_line
from dualpath_model.export.site import Site, bracketed, host, of_fields, of_site, port
from dualpath_model.export.target import Asked
from dualpath_model.export.targets._break_even import worth_reading
from dualpath_model.export.targets._kernels import SPARSE_BLOCK, attends_sparsely
from dualpath_model.export.targets._sglang_servers import Server
from dualpath_model.export.values import Document, Value, derived, fixed
from dualpath_model.paths import Pool

ATTN_DP_SINCE = "0.5.22"
"""``--attn-dp-size``; 0.5.21 has ``--dp-size N --enable-dp-attention``, which 0.5.22 deprecates."""

EXTRA = "hicache-storage-backend-extra-config"
_DTYPES = {"bf16": "bfloat16", "fp8": "fp8_e4m3", "fp8_ds_mla": "fp8_e4m3"}
_DEVICE = re.compile(r"[A-Za-z0-9_-]+\Z")
_GB = 10**9


def server_flags(asked: Asked, server: Server) -> dict[str, Document]:
    """Return the flags of a server but those of one node; a dict stands for its JSON."""
    flags: dict[str, Document] = {"model-path": _model(asked)}
    flags |= _role(asked, server)
    flags |= _parallelism(asked, server)
    flags |= _batches(asked, server)
    return flags | _cache(asked, server)


def node_flags(asked: Asked, server: Server, rank: int) -> dict[str, Value]:
    """Return the flags that differ between the nodes of a server and the servers of a node."""
    site = asked.site
    flags = {"host": host(site, server.pool, server.positions[rank])}
    flags["port"] = of_site(site, "ports.server", port(site, "server", server.number))
    if server.pool == Pool.PREFILL.value:
        flags["disaggregation-bootstrap-port"] = of_site(
            site, "ports.bootstrap", port(site, "bootstrap", server.number)
        )
    if len(server.positions) > 1:
        first = host(site, server.pool, server.positions[0])
        address = f"{bracketed(str(first.value))}:{site.ports.rendezvous}"
        fields = (f"hosts.{server.pool}", "ports.rendezvous")
        flags["dist-init-addr"] = of_fields(site, fields, address)
        flags["node-rank"] = derived(rank, "place of the node among those of its server")
    if server.of > 1:
        flags["base-gpu-id"] = derived(
            server.first_gpu, "number of the server on its node x its GPUs", "GPU"
        )
    return flags


def page_tokens(asked: Asked) -> int:
    """Return the page size. Raises InputError for one that the LLM's kernels do not take."""
    tokens, llm = asked.plan.scheduler_parameters.block_tokens, asked.deployment.llm
    # srt/arg_groups/overrides.py: the page of these kernels
    if attends_sparsely(llm) and tokens != SPARSE_BLOCK:
        raise InputError(
            f"plan: scheduler_parameters.block_tokens is {tokens}, but SGLang serves "
            f"{one_line(llm.name)} in pages of {SPARSE_BLOCK} tokens only; set scheduler.block_tokens "
            f"to {SPARSE_BLOCK} in the scenario and plan again"
        )
    return tokens


def host_pool_tokens(asked: Asked, server: Server) -> float | None:
    """Return the tokens that one rank's host pool holds; None: SGLang sizes it."""
    size = _hicache_gb(asked, server)
    return None if size is None else size * _GB / asked.deployment.llm.kv_bytes_per_token


def windowed(deployment: Deployment) -> bool:
    """Tell whether some layers keep a window only: then SGLang refuses a decode radix cache with HiCache
    (srt/mem_cache/kv_cache_builder.py ``validate_decode_radix_cache``), so decode nodes read nothing.
    """
    llm = deployment.llm
    return llm.read_bytes_per_token < llm.kv_bytes_per_token * (1.0 - 1e-9)


def _model(asked: Asked) -> Value:
    return of_site(asked.site, "model", asked.site.model or asked.plan.llm)


def _role(asked: Asked, server: Server) -> dict[str, Document]:
    flags: dict[str, Document] = {
        "disaggregation-mode": derived(server.pool, "pool of the node in the scenario"),
        "disaggregation-transfer-backend": fixed(
            "mooncake", "KV-cache by RDMA; the backend that can also switch roles"
        ),
    }
    devices = asked.site.compute_devices
    if devices is not None:
        flags["disaggregation-ib-device"] = _devices(asked.site, devices, server)
    if server.pool == Pool.DECODE.value and windowed(asked.deployment):
        flags["disaggregation-decode-enable-offload-kvcache"] = fixed(
            True, "stores what decode nodes generate"
        )
    elif server.pool == Pool.DECODE.value:
        flags["disaggregation-decode-enable-radix-cache"] = fixed(
            True,
            "lets decode nodes read hits themselves, so that prefill nodes send only what follows",
        )
    return flags


def _devices(site: Site, devices: list[str], server: Server) -> Value:
    for device in devices:
        if not _DEVICE.match(device):
            raise InputError(
                f"site: compute_devices has '{one_line(device)}', which is no name of an RDMA device; "
                f"use letters, digits, '_' and '-', such as mlx5_0"
            )
    gpus = server.kinds[0].gpus
    if len(devices) % gpus:
        return of_site(site, "compute_devices", ",".join(devices))
    each = len(devices) // gpus
    mapping = {str(gpu): ",".join(devices[gpu * each : (gpu + 1) * each]) for gpu in range(gpus)}
    return of_site(site, "compute_devices", json.dumps(mapping, separators=(",", ":")))


def _parallelism(asked: Asked, server: Server) -> dict[str, Document]:
    tensor = server.kinds[0].tensor
    flags: dict[str, Document] = {
        "tp-size": derived(
            server.width,
            "GPUs that compute a batch's experts together: expert parallelism if engines share experts, "
            "else tensor parallelism",
            "GPUs",
            tensor=tensor,
            expert=server.expert,
        )
    }
    if server.attention > 1:
        size = derived(
            server.attention,
            "engines of the server: its GPUs / tensor parallelism",
            "engines",
            tensor=tensor,
        )
        if asked.since(ATTN_DP_SINCE):
            flags["attn-dp-size"] = size
        else:
            flags["dp-size"] = size
            flags["enable-dp-attention"] = fixed(True, "dp-size counts engines that share experts")
    elif server.replicas > 1:
        flags["dp-size"] = derived(
            server.replicas, "engines of a node: GPUs / tensor parallelism", "engines"
        )
    if server.expert > 1:
        flags["ep-size"] = derived(
            server.expert, "GPUs over which the plan spreads experts, the whole server", "GPUs"
        )
    if len(server.positions) > 1:
        flags["nnodes"] = derived(
            len(server.positions), "nodes that one expert-parallel group spans", "nodes"
        )
    if server.attention * server.replicas > 1:
        flags["load-balance-method"] = fixed(
            "total_tokens", "the engine with the fewest tokens: what tok_e and Z balance"
        )
    return flags


def _batches(asked: Asked, server: Server) -> dict[str, Document]:
    prompt = asked.deployment.workload.prompt_tokens.mean
    page = page_tokens(asked)
    flags: dict[str, Document] = {
        "page-size": derived(page, "scheduler.block_tokens: a block is a page", "tokens"),
    }
    dtype = asked.deployment.llm.kv_dtype
    if dtype in _DTYPES:
        flags["kv-cache-dtype"] = derived(
            _DTYPES[dtype], "kv_dtype of the scenario", kv_dtype=dtype
        )
    if server.pool == Pool.PREFILL.value:
        quota = min(kind.quota_tokens for kind in server.kinds)
        chunk = max(quota // page, 1) * page
        inputs = {"quota_s": asked.deployment.quota_s, "quota_tokens": quota}
        flags["chunked-prefill-size"] = derived(
            chunk * server.attention,
            "tokens appended to a mean turn's hits whose attention takes the quota, down to whole "
            "pages, x engines that share experts (SGLang divides it by them)",
            "tokens",
            **inputs,
            engines=server.attention,
        )
        flags["max-prefill-tokens"] = derived(
            chunk,
            "the same quota, of one engine: bounds a batch of several requests",
            "tokens",
            **inputs,
        )
        beta = min(kind.beta_tokens for kind in server.kinds)
        flags["max-running-requests"] = derived(
            max(1, math.floor(beta / prompt)) * server.attention,
            "beta of an engine / mean prompt, down, at least 1, x engines that share experts",
            "requests",
            beta_tokens=beta,
            prompt_tokens=prompt,
            engines=server.attention,
        )
        return flags
    batches = [kind.decode_batch for kind in server.kinds if kind.decode_batch is not None]
    if batches:
        flags["max-running-requests"] = derived(
            max(1, math.ceil(max(batches))) * server.attention,
            "requests that one engine decodes at the operating point, up, x engines that share experts",
            "requests",
            decode_batch=max(batches),
            engines=server.attention,
        )
    return flags


def _cache(asked: Asked, server: Server) -> dict[str, Document]:
    reads = server.pool == Pool.PREFILL.value or not windowed(asked.deployment)
    flags: dict[str, Document] = {}
    if reads:
        why = "hits come from storage through DRAM"
        flags["enable-hierarchical-cache"] = fixed(True, why)
    size = _hicache_gb(asked, server)
    if size is not None:
        gpus = server.kinds[0].gpus
        flags["hicache-size"] = derived(
            size,
            "DRAM buffer per rank: buffer of a node / its GPUs, down to whole GB; every rank has a pool "
            "of its own, with a copy of its own where latent attention is split over ranks",
            "1e9 bytes per rank",
            buffer_bytes=_buffer(server),
            ranks=gpus,
            copies=asked.deployment.llm.copies.get(server.pool, 1.0),
        )
    flags |= {
        "hicache-mem-layout": fixed("page_first", "Full Block: all layers of a page in one piece"),
        "hicache-storage-backend": fixed("file", "the shared folder of the site"),
    }
    if not reads:
        return flags | {EXTRA: {"file_storage_path": of_site(asked.site, "store")}}
    return flags | {
        "hicache-write-policy": fixed(
            "write_through", "what is computed is stored at once, for the next turn's reads"
        ),
        "hicache-storage-prefetch-policy": fixed(
            "timeout",
            "prefill waits for reads, but no longer than the plan's alpha lets a queue be",
        ),
        EXTRA: _extra(asked, server),
    }


def _extra(asked: Asked, server: Server) -> dict[str, Value]:
    deployment = asked.deployment
    token = deployment.llm.read_bytes_per_token
    rate = min(kind.storage_read_bytes_per_s for kind in server.kinds)
    extra = {"file_storage_path": of_site(asked.site, "store")}
    if all(worth_reading(deployment, kind) for kind in server.kinds):
        extra["prefetch_threshold"] = derived(
            page_tokens(asked),
            "one block: a hit token is read sooner than an engine computes it, so any read is worth it",
            "tokens",
            read_s_per_token=token / rate,
            compute_s_per_token=1.0 / min(kind.prefill_tokens_per_s for kind in server.kinds),
        )
    extra["prefetch_timeout_base"] = derived(
        deployment.alpha_s, "alpha: how long a read may wait in the node's queue", "s"
    )
    extra["prefetch_timeout_per_ki_token"] = derived(
        float(f"{1024 * token / rate:.6g}"),
        "1024 x bytes read for a hit token / storage read rate of the slowest node",
        "s per 1024 tokens",
        read_bytes_per_token=token,
        storage_read_bytes_per_s=rate,
    )
    return extra


def _buffer(server: Server) -> float | None:
    sizes = [kind.buffer_bytes for kind in server.kinds]
    known = [size for size in sizes if size is not None]
    return min(known) if len(known) == len(sizes) else None


def _hicache_gb(asked: Asked, server: Server) -> int | None:
    """Return the size of a rank's pool, whole GB. Raises InputError where that is none."""
    buffer = _buffer(server)
    if buffer is None:
        return None
    gpus = server.kinds[0].gpus
    size = math.floor(buffer / gpus / _GB + 1e-9)
    if size < 1:
        raise InputError(
            f"plan: the buffer of {server.pool} nodes is {buffer / _GB:.3g} GB, which is less than 1 GB "
            f"for each of {gpus} GPUs, the least that hicache-size takes; give the node a buffer of at "
            f"least {gpus} GB in the scenario and plan again"
        )
    return size
