"""A bar with the time that is left, on standard error, for work that takes more than two seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app import interrupt

Tell = Callable[[float, str], None]
"""Gets the share that is done and what it amounts to; raises KeyboardInterrupt after Ctrl-C."""

COMPILING = "getting ready; a policy is compiled once, for a minute or two"
"""What commands that simulate begin with."""
_PATIENCE_S = 2.0  # work that takes less shows nothing
_LINE_S = 10.0  # between two lines where nobody looks at a terminal


@contextmanager
def bar(title: str, first: str = "") -> Iterator[Tell]:
    """Show how far the work in this block is; ``first`` stands beside the bar until the first telling.

    A bar on a terminal, gone at the end; a plain line now and then elsewhere. Standard output is left
    alone.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if sys.stderr.isatty() and not console.is_dumb_terminal:
        with _live(console, title, first) as tell:
            yield tell
    else:
        with _lines(title, first) as tell:
            yield tell


@contextmanager
def _live(console: object, title: str, first: str) -> Iterator[Tell]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,  # type: ignore[arg-type]
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = progress.add_task(title, total=1.0, text=first)
    # Of a thread of its own, because compiling can keep this one for a minute before it tells.
    later = threading.Timer(_PATIENCE_S, progress.start)
    later.daemon = True
    later.start()

    def tell(done: float, text: str) -> None:
        interrupt.check()
        progress.update(task, completed=done, text=text)

    try:
        yield tell
    finally:
        later.cancel()
        later.join()
        progress.stop()


@contextmanager
def _lines(title: str, first: str) -> Iterator[Tell]:
    begun = said = time.monotonic()

    def begin() -> None:
        print(f"{title}: {first}", file=sys.stderr, flush=True)

    later = threading.Timer(_LINE_S, begin)
    later.daemon = True
    if first:
        later.start()

    def tell(done: float, text: str) -> None:
        nonlocal said
        interrupt.check()
        now = time.monotonic()
        if now - said < _LINE_S:
            return
        said = now
        later.cancel()
        left = f", about {(now - begun) * (1 - done) / done:.0f} s left" if done > 0 else ""
        print(f"{title}: {done:.0%}{left}; {text}", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        later.cancel()
