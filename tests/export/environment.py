"""Run a target's own software on our files, in the environment that `make test-exports` built for it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.export.environments.build import BUILT

CHECKERS = Path(__file__).parent / "checkers"


@dataclass(frozen=True)
class Answer:
    """What a checker said: ``accepted``, what it read back, and its output for a failing test."""

    accepted: bool
    values: Any
    output: str


def folder_of(name: str) -> Path:
    """Return an environment's folder. Fails, and does not skip, where it is not built."""
    folder = BUILT / name
    assert (folder / ".built").is_file(), f"{folder} is not built; run `make test-exports`"
    return folder


def tool(name: str, program: str) -> tuple[list[str], dict[str, str]]:
    """Return the command of a Debian program of an environment, and the variables that it needs."""
    root = folder_of(name) / "root"
    found = [root / place / program for place in ("usr/bin", "usr/sbin", "sbin", "bin")]
    path = next(path for path in found if path.exists())
    places = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib")
    libraries = ":".join(str(root / place) for place in places)
    return [str(path)], {**os.environ, "LD_LIBRARY_PATH": libraries}


def check(
    name: str, *arguments: str | Path, checker: str | None = None, limit_s: float = 300
) -> Answer:
    """Run ``checkers/NAME.py`` with an environment's Python; its last line of output is JSON.

    Exit status 0 with JSON: accepted, ``values`` is the JSON; 3: refused by the target's own software.
    Anything else is a mistake in the checker and fails the test.
    """
    folder = folder_of(name)
    script = CHECKERS / f"{checker or name}.py"
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "site"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(folder / "venv" / "bin" / "python"), str(script), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=limit_s, env=environment, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode in (0, 3), output[-4000:]
    lines = done.stdout.strip().splitlines()
    values = json.loads(lines[-1]) if done.returncode == 0 else None
    return Answer(done.returncode == 0, values, output)
