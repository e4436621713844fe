"""The knobs of the sidebar, each in one entry: what it shows, and how it changes a scenario file.

A knob writes into the parsed YAML, never into the model's objects: what the page answers is then what
the command line answers for the downloaded file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from app.dashboard.question import Value
from dualpath_model.catalog.files import looks_like_path, shipped
from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.catalog.nodes import gpu_names
from dualpath_model.cluster import Node
from dualpath_model.errors import DualPathError, InputError
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.paths import Pool
from dualpath_model.quantities import Dimension, parse
from dualpath_model.scenario import Scenario
from solvers.parameters import commonest, mean_tokens

Data = dict[str, Any]

GIGABIT = 1e9 / 8
AS_IS = "as it is"


@dataclass(frozen=True)
class Slider:
    """Numbers from ``low`` to ``high``; ``now`` stands in the scenario."""

    now: int | float
    low: int | float
    high: int | float
    step: int | float
    format: str

    def admits(self, value: object) -> bool:
        """Tell whether a value, of a link say, can be meant."""
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        return numeric and self.low <= value <= self.high  # type: ignore[operator]


@dataclass(frozen=True)
class Choice:
    """One of several names; ``now`` stands in the scenario."""

    now: str
    options: tuple[str, ...]

    def admits(self, value: object) -> bool:
        """Tell whether a value, of a link say, can be meant."""
        return value in self.options


Control = Slider | Choice


@dataclass(frozen=True)
class Knob:
    """``ask`` gives its control for a scenario before any knob, None where it has no meaning there.

    A knob without ``ask`` chooses among the uploaded files. Such knobs say where figures come from, so
    they are written first, and the others start from what they give.
    """

    name: str
    label: str
    group: str
    help: str
    ask: Callable[[Scenario], Control | None] | None
    write: Callable[[Data, Any, Scenario], None]

    def control(self, scenario: Scenario, uploads: Collection[str] = ()) -> Control | None:
        """Return the control; ``uploads`` are the names of the files that there are."""
        if self.ask is not None:
            return self.ask(scenario)
        return Choice(AS_IS, (AS_IS, *uploads)) if uploads else None


def moved(
    data: Data,
    knobs: Iterable[tuple[str, Value]],
    before: Scenario,
    uploads: Collection[str] = (),
) -> Data:
    """Return a scenario's data with the knobs' values written in, in the order of :data:`KNOBS`.

    ``before``: the scenario of ``data``. Raises InputError for an unknown knob or a value outside its
    control.
    """
    asked = dict(knobs)
    unknown = next((name for name in asked if name not in BY_NAME), None)
    if unknown is not None:
        raise InputError(f"there is no knob '{unknown}'; leave it out of the link")
    found = copy.deepcopy(data)
    for knob in KNOBS:
        if knob.name not in asked:
            continue
        control, value = knob.control(before, uploads), asked[knob.name]
        if control is None or not control.admits(value):
            allowed = "not be given for this scenario"
            if isinstance(control, Slider):
                allowed = f"be from {control.low:g} to {control.high:g}"
            elif control is not None:
                allowed = f"be one of {', '.join(control.options)}"
            raise InputError(f"{knob.label} is {value!r}; it must {allowed}")
        knob.write(found, value, before)
    return found


# ---- reading a scenario --------------------------------------------------------------------------


def _count(pool: Pool) -> Callable[[Scenario], Slider]:
    def ask(scenario: Scenario) -> Slider:
        now = len(scenario.cluster.nodes(pool))
        return Slider(now, 1, max(16, 3 * now), 1, "%d")

    return ask


def _snics(pool: Pool) -> Callable[[Scenario], Slider]:
    def ask(scenario: Scenario) -> Slider:
        now = commonest(scenario, pool).snics
        return Slider(now, 0, max(8, 2 * now), 1, "%d")

    return ask


def _rate(value: float, unit: float, step: int, most: int, form: str) -> Slider:
    now = round(value / unit, 3)
    return Slider(now, min(float(step), now), max(float(most), 2 * now), float(step), form)


def _snic_rate(scenario: Scenario) -> Slider | None:
    node = commonest(scenario, Pool.PREFILL)
    node = node if node.snics else commonest(scenario, Pool.DECODE)
    return _rate(node.snic_bytes_per_s, GIGABIT, 25, 800, "%g Gbps") if node.snics else None


def _cnic_rate(scenario: Scenario) -> Slider:
    rate = commonest(scenario, Pool.PREFILL).cnic_bytes_per_s
    return _rate(rate, GIGABIT, 25, 800, "%g Gbps")


def _dram_rate(scenario: Scenario) -> Slider | None:
    rate = commonest(scenario, Pool.PREFILL).dram_bytes_per_s
    return None if rate is None else _rate(rate, 1e9, 25, 1600, "%g GB/s")


def _gpu(pool: Pool) -> Callable[[Scenario], Choice]:
    def ask(scenario: Scenario) -> Choice:
        return Choice(AS_IS, (AS_IS, *gpu_names()))

    return ask


def _llm(scenario: Scenario) -> Choice:
    names = llm_names()
    now = scenario.llm.name
    return Choice(now, tuple(names) if now in names else (now, *names))


def _kv_dtype(scenario: Scenario) -> Choice:
    return Choice(
        AS_IS, (AS_IS, *(dtype.value for dtype in KvDtype if _stores(scenario.llm, dtype)))
    )


def _stores(llm: Llm, dtype: KvDtype) -> bool:
    try:
        llm.kv_bytes_per_token(dtype)
    except DualPathError:
        return False
    return True


def _tokens(read: Callable[[Scenario], float]) -> Callable[[Scenario], Slider | None]:
    def ask(scenario: Scenario) -> Slider | None:
        now = round(read(scenario))
        if not now:
            return None
        step = max(1, 10 ** (len(str(now)) - 3))
        return Slider(now, step, 4 * now, step, "%d tokens")

    return ask


def _hit_rate(scenario: Scenario) -> Slider | None:
    means = mean_tokens(scenario)
    now = round(100 * means.hit_rate, 1)
    return Slider(now, 0.0, max(99.9, now), 0.1, "%.1f %%") if means.hit else None


def _dram_cache(scenario: Scenario) -> Slider:
    now = round(100 * scenario.serving.dram_cache_hit_share)
    return Slider(now, 0, 100, 1, "%d %%")


def _tpot(scenario: Scenario) -> Slider:
    now = round(1000 * scenario.slo.tpot_s, 1)
    return Slider(now, min(5.0, now), max(200.0, 2 * now), 1.0, "%g ms")


def _ttft(scenario: Scenario) -> Slider:
    now = round(scenario.slo.ttft_s, 1)
    return Slider(now, min(0.5, now), max(20.0, 2 * now), 0.5, "%g s")


def _degraded(pool: Pool) -> Callable[[Scenario], Slider]:
    def ask(scenario: Scenario) -> Slider:
        return Slider(100, 5, 100, 5, "%d %%")

    return ask


# ---- writing into its file -----------------------------------------------------------------------


def _cluster(data: Data) -> Data:
    """Return the cluster's own mapping; a cluster of the catalog is written out for that."""
    if isinstance(data["cluster"], str):
        if looks_like_path(data["cluster"]):
            raise InputError(
                f"cluster '{data['cluster']}' is a file of its own; write the cluster into the scenario "
                f"to change it here"
            )
        data["cluster"] = copy.deepcopy(shipped("clusters.yaml")[data["cluster"]])
    cluster: Data = data["cluster"]
    return cluster


