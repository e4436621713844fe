"""Does a second storage NIC pay? Throughput with one to four NICs a node, Basic and dual path.

``python examples/scripts/second_storage_nic.py [SCENARIO] [PICTURE]``
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl

from dualpath_model import DualPathError, InputError, Pool, Scenario, load_scenario
from solvers import plan

mpl.use("Agg")
from matplotlib import pyplot

DEFAULT = Path(__file__).parent.parent / "deepseek-660b-2p4d.yaml"


def with_snics(scenario: Scenario, count: int) -> Scenario:
    for pool in (Pool.PREFILL, Pool.DECODE):
        scenario = scenario.with_each_node(pool, lambda node: replace(node, snics=count))
    return scenario


def main(scenario_path: str = str(DEFAULT), picture: str = "second_storage_nic.png") -> str:
    scenario = load_scenario(scenario_path)
    if any(node.shares_nic for node in (*scenario.cluster.prefill, *scenario.cluster.decode)):
        raise InputError(f"{scenario_path}: a node has no storage NIC of its own to add another to")
    counts = [1, 2, 3, 4]
    plans = [plan(with_snics(scenario, count)) for count in counts]
    basic = [p.throughput_basic_requests_per_s for p in plans]
    both = [p.throughput_requests_per_s for p in plans]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(counts, basic, "o-", color="#999999", label="Basic: prefill nodes read")
    axes.plot(counts, both, "o-", color="#0072B2", label="dual path")
    if (oracle := plans[0].throughput_oracle_requests_per_s) is not None:
        axes.axhline(oracle, color="#E69F00", ls="--", label="compute limit")
    axes.set(xlabel="storage NICs a node", ylabel="requests/s", ylim=(0, None), xticks=counts)
    axes.set_title(scenario.name, parse_math=False, wrap=True)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    ratios = (basic[1] / basic[0], both[1] / both[0], both[0] / basic[0])
    gains = [f"{round(ratio - 1, 4) + 0.0:+.0%}" for ratio in ratios]  # never "-0%"
    return (
        f"a second storage NIC on every node gains {gains[0]} under Basic and {gains[1]} with dual "
        f"path, which itself gains {gains[2]} with one"
    )


if __name__ == "__main__":
    try:
        print(main(*sys.argv[1:]))
    except DualPathError as error:
        sys.exit(str(error))
