"""Build the environments in which each target's own software reads our files: `make test-exports`.

One TOML file an environment: ``packages`` (pinned, installed with --no-deps into a venv of its own),
``unpack`` (wheels of which only some files are needed: put into ``site/`` without their compiled parts)
and ``debian`` (packages unpacked into ``root/``, so that nothing is installed on the machine). An
environment is built again only when its file changes. All together stay below 3 GB.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILT = Path(os.environ.get("DUALPATH_EXPORT_ENVIRONMENTS", ROOT / ".venv-exports"))
_STAMP = ".built"
MOST_BYTES = 3_000_000_000


def names() -> list[str]:
    """Return the environments that there are."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def build(name: str) -> None:
    """Build one environment unless it is built from the same file."""
    text = (HERE / f"{name}.toml").read_text(encoding="utf-8")
    # the pinned list and this script decide what an environment holds
    digest = hashlib.sha256(
        (text + Path(__file__).read_text(encoding="utf-8")).encode()
    ).hexdigest()
    folder = BUILT / name
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        print(f"{name}: built already", flush=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = tomllib.loads(text)
    _venv(folder, asked.get("packages", []))
    for wheel in asked.get("unpack", []):
        _unpack(folder / "site", wheel["wheel"], wheel.get("keep", ["*.py"]))
    _debian(folder / "root", asked.get("debian", []))
    stamp.write_text(digest, encoding="utf-8")
    print(f"{name}: built, {size(folder) / 1e6:.0f} MB", flush=True)


def size(folder: Path) -> int:
    """Return the bytes that a folder takes."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())


def _venv(folder: Path, packages: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    if packages:
        pip = [folder / "venv" / "bin" / "python", "-m", "pip", "--quiet"]
        common = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, "install", *common, *packages], check=True)


def _unpack(site: Path, wheel: str, keep: list[str]) -> None:
    """Put the files of a wheel that match one of the patterns into ``site``."""
    with tempfile.TemporaryDirectory() as aside:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        subprocess.run([*pip, "--only-binary", ":all:", "-d", aside, wheel], check=True)
        (file,) = Path(aside).glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                if any(fnmatch.fnmatch(member, pattern) for pattern in keep):
                    archive.extract(member, site)


def _debian(root: Path, packages: list[str]) -> None:
    """Unpack Debian packages into ``root``, as they would lie under /."""
    if not packages:
        return
    root.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as aside:
        Path(aside).chmod(0o755)
        try:
            subprocess.run(["apt-get", "download", "-qq", *packages], cwd=aside, check=True)
        except subprocess.CalledProcessError:  # a new machine has no list of packages yet
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "download", "-qq", *packages], cwd=aside, check=True)
        for package in Path(aside).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)


def main() -> None:
    """Build the environments named, or all."""
    for name in sys.argv[1:] or names():
        build(name)
    total = size(BUILT)
    print(f"all environments: {total / 1e9:.2f} GB", flush=True)
    if total > MOST_BYTES:
        sys.exit(f"the environments take {total / 1e9:.2f} GB, more than {MOST_BYTES / 1e9:.0f} GB")


if __name__ == "__main__":
    main()
