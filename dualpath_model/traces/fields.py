"""One field of one request, checked: the messages that all readers share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import orjson

from dualpath_model.errors import InputError

# beyond it a float column no longer holds every whole number
MOST_TOKENS = 2**53

Row = dict[str, Any]


def parse_json(text: bytes | bytearray, path: Path, line: int | None = None) -> Any:
    """Parse one JSON text, which starts at ``line`` (None: the whole file).

    Raises InputError with the line number. NaN and Infinity, which Python writes although JSON has
    no such words, are let through, so that the check of the field can name it.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason, number = error.msg, error.lineno if line is None else line
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            f"{path}: line {number} is not whole, valid JSON ({reason}); "
            f"mend or remove it, or copy the file again if it was cut off"
        ) from None


def as_row(value: object, where: str) -> Row:
    """Return ``value`` if it is a JSON object. Raises InputError."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is {shown(value)}; a request must be a JSON object, so mend it")
    return value


def tokens(row: Row, field: str, where: str, *, least: int = 0) -> int:
    """Return the whole number of tokens in ``field``. Raises InputError for anything else."""
    value = row.get(field)
    if type(value) is int and least <= value <= MOST_TOKENS:
        return value
    if field not in row:
        raise InputError(f"{where}: the field {field} is missing; each request needs it, so add it")
    remedy = "leave requests without a prompt out" if value == 0 else "mend or remove the request"
    raise InputError(
        f"{where}: {field} is {shown(value)}; it must be a whole number of tokens, "
        f"{least} or more; {remedy}"
    )


def seconds(row: Row, field: str, where: str, *, unit: str = "s") -> float | None:
    """Return the time in ``field``, None if it is absent or null. Raises InputError."""
    value = row.get(field)
    if value is None:
        return None
    if type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return float(value)
    raise InputError(
        f"{where}: {field} is {shown(value)}; it must be a finite time in {unit}, zero or more; "
        f"mend it or leave the field out"
    )


def name(row: Row, field: str, where: str) -> str:
    """Return the name (text or whole number) in ``field`` as text. Raises InputError."""
    value = row.get(field)
    if (type(value) is str and value) or type(value) is int:
        return str(value)
    raise InputError(
        f"{where}: {field} is {shown(value)}; "
        f"it must be a name (text or a whole number), so add one"
    )


def shown(value: object) -> str:
    """Print a value in at most about fifty characters, for a message."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 50 else f"{text[:47]}..."
