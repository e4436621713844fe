"""Answers of Prometheus' ``/api/v1/query_range``: checked, and read into series of finite samples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualpath_model.errors import InputError
from dualpath_model.export.quoting import one_line

_ASK = "give what `curl 'http://HOST:9090/api/v1/query_range?query=...&start=...&end=...&step=15'` says"


@dataclass(frozen=True, slots=True)
class Series:
    """One series. ``name``: of the metric, or the text of the query where that drops it, or "";
    ``counter``: whether its values only grow; ``lost``: samples that were no finite number.
    """

    name: str
    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]
    counter: bool
    lost: int

    def rates(self) -> list[float]:
        """Return the values per second: a counter's between two samples each, others as they are."""
        if not self.counter:
            return [value for value in self.values if value >= 0]
        return [grown / seconds for grown, seconds in self._steps()]

    def amount(self) -> float:
        """Return by how much it grew: a counter's own growth, else the sum of rate x time."""
        if self.counter:
            return sum(grown for grown, _ in self._steps())
        pairs = zip(self.times, self.times[1:], self.values, strict=False)
        return sum(max(value, 0.0) * (end - start) for start, end, value in pairs)

    def _steps(self) -> Iterator[tuple[float, float]]:
        for at in range(1, len(self.values)):
            seconds = self.times[at] - self.times[at - 1]
            grown = self.values[at] - self.values[at - 1]
            if seconds > 0:
                # a counter that falls was started again at 0
                yield (grown if grown >= 0 else self.values[at]), seconds


def percentile(values: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of values, at least one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def read_series(path: Path) -> list[Series]:
    """Return the series of a file: one answer, or a list of answers. Raises InputError otherwise."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text; {_ASK}") from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}: is not JSON (line {line}; was it cut off?); {_ASK}") from None
    answers = data if isinstance(data, list) else [data]
    found = [
        series
        for number, answer in enumerate(answers)
        for series in _of_answer(
            f"{path}: answer {number}" if isinstance(data, list) else str(path), answer
        )
    ]
    if not any(series.values for series in found):
        raise InputError(
            f"{path}: has no samples; ask for a time in which the cluster served requests, and {_ASK}"
        )
    return found


def _of_answer(where: str, answer: Any) -> Iterator[Series]:
    if not isinstance(answer, dict) or "status" not in answer:
        raise InputError(f"{where}: is no answer of Prometheus (no 'status'); {_ASK}")
    if answer["status"] != "success":
        said = one_line(f"{answer.get('errorType', 'error')}: {answer.get('error', '')}")[:200]
        raise InputError(f"{where}: Prometheus answered with an error ({said}); mend the query")
    data = answer.get("data")
    data = data if isinstance(data, dict) else {}
    kind = data.get("resultType")
    if kind != "matrix":
        raise InputError(
            f"{where}: data.resultType is {one_line(repr(kind))[:40]}, not 'matrix', so it is no series "
            f"over time; ask query_range and not query"
        )
    results = data.get("result")
    if not isinstance(results, list):
        raise InputError(f"{where}: data.result must be a list; {_ASK}")
    query = answer.get("query")
    for number, result in enumerate(results):
        yield _of_result(
            f"{where}: result {number}", result, query if isinstance(query, str) else ""
        )


def _of_result(where: str, result: Any, query: str) -> Series:
    labels = result.get("metric") if isinstance(result, dict) else None
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise InputError(f"{where}: metric must be an object of labels; {_ASK}")
    samples = result.get("values", [])
    if not isinstance(samples, list):
        raise InputError(f'{where}: values must be a list of [time, "value"]; {_ASK}')
    kept: list[tuple[float, float]] = []
    for number, sample in enumerate(samples):
        try:
            time, text = sample
            pair = float(time), float(text)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f'{where}: values[{number}] is {one_line(repr(sample))[:60]}; it must be [time, "value"]'
            ) from None
        if math.isfinite(pair[0]) and math.isfinite(pair[1]):
            kept.append(pair)
    kept.sort()
    name = labels.get("__name__") or query
    return Series(
        name=name,
        labels={key: value for key, value in labels.items() if key != "__name__"},
        times=tuple(time for time, _ in kept),
        values=tuple(value for _, value in kept),
        counter=_is_counter(labels.get("__name__"), query),
        lost=len(samples) - len(kept),
    )


def _is_counter(name: str | None, query: str) -> bool:
    """Tell a counter by its name: what a function of PromQL returns has none."""
    if name is None:
        return False
    return bool(re.search(r"_(total|sum|count|bucket)$", name)) and not re.search(r"rate\(", query)
