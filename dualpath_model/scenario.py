"""A scenario: the cluster, the LLM, the workload and the promise to users. YAML in, frozen objects out.

:class:`ScenarioSpec` is the file as people write it (quantities with units, names of catalog entries);
:func:`resolve` turns it into a :class:`Scenario`, in which every name is looked up and everything is SI.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dualpath_model import yaml_lines
from dualpath_model.catalog.efficiencies import default_efficiencies
from dualpath_model.catalog.files import looks_like_path, shipped
from dualpath_model.catalog.llms import load_llm, parse_llm
from dualpath_model.catalog.nodes import NodeSpec, load_node
from dualpath_model.cluster import Cluster, Efficiencies, Node
from dualpath_model.errors import InfeasibleError, InputError, unknown_name
from dualpath_model.frameworks import FRAMEWORKS, table_named
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.loads import (
    Loads,
    Parallelism,
    RequestMeans,
    Serving,
    Slo,
    cluster_loads,
    request_means,
)
from dualpath_model.parameters import SchedulerRules
from dualpath_model.paths import Payload, Phase, Pool, Resource, StepTable
from dualpath_model.quantities import Bytes, BytesPerSecond, Seconds
from dualpath_model.workload import Workload, from_moments, scaled
from dualpath_model.yaml_lines import Document

MOST_NODES = 100_000  # of a pool
MOST_GROUPS = 300  # of a pool; so many that differ are planned in seconds
MOST_CLASSES = 100
MOST_SEED = 2**63 - 1  # what JSON readers and NumPy take


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _one_line(text: str) -> str:
    if not text.strip() or any(ord(letter) < 32 for letter in text):
        raise ValueError(f"{text!r} must be one line of text without control characters")
    return text


def _known_framework(name: str) -> str:
    try:
        return table_named(name).name
    except InputError as error:
        raise ValueError(str(error)) from None


Framework = Annotated[
    str, AfterValidator(_known_framework), Field(json_schema_extra={"enum": list(FRAMEWORKS)})
]
Name = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Efficiency = Annotated[float, Field(ge=1e-4, le=1.0, strict=True)]
Count = Annotated[int, Field(ge=1, le=MOST_NODES, strict=True)]
PositiveTokens = Annotated[float, Field(gt=0.0, le=1e9, strict=True)]
TokenCount = Annotated[float, Field(ge=0.0, le=1e9, strict=True)]


class NodeGroupSpec(_Spec):
    """Nodes that are alike. ``node``: catalog name, path of a node or profile file, or inline."""

    node: str | NodeSpec
    count: Count = 1
    zone: Annotated[int, Field(ge=0, le=MOST_NODES, strict=True)] = Field(
        default=0,
        description="with locality, decode nodes read for prefill nodes of their zone only",
    )


class StorageSpec(_Spec):
    """The storage service as a whole; leave out what does not limit."""

    read: BytesPerSecond | None = None
    write: BytesPerSecond | None = None


NodeGroups = Annotated[list[NodeGroupSpec], Field(min_length=1, max_length=MOST_GROUPS)]


class ClusterSpec(_Spec):
    """Two pools, each one group or a list of groups, and what they share."""

    prefill: NodeGroupSpec | NodeGroups
    decode: NodeGroupSpec | NodeGroups
    storage: StorageSpec = StorageSpec()
    fabric: BytesPerSecond | None = Field(
        default=None, description="compute network between the pools, per direction"
    )

    @field_validator("prefill", "decode")
    @classmethod
    def _few_enough(
        cls, pool: NodeGroupSpec | list[NodeGroupSpec]
    ) -> NodeGroupSpec | list[NodeGroupSpec]:
        """Bound the pool as a whole, before a node of it is built."""
        nodes = sum(group.count for group in pool) if isinstance(pool, list) else pool.count
        if nodes > MOST_NODES:
            raise ValueError(
                f"the groups have {nodes:,} nodes together; at most {MOST_NODES:,} are allowed, "
                f"so lower their counts"
            )
        return pool


class ParallelismSpec(_Spec):
    """GPUs over which one copy of the LLM is split. ``expert`` left out: as few nodes as hold it."""

    tensor: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    expert: Annotated[int, Field(ge=0, le=8192, strict=True)] = 0


class PoolsParallelismSpec(_Spec):
    """Parallelism of each pool."""

    prefill: ParallelismSpec = ParallelismSpec()
    decode: ParallelismSpec = ParallelismSpec()


class SyntheticSpecModel(_Spec):
    """The seeded generator. ``row`` takes the means of the paper's Table 2; fields override it."""

    row: Literal["32K", "48K", "64K"] = "64K"
    sessions: Annotated[int, Field(ge=1, le=200_000, strict=True)] = 500
    seed: Annotated[int, Field(ge=0, le=MOST_SEED, strict=True)] = 0
    turns: Annotated[float, Field(ge=2.0, le=100_000, strict=True)] | None = None
    append_tokens: PositiveTokens | None = None
    generate_tokens: PositiveTokens | None = None
    total_tokens: PositiveTokens | None = None
    context_tokens: PositiveTokens | None = None


