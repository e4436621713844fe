"""Target ``mooncake``: the store's clients, in the forms of Mooncake, vLLM and SGLang, and its master.

Keys were read in the wheels of the versions below (mooncake/mooncake_config.py; the master's in its
binary), in vLLM 0.33.0 (distributed/mooncake_store.py) and SGLang 0.5.23
(srt/mem_cache/storage/mooncake_store). Sizes are written in bytes: "80gb" would be GiB to all three.
"""

from __future__ import annotations

import math

from dualpath_model.deployment import NodeKind
from dualpath_model.errors import InputError
from dualpath_model.export.documents import File, json_file
from dualpath_model.export.quoting import one_line
from dualpath_model.export.site import host, of_site
from dualpath_model.export.target import Asked, Bundle, Dropped, Target, no_decode_reads, no_qos
from dualpath_model.export.values import Document, Value, derived, fixed


def build(asked: Asked) -> Bundle:
    """Return the files of clients, by node and by kind, and the master's."""
    files: list[File] = [_master(asked)]
    for pool in ("prefill", "decode"):
        kinds = asked.deployment.pool(pool)
        for number, kind in enumerate(kinds):
            name = pool if len(kinds) == 1 else f"{pool}-kind-{number}"
            files += _engines(asked, kind, name)
            files += [_client(asked, kind, position) for position in kind.positions]
    return Bundle(tuple(files), _dropped(asked), _notes(asked))


def _client(asked: Asked, kind: NodeKind, position: int) -> File:
    document = {
        "local_hostname": host(asked.site, kind.pool, position),
        **_common(asked),
        **_segment(asked, kind),
        "local_buffer_size": _local(asked, kind),
    }
    return json_file(
        f"clients/{kind.pool}-{position}.json",
        f"Mooncake's own clients on {kind.pool} node {position} (`MOONCAKE_CONFIG_PATH`)",
        document,
    )


def _engines(asked: Asked, kind: NodeKind, name: str) -> list[File]:
    nodes = ", ".join(map(str, kind.positions))
    segment = _segment(asked, kind)
    mode = fixed("embedded", "each worker gives its part of the pool, in its own process")
    vllm = {**_common(asked), **({"mode": mode} if segment else {}), **segment}
    return [
        json_file(
            f"vllm/{name}.json",
            f"vLLM's MooncakeStoreConnector on {kind.pool} nodes {nodes} (`MOONCAKE_CONFIG_PATH`)",
            {**vllm, "local_buffer_size": _local(asked, kind)},
        ),
        json_file(
            f"sglang/{name}.json",
            f"SGLang's HiCache on {kind.pool} nodes {nodes} "
            f"(`--hicache-storage-backend mooncake --hicache-storage-backend-extra-config @FILE`)",
            {**_common(asked), **segment},
        ),
    ]


def _common(asked: Asked) -> dict[str, Document]:
    site = asked.site
    _address(asked)
    document: dict[str, Document] = {
        "metadata_server": of_site(site, "mooncake_metadata"),
        "master_server_address": of_site(site, "mooncake_master"),
        "protocol": fixed("rdma", "over the compute NICs"),
    }
    if site.compute_devices is not None:
        for device in site.compute_devices:
            if "," in device or " " in device:
                raise InputError(
                    f"site: compute_devices has '{one_line(device)}', but Mooncake separates devices by "
                    f"commas; name one device in each entry, such as mlx5_0"
                )
        devices = ",".join(site.compute_devices)
        document["device_name"] = of_site(site, "compute_devices", devices)
    return document


def _segment(asked: Asked, kind: NodeKind) -> dict[str, Document]:
    """Return what each worker gives to the pool. Raises InputError if its buffer holds no more than one
    prompt.
    """
    if kind.buffer_bytes is None:
        return {}
    local, share = _prompt_bytes(asked, kind), kind.buffer_bytes / kind.gpus
    if share <= local:
        raise InputError(
            f"plan: the buffer of {kind.pool} nodes is {share / 1e9:.3g} GB for each of {kind.gpus} "
            f"workers, no more than the KV-cache of the largest prompt ({local / 1e9:.3g} GB) that a "
            f"Mooncake client stages, so nothing is left for the pool; give the node a buffer of more "
            f"than {math.ceil(local * kind.gpus / 1e9)} GB in the scenario and plan again"
        )
    size = derived(
        math.floor(share - local),
        "DRAM buffer of a node / its GPUs, less local_buffer_size: what each worker gives to the pool",
        "bytes for each worker",
        buffer_bytes=kind.buffer_bytes,
        workers=kind.gpus,
        local_buffer_size=local,
    )
    return {"global_segment_size": size}


def _local(asked: Asked, kind: NodeKind) -> Value:
    return derived(
        _prompt_bytes(asked, kind),
        "the KV-cache of the largest prompt, in whole blocks: what one request stages",
        "bytes for each worker",
        prompt_tokens=asked.deployment.workload.prompt_tokens.most,
        kv_bytes_per_token=asked.deployment.llm.kv_bytes_per_token,
    )


def _prompt_bytes(asked: Asked, kind: NodeKind) -> int:
    deployment, block = asked.deployment, asked.plan.scheduler_parameters.block_tokens
    tokens = math.ceil(deployment.workload.prompt_tokens.most / block) * block
    copies = deployment.llm.copies.get(kind.pool, 1.0)
    return math.ceil(tokens * deployment.llm.kv_bytes_per_token * copies / kind.tensor)


