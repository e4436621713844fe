"""One layer of an LLM as torch operations: what a single GPU of a balanced group runs for it.

A layer is: norm, projections, attention over cached and new tokens, output projection, norm, gated
feed-forward or experts. `layer_attention` and `layer_feed_forward` say how a group of GPUs shares it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calibration.layer_attention import Cache, Chunk, Grouped, Latent, draw_attention
from calibration.layer_feed_forward import Dense, Experts, draw_feed_forward
from calibration.layer_weights import Draw
from dualpath_model.llm import FeedForward, Llm

if TYPE_CHECKING:
    import torch


def common_kind(llm: Llm) -> Llm:
    """Return the LLM with all feed-forward layers of its most common kind, and no LM head counted.

    Its FLOPs over ``layers`` are those of one measured layer. Sliding layers stay as they are: both
    kinds of attention are measured and averaged.
    """
    ffn = llm.ffn
    sparse = bool(ffn.experts) and 2 * ffn.first_dense_layers < llm.layers
    if sparse:
        ffn = replace(ffn, first_dense_layers=0)
    else:
        ffn = FeedForward(dense_intermediate=ffn.dense_intermediate)
    return replace(llm, ffn=ffn, count_lm_head=False)


@dataclass(frozen=True)
class Layer:
    """A whole layer; x [n, hidden] in and out."""

    norms: tuple[torch.Tensor, torch.Tensor]
    attention: Grouped | Latent
    ffn: Dense | Experts

    def prefill(self, x: torch.Tensor, cache: Cache, chunk: Chunk) -> torch.Tensor:
        """Run a chunk's tokens; their KV is written to the end of ``cache``."""
        attention = self.attention
        queries, new = attention.project(self._norm(x, 0))
        attention.append(new, cache)
        return self.finish(x, attention.attend(queries, cache, chunk))

    def prefill_rest(self, x: torch.Tensor, cache: Cache, attended: torch.Tensor) -> torch.Tensor:
        """Run all but a chunk's attention, whose result is given: ``attended`` [n, heads * width]."""
        _, new = self.attention.project(self._norm(x, 0))
        self.attention.append(new, cache)
        return self.finish(x, attended)

    def decode(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Run one token of each of B requests; its KV is written to the end of their caches."""
        attention = self.attention
        queries, new = attention.project(self._norm(x, 0))
        attention.append_each(new, cache)
        return self.finish(x, attention.attend_each(queries, cache))

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Do what follows attention: its output projection, and the feed-forward."""
        from torch.nn import functional

        x = x + functional.linear(attended.reshape(len(x), -1), self.attention.out)
        return x + self.ffn.forward(self._norm(x, 1))

    def touched_bytes(self, tokens: int) -> float:
        """Weight bytes that a pass of ``tokens`` reads."""
        own = [value for value in vars(self.attention).values() if hasattr(value, "nbytes")]
        return float(sum(tensor.nbytes for tensor in own)) + self.ffn.touched_bytes(tokens)

    def _norm(self, x: torch.Tensor, which: int) -> torch.Tensor:
        from torch.nn import functional

        return functional.rms_norm(x, x.shape[-1:], self.norms[which])


def build(llm: Llm, draw: Draw, *, tensor: int = 1, held: int = 0) -> Layer:
    """Draw the weights of one layer of :func:`common_kind`; ``held`` experts, 0: all of them.

    Raises InputError if ``tensor`` does not divide the heads.
    """
    return Layer(
        (draw(llm.hidden), draw(llm.hidden)),
        draw_attention(llm, draw, tensor),
        draw_feed_forward(common_kind(llm), draw, tensor, held),
    )
