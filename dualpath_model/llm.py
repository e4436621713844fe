"""An LLM as the cluster sees it: KV-cache bytes, FLOPs, weight bytes, from the architecture alone.

Conventions (they reproduce Table 1 of the paper, see ``dualpath llm cache-compute``):

* a multiply-add is 2 FLOP; softmax, activations and positional encodings are not counted, norm
  weights and biases count like matrix elements (below 0.01 % of a token's FLOPs);
* prefill of ``a`` appended tokens on ``c`` cached ones attends to ``c + t`` tokens for the t-th of
  them, the mean of which is ``c + a/2`` (causal attention, exact integral also under a window or
  top-k);
* latent attention (MLA) is counted in *decompressed* form for prefill (heads x (nope + rope + v))
  unless the catalog says *absorbed*, and always in absorbed form for decode (heads x (2 kv_lora +
  rope)); decompressing the latents of cached tokens is not counted, as in Table 1;
* sparse attention looks at ``min(context, top_k)`` tokens; its indexer scores the whole context.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dualpath_model.errors import InputError

Array = npt.NDArray[np.float64]
Tokens = float | Array
"""Token counts: a scalar or an array of any shape; results broadcast."""


class KvDtype(StrEnum):
    """How the KV-cache of a token is stored."""

    BF16 = "bf16"
    FP8 = "fp8"
    FP8_DS_MLA = "fp8_ds_mla"
    """The deployed DeepSeek layout: fp8 latent, fp32 scales, bf16 rope part; indexer keys."""


_BYTES_PER_ELEMENT = {KvDtype.BF16: 2.0, KvDtype.FP8: 1.0}


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Multi-head (kv_heads = heads) or grouped-query attention, some layers with a window."""

    heads: int
    kv_heads: int
    head_dim: int
    sliding_window_tokens: int = 0
    sliding_layers: int = 0
    qkv_bias: bool = False

    @property
    def kind(self) -> str:
        """Name of the kind, as in the catalog."""
        if self.sliding_layers:
            return "gqa_sliding"
        return "mha" if self.kv_heads == self.heads else "gqa"


