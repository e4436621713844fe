"""Loads: totals against hand counts, and every resource in a case where it is the bottleneck."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dualpath_model import closed_form
from dualpath_model.cluster import Cluster, Node
from dualpath_model.errors import InfeasibleError
from dualpath_model.llm import FeedForward, KvDtype, LatentAttention, Llm
from dualpath_model.loads import (
    DECODE_GPU,
    DECODE_HBM,
    DECODE_SPACE,
    PREFILL_GPU,
    Loads,
    Parallelism,
    Serving,
    Slo,
    cluster_loads,
    expert_degree,
    movement,
    oracle_throughput,
    request_means,
)
from dualpath_model.paths import PAPER, Direction, Key, Payload, Pool, Resource
from dualpath_model.workload import Workload, from_moments
from tests.strategies import EFFICIENCIES, SMALL_LLM, loads_of

AGENT = from_moments(32_000, 429, 176)
HIT = float(np.mean(SMALL_LLM.kv_bytes(32_000.0, KvDtype.FP8)))
MLA = Llm(
    name="latent",
    layers=60,
    hidden=4096,
    vocab=128_000,
    attention=LatentAttention(64, 1536, 512, 128, 64, 128),
    ffn=FeedForward(dense_intermediate=12_288),
    weight_bytes_per_param=1.0,
)


def pools(prefill: Node, decode: Node | None = None, p: int = 2, d: int = 4) -> Cluster:
    return Cluster((prefill,) * p, ((decode or prefill),) * d)


def bottleneck(loads: Loads, *, basic: bool = False) -> Key:
    bound = closed_form.solve(*closed_form.of_loads(loads))
    return bound.keys[int(bound.bottleneck_basic if basic else bound.bottleneck)]


# ---- totals --------------------------------------------------------------------------------------

positive = st.floats(0.0, 1e10)


@given(positive, positive, positive, st.floats(0, 1), st.floats(0, 1))
def test_bytes_are_conserved(
    hit: float, miss: float, generated: float, x: float, cached: float
) -> None:
    """What arrives equals what left: storage, SNICs, CNICs and the fabric, at any split."""
    demand = movement(
        PAPER,
        {
            Payload.HIT: hit,
            Payload.MISS: miss,
            Payload.APPENDED: miss,
            Payload.GENERATED: generated,
        },
        cache_share=cached,
    ).at(x)

    def load(pool: Pool, resource: Resource, direction: Direction) -> float:
        return float(demand.get(Key(pool, resource, direction), 0.0))

    read = load(Pool.CLUSTER, Resource.STORAGE, Direction.READ)
    snics = load(Pool.PREFILL, Resource.SNIC, Direction.IN) + load(
        Pool.DECODE, Resource.SNIC, Direction.IN
    )
    sent = load(Pool.PREFILL, Resource.CNIC, Direction.READ) + load(
        Pool.DECODE, Resource.CNIC, Direction.READ
    )
    received = load(Pool.PREFILL, Resource.CNIC, Direction.WRITE) + load(
        Pool.DECODE, Resource.CNIC, Direction.WRITE
    )
    written = load(Pool.CLUSTER, Resource.STORAGE, Direction.WRITE)
    fabric = load(Pool.CLUSTER, Resource.FABRIC, Direction.TO_DECODE)
    close = {"rtol": 1e-9, "atol": 1e-3}
    assert_allclose(read, hit * (1 - cached), **close)
    assert_allclose(snics, read, **close)
    assert_allclose(sent, received, **close)
    assert_allclose(written, miss + generated, **close)
    assert_allclose(fabric, miss + hit * (1 - x * (1 - cached)), **close)


def test_payloads_average_over_turns_exactly() -> None:
    """Two turns of different length: the mean of the bytes, not the bytes of the mean."""
    window = replace(SMALL_LLM.attention, sliding_window_tokens=128, sliding_layers=16)
    llm = replace(SMALL_LLM, attention=window)
    workload = Workload(
        prompt_tokens=np.array([100.0, 10_000.0]),
        hit_tokens=np.array([64.0, 9_984.0]),
        output_tokens=np.array([10.0, 20.0]),
        think_time_s=np.zeros(2),
        start_s=np.zeros(1),
        offsets=np.array([0, 2]),
    )
    layer = 2 * 8 * 128  # K and V, heads, head dim, one byte
    hit = layer * np.mean([32 * 64, 16 * 9_984 + 16 * 128])
    prompt = layer * np.mean([32 * 100, 16 * 10_000 + 16 * 128])
    means = request_means(llm, workload, KvDtype.FP8)
    assert_allclose(means.payloads[Payload.HIT], hit)
    assert_allclose(means.payloads[Payload.MISS], prompt - hit)
    assert_allclose(means.payloads[Payload.APPENDED], layer * 32 * np.mean([36, 16]))
    assert_allclose(means.payloads[Payload.GENERATED], layer * 32 * 15)


def test_decode_demand_equals_steps_times_step_time(paper_node: Node) -> None:
    """The fullest decode capacity at the bound is exactly batch / step time tokens/s a GPU."""
    loads = loads_of(pools(paper_node), AGENT)
    group = loads.decode[0]
    point = group.decode_point
    assert point is not None
    rates = [
        group.capacity[key] / float(group.compute.base[key])
        for key in (DECODE_GPU, DECODE_HBM, DECODE_SPACE)
    ]
    tokens_per_s = 8 * point.batch / point.step_s
    assert_allclose(min(rates) * 176, tokens_per_s, rtol=1e-9)


# ---- each resource as the bottleneck -------------------------------------------------------------


def test_prefill_storage_nic_limits_basic(paper_node: Node) -> None:
    loads = loads_of(pools(paper_node), AGENT)
    assert bottleneck(loads, basic=True) == Key(Pool.PREFILL, Resource.SNIC, Direction.IN)


def test_storage_write_back_can_fill_the_decode_nic_outwards(paper_node: Node) -> None:
    slow = replace(paper_node, snic_bytes_per_s=1e9)
    loads = loads_of(Cluster((paper_node,) * 4, (slow,)), from_moments(100, 4000, 50))
    assert bottleneck(loads) == Key(Pool.DECODE, Resource.SNIC, Direction.OUT)


def test_dram_limits_when_slow(paper_node: Node) -> None:
    slow = replace(paper_node, dram_bytes_per_s=20e9)
    assert bottleneck(loads_of(pools(slow), AGENT)).resource is Resource.DRAM


def test_host_link_limits_the_decode_path(paper_node: Node) -> None:
    """A cloud shape's 64 GB/s between host memory and NICs, although its NICs do 400 GB/s."""
    linked = replace(paper_node, host_link_bytes_per_s=64e9, snic_bytes_per_s=200e9)
    loads = loads_of(pools(linked), AGENT)
    assert bottleneck(loads).resource is Resource.HOST_LINK
    free = loads_of(pools(replace(linked, host_link_bytes_per_s=None)), AGENT)
    assert bottleneck(free).resource is not Resource.HOST_LINK


