"""Measured figures in the models: they stand where a catalog number stood, and nothing else changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualpath_model import Scenario, load_scenario
from dualpath_model.catalog.measured import OVERRIDES, TAKEN, with_figures
from dualpath_model.catalog.nodes import load_node
from dualpath_model.cluster import Node
from dualpath_model.errors import InputError
from dualpath_model.loads import compute_throughput
from dualpath_model.paths import Resource
from dualpath_model.profile import COEFFICIENTS
from dualpath_model.scheduler.attention import AttentionTime, attention_time
from dualpath_model.scheduler.setup import quota_model, scheduler_nodes, scheduler_settings
from solvers import plan, planner
from solvers.simulator.constants import fitted, of_scenario
from solvers.simulator.experiments import execute
from tests.profiles import FIGURE_VALUES, profile_data, write_profile

PAPER = {"profile": "p.json", "base": "paper-hopper"}
GPU_FIGURES = ("gemm_bf16_flop_per_s", "prefill_flop_per_s", "decode_flop_per_s")
STORAGE = ("storage_read_bytes_per_s", "storage_write_bytes_per_s")
EFFICIENCIES = ("snic", "cnic", "dram", "hbm", "prefill_mfu", "decode_mfu")
FEW_TURNS = {
    "sessions": 5,
    "turns": 8,
    "append_tokens": 200,
    "generate_tokens": 50,
    "total_tokens": 4000,
    "context_tokens": 3200,
}

NodeRef = str | Mapping[str, Any]


def scenario_at(
    folder: Path, prefill: NodeRef = "p.json", decode: NodeRef | None = None, **fields: Any
) -> Scenario:
    """Return a scenario of two nodes a pool, read from a file in ``folder``."""
    data = {
        "name": "measured",
        "llm": "ds-27b",
        "kv_dtype": "fp8",
        "cluster": {
            "prefill": {"node": prefill, "count": 2},
            "decode": {"node": prefill if decode is None else decode, "count": 2},
        },
        "workload": {"synthetic": FEW_TURNS},
        **fields,
    }
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(data))
    return load_scenario(path)


def exact(folder: Path, name: str = "p.json", **options: Any) -> Path:
    """Write a profile without intervals: planning it draws nothing, which makes it quick."""
    return write_profile(folder / name, spread=0.0, **options)


def without(*names: str) -> dict[str, float]:
    return {name: value for name, value in FIGURE_VALUES.items() if name not in names}


def capacities(found: planner.Plan) -> dict[tuple[str, str, str], float]:
    return {(row.pool, row.resource, row.direction): row.capacity for row in found.utilisation}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one exact profile, ``p.json``."""
    made = tmp_path_factory.mktemp("measured")
    exact(made)
    return made


# ---- wherever a node stands ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        "p.json",
        "./p.json",
        {"profile": "p.json"},
        {"profile": "p.json", "base": "paper-hopper", "cnics": 8},
        "nodes/of_its_own.yaml",
    ],
)
def test_a_profile_stands_wherever_a_node_stands(
    folder: Path, node: NodeRef, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (folder / "nodes").mkdir(exist_ok=True)
    # a path in a node's file starts at that file's folder, a scenario's at the scenario's
    (folder / "nodes" / "of_its_own.yaml").write_text("{profile: ../p.json}")
    monkeypatch.chdir(tmp_path)
    scenario = scenario_at(folder, node, {"profile": "p.json"})
    for nodes in (scenario.cluster.prefill, scenario.cluster.decode):
        assert len(nodes) == 2
        for found in nodes:
            assert found.measured is not None
            assert found.measured.profile == "made"
    assert plan(scenario).throughput_requests_per_s > 0


def test_a_path_in_a_cluster_file_starts_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "clusters").mkdir()
    exact(tmp_path / "clusters")
    group = "{node: p.json, count: 2}"
    (tmp_path / "clusters" / "c.yaml").write_text(f"prefill: {group}\ndecode: {group}\n")
    scenario = scenario_at(tmp_path, cluster="clusters/c.yaml")
    assert scenario.cluster == scenario_at(tmp_path / "clusters").cluster


