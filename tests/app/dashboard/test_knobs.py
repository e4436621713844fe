"""Knobs: every one changes the file as it says, and a file that they changed is one the CLI takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dashboard import answers, knobs
from app.dashboard.question import Question, Value
from app.dashboard.session import ordered
from app.examples import example_names
from dualpath_model.errors import DualPathError, InputError
from dualpath_model.paths import Pool
from dualpath_model.scenario import Scenario

BASE = "deepseek-660b-2p4d"


def asked(base: str = BASE, **values: Value) -> Question:
    return Question(base, knobs=ordered(values))


def scenario(base: str = BASE, **values: Value) -> Scenario:
    return answers.scenario_of(asked(base, **values))


@pytest.mark.parametrize("base", example_names())
def test_every_control_starts_inside_and_writing_where_it_stands_changes_nothing(base: str) -> None:
    before = answers.start_of(Question(base))
    for knob in knobs.KNOBS:
        control = knob.control(before)
        if control is None:
            continue
        assert control.admits(control.now), knob.name
        assert knob.label and knob.help.endswith("."), knob.name


@pytest.mark.parametrize("base", ["heterogeneous", "mixed-traffic", BASE, "deepseek-v3.2-aws-p5"])
@pytest.mark.parametrize("pool", [Pool.PREFILL, Pool.DECODE])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_node_counts(base: str, pool: Pool, count: int) -> None:
    found = scenario(base, **{f"{pool.value}_nodes": count})
    assert len(found.cluster.nodes(pool)) == count
    other = Pool.DECODE if pool is Pool.PREFILL else Pool.PREFILL
    assert found.cluster.nodes(other) == scenario(base).cluster.nodes(other)


def test_cluster_knobs() -> None:
    found = scenario(
        prefill_snics=2, decode_snics=3, snic_gbps=200, cnic_gbps=100, dram_gb_per_s=250
    )
    for node in found.cluster.prefill:
        assert (node.snics, node.snic_bytes_per_s, node.cnic_bytes_per_s) == (2, 25e9, 12.5e9)
        assert node.dram_bytes_per_s == 250e9
    assert {node.snics for node in found.cluster.decode} == {3}
    shared = scenario(prefill_snics=0)
    assert all(node.shares_nic for node in shared.cluster.prefill)
    aws = "deepseek-v3.2-aws-p5"
    assert all(node.shares_nic for node in scenario(aws).cluster.prefill)
    given_one = scenario(aws, prefill_snics=1).cluster.prefill[0]
    assert given_one.snic_bytes_per_s == given_one.cnic_bytes_per_s


def test_gpus_of_one_pool() -> None:
    found = scenario(decode_gpu="h20-sxm")
    assert {node.gpu.bf16_flop_per_s for node in found.cluster.decode} == {148e12}
    assert found.cluster.prefill == scenario().cluster.prefill


@pytest.mark.parametrize("base", [BASE, "heterogeneous", "deepseek-v3.2-aws-p5"])
def test_one_degraded_node(base: str) -> None:
    before, found = scenario(base), scenario(base, degraded_decode=25)
    assert len(found.cluster.decode) == len(before.cluster.decode)
    rates = sorted(node.storage_bytes_per_s for node in found.cluster.decode)
    healthy = sorted(node.storage_bytes_per_s for node in before.cluster.decode)
    assert sum(rates) < sum(healthy)
    changed = [rate for rate in rates if rate not in healthy]
    assert len(changed) == 1
    assert any(changed[0] == pytest.approx(rate / 4) for rate in healthy)


def test_a_degraded_node_has_the_nics_that_other_knobs_gave() -> None:
    found = scenario(prefill_snics=2, snic_gbps=200, degraded_prefill=50)
    rates = sorted(node.storage_bytes_per_s for node in found.cluster.prefill)
    assert rates == [25e9, 50e9]


def test_the_only_node_can_be_degraded() -> None:
    found = scenario("ds-27b-1p1d", degraded_prefill=50)
    assert len(found.cluster.prefill) == 1
    before = scenario("ds-27b-1p1d").cluster.prefill[0]
    assert found.cluster.prefill[0].storage_bytes_per_s == before.storage_bytes_per_s / 2


@pytest.mark.parametrize("base", [BASE, "recorded-sessions", "paper-mean-turn", "mixed-traffic"])
def test_workload_knobs_give_the_means_that_they_say(base: str) -> None:
    found = scenario(base, context_tokens=20_000, append_tokens=300, generate_tokens=200)
    turns = sum(c.workload.turns for c in found.classes)
    for name, value in (("hit_tokens", 20_000), ("miss_tokens", 300), ("output_tokens", 200)):
        total = sum(float(getattr(c.workload, name).sum()) for c in found.classes)
        assert total / turns == pytest.approx(value, rel=1e-9)
    rate = scenario(base, hit_rate=90.0)
    for part in rate.classes:
        if part.workload.hit_tokens.any():
            assert part.workload.hit_rate == pytest.approx(0.9)


def test_llm_format_cache_and_promise() -> None:
    found = scenario(llm="qwen2.5-32b", dram_cache=40, slo_tpot=30.0, slo_ttft=2.0)
    assert found.llm.name == "qwen2.5-32b"
    assert found.serving.dram_cache_hit_share == 0.4
    assert (found.slo.ttft_s, found.slo.tpot_s) == (2.0, 0.03)
    assert scenario(kv_dtype="bf16").serving.kv_dtype.value == "bf16"


def test_a_value_outside_its_control_is_refused() -> None:
    with pytest.raises(InputError, match=r"prefill nodes \(P\) is 0; it must be from 1 to 16"):
        answers.yaml_of(asked(prefill_nodes=0))
    with pytest.raises(InputError, match="must be one of as it is"):
        answers.yaml_of(asked(decode_gpu="abacus"))
    with pytest.raises(InputError, match="no knob 'x'"):
        answers.yaml_of(Question(BASE, knobs=(("x", 1),)))
    with pytest.raises(InputError, match="must be from"):
        answers.yaml_of(asked(hit_rate=float("nan")))


def test_an_unmoved_question_is_the_file_as_it_is(root: object) -> None:
    text = answers.yaml_of(Question(BASE))
    assert text == (root / "examples" / f"{BASE}.yaml").read_text()  # type: ignore[operator]


def _value(draw: st.DrawFn, control: knobs.Control) -> Value:
    if isinstance(control, knobs.Choice):
        return draw(st.sampled_from(control.options))
    steps = int((control.high - control.low) / control.step)
    return control.low + control.step * draw(st.integers(0, steps))


@st.composite
def moves(draw: st.DrawFn) -> Question:
    base = draw(st.sampled_from([BASE, "heterogeneous", "recorded-sessions", "dram-cache"]))
    before = answers.start_of(Question(base))
    values = {}
    for knob in draw(st.lists(st.sampled_from(knobs.KNOBS), max_size=5, unique=True)):
        control = knob.control(before)
        if control is not None:
            values[knob.name] = _value(draw, control)
    return Question(base, knobs=ordered(values))


@settings(max_examples=60)
@given(moves())
def test_any_moves_give_a_scenario_or_a_sentence(question: Question) -> None:
    try:
        found = answers.scenario_of(question)
    except DualPathError as error:
        assert "\n" not in str(error)
        return
    again = Question("", answers.yaml_of(replace(question)), question.files)
    if "trace" not in str(answers.yaml_of(question)):
        same = answers.scenario_of(again)
        assert same.cluster == found.cluster
        assert same.means == found.means


@pytest.mark.parametrize("base", example_names())
def test_every_shipped_scenario_takes_every_knob(base: str) -> None:
    before = answers.start_of(Question(base))
    for knob in knobs.KNOBS:
        control = knob.control(before)
        if isinstance(control, knobs.Slider):
            values: tuple[Value, ...] = (control.low, control.high)
        else:
            values = control.options if control is not None and knob.name != "llm" else ()
        for value in values:
            assert scenario(base, **{knob.name: value}).cluster is not None, knob.name


def test_formats_are_those_of_the_llm() -> None:
    control = knobs.BY_NAME["kv_dtype"].control(scenario("qwen-32b-1p2d"))
    assert isinstance(control, knobs.Choice)
    assert control.options == (knobs.AS_IS, "bf16", "fp8")
