"""TCP between this machine and another: one way, both ways, message by message, and beside storage.

The other end is a child process here (loopback), or a machine on which ``peer.serve`` runs. Whoever
receives counts the bytes. Rounds go over all points in turn, so that a machine that drifts shows as
spread.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field

import numpy as np

from calibration import fit
from calibration.children import Child, PeerError, lines_of
from calibration.flows import ANSWER_S, Arrived, Plan, run_flow
from calibration.peer import (
    HELLO_S,
    MOST_FLOW_S,
    MOST_STREAMS,
    NAME,
    VERSION,
    Lines,
    blocking,
    congestion_control,
    number,
    without_delay,
)
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.profile import Fit, Latency, Sample, Series, Setting
from dualpath_model.quantities import Dimension, show

__all__ = ["measure_network", "parse_peer", "session"]

MESSAGE_BYTES = tuple(4**k * 1024 for k in range(1, 8))
"""4 KiB to 16 MiB."""
_BATCHES = 3
"""Samples of one message size in one round."""
_LEAST_S, _MOST_S = 1.0, 3600.0
_ASYMMETRY = 1.1
_ALL_OF_A_CORE = 0.95
_MESSAGES_WEIGHT = 1.0
_LATENCY_WEIGHT = 0.4
"""Of a round's time, where one flow weighs 1."""
_FLOW_OVERHEAD_S = 0.05
_MESSAGES_OVERHEAD_S = 0.3
"""To connect, to agree and to fill buffers; seen on loopback."""
_LEAST_UNIT_S = 0.1
"""Of one flow: a shorter one would be all ramp. Very few ``seconds`` are overrun for it."""


def parse_peer(text: str) -> tuple[str, int]:
    """Read "HOST:PORT"; an IPv6 address stands in brackets. Raises InputError for anything else."""
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise InputError(
            f"peer '{text}' has several colons; put an IPv6 address in brackets, such as [::1]:5301"
        )
    if not colon or not host or set(host) & set("[]/@ "):
        raise InputError(f"peer '{text}' is not HOST:PORT; write it like node2:5301 or [::1]:5301")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise InputError(f"peer '{text}' has port '{port}'; it must be a number from 1 to 65535")
    return host, int(port)


class Session:
    """A client's talk with one server. Its methods raise PeerError and OSError; see :func:`session`."""

    def __init__(self, lines: Lines, token: str, settings: dict[str, Setting]) -> None:
        """Take a control connection on which both have said hello."""
        self._lines = lines
        self._token = token
        self.settings = settings

    def flow(self, plan: Plan) -> tuple[dict[str, Arrived], float]:
        """Run a flow; return what arrived "there" and "back", and the busiest thread's core share."""
        ways = {"there": plan.streams * plan.there, "back": plan.streams * plan.back}
        with self._opened(asdict(plan) | {"do": "flow"}, ways) as socks:
            back, sent = run_flow(plan, sending=socks["there"], receiving=socks["back"])
        answer = self._answer(plan.ramp_s + plan.window_s + plan.tail_s + 2 * ANSWER_S)
        busy = [sent, number(answer, "sender_busy", 0.0, 1e3)]
        found: dict[str, Arrived] = {}
        if plan.there:
            found["there"] = Arrived(
                int(number(answer, "bytes", 1, 1e18)),
                number(answer, "seconds", 1e-6, 2 * MOST_FLOW_S),
                number(answer, "busy", 0.0, 1e3),
            )
        if back is not None:
            found["back"] = back
        return found, max(*busy, *(arrived.busy for arrived in found.values()))

    def messages(self, size: int, batches: int, batch_s: float) -> list[list[float]]:
        """Send messages of ``size`` bytes, each when the last is acknowledged; return their seconds.

        Messages of a fifth of ``batch_s``, at least one, go first and are not counted: they open the
        congestion window. A batch has at least one message.
        """
        message = memoryview(bytes(size))
        with self._opened({"do": "messages", "bytes": size}, {"there": 1}) as socks:
            sock = socks["there"][0]
            blocking(sock)

            def batch(limit_s: float) -> list[float]:
                end = time.perf_counter() + limit_s
                found: list[float] = []
                while not found or time.perf_counter() < end:
                    begun = time.perf_counter()
                    sock.sendall(message)
                    if not sock.recv(1):
                        raise PeerError("it closed a stream in the middle")
                    found.append(time.perf_counter() - begun)
                return found

            batch(0.2 * batch_s)
            result = [batch(batch_s) for _ in range(batches)]
            sock.shutdown(socket.SHUT_WR)
            self._answer(ANSWER_S)
        return result

    def _answer(self, within_s: float) -> dict[str, object]:
        answer = self._lines.receive(within_s)
        if "error" in answer:
            raise PeerError(f"it says: {str(answer['error'])[:200]}")
        return answer

    @contextmanager
    def _opened(
        self, request: dict[str, object], ways: dict[str, int]
    ) -> Iterator[dict[str, list[socket.socket]]]:
        """Ask for something and open its data connections; close them in the end."""
        self._lines.send(**request)
        self._answer(ANSWER_S)
        address = self._lines.sock.getpeername()[:2]
        found: dict[str, list[socket.socket]] = {"there": [], "back": []}
        try:
            for way, count in ways.items():
                for _ in range(count):
                    sock = socket.create_connection(address, ANSWER_S)
                    found[way].append(sock)
                    Lines(sock).send(name=NAME, version=VERSION, token=self._token, way=way)
            self._answer(2 * ANSWER_S)
            yield found
        finally:
            for sock in (*found["there"], *found["back"]):
                sock.close()


