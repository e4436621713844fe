"""The step tables of serving frameworks: what the software that people run moves, in the paper's terms.

Read in the packages of the versions below; each table names the files. None of them loads a request's
hits through the decode node layer by layer, as the paper does. What the tables assume, as the paper
does: nothing is found in a node's DRAM or HBM but what a path says, and tokens that are hits include
those that the turn before generated, so decode nodes store what they generate.

Content hashes name what is stored, and all three stores leave alone what is there already
(vllm/v1/kv_offload/tiering/fs/io.py ``_store_block``, sglang/srt/mem_cache/hicache_storage.py ``set``):
tokens that both sides offload reach the storage once, from the prefill node, which has them first, but
are copied into host memory on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dualpath_model.errors import unknown_name
from dualpath_model.paths import (
    DE_DRAM,
    DE_HBM,
    PAPER,
    PE_DRAM,
    PE_HBM,
    STORAGE,
    Mover,
    Path,
    Payload,
    Phase,
    Pool,
    Stay,
    Step,
    StepTable,
)

_HIT, _MISS = (Payload.HIT,), (Payload.MISS,)
_APPENDED, _GENERATED = (Payload.APPENDED,), (Payload.GENERATED,)
_REQUEST_BY_REQUEST = "request by request, not layer by layer: loads come before prefill"


# ---- vLLM 0.33.0 ---------------------------------------------------------------------------------
# Paths below vllm/. Tiered OffloadingConnector (v1/kv_offload/tiering/manager.py): the CPU tier is
# the primary one, chunks of the file tier are promoted into it before they are loaded. Copies to
# and from the GPU: v1/kv_offload/cpu/gpu_worker.py (batched DMA; small pages by a GPU kernel, over
# PCIe too). Loads are of whole requests:
# distributed/kv_transfer/kv_connector/v1/offloading_connector.py has an empty
# ``wait_for_layer_load``.

_READ_BY_PREFILL = Step("fs tier", STORAGE, PE_DRAM, _HIT, Phase.READ)
_READ_BY_DECODE = Step("fs tier", STORAGE, DE_DRAM, _HIT, Phase.READ)
_COPY_UP = Step("copy up", PE_DRAM, PE_HBM, _HIT, Phase.LOAD, Mover.COPY)

# One connector serves a request (multi_connector.py ``get_num_new_matched_tokens``: the first one
# with tokens), and Nixl's D asks for the whole prompt but what is in its own HBM
# (nixl/pull_scheduler.py): so the hits are handed off too, whichever node has read them. From HBM
# to HBM; the host buffer is for accelerators that Nixl does not reach.
_HAND_OFF_HIT = Step("nixl", PE_HBM, DE_HBM, _HIT, Phase.HAND_OFF)
_HAND_OFF_MISS = Step("nixl", PE_HBM, DE_HBM, _MISS, Phase.HAND_OFF)

# D with ``offload_prompt_only: false`` (v1/kv_offload/base.py) offers all tokens of a request that
# its OffloadingConnector did not load itself (offloading/scheduler.py ``_build_store_jobs``), the
# prompt that came over Nixl included; cpu/manager.py ``prepare_store`` leaves out what its CPU tier
# has.
_OFFLOAD_HIT = Step("offload prompt", DE_HBM, DE_DRAM, _HIT, Phase.WRITE_BACK, Mover.COPY)
_PREFILL_STORES = (
    Step("offload", PE_HBM, PE_DRAM, _APPENDED, Phase.WRITE_BACK, Mover.COPY),
    Step("cascade", PE_DRAM, STORAGE, _APPENDED, Phase.WRITE_BACK),
)
_DECODE_COPIES_PROMPT = Step(
    "offload prompt", DE_HBM, DE_DRAM, _APPENDED, Phase.WRITE_BACK, Mover.COPY
)
_DECODE_STORES = (
    Step("offload", DE_HBM, DE_DRAM, _GENERATED, Phase.WRITE_BACK, Mover.COPY),
    Step("cascade", DE_DRAM, STORAGE, _GENERATED, Phase.WRITE_BACK),
)

_VLLM_PREFILL_READ = Path(
    "prefill read",
    "hits are read by the prefill node, copied to its GPU and handed to the decode GPU after prefill",
    (_READ_BY_PREFILL, _COPY_UP, _HAND_OFF_HIT, _OFFLOAD_HIT),
)
_VLLM_CACHE = Path(
    "prefill DRAM cache",
    "hits are already in the prefill node's CPU tier: no storage NIC, otherwise as prefill read",
    (_COPY_UP, _HAND_OFF_HIT, _OFFLOAD_HIT),
)
_NIXL_HAND_OFF = Path(
    "miss hand-off",
    "KV-cache of the miss tokens goes from GPU to GPU, on either path",
    (_HAND_OFF_MISS,),
)
_VLLM_WRITE_BACK = Path(
    "write-back",
    "the prefill node stores the prompt, the decode node what it generates; it copies the prompt too",
    (*_PREFILL_STORES, _DECODE_COPIES_PROMPT, *_DECODE_STORES),
)

VLLM = StepTable(
    "vllm",
    prefill_read=_VLLM_PREFILL_READ,
    # v1/kv_offload/tiering/p2p/: P fetches from D's CPU tier over NIXL, DRAM to DRAM
    # (data/nixl.py); what D's CPU tier lacks it promotes from its own file tier first.
    decode_read=Path(
        "decode read",
        "hits are read by the decode node and go through both nodes' DRAM to the prefill GPU, and back "
        "with the hand-off",
        (
            _READ_BY_DECODE,
            Step("p2p tier", DE_DRAM, PE_DRAM, _HIT, Phase.LOAD),
            _COPY_UP,
            _HAND_OFF_HIT,
        ),
    ),
    cache_read=_VLLM_CACHE,
    always=(_NIXL_HAND_OFF, _VLLM_WRITE_BACK),
    layerwise=False,
    one_layer=False,
    software="vllm 0.33.0: OffloadingConnector with a p2p tier, NixlConnector",
    remark=_REQUEST_BY_REQUEST,
)
"""vLLM with Nixl hand-off and tiered offloading, by the configuration that moves least.

