"""A bundle becomes a folder: README and derivations added, written aside, renamed; or compared."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualpath_model.errors import InputError
from dualpath_model.export.documents import File
from dualpath_model.export.plan_file import PlanFile
from dualpath_model.export.quoting import code, json_text, markdown, one_line
from dualpath_model.export.site import Site, check_hosts, field_of, is_given
from dualpath_model.export.target import Asked, Bundle, Target, texts

MARK = "derivations.json"
"""The file that tells an export's folder from any other."""
_STEPS = (("Apply", "apply"), ("Check that it took effect", "check"), ("Roll back", "roll_back"))
_MOST_ROWS = 16
"""Of files in a README whose names differ in numbers alone; of more, first and last are named."""


@dataclass(frozen=True, slots=True)
class Export:
    """A target's files for a plan, ready to be written. ``files``: text by path inside the folder."""

    target: Target
    version: str
    bundle: Bundle
    files: Mapping[str, str]
    executable: frozenset[str]


def export(
    target: Target,
    plan: PlanFile,
    site: Site | None = None,
    *,
    version: str | None = None,
    wraps: str | None = None,
    wraps_version: str | None = None,
) -> Export:
    """Make a target's files. The same plan, site and version give the same bytes.

    Raises InputError for a version that is too old, and for values that the target cannot take.
    """
    checked = target.checked_version(version)
    asked = Asked(plan, site or Site(), checked, wraps, wraps_version)
    check_hosts(asked.site, plan.prefill_nodes, plan.decode_nodes)
    bundle = target.build(asked)
    if note := target.not_looked_at(checked):
        bundle = replace(bundle, notes=(note, *bundle.notes))
    files = {file.name: file.text for file in bundle.files}
    files[MARK] = json_text(_derivations(target, asked, bundle))
    files["README.md"] = _readme(target, asked, bundle)
    executable = frozenset(file.name for file in bundle.files if file.executable)
    return Export(target, asked.version, bundle, dict(sorted(files.items())), executable)


def write(made: Export, out: Path, *, force: bool = False) -> None:
    """Write the files into a new folder ``out``, made with those above it: all of them or none.

    ``force``: an export's folder that is there is replaced; a symbolic link stays, what it leads to is
    replaced. Raises InputError if ``out`` is a file, is a folder already (without ``force``), one that
    no export wrote or that holds other files, or cannot be written.
    """
    _check(out, force)
    out = out.resolve()
    above = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _replace(made, out)
    except OSError as error:
        raise _refused(out, error) from None
    finally:
        if not out.is_dir():
            for folder in above:
                with contextlib.suppress(OSError):  # somebody else's files are in it by now
                    folder.rmdir()


def _replace(made: Export, out: Path) -> None:
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name[:50]}."))
    try:
        new = aside / "new"
        new.mkdir()
        for name, text in made.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            if name in made.executable:
                path.chmod(path.stat().st_mode | 0o111)
        if not out.is_dir():
            new.rename(out)
            return
        out.rename(aside / "old")
        try:
            new.rename(out)
        except BaseException:  # Ctrl-C too: never without the old or the new one
            (aside / "old").rename(out)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def diff(made: Export, out: Path) -> str:
    """Return what writing would change in ``out``, as a unified diff; empty: nothing.

    Raises InputError if ``out`` is not a folder that an export wrote, or cannot be read.
    """
    if not out.is_dir():
        what = "is a file" if out.exists() else "does not exist"
        raise InputError(f"{out} {what}; --diff compares with a folder that an export wrote")
    _check(out, force=True)
    try:
        there = {
            str(path.relative_to(out)): path.read_text(encoding="utf-8", errors="replace")
            for path in sorted(out.rglob("*"))
            if path.is_file()
        }
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({error.strerror}); check permissions") from None
    lines: list[str] = []
    for name in sorted(there.keys() | made.files.keys()):
        old, new = there.get(name), made.files.get(name)
        lines += difflib.unified_diff(
            (old or "").splitlines(keepends=True),
            (new or "").splitlines(keepends=True),
            "/dev/null" if old is None else f"a/{name}",
            "/dev/null" if new is None else f"b/{name}",
        )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _check(out: Path, force: bool) -> None:
    try:
        if out.is_symlink() and not out.exists():
            raise InputError(f"{out} is a symbolic link to nothing; give another name")
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; give --out the name of a new folder")
        above = next((folder for folder in out.absolute().parents if folder.exists()), None)
        if above is not None and not above.is_dir():
            raise InputError(f"{out}: {above} is a file; give --out another name")
        out.resolve()
        if not out.is_dir():
            return
        if any(out.iterdir()) and not (out / MARK).is_file():
            raise InputError(
                f"{out} is a folder that no export wrote (it has no {MARK}); give another name"
            )
        if not force:
            raise InputError(
                f"{out} is there already; --force replaces it, --diff shows what would change"
            )
        _check_ours(out)
    except RuntimeError:
        raise InputError(f"{out} is below a symbolic link to itself; give another name") from None
    except OSError as error:
        raise _refused(out, error) from None


