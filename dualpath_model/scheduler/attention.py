"""How long the attention layers of a forward batch take: the quantity that the compute quota limits.

Section 6 of the paper: a prefill engine packs chunks ``(cached, bsz)`` while the *predicted*
attention time stays within the quota. A chunk appends ``bsz`` tokens of one request to ``cached`` ones
that are in the KV-cache already. :class:`AttentionTime` predicts, linear in its coefficients, so that
they come either from the architecture (:func:`attention_time`) or from measurements (:func:`fit`).

Reading the KV-cache has a coefficient of its own. FLOPs alone would call one token on a long context
almost free, yet its kernel streams the whole context from HBM; and the kernels of latent attention
decompress every latent of the context, which ``Llm.prefill_flops`` leaves out as Table 1 does. Both
grow with ``cached + bsz`` once a chunk. Compute and reads are *added*: real kernels overlap them, so
the sum is between one and two times the roofline's maximum (equal where one of them dominates), on the
safe side of the quota, and unlike the maximum it can be fitted by least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualpath_model.compilation import compilable
from dualpath_model.errors import InputError
from dualpath_model.llm import GroupedAttention, KvDtype, LatentAttention, Llm

TokenCounts = npt.NDArray[np.int64]


class AttentionTime(NamedTuple):
    """Seconds that one GPU spends in the attention of all layers of one forward pass.

    ``fixed_s`` and, for each chunk, what :func:`chunk_seconds` adds up. Coefficients must be finite
    and not negative: packing relies on a chunk never getting cheaper by a token more. They are plain
    floats, so ``_asdict()`` is JSON and ``AttentionTime(**loaded)`` reads it back.
    """

    fixed_s: float = 0.0
    """Of a forward pass: launching the kernels of all layers."""
    chunk_s: float = 0.0
    """Of a chunk whatever its size: its share of the launch, tile quantisation, a window's reads."""
    token_s: float = 0.0
    """Of an appended token whatever its context: writing its KV, reading and writing its query."""
    context_token_s: float = 0.0
    """Of a token of ``cached + bsz``: reading its KV from HBM once a chunk, decompressing latents."""
    pair_s: float = 0.0
    """Of an appended token attending to one token, no limit: full layers, or scores of an indexer."""
    limited_pair_s: float = 0.0
    """The same of at most ``limit_tokens`` tokens: sliding layers, or sparse attention."""
    limit_tokens: float = 0.0
    """The window or top-k; 0: no layer is limited and ``limited_pair_s`` has no effect."""


@compilable
def chunk_seconds(model: AttentionTime, cached: int, bsz: int) -> float:
    """Return the seconds that a chunk of ``bsz`` >= 1 tokens on ``cached`` >= 0 ones adds.

    Pairs are exact integrals over t in [0, bsz], the convention of ``Llm.prefill_flops``: of
    ``cached + t``, and of ``min(cached + t, limit_tokens)``. The result never falls as ``bsz`` grows,
    not even by rounding: every operand of every operation grows, and rounding keeps the order.
    """
    pairs = bsz * (cached + 0.5 * bsz)
    growing = min(max(model.limit_tokens - cached, 0.0), float(bsz))  # tokens that see less
    limited_pairs = growing * (cached + 0.5 * growing) + (bsz - growing) * model.limit_tokens
    return (
        model.chunk_s
        + model.token_s * bsz
        + model.context_token_s * (cached + bsz)
        + model.pair_s * pairs
        + model.limited_pair_s * limited_pairs
    )


@compilable
def batch_seconds(model: AttentionTime, cached: TokenCounts, bsz: TokenCounts) -> float:
    """Return the seconds of a forward batch of chunks, summed in their order (of none: ``fixed_s``)."""
    total = model.fixed_s
    for index in range(len(bsz)):
        total += chunk_seconds(model, int(cached[index]), int(bsz[index]))
    return total


