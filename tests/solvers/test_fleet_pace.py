"""Decode nodes at the SLO's pace, margins of each pool, and what lies beyond the forecast."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.loads import decode_point
from dualpath_model.paths import Pool
from solvers.fleet import fleet
from solvers.fleet_margin import Bench, Pieces, _lower, simulated
from solvers.fleet_outlook import FIGURES, _break
from solvers.fleet_pace import added_s, node_share
from solvers.fleet_question import Question
from solvers.fleet_search import Effort, best
from solvers.fleet_serve import after, losses, served
from solvers.fleet_simulate import Reach, Run, Tried, longest_life_s
from solvers.fleet_simulate import words as loss_words
from solvers.fleet_uses import uses_of
from solvers.simulator.constants import fitted
from tests.solvers.fleets import all_lost, promised, question

EXACT = Effort(gap=0.0)
KINDS = [
    {"node": "paper-hopper", "price_usd_per_hour": 50.0, "maximum": 20},
    {"node": "dgx-h200", "price_usd_per_hour": 75.0, "maximum": 20},
]


def asked(**more: Any) -> Question:
    fields = {"kinds": KINDS, "require": {"requests_per_s": 50.0}, "software": True}
    return question(**(fields | more))


# ---- the pace of decode steps --------------------------------------------------------------------


def share_of(one: Question, kind: int = 1, gpus: int = 32) -> float:
    scenario = one.scenario
    return node_share(scenario, scenario.means, one.kinds[kind].node, gpus)


def test_a_node_is_full_when_its_engines_run_the_batch_that_meets_the_tpot() -> None:
    """Little's law: requests/s times the seconds that a turn decodes is the batch of all engines."""
    one = asked()
    scenario, node = one.scenario, one.kinds[1].node
    rate = 1.0 / share_of(one)
    decode_s = (scenario.means.output_tokens - 1.0) * scenario.slo.tpot_s
    batch = rate * decode_s / node.gpus  # where TPOT limits, not HBM
    point = decode_point(
        scenario.llm,
        scenario.means,
        node,
        scenario.serving,
        replace(scenario.slo, tpot_s=scenario.slo.tpot_s - sum_added_s(scenario.llm.layers, batch)),
        scenario.efficiencies,
        32,
    )
    assert point.limit == "tpot"
    assert batch == pytest.approx(point.batch, rel=1e-6)


def sum_added_s(layers: int, batch: float) -> float:
    constants = fitted()
    return layers * (constants.step_layer_s + constants.request_layer_s * batch)


def test_without_what_software_adds_the_pace_is_the_plans_own(monkeypatch: Any) -> None:
    """Then the row is no tighter than the plan's HBM space, in which a turn is there for all tokens."""
    monkeypatch.setattr("solvers.fleet_pace.added_s", lambda *_: (0.0, 0.0))
    with_row, bare = asked(), asked(software=False)
    counts = np.array([[4, 0], [0, 4]])
    factors = [served(q, uses_of(q), counts, 0, 50.0) for q in (with_row, bare)]
    assert factors[0] == pytest.approx(factors[1], rel=1e-9)


def test_software_makes_decode_dearer_and_a_looser_tpot_cheaper() -> None:
    assert share_of(asked()) > share_of(asked(slo={"ttft": "4 s", "tpot": "100 ms"}))
    rate = {"requests_per_s": 400.0}
    bare = best(asked(require=rate, software=False), uses_of(asked(software=False)), effort=EXACT)
    true = best(asked(require=rate), uses_of(asked()), effort=EXACT)
    assert bare is not None
    assert true is not None
    assert true.cost > bare.cost
    assert true.counts[:, 1].sum() > bare.counts[:, 1].sum()


def test_a_step_that_is_slower_than_the_tpot_leaves_no_kind() -> None:
    with pytest.raises(InfeasibleError, match="engine's software"):
        uses_of(asked(slo={"ttft": "4 s", "tpot": "20 ms"}))
    uses_of(asked(slo={"ttft": "4 s", "tpot": "20 ms"}, software=False))


def test_a_measured_step_has_its_software_in_it_already() -> None:
    node = asked().kinds[0].node
    assert added_s(61, node) == (61 * fitted().step_layer_s, 61 * fitted().request_layer_s)

    class Measured:
        def value(self, figure: str) -> float | None:
            return 1e-4 if figure == "decode_layer_s" else None

    object.__setattr__(node, "measured", Measured())
    assert added_s(61, node) == (0.0, 0.0)


