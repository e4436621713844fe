"""GPUs and nodes by name (``nodes.yaml``), from a file, or inline, complete or as a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from dualpath_model.catalog import files, measured
from dualpath_model.catalog.files import Count, CountOrZero, Grade, Source, Spec
from dualpath_model.cluster import Gpu, Measured, Node
from dualpath_model.errors import InputError, unknown_name
from dualpath_model.profile import PartName, Profile, is_profile, load_profile
from dualpath_model.quantities import Bytes, BytesPerSecond, FlopPerSecond

_FILE = "nodes.yaml"


class GpuSpec(Spec):
    """One GPU: dense arithmetic (``fp8`` left out: has none), memory and its bandwidth."""

    bf16: FlopPerSecond
    fp8: FlopPerSecond | None = None
    hbm: Bytes
    hbm_bandwidth: BytesPerSecond
    source: Source = Field(default_factory=list)
    grade: Grade = "given"
    note: str | None = None

    def to_gpu(self, name: str) -> Gpu:
        """Return the GPU under the given name."""
        return Gpu(
            name=name,
            bf16_flop_per_s=self.bf16,
            hbm_bytes=self.hbm,
            hbm_bytes_per_s=self.hbm_bandwidth,
            fp8_flop_per_s=self.fp8,
        )


def _known_gpu(name: str) -> str:
    if name not in files.shipped(_FILE)["gpus"]:
        raise ValueError(str(unknown_name("GPU", name, gpu_names())))
    return name


def _known_node(name: str) -> str:
    if name not in files.shipped(_FILE)["nodes"]:
        raise ValueError(str(unknown_name("node", name, node_names())))
    return name


def _name_or_inline(value: object) -> str:
    return "inline" if isinstance(value, (Mapping, Spec)) else "name"


GpuRef = Annotated[
    Annotated[str, AfterValidator(_known_gpu), Tag("name")] | Annotated[GpuSpec, Tag("inline")],
    Discriminator(_name_or_inline),
]

_REQUIRED = ("gpu", "gpus", "cnics", "cnic")


class NodeSpec(Spec):
    """One node, complete, or with ``base``: that catalog node with the fields given here changed.

    A field set to null is taken away from the base: that capacity is then no limit. ``cnic`` and
    ``snic`` are rates of one NIC, per direction; ``snics`` 0 means that storage traffic shares the
    compute NICs. With ``profile`` (a file of ``dualpath calibrate``) its figures stand instead of the
    base's, but not instead of fields given here; efficiencies are not applied to them.
    """

    base: Annotated[str, AfterValidator(_known_node)] | None = None
    profile: str | None = Field(
        default=None,
        description="file of measured figures; the storage's are of all snics together",
    )
    gpu: GpuRef | None = None
    gpus: Count | None = None
    cnics: Count | None = None
    cnic: BytesPerSecond | None = None
    snics: CountOrZero | None = None
    snic: BytesPerSecond | None = None
    snic_write: BytesPerSecond | None = Field(
        default=None, description="rate of one storage NIC towards storage, where it differs"
    )
    dram: Bytes | None = None
    dram_bandwidth: BytesPerSecond | None = Field(
        default=None, description="host memory bandwidth, reads and writes together"
    )
    host_link: BytesPerSecond | None = Field(
        default=None,
        description="rate between host memory and all compute NICs, where it is less than theirs",
    )
    buffer: Bytes | None = Field(default=None, description="DRAM set aside for KV in transit")
    price_usd_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    price_region: str | None = None
    price_date: str | None = None
    price_source: Source | None = None
    source: Source = Field(default_factory=list)
    grade: Grade = "given"
    field_grades: dict[str, Grade] = Field(
        default_factory=dict, description="grades of single fields that differ from grade"
    )
    note: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.profile is None:  # what a profile brings is known when its file is read
            self._check_complete()
        return self

    def _check_complete(self) -> None:
        merged = self.merged()
        for field in _REQUIRED:
            if getattr(merged, field) is None:
                raise ValueError(f"{field} is required and missing; add it, or name a base")
        if merged.snics and merged.snic is None:
            raise ValueError("snic is required and missing; add the rate of one storage NIC")
        if self.snic is not None and not merged.snics:
            raise ValueError("snics is missing or 0, but snic is given; add snics: 1 or drop snic")
        if merged.dram is not None and merged.buffer is not None and merged.buffer > merged.dram:
            raise ValueError(
                f"buffer {merged.buffer:g} B is more than dram {merged.dram:g} B; correct one"
            )

    def merged(self) -> NodeSpec:
        """Return the spec with its base filled in, and without ``base``."""
        if self.base is None:
            return self
        changed = {name: getattr(self, name) for name in self.model_fields_set - {"base"}}
        return node_entry(self.base).model_copy(update=changed)

    def to_node(self, name: str, base_dir: Path | None = None) -> Node:
        """Return the node under the given name, all in SI units.

        A relative path of a profile starts at ``base_dir``. Raises InputError for a profile that cannot
        be used.
        """
        if self.profile is not None:
            path = files.resolve("profile", self.profile, base_dir, [])
            return self._on_profile(load_profile(path), name, str(path))
        spec = self.merged()
        # _complete has seen to these; the checker cannot know
        assert spec.gpu is not None and spec.gpus is not None
        assert spec.cnics is not None and spec.cnic is not None
        snics = spec.snics or 0
        return Node(
            name=name,
            gpu=load_gpu(spec.gpu) if isinstance(spec.gpu, str) else spec.gpu.to_gpu("inline"),
            gpus=spec.gpus,
            cnics=spec.cnics,
            cnic_bytes_per_s=spec.cnic,
            snics=snics,
            snic_bytes_per_s=spec.snic if snics and spec.snic else 0.0,
            snic_write_bytes_per_s=spec.snic_write if snics else None,
            dram_bytes=spec.dram,
            dram_bytes_per_s=spec.dram_bandwidth,
            host_link_bytes_per_s=spec.host_link,
            buffer_bytes=spec.buffer,
            price_usd_per_hour=spec.price_usd_per_hour,
        )

    def _on_profile(self, profile: Profile, name: str, where: str) -> Node:
        """Return the node with the profile's figures, where no field given here stands instead."""
        given = self.model_fields_set - {"base", "profile"}
        without = {figure for field in given for figure in measured.OVERRIDES.get(field, ())}
        taken = measured.measured_of(profile, without)
        merged = self.merged()
        reads = taken.value("storage_read_bytes_per_s")
        if reads is not None and merged.snics == 0:
            if "snics" not in given:
                raise InputError(
                    f"{where} measures storage on its own, but {self.base} sends storage traffic over "
                    f"its compute NICs; give snics: 1 to use the figure, or snics: 0 not to"
                )
            without |= set(measured.OVERRIDES["snic"])
            taken = measured.measured_of(profile, without)
        found = _missing(merged, taken, profile)
        if self.snics == 0 and self.snic is None:  # the base's storage NICs are taken out
            found["snic"] = None
        if "dram" in given or self.base is not None:  # null: its size is no limit
            found.pop("dram", None)
        filled = merged.model_copy(update={"profile": None, **found})
        for field in _REQUIRED:
            if getattr(filled, field) is None:
                part = PartName.NETWORK if field.startswith("cnic") else PartName.GPU
                raise InputError(
                    f"{where} has no figure for {field} of a node; measure its {part} part and join it "
                    f"with `dualpath calibrate merge`, or write node: {{base: NAME, profile: {where}}}"
                )
        try:
            filled._check_complete()
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        node = replace(filled.to_node(name), measured=taken)
        return measured.with_figures(node, {f.name: f.value for f in taken.figures})


