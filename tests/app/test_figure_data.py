"""The CSV of a figure: every mark is in it, labels are plain, and no cell is a formula."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly import graph_objects
from plotly.subplots import make_subplots

from app import figures
from app.figure_data import csv_of, plain_cell
from app.figures_profile import figure as drawn
from app.profile_panels import intervals
from dualpath_model import load_scenario
from dualpath_model.profile import Estimate
from solvers import plan
from tests.conftest import ROOT


def read(figure: graph_objects.Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_of(figure))))


def test_lines_and_bars() -> None:
    figure = graph_objects.Figure()
    figure.add_scatter(x=[1, 2], y=[0.5, 0.25], name="a<br>b")
    figure.add_bar(x=["P", "D"], y=np.array([3.0, 4.0]), name="=SUM(A1)")
    rows = read(figure)
    assert rows[0] == {"series": "a b", "x": "1", "y": "0.5"}
    assert rows[3] == {"series": "'=SUM(A1)", "x": "D", "y": "4.0"}
    assert len(rows) == 4


def test_a_heat_map_has_a_row_a_cell() -> None:
    z = np.arange(6.0).reshape(2, 3)
    figure = graph_objects.Figure(graph_objects.Heatmap(x=[1, 2, 3], y=[10, 20], z=z))
    rows = read(figure)
    assert len(rows) == 6
    assert rows[4] == {"x": "2", "y": "20", "z": "4.0"}


def test_flows_are_named_by_their_ends() -> None:
    scenario = load_scenario(ROOT / "examples" / "deepseek-660b-2p4d.yaml")
    found = plan(scenario)
    rows = read(figures.sankey(found, scenario))
    from_storage = [row for row in rows if row["source"] == "storage"]
    total = sum(float(row["value"]) for row in from_storage)
    expected = sum(flow.storage_read_bytes_per_s for flow in found.flows)
    assert total == pytest.approx(expected)
    assert {row["series"] for row in from_storage} == {"prefill read", "decode read"}
    assert list(rows[0]) == ["series", "source", "target", "value", "unit"]
    assert {row["unit"] for row in rows} == {"B/s"}


# ---- heads -----------------------------------------------------------------------------------------


def test_columns_are_headed_by_the_titles_of_the_axes_as_plain_text() -> None:
    figure = graph_objects.Figure()
    figure.add_scatter(x=[10], y=[2.5], name="a")
    figure.update_xaxes(title="tokens<br><b>a request</b> &lt; 1k", type="log")
    figure.update_yaxes(title="=seconds")
    assert read(figure) == [{"series": "a", "tokens a request < 1k": "10", "'=seconds": "2.5"}]


def test_axes_of_one_title_have_heads_that_differ() -> None:
    figure = graph_objects.Figure(graph_objects.Scatter(x=[1], y=[2]))
    figure.update_xaxes(title="seconds")
    figure.update_yaxes(title="seconds<br>")
    assert read(figure) == [{"seconds (x)": "1", "seconds (y)": "2"}]


def test_an_axis_named_like_another_column_has_a_head_of_its_own() -> None:
    bars = graph_objects.Bar(x=[1.0], y=[2.0], error_y={"array": [0.5]}, name="a")
    figure = graph_objects.Figure(bars)
    figure.update_xaxes(title="low")
    figure.update_yaxes(title="series")
    assert csv_of(figure).splitlines() == [
        "series,low (x),series (y),low,high",
        "a,1.0,2.0,1.5,2.5",
    ]


def test_traces_of_subplots_have_the_heads_of_their_axes() -> None:
    figure = make_subplots(2, 1, shared_xaxes=True)
    figure.add_scatter(x=[0], y=[3], name="waiting", row=1, col=1)
    figure.add_scatter(x=[0], y=[5e6], name="queued", row=2, col=1)
    figure.update_yaxes(title="requests", row=1)
    figure.update_yaxes(title="tokens", row=2)
    figure.update_xaxes(title="simulated seconds", row=2)
    assert read(figure) == [
        {"series": "waiting", "simulated seconds": "0", "requests": "3", "tokens": ""},
        {"series": "queued", "simulated seconds": "0", "requests": "", "tokens": "5000000.0"},
    ]


def test_subplots_side_by_side_are_told_apart() -> None:
    figure = make_subplots(1, 2, subplot_titles=("Basic", "<b>DualPath</b>"))
    for column, seconds in enumerate((2.0, 1.0), start=1):
        figure.add_bar(x=["0.1"], y=[seconds], name="reading", row=1, col=column)
    figure.update_yaxes(title="seconds", col=1)
    assert read(figure) == [
        {"series": "reading", "panel": "Basic", "x": "0.1", "seconds": "2.0"},
        {"series": "reading", "panel": "DualPath", "x": "0.1", "seconds": "1.0"},
    ]


def test_a_unit_that_stands_at_the_ticks_only_is_in_the_head() -> None:
    figure = graph_objects.Figure(graph_objects.Scatter(x=[1.5e9], y=[2e-3]))
    figure.update_xaxes(
        title="rate", type="linear", tickvals=[0, 1e9, 2e9], ticktext=["0 B/s", "1 GB/s", "2 GB/s"]
    )
    figure.update_yaxes(title="seconds", type="log", tickvals=[1e-3], ticktext=["1 ms"])
    assert read(figure) == [{"rate, B/s": "1500000000.0", "seconds": "0.002"}]


# ---- names -----------------------------------------------------------------------------------------


def test_positions_that_ticks_name_are_written_as_their_names() -> None:
    figure = graph_objects.Figure(graph_objects.Scatter(x=[3.0, 4.0], y=np.array([1.0, 0.0])))
    figure.update_yaxes(tickvals=[0, 1], ticktext=["&lt;b&gt;<i>first</i>", "=second"])
    assert [row["y"] for row in read(figure)] == ["'=second", "<b> first"]


def test_values_between_ticks_or_at_rounded_ones_stay_values() -> None:
    figure = graph_objects.Figure(graph_objects.Scatter(x=[1, 2.5], y=[10, 100], name="a"))
    figure.update_xaxes(tickvals=[1, 2, 3], ticktext=["one", "two", "three"])
    figure.update_yaxes(type="log", tickvals=[10, 100], ticktext=["10 x", "100 x"])
    assert [(row["x"], row["y"]) for row in read(figure)] == [("1", "10"), ("2.5", "100")]


def test_names_that_ticks_shorten_stay_whole() -> None:
    figure = graph_objects.Figure(graph_objects.Bar(x=["a long name"], y=[1]))
    figure.update_xaxes(tickvals=["a long name"], ticktext=["a<br>..."])
    assert read(figure) == [{"x": "a long name", "y": "1"}]


def test_the_codes_of_a_heat_map_are_written_as_names() -> None:
    z = np.array([[0.0, 1.0, np.nan]])
    colours = {"tickvals": [0, 1], "ticktext": ["<b>NICs</b>", "GPUs"]}
    figure = graph_objects.Figure(
        graph_objects.Heatmap(x=[1, 2, 3], y=[7], z=z, colorbar=colours, name="what limits")
    )
    figure.update_xaxes(title="nodes")
    assert [(row["nodes"], row["what limits"]) for row in read(figure)] == [
        ("1", "NICs"),
        ("2", "GPUs"),
        ("3", ""),
    ]


@pytest.mark.parametrize(
    ("title", "name", "head"),
    [
        ("requests/s", "some", "requests/s"),
        ("split", "split: % through decode nodes", "split: % through decode nodes"),
        (None, "some", "some"),
        (None, None, "z"),
    ],
)
def test_a_heat_map_is_headed_by_its_colour_bar(
    title: str | None, name: str | None, head: str
) -> None:
    figure = graph_objects.Figure(
        graph_objects.Heatmap(z=[[0.5]], name=name, colorbar={"title": {"text": title}})
    )
    assert read(figure)[0][head] == "0.5"


def test_a_mask_over_a_heat_map_has_no_value_but_says_why() -> None:
    figure = graph_objects.Figure(graph_objects.Heatmap(z=[[5.0, np.nan]], name="requests/s"))
    figure.add_heatmap(
        z=[[np.nan, 1.0]], text=[["", "it does<br>not fit"]], showscale=False, name="not served"
    )
    assert csv_of(figure).splitlines() == [
        "series,x,y,requests/s,label",
        "requests/s,0,0,5.0,",
        "requests/s,1,0,,",
        "not served,1,0,,it does not fit",
    ]


# ---- intervals -------------------------------------------------------------------------------------


def test_intervals_are_low_and_high() -> None:
    figure = graph_objects.Figure()
    across = {"symmetric": False, "array": [0.2, np.nan], "arrayminus": np.array([0.1, 0.3])}
    figure.add_scatter(x=[1.0, 2.0], y=["P", "D"], error_x=across, name="a")
    figure.add_scatter(x=[1.0], y=["P"], name="b")
    assert csv_of(figure).splitlines() == [
        "series,x,y,low,high",
        "a,1.0,P,0.9,1.2",
        "a,2.0,D,1.7,",
        "b,1.0,P,,",
    ]


def test_an_interval_of_one_length_goes_to_both_sides() -> None:
    figure = graph_objects.Figure(graph_objects.Bar(x=["a"], y=[3.0], error_y={"array": [0.5]}))
    assert read(figure) == [{"x": "a", "y": "3.0", "low": "2.5", "high": "3.5"}]


def test_intervals_along_both_axes_are_told_apart() -> None:
    figure = graph_objects.Figure(
        graph_objects.Scatter(x=[1.0], y=[2.0], error_x={"array": [0.5]}, error_y={"array": [1.0]})
    )
    row = read(figure)[0]
    assert (row["low, x"], row["high, x"]) == ("0.5", "1.5")
    assert (row["low, y"], row["high, y"]) == ("1.0", "3.0")


def test_the_figures_of_a_profile_have_names_and_intervals() -> None:
    found = {
        "decode_flop_per_s": Estimate(value=2e14, low=1e14, high=3e14),
        "decode_layer_s": Estimate(value=2e-5, low=1e-5, high=4e-5),
    }
    panel = intervals(found)
    assert panel is not None
    rows = read(drawn(panel))
    assert rows[0]["y"].endswith("200 TFLOP/s")
    assert rows[1]["y"].endswith("20 us")
    assert [(row["low"], row["high"]) for row in rows] == [("0.5", "1.5"), ("0.5", "2.0")]
    assert {row["95 % interval over the value"] for row in rows} == {"1.0"}


# ---- labels ----------------------------------------------------------------------------------------


def test_labels_that_say_more_than_the_value_are_kept() -> None:
    figure = graph_objects.Figure()
    figure.add_bar(x=[5.0, None], y=["a", "b"], text=["<b>240</b> tokens: +5 %", ""], name="less")
    assert [row["label"] for row in read(figure)] == ["240  tokens: +5 %", ""]


def test_what_only_a_hover_says_of_a_mark_is_its_label() -> None:
    figure = graph_objects.Figure(
        graph_objects.Scatter(x=[3.5], y=["NICs"], hovertext=["P/D at most 3.5"])
    )
    assert read(figure)[0]["label"] == "P/D at most 3.5"


@pytest.mark.parametrize(
    "texts",
    [
        ("1,235", "0.12"),
        ("+1234.6", "1.2e-01"),
        ("123457 %", "12%"),
        ("", ""),
        ("read: 1<br>write: 2", "read: 3<br>write: 4"),
        ("series", "series"),
        ("a", "b"),
    ],
)
def test_labels_that_say_nothing_new_or_are_lists_are_left_out(texts: tuple[str, str]) -> None:
    figure = graph_objects.Figure(
        graph_objects.Bar(x=["a", "b"], y=[1234.5678, 0.1234], text=texts, name="series")
    )
    figure.update_xaxes(title="node")
    figure.update_yaxes(title="share")
    assert list(read(figure)[0]) == ["series", "node", "share"]


def test_the_bars_of_a_plan_have_no_labels() -> None:
    found = plan(load_scenario(ROOT / "examples" / "deepseek-660b-2p4d.yaml"))
    for chart in (figures.utilisation_bars, figures.neighbours_chart, figures.upgrades_chart):
        assert "label" not in csv_of(chart(found)).splitlines()[0]
    assert "requests/s" in csv_of(figures.neighbours_chart(found)).splitlines()[0]


# ---- cells -----------------------------------------------------------------------------------------


@given(st.text())
def test_no_cell_is_a_formula(text: str) -> None:
    assert not str(plain_cell(text)).startswith(("=", "+", "-", "@", "\t"))