def _groups(data: Data, pool: Pool) -> list[Data]:
    """Return the groups of nodes of a pool, which is a list from now on where it was one."""
    cluster = _cluster(data)
    if not isinstance(cluster[pool.value], list):
        return [cluster[pool.value]]
    found: list[Data] = cluster[pool.value]
    return found


def _node(group: Data) -> Data:
    """Return a group's node as a mapping that fields can be written into."""
    node = group["node"]
    if isinstance(node, str):
        node = {"profile": node} if looks_like_path(node) else {"base": node}
    group["node"] = dict(node)
    written: Data = group["node"]
    return written


def _write_count(pool: Pool) -> Callable[[Data, int, Scenario], None]:
    def write(data: Data, value: int, before: Scenario) -> None:
        found = _groups(data, pool)
        change = value - sum(group.get("count", 1) for group in found)
        while change:
            largest = max(found, key=lambda group: group.get("count", 1))
            step = max(change, 1 - largest.get("count", 1)) if change < 0 else change
            if step == 0:  # each group has one node: the last one goes
                found.pop()
                change += 1
                continue
            largest["count"] = largest.get("count", 1) + step
            change -= step

    return write


def _write_snics(pool: Pool) -> Callable[[Data, int, Scenario], None]:
    def write(data: Data, value: int, before: Scenario) -> None:
        rate = commonest(before, pool)
        for group in _groups(data, pool):
            node = _node(group)
            node["snics"] = value
            if value == 0:
                node.pop("snic", None)
            elif not rate.snics:
                node["snic"] = f"{rate.cnic_bytes_per_s / GIGABIT:g} Gbps"

    return write


