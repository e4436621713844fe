"""How times are summed up: mean, quantiles and maximum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spread(values: npt.ArrayLike) -> dict[str, float]:
    """Return mean, p50, p90, p99 and max of ``values``, in their unit; nothing of none."""
    column = np.asarray(values, dtype=float)
    if not column.size:
        return {}
    p50, p90, p99 = np.quantile(column, [0.5, 0.9, 0.99])
    return {
        "mean": float(column.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(column.max()),
    }
