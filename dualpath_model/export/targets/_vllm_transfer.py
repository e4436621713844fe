"""``--kv-transfer-config`` of a server, and the flags that carry the plan's figures."""

from __future__ import annotations

import math
from dataclasses import replace

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export.documents import json_word
from dualpath_model.export.quoting import one_line
from dualpath_model.export.site import host, of_site, port
from dualpath_model.export.target import Asked
from dualpath_model.export.targets._kernels import SPARSE_BLOCK, attends_sparsely
from dualpath_model.export.targets._vllm_layout import Server
from dualpath_model.export.values import Document, Value, derived, fixed
from dualpath_model.export.vllm_keys import REMOTE_SOURCE_SINCE, SINCE
from dualpath_model.paths import Pool

BLOCK_SIZES = (64, 32, 16)
"""Every attention kernel of ours takes 16 or a multiple, latent attention on Hopper 64
(v1/attention/backends, ``get_supported_kernel_block_sizes``)."""
_DTYPES = {"bf16": "bfloat16", "fp8": "fp8", "fp8_ds_mla": "fp8_ds_mla"}


def pulls(deployment: Deployment) -> bool:
    """Tell whether hits come from decode HBM (``vllm-pull``) instead of storage."""
    return deployment.framework == "vllm-pull"


def peers(asked: Asked) -> bool:
    """Tell whether prefill nodes read through the p2p tiers of decode nodes."""
    return not pulls(asked.deployment) and asked.since(REMOTE_SOURCE_SINCE)


# ---- --kv-transfer-config --------------------------------------------------------------------------


def transfer_config(asked: Asked, server: Server) -> tuple[dict[str, Document], tuple[str, ...]]:
    """Return the config of a server, and notes of what this version lacks.

    Raises InputError for blocks, buffers and ports that vLLM does not take.
    """
    prefill = server.pool == Pool.PREFILL.value
    role = fixed(
        "kv_producer" if prefill else "kv_consumer",
        f"{server.pool} node: it {'sends' if prefill else 'receives'} the hand-off",
    )
    nixl: dict[str, Document] = {
        "kv_connector": fixed("NixlConnector", "hand-off from GPU to GPU by RDMA"),
        "kv_role": role,
    }
    extra = _pull_keys(asked, server)
    if extra:
        nixl["kv_connector_extra_config"] = extra
    store, notes = _store(asked, server)
    config: dict[str, Document] = {
        "kv_connector": fixed(
            "MultiConnector", "hand-off and store together; the first with tokens loads"
        ),
        "kv_role": role,
        "kv_load_failure_policy": fixed(
            "recompute", "a block that cannot be read is computed; the default fails the request"
        ),
        "kv_connector_extra_config": {
            "connectors": [
                nixl,
                {
                    "kv_connector": fixed(
                        "OffloadingConnector", "DRAM tier with storage behind it"
                    ),
                    "kv_role": fixed("kv_both", "both pools store and load"),
                    "kv_connector_extra_config": store,
                },
            ]
        },
    }
    return config, notes


def _pull_keys(asked: Asked, server: Server) -> dict[str, Value]:
    deployment = asked.deployment
    if not pulls(deployment):
        return {}
    found = {
        "bidirectional_kv_xfer": fixed(True, "prefill nodes pull the last turn from decode HBM")
    }
    if server.pool == Pool.PREFILL.value:
        if pull_is_sooner(deployment, server.kind):
            found["kv_recompute_threshold"] = derived(
                asked.plan.scheduler_parameters.block_tokens,
                "one block: a hit token is pulled sooner than the engine computes it, so that any "
                "pull is worth it",
                "tokens",
                pull_s_per_token=_pull_s_per_token(deployment, server.kind),
                compute_s_per_token=1.0 / server.kind.prefill_tokens_per_s,
            )
    elif (ttl := blocks_ttl_s(deployment)) is not None:
        found["decoder_kv_blocks_ttl"] = derived(
            ttl,
            "p99 of the think time, and the TTFT of the SLO until the next turn's pull; up to whole "
            "seconds",
            "s",
            think_s_p99=deployment.workload.think_s.p99,
            ttft_s=deployment.ttft_s,
        )
    return found


def blocks_ttl_s(deployment: Deployment) -> int | None:
    """Return how long a decode node keeps a turn's blocks; None: nothing is known of think times."""
    think = deployment.workload.think_s
    return math.ceil(think.p99 + deployment.ttft_s) if think.p99 > 0 else None


def pull_is_sooner(deployment: Deployment, kind: NodeKind) -> bool:
    """Tell whether a hit token is pulled sooner than an engine of ``kind`` computes it."""
    return _pull_s_per_token(deployment, kind) < 1.0 / kind.prefill_tokens_per_s


