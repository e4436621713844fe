"""A profile made for tests of how it is shown: series of known laws, fitted as the rooms do it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from app.profile_marks import Panel
from calibration import fit
from dualpath_model.profile import (
    AttentionFit,
    Fit,
    Latency,
    PartName,
    Profile,
    Sample,
    Series,
)
from tests.profiles import profile_data


def noisy(values: np.ndarray, seed: int) -> np.ndarray:
    return values * np.exp(np.random.default_rng(seed).normal(0, 0.03, values.shape))


def series_of(name: str, unit: Any, at: list[dict[str, Any]], amount: Any, seconds: Any) -> Series:
    samples = [
        Sample(at=point, amount=float(a), seconds=float(s))
        for point, a, s in zip(at, amount, seconds, strict=True)
    ]
    return Series(name=name, unit=unit, meaning="made", samples=samples)


def messages() -> tuple[Series, Fit]:
    size = np.tile(4096.0 * 4.0 ** np.arange(7), 4)
    seconds = noisy(2e-5 + size / 4e9, 1)
    seconds[5] *= 9  # lies far off
    series = series_of("messages", "B", [{"bytes": int(s)} for s in size], size, seconds)
    return series, fit.latency_bandwidth("messages", series, range(len(size)))


def depths() -> tuple[Series, Fit]:
    depth = np.tile(2.0 ** np.arange(6), 4)
    seconds = noisy(2e6 / (5e9 * depth / (depth + 3)), 2)
    at = [{"depth": int(q)} for q in depth]
    series = series_of("depths", "B", at, np.full(len(depth), 2e6), seconds)
    latency = Latency(count=9, p50=1e-3, p90=2e-3, p99=3e-3, p999=4e-3, most=5e-3)
    timed = [sample.model_copy(update={"latency": latency}) for sample in series.samples]
    series = series.model_copy(update={"samples": timed})
    return series, fit.saturating("depth", series, range(len(depth)), over="depth")


def decode() -> tuple[Series, Fit]:
    moved, batch = (a.ravel() for a in np.meshgrid([1e6, 1e8, 1e9], [1.0, 16.0, 256.0, 1024.0]))
    moved, batch = np.tile(moved, 3), np.tile(batch, 3)
    flop = moved * batch
    seconds = noisy(2e-5 + np.maximum(moved / 1e12, flop / 1e14), 3)
    at = [{"bytes": float(b), "batch": int(n)} for b, n in zip(moved, batch, strict=True)]
    series = series_of("decode_layer", "FLOP", at, flop, seconds)
    return series, fit.roofline("decode_layer", series, range(len(flop)))


def products() -> tuple[Series, Fit]:
    shapes = [("q_a", 128, 1536, 64), ("o", 128, 7168, 32), ("square", 512, 512, 512)]
    at = [
        {"shape": name, "m": m, "n": n, "k": k, "round": turn, "count": 7.0}
        for turn in range(4)
        for name, m, n, k in shapes
    ]
    flop = np.array([2.0 * m * n * k for _, m, n, k in shapes * 4])
    series = series_of("gemm_bf16", "FLOP", at, flop, noisy(flop / 1e12, 4))
    return series, fit.typical("gemm_bf16", series, range(12), parameter="flop_per_s")


def round_trips() -> tuple[Series, Fit]:
    series = series_of("latency", "", [{"bytes": 1}] * 5, [0.0] * 5, noisy(np.full(5, 6e-6), 5))
    return series, fit.typical("latency", series, range(5), parameter="seconds")


def attention() -> tuple[Series, Fit, AttentionFit]:
    chunks = [(cached, bsz) for cached in (0, 1024, 8192) for bsz in (16, 64, 256, 1024)] * 3
    pairs = np.array([bsz * (cached + bsz / 2) for cached, bsz in chunks])
    seconds = noisy(1e-4 + 1e-9 * pairs, 6)
    seconds[3] *= 2  # lies far off
    at = [{"chunks": f"{cached}:{bsz}"} for cached, bsz in chunks]
    series = series_of("attention", "FLOP", at, pairs, seconds)
    found, fitted = fit.attention(
        *("attention_time", series, range(len(pairs))),
        llm_name="ds-27b",
        tensor=1,
        layers=2,
        limit_tokens=0.0,
    )
    return series, found, fitted


@cache
def measured() -> Profile:
    """A profile with all parts, made of samples that are fitted as the rooms do it."""
    data = Profile.model_validate(profile_data())
    content = {
        PartName.GPU: [decode(), products()],
        PartName.STORAGE: [depths()],
        PartName.NETWORK: [messages(), round_trips()],
    }
    parts = {
        name: part.model_copy(
            update={
                "series": [series for series, _ in content.get(name, [])],
                "fits": [found for _, found in content.get(name, [])],
                "warnings": [f"a warning about {name}"],
            }
        )
        for name, part in data.parts.items()
    }
    return data.model_copy(update={"parts": parts})


def only(*names: PartName) -> Profile:
    whole = measured()
    return whole.model_copy(update={"parts": {name: whole.parts[name] for name in names}})


def samples_drawn(panel: Panel) -> int:
    return sum(len(dots.x) for dots in panel.dots if dots.symbol == "circle")
