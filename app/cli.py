"""The ``dualpath`` command. Each function parses, calls one function of the toolkit, and shows.

``--json -`` prints one JSON object on standard output and nothing else. Exit codes: 0 done, 1 the
question has no answer, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from app import interrupt
from app.calibrate import calibrate_app
from app.catalog import llm_app, node_app, trace_app
from app.export import export_command, scenario_app
from app.fleet import fleet_command, fleet_schema
from app.options import (
    TOKEN_LIMIT,
    BatchTokensOption,
    ConstantsOption,
    LayerwiseOption,
    PolicyOption,
    RateOption,
    ScenarioArgument,
    SchedulerOption,
)
from app.output import JsonOption, dump, emit, say
from app.replan import replan_command
from app.schedule_commands import schedule_app
from app.study import study_app, study_schema
from dualpath_model.errors import DualPathError, InputError

app = typer.Typer(
    help="Plan dual-path KV-cache loading for disaggregated LLM serving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(trace_app, name="trace")
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(schedule_app, name="schedule")
app.add_typer(llm_app, name="llm")
app.add_typer(node_app, name="node")
app.command("export")(export_command)
app.command("fleet")(fleet_command)
app.command("replan")(replan_command)
app.add_typer(scenario_app, name="scenario")
app.add_typer(study_app, name="study")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from dualpath_model import __version__

        print(f"dualpath {__version__}")
        raise typer.Exit


@app.command()
def plan(
    scenario: ScenarioArgument,
    json: JsonOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write one picture (.png or .svg).")] = None,
    solver: Annotated[
        Literal["auto", "highs", "cbc", "matrix"],
        typer.Option(help="LP: PuLP on HiGHS or CBC, a sparse matrix on HiGHS, or by size."),
    ] = "auto",
    compare_frameworks: Annotated[
        bool,
        typer.Option(
            "--compare-frameworks",
            help="Put the paper and serving frameworks side by side instead.",
        ),
    ] = False,
) -> None:
    """Say what limits a cluster, how to split the reads, and what that gains."""
    from app.examples import find_scenario
    from app.files import check_targets
    from dualpath_model.scenario import load_scenario
    from solvers import planner

    check_targets(json, html, picture)
    asked = load_scenario(find_scenario(scenario))
    if compare_frameworks:
        if html is not None or picture is not None:
            raise InputError(
                "--compare-frameworks has no --html and no --picture; leave them out, or set "
                "framework in the scenario and plan that one"
            )
        from app import compare

        found = compare.compare(asked)
        emit(json, lambda: compare.data(found), lambda: compare.show(found))
        return
    answer = planner.plan(asked, backend=solver)
    if html is not None:
        from app.report import write_report

        write_report(answer, asked, html)
        say(f"wrote {html}")
    if picture is not None:
        from app.picture import draw_plan

        draw_plan(answer, picture, asked)
        say(f"wrote {picture}")

    def show() -> None:
        from app.show import show_plan

        show_plan(answer)

    def data() -> object:
        from solvers.deployment import plan_document

        return plan_document(asked, answer)

    emit(json, data, show)


@app.command()
def assign(
    scenario: ScenarioArgument,
    objective: Annotated[
        Literal["most requests", "least peak", "least cost"],
        typer.Option(help="What is best; the last two need requests_per_s for every class."),
    ] = "most requests",
    solver: Annotated[
        Literal["auto", "highs", "cbc", "matrix"], typer.Option(help="As for plan.")
    ] = "auto",
    json: JsonOption = None,
) -> None:
    """Assign reads to nodes and paths: flows, prices with their ranges, certificate."""
    from app.assign import assignment
    from app.examples import find_scenario
    from dualpath_model.scenario import load_scenario

    found = assignment(load_scenario(find_scenario(scenario)), objective, solver)

    def show() -> None:
        from app.show import show_assignment

        show_assignment(found)

    emit(json, lambda: found, show)


@app.command()
def simulate(
    scenario: ScenarioArgument,
    policy: PolicyOption = None,
    scheduler: SchedulerOption = None,
    agents: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="Sessions to run; default: 200, with --rate and --seconds those that arrive.",
        ),
    ] = None,
    rate: RateOption = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=1e9, help="Simulated seconds after which to stop.")
    ] = None,
    warmup: Annotated[
        float, typer.Option(min=0, max=1e9, help="Turns that end in these seconds do not count.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    replications: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs, of this seed and those after it.")
    ] = 1,
    constants: ConstantsOption = None,
    layerwise: LayerwiseOption = None,
    batch_tokens: BatchTokensOption = TOKEN_LIMIT,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write tables (Parquet), summary and figures of the run."),
    ] = None,
    sample: Annotated[
        float | None,
        typer.Option(min=0.01, max=1e9, help="Seconds between samples; default with --out: 10."),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Simulate a scenario's sessions: completion time, TTFT, TTST, TPOT, balance, utilisation."""
    from app.examples import find_scenario
    from app.files import check_targets
    from app.progress import COMPILING, bar
    from app.results import check_folder, write_results
    from app.simulate import SAMPLE_S, read_constants, run_simulation
    from dualpath_model.scenario import load_scenario
    from dualpath_model.scheduler.file import read_scheduler
    from solvers.simulator.model import Switches

    check_targets(json, None, None)
    if out is not None:
        check_folder(out, json)
        sample = sample or SAMPLE_S
    asked = load_scenario(find_scenario(scenario))
    chosen = read_constants(constants, asked)
    with bar("simulating", COMPILING) as tell:
        found, outcome = run_simulation(
            asked,
            policy,
            agents=agents,
            rate_aps=rate,
            until_s=seconds,
            warmup_s=warmup,
            sample_s=sample,
            seed=seed,
            replications=replications,
            constants=chosen,
            switches=Switches(layerwise=layerwise, token_limit=batch_tokens),
            tell=tell,
            scheduler=None if scheduler is None else read_scheduler(scheduler),
        )

    def show() -> None:
        from app.show_simulation import show_simulation

        show_simulation(found)

    emit(json, lambda: found, show)
    if out is not None:
        write_results(outcome, asked, found, dump(found), out)
        say(f"wrote {out}")
    if found["interrupted"]:
        raise typer.Exit(130)