A MultiConnector asks all its connectors (multi_connector.py), so a decode node's OffloadingConnector
would promote the hits from storage even though Nixl brings them, unless its requests say
``kv_load_tiers: []`` (offloading/scheduler.py ``_parse_tier_filter``); the table assumes that they do.
"""

VLLM_PULL = StepTable(
    "vllm-pull",
    prefill_read=_VLLM_PREFILL_READ,
    # nixl/pull_scheduler.py: ``get_num_new_matched_tokens`` counts the tokens that D has kept of
    # the turn before, generated ones included; ``request_finished`` pins D's blocks until they have
    # been pulled or for decoder_kv_blocks_ttl (480 s). Freed, they are still D's prefix cache, so
    # that its own pull of the prompt leaves them out (``get_unhashed_block_ids_all_groups``): the
    # miss tokens alone come back. P's OffloadingConnector has not loaded the hits, so it offloads
    # them with the prompt.
    decode_read=Path(
        "pull from decode GPU",
        "the prefill node pulls the last turn's KV-cache from the HBM of the decode GPU, which keeps it",
        (
            Step("nixl pull", DE_HBM, PE_HBM, _HIT, Phase.LOAD),
            Step("offload prompt", PE_HBM, PE_DRAM, _HIT, Phase.WRITE_BACK, Mover.COPY),
        ),
        stays=(Stay(DE_HBM, _HIT),),
    ),
    cache_read=_VLLM_CACHE,
    always=(_NIXL_HAND_OFF, _VLLM_WRITE_BACK),
    layerwise=False,
    one_layer=False,
    software="vllm 0.33.0: NixlConnector with bidirectional_kv_xfer, OffloadingConnector",
    remark=f"{_REQUEST_BY_REQUEST}; what is pulled waits for no storage",
)
"""vLLM in which turns go back to the decode node of the turn before (``bidirectional_kv_xfer``).

