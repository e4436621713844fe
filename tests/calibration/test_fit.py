"""Fits against known machines: what was put in is in the interval, and the interval is not too wide."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import fit
from dualpath_model.errors import InputError
from dualpath_model.profile import Estimate, Fit, Sample, Series, Setting
from dualpath_model.scheduler.attention import AttentionTime, batch_seconds

Floats = npt.NDArray[np.float64]
Design = tuple[Series, dict[str, float], dict[str, float]]
"""Samples without noise, the true parameters, and their least-squares standard errors in logarithms."""

NOISE = 0.05
OUTLIERS = 0.02
TRIALS = 200
DEPTHS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
BATCHES = [1.0, 4.0, 16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0]
KNOWN = AttentionTime(2e-4, 1e-5, 2e-7, 3e-8, 4e-11, 5e-11, 2048.0)


def series_of(
    seconds: Floats, amount: Floats, at: list[dict[str, Setting]] | None = None
) -> Series:
    points = at or [{}] * len(seconds)
    samples = [
        Sample(at=point, seconds=time, amount=size)
        for point, time, size in zip(points, seconds.tolist(), amount.tolist(), strict=True)
    ]
    return Series(name="made", unit="B", meaning="made, not measured", samples=samples)


def with_seconds(series: Series, seconds: Floats) -> Series:
    samples = [
        sample.model_copy(update={"seconds": time})
        for sample, time in zip(series.samples, seconds.tolist(), strict=True)
    ]
    return series.model_copy(update={"samples": samples})


def seconds_of(series: Series) -> Floats:
    return np.array([sample.seconds for sample in series.samples])


def noisy(series: Series, seed: list[int], outliers: float = OUTLIERS) -> Series:
    """5 % log-normal noise; some samples take 2 to 10 times as long."""
    rng = np.random.default_rng(seed)
    seconds = seconds_of(series) * np.exp(rng.normal(0.0, NOISE, len(series.samples)))
    far = rng.random(len(seconds)) < outliers
    seconds[far] *= rng.uniform(2.0, 10.0, int(far.sum()))
    return with_seconds(series, seconds)


def standard_errors(slopes: Floats) -> Floats:
    """Of least squares that knows the noise; ``slopes``: of log seconds by log parameters."""
    errors: Floats = NOISE * np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)))
    return errors


def latencies(sizes: int, repeats: int, latency: float = 1e-4, rate: float = 1e9) -> Design:
    """Of 4 KiB to 16 MiB."""
    amount = np.tile(np.geomspace(2.0**12, 2.0**24, sizes), repeats)
    seconds = latency + amount / rate
    errors = standard_errors(np.column_stack([latency / seconds, -amount / rate / seconds]))
    truth = {"latency_s": latency, "bytes_per_s": rate}
    return series_of(seconds, amount), truth, dict(zip(truth, errors, strict=True))


def depths(repeats: int, half: float = 4.0, limit: float = 1e10) -> Design:
    q = np.tile(DEPTHS, repeats)
    amount = np.full(len(q), 2.0**20)
    seconds = amount * (q + half) / (limit * q)
    slopes = np.column_stack([-np.ones_like(q), half / (q + half)])
    errors = standard_errors(slopes)
    truth = {"bytes_per_s": limit, "half": half, "reached_bytes_per_s": limit * 64 / (64 + half)}
    towards = np.array([1.0, -half / (64.0 + half)])
    reached = NOISE * math.sqrt(towards @ np.linalg.inv(slopes.T @ slopes) @ towards)
    at: list[dict[str, Setting]] = [{"depth": depth} for depth in q.tolist()]
    known = dict(zip(truth, [*errors, reached], strict=True))
    return series_of(seconds, amount, at), truth, known


def roofs(repeats: int, batches: list[float] = BATCHES) -> Design:
    """A decode step: weights and a little for each sequence are read, FLOP go with the batch."""
    batch = np.tile(batches, repeats)
    moved, flop = 1e8 + 1e5 * batch, 2e8 * batch
    truth = {"fixed_s": 1e-4, "bytes_per_s": 1e12, "flop_per_s": 1e14}
    by_bytes, by_flop = moved / 1e12, flop / 1e14
    seconds = 1e-4 + np.maximum(by_bytes, by_flop)
    parts = [
        np.full_like(batch, 1e-4),
        -by_bytes * (by_bytes >= by_flop),
        -by_flop * (by_bytes < by_flop),
    ]
    at: list[dict[str, Setting]] = [{"bytes": size} for size in moved.tolist()]
    seen = [part for part in parts if part.any()]
    errors = standard_errors(np.column_stack([part / seconds for part in seen]))
    return series_of(seconds, flop, at), truth, dict(zip(truth, errors, strict=False))


def forward_passes(repeats: int) -> Design:
    """A layer's prefill: few and many new tokens on short and long contexts, and without attention."""
    grid = [(cached, new) for cached in (0.0, 4096.0, 65536.0) for new in (16.0, 256.0, 2048.0)]
    cached, new = np.tile(np.array([*grid, (-1.0, 256.0), (-1.0, 2048.0)]), (repeats, 1)).T
    products = 5e8 * new
    attention = np.where(cached < 0, 0.0, 1e5 * new * (cached + new / 2))
    parts = [np.full_like(new, 2e-5), products / 4e14, attention / 2e14]
    seconds = sum(parts[1:], start=parts[0])
    truth = {"fixed_s": 2e-5, "flop_per_s": 4e14, "attention_flop_per_s": 2e14}
    at: list[dict[str, Setting]] = [{"attention_flop": flop} for flop in attention.tolist()]
    errors = standard_errors(np.column_stack([part / seconds for part in parts]))
    known = dict(zip(truth, errors, strict=True))
    return series_of(seconds, products + attention, at), truth, known


