"""The LP's nodes as slow as the simulator's: shares against the times that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model.cluster import Node
from dualpath_model.loads import decode_step, hbm_space
from dualpath_model.scenario import Scenario
from dualpath_model.scheduler.setup import engine_flop_per_s
from solvers.replan import with_mix
from solvers.replan_overheads import slowed
from solvers.replan_ratios import Capacities, kinds_of
from solvers.simulator.constants import Constants, fitted
from tests.solvers.test_replan import OUTPUTS, cluster_of, mix

LIMIT = 8_192


@dataclass(frozen=True)
class Measured:
    """What of a profile matters here."""

    decode_layer_s: float | None = None
    prefill_layer_s: float | None = None

    def value(self, figure: str) -> float | None:
        """Return a figure, as a profile does."""
        found: float | None = getattr(self, figure, None)
        return found


def measured(node: Node, **figures: float) -> Node:
    return replace(node, name="measured", measured=Measured(**figures))  # type: ignore[arg-type]


def shares(scenario: Scenario, constants: Constants, limit: int = LIMIT) -> tuple[float, ...]:
    """Factors on the rates of a prefill node and a decode node, in the order of the pools."""
    found = slowed(scenario, scenario.cluster, constants, limit)
    of = scenario.efficiencies
    prefill = [
        of.on(new).prefill_mfu / of.on(old).prefill_mfu
        for new, old in zip(found.prefill, scenario.cluster.prefill, strict=True)
    ]
    decode = []
    for new, old in zip(found.decode, scenario.cluster.decode, strict=True):
        decode.append(of.on(new).hbm / of.on(old).hbm)
        assert of.on(new).decode_mfu / of.on(old).decode_mfu == pytest.approx(decode[-1])
    return (*prefill, *decode)


def test_the_bare_roofline_is_left_as_it_is() -> None:
    scenario = with_mix(cluster_of(2, 2), OUTPUTS)
    assert slowed(scenario, scenario.cluster, Constants(), LIMIT) is scenario.cluster


def test_a_full_batch_takes_its_computing_and_what_no_token_takes() -> None:
    scenario = with_mix(cluster_of(1, 1), mix(2_000, 6_000, 100))
    constants = Constants(batch_layer_s=2e-3)
    prefill, decode = shares(scenario, constants)
    tokens = LIMIT  # whose attention is within the quota
    flops = scenario.means.prefill_flops * tokens / 6_000
    computing_s = flops / engine_flop_per_s(scenario, scenario.cluster.prefill[0])
    batch_s = computing_s + 2e-3 * scenario.llm.layers
    assert computing_s / prefill == pytest.approx(batch_s)
    assert decode == 1.0
    assert shares(scenario, constants, limit=0)[0] > prefill, "a longer batch hides more of it"


def test_a_full_step_takes_the_tpot_or_fills_the_hbm() -> None:
    scenario = with_mix(cluster_of(1, 1), OUTPUTS)
    node, constants, layers = scenario.cluster.decode[0], fitted(), scenario.llm.layers
    _, share = shares(scenario, constants)
    serving, of = scenario.serving, scenario.efficiencies
    step = decode_step(scenario.llm, scenario.means, node, serving, of, node.gpus)
    space = hbm_space(scenario.llm, node, serving.decode, of, node.gpus)

    def software_s(batch: float) -> float:
        return layers * (constants.step_layer_s + batch * constants.request_layer_s)

    # the largest whole number of requests, looked for one by one
    batch = 1
    while (batch + 1) * scenario.means.decode_context_bytes <= space and (
        step.seconds(batch + 1) + software_s(batch + 1) <= scenario.slo.tpot_s
    ):
        batch += 1
    roofline_s = step.seconds(batch)
    assert share == pytest.approx(roofline_s / (roofline_s + software_s(batch)), rel=0.01)


@settings(max_examples=30)
@given(
    layer_s=st.sampled_from([2e-5, 3e-4, 1.2e-3, 1.6e-3]),
    context=st.sampled_from([2_000, 30_000, 600_000]),
    constants=st.sampled_from([fitted(), Constants(1e-3, 1e-4, 0.0), Constants(0.0, 2e-3, 1e-5)]),
    mixed=st.booleans(),
)
def test_shares_are_shares_whatever_was_measured(
    layer_s: float, context: int, constants: Constants, mixed: bool
) -> None:
    """A measured step is never shortened: constants below it, and measured beside plain nodes."""
    scenario = cluster_of(2, 2)
    plain = scenario.cluster.decode[0]
    slow = measured(plain, decode_layer_s=layer_s)
    cluster = replace(scenario.cluster, decode=(slow, plain if mixed else slow))
    asked = with_mix(scenario.on(cluster), mix(context, 300, 1_500))
    assert all(0.0 < share <= 1.0 for share in shares(asked, constants))


def test_what_roles_give_does_not_depend_on_todays_roles() -> None:
    """Two measured and two plain nodes: each assignment is worth the same from wherever it is asked."""
    scenario = cluster_of(2, 2)
    plain = scenario.cluster.prefill[0]
    known = measured(plain, decode_layer_s=5e-5, prefill_layer_s=2e-4)
    found = []
    for prefill, decode in ((known, plain), (plain, known)):
        cluster = replace(scenario.cluster, prefill=(prefill,) * 2, decode=(decode,) * 2)
        asked = with_mix(scenario.on(cluster), OUTPUTS)
        kinds = kinds_of(asked.cluster)
        capacities = Capacities(asked, kinds, None, LIMIT)
        roles = [{known: (2, 0), plain: (0, 2)}, {known: (0, 2), plain: (2, 0)}]
        found.append([capacities.of(tuple(one[node] for node in kinds.nodes)) for one in roles])
    here, there = found
    assert here == pytest.approx(there)
    assert here[0] != pytest.approx(here[1], rel=0.05), "so that the roles matter"
