"""NVIDIA's NIXL: one-sided writes from host memory to another process's, size by size, over UCX.

Two processes on this machine: the target registers memory and gives its metadata, the initiator writes
into it. On one machine UCX takes shared memory; this measures that path, and NIXL's cost of a transfer.
Written to the Python interface of nixl 1.5 (``nixl_agent``, https://docs.nvidia.com/nixl) and run with
nixl 1.5.1 on a CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from calibration import fit
from calibration.children import Child, PeerError, child_task, child_waits, lines_of
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.profile import Sample, Series

MESSAGE_BYTES = tuple(4**k * 1024 for k in range(1, 8))
"""4 KiB to 16 MiB."""
ROUNDS = 5
_LEAST_S, _MOST_S = 1.0, 3600.0
_START_S = 60.0
"""A process that says nothing for so long is taken for dead."""
_TRANSFER_S = 20.0
"""A transfer that takes so long has failed."""


def measure_nixl(*, seconds: float, tell: Tell) -> Measured:
    """Measure NIXL writes from one process's host memory to another's on this machine.

    The time to load NIXL in both processes comes on top of ``seconds``. Series ``nixl_messages`` (at:
    bytes): from posting a transfer until its completion, mean of a batch. Raises InputError where nixl
    is missing or fails.
    """
    if importlib.util.find_spec("nixl") is None:
        raise InputError(
            "nixl is not installed, so its transfers cannot be measured; install it with "
            "`pip install nixl` (Linux; it runs without a GPU too)"
        )
    if not _LEAST_S <= seconds <= _MOST_S:
        raise InputError(
            f"seconds {seconds:g} must be from {_LEAST_S:g} to {_MOST_S:g}; 10 are usual"
        )
    tell(0.0, "NIXL")
    samples: list[Sample] = []
    version = ""
    try:
        with ExitStack() as children:
            target = Child("calibration.nixl_transfer", {})
            children.callback(target.stop)
            where = next(lines_of([target], _START_S))
            batch_s = seconds / ROUNDS / len(MESSAGE_BYTES)
            initiator = Child("calibration.nixl_transfer", where | {"batch_s": batch_s})
            children.callback(initiator.stop)
            for line in lines_of([target, initiator], _START_S + seconds):
                if "nixl" in line:
                    version = str(line["nixl"])
                    break
                samples.append(Sample.model_validate(line))
                tell(min(1.0, len(samples) / ROUNDS / len(MESSAGE_BYTES)), "NIXL")
    except PeerError as error:
        raise InputError(
            f"NIXL failed between two processes here ({error}); see whether nixl works with UCX, and "
            f"measure again"
        ) from None
    series = Series(
        name="nixl_messages",
        unit="B",
        meaning="one NIXL write (UCX) from host memory to another process's, until it is complete",
        samples=samples,
    )
    return Measured(
        series=[series],
        fits=[fit.latency_bandwidth("nixl_messages", series, range(len(samples)))],
        settings={"nixl_backend": "UCX"},
        tools={"nixl": version},
        warnings=[
            "NIXL: both agents ran on this machine, where UCX copies through shared memory, so "
            "nixl_messages is of no network"
        ],
    )


# In the two processes.


def main() -> None:
    """Be the target, or the initiator if the task names a target's ``metadata`` and ``address``."""
    task, say = child_task()
    nixl: Any = importlib.import_module("nixl._api")
    name = "initiator" if "metadata" in task else "target"
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(backends=["UCX"]))
    memory = bytearray(b"\x5a") * MESSAGE_BYTES[-1]
    address = _address(memory)
    agent.register_memory([(address, len(memory), 0, "")], "DRAM")  # ends with the process
    if "metadata" in task:
        from importlib.metadata import version

        memory[:] = os.urandom(len(memory))
        _check(agent, memory, address, task)
        for sample in _initiate(agent, address, task):
            say(**sample)
        say(nixl=version("nixl"))
    else:
        say(metadata=agent.get_agent_metadata().hex(), address=address)
    child_waits()


def _address(memory: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _handle(agent: Any, what: str, address: int, size: int, task: dict[str, Any]) -> Any:
    return agent.initialize_xfer(
        what,
        agent.get_xfer_descs([(address, size, 0)], "DRAM"),
        agent.get_xfer_descs([(task["address"], size, 0)], "DRAM"),
        "target",
    )


def _check(agent: Any, memory: bytearray, address: int, task: dict[str, Any]) -> None:
    """Write all memory to the target and read it back, so that what is timed is known to arrive."""
    agent.add_remote_agent(bytes.fromhex(task["metadata"]))
    sent = bytes(memory)
    _transfer(agent, _handle(agent, "WRITE", address, len(memory), task))
    memory[:] = bytes(len(memory))
    _transfer(agent, _handle(agent, "READ", address, len(memory), task))
    if memory != sent:
        raise RuntimeError("what NIXL read back is not what it wrote")


def _initiate(agent: Any, address: int, task: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Write into the target in rounds over all sizes; give each batch as a sample's fields."""
    handles = [_handle(agent, "WRITE", address, size, task) for size in MESSAGE_BYTES]
    for handle in handles:
        _transfer(agent, handle)
    for _ in range(ROUNDS):
        for size, handle in zip(MESSAGE_BYTES, handles, strict=True):
            count = 0
            begun = time.perf_counter()
            while not count or time.perf_counter() - begun < task["batch_s"]:
                _transfer(agent, handle)
                count += 1
            yield {
                "at": {"bytes": size, "messages": count},
                "seconds": (time.perf_counter() - begun) / count,
                "amount": size,
            }


def _transfer(agent: Any, handle: Any) -> None:
    end = time.monotonic() + _TRANSFER_S
    state = agent.transfer(handle)
    while state == "PROC" and time.monotonic() < end:
        state = agent.check_xfer_state(handle)
    if state != "DONE":
        raise RuntimeError(f"a NIXL transfer ended as {state}")


if __name__ == "__main__":
    main()