class TraceSpec(_Spec):
    """Recorded sessions: a file or folder in any format that ``dualpath trace stats`` reads."""

    path: str
    scope: Literal["session", "global"] | None = None
    max_bytes: Bytes | None = Field(default=None, description="largest inflated size of one file")


class MomentsSpec(_Spec):
    """One turn that stands for all: either hit and miss tokens, or context and append."""

    hit_tokens: TokenCount | None = None
    miss_tokens: TokenCount | None = None
    prompt_tokens: PositiveTokens | None = None
    output_tokens: TokenCount

    @model_validator(mode="after")
    def _two_of_three(self) -> MomentsSpec:
        given = [self.hit_tokens, self.miss_tokens, self.prompt_tokens]
        if sum(value is not None for value in given) != 2:
            raise ValueError("give exactly two of hit_tokens, miss_tokens and prompt_tokens")
        if (
            self.hit_tokens is not None
            and self.prompt_tokens is not None
            and self.hit_tokens > self.prompt_tokens
        ):
            raise ValueError(
                f"hit_tokens {self.hit_tokens:g} is more than prompt_tokens {self.prompt_tokens:g}; "
                f"hits are a part of the prompt"
            )
        return self


Factor = Annotated[float, Field(ge=0.0, le=1e6, strict=True)]


class ScaleSpec(_Spec):
    """What if contexts were shorter, or more of them hit? Factors on every turn of the source."""

    context: Factor = Field(default=1.0, description="on the hit tokens")
    append: Factor = Field(default=1.0, description="on the miss tokens")
    generate: Factor = Field(default=1.0, description="on the output tokens")
    hit_rate: Annotated[float, Field(ge=0.0, lt=1.0, strict=True)] | None = Field(
        default=None, description="of all turns together, at the same prompts; after the factors"
    )


class WorkloadSpec(_Spec):
    """Exactly one source of sessions, and how their turns are scaled."""

    synthetic: SyntheticSpecModel | None = None
    trace: TraceSpec | str | None = None
    moments: MomentsSpec | None = None
    scale: ScaleSpec | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> WorkloadSpec:
        if sum(part is not None for part in (self.synthetic, self.trace, self.moments)) != 1:
            raise ValueError("give exactly one of synthetic, trace and moments")
        return self


