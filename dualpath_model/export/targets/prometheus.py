"""Prometheus: recording rules, alerts that compare with the plan, their tests, and what to scrape."""

from __future__ import annotations

from dataclasses import replace

from dualpath_model.export.documents import File, yaml_file
from dualpath_model.export.site import bracketed, host, of_fields, port
from dualpath_model.export.target import Asked, Bundle, Dropped, Target
from dualpath_model.export.targets import _metrics as metrics
from dualpath_model.export.targets._alert_tests import test_document
from dualpath_model.export.targets._alerts import Alert, Figures, alerts
from dualpath_model.export.targets._vllm_layout import servers
from dualpath_model.export.values import Document, Value, derived, fixed

RULES = "dualpath.rules.yml"
_ENGINES = "vLLM 0.33.0 and SGLang 0.5.23"


def build(asked: Asked) -> Bundle:
    """Return the rules, their tests and the scrape configuration."""
    figures = Figures(asked.plan)
    found, notes = alerts(asked.plan)
    device = metrics.interfaces(asked.deployment, asked.site)[0]
    tests = yaml_file(
        "dualpath.test.yml",
        "tests of the rules for `promtool test rules`: each alert is raised once, the plan raises none",
        test_document(RULES, found, figures, device),
        head=(f"For promtool {asked.version}; made from the same plan as the rules",),
    )
    files = (_rules(asked, found, figures), tests, _scrapes(asked))
    return Bundle(files, _dropped(asked), (*notes, *_notes(asked, figures)))


def _rules(asked: Asked, found: tuple[Alert, ...], figures: Figures) -> File:
    step = fixed(metrics.duration(metrics.SCRAPE_S), "as the scrapes")
    window = metrics.duration(figures.window_s)
    interfaces = ",".join(metrics.interfaces(asked.deployment, asked.site))
    recording: list[Document] = [
        {
            "record": fixed(rule.name, "name that the alerts and the dashboard use"),
            "expr": replace(
                derived(
                    rule.expression,
                    f"{rule.about}; rates over {metrics.duration(metrics.RATE_S)}, the rest over "
                    f"{window}",
                    rule.unit,
                    interfaces=interfaces,
                ),
                site=metrics.interface_fields(asked.deployment),
            ),
        }
        for rule in metrics.recorded(asked.deployment, asked.site, figures.window_s)
    ]
    return yaml_file(
        RULES,
        "recording rules, and alerts that say which value of the plan they compare with",
        {
            "groups": [
                {
                    "name": fixed("dualpath-recorded", "what the engines and nodes show"),
                    "interval": step,
                    "rules": recording,
                },
                {
                    "name": fixed("dualpath-alerts", "what departs from the plan"),
                    "interval": step,
                    "rules": [_alert(alert) for alert in found],
                },
            ]
        },
        head=(
            f"For Prometheus {asked.version}; metrics of {_ENGINES} and node_exporter",
            f"Scenario: {asked.plan.scenario}",
        ),
    )


def _alert(alert: Alert) -> dict[str, Document]:
    return {
        "alert": fixed(alert.name, "name of the alert"),
        "expr": derived(alert.expression, alert.how, "", **alert.inputs),
        "for": derived(
            metrics.duration(alert.hold_s),
            "a window of its rates (a burst lifts them for so long) and, where turns get late, the TTFT "
            "SLO, in whole evaluations",
        ),
        "labels": {
            name: fixed(text, "severity; kind: pool and number of the kind of node")
            for name, text in {"severity": alert.severity, **alert.labels}.items()
        },
        "annotations": {
            name: derived(text, "what the alert says", "", **alert.inputs)
            for name, text in alert.annotations().items()
        },
    }


def _scrapes(asked: Asked) -> File:
    nodes, engines = [], []
    numbers: dict[tuple[str, int], list[int]] = {}
    for server in servers(asked.deployment):  # one a node, or one for each part of it
        place = (server.pool, server.position)
        numbers.setdefault(place, []).append(port(asked.site, "server", server.number))
    for kind in asked.deployment.kinds:
        for position in kind.positions:
            labels = {
                "pool": derived(kind.pool, "pool of the node"),
                "node": derived(
                    metrics.node_label(kind.pool, position), "the node in the scheduler's file"
                ),
            }
            exporter = [asked.site.ports.node_exporter]
            nodes.append(_target(asked, kind.pool, position, "node_exporter", exporter, labels))
            listening = numbers[kind.pool, position]
            engines.append(_target(asked, kind.pool, position, "server", listening, labels))
    step = fixed(
        metrics.duration(metrics.SCRAPE_S),
        "the rules' windows are made for this; change none alone",
    )
    return yaml_file(
        "prometheus.yml",
        "what to scrape, with the labels that the rules need; take `scrape_configs` into your own file",
        {
            "global": {"scrape_interval": step, "evaluation_interval": step},
            "rule_files": [fixed(RULES, "the rules beside this file")],
            "scrape_configs": [
                {"job_name": fixed("dualpath-nodes", "node_exporter"), "static_configs": nodes},
                {
                    "job_name": fixed("dualpath-engines", "vLLM or SGLang (--enable-metrics)"),
                    "metrics_path": fixed("/metrics", "path of both engines"),
                    "static_configs": engines,
                },
            ],
        },
        head=(f"For Prometheus {asked.version}: a fragment that is also a whole configuration",),
    )


