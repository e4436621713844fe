"""The other end of a network measurement: what counts, bad clients, and its process."""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import peer
from calibration.children import Child, PeerError, lines_of
from calibration.flows import Plan, Window
from calibration.network import session
from calibration.peer import Lines
from dualpath_model.errors import InputError
from tests.calibration.peers import SHORT, sentence, served
from tests.conftest import ROOT


@given(
    st.lists(st.tuples(st.floats(1e-6, 0.3), st.integers(1, 10**9)), min_size=3, max_size=60),
    st.floats(0.0, 1.0),
    st.floats(0.01, 2.0),
)
def test_bytes_count_in_the_window_and_nowhere_else(
    arrivals: list[tuple[float, int]], ramp_s: float, window_s: float
) -> None:
    window = Window(Plan(1, True, False, ramp_s, window_s))
    now = total = 0
    seen = []
    for step_s, size in arrivals:
        now, total = now + step_s, total + size
        seen.append((now, total))
        window.look(now, total)
    start = next((at for at in seen[1:] if at[0] >= seen[0][0] + ramp_s), None)
    later = [] if start is None else [at for at in seen if at[0] > start[0]]
    end = next((at for at in later if at[0] >= start[0] + window_s), None)
    if end is None:
        assert window.found is None
    else:
        assert window.found is not None
        assert window.found.bytes == end[1] - start[1]
        assert math.isclose(window.found.seconds, end[0] - start[0])
        assert window.found.seconds >= window_s * (1 - 1e-9)


def test_the_server_goes_on_after_bad_clients() -> None:
    hello = {"name": peer.NAME, "version": peer.VERSION}
    flow = {"do": "flow", "streams": 1, "there": True, "back": False, "ramp_s": 0, "window_s": 1}
    with served() as (_, port):

        def connected() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), 10)

        for bad in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\n",
            b"[]\n",
            b"x" * 100_000,
            b'{"name": 1}\n',
            b"",
        ):
            with connected() as sock:
                try:
                    sock.sendall(bad)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except OSError:
                    pass  # dropped while we spoke
        for request in (
            {"do": "dance"},
            {"do": "flow"},
            flow | {"streams": 10**9},
            flow | {"streams": True},
            flow | {"window_s": 1e9},
            flow | {"window_s": math.nan},
            flow | {"window_s": 10**400},
            flow | {"streams": 10**400},
            flow | {"there": False},
            {"do": "messages", "bytes": 2**40},
        ):
            with connected() as sock:
                lines = Lines(sock)
                lines.send(**hello)
                assert lines.receive(10)["version"] == peer.VERSION
                lines.send(**request)
                assert "error" in lines.receive(10)
                with pytest.raises(PeerError):
                    lines.receive(10)
        with connected() as sock:  # one that asks for data connections and dies
            lines = Lines(sock)
            lines.send(**hello)
            token = lines.receive(10)["token"]
            lines.send(**flow)
            assert lines.receive(10) == {"open": True}
            with connected() as other:  # and a stranger with a wrong token meanwhile
                Lines(other).send(**hello, token="0", way="there")
                assert Lines(other).receive(10)["busy"]
            data = connected()
            Lines(data).send(**hello, token=token, way="there")
            assert lines.receive(10) == {"ready": True}
            data.close()
            assert "error" in lines.receive(10)
        with session(f"127.0.0.1:{port}") as talk:
            assert talk.flow(SHORT)[0]["there"].bytes > 0


# Its process.


def test_the_child_ends_when_its_parent_is_killed() -> None:
    code = (
        "import time\n"
        "from calibration.children import Child, lines_of\n"
        "child = Child('calibration.peer', {'host': '127.0.0.1', 'port': 0})\n"
        "next(lines_of([child], 30.0))\n"
        "print(child.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        handle = os.pidfd_open(pid)
        try:
            assert not select.select([handle], [], [], 0)[0]
            parent.send_signal(signal.SIGKILL)
            assert select.select([handle], [], [], 10)[0], "the child lives on"
        finally:
            os.close(handle)


def test_a_child_that_cannot_start_says_why() -> None:
    child = Child("calibration.no_such_module", {})
    try:
        with pytest.raises(PeerError, match="No module named"):
            next(lines_of([child], 30.0))
    finally:
        child.stop()


# Where the server cannot listen.


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(InputError) as error:
        peer.serve("127.0.0.1", used.getsockname()[1])
    assert "in use" in sentence(error)


@pytest.mark.parametrize("host", ["203.0.113.7", "a..b"])
def test_an_address_that_is_not_ours_is_one_sentence(host: str) -> None:
    with pytest.raises(InputError) as error:
        peer.listen(host, 5301)
    assert host in sentence(error)


def test_a_port_out_of_bounds_is_one_sentence() -> None:
    with pytest.raises(InputError) as error:
        peer.listen("127.0.0.1", 70000)
    assert "65535" in sentence(error)
