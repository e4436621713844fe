"""The console command: nothing is imported before an interrupt can be answered with its exit code."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``dualpath``; Ctrl-C during start-up ends it like Ctrl-C later, with 130."""
    try:
        from app.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
