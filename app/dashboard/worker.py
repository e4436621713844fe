"""A background job in a process of its own: one JSON object in, JSON lines out.

``python -m app.dashboard.worker``. Lines are ``{"share", "text"}`` while it works and at the end one
``{"result": ...}`` or ``{"error": sentence}``. Nothing is written to disk, and the process ends with the
server that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SHARES = np.linspace(0, 1, 201)
_POINTS = 300
_TOLD_S = 0.2
COMPILING = "getting ready; the first run of a policy on a machine compiles it, which takes minutes"
_SAMPLES = 300
_MOST_WORDS = 200

Tell = Callable[[float, str], None]


def main() -> None:
    """Read the job, do it, and write what comes of it; of a mistake of ours, too."""
    _end_with_parent()
    last, stage = 0.0, ""

    def tell(share: float, text: str) -> None:
        nonlocal last, stage
        now, new = time.monotonic(), text.partition(":")[0]
        # What begins is always told: compiling is quiet for minutes after it.
        if new != stage or text.endswith(COMPILING) or now - last >= _TOLD_S:
            last, stage = now, new
            _write({"share": share, "text": text})

    try:
        found = answer(json.loads(sys.stdin.readline()), tell)
    except Exception as error:  # whoever waits is told, and the server's log has the rest
        traceback.print_exc()
        words = " ".join(f"{type(error).__name__}: {error}".split())[:_MOST_WORDS]
        found = {"error": f"an error of this program: {words}"}
    _write(found)


def answer(job: Mapping[str, Any], tell: Tell, *, compiled: bool = True) -> dict[str, Any]:
    """Return ``{"result": ...}`` of a job, or ``{"error": sentence}`` where it cannot be done.

    A job has ``kind`` ("compare", "curve" or "capacity"), ``yaml`` and ``folder`` of the scenario,
    ``policies``, ``seed``, ``agents``, ``rate_aps`` (None: all at once), ``until_s`` (None: to the
    end), ``warmup_s``, and for curves ``rates_aps``. ``compiled``: for tests.
    """
    from dualpath_model import yaml_lines
    from dualpath_model.errors import DualPathError
    from dualpath_model.scenario import parse_spec, resolve

    try:
        document = yaml_lines.parse(job["yaml"], "scenario")
        scenario = resolve(parse_spec(document), Path(job["folder"]), document)
        done = {"compare": _compare, "curve": _curve, "capacity": _capacity}[job["kind"]]
        return {"result": _plain(done(scenario, job, tell, compiled))}
    except DualPathError as error:
        return {"error": str(error).replace(f"{job['folder']}/", "")}
    except MemoryError:
        return {"error": "the run needs more memory than there is; ask for fewer agents"}


def _run(
    scenario: Any,
    job: Mapping[str, Any],
    policy: str,
    rate_aps: float | None,
    sample_s: float | None,
    compiled: bool,
    progress: Callable[[float, float, int], None],
) -> Any:
    from app.simulate import agents_of
    from solvers.simulator.experiments import execute

    return execute(
        scenario,
        policy,
        agents=agents_of(None if rate_aps else job["agents"], rate_aps, job["until_s"]),
        rate_aps=rate_aps,
        seed=job["seed"],
        until_s=math.inf if job["until_s"] is None else job["until_s"],
        warmup_s=job["warmup_s"],
        sample_s=sample_s,
        compiled=compiled,
        progress=progress,
    )


def _compare(scenario: Any, job: Mapping[str, Any], tell: Tell, compiled: bool) -> Any:
    """Run each policy with the same agents."""
    found = []
    count = len(job["policies"])
    for number, policy in enumerate(job["policies"]):
        tell(number / count, f"{policy}: {COMPILING}")

        def progress(
            done: float, now_s: float, turns: int, number: int = number, policy: str = policy
        ) -> None:
            text = f"{policy}: {now_s:,.0f} s simulated, {turns:,} turns"
            tell((number + done) / count, text)

        sample_s = max(1.0, (job["until_s"] or 3000.0) / _SAMPLES)
        outcome = _run(scenario, job, policy, job["rate_aps"], sample_s, compiled, progress)
        found.append(drawable(scenario, outcome))
    return {"slo": _slo(scenario), "policies": found}


def _curve(scenario: Any, job: Mapping[str, Any], tell: Tell, compiled: bool) -> Any:
    """Run each policy at each rate of arrivals."""
    pairs = [(policy, rate) for policy in job["policies"] for rate in job["rates_aps"]]
    points = []
    for number, (policy, rate) in enumerate(pairs):
        tell(number / len(pairs), f"{policy} at {rate:g} agents/s: {COMPILING}")

        def progress(
            done: float, now_s: float, turns: int, number: int = number, pair: Any = (policy, rate)
        ) -> None:
            text = f"{pair[0]} at {pair[1]:g} agents/s: {turns:,} turns"
            tell((number + done) / len(pairs), text)

        run = _run(scenario, job, policy, rate, None, compiled, progress).summary
        points.append(
            {
                "policy": policy,
                "rate_aps": rate,
                **{
                    f"{name}_{key}_s": getattr(run, f"{name}_s").get(key)
                    for name in ("ttft", "tpot")
                    for key in ("mean", "p99")
                },
            }
        )
    return {"slo": _slo(scenario), "points": points}


def _capacity(scenario: Any, job: Mapping[str, Any], tell: Tell, compiled: bool) -> Any:
    """Search each policy's highest rate within the SLO."""
    from dataclasses import asdict

    from solvers.simulator.capacity import capacity

    found = []
    count = len(job["policies"])
    for number, policy in enumerate(job["policies"]):
        tell(number / count, f"{policy}: {COMPILING}")

        def progress(done: float, runs: int, number: int = number, policy: str = policy) -> None:
            tell((number + done) / count, f"{policy}: {runs} runs")

        one = capacity(
            scenario,
            policy,
            statistic=job["statistic"],
            replications=2,
            first_seed=job["seed"],
            warmup_s=job["warmup_s"],
            measure_s=job["measure_s"],
            tolerance=0.02,
            compiled=compiled,
            progress=progress,
        )
        kept = asdict(one)
        del kept["probes"]
        found.append({**kept, "in_transit": one.in_transit})
    return {"slo": _slo(scenario), "capacity": found}


