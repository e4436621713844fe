"""What assumptions move: each variant changes what it says, and is held against the default."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from solvers.reproduction import effects as module
from solvers.reproduction.effects import OUTCOMES, VARIANTS, effects
from solvers.reproduction.lab import DS_660B, Assumptions, Setup


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose every time grows with ``batch_requests``, TTFT alone with ``fetch_s``."""

    class Made:
        def __init__(self, assumptions: Assumptions) -> None:
            self.slow = assumptions.batch_requests / 64
            self.fetch = assumptions.fetch_s / 0.05

        def offline(self, setup: Setup, agents: int, arm: str = "dualpath") -> SimpleNamespace:
            assert setup == DS_660B
            seconds = {(2000, "dualpath"): 3000.0, (2048, "dualpath"): 3100.0}
            # Basic does not slow down, so the speed-up changes too
            own = self.slow if arm == "dualpath" else 1.0
            return SimpleNamespace(jct_s=seconds.get((agents, arm), 6200.0) * own)

        def online(self, setup: Setup, rate: float, arm: str = "dualpath") -> SimpleNamespace:
            assert (rate, arm) in {(0.4, "dualpath"), (0.25, "basic")}
            return SimpleNamespace(
                ttft_s={"mean": rate * self.fetch},
                tpot_s={"mean": 0.04 * self.slow},
                working_set_bytes=5e11 * self.slow,
            )

    monkeypatch.setattr(module, "Lab", Made)


@pytest.mark.parametrize("meaning", VARIANTS)
def test_a_variant_is_a_change(meaning: str) -> None:
    changes = VARIANTS[meaning]
    base = Assumptions()
    assert changes
    for name, value in changes.items():
        assert getattr(base, name) != value, name
    assert replace(base, **changes) != base


@pytest.mark.usefixtures("made_up")
def test_the_default_comes_first_and_unchanged() -> None:
    found = list(effects(Assumptions()))
    assert [effect.meaning for effect in found] == ["as assumed", *VARIANTS]
    assert found[0].outcomes == pytest.approx(
        {
            "jct_2k_s": 3000.0,
            "speedup": 2.0,
            "ttft_s": 0.4,
            "tpot_s": 0.04,
            "basic_ttft_s": 0.25,
            "working_set_bytes": 5e11,
        }
    )
    assert set(found[0].change.values()) == {0.0}
    for effect in found:
        assert set(effect.outcomes) == set(effect.change) == set(OUTCOMES)


@pytest.mark.usefixtures("made_up")
def test_changes_are_relative_to_the_base_that_was_given() -> None:
    base = Assumptions(batch_requests=128)
    _, half, often = effects(base, {"half": {"batch_requests": 64}, "often": {"fetch_s": 0.01}})
    assert half.change == pytest.approx(
        {
            "jct_2k_s": -0.5,
            "speedup": 1.0,
            "ttft_s": 0.0,
            "tpot_s": -0.5,
            "basic_ttft_s": 0.0,
            "working_set_bytes": -0.5,
        }
    )
    assert often.change["ttft_s"] == pytest.approx(-0.8)
    assert often.change["jct_2k_s"] == pytest.approx(0.0)
