"""Catalog files and users' files in, validated specs or one-sentence InputErrors out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError, nearest
from dualpath_model.yaml_lines import Document

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MOST = 10**9  # no count of a node or an LLM is larger; beyond it floats overflow in the end
Count = Annotated[int, Field(gt=0, le=MOST, strict=True)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST, strict=True)]
PositiveNumber = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
Grade = Literal["a", "b", "c", "given"]
Source = list[str]


class Spec(BaseModel):
    """Base of everything read from a file: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySpec = TypeVar("AnySpec", bound=BaseModel)


@lru_cache
def shipped(file: str) -> dict[str, Any]:
    """Return the whole content of one of our own catalog files, parsed once a process."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.load(text, Loader=_Loader)
    return content


def looks_like_path(reference: str) -> bool:
    """Tell a file's path from a catalog name: it has a folder or ends in .yaml, .yml or .json."""
    return "/" in reference or "\\" in reference or Path(reference).suffix in _SUFFIXES


_SUFFIXES = {".yaml", ".yml", ".json"}


def resolve(kind: str, reference: str, base_dir: Path | None, names: list[str]) -> Path:
    """Return the file that ``reference`` means, looked for in ``base_dir`` (default: here).

    Raises InputError if nothing is there; the message also offers the catalog's nearest names.
    """
    path = (base_dir or Path()) / reference
    try:
        path = (base_dir or Path()) / Path(reference).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError):  # a name too long for a file, a home of nobody
        pass
    close = nearest(reference.rsplit("/", 1)[-1], names) or names
    raise InputError(
        f"{kind} '{reference}': there is no file {path}; check the path or take a name of the "
        f"catalog, such as {', '.join(close[:3])}"
    )


def read(path: Path) -> Document:
    """Read a YAML or JSON file whose top level is a mapping; raises InputError naming the file."""
    if path.suffix != ".json":
        return yaml_lines.read(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return yaml_lines.read(path)  # has the right sentence for each of these
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend that line"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; that is no configuration") from None
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{path}: not usable JSON ({error}); mend it") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: must be a JSON object of fields, but it is a {_kind(data)}")
    return Document(data, {}, str(path))


def _kind(value: object) -> str:
    return {list: "list", str: "string", type(None): "null"}.get(type(value), "number")


def validated(model: type[AnySpec], document: Document) -> AnySpec:
    """Return ``document`` as a ``model``; raises InputError naming file, line, field and remedy."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise _complaint(error, document, model) from None


def _complaint(error: ValidationError, document: Document, model: type[BaseModel]) -> InputError:
    first = error.errors()[0]
    if not first["loc"] and first["type"] == "value_error":  # of the whole: it names the field
        where = f"{document.file}:{document.lines.get((), 1)}" if document.lines else document.file
        return InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}")
    if document.lines:
        return yaml_lines.explain(error, document, model)
    text = str(yaml_lines.explain(error, _without_lines(document), model))
    return InputError(text.replace(f"{document.file}:1: ", f"{document.file}: ", 1))


def inline(mapping: Mapping[str, Any], where: str) -> Document:
    """Wrap a mapping that is part of something else; ``where`` names it in messages."""
    return Document(dict(mapping), {}, where)


def _without_lines(document: Document) -> Document:
    """Give every part of ``document`` line 1, so that messages can name it."""
    lines: dict[yaml_lines.Location, int] = {}

    def record(value: object, location: yaml_lines.Location) -> None:
        lines[location] = 1
        if isinstance(value, Mapping):
            for key, child in value.items():
                record(child, (*location, str(key)))
        elif isinstance(value, list):
            for index, child in enumerate(value):
                record(child, (*location, index))

    record(document.data, ())
    return document._replace(lines=lines)
