"""A calibration from end to end: check everything first, measure part after part, make the profile."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from calibration.machine import this_machine
from calibration.rooms import BLOCK_TOKENS, Measured, Tell, join
from dualpath_model import __version__
from dualpath_model.errors import InputError
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.profile import Machine, Part, PartName, Profile

_LONGEST = {
    PartName.GPU: 0.47,
    PartName.MEMORY: 0.06,
    PartName.STORAGE: 0.27,
    PartName.NETWORK: 0.2,
}
"""Shares of the time, of all parts; those that are asked for divide the time among them."""

_LOAD_BYTES = 2**27
_BUSY_SHARE = 0.15

LEAST_SECONDS = 2.0
"""Of one part; less measures nothing."""

LONGEST_NAME = 200
"""Characters of a profile's name."""


@dataclass(frozen=True)
class Wish:
    """What to measure. ``device``: "auto", "cpu" or "cuda"; ``folder``: where storage is mounted.

    ``peer`` None: the network part talks to a process on this machine, else to HOST:PORT.
    """

    llm: Llm
    folder: Path
    parts: tuple[PartName, ...] = tuple(PartName)
    kv_dtype: KvDtype | None = None
    device: str = "auto"
    tensor: int = 1
    space_bytes: int = 2**30
    peer: str | None = None
    streams: int = 4
    seconds: float = 150.0
    name: str = ""
    seed: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of a full block of the LLM's KV-cache."""
        return round(BLOCK_TOKENS * self.llm.kv_bytes_per_token(self.dtype))

    @property
    def dtype(self) -> KvDtype:
        """The KV-cache's dtype: the one asked for, or the LLM's own."""
        return self.kv_dtype or self.llm.default_kv_dtype

    def seconds_of(self, part: PartName) -> float:
        """Return the time of one part."""
        return self.seconds * _LONGEST[part] / sum(_LONGEST[other] for other in self.parts)


def check(wish: Wish) -> None:
    """Raise InputError for what would stop the calibration later: nothing has been measured yet."""
    if not wish.parts:
        raise InputError(f"parts is empty; give some of {', '.join(PartName)}")
    checked_name(wish.name)
    shares = [_LONGEST[part] for part in wish.parts]
    least = math.ceil(LEAST_SECONDS * sum(shares) / min(shares))
    if not least <= wish.seconds <= 86400:  # not a number is not allowed either
        raise InputError(
            f"seconds {wish.seconds:g} is not allowed; these parts need {least} to 86400"
        )
    wish.llm.kv_bytes_per_token(wish.dtype)
    if PartName.GPU in wish.parts:
        _check_torch(wish)
    if PartName.STORAGE in wish.parts:
        from calibration.block_io import checked_block, checked_blocks
        from calibration.files_on_disk import check_folder

        checked_blocks(wish.space_bytes, checked_block(wish.block_bytes))
        check_folder(wish.folder, wish.space_bytes)
    if PartName.NETWORK in wish.parts and wish.peer is not None:
        from calibration.network import session

        with session(wish.peer):  # it answers
            pass


def _check_torch(wish: Wish) -> None:
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            "the gpu part needs torch, which is not installed; pip install "
            "'dualpath-model[calibration]', or leave the part out with --only"
        )
    heads = wish.llm.attention.heads
    if wish.tensor < 1 or heads % wish.tensor:
        raise InputError(
            f"tensor {wish.tensor} does not divide the {heads} heads of {wish.llm.name}; give a divisor"
        )
    if wish.device != "auto":  # torch takes seconds to import
        from calibration.gpu import pick_device

        pick_device(wish.device)


def calibrate(wish: Wish, tell: Tell) -> Profile:
    """Measure and fit. Raises InputError, one sentence, before anything else where it cannot be done.

    KeyboardInterrupt goes through; no file and no process is left behind then.
    """
    check(wish)
    busy = _busy_share()
    parts: dict[PartName, Part] = {}
    done = 0.0
    for part in wish.parts:
        share = wish.seconds_of(part) / wish.seconds
        told = _within(tell, done, share, f"{part}: ")
        told(0.0, "getting ready")
        found = _ROOMS[part](wish, told)
        if busy > _BUSY_SHARE:
            found.warnings.insert(
                0,
                f"other programs had {busy:.0%} of the processor when this began: rates are lower than "
                f"the machine's own, and intervals do not hold that; measure again when it is idle",
            )
        parts[part] = measured_part(found)
        done += share
    return Profile(name=wish.name or default_name(parts), parts=parts)


