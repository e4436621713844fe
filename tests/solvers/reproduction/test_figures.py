"""The figures held against: those of the paper, and the arithmetic from runs to a figure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dualpath_model.errors import InputError
from solvers.reproduction.figures import EXPERIMENTS, paper_figures, reproduce
from solvers.reproduction.fit import TARGETS
from solvers.reproduction.lab import DS_27B, DS_660B, LARGE_OFFLINE, LARGE_ONLINE, Setup
from tests.conftest import ROOT

PAPER = ROOT.parent / "shared" / "paper.md"

TABLE: dict[str, list[tuple[str, str | None, float]]] = {
    "offline DS 660B, best speed-up over Basic": [
        ("1.87x", "660b-speedup", 1.87),
        ("about equal to Oracle", "660b-oracle", 1.0),
    ],
    "offline DS 27B (1P1D), best": [
        ("1.78x", "27b-speedup", 1.78),
        ("1.09", "27b-oracle-least", 1.09),
        ("1.85x slower than Oracle", "27b-oracle-most", 1.85),
    ],
    "DS 27B at 1P1D, 2P1D, 1P2D": [
        ("1.64x mean", "pd-mean", 1.64),
        ("2.46x best", "pd-best", 2.46),
        ("Basic 1P1D ~ Basic 1P2D", "pd-basic", 1.0),
        ("DualPath 1P1D ~ Basic 2P1D", "pd-cross", 1.0),
        ("DualPath 2P1D ~ DualPath 1P2D", "pd-dual", 1.0),
    ],
    "append length scaled, DS 660B 64K, 1024 agents": [
        ("1.82", "append-least", 1.82),
        ("1.99x", "append-most", 1.99),
    ],
    "online capacity (TTFT <= 4 s, TPOT <= 50 ms)": [
        ("2.25x DS 660B", "capacity-660b", 2.25),
        ("1.67x DS 27B", "capacity-27b", 1.67),
        ("mean 1.96x", "capacity-mean", 1.96),
    ],
    "ablation, 64K, 1024/2048 agents, JCT against Basic": [
        ("layerwise -17.21 %", "ablation-layerwise", 0.1721),
        ("dual path -38.19 %", "ablation-dual", 0.3819),
        ("scheduler -45.62 %", "ablation-scheduler", 0.4562),
    ],
    "SNIC max/mean traffic": [
        ("1.53 round robin", "snic-in-turn", 1.53),
        ("1.18", "snic-scheduled", 1.18),
        ("attention time max/mean 1.06", "attention", 1.06),
    ],
    "scale offline": [
        ("2P4D 2K agents 3,167 s", "scale-2p4d", 3167.0),
        ("48P96D 48K agents 3,201 s", "scale-48p96d", 3201.0),
        ("", "scale-ratio", round(3201.0 / 3167.0, 4)),
    ],
    "scale online": [
        ("2P4D 0.4 APS", None, 0.0),
        ("TTFT 1.739 s", "online-ttft", 1.739),
        ("TTST 0.228 s", "online-ttst", 0.228),
        ("TPOT 0.039 s", "online-tpot", 0.039),
        ("44P88D 8.8 APS", None, 0.0),
        ("1.847", "large-ttft", 1.847),
        ("0.194", "large-ttst", 0.194),
        ("0.036", "large-tpot", 0.036),
    ],
    "scheduler cost": [
        ("< 10 CPU cores", "scheduler-cores", 10.0),
        ("1,152 GPUs", None, 0.0),
    ],
    "working set ~ lambda * mean JCT * total/2": [
        ("69 GB at 0.1 APS", "working-set-low", 69e9),
        ("681 GB at 0.45 APS", "working-set-high", 681e9),
    ],
}
"""Rows of the paper's results as ../shared/paper.md, section 6, has them: words, our id, value in SI."""
FIGURES = {name: value for row in TABLE.values() for _, name, value in row if name}


# ---- figures.yaml --------------------------------------------------------------------------------


def test_the_figures_are_the_papers() -> None:
    given = {name: figure.paper for name, figure in paper_figures().items()}
    assert given == pytest.approx(FIGURES, rel=1e-9)