def _missing(spec: NodeSpec, taken: Measured, profile: Profile) -> dict[str, Any]:
    """Return what a profile says of fields that neither base nor file gives."""
    found: dict[str, Any] = {}
    gpu_part = profile.parts.get(PartName.GPU)
    # counts hold for what was measured even where a field given here says another rate
    if gpu_part is not None:
        found["gpus"] = gpu_part.machine.gpus or 1
    if {"network_bytes_per_s", "network_both_ways_bytes_per_s"} & set(profile.figures):
        found["cnics"] = 1
    arithmetic = taken.value("gemm_bf16_flop_per_s")
    memory = taken.value("decode_bytes_per_s") or taken.value("hbm_copy_bytes_per_s")
    if gpu_part is not None and arithmetic is not None and memory is not None:
        machine = gpu_part.machine
        size = machine.gpu_memory_bytes or machine.memory_bytes
        if size is not None:
            found["gpu"] = GpuSpec.model_construct(bf16=arithmetic, hbm=size, hbm_bandwidth=memory)
    cnic = taken.value("network_both_ways_bytes_per_s") or taken.value("network_bytes_per_s")
    if cnic is not None:
        found["cnic"] = cnic
    snic = taken.value("storage_read_bytes_per_s")
    if snic is not None:
        found |= {"snic": snic, "snics": 1}
    for part_name in (PartName.MEMORY, PartName.GPU):  # the node's own, not a storage client's
        part = profile.parts.get(part_name)
        if part is not None and part.machine.memory_bytes is not None:
            found["dram"] = part.machine.memory_bytes
            break
    return {field: value for field, value in found.items() if getattr(spec, field) is None}


