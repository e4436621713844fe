"""Grafana: a dashboard of what Prometheus records, each row with the plan's value as a line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualpath_model.export.documents import json_file
from dualpath_model.export.target import Asked, Bundle, Dropped, Target
from dualpath_model.export.targets import _metrics as metrics
from dualpath_model.export.targets._alerts import Figures, split_limits
from dualpath_model.export.targets._qos import KV_LANE, percent_of, qos_of
from dualpath_model.export.values import Document, Scalar, derived, fixed

_WIDTH, _HEIGHT = 24, 8
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_SCHEMA = 38
"""Version of the dashboard's schema that Grafana 10.1 writes; later ones migrate it."""


@dataclass(frozen=True)
class Line:
    """One query of a panel; with ``how`` it is a value of the plan, drawn as a dashed line."""

    legend: str
    expression: str
    how: str = ""
    inputs: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One plot. ``unit``: as Grafana names it."""

    title: str
    unit: str
    about: str
    lines: tuple[Line, ...]


def build(asked: Asked) -> Bundle:
    """Return the dashboard."""
    figures = Figures(asked.plan)
    document: Document = {
        **_layout(
            {
                "uid": "dualpath-" + _digest(asked.plan.scenario),
                "tags": ["dualpath"],
                "timezone": "browser",
                "editable": True,
                "graphTooltip": 1,
                "time": {"from": "now-1h", "to": "now"},
                "refresh": "30s",
                "schemaVersion": _SCHEMA,
                "templating": {"list": [_VARIABLE]},
            }
        ),
        "title": derived(f"DualPath: {asked.plan.scenario}", "name of the scenario"),
        "description": derived(
            f"Plan: {asked.plan.throughput_requests_per_s:.4g} requests/s, split "
            f"{asked.plan.split:.3f}. Dashed lines are the plan's values.",
            "figures of the plan",
        ),
        "panels": _panels(rows(asked, figures)),
    }
    file = json_file("dashboard.json", "the dashboard, to be imported", document)
    return Bundle((file,), _DROPPED, _NOTES)


def rows(asked: Asked, figures: Figures) -> list[tuple[str, list[Panel]]]:
    """Return the rows: a title and its panels."""
    return [
        ("Storage NICs", _storage(figures)),
        ("Split", [_split(figures)]),
        ("Latency", _latency(figures)),
        ("Queues", _queues(figures)),
        ("Load", _load(figures)),
        ("QoS of the compute network", [_qos(asked)]),
    ]


def _plan(legend: str, value: float, how: str, **inputs: Scalar) -> Line:
    return Line(f"plan: {legend}", f"vector({value:.6g})", how, inputs)


def _selector(pool: str, nodes: Sequence[str]) -> str:
    return f'{{pool="{pool}",node=~{metrics.one_of(nodes)}}}'


def _storage(figures: Figures) -> list[Panel]:
    found = []
    for share in figures.shares:
        nodes = _selector(share.kind.pool, share.nodes)
        rate = share.kind.storage_read_bytes_per_s
        found.append(
            Panel(
                f"{share.kind.pool} nodes: {metrics.spoken(share.nodes)}",
                "Bps",
                "Bytes received on the storage interfaces of each node.",
                (
                    Line("{{node}} reads", f"{metrics.READS}{nodes}"),
                    Line("{{node}} writes", f"{metrics.WRITES}{nodes}"),
                    _plan("full", rate, "storage_read_bytes_per_s of the kind of node"),
                    _plan(
                        "reads at its rate",
                        share.used,
                        "utilisation of snic in of the plan x storage_read_bytes_per_s",
                        storage_read_bytes_per_s=rate,
                    ),
                ),
            )
        )
    return found


def _split(figures: Figures) -> Panel:
    low, high = split_limits(figures)
    how = "split from which on the storage NICs of a pool do not keep up with the plan's reads"
    return Panel(
        "Storage reads that decode nodes do",
        "percentunit",
        "Between the lowest and the highest line the storage NICs of both pools serve the plan's rate.",
        (
            Line("realised", metrics.SPLIT),
            _plan("x", figures.plan.split, "split of the LP's optimum"),
            _plan("lowest", low, how, read_bytes_per_s=figures.reads),
            _plan("highest", high, how, read_bytes_per_s=figures.reads),
        ),
    )


def _latency(figures: Figures) -> list[Panel]:
    served = figures.plan.deployment
    return [
        Panel(
            "Time to first token",
            "s",
            "Submission of a turn to its first token, over all prefill engines.",
            (
                Line("p90", metrics.TTFT_P90),
                Line("p99", metrics.TTFT_P99),
                _plan("SLO", served.ttft_s, "slo.ttft of the scenario"),
            ),
        ),
        Panel(
            "Time per output token",
            "s",
            "Mean gap of a request's tokens, over all decode engines.",
            (
                Line("p90", metrics.TPOT_P90),
                _plan("SLO", served.tpot_s, "slo.tpot of the scenario"),
            ),
        ),
    ]


def _queues(figures: Figures) -> list[Panel]:
    return [*_beta(figures), *_alpha(figures), *_batch(figures)]


def _beta(figures: Figures) -> list[Panel]:
    prompt = figures.plan.deployment.workload.prompt_tokens.mean
    return [
        Panel(
            f"Unfinished on the engines of {metrics.spoken(share.nodes)}",
            "short",
            "Requests that wait or run on each prefill engine.",
            (
                Line(
                    "{{instance}} {{engine}}{{dp_rank}}",
                    metrics.UNFINISHED + _selector("prefill", share.nodes),
                ),
                _plan(
                    "beta",
                    share.kind.beta_tokens / prompt,
                    "beta_tokens of an engine / mean prompt",
                    beta_tokens=share.kind.beta_tokens,
                    mean_prompt_tokens=prompt,
                ),
            ),
        )
        for share in figures.shares
        if share.kind.pool == "prefill"
    ]


def _alpha(figures: Figures) -> list[Panel]:
    hits = figures.plan.deployment.workload.hit_tokens.mean
    if not hits > 0:
        return []
    return [
        Panel(
            f"Waiting to be read on {metrics.spoken(share.nodes)}",
            "short",
            "Requests whose KV-cache is still to be loaded (vLLM only; those that wait for a hand-off "
            "count too).",
            (
                Line("{{node}}", metrics.READ_QUEUE + _selector("prefill", share.nodes)),
                _plan(
                    "alpha",
                    share.kind.alpha_tokens / hits,
                    "alpha_tokens of a node / mean hits",
                    alpha_tokens=share.kind.alpha_tokens,
                    mean_hit_tokens=hits,
                ),
            ),
        )
        for share in figures.shares
        if share.kind.pool == "prefill"
    ]


def _batch(figures: Figures) -> list[Panel]:
    found = []
    for share in figures.shares:
        batch = share.kind.decode_batch
        if share.kind.pool == "decode" and batch is not None:
            found.append(
                Panel(
                    f"Decoding on the engines of {metrics.spoken(share.nodes)}",
                    "short",
                    "Requests that each engine decodes at once.",
                    (
                        Line(
                            "{{instance}} {{engine}}{{dp_rank}}",
                            metrics.DECODING + _selector("decode", share.nodes),
                        ),
                        _plan("batch", batch, "decode batch at the plan's operating point"),
                    ),
                )
            )
    return found


def _load(figures: Figures) -> list[Panel]:
    plan, work = figures.plan, figures.plan.deployment.workload
    return [
        Panel(
            "Requests",
            "reqps",
            "Requests that arrive: those that end, and what the queues grow by.",
            (
                Line("arrive", metrics.REQUESTS),
                _plan(
                    "most", plan.throughput_requests_per_s, "throughput_requests_per_s of the plan"
                ),
                _plan(
                    "most without decode-side reads",
                    plan.throughput_basic_requests_per_s,
                    "throughput_basic_requests_per_s of the plan",
                ),
            ),
        ),
        Panel(
            "Prompt tokens that are hits",
            "percentunit",
            "With fewer hits there is more to compute than planned, with more of them more to read.",
            (
                Line("hits", metrics.HIT_RATE),
                _plan(
                    "hits",
                    work.hit_tokens.mean / work.prompt_tokens.mean,
                    "mean hits / mean prompt of the workload",
                ),
            ),
        ),
    ]


def _qos(asked: Asked) -> Panel:
    qos = qos_of(asked.plan)
    short = metrics.duration(metrics.RATE_S)

    def sent(lane: int) -> str:
        return f"sum by (node) (rate(node_ethtool_transmitted_prio{lane}_bytes[{short}]))"

    total = " + ".join(sent(lane.number) for lane in qos.lanes)
    return Panel(
        "KV-cache's share of what is sent (RoCE)",
        "percentunit",
        "Bytes of the KV-cache's priority / of all four. Above its line KV-cache uses what collectives "
        "leave idle. From node_exporter with --collector.ethtool, on NICs that count by priority; empty "
        "on InfiniBand, whose counters by lane no exporter of ours reads.",
        (
            Line("{{node}}", f"{sent(KV_LANE)} / ({total})"),
            _plan(
                "share while all send",
                percent_of(qos.low)[KV_LANE] / 100,
                "qos_kv_weight / weights of the four lanes, in whole percents",
                kv_weight=qos.kv,
                collective_weight=qos.collective,
            ),
        ),
    )


def _panels(found: Sequence[tuple[str, Sequence[Panel]]]) -> list[Document]:
    placed: list[Document] = []
    y = number = 0
    for title, panels in found:
        number += 1
        head = {"type": "row", "title": title, "id": number, "collapsed": False, "panels": []}
        placed.append(_layout({**head, "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1}}))
        y += 1
        across = min(3, len(panels))
        for at, panel in enumerate(panels):
            number += 1
            width = _WIDTH // across
            place = {
                "x": at % across * width,
                "y": y + at // across * _HEIGHT,
                "w": width,
                "h": _HEIGHT,
            }
            placed.append(_panel(panel, number, place))
        y += -(-len(panels) // across) * _HEIGHT
    return placed


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> Document:
    return {
        **_layout(
            {
                "type": "timeseries",
                "id": number,
                "title": panel.title,
                "description": panel.about,
                "datasource": _DATASOURCE,
                "gridPos": place,
                "fieldConfig": {
                    "defaults": {"unit": panel.unit, "min": 0, "custom": {"lineWidth": 1}},
                    "overrides": [_DASHED],
                },
                "options": {
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}
                },
            }
        ),
        "targets": [_query(line, at) for at, line in enumerate(panel.lines)],
    }


def _query(line: Line, at: int) -> dict[str, Document]:
    expression = (
        derived(line.expression, line.how, "", **line.inputs)
        if line.how
        else fixed(line.expression, "recorded by the rules of target prometheus")
    )
    return {
        **_layout(
            {"refId": chr(ord("A") + at), "datasource": _DATASOURCE, "legendFormat": line.legend}
        ),
        "expr": expression,
    }


def _layout(part: Any) -> Any:
    if isinstance(part, Mapping):
        return {key: _layout(value) for key, value in part.items()}
    if isinstance(part, list) and part:
        return [_layout(value) for value in part]
    return fixed(part, "layout of the dashboard")


def _digest(text: str) -> str:
    # the same scenario is the same dashboard, so that an import replaces it; at most 40 letters
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


_VARIABLE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Prometheus",
    "query": "prometheus",
    "skipUrlSync": False,
}
_DASHED = {
    "matcher": {"id": "byRegexp", "options": "/^plan: /"},
    "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}}],
}
_DROPPED = (
    Dropped(
        "alpha on decode nodes, quota, Z",
        "engines expose neither tokens to be read, nor attention time, nor tokens held",
        "they have no panel; full storage NICs and the split show when reads pile up",
    ),
)
_NOTES = (
    "The dashboard shows what the rules of target prometheus record; without them its panels are empty.",
    "The lines are this plan's; import the dashboard of a new plan over it (its uid stays the "
    "scenario's).",
)

TARGET = Target(
    name="grafana",
    software="Grafana",
    about="A dashboard with the plan's values as lines beside what the cluster does.",
    # the model of 10.1 and, by hand, that of 11.6 take the file without losing a key
    versions=("10.1.0",),
    expresses=(
        "storage NICs of each node against what they can read and what the plan reads",
        "split, TTFT and TPOT against x and the SLO",
        "queues against alpha and beta in requests; decode batch; load; hit rate; QoS share",
    ),
    cannot=(
        "it shows and sets nothing",
        "alpha on decode nodes, quota and Z, which engines do not expose",
    ),
    parser="no Grafana server is to be had here: grafana-foundation-sdk's model of Grafana 10.1 must "
    "give every key back, and promtool reads every expression",
    apply=(
        "Apply the files of target prometheus first.",
        "In Grafana: Dashboards, New, Import, upload `dashboard.json`; or put it into the folder of a "
        "dashboard provider under `/etc/grafana/provisioning/dashboards/`.",
        "Choose the Prometheus data source at the top of the dashboard.",
    ),
    check=("Every panel but QoS shows its lines and series once the rules have run for a minute.",),
    roll_back=("Delete the dashboard, or restore its former version under Settings, Versions.",),
    build=build,
)
