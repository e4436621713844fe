"""Outputs of the usual measuring tools as series and figures of a profile: the list of tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from calibration.importers import fio, iperf3, nccl_tests, nvbandwidth, perftest
from calibration.importers.common import Reader, read_text
from calibration.rooms import Measured
from dualpath_model.errors import InputError, unknown_name
from dualpath_model.profile import PartName, Setting

_NOTHING: Mapping[str, Setting] = MappingProxyType({})


class Tool(NamedTuple):
    """A tool whose output can be imported: what it measures, what to run, the part that it feeds."""

    meaning: str
    run: str
    part: PartName
    read: Reader
    is_its: Callable[[str], bool]


TOOLS: dict[str, Tool] = {
    "fio": Tool(
        "reads and writes of a file or a disk", fio.RUN, PartName.STORAGE, fio.read, fio.is_fio
    ),
    "iperf3": Tool(
        "a network's rate over TCP or UDP",
        iperf3.RUN,
        PartName.NETWORK,
        iperf3.read,
        iperf3.is_iperf3,
    ),
    "perftest": Tool(
        "an RDMA network's rate and latency (ib_write_bw, ib_read_bw, ib_send_bw, ib_write_lat, ...)",
        perftest.RUN,
        PartName.NETWORK,
        perftest.read,
        perftest.is_perftest,
    ),
    "nvbandwidth": Tool(
        "copies of a GPU, with the host and inside its memory",
        nvbandwidth.RUN,
        PartName.GPU,
        nvbandwidth.read,
        nvbandwidth.is_nvbandwidth,
    ),
    "nccl-tests": Tool(
        "messages between GPUs through NCCL (sendrecv_perf)",
        nccl_tests.RUN,
        PartName.NETWORK,
        nccl_tests.read,
        nccl_tests.is_nccl_tests,
    ),
}
"""The tools that can be imported, by the name on the command line."""


def import_output(
    tool: str, path: Path, *, extra: Mapping[str, Setting] = _NOTHING
) -> tuple[PartName, Measured]:
    """Read a tool's output file: the part that it feeds, and what was measured.

    ``extra``: settings to add, such as the command line. Raises InputError, one sentence with file,
    what is wrong and remedy, for an unknown tool and for a file that is not that tool's good output.
    """
    if tool not in TOOLS:
        raise unknown_name("tool", tool, TOOLS)
    chosen = TOOLS[tool]
    text = read_text(path, chosen.run)
    if not chosen.is_its(text):
        for other, its in TOOLS.items():
            if its.is_its(text):
                raise InputError(
                    f"{path}: this looks like {other}'s output, not {tool}'s; use `calibrate import "
                    f"{other}`"
                )
    measured = chosen.read(text, str(path))
    measured.settings = {**measured.settings, "file": path.name, **extra}
    return chosen.part, measured
