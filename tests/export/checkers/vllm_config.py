"""vLLM on our files: ``configs FILE...``, ``commands FILE`` (a JSON list of commands), ``names``.

Real: vLLM's pydantic KVTransferConfig, also of each connector of a MultiConnector, as that makes them.
vLLM takes any connector's name and any extra key, so these are compared with what its source registers
and reads. 3: refused.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pydantic.dataclasses
import typing_extensions
import vllm_source as source

_V1 = "distributed/kv_transfer/kv_connector/v1"
_READ_BY = {
    "NixlConnector": (f"{_V1}/nixl",),
    "OffloadingConnector": (
        f"{_V1}/offloading_connector.py",
        f"{_V1}/offloading",
        "v1/kv_offload/base.py",
        "v1/kv_offload/factory.py",
        "v1/kv_offload/cpu/spec.py",
        "v1/kv_offload/tiering/spec.py",
    ),
    "MultiConnector": (f"{_V1}/multi_connector.py",),
}
_OF_THE_FACTORY = {"type", "module_path", "backpressure"}
_NOT_CONFIGURED = {"offloading_spec", "primary_kv_view", "tier_type", "backpressure_detector"}


class RefusedError(Exception):
    """vLLM, or the source of it, does not take this."""


def config_class() -> Any:
    """Return KVTransferConfig, made by vLLM's own decorator."""
    known = {
        "ConfigDict": pydantic.ConfigDict,
        "dataclass": pydantic.dataclasses.dataclass,
        "dataclass_transform": typing_extensions.dataclass_transform,
        "PydanticField": pydantic.Field,
        "Callable": Callable,
        "DataclassInstance": Any,
    }
    decorate = source.functions("config/utils.py", "ConfigType", "ConfigT", "config", **known)
    found = source.functions(
        "config/kv_transfer.py",
        "KVProducer",
        "KVConsumer",
        "KVRole",
        "kv_buffer_device_default_factory",
        "KVTransferConfig",
        config=decorate["config"],
        field=dataclasses.field,
        uuid=uuid,
    )
    return found["KVTransferConfig"]


def check_config(kind: Any, text: str) -> dict[str, Any]:
    """Return what vLLM reads from a config. Raises ValidationError, TypeError or RefusedError."""
    device = {"kv_buffer_device": "cuda"}  # vLLM's default asks the platform
    top = pydantic.TypeAdapter(kind).validate_python({**device, **json.loads(text)})
    children = []
    if top.kv_connector == "MultiConnector":
        listed = top.kv_connector_extra_config["connectors"]
        children = [kind(**device, **child, engine_id=top.engine_id) for child in listed]
    for config in (top, *children):
        check_names(config)
    return {
        "kv_connector": top.kv_connector,
        "kv_role": top.kv_role,
        "kv_load_failure_policy": top.kv_load_failure_policy,
        "connectors": {
            child.kv_connector: {"kv_role": child.kv_role, **child.kv_connector_extra_config}
            for child in children
        },
    }


def check_names(config: Any) -> None:
    """Compare names and keys with the source."""
    name, extra = config.kv_connector, config.kv_connector_extra_config
    connectors = source.registered(
        "distributed/kv_transfer/kv_connector/factory.py", "register_connector"
    )
    assert len(connectors) == 17, sorted(connectors)
    if name not in connectors:
        raise RefusedError(f"connector {name} is not registered")
    keys = source.extra_keys(*_READ_BY[name])
    if unknown := set(extra) - keys:
        raise RefusedError(f"{name} does not read {sorted(unknown)}, only {sorted(keys)}")
    if name == "OffloadingConnector":
        check_store(extra)


def check_store(extra: dict[str, Any]) -> None:
    specs = source.registered("v1/kv_offload/factory.py", "register_spec")
    if extra.get("spec_name", "CPUOffloadingSpec") not in specs:
        raise RefusedError(f"spec {extra['spec_name']} is not registered")
    if "blocks_per_chunk" in extra and "block_size" in extra:
        raise RefusedError("only one of block_size and blocks_per_chunk")
    for key in ("cpu_bytes_to_use", "blocks_per_chunk", "block_size"):
        if key in extra and int(extra[key]) <= 0:
            raise RefusedError(f"{key} must be above 0")
    tiers = source.registered("v1/kv_offload/tiering/factory.py", "register_tier")
    for tier in extra.get("secondary_tiers", []):
        if tier.get("type") not in tiers:
            raise RefusedError(f"tier {tier.get('type')} is not registered")
        if unknown := set(tier) - tier_keys(*tiers[tier["type"]]):
            raise RefusedError(f"tier {tier['type']} does not take {sorted(unknown)}")


def tier_keys(place: str, name: str) -> set[str]:
    return source.arguments(f"{place}.py", name) - _NOT_CONFIGURED | _OF_THE_FACTORY


def names() -> dict[str, list[str]]:
    """Return every key that each connector and tier reads, and every flag."""
    tiers = source.registered("v1/kv_offload/tiering/factory.py", "register_tier")
    found = {name: source.extra_keys(*places) for name, places in _READ_BY.items()}
    found |= {f"tier {name}": tier_keys(*tiers[name]) for name in tiers}
    found["flags"] = source.flags()
    return {name: sorted(keys) for name, keys in found.items()}


def check_command(kind: Any, words: list[str]) -> dict[str, Any]:
    """Return a command's flags and config. Every flag must be one of vLLM's."""
    start = words.index("vllm")
    if words[start : start + 2] != ["vllm", "serve"] or words[start + 2].startswith("-"):
        raise RefusedError(f"no `vllm serve MODEL`: {words}")
    known = source.flags()
    names = {word.partition("=")[0] for word in words[1:start]} - {"CUDA_VISIBLE_DEVICES"}
    if unknown := names - source.texts("envs.py"):
        raise RefusedError(f"vLLM reads no {sorted(unknown)}")
    flags: dict[str, Any] = {}
    rest = words[start + 3 :]
    while rest:
        name = rest.pop(0)
        if name not in known:
            raise RefusedError(f"vllm serve has no {name}")
        flags[name] = rest.pop(0) if rest and not rest[0].startswith("--") else True
    types = source.functions("config/cache.py", "CacheDType")["CacheDType"]
    if flags.get("--kv-cache-dtype") not in types.__args__:
        raise RefusedError(f"no --kv-cache-dtype {flags.get('--kv-cache-dtype')}")
    config = check_config(kind, flags.pop("--kv-transfer-config"))
    return {"model": words[start + 2], "flags": flags, "config": config}


def main() -> int:
    """Print what vLLM reads, one entry a file or command."""
    mode, *files = sys.argv[1:]
    kind = config_class()
    try:
        if mode == "names":
            print(json.dumps(names()))
            return 0
        if mode == "configs":
            found = [check_config(kind, Path(file).read_text(encoding="utf-8")) for file in files]
        else:
            commands = json.loads(Path(files[0]).read_text(encoding="utf-8"))
            found = [check_command(kind, words) for words in commands]
    except (pydantic.ValidationError, RefusedError, TypeError) as error:
        print(error)
        return 3
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
