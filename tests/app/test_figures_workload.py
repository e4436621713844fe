"""Figures and words of the workload page: growth only where contexts grow, sources in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from app.dashboard.views.workload import origin
from app.figures_workload import against_paper, grows
from dualpath_model.traces import TABLE_2, generate, trajectory_means
from dualpath_model.workload import Workload, from_moments


def sessions(*prompts: list[float], output: float = 10.0) -> Workload:
    flat = np.concatenate([np.array(one) for one in prompts])
    return Workload(
        prompt_tokens=flat,
        hit_tokens=np.zeros(len(flat)),
        output_tokens=np.full(len(flat), output),
        think_time_s=np.zeros(len(flat)),
        start_s=np.zeros(len(prompts)),
        offsets=np.concatenate(([0], np.cumsum([len(one) for one in prompts]))),
    )


@pytest.mark.parametrize(
    ("prompts", "output", "growing"),
    [
        ([[100.0, 200.0, 300.0]], 10.0, True),
        ([[100.0, 200.0], [50.0, 150.0]], 10.0, True),  # a next session starts lower
        ([[100.0, 900.0, 200.0, 1000.0]], 10.0, False),  # compacted in between
        ([[100.0, 200.0, 300.0]], 100.0, False),  # answers are left out of what follows
        ([[100.0], [50.0]], 10.0, False),  # no second turns
    ],
)
def test_contexts_that_shrink_do_not_grow(
    prompts: list[list[float]], output: float, growing: bool
) -> None:
    assert grows(sessions(*prompts, output=output)) is growing


def test_the_papers_sessions_grow() -> None:
    assert grows(generate(TABLE_2["32K"]))


def bars(growing: bool) -> list[Any]:
    found = trajectory_means(sessions([100.0, 900.0, 200.0, 1000.0]))
    return list(against_paper(found, growing=growing).data)


def test_growth_that_says_nothing_has_no_bar_and_says_so() -> None:
    for bar in bars(growing=False):
        assert bar.y[1] is None
        assert bar.text[1] == ""
        assert bar.x[1].endswith("n/a")
        assert all(share is not None for i, share in enumerate(bar.y) if i != 1)
    for bar in bars(growing=True):
        assert None not in bar.y
        assert "n/a" not in bar.x[1]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (from_moments(10.0, 1.0, 1.0).source, "One request that stands for all"),
        (generate(TABLE_2["32K"]).source, "Sessions made up at random (number 0"),
        ("/a/b/my_run (agentic_coding, 6 files)", "sessions: my run (agentic coding, 6 files)"),
        ("/a/x, scaled (plain, 1 file)", "Recorded sessions: x, scaled (plain, 1 file)"),
        ("synthetic (seed 3), scaled", "changed by the scenario or the sidebar"),
    ],
)
def test_a_source_in_words(source: str, words: str) -> None:
    said = origin(source)
    assert words in said
    assert "workload.moments" not in said
    assert "seed" not in said
