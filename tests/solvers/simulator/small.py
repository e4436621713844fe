"""Small runs in plain Python: given turns on an example's hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from dualpath_model import load_scenario
from dualpath_model.scenario import Scenario
from solvers.scheduling import configure
from solvers.simulator.constants import Constants
from solvers.simulator.model import Simulation, Switches, prepare
from solvers.simulator.state import RESULT_FIELDS, Traffic
from tests.conftest import ROOT

Turns = Sequence[tuple[int, int, int]]
"""Prompt, hit and output tokens of each turn of a session."""


@cache
def example(name: str = "ds-27b-1p1d") -> Scenario:
    return load_scenario(ROOT / "examples" / f"{name}.yaml")


def traffic(sessions: Sequence[Turns], start_s: Sequence[float] | None = None) -> Traffic:
    """One agent for each session."""
    columns = np.array([turn for turns in sessions for turn in turns], dtype=np.int64)
    ends = np.cumsum([len(turns) for turns in sessions])
    starts = np.zeros(len(sessions)) if start_s is None else np.array(start_s)
    return Traffic(
        prompt=columns[:, 0].copy(),
        hit=columns[:, 1].copy(),
        output=columns[:, 2].copy(),
        think_ns=np.zeros(len(columns), dtype=np.int64),
        first=np.concatenate(([0], ends[:-1])).astype(np.int64),
        last=ends.astype(np.int64),
        start_ns=np.rint(starts * 1e9).astype(np.int64),
    )


def begin(
    work: Traffic,
    scenario: Scenario | None = None,
    policy: str = "dualpath",
    *,
    constants: Constants | None = None,
    switches: Switches | None = None,
) -> Simulation:
    found = scenario or example()
    settings, nodes = configure(found, policy)
    return prepare(
        found, settings, nodes, work, constants=constants, switches=switches, compiled=False
    )


def with_buffers(scenario: Scenario, prefill: int, decode: int) -> Scenario:
    """The scenario with room for so many tokens of KV-cache in each node's DRAM buffer."""
    token = scenario.llm.kv_bytes_per_token(scenario.serving.kv_dtype)
    cluster = scenario.cluster
    return scenario.on(
        replace(
            cluster,
            prefill=tuple(
                replace(node, buffer_bytes=(prefill + 0.5) * token) for node in cluster.prefill
            ),
            decode=tuple(
                replace(node, buffer_bytes=(decode + 0.5) * token) for node in cluster.decode
            ),
        )
    )


def column(run: Simulation, name: str) -> np.ndarray:
    """A column of the results in whole nanoseconds (or a number), in the order of ending."""
    return run.rows[:, RESULT_FIELDS.index(name)]
