"""vLLM on the requests that a proxy sends: ``FILE``, a JSON list of {path, headers, body}. 3: refused.

Real: the request classes of its HTTP API, what its p2p tier reads from ``kv_transfer_params``, its
filter of tiers, and the header that chooses an engine.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import vllm_source as source

_PROTOCOLS = {
    "/v1/completions": ("vllm.entrypoints.openai.completion.protocol", "Completion"),
    "/v1/chat/completions": ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletion"),
}
_P2P = "v1/kv_offload/tiering/p2p/manager.py"
_OFFLOADING = "distributed/kv_transfer/kv_connector/v1/offloading/scheduler.py"
_NIXL = "distributed/kv_transfer/kv_connector/v1/nixl/pull_scheduler.py"
RANK = "X-data-parallel-rank"


class RefusedError(Exception):
    """vLLM would not do what the request is for."""


class Reader:
    """vLLM's own readers of a request."""

    def __init__(self) -> None:
        source.real_modules(
            "vllm.entrypoints.serve.engine.protocol",
            "vllm.entrypoints.generate.base.protocol",
            *(name for name, _ in _PROTOCOLS.values()),
        )
        self.classes = {}
        for path, (name, start) in _PROTOCOLS.items():
            module = __import__(name, fromlist=["x"])
            self.classes[path] = getattr(module, f"{start}Request")
        self.parse_source = source.functions(
            _P2P,
            "_remote_prefiller_params",
            "_remote_kv_source_params",
            "_peer_id_from_params",
            "P2PSourceInfo",
            "_parse_source",
            dataclass=dataclasses.dataclass,
        )["_parse_source"]
        base = source.functions(
            "v1/kv_offload/base.py",
            "Medium",
            "Locality",
            "TierMatcher",
            "TierFilter",
            Enum=enum.Enum,
            NamedTuple=NamedTuple,
            dataclass=dataclasses.dataclass,
        )
        base["TierFilter"].ALL = base["TierFilter"](matchers=(base["TierMatcher"](),))
        self.medium = base["Medium"]
        names = (
            "KV_LOAD_TIERS_KEY",
            "MATCHER_MEDIUM_KEY",
            "MATCHER_LOCALITY_KEY",
            "_parse_tier_filter",
        )
        logger = logging.getLogger("vllm")
        self.offloading = source.functions(_OFFLOADING, *names, logger=logger, **_public(base))
        self.nixl = source.texts(_NIXL)
        if RANK not in source.texts("entrypoints/generate/base/serving.py"):
            raise RefusedError(f"vLLM does not read {RANK}")

    def read(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        """Return what vLLM understands. Raises ValidationError or RefusedError."""
        kind = self.classes[path]
        request = kind.model_validate(body)
        if unknown := set(body) - set(kind.model_fields):
            raise RefusedError(f"{kind.__name__} has no {sorted(unknown)}")
        params = request.kv_transfer_params
        if not isinstance(params, dict):
            raise RefusedError("no kv_transfer_params: the hand-off would not happen")
        tiers = params.get(self.offloading["KV_LOAD_TIERS_KEY"])
        found = self.parse_source(params)
        if "remote_kv_source" in params and (found is None or not found.do_probe):
            raise RefusedError(f"the p2p tier reads no source from {params['remote_kv_source']}")
        known = self.nixl | {"remote_kv_source", "tp_size", self.offloading["KV_LOAD_TIERS_KEY"]}
        if unknown := set(params) - known:
            raise RefusedError(f"no connector reads {sorted(unknown)}")
        return {
            "prefill": bool(params.get("do_remote_decode")),
            "decode": bool(params.get("do_remote_prefill")),
            "peer": None if found is None else found.peer_id,
            "kv_request_id": None if found is None else found.kv_request_id,
            "pulls": bool(params.get("remote_block_ids")) and bool(params.get("do_remote_decode")),
            "tiers": None if tiers is None else self._allowed(tiers),
            "max_tokens": request.max_tokens,
            "stream": bool(request.stream),
            "session": request.session_id,
            "rank": next((v for k, v in headers.items() if k.lower() == RANK.lower()), None),
        }

    def _allowed(self, raw: Any) -> list[str]:
        """Return which tiers a filter lets a request use: p2p has no medium, fs is storage."""
        parsed = self.offloading["_parse_tier_filter"](raw)
        media = {"p2p": None, "fs": self.medium.STORAGE}
        return sorted(name for name, medium in media.items() if parsed.allows(medium, None))


def _public(names: dict[str, Any]) -> dict[str, Any]:
    return {name: names[name] for name in ("Medium", "Locality", "TierMatcher", "TierFilter")}


def main() -> int:
    """Print what vLLM reads, one entry a request."""
    requests = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    reader = Reader()
    found = []
    for number, entry in enumerate(requests):
        try:
            found.append(reader.read(entry["path"], entry["headers"], entry["body"]))
        except (pydantic.ValidationError, RefusedError, ValueError) as error:
            print(f"request {number}: {error}")
            return 3
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
