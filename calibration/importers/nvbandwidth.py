"""nvbandwidth's JSON: how fast a GPU copies, to and from the host and inside its own memory.

Source: NVIDIA/nvbandwidth, json_output.cpp (the fields), memcpy.cpp (GB are 1e9; each byte copied
counts once, so that memory inside a GPU does twice that) and testcases_ce.cpp (a bidirectional "ce" test
times one direction while the other is busy). Each cell is already the median or mean of the tool's own
repeats; the samples are GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from calibration import fit
from calibration.importers.common import (
    ONE_RUN,
    Record,
    as_number,
    at_rate,
    joined,
    json_object,
    one_line,
    reported,
    sample,
    settle,
)
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import Estimate, Sample, Series, Setting

RUN = "nvbandwidth -j"
_NOMINAL_BYTES = 1e9
"""Amount of a sample: the tool prints rates only, so the seconds are derived from this."""
_DEVICE, _HOST = "host_to_device_memcpy_ce", "device_to_host_memcpy_ce"
_INSIDE = "device_local_copy"
_FIGURES = {
    _INSIDE: "hbm_copy_bytes_per_s",
    _DEVICE: "host_to_device_bytes_per_s",
    _HOST: "device_to_host_bytes_per_s",
}
_BUSY = ("host_to_device_bidirectional_memcpy_ce", "device_to_host_bidirectional_memcpy_ce")
_FACTS = {"CUDA Runtime Version": "cuda", "Driver Version": "driver"}


class _Case(NamedTuple):
    name: str
    record: Record


def is_nvbandwidth(text: str) -> bool:
    """Tell whether a text is nvbandwidth's JSON."""
    return '"nvbandwidth"' in text


def read(text: str, where: str) -> Measured:
    """Return samples and figures of a run of nvbandwidth. Raises InputError for unusable text."""
    top = json_object(text, where, RUN).record("nvbandwidth")
    if top.has("error"):
        reported(where, "nvbandwidth", top.data["error"], "mend that and run it again")
    cases = [_Case(case.text("name", "?"), case) for case in top.records("testcases")]
    for case in cases:
        if case.record.has("error") or case.record.text("status") == "Error":
            what = f"{case.name}: {case.record.text('error', 'Error')}"
            reported(where, "nvbandwidth", what, "mend that and run it again")
    measured = Measured(
        series=list(_series(cases)),
        settings=_settings(top),
        tools={"nvbandwidth": top.text("version", "not printed")},
        warnings=list(_warnings(top, cases)),
    )
    for cuda, name in _FACTS.items():
        if top.has(cuda):
            measured.tools[name] = top.text(cuda)
    if not measured.series:
        raise InputError(f"{where}: no test case has a bandwidth_matrix; run `{RUN}` on a GPU node")
    _figures(measured)
    return measured


def _settings(top: Record) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    if devices := top.items("GPU Device list"):
        found["device"] = joined([one_line(one) for one in devices])
    if top.has("Hostname"):
        found["host"] = top.text("Hostname")
    return found


def _series(cases: Sequence[_Case]) -> Iterator[Series]:
    for name in dict.fromkeys(case.name for case in cases):
        found = [s for case in cases if case.name == name for s in _samples(case)]
        timed = all(one.amount == 0 for one in found)
        if not found:
            continue
        inside = ", reads and writes counted" if name == _INSIDE else ""
        rate = f"{name}{inside}: {_NOMINAL_BYTES:g} bytes copied, seconds derived from the printed rate"
        yield Series(
            name=f"nvbandwidth_{name}",
            unit="" if timed else "B",
            meaning=f"{name}: printed time of one access" if timed else rate,
            samples=found,
        )


def _samples(case: _Case) -> Iterator[Sample]:
    description = case.record.text("bandwidth_description")
    for row, cells in enumerate(case.record.items("bandwidth_matrix")):
        if not isinstance(cells, list):
            raise InputError(
                f"{case.record.where}: bandwidth_matrix[{row}] is {one_line(cells)}, but must be a "
                f"list [...]; the file is damaged, so run nvbandwidth again"
            )
        for column, cell in enumerate(cells):
            if cell == "N/A":
                continue
            place = f"{case.record.where}: bandwidth_matrix[{row}][{column}]"
            at: dict[str, Setting] = {"row": row, "gpu": column}
            if "(ns)" in description:
                yield sample(place, at, as_number(cell, place) * 1e-9)
            elif "(GB/s)" in description:
                counted = 2.0 if case.name == _INSIDE else 1.0
                yield at_rate(place, at, _NOMINAL_BYTES, as_number(cell, place) * 1e9, counted)
            else:
                raise InputError(
                    f"{case.record.where}: bandwidth_description is '{description}', but must end in "
                    f"(GB/s) or (ns); the file is damaged, so run nvbandwidth again"
                )


def _warnings(top: Record, cases: Sequence[_Case]) -> Iterator[str]:
    if top.has("warning"):
        yield f"nvbandwidth warned: {top.text('warning')}"
    for status in ("Waived", "Not Found"):
        if names := [case.name for case in cases if case.record.text("status") == status]:
            yield f"nvbandwidth left out ({status}): {', '.join(names)}"


def _figures(measured: Measured) -> None:
    by_name = {one.name.removeprefix("nvbandwidth_"): one for one in measured.series}
    for name, figure in _FIGURES.items():
        if name in by_name:
            _settle_all(measured, figure, by_name[name])
    alone = [_DEVICE, _HOST]
    if not all(name in by_name for name in (*alone, *_BUSY)):
        if any(name in by_name for name in _BUSY):
            measured.warnings.append(
                "both_ways_share needs host_to_device and device_to_host, each of them one way and "
                "bidirectional: run nvbandwidth without -t"
            )
        return
    busy = Measured(series=[])
    for name, one_way in zip(_BUSY, alone, strict=True):
        _settle_all(busy, _FIGURES[one_way], by_name[name])
    measured.fits += busy.fits
    measured.figures["both_ways_share"] = fit.share(
        _sum(list(busy.figures.values())),
        _sum([measured.figures[_FIGURES[name]] for name in alone]),
        source=by_name[_BUSY[0]].name,
        note="; ".join(["both directions while both copy", *_spread_note(by_name[_DEVICE])]),
    )


def _settle_all(measured: Measured, figure: str, series: Series) -> None:
    inside = figure == _FIGURES[_INSIDE]
    notes = ["twice the printed rate: each byte is read and written"] if inside else []
    if len(series.samples) > 1:
        notes += _spread_note(series)
    note = "; ".join(notes)
    settle(measured, figure, series, range(len(series.samples)), note=note)


def _spread_note(series: Series) -> list[str]:
    count = len(series.samples)
    if count > 1:
        return [f"the spread is over {count} GPUs"]
    return [ONE_RUN]


def _sum(parts: Sequence[Estimate]) -> Estimate:
    """Return the sum; its interval is that of parts that err the same way, which is the widest."""
    return Estimate(
        value=sum(one.value for one in parts),
        low=sum(one.low for one in parts),
        high=sum(one.high for one in parts),
    )
