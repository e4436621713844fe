"""Scenario files: what they resolve to, and the sentence for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from dualpath_model import yaml_lines
from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.llm import KvDtype
from dualpath_model.paths import Direction, Key, Pool, Resource
from dualpath_model.scenario import (
    MOST_SEED,
    ScenarioSpec,
    WorkloadSpec,
    load_scenario,
    parse_spec,
)
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
BASE = """\
name: test
llm: deepseek-v3.2
cluster:
  prefill: {node: paper-hopper, count: 2}
  decode: {node: paper-hopper, count: 4}
workload:
  moments: {hit_tokens: 30000, miss_tokens: 400, output_tokens: 176}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_resolves_and_fits_the_schema(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.loads().prefill
    jsonschema.validate(yaml.safe_load(path.read_text()), ScenarioSpec.model_json_schema())


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, BASE))
    assert scenario.slo.ttft_s == 4.0
    assert scenario.slo.tpot_s == 0.05
    assert scenario.serving.kv_dtype is KvDtype.FP8
    assert scenario.rules.quota_s == 0.3
    assert scenario.workload.mean_prompt_tokens == 30_400
    assert len(scenario.cluster.decode) == 4


def test_moments_may_be_given_by_any_two(tmp_path: Path) -> None:
    for pair in ("hit_tokens: 30000, miss_tokens: 400", "prompt_tokens: 30400, miss_tokens: 400"):
        text = BASE.replace("hit_tokens: 30000, miss_tokens: 400", pair)
        workload = load_scenario(written(tmp_path, text)).workload
        assert (workload.hit_tokens[0], workload.miss_tokens[0]) == (30_000, 400)


def test_a_source_of_sessions_can_be_scaled(tmp_path: Path) -> None:
    text = BASE.replace(
        "workload:\n", "workload:\n  scale: {context: 0.5, append: 2, generate: 3, hit_rate: 0.9}\n"
    )
    workload = load_scenario(written(tmp_path, text)).workload
    assert workload.mean_prompt_tokens == 15_800
    assert workload.hit_rate == pytest.approx(0.9)
    assert workload.mean_output_tokens == 528
    wrong = text.replace("hit_rate: 0.9", "hit_rate: 1.5")
    with pytest.raises(InputError, match=r"yaml:\d+: workload.scale.hit_rate: 1.5 is not allowed"):
        load_scenario(written(tmp_path, wrong))


def test_groups_overrides_and_shared_limits(tmp_path: Path) -> None:
    text = BASE.replace(
        "  prefill: {node: paper-hopper, count: 2}",
        "  prefill:\n"
        "    - {node: paper-hopper, count: 1}\n"
        "    - {node: {base: paper-hopper, snic: 200 Gbps}, count: 1}\n"
        "  storage: {read: 100 GB/s}\n"
        "  fabric: 1.6 Tbps",
    )
    cluster = load_scenario(written(tmp_path, text)).cluster
    assert [node.storage_bytes_per_s for node in cluster.prefill] == [50e9, 25e9]
    assert not cluster.homogeneous
    assert cluster.capacity() == {
        Key(Pool.CLUSTER, Resource.STORAGE, Direction.READ): 100e9,
        Key(Pool.CLUSTER, Resource.FABRIC, Direction.TO_DECODE): 200e9,
        Key(Pool.CLUSTER, Resource.FABRIC, Direction.TO_PREFILL): 200e9,
    }


def test_a_cluster_or_a_node_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(
        "base: paper-hopper\ndram_bandwidth: 400 GB/s\n", encoding="utf-8"
    )
    (tmp_path / "cluster.yaml").write_text(
        "prefill: {node: node.yaml, count: 3}\ndecode: {node: paper-hopper, count: 3}\n"
    )
    lines = BASE.splitlines()
    text = "\n".join([*lines[:2], "cluster: cluster.yaml", *lines[5:]])
    cluster = load_scenario(written(tmp_path, text)).cluster
    assert len(cluster.prefill) == 3
    assert cluster.prefill[0].dram_bytes_per_s == 400e9
    (tmp_path / "cluster.yaml").write_text("prefill: {node: nope}\ndecode: {node: paper-hopper}\n")
    with pytest.raises(InputError, match=r"cluster.yaml:1: .*node 'nope' is unknown"):
        load_scenario(tmp_path / "scenario.yaml")


