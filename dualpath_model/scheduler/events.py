"""What the scheduler is told and what it answers: events in, decisions out, both plain records.

Everything is a frozen dataclass with a ``kind``, so that a line of the decision log is one of them as
JSON. Tokens are whole numbers. Names of requests, engines, nodes and groups are the deployment's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

MOST_TOKENS = 2**36
"""Largest token count accepted anywhere: sums over any cluster stay exact in 64 bits."""

Tokens = Annotated[int, Field(strict=True)]
PoolName = Literal["prefill", "decode"]

# ---- events --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    """A request arrives. Its id must be new: late events of an old one would be taken for its own.

    ``hit_tokens`` of the prompt are read from storage; ``reserve_tokens`` is the room kept in the
    decode engine's HBM beyond the prompt (the most that may be generated; 0: reports tell the growth).
    """

    request: str
    prompt_tokens: Tokens
    hit_tokens: Tokens
    reserve_tokens: Tokens = 0
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What a leader says of one engine; None: keep the scheduler's own account.

    ``seq``: unfinished requests. ``tok``: their tokens. ``free_tokens``: free HBM, decode only, at most
    the node's ``hbm_tokens``.
    """

    seq: Tokens | None = None
    tok: Tokens | None = None
    free_tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Fetch:
    """A group's leader asks for work and reports.

    ``number`` grows with every fetch of the group. The last one again is answered with the same
    decisions again (a retry after a lost answer); an older one is answered with none. Neither changes
    anything. ``read_q``: tokens waiting to be read, by node, counting the reads that have started.
    """

    group: str
    number: Annotated[int, Field(strict=True)]
    engines: Mapping[str, EngineReport] = field(default_factory=dict)
    read_q: Mapping[str, Tokens] = field(default_factory=dict)
    kind: Literal["fetch"] = "fetch"


@dataclass(frozen=True, slots=True)
class ReadStarted:
    """A node took up a request's read: from now on its own reports count it."""

    request: str
    node: str
    attempt: Annotated[int, Field(strict=True)] = 1
    kind: Literal["read started"] = "read started"


@dataclass(frozen=True, slots=True)
class ReadFinished:
    """A node has read its part of a request's hits."""

    request: str
    node: str
    attempt: Annotated[int, Field(strict=True)] = 1
    kind: Literal["read finished"] = "read finished"


@dataclass(frozen=True, slots=True)
class PrefillFinished:
    """A request's last chunk is computed and its KV-cache is with the decode node."""

    request: str
    attempt: Annotated[int, Field(strict=True)] = 1
    kind: Literal["prefill finished"] = "prefill finished"


@dataclass(frozen=True, slots=True)
class DecodeFinished:
    """A request has its last token: it leaves the scheduler."""

    request: str
    attempt: Annotated[int, Field(strict=True)] = 1
    kind: Literal["decode finished"] = "decode finished"