@app.command()
def capacity(
    scenario: ScenarioArgument,
    policy: Annotated[str, typer.Option(help="See `dualpath schedule policies`.")] = "dualpath",
    statistic: Annotated[
        Literal["mean", "p50", "p90", "p99"],
        typer.Option(help="Of TTFT and TPOT, which must be within the scenario's SLO."),
    ] = "mean",
    replications: Annotated[
        int, typer.Option(min=1, max=1000, help="Searches, each with a seed of its own.")
    ] = 3,
    warmup: Annotated[
        float, typer.Option(min=0, max=1e9, help="Simulated seconds before a run counts.")
    ] = 3600.0,
    measure: Annotated[
        float, typer.Option(min=1, max=1e9, help="Simulated seconds that count.")
    ] = 3600.0,
    tolerance: Annotated[
        float, typer.Option(min=1e-4, max=0.5, help="Relative width at which a search stops.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    constants: ConstantsOption = None,
    layerwise: LayerwiseOption = None,
    batch_tokens: BatchTokensOption = TOKEN_LIMIT,
    json: JsonOption = None,
) -> None:
    """Find the highest rate of agents within the SLO, with its 95 % interval, by simulation."""
    from app.capacity import run_capacity
    from app.examples import find_scenario
    from app.files import check_targets
    from app.progress import COMPILING, bar
    from app.simulate import read_constants
    from dualpath_model.scenario import load_scenario
    from solvers.simulator.model import Switches

    check_targets(json, None, None)
    asked = load_scenario(find_scenario(scenario))
    chosen = read_constants(constants, asked)
    with bar("searching", COMPILING) as tell:
        found = run_capacity(
            asked,
            policy,
            statistic=statistic,
            replications=replications,
            seed=seed,
            warmup_s=warmup,
            measure_s=measure,
            tolerance=tolerance,
            constants=chosen,
            switches=Switches(layerwise=layerwise, token_limit=batch_tokens),
            tell=tell,
        )

    def show() -> None:
        from app.show_simulation import show_capacity

        show_capacity(found)

    emit(json, lambda: found, show)
    if found["interrupted"]:
        raise typer.Exit(130)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port to listen on.")] = 8501,
    address: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a web browser.")
    ] = True,
) -> None:
    """Serve the what-if dashboard: move sliders, see what limits, what helps and by how much."""
    from app.dashboard.serve import serve

    serve(address, port, browser=browser)