@contextmanager
def session(peer: str | None) -> Iterator[Session]:
    """Talk to ``peer`` ("HOST:PORT"), or to a child process of our own where it is None.

    Raises InputError where the peer cannot be reached or is none of ours, and where it is lost while
    the session lasts.
    """
    if peer is not None:
        with _talk(peer, peer) as found:
            yield found
        return
    child = Child("calibration.peer", {"host": "127.0.0.1", "port": 0})
    try:
        try:
            port = int(next(lines_of([child], 30.0))["port"])
        except PeerError as error:
            raise InputError(
                f"peer: the process for the other end of loopback did not start ({error}); measure again"
            ) from None
        with _talk(f"127.0.0.1:{port}", "loopback") as found:
            yield found
    finally:
        child.stop()


@contextmanager
def _talk(address: str, name: str) -> Iterator[Session]:
    with _connected(*parse_peer(address), name) as sock:
        lines = Lines(sock)
        greeted = _greeted(lines, name)
        try:
            yield greeted
            with suppress(OSError):
                lines.send(do="bye")
        except PeerError as error:
            raise InputError(
                f"peer {name} was lost in the middle ({error}); see whether `dualpath calibrate serve` "
                f"still runs there, and measure again"
            ) from None
        except (ConnectionError, TimeoutError, BlockingIOError) as error:
            raise InputError(
                f"peer {name} was lost in the middle ({error.strerror or 'it was silent too long'}); "
                f"see whether `dualpath calibrate serve` still runs there, and measure again"
            ) from None


def _connected(host: str, port: int, name: str) -> socket.socket:
    try:
        return socket.create_connection((host, port), HELLO_S)
    except (socket.gaierror, UnicodeError):
        raise InputError(
            f"peer {name}: host '{host}' is unknown; check the name, or give the IP address"
        ) from None
    except ConnectionRefusedError:
        raise InputError(
            f"peer {name} refuses the connection; start `dualpath calibrate serve` there, with this port"
        ) from None
    except TimeoutError:
        raise InputError(
            f"peer {name} did not answer within {HELLO_S:g} s; check the address, and that no firewall "
            f"closes the port"
        ) from None
    except OSError as error:
        raise InputError(
            f"peer {name} cannot be reached ({error.strerror}); check the address and the network"
        ) from None


def _greeted(lines: Lines, name: str) -> Session:
    remedy = "start `dualpath calibrate serve` there and give its port"
    without_delay(lines.sock)
    try:
        lines.send(name=NAME, version=VERSION)
        hello = lines.receive(HELLO_S)
    except TimeoutError:
        raise InputError(
            f"peer {name} took the connection and then said nothing for {HELLO_S:g} s, so it may be "
            f"another program; {remedy}"
        ) from None
    except (PeerError, OSError) as error:
        raise InputError(f"peer {name} is another program ({error}); {remedy}") from None
    if hello.get("name") != NAME:
        raise InputError(f"peer {name} is another program (it sent {str(hello)[:60]}); {remedy}")
    if hello.get("version") != VERSION:
        raise InputError(
            f"peer {name} speaks version {hello.get('version')!r} of our protocol, and this program "
            f"{VERSION}; install the same version of dualpath on both machines"
        )
    if hello.get("busy"):
        raise InputError(
            f"peer {name} measures with another client; try again when that one is done"
        )
    settings: dict[str, Setting] = {
        "peer": name,
        "congestion_control": congestion_control(lines.sock),
        "congestion_control_of_peer": str(hello.get("congestion_control", ""))[:16],
    }
    return Session(lines, str(hello.get("token")), settings)