def test_groups_of_a_pool_may_differ(folder: Path) -> None:
    groups = [{"node": "p.json", "count": 1}, {"node": "paper-hopper", "count": 3}]
    scenario = scenario_at(folder, cluster={"prefill": groups, "decode": groups})
    kinds = [node.measured is not None for node in scenario.cluster.prefill]
    assert kinds == [True, False, False, False]
    assert plan(scenario).throughput_requests_per_s > 0


def test_a_profile_alone_is_a_whole_node(folder: Path) -> None:
    node = load_node("p.json", folder)
    assert (node.gpus, node.cnics, node.snics) == (8, 1, 1)
    assert (node.gpu.hbm_bytes, node.dram_bytes) == (80e9, 2e12)
    assert node.gpu.bf16_flop_per_s == FIGURE_VALUES["gemm_bf16_flop_per_s"]
    assert node.gpu.fp8_flop_per_s is None
    assert node.gpu.hbm_bytes_per_s == FIGURE_VALUES["decode_bytes_per_s"]
    assert node.cnic_bytes_per_s == FIGURE_VALUES["network_both_ways_bytes_per_s"]
    assert node.snic_bytes_per_s == FIGURE_VALUES["storage_read_bytes_per_s"]
    assert node.snic_write_bytes_per_s == FIGURE_VALUES["storage_write_bytes_per_s"]


def test_a_cpu_stands_for_one_gpu(tmp_path: Path) -> None:
    data = copy.deepcopy(profile_data())
    for part in data["parts"].values():
        part["machine"] = {"host": "here", "memory_bytes": 64e9, "cores": 2}
    (tmp_path / "p.json").write_text(json.dumps(data))
    node = load_node("p.json", tmp_path)
    assert (node.gpus, node.gpu.hbm_bytes, node.dram_bytes) == (1, 64e9, 64e9)


# ---- what wins -----------------------------------------------------------------------------------


def test_the_profile_stands_instead_of_the_base(folder: Path) -> None:
    node, base = load_node(PAPER, folder), load_node("paper-hopper")
    alone = load_node("p.json", folder)
    assert node.gpu.bf16_flop_per_s == alone.gpu.bf16_flop_per_s
    assert node.gpu.hbm_bytes_per_s == alone.gpu.hbm_bytes_per_s
    assert node.cnic_bytes_per_s == alone.cnic_bytes_per_s
    assert node.storage_bytes_per_s == alone.storage_bytes_per_s
    assert node.storage_write_bytes_per_s == alone.storage_write_bytes_per_s
    assert node.dram_bytes_per_s == alone.dram_bytes_per_s
    # what is not measured stays the base's
    assert (node.cnics, node.gpus, node.snics) == (base.cnics, base.gpus, base.snics)
    assert (node.gpu.hbm_bytes, node.buffer_bytes) == (base.gpu.hbm_bytes, base.buffer_bytes)
    other = {"profile": "p.json", "base": "dgx-h200"}
    assert load_node(other, folder).dram_bytes == load_node("dgx-h200").dram_bytes is not None


@pytest.mark.parametrize("base", [{}, {"base": "paper-hopper"}])
@pytest.mark.parametrize(
    ("field", "given", "read", "shares"),
    [
        ("dram_bandwidth", "100 GB/s", lambda n: n.dram_bytes_per_s == 100e9, {"dram"}),
        ("cnic", "10 GB/s", lambda n: n.cnic_bytes_per_s == 10e9, {"cnic"}),
        ("gpu", "h20-sxm", lambda n: n.gpu.name == "h20-sxm", {"hbm", "prefill_mfu", "decode_mfu"}),
        ("snic_write", "1 GB/s", lambda n: n.storage_write_bytes_per_s == 1e9, set()),
    ],
)
def test_a_field_stands_instead_of_the_profile(
    folder: Path, base: dict[str, str], field: str, given: str, read: Any, shares: set[str]
) -> None:
    node = load_node({"profile": "p.json", **base, field: given}, folder)
    assert read(node)
    assert node.measured is not None
    taken = {figure.name for figure in node.measured.figures}
    assert not taken & set(OVERRIDES[field])
    # the scenario's efficiencies hold for what is not measured, and for nothing else
    assert set(dict(node.shares)) == set(EFFICIENCIES) - shares


