"""``vllm serve`` commands and ``--kv-transfer-config`` in files of several kinds, as plain records."""

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
from dualpath_model.export.imports._dynamo_graph import whole
from dualpath_model.export.quoting import one_line

REMEDY = (
    "give a file with `vllm serve` commands (shell, a JSON list of words, a compose file), a "
    "--kv-transfer-config as JSON, or a folder of `dualpath export vllm`"
)
_ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-dp": "--data-parallel-size",
    "-ep": "--enable-expert-parallel",
}
_SHORT |= {"-dpl": "--data-parallel-size-local", "-dpr": "--data-parallel-start-rank"}
_SHORT |= {"-dpa": "--data-parallel-address"}
_SHORT |= {"-dpn": "--data-parallel-rank", "-pp": "--pipeline-parallel-size"}
_ANY_HOST = {None, "0.0.0.0", "::", "localhost", "127.0.0.1"}
_MOST_BYTES = 16_000_000
_IMAGE = re.compile(r"(\A|/)vllm-openai(\Z|[:@])")


@dataclass(frozen=True, slots=True)
class Command:
    """One ``vllm serve``, or a config alone (``model`` None). ``engines``: of this command;
    ``ranks``: that share its experts; ``buffer_bytes``: of one engine; ``times``: how often it runs;
    ``start_rank``: of its first engine, as it stands there; ``address``: where the ranks meet.
    """

    where: str
    role: str
    model: str | None
    host: str | None
    tensor: int
    engines: int
    ranks: int
    expert: bool
    kv_dtype: str | None
    block_tokens: int | None
    buffer_bytes: int | None
    pulls: bool
    times: int = 1
    start_rank: str | None = None
    address: str | None = None

    @property
    def gpus(self) -> int:
        """GPUs that the command takes on its node."""
        return self.tensor * self.engines


def commands(path: Path) -> list[Command]:
    """Return every command of a file or folder. Raises InputError for what is none."""
    files = sorted(_files(path)) if path.is_dir() else [path]
    found = [command for file in files for command in _of_file(file, path.is_dir())]
    if not found:
        raise InputError(f"{path}: has no `vllm serve` command and no kv_connector; {REMEDY}")
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yield a folder's own files and those of ``nodes/``: scripts, or configs where there are none."""
    for place in (folder, folder / "nodes"):
        listed = list(place.iterdir()) if place.is_dir() else []
        scripts = [file for file in listed if file.suffix in (".sh", ".yaml", ".yml")]
        yield from scripts or [file for file in listed if file.suffix == ".json"]


def _of_file(file: Path, optional: bool) -> Iterator[Command]:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{file}: is larger than {_MOST_BYTES} bytes; {REMEDY}")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{file}: cannot be read ({why}); {REMEDY}") from None
    if text.lstrip().startswith(("{", "[")):
        yield from _of_json(str(file), text, optional)
    elif file.suffix in (".yaml", ".yml"):
        yield from _of_compose(str(file), text)
    else:
        for line, words in _shell_commands(str(file), text):
            yield from _of_words(f"{file}:{line}", words, file.stem)


def _of_json(where: str, text: str, optional: bool) -> Iterator[Command]:
    data = _json(where, text)
    if isinstance(data, Mapping):
        if "kv_connector" in data:
            yield _command(where, data, None, {}, Path(where).stem)
        elif not optional:
            raise InputError(f"{where}: is JSON without kv_connector; {REMEDY}")
        return
    lists = data if data and all(isinstance(part, list) for part in data) else [data]
    for number, words in enumerate(lists):
        if not all(isinstance(word, str) for word in words):
            raise InputError(f"{where}: entry {number} is no list of words; {REMEDY}")
        yield from _of_words(f"{where}[{number}]" if len(lists) > 1 else where, words, "")


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        what = getattr(error, "msg", "nested too deeply")
        raise InputError(f"{where}: is not JSON ({what}); {REMEDY}") from None


def _of_compose(where: str, text: str) -> Iterator[Command]:
    services = yaml_lines.parse(text, where).data.get("services")
    if not isinstance(services, Mapping):
        raise InputError(f"{where}: has no services, so it is no compose file; {REMEDY}")
    for name, service in services.items():
        if not isinstance(service, Mapping):
            continue
        at = f"{where}: services.{one_line(name)}"
        words: list[str] = []
        for key in ("entrypoint", "command"):
            part = service.get(key)
            words += _split(at, part) if isinstance(part, str) else [str(w) for w in part or []]
        if "--kv-transfer-config" in words and "serve" not in words:
            words = ["vllm", "serve", *words]  # the image's own entry point
        deploy = service.get("deploy")
        times = deploy.get("replicas", 1) if isinstance(deploy, Mapping) else 1
        times = whole(at, "replicas", service.get("scale", times), least=0)
        yield from _of_words(at, words, str(name), times)


