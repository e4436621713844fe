"""``dualpath export``: a plan's files for a deployment; ``dualpath scenario from``: the other way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.output import JsonOption, as_read_back, emit, say
from dualpath_model.errors import InputError

_MOST_NOTES = 12


def export_command(
    target: Annotated[str, typer.Argument(help="A target, or `list`: what each can and cannot.")],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SCENARIO|PLAN]",
            help="A scenario (YAML file or example), or a plan of `dualpath plan --json FILE`.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an export that is there.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--diff", help="Print what would change in the folder; write nothing.")
    ] = False,
    target_version: Annotated[
        str | None,
        typer.Option(help="Version of the target's software; default: the newest known."),
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="Hosts, ports, folders and devices of your site (YAML).")
    ] = None,
    wrap: Annotated[
        str | None, typer.Option(help="kubernetes: the target whose files it wraps.")
    ] = None,
    wrap_version: Annotated[
        str | None, typer.Option(help="Version of the wrapped target's software.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Turn a plan into files that a deployment accepts."""
    from dualpath_model.export import all_targets, diff, export, read_site, target_named, write

    if target == "list":
        if source is not None:
            raise InputError(f"export list takes no further argument, but '{source}' is given")
        emit(json, lambda: _listed(all_targets()), lambda: _show(all_targets()))
        return
    kind = target_named(target)
    _check_asked(source, out, compare, force, json)
    for option, given in (("--wrap", wrap), ("--wrap-version", wrap_version)):
        if given is not None and not kind.wraps:
            raise InputError(
                f"{option} is '{given}', but {kind.name} wraps nothing; only kubernetes does"
            )
    assert source is not None and out is not None
    made = export(
        kind,
        plan_of(source),
        read_site(site),
        version=target_version,
        wraps=wrap,
        wraps_version=wrap_version,
    )
    if compare:
        difference = diff(made, out)
        print(difference, end="")
        if not difference:
            say(f"no difference: {out} is what this plan gives")
        return
    write(made, out, force=force)
    for dropped in made.bundle.dropped:
        say(f"left out: {dropped.what} ({dropped.effect})")
    notes = made.bundle.notes
    for note in notes[:_MOST_NOTES]:
        say(f"note: {note}")
    if len(notes) > _MOST_NOTES:
        say(f"and {len(notes) - _MOST_NOTES} notes more in its README.md")
    say(f"wrote {len(made.files)} files to {out}; its README.md says how to apply them")


scenario_app = typer.Typer(help="Scenarios of what runs today.", no_args_is_help=True)


@scenario_app.command("from")
def scenario_from(
    kind: Annotated[str, typer.Argument(help="sglang, vllm, dynamo or prometheus.")],
    file: Annotated[
        Path, typer.Argument(help="What the deployment states; see docs/deploying.md.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the scenario (YAML); default: standard output.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Read a deployment's own files into the skeleton of a scenario."""
    from app.files import check_targets, write_atomically
    from dualpath_model.export.imports.skeleton import read_deployment

    check_targets(json, out, None, reads=file)
    found = read_deployment(kind, file)
    text = found.to_yaml()
    if out is not None:
        write_atomically(out, text)
        say(f"wrote {out}; to fill in or check: {len(found.missing)}, listed in its first lines")
        if json is None:
            return
    data = {"scenario": found.scenario, "found": found.found, "missing": found.missing}
    emit(json, lambda: data, lambda: print(text, end=""))


def plan_of(source: str) -> Any:
    """Return the plan that ``source`` names: a plan file, or a scenario that is planned now."""
    from app.examples import find_scenario
    from dualpath_model.export import parse_plan, plan_in
    from dualpath_model.scenario import load_scenario
    from solvers import planner
    from solvers.deployment import plan_document

    path = find_scenario(source)
    if (found := plan_in(path)) is not None:
        return found
    scenario = load_scenario(path)
    answer = planner.plan(scenario, intervals=False)
    # by way of JSON, so that a scenario and its plan file give the same bytes
    return parse_plan(as_read_back(plan_document(scenario, answer)))


def _check_asked(
    source: str | None, out: Path | None, compare: bool, force: bool, json: str | None
) -> None:
    if source is None:
        raise InputError("export needs a scenario or a plan file after the target")
    if out is None:
        raise InputError("--out is missing; name the folder to write, such as --out deploy/vllm")
    if compare and force:
        raise InputError("--diff writes nothing, so --force has no meaning; give one of them")
    if json is not None:
        raise InputError("--json is for `dualpath export list`; an export writes files into --out")


def _listed(targets: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "software": target.software,
            "about": target.about,
            "versions": list(target.versions),
            "expresses": list(target.expresses),
            "cannot": list(target.cannot),
            "parser": target.parser,
        }
        for name, target in targets.items()
    }


def _show(targets: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True)
    for head in ("target", "software", "can express", "cannot express"):
        table.add_column(head, overflow="fold")
    for name, target in targets.items():
        versions = f"{target.software} {target.default_version}"
        table.add_row(
            name,
            versions,
            "\n".join(f"· {part}" for part in target.expresses),
            "\n".join(f"· {part}" for part in target.cannot) or "nothing is left out",
        )
    Console().print(table)
