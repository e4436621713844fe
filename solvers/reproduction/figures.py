"""Every figure of the paper's evaluation beside ours: which runs give it, and what it comes to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from dualpath_model.errors import unknown_name
from solvers.reproduction.lab import DS_27B, DS_660B, LARGE_OFFLINE, LARGE_ONLINE, Arm, Lab, Setup

ROWS = ("32K", "48K", "64K")
AGENTS_660B = (256, 512, 1024, 2048)
AGENTS_27B = (128, 256, 512, 1024)
ABLATION_AGENTS = (1024, 2048)
APPEND_FACTORS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Figure:
    """A figure as the paper gives it. ``kind``: ratio, absolute, bound or derived."""

    id: str
    figure: str
    quantity: str
    paper: float
    kind: str
    fitted: bool = False


@dataclass(frozen=True)
class Row:
    """A figure and ours. ``error``: ours / paper - 1. ``note``: where it was found, or why it is off."""

    id: str
    figure: str
    quantity: str
    paper: float
    ours: float
    error: float
    kind: str
    fitted: bool
    note: str


@cache
def paper_figures() -> dict[str, Figure]:
    """Return the figures of ``figures.yaml`` by id, in its order."""
    import yaml

    text = resources.files("solvers.reproduction").joinpath("figures.yaml").read_text()
    return {entry["id"]: Figure(**entry) for entry in yaml.safe_load(text)}


Found = Iterator[tuple[str, float, str]]
"""Yields a figure's id, our value and a note."""


def offline_660b(lab: Lab) -> Found:
    """The best speed-up over all sessions and numbers of agents, and the Oracle there."""
    best = max(
        ((row, agents) for row in ROWS for agents in AGENTS_660B),
        key=lambda at: _speedup(lab, DS_660B._replace(row=at[0]), at[1]),
    )
    setup = DS_660B._replace(row=best[0])
    at = f"{best[0]}, {best[1]} agents"
    yield "660b-speedup", _speedup(lab, setup, best[1]), at
    oracle = lab.offline(setup, best[1], "oracle").jct_s
    yield "660b-oracle", lab.offline(setup, best[1]).jct_s / oracle, at


def offline_27b(lab: Lab) -> Found:
    """The same of the small LLM, and how far from the Oracle it is."""
    cases = [(DS_27B._replace(row=row), agents) for row in ROWS for agents in AGENTS_27B]
    setup, agents = max(cases, key=lambda case: _speedup(lab, *case))
    yield "27b-speedup", _speedup(lab, setup, agents), f"{setup.row}, {agents} agents"
    gaps = {case: lab.offline(*case).jct_s / lab.offline(*case, "oracle").jct_s for case in cases}
    for name, choose in (("least", min), ("most", max)):
        setup, agents = choose(gaps, key=lambda case: gaps[case])
        note = f"{setup.row}, {agents} agents"
        yield f"27b-oracle-{name}", gaps[setup, agents], note


def ratios_of_nodes(lab: Lab) -> Found:
    """Prefill and decode nodes 1:1, 2:1 and 1:2."""
    shapes = [DS_27B._replace(prefill=p, decode=d) for p, d in ((1, 1), (2, 1), (1, 2))]
    speedups = {
        (shape, agents): _speedup(lab, shape, agents) for shape in shapes for agents in AGENTS_27B
    }
    yield "pd-mean", statistics.mean(speedups.values()), "64K, 128 to 1024 agents"
    best = max(speedups, key=lambda case: speedups[case])
    shape, agents = best
    yield "pd-best", speedups[best], f"{shape.prefill}P{shape.decode}D, {agents} agents"
    one, prefill, decode = shapes
    pairs: tuple[tuple[str, tuple[Setup, Arm], tuple[Setup, Arm]], ...] = (
        ("pd-basic", (one, "basic"), (decode, "basic")),
        ("pd-cross", (one, "dualpath"), (prefill, "basic")),
        ("pd-dual", (prefill, "dualpath"), (decode, "dualpath")),
    )
    for name, (above, arm_above), (below, arm_below) in pairs:
        ratios = [
            lab.offline(above, agents, arm_above).jct_s
            / lab.offline(below, agents, arm_below).jct_s
            for agents in AGENTS_27B
        ]
        note = f"mean over agents; {min(ratios):.2f} to {max(ratios):.2f}"
        yield name, statistics.mean(ratios), note


def appends(lab: Lab) -> Found:
    """Speed-up as appends grow."""
    speedups = {
        factor: _speedup(lab, DS_660B._replace(append_factor=factor), 1024)
        for factor in APPEND_FACTORS
    }
    trend = ", ".join(f"x{factor:g}: {value:.2f}" for factor, value in speedups.items())
    yield "append-least", min(speedups.values()), trend
    yield "append-most", max(speedups.values()), trend


