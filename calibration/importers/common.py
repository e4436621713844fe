"""What the readers share: a file in, checked numbers, samples and figures out, a sentence per slip.

A reader gets the text of one tool's output and ``where``, which names file and field in messages. All
numbers leave here as SI: bytes, seconds, bytes per second.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from calibration import fit
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import Latency, Sample, Series, Setting, estimate
from dualpath_model.quantities import LIMITS, Dimension

Reader = Callable[[str, str], Measured]
"""Takes the text of an output and where it is from; raises InputError for what it cannot use."""

MOST_BYTES = 64_000_000
_LONGEST_TEXT = 200
_LEAST_SECONDS, _MOST_SECONDS = 1e-15, LIMITS[Dimension.SECONDS][1]
_LEAST_RATE, _MOST_RATE = LIMITS[Dimension.BYTES_PER_S]
ONE_RUN = "one run, which says nothing about its spread"
"""The note of a figure whose interval is empty because nothing is known of it."""
SMALL_BYTES = 16 * 1024
"""Convention: up to this size a message or a read takes as long as the smallest, which is its latency;
a rate needs larger ones."""


def read_text(path: Path, run: str) -> str:
    """Return the text of an output file; ``run`` is the command that writes one.

    Raises InputError for a file that is missing, a folder, empty, over :data:`MOST_BYTES` or not text.
    """
    remedy = f"give the file that `{run}` wrote"
    try:
        if not path.is_file():
            what = "is a folder or a device" if path.exists() else "is not there"
            raise InputError(f"{path}: {what}; {remedy}")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{path}: has {path.stat().st_size / 1e6:,.0f} MB, at most {MOST_BYTES / 1e6:.0f} MB "
                f"are read; {remedy}, without logs of single operations"
            )
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError:  # a path with a NUL
        raise InputError(f"{str(path)!r} is no file name; {remedy}") from None
    if not content.strip():
        raise InputError(f"{path}: is empty; {remedy}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not text (byte {error.start} is no UTF-8); {remedy}"
        ) from None
    if "\0" in text:
        raise InputError(f"{path}: is not text (byte {text.index(chr(0))} is 0); {remedy}")
    return text


def one_line(value: object) -> str:
    """Return ``value`` as text on one line, fit to be quoted and to be written to a file."""
    text = " ".join(str(value).encode("utf-8", "replace").decode("utf-8").split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def reported(where: str, tool: str, what: object, remedy: str) -> NoReturn:
    """Raise the InputError for an error that the tool itself put into its output."""
    raise InputError(f"{where}: {tool} itself reported '{one_line(what)}'; {remedy}")


@dataclass(frozen=True)
class Record:
    """One JSON object and where it stands; its methods check what they hand out."""

    data: Mapping[str, Any]
    where: str

    def has(self, key: str) -> bool:
        """Tell whether ``key`` is there and not null."""
        return self.data.get(key) is not None

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number that is not negative. Raises InputError without a default."""
        value = self.data.get(key)
        if value is None and default is not None:
            return default
        return as_number(value, f"{self.where}: {key}")

    def text(self, key: str, default: str = "") -> str:
        """Return what is at ``key`` as one line of text."""
        return one_line(self.data[key]) if self.has(key) else default

    def record(self, key: str) -> Record:
        """Return the object at ``key``; an absent one is empty. Raises InputError for other types."""
        value = self.data.get(key, {})
        if not isinstance(value, dict):
            self._wrong(key, value, "an object {...}")
        return Record(value, f"{self.where}: {key}")

    def records(self, key: str) -> list[Record]:
        """Return the list of objects at ``key``. Raises InputError if it is anything else."""
        found = self.items(key)
        for at, value in enumerate(found):
            if not isinstance(value, dict):
                self._wrong(f"{key}[{at}]", value, "an object {...}")
        return [Record(value, f"{self.where}: {key}[{at}]") for at, value in enumerate(found)]

    def items(self, key: str) -> list[Any]:
        """Return the list at ``key``; an absent one is empty. Raises InputError for other types."""
        value = self.data.get(key, [])
        if not isinstance(value, list):
            self._wrong(key, value, "a list [...]")
        return list(value)

    def _wrong(self, key: str, value: object, wanted: str) -> NoReturn:
        raise InputError(
            f"{self.where}: {key} is {one_line(json.dumps(value))}, but must be {wanted}; the file is "
            f"damaged, so write it again"
        )


