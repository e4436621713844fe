"""LLMs by name (``llms.yaml``), from a Hugging Face ``config.json``, or from a user's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from dualpath_model.catalog import files, hugging_face
from dualpath_model.catalog.files import Count, CountOrZero, Grade, PositiveNumber, Source, Spec
from dualpath_model.errors import unknown_name
from dualpath_model.llm import (
    FeedForward,
    GroupedAttention,
    Indexer,
    KvDtype,
    LatentAttention,
    Llm,
    Published,
)
from dualpath_model.yaml_lines import Document

_FILE = "llms.yaml"
_KINDS = ("mha", "gqa", "gqa_sliding", "mla", "mla_sparse")


def _known_kind(kind: object) -> object:
    if kind not in _KINDS:
        raise ValueError(f"'{kind}' is not a kind of attention; allowed are {', '.join(_KINDS)}")
    return kind


class GroupedAttentionSpec(Spec):
    """Multi-head or grouped-query attention; ``gqa_sliding``: some layers see only a window."""

    kind: Annotated[Literal["mha", "gqa", "gqa_sliding"], BeforeValidator(_known_kind)]
    heads: Count
    kv_heads: Count
    head_dim: Count
    sliding_window_tokens: CountOrZero = 0
    sliding_layers: CountOrZero = 0
    qkv_bias: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; correct one"
            )
        if bool(self.sliding_layers) != bool(self.sliding_window_tokens):
            raise ValueError("sliding_layers and sliding_window_tokens go together; give both")
        found = self.to_attention().kind
        if found != self.kind:
            raise ValueError(f"kind is '{self.kind}', but the other fields make it '{found}'")
        return self

    def to_attention(self) -> GroupedAttention:
        """Return the dataclass that the models use."""
        return GroupedAttention(**self.model_dump(exclude={"kind"}))


class IndexerSpec(Spec):
    """The indexer of sparse attention; ``key_bytes_per_token_layer`` is what it caches."""

    heads: Count
    head_dim: Count
    top_k: Count
    key_bytes_per_token_layer: PositiveNumber


class LatentAttentionSpec(Spec):
    """Multi-head latent attention; with an ``indexer`` it is sparse."""

    kind: Annotated[Literal["mla", "mla_sparse"], BeforeValidator(_known_kind)]
    heads: Count
    q_lora_rank: CountOrZero
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    indexer: IndexerSpec | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = self.to_attention().kind
        if found != self.kind:
            raise ValueError(f"kind is '{self.kind}', but the other fields make it '{found}'")
        return self

    def to_attention(self) -> LatentAttention:
        """Return the dataclass that the models use."""
        indexer = Indexer(**self.indexer.model_dump()) if self.indexer else None
        return LatentAttention(**self.model_dump(exclude={"kind", "indexer"}), indexer=indexer)


def _attention_tag(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "latent" if str(kind).startswith("mla") else "grouped"


AttentionSpec = Annotated[
    Annotated[GroupedAttentionSpec, Tag("grouped")] | Annotated[LatentAttentionSpec, Tag("latent")],
    Discriminator(_attention_tag),
]


class FeedForwardSpec(Spec):
    """Feed-forward layers: dense ones, experts, or ``first_dense_layers`` dense, then experts."""

    dense_intermediate: CountOrZero = 0
    expert_intermediate: CountOrZero = 0
    experts: CountOrZero = 0
    active_experts: CountOrZero = 0
    shared_experts: CountOrZero = 0
    first_dense_layers: CountOrZero = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.experts and not (self.expert_intermediate and self.active_experts):
            raise ValueError("experts needs expert_intermediate and active_experts; add them")
        if self.active_experts > self.experts:
            raise ValueError(
                f"active_experts {self.active_experts} is more than experts {self.experts}"
            )
        if (self.first_dense_layers or not self.experts) and not self.dense_intermediate:
            raise ValueError("dense_intermediate is required where layers are dense; add it")
        return self


class PublishedSpec(Spec):
    """Counts that the vendor publishes, and what they count; see :class:`~llm.Published`."""

    total_params: PositiveNumber | None = None
    active_params: PositiveNumber | None = None
    total_counts_embeddings: bool = True
    active_counts_embeddings: Literal["both", "head", "none"] = "head"
    counts_mtp: bool = False


class LlmSpec(Spec):
    """One LLM as ``llms.yaml`` or a user's YAML describes it; counts are plain numbers."""

    name: str | None = None
    layers: Count
    hidden: Count
    vocab: Count
    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    tied_embeddings: bool = False
    mtp_layers: CountOrZero = 0
    max_context_tokens: Count
    weight_bytes_per_param: PositiveNumber
    expert_bytes_per_param: PositiveNumber | None = Field(
        default=None, description="bytes of a routed expert's parameter; left out: as the others"
    )
    compute_dtype: Literal["bf16", "fp8"] = "bf16"
    default_kv_dtype: KvDtype = KvDtype.FP8
    prefill_attention_form: Literal["decompressed", "absorbed"] = "decompressed"
    count_lm_head: bool = Field(default=False, description="count the LM head in prefill FLOPs")
    published: PublishedSpec = PublishedSpec()
    source: Source = Field(default_factory=list)
    grade: Grade = "given"
    note: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for field, part in (
            ("attention.sliding_layers", getattr(self.attention, "sliding_layers", 0)),
            ("feed_forward.first_dense_layers", self.feed_forward.first_dense_layers),
        ):
            if part > self.layers:
                raise ValueError(f"{field} {part} is more than layers {self.layers}; correct one")
        latent = isinstance(self.attention, LatentAttentionSpec)
        if self.default_kv_dtype is KvDtype.FP8_DS_MLA and not latent:
            raise ValueError("default_kv_dtype 'fp8_ds_mla' needs attention.kind mla; use fp8")
        return self

    def to_llm(self, name: str) -> Llm:
        """Return the LLM; ``name`` is used where the spec gives none."""
        expert_bytes = self.expert_bytes_per_param or self.weight_bytes_per_param
        return Llm(
            name=self.name or name,
            layers=self.layers,
            hidden=self.hidden,
            vocab=self.vocab,
            attention=self.attention.to_attention(),
            ffn=FeedForward(**self.feed_forward.model_dump()),
            tied_embeddings=self.tied_embeddings,
            mtp_layers=self.mtp_layers,
            max_context_tokens=self.max_context_tokens,
            weight_bytes_per_param=self.weight_bytes_per_param,
            expert_bytes_per_param=expert_bytes,
            compute_dtype=self.compute_dtype,
            default_kv_dtype=self.default_kv_dtype,
            prefill_attention_form=self.prefill_attention_form,
            count_lm_head=self.count_lm_head,
            published=Published(**self.published.model_dump()),
            sources=tuple(self.source),
            grade=self.grade,
        )


