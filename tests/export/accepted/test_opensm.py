"""opensm 3.3.23 itself reads our options and writes them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.environment import Answer, check, tool
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports

EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")


def read_by_opensm(text: str, folder: Path) -> Answer:
    path = folder / "opensm.conf"
    path.write_text(text)
    (program,), _ = tool("opensm", "opensm")
    return check("opensm", program, path, checker="opensm_files")


@pytest.mark.parametrize("name", EXAMPLES)
def test_opensm_takes_the_options_as_they_stand(name: str, tmp_path: Path) -> None:
    answer = read_by_opensm(made("opensm", name).files["opensm.conf"], tmp_path)
    assert answer.accepted, answer.output
    parameters = plan_file(name).scheduler_parameters
    low = dict(pair.split(":") for pair in answer.values["qos_vlarb_low"].split(","))
    high = dict(pair.split(":") for pair in answer.values["qos_vlarb_high"].split(","))
    assert int(low["2"]) == parameters.qos_kv_weight
    assert {int(low[lane]) for lane in "013"} == {parameters.qos_collective_weight}
    assert high == {**low, "2": "0"}
    assert int(answer.values["qos_high_limit"]) == parameters.qos_high_limit
    assert answer.values["qos"] == "TRUE"
    assert len(low) == int(answer.values["qos_max_vls"])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("qos_sl2vl", "qos_sl2v"),
        ("2:64,", "2:300,"),
        ("qos_high_limit 240", "qos_high_limit 300"),
        ("qos_high_limit 240", "qos_high_limit many"),
        ("qos_max_vls 4", "qos_max_vls 5"),
        (",0,0,0,0,0,0,0,0,0,0,0,0", ",0"),
        ("3:192", "33:192"),
        ("qos TRUE", "qos maybe"),
    ],
)
def test_a_wrong_option_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    text = made("opensm").files["opensm.conf"]
    assert f"{right}" in text
    answer = read_by_opensm(text.replace(right, wrong), tmp_path)
    assert not answer.accepted, answer.output
