"""Our storage reads against fio's, in turn: same block size, depth, file size and O_DIRECT.

``python -m benchmarks.against_fio FOLDER [--block-bytes B] [--depth N] [--runs N] [--seconds S]`` prints
one JSON object. Ours is the very engine that `dualpath calibrate` measures with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from calibration.block_io import Buffers, Stream, keep_busy
from calibration.files_on_disk import DataFile, aligned, check_folder
from dualpath_model.errors import InputError


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--block-bytes", type=int, default=2**20)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--file-bytes", type=int, default=2**29)
    parser.add_argument("--huge-pages", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--engine", default="libaio", choices=["libaio", "psync"])
    print(json.dumps(compare(**vars(parser.parse_args())), indent=1))


def compare(
    folder: Path,
    *,
    runs: int = 11,
    seconds: float = 2.0,
    block_bytes: int = 2**20,
    depth: int = 8,
    file_bytes: int = 2**29,
    engine: str = "libaio",
    huge_pages: bool = True,
) -> dict[str, Any]:
    """Alternate ours and fio ``runs`` times; "storage_over_fio" is the ratio of the medians.

    Both read one file without a name, of ``file_bytes``: where two files lie on a disk makes them differ
    by more than the two readers do. With ``engine`` psync fio has ``depth`` threads, as we do.
    ``huge_pages``: of both sides' buffers, or of neither's; without them the rates of some disks vary
    threefold by luck. Raises InputError where fio or space is missing.
    """
    fio = shutil.which("fio")
    if fio is None:
        raise InputError("fio is not installed; `apt-get install fio` gives it")
    block = aligned(block_bytes)
    if file_bytes < block * depth:
        raise InputError(
            f"file_bytes {file_bytes} is less than depth times block_bytes, {block * depth}; give more"
        )
    size = file_bytes // block * block
    check_folder(folder, size)
    rng = np.random.default_rng(0)
    ours: list[float] = []
    theirs: list[float] = []
    with DataFile(folder, size) as file:
        if not file.direct:
            raise InputError(
                f"folder {folder} refuses O_DIRECT, which is compared here; name one on another disk"
            )
        file.fill(rng, step_bytes=block, least_bytes=size, told=lambda _: True)
        stream = Stream.random(file, block, depth, rng)
        named = f"/proc/{os.getpid()}/fd/{file.fd}"
        command = [
            *(fio, "--name=reads", f"--filename={named}", f"--size={size}", f"--bs={block}"),
            *("--rw=randread", "--direct=1", "--time_based", f"--runtime={seconds}"),
            *("--output-format=json", "--allow_file_create=0", f"--ioengine={engine}"),
            *(
                (f"--iodepth={depth}",)
                if engine == "libaio"
                else (f"--numjobs={depth}", "--thread", "--group_reporting")
            ),
        ]
        if huge_pages:
            command.append(f"--iomem_align={2**21}")
        for run in range(runs):
            # In turn who is first: what a disk's burst allowance favours.
            for mine in (True, False) if run % 2 == 0 else (False, True):
                if mine:
                    ours.append(_ours(stream, seconds, Buffers(rng, huge_pages=huge_pages)))
                else:
                    theirs.append(_fio(command, huge_pages))
    return {
        "storage_over_fio": statistics.median(ours) / statistics.median(theirs),
        "ours_bytes_per_s": ours,
        "fio_bytes_per_s": theirs,
        "settings": {
            "block_bytes": block,
            "depth": depth,
            "file_bytes": size,
            "seconds": seconds,
            "engine": engine,
            "huge_pages": huge_pages,
        },
    }


def _ours(stream: Stream, seconds: float, buffers: Buffers) -> float:
    """Read with ``buffers`` that are new each time, as fio's are."""
    return keep_busy([stream], seconds, buffers)[0].bytes_per_s


def _fio(command: list[str], huge_pages: bool) -> float:
    # fio takes its buffers from malloc; glibc (2.35 and later) then asks for huge pages, as we do.
    tuned = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb={int(huge_pages)}"}
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **tuned}
    )
    if ran.returncode != 0:
        raise InputError(f"fio ended with status {ran.returncode}: {ran.stderr.strip()[-200:]}")
    found = json.loads(ran.stdout[ran.stdout.index("{") :])
    return float(sum(job["read"]["bw_bytes"] for job in found["jobs"]))


if __name__ == "__main__":
    main()
