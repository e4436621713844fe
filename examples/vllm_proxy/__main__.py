"""Start the proxy: ``python -m examples.vllm_proxy routing.json --mode plan``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import uvicorn

from dualpath_model.errors import DualPathError
from dualpath_model.routing import LiveRoutes, PlanRoutes, RoutingFile, read_routing
from dualpath_model.scheduler.file import read_scheduler
from examples.vllm_proxy.app import Limits, Proxy
from examples.vllm_proxy.choose import ByPlan, ByQueues, Chooser
from examples.vllm_proxy.sessions import Sessions


def build(
    path: Path,
    mode: str = "plan",
    *,
    split: float | None = None,
    limits: Limits | None = None,
) -> Proxy:
    """Return the application for a routing file; ``split`` instead of its own.

    Raises InputError for a bad file.
    """
    routing: RoutingFile = read_routing(path)
    if split is not None:
        routing = dataclasses.replace(routing, split=split)
    scheduler = read_scheduler(path.parent / routing.scheduler)
    chooser: Chooser
    chooser = ByQueues(LiveRoutes(scheduler)) if mode == "live" else ByPlan(PlanRoutes(routing))
    sessions = Sessions(scheduler.settings.block_tokens)
    return Proxy(routing, chooser, sessions, split=routing.split, limits=limits)


def main() -> int:
    """Read the command line and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="vllm_proxy", description=__doc__, allow_abbrev=False)
    parser.add_argument("routing", type=Path, help="routing.json of `dualpath export vllm`")
    parser.add_argument("--mode", choices=("plan", "live"), default="plan")
    parser.add_argument("--split", type=float, help="share of sessions instead of the plan's")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    for limit in dataclasses.fields(Limits):
        flag = f"--{limit.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(limit.default), default=limit.default)
    given = parser.parse_args()
    if given.split is not None and not 0.0 <= given.split <= 1.0:
        parser.error(f"--split is {given.split}; it must be from 0 to 1")
    limits = Limits(
        **{limit.name: getattr(given, limit.name) for limit in dataclasses.fields(Limits)}
    )
    try:
        proxy = build(given.routing, given.mode, split=given.split, limits=limits)
    except DualPathError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    uvicorn.run(proxy, host=given.host, port=given.port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
