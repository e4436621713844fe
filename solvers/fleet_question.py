"""The question behind a purchase order, with everything looked up: kinds, traffic, limits.

A *kind* is a machine that may be had, a *role* the pool it works in, a *case* one way in which the
forecast may come true (the forecast itself is the first). Counts are integer arrays of shape
(kinds, 2), prefill first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dualpath_model.catalog.nodes import load_node
from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario, ScenarioSpec, WorkloadClass, resolve
from dualpath_model.scheduler.policies import policy_named
from dualpath_model.workload import Workload, scaled
from dualpath_model.yaml_lines import Document
from solvers.fleet_spec import (
    CaseSpec,
    FleetSpec,
    KindSpec,
    PoolMarginsSpec,
    located,
    read_fleet,
)
from solvers.problem import POOLS

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

FORECAST = "forecast"
"""The name of the case in which everything comes as the file says."""


@dataclass(frozen=True)
class Kind:
    """A machine that may be had. Prices in USD/h of one node; ``maximum`` None: no bound."""

    name: str
    node: Node
    roles: frozenset[Pool]
    price: float
    owned: int = 0
    owned_price: float = 0.0
    minimum: int = 0
    maximum: int | None = None
    power_kw: float | None = None
    per_rack: int | None = None
    place: str | None = None


@dataclass(frozen=True)
class Limits:
    """What all nodes together may take up (None: no limit), and how many may be lost."""

    budget: float | None = None
    power_kw: float | None = None
    racks: int | None = None
    nodes: int | None = None
    kinds: int | None = None
    survive: int = 0
    kinds_per_role: int | None = None
    places: int | None = 1


@dataclass(frozen=True)
class Case:
    """One way in which the forecast comes true. ``factors`` (classes,) are on the rates.

    ``scenario`` has the workloads of the case and a cluster that does not count.
    """

    name: str
    factors: Array
    scenario: Scenario


@dataclass(frozen=True)
class Question:
    """Which fleet? ``share`` (nan: none) and ``fixed`` (0: none) are (classes,), growth included.

    ``required``: requests/s that the classes with a share serve together before growth; None: as many
    as ``limits.budget`` buys. ``margins``: share of the LP's rate of each pool, prefill first, that
    counts as served within the SLO; ``measured``: they are to be found by simulation. ``software``:
    decode nodes are counted with what engines add to each step (:mod:`solvers.fleet_pace`).
    """

    name: str
    description: str
    kinds: tuple[Kind, ...]
    cases: tuple[Case, ...]
    share: Array
    fixed: Array
    required: float | None
    margins: tuple[float, float]
    measured: bool
    limits: Limits
    policy: str = "dualpath"
    software: bool = True

    @property
    def scenario(self) -> Scenario:
        """The forecast's scenario; its cluster does not count."""
        return self.cases[0].scenario

    @property
    def grows(self) -> bool:
        """Whether a class has a share, so that the required rate means something."""
        return bool((~np.isnan(self.share)).any())

    @cached_property
    def sessions_per_request(self) -> float:
        """Sessions that begin for each request of the classes with a share, before growth."""
        return _sessions_per_request(self.scenario.classes, self.share)

    def rates(self, case: Case, required: float) -> Array:
        """Return requests/s of each class in a case, (classes,)."""
        return case.factors * (np.nan_to_num(self.share) * required + self.fixed)

    def with_limits(self, **changes: Any) -> Question:
        """Return the question with some of its limits changed."""
        return replace(self, limits=replace(self.limits, **changes))

    def with_kind(self, index: int, **changes: Any) -> Question:
        """Return the question with one kind changed."""
        kinds = list(self.kinds)
        kinds[index] = replace(kinds[index], **changes)
        return replace(self, kinds=tuple(kinds))

    def cluster(self, counts: Counts) -> Cluster:
        """Return the cluster of these counts. Raises InputError if a pool is empty."""
        pools = [
            tuple(
                node
                for kind, count in zip(self.kinds, counts[:, p], strict=True)
                for node in [kind.node] * int(count)
            )
            for p in range(len(POOLS))
        ]
        return replace(self.scenario.cluster, prefill=pools[0], decode=pools[1])

    def on(self, case: Case, counts: Counts, required: float) -> Scenario:
        """Return the scenario of a case on these nodes, its classes in proportion to their rates."""
        rates = self.rates(case, required)
        classes = tuple(
            replace(c, share=float(rate / rates.sum()), rate=None)
            for c, rate in zip(case.scenario.classes, rates, strict=True)
        )
        found = replace(case.scenario, classes=classes).on(self.cluster(counts))
        found.__dict__["class_means"] = case.scenario.class_means  # as above, computed once
        return found

    def cost(self, counts: Counts) -> float:
        """Return USD/h of these counts: owned nodes first, where they are the cheaper ones."""
        total = 0.0
        for kind, count in zip(self.kinds, counts.sum(axis=1).tolist(), strict=True):
            own = min(count, kind.owned) if kind.owned_price <= kind.price else 0
            total += own * kind.owned_price + (count - own) * kind.price
        return total