def test_a_cluster_may_come_from_the_catalog(tmp_path: Path) -> None:
    lines = BASE.splitlines()
    text = "\n".join([*lines[:2], "cluster: paper-2p4d", *lines[5:]])
    cluster = load_scenario(written(tmp_path, text)).cluster
    assert (len(cluster.prefill), len(cluster.decode)) == (2, 4)
    with pytest.raises(
        InputError, match=r":3: cluster: cluster 'paper-2p5d' is unknown.*paper-2p4d"
    ):
        load_scenario(written(tmp_path, text.replace("2p4d", "2p5d")))


def test_traffic_switches_reduce_to_the_papers_analysis(tmp_path: Path) -> None:
    full = load_scenario(written(tmp_path, BASE)).loads()
    hits = load_scenario(
        written(tmp_path, BASE + "traffic: {miss: false, write_back: false}\n")
    ).loads()
    out = Key(Pool.DECODE, Resource.SNIC, Direction.OUT)
    read = Key(Pool.PREFILL, Resource.CNIC, Direction.READ)
    assert full.decode[0].demand.at(0.5)[out] > 0
    assert out not in hits.decode[0].demand.base
    assert full.prefill[0].demand.at(1.0)[read] > 0
    assert hits.prefill[0].demand.at(1.0)[read] == 0
    for switch in ("hand_off", "decode_start"):
        off = load_scenario(written(tmp_path, BASE + f"traffic: {{{switch}: false}}\n")).loads()
        key = Key(Pool.DECODE, Resource.CNIC, Direction.WRITE)
        assert off.decode[0].demand.at(0.0)[key] < full.decode[0].demand.at(0.0)[key]


def test_limits_name_what_can_run_out(tmp_path: Path) -> None:
    loads = load_scenario(written(tmp_path, BASE + "limits: [snic]\n")).loads()
    assert {key.resource for _, group in loads.all_groups() for key in group.capacity} == {
        Resource.SNIC
    }


def test_resizing_changes_the_commonest_kind(tmp_path: Path) -> None:
    text = BASE.replace(
        "{node: paper-hopper, count: 4}",
        "[{node: {base: paper-hopper, snic: 200 Gbps}}, {node: paper-hopper, count: 3}]",
    )
    scenario = load_scenario(written(tmp_path, text))
    rates = [n.storage_bytes_per_s for n in scenario.with_nodes(1, 6).cluster.decode]
    assert rates == [25e9, 50e9, 50e9, 50e9, 50e9, 50e9]
    rates = [n.storage_bytes_per_s for n in scenario.with_nodes(1, 2).cluster.decode]
    assert rates == [25e9, 50e9]
    with pytest.raises(InputError, match="prefill nodes: 0 is not allowed"):
        scenario.with_nodes(0, 2)


