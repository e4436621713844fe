"""Intervals of plans: against theory where one rate decides, and in the right direction elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from dualpath_model import Scenario, load_scenario
from dualpath_model.catalog.measured import TAKEN
from dualpath_model.errors import InfeasibleError, InputError
from solvers import plan
from solvers.alternatives import quick
from solvers.uncertainty import (
    SAMPLES,
    SAMPLES_UNEVEN,
    Interval,
    Uncertainty,
    measured_figures,
    uncertainty,
)
from tests.profiles import FIGURE_VALUES, write_profile

NORMAL = NormalDist()
READS = "storage_read_bytes_per_s"
PAPER = {"profile": "p.json", "base": "paper-hopper"}
TIGHT = {"tpot": "3 ms"}
"""Met with the HBM bandwidth of the tests' figures, but not with half of it."""
MEAN_TURN = {"moments": {"prompt_tokens": 32721, "miss_tokens": 429, "output_tokens": 176}}


def scenario_at(
    folder: Path, node: str | Mapping[str, Any] = PAPER, count: int = 2, **fields: Any
) -> Scenario:
    """Return a scenario whose pools are alike, read from a file in ``folder``."""
    data = {
        "name": "measured",
        "llm": "ds-27b",
        "kv_dtype": "fp8",
        "cluster": {pool: {"node": node, "count": count} for pool in ("prefill", "decode")},
        "workload": MEAN_TURN,
        **fields,
    }
    (folder / "scenario.yaml").write_text(json.dumps(data))
    return load_scenario(folder / "scenario.yaml")


def found_for(scenario: Scenario, samples: int = 100, seed: int = 0) -> Uncertainty:
    found = uncertainty(scenario, samples=samples, seed=seed)
    assert found is not None
    return found


def intervals(found: Uncertainty) -> tuple[Interval, ...]:
    return (
        found.throughput_requests_per_s,
        found.throughput_basic_requests_per_s,
        found.speedup_over_basic,
        found.split,
    )


def width(interval: Interval) -> float:
    return interval.high - interval.low


# ---- intervals -----------------------------------------------------------------------------------


def test_intervals_hold_the_plan(tmp_path: Path) -> None:
    some = dict.fromkeys((READS, "network_both_ways_bytes_per_s", "prefill_flop_per_s"), 0.05)
    write_profile(tmp_path / "p.json", spread=0.0, spreads=some)
    made = plan(scenario_at(tmp_path))
    assert made.uncertainty is not None
    assert made.uncertainty.samples == SAMPLES
    assert [interval.value for interval in intervals(made.uncertainty)] == pytest.approx(
        [
            made.throughput_requests_per_s,
            made.throughput_basic_requests_per_s,
            made.speedup_over_basic,
            made.split,
        ],
        rel=1e-6,
    )
    for interval in intervals(made.uncertainty):
        assert interval.low <= interval.value <= interval.high