def _pull_s_per_token(deployment: Deployment, kind: NodeKind) -> float:
    copies = deployment.llm.copies.get(kind.pool, 1.0)
    rate = kind.cnics * kind.cnic_bytes_per_s / kind.engines
    return deployment.llm.kv_bytes_per_token * copies / rate


def _store(asked: Asked, server: Server) -> tuple[dict[str, Document], tuple[str, ...]]:
    store: dict[str, Document] = {
        "spec_name": fixed("TieringOffloadingSpec", "DRAM as first tier, others behind it")
    }
    size = buffer_of_engine(server)
    if size is not None:
        store["cpu_bytes_to_use"] = derived(
            size,
            "DRAM buffer of the node / engines on it: each engine has a tier of its own",
            "bytes per engine",
            buffer_bytes=server.kind.buffer_bytes,
            engines=server.kind.engines,
        )
    store["blocks_per_chunk"] = _blocks_per_chunk(asked)
    if len({kind.tensor for kind in asked.deployment.kinds}) > 1:
        store["canonical_layout"] = fixed(
            True,
            "engines differ in tensor parallelism: only in this layout is a page the same for all",
        )
    store, notes = asked.gated(store, SINCE)
    if "blocks_per_chunk" not in store:
        store["block_size"] = derived(
            asked.plan.scheduler_parameters.block_tokens,
            "scheduler.block_tokens: a chunk of the store is a full block; blocks_per_chunk is newer",
            "tokens",
        )
    if server.pool == Pool.DECODE.value:
        store["offload_prompt_only"] = fixed(
            False, "write-back: what is generated is stored too, it is the next turn's hits"
        )
    fs, more = asked.gated(
        {
            "type": fixed("fs", "storage as a folder"),
            "root_dir": of_site(asked.site, "store"),
            "locality": fixed("REMOTE", "all nodes share it"),
        },
        SINCE,
    )
    tiers: list[Document] = [fs]
    if peers(asked):
        tiers.insert(0, _peer_tier(asked, server))
    store["secondary_tiers"] = tiers
    return store, (*notes, *more)


def _peer_tier(asked: Asked, server: Server) -> dict[str, Value]:
    what = "asked first" if server.pool == Pool.PREFILL.value else "through it peers read"
    return {
        "type": fixed("p2p", f"DRAM of the other side's nodes, by NIXL; {what}"),
        "host": checked_host(asked, server),
        "port": of_site(asked.site, "ports.p2p", port(asked.site, "p2p", server.base)),
    }


def checked_host(asked: Asked, server: Server) -> Value:
    """Return a node's address. Raises InputError for one with a colon: peers are named host:port."""
    value = host(asked.site, server.pool, server.position)
    if ":" in str(value.value):
        raise InputError(
            f"site: hosts.{server.pool} is '{one_line(value.value)}', but vLLM's p2p tier dials "
            f"host:port and knows no IPv6; give a name or an IPv4 address"
        )
    return value


def buffer_of_engine(server: Server) -> int | None:
    """Return one engine's part of the node's buffer; None where the plan has none."""
    size = server.kind.buffer_bytes
    if size is None:
        return None
    each = math.floor(size / server.kind.engines)
    if each < 1:
        raise InputError(
            f"plan: the buffer of {server.pool} node {server.position} is {size:g} bytes, none for "
            f"{server.kind.engines} engines; give the node a buffer in the scenario and plan again"
        )
    return each


def block_size(asked: Asked) -> int:
    """Return vLLM's block. Raises InputError for a plan's block that is no whole number of them."""
    tokens, llm = asked.plan.scheduler_parameters.block_tokens, asked.deployment.llm
    # v1/attention/backends/mla/indexer.py: no other block on CUDA
    sparse = attends_sparsely(llm)
    allowed = (SPARSE_BLOCK,) if sparse else BLOCK_SIZES
    for size in allowed:
        if tokens >= size and tokens % size == 0:
            return size
    raise InputError(
        f"plan: scheduler_parameters.block_tokens is {tokens}, but vLLM keeps {one_line(llm.name)} in "
        f"blocks of {allowed[-1]} tokens{'' if sparse else ' or more'}; set scheduler.block_tokens to a "
        f"multiple of {allowed[-1]} in the scenario and plan again"
    )


def _blocks_per_chunk(asked: Asked) -> Value:
    tokens, size = asked.plan.scheduler_parameters.block_tokens, block_size(asked)
    return derived(
        tokens // size,
        "scheduler.block_tokens / vLLM's block: a chunk of the store is a full block",
        "blocks",
        block_tokens=tokens,
        block_size=size,
    )


# ---- flags -----------------------------------------------------------------------------------------


