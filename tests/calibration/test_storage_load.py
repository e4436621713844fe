"""The storage load beside other measurements: it reads, and it ends with whoever started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.storage_load import ReadLoad
from dualpath_model.errors import InputError
from tests.calibration.traces import children, disk_used, gone, names, wait_until
from tests.conftest import ROOT

MIB = 2**20


def test_a_load_reads_until_its_end_and_leaves_nothing(tmp_path: Path) -> None:
    with ReadLoad(tmp_path, 64 * 1024, 4 * MIB, 4) as load:
        process = load.process_id
        before = load.bytes_read
        assert before > 0
        assert wait_until(lambda: load.bytes_read > before + 8 * 64 * 1024)
        assert load.bytes_read % (64 * 1024) == 0
        assert children(os.getpid()).count(process) == 1
        assert disk_used(tmp_path) == 4 * MIB
    assert gone(process)
    assert disk_used(tmp_path) == 0
    assert not names(tmp_path)


def test_a_load_whose_process_is_killed_is_one_sentence(tmp_path: Path) -> None:
    load = ReadLoad(tmp_path, 64 * 1024, 4 * MIB, 2)
    with pytest.raises(InputError, match=r"ended early .*-9.*; measure again"), load:
        os.kill(load.process_id, signal.SIGKILL)
        assert wait_until(lambda: gone(load.process_id))
    assert disk_used(tmp_path) == 0
    assert not names(tmp_path)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_load_ends_with_the_process_that_started_it(tmp_path: Path, end: signal.Signals) -> None:
    program = """
import os, sys, time
from pathlib import Path
from calibration.storage_load import ReadLoad
with ReadLoad(Path(sys.argv[1]), 2**16, 2**22, 2) as load:
    print(load.process_id, flush=True)
    if os.fork() == 0:  # a sibling that keeps the pipe's other end open
        time.sleep(8)
        os._exit(0)
    print("forked", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        load = int(process.stdout.readline())
        assert process.stdout.readline() == "forked\n"
        assert not gone(load)
        siblings = [child for child in children(process.pid) if child != load]
        process.send_signal(end)
        process.wait(timeout=20)
        assert wait_until(lambda: gone(load), 5.0)
        for sibling in siblings:
            os.kill(sibling, signal.SIGKILL)
    assert not names(tmp_path)


def test_a_load_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="depth 0 of the storage load"):
        ReadLoad(tmp_path, MIB, 8 * MIB, 0)
    with pytest.raises(InputError, match="holds 1 blocks"):
        ReadLoad(tmp_path, MIB, MIB, 1)
    with pytest.raises(InputError, match="has not been started"):
        _ = ReadLoad(tmp_path, MIB, 8 * MIB, 1).process_id
