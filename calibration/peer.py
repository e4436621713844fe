"""The other end of a network measurement: a protocol of JSON lines, and a TCP server that speaks it.

The client opens a control connection and says hello; the server answers with a token and then serves
this client alone, one request at a time: a *flow* (several streams for a while) or *messages* (one
stream, each message acknowledged). Data connections come to the same port and show the token. All that
a client can ask for has a limit, and every wait an end, so that no client can stop the server.
"""

from __future__ import annotations

import errno
import json
import secrets
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from calibration.children import PeerError, child_task
from calibration.flows import ANSWER_S, Plan, run_flow
from dualpath_model.errors import InputError

NAME = "dualpath-network"
VERSION = 1

MOST_STREAMS = 64
MOST_FLOW_S = 120.0
MOST_MESSAGE_BYTES = 64 * 2**20
MOST_LINE_BYTES = 4096
HELLO_S = 5.0
IDLE_S = 120.0
"""How long a client may ask for nothing, for example while it starts its storage load."""


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
    if not least <= value <= most:  # nor is what is not a number, or too large for a float
        raise PeerError(f"{name} is {str(value)[:30]}; it must be from {least:g} to {most:g}")
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


def main() -> None:
    """Serve as a child process: task {"host": ..., "port": ...}, first line {"port": ...}."""
    task, say = child_task()
    try:
        serve(task["host"], task["port"], ready=lambda port: say(port=port))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