def test_compute_nic_limits_when_slow(paper_node: Node) -> None:
    slow = replace(paper_node, cnic_bytes_per_s=6e9)
    assert bottleneck(loads_of(pools(slow), AGENT)).resource is Resource.CNIC


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"storage_read_bytes_per_s": 60e9}, (Resource.STORAGE, Direction.READ)),
        ({"storage_write_bytes_per_s": 0.5e9}, (Resource.STORAGE, Direction.WRITE)),
        ({"fabric_bytes_per_s": 20e9}, (Resource.FABRIC, None)),
    ],
)
def test_what_the_cluster_shares_limits(
    paper_node: Node, limit: dict[str, float], expected: tuple[Resource, Direction | None]
) -> None:
    found = bottleneck(loads_of(replace(pools(paper_node), **limit), AGENT))
    assert found.resource is expected[0]
    assert expected[1] in (None, found.direction)


def test_one_nic_for_both_uses(paper_node: Node) -> None:
    """Without SNICs, storage traffic adds to CNIC writes (in) and reads (out); nothing is lost."""
    shared = replace(paper_node, snics=0, snic_bytes_per_s=0.0, cnic_bytes_per_s=12.5e9)
    loads = loads_of(pools(shared), AGENT)
    assert bottleneck(loads).resource is Resource.CNIC
    own = loads_of(pools(paper_node), AGENT)
    write = Key(Pool.PREFILL, Resource.CNIC, Direction.WRITE)
    snic = Key(Pool.PREFILL, Resource.SNIC, Direction.IN)
    at_zero, own_at_zero = loads.prefill[0].demand.at(0.0), own.prefill[0].demand.at(0.0)
    assert_allclose(at_zero[write], own_at_zero[write] + own_at_zero[snic])
    assert snic not in at_zero


def test_a_shared_nic_sends_storage_traffic_over_the_host_link(paper_node: Node) -> None:
    """Long appends, no hits: decode host link read carries m + a + o, here 12,000 tokens a request."""
    shared = replace(
        paper_node, snics=0, snic_bytes_per_s=0.0, host_link_bytes_per_s=63e9, dram_bytes_per_s=None
    )
    loads = loads_of(pools(shared), from_moments(0, 4000, 4000))
    read = Key(Pool.DECODE, Resource.HOST_LINK, Direction.READ)
    per_token = SMALL_LLM.kv_bytes_per_token(KvDtype.FP8)
    assert_allclose(loads.decode[0].demand.at(0.0)[read], 12_000 * per_token)
    hits = loads_of(pools(shared), AGENT)
    write = Key(Pool.PREFILL, Resource.HOST_LINK, Direction.WRITE)
    assert_allclose(hits.prefill[0].demand.at(0.0)[write], HIT)


