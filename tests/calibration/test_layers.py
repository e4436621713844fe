"""The layers room: whole series and figures, what is said, the sweeps' bookkeeping."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration import device
from calibration.clock import Clock, Work
from calibration.layer_points import decode_points
from calibration.layer_room import Shelf, furnish, held_experts
from calibration.layer_sweep import ROUNDS, CostedPoint, sweep
from calibration.layers import measure_layers
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.llm import KvDtype
from tests.calibration.tiny_llms import CPU, KINDS, LLMS


@cache
def measured(kind: str) -> tuple[Measured, float, list[float]]:
    told: list[float] = []
    begun = time.perf_counter()
    found = measure_layers(
        LLMS[kind],
        kv_dtype=KvDtype.FP8,
        device=CPU,
        seconds=1.5,
        tell=lambda share, _: told.append(share),
    )
    return found, time.perf_counter() - begun, told


@pytest.mark.parametrize("kind", KINDS)
def test_measuring_gives_whole_series_fits_and_figures(kind: str) -> None:
    found, took, told = measured(kind)
    assert [series.name for series in found.series] == [
        "attention",
        "prefill_layer",
        "decode_layer",
    ]
    for series in found.series:
        repeats = Counter(str(sample.at) for sample in series.samples)
        assert max(repeats.values()) - min(repeats.values()) <= 1  # rounds; the last may be cut off
        assert all(sample.amount > 0 for sample in series.samples)
    left_out = [note for note in found.warnings if "is left out" in note]
    assert len(found.figures) + len(left_out) == 6
    assert "attention_flop_per_s" in found.figures
    names = {fit.name for fit in found.fits}
    assert {estimate.source for estimate in found.figures.values()} <= names
    (coefficients,) = found.attention
    assert (coefficients.llm, coefficients.tensor) == (LLMS[kind].name, 1)
    limit = {"gqa_sliding": 16.0, "mla_sparse": 16.0}.get(kind, 0.0)
    assert coefficients.coefficients["limit_tokens"] == limit
    assert took < 60.0  # hangs end; 1.5 s on an idle machine
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_what_was_not_measured_as_asked_is_said() -> None:
    found, *_ = measured("mla_sparse")
    said = " ".join(found.warnings)
    assert "KV was asked for as fp8" in said
    assert "computes in fp8" in said
    assert "the expert ones were measured" in said
    assert found.settings["layers_held_experts"] == 8


def test_bytes_of_a_decode_step_grow_as_the_indexer_lets_them() -> None:
    room, *_ = furnish(
        LLMS["mla_sparse"], device=CPU, dtype=torch.float32, tensor=1, seconds=0.1, seed=0
    )
    decode = {(p.at["batch"], p.at["context"]): p.at["bytes"] for p in decode_points(room)}
    more = float(str(decode[4, 1024])) - float(str(decode[4, 128]))
    assert more == 4 * 8 * (1024 - 128) * 4  # beyond top_k only the indexer's keys grow


def test_amounts_are_what_the_models_count_for_one_layer() -> None:
    found, *_ = measured("gqa_sliding")
    llm = LLMS["gqa_sliding"]
    for sample in found.series[0].samples:
        chunks = [tuple(map(float, c.split(":"))) for c in str(sample.at["chunks"]).split(",")]
        total = sum(float(llm.prefill_flops(*chunk).attention) for chunk in chunks)
        assert sample.amount == pytest.approx(total / 4)
    without_attention = 0
    for sample in found.series[1].samples:
        cached, bsz, attention = (
            float(str(sample.at[key])) for key in ("cached", "bsz", "attention_flop")
        )
        counted = llm.prefill_flops(cached, bsz)
        assert sample.amount - attention == pytest.approx(float(counted.linear) / 4)
        assert attention in (0.0, pytest.approx(float(counted.attention) / 4))
        without_attention += attention == 0.0
    assert 0 < without_attention < len(found.series[1].samples)


def test_ctrl_c_is_passed_on() -> None:
    def tell(share: float, what: str) -> None:
        if share > 0.3:
            raise KeyboardInterrupt(what)

    with pytest.raises(KeyboardInterrupt):
        measure_layers(LLMS["gqa"], kv_dtype=KvDtype.BF16, device=CPU, seconds=0.5, tell=tell)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor": 4}, "tensor 4 does not split the 6 heads"),
        ({"tensor": 0}, "tensor 0"),
        ({"seconds": 0.0}, "seconds 0.0 must be"),
        ({"seconds": math.nan}, "seconds nan must be"),
    ],
)
def test_a_wrong_argument_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {"seconds": 1.0, "tensor": 1} | changes
    with pytest.raises(InputError, match=said):
        measure_layers(
            LLMS["gqa"], kv_dtype=KvDtype.BF16, device=CPU, tell=lambda *_: None, **asked
        )


def test_a_layer_that_does_not_fit_the_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda _: 1e5)
    with pytest.raises(InputError, match="more than an eighth of the free memory"):
        measure_layers(
            LLMS["gqa"], kv_dtype=KvDtype.BF16, device=CPU, seconds=1.0, tell=lambda *_: None
        )


@given(affordable=st.floats(-10, 1000), experts=st.integers(1, 400), active=st.integers(1, 12))
def test_held_experts_are_enough_for_a_token(affordable: float, experts: int, active: int) -> None:
    active = min(active, experts)
    held = held_experts(experts, active, affordable)
    assert active <= held <= experts
    assert held == experts or math.log2(held).is_integer()
    assert held < 2 * max(active, affordable)


class _CountingClock(Clock):
    """Runs nothing; a call takes as long as its work says."""

    def seconds(self, work: Work) -> float:
        work()
        return spent.pop()


spent: list[float] = []


def _swept(budget_s: float) -> list[dict[str, Any]]:
    def point(cost: float) -> CostedPoint:
        return CostedPoint(
            {"cost": cost}, cost, cost, lambda: [(1.0, [lambda: spent.append(cost)])]
        )

    found = sweep(
        [point(cost) for cost in (64.0, 1.0, 8.0, 2.0, 32.0, 4.0, 16.0, 128.0)],
        _CountingClock(CPU),
        seconds=budget_s,
        least_points=4,
        rng=random.Random(1),
        tell=lambda *_: None,
    )
    return [sample.at for sample in found]


@pytest.mark.parametrize(
    ("budget_s", "most"), [(1.0, 8.0), (254.0, 32.0), (256.0, 32.0), (508.0, 64.0), (1e9, 128.0)]
)
def test_a_sweep_measures_the_cheapest_points_that_fit_in_whole_rounds(
    budget_s: float, most: float
) -> None:
    counts = Counter(at["cost"] for at in _swept(budget_s))
    assert max(counts) == most
    assert sorted(counts) == [2.0**n for n in range(int(math.log2(most)) + 1)]
    assert set(counts.values()) <= {ROUNDS[1]}  # the fake seconds pass in no time


def test_pieces_of_the_shelf_lie_apart_until_it_is_used_up() -> None:
    shelf = Shelf(torch.zeros(950))
    pieces = [shelf.cut(10, 10) for _ in range(7)]
    for number, piece in enumerate(pieces):
        piece.fill_(number)
    assert [float(piece.max()) for piece in pieces] == list(range(7))
    shelf.cut(10, 10).fill_(9.0)  # no room for an eighth: from the start again
    assert float(pieces[0].max()) == 9.0
    assert not shelf.fits(951)