@dataclass(frozen=True, slots=True)
class Indexer:
    """The lightning indexer of sparse attention: scores every cached token, keeps the best."""

    heads: int
    head_dim: int
    top_k: int
    key_bytes_per_token_layer: float


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA), dense or sparse; ``q_lora_rank`` 0: plain queries."""

    heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    indexer: Indexer | None = None

    @property
    def kind(self) -> str:
        """Name of the kind, as in the catalog."""
        return "mla_sparse" if self.indexer else "mla"

    @property
    def latent_dim(self) -> int:
        """Cached elements a token and layer: compressed KV and the shared rope key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Gated feed-forward layers (3 matrices): dense, or experts after ``first_dense_layers``."""

    dense_intermediate: int = 0
    expert_intermediate: int = 0
    experts: int = 0
    active_experts: int = 0
    shared_experts: int = 0
    first_dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """What the vendor says, and which tables it counts, so that a test can compare like with like.

    ``active_counts_embeddings`` is "both", "head" (the input table is only a look-up) or "none";
    ``counts_mtp``: both counts include the multi-token-prediction layers.
    """

    total_params: float | None = None
    active_params: float | None = None
    total_counts_embeddings: bool = True
    active_counts_embeddings: str = "head"
    counts_mtp: bool = False


class PrefillFlops(NamedTuple):
    """FLOPs of a prefill: matrix products on each token, and attention over the context."""

    linear: Tokens
    attention: Tokens

    @property
    def total(self) -> Tokens:
        """Both parts together."""
        return self.linear + self.attention


@dataclass(frozen=True)
class Llm:
    """One architecture. Sizes in elements, contexts in tokens."""

    name: str
    layers: int
    hidden: int
    vocab: int
    attention: GroupedAttention | LatentAttention
    ffn: FeedForward
    tied_embeddings: bool = False
    mtp_layers: int = 0
    max_context_tokens: int = 131072
    weight_bytes_per_param: float = 2.0
    expert_bytes_per_param: float = 2.0
    compute_dtype: str = "bf16"
    default_kv_dtype: KvDtype = KvDtype.FP8
    prefill_attention_form: str = "decompressed"
    count_lm_head: bool = False
    published: Published = field(default_factory=Published)
    sources: tuple[str, ...] = ()
    grade: str = "given"

    # ---- KV-cache -----------------------------------------------------------------------------

    def kv_bytes_per_token_layer(self, dtype: KvDtype) -> float:
        """KV-cache bytes of one token in one layer.

        ``bf16`` and ``fp8`` count the attention's own KV as Table 1 does; ``fp8_ds_mla`` adds what
        a deployed cache holds beside it (scales, bf16 rope keys, indexer keys).
        Raises InputError if ``fp8_ds_mla`` is asked of an LLM without latent attention.
        """
        attention = self.attention
        if isinstance(attention, GroupedAttention):
            if dtype is KvDtype.FP8_DS_MLA:
                raise InputError(
                    f"kv_dtype 'fp8_ds_mla' needs latent attention, but {self.name} has "
                    f"{attention.kind}; use fp8 or bf16"
                )
            return 2.0 * attention.kv_heads * attention.head_dim * _BYTES_PER_ELEMENT[dtype]
        if dtype is not KvDtype.FP8_DS_MLA:
            return attention.latent_dim * _BYTES_PER_ELEMENT[dtype]
        # One fp32 scale for each 128 latent elements and rope keys in bf16 (FlashMLA's layout).
        scales = 4.0 * attention.kv_lora_rank / 128
        latent = attention.kv_lora_rank + scales + 2.0 * attention.qk_rope_head_dim
        indexer = attention.indexer
        return latent + (indexer.key_bytes_per_token_layer if indexer else 0.0)

    def kv_bytes_per_token(self, dtype: KvDtype) -> float:
        """KV-cache bytes that one token adds, all layers: what is written to storage for it."""
        return self.layers * self.kv_bytes_per_token_layer(dtype)

    def kv_bytes(self, tokens: Tokens, dtype: KvDtype) -> Tokens:
        """KV-cache bytes that attention needs of a context of ``tokens``: a sliding layer keeps
        only its window. This is what a hit reads from storage.
        """
        per_layer = self.kv_bytes_per_token_layer(dtype)
        sliding = self._sliding_layers
        if not sliding:
            return self.layers * per_layer * tokens
        kept = np.minimum(tokens, self._window)
        return per_layer * ((self.layers - sliding) * tokens + sliding * kept)

    def replication(self, tensor_parallel: int) -> float:
        """How many copies of each KV byte a tensor-parallel group holds in HBM.

        Grouped heads are split over the ranks until there is one KV head a rank; the latent of MLA
        has no heads to split, so every rank holds all of it.
        """
        if isinstance(self.attention, LatentAttention):
            return float(tensor_parallel)
        return max(1.0, tensor_parallel / self.attention.kv_heads)

    # ---- compute ------------------------------------------------------------------------------

    def prefill_flops(self, cached: Tokens, append: Tokens) -> PrefillFlops:
        """FLOPs to prefill ``append`` tokens on ``cached`` ones; arguments broadcast."""
        linear_params = self.params.active - self.params.input_embedding
        if not self.count_lm_head:
            linear_params -= self.params.lm_head
        linear = 2.0 * linear_params * append
        if isinstance(self.attention, GroupedAttention):
            per_pair = 4.0 * self.attention.heads * self.attention.head_dim
            full = (self.layers - self._sliding_layers) * _mean_attended(cached, append)
            if self._sliding_layers:
                full = full + self._sliding_layers * _mean_attended(cached, append, self._window)
            return PrefillFlops(linear, per_pair * full * append)
        per_pair = self._latent_pair_flops(self.prefill_attention_form)
        indexer = self.attention.indexer
        if indexer is None:
            attended = _mean_attended(cached, append)
            return PrefillFlops(linear, self.layers * per_pair * attended * append)
        attended = _mean_attended(cached, append, float(indexer.top_k))
        scored = 2.0 * indexer.heads * indexer.head_dim * _mean_attended(cached, append)
        return PrefillFlops(linear, self.layers * (per_pair * attended + scored) * append)

    def decode_flops(self, context: Tokens) -> Tokens:
        """FLOPs to generate one token on a context of ``context`` tokens, LM head included."""
        linear = 2.0 * (self.params.active - self.params.input_embedding)
        if isinstance(self.attention, GroupedAttention):
            per_pair = 4.0 * self.attention.heads * self.attention.head_dim
            kept = np.minimum(context, self._window) if self._sliding_layers else 0.0
            pairs = (self.layers - self._sliding_layers) * context + self._sliding_layers * kept
            return linear + per_pair * pairs
        per_pair = self._latent_pair_flops("absorbed")
        indexer = self.attention.indexer
        if indexer is None:
            return linear + self.layers * per_pair * context
        scored = 2.0 * indexer.heads * indexer.head_dim * context
        return linear + self.layers * (per_pair * np.minimum(context, indexer.top_k) + scored)

    def decode_read_bytes(self, context: Tokens, dtype: KvDtype) -> Tokens:
        """KV bytes read from HBM to generate one token: the whole context, or under sparse
        attention the indexer's keys of the whole context and the KV of the best ``top_k``.
        """
        indexer = self.attention.indexer if isinstance(self.attention, LatentAttention) else None
        if indexer is None:
            return self.kv_bytes(context, dtype)
        stored_keys = indexer.key_bytes_per_token_layer if dtype is KvDtype.FP8_DS_MLA else 0.0
        latent = self.kv_bytes_per_token_layer(dtype) - stored_keys
        chosen = latent * np.minimum(context, indexer.top_k)
        return self.layers * (chosen + indexer.key_bytes_per_token_layer * context)

    def _latent_pair_flops(self, form: str) -> float:
        attention = self.attention
        assert isinstance(attention, LatentAttention)
        if form == "absorbed":
            width = attention.latent_dim + attention.kv_lora_rank
        else:
            width = attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim
        return 2.0 * attention.heads * width

    @property
    def _sliding_layers(self) -> int:
        return getattr(self.attention, "sliding_layers", 0)

    @property
    def _window(self) -> float:
        return float(getattr(self.attention, "sliding_window_tokens", 0))

    # ---- weights ------------------------------------------------------------------------------

    @cached_property
    def params(self) -> Params:
        """Parameter counts computed from the shape."""
        return count_params(self)

    @property
    def params_as_published(self) -> tuple[float, float]:
        """Total and active parameters, counting what ``published`` says that the vendor counts."""
        params, published = self.params, self.published
        total = params.total + (params.mtp if published.counts_mtp else 0.0)
        active = params.active + (params.mtp_active if published.counts_mtp else 0.0)
        tables = params.lm_head + (0.0 if self.tied_embeddings else params.input_embedding)
        if not published.total_counts_embeddings:
            total -= tables
        left_out = {
            "both": params.lm_head if self.tied_embeddings else 0.0,  # one table, in active twice
            "head": params.input_embedding,
            "none": params.input_embedding + params.lm_head,
        }
        return total, active - left_out[published.active_counts_embeddings]

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights, without multi-token-prediction layers."""
        experts = self.params.experts
        return (
            experts * self.expert_bytes_per_param
            + (self.params.total - experts) * self.weight_bytes_per_param
        )

    def resident_weight_bytes(self, tensor_parallel: int, expert_parallel: int) -> float:
        """Weight bytes that one GPU holds: experts are spread over ``expert_parallel`` GPUs, the
        rest is split over the ``tensor_parallel`` ranks and repeated in each data-parallel replica.
        """
        experts = self.params.experts
        rest = (self.params.total - experts) * self.weight_bytes_per_param / tensor_parallel
        return experts * self.expert_bytes_per_param / expert_parallel + rest

    def decode_weight_read_bytes(
        self, tensor_parallel: int, expert_parallel: int, batch_tokens: Tokens
    ) -> Tokens:
        """Weight bytes that one GPU reads in a decode step of ``batch_tokens`` tokens in the whole
        expert-parallel group: all its dense weights, and the expected share of its experts that
        the batch touches (each token draws ``active_experts`` of ``experts``).
        """
        params = self.params
        dense = params.total - params.experts
        if not self.tied_embeddings:  # a table that is also the LM head is read, the look-up is not
            dense -= params.input_embedding
        read = dense * self.weight_bytes_per_param / tensor_parallel
        if not self.ffn.experts:
            return read
        untouched = (1.0 - self.ffn.active_experts / self.ffn.experts) ** np.asarray(batch_tokens)
        local = params.experts * self.expert_bytes_per_param / expert_parallel
        return read + local * (1.0 - untouched)


