"""The generated parts of ``deploying.md``: targets, steps, importers, site fields, worked example."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dualpath_model.export import Site, all_targets
from dualpath_model.export.imports.skeleton import importer_names
from dualpath_model.export.target import texts

ROOT = Path(__file__).parent.parent


def target_table() -> str:
    """Return what each target can and cannot express."""
    lines = ["| target | software | expresses | cannot express |", "|---|---|---|---|"]
    for name, target in all_targets().items():
        software = f"{target.software} {target.default_version}"
        expresses, cannot = "; ".join(target.expresses), "; ".join(target.cannot) or "-"
        lines.append(f"| [`{name}`](#{_anchor(name)}) | {software} | {expresses} | {cannot} |")
    return "\n".join(lines)


def target_steps() -> str:
    """Return, for each target, how to apply, check and roll back, and what read the files here."""
    lines: list[str] = []
    for name, target in all_targets().items():
        versions = ", ".join(target.versions)
        lines += [f"### {name}", "", f"{target.about} Versions looked at: {versions}.", ""]
        for title, steps in (
            ("Apply", target.apply),
            ("Check that it took effect", target.check),
            ("Roll back", target.roll_back),
        ):
            lines += [f"**{title}**", "", *(f"{n}. {s}" for n, s in enumerate(texts(steps), 1)), ""]
        lines += [f"**Checked here by**: {target.parser}.", ""]
    return "\n".join(lines).rstrip()


def importer_table() -> str:
    """Return what each importer reads: the first paragraph of its module."""
    lines = ["| from | reads |", "|---|---|"]
    for name in importer_names():
        module = importlib.import_module(f"dualpath_model.export.imports.{name}")
        first = (module.__doc__ or "").strip().split("\n\n")[0]
        lines.append(f"| `{name}` | {' '.join(first.split())} |")
    return "\n".join(lines)


def site_table() -> str:
    """Return the fields of a site file with their defaults."""
    lines = ["| field | default | what it is |", "|---|---|---|"]

    def rows(model: Any, prefix: str) -> None:
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if hasattr(type(value), "model_fields"):
                rows(value, f"{prefix}{name}.")
                continue
            default = "-" if value is None else f"`{value}`"
            meaning = field.description or (type(model).__doc__ or "").strip().split("\n")[0]
            lines.append(f"| `{prefix}{name}` | {default} | {meaning} |")

    rows(Site(), "")
    return "\n".join(lines)


_EXAMPLE = (
    ("Measure the machine (two and a half minutes; here the shipped profile of an H100).", None),
    (
        None,
        "dualpath calibrate show examples/profiles/h100-80gb-hbm3-qwen3-32b.json",
    ),
    ("Plan with it: `examples/measured-h100.yaml` names the profile.", None),
    (None, "dualpath plan examples/measured-h100.yaml --json plan.json"),
    ("Files for vLLM.", None),
    (None, "dualpath export vllm plan.json --out deploy"),
    (None, "ls deploy"),
    ("The proxy's table: the split, and the engines with their weights.", None),
    (None, "head -12 deploy/routing.json"),
)
_MOST_LINES = 14


def worked_example() -> str:
    """Run the worked example and return its commands with what they print (the first lines)."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as aside:
        (Path(aside) / "examples").symlink_to(ROOT / "examples")
        for text, command in _EXAMPLE:
            if text is not None:
                lines += [text, ""]
            if command is None:
                continue
            shown = _run(command, Path(aside))
            more = ["..."] if len(shown) > _MOST_LINES else []
            lines += ["```", f"$ {command}", *shown[:_MOST_LINES], *more, "```", ""]
    return "\n".join(lines).rstrip()


def _run(command: str, folder: Path) -> list[str]:
    words = shlex.split(command)
    if words[0] == "dualpath":
        words = [sys.executable, "-m", "app.cli", *words[1:]]
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "120", "LANG": "C.UTF-8"},
    )
    return [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
