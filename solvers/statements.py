"""What a derivation is made of: chains of expressions, and numbered equations around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sympy
from sympy import Eq, Expr, Ge, Le, Lt

from dualpath_model.paths import Key
from solvers import symbolic as sy

Sign = Literal["=", "<=", ">=", "<"]
_RELATION: dict[Sign, Any] = {"=": Eq, "<=": Le, ">=": Ge, "<": Lt}
_LATEX_SIGN: dict[Sign, str] = {"=": "=", "<=": r"\le", ">=": r"\ge", "<": "<"}
X_STAR, X_IJ, LAM_IJ, SPEEDUP = sympy.symbols("x_star x_ij lam_ij speedup")
_LATEX_NAMES = {
    sy.lam: r"\lambda",
    X_STAR: r"x^{\ast}",
    X_IJ: "x_{ij}",
    LAM_IJ: r"\lambda_{ij}",
    SPEEDUP: r"\text{speed-up}",
}


@dataclass(frozen=True, slots=True)
class Chain:
    """Expressions with signs between them: ``a = b <= c``."""

    terms: tuple[Expr, ...]
    signs: tuple[Sign, ...]

    @property
    def relations(self) -> tuple[Any, ...]:
        """Return the sympy relation between each two neighbours (not evaluated)."""
        pairs = zip(self.terms, self.signs, self.terms[1:], strict=False)
        return tuple(_RELATION[sign](left, right, evaluate=False) for left, sign, right in pairs)

    def text(self) -> str:
        """Return plain text; sympy can parse each side of a sign again."""
        words = [sympy.sstr(term, order=_order(term)) for term in self.terms]
        return _joined(words, self.signs)

    def latex(self) -> str:
        """Return LaTeX without delimiters."""
        words = [
            sympy.latex(term, symbol_names=_LATEX_NAMES, order=_order(term)) for term in self.terms
        ]
        return _joined(words, [_LATEX_SIGN[sign] for sign in self.signs])


def _order(term: Expr) -> str | None:
    """Print bytes a request as R, m, a, o; anything else with its constant or capacity first."""
    return None if term.has(sy.R) else "none"


def _joined(words: Sequence[str], signs: Sequence[str]) -> str:
    parts = [words[0]]
    for sign, word in zip(signs, words[1:], strict=True):
        parts += [sign, word]
    return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Equation:
    """One numbered statement.

    ``condition`` is what ``statement`` says when solved (for P/D as a rule), ``provided`` what must hold
    besides; ``key`` is the capacity that it speaks of, if it is one.
    """

    number: str
    title: str
    meaning: str
    source: str
    statement: Chain
    condition: Chain | None = None
    provided: tuple[Chain, ...] = ()
    key: Key | None = None

    @property
    def group(self) -> str:
        """Return the number without its letter or index: "19" for "19.3"."""
        return self.number.split(".")[0]


def chain(*parts: Any) -> Chain:
    """Build a chain from terms and signs in turn."""
    return Chain(tuple(sympy.sympify(term) for term in parts[::2]), tuple(parts[1::2]))