# ---- margins -------------------------------------------------------------------------------------


def test_a_margin_of_each_pool_asks_for_nodes_of_that_pool_alone() -> None:
    rate = {"requests_per_s": 150.0}
    counts = []
    for margin in (1.0, {"prefill": 0.5, "decode": 1.0}, {"prefill": 1.0, "decode": 0.5}):
        one = asked(require=rate, margin=margin)
        found = best(one, uses_of(one), effort=EXACT)
        assert found is not None
        counts.append(found.counts.sum(axis=0).tolist())
    whole, prefill, decode = counts
    assert prefill[0] > whole[0]
    assert prefill[1] == whole[1]
    assert decode[0] == whole[0]
    assert decode[1] > whole[1]


def test_the_same_margin_for_both_is_a_factor_on_the_rate() -> None:
    both = asked(margin={"prefill": 0.5, "decode": 0.5})
    one = asked(margin=0.5)
    counts = np.array([[3, 0], [0, 3]])
    whole = replace(one, margins=(1.0, 1.0))
    uses = uses_of(one)
    factor = served(one, uses, counts, 0, 50.0)
    assert served(both, uses, counts, 0, 50.0) == pytest.approx(factor)
    assert served(whole, uses, counts, 0, 50.0) == pytest.approx(2.0 * factor)


def test_what_a_pool_can_do_alone_does_not_depend_on_the_other() -> None:
    one = asked()
    uses = uses_of(one)
    found = [
        served(one, uses, np.array([[4, 0], [0, n]]), 0, 50.0, alone=Pool.PREFILL) for n in (3, 9)
    ]
    assert found[0] == pytest.approx(found[1])
    both = served(one, uses, np.array([[4, 0], [0, 3]]), 0, 50.0)
    decode = served(one, uses, np.array([[4, 0], [0, 3]]), 0, 50.0, alone=Pool.DECODE)
    assert both <= min(found[0], decode) * (1 + 1e-9)


def reached(share: float) -> Reach:
    return Reach("forecast", "", 100.0, 100.0 * share, math.nan, math.nan, False)


def test_margins_fall_to_what_was_measured_and_never_rise() -> None:
    one = replace(asked(), margins=(0.6, 0.9))
    assert _lower(one, None, [reached(0.5), reached(0.95)]) == (0.5, 0.9)
    slow = Tried("forecast", "", 5.0, 0.04, False)
    assert _lower(one, slow, [reached(0.4), reached(0.8)]) == (0.4, 0.8)
    # Where both shares would have been enough, the pool whose latency was missed gives way.
    assert _lower(one, slow, [reached(0.7), reached(0.95)]) == (pytest.approx(0.6 * 0.8), 0.9)
    jerky = Tried("forecast", "", 1.0, 0.0505, False)
    assert _lower(one, jerky, [reached(0.7), reached(0.95)]) == (0.6, pytest.approx(0.9 * 0.97))
    # Turns of two tokens have no TPOT: that pool was not slow.
    short = Tried("forecast", "", 5.0, 0.0, False)
    assert _lower(one, short, [reached(0.7), reached(0.95)]) == (pytest.approx(0.6 * 0.8), 0.9)
    stuck = Tried("forecast", "", math.inf, math.inf, False)
    assert _lower(one, stuck, [reached(0.7), reached(0.95)]) == pytest.approx((0.48, 0.72))


def test_a_search_for_margins_ends_when_every_run_holds(monkeypatch: Any) -> None:
    one = replace(asked(), measured=True)
    uses = uses_of(one)
    shares = iter((0.5, 0.8, 0.45, 0.9, 0.47))

    def reach(*given: Any) -> Reach:
        return reached(next(shares))

    held = iter((False, True))
    monkeypatch.setattr("solvers.fleet_simulate.reach", reach)
    monkeypatch.setattr(
        "solvers.fleet_simulate.attempt",
        lambda question, case, *_: Tried(case.name, "", 5.0, 0.04, next(held)),
    )
    done: list[float] = []

    def find(question: Question) -> Any:
        found = best(question, uses, effort=EXACT)
        assert found is not None
        return found

    pieces = Pieces(lambda share, text: done.append(share))
    answer, _, told = simulated(one, find(one), Bench(uses, Run(), find, pieces))
    assert told.margins == ((1.0, 1.0), (0.5, 0.8), (0.45, 0.8))
    assert answer.margins == (0.45, 0.8)
    assert [one.share for one in told.pools] == [0.5, 0.8]
    assert told.holds


