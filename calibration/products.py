"""Rates of dense matrix products: the LLM's own shapes, weighted by their FLOPs, and square ones.

Shapes too large for a machine (memory, or the time allowed on a CPU) are cut into equal parts and
counted as often as it takes, so that the weights by FLOPs stay those of the LLM. One round times every
shape once; a round's FLOPs over its seconds is one sample of the LLM's rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibration import fit
from calibration.clock import Clock, Point, Work, in_rounds
from calibration.device import most_bytes, repeated
from calibration.rooms import Measured, Tell
from calibration.shapes import GemmShape, counted, cut, gemm_shapes
from dualpath_model.llm import Llm
from dualpath_model.profile import Sample, Series, Setting

if TYPE_CHECKING:
    import torch

TOKENS = 8192
"""Of the batch whose shapes are measured: a large prefill, and rows enough for every expert."""
LEAST_ROWS = 64
SQUARES = (256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 3
MOST_ROUNDS = 100
"""So many that a GPU gets as warm as it does at work."""

_CPU_ELEMENTS = 2**27
_ROTATED_BYTES = 2**28
"""Weights are taken in turn from as many bytes, more than caches hold, as an LLM's layers are."""
_DRAWN = 2**22 - 3
"""Random numbers drawn; more are these again. Odd, so that no two matrices begin alike."""


@dataclass(frozen=True)
class Kind:
    """A kind of arithmetic: ``bytes_each`` element; n and k are padded to a multiple of ``align``."""

    name: str
    dtype: torch.dtype
    bytes_each: int
    align: int = 1


def kinds(device: torch.device) -> tuple[list[Kind], list[str]]:
    """Return the arithmetic that the device has, and a sentence for each kind that it lacks."""
    import torch

    found = [Kind("bf16", torch.bfloat16, 2), Kind("fp32", torch.float32, 4)]
    if device.type != "cuda":
        why = "torch has no fast fp8 products on a CPU"
    elif torch.cuda.get_device_capability(device) < (8, 9):
        why = f"{torch.cuda.get_device_name(device)} has no fp8 arithmetic"
    else:
        return [found[0], Kind("fp8", torch.float8_e4m3fn, 1, align=16), found[1]], []
    return found, [f"gemm_fp8_flop_per_s is left out: {why}"]


