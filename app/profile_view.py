"""A profile for people: what was measured and how surely, in the terminal and on one HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from app.figures_profile import figure
from app.files import write_atomically
from app.page import page, pictures, table
from app.profile_panels import intervals, panels
from app.profile_words import interval, least_certain, parameter, parameter_interval, quantity
from app.show import column, terminal
from dualpath_model.catalog.measured import measured_of
from dualpath_model.profile import FIGURES, Machine, Part, PartName, Profile
from dualpath_model.quantities import Dimension, show

if TYPE_CHECKING:
    from calibration.profile import Change, Difference

_HEADS = ("figure", "value", "95 % interval", "what it is", "replaces in a node")
_NUMBERS = ("value", "95 % interval", "before", "after", "change")
_UNKNOWN = "interval not known"
_COLOURS = {"faster": "green", "slower": "red", "higher": "bold", "lower": "bold"}


# ---- what is said, in plain text -------------------------------------------------------------------


def finding(profile: Profile) -> str:
    """Return one sentence: how many figures, how many count in models, which is the least certain."""
    figures = profile.figures
    if not figures:
        return "no figures: the samples settle none"
    count = len(figures)
    feeding = len(measured_of(profile, ()).figures)
    return (
        f"{count} figure{'s'[: count > 1]}, of which models take {feeding} in place of a node's own; "
        f"{least_certain(figures)}"
    )


def origins(profile: Profile) -> list[str]:
    """Return where and when parts were measured, a line for those of one machine and day."""
    found: dict[str, list[str]] = {}
    for name, part in profile.parts.items():
        where = f"{_machine(part.machine)}, {part.date[:10]}"
        if name is PartName.GPU and part.settings.get("device") == "cpu":
            where += "; its CPU stands for a GPU"
        found.setdefault(where, []).append(name.value)
    return [f"{', '.join(names)}: {where}" for where, names in found.items()]


def remarks(part: Part) -> list[str]:
    """Return what to know of a part's fits: outliers, what is not settled, the attention model."""
    found = []
    far = [
        f"{fit.name} {len(fit.outliers)} of {len(fit.indices)}" for fit in part.fits if fit.outliers
    ]
    if far:
        found.append(f"samples that lie far off (they are in the fits): {', '.join(far)}")
    open_: dict[tuple[str, str], list[str]] = {}
    for fit in part.fits:
        for key in fit.undetermined:
            note = fit.parameters[key].note if key in fit.parameters else ""
            open_.setdefault((key, note), []).append(fit.name)
    if open_:
        said = [
            f"{key} of {', '.join(names)}{f' ({note})' if note else ''}"
            for (key, note), names in open_.items()
        ]
        found.append(f"not settled by the samples: {'; '.join(said)}")
    found += [
        f"attention time of {fitted.llm} (tensor {fitted.tensor}): predictions miss by "
        f"{fitted.relative_error_p50:.1%} in the median, {fitted.relative_error_max:.1%} at most"
        + (f"; not told apart: {', '.join(fitted.undetermined)}" if fitted.undetermined else "")
        for fitted in part.attention
    ]
    return found


def figure_rows(part: Part) -> list[tuple[str, str, str, str, str]]:
    """Return a part's figures in the order of showing: name, value, interval, meaning, replaces."""
    return [
        (
            name,
            quantity(found.value, meaning.unit),
            interval(found, meaning.unit),
            f"{meaning.meaning} ({found.note})" if found.note else meaning.meaning,
            meaning.feeds,
        )
        for name, meaning in FIGURES.items()
        if (found := part.figures.get(name)) is not None
    ]


def verdict(change: Change) -> str:
    """Return what became of a figure; of seconds, less is faster."""
    if change.ratio is None:
        return "only before" if change.after is None else "only after"
    if change.beyond_noise is None:
        return _UNKNOWN
    if not change.beyond_noise:
        return "within noise"
    up = change.ratio > 1
    if not change.unit:
        return "higher" if up else "lower"
    return "faster" if up is (change.unit != "s") else "slower"


