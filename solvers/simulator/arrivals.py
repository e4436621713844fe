"""Who comes when: which session each agent runs, and its start. One random stream for each."""

from __future__ import annotations

import numpy as np

from dualpath_model.errors import InputError
from dualpath_model.workload import Workload


def arrivals(
    workload: Workload, agents: int, rate_aps: float | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the session and the start in seconds of each agent, both (agents,), starts ascending.

    ``rate_aps``: agents a second, Poisson. None: each session starts when it says (recorded times; all
    at 0 where there are none). More agents than sessions run them again, in another random order.

    The same seed gives the same sessions in the same order at any rate, and gaps that only scale with
    1 / rate: common random numbers. Raises InputError for a rate that is not above 0.
    """
    if rate_aps is not None and not (np.isfinite(rate_aps) and rate_aps > 0):
        raise InputError(f"rate is {rate_aps} agents a second; it must be above 0 and finite")
    order, gaps = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    count = workload.session_count
    rounds = -(-agents // count)
    sessions = np.concatenate([order.permutation(count) for _ in range(rounds)])[:agents]
    if rate_aps is not None:
        return sessions, np.cumsum(gaps.standard_exponential(agents)) / rate_aps
    starts = workload.start_s[sessions]
    ascending = np.argsort(starts, kind="stable")
    return sessions[ascending], starts[ascending]