def test_dram_cache_takes_load_off_the_storage_nic(paper_node: Node) -> None:
    plain = closed_form.solve(*closed_form.of_loads(loads_of(pools(paper_node), AGENT)))
    cached = closed_form.solve(*closed_form.of_loads(loads_of(pools(paper_node), AGENT, 0.5)))
    assert_allclose(cached.throughput_basic, 2.0 * plain.throughput_basic, rtol=1e-9)
    dram = replace(paper_node, dram_bytes_per_s=30e9)
    full = loads_of(pools(dram, paper_node), AGENT, 1.0)
    assert bottleneck(full) == Key(Pool.PREFILL, Resource.DRAM, Direction.BOTH)


def test_prefill_compute_limits_long_appends(paper_node: Node) -> None:
    assert bottleneck(loads_of(pools(paper_node), from_moments(1000, 4000, 10))) == PREFILL_GPU


def test_decode_limits_long_generations(paper_node: Node) -> None:
    found = bottleneck(loads_of(pools(paper_node, d=1), from_moments(1000, 100, 8000)))
    assert found.pool is Pool.DECODE
    assert found.resource in (Resource.HBM, Resource.GPU, Resource.HBM_SPACE)


def test_tensor_parallelism_splits_grouped_heads_and_repeats_the_latent(paper_node: Node) -> None:
    """GQA: 8 KV heads over 8 ranks, no copy; over 16 ranks two. MLA: a copy a rank, so that the
    compute NIC into HBM becomes the bottleneck."""
    assert SMALL_LLM.replication(8) == 1.0
    assert SMALL_LLM.replication(16) == 2.0
    assert MLA.replication(8) == 8.0
    means = request_means(MLA, from_moments(60_000, 100, 10), KvDtype.FP8)
    node = replace(paper_node, snic_bytes_per_s=200e9, dram_bytes_per_s=None)

    def loads(tensor: int) -> Loads:
        serving = Serving(KvDtype.FP8, Parallelism(tensor), Parallelism(tensor))
        return cluster_loads(pools(node), MLA, means, serving, Slo(), EFFICIENCIES)

    assert bottleneck(loads(1)).resource is not Resource.CNIC
    assert bottleneck(loads(8)).resource is Resource.CNIC
    write = Key(Pool.PREFILL, Resource.CNIC, Direction.WRITE)
    one, eight = loads(1).prefill[0].demand.at(1.0), loads(8).prefill[0].demand.at(1.0)
    assert_allclose(eight[write], 8 * one[write])


# ---- what cannot be served -----------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused(paper_node: Node) -> None:
    huge = replace(SMALL_LLM, name="huge", layers=600)
    means = request_means(huge, AGENT, KvDtype.FP8)
    with pytest.raises(InfeasibleError, match="huge does not fit"):
        cluster_loads(pools(paper_node), huge, means, Serving(KvDtype.FP8), Slo(), EFFICIENCIES)


def test_a_request_that_does_not_fit_is_refused(paper_node: Node) -> None:
    with pytest.raises(InfeasibleError, match="less than one request's"):
        loads_of(pools(paper_node), from_moments(5_000_000, 100, 10))


def test_a_tpot_below_one_step_is_refused(paper_node: Node) -> None:
    means = request_means(SMALL_LLM, AGENT, KvDtype.FP8)
    with pytest.raises(InfeasibleError, match=r"slo.tpot 1 ms cannot be met"):
        cluster_loads(
            pools(paper_node),
            SMALL_LLM,
            means,
            Serving(KvDtype.FP8),
            Slo(tpot_s=1e-3),
            EFFICIENCIES,
        )


def test_experts_are_spread_over_as_few_nodes_as_hold_them(paper_node: Node) -> None:
    moe = replace(
        SMALL_LLM,
        ffn=FeedForward(0, 2048, experts=128, active_experts=8),
        expert_bytes_per_param=1.0,
    )
    assert expert_degree(moe, paper_node, Parallelism(), EFFICIENCIES, 64) == 8
    bigger = replace(moe, layers=160)
    degree = expert_degree(bigger, paper_node, Parallelism(), EFFICIENCIES, 640)
    half = 0.5 * 0.9 * 80e9
    assert degree % 8 == 0
    assert (
        bigger.resident_weight_bytes(1, degree)
        <= half
        < bigger.resident_weight_bytes(1, degree - 8)
    )
    assert expert_degree(bigger, paper_node, Parallelism(), EFFICIENCIES, 16) == 16
    assert expert_degree(bigger, paper_node, Parallelism(expert=16), EFFICIENCIES, 64) == 16
    with pytest.raises(InfeasibleError, match="more GPUs than the 16 of the pool"):
        expert_degree(bigger, paper_node, Parallelism(expert=64), EFFICIENCIES, 16)


def test_oracle_is_what_compute_alone_allows(paper_node: Node) -> None:
    loads = loads_of(pools(paper_node), AGENT)
    bound = closed_form.solve(*closed_form.of_loads(loads))
    oracle = oracle_throughput(loads)
    assert oracle >= bound.throughput * (1 - 1e-12)
    prefill = loads.prefill[0]
    flops = float(prefill.compute.base[PREFILL_GPU])
    assert oracle <= 2 * prefill.capacity[PREFILL_GPU] / flops * (1 + 1e-12)
