"""The other end of a measurement: child processes, a protocol of JSON lines, and a TCP server.

The client opens a control connection and says hello; the server answers with a token and then serves
this client alone, one request at a time: a *flow* (several streams for a while) or *messages* (one
stream, each message acknowledged). Data connections come to the same port and show the token. All that
a client can ask for has a limit, and every wait an end, so that no client can stop the server.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import select
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dualpath_model.errors import InputError

NAME = "dualpath-network"
VERSION = 1

MOST_STREAMS = 64
MOST_FLOW_S = 120.0
MOST_MESSAGE_BYTES = 64 * 2**20
MOST_LINE_BYTES = 4096
HELLO_S = 5.0
ANSWER_S = 10.0
"""How long one end waits for the next line or byte that the other owes it."""
IDLE_S = 120.0
"""How long a client may ask for nothing, for example while it starts its storage load."""

BLOCK_BYTES = 128 * 1024
_BURST = 10
"""Sends to one stream before the others get their turn, as iperf3's unlimited sender has it."""


class PeerError(Exception):
    """The other end broke the protocol or the connection. The server goes on; the client explains."""


class Lines:
    """JSON objects over a socket, one a line."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a connected socket, which stays the caller's to close."""
        self.sock = sock
        self._rest = b""

    def send(self, **fields: object) -> None:
        """Send one object. Raises OSError where the connection is gone."""
        self.sock.settimeout(ANSWER_S)
        self.sock.sendall(json.dumps(fields).encode() + b"\n")

    def receive(self, within_s: float) -> dict[str, Any]:
        """Return the next object. Raises PeerError for anything else, OSError for a lost connection.

        TimeoutError, an OSError, comes if the whole line is not there within ``within_s``.
        """
        end = time.monotonic() + within_s
        while b"\n" not in self._rest:
            if len(self._rest) > MOST_LINE_BYTES:
                raise PeerError(f"it sent a line of more than {MOST_LINE_BYTES} bytes")
            self.sock.settimeout(max(1e-3, end - time.monotonic()))
            part = self.sock.recv(MOST_LINE_BYTES)
            if not part:
                raise PeerError("it closed the connection")
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            said = line[:60].decode("ascii", "replace").strip()
            raise PeerError(f"it sent '{said}'")
        return found


def number(fields: Mapping[str, Any], name: str, least: float, most: float) -> float:
    """Return a number out of a line. Raises PeerError where it is missing or out of bounds."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PeerError(f"{name} is {value!r}, not a number")
    if not math.isfinite(value) or not least <= value <= most:
        raise PeerError(f"{name} is {value}; it must be from {least:g} to {most:g}")
    return value


def congestion_control(sock: socket.socket) -> str:
    """Return the kernel's congestion control for this connection; "" where it does not tell."""
    option = getattr(socket, "TCP_CONGESTION", None)
    if option is None:
        return ""
    name: bytes = sock.getsockopt(socket.IPPROTO_TCP, option, 16)
    return name.split(b"\0", 1)[0].decode("ascii", "replace")


def without_delay(sock: socket.socket) -> None:
    """Send small messages at once (no Nagle)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# Flows.


@dataclass(frozen=True)
class Plan:
    """A flow: ``streams`` connections each way, from the client (there) and to it (back).

    Bytes count in a window of ``window_s`` that begins ``ramp_s`` after the first byte.
    """

    streams: int
    there: bool
    back: bool
    ramp_s: float
    window_s: float

    @property
    def tail_s(self) -> float:
        """Data flows on for so long after the window, so that it never sees the other way end."""
        return 0.02 + 0.05 * (self.ramp_s + self.window_s)


@dataclass(frozen=True)
class Arrived:
    """What arrived in the window; ``busy``: share of it in which the receiving thread had a core."""

    bytes: int
    seconds: float
    busy: float


def send_flow(socks: Sequence[socket.socket], within_s: float) -> float:
    """Send on all ``socks`` until the receiver has closed them; return the thread's share of a core.

    One thread drives all streams of a direction with blocks of 128 KiB, as iperf3 does up to 3.15: the
    two are to measure the same. Threads of their own for the streams would move more on loopback, where
    cores are the limit, and no more over a NIC that is slower than one core.
    """
    block = secrets.token_bytes(BLOCK_BYTES)  # not zeros: some links compress
    begun, used = time.perf_counter(), time.thread_time()
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, sock)
        while selector.get_map() and (left := begun + within_s - time.perf_counter()) > 0:
            for key, _ in selector.select(left):
                try:
                    for _ in range(_BURST):
                        key.data.send(block)
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(key.data)
    return (time.thread_time() - used) / (time.perf_counter() - begun)


@dataclass
class _Window:
    """The time in which bytes count: waits for the first byte, then for the ramp, the end, the tail."""

    plan: Plan
    due: float = math.inf
    """When the next stage begins."""
    start: tuple[float, int, float] | None = None
    """Time, bytes and the thread's CPU time."""
    found: Arrived | None = None
    over: bool = False

    def look(self, now: float, count: int) -> None:
        """Go to the next stage if it is due; ``count``: bytes so far."""
        if count and self.due == math.inf:
            self.due = now + self.plan.ramp_s
        elif now < self.due:
            return
        elif self.start is None:
            self.start = (now, count, time.thread_time())
            self.due = now + self.plan.window_s
        elif self.found is None:
            seconds = now - self.start[0]
            busy = (time.thread_time() - self.start[2]) / seconds
            self.found = Arrived(count - self.start[1], seconds, busy)
            self.due = now + self.plan.tail_s
        else:
            self.over = True