NodeRef = Annotated[
    Annotated[str, Tag("name")] | Annotated[NodeSpec, Tag("inline")],
    Discriminator(_name_or_inline),
]
"""For fields of other models: a name or path, or an inline node, with the inline node's own errors
(a plain ``str | NodeSpec`` reports "should be a valid string" for any mistake in the mapping)."""


def gpu_names() -> list[str]:
    """Return the names of the catalog's GPUs, in the order of the file."""
    return list(files.shipped(_FILE)["gpus"])


def node_names() -> list[str]:
    """Return the names of the catalog's nodes, in the order of the file."""
    return list(files.shipped(_FILE)["nodes"])


def gpu_entry(name: str) -> GpuSpec:
    """Return the catalog's entry of a GPU; raises InputError with the nearest names."""
    entries = files.shipped(_FILE)["gpus"]
    if name not in entries:
        raise unknown_name("GPU", name, entries)
    return files.validated(GpuSpec, files.inline(entries[name], f"{_FILE}: {name}"))


def node_entry(name: str) -> NodeSpec:
    """Return the catalog's entry of a node, with sources, grades and price; raises InputError."""
    entries = files.shipped(_FILE)["nodes"]
    if name not in entries:
        raise unknown_name("node", name, entries)
    return files.validated(NodeSpec, files.inline(entries[name], f"{_FILE}: {name}"))


def load_gpu(name: str) -> Gpu:
    """Return a GPU of the catalog; raises InputError with the nearest names."""
    return gpu_entry(name).to_gpu(name)


def load_node(ref: str | Mapping[str, Any] | NodeSpec, base_dir: Path | None = None) -> Node:
    """Return the node that ``ref`` means: a catalog name, a file with one node, or an inline node.

    Files are YAML or JSON in the fields of :class:`NodeSpec`, or profiles of ``dualpath calibrate``;
    relative paths start at ``base_dir``. An inline node is called after its base. Raises InputError,
    one sentence that names file, field, value and remedy.
    """
    if isinstance(ref, NodeSpec):
        return ref.to_node(ref.base or "inline", base_dir)
    if isinstance(ref, Mapping):
        spec = files.validated(NodeSpec, files.inline(ref, "node"))
        return spec.to_node(spec.base or "inline", base_dir)
    if not isinstance(ref, str):
        raise InputError(f"node: {ref!r} is neither a name nor a mapping of fields; give one")
    if ref in files.shipped(_FILE)["nodes"]:
        return node_entry(ref).to_node(ref)
    if not files.looks_like_path(ref):
        raise unknown_name("node", ref, node_names())
    path = files.resolve("node", ref, base_dir, node_names())
    document = files.read(path)
    if is_profile(document.data):
        return NodeSpec(profile=str(path.resolve())).to_node(path.stem)
    return files.validated(NodeSpec, document).to_node(path.stem, path.parent)
