"""The profile's format: exact both ways, upgraded in order, and one sentence for what is wrong in it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model import profile as module
from dualpath_model.errors import InputError
from dualpath_model.profile import (
    COEFFICIENTS,
    FIGURES,
    AttentionFit,
    Estimate,
    Fit,
    Latency,
    Machine,
    Part,
    PartName,
    Profile,
    Sample,
    Series,
    dump,
    estimate,
    load_profile,
    upgrade,
)
from dualpath_model.scheduler.attention import AttentionTime
from tests.profiles import FIGURE_VALUES, profile_data, write_profile

Data = dict[str, Any]


def complaint(path: Path) -> str:
    """Return the one sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load_profile(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def changed(folder: Path, change: Callable[[Data], object]) -> Path:
    """Write a good profile in which ``change`` has made one mistake."""
    data = copy.deepcopy(profile_data())  # its parts share a machine
    change(data)
    path = folder / "profile.json"
    path.write_text(json.dumps(data))
    return path


# ---- both ways -----------------------------------------------------------------------------------

positive = st.floats(1e-15, 1e30)
words = st.text(max_size=20)
settings = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | positive | words


@st.composite
def estimates(draw: st.DrawFn, of: st.SearchStrategy[float] = positive) -> Estimate:
    low, value, high = sorted(draw(st.tuples(of, of, of)))
    return Estimate(value=value, low=low, high=high, source=draw(words), note=draw(words))


@st.composite
def parts(draw: st.DrawFn, name: PartName) -> Part:
    samples = st.builds(
        Sample,
        at=st.dictionaries(words, settings, max_size=3),
        seconds=positive,
        amount=st.just(0.0) | positive,
        latency=st.none()
        | st.builds(
            Latency,
            count=st.integers(1, 10**9),
            p50=positive,
            p90=positive,
            p99=positive,
            p999=positive,
            most=positive,
        ),
    )
    series = draw(
        st.builds(
            Series,
            name=words,
            unit=st.sampled_from(["B", "FLOP", ""]),
            meaning=words,
            samples=st.lists(samples, min_size=1, max_size=3),
        )
    )
    used = list(range(len(series.samples)))
    fit = Fit(
        name=draw(words),
        model="seconds",
        series=series.name,
        parameters={"bytes_per_s": draw(estimates())},
        indices=used,
        residuals=[draw(st.floats(-1e30, 1e30)) for _ in used],
        outliers=used[:1],
    )
    own = [figure for figure, meaning in FIGURES.items() if meaning.part is name]
    likely = estimates(of=st.floats(1.0, 1e9))  # of any unit
    figures = draw(st.dictionaries(st.sampled_from(own), likely, max_size=3))
    machine = Machine(host=draw(words), memory_bytes=draw(st.none() | positive))
    attention = AttentionFit(
        llm="ds-27b",
        tensor=1,
        coefficients={name: draw(st.floats(0, 1e6)) for name in COEFFICIENTS},
        relative_error_p50=0.01,
        relative_error_max=0.1,
    )
    return Part(
        machine=machine,
        date=draw(words),
        tools={"dualpath": "0.1.0"},
        settings=draw(st.dictionaries(words, settings, max_size=3)),
        series=[series],
        fits=[fit],
        figures=figures,
        attention=[attention] if name is PartName.GPU else [],
        warnings=draw(st.lists(words, max_size=2)),
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    names = draw(st.lists(st.sampled_from(list(PartName)), unique=True))
    return Profile(name=draw(words), parts={name: draw(parts(name)) for name in names})


@given(made=profiles())
def test_what_is_written_is_what_is_read(
    made: Profile, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "both_ways.json"
    path.write_text(dump(made), encoding="utf-8")
    found = load_profile(path)
    assert found == made
    # equal is not enough: 1, 1.0 and true are equal, and a setting must stay what it was
    assert dump(found) == dump(made)


def test_figures_come_in_the_order_of_showing() -> None:
    backwards = dict(reversed(FIGURE_VALUES.items()))
    found = Profile.model_validate(profile_data(backwards)).figures
    assert list(found) == [name for name in FIGURES if name in FIGURE_VALUES]
    assert {name: figure.value for name, figure in found.items()} == FIGURE_VALUES


def test_every_figure_says_what_it_is() -> None:
    for name, figure in FIGURES.items():
        assert figure.meaning and figure.meaning[-1] != ".", name
        suffix = {"FLOP/s": "_flop_per_s", "B/s": "_bytes_per_s", "s": "_s", "": "_share"}
        assert name.endswith(suffix[figure.unit]), name


def test_coefficients_are_those_of_the_attention_model() -> None:
    assert AttentionTime._fields == COEFFICIENTS


# ---- versions ------------------------------------------------------------------------------------


def test_upgrades_are_applied_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(data: Data) -> Data:
        return {**data, "seen": [data["version"]]}

    def second(data: Data) -> Data:
        return {**data, "seen": [*data["seen"], data["version"]]}

    monkeypatch.setattr(module, "VERSION", 3)
    monkeypatch.setattr(module, "UPGRADES", {2: second, 1: first})
    old = {"format": "dualpath-profile", "version": 1}
    assert upgrade(old, "old.json") == {**old, "version": 3, "seen": [1, 2]}
    assert old["version"] == 1, "the given data stay as they are"
    from_the_middle = upgrade({"version": 2, "seen": []}, "middle.json")
    assert from_the_middle == {"version": 3, "seen": [2]}
    assert upgrade({"version": 3}, "new.json") == {"version": 3}
    with pytest.raises(InputError, match="version 4 is newer than the 3"):
        upgrade({"version": 4}, "newer.json")


def test_a_file_of_an_older_version_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if version 2 had renamed ``title`` to ``name``; the model stands for version 2."""

    class Second(Profile):
        version: int = 2  # type: ignore[assignment]  # wider than Literal[1], for this test

    monkeypatch.setattr(module, "VERSION", 2)
    monkeypatch.setattr(module, "Profile", Second)
    monkeypatch.setattr(
        module, "UPGRADES", {1: lambda data: {**data, "name": data["title"], "title": None}}
    )
    data = profile_data()
    data["title"] = data.pop("name")
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert "title: unknown field" in complaint(tmp_path / "old.json")

    def renamed(data: Data) -> Data:
        return {"name": data["title"], **{k: v for k, v in data.items() if k != "title"}}

    monkeypatch.setattr(module, "UPGRADES", {1: renamed})
    found = load_profile(tmp_path / "old.json")
    assert (found.name, found.version) == ("made", 2)


def test_every_older_version_has_an_upgrade() -> None:
    assert set(module.UPGRADES) == set(range(1, module.VERSION))


def test_a_newer_version_says_to_update(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda data: data.update(version=2))
    assert "version 2 is newer than the 1" in complaint(path)
    assert "update dualpath" in complaint(path)


@pytest.mark.parametrize(
    ("version", "shown"),
    [
        (0, "0"),
        (-1, "-1"),
        ("1", "'1'"),
        (True, "True"),
        (1.0, "1.0"),
        ([1], "[1]"),
        (None, "miss"),
    ],
)
def test_a_version_that_is_no_whole_number_is_refused(
    tmp_path: Path, version: object, shown: str
) -> None:
    path = changed(tmp_path, lambda data: data.update(version=version))
    assert f"version is {shown}" in complaint(path)
    assert "whole number from 1 on" in complaint(path)


def test_a_missing_version_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "version is missing" in complaint(changed(tmp_path, lambda data: data.pop("version")))


# ---- what is not a profile -----------------------------------------------------------------------


@pytest.mark.parametrize("format_", [None, "other", 1, ["dualpath-profile"]])
def test_a_file_of_another_format_is_not_a_profile(tmp_path: Path, format_: object) -> None:
    path = changed(tmp_path, lambda data: data.update(format=format_))
    assert "is not a profile" in complaint(path)
    assert "dualpath calibrate run" in complaint(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_truncated_json_names_the_line(tmp_path: Path, kept: float) -> None:
    text = dump(Profile.model_validate(profile_data()))
    path = tmp_path / "half.json"
    path.write_text(text[: int(kept * len(text))])
    line = path.read_text().count("\n") + 1
    assert f"{path}:{line}: not valid JSON" in complaint(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"dualpath-profile"'])
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    assert "must be a JSON object" in complaint(tmp_path / "list.json")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "no such file" in complaint(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\x80\x81\x82")
    assert "not a text file" in complaint(tmp_path / "binary.json")
    (tmp_path / "folder.json").mkdir()
    assert "is a folder" in complaint(tmp_path / "folder.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert "nested too deeply" in complaint(tmp_path / "deep.json")


# ---- what is wrong in a profile ------------------------------------------------------------------


def figure(data: Data, name: str = "dram_bytes_per_s") -> Data:
    found = data["parts"][FIGURES[name].part.value]["figures"][name]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("field", ["value", "low", "high"])
@pytest.mark.parametrize(
    "number", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e31, None, True, "fast", [], 10**400]
)
def test_a_rate_that_is_none_is_refused(tmp_path: Path, field: str, number: object) -> None:
    path = changed(tmp_path, lambda data: figure(data).update({field: number}))
    assert f"parts.memory.figures.dram_bytes_per_s.{field}" in complaint(path)
    assert "not allowed" in complaint(path)


@pytest.mark.parametrize(("field", "number"), [("low", 500e9), ("high", 300e9)])
def test_an_interval_that_misses_its_value_is_refused(
    tmp_path: Path, field: str, number: float
) -> None:
    path = changed(tmp_path, lambda data: figure(data).update({field: number}))
    assert "parts.memory.figures.dram_bytes_per_s" in complaint(path)
    assert "does not hold value 4e+11" in complaint(path)
    assert "low <= value <= high" in complaint(path)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("dram_bytes_per_s", 1, 1e18), ("decode_flop_per_s", 1, 1e21), ("decode_layer_s", 1e-9, 1e9)],
)
def test_a_figure_that_nobody_can_mean_is_refused(
    tmp_path: Path, name: str, least: float, most: float
) -> None:
    """Models' numbers would overflow; what else a unit allows is a slip in the file."""
    for low, high in ((0.9 * least, most), (least, 1.1 * most)):
        ends = {"low": low, "high": high}
        found = complaint(changed(tmp_path, lambda data, e=ends: figure(data, name).update(e)))
        assert f"figures.{name} of {low:g} to {high:g}" in found
        assert f"from {least:g} to {most:g}" in found
    load_profile(changed(tmp_path, lambda data: figure(data, name).update(low=least, high=most)))


def test_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    def change(data: Data) -> None:
        figures = data["parts"]["memory"]["figures"]
        figures["dram_byte_per_s"] = figures.pop("dram_bytes_per_s")

    found = complaint(changed(tmp_path, change))
    assert "figures.dram_byte_per_s is unknown" in found
    assert "dram_bytes_per_s" in found


def test_a_figure_in_the_wrong_part_is_refused(tmp_path: Path) -> None:
    def change(data: Data) -> None:
        figures = data["parts"]["memory"]["figures"]
        data["parts"]["gpu"]["figures"]["dram_bytes_per_s"] = figures.pop("dram_bytes_per_s")

    found = complaint(changed(tmp_path, change))
    assert "parts.gpu.figures.dram_bytes_per_s belongs to part memory; move it there" in found


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda data: data["parts"].update(disk=data["parts"].pop("storage")))
    found = complaint(path)
    assert "disk" in found
    assert "storage" in found


@pytest.mark.parametrize(
    ("where", "field", "shown"),
    [
        (lambda data: data, "nmae", "nmae: unknown field; did you mean 'name'?"),
        (lambda data: data["parts"]["gpu"], "figurs", "parts.gpu.figurs: unknown field"),
        (lambda data: data["parts"]["gpu"]["machine"], "gpux", "machine.gpux: unknown field"),
        (figure, "lo", "parts.memory.figures.dram_bytes_per_s.lo: unknown field"),
    ],
)
def test_an_unknown_field_is_refused(
    tmp_path: Path, where: Callable[[Data], Data], field: str, shown: str
) -> None:
    found = complaint(changed(tmp_path, lambda data: where(data).update({field: 1})))
    assert shown in found


@pytest.mark.parametrize("field", ["name", "parts"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    found = complaint(changed(tmp_path, lambda data: data.pop(field)))
    assert f"{field}: is required and missing" in found


def with_fit(data: Data, **fields: object) -> None:
    part = data["parts"]["memory"]
    part["series"] = [
        {"name": "copy", "unit": "B", "meaning": "", "samples": [{"at": {}, "seconds": 1.0}]}
    ]
    fit = {"name": "copy", "model": "m", "series": "copy", "parameters": {}}
    part["fits"] = [{**fit, "indices": [0], "residuals": [0.0], **fields}]


def test_residuals_are_as_many_as_samples(tmp_path: Path) -> None:
    load_profile(changed(tmp_path, with_fit))
    found = complaint(changed(tmp_path, lambda data: with_fit(data, residuals=[0.0, 0.1])))
    assert "parts.memory.fits.0" in found
    assert "residuals has 2 entries, but indices 1" in found


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"indices": [1]}, "indices has 1, but series 'copy' has 1 samples; correct it"),
        ({"indices": [-1]}, "indices has -1, but series 'copy' has 1 samples; correct it"),
        ({"outliers": [0, 999]}, "outliers has 999, but series 'copy' has 1 samples; correct it"),
        ({"series": "cpoy"}, "is of series 'cpoy', which this part does not have; add that series"),
    ],
)
def test_a_fit_of_samples_that_are_not_there_is_refused(
    tmp_path: Path, fields: dict[str, object], shown: str
) -> None:
    load_profile(changed(tmp_path, lambda data: with_fit(data, outliers=[0])))

    def change(data: Data) -> None:
        with_fit(data, name="a\nb", **fields)

    found = complaint(changed(tmp_path, change))
    assert "parts.memory: fits.0 ('a\\nb')" in found
    assert shown in found


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_sample_that_took_no_time_is_refused(tmp_path: Path, seconds: float) -> None:
    def change(data: Data) -> None:
        with_fit(data)
        data["parts"]["memory"]["series"][0]["samples"][0]["seconds"] = seconds

    assert "series.0.samples.0.seconds" in complaint(changed(tmp_path, change))


