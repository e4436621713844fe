"""A value in an exported file never stands alone: it says where it comes from.

Targets build documents as dicts and lists whose leaves are :class:`Value`; :mod:`documents` writes
them with their origins, as comments where the format has any and in ``derivations.json`` always. A bare
leaf is a mistake and raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Scalar = str | int | float | bool | None
Plain = Any
"""JSON-ready data: scalars, lists and dicts."""
Document = Any
"""Dicts and lists whose leaves are :class:`Value`."""


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a file.

    ``origin``: "plan" (computed from it), "site" (what the operator said of the place, or a default to
    be changed) or "fixed" (a choice that makes the others work). ``how``: one sentence. ``unit``:
    what the target counts it in. ``inputs``: the figures that it was computed from, SI. ``site``: the
    fields of the site, dotted, that it is made of.
    """

    value: Any
    how: str
    unit: str = ""
    origin: Literal["plan", "site", "fixed"] = "plan"
    inputs: Mapping[str, Scalar] = field(default_factory=dict)
    site: tuple[str, ...] = ()


def derived(value: Any, how: str, unit: str = "", **inputs: Scalar) -> Value:
    """Return a value that follows from the plan."""
    return Value(value, how, unit, "plan", inputs)


def fixed(value: Any, why: str) -> Value:
    """Return a value that does not depend on the plan, with its reason."""
    return Value(value, why, "", "fixed")


def leaves(document: Document, at: str = "") -> Iterator[tuple[str, Value]]:
    """Yield each value with its JSON pointer. Raises TypeError for a leaf that is no :class:`Value`."""
    if isinstance(document, Value):
        yield at, document
    elif isinstance(document, Mapping):
        for key, part in document.items():
            yield from leaves(part, f"{at}/{_escaped(key)}")
    elif isinstance(document, list | tuple):
        for number, part in enumerate(document):
            yield from leaves(part, f"{at}/{number}")
    else:
        raise TypeError(f"{at or '/'} is {document!r}, which does not say where it comes from")


def plain(document: Document) -> Plain:
    """Return the document without the origins."""
    if isinstance(document, Value):
        return document.value
    if isinstance(document, Mapping):
        return {key: plain(part) for key, part in document.items()}
    if isinstance(document, list | tuple):
        return [plain(part) for part in document]
    raise TypeError(f"{document!r} does not say where it comes from")


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
