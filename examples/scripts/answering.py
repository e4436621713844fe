"""What the scripts share: the command line, and how the picture of an answer looks."""

import argparse
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dualpath_model import DualPathError, Scenario, Workload, load_scenario

HERE = Path(__file__).parent
DUAL, BASIC, LIMIT = "#0072B2", "#666666", "#D55E00"
NAMES = {
    "snic": "storage NICs",
    "cnic": "compute NICs",
    "dram": "DRAM",
    "host_link": "host link",
    "hbm": "HBM rate",
    "hbm_space": "HBM space",
    "gpu": "GPUs",
    "fabric": "fabric",
    "storage": "storage",
}
Question = Callable[..., tuple[str, str]]
"""Gets a scenario, axes to draw on and the options; returns the answer and more in numbers."""


def answer(question: Question, about: str | None, **options: float) -> None:
    """Ask as the command line says (``options``, with their defaults), print and draw."""
    script = Path(sys.argv[0])
    command = argparse.ArgumentParser(description=about, allow_abbrev=False)
    command.add_argument("scenario", nargs="?", default="deepseek-660b-2p4d", help="file or name")
    command.add_argument("--out", default=f"{script.stem}.png", help="the picture, PNG")
    for name, default in options.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = command.parse_args()
    shipped = HERE.parent / f"{given.scenario}.yaml"
    try:
        scenario = load_scenario(shipped if shipped.is_file() else given.scenario)
        with style.context(HERE / "answering.mplstyle"):
            axes = (figure := Figure()).subplots()
            asked = {name: getattr(given, name) for name in options}
            words, numbers = question(scenario, axes, **asked)
            axes.set_title(textwrap.fill(words, 72))
            figure.supxlabel(textwrap.shorten(scenario.name, 100), size=10, color=BASIC)
            figure.savefig(given.out, format="png")
    except (DualPathError, OSError) as error:
        sys.exit(str(error))
    print(f"{words}. {numbers}".replace("\n", " "))


def note(
    axes: Axes, words: str, at: tuple[float, float], shift: tuple[float, float], colour: str
) -> None:
    """Write beside a point, ``shift`` points away; text to the left of it ends there."""
    side = "left" if shift[0] > 0 else "right" if shift[0] < 0 else "center"
    look = {"ha": side, "va": "center", "color": colour}
    text = axes.annotate(words, at, shift, textcoords="offset points", **look)
    text.set_in_layout(False)  # so that it does not push the axes aside


def with_workloads(scenario: Scenario, change: Callable[[Workload], Workload]) -> Scenario:
    """Return the scenario with ``change`` applied to the workload of every class of traffic."""
    kinds = tuple(replace(kind, workload=change(kind.workload)) for kind in scenario.classes)
    return replace(scenario, classes=kinds)
