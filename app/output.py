"""What every command prints: tables for people, or one JSON object; remarks on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="-|FILE", help="Write JSON to standard output (-) or a file."),
]


def emit(target: str | None, data: Callable[[], Any], show: Callable[[], None]) -> None:
    """Show for people, or write JSON where ``target`` says."""
    if target is None:
        show()
    elif target == "-":
        print(dump(data()))
    else:
        from app.files import write_atomically

        write_atomically(Path(target), dump(data()) + "\n")
        show()
        say(f"wrote {target}")


def dump(data: Any) -> str:
    """Return data as indented JSON."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(data, option=options).decode()


def as_read_back(data: Any) -> Any:
    """Return what a reader of ``dump(data)`` gets: plain lists, dicts and numbers."""
    import orjson

    return orjson.loads(dump(data))


def say(text: str) -> None:
    """Print a remark on standard error."""
    print(text, file=sys.stderr)
