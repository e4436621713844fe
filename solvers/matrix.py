"""HiGHS on a sparse matrix: build once, solve, change bounds, solve again from the last basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers._quiet import silence_highs
from solvers.form import Form
from solvers.problem import Array


@dataclass(frozen=True)
class Raw:
    """A solver's answer to a form. ``row_dual``: change of the cost per unit of a row's bound."""

    status: str
    """"optimal", "infeasible", "unbounded", or the solver's own word."""
    cost: float
    x: Array
    row_dual: Array


class Highs:
    """One form in HiGHS. Bounds may change between solves; the basis is kept."""

    def __init__(self, form: Form) -> None:
        """Hand the form over."""
        silence_highs()
        import highspy

        matrix = form.matrix.tocsr()
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = matrix.shape
        lp.col_cost_ = form.cost
        lp.col_lower_, lp.col_upper_ = np.zeros(len(form.cost)), form.most
        lp.row_lower_, lp.row_upper_ = form.low, form.high
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = matrix.indptr
        lp.a_matrix_.index_ = matrix.indices
        lp.a_matrix_.value_ = matrix.data
        self._highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        for tolerance in ("primal_feasibility_tolerance", "dual_feasibility_tolerance"):
            self._highs.setOptionValue(tolerance, 1e-9)
        self._highs.passModel(lp)

    def solve(self) -> Raw:
        """Solve from the last basis."""
        import highspy

        self._highs.run()
        words = {
            highspy.HighsModelStatus.kOptimal: "optimal",
            highspy.HighsModelStatus.kInfeasible: "infeasible",
            highspy.HighsModelStatus.kUnbounded: "unbounded",
            highspy.HighsModelStatus.kUnboundedOrInfeasible: "infeasible",
        }
        status = self._highs.getModelStatus()
        solution = self._highs.getSolution()
        return Raw(
            words.get(status, self._highs.modelStatusToString(status)),
            float(self._highs.getInfo().objective_function_value),
            np.array(solution.col_value),
            np.array(solution.row_dual),
        )

    def set_row(self, row: int, low: float, high: float) -> None:
        """Change a row's bounds."""
        self._highs.changeRowBounds(int(row), float(low), float(high))

    def set_entry(self, row: int, col: int, value: float) -> None:
        """Change one entry of the matrix."""
        self._highs.changeCoeff(int(row), int(col), float(value))

    def ranges(self, rows: int) -> tuple[Array, Array]:
        """Return, for the first ``rows`` rows, the bounds between which the duals hold."""
        _, ranging = self._highs.getRanging()
        low = np.array(ranging.row_bound_dn.value_)[:rows]
        high = np.array(ranging.row_bound_up.value_)[:rows]
        return low, high