def test_a_given_storage_nic_stands_instead_of_the_profile(folder: Path) -> None:
    node = load_node({**PAPER, "snic": "5 GB/s"}, folder)
    assert (node.storage_bytes_per_s, node.storage_write_bytes_per_s) == (5e9, 5e9)
    assert "snic" not in dict(node.shares)


@pytest.mark.parametrize("snics", [1, 2, 5])
def test_storage_figures_are_those_of_all_nics(folder: Path, snics: int) -> None:
    node = load_node({**PAPER, "snics": snics}, folder)
    assert node.snics == snics
    assert node.storage_bytes_per_s == pytest.approx(FIGURE_VALUES[STORAGE[0]], rel=1e-15)
    assert node.storage_write_bytes_per_s == pytest.approx(FIGURE_VALUES[STORAGE[1]], rel=1e-15)


def test_null_takes_a_limit_away(folder: Path) -> None:
    node = load_node({"profile": "p.json", "dram_bandwidth": None, "dram": None}, folder)
    assert (node.dram_bytes_per_s, node.dram_bytes) == (None, None)


def test_decoding_and_both_ways_are_the_better_figures(tmp_path: Path) -> None:
    figures = without("decode_bytes_per_s", "network_both_ways_bytes_per_s")
    exact(tmp_path, figures=figures)
    node = load_node("p.json", tmp_path)
    assert node.gpu.hbm_bytes_per_s == FIGURE_VALUES["hbm_copy_bytes_per_s"]
    assert node.cnic_bytes_per_s == FIGURE_VALUES["network_bytes_per_s"]
    assert {"hbm", "cnic"} <= set(dict(node.shares))


def test_an_fp8_figure_is_used_where_there_is_one(tmp_path: Path) -> None:
    """A data-sheet rate of the base does not stand beside measured rates."""
    exact(tmp_path)
    bf16_only = load_node(PAPER, tmp_path)
    assert bf16_only.gpu.flop_per_s("fp8") == FIGURE_VALUES["gemm_bf16_flop_per_s"]
    exact(tmp_path, figures={**FIGURE_VALUES, "gemm_fp8_flop_per_s": 1300e12})
    assert load_node(PAPER, tmp_path).gpu.flop_per_s("fp8") == 1300e12


def test_a_write_rate_alone_is_not_taken(tmp_path: Path) -> None:
    """Both directions of a NIC have one efficiency: it cannot hold for one of them."""
    exact(tmp_path, figures=without("storage_read_bytes_per_s"))
    node, base = load_node(PAPER, tmp_path), load_node("paper-hopper")
    assert node.storage_write_bytes_per_s == base.storage_write_bytes_per_s
    assert "snic" not in dict(node.shares)
    assert load_node("p.json", tmp_path).snics == 0


def test_reads_alone_count_for_writes(tmp_path: Path) -> None:
    exact(tmp_path, figures=without("storage_write_bytes_per_s"))
    node = load_node(PAPER, tmp_path)
    assert node.storage_write_bytes_per_s == FIGURE_VALUES["storage_read_bytes_per_s"]


figure_values = st.fixed_dictionaries({name: st.floats(1e-6, 1e18) for name in TAKEN})


@given(values=figure_values, twice=figure_values)
def test_the_last_figures_count(
    paper_node: Node, values: dict[str, float], twice: dict[str, float]
) -> None:
    """Uncertainty sets figures again on a node that has some: nothing of the first may be left."""
    once = with_figures(paper_node, twice)
    assert with_figures(with_figures(paper_node, values), twice) == once


# ---- no catalog number for what is measured ------------------------------------------------------

shares = st.fixed_dictionaries({name: st.floats(0.01, 1.0) for name in EFFICIENCIES})


@pytest.mark.parametrize("node", ["p.json", {**PAPER, "cnics": 8}])
@settings(max_examples=8)
@given(own=shares)
def test_efficiencies_do_not_touch_what_is_measured(
    folder: Path, node: NodeRef, own: dict[str, float]
) -> None:
    as_shipped = scenario_at(folder, node)
    changed = replace(as_shipped, efficiencies=replace(as_shipped.efficiencies, **own))
    assert planner.to_json(plan(changed)) == planner.to_json(plan(as_shipped))
    assert scheduler_settings(changed) == scheduler_settings(as_shipped)
    assert scheduler_nodes(changed) == scheduler_nodes(as_shipped)
    kind = changed.cluster.prefill[0]
    assert quota_model(changed, kind) == quota_model(as_shipped, kind)
    assert simulated(changed) == simulated(as_shipped)


