"""An HTML page that needs nothing else: plotly inside, no network, no script of ours."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; color: #222;
       margin: 0 auto; max-width: 1180px; padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 36px 0 8px; }
p.sub { color: #555; margin: 0 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 12px; }
.tile { border: 1px solid #ddd; border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 22px; } .tile span { color: #555; font-size: 13px; }
.warn b { color: #D55E00; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; border-bottom: 2px solid #ccc; padding: 4px 8px; }
td { border-bottom: 1px solid #eee; padding: 4px 8px; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.here { font-weight: 600; background: #e8f1f8; } tr.full td { color: #B04A00; }
"""


def page(title: str, heading: str, below: str, parts: Iterable[str]) -> str:
    """Return a whole page; ``parts`` are HTML already, the other three plain text."""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(heading)}</h1>",
            f'<p class="sub">{html.escape(below)}</p>',
            *parts,
            "</body></html>",
        ]
    )


FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13}


LEGEND = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
"""Above the plot: it takes no width, which a narrow page does not have."""


def decades(first: int, last: int, parts: Sequence[int] = (1, 2, 5)) -> list[float]:
    """Return ticks of a log axis, from 10**first on: an axis shorter than a decade has some, too."""
    return [part * 10.0**power for power in range(first, last) for part in parts]


def layout(figure: Any, title: str, height: int, **more: Any) -> Any:
    """Give a plotly figure its title, escaped, and the look of all of them; return it."""
    usual = {
        "title": {"text": html.escape(title), "x": 0, "xanchor": "left", "font": {"size": 16}},
        "template": _template(),
        "font": FONT,
        "height": height,
        "margin": {"l": 20, "r": 50, "t": 70, "b": 50},
        "modebar": {"orientation": "v"},  # beside the figure, not over its title
    }
    # Set and not updated: plotly's own update takes ten times as long, and a dashboard draws many
    # figures a second.
    figure.layout = _merged(figure.layout.to_plotly_json(), {**usual, **_unfolded(usual, more)})
    return figure


@lru_cache(1)
def _template() -> Any:
    """Return the template as plotly's own object, which is not checked anew for every figure."""
    from plotly import graph_objects

    return graph_objects.layout.Template(_TEMPLATE)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return ``below`` with what ``above`` says, mapping by mapping."""
    found = dict(below)
    for name, value in above.items():
        under = found.get(name)
        both = isinstance(under, dict) and isinstance(value, dict)
        found[name] = _merged(under, value) if both else value  # type: ignore[arg-type]
    return found


def _unfolded(usual: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return ``more`` with ``title_y=...`` put into the title, as plotly's own magic underscores do."""
    titles = {
        name.removeprefix("title_"): more.pop(name)
        for name in list(more)
        if name.startswith("title_")
    }
    return {**more, "title": usual["title"] | titles} if titles else more


_AXIS = {
    "gridcolor": "#EBF0F8",
    "linecolor": "#EBF0F8",
    "zerolinecolor": "#EBF0F8",
    "zerolinewidth": 2,
    "title": {"standoff": 15},
    "automargin": True,
}
# What our figures need of plotly_white, whose 200 entries cost more time than a whole figure.
_TEMPLATE = {
    "layout": {
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"color": "#2a3f5f"},
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}


def pictures(figures: Sequence[Any]) -> str:
    """Return plotly figures as HTML, the library once."""
    config = {"displaylogo": False, "responsive": True}
    return "\n".join(
        figure.to_html(
            full_html=False, include_plotlyjs="inline" if i == 0 else False, config=config
        )
        for i, figure in enumerate(figures)
    )


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str] = (), *, text: int
) -> str:
    """Return an HTML table whose first ``text`` columns are words and the others numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if i >= text else ''}>{html.escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    body: list[Any] = []
    for i, row in enumerate(rows):
        kind = f' class="{kinds[i]}"' if i < len(kinds) and kinds[i] else ""
        body.append(f"<tr{kind}>{cells('td', row)}</tr>")
    head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
    return f"<div class=wide><table>{head}<tbody>{''.join(body)}</tbody></table></div>"
