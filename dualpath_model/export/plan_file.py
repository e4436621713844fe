"""A plan file in: what ``dualpath plan --json`` wrote, checked before anything is made from it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from dualpath_model.deployment import DEPLOYMENT_VERSION, Deployment, NodeKind
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.parameters import SchedulerParameters
from dualpath_model.records import validated

_AGAIN = "make the plan again with `dualpath plan SCENARIO --json FILE`"
_JSON = re.compile(r'\s*(\{\s*"|\[)')
_CLUSTER = re.compile(r'"cluster"\s*:')
_PARAMETERS = re.compile(r'"scheduler_parameters"\s*:')
PLAN_VERSION = 1
"""The newest plan that is understood; ``solvers.planner`` writes this one."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What limits."""

    pool: str
    resource: str
    direction: str

    def __str__(self) -> str:
        """Print as people say it: "prefill snic in"."""
        return f"{self.pool} {self.resource} {self.direction}"


@dataclass(frozen=True, slots=True)
class Used:
    """One capacity of one node (None: of the cluster) under Basic and under the plan."""

    pool: str
    node: int | None
    resource: str
    direction: str
    capacity: float
    basic: float
    dual_path: float


@dataclass(frozen=True, slots=True)
class PlanFile:
    """The parts of a plan that exporters use; names and units as in ``dualpath plan --json``."""

    version: int
    scenario: str
    llm: str
    kv_dtype: str
    prefill_nodes: int
    decode_nodes: int
    split: float
    throughput_requests_per_s: float
    throughput_basic_requests_per_s: float
    throughput_oracle_requests_per_s: float | None
    speedup_over_basic: float
    bottleneck: Bottleneck
    bottleneck_basic: Bottleneck
    utilisation: tuple[Used, ...]
    scheduler_parameters: SchedulerParameters
    deployment: Deployment
    notes: tuple[str, ...] = ()


def parse_plan(data: Any, file: str = "plan") -> PlanFile:
    """Check plan data (:func:`solvers.deployment.plan_document`, or its JSON read back).

    Raises InputError, one sentence that begins with ``file``, for a newer version, a plan without its
    ``deployment`` and whatever is missing or of a wrong type; InfeasibleError for a plan that serves
    nothing.
    """
    if not isinstance(data, dict) or "scheduler_parameters" not in data:
        raise InputError(
            f"{file}: is not a plan (no 'scheduler_parameters'); give a file that "
            f"`dualpath plan SCENARIO --json FILE` wrote, or a scenario"
        )
    _check_version(file, "version", data.get("version"), PLAN_VERSION)
    deployment = data.get("deployment")
    if not isinstance(deployment, dict):
        raise InputError(
            f"{file}: deployment is missing, so the plan is of before there were exports; make it again "
            f"with `dualpath plan SCENARIO --json FILE`"
        )
    _check_version(file, "deployment.version", deployment.get("version"), DEPLOYMENT_VERSION)
    rate = data.get("throughput_requests_per_s")
    if isinstance(rate, int | float) and not rate > 0:
        raise InfeasibleError(
            f"{file}: throughput_requests_per_s is {rate}, so this plan serves nothing and there is "
            f"nothing to deploy; change the scenario until `dualpath plan` has an answer"
        )
    _check_finite(file, data)
    found = validated(_adapter(), data, file, _AGAIN)
    _check_ranges(file, found)
    _check_kinds(file, found)
    return found


def read_plan(path: Path) -> PlanFile:
    """Read a plan file. Raises as :func:`parse_plan`, and InputError for what is no JSON file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a plan file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise InputError(
            f"{path}: is not JSON, or cut off; give what `dualpath plan --json` wrote"
        ) from None
    return parse_plan(data, str(path))


def plan_in(path: Path) -> PlanFile | None:
    """Read a plan file, whatever its name ends in; None for a scenario, which may be JSON too.

    Raises as :func:`read_plan` for what begins like JSON and is no scenario.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None  # reading it as a scenario gives the right sentence
    scenario = _CLUSTER.search(text) and not _PARAMETERS.search(text)
    return None if scenario or not _JSON.match(text) else read_plan(path)


def _check_version(file: str, field: str, found: object, newest: int) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InputError(f"{file}: {field} is {found!r}; it must be a whole number from 1")
    if found > newest:
        raise InputError(
            f"{file}: {field} is {found}, but this dualpath knows plans up to {newest}; update "
            f"dualpath, or make the plan with this one"
        )


def _check_finite(file: str, data: Any, field: str = "") -> None:
    """Refuse numbers that are none: JSON has no nan and no infinity, but Python's reader takes them."""
    if isinstance(data, dict | list):
        for key, part in data.items() if isinstance(data, dict) else enumerate(data):
            _check_finite(file, part, f"{field}.{key}" if field else str(key))
    elif isinstance(data, float) and not math.isfinite(data):
        raise InputError(
            f"{file}: {field} is {data}, which is no number; make the plan again with `dualpath plan "
            f"SCENARIO --json FILE`"
        )