def rates(repeats: int) -> Design:
    amount = np.full(repeats, 1e6)
    return series_of(amount / 1e9, amount), {"rate": 1e9}, {"rate": NOISE / math.sqrt(repeats)}


def fit_latency(series: Series) -> Fit:
    return fit.latency_bandwidth("link", series, range(len(series.samples)))


def fit_depths(series: Series) -> Fit:
    return fit.saturating("queue", series, range(len(series.samples)), over="depth")


def fit_roof(series: Series) -> Fit:
    return fit.roofline("step", series, range(len(series.samples)))


def fit_layer(series: Series) -> Fit:
    return fit.layer("layer", series, range(len(series.samples)), attention_at="attention_flop")


def fit_rate(series: Series) -> Fit:
    return fit.typical("copy", series, range(len(series.samples)), parameter="rate")


def holds(estimate: Estimate, value: float) -> bool:
    return estimate.low <= value <= estimate.high


def check_coverage(
    design: Design, fitted: Callable[[Series], Fit], seed: int, widest: float
) -> None:
    """The truth is in at least 90 % of the intervals, whose median width is near the ideal one."""
    series, truth, errors = design
    found = [fitted(noisy(series, [seed, trial])).parameters for trial in range(TRIALS)]
    for name, value in truth.items():
        inside = sum(holds(parameters[name], value) for parameters in found)
        assert inside >= 0.9 * TRIALS, (name, inside)
        widths = [math.log(parameters[name].high / parameters[name].low) for parameters in found]
        relative = float(np.median(widths)) / (2 * 1.96 * errors[name])
        assert 0.9 < relative < widest, (name, relative)


@pytest.mark.parametrize(("sizes", "repeats"), [(4, 5), (7, 5), (7, 10)])
def test_latency_and_bandwidth_are_in_their_intervals(sizes: int, repeats: int) -> None:
    check_coverage(latencies(sizes, repeats), fit_latency, seed=1, widest=1.35)


