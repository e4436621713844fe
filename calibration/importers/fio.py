"""fio's JSON: what a file or a disk reads and writes, at the block sizes and depths of the jobs.

Source: fio's manual, section "JSON output", and outputs of fio 3.33. ``runtime`` is in milliseconds,
``bw_mean`` and ``bw_dev`` are in KiB/s (only their ratio is used), times that end in ``_ns`` are in ns.
Jobs of one ``groupid`` run at once (``stonewall`` begins the next), so their rates are added up.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from calibration.importers.common import (
    SMALL_BYTES,
    Record,
    add_single,
    joined,
    json_object,
    one_line,
    reported,
    sample,
    settle,
    spread_of_mean,
)
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import Latency, Sample, Series, Setting, estimate

RUN = (
    "fio --name=blocks --filename=FILE --size=8G --direct=1 --ioengine=libaio --rw=randread --bs=1M "
    "--iodepth=32 --runtime=30 --time_based --output-format=json"
)
_WAITING_ENGINES = {"sync", "psync", "vsync", "pvsync", "pvsync2", "mmap"}
"""Engines with one operation in flight, whatever ``iodepth`` says."""
_SETTINGS = ("bs", "iodepth", "direct", "ioengine", "numjobs", "size", "filename", "directory")
_MOST_SHARE = 1e6
"""A spread beyond this many times the mean is damage, and as good as no knowledge."""


def is_fio(text: str) -> bool:
    """Tell whether a text is fio's JSON."""
    return '"fio version"' in text


def read(text: str, where: str) -> Measured:
    """Return samples and figures of a run of fio. Raises InputError for what cannot be used."""
    top = json_object(text, where, RUN)
    jobs = top.records("jobs")
    if not top.has("fio version") or not jobs:
        raise InputError(
            f"{where}: has no 'fio version' or no jobs; run `{RUN}` and give its output"
        )
    shared = top.record("global options").data
    options = [{**shared, **job.record("job options").data} for job in jobs]
    entries = Counter(_entry(job) for job in jobs)
    found = [
        made
        for job, of in zip(jobs, options, strict=True)
        for made in _samples(job, of, entries[_entry(job)])
    ]
    if not found:
        raise InputError(
            f"{where}: no job read or wrote a byte; give the jobs a runtime and a size"
        )
    raw = Series(
        name="fio",
        unit="B",
        meaning="each job's reads and writes; latencies are fio's clat, without submission",
        samples=found,
    )
    measured = Measured(
        series=[raw],
        settings=_settings(top, options),
        tools={"fio": top.text("fio version").removeprefix("fio-")},
        warnings=list(_warnings(found, options)),
    )
    _figures(measured, _alone(measured, raw), where)
    return measured


def _entry(job: Record) -> tuple[str, float]:
    return job.text("jobname", "?"), job.number("groupid", 0)


def _settings(top: Record, options: Sequence[Mapping[str, object]]) -> dict[str, Setting]:
    found: dict[str, Setting] = {
        key: joined([of[key] for of in options if key in of])
        for key in _SETTINGS
        if any(key in of for of in options)
    }
    if devices := [of.text("name") for of in top.records("disk_util") if of.has("name")]:
        found["device"] = joined(devices)
    if hosts := [of.text("hostname") for of in top.records("jobs") if of.has("hostname")]:
        found["host"] = joined(hosts)
    if top.has("time"):
        found["measured_on"] = top.text("time")
    return found