@pytest.mark.skipif(not PAPER.exists(), reason="the notes on the paper are not here")
def test_every_row_of_the_notes_is_in_the_table_of_this_test() -> None:
    """... and no number of a row is left out."""
    section = PAPER.read_text().split("\n## 6.")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    cells = {heading: cell for heading, cell in rows if heading != "figure"}
    assert set(cells) == set(TABLE)
    for heading, cell in cells.items():
        left = cell
        for words, _, _ in TABLE[heading]:
            assert words in left, (heading, words)
            left = left.replace(words, "", 1)
        assert not re.search(r"\d", left), (heading, left)


def test_only_the_targets_of_the_fit_are_marked() -> None:
    assert {name for name, figure in paper_figures().items() if figure.fitted} == set(TARGETS)
    assert len(TARGETS) == 3


def test_kinds_are_those_of_the_units() -> None:
    """Seconds and bytes are absolute, "less than" in brackets is a bound, what follows from other rows
    does not count by itself, all else has no unit.
    """
    for figure in paper_figures().values():
        unit = figure.quantity.endswith((", s", ", bytes"))
        expected = "bound" if '"less than"' in figure.quantity else "absolute" if unit else "ratio"
        if figure.id in ("capacity-mean", "scale-ratio"):
            expected = "derived"
        assert figure.kind == expected, figure


# ---- from runs to figures ------------------------------------------------------------------------

Jct = Callable[[Setup, int, str], float]


class Fake:
    """A laboratory whose runs are made up. ``jct``: completion time of a batch."""

    def __init__(self, jct: Jct = lambda setup, agents, arm: 100.0) -> None:
        self.assumptions = SimpleNamespace(balance_window_s=2.0)
        self.jct = jct
        self.asked: list[tuple[Any, ...]] = []
        self.rates: dict[tuple[str, str], float] = {}
        self.means: dict[tuple[int, float], dict[str, float]] = {}
        self.balances: dict[tuple[int, str], float] = {}

    def offline(
        self, setup: Setup, agents: int, arm: str = "dualpath", seed: int = 0
    ) -> SimpleNamespace:
        self.asked.append((setup, agents, arm))
        return SimpleNamespace(
            jct_s=self.jct(setup, agents, arm),
            turns=agents * 157,
            snic_max_over_mean=1.5 if arm == "dual path" else 1.1,
            attention_max_over_mean={1024: 1.3, 2048: 1.1}.get(agents, 9.0),
        )

    def online(
        self,
        setup: Setup,
        rate_aps: float,
        arm: str = "dualpath",
        seed: int = 0,
        measure_s: float | None = None,
    ) -> SimpleNamespace:
        self.asked.append((setup, rate_aps, arm))
        mean = self.means.get((setup.prefill, rate_aps), {})
        return SimpleNamespace(
            ttft_s={"mean": mean.get("ttft", 1.0), "p50": -1.0},
            ttst_s={"mean": mean.get("ttst", 1.0), "p50": -1.0},
            tpot_s={"mean": mean.get("tpot", 1.0), "p50": -1.0},
            agent_s={"mean": 500.0},
            working_set_bytes=1e11 * rate_aps,
            wall_s=mean.get("wall", 1.0),
            end_s=4200.0,
        )

    def nic_balance(self, setup: Setup, agents: int, arm: str) -> float:
        self.asked.append((setup, agents, arm))
        return self.balances.get((agents, arm), 1.0)

    def capacity(self, setup: Setup, arm: str, replications: int = 3) -> SimpleNamespace:
        self.asked.append((setup, arm))
        rate = self.rates.get((setup.llm, arm), 1.0)
        return SimpleNamespace(rate_aps=rate, low_aps=0.9 * rate, high_aps=1.1 * rate, limit="ttft")


def found(lab: Fake, experiment: str) -> dict[str, float]:
    return {row.id: row.ours for row in reproduce(lab, (experiment,))}  # type: ignore[arg-type]


