"""The paper's evaluation beside ours: run it, with progress, and return it as JSON-ready data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from solvers.reproduction import effects as effects_of
from solvers.reproduction.figures import EXPERIMENTS, check_names, reproduce
from solvers.reproduction.fit import Fit, fit
from solvers.reproduction.lab import ARMS, DS_660B, Arm, Assumptions, Lab

RATES = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
AGENTS = (256, 512, 1024, 2048)
COMPARED: tuple[Arm, ...] = ("basic", "dualpath")

Say = Callable[[float, str], None]
"""Gets the share that is done, and what is done next; may raise KeyboardInterrupt."""


def run_reproduction(
    only: tuple[str, ...], with_effects: bool, curves: bool, say: Say
) -> dict[str, Any]:
    """Run the experiments (all, or those named), and what the report draws if ``curves``.

    KeyboardInterrupt keeps what is finished: ``interrupted`` is then true.
    """
    check_names(only)
    assumptions = Assumptions()
    done = 0.0

    def said(text: str) -> None:
        say(min(0.99, done), text)

    lab = Lab(assumptions, said)
    names = tuple(dict.fromkeys(only)) or tuple(EXPERIMENTS)
    parts = len(names) + (2 if curves else 0) + (5 if with_effects else 0)
    found: dict[str, Any] = {
        "constants": asdict(assumptions.constants),
        "assumptions": {k: v for k, v in asdict(assumptions).items() if k != "constants"},
        "rows": [],
        "effects": [],
        "curves": [],
        "batches": [],
        "interrupted": False,
    }
    try:
        for name in names:
            for row in reproduce(lab, (name,)):
                found["rows"].append(asdict(row))
            done += 1 / parts
        if curves:
            for agents in AGENTS:
                found["batches"].append(_batch(lab, agents))
            done += 1 / parts
            for arm in COMPARED:
                for rate in RATES:
                    found["curves"].append(_point(lab, arm, rate))
            done += 1 / parts
        if with_effects:
            for effect in effects_of.effects(assumptions):
                said(effect.meaning)
                found["effects"].append(asdict(effect))
                done += 5 / parts / (len(effects_of.VARIANTS) + 1)
    except KeyboardInterrupt:
        found["interrupted"] = True
    return found


def run_fit(say: Say) -> Fit:
    """Fit the constants anew."""
    return fit(Assumptions(), lambda text: say(0.0, text))


def constants_file(found: Fit) -> str:
    """Return the fitted constants as the file that ``--constants`` reads."""
    left = ", ".join(f"{name} {error:+.2%}" for name, error in found.errors.items())
    values = "".join(f"{name}: {value!r}\n" for name, value in asdict(found.constants).items())
    return f"{_HEADER}# What is left after the fit: {left}.\n{values}"


_HEADER = """\
# What a serving engine adds to the roofline, in seconds per layer of the LLM: the fitted efficiency
# constants, the same for every LLM, cluster, policy and load. Written by `dualpath reproduce --fit`.
#
# How they came about: least squares of the relative errors of three figures of the paper (JCT of 2P4D
# with 2K agents 3,167 s; TTFT 1.739 s and TPOT 0.039 s at 0.4 agents/s), means over seeds 0 to 2, with
# the assumptions of solvers/reproduction/lab.py. docs/simulator.md says what else was looked at.
"""


def _batch(lab: Lab, agents: int) -> dict[str, Any]:
    return {
        "agents": agents,
        "jct_s": {arm: lab.offline(DS_660B, agents, arm).jct_s for arm in ARMS},
    }


def _point(lab: Lab, arm: Arm, rate: float) -> dict[str, Any]:
    run = lab.online(DS_660B, rate, arm)
    names = ("scheduling_s", "allocating_s", "reading_s", "prefill_s")
    return {
        "arm": arm,
        "rate_aps": rate,
        "ttft_s": run.ttft_s,
        "tpot_s": run.tpot_s["mean"],
        "parts_s": {name: getattr(run, name)["mean"] for name in names},
        "working_set_bytes": run.working_set_bytes,
    }
