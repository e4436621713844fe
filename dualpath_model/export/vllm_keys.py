"""Names that vLLM takes in ``--kv-transfer-config``, as far as we write them, and since when.

vLLM itself takes any connector name and any extra key (exports.md, section 2), so files are checked
against these lists and these, in tests, against the package's own source.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VERSIONS = ("0.25.0", "0.26.0", "0.27.0", "0.28.0", "0.31.0", "0.33.0")
"""Wheels that were read, oldest first. 0.23.0 has tiers but no ``p2p``."""

REMOTE_SOURCE_SINCE = "0.27.0"
"""``remote_kv_source`` and ``kv_load_tiers`` of a request: without them decode nodes read for nobody."""

SINCE: Mapping[str, str] = MappingProxyType(
    {
        "blocks_per_chunk": "0.26.0",  # before: block_size, in tokens
        "canonical_layout": "0.28.0",
        "locality": "0.26.0",  # of the fs tier
    }
)

NIXL_KEYS = frozenset({"bidirectional_kv_xfer", "kv_recompute_threshold", "decoder_kv_blocks_ttl"})
OFFLOADING_KEYS = frozenset(
    {
        "spec_name",
        "cpu_bytes_to_use",
        "blocks_per_chunk",
        "block_size",
        "canonical_layout",
        "offload_prompt_only",
        "secondary_tiers",
    }
)
MULTI_KEYS = frozenset({"connectors"})
TIER_KEYS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "p2p": frozenset({"type", "host", "port"}),
        "fs": frozenset({"type", "root_dir", "locality"}),
    }
)
FLAGS = frozenset(
    {
        "--host",
        "--port",
        "--tensor-parallel-size",
        "--data-parallel-size",
        "--data-parallel-size-local",
        "--data-parallel-start-rank",
        "--data-parallel-address",
        "--data-parallel-rpc-port",
        "--enable-expert-parallel",
        "--block-size",
        "--kv-cache-dtype",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--kv-transfer-config",
    }
)
"""Of ``vllm serve``; engine/arg_utils.py of all versions has them."""

NO_LOADS: tuple[Mapping[str, str], ...] = ()
"""``kv_load_tiers`` of a request whose KV-cache comes another way: only its CPU tier is looked at."""

FROM_PEERS: tuple[Mapping[str, str], ...] = (MappingProxyType({"medium": "CPU"}),)
"""``kv_load_tiers`` of a request that reads through a decode node: all tiers but storage.

A p2p lookup takes a message to the peer and back; tiering/manager.py goes on to the next tier meanwhile,
so that without the filter the prefill node's own ``fs`` tier would read the hits whenever it answers
first. The p2p tier has no medium and passes any filter that is not empty.
"""