def load_question(path: str | Path) -> Question:
    """Read a fleet file. Paths inside it are relative to its folder. Raises InputError."""
    spec, document = read_fleet(Path(path))
    return question_of(spec, Path(path).parent, document)


def question_of(spec: FleetSpec, base_dir: Path, document: Document | None = None) -> Question:
    """Look up everything that ``spec`` names. Raises InputError with file, line and field."""
    kinds = tuple(_kind(part, i, base_dir, document) for i, part in enumerate(spec.kinds))
    _check_kinds(spec, kinds, document)
    scenario = _template(spec, base_dir, document)
    parts = spec.classes or []
    share = np.array([math.nan if c.share is None else c.share for c in parts] or [1.0])
    fixed = np.array([c.requests_per_s or 0.0 for c in parts] or [0.0])
    growth = np.array([c.growth for c in parts] or [spec.growth])
    forecast = Case(FORECAST, np.ones(len(share)), scenario)
    required = None if spec.require is None else spec.require.requests_per_s
    if spec.require is not None and spec.require.sessions_per_s is not None:
        required = spec.require.sessions_per_s / _sessions_per_request(scenario.classes, share)
    if spec.require is None and not any(c.share is not None for c in parts) and parts:
        required = 0.0  # the fixed rates are all that is asked
    limits = spec.limits
    return Question(
        name=spec.name,
        description=spec.description,
        kinds=kinds,
        cases=(forecast, *(_case(case, forecast, spec, document) for case in spec.scenarios)),
        share=share * growth,
        fixed=fixed * growth,
        required=required,
        margins=_margins(spec),
        measured=spec.margin == "simulated",
        policy=_policy(spec, document),
        software=spec.software,
        limits=Limits(
            limits.budget_usd_per_hour,
            limits.power_kw,
            limits.racks,
            limits.nodes,
            limits.kinds,
            limits.survive,
            limits.kinds_per_role,
            limits.places,
        ),
    )


def margin_words(margins: tuple[float, float]) -> str:
    """Say the margins of both pools, as one number where they are the same."""
    prefill, decode = margins
    if prefill == decode:
        return f"{prefill:.3g}"
    return f"{prefill:.3g} (prefill) and {decode:.3g} (decode)"


def _margins(spec: FleetSpec) -> tuple[float, float]:
    if spec.margin == "simulated":
        return 1.0, 1.0
    if isinstance(spec.margin, PoolMarginsSpec):
        return spec.margin.prefill, spec.margin.decode
    return spec.margin, spec.margin


def _policy(spec: FleetSpec, document: Document | None) -> str:
    try:
        return policy_named(spec.policy).name
    except InputError as error:
        raise located(document, ("policy",), str(error)) from None


def _sessions_per_request(classes: tuple[WorkloadClass, ...], share: Array) -> float:
    turns = np.array([c.workload.turns / c.workload.session_count for c in classes])
    known = np.nan_to_num(share)
    return float((known / turns).sum() / known.sum()) if known.any() else math.nan


