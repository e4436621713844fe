"""Feed-forward of one layer, dense or experts, with its weights: the part of one of ``tensor`` GPUs.

Gate and up are merged, as in engines. The group splits dense and shared feed-forward; the router is
repeated on each GPU.

Experts: the GPU holds ``held`` of them and gives them together tokens * active_experts / tensor rows,
as evenly as whole rows go. That is what one GPU of a balanced expert-parallel group computes: the
tokens that its neighbours send are as many as those that it sends away. Router, shared experts, the
copy of rows to the experts and their weighted sum are done as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calibration.layer_weights import Draw, matrix
from dualpath_model.llm import Llm

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dense:
    """A gated feed-forward block: ``gate_up`` [2 intermediate, hidden], ``down`` [hidden, ...]."""

    gate_up: torch.Tensor
    down: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [n, hidden] of x [n, hidden]."""
        from torch.nn import functional

        gate, up = functional.linear(x, self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down)

    def touched_bytes(self, tokens: int) -> float:
        """Weight bytes that a pass of ``tokens`` reads: all."""
        return float(self.gate_up.nbytes + self.down.nbytes)


@dataclass(frozen=True)
class Experts:
    """Routed experts that one GPU holds, and the shared one that all tokens go through."""

    router: torch.Tensor
    gate_up: torch.Tensor
    """[held, 2 intermediate, hidden]"""
    down: torch.Tensor
    """[held, hidden, intermediate]"""
    active: int
    tensor: int
    shared: Dense | None

    @property
    def held(self) -> int:
        """Number of experts on this GPU."""
        return len(self.gate_up)

    def rows(self, tokens: int) -> int:
        """Rows that this GPU's experts get together from ``tokens`` on each GPU of the group."""
        return max(1, round(tokens * self.active / self.tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [n, hidden] of x [n, hidden]."""
        import torch
        from torch.nn import functional

        tokens, hidden = x.shape
        shares = functional.linear(x, self.router).topk(self.active, dim=-1).values.softmax(-1)
        count = self.rows(tokens)
        turns = math.ceil(count / tokens)
        sent = x.repeat(turns, 1)
        done = torch.zeros_like(sent) if turns * tokens > count else torch.empty_like(sent)
        row = 0
        for first, last, each in evenly(count, self.held):
            end = row + (last - first) * each
            part = sent[row:end].view(last - first, each, hidden)
            gate, up = torch.bmm(part, self.gate_up[first:last].transpose(1, 2)).chunk(2, dim=-1)
            result = torch.bmm(functional.silu(gate) * up, self.down[first:last].transpose(1, 2))
            done[row:end].copy_(result.view(-1, hidden))
            row = end
        joined = (done.view(turns, tokens, hidden) * shares.T[:turns, :, None]).sum(0)
        return joined if self.shared is None else joined + self.shared.forward(x)

    def touched_bytes(self, tokens: int) -> float:
        """Weight bytes that a pass of ``tokens`` reads: of the experts those that get a row."""
        one = (self.gate_up.nbytes + self.down.nbytes) / self.held
        shared = self.shared.touched_bytes(tokens) if self.shared else 0.0
        return float(self.router.nbytes + shared + one * min(self.held, self.rows(tokens)))


def evenly(rows: int, held: int) -> list[tuple[int, int, int]]:
    """Split ``rows`` over ``held`` experts: (first, last, rows of each), at most one row apart."""
    each, more = divmod(rows, held)
    parts = [(0, more, each + 1), (more, held, each)]
    return [part for part in parts if part[1] > part[0] and part[2] > 0]


def draw_feed_forward(llm: Llm, draw: Draw, tensor: int, held: int) -> Dense | Experts:
    """Draw the weights of one layer's feed-forward: ``held`` experts (0: all of them) if it has any."""
    ffn, hidden = llm.ffn, llm.hidden

    def dense(intermediate: int) -> Dense:
        mine = math.ceil(intermediate / tensor)
        return Dense(matrix(draw, 2 * mine, hidden), matrix(draw, hidden, mine))

    if not ffn.experts:
        return dense(ffn.dense_intermediate)
    count, width = held or ffn.experts, ffn.expert_intermediate
    return Experts(
        router=matrix(draw, ffn.experts, hidden),
        gate_up=draw(count, 2 * width, hidden, scale=hidden**-0.5),
        down=draw(count, hidden, width, scale=width**-0.5),
        active=ffn.active_experts,
        tensor=tensor,
        shared=dense(ffn.shared_experts * width) if ffn.shared_experts else None,
    )
