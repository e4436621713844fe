"""The GPU room: matrix products, copies and the LLM's layers, on one GPU or on the CPU in its place."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from calibration.rooms import Measured, Tell, join
from dualpath_model.errors import InputError
from dualpath_model.llm import KvDtype, Llm

if TYPE_CHECKING:
    import torch

_WEIGHTS = {"products": 0.3, "copies": 0.2, "layers": 0.5}
"""Shares of the time."""


def measure_gpu(
    llm: Llm,
    *,
    kv_dtype: KvDtype,
    device: str = "auto",
    tensor: int = 1,
    seconds: float,
    tell: Tell,
    seed: int = 0,
) -> Measured:
    """Measure one GPU of a group of ``tensor``, with the shapes of ``llm``, in about ``seconds``.

    ``device``: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N". Raises InputError where
    torch or the device is missing, seconds is no time, or tensor or kv_dtype do not fit the LLM.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds {seconds} must be more than 0 and finite; give 75 or so")
    chosen = pick_device(device)
    import torch

    from calibration.copies import measure_copies
    from calibration.layers import measure_layers
    from calibration.products import measure_products

    rooms: dict[str, Callable[[float, Tell], Measured]] = {
        "products": lambda s, t: measure_products(
            llm, device=chosen, tensor=tensor, seconds=s, tell=t, seed=seed
        ),
        "copies": lambda s, t: measure_copies(
            llm, kv_dtype=kv_dtype, device=chosen, seconds=s, tell=t, seed=seed
        ),
        "layers": lambda s, t: measure_layers(
            llm, kv_dtype=kv_dtype, device=chosen, tensor=tensor, seconds=s, tell=t, seed=seed
        ),
    }
    found, done = [], 0.0
    for name, measure in rooms.items():
        width = _WEIGHTS[name]

        def part(share: float, what: str, begin: float = done, width: float = width) -> None:
            tell(begin + width * share, what)

        found.append(measure(seconds * width, part))
        if chosen.type == "cuda":
            torch.cuda.empty_cache()
        done += width
    room = join(found)
    room.settings = {
        "device": chosen.type,
        "llm": llm.name,
        "kv_dtype": str(kv_dtype),
        "tensor": tensor,
        "compute_dtype": llm.compute_dtype,
        "torch_threads": torch.get_num_threads(),
        "seed": seed,
        **room.settings,
    }
    room.tools |= tools(chosen)
    return room


def pick_device(device: str) -> torch.device:
    """Return the device that ``device`` names: "auto", "cpu", "cuda" or "cuda:N".

    Raises InputError where torch is not installed, or there is no such device.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "measuring a GPU needs torch, which is not installed; install it with "
            "`pip install 'dualpath-model[calibration]'`"
        ) from None
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device == "cpu":
        return torch.device("cpu")
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise InputError(f"device '{device}' is unknown; use auto, cpu, cuda or cuda:0")
    index = int(number or 0)
    if not torch.cuda.is_available():
        raise InputError(
            f"device '{device}' needs a GPU that torch can use, and there is none; use cpu, or install "
            f"the GPU's driver and a torch built for it"
        )
    if index >= torch.cuda.device_count():
        raise InputError(
            f"device '{device}' does not exist; there are {torch.cuda.device_count()} GPUs, numbered "
            f"from 0"
        )
    return torch.device("cuda", index)


def tools(device: torch.device) -> dict[str, str]:
    """Return the versions that rates depend on: torch, and on a GPU also CUDA and the driver."""
    import torch

    found = {"torch": str(torch.__version__)}
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["gpu_driver"] = _driver()
    return found


def _driver() -> str:
    """Return the driver's version, or "unknown" where nvidia-smi does not tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.split("\n", maxsplit=1)[0].strip() or "unknown"