def attention_time(
    llm: Llm,
    *,
    flop_per_s: float,
    hbm_bytes_per_s: float | None = None,
    kv_dtype: KvDtype | None = None,
    tensor_parallel: int = 1,
) -> AttentionTime:
    """Predict from the architecture and the rates that one GPU sustains in attention kernels.

    Without ``hbm_bytes_per_s`` only FLOPs count, exactly those of ``llm.prefill_flops(...).attention``.
    With it, KV of ``kv_dtype`` (the LLM's default) is read once a chunk; a window counts as full, which
    is too much for contexts shorter than it. Launches (``fixed_s``) and decompression of latents are
    not predicted: measure and :func:`fit`.

    ``tensor_parallel`` ranks split the attention heads. The indexer of sparse attention is not split,
    as in vLLM (``deepseek_v2.py``, class Indexer: "no tensor parallel, just replicated"), and KV is
    held as often as ``llm.replication`` says. Raises InputError for rates that are not positive, ranks
    that do not divide the heads, and a ``kv_dtype`` that the LLM cannot have.
    """
    _check_positive("flop_per_s", flop_per_s, "give the measured FLOP/s of the attention kernels")
    heads = llm.attention.heads
    if tensor_parallel < 1 or heads % tensor_parallel:
        raise InputError(
            f"tensor_parallel {tensor_parallel} does not divide the {heads} heads of {llm.name}; "
            f"give a divisor"
        )
    pair_flops, limited_pair_flops, limit = _pair_flops(llm)
    indexed = isinstance(llm.attention, LatentAttention) and llm.attention.indexer is not None
    model = AttentionTime(
        pair_s=pair_flops / (flop_per_s * (1 if indexed else tensor_parallel)),
        limited_pair_s=limited_pair_flops / (flop_per_s * tensor_parallel),
        limit_tokens=limit,
    )
    if hbm_bytes_per_s is None:
        return model
    _check_positive("hbm_bytes_per_s", hbm_bytes_per_s, "leave it out to count FLOPs only")
    dtype = kv_dtype or llm.default_kv_dtype
    held = llm.replication(tensor_parallel) / tensor_parallel
    # decode_read_bytes, unlike kv_bytes, has the indexer's keys in every layout.
    token_s = held * float(llm.decode_read_bytes(1.0, dtype)) / hbm_bytes_per_s
    windowed = 0.0  # share of the layers, from how much a context twice the window holds
    if limit:
        ratio = float(llm.kv_bytes(2.0 * limit, dtype)) / float(llm.kv_bytes(limit, dtype))
        windowed = 2.0 - ratio
    return model._replace(
        chunk_s=windowed * token_s * limit,
        token_s=windowed * token_s,
        context_token_s=(1.0 - windowed) * token_s,
    )


def _pair_flops(llm: Llm) -> tuple[float, float, float]:
    """FLOPs of a pair and of a limited pair, and the limit, probed where they are easy to tell apart."""

    def flops(cached: float, bsz: float) -> float:
        return float(llm.prefill_flops(cached, bsz).attention)

    limit = _limit_tokens(llm)
    if not limit:
        return flops(0.0, 2.0) / 2.0, 0.0, 0.0  # two tokens on nothing make two pairs
    # Beyond the limit only unlimited pairs grow with the context; up to it both kinds are the same.
    unlimited = (flops(2.0 * limit, 1.0) - flops(limit, 1.0)) / limit
    both = flops(0.0, limit) / (0.5 * limit * limit)
    return unlimited, both - unlimited, limit


def _limit_tokens(llm: Llm) -> float:
    attention = llm.attention
    if isinstance(attention, GroupedAttention):
        return float(attention.sliding_window_tokens) if attention.sliding_layers else 0.0
    return float(attention.indexer.top_k) if attention.indexer else 0.0


