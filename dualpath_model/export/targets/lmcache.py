"""Target ``lmcache``: LMCache's YAML for the engines of a vLLM deployment, senders and receivers.

Keys were read in the wheels of the versions below (lmcache/v1/config.py); 0.4.1 has neither
``store_location`` nor ``pd_max_prefill_len`` nor the ``fs`` plugin, so there is nothing to make for it.
Sizes: ``max_local_cpu_size`` is in GiB though it says GB (v1/storage_backend/local_cpu_backend.py:
``cpu_size * 1024**3``), for each worker; ``pd_buffer_size`` is in bytes, for each worker too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export.documents import File, yaml_file
from dualpath_model.export.quoting import one_line
from dualpath_model.export.site import check_apart, host, of_site, port
from dualpath_model.export.target import Asked, Bundle, Dropped, Target, no_decode_reads, no_qos
from dualpath_model.export.targets._break_even import worth_reading
from dualpath_model.export.values import Document, Value, derived, fixed
from dualpath_model.paths import Pool

_GIB = 2**30
_STORE = "RemoteBackend-fs"
_PREFILL, _DECODE = Pool.PREFILL.value, Pool.DECODE.value


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Memory of one worker, bytes. ``prompt``: KV-cache of the largest prompt; ``local``: None: no
    buffer is given.
    """

    prompt: int
    transfer: int
    local: float | None


def build(asked: Asked) -> Bundle:
    """Return a file for each kind of prefill node and for each decode engine."""
    files: list[File] = []
    deployment = asked.deployment
    for number, kind in enumerate(deployment.pool(_PREFILL)):
        alone = len(deployment.pool(_PREFILL)) == 1
        name = "prefill.yaml" if alone else f"prefill-kind-{number}.yaml"
        nodes = ", ".join(map(str, kind.positions))
        files.append(_sender(asked, kind, name, f"engines of prefill nodes {nodes}"))
    for kind in deployment.pool(_DECODE):
        gpus = range(kind.gpus)
        check_apart(
            asked.site,
            f"decode node {kind.positions[0]}",
            [("lmcache_init", gpus), ("lmcache_alloc", gpus)],
        )
        for position in kind.positions:
            files += [_receiver(asked, kind, position, n) for n in range(kind.engines)]
    return Bundle(tuple(files), _dropped(asked), _notes(asked))


def _sender(asked: Asked, kind: NodeKind, name: str, what: str) -> File:
    site, sizes = asked.site, _sizes(asked, kind)
    document = _common(asked, kind, sizes)
    if worth_reading(asked.deployment, kind):
        document["min_retrieve_tokens"] = derived(
            _chunk(asked),
            "one block: a hit token is read sooner than an engine computes it, so any read is worth it",
            "tokens",
            read_s_per_token=_read_s(asked.deployment, kind),
            compute_s_per_token=1.0 / kind.prefill_tokens_per_s,
        )
    document |= {
        "pd_role": fixed("sender", "prefill engines send"),
        "pd_buffer_size": _bytes(
            sizes.transfer, "room for the largest prompt, in whole blocks, for each worker", sizes
        ),
        "pd_proxy_host": of_site(site, "hosts.proxy"),
        "pd_proxy_port": of_site(site, "ports.lmcache_proxy"),
    }
    head = (f"LMCache {asked.version}: {what}; LMCACHE_CONFIG_FILE names this file.",)
    return yaml_file(name, f"LMCache of {what}", document, head=head)


def _receiver(asked: Asked, kind: NodeKind, position: int, engine: int) -> File:
    site, sizes = asked.site, _sizes(asked, kind)
    first = engine * kind.tensor

    def ports(field: str) -> Value:
        numbers = [port(site, field, first + rank) for rank in range(kind.tensor)]
        return of_site(site, f"ports.{field}", numbers)

    document = _common(asked, kind, sizes) | {
        "save_decode_cache": fixed(True, "what is generated is a hit of the next turn"),
        "store_location": fixed(
            _STORE, "generated tokens go to the store; a receiver sends nothing"
        ),
        "retrieve_locations": fixed(["PDBackend"], "the one place that a receiver reads from"),
        "pd_role": fixed("receiver", "decode engines receive"),
        "pd_buffer_size": _bytes(
            sizes.transfer,
            "DRAM buffer of a node / its GPUs, less what stages the stores, in whole blocks"
            if sizes.local is not None
            else "room for the largest prompt, in whole blocks, for each worker",
            sizes,
        ),
        "pd_peer_host": host(site, _DECODE, position),
        "pd_peer_init_port": ports("lmcache_init"),
        "pd_peer_alloc_port": ports("lmcache_alloc"),
    }
    name = f"decode-{position}-engine-{engine}.yaml"
    what = f"engine {engine} of decode node {position}"
    head = (f"LMCache {asked.version}: {what}; LMCACHE_CONFIG_FILE names this file.",)
    return yaml_file(name, f"LMCache of {what}", document, head=head)


