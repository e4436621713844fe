"""What-if figures show the grid's numbers, say a true sentence, and name what cannot be served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose

from app import figures_whatif as drawing
from app.figure_data import csv_of
from dualpath_model import Scenario, load_scenario
from dualpath_model.paths import Direction, Key, Pool, Resource
from solvers import Plan
from solvers import plan as make_plan
from solvers.grid import Axis, Cell, Grid
from solvers.sensitivity import Sensitivity
from tests.conftest import ROOT

NODES = (2, 4)
SNIC = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
GPU = Key(Pool.PREFILL, Resource.GPU, Direction.COMPUTE)
REASON = "<b>it</b> does not fit"


def made(
    rates: list[list[float]],
    x: Axis | None = None,
    y: Axis | None = None,
    reasons: Mapping[Cell, str] | None = None,
) -> Grid:
    """Return a grid of given rates, twice Basic; the first column is limited by NICs."""
    throughput = np.array(rates)
    limit = np.ones(throughput.shape, np.intp)
    limit[:, 0] = 0
    limit[np.isnan(throughput)] = -1
    return Grid(
        x or Axis("decode_nodes", (2, 4, 8)),
        y or Axis("prefill_nodes", (1, 2)),
        np.where(np.isnan(throughput), np.nan, 0.25),
        throughput,
        throughput / 2,
        limit,
        (SNIC, GPU),
        reasons or {},
    )


WHOLE = [[10.0, 20.0, 20.0], [30.0, 40.0, 80.0]]
HOLED = [[np.nan, 20.0, 20.0], [30.0, 40.0, 80.0]]


def title(figure: object) -> str:
    return str(figure.layout.title.text)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("snic_bytes_per_s", 50e9, "400 Gbps"),
        ("snic_bytes_per_s", 51.8125e9, "414 Gbps"),
        ("snic_bytes_per_s", 999.96e9 / 8, "1,000 Gbps"),
        ("dram_bytes_per_s", 2.2528e12, "2,253 GB/s"),
        ("hit_rate", 0.9954, "99.54 %"),
        ("hit_rate", 0.5, "50 %"),
        ("append_tokens", 75.23, "75.2 tokens"),
        ("context_tokens", 32468.0, "32,468 tokens"),
        ("prefill_nodes", 12.0, "12"),
        ("prefill_nodes", 1234.0, "1,234"),
        ("llm", "ds-27b", "ds-27b"),
    ],
)
def test_values_are_written_as_vendors_and_people_do(
    name: str, value: float | str, text: str
) -> None:
    assert drawing.shown(name, value) == text


def test_labels_differ_even_where_values_nearly_agree() -> None:
    axis = Axis("snic_bytes_per_s", tuple(50e9 * (1 + 1e-5 * k) for k in range(5)))
    assert len(set(drawing.labels(axis))) == 5


def test_every_axis_has_its_unit_in_the_title() -> None:
    assert drawing.title_of(Axis("snic_bytes_per_s", (1.0,))) == "rate of a storage NIC, Gbps"
    assert drawing.title_of(Axis("append_tokens", (1.0,))) == "append, tokens a request"
    assert drawing.title_of(Axis("hit_rate", (0.5,))) == "hit rate, %"


def test_what_is_shown_of_a_cell() -> None:
    found = made(WHOLE)
    assert_allclose(drawing.values_of(found, "throughput", NODES), WHOLE)
    assert_allclose(drawing.values_of(found, "speedup", NODES), np.full((2, 3), 2.0))
    assert_allclose(drawing.values_of(found, "split", NODES), np.full((2, 3), 25.0))
    per_node = [[10 / 3, 20 / 5, 20 / 9], [30 / 4, 40 / 6, 80 / 10]]
    assert_allclose(drawing.values_of(found, "per_node", NODES), per_node)


def test_nodes_that_no_axis_moves_are_the_scenarios() -> None:
    found = made(WHOLE, y=Axis("append_tokens", (100.0, 200.0)))
    assert_allclose(drawing.values_of(found, "per_node", NODES)[0], [10 / 4, 20 / 6, 20 / 10])
    found = made(WHOLE, Axis("append_tokens", (1.0, 2.0, 3.0)), Axis("hit_rate", (0.1, 0.2)))
    assert_allclose(drawing.values_of(found, "per_node", NODES), np.array(WHOLE) / 6)


def test_a_basic_of_nothing_has_no_speed_up() -> None:
    found = replace(made(WHOLE), throughput_basic=np.zeros((2, 3)))
    assert np.isnan(drawing.values_of(found, "speedup", NODES)).all()
    assert "None" in title(drawing.heat_map(found, "speedup", NODES, (4.0, 2.0)))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (
            "throughput",
            "Most: 80.0 requests/s at prefill nodes (P) 2, decode nodes (D) 8; "
            "2.00 times this scenario",
        ),
        (
            "per_node",
            "Most: 8.0 requests/s a node at prefill nodes (P) 2, decode nodes (D) 8; "
            "1.20 times this scenario",
        ),
        ("speedup", "The same everywhere: 2.00 times Basic"),
        ("split", "The same everywhere: 25 % through decode nodes"),
        (
            "bottleneck",
            "What limits: prefill GPU compute (67% of the map, this scenario too); "
            "prefill storage NICs, in (33% of the map)",
        ),
    ],
)
def test_the_title_is_the_finding(what: str, sentence: str) -> None:
    assert title(drawing.heat_map(made(WHOLE), what, NODES, (4.0, 2.0))) == sentence


def test_it_says_so_where_nothing_is_better() -> None:
    found = made([[10.0, 80.0, 80.0], [30.0, 80.0, 80.1]])
    sentence = title(drawing.heat_map(found, "throughput", NODES, (4.0, 1.0)))
    assert sentence == "Nothing here beats the 80.0 requests/s of this scenario"


def test_of_equals_the_cheapest_is_named_whatever_the_rounding() -> None:
    found = made([[10.0, 20.0, 20.0], [30.0, 80.0, 80.0 * (1 + 1e-12)]])
    assert "decode nodes (D) 4" in title(drawing.heat_map(found, "throughput", NODES, (2.0, 1.0)))


def test_each_cell_tells_its_figures() -> None:
    cells = drawing.heat_map(made(WHOLE), "split", NODES, (4.0, 2.0)).data[0].customdata
    assert_allclose(np.array(cells)[:, :, 0].astype(float), WHOLE)
    assert cells[0][0][2] == 0.25
    assert {cell[3] for row in cells for cell in row} <= {
        "prefill GPU compute",
        "prefill storage NICs, in",
    }


def test_the_scenario_is_marked_where_it_is() -> None:
    figure = drawing.heat_map(made(WHOLE), "throughput", NODES, (4.0, 2.0))
    (mark,) = (trace for trace in figure.data if trace.type == "scatter")
    assert (mark.name, list(mark.x), list(mark.y)) == ("this scenario", ["4"], ["2"])
    assert "40.0 requests/s" in mark.text[0]


@pytest.mark.parametrize("now", [(64.0, 2.0), (4.0, 9.0), ("no-such-llm", 2.0)])
def test_no_mark_outside_the_map(now: tuple[float | str, float]) -> None:
    x = Axis("llm", ("ds-27b", "kimi-k2", "glm-4.6")) if isinstance(now[0], str) else None
    figure = drawing.heat_map(made(WHOLE, x), "throughput", NODES, now)
    assert [trace.type for trace in figure.data] == ["heatmap"]
    assert "this scenario" not in title(figure)


def test_cells_that_cannot_be_served_are_grey_and_say_why() -> None:
    figure = drawing.heat_map(made(HOLED, reasons={(0, 0): REASON}), "throughput", NODES, (4.0, 2))
    grey = next(trace for trace in figure.data if trace.name == "cannot be served")
    assert np.isfinite(grey.z).tolist() == [[True, False, False], [False, False, False]]
    assert grey.text[0][0] == "&lt;b&gt;it&lt;/b&gt; does not fit"
    assert grey.colorscale[0][1] == grey.colorscale[1][1]
    assert np.isnan(figure.data[0].z[0][0])


def test_where_nothing_can_be_served_there_is_still_a_map() -> None:
    nothing = made([[np.nan] * 3] * 2, reasons={(j, i): REASON for j in range(2) for i in range(3)})
    for what in drawing.SHOWN:
        figure = drawing.heat_map(nothing, what, NODES, (4.0, 2.0))
        assert title(figure) == "None of these can be served"


def test_what_limits_has_a_colour_each_and_a_name() -> None:
    figure = drawing.heat_map(made(HOLED, reasons={(0, 0): ""}), "bottleneck", NODES, (4.0, 2.0))
    bar = figure.data[0].colorbar
    assert list(bar.ticktext) == ["prefill storage<br>NICs, in", "prefill GPU<br>compute"]
    assert_allclose(figure.data[0].z, np.array([[np.nan, 1, 1], [0, 1, 1]]))
    colours = {colour for _, colour in figure.data[0].colorscale}
    assert len(colours) == 2 and figure.data[1].colorscale[0][1] not in colours


def test_ticks_are_few_for_numbers_and_all_for_names() -> None:
    numbers = Axis("append_tokens", tuple(np.geomspace(10, 1000, 40).tolist()))
    names = Axis("llm", tuple(f"llm-{k}" for k in range(14)))
    figure = drawing.heat_map(
        made(np.ones((14, 40)).tolist(), numbers, names), "split", NODES, (20.0, "llm-0")
    )
    assert len(figure.layout.xaxis.tickvals) <= 9
    assert list(figure.layout.yaxis.ticktext) == list(names.values)
    assert set(figure.layout.xaxis.tickvals) <= set(figure.data[0].x)


def test_its_csv_has_every_cell() -> None:
    figure = drawing.heat_map(made(WHOLE), "throughput", NODES, (4.0, 2.0))
    lines = csv_of(figure).splitlines()
    assert lines[1] == "requests/s with both paths,2,1,10.0"
    assert len(lines) == 1 + 6 + 1  # head, cells, the mark


# ---- sensitivities ---------------------------------------------------------------------------------

ROWS = (
    Sensitivity("prefill_nodes", 1.0, 3.0, None, 130.0, 100.0, REASON),
    Sensitivity("hit_rate", 0.98, 0.99, 80.0, 110.0, 100.0),
    Sensitivity("append_tokens", 240.0, 360.0, 105.0, 93.0, 100.0),
    Sensitivity("cnic_bytes_per_s", 40e9, 60e9, 100.0, 100.0, 100.0),
)


def test_bars_are_the_changes_strongest_on_top() -> None:
    figure = drawing.tornado(ROWS, 0.2)
    less, more = figure.data[:2]
    assert (less.name, more.name) == ("20% less", "20% more")
    ends = [
        "append<br>240 to 360 tokens",
        "hit rate<br>98 to 99.00 %",
        "prefill nodes (P)<br>1 to 3",
    ]
    assert list(more.y) == ends
    assert less.x[2] is None
    assert_allclose(np.array(less.x[:2], float), [5.0, -20.0])
    assert_allclose(np.array(more.x, float), [-7.0, 10.0, 30.0])
    assert (less.text[1], less.customdata[1]) == ("-20.0 %", "98 %")
    assert figure.layout.xaxis.title.text == "change of throughput, %"


def test_all_bars_and_their_labels_fit() -> None:
    low, high = drawing.tornado(ROWS, 0.2).layout.xaxis.range
    assert low < -30 and high > 30


def test_a_value_that_cannot_be_served_is_named_with_its_reason() -> None:
    figure = drawing.tornado(ROWS, 0.2)
    (note,) = (trace for trace in figure.data if trace.type == "scatter")
    assert list(note.y) == ["prefill nodes (P)<br>1 to 3"]
    assert note.text[0].strip() == "1: not served"
    assert note.textposition[0] == "middle left"  # the other's bar goes right
    assert note.hovertext[0] == "&lt;b&gt;it&lt;/b&gt; does not fit"
    assert title(figure) == "Most depends on prefill nodes (P): with 1 it cannot be served"


def test_both_values_that_cannot_be_served_are_named() -> None:
    figure = drawing.tornado([replace(ROWS[0], throughput_high=None)], 0.2)
    assert figure.data[2].text[0].strip() == "1 and 3: not served"


def test_the_strongest_effect_is_the_title() -> None:
    sentence = title(drawing.tornado(ROWS[1:], 0.2))
    assert sentence == "Most depends on hit rate: -20.0 % with 98 %"


def test_what_has_no_effect_is_told_not_drawn() -> None:
    assert drawing.without_effect(ROWS) == ["rate of a compute NIC"]
    figure = drawing.tornado(ROWS[3:], 0.2)
    assert title(figure) == "Nothing moves the throughput"
    assert all(len(trace.y) == 0 for trace in figure.data)


# ---- side by side ----------------------------------------------------------------------------------


@cache
def small() -> Plan:
    found: Scenario = load_scenario(ROOT / "examples" / "ds-27b-1p1d.yaml")
    return make_plan(found, intervals=False)


def test_each_plan_has_its_three_bars() -> None:
    plan = small()
    figure = drawing.comparison({"a": plan, "3": replace(plan, throughput_requests_per_s=999.0)})
    limit, dual, basic = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["3", "a"]  # from below
    assert_allclose(dual.x, [999.0, plan.throughput_requests_per_s])
    assert_allclose(basic.x, [plan.throughput_basic_requests_per_s] * 2)
    assert limit.x[1] == plan.throughput_oracle_requests_per_s
    assert title(figure) == "3 serves most: 999.0 requests/s"
    assert figure.layout.xaxis.title.text == "requests/s"


def test_other_work_is_not_compared_in_silence() -> None:
    plan = small()
    figure = drawing.comparison({"a": plan, "b": replace(plan, llm="another")})
    assert "other work" in title(figure)


def test_no_compute_limit_is_no_bar() -> None:
    figure = drawing.comparison({"a": replace(small(), throughput_oracle_requests_per_s=None)})
    assert figure.data[0].x[0] is None and figure.data[0].text[0] == ""


def test_long_names_wrap_and_cannot_carry_markup() -> None:
    long = "<script>alert(1)</script> with a second storage NIC and contexts of half the length"
    figure = drawing.comparison({long: small(), "b": small(), "b ": small()})
    ticks = figure.layout.yaxis.ticktext
    assert "<script" not in ticks[2] and "&lt;script&gt;" in ticks[2]
    assert ticks[2].count("<br>") == 2
    assert "<script" not in title(figure)
    assert len(set(figure.data[0].y)) == 3  # equal names stay apart


def test_rounding_is_not_drawn() -> None:
    """A map of equal values has one colour, not the colours of their last digits."""
    found = replace(
        made(WHOLE), split=np.full((2, 3), 2 / 3) * (1 + 1e-13 * np.arange(6)).reshape(2, 3)
    )
    figure = drawing.heat_map(found, "split", NODES, (4.0, 2.0))
    heat = figure.data[0]
    assert heat.zmax - heat.zmin > 10
    assert heat.colorbar.title.text == "read through decode nodes, %"
