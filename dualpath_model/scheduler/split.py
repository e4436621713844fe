"""Read one request from both sides at once, so that both finish together (the paper's future work).

Expected over `dualpath`: a read takes as long as the two NICs together need, half of one alone where
both are idle, so TTFT falls at low load; under load the queues are levelled by parts of requests instead
of whole ones, so their spread shrinks. It cannot raise the throughput bound: that follows from the
NICs' totals, which the whole-request choice already balances in the mean.

The policy also counts the whole forward batch in the quota (``Policy.whole_batch_quota``), where most of
its gain in the simulator comes from: docs/simulator.md, section 6.
"""

from __future__ import annotations

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import BLOCK_TOKENS, Nodes


@compilable
def read_tokens(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """Return the tokens that each node reads: whole blocks on the prefill side, the rest on the other.

    The split solves (q_p + x) / rate_p = (q_d + hit - x) / rate_d, kept within the hits; of the two
    whole blocks around it the one is taken whose later side finishes earlier, the lesser among equals.
    """
    queue_p, queue_d = nodes.read_q[prefill_node], nodes.read_q[decode_node]
    rate_p, rate_d = nodes.read_rate[prefill_node], nodes.read_rate[decode_node]
    together = (rate_p * (queue_d + hit) - rate_d * queue_p) / (rate_p + rate_d)
    block = int(nodes.knobs[BLOCK_TOKENS])
    below = int(max(0.0, min(float(hit), together))) // block * block
    above = min(hit, below + block)
    finish_below = max((queue_p + below) / rate_p, (queue_d + hit - below) / rate_d)
    finish_above = max((queue_p + above) / rate_p, (queue_d + hit - above) / rate_d)
    on_prefill = above if finish_above < finish_below else below
    return on_prefill, hit - on_prefill