class ClassSpec(_Spec):
    """One kind of traffic among several: a share of what can grow, or a rate that must be served."""

    name: Name
    workload: WorkloadSpec
    share: Annotated[float, Field(gt=0.0, le=1.0, strict=True)] | None = None
    requests_per_s: Annotated[float, Field(gt=0.0, le=1e12, strict=True)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ClassSpec:
        if (self.share is None) == (self.requests_per_s is None):
            raise ValueError("give either share or requests_per_s, not both or neither")
        return self


class SloSpec(_Spec):
    """Latency promise (defaults: the paper's)."""

    ttft: Seconds = 4.0
    tpot: Seconds = 0.05


class EfficienciesSpec(_Spec):
    """Shares of the data-sheet rates; left out: catalog/efficiencies.yaml, with meaning and source."""

    snic: Efficiency | None = None
    cnic: Efficiency | None = None
    dram: Efficiency | None = None
    hbm: Efficiency | None = None
    prefill_mfu: Efficiency | None = None
    decode_mfu: Efficiency | None = None
    hbm_usable: Efficiency | None = None


class TrafficSpec(_Spec):
    """Which traffic counts. The paper's analysis is ``{miss: false, write_back: false}``."""

    miss: bool = True
    hand_off: bool = True
    decode_start: bool = True
    write_back: bool = True


class DramCacheSpec(_Spec):
    """Hits answered from the prefill nodes' DRAM without a storage read."""

    hit_share: Fraction = 0.0


class SchedulerSpec(_Spec):
    """The paper's scheduler constants (section 6.1)."""

    alpha: Seconds = 3.0
    beta: Seconds = 5.0
    quota: Seconds = 0.3
    z_factor: Annotated[float, Field(ge=1.0, le=10.0, strict=True)] = 1.05
    block_tokens: Annotated[int, Field(ge=1, le=65536, strict=True)] = 64


ResourceName = Literal[
    "snic", "cnic", "dram", "host_link", "hbm", "hbm_space", "gpu", "fabric", "storage"
]


class ScenarioSpec(_Spec):
    """A scenario file."""

    name: Name
    description: str = ""
    llm: str | dict[str, Any]
    kv_dtype: Literal["bf16", "fp8", "fp8_ds_mla"] | None = None
    framework: Framework = Field(
        default="paper", description="whose paths serve the requests: the step table of the model"
    )
    cluster: str | ClusterSpec
    parallelism: PoolsParallelismSpec = PoolsParallelismSpec()
    workload: WorkloadSpec | None = None
    classes: Annotated[list[ClassSpec], Field(max_length=MOST_CLASSES)] | None = Field(
        default=None, description="several kinds of traffic, instead of one workload"
    )
    locality: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="a decode node reads only for prefill nodes of its own zone"
    )
    slo: SloSpec = SloSpec()
    efficiencies: EfficienciesSpec = EfficienciesSpec()
    traffic: TrafficSpec = TrafficSpec()
    dram_cache: DramCacheSpec = DramCacheSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    limits: Annotated[list[ResourceName], Field(min_length=1)] | None = Field(
        default=None, description="resources that can run out; left out: all that are known"
    )

    @model_validator(mode="after")
    def _one_source_of_traffic(self) -> ScenarioSpec:
        if (self.workload is None) == (not self.classes):
            raise ValueError("give either workload or classes, one of which is needed")
        names = Counter(part.name for part in self.classes or [])
        twice = next((name for name, times in names.items() if times > 1), None)
        if twice is not None:
            raise ValueError(f"class '{twice}' is given twice; give each class a name of its own")
        return self


