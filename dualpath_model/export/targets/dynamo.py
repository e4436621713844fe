"""Target ``dynamo``: NVIDIA Dynamo's graph, planner, router and KVBM."""

from __future__ import annotations

from dataclasses import replace

from dualpath_model.export.documents import File
from dualpath_model.export.target import (
    Asked,
    Bundle,
    Dropped,
    Step,
    Target,
    no_decode_reads,
    no_qos,
)
from dualpath_model.export.targets import _dynamo_config as config
from dualpath_model.export.targets import _dynamo_graph as graph
from dualpath_model.export.targets._break_even import append_threshold, below_threshold
from dualpath_model.export.targets._dynamo_workers import Worker, workers

FRAMEWORK = "dynamo"
"""Name of the step table in which conditional disaggregation carries the split."""


def build(asked: Asked) -> Bundle:
    """Return Dynamo's files."""
    found = workers(asked.deployment)
    notes: list[str] = []
    files: list[File | None] = []
    planned = _planned(found)
    mounted: list[File] = [config.router(asked)] if asked.since(config.ROUTER_SINCE) else []
    if planned:
        file, said = config.planner(asked, found)
        mounted.append(file)
        by_load, also = config.planner_by_load(asked, found)
        files.append(by_load)
        notes += dict.fromkeys((*said, *also))
    if asked.since(graph.SINCE):
        files += [
            graph.graph_file(asked, found, planned=planned),
            graph.config_file(asked, mounted),
            graph.labels_file(asked, found),
        ]
    else:
        notes.append(
            f"graph.yaml is left out: its nvidia.com/v1beta1 came with version {graph.SINCE}, "
            f"these files are for {asked.version}"
        )
    files += mounted
    if asked.since(config.ROUTER_SINCE):
        files.append(graph.frontend_file(asked))
    else:
        notes.append(
            f"router.yaml is left out: policy classes came with version {config.ROUTER_SINCE}"
        )
    if asked.since(config.CONDITIONAL_SINCE):
        files.append(config.conditional_file(asked))
    else:
        notes.append(
            "conditional-disagg.json is left out: its flags came with version "
            f"{config.CONDITIONAL_SINCE}"
        )
    files += [config.kvbm_file(worker) for worker in found if worker.pool == "prefill"]
    notes += _notes(asked, found, planned)
    made = tuple(file for file in files if file is not None)
    return Bundle(made, tuple(_dropped(asked, found)), tuple(notes))


def _planned(found: tuple[Worker, ...]) -> bool:
    """Tell whether the planner takes the graph: it refuses two components of one role."""
    return len({worker.pool for worker in found}) == len(found)


def _has_graph(asked: Asked) -> bool:
    return asked.since(graph.SINCE)


def _has_planner(asked: Asked) -> bool:
    return _planned(workers(asked.deployment))


def _scales_by_load(asked: Asked) -> bool:
    return (
        _has_planner(asked)
        and config.planner_by_load(asked, workers(asked.deployment))[0] is not None
    )


def _notes(asked: Asked, found: tuple[Worker, ...], planned: bool) -> list[str]:
    notes = []
    if planned:
        notes.append(
            "the planner is pinned to the plan: its least workers are the plan's and its GPUs "
            "are fixed; lower prefill_min_endpoint or decode_min_endpoint to let it move workers "
            "to the other pool"
        )
    else:
        notes.append(
            "no planner: the plan has several kinds of nodes in a pool, and Dynamo's planner "
            "refuses two components of one role (DuplicateSubComponentError); scale by dualpath "
            "replan instead"
        )
    for worker in found:
        count = sum(kind.count for kind in worker.kinds)
        used = worker.replicas * worker.gpus_of_worker
        if worker.nodes > 1 and worker.gpus_of_worker != worker.expert:
            notes.append(
                f"{worker.name}: experts are spread over {worker.gpus_of_worker} GPUs, not the "
                f"plan's {worker.expert}, which {count} nodes do not divide into"
            )
        if worker.pool == "prefill" and worker.buffer_bytes is None:
            notes.append(
                f"{worker.name}: DYN_KVBM_CPU_CACHE_GB is left out: its nodes have no buffer in "
                "the plan"
            )
        if (
            worker.pool == "prefill"
            and worker.buffer_bytes is not None
            and worker.data_parallel > 1
        ):
            notes.append(
                f"{worker.name}: each of the {worker.data_parallel} data-parallel engines of a "
                f"worker has a KVBM leader, and so {worker.buffer_bytes / 1e9:g} GB, of its own; "
                "check their number in the log, as no parser can"
            )
        assert used == count * worker.kinds[0].gpus
    if asked.since(config.CONDITIONAL_SINCE):
        threshold = append_threshold(asked.deployment)
        notes.append(
            f"conditional disaggregation: {below_threshold(asked.deployment, threshold.value)}; "
            "they are prefilled on the decode engine if it still holds their hits"
        )
    notes.append(
        "cached_token_queue_limit_per_worker is not alpha and is left out: above it the router "
        "refuses requests (HTTP 503 or 529), where alpha only prefers nodes with a shorter read "
        "queue"
    )
    return notes