def _split(where: str, text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise InputError(
            f"{where}: cannot be taken apart as a shell does ({error}); {REMEDY}"
        ) from None


def _shell_commands(where: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each command line of a script that has ``vllm``, with its continuations and first line's
    number.
    """
    parts: list[str] = []
    quote, first = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if not parts:
            first = number
        quote, goes_on = _after(line, quote)
        parts.append(line[:-1] + " " if goes_on and not quote else f"{line}\n")
        if goes_on or quote:
            continue
        joined, parts = "".join(parts), []
        if re.search(r"\bvllm\b", joined):
            yield first, _split(f"{where}:{first}", joined)
    joined = "".join(parts)
    if re.search(r"\bvllm\b", joined):
        yield first, _split(f"{where}:{first}", joined)


def _after(line: str, quote: str) -> tuple[str, bool]:
    """Return the quotation that is open after a line, and whether a backslash continues the line."""
    place, word = 0, bool(quote)
    while place < len(line):
        letter = line[place]
        if letter == "\\" and quote != "'":
            if place + 1 == len(line):
                return quote, True
            place += 1
            word = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
            word = True
        elif letter == "#" and not word:
            return "", False
        else:
            word = not letter.isspace()
        place += 1
    return quote, False


def _of_words(where: str, words: list[str], name: str, times: int = 1) -> Iterator[Command]:
    start = next(
        (
            place
            for place, word in enumerate(words)
            if word == "serve" and (place == 0 or Path(words[place - 1]).name == "vllm")
        ),
        None,
    )
    if start is None:  # `docker run ... vllm/vllm-openai --model ...`: the image's own entry point
        start = next((place for place, word in enumerate(words) if _IMAGE.search(word)), None)
    if start is None or times == 0:
        return
    flags: dict[str, str] = {}
    model = None
    rest = words[start + 1 :]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            model = model or word
            continue
        key, equals, value = word.partition("=")
        key = _SHORT.get(key, key.replace("_", "-"))
        if not equals:
            takes = rest and not re.match(r"-{1,2}[A-Za-z]", rest[0])
            value = rest.pop(0) if takes else ""
        flags[key] = value
    text = flags.get("--kv-transfer-config")
    if text is None:
        raise InputError(
            f"{where}: `vllm serve` has no --kv-transfer-config, so it is neither prefill nor decode; a "
            f"scenario needs both apart"
        )
    config = _json(f"{where}: --kv-transfer-config", text)
    if not isinstance(config, Mapping):
        raise InputError(f"{where}: --kv-transfer-config is no mapping; {REMEDY}")
    yield _command(where, config, model or flags.get("--model"), flags, name, times)


def _command(
    where: str,
    config: Mapping[str, Any],
    model: str | None,
    flags: Mapping[str, str],
    name: str,
    times: int = 1,
) -> Command:
    children = list(_children(where, config))
    store = _extra(where, children, "OffloadingConnector")
    nixl = _extra(where, children, "NixlConnector")
    size = store.get("cpu_bytes_to_use")
    tensor = _count(where, flags, "--tensor-parallel-size")
    ranks = _count(where, flags, "--data-parallel-size")
    own = (
        1
        if "--data-parallel-rank" in flags
        else _count(where, flags, "--data-parallel-size-local", ranks)
    )
    return Command(
        where=where,
        role=_role(where, config, children, name),
        model=model,
        host=None if flags.get("--host") in _ANY_HOST else flags.get("--host"),
        tensor=tensor,
        engines=own,
        ranks=ranks,
        expert="--enable-expert-parallel" in flags,
        kv_dtype=flags.get("--kv-cache-dtype"),
        block_tokens=_block(where, store, flags),
        buffer_bytes=None if size is None else whole_bytes(where, size),
        pulls=nixl.get("bidirectional_kv_xfer") is True,
        times=times,
        start_rank=flags.get("--data-parallel-start-rank", flags.get("--data-parallel-rank")),
        address=flags.get("--data-parallel-address"),
    )


def _children(where: str, config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    extra = config.get("kv_connector_extra_config")
    listed = extra.get("connectors", []) if isinstance(extra, Mapping) else []
    for child in listed if isinstance(listed, list) else []:
        if not isinstance(child, Mapping):
            raise InputError(
                f"{where}: connectors has {one_line(child)!s:.60}, which is no mapping"
            )
        yield child


def _extra(where: str, children: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    for child in children:
        if child.get("kv_connector") == name:
            extra = child.get("kv_connector_extra_config", {})
            if not isinstance(extra, Mapping):
                raise InputError(f"{where}: kv_connector_extra_config of {name} is no mapping")
            return extra
    return {}


def _role(
    where: str, config: Mapping[str, Any], children: list[Mapping[str, Any]], name: str
) -> str:
    for child in children:
        if child.get("kv_role") in _ROLES:
            return _ROLES[child["kv_role"]]
    named = [role for role in _ROLES.values() if role in name.lower()]
    if len(named) == 1:
        return named[0]
    raise InputError(
        f"{where}: kv_role is {one_line(config.get('kv_role'))!s:.40}, which does not tell prefill from "
        f"decode; set it to kv_producer or kv_consumer, or name the file after its role"
    )


def _count(where: str, flags: Mapping[str, str], name: str, otherwise: int = 1) -> int:
    return whole(where, name, flags[name]) if name in flags else otherwise


def whole_bytes(where: str, value: Any) -> int:
    """Return a size. Raises InputError for what is no whole number of bytes above 0."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,18}(\.0+)?", text) or not float(text):
        raise InputError(
            f"{where}: cpu_bytes_to_use is {one_line(value)!s:.60}; it must be bytes, a whole number "
            f"above 0"
        )
    return int(float(text)) if "." in text else int(text)


def _block(where: str, store: Mapping[str, Any], flags: Mapping[str, str]) -> int | None:
    if "block_size" in store:
        return whole(where, "block_size", store["block_size"])
    if "blocks_per_chunk" in store and "--block-size" in flags:
        size = whole(where, "--block-size", flags["--block-size"])
        return size * whole(where, "blocks_per_chunk", store["blocks_per_chunk"])
    return None
