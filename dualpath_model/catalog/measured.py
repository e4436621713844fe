"""From a profile's figures to a node: which figure replaces which of a node's numbers.

A measured rate is what the resource delivers, so no efficiency is applied to it: the node gets shares
of its own (1, or measured FLOP/s over the matrix products' rate). :func:`with_figures` serves both the
node as measured and the nodes that uncertainty draws.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from dualpath_model.cluster import Measured, MeasuredAttention, MeasuredFigure, Node
from dualpath_model.profile import PartName, Profile

OVERRIDES: dict[str, tuple[str, ...]] = {
    "gpu": (
        "gemm_bf16_flop_per_s",
        "gemm_fp8_flop_per_s",
        "hbm_copy_bytes_per_s",
        "decode_bytes_per_s",
        "prefill_flop_per_s",
        "attention_flop_per_s",
        "prefill_layer_s",
        "decode_flop_per_s",
        "decode_layer_s",
    ),
    "dram_bandwidth": ("dram_bytes_per_s",),
    "snic": ("storage_read_bytes_per_s", "storage_write_bytes_per_s"),
    "snic_write": ("storage_write_bytes_per_s",),
    "cnic": ("network_bytes_per_s", "network_both_ways_bytes_per_s"),
}
"""Fields of a node's file that, where a person gives them, stand instead of these figures."""

TAKEN = tuple(dict.fromkeys(name for names in OVERRIDES.values() for name in names))
"""The figures that a model takes."""

_BETTER = {
    "hbm_copy_bytes_per_s": "decode_bytes_per_s",
    "network_bytes_per_s": "network_both_ways_bytes_per_s",
}
"""Figures that are not used where another one is there. Decoding is what reads HBM, and dual-path
loading keeps both directions of the compute network busy."""

_NEEDS = {
    "storage_write_bytes_per_s": "storage_read_bytes_per_s",
    "attention_flop_per_s": "prefill_flop_per_s",
}
"""Figures that are not used without another one: a storage NIC has one share for both directions, so
it is measured both ways or not at all (reads alone count for both); attention's speed is told in
multiples of the other products'."""


def measured_of(profile: Profile, without: Collection[str]) -> Measured:
    """Return what a node takes from ``profile``, but not the figures that ``without`` names."""
    found = {name: figure for name, figure in profile.figures.items() if name not in without}
    gpu = None if set(OVERRIDES["gpu"]) <= set(without) else profile.parts.get(PartName.GPU)
    figures = tuple(
        MeasuredFigure(name, found[name].value, found[name].low, found[name].high)
        for name in TAKEN
        if name in found and _BETTER.get(name) not in found and _NEEDS.get(name, name) in found
    )
    return Measured(
        profile=profile.name,
        llm=str(gpu.settings.get("llm", "")) if gpu is not None else "",
        figures=figures,
        attention=tuple(
            MeasuredAttention(fit.llm, fit.tensor, tuple(fit.coefficients.items()))
            for fit in (gpu.attention if gpu is not None else [])
        ),
        remarks=tuple(_remarks(profile, figures, without)),
    )


_EFFICIENCIES = {
    "prefill_mfu": (PartName.GPU, ("prefill_flop_per_s",)),
    "decode_mfu": (PartName.GPU, ("decode_flop_per_s",)),
    "hbm": (PartName.GPU, ("decode_bytes_per_s", "hbm_copy_bytes_per_s")),
    "dram": (PartName.MEMORY, ("dram_bytes_per_s",)),
    "snic": (PartName.STORAGE, ("storage_read_bytes_per_s",)),
    "cnic": (PartName.NETWORK, ("network_both_ways_bytes_per_s", "network_bytes_per_s")),
}
"""Which figures, any of them, make an efficiency of no account; and the part that should have them."""