MISTAKES = [
    ("foo: 1\n", r"scenario.yaml:8: foo: unknown field; "),
    ("name: again\n", r"scenario.yaml:8: 'name' is given twice \(first on line 1\)"),
    ("slo: {tpot: 50}\n", r":8: slo.tpot: 50 has no unit; .* 300 ms"),
    ("slo: {tpto: 50 ms}\n", r":8: slo.tpto: unknown field; did you mean 'tpot'\?"),
    ("efficiencies: {snic: 1.5}\n", r":8: efficiencies.snic: 1.5 is not allowed; .* equal to 1"),
    ("kv_dtype: fp4\n", r":8: kv_dtype: 'fp4' is not allowed"),
    (
        "parallelism: {prefill: {tensor: 16}}\n",
        r":8: parallelism.prefill.tensor: 16 does not divide the 8 GPUs",
    ),
    ("scheduler: {alpha: 3}\n", r":8: scheduler.alpha: 3 has no unit"),
    ("dram_cache: {hit_share: 2}\n", r":8: dram_cache.hit_share: 2 is not allowed"),
    (
        "parallelism: {decode: {expert: 64}}\n",
        r":8: parallelism.decode.expert: 64 is more than the 32",
    ),
    ("limits: []\n", r":8: limits: \[\] is not allowed"),
    ("limits: [nic]\n", r":8: limits.0: 'nic' is not allowed"),
    ("traffic: off\n", r":8: traffic: False is not allowed; a mapping of its fields"),
]