class Params(NamedTuple):
    """Parameter counts; ``experts`` are the routed ones, ``active`` what one token uses.

    ``total`` counts a tied table once, ``active`` as input and as head. ``mtp`` and ``mtp_active``,
    the multi-token-prediction layers, are in neither.
    """

    total: float
    active: float
    experts: float
    input_embedding: float
    lm_head: float
    mtp: float
    mtp_active: float


def count_params(llm: Llm) -> Params:
    """Count the parameters of the shape. Totals include both embedding tables, not MTP layers.

    Left out, together below 0.04 % of any catalog LLM: norms inside attention, router and expert
    biases, attention sinks.
    """
    attention = llm.layers * (_attention_params(llm) + 2 * llm.hidden)  # two norms a layer
    ffn = llm.ffn
    moe_layers = llm.layers - ffn.first_dense_layers if ffn.experts else 0
    dense = (llm.layers - moe_layers) * 3.0 * llm.hidden * ffn.dense_intermediate
    one_expert = 3.0 * llm.hidden * ffn.expert_intermediate
    router = moe_layers * llm.hidden * ffn.experts
    shared = moe_layers * ffn.shared_experts * one_expert
    experts = moe_layers * ffn.experts * one_expert
    table = float(llm.vocab * llm.hidden)
    head = 0.0 if llm.tied_embeddings else table
    common = attention + dense + router + shared + table + head + llm.hidden
    # An MTP layer is one more layer of the last kind, and a projection of two joined hidden states.
    mtp_layer = _attention_params(llm) + 2 * llm.hidden + 2.0 * llm.hidden * llm.hidden
    if ffn.experts:
        mtp_layer += llm.hidden * ffn.experts + ffn.shared_experts * one_expert
    else:
        mtp_layer += 3.0 * llm.hidden * ffn.dense_intermediate
    mtp = llm.mtp_layers * (mtp_layer + ffn.experts * one_expert)
    mtp_active = llm.mtp_layers * (mtp_layer + ffn.active_experts * one_expert)
    active_experts = moe_layers * ffn.active_experts * one_expert
    lm_head = table  # a tied table still multiplies each hidden state
    total, active = common + experts, common + active_experts
    if llm.tied_embeddings:
        active += table  # count the one table as input and as head, so that either can be left out
    return Params(total, active, experts, table, lm_head, mtp, mtp_active)


