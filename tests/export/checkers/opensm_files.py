"""Read an opensm.conf with opensm itself: ``opensm_files.py OPENSM FILE``.

opensm ends with 0 whatever it reads, so its messages decide, and every option that the file sets must be
in what it writes back. Prints the options as opensm has them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMPLAINTS = (
    "Unrecognized token",
    "Parsing error",
    "Invalid Cached Option",
    "out of range",
    "VLs listed",
)
VL_COUNTS = ("1", "2", "4", "8", "15")
"""opensm takes any number of VLs without a word; InfiniBand's OperationalVLs has these."""


def options_of(path: Path) -> dict[str, str]:
    """Return the options of a file."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    return {pair[0]: " ".join(pair[1:]) for pair in pairs}


def main(opensm: str, file: str) -> int:
    """Return 0 if opensm takes the file as it stands, else 3."""
    with tempfile.TemporaryDirectory() as aside:
        back = Path(aside) / "back.conf"
        command = [opensm, "-F", file, "-c", str(back)]
        libraries = str(Path(opensm).parents[2] / "usr/lib/x86_64-linux-gnu")
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
        )
        print(done.stdout + done.stderr)
        if any(words in done.stdout + done.stderr for words in COMPLAINTS) or not back.is_file():
            return 3
        read, asked = options_of(back), options_of(Path(file))
    for name, value in asked.items():
        if read.get(name) != value:
            print(f"{name}: {value!r} was read as {read.get(name)!r}")
            return 3
    if read["qos_max_vls"] not in VL_COUNTS:
        print(f"qos_max_vls: {read['qos_max_vls']} is none of {VL_COUNTS}")
        return 3
    print(json.dumps({name: read[name] for name in asked}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
