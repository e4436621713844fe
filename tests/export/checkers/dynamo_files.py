"""Dynamo's own software on our files: ``router FLAGS.json``, ``planner FILE``, ``kvbm NAME...``."""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import dynamo


def router(flags: Path) -> Any:
    """Parse a frontend's flags as its router does, and build the Rust config from them."""
    from dynamo.common.configuration.groups.kv_router_args import (
        KvRouterArgGroup,
        KvRouterConfigBase,
    )
    from dynamo.llm import KvRouterConfig

    words = json.loads(flags.read_text())
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    # of the frontend itself, whose parser needs the whole runtime
    parser.add_argument("--router-mode", choices=["kv", "random", "round-robin"])
    KvRouterArgGroup().add_arguments(parser)
    try:
        asked = parser.parse_args(words)
        assert asked.router_mode == "kv"
        kwargs = KvRouterConfigBase.from_cli_args(asked).kv_router_kwargs()
        KvRouterConfig(**kwargs)
    except SystemExit as error:
        raise ValueError(f"the parser ends with {error.code}") from None
    return kwargs


def planner(file: Path) -> Any:
    """Validate a planner's config; its loader ignores unknown keys, so they are compared as well."""
    import yaml

    # the package's own __init__ imports aisimulate, which is in no registry
    root = Path(dynamo.__path__[0]) / "planner"
    for name in ("", "config", "plugins", "plugins/registry"):
        module = types.ModuleType(".".join(["dynamo.planner", *filter(None, name.split("/"))]))
        module.__path__ = [str(root / name)]
        sys.modules[module.__name__] = module
    from dynamo.planner.config.planner_config import PlannerConfig

    known = set(PlannerConfig.model_json_schema()["properties"])
    for field in PlannerConfig.model_fields.values():
        known |= set(getattr(field.validation_alias, "choices", ()))
    data = yaml.safe_load(file.read_text())
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"unknown keys {unknown}, which the planner would ignore")
    config = PlannerConfig.from_config_arg(str(file))
    return json.loads(config.model_dump_json())


def kvbm(*names: str) -> Any:
    """Look for settings in KVBM's library: it reads them from the environment, at start, with a GPU."""
    import importlib.util

    folder = Path(next(iter(importlib.util.find_spec("kvbm").submodule_search_locations)))
    (library,) = folder.glob("_core*.so")
    content = library.read_bytes()
    lacking = [name for name in names if name.encode() not in content]
    if lacking:
        raise ValueError(f"KVBM's library does not have {lacking}")
    return list(names)


def main() -> None:
    """Exit with 0 and what was read, or with 3 and why it was refused."""
    what, *rest = sys.argv[1:]
    try:
        if what == "kvbm":
            found = kvbm(*rest)
        else:
            found = {"router": router, "planner": planner}[what](Path(rest[0]))
    except (ValueError, TypeError, OSError, argparse.ArgumentError) as error:
        print(f"refused: {error}")
        sys.exit(3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