def simulated(scenario: Scenario) -> dict[str, Any]:
    """Return all that a short run shows but the time that it took."""
    found = asdict(execute(scenario, agents=3, compiled=False).summary)
    del found["wall_s"], found["turns_per_s_simulated"]
    del found["working_set_bytes"]  # nan, which does not equal itself
    return found


@pytest.mark.parametrize("name", EFFICIENCIES)
def test_efficiencies_do_touch_what_is_not_measured(folder: Path, name: str) -> None:
    """The same comparison on catalog nodes sees each of them: it could have failed above."""
    as_shipped = scenario_at(folder, "paper-hopper")
    own = replace(as_shipped.efficiencies, **{name: 0.5 * getattr(as_shipped.efficiencies, name)})
    assert plan(replace(as_shipped, efficiencies=own)) != plan(as_shipped)


@pytest.mark.parametrize(
    ("missing", "efficiency"),
    [
        (STORAGE, "snic"),
        (("network_bytes_per_s", "network_both_ways_bytes_per_s"), "cnic"),
        (("dram_bytes_per_s",), "dram"),
        (("hbm_copy_bytes_per_s", "decode_bytes_per_s"), "hbm"),
        (("prefill_flop_per_s",), "prefill_mfu"),
        (("decode_flop_per_s",), "decode_mfu"),
    ],
)
def test_a_missing_figure_leaves_its_efficiency(
    tmp_path: Path, missing: tuple[str, ...], efficiency: str
) -> None:
    exact(tmp_path, figures=without(*missing))
    before = scenario_at(tmp_path, PAPER)
    own = replace(before.efficiencies, **{efficiency: 0.05})
    touched = plan(replace(before, efficiencies=own))
    changed = {
        resource
        for (key, new), (_, old) in zip(
            capacities(touched).items(), capacities(plan(before)).items(), strict=True
        )
        for resource in [key[1]]
        if new != old
    }
    expected = {"prefill_mfu": "gpu", "decode_mfu": "gpu"}.get(efficiency, efficiency)
    assert changed == {expected}


def test_usable_memory_is_still_the_scenarios(folder: Path) -> None:
    full = scenario_at(folder)
    less = replace(full, efficiencies=replace(full.efficiencies, hbm_usable=0.5))
    key = ("decode", "hbm_space", "occupied")
    assert capacities(plan(less))[key] < capacities(plan(full))[key]


rates = st.fixed_dictionaries(
    {name: st.floats(0.5, 2.0) for name in FIGURE_VALUES if not name.endswith("_layer_s")}
)


@pytest.mark.parametrize("llm", ["ds-27b", "qwen2.5-32b"])  # in fp8 and in bf16
@settings(max_examples=10)
@given(factors=rates)
def test_capacities_are_the_figures(
    tmp_path_factory: pytest.TempPathFactory, llm: str, factors: dict[str, float]
) -> None:
    """Storage of the node, network of a NIC, the GPU's of a GPU; arithmetic as the models count it."""
    folder = tmp_path_factory.getbasetemp()
    f = {name: value * factors.get(name, 1.0) for name, value in FIGURE_VALUES.items()}
    exact(folder, "drawn.json", figures=f)
    node = {"profile": "drawn.json", "base": "paper-hopper", "cnics": 4, "snics": 2}
    llm_fields = {"llm": llm, "kv_dtype": None if llm != "ds-27b" else "fp8"}
    scenario = scenario_at(folder, node, **llm_fields, slo={"tpot": "1 s"})
    network = 4 * f["network_both_ways_bytes_per_s"]
    expected = {
        ("prefill", "snic", "in"): f["storage_read_bytes_per_s"],
        ("decode", "snic", "in"): f["storage_read_bytes_per_s"],
        ("decode", "snic", "out"): f["storage_write_bytes_per_s"],
        ("prefill", "cnic", "read"): network,
        ("prefill", "cnic", "write"): network,
        ("decode", "cnic", "read"): network,
        ("decode", "cnic", "write"): network,
        ("prefill", "dram", "read+write"): f["dram_bytes_per_s"],
        ("decode", "dram", "read+write"): f["dram_bytes_per_s"],
        ("prefill", "hbm", "read+write"): 8 * f["decode_bytes_per_s"],
        ("decode", "hbm", "read+write"): 8 * f["decode_bytes_per_s"],
        ("prefill", "gpu", "compute"): 8 * f["prefill_flop_per_s"],
        ("decode", "gpu", "compute"): 8 * f["decode_flop_per_s"],
    }
    found = capacities(plan(scenario))
    assert set(found) - set(expected) <= {("decode", "hbm_space", "occupied")}
    assert {key: found[key] for key in expected if key in found} == pytest.approx(
        expected, rel=1e-12
    )


