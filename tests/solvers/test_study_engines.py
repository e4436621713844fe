"""Real processes: workers and drivers that are killed, a real Dask cluster, a real Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dualpath_model.errors import InputError
from solvers.study import read_study, run_study
from solvers.study_store import POINTS, RESULTS
from tests.conftest import ROOT, uncounted
from tests.solvers.studies import GRID, LP, deadly, made, write

pytestmark = pytest.mark.clusters


LONG: dict[str, Any] = {
    **LP,
    "name": "long",
    "axes": {
        "workload.scale.hit_rate": {"from": 0.8, "to": 0.99, "steps": 60},
        "cluster.prefill.count": [1, 2, 3, 4, 5],
        "cluster.decode.count": [2, 3, 4, 5],
    },
}
ENVIRONMENT = {
    **uncounted(),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "PYTHONPATH": str(ROOT),
}


def command(study: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "app.cli", "study", "run", str(study), "--out", str(out), *more]


def started(study: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start a run; return when some of its points are on disk."""
    process = subprocess.Popen(
        command(study, out, *more),
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if list((out / POINTS).glob("points-*")) if (out / POINTS).is_dir() else []:
            return process
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    raise AssertionError("nothing was finished in a minute")


def ended(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "popen_loky" in " ".join(child.cmdline()) and "tracker" not in " ".join(child.cmdline())
    ]


def every_point_once(out: Path, count: int) -> None:
    assert read_study(out).column("point").to_pylist() == list(range(count))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A study of seconds, and its results from a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("long")
    study = made(folder, LONG)
    run_study(study, folder / "out", workers=2)
    return folder / "study.yaml", (folder / "out" / RESULTS).read_bytes()


@pytest.mark.xdist_group("studies")
def test_a_killed_worker_loses_and_repeats_nothing(
    long: tuple[Path, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(long[0], out, "--workers", "2")
    victims = workers_of(process)
    assert len(victims) == 2
    victims[0].kill()
    ended(process)
    every_point_once(out, 1200)
    assert (out / RESULTS).read_bytes() == long[1]


@pytest.mark.xdist_group("studies")
def test_a_killed_driver_loses_and_repeats_nothing(
    long: tuple[Path, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(long[0], out, "--workers", "2")
    orphans = workers_of(process)
    process.kill()
    process.communicate()
    gone, alive = psutil.wait_procs(orphans, timeout=20)
    assert gone and not alive, "workers outlive their driver"
    kept = {path: path.stat().st_mtime_ns for path in (out / POINTS).glob("points-*")}
    assert kept and not (out / RESULTS).exists()
    ended(started(long[0], out, "--workers", "2"))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    every_point_once(out, 1200)
    assert (out / RESULTS).read_bytes() == long[1]


@pytest.mark.xdist_group("studies")
def test_ctrl_c_says_how_to_go_on(long: tuple[Path, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = started(long[0], out, "--workers", "2")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same again to go on" in said and "Traceback" not in said
    ended(started(long[0], out, "--workers", "2"))
    assert (out / RESULTS).read_bytes() == long[1]


def deadly_kinds(out: Path) -> dict[int, str]:
    table = read_study(out)
    kinds = zip(table.column("point").to_pylist(), table.column("failure").to_pylist(), strict=True)
    return {number: kind for number, kind in kinds if kind == "worker died"}


@pytest.mark.xdist_group("studies")
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_point_that_kills_its_worker_is_recorded_alone(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    study = deadly(made(tmp_path, GRID), 5)
    ran = run_study(study, tmp_path / "out", engine=engine, workers=2)
    every_point_once(tmp_path / "out", 24)
    assert deadly_kinds(tmp_path / "out") == {5: "worker died"}
    assert ran.deaths >= 3
    run_study(made(tmp_path, GRID), tmp_path / "plain", workers=2)
    plain = read_study(tmp_path / "plain").to_pylist()
    assert [row for row in plain if row["point"] != 5] == [
        row for row in read_study(tmp_path / "out").to_pylist() if row["point"] != 5
    ]


# ---- clusters --------------------------------------------------------------------------------------

_DASK = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1",
                           dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
    cluster.close()
"""


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a Dask cluster of two worker processes in a process of its own."""
    script = folder / "cluster.py"
    script.write_text(_DASK)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip().removeprefix("tcp://")
        yield f"dask://{address}", psutil.Process(process.pid)
    finally:
        process.communicate("", timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_cluster(folder: Path) -> Iterator[str]:
    """Run a Ray head of two CPUs, with its client port."""
    port = free_port()
    ray = str(Path(sys.executable).parent / "ray")
    process = subprocess.Popen(
        [
            *(ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2"),
            *(f"--port={free_port()}", f"--ray-client-server-port={port}"),
            *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir=/tmp/ray{port}"),
        ],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    family = psutil.Process(process.pid)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"ray://127.0.0.1:{port}"
    finally:
        children = family.children(recursive=True)
        process.terminate()
        process.wait(timeout=60)
        for child in psutil.wait_procs(children, timeout=10)[1]:
            child.kill()


@pytest.mark.xdist_group("studies")
def test_a_dask_cluster_gives_the_same_bytes_though_a_worker_is_killed(
    long: tuple[Path, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with dask_cluster(tmp_path) as (engine, cluster):
        process = started(long[0], out, "--engine", engine)
        victims = [
            child
            for child in cluster.children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(victims) == 2
        victims[0].kill()
        ended(process)
    every_point_once(out, 1200)
    assert (out / RESULTS).read_bytes() == long[1]


@pytest.mark.xdist_group("studies")
def test_all_workers_of_a_dask_cluster_may_be_killed(
    long: tuple[Path, bytes], tmp_path: Path
) -> None:
    """Their nannies start others, which know nothing of the study until a piece tells them."""
    out = tmp_path / "out"
    with dask_cluster(tmp_path) as (engine, cluster):
        process = started(long[0], out, "--engine", engine)
        for child in cluster.children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        ended(process)
    every_point_once(out, 1200)
    assert (out / RESULTS).read_bytes() == long[1]


@pytest.mark.xdist_group("studies")
def test_a_ray_started_here_gives_the_same_bytes_though_a_worker_is_killed(
    long: tuple[Path, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(long[0], out, "--engine", "ray", "--workers", "2")
    victims = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name().startswith("ray::eval") or "ray::evaluate" in " ".join(child.cmdline())
    ]
    assert victims
    victims[0].kill()
    ended(process)
    every_point_once(out, 1200)
    assert (out / RESULTS).read_bytes() == long[1]


@pytest.mark.xdist_group("studies")
def test_a_ray_cluster_by_its_address_takes_over_from_a_killed_driver(
    long: tuple[Path, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with ray_cluster(tmp_path) as engine:
        process = started(long[0], out, "--engine", engine)
        process.kill()
        process.communicate()
        kept = {path: path.stat().st_mtime_ns for path in (out / POINTS).glob("points-*")}
        ended(started(long[0], out, "--engine", engine))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    every_point_once(out, 1200)
    assert (out / RESULTS).read_bytes() == long[1]


# ---- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ("slurm", "engine 'slurm' is unknown; give local, dask://HOST:PORT"),
        ("dask", "engine 'dask' needs a host and a port"),
        ("dask://here", "needs a host and a port"),
        ("local://x:1", "is unknown"),
        ("ray://127.0.0.1:99999", "needs a host and a port"),
    ],
)
def test_an_engine_that_is_none_is_refused(tmp_path: Path, engine: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        run_study(made(tmp_path, GRID), tmp_path / "out", engine=engine)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_a_dead_address_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match="does not answer"):
        run_study(
            made(tmp_path, GRID), tmp_path / "out", engine=f"{kind}://127.0.0.1:{free_port()}"
        )
    assert time.monotonic() - begun < 15


@pytest.mark.xdist_group("studies")
@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_something_else_at_the_address_is_refused_in_time(tmp_path: Path, kind: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        engine = f"{kind}://127.0.0.1:{server.getsockname()[1]}"
        begun = time.monotonic()
        done = subprocess.run(
            command(write(tmp_path, GRID), tmp_path / "out", "--engine", engine),
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert "something listens there, but no such cluster answers" in done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[:-1] in ([], ["studying: starting workers"]), (
        "one sentence, after what is waited for"
    )
    assert time.monotonic() - begun < 20  # 15 for the cluster, the rest for Python to start


def test_workers_with_other_files_refuse(tmp_path: Path) -> None:
    from dataclasses import replace

    study = made(tmp_path, GRID)
    other = replace(study, work=replace(study.work, content="0" * 64))
    with pytest.raises(InputError, match="put the same files at the same place"):
        run_study(other, tmp_path / "out", workers=1)
    older = replace(study, work=replace(study.work, toolkit="0.0.1"))
    with pytest.raises(InputError, match="install the same on both"):
        run_study(older, tmp_path / "older", workers=1)
    assert os.path.isdir(tmp_path / "older" / POINTS)  # noqa: PTH112
