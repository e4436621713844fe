"""The tables of serving frameworks: what each moves by hand count, and where its prefill computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dualpath_model.errors import InputError
from dualpath_model.frameworks import FRAMEWORKS, table_named
from dualpath_model.llm import KvDtype
from dualpath_model.loads import (
    DECODE_GPU,
    DECODE_SPACE,
    PREFILL_GPU,
    Serving,
    cluster_loads,
    compute_only,
    movement,
    request_means,
    request_movement,
)
from dualpath_model.paths import (
    DE_DRAM,
    DE_HBM,
    PAPER,
    PE_DRAM,
    PE_HBM,
    STORAGE,
    Direction,
    Key,
    Mover,
    Payload,
    Phase,
    Place,
    Pool,
    Resource,
    Step,
    StepTable,
    uses,
)
from dualpath_model.scenario import ScenarioSpec, load_scenario
from dualpath_model.workload import from_moments
from tests.conftest import ROOT
from tests.strategies import EFFICIENCIES, SMALL_LLM

OTHERS = [name for name in FRAMEWORKS if name != "paper"]
P, D = Pool.PREFILL, Pool.DECODE
BOTH, READ, WRITE = Direction.BOTH, Direction.READ, Direction.WRITE

# Passages of a hit byte on the first and on the second read path, counted by hand from what the
# packages do (frameworks.py names the files).
HITS: dict[str, dict[tuple[Pool, Resource, Direction], tuple[int, int]]] = {
    "vllm": {
        (P, Resource.SNIC, Direction.IN): (1, 0),
        (D, Resource.SNIC, Direction.IN): (0, 1),
        (P, Resource.DRAM, BOTH): (2, 2),  # into the CPU tier, by NIC or p2p, and up
        (D, Resource.DRAM, BOTH): (1, 2),  # the prompt offloaded; read and sent
        (P, Resource.CNIC, READ): (1, 1),  # hand-off
        (P, Resource.CNIC, WRITE): (0, 1),  # p2p
        (D, Resource.CNIC, READ): (0, 1),
        (D, Resource.CNIC, WRITE): (1, 1),
        (P, Resource.HOST_LINK, READ): (1, 1),
        (P, Resource.HOST_LINK, WRITE): (0, 1),
        (D, Resource.HOST_LINK, WRITE): (1, 0),
    },
    "vllm-pull": {
        (P, Resource.SNIC, Direction.IN): (1, 0),
        (D, Resource.SNIC, Direction.IN): (0, 0),
        (P, Resource.DRAM, BOTH): (2, 1),
        (D, Resource.DRAM, BOTH): (1, 0),
        (P, Resource.CNIC, READ): (1, 0),  # the decode GPU has kept them
        (P, Resource.CNIC, WRITE): (0, 1),
        (D, Resource.CNIC, READ): (0, 1),
        (D, Resource.CNIC, WRITE): (1, 0),
    },
    "sglang": {
        (P, Resource.SNIC, Direction.IN): (1, 1),
        (D, Resource.SNIC, Direction.IN): (1, 1),
        (P, Resource.DRAM, BOTH): (2, 2),
        (D, Resource.DRAM, BOTH): (2, 2),
        (P, Resource.CNIC, READ): (0, 0),
        (D, Resource.CNIC, WRITE): (0, 0),
        (P, Resource.HOST_LINK, READ): (1, 1),
        (D, Resource.HOST_LINK, READ): (1, 1),
    },
    "dynamo": {
        (P, Resource.SNIC, Direction.IN): (1, 0),
        (D, Resource.SNIC, Direction.IN): (0, 1),
        (P, Resource.DRAM, BOTH): (2, 0),
        (D, Resource.DRAM, BOTH): (1, 2),
        (P, Resource.CNIC, READ): (1, 0),
        (D, Resource.CNIC, WRITE): (1, 0),
        (D, Resource.HOST_LINK, READ): (0, 1),
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_hits_pass_what_the_packages_say(name: str) -> None:
    demand = movement(FRAMEWORKS[name], {Payload.HIT: 1.0})
    for parts, expected in HITS[name].items():
        key = Key(*parts)
        base = demand.base.get(key, 0.0)
        assert (base, base + demand.slope.get(key, 0.0)) == expected, str(key)


@pytest.mark.parametrize("table", FRAMEWORKS.values(), ids=FRAMEWORKS.keys())
@pytest.mark.parametrize("split", [0.0, 0.4, 1.0])
def test_every_table_stores_what_is_new_once_and_hands_the_misses_over(
    table: StepTable, split: float
) -> None:
    """Whoever stores it; and misses cross to the decode side unless it has computed them."""
    found = movement(table, dict.fromkeys(Payload, 1.0)).at(split)
    written = Key(Pool.CLUSTER, Resource.STORAGE, Direction.WRITE)
    assert_allclose(found[written], 2.0)  # appended and generated
    misses = movement(table, {Payload.MISS: 1.0}).at(split)
    fabric = Key(Pool.CLUSTER, Resource.FABRIC, Direction.TO_DECODE)
    assert_allclose(misses[fabric], 1.0 - split if table.name == "dynamo" else 1.0)


@pytest.mark.parametrize("table", FRAMEWORKS.values(), ids=FRAMEWORKS.keys())
def test_every_step_starts_where_its_bytes_are(table: StepTable) -> None:
    """On each read path: from storage, from what stays, or from where an earlier step has put them."""
    for path in (table.prefill_read, table.decode_read):
        there: set[tuple[Place, Payload]] = {
            (STORAGE, Payload.HIT),
            (PE_HBM if path.prefill_on is P else DE_HBM, Payload.MISS),
            (PE_HBM if path.prefill_on is P else DE_HBM, Payload.APPENDED),
            (DE_HBM, Payload.GENERATED),
            *((stay.place, payload) for stay in path.stays for payload in stay.carries),
        }
        for step in (*path.steps, *(step for always in table.always for step in always.steps)):
            for payload in step.carries:
                # what is handed over is what is stored, in another form
                forms = {Payload.MISS, Payload.APPENDED}
                alike = forms if payload in forms else {payload}
                assert any((step.source, form) in there for form in alike), (path.name, step)
                there.add((step.destination, payload))
        assert (DE_HBM, Payload.HIT) in there
        assert (PE_HBM if path.prefill_on is P else DE_HBM, Payload.HIT) in there


def test_a_copy_uses_the_host_link_in_its_direction_and_no_nic() -> None:
    up = Step("x", PE_DRAM, PE_HBM, (Payload.HIT,), Phase.LOAD, Mover.COPY)
    down = Step("x", DE_HBM, DE_DRAM, (Payload.HIT,), Phase.WRITE_BACK, Mover.COPY)
    assert uses(up) == (
        Key(P, Resource.DRAM, BOTH),
        Key(P, Resource.HOST_LINK, READ),
        Key(P, Resource.HBM, BOTH),
    )
    assert uses(down) == (
        Key(D, Resource.HBM, BOTH),
        Key(D, Resource.HOST_LINK, WRITE),
        Key(D, Resource.DRAM, BOTH),
    )
    with pytest.raises(ValueError, match="stays inside its node"):
        Step("x", DE_DRAM, PE_HBM, (Payload.HIT,), Phase.LOAD, Mover.COPY)


def test_frameworks_copy_between_host_and_gpu_and_the_paper_never_does() -> None:
    for name, table in FRAMEWORKS.items():
        local = [
            step
            for path in table.paths
            for step in path.steps
            if step.source.pool is step.destination.pool
        ]
        movers = {step.mover for step in local}
        assert movers == ({Mover.NIC} if name == "paper" else {Mover.COPY})


def test_names_are_in_order_and_a_misspelt_one_names_the_nearest(tmp_path: Path) -> None:
    assert list(FRAMEWORKS) == ["paper", "vllm", "vllm-pull", "sglang", "dynamo"]
    assert all(table_named(name).name == name for name in FRAMEWORKS)
    assert table_named("paper") is PAPER
    with pytest.raises(InputError, match="'sglan' is unknown; the nearest are sglang"):
        table_named("sglan")
    text = (ROOT / "examples" / "paper-mean-turn.yaml").read_text()
    path = tmp_path / "scenario.yaml"
    path.write_text(f"{text}\nframework: dinamo\n")
    with pytest.raises(InputError, match=r"scenario.yaml:\d+: framework: .*the nearest are dynamo"):
        load_scenario(path)
    path.write_text(f"{text}\nframework: dynamo\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), ScenarioSpec.model_json_schema())
    assert load_scenario(path).serving.table == FRAMEWORKS["dynamo"]
    assert ScenarioSpec.model_json_schema()["properties"]["framework"]["enum"] == list(FRAMEWORKS)


SWITCHES: dict[str, Callable[[Step], bool]] = {
    "miss": lambda step: Payload.MISS in step.carries,
    "hand_off": lambda step: step.phase is Phase.HAND_OFF,
    "decode_start": lambda step: step.phase is Phase.DECODE_START,
    "write_back": lambda step: step.phase is Phase.WRITE_BACK,
}


@pytest.mark.parametrize("name", list(FRAMEWORKS))
@pytest.mark.parametrize("switch", list(SWITCHES))
def test_traffic_switches_apply_to_every_table(tmp_path: Path, name: str, switch: str) -> None:
    text = (ROOT / "examples" / "paper-mean-turn.yaml").read_text()
    path = tmp_path / "scenario.yaml"
    path.write_text(f"{text}\nframework: {name}\ntraffic: {{{switch}: false}}\n")
    scenario = load_scenario(path)

    def steps(table: StepTable) -> list[Step]:
        return [step for part in table.paths for step in part.steps]

    left_out = SWITCHES[switch]
    assert not any(map(left_out, steps(scenario.serving.table)))
    kept = [step for step in steps(FRAMEWORKS[name]) if not left_out(step)]
    assert len(steps(scenario.serving.table)) >= len(kept)
    assert not any(map(left_out, steps(scenario.under("vllm").serving.table)))


def test_under_another_framework_everything_else_stays() -> None:
    scenario = load_scenario(ROOT / "examples" / "dram-cache.yaml")
    other = scenario.under("sglang")
    assert other.serving.dram_cache_hit_share == scenario.serving.dram_cache_hit_share
    assert other.class_means is scenario.class_means
    assert other.under("paper").serving == scenario.serving


# ---- where prefill computes, what stays ------------------------------------------------------------


@given(
    hit=st.floats(1000, 60_000),
    miss=st.floats(50, 4000),
    share=st.sampled_from([0.0, 0.3]),
    split=st.floats(0, 1),
    mfu=st.floats(0.05, 0.6),
)
def test_prefill_moves_to_the_decode_gpus_and_takes_as_long_there(
    hit: float, miss: float, share: float, split: float, mfu: float
) -> None:
    """At its own efficiency: a decode GPU with nothing else to do prefills as fast as a prefill GPU."""
    scenario = load_scenario(ROOT / "examples" / "paper-mean-turn.yaml")
    efficiencies = replace(EFFICIENCIES, decode_mfu=mfu)
    means = request_means(SMALL_LLM, from_moments(hit, miss, 100), KvDtype.FP8)
    serving = Serving(KvDtype.FP8, table=FRAMEWORKS["dynamo"], dram_cache_hit_share=share)
    cluster = scenario.cluster
    loads = cluster_loads(cluster, SMALL_LLM, means, serving, scenario.slo, efficiencies)
    plain = cluster_loads(
        cluster, SMALL_LLM, means, replace(serving, table=PAPER), scenario.slo, efficiencies
    )
    (prefill,), (decode,) = loads.prefill, loads.decode
    moved = split * (1.0 - share)
    on_prefill = prefill.demand.at(split)[PREFILL_GPU] / prefill.capacity[PREFILL_GPU]
    generating = plain.decode[0].demand.at(split)[DECODE_GPU]
    more = decode.demand.at(split)[DECODE_GPU] - generating
    on_decode = float(more / decode.capacity[DECODE_GPU])
    alone = float(plain.prefill[0].demand.at(split)[PREFILL_GPU] / prefill.capacity[PREFILL_GPU])
    assert_allclose(on_prefill, (1.0 - moved) * alone, rtol=1e-9)
    assert_allclose(on_decode, moved * alone, rtol=1e-6, atol=1e-9 * alone)
    assert compute_only(loads).decode[0].demand.slope == decode.compute.slope


def test_the_papers_demands_have_no_compute_slope() -> None:
    scenario = load_scenario(ROOT / "examples" / "paper-mean-turn.yaml")
    for name in ("paper", "vllm", "vllm-pull", "sglang"):
        loads = scenario.under(name).loads()
        assert not any(group.compute.slope for _, group in loads.all_groups())


def test_kept_hits_occupy_the_decode_hbm_for_the_think_time() -> None:
    """Hit bytes times the think time before the turn, of the turns that are pulled."""
    scenario = load_scenario(ROOT / "examples" / "paper-mean-turn.yaml")
    workload = from_moments(30_000, 500, 100)
    thinking = replace(workload, think_time_s=np.full(workload.turns, 7.0))
    serving = Serving(KvDtype.FP8, table=FRAMEWORKS["vllm-pull"])
    hit = request_means(SMALL_LLM, workload, KvDtype.FP8).payloads[Payload.HIT]
    for source, seconds in ((workload, 0.0), (thinking, 7.0)):
        means = request_means(SMALL_LLM, source, KvDtype.FP8)
        moved = request_movement(SMALL_LLM, means, serving)
        assert_allclose(moved.at(0.25)[DECODE_SPACE], 0.25 * hit * seconds)
        loads = cluster_loads(
            scenario.cluster, SMALL_LLM, means, serving, scenario.slo, EFFICIENCIES
        )
        space = loads.decode[0].demand
        assert_allclose(space.at(1.0)[DECODE_SPACE] - space.at(0.0)[DECODE_SPACE], hit * seconds)
        # keeping is not compute, so the Oracle has it for free
        assert DECODE_SPACE not in loads.decode[0].compute.slope