def _keep_snics(node: Data, before: Node) -> None:
    """Write how many storage NICs there are where a profile alone says so: a rate needs its count."""
    if "profile" in node and "base" not in node:
        node.setdefault("snics", before.snics)


def _write_rate(field: str, unit: str) -> Callable[[Data, float, Scenario], None]:
    def write(data: Data, value: float, before: Scenario) -> None:
        for pool in (Pool.PREFILL, Pool.DECODE):
            if field == "snic" and not commonest(before, pool).snics:
                continue
            for group in _groups(data, pool):
                node = _node(group)
                if field == "snic" and node.get("snics") == 0:
                    continue
                node[field] = f"{value:g} {unit}"
                if field == "snic":
                    _keep_snics(node, commonest(before, pool))

    return write


def _write_gpu(pool: Pool) -> Callable[[Data, str, Scenario], None]:
    def write(data: Data, value: str, before: Scenario) -> None:
        if value != AS_IS:
            for group in _groups(data, pool):
                _node(group)["gpu"] = value

    return write


def _write_profile(pool: Pool) -> Callable[[Data, str, Scenario], None]:
    def write(data: Data, value: str, before: Scenario) -> None:
        if value != AS_IS:
            for group in _groups(data, pool):
                _node(group)["profile"] = value

    return write


def _write_trace(data: Data, value: str, before: Scenario) -> None:
    if value != AS_IS:
        data.pop("classes", None)
        data["workload"] = {"trace": value}


def _write_degraded(pool: Pool) -> Callable[[Data, float, Scenario], None]:
    """Split one node off the largest group; of its storage NICs only a share is left."""

    def write(data: Data, value: float, before: Scenario) -> None:
        found = _groups(data, pool)
        largest = max(found, key=lambda group: group.get("count", 1))
        rest = largest.get("count", 1) - 1
        one = copy.deepcopy(largest) | {"count": 1}
        node, healthy = _node(one), commonest(before, pool)
        shared = not node.get("snics", healthy.snics)
        field = "cnic" if shared else "snic"
        rate = healthy.cnic_bytes_per_s if shared else healthy.snic_bytes_per_s
        if field in node:
            rate = parse(node[field], Dimension.BYTES_PER_S)
        node[field] = f"{rate * value / 100 / GIGABIT:.10g} Gbps"
        if field == "snic":
            _keep_snics(node, healthy)
        largest["count"] = rest
        kept = found if rest else [group for group in found if group is not largest]
        _cluster(data)[pool.value] = [*kept, one]

    return write


def _write_llm(data: Data, value: str, before: Scenario) -> None:
    if value == before.llm.name:
        return
    data["llm"] = value
    dtype = data.get("kv_dtype")
    if dtype is not None and not _stores(load_llm(value), KvDtype(dtype)):
        data.pop("kv_dtype")  # its own default, then


def _write_kv_dtype(data: Data, value: str, before: Scenario) -> None:
    if value != AS_IS:
        data["kv_dtype"] = value


