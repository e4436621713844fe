"""Profiles as wholes: nothing gets lost or mixed up in a merge, and noise is not taken for a change."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.profile import Difference, compare, differences, imported, merge
from calibration.rooms import Measured
from calibration.run import Wish, calibrate, check, default_name
from dualpath_model.catalog.llms import load_llm
from dualpath_model.errors import InputError
from dualpath_model.profile import (
    FIGURES,
    AttentionFit,
    Estimate,
    Fit,
    Machine,
    Part,
    PartName,
    Profile,
    Sample,
    Series,
    dump,
    load_profile,
)
from tests.conftest import ROOT
from tests.profiles import FIGURE_VALUES, profile_data

EXAMPLE = ROOT / "examples" / "profiles" / "cpu-2-cores.json"
READS, WRITES = "storage_read_bytes_per_s", "storage_write_bytes_per_s"


def profile(
    figures: Mapping[str, float] = FIGURE_VALUES, name: str = "made", **options: Any
) -> Profile:
    return Profile.model_validate(copy.deepcopy(profile_data(figures, name=name, **options)))


def only(*parts: str, name: str = "made") -> Profile:
    own = {n: v for n, v in FIGURE_VALUES.items() if FIGURES[n].part.value in parts}
    return profile(own, name)


def with_series(made: Profile, *names: str, fit: str = "") -> Profile:
    """Return the profile with series of these names in its first part, and a figure from each fit.

    The first figure comes from the fit of the first series, later figures from later series' fits.
    """
    part_name, part = next(iter(made.parts.items()))
    series = [
        Series(
            name=n, unit="B", meaning=made.name, samples=[Sample(at={}, seconds=1.0, amount=1.0)]
        )
        for n in names
    ]
    fits = [
        Fit(
            name=f"{fit or n}",
            model=made.name,
            series=n,
            parameters={"bytes_per_s": Estimate(value=1, low=1, high=1, source=n)},
            indices=[0],
            residuals=[0.0],
        )
        for n in names
    ]
    figures = {
        figure: found.model_copy(update={"source": source.name})
        for (figure, found), source in zip(
            part.figures.items(), itertools.cycle(fits), strict=False
        )
    }
    changed = part.model_copy(update={"series": series, "fits": fits, "figures": figures})
    return made.model_copy(update={"parts": {**made.parts, part_name: changed}})


def storage(figure: str, *names: str, title: str, host: str = "here", fit: str = "") -> Profile:
    made = with_series(profile({figure: FIGURE_VALUES[figure]}, title), *names, fit=fit)
    part = made.parts[PartName.STORAGE]
    machine = part.machine.model_copy(update={"host": host})
    return made.model_copy(
        update={"parts": {PartName.STORAGE: part.model_copy(update={"machine": machine})}}
    )


def source_of(part: Part, figure: str) -> str:
    """Return who made the fit that a figure names as its source, and its series; one of each only."""
    (fit,) = (fit for fit in part.fits if fit.name == part.figures[figure].source)
    (series,) = (series for series in part.series if series.name == fit.series)
    assert series.meaning == fit.model
    assert fit.parameters["bytes_per_s"].source in (series.name, fit.name)
    return fit.model


# ---- merge: parts --------------------------------------------------------------------------------


def test_parts_of_several_machines_make_one_profile() -> None:
    pieces = [only(part, name=part) for part in PartName]
    whole = merge(pieces)
    assert list(whole.parts) == list(PartName)
    for piece in pieces:
        for name, part in piece.parts.items():
            assert whole.parts[name] == part
    assert whole.name == "gpu+memory+storage+network"
    assert whole.figures == profile().figures
    assert merge(pieces, name="mine").name == "mine"


@given(order=st.permutations(list(PartName)))
def test_order_does_not_matter_for_different_parts(order: list[PartName]) -> None:
    expected = merge([only(part) for part in PartName], name="whole")
    found = merge([only(part) for part in order], name="whole")
    assert dump(found) == dump(expected)


def test_merging_again_changes_nothing() -> None:
    whole = profile()
    assert merge([whole]) == whole
    assert merge([whole, whole]) == whole
    assert merge([whole, only("storage")]) == whole
    assert merge([only("gpu"), whole, only("memory", "network")]) == whole
    joined = merge(
        [storage(READS, "sweep", title="a"), storage(WRITES, "sweep", title="b")], name="ab"
    )
    assert merge([joined, joined]) == joined


def test_nothing_makes_no_profile() -> None:
    with pytest.raises(InputError, match="no profile is given"):
        merge([])


# ---- merge: figures of one part ------------------------------------------------------------------


def test_other_figures_of_a_part_are_joined() -> None:
    first, second = storage(READS, "sweep", title="a"), storage(WRITES, "sweep", title="b")
    part = merge([first, second]).parts[PartName.STORAGE]
    assert {name: found.value for name, found in part.figures.items()} == {
        READS: FIGURE_VALUES[READS],
        WRITES: FIGURE_VALUES[WRITES],
    }
    assert [series.name for series in part.series] == ["sweep", "sweep (2)"]
    assert [fit.name for fit in part.fits] == ["sweep", "sweep (2)"]
    assert (source_of(part, READS), source_of(part, WRITES)) == ("a", "b")


names = st.lists(
    st.sampled_from(["x", "x (2)", "x (3)", "y", "y (2)"]), min_size=1, unique=True, max_size=4
)


@given(
    first=names, second=names, third=names, prefer=st.none() | st.integers(0, 2), fit=st.booleans()
)
def test_names_are_unique_and_sources_follow(
    first: list[str], second: list[str], third: list[str], prefer: int | None, fit: bool
) -> None:
    """Whatever the names: those of a merged profile look like those that a merge makes."""
    third_figure = "storage_sequential_bytes_per_s"
    called = {"fit": "x" if fit else ""} if len(first) == len(second) == len(third) == 1 else {}
    pieces = [
        storage(READS, *first, title="a", **called),
        storage(WRITES, *second, title="b", **called),
        with_series(profile({third_figure: 1e9}, "c"), *third, **called),
    ]
    part = merge(pieces, prefer=prefer).parts[PartName.STORAGE]
    for named in (part.series, part.fits):
        found = [entry.name for entry in named]
        assert len(set(found)) == len(found) == len(first) + len(second) + len(third)
    sources = [source_of(part, figure) for figure in (READS, WRITES, third_figure)]
    assert sources == ["a", "b", "c"]


def test_two_machines_in_one_part_are_told() -> None:
    first = storage(READS, "sweep", title="a", host="one")
    second = storage(WRITES, "sweep", title="b", host="two")
    part = merge([first, second]).parts[PartName.STORAGE]
    assert part.machine.host == "one"
    assert any("joined from two machines, one and two" in text for text in part.warnings)
    alike = merge([first, storage(WRITES, "sweep", title="b", host="one")])
    assert not alike.parts[PartName.STORAGE].warnings


def test_attention_of_other_llms_is_joined() -> None:
    def gpu(figure: str, llm: str, seconds: float) -> Profile:
        made = profile({figure: 1e12}, figure)
        fit = AttentionFit(
            llm=llm,
            tensor=1,
            coefficients={"fixed_s": seconds},
            relative_error_p50=0.0,
            relative_error_max=0.0,
        )
        part = made.parts[PartName.GPU].model_copy(update={"attention": [fit]})
        return made.model_copy(update={"parts": {PartName.GPU: part}})

    whole = merge(
        [
            gpu("decode_bytes_per_s", "ds-27b", 1.0),
            gpu("hbm_copy_bytes_per_s", "deepseek-v3.2", 2.0),
            gpu("decode_flop_per_s", "ds-27b", 3.0),
        ]
    )
    fits = whole.parts[PartName.GPU].attention
    assert [(fit.llm, fit.coefficients["fixed_s"]) for fit in fits] == [
        ("ds-27b", 1.0),
        ("deepseek-v3.2", 2.0),
    ]


def faster(factor: float, name: str, figures: Mapping[str, float] = FIGURE_VALUES) -> Profile:
    return profile({n: v * factor for n, v in figures.items()}, name)


def test_a_figure_in_two_profiles_is_a_conflict() -> None:
    with pytest.raises(InputError) as caught:
        merge([only("memory"), faster(2, "quick"), faster(3, "quicker")])
    assert str(caught.value) == (
        "dram_bytes_per_s is in both made and quick; leave one of them out, or say which one counts "
        "with --prefer of `dualpath calibrate merge`"
    )
    with pytest.raises(InputError, match=r"_flop_per_s is in both a\.json and b\.json"):
        merge([faster(1, "same"), faster(2, "same")], files=["a.json", "b.json"])


@pytest.mark.parametrize("prefer", [0, 1])
def test_the_preferred_profile_counts(prefer: int) -> None:
    pieces = [faster(1, "slow"), faster(2, "quick")]
    found = merge(pieces, prefer=prefer)
    assert found.figures == pieces[prefer].figures
    assert found.name == "slow+quick"
    assert all(
        part.settings == pieces[prefer].parts[name].settings for name, part in found.parts.items()
    )


def test_preferring_one_settles_no_conflict_of_others() -> None:
    others = [faster(2, "quick"), faster(3, "quicker")]
    with pytest.raises(InputError, match="is in both quick and quicker"):
        merge([only("memory", name="best"), *others], prefer=0)
    settled = merge([only("memory", name="best"), *others], prefer=1)
    assert settled.figures == others[0].figures


def test_a_long_name_is_cut_or_refused() -> None:
    pieces = [only(part, name=f"{part}{'x' * 150}") for part in PartName]
    assert len(merge(pieces).name) == 200
    with pytest.raises(InputError, match="at most 200 characters"):
        merge(pieces, name="x" * 201)
    with pytest.raises(InputError, match="one line"):
        merge(pieces, name="two\nlines")


# ---- import --------------------------------------------------------------------------------------


def measured() -> Measured:
    series = Series(name="s", unit="B", meaning="m", samples=[Sample(at={}, seconds=1.0)])
    return Measured(
        series=[series],
        figures={READS: Estimate(value=1e9, low=1e9, high=1e9, source="s")},
        settings={"file": "out.json"},
        tools={"fio": "3.33"},
        warnings=["a remark"],
    )


def test_an_imported_output_is_a_profile_of_one_part() -> None:
    found = imported(PartName.STORAGE, measured(), host="far", title="mine")
    part = found.parts[PartName.STORAGE]
    assert (found.name, list(found.parts)) == ("mine", [PartName.STORAGE])
    # of another machine only the name is known
    assert part.machine == Machine(host="far")
    assert (part.series, part.figures) == (measured().series, measured().figures)
    assert (part.settings, part.warnings) == ({"file": "out.json"}, ["a remark"])
    assert part.tools["fio"] == "3.33"
    assert {"dualpath", "python"} <= set(part.tools)
    assert Profile.model_validate_json(dump(found)) == found


def test_an_output_of_this_machine_says_so() -> None:
    found = imported(PartName.STORAGE, measured())
    machine = found.parts[PartName.STORAGE].machine
    assert machine.memory_bytes is not None
    assert machine.memory_bytes > 1e8
    assert machine.cores is not None
    assert machine.cores >= 1
    assert found.name == default_name(found.parts)
    assert found.name.startswith(machine.host)


def test_an_imported_output_joins_a_calibration() -> None:
    rest = {name: value for name, value in FIGURE_VALUES.items() if name != READS}
    whole = merge([profile(rest), imported(PartName.STORAGE, measured(), host="far")])
    assert whole.figures[READS].value == 1e9
    assert set(whole.figures) == set(FIGURE_VALUES)


# ---- compare -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1e-9, 0.05, 3.0])
def test_a_profile_did_not_change_from_itself(spread: float) -> None:
    made = profile(spread=spread)
    changes = compare(made, made)
    assert [change.figure for change in changes] == list(made.figures)
    for change in changes:
        assert (change.ratio, change.beyond_noise) == (1.0, False)
        assert change.ratio_low is not None
        assert change.ratio_high is not None
        assert change.ratio_low <= 1.0 <= change.ratio_high
        assert change.unit == FIGURES[change.figure].unit


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_doubled_rate_is_beyond_noise(factor: float) -> None:
    doubled = {name: value * factor for name, value in FIGURE_VALUES.items()}
    for change in compare(profile(), profile(doubled)):
        assert change.ratio == pytest.approx(factor)
        assert change.beyond_noise


def test_noise_hides_a_change_that_is_less() -> None:
    """1.05 * 1.05 is less than 1.10 squared, so 8 % more is nothing; 20 % more is something."""
    for factor, beyond in ((1.02, False), (1.2, True)):
        more = profile({name: value * factor for name, value in FIGURE_VALUES.items()})
        assert {change.beyond_noise for change in compare(profile(), more)} == {beyond}


@pytest.mark.parametrize("spreads", [(0.0, 0.0), (0.0, 0.05), (0.05, 0.0)])
@pytest.mark.parametrize("factor", [1.0, 1.001, 2.0])
def test_of_single_runs_no_change_is_told_from_noise(
    factor: float, spreads: tuple[float, float]
) -> None:
    """Without an interval on either side nobody knows the noise, be it 0.1 % or 100 %."""
    old = profile(spread=spreads[0])
    new = profile({n: v * factor for n, v in FIGURE_VALUES.items()}, spread=spreads[1])
    for change in compare(old, new):
        assert change.ratio == pytest.approx(factor)
        assert (change.ratio_low, change.ratio_high, change.beyond_noise) == (None, None, None)


def test_a_figure_of_one_profile_is_not_compared() -> None:
    changes = {change.figure: change for change in compare(only("memory"), only("storage"))}
    assert list(changes) == ["dram_bytes_per_s", READS, WRITES]
    gone, new = changes["dram_bytes_per_s"], changes[READS]
    assert gone.before is not None
    assert new.after is not None
    assert (gone.after, gone.ratio, gone.beyond_noise) == (None, None, None)
    assert (new.before, new.ratio, new.beyond_noise) == (None, None, None)


positive = st.floats(1e-6, 1e12)
triples = st.tuples(positive, st.floats(1, 10), st.floats(1, 10))


@given(before=triples, after=triples)
def test_looking_back_turns_the_ratio_over(
    before: tuple[float, float, float], after: tuple[float, float, float]
) -> None:
    def of(value: float, down: float, up: float) -> Profile:
        found = Estimate(value=value, low=value / down, high=value * up)
        made = only("memory")
        part = made.parts[PartName.MEMORY].model_copy(
            update={"figures": {"dram_bytes_per_s": found}}
        )
        return made.model_copy(update={"parts": {PartName.MEMORY: part}})

    (forth,) = compare(of(*before), of(*after))
    (back,) = compare(of(*after), of(*before))
    assert forth.ratio is not None
    if forth.ratio_low is None:  # a single run, or a spread that is lost in rounding
        assert back.ratio == pytest.approx(1 / forth.ratio)
        assert (back.ratio_low, back.ratio_high, back.beyond_noise) == (None, None, None)
        return
    assert forth.ratio_high is not None
    assert back.ratio == pytest.approx(1 / forth.ratio)
    assert back.ratio_low == pytest.approx(1 / forth.ratio_high)
    assert back.ratio_high == pytest.approx(1 / forth.ratio_low)
    assert forth.ratio_low <= forth.ratio * (1 + 1e-12)
    assert forth.ratio <= forth.ratio_high * (1 + 1e-12)


@pytest.mark.parametrize("sigmas", [(0.01, 0.01), (0.005, 0.05), (0.2, 0.1)])
def test_one_in_twenty_unchanged_figures_is_called_changed(sigmas: tuple[float, float]) -> None:
    """Two measurements of one truth, each with a correct 95 % interval: 2 to 8 % of 1,000 differ."""
    draw = np.random.default_rng(20261124)
    truth, differ, draws = 400e9, 0, 1000
    for _ in range(draws):
        pair = []
        for sigma in sigmas:
            value = truth * math.exp(draw.normal(0.0, sigma))
            wide = math.exp(1.959963984540054 * sigma) - 1
            pair.append(profile({"dram_bytes_per_s": value}, spread=wide))
        (change,) = compare(*pair)
        differ += bool(change.beyond_noise)
    assert 0.02 < differ / draws < 0.08


# ---- compare: what was measured otherwise --------------------------------------------------------


def changed(
    made: Profile,
    part: PartName,
    settings: Mapping[str, Any],
    tools: Mapping[str, str] | None = None,
    **machine: Any,
) -> Profile:
    """Return the profile with other settings, tools or machine of one part."""
    old = made.parts[part]
    new = old.model_copy(
        update={
            "settings": {**old.settings, **settings},
            "tools": {**old.tools, **(tools or {})},
            "machine": old.machine.model_copy(update=machine),
        }
    )
    return made.model_copy(update={"parts": {**made.parts, part: new}})


def test_alike_measurements_have_no_differences() -> None:
    made = load_profile(EXAMPLE)
    assert differences(made, made) == ()
    later = made
    for name in made.parts:
        other: dict[str, Any] = {"seed": 7, "seconds": 99.0, "space_bytes": 1, "window_s": 0.1}
        later = changed(later, name, other, {"torch": "3", "dualpath": "9"}, system="another")
    assert differences(made, later) == ()


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("gpu", "llm", "deepseek-v3.2"),
        ("gpu", "device", "cuda"),
        ("gpu", "tensor", 2),
        ("gpu", "kv_dtype", "fp8"),
        ("gpu", "compute_dtype", "fp8"),
        ("gpu", "layers_dtype", "float32"),
        ("gpu", "torch_threads", 1),
        ("memory", "threads", 1),
        ("storage", "direct", False),
        ("storage", "huge_pages", False),
        ("storage", "block_bytes", 4096),
        ("storage", "folder", "/mnt/other"),
        ("storage", "file_system", "tmpfs"),
        ("network", "peer", "10.0.0.2"),
        ("network", "streams", 1),
        ("network", "collective_backend", "nccl"),
    ],
)
def test_a_setting_that_matters_is_a_difference(part: str, setting: str, value: Any) -> None:
    """The names are those that a real profile has: the example states each of them."""
    made, name = load_profile(EXAMPLE), PartName(part)
    old = made.parts[name].settings[setting]
    other = changed(made, name, {setting: value})
    assert differences(made, other) == (Difference(name, setting, old, value),)
    assert differences(other, made) == (Difference(name, setting, value, old),)


def test_another_machine_is_a_difference_of_each_of_its_parts() -> None:
    made = profile()
    other = changed(made, PartName.GPU, {}, host="far", cpu="a new CPU", gpu="a new GPU")
    other = changed(other, PartName.MEMORY, {}, host="far", cores=128, gpu="a new GPU")
    assert differences(made, other) == (
        Difference(PartName.GPU, "host", "here", "far"),
        Difference(PartName.GPU, "cpu", "a CPU", "a new CPU"),
        Difference(PartName.GPU, "gpu", "a GPU", "a new GPU"),
        Difference(PartName.MEMORY, "host", "here", "far"),
        Difference(PartName.MEMORY, "cores", 64, 128),
    )
    # what is not known is no difference
    unknown = changed(made, PartName.GPU, {"llm": None}, cpu="", cores=None, gpu="")
    assert differences(made, unknown) == ()


def test_another_tool_is_one_difference_without_its_settings() -> None:
    made = changed(only("storage"), PartName.STORAGE, {"direct": True, "block_bytes": 1})
    told = {"direct": "1", "block_bytes": 2, "bs": "1M"}
    by_fio = changed(made, PartName.STORAGE, told, {"fio": "3.33"})
    assert differences(made, by_fio) == (Difference(PartName.STORAGE, "tool", "dualpath", "fio"),)
    again = changed(by_fio, PartName.STORAGE, {"bs": "4k"}, {"fio": "3.36"})
    assert differences(by_fio, again) == (Difference(PartName.STORAGE, "bs", "1M", "4k"),)


def test_parts_without_a_figure_in_both_have_no_differences() -> None:
    assert differences(only("memory"), only("storage")) == ()
    reads, writes = storage(READS, "s", title="a"), storage(WRITES, "s", title="b", host="two")
    assert differences(reads, writes) == ()


# ---- what is checked before anything is measured -------------------------------------------------


def wish(**fields: Any) -> Wish:
    return Wish(
        **{"llm": load_llm("ds-27b"), "folder": Path(), "parts": (PartName.MEMORY,), **fields}
    )


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 0.0, 1.9, 86401.0])
def test_seconds_that_are_no_time_are_refused(seconds: float) -> None:
    with pytest.raises(InputError, match=r"seconds \S+ is not allowed; .* 2 to 86400"):
        check(wish(seconds=seconds))
    check(wish(seconds=2.0))


def test_the_shortest_part_says_how_long_all_take() -> None:
    parts = (PartName.MEMORY, PartName.NETWORK)
    with pytest.raises(InputError, match="these parts need 9 to 86400"):
        check(wish(parts=parts, seconds=8.0))
    check(wish(parts=parts, seconds=9.0))
    shares = [wish(parts=parts, seconds=9.0).seconds_of(part) for part in parts]
    assert sum(shares) == pytest.approx(9.0)


@pytest.mark.parametrize("name", ["x" * 201, "two\nlines", "\x1b[31m"])
def test_a_name_is_checked_before_anything_is_measured(name: str) -> None:
    with pytest.raises(InputError, match="one line of at most 200 characters"):
        calibrate(wish(name=name, seconds=2.0), lambda done, text: pytest.fail("it measures"))


def test_no_parts_are_refused() -> None:
    with pytest.raises(InputError, match="parts is empty; give some of gpu, memory"):
        check(wish(parts=()))
