"""Child processes of ours that are given a task and answer in JSON lines.

Each gets one JSON line on its standard input, answers in JSON lines on its output, and ends when the
input does, so also when the parent is killed.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class PeerError(Exception):
    """The other end broke the protocol or the connection. The server goes on; the client explains."""


class Child:
    """A module of ours that runs as a process of its own, with :func:`child_task` in it."""

    def __init__(self, module: str, task: Mapping[str, object], **environment: str) -> None:
        """Start ``python -m module`` and give it its ``task``."""
        self.module = module
        ours = str(Path(__file__).parent.parent)  # importable from whatever folder we run in
        path = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **environment, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        self._errors = self.process.stderr
        self._said = b""
        self._listener = threading.Thread(
            target=self._listen, daemon=True
        )  # or the pipe may fill up
        self._listener.start()
        self._rest = b""
        with suppress(BrokenPipeError):  # dead already: receive() tells
            self._input.write(json.dumps(task).encode() + b"\n")

    def _listen(self) -> None:
        for line in self._errors:
            self._said = line.strip() or self._said

    def fileno(self) -> int:
        """Its output, for selectors."""
        return self._output.fileno()

    def stop(self) -> None:
        """End it: kindly by the end of its input, or else by force. Nothing of it is left."""
        with suppress(BrokenPipeError):
            self._input.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listener.join(2.0)
        self._output.close()
        self._errors.close()

    def read(self) -> list[dict[str, Any]]:
        """Return the lines that it has written. Raises PeerError where it has ended."""
        part = os.read(self.fileno(), 65536)
        if not part:
            raise PeerError(f"process {self.module} ended: {self._last_words()}")
        *whole, self._rest = (self._rest + part).split(b"\n")
        return [json.loads(line) for line in whole]

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(2.0)
        self._listener.join(2.0)
        said = self._said.decode("utf-8", "replace")[:200]
        return said or f"its exit code is {self.process.returncode}"


def lines_of(children: Sequence[Child], within_s: float) -> Iterator[dict[str, Any]]:
    """Give the children's lines as they come, without end.

    Raises PeerError as soon as one of the children ends, and where none writes for ``within_s``.
    """
    while True:
        ready = select.select(children, [], [], within_s)[0]
        if not ready:
            raise PeerError(f"process {children[0].module} said nothing for {within_s:g} s")
        for child in ready:
            yield from child.read()


Say = Callable[..., None]
"""Writes its keyword arguments to the parent, as one line."""


def child_task() -> tuple[dict[str, Any], Say]:
    """In a child: return its task and how to answer; from now on the process ends when the parent does.

    What libraries print goes to the standard error, so that it cannot get between the answers.
    """
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)  # not sys.stdin, whose lock the waiting thread would hold at the exit
        if not part:
            sys.exit("the task did not come")
        line += part
    output = os.dup(1)
    os.dup2(2, 1)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    def say(**fields: object) -> None:
        os.write(output, json.dumps(fields).encode() + b"\n")

    threading.Thread(target=watch, daemon=True).start()
    return json.loads(line), say


def child_waits() -> None:
    """In a child: stay until the parent, which has read all lines, ends this process."""
    threading.Event().wait()
