"""A simulated run as Prometheus would have scraped it: counters and gauges of nodes and engines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dualpath_model.export.plan_file import PlanFile
from solvers.simulator import state as arrays
from solvers.simulator.experiments import Outcome
from solvers.simulator.series import NODE

STEP_S = 15
Samples = dict[str, list[float]]
"""Values of each series, one for each scrape from 0 s on."""


def scraped(outcome: Outcome, plan: PlanFile, device: str = "storage0") -> Samples:
    """Return the series of a run that was sampled every ``STEP_S``."""
    times = np.array([row[0] for row in outcome.series.cluster])
    assert np.allclose(np.diff(times), STEP_S), "sample the run every STEP_S seconds"
    found: Samples = {}
    _storage(found, outcome, plan, device)
    _turns(found, outcome, plan, np.concatenate([[0.0], times]))
    _queues(found, outcome, plan)
    return found


def promtool_values(values: list[float]) -> str:
    """Return samples in promtool's notation."""
    return " ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in values)


def _series(name: str, **labels: str) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inside}}}"


def _pool(node: str) -> str:
    return {"p": "prefill", "d": "decode"}[node[0]]


def _storage(found: Samples, outcome: Outcome, plan: PlanFile, device: str) -> None:
    """Bytes that each node read: the busy share of its NICs x what they read in full."""
    rates = {
        f"{kind.pool[0]}{position}": kind.storage_read_bytes_per_s
        for kind in plan.deployment.kinds
        for position in kind.positions
    }
    busy = np.array(outcome.series.nodes)[:, :, NODE.index("nic_busy")]
    for node, number in outcome.run.state.node.items():
        total = np.concatenate([[0.0], np.cumsum(busy[:, number]) * rates[node] * STEP_S])
        labels = {"pool": _pool(node), "node": node}
        found[_series("node_network_receive_bytes_total", **labels, device=device)] = total.tolist()
        name = "vllm:kv_offload_tiering_read_bytes_total"
        found[_series(name, **labels, engine="0", tier="1:fs")] = total.tolist()


def _turns(found: Samples, outcome: Outcome, plan: PlanFile, times: np.ndarray) -> None:
    """Latencies and ended requests, counted when the token or the end came."""
    rows = outcome.run.rows
    at = {name: rows[:, arrays.RESULT_FIELDS.index(name)] / 1e9 for name in arrays.RESULT_TIMES}
    output = outcome.run.sim.traffic.output[rows[:, 1]]
    several = output > 2
    prefill = {"pool": "prefill", "node": "p0", "engine": "0"}
    decode = {"pool": "decode", "node": "d0", "engine": "0"}
    served = plan.deployment
    first = at["first_token"]
    name = "vllm:request_success_total"
    found[_series(name, **prefill, finished_reason="length")] = _counted(first, times)
    gaps = (at["ended"] - at["second_token"])[several] / (output[several] - 2)
    for name, labels, values, when, slo in (
        (
            "vllm:time_to_first_token_seconds_bucket",
            prefill,
            first - at["submitted"],
            first,
            served.ttft_s,
        ),
        (
            "vllm:request_time_per_output_token_seconds_bucket",
            decode,
            gaps,
            at["ended"][several],
            served.tpot_s,
        ),
    ):
        for bound in (slo / 4, slo / 2, slo, 2 * slo, 4 * slo, np.inf):
            le = "+Inf" if np.isinf(bound) else f"{bound:g}"
            found[_series(name, **labels, le=le)] = _counted(when[values <= bound], times)


def _counted(when: np.ndarray, times: np.ndarray) -> list[float]:
    return np.searchsorted(np.sort(when), times, side="right").astype(float).tolist()


def _queues(found: Samples, outcome: Outcome, plan: PlanFile) -> None:
    """Unfinished requests of a prefill engine: tokens that the node holds / mean prompt / engines."""
    held = np.array(outcome.series.nodes)[:, :, NODE.index("held_tokens")]
    prompt = plan.deployment.workload.prompt_tokens.mean
    engines: Mapping[str, int] = {
        f"p{position}": kind.engines
        for kind in plan.deployment.pool("prefill")
        for position in kind.positions
    }
    for node, count in engines.items():
        labels = {"pool": "prefill", "node": node, "instance": f"{node}:8000", "engine": "0"}
        mean = held[:, outcome.run.state.node[node]] / prompt / count
        found[_series("vllm:num_requests_running", **labels)] = [0.0, *np.floor(mean).tolist()]
        found[_series("vllm:num_requests_waiting", **labels)] = [0.0] * (len(mean) + 1)
