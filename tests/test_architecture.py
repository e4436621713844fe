"""What holds the project together: import direction, light start, public names, current documents."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dualpath_model
import solvers
from docs import generate
from dualpath_model import scheduler
from tests.conftest import ROOT

MAY_IMPORT = {
    "dualpath_model": {"dualpath_model"},
    "solvers": {"dualpath_model", "solvers"},
    "calibration": {"dualpath_model", "calibration"},
    "app": {"dualpath_model", "solvers", "calibration", "app"},
}
HEAVY = {"torch", "streamlit", "plotly", "sympy", "numba", "matplotlib", "pulp", "highspy", "scipy"}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = imported(ast.parse(path.read_text())) & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package]


def test_the_command_line_starts_light() -> None:
    """Heavy packages are imported where used: ``--version`` and ``llm list`` need none of them."""
    code = (
        f"import sys; import app.cli, app.statistics; print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "package", [dualpath_model, scheduler, solvers], ids=lambda module: module.__name__
)
def test_public_names_exist_and_are_documented(package: object) -> None:
    names: list[str] = package.__all__  # type: ignore[attr-defined]
    assert names == sorted(
        names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    for name in names:
        assert hasattr(package, name), name


@pytest.mark.parametrize("path", generate.documents(), ids=lambda path: path.name)
def test_documents_are_current(path: Path) -> None:
    assert path.read_text() == generate.rendered(path.read_text()), "run make docs"


def test_links_in_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_readme_shows_what_the_command_prints() -> None:
    command = [sys.executable, "-m", "app.cli", "plan", "deepseek-660b-2p4d"]
    wide = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=wide, cwd=ROOT)
    shown = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    for line in shown[1].strip().splitlines():
        assert line in printed


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == dualpath_model.__version__


def test_every_module_says_what_it_is_for() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
