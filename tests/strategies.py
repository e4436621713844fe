"""Random but possible clusters and workloads for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from dualpath_model.cluster import Cluster, Efficiencies, Gpu, Node
from dualpath_model.llm import FeedForward, GroupedAttention, KvDtype, Llm
from dualpath_model.loads import Loads, Serving, Slo, cluster_loads, request_means
from dualpath_model.workload import Workload, from_moments

SMALL_LLM = Llm(
    name="small",
    layers=32,
    hidden=4096,
    vocab=128_000,
    attention=GroupedAttention(heads=32, kv_heads=8, head_dim=128),
    ffn=FeedForward(dense_intermediate=14_336),
)
EFFICIENCIES = Efficiencies(
    snic=1.0, cnic=1.0, dram=1.0, hbm=0.8, prefill_mfu=0.4, decode_mfu=0.4, hbm_usable=0.9
)


def rates(low: float, high: float) -> st.SearchStrategy[float]:
    """Rates in GB/s, rounded so that shrunk examples read well."""
    return st.floats(low, high).map(lambda value: round(value, 3) * 1e9)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    gpu = Gpu(
        "gpu",
        draw(st.floats(100, 2000)) * 1e12,
        draw(st.floats(60, 200)) * 1e9,
        draw(rates(1000, 8000)),
    )
    has_snic = draw(st.booleans())
    return Node(
        name="node",
        gpu=gpu,
        gpus=8,
        cnics=8,
        cnic_bytes_per_s=draw(rates(10, 60)),
        snics=draw(st.integers(1, 3)) if has_snic else 0,
        snic_bytes_per_s=draw(rates(5, 60)) if has_snic else 0.0,
        dram_bytes_per_s=draw(st.none() | rates(100, 900)),
        host_link_bytes_per_s=draw(st.none() | rates(30, 400)),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    return from_moments(
        draw(st.floats(100, 60_000)), draw(st.floats(50, 4000)), draw(st.floats(10, 800))
    )


def loads_of(cluster: Cluster, workload: Workload, cache_share: float = 0.0) -> Loads:
    means = request_means(SMALL_LLM, workload, KvDtype.FP8)
    serving = Serving(KvDtype.FP8, dram_cache_hit_share=cache_share)
    return cluster_loads(cluster, SMALL_LLM, means, serving, Slo(tpot_s=0.1), EFFICIENCIES)


@st.composite
def shared_limits(draw: st.DrawFn) -> dict[str, float | None]:
    return {
        "storage_read_bytes_per_s": draw(st.none() | rates(20, 2000)),
        "storage_write_bytes_per_s": draw(st.none() | rates(20, 2000)),
        "fabric_bytes_per_s": draw(st.none() | rates(50, 5000)),
    }


@st.composite
def homogeneous_loads(draw: st.DrawFn) -> Loads:
    cluster = Cluster(
        prefill=(draw(nodes()),) * draw(st.integers(1, 12)),
        decode=(draw(nodes()),) * draw(st.integers(1, 12)),
        **draw(shared_limits()),
    )
    return loads_of(cluster, draw(workloads()), draw(st.sampled_from([0.0, 0.3])))


@st.composite
def heterogeneous_loads(draw: st.DrawFn) -> Loads:
    cluster = Cluster(
        prefill=tuple(draw(st.lists(nodes(), min_size=1, max_size=4))),
        decode=tuple(draw(st.lists(nodes(), min_size=1, max_size=4))),
        **draw(shared_limits()),
    )
    return loads_of(cluster, draw(workloads()))