def receive_flow(socks: Sequence[socket.socket], plan: Plan) -> Arrived:
    """Receive on all ``socks`` and return what arrived in the window, after the tail.

    Raises PeerError if the sender stops before the window ends.
    """
    buffer = bytearray(BLOCK_BYTES)
    count = 0
    window = _Window(plan)
    alarm = time.perf_counter() + ANSWER_S
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ, sock)
        while not window.over and selector.get_map():
            now = time.perf_counter()
            for key, _ in selector.select(max(0.0, min(window.due, alarm) - now)):
                got = _received(key.data, buffer)
                count += got or 0
                if got:
                    alarm = now + ANSWER_S
                elif got == 0 and window.found is None:
                    raise PeerError("it closed a stream in the middle")
                elif got == 0:
                    selector.unregister(key.data)
            window.look(time.perf_counter(), count)
            if window.found is None and now >= alarm:
                raise PeerError(f"it sent nothing for {ANSWER_S:g} s")
    if window.found is None or not window.found.bytes:
        raise PeerError(f"nothing arrived in the {plan.window_s:g} s that count")
    return window.found


def _received(sock: socket.socket, buffer: bytearray) -> int | None:
    """Return how many bytes came: 0 at the end of the stream, None where there was nothing yet."""
    try:
        return sock.recv_into(buffer)
    except BlockingIOError:
        return None
    except OSError:
        return 0


def run_flow(
    plan: Plan, sending: Sequence[socket.socket], receiving: Sequence[socket.socket]
) -> tuple[Arrived | None, float]:
    """Send and receive at once; return what arrived (None: only sent) and the sender's share of a core.

    Raises PeerError as :func:`receive_flow` does. All sockets are closed in the end.
    """
    within = plan.ramp_s + plan.window_s + plan.tail_s + ANSWER_S
    busy = 0.0

    def send() -> None:
        nonlocal busy
        busy = send_flow(sending, within)

    try:
        if not receiving:
            send()
            return None, busy
        sender = threading.Thread(target=send, daemon=True)
        if sending:
            sender.start()
        arrived = receive_flow(receiving, plan)
        for sock in receiving:
            sock.close()  # ends the sender at the other end
        if sending:
            sender.join(within)
        return arrived, busy
    finally:
        for sock in (*sending, *receiving):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes a sender that still runs; close() does not
            sock.close()


# Messages.


