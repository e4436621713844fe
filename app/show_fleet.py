"""Terminal output of a fleet."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from app import fleet_view as view
from app.show import terminal
from solvers.fleet import Fleet


def show_fleet(fleet: Fleet) -> None:
    """Print the fleet, what it promises, what the simulator says, and what decides it."""
    console = terminal()
    if fleet.interrupted:
        console.print("interrupted: this is what was finished")
    console.print(f"[bold]{escape(fleet.name)}[/bold]")
    console.print(escape(view.headline(fleet)))
    console.print()
    facts = Table(box=None, show_header=False, pad_edge=False)
    for row in view.facts(fleet):
        facts.add_row(*map(escape, row))
    console.print(facts)
    console.print()
    console.print(_table(view.NODE_HEADS, view.node_rows(fleet), 1))
    console.print()
    console.print(_table(view.PROMISE_HEADS, view.promise_rows(fleet), 3))
    console.print()
    for sentence in view.simulation_words(fleet):
        console.print(escape(sentence))
    if any(not one.holds for one in fleet.simulation.tried):
        console.print(_table(view.TRIED_HEADS, view.tried_rows(fleet), 3))
    for heads, rows, words in (
        (view.BREAK_HEADS, view.break_rows(fleet), 1),
        (view.PURCHASE_HEADS, view.purchase_rows(fleet), 2),
        (view.WITHOUT_HEADS, view.without_rows(fleet), 2),
        (view.WORTH_HEADS, view.worth_rows(fleet), 2),
        (view.POINT_HEADS, view.point_rows(fleet), 1),
    ):
        if rows:
            console.print()
            console.print(_table(heads, rows, words))
    for note in fleet.notes:
        console.print(f"note: {escape(note)}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> Table:
    """Return a table whose first ``words`` columns are text and the others numbers."""
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < words else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
