"""The CSV of a figure: every mark is in it, labels are plain, and no cell is a formula."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly import graph_objects

from app import figures
from app.figure_data import csv_of, plain_cell
from dualpath_model import load_scenario
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


@given(st.text())
def test_no_cell_is_a_formula(text: str) -> None:
    assert not str(plain_cell(text)).startswith(("=", "+", "-", "@", "\t"))