def command(
    asked: Asked, server: Server, config: dict[str, Document]
) -> tuple[tuple[str, ...], dict[str, Value | None]]:
    """Return the fixed words and the flags of a server's command.

    What stands before ``vllm`` are variables of ``env``, each a word of its own.
    """
    flags: dict[str, Value | None] = {}
    for name, value in _environment(asked, server).items():
        flags[f"{name}={value.value}"] = replace(value, value=True)
    model = of_site(asked.site, "model", asked.site.model or asked.plan.llm)
    flags["vllm"] = replace(model, value=["serve", model.value])
    flags |= _flags(asked, server)
    flags["--kv-transfer-config"] = json_word(config)
    return ("env",), flags


def _environment(asked: Asked, server: Server) -> dict[str, Value]:
    found = {}
    if server.of > 1:
        found["CUDA_VISIBLE_DEVICES"] = derived(
            ",".join(map(str, server.gpus)), "the server's part of the node's GPUs", "GPU"
        )
    found["VLLM_NIXL_SIDE_CHANNEL_HOST"] = host(asked.site, server.pool, server.position)
    found["VLLM_NIXL_SIDE_CHANNEL_PORT"] = of_site(
        asked.site, "ports.side_channel", port(asked.site, "side_channel", server.base)
    )
    return found


def _flags(asked: Asked, server: Server) -> dict[str, Value | None]:
    flags: dict[str, Value | None] = {
        "--host": host(asked.site, server.pool, server.position),
        "--port": of_site(asked.site, "ports.server", port(asked.site, "server", server.number)),
        "--tensor-parallel-size": derived(
            server.kind.tensor, f"parallelism.{server.pool}.tensor of the scenario", "GPUs"
        ),
    }
    flags |= _data_parallel(asked, server)
    flags["--block-size"] = derived(
        block_size(asked),
        "the largest of vLLM's blocks that the plan's block is a multiple of",
        "tokens",
        block_tokens=asked.plan.scheduler_parameters.block_tokens,
    )
    dtype = asked.deployment.llm.kv_dtype
    if dtype in _DTYPES:
        flags["--kv-cache-dtype"] = derived(
            _DTYPES[dtype], "kv_dtype of the scenario", kv_dtype=dtype
        )
    if server.pool == Pool.PREFILL.value:
        return flags | _prefill_batch(asked, server)
    return flags | _decode_batch(server.kind)


def _data_parallel(asked: Asked, server: Server) -> dict[str, Value | None]:
    if server.ranks == 1:
        return {}
    flags: dict[str, Value | None] = {
        "--data-parallel-size": derived(
            server.ranks,
            "engines that share experts: GPUs of their expert group / tensor parallelism",
            "engines",
            expert=server.kind.expert,
            tensor=server.kind.tensor,
        )
    }
    if server.spans_nodes:
        flags["--data-parallel-size-local"] = derived(
            len(server.engines), "those of them on this node", "engines"
        )
        flags["--data-parallel-start-rank"] = derived(
            server.first_rank, "engines on the nodes before it; each node serves its own", "rank"
        )
        flags["--data-parallel-address"] = host(asked.site, server.pool, server.head)
        flags["--data-parallel-rpc-port"] = of_site(asked.site, "ports.data_parallel")
    flags["--enable-expert-parallel"] = fixed(
        True, "experts are spread over all of these engines' GPUs"
    )
    return flags


def _prefill_batch(asked: Asked, server: Server) -> dict[str, Value | None]:
    deployment = asked.deployment
    prompt = deployment.workload.prompt_tokens.mean
    # vLLM refuses a batch of fewer tokens than sequences
    requests = min(max(1, math.floor(server.kind.beta_tokens / prompt)), server.quota_tokens)
    return {
        "--max-num-batched-tokens": derived(
            server.quota_tokens,
            "quota: tokens appended to a mean turn's hits whose attention takes quota_s; the least of "
            "the engines that share experts",
            "tokens per engine",
            quota_s=deployment.quota_s,
            hit_tokens=deployment.workload.hit_tokens.mean,
        ),
        "--max-num-seqs": derived(
            requests,
            "beta of an engine / mean prompt, down, at least 1, at most the quota's tokens",
            "requests per engine",
            beta_tokens=server.kind.beta_tokens,
            prompt_tokens=prompt,
        ),
    }


def _decode_batch(kind: NodeKind) -> dict[str, Value | None]:
    if kind.decode_batch is None:
        return {}
    return {
        "--max-num-seqs": derived(
            max(1, math.ceil(kind.decode_batch)),
            "requests that one engine decodes at the operating point, up",
            "requests per engine",
            decode_batch=kind.decode_batch,
        )
    }
