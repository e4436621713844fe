"""``dualpath study``: run a study, with progress, and report what it found."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from app.output import JsonOption, emit, say
from dualpath_model.errors import InputError

study_app = typer.Typer(
    help="Studies: thousands of scenarios from one file, here or on a cluster.",
    no_args_is_help=True,
)


@study_app.command("run")
def study_run(
    file: Annotated[Path, typer.Argument(help="A study (YAML); see `dualpath schema study`.")],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Results; run again with the same to go on where it was."),
    ],
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE",
            help="local, dask://HOST:PORT or ray://HOST:PORT (clusters that run), or ray (here).",
        ),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Default: all cores.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Work on every point of a study that DIR has not yet."""
    from app.files import check_targets
    from app.progress import COMPILING, bar
    from solvers.study import load_study, run_study

    check_targets(json, None, None, reads=file)
    study = load_study(file, _find)
    done = 0

    try:
        simulated = study.spec.method == "simulation"
        with bar("studying", COMPILING if simulated else "starting workers") as tell:

            def progress(finished: int, share: float, text: str) -> None:
                nonlocal done
                done = finished
                tell(share, text)

            ran = run_study(study, out, engine=engine, workers=workers, tell=progress)
    except KeyboardInterrupt:
        say(
            f"stopped; {done:,} of {study.points:,} points are in {out}: run the same again to go on"
        )
        raise
    found = {
        "study": study.spec.name,
        "out": str(out),
        "method": study.spec.method,
        "points_total": study.points,
        "engine": engine,
        **asdict(ran),
        "digest": study.manifest["digest"],
    }

    def show() -> None:
        before = study.points - ran.points
        print(f"{study.spec.name}: {study.points:,} points by {study.spec.method}")
        if before:
            print(f"there already           {before:,}")
        if ran.points:
            rate = ran.points / ran.seconds if ran.seconds else 0.0
            print(
                f"worked on now           {ran.points:,} in {ran.seconds:.1f} s, {rate:,.0f} a second"
            )
        if ran.failed:
            print(f"without an answer       {ran.failed:,}; `dualpath study report {out}` says why")
        print(f"results                 {out}/results.parquet")

    emit(json, lambda: found, show)


@study_app.command("report")
def study_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results of `dualpath study run`.")],
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table of all points as CSV.")] = None,
    json: JsonOption = None,
) -> None:
    """Show a study's best points and why others failed; all points as CSV, figures as HTML."""
    from app.files import write_atomically, written_aside
    from app.study_report import report_html, show_report, summary_of
    from solvers.study import read_manifest, read_study

    _check_targets(json, html, csv)
    manifest = read_manifest(folder)
    table = read_study(folder)
    found = summary_of(manifest, table)
    if html is not None:
        write_atomically(html, report_html(manifest, table))
        say(f"wrote {html}")
    if csv is not None:
        from pyarrow import csv as writer

        with written_aside(csv) as into:
            writer.write_csv(table, into)
        say(f"wrote {csv}")

    def show() -> None:
        show_report(manifest, found)

    emit(json, lambda: found, show)


def _check_targets(json: str | None, html: Path | None, csv: Path | None) -> None:
    """Raise InputError if an output cannot be written, or two are the same file."""
    from app.files import check_targets

    check_targets(json, html, None)
    check_targets(json, csv, None)
    if html is not None and csv is not None and html.resolve() == csv.resolve():
        raise InputError(f"{csv} is named for two outputs; give each a file of its own")


def study_schema() -> dict[str, Any]:
    """Return the JSON Schema of study files."""
    from solvers.study_spec import StudySpec

    return StudySpec.model_json_schema(by_alias=True)


def _find(given: str) -> Path:
    """Return the file of a base scenario: a shipped example, or what stands beside the study."""
    from app.examples import example_dir, example_names
    from dualpath_model.errors import nearest

    if Path(given).suffix in {".yaml", ".yml", ".json"} or "/" in given:
        raise InputError(
            f"base is '{given}': there is no such file beside the study; check the path"
        )
    names = example_names()
    if given in names:
        return example_dir() / f"{given}.yaml"
    close = nearest(given, names) or names
    raise InputError(
        f"base is '{given}', which is neither a file nor a shipped example; the nearest are "
        f"{', '.join(close)}"
    )
