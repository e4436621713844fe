"""The layers room: one layer of an LLM on one device, in prefill and in decode, and its attention alone.

Three sweeps over sizes (`calibration.layer_sweep`, `layer_points`), each as far as time and memory
allow, and what is fitted to them.

Not in it: sampling, the LM head, communication, rotary encoding, kernels tuned for one GPU. An engine's
own kernels may be faster; `calibration.layer_model` and `attention_kernels` say what is run.
"""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING

from calibration import fit
from calibration.layer_attention import check_tensor
from calibration.layer_points import attention_points, decode_points, prefill_points
from calibration.layer_room import Room, faster_dtype, furnish
from calibration.layer_sweep import sweep
from calibration.rooms import Measured, Tell
from dualpath_model.errors import InputError
from dualpath_model.llm import KvDtype, Llm
from dualpath_model.profile import Estimate, Fit, Sample, Series
from dualpath_model.scheduler.attention import attention_time

if TYPE_CHECKING:
    import torch

SHARES = {"attention": 0.35, "prefill": 0.3, "decode": 0.35}
"""Of the time that is left once the weights are there."""
LEAST_POINTS = {"attention": 8, "prefill": 6, "decode": 5}
"""Measured whatever they take: what the fits need."""

LARGE = 0.1
"""Attention samples of at least this share of the largest amount make attention_flop_per_s."""

_MEANINGS = {
    "attention": "attention of one layer for a forward batch of chunks cached:bsz",
    "prefill": "forward pass of one whole layer for one chunk",
    "decode": "decode step of one whole layer: batch requests with context tokens each",
}


def measure_layers(
    llm: Llm,
    *,
    kv_dtype: KvDtype,
    device: torch.device,
    tensor: int = 1,
    seconds: float,
    tell: Tell,
    seed: int = 0,
) -> Measured:
    """Measure one layer of ``llm`` as one GPU of ``tensor`` runs it, in about ``seconds``.

    Series "attention" (a forward batch's attention alone; ``at["chunks"]`` is "cached:bsz,..."),
    "prefill_layer" (a whole layer; ``cached``, ``bsz``, ``attention_flop``, 0 of points that leave
    attention out) and "decode_layer" (``batch``, ``context`` in tokens, ``bytes`` of weights touched
    and KV; some points with an eighth of the ``feed_forward``).
    Amounts are FLOPs as the models count them, of one layer on one GPU; where kinds of attention
    alternate, seconds are of their mean. A layer's feed-forward is of the LLM's most common kind.

    Latent attention decompresses its context in prefill (that time is in, its FLOPs are not counted);
    with an indexer it runs absorbed on the tokens gathered for each query, which is more arithmetic
    than the decompressed form that the models count. Causal kernels on a CPU also compute what their
    mask hides.

    Weights, activations and KV are bf16 on a GPU, on a CPU bf16 or fp32, what multiplies faster;
    ``kv_dtype`` is noted, and bytes are those really stored. Raises InputError if ``tensor`` does not
    divide the heads, or a layer's weights do not fit an eighth of the free memory.
    """
    import torch

    check_tensor(llm, tensor)
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds {seconds!r} must be finite and more than 0, such as 30")
    begun = time.perf_counter()
    with torch.inference_mode():
        tell(0.0, "layers: weights")
        dtype = faster_dtype(device)
        room, narrow, held = furnish(
            llm, device=device, dtype=dtype, tensor=tensor, seconds=seconds, seed=seed
        )
        rng = random.Random(seed)
        samples: dict[str, list[Sample]] = {}
        done = 0.05
        to_come = 1.0
        for name, points in (
            ("attention", attention_points(room)),
            ("prefill", prefill_points(room)),
            ("decode", decode_points(room) + decode_points(narrow)),
        ):
            # Of what is really left: a sweep that took longer or less is made up for by the later ones.
            left = max(seconds - (time.perf_counter() - begun), 0.5 * to_come * seconds)
            width = (1.0 - done) * SHARES[name] / to_come

            def told(
                share: float, what: str, name: str = name, begin: float = done, width: float = width
            ) -> None:
                tell(begin + share * width, f"layers: {name} {what}")

            samples[name] = sweep(
                points,
                room.clock,
                seconds=left * SHARES[name] / to_come,
                least_points=LEAST_POINTS[name],
                rng=rng,
                tell=told,
            )
            done += width
            to_come -= SHARES[name]
    measured = _fitted(room, samples)
    stored = str(dtype).removeprefix("torch.")
    measured.settings = {
        "llm": llm.name,
        "tensor": tensor,
        "seed": seed,
        "layers_dtype": stored,
        "layers_kv_dtype": stored,
        "layers_kv_dtype_asked": str(kv_dtype),
        "layers_held_experts": held,
        "layers_weight_copies": len(room.layers),
        "layers_feed_forward": "experts" if room.llm.ffn.experts else "dense",
        "layers_largest_context": max(int(s.at["context"] or 0) for s in samples["decode"]),
    }
    measured.warnings = _notes(llm, room, stored, kv_dtype, held) + room.warnings
    tell(1.0, "layers: done")
    return measured


