"""Which figures a study can ask for, of what type, and how one is found in an answer.

The names are those of ``dualpath plan --json`` and ``dualpath simulate --json``, dotted; they are read
off the classes of the answers, so that a figure that plans gain can be asked for at once.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from dualpath_model.errors import InputError, unknown_name
from solvers.alternatives import ResourceName
from solvers.study_spec import Method

DEFAULT: dict[str, tuple[str, ...]] = {
    "closed form": (
        "throughput_requests_per_s",
        "throughput_basic_requests_per_s",
        "speedup_over_basic",
        "split",
        "bottleneck",
    ),
    "LP": (
        "throughput_requests_per_s",
        "throughput_basic_requests_per_s",
        "throughput_oracle_requests_per_s",
        "speedup_over_basic",
        "split",
        "bottleneck",
    ),
    "simulation": (
        "jct_s",
        "turns_per_s_simulated",
        "ttft_s.mean",
        "ttft_s.p99",
        "tpot_s.mean",
        "snic_max_over_mean",
    ),
}

CLOSED_FORM: dict[str, str] = {
    "throughput_requests_per_s": "float",
    "throughput_basic_requests_per_s": "float",
    "throughput_oracle_requests_per_s": "float",
    "fraction_of_oracle": "float",
    "speedup_over_basic": "float",
    "requests_per_s_per_node": "float",
    "split": "float",
    "bottleneck": "text",
    "bottleneck.pool": "text",
    "bottleneck.resource": "text",
    "bottleneck.direction": "text",
    "prefill_nodes": "int",
    "decode_nodes": "int",
    "workload.hit_rate": "float",
    "workload.mean_prompt_tokens": "float",
    "workload.mean_miss_tokens": "float",
    "workload.mean_output_tokens": "float",
}
"""What the closed form answers, of the plan's names and one of its neighbours'."""

_OF_THE_MACHINE = ("wall_s",)  # two runs of the same point would differ
_SPREAD = ("mean", "p50", "p90", "p99", "max")  # of solvers.spread


@dataclass(frozen=True)
class Metric:
    """A figure by its dotted name; ``type``: "float", "int", "bool" or "text"."""

    name: str
    type: str

    @property
    def parts(self) -> tuple[str | int, ...]:
        """The parts of the name; numbers are places in a list."""
        return tuple(int(part) if part.isdecimal() else part for part in self.name.split("."))


def metrics_of(method: Method, names: list[str] | None, taken: set[str], file: str) -> list[Metric]:
    """Return the metrics of a study; ``taken``: names that its table has already.

    Raises InputError with the nearest names for one that the method does not give.
    """
    found = []
    for name in names if names is not None else DEFAULT[method]:
        where = f"{file}: metrics"
        if name.split(".")[0] in _OF_THE_MACHINE:
            raise InputError(
                f"{where}: {name} is a time of the machine that runs the study, not of the point; "
                f"leave it out"
            )
        if name in taken:
            if names is None:
                continue
            raise InputError(f"{where}: {name} is in the table already; leave it out")
        taken.add(name)
        found.append(Metric(name, _type(method, name, where)))
    return found


def _type(method: Method, name: str, where: str) -> str:
    known = _known(method)
    kind = known.get(name) or known.get(_any_place(name))
    if kind is None:
        below = sorted(other for other in known if other.startswith(f"{name}."))
        if below:
            raise InputError(
                f"{where}: {name} is a group of figures; name one of them, such as {below[0]}"
            )
        error = unknown_name(f"metric of the method {method}", name, known)
        raise InputError(f"{where}: {error}")
    return kind


def _any_place(name: str) -> str:
    return ".".join("0" if part.isdecimal() else part for part in name.split("."))


@cache
def _known(method: str) -> dict[str, str]:
    if method == "closed form":
        return CLOSED_FORM
    if method == "LP":
        from solvers.planner import Plan

        return dict(_leaves(Plan, ""))
    from solvers.simulator.experiments import Simulated

    return {k: v for k, v in _leaves(Simulated, "") if k not in _OF_THE_MACHINE}


_TYPES = {float: "float", int: "int", bool: "bool", str: "text"}


def _leaves(kind: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the names and types of all figures of a type; places in lists are written 0."""
    prefix = f"{name}." if name else ""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in inside:
            if option is not type(None):
                yield from _leaves(option, name)
    elif kind in _TYPES:
        yield name, _TYPES[kind]
    elif is_dataclass(kind):
        if kind is ResourceName:
            yield name, "text"
        hints = typing.get_type_hints(kind)
        for part in fields(kind):
            yield from _leaves(hints[part.name], f"{prefix}{part.name}")
    elif origin is tuple and inside:
        yield from _leaves(inside[0], f"{prefix}0")
    elif origin is dict and inside[1] is float:
        for part_name in _SPREAD if name.endswith("_s") else _payloads():
            yield f"{prefix}{part_name}", "float"


def _payloads() -> list[str]:
    from dualpath_model.paths import Payload

    return [str(payload.value) for payload in Payload]


def figure(answer: object, metric: Metric) -> object:
    """Return the metric's value in an answer (an object, or a mapping of names); None: it has none."""
    found: Any = answer
    for part in metric.parts:
        if found is None:
            return None
        if isinstance(part, int):
            found = found[part] if part < len(found) else None
        elif isinstance(found, dict):
            found = found.get(part)
        else:
            found = getattr(found, part)
    if isinstance(found, ResourceName):
        return f"{found.pool} {found.resource} {found.direction}".strip()
    if isinstance(found, float):
        return None if found != found else float(found)  # noqa: PLR0124  (nan)
    return found
