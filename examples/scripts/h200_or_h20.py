"""H200 or H20 for decode? The price of an H20 below which a decoded request costs less on it.

python examples/scripts/h200_or_h20.py [SCENARIO] [--out FILE.png]
Prefill never limits. The catalog has prices of H200 (the lowest counts), none of H20. Of FP8 rates
decode reached 34 % on H20 and 15 % on H100, which stands for H200 (catalog/efficiencies.yaml).
"""

from dataclasses import replace

from answering import BASIC, DUAL, NAMES, answer, note, with_workloads
from matplotlib.axes import Axes

from dualpath_model import InfeasibleError, Pool, Scenario, Workload, load_node, node_names
from solvers import plan

H200, H20 = load_node("dgx-h200").gpu, load_node("hgx-h20").gpu
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the contexts


def decoded(scenario: Scenario, scale: float, **gpu: object) -> tuple[float, str]:
    def longer(work: Workload) -> Workload:
        hits = scale * work.hit_tokens
        return replace(work, hit_tokens=hits, prompt_tokens=hits + work.miss_tokens)

    gpus, nodes = sum(n.gpus for n in scenario.cluster.decode), len(scenario.cluster.decode)
    other = with_workloads(scenario, longer).with_nodes(16 * nodes, nodes)
    other = other.with_each_node(Pool.DECODE, lambda n: replace(n, measured=None, **gpu))
    try:
        found = plan(other, intervals=False)
    except InfeasibleError:  # no request fits beside the weights, or a step takes too long
        return 0.0, "too small"
    return found.throughput_requests_per_s / gpus, NAMES[found.bottleneck.resource]


def h200_or_h20(scenario: Scenario, axes: Axes) -> tuple[str, str]:
    priced = [n for n in map(load_node, node_names()) if n.gpu == H200 and n.price_usd_per_hour]
    price, where = min((n.price_usd_per_hour / n.gpus, n.name) for n in priced)
    h200 = [decoded(scenario, scale, gpu=H200) for scale in SCALES]
    for share, look in (0.15, ":"), (0.34, "o-"):
        h20 = [decoded(scenario, s, gpu=H20, shares=(("decode_mfu", share),)) for s in SCALES]
        flips = [price * one[0] / max(other[0], 1e-9) for one, other in zip(h20, h200, strict=True)]
        axes.plot(flips, look, color=DUAL)
        note(axes, f"H20 costs less below ({share:.0%} of FP8)", (0, flips[0]), (1, -14), DUAL)
    ticks, prompt = [], scenario.means.prompt_tokens / 1000
    for i, (flip, (_, one), (_, other)) in enumerate(zip(flips, h200, h20, strict=True)):
        note(axes, f"${flip:,.2f}", (i, flip), (0, 14), DUAL)
        ticks.append(f"{SCALES[i] * prompt:,.0f}K\nH200: {one}\nH20: {other}")
    axes.axhline(price, color=BASIC, lw=1.5)
    note(axes, f"H200: ${price:,.2f}/h ({where})", (0, price), (1, 12), BASIC)
    axes.set_xticks(range(6), ticks)
    axes.set_xlabel("mean prompt in tokens, and what limits decode")
    axes.set(ylim=(0, 1.2 * price), ylabel="price of a decode GPU, USD/h")
    flip, rates = flips[2], f"{h20[2][0]:,.2f} requests/s on H20, {h200[2][0]:,.2f} on H200"
    words = f"H20, where it costs less than ${flip:,.2f} a GPU-hour, {flip / price:.0%} of an H200"
    return words, f"A GPU decodes {rates}: ${price / 3.6 / h200[2][0]:.3f} for a thousand requests."


if __name__ == "__main__":
    answer(h200_or_h20, __doc__)
