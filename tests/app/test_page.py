"""The HTML page: whole by itself, and text stays text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.page import page, pictures, table
from tests.app.conftest import EVIL

VOID = {"meta", "br", "img", "link", "hr"}


class Seen(HTMLParser):
    """What a browser sees: tags with their attributes, and text; tags must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def test_the_three_texts_are_text_and_the_parts_are_html() -> None:
    seen = Seen(page(EVIL, EVIL, EVIL, ["<p>one</p>", "<p>two</p>"]))
    assert seen.text.count(EVIL) == 3
    assert seen.count("script") == 0
    assert seen.count("p") == 3
    assert [seen.count(tag) for tag in ("html", "head", "body", "title", "h1")] == [1] * 5


def test_a_page_needs_no_network() -> None:
    for tag, attributes in Seen(page("t", "h", "b", [])).tags:
        assert not {"src", "href"} & set(attributes), tag


CELLS = st.text(st.characters(exclude_characters="\0\r"), min_size=1)  # parsers change these two


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=4), st.integers(0, 2))
def test_a_table_shows_its_cells_as_they_are(rows: list[list[str]], text: int) -> None:
    seen = Seen(table(("a", "b"), rows, text=text))
    assert "".join(seen.text) == "ab" + "".join(cell for row in rows for cell in row)
    assert (seen.count("tr"), seen.count("td")) == (1 + len(rows), 2 * len(rows))
    numbers = [tag for tag, attributes in seen.tags if attributes.get("class") == "n"]
    assert len(numbers) == (2 - text) * (1 + len(rows))


@pytest.mark.parametrize("kinds", [[], ["here"], ["", "full"], ["here", "", "full", "here", "x"]])
def test_fewer_or_more_kinds_than_rows(kinds: list[str]) -> None:
    rows = [("one", "1"), ("two", "2"), ("three", "3")]
    seen = Seen(table(("name", "value"), rows, kinds, text=1))
    classes = [attributes.get("class") for tag, attributes in seen.tags if tag == "tr"]
    expected = [kind or None for kind in kinds[:3]]
    assert classes == [None, *expected, *[None] * (3 - len(expected))]


def test_plotly_is_there_once_and_inside() -> None:
    from plotly import graph_objects

    figures = [graph_objects.Figure(), graph_objects.Figure()]
    for figure in figures:
        figure.add_scatter(x=[1], y=[2])
    found = pictures(figures)
    assert found.count("Plotly.newPlot(") >= 2
    first, both = len(pictures(figures[:1])), len(found)
    assert first > 1_000_000  # the library
    assert both - first < 100_000  # not again
    assert not [a for tag, a in Seen(found).tags if tag == "script" and "src" in a]
    assert pictures([]) == ""
