"""Where a study's pieces are worked on: local processes, a Dask cluster, or Ray. One interface.

An engine takes pieces by :meth:`Engine.submit` and hands back what became of each by
:meth:`Engine.finished`: a :class:`Done`, :class:`WorkerDiedError`, or the error that evaluating raised.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, Protocol

from dualpath_model.errors import InputError
from solvers.study_store import Range
from solvers.study_work import Done, Work, evaluate

ENGINES = "local, dask://HOST:PORT, ray, or ray://HOST:PORT"
_REACH_S = 5.0  # for a TCP connection
_ANSWER_S = 10.0  # for a cluster to answer on it


class WorkerDiedError(Exception):
    """The process that worked on a piece is gone."""


Outcome = Done | Exception


class Engine(Protocol):
    """What a study needs of a place to run. ``workers``: pieces that it works on at a time."""

    workers: int

    def submit(self, piece: Range) -> None:
        """Have a piece worked on."""

    def finished(self, timeout_s: float) -> list[tuple[Range, Outcome]]:
        """Return the pieces that have ended since, waiting for the first of them so long at most."""

    def close(self) -> None:
        """Stop, and drop what has not ended."""


@contextlib.contextmanager
def engine_of(text: str, work: Work, workers: int | None) -> Iterator[Engine]:
    """Start an engine by its name, and stop it in the end.

    Raises InputError for a name that is none, a package that is missing, and a cluster that does not
    answer within 15 seconds.
    """
    kind, _, address = text.partition("://")
    if kind not in ("local", "dask", "ray") or (kind == "local" and text != "local"):
        raise InputError(f"engine '{text}' is unknown; give {ENGINES}")
    if kind == "dask" or address:
        _reach(text, address)
    elif text not in ("local", "ray"):
        raise InputError(f"engine '{text}' names no host and port; give {ENGINES}")
    engine: Engine
    if kind == "local":
        engine = _Local(work, workers)
    elif kind == "dask":
        engine = _Dask(text, address, work, workers)
    else:
        engine = _Ray(text, address, work, workers)
    try:
        yield engine
    finally:
        engine.close()


def _reach(engine: str, address: str) -> None:
    """Raise InputError unless something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"engine '{engine}' needs a host and a port; give {ENGINES}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise InputError(
            f"engine '{engine}' does not answer ({error.strerror or error}); check that the cluster "
            f"runs and its address, or leave --engine out to run here"
        ) from None


def _no_answer(engine: str, why: str) -> InputError:
    return InputError(
        f"engine '{engine}': something listens there, but no such cluster answers ({why}); check the "
        f"address, and that both sides have the same version"
    )


def _missing(engine: str, package: str) -> InputError:
    return InputError(
        f"engine '{engine}' needs the package {package}; run: pip install '{package}'"
    )


# ---- local -----------------------------------------------------------------------------------------


class _Local:
    """Processes of this machine, by joblib's loky. When one dies loky gives up all of them."""

    def __init__(self, work: Work, workers: int | None) -> None:
        import joblib  # type: ignore[import-untyped, unused-ignore]

        self.workers = workers or joblib.cpu_count()
        self._work = work
        self._running: dict[Any, Range] = {}
        self._pool = self._started()

    def _started(self) -> Any:
        from joblib.externals.loky import (  # type: ignore[import-untyped, unused-ignore]
            ProcessPoolExecutor,
        )

        one = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        return ProcessPoolExecutor(
            self.workers, initializer=_begin_worker, initargs=(os.getpid(),), env=one
        )

    def submit(self, piece: Range) -> None:
        try:
            future = self._pool.submit(evaluate, self._work, *piece)
        except RuntimeError:  # a worker died since
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = self._started()
            future = self._pool.submit(evaluate, self._work, *piece)
        self._running[future] = piece

    def finished(self, timeout_s: float) -> list[tuple[Range, Outcome]]:
        from concurrent.futures import FIRST_COMPLETED, wait

        ended, _ = wait(self._running, timeout_s, FIRST_COMPLETED)
        return [(self._running.pop(future), _outcome(future)) for future in ended]

    def close(self) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)


def _outcome(future: Any) -> Outcome:
    from concurrent.futures.process import BrokenProcessPool

    error = future.exception()
    if error is None:
        done: Done = future.result()
        return done
    if isinstance(error, BrokenProcessPool):
        return WorkerDiedError(str(error).splitlines()[0])
    return error if isinstance(error, Exception) else WorkerDiedError(repr(error))