_ABOVE_0 = 1e-9  # of rates, seconds, tokens: less is no figure of a plan, and divides into infinity
_MOST = 1e30
_RANGES: Mapping[str, Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "": {
            "split": (0, 1),
            "throughput_basic_requests_per_s": (0, _MOST),
            "speedup_over_basic": (_ABOVE_0, _MOST),
        },
        "scheduler_parameters": {
            "block_tokens": (1, 2**20),
            "z_factor": (_ABOVE_0, _MOST),
            "alpha_tokens": (0, _MOST),
        },
        "deployment": dict.fromkeys(
            ("ttft_s", "tpot_s", "quota_s", "alpha_s", "beta_s"), (_ABOVE_0, _MOST)
        ),
        "deployment.llm": {
            "layers": (1, 1e6),
            "kv_bytes_per_token": (_ABOVE_0, _MOST),
            "read_bytes_per_token": (_ABOVE_0, _MOST),
        },
        "deployment.workload": {"turns_per_session": (_ABOVE_0, _MOST)},
    }
)
_OF_TURNS = ("prompt_tokens", "hit_tokens", "append_tokens", "output_tokens", "think_s")
_OF_KIND: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "gpus": (1, 1e6),
        "tensor": (1, 1e6),
        "expert": (1, 1e9),
        "cnics": (1, 1e6),
        "snics": (0, 1e6),
        "cnic_bytes_per_s": (1, _MOST),
        "snic_bytes_per_s": (0, _MOST),
        "storage_read_bytes_per_s": (1, _MOST),
        "prefill_tokens_per_s": (_ABOVE_0, _MOST),
        "dram_bytes": (0, _MOST),
        "buffer_bytes": (0, _MOST),
        "alpha_tokens": (0, _MOST),
        "beta_tokens": (0, _MOST),
        "hbm_tokens": (0, _MOST),
        "quota_tokens": (0, 2**30),
        "decode_batch": (_ABOVE_0, _MOST),
        "decode_step_s": (_ABOVE_0, _MOST),
    }
)


def _check_ranges(file: str, plan: PlanFile) -> None:
    """Refuse figures that no plan has: edited ones, which would be written on into files."""
    for path, ranges in _RANGES.items():
        part: Any = plan
        for name in path.split(".") if path else ():
            part = getattr(part, name)
        _check_part(file, path, part, ranges)
    for name in _OF_TURNS:
        distribution = getattr(plan.deployment.workload, name)
        ranges = dict.fromkeys(("mean", "p50", "p90", "p99", "most"), (0.0, 1000000000000000.0))
        _check_part(file, f"deployment.workload.{name}", distribution, ranges)
    for number, kind in enumerate(plan.deployment.kinds):
        _check_part(file, f"deployment.kinds.{number}", kind, _OF_KIND)


def _count(plan: PlanFile, pool: str) -> int:
    return sum(kind.count for kind in plan.deployment.pool(pool))


def _check_part(
    file: str, path: str, part: object, ranges: Mapping[str, tuple[float, float]]
) -> None:
    for name, (least, most) in ranges.items():
        value = getattr(part, name)
        if value is not None and not least <= value <= most:
            where = f"{path}.{name}" if path else name
            above = "above 0" if 0 < least < 1 else f"from {least:g} on"
            allowed = f"from {least:g} to {most:g}" if most < _MOST else above
            raise InputError(f"{file}: {where} is {value}; it must be {allowed}: {_AGAIN}")


def _check_kinds(file: str, plan: PlanFile) -> None:
    """Refuse hardware that cannot be, and kinds and nodes that are not each other's."""
    kinds: dict[tuple[str, int], NodeKind] = {}
    for number, kind in enumerate(plan.deployment.kinds):
        where = f"{file}: deployment.kinds.{number}"
        if not kind.positions:
            raise InputError(f"{where}.positions is empty; {_AGAIN}")
        for position in kind.positions:
            if (kind.pool, position) in kinds:
                raise InputError(
                    f"{where}.positions has {kind.pool} node {position}, which is of a kind already; "
                    f"{_AGAIN}"
                )
            kinds[kind.pool, position] = kind
    _check_nodes(file, plan, kinds)


def _check_nodes(file: str, plan: PlanFile, kinds: dict[tuple[str, int], NodeKind]) -> None:
    lacking = dict(kinds)
    for number, node in enumerate(plan.deployment.nodes):
        where = f"{file}: deployment.nodes.{number}"
        position = node.node[1:]
        if node.node[:1] != node.pool[0] or not (position.isascii() and position.isdigit()):
            raise InputError(
                f"{where}.node is {node.node!r:.80}, not {node.pool[0]} and a number; {_AGAIN}"
            )
        kind = lacking.pop((node.pool, int(position)), None)
        if kind is None:
            raise InputError(
                f"{where}.node is '{node.node}', which is there twice or in no positions of "
                f"deployment.kinds; {_AGAIN}"
            )
        if kind.tensor * len(node.engines) != kind.gpus:
            raise InputError(
                f"{where}: {node.pool} node {position} has {len(node.engines)} engines, but its kind "
                f"has {kind.gpus} GPUs in engines of {kind.tensor}; {_AGAIN}"
            )
    if lacking:
        pool, first = min(lacking)
        raise InputError(
            f"{file}: deployment.nodes lacks {pool} node {first}, which deployment.kinds has; "
            f"{_AGAIN}"
        )
    for pool in ("prefill", "decode"):
        stated, count = getattr(plan, f"{pool}_nodes"), _count(plan, pool)
        if stated != count:
            raise InputError(
                f"{file}: {pool}_nodes is {stated}, but deployment.nodes has {count}; {_AGAIN}"
            )


@cache
def _adapter() -> TypeAdapter[PlanFile]:
    return TypeAdapter(PlanFile)
