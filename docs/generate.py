"""Write the generated parts of the documents: ``python -m docs.generate``.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything else is
written by hand. A test checks that the documents are current.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from dualpath_model.catalog.efficiencies import efficiency_entries
from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.loads import movement
from dualpath_model.paths import PAPER, Payload, uses

HERE = Path(__file__).parent
SYMBOLS = {
    Payload.HIT: "R",
    Payload.MISS: "m",
    Payload.APPENDED: "a",
    Payload.GENERATED: "g",
}


def step_table() -> str:
    """Return every path and step with what it carries and uses."""
    lines = ["| path | step | from → to | carries | phase | uses |", "|---|---|---|---|---|---|"]
    for path in PAPER.paths:
        for step in path.steps:
            carried = " + ".join(SYMBOLS[p] for p in step.carries)
            used = ", ".join(map(str, uses(step)))
            lines.append(
                f"| {path.name} | {step.label} | {step.source} → {step.destination} | {carried} "
                f"| {step.phase} | {used} |"
            )
    return "\n".join(lines)


def load_table() -> str:
    """Return the bytes per request on each capacity, as an expression in R, m, a, g and x."""
    parts = {p: movement(PAPER, {p: 1.0}) for p in Payload}
    keys = list(dict.fromkeys(key for part in parts.values() for key in part.base))
    lines = ["| capacity | bytes per request |", "|---|---|"]
    for key in sorted(keys, key=str):
        terms = []
        for payload, part in parts.items():
            base = float(part.base.get(key, 0.0))
            slope = float(part.slope.get(key, 0.0))
            factor = _affine(base, slope)
            if factor:
                symbol = SYMBOLS[payload]
                terms.append(symbol if factor == "1" else f"{factor} {symbol}")
        lines.append(f"| {key} | {' + '.join(terms)} |")
    return "\n".join(lines)


def _affine(base: float, slope: float) -> str:
    if not slope:
        return f"{base:g}" if base else ""
    sign = "+" if slope > 0 else "−"
    size = "" if abs(slope) == 1 else f"{abs(slope):g}"
    if not base:
        return f"{size}x" if slope > 0 else f"−{size}x"
    return f"({base:g} {sign} {size}x)"


def llm_table() -> str:
    """Return the catalog's LLMs with their KV bytes and parameters."""
    lines = [
        "| LLM | attention | parameters | active | KV format | KV bytes/token | compute dtype |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in llm_names():
        llm = load_llm(name)
        dtype = llm.default_kv_dtype
        lines.append(
            f"| {name} | {llm.attention.kind} | {llm.params.total / 1e9:,.1f} B "
            f"| {llm.params.active / 1e9:,.1f} B | {dtype} | {llm.kv_bytes_per_token(dtype):,.0f} "
            f"| {llm.compute_dtype} |"
        )
    return "\n".join(lines)


def efficiency_table() -> str:
    """Return the efficiencies with default, meaning and source."""
    lines = ["| efficiency | default | meaning | source |", "|---|---|---|---|"]
    for name, entry in efficiency_entries().items():
        lines.append(f"| `{name}` | {entry.value:g} | {entry.meaning} | {entry.source[0]} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "step table": step_table,
    "load table": load_table,
    "llm table": llm_table,
    "efficiency table": efficiency_table,
}
_PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(text: str) -> str:
    """Return a document with its generated parts made anew."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def documents() -> list[Path]:
    """Return the documents that have generated parts."""
    return [path for path in sorted(HERE.glob("*.md")) if _PART.search(path.read_text())]


def main() -> None:
    """Rewrite every document in place."""
    for path in documents():
        path.write_text(rendered(path.read_text()))
        sys.stdout.write(f"{path.name} is current\n")


if __name__ == "__main__":
    main()
