"""Decode nodes at the SLO's pace: what a token costs with the engine's software counted in.

The plan's roofline says how long a decode step takes for the hardware. An engine's software adds to
every step, and to every running request in it (``solvers/simulator/constants.yaml``, or a profile's
measured figure). Within a TPOT of 50 ms that takes most of the step for an LLM of 61 layers, so that a
fleet counted by the roofline alone has too few decode nodes, and a margin that makes up for them buys
too many prefill nodes as well. The integer program therefore has this row beside those of the plan.
"""

from __future__ import annotations

from dualpath_model.cluster import Node
from dualpath_model.errors import InfeasibleError
from dualpath_model.loads import RequestMeans, decode_step, hbm_space
from dualpath_model.quantities import Dimension, show
from dualpath_model.scenario import Scenario
from solvers.simulator.constants import fitted

_HALVINGS = 60


def node_share(scenario: Scenario, means: RequestMeans, node: Node, pool_gpus: int) -> float:
    """Return the share of one decode node that one request/s of these means takes.

    The engine runs the largest batch whose step is within the TPOT, software included, and whose
    KV-cache fits the HBM. A turn takes part in one step for each of its tokens but the first, which
    comes with prefill. Raises InfeasibleError if a batch of one is slower than the TPOT or does not
    fit.
    """
    serving, llm = scenario.serving, scenario.llm
    tensor = serving.decode.tensor
    step = decode_step(llm, means, node, serving, scenario.efficiencies, pool_gpus)
    free = hbm_space(llm, node, serving.decode, scenario.efficiencies, pool_gpus)
    fits = free / (means.decode_context_bytes * llm.replication(tensor) / tensor)
    fixed_s, request_s = added_s(llm.layers, node)

    def seconds(batch: float) -> float:
        return step.seconds(batch) + fixed_s + request_s * batch

    allowed_s = scenario.slo.tpot_s
    if fits < 1.0 or seconds(1.0) > allowed_s:
        why = "does not fit its HBM" if fits < 1.0 else "takes longer"
        raise InfeasibleError(
            f"slo.tpot {show(allowed_s, Dimension.SECONDS)} cannot be met with the engine's software "
            f"counted in: on {node.name} a decode step of a single request {why}"
        )
    low, high = 1.0, fits
    if seconds(high) <= allowed_s:
        low = high
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if seconds(middle) <= allowed_s else (low, middle)
    steps = max(0.0, means.output_tokens - 1.0)
    return steps * seconds(low) / low / (node.gpus / tensor)


def added_s(layers: int, node: Node) -> tuple[float, float]:
    """Return seconds that software adds to a decode step and, for each request in it, once more.

    A profile's measured step has both in it, and :func:`dualpath_model.loads.decode_step` counts it.
    """
    if node.measured is not None and node.measured.value("decode_layer_s") is not None:
        return 0.0, 0.0
    constants = fitted()
    return constants.step_layer_s * layers, constants.request_layer_s * layers
