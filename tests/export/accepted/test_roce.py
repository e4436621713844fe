"""bash and shellcheck read the scripts; UCX shows the values that it takes from the environment files.

dcb itself asks the NIC before it reads a map, and there is none here: test_roce.py checks the ranges.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.export.environment import folder_of, tool
from tests.export.plans import made
from tests.export.test_opensm import settings_of

pytestmark = pytest.mark.exports

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def complaints(text: str, folder: Path) -> str:
    """Return what bash and shellcheck say of a script."""
    path = folder / "script.sh"
    path.write_text(text)
    shellcheck = folder_of("roce") / "venv" / "bin" / "shellcheck"
    said = ""
    for command in (["bash", "-n", path], [shellcheck, "--shell=bash", "--norc", path]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said += done.stdout + done.stderr
        assert done.returncode == 0 or said
    return said


@pytest.mark.parametrize("name", EXAMPLES)
def test_shellcheck_has_no_complaint(name: str, tmp_path: Path) -> None:
    files = made("roce", name).files
    scripts = [file for file in files if file.endswith(".sh")]
    assert len(scripts) == 2
    for script in scripts:
        assert complaints(files[script], tmp_path) == ""


@pytest.mark.parametrize(
    "wrong", ["dcb app replace dev $NIC\n", "if true; then\n", "dcb pfc set dev 'eth0\n"]
)
def test_a_wrong_script_is_found(wrong: str, tmp_path: Path) -> None:
    assert complaints(made("roce").files["dcb-prefill.sh"] + wrong, tmp_path)


def read_by_ucx(settings: Mapping[str, str]) -> dict[str, set[str]]:
    """Return what UCX has for service level and traffic class, over all of its transports."""
    command, variables = tool("roce", "ucx_info")
    clean = {name: text for name, text in variables.items() if not name.startswith("UCX_")}
    folder = Path(command[0]).parents[1] / "lib/x86_64-linux-gnu/ucx"
    done = subprocess.run(
        [*command, "-c"],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, "UCX_MODULE_DIR": os.fspath(folder), **settings},
    )
    found: dict[str, set[str]] = {}
    for name, value in re.findall(r"UCX_\w+_(SL|TRAFFIC_CLASS)=(\S+)", done.stdout):
        found.setdefault(name, set()).add(value)
    return found


def taken(settings: Mapping[str, str]) -> bool:
    """Tell whether UCX shows each value just as it is given, and each is one of its range."""
    ranges = {"UCX_IB_SL": range(16), "UCX_IB_TRAFFIC_CLASS": range(256)}
    shown = read_by_ucx(settings)
    return all(
        name in ranges
        and int(value) in ranges[name]
        and shown.get(name.removeprefix("UCX_IB_")) == {value}
        for name, value in settings.items()
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_ucx_shows_both_values(name: str) -> None:
    settings = {
        key: value
        for target, file in (("roce", "roce.env"), ("opensm", "infiniband.env"))
        for key, value in settings_of(made(target, name).files[file], "=").items()
        if key.startswith("UCX_")
    }
    assert settings == {"UCX_IB_TRAFFIC_CLASS": "104", "UCX_IB_SL": "2"}
    assert taken(settings)


@pytest.mark.parametrize(
    "wrong",
    [{"UCX_IB_TRAFIC_CLASS": "104"}, {"UCX_IB_SLS": "2"}, {"UCX_IB_SL": "99"}],
)
def test_a_wrong_setting_is_found(wrong: dict[str, str]) -> None:
    """UCX itself says nothing of any of these."""
    assert not taken(wrong)


def test_without_our_settings_ucx_has_others() -> None:
    assert read_by_ucx({}) == {"SL": {"auto"}, "TRAFFIC_CLASS": {"auto"}}