def blocking(sock: socket.socket) -> None:
    """Let the kernel time out, not Python: its timeouts cost a poll() before each send and receive."""
    sock.settimeout(None)
    limit = struct.pack("ll", int(ANSWER_S), 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    without_delay(sock)


def acknowledge(sock: socket.socket, size: int) -> None:
    """Answer each message of ``size`` bytes with one byte, until the sender closes."""
    view = memoryview(bytearray(size))
    while True:
        have = 0
        while have < size:
            got = sock.recv_into(view[have:])
            if got == 0:
                return
            have += got
        sock.sendall(b"\0")


# The server.


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InputError: address unknown, not ours, in use, not allowed."""
    where = f"{host}:{port}"
    if not 0 <= port <= 65535:
        raise InputError(f"cannot listen on {where}: a port is from 1 to 65535; choose such a one")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=MOST_STREAMS * 2)
    except (socket.gaierror, UnicodeError):
        raise InputError(
            f"cannot listen on {where}: this address is unknown; give one of this machine's addresses, "
            f"such as 0.0.0.0 for all"
        ) from None
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "the port is in use; stop what uses it or choose another port",
            errno.EADDRNOTAVAIL: "this is no address of this machine; 0.0.0.0 stands for all it has",
            errno.EACCES: "ports below 1024 need root; choose a higher one",
        }
        reason = reasons.get(error.errno or 0, f"{error.strerror}; choose another address or port")
        raise InputError(f"cannot listen on {where}: {reason}") from None


def serve(host: str, port: int, *, ready: Callable[[int], None] | None = None) -> None:
    """Answer measurements at ``host``:``port`` until the process ends, one client at a time.

    ``ready`` gets the port that was bound (``port`` 0: any that is free). A client that is foreign,
    breaks the protocol or dies is dropped. Raises InputError where it cannot listen there.
    """
    with listen(host, port) as listener:
        if ready is not None:
            ready(listener.getsockname()[1])
        while True:
            control, _ = listener.accept()
            with control:
                lines = Lines(control)
                try:
                    _serve_client(listener, lines)
                except PeerError as error:
                    with suppress(OSError):
                        lines.send(error=str(error))
                except OSError:
                    pass  # it is gone or silent: the next client is served


def _serve_client(listener: socket.socket, lines: Lines) -> None:
    hello = lines.receive(HELLO_S)
    if hello.get("name") != NAME:
        raise PeerError(f"this is {NAME}; you said {str(hello)[:60]}")
    token = secrets.token_hex(8)
    lines.send(
        name=NAME, version=VERSION, token=token, congestion_control=congestion_control(lines.sock)
    )
    if hello.get("version") != VERSION:
        return
    while True:
        _turn_away(listener, lines.sock)
        request = lines.receive(ANSWER_S)
        match request.get("do"):
            case "flow":
                _serve_flow(listener, lines, token, request)
            case "messages":
                size = int(number(request, "bytes", 1, MOST_MESSAGE_BYTES))
                with _accepted(listener, lines, token, {"there": 1}) as socks:
                    blocking(socks["there"][0])
                    acknowledge(socks["there"][0], size)
                lines.send(done=True)
            case "bye":
                return
            case other:
                raise PeerError(f"do is {str(other)[:20]!r}; it must be flow, messages or bye")


def _serve_flow(
    listener: socket.socket, lines: Lines, token: str, request: Mapping[str, Any]
) -> None:
    plan = Plan(
        streams=int(number(request, "streams", 1, MOST_STREAMS)),
        there=request.get("there") is True,
        back=request.get("back") is True,
        ramp_s=number(request, "ramp_s", 0.0, MOST_FLOW_S),
        window_s=number(request, "window_s", 1e-3, MOST_FLOW_S),
    )
    if not (plan.there or plan.back):
        raise PeerError("a flow needs there or back to be true")
    wanted = {"there": plan.streams * plan.there, "back": plan.streams * plan.back}
    with _accepted(listener, lines, token, wanted) as socks:
        arrived, busy = run_flow(plan, sending=socks["back"], receiving=socks["there"])
    lines.send(sender_busy=busy, **(asdict(arrived) if arrived else {}))


def _turn_away(listener: socket.socket, control: socket.socket) -> None:
    """Wait for the client's next line; tell others who come in the meantime that we are busy."""
    end = time.monotonic() + IDLE_S
    while True:
        left = end - time.monotonic()
        ready = select.select([control, listener], [], [], max(0.0, left))[0]
        if control in ready:
            return
        if not ready:
            raise PeerError(f"you asked for nothing in {IDLE_S:g} s")
        other, _ = listener.accept()
        with other, suppress(OSError):
            Lines(other).send(name=NAME, version=VERSION, busy=True)


@contextmanager
def _accepted(
    listener: socket.socket, lines: Lines, token: str, wanted: Mapping[str, int]
) -> Iterator[dict[str, list[socket.socket]]]:
    """Accept as many data connections of each way as are wanted; close them in the end."""
    found: dict[str, list[socket.socket]] = {"there": [], "back": []}
    end = time.monotonic() + ANSWER_S
    lines.send(open=True)
    try:
        while any(len(found[way]) < count for way, count in wanted.items()):
            listener.settimeout(max(1e-3, end - time.monotonic()))
            sock, _ = listener.accept()
            try:
                hello = Lines(sock).receive(1.0)
            except (PeerError, OSError):
                sock.close()
                continue
            way = str(hello.get("way"))
            if hello.get("token") != token or len(found.get(way, ())) >= wanted.get(way, 0):
                with sock, suppress(OSError):
                    Lines(sock).send(name=NAME, version=VERSION, busy=True)
                continue
            found[way].append(sock)
        lines.send(ready=True)
        yield found
    finally:
        listener.settimeout(None)
        for sock in (*found["there"], *found["back"]):
            sock.close()


# Child processes: each gets one JSON line on its standard input, answers in JSON lines on its output,
# and ends when the input does, so also when the parent is killed.


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


def main() -> None:
    """Serve as a child process: task {"host": ..., "port": ...}, first line {"port": ...}."""
    task, say = child_task()
    try:
        serve(task["host"], task["port"], ready=lambda port: say(port=port))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
