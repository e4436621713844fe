"""What an uploaded scenario refers to: entries of the catalogs, and files that were uploaded beside it.

A scenario on a user's own machine may name any file of it. One that comes over the network may not:
every field that the models would open as a file is looked at before anything is resolved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dualpath_model.catalog.files import looks_like_path, shipped
from dualpath_model.catalog.llms import llm_names
from dualpath_model.catalog.nodes import node_names
from dualpath_model.errors import InputError


def check(data: Mapping[str, Any], files: Collection[str] | None) -> None:
    """Raise InputError if the scenario names a file that is not among ``files``.

    None: before it is known what will be uploaded, only names that are no plain file names are refused.
    """
    for field, name in references(data):
        plain = bool(name) and name not in (".", "..") and not set(name) & set("/\\\0~:")
        if plain and (files is None or name in files):
            continue
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise InputError(
            f"{field} names the file {shown!r}, which is not among the uploaded ones; upload it first "
            f"and give its bare name, or take an entry of the catalog"
        )


def needed(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files that a scenario asks for, each once."""
    return tuple(dict.fromkeys(name for _, name in references(data)))


def references(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield field and value of everything that the models would open as a file."""
    yield from _named("llm", data.get("llm"), llm_names())
    cluster = data.get("cluster")
    clusters = [name for name in shipped("clusters.yaml") if not name.startswith("_")]
    yield from _named("cluster", cluster, clusters)
    if isinstance(cluster, Mapping):
        for pool in ("prefill", "decode"):
            given = cluster.get(pool)
            groups = given if isinstance(given, list) else [given]
            for number, group in enumerate(groups):
                where = f"cluster.{pool}.{number}" if isinstance(given, list) else f"cluster.{pool}"
                node = group.get("node") if isinstance(group, Mapping) else None
                yield from _named(f"{where}.node", node, node_names())
                if isinstance(node, Mapping) and isinstance(node.get("profile"), str):
                    yield f"{where}.node.profile", node["profile"]
    yield from _trace("workload", data.get("workload"))
    classes = data.get("classes")
    for number, part in enumerate(classes if isinstance(classes, list) else ()):
        if isinstance(part, Mapping):
            yield from _trace(f"classes.{number}.workload", part.get("workload"))


def _named(field: str, value: object, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield a text that is no entry of its catalog and looks like a path; others are refused later."""
    if isinstance(value, str) and value not in names and looks_like_path(value):
        yield field, value


def _trace(field: str, workload: object) -> Iterator[tuple[str, str]]:
    trace = workload.get("trace") if isinstance(workload, Mapping) else None
    if isinstance(trace, Mapping):
        trace = trace.get("path")
    if isinstance(trace, str):
        yield f"{field}.trace", trace
