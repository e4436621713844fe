"""``dualpath derive``: the symbolic derivation for people and for programs. sympy loads on first use."""

from __future__ import annotations

from typing import Any


def derive_text(latex: bool) -> str:
    """Return the derivation in plain text, or as a LaTeX fragment (amsmath)."""
    from solvers.derivation import equations
    from solvers.derivation_text import to_latex, to_text

    return to_latex(equations()) if latex else to_text(equations())


def derive_data() -> dict[str, Any]:
    """Return the derivation as JSON-ready data: symbols, and equations as text and LaTeX."""
    from solvers.derivation import equations
    from solvers.derivation_text import to_data

    return to_data(equations())
