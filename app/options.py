"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScenarioArgument = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a shipped example.")
]
ConstantsOption = Annotated[
    str | None,
    typer.Option(
        "--constants",
        metavar="FILE|none",
        help="Efficiency constants (YAML), or the bare roofline; default: as measured or fitted.",
    ),
]
LayerwiseOption = Annotated[
    bool | None,
    typer.Option(
        "--layerwise/--no-layerwise",
        help="Load layer by layer under compute; default: as the scenario's framework does.",
    ),
]
BatchTokensOption = Annotated[
    int, typer.Option(min=0, max=2**32, help="Most tokens of a forward batch; 0: no limit.")
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        help="See `dualpath schedule policies`; default: dualpath, or the scheduler file's."
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        max=1e9,
        help="Agents a second, Poisson; default: when sessions say, or at once.",
    ),
]
SchedulerOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Start from scheduler.json of `dualpath export scheduler`."),
]
TOKEN_LIMIT = 8192  # of solvers.simulator.constants; solvers is slow to import
