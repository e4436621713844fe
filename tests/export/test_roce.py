"""RoCE: DSCP, classes and shares from the plan's weights; names of interfaces stay one word."""

from __future__ import annotations

import copy
import json
import shlex
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dualpath_model.errors import InputError
from dualpath_model.export import Site, export, parse_plan, target_named
from dualpath_model.export.targets._qos import percent_of
from tests.export.plans import made, plan_data
from tests.export.test_opensm import settings_of, with_weights

NICS = [f"eth{n}" for n in range(8)]


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a script."""
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.startswith("dcb")]
    return [shlex.split(line) for line in lines]


def after(words: list[str], name: str) -> list[str]:
    """Return the words between a keyword and the next one."""
    rest = words[words.index(name) + 1 :]
    ends = {"dev", "dscp-prio", "willing", "prio-tc", "tc-tsa", "tc-bw", "prio-pfc"}
    return rest[: next((at for at, word in enumerate(rest) if word in ends), len(rest))]


@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous"])
@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_each_interface_gets_its_classes(name: str, pool: str) -> None:
    """Shares 192:192:64:192 of 640 are 30, 30, 10 and 30 %."""
    text = made("roce", name, site=Site(compute_interfaces=NICS)).files[f"dcb-{pool}.sh"]
    found = commands(text)
    assert [after(words, "dev")[0] for words in found[::3]] == NICS
    for app, ets, pfc in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert app[:3] == ["dcb", "app", "replace"]
        assert after(app, "dscp-prio") == ["0:0", "10:1", "26:2", "34:3"]
        assert ets[:3] == ["dcb", "ets", "set"]
        shares = [int(pair.split(":")[1]) for pair in after(ets, "tc-bw")]
        assert shares == [30, 30, 10, 30, 0, 0, 0, 0]
        assert after(ets, "prio-tc")[:5] == ["0:0", "1:1", "2:2", "3:3", "4:0"]
        assert pfc[:3] == ["dcb", "pfc", "set"]
        lossless = [pair.split(":")[0] for pair in after(pfc, "prio-pfc") if pair.endswith(":on")]
        assert lossless == ["0", "1", "2", "3"]


def test_nodes_with_other_nics_get_a_script_of_their_own() -> None:
    data = copy.deepcopy(plan_data("heterogeneous"))
    data["deployment"]["kinds"][1]["cnics"] = 4
    files = export(target_named("roce"), parse_plan(data)).files
    assert len(commands(files["dcb-prefill-4-nics.sh"])) == 12
    assert len(commands(files["dcb-prefill-8-nics.sh"])) == 24
    assert "dcb-decode.sh" in files


def test_traffic_classes_are_four_times_the_dscp() -> None:
    environment = settings_of(made("roce").files["roce.env"], "=")
    assert environment == {
        "UCX_IB_TRAFFIC_CLASS": "104",
        "MC_IB_TC": "104",
        "NCCL_IB_TC": "40",
    }
    other = made("roce", site=Site(kv_dscp=16, collective_dscp=8)).files
    assert settings_of(other["roce.env"], "=")["MC_IB_TC"] == "64"
    for row in json.loads(other["classes.json"])["classes"]:
        assert row["traffic_class"] == 4 * row["dscp"]
        assert f"{row['dscp']}:{row['priority']}" in other["dcb-decode.sh"]


@pytest.mark.parametrize("dscp", [0, 64, -1, 1.5])
def test_a_dscp_out_of_range_is_refused(dscp: Any) -> None:
    with pytest.raises(ValidationError):
        Site(kv_dscp=dscp)


@pytest.mark.parametrize(("kv", "collective"), [(10, 10), (34, 10), (26, 34)])
def test_two_lanes_with_one_dscp_are_refused(kv: int, collective: int) -> None:
    with pytest.raises(InputError, match=f"kv_dscp is {kv} and collective_dscp is {collective}"):
        made("roce", site=Site(kv_dscp=kv, collective_dscp=collective))


def test_too_few_interfaces_are_refused() -> None:
    with pytest.raises(InputError, match="names 2 interfaces, but prefill nodes have 8"):
        made("roce", site=Site(compute_interfaces=["a", "b"]))


def test_more_interfaces_than_nics_are_not_touched() -> None:
    files = made("roce", site=Site(compute_interfaces=[*NICS, "eth8"])).files
    assert "eth8" not in files["dcb-prefill.sh"]


def test_names_of_interfaces_stay_one_word() -> None:
    nasty = ["$(>x)", "a b", "';>x;'", '"`>x`"', "*", "~", "&", "\\"]
    text = made("roce", site=Site(compute_interfaces=nasty)).files["dcb-prefill.sh"]
    assert [after(words, "dev") for words in commands(text)[::3]] == [[name] for name in nasty]


@given(weights=st.lists(st.integers(1, 255), min_size=1, max_size=8))
def test_percents_add_up_and_follow_the_weights(weights: list[int]) -> None:
    found = percent_of(weights)
    assert sum(found) == 100
    assert min(found) >= 1
    for share, weight in zip(found, weights, strict=True):
        # one percent for rounding, and one for each lane that had to be lifted to 1
        assert abs(share - 100 * weight / sum(weights)) <= 1 + len(weights)
    ordered = [share for _, share in sorted(zip(weights, found, strict=True))]
    assert all(b >= a - 1 for a, b in pairwise(ordered))


@pytest.mark.parametrize(
    ("weights", "percents"),
    [
        ((192, 192, 64, 192), (30, 30, 10, 30)),
        ((1, 1, 1), (34, 33, 33)),
        ((255, 255, 1, 255), (33, 33, 1, 33)),
        ((255, 1, 1, 1), (97, 1, 1, 1)),
    ],
)
def test_percents_of_known_weights(weights: tuple[int, ...], percents: tuple[int, ...]) -> None:
    assert percent_of(weights) == percents


def test_the_limit_that_ets_lacks_is_said() -> None:
    dropped = made("roce").bundle.dropped
    limit = next(entry for entry in dropped if "high-priority limit" in entry.what)
    assert str(240 * 4096) in limit.what
    assert "up to 10 %" in limit.effect
    rare = with_weights("roce", kv_weight=1)
    assert "2:1 " in rare["dcb-prefill.sh"]
