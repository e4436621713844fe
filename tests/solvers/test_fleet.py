"""Fleets against trying everything, the full LP and the simulator; what conflicts; what decides."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InfeasibleError, InputError
from solvers import plan
from solvers.fleet import fleet, to_json
from solvers.fleet_conflicts import requirements, smallest
from solvers.fleet_parts import Goal
from solvers.fleet_question import Limits, Question
from solvers.fleet_search import Effort, Found, best
from solvers.fleet_serve import after, losses, served
from solvers.fleet_simulate import Run, attempt, mixed
from solvers.fleet_uses import uses_of
from tests.solvers.fleets import (
    MOMENTS,
    all_lost,
    cheapest,
    cost_of,
    everything,
    meets,
    promised,
    question,
    random_question,
)

EXACT = Effort(gap=0.0)
KINDS = [
    {"node": "paper-hopper", "price_usd_per_hour": 50.0, "maximum": 4},
    {"node": "dgx-h200", "price_usd_per_hour": 75.0, "maximum": 3},
]


def found_for(asked: Question, **more: Any) -> Found | None:
    try:
        return best(asked, uses_of(asked), effort=EXACT, **more)
    except InfeasibleError:  # no kind can do a role
        return None


def solved(asked: Question, **more: Any) -> Found:
    found = found_for(asked, **more)
    assert found is not None
    return found


# ---- against trying everything -------------------------------------------------------------------


def check(seed: int) -> bool:
    """Compare with brute force; return whether there is a fleet."""
    asked = random_question(seed)
    assert asked.required is not None
    found, tried = found_for(asked), cheapest(asked, asked.required)
    assert (found is None) == (tried is None), seed
    if found is None or tried is None:
        return False
    assert found.cost == pytest.approx(tried[0], rel=1e-9), seed
    assert cost_of(asked, found.counts) == pytest.approx(found.cost, rel=1e-9)
    assert any((found.counts == counts).all() for counts in everything(asked)), seed
    assert meets(asked, found.counts, asked.required), seed
    return True


@pytest.mark.parametrize("seed", [0, 5, 10])
def test_least_cost_equals_brute_force(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 100, 25))
def test_least_cost_equals_brute_force_on_a_hundred_random_instances(first: int) -> None:
    feasible = sum(check(seed) for seed in range(first, first + 25))
    assert 8 <= feasible < 25  # both kinds of answer are among them


@pytest.mark.parametrize("survive", [0, 1])
def test_most_rate_for_a_budget_equals_brute_force(survive: int) -> None:
    asked = question(
        kinds=KINDS,
        limits={"budget_usd_per_hour": 360.0, "survive": survive},
        scenarios=[{"name": "longer", "context": 1.3}],
    )
    found = solved(asked)
    rates = [
        min(
            promised(asked, case, left, 1.0)
            for left in all_lost(counts, survive)
            for case in asked.cases
        )
        for counts in everything(asked)
        if cost_of(asked, counts) <= 360.0
    ]
    assert found.rate == pytest.approx(max(rates), rel=1e-6)
    assert found.cost <= 360.0


@pytest.mark.parametrize(
    ("budget", "survive"), [(40.0, 0), (60.0, 0), (110.0, 0), (150.0, 0), (360.0, 3), (360.0, 4)]
)
def test_a_budget_for_no_fleet_is_one_part_of_the_conflict(budget: float, survive: int) -> None:
    limits = {"budget_usd_per_hour": budget, "survive": survive}
    asked = question(kinds=KINDS, limits=limits)
    possible = any(
        all(promised(asked, asked.cases[0], left, 1.0) > 0 for left in all_lost(counts, survive))
        for counts in everything(asked)
        if cost_of(asked, counts) <= budget and counts.sum() > survive
    )
    assert possible == (budget == 150.0)
    if possible:
        assert fleet(asked, explain=False, points=0).requests_per_s > 0
        return
    with pytest.raises(InfeasibleError) as raised:
        fleet(asked)
    lost = f"the loss of any {survive} nodes (limits.survive), " if survive else ""
    budget_words = f"{lost}{budget} USD/h (limits.budget_usd_per_hour) and any rate at all"
    assert str(raised.value).startswith(f"no fleet: {budget_words} cannot be met together")


def test_what_else_leaves_no_rate_for_a_budget_is_named_and_the_budget_is_not() -> None:
    kinds = [kind | {"power_kw": 10.0} for kind in KINDS]
    limits = {"budget_usd_per_hour": 400.0, "power_kw": 15.0, "survive": 1}
    with pytest.raises(InfeasibleError, match=r"^no fleet: 15.0 kW \(limits.power_kw\) and any"):
        fleet(question(kinds=kinds, limits=limits))


@given(st.data())
def test_a_fleet_of_given_nodes_serves_what_the_full_lp_says(data: st.DataObject) -> None:
    asked = random_question(data.draw(st.integers(0, 30)))
    choices = everything(replace(asked, limits=Limits()))
    counts = data.draw(st.sampled_from(choices))
    uses = uses_of(asked)
    for s, case in enumerate(asked.cases):
        by_kind = served(asked, uses, counts, s, 20.0)
        by_node = promised(asked, case, counts, 20.0) * asked.margins[0]
        assert by_kind == pytest.approx(by_node, rel=1e-6, abs=1e-9)


def test_the_plan_promises_what_the_program_counted_on() -> None:
    asked = question(kinds=KINDS, require={"requests_per_s": 60.0}, margin=0.8)
    found = solved(asked)
    answer = plan(asked.on(asked.cases[0], found.counts, found.rate), intervals=False)
    factor = served(asked, uses_of(asked), found.counts, 0, found.rate)
    assert answer.throughput_requests_per_s == pytest.approx(60.0 * factor / 0.8, rel=1e-6)
    assert answer.throughput_requests_per_s * 0.8 >= 60.0 * (1 - 1e-6)


def test_the_experts_need_so_many_gpus_that_a_pool_of_one_node_is_no_fleet() -> None:
    """The 671 GB of weights do not fit the 640 GB of one node, however low the rate."""
    asked = question(kinds=KINDS[:1], require={"requests_per_s": 0.1})
    assert solved(asked).counts.tolist() == [[2, 2]]
    with pytest.raises(InfeasibleError, match="does not fit"):
        one = asked.on(asked.cases[0], np.array([[1, 2]]), 0.1)
        plan(one, intervals=False)


# ---- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
def test_a_fleet_that_survives_does_so_for_every_loss_node_by_node(lost: int) -> None:
    kinds = [kind | {"maximum": 8} for kind in KINDS]
    asked = question(kinds=kinds, require={"requests_per_s": 60.0}, limits={"survive": lost})
    found = solved(asked)
    assert meets(asked, found.counts, 60.0)
    weak = solved(asked.with_limits(survive=lost - 1))
    assert weak.cost < found.cost
    assert not meets(asked, weak.counts, 60.0)


def test_all_ways_to_lose_nodes_are_counted() -> None:
    counts = np.array([[2, 1], [0, 3]])
    for lost in (1, 2, 3):
        ways = {after(counts, loss).tobytes() for loss in losses(counts, lost)}
        assert ways == {left.tobytes() for left in all_lost(counts, lost)}
    assert [after(counts, loss).sum() for loss in losses(counts, 9)] == [0]
    assert list(losses(counts, 0)) == []


@pytest.mark.slow
def test_in_simulation_one_plan_survives_every_single_loss_and_the_other_does_not() -> None:
    run = Run(warmup_s=60.0, measure_s=120.0)
    kinds = [kind | {"maximum": 8} for kind in KINDS]
    held: dict[int, list[bool]] = {}
    for survive in (0, 1):
        asked = question(
            kinds=kinds,
            require={"requests_per_s": 40.0},
            margin={"prefill": 0.5, "decode": 0.7},
            limits={"survive": survive, "kinds_per_role": 1},
            software=True,
        )
        found = solved(asked)

        def holds(loss: Any, asked: Question = asked, found: Found = found) -> bool:
            forecast = asked.cases[0]
            tried = attempt(
                asked, forecast, found.counts, loss, found.rate, run, lambda done, text: None
            )
            return tried.holds

        assert holds(())
        held[survive] = [holds(loss) for loss in losses(found.counts, 1)]
    assert all(held[1])
    assert not all(held[0])


# ---- what must hold whatever the numbers ---------------------------------------------------------


def base(**more: Any) -> Question:
    fields: dict[str, Any] = {"kinds": KINDS, "require": {"requests_per_s": 50.0}}
    return question(**(fields | more))


def test_harder_questions_cost_more_and_easier_ones_less() -> None:
    cost = solved(base()).cost
    many = [kind | {"maximum": 20} for kind in KINDS]
    for harder in (
        base(kinds=many, require={"requests_per_s": 90.0}),
        base(kinds=many, growth=1.8),
        base(kinds=many, margin=0.55),
        base(kinds=many, scenarios=[{"name": "peak", "rate": 1.8}]),
        base(kinds=many, scenarios=[{"name": "longer", "context": 3.0}]),
        base(kinds=many, scenarios=[{"name": "misses", "hit_rate": 0.9}]),
    ):
        assert solved(harder).cost > cost
    owned = [KINDS[0] | {"owned": 2}, KINDS[1]]
    assert cost - 100.0 <= solved(base(kinds=owned)).cost < cost


def test_growth_margin_and_peak_are_all_factors_on_the_rate() -> None:
    kinds = [kind | {"maximum": 20} for kind in KINDS]
    costs = {
        solved(asked).cost
        for asked in (
            base(kinds=kinds, growth=1.6),
            base(kinds=kinds, margin=1 / 1.6),
            base(kinds=kinds, scenarios=[{"name": "peak", "rate": 1.6}]),
            base(kinds=kinds, require={"requests_per_s": 80.0}),
        )
    }
    assert len(costs) == 1


def test_limits_are_kept_and_cost_when_they_bind() -> None:
    kinds = [
        kind | {"power_kw": kw, "nodes_per_rack": rack, "maximum": 20}
        for kind, kw, rack in zip(KINDS, (12.0, 9.0), (1, 2), strict=True)
    ]
    small = {"power_kw": 3.0, "nodes_per_rack": 8, "maximum": 20, "price_usd_per_hour": 300.0}
    kinds.append({"node": "dgx-b200"} | small)  # takes up little, and is dear
    rate = {"requests_per_s": 200.0}
    free = solved(base(kinds=kinds, require=rate))
    nodes = int(free.counts.sum())
    assert free.counts[2].sum() == 0
    power = float(free.counts.sum(axis=1) @ [12.0, 9.0, 3.0])
    racks = int(free.counts[0].sum() + -(-free.counts[1].sum() // 2))
    for limits, taken in (
        ({"nodes": nodes - 1}, lambda c: c.sum() <= nodes - 1),
        ({"power_kw": power - 1}, lambda c: c.sum(axis=1) @ [12.0, 9.0, 3.0] <= power - 1),
        (
            {"racks": racks - 1},
            lambda c: c[0].sum() + -(-c[1].sum() // 2) + -(-c[2].sum() // 8) <= racks - 1,
        ),
    ):
        asked = base(kinds=kinds, limits=limits, require=rate)
        assert not taken(free.counts)
        found = solved(asked)
        assert taken(found.counts)
        assert found.cost > free.cost


def test_sessions_a_second_are_requests_over_turns() -> None:
    work = {"synthetic": {"row": "64K", "sessions": 20}}
    asked = question(kinds=KINDS, workload=work, require={"sessions_per_s": 3.0})
    workload = asked.scenario.workload
    assert asked.required == pytest.approx(3.0 * workload.turns / workload.session_count)


def test_idle_nodes_that_cost_nothing_are_no_part_of_a_fleet() -> None:
    kinds = [KINDS[0] | {"owned": 4, "maximum": 4}, KINDS[1]]
    found = solved(base(kinds=kinds, require={"requests_per_s": 1.0}))
    assert found.counts.tolist() == [[2, 2], [0, 0]] or found.counts.sum() < 4
    assert found.counts.sum() == min(
        counts.sum()
        for counts in everything(base(kinds=kinds))
        if cost_of(base(kinds=kinds), counts) <= found.cost + 1e-9
        and meets(base(kinds=kinds), counts, 1.0)
    )


def test_the_mix_has_the_rates_of_its_classes() -> None:
    chat = {"moments": {"prompt_tokens": 4000, "miss_tokens": 1500, "output_tokens": 200}}
    agents = {"synthetic": {"row": "32K", "sessions": 40}}
    asked = question(
        kinds=KINDS,
        classes=[
            {"name": "agents", "share": 1.0, "workload": agents},
            {"name": "chat", "requests_per_s": 30.0, "workload": chat},
        ],
        require={"requests_per_s": 10.0},
    )
    rates = asked.rates(asked.cases[0], 10.0)
    one, sessions_per_s = mixed(asked.scenario, rates)
    turns = one.workload.turns / one.workload.session_count
    assert sessions_per_s * turns == pytest.approx(40.0, rel=0.02)
    of_chat = (one.workload.prompt_tokens == 4000).mean()
    assert of_chat == pytest.approx(0.75, abs=0.02)
    lengths = np.diff(one.workload.offsets)
    assert set(lengths.tolist()) <= {1, *np.diff(asked.scenario.workload.offsets).tolist()}


# ---- size ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("survive", [0, 1])
def test_twelve_kinds_and_two_thousand_nodes_take_half_a_minute(survive: int) -> None:
    from benchmarks.fleet import large

    asked = large(survive)
    begun = time.process_time()
    uses = uses_of(asked)
    found = best(asked, uses, effort=Effort(gap=0.01))
    assert time.process_time() - begun <= 30.0
    assert found is not None
    assert len(asked.kinds) == 12
    assert found.counts.sum() >= 2000
    assert found.gap <= 0.01
    for s in range(len(asked.cases)):
        for loss in (*losses(found.counts, survive), ()):
            left = after(found.counts, loss)
            assert served(asked, uses, left, s, found.rate) >= 1 - 1e-6


# ---- conflicts and prices ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 12])
def test_a_conflict_is_one_and_none_of_it_can_be_left_out(seed: int) -> None:
    asked = random_question(seed)
    uses = uses_of(asked)
    all_of_it = requirements(asked, uses)
    conflict = smallest(asked, uses, all_of_it)
    assert len(conflict) >= 2

    def possible(kept: list[Any]) -> bool:
        q, u = asked, uses
        for one in all_of_it:
            if one not in kept:
                q, u = one.drop(q, u)
        return best(q, u) is not None

    assert not possible(conflict)
    for size in range(len(conflict)):
        for some in itertools.combinations(conflict, size):
            assert possible(list(some))


@pytest.mark.parametrize(
    ("limits", "kinds", "words"),
    [
        ({"nodes": 4}, KINDS, ["4 nodes (limits.nodes)", "200 requests/s (require)"]),
        ({"budget_usd_per_hour": 90.0}, KINDS, ["90.0 USD/h", "200 requests/s (require)"]),
        ({"budget_usd_per_hour": 40.0}, KINDS, ["40.0 USD/h", "no rate at all is possible"]),
        ({}, KINDS, ["at most 4 of paper-hopper", "at most 3 of dgx-h200", "200 requests/s"]),
    ],
)
def test_an_infeasible_fleet_says_what_conflicts_and_what_would_be_possible(
    limits: dict[str, Any], kinds: list[dict[str, Any]], words: list[str]
) -> None:
    asked = question(kinds=kinds, limits=limits, require={"requests_per_s": 200.0})
    with pytest.raises(InfeasibleError) as raised:
        fleet(asked)
    text = str(raised.value)
    assert all(word in text for word in words), text
    assert "scenario" not in text
    possible = [
        promised(asked, asked.cases[0], counts, 1.0)
        for counts in everything(asked)
        if cost_of(asked, counts) <= (asked.limits.budget or math.inf)
    ]
    if max(possible, default=0.0) > 0:
        assert f"{max(possible):.2f}"[:4] in text.split("up to ")[1]


def test_worth_is_the_difference_of_two_searches() -> None:
    limits = {"survive": 1, "nodes": 7}
    asked = base(limits=limits, scenarios=[{"name": "peak", "rate": 1.3}])
    answer = fleet(asked, effort=EXACT, points=0)
    worth = {one.change: one.worth for one in answer.worth}
    for change, other in (
        ("survive 0 lost nodes instead of 1", asked.with_limits(survive=0)),
        ("one more node allowed", asked.with_limits(nodes=8)),
        ("without scenario 'peak'", replace(asked, cases=asked.cases[:1])),
        ("one more dgx-h200 owned", asked.with_kind(1, owned=1, maximum=4)),
    ):
        tried = cheapest(other, 50.0)
        assert tried is not None
        assert worth[change] == pytest.approx(answer.cost_usd_per_hour - tried[0], abs=1e-6)
    # As the report says: all are looser, but for the required rate.
    dearer = {one.change for one in answer.worth if (one.worth or 0.0) < 0}
    assert dearer <= {"1 % more required rate"}


def test_one_more_place_is_worth_what_the_nodes_there_save() -> None:
    """Decode nodes are cheap in the other place, and no other requirement binds."""
    here = KINDS[0] | {"price_usd_per_hour": 90.0, "place": "a", "roles": ["prefill"]}
    dear = KINDS[1] | {"price_usd_per_hour": 300.0, "place": "a"}
    there = KINDS[1] | {"name": "there", "place": "b", "roles": ["decode"]}
    asked = base(kinds=[here, dear, there])
    answer = fleet(asked, effort=EXACT, points=0)
    worth = {one.change: one for one in answer.worth if one.what == "requirement"}
    both = cheapest(asked.with_limits(places=2), 50.0)
    assert both is not None
    assert worth["one more place"].binding
    assert worth["one more place"].worth == pytest.approx(answer.cost_usd_per_hour - both[0])
    everywhere = fleet(asked.with_limits(places=2), effort=EXACT, points=0)
    assert "one more place" not in {one.change for one in everywhere.worth}


def test_the_front_has_no_fleet_that_another_one_beats() -> None:
    kinds = [kind | {"maximum": 20} for kind in KINDS]
    asked = base(kinds=kinds, limits={"survive": 1}, require={"requests_per_s": 150.0})
    points = fleet(asked, effort=EXACT, explain=False, points=6).front
    assert len(points) >= 4
    costs = [point.cost_usd_per_hour for point in points]
    rates = [point.requests_per_s for point in points]
    assert costs == sorted(set(costs))
    assert rates == sorted(set(rates))
    uses = uses_of(asked)
    for point in points:
        more = replace(asked, required=point.requests_per_s * 1.001)
        dearer = best(more, uses, effort=EXACT)
        assert dearer is None or dearer.cost > point.cost_usd_per_hour


def test_ctrl_c_keeps_the_fleet_that_was_found() -> None:
    def stop(done: float, text: str) -> None:
        if text.startswith("worth"):
            raise KeyboardInterrupt

    answer = fleet(base(), progress=stop)
    assert answer.interrupted
    assert answer.nodes
    assert answer.worth == ()
    with pytest.raises(KeyboardInterrupt):
        fleet(base(), progress=lambda done, text: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_json_tells_the_share_of_the_promise_and_whether_the_runs_held() -> None:
    found = to_json(fleet(base(), explain=False, points=0))
    assert found["simulation"]["skipped"] == "switched off"
    assert found["simulation"]["holds"] is False


@pytest.mark.slow
def test_a_measured_margin_ends_with_a_fleet_that_the_simulator_agrees_with() -> None:
    kinds = [kind | {"maximum": 12} for kind in KINDS]
    asked = base(kinds=kinds, margin="simulated", require={"requests_per_s": 40.0})
    answer = fleet(asked, run=Run(30.0, 60.0, tolerance=0.05), explain=False, points=0)
    assert answer.simulation.holds
    assert max(answer.margins) < 1.0
    assert answer.simulation.margins[0] == (1.0, 1.0)
    assert answer.simulation.reach[0].simulated >= 0.95 * 40.0
    assert answer.promises[0].within >= 40.0 * (1 - 1e-6)
    first, second = answer.simulation.pools
    assert (first.pool, second.pool) == ("prefill", "decode")
    assert first.limit == "ttft"  # with decode nodes enough, prefill limits
    assert answer.margins[0] <= first.share
    assert answer.margins[1] <= second.share


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kinds": []}, "kinds: "),
        ({"kinds": [{"node": "dgx-h100"}]}, "dgx-h100 has no price"),
        ({"kinds": [{"node": "dgx-h10"}]}, "kinds.0.node: node 'dgx-h10' is unknown"),
        ({"kinds": [KINDS[0], KINDS[0]]}, "kind 'paper-hopper' is given twice"),
        ({"kinds": [KINDS[0] | {"minimum": 9}]}, "minimum 9 is more than maximum 4"),
        ({"kinds": [KINDS[0] | {"roles": ["decode"]}]}, "no kind may do prefill"),
        ({"kinds": [KINDS[0] | {"role": "decode"}]}, "did you mean 'roles'"),
        ({"limits": {"power_kw": 10.0}}, "has no power_kw, which the limit needs"),
        ({"limits": {"racks": 3}}, "has no nodes_per_rack"),
        ({"limits": {"survive": 9}}, "limits.survive"),
        ({"require": {}}, "give either requests_per_s or sessions_per_s"),
        ({"require": None}, "what is asked is open"),
        ({"scenarios": [{"name": "a", "classes": {"x": 2.0}}]}, "names class 'x'"),
        ({"scenarios": [{"name": "forecast"}]}, "the name of the file's own traffic"),
        ({"scenarios": [{"name": "a"}, {"name": "a"}]}, "scenario 'a' is given twice"),
        ({"margin": 1.5}, "margin"),
        ({"workload": None}, "give either workload or classes"),
        ({"classes": [{"name": "a", "share": 0.5, "workload": MOMENTS}]}, "sum to 0.5"),
        (
            {"classes": [{"name": "a", "requests_per_s": 5.0, "workload": MOMENTS}]},
            "every class has requests_per_s of its own",
        ),
    ],
)
def test_bad_files_are_refused_in_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as raised:
        base(**fields)
    text = str(raised.value)
    assert words in text
    assert text.startswith("test.yaml:")
    assert "\n" not in text


def refused(change: Callable[[], object]) -> str:
    with pytest.raises(InputError) as raised:
        change()
    return str(raised.value)


def test_questions_that_nothing_bounds_are_refused() -> None:
    free = [{"node": "dgx-h200", "price_usd_per_hour": 0.0}]
    asked = question(kinds=free, limits={"budget_usd_per_hour": 10.0})
    assert "give it a maximum" in refused(lambda: best(asked, uses_of(asked)))
    measured = base(margin="simulated")
    assert "needs the simulator" in refused(lambda: fleet(measured))


def test_a_kind_that_can_do_nothing_is_named_with_its_reason() -> None:
    slow = {"node": "aws-g6e.48xlarge", "maximum": 9}
    answer = fleet(base(kinds=[*KINDS, slow]), explain=False, points=0)
    assert not {"aws-g6e.48xlarge"} & {bought.kind for bought in answer.nodes}
    wide = fleet(base(kinds=[slow | {"maximum": 40}]), explain=False, points=0)
    gpus = 8 * wide.decode_nodes  # 48 GB GPUs hold their part of the experts from 24 on
    assert gpus >= 24
    assert wide.promises[0].promised >= 50.0
    with pytest.raises(InfeasibleError, match="no kind of node can do decode: "):
        uses_of(base(slo={"ttft": "4 s", "tpot": "1 ms"}))


def test_most_rate_where_a_rate_is_required_is_as_much_of_it_as_is_possible() -> None:
    asked = base(require={"requests_per_s": 1000.0})
    found = best(asked, uses_of(asked), goal=Goal.MOST_RATE, effort=EXACT)
    assert found is not None
    most = max(promised(asked, asked.cases[0], counts, 1.0) for counts in everything(asked))
    assert found.rate == pytest.approx(most, rel=1e-6)