def _fitted(room: Room, samples: dict[str, list[Sample]]) -> Measured:
    """Fit the three sweeps; figures whose parameter is undetermined are left out, with a warning."""
    series = {
        name: Series(
            name=name if name == "attention" else f"{name}_layer",
            unit="FLOP",
            meaning=_MEANINGS[name],
            samples=found,
        )
        for name, found in samples.items()
    }
    llm, every = room.llm, {name: list(range(len(found))) for name, found in samples.items()}
    quota, coefficients = fit.attention(
        "attention_time",
        series["attention"],
        every["attention"],
        llm_name=llm.name,
        tensor=room.tensor,
        layers=llm.layers,
        limit_tokens=attention_time(llm, flop_per_s=1.0).limit_tokens,
    )
    most = max(sample.amount for sample in samples["attention"])
    large = [i for i in every["attention"] if samples["attention"][i].amount >= LARGE * most]
    rate = fit.typical(
        "attention_rate", series["attention"], large, parameter="attention_flop_per_s"
    )
    prefill = fit.layer(
        "prefill_layer", series["prefill"], every["prefill"], attention_at="attention_flop"
    )
    within = "attention_flop_per_s" not in prefill.undetermined
    decode = fit.roofline("decode_layer", series["decode"], every["decode"])
    figures: dict[str, Estimate] = {}
    for figure, source, parameter in (
        ("attention_flop_per_s", prefill if within else rate, "attention_flop_per_s"),
        ("prefill_flop_per_s", prefill, "flop_per_s"),
        ("prefill_layer_s", prefill, "fixed_s"),
        ("decode_flop_per_s", decode, "flop_per_s"),
        ("decode_bytes_per_s", decode, "bytes_per_s"),
        ("decode_layer_s", decode, "fixed_s"),
    ):
        _take(figures, room.warnings, figure, source, parameter)
    return Measured(
        series=list(series.values()),
        fits=[quota, rate, prefill, decode],
        figures=figures,
        attention=[coefficients],
    )


def _take(
    figures: dict[str, Estimate], warnings: list[str], figure: str, source: Fit, parameter: str
) -> None:
    if parameter in source.undetermined or parameter not in source.parameters:
        warnings.append(
            f"{figure} is left out: the samples of {source.series} do not settle {parameter}"
        )
        return
    figures[figure] = fit.figure(source, parameter)


def _notes(llm: Llm, room: Room, stored: str, kv_dtype: KvDtype, held: int) -> list[str]:
    """Say where what was measured is not what was asked for."""
    notes = []
    if kv_dtype is not KvDtype.BF16 or stored != "bfloat16":
        notes.append(
            f"KV was asked for as {kv_dtype}, but measured as {stored}; bytes are as stored"
        )
    if llm.compute_dtype != "bf16" or stored != "bfloat16":
        notes.append(f"{llm.name} computes in {llm.compute_dtype}, but layers ran in {stored}")
    ffn = room.llm.ffn
    if ffn.experts and held < ffn.experts:
        notes.append(f"{held} of {ffn.experts} experts were held, as on one of many GPUs")
    if llm.ffn.experts and llm.ffn.first_dense_layers:
        kind = "expert" if ffn.experts else "dense"
        notes.append(f"layers are of two kinds of feed-forward; the {kind} ones were measured")
    return notes
