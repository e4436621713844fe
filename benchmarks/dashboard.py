"""How fast the dashboard answers: a real server, and clients that speak Streamlit's own protocol.

``python -m benchmarks.dashboard [--seconds 60] [--users 20]``. A redraw is the time from sending a
moved slider to the message that the script has ended; moves are to values that were hardly asked before,
so that answers are not remembered. All users open their page at once, look at it for 1 to 3 s (seeded),
move a slider and look again, half of them on Plan and half on What-if with its 40 x 40 heat map.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
REDRAWS = 40
SLIDERS = ("context read back", "append", "generate", "decode nodes (D)", "prefill nodes (P)")


@dataclass
class Client:
    """One session: its connection, its sliders by label, and what went wrong in it."""

    socket: ClientConnection
    page: str
    sliders: dict[str, Any] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    query: str = ""
    errors: int = 0
    last_error: str = ""

    async def run(self) -> float:
        """Run the script and return the seconds until it has ended."""
        ask = BackMsg()
        ask.rerun_script.query_string = self.query
        ask.rerun_script.page_name = "" if self.page == "plan" else self.page
        for label, value in self.values.items():
            state = ask.rerun_script.widget_states.widgets.add()
            state.id = self.sliders[label].id
            state.double_array_value.data.append(value)
        begun = time.perf_counter()
        await self.socket.send(ask.SerializeToString())
        while True:
            data = await asyncio.wait_for(self.socket.recv(), 60)
            message = ForwardMsg()
            message.ParseFromString(data if isinstance(data, bytes) else data.encode())
            kind = message.WhichOneof("type")
            if kind == "script_finished":
                return time.perf_counter() - begun
            if kind == "page_info_changed":
                self.query = message.page_info_changed.query_string
            elif kind == "delta":
                self._look(message.delta.new_element)

    def _look(self, element: Any) -> None:
        kind = element.WhichOneof("type")
        if kind == "slider":
            self.sliders[element.slider.label] = element.slider
        elif kind == "exception":
            self.errors += 1
            self.last_error = f"{element.exception.type}: {element.exception.message}"

    async def move(self, draw: random.Random) -> float:
        """Move a slider to a value that was hardly asked before; return the seconds of the redraw."""
        label = draw.choice([name for name in SLIDERS if name in self.sliders])
        slider = self.sliders[label]
        low, high, step = slider.min, slider.max, slider.step or 1
        if label.endswith(")"):
            low, high = 2 + (label[0] == "d"), min(high, 9)
        else:
            low, high = low + (high - low) * 0.1, low + (high - low) * 0.6
        self.values[label] = low + step * draw.randrange(1, max(2, int((high - low) / step)))
        return await self.run()


@contextlib.asynccontextmanager
async def client(port: int, page: str) -> Any:
    """Open a session on a page; its first run is done."""
    async with connect(
        f"ws://127.0.0.1:{port}/_stcore/stream",
        max_size=None,
        subprotocols=["streamlit"],  # type: ignore[list-item]
    ) as found:
        one = Client(found, page)
        await one.run()
        yield one


@contextlib.contextmanager
def server() -> Iterator[int]:
    """Serve the dashboard in a process of its own; give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "dashboard", "--no-browser", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


async def first_page(port: int) -> None:
    """Wait until the plan page has been drawn once."""
    while True:
        try:
            async with client(port, "plan"):
                return
        except OSError:
            await asyncio.sleep(0.05)


async def redraws(port: int, page: str) -> tuple[list[float], int]:
    """Return the seconds of redraws on one page, one session alone."""
    draw = random.Random(1)
    async with client(port, page) as one:
        assert set(SLIDERS) <= set(one.sliders), one.sliders.keys()
        seconds = [await one.move(draw) for _ in range(REDRAWS)]
        return seconds, one.errors


async def crowd(port: int, users: int, seconds: float) -> tuple[list[float], int]:
    """Return the seconds of all redraws of many sessions at once, and how many went wrong."""
    end = time.perf_counter() + seconds
    found: list[float] = []

    async def user(number: int) -> int:
        draw = random.Random(100 + number)
        try:
            async with client(port, ("plan", "whatif")[number % 2]) as one:
                while time.perf_counter() < end:
                    await asyncio.sleep(draw.uniform(1.0, 3.0))
                    found.append(await one.move(draw))
                if one.last_error:
                    print(one.last_error, file=sys.stderr)
                return int(one.errors)
        except Exception as error:  # a connection lost is an error of the server's
            print(f"user {number}: {error!r}", file=sys.stderr)
            return 1

    wrong = await asyncio.gather(*(user(number) for number in range(users)))
    return found, sum(wrong)


def heatmap_s() -> dict[str, float]:
    """Return the median seconds of the 40 x 40 grid alone for every pair of parameters."""
    from app.dashboard.views.whatif import axis
    from dualpath_model import load_scenario
    from solvers.grid import grid
    from solvers.parameters import PARAMETERS

    scenario = load_scenario(ROOT / "examples" / "deepseek-660b-2p4d.yaml")
    found = {}
    for first, second in itertools.combinations(PARAMETERS, 2):
        x, y = axis(scenario, first, 10, 40), axis(scenario, second, 10, 40)
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            grid(scenario, x, y)
            taken.append(time.perf_counter() - begun)
        found[f"{first} x {second}"] = statistics.median(taken)
    return found


async def measure(seconds: float, users: int) -> dict[str, Any]:
    """Measure everything, print the table, and return the figures."""
    firsts = []
    for _ in range(3):
        begun = time.perf_counter()
        with server() as port:
            await first_page(port)
            firsts.append(time.perf_counter() - begun)
    with server() as port:
        await first_page(port)
        plan, wrong_plan = await redraws(port, "plan")
        whatif, wrong_whatif = await redraws(port, "whatif")
        many, wrong = await crowd(port, users, seconds)
    maps = heatmap_s()
    both = plan + whatif
    slowest = max(maps, key=lambda name: maps[name])
    for name, values in (("Plan", plan), ("What-if, 40 x 40 map", whatif)):
        p50, p95 = np.quantile(values, [0.5, 0.95])
        print(f"redraw of {name}: p50 {p50:.3f} s, p95 {p95:.3f} s ({len(values)} moves)")
    print(
        f"40 x 40 grid alone: median of all pairs {statistics.median(maps.values()):.3f} s, slowest "
        f"{maps[slowest]:.3f} s ({slowest})"
    )
    print(f"first page after the command: {', '.join(f'{s:.2f}' for s in firsts)} s")
    p50, p95 = np.quantile(many, [0.5, 0.95])
    print(
        f"{users} users for {seconds:g} s, think time 1 to 3 s: {len(many)} moves, p50 {p50:.3f} s, "
        f"p95 {p95:.3f} s, {wrong} errors"
    )
    return {
        "redraw_s_p50": float(np.quantile(both, 0.5)),
        "redraw_s_p95": float(np.quantile(both, 0.95)),
        "heatmap_s": statistics.median(maps.values()),
        "heatmap_s_slowest": maps[slowest],
        "first_page_s": statistics.median(firsts),
        "p95_s_20_users": float(p95),
        "errors": wrong + wrong_plan + wrong_whatif,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="that users move sliders for")
    parser.add_argument("--users", type=int, default=20, help="sessions at once")
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.seconds, asked.users))))


if __name__ == "__main__":
    main()
