"""Which P/D ratio for a given number of nodes? Throughput of every division, Basic and dual path.

python examples/scripts/prefill_decode_ratio.py [SCENARIO] [--out FILE.png]
"""

import sys

from answering import BASIC, DUAL, NAMES, answer, note
from matplotlib.axes import Axes

from dualpath_model import InfeasibleError, Scenario
from solvers import plan


def prefill_decode_ratio(scenario: Scenario, axes: Axes) -> tuple[str, str]:
    nodes = len(scenario.cluster.prefill) + len(scenario.cluster.decode)
    plans = {}
    for prefill in range(1, nodes):
        try:
            plans[prefill] = plan(scenario.with_nodes(prefill, nodes - prefill), intervals=False)
        except InfeasibleError as reason:
            print(f"{prefill}P{nodes - prefill}D: {reason}", file=sys.stderr)
    if not plans:
        raise InfeasibleError(f"{scenario.name}: no division of {nodes} nodes can serve it")
    both = {p: found.throughput_requests_per_s for p, found in plans.items()}
    basic = {p: found.throughput_basic_requests_per_s for p, found in plans.items()}
    best = max(both, key=lambda p: (round(both[p], 6), -abs(2 * p - nodes)))

    axes.bar(both.keys(), both.values(), color=DUAL, label="dual path")
    axes.bar(basic.keys(), basic.values(), color=BASIC, width=0.5, label="Basic")
    every = 1 + len(plans) // 12  # a label for each division, as long as they fit
    for p in list(plans)[::every]:
        note(axes, f"{both[p]:,.1f}", (p, both[p]), (0, 9), DUAL)
        note(axes, f"{basic[p]:,.1f}", (p, basic[p]), (0, -9), "white")
    axes.set_xticks(list(plans)[::every], [f"{p}P{nodes - p}D" for p in list(plans)[::every]])
    axes.set(ylim=(0, 1.25 * max(both.values())), ylabel="requests/s")
    axes.set_xlabel(f"division of {nodes} nodes: prefill and decode")
    axes.legend(loc="upper left", ncols=2, frameon=False)
    limit, decode = plans[best].bottleneck, nodes - best
    words = f"Of {nodes} nodes {best} should prefill, {decode} decode: {both[best]:,.1f} requests/s"
    return words, f"Then {limit.pool} {NAMES[limit.resource]} limit."


if __name__ == "__main__":
    answer(prefill_decode_ratio, __doc__)
