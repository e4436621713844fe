"""Shared settings: reproducible property tests, strict numerics, small clusters to build on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from dualpath_model.cluster import Gpu, Node

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # shrinking a failing LP can take longer than all tests
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")
np.seterr(divide="raise", invalid="raise", over="raise")

ROOT = Path(__file__).parent.parent

# A shell ignores Ctrl-C for what it runs in the background, and so would the processes of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def uncounted() -> dict[str, str]:
    """Return an environment in which a process does not count lines.

    The counter's trace function drops a KeyboardInterrupt that arrives while it looks a file up, so a
    process that counts may live on after Ctrl-C.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture(scope="session")
def paper_node() -> Node:
    """The node of the paper's analysis: g = 8, s = 1, B = 50 GB/s, M = 500 GB/s."""
    hopper = Gpu("hopper", 989e12, 80e9, 3.35e12, fp8_flop_per_s=1979e12)
    return Node("paper", hopper, 8, 8, 50e9, 1, 50e9, dram_bytes_per_s=500e9)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


os.environ.setdefault("COLUMNS", "200")  # rich tables are not cut where there is no terminal