def _begin_worker(driver: int) -> None:
    """Leave Ctrl-C to the driver, and end when the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- Dask ------------------------------------------------------------------------------------------


class _Dask:
    """A Dask cluster that runs already. It tries a piece again itself where a worker died."""

    def __init__(self, text: str, address: str, work: Work, workers: int | None) -> None:
        try:
            import distributed
        except ImportError:
            raise _missing(text, "dask[distributed]") from None
        self._dask: Any = distributed
        _check_speaks_dask(text, address)
        self._text = text
        self._running: dict[Any, Range] = {}
        try:
            self._client: Any = self._dask.Client(
                f"tcp://{address}", timeout=_ANSWER_S, set_as_default=False
            )
        except (OSError, ValueError, RuntimeError) as error:  # dask's TimeoutError is an OSError
            raise _no_answer(text, str(error).splitlines()[0][:200]) from None
        try:
            there = sum(self._client.nthreads().values())
            if not there:
                raise InputError(f"engine '{text}' has no workers; start some, and run again")
            self.workers = min(there, workers or there)
            self._work = work  # a few kB, sent with every piece: what a worker keeps dies with it
        except BaseException:
            self._client.close(timeout=2)
            raise

    def submit(self, piece: Range) -> None:
        try:
            future = self._client.submit(evaluate, self._work, *piece, pure=False)
        except OSError as error:
            raise self._away() from error
        self._running[future] = piece

    def finished(self, timeout_s: float) -> list[tuple[Range, Outcome]]:
        if self._client.status not in ("running", "connecting"):
            raise self._away()
        # cancelled ones are told apart below
        with contextlib.suppress(TimeoutError, CancelledError), self._client.as_current():
            self._dask.wait(list(self._running), timeout=timeout_s, return_when="FIRST_COMPLETED")
        found: list[tuple[Range, Outcome]] = []
        for future in [f for f in self._running if f.status != "pending"]:
            try:
                outcome = self._outcome(future)
            except TimeoutError:  # its worker died after it had ended; Dask does it again
                continue
            except CancelledError:
                outcome = WorkerDiedError("the cluster dropped it")
            except OSError as error:
                raise self._away() from error
            found.append((self._running.pop(future), outcome))
        return found

    def _away(self) -> InputError:
        return InputError(
            f"engine '{self._text}' went away; finished points are kept, so run again when it is back"
        )

    def _outcome(self, future: Any) -> Outcome:
        if future.status == "finished":
            done: Done = future.result(timeout=30)
            return done
        if future.status == "error":
            error = future.exception(timeout=30)
            return (
                WorkerDiedError(str(error)) if isinstance(error, self._dask.KilledWorker) else error
            )
        return WorkerDiedError(f"the cluster dropped it ({future.status})")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.cancel(list(self._running))
        self._client.close(timeout=5)


# ---- Ray -------------------------------------------------------------------------------------------


class _Ray:
    """Ray: started here for the study, or a cluster's by its client port."""

    def __init__(self, text: str, address: str, work: Work, workers: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise _missing(text, "ray[client]") from None
        self._ray: Any = ray
        self._running: dict[Any, Range] = {}
        common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address:
            _check_speaks_grpc(text, address)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the sentence below says it
                    ray.init(text, **common)
            except Exception as error:  # of versions, passwords, proxies; Ray has no one class
                why = (str(error).splitlines() or [type(error).__name__])[0][:200]
                why = f"{why}; a cluster with tokens needs RAY_AUTH_MODE=token here"
                raise _no_answer(text, why) from None
        else:
            ray.init(
                "local",
                num_cpus=workers,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **common,
            )
        there = int(self._ray.cluster_resources().get("CPU", 0))
        if not there:
            self._ray.shutdown()
            raise InputError(f"engine '{text}' has no CPUs; start workers, and run again")
        self.workers = min(there, workers or there)
        self._task = ray.remote(max_retries=0, num_cpus=1)(evaluate)
        self._work = ray.put(work)

    def submit(self, piece: Range) -> None:
        self._running[self._task.remote(self._work, *piece)] = piece

    def finished(self, timeout_s: float) -> list[tuple[Range, Outcome]]:
        waiting = list(self._running)
        ended, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if ended:  # and whatever else has
            ended, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [(self._running.pop(task), self._outcome(task)) for task in ended]

    def _outcome(self, task: Any) -> Outcome:
        from ray import exceptions

        try:
            done: Done = self._ray.get(task)
        except exceptions.RayTaskError as error:
            cause = error.cause
            return cause if isinstance(cause, Exception) else error
        except exceptions.RayError as error:  # the process, its node, or its memory
            return WorkerDiedError(str(error).splitlines()[0])
        return done

    def close(self) -> None:
        self._ray.shutdown()


def _check_speaks_grpc(text: str, address: str) -> None:
    """Raise InputError unless the other side speaks the protocol of Ray's clients.

    Ray itself would try for half a minute and more.
    """
    try:
        import grpc  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise _missing(text, "ray[client]") from None
    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
    except grpc.FutureTimeoutError:
        raise _no_answer(text, f"nothing came in {_ANSWER_S:g} s") from None
    finally:
        channel.close()


def _check_speaks_dask(text: str, address: str) -> None:
    """Raise InputError unless the other side greets as a Dask scheduler does.

    It speaks first, with the length of its greeting as 8 bytes; Dask itself would wait for a minute.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S) as line:
            greeting = line.recv(8)
    except OSError:
        greeting = b""
    if len(greeting) < 8 or int.from_bytes(greeting, "little") > 2**20:
        raise _no_answer(text, "it does not greet as a scheduler does")