def _write_scale(
    field: str, read: Callable[[Scenario], float]
) -> Callable[[Data, float, Scenario], None]:
    def write(data: Data, value: float, before: Scenario) -> None:
        for workload in _workloads(data):
            scale = workload.setdefault("scale", {})
            scale[field] = scale.get(field, 1.0) * float(value) / read(before)

    return write


def _write_hit_rate(data: Data, value: float, before: Scenario) -> None:
    for workload in _workloads(data):
        workload.setdefault("scale", {})["hit_rate"] = value / 100


def _workloads(data: Data) -> list[Data]:
    if data.get("workload") is not None:
        return [data["workload"]]
    return [part["workload"] for part in data["classes"]]


def _write_field(
    section: str, field: str, form: Callable[[float], object]
) -> Callable[[Data, float, Scenario], None]:
    def write(data: Data, value: float, before: Scenario) -> None:
        data.setdefault(section, {})[field] = form(value)

    return write


# ---- the table -----------------------------------------------------------------------------------

CLUSTER, NODES, WORKLOAD, LLM, PROMISE = (
    "Cluster",
    "Machines",
    "Workload",
    "LLM",
    "Promise to users",
)
_CATALOG = "From the machine catalog (`dualpath node list` names the sources)"
_SESSIONS = "From the loaded sessions; moving it scales every request alike"