def _check_positive(field: str, value: float, remedy: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{field} {value!r} must be finite and more than 0; {remedy}")


class Sample(NamedTuple):
    """A measured forward batch."""

    chunks: Sequence[tuple[int, int]]
    """``(cached, bsz)`` of each, tokens."""
    seconds: float
    """Attention of all layers on one GPU."""


@dataclass(frozen=True)
class Fit:
    """A fitted model and how well it tells the samples again; relative errors are fractions."""

    model: AttentionTime
    residual_s: tuple[float, ...]
    """Measured minus predicted seconds, of each sample in the order given."""
    relative_error_p50: float
    relative_error_max: float
    r_squared: float
    """Share of the variance of the measured seconds that is explained; 0 if there is no variance."""
    undetermined: tuple[str, ...]
    """Coefficients that the samples cannot tell apart: sound together, arbitrary one by one."""


_COEFFICIENTS = AttentionTime._fields[:-1]

_RIDGE = 1e-6
"""Weight of one more equation 'this coefficient is 0', where each column has length 1. It settles what
the samples leave open, and shifts the rest by about its square, far below any noise of measurement."""


def fit(samples: Sequence[Sample], *, limit_tokens: float = 0.0) -> Fit:
    """Fit the coefficients to measured batches: non-negative least squares of *relative* errors.

    ``limit_tokens``: window or top-k of the LLM (:attr:`AttentionTime.limit_tokens`).

    Vary batches in the number of chunks, in ``cached`` and in ``bsz``, on both sides of the limit.
    Coefficients that the samples cannot tell apart (batches of one chunk: ``fixed_s`` and ``chunk_s``)
    are named in :attr:`Fit.undetermined`; they share the time about evenly, so that batches like the
    measured ones are predicted as well as ever and others are not.

    Raises InputError for fewer samples than coefficients, batches without chunks, impossible token
    counts, and seconds or a limit that are not finite or too small.
    """
    from scipy.optimize import nnls

    names = [name for name in _COEFFICIENTS if limit_tokens or name != "limited_pair_s"]
    _check_samples(samples, len(names), limit_tokens)
    measured = np.array([sample.seconds for sample in samples], dtype=float)
    # The model is linear: evaluated with one coefficient 1 and the others 0 it gives that column.
    units = [AttentionTime(**{name: 1.0}, limit_tokens=float(limit_tokens)) for name in names]
    counts = [np.array(sample.chunks, dtype=np.int64).T for sample in samples]
    columns = np.array([[batch_seconds(unit, *count) for unit in units] for count in counts])
    weighted = columns / measured[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    unit_columns = weighted / scale
    ridge = _RIDGE * np.eye(len(names))
    target = np.concatenate([np.ones(len(samples)), np.zeros(len(names))])
    solution, _ = nnls(np.vstack([unit_columns, ridge]), target)
    coefficients = solution / scale
    residual = measured - columns @ coefficients
    relative = np.abs(residual) / measured
    spread = measured - measured.mean()
    found = dict(zip(names, coefficients.tolist(), strict=True))
    return Fit(
        model=AttentionTime(**found, limit_tokens=float(limit_tokens)),
        residual_s=tuple(residual.tolist()),
        relative_error_p50=float(np.median(relative)),
        relative_error_max=float(np.max(relative)),
        r_squared=float(1.0 - residual @ residual / (spread @ spread)) if np.ptp(measured) else 0.0,
        undetermined=_undetermined(unit_columns, names),
    )


def _undetermined(unit_columns: npt.NDArray[np.float64], names: list[str]) -> tuple[str, ...]:
    """Name the coefficients that take part in a direction that the samples see less than the ridge."""
    _, seen, directions = np.linalg.svd(unit_columns)
    unseen = directions[seen < _RIDGE]
    taking_part = np.any(np.abs(unseen) > 1e-3, axis=0)
    return tuple(name for name, part in zip(names, taking_part, strict=True) if part)


def _check_samples(samples: Sequence[Sample], least: int, limit_tokens: float) -> None:
    if not (math.isfinite(limit_tokens) and limit_tokens >= 0):
        raise InputError(
            f"limit_tokens {limit_tokens!r} must be finite and at least 0; give the window or top-k "
            f"of the LLM, or 0 for none"
        )
    if len(samples) < least:
        raise InputError(
            f"samples has {len(samples)} batches, but {least} coefficients need at least {least}; "
            f"measure more"
        )
    for index, sample in enumerate(samples):
        if not (math.isfinite(sample.seconds) and sample.seconds > 0):
            raise InputError(
                f"samples[{index}].seconds {sample.seconds!r} must be finite and more than 0; "
                f"measure this batch again or leave it out"
            )
        if not sample.chunks:
            raise InputError(
                f"samples[{index}].chunks is empty, but a batch has at least one chunk; leave it out"
            )
        for cached, bsz in sample.chunks:
            if cached < 0 or bsz < 1:
                raise InputError(
                    f"samples[{index}].chunks has ({cached}, {bsz}), but cached must be at least 0 and "
                    f"bsz at least 1; correct the chunk or leave it out"
                )