@dataclass(frozen=True, slots=True)
class EngineLost:
    """An engine is gone; its unfinished requests return to the queue, in order."""

    engine: str
    kind: Literal["engine lost"] = "engine lost"


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node is gone with all its engines."""

    node: str
    kind: Literal["node lost"] = "node lost"


@dataclass(frozen=True, slots=True)
class Prices:
    """What the policy `priced` knows of a node beside its queues.

    ``read_price`` and ``engine_price``: shares of the LP's dual value that its storage NIC and its
    engines carry (all resources of the cluster together: 1). For each other resource its share
    ``price``, and the seconds of it that a token takes: a hit read by this node (``near_s``) or by the
    other side (``far_s``), a miss (``miss_s``).
    """

    read_price: float = 0.0
    engine_price: float = 0.0
    resources: tuple[str, ...] = ()
    price: tuple[float, ...] = ()
    near_s: tuple[float, ...] = ()
    far_s: tuple[float, ...] = ()
    miss_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler knows of a node.

    ``alpha_tokens``: its read queue is short up to here. ``beta_tokens`` (prefill): an engine with more
    unfinished tokens gets no work. ``hbm_tokens`` (decode): KV-cache room of one engine.
    ``read_tokens_per_s``: rate of the storage NIC (`split`, `priced`). ``engine_tokens_per_s``: tokens
    of requests that one engine turns over (`priced`).
    """

    alpha_tokens: Tokens
    beta_tokens: Tokens = 0
    hbm_tokens: Tokens = 0
    read_tokens_per_s: float = 1.0
    engine_tokens_per_s: float = 1.0
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node comes (or comes back) with its engines; its group is made if it is new."""

    node: str
    pool: PoolName
    group: str
    engines: tuple[str, ...]
    limits: Limits
    kind: Literal["node joined"] = "node joined"


@dataclass(frozen=True, slots=True)
class EngineJoined:
    """An engine of a node comes (or comes back)."""

    engine: str
    node: str
    kind: Literal["engine joined"] = "engine joined"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the scheduler decides, for all nodes alike; the paper's constants are the defaults.

    ``patience``: a request may be overtaken by fewer than so many later ones with less work; 0 is FIFO.
    The work is ``hit_s_per_token`` x hits + ``miss_s_per_token`` x misses, and ``most_work_s`` of it
    count in full. ``expected_split``, ``hit_share`` and ``price_weight_s`` are for `priced`: fractions
    of reads on the decode side and of hits in a mean prompt, and V of :mod:`priced`.
    """

    policy: str = "dualpath"
    z_factor: float = 1.05
    block_tokens: Tokens = 64
    patience: Annotated[int, Field(strict=True)] = 0
    hit_s_per_token: float = 0.0
    miss_s_per_token: float = 1.0
    most_work_s: float = 0.0
    expected_split: float = 0.5
    hit_share: float = 1.0
    price_weight_s: float = 3.0


@dataclass(frozen=True, slots=True)
class ParametersChanged:
    """New settings, or new limits of some nodes, from now on; placed requests stay where they are."""

    settings: Settings | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)
    kind: Literal["parameters changed"] = "parameters changed"


Event = (
    Submit
    | Fetch
    | ReadStarted
    | ReadFinished
    | PrefillFinished
    | DecodeFinished
    | EngineLost
    | NodeLost
    | NodeJoined
    | EngineJoined
    | ParametersChanged
)

# ---- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrefillPlaced:
    """A request has its prefill engine; the other fields are what the choice went by.

    ``key``: the request's place in the queue; an engine packs those that are ready least key first.
    ``engine_class``: 2 (short read queue) or 3. ``tok``, ``read_q``: of the engine and its node before.
    """

    request: str
    attempt: int
    engine: str
    key: float
    engine_class: int
    tok: int
    read_q: int
    kind: Literal["prefill placed"] = "prefill placed"


@dataclass(frozen=True, slots=True)
class DecodePlaced:
    """A request has its decode engine.

    ``balanced``: tok + length stays within ``balanced_tokens`` (Z). ``seq``, ``tok``, ``free_tokens``:
    of the engine before.
    """

    request: str
    attempt: int
    engine: str
    balanced: bool
    balanced_tokens: int
    seq: int
    tok: int
    free_tokens: int
    kind: Literal["decode placed"] = "decode placed"


@dataclass(frozen=True, slots=True)
class ReadOrdered:
    """Both engines are known: so many of the hit tokens are read by each one's node."""

    request: str
    attempt: int
    prefill_node: str
    prefill_tokens: int
    decode_node: str
    decode_tokens: int
    kind: Literal["read ordered"] = "read ordered"


@dataclass(frozen=True, slots=True)
class GroupChosen:
    """Phase 1: a request waits in this group's private queue."""

    request: str
    attempt: int
    group: str
    kind: Literal["group chosen"] = "group chosen"


@dataclass(frozen=True, slots=True)
class Returned:
    """A request is back in the queue, in its old position, for its next ``attempt``."""

    request: str
    attempt: int
    kind: Literal["returned"] = "returned"


Decision = PrefillPlaced | DecodePlaced | ReadOrdered | GroupChosen | Returned
