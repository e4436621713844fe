"""The example scripts, run as a user would: short, through the public API, ending in a picture."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted((ROOT / "examples" / "scripts").glob("*.py"))
PUBLIC = {"dualpath_model", "solvers"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_ends_in_a_picture(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "MPLCONFIGDIR": str(tmp_path / "mpl"),
        },
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    picture = tmp_path / f"{script.stem}.png"
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_is_short_and_public(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) < 60
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            root = node.module.split(".")[0]
            assert root not in {"app", "calibration"}
            if root in PUBLIC:
                assert node.module == root  # the package's own door, no module behind it