def _busy_share() -> float:
    """Return the share of the processor that programs use before anything is measured."""
    import psutil

    return float(psutil.cpu_percent(interval=0.5)) / 100.0


def _within(tell: Tell, done: float, share: float, title: str = "") -> Tell:
    """Return a way to tell of a part of the work that begins at ``done`` and is ``share`` of it."""
    return lambda inner, text: tell(done + share * min(max(inner, 0.0), 1.0), title + text)


def measured_part(found: Measured, machine: Machine | None = None) -> Part:
    """Return what a room found as a part of a profile, of ``machine`` or this one, dated now."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return Part(
        machine=machine or this_machine(str(found.settings.get("device", ""))),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tools={"dualpath": __version__, "python": version, **found.tools},
        settings=found.settings,
        series=found.series,
        fits=found.fits,
        figures=found.figures,
        attention=found.attention,
        warnings=found.warnings,
    )


def checked_name(name: str) -> str:
    """Return a profile's name. Raises InputError for one that is too long or not one line."""
    if len(name) > LONGEST_NAME or not name.isprintable():
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise InputError(
            f"name {shown!r} is not allowed; give one line of at most {LONGEST_NAME} characters"
        )
    return name


def default_name(parts: dict[PartName, Part]) -> str:
    """Return a name for a profile: host, GPU if any, day."""
    first = next(iter(parts.values()))
    gpu = parts[PartName.GPU].machine.gpu if PartName.GPU in parts else ""
    words = [first.machine.host, gpu.replace(" ", "-"), first.date[:10]]
    return "-".join(word for word in words if word)


# ---- the parts -----------------------------------------------------------------------------------


def _gpu(wish: Wish, tell: Tell) -> Measured:
    from calibration.gpu import measure_gpu

    return measure_gpu(
        wish.llm,
        kv_dtype=wish.dtype,
        device=wish.device,
        tensor=wish.tensor,
        seconds=wish.seconds_of(PartName.GPU),
        tell=tell,
        seed=wish.seed,
    )


def _memory(wish: Wish, tell: Tell) -> Measured:
    from calibration.memory import measure_memory

    return measure_memory(seconds=wish.seconds_of(PartName.MEMORY), tell=tell)


def _storage(wish: Wish, tell: Tell) -> Measured:
    from calibration.storage import measure_storage

    return measure_storage(
        wish.folder,
        block_bytes=wish.block_bytes,
        space_bytes=wish.space_bytes,
        seconds=wish.seconds_of(PartName.STORAGE),
        tell=tell,
        seed=wish.seed,
    )


def _network(wish: Wish, tell: Tell) -> Measured:
    """Measure TCP, while storage is read too if that part is wanted, and what else is installed."""
    from calibration.network import measure_network

    load: Callable[[], AbstractContextManager[object]] | None = None
    if PartName.STORAGE in wish.parts:
        from calibration.storage_load import ReadLoad

        def load() -> AbstractContextManager[object]:
            # small, since it is written anew in each round; several blocks for each of its readers
            space = min(wish.space_bytes, max(_LOAD_BYTES, 32 * wish.block_bytes))
            return ReadLoad(wish.folder, wish.block_bytes, space, 8)

    rooms: list[tuple[float, Callable[[float, Tell], Measured]]] = [
        (
            0.6,
            lambda seconds, told: measure_network(
                peer=wish.peer,
                streams=wish.streams,
                seconds=seconds,
                tell=told,
                storage_load=load,
            ),
        )
    ]
    if importlib.util.find_spec("torch") is not None and wish.peer is None:
        from calibration.collectives import measure_collectives

        rooms.append((0.4, lambda seconds, told: measure_collectives(seconds=seconds, tell=told)))
    if importlib.util.find_spec("nixl") is not None and wish.peer is None:
        from calibration.nixl_transfer import measure_nixl

        rooms.append((0.2, lambda seconds, told: measure_nixl(seconds=seconds, tell=told)))
    whole, done = sum(weight for weight, _ in rooms), 0.0
    found: list[Measured] = []
    for weight, room in rooms:
        share = weight / whole
        found.append(room(wish.seconds_of(PartName.NETWORK) * share, _within(tell, done, share)))
        done += share
    return join(found)


_ROOMS: dict[PartName, Callable[[Wish, Tell], Measured]] = {
    PartName.GPU: _gpu,
    PartName.MEMORY: _memory,
    PartName.STORAGE: _storage,
    PartName.NETWORK: _network,
}
