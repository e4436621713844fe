"""perftest's tables (ib_write_bw, ib_read_lat, ...): an RDMA network's rate and latency, in messages.

Source: linux-rdma/perftest, src/perftest_parameters.h (RESULT_FMT...: the columns) and
src/perftest_parameters.c: print_report_bw divides bytes/s by 0x100000 for "MB/sec" and by 125,000,000
for "Gb/sec"; print_full_bw_report adds up both ends where the test is bidirectional; print_report_lat
halves the round trip for write and send, but not for read and atomic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from calibration.importers.common import (
    SMALL_BYTES,
    as_number,
    at_rate,
    joined,
    one_line,
    reported,
    sample,
    settle,
    spread_of_mean,
)
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import Sample, Series, Setting

RUN = "ib_write_bw -d DEVICE -s 1048576 --report_gbits OTHER_NODE > FILE"

_TITLE = re.compile(r"(\w+) (Bidirectional )?(?:Post List )?(BW|Latency) Test\s*$")
_COLUMN = re.compile(
    r"#\w+|BW \w+\[[^\]]+\]|MsgRate(?: Port\d)?\[[^\]]+\]|t_\w+\[[^\]]+\]|[\d.]+% percentile\[[^\]]+\]"
    r"|tps average|CPU_Util\[%\]"
)
_BYTES_PER_S = {"MB/sec": 2.0**20, "Gb/sec": 1e9 / 8}
_FACTS = {
    "device": r"Device\s*:\s*(\S+)",
    "streams": r"Number of qps\s*:\s*(\S+)",
    "connection": r"Connection type\s*:\s*(\S+)",
    "tx_depth": r"TX depth\s*:\s*(\S+)",
    "mtu": r"Mtu\s*:\s*(\S+)",
    "link": r"Link type\s*:\s*(\S+)",
    "measured_on": r"^Connected:\s*(\S.*)",
    "command": r"\b(ib_(?:write|read|send|atomic)_(?:bw|lat)\b.*)",
}
_PROBLEM = re.compile(
    r"couldn't|unable|failed|failure|error|not found|did not detect|not supported", re.IGNORECASE
)
_VERBS = ("RDMA_Write", "RDMA_Read", "Send")
"""Which rate is taken where a file has several: writes, as a transfer engine does them."""


@dataclass
class _Test:
    """One test of the file: its kind and the rows of its table."""

    verb: str
    both: bool
    latency: bool
    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)


def is_perftest(text: str) -> bool:
    """Tell whether a text has perftest's table or its title."""
    return ("#bytes" in text and "#iterations" in text) or any(
        _TITLE.search(line) for line in text.splitlines()
    )


def read(text: str, where: str) -> Measured:
    """Return samples and figures of runs of perftest. Raises InputError for what cannot be used."""
    tests = [test for test in _tests(text, where) if test.rows]
    if not tests:
        if problem := next((line for line in text.splitlines() if _PROBLEM.search(line)), None):
            reported(where, "perftest", problem, "mend that and run it again")
        raise InputError(f"{where}: has no row of perftest's table; run `{RUN}` to its end")
    facts = {name: re.findall(rule, text, re.MULTILINE) for name, rule in _FACTS.items()}
    version = re.search(r"^Version:\s*(\S+)", text, re.MULTILINE)
    measured = Measured(
        series=list(_series(tests, where)),
        settings={name: joined(values) for name, values in facts.items() if values},
        tools={"perftest": one_line(version[1]) if version else "not printed"},
        warnings=list(_warnings(text)),
    )
    for series in measured.series:
        _add_figure(measured, series)
    return measured


def _tests(text: str, where: str) -> Iterator[_Test]:
    test: _Test | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if title := _TITLE.search(line):
            if test is not None:
                yield test
            test = _Test(title[1], title[2] is not None, title[3] == "Latency")
        elif "#bytes" in line and "#iterations" in line:
            if test is None or test.columns:
                raise InputError(
                    f"{where}: line {number} begins a table without a title such as 'RDMA_Write BW "
                    f"Test'; give all that perftest printed"
                )
            test.columns = _COLUMN.findall(line)
        elif test is not None and test.columns and words and words[0].isdigit():
            if len(words) != len(test.columns):
                raise InputError(
                    f"{where}: line {number} has {len(words)} of the table's {len(test.columns)} "
                    f"columns; the file is cut off or damaged, so run perftest again"
                )
            row = dict(zip(test.columns, words, strict=True))
            test.rows.append(row | {"line": str(number)})
    if test is not None:
        yield test


