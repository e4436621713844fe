"""How many nodes for 10x the agents? The fewest that serve 10x what the cluster can today.

python examples/scripts/ten_times_agents.py [SCENARIO] [--out FILE.png] [--agents N]
By the plan, pools divided as is best (minutes if nodes differ); 10 N agents (0: none) are simulated.
"""

from answering import BASIC, DUAL, answer, note
from matplotlib.axes import Axes

from dualpath_model import InfeasibleError, Scenario
from solvers import plan, simulate


def best(scenario: Scenario, p: int, nodes: int, rate: str) -> tuple[float, int]:
    try:
        near = plan(scenario.with_nodes(p, nodes - p), intervals=False).neighbours
    except InfeasibleError:  # these do not hold the LLM
        return 0.0, p
    same = [n for n in near if n.feasible and n.prefill_nodes + n.decode_nodes == nodes]
    rates = [(round(getattr(n, rate), 6), n.prefill_nodes == p, n.prefill_nodes) for n in same]
    most, stay, p = max(rates)  # uphill, up to three nodes at once into the other pool
    return (most, p) if stay else best(scenario, p, nodes, rate)


def fewest(scenario: Scenario, need: float, rate: str, p: int, nodes: int) -> tuple[int, int]:
    served, p = best(scenario, p, nodes, rate)
    while served < need:
        more = -int(-nodes * need // served)  # rounded up
        p, nodes = p * more // nodes, more
        served, p = best(scenario, p, nodes, rate)
    while nodes > 2 and (fewer := best(scenario, max(1, p - 1), nodes - 1, rate))[0] >= need:
        p, nodes = fewer[1], nodes - 1
    return p, nodes


def ten_times_agents(scenario: Scenario, axes: Axes, agents: int) -> tuple[str, str]:
    today, totals, slo = plan(scenario, intervals=False), [], scenario.slo
    need = today.throughput_requests_per_s * (1 - 1e-6)
    for name, path, colour, side in ("Basic", "basic_", BASIC, 1), ("dual path", "", DUAL, -1):
        p, nodes = today.prefill_nodes, today.prefill_nodes + today.decode_nodes
        for k in (1, 4, 7, 10):
            p, nodes = fewest(scenario, k * need, f"throughput_{path}requests_per_s", p, nodes)
            totals.append(nodes)
            note(axes, f"{name}: {p}P{nodes - p}D", (k, nodes), (-8 * side, 12 * side), colour)
        axes.plot((1, 4, 7, 10), totals[-4:], "o-", color=colour)
    axes.set(xlim=(-1, 13), xticks=(1, 4, 7, 10), ylim=(0, 1.1 * max(totals)))
    axes.set(xlabel="times today's agents", ylabel="nodes (P: prefill, D: decode)")
    words = f"10x agents need {nodes} nodes ({p}P{nodes - p}D) with dual path, Basic {totals[3]}"
    if not agents:
        return words, "Not simulated."
    run = simulate(scenario.with_nodes(p, nodes - p), agents=10 * agents)
    said = f"simulated, {10 * agents:,} at once: TTFT {run.ttft_s['mean']:.1f} s (SLO "
    said += f"{slo.ttft_s:g}),\nTPOT {1000 * run.tpot_s['mean']:.0f} ms (SLO {1000 * slo.tpot_s:g})"
    note(axes, said, (13, 0), (-1, 22), DUAL)
    return words, f"As {said}."


if __name__ == "__main__":
    answer(ten_times_agents, __doc__, agents=500)
