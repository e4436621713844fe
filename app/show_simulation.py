"""Terminal output of a simulation and of a capacity search, from the data that ``--json`` prints."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dualpath_model.quantities import Dimension, show

_SPREADS = (
    ("ttft_s", "TTFT"),
    ("scheduling_s", "  scheduling"),
    ("allocating_s", "  allocating"),
    ("reading_s", "  reading"),
    ("prefill_s", "  prefill"),
    ("ttst_s", "TTST"),
    ("tpot_s", "TPOT"),
    ("agent_s", "agent, start to end"),
)
_COLUMNS = ("mean", "p50", "p90", "p99", "max")
_INTERVALS = {
    "jct_s": ("completion", "s"),
    "ttft_mean_s": ("TTFT, mean", "s"),
    "ttft_p99_s": ("TTFT, p99", "s"),
    "tpot_mean_s": ("TPOT, mean", "s"),
    "snic_max_over_mean": ("storage NICs, max over mean", ""),
}


def arriving(found: Mapping[str, Any]) -> str:
    """Say when the agents come."""
    if found["rate_aps"] is None:
        return "when their sessions say (at once where they do not)"
    return f"at {found['rate_aps']:g} a second"


def ending(found: Mapping[str, Any]) -> str:
    """Say when the last agent was done, or when the run stopped."""
    if math.isnan(found["jct_s"]):
        return f"stopped at {found['end_s']:,.0f} s"
    return f"completion {found['jct_s']:,.1f} s"


def show_simulation(found: Mapping[str, Any]) -> None:
    """Print what a simulation shows."""
    if found["interrupted"]:
        print("interrupted: this is what was finished")
    print(
        f"{found['policy']}: {found['agents']} agents {arriving(found)}, {found['agents_ended']} ended; "
        f"{found['turns']} turns, {ending(found)} ({found['wall_s']:.2f} s of computing)"
    )
    loads = "layer by layer" if found["layerwise"] else "before prefill"
    limit = f"at most {found['token_limit']:,}" if found["token_limit"] else "any number of"
    print(f"hits are loaded {loads}, forward batches of {limit} tokens")
    if found["warmup_s"] > 0:
        print(f"{found['turns_counted']} turns ended after {found['warmup_s']:g} s and are counted")
    print(_constants(found["constants"]))
    if found["turns_counted"]:
        _print(_table([(label, found[name]) for name, label in _SPREADS if found[name]]))
    else:
        print("no turn ended in the time that counts: give more --seconds or less --warmup")
    print(
        f"storage NICs, max over mean: {found['snic_max_over_mean']:.3f}; attention time of a unit's "
        f"engines: {found['attention_max_over_mean']:.3f}"
    )
    if found["working_set_bytes"] > 0:  # nan without samples
        size = show(found["working_set_bytes"], Dimension.BYTES)
        print(f"working set: {size} of KV-cache in the mean")
    for row in sorted(found["utilisation"], key=lambda row: -row["busy"])[:5]:
        place = f"{row['pool']} {row['node']} {row['resource']} {row['direction']}"
        print(f"  {place}: {row['busy']:.1%} busy")
    if "replications" in found:
        _show_replications(found)


def _show_replications(found: Mapping[str, Any]) -> None:
    seeds = ", ".join(str(run["seed"]) for run in found["replications"]) or "none"
    print(
        f"\nabove: seed {found['seed']}; finished: {len(found['replications'])} runs, seeds {seeds}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("95 % interval of the mean")
    for heading in ("from", "to"):
        table.add_column(heading, justify="right")
    for name, (label, unit) in _INTERVALS.items():
        ends = found["interval_95"][name]
        cells = ("", "") if ends is None else (f"{end:.4g} {unit}".strip() for end in ends)
        table.add_row(label, *cells)
    _print(table)


def show_capacity(found: Mapping[str, Any]) -> None:
    """Print the highest rate within the SLO, what limits it, and the runs that say so."""
    if found["interrupted"]:
        print(f"interrupted: seeds that were finished: {len(found['rates_aps'])}")
    ends = f"{found['low_aps']:.4g} to {found['high_aps']:.4g}, {len(found['rates_aps'])} seeds"
    certain = "one seed has no interval" if len(found["rates_aps"]) < 2 else f"95 %: {ends}"
    print(
        f"{found['policy']}: {found['rate_aps']:.4g} agents/s ({certain}), "
        f"{found['turns_per_s']:.4g} turns/s"
    )
    statistic = found["statistic"]
    print(
        f"limited by {found['limit'].upper()}; SLO: {statistic} TTFT {found['slo_ttft_s']:g} s, "
        f"{statistic} TPOT {1e3 * found['slo_tpot_s']:g} ms, of the turns that end in "
        f"{found['measure_s']:g} s after {found['warmup_s']:g} s"
    )
    if found["in_transit"]:
        print(
            "the warm-up is shorter than an agent lives, so the cluster was still filling up and the "
            "rate is too high: give more --warmup"
        )
    print(_constants(found["constants"]))
    table = Table(box=None, pad_edge=False)
    for heading in ("seed", "agents/s", f"{statistic} TTFT, s", f"{statistic} TPOT, ms"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for probe in found["probes"]:
        stopped = probe["ttft_s"] == float("inf")
        latency = (f"{probe['ttft_s']:.3f}", f"{1e3 * probe['tpot_s']:.2f}")
        table.add_row(
            str(probe["seed"]),
            f"{probe['rate_aps']:.4f}",
            *(("", "") if stopped else latency),
            "overloaded, stopped" if stopped else "within" if probe["holds"] else "over",
        )
    _print(table)


def _constants(found: Mapping[str, Any]) -> str:
    """Say which efficiency constants a run had."""
    if found["source"] == "none":
        return "efficiency constants: none, the bare roofline"
    sources = {"fitted": "fitted to the paper", "measured": "measured (calibration profile)"}
    named = sources.get(found["source"], f"of {found['source']}")
    labels = (
        ("batch_layer_s", "a forward batch"),
        ("step_layer_s", "a decode step"),
        ("request_layer_s", "a running request"),
    )
    values = ", ".join(f"{label} {show(found[name], Dimension.SECONDS)}" for name, label in labels)
    return f"efficiency constants: {named} ({values}; per layer)"


def _table(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("seconds", *_COLUMNS):
        table.add_column(heading, justify="left" if heading == "seconds" else "right")
    for label, spread in rows:
        table.add_row(label, *(f"{spread[key]:.4g}" for key in _COLUMNS))
    return table


def _print(table: Table) -> None:
    """Print a table, not folded to 80 columns where nobody looks at a terminal."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    Console(highlight=False, width=width).print(table)