def test_a_plan_names_what_the_profile_left_to_the_catalog(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.json", figures=without("prefill_flop_per_s", "decode_flop_per_s"))
    (note,) = plan(scenario_at(tmp_path)).notes
    assert note.startswith("profile made has no figure for prefill_mfu, decode_mfu: the scenario's")
    only_storage = {name: FIGURE_VALUES[name] for name in STORAGE}
    write_profile(tmp_path / "p.json", figures=only_storage)
    assert plan(scenario_at(tmp_path, {**PAPER, "snics": 1})).notes == ()


def test_a_plan_says_what_is_odd_about_measured_figures(tmp_path: Path) -> None:
    data = profile_data(spreads={"dram_bytes_per_s": 0.0})
    data["parts"]["network"]["settings"]["peer"] = "loopback"
    data["parts"]["storage"]["settings"]["file_system"] = "tmpfs"
    (tmp_path / "p.json").write_text(json.dumps(data))
    exactly, loopback, memory = plan(scenario_at(tmp_path)).notes
    assert "does not know how sure dram_bytes_per_s are: they count as exact" in exactly
    assert "measured its network over loopback" in loopback
    assert "measured its storage in memory (tmpfs)" in memory
    # what a field given beside the profile stands for is no longer the profile's business
    rest = {"snic": "50 GB/s", "cnic": "50 GB/s", "dram_bandwidth": "500 GB/s"}
    assert plan(scenario_at(tmp_path, {**PAPER, **rest})).notes == ()


def test_a_base_keeps_its_own_dram(tmp_path: Path) -> None:
    """The profile may be of a small storage client; the base's buffer must still fit."""
    exact(tmp_path)
    data = json.loads((tmp_path / "p.json").read_text())
    for part in data["parts"].values():
        part["machine"]["memory_bytes"] = 16e9
    (tmp_path / "p.json").write_text(json.dumps(data))
    base = load_node("paper-hopper")
    assert load_node(PAPER, tmp_path).dram_bytes == base.dram_bytes
    assert load_node("./p.json", tmp_path).dram_bytes == 16e9


def test_attention_in_prefill_takes_its_own_time(tmp_path: Path) -> None:
    """The GPUs' throughput is one over the seconds of both kinds of FLOPs at their own rates."""
    exact(tmp_path)
    scenario = replace(scenario_at(tmp_path), limits=frozenset({Resource.GPU}))
    means, nodes = scenario.means, len(scenario.cluster.prefill)
    products = (means.prefill_flops - means.attention_flops) / FIGURE_VALUES["prefill_flop_per_s"]
    attention = means.attention_flops / FIGURE_VALUES["attention_flop_per_s"]
    (prefill,) = scenario.loads().prefill
    found = nodes * compute_throughput(prefill)
    assert found == pytest.approx(nodes * 8 / (products + attention), rel=1e-12)


def test_storage_that_shares_a_measured_nic_goes_at_its_rate(tmp_path: Path) -> None:
    exact(tmp_path, figures=without(*STORAGE))
    scenario = scenario_at(tmp_path)
    assert scenario.cluster.prefill[0].shares_nic
    alpha = plan(scenario).scheduler_parameters.alpha_tokens
    less = replace(scenario, efficiencies=replace(scenario.efficiencies, snic=0.1))
    assert plan(less).scheduler_parameters.alpha_tokens == alpha


def test_the_plan_says_whose_kernels_were_measured(tmp_path: Path) -> None:
    exact(tmp_path, llm="deepseek-v3.2")
    notes = plan(scenario_at(tmp_path)).notes
    assert any("GPU figures of deepseek-v3.2, not of ds-27b" in note for note in notes)
    exact(tmp_path, llm="ds-27b")
    assert not any("GPU figures" in note for note in plan(scenario_at(tmp_path)).notes)
    exact(tmp_path, llm="deepseek-v3.2")
    own_gpu = scenario_at(tmp_path, {**PAPER, "gpu": "h100-sxm"})
    assert not any("GPU figures" in note for note in plan(own_gpu).notes)


# ---- attention and constants ---------------------------------------------------------------------

COEFFICIENT_VALUES = dict(
    zip(COEFFICIENTS, (1e-4, 2e-6, 3e-8, 4e-9, 5e-11, 6e-11, 1024.0), strict=True)
)


def with_attention(folder: Path, *fits: tuple[str, int]) -> None:
    data = copy.deepcopy(profile_data(spread=0.0))
    data["parts"]["gpu"]["attention"] = [
        {
            "llm": llm,
            "tensor": tensor,
            "coefficients": COEFFICIENT_VALUES,
            "relative_error_p50": 0.01,
            "relative_error_max": 0.1,
        }
        for llm, tensor in fits
    ]
    (folder / "p.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("fits", "taken"),
    [
        ([("ds-27b", 1)], True),
        ([("ds-27b", 2), ("deepseek-v3.2", 1), ("ds-27b", 1)], True),
        ([("ds-27b", 2)], False),
        ([("deepseek-v3.2", 1)], False),
        ([], False),
    ],
)
def test_the_measured_attention_is_of_the_same_llm_and_tensor(
    tmp_path: Path, fits: list[tuple[str, int]], taken: bool
) -> None:
    with_attention(tmp_path, *fits)
    scenario = scenario_at(tmp_path)
    found = quota_model(scenario, scenario.cluster.prefill[0])
    from_rates = attention_time(
        scenario.llm,
        flop_per_s=FIGURE_VALUES["attention_flop_per_s"],
        hbm_bytes_per_s=FIGURE_VALUES["decode_bytes_per_s"],
        kv_dtype=scenario.serving.kv_dtype,
        tensor_parallel=1,
    )
    assert found == (AttentionTime(**COEFFICIENT_VALUES) if taken else from_rates)


def test_the_measured_attention_goes_with_its_tensor(tmp_path: Path) -> None:
    with_attention(tmp_path, ("ds-27b", 2))
    scenario = scenario_at(tmp_path, parallelism={"prefill": {"tensor": 2}})
    found = quota_model(scenario, scenario.cluster.prefill[0])
    assert found == AttentionTime(**COEFFICIENT_VALUES)


def test_another_gpu_has_another_attention(tmp_path: Path) -> None:
    with_attention(tmp_path, ("ds-27b", 1))
    scenario = scenario_at(tmp_path, {**PAPER, "gpu": "h20-sxm"})
    assert quota_model(scenario, scenario.cluster.prefill[0]) != AttentionTime(**COEFFICIENT_VALUES)


def test_measured_constants_stand_instead_of_the_fitted(folder: Path) -> None:
    found = of_scenario(scenario_at(folder))
    assert found.batch_layer_s == FIGURE_VALUES["prefill_layer_s"]
    assert found.step_layer_s == FIGURE_VALUES["decode_layer_s"]
    assert found.request_layer_s == 0.0, "a measured step has every request's part in it"


def test_each_pool_has_its_own_constants(folder: Path) -> None:
    prefill_only = of_scenario(scenario_at(folder, "p.json", "paper-hopper"))
    assert prefill_only == replace(fitted(), batch_layer_s=FIGURE_VALUES["prefill_layer_s"])
    decode_only = of_scenario(scenario_at(folder, "paper-hopper", "p.json"))
    step = FIGURE_VALUES["decode_layer_s"]
    assert decode_only == replace(fitted(), step_layer_s=step, request_layer_s=0.0)


def test_constants_are_taken_only_if_every_node_of_the_pool_has_them(folder: Path) -> None:
    some = [{"node": "p.json"}, {"node": "paper-hopper"}]
    assert of_scenario(scenario_at(folder, cluster={"prefill": some, "decode": some})) == fitted()
    write_profile(folder / "no_layers.json", figures=without("prefill_layer_s", "decode_layer_s"))
    some = [{"node": "p.json"}, {"node": "no_layers.json"}]
    assert of_scenario(scenario_at(folder, cluster={"prefill": some, "decode": some})) == fitted()


def test_of_several_profiles_the_slowest_layer_counts(folder: Path) -> None:
    slow = {**FIGURE_VALUES, "prefill_layer_s": 90e-6, "decode_layer_s": 10e-6}
    write_profile(folder / "slow.json", figures=slow)
    both = [{"node": "p.json"}, {"node": "slow.json"}]
    found = of_scenario(scenario_at(folder, cluster={"prefill": both, "decode": both}))
    assert (found.batch_layer_s, found.step_layer_s) == (90e-6, 20e-6)


def test_a_measured_layer_slows_the_simulation(folder: Path) -> None:
    slow = {**FIGURE_VALUES, "prefill_layer_s": 1e-2}
    exact(folder, "slow_layers.json", figures=slow)
    layers = scenario_at(folder).llm.layers
    fast, slowed = (
        simulated(scenario_at(folder, node))["prefill_s"]["mean"]
        for node in ("p.json", "slow_layers.json")
    )
    assert slowed - fast > 0.9 * (1e-2 - FIGURE_VALUES["prefill_layer_s"]) * layers


# ---- what cannot be used -------------------------------------------------------------------------


def refusal(folder: Path, node: NodeRef) -> str:
    """Return the one sentence with which a scenario with ``node`` is refused."""
    with pytest.raises(InputError) as caught:
        scenario_at(folder, node)
    text = str(caught.value)
    assert text.startswith(str(folder / "scenario.yaml"))
    assert "\n" not in text
    return text


def test_a_base_that_shares_its_nic_leaves_no_place_for_storage(folder: Path) -> None:
    node = {"profile": "p.json", "base": "aws-p5.48xlarge"}
    assert load_node("aws-p5.48xlarge").shares_nic
    found = refusal(folder, node)
    assert "p.json measures storage on its own" in found
    assert "give snics: 1 to use the figure, or snics: 0 not to" in found
    used = load_node({**node, "snics": 1}, folder)
    assert used.storage_bytes_per_s == FIGURE_VALUES["storage_read_bytes_per_s"]
    shared = load_node({**node, "snics": 0}, folder)
    assert shared.shares_nic
    assert shared.measured is not None
    assert shared.measured.value("storage_read_bytes_per_s") is None
    assert shared.storage_bytes_per_s == shared.compute_bytes_per_s


@pytest.mark.parametrize(
    ("missing", "field", "part"),
    [
        (GPU_FIGURES[:1], "gpu", "gpu"),
        (("decode_bytes_per_s", "hbm_copy_bytes_per_s"), "gpu", "gpu"),
        (("network_bytes_per_s", "network_both_ways_bytes_per_s"), "cnics", "network"),
    ],
)
def test_without_a_base_every_part_is_needed(
    tmp_path: Path, missing: tuple[str, ...], field: str, part: str
) -> None:
    exact(tmp_path, figures=without(*missing))
    found = refusal(tmp_path, "p.json")
    assert f"has no figure for {field} of a node" in found
    assert f"measure its {part} part" in found
    assert "base: NAME" in found
    assert plan(scenario_at(tmp_path, PAPER)).throughput_requests_per_s > 0


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("missing.json", ["node 'missing.json'", "there is no file"]),
        ({"profile": "missing.json"}, ["profile 'missing.json'", "there is no file"]),
        ({"profile": "p.json", "base": "paper-hoper"}, ["base", "paper-hopper"]),
        ({"profile": 3}, ["profile", "3 is not allowed", "a text is needed"]),
        ({"profile": "other.json"}, ["other.json: is not a profile"]),
        ({"profile": "p.json", "buffer": "3 TB"}, ["p.json", "buffer", "more than dram"]),
        ({**PAPER, "snics": 0, "snic": "5 GB/s"}, ["snics is missing or 0, but snic is given"]),
    ],
)
def test_a_profile_that_cannot_be_used_is_one_sentence(
    folder: Path, node: NodeRef, words: list[str]
) -> None:
    (folder / "other.json").write_text('{"gpu": "h100-sxm"}')
    found = refusal(folder, node)
    for word in words:
        assert word in found
