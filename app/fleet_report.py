"""The fleet as one HTML file (:mod:`page`), for whoever signs the order: the answer first, then why."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from app import fleet_story as story
from app import fleet_view as view
from app.files import check_writable, write_atomically
from app.page import page, pictures, table
from solvers.fleet import Fleet

_STYLE = """
<style>
.answer { font-size: 18px; line-height: 1.5; max-width: 60em; margin: 0 0 12px; padding-left: 1.2em; }
.answer li { margin: 6px 0; } .wide { overflow-x: auto; } dl { margin: 0; }
dt { font-weight: 600; margin-top: 8px; } dd { margin: 0; color: #444; }
p.say { max-width: 62em; }
.bad { border-left: 4px solid #D55E00; padding-left: 10px; }
</style>
"""


def write_fleet(fleet: Fleet, path: Path) -> None:
    """Write the report. Raises InputError, one sentence, if ``path`` cannot be written to."""
    check_writable(path)
    write_atomically(path, fleet_html(fleet))


def fleet_html(fleet: Fleet) -> str:
    """Return the report as text; everything from the file is escaped."""
    from app import figures_fleet as figures

    drawn = [figures.cases(fleet)]
    if fleet.outlook is not None and fleet.outlook.breaks:
        drawn.append(figures.breaks(fleet))
    if len(fleet.front) > 1:
        drawn.append(figures.front(fleet))
    divs = iter([pictures(drawn[:1]), *(_more(figure) for figure in drawn[1:])])
    answer = "".join(f"<li>{html.escape(said)}</li>" for said in story.answer(fleet))
    kind = "answer" if story.holds(fleet) is not False else "answer bad"
    parts = [
        _STYLE,
        f'<ul class="{kind}">{answer}</ul>',
        next(divs),
        _tiles(fleet),
        _section("Nodes", story.NODES, view.NODE_HEADS, view.node_rows(fleet), 1),
        _section("When a node fails", story.failure(fleet), (), [], 0),
        _section(
            "How wrong the forecast may be",
            story.BREAKS,
            view.BREAK_HEADS,
            view.break_rows(fleet),
            1,
            next(divs) if fleet.outlook is not None and fleet.outlook.breaks else "",
        ),
        _section(
            "What would be bought next",
            story.NEXT,
            view.PURCHASE_HEADS,
            view.purchase_rows(fleet),
            2,
        ),
        _section(
            "Cost against capacity",
            story.FRONT,
            view.POINT_HEADS,
            view.point_rows(fleet),
            1,
            next(divs, "") if len(fleet.front) > 1 else "",
        ),
        _section("Without one kind of node", "", view.WITHOUT_HEADS, view.without_rows(fleet), 2),
        _section(
            "What is asked and what is promised",
            story.PROMISES,
            view.PROMISE_HEADS,
            view.promise_rows(fleet),
            3,
        ),
        _said("Simulation", view.simulation_words(fleet)),
        _section("Simulated at the required rate", "", view.TRIED_HEADS, view.tried_rows(fleet), 3),
        _section("What decides it", story.WORTH, view.WORTH_HEADS, view.worth_rows(fleet), 2),
        _said("What this rests on", story.assumptions(fleet)),
        _said("Notes", fleet.notes),
        _glossary(),
    ]
    return page(
        f"{fleet.name}: fleet",
        fleet.name,
        "Capacity plan"
        + (" · interrupted: this is what was finished" if fleet.interrupted else ""),
        [part for part in parts if part],
    )


def _more(figure: object) -> str:
    config = {"displaylogo": False, "responsive": True}
    return str(
        figure.to_html(  # type: ignore[attr-defined]
            full_html=False, include_plotlyjs=False, config=config
        )
    )


def _section(
    title: str,
    said: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: int,
    picture: str = "",
) -> str:
    if not rows and (heads or not said):
        return ""
    words = f'<p class="say">{html.escape(said)}</p>' if said else ""
    shown = f'<div class="wide">{table(heads, rows, text=text)}</div>' if rows else ""
    return f"<h2>{html.escape(title)}</h2>{words}{picture}{shown}"


def _said(title: str, sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{html.escape(title)}</h2><ul>{items}</ul>"


def _glossary() -> str:
    terms = "".join(
        f"<dt>{html.escape(term)}</dt><dd>{html.escape(meaning)}</dd>"
        for term, meaning in story.GLOSSARY
    )
    return f"<h2>Words</h2><dl>{terms}</dl>"


def _tiles(fleet: Fleet) -> str:
    cells = (
        f'<div class="tile"><span>{html.escape(label)}</span><b>{html.escape(value)}</b></div>'
        for label, value in story.tiles(fleet)
    )
    return f'<h2>In figures</h2><div class="tiles">{"".join(cells)}</div>'
