"""Documents to text: JSON, YAML, flags, settings; each value with a comment where there can be one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualpath_model.export.quoting import json_text, one_line, shell, yaml_scalar
from dualpath_model.export.values import Document, Value, leaves, plain


@dataclass(frozen=True, slots=True)
class File:
    """One file of an export. ``name``: its path inside the folder; ``values``: by JSON pointer, or by
    line where the format has none.
    """

    name: str
    about: str
    text: str
    values: Mapping[str, Value] = field(default_factory=dict)
    executable: bool = False


def json_file(name: str, about: str, document: Document) -> File:
    """Return a document as JSON, which has no comments: ``derivations.json`` tells of its values."""
    return File(name, about, json_text(plain(document)), dict(leaves(document)))


def yaml_file(name: str, about: str, document: Document, *, head: Sequence[str] = ()) -> File:
    """Return a document as YAML; ``head``: lines of comment above it."""
    lines = [f"# {one_line(line)}" for line in head]
    lines += _yaml(document, "")
    return File(name, about, "\n".join(lines) + "\n", dict(leaves(document)))


def yaml_documents(
    name: str, about: str, documents: Sequence[Document], *, head: Sequence[str] = ()
) -> File:
    """Return several documents in one YAML file (Kubernetes manifests); pointers start with /number."""
    lines = [f"# {one_line(line)}" for line in head]
    for document in documents:
        lines += ["---", *_yaml(document, "")]
    return File(name, about, "\n".join(lines) + "\n", dict(leaves(list(documents))))


def settings_file(
    name: str,
    about: str,
    settings: Mapping[str, Value],
    *,
    form: str = "{key}={value}",
    head: Sequence[str] = (),
    comment: str = "#",
    quote: bool = True,
) -> File:
    """Return ``key=value`` lines with a comment above each: environment files, opensm's options.

    ``form``: of a line; ``quote``: values as words of a shell.
    """
    lines = [f"{comment} {one_line(line)}" for line in head]
    for key, value in settings.items():
        shown = shell(value.value) if quote else one_line(value.value)
        lines += [f"{comment} {_origin(value)}", form.format(key=key, value=shown)]
    return File(name, about, "\n".join(lines) + "\n", {f"/{k}": v for k, v in settings.items()})


def json_word(document: Document) -> Value:
    """Return a document as one word of a command: its JSON, with what was said of its parts."""
    parts = list(leaves(document))
    return Value(
        json.dumps(plain(document)),
        "; ".join(
            f"{pointer.rpartition('/')[2]}: {value.how}"
            for pointer, value in parts
            if value.origin != "fixed"
        ),
        inputs={
            f"{pointer[1:]}.{name}": figure
            for pointer, value in parts
            for name, figure in value.inputs.items()
        },
        site=tuple(dict.fromkeys(field for _, value in parts for field in value.site)),
    )


def command_file(
    name: str,
    about: str,
    commands: Sequence[tuple[Sequence[str], Mapping[str, Value | None]]],
    *,
    head: Sequence[str] = (),
) -> File:
    """Return a bash script of commands: fixed words, then flags (value None: a switch).

    A flag whose value is a list is repeated words after it; every word is quoted.
    """
    lines = ["#!/usr/bin/env bash", *(f"# {one_line(line)}" for line in head), "set -euo pipefail"]
    values: dict[str, Value] = {}
    for number, (words, flags) in enumerate(commands):
        lines += [""] if number else []
        lines += [f"# {one_line(flag)}: {_origin(value)}" for flag, value in flags.items() if value]
        parts = [" ".join(map(shell, words))]
        for flag, value in flags.items():
            prefix = f"/{number}/" if len(commands) > 1 else "/"
            if value is None or value.value is True:
                parts.append(shell(flag))
            else:
                listed = value.value if isinstance(value.value, list | tuple) else [value.value]
                parts.append(" ".join([shell(flag), *map(shell, listed)]))
            if value is not None:
                values[prefix + flag] = value
        lines.append(" \\\n  ".join(parts))
    return File(name, about, "\n".join(lines) + "\n", values, executable=True)


def _origin(value: Value) -> str:
    unit = f" [{value.unit}]" if value.unit else ""
    said = {"site": "set for your site: ", "fixed": "", "plan": ""}[value.origin]
    return one_line(f"{said}{value.how}{unit}")


def _yaml(document: Document, indent: str) -> Iterator[str]:
    if isinstance(document, Mapping):
        for key, part in document.items():
            yield from _yaml_entry(f"{indent}{yaml_scalar(str(key))}:", part, indent)
    elif isinstance(document, list | tuple):
        for part in document:
            yield from _yaml_item(part, indent)
    else:
        assert isinstance(document, Value)
        yield from _yaml_plain(document.value, indent)


def _yaml_entry(head: str, part: Document, indent: str) -> Iterator[str]:
    if isinstance(part, Value):
        yield f"{indent}# {_origin(part)}"
        if isinstance(part.value, Mapping | list | tuple) and part.value:
            yield head
            yield from _yaml_plain(part.value, indent + "  ")
        else:
            yield f"{head} {_flow(part.value)}"
    elif not part:
        yield f"{head} {'{}' if isinstance(part, Mapping) else '[]'}"
    else:
        yield head
        yield from _yaml(part, indent + "  ")


def _yaml_item(part: Document, indent: str) -> Iterator[str]:
    if isinstance(part, Value):
        yield f"{indent}# {_origin(part)}"
        yield from _yaml_plain([part.value], indent)
        return
    lines = list(_yaml(part, indent + "  "))
    first = next((n for n, line in enumerate(lines) if not line.lstrip().startswith("#")), None)
    if first is None:
        yield f"{indent}- {'{}' if isinstance(part, Mapping) else '[]'}"
        return
    yield from (indent + line[len(indent) + 2 :] for line in lines[:first])
    yield f"{indent}- {lines[first][len(indent) + 2 :]}"
    yield from lines[first + 1 :]


def _yaml_plain(data: Any, indent: str) -> Iterator[str]:
    """Yield plain data as block YAML."""
    if isinstance(data, Mapping):
        for key, part in data.items():
            head = f"{indent}{yaml_scalar(str(key))}:"
            if isinstance(part, Mapping | list | tuple) and part:
                yield head
                yield from _yaml_plain(part, indent + "  ")
            else:
                yield f"{head} {_flow(part)}"
    elif isinstance(data, list | tuple):
        for part in data:
            if isinstance(part, Mapping | list | tuple) and part:
                lines = list(_yaml_plain(part, indent + "  "))
                yield f"{indent}- {lines[0][len(indent) + 2 :]}"
                yield from lines[1:]
            else:
                yield f"{indent}- {_flow(part)}"
    else:
        yield f"{indent}{_flow(data)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    return yaml_scalar(value)
