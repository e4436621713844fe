"""Background jobs: each a child process, a few at a time, which nobody has to wait for.

A thread a job starts the child, hands it the job and reads its lines; what the child says to stderr is
logged. A cancelled job's child is killed; a job that nobody asks about any more is cancelled; the same
job asked again is not done again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dualpath_model.errors import InputError

_FORGOTTEN_S = 300.0
"""Nobody has the dashboard open any more: every page of a session that started a job looks at it."""
_KEPT = 40
_MOST_WAITING = 20
_MOST_LINE = 50 * 10**6
_MOST_LOGGED = 2_000
_log = logging.getLogger(__name__)


class Stage(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FORGOTTEN = "forgotten"
    """Cancelled because nobody was there to see it."""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self not in (Stage.QUEUED, Stage.RUNNING)


_AGAIN = (Stage.FAILED, Stage.CANCELLED, Stage.FORGOTTEN)
"""A job that ended so is done anew when it is asked for again."""


@dataclass
class Job:
    """One job as it is now. ``share`` done, ``text`` on it; ``ahead``: jobs that run before it."""

    key: str
    content: str
    stage: Stage = Stage.QUEUED
    share: float = 0.0
    text: str = ""
    ahead: int = 0
    result: Any = None
    error: str = ""
    begun_s: float = 0.0
    seen_s: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[str] | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds left, by the share that is done; None while that cannot be told."""
        if self.stage is not Stage.RUNNING or self.share < 0.05:
            return None
        return (time.monotonic() - self.begun_s) * (1.0 - self.share) / self.share


class Jobs:
    """The jobs of a server."""

    def __init__(self, command: Sequence[str] | None = None, *, at_once: int = 2) -> None:
        """Take the child's command, and how many run side by side."""
        self._command = list(command or (sys.executable, "-m", "app.dashboard.worker"))
        self._slots = at_once
        self._lock = threading.Condition()
        self._jobs: dict[str, Job] = {}
        atexit.register(self.end)

    def start(self, content: Mapping[str, Any]) -> str:
        """Start a job, unless it runs or is done already; return its key.

        Raises InputError if too many wait.
        """
        text = json.dumps(content, sort_keys=True)
        key = key_of(content)
        with self._lock:
            known = self._jobs.get(key)
            if known is not None and known.stage not in _AGAIN:
                known.seen_s = time.monotonic()
                return key
            waiting = sum(other.stage is Stage.QUEUED for other in self._jobs.values())
            if waiting >= _MOST_WAITING:
                raise InputError(
                    f"{waiting} runs wait on this server already, the most that it takes; try again "
                    f"when some of them are done"
                )
            self._jobs.pop(key, None)
            job = self._jobs[key] = Job(key, text)
            self._forget()
        threading.Thread(target=self._work, args=(job,), daemon=True).start()
        return key

    def look(self, key: str) -> Job | None:
        """Return a job as it is now; None if there is none. Jobs that nobody looks at are cancelled."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None:
                job.seen_s = time.monotonic()
                waiting = [other for other in self._jobs.values() if not other.stage.ended]
                job.ahead = waiting.index(job) if job in waiting else 0
            return job

    def going(self, keys: Collection[str]) -> list[Job]:
        """Return those of the jobs that are queued or running, and note that they were asked about."""
        found = [job for job in map(self.look, keys) if job is not None]
        return [job for job in found if not job.stage.ended]

    def cancel(self, key: str) -> None:
        """End a job that is queued or running."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and not job.stage.ended:
                self._cancel(job)

    def end(self) -> None:
        """End all of them."""
        with self._lock:
            for job in self._jobs.values():
                if not job.stage.ended:
                    self._cancel(job)

    def _cancel(self, job: Job, why: Stage = Stage.CANCELLED) -> None:
        job.stage = why
        if job.process is not None:
            with contextlib.suppress(ProcessLookupError):
                job.process.kill()
        self._lock.notify_all()

    def _forget(self) -> None:
        """Let go of the oldest ended jobs."""
        ended = [key for key, job in self._jobs.items() if job.stage.ended]
        for key in ended[: max(0, len(self._jobs) - _KEPT)]:
            del self._jobs[key]

    def _work(self, job: Job) -> None:
        with self._lock:
            while job.stage is Stage.QUEUED and self._running() >= self._slots:
                self._lock.wait(timeout=1.0)
                if time.monotonic() - job.seen_s > _FORGOTTEN_S:
                    self._cancel(job, Stage.FORGOTTEN)
            if job.stage is not Stage.QUEUED:
                return
            job.stage, job.begun_s = Stage.RUNNING, time.monotonic()
            try:
                job.process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
            except OSError as error:
                job.stage, job.error = Stage.FAILED, f"the job cannot be started ({error.strerror})"
                return
        for other in (self._watch, _log_errors):
            threading.Thread(target=other, args=(job,), daemon=True).start()
        try:
            self._read(job, job.process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                job.process.kill()
            job.process.wait()
            for pipe in (job.process.stdin, job.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            with self._lock:
                if job.stage is Stage.RUNNING:
                    job.stage = Stage.FAILED
                    job.error = job.error or (
                        "the job ended without a result (it was killed, or the machine is out of "
                        "memory); ask for fewer agents, or try again"
                    )
                self._lock.notify_all()

    def _read(self, job: Job, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(job.content + "\n")
            process.stdin.close()
        except OSError:  # it is dead already, which reading shows
            pass
        while line := process.stdout.readline(_MOST_LINE):
            try:
                found = json.loads(line)
            except ValueError:
                continue  # what a library prints
            if not isinstance(found, dict):
                continue
            with self._lock:
                if job.stage is not Stage.RUNNING:
                    return
                if "result" in found:
                    job.result, job.stage, job.share = found["result"], Stage.DONE, 1.0
                    return
                if "error" in found:
                    job.error, job.stage = str(found["error"]), Stage.FAILED
                    return
                if isinstance(found.get("share"), (int, float)):
                    job.share = min(1.0, max(0.0, float(found["share"])))
                    job.text = str(found.get("text", ""))[:200]

    def _watch(self, job: Job) -> None:
        """Cancel a job that nobody has looked at for a while."""
        while True:
            time.sleep(1.0)
            with self._lock:
                if job.stage.ended:
                    return
                if time.monotonic() - job.seen_s > _FORGOTTEN_S:
                    self._cancel(job, Stage.FORGOTTEN)
                    return

    def _running(self) -> int:
        return sum(job.stage is Stage.RUNNING for job in self._jobs.values())


def _log_errors(job: Job) -> None:
    """Log what a job's child says to stderr, until it ends."""
    assert job.process is not None
    assert job.process.stderr is not None
    with job.process.stderr as said:
        while line := said.readline(_MOST_LOGGED):
            if line.strip():
                _log.warning("job %s: %s", job.key[:8], line.rstrip())


def key_of(content: Mapping[str, Any]) -> str:
    """Return the key of a job, which its content gives."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
