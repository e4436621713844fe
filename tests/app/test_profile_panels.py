"""Panels of a profile: every sample is drawn once, axes hold their values, intervals are told whole."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.figures_profile import figure
from app.profile_marks import axis
from app.profile_panels import panels
from app.profile_view import remarks
from app.profile_words import interval
from dualpath_model.profile import Estimate, PartName
from tests.app.made_profile import attention, measured, messages, samples_drawn

positive = st.floats(1e-6, 1e12)


def test_every_sample_of_every_series_is_drawn_once() -> None:
    for name, part in measured().parts.items():
        found = [
            panel for panel in panels(name, part) if panel.kind not in ("latency", "residuals")
        ]
        assert [samples_drawn(panel) for panel in found] == [len(s.samples) for s in part.series]


def test_each_series_has_the_panel_that_its_fit_asks_for() -> None:
    kinds = {
        name: [panel.kind for panel in panels(name, part)]
        for name, part in measured().parts.items()
    }
    assert kinds == {
        PartName.GPU: ["roofline", "rows", "residuals"],
        PartName.MEMORY: [],
        PartName.STORAGE: ["depth", "latency", "residuals"],
        PartName.NETWORK: ["size", "rows", "residuals"],
    }


def test_outliers_are_marked_and_only_they() -> None:
    series, found = messages()
    assert found.outliers == [5]
    panel = panels(PartName.NETWORK, measured().parts[PartName.NETWORK])[0]
    crosses = [trace for trace in figure(panel).data if trace.name == "outliers"]
    assert [(list(t.x), list(t.y)) for t in crosses] == [
        ([series.samples[5].amount], [series.samples[5].seconds])
    ]


def test_rows_are_the_points_of_the_sweep_and_not_its_rounds() -> None:
    panel = panels(PartName.GPU, measured().parts[PartName.GPU])[1]
    shapes = ["o 128 × 7168 × 32", "q_a 128 × 1536 × 64", "square 512 × 512 × 512"]
    assert panel.rows == [*shapes, "median"]
    assert [int(y) for y in panel.dots[0].y] == [1, 0, 2] * 4


def test_a_series_without_a_fit_of_its_own_is_drawn_without_curves() -> None:
    part = measured().parts[PartName.NETWORK]
    others = part.model_copy(update={"fits": part.fits[1:]})
    panel = panels(PartName.NETWORK, others)[0]
    assert panel.lines == []
    assert samples_drawn(panel) == len(part.series[0].samples)


def test_the_title_of_the_attention_model_has_the_errors_of_its_text() -> None:
    """One definition: the median and the largest of the fit's |residuals|, as the text has them."""
    series, found, fitted = attention()
    part = measured().parts[PartName.GPU]
    part = part.model_copy(update={"series": [series], "fits": [found], "attention": [fitted]})
    panel = panels(PartName.GPU, part)[0]
    off = sorted(abs(residual) for residual in found.residuals)
    assert panel.kind == "predicted"
    assert (fitted.relative_error_p50, fitted.relative_error_max) == pytest.approx(
        (statistics.median(off), off[-1])
    )
    assert off[-1] > 0.5
    said = f"{statistics.median(off):.1%} in the median, {off[-1]:.1%} at most"
    assert panel.title == f"gpu: attention: attention_time is off by {said}"
    assert any(f"predictions miss by {said}" in text for text in remarks(part))


def test_a_wide_band_does_not_squash_the_samples() -> None:
    """A rate without an upper end has a band that goes on; the axis keeps to the samples."""
    part = measured().parts[PartName.STORAGE]
    found = part.fits[0]
    limit = found.parameters["reached_bytes_per_s"]
    wide = {**found.parameters, "reached_bytes_per_s": limit.model_copy(update={"high": 1e20})}
    open_ = part.model_copy(update={"fits": [found.model_copy(update={"parameters": wide})]})
    panel = panels(PartName.STORAGE, open_)[0]
    assert panel.lines[0].band.high.max() > 1e19
    assert panel.y.ends[1] < 2 * max(float(dots.y.max()) for dots in panel.dots)


@given(
    st.lists(st.floats(1e-9, 1e15), min_size=1, max_size=8),
    st.sampled_from(["B/s", "s", "x"]),
    st.sampled_from([True, False, None]),
)
def test_axes_hold_their_values_and_have_few_ticks(
    values: list[float], unit: str, log: bool | None
) -> None:
    made = axis("a", unit, np.array(values), log=log)
    low, high = made.ends
    assert low <= min(values)
    assert max(values) <= high
    assert all(low <= at <= high * (1 + 1e-9) for at in made.ticks)
    assert len(made.ticks) <= 10


# ---- numbers ---------------------------------------------------------------------------------------


def test_intervals_are_short_where_narrow_and_unknown_where_there_is_none() -> None:
    def of(value: float, low: float, high: float, unit: str) -> str:
        return interval(Estimate(value=value, low=low, high=high), unit)

    assert of(1e9, 0.96e9, 1.04e9, "B/s") == "± 4.2 %"
    assert of(1e9, 0.85e9, 1.15e9, "B/s") == "850 MB/s to 1.15 GB/s"
    assert of(1e9, 0.5e9, 4e9, "B/s") == "500 MB/s to 4 GB/s"
    assert of(2e9, 1.39e9, 8.65e9, "B/s") == "1.39 to 8.65 GB/s"
    assert of(0.8, 0.141, 3.38, "") == "14.1 to 338 %"
    assert of(1e-3, 1e-3, 1e-3, "s") == "not known"


@given(positive, positive, positive)
def test_a_narrow_interval_is_not_told_narrower_than_it_is(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    text = interval(Estimate(value=value, low=low, high=high), "B/s")
    if text.startswith("±"):
        told = float(text.removeprefix("± ").removesuffix(" %")) / 100
        assert value * (1 + told * 1.05 + 1e-12) >= high
        assert value / (1 + told * 1.05 + 1e-12) <= low
        assert told <= 0.1
