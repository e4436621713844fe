"""One still picture of a plan, PNG or SVG, for a machine without a browser: matplotlib, no display."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from app import plan_view as view
from app.files import check_writable, write_atomically
from dualpath_model.errors import InputError
from dualpath_model.scenario import Scenario
from solvers.planner import Plan

_SIZE_INCHES, _DPI = (16.0, 9.0), 100
_INK, _PAPER, _GRID = "#222222", "#ffffff", "#dddddd"


def draw_plan(plan: Plan, path: Path, scenario: Scenario | None = None) -> None:
    """Draw the two read paths, the utilisation and the P/D axis of ``plan`` into ``path``.

    What passes between the pools follows from the scenario's step table, so it is left out where only
    the plan is given. Raises InputError for a suffix other than .png or .svg and for a place that
    cannot be written to.
    """
    check_writable(path)
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context({"font.size": 13, "text.color": _INK, "svg.hashsalt": "dualpath"}):
        figure = pyplot.figure(figsize=_SIZE_INCHES, dpi=_DPI, facecolor=_PAPER)
        figure.text(0.03, 0.945, _headline(plan), fontsize=21, weight="bold", va="top")
        figure.text(0.03, 0.03, _footer(plan), fontsize=12, color="#555555")
        _paths(figure.add_axes((0.02, 0.09, 0.44, 0.71)), plan, scenario)
        _bars(figure.add_axes((0.66, 0.405, 0.31, 0.415)), plan)
        _ratio(figure.add_axes((0.52, 0.13, 0.45, 0.115)), plan)
        save(figure, path)
        pyplot.close(figure)


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, the same bytes for the same figure, whole or not at all.

    Raises InputError for a suffix other than .png or .svg and for a place that cannot be written to.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg"):
        raise InputError(f"{path}: a picture ends in .png or .svg; rename it")
    picture = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {}
    figure.savefig(picture, format=kind, metadata=metadata)
    write_atomically(path, picture.getvalue())


def _headline(plan: Plan) -> str:
    """Return the headline with today's limit on one line and the gain on the next."""
    return "\n".join(
        _wrapped(part, 88) for part in view.headline(plan).replace("; ", ";\n").split("\n")
    )


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)).replace("$", r"\$")


def _footer(plan: Plan) -> str:
    name = plan.scenario if len(plan.scenario) < 70 else f"{plan.scenario[:67]}..."
    return f"{name}   ·   {view.oracle_sentence(plan)}".replace("$", r"\$")


def _paths(axes: Any, plan: Plan, scenario: Scenario | None) -> None:
    """Draw storage, the two pools and what moves between them, as wide as its bytes/s."""
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.axis("off")
    sides = view.side_rates(plan)
    moved = view.streams(plan, scenario) if scenario is not None else {}
    prefill, decode, full = plan.prefill_nodes, plan.decode_nodes, view.full_pools(plan)
    _box(axes, 3.4, 8.4, 3.2, 1.2, "storage", "#f2f2f2", "cluster" in full)
    _box(
        axes,
        0.2,
        3.6,
        3.4,
        1.9,
        f"{prefill} prefill node{'s'[: prefill > 1]}",
        "#e8f1f8",
        "prefill" in full,
    )
    _box(
        axes,
        6.4,
        3.6,
        3.4,
        1.9,
        f"{decode} decode node{'s'[: decode > 1]}",
        "#f9edf4",
        "decode" in full,
    )
    none = view.Stream(0.0, full=False)
    to_prefill = moved.get(("cluster", "prefill"), view.Stream(sides.prefill, full=False))
    to_decode = moved.get(("cluster", "decode"), view.Stream(sides.decode, full=False))
    layers = moved.get(("decode", "prefill"), none)
    hand_off = moved.get(("prefill", "decode"), none)
    drawn = (to_prefill, to_decode, layers, hand_off)
    widest = max(sides.basic, 1.0, *(stream.bytes_per_s for stream in drawn))
    _arrow(axes, (4.1, 8.4), (1.9, 5.5), to_prefill, widest, view.DUAL_PATH)
    _arrow(axes, (5.9, 8.4), (8.1, 5.5), to_decode, widest, view.DECODE_SIDE)
    _arrow(axes, (6.4, 4.9), (3.6, 4.9), layers, widest, view.DECODE_SIDE)
    _arrow(axes, (3.6, 4.1), (6.4, 4.1), hand_off, widest, view.DUAL_PATH)
    label = {"ha": "center", "va": "center", "fontsize": 14}
    axes.text(1.35, 7.2, f"prefill path\n{view.rate(sides.prefill)}", color=view.DUAL_PATH, **label)
    axes.text(8.65, 7.2, f"decode path\n{view.rate(sides.decode)}", color=view.DECODE_SIDE, **label)
    for y, words, stream, colour in (
        (5.75, "layer by layer,", layers, view.DECODE_SIDE),
        (3.2, "hand-off", hand_off, view.DUAL_PATH),
    ):
        if stream.bytes_per_s > 0:
            axes.text(5.0, y, f"{words} {view.rate(stream.bytes_per_s)}", color=colour, **label)
    if full:
        axes.text(
            5.0, 6.75, "orange edge:\nsaturated", color=view.SATURATED, **label | {"fontsize": 12}
        )
    # Basic below, at the same scale, so that the eye compares widths.
    axes.plot([0.2, 9.8], [2.35, 2.35], color=_GRID, lw=1)
    axes.text(0.25, 1.75, "Basic (today)", color="#666666", fontsize=14, va="center")
    basic = view.Stream(sides.basic, full=False)
    _arrow(axes, (3.0, 1.75), (6.2, 1.75), basic, widest, view.BASIC)
    axes.text(
        6.5,
        1.75,
        f"{view.rate(sides.basic)}, prefill nodes only",
        color="#666666",
        fontsize=14,
        va="center",
    )
    both = sides.prefill + sides.decode
    axes.text(0.25, 0.75, "both paths", fontsize=14, va="center")
    axes.text(
        3.0,
        0.75,
        f"{view.rate(both)} of KV-cache read, {plan.throughput_requests_per_s:,.1f} requests/s",
        fontsize=14,
        va="center",
    )


