"""The files that an axis's values name, and a digest of what each holds.

Traces, LLMs, clusters, nodes and their profiles: whatever of a scenario file takes a path. What a file
of a cluster or of a node names in turn belongs to it. Bytes are compared, not what they mean: to parse
every trace before the first point could take longer than the study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from dualpath_model.catalog import files
from dualpath_model.errors import InputError
from dualpath_model.traces.files import trace_paths
from solvers.study_axes import Space
from solvers.study_fields import Parts

_INSIDE: Mapping[str, frozenset[str]] = {
    "": frozenset({"trace", "llm", "cluster", "node", "profile"}),
    "cluster": frozenset({"node", "profile"}),
    "node": frozenset({"profile"}),
}
"""Fields that hold a path: of a scenario (""), and of the files that those name."""

_MAY_BE_NAMES = frozenset({"llm", "cluster", "node"})  # of the catalog, which is the toolkit's own


def named_files(space: Space, folder: Path) -> dict[str, str]:
    """Return a digest of the content of each file or folder that a value of an axis names.

    Keys are field and path as the study has them ("trace two.csv"); relative paths start at ``folder``.
    What cannot be read has the digest "none": the points that need it say why.
    """
    found: dict[str, str] = {}
    for axis in space.axes:
        if axis.in_simulation:
            continue
        for path in axis.paths:
            for value in axis.values or ():
                for field, text in _references(path, value, _INSIDE[""]):
                    name = f"{field} {text}"
                    if name not in found:
                        found[name] = _digest(field, text, folder)
    return found


def _references(path: Parts, value: object, fields: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield the paths in a value of the field at ``path``, and which of ``fields`` holds each."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _references((*path, name), child, fields)
    elif isinstance(value, list):
        for place, child in enumerate(value):
            yield from _references((*path, place), child, fields)
    elif isinstance(value, str):
        *_, above, field = ("", *path)
        if field == "path":  # of a trace whose other fields are given too
            field = above
        if field in fields and (field not in _MAY_BE_NAMES or files.looks_like_path(value)):
            yield str(field), value


def _digest(field: str, text: str, folder: Path) -> str:
    found = hashlib.sha256()
    try:
        for file in _files(field, text, folder):
            if not file.is_file():  # a device, say, that has no end
                return "none"
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found.update(f"{file.name} {digest}\n".encode())
            for inside, named in _inside(field, file):
                found.update(f"{named} {_digest(inside, named, file.parent)}\n".encode())
    except (InputError, OSError, RuntimeError, ValueError):  # names that can be no path's, too
        return "none"
    return found.hexdigest()


def _files(field: str, text: str, folder: Path) -> list[Path]:
    """Return the files that a field means, as the reader of that field finds them."""
    if field == "trace":
        return trace_paths(folder / text)
    path = folder / text if field == "cluster" else files.resolve(field, text, folder, [])
    return [path / "config.json" if field == "llm" and path.is_dir() else path]


def _inside(field: str, file: Path) -> Iterator[tuple[str, str]]:
    """Yield what a file of a cluster or of a node names in turn; relative paths start beside it."""
    fields = _INSIDE.get(field)
    if fields is None:
        return
    try:
        data = files.read(file).data
    except InputError:  # its points say so
        return
    yield from _references((field,), data, fields)
