"""Write the generated parts of the documents: ``python -m docs.generate``.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; everything else is
written by hand. A test checks that the documents are current.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from app import reproduction_view as view
from calibration.importers import TOOLS
from docs import generate_deploying
from dualpath_model.catalog.efficiencies import efficiency_entries
from dualpath_model.catalog.llms import llm_names, load_llm
from dualpath_model.closed_form import BottleneckFree, of_loads, solve
from dualpath_model.loads import movement
from dualpath_model.paths import PAPER, Payload, uses
from dualpath_model.profile import FIGURES
from dualpath_model.scenario import Scenario, load_scenario
from dualpath_model.scheduler.policies import POLICIES
from solvers.derivation import equations
from solvers.real_traffic import ratio_range, real_traffic_range
from solvers.reproduction.effects import OUTCOMES
from solvers.statements import Chain, Equation
from solvers.symbolic import PAYLOADS

HERE = Path(__file__).parent
SYMBOLS = {payload: str(symbol) for payload, symbol in PAYLOADS.items()}
DS_660B = HERE.parent / "examples" / "deepseek-660b-2p4d.yaml"


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
    """Return the bytes per request on each capacity, as an expression in R, m, a, o and x."""
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


# ---- the derivation ------------------------------------------------------------------------------


@cache
def _grouped() -> dict[str, list[Equation]]:
    """Return the derivation's equations by their number without its index."""
    grouped: dict[str, list[Equation]] = {}
    for equation in equations():
        grouped.setdefault(equation.group, []).append(equation)
    return grouped


def _math(*chains: Chain) -> str:
    """Return inline mathematics; chains side by side are separated by commas."""
    return ", ".join(f"${chain.latex()}$" for chain in chains)


def _display(*numbers: str) -> str:
    shown = []
    for number in numbers:
        (equation,) = _grouped()[number]
        needs = f" Provided {_math(*equation.provided)}." if equation.provided else ""
        shown.append(
            f"**({number})** {equation.title}. {equation.meaning}{needs}\n\n"
            f"$$\n{equation.statement.latex()}\n$$"
        )
    return "\n\n".join(shown)


def _conditions(heading: str, rows: Iterable[Equation]) -> str:
    lines = [f"| | capacity | {heading} | so | provided |", "|---|---|---|---|---|"]
    for row in rows:
        solved = _math(row.condition) if row.condition else ""
        if row.condition and row.condition.terms == row.statement.terms[-2:]:
            solved = "independent of P/D"
        lines.append(
            f"| ({row.number}) | {row.title} | {_math(row.statement)} | {solved} "
            f"| {_math(*row.provided)} |"
        )
    return "\n".join(lines)


def derivation_of_the_paper() -> str:
    """Return equations (1) to (9)."""
    rows = [row for number in map(str, range(3, 9)) for row in _grouped()[number]]
    table = _conditions("load, and what there is", rows)
    return f"{_display('1', '2')}\n\n{table}\n\n{_display('9')}"


def derivation_of_throughput() -> str:
    """Return equations (11) to (17), but for (14): that is the load table again."""
    lines = ["| | the throughput is at most that of | requests/s |", "|---|---|---|"]
    lines += [
        f"| ({row.number}) | {row.title} | {_math(row.statement)} |" for row in _grouped()["17"]
    ]
    return _display("11", "12", "13", "15", "16") + "\n\n" + "\n".join(lines)


def derivation_of_all_traffic() -> str:
    """Return equations (18) to (21)."""
    table = _conditions("load, and what a node has", _grouped()["19"])
    lines = ["| | shared by all nodes | load, and what there is |", "|---|---|---|"]
    lines += [
        f"| ({row.number}) | {row.title} | {_math(row.statement)} |" for row in _grouped()["21"]
    ]
    return "\n\n".join([_display("18"), table, _display("20"), "\n".join(lines)])


# ---- the DS 660B scenario ------------------------------------------------------------------------


@cache
def _ds_660b() -> Scenario:
    return load_scenario(DS_660B)


