"""Storage: what is measured, what is left behind (nothing), and what is said where it cannot be done."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.files_on_disk import DataFile, aligned, aligned_buffer, check_folder, file_system
from calibration.rooms import Measured
from calibration.storage import DEPTHS, _points, measure_storage
from calibration.storage_load import ReadLoad
from dualpath_model.errors import InputError
from dualpath_model.profile import FIGURES, PartName
from tests.calibration.traces import disk_used, held, names
from tests.conftest import ROOT, uncounted

MIB = 2**20
MEASURE = """
import sys
from pathlib import Path
from calibration.storage import measure_storage

def tell(share, what):
    print(what, flush=True)

measure_storage(Path(sys.argv[1]), block_bytes=2**18, space_bytes=2**25, seconds=60, tell=tell)
"""


def quiet(share: float, what: str) -> None:
    """Tell nobody."""


def measure(folder: Path, **other: Any) -> Measured:
    asked = {"block_bytes": 256 * 1024, "space_bytes": 16 * MIB, "seconds": 0.5, "tell": quiet}
    return measure_storage(folder, **{**asked, **other})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(tmp_path_factory.mktemp("measured"), block_bytes=250_000, seconds=1.0)


# What is measured.


def test_all_figures_of_storage_are_there_and_come_from_a_fit_or_series(measured: Measured) -> None:
    wanted = {name for name, figure in FIGURES.items() if figure.part is PartName.STORAGE}
    missing = wanted - set(measured.figures)
    # The latency may not be told from 0 on a noisy machine; then that is said.
    assert missing <= {"storage_read_latency_s"}
    assert bool(missing) == any("storage_read_latency_s" in each for each in measured.warnings)
    assert set(measured.figures) <= wanted
    sources = {found.name for found in measured.fits} | {each.name for each in measured.series}
    assert {figure.source for figure in measured.figures.values()} <= sources


def test_every_point_is_measured_in_every_round_and_in_turn(measured: Measured) -> None:
    for series in measured.series:
        points = [tuple(sample.at.items()) for sample in series.samples]
        counts = Counter(points)
        assert len(set(counts.values())) == 1, "each point equally often"
        assert counts[points[0]] >= 2
        one_round = points[: len(counts)]
        assert points == one_round * counts[points[0]], "round by round"


def test_percentiles_are_in_order_in_every_sample(measured: Measured) -> None:
    for series in measured.series:
        for sample in series.samples:
            of = sample.latency
            assert of is not None
            assert 0 < of.p50 <= of.p90 <= of.p99 <= of.p999 <= of.most
            # Operations of one thread follow one another inside the sample.
            threads = sample.at["depth"]
            assert isinstance(threads, int)
            if sample.at["operation"] == "read":
                assert of.most <= sample.seconds * of.count * (1 + 1e-9)
            assert of.count >= threads


def test_block_size_is_rounded_up_and_settings_say_what_was_done(measured: Measured) -> None:
    settings = measured.settings
    assert settings["block_bytes"] == aligned(250_000) == 253_952
    assert isinstance(settings["direct"], bool)
    sizes = {sample.at["block_bytes"] for sample in measured.series[0].samples}
    assert sizes == {16_384, 65_536, 253_952}
    depths = {sample.at["depth"] for sample in measured.series[1].samples}
    # A disk too slow to be filled in the time has less data, and so a shorter queue.
    assert depths == {depth for depth in DEPTHS if depth <= max(depths)} >= {1, 2, 4}
    assert settings["threads"] == max(depths)


@pytest.mark.parametrize(("blocks", "deepest"), [(48, 32), (32, 32), (31, 16), (6, 4)])
def test_queues_are_as_deep_as_there_are_blocks(tmp_path: Path, blocks: int, deepest: int) -> None:
    block = 64 * 1024
    rng = np.random.default_rng(5)
    with DataFile(tmp_path, blocks * block) as data, DataFile(tmp_path, 2 * block) as scratch:
        points = _points(data, scratch, block, rng)
    swept = [point.at["depth"] for point in points if point.series == "storage_depths"]
    assert swept == [depth for depth in DEPTHS if depth <= deepest]
    assert max(stream.depth for point in points for stream in point.streams) == deepest


def test_the_time_asked_for_is_kept_and_progress_rises(tmp_path: Path) -> None:
    shares: list[float] = []

    def tell(share: float, what: str) -> None:
        shares.append(share)

    begun = time.perf_counter()
    measure(tmp_path, seconds=1.0, tell=tell)
    assert time.perf_counter() - begun < 30.0, "loosely: other tests run at the same time"
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0


def test_where_time_is_short_less_data_has_to_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    with DataFile(tmp_path, 8 * MIB) as file:
        file.fill(rng, step_bytes=MIB, least_bytes=2 * MIB, told=lambda _: False)
        assert file.size_bytes == os.fstat(file.fd).st_size == 2 * MIB


# Space.


def test_disk_use_is_never_above_what_was_announced(tmp_path: Path) -> None:
    used: list[int] = []

    def tell(share: float, what: str) -> None:
        used.append(disk_used(tmp_path))

    found = measure(tmp_path, space_bytes=16 * MIB, tell=tell)
    filled = found.settings["data_bytes"]
    assert isinstance(filled, int)
    assert filled <= max(used) <= 16 * MIB, "and the check sees the files"
    assert disk_used(tmp_path) == 0
    assert not names(tmp_path)


def test_a_small_space_is_measured_with_fewer_threads(tmp_path: Path) -> None:
    found = measure(tmp_path, block_bytes=MIB, space_bytes=8 * MIB)
    assert found.settings["threads"] == 4
    assert max(int(s.at["depth"] or 0) for s in found.series[1].samples) == 4


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"space_bytes": MIB}, "allow at least 2097152 bytes"),
        ({"block_bytes": 0}, "block_bytes 0 must be from 1"),
        ({"block_bytes": 2**40}, "must be from 1"),
        ({"seconds": 0.0}, "seconds 0 for storage"),
        ({"seconds": float("nan")}, "seconds nan for storage"),
    ],
)
def test_a_bad_number_is_one_sentence(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        measure(tmp_path, **asked)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_a_file_and_too_much_space_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; make it"):
        check_folder(tmp_path / "no", MIB)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is not a folder"):
        check_folder(file, MIB)
    with pytest.raises(InputError, match=r"EB are needed .* left free\); free some"):
        check_folder(tmp_path, 10**18)


def test_a_folder_that_may_not_be_written_to_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="cannot be written to"):
        check_folder(Path("/proc/self"), 0)  # not even by root
    with pytest.raises(InputError, match="cannot be written to"):
        ReadLoad(Path("/proc/self"), MIB, 8 * MIB, 1)
    real = os.open

    def refused(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InputError, match=r"cannot be written to \(Permission denied\)"):
        measure(tmp_path)


def test_a_disk_that_fills_up_meanwhile_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"is full or over its quota .* allow less space"):
        measure(tmp_path)
    assert not held(tmp_path)
    assert not names(tmp_path)


# A file system of one's own, in a mount name space that goes with the process.

MOUNT = 'mount -t {kind} {option} none "$1" && shift && exec "$@"'


def mounted(
    kind: str, folder: Path, program: str, option: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run ``program`` with a new file system on ``folder``, which only it sees."""
    if not can_mount():
        pytest.skip("mount name spaces are not allowed on this machine")
    script = MOUNT.format(kind=kind, option=option)
    python = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(
        [*unshare(), "sh", "-c", script, "sh", str(folder), *python],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def unshare() -> list[str]:
    return ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--mount"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(
        [*unshare(), "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


def test_a_full_disk_is_one_sentence_before_and_while_data_is_written(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from calibration import files_on_disk, storage
from dualpath_model.errors import InputError
folder = Path(sys.argv[1])
def measure():
    try:
        storage.measure_storage(
            folder, block_bytes=2**18, space_bytes=2**24, seconds=0.5, tell=lambda *_: None
        )
    except InputError as error:
        print(error)
(folder / "other").write_bytes(bytes(10 * 2**20))
measure()
check, storage.check_folder = storage.check_folder, lambda *_: None  # another writer came between
measure()
print(os.listdir(folder), os.statvfs(folder).f_bfree * 4096)
(folder / "other").unlink()
storage.check_folder = check
measure()
print(os.listdir(folder), os.statvfs(folder).f_bfree * 4096)
"""
    ran = mounted("tmpfs", tmp_path, program, "-o size=20m")
    assert ran.returncode == 0, ran.stderr
    before, meanwhile, left, nothing = ran.stdout.splitlines()
    assert (
        "10.5 MB free, but 17.8 MB are needed (16.8 MB of test data, 1.05 MB left free)" in before
    )
    assert "is full or over its quota (No space left on device)" in meanwhile
    assert left == f"['other'] {10 * MIB}"
    assert nothing == f"[] {20 * MIB}", "there it fits, and all of it comes back"


def test_a_file_system_without_o_direct_is_measured_with_a_warning(tmp_path: Path) -> None:
    program = """
import json, sys
from pathlib import Path
from calibration.files_on_disk import DataFile
from calibration.storage import measure_storage
found = measure_storage(
    Path(sys.argv[1]), block_bytes=2**18, space_bytes=2**23, seconds=0.5, tell=lambda *_: None
)
print(json.dumps([found.settings, found.warnings, sorted(found.figures)]))
"""
    ran = mounted("ramfs", tmp_path, program)
    assert ran.returncode == 0, ran.stderr
    settings, warnings, figures = json.loads(ran.stdout)
    assert settings["direct"] is False
    assert settings["file_system"] == "ramfs"
    assert "memory" in warnings[0]
    assert "storage_read_bytes_per_s" in figures


def test_refused_o_direct_falls_back_to_an_emptied_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, dropped = fcntl.fcntl, []

    def refused(fd: int, command: int, argument: Any = 0) -> Any:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, command, argument)

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        dropped.append((offset, length, advice))

    monkeypatch.setattr(fcntl, "fcntl", refused)
    found = measure(tmp_path)
    assert found.settings["direct"] is False
    assert any("refuses O_DIRECT" in warning for warning in found.warnings)
    assert not names(tmp_path)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    with DataFile(tmp_path, MIB) as file:
        file.read(aligned_buffer(4096), 8192)
    assert dropped == [(8192, 4096, os.POSIX_FADV_DONTNEED)]


def test_memory_that_stands_for_a_disk_is_warned_of() -> None:
    shared = Path("/dev/shm")
    if file_system(shared) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    before = names(shared)
    found = measure(shared)
    assert any("which is memory" in warning for warning in found.warnings)
    assert found.settings["file_system"] == "tmpfs"
    assert names(shared) <= before


def test_a_folders_file_system_is_that_of_the_nearest_mount() -> None:
    mounts = "\n".join(
        [
            "/dev/a / ext4 rw 0 0",
            "none /mnt/with\\040space tmpfs rw 0 0",
            "/dev/b /mnt xfs rw 0 0",
            "server:/x /mnt/deep/er nfs4 rw 0 0",
            "over /mnt/deep/er overlay rw 0 0",
        ]
    )
    assert file_system(Path("/mnt/with space/x"), mounts) == "tmpfs"
    assert file_system(Path("/mnt/deep"), mounts) == "xfs"
    assert file_system(Path("/mnt/deep/er/y"), mounts) == "overlay"
    assert file_system(Path("/mntx"), mounts) == "ext4"
    assert file_system(Path("/"), "") == "unknown"


def test_file_systems_without_nameless_files_leave_no_name_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refused(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with DataFile(tmp_path, MIB) as file:
        assert not names(tmp_path)
        assert disk_used(tmp_path) == MIB
        assert file.direct or file_system(tmp_path) != "ext4"
    assert disk_used(tmp_path) == 0


# The ends of a process.


@pytest.mark.parametrize(
    ("end", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)]
)
@pytest.mark.parametrize("when", ["writes test data", "storage_depths"])
def test_a_measurement_that_is_ended_leaves_nothing(
    tmp_path: Path, end: signal.Signals, status: int, when: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=uncounted(),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(when):
                break
        assert process.poll() is None
        process.send_signal(end)
        process.communicate(timeout=120)  # at once, unless the machine's disk is busy with others
    assert process.returncode == status
    assert not names(tmp_path)


def test_ctrl_c_that_tell_raises_ends_the_measurement(tmp_path: Path) -> None:
    def tell(share: float, what: str) -> None:
        if what.startswith("storage_writes"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, tell=tell)
    assert disk_used(tmp_path) == 0
    assert not names(tmp_path)


# Against fio.


def test_the_comparison_with_fio_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import against_fio

    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="apt-get install fio"):
        against_fio.compare(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
@pytest.mark.parametrize("engine", ["libaio", "psync"])
def test_the_comparison_with_fio_alternates_and_leaves_nothing(tmp_path: Path, engine: str) -> None:
    from benchmarks import against_fio

    found = against_fio.compare(
        tmp_path, runs=2, seconds=1.0, depth=2, file_bytes=64 * MIB, engine=engine
    )
    assert len(found["ours_bytes_per_s"]) == len(found["fio_bytes_per_s"]) == 2
    # Beside other tests the ratio is noise; it is for `python -m benchmarks.against_fio`.
    assert min(found["ours_bytes_per_s"] + found["fio_bytes_per_s"]) > 1e6
    assert not names(tmp_path)