def drawable(scenario: Any, outcome: Any) -> dict[str, Any]:
    """Return of a run what is drawn: its figures, quantiles of times, and thinned series."""
    from dataclasses import asdict

    from app.figures_simulation import times
    from app.results import samples
    from solvers.simulator import series

    time_of, output = times(outcome)
    spreads = {
        "ttft_s": time_of["first_token"] - time_of["submitted"],
        "tpot_s": (
            (time_of["ended"] - time_of["second_token"])[output > 2] / (output[output > 2] - 2)
        ),
    }
    cluster, nodes = samples(outcome)
    every = max(1, -(-len(cluster) // _POINTS))
    cluster, nodes = cluster[::every], nodes[::every]
    decode = outcome.run.sim.nodes.decode > 0
    busy = nodes[:, :, series.NODE.index("nic_busy")]
    summary = asdict(outcome.summary)
    del summary["utilisation"]
    return {
        "summary": summary,
        "quantiles": {
            name: np.quantile(values, _SHARES).tolist() if len(values) else []
            for name, values in spreads.items()
        },
        "time_s": cluster[:, 0].tolist(),
        "waiting": sum(
            cluster[:, series.CLUSTER.index(f"waiting_{name}")]
            for name in ("prefill", "decode", "buffer")
        ),
        "prefill_nic_busy": busy[:, ~decode].mean(axis=1) if len(busy) else [],
        "decode_nic_busy": busy[:, decode].mean(axis=1) if len(busy) else [],
    }


def _slo(scenario: Any) -> dict[str, float]:
    return {"ttft_s": scenario.slo.ttft_s, "tpot_s": scenario.slo.tpot_s}


def _plain(value: Any) -> Any:
    """Return data that JSON has: no arrays, and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Ask the kernel to end this process with the thread that waits for it (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