def changes_summary(changes: Sequence[Change]) -> str:
    """Return one sentence: how many figures changed beyond noise and how, and what is not known."""
    verdicts = [verdict(change) for change in changes]
    both = [word for word in verdicts if not word.startswith("only")]
    told = [word for word in both if word != _UNKNOWN]
    counts = {word: verdicts.count(word) for word in _COLOURS if word in verdicts}
    detail = f": {', '.join(f'{n} {word}' for word, n in counts.items())}" if counts else ""
    changed = sum(counts.values())
    text = f"{changed} of {len(told)} figures changed beyond the noise of one calibration"
    if not both:
        text = "no figure is in both profiles"
    elif not told:
        text = "whether any figure changed cannot be told"
    alone = [
        f"{verdicts.count(word)} {said}"
        for word, said in (
            (_UNKNOWN, f"with {_UNKNOWN}"),
            ("only before", "only before"),
            ("only after", "only after"),
        )
        if word in verdicts
    ]
    return f"{text}{detail}" + (f"; {', '.join(alone)}" if alone else "")


def differences_in_words(differences: Sequence[Difference]) -> list[str]:
    """Return a line for each difference; parts that differ alike share it."""
    parts: dict[str, list[str]] = {}
    for one in differences:
        said = f"{one.setting.replace('_', ' ')}: {one.before} -> {one.after}"
        parts.setdefault(said, []).append(one.part.value)
    return [f"{', '.join(names)} {said}" for said, names in parts.items()]


def _machine(machine: Machine) -> str:
    parts = [machine.cpu]
    if machine.cores is not None:
        parts.append(f"{machine.cores} cores")
    if machine.memory_bytes is not None:
        parts.append(f"{show(machine.memory_bytes, Dimension.BYTES)} of memory")
    if machine.gpu:
        size = machine.gpu_memory_bytes
        held = f" of {show(size, Dimension.BYTES)}" if size is not None else ""
        parts.append(f"{machine.gpus} x {machine.gpu}{held}")
    inside = ", ".join(part.strip() for part in parts if part.strip())
    return f"{machine.host} ({inside})" if inside else machine.host


def _change_cells(change: Change) -> tuple[str, str, str]:
    """Return before, after and the change, with its interval where that is known."""
    before, after = (
        "" if found is None else quantity(found.value, change.unit)
        for found in (change.before, change.after)
    )
    if change.ratio is None:
        return before, after, ""
    if change.ratio_low is None or change.ratio_high is None:
        return before, after, _change(change.ratio)
    low, high = _change(change.ratio_low), _change(change.ratio_high)
    return before, after, f"{_change(change.ratio)} ({low} to {high})"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %" if ratio < 10 else f"x {ratio:.3g}"


# ---- the terminal ----------------------------------------------------------------------------------


def show_profile(profile: Profile) -> None:
    """Print a profile: the finding first, then a table a part with what to know about it."""
    console = terminal()
    console.print(f"[bold]{escape(profile.name)}[/bold]")
    for line in origins(profile):
        console.print(escape(line))
    console.print(escape(finding(profile)))
    for name, part in profile.parts.items():
        console.print()
        rows = figure_rows(part)
        if rows:
            console.print(_table(name.value, _HEADS, [tuple(map(escape, row)) for row in rows]))
        else:
            console.print(f"[bold]{name.value}[/bold]: no figures")
        for text in remarks(part):
            console.print(escape(text))
        for text in part.warnings:
            console.print(f"[yellow]warning:[/yellow] {escape(text)}")


def show_changes(
    before_name: str,
    after_name: str,
    changes: Sequence[Change],
    differences: Sequence[Difference] = (),
) -> None:
    """Print what was measured otherwise, what changed from one profile to another, and a sum-up."""
    console = terminal()
    console.print(f"[bold]before[/bold] {escape(before_name)}")
    console.print(f"[bold]after[/bold]  {escape(after_name)}")
    for line in differences_in_words(differences):
        console.print(f"[yellow]measured differently:[/yellow] {escape(line)}")
    if not changes:
        console.print("neither profile has figures")
        return
    rows = []
    for change in changes:
        word = verdict(change)
        colour = _COLOURS.get(word, "dim")
        cells = map(escape, _change_cells(change))
        rows.append((escape(change.figure), *cells, f"[{colour}]{word}[/{colour}]"))
    heads = ("figure", "before", "after", "change", "verdict")
    console.print(_table("", heads, rows))
    console.print(changes_summary(changes))


