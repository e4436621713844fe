"""``dualpath fleet``: which nodes, how many, in which role, for a workload and an SLO, at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.output import JsonOption, emit, say
from dualpath_model.errors import InputError, nearest

if TYPE_CHECKING:
    from solvers.fleet_question import Question


def fleet_command(
    file: Annotated[
        str, typer.Argument(help="A fleet (YAML), or the name of one that is shipped.")
    ],
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Recorded sessions in place of the file's workload: a folder or file.",
        ),
    ] = None,
    json: JsonOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    simulate: Annotated[
        bool,
        typer.Option("--simulate/--no-simulate", help="Check the fleet in the simulator."),
    ] = True,
    explain: Annotated[
        bool,
        typer.Option("--explain/--no-explain", help="Say what decides the fleet, and one more."),
    ] = True,
    points: Annotated[
        int, typer.Option(min=0, max=200, help="Points of cost against capacity; 0: none.")
    ] = 8,
    gap: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="Relative distance to the best that is good enough."),
    ] = 1e-4,
    seconds: Annotated[
        float, typer.Option(min=1, max=1e6, help="Longest time of one solve of the program.")
    ] = 120.0,
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0, max=1e9, help="Simulated seconds before a run counts; default: by the sessions."
        ),
    ] = None,
    measure: Annotated[
        float | None, typer.Option(min=1, max=1e9, help="Simulated seconds that count.")
    ] = None,
    replications: Annotated[
        int, typer.Option(min=1, max=100, help="Searches of the simulated capacity.")
    ] = 1,
    tolerance: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="Relative width at which a search stops.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
) -> None:
    """Find the fleet of least cost for a rate, or of the most rate for a budget."""
    from app.files import check_targets
    from app.progress import COMPILING, bar
    from solvers.fleet import fleet, to_json
    from solvers.fleet_search import Effort
    from solvers.fleet_simulate import Run

    path = find_fleet(file)
    check_targets(json, html, None, reads=path)
    run = Run(warmup, measure, replications, tolerance, seed) if simulate else None
    with bar("searching", COMPILING if simulate else "reading") as tell:
        found = fleet(
            _question(path, trace),
            effort=Effort(gap, seconds),
            run=run,
            explain=explain,
            points=points,
            progress=tell,
        )
    if html is not None:
        from app.fleet_report import write_fleet

        write_fleet(found, html)
        say(f"wrote {html}")

    def show() -> None:
        from app.show_fleet import show_fleet

        show_fleet(found)

    emit(json, lambda: to_json(found), show)
    if found.interrupted:
        raise typer.Exit(130)


def fleet_schema() -> dict[str, Any]:
    """Return the JSON Schema of fleet files."""
    from solvers.fleet_spec import FleetSpec

    return FleetSpec.model_json_schema()


def _question(path: Path, trace: Path | None) -> Question:
    """Read a fleet file, with other recordings where some are given. Raises InputError."""
    from dualpath_model.scenario import WorkloadSpec
    from solvers.fleet_question import question_of
    from solvers.fleet_spec import read_fleet

    spec, document = read_fleet(path)
    if trace is not None:
        if spec.workload is None:
            raise InputError(
                f"--trace stands for the one workload of a fleet, but {path} has classes; put the path "
                f"into the class that it belongs to"
            )
        given = WorkloadSpec(trace=str(trace.resolve()), scale=spec.workload.scale)
        spec = spec.model_copy(update={"workload": given})
    return question_of(spec, path.parent, document)


def find_fleet(given: str) -> Path:
    """Return the file that ``given`` means: a path, or the name of a shipped fleet.

    Raises InputError with the nearest names if it is neither.
    """
    from app.examples import example_dir

    path = Path(given)
    if path.exists() or path.suffix in {".yaml", ".yml", ".json"} or "/" in given:
        return path  # reading it reports a missing file or a folder
    folder = example_dir() / "fleets"
    names = sorted(one.stem for one in folder.glob("*.yaml"))
    if given in names:
        return folder / f"{given}.yaml"
    close = nearest(given, names)
    hint = f"the nearest are {', '.join(close)}" if close else f"there are {', '.join(names)}"
    raise InputError(f"fleet '{given}' is neither a file nor a shipped one; {hint}")