@app.command()
def reproduce(
    only: Annotated[
        list[str] | None, typer.Option(help="One experiment; repeatable. Default: all.")
    ] = None,
    effects: Annotated[
        bool, typer.Option("--effects", help="Also what each assumption moves.")
    ] = False,
    fit: Annotated[
        Path | None,
        typer.Option(help="Fit the constants anew and write them to this file; nothing else."),
    ] = None,
    json: JsonOption = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write one picture (.png or .svg).")] = None,
) -> None:
    """Print the paper's figures beside ours."""
    from app import reproduce as running
    from app.files import check_targets, write_atomically
    from app.progress import bar

    if fit is not None:
        if only or effects or json is not None or html is not None or picture is not None:
            raise InputError("--fit writes the constants and nothing else; give it alone")
        check_targets(None, fit, None)
        with bar("fitting") as tell:
            constants = running.run_fit(tell)
        write_atomically(fit, running.constants_file(constants))
        say(f"wrote {fit}")
        return
    check_targets(json, html, picture)
    curves = html is not None or picture is not None
    with bar("reproducing") as tell:
        found = running.run_reproduction(tuple(only or ()), effects, curves, tell)
    if html is not None:
        from app.reproduction_view import write_reproduction

        write_reproduction(found, html)
        say(f"wrote {html}")
    if picture is not None:
        from app.reproduction_picture import draw_reproduction

        draw_reproduction(found, picture)
        say(f"wrote {picture}")

    def show() -> None:
        from app.reproduction_view import show_reproduction

        show_reproduction(found)

    emit(json, lambda: found, show)
    if found["interrupted"]:
        raise typer.Exit(130)


@app.command()
def derive(
    latex: Annotated[
        bool, typer.Option("--latex", help="Print LaTeX instead of plain text.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Derive the paper's analysis, and what lies beyond it, from the step table."""
    from app.derive import derive_data, derive_text

    emit(json, derive_data, lambda: print(derive_text(latex)))


@app.command()
def examples() -> None:
    """List the shipped example scenarios."""
    from app.examples import example_dir, example_names
    from dualpath_model import yaml_lines

    for name in example_names():
        title = yaml_lines.read(example_dir() / f"{name}.yaml").data.get("name", "")
        print(f"{name:32} {title}")


@app.command()
def schema(
    kind: Annotated[
        Literal["scenario", "plan", "events", "profile", "study", "fleet"],
        typer.Argument(help="Which file format."),
    ],
) -> None:
    """Print the JSON Schema of a file format."""
    if kind == "scenario":
        from dualpath_model.scenario import ScenarioSpec

        described = ScenarioSpec.model_json_schema()
    elif kind == "profile":
        from dualpath_model.profile import Profile

        described = Profile.model_json_schema()
    elif kind == "events":
        from app.schedule import event_schema

        described = event_schema()
    elif kind == "study":
        described = study_schema()
    elif kind == "fleet":
        described = fleet_schema()
    else:
        from pydantic import TypeAdapter

        from solvers.planner import Plan

        described = TypeAdapter(Plan).json_schema(mode="serialization")
    print(dump({"$schema": "https://json-schema.org/draft/2020-12/schema", **described}))


def main() -> None:
    """Run the command line and turn errors into one sentence and an exit code."""
    interrupt.listen()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # standard output on a full disk, a file that vanishes under our hands
        say(f"dualpath: {error.filename or 'output'}: {error.strerror}; check disk and permissions")
        os._exit(2)  # the interpreter would fail again while it flushes
    except DualPathError as error:
        say(f"dualpath: {error}")
        sys.exit(error.exit_code)
    except MemoryError:
        say(
            f"dualpath: {InputError('the input needs more memory than there is; use a smaller one')}"
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
