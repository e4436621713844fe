"""A dashboard's server, and a real headless Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT, uncounted

ARTIFACTS = ROOT / "artifacts" / "dashboard"
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def chromium() -> str:
    """Return the machine's Chromium; without one these tests cannot run, and say so."""
    names = (
        os.environ.get("DUALPATH_CHROMIUM", ""),
        "chromium",
        "chromium-browser",
        "google-chrome",
    )
    for name in names:
        found = shutil.which(name) if name else None
        if found:
            return found
    raise AssertionError(
        "no Chromium on this machine; install it (apt-get install chromium) or set "
        "DUALPATH_CHROMIUM to its path"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def served() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve the dashboard as a user does; give its address and its process."""
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "dashboard", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=uncounted(),
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address)
        yield address, process
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for(address: str) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def trace_file(folder: Path) -> Path:
    """Write recorded sessions whose appends are much longer than the shipped ones."""
    lines = ["session,append,generate"]
    for session in range(5):
        lines += [f"s{session},{4000 if turn == 0 else 2500},{300}" for turn in range(12)]
    path = folder / "my sessions.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