def test_the_limit_of_a_queue_is_in_its_interval() -> None:
    check_coverage(depths(5), fit_depths, seed=2, widest=1.35)


def test_samples_of_two_rates_say_so() -> None:
    amount = np.full(20, 1e6)
    seconds = np.where(np.arange(20) % 3 == 0, 4e-3, 1e-3)
    told = fit_rate(series_of(seconds, amount)).parameters["rate"]
    assert told.note == "of samples that range over a factor 4.0: the interval is their median's"
    assert fit_rate(noisy(rates(20)[0], [0])).parameters["rate"].note == ""


def test_the_rates_of_a_layer_are_in_their_intervals() -> None:
    check_coverage(forward_passes(5), fit_layer, seed=4, widest=1.4)


def test_attention_that_is_all_of_the_work_is_one_sentence() -> None:
    series, _, _ = forward_passes(1)
    at: list[dict[str, Setting]] = [{"attention_flop": sample.amount} for sample in series.samples]
    amounts = np.array([sample.amount for sample in series.samples])
    with pytest.raises(InputError, match=r"attention_flop of a sample .* must be a part of it"):
        fit_layer(series_of(seconds_of(series), amounts, at))


def test_layers_that_are_all_without_attention_are_one_sentence() -> None:
    series, _, _ = forward_passes(1)
    amounts = np.array([sample.amount for sample in series.samples])
    none: list[dict[str, Setting]] = [{"attention_flop": 0.0}] * len(amounts)
    with pytest.raises(InputError, match="all attention_flop of series made are 0"):
        fit_layer(series_of(seconds_of(series), amounts, none))


def test_a_typical_rate_is_in_its_interval() -> None:
    """A median is less efficient than a mean: ideal is 1.25."""
    for repeats, widest in ((5, 2.2), (10, 1.6), (50, 1.4)):
        check_coverage(rates(repeats), fit_rate, seed=3, widest=widest)


@pytest.mark.slow
def test_the_rates_of_a_roofline_are_in_their_intervals() -> None:
    check_coverage(roofs(5), fit_roof, seed=8, widest=1.6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 8))
def test_intervals_hold_the_truth_whatever_the_noise(seed: int) -> None:
    for sizes, repeats in ((4, 5), (7, 5), (7, 10), (13, 10)):
        check_coverage(latencies(sizes, repeats), fit_latency, seed, widest=1.35)
    check_coverage(latencies(7, 5, 2e-5, 1e10), fit_latency, seed, widest=1.35)
    check_coverage(depths(10), fit_depths, seed, widest=1.35)
    check_coverage(roofs(5), fit_roof, seed, widest=1.6)


def test_samples_without_noise_give_the_machine_back() -> None:
    for design, fitted in (
        (latencies(7, 5), fit_latency),
        (depths(5), fit_depths),
        (roofs(5), fit_roof),
        (rates(5), fit_rate),
    ):
        series, truth, _ = design
        found = fitted(series)
        for name, value in truth.items():
            assert found.parameters[name].value == pytest.approx(value, rel=1e-5)
        assert found.undetermined == []
        assert found.outliers == []
        assert np.abs(found.residuals).max() < 1e-6


def test_residuals_are_measured_over_predicted_in_the_order_of_the_indices() -> None:
    series = noisy(latencies(7, 5)[0], [0], outliers=0.0)
    indices = list(range(34, 3, -2))
    found = fit.latency_bandwidth("link", series, indices)
    latency, rate = (found.parameters[name].value for name in ("latency_s", "bytes_per_s"))
    chosen = [series.samples[index] for index in indices]
    expected = [sample.seconds / (latency + sample.amount / rate) - 1.0 for sample in chosen]
    assert found.indices == indices
    assert found.residuals == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("design", "fitted"),
    [
        (latencies(7, 5), fit_latency),
        (depths(5), fit_depths),
        (roofs(5), fit_roof),
        (rates(35), fit_rate),
    ],
    ids=["latency", "depths", "roof", "rate"],
)
def test_outliers_are_reported_stay_in_and_pull_little(
    design: Design, fitted: Callable[[Series], Fit]
) -> None:
    series, truth, errors = design
    clean = noisy(series, [1], outliers=0.0)
    far = [3, 20]
    seconds = seconds_of(clean)
    seconds[far] *= 4.0
    before, after = fitted(clean), fitted(with_seconds(clean, seconds))
    assert before.outliers == []
    assert after.outliers == far
    assert set(far) < set(after.indices)
    assert all(after.residuals[index] > 1.5 for index in far)
    for name in truth:
        moved = math.log(after.parameters[name].value / before.parameters[name].value)
        assert abs(moved) < 1.5 * errors[name], name


