"""SGLang servers as their operators state them: shell scripts, argv, ``--config`` YAML, server info."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.export.quoting import one_line

ROLES = ("prefill", "decode")
_ALIASES = {
    "tensor-parallel-size": "tp-size",
    "data-parallel-size": "dp-size",
    "attention-data-parallel-size": "attn-dp-size",
    "expert-parallel-size": "ep-size",
    "enable-hicache": "enable-hierarchical-cache",
    "nccl-init-addr": "dist-init-addr",
    "model": "model-path",
    "tp": "tp-size",
    "dp": "dp-size",
    "ep": "ep-size",
}
_SWITCHES = {"enable-dp-attention", "enable-hierarchical-cache"}
_MOST_BYTES = 20_000_000
_MOST_GPUS = 8192


@dataclass(frozen=True, slots=True)
class Launch:
    """One server, or one node of it. ``rank``: of the node among the server's; None: not said."""

    where: str
    role: str
    model: str | None
    kv_dtype: str | None
    tensor_group: int
    attention: int
    replicas: int
    expert: int
    nodes: int
    rank: str | None
    group: str | None
    host: str | None
    first_gpu: int
    hicache: bool
    hicache_gb: float | None
    page_tokens: int | None

    @property
    def gpus_of_node(self) -> int:
        """GPUs that it takes on each of its nodes."""
        return self.tensor_group * self.replicas // self.nodes

    @property
    def tensor(self) -> int:
        """GPUs of one engine."""
        return self.tensor_group // self.attention


def launches(path: Path) -> list[Launch]:
    """Return what a file states, or all scripts (else all YAML and JSON files) of a folder.

    Raises InputError, one sentence, for what cannot be read, states no server or bad sizes.
    """
    found = [_launch(where, flags) for file in _files(path) for where, flags in _flags_of(file)]
    if not found:
        raise InputError(
            f"{path}: has no SGLang server; give a script with `sglang.launch_server` commands, its "
            f"--config YAML, or the JSON of GET /server_info of each server as a list"
        )
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for suffixes in ((".sh", ".bash"), (".yaml", ".yml", ".json")):
        found = sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        if found:
            return found
    return []


def _flags_of(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _text(file)
    if file.suffix in (".yaml", ".yml"):
        data = yaml_lines.parse(text, str(file)).data
        yield str(file), _named(str(file), data)
    elif text.lstrip()[:1] in ("[", "{"):
        yield from _from_json(file, text)
    else:
        yield from _from_script(file, text)


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"{file}: is larger than {_MOST_BYTES // 10**6} MB, so it is no such file"
            )
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InputError(
            f"{file}: cannot be read ({why}); give a script, YAML or JSON of SGLang servers"
        ) from None