def _attention_params(llm: Llm) -> float:
    attention = llm.attention
    if isinstance(attention, GroupedAttention):
        q_width = attention.heads * attention.head_dim
        kv_width = attention.kv_heads * attention.head_dim
        bias = q_width + 2 * kv_width if attention.qkv_bias else 0
        return llm.hidden * (2.0 * q_width + 2.0 * kv_width) + bias
    qk_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim
    rank = attention.q_lora_rank
    query = attention.heads * qk_dim * (rank or llm.hidden) + rank * llm.hidden
    key_value = llm.hidden * attention.latent_dim + attention.kv_lora_rank * attention.heads * (
        attention.qk_nope_head_dim + attention.v_head_dim
    )
    output = attention.heads * attention.v_head_dim * llm.hidden
    total = float(query + key_value + output)
    if attention.indexer:
        indexer = attention.indexer
        total += indexer.heads * indexer.head_dim * (rank or llm.hidden)
        total += llm.hidden * (indexer.head_dim + indexer.heads)
    return total


def _mean_attended(cached: Tokens, append: Tokens, most: float = np.inf) -> Tokens:
    """Mean over t in [0, append] of min(cached + t, most): what an appended token attends to."""
    if np.isinf(most):
        return cached + 0.5 * np.asarray(append, dtype=float)
    cached = np.asarray(cached, dtype=float)
    append = np.asarray(append, dtype=float)
    growing = np.clip(most - cached, 0.0, append)  # tokens that still see less than ``most``
    area = growing * (np.minimum(cached, most) + 0.5 * growing) + (append - growing) * most
    at_once = np.minimum(cached, most)
    return np.where(append > 0, area / np.where(append > 0, append, 1.0), at_once)


def cache_compute_bytes_per_flop(
    llm: Llm, cached: Tokens, append: Tokens, dtype: KvDtype
) -> Tokens:
    """KV bytes to load over FLOPs to compute (paper, Table 1); times 1e6 it is GB/PFLOP."""
    return llm.kv_bytes(cached, dtype) / llm.prefill_flops(cached, append).total