def _dropped(asked: Asked, found: tuple[Worker, ...]) -> list[Dropped]:
    plan, deployment = asked.plan, asked.deployment
    dropped = []
    if deployment.framework == FRAMEWORK and asked.since(config.CONDITIONAL_SINCE):
        threshold = append_threshold(deployment).value
        dropped.append(
            Dropped(
                what=f"split x = {plan.split:.3f} as a number",
                why="the router decides by a threshold: a turn with a shorter append is "
                "prefilled, and so read, on the decode side",
                effect=f"{below_threshold(deployment, threshold)}; compare with x after a day and "
                "move the threshold if the storage NICs differ",
            )
        )
    else:
        entry = no_decode_reads(
            plan,
            "conditional disaggregation moves the whole prefill to the decode engine, not the "
            "reading of its hits",
        )
        if asked.since(config.CONDITIONAL_SINCE):
            more = (
                "; turns whose append is short are prefilled, and read, on decode nodes, which "
                "these files switch on and the figure does not count: `framework: dynamo` in the "
                "scenario does"
            )
            entry = replace(entry, effect=entry.effect + more)
        dropped.append(entry)
    alpha = plan.scheduler_parameters.alpha_tokens
    dropped.append(
        Dropped(
            what=f"alpha = {alpha:.0f} tokens: prefer nodes with a short read queue",
            why="the router does not see the storage NICs' queues",
            effect=f"a node may have more than {deployment.alpha_s:g} s of reads waiting while "
            "another is idle; its turns wait that much longer for their first token",
        )
    )
    dropped += [_storage(asked, found), no_qos(plan)]
    rates = {kind.prefill_tokens_per_s for kind in deployment.pool("prefill")}
    if len(rates) > 1:
        dropped.append(
            Dropped(
                what="beta of each kind of prefill node",
                why="the router has one prefill_busy_threshold for all workers",
                effect="the slowest kind's is used; the fastest waits at "
                f"{min(rates) / max(rates):.0%} of its own",
            )
        )
    decode = [worker.buffer_bytes for worker in found if worker.pool == "decode"]
    if any(size is not None for size in decode):
        dropped.append(
            Dropped(
                what="DRAM buffers of the decode nodes",
                why="PdConnector is KVBM's connector for prefill workers; decode workers take "
                "NIXL alone",
                effect="KV-cache goes straight to the decode engine's HBM; the decode nodes' "
                "buffers stay unused",
            )
        )
    return dropped


def _storage(asked: Asked, found: tuple[Worker, ...]) -> Dropped:
    deployment = asked.deployment
    hits = deployment.workload.hit_tokens.mean
    sizes = [w.buffer_bytes for w in found if w.pool == "prefill" and w.buffer_bytes is not None]
    if sizes and hits > 0:
        turns = min(sizes) / (hits * deployment.llm.kv_bytes_per_token)
        effect = (
            f"an engine's KVBM holds the hits of {turns:.1f} mean turns in DRAM; what it has "
            "dropped, or another worker has, is computed again"
        )
    else:
        effect = "hits that are not in the HBM of the worker that gets the turn are computed again"
    return Dropped(
        what=f"shared storage of KV-cache ({hits:.0f} hit tokens of a mean turn are read from it)",
        why="KVBM's tiers are of one worker: DRAM and a local disk; the plan does not size the "
        "disk, so DYN_KVBM_DISK_CACHE_GB is not written",
        effect=effect,
    )


TARGET = Target(
    name="dynamo",
    software="NVIDIA Dynamo",
    about="Operator's graph, planner, router policy, conditional disaggregation and KVBM.",
    versions=("1.2.1", "1.3.1", "1.4.0", "1.5.0", "1.6.1"),
    expresses=(
        "counts of prefill and decode workers, tensor and expert parallelism",
        "SLO and pinned GPU total (planner)",
        "beta (router, planner by load), Z (planner by load)",
        "append break-even (conditional disaggregation)",
        "quota as tokens of a batch; DRAM buffer of prefill nodes (KVBM)",
    ),
    cannot=(
        "split x",
        "alpha",
        "shared storage of KV-cache, buffers of decode nodes",
        "QoS weights (target opensm or roce)",
    ),
    parser="the wheels' KvRouterArgGroup, Rust KvRouterConfig and PlannerConfig (its ignored "
    "unknown keys compared with its schema); for the graph our list of the Go type's keys, and "
    "kubernetes-validate --strict for each Pod: the operator's resource definition is in no "
    "package",
    apply=(
        Step(
            "Run label-nodes.sh.",
            when=lambda asked: (
                _has_graph(asked)
                and graph.labels_file(asked, workers(asked.deployment)) is not None
            ),
        ),
        Step(
            "`kubectl apply -f config.yaml -f graph.yaml`; the operator starts frontend, planner "
            "and workers.",
            when=_has_graph,
        ),
        Step(
            "Take the settings into your own graph: this version's operator reads another form "
            "than these files have.",
            when=lambda asked: not _has_graph(asked),
        ),
        Step(
            "Without Kubernetes: source kvbm-*.env on the prefill workers.",
            when=lambda asked: any(k.buffer_bytes for k in asked.deployment.pool("prefill")),
        ),
        Step(
            "Without Kubernetes: start the router with frontend.sh.",
            when=lambda asked: asked.since(config.ROUTER_SINCE),
        ),
        Step(
            "To scale by beta and Z instead of the SLO, give the planner what planner-load.yaml has, in "
            "the place of planner.yaml.",
            when=_scales_by_load,
        ),
    ),
    check=(
        Step(
            "`kubectl get dgd -n NAMESPACE`: Ready is True; `kubectl get pods` shows the plan's counts.",
            when=_has_graph,
        ),
        "The frontend logs `KvRouterConfig initialized` with the thresholds.",
        Step("The planner logs its GPU counts.", when=_has_planner),
        Step(
            "A prefill worker logs KVBM's host blocks: blocks x bytes of a block = the buffer.",
            when=lambda asked: any(k.buffer_bytes for k in asked.deployment.pool("prefill")),
        ),
    ),
    roll_back=(
        Step("`kubectl apply -f` the config.yaml and graph.yaml of before.", when=_has_graph),
        Step(
            "Give your own graph the settings of before.", when=lambda asked: not _has_graph(asked)
        ),
        "`kubectl delete pod` of frontend and planner: they read their settings at start only.",
    ),
    build=build,
)