def _samples(job: Record, options: Mapping[str, object], entries: int) -> Iterator[Sample]:
    name = job.text("jobname", "?")
    if error := job.number("error", 0):
        known = os.strerror(int(error)) if error < 1000 else "unknown"
        what = f"error {error:.0f}, {known}"
        reported(job.where, "fio", what, f"mend job {name}, then run it again")
    engine = one_line(options.get("ioengine", "psync"))
    depth = 1 if engine in _WAITING_ENGINES else _whole(job, options, "iodepth")
    clones = max(1, _whole(job, options, "numjobs") // entries)  # more than 1 with group_reporting
    for direction in ("read", "write"):
        part = job.record(direction)
        amount = part.number("io_bytes", 0)
        if not amount:
            continue
        at: dict[str, Setting] = {
            "job": name,
            "group": int(job.number("groupid", 0)),
            "rw": one_line(options.get("rw", options.get("readwrite", "read"))).split(":")[0],
            "direction": direction,
            "block_bytes": round(amount / max(1.0, part.number("total_ios"))),
            "depth": depth * clones,
            "engine": engine,
            "direct": one_line(options.get("direct", "0")),
            **_spreads(part),
        }
        yield sample(part.where, at, part.number("runtime") / 1e3, amount, _latency(part))


def _whole(job: Record, options: Mapping[str, object], key: str) -> int:
    value = one_line(options.get(key, "1"))
    if not re.fullmatch("[1-9][0-9]{0,5}", value):
        raise InputError(
            f"{job.where}: {key} is {value!r}, but must be a whole number from 1 to 999,999; the file "
            f"is damaged, so run fio again"
        )
    return int(value)


def _spreads(part: Record) -> dict[str, Setting]:
    """Return fio's own spreads: of the rate over its half seconds, and of single operations."""
    found: dict[str, Setting] = {}
    mean, samples = part.number("bw_mean", 0), part.number("bw_samples", 0)
    if mean and samples > 1:
        found["rate_samples"] = int(samples)
        found["rate_deviation_share"] = min(part.number("bw_dev", 0) / mean, _MOST_SHARE)
    times = part.record("lat_ns")
    mean, count = times.number("mean", 0), times.number("N", 0)
    if mean and count:
        found["operations"] = int(count)
        found["mean_latency_s"] = mean * 1e-9
        found["latency_deviation_share"] = min(times.number("stddev", 0) / mean, _MOST_SHARE)
    return found


def _latency(part: Record) -> Latency | None:
    times = part.record("clat_ns")
    listed = times.record("percentile")
    wanted = ["50.000000", "90.000000", "99.000000", "99.900000"]
    if not all(listed.number(p, 0) for p in wanted):
        return None  # fio was told to list other percentiles, or none
    count = max(1, int(times.number("N", part.number("total_ios"))))
    p50, p90, p99, p999 = (_checked(listed.where, listed.number(p)) for p in wanted)
    most = max(p999, _checked(times.where, times.number("max")))  # percentiles round up to bins
    return Latency(count=count, p50=p50, p90=p90, p99=p99, p999=p999, most=most)


def _checked(where: str, nanoseconds: float) -> float:
    return sample(where, {}, nanoseconds * 1e-9).seconds


def _warnings(found: Sequence[Sample], options: Sequence[Mapping[str, object]]) -> Iterator[str]:
    if any(s.at["direct"] != "1" for s in found):
        yield "fio ran without direct=1: what the page cache held was not read from the disk"
    if any(s.at["engine"] in _WAITING_ENGINES for s in found) and any(
        one_line(of.get("iodepth", "1")) != "1" for of in options
    ):
        yield "fio's engine waits for each operation, so the queue was 1 deep, whatever iodepth says"


def _alone(measured: Measured, raw: Series) -> Series:
    """Return the series of work that had the disk for itself; clones that ran at once are one sample.

    It is ``raw`` where no clones ran at once, else a series that is added to ``measured``.
    """
    groups: dict[Setting, list[Sample]] = {}
    for one in raw.samples:
        groups.setdefault(one.at["group"], []).append(one)
    if all(len(group) == 1 or len(set(map(_kind, group))) > 1 for group in groups.values()):
        return raw
    together = Series(
        name="fio_at_once",
        unit="B",
        meaning="fio's jobs of a group that did the same at once: their bytes, the longest runtime",
        samples=[_sum(group) for group in groups.values() if len(set(map(_kind, group))) == 1],
    )
    measured.series.append(together)
    return together


def _kind(one: Sample) -> tuple[Setting, ...]:
    return tuple(one.at[key] for key in ("rw", "direction", "block_bytes", "depth", "direct"))


def _sum(group: Sequence[Sample]) -> Sample:
    if len(group) == 1:
        return group[0]
    amounts = [one.amount for one in group]
    at = {
        k: group[0].at[k] for k in ("group", "rw", "direction", "block_bytes", "engine", "direct")
    }
    at["depth"] = sum(int(one.at["depth"] or 1) for one in group)
    at["jobs"] = len(group)
    if all("rate_samples" in one.at for one in group):  # spreads of independent rates
        absolute = [_share(one, "rate") * one.amount for one in group]
        at["rate_deviation_share"] = math.hypot(*absolute) / sum(amounts)
        at["rate_samples"] = min(int(one.at["rate_samples"] or 2) for one in group)
    return sample("fio_at_once", at, max(one.seconds for one in group), sum(amounts))


def _share(one: Sample, what: str) -> float:
    return float(one.at[f"{what}_deviation_share"] or 0.0)


def _figures(measured: Measured, series: Series, where: str) -> None:
    """Add the figures: of work that ran alone, at its largest blocks and there at its deepest queue."""
    crowds = Counter(one.at["group"] for one in series.samples)
    alone = [i for i, one in enumerate(series.samples) if crowds[one.at["group"]] == 1]

    def best(*kinds: str) -> list[int]:
        for kind in kinds:
            of_kind = [i for i in alone if series.samples[i].at["rw"] == kind]
            most = max((_size(series.samples[i]) for i in of_kind), default=None)
            if most is not None:
                return [i for i in of_kind if _size(series.samples[i]) == most]
        return []

    best_of = {
        "storage_read_bytes_per_s": best("randread"),
        "storage_write_bytes_per_s": best("randwrite", "write"),
        "storage_sequential_bytes_per_s": best("read"),
    }
    for figure, indices in best_of.items():
        one = series.samples[indices[0]] if indices else None
        if one is None or _size(one)[0] <= SMALL_BYTES:
            continue  # a rate of small blocks is not that of full ones
        note = f"{one.at['block_bytes']} bytes, {one.at['depth']} deep"
        settle(measured, figure, series, indices, spread=_rate_spread(one), note=note)
        if one.at["depth"] == 1:
            measured.warnings.append(f"{figure} is of a queue 1 deep: a deeper one may give more")
    if "storage_read_bytes_per_s" in measured.figures:
        _add_p99(measured, series, best_of["storage_read_bytes_per_s"])
    _add_latency(measured, series, [i for i in alone if _is_small(series.samples[i])])
    if not measured.figures:
        measured.warnings.append(
            f"{where}: no job read or wrote full blocks alone, so no figure comes of it; add stonewall "
            f"to the jobs, and take blocks of more than {SMALL_BYTES} bytes"
        )


def _size(one: Sample) -> tuple[float, float]:
    return float(one.at["block_bytes"] or 0), float(one.at["depth"] or 0)


def _rate_spread(one: Sample) -> float | None:
    """Return half of the 95 % interval of the mean of fio's half-second rates, over the mean."""
    if "rate_samples" not in one.at:
        return None
    return spread_of_mean(_share(one, "rate"), float(one.at["rate_samples"] or 2))


def _add_p99(measured: Measured, series: Series, reads: Sequence[int]) -> None:
    chosen = [series.samples[i] for i in reads]
    if any("jobs" in one.at for one in chosen):  # the clones' own samples hold the percentiles
        groups = {one.at["group"] for one in chosen}
        chosen = [one for one in measured.series[0].samples if one.at["group"] in groups]
    found = sorted(one.latency.p99 for one in chosen if one.latency is not None)
    if len(found) > 1:
        middle, note = statistics.median(found), f"least and most of {len(found)} jobs"
        figure = estimate(middle, found[0], found[-1], measured.series[0].name, note)
        measured.figures["storage_read_p99_s"] = figure
    elif found:
        add_single(measured, "storage_read_p99_s", found[0], measured.series[0].name)


def _is_small(one: Sample) -> bool:
    small = _size(one)[0] <= SMALL_BYTES and one.at["depth"] == 1
    return small and one.at["rw"] == "randread" and "operations" in one.at


def _add_latency(measured: Measured, series: Series, small: Iterable[int]) -> None:
    least = min((series.samples[i] for i in small), key=_size, default=None)
    if least is not None:
        count = float(least.at["operations"] or 0)
        add_single(
            measured,
            "storage_read_latency_s",
            float(least.at["mean_latency_s"] or 0.0),
            series.name,
            spread=spread_of_mean(_share(least, "latency"), count) if count > 1 else None,
            note=f"mean of {count:.0f} reads of {least.at['block_bytes']} bytes",
        )
