"""Background jobs: children that work, crash, are cancelled, and never outlive who asked."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time

import psutil
import pytest

from app import figures_comparison as drawing
from app.dashboard import jobs as module
from app.dashboard.jobs import Job, Jobs, Stage
from app.dashboard.worker import answer
from dualpath_model.errors import InputError
from tests.conftest import ROOT

WORKS = """
import json, sys
job = json.loads(sys.stdin.readline())
print("noise")
print(json.dumps({"share": 0.5, "text": "half"}))
print(json.dumps({"result": job["x"] * 2}))
"""
SLEEPS = """
import json, sys, time
sys.stdin.readline()
print(json.dumps({"share": 0.25, "text": "sleeps"}), flush=True)
time.sleep(60)
"""
DIES_WITH_PARENT = f"import app.dashboard.worker as w; w._end_with_parent(){SLEEPS}"
SERVES = f"""
import sys, time
from app.dashboard.jobs import Jobs
jobs = Jobs([sys.executable, "-c", {DIES_WITH_PARENT!r}])
key = jobs.start({{"x": 1}})
while not jobs.look(key).text:
    time.sleep(0.05)
print(jobs.look(key).process.pid, flush=True)
time.sleep(60)
"""


def made(code: str, at_once: int = 2) -> Jobs:
    return Jobs([sys.executable, "-c", code], at_once=at_once)


def until(jobs: Jobs, key: str, *stages: Stage, seconds: float = 20.0) -> Job:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = jobs.look(key)
        assert job is not None
        if job.stage in stages:
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def test_a_job_is_done_once() -> None:
    jobs = made(WORKS)
    key = jobs.start({"x": 21})
    assert until(jobs, key, Stage.DONE).result == 42
    assert jobs.start({"x": 21}) == key
    assert jobs.look(key).stage is Stage.DONE  # type: ignore[union-attr]
    assert jobs.look("nothing") is None


def test_a_cancelled_job_is_gone_at_once_and_can_be_run_again() -> None:
    jobs = made(SLEEPS)
    key = jobs.start({"x": 1})
    end = time.monotonic() + 20
    while not jobs.look(key).text:  # type: ignore[union-attr]
        assert time.monotonic() < end
        time.sleep(0.02)
    process = jobs.look(key).process  # type: ignore[union-attr]
    assert process is not None
    jobs.cancel(key)
    assert until(jobs, key, Stage.CANCELLED).result is None
    process.wait(timeout=5)
    assert not psutil.pid_exists(process.pid) or process.returncode is not None
    jobs.start({"x": 1})
    assert until(jobs, key, Stage.RUNNING).stage is Stage.RUNNING
    jobs.end()


def test_later_jobs_wait_their_turn() -> None:
    jobs = made(SLEEPS, at_once=1)
    first, second = jobs.start({"x": 1}), jobs.start({"x": 2})
    until(jobs, first, Stage.RUNNING)
    waiting = until(jobs, second, Stage.QUEUED)
    assert waiting.ahead == 1
    jobs.cancel(first)
    until(jobs, second, Stage.RUNNING)
    jobs.end()
    assert until(jobs, second, Stage.CANCELLED)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(3)",
        "print('{}'); print('[1]'); print('nonsense')",
        "import os; os.abort()",
    ],
)
def test_a_crash_is_a_sentence(code: str) -> None:
    jobs = made(code)
    job = until(jobs, jobs.start({"x": 1}), Stage.FAILED)
    assert "without a result" in job.error


def test_what_a_child_says_of_its_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    jobs = made("raise SystemExit('out of luck \\udcff')")
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        until(jobs, jobs.start({"x": 1}), Stage.FAILED)
        said(caplog, "out of luck")


def said(caplog: pytest.LogCaptureFixture, words: str) -> None:
    end = time.monotonic() + 10
    while not any(words in record.getMessage() for record in caplog.records):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_mistake_of_the_program_is_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    jobs = Jobs()
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        found = until(jobs, jobs.start(job(kind="nope")), Stage.FAILED, seconds=60)
        assert found.error == "an error of this program: KeyError: 'nope'"
        said(caplog, "Traceback")


def test_so_many_jobs_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    jobs = made(SLEEPS, at_once=1)
    first = jobs.start({"x": 0})
    until(jobs, first, Stage.RUNNING)
    second = jobs.start({"x": 1})
    jobs.start({"x": 2})
    with pytest.raises(InputError, match="2 runs wait on this server already"):
        jobs.start({"x": 3})
    assert jobs.look(module.key_of({"x": 3})) is None
    assert jobs.start({"x": 1}) == second, "one that waits already may be asked for again"
    jobs.cancel(second)
    jobs.start({"x": 3})
    jobs.end()


def test_a_command_that_is_not_there_is_a_sentence() -> None:
    jobs = Jobs(["/nonexistent/python"])
    assert "cannot be started" in until(jobs, jobs.start({"x": 1}), Stage.FAILED).error


def test_a_job_that_nobody_looks_at_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FORGOTTEN_S", 0.5)
    jobs = made(SLEEPS)
    key = jobs.start({"x": 1})
    time.sleep(4)
    job = jobs._jobs[key]
    assert job.stage is Stage.FORGOTTEN


def test_children_end_with_the_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVES], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        child = int(server.stdout.readline())
        assert psutil.pid_exists(child)
        server.kill()
    end = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- the worker ------------------------------------------------------------------------------------

SCENARIO = ROOT / "examples" / "paper-mean-turn.yaml"


def job(**changed: object) -> dict[str, object]:
    return {
        "kind": "compare",
        "yaml": SCENARIO.read_text(),
        "folder": str(SCENARIO.parent),
        "policies": ["dualpath"],
        "agents": 3,
        "rate_aps": None,
        "until_s": None,
        "warmup_s": 0.0,
        "seed": 0,
        **changed,
    }


def test_a_comparison_is_drawn_from_plain_data() -> None:
    told: list[float] = []
    found = answer(
        job(policies=["basic", "dualpath"]), lambda share, text: told.append(share), compiled=False
    )["result"]
    json.dumps(found, allow_nan=False)
    assert [run["summary"]["policy"] for run in found["policies"]] == ["basic", "dualpath"]
    assert found["policies"][0]["summary"]["turns"] == 3
    assert told == sorted(told)
    for figure in (
        drawing.distribution(found, "ttft_s", "TTFT"),
        drawing.distribution(found, "tpot_s", "TPOT"),
        drawing.parts(found),
        drawing.queues(found),
        drawing.nics(found),
    ):
        assert figure.layout.title.text
        assert figure.layout.xaxis.title.text
    line = drawing.distribution(found, "ttft_s", "TTFT").data[0]
    assert list(line.x) == found["policies"][0]["quantiles"]["ttft_s"]


def test_a_curve_has_a_point_a_policy_and_rate() -> None:
    asked = job(kind="curve", rates_aps=[0.5, 1.0], until_s=20.0, warmup_s=1.0)
    found = answer(asked, lambda share, text: None, compiled=False)["result"]
    assert [point["rate_aps"] for point in found["points"]] == [0.5, 1.0]
    assert drawing.curve(found, "mean").data[0].y[0] == found["points"][0]["ttft_mean_s"]


def test_what_cannot_be_simulated_is_a_sentence() -> None:
    mixed = ROOT / "examples" / "mixed-traffic.yaml"
    found = answer(job(yaml=mixed.read_text()), lambda share, text: None, compiled=False)
    assert "result" not in found
    assert "\n" not in found["error"]
