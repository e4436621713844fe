"""The fit: it finds constants that are known, and constants.yaml is what it promises."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.reproduce import constants_file
from app.simulate import read_constants
from solvers.reproduction import fit as fitting
from solvers.reproduction.figures import paper_figures
from solvers.reproduction.fit import TARGETS, Fit, fit
from solvers.reproduction.lab import DS_660B, Assumptions, Lab
from solvers.simulator.constants import Constants, fitted

PAPER = np.array([paper_figures()[name].paper for name in TARGETS])
MIXED = np.array([[0.5, 0.2, 0.1], [0.3, 0.1, 0.05], [0.05, 0.6, 0.2]])
"""How the logarithms of the figures follow those of the constants: all of them all, and invertible."""


def column(constants: Constants) -> np.ndarray:
    return np.array(list(asdict(constants).values()))


@pytest.mark.parametrize(
    "truth", [Constants(1e-3, 4e-4, 2e-5), Constants(3e-3, 1e-4, 5e-6), Constants(5e-4, 6e-4, 4e-5)]
)
def test_known_constants_are_found(truth: Constants, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Assumptions] = []

    def measure(assumptions: Assumptions) -> np.ndarray:
        calls.append(assumptions)
        shift = np.log(column(assumptions.constants) / column(truth))
        return np.asarray(PAPER * np.exp(MIXED @ shift))

    monkeypatch.setattr(fitting, "_measure", measure)
    said: list[str] = []
    got = fit(Assumptions(kv_dtype="fp8"), said.append)
    assert column(got.constants) == pytest.approx(column(truth), rel=0.02)
    assert max(map(abs, got.errors.values())) < 1e-3
    assert set(got.errors) == set(TARGETS)
    assert got.evaluations == len(calls) == len(said)
    assert {call.kv_dtype for call in calls} == {"fp8"}


def test_figures_that_cannot_be_met_are_owned_up_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is 1.5 times the paper's whatever the constants."""
    monkeypatch.setattr(fitting, "_measure", lambda assumptions: 1.5 * PAPER)
    assert fit(Assumptions()).errors == pytest.approx(dict.fromkeys(TARGETS, 0.5))


def test_the_measure_is_the_mean_over_seeds_in_the_order_of_the_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jct, ttft, tpot = (
        {0: 3000.0, 1: 3300.0, 2: 3600.0},
        {0: 1.0, 1: 2.0, 2: 6.0},
        {0: 0.1, 1: 0.2, 2: 0.3},
    )

    class Made:
        def __init__(self, assumptions: Assumptions) -> None: ...

        def offline(self, setup: object, agents: int, seed: int) -> SimpleNamespace:
            assert (setup, agents) == (DS_660B, 2000)
            return SimpleNamespace(jct_s=jct[seed])

        def online(self, setup: object, rate: float, seed: int) -> SimpleNamespace:
            assert (setup, rate) == (DS_660B, 0.4)
            return SimpleNamespace(ttft_s={"mean": ttft[seed]}, tpot_s={"mean": tpot[seed]})

    monkeypatch.setattr(fitting, "Lab", Made)
    means = dict(zip(TARGETS, fitting._measure(Assumptions()), strict=True))
    assert means == pytest.approx({"scale-2p4d": 3300.0, "online-ttft": 3.0, "online-tpot": 0.2})


# ---- the file ------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-8, 0.1), min_size=3, max_size=3))
def test_a_fit_as_a_file_reads_back_as_it_was(values: list[float]) -> None:
    """Any float, to its last digit; YAML reads 1e-05 as text, which must not matter."""
    made = Fit(Constants(*values), dict.fromkeys(TARGETS, 0.01), 9)
    read = yaml.safe_load(constants_file(made))
    assert {name: float(value) for name, value in read.items()} == asdict(made.constants)


def test_the_command_line_reads_the_file(tmp_path: Path) -> None:
    made = Fit(Constants(1e-05, 0.0, 0.1), dict.fromkeys(TARGETS, -0.25), 9)
    path = tmp_path / "constants.yaml"
    path.write_text(constants_file(made))
    assert read_constants(str(path)).constants == made.constants


def shipped() -> str:
    return resources.files("solvers.simulator").joinpath("constants.yaml").read_text()


def left() -> dict[str, float]:
    """What the file says is left after the fit."""
    line = re.search(r"^# What is left after the fit: (.*)\.$", shipped(), re.MULTILINE)
    assert line is not None
    return {
        name: float(value) / 100 for name, value in re.findall(r"([\w-]+) ([+-][\d.]+)%", line[1])
    }


def test_the_shipped_file_is_one_that_the_fit_writes() -> None:
    assert set(left()) == set(TARGETS)
    assert constants_file(Fit(fitted(), left(), 0)) == shipped()


def test_the_header_names_the_targets_as_they_are() -> None:
    for name in TARGETS:
        assert f"{paper_figures()[name].paper:,}" in shipped()
    assert f"seeds {fitting._SEEDS[0]} to {fitting._SEEDS[-1]}" in shipped()


@pytest.mark.slow
def test_the_targets_come_out_with_the_shipped_constants() -> None:
    """The promise of constants.yaml, on one of its seeds (its spread is below 1 %)."""
    lab = Lab()
    online = lab.online(DS_660B, 0.4)
    ours = (lab.offline(DS_660B, 2000).jct_s, online.ttft_s["mean"], online.tpot_s["mean"])
    assert ours == pytest.approx(PAPER, rel=0.01)


@pytest.mark.slow
def test_what_is_left_is_as_the_file_says() -> None:
    """Means over its seeds, to the last digit that it prints."""
    errors = fitting._measure(Assumptions()) / PAPER - 1.0
    assert errors == pytest.approx([left()[name] for name in TARGETS], abs=6e-5)