def _series(tests: Sequence[_Test], where: str) -> Iterator[Series]:
    kinds = {
        "perftest": "bytes of a message, seconds derived from the average rate: bytes / rate",
        "perftest_both_ways": "bytes of a message, seconds derived: bytes / half the rate of both ends",
        "perftest_latency": "average time of one message; of a read or an atomic, there and back",
    }
    for name, meaning in kinds.items():
        found = [
            _latency(test, row, where) if test.latency else _rate(test, row, where)
            for test in tests
            for row in test.rows
            if name == _kind(test)
        ]
        if found:
            timed = name == "perftest_latency"
            yield Series(name=name, unit="" if timed else "B", meaning=meaning, samples=found)


def _kind(test: _Test) -> str:
    if test.latency:
        return "perftest_latency"
    return "perftest_both_ways" if test.both else "perftest"


def _cell(row: dict[str, str], column: str, where: str) -> float:
    return as_number(row.get(column), f"{where}: line {row['line']}: {column}")


def _at(test: _Test, row: dict[str, str], where: str) -> dict[str, Setting]:
    return {
        "verb": test.verb,
        "bytes": int(_cell(row, "#bytes", where)),
        "iterations": int(_cell(row, "#iterations", where)),
    }


def _rate(test: _Test, row: dict[str, str], where: str) -> Sample:
    at = _at(test, row, where)
    for unit, bytes_per_s in _BYTES_PER_S.items():
        column = f"BW average[{unit}]"
        if column not in row:
            continue
        directions = 2 if test.both else 1
        if peak := _cell(row, f"BW peak[{unit}]", where):  # 0: not measured
            at["peak_bytes_per_s"] = peak * bytes_per_s / directions
        rate = _cell(row, column, where) * bytes_per_s / directions
        place = f"{where}: line {row['line']}"
        return at_rate(place, at, _cell(row, "#bytes", where), rate)
    raise InputError(
        f"{where}: line {row['line']} has no 'BW average' in {' or '.join(_BYTES_PER_S)}; run `{RUN}`"
    )


def _latency(test: _Test, row: dict[str, str], where: str) -> Sample:
    at = _at(test, row, where)
    for column in ("t_min", "t_max", "t_typical", "t_stdev"):
        if f"{column}[usec]" in row:
            at[f"{column}_s"] = _cell(row, f"{column}[usec]", where) * 1e-6
    for column in test.columns:
        if share := re.fullmatch(r"([\d.]+)% percentile\[usec\]", column):
            at[f"p{share[1]}_s"] = _cell(row, column, where) * 1e-6
    seconds = _cell(row, "t_avg[usec]", where) * 1e-6
    return sample(f"{where}: line {row['line']}", at, seconds)


def _warnings(text: str) -> Iterator[str]:
    if "CPU Frequency is not max" in text:
        yield "perftest warned that the CPU frequency is not at its maximum: its times may be off"


def _add_figure(measured: Measured, series: Series) -> None:
    """Add the figure of a series: a rate at its largest messages, a latency at its smallest."""
    verbs = [one.at["verb"] for one in series.samples]
    verb = next((v for v in _VERBS if v in verbs), None)
    of_verb = [i for i, v in enumerate(verbs) if v == verb]
    if not of_verb:
        measured.warnings.append(f"{series.name} has no writes, reads or sends, so no figure of it")
        return
    latency = series.name == "perftest_latency"
    sizes = [float(series.samples[i].at["bytes"] or 0) for i in of_verb]
    size = min(sizes) if latency else max(sizes)
    if latency is (size > SMALL_BYTES):
        measured.warnings.append(
            f"{series.name} has messages of {size:.0f} bytes, so no figure of it: a rate needs more "
            f"than {SMALL_BYTES} bytes (-s), a latency at most that"
        )
        return
    used = [i for i, s in zip(of_verb, sizes, strict=True) if s == size]
    figure = {
        "perftest": "network_bytes_per_s",
        "perftest_both_ways": "network_both_ways_bytes_per_s",
        "perftest_latency": "network_latency_s",
    }[series.name]
    spread = _spread(series.samples[used[0]]) if latency else None
    note = f"{verb}, messages of {size:.0f} bytes"
    settle(measured, figure, series, used, spread=spread, note=note)


def _spread(one: Sample) -> float | None:
    """Return half of the 95 % interval of the average time over it, from perftest's deviation."""
    count = float(one.at["iterations"] or 0)
    if "t_stdev_s" not in one.at or count < 2:
        return None
    return spread_of_mean(float(one.at["t_stdev_s"] or 0) / one.seconds, count)
