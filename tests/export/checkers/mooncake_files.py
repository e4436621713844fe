"""Mooncake's software on our files: ``client``, ``vllm``, ``sglang`` or ``master``, then the files.

All three client parsers ignore unknown keys, so these are compared with what the parser asks for; the
master is started on loopback with the file's values and stopped again.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SITE = Path(os.environ["PYTHONPATH"])


def module(name: str, path: str) -> Any:
    """Load one file of a package as a module, without the package."""
    spec = importlib.util.spec_from_file_location(name, SITE / path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def client(file: Path) -> dict[str, Any]:
    found = module("mooncake_config", "mooncake/mooncake_config.py")
    return compared(file, found.MooncakeConfig.from_file(str(file)))


def vllm(file: Path) -> dict[str, Any]:
    found = module("mooncake_store", "vllm/distributed/mooncake_store.py")
    return compared(file, found.MooncakeStoreConfig.from_file(str(file)))


def sglang(file: Path) -> dict[str, Any]:
    """Read as HiCache does: its class cut out of a module that needs torch, its environment as it is."""
    envs = module("environ", "sglang/srt/environ.py").envs
    path = SITE / "sglang/srt/mem_cache/storage/mooncake_store/mooncake_store.py"
    wanted = ("_parse_global_segment_size", "_normalize_tenant_id", "MooncakeStoreConfig")
    body = [
        node
        for node in ast.parse(path.read_text()).body
        if getattr(node, "name", None) in wanted
        or (
            isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", "").startswith("DEFAULT")
        )
    ]
    space: dict[str, Any] = {
        "__name__": "cut",
        "dataclass": dataclasses.dataclass,
        "envs": envs,
        "json": json,
        "os": os,
        "Optional": Any | None,
    }
    head = ast.parse("from __future__ import annotations").body
    sys.modules["cut"] = sys.modules[__name__]  # where dataclasses look names up
    code = ast.Module(body=[*head, *body], type_ignores=[])
    exec(compile(ast.fix_missing_locations(code), str(path), "exec"), space)
    config = space["MooncakeStoreConfig"].load_from_extra_config(json.loads(file.read_text()))
    return compared(file, config)


def compared(file: Path, config: Any) -> dict[str, Any]:
    said, found = json.loads(file.read_text()), dataclasses.asdict(config)
    unknown = sorted(said.keys() - found.keys())
    if unknown:
        raise ValueError(f"unknown keys {unknown}, which the client would ignore")
    for key, value in said.items():
        if found[key] != value:
            raise ValueError(f"{key} is {value!r} in the file, but was read as {found[key]!r}")
    return {key: found[key] for key in said}


def master(file: Path) -> dict[str, Any]:
    """Start it on free ports of loopback and read the values that its first line of log names."""
    asked = json.loads(file.read_text())
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    if isinstance(asked.get("rpc_port"), int):  # a wrong type stays for the master to refuse
        asked["rpc_port"] = ports[0]
    asked |= {"rpc_address": "127.0.0.1", "metrics_host": "127.0.0.1", "metrics_port": ports[1]}
    binary = SITE / "mooncake" / "mooncake_master"
    binary.chmod(0o755)
    root = SITE.parent / "root"
    libraries = [root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu"]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder) / "master.json", Path(folder) / "log"
        config.write_text(json.dumps(asked))
        with log.open("w") as out:
            started = subprocess.Popen(
                [binary, f"--config_path={config}", "--logtostderr"],
                stdout=out,
                stderr=out,
                env=environment,
                cwd=folder,
            )
        try:
            until = time.monotonic() + 60
            while "admin server started" not in log.read_text():
                if started.poll() is not None or time.monotonic() > until:
                    raise ValueError(f"the master did not start: {log.read_text()[-600:]}")
                time.sleep(0.1)
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
                try:
                    started.wait(20)
                except subprocess.TimeoutExpired:
                    started.kill()
                    started.wait()
        found = dict(re.findall(r"(\w+)=([^,\s]*)", log.read_text()))
        unknown = sorted(asked.keys() - found.keys())
        if unknown:
            raise ValueError(f"unknown keys {unknown}, which the master would ignore")
        if found["rpc_port"] != str(asked["rpc_port"]):
            raise ValueError(f"the master listens on {found['rpc_port']}")
        return {key: found[key] for key in json.loads(file.read_text()) if key != "rpc_port"}


if __name__ == "__main__":
    what = {"client": client, "vllm": vllm, "sglang": sglang, "master": master}[sys.argv[1]]
    try:
        answers = [what(Path(name)) for name in sys.argv[2:]]
    except (ValueError, TypeError) as error:
        print(f"refused: {error}")
        sys.exit(3)
    print(json.dumps(answers))
