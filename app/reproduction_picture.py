"""The reproduction as one picture: how near each figure came, completion times, TTFT against load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.picture import save
from app.reproduction_view import AIM, COLOURS, NAMES, number, standing, summary

_HOW = {"fitted": "#999999", "within 10 %": "#0072B2", "off": "#D55E00"}


def draw_reproduction(found: Mapping[str, Any], path: Path) -> None:
    """Write the picture (.png or .svg). Raises InputError if ``path`` cannot be written to."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    sides: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1.0))
    left, right = sides
    _errors(left.subplots(), found["rows"])
    above, below = right.subplots(2, 1)
    _batches(above, found["batches"])
    _latency(below, found["curves"])
    figure.suptitle(f"The paper's evaluation, simulated: {summary(found['rows'])}", fontsize=13)
    save(figure, path)


def _errors(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    kept = [row for row in rows if row["kind"] != "bound"][::-1]
    axes.axvspan(-100 * AIM, 100 * AIM, color="#0072B2", alpha=0.08, lw=0)
    axes.axvline(0, color="#333333", lw=0.8)
    for place, row in enumerate(kept):
        axes.plot(100 * row["error"], place, "o", color=_HOW[standing(row)], ms=6)
        axes.annotate(
            number(row["ours"]),
            (100 * row["error"], place),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    names = [
        f"{row['figure'].split(',')[0]}: {row['quantity']} ({number(row['paper'])})" for row in kept
    ]
    axes.set_yticks(range(len(kept)), names, fontsize=7.5)
    axes.set_xlabel("ours against the paper's, %   (in brackets the paper's, beside the dots ours)")
    for how, colour in _HOW.items():
        axes.plot([], [], "o", color=colour, label=how)
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _batches(axes: Any, batches: list[Mapping[str, Any]]) -> None:
    width = 0.16
    for k, (arm, name) in enumerate(NAMES.items()):
        places = [i + (k - 2) * width for i in range(len(batches))]
        values = [batch["jct_s"][arm] for batch in batches]
        axes.bar(places, values, width, color=COLOURS[arm], label=name)
    axes.set_xticks(range(len(batches)), [f"{batch['agents']:,} agents" for batch in batches])
    axes.set_ylabel("completion time, s")
    axes.set_title("offline, 2P4D, 64K", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _latency(axes: Any, curves: list[Mapping[str, Any]]) -> None:
    for arm in ("basic", "dualpath"):
        points = [point for point in curves if point["arm"] == arm]
        rates = [point["rate_aps"] for point in points]
        for part, line in (("mean", "-"), ("p99", ":")):
            values = [point["ttft_s"][part] for point in points]
            name = f"{'Basic' if arm == 'basic' else 'DualPath'}, {part}"
            axes.plot(rates, values, line, marker=".", color=COLOURS[arm], label=name)
    axes.axhline(4.0, color="#333333", lw=0.8, ls="--")
    axes.annotate(
        "SLO, 4 s", (rates[0], 4.0), xytext=(0, 3), textcoords="offset points", fontsize=8
    )
    axes.plot(0.4, 1.739, "x", color="k", ms=8, label="paper, DualPath at 0.4")
    axes.set_yscale("log")
    axes.set_xlabel("agents/s")
    axes.set_ylabel("TTFT, s")
    axes.set_title("online, 2P4D, 64K", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
