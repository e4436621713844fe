"""A storage load: random reads in a process of their own while something else is measured.

``python -m calibration.storage_load`` is that process; :class:`ReadLoad` starts it, gives it the test
file and counts what it has read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

import numpy as np
import numpy.typing as npt

from calibration.block_io import Buffers, Stream, checked_block, checked_blocks, keep_busy
from calibration.files_on_disk import DataFile, check_folder
from dualpath_model.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType


class ReadLoad:
    """Random reads in a process of their own, from ``with`` to its end, beside what is measured there.

    The process ends with the block, and with this process however that ends: its standard input is a
    pipe from here, and it looks whose child it is. The test file has no name, so nothing stays.
    """

    def __init__(self, folder: Path, block_bytes: int, space_bytes: int, depth: int) -> None:
        """Check the folder; raises InputError as ``measure_storage`` does."""
        self.folder, self.depth = folder, depth
        self.block_bytes = checked_block(block_bytes)
        self.size_bytes = checked_blocks(space_bytes, self.block_bytes) * self.block_bytes
        if not 1 <= depth <= 1024:
            raise InputError(
                f"depth {depth} of the storage load must be from 1 to 1024; 16 is usual"
            )
        check_folder(folder, space_bytes)
        self._end = contextlib.ExitStack()
        self._board: npt.NDArray[np.int64] = np.zeros(depth + 1, np.int64)
        self._failure: InputError | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Write the test data and start reading; returns when the first block has been read."""
        with contextlib.ExitStack() as end:
            file = end.enter_context(DataFile(self.folder, self.size_bytes))
            file.fill(
                np.random.default_rng(0),
                step_bytes=self.block_bytes,
                least_bytes=self.size_bytes,
                told=lambda _: True,
            )
            board = os.memfd_create("dualpath-read-load")
            end.callback(os.close, board)
            os.ftruncate(board, 8 * (self.depth + 1))
            self._board = _shared(board, self.depth)
            numbers = (file.fd, file.size_bytes, file.direct, board, self.block_bytes, self.depth)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "calibration.storage_load"),
                    str(self.folder),
                    str(os.getpid()),
                    *(str(int(number)) for number in numbers),
                ],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(file.fd, board),
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
            end.callback(self._stop)
            while self.bytes_read == 0:
                if self._process.poll() is not None:
                    break
                time.sleep(0.005)
            if self._process.poll() is None:
                self._end = end.pop_all()
                return self
        # It ended before it had read a block; the stack has been unwound, and stopping told why.
        raise self._failure or InputError(
            f"the storage load on folder {self.folder} ended at once; measure again"
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the reads; raises InputError where they had ended before."""
        self._end.close()
        if self._failure is not None and kind is None:
            raise self._failure

    @property
    def bytes_read(self) -> int:
        """Bytes read until now."""
        return int(self._board[:-1].sum())

    @property
    def process_id(self) -> int:
        """The number of the process that reads; raises InputError before the load is started."""
        if self._process is None:
            raise InputError("the storage load has not been started; use it in a `with` block")
        return self._process.pid

    def _stop(self) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stderr is None:
            return
        try:
            self._board[-1] = 1
            process.stdin.close()
            if process.wait(timeout=5.0) != 0:
                said = process.stderr.read().decode(errors="replace").strip().splitlines()
                why = said[-1] if said else f"its exit status is {process.returncode}"
                self._failure = InputError(
                    f"the storage load on folder {self.folder} ended early ({why}); measure again"
                )
        except subprocess.TimeoutExpired:
            pass
        finally:  # after Ctrl-C, too
            process.kill()
            process.wait()
            process.stderr.close()


def _shared(board: int, depth: int) -> npt.NDArray[np.int64]:
    """Bytes read by each thread, and whether to stop."""
    return np.frombuffer(mmap.mmap(board, 8 * (depth + 1)), np.int64)


def _serve_load(arguments: Sequence[str]) -> NoReturn:
    """Read until standard input closes or the parent is another: the load's process."""
    folder = Path(arguments[0])
    parent, fd, size, direct, board, block, depth = map(int, arguments[1:])
    stop = threading.Event()
    shared = _shared(board, depth)
    rng = np.random.default_rng(1)
    stream = Stream.random(DataFile.inherited(folder, fd, size, bool(direct)), block, depth, rng)

    def watch() -> None:
        # The pipe alone does not do: a sibling that was forked meanwhile may hold its other end.
        while shared[-1] == 0 and os.getppid() == parent and not select.select([0], [], [], 0.1)[0]:
            pass
        stop.set()
        # What was begun ends within a moment, or hangs with the storage; nobody waits for it.
        time.sleep(2.0)
        os._exit(0)

    def count(thread: int, moved_bytes: int) -> None:
        shared[thread] += moved_bytes

    threading.Thread(target=watch, daemon=True).start()
    try:
        keep_busy([stream], float("inf"), Buffers(rng), stop=stop, count=count, record=False)
    except InputError as error:
        sys.exit(str(error))
    sys.exit(0)


if __name__ == "__main__":
    _serve_load(sys.argv[1:])
