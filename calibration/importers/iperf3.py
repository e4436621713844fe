"""iperf3's JSON: a network's rate over TCP or UDP, one sample an interval, all streams together.

Source: iperf3's manual (option -J) and outputs of iperf 3.12. ``bits_per_second`` is bytes * 8 over
seconds, so only bytes and seconds are read. Both ways (``--bidir``) a second sum stands beside ``sum``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from calibration.importers.common import Record, json_object, one_line, reported, sample, settle
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import Sample, Series, Setting

RUN = "iperf3 -c OTHER_NODE -t 30 -P 8 -J"
_BACK = "sum_bidir_reverse"
_UNEQUAL = 1.2
"""Directions whose rates differ by more than this factor are worth a warning."""


def is_iperf3(text: str) -> bool:
    """Tell whether a text is iperf3's JSON."""
    return re.search(r'"version":\s*"iperf 3', text) is not None


def read(text: str, where: str) -> Measured:
    """Return samples and figures of a run of iperf3. Raises InputError for what cannot be used."""
    top = json_object(text, where, RUN)
    start, end = top.record("start"), top.record("end")
    if not start.text("version").startswith("iperf 3"):
        raise InputError(f"{where}: start.version is no 'iperf 3'; run `{RUN}` and give its output")
    if top.has("error"):
        reported(
            where, "iperf3", top.data["error"], "start `iperf3 -s` on the other node, run it again"
        )
    both = any(r.has(_BACK) for r in top.records("intervals"))
    test = start.record("test_start")
    udp = test.text("protocol") == "UDP"
    meaning = "bytes of all streams in each interval, as this end counts them"
    if both:
        meaning = "mean of both directions' bytes in each interval; each is in out_bytes, in_bytes"
    series = [Series(name="iperf3", unit="B", meaning=meaning, samples=_intervals(top, end, both))]
    if udp and not both and (received := _received(end)):
        told = "bytes that arrived; what was sent is in the other series"
        series.append(Series(name="iperf3_received", unit="B", meaning=told, samples=[received]))
    measured = Measured(
        series=series,
        settings=_settings(start, test, both),
        tools={"iperf3": start.text("version").removeprefix("iperf ")},
        warnings=list(_warnings(start, test, series[0], both)),
    )
    used = _whole_intervals(series[-1])
    if not used:
        raise InputError(
            f"{where}: no interval moved a byte; look at the link and run iperf3 again"
        )
    figure = "network_both_ways_bytes_per_s" if both else "network_bytes_per_s"
    note = "both directions' mean" if both else ""
    settle(measured, figure, series[-1], used, note=note)
    return measured


def _intervals(top: Record, end: Record, both: bool) -> list[Sample]:
    rows = top.records("intervals")
    if rows:
        return [_interval(row.record("sum"), row.record(_BACK), both) for row in rows]
    received = _received(end)
    if received is None:
        raise InputError(
            f"{top.where}: has no intervals and no end.sum_received; run `{RUN}` again"
        )
    return [received]


def _interval(there: Record, back: Record, both: bool) -> Sample:
    amount = there.number("bytes")
    at: dict[str, Setting] = {
        "start_s": there.number("start"),
        "omitted": _is_true(there, "omitted"),
    }
    if both:
        at |= {"out_bytes": amount, "in_bytes": back.number("bytes")}
        amount = (amount + back.number("bytes")) / 2
    return sample(there.where, at, there.number("seconds"), amount)


def _is_true(record: Record, key: str) -> bool:
    return record.data.get(key) is True


def _received(end: Record) -> Sample | None:
    total = end.record("sum_received")
    if not total.number("bytes", 0):
        return None
    at: dict[str, Setting] = {"lost_percent": total.number("lost_percent", 0)}
    return sample(total.where, at, total.number("seconds"), total.number("bytes"))


def _whole_intervals(series: Series) -> list[int]:
    """Return the samples that count: not the warm-up (``-O``), not the scrap of time at the end."""
    longest = max(one.seconds for one in series.samples)
    return [
        i
        for i, one in enumerate(series.samples)
        if one.amount and not one.at.get("omitted") and one.seconds > longest / 2
    ]


def _settings(start: Record, test: Record, both: bool) -> dict[str, Setting]:
    reverse = test.number("reverse", 0) > 0
    found: dict[str, Setting] = {
        "protocol": test.text("protocol"),
        "streams": int(test.number("num_streams", 1)),
        "block_bytes": int(test.number("blksize", 0)),
        "direction": "both" if both else "in" if reverse else "out",
        "remote": start.record("connecting_to").text("host"),
    }
    if start.record("timestamp").has("time"):
        found["measured_on"] = start.record("timestamp").text("time")
    system = start.text("system_info").split()
    if len(system) > 1:
        found["host"], found["system"] = one_line(system[1]), start.text("system_info")
    return found


def _warnings(start: Record, test: Record, series: Series, both: bool) -> Iterator[str]:
    ends = [one.text("remote_host") for one in start.records("connected")]
    if any(re.match(r"127\.|::1$|::ffff:127\.", one) for one in ends):
        yield "iperf3 ran between two ends of one host: this is its loopback, not its network card"
    if limit := test.number("target_bitrate", 0):
        yield f"iperf3 was told to send {limit / 8:g} bytes/s (-b): the network may do more"
    if any(not one.amount for one in series.samples):
        yield "iperf3 had intervals without a byte; they are in the samples, but not in the figure"
    if both:
        out, back = (
            sum(float(one.at[f"{way}_bytes"] or 0) for one in series.samples)
            for way in ("out", "in")
        )
        if max(out, back) > _UNEQUAL * min(out, back):
            yield (
                f"iperf3 moved {out:.3g} bytes out and {back:.3g} in at once: the figure is their mean, "
                f"and one direction had less"
            )