@dataclass(frozen=True)
class WorkloadClass:
    """One kind of traffic: ``share`` of what can grow, or ``rate`` in requests/s."""

    name: str
    workload: Workload
    share: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Scenario:
    """A resolved scenario: everything looked up, in SI.

    ``classes`` has one entry, with share 1, where the file has a workload. ``zones`` are those of the
    prefill and of the decode nodes, None without locality.
    """

    name: str
    description: str
    llm: Llm
    cluster: Cluster
    classes: tuple[WorkloadClass, ...]
    serving: Serving
    slo: Slo
    efficiencies: Efficiencies
    rules: SchedulerRules
    limits: frozenset[Resource]
    zones: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    traffic: TrafficSpec = field(default_factory=TrafficSpec)
    """Which steps of a framework's table count; ``serving.table`` has these alone."""

    @property
    def workload(self) -> Workload:
        """The workload, the first of several."""
        return self.classes[0].workload

    @property
    def means(self) -> RequestMeans:
        """Means per request of the workload, the first of several."""
        return self.class_means[0]

    @cached_property
    def class_means(self) -> tuple[RequestMeans, ...]:
        """Means per request of each class; computed once, and kept by :meth:`on`."""
        return tuple(
            request_means(self.llm, c.workload, self.serving.kv_dtype) for c in self.classes
        )

    def loads(self) -> Loads:
        """Return the loads of the workload (the first of several). Raises InfeasibleError."""
        return self._loads_of(self.means)

    def class_loads(self) -> tuple[Loads, ...]:
        """Return the loads of each class. Raises InfeasibleError naming the class if one cannot run."""
        found = []
        for traffic, means in zip(self.classes, self.class_means, strict=True):
            try:
                found.append(self._loads_of(means))
            except InfeasibleError as error:
                if len(self.classes) == 1:
                    raise
                raise InfeasibleError(f"class '{traffic.name}': {error}") from None
        return tuple(found)

    def _loads_of(self, means: RequestMeans) -> Loads:
        return cluster_loads(
            self.cluster,
            self.llm,
            means,
            self.serving,
            self.slo,
            self.efficiencies,
            self.limits,
        )

    def on(self, cluster: Cluster) -> Scenario:
        """Return the same scenario on another cluster; zones stay while the node counts do."""
        same = (len(cluster.prefill), len(cluster.decode)) == (
            len(self.cluster.prefill),
            len(self.cluster.decode),
        )
        other = replace(self, cluster=cluster, zones=self.zones if same else None)
        # the cached value does not depend on the cluster
        other.__dict__["class_means"] = self.class_means
        return other

    def under(self, framework: str) -> Scenario:
        """Return the same scenario served by another framework, by name; its ``traffic`` counts.

        Raises InputError for an unknown name.
        """
        table = _table(table_named(framework), self.traffic)
        other = replace(self, serving=replace(self.serving, table=table))
        other.__dict__["class_means"] = self.class_means  # they do not depend on the table
        return other

    def with_nodes(self, prefill: int, decode: int) -> Scenario:
        """Return the scenario with so many nodes a pool; the commonest kind is added or removed.

        Raises InputError if a count is below 1.
        """
        cluster = replace(
            self.cluster,
            prefill=_resize(self.cluster.prefill, prefill, "prefill"),
            decode=_resize(self.cluster.decode, decode, "decode"),
        )
        return self.on(cluster)

    def with_each_node(self, pool: Pool, change: Callable[[Node], Node]) -> Scenario:
        """Return the scenario with ``change`` applied to every node of a pool."""
        nodes = tuple(change(node) for node in self.cluster.nodes(pool))
        if pool is Pool.PREFILL:
            return self.on(replace(self.cluster, prefill=nodes))
        return self.on(replace(self.cluster, decode=nodes))


