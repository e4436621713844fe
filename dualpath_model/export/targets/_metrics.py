"""What Prometheus records of a deployment: names and expressions that rules and dashboard share.

Engines: names and labels of vLLM 0.33.0 and SGLang 0.5.23, read in their sources; whichever of the two
is there is taken (``A or B``). vLLM's counters are exposed with ``_total`` behind the source's name.
Nodes: node_exporter 1.5.0. Our scrape configuration gives every series ``pool`` and ``node``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dualpath_model.deployment import Deployment, NodeKind
from dualpath_model.export.site import Site

SCRAPE_S = 15
RATE_S = 4 * SCRAPE_S
"""Window of the NICs' rates: four scrapes, so that one that is missed does not leave a hole."""
READS = "dualpath:storage_read_bytes_per_second"
WRITES = "dualpath:storage_write_bytes_per_second"
SPLIT = "dualpath:storage_read_split"
REQUESTS = "dualpath:requests_per_second"
TTFT_P90 = "dualpath:ttft_seconds:p90"
TTFT_P99 = "dualpath:ttft_seconds:p99"
TPOT_P90 = "dualpath:tpot_seconds:p90"
UNFINISHED = "dualpath:prefill_unfinished_requests"
DECODING = "dualpath:decode_running_requests"
READ_QUEUE = "dualpath:reads_waiting_requests"
HIT_RATE = "dualpath:hit_rate"
STORAGE_TIERS = "[0-9]+:(fs|obj)"
"""vLLM names a tier by its place and type, ``1:fs``; reads from peers (``p2p``) are no storage reads."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recording rule."""

    name: str
    expression: str
    about: str
    unit: str


def quoted(text: str) -> str:
    """Return text as a string of PromQL, whose escapes are Go's and so JSON's."""
    return json.dumps(text, ensure_ascii=False)