def _check_ours(out: Path) -> None:
    """Refuse to replace what no export wrote: version control, notes, files of another make."""
    if not (out / MARK).is_file():
        return
    try:
        files = json.loads((out / MARK).read_text(encoding="utf-8"))["files"]
        ours = {MARK, "README.md", *map(str, files)}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{out}: {MARK} is not what an export wrote; give another name") from None
    tops = {name.split("/")[0] for name in ours}
    # a folder that is not ours is named, and not looked into
    others = sorted(path.name for path in out.iterdir() if path.name not in tops)
    for top in sorted({name.split("/")[0] for name in ours if "/" in name}):
        inside = (str(p.relative_to(out)) for p in (out / top).rglob("*") if not p.is_dir())
        others += sorted(name for name in inside if name not in ours)
    if others:
        shown = ", ".join(map(one_line, others[:3])) + (", ..." if len(others) > 3 else "")
        raise InputError(
            f"{out} has files that no export wrote ({shown}); move them, or give another name (version "
            f"control belongs one folder up)"
        )


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be written ({error.strerror}); choose another folder")


def _derivations(target: Target, asked: Asked, bundle: Bundle) -> dict[str, Any]:
    return {
        "target": target.name,
        "target_version": asked.version,
        "scenario": asked.plan.scenario,
        "files": {
            file.name: {
                pointer: {
                    "value": value.value,
                    "unit": value.unit,
                    "origin": value.origin,
                    "how": value.how,
                    "inputs": dict(value.inputs),
                }
                for pointer, value in file.values.items()
            }
            for file in sorted(bundle.files, key=lambda file: file.name)
        },
    }


def _readme(target: Target, asked: Asked, bundle: Bundle) -> str:
    plan = asked.plan
    lines = [
        f"# {target.software} {markdown(asked.version)}: files from plan {markdown(plan.scenario)}",
        "",
        f"{target.about} Made by `dualpath export {target.name}` from a plan of "
        f"{plan.prefill_nodes} prefill and {plan.decode_nodes} decode nodes that serves "
        f"{plan.throughput_requests_per_s:.4g} requests/s of {markdown(plan.llm)} "
        f"({plan.speedup_over_basic:.2f}x Basic; {plan.bottleneck} limits). Made again from the same "
        f"plan it is the same, byte for byte; `--diff` shows what another plan would change.",
        "",
        "## Files",
        "",
        "| file | what it is |",
        "|---|---|",
        *_file_rows(bundle.files),
        f"| `{MARK}` | for each value of each file: unit, formula, inputs |",
        "",
        "## What these files leave out of the plan",
        "",
    ]
    if bundle.dropped:
        lines += ["| left out | why | estimated effect |", "|---|---|---|"]
        lines += [
            f"| {markdown(d.what)} | {markdown(d.why)} | {markdown(d.effect)} |"
            for d in bundle.dropped
        ]
    else:
        lines += ["Nothing."]
    if bundle.notes:
        lines += ["", "## Notes", "", *(f"- {markdown(note)}" for note in bundle.notes)]
    used = {name for file in bundle.files for value in file.values.values() for name in value.site}
    assumed = sorted(name for name in used if not is_given(asked.site, name))
    if assumed:
        lines += [
            "",
            "## Assumed of your site",
            "",
            "Put what differs into a YAML file and export again with `--site FILE`.",
            "",
            "| field | assumed |",
            "|---|---|",
            *(f"| {code(name)} | {_assumed(asked.site, name)} |" for name in assumed),
        ]
    for title, name in _STEPS:
        lines += ["", f"## {title}", "", *_numbered(texts(getattr(target, name), asked))]
        if bundle.wrapped is not None:
            wrapped, inner = bundle.wrapped
            lines += ["", f"Then, with the files of `files/`, as for {wrapped.software}:", ""]
            lines += _numbered(texts(getattr(wrapped, name), inner))
    return "\n".join(lines) + "\n"


def _numbered(steps: Sequence[str]) -> list[str]:
    return [f"{number}. {step}" for number, step in enumerate(steps, start=1)]


def _file_rows(files: Sequence[File]) -> list[str]:
    """Return a row for each file; many whose names differ in numbers alone share one."""
    alike: dict[str, list[File]] = {}
    for file in files:
        alike.setdefault(re.sub(r"\d+", "#", file.name), []).append(file)
    rows = []
    for group in alike.values():
        if len(group) <= _MOST_ROWS:
            rows += [f"| {code(file.name)} | {file.about} |" for file in group]
            continue
        first, last = group[0], group[-1]
        names = f"{code(first.name)} to {code(last.name)}, {len(group)} files"
        rows.append(f"| {names} | the first: {first.about} |")
    return rows


def _assumed(site: Site, name: str) -> str:
    """Return a field's value in words; a field that has none is worked out from the plan."""
    found = field_of(site, name)
    return "as in the files" if found is None else code(found)