def _table(title: str, heads: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table without lines; ``rows`` are markup already."""
    found = Table(title=title or None, title_justify="left", title_style="bold", box=None)
    found.pad_edge = False
    for heading in heads:
        if heading in _NUMBERS:
            found.add_column(heading, justify="right", no_wrap=True)
        elif heading in ("figure", "verdict"):
            column(found, heading, (heading,))
        else:
            found.add_column(heading, overflow="fold")
    for row in rows:
        found.add_row(*row)
    return found


# ---- the page --------------------------------------------------------------------------------------


def write_profile_page(profile: Profile, path: Path) -> None:
    """Write a self-contained HTML page: tables, every series with its fits, residuals.

    Raises InputError, one sentence, if ``path`` cannot be written to.
    """
    parts = []
    for name, part in profile.parts.items():
        parts.append(f"<h2>{html.escape(name.value)}: figures</h2>")
        rows = [(row[0], *row[3:], *map(_unbroken, row[1:3])) for row in figure_rows(part)]
        heads = (_HEADS[0], *_HEADS[3:], *_HEADS[1:3])
        parts.append(table(heads, rows, text=3) if rows else "<p>No figures.</p>")
        parts += [_paragraph(text) for text in remarks(part)]
        parts += [_paragraph(text, "warning: ") for text in part.warnings]
    overview = intervals(profile.figures)
    drawn = [] if overview is None else [overview]
    for name, part in profile.parts.items():
        drawn += panels(name, part)
    parts += ["<h2>Plots</h2>", _paragraph(_HOW), pictures([figure(one) for one in drawn])]
    for name, part in profile.parts.items():
        if part.fits:
            parts += [f"<h2>{html.escape(name.value)}: fits</h2>", _fits_table(part)]
        settings = {**part.settings, **{f"version of {k}": v for k, v in part.tools.items()}}
        said = [(key.replace("_", " "), str(value)) for key, value in settings.items()]
        parts += [f"<h2>{html.escape(name.value)}: how it was measured</h2>"]
        parts.append(table(("setting", "value"), [*said, *_provenance(name, part)], text=2))
    below = f"{'; '.join(origins(profile))}. {finding(profile)}."
    write_atomically(path, page(f"{profile.name}: profile", profile.name, below, parts))


_HOW = (
    "Dots are raw samples, crosses those that lie far off. Lines are fitted; their bands take all "
    "parameters of a fit at their slow ends together, and at their fast ends, so they are wider than "
    "95 %. Diamonds are medians with their 95 % intervals."
)


def _paragraph(text: str, lead: str = "") -> str:
    return f"<p><b>{lead}</b>{html.escape(text)}</p>" if lead else f"<p>{html.escape(text)}</p>"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _fits_table(part: Part) -> str:
    rows = []
    for fit in part.fits:
        counted = f"{len(fit.indices)} of {fit.series}"
        far = str(len(fit.outliers)) if fit.outliers else ""
        for i, (key, found) in enumerate(fit.parameters.items()):
            first = (fit.name, fit.model) if i == 0 else ("", "")
            value = _unbroken(parameter(key, found.value))
            ends = _unbroken(parameter_interval(key, found))
            last = (counted, far) if i == 0 else ("", "")
            rows.append((*first, key, found.note, value, ends, *last))
    heads = ("fit", "model", "parameter", "note", "value", "95 % interval", "samples", "far off")
    return table(heads, rows, text=4)


def _provenance(name: PartName, part: Part) -> list[tuple[str, str]]:
    """Return when it was measured, how many samples there are of what, and attention's coefficients."""
    rows = [("date", part.date)]
    rows += [
        (f"series {series.name}", f"{len(series.samples)} samples: {series.meaning}")
        for series in part.series
    ]
    for fitted in part.attention:
        values = ", ".join(f"{key} {value:.3g}" for key, value in fitted.coefficients.items())
        rows.append((f"{name.value}: attention time of {fitted.llm}", values))
    return rows