def _bound(value: float) -> str:
    return "none" if value in (0.0, math.inf) else f"{value:.4g}"


def _interval(found: BottleneckFree) -> str:
    return f"[{found.low:.4g}, {found.high:.4g}]"


def real_traffic_table() -> str:
    """Return where each capacity of the DS 660B scenario bounds P/D, by hits and by all traffic."""
    scenario = _ds_660b()
    found = real_traffic_range(scenario)
    amounts = scenario.means.payloads
    hit = float(amounts[Payload.HIT])
    bound = solve(*of_loads(scenario.loads()))
    storage = sum(
        len(nodes) * nodes[0].storage_bytes_per_s * scenario.efficiencies.snic
        for nodes in (scenario.cluster.prefill, scenario.cluster.decode)
    )
    ratios = ", ".join(
        f"{letter} = {float(amounts[payload]) / hit:.3%}"
        for letter, payload in (
            ("μ", Payload.MISS),
            ("α", Payload.APPENDED),
            ("γ", Payload.GENERATED),
        )
    )
    by_hits = {condition.key: condition for condition in found.hits.conditions}
    lines = [
        f"A request reads R = {hit / 1e9:.3f} GB; {ratios}. The scenario has P/D = {found.ratio:g}.",
        "",
        "| capacity | bounds P/D | hits only | all traffic |",
        "|---|---|---|---|",
    ]
    for condition in found.serving.conditions:
        low = condition.high == math.inf
        side = "from below" if low else "from above"
        value = condition.low if low else condition.high
        before = by_hits.get(condition.key)
        old = "not counted" if before is None else _bound(before.low if low else before.high)
        lines.append(f"| {condition.key} | {side} | {old} | {_bound(value)} |")
    lines += [
        f"| **range**, KV movement | | **{_interval(found.hits)}** | **{_interval(found.traffic)}** |",
        f"| **range**, GPUs and HBM too | | | **{_interval(found.serving)}** |",
        "",
        f"At {len(scenario.cluster.prefill)}P{len(scenario.cluster.decode)}D the storage NICs alone "
        f"would allow {storage / hit:.0f} requests/s (12); the bound of all capacities is "
        f"{float(bound.throughput):.0f} requests/s, set by {bound.keys[int(bound.bottleneck)]}.",
    ]
    return "\n".join(lines)