def _kind(spec: KindSpec, index: int, base_dir: Path, document: Document | None) -> Kind:
    place = ("kinds", index)
    try:
        node = load_node(spec.node, base_dir)
    except InputError as error:
        raise located(document, (*place, "node"), str(error)) from None
    name = spec.name or node.name
    price = node.price_usd_per_hour if spec.price_usd_per_hour is None else spec.price_usd_per_hour
    if price is None:
        if spec.maximum is None or spec.maximum > spec.owned:
            raise located(
                document,
                place,
                f"{name} has no price in the catalog; give price_usd_per_hour, or a maximum of at most "
                f"what is owned",
            )
        price = spec.owned_price_usd_per_hour
    return Kind(
        name=name,
        node=replace(node, name=name, price_usd_per_hour=price),
        roles=frozenset(map(Pool, spec.roles)),
        price=price,
        owned=spec.owned,
        owned_price=spec.owned_price_usd_per_hour,
        minimum=spec.minimum,
        maximum=spec.maximum,
        power_kw=spec.power_kw,
        per_rack=spec.nodes_per_rack,
        place=spec.place,
    )


def _check_kinds(spec: FleetSpec, kinds: tuple[Kind, ...], document: Document | None) -> None:
    first: dict[str, int] = {}
    for index, kind in enumerate(kinds):
        if kind.name in first:
            raise located(
                document,
                ("kinds", index),
                f"kind '{kind.name}' is given twice; give each a name of its own",
            )
        first[kind.name] = index
        for limit, field, what in (
            (spec.limits.power_kw, "power_kw", kind.power_kw),
            (spec.limits.racks, "nodes_per_rack", kind.per_rack),
        ):
            if limit is not None and what is None:
                raise located(
                    document,
                    ("kinds", index),
                    f"{kind.name} has no {field}, which the limit needs; give it, or drop the limit",
                )
    for pool in POOLS:
        if not any(pool in kind.roles and kind.maximum != 0 for kind in kinds):
            raise located(
                document,
                ("kinds",),
                f"no kind may do {pool}; give one the role {pool} in its roles",
            )


def _template(spec: FleetSpec, base_dir: Path, document: Document | None) -> Scenario:
    """Return the scenario of the forecast on one node of each kind, so that all is checked and read."""
    cluster: dict[str, Any] = {"storage": spec.storage, "fabric": spec.fabric}
    for role in ("prefill", "decode"):
        nodes = [kind.node for kind in spec.kinds if role in kind.roles]
        expert = getattr(spec.parallelism, role).expert
        counts = [max(1, expert)] + [1] * len(nodes)  # so many that an expert degree fits
        cluster[role] = [{"node": node, "count": n} for node, n in zip(nodes, counts, strict=False)]
    named: Mapping[str, Any] = {
        "name": spec.name,
        "llm": spec.llm,
        "kv_dtype": spec.kv_dtype,
        "framework": spec.framework,
        "cluster": cluster,
        "parallelism": spec.parallelism,
        "workload": spec.workload,
        "classes": None
        if spec.classes is None
        else [
            {
                "name": c.name,
                "workload": c.workload,
                "share": c.share,
                "requests_per_s": c.requests_per_s,
            }
            for c in spec.classes
        ],
        "slo": spec.slo,
        "efficiencies": spec.efficiencies,
        "traffic": spec.traffic,
        "scheduler": spec.scheduler,
        "limits": spec.resources,
    }
    return resolve(ScenarioSpec.model_validate(named), base_dir, document)


def changed(forecast: Case, spec: CaseSpec) -> Case:
    """Return the forecast as a case changes it. Raises InputError for lengths that cannot be."""
    scenario = forecast.scenario
    factors = forecast.factors * [
        spec.rate * spec.classes.get(c.name, 1.0) for c in scenario.classes
    ]
    lengths = (spec.context, spec.append, spec.generate, spec.hit_rate)
    if lengths == (1.0, 1.0, 1.0, 1.0):
        return Case(spec.name, factors, scenario)

    def scale(workload: Workload) -> Workload:
        longer = scaled(workload, context=spec.context, append=spec.append, generate=spec.generate)
        if spec.hit_rate == 1.0 or not longer.hit_rate:
            return longer
        return scaled(longer, hit_rate=spec.hit_rate * longer.hit_rate)

    classes = tuple(replace(c, workload=scale(c.workload)) for c in scenario.classes)
    return Case(spec.name, factors, replace(scenario, classes=classes))


def _case(case: CaseSpec, forecast: Case, spec: FleetSpec, document: Document | None) -> Case:
    try:
        return changed(forecast, case)
    except InputError as error:
        index = [part.name for part in spec.scenarios].index(case.name)
        raise located(document, ("scenarios", index), str(error)) from None
