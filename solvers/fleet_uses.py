"""What one node of a kind does in a role: the uses from which the integer program is made.

A node's uses do not depend on the other nodes, but for one thing: experts are spread over GPUs of the
whole pool (:func:`dualpath_model.loads.expert_degree`), and over how many decides what a decode node
has left for KV-cache. An :class:`Option` therefore is a kind in a role at one expert degree, which may
be used where the pool has at least that many GPUs. The degrees are all that a pool of these kinds can
come to, so the program and :func:`solvers.plan` on its answer mean the same; where that were more than
:data:`MOST_DEGREES`, some are left out, and the program promises a little less than the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dualpath_model.cluster import Node
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.loads import (
    Demand,
    RequestMeans,
    decode_point,
    expert_degree,
    hbm_space,
    node_load,
    request_movement,
)
from dualpath_model.paths import Key, Pool
from dualpath_model.scenario import Scenario
from solvers.fleet_pace import node_share
from solvers.fleet_question import Array, Question
from solvers.problem import PATHS, POOLS

MOST_DEGREES = 12
_MANY_GPUS = 1 << 20


@dataclass(frozen=True)
class Option:
    """A kind in a role at one expert degree, allowed from ``least_gpus`` GPUs in the pool.

    ``use`` (cases, rows, classes, paths): share of one node that a request/s takes; each row is a
    capacity, and rows that another one always exceeds are left out.
    """

    kind: int
    pool: Pool
    least_gpus: int
    use: Array


@dataclass(frozen=True)
class Uses:
    """All options; ``shared`` (cases, rows, classes, paths) is what a request/s takes of the cluster.

    ``reasons``: why a kind has no option in a role.
    """

    options: tuple[Option, ...]
    shared: Array
    shared_names: tuple[str, ...]
    reasons: dict[tuple[int, Pool], str]
    decode_reads: bool

    def of(self, kind: int, pool: Pool) -> list[int]:
        """Return the numbers of a kind's options in a role, by degree."""
        return [i for i, o in enumerate(self.options) if (o.kind, o.pool) == (kind, pool)]

    def can(self, kind: int, pool: Pool) -> bool:
        """Return whether a kind has an option in a role."""
        return bool(self.of(kind, pool))


def uses_of(question: Question) -> Uses:
    """Return the options of every kind. Raises InfeasibleError if no kind can do a role."""
    options: list[Option] = []
    reasons: dict[tuple[int, Pool], str] = {}
    for pool in POOLS:
        step = math.gcd(*(k.node.gpus for k in question.kinds if pool in k.roles))
        for number, kind in enumerate(question.kinds):
            if pool not in kind.roles or kind.maximum == 0:
                continue
            found, why = _options(question, number, pool, step)
            options += found
            if not found:
                reasons[number, pool] = why
        if not any(option.pool is pool for option in options):
            words = "; ".join(
                f"{question.kinds[k].name}: {why}" for (k, p), why in reasons.items() if p is pool
            )
            raise InfeasibleError(f"no kind of node can do {pool}: {words}")
    shared, names = _shared(question)
    reads = question.scenario.serving.table.splits
    return Uses(tuple(options), shared, names, reasons, reads)


def _options(question: Question, number: int, pool: Pool, step: int) -> tuple[list[Option], str]:
    node = question.kinds[number].node
    found: list[Option] = []
    why = ""
    for degree in _degrees(question.scenario, node, pool, step):
        try:
            _check_longest(question, node, pool, degree)
            use = np.array([_use(case.scenario, node, pool, degree) for case in question.cases])
            if question.software and pool is Pool.DECODE:
                use = np.concatenate((use, _paced(question, node, degree)), axis=1)
        except InfeasibleError as error:
            why = str(error)
            continue
        if found and np.all(use >= found[-1].use * (1.0 - 1e-12)):
            continue  # more GPUs, and nothing gained
        found.append(Option(number, pool, degree, use))
    return [replace(o, use=_needed_rows(o.use)) for o in found], why


def _degrees(scenario: Scenario, node: Node, pool: Pool, step: int) -> list[int]:
    """Return the GPUs over which the experts may be spread, fewest first."""
    serving = scenario.serving
    parallelism = serving.prefill if pool is Pool.PREFILL else serving.decode
    llm, efficiencies = scenario.llm, scenario.efficiencies
    if parallelism.expert or not llm.ffn.experts:
        return [max(parallelism.expert, parallelism.tensor, node.gpus)]
    low, high = node.gpus, _MANY_GPUS
    most = expert_degree(llm, node, parallelism, efficiencies, high)
    if most == high:  # the weights that are not experts fill half the HBM: no degree is enough
        most = max(low, llm.ffn.experts)
    degrees = list(range(low, most, step))
    if len(degrees) >= MOST_DEGREES:
        picked = np.linspace(0, len(degrees) - 1, MOST_DEGREES - 1).round().astype(int)
        degrees = [degrees[i] for i in dict.fromkeys(picked.tolist())]
    return [*degrees, most]