def test_two_samples_far_off_either_way_are_both_outliers() -> None:
    seconds = np.array([1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 9.0, 0.1])
    found = fit_rate(series_of(seconds, np.full(8, 1e6)))
    assert found.outliers == [6, 7]


# What the samples do not settle.


@pytest.mark.parametrize("seed", range(5))
def test_a_latency_too_small_to_see_is_named_and_bounded_from_above(seed: int) -> None:
    series, truth, _ = latencies(7, 5, latency=1e-9)
    found = fit_latency(noisy(series, [seed]))
    latency = found.parameters["latency_s"]
    assert found.undetermined == ["latency_s"]
    assert 0 < latency.low <= 1e-3 * 1.2 * 4096 / 1e9
    assert 0.01 * 4096 / 1e9 < latency.high < 0.2 * 4096 / 1e9
    assert found.parameters["bytes_per_s"].value == pytest.approx(truth["bytes_per_s"], rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_rate_too_fast_to_see_is_named_and_bounded_from_below(seed: int) -> None:
    found = fit_latency(noisy(latencies(7, 5, latency=10.0)[0], [seed]))
    rate = found.parameters["bytes_per_s"]
    assert found.undetermined == ["bytes_per_s"]
    assert rate.value == rate.low
    assert 2.0**24 / 10.0 < rate.low < rate.high
    assert rate.high > 1e9
    assert "at least" in rate.note


def test_one_size_settles_neither_latency_nor_rate() -> None:
    amount = np.full(6, 1e6)
    found = fit_latency(noisy(series_of(2e-3 * np.ones(6), amount), [0], outliers=0.0))
    assert set(found.undetermined) == {"latency_s", "bytes_per_s"}
    assert holds(found.parameters["latency_s"], 1.8e-3)  # nearly all of the time may be latency
    assert holds(found.parameters["bytes_per_s"], 0.5e9)  # or none of it
    assert holds(found.parameters["bytes_per_s"], 5e9)


@pytest.mark.parametrize("seed", range(5))
def test_a_queue_that_never_bends_settles_what_was_reached_only(seed: int) -> None:
    series, truth, _ = depths(5, half=6400.0)
    found = fit_depths(noisy(series, [seed], outliers=0.0))
    assert set(found.undetermined) == {"bytes_per_s", "half"}
    reached = found.parameters["reached_bytes_per_s"]
    assert reached.value == pytest.approx(truth["reached_bytes_per_s"], rel=0.1)
    assert reached.high / reached.low < 1.3
    assert found.parameters["bytes_per_s"].low < truth["bytes_per_s"]
    assert found.parameters["bytes_per_s"].low > 2 * reached.value
    assert found.parameters["bytes_per_s"].high > truth["bytes_per_s"]


@pytest.mark.parametrize("seed", range(5))
def test_a_queue_full_from_the_start_settles_its_limit_only(seed: int) -> None:
    series, truth, _ = depths(5, half=1e-6)
    found = fit_depths(noisy(series, [seed], outliers=0.0))
    assert found.undetermined == ["half"]
    assert found.parameters["half"].high < 0.3
    assert found.parameters["bytes_per_s"].value == pytest.approx(truth["bytes_per_s"], rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_roofline_never_limited_by_arithmetic_bounds_it_from_below(seed: int) -> None:
    moved = np.tile(np.geomspace(1e6, 1e9, 7), 5)
    flop = np.tile([1e7, 1e6, 1e9, 1e8, 1e10, 1e9, 1e11], 5)  # up to 100 FLOP a byte
    at: list[dict[str, Setting]] = [{"bytes": size} for size in moved.tolist()]
    series = series_of(1e-5 + moved / 1e12, flop, at)
    found = fit_roof(noisy(series, [seed], outliers=0.0))
    assert "flop_per_s" in found.undetermined
    assert "bytes_per_s" not in found.undetermined
    arithmetic = found.parameters["flop_per_s"]
    assert arithmetic.value == arithmetic.low
    assert 0.7e14 < arithmetic.low < 1.3e14  # 100 FLOP a byte at 1e12 byte/s
    assert arithmetic.high > 1e15
    assert found.parameters["bytes_per_s"].value == pytest.approx(1e12, rel=0.15)


def test_equal_flop_per_byte_does_not_tell_memory_from_arithmetic() -> None:
    size = np.tile(np.geomspace(1e6, 1e9, 7), 5)
    at: list[dict[str, Setting]] = [{"bytes": each} for each in size.tolist()]
    found = fit_roof(noisy(series_of(1e-5 + size / 1e12, 50 * size, at), [0]))
    assert found.undetermined == ["bytes_per_s", "flop_per_s"]
    assert found.parameters["bytes_per_s"].low == pytest.approx(1e12, rel=0.1)
    assert found.parameters["flop_per_s"].low == pytest.approx(50e12, rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("fitted", [fit_latency, fit_depths, fit_roof, fit_rate])
def test_few_samples_never_crash_and_say_what_they_leave_open(
    count: int, fitted: Callable[[Series], Fit]
) -> None:
    size = np.geomspace(1e6, 1e7, count)
    at: list[dict[str, Setting]] = [
        {"depth": float(2**index), "bytes": each} for index, each in enumerate(size.tolist())
    ]
    found = fitted(series_of(1e-3 + size / 1e9, size, at))
    for estimate in found.parameters.values():
        assert 0 < estimate.low <= estimate.value <= estimate.high < math.inf
    free = {fit_rate: 1, fit_roof: 3}.get(fitted, 2)
    if count <= free:
        assert set(found.undetermined) == set(found.parameters)


def test_a_law_that_does_not_hold_widens_its_intervals() -> None:
    """Points 20 % off the law, each with repeats that agree to 1 %."""
    amount = np.tile(np.geomspace(2.0**12, 2.0**24, 7), 50)
    rng = np.random.default_rng(0)
    seconds = (1e-4 + amount / 1e9) * np.exp(rng.normal(0.0, 0.01, len(amount)))
    bent = seconds * np.tile([1.2, 0.85, 1.2, 0.85, 1.2, 0.85, 1.2], 50)
    true, wrong = (fit_latency(series_of(each, amount)) for each in (seconds, bent))
    for name in ("latency_s", "bytes_per_s"):
        narrow, wide = true.parameters[name], wrong.parameters[name]
        assert narrow.high / narrow.low < 1.02
        assert wide.high / wide.low > 1.2


# Laws of any samples.

seeds = st.integers(0, 10_000)


@settings(max_examples=25)
@given(seed=seeds, factor=st.floats(1e-3, 1e3))
def test_scaling_time_scales_latency_and_one_over_the_rate(seed: int, factor: float) -> None:
    series = noisy(latencies(7, 5)[0], [seed])
    once, scaled = (
        fit_latency(series),
        fit_latency(with_seconds(series, seconds_of(series) * factor)),
    )
    for name, power in (("latency_s", 1), ("bytes_per_s", -1)):
        for end in ("low", "value", "high"):
            expected = getattr(once.parameters[name], end) * factor**power
            assert getattr(scaled.parameters[name], end) == pytest.approx(expected, rel=1e-4)
    assert scaled.outliers == once.outliers


@pytest.mark.parametrize(
    ("design", "fitted"),
    [
        (latencies(7, 5), fit_latency),
        (depths(5), fit_depths),
        (roofs(3), fit_roof),
        (rates(9), fit_rate),
    ],
    ids=["latency", "depths", "roof", "rate"],
)
@settings(max_examples=12)
@given(seed=seeds)
def test_the_order_of_samples_does_not_matter(
    design: Design, fitted: Callable[[Series], Fit], seed: int
) -> None:
    series = noisy(design[0], [seed])
    order = np.random.default_rng(seed).permutation(len(series.samples)).tolist()
    shuffled = series.model_copy(update={"samples": [series.samples[index] for index in order]})
    one, other = fitted(series), fitted(shuffled)
    assert one.undetermined == other.undetermined
    assert one.outliers == sorted(order[index] for index in other.outliers)
    for name, estimate in one.parameters.items():
        for end in ("low", "value", "high"):
            expected = pytest.approx(getattr(estimate, end), rel=1e-3)
            assert getattr(other.parameters[name], end) == expected, (name, end)


@pytest.mark.parametrize(
    ("few", "many", "fitted"),
    [
        (latencies(7, 3), latencies(7, 48), fit_latency),
        (depths(3), depths(48), fit_depths),
        (roofs(4), roofs(64), fit_roof),
        (rates(6), rates(96), fit_rate),
    ],
    ids=["latency", "depths", "roof", "rate"],
)
def test_sixteen_times_the_samples_make_intervals_about_a_quarter_as_wide(
    few: Design, many: Design, fitted: Callable[[Series], Fit]
) -> None:
    def width(series: Series, name: str) -> float:
        found = [fitted(noisy(series, [seed])).parameters[name] for seed in range(5)]
        return float(np.median([math.log(each.high / each.low) for each in found]))

    for name in few[1]:
        assert 0.1 < width(many[0], name) / width(few[0], name) < 0.4, name


@settings(max_examples=25)
@given(
    samples=st.lists(
        st.tuples(
            st.floats(1e-6, 1e3), st.sampled_from([0.0, 1.0, 4096.0, 1e6, 1e9]), st.integers(1, 9)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_samples_give_finite_positive_intervals_that_hold_the_value(
    samples: list[tuple[float, float, int]],
) -> None:
    seconds, amount, depth = (np.array(each, dtype=float) for each in zip(*samples, strict=True))
    at: list[dict[str, Setting]] = [{"depth": q, "bytes": q * 1e5} for q in depth.tolist()]
    series = series_of(seconds, amount, at)
    for fitted in (fit_latency, fit_depths, fit_roof, fit_rate):
        try:
            found = fitted(series)
        except InputError as error:
            assert " 0" in str(error)
            assert not amount.all()
            continue
        for estimate in found.parameters.values():
            assert 0 < estimate.low <= estimate.value <= estimate.high < math.inf
        assert np.isfinite(found.residuals).all()


def test_the_same_samples_give_the_same_fit() -> None:
    series = noisy(roofs(5)[0], [0])
    assert fit_roof(series) == fit_roof(series)


# Shares.


def test_a_share_adds_its_two_uncertainties_in_quadrature() -> None:
    above = Estimate(value=3.0, low=3.0 / 1.1, high=3.0 * 1.1)
    below = Estimate(value=4.0, low=4.0 / 1.2, high=4.0 * 1.2)
    found = fit.share(above, below, source="links", note="together")
    expected = math.hypot(math.log(1.1), math.log(1.2))
    assert found.value == pytest.approx(0.75)
    assert math.log(found.high / found.value) == pytest.approx(expected)
    assert math.log(found.value / found.low) == pytest.approx(expected)
    assert (found.source, found.note) == ("links", "together")


def test_a_share_of_two_measured_rates_is_in_its_interval() -> None:
    inside = 0
    for trial in range(TRIALS):
        above, below = (
            fit_rate(noisy(rates(20)[0], [9, trial, kind])).parameters["rate"] for kind in (0, 1)
        )
        inside += holds(fit.share(above, below), 1.0)
    assert 0.9 * TRIALS <= inside < TRIALS


def test_a_lopsided_interval_stays_lopsided_the_other_way_round_below() -> None:
    exact = Estimate(value=1.0, low=1.0, high=1.0)
    lopsided = Estimate(value=2.0, low=1.0, high=2.0)
    assert fit.share(lopsided, exact).high == pytest.approx(2.0)
    assert fit.share(exact, lopsided).low == pytest.approx(0.5)
    assert fit.share(exact, lopsided).high == pytest.approx(1.0)


# The attention-time model of the quota.


def attention_series(model: AttentionTime, seed: int, repeats: int = 2, count: int = 30) -> Series:
    rng = np.random.default_rng(seed)
    at: list[dict[str, Setting]] = []
    seconds = []
    for _ in range(count):
        chunks = int(rng.integers(1, 9))
        cached = np.exp(rng.uniform(np.log(16), np.log(100_000), chunks)).astype(np.int64)
        bsz = np.exp(rng.uniform(0.0, np.log(8000), chunks)).astype(np.int64)
        text = ",".join(f"{c}:{b}" for c, b in zip(cached, bsz, strict=True))
        at += [{"chunks": text}] * repeats
        seconds += [batch_seconds(model, cached, bsz)] * repeats
    return series_of(np.array(seconds), np.zeros(len(seconds)), at)


def fit_attention(
    series: Series, layers: int = 1, limit: float = 2048.0
) -> tuple[Fit, AttentionTime]:
    found, model = fit.attention(
        "attention",
        series,
        range(len(series.samples)),
        llm_name="some LLM",
        tensor=2,
        layers=layers,
        limit_tokens=limit,
    )
    assert (model.llm, model.tensor) == ("some LLM", 2)
    return found, AttentionTime(**model.coefficients)


def test_attention_of_one_layer_becomes_that_of_all() -> None:
    series = attention_series(KNOWN, seed=0)
    found, model = fit_attention(series, layers=10)
    for name, value in KNOWN._asdict().items():
        times = 1 if name == "limit_tokens" else 10
        assert getattr(model, name) == pytest.approx(value * times, rel=1e-3), name
    assert "limit_tokens" not in found.parameters
    assert np.abs(found.residuals).max() < 1e-5


def test_attention_coefficients_are_in_their_intervals() -> None:
    """Without outliers, as the model's own least squares wants it; 8 machines, 6 coefficients."""
    inside, intervals = 0, 0
    for seed in range(8):
        found, _ = fit_attention(noisy(attention_series(KNOWN, seed), [seed], outliers=0.0))
        for name, estimate in found.parameters.items():
            inside += holds(estimate, getattr(KNOWN, name))
            intervals += 1
    assert intervals >= 40
    assert inside >= 0.85 * intervals


def test_attention_reports_outliers_and_what_it_cannot_tell() -> None:
    one_chunk = attention_series(KNOWN, seed=1)
    single = [
        sample.model_copy(update={"at": {"chunks": str(sample.at["chunks"]).split(",")[0]}})
        for sample in one_chunk.samples
    ]
    seconds = np.array(
        [
            batch_seconds(KNOWN, *np.array([[int(n)] for n in str(s.at["chunks"]).split(":")]))
            for s in single
        ]
    )
    seconds[7] *= 8.0
    found, _ = fit_attention(
        with_seconds(one_chunk.model_copy(update={"samples": single}), seconds)
    )
    assert found.outliers == [7]
    assert {"fixed_s", "chunk_s"} <= set(found.undetermined)


@pytest.mark.parametrize("chunks", ["", "12", "12:x", "1:2:3", "1:2,", None, 7, "-1:5", "3:0"])
def test_bad_chunks_are_one_sentence(chunks: Setting) -> None:
    series = attention_series(KNOWN, seed=0, count=5)
    samples = [
        *series.samples[:-1],
        series.samples[-1].model_copy(update={"at": {"chunks": chunks}}),
    ]
    with pytest.raises(InputError, match=r"chunk"):
        fit_attention(series.model_copy(update={"samples": samples}))


def test_too_few_batches_are_one_sentence() -> None:
    with pytest.raises(InputError, match=r"attention: series made: .* measure more"):
        fit_attention(attention_series(KNOWN, seed=0, repeats=1, count=3))
    with pytest.raises(InputError, match="layers 0 must be at least 1"):
        fit_attention(attention_series(KNOWN, seed=0), layers=0)


# Samples that cannot be used.


def broken(**changes: object) -> Series:
    """Samples of which the third is what a file or a measurement could not bring, but a caller can."""
    series = latencies(5, 1)[0]
    samples = list(series.samples)
    samples[2] = samples[2].model_copy(update=changes)
    return series.model_copy(update={"samples": samples})


@pytest.mark.parametrize("fitted", [fit_latency, fit_depths, fit_roof, fit_rate])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seconds": math.nan}, r"samples\[2\].seconds of series made is nan.* measure again"),
        ({"seconds": 0.0}, r"samples\[2\].seconds of series made is 0.0"),
        ({"seconds": -1.0}, r"samples\[2\].seconds of series made is -1.0"),
        ({"seconds": math.inf}, r"samples\[2\].seconds of series made is inf"),
        ({"amount": math.nan}, r"samples\[2\].amount of series made is nan"),
        ({"amount": -1.0}, r"samples\[2\].amount of series made is -1.0"),
    ],
)
def test_a_sample_that_is_no_measurement_is_one_sentence(
    fitted: Callable[[Series], Fit], changes: dict[str, float], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        fitted(broken(**changes))


@pytest.mark.parametrize(
    ("indices", "sentence"),
    [
        ([], "no sample of series made was chosen"),
        ([0, 5], "index 5 is outside series made, which has 5 samples; use 0 to 4"),
        ([-1], "index -1 is outside"),
        ([1, 1], "name a sample twice"),
    ],
)
def test_bad_indices_are_one_sentence(indices: list[int], sentence: str) -> None:
    with pytest.raises(InputError, match=f"link: .*{re.escape(sentence)}"):
        fit.latency_bandwidth("link", latencies(5, 1)[0], indices)


def test_no_amounts_where_a_rate_is_asked_for_are_one_sentence() -> None:
    at: list[dict[str, Setting]] = [{"depth": 1, "bytes": 0}, {"depth": 2, "bytes": 0}]
    nothing = series_of(np.array([1.0, 2.0]), np.zeros(2), at)
    for fitted in (fit_latency, fit_depths, fit_roof):
        with pytest.raises(InputError, match=r"0, so there is no .* to fit"):
            fitted(nothing)
    with pytest.raises(InputError, match="all bytes of series made are 0"):
        fit_roof(series_of(np.array([1.0, 2.0]), np.ones(2), at))
    with pytest.raises(InputError, match="amounts that are 0 beside others"):
        fit_rate(series_of(np.array([1.0, 2.0]), np.array([0.0, 1.0])))
    assert fit_rate(nothing).parameters["rate"].value == pytest.approx(1.5)


@pytest.mark.parametrize("depth", [None, "deep", True, 0, -1, math.nan])
def test_a_depth_that_is_no_number_is_one_sentence(depth: Setting) -> None:
    with pytest.raises(InputError, match=r"at\.depth of a sample of series made is .* more than 0"):
        fit_depths(broken(at={"depth": depth}))
