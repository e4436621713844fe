"""Figures show the plan's numbers, and only those; names cannot carry markup."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from numpy.testing import assert_allclose

from app import figures
from app import plan_view as view
from dualpath_model import Scenario
from dualpath_model.loads import Parallelism
from dualpath_model.paths import Direction, Key, Pool, Resource
from solvers import Plan
from solvers import plan as make_plan
from tests.app.conftest import planned

Case = tuple[Plan, Scenario]


def links(case: Case) -> list[tuple[str, str, float]]:
    """Return the sankey's links by name."""
    trace = figures.sankey(*case).data[0]
    names = trace.node.customdata
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
        assert_allclose(into["prefill DRAM"], out["prefill DRAM"], rtol=1e-9)


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
    into_hbm = sum(v for (_, target), v in flow.items() if target == "prefill HBM")
    assert_allclose(into_hbm, load["prefill cnic write"], rtol=1e-9)


def labels(case: Case) -> dict[str, list[str]]:
    """Return the lines below each place's name."""
    node = figures.sankey(*case).data[0].node
    found = dict(zip(node.customdata, (label.split("<br>") for label in node.label), strict=True))
    assert all(lines[0] == name for name, lines in found.items())
    return {name: lines[1:] for name, lines in found.items()}


def test_sankey_marks_what_is_saturated(paper: Case) -> None:
    found = labels(paper)
    assert found["prefill HBM"][-1] == "compute saturated"  # prefill compute binds here
    assert found["storage"] == ["272 GB/s"]


def test_sankey_names_the_nics_that_carry_reads() -> None:
    found = labels(planned("deepseek-v3.2-aws-p5"))
    assert "prefill compute NICs" in found  # these nodes have no others
    assert found["prefill DRAM"][-1] == "host link saturated"


def test_bars_are_the_plans_utilisation(case: Case) -> None:
    plan, _ = case
    traces = figures.utilisation_bars(plan).data
    drawn = {"dual path": Counter[str](), "Basic": Counter[str]()}
    for trace in traces:
        drawn[trace.offsetgroup].update(dict(zip(trace.y, trace.x, strict=True)))
    for name, field in (("dual path", "dual_path"), ("Basic", "basic")):
        assert set(drawn[name]) == {view.words(row) for row in plan.utilisation}
        for label, value in drawn[name].items():
            rows = [row for row in plan.utilisation if view.words(row) == label]
            assert_allclose(value, 100 * max(getattr(row, field) for row in rows))
    full = next(trace for trace in traces if trace.marker.color == view.SATURATED)
    assert all(value > 99.99 for value in full.x)


def test_what_limits_nothing_is_not_marked() -> None:
    """Of uneven decode nodes the LP fills some; their GPUs are full and more of them would not help."""
    plan, scenario = planned("mixed-traffic")
    bar = next(bar for bar in view.bars(plan) if bar.label == "decode GPU compute")
    assert bar.dual_path >= view.FULL
    assert not bar.saturated
    assert "decode HBM" in labels((plan, scenario))
    assert "compute saturated" not in labels((plan, scenario))["decode HBM"]


def test_100_percent_is_written_only_of_what_is_used_up() -> None:
    assert [view.percent(share) for share in (0.5, 0.994, 0.997, 1.0)] == [
        "50%",
        "99%",
        ">99%",
        "100%",
    ]


def test_a_split_that_gains_nothing_is_no_number(paper: Case) -> None:
    plan, _ = paper
    assert view.split_text(plan) == "66.7%"
    assert view.split_text(replace(plan, speedup_over_basic=1.0)) == "any, no gain"


def test_hover_lists_the_nodes() -> None:
    plan, _ = planned("mixed-traffic")
    bar = next(bar for bar in view.bars(plan) if bar.label == "prefill DRAM")
    rows = [row for row in plan.utilisation if view.words(row) == bar.label]
    assert f"nodes 0-1: {100 * rows[0].dual_path:.1f} %" in bar.nodes
    assert bar.nodes.count("node") == len({round(row.dual_path, 3) for row in rows})


