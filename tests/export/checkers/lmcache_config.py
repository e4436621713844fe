"""LMCache's own config class on our YAML files: ``lmcache_config.py FILE...``.

Its loader warns of unknown keys and of values that it cannot convert, and goes on; so a warning of
its config modules is a refusal here, and what it read is compared with what the file says.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from lmcache.v1.config import LMCacheEngineConfig


class Kept(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def read(file: Path) -> dict[str, Any]:
    kept = Kept()
    loggers = [logging.getLogger(f"lmcache.v1.{name}") for name in ("config_base", "config")]
    for logger in loggers:
        logger.addHandler(kept)
    config = LMCacheEngineConfig.from_file(str(file))
    config.validate()
    for logger in loggers:
        logger.removeHandler(kept)
    if kept.lines:
        raise ValueError("; ".join(kept.lines))
    said, found = yaml.safe_load(file.read_text()), config.to_dict()
    for key, value in said.items():
        if found[key] != value or type(found[key]) is not type(value):
            raise ValueError(f"{key} is {value!r} in the file, but was read as {found[key]!r}")
    check_roles(config)
    return {key: found[key] for key in said}


def check_roles(config: Any) -> None:
    """Ask what the backend asks when it starts (pd_backend_async.py), which needs torch."""
    if config.pd_role == "receiver":
        needed = ("pd_peer_host", "pd_peer_init_port", "pd_peer_alloc_port")
    elif config.pd_role == "sender":
        needed = ("pd_proxy_host", "pd_proxy_port")
    else:
        raise ValueError(f"pd_role is {config.pd_role!r}, neither sender nor receiver")
    missing = [name for name in needed if getattr(config, name) is None]
    if missing:
        raise ValueError(f"a {config.pd_role} needs {', '.join(missing)}")
    if config.transfer_channel not in ("nixl", "mock_memory"):
        raise ValueError(f"transfer_channel {config.transfer_channel!r} is none")


if __name__ == "__main__":
    try:
        print(json.dumps([read(Path(name)) for name in sys.argv[1:]]))
    except (ValueError, AssertionError, TypeError) as error:
        print(f"refused: {error!r}")
        sys.exit(3)