def llm_names() -> list[str]:
    """Return the names of the catalog's LLMs, in the order of the file."""
    return list(files.shipped(_FILE))


def llm_entry(name: str) -> LlmSpec:
    """Return the catalog's entry with sources, grade and note.

    Raises InputError with the nearest names if there is none of that name.
    """
    entries = files.shipped(_FILE)
    if name not in entries:
        raise unknown_name("LLM", name, entries)
    return files.validated(LlmSpec, files.inline(entries[name], f"{_FILE}: {name}"))


def load_llm(name_or_path: str, base_dir: Path | None = None) -> Llm:
    """Return the LLM that ``name_or_path`` means.

    That is a name of the catalog, a Hugging Face ``config.json`` (or the folder that has one), or a
    YAML file with one LLM in the fields of ``llms.yaml``. Relative paths start at ``base_dir``.
    Raises InputError for unknown names (with the nearest), missing files and values that make no
    sense, naming file, field, value and remedy.
    """
    if name_or_path in files.shipped(_FILE):
        return llm_entry(name_or_path).to_llm(name_or_path)
    if not files.looks_like_path(name_or_path):
        raise unknown_name("LLM", name_or_path, llm_names())
    path = files.resolve("LLM", name_or_path, base_dir, llm_names())
    document = files.read(path / "config.json" if path.is_dir() else path)
    if Path(document.file).suffix == ".json" and "feed_forward" not in document.data:
        return hugging_face.read_config(document.data, document.file)
    return _from_document(document, path.stem)


def parse_llm(mapping: Mapping[str, Any], name: str = "inline", where: str = "llm") -> Llm:
    """Return the LLM of an inline mapping (fields of ``llms.yaml``); ``where`` is for messages.

    Raises InputError as :func:`load_llm` does.
    """
    return _from_document(files.inline(mapping, where), name)


def _from_document(document: Document, name: str) -> Llm:
    return files.validated(LlmSpec, document).to_llm(name)