def test_ratio_axis_shows_range_and_cluster(paper: Case) -> None:
    figure = figures.ratio_axis(paper[0])
    band, line = figure.layout.shapes
    assert (band.x0, band.x1) == (1 / 7, 7 / 2)
    assert line.x0 == 0.5
    assert "inside the bottleneck-free range 0.143 to 3.5" in figure.layout.title.text


def test_no_ratio_is_free(paper: Case) -> None:
    """Slow memory on one side excludes every P/D; two slow sides exclude each other."""
    _, scenario = paper

    def with_dram(**rates: float) -> Plan:
        changed = scenario
        for pool, speed in rates.items():
            changed = changed.with_each_node(
                Pool(pool), partial(replace, dram_bytes_per_s=speed * 1e9)
            )
        return make_plan(changed)

    for pool, speed in (("prefill", 80.0), ("decode", 140.0)):
        made = with_dram(**{pool: speed})
        assert view.free_range(made) is None
        assert f"overload {pool} DRAM" in view.range_sentence(made)
        shapes = figures.ratio_axis(made).layout.shapes
        assert [shape.type for shape in shapes] == ["line"]  # the cluster, and no band
    narrow = with_dram(decode=155.0)  # at most 0.05, where the compute NICs ask for 1/7
    assert "prefill compute NICs, write asks for 0.143 or more" in view.range_sentence(narrow)


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


def test_basic_reads_what_its_own_mix_reads() -> None:
    """Basic serves another mix of classes; its reads are those of its storage NICs."""
    for name in ("mixed-traffic", "dram-cache"):
        plan, _ = planned(name)
        read = sum(
            row.basic * row.capacity
            for row in plan.utilisation
            if (row.pool, row.resource, row.direction) == ("prefill", "snic", "in")
        )
        assert_allclose(view.side_rates(plan).basic, read, rtol=1e-6)


def test_streams_equal_the_demand_of_the_fabric(case: Case) -> None:
    """Hand-off and layers between the pools, with cached hits and without miss traffic alike."""
    plan, scenario = case
    want: Counter[Key] = Counter()
    for loads, part in zip(scenario.class_loads(), plan.classes, strict=True):
        for key, amount in loads.shared_demand.at(part.split).items():
            want[key] += float(amount) * part.requests_per_s
    found = view.streams(plan, scenario)
    for key, amount in want.items():
        if key.resource is Resource.FABRIC:
            ends = ("prefill", "decode")
            stream = found[ends if key.direction is Direction.TO_DECODE else ends[::-1]]
            assert_allclose(stream.bytes_per_s, amount, rtol=1e-6)


def test_tensor_parallel_copies_count(paper: Case) -> None:
    """MLA's cache goes whole to each rank of a tensor-parallel group: eight times into HBM."""
    _, scenario = paper
    whole = Parallelism(tensor=8)
    scenario = replace(scenario, serving=replace(scenario.serving, prefill=whole, decode=whole))
    plan = make_plan(scenario)
    at = scenario.loads().prefill[0].demand.at(plan.split)
    want = float(at[Key(Pool.PREFILL, Resource.CNIC, Direction.WRITE)])
    into = sum(v for _, target, v in links((plan, scenario)) if target == "prefill HBM")
    assert_allclose(into, want * plan.throughput_requests_per_s, rtol=1e-6)
    assert into > 7 * sum(v for source, _, v in links((plan, scenario)) if source == "storage")


@pytest.mark.parametrize(
    "part", ["headline", "saturation_sentence", "oracle_sentence", "range_sentence"]
)
def test_sentences_are_sentences(case: Case, part: str) -> None:
    text = getattr(view, part)(case[0])
    assert text
    assert "None" not in text
    assert "nan" not in text.split()


def test_headline_says_when_nothing_is_gained(paper: Case) -> None:
    flat = replace(paper[0], speedup_over_basic=1.0)
    assert "gains nothing" in view.headline(flat)
    assert "gives" in view.headline(paper[0])
    assert view.headline(paper[0]).startswith("Prefill storage NICs limit Basic at 87.7")
    assert {flow.pool for flow in paper[0].flows} == {Pool.PREFILL.value, Pool.DECODE.value}
