"""``dualpath schedule``: drive the reference scheduler, replay its decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.options import (
    BatchTokensOption,
    PolicyOption,
    RateOption,
    ScenarioArgument,
    SchedulerOption,
)
from app.output import JsonOption, emit, say

schedule_app = typer.Typer(help="The reference scheduler.", no_args_is_help=True)


@schedule_app.command("policies")
def schedule_policies(json: JsonOption = None) -> None:
    """List the policies."""
    from dualpath_model.scheduler.policies import POLICIES

    found = {policy.name: policy.meaning for policy in POLICIES.values()}

    def show() -> None:
        for name, meaning in found.items():
            print(f"{name:12} {meaning}")

    emit(json, lambda: found, show)


@schedule_app.command("run")
def schedule_run(
    scenario: ScenarioArgument,
    policy: PolicyOption = None,
    scheduler: SchedulerOption = None,
    agents: Annotated[int, typer.Option(min=1, max=1_000_000, help="Sessions to run.")] = 200,
    rate: RateOption = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=1e7, help="Simulated seconds after which to stop.")
    ] = 120.0,
    patience: Annotated[
        int,
        typer.Option(min=0, max=2**32, help="Later requests that may go first; 0 is FIFO."),
    ] = 0,
    batch_tokens: BatchTokensOption = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    log: Annotated[Path | None, typer.Option(help="Write the decision log, JSON lines.")] = None,
    json: JsonOption = None,
) -> None:
    """Drive the reference scheduler with a scenario's sessions: balance, TTFT, decision log."""
    from app.examples import find_scenario
    from app.files import check_targets
    from app.schedule import run_schedule
    from dualpath_model.scenario import load_scenario

    check_targets(json, log, None)
    found = run_schedule(
        load_scenario(find_scenario(scenario)),
        policy,
        patience,
        log,
        scheduler,
        agents=agents,
        rate_aps=rate,
        stop_s=seconds,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    if log is not None:
        say(f"wrote {log}")

    def show() -> None:
        from app.show import show_driven

        show_driven(found)

    emit(json, lambda: found, show)


@schedule_app.command("replay")
def schedule_replay(
    log: Annotated[Path, typer.Argument(help="A decision log.")],
    each: Annotated[bool, typer.Option("--each", help="Print every event and decision.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Through numba: faster for large clusters.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Make the decisions of a log again, one by one; exit code 1 where one differs."""
    from app.files import check_targets
    from app.schedule import replay_log

    check_targets(json, None, None, reads=log)
    found = replay_log(log, compiled=compiled, each=each and json != "-")

    def show() -> None:
        from app.show import show_replay

        show_replay(found)

    emit(json, lambda: found, show)
    if found["first_difference"] is not None:
        raise typer.Exit(1)
