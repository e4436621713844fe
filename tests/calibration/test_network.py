"""TCP measurements: real sockets, two processes, bad peers, and a link whose speed is known."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import against_iperf3
from calibration import network, peer
from calibration.flows import Plan
from calibration.network import measure_network, parse_peer, session
from calibration.peer import Lines
from dualpath_model.errors import InputError
from tests.calibration.peers import SHORT, sentence, served
from tests.conftest import ROOT


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats its one client as ``answer`` does; gives its address."""

    def run() -> None:
        sock, _ = listener.accept()
        with sock:
            answer(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


# The text of a peer.


@given(
    st.sampled_from(["node2", "10.0.0.2", "a.b-c.org", "::1", "fe80::1%eth0"]),
    st.integers(1, 65535),
)
def test_a_peer_is_a_host_and_a_port(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    assert parse_peer(f"{shown}:{port}") == (host, port)


BAD_PEERS = [
    *("", "node2", ":5301", "node2:", "node2:0", "node2:65536", "node2:x", "node2:-1"),
    *("::1:5301", "[::1]", "http://node2:5301", "[::1:5301", "node2:٣", "node2:" + "9" * 5000),
]


@pytest.mark.parametrize("text", BAD_PEERS)
def test_a_bad_peer_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_peer(text)
    assert "peer" in sentence(error)


@given(st.text(max_size=30))
def test_any_text_is_a_peer_or_one_sentence(text: str) -> None:
    try:
        host, port = parse_peer(text)
    except InputError:
        return
    assert host
    assert 1 <= port <= 65535


# What is measured.


def test_a_short_run_yields_all_series_and_figures() -> None:
    shares: list[float] = []
    loads: list[str] = []

    @contextmanager
    def load() -> Iterator[None]:
        loads.append("begun")
        yield
        loads.append("ended")

    found = measure_network(
        streams=2, seconds=2.0, tell=lambda share, what: shares.append(share), storage_load=load
    )
    series = {one.name: one for one in found.series}
    assert set(series) == {
        "network_streams",
        "network_messages",
        "network_latency",
        "network_storage",
    }
    assert loads == ["begun", "ended"] * 3
    assert len(series["network_storage"].samples) == 3
    points = [(s.at["streams"], s.at["direction"]) for s in series["network_streams"].samples]
    one_round = [(2, "there"), (2, "back"), (2, "both_there"), (2, "both_back"), (1, "there")]
    assert points == one_round * 3  # in turn: every round has every point
    sizes = {s.amount for s in series["network_messages"].samples}
    assert sizes >= {4096, 16384, 65536}
    for sample in series["network_latency"].samples:
        assert sample.latency is not None
        assert sample.seconds == sample.latency.p50 <= sample.latency.p99 <= sample.latency.most
    assert set(found.figures) == {
        "network_bytes_per_s",
        "network_both_ways_bytes_per_s",
        "network_latency_s",
        "network_with_storage_share",
    }
    assert 1e6 < found.figures["network_bytes_per_s"].value < 1e12
    assert 1e-7 < found.figures["network_latency_s"].value < 0.1
    assert {f.name for f in found.fits} >= {"network_one_way", "network_both_ways"}
    for fit in found.fits:
        assert fit.series in series
    assert found.settings["peer"] == "loopback"
    assert found.settings["congestion_control"]
    assert any("no network" in text for text in found.warnings)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_both_ways_at_once_give_two_rates_over_ipv6_too() -> None:
    both = Plan(streams=3, there=True, back=True, ramp_s=0.02, window_s=0.1)
    with served("::1") as (_, port), session(f"[::1]:{port}") as talk:
        arrived, busy = talk.flow(both)
        assert set(arrived) == {"there", "back"}
        for what in arrived.values():
            assert what.bytes > 0
            assert what.seconds >= 0.1
        assert busy > 0
        batches = talk.messages(1000, batches=2, batch_s=0.01)
        assert all(seconds > 0 for batch in batches for seconds in batch)


@pytest.mark.parametrize(("name", "value"), [("streams", 0), ("streams", 65), ("seconds", 0.1)])
def test_arguments_out_of_bounds_are_one_sentence(name: str, value: float) -> None:
    with pytest.raises(InputError) as error:
        measure_network(**{"seconds": 2.0, "tell": quiet} | {name: value})
    assert f"{name} {value:g}" in sentence(error)


# Peers that are not there, or not ours.


def fails(address: str) -> str:
    with pytest.raises(InputError) as error:
        measure_network(peer=address, seconds=2.0, tell=quiet)
    return sentence(error)


def test_a_refused_connection_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "refuses" in fails(f"127.0.0.1:{port}")


def test_an_unknown_host_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'a..b' is unknown" in fails("a..b:5301")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "'node7' is unknown" in fails("node7:5301")


def test_a_host_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HELLO_S", 0.2)
    with socket.socket() as full:  # a queue of one that nobody empties: further SYNs get no answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        held = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            held.append(sock)
        text = fails(f"127.0.0.1:{full.getsockname()[1]}")
        for sock in held:
            sock.close()
    assert "did not answer within 0.2 s" in text


def test_a_web_server_is_called_another_program() -> None:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        text = fails(f"127.0.0.1:{server.server_address[1]}")
        thread.join(10)
    assert "another program" in text


def test_other_greetings_are_one_sentence_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HELLO_S", 0.5)

    def hello(**fields: object) -> Callable[[socket.socket], None]:
        return lambda sock: (Lines(sock).receive(5.0), Lines(sock).send(**fields))[-1]

    name = {"name": peer.NAME}
    cases: list[tuple[Callable[[socket.socket], None], str]] = [
        (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "SSH-2.0"),
        (lambda sock: sock.sendall(b"\xff\x00\n"), "another program"),
        (lambda sock: sock.sendall(b"[" * 4000 + b"\n"), "another program"),
        (lambda sock: sock.sendall(b"x" * 100_000), "another program"),
        (lambda sock: None, "another program"),
        (lambda sock: [sock.recv(4096), sock.recv(1)][0:0] and None, "said nothing for 0.5 s"),
        (hello(name="other"), "another program"),
        (hello(**name, version=2), "speaks version 2"),
        (hello(**name, version=peer.VERSION, busy=True), "another client"),
    ]
    for answer, expected in cases:
        with answering(answer) as address:
            assert expected in fails(address)


# Peers that go away or are busy.


@pytest.mark.parametrize("there", [True, False])
def test_a_peer_killed_in_the_middle_is_one_sentence(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(streams=2, there=there, back=not there, ramp_s=0.05, window_s=5.0)
    run = network.run_flow
    with served() as (child, port), pytest.raises(InputError) as error:

        def kill_and_run(*args: object, **kwargs: object) -> object:
            child.process.kill()
            return run(*args, **kwargs)

        with session(f"127.0.0.1:{port}") as talk:
            talk.flow(SHORT)
            monkeypatch.setattr(network, "run_flow", kill_and_run)
            talk.flow(plan)
    assert "lost in the middle" in sentence(error)


def test_a_second_client_is_told_that_the_server_is_busy() -> None:
    with served() as (_, port), session(f"127.0.0.1:{port}") as talk:
        assert "another client" in fails(f"127.0.0.1:{port}")
        assert talk.flow(SHORT)[0]["there"].bytes > 0


# Against others.


def test_a_missing_iperf3_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError) as error:
        against_iperf3.compare(runs=1)
    assert "apt-get install iperf3" in sentence(error)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed")
def test_iperf3_measures_much_the_same() -> None:
    found = against_iperf3.compare(runs=3, seconds=1.0)
    assert len(found["network_bytes_per_s"]) == len(found["iperf3_bytes_per_s"]) == 3
    assert 0.5 < found["network_over_iperf3"] < 2.0  # noisy where others use the cores


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


def namespaces_work() -> bool:
    if shutil.which("ip") is None or shutil.which("tc") is None or os.geteuid() != 0:
        return False
    made = subprocess.run(["ip", "netns", "add", "dp-try"], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", "dp-try"], check=False, capture_output=True)
    return made.returncode == 0


LIMIT_BYTES_PER_S = 200e6 / 8


@contextmanager
def limited_link() -> Iterator[tuple[str, str]]:
    """Two namespaces with a cable of 200 Mbit/s each way; 10.99.0.1 and 10.99.0.2."""
    names = (f"dp-a-{os.getpid()}", f"dp-b-{os.getpid()}")
    try:
        for name in names:
            ip("netns", "add", name)
        peer_end = ("peer", "name", "vb", "netns", names[1])
        ip("link", "add", "va", "netns", names[0], "type", "veth", *peer_end)
        for name, device, last in zip(names, ("va", "vb"), (1, 2), strict=True):
            ip("-n", name, "addr", "add", f"10.99.0.{last}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            limit = ["rate", "200mbit", "burst", "64kb", "latency", "30ms"]
            inside = ["ip", "netns", "exec", name]
            command = [*inside, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit]
            subprocess.run(command, check=True, capture_output=True, timeout=10)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


MEASURE = """
import json, sys
from calibration.network import measure_network
found = measure_network(peer="10.99.0.1:5301", seconds=15.0, tell=lambda share, what: None)
print(json.dumps({n: f.value for n, f in found.figures.items()} | {"warnings": found.warnings}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not namespaces_work(), reason="needs root and network namespaces")
def test_a_link_of_known_speed_is_measured_within_a_tenth() -> None:
    with limited_link() as (there, here):
        server = subprocess.Popen(
            ["ip", "netns", "exec", there, sys.executable, "-m", "calibration.peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert server.stdin is not None
        assert server.stdout is not None
        with server:
            server.stdin.write(b'{"host": "10.99.0.1", "port": 5301}\n')
            server.stdin.flush()
            assert json.loads(server.stdout.readline()) == {"port": 5301}
            client = subprocess.run(
                ["ip", "netns", "exec", here, sys.executable, "-c", MEASURE],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            server.stdin.close()  # the end of its input ends it
        assert client.returncode == 0, client.stderr
    found = json.loads(client.stdout)
    assert found["network_bytes_per_s"] == pytest.approx(LIMIT_BYTES_PER_S, rel=0.1)
    assert found["network_both_ways_bytes_per_s"] == pytest.approx(LIMIT_BYTES_PER_S, rel=0.1)
    assert found["warnings"] == []  # no loopback, no core that limits, and both ways alike
