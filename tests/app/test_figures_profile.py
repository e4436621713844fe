"""Profiles in plotly: words for keys, axes that can be read, changes that cannot be compared apart."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pytest

from app.examples import example_dir
from app.figures_profile import changes, figure, folded
from app.profile_marks import axis
from app.profile_panels import CALLED, in_words, intervals
from calibration.profile import Change, compare
from dualpath_model.profile import FIGURES, Estimate, load_profile


def test_every_figure_has_a_short_name_of_its_own() -> None:
    assert list(CALLED) == list(FIGURES)
    assert len(set(CALLED.values())) == len(CALLED)
    assert max(map(len, CALLED.values())) <= 36


def test_keys_in_a_sentence_become_words() -> None:
    said = in_words("least certain: decode_layer_s, 1 to 2 us; not decode_layer_seconds")
    assert said == (
        "least certain: a layer's decode step, fixed time, 1 to 2 us; not decode_layer_seconds"
    )


@pytest.mark.parametrize(
    ("low", "high", "least"),
    [(0.97, 1.02, 3), (0.8, 1.3, 3), (0.5, 2.0, 5), (0.05, 8.0, 4), (1e-5, 3.0, 4)],
)
def test_ticks_tell_how_wide_an_interval_is(low: float, high: float, least: int) -> None:
    made = axis("a", "x", np.array([low, high]))
    assert 1.0 in np.round(made.ticks, 9)
    assert least <= len(made.ticks) <= 9
    if made.log:
        span = np.log(made.ends[1] / made.ends[0])
        assert np.diff(np.log(made.ticks)).min() > 0.1 * span  # they do not run into each other


def test_the_overview_of_each_shipped_profile_has_ticks() -> None:
    for path in (example_dir() / "profiles").glob("*.json"):
        panel = intervals(load_profile(path).figures)
        assert panel is not None
        assert len(panel.x.ticks) >= 3
        labels = [html.unescape(text) for text in figure(panel).layout.yaxis.ticktext]
        assert max(len(line) for label in labels for line in label.split("<br>")) <= 36
        assert not any(key in label for key in FIGURES for label in labels)
        keys = panel.dots[0].hover
        assert all(text.split(",")[0] in FIGURES for text in keys)


def test_long_texts_are_folded_and_escaped() -> None:
    assert folded("after over before (log scale; dotted: no change)") == (
        "after over before (log scale; dotted: no<br>change)"
    )
    assert folded("<b> & c") == "&lt;b&gt; &amp; c"
    assert folded("x" * 60) == "x" * 60
    assert folded("a row of words: 45.2 TFLOP/s", 25) == "a row of words:<br>45.2 TFLOP/s"


# ---- changes ---------------------------------------------------------------------------------------


def change(name: str, ratio: float) -> Change:
    one = Estimate(value=1.0, low=0.9, high=1.1)
    return Change(name, FIGURES[name].unit, one, one, ratio, 0.9 * ratio, 1.1 * ratio, True)


def by_name(drawn: Any) -> dict[str, list[str]]:
    return {trace.name: list(trace.y) for trace in drawn.data}


def test_what_cannot_be_compared_is_apart() -> None:
    found = [change("gemm_bf16_flop_per_s", 0.5), change("dram_bytes_per_s", 2.0)]
    assert by_name(changes(found, {"gemm_bf16_flop_per_s"})) == {
        "beyond the noise": [CALLED["dram_bytes_per_s"]],
        "not comparable": [CALLED["gemm_bf16_flop_per_s"]],
    }
    assert list(by_name(changes(found))) == ["beyond the noise"]
    assert by_name(changes(found))["beyond the noise"] == [CALLED[c.figure] for c in found]


def test_ticks_of_changes_are_whole_numbers() -> None:
    drawn = changes([change("gemm_bf16_flop_per_s", 3e-5), change("dram_bytes_per_s", 900.0)])
    ticks = list(drawn.layout.xaxis.ticktext)
    assert "0.00001x" in ticks or "0.0001x" in ticks
    assert "1x" in ticks
    assert not any("e" in tick for tick in ticks)
    near = changes([change("dram_bytes_per_s", 1.5)]).layout.xaxis.ticktext
    assert "1x" in near
    assert "1.5x" in near


def test_shipped_profiles_of_two_llms_are_drawn_first_at_the_top() -> None:
    folder = example_dir() / "profiles"
    before, after = (
        load_profile(folder / f"h100-80gb-hbm3-{llm}.json")
        for llm in ("qwen3-32b", "deepseek-v3.2")
    )
    found = compare(before, after)
    drawn = changes(found)
    kept = [c for c in found if c.ratio is not None]
    assert list(drawn.layout.yaxis.categoryarray)[-1] == CALLED[kept[0].figure]
    assert sum(len(trace.y) for trace in drawn.data) == len(kept)