def one_of(names: Sequence[str]) -> str:
    """Return a string of PromQL with a regular expression that matches exactly these names."""
    # RE2 takes a backslash before these only; before a space or a letter it would be an error
    return quoted("|".join(re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", name) for name in names))


def duration(seconds: float) -> str:
    """Return whole seconds as Prometheus writes them: ``75`` is ``1m15s``."""
    left, found = round(seconds), ""
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        found += f"{count}{unit}" if count else ""
    return found or "0s"


def interfaces(deployment: Deployment, site: Site) -> list[str]:
    """Return the interfaces that carry storage traffic: the site's, else one assumed for each NIC.

    Nodes without storage NICs read through their compute NICs.
    """
    if site.storage_interfaces is not None:
        return site.storage_interfaces
    shared = max((kind.cnics for kind in deployment.kinds if not kind.snics), default=0)
    found = [f"storage{n}" for n in range(max(kind.snics for kind in deployment.kinds))]
    return found + (site.compute_interfaces or [f"compute{n}" for n in range(shared)])[:shared]


def interface_fields(deployment: Deployment) -> tuple[str, ...]:
    """Return the fields of the site that :func:`interfaces` looks at."""
    shared = any(not kind.snics for kind in deployment.kinds)
    return ("storage_interfaces", *(("compute_interfaces",) if shared else ()))


def spoken(nodes: Sequence[str]) -> str:
    """Return labels of nodes as people say them; many that follow each other as a range."""
    numbers = [int(node[1:]) for node in nodes]
    if len(nodes) > 3 and numbers == list(range(numbers[0], numbers[0] + len(nodes))):
        return f"{nodes[0]} to {nodes[-1]}"
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    return ", ".join(nodes[:8]) + more


def node_label(pool: str, position: int) -> str:
    """Return a node's label: that of the scheduler's file, ``p0``, ``d3``."""
    return f"{pool[0]}{position}"


def nodes_of(kind: NodeKind) -> list[str]:
    """Return the labels of the nodes of a kind."""
    return [node_label(kind.pool, position) for position in kind.positions]


def window_s(deployment: Deployment, requests_per_s: float) -> int:
    """Return the window over which balance and latencies are judged, whole minutes from 5 to 60.

    A node's reads must be so many that chance alone (their number's own spread) moves them by a third of
    the tolerance, at half the plan's rate.
    """
    needed = (3 / tolerance(deployment)) ** 2
    nodes = sum(kind.count for kind in deployment.kinds)
    minutes = math.ceil(2 * needed * nodes / requests_per_s / 60)
    return 60 * min(60, max(5, minutes))


def tolerance(deployment: Deployment) -> float:
    """Return what a node may read beyond its share: that of Z, at least 5 %."""
    return max(deployment.settings.z_factor - 1, 0.05)


def recorded(deployment: Deployment, site: Site, window: int) -> tuple[Recorded, ...]:
    """Return the recording rules; ``window`` in seconds."""
    device = one_of(interfaces(deployment, site))
    short, long = duration(RATE_S), duration(window)
    nic = f'{{pool=~"prefill|decode",device=~{device}}}[{short}]'
    return (
        Recorded(
            READS,
            f"sum by (pool, node) (rate(node_network_receive_bytes_total{nic}))",
            "received on the storage interfaces of a node",
            "bytes/s",
        ),
        Recorded(
            WRITES,
            f"sum by (pool, node) (rate(node_network_transmit_bytes_total{nic}))",
            "sent on the storage interfaces of a node",
            "bytes/s",
        ),
        Recorded(
            SPLIT, _split(long), "storage reads of decode nodes / all storage reads", "fraction"
        ),
        Recorded(
            REQUESTS, _requests(long), "requests that arrive: ended, and queued beyond", "1/s"
        ),
        Recorded(TTFT_P90, _ttft(0.9, long), "p90 of the time to first token", "s"),
        Recorded(TTFT_P99, _ttft(0.99, long), "p99 of the time to first token", "s"),
        Recorded(TPOT_P90, _tpot(0.9, long), "p90 over requests of the time per output token", "s"),
        Recorded(
            UNFINISHED,
            "sum by (pool, node, instance, engine) "
            '(vllm:num_requests_waiting{pool="prefill"} + vllm:num_requests_running{pool="prefill"}) '
            "or max by (pool, node, instance, dp_rank) "
            '(sglang:num_queue_reqs{pool="prefill"} + sglang:num_running_reqs{pool="prefill"})',
            "requests that wait or run on a prefill engine",
            "requests",
        ),
        Recorded(
            DECODING,
            'sum by (pool, node, instance, engine) (vllm:num_requests_running{pool="decode"}) '
            'or max by (pool, node, instance, dp_rank) (sglang:num_running_reqs{pool="decode"})',
            "requests that one engine decodes",
            "requests",
        ),
        Recorded(
            READ_QUEUE,
            "sum by (pool, node) (vllm:num_requests_kv_fetch_by_stage"
            '{pool="prefill",stage=~"waiting_to_start|in_progress"})',
            "requests whose KV-cache is still to be loaded on a prefill node (vLLM only)",
            "requests",
        ),
        Recorded(
            HIT_RATE, _hit_rate(long), "prompt tokens that were hits / prompt tokens", "fraction"
        ),
    )


def _split(window: str) -> str:
    def of(metric: str, labels: str) -> str:
        decode = f'sum(rate({metric}{{pool="decode"{labels}}}[{window}]))'
        both = f'sum(rate({metric}{{pool=~"prefill|decode"{labels}}}[{window}]))'
        return f"({decode} or vector(0)) / {both}"

    tiers = f",tier=~{quoted(STORAGE_TIERS)}"
    vllm = of("vllm:kv_offload_tiering_read_bytes_total", tiers)
    return f"{vllm} or {of('sglang:prefetched_tokens_total', '')}"


def _requests(window: str) -> str:
    def of(ended: str, queued: str) -> str:
        # completions alone cannot exceed what the cluster does; a growing queue shows the rest
        growth = f'clamp_min(sum(deriv({queued}{{pool="prefill"}}[{window}])), 0)'
        return f'sum(rate({ended}{{pool="prefill"}}[{window}])) + ({growth} or vector(0))'

    vllm = of("vllm:request_success_total", "vllm:num_requests_waiting")
    return f"{vllm} or {of('sglang:num_requests_total', 'sglang:num_queue_reqs')}"


def _quantile(share: float, buckets: str, window: str) -> str:
    return f"histogram_quantile({share:g}, sum by (le) (rate({buckets}[{window}])))"


def _ttft(share: float, window: str) -> str:
    # vLLM's proxy asks prefill first, so only that sees reads and prefill; SGLang asks both at once
    vllm = _quantile(share, 'vllm:time_to_first_token_seconds_bucket{pool="prefill"}', window)
    return (
        vllm
        + " or "
        + _quantile(share, 'sglang:time_to_first_token_seconds_bucket{pool="decode"}', window)
    )


def _tpot(share: float, window: str) -> str:
    name = 'request_time_per_output_token_seconds_bucket{pool="decode"}'
    return " or ".join(
        _quantile(share, f"{engine}:{name}", window) for engine in ("vllm", "sglang")
    )


def _hit_rate(window: str) -> str:
    def of(cached: str, prompt: str) -> str:
        hits = f'sum(rate({cached}{{pool="prefill"}}[{window}]))'
        return f'{hits} / sum(rate({prompt}{{pool="prefill"}}[{window}]))'

    vllm = of("vllm:prompt_tokens_cached_total", "vllm:prompt_tokens_total")
    return f"{vllm} or {of('sglang:cached_tokens_total', 'sglang:prompt_tokens_total')}"