def test_of_many_losses_the_worst_are_simulated_and_how_many_there_are_is_told(
    monkeypatch: Any,
) -> None:
    one = asked(limits={"survive": 2})
    uses = uses_of(one)
    found = best(one, uses, effort=EXACT)
    assert found is not None
    ways = sorted(
        (served(one, uses, after(found.counts, loss), 0, 50.0), loss_words(one, loss))
        for loss in losses(found.counts, 2)
    )
    assert len(ways) > 2
    monkeypatch.setattr("solvers.fleet_margin._MOST_TRIED", 2)
    monkeypatch.setattr("solvers.fleet_simulate.reach", lambda *_: reached(1.0))
    monkeypatch.setattr(
        "solvers.fleet_simulate.attempt",
        lambda question, case, _, loss, *__: Tried(
            case.name, loss_words(question, loss), 1.0, 0.04, True
        ),
    )

    def find(question: Question) -> Any:
        raise AssertionError(question)

    bench = Bench(uses, Run(), find, Pieces(lambda share, text: None))
    _, _, told = simulated(one, found, bench)
    assert (told.losses, told.losses_tried) == (len(ways), 2)
    assert [run.loss for run in told.tried] == ["", *(loss for _, loss in ways[:2])]
    monkeypatch.setattr("solvers.fleet_margin._MOST_TRIED", 40)
    _, _, told = simulated(one, found, bench)
    assert told.losses == told.losses_tried == len(ways)


def test_progress_never_passes_the_whole() -> None:
    said: list[tuple[float, str]] = []
    pieces = Pieces(lambda share, text: said.append((share, text)))
    pieces.expect(2)
    pieces.begin("first, ")(0.5, "half")
    pieces.begin()(1.0, "done")
    pieces.begin()(1.0, "more")
    assert said == [(0.25, "first, half"), (1.0, "done"), (1.0, "more")]


