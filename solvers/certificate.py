"""A certificate of optimality: computed from the matrix and the two solutions, whoever found them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from solvers.form import Form
from solvers.matrix import Raw

TOLERANCE = 1e-6
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far a primal-dual pair is from proving itself, all relative to entries of order one.

    ``primal``: largest violation of a row or bound; ``dual``: most wrong sign of a reduced cost or a
    row's price; ``gap``: difference of the two objectives over their size.
    """

    primal: float
    dual: float
    gap: float

    @property
    def holds(self) -> bool:
        """Whether all three are within 1e-6: then the answer is optimal, whatever the solver did."""
        return all(part <= TOLERANCE for part in (self.primal, self.dual, self.gap))  # nan: no


def certify(form: Form, raw: Raw) -> Certificate:
    """Check a solution of ``form``: weak duality makes a small gap between feasible points a proof."""
    activity = form.matrix @ raw.x
    primal = max(
        float(np.max(form.low - activity, initial=0.0)),
        float(np.max(activity - form.high, initial=0.0)),
        float(np.max(-raw.x, initial=0.0)),
        float(np.max(raw.x - form.most, initial=0.0)),
    )
    price = raw.row_dual
    reduced = form.cost - form.matrix.T @ price
    # Only a column that is pushed against its bound may have a negative reduced cost; rounding times
    # a huge bound is no price.
    pushed = np.isfinite(form.most) & (reduced < -_ROUNDING)
    # A row without a lower bound may only have a price <= 0 (raising its upper bound cannot hurt),
    # a column without an upper bound only a reduced cost >= 0.
    dual = max(
        float(np.max(price[np.isneginf(form.low)], initial=0.0)),
        float(np.max(-price[np.isposinf(form.high)], initial=0.0)),
        float(np.max(-reduced[~pushed], initial=0.0)),
    )
    bound = np.where(price > 0, np.where(np.isfinite(form.low), form.low, 0.0), 0.0)
    bound = np.where(price < 0, np.where(np.isfinite(form.high), form.high, 0.0), bound)
    dual_cost = float(price @ bound) + float(reduced[pushed] @ form.most[pushed])
    cost = float(form.cost @ raw.x)
    return Certificate(primal, dual, abs(cost - dual_cost) / max(1.0, abs(cost)))
