"""YAML in, with the line of every key kept, so that an error can say where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from dualpath_model.errors import InputError, nearest

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there

Location = tuple[str | int, ...]


class Document(NamedTuple):
    """A parsed file: its data, and the 1-based line on which each key or list entry starts."""

    data: dict[str, Any]
    lines: Mapping[Location, int]
    file: str


def read(path: Path) -> Document:
    """Read a YAML (or JSON) file whose top level is a mapping.

    Raises InputError, naming file and line, if it is missing, a folder, not text, not YAML, has a
    key twice or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the YAML file itself") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not a text file (byte {error.start}); give a YAML file"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check permissions") from None
    return parse(text, str(path))


def parse(text: str, file: str) -> Document:
    """Parse YAML text; ``file`` is only for messages. Raises InputError as :func:`read` does."""
    try:
        _check_depth(text, file)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Location, int] = {}
            if node is not None:
                _record(node, (), lines, file)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except RecursionError:
        raise InputError(
            f"{file}: an entry contains itself or is nested too deep; untie it"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        where = f"{file}:{mark.line + 1}" if mark else file
        raise InputError(f"{where}: not valid YAML ({problem}); mend that line") from None
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise InputError(f"{file}: must be a mapping of fields, but it is {kind}")
    return Document(data, lines, file)


_MOST_DEPTH = 100


def _check_depth(text: str, file: str) -> None:
    """Refuse deep nesting before it is composed: libyaml recurses on the machine's own stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise InputError(
                    f"{file}: nested too deep, more than {_MOST_DEPTH} levels; untie it"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


_MOST_NODES = 1_000_000  # aliases can blow a few lines up to any size


def _record(node: yaml.Node, location: Location, lines: dict[Location, int], file: str) -> None:
    if len(lines) > _MOST_NODES:
        raise InputError(f"{file}: more than {_MOST_NODES} entries; that is no scenario")
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            if (*location, name) in lines:
                first = lines[(*location, name)]
                raise InputError(
                    f"{file}:{key.start_mark.line + 1}: '{name}' is given twice (first on line "
                    f"{first}); keep one"
                )
            lines[(*location, name)] = key.start_mark.line + 1
            _record(value, (*location, name), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _record(value, (*location, index), lines, file)


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> InputError:
    """Turn pydantic's most specific complaint into one sentence: file, line, field, value, remedy."""
    found = max(error.errors(), key=lambda complaint: _specific(complaint, document))
    location, kind = found["loc"], found["type"]
    line, known = _line_of(location, document)
    field_name = ".".join(map(str, known)) or "the file"
    message = found["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        allowed = _fields_beside(model, known)
        close = nearest(str(location[-1]), allowed, count=1)
        hint = f"did you mean '{close[0]}'?" if close else f"allowed are {', '.join(allowed)}"
        message = f"unknown field; {hint}"
    elif kind == "missing":
        field_name = ".".join(map(str, (*known, location[-1])))
        message = "is required and missing; add it"
    elif kind != "value_error":
        shown = repr(found["input"])
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        need = _SHAPES.get(kind, f"{message[:1].lower()}{message[1:]}")
        message = f"{shown} is not allowed; {need}"
    return InputError(f"{document.file}:{line}: {field_name}: {message}")


_SHAPES = {
    "string_type": "a text is needed",
    "list_type": "a list is needed",
    "dict_type": "a mapping is needed",
    "model_type": "a mapping of its fields is needed",
    "model_attributes_type": "a mapping of its fields is needed",
}


def _specific(complaint: Any, document: Document) -> tuple[int, bool]:
    """Rank complaints: where a field may take several forms, the form the user meant got furthest."""
    _, known = _line_of(complaint["loc"], document)
    return len(known), complaint["type"] not in _SHAPES


def _line_of(location: Location, document: Document) -> tuple[int, Location]:
    """Return the line of the deepest part of ``location`` that the file has, and that part.

    Pydantic puts names of union members between the keys; those are in no file and are left out.
    """
    known: Location = ()
    for part in location:
        if (*known, part) in document.lines:
            known = (*known, part)
    return document.lines.get(known, 1), known


def _fields_beside(model: type[BaseModel], known: Location) -> list[str]:
    """Return the field names allowed where the unknown field ``known`` stands."""
    schema = model.model_json_schema()
    here: list[dict[str, Any]] = [schema]
    for part in known[:-1]:
        here = [child for spot in here for child in _children(spot, part, schema)]
    allowed = [name for spot in here for name in spot.get("properties", {})]
    return sorted(set(allowed)) or sorted(schema.get("properties", {}))


def _children(
    spot: dict[str, Any], part: str | int, schema: dict[str, Any]
) -> list[dict[str, Any]]:
    if isinstance(part, int):
        child = spot.get("items")
    else:  # a field, or the value of any key
        child = spot.get("properties", {}).get(part) or spot.get("additionalProperties")
    return _resolve(child, schema) if isinstance(child, dict) else []


def _resolve(child: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in child:
        return _resolve(schema["$defs"][child["$ref"].rsplit("/", 1)[1]], schema)
    options = child.get("anyOf") or child.get("oneOf") or child.get("allOf")
    if options:
        return [found for option in options for found in _resolve(option, schema)]
    return [child]