KNOBS: tuple[Knob, ...] = (
    Knob(
        "trace",
        "recorded sessions",
        WORKLOAD,
        "Take an uploaded trace instead of the scenario's sessions.",
        None,
        _write_trace,
    ),
    Knob(
        "profile_prefill",
        "measured prefill nodes",
        NODES,
        "Rates of an uploaded calibration profile (`dualpath calibrate`) instead of the catalog's, in "
        "every prefill node.",
        None,
        _write_profile(Pool.PREFILL),
    ),
    Knob(
        "profile_decode",
        "measured decode nodes",
        NODES,
        "Rates of an uploaded calibration profile (`dualpath calibrate`) instead of the catalog's, in "
        "every decode node.",
        None,
        _write_profile(Pool.DECODE),
    ),
    Knob(
        "prefill_nodes",
        "prefill nodes (P)",
        CLUSTER,
        "Machines that compute the prompts. Number of nodes; from the scenario.",
        _count(Pool.PREFILL),
        _write_count(Pool.PREFILL),
    ),
    Knob(
        "decode_nodes",
        "decode nodes (D)",
        CLUSTER,
        "Machines that generate the answers. Number of nodes; from the scenario.",
        _count(Pool.DECODE),
        _write_count(Pool.DECODE),
    ),
    Knob(
        "prefill_snics",
        "storage NICs a prefill node",
        CLUSTER,
        f"Network cards for storage traffic. With 0, it shares the compute NICs. {_CATALOG}.",
        _snics(Pool.PREFILL),
        _write_snics(Pool.PREFILL),
    ),
    Knob(
        "decode_snics",
        "storage NICs a decode node",
        CLUSTER,
        f"Network cards for storage traffic. With 0, it shares the compute NICs. {_CATALOG}.",
        _snics(Pool.DECODE),
        _write_snics(Pool.DECODE),
    ),
    Knob(
        "snic_gbps",
        "a storage NIC's rate",
        CLUSTER,
        f"Line rate of one storage NIC in either direction, in Gbps, both pools. {_CATALOG}.",
        _snic_rate,
        _write_rate("snic", "Gbps"),
    ),
    Knob(
        "cnic_gbps",
        "a compute NIC's rate",
        NODES,
        "Line rate of one NIC of the compute network (RDMA between GPUs) in either direction, in Gbps, "
        f"both pools. {_CATALOG}.",
        _cnic_rate,
        _write_rate("cnic", "Gbps"),
    ),
    Knob(
        "dram_gb_per_s",
        "DRAM bandwidth a node",
        NODES,
        f"Host memory bandwidth, reads and writes together, in GB/s, both pools. {_CATALOG}.",
        _dram_rate,
        _write_rate("dram_bandwidth", "GB/s"),
    ),
    Knob(
        "prefill_gpu",
        "prefill GPU",
        NODES,
        f"Another GPU in every prefill node, as many of them as before. {_CATALOG}.",
        _gpu(Pool.PREFILL),
        _write_gpu(Pool.PREFILL),
    ),
    Knob(
        "decode_gpu",
        "decode GPU",
        NODES,
        f"Another GPU in every decode node, as many of them as before. {_CATALOG}.",
        _gpu(Pool.DECODE),
        _write_gpu(Pool.DECODE),
    ),
    Knob(
        "degraded_prefill",
        "one degraded prefill node",
        NODES,
        "What is left of the storage bandwidth of one prefill node, in % of a healthy one.",
        _degraded(Pool.PREFILL),
        _write_degraded(Pool.PREFILL),
    ),
    Knob(
        "degraded_decode",
        "one degraded decode node",
        NODES,
        "What is left of the storage bandwidth of one decode node, in % of a healthy one.",
        _degraded(Pool.DECODE),
        _write_degraded(Pool.DECODE),
    ),
    Knob(
        "llm",
        "LLM",
        LLM,
        "Large language model that is served; shapes from the vendors' published configurations "
        "(`dualpath llm list` names them).",
        _llm,
        _write_llm,
    ),
    Knob(
        "kv_dtype",
        "KV-cache format",
        LLM,
        "How a token's keys and values are stored: bytes a token follow from the LLM's shape.",
        _kv_dtype,
        _write_kv_dtype,
    ),
    Knob(
        "context_tokens",
        "context read back",
        WORKLOAD,
        f"Tokens a request, in the mean, whose KV-cache is read from storage. {_SESSIONS}.",
        _tokens(lambda scenario: mean_tokens(scenario).hit),
        _write_scale("context", lambda scenario: mean_tokens(scenario).hit),
    ),
    Knob(
        "append_tokens",
        "append",
        WORKLOAD,
        f"New prompt tokens a request, in the mean, which prefill computes. {_SESSIONS}.",
        _tokens(lambda scenario: mean_tokens(scenario).miss),
        _write_scale("append", lambda scenario: mean_tokens(scenario).miss),
    ),
    Knob(
        "generate_tokens",
        "generate",
        WORKLOAD,
        f"Tokens that the LLM writes a request, in the mean. {_SESSIONS}.",
        _tokens(lambda scenario: mean_tokens(scenario).output),
        _write_scale("generate", lambda scenario: mean_tokens(scenario).output),
    ),
    Knob(
        "hit_rate",
        "hit rate",
        WORKLOAD,
        "Share of prompt tokens whose KV-cache is in storage, in %. Prompts stay as long: what it takes "
        "from *context read back* it adds to *append*, and the other way round. From the loaded "
        "sessions.",
        _hit_rate,
        _write_hit_rate,
    ),
    Knob(
        "dram_cache",
        "hits in prefill DRAM",
        WORKLOAD,
        "Share of the hit bytes that the prefill nodes' own memory answers, without a read from "
        "storage, in %. From the scenario.",
        _dram_cache,
        _write_field("dram_cache", "hit_share", lambda value: value / 100),
    ),
    Knob(
        "slo_ttft",
        "time to first token",
        PROMISE,
        "Latency promise (SLO) from a request's arrival to its first token, in seconds; the Simulate "
        "page holds it. From the scenario.",
        _ttft,
        _write_field("slo", "ttft", lambda value: f"{value:g} s"),
    ),
    Knob(
        "slo_tpot",
        "time per output token",
        PROMISE,
        "Latency promise (SLO) for the gap between two tokens, in ms: it bounds how many requests are "
        "decoded at once. From the scenario.",
        _tpot,
        _write_field("slo", "tpot", lambda value: f"{value:g} ms"),
    ),
)
"""In the order in which they are written: a degraded node after what its likes are made of."""

BY_NAME = {knob.name: knob for knob in KNOBS}

SOURCES = frozenset(knob.name for knob in KNOBS if knob.ask is None)
"""Knobs that say where figures come from."""
