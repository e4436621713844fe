"""Sensitivities: each is what solving again gives, the strongest first."""

from __future__ import annotations

import pytest

from dualpath_model import load_scenario
from dualpath_model.errors import InputError
from solvers.alternatives import quick
from solvers.parameters import change
from solvers.sensitivity import sensitivities
from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous", "deepseek-v3.2-aws-p5"])
def test_each_is_solved_again(name: str) -> None:
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    found = sensitivities(scenario, 0.25)
    assert [row.width for row in found] == sorted((row.width for row in found), reverse=True)
    now = quick(scenario).throughput
    for row in found:
        assert row.low_value < row.high_value
        assert row.throughput_now == now
        assert row.throughput_high == quick(change(scenario, {row.name: row.high_value})).throughput
    names = {row.name for row in found}
    assert {"prefill_nodes", "context_tokens", "hit_rate", "cnic_bytes_per_s"} <= names
    assert ("snic_bytes_per_s" in names) is (name != "deepseek-v3.2-aws-p5")


def test_less_storage_bandwidth_hurts_what_it_limits() -> None:
    scenario = load_scenario(ROOT / "examples" / "paper-analysis.yaml")
    (row,) = sensitivities(scenario, 0.2, ["snic_bytes_per_s"])
    assert row.throughput_low == pytest.approx(0.8 * row.throughput_now)
    assert row.width >= 0.2 * (1 - 1e-9)


def test_what_cannot_be_served_says_why() -> None:
    scenario = load_scenario(ROOT / "examples" / "ds-27b-1p1d.yaml")
    (row,) = sensitivities(scenario, 0.9999, ["context_tokens"])
    assert row.throughput_low is not None
    tight = load_scenario(ROOT / "examples" / "deepseek-660b-2p4d.yaml").with_nodes(2, 2)
    (row,) = sensitivities(tight, 0.5, ["decode_nodes"])
    assert row.throughput_low is None
    assert row.reason
    assert row.width == 1.0


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    scenario = load_scenario(ROOT / "examples" / "paper-mean-turn.yaml")
    with pytest.raises(InputError, match="it must be between 0 and 1"):
        sensitivities(scenario, share)
