"""A profile shown: everything is on the page, text stays text, any part alone, changes are named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.figures_profile import figure
from app.profile_marks import Panel
from app.profile_panels import panels
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
from calibration.importers import import_output
from calibration.profile import Change, Difference, compare, imported
from dualpath_model.catalog.measured import measured_of
from dualpath_model.errors import InputError
from dualpath_model.profile import FIGURES, Estimate, PartName, Profile
from tests.app.conftest import EVIL
from tests.app.made_profile import measured, only, samples_drawn
from tests.app.test_page import Seen
from tests.app.test_picture import pixels
from tests.profiles import profile_data

OUTPUTS = Path(__file__).parents[1] / "calibration" / "outputs"


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


def test_the_finding_counts_what_models_take_and_not_what_they_could() -> None:
    """Copies do not count beside decode steps, nor writes without reads."""
    beside = {"decode_bytes_per_s": 1e9, "hbm_copy_bytes_per_s": 2e9, "gather_share": 0.5}
    alone = {"storage_write_bytes_per_s": 1e9, "network_bytes_per_s": 1e9}
    for figures, taken in ((beside, 1), (alone, 1), ({**beside, **alone}, 2)):
        profile = Profile.model_validate(profile_data(figures))
        assert len(measured_of(profile, ()).figures) == taken
        assert f"{len(figures)} figures, of which models take {taken} in place" in finding(profile)


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
    for panel in (panel for name, part in profile.parts.items() for panel in panels(name, part)):
        assert "<script" not in figure(panel).to_json().replace("\\u003c", "<")
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
    drawn = sum(len(panels(name, part)) for name, part in profile.parts.items())
    plots = [a for tag, a in seen.tags if tag == "div" and a.get("class") == "plotly-graph-div"]
    assert len(plots) == 1 + drawn


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
    drawn = [panel for name in names for panel in panels(name, profile.parts[name])]
    for panel in drawn:
        figure(panel)
    assert all(panel in drawn for panel in map(same_in(drawn), telling(profile)))
    draw_profile(profile, tmp_path / "picture.png")
    image = pixels(tmp_path / "picture.png")[..., :3]
    assert ((image < 0.9).any(axis=2)).mean() > 0.002


def same_in(drawn: list[Panel]) -> Any:
    """Arrays have no truth value, so panels are found by part, kind and title."""
    by = {(panel.part, panel.kind, panel.title): panel for panel in drawn}
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
    drawn = panels(name, profile.parts[name])
    for series in found.series:
        words = series.name.replace("_", " ")
        assert any(
            words in panel.title and samples_drawn(panel) == len(series.samples) for panel in drawn
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


def change(figure: str, factor: float, beyond: bool | None = True) -> Change:
    before = Estimate(value=1.0, low=1.0, high=1.0)
    after = Estimate(value=factor, low=factor, high=factor)
    unit = FIGURES[figure].unit
    ends = None if beyond is None else factor
    return Change(figure, unit, before, after, factor, ends, ends, beyond)


@pytest.mark.parametrize(
    ("figure", "factor", "beyond", "word"),
    [
        ("dram_bytes_per_s", 1.001, None, "interval not known"),
        ("network_latency_s", 2.0, None, "interval not known"),
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


def test_a_change_between_single_runs_is_shown_and_not_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = profile_data({"dram_bytes_per_s": 1e9, "network_latency_s": 1e-6}, spread=0.0)
    new = profile_data(
        {"dram_bytes_per_s": 1.001e9, "network_latency_s": 2e-6},
        spreads={"dram_bytes_per_s": 0.0},
    )
    changes = compare(Profile.model_validate(old), Profile.model_validate(new))
    show_changes("a", "b", changes)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[3:] == [
        "dram_bytes_per_s 1 GB/s 1 GB/s +0.1 % interval not known",
        "network_latency_s 1 us 2 us +100.0 % interval not known",
        "whether any figure changed cannot be told; 2 with interval not known",
    ]
    told = change("gather_share", 2.0)
    assert changes_summary([*changes, told]) == (
        "1 of 1 figures changed beyond the noise of one calibration: 1 higher; "
        "2 with interval not known"
    )


def test_what_was_measured_otherwise_stands_before_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [
        Difference(PartName.GPU, "host", "[red]", "b"),
        Difference(PartName.GPU, "llm", "deepseek-v3.2", "qwen2.5-0.5b"),
        Difference(PartName.STORAGE, "host", "[red]", "b"),
        Difference(PartName.STORAGE, "file_system", "ext4", "xfs"),
    ]
    show_changes("a", "b", [change("gather_share", 2.0)], found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "measured differently: gpu, storage host: [red] -> b",
        "measured differently: gpu llm: deepseek-v3.2 -> qwen2.5-0.5b",
        "measured differently: storage file system: ext4 -> xfs",
    ]
    assert lines[5].startswith("figure")


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
