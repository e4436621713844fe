"""The machine that is measured: what it says of itself."""

from __future__ import annotations

import platform
from pathlib import Path

from dualpath_model.profile import Machine


def this_machine(device: str | None = None) -> Machine:
    """Return this machine; ``device`` "cuda": with its GPUs, as torch sees them."""
    import psutil

    machine = Machine(
        host=platform.node() or "unknown",
        system=platform.platform(),
        cpu=_cpu(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=float(psutil.virtual_memory().total),
    )
    if device != "cuda":
        return machine
    import torch

    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return machine.model_copy(
        update={
            "gpu": found.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_bytes": float(found.total_memory),
        }
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
