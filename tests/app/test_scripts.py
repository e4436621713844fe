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


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "scripts" / script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(cwd / "mpl")},
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_ends_in_a_picture(script: Path, tmp_path: Path) -> None:
    done = run(script.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "Warning" not in done.stderr
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


def test_nodes_without_a_storage_nic_are_told_so(tmp_path: Path) -> None:
    aws = str(ROOT / "examples" / "deepseek-v3.2-aws-p5.yaml")
    done = run("second_storage_nic.py", aws, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("has no storage NIC of its own to add another to")
    assert "Traceback" not in done.stderr
