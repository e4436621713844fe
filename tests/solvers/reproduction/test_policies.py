"""Policies against each other: paired seeds, one rate for all, which way is better."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from solvers.reproduction import policies as module
from solvers.reproduction.policies import BASE, MEASURES, Case, Comparison, compare
from solvers.simulator.experiments import Outcome
from tests.solvers.simulator.small import example

SEEDS = 4
CASE = Case("made up", example(), agents=30, share=0.5, warmup_s=100.0, measure_s=300.0)
FASTER = {BASE: 1.0, "split": 0.8, "priced": 1.0}  # times of each policy
RATES = {BASE: 1.0, "split": 1.25, "priced": 0.9}
LUCK = np.array([1.0, 3.0, 0.5, 2.0])  # of a seed, the same for every policy


@pytest.fixture
def asked(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> list[tuple[str, dict[str, Any]]]:
    """Every run that was asked for; results scale with policy and seed. The parameter: a policy whose
    runs Ctrl-C cuts off.
    """
    cut = getattr(request, "param", None)
    calls: list[tuple[str, dict[str, Any]]] = []

    def capacity(scenario: object, policy: str, **how: Any) -> SimpleNamespace:
        calls.append((policy, {"capacity": True, **how}))
        rates = tuple((RATES[policy] * LUCK).tolist())
        return SimpleNamespace(rates_aps=rates, rate_aps=float(np.mean(rates)))

    def execute(scenario: object, policy: str, **how: Any) -> SimpleNamespace:
        calls.append((policy, how))
        seconds = FASTER[policy] * LUCK[how["seed"]]
        summary = SimpleNamespace(
            ttft_s={"p50": seconds, "p99": 4 * seconds, "mean": -1.0},
            tpot_s={"mean": seconds / 100, "p50": -1.0},
            snic_max_over_mean=1 + seconds,
            jct_s=1000 * seconds,
            interrupted=policy == cut,
        )
        return Outcome(summary, None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "capacity", capacity)
    monkeypatch.setattr(module, "execute", execute)
    return calls


def compared(*policies: str, **how: Any) -> dict[tuple[str, str], Comparison]:
    found = list(compare(CASE, policies, replications=SEEDS, **how))
    assert [(c.policy, c.measure) for c in found] == [
        (policy, measure) for policy in (BASE, *policies) for measure in MEASURES
    ]
    return {(c.policy, c.measure): c for c in found}


@pytest.mark.usefixtures("asked")
def test_differences_are_taken_seed_by_seed() -> None:
    """Seeds differ six times over, the ratio not at all: so the change is certain."""
    found = compared("split")
    jct = found["split", "jct_s"]
    assert jct.mean == pytest.approx(800 * LUCK.mean())
    assert jct.half_width > 0.5 * jct.mean
    assert jct.change == pytest.approx(-0.2)
    assert jct.change_half_width == pytest.approx(0.0, abs=1e-12)


@pytest.mark.usefixtures("asked")
def test_the_papers_policy_is_the_zero() -> None:
    for (policy, _), comparison in compared("split").items():
        if policy == BASE:
            assert comparison.change == comparison.change_half_width == 0.0


@pytest.mark.usefixtures("asked")
def test_better_is_more_capacity_and_less_of_all_else() -> None:
    found = compared("split", "priced")
    assert found["split", "capacity_aps"].better_by == pytest.approx(0.25)
    assert found["priced", "capacity_aps"].better_by == pytest.approx(-0.1)
    for measure in MEASURES[1:]:
        assert found["split", measure].better_by > 0.05
        assert found["priced", measure].better_by == pytest.approx(0.0)


def test_all_policies_meet_the_same_agents_at_the_same_rate(
    asked: list[tuple[str, dict[str, Any]]],
) -> None:
    compared("split", "priced")
    rate = CASE.share * float(LUCK.mean()) * RATES[BASE]

    def runs(policy: str, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        return [how for name, how in asked if name == policy and wanted(how)]

    for policy in (BASE, "split", "priced"):
        online = runs(policy, lambda how: "rate_aps" in how)
        batches = runs(policy, lambda how: "rate_aps" not in how and "capacity" not in how)
        (search,) = runs(policy, lambda how: "capacity" in how)
        assert [how["seed"] for how in online] == [how["seed"] for how in batches] == [0, 1, 2, 3]
        assert [how["rate_aps"] for how in online] == pytest.approx([rate] * SEEDS)
        assert {(how["warmup_s"], how["until_s"]) for how in online} == {(100.0, 400.0)}
        assert min(how["agents"] for how in online) > rate * 400.0
        assert {how["agents"] for how in batches} == {30}
        assert (search["replications"], search["warmup_s"], search["measure_s"]) == (
            4,
            100.0,
            300.0,
        )


@pytest.mark.usefixtures("asked")
def test_it_says_what_it_does() -> None:
    said: list[str] = []
    compared("split", said=said.append)
    assert len(said) == 3 * 2
    assert all(text.startswith("made up: ") for text in said)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("asked", ["split"], indirect=True)
def test_a_run_that_is_cut_off_is_compared_with_nothing() -> None:
    found: list[Comparison] = []
    with pytest.raises(KeyboardInterrupt):
        found.extend(compare(CASE, ("split",), replications=SEEDS))
    assert {comparison.policy for comparison in found} <= {BASE}
