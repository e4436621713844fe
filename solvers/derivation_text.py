"""The derivation printed: plain text for a terminal, LaTeX, and JSON-ready data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from solvers.statements import Chain, Equation
from solvers.symbolic import MEANING


def symbol_text() -> list[tuple[str, str]]:
    """Return the letters and their meanings, in reading order."""
    return [(str(symbol), meaning) for symbol, meaning in MEANING.items()]


def to_text(found: Iterable[Equation]) -> str:
    """Return the derivation for a terminal."""
    lines = [f"  {name:6} {meaning}" for name, meaning in symbol_text()]
    for source, title, equation in _sectioned(found):
        if source:
            lines += ["", f"{source}", "-" * len(source)]
        if title:
            lines += ["", title]
        lines.append(f"({equation.number}) {equation.title}: {equation.statement.text()}")
        if (solved := _news(equation)) is not None:
            lines.append(f"      so {solved.text()}")
        if equation.provided:
            lines.append(f"      provided {', '.join(c.text() for c in equation.provided)}")
    return "\n".join(lines)


def to_latex(found: Iterable[Equation]) -> str:
    """Return the derivation as a LaTeX fragment (amsmath)."""
    lines = []
    for source, title, equation in _sectioned(found):
        if source:
            lines.append(f"\\paragraph{{{source}}}")
        if title:
            lines.append(_escaped(title))
        lines += [
            f"% {equation.title}",
            r"\begin{equation*}",
            rf"\tag{{{equation.number}}}",
            statement_latex(equation),
            r"\end{equation*}",
        ]
    return "\n".join(lines)


def statement_latex(equation: Equation) -> str:
    """Return an equation with what follows from it, LaTeX without delimiters."""
    parts = [equation.statement.latex()]
    if (solved := _news(equation)) is not None:
        parts.append(rf"\quad\Rightarrow\quad {solved.latex()}")
    if equation.provided:
        needs = ",\\; ".join(c.latex() for c in equation.provided)
        parts.append(rf"\quad\text{{provided }} {needs}")
    return " ".join(parts)


def to_data(found: Iterable[Equation]) -> dict[str, Any]:
    """Return the derivation as JSON-ready data; formulas as text (sympy's) and as LaTeX."""

    def both(chain: Chain) -> dict[str, str]:
        return {"text": chain.text(), "latex": chain.latex()}

    return {
        "symbols": dict(symbol_text()),
        "equations": [
            {
                "number": equation.number,
                "title": equation.title,
                "meaning": equation.meaning,
                "source": equation.source,
                "capacity": None
                if equation.key is None
                else dict(zip(("pool", "resource", "direction"), equation.key, strict=True)),
                "statement": both(equation.statement),
                "condition": both(equation.condition) if equation.condition else None,
                "provided": [both(chain) for chain in equation.provided],
            }
            for equation in found
        ],
    }


def _news(equation: Equation) -> Chain | None:
    """Return the condition unless it repeats the end of the statement."""
    solved = equation.condition
    if solved is None or solved.terms == equation.statement.terms[-2:]:
        return None
    return solved


def _sectioned(found: Iterable[Equation]) -> Iterable[tuple[str, str, Equation]]:
    """Yield each equation with its source and its meaning where these are new."""
    source = meaning = ""
    for equation in found:
        yield (
            equation.source if equation.source != source else "",
            equation.meaning if equation.meaning != meaning else "",
            equation,
        )
        source, meaning = equation.source, equation.meaning


def _escaped(text: str) -> str:
    return text.replace("_", r"\_")
