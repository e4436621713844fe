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
    draw_plan(case[0], path)
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
    draw_plan(paper[0], first)
    draw_plan(paper[0], second)
    assert first.read_bytes() == second.read_bytes()
    assert ET.parse(first).getroot().tag.endswith("svg")


def test_any_name_can_be_drawn(evil: Case, tmp_path: Path) -> None:
    draw_plan(evil[0], tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_other_suffixes_are_refused(paper: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in .png or .svg"):
        draw_plan(paper[0], tmp_path / "plan.jpg")
    assert list(tmp_path.iterdir()) == []
