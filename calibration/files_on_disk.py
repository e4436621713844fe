"""Test files without a name: real data on a disk that no exit, however sudden, leaves behind.

The kernel frees a file that has no name when its last descriptor closes, and it closes the descriptors
of a process that ends, by Ctrl-C or SIGKILL alike. Space is checked, then reserved, then filled with
random data, so that no layer below finds holes, zeros or repetitions to answer from.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dualpath_model.errors import InputError
from dualpath_model.quantities import Dimension, show

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 4096
"""Bytes: offsets, lengths and buffers of O_DIRECT are multiples of it; no usual device needs more."""

_HUGE_PAGE = 2 * 2**20

IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")

_RESERVE_SHARE, _RESERVE_MOST = 0.05, 2**30
"""Convention: this share of a file system, at most so many bytes, is left free beside the test data."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


def check_folder(folder: Path, space_bytes: int) -> None:
    """Check that ``space_bytes`` of test data can be put into ``folder``; nothing is left there.

    Raises InputError for a folder that is missing, no folder, not writable or too full.
    """
    if not folder.exists():
        raise InputError(f"folder {folder} does not exist; make it, or name one that does")
    if not folder.is_dir():
        raise InputError(f"folder {folder} is not a folder; name the folder it is in, or another")
    with explained(folder):
        os.close(_open_nameless(folder))
        found = os.statvfs(folder)
    if found.f_blocks == 0:  # ramfs and some network file systems do not tell their size
        return
    free = found.f_bavail * found.f_frsize
    reserve = min(_RESERVE_MOST, math.ceil(_RESERVE_SHARE * found.f_blocks * found.f_frsize))
    if free < space_bytes + reserve:
        raise InputError(
            f"folder {folder} has {_bytes(free)} free, but {_bytes(space_bytes + reserve)} are needed "
            f"({_bytes(space_bytes)} of test data, {_bytes(reserve)} left free); free some, name "
            f"another folder or allow less space"
        )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what the system says about test files in ``folder`` into an InputError of one sentence."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in _FULL:
            raise InputError(
                f"folder {folder} is full or over its quota ({why}) while test data is written; free "
                f"some space, name another folder or allow less space"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(
                f"folder {folder} cannot be written to ({why}); name a folder that you may write to"
            ) from None
        raise InputError(
            f"folder {folder}: reading or writing test data failed ({why}); check that disk, or name "
            f"another folder"
        ) from None


class DataFile:
    """An open file without a name, with its space reserved; made full by :meth:`fill`.

    ``direct``: reads and writes pass by the page cache (O_DIRECT). Where the file system refuses that,
    reads drop what they read from the cache and writes wait for the storage.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        """Reserve ``size_bytes``, a multiple of :data:`ALIGNMENT`; raises InputError on a full disk."""
        self.folder = folder
        self.size_bytes = size_bytes
        self.direct = False
        with explained(folder):
            self.fd = _open_nameless(folder)
            try:
                os.posix_fallocate(self.fd, 0, size_bytes)
                self.direct = _set_direct(self.fd)
            except BaseException:
                os.close(self.fd)
                raise

    @classmethod
    def inherited(cls, folder: Path, fd: int, size_bytes: int, direct: bool) -> Self:
        """Take over a filled file that the process which started this one has opened."""
        file = cls.__new__(cls)
        file.folder, file.fd, file.size_bytes, file.direct = folder, fd, size_bytes, direct
        return file

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, which frees its space."""
        os.close(self.fd)

    def read(self, into: memoryview, offset: int) -> None:
        """Read ``len(into)`` bytes; all or an OSError."""
        if os.preadv(self.fd, [into], offset) != len(into):
            raise OSError(errno.EIO, "a read came back short")
        if not self.direct:
            os.posix_fadvise(self.fd, offset, len(into), os.POSIX_FADV_DONTNEED)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data``, or raise an OSError."""
        flags = 0 if self.direct else os.RWF_DSYNC
        done = os.pwritev(self.fd, [data], offset, flags)
        if done != len(data):  # what a disk does that fills up in the middle
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not self.direct:
            os.posix_fadvise(self.fd, offset, len(data), os.POSIX_FADV_DONTNEED)

    def fill(
        self,
        rng: np.random.Generator,
        *,
        step_bytes: int,
        least_bytes: int,
        told: Callable[[float], bool],
    ) -> None:
        """Write random data in steps; cut the file where ``told(share done)`` says that time is up.

        At least ``least_bytes`` are written. Raises InputError where the disk is full after all.
        """
        buffer = aligned_buffer(step_bytes)
        done = 0
        with explained(self.folder):
            while done < self.size_bytes:
                size = min(step_bytes, self.size_bytes - done)
                randomize(buffer, rng)
                self.write(buffer[:size], done)
                done += size
                if not told(done / self.size_bytes) and done >= least_bytes:
                    break
            os.ftruncate(self.fd, done)
        self.size_bytes = done

    def answers_from_memory(self) -> bool:
        """Tell whether the page cache holds the file's first bytes, which were just read past it.

        Some file systems accept O_DIRECT and cache all the same; on others the cache cannot be
        dropped. False also where that cannot be found out.
        """
        block = aligned_buffer(ALIGNMENT)
        self.read(block, 0)
        try:
            cached = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY)
        except OSError:
            return False
        try:
            return os.preadv(cached, [block], 0, os.RWF_NOWAIT) > 0
        except OSError:  # EAGAIN: it would have to wait for the storage, as it should
            return False
        finally:
            os.close(cached)


def aligned_buffer(size_bytes: int, *, huge_pages: bool = False) -> memoryview:
    """Return memory of whole pages that is already there, in huge pages if asked, or else in none.

    A disk reads into a list of pieces of physical memory, and a long list is cut into several requests
    (virtio: 254 pieces, where 1 MiB can be 256 pages). How scattered small pages lie is luck that makes
    such a disk up to 3 times as slow, from one run to the next; huge pages leave it no part.
    """
    import numpy as np

    area = mmap.mmap(
        -1,
        size_bytes + (2 * _HUGE_PAGE if huge_pages else 0),
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
    )
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            area.madvise(mmap.MADV_HUGEPAGE if huge_pages else mmap.MADV_NOHUGEPAGE)
    skipped = -np.frombuffer(area, np.uint8).ctypes.data % _HUGE_PAGE if huge_pages else 0
    found = memoryview(area)[skipped : skipped + size_bytes]
    for page in range(0, size_bytes, ALIGNMENT):
        found[page] = 1
    return found


def randomize(buffer: memoryview, rng: np.random.Generator) -> None:
    """Fill ``buffer``, a multiple of 8 bytes, with random bytes."""
    import numpy as np

    words = np.frombuffer(buffer, np.uint64)
    words[:] = rng.integers(0, 2**64, len(words), np.uint64)


def aligned(size_bytes: int) -> int:
    """Round up to a multiple of :data:`ALIGNMENT`."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def file_system(folder: Path, mounts: str | None = None) -> str:
    """Return the kind of file system that ``folder`` is on, such as ext4; "unknown" where not told.

    ``mounts`` is the text of /proc/self/mounts, which is read where it is not given.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "unknown"
    where = folder.resolve()
    best, kind = -1, "unknown"
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(_unescaped(fields[1]))
        # Of mounts on one point the last is on top.
        if (where == point or point in where.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def _unescaped(text: str) -> str:
    """Undo the octal escapes of /proc/mounts (a space is ``\\040``)."""
    head, *rest = text.split("\\")
    return head + "".join(
        chr(int(part[:3], 8)) + part[3:] if part[:3].isdigit() else "\\" + part for part in rest
    )


def _open_nameless(folder: Path) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    # Network file systems mostly cannot; there the name lives for two system calls, unless a signal
    # that Python could handle comes between them, which is held back.
    held = _hold_interrupts()
    try:
        fd, path = tempfile.mkstemp(prefix=".dualpath-", dir=folder)
        Path(path).unlink()
    finally:
        held()
    return fd


def _hold_interrupts() -> Callable[[], None]:
    """Block Ctrl-C and the like for this thread; returns what lets them through again."""
    import signal

    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    )

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return release


def _set_direct(fd: int) -> bool:
    """Switch the page cache off for ``fd``; False where the file system refuses, at once or later."""
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, before | os.O_DIRECT)
        block = aligned_buffer(ALIGNMENT)
        os.pwritev(fd, [block], 0)
        os.preadv(fd, [block], 0)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        fcntl.fcntl(fd, fcntl.F_SETFL, before)
        return False
    return True


def _bytes(value: float) -> str:
    return show(float(value), Dimension.BYTES)
