"""Later requests give back the one engine that they have, no more of them than an earlier one needs."""

from __future__ import annotations

from dualpath_model.scheduler.events import (
    DecodePlaced,
    Fetch,
    Limits,
    NodeJoined,
    PrefillPlaced,
    Returned,
    Settings,
    Submit,
)
from dualpath_model.scheduler.reference import Scheduler

PATIENT = Settings(patience=10, most_work_s=10.0)  # a miss token moves a request one place back


def scheduler(*, beta: int, hbm: int) -> Scheduler:
    made = Scheduler(PATIENT)
    limits = Limits(alpha_tokens=100, beta_tokens=beta, hbm_tokens=hbm)
    made.handle(NodeJoined("p", "prefill", "P", ("p/0",), limits))
    made.handle(NodeJoined("d", "decode", "D", ("d/0",), limits))
    return made


def test_the_last_ones_give_back_hbm_and_no_more_than_needed() -> None:
    made = scheduler(beta=100, hbm=10)
    for name in ("l1", "l2", "l3"):  # keys 3, 4, 5
        made.handle(Submit(name, 3, 0))
    made.handle(Fetch("D", 1))
    made.handle(Submit("short", 3, 3))  # key 3, behind l1 only
    decisions = made.handle(Fetch("D", 2))
    assert [d.request for d in decisions if isinstance(d, Returned)] == ["l3"]
    assert [d.request for d in decisions if isinstance(d, DecodePlaced)] == ["short"]


def test_nothing_is_given_back_where_it_would_not_help() -> None:
    made = scheduler(beta=100, hbm=10)
    for name in ("l1", "l2", "l3"):
        made.handle(Submit(name, 3, 0))
    made.handle(Fetch("D", 1))
    made.handle(Submit("short", 8, 8))  # l2 and l3 hold 6, and 1 is free
    assert [type(d).__name__ for d in made.handle(Fetch("D", 2))] == ["GroupChosen"]


def test_a_prefill_engine_is_given_back_likewise() -> None:
    made = scheduler(beta=5, hbm=100)
    for name in ("l1", "l2"):  # tok 3, 6: full
        made.handle(Submit(name, 3, 0))
    made.handle(Fetch("P", 1))
    made.handle(Submit("short", 3, 3))  # key 2, before both
    decisions = made.handle(Fetch("P", 2))
    assert [d.request for d in decisions if isinstance(d, Returned)] == ["l2"]
    placed = [d.request for d in decisions if isinstance(d, PrefillPlaced)]
    assert placed == ["short"]


def test_whoever_has_both_engines_keeps_them() -> None:
    made = scheduler(beta=100, hbm=10)
    for name in ("l1", "l2", "l3"):
        made.handle(Submit(name, 3, 0))
    made.handle(Fetch("D", 1))
    made.handle(Fetch("P", 1))
    made.handle(Submit("short", 3, 3))
    assert not [d for d in made.handle(Fetch("D", 2)) if isinstance(d, Returned)]


def test_what_came_before_the_first_decode_node_is_judged_by_it() -> None:
    """Without decode engines anything may come; a small one then shows what cannot be held."""
    made = Scheduler()
    limits = Limits(alpha_tokens=100, beta_tokens=5, hbm_tokens=8)
    made.handle(NodeJoined("p", "prefill", "P", ("p/0",), limits))
    made.handle(Submit("large", 9, 0))
    made.handle(Submit("small", 3, 0))
    made.handle(Fetch("P", 1))
    returned = made.handle(NodeJoined("d", "decode", "D", ("d/0",), limits))
    assert [d.request for d in returned] == ["large"]
    made.handle(Fetch("D", 1))
    (placed, ordered) = made.handle(Fetch("P", 2))
    assert placed.request == ordered.request == "small"