def hit_rate_table() -> str:
    """Return the range of KV movement for the same prompts at lower hit rates."""
    scenario = _ds_660b()
    loads = scenario.loads()
    capacity = {
        key: rate
        for group in (loads.prefill[0], loads.decode[0])
        for key, rate in group.capacity.items()
        if key.moves_kv
    }
    amounts = {payload: float(amount) for payload, amount in scenario.means.payloads.items()}
    prompt = amounts[Payload.HIT] + amounts[Payload.MISS]
    own = amounts[Payload.HIT] / prompt
    lines = ["| hit rate | μ = α | γ | P/D from | set by | P/D to | set by |", "|---" * 7 + "|"]
    for rate in (own, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        miss = (1 - rate) * prompt
        payloads = {
            Payload.HIT: rate * prompt,
            Payload.MISS: miss,
            Payload.APPENDED: miss,
            Payload.GENERATED: amounts[Payload.GENERATED],
        }
        found = ratio_range(movement(PAPER, payloads), capacity)
        lowest = max(found.conditions, key=lambda condition: condition.low)
        highest = min(found.conditions, key=lambda condition: condition.high)
        most = f"{found.high:.3f}" if found.low <= found.high else "no ratio will do"
        lines.append(
            f"| {rate:.1%} | {miss / (rate * prompt):.3f} "
            f"| {amounts[Payload.GENERATED] / (rate * prompt):.4f} | {found.low:.3f} "
            f"| {lowest.key} | {most} | {highest.key} |"
        )
    return "\n".join(lines)


def policy_table() -> str:
    """Return the policies and the rules that each replaces."""
    lines = ["| policy | meaning | replaces |", "|---|---|---|"]
    for policy in POLICIES.values():
        replaced = ", ".join(f"`{name}`" for name in policy.rules) or "nothing"
        lines.append(f"| `{policy.name}` | {policy.meaning} | {replaced} |")
    return "\n".join(lines)


def reproduction_table() -> str:
    """Return the paper's figures beside ours, as ``dualpath reproduce --json`` wrote them."""
    lines = ["| figure | quantity | paper | ours | error | |", "|---|---|---|---|---|---|"]
    before = ""
    rows = _results("reproduction")["rows"]
    for row in rows:
        figure = row["figure"] if row["figure"] != before else ""
        before = row["figure"]
        error = "" if row["kind"] == "bound" else f"{row['error']:+.1%}"
        how = view.standing(row)
        how = f"**{how}**" if how == "off" else how
        note = f"{how}; {row['note']}" if row["note"] else how
        paper, ours = view.number(row["paper"]), view.number(row["ours"])
        lines.append(f"| {figure} | {row['quantity']} | {paper} | {ours} | {error} | {note} |")
    return "\n".join(lines) + f"\n\n{view.summary(rows)}."


def effect_table() -> str:
    """Return what each assumption moves."""
    lines = [
        f"| instead | {' | '.join(OUTCOMES.values())} |",
        f"|---|{'---|' * len(OUTCOMES)}",
    ]
    for entry in _results("reproduction")["effects"]:
        cells = [
            view.number(entry["outcomes"][name])
            if entry["meaning"] == "as assumed"
            else f"{entry['change'][name]:+.1%}"
            for name in OUTCOMES
        ]
        lines.append(f"| {entry['meaning']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_table() -> str:
    """Return our policies against the paper's, as ``benchmarks.policies`` wrote them."""
    rows = _results("policies")["comparisons"]
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines = [
        f"| case | policy | {' | '.join(measures)} |",
        f"|---|---|{'---|' * len(measures)}",
    ]
    before = ""
    for case, policy in dict.fromkeys((row["case"], row["policy"]) for row in rows):
        mine = {r["measure"]: r for r in rows if (r["case"], r["policy"]) == (case, policy)}
        cells = []
        for measure in measures:
            row = mine[measure]
            changed = f" ({row['change']:+.1%} ± {row['change_half_width']:.1%})"
            cells.append(f"{view.number(row['mean'])}{'' if policy == 'dualpath' else changed}")
        lines.append(f"| {case if case != before else ''} | {policy} | {' | '.join(cells)} |")
        before = case
    return "\n".join(lines)


@cache
def _results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found


# ---- calibration ---------------------------------------------------------------------------------


def figure_table() -> str:
    """Return every figure that a profile can hold, and what of a node it replaces."""
    lines = ["| part | figure | unit | what it is | replaces |", "|---|---|---|---|---|"]
    for name, figure in FIGURES.items():
        lines.append(
            f"| {figure.part} | `{name}` | {figure.unit or 'share'} | {figure.meaning} "
            f"| {figure.feeds or '-'} |"
        )
    return "\n".join(lines)


def tool_table() -> str:
    """Return the tools whose results can be imported."""
    lines = ["| tool | what it measures | what to run | part |", "|---|---|---|---|"]
    for name, tool in TOOLS.items():
        lines.append(f"| {name} | {tool.meaning} | `{tool.run}` | {tool.part} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "figures": figure_table,
    "tools": tool_table,
    "policies": policy_table,
    "step table": step_table,
    "load table": load_table,
    "derivation of the paper": derivation_of_the_paper,
    "derivation of throughput": derivation_of_throughput,
    "derivation of all traffic": derivation_of_all_traffic,
    "real traffic range": real_traffic_table,
    "hit rates": hit_rate_table,
    "llm table": llm_table,
    "efficiency table": efficiency_table,
    "reproduction": reproduction_table,
    "effects": effect_table,
    "policy comparison": comparison_table,
    "export targets": generate_deploying.target_table,
    "export steps": generate_deploying.target_steps,
    "imports": generate_deploying.importer_table,
    "site fields": generate_deploying.site_table,
    "worked example": generate_deploying.worked_example,
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