@dataclass(frozen=True)
class _Point:
    """One flow of the sweep. ``direction``: there, back or both."""

    streams: int
    direction: str
    storage: bool = False

    def plan(self, unit_s: float) -> Plan:
        return Plan(
            streams=self.streams,
            there=self.direction != "back",
            back=self.direction != "there",
            ramp_s=0.2 * unit_s,
            window_s=0.65 * unit_s,
        )


@dataclass
class _Found:
    """Raw samples, as they come."""

    streams: list[Sample] = field(default_factory=list)
    storage: list[Sample] = field(default_factory=list)
    messages: list[Sample] = field(default_factory=list)
    latency: list[Sample] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


def measure_network(
    *,
    peer: str | None = None,
    streams: int = 4,
    seconds: float,
    tell: Tell,
    storage_load: Callable[[], AbstractContextManager[object]] | None = None,
) -> Measured:
    """Measure TCP to ``peer`` ("HOST:PORT", where ``peer.serve`` runs; None: loopback) in ``seconds``.

    Series: ``network_streams`` (at: streams, direction; both_there and both_back ran at once),
    ``network_messages`` (at: bytes; until the one-byte acknowledgement), ``network_latency`` (one way:
    half a round trip of 1 byte) and, where ``storage_load`` is given, ``network_storage`` (inside it).
    Raises InputError for bad arguments and for a peer that cannot be reached, is foreign or is lost.
    """
    if not 1 <= streams <= MOST_STREAMS:
        raise InputError(f"streams {streams} must be from 1 to {MOST_STREAMS}; 4 is usual")
    if not _LEAST_S <= seconds <= _MOST_S:
        raise InputError(
            f"seconds {seconds:g} must be from {_LEAST_S:g} to {_MOST_S:g}; 25 are usual"
        )
    points = [_Point(streams, "there")]
    if storage_load is not None:
        points.append(_Point(streams, "there", storage=True))  # beside the one it is compared with
    points += [_Point(streams, "back"), _Point(streams, "both")]
    if streams > 1:
        points.append(_Point(1, "there"))
    rounds = max(3, min(20, round(seconds / 5)))
    weight = len(points) + _MESSAGES_WEIGHT + _LATENCY_WEIGHT
    overhead_s = _FLOW_OVERHEAD_S * len(points) + _MESSAGES_OVERHEAD_S
    unit_s = min(MOST_FLOW_S, max(_LEAST_UNIT_S, (seconds / rounds - overhead_s) / weight))
    found = _Found()
    with session(peer) as talk:
        settings = talk.settings | {
            "streams": streams,
            "rounds": rounds,
            "ramp_s": points[0].plan(unit_s).ramp_s,
            "window_s": points[0].plan(unit_s).window_s,
        }
        for turn in range(rounds):
            _round(talk, points, unit_s, found, storage_load, _scaled(tell, turn, rounds))
    tell(1.0, "network")
    return _measured(found, streams, settings)


def _scaled(tell: Tell, turn: int, rounds: int) -> Tell:
    return lambda share, what: tell((turn + share) / rounds, what)


def _round(
    talk: Session,
    points: list[_Point],
    unit_s: float,
    found: _Found,
    storage_load: Callable[[], AbstractContextManager[object]] | None,
    tell: Tell,
) -> None:
    """Measure every point once and append the samples."""
    weight = len(points) + _MESSAGES_WEIGHT + _LATENCY_WEIGHT
    for done, point in enumerate(points):
        tell(done / weight, f"network, {point.streams} streams {point.direction}")
        if point.storage and storage_load is not None:
            with storage_load():
                arrived, busy = talk.flow(point.plan(unit_s))
        else:
            arrived, busy = talk.flow(point.plan(unit_s))
        found.busy.append(busy)
        for way, what in arrived.items():
            direction = f"both_{way}" if point.direction == "both" else way
            at: dict[str, Setting] = {"streams": point.streams, "direction": direction}
            sample = Sample(
                at=at | {"storage": True} if point.storage else at,
                seconds=what.seconds,
                amount=what.bytes,
            )
            (found.storage if point.storage else found.streams).append(sample)
    tell(len(points) / weight, "network, messages")
    first = found.streams[0]
    batch_s = _MESSAGES_WEIGHT * unit_s / len(MESSAGE_BYTES) / (_BATCHES + 0.2)
    most = batch_s * first.amount / first.seconds
    for size in MESSAGE_BYTES:
        if size > max(most, MESSAGE_BYTES[2]):
            break  # one message would outlast its time: a slow link needs no large ones
        for batch in talk.messages(size, _BATCHES, batch_s):
            mean_s = statistics.fmean(batch)
            found.messages.append(
                Sample(
                    at={"bytes": size, "messages": len(batch)},
                    seconds=mean_s,
                    amount=size,
                )
            )
    tell((len(points) + _MESSAGES_WEIGHT) / weight, "network, latency")
    for batch in talk.messages(1, _BATCHES, _LATENCY_WEIGHT * unit_s / (_BATCHES + 0.2)):
        found.latency.append(_one_way(batch))


