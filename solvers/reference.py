"""The LP as one would write it on paper, in PuLP: the readable reference, on HiGHS or CBC.

It is built from the same uses as the matrix but by itself, so that each checks the other. Columns and
rows come in the matrix's order and scale, so that one certificate serves both.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from solvers._quiet import silence_highs
from solvers.form import Form
from solvers.matrix import Raw
from solvers.problem import PATHS, Kinds, Problem

Solver = Literal["highs", "cbc"]


def solve(
    problem: Problem, kinds: tuple[Kinds, Kinds], form: Form, solver: Solver, *, locality: bool
) -> Raw:
    """Maximise the rate of the mix; ``form`` gives units, bounds and the order of the answer.

    The rows: every capacity of every kind holds, both pools serve the same of each class on each
    path, and each class has its fixed rate or its share of the mix.
    """
    import pulp

    model = pulp.LpProblem("capacity", pulp.LpMinimize)
    classes, paths = range(problem.classes), range(PATHS)
    flow: list[dict[tuple[int, int, int], Any]] = []
    start = 0
    for pool, kind_of in zip(("prefill", "decode"), kinds, strict=True):
        columns = [(g, k, path) for g in range(kind_of.count) for k in classes for path in paths]
        flow.append({})
        for offset, (g, k, path) in enumerate(columns):
            most = form.most[start + offset]
            flow[-1][g, k, path] = model.add_variable(
                f"{pool}{g}_class{k}_path{path}",
                lowBound=0.0,
                upBound=None if np.isinf(most) else float(most),
            )
        start += len(columns)
    unit = [form.unit[: form.flows[0]], form.unit[form.flows[0] : sum(form.flows)]]

    def rate(where: int, g: int, k: int, path: int) -> Any:
        """Requests/s as an expression."""
        return (
            float(unit[where][(g * problem.classes + k) * PATHS + path]) * flow[where][g, k, path]
        )

    rows: list[Any] = []

    def subject_to(load: Any, equal: bool, bound: float) -> None:
        """Add a row, counted like the matrix's: ``load <= bound``, or ``load == bound``."""
        nonlocal model
        height = float(form.row_height[len(rows)])
        scaled = (1.0 / height) * load
        constraint = scaled == bound / height if equal else scaled <= bound / height
        model += constraint
        rows.append(constraint)

    for row in range(form.capacities):
        where, g, r = int(form.pool[row]), int(form.kind[row]), int(form.key[row])
        if where < len(flow):
            used = [
                (where, g, k, path, kinds[where].use[g, r, k, path])
                for k in classes
                for path in paths
            ]
        else:
            use = problem.shared.use[0]
            used = [
                (0, g, k, path, use[r, k, path])
                for g in range(kinds[0].count)
                for k in classes
                for path in paths
            ]
        subject_to(
            pulp.lpSum(float(u) * rate(w, g, k, path) for w, g, k, path, u in used if u), False, 1.0
        )
    zones = sorted({int(zone) for kind_of in kinds for zone in kind_of.zone})
    for path in paths:
        areas = [{zone} for zone in zones] if locality and path == 1 else [set(zones)]
        for area in areas:
            for k in classes:
                served = [
                    pulp.lpSum(
                        rate(where, g, k, path)
                        for g in range(kind_of.count)
                        if kind_of.zone[g] in area
                    )
                    for where, kind_of in enumerate(kinds)
                ]
                subject_to(served[0] - served[1], True, 0.0)
    mix = model.add_variable("mix", lowBound=0.0)
    for k in classes:
        served = pulp.lpSum(rate(0, g, k, path) for g in range(kinds[0].count) for path in paths)
        if np.isnan(problem.share[k]):
            subject_to(served, True, float(problem.rate[k]))
        else:
            assert form.mix is not None
            share = float(problem.share[k] * form.unit[form.mix])
            subject_to(served - share * mix, True, 0.0)
    model.setObjective(-1.0 * mix)
    columns = [variable for pool in flow for variable in pool.values()]
    if form.mix is not None:
        columns.append(mix)
    return _run(model, solver, form, columns, rows)


def _run(model: Any, solver: Solver, form: Form, columns: list[Any], rows: list[Any]) -> Raw:
    """Solve and return the answer in the form's order and scale."""
    import pulp

    try:
        if solver == "cbc":
            # The CBC that PuLP ships; pulp[cbc] would bring another one of 600 MB.
            tight = [
                "primalTolerance 1e-10",
                "dualTolerance 1e-10",
            ]  # its own 1e-7 shows in the answer
            path = pulp.PULP_CBC_CMD.pulp_cbc_path
            model.solve(pulp.COIN_CMD(msg=False, path=path, options=tight))
        else:
            silence_highs()
            model.solve(pulp.HiGHS(msg=False, threads=1))
    except pulp.PulpSolverError:
        return Raw("missing", np.nan, np.zeros(len(columns)), np.zeros(len(rows)))
    status = {"Optimal": "optimal", "Infeasible": "infeasible", "Unbounded": "unbounded"}
    word = status.get(pulp.LpStatus[model.status], pulp.LpStatus[model.status])
    x = np.array([variable.value() or 0.0 for variable in columns])
    return Raw(word, float(form.cost @ x), x, np.array([row.pi or 0.0 for row in rows]))
