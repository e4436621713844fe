"""Do we need a second storage NIC? One to three more on every node, against reading on both sides.

python examples/scripts/second_storage_nic.py [SCENARIO] [--out FILE.png]
"""

from dataclasses import replace

from answering import BASIC, DUAL, LIMIT, answer, note
from matplotlib.axes import Axes

from dualpath_model import InputError, Pool, Scenario
from solvers import plan


def with_more(scenario: Scenario, snics: int) -> Scenario:
    for pool in (Pool.PREFILL, Pool.DECODE):
        scenario = scenario.with_each_node(pool, lambda n: replace(n, snics=n.snics + snics))
    return scenario


def second_storage_nic(scenario: Scenario, axes: Axes) -> tuple[str, str]:
    if any(node.shares_nic for node in (*scenario.cluster.prefill, *scenario.cluster.decode)):
        raise InputError(f"{scenario.name}: a node has no storage NIC of its own to add another to")
    plans = [plan(with_more(scenario, snics), intervals=False) for snics in range(4)]
    both = [p.throughput_requests_per_s for p in plans]
    basic = [p.throughput_basic_requests_per_s for p in plans]
    gain, gain_basic = (max(0.0, rates[1] / rates[0] - 1) for rates in (both, basic))
    needed = next((f"{n} more" for n in range(4) if basic[n] > 0.999 * both[0]), "over 3 more")

    for rates, name, colour, up in (
        (both, "dual path: both sides read", DUAL, 14),
        (basic, "Basic: prefill nodes read", BASIC, -16),
    ):
        axes.plot(rates, "o-", color=colour)
        for n, rate in enumerate(rates):
            note(axes, f"{rate:,.1f}", (n, rate), (max(0, -up / 2), up), colour)
        note(axes, name, (-0.12, rates[0]), (1, 2.3 * up), colour)
    if (compute := plans[0].throughput_oracle_requests_per_s) is not None:
        axes.axhline(compute, color=LIMIT, ls="--", lw=1.5, zorder=0)
        note(axes, "limit of compute", (3.4, compute), (1, -14), LIMIT)
    axes.set_xticks(range(4), ["as it is", "+1", "+2", "+3"])
    axes.set(xlim=(-0.2, 4.2), ylim=(0, 1.25 * max(both)))
    axes.set(xlabel="storage NICs on every node", ylabel="requests/s")
    words = (
        f"{'Yes' if gain >= 0.05 else 'No'}: with dual path another storage NIC on every node "
        f"gains {gain:.0%}; Basic gains {gain_basic:.0%} and needs {needed} to serve as much"
    )
    return (
        words,
        f"As it is: {both[0]:,.1f} requests/s with dual path, {basic[0]:,.1f} under Basic.",
    )


if __name__ == "__main__":
    answer(second_storage_nic, __doc__)