def _use(scenario: Scenario, node: Node, pool: Pool, degree: int) -> Array:
    """Return what a request/s of each class takes of each capacity, (rows, classes, paths)."""
    serving, llm, efficiencies = scenario.serving, scenario.llm, scenario.efficiencies
    parallelism = serving.prefill if pool is Pool.PREFILL else serving.decode
    hbm_space(llm, node, parallelism, efficiencies, degree)  # raises if it does not fit
    by_class: list[dict[Key, tuple[float, float]]] = []
    for means in scenario.class_means:
        point = (
            decode_point(llm, means, node, serving, scenario.slo, efficiencies, degree)
            if pool is Pool.DECODE
            else None
        )
        load = node_load(
            pool,
            node,
            (0,),
            request_movement(llm, means, serving),
            llm,
            means,
            serving,
            efficiencies,
            degree,
            point,
            scenario.limits,
        )
        by_class.append(_shares(load.demand, load.capacity, node.name))
    keys = list(dict.fromkeys(key for shares in by_class for key in shares))
    return np.array([[shares.get(key, (0.0, 0.0)) for shares in by_class] for key in keys]).reshape(
        len(keys), len(by_class), PATHS
    )


def _check_longest(question: Question, node: Node, pool: Pool, degree: int) -> None:
    """Raise InfeasibleError if the longest turn of a case does not fit one engine, or its prompt the
    node's DRAM buffer: means do not show it, and no scheduler can help it.
    """
    for case in question.cases:
        serving, llm = case.scenario.serving, case.scenario.llm
        loads = [c.workload for c in case.scenario.classes]
        token = llm.kv_bytes_per_token(serving.kv_dtype)
        prompt = max(float(w.prompt_tokens.max()) for w in loads)
        if node.buffer_bytes is not None and prompt * token > node.buffer_bytes:
            raise InfeasibleError(
                f"the longest prompt, {prompt:,.0f} tokens in '{case.name}', does not fit the DRAM "
                f"buffer of {node.name}"
            )
        if pool is not Pool.DECODE:
            continue
        whole = max(float((w.prompt_tokens + w.output_tokens).max()) for w in loads)
        tensor = serving.decode.tensor
        free = hbm_space(llm, node, serving.decode, case.scenario.efficiencies, degree) * tensor
        if whole * token * llm.replication(tensor) > free:
            raise InfeasibleError(
                f"the longest turn, {whole:,.0f} tokens in '{case.name}', does not fit a decode engine "
                f"of {node.name}"
            )


def _paced(question: Question, node: Node, degree: int) -> Array:
    """Return what a request/s of each class takes of a node at the TPOT, (cases, 1, classes, paths)."""
    shares = [
        [node_share(case.scenario, means, node, degree) for means in case.scenario.class_means]
        for case in question.cases
    ]
    return np.repeat(np.array(shares)[:, None, :, None], PATHS, axis=3)


def _shares(
    demand: Demand, capacity: Mapping[Key, float], name: str
) -> dict[Key, tuple[float, float]]:
    ends = demand.at(0.0), demand.at(1.0)
    found = {}
    for key, rate in capacity.items():
        amounts = float(ends[0].get(key, 0.0)), float(ends[1].get(key, 0.0))
        if max(amounts) > 0 and not rate > 0:
            raise InputError(
                f"{key} of {name} has the capacity {rate:g}, which serves nothing; give its rate or "
                f"leave the kind out"
            )
        found[key] = (amounts[0] / rate, amounts[1] / rate) if rate > 0 else (0.0, 0.0)
    return found


def _needed_rows(use: Array) -> Array:
    """Leave out capacities that another one exceeds in every case, for every class and path."""
    rows = use.shape[1]
    flat = use.transpose(1, 0, 2, 3).reshape(rows, -1)
    kept: list[int] = []
    for r in np.argsort(-flat.sum(axis=1), kind="stable").tolist():
        if flat[r].any() and not any(np.all(flat[r] <= flat[k]) for k in kept):
            kept.append(r)
    return use[:, sorted(kept)]


def _shared(question: Question) -> tuple[Array, tuple[str, ...]]:
    scenario = question.scenario
    capacity = {
        k: rate for k, rate in scenario.cluster.capacity().items() if k.resource in scenario.limits
    }
    use = np.zeros((len(question.cases), len(capacity), len(scenario.classes), PATHS))
    for s, case in enumerate(question.cases):
        for k, means in enumerate(case.scenario.class_means):
            shares = _shares(_cluster_demand(case.scenario, means), capacity, "the cluster")
            for row, key in enumerate(capacity):
                use[s, row, k] = shares[key]
    return use, tuple(f"{key.resource} {key.direction}" for key in capacity)


def _cluster_demand(scenario: Scenario, means: RequestMeans) -> Demand:
    return request_movement(scenario.llm, means, scenario.serving).only(Pool.CLUSTER)
