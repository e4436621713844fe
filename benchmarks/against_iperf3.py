"""Our TCP rate over loopback against iperf3's, same streams, runs of both in turn.

python -m benchmarks.against_iperf3
"""

from __future__ import annotations

import json
import shutil
import socket
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from calibration.flows import Plan
from calibration.network import session
from dualpath_model.errors import InputError

_RAMP_S = 1
"""iperf3 -O takes whole seconds."""
_ATTEMPTS = 3
_SPARE_S = 10
"""An iperf3 that needs so much longer than it was told to has hung, as 3.12 does once in a while."""


def compare(*, runs: int = 31, streams: int = 4, seconds: float = 1.0) -> dict[str, object]:
    """Return the ratio of the median rates as "network_over_iperf3", and the rates of all runs.

    ``seconds``: what counts of a run, in whole seconds for both, after a ramp of 1 s. Only 127.0.0.1 is
    contacted. Raises InputError where iperf3 is missing or fails.
    """
    if shutil.which("iperf3") is None:
        raise InputError("iperf3 is not installed; install it with `apt-get install iperf3`")
    counted = max(1, round(seconds))
    plan = Plan(streams=streams, there=True, back=False, ramp_s=_RAMP_S, window_s=counted)
    ours, theirs = [], []
    with session(None) as talk:
        for turn in range(runs):
            for who in ("ours", "iperf3") if turn % 2 else ("iperf3", "ours"):
                if who == "ours":
                    arrived = talk.flow(plan)[0]["there"]
                    ours.append(arrived.bytes / arrived.seconds)
                else:
                    theirs.append(_iperf3(streams, counted))
    return {
        "network_over_iperf3": statistics.median(ours) / statistics.median(theirs),
        "network_bytes_per_s": ours,
        "iperf3_bytes_per_s": theirs,
    }


@contextmanager
def _iperf3_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = ["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port), "--forceflush"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not any("listening" in line for line in process.stdout):
                raise InputError(
                    f"iperf3 -s does not listen on port {port}; run the benchmark again"
                )
            yield port
        finally:
            process.kill()


def _iperf3(streams: int, seconds: int) -> float:
    """Return the bytes/s of one run; a run that hangs is made again, with a server of its own."""
    for _ in range(_ATTEMPTS):
        with _iperf3_server() as port, suppress(subprocess.TimeoutExpired):
            return _iperf3_client(port, streams, seconds)
    raise InputError(f"iperf3 -c hung {_ATTEMPTS} times in a row; run the benchmark again")


def _iperf3_client(port: int, streams: int, seconds: int) -> float:
    where = ("-c", "127.0.0.1", "-p", str(port))
    done = subprocess.run(
        ["iperf3", *where, "-J", "-P", str(streams), "-O", str(_RAMP_S), "-t", str(seconds)],
        capture_output=True,
        text=True,
        timeout=_RAMP_S + seconds + _SPARE_S,
        check=False,
    )
    try:
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 8
    except (ValueError, KeyError):
        said = (done.stdout or done.stderr).strip()[-200:]
        raise InputError(f"iperf3 -c failed ({said}); run the benchmark again") from None


if __name__ == "__main__":
    print(json.dumps(compare(), indent=1))