@pytest.mark.parametrize(("extra", "message"), MISTAKES, ids=lambda value: value[:24])
def test_mistakes_in_an_extra_line(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_scenario(written(tmp_path, BASE + extra))
    assert "\n" not in str(caught.value)


REPLACEMENTS = [
    ("llm: deepseek-v3.2", "llm: deepseek-v3.1", r":2: llm: .*'deepseek-v3.1' is unknown; .*v3.2"),
    ("count: 2", "count: 0", r":4: cluster.prefill.count: 0 is not allowed; .* equal to 1"),
    ("count: 2", "count: true", r":4: cluster.prefill.count: True is not allowed"),
    ("count: 2", "cuont: 2", r":4: cluster.prefill.cuont: unknown field; did you mean 'count'"),
    (
        "paper-hopper, count: 2",
        "hopper, count: 2",
        r":4: .*node 'hopper' is unknown; .*paper-hopper",
    ),
    ("node: paper-hopper, count: 2", "count: 2", r":4: cluster.prefill.node: is required"),
    ("30000", ".nan", r":7: workload.moments.hit_tokens: nan is not allowed"),
    ("miss_tokens: 400", "miss_tokens: 0", r":6: workload: .*nothing to prefill"),
    ("30000", "-1", r":7: workload.moments.hit_tokens: -1 is not allowed"),
    (
        "miss_tokens: 400",
        "prompt_tokens: 400",
        r":7: .*hit_tokens 30000 is more than prompt_tokens 400",
    ),
    ("  moments", "  momens", r":7: workload.momens: unknown field; did you mean 'moments'"),
    ("  moments: {hit", "  trace: x\n  moments: {hit", r":6: workload: give exactly one of"),
    (
        "  moments: {hit_tokens: 30000, miss_tokens: 400, output_tokens: 176}",
        "  trace: nowhere",
        r":6: workload: .*nowhere: there is no such file or folder",
    ),
    ("name: test", "name: ''", r":1: name: '' must be one line"),
    ("name: test", "name: [x", r"not valid YAML"),
    (
        "node: paper-hopper, count: 2",
        "node: {base: paper-hopper, snic: -400 Gbps}, count: 2",
        r":4: cluster.prefill.node.snic: '-400 Gbps' is out of range",
    ),
    (
        "node: paper-hopper, count: 2",
        "node: {base: paper-hopper, snic: 400}, count: 2",
        r":4: cluster.prefill.node.snic: 400 has no unit",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), REPLACEMENTS, ids=lambda value: value[:24])
def test_mistakes_in_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BASE
    with pytest.raises(InputError, match=message) as caught:
        load_scenario(written(tmp_path, BASE.replace(old, new, 1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping of fields, but it is empty"),
        ("- a\n", "must be a mapping of fields, but it is a list"),
        ("a: &a\n  b: *a\n", "contains itself"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("a: \x00\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_scenario(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_scenario(written(tmp_path, text))


def test_an_alias_bomb_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 2]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(InputError, match="more than 100,000 entries"):
        load_scenario(written(tmp_path, "\n".join(lines)))


MOMENTS = "  moments: {hit_tokens: 30000, miss_tokens: 400, output_tokens: 176}"


def test_a_seed_is_one_that_json_can_carry(tmp_path: Path) -> None:
    def spec(seed: int) -> WorkloadSpec:
        text = BASE.replace(MOMENTS, f"  synthetic: {{row: 64K, seed: {seed:#x}}}")
        workload = parse_spec(yaml_lines.read(written(tmp_path, text))).workload
        assert workload is not None
        return workload

    largest = spec(MOST_SEED)
    assert WorkloadSpec.model_validate_json(largest.model_dump_json()) == largest
    message = f"workload.synthetic.seed: {MOST_SEED + 1} is not allowed; .* equal to {MOST_SEED}$"
    with pytest.raises(InputError, match=message):
        spec(MOST_SEED + 1)


@pytest.mark.parametrize("field", ["row: 64K, seed", "row: 64K, sessions", "row: 64K, turns"])
def test_numbers_of_thousands_of_digits_are_refused(tmp_path: Path, field: str) -> None:
    text = BASE.replace(MOMENTS, f"  synthetic: {{{field}: 0x{'f' * 6000}}}")
    with pytest.raises(InputError, match=r"yaml:7: workload.synthetic.* of 6,002 characters; give"):
        load_scenario(written(tmp_path, text))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            60 * ["{node: paper-hopper, count: 100000}"],
            "have 6,000,000 nodes together; at most 100,",
        ),
        (["{node: x, count: 100000}", "{node: x}"], "the groups have 100,001 nodes together"),
        (2000 * ["{node: x}"], "has 2,000 entries; at most 300 are allowed, so join those"),
    ],
    ids=["many nodes", "one too many", "many groups"],
)
def test_a_pool_is_bounded_before_a_node_is_built(
    tmp_path: Path, groups: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a node was built")

    monkeypatch.setattr("dualpath_model.scenario.load_node", built)
    text = BASE.replace("{node: paper-hopper, count: 2}", f"[{', '.join(groups)}]")
    with pytest.raises(InputError, match=f"yaml:4: cluster.prefill: .*{message}"):
        load_scenario(written(tmp_path, text))


def with_classes(names: list[str]) -> str:
    parts = [f"  - {{name: {name}, requests_per_s: 1, workload: {{{MOMENTS}}}}}" for name in names]
    return "\n".join([*BASE.splitlines()[:5], "classes:", *parts])


def test_classes_are_bounded_and_differ(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(101)]
    assert len(load_scenario(written(tmp_path, with_classes(names[:100]))).classes) == 100
    with pytest.raises(InputError, match=r"yaml:6: classes: has 101 entries; at most 100 are"):
        load_scenario(written(tmp_path, with_classes(names)))
    with pytest.raises(InputError, match="class 'c7' is given twice; give each class a name"):
        load_scenario(written(tmp_path, with_classes([*names[:98], "c7"])))


def test_a_long_or_broken_value_is_shown_in_short(tmp_path: Path) -> None:
    text = BASE + f'slo: {{tpot: "{"5" * 5000}\\n ms"}}\n'
    with pytest.raises(
        InputError, match=r":8: slo.tpot: '5{57}\.\.\.' is out of range; "
    ) as caught:
        load_scenario(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r":1: name: ' ' must be one line"):
        load_scenario(written(tmp_path, BASE.replace("name: test", "name: ' '")))


def test_no_file_a_folder_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_scenario(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_scenario(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        load_scenario(tmp_path / "binary.yaml")


def test_an_llm_that_does_not_fit_has_no_answer(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, BASE.replace("count: 2", "count: 1")))
    with pytest.raises(InfeasibleError, match="does not fit"):
        scenario.loads()


def test_schema_is_a_schema() -> None:
    schema = ScenarioSpec.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.dumps(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**yaml.safe_load(BASE), "foo": 1}, schema)
