"""Alerts from a plan: what each compares with which of its values, and a series that must raise it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dualpath_model.deployment import NodeKind
from dualpath_model.export.plan_file import PlanFile
from dualpath_model.export.targets import _metrics as metrics
from dualpath_model.export.values import Scalar

_LEAST_FULL, _MOST_FULL = 0.95, 0.98


@dataclass(frozen=True, slots=True)
class Share:
    """Nodes of a kind, and what one of them should read. ``label`` tells kinds apart."""

    kind: NodeKind
    label: str
    weight: float
    used: float

    @property
    def nodes(self) -> list[str]:
        """Labels of the nodes."""
        return metrics.nodes_of(self.kind)


@dataclass(frozen=True)
class Figures:
    """The plan's values that alerts compare with, once."""

    plan: PlanFile

    @cached_property
    def window_s(self) -> int:
        """Window of all but the NICs' rates."""
        return metrics.window_s(self.plan.deployment, self.plan.throughput_requests_per_s)

    @cached_property
    def hold_s(self) -> int:
        """How long a rate must stay up: a burst lifts the mean of a window for one window; what is
        longer than that by the TTFT promise makes turns late.
        """
        step = metrics.SCRAPE_S
        return math.ceil((metrics.RATE_S + self.plan.deployment.ttft_s) / step) * step

    @cached_property
    def hit_bytes(self) -> float:
        """Bytes that storage delivers for a mean turn."""
        served = self.plan.deployment
        return served.workload.hit_tokens.mean * served.llm.read_bytes_per_token

    @cached_property
    def reads(self) -> float:
        """Bytes/s that all storage NICs read at the plan's rate, as its utilisations say."""
        return sum(share.used * share.kind.count for share in self.shares)

    @cached_property
    def capacity(self) -> float:
        """Bytes/s that all storage NICs can read."""
        return sum(
            kind.storage_read_bytes_per_s * kind.count for kind in self.plan.deployment.kinds
        )

    @cached_property
    def shares(self) -> tuple[Share, ...]:
        """Each kind of node: the most of its nodes' read weights, and bytes/s read in the plan."""
        weights = {(n.pool, n.node): n.read_weight for n in self.plan.scheduler_parameters.nodes}
        used = {
            (u.pool, u.node): u.dual_path
            for u in self.plan.utilisation
            if (u.resource, u.direction) == ("snic", "in")
        }
        found = []
        for pool in ("prefill", "decode"):
            for number, kind in enumerate(self.plan.deployment.pool(pool)):
                places = [(pool, position) for position in kind.positions]
                weight = max(weights.get(place, 0.0) for place in places)
                busy = max(used.get(place, 0.0) for place in places)
                rate = busy * kind.storage_read_bytes_per_s
                found.append(Share(kind, f"{pool}-{number}", weight, rate))
        return tuple(found)


