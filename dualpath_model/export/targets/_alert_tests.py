"""A test file for promtool, made with the rules: the plan's own operation raises nothing, and each alert
is raised by a series in which the plan's value is passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from dualpath_model.export.targets import _metrics as metrics
from dualpath_model.export.targets._alerts import Alert, Figures
from dualpath_model.export.values import Document, derived, fixed

HEALTHY = 0.9
"""Share of the plan's rate at which nothing may be raised."""


@dataclass(frozen=True)
class State:
    """What a test's series show. ``ttft``, ``tpot``: whether all are above the SLO."""

    reads: Mapping[str, float]
    split: float
    requests: float
    unfinished: Mapping[str, float]
    ttft: bool = False
    tpot: bool = False
    pools: Mapping[str, str] = field(default_factory=dict)


def test_document(
    rules: str, alerts: Sequence[Alert], figures: Figures, device: str
) -> dict[str, Document]:
    """Return the test file for a file of rules; ``device``: a storage interface."""
    quiet = healthy(figures)
    names = list(dict.fromkeys(alert.name for alert in alerts))
    cases: list[Document] = [
        _case("the plan at 90 % of its rate raises nothing", quiet, figures, device, names, ())
    ]
    for alert in alerts:
        state = _broken(quiet, alert)
        title = f"{alert.name} {alert.labels.get('kind', '')}".strip()
        cases.append(_case(f"{title} is raised", state, figures, device, [alert.name], (alert,)))
    step = fixed(metrics.duration(metrics.SCRAPE_S), "as the scrapes")
    return {
        "rule_files": [fixed(rules, "the rules beside this file")],
        "evaluation_interval": step,
        "tests": cases,
    }


def healthy(figures: Figures) -> State:
    """Return the plan's own operation at 90 % of its rate."""
    shares = figures.shares
    prompt = figures.plan.deployment.workload.prompt_tokens.mean
    return State(
        reads={node: HEALTHY * share.used for share in shares for node in share.nodes},
        split=figures.plan.split,
        requests=HEALTHY * figures.plan.throughput_requests_per_s,
        unfinished={
            node: math.floor(share.kind.beta_tokens / prompt / 2)
            for share in shares
            for node in share.nodes
            if share.kind.pool == "prefill"
        },
        pools={node: share.kind.pool for share in shares for node in share.nodes},
    )


def rendered(text: str, labels: Mapping[str, str], value: float) -> str:
    """Return an annotation as Prometheus renders the two templates that we use."""
    found = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m: labels.get(m.group(1), ""), text)
    return found.replace('{{ printf "%.4g" $value }}', f"{value:.4g}")


def _broken(state: State, alert: Alert) -> State:
    changes = dict(alert.breaks)
    for name in ("reads", "unfinished"):
        if name in changes:
            part = cast("Mapping[str, float]", changes[name])
            changes[name] = {**getattr(state, name), **part}
    return replace(state, **changes)  # type: ignore[arg-type]


def _case(
    title: str,
    state: State,
    figures: Figures,
    device: str,
    names: Sequence[str],
    raised: Sequence[Alert],
) -> dict[str, Document]:
    hold = max([figures.hold_s, figures.window_s])
    end = figures.window_s + hold + 2 * metrics.RATE_S
    steps = end // metrics.SCRAPE_S + 1
    how = "figures of the plan, of which this case passes one" if raised else "figures of the plan"
    return {
        "name": fixed(title, "title of the case"),
        "interval": fixed(metrics.duration(metrics.SCRAPE_S), "as the scrapes"),
        "input_series": [
            {
                "series": fixed(name, "labels as the scrapes give them"),
                "values": derived(values, how),
            }
            for name, values in series(state, figures, device, steps)
        ],
        "alert_rule_test": [
            {
                "eval_time": derived(
                    metrics.duration(end), "the rules' window, and for how long they wait"
                ),
                "alertname": fixed(name, "the alert that is looked at"),
                "exp_alerts": [_expected(alert) for alert in raised],
            }
            for name in names
        ],
    }


def _expected(alert: Alert) -> dict[str, Document]:
    labels, value = alert.of
    everything = {**labels, **alert.labels, "severity": alert.severity}
    return {
        "exp_labels": {
            name: fixed(text, "of the series and the rule") for name, text in everything.items()
        },
        "exp_annotations": {
            name: derived(
                rendered(text, everything, value), "the rule's annotation with this value"
            )
            for name, text in alert.annotations().items()
        },
    }


def series(state: State, figures: Figures, device: str, steps: int) -> list[tuple[str, str]]:
    """Return (series, values) in promtool's notation."""
    found: list[tuple[str, str]] = []

    def add(name: str, labels: Mapping[str, str], each_s: float, start: float = 0.0) -> None:
        inside = ",".join(f"{key}={metrics.quoted(text)}" for key, text in labels.items())
        step = _number(each_s * metrics.SCRAPE_S)
        found.append((f"{name}{{{inside}}}", f"{_number(start)}+{step}x{steps}"))

    total = sum(state.reads.values())
    for node, rate in state.reads.items():
        labels = {"pool": state.pools[node], "node": node, "device": device}
        add("node_network_receive_bytes_total", labels, rate)
    reads = "vllm:kv_offload_tiering_read_bytes_total"
    prefill = {"pool": "prefill", "node": "p0", "instance": "p0:8000", "engine": "0"}
    decode = {"pool": "decode", "node": "d0", "instance": "d0:8000", "engine": "0"}
    add(reads, {**prefill, "tier": "2:fs"}, total * (1 - state.split))
    add(reads, {**decode, "tier": "1:fs"}, total * state.split)
    # what prefill takes from its peers is no storage read, and must not be counted again
    add(reads, {**prefill, "tier": "1:p2p"}, total * state.split)
    ended = "vllm:request_success_total"
    add(ended, {**prefill, "finished_reason": "length"}, state.requests)
    for node, count in state.unfinished.items():
        labels = {"pool": "prefill", "node": node, "instance": f"{node}:8000", "engine": "0"}
        waiting = math.floor(count / 2)
        add("vllm:num_requests_waiting", labels, 0.0, waiting)
        add("vllm:num_requests_running", labels, 0.0, count - waiting)
    served = figures.plan.deployment
    for name, labels, slo, late in (
        ("vllm:time_to_first_token_seconds", prefill, served.ttft_s, state.ttft),
        ("vllm:request_time_per_output_token_seconds", decode, served.tpot_s, state.tpot),
    ):
        for bound, counted in ((slo / 2, not late), (slo, not late), (2 * slo, True), (None, True)):
            le = "+Inf" if bound is None else f"{bound:g}"
            add(f"{name}_bucket", {**labels, "le": le}, state.requests if counted else 0.0)
    return found


def _number(value: float) -> str:
    # fixed notation: a sign inside of an exponent would be read as the step's
    return f"{value:.6f}".rstrip("0").rstrip(".")