def note(lab: Fake, experiment: str, figure: str) -> str:
    rows = reproduce(lab, (experiment,))  # type: ignore[arg-type]
    return next(row.note for row in rows if row.id == figure)


def test_the_experiments_give_every_figure_once() -> None:
    ids = Counter(row.id for row in reproduce(Fake()))  # type: ignore[arg-type]
    assert ids == Counter(list(paper_figures()))
    for name in EXPERIMENTS:
        assert set(found(Fake(), name)) <= set(paper_figures())


def test_a_row_is_the_papers_figure_with_ours() -> None:
    for row in reproduce(Fake()):  # type: ignore[arg-type]
        figure = paper_figures()[row.id]
        for field in ("figure", "quantity", "paper", "kind", "fitted"):
            assert getattr(row, field) == getattr(figure, field)
        assert row.ours == pytest.approx(row.paper * (1 + row.error))


def test_the_best_of_the_large_llm_is_by_ratio() -> None:
    """The best is where Basic takes longest of DualPath, not where DualPath is fastest."""
    best = {"basic": 100.0, "dualpath": 40.0, "oracle": 32.0}
    fast = {"basic": 2.0, "dualpath": 1.0, "oracle": 0.5}

    def jct(setup: Setup, agents: int, arm: str) -> float:
        assert setup._replace(row="64K") == DS_660B
        return (best if (setup.row, agents) == ("48K", 512) else fast)[arm]

    lab = Fake(jct)
    assert found(lab, "offline-660b") == pytest.approx({"660b-speedup": 2.5, "660b-oracle": 1.25})
    assert note(lab, "offline-660b", "660b-speedup") == "48K, 512 agents"
    cases = {(setup.row, agents) for setup, agents, arm in lab.asked if arm == "basic"}
    assert cases == {(row, n) for row in ("32K", "48K", "64K") for n in (256, 512, 1024, 2048)}


def test_the_small_llm_is_held_against_the_oracle_everywhere() -> None:
    oracle = {("32K", 128): 45.0, ("64K", 1024): 10.0}

    def jct(setup: Setup, agents: int, arm: str) -> float:
        assert setup._replace(row="64K") == DS_27B
        at = (setup.row, agents)
        dual = 20.0 if at == ("48K", 256) else 50.0
        return {"basic": 60.0, "dualpath": dual, "oracle": oracle.get(at, 15.0)}[arm]

    lab = Fake(jct)
    assert found(lab, "offline-27b") == pytest.approx(
        {"27b-speedup": 3.0, "27b-oracle-least": 50 / 45, "27b-oracle-most": 5.0}
    )
    assert note(lab, "offline-27b", "27b-oracle-most") == "64K, 1024 agents"


def test_ratios_of_nodes() -> None:
    """Seconds by (prefill, decode) nodes; one case differs, so that means are over cases."""
    basic = {(1, 1): 100.0, (2, 1): 60.0, (1, 2): 90.0}
    dual = {(1, 1): 50.0, (2, 1): 40.0, (1, 2): 36.0}

    def jct(setup: Setup, agents: int, arm: str) -> float:
        nodes = (setup.prefill, setup.decode)
        if (nodes, agents, arm) == ((1, 2), 128, "dualpath"):
            return 18.0
        return (basic if arm == "basic" else dual)[nodes]

    assert found(Fake(jct), "pd-ratio") == pytest.approx(
        {
            "pd-mean": (4 * 2.0 + 4 * 1.5 + 3 * 2.5 + 5.0) / 12,
            "pd-best": 5.0,
            "pd-basic": 100 / 90,
            "pd-cross": 50 / 60,
            "pd-dual": (3 * 40 / 36 + 40 / 18) / 4,
        }
    )


def test_appends_give_the_least_and_the_most() -> None:
    speedups = {0.5: 1.7, 1.0: 2.0, 2.0: 1.6, 4.0: 1.2}

    def jct(setup: Setup, agents: int, arm: str) -> float:
        assert (agents, setup._replace(append_factor=1.0)) == (1024, DS_660B)
        return 10.0 * (speedups[setup.append_factor] if arm == "basic" else 1.0)

    got = found(Fake(jct), "appends")
    assert got == pytest.approx({"append-least": 1.2, "append-most": 2.0})


