"""What a study's points hold, against the toolkit's own functions on scenario files written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.catalog.files import shipped
from dualpath_model.errors import DualPathError
from dualpath_model.scenario import Scenario, load_scenario
from solvers import plan
from solvers.alternatives import Quick, name_of, quick
from solvers.study_methods import Failure, failure_of, linear_program, over_runs
from solvers.study_metrics import CLOSED_FORM, Metric, figure
from solvers.study_work import answers
from tests.conftest import ROOT
from tests.solvers.studies import GRID, LP, made

LEAN = [Metric(n, t) for n, t in CLOSED_FORM.items() if n != "requests_per_s_per_node"]


def written_out(folder: Path, base: str, changes: dict[str, Any]) -> Scenario:
    """Return the scenario of a file in which fields are set one by one, with no help of studies."""
    data = yaml.safe_load((ROOT / "examples" / base).read_text())
    if isinstance(data["cluster"], str):
        data["cluster"] = copy.deepcopy(shipped("clusters.yaml")[data["cluster"]])
    for path, value in changes.items():
        spot = data
        *above, last = path.split(".")
        for part in above:
            spot = spot.setdefault(part, {})
        spot[last] = value
    file = folder / "written.yaml"
    file.write_text(yaml.safe_dump(data))
    return load_scenario(file)


STUDIES = {
    "independent sections": {
        "cluster.prefill.count": [2, 3],
        "workload.scale.hit_rate": [0.9, 0.97],
        "slo.tpot": ["30 ms", "50 ms"],
        "efficiencies.snic": [0.8, 1.0],
    },
    "sections that depend": {
        "llm": ["deepseek-v3.2", "qwen-2.5-32b"],
        "workload.scale.context": [0.5, 1.0],
        "cluster.decode.count": [3, 4],
        "dram_cache.hit_share": [0.0, 0.3],
    },
}


@pytest.mark.parametrize("name", STUDIES)
def test_scenarios_are_those_of_files_written_out(tmp_path: Path, name: str) -> None:
    from dualpath_model.catalog.llms import llm_names

    axes = dict(STUDIES[name])
    if "llm" in axes:
        axes["llm"] = ["deepseek-v3.2", next(n for n in llm_names() if n.startswith("qwen"))]
    work = made(
        tmp_path, {**GRID, "base": str(ROOT / "examples" / "paper-mean-turn.yaml"), "axes": axes}
    ).work
    for number in range(work.space.count):
        point = work.space.point(number)
        changes = dict(zip(axes, point.written, strict=True))
        try:
            wanted = written_out(tmp_path, "paper-mean-turn.yaml", changes)
        except DualPathError as error:
            with pytest.raises(type(error)):
                work.scenarios.of(point)
            continue
        found = work.scenarios.of(point)
        assert found.class_means == wanted.class_means
        for field in (
            "llm",
            "cluster",
            "serving",
            "slo",
            "efficiencies",
            "rules",
            "limits",
            "zones",
        ):
            assert getattr(found, field) == getattr(wanted, field), field


def test_sampled_axes_give_the_scenarios_written_out_too(tmp_path: Path) -> None:
    axes = {
        "workload.scale.hit_rate": {"from": 0.5, "to": 0.99},
        "slo.tpot": {"from": "30 ms", "to": "90 ms"},
        "cluster.decode.count": [3, 4],
    }
    work = made(tmp_path, {**GRID, "axes": axes, "sample": {"latin_hypercube": 6}}).work
    for number in range(work.space.count):
        point = work.space.point(number)
        wanted = written_out(
            tmp_path, "paper-mean-turn.yaml", dict(zip(axes, point.written, strict=True))
        )
        found = work.scenarios.of(point)
        assert (found.class_means, found.slo, found.cluster) == (
            wanted.class_means,
            wanted.slo,
            wanted.cluster,
        )


def test_closed_forms_are_those_of_single_scenarios(tmp_path: Path) -> None:
    work = made(tmp_path, {**GRID, "metrics": list(CLOSED_FORM)}).work
    served = 0
    for point, answer in answers(work, 0, work.space.count):
        scenario = work.scenarios.of(point)
        try:
            one = quick(scenario)
        except Exception as error:
            assert answer == failure_of(error)
            continue
        assert isinstance(one, Quick) and not isinstance(answer, Failure)
        served += 1
        assert answer["throughput_requests_per_s"] == one.throughput
        assert answer["throughput_basic_requests_per_s"] == one.basic
        assert answer["split"] == one.split
        assert answer["bottleneck.resource"] == name_of(one.bottleneck).resource
        assert answer["workload.hit_rate"] == pytest.approx(scenario.workload.hit_rate)
    assert served > 5


@pytest.mark.parametrize("name", ["paper-mean-turn", "heterogeneous"])
def test_two_solves_say_what_the_whole_plan_says(name: str) -> None:
    scenario = load_scenario(ROOT / "examples" / f"{name}.yaml")
    found, whole = linear_program(scenario, LEAN), plan(scenario)
    for metric in LEAN:
        wanted = figure(whole, metric)
        if isinstance(wanted, float):
            assert found[metric.name] == pytest.approx(wanted, rel=1e-9), metric.name
        else:
            assert found[metric.name] == wanted, metric.name


def test_closed_form_and_lp_agree(tmp_path: Path) -> None:
    """Two methods, one number: at every point of a grid of homogeneous clusters."""
    closed, program = made(tmp_path, GRID).work, made(tmp_path, LP).work
    pairs = zip(answers(closed, 0, 24), answers(program, 0, 24), strict=True)
    for (_, one), (_, other) in pairs:
        if isinstance(one, Failure):
            assert other == one
            continue
        assert not isinstance(other, Failure)
        for name in ("throughput_requests_per_s", "throughput_basic_requests_per_s"):
            assert one[name] == pytest.approx(other[name], rel=1e-6)


def test_a_closed_form_that_does_not_exist_says_which_method_does(tmp_path: Path) -> None:
    study = {
        "name": "uneven",
        "base": str(ROOT / "examples" / "heterogeneous.yaml"),
        "axes": {"slo.tpot": ["50 ms"]},
    }
    ((_, answer),) = answers(made(tmp_path, study).work, 0, 1)
    assert isinstance(answer, Failure)
    assert answer.kind == "input" and "set method: LP" in answer.reason


def test_failures_are_recorded_by_kind(tmp_path: Path) -> None:
    axes = {"cluster.prefill.count": [1, 2], "workload.scale.append": [0.0, 1.0]}
    rows = answers(made(tmp_path, {**GRID, "axes": axes}).work, 0, 4)
    kinds = {p.number: a.kind if isinstance(a, Failure) else None for p, a in rows}
    assert kinds[0] == "input"  # nothing to prefill
    assert kinds[1] == "infeasible"  # one node does not hold the LLM
    assert kinds[3] is None
    assert failure_of(ZeroDivisionError("x\ny")) == Failure("error", "ZeroDivisionError: x")


def test_runs_of_a_point_have_a_mean_only_where_each_has_a_value() -> None:
    number, count = Metric("ttft_s.p99", "float"), Metric("turns", "int")
    runs: list[dict[str, object]] = [
        {"ttft_s.p99": 1.0, "turns": 2},
        {"ttft_s.p99": None, "turns": 4},
        {"ttft_s.p99": None, "turns": 6},
    ]
    found = over_runs(runs, [number, count])
    assert found["ttft_s.p99"] is found["ttft_s.p99.low"] is found["ttft_s.p99.high"] is None
    assert found["turns"] == 4.0
    half = 4.302652729911275 * 2.0 / 3**0.5  # Student's t of 2 degrees of freedom, 95 %
    assert found["turns.low"] == pytest.approx(4.0 - half)
    assert found["turns.high"] == pytest.approx(4.0 + half)


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("text", ["a", "a"], "a"),
        ("text", ["b", "a", "b"], "b or a"),
        ("text", ["a", None], None),
        ("bool", [True, True], True),
        ("bool", [True, False], None),
        ("bool", [None, False], None),
    ],
)
def test_words_of_several_runs_are_all_said(
    kind: str, values: list[object], wanted: object
) -> None:
    assert over_runs([{"m": value} for value in values], [Metric("m", kind)]) == {"m": wanted}
