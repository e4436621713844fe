"""nccl-tests' tables (sendrecv_perf, all_reduce_perf, ...): GPU to GPU messages through NCCL.

Source: NVIDIA/nccl-tests, src/util.cu (the columns; times are microseconds, GB are 1e9) and
src/sendrecv.cu: each rank sends to the next and receives from the one before at once, algbw is
size / time, and there is no sendrecv in place, so only the out-of-place half gives figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from calibration.importers.common import (
    SMALL_BYTES,
    as_number,
    joined,
    one_line,
    reported,
    sample,
    settle,
)
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import Sample, Series, Setting

RUN = "mpirun -np 2 -H NODE_A:1,NODE_B:1 sendrecv_perf -b 8 -e 256M -f 2 -g 1 > FILE"

_RANKED = r"^\s*(?:\[\d+,\d+\]<\w+>:?|\d+:)\s+"
"""What mpirun and srun put in front of each line when asked to label it."""
_NAME = re.compile(r"Collective test starting:\s*(\w+)")
_ROW = re.compile(r"^\s*(\d+)\s+(\d+)\s+([A-Za-z]\w*)\s+(\S.*)$")
_HALF = 4
"""Columns of each half, out of place and in place: time, algbw, busbw, #wrong."""
_PROBLEM = re.compile(
    r"Test (?:NCCL|CUDA) failure|Out of bounds values\s*:\s*\d+\s*FAILED|Test failure"
)
_SENDRECV = "sendrecv_perf"


def is_nccl_tests(text: str) -> bool:
    """Tell whether a text has the table or the first lines of nccl-tests."""
    return "nccl-tests version" in text or ("busbw" in text and "algbw" in text)


def read(text: str, where: str) -> Measured:
    """Return samples and figures of a run of nccl-tests. Raises InputError for unusable text."""
    lines = [re.sub(_RANKED, "", line) for line in text.splitlines()]
    if problem := next((line for line in lines if _PROBLEM.search(line)), None):
        reported(where, "nccl-tests", problem, "mend that and run it again")
    names = list(dict.fromkeys(_NAME.findall(text)))
    if len(names) > 1:
        raise InputError(f"{where}: holds runs of {', '.join(names)}; give one file for each")
    if "algbw" not in text:
        raise InputError(f"{where}: has no table with algbw and busbw; run `{RUN}` to its end")
    name = one_line(names[0]).removesuffix("_mpi") if names else ""
    found = [one for i, line in enumerate(lines, 1) for one in _samples(line, f"{where}: line {i}")]
    if not found:
        raise InputError(f"{where}: the table has no row of a message with bytes; run `{RUN}`")
    series = Series(
        name=f"nccl_{name or 'tests'}",
        unit="B",
        meaning=f"{name or 'unknown test'}: size and time of one operation, out of place and in place",
        samples=found,
    )
    measured = Measured(
        series=[series], settings=_settings(text, name), tools=_tools(text), warnings=[]
    )
    if name == _SENDRECV:
        _figures(measured, series)
    else:
        measured.warnings.append(
            f"{name or 'a test without its first lines'} gives no figure; run sendrecv_perf for those "
            f"of point to point"
        )
    if len(set(_hosts(text))) == 1:
        measured.warnings.append(
            "all ranks are on one host: NVLink or PCIe was measured, no network"
        )
    return measured


def _samples(line: str, where: str) -> Iterator[Sample]:
    row = _ROW.match(line)
    if row is None:
        return
    words = row[4].split()
    if not 2 * _HALF <= len(words) <= 2 * _HALF + 2:  # and up to two: redop, root
        raise InputError(
            f"{where} has {len(words) + 3} columns, but size, count, type, redop, root and twice time, "
            f"algbw, busbw, #wrong are needed; the file is cut off, or has columns of other options"
        )
    amount = as_number(row[1], f"{where}: size")
    for half, in_place in ((words[-2 * _HALF : -_HALF], False), (words[-_HALF:], True)):
        time, algbw, busbw, wrong = half
        if time == "N/A" or not amount:
            continue
        if wrong != "N/A" and as_number(wrong, f"{where}: #wrong"):
            reported(
                where, "nccl-tests", f"#wrong {wrong}", "the data was damaged: mend the network"
            )
        at: dict[str, Setting] = {
            "bytes": int(amount),
            "in_place": in_place,
            "algbw_bytes_per_s": as_number(algbw, f"{where}: algbw") * 1e9,
            "busbw_bytes_per_s": as_number(busbw, f"{where}: busbw") * 1e9,
        }
        yield sample(where, at, as_number(time, f"{where}: time") * 1e-6, amount)


def _hosts(text: str) -> list[str]:
    return [one_line(host) for host in re.findall(r"#\s*Rank\s+\d+ .*? on\s+(\S+) device", text)]


def _settings(text: str, name: str) -> dict[str, Setting]:
    found: dict[str, Setting] = {"test": name or None}
    if hosts := _hosts(text):
        found["host"], found["ranks"] = joined(hosts), len(hosts)
    if devices := re.findall(r"device\s+\d+ \[[^\]]*\] (\S.*)", text):
        found["device"] = joined([one_line(device) for device in devices])
    if options := re.search(r"#\s*(nThread .*)", text):
        found["options"] = one_line(options[1])
    return found


def _tools(text: str) -> dict[str, str]:
    tests = re.search(r"nccl-tests version (\S+)", text)
    library = re.search(r"NCCL version\s*:?\s*(\S+)", text)
    found = {"nccl-tests": one_line(tests[1]) if tests else "not printed"}
    return found | ({"nccl": one_line(library[1])} if library else {})


def _figures(measured: Measured, series: Series) -> None:
    apart = [i for i, one in enumerate(series.samples) if not one.at["in_place"]]
    sizes = [series.samples[i].amount for i in apart]
    if not apart:
        return
    note = "sendrecv_perf, messages of {:.0f} bytes, each rank sends and receives at once"
    if max(sizes) > SMALL_BYTES:
        largest = [i for i in apart if series.samples[i].amount == max(sizes)]
        settle(measured, "collective_bytes_per_s", series, largest, note=note.format(max(sizes)))
    if min(sizes) <= SMALL_BYTES:
        small = Series(
            name="nccl_small",
            unit="",
            meaning=f"sendrecv_perf: time of the smallest message, {min(sizes):.0f} bytes",
            samples=[
                one.model_copy(update={"amount": 0.0})
                for one in (series.samples[i] for i in apart)
                if one.amount == min(sizes)
            ],
        )
        measured.series.append(small)
        used = range(len(small.samples))
        settle(measured, "collective_latency_s", small, used, note=note.format(min(sizes)))