def _common(asked: Asked, kind: NodeKind, sizes: _Sizes) -> dict[str, Document]:
    document: dict[str, Document] = {
        "chunk_size": derived(
            _chunk(asked), "scheduler.block_tokens: what is stored and found is a block", "tokens"
        ),
        "local_cpu": fixed(True, "what the store gives and takes goes through DRAM"),
    }
    if sizes.local is not None:
        document["max_local_cpu_size"] = derived(
            math.floor(sizes.local / _GIB * 1000) / 1000,
            "DRAM buffer of a node / its GPUs, less pd_buffer_size"
            if kind.pool == _PREFILL
            else "staging for what is stored: the KV-cache of the largest prompt",
            "GiB for each worker",
            buffer_bytes=kind.buffer_bytes,
            workers=kind.gpus,
        )
    return document | {
        "remote_storage_plugins": fixed(["fs"], "files in a shared folder"),
        "extra_config": {"remote_storage_plugin.fs.base_path": _store(asked)},
        "save_unfull_chunk": fixed(
            True, "else the end of a prompt would not reach the decode engine"
        ),
        "enable_pd": fixed(True, "KV-cache goes from prefill to decode engines through LMCache"),
        "transfer_channel": fixed("nixl", "by RDMA between the DRAM of both nodes"),
        "nixl_backends": fixed(["UCX"], "the compute NICs, as UCX_NET_DEVICES says"),
        "pd_buffer_device": fixed("cpu", "the plan hands off from DRAM buffer to DRAM buffer"),
        "pd_max_prefill_len": derived(
            _longest(asked.deployment),
            "the largest prompt of the workload: LMCache refuses to start with a smaller buffer",
            "tokens",
        ),
    }


def _bytes(size: int, how: str, sizes: _Sizes) -> Value:
    return derived(size, how, "bytes for each worker", largest_prompt_bytes=sizes.prompt)


def _chunk(asked: Asked) -> int:
    return asked.plan.scheduler_parameters.block_tokens


def _longest(deployment: Deployment) -> int:
    return math.ceil(deployment.workload.prompt_tokens.most)


def _store(asked: Asked) -> Value:
    store = asked.site.store
    if "," in store:
        raise InputError(
            f"site: store is '{one_line(store)}', but LMCache's fs plugin takes a comma as the start of "
            f"another folder; give a path without one, such as /mnt/kv-cache"
        )
    return of_site(asked.site, "store")


