"""Records from files that a program wrote: checked whole, the first mistake in one sentence."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dualpath_model.errors import InputError

Record = TypeVar("Record")


def validated(adapter: TypeAdapter[Record], data: Any, file: object, remedy: str) -> Record:
    """Return ``data`` as a record. Raises InputError: file, field, value, and ``remedy`` as it is."""
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{file}: {where}: {first['msg'].lower()}, but it is {first['input']!r:.80}; {remedy}"
        ) from None