def _remarks(
    profile: Profile, figures: tuple[MeasuredFigure, ...], without: Collection[str]
) -> Iterator[str]:
    taken = {figure.name for figure in figures}
    left = [
        name
        for name, (part, instead) in _EFFICIENCIES.items()
        if part in profile.parts and not taken & set(instead) and not set(instead) <= set(without)
    ]
    if left:
        yield (
            f"has no figure for {', '.join(left)}: the scenario's efficiencies stand there, which are "
            f"in no interval"
        )
    single = [figure.name for figure in figures if figure.low == figure.high]
    if single:
        yield f"does not know how sure {', '.join(single)} are: they count as exact"
    network = profile.parts.get(PartName.NETWORK)
    if (
        network is not None
        and network.settings.get("peer") == "loopback"
        and taken & set(_EFFICIENCIES["cnic"][1])
    ):
        yield (
            "measured its network over loopback: the compute NICs' rate is of this machine's memory "
            "and kernel"
        )
    storage = profile.parts.get(PartName.STORAGE)
    in_memory = storage is not None and storage.settings.get("file_system") in ("tmpfs", "ramfs")
    if in_memory and taken & set(_EFFICIENCIES["snic"][1]):
        yield "measured its storage in memory (tmpfs): no disk and no NIC was in it"


def with_figures(node: Node, values: Mapping[str, float]) -> Node:
    """Return ``node`` with figures in place of its own numbers; ``values`` by name of the figure.

    Storage figures are those of the whole node, the network's of one compute NIC.
    """
    for name in TAKEN:  # in this order: shares of arithmetic divide by the matrix products' rate
        if name in values and name in _SETTERS:
            node = _SETTERS[name](node, values[name])
    return node


def _share(node: Node, name: str, value: float) -> Node:
    return replace(node, shares=tuple({**dict(node.shares), name: value}.items()))


def _bf16(node: Node, value: float) -> Node:
    # no data-sheet fp8 rate beside a measured one: without a figure, fp8 weights run at the bf16 rate
    return replace(node, gpu=replace(node.gpu, bf16_flop_per_s=value, fp8_flop_per_s=None))


def _fp8(node: Node, value: float) -> Node:
    return replace(node, gpu=replace(node.gpu, fp8_flop_per_s=value))


def _hbm(node: Node, value: float) -> Node:
    return _share(replace(node, gpu=replace(node.gpu, hbm_bytes_per_s=value)), "hbm", 1.0)


def _prefill(node: Node, value: float) -> Node:
    return _share(node, "prefill_mfu", value / node.gpu.bf16_flop_per_s)


def _attention(node: Node, value: float) -> Node:
    products = dict(node.shares)["prefill_mfu"] * node.gpu.bf16_flop_per_s
    return replace(node, attention_speed=value / products)


def _decode(node: Node, value: float) -> Node:
    return _share(node, "decode_mfu", value / node.gpu.bf16_flop_per_s)


def _dram(node: Node, value: float) -> Node:
    return _share(replace(node, dram_bytes_per_s=value), "dram", 1.0)


def _snic(node: Node, value: float) -> Node:
    return _share(replace(node, snic_bytes_per_s=value / node.snics), "snic", 1.0)


def _snic_write(node: Node, value: float) -> Node:
    return replace(node, snic_write_bytes_per_s=value / node.snics)


def _cnic(node: Node, value: float) -> Node:
    node = _share(replace(node, cnic_bytes_per_s=value), "cnic", 1.0)
    return _share(node, "snic", 1.0) if node.shares_nic else node  # storage takes this NIC too


_SETTERS: dict[str, Callable[[Node, float], Node]] = {
    "gemm_bf16_flop_per_s": _bf16,
    "gemm_fp8_flop_per_s": _fp8,
    "hbm_copy_bytes_per_s": _hbm,
    "decode_bytes_per_s": _hbm,
    "prefill_flop_per_s": _prefill,
    "attention_flop_per_s": _attention,
    "decode_flop_per_s": _decode,
    "dram_bytes_per_s": _dram,
    "storage_read_bytes_per_s": _snic,
    "storage_write_bytes_per_s": _snic_write,
    "network_bytes_per_s": _cnic,
    "network_both_ways_bytes_per_s": _cnic,
}
