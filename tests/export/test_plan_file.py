"""Plan files that are none, of another version, or cut: one sentence each."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.errors import DualPathError, InfeasibleError, InputError
from dualpath_model.export import parse_plan, read_plan
from dualpath_model.export import plan_file as module
from solvers import planner
from tests.export.plans import plan_data, plan_file


def changed(**parts: Any) -> Any:
    data = copy.deepcopy(plan_data())
    for name, value in parts.items():
        *way, last = name.split("__")
        place = data
        for key in way:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return data


def second_kind(**changes: Any) -> Any:
    data = copy.deepcopy(plan_data())
    data["deployment"]["kinds"].append(data["deployment"]["kinds"][0] | changes)
    return data


def kind_with(**changes: Any) -> Any:
    data = copy.deepcopy(plan_data())
    data["deployment"]["kinds"][0] |= changes
    return data


def test_the_newest_plan_is_understood() -> None:
    assert module.PLAN_VERSION == planner.PLAN_VERSION
    assert plan_file().throughput_requests_per_s == plan_data()["throughput_requests_per_s"]


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_data()))
    assert read_plan(path) == plan_file()


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (
            changed(version=2),
            InputError,
            "version is 2, but this dualpath knows plans up to 1; update",
        ),
        (changed(version="1"), InputError, "version is '1'; it must be a whole number"),
        (changed(deployment=None), InputError, "deployment is missing"),
        (changed(deployment__version=9), InputError, "deployment.version is 9, but"),
        (changed(throughput_requests_per_s=0.0), InfeasibleError, "serves nothing"),
        (changed(throughput_requests_per_s=-1), InfeasibleError, "serves nothing"),
        (changed(split="half"), InputError, "split: input should be a valid number"),
        (
            changed(deployment__llm__layers=None),
            InputError,
            "deployment.llm.layers: field required",
        ),
        (changed(scheduler_parameters=None), InputError, "is not a plan"),
        (changed(split=float("nan")), InputError, "split is nan, which is no number"),
        (changed(deployment__quota_s=float("inf")), InputError, "deployment.quota_s is inf"),
        (kind_with(gpus=0), InputError, "deployment.kinds.0.gpus is 0; it must be from 1 to 1e+06"),
        (kind_with(tensor=0), InputError, "deployment.kinds.0.tensor is 0"),
        (
            kind_with(beta_tokens=-5),
            InputError,
            "kinds.0.beta_tokens is -5.0; it must be from 0 on",
        ),
        (kind_with(decode_batch=-5), InputError, "decode_batch is -5.0; it must be above 0"),
        (kind_with(storage_read_bytes_per_s=1e-300), InputError, "it must be from 1 on"),
        (changed(split=1.7), InputError, "split is 1.7; it must be from 0 to 1"),
        (changed(prefill_nodes=99), InputError, "prefill_nodes is 99, but deployment.nodes has 2"),
        (
            changed(deployment__ttft_s=-4),
            InputError,
            "deployment.ttft_s is -4.0; it must be above 0",
        ),
        (
            changed(deployment__workload__hit_tokens__mean=-5),
            InputError,
            "deployment.workload.hit_tokens.mean is -5.0; it must be from 0 to 1e+15",
        ),
        (
            changed(scheduler_parameters__block_tokens=0),
            InputError,
            "scheduler_parameters.block_tokens is 0; it must be from 1",
        ),
        (kind_with(positions=[]), InputError, "deployment.kinds.0.positions is empty"),
        (kind_with(storage_read_bytes_per_s=0), InputError, "storage_read_bytes_per_s is 0"),
        (kind_with(cnics=0), InputError, "deployment.kinds.0.cnics is 0; it must be"),
        (kind_with(prefill_tokens_per_s=0.0), InputError, "prefill_tokens_per_s is 0.0"),
        (second_kind(), InputError, "kinds.2.positions has prefill node 0, which is of a kind"),
        (second_kind(positions=[2]), InputError, "nodes lacks prefill node 2, which deployment.k"),
        (kind_with(positions=[0]), InputError, "nodes.1.node is 'p1', which is there twice or"),
        (kind_with(tensor=3), InputError, "prefill node 0 has 8 engines, but its kind has 8 GPUs"),
        (changed(deployment__nodes=[]), InputError, "deployment.nodes lacks decode node 0"),
        ([], InputError, "is not a plan"),
        ({"name": "a scenario"}, InputError, "is not a plan"),
    ],
    ids=range(32),
)
def test_other_data_is_refused_in_a_sentence(
    data: Any, kind: type[DualPathError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        parse_plan(data, "some.json")
    assert str(caught.value).startswith("some.json: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 5000], ids=["cut", "bytes", "deep"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not JSON"):
        read_plan(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_plan(tmp_path / "none.json")
