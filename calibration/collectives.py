"""torch.distributed point to point between two ranks on this machine: ping-pong, message by message.

Two processes, gloo on CPU tensors or NCCL with a GPU for each rank. A rank that dies ends the
measurement, and both ranks end with this process.
"""

from __future__ import annotations

import importlib.util
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from calibration import fit
from calibration.children import Child, PeerError, child_task, child_waits, lines_of
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.profile import Sample, Series

if TYPE_CHECKING:
    import torch

Backend = Literal["gloo", "nccl"]

MESSAGE_BYTES = (8, *(4**k * 1024 for k in range(1, 8)))
"""8 bytes, for the latency, and 4 KiB to 16 MiB."""
ROUNDS = 5
_LEAST_S, _MOST_S = 1.0, 3600.0
_SILENCE_S = 60.0
"""A rank that says nothing for so long (beyond its measuring) is taken for dead; torch loads slowly."""
_MOST_MESSAGES = 10_000
"""Of one order; a batch has as many orders as fill its time."""


def measure_collectives(*, seconds: float, tell: Tell, backend: Backend | None = None) -> Measured:
    """Measure messages between two ranks of torch.distributed on this machine, in ``seconds``.

    The time to load torch in both ranks comes on top. ``backend`` None: nccl where there are two GPUs,
    or else gloo. Series ``collective_messages`` (at: bytes, backend): one way, half of a round trip,
    mean of a batch; ``collective_latency``: the same for 8 bytes. Raises InputError where torch or a GPU
    is missing, and where a rank dies.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "torch is not installed, so torch.distributed cannot be measured; install it with "
            "`pip install 'dualpath-model[calibration]'`"
        )
    if not _LEAST_S <= seconds <= _MOST_S:
        raise InputError(
            f"seconds {seconds:g} must be from {_LEAST_S:g} to {_MOST_S:g}; 10 are usual"
        )
    chosen = _backend(backend)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    task: dict[str, object] = {
        "port": port,
        "backend": chosen,
        "batch_s": seconds / ROUNDS / len(MESSAGE_BYTES),
        "limit_s": _SILENCE_S + seconds,
    }
    # Gloo asks the host's name for its address, which may lead to an interface that goes nowhere.
    environment = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    tell(0.0, f"torch.distributed, {chosen}")
    samples, torch_version = _gather(task, environment, tell)
    return _measured(samples, chosen, torch_version)


def _backend(wanted: Backend | None) -> Backend:
    import torch
    from torch import distributed

    if not distributed.is_available():
        raise InputError(
            "this torch was built without torch.distributed; install another build of torch"
        )
    gpus = torch.cuda.device_count()
    able = gpus >= 2 and distributed.is_nccl_available()
    if wanted == "nccl" and not able:
        raise InputError(
            f"backend nccl needs two GPUs and a torch with NCCL, and {gpus} GPUs are here; use gloo"
        )
    return wanted or ("nccl" if able else "gloo")


def _gather(
    task: dict[str, object], environment: dict[str, str], tell: Tell
) -> tuple[list[Sample], str]:
    """Run both ranks; return rank 0's samples and torch's version."""
    samples: list[Sample] = []
    try:
        with ExitStack() as stack:
            ranks = []
            for rank in (0, 1):
                child = Child("calibration.collectives", task | {"rank": rank}, **environment)
                stack.callback(child.stop)
                ranks.append(child)
            for line in lines_of(ranks, float(str(task["limit_s"]))):
                if "torch" in line:
                    return samples, str(line["torch"])
                samples.append(Sample.model_validate(line))
                done = len(samples) / ROUNDS / len(MESSAGE_BYTES)
                tell(min(1.0, done), f"torch.distributed, {task['backend']}")
    except PeerError as error:
        raise InputError(
            f"torch.distributed with {task['backend']} failed between two ranks here ({error}); see "
            f"whether torch works, and measure again"
        ) from None
    raise AssertionError("lines_of() ends only with an error")


def _measured(samples: list[Sample], backend: Backend, torch_version: str) -> Measured:
    series = Series(
        name="collective_messages",
        unit="B",
        meaning="one message one way over torch.distributed: half of a round trip, mean of a batch",
        samples=[sample for sample in samples if sample.amount],
    )
    short = Series(
        name="collective_latency",
        unit="",
        meaning=f"the same for {MESSAGE_BYTES[0]} bytes",
        samples=[sample for sample in samples if not sample.amount],
    )
    message = fit.latency_bandwidth("collective_messages", series, range(len(series.samples)))
    latency = fit.typical(
        "collective_latency", short, range(len(short.samples)), parameter="seconds"
    )
    over = "NVLink or PCIe" if backend == "nccl" else "memory and the kernel's loopback"
    return Measured(
        series=[series, short],
        fits=[message, latency],
        figures={
            "collective_bytes_per_s": fit.figure(message, "bytes_per_s"),
            "collective_latency_s": fit.figure(latency, "seconds"),
        },
        settings={"collective_backend": backend},
        tools={"torch": torch_version},
        warnings=[
            f"torch.distributed: both ranks ran on this machine ({backend}), so collective figures are "
            f"of {over}, and of no network"
        ],
    )


# In the ranks.


def main() -> None:
    """Be one of the two ranks, as the task says; rank 0 writes its samples as lines."""
    task, say = child_task()
    import torch
    from torch import distributed

    limit = timedelta(seconds=task["limit_s"])
    rank: int = task["rank"]
    distributed.init_process_group(
        task["backend"],
        init_method=f"tcp://127.0.0.1:{task['port']}",
        rank=rank,
        world_size=2,
        timeout=limit,
    )
    device = torch.device("cuda", rank) if task["backend"] == "nccl" else torch.device("cpu")
    if rank == 0:
        for sample in _lead(device, task["batch_s"], task["backend"]):
            say(**sample)
        say(torch=torch.__version__)
    else:
        _follow(device)
    child_waits()


def _lead(device: torch.device, batch_s: float, backend: str) -> Iterator[dict[str, object]]:
    """Drive the rounds and give each batch as a sample's fields."""
    import torch
    from torch import distributed

    order = torch.zeros(2, dtype=torch.int64, device=device)
    buffers = _buffers(device)

    def one_way_s(which: int, count: int) -> float:
        order[0], order[1] = which, count
        distributed.send(order, 1)
        distributed.recv(order, 1)  # the other is ready now
        _idle(device)
        begun = time.perf_counter()
        for _ in range(count):
            distributed.send(buffers[which], 1)
            distributed.recv(buffers[which], 1)
        _idle(device)
        return (time.perf_counter() - begun) / count / 2

    for which in range(len(MESSAGE_BYTES)):  # connections are made at the first message
        one_way_s(which, 2)
    for _ in range(ROUNDS):
        for which, size in enumerate(MESSAGE_BYTES):
            end = time.perf_counter() + batch_s
            chunk = max(1, min(_MOST_MESSAGES, int(batch_s / 10 / one_way_s(which, 1))))
            done, spent_s = 0, 0.0
            while not done or time.perf_counter() < end:
                spent_s += chunk * one_way_s(which, chunk)
                done += chunk
            yield {
                "at": {"bytes": size, "messages": done, "backend": backend},
                "seconds": spent_s / done,
                "amount": size if size > MESSAGE_BYTES[0] else 0,
            }


def _follow(device: torch.device) -> None:
    """Send back what comes, until the process is ended."""
    import torch
    from torch import distributed

    order = torch.zeros(2, dtype=torch.int64, device=device)
    buffers = _buffers(device)
    while True:
        distributed.recv(order, 0)
        which, count = order.tolist()
        distributed.send(order, 0)
        for _ in range(count):
            distributed.recv(buffers[which], 0)
            distributed.send(buffers[which], 0)


def _buffers(device: torch.device) -> list[torch.Tensor]:
    import torch

    return [torch.ones(size, dtype=torch.uint8, device=device) for size in MESSAGE_BYTES]


def _idle(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
