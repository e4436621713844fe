"""Study files: axes, points, metrics, digests, and one clear sentence for each mistake."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.quantities import Dimension
from dualpath_model.scenario import ScenarioSpec
from solvers.study import load_study
from solvers.study_axes import Axis, Space
from solvers.study_fields import Kind, kind_of, split_path, with_value
from solvers.study_methods import point_seeds
from solvers.study_spec import StudySpec
from tests.conftest import ROOT
from tests.solvers.studies import GRID, LP, SIMULATION, made, write


def test_points_are_numbered_with_the_last_axis_fastest(tmp_path: Path) -> None:
    space = made(tmp_path, GRID).work.space
    assert space.count == 3 * 4 * 2
    shown = [space.point(number).shown for number in range(space.count)]
    rates = [0.9, 0.9 + 0.09 / 3, 0.9 + 0.09 * 2 / 3, 0.99]
    expected = [(p, h, t) for p in (1, 2, 3) for h in rates for t in (0.03, 0.05)]
    for found, wanted in zip(shown, expected, strict=True):
        assert found == pytest.approx(wanted)
    assert space.point(0).written[2] == "30 ms"


def test_a_log_range_has_equal_ratios(tmp_path: Path) -> None:
    study = {
        **GRID,
        "axes": {"slo.tpot": {"from": "10 ms", "to": "80 ms", "steps": 4, "scale": "log"}},
    }
    space = made(tmp_path, study).work.space
    values = [space.point(i).shown[0] for i in range(4)]
    assert values == pytest.approx([0.01, 0.02, 0.04, 0.08])
    assert values[0] == 0.01 and values[-1] == 0.08  # the ends are exact


@given(samples=st.integers(1, 200), seed=st.integers(0, 2**63 - 1))
def test_a_latin_hypercube_has_one_point_in_each_stratum(samples: int, seed: int) -> None:
    number = Kind("float")
    axes = tuple(Axis(n, ((n,),), number, None, 0.0, 1.0) for n in ("a", "b"))
    space = Space(axes, samples, seed)
    points = np.array([space.point(i).shown for i in range(space.count)], float)
    for column in points.T:
        strata = np.floor(column * samples).astype(int)
        assert sorted(np.minimum(strata, samples - 1)) == list(range(samples))


def test_neither_other_axes_nor_their_order_move_an_axis_s_draws() -> None:
    number = Kind("float")
    a, b, c = (Axis(name, ((name,),), number, None, 0.0, 1.0) for name in "abc")
    grid = Axis("grid", (("grid",),), number, (1.0,))

    def draws(*axes: Axis) -> dict[str, list[object]]:
        space = Space(axes, 50, 5)
        columns = zip(*(space.point(i).shown for i in range(50)), strict=True)
        return {axis.name: list(column) for axis, column in zip(axes, columns, strict=True)}

    alone = draws(a)
    for axes in ((a, b), (b, a), (c, a, b), (grid, a), (grid, c, b, a)):
        assert draws(*axes)["a"] == alone["a"]
    both = draws(a, b)
    assert both["a"] != both["b"]
    assert abs(np.corrcoef(np.array([both["a"], both["b"]], float))[0, 1]) < 0.5


@pytest.mark.parametrize(("low", "high"), [(1, 4), (1, 2), (3, 30), (100, 101)])
def test_sampled_whole_numbers_on_a_log_scale_have_their_width(low: int, high: int) -> None:
    samples = 20_000
    axis = Axis("n", (("n",),), Kind("int"), None, float(low), float(high), log=True)
    space = Space((axis,), samples, 0)
    drawn = np.array([space.point(i).shown[0] for i in range(samples)], int)
    whole = math.log((high + 0.5) / (low - 0.5))
    for n in range(low, high + 1):
        share = math.log((n + 0.5) / (n - 0.5)) / whole
        # one sample in each stratum: the count is wrong by one at each border at most
        assert np.count_nonzero(drawn == n) == pytest.approx(samples * share, abs=2), n
    assert (drawn.min(), drawn.max()) == (low, high)


def test_every_cell_of_the_grid_gets_all_samples(tmp_path: Path) -> None:
    study = {
        **GRID,
        "axes": {
            "cluster.prefill.count": [2, 3],
            "workload.scale.hit_rate": {"from": 0.5, "to": 0.9},
            "cluster.decode.count": {"from": 1, "to": 4},
        },
        "sample": {"latin_hypercube": 40, "seed": 5},
    }
    space = made(tmp_path, study).work.space
    points = [space.point(i) for i in range(space.count)]
    assert space.count == 80
    assert [p.shown[1:] for p in points[:40]] == [p.shown[1:] for p in points[40:]]
    counts = [p.written[2] for p in points[:40]]
    assert sorted(set(counts)) == [1, 2, 3, 4]  # whole numbers, both ends among them
    assert all(counts.count(n) == 10 for n in (1, 2, 3, 4))  # each as often: 40 strata of 4 values


def test_seeds_differ_and_depend_on_study_and_number_alone() -> None:
    seeds = [point_seeds(1, number, 1)[0] for number in range(500)]
    assert len(set(seeds)) == 500
    assert seeds[7] == point_seeds(1, 7, 3)[0]
    assert seeds[7] != point_seeds(2, 7, 1)[0]
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("cluster.prefill.count", Kind("int")),
        ("slo.tpot", Kind("float", Dimension.SECONDS)),
        ("cluster.prefill.node.snic", Kind("float", Dimension.BYTES_PER_S)),
        ("workload.scale.hit_rate", Kind("float")),
        ("locality", Kind("bool")),
        ("llm", Kind("text")),
        ("cluster.prefill.node", Kind("text")),
        ("cluster.decode.0.count", Kind("int")),
    ],
)
def test_a_field_s_kind_comes_from_the_scenario_s_schema(path: str, kind: Kind) -> None:
    assert kind_of(split_path(path), ScenarioSpec, "here") == kind


def test_setting_a_field_opens_names_and_shares_the_rest() -> None:
    data = {"cluster": "paper-2p4d", "slo": {"ttft": "4 s"}}
    found = with_value(data, ("cluster", "decode", "node", "snics"), 2)
    assert found["cluster"]["decode"] == {"node": {"base": "paper-hopper", "snics": 2}, "count": 4}
    assert data["cluster"] == "paper-2p4d"
    assert found["slo"] is data["slo"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"axes": {}}, "axes is empty; give at least one field with its values"),
    ({"axes": {"slo.tpot": []}}, "axes.slo.tpot has no values; give at least one"),
    ({"axes": {"slo.tpt": ["1 s"]}}, "field 'slo.tpt' is unknown; the nearest are slo.tpot"),
    ({"axes": {"cluster.prefil.count": [1]}}, "the nearest are cluster.prefill"),
    ({"axes": {"cluster.prefill": [1]}}, "is a group of fields; vary one of them: count, node"),
    ({"axes": {"slo.tpot.x": [1]}}, "slo.tpot has no fields below it"),
    ({"axes": {"slo.tpot": [50]}}, "50 has no unit"),
    ({"axes": {"cluster.prefill.count": [0]}}, "'0' is not allowed"),
    ({"axes": {"cluster.prefill.count": [1, 2, 1]}}, "has a value twice; keep one"),
    ({"axes": {"cluster.prefill.count": {"from": 4, "to": 2, "steps": 2}}}, "swap them"),
    ({"axes": {"cluster.prefill.count": {"from": 1, "to": 9}}}, "is a range without steps"),
    (
        {"axes": {"cluster.prefill.count": {"from": 2, "to": 4, "steps": 9}}},
        "steps is 9, but only 3 whole numbers come of it from 2 to 4; give fewer steps",
    ),
    ({"axes": {"llm": {"from": 1, "to": 2, "steps": 2}}}, "holds no number; give a list"),
    ({"axes": {"simulation.agents": [1]}}, "set method: simulation to vary it"),
    (
        {"axes": {"cluster": ["paper-2p4d"], "cluster.prefill.count": [1]}},
        "change the same field; keep one",
    ),
    ({"sample": {"latin_hypercube": 5}}, "every axis has values or steps"),
    ({"metrics": []}, "metrics is empty"),
    ({"metrics": ["throughput"]}, "the nearest are throughput_requests_per_s"),
    ({"metrics": ["workload"]}, "is a group of figures; name one of them"),
    ({"metrics": ["split", "split"]}, "is in the table already; leave it out"),
    ({"best": {"splt": "highest"}}, "best names splt, which is none of the numbers in metrics"),
    ({"method": "guess"}, "'guess' is not allowed"),
    ({"metric": ["split"]}, "unknown field; did you mean 'metrics'?"),
    ({"base": "nothing.yaml"}, "there is no such file"),
    ({"simulation": {"agents": 3}}, "simulation is given, but the method is closed form"),
    (
        {
            "axes": {
                f"scheduler.{n}": {"from": "1 s", "to": "2 s", "steps": 4000}
                for n in ("alpha", "beta")
            }
        },
        "make 16,000,000 points; at most 10,000,000 are allowed",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), MISTAKES, ids=[text[:40] for _, text in MISTAKES])
def test_a_mistake_is_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path, {**GRID, **change})
    with pytest.raises(InputError) as caught:
        load_study(path)
    assert sentence in str(caught.value)
    assert "study.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_times_of_the_machine_are_no_metric(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wall_s is a time of the machine"):
        made(tmp_path, {**SIMULATION, "metrics": ["wall_s"]})


def test_metrics_reach_everything_a_plan_has(tmp_path: Path) -> None:
    names = ["utilisation.3.dual_path", "payload_bytes.hit", "scheduler_parameters.beta_tokens"]
    study = made(tmp_path, {**LP, "metrics": names})
    assert [metric.type for metric in study.work.metrics] == ["float"] * 3


def test_the_digest_is_of_what_results_depend_on(tmp_path: Path) -> None:
    digest = made(tmp_path, GRID).manifest["digest"]
    same = made(tmp_path, {**GRID, "name": "other", "description": "words"})
    assert same.manifest["digest"] == digest
    for change in (
        {"seed": 1},
        {"metrics": ["split"]},
        {"method": "LP"},
        {"axes": {**GRID["axes"], "slo.tpot": ["30 ms", "51 ms"]}},
        {"base": str(ROOT / "examples" / "deepseek-660b-2p4d.yaml")},
    ):
        assert made(tmp_path, {**GRID, **change}).manifest["digest"] != digest


def test_the_digest_sees_files_that_the_base_names(tmp_path: Path) -> None:
    rows = "session,turn,append,generate\na,1,1000,10\na,2,2000,10\n"
    base = (ROOT / "examples" / "paper-mean-turn.yaml").read_text()
    (tmp_path / "trace.csv").write_text(rows)
    base = re.sub(r"workload:.*?(?=\n\w)", "workload: {trace: trace.csv}", base, flags=re.DOTALL)
    (tmp_path / "base.yaml").write_text(base)
    study = {"name": "t", "base": "base.yaml", "axes": {"cluster.prefill.count": [1]}}
    before = made(tmp_path, study).manifest["digest"]
    (tmp_path / "trace.csv").write_text(rows.replace("2000", "3000"))
    assert made(tmp_path, study).manifest["digest"] != before


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "studies").glob("*.yaml")), ids=str)
def test_shipped_studies_load(path: Path) -> None:
    study = load_study(path)
    assert study.points >= 10
    assert math.prod(study.work.space.sizes) * max(1, study.work.space.samples) == study.points


def test_the_schema_names_fields_as_files_do() -> None:
    schema = StudySpec.model_json_schema(by_alias=True)
    assert "from" in schema["$defs"]["RangeSpec"]["properties"]