def _box(
    axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str, full: bool
) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0.02,rounding_size=0.25",
            fc=colour,
            ec=view.SATURATED if full else "#888888",
            lw=2.5 if full else 1,
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=17)


def _arrow(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    stream: view.Stream,
    widest: float,
    colour: str,
) -> None:
    """Draw an arrow as wide as its bytes/s, next to the widest; a saturated one has a warning edge."""
    from matplotlib.patches import FancyArrow

    part = stream.bytes_per_s / widest
    if part <= 0.002:
        return
    width = max(0.55 * part, 0.03)
    axes.add_patch(
        FancyArrow(
            *start,
            end[0] - start[0],
            end[1] - start[1],
            width=width,
            head_width=width * 1.5 + 0.15,
            head_length=0.45,
            length_includes_head=True,
            fc=colour,
            ec=view.SATURATED if stream.full else "none",
            lw=2.5 if stream.full else 0,
            alpha=0.85,
        )
    )


def _bars(axes: Any, plan: Plan) -> None:
    """Draw the fullest capacities, Basic and dual path side by side."""
    rows = sorted(view.bars(plan), key=lambda bar: max(bar.basic, bar.dual_path))[-9:]
    for y, bar in enumerate(rows):
        axes.barh(
            y + 0.2, 100 * bar.basic, 0.38, color=view.BASIC, label="Basic" if y == 0 else None
        )
        colour = view.SATURATED if bar.saturated else view.DUAL_PATH
        axes.barh(y - 0.2, 100 * bar.dual_path, 0.38, color=colour)
        axes.text(100 * bar.basic + 1, y + 0.2, f"{bar.basic:.0%}", va="center", fontsize=10.5)
        axes.text(
            100 * bar.dual_path + 1, y - 0.2, f"{bar.dual_path:.0%}", va="center", fontsize=10.5
        )
    axes.barh(0, 0, color=view.DUAL_PATH, label="dual path")
    axes.barh(0, 0, color=view.SATURATED, label="dual path, saturated")
    axes.set_yticks(range(len(rows)), [bar.label for bar in rows])
    axes.set(xlim=(0, 112), xlabel="utilisation of the fullest node, %")
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.xaxis.grid(visible=True, color=_GRID)
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        names,
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=11,
    )


def _ratio(axes: Any, plan: Plan) -> None:
    """Draw the P/D axis with the bottleneck-free range and where this cluster stands."""
    found, ends = plan.bottleneck_free, view.free_range(plan)
    marks = _range_ends(plan) if ends is not None else []
    title = _wrapped(view.range_sentence(plan), 74)
    axes.set_title(title, fontsize=14, loc="left", pad=22 if marks else 6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([])
    places = [found.ratio, *(at for at, _ in marks)]
    low, high = min(places) / 2.5, max(places) * 2.5
    axes.set(ylim=(0, 1), xscale="log", xlim=(low, high))
    if ends is not None:
        axes.axvspan(max(ends[0], low), min(ends[1], high), color=view.FREE, alpha=0.25, lw=0)
    # Close together, the names of both ends stand outwards, so that they do not meet.
    close = len(marks) == 2 and math.log(marks[1][0] / marks[0][0]) < 0.4 * math.log(high / low)
    for (at, name), outwards in zip(marks, ("right", "left"), strict=False):
        side = outwards if close else "center"
        axes.text(at, 1.04, name, ha=side, va="bottom", fontsize=10.5, color=view.FREE)
        axes.axvline(at, color=view.FREE, lw=1.5)
    colour = view.DUAL_PATH if found.holds in (True, None) else view.SATURATED
    axes.plot([found.ratio], [0.5], marker="v", ms=15, color=colour, clip_on=False)
    axes.text(found.ratio, 0.2, f"P/D = {found.ratio:.3g}", ha="center", va="center", fontsize=12)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    dense = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=dense, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("prefill nodes per decode node (P/D), log scale", fontsize=12)


def _range_ends(plan: Plan) -> list[tuple[float, str]]:
    """Return both ends of the range, the lower first, with the capacity that sets each."""
    bounds = view.ratio_bounds(plan)
    ends = []
    for upper in (False, True):
        first = next((bound for bound in bounds if bound.upper is upper), None)
        if first is not None:
            ends.append((first.at, first.label))
    return ends