def capacities(lab: Lab) -> Found:
    """The highest rates within the SLO."""
    ratios = []
    for name, setup in (("capacity-660b", DS_660B), ("capacity-27b", DS_27B)):
        dual, basic = lab.capacity(setup, "dualpath"), lab.capacity(setup, "basic")
        ratios.append(dual.rate_aps / basic.rate_aps)
        note = (
            f"DualPath {dual.rate_aps:.3g} (95 %: {dual.low_aps:.3g} to {dual.high_aps:.3g}, "
            f"{dual.limit.upper()} limits), Basic {basic.rate_aps:.3g} ({basic.low_aps:.3g} to "
            f"{basic.high_aps:.3g}, {basic.limit.upper()}) agents/s"
        )
        yield name, ratios[-1], note
    yield "capacity-mean", statistics.mean(ratios), ""


def ablation(lab: Lab) -> Found:
    """Basic, then one step after the other."""
    steps: tuple[tuple[Arm, str], ...] = (
        ("layerwise", "layerwise"),
        ("dual path", "dual"),
        ("dualpath", "scheduler"),
    )
    for arm, name in steps:
        ratios = [
            1.0
            - lab.offline(DS_660B, agents, arm).jct_s / lab.offline(DS_660B, agents, "basic").jct_s
            for agents in ABLATION_AGENTS
        ]
        note = " and ".join(f"{ratio:.3f}" for ratio in ratios)
        yield f"ablation-{name}", statistics.mean(ratios), note


def balance(lab: Lab) -> Found:
    """How even the storage NICs and the prefill engines are."""
    both = ABLATION_AGENTS
    arms: tuple[tuple[str, Arm], ...] = (("in-turn", "dual path"), ("scheduled", "dualpath"))
    for name, arm in arms:
        windows = statistics.mean(lab.nic_balance(DS_660B, agents, arm) for agents in both)
        runs = [lab.offline(DS_660B, agents, arm).snic_max_over_mean for agents in both]
        window = f"{lab.assumptions.balance_window_s:g} s"
        note = f"in windows of {window}; {statistics.mean(runs):.3f} over the run"
        yield f"snic-{name}", windows, note
    runs = [lab.offline(DS_660B, agents).attention_max_over_mean for agents in both]
    yield "attention", statistics.mean(runs), "few requests are ready at once, so batches differ"


def scale(lab: Lab) -> Found:
    """1,152 GPUs against 48."""
    small, large = lab.offline(DS_660B, 2000), lab.offline(LARGE_OFFLINE, 48_000)
    yield "scale-2p4d", small.jct_s, ""
    yield "scale-48p96d", large.jct_s, f"{large.turns:,} turns"
    yield "scale-ratio", large.jct_s / small.jct_s, ""
    for name, run in (
        ("online", lab.online(DS_660B, 0.4)),
        ("large", lab.online(LARGE_ONLINE, 8.8, measure_s=600.0)),
    ):
        yield f"{name}-ttft", run.ttft_s["mean"], ""
        yield f"{name}-ttst", run.ttst_s["mean"], ""
        yield f"{name}-tpot", run.tpot_s["mean"], ""
    cores = run.wall_s / run.end_s
    yield (
        "scheduler-cores",
        cores,
        "of the simulator and the scheduler in it; the paper's has messages and reports too",
    )


def working_set(lab: Lab) -> Found:
    """KV-cache that the agents come back to."""
    for name, rate in (("low", 0.1), ("high", 0.45)):
        run = lab.online(DS_660B, rate)
        note = f"an agent lives {run.agent_s['mean']:.0f} s"
        yield f"working-set-{name}", run.working_set_bytes, note


EXPERIMENTS: dict[str, Callable[[Lab], Found]] = {
    "offline-660b": offline_660b,
    "offline-27b": offline_27b,
    "pd-ratio": ratios_of_nodes,
    "appends": appends,
    "capacity": capacities,
    "ablation": ablation,
    "balance": balance,
    "scale": scale,
    "working-set": working_set,
}


def check_names(names: Iterable[str]) -> None:
    """Raise InputError for a name that is no experiment's."""
    for name in names:
        if name not in EXPERIMENTS:
            raise unknown_name("experiment", name, EXPERIMENTS)


def reproduce(lab: Lab, only: tuple[str, ...] = ()) -> Iterator[Row]:
    """Yield every figure, or those of the experiments named. Raises InputError for unknown names."""
    check_names(only)
    for name, experiment in EXPERIMENTS.items():
        if only and name not in only:
            continue
        for figure_id, ours, note in experiment(lab):
            given = paper_figures()[figure_id]
            yield Row(
                id=figure_id,
                figure=given.figure,
                quantity=given.quantity,
                paper=given.paper,
                ours=ours,
                error=ours / given.paper - 1.0,
                kind=given.kind,
                fitted=given.fitted,
                note=note,
            )


def _speedup(lab: Lab, setup: Setup, agents: int) -> float:
    return lab.offline(setup, agents, "basic").jct_s / lab.offline(setup, agents).jct_s
