"""Still pictures: the right size, not blank, the same bytes each time, for any plan."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from app.picture import draw_plan
from dualpath_model import InputError, Scenario
from solvers import Plan

Case = tuple[Plan, Scenario]


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))


def test_png_has_its_size_and_is_not_blank(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    draw_plan(case[0], path, case[1])
    image = pixels(path)
    assert image.shape[:2] == (900, 1600)
    ink = (image[..., :3] < 0.9).any(axis=2)
    assert 0.02 < ink.mean() < 0.6
    edge = np.concatenate(
        [ink[:4].ravel(), ink[-4:].ravel(), ink[:, :4].ravel(), ink[:, -4:].ravel()]
    )
    assert not edge.any()  # nothing is cut off at the border


def test_svg_is_the_same_each_time(paper: Case, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    draw_plan(paper[0], first, paper[1])
    draw_plan(paper[0], second, paper[1])
    assert first.read_bytes() == second.read_bytes()
    assert ET.parse(first).getroot().tag.endswith("svg")


def test_any_name_can_be_drawn(evil: Case, tmp_path: Path) -> None:
    draw_plan(evil[0], tmp_path / "plan.png", evil[1])
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_without_scenario_only_storage_reads_are_drawn(paper: Case, tmp_path: Path) -> None:
    """A plan alone does not say what passes between the pools, so nothing is claimed about it."""
    whole, alone = tmp_path / "whole.png", tmp_path / "alone.png"
    draw_plan(paper[0], whole, paper[1])
    draw_plan(paper[0], alone)
    between = np.s_[470:590, 290:480]  # from one pool's box to the other's
    assert (pixels(whole)[between][..., :3] < 0.9).any()
    assert not (pixels(alone)[between][..., :3] < 0.9).any()


def test_other_suffixes_are_refused(paper: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in .png or .svg"):
        draw_plan(paper[0], tmp_path / "plan.jpg")
    assert list(tmp_path.iterdir()) == []
