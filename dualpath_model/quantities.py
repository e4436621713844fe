"""Physical quantities at the edge: text such as "400 Gbps" on one side, SI floats on the other.

Inside the toolkit everything is bytes, seconds and FLOP as plain floats. Text is parsed when a file or
a command line is read and produced when something is shown. Case decides between bits and bytes
("Gb", "GB") and the letter i between powers of 10 and 2 ("GB", "GiB"), so neither is ever guessed;
a bare number is refused because it does not say which it means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from dualpath_model.errors import InputError


class Dimension(StrEnum):
    """What a quantity measures; the value is its SI unit."""

    BYTES = "B"
    BYTES_PER_S = "B/s"
    SECONDS = "s"
    FLOP_PER_S = "FLOP/s"


EXAMPLES = {
    Dimension.BYTES: "80 GB or 80 GiB",
    Dimension.BYTES_PER_S: "400 Gbps or 50 GB/s",
    Dimension.SECONDS: "300 ms or 4 s",
    Dimension.FLOP_PER_S: "989 TFLOP/s or 1.98 PFLOP/s",
}

LIMITS = {
    Dimension.BYTES: (1.0, 1e18),
    Dimension.BYTES_PER_S: (1.0, 1e18),
    Dimension.SECONDS: (1e-9, 1e9),
    Dimension.FLOP_PER_S: (1.0, 1e21),
}
"""What can be meant, in SI. Outside it a value is a slip, and the models' numbers would overflow."""

MOST_TOKENS = 1_000_000_000

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_PREFIX = _DECIMAL | _BINARY


def _with_prefixes(suffixes: dict[str, float], prefixes: dict[str, float]) -> dict[str, float]:
    return {p + s: scale * size for s, size in suffixes.items() for p, scale in prefixes.items()}


_UNITS: dict[Dimension, dict[str, float]] = {
    Dimension.BYTES: _with_prefixes({"B": 1.0, "b": 1 / 8, "bit": 1 / 8}, _PREFIX),
    Dimension.BYTES_PER_S: _with_prefixes(
        {"B/s": 1.0, "Bps": 1.0, "b/s": 1 / 8, "bit/s": 1 / 8, "bps": 1 / 8}, _PREFIX
    ),
    Dimension.SECONDS: {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
    | {"min": 60.0, "h": 3600.0, "d": 86400.0},
    Dimension.FLOP_PER_S: _with_prefixes(
        {"FLOP/s": 1.0, "FLOPS": 1.0, "FLOPs/s": 1.0, "OP/s": 1.0}, _DECIMAL
    ),
}

_TEXT = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)?\s*")
_NUMBER = (int, float)


def parse(text: object, dimension: Dimension) -> float:
    """Parse ``text`` such as "400 Gbps" into an SI float (bytes, bytes/s, seconds or FLOP/s).

    Raises InputError for a bare number, an unknown or ambiguous unit, and values outside
    :data:`LIMITS` (zero, negative and absurd ones).
    """
    example = EXAMPLES[dimension]
    if isinstance(text, bool) or not isinstance(text, (str, *_NUMBER)):
        raise InputError(
            f"{text!r} is not a quantity; write a number with a unit, such as {example}"
        )
    if isinstance(text, _NUMBER):
        raise InputError(f"{text!r} has no unit; write it with one, such as {example}")
    match = _TEXT.fullmatch(text)
    if match is None:
        raise InputError(f"'{text}' is not a number with a unit; write it like {example}")
    number, unit = match.groups()
    if unit is None:
        raise InputError(f"'{text}' has no unit; write it with one, such as {example}")
    value = float(number) * _unit_size(text, unit, dimension)
    least, most = LIMITS[dimension]
    if not least <= value <= most:
        raise InputError(
            f"'{text}' is out of range; it must be from {least:g} to {most:g} {dimension.value}, "
            f"like {example}"
        )
    return value


def parse_duration(text: object) -> float:
    """Parse a duration that may be none at all: "0", "0 s", or as :func:`parse` reads seconds.

    Raises InputError as :func:`parse` does.
    """
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is not None and float(match[1]) == 0:
        unit = match[2]
        return 0.0 if unit is None else 0.0 * _unit_size(str(text), unit, Dimension.SECONDS)
    return parse(text, Dimension.SECONDS)


