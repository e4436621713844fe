"""Fleet questions for the tests, and the same questions answered by trying everything."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dualpath_model import yaml_lines
from dualpath_model.errors import InfeasibleError
from solvers.alternatives import problem_of
from solvers.fleet_question import Case, Counts, Question, question_of
from solvers.fleet_spec import parse_fleet
from solvers.linear import CapacityProgram

MOMENTS = {"moments": {"prompt_tokens": 32000, "miss_tokens": 600, "output_tokens": 300}}


def question(**fields: Any) -> Question:
    """Return the question of a file with these fields, through the file's own parser.

    Engines' software is left out where the fields do not ask for it: the plan's LP has none of it.
    """
    whole: dict[str, Any] = {
        "name": "test",
        "llm": "deepseek-v3.2",
        "kv_dtype": "fp8",
        "software": False,
    }
    if "classes" not in fields:
        whole["workload"] = MOMENTS
    document = yaml_lines.parse(yaml.safe_dump(whole | fields), "test.yaml")
    return question_of(parse_fleet(document), Path(), document)


def random_question(seed: int) -> Question:
    """Return a small question drawn at random: kinds, prices, cases, limits, losses."""
    draw = np.random.default_rng(seed)
    bases = ["dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72-tray", "hgx-h20", "paper-hopper"]
    number = int(draw.integers(2, 4))
    kinds = []
    for index, base in enumerate(draw.permutation(bases)[:number].tolist()):
        owned = int(draw.integers(0, 3)) if draw.random() < 0.4 else 0
        most = int(draw.integers(2, 5 if number == 2 else 4))
        kinds.append(
            {
                "node": {"base": base, "snics": int(draw.integers(1, 4))},
                "name": f"{base} {index}",
                "price_usd_per_hour": round(float(draw.uniform(20, 120)), 2),
                "owned": owned,
                "owned_price_usd_per_hour": round(float(draw.uniform(0, 20)), 2),
                "minimum": min(most, int(draw.choice([0, 0, 0, 0, 1, 3]))),
                "maximum": most,
                "power_kw": round(float(draw.uniform(6, 15)), 1),
                "nodes_per_rack": int(draw.integers(1, 4)),
                "place": [None, None, "here", "there"][seed * (index + 3) % 4],
                "roles": [["prefill", "decode"], ["prefill", "decode"], ["prefill"], ["decode"]][
                    int(draw.integers(0, 4))
                ]
                if index > 0
                else ["prefill", "decode"],
            }
        )
    limits: dict[str, Any] = {"survive": int(draw.choice([0, 0, 0, 1, 1, 2]))}
    drawn = (
        ("power_kw", round(float(draw.uniform(40, 110)), 1)),
        ("racks", int(draw.integers(2, 7))),
        ("nodes", int(draw.integers(4, 11))),
        ("kinds", int(draw.integers(1, 3))),
        ("kinds_per_role", 1),
    )
    limits |= {name: value for name, value in drawn if draw.random() < 0.3}
    fields: dict[str, Any] = {
        "kinds": kinds,
        "limits": limits,
        "require": {"requests_per_s": round(float(draw.uniform(5, 45)), 1)},
        "margin": round(float(draw.uniform(0.5, 1.0)), 2),
        "scenarios": [
            {"name": "peak", "rate": 1.3},
            {"name": "longer", "context": 1.4},
            {"name": "fewer hits", "hit_rate": 0.9},
        ][: int(draw.integers(0, 4))],
    }
    if draw.random() < 0.4:
        chat = {"prompt_tokens": 4000, "miss_tokens": 1500, "output_tokens": 200}
        fields["classes"] = [
            {"name": "agents", "share": 1.0, "workload": MOMENTS, "growth": 1.2},
            {"name": "chat", "requests_per_s": 8.0, "workload": {"moments": chat}},
        ]
    if draw.random() < 0.2:
        fields["storage"] = {"read": f"{draw.uniform(100, 400):.0f} GB/s"}
    return question(**fields)


def everything(asked: Question) -> list[Counts]:
    """Return every choice of counts within the kinds' own bounds and the limits but for the rate."""
    of_kind = []
    for kind in asked.kinds:
        roles = [pool.value for pool in kind.roles]
        most = kind.maximum or 0
        of_kind.append(
            [
                (p, d)
                for p in range(most + 1)
                for d in range(most + 1 - p)
                if kind.minimum <= p + d
                and (not p or "prefill" in roles)
                and (not d or "decode" in roles)
            ]
        )
    found = [np.array(pairs, dtype=np.int64) for pairs in itertools.product(*of_kind)]
    return [counts for counts in found if counts.sum(axis=0).all() and _within(asked, counts)]


