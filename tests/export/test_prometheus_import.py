"""Range queries of Prometheus become a scenario that loads; what is no range query is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.export.imports import prometheus
from dualpath_model.export.imports._prometheus_series import percentile
from dualpath_model.export.imports.skeleton import Skeleton
from dualpath_model.scenario import load_scenario

STEPS = 40
RECEIVED, SENT = "node_network_receive_bytes_total", "node_network_transmit_bytes_total"


def result(name: str | None, values: list[Any], **labels: str) -> dict[str, Any]:
    metric = {"__name__": name, **labels} if name else labels
    samples = [[1_700_000_000 + 15 * n, str(value)] for n, value in enumerate(values)]
    return {"metric": metric, "values": samples}


def counter(name: str, per_s: float, **labels: str) -> dict[str, Any]:
    return result(name, [1e6 + per_s * 15 * n for n in range(STEPS)], **labels)


def answer(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "matrix", "result": list(results)}, **more}


def read(folder: Path, data: Any) -> Skeleton:
    path = folder / "cluster.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return prometheus.read(path)


def cluster_answer(*, speed: bool = True) -> list[dict[str, Any]]:
    """2 prefill nodes with two NICs and 3 decode nodes with one; the mean turn 20,000 / 19,000 / 250."""
    nics = []
    for role, count, devices in (("prefill", 2, 2), ("decode", 3, 1)):
        for node in range(count):
            place = {"instance": f"{role}-{node}:9100", "job": f"{role}-nodes"}
            nics.append(counter(RECEIVED, 1.0, device="lo", **place))
            for device in range(devices):
                at = {**place, "device": f"eth{device}"}
                nics.append(counter(RECEIVED, 20e9 + 1e9 * node, **at))
                nics.append(counter(SENT, 1e9, **at))
                if speed:
                    nics.append(result("node_network_speed_bytes", [50e9] * STEPS, **at))
    engines = []
    for role, generated in (("prefill", 1), ("decode", 250)):
        at = {"pool": role, "model_name": "deepseek-ai/DeepSeek-V3.2", "engine": "0"}
        engines += [
            counter("vllm:prompt_tokens_total", 10 * 20_000, **at),
            counter("vllm:prompt_tokens_cached_total", 10 * 19_000, **at),
            counter("vllm:generation_tokens_total", 10 * generated, **at),
            counter("vllm:request_success_total", 8, finished_reason="length", **at),
            counter("vllm:request_success_total", 2, finished_reason="stop", **at),
        ]
    return [answer(*nics), answer(*engines)]


def test_a_cluster_is_read_into_a_scenario_that_loads(tmp_path: Path) -> None:
    found = read(tmp_path, cluster_answer())
    assert found.scenario["llm"] == "deepseek-v3.2"
    assert found.scenario["cluster"] == {
        "prefill": {
            "node": {"base": "paper-hopper", "snics": 2, "snic": "400 Gbps"},
            "count": 2,
        },
        "decode": {"node": {"base": "paper-hopper", "snics": 1, "snic": "400 Gbps"}, "count": 3},
    }
    moments = found.scenario["workload"]["moments"]
    assert moments == {"prompt_tokens": 20_000, "hit_tokens": 19_000, "output_tokens": 250}
    said = " ".join(found.found)
    assert "p99 of the rate reached 168 Gbps in, 8 Gbps out; link speed 400 Gbps" in said
    assert "reached 176 Gbps in" in said
    assert any("efficiencies.snic: 0.420 of the prefill" in line for line in found.missing)
    path = tmp_path / "scenario.yaml"
    path.write_text(found.to_yaml())
    scenario = load_scenario(path)
    assert len(scenario.cluster.prefill) == 2
    assert len(scenario.cluster.decode) == 3
    assert scenario.cluster.prefill[0].snic_bytes_per_s == 50e9
    assert scenario.means.prompt_tokens == pytest.approx(20_000)


def test_without_link_speed_the_rate_reached_stands_in(tmp_path: Path) -> None:
    found = read(tmp_path, cluster_answer(speed=False))
    assert found.scenario["cluster"]["decode"]["node"]["snic"] == "176 Gbps"
    assert any("no node_network_speed_bytes" in line for line in found.missing)


def test_nodes_that_differ_are_kinds(tmp_path: Path) -> None:
    nics = [
        counter(RECEIVED, 1e9, pool="prefill", node="p0", device="a"),
        counter(RECEIVED, 1e9, pool="prefill", node="p1", device="a"),
        counter(RECEIVED, 2e9, pool="prefill", node="p1", device="b"),
        counter(RECEIVED, 2e9, pool="decode", node="d0", device="a"),
    ]
    found = read(tmp_path, answer(*nics)).scenario["cluster"]["prefill"]
    assert [group["count"] for group in found] == [1, 1]
    assert [group["node"]["snics"] for group in found] == [2, 1]


def test_rates_and_counters_give_the_same(tmp_path: Path) -> None:
    """A query of rate() has no name; the query's text beside the answer brings it back."""
    rates = [1e9 * (1 + n % 7) for n in range(STEPS)]
    grown = [sum(rates[:n]) * 15 for n in range(STEPS + 1)]
    at = {"pool": "prefill", "node": "p0", "device": "eth0"}
    by_counter = read(tmp_path, answer(result(RECEIVED, grown, **at)))
    query = f"rate({RECEIVED}[1m])"
    by_rate = read(tmp_path, answer(result(None, rates, **at), query=query))
    assert by_counter.scenario == by_rate.scenario
    assert by_rate.scenario["cluster"]["prefill"]["node"]["snic"] == "56 Gbps"
    unnamed = read(tmp_path, answer(result(None, rates, **at)))
    assert unnamed.scenario == by_rate.scenario
    assert any("series without a name" in line for line in unnamed.missing)