@dataclass(frozen=True)
class Alert:
    """One alerting rule. ``{{ ... }}`` in ``summary`` and ``text`` are Prometheus' own. ``breaks``: the
    state of the cluster in which it fires, of a test; ``of``: labels and value of the series then.
    """

    name: str
    severity: str
    expression: str
    how: str
    hold_s: int
    summary: str
    text: str
    plan: str
    inputs: dict[str, Scalar]
    breaks: Mapping[str, object]
    of: tuple[Mapping[str, str], float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def annotations(self) -> dict[str, str]:
        """Return the annotations as the rule has them."""
        return {"summary": self.summary, "description": self.text, "plan": self.plan}


VALUE = '{{ printf "%.4g" $value }}'
NODE = "{{ $labels.node }}"


def alerts(plan: PlanFile) -> tuple[tuple[Alert, ...], tuple[str, ...]]:
    """Return the alerts, and a note for each that this plan has no need of."""
    figures = Figures(plan)
    found: list[Alert] = []
    notes: list[str] = []
    makers: tuple[Callable[[Figures], Iterator[Alert | str]], ...] = (
        _saturated,
        _imbalanced,
        _split,
        _late,
        _queued,
        _beyond,
    )
    for make in makers:
        for made in make(figures):
            if isinstance(made, Alert):
                found.append(made)
            else:
                notes.append(made)
    return tuple(found), tuple(notes)


def full_share(used: float) -> float:
    """Return the share of its rate from which a NIC counts as full: half way between what the plan uses
    and all, at least 0.95; at most 0.98, as a mean over a window hardly shows more.
    """
    return min(_MOST_FULL, max(_LEAST_FULL, (1 + used) / 2))


def _saturated(figures: Figures) -> Iterator[Alert]:
    for share in figures.shares:
        rate = share.kind.storage_read_bytes_per_s
        level = full_share(share.used / rate)
        nodes = metrics.spoken(share.nodes)
        yield Alert(
            name="DualPathStorageNicSaturated",
            severity="critical",
            expression=f"{metrics.READS}{_of(share)} > {rate * level:.6g}",
            how="storage read rate of the nodes x the share from which they count as full: half way "
            "between the plan's utilisation and 1, between 0.95 and 0.98",
            hold_s=figures.hold_s,
            summary=f"Storage NICs of {NODE} are full",
            text=f"{NODE} reads {VALUE} bytes/s from storage; hits wait for its NICs, turns get late.",
            plan=f"storage_read_bytes_per_s of {nodes}: {rate:.6g} bytes/s, full from {level:.3f} of it "
            f"on; the plan uses {share.used:.6g}",
            inputs={"storage_read_bytes_per_s": rate, "share": level, "used": share.used},
            breaks={"reads": {share.nodes[0]: rate}},
            of=({"pool": share.kind.pool, "node": share.nodes[0]}, rate),
            labels={"kind": share.label},
        )


def _imbalanced(figures: Figures) -> Iterator[Alert | str]:
    spare = metrics.tolerance(figures.plan.deployment)
    floor = figures.reads / 2
    if not floor > 0:
        yield "The plan reads nothing from storage, so there is no alert for balance."
        return
    window = metrics.duration(figures.window_s)
    for share in figures.shares:
        of_nics = share.kind.storage_read_bytes_per_s / figures.capacity
        # weights count reads, NICs count bytes: with traffic of several kinds they are not alike
        of_bytes = share.used / figures.reads
        most = max(share.weight, of_bytes, of_nics)
        nodes = metrics.spoken(share.nodes)
        raised = most * (1 + spare) * 1.1
        if raised >= 1:
            yield f"{nodes} should do {most:.3f} of all reads, so no alert tells when they do too many."
            continue
        mean = f"avg_over_time({metrics.READS}{{}}[{window}])".replace("{}", _of(share))
        total = f"sum(avg_over_time({metrics.READS}[{window}]))"
        # the other nodes keep the plan's total, in proportion to their NICs
        others = figures.capacity - share.kind.storage_read_bytes_per_s
        rest = figures.reads * (1 - raised) / others
        reads = {
            node: s.kind.storage_read_bytes_per_s * rest for s in figures.shares for node in s.nodes
        }
        yield Alert(
            name="DualPathStorageReadImbalance",
            severity="warning",
            expression=f"{mean} / on () group_left () {total} / {most:.6g} > {1 + spare:g} "
            f"and on () {total} > {floor:.6g}",
            how="a node's share of all reads / the greatest of its read weight, its bytes in the plan "
            "and its share of all storage NICs, against Z (at least 1.05); from half the plan's reads "
            "on, below which a window has too few",
            hold_s=figures.window_s,
            summary=f"{NODE} reads more than its share",
            text=f"{NODE} reads {VALUE} times its share of what all nodes read from storage.",
            plan=f"read_weight of {nodes}: {share.weight:.4g}, of all bytes {of_bytes:.4g}, of the "
            f"storage NICs {of_nics:.4g}; Z: {figures.plan.deployment.settings.z_factor:g}",
            inputs={
                "read_weight": share.weight,
                "byte_share": of_bytes,
                "nic_share": of_nics,
                "tolerance": spare,
            },
            breaks={"reads": {**reads, share.nodes[0]: figures.reads * raised}},
            of=({"pool": share.kind.pool, "node": share.nodes[0]}, raised / most),
            labels={"kind": share.label},
        )


def split_limits(figures: Figures) -> tuple[float, float]:
    """Return the least and the most split at which neither pool's storage NICs run over at the plan's
    rate; they are at least the tolerance of Z from the plan's split.
    """
    plan = figures.plan
    rates = {
        pool: sum(k.storage_read_bytes_per_s * k.count for k in plan.deployment.pool(pool))
        for pool in ("prefill", "decode")
    }
    if not figures.reads > 0:
        return 0.0, 1.0
    near = metrics.tolerance(plan.deployment) * plan.split
    low = min(1 - rates["prefill"] / figures.reads, plan.split - near)
    high = max(rates["decode"] / figures.reads, plan.split + near)
    return max(0.0, low), min(1.0, high)


def _split(figures: Figures) -> Iterator[Alert | str]:
    plan = figures.plan
    low, high = split_limits(figures)
    if low <= 0 and high >= 1:
        yield (
            f"The storage NICs serve the plan's rate at any split, so there is no alert for x = "
            f"{plan.split:.3f}; the dashboard shows it."
        )
        return
    broken = 0.0 if low > 0 else 1.0
    name, floor = metrics.SPLIT, plan.throughput_requests_per_s / 2
    yield Alert(
        name="DualPathSplitOffPlan",
        severity="warning",
        expression=f"({name} < {low:.6g} or {name} > {high:.6g}) "
        f"and on () {metrics.REQUESTS} > {floor:.6g}",
        how="range of splits in which the storage NICs of both pools keep up with the plan's reads, at "
        "least Z's tolerance around x; from half the plan's rate on",
        hold_s=figures.window_s,
        summary="The realised split is not the plan's",
        text=f"Decode nodes do {VALUE} of all storage reads.",
        plan=f"split x: {plan.split:.4f}; the storage NICs serve the plan's rate from {low:.4f} to "
        f"{high:.4f}",
        inputs={"split": plan.split, "low": low, "high": high, "read_bytes_per_s": figures.reads},
        breaks={"split": broken},
        of=({}, broken),
    )


def _late(figures: Figures) -> Iterator[Alert]:
    served = figures.plan.deployment
    for what, series, share, slo, severity in (
        ("TTFT", metrics.TTFT_P90, 0.9, served.ttft_s, "critical"),
        ("TTFT", metrics.TTFT_P99, 0.99, served.ttft_s, "warning"),
        ("TPOT", metrics.TPOT_P90, 0.9, served.tpot_s, "critical"),
    ):
        percentile = f"p{share * 100:.0f}"
        yield Alert(
            name=f"DualPath{what.title()}{percentile.upper()}AboveSlo",
            severity=severity,
            expression=f"{series} > {slo:.6g}",
            how=f"slo.{what.lower()} of the scenario",
            hold_s=figures.hold_s,
            summary=f"{percentile} of {what} is above the SLO",
            text=f"{percentile} of {what} is {VALUE} s.",
            plan=f"SLO of {what}: {slo:g} s",
            inputs={f"{what.lower()}_s": slo},
            breaks={what.lower(): True},
            # all requests in the bucket from the SLO to twice the SLO, which quantiles interpolate
            of=({}, slo * (1 + share)),
        )


def _queued(figures: Figures) -> Iterator[Alert | str]:
    prompt = figures.plan.deployment.workload.prompt_tokens.mean
    for share in figures.shares:
        if share.kind.pool != "prefill":
            continue
        most = max(1, math.floor(share.kind.beta_tokens / prompt))
        node = share.nodes[0]
        yield Alert(
            name="DualPathPrefillQueueBeyondBeta",
            severity="warning",
            expression=f"{metrics.UNFINISHED}{_of(share)} > {most}",
            how="beta in requests: beta_tokens of an engine / mean prompt, rounded down; engines count "
            "requests and not their tokens",
            hold_s=figures.hold_s,
            summary=f"A prefill engine of {NODE} has more than beta",
            text=f"An engine of {NODE} has {VALUE} unfinished requests.",
            plan=f"beta: {share.kind.beta_tokens:.6g} tokens an engine, {most} requests of "
            f"{prompt:.6g} tokens",
            inputs={"beta_tokens": share.kind.beta_tokens, "mean_prompt_tokens": prompt},
            breaks={"unfinished": {node: 2 * most}},
            of=(
                {"pool": "prefill", "node": node, "instance": f"{node}:8000", "engine": "0"},
                2.0 * most,
            ),
            labels={"kind": share.label},
        )


def _beyond(figures: Figures) -> Iterator[Alert]:
    rate = figures.plan.throughput_requests_per_s
    yield Alert(
        name="DualPathLoadBeyondPlan",
        severity="warning",
        expression=f"{metrics.REQUESTS} > {rate:.6g}",
        how="throughput_requests_per_s of the plan",
        hold_s=figures.hold_s,
        summary="More requests arrive than the plan serves",
        text=f"{VALUE} requests/s arrive; make a plan for more nodes.",
        plan=f"throughput_requests_per_s: {rate:.6g}",
        inputs={"throughput_requests_per_s": rate},
        breaks={"requests": 1.25 * rate},
        of=({}, 1.25 * rate),
    )


def _of(share: Share) -> str:
    # the label tells the rule's own pool and nodes; node labels are ours, so they need no escape
    return f'{{pool="{share.kind.pool}",node=~{metrics.one_of(share.nodes)}}}'