def _one_way(round_trips: list[float]) -> Sample:
    one_way = np.array(round_trips) / 2
    p50, p90, p99, p999, most = (float(v) for v in np.percentile(one_way, [50, 90, 99, 99.9, 100]))
    latency = Latency(count=len(one_way), p50=p50, p90=p90, p99=p99, p999=p999, most=most)
    return Sample(at={"bytes": 1}, seconds=p50, amount=0.0, latency=latency)


def _measured(found: _Found, streams: int, settings: dict[str, Setting]) -> Measured:
    flows = Series(
        name="network_streams",
        unit="B",
        meaning="bytes that arrived over TCP in the window, all streams of one direction together",
        samples=found.streams,
    )
    messages = Series(
        name="network_messages",
        unit="B",
        meaning="one message over TCP until its acknowledgement of 1 byte, mean of a batch",
        samples=found.messages,
    )
    latency = Series(
        name="network_latency",
        unit="",
        meaning="one way, median of a batch: half of a round trip of 1 byte over TCP",
        samples=found.latency,
    )

    def rate(name: str, *directions: str) -> Fit:
        chosen = [
            i
            for i, s in enumerate(flows.samples)
            if s.at["streams"] == streams and s.at["direction"] in directions
        ]
        return fit.typical(name, flows, chosen, parameter="bytes_per_s")

    one_way = rate("network_one_way", "there", "back")
    there, back = rate("network_there", "there"), rate("network_back", "back")
    both = rate("network_both_ways", "both_there", "both_back")
    message = fit.latency_bandwidth("network_messages", messages, range(len(messages.samples)))
    trip = fit.typical("network_latency", latency, range(len(latency.samples)), parameter="seconds")
    measured = Measured(
        series=[flows, messages, latency],
        fits=[one_way, there, back, both, message, trip],
        figures={
            "network_bytes_per_s": fit.figure(one_way, "bytes_per_s"),
            "network_both_ways_bytes_per_s": fit.figure(both, "bytes_per_s"),
            "network_latency_s": fit.figure(trip, "seconds"),
        },
        settings=settings | {"busiest_thread_share": round(statistics.median(found.busy), 3)},
    )
    if found.storage:
        storage = Series(
            name="network_storage",
            unit="B",
            meaning="as network_streams, while storage is read",
            samples=found.storage,
        )
        beside = fit.typical(
            "network_with_storage", storage, range(len(storage.samples)), parameter="bytes_per_s"
        )
        measured.series.append(storage)
        measured.fits.append(beside)
        measured.figures["network_with_storage_share"] = fit.share(
            beside.parameters["bytes_per_s"],
            there.parameters["bytes_per_s"],
            source=f"{beside.name} / {there.name}",
        )
    measured.warnings = _warnings(measured, there, back)
    return measured


def _warnings(measured: Measured, there: Fit, back: Fit) -> list[str]:
    found = []
    busy = measured.settings["busiest_thread_share"]
    if measured.settings["peer"] == "loopback":
        found.append(
            "network: over loopback this measures the machine's memory and kernel, and no network; run "
            "`dualpath calibrate serve` on another machine and give it as peer"
        )
    elif isinstance(busy, float) and busy > _ALL_OF_A_CORE:
        found.append(
            f"network: one core was busy {busy:.0%} of the time, so the rate is what one thread moves "
            f"over TCP; the network may carry more, which RDMA (NIXL) would show"
        )
    one, other = there.parameters["bytes_per_s"], back.parameters["bytes_per_s"]
    apart = one.low > other.high or other.low > one.high
    if apart and max(one.value, other.value) > _ASYMMETRY * min(one.value, other.value):
        found.append(
            f"network: {show(one.value, Dimension.BYTES_PER_S)} there and "
            f"{show(other.value, Dimension.BYTES_PER_S)} back; network_bytes_per_s is the median of "
            f"both, so see series network_streams"
        )
    return found
