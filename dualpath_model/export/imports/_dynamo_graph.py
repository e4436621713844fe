"""A DynamoGraphDeployment of either version as a list of workers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dualpath_model.errors import InputError
from dualpath_model.export.quoting import one_line

ROLES = ("prefill", "decode")
_TENSOR = ("--tensor-parallel-size", "-tp", "--tp-size", "--tp")
_DATA = ("--data-parallel-size", "-dp", "--dp-size", "--dp")
_MODEL = ("--model", "--model-path", "--model-name")
_KV_DTYPE = ("--kv-cache-dtype",)


@dataclass(frozen=True, slots=True)
class Worker:
    """One component with workers, as far as a scenario asks."""

    where: str
    role: str
    replicas: int
    nodes: int
    gpus: int
    tensor: int
    expert: int
    model: str | None
    kv_dtype: str | None
    kvbm_gb: float | None


def components(where: str, graph: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each component with its place; v1alpha1's services get a ``name``."""
    spec = graph.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    components, services = spec.get("components"), spec.get("services")
    if isinstance(components, list):
        for number, part in enumerate(components):
            if not isinstance(part, Mapping):
                raise InputError(
                    f"{where}: spec.components[{number}] is {one_line(part)!s:.60}; it must be a "
                    "mapping"
                )
            yield f"spec.components[{number}]", part
    elif isinstance(services, Mapping):
        for name, part in services.items():
            if not isinstance(part, Mapping):
                raise InputError(
                    f"{where}: spec.services.{one_line(name)} is {one_line(part)!s:.60}; it must "
                    "be a mapping"
                )
            yield f"spec.services.{one_line(name)}", {"name": name, **part}
    else:
        raise InputError(
            f"{where}: has neither spec.components (v1beta1) nor spec.services (v1alpha1); give a "
            "DynamoGraphDeployment that an operator takes"
        )


def container(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the main container of either version, or an empty one."""
    old = part.get("extraPodSpec")
    if isinstance(old, Mapping) and isinstance(old.get("mainContainer"), Mapping):
        return dict(old["mainContainer"])
    template = part.get("podTemplate")
    spec = template.get("spec") if isinstance(template, Mapping) else None
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    named = [c for c in containers or [] if isinstance(c, Mapping)]
    return next((c for c in named if c.get("name") == "main"), named[0] if named else {})


def words_of(container: Mapping[str, Any]) -> list[str]:
    """Return command and arguments as words; a line for a shell is taken apart."""
    words: list[str] = []
    for key in ("command", "args"):
        listed = container.get(key)
        for word in listed if isinstance(listed, list) else []:
            text = str(word)
            if re.search(r"\s", text.strip()) and not text.lstrip().startswith(("{", "[")):
                try:
                    words += shlex.split(text)
                except ValueError:
                    words.append(text)
            else:
                words.append(text)
    return words


def flag(words: list[str], names: tuple[str, ...]) -> str | None:
    for number, word in enumerate(words):
        if word in names and number + 1 < len(words):
            return words[number + 1]
        head, equals, tail = word.partition("=")
        if equals and head in names:
            return tail
    return None


def environment(graph: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, str]:
    spec = graph.get("spec")
    listed = [spec.get("env"), spec.get("envs")] if isinstance(spec, Mapping) else []
    listed += [part.get("envs"), container(part).get("env")]
    return {
        str(entry["name"]): str(entry["value"])
        for entries in listed
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, Mapping) and "name" in entry and "value" in entry
    }


def _role(part: Mapping[str, Any], words: list[str]) -> str | None:
    for key in ("subComponentType", "type", "componentType"):
        if part.get(key) in ROLES:
            return str(part[key])
    if part.get("type", part.get("componentType")) not in ("worker", "main", None):
        return None
    mode = flag(words, ("--disaggregation-mode",))
    if mode in ROLES:
        return mode
    return next((role for role in ROLES if f"--is-{role}-worker" in words), None)


def worker_of(
    where: str, graph: Mapping[str, Any], at: str, part: Mapping[str, Any]
) -> Worker | None:
    words = words_of(container(part))
    role = _role(part, words)
    if role is None:
        return None
    place = f"{where}: {at}"
    multinode = part.get("multinode")
    nodes = multinode.get("nodeCount", 1) if isinstance(multinode, Mapping) else 1
    tensor = whole(place, "tensor parallelism", flag(words, _TENSOR) or 1)
    data = whole(place, "data parallelism", flag(words, _DATA) or 1)
    nodes = whole(place, "multinode.nodeCount", nodes)
    kvbm = environment(graph, part).get("DYN_KVBM_CPU_CACHE_GB")
    return Worker(
        where=f"{where}, {at}",
        role=role,
        replicas=whole(place, "replicas", part.get("replicas", 1), least=0),
        nodes=nodes,
        gpus=whole(place, "GPUs of a Pod", _gpus(part) or max(1, tensor * data // nodes)),
        tensor=tensor,
        expert=tensor * data if "--enable-expert-parallel" in words else 0,
        model=flag(words, _MODEL),
        kv_dtype=flag(words, _KV_DTYPE),
        kvbm_gb=None if kvbm is None else positive(place, "DYN_KVBM_CPU_CACHE_GB", kvbm),
    )


def _gpus(part: Mapping[str, Any]) -> Any:
    for holder in (part.get("resources"), container(part).get("resources")):
        for kind in ("limits", "requests"):
            listed = holder.get(kind) if isinstance(holder, Mapping) else None
            if isinstance(listed, Mapping):
                for key in ("gpu", "nvidia.com/gpu"):
                    if key in listed:
                        return listed[key]
    return None


def whole(place: str, what: str, value: Any, *, least: int = 1) -> int:
    text = str(value).strip()
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) and value is not True else -1
    if number < least:
        raise InputError(
            f"{place}: {what} is {one_line(value)!s:.60}; it must be a whole number from {least}"
        )
    return number


def positive(place: str, what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise InputError(f"{place}: {what} is {one_line(value)!s:.60}; it must be a number above 0")
    return number
