"""The efficiency constants: times within reason, and the file that holds the fitted ones."""

from __future__ import annotations

from dataclasses import fields
from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from solvers.simulator.constants import Constants, fitted

NAMES = [field.name for field in fields(Constants)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-1e-9, 60.1, float("inf"), float("nan")])
def test_what_is_no_time_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"constants\.{name} is .*; it must be 0 to 60 seconds"):
        Constants(**{name: value})


@given(st.lists(st.floats(0.0, 60.0), min_size=3, max_size=3))
def test_every_time_within_reason_is_taken(values: list[float]) -> None:
    constants = Constants(*values)
    assert [getattr(constants, name) for name in NAMES] == values


def test_the_default_adds_nothing() -> None:
    assert Constants() == Constants(0.0, 0.0, 0.0)


def test_the_fitted_ones_are_those_of_the_file() -> None:
    text = resources.files("solvers.simulator").joinpath("constants.yaml").read_text()
    found = yaml.safe_load(text)
    assert set(found) == set(NAMES)
    assert fitted() == Constants(**{name: float(value) for name, value in found.items()})


def test_the_fitted_ones_are_those_of_an_engine() -> None:
    """A batch of 61 layers costs tens of milliseconds, a step a few tens, a request below one."""
    batch, step, request = (61 * getattr(fitted(), name) for name in NAMES)
    assert 0.01 < batch < 0.5
    assert 0.002 < step < 0.05
    assert 0.0 < request < 0.001