What it keeps between turns occupies its HBM for the think time; the pull itself and the prefill, during
which the blocks are still held, are not counted.
"""


# ---- SGLang 0.5.23 -------------------------------------------------------------------------------
# Paths below sglang/srt/. With ``disaggregation_decode_enable_radix_cache`` and a hierarchical
# cache the decode node restores the hits itself (disaggregation/decode_hicache_mixin.py) and tells
# the prefill node, which sends what follows them (disaggregation/prefill.py ``decode_prefix_len``),
# a prefill chunk at a time. The prefill node reads the same hits for its own prefill.
# managers/cache_controller.py: pages come from storage to host memory whole, then layer by layer to
# the GPU, whose pool holds all layers.

_RESTORED = (
    Step("L3 prefetch, decode", STORAGE, DE_DRAM, _HIT, Phase.READ),
    Step("L2 load-back, decode", DE_DRAM, DE_HBM, _HIT, Phase.DECODE_START, Mover.COPY),
)
_LOADED_BACK = Step("L2 load-back", PE_DRAM, PE_HBM, _HIT, Phase.LOAD, Mover.COPY)
_BOTH_READ = (
    Step("L3 prefetch", STORAGE, PE_DRAM, _HIT, Phase.READ),
    _LOADED_BACK,
    *_RESTORED,
)

SGLANG = StepTable(
    "sglang",
    prefill_read=Path("read on both sides", "both nodes read the hits from storage", _BOTH_READ),
    decode_read=Path("read on both sides", "both nodes read the hits from storage", _BOTH_READ),
    cache_read=Path(
        "prefill DRAM cache",
        "hits are already in the prefill node's DRAM; the decode node reads them all the same",
        (_LOADED_BACK, *_RESTORED),
    ),
    always=(
        Path(
            "miss hand-off",
            "KV-cache of the miss tokens goes from GPU to GPU",
            (Step("transfer", PE_HBM, DE_HBM, _MISS, Phase.HAND_OFF),),
        ),
        # Write-through on both sides (hicache_write_policy); hits that were restored are backed up.
        Path(
            "write-back",
            "both nodes copy what they computed or received to host memory; storage gets it once",
            (*_PREFILL_STORES, _DECODE_COPIES_PROMPT, *_DECODE_STORES),
        ),
    ),
    layerwise=True,
    one_layer=False,
    software="sglang 0.5.23: decode radix cache, HiCache with a storage backend on both sides",
    remark="waits for the reads of both sides; loads into the GPU layer by layer",
)
"""SGLang with caches on both sides: there is no split to choose, every hit is read twice."""


# ---- Dynamo 1.6.1 --------------------------------------------------------------------------------
# Conditional disaggregation (dynamo/common/configuration/groups/kv_router_args.py): a request that
# the router marks (dynamo/vllm/handlers.py ``BYPASS_REMOTE_PREFILL_ANNOTATION``) runs whole on its
# decode worker. Otherwise vLLM's Nixl hand-off, with the store "riding along as save-only" on the
# decode side (dynamo/vllm/kv_connector_protocols.py).
# kvbm/vllm_integration/connector/dynamo_connector.py has an empty ``wait_for_layer_load`` too.

_DYNAMO_PREFILL = (_HAND_OFF_HIT, _HAND_OFF_MISS, _OFFLOAD_HIT, *_PREFILL_STORES)
DYNAMO = StepTable(
    "dynamo",
    prefill_read=Path(
        "prefill read",
        "hits are read by the prefill node; the whole prompt goes to the decode GPU after prefill",
        (_READ_BY_PREFILL, _COPY_UP, *_DYNAMO_PREFILL, _DECODE_COPIES_PROMPT),
    ),
    decode_read=Path(
        "prefill on decode node",
        "the decode node reads the hits into its own GPU and computes the prefill; no hand-off",
        (
            _READ_BY_DECODE,
            Step("copy up", DE_DRAM, DE_HBM, _HIT, Phase.LOAD, Mover.COPY),
            Step("offload", DE_HBM, DE_DRAM, _APPENDED, Phase.WRITE_BACK, Mover.COPY),
            Step("cascade", DE_DRAM, STORAGE, _APPENDED, Phase.WRITE_BACK),
        ),
        prefill_on=Pool.DECODE,
    ),
    cache_read=Path(
        "prefill DRAM cache",
        "hits are already in the prefill node's DRAM: no storage NIC, otherwise as prefill read",
        (_COPY_UP, *_DYNAMO_PREFILL, _DECODE_COPIES_PROMPT),
    ),
    always=(Path("write-back", "the decode node stores what it generates", _DECODE_STORES),),
    layerwise=False,
    one_layer=False,
    software="ai-dynamo 1.6.1, vLLM workers: conditional disaggregation",
    remark=f"{_REQUEST_BY_REQUEST}; prefill on a decode node delays its decoding",
)
"""Dynamo, which moves the prefill to the decode node rather than the hits to the prefill node."""


FRAMEWORKS: Mapping[str, StepTable] = MappingProxyType(
    {table.name: table for table in (PAPER, VLLM, VLLM_PULL, SGLANG, DYNAMO)}
)
"""Every table by the name that a scenario's ``framework`` gives."""


def table_named(name: str) -> StepTable:
    """Return a framework's table. Raises InputError naming the nearest if there is none."""
    if name not in FRAMEWORKS:
        raise unknown_name("framework", name, list(FRAMEWORKS))
    return FRAMEWORKS[name]