def test_a_restart_and_lost_samples_do_not_count(tmp_path: Path) -> None:
    values: list[Any] = [15e9 * n for n in range(10)] + [15e9 * n for n in range(10)]
    values[3], values[5] = "NaN", "+Inf"
    at = {"pool": "decode", "node": "d0", "device": "eth0"}
    found = read(tmp_path, answer(result(RECEIVED, values, **at)))
    assert found.scenario["cluster"]["decode"]["node"]["snic"] == "8 Gbps"
    assert any("2 samples were no finite number" in line for line in found.found)


@pytest.mark.parametrize(
    "counters",
    [
        {
            "vllm:request_prompt_tokens_sum": 5000.0,
            "vllm:request_prompt_tokens_count": 5.0,
            "vllm:request_generation_tokens_sum": 200.0,
            "vllm:request_generation_tokens_count": 5.0,
            "vllm:prefix_cache_hits_total": 500.0,
            "vllm:external_prefix_cache_hits_total": 3500.0,
            "vllm:prefix_cache_queries_total": 5000.0,
        },
        {
            "sglang:prompt_tokens_total": 5000.0,
            "sglang:cached_tokens_total": 4000.0,
            "sglang:generation_tokens_total": 200.0,
            "sglang:num_requests_total": 5.0,
        },
    ],
)
def test_moments_from_either_engine(tmp_path: Path, counters: dict[str, float]) -> None:
    series = [counter(name, rate, instance="x:8000") for name, rate in counters.items()]
    found = read(tmp_path, answer(*series))
    moments = found.scenario["workload"]["moments"]
    assert moments == {"prompt_tokens": 1000, "hit_tokens": 800, "output_tokens": 40}
    assert any("no series of an engine says its pool" in line for line in found.missing)


def test_what_is_not_measured_is_said(tmp_path: Path) -> None:
    found = read(tmp_path, answer(counter("vllm:prompt_tokens_total", 100, pool="prefill")))
    said = " ".join(found.missing)
    for words in (
        "mean prompt",
        "mean output",
        "mean hit share",
        "no series is of a decode",
        "llm:",
    ):
        assert words in said
    assert found.scenario["workload"] == {"synthetic": {"row": "64K"}}
    (tmp_path / "s.yaml").write_text(found.to_yaml())
    load_scenario(tmp_path / "s.yaml")


def test_nodes_without_a_role_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, answer(counter(RECEIVED, 1e9, instance="box7:9100", device="eth0")))
    assert any("1 nodes have no role and were left out (box7)" in line for line in found.missing)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "is not JSON"),
        (json.dumps(answer(counter(RECEIVED, 1e9, device="a")))[:200], "was it cut off"),
        ("[" * 100_000, "is not JSON"),
        ("3", "no 'status'"),
        ({}, "no 'status'"),
        (
            {"status": "error", "errorType": "bad_data", "error": "parse\nerror"},
            r"answered with an error \(bad_data: parse\\nerror\)",
        ),
        (
            {"status": "success", "data": {"resultType": "vector", "result": []}},
            "'vector', not 'matrix'",
        ),
        ({"status": "success"}, "not 'matrix'"),
        ({"status": "success", "data": {"resultType": "matrix", "result": 3}}, "must be a list"),
        (answer(), "has no samples"),
        ([], "has no samples"),
        (answer({"metric": {"a": 3}, "values": []}), "must be an object of labels"),
        (answer({"metric": {}, "values": 3}), "values must be a list"),
        (answer({"metric": {}, "values": [[1]]}), r"values\[0\] is \[1\]"),
        (answer({"metric": {}, "values": [[1, "x"]]}), r"values\[0\] is \[1, 'x'\]"),
        (answer({"metric": {}, "values": [[10**400, "1"]]}), r"values\[0\]"),
        (answer(result(RECEIVED, ["NaN"] * 5, instance="a", device="b")), "has no samples"),
        (answer(counter("up", 0, instance="a")), "has neither bytes of network devices"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path, data)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        prometheus.read(tmp_path / "no.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        prometheus.read(tmp_path / "binary.json")


_TEXT = st.text(max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    labels=st.dictionaries(
        st.sampled_from(["__name__", "pool", "instance", "device", "node", "model_name"]),
        st.sampled_from(
            [RECEIVED, "node_network_speed_bytes", "vllm:prompt_tokens_total", "prefill"]
        )
        | _TEXT,
    ),
    values=st.lists(
        st.tuples(st.floats() | st.integers(), st.floats().map(str)) | _JSON, max_size=4
    ),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_is_read_or_refused(
    tmp_path: Path, labels: dict[str, str], values: list[Any]
) -> None:
    data = answer(
        {"metric": labels, "values": [list(v) if isinstance(v, tuple) else v for v in values]}
    )
    try:
        found = read(tmp_path, data)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert yaml.safe_load(found.to_yaml()) == found.scenario


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
def test_percentiles_are_of_the_nearest_rank(share: float) -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, share) == math.ceil(share * 100)
    assert percentile([7.0], share) == 7.0
