"""What a measurement leaves behind: names in a folder, disk space, processes."""

import os
import time
from collections.abc import Callable
from pathlib import Path


def names(folder: Path) -> set[str]:
    """Return what is in it, hidden files too."""
    return {path.name for path in folder.iterdir()}


def held(folder: Path) -> dict[int, int]:
    """Disk bytes of each file of ``folder`` that this process holds open, with or without a name."""
    used = {}
    device = folder.stat().st_dev
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
            found = os.fstat(int(descriptor.name))
        except OSError:
            continue
        if target.startswith(f"{folder}/") and found.st_dev == device:
            used[found.st_ino] = found.st_blocks * 512
    return used


def disk_used(folder: Path) -> int:
    """Return the disk bytes of all that :func:`held` finds."""
    return sum(held(folder).values())


def children(process: int) -> list[int]:
    """Return the numbers of its child processes."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


def gone(process: int) -> bool:
    """Tell whether it has ended; one whose parent has not asked yet (state Z) has."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until it holds, at most so long; return whether it does."""
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    return condition()