def as_number(value: object, where: str) -> float:
    """Return a finite number that is not negative, also from text. Raises InputError otherwise."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not (0 <= number < math.inf):
        shown = "missing" if value is None else one_line(value)
        raise InputError(
            f"{where} is {shown}, but must be a finite number from 0 on; the file is cut off or "
            f"damaged, so run the tool again"
        )
    return number


def json_object(text: str, where: str, run: str) -> Record:
    """Return the one JSON object that begins at a line's start; tools print notes around it.

    Raises InputError if there is none, several, or one that is cut off; ``run`` prints a good one.
    """
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    problem = "holds no JSON object"
    found: list[Mapping[str, Any]] = []
    end = 0
    for match in re.finditer(r"^\{", text, re.MULTILINE):
        if match.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, match.start())
        except json.JSONDecodeError as error:
            line = text.count("\n", 0, error.pos) + 1
            problem = f"its JSON breaks off in line {line} ({error.msg})"
        except (ValueError, RecursionError) as error:
            problem = f"its JSON cannot be used ({one_line(error)})"
        else:
            found.append(value)
    if len(found) > 1:
        raise InputError(f"{where}: holds {len(found)} JSON objects; give one file for each run")
    if not found:
        raise InputError(f"{where}: {problem}; run `{run}` and give all it prints")
    return Record(found[0], where)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no measured number")


def sample(
    where: str,
    at: dict[str, Setting],
    seconds: float,
    amount: float = 0.0,
    latency: Latency | None = None,
) -> Sample:
    """Return a checked sample. Raises InputError for a time or a rate that no machine has."""
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise InputError(
            f"{where}: the time is {seconds:g} s, but must be from {_LEAST_SECONDS:g} to "
            f"{_MOST_SECONDS:g} s; run the tool again, and for longer"
        )
    if amount and not _LEAST_RATE <= amount / seconds <= _MOST_RATE:
        raise InputError(
            f"{where}: the rate is {amount / seconds:g} bytes/s, but must be from {_LEAST_RATE:g} to "
            f"{_MOST_RATE:g}; run the tool again"
        )
    return Sample(at=at, seconds=seconds, amount=amount, latency=latency)


def at_rate(
    where: str, at: dict[str, Setting], amount: float, bytes_per_s: float, counted: float = 1.0
) -> Sample:
    """Return the sample of a tool that prints rates only: its seconds are amount / rate.

    ``counted``: how often the figure counts each of the ``amount`` bytes that the rate counts once.
    """
    if not _LEAST_RATE <= bytes_per_s <= _MOST_RATE or not amount:
        raise InputError(
            f"{where}: {amount:g} bytes at {bytes_per_s:g} bytes/s is no measured rate, which must be "
            f"from {_LEAST_RATE:g} to {_MOST_RATE:g}; run the tool again"
        )
    return sample(where, at, amount / bytes_per_s, amount * counted)


def settle(
    measured: Measured,
    figure: str,
    series: Series,
    indices: Sequence[int],
    *,
    spread: float | None = None,
    note: str = "",
) -> None:
    """Add a figure: the median of several samples, or a single one as it is.

    ``spread``: half the 95 % interval of a single sample over its value, if the tool tells it. A
    figure of seconds needs samples without amounts, and one of bytes per second samples with them.
    """
    parameter = "bytes_per_s" if figure.endswith("_per_s") else "seconds"
    if len(indices) > 1:
        typical = fit.typical(f"{series.name}: {figure}", series, indices, parameter=parameter)
        measured.fits.append(typical)
        update = {"source": typical.name, "note": note}
        measured.figures[figure] = typical.parameters[parameter].model_copy(update=update)
        return
    chosen = series.samples[indices[0]]
    value = chosen.seconds if parameter == "seconds" else chosen.amount / chosen.seconds
    add_single(measured, figure, value, series.name, spread=spread, note=note)


def add_single(
    measured: Measured,
    figure: str,
    value: float,
    source: str,
    *,
    spread: float | None = None,
    note: str = "",
) -> None:
    """Add a figure of one run. Without a ``spread`` its note says that the interval is empty."""
    if spread is None:
        note = "; ".join(filter(None, [note, ONE_RUN]))
    factor = 1.0 + (spread or 0.0)
    measured.figures[figure] = estimate(value, value / factor, value * factor, source, note)


def spread_of_mean(deviation_share: float, count: float) -> float:
    """Return half the 95 % interval of a mean over that mean, from ``count`` values' deviation."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) * deviation_share / math.sqrt(count)


def joined(values: Sequence[object]) -> Setting:
    """Return the distinct values as one setting: the value itself, or several as text."""
    distinct = list(dict.fromkeys(one_line(value) for value in values))
    return distinct[0] if len(distinct) == 1 else one_line(", ".join(distinct))
