"""Flows: bytes moved over several TCP streams at once, and how many of them arrive in a window of time.

One thread drives all streams of a direction. Whoever receives counts.
"""

from __future__ import annotations

import math
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from calibration.children import PeerError

ANSWER_S = 10.0
"""How long one end waits for the next line or byte that the other owes it."""

BLOCK_BYTES = 128 * 1024
_BURST = 10
"""Blocks sent to one stream before the others get their turn, as iperf3's unlimited sender has it; here
in one system call, because Python takes microseconds for each.
"""


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
    # not zeros: some links compress; one block again and again, which stays in the processor's cache
    burst = [secrets.token_bytes(BLOCK_BYTES)] * _BURST
    begun, used = time.perf_counter(), time.thread_time()
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, sock)
        while selector.get_map() and (left := begun + within_s - time.perf_counter()) > 0:
            for key, _ in selector.select(left):
                try:
                    key.data.sendmsg(burst)
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(key.data)
    return (time.thread_time() - used) / (time.perf_counter() - begun)


@dataclass
class Window:
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
    window = Window(plan)
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
