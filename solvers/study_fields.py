"""Fields of a scenario file by their dotted path: what they hold, and how one is set.

The file's own JSON Schema says which fields there are and of what kind, so a field that scenarios gain
can be an axis at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from dualpath_model.catalog.files import shipped
from dualpath_model.errors import InputError, unknown_name
from dualpath_model.quantities import EXAMPLES, Dimension, exact, parse
from dualpath_model.scenario import ScenarioSpec

Parts = tuple[str | int, ...]
Data = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a field holds. ``type``: "float", "int", "bool" or "text"; a quantity has a dimension."""

    type: str
    dimension: Dimension | None = None

    def number(self, value: object, where: str) -> float:
        """Return an end of a range as a number (of a quantity in SI). Raises InputError."""
        if self.dimension is not None:
            try:
                return parse(value, self.dimension)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
        if self.type not in ("float", "int"):
            raise InputError(f"{where}: this field holds no number; give a list of values instead")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{where}: {value!r} is not a number; give one")
        if self.type == "int" and value != int(value):
            raise InputError(f"{where}: {value!r} is not a whole number; give one")
        return float(value)

    def written(self, number: float) -> object:
        """Return a number as the file holds it."""
        if self.dimension is not None:
            return exact(number, self.dimension)
        return round(number) if self.type == "int" else number

    def shown(self, value: object) -> object:
        """Return a value of the file as a table holds it: quantities in SI, what is nested as text."""
        if value is None or isinstance(value, bool):
            return value
        if self.dimension is not None:
            return parse(value, self.dimension)
        if self.type in ("float", "int"):
            return value
        return value if isinstance(value, str) else _text(value)


def _text(value: object) -> str:
    import json

    return json.dumps(value, sort_keys=True)


def split_path(path: str) -> Parts:
    """Return the parts of a dotted path; numbers are places in a list."""
    return tuple(int(part) if part.isdecimal() else part for part in path.split("."))


def kind_of(parts: Parts, model: type[BaseModel], where: str) -> Kind:
    """Return what the field at ``parts`` of a file holds.

    Raises InputError with the nearest names if there is no such field.
    """
    schema = _schema(model)
    here: list[Data] = [schema]
    for depth, part in enumerate(parts):
        below = [child for spot in here for child in _children(spot, part, schema)]
        if not below:
            _unknown(parts, depth, here, where)
        here = below
    if any(spot.get("properties") for spot in here) and not any(
        spot.get("type") == "string" for spot in here
    ):
        names = sorted({name for spot in here for name in spot.get("properties", {})})
        raise InputError(
            f"{where}: {_dotted(parts)} is a group of fields; vary one of them: {', '.join(names)}"
        )
    return _kind(here)


def _unknown(parts: Parts, depth: int, here: Sequence[Data], where: str) -> None:
    above, name = _dotted(parts[:depth]), _dotted(parts[: depth + 1])
    names = {name for spot in here for name in spot.get("properties", {})}
    if not names:
        raise InputError(f"{where}: {above} has no fields below it; vary {above} itself")
    prefix = f"{above}." if above else ""
    error = unknown_name("field", name, [prefix + other for other in names])
    raise InputError(f"{where}: {error}")


@cache
def _schema(model: type[BaseModel]) -> Data:
    return model.model_json_schema()


def _children(spot: Data, part: str | int, schema: Data) -> list[Data]:
    if isinstance(part, int):
        child = spot.get("items")
    else:
        child = spot.get("properties", {}).get(part) or spot.get("additionalProperties")
    if child is True:  # anything goes: an LLM's fields, inline
        return [{}]
    return _resolved(child, schema) if isinstance(child, dict) else []


def _resolved(child: Data, schema: Data) -> list[Data]:
    if "$ref" in child:
        return _resolved(schema["$defs"][child["$ref"].rsplit("/", 1)[1]], schema)
    options = child.get("anyOf") or child.get("oneOf") or child.get("allOf")
    if options:
        return [found for option in options for found in _resolved(option, schema)]
    return [child]


_DIMENSIONS = {tuple(text.split(" or ")): dimension for dimension, text in EXAMPLES.items()}


def _kind(spots: Sequence[Data]) -> Kind:
    for spot in spots:
        dimension = _DIMENSIONS.get(tuple(spot.get("examples", ())))
        if dimension is not None:
            return Kind("float", dimension)
    types = {spot.get("type") for spot in spots} - {"null"}
    if types <= {"integer", "number"} and types:
        return Kind("int" if types == {"integer"} else "float")
    return Kind("bool" if types == {"boolean"} else "text")


def _dotted(parts: Parts) -> str:
    return ".".join(map(str, parts))


def with_value(data: Mapping[str, Any], parts: Parts, value: object) -> Data:
    """Return a file's data with one field set; what lies beside the path is shared, not copied.

    Names stand for what they name: ``cluster.prefill.node.snics`` of a node given by its catalog name
    changes that node, and a cluster of the catalog is written out.

    Raises InputError where the path leads through something that has no fields.
    """
    found: Data = _set(dict(data), parts, 0, value)
    return found


def _set(holder: Any, parts: Parts, depth: int, value: object) -> Any:
    if depth == len(parts):
        return value
    part = parts[depth]
    opened = _opened(holder, parts, depth)
    if isinstance(opened, list):
        if not isinstance(part, int) or part >= len(opened):
            raise InputError(
                f"{_dotted(parts[:depth])} is a list of {len(opened)}; write the place after it, "
                f"such as {_dotted((*parts[:depth], 0, part))}"
            )
        copied = list(opened)
        copied[part] = _set(copied[part], parts, depth + 1, value)
        return copied
    return {**opened, part: _set(opened.get(part), parts, depth + 1, value)}


def _opened(holder: Any, parts: Parts, depth: int) -> Any:
    """Return what is at a place as something that has fields."""
    if holder is None:
        return {}
    if isinstance(holder, (dict, list)):
        return holder
    name = parts[depth - 1] if depth else ""
    if name == "cluster" and isinstance(holder, str) and holder in shipped("clusters.yaml"):
        return shipped("clusters.yaml")[holder]
    if name == "node" and isinstance(holder, str) and holder in shipped("nodes.yaml")["nodes"]:
        return {"base": holder}
    if name == "node" and isinstance(holder, str) and holder.endswith(".json"):
        return {"profile": holder}
    if name == "trace" and isinstance(holder, str):
        return {"path": holder}
    raise InputError(
        f"{_dotted(parts[:depth])} is {str(holder)[:60]!r}, which has no field "
        f"'{parts[depth]}' to change; write it out in the base scenario"
    )


def check_value(data: Data, parts: Parts, model: type[BaseModel], where: str) -> None:
    """Raise InputError if a value stands in ``data`` that its field cannot hold.

    What only several fields together make wrong is left alone: another axis may put it right.
    """
    try:
        model.model_validate(data)
    except ValidationError as error:
        for found in error.errors():
            inside = [part for part in found["loc"] if part in parts]
            if len(inside) >= len(parts) and tuple(inside[: len(parts)]) == parts:
                message = found["msg"].removeprefix("Value error, ")
                shown = str(found["input"])[:60]
                text = message if shown in message else f"{shown!r} is not allowed; {message}"
                raise InputError(f"{where}: {text}") from None


SCENARIO: type[BaseModel] = ScenarioSpec