def _resize(nodes: tuple[Node, ...], count: int, pool: str) -> tuple[Node, ...]:
    if count < 1:
        raise InputError(f"{pool} nodes: {count} is not allowed; at least 1 is needed")
    resized = list(nodes)
    while len(resized) > count:
        commonest = Counter(resized).most_common(1)[0][0]
        last = len(resized) - 1 - resized[::-1].index(commonest)
        resized.pop(last)
    commonest = Counter(resized).most_common(1)[0][0]
    return tuple(resized + [commonest] * (count - len(resized)))


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario file. Paths inside it are relative to its folder.

    Raises InputError with file, line, field, value and remedy.
    """
    document = yaml_lines.read(Path(path))
    return resolve(parse_spec(document), Path(path).parent, document)


def parse_spec(document: Document) -> ScenarioSpec:
    """Validate a parsed file. Raises InputError for its first mistake."""
    try:
        return ScenarioSpec.model_validate(document.data)
    except ValidationError as error:
        raise yaml_lines.explain(error, document, ScenarioSpec) from None


ReadWorkload = Callable[["WorkloadSpec", Path, int], Workload]
"""Reads a source of sessions: its spec, the folder of relative paths, tokens in a block."""


def resolve(
    spec: ScenarioSpec,
    base_dir: Path,
    document: Document | None = None,
    *,
    read: ReadWorkload | None = None,
) -> Scenario:
    """Look up everything that ``spec`` names; ``document`` gives the lines for messages.

    ``read``: instead of :func:`read_workload`, such as one that remembers what it has read.
    """
    read = read or read_workload

    def at(*location: str | int) -> _Place:
        return _Place(document, location)

    with at("llm"):
        llm = load_llm(spec.llm, base_dir) if isinstance(spec.llm, str) else parse_llm(spec.llm)
    kv_dtype = KvDtype(spec.kv_dtype) if spec.kv_dtype else llm.default_kv_dtype
    with at("kv_dtype"):
        llm.kv_bytes_per_token(kv_dtype)
    with at("cluster"):
        cluster_spec, cluster_dir, cluster_at = _cluster_spec(spec.cluster, base_dir, at)
    cluster, zones = _resolve_cluster(cluster_spec, cluster_dir, cluster_at)
    defaults = default_efficiencies()
    given = spec.efficiencies.model_dump(exclude_none=True)
    block_tokens = spec.scheduler.block_tokens
    classes: list[WorkloadClass] = []
    if spec.workload is not None:
        with at("workload"):
            workload = _scaled(spec.workload, base_dir, block_tokens, read)
        classes.append(WorkloadClass("all", workload, share=1.0))
    for index, part in enumerate(spec.classes or []):
        with at("classes", index, "workload"):
            workload = _scaled(part.workload, base_dir, block_tokens, read)
        classes.append(WorkloadClass(part.name, workload, part.share, part.requests_per_s))
    for pool in (Pool.PREFILL, Pool.DECODE):
        parallel = getattr(spec.parallelism, pool.value)
        with at("parallelism", pool.value, "tensor"):
            _check_tensor(parallel.tensor, cluster.nodes(pool), llm)
        with at("parallelism", pool.value, "expert"):
            _check_expert(parallel.expert, cluster.nodes(pool), llm)
    return Scenario(
        name=spec.name,
        description=spec.description,
        llm=llm,
        cluster=cluster,
        classes=tuple(classes),
        serving=Serving(
            kv_dtype=kv_dtype,
            prefill=Parallelism(**spec.parallelism.prefill.model_dump()),
            decode=Parallelism(**spec.parallelism.decode.model_dump()),
            table=_table(table_named(spec.framework), spec.traffic),
            dram_cache_hit_share=spec.dram_cache.hit_share,
        ),
        slo=Slo(spec.slo.ttft, spec.slo.tpot),
        efficiencies=replace(defaults, **given),
        rules=SchedulerRules(
            spec.scheduler.alpha,
            spec.scheduler.beta,
            spec.scheduler.quota,
            spec.scheduler.z_factor,
            spec.scheduler.block_tokens,
        ),
        limits=frozenset(map(Resource, spec.limits)) if spec.limits else frozenset(Resource),
        zones=zones if spec.locality else None,
        traffic=spec.traffic,
    )


def _check_tensor(tensor: int, nodes: tuple[Node, ...], llm: Llm) -> None:
    for node in nodes:
        if tensor > node.gpus or node.gpus % tensor:
            raise InputError(
                f"{tensor} does not divide the {node.gpus} GPUs of {node.name}; a tensor-parallel group "
                f"stays inside one node, so give a divisor of {node.gpus}"
            )
    if llm.attention.heads % tensor:
        raise InputError(
            f"{tensor} does not divide the {llm.attention.heads} heads of {llm.name}; give a divisor"
        )


def _check_expert(expert: int, nodes: tuple[Node, ...], llm: Llm) -> None:
    gpus = sum(node.gpus for node in nodes)
    if expert > gpus:
        raise InputError(
            f"{expert} is more than the {gpus} GPUs of the pool; give at most {gpus}, or leave it out"
        )
    if expert and not llm.ffn.experts:
        raise InputError(f"{expert} is given, but {llm.name} has no experts; leave it out")


class _Place:
    """Put file and line in front of an InputError that a look-up raises."""

    def __init__(self, document: Document | None, location: tuple[str | int, ...]) -> None:
        self._document, self._location = document, location

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, InputError) or self._document is None:
            return
        location = self._location
        while location and location not in self._document.lines:
            location = location[:-1]
        line = self._document.lines.get(location, 1)
        field = ".".join(map(str, self._location))
        raise InputError(f"{self._document.file}:{line}: {field}: {error}") from None


def _cluster_spec(
    given: str | ClusterSpec, base_dir: Path, at: Callable[..., _Place]
) -> tuple[ClusterSpec, Path, Callable[..., _Place]]:
    """Return the cluster's spec: inline, of the catalog, or from a file that holds just a cluster."""
    if isinstance(given, ClusterSpec):
        return given, base_dir, at
    names = [name for name in shipped("clusters.yaml") if not name.startswith("_")]
    if given in names:
        return ClusterSpec.model_validate(shipped("clusters.yaml")[given]), base_dir, at
    if not looks_like_path(given):
        raise unknown_name("cluster", given, names)
    path = base_dir / given
    document = yaml_lines.read(path)
    try:
        spec = ClusterSpec.model_validate(document.data)
    except ValidationError as error:
        raise yaml_lines.explain(error, document, ClusterSpec) from None
    return spec, path.parent, lambda *location: _Place(document, location[1:])