def _from_json(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise InputError(
            f"{file}: is not JSON; give the answer of GET /server_info as it came, several as a list"
        ) from None
    listed = data if isinstance(data, list) else [data]
    if listed and all(isinstance(part, str) for part in listed):
        listed = [listed]
    for number, part in enumerate(listed):
        where = f"{file}[{number}]" if isinstance(data, list) else str(file)
        if isinstance(part, Mapping):
            yield where, _named(where, part)
        elif isinstance(part, list) and all(isinstance(word, str) for word in part):
            yield where, _options(where, part)
        else:
            raise InputError(
                f"{where}: is {one_line(part)!s:.60}; it must be an object of GET /server_info or a "
                f"list of the words of a command"
            )


def _named(where: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: must hold names and values, as `--config` takes them")
    names = {str(key).replace("_", "-"): value for key, value in data.items()}
    return {_ALIASES.get(name, name): value for name, value in names.items()}


# ---- scripts -----------------------------------------------------------------------------------------


def _from_script(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, words in _commands(text):
        where = f"{file}:{line}"
        after = _after_launch(words)
        if after is not None:
            flags = _options(where, after)
            config = flags.pop("config", None)
            if config is not None:
                other = file.parent / str(config)
                flags = _named(str(other), yaml_lines.parse(_text(other), str(other)).data) | flags
            yield where, flags


def _after_launch(words: list[str]) -> list[str] | None:
    for number, word in enumerate(words):
        if word in ("sglang.launch_server", "sglang/launch_server.py"):
            return words[number + 1 :]
        if word == "sglang" and words[number + 1 : number + 2] == ["serve"]:
            return words[number + 2 :]
    return words if words and words[0].startswith("--") and "--model-path" in words else None


def _commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each command with the line that it starts in; lines end where quotes and ``\\`` let them."""
    pending, start = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        start = start if pending else number
        pending += line + "\n"
        if re.search(r"(?<!\\)(\\\\)*\\$", line):
            pending = pending[:-2] + " "
            continue
        words = _split(pending)
        if words is None and number - start < 200:
            continue  # a quotation goes on in the next line
        for command in _separated(words or []):
            yield start, command
        pending = ""
    if pending.strip():
        for command in _separated(_split(pending) or []):
            yield start, command


def _split(text: str) -> list[str] | None:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return None


def _separated(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if word and set(word) <= set(";&|()<>"):
            yield command
            command = []
        else:
            command.append(word)
    yield command


def _options(where: str, words: list[str]) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    number = 0
    while number < len(words):
        word = words[number]
        number += 1
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        name = _ALIASES.get(name.replace("_", "-"), name.replace("_", "-"))
        following = words[number : number + 1]
        if equals:
            flags[name] = value
        elif name in _SWITCHES or not following or following[0].startswith("--"):
            flags[name] = True
        else:
            flags[name] = following[0]
            number += 1
    return flags


# ---- values ------------------------------------------------------------------------------------------


def _launch(where: str, flags: Mapping[str, Any]) -> Launch:
    role = flags.get("disaggregation-mode")
    if role not in ROLES:
        raise InputError(
            f"{where}: disaggregation-mode is {one_line(role)!s:.40}; a scenario needs servers of both "
            f"roles, prefill and decode"
        )
    tensor_group = _whole(where, flags, "tp-size", 1)
    replicas = _whole(where, flags, "dp-size", 1)
    attention = _whole(where, flags, "attn-dp-size", 1)
    if flags.get("enable-dp-attention") in (True, "true") and attention == 1:
        attention, replicas = replicas, 1
    elif flags.get("enable-dp-attention") in (True, "true"):
        replicas = 1
    nodes = _whole(where, flags, "nnodes", 1)
    if tensor_group % attention or tensor_group * replicas % nodes:
        raise InputError(
            f"{where}: tp-size {tensor_group} cannot be shared by {attention} engines and {nodes} "
            f"nodes; attn-dp-size must divide tp-size and nnodes all GPUs"
        )
    page = flags.get("page-size")
    return Launch(
        where=where,
        role=role,
        model=_text_of(flags, "model-path"),
        kv_dtype=_text_of(flags, "kv-cache-dtype"),
        tensor_group=tensor_group,
        attention=attention,
        replicas=replicas,
        expert=_whole(where, flags, "ep-size", 1),
        nodes=nodes,
        rank=_text_of(flags, "node-rank"),
        group=_text_of(flags, "dist-init-addr"),
        host=_text_of(flags, "host"),
        first_gpu=_whole(where, flags, "base-gpu-id", 0, least=0),
        hicache=flags.get("enable-hierarchical-cache") in (True, "true"),
        hicache_gb=_gigabytes(where, flags.get("hicache-size")),
        page_tokens=None if page is None else _whole(where, flags, "page-size", 1),
    )


def _text_of(flags: Mapping[str, Any], name: str) -> str | None:
    value = flags.get(name)
    return None if value is None or value is True or value == "" else one_line(value)


def _whole(where: str, flags: Mapping[str, Any], name: str, default: int, *, least: int = 1) -> int:
    value = flags.get(name)
    if value is None:
        return default
    text = str(value).strip()
    if value is True or not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < least:
        raise InputError(
            f"{where}: {name} is {one_line(value)!s:.40}; it must be a whole number from {least} (write "
            f"the number where a variable of the shell stands)"
        )
    if name != "page-size" and int(text) > _MOST_GPUS:
        raise InputError(f"{where}: {name} is {text}; more than {_MOST_GPUS} are not understood")
    return int(text)


def _gigabytes(where: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        size = float(value)
    except (TypeError, ValueError):
        size = -1.0
    if not 0 <= size < 1e6 or value is True:
        raise InputError(
            f"{where}: hicache-size is {one_line(value)!s:.40}; it must be a number of GB from 0"
        )
    return size or None  # 0: sized by --hicache-ratio
