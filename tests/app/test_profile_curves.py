"""Curves of a profile are what the fits predict, and a band holds its curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.profile_curves import curve
from dualpath_model.profile import Estimate, Fit, Series
from tests.app.made_profile import decode, depths, messages, products


def predicted_by_fit(series: Series, found: Fit) -> np.ndarray:
    seconds = np.array([series.samples[i].seconds for i in found.indices])
    return np.asarray(seconds / (1 + np.array(found.residuals)))


def test_time_against_size_is_what_the_fit_predicts() -> None:
    series, found = messages()
    amount = np.array([sample.amount for sample in series.samples])
    over = curve(found, amount)
    assert over is not None
    np.testing.assert_allclose(over.value, predicted_by_fit(series, found), rtol=1e-9)


@pytest.mark.parametrize("largest", [None, 32.0])
def test_rate_against_depth_is_what_the_fit_predicts(largest: float | None) -> None:
    series, found = depths()
    depth = np.array([float(sample.at["depth"] or 0) for sample in series.samples])
    amount = np.array([sample.amount for sample in series.samples])
    over = curve(found, depth, largest=largest)
    assert over is not None
    np.testing.assert_allclose(amount / over.value, predicted_by_fit(series, found), rtol=1e-6)
    if largest is not None:
        reached = found.parameters["reached_bytes_per_s"]
        at_the_end = [ends[int(np.argmax(depth))] for ends in over]
        np.testing.assert_allclose(at_the_end, [reached.value, reached.low, reached.high])


def test_the_roof_and_the_fixed_time_are_what_the_fit_predicts() -> None:
    series, found = decode()
    assert not found.undetermined
    amount = np.array([sample.amount for sample in series.samples])
    moved = np.array([float(sample.at["bytes"] or 0) for sample in series.samples])
    roof = curve(found, amount / moved)
    assert roof is not None
    seconds = found.parameters["fixed_s"].value + amount / roof.value
    np.testing.assert_allclose(seconds, predicted_by_fit(series, found), rtol=1e-6)


def test_a_median_is_the_same_everywhere() -> None:
    series, found = products()
    over = curve(found, np.array([1.0, 7.0]))
    assert over is not None
    rate = np.median([sample.amount / sample.seconds for sample in series.samples])
    np.testing.assert_allclose(over.value, rate)


positive = st.floats(1e-6, 1e12)


@st.composite
def any_fit(draw: st.DrawFn) -> Fit:
    """A fit of any kind with any parameters: what a profile may hold."""
    model, names = draw(
        st.sampled_from(
            [
                ("a = median of amount / seconds", ("a",)),
                ("a = median of seconds", ("a",)),
                ("seconds = a + amount / b", ("a", "b")),
                (
                    "amount / seconds = a * q / (q + half), q = depth; b: at the largest q",
                    ("a", "half", "b"),
                ),
                (
                    "seconds = fixed_s + max(bytes / bytes_per_s, amount / flop_per_s)",
                    ("fixed_s", "bytes_per_s", "flop_per_s"),
                ),
            ]
        )
    )
    parameters = {}
    for name in names:
        low, value, high = sorted(draw(st.tuples(positive, positive, positive)))
        parameters[name] = Estimate(value=value, low=low, high=high)
    return Fit(name="f", model=model, series="s", parameters=parameters, indices=[], residuals=[])


@given(any_fit(), st.lists(positive, min_size=1, max_size=9), st.booleans())
def test_a_band_holds_its_curve(found: Fit, places: list[float], ends: bool) -> None:
    x = np.array(places)
    over = curve(found, x, largest=float(x.max()) if ends else None)
    assert over is not None
    assert (over.low <= over.value * (1 + 1e-12)).all()
    assert (over.value <= over.high * (1 + 1e-12)).all()


@given(any_fit(), st.text(max_size=5))
def test_an_unknown_model_or_a_missing_parameter_has_no_curve(found: Fit, more: str) -> None:
    x = np.array([1.0])
    other = found.model_copy(update={"model": f"{found.model} *{more}"})
    assert curve(other, x) is None
    for name in set(found.parameters) - {"fixed_s"}:
        rest = {key: value for key, value in found.parameters.items() if key != name}
        assert curve(found.model_copy(update={"parameters": rest}), x) is None