def test_warm_up_is_longer_than_sessions_live() -> None:
    thinking = asked(workload={"trace": "examples/traces/agentic_sample"}, slo={"ttft": "90 s"})
    scenario = thinking.scenario
    life_s = longest_life_s(scenario.workload, scenario.slo)
    warmup_s, measure_s = Run().seconds(scenario, 1.0)
    assert warmup_s == max(3600.0, 1.5 * life_s)
    assert measure_s == max(1800.0, 1.5 * life_s)
    assert Run().seconds(scenario, 1e3)[1] == 300.0
    assert Run(10.0, 20.0).seconds(scenario, 1.0) == (10.0, 20.0)
    alone = asked().scenario
    assert Run().seconds(alone, 1.0) == (300.0, 600.0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"margin": {"prefill": 0.5}}, "margin"),
        ({"margin": {"prefill": 0.5, "decode": 1.5}}, "margin"),
        ({"policy": "prized"}, "policy"),
        ({"software": "no"}, "software"),
    ],
)
def test_bad_margins_and_policies_are_refused_in_one_sentence(
    fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as raised:
        asked(**fields)
    assert words in str(raised.value)
    assert str(raised.value).startswith("test.yaml:")
    assert "\n" not in str(raised.value)


# ---- beyond the forecast -------------------------------------------------------------------------


def test_at_a_break_point_the_fleet_just_serves_and_a_little_further_it_does_not() -> None:
    one = asked(limits={"survive": 1}, margin=0.8)
    answer = fleet(one, effort=EXACT, points=0)
    assert answer.outlook is not None
    counts = np.zeros((2, 2), dtype=np.int64)
    for bought in answer.nodes:
        number = [kind.name for kind in one.kinds].index(bought.kind)
        counts[number] = bought.prefill, bought.decode
    breaks = {b.figure: b for b in answer.outlook.breaks}
    assert tuple(breaks) == FIGURES
    assert breaks["rate"].factor == pytest.approx(served(one, uses_of(one), counts, 0, 50.0))
    for figure, found in breaks.items():
        worse = 0.98 if figure == "hit_rate" else 1.02
        assert found.after_loss <= found.factor or figure == "hit_rate"
        if figure == "rate" or math.isinf(found.factor) or found.factor in (0.0, 1.0):
            continue
        for factor, enough in ((found.factor, True), (found.factor * worse, False)):
            more = asked(margin=0.8, scenarios=[{"name": "changed", figure: factor}])
            assert (served(more, uses_of(more), counts, 1, 50.0) >= 1.0 - 1e-3) is enough, figure


def test_after_a_loss_the_break_point_is_where_the_full_lp_node_by_node_breaks() -> None:
    fields: dict[str, Any] = {"limits": {"survive": 1}, "margin": 0.8, "software": False}
    one = asked(**fields)
    found = best(one, uses_of(one), effort=EXACT)
    assert found is not None

    def full_lp(question: Question, case: int, survive: int) -> float:
        left = all_lost(found.counts, survive)
        return 0.8 * min(promised(question, question.cases[case], some, 50.0) for some in left)

    rate = _break(one, found, "rate")
    assert rate.factor == pytest.approx(full_lp(one, 0, 0), rel=1e-6)
    assert rate.after_loss == pytest.approx(full_lp(one, 0, 1), rel=1e-6)
    assert 1.0 <= rate.after_loss < 0.95 * rate.factor
    context = _break(one, found, "context")
    for factor, enough in ((context.after_loss, True), (1.02 * context.after_loss, False)):
        more = asked(**fields, scenarios=[{"name": "longer", "context": factor}])
        assert (full_lp(more, 1, 1) >= 1.0 - 1e-3) is enough
    assert context.factor > 1.05 * context.after_loss


def test_what_is_bought_next_is_enough_and_nothing_is_given_back() -> None:
    answer = fleet(asked(limits={"survive": 1}), effort=EXACT, points=0)
    assert answer.outlook is not None
    have = {one.kind: one.prefill + one.decode for one in answer.nodes}
    costs = [one.cost for one in answer.outlook.purchases]
    assert costs == sorted(costs)
    for one in answer.outlook.purchases:
        more = asked(limits={"survive": 1}, require={"requests_per_s": 50.0 * one.growth})
        counts = np.zeros((2, 2), dtype=np.int64)
        for index, kind in enumerate(more.kinds):
            had = next((b for b in answer.nodes if b.kind == kind.name), None)
            added = one.counts.get(kind.name, (0, 0))
            assert sum(added) >= 0
            counts[index] = added
            if had is not None:
                counts[index] += np.array([had.prefill, had.decode])
                assert counts[index].sum() >= have[kind.name]
        assert served(more, uses_of(more), counts, 0, 50.0 * one.growth) >= 1 - 1e-6
        assert one.cost == pytest.approx(more.cost(counts) - answer.cost_usd_per_hour)


def test_without_one_of_its_kinds_a_fleet_is_no_cheaper() -> None:
    answer = fleet(asked(), effort=EXACT, points=0)
    assert answer.outlook is not None
    used = {one.kind for one in answer.nodes}
    assert {one.kind for one in answer.outlook.without} == used
    for one in answer.outlook.without:
        assert one.cost >= answer.cost_usd_per_hour
        assert one.kind not in one.counts


@pytest.mark.slow
def test_the_pace_is_what_the_simulator_reaches_in_decode_nodes() -> None:
    """Decode alone, prefill nodes in plenty: TPOT is met up to nearly what the row promises."""
    one = asked(margin="simulated", require={"requests_per_s": 40.0})
    answer = fleet(one, run=Run(120.0, 240.0), explain=False, points=0)
    decode = answer.simulation.pools[1]
    assert decode.limit == "tpot"
    assert 0.8 <= decode.share <= 1.02


# ---- the longest turn ----------------------------------------------------------------------------


def test_a_kind_that_cannot_hold_the_longest_turn_is_left_out_with_its_reason() -> None:
    kinds = [{"node": node, "price_usd_per_hour": 50.0} for node in ("dgx-h100", "dgx-h200")]
    moments = {"prompt_tokens": 9e5, "miss_tokens": 1000, "output_tokens": 300}
    more = {"kv_dtype": "fp8_ds_mla", "workload": {"moments": moments}}
    one = asked(kinds=kinds, require={"requests_per_s": 1.0}, **more)
    uses = uses_of(one)
    assert not uses.can(0, Pool.DECODE)
    assert "the longest turn, 900,300 tokens in 'forecast'" in uses.reasons[0, Pool.DECODE]
    assert uses.can(1, Pool.DECODE)
    small = [{"node": {"base": "dgx-h200", "buffer": "20 GB"}, "price_usd_per_hour": 50.0}]
    with pytest.raises(InfeasibleError, match="DRAM buffer"):
        uses_of(asked(kinds=small, **more))
