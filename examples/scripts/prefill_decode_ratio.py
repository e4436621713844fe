"""Which P/D ratio for a given number of nodes? Throughput of every division, Basic and dual path.

``python examples/scripts/prefill_decode_ratio.py [SCENARIO] [PICTURE]``
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

from dualpath_model import DualPathError, InfeasibleError, load_scenario
from solvers import plan

mpl.use("Agg")
from matplotlib import pyplot

DEFAULT = Path(__file__).parent.parent / "deepseek-660b-2p4d.yaml"


def main(scenario_path: str = str(DEFAULT), picture: str = "prefill_decode_ratio.png") -> str:
    scenario = load_scenario(scenario_path)
    nodes = len(scenario.cluster.prefill) + len(scenario.cluster.decode)
    plans = {}
    for prefill in range(1, nodes):
        try:
            plans[prefill] = plan(scenario.with_nodes(prefill, nodes - prefill))
        except InfeasibleError as reason:
            print(f"{prefill}P{nodes - prefill}D: {reason}", file=sys.stderr)
    if not plans:
        raise InfeasibleError(f"{scenario_path}: no division of {nodes} nodes can serve it")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    both = [p.throughput_requests_per_s for p in plans.values()]
    basic = [p.throughput_basic_requests_per_s for p in plans.values()]
    axes.bar(list(plans), both, color="#0072B2", label="dual path")
    axes.bar(list(plans), basic, color="#999999", width=0.5, label="Basic: prefill nodes read")
    shown = list(plans)[:: 1 + len(plans) // 12]  # a label for each division, as long as they fit
    axes.set_xticks(shown, [f"{p}P\n{nodes - p}D" for p in shown])
    axes.set(ylabel="requests/s", ylim=(0, 1.2 * max(both)))
    axes.set_title(f"{scenario.name}: {nodes} nodes", parse_math=False, wrap=True)
    axes.legend(loc="upper right", ncols=2)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    best = max(plans, key=lambda p: plans[p].throughput_requests_per_s)
    found = plans[best]
    return (
        f"of {nodes} nodes, {best} should prefill and {nodes - best} decode: "
        f"{found.throughput_requests_per_s:,.1f} requests/s, limited by {found.bottleneck.pool} "
        f"{found.bottleneck.resource} {found.bottleneck.direction}"
    )


if __name__ == "__main__":
    try:
        print(main(*sys.argv[1:]))
    except DualPathError as error:
        sys.exit(str(error))