def test_an_unknown_coefficient_is_refused(tmp_path: Path) -> None:
    def change(data: Data) -> None:
        data["parts"]["gpu"]["attention"] = [
            {
                "llm": "ds-27b",
                "tensor": 1,
                "coefficients": {"pairs_s": 1e-9},
                "relative_error_p50": 0.0,
                "relative_error_max": 0.0,
            }
        ]

    found = complaint(changed(tmp_path, change))
    assert "parts.gpu.attention.0: coefficients.pairs_s is unknown" in found
    assert "pair_s" in found


def test_a_good_profile_is_read(tmp_path: Path) -> None:
    """The mistakes above are the only reason for the refusals."""
    found = load_profile(write_profile(tmp_path / "profile.json"))
    assert {name: figure.value for name, figure in found.figures.items()} == FIGURE_VALUES


# ---- estimates -----------------------------------------------------------------------------------


@given(value=positive, low=positive, high=positive)
def test_an_estimate_holds_its_value(value: float, low: float, high: float) -> None:
    found = estimate(value, low, high)
    assert found.low <= found.value == value <= found.high
    assert found.low <= low
    assert found.high >= high


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(math.nan, 1, 1), (1, math.nan, 1), (1, 1, math.inf), (0, 1, 1), (1, 0, 1), (1, -1, 1)],
)
def test_what_is_no_rate_makes_no_estimate(value: float, low: float, high: float) -> None:
    with pytest.raises(InputError, match=r"copy: .* is no measured rate"):
        estimate(value, low, high, source="copy")