def test_the_same_seed_gives_the_same_intervals(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json")
    scenario = scenario_at(tmp_path)
    assert found_for(scenario, 20, seed=3) == found_for(scenario, 20, seed=3)
    assert found_for(scenario, 20, seed=3) != found_for(scenario, 20, seed=4)


@pytest.mark.parametrize("limits", [None, ["snic"], ["cnic"], ["gpu"]])
def test_wider_measurements_make_wider_plans(tmp_path: Path, limits: list[str] | None) -> None:
    widths = []
    for spread in (0.01, 0.05, 0.3):
        write_profile(tmp_path / "p.json", spread=spread)
        found = found_for(scenario_at(tmp_path, limits=limits), 30)
        widths.append(width(found.throughput_requests_per_s))
    assert all(narrow < wide for narrow, wide in pairwise(widths)), widths


def test_rates_that_are_known_exactly_leave_no_interval(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", spread=0.0)
    assert uncertainty(scenario_at(tmp_path)) is None
    assert uncertainty(scenario_at(tmp_path, "paper-hopper")) is None
    assert plan(scenario_at(tmp_path)).uncertainty is None


def test_figures_that_a_field_replaces_are_not_drawn(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", spreads={READS: 0.5}, spread=0.0)
    assert uncertainty(scenario_at(tmp_path)) is not None
    assert uncertainty(scenario_at(tmp_path, {**PAPER, "snic": "40 GB/s"})) is None


@pytest.mark.parametrize("samples", [-1, 0, 19])
def test_too_few_samples_are_refused(tmp_path: Path, samples: int) -> None:
    write_profile(tmp_path / "p.json")
    with pytest.raises(InputError, match=f"samples {samples} is not allowed; .* at least 20"):
        uncertainty(scenario_at(tmp_path), samples=samples)


# ---- against theory ------------------------------------------------------------------------------


def test_one_rate_that_decides_gives_its_own_interval(tmp_path: Path) -> None:
    """Throughput is proportional to storage's rate, so it is log-normal with the same interval.

    A quantile of n draws has the standard error sqrt(p (1 - p) / n) over the density there.
    """
    samples, spread = 500, 0.4
    write_profile(tmp_path / "p.json", spread=0.0, spreads={READS: spread})
    scenario = scenario_at(tmp_path, limits=["snic"])
    end = NORMAL.inv_cdf(0.975)
    sigma = math.log(1 + spread) / end
    error = math.sqrt(0.025 * 0.975 / samples) / NORMAL.pdf(end)
    ends = []
    for seed in range(4):
        found = found_for(scenario, samples, seed)
        rates, basic = found.throughput_requests_per_s, found.throughput_basic_requests_per_s
        ends += [-math.log(rates.low / rates.value) / sigma]
        ends += [math.log(rates.high / rates.value) / sigma]
        # both modes go by the same rate: their ratio and the split are certain
        assert basic.low / basic.value == pytest.approx(rates.low / rates.value)
        assert width(found.speedup_over_basic) < 1e-9 * found.speedup_over_basic.value
        assert width(found.split) < 1e-9
        assert found.infeasible == 0
    assert all(abs(sigmas - end) < 4 * error for sigmas in ends), ends
    assert abs(np.mean(ends) - end) < 4 * error / math.sqrt(len(ends))


def test_an_interval_that_is_not_centred_keeps_the_value_as_median(tmp_path: Path) -> None:
    """A rate at the lower end of its interval is never lower, and half of its draws are the value."""
    path = write_profile(tmp_path / "p.json", spread=0.0)
    data = json.loads(path.read_text())
    rate = data["parts"]["storage"]["figures"][READS]
    rate["high"] = 2.0 * rate["value"]
    path.write_text(json.dumps(data))
    rates = found_for(scenario_at(tmp_path, limits=["snic"]), 400).throughput_requests_per_s
    assert rates.low == pytest.approx(rates.value, rel=1e-9)
    assert rates.high == pytest.approx(2.0 * rates.value, rel=0.2)


def test_profiles_that_measured_otherwise_are_drawn_apart(tmp_path: Path) -> None:
    """Both pools read storage: of two draws the sum varies 1/sqrt(2) as much as of one.

    The names are equal, as of two calibrations of a machine on a day; the rates differ by a thousandth.
    """
    spread = 0.2
    write_profile(tmp_path / "p.json", spread=0.0, spreads={READS: spread})
    again = {**FIGURE_VALUES, READS: 1.001 * FIGURE_VALUES[READS]}
    write_profile(tmp_path / "again.json", figures=again, spread=0.0, spreads={READS: spread})
    other = {**PAPER, "profile": "again.json"}
    apart = {
        "prefill": {"node": PAPER, "count": 2},
        "decode": {"node": other, "count": 2},
    }
    one = scenario_at(tmp_path, limits=["snic"])
    two = scenario_at(tmp_path, limits=["snic"], cluster=apart)
    assert (len(measured_figures(one)), len(measured_figures(two))) == (11, 12)
    widths = [width(found_for(s, 300).throughput_requests_per_s) for s in (one, two)]
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(0.5), rel=0.2)
    named = found_for(two, 60).measurements
    assert [entry.figure for entry in named] == [READS, READS]
    assert all(0.4 < entry.width_left < 1.0 for entry in named)


# ---- which measurement narrows it ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "figure", "part"),
    [
        (["snic"], READS, "storage"),
        (["cnic"], "network_both_ways_bytes_per_s", "network"),
        (["dram"], "dram_bytes_per_s", "memory"),
        (["gpu"], "prefill_flop_per_s", "gpu"),
        (["hbm"], "decode_bytes_per_s", "gpu"),
    ],
)
def test_the_rate_that_limits_is_the_one_to_measure_better(
    tmp_path: Path, limits: list[str], figure: str, part: str
) -> None:
    alone = {n: v for n, v in FIGURE_VALUES.items() if n != "attention_flop_per_s"}
    write_profile(tmp_path / "p.json", spread=0.1, figures=alone)  # of prefill, one rate
    found = found_for(scenario_at(tmp_path, limits=limits), 30)
    first, *others = found.measurements
    assert (first.profile, first.figure, first.part) == ("made", figure, part)
    assert first.width_left < 1e-6
    assert (first.relative_low, first.relative_high) == pytest.approx((1 / 1.1, 1.1))
    # what plays no part leaves the interval as it is
    assert {entry.width_left for entry in others} == {1.0}
    assert len(others) == len(measured_figures(scenario_at(tmp_path))) - 1


def test_measurements_come_best_first(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", spread=0.1)
    left = [entry.width_left for entry in found_for(scenario_at(tmp_path), 60).measurements]
    assert left == sorted(left)


def test_the_only_figure_leaves_nothing(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", spread=0.0, spreads={READS: 0.1})
    (only,) = found_for(scenario_at(tmp_path, limits=["snic"]), 20).measurements
    assert (only.figure, only.width_left) == (READS, 0.0)


def test_only_figures_that_a_model_takes_are_named(tmp_path: Path) -> None:
    figures = {**FIGURE_VALUES, "copy_launch_s": 1e-5, "network_latency_s": 1e-5}
    write_profile(tmp_path / "p.json", figures=figures)
    named = {entry.figure for entry in found_for(scenario_at(tmp_path), 20).measurements}
    assert named == set(FIGURE_VALUES) & set(TAKEN) - {
        "hbm_copy_bytes_per_s",
        "network_bytes_per_s",
    }


# ---- draws that cannot serve, and uneven clusters ------------------------------------------------


def threshold(folder: Path) -> float:
    """Return the factor of the HBM bandwidth under which no decode step is as quick as promised."""

    def serves(factor: float) -> bool:
        rate = factor * FIGURE_VALUES["decode_bytes_per_s"]
        figures = {**FIGURE_VALUES, "decode_bytes_per_s": rate}
        write_profile(folder / "p.json", figures=figures, spread=0.0)
        try:
            return quick(scenario_at(folder, slo=TIGHT)).throughput > 0
        except InfeasibleError:
            return False

    low, high = 0.5, 1.0
    assert serves(high)
    assert not serves(low)
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if serves(middle) else (middle, high)
    return high


def test_draws_that_cannot_serve_are_counted(tmp_path: Path) -> None:
    # one draw in five is below the threshold
    sigma = -math.log(threshold(tmp_path)) / NORMAL.inv_cdf(0.8)
    spread = math.exp(sigma * NORMAL.inv_cdf(0.975)) - 1
    write_profile(tmp_path / "p.json", spread=0.0, spreads={"decode_bytes_per_s": spread})
    scenario = scenario_at(tmp_path, slo=TIGHT)
    found = found_for(scenario, 400)
    assert abs(found.infeasible - 80) < 4 * math.sqrt(400 * 0.2 * 0.8)
    # no service counts as no throughput; speed-up and split are of draws that serve
    assert found.throughput_requests_per_s.low == 0.0
    assert found.speedup_over_basic.low > 0
    assert plan(scenario).throughput_requests_per_s > 0


def test_a_rate_that_is_just_enough_cannot_serve_in_half_of_the_draws(tmp_path: Path) -> None:
    """Measured at the upper end of its interval: the value is the median, the other half is less."""
    enough = threshold(tmp_path) * (1 + 1e-6) * FIGURE_VALUES["decode_bytes_per_s"]
    figures = {**FIGURE_VALUES, "decode_bytes_per_s": enough}
    path = write_profile(tmp_path / "p.json", figures=figures, spread=0.0)
    data = json.loads(path.read_text())
    data["parts"]["gpu"]["figures"]["decode_bytes_per_s"]["low"] = 0.1 * enough
    path.write_text(json.dumps(data))
    scenario = scenario_at(tmp_path, slo=TIGHT)
    found = found_for(scenario, 400)
    assert abs(found.infeasible - 200) < 4 * 10  # four standard deviations of the binomial
    assert width(found.speedup_over_basic) == width(found.split) == 0.0
    assert found.throughput_requests_per_s.low == 0.0
    assert found.throughput_requests_per_s.value > 0


def test_an_uneven_cluster_is_solved_as_an_lp(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", spread=0.0, spreads={READS: 0.2})
    groups = [{"node": PAPER, "count": 1}, {"node": "paper-hopper", "count": 1}]
    cluster = {"prefill": groups, "decode": {"node": PAPER, "count": 2}}
    scenario = scenario_at(tmp_path, limits=["snic"], cluster=cluster)
    found = uncertainty(scenario)
    assert found is not None
    assert found.samples == SAMPLES_UNEVEN
    rates = found.throughput_requests_per_s
    assert rates.low < rates.value < rates.high
    # three of four nodes vary: the interval is narrower than the rate's, whose ends are 1.2 apart
    measured = 3 * FIGURE_VALUES[READS]
    share = measured / (measured + 50e9)
    assert math.log(rates.high / rates.value) < math.log(1.2) * 1.3 * share
    assert [entry.figure for entry in found.measurements] == [READS]


def test_several_classes_take_the_samples_of_an_lp(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", spread=0.0, spreads={READS: 0.2})
    classes = [{"name": name, "workload": MEAN_TURN, "share": 0.5} for name in ("a", "b")]
    scenario = scenario_at(tmp_path, limits=["snic"], workload=None, classes=classes)
    found = uncertainty(scenario)
    assert found is not None
    assert found.samples == SAMPLES_UNEVEN
    alone = found_for(scenario_at(tmp_path, limits=["snic"]), SAMPLES_UNEVEN)
    ends = [(i.low, i.value, i.high) for i in intervals(found)[:2]]
    assert np.array(ends) == pytest.approx(
        np.array([(i.low, i.value, i.high) for i in intervals(alone)[:2]]), rel=1e-6
    )


def test_measured_rates_that_cannot_serve_are_an_answer(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json")
    scenario = scenario_at(tmp_path)
    hopeless = replace(scenario, slo=replace(scenario.slo, tpot_s=1e-6))
    with pytest.raises(InfeasibleError):
        uncertainty(hopeless, samples=20)