def _master(asked: Asked) -> File:
    deployment = asked.deployment
    _, port = _address(asked)
    rates = [
        kind.cnics * kind.cnic_bytes_per_s / kind.engines for kind in deployment.kinds if kind.cnics
    ] or [kind.storage_read_bytes_per_s for kind in deployment.kinds]
    most = deployment.workload.hit_tokens.most * deployment.llm.read_bytes_per_token
    lease_s = deployment.alpha_s + most / min(rates)
    document: Document = {
        "rpc_port": of_site(asked.site, "mooncake_master", port),
        "default_kv_lease_ttl": derived(
            math.ceil(lease_s * 1000),
            "alpha (a read may wait so long) + the largest hit / rate of an engine's compute NICs: what "
            "is read must not be evicted before",
            "ms",
            alpha_s=deployment.alpha_s,
            most_hit_bytes=most,
            bytes_per_s=min(rates),
        ),
    }
    return json_file("master.json", "the master (`mooncake_master --config_path=FILE`)", document)


def _address(asked: Asked) -> tuple[str, int]:
    """Return host and port of the master. Raises InputError for what is no such pair."""
    text = asked.site.mooncake_master
    name, _, port = text.rpartition(":")
    if not name or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise InputError(
            f"site: mooncake_master is '{one_line(text)}'; it must be HOST:PORT with a port from 1 to "
            f"65535, such as mooncake-master.example.internal:50051"
        )
    return name, int(port)


def _dropped(asked: Asked) -> tuple[Dropped, ...]:
    deployment = asked.deployment
    sizes = [
        kind.count * (kind.buffer_bytes - kind.gpus * _prompt_bytes(asked, kind))
        for kind in deployment.kinds
        if kind.buffer_bytes is not None
    ]
    prompt = deployment.workload.prompt_tokens.mean
    tokens = sum(sizes) / deployment.llm.kv_bytes_per_token
    return (
        no_decode_reads(
            asked.plan,
            "a client reads into the process that asks, from whichever node has it; no field says which "
            "node it goes through",
        ),
        Dropped(
            "the storage behind the DRAM",
            "the pool is DRAM; what it evicts is gone (SSD offload is of the node's own disks)",
            f"the pool holds {tokens:.4g} tokens, {tokens / prompt:.4g} mean prompts; hits beyond it "
            f"are computed again"
            if sizes
            else "no figure: the scenario gives no buffer, so the pool's size is Mooncake's default",
        ),
        Dropped(
            "beta, quota, Z, dual values",
            "the store has no queues of requests",
            "none from here: set them in the files of vllm or sglang",
        ),
        no_qos(asked.plan),
    )


def _notes(asked: Asked) -> tuple[str, ...]:
    notes = [
        "sglang/*.json names no local_hostname: set MOONCAKE_LOCAL_HOSTNAME to the node's own address; "
        "SGLang stages in its host pool, so its hicache-size and global_segment_size together must not "
        "be more than the buffer of a rank",
        "eviction ratios are left at the master's defaults: the plan says nothing of eviction",
    ]
    if asked.site.compute_devices is None:
        notes.append(
            "device_name is left out: the site names no compute_devices, so Mooncake takes every RDMA "
            "device it finds, storage NICs too"
        )
    notes += [
        f"global_segment_size is left out on {kind.pool} nodes {', '.join(map(str, kind.positions))}, "
        f"whose buffer the scenario does not give: each parser then takes its default (vLLM 4 GiB, "
        f"Mooncake 3.125 GiB a worker)"
        for kind in asked.deployment.kinds
        if kind.buffer_bytes is None
    ]
    return tuple(notes)


TARGET = Target(
    name="mooncake",
    software="Mooncake store",
    about="The DRAM pool: clients in the forms that Mooncake, vLLM and SGLang read, and the master.",
    versions=("0.3.7", "0.3.10", "0.3.13.post1"),
    expresses=(
        "DRAM buffer per worker, split into pool and staging",
        "compute NICs",
        "how long a read is safe from eviction, from alpha and the rates",
    ),
    cannot=(
        "split x: no field says through which node a hit goes",
        "the storage tier behind the DRAM",
        "beta, quota, Z, dual values, QoS weights (see roce for MC_IB_TC)",
    ),
    parser="MooncakeConfig.from_file, vLLM's MooncakeStoreConfig.from_file and SGLang's form cut out of "
    "its package, with unknown keys compared; mooncake_master started on loopback with the file",
    apply=(
        "Start the master on the host that the site's mooncake_master names: "
        "`mooncake_master --config_path=master.json`.",
        "vLLM: `MOONCAKE_CONFIG_PATH=FILE`, of `vllm/` that of the node's pool (and kind), and the "
        "connector MooncakeStoreConnector.",
        "SGLang: `--hicache-storage-backend mooncake --hicache-storage-backend-extra-config @FILE`, of "
        "`sglang/` that of the node's pool (and kind), and `MOONCAKE_LOCAL_HOSTNAME` of the node.",
        "Other clients: `MOONCAKE_CONFIG_PATH=FILE`, of `clients/` that of the node.",
    ),
    check=(
        "The master's first log line has `default_kv_lease_ttl` and `rpc_port` of the file.",
        "`curl MASTER:9003/metrics` shows `master_total_capacity_bytes` of all workers together.",
    ),
    roll_back=(
        "Restart the engines without the connector or with the file before, then the master: the pool "
        "is a cache, what it held is computed again.",
    ),
    build=build,
)
