"""A profile shown: curves are the fits', every sample is drawn once, text stays text, any part alone."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import figures_profile as drawn
from app.profile_picture import draw_profile, telling
from app.profile_view import (
    changes_summary,
    figure_rows,
    finding,
    origins,
    show_changes,
    show_profile,
    verdict,
    write_profile_page,
)
from calibration import fit
from calibration.importers import import_output
from calibration.profile import Change, compare, imported
from dualpath_model.errors import InputError
from dualpath_model.profile import (
    FIGURES,
    Estimate,
    Fit,
    Latency,
    PartName,
    Profile,
    Sample,
    Series,
)
from tests.app.conftest import EVIL
from tests.app.test_page import Seen
from tests.app.test_picture import pixels
from tests.profiles import profile_data

OUTPUTS = Path(__file__).parents[1] / "calibration" / "outputs"


def noisy(values: np.ndarray, seed: int) -> np.ndarray:
    return values * np.exp(np.random.default_rng(seed).normal(0, 0.03, values.shape))


def series_of(name: str, unit: Any, at: list[dict[str, Any]], amount: Any, seconds: Any) -> Series:
    samples = [
        Sample(at=point, amount=float(a), seconds=float(s))
        for point, a, s in zip(at, amount, seconds, strict=True)
    ]
    return Series(name=name, unit=unit, meaning="made", samples=samples)


def messages() -> tuple[Series, Fit]:
    size = np.tile(4096.0 * 4.0 ** np.arange(7), 4)
    seconds = noisy(2e-5 + size / 4e9, 1)
    seconds[5] *= 9  # lies far off
    series = series_of("messages", "B", [{"bytes": int(s)} for s in size], size, seconds)
    return series, fit.latency_bandwidth("messages", series, range(len(size)))


def depths() -> tuple[Series, Fit]:
    depth = np.tile(2.0 ** np.arange(6), 4)
    seconds = noisy(2e6 / (5e9 * depth / (depth + 3)), 2)
    at = [{"depth": int(q)} for q in depth]
    series = series_of("depths", "B", at, np.full(len(depth), 2e6), seconds)
    latency = Latency(count=9, p50=1e-3, p90=2e-3, p99=3e-3, p999=4e-3, most=5e-3)
    timed = [sample.model_copy(update={"latency": latency}) for sample in series.samples]
    series = series.model_copy(update={"samples": timed})
    return series, fit.saturating("depth", series, range(len(depth)), over="depth")


def decode() -> tuple[Series, Fit]:
    moved, batch = (a.ravel() for a in np.meshgrid([1e6, 1e8, 1e9], [1.0, 16.0, 256.0, 1024.0]))
    moved, batch = np.tile(moved, 3), np.tile(batch, 3)
    flop = moved * batch
    seconds = noisy(2e-5 + np.maximum(moved / 1e12, flop / 1e14), 3)
    at = [{"bytes": float(b), "batch": int(n)} for b, n in zip(moved, batch, strict=True)]
    series = series_of("decode_layer", "FLOP", at, flop, seconds)
    return series, fit.roofline("decode_layer", series, range(len(flop)))


def products() -> tuple[Series, Fit]:
    shapes = [("q_a", 128, 1536, 64), ("o", 128, 7168, 32), ("square", 512, 512, 512)]
    at = [
        {"shape": name, "m": m, "n": n, "k": k, "round": turn, "count": 7.0}
        for turn in range(4)
        for name, m, n, k in shapes
    ]
    flop = np.array([2.0 * m * n * k for _, m, n, k in shapes * 4])
    series = series_of("gemm_bf16", "FLOP", at, flop, noisy(flop / 1e12, 4))
    return series, fit.typical("gemm_bf16", series, range(12), parameter="flop_per_s")


def round_trips() -> tuple[Series, Fit]:
    series = series_of("latency", "", [{"bytes": 1}] * 5, [0.0] * 5, noisy(np.full(5, 6e-6), 5))
    return series, fit.typical("latency", series, range(5), parameter="seconds")


@cache
def measured() -> Profile:
    """A profile with all parts, made of samples that are fitted as the rooms do it."""
    data = Profile.model_validate(profile_data())
    content = {
        PartName.GPU: [decode(), products()],
        PartName.STORAGE: [depths()],
        PartName.NETWORK: [messages(), round_trips()],
    }
    parts = {
        name: part.model_copy(
            update={
                "series": [series for series, _ in content.get(name, [])],
                "fits": [found for _, found in content.get(name, [])],
                "warnings": [f"a warning about {name}"],
            }
        )
        for name, part in data.parts.items()
    }
    return data.model_copy(update={"parts": parts})


def only(*names: PartName) -> Profile:
    whole = measured()
    return whole.model_copy(update={"parts": {name: whole.parts[name] for name in names}})


# ---- curves ----------------------------------------------------------------------------------------


def predicted_by_fit(series: Series, found: Fit) -> np.ndarray:
    seconds = np.array([series.samples[i].seconds for i in found.indices])
    return np.asarray(seconds / (1 + np.array(found.residuals)))


def test_time_against_size_is_what_the_fit_predicts() -> None:
    series, found = messages()
    amount = np.array([sample.amount for sample in series.samples])
    curve = drawn.curve(found, amount)
    assert curve is not None
    np.testing.assert_allclose(curve.value, predicted_by_fit(series, found), rtol=1e-9)


@pytest.mark.parametrize("largest", [None, 32.0])
def test_rate_against_depth_is_what_the_fit_predicts(largest: float | None) -> None:
    series, found = depths()
    depth = np.array([float(sample.at["depth"] or 0) for sample in series.samples])
    amount = np.array([sample.amount for sample in series.samples])
    curve = drawn.curve(found, depth, largest=largest)
    assert curve is not None
    np.testing.assert_allclose(amount / curve.value, predicted_by_fit(series, found), rtol=1e-6)
    if largest is not None:
        reached = found.parameters["reached_bytes_per_s"]
        at_the_end = [ends[int(np.argmax(depth))] for ends in curve]
        np.testing.assert_allclose(at_the_end, [reached.value, reached.low, reached.high])


def test_the_roof_and_the_fixed_time_are_what_the_fit_predicts() -> None:
    series, found = decode()
    assert not found.undetermined
    amount = np.array([sample.amount for sample in series.samples])
    moved = np.array([float(sample.at["bytes"] or 0) for sample in series.samples])
    roof = drawn.curve(found, amount / moved)
    assert roof is not None
    seconds = found.parameters["fixed_s"].value + amount / roof.value
    np.testing.assert_allclose(seconds, predicted_by_fit(series, found), rtol=1e-6)


def test_a_median_is_the_same_everywhere() -> None:
    series, found = products()
    curve = drawn.curve(found, np.array([1.0, 7.0]))
    assert curve is not None
    rate = np.median([sample.amount / sample.seconds for sample in series.samples])
    np.testing.assert_allclose(curve.value, rate)


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
    curve = drawn.curve(found, x, largest=float(x.max()) if ends else None)
    assert curve is not None
    assert (curve.low <= curve.value * (1 + 1e-12)).all()
    assert (curve.value <= curve.high * (1 + 1e-12)).all()


@given(any_fit(), st.text(max_size=5))
def test_an_unknown_model_or_a_missing_parameter_has_no_curve(found: Fit, more: str) -> None:
    x = np.array([1.0])
    other = found.model_copy(update={"model": f"{found.model} *{more}"})
    assert drawn.curve(other, x) is None
    for name in set(found.parameters) - {"fixed_s"}:
        rest = {key: value for key, value in found.parameters.items() if key != name}
        assert drawn.curve(found.model_copy(update={"parameters": rest}), x) is None


# ---- panels ----------------------------------------------------------------------------------------


def samples_drawn(panel: drawn.Panel) -> int:
    return sum(len(dots.x) for dots in panel.dots if dots.symbol == "circle")


def test_every_sample_of_every_series_is_drawn_once() -> None:
    for name, part in measured().parts.items():
        found = [
            panel
            for panel in drawn.panels(name, part)
            if panel.kind not in ("latency", "residuals")
        ]
        assert [samples_drawn(panel) for panel in found] == [len(s.samples) for s in part.series]


def test_each_series_has_the_panel_that_its_fit_asks_for() -> None:
    kinds = {
        name: [panel.kind for panel in drawn.panels(name, part)]
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
    panel = drawn.panels(PartName.NETWORK, measured().parts[PartName.NETWORK])[0]
    crosses = [trace for trace in drawn.figure(panel).data if trace.name == "outliers"]
    assert [(list(t.x), list(t.y)) for t in crosses] == [
        ([series.samples[5].amount], [series.samples[5].seconds])
    ]


def test_rows_are_the_points_of_the_sweep_and_not_its_rounds() -> None:
    panel = drawn.panels(PartName.GPU, measured().parts[PartName.GPU])[1]
    shapes = ["o 128 × 7168 × 32", "q_a 128 × 1536 × 64", "square 512 × 512 × 512"]
    assert panel.rows == [*shapes, "median"]
    assert [int(y) for y in panel.dots[0].y] == [1, 0, 2] * 4


def test_a_fit_of_samples_that_are_not_there_is_left_out_of_the_plots() -> None:
    part = measured().parts[PartName.NETWORK]
    wrong = part.fits[0].model_copy(update={"outliers": [999]})
    other = part.fits[1].model_copy(update={"series": "unknown"})
    damaged = part.model_copy(update={"fits": [wrong, other]})
    panels = drawn.panels(PartName.NETWORK, damaged)
    assert panels[0].lines == []
    assert samples_drawn(panels[0]) == len(part.series[0].samples)


def test_a_wide_band_does_not_squash_the_samples() -> None:
    """A rate without an upper end has a band that goes on; the axis keeps to the samples."""
    part = measured().parts[PartName.STORAGE]
    found = part.fits[0]
    limit = found.parameters["reached_bytes_per_s"]
    wide = {**found.parameters, "reached_bytes_per_s": limit.model_copy(update={"high": 1e20})}
    open_ = part.model_copy(update={"fits": [found.model_copy(update={"parameters": wide})]})
    panel = drawn.panels(PartName.STORAGE, open_)[0]
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
    axis = drawn._axis("a", unit, np.array(values), log=log)
    low, high = axis.ends
    assert low <= min(values)
    assert max(values) <= high
    assert all(low <= at <= high * (1 + 1e-9) for at in axis.ticks)
    assert len(axis.ticks) <= 10


# ---- numbers ---------------------------------------------------------------------------------------


def test_intervals_are_short_where_narrow_and_unknown_where_there_is_none() -> None:
    def of(value: float, low: float, high: float, unit: str) -> str:
        return drawn.interval(Estimate(value=value, low=low, high=high), unit)

    assert of(1e9, 0.96e9, 1.04e9, "B/s") == "± 4.2 %"
    assert of(1e9, 0.85e9, 1.15e9, "B/s") == "850 MB/s to 1.15 GB/s"
    assert of(1e9, 0.5e9, 4e9, "B/s") == "500 MB/s to 4 GB/s"
    assert of(2e9, 1.39e9, 8.65e9, "B/s") == "1.39 to 8.65 GB/s"
    assert of(0.8, 0.141, 3.38, "") == "14.1 to 338 %"
    assert of(1e-3, 1e-3, 1e-3, "s") == "not known"


@given(positive, positive, positive)
def test_a_narrow_interval_is_not_told_narrower_than_it_is(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    text = drawn.interval(Estimate(value=value, low=low, high=high), "B/s")
    if text.startswith("±"):
        told = float(text.removeprefix("± ").removesuffix(" %")) / 100
        assert value * (1 + told * 1.05 + 1e-12) >= high
        assert value / (1 + told * 1.05 + 1e-12) <= low
        assert told <= 0.1


# ---- the terminal ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no sentence is folded


def test_all_figures_and_warnings_are_printed_and_no_raw_samples(
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = measured()
    show_profile(profile)
    text = capsys.readouterr().out
    for name in profile.figures:
        assert f"\n{name} " in text
        assert FIGURES[name].feeds in text
    for part in profile.parts.values():
        assert all(f"warning: {warning}" in text for warning in part.warnings)
    assert "samples that lie far off (they are in the fits): messages 1 of 28" in text
    assert "here (a CPU, 64 cores, 2 TB of memory, 8 x a GPU of 80 GB), 2026-11-24" in text
    assert len(text.splitlines()) < 50


def test_undetermined_parameters_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    part = measured().parts[PartName.STORAGE]
    found = part.fits[0].model_copy(update={"undetermined": ["half", "gone"]})
    profile = only(PartName.STORAGE).model_copy(
        update={"parts": {PartName.STORAGE: part.model_copy(update={"fits": [found]})}}
    )
    show_profile(profile)
    assert "not settled by the samples: half of depth; gone of depth" in capsys.readouterr().out


def test_the_finding_counts_and_names_the_least_certain() -> None:
    data = profile_data(
        {"dram_bytes_per_s": 1e9, "network_latency_s": 1e-6, "copy_launch_s": 1e-6},
        spreads={"network_latency_s": 0.5, "copy_launch_s": 0.0},
    )
    assert finding(Profile.model_validate(data)) == (
        "3 figures, of which models take 1 in place of a node's own; "
        "least certain: network_latency_s, 667 ns to 1.5 us; of 1 no interval is known"
    )
    assert finding(Profile(name="empty", parts={})) == "no figures: the samples settle none"


def test_a_cpu_that_stands_for_a_gpu_is_named_as_one() -> None:
    part = measured().parts[PartName.GPU]
    on_cpu = part.model_copy(update={"settings": {"device": "cpu"}})
    parts = {PartName.GPU: on_cpu, PartName.MEMORY: measured().parts[PartName.MEMORY]}
    first, second = origins(Profile(name="two", parts=parts))
    assert first.startswith("gpu: here")
    assert first.endswith("; its CPU stands for a GPU")
    assert "stands for" not in second


def hostile() -> Profile:
    """A profile in which every free text tries to be markup."""
    evil = f"[red]{EVIL}[/red]"
    parts = {}
    for name, part in measured().parts.items():
        names = {series.name: f"{i} {evil}" for i, series in enumerate(part.series)}
        at = {"[bold]" + evil: evil}
        series = [
            s.model_copy(
                update={
                    "name": names[s.name],
                    "meaning": evil,
                    "samples": [x.model_copy(update={"at": {**x.at, **at}}) for x in s.samples],
                }
            )
            for s in part.series
        ]
        fits = [
            f.model_copy(update={"name": evil, "series": names[f.series], "undetermined": [evil]})
            for f in part.fits
        ]
        figures = {n: e.model_copy(update={"note": evil}) for n, e in part.figures.items()}
        parts[name] = part.model_copy(
            update={
                "series": series,
                "fits": fits,
                "figures": figures,
                "warnings": [evil],
                "date": evil,
                "settings": {evil: evil},
                "tools": {evil: evil},
                "machine": part.machine.model_copy(update={"host": evil, "gpu": evil}),
            }
        )
    return Profile(name=evil, parts=parts)


def test_text_from_the_profile_is_no_markup(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile = hostile()
    show_profile(profile)
    text = capsys.readouterr().out
    assert text.startswith(f"[red]{EVIL}[/red]\n")
    assert f"warning: [red]{EVIL}[/red]" in text
    path = tmp_path / "page.html"
    write_profile_page(profile, path)
    seen, plain = Seen(path.read_text()), Seen(page_of(measured(), tmp_path))
    assert seen.count("script") == plain.count("script")
    assert seen.text.count(f"[red]{EVIL}[/red]") >= 5
    for panel in (
        panel for name, part in profile.parts.items() for panel in drawn.panels(name, part)
    ):
        assert "<script" not in drawn.figure(panel).to_json().replace("\\u003c", "<")
    draw_profile(profile, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# ---- page and picture ------------------------------------------------------------------------------


def page_of(profile: Profile, folder: Path) -> str:
    path = folder / "profile.html"
    write_profile_page(profile, path)
    return path.read_text()


def test_the_page_has_every_figure_fit_and_panel_and_needs_no_network(tmp_path: Path) -> None:
    profile = measured()
    text = page_of(profile, tmp_path)
    seen = Seen(text)
    assert not [a for tag, a in seen.tags if {"src", "href"} & set(a)]
    words = set(seen.text)
    for part in profile.parts.values():
        for row in figure_rows(part):
            assert row[0] in words
            assert row[1].replace(" ", "\N{NO-BREAK SPACE}") in words
        assert {fit.model for fit in part.fits} <= words
    panels = sum(len(drawn.panels(name, part)) for name, part in profile.parts.items())
    plots = [a for tag, a in seen.tags if tag == "div" and a.get("class") == "plotly-graph-div"]
    assert len(plots) == 1 + panels


@pytest.mark.parametrize(
    "names",
    [c for n in range(3) for c in itertools.combinations(PartName, n)],
    ids=lambda names: "+".join(names) or "none",
)
def test_any_subset_of_parts_is_shown(
    names: tuple[PartName, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = only(*names)
    show_profile(profile)
    assert capsys.readouterr().out.startswith("made\n")
    panels = [panel for name in names for panel in drawn.panels(name, profile.parts[name])]
    for panel in panels:
        drawn.figure(panel)
    assert all(panel in panels for panel in map(same_in(panels), telling(profile)))
    draw_profile(profile, tmp_path / "picture.png")
    image = pixels(tmp_path / "picture.png")[..., :3]
    assert ((image < 0.9).any(axis=2)).mean() > 0.002


def same_in(panels: list[drawn.Panel]) -> Any:
    """Arrays have no truth value, so panels are found by part, kind and title."""
    by = {(panel.part, panel.kind, panel.title): panel for panel in panels}
    return lambda panel: by[panel.part, panel.kind, panel.title]


@pytest.mark.parametrize(
    ("tool", "file"),
    [
        ("fio", "fio_randread.json"),
        ("iperf3", "iperf3_one.json"),
        ("perftest", "perftest_write_gbits.txt"),
        ("nccl-tests", "nccl_sendrecv.txt"),
        ("nvbandwidth", "nvbandwidth_one_gpu.json"),
    ],
)
def test_imported_profiles_of_few_samples_are_shown(
    tool: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, found = import_output(tool, OUTPUTS / file)
    profile = imported(name, found, host="elsewhere", title="one")
    show_profile(profile)
    text = capsys.readouterr().out
    assert f"{name}: elsewhere, " in text
    assert all(figure in text for figure in found.figures)
    panels = drawn.panels(name, profile.parts[name])
    for series in found.series:
        words = series.name.replace("_", " ")
        assert any(
            words in panel.title and samples_drawn(panel) == len(series.samples) for panel in panels
        )
    draw_profile(profile, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size > 5_000


def test_the_picture_is_the_same_each_time_and_not_cut_off(tmp_path: Path) -> None:
    profile = measured()
    paths = [tmp_path / name for name in ("a.svg", "b.svg", "c.png")]
    for path in paths:
        draw_profile(profile, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    image = pixels(paths[2])
    ink = np.asarray((image[..., :3] < 0.9).any(axis=2))
    assert ink.mean() > 0.02
    assert not ink[:, :2].any()
    assert not ink[:, -2:].any()


def test_dollars_in_a_name_are_no_formula(tmp_path: Path) -> None:
    name = r"$\nonsense$"
    draw_profile(only(PartName.MEMORY).model_copy(update={"name": name}), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in .png or .svg"):
        draw_profile(measured(), tmp_path / "profile.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_page_in_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; make it first"):
        write_profile_page(only(PartName.MEMORY), tmp_path / "no" / "page.html")


# ---- changes ---------------------------------------------------------------------------------------


def change(figure: str, factor: float, beyond: bool = True) -> Change:
    before = Estimate(value=1.0, low=1.0, high=1.0)
    after = Estimate(value=factor, low=factor, high=factor)
    unit = FIGURES[figure].unit
    return Change(figure, unit, before, after, factor, factor, factor, beyond)


@pytest.mark.parametrize(
    ("figure", "factor", "beyond", "word"),
    [
        ("dram_bytes_per_s", 1.2, True, "faster"),
        ("dram_bytes_per_s", 0.8, True, "slower"),
        ("dram_bytes_per_s", 0.8, False, "within noise"),
        ("network_latency_s", 1.2, True, "slower"),
        ("network_latency_s", 0.8, True, "faster"),
        ("gather_share", 1.2, True, "higher"),
        ("gather_share", 0.8, True, "lower"),
    ],
)
def test_a_verdict_knows_that_less_latency_is_faster(
    figure: str, factor: float, beyond: bool, word: str
) -> None:
    assert verdict(change(figure, factor, beyond)) == word


def test_changes_name_all_figures_and_sum_up(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"dram_bytes_per_s": 1e9, "network_latency_s": 1e-6, "storage_read_bytes_per_s": 1e9}
    later = {"dram_bytes_per_s": 2e9, "network_latency_s": 1.01e-6, "network_bytes_per_s": 1e9}
    old = Profile.model_validate(profile_data(figures, name="[old]"))
    new = Profile.model_validate(profile_data(later, name="[/new]"))
    show_changes(old.name, new.name, compare(old, new))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [["before", "[old]"], ["after", "[/new]"]]
    rows = {words[0]: words for words in lines[3:-1]}
    assert list(rows) == [name for name in FIGURES if name in {*figures, *later}]
    assert rows["dram_bytes_per_s"][-1] == "faster"
    assert "+100.0" in rows["dram_bytes_per_s"]
    assert rows["network_latency_s"][-2:] == ["within", "noise"]
    assert rows["storage_read_bytes_per_s"][-2:] == ["only", "before"]
    assert rows["network_bytes_per_s"][-2:] == ["only", "after"]
    assert " ".join(lines[-1]) == (
        "1 of 2 figures changed beyond the noise of one calibration: 1 faster; "
        "1 only before, 1 only after"
    )


def test_nothing_to_compare_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show_changes("a", "b", ())
    assert capsys.readouterr().out.endswith("neither profile has figures\n")
    alone = compare(only(PartName.MEMORY), only(PartName.STORAGE))
    assert changes_summary(alone) == "no figure is in both profiles; 1 only before, 2 only after"


def test_a_part_without_figures_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    part = measured().parts[PartName.MEMORY].model_copy(update={"figures": {}})
    show_profile(Profile(name="none", parts={PartName.MEMORY: part}))
    text = capsys.readouterr().out
    assert "no figures: the samples settle none" in text
    assert "memory: no figures\nwarning: a warning about memory\n" in text
