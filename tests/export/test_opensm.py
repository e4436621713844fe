"""opensm's options: the paper's values from the plan's weights; no weight that a lane does not take."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dualpath_model.errors import InputError
from dualpath_model.export import export, parse_plan, target_named
from tests.export.plans import made, plan_data


def with_weights(target: str, **weights: Any) -> dict[str, str]:
    data = copy.deepcopy(plan_data())
    data["scheduler_parameters"].update({f"qos_{name}": value for name, value in weights.items()})
    return dict(export(target_named(target), parse_plan(data)).files)


def settings_of(text: str, sign: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split(sign, 1) for line in lines)  # type: ignore[misc]


def test_the_plans_weights_are_the_papers_options() -> None:
    """Appendix A.1, to the letter."""
    options = settings_of(made("opensm").files["opensm.conf"], " ")
    assert options == {
        "qos": "TRUE",
        "qos_max_vls": "4",
        "qos_high_limit": "240",
        "qos_vlarb_high": "0:192,1:192,2:0,3:192",
        "qos_vlarb_low": "0:192,1:192,2:64,3:192",
        "qos_sl2vl": "0,1,2,3" + ",0" * 12,
    }


def test_other_weights_reach_both_tables() -> None:
    files = with_weights("opensm", collective_weight=100, kv_weight=7, high_limit=12)
    options = settings_of(files["opensm.conf"], " ")
    assert options["qos_vlarb_high"] == "0:100,1:100,2:0,3:100"
    assert options["qos_vlarb_low"] == "0:100,1:100,2:7,3:100"
    assert options["qos_high_limit"] == "12"


def test_applications_ask_for_the_lane_that_the_options_give_them() -> None:
    files = made("opensm").files
    options = settings_of(files["opensm.conf"], " ")
    levels = settings_of(files["infiniband.env"], "=")
    lanes = options["qos_sl2vl"].split(",")
    weights = dict(pair.split(":") for pair in options["qos_vlarb_high"].split(","))
    assert weights[lanes[int(levels["UCX_IB_SL"])]] == "0"
    assert levels["MC_IB_SL"] == levels["UCX_IB_SL"]
    assert int(weights[lanes[int(levels["NCCL_IB_SL"])]]) > 0


@pytest.mark.parametrize("target", ["opensm", "roce"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kv_weight", 300),
        ("kv_weight", 0),
        ("kv_weight", -1),
        ("collective_weight", 256),
        ("high_limit", 256),
        ("high_limit", -1),
    ],
)
def test_a_weight_that_is_no_byte_is_refused(target: str, name: str, value: int) -> None:
    words = rf"scheduler_parameters\.qos_{name} is {value}, .* to 255.*change it"
    with pytest.raises(InputError, match=words) as caught:
        with_weights(target, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("limit", "noted"), [(255, True), (254, False), (0, False)])
def test_a_limit_that_is_none_is_noted(limit: int, noted: bool) -> None:
    readme = with_weights("opensm", high_limit=limit)["README.md"]
    assert ("255 is no limit" in readme) == noted


def test_what_a_network_cannot_say_is_left_out() -> None:
    dropped = made("opensm").bundle.dropped
    assert "split x = 0.667" in dropped[0].what
    assert "none on the network" in dropped[0].effect
    assert any("beta" in entry.what for entry in dropped)