def _sizes(asked: Asked, kind: NodeKind) -> _Sizes:
    """Split a worker's part of the buffer between hand-off and cache. Raises InputError if the largest
    prompt fits only one of them.
    """
    deployment, chunk = asked.deployment, _chunk(asked)
    token = deployment.llm.kv_bytes_per_token * deployment.llm.copies.get(kind.pool, 1.0)
    block = math.ceil(chunk * token / kind.tensor)
    prompt = math.ceil(_longest(deployment) / chunk) * block
    if kind.buffer_bytes is None:
        return _Sizes(prompt, prompt, None)
    share = kind.buffer_bytes / kind.gpus
    if share < 2 * prompt:
        raise InputError(
            f"plan: the buffer of {kind.pool} nodes is {share / 1e9:.3g} GB for each of {kind.gpus} "
            f"workers, but LMCache needs room for the largest prompt twice, {2 * prompt / 1e9:.3g} GB: "
            f"to hand it off and to store it; give the node a buffer of at least "
            f"{math.ceil(2 * prompt * kind.gpus / 1e9)} GB in the scenario and plan again"
        )
    if kind.pool == _PREFILL:
        return _Sizes(prompt, prompt, share - prompt)
    return _Sizes(prompt, int((share - prompt) // block) * block, float(prompt))


def _read_s(deployment: Deployment, kind: NodeKind) -> float:
    return deployment.llm.read_bytes_per_token / kind.storage_read_bytes_per_s


def _dropped(asked: Asked) -> tuple[Dropped, ...]:
    deployment = asked.deployment
    return (
        no_decode_reads(
            asked.plan,
            "a receiver reads from PDBackend alone (LMCacheEngineConfig.validate), so all hits are read "
            "by prefill engines",
        ),
        Dropped(
            f"alpha = {deployment.alpha_s:g} s and beta = {deployment.beta_s:g} s, quota, Z, dual "
            f"values, read weights",
            "LMCache has no queues; who computes what is decided by the engine and its router",
            "none from here: set them in the engine's and the router's files",
        ),
        Dropped(
            "layerwise prefill",
            "use_layerwise is not written: whether it goes with enable_pd was not to be found out "
            "without a GPU",
            "a prefill engine keeps all layers of a request's hits in HBM while it computes; no figure "
            "of the plan says what that costs",
        ),
        no_qos(asked.plan),
    )


def _notes(asked: Asked) -> tuple[str, ...]:
    notes = [
        "LMCache hands off between vLLM engines (LMCacheConnectorV1); SGLang 0.5.23 refuses "
        "--enable-lmcache with --disaggregation-mode, so use the target sglang there",
        "remote_url is not written: it is deprecated, and LMCache warns of it; the fs plugin is the "
        "same store",
    ]
    for kind in asked.deployment.kinds:
        if kind.buffer_bytes is None:
            notes.append(
                f"max_local_cpu_size is left out on {kind.pool} nodes {_listed(kind)}, whose buffer the "
                f"scenario does not give: LMCache then takes 5 GiB a worker; pd_buffer_size is the "
                f"largest prompt's KV-cache, the least with which every request is handed off"
            )
        if kind.pool == _PREFILL and not worth_reading(asked.deployment, kind):
            notes.append(
                f"min_retrieve_tokens is left out on prefill nodes {_listed(kind)}: an engine computes "
                f"a hit token sooner than the storage gives it, so no length is worth reading"
            )
    if any(copies > 1 for copies in asked.deployment.llm.copies.values()):
        notes.append(
            "engines with latent attention over several ranks store by their first rank alone, so of "
            "max_local_cpu_size only that rank's part is used; "
            "extra_config.first_rank_max_local_cpu_size can give it the others'"
        )
    return tuple(notes)


def _listed(kind: NodeKind) -> str:
    return ", ".join(map(str, kind.positions))


TARGET = Target(
    name="lmcache",
    software="LMCache",
    about="YAML for LMCache in vLLM engines: senders on prefill nodes, receivers on decode nodes, one "
    "store in a shared folder.",
    versions=("0.5.0", "0.5.6"),
    expresses=(
        "roles and hand-off from DRAM to DRAM",
        "block size as chunk size",
        "DRAM buffer per worker, split between hand-off and cache",
        "the least worth reading",
        "storage folder, write-back of what decode nodes generate",
    ),
    cannot=(
        "split x: receivers read nothing from storage",
        "alpha, beta, quota, Z",
        "dual values, read weights, QoS weights",
    ),
    parser="LMCacheEngineConfig.from_file and validate, with any warning of its config module a failure "
    "and to_dict compared with the file",
    apply=(
        "Install `lmcache` in the version above beside vLLM on every node and mount the site's store.",
        "Start each vLLM engine with `LMCACHE_CONFIG_FILE=FILE PYTHONHASHSEED=0` and "
        '`--kv-transfer-config \'{"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_producer"}\'` '
        "(decode: `kv_consumer`).",
        "Start the proxy of LMCache's disaggregated-prefill examples on the site's proxy host, with "
        "`ports.lmcache_proxy` and the receivers' hosts and ports; the wheel does not have it.",
    ),
    check=(
        "The log shows `LMCache Configuration:` with the values of the file and no `Unknown "
        "configuration key`.",
        "After a long prompt the store's folder holds files, and the same prompt again logs `LMCache "
        "hit tokens`.",
    ),
    roll_back=("Restart the engines with the file before, or without `--kv-transfer-config`.",),
    build=build,
)
