"""Figures show the plan's numbers, and only those; names cannot carry markup."""

from __future__ import annotations

from collections import Counter

import pytest
from numpy.testing import assert_allclose

from app import figures
from app import plan_view as view
from dualpath_model import Scenario
from dualpath_model.paths import Pool
from solvers import Plan

Case = tuple[Plan, Scenario]


def links(case: Case) -> list[tuple[str, str, float]]:
    """Return the sankey's links by name."""
    trace = figures.sankey(*case).data[0]
    names = [label.split("<br>")[0] for label in trace.node.label]
    link = trace.link
    return [
        (names[s], names[t], v)
        for s, t, v in zip(link.source, link.target, link.value, strict=True)
    ]


def test_sankey_conserves_bytes_where_nothing_is_made(case: Case) -> None:
    """Through storage NICs and into the prefill DRAM all that comes in goes on."""
    into, out = Counter[str](), Counter[str]()
    for source, target, value in links(case):
        out[source] += value
        into[target] += value
    for place in ("prefill storage NICs", "decode storage NICs"):
        assert_allclose(into[place], out[place], rtol=1e-9)
    cached = case[1].serving.dram_cache_hit_share
    if not cached:
        assert_allclose(into["PE DRAM"], out["PE DRAM"], rtol=1e-9)


def test_sankey_equals_demand_times_rate(paper: Case) -> None:
    """The same bytes as the loads: storage NICs, hand-off and write-back from the demand matrix."""
    plan, scenario = paper
    demand = scenario.loads()
    rate = plan.throughput_requests_per_s
    at = demand.prefill[0].demand.at(plan.split), demand.decode[0].demand.at(plan.split)
    load = {str(key): float(v) * rate for part in at for key, v in part.items()}
    flow = Counter[tuple[str, str]]()
    for source, target, value in links(paper):
        flow[source, target] += value
    assert_allclose(flow["storage", "prefill storage NICs"], load["prefill snic in"], rtol=1e-9)
    assert_allclose(flow["storage", "decode storage NICs"], load["decode snic in"], rtol=1e-9)
    written = sum(v for (_, target), v in flow.items() if target == "write-back")
    assert_allclose(written, load["decode snic out"], rtol=1e-9)
    into_hbm = sum(v for (_, target), v in flow.items() if target == "PE HBM")
    assert_allclose(into_hbm, load["prefill cnic write"], rtol=1e-9)


def test_sankey_marks_what_is_saturated(paper: Case) -> None:
    labels = figures.sankey(*paper).data[0].node.label
    assert "PE HBM<br>saturated" in labels  # prefill compute binds here
    assert "storage" in labels


def test_bars_are_the_plans_utilisation(case: Case) -> None:
    plan, _ = case
    dual, basic = figures.utilisation_bars(plan).data
    for trace, field in ((dual, "dual_path"), (basic, "basic")):
        for label, value in zip(trace.y, trace.x, strict=True):
            rows = [row for row in plan.utilisation if view.words(row) == label]
            assert_allclose(value, 100 * max(getattr(row, field) for row in rows))
    assert len(dual.y) == len({view.words(row) for row in plan.utilisation})


def test_ratio_axis_shows_range_and_cluster(paper: Case) -> None:
    figure = figures.ratio_axis(paper[0])
    band, line = figure.layout.shapes
    assert (band.x0, band.x1) == (1 / 7, 7 / 2)
    assert line.x0 == 0.5
    assert "inside the bottleneck-free range 0.143 to 3.5" in figure.layout.title.text


def test_every_figure_of_every_case_draws(case: Case) -> None:
    plan, scenario = case
    for figure in (
        figures.sankey(plan, scenario),
        figures.utilisation_bars(plan),
        figures.ratio_axis(plan),
        figures.neighbours_chart(plan),
        figures.upgrades_chart(plan),
    ):
        assert figure.layout.title.text
        assert len(figure.to_json()) > 500
    for axes in (figures.utilisation_bars(plan), figures.upgrades_chart(plan)):
        assert "%" in axes.layout.xaxis.title.text


def test_sides_add_up(case: Case) -> None:
    plan, _ = case
    sides = view.side_rates(plan)
    both = plan.throughput_requests_per_s * plan.workload.read_bytes_per_request
    assert_allclose(sides.prefill + sides.decode, both, rtol=1e-6)


@pytest.mark.parametrize(
    "part", ["headline", "saturation_sentence", "oracle_sentence", "range_sentence"]
)
def test_sentences_are_sentences(case: Case, part: str) -> None:
    text = getattr(view, part)(case[0])
    assert text
    assert "None" not in text
    assert "nan" not in text.split()


def test_headline_says_when_nothing_is_gained(paper: Case) -> None:
    from dataclasses import replace

    flat = replace(paper[0], speedup_over_basic=1.0)
    assert "gains nothing" in view.headline(flat)
    assert "gives" in view.headline(paper[0])
    assert view.headline(paper[0]).startswith("Prefill storage NICs limit Basic at 87.7")
    assert {flow.pool for flow in paper[0].flows} == {Pool.PREFILL.value, Pool.DECODE.value}