def _target(
    asked: Asked, pool: str, position: int, field: str, ports: list[int], labels: dict[str, Value]
) -> dict[str, Document]:
    name = bracketed(str(host(asked.site, pool, position).value))
    return {
        "targets": of_fields(
            asked.site,
            (f"hosts.{pool}", f"ports.{field}"),
            [f"{name}:{number}" for number in ports],
        ),
        "labels": labels,
    }


def _dropped(asked: Asked) -> tuple[Dropped, ...]:
    deployment = asked.deployment
    alpha = min(kind.alpha_tokens for kind in deployment.kinds)
    return (
        Dropped(
            f"alpha: {alpha:.4g} tokens to be read",
            "no engine exposes how many tokens wait to be read on a node; vLLM counts the requests that "
            "wait for KV-cache, which the dashboard shows",
            f"no alert on read queues; a NIC that is full for much longer than alpha's "
            f"{deployment.alpha_s:g} s shows as saturated",
        ),
        Dropped(
            "beta in tokens",
            "engines count unfinished requests, not their tokens",
            "the alert counts requests of the mean prompt; with long prompts alone it is late",
        ),
        Dropped(
            f"quota of {deployment.quota_s:g} s of attention, Z on an engine's tokens",
            "no engine exposes the attention time of a batch or the tokens that it holds",
            "neither is watched; Z judges the balance of storage reads instead",
        ),
    )


def _notes(asked: Asked, figures: Figures) -> tuple[str, ...]:
    slo = asked.deployment.ttft_s
    device = ", ".join(metrics.interfaces(asked.deployment, asked.site))
    return (
        f"The rules look at the interfaces {device}: without storage_interfaces in the site file these "
        f"names are invented, and where no NIC is called so every alert on storage stays silent.",
        "node_network_receive_bytes_total does not count RDMA on every NIC; where it stays at 0 while "
        "hits are loaded, put node_infiniband_port_data_received_bytes_total (device: mlx5_0, ...) and "
        "its twin for transmitted bytes into the two recording rules of storage bytes.",
        "A NIC that carries other traffic too counts that as reads.",
        "The engines scraped are the servers of `dualpath export vllm`; SGLang serves on the first node "
        "of each of its servers only, so take the other nodes out of dualpath-engines for it.",
        f"Percentiles are interpolated inside of the engines' buckets; for an SLO of {slo:g} s give "
        f"vLLM a bucket that ends there, or read values near it with care.",
        "vLLM before 0.33 was not looked at; without vllm:kv_offload_tiering_read_bytes_total (tiering "
        "offload) and without SGLang's prefetched tokens there is no realised split, and its alert is "
        "silent.",
        "vllm:kv_offload_load_bytes has no label for the medium: it counts what CPU memory gives to the "
        "GPU, wherever it came from, so the split is taken from the tiers.",
        f"Balance, split and percentiles are judged over {metrics.duration(figures.window_s)}: so long "
        f"that chance moves a node's number of reads by a third of Z's tolerance, at half the plan's "
        f"rate (at least 5 minutes, at most an hour).",
    )


TARGET = Target(
    name="prometheus",
    software="Prometheus",
    about="Recording rules, alerts that compare with the plan's values, their tests and scrapes.",
    # the only version that Debian 12 has; rule and test files have had these keys since 2.0
    versions=("2.42.0",),
    expresses=(
        "storage NICs that are full, per kind of node",
        "balance of storage reads against read weights and Z",
        "realised split against x; TTFT and TPOT against the SLO",
        "prefill queues against beta (in requests); arrivals against the plan's throughput",
    ),
    cannot=("alpha, quota: engines do not expose what they limit", "it watches and sets nothing"),
    parser="promtool 2.42.0: `check rules`, `test rules`, `check config`; metric names against the "
    "sources of vLLM 0.33.0 and SGLang 0.5.23",
    apply=(
        "Check here: `promtool check rules dualpath.rules.yml`, `promtool test rules "
        "dualpath.test.yml`, `promtool check config prometheus.yml`.",
        "Run node_exporter on every node; start SGLang with `--enable-metrics` (vLLM exposes metrics by "
        "itself).",
        "Copy `dualpath.rules.yml` to `/etc/prometheus/`, name it under `rule_files` of "
        "`/etc/prometheus/prometheus.yml`, and add the two entries of `scrape_configs`.",
        "`promtool check config /etc/prometheus/prometheus.yml`, then `systemctl reload prometheus`.",
    ),
    check=(
        "`promtool query instant http://localhost:9090 dualpath:storage_read_bytes_per_second` lists "
        "every node once a minute has passed.",
        "`promtool query instant http://localhost:9090 'ALERTS{alertname=~\"DualPath.*\"}'` lists "
        "nothing while the plan holds.",
    ),
    roll_back=(
        "Take the line under `rule_files` and the two jobs out again, and "
        "`systemctl reload prometheus`.",
    ),
    build=build,
)