class Matrices:
    """Random factors of products, all cut from one stretch of memory, and room for the results."""

    def __init__(
        self, kind: Kind, shapes: Sequence[GemmShape], device: torch.device, seed: int
    ) -> None:
        """Draw as many numbers as the largest of ``shapes`` needs, and more to take in turn."""
        import torch

        self.kind = kind
        sides = [self._sides(shape) for shape in shapes]
        most = max(max(n * k, m * k) for m, n, k in sides)
        count = max(most, int(min(_ROTATED_BYTES, most_bytes(device) / 3)) // kind.bytes_each)
        generator = torch.Generator(device).manual_seed(seed)
        drawn = torch.randn(min(count, _DRAWN), generator=generator, device=device)
        self.numbers = repeated(drawn.to(kind.dtype), count)
        # In fp8 the result is bf16, which torch allocates itself.
        results = max(m * n for m, n, _ in sides) if kind.align == 1 else 0
        self.results = torch.empty(results, dtype=kind.dtype, device=device)
        self.one = torch.ones((), device=device)

    def works(self, shape: GemmShape) -> list[Work]:
        """Return variants of the product ``shape``, with different weights."""
        m, n, k = self._sides(shape)
        apart = -(-n * k // 64) * 64  # kernels want their matrices aligned
        many = max(1, min(8, len(self.numbers) // apart))
        last = (len(self.numbers) - m * k) // 64 * 64
        tokens = self.numbers[last:][: m * k].view(m, k)
        weights = [self.numbers[i * apart :][: n * k].view(n, k) for i in range(many)]
        return [self._work(tokens, weight) for weight in weights]

    def _sides(self, shape: GemmShape) -> tuple[int, int, int]:
        align = self.kind.align
        return shape.m, -(-shape.n // align) * align, -(-shape.k // align) * align

    def _work(self, tokens: torch.Tensor, weight: torch.Tensor) -> Work:
        import torch

        across = weight.t()
        if self.kind.align == 1:
            result = self.results[: len(tokens) * len(weight)].view(len(tokens), len(weight))
            return lambda: torch.mm(tokens, across, out=result)
        return lambda: torch._scaled_mm(
            tokens,
            across,
            scale_a=self.one,
            scale_b=self.one,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Keep fp32 products in fp32 (TF32 off), and set it back as it was."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def square(size: int) -> GemmShape:
    """Return the product of two square matrices; no LLM counts it."""
    return GemmShape("square", size, size, size, 0.0)


def measure_products(
    llm: Llm, *, device: torch.device, tensor: int, seconds: float, tell: Tell, seed: int
) -> Measured:
    """Measure the product rates of ``llm`` on one GPU of ``tensor``, in about ``seconds``.

    Series per kind of arithmetic: ``gemm_KIND`` has every product (``at``: shape, m, n, k, count),
    ``gemm_llm_KIND`` a sample a round, the LLM's shapes weighted. Figures: ``gemm_KIND_flop_per_s``.
    Raises InputError where ``tensor`` does not divide the LLM's heads.
    """
    import torch

    shapes = counted(gemm_shapes(llm, TOKENS, tensor), llm)
    has, lacks = kinds(device)
    room = Measured([], warnings=lacks)
    for index, kind in enumerate(has):

        def part(share: float, what: str, index: int = index, kind: Kind = kind) -> None:
            tell((index + share) / len(has), f"{kind.name} products: {what}")

        try:
            with exact_fp32():
                _measure_kind(room, kind, shapes, device, seconds / len(has), part, seed)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            room.warnings.append(f"{kind.name} products are left out: the GPU's memory is full")
    return room


def _measure_kind(
    room: Measured,
    kind: Kind,
    shapes: Sequence[GemmShape],
    device: torch.device,
    seconds: float,
    tell: Tell,
    seed: int,
) -> None:
    clock = Clock(device, ahead=True)
    elements = _most_elements(kind, device)
    rate = _rough_rate(kind, clock, seed)
    squares = [square(size) for size in squares_in(0.4 * seconds * rate, elements)]
    rows, parts = parts_in(shapes, 0.5 * seconds * rate, elements)
    matrices = Matrices(kind, [*squares, *parts], device, seed)
    points = [_point(matrices, shape) for shape in [*squares, *parts]]
    samples = in_rounds(
        clock, points, seconds=seconds, tell=tell, left_out=room.warnings, most=MOST_ROUNDS
    )
    passes = _passes(samples)
    room.settings[f"gemm_{kind.name}_rows"] = rows
    if not passes:
        return
    series = Series(
        name=f"gemm_{kind.name}",
        unit="FLOP",
        meaning=f"one dense product in {kind.name}, m tokens by a weight of n rows and k columns",
        samples=samples,
    )
    whole = Series(
        name=f"gemm_llm_{kind.name}",
        unit="FLOP",
        meaning=f"a round over the LLM's products of {TOKENS} tokens, each as often as it is made",
        samples=passes,
    )
    room.series += [series, whole]
    for shape in squares:
        at = [
            i for i, s in enumerate(samples) if s.at["shape"] == "square" and s.at["m"] == shape.m
        ]
        if at:
            name = f"gemm_{kind.name}_{shape.m}"
            room.fits.append(fit.typical(name, series, at, parameter="flop_per_s"))
    name = f"gemm_{kind.name}"
    found = fit.typical(name, whole, range(len(passes)), parameter="flop_per_s")
    room.fits.append(found)
    note = f"{TOKENS} tokens" + (f", at most {rows} at once" if rows < TOKENS else "")
    figure = fit.figure(found, "flop_per_s")
    told = "; ".join(filter(None, [note, figure.note]))
    room.figures[f"gemm_{kind.name}_flop_per_s"] = figure.model_copy(update={"note": told})


def _most_elements(kind: Kind, device: torch.device) -> int:
    """Return how many elements the matrices of one product may have."""
    # Factors and results are separate, and each is as large as its largest: at most 3 times as much.
    most = int(most_bytes(device) / 3 / max(2, kind.bytes_each))
    return most if device.type == "cuda" else min(most, _CPU_ELEMENTS)


def _rough_rate(kind: Kind, clock: Clock, seed: int) -> float:
    """Return about how many FLOP/s there are, to choose what fits into the time."""
    shape = square(1024)
    works = Matrices(kind, [shape], clock.device, seed).works(shape)
    return shape.flop / min(clock.samples(works, budget_s=0.05))


def squares_in(flop: float, elements: int) -> list[int]:
    """Return the sizes of squares that ``flop`` pay for, warm-up included; the two smallest always."""
    chosen: list[int] = []
    for size in SQUARES:
        all_flop = sum(2.0 * side**3 for side in [*chosen, size])
        enough = (ROUNDS + 1) * all_flop <= flop and 3 * size**2 <= elements
        if len(chosen) < 2 or enough:
            chosen.append(size)
    return chosen


def parts_in(
    shapes: Sequence[GemmShape], flop: float, elements: int
) -> tuple[int, list[GemmShape]]:
    """Return the most rows that ``flop`` pay for, warm-up included, and the shapes cut to them.

    There are at least :data:`LEAST_ROWS`: fewer would measure memory and not arithmetic.
    """
    rows = TOKENS
    while True:
        parts = [cut(shape, rows, elements) for shape in shapes]
        if (ROUNDS + 1) * sum(part.flop for part in parts) <= flop or rows <= LEAST_ROWS:
            return rows, parts
        rows //= 2


def _point(matrices: Matrices, shape: GemmShape) -> Point:
    at: dict[str, Setting] = {"shape": shape.name, "m": shape.m, "n": shape.n, "k": shape.k}
    return Point({**at, "count": shape.count}, shape.flop, matrices.works(shape))


def _passes(samples: Sequence[Sample]) -> list[Sample]:
    """Return a sample a round: all products of the LLM, each counted as often as it is made."""
    rounds: dict[int, list[tuple[float, Sample]]] = {}
    for sample in samples:
        count = float(sample.at["count"] or 0.0)
        if count > 0:
            rounds.setdefault(int(sample.at["round"] or 0), []).append((count, sample))
    return [
        Sample(
            at={"round": number},
            seconds=math.fsum(count * sample.seconds for count, sample in one),
            amount=math.fsum(count * sample.amount for count, sample in one),
        )
        for number, one in rounds.items()
    ]


def square_rate(kind: Kind, size: int, device: torch.device, seed: int = 0) -> Callable[[], float]:
    """Return what measures, at each call, the FLOP/s of three square products as the rooms do."""
    clock, shape = Clock(device, ahead=True), square(size)
    works = Matrices(kind, [shape], device, seed).works(shape)

    def once() -> float:
        taken = clock.samples(works, budget_s=0.0, least=3)
        return shape.flop * len(taken) / math.fsum(taken)

    return once
