"""YAML in, with the line of every key kept, so that an error can say where to look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        _check_size(text, file)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            recorder = _Recorder(loader, file)
            data = None
            if node is not None:
                recorder.record(node, ())
                data = loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        problem = _short(" ".join(problem.split()), 200)
        where = f"{file}:{mark.line + 1}" if mark else file
        if "nesting depth" in problem:  # libyaml 0.2.6 reads so far ahead that it may see it first
            raise _too_deep(where) from None
        raise InputError(f"{where}: not valid YAML ({problem}); mend that line") from None
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise InputError(f"{file}: must be a mapping of fields, but it is {kind}")
    return Document(data, recorder.lines, file)


# What a file may hold, aliases followed: a few of them blow a few lines up to any size. Ours have
# tens of entries, four levels deep.
_MOST_DEPTH = 100
_MOST_ENTRIES = 100_000
_MOST_CHARACTERS = 10_000_000
_MOST_DIGITS = 100  # Python takes quadratic time for long numbers, and prints none of 4,300 digits


def _too_deep(where: str) -> InputError:
    return InputError(
        f"{where}: an entry contains itself or is nested too deep, more than {_MOST_DEPTH} levels; "
        f"untie it"
    )


def _too_many(file: str) -> InputError:
    return InputError(
        f"{file}: more than {_MOST_ENTRIES:,} entries, those that aliases repeat included; "
        f"leave some out"
    )


def _check_size(text: str, file: str) -> None:
    """Refuse deep nesting before it is composed: libyaml recurses on the machine's own stack."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > 2 * _MOST_ENTRIES + 1:  # an entry has a key and a value
            raise _too_many(file)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise _too_deep(file)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


@dataclass
class _Recorder:
    """Notes the line of every key and list entry, and refuses what no constructor may see."""

    loader: Any
    file: str
    lines: dict[Location, int] = field(default_factory=dict)
    characters: int = 0

    def record(self, node: yaml.Node, location: Location) -> None:
        """Note ``node`` and all in it, aliases followed. Raises InputError."""
        if len(location) > _MOST_DEPTH:
            raise _too_deep(f"{self.file}:{node.start_mark.line + 1}")
        if len(self.lines) > _MOST_ENTRIES:
            raise _too_many(self.file)
        self.lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self.record(value, self._of_key(key, location))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.record(value, (*location, index))
        else:
            self._check_scalar(node, location)
            return
        if _kind(node) in _KINDS:
            raise InputError(
                f"{self.file}:{node.start_mark.line + 1}: {_field_name(location)}: a list or a "
                f"mapping is not {_KINDS[_kind(node)]}; leave the tag {_short(node.tag)} out"
            )

    def _of_key(self, key: yaml.Node, location: Location) -> Location:
        """Note a key of the mapping at ``location``; return where its value is."""
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(
                f"{self.file}:{line}: {_field_name(location)}: a key is a list or a mapping; "
                f"give a word"
            )
        name = str(key.value)
        below = (*location, name)
        if below in self.lines:
            raise InputError(
                f"{self.file}:{line}: '{_short(name)}' is given twice (first on line "
                f"{self.lines[below]}); keep one"
            )
        self.lines[below] = line
        self._check_scalar(key, below)
        return below

    def _check_scalar(self, node: yaml.Node, location: Location) -> None:
        """Refuse too much text, and what is not of the type that its tag or its look says."""
        text = str(node.value)
        self.characters += len(text)
        if self.characters > _MOST_CHARACTERS:
            raise InputError(
                f"{self.file}: more than {_MOST_CHARACTERS:,} characters, those that aliases repeat "
                f"included; leave some out"
            )
        kind = _kind(node)
        if kind not in _KINDS:  # no constructor of theirs fails without a sentence of its own
            return
        problem = f"not {_KINDS[kind]}; correct it"
        if kind in {"int", "float"} and len(text) > _MOST_DIGITS:
            problem = f"a number of {len(text):,} characters; give at most {_MOST_DIGITS}"
        else:
            try:
                self.loader.construct_object(node)  # it is remembered, so nothing is done twice
                return
            except _MISFITS:
                pass
        raise InputError(
            f"{self.file}:{node.start_mark.line + 1}: {_field_name(location)}: '{_short(text)}' is "
            f"{problem}, or put it in quotes without a tag"
        )


def _kind(node: yaml.Node) -> str:
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "timestamp": "a date or time",
}

# PyYAML's constructors raise whatever Python does on the way
_MISFITS = (AttributeError, LookupError, TypeError, ArithmeticError, ValueError)


def _field_name(location: Location) -> str:
    return ".".join(_short(str(part)) for part in location) or "the file"


def _short(text: str, most: int = 60) -> str:
    """Return ``text`` as a message can show it: its start, on one line."""
    text = " ".join(text.splitlines())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _shown(value: object) -> str:
    """Print a value for a message: shortened, and whatever it is."""
    try:
        return _short(repr(value))
    except (ValueError, RecursionError):  # thousands of digits or levels
        return f"a value ({type(value).__name__}) too long to print"


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> InputError:
    """Turn pydantic's most specific complaint into one sentence: file, line, field, value, remedy."""
    found = max(error.errors(), key=lambda complaint: _specific(complaint, document))
    location, kind = found["loc"], found["type"]
    line, known = _line_of(location, document)
    field_name = _field_name(known)
    message = found["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        allowed = _fields_beside(model, known)
        close = nearest(str(location[-1]), allowed, count=1)
        hint = f"did you mean '{close[0]}'?" if close else f"allowed are {', '.join(allowed)}"
        message = f"unknown field; {hint}"
    elif kind == "missing":
        field_name = _field_name((*known, location[-1]))
        message = "is required and missing; add it"
    elif kind == "too_long":
        message = (
            f"has {len(found['input']):,} entries; at most {found['ctx']['max_length']:,} are allowed, "
            f"so join those that are alike or leave some out"
        )
    elif kind != "value_error":
        need = _SHAPES.get(kind, f"{message[:1].lower()}{message[1:]}")
        message = f"{_shown(found['input'])} is not allowed; {need}"
    elif isinstance(found["input"], str):  # which the sentence may quote in full
        message = message.replace(found["input"], _short(found["input"]))
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
