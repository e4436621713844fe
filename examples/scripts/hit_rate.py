"""How much does the hit rate matter? Throughput over the share of hits, prompts unchanged.

python examples/scripts/hit_rate.py [SCENARIO] [--out FILE.png]
"""

from dataclasses import replace
from itertools import groupby

import numpy as np
from answering import BASIC, DUAL, NAMES, answer, note, with_workloads
from matplotlib.axes import Axes

from dualpath_model import Scenario, Workload
from solvers import Plan, plan

TICKS = {0.2: "80%", 0.1: "90%", 0.05: "95%", 0.02: "98%", 0.01: "99%", 0.005: "99.5%"}


def plan_at(scenario: Scenario, misses: float) -> Plan:
    def changed(work: Workload) -> Workload:
        now = 1 - work.hit_rate
        hits = work.prompt_tokens - work.miss_tokens * min(misses / now, 1)
        return replace(work, hit_tokens=hits * min((1 - misses) / max(1 - now, 1e-9), 1))

    return plan(with_workloads(scenario, changed), intervals=False)


def hit_rate(scenario: Scenario, axes: Axes) -> tuple[str, str]:
    now = 1 - plan(scenario, intervals=False).workload.hit_rate
    twice = min(2 * now, 0.99)
    x = np.geomspace(max(0.2, min(0.9, 3 * now)), min(2e-3, now / 2), 32)
    plans = [plan_at(scenario, misses) for misses in (now, twice, *x)]
    both = [(p.throughput_requests_per_s, p.bottleneck) for p in plans]
    basic = [(p.throughput_basic_requests_per_s, p.bottleneck_basic) for p in plans]
    apart = (m for m, a, b in zip(x, both[2:], basic[2:], strict=True) if a[0] > 1.01 * b[0])

    for name, curve, colour, side in ("dual path", both, DUAL, 1), ("Basic", basic, BASIC, -1):
        axes.plot(x, [rate for rate, _ in curve[2:]], color=colour)
        axes.plot(now, curve[0][0], "o", color=colour)
        note(axes, f"{curve[0][0]:,.1f}", (now, curve[0][0]), (8, -9 * side), colour)
        for limit, run in groupby(range(32), lambda i, curve=curve: curve[i + 2][1]):
            i = (places := list(run))[len(places) // 2]
            same = both[i + 2][1] == basic[i + 2][1]
            words = f"{'both' if same else name}: {limit.pool} {NAMES[limit.resource]} limit"
            at = x[i], curve[i + 2][0]
            if not same or side < 0:  # once of both
                note(axes, words, at, (-8 if side > 0 else 8 * (i < 16), 14 * side), colour)
    axes.set_xscale("log")
    axes.set_xticks(list(TICKS), list(TICKS.values()), minor=False)
    axes.set(xlim=(x[0], x[-1]), ylim=(0, 1.2 * max(both)[0]), ylabel="requests/s")
    axes.set_xlabel("hit rate of prompt tokens (dots: as it is), log scale of the misses")
    costs = [f"{max(0, 1 - curve[1][0] / curve[0][0]):.0%}" for curve in (both, basic)]
    words = f"Twice the misses ({1 - now:.1%} → {1 - twice:.1%} hits) cost dual path {costs[0]}, "
    words += f"Basic {costs[1]}, which falls behind above {1 - next(apart, 0):.1%} hits"
    return words, f"Now: {both[0][0]:,.1f} requests/s with dual path, Basic {basic[0][0]:,.1f}."


if __name__ == "__main__":
    answer(hit_rate, __doc__)