def _unit_size(text: str, unit: str, dimension: Dimension) -> float:
    size = _UNITS[dimension].get(unit)
    if size is not None:
        return size
    for other, units in _UNITS.items():
        if unit in units:
            raise InputError(
                f"'{text}' is in {other.value}, but {dimension.value} is needed, "
                f"such as {EXAMPLES[dimension]}"
            )
    same = sorted(known for known in _UNITS[dimension] if known.lower() == unit.lower())
    hint = f"did you mean {' or '.join(same)}" if same else f"write it like {EXAMPLES[dimension]}"
    raise InputError(
        f"'{text}' has the unknown unit '{unit}'; {hint} (upper and lower case differ)"
    )


def exact(value: float, dimension: Dimension) -> str:
    """Print ``value`` so that :func:`parse` gives back the very same float."""
    return f"{value!r} {dimension.value}"


_TIME_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def show(value: float, dimension: Dimension, digits: int = 3) -> str:
    """Print ``value`` for people, with a decimal prefix: 5e10 bytes/s is "50 GB/s"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {dimension.value}"
    if dimension is Dimension.SECONDS:
        size, unit = next((s for s in _TIME_STEPS if abs(value) >= s[0]), (1e-9, "ns"))
        return f"{value / size:.{digits}g} {unit}"
    prefix = next((p for p in ("E", "P", "T", "G", "M", "k") if abs(value) >= _DECIMAL[p]), "")
    scaled = value / _DECIMAL[prefix]
    number = f"{scaled:.{digits}g}" if abs(scaled) < 1000 else f"{scaled:,.0f}"
    return f"{number} {prefix}{dimension.value}"


_COUNT = re.compile(r"\s*(\d[\d_]*(?:\.\d+)?)\s*(k|K|M|G|Ki|Mi|Gi)?\s*")


def parse_count(text: str | int) -> int:
    """Parse a token count: "429", "16K" (16,000), "64Ki" (65,536).

    Raises InputError for anything else, negative numbers included.
    """
    match = _COUNT.fullmatch(str(text))
    if match is None:
        raise InputError(f"'{text}' is not a count; write 429, 16K (16,000) or 64Ki (65,536)")
    number, prefix = match.groups()
    scale = _PREFIX["k" if prefix == "K" else prefix] if prefix else 1.0
    count = float(number) * scale
    if count > MOST_TOKENS:
        raise InputError(f"'{text}' is out of range; give at most {MOST_TOKENS:,}")
    return round(count)


def _validator(dimension: Dimension) -> Callable[[object], float]:
    return _validated(lambda value: parse(value, dimension))


def _validated(read: Callable[[object], float]) -> Callable[[object], float]:
    def validate(value: object) -> float:
        try:
            return read(value)
        except InputError as error:  # pydantic gathers ValueErrors and adds the place in the file
            raise ValueError(str(error)) from None

    return validate


def _annotation(dimension: Dimension) -> tuple[PlainSerializer, WithJsonSchema]:
    schema = {
        "type": "string",
        "description": f"a number with a unit, such as {EXAMPLES[dimension]}",
        "examples": EXAMPLES[dimension].split(" or "),
    }
    return PlainSerializer(lambda value: exact(value, dimension)), WithJsonSchema(schema)


Bytes = Annotated[
    float, BeforeValidator(_validator(Dimension.BYTES)), *_annotation(Dimension.BYTES)
]
BytesPerSecond = Annotated[
    float,
    BeforeValidator(_validator(Dimension.BYTES_PER_S)),
    *_annotation(Dimension.BYTES_PER_S),
]
Seconds = Annotated[
    float, BeforeValidator(_validator(Dimension.SECONDS)), *_annotation(Dimension.SECONDS)
]
Duration = Annotated[
    float, BeforeValidator(_validated(parse_duration)), *_annotation(Dimension.SECONDS)
]
"""Seconds, none at all included."""
FlopPerSecond = Annotated[
    float, BeforeValidator(_validator(Dimension.FLOP_PER_S)), *_annotation(Dimension.FLOP_PER_S)
]
