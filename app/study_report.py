"""A study for people: best points, failures by reason, and one HTML page with its figures."""

from __future__ import annotations

import html as markup
from collections.abc import Mapping, Sequence
from typing import Any

from app import figures_study as figures
from app.page import page, pictures, table

BEST = 10
_MOST_FIGURES = 40
_MOST_REASONS = 25
_SHOWN = 4  # best points on a terminal

Manifest = Mapping[str, Any]


def goal_of(manifest: Manifest, table_: Any) -> dict[str, str]:
    """Return the metrics to rank by, "highest" or "lowest" each: the study's, or its first number.

    Times and imbalances are best where they are lowest.
    """
    if manifest["best"]:
        return dict(manifest["best"])
    first = next(iter(figures.numeric(manifest["metrics"], table_)), None)
    return {} if first is None else {first: "lowest" if lower_is_better(first) else "highest"}


def lower_is_better(metric: str) -> bool:
    """Tell whether a metric is a time, or a measure of imbalance."""
    head = metric.split(".", maxsplit=1)[0]
    time = head.endswith("_s") and not head.endswith("_per_s")
    return time or head.endswith("max_over_mean")


def best_points(table_: Any, metric: str, way: str, count: int = BEST) -> list[dict[str, Any]]:
    """Return the best points as rows, best first; of equals the one with the lower number."""
    from pyarrow import compute

    known = table_.filter(compute.is_valid(table_.column(metric)))
    order = "descending" if way == "highest" else "ascending"
    found = known.sort_by([(metric, order), ("point", "ascending")]).slice(0, count)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def reasons(table_: Any) -> list[tuple[str, str, int]]:
    """Return kind, reason and count of the failures, the commonest first."""
    failed: dict[tuple[str, str], int] = {}
    for kind, reason in zip(
        table_.column("failure").to_pylist(), table_.column("reason").to_pylist(), strict=True
    ):
        if kind is not None:
            failed[kind, reason] = failed.get((kind, reason), 0) + 1
    return [(*key, n) for key, n in sorted(failed.items(), key=lambda item: (-item[1], item[0]))]


def summary_of(manifest: Manifest, table_: Any) -> dict[str, Any]:
    """Return the report as JSON-ready data."""
    why = reasons(table_)
    return {
        "study": manifest["name"],
        "method": manifest["method"],
        "digest": manifest["digest"],
        "points_total": manifest["points"],
        "points": table_.num_rows,
        "failed": sum(count for *_, count in why),
        "axes": list(manifest["axes"]),
        "metrics": list(manifest["metrics"]),
        "best": {
            metric: {"is": way, "points": best_points(table_, metric, way)}
            for metric, way in goal_of(manifest, table_).items()
        },
        "units": {
            name: unit
            for name in (*manifest["axes"], *manifest["metrics"])
            if (unit := figures.unit_of(table_, name))
        },
        "failures": [{"failure": k, "reason": r, "points": n} for k, r, n in why],
    }


def show_report(manifest: Manifest, found: Mapping[str, Any]) -> None:
    """Print the summary on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(_line(manifest, found))
    for metric, best in found["best"].items():
        if not best["points"]:
            continue
        console.print(f"\n{best['is']} {metric}")
        shown = Table(box=None, show_header=False, pad_edge=False)
        shown.add_column(
            no_wrap=True, min_width=max(map(len, manifest["axes"] + manifest["metrics"]))
        )
        rows = best["points"][:_SHOWN]
        for _ in rows:
            shown.add_column(justify="right")
        for head in _heads(manifest, rows):  # a line each: names are long, and there may be many
            shown.add_row(head, *(_shown(found, head, row) for row in rows))
        console.print(shown)
    if found["failures"]:
        console.print("")
    for failure in found["failures"][:_MOST_REASONS]:
        points = f"{failure['points']:,} point{'s' if failure['points'] != 1 else ''}"
        console.print(f"{points} without an answer ({failure['failure']}): {failure['reason']}")


def _line(manifest: Manifest, found: Mapping[str, Any]) -> str:
    done = f"{found['points']:,} points"
    if found["points"] < found["points_total"]:
        done = f"{found['points']:,} of {found['points_total']:,} points so far"
    failed = f", {found['failed']:,} without an answer" if found["failed"] else ""
    return f"{manifest['name']}: {done} by {manifest['method']}{failed}"


def _heads(manifest: Manifest, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = ["point", *manifest["axes"], *manifest["metrics"]]
    return [head for head in heads if not rows or head in rows[0]]


def _shown(found: Mapping[str, Any], head: str, row: Mapping[str, Any]) -> str:
    return figures.text(row[head], found["units"].get(head, ""))


def report_html(manifest: Manifest, table_: Any) -> str:
    """Return the report as one page that needs nothing else; everything from the study is escaped."""
    found = summary_of(manifest, table_)
    drawn = []
    metrics = figures.numeric(manifest["metrics"], table_)
    for metric in metrics:
        drawn += [figures.along(table_, metric, axis) for axis in manifest["axes"]]
    goals = list(found["best"]) or metrics[:1]
    drawn = [figure for figure in drawn if figure is not None]
    drawn += figures.maps(table_, goals, manifest["axes"])
    left_out = len(drawn) - _MOST_FIGURES
    parts = [_tiles(found)]
    for metric, best in found["best"].items():
        heads = _heads(manifest, best["points"])
        rows = [[_shown(found, head, row) for head in heads] for row in best["points"]]
        title = markup.escape(f"Best points: {best['is']} {metric}")
        parts += [f"<h2>{title}</h2>", table(heads, rows, text=0)]
    if drawn:
        parts += ["<h2>Metrics along the axes</h2>", pictures(drawn[:_MOST_FIGURES])]
    if left_out > 0:
        parts.append(
            f"<p>{left_out} more figures are left out; results.parquet has all points.</p>"
        )
    if found["failures"]:
        failed = found["failures"]
        rows = [[f["failure"], f["reason"], f"{f['points']:,}"] for f in failed[:_MOST_REASONS]]
        parts += ["<h2>Points without an answer</h2>"]
        parts += [table(("kind", "reason", "points"), rows, text=2)]
        if len(failed) > _MOST_REASONS:
            parts.append(f"<p>and {len(failed) - _MOST_REASONS:,} more reasons.</p>")
    below = manifest["description"] or f"axes: {', '.join(manifest['axes'])}"
    return page(f"{manifest['name']}: study", _line(manifest, found), below, parts)


def _tiles(found: Mapping[str, Any]) -> str:
    tiles = [
        ("points", f"{found['points']:,}", ""),
        ("without an answer", f"{found['failed']:,}", "warn" if found["failed"] else ""),
        ("method", found["method"], ""),
    ]
    for metric, best in found["best"].items():
        if best["points"]:
            value = figures.text(best["points"][0][metric])
            tiles.append((f"{best['is']} {metric}", value, ""))
    cells = (
        f'<div class="tile {kind}"><span>{markup.escape(label)}</span>'
        f"<b>{markup.escape(value)}</b></div>"
        for label, value, kind in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'