def test_capacities_are_ratios_of_rates() -> None:
    lab = Fake()
    lab.rates = {
        ("deepseek-v3.2", "dualpath"): 0.45,
        ("deepseek-v3.2", "basic"): 0.2,
        ("ds-27b", "dualpath"): 3.0,
        ("ds-27b", "basic"): 2.0,
    }
    assert found(lab, "capacity") == pytest.approx(
        {"capacity-660b": 2.25, "capacity-27b": 1.5, "capacity-mean": 1.875}
    )


def test_the_ablation_is_against_basic_at_the_same_number_of_agents() -> None:
    at_1024 = {"basic": 100.0, "layerwise": 80.0, "dual path": 60.0, "dualpath": 50.0}
    at_2048 = {"basic": 400.0, "layerwise": 360.0, "dual path": 280.0, "dualpath": 240.0}

    def jct(setup: Setup, agents: int, arm: str) -> float:
        return {1024: at_1024, 2048: at_2048}[agents][arm]

    assert found(Fake(jct), "ablation") == pytest.approx(
        {"ablation-layerwise": 0.15, "ablation-dual": 0.35, "ablation-scheduler": 0.45}
    )


def test_balance_is_a_mean_over_both_batches() -> None:
    lab = Fake()
    lab.balances = {
        (1024, "dual path"): 1.6,
        (2048, "dual path"): 1.4,
        (1024, "dualpath"): 1.3,
        (2048, "dualpath"): 1.1,
    }
    assert found(lab, "balance") == pytest.approx(
        {"snic-in-turn": 1.5, "snic-scheduled": 1.2, "attention": 1.2}
    )


def test_scale_takes_each_figure_from_its_own_run() -> None:
    def jct(setup: Setup, agents: int, arm: str) -> float:
        assert arm == "dualpath"
        return {(DS_660B, 2000): 3000.0, (LARGE_OFFLINE, 48_000): 3300.0}[setup, agents]

    lab = Fake(jct)
    lab.means = {
        (2, 0.4): {"ttft": 1.7, "ttst": 0.2, "tpot": 0.04, "wall": 1.0},
        (44, 8.8): {"ttft": 1.8, "ttst": 0.3, "tpot": 0.05, "wall": 42.0},
    }
    assert found(lab, "scale") == pytest.approx(
        {
            "scale-2p4d": 3000.0,
            "scale-48p96d": 3300.0,
            "scale-ratio": 1.1,
            "online-ttft": 1.7,
            "online-ttst": 0.2,
            "online-tpot": 0.04,
            "large-ttft": 1.8,
            "large-ttst": 0.3,
            "large-tpot": 0.05,
            "scheduler-cores": 0.01,
        }
    )


def test_working_sets_are_at_the_papers_rates() -> None:
    assert found(Fake(), "working-set") == pytest.approx(
        {"working-set-low": 1e10, "working-set-high": 4.5e10}
    )


def test_the_clusters_are_the_papers() -> None:
    """2P4D is 48 GPUs, 48P96D 1,152; the online one has 22 times the nodes and 22 times the agents."""
    assert (DS_660B.prefill, DS_660B.decode) == (2, 4)
    assert (DS_27B.prefill, DS_27B.decode) == (1, 1)
    assert (LARGE_OFFLINE.prefill + LARGE_OFFLINE.decode) * 8 == 1152
    assert (LARGE_ONLINE.prefill, LARGE_ONLINE.decode) == (44, 88)
    assert pytest.approx(LARGE_ONLINE.prefill / DS_660B.prefill) == 8.8 / 0.4
    assert pytest.approx(LARGE_OFFLINE.prefill / DS_660B.prefill) == 48_000 / 2000


def test_an_unknown_experiment_is_refused_before_anything_runs() -> None:
    lab = Fake()
    with pytest.raises(InputError, match=r"experiment 'ablatoin' is unknown; .* ablation"):
        list(reproduce(lab, ("balance", "ablatoin")))  # type: ignore[arg-type]
    assert not lab.asked