_Zones = tuple[tuple[int, ...], tuple[int, ...]]


def _resolve_cluster(
    spec: ClusterSpec, base_dir: Path, at: Callable[..., _Place]
) -> tuple[Cluster, _Zones]:
    pools: dict[str, tuple[Node, ...]] = {}
    zones: dict[str, tuple[int, ...]] = {}
    for pool in ("prefill", "decode"):
        given = getattr(spec, pool)
        groups = given if isinstance(given, list) else [given]
        nodes: list[Node] = []
        zone: list[int] = []
        for index, group in enumerate(groups):
            place = (pool, index) if isinstance(given, list) else (pool,)
            with at("cluster", *place, "node"):
                if isinstance(group.node, str):
                    node = load_node(group.node, base_dir)
                else:
                    base = group.node.base
                    node = group.node.to_node(
                        f"{base} (changed)" if base else f"{pool} group {index + 1}", base_dir
                    )
            nodes += [node] * group.count
            zone += [group.zone] * group.count
        pools[pool], zones[pool] = tuple(nodes), tuple(zone)
    cluster = Cluster(
        prefill=pools["prefill"],
        decode=pools["decode"],
        storage_read_bytes_per_s=spec.storage.read,
        storage_write_bytes_per_s=spec.storage.write,
        fabric_bytes_per_s=spec.fabric,
    )
    return cluster, (zones["prefill"], zones["decode"])


def _scaled(spec: WorkloadSpec, base_dir: Path, block_tokens: int, read: ReadWorkload) -> Workload:
    if spec.scale is None:
        return read(spec, base_dir, block_tokens)
    source = read(spec.model_copy(update={"scale": None}), base_dir, block_tokens)
    return scaled(source, **spec.scale.model_dump())


def read_workload(spec: WorkloadSpec, base_dir: Path, block_tokens: int) -> Workload:
    """Read or generate the sessions of ``spec``, not scaled. Raises InputError."""
    if spec.moments is not None:
        given = spec.moments
        prompt, hit, miss = given.prompt_tokens, given.hit_tokens, given.miss_tokens
        if hit is None:
            hit = (prompt or 0.0) - (miss or 0.0)
        if miss is None:
            miss = (prompt or 0.0) - hit
        return from_moments(hit, miss, given.output_tokens)
    if spec.trace is not None:
        from dualpath_model.traces import load_workload

        trace = TraceSpec(path=spec.trace) if isinstance(spec.trace, str) else spec.trace
        extra = {} if trace.max_bytes is None else {"max_inflated_bytes": int(trace.max_bytes)}
        return load_workload(base_dir / trace.path, scope=trace.scope, **extra)
    assert spec.synthetic is not None
    from dualpath_model.traces.synthetic import TABLE_2, generate

    given_means = spec.synthetic.model_dump(exclude_none=True, exclude={"row"})
    return generate(replace(TABLE_2[spec.synthetic.row], block_tokens=block_tokens, **given_means))


def _table(whole: StepTable, traffic: TrafficSpec) -> StepTable:
    """Return the steps of a framework's table that count."""
    phases = {Phase.READ, Phase.LOAD}
    if traffic.hand_off:
        phases.add(Phase.HAND_OFF)
    if traffic.decode_start:
        phases.add(Phase.DECODE_START)
    if traffic.write_back:
        phases.add(Phase.WRITE_BACK)
    table = whole.where(lambda step: step.phase in phases)
    if traffic.miss:
        return table
    return table.carrying(Payload.HIT, Payload.APPENDED, Payload.GENERATED)