def _within(asked: Question, counts: Counts) -> bool:
    limits, totals = asked.limits, counts.sum(axis=1).tolist()
    power = sum((k.power_kw or 0) * n for k, n in zip(asked.kinds, totals, strict=True))
    racks = sum(-(-n // (k.per_rack or 1)) for k, n in zip(asked.kinds, totals, strict=True))
    return (
        (limits.nodes is None or sum(totals) <= limits.nodes)
        and (limits.power_kw is None or power <= limits.power_kw + 1e-9)
        and (limits.racks is None or racks <= limits.racks)
        and (
            limits.kinds_per_role is None or (counts > 0).sum(axis=0).max() <= limits.kinds_per_role
        )
        and (
            limits.places is None
            or len({k.place for k, n in zip(asked.kinds, totals, strict=True) if n and k.place})
            <= limits.places
        )
        and (limits.kinds is None or sum(n > 0 for n in totals) <= limits.kinds)
    )


def promised(asked: Question, case: Case, counts: Counts, required: float) -> float:
    """Return what the full LP promises of the case's rates, 1: all of them; 0 where it cannot run.

    Nodes on which the LLM does not fit in so small a pool stay idle: every choice of those is tried.
    """
    if not counts.sum(axis=0).all():
        return 0.0
    scenario = asked.on(case, counts, required)
    try:
        loads = scenario.class_loads()
    except InfeasibleError:
        used = [tuple(place) for place in np.argwhere(counts > 0).tolist()]
        if len(used) <= 2:
            return 0.0
        found = [0.0]
        for kind, pool in used:
            fewer = counts.copy()
            fewer[kind, pool] = 0
            found.append(promised(asked, case, fewer, required))
        return max(found)
    program = CapacityProgram(problem_of(scenario, loads), "matrix")
    raw, _ = program.optimum(tie_break=False)
    return float(-raw.cost * program.unit / asked.rates(case, required).sum())


def all_lost(counts: Counts, survive: int) -> list[Counts]:
    """Return what is left after every loss of ``survive`` nodes, node by node."""
    left = {counts.tobytes(): counts}
    for _ in range(survive):
        fewer: dict[bytes, Counts] = {}
        for some in left.values():
            for kind, pool in np.argwhere(some > 0).tolist():
                less = some.copy()
                less[kind, pool] -= 1
                fewer[less.tobytes()] = less
        left = fewer
    return list(left.values())


def meets(asked: Question, counts: Counts, required: float) -> bool:
    """Return whether the counts serve every case after every loss, by the full LP."""
    return all(
        promised(asked, case, left, required) * asked.margins[0] >= 1.0 - 1e-6
        for left in all_lost(counts, asked.limits.survive)
        for case in asked.cases
    )


def cost_of(asked: Question, counts: Counts) -> float:
    """Return USD/h, the cheapest nodes first, one by one."""
    total = 0.0
    for kind, count in zip(asked.kinds, counts.sum(axis=1).tolist(), strict=True):
        offers = sorted([kind.owned_price] * kind.owned + [kind.price] * count)
        total += sum(offers[:count])
    return total


def cheapest(asked: Question, required: float) -> tuple[float, Counts] | None:
    """Return the least cost by trying all choices of counts in the order of their cost."""
    tried = sorted(everything(asked), key=lambda counts: cost_of(asked, counts))
    return next(
        ((cost_of(asked, counts), counts) for counts in tried if meets(asked, counts, required)),
        None,
    )
