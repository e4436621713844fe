"""``dualpath plan --compare-frameworks``: one scenario under every framework's step table, in turn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.plan_view import words
from dualpath_model.errors import InfeasibleError
from dualpath_model.frameworks import FRAMEWORKS
from dualpath_model.paths import PAPER
from dualpath_model.scenario import Scenario
from solvers.alternatives import ResourceName, name_of, quick


@dataclass(frozen=True, slots=True)
class FrameworkRow:
    """What one framework gives; figures are None where it cannot serve, for the ``reason``.

    ``split``: the share of the hits that its second read path serves, None where it has no choice.
    ``speedup_over_basic``: over split 0 of the same table; ``fraction_of_paper``: of the throughput
    that the paper's table gives. ``first_token``: what to know of the latency of a first token.
    """

    framework: str
    software: str
    second_path: str
    throughput_requests_per_s: float | None
    split: float | None
    speedup_over_basic: float | None
    fraction_of_paper: float | None
    bottleneck: ResourceName | None
    first_token: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All frameworks on one scenario, in the order of :data:`FRAMEWORKS`; ``own``: the scenario's."""

    scenario: str
    own: str
    frameworks: tuple[FrameworkRow, ...]


def compare(scenario: Scenario) -> Comparison:
    """Answer for each framework, everything else as the scenario has it."""
    paper = _throughput(scenario.under(PAPER.name))
    rows = tuple(_row(scenario.under(name), paper) for name in FRAMEWORKS)
    return Comparison(scenario.name, scenario.serving.table.name, rows)


def _throughput(scenario: Scenario) -> float | None:
    try:
        return quick(scenario).throughput
    except InfeasibleError:
        return None


def _row(scenario: Scenario, paper: float | None) -> FrameworkRow:
    table = scenario.serving.table
    about = (table.name, table.software, table.decode_read.name)
    try:
        found = quick(scenario)
    except InfeasibleError as error:
        return FrameworkRow(*about, None, None, None, None, None, table.remark, str(error))
    return FrameworkRow(
        *about,
        throughput_requests_per_s=found.throughput,
        split=found.split if table.splits else None,
        speedup_over_basic=found.throughput / found.basic,
        fraction_of_paper=None if paper is None else found.throughput / paper,
        bottleneck=name_of(found.bottleneck),
        first_token=table.remark,
        reason=None,
    )


def data(found: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON-ready data."""
    return asdict(found)


def show(found: Comparison) -> None:
    """Print the comparison for people."""
    console = Console()
    table = Table(title=f"{escape(found.scenario)} under each framework", title_justify="left")
    table.add_column("framework", no_wrap=True)
    for heading in ("requests/s", "of paper", "over x = 0", "split"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("limited by")
    for row in found.frameworks:
        style = "bold" if row.framework == found.own else None
        if row.throughput_requests_per_s is None or row.bottleneck is None:
            table.add_row(row.framework, "-", "-", "-", "-", "cannot serve", style=style)
            continue
        table.add_row(
            row.framework,
            f"{row.throughput_requests_per_s:,.1f}",
            "-" if row.fraction_of_paper is None else f"{row.fraction_of_paper:.0%}",
            f"{row.speedup_over_basic:.2f}x",
            "no choice" if row.split is None else f"{row.split:.1%}",
            words(row.bottleneck),
            style=style,
        )
    console.print(table)
    for row in found.frameworks:
        text = (
            f"{row.framework} ({row.software}), second path '{row.second_path}': "
            f"{row.reason or row.first_token}"
        )
        console.print(f"- {escape(text)}", highlight=False)
