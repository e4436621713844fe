"""The policies: the paper's rules, and for each other policy what it puts in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dualpath_model.compilation import Function, bound, compilable
from dualpath_model.errors import unknown_name
from dualpath_model.scheduler import priced, round_robin, split
from dualpath_model.scheduler.arrays import Nodes


@dataclass(frozen=True)
class Policy:
    """A named set of rules; ``rules`` replace those of :mod:`paper` that have the same names.

    ``whole_batch_quota``: the quota of a forward batch counts the matrix products too, not attention
    alone. A long prompt is then cut where one engine's arithmetic would make its whole unit wait; by
    attention time alone a first prompt of 8K tokens goes in one piece.
    """

    name: str
    meaning: str
    rules: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    whole_batch_quota: bool = False

    def bind(self, function: Function, *, compiled: bool = False) -> Function:
        """Return a function of :mod:`placement` that follows this policy."""
        return bound(function, self.rules, compiled=compiled)

    @property
    def queues_prefill(self) -> bool:
        """Whether a request waits for one prefill group, instead of for whichever fetches first."""
        return "choose_prefill_group" in self.rules

    @property
    def moves_nothing(self) -> bool:
        """Whether KV-cache is everywhere without being moved: a bound, not a way to serve."""
        return self.rules.get("read_tokens") is read_nothing


@compilable
def read_nothing(nodes: Nodes, prefill_node: int, decode_node: int, hit: int) -> tuple[int, int]:
    """Hits are in place without being moved."""
    return 0, 0


_IN_TURN: dict[str, Callable[..., Any]] = {
    "prefill_key": round_robin.prefill_key,
    "decode_key": round_robin.decode_key,
    "choose_prefill_group": round_robin.choose_prefill_group,
    "choose_prefill": round_robin.choose_prefill,
    "choose_decode_group": round_robin.choose_decode_group,
    "choose_decode": round_robin.choose_decode,
}

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(
            "basic",
            "engines in turn, every read by the prefill node",
            {**_IN_TURN, "read_tokens": round_robin.read_by_prefill},
        ),
        Policy(
            "round-robin",
            "engines in turn, reads by the prefill and the decode node in turn",
            {**_IN_TURN, "read_tokens": round_robin.read_in_turn},
        ),
        Policy("dualpath", "the paper's rules: least loaded engines, the shorter read queue"),
        Policy(
            "oracle",
            "the paper's engines, no read at all: moving KV-cache costs nothing",
            {"read_tokens": read_nothing},
        ),
        Policy(
            "split",
            "the paper's engines, each read shared by both nodes so that they finish together; "
            "the quota counts the whole forward batch",
            {"read_tokens": split.read_tokens},
            whole_batch_quota=True,
        ),
        Policy(
            "priced",
            "engines and side of least cost: backlog and LP price of every resource; "
            "the quota counts the whole forward batch",
            {
                "refresh_node_cost": priced.refresh_node_cost,
                "prefill_key": priced.prefill_key,
                "decode_key": priced.engine_cost,
                "group_key": priced.group_key,
                "choose_decode": priced.choose_decode,
                "read_tokens": priced.read_tokens,
            },
            whole_batch_quota=True,
        ),
    )
}


def policy_named(name: str) -> Policy:
    """Return a policy. Raises InputError with the nearest names for an unknown one."""
    if name not in POLICIES:
        raise unknown_name("policy", name, POLICIES)
    return POLICIES[name]
