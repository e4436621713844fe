"""The decision log: JSON lines, a snapshot first, then each event with its decisions.

``{"kind": "start", "snapshot": {...}}`` and then, for each event, ``{"event": {...}, "decisions":
[...]}`` or, if it was refused, ``{"event": {...}, "refused": "why"}``. A scheduler restored from the
first line and given the events makes the same decisions again; :func:`replay` checks that it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from dualpath_model.errors import InputError
from dualpath_model.scheduler import snapshot
from dualpath_model.scheduler.events import Decision, Event
from dualpath_model.scheduler.ledger import ReportError
from dualpath_model.scheduler.reference import Scheduler


@dataclass(frozen=True, slots=True)
class Start:
    """The first line."""

    snapshot: Any
    """What :func:`snapshot.take` gave."""
    kind: Literal["start"] = "start"


@dataclass(frozen=True, slots=True)
class Decided:
    """An event and what was decided."""

    event: Annotated[Event, Field(discriminator="kind")]
    decisions: tuple[Annotated[Decision, Field(discriminator="kind")], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """What was refused, as far as JSON can say it, why, and the engines that get no more work for it."""

    event: Any
    refused: str
    closed: tuple[str, ...] = ()


Line = Start | Decided | Refused


class DecisionLog:
    """Writes a scheduler's log to a binary file from now on; the caller closes the file."""

    def __init__(self, scheduler: Scheduler, file: BinaryIO) -> None:
        """Write the first line, and become the scheduler's observer."""
        self._file = file
        self._write(Start(snapshot.take(scheduler)))
        scheduler.observer = self._observe

    def _observe(
        self, event: Event, decisions: tuple[Decision, ...], refused: InputError | None
    ) -> None:
        if refused is None:
            self._write(Decided(event, decisions))
            return
        closed = refused.closed if isinstance(refused, ReportError) else ()
        # what was refused may be nothing that JSON can say, or read back as something acceptable
        shown = event if _survives(event) else _printable(event)
        self._write(Refused(shown, _printable(refused), closed))

    def _write(self, line: Line) -> None:
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _survives(event: Any) -> bool:
    try:
        return repr(_adapter().validate_json(orjson.dumps(event))) == repr(event)
    except (TypeError, ValueError):
        return False


def _printable(value: Any) -> str:
    try:
        return str(value).encode(errors="replace").decode()
    except ValueError:  # a number of more than 4,300 digits
        return f"a {type(value).__name__} that cannot be printed"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One event of a log, with what was decided then and what is decided now."""

    line: int
    event: Any
    """As plain data."""
    logged: Any
    """The line's ``decisions`` or ``refused``, as plain data."""
    again: Any
    """The same, from the replay."""

    @property
    def same(self) -> bool:
        """Whether the decisions are reproduced."""
        return bool(self.logged == self.again)


def replay(path: Path, *, compiled: bool = False) -> Iterator[Replayed]:
    """Yield each event of a log, replayed; a difference does not stop it.

    Raises InputError for a file that is not a decision log, with the line at fault.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None or first[1].get("kind") != "start":
        raise InputError(
            f"{path}: line 1 does not start a decision log; give a file that a scheduler logged to"
        )
    try:
        scheduler = snapshot.restore(first[1].get("snapshot"), compiled=compiled)
    except InputError as error:
        raise InputError(f"{path}: line 1: {error}") from None
    for number, line in lines:
        data, logged = line.get("event"), line.get("refused", line.get("decisions"))
        if "refused" in line:
            again = _refused_again(scheduler, data, line)
        elif isinstance(logged, list):
            again = _again(scheduler, _event(path, number, data))
        else:
            raise InputError(
                f"{path}: line {number} has neither decisions nor refused; mend the file"
            )
        yield Replayed(number, data, logged, again)


def _again(scheduler: Scheduler, event: Event) -> Any:
    try:
        return orjson.loads(orjson.dumps(scheduler.handle(event)))
    except InputError as error:
        return str(error)


def _refused_again(scheduler: Scheduler, data: Any, line: dict[str, Any]) -> Any:
    """Handle a refused event again. One that is no event is refused by its form, as it was then; all
    that it did was to close the engines that the line names.
    """
    try:
        event = _adapter().validate_python(data)
    except ValidationError:
        scheduler.close(line.get("closed", ()))
        return line["refused"]
    return _again(scheduler, event)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError:
                    why = "is cut short" if not text.endswith(b"\n") else "is not JSON"
                    raise InputError(
                        f"{path}: line {number} {why}; remove it or log again"
                    ) from None
                if not isinstance(line, dict):
                    raise InputError(f"{path}: line {number} is not a JSON object; log again")
                yield number, line
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a decision log"
        ) from None


def _event(path: Path, number: int, data: Any) -> Event:
    try:
        return _adapter().validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["event", *(str(part) for part in first["loc"][1:])])
        raise InputError(
            f"{path}: line {number}: {where}: {first['msg'].lower()}; give what a scheduler logged"
        ) from None


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])
