"""The reference scheduler, story by story: what it is told, what it answers, what it then holds."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import orjson
import pytest

from dualpath_model.errors import InputError
from dualpath_model.scheduler import snapshot
from dualpath_model.scheduler.events import (
    MOST_TOKENS,
    Decision,
    DecodeFinished,
    DecodePlaced,
    EngineJoined,
    EngineLost,
    EngineReport,
    Event,
    Fetch,
    GroupChosen,
    Limits,
    NodeJoined,
    NodeLost,
    ParametersChanged,
    PoolName,
    PrefillFinished,
    PrefillPlaced,
    Prices,
    ReadFinished,
    ReadOrdered,
    ReadStarted,
    Returned,
    Settings,
    Submit,
)
from dualpath_model.scheduler.ledger import ReportError
from dualpath_model.scheduler.policies import POLICIES
from dualpath_model.scheduler.reference import Scheduler
from dualpath_model.scheduler.topology import EngineAccount

LIMITS = Limits(alpha_tokens=100, beta_tokens=1000, hbm_tokens=1000)
NAN, INFINITY = float("nan"), float("inf")


ELSEWHERE = NodeJoined("x", "prefill", "X", ("e",), LIMITS)
BAD_ATTEMPTS: tuple[Any, ...] = (0, -1, True, 1.0, "1", None, NAN, 2**70)


def node(
    name: str, *, pool: PoolName | None = None, group: str = "", engines: int = 2, **limits: Any
) -> NodeJoined:
    """Return node p0, p1, … of group P or d0, d1, … of group D, with engines p0/0, p0/1, …"""
    return NodeJoined(
        node=name,
        pool=pool or ("prefill" if name.startswith("p") else "decode"),
        group=group or name[0].upper(),
        engines=tuple(f"{name}/{i}" for i in range(engines)),
        limits=replace(LIMITS, **limits),
    )


def cluster(*nodes: NodeJoined, **settings: Any) -> Scheduler:
    """Return a scheduler with the nodes (one prefill node, one decode node, two engines each)."""
    scheduler = Scheduler(Settings(**settings), compiled=False)
    for joined in nodes or (node("p0"), node("d0")):
        assert scheduler.handle(joined) == ()
    return scheduler


def submit(scheduler: Scheduler, names: str, prompt: int = 100, hit: int = 80) -> None:
    """Submit a request for each letter."""
    for name in names:
        assert scheduler.handle(Submit(name, prompt, hit)) == ()


def fetch(scheduler: Scheduler, group: str, *reports: Any) -> tuple[Decision, ...]:
    """Fetch under the group's next number."""
    number, _ = scheduler.answers.get(group, (0, ()))
    return scheduler.handle(Fetch(group, number + 1, *reports))


def placements(decisions: Sequence[Decision]) -> list[tuple[str, str]]:
    """Return request and engine of each placement, in order."""
    return [(d.request, d.engine) for d in decisions if isinstance(d, PrefillPlaced | DecodePlaced)]


def order(decisions: Sequence[Decision]) -> ReadOrdered:
    """Return the one read that is ordered."""
    (found,) = (d for d in decisions if isinstance(d, ReadOrdered))
    return found


def account(scheduler: Scheduler, engine: str) -> tuple[int, int]:
    """Return an engine's unfinished requests and their tokens."""
    found = scheduler.ledger.accounts().engines[engine]
    return found.seq, found.tok


def free(scheduler: Scheduler, engine: str) -> int | None:
    return scheduler.ledger.accounts().engines[engine].free


def read_q(scheduler: Scheduler, name: str) -> int:
    return scheduler.ledger.accounts().nodes[name].read_q


def stale(scheduler: Scheduler, event: Event) -> None:
    """Assert that an event is answered with nothing and changes nothing."""
    before = snapshot.take(scheduler)
    assert scheduler.handle(event) == ()
    assert snapshot.take(scheduler) == before


def refused(scheduler: Scheduler, event: Any, *words: str) -> str:
    """Assert that an event is refused in one sentence with a remedy and changes nothing."""
    before = snapshot.take(scheduler)
    with pytest.raises(InputError) as error:
        scheduler.handle(event)
    assert snapshot.take(scheduler) == before
    sentence = str(error.value)
    assert "\n" not in sentence
    assert ";" in sentence, "what is wrong; how to mend it"
    for word in words:
        assert word in sentence
    return sentence


def idle(scheduler: Scheduler) -> bool:
    """Return whether no account holds anything."""
    accounts = scheduler.ledger.accounts()
    engines = all((e.seq, e.tok, e.held) == (0, 0, 0) for e in accounts.engines.values())
    nodes = all(
        (n.read_q, n.unannounced, sum(n.backlog_s)) == (0, 0, 0) for n in accounts.nodes.values()
    )
    return engines and nodes


def finish(scheduler: Scheduler, name: str, attempt: int = 1) -> None:
    """Do all that is left to do for a request that has both engines."""
    for owner in list(scheduler.requests[name].reads):
        scheduler.handle(ReadStarted(name, owner, attempt))
        scheduler.handle(ReadFinished(name, owner, attempt))
    scheduler.handle(PrefillFinished(name, attempt))
    scheduler.handle(DecodeFinished(name, attempt))


# ---- the life of a request -----------------------------------------------------------------------


def test_the_life_of_a_request_and_the_accounts_after_each_step() -> None:
    scheduler = cluster()
    scheduler.handle(Submit("a", prompt_tokens=100, hit_tokens=80, reserve_tokens=20))
    assert idle(scheduler)

    assert fetch(scheduler, "P") == (PrefillPlaced("a", 1, "p0/0", 0.0, 2, tok=0, read_q=0),)
    assert account(scheduler, "p0/0") == (1, 100)

    assert fetch(scheduler, "D") == (
        GroupChosen("a", 1, "D"),
        DecodePlaced("a", 1, "d0/0", False, int(1.05 * 100 / 2), seq=0, tok=0, free_tokens=1000),
        ReadOrdered("a", 1, "p0", 80, "d0", 0),
    )
    assert account(scheduler, "d0/0") == (1, 100)
    assert free(scheduler, "d0/0") == 880
    assert read_q(scheduler, "p0") == 80

    assert scheduler.handle(ReadStarted("a", "p0")) == ()
    assert read_q(scheduler, "p0") == 80  # what is being read counts
    assert scheduler.handle(ReadFinished("a", "p0")) == ()
    assert read_q(scheduler, "p0") == 0
    assert account(scheduler, "p0/0") == (1, 100)

    assert scheduler.handle(PrefillFinished("a")) == ()
    assert account(scheduler, "p0/0") == (0, 0)
    assert account(scheduler, "d0/0") == (1, 100)

    assert scheduler.handle(DecodeFinished("a")) == ()
    assert idle(scheduler)
    assert free(scheduler, "d0/0") == 1000
    assert scheduler.requests == {}
    assert scheduler.handle(Submit("a", 100, 80)) == ()  # the id is free again


@pytest.mark.parametrize("first, second", [("P", "D"), ("D", "P")])
def test_either_placement_comes_first_and_the_read_is_ordered_with_the_second(
    first: str, second: str
) -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    assert not any(isinstance(d, ReadOrdered) for d in fetch(scheduler, first))
    assert order(fetch(scheduler, second)) == ReadOrdered("a", 1, "p0", 80, "d0", 0)


def test_the_shorter_queue_reads_and_a_tie_goes_to_the_node_given_less() -> None:
    scheduler = cluster()
    submit(scheduler, "abc")
    fetch(scheduler, "P")
    reads = [d for d in fetch(scheduler, "D") if isinstance(d, ReadOrdered)]
    assert [(d.prefill_tokens, d.decode_tokens) for d in reads] == [(80, 0), (0, 80), (80, 0)]
    scheduler.handle(ReadFinished("a", "p0"))
    submit(scheduler, "d")
    fetch(scheduler, "P")
    assert order(fetch(scheduler, "D")).decode_tokens == 80  # 80 wait on both; p0 was given 160


def test_a_request_without_hits_needs_no_read() -> None:
    scheduler = cluster()
    submit(scheduler, "a", hit=0)
    fetch(scheduler, "P")
    assert order(fetch(scheduler, "D")) == ReadOrdered("a", 1, "p0", 0, "d0", 0)
    assert scheduler.handle(PrefillFinished("a")) == ()
    scheduler.handle(DecodeFinished("a"))
    assert idle(scheduler)


def test_events_that_come_too_early_are_refused() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    refused(scheduler, ReadStarted("a", "p0"), "'a'", "none is ordered yet")
    refused(scheduler, ReadFinished("a", "p0"), "'a'", "'p0'", "none is ordered yet")
    refused(scheduler, PrefillFinished("a"), "'a'", "not both engines")
    fetch(scheduler, "P")
    refused(scheduler, PrefillFinished("a"), "'a'", "not both engines")
    fetch(scheduler, "D")
    refused(scheduler, PrefillFinished("a"), "'a'", "reads are under way")
    refused(scheduler, ReadStarted("a", "nonsense"), "node 'nonsense' is unknown")
    refused(scheduler, ReadFinished("a", "nonsense"), "node 'nonsense' is unknown")
    scheduler.handle(ReadFinished("a", "p0"))
    refused(scheduler, DecodeFinished("a"), "'a'", "before prefill")


def test_events_that_come_again_change_nothing() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    for event in (ReadStarted("a", "p0"), ReadFinished("a", "p0"), PrefillFinished("a")):
        scheduler.handle(event)
        stale(scheduler, event)
    scheduler.handle(DecodeFinished("a"))
    stale(scheduler, DecodeFinished("a"))
    stale(scheduler, PrefillFinished("a"))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_leads_every_request_to_its_end(policy: str) -> None:
    scheduler = cluster(node("p0"), node("p1", group="Q"), node("d0"), policy=policy)
    submit(scheduler, "abcdef")
    for group in "PQD":
        fetch(scheduler, group)
    for name in "abcdef":
        finish(scheduler, name)
    assert idle(scheduler)
    assert scheduler.requests == {}


def test_the_observer_sees_every_event_with_its_outcome() -> None:
    seen: list[tuple[Any, ...]] = []
    scheduler = Scheduler(observer=lambda *call: seen.append(call))
    scheduler.handle(node("p0"))
    with pytest.raises(InputError) as error:
        scheduler.handle(NodeLost("x"))
    assert seen == [(node("p0"), (), None), (NodeLost("x"), (), error.value)]


def test_what_an_observer_raises_comes_after_the_event_was_taken_in() -> None:
    def full(event: Event, *_: Any) -> None:
        if isinstance(event, Fetch):
            raise OSError("disk full")

    scheduler, other = cluster(), cluster()
    for either in (scheduler, other):
        submit(either, "ab")
    scheduler.observer = full
    with pytest.raises(OSError, match="disk full"):
        scheduler.handle(Fetch("P", 1))
    answer = other.handle(Fetch("P", 1))
    assert len(placements(answer)) == 2
    assert snapshot.take(scheduler) == snapshot.take(other)
    scheduler.observer = None
    assert scheduler.handle(Fetch("P", 1)) == answer
    scheduler.observer = full
    with pytest.raises(OSError, match="disk full"):  # in place of the refusal
        scheduler.handle(Fetch("P", -1))


# ---- the queue's head ----------------------------------------------------------------------------


def test_a_fetch_ends_when_every_prefill_engine_is_above_beta() -> None:
    scheduler = cluster(node("p0", beta_tokens=50), node("d0"))
    submit(scheduler, "a", prompt=60, hit=0)
    submit(scheduler, "bc", prompt=50, hit=0)
    submit(scheduler, "d", prompt=1, hit=0)
    # 50 is not above 50: p0/1 takes two
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0"), ("b", "p0/1"), ("c", "p0/1")]
    assert fetch(scheduler, "P") == ()
    report = {"p0/0": EngineReport(seq=1, tok=50)}
    assert placements(fetch(scheduler, "P", report)) == [("d", "p0/0")]


def test_short_read_queues_come_before_few_tokens() -> None:
    scheduler = cluster(node("p0", engines=1), node("p1", engines=1), node("d0"))
    busy_disk = {"p0": 101, "p1": 100}
    loaded = {"p1/0": EngineReport(seq=9, tok=900)}
    submit(scheduler, "abc")
    found = fetch(scheduler, "P", loaded, busy_disk)
    assert [(d.engine, d.engine_class) for d in found if isinstance(d, PrefillPlaced)] == [
        ("p1/0", 2),
        ("p1/0", 2),
        ("p0/0", 3),  # p1/0 is above beta now
    ]


def test_a_decode_head_without_room_holds_up_those_behind_it() -> None:
    scheduler = cluster(node("p0"), node("d0", engines=1))
    submit(scheduler, "a", prompt=900)
    submit(scheduler, "b", prompt=200)
    submit(scheduler, "c", prompt=10, hit=10)
    assert placements(fetch(scheduler, "D")) == [("a", "d0/0")]
    fetch(scheduler, "P")
    assert placements(fetch(scheduler, "D")) == []
    finish(scheduler, "a")
    assert placements(fetch(scheduler, "D")) == [("b", "d0/0"), ("c", "d0/0")]


def test_room_in_pieces_is_not_room() -> None:
    scheduler = cluster()
    submit(scheduler, "ab", prompt=600)
    submit(scheduler, "c", prompt=500)  # 800 are free together, 400 on each
    assert placements(fetch(scheduler, "D")) == [("a", "d0/0"), ("b", "d0/1")]
    assert placements(fetch(scheduler, "D")) == []


def test_the_reserve_is_kept_in_hbm_and_not_counted_as_work() -> None:
    scheduler = cluster(node("p0"), node("d0", engines=1))
    scheduler.handle(Submit("a", 600, 0, reserve_tokens=300))
    scheduler.handle(Submit("b", 101, 0))
    assert placements(fetch(scheduler, "D")) == [("a", "d0/0")]
    assert account(scheduler, "d0/0") == (1, 600)
    assert free(scheduler, "d0/0") == 100
    scheduler.handle(ParametersChanged(limits={"d0": replace(LIMITS, hbm_tokens=1001)}))
    assert placements(fetch(scheduler, "D")) == [("b", "d0/0")]


def test_fewest_requests_within_z_then_fewest_tokens() -> None:
    scheduler = cluster(z_factor=1.0)
    reports = {"d0/0": EngineReport(seq=1, tok=400), "d0/1": EngineReport(seq=5, tok=200)}
    submit(scheduler, "a", prompt=200)
    (_, placed) = fetch(scheduler, "D", reports)
    assert isinstance(placed, DecodePlaced)
    # Z = (200 + 600) / 2 = 400: only d0/1 stays within it, though it has more requests
    assert (placed.engine, placed.balanced, placed.balanced_tokens) == ("d0/1", True, 400)
    submit(scheduler, "b", prompt=900, hit=0)
    (_, placed) = fetch(scheduler, "D", {"d0/1": EngineReport(seq=5, tok=399, free_tokens=100)})
    assert isinstance(placed, DecodePlaced)
    assert (placed.engine, placed.balanced) == ("d0/0", False)


def test_phase_one_sends_each_request_to_the_group_with_the_fewest_tokens() -> None:
    scheduler = cluster(node("p0"), node("d0"), node("d1", group="E"))
    submit(scheduler, "a", prompt=300)
    submit(scheduler, "bcd")
    chosen = [d for d in fetch(scheduler, "D") if isinstance(d, GroupChosen)]
    assert [(d.request, d.group) for d in chosen] == [
        ("a", "D"),
        ("b", "E"),
        ("c", "E"),
        ("d", "E"),
    ]
    assert placements(fetch(scheduler, "E")) == [("b", "d1/0"), ("c", "d1/1"), ("d", "d1/0")]


def test_a_request_waits_for_no_group_that_can_never_hold_it() -> None:
    for policy in POLICIES:
        scheduler = cluster(
            node("p0"), node("d0", hbm_tokens=500), node("d1", group="E"), policy=policy
        )
        submit(scheduler, "a", prompt=501)
        (chosen,) = fetch(scheduler, "D")
        assert isinstance(chosen, GroupChosen)
        assert chosen.group == "E"
        # E shrinks while a waits for it: it is let go, and waits until some group can hold it
        scheduler.handle(ParametersChanged(limits={"d1": replace(LIMITS, hbm_tokens=500)}))
        assert fetch(scheduler, "E") == ()
        submit(scheduler, "b")
        assert len(placements(fetch(scheduler, "D")) + placements(fetch(scheduler, "E"))) == 1
        scheduler.handle(ParametersChanged(limits={"d0": LIMITS}))
        assert [name for name, _ in placements(fetch(scheduler, "D"))] == ["a"]


# ---- submit --------------------------------------------------------------------------------------


def test_a_request_that_fits_nowhere_is_refused_at_once() -> None:
    scheduler = cluster(node("p0"), node("d0"), node("d1", hbm_tokens=2000))
    refused(scheduler, Submit("a", 1900, 0, 101), "'a'", "2001", "2000", "lower reserve_tokens")
    assert scheduler.handle(Submit("a", 1900, 0, 100)) == ()
    assert placements(fetch(scheduler, "D")) == [("a", "d1/0")]


def test_before_any_decode_node_joins_every_request_is_welcome() -> None:
    scheduler = cluster(node("p0"))
    assert scheduler.handle(Submit("a", MOST_TOKENS, 0, MOST_TOKENS)) == ()
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0")]


def test_a_request_is_submitted_once() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    refused(scheduler, Submit("a", 5, 5), "'a'", "not finished")


@pytest.mark.parametrize(
    "event, words",
    [
        (Submit("b", 0, 0), "prompt_tokens is 0"),
        (Submit("b", -1, 0), "prompt_tokens is -1"),
        (Submit("b", MOST_TOKENS + 1, 0), "prompt_tokens"),
        (Submit("b", True, 0), "prompt_tokens is True"),
        (Submit("b", 5.0, 0), "prompt_tokens is 5.0"),  # type: ignore[arg-type]
        (Submit("b", NAN, 0), "prompt_tokens is nan"),  # type: ignore[arg-type]
        (Submit("b", "5", 0), "prompt_tokens is '5'"),  # type: ignore[arg-type]
        (Submit("b", None, 0), "prompt_tokens is None"),  # type: ignore[arg-type]
        (Submit("b", 2**70, 0), "prompt_tokens"),
        (Submit("b", 5, 6), "hit_tokens is 6"),
        (Submit("b", 5, -1), "hit_tokens is -1"),
        (Submit("b", 5, 5, -1), "reserve_tokens is -1"),
        (Submit("b", 5, 5, 2**40), "reserve_tokens"),
        (Submit("", 5, 5), "''"),
        (Submit("x" * 201, 5, 5), "1 to 200 characters"),
        (Submit("a\n", 5, 5), r"'a\n' is not a name"),
        (Submit("a\0", 5, 5), r"'a\x00' is not a name"),
        (Submit("\x7f", 5, 5), "is not a name"),
        (Submit("\u2028", 5, 5), "is not a name"),
        (Submit("\ud800", 5, 5), r"'\ud800' is not a name"),
        (Submit(7, 5, 5), "request 7 is not a name; give text"),  # type: ignore[arg-type]
        (Submit(b"a", 5, 5), "request b'a' is not a name; give text"),  # type: ignore[arg-type]
    ],
)
def test_bad_requests(event: Submit, words: str) -> None:
    refused(cluster(), event, words)


def test_any_name_will_do() -> None:
    names = ("请求🚀", "a:b", ":a", "a:", ":", "prefill", "NaN", "p0/0", "x" * 200)
    joined = NodeJoined("prefill", "prefill", "decode", ("decode", "p:refill:"), LIMITS)
    other = NodeJoined("decode", "decode", "prefill", ("prefill", "🚀"), LIMITS)
    for policy in POLICIES:
        scheduler = cluster(joined, other, policy=policy)
        for name in names:
            scheduler.handle(Submit(name, 10, 5))
        assert [name for name, _ in placements(fetch(scheduler, "decode"))] == list(names)
        scheduler = snapshot.restore(orjson.loads(orjson.dumps(snapshot.take(scheduler))))
        assert [name for name, _ in placements(fetch(scheduler, "prefill"))] == list(names)


# ---- unknown and stale names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "event, words",
    [
        (Fetch("X", 1), "group 'X' is unknown; one of its nodes joins first"),
        (Fetch("p0", 1), "group 'p0'"),
        (Fetch("P", 1, {"x": EngineReport()}), "engine 'x' is not one of its engines"),
        (Fetch("P", 1, {"d0/0": EngineReport()}), "engine 'd0/0' is not one of its engines"),
        (Fetch("P", 1, {}, {"x": 1}), "node 'x' is not one of its nodes"),
        (Fetch("P", 1, {}, {"d0": 1}), "node 'd0' is not one of its nodes"),
        (EngineLost("x"), "engine 'x' is unknown; only one that joined"),
        (EngineLost("p0"), "engine 'p0'"),
        (NodeLost("x"), "node 'x' is unknown; only one that joined"),
        (EngineJoined("p0/9", "x"), "node 'x' is unknown; the node joins first"),
        (ParametersChanged(limits={"x": LIMITS}), "node 'x': it is unknown; it joins first"),
        (
            ParametersChanged(Settings(policy="basic"), {"p0": LIMITS, "x": LIMITS}),
            "node 'x': it is unknown",
        ),
    ],
)
def test_unknown_names_are_refused(event: Event, words: str) -> None:
    scheduler = cluster()
    submit(scheduler, "abc")
    fetch(scheduler, "D")
    refused(scheduler, event, words)
    assert len(placements(scheduler.handle(Fetch("P", 1)))) == 3


def test_a_report_on_one_unknown_engine_changes_none_of_the_others() -> None:
    scheduler = cluster()
    report = {"p0/0": EngineReport(seq=3, tok=30), "x": EngineReport(seq=1, tok=1)}
    refused(scheduler, Fetch("P", 1, report, {"p0": 7}), "engine 'x'")


def test_events_about_what_is_lost_are_stale() -> None:
    scheduler = cluster(node("p0"), node("p1"), node("p2", group="Q"), node("d0"))
    scheduler.handle(EngineLost("p0/0"))
    stale(scheduler, EngineLost("p0/0"))
    scheduler.handle(NodeLost("p1"))
    stale(scheduler, NodeLost("p1"))
    stale(scheduler, EngineLost("p1/1"))
    scheduler.handle(NodeLost("p2"))
    stale(scheduler, Fetch("Q", 1))
    stale(scheduler, Fetch("Q", 1, {"p2/0": EngineReport(seq=-1)}))
    # a leader that has not heard yet reports on what it lost: the rest of its report counts
    report = {name: EngineReport(seq=1, tok=5) for name in ("p0/0", "p0/1", "p1/0")}
    assert fetch(scheduler, "P", report, {"p1": 9, "p0": 9}) == ()
    assert account(scheduler, "p0/1") == (1, 5)
    assert read_q(scheduler, "p0") == 9


def test_a_lost_group_is_not_even_answered_with_its_last_fetch() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    scheduler.handle(Fetch("P", 1))
    scheduler.handle(NodeLost("p0"))
    stale(scheduler, Fetch("P", 1))


@pytest.mark.parametrize(
    "event",
    [
        None,
        "submit",
        {"kind": "submit"},
        EngineReport(),
        Returned("a", 1),
        NodeLost([]),  # type: ignore[arg-type]
        EngineLost({}),  # type: ignore[arg-type]
        EngineJoined("e", []),  # type: ignore[arg-type]
        ReadFinished([], "p0"),  # type: ignore[arg-type]
        ReadStarted("a", None),  # type: ignore[arg-type]
        Fetch([], 1),  # type: ignore[arg-type]
        Submit("b", 10**5000, 0),
        replace(ELSEWHERE, engines=None),  # type: ignore[arg-type]
        replace(ELSEWHERE, engines="ab"),  # type: ignore[arg-type]
        replace(ELSEWHERE, limits=None),  # type: ignore[arg-type]
        replace(ELSEWHERE, limits=replace(LIMITS, prices=None)),  # type: ignore[arg-type]
        replace(ELSEWHERE, limits=replace(LIMITS, prices=Prices(resources=None))),  # type: ignore[arg-type]
        replace(ELSEWHERE, limits=replace(LIMITS, read_tokens_per_s=10**400)),
        Fetch("P", 1, None),  # type: ignore[arg-type]
        Fetch("P", 1, {}, [("p0", 1)]),  # type: ignore[arg-type]
        Fetch("P", 1, {1: EngineReport()}),  # type: ignore[dict-item]
        Fetch("P", 1, {}, {None: 1}),  # type: ignore[dict-item]
        ParametersChanged("basic"),  # type: ignore[arg-type]
        ParametersChanged(Settings(policy=None)),  # type: ignore[arg-type]
        ParametersChanged(Settings(policy=[])),  # type: ignore[arg-type]
        ParametersChanged(Settings(z_factor=10**400)),
        ParametersChanged(None, {"p0": None}),  # type: ignore[dict-item]
        *(
            kind("a", attempt)
            for kind in (PrefillFinished, DecodeFinished)
            for attempt in BAD_ATTEMPTS
        ),
        *(
            kind("a", "p0", attempt)
            for kind in (ReadStarted, ReadFinished)
            for attempt in BAD_ATTEMPTS
        ),
    ],
    ids=lambda event: "10**5000" if isinstance(event, Submit) else repr(event)[:90],
)
def test_what_is_no_event_by_its_form_is_refused(event: Any) -> None:
    refused(cluster(), event)


@pytest.mark.parametrize("report", [None, {"seq": 1}, 3], ids=repr)
def test_what_is_no_report_closes_the_engine(report: Any) -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    with pytest.raises(InputError, match="give an EngineReport"):
        scheduler.handle(Fetch("P", 1, {"p0/0": report}))
    assert placements(fetch(scheduler, "P")) == [("a", "p0/1")]


def test_events_about_other_attempts_are_stale() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    for attempt in (2, 2**40):
        stale(scheduler, ReadStarted("a", "p0", attempt))
        stale(scheduler, ReadFinished("a", "p0", attempt))
        stale(scheduler, PrefillFinished("a", attempt))
        stale(scheduler, DecodeFinished("a", attempt))
    for event in (ReadStarted("z", "p0"), PrefillFinished("z"), DecodeFinished("z")):
        stale(scheduler, event)  # finished requests are forgotten, so nobody knows better


# ---- fetches -------------------------------------------------------------------------------------


def test_a_fetch_again_is_answered_again_and_an_older_one_with_nothing() -> None:
    scheduler = cluster()
    submit(scheduler, "ab")
    first = scheduler.handle(Fetch("P", 7))
    submit(scheduler, "c")
    before = snapshot.take(scheduler)
    assert scheduler.handle(Fetch("P", 7)) == first
    assert scheduler.handle(Fetch("P", 7, {"p0/0": EngineReport(seq=-1)})) == first
    assert snapshot.take(scheduler) == before
    stale(scheduler, Fetch("P", 6))
    stale(scheduler, Fetch("P", 0))
    assert placements(scheduler.handle(Fetch("P", 100))) == [("c", "p0/0")]
    assert placements(scheduler.handle(Fetch("D", 1))) != []  # each group counts for itself


def test_a_fetch_again_leaves_out_what_has_finished_or_returned_since() -> None:
    scheduler = cluster(node("p0"), node("p1"), node("d0"))
    submit(scheduler, "abcd")
    scheduler.handle(Fetch("P", 1))
    found = scheduler.handle(Fetch("D", 1))
    assert [name for name, _ in placements(found)] == list("abcd")

    def without(gone: str) -> tuple[Decision, ...]:
        return tuple(decision for decision in found if decision.request not in gone)

    finish(scheduler, "b")
    assert scheduler.handle(Fetch("D", 1)) == without("b")
    lost = scheduler.requests["a"].prefill
    assert lost is not None
    assert scheduler.handle(EngineLost(lost)) == (Returned("a", 2),)
    assert scheduler.handle(Fetch("D", 1)) == without("ab")
    kept = snapshot.restore(orjson.loads(orjson.dumps(snapshot.take(scheduler))))
    assert kept.handle(Fetch("D", 1)) == without("ab")
    # a waits for both engines again; the old answer does not speak of its new attempt
    fetch(scheduler, "P")
    assert scheduler.handle(Fetch("D", 1)) == without("ab")
    assert [d.attempt for d in scheduler.handle(Fetch("D", 2))] == [2, 2, 2]
    for name, attempt in (("a", 2), ("c", 1), ("d", 1)):
        finish(scheduler, name, attempt)
    stale(scheduler, Fetch("D", 2))


@pytest.mark.parametrize("number", [-1, True, 1.0, None, "1", NAN, 2**63])
def test_bad_fetch_numbers(number: Any) -> None:
    refused(cluster(), Fetch("P", number), "group 'P': number is")


def test_a_refused_fetch_may_be_tried_again_under_its_number() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    with pytest.raises(InputError):
        scheduler.handle(Fetch("P", 1, {"p0/0": EngineReport(seq=-1)}))
    assert placements(scheduler.handle(Fetch("P", 1, {"p0/0": EngineReport(seq=0)}))) == [
        ("a", "p0/0")
    ]


# ---- reports -------------------------------------------------------------------------------------


def test_reported_values_are_adopted_and_none_keeps_the_account() -> None:
    scheduler = cluster()
    submit(scheduler, "ab")
    fetch(scheduler, "P")
    assert account(scheduler, "p0/0") == (1, 100)
    fetch(scheduler, "P", {"p0/0": EngineReport(tok=40), "p0/1": EngineReport(seq=3)})
    assert account(scheduler, "p0/0") == (1, 40)
    assert account(scheduler, "p0/1") == (3, 100)
    fetch(scheduler, "P", {"p0/0": EngineReport()}, {})
    assert account(scheduler, "p0/0") == (1, 40)


def test_what_a_report_had_counted_down_already_does_not_go_below_zero() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    fetch(scheduler, "P", {"p0/0": EngineReport(seq=0, tok=0)}, {"p0": 0})
    finish(scheduler, "a")
    assert idle(scheduler)


@pytest.mark.parametrize("seq, tok", [(9, 900), (9, None), (None, 900), (2, 2)])
def test_an_engine_without_our_requests_is_empty_whatever_was_reported(
    seq: int | None, tok: int | None
) -> None:
    scheduler = cluster(node("p0", engines=1), node("d0", engines=1))
    submit(scheduler, "ab")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    fetch(scheduler, "P", {"p0/0": EngineReport(seq, tok)}, {"p0": 500})
    fetch(scheduler, "D", {"d0/0": EngineReport(seq, tok, 10)}, {"d0": 500})
    finish(scheduler, "a")
    left = (1 if seq is None else seq - 1, max(0, (200 if tok is None else tok) - 100))
    assert account(scheduler, "p0/0") == account(scheduler, "d0/0") == left
    assert free(scheduler, "d0/0") == 110
    # a was the only read of p0, b is that of d0
    assert (read_q(scheduler, "p0"), read_q(scheduler, "d0")) == (0, 580)
    finish(scheduler, "b")
    assert idle(scheduler)
    assert free(scheduler, "d0/0") == 1000
    assert {n.reads for n in scheduler.ledger.accounts().nodes.values()} == {0}


def test_a_returned_request_leaves_nothing_of_a_report_behind() -> None:
    scheduler = cluster(node("p0"), node("d0", engines=1))
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D", {"d0/0": EngineReport(3, 300, 200)}, {"d0": 70})
    fetch(scheduler, "P", {}, {"p0": 70})
    assert scheduler.handle(EngineLost("p0/0")) == (Returned("a", 2),)
    assert account(scheduler, "d0/0") == (0, 0)
    assert free(scheduler, "d0/0") == 1000
    assert read_q(scheduler, "p0") == 0


def test_reported_free_hbm_counts_where_it_is_less_than_the_rest() -> None:
    scheduler = cluster(node("p0"), node("d0", engines=1))
    submit(scheduler, "a", prompt=300)
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    fetch(scheduler, "D", {"d0/0": EngineReport(free_tokens=650)})
    assert free(scheduler, "d0/0") == 650
    fetch(scheduler, "D", {"d0/0": EngineReport(free_tokens=1000)})
    assert free(scheduler, "d0/0") == 700  # a request may not have taken its room yet
    fetch(scheduler, "D", {"d0/0": EngineReport(free_tokens=0)})
    submit(scheduler, "b", prompt=1, hit=0)
    assert placements(fetch(scheduler, "D")) == []
    finish(scheduler, "a")
    assert placements(fetch(scheduler, "D")) == [("b", "d0/0")]


def test_a_reported_read_queue_is_added_to_by_reads_that_have_not_started() -> None:
    scheduler = cluster()
    submit(scheduler, "abc")
    fetch(scheduler, "P")
    fetch(scheduler, "D")  # a and c are read by p0, b by d0
    fetch(scheduler, "P", {}, {"p0": 7})
    assert read_q(scheduler, "p0") == 7 + 80 + 80
    scheduler.handle(ReadStarted("a", "p0"))
    assert read_q(scheduler, "p0") == 167  # until the node reports again
    fetch(scheduler, "P", {}, {"p0": 85})
    assert read_q(scheduler, "p0") == 85 + 80
    scheduler.handle(ReadFinished("a", "p0"))
    assert read_q(scheduler, "p0") == 5 + 80
    scheduler.handle(ReadStarted("c", "p0"))
    scheduler.handle(ReadFinished("c", "p0"))
    assert read_q(scheduler, "p0") == 0  # no read is left, whatever was reported before
    # finished without a word of its start
    fetch(scheduler, "D", {}, {"d0": 0})
    assert read_q(scheduler, "d0") == 80
    scheduler.handle(ReadFinished("b", "d0"))
    assert read_q(scheduler, "d0") == 0
    fetch(scheduler, "D", {}, {"d0": 0})
    assert read_q(scheduler, "d0") == 0


BAD_NUMBERS = (-1, True, False, 1.0, NAN, INFINITY, "1", 2**36 + 1, 2**70)


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=repr)
@pytest.mark.parametrize("field", ["seq", "tok", "free_tokens"])
def test_an_engine_with_an_impossible_number_gets_no_work_until_a_good_report(
    field: str, value: Any
) -> None:
    scheduler = cluster()
    submit(scheduler, "ab")
    with pytest.raises(InputError, match=rf"engine 'd0/0': {field} is .* no work until"):
        scheduler.handle(
            Fetch("D", 1, {"d0/0": EngineReport(**{field: value}), "d0/1": EngineReport(2, 20)})
        )
    assert account(scheduler, "d0/1") == (0, 0)  # nothing of the report is adopted
    assert placements(fetch(scheduler, "D")) == [("a", "d0/1"), ("b", "d0/1")]
    submit(scheduler, "c")
    fetch(scheduler, "D", {"d0/1": EngineReport(2, 200)})
    submit(scheduler, "d")
    assert placements(fetch(scheduler, "D", {"d0/0": EngineReport(0, 0)})) == [("d", "d0/0")]


@pytest.mark.parametrize(
    "report, words",
    [
        (EngineReport(seq=3, tok=2), "tok is 2 for 3 unfinished requests"),
        (EngineReport(seq=0, tok=1), "tok is 1 with no unfinished request"),
        (EngineReport(free_tokens=1001), "free_tokens is 1001"),
    ],
)
def test_numbers_that_contradict_each_other(report: EngineReport, words: str) -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    with pytest.raises(InputError, match=words):
        scheduler.handle(Fetch("D", 1, {"d0/0": report}))
    assert placements(fetch(scheduler, "D")) == [("a", "d0/1")]


@pytest.mark.parametrize("value", [*BAD_NUMBERS, None], ids=repr)
def test_an_impossible_read_queue_closes_all_engines_of_the_node(value: Any) -> None:
    scheduler = cluster(node("p0"), node("p1"), node("d0"))
    submit(scheduler, "a")
    with pytest.raises(InputError, match=r"node 'p0': read_q is .* no work until"):
        scheduler.handle(Fetch("P", 1, {}, {"p0": value, "p1": 9}))
    assert read_q(scheduler, "p1") == 0
    assert placements(fetch(scheduler, "P")) == [("a", "p1/0")]
    submit(scheduler, "b")
    assert placements(fetch(scheduler, "P", {"p0/1": EngineReport()})) == [("b", "p0/1")]
    submit(scheduler, "cd")
    assert placements(fetch(scheduler, "P", {}, {"p0": 0})) == [("c", "p0/0"), ("d", "p1/1")]


@pytest.mark.parametrize("foreign", ["x", "d0/0", "p1/0"])
def test_impossible_numbers_are_found_before_names_of_others(foreign: str) -> None:
    scheduler = cluster(node("p0"), node("p1", group="Q"), node("d0"))
    submit(scheduler, "ab")
    reports = {foreign: EngineReport(), "p0/1": EngineReport(seq=-1), "p0/0": EngineReport(9, 90)}
    with pytest.raises(ReportError, match="engine 'p0/1': seq is -1") as error:
        scheduler.handle(Fetch("P", 1, reports, {"y": 0}))
    assert error.value.closed == ("p0/1",)
    assert account(scheduler, "p0/0") == (0, 0)
    # a foreign engine's numbers are not looked at
    refused(scheduler, Fetch("P", 1, {foreign: EngineReport(seq=-1)}), f"engine '{foreign}' is not")
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0"), ("b", "p0/0")]
    with pytest.raises(ReportError) as error:
        scheduler.handle(Fetch("P", 2, {"p0/1": EngineReport(tok=-1)}, {"p0": -1, "d0": -1}))
    assert error.value.closed == ("p0/0", "p0/1")


def test_a_pool_with_every_engine_closed_makes_requests_wait() -> None:
    for policy in POLICIES:
        scheduler = cluster(policy=policy)
        submit(scheduler, "ab")
        for group, owner in (("P", "p0"), ("D", "d0")):
            with pytest.raises(InputError):
                scheduler.handle(Fetch(group, 1, {}, {owner: -1}))
            assert fetch(scheduler, group) == ()
        assert len(placements(fetch(scheduler, "P", {}, {"p0": 0}))) == 2
        assert len(placements(fetch(scheduler, "D", {}, {"d0": 0}))) == 2


# ---- losses --------------------------------------------------------------------------------------


def test_requests_of_a_lost_prefill_engine_return_once_in_order_and_go_first() -> None:
    scheduler = cluster()
    submit(scheduler, "abcd")
    assert placements(fetch(scheduler, "P"))[::2] == [("a", "p0/0"), ("c", "p0/0")]
    fetch(scheduler, "D")
    submit(scheduler, "e")
    assert scheduler.handle(EngineLost("p0/0")) == (Returned("a", 2), Returned("c", 2))
    stale(scheduler, EngineLost("p0/0"))
    assert account(scheduler, "p0/1") == (2, 200)
    assert sum(account(scheduler, f"d0/{i}")[0] for i in (0, 1)) == 2  # decode is given back too
    found = fetch(scheduler, "P")
    assert placements(found) == [("a", "p0/1"), ("c", "p0/1"), ("e", "p0/1")]
    assert [d.attempt for d in found] == [2, 2, 1]
    again = fetch(scheduler, "D")
    assert [name for name, _ in placements(again)] == ["a", "c", "e"]
    for name in "bd":
        finish(scheduler, name)
    for name, attempt in (("a", 2), ("c", 2), ("e", 1)):
        finish(scheduler, name, attempt)
    assert idle(scheduler)


def test_a_decode_engine_lost_after_prefill_makes_the_request_start_anew() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    scheduler.handle(ReadFinished("a", "p0"))
    scheduler.handle(PrefillFinished("a"))
    assert scheduler.handle(EngineLost("d0/0")) == (Returned("a", 2),)
    assert idle(scheduler)
    assert [d.attempt for d in fetch(scheduler, "P")] == [2]
    assert order(fetch(scheduler, "D")) == ReadOrdered("a", 2, "p0", 0, "d0", 80)
    refused(scheduler, PrefillFinished("a", 2), "reads are under way")
    stale(scheduler, PrefillFinished("a", 1))
    finish(scheduler, "a", attempt=2)
    assert idle(scheduler)


def test_a_prefill_engine_lost_after_prefill_costs_nothing() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    scheduler.handle(ReadFinished("a", "p0"))
    scheduler.handle(PrefillFinished("a"))
    assert scheduler.handle(NodeLost("p0")) == ()
    assert scheduler.handle(DecodeFinished("a")) == ()
    assert idle(scheduler)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("lost", ["p0/0", "d0/0"])
def test_reads_that_were_half_done_are_done_again_in_full(lost: str, started: bool) -> None:
    scheduler = cluster(policy="split", block_tokens=10)
    submit(scheduler, "a")
    fetch(scheduler, "P")
    assert order(fetch(scheduler, "D")) == ReadOrdered("a", 1, "p0", 40, "d0", 40)
    if started:
        scheduler.handle(ReadStarted("a", "p0"))
        scheduler.handle(ReadStarted("a", "d0"))
    scheduler.handle(ReadFinished("a", "p0"))
    assert (read_q(scheduler, "p0"), read_q(scheduler, "d0")) == (0, 40)
    assert scheduler.handle(EngineLost(lost)) == (Returned("a", 2),)
    assert idle(scheduler)
    fetch(scheduler, "D")
    assert order(fetch(scheduler, "P")) == ReadOrdered("a", 2, "p0", 40, "d0", 40)
    for owner in ("p0", "d0"):  # late news of the first attempt
        stale(scheduler, ReadStarted("a", owner, 1))
        stale(scheduler, ReadFinished("a", owner, 1))
    finish(scheduler, "a", attempt=2)
    assert idle(scheduler)


def test_a_request_that_waits_for_decode_keeps_its_place_there() -> None:
    scheduler = cluster(node("p0"), node("d0"), node("d1", group="E"))
    submit(scheduler, "ab")
    fetch(scheduler, "P")
    assert placements(fetch(scheduler, "D")) == [("a", "d0/0")]  # b waits in E's private queue
    assert scheduler.handle(EngineLost("p0/1")) == (Returned("b", 2),)
    (placed,) = fetch(scheduler, "E")
    assert isinstance(placed, DecodePlaced)
    assert (placed.request, placed.attempt) == ("b", 2)
    assert order(fetch(scheduler, "P")).attempt == 2


@pytest.mark.parametrize("name, group, other", [("p0", "P", "D"), ("d0", "D", "P")])
def test_a_lost_node_is_all_its_engines_lost(name: str, group: str, other: str) -> None:
    def run(*losses: Event) -> tuple[list[Decision], Scheduler]:
        scheduler = cluster(node("p0"), node("p1"), node("d0"), node("d1"))
        submit(scheduler, "abcdefgh")
        fetch(scheduler, "P")
        fetch(scheduler, "D")
        returned = [decision for loss in losses for decision in scheduler.handle(loss)]
        return returned, scheduler

    at_once, scheduler = run(NodeLost(name))
    one_by_one, slowly = run(EngineLost(f"{name}/0"), EngineLost(f"{name}/1"), NodeLost(name))
    names = [decision.request for decision in at_once]
    assert names == sorted(names) and len(names) == 4  # in order of submission
    assert sorted(d.request for d in one_by_one) == names
    left, left_slowly = scheduler.ledger.accounts(), slowly.ledger.accounts()
    assert left == left_slowly
    assert set(left.nodes) == {"p0", "p1", "d0", "d1"} - {name}
    assert len(left.engines) == 6
    stale(scheduler, NodeLost(name))
    assert len(placements(fetch(scheduler, group))) == 4
    assert len(placements(fetch(scheduler, other))) == 4


@pytest.mark.parametrize("by", ["engines", "node"])
def test_the_private_queue_of_a_lost_group_returns_to_the_common_one(by: str) -> None:
    scheduler = cluster(node("p0"), node("d0"), node("d1", group="E", engines=1))
    submit(scheduler, "abcd")
    assert placements(fetch(scheduler, "D")) == [("a", "d0/0"), ("c", "d0/1")]
    loss: Event = EngineLost("d1/0") if by == "engines" else NodeLost("d1")
    assert scheduler.handle(loss) == ()  # nobody had an engine there
    submit(scheduler, "e")
    found = fetch(scheduler, "D")
    assert [(d.request, d.group) for d in found if isinstance(d, GroupChosen)] == [
        ("b", "D"),
        ("d", "D"),
        ("e", "D"),
    ]
    assert [name for name, _ in placements(found)] == ["b", "d", "e"]
    assert fetch(scheduler, "E") == ()


def test_prefill_queues_of_a_lost_group_return_too() -> None:
    scheduler = cluster(node("p0"), node("p1", group="Q"), node("d0"), policy="basic")
    submit(scheduler, "abcdef")  # engines in turn: a and b to P, c and d to Q, ...
    assert [name for name, _ in placements(fetch(scheduler, "P"))] == ["a", "b", "e", "f"]
    assert scheduler.handle(NodeLost("p1")) == ()
    found = fetch(scheduler, "P")
    assert [d.request for d in found if isinstance(d, GroupChosen)] == ["c", "d"]
    assert [name for name, _ in placements(found)] == ["c", "d"]


def test_everything_lost_and_everything_back() -> None:
    for policy in POLICIES:
        scheduler = cluster(policy=policy)
        submit(scheduler, "ab")
        fetch(scheduler, "P")
        fetch(scheduler, "D")
        assert len(scheduler.handle(NodeLost("d0"))) == 2
        assert scheduler.handle(NodeLost("p0")) == ()
        assert scheduler.ledger.accounts().engines == {}
        submit(scheduler, "c")
        scheduler.handle(node("d0"))
        scheduler.handle(node("p0"))
        assert [n for n, _ in placements(scheduler.handle(Fetch("P", 1)))] == ["a", "b", "c"]
        assert [n for n, _ in placements(scheduler.handle(Fetch("D", 1)))] == ["a", "b", "c"]
        for name, attempt in (("a", 2), ("b", 2), ("c", 1)):
            finish(scheduler, name, attempt)
        assert idle(scheduler)


def test_an_engine_that_comes_back_starts_empty() -> None:
    scheduler = cluster(node("p0", engines=1), node("d0"))
    submit(scheduler, "a")
    fetch(scheduler, "P")
    scheduler.handle(EngineLost("p0/0"))
    assert fetch(scheduler, "P") == ()
    assert scheduler.handle(EngineJoined("p0/0", "p0")) == ()
    assert account(scheduler, "p0/0") == (0, 0)
    found = fetch(scheduler, "P")
    assert placements(found) == [("a", "p0/0")]
    assert found[0].attempt == 2
    scheduler.handle(EngineJoined("p0/new", "p0"))
    submit(scheduler, "b")
    assert placements(fetch(scheduler, "P")) == [("b", "p0/new")]


def test_a_closed_engine_that_comes_back_is_open() -> None:
    scheduler = cluster(node("p0", engines=1), node("d0"))
    with pytest.raises(InputError):
        scheduler.handle(Fetch("P", 1, {"p0/0": EngineReport(seq=-1)}))
    scheduler.handle(EngineLost("p0/0"))
    scheduler.handle(EngineJoined("p0/0", "p0"))
    submit(scheduler, "a")
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0")]


def test_fetch_numbers_restart_with_a_group_and_not_with_a_node() -> None:
    scheduler = cluster(node("p0"), node("p1"), node("d0"))
    scheduler.handle(Fetch("P", 50))
    scheduler.handle(NodeLost("p1"))
    scheduler.handle(node("p1"))
    submit(scheduler, "a")
    stale(scheduler, Fetch("P", 1))
    scheduler.handle(NodeLost("p0"))
    scheduler.handle(NodeLost("p1"))
    scheduler.handle(node("p1"))
    assert placements(scheduler.handle(Fetch("P", 1))) == [("a", "p1/0")]


def test_a_node_may_come_back_elsewhere() -> None:
    scheduler = cluster()
    scheduler.handle(NodeLost("p0"))
    scheduler.handle(NodeLost("d0"))
    scheduler.handle(node("p0", pool="decode", group="P"))
    scheduler.handle(node("d0", pool="prefill", group="D"))
    submit(scheduler, "a")
    assert placements(scheduler.handle(Fetch("P", 1))) == [("a", "p0/0")]
    assert order(scheduler.handle(Fetch("D", 1))).prefill_node == "d0"


@pytest.mark.parametrize(
    "pool, policy",
    [("decode", name) for name in POLICIES]
    + [("prefill", name) for name, policy in POLICIES.items() if policy.queues_prefill],
)
def test_the_private_queue_of_a_closed_group_moves_to_another(pool: str, policy: str) -> None:
    first, other = ("p0", "p1") if pool == "prefill" else ("d0", "d1")
    rest = node("d9", group="Z") if pool == "prefill" else node("p9", group="Z")
    scheduler = cluster(node(first, group="F"), node(other, group="O"), rest, policy=policy)
    submit(scheduler, "abcdef")
    fetch(scheduler, "F")
    waiting = [r.id for r in scheduler.requests.values() if "O" in r.group.values()]
    assert waiting
    with pytest.raises(ReportError) as error:
        scheduler.handle(Fetch("O", 1, {}, {other: -1}))
    assert error.value.closed == (f"{other}/0", f"{other}/1")
    assert not any(r.group for r in scheduler.requests.values())
    found = fetch(scheduler, "F")
    chosen = [(d.request, d.group) for d in found if isinstance(d, GroupChosen)]
    assert chosen == [(name, "F") for name in waiting]
    assert [name for name, _ in placements(found)] == waiting
    assert fetch(scheduler, "O") == ()
    fetch(scheduler, "Z")
    for name in "abcdef":
        finish(scheduler, name)
    assert idle(scheduler)


def test_a_request_leaves_a_group_whose_large_engine_is_closed() -> None:
    large = node("d1", group="E", engines=1, hbm_tokens=2000)
    scheduler = cluster(node("p0"), node("d0", group="E", engines=1), large, node("d2", group="F"))
    submit(scheduler, "x", prompt=1500)
    submit(scheduler, "y", prompt=900)
    submit(scheduler, "z", prompt=700)
    found = fetch(scheduler, "F")
    assert [d.group for d in found if isinstance(d, GroupChosen)] == ["E", "F", "F"]
    with pytest.raises(ReportError):
        scheduler.handle(Fetch("E", 1, {}, {"d1": -1}))
    assert scheduler.requests["x"].group == {}  # d0 is open, and could not hold it
    submit(scheduler, "w")
    found = fetch(scheduler, "F")
    assert [d.request for d in found if isinstance(d, GroupChosen)] == ["w"]  # x waits for d1
    found = fetch(scheduler, "E", {}, {"d1": 0})
    assert [d.group for d in found if isinstance(d, GroupChosen)] == ["E"]
    assert ("x", "d1/0") in placements(found)


# ---- making way ----------------------------------------------------------------------------------


def narrow(**settings: Any) -> Scheduler:
    """Return a scheduler whose prefill engines (two) and decode engine have room for one request."""
    return cluster(node("p0", beta_tokens=0), node("d0", engines=1, hbm_tokens=100), **settings)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_returned_request_and_a_later_one_with_what_the_other_needs(policy: str) -> None:
    scheduler = narrow(policy=policy)
    submit(scheduler, "ab")
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0"), ("b", "p0/1")]
    assert placements(fetch(scheduler, "D")) == [("a", "d0/0")]
    assert scheduler.handle(EngineLost("p0/0")) == (Returned("a", 2),)
    assert [name for name, _ in placements(fetch(scheduler, "D"))] == ["a"]
    # b has the prefill engine, a the decode engine, and each waits for the other's
    found = [d for d in fetch(scheduler, "P") if not isinstance(d, GroupChosen)]
    assert found[0] == Returned("b", 2)
    assert placements(found) == [("a", "p0/1")]
    assert order(found).attempt == 2
    assert placements(fetch(scheduler, "P")) == []
    finish(scheduler, "a", attempt=2)
    fetch(scheduler, "D")
    assert [d.attempt for d in fetch(scheduler, "P") if isinstance(d, PrefillPlaced)] == [2]
    finish(scheduler, "b", attempt=2)
    assert idle(scheduler)
    assert scheduler.requests == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_request_makes_way_for_a_short_one_that_goes_first(policy: str) -> None:
    scheduler = narrow(policy=policy, patience=2, most_work_s=100.0)
    scheduler.handle(EngineLost("p0/1"))
    scheduler.handle(Submit("long", 100, 0))
    assert placements(fetch(scheduler, "P")) == [("long", "p0/0")]
    scheduler.handle(Submit("short", 100, 100))
    assert placements(fetch(scheduler, "D")) == [("short", "d0/0")]
    found = [d for d in fetch(scheduler, "P") if not isinstance(d, GroupChosen)]
    assert found[0] == Returned("long", 2)
    assert placements(found) == [("short", "p0/0")]
    finish(scheduler, "short")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    finish(scheduler, "long", attempt=2)
    assert idle(scheduler)


def test_the_last_ones_make_way_and_no_more_than_needed() -> None:
    one: dict[str, Any] = {"engines": 1, "beta_tokens": 250}
    scheduler = cluster(node("p0", **one), node("p1", **one), node("d0"))
    submit(scheduler, "ab")
    fetch(scheduler, "P", {"p0/0": EngineReport(9, 900)})
    fetch(scheduler, "D")
    submit(scheduler, "cdef")
    report = {"p0/0": EngineReport(0, 0), "p1/0": EngineReport(9, 900)}
    assert placements(fetch(scheduler, "P", report)) == [(name, "p0/0") for name in "cde"]
    assert scheduler.handle(EngineLost("p1/0")) == (Returned("a", 2), Returned("b", 2))
    # 300 tokens less 100 are within beta: the last one makes way, each time anew
    found = fetch(scheduler, "P")
    assert found == (
        Returned("e", 2),
        PrefillPlaced("a", 2, "p0/0", 0.0, 2, tok=200, read_q=0),
        Returned("d", 2),
        PrefillPlaced("b", 2, "p0/0", 1.0, 2, tok=200, read_q=0),
    )
    assert fetch(scheduler, "P") == ()  # c is later than none that wait
    assert "".join(name for name, _ in placements(fetch(scheduler, "D"))) == "abcdef"


def test_decode_engines_are_given_back_too() -> None:
    scheduler = cluster(node("p0", engines=1), node("d0", engines=1), patience=9, most_work_s=600.0)
    scheduler.handle(Submit("long", 600, 0))
    scheduler.handle(Submit("longer", 300, 0))
    assert placements(fetch(scheduler, "D")) == [("longer", "d0/0"), ("long", "d0/0")]
    scheduler.handle(Submit("short", 200, 200))
    assert fetch(scheduler, "D") == (
        GroupChosen("short", 1, "D"),
        Returned("long", 2),
        DecodePlaced("short", 1, "d0/0", True, 525, seq=1, tok=300, free_tokens=700),
    )
    # one with a read makes way for nobody
    fetch(scheduler, "P")
    scheduler.handle(Submit("shortest", 600, 600))
    assert placements(fetch(scheduler, "D")) == []
    assert [r.attempt for r in scheduler.requests.values()] == [2, 1, 1, 1]
    for name in ("short", "longer"):
        finish(scheduler, name)
    assert placements(fetch(scheduler, "D")) == [("shortest", "d0/0")]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_request_that_nobody_can_hold_is_parked_until_somebody_can(policy: str) -> None:
    scheduler = cluster(
        node("p0", engines=1, beta_tokens=0), node("d0"), node("d1", hbm_tokens=500), policy=policy
    )
    submit(scheduler, "b", prompt=600)
    submit(scheduler, "c", prompt=700)
    submit(scheduler, "a", prompt=500)
    assert placements(fetch(scheduler, "P")) == [("b", "p0/0")]
    assert scheduler.handle(NodeLost("d0")) == (Returned("b", 2),)  # c had no engine
    assert account(scheduler, "p0/0") == (0, 0)
    scheduler = snapshot.restore(orjson.loads(orjson.dumps(snapshot.take(scheduler))))
    assert [request.parked for request in scheduler.requests.values()] == [True, True, False]
    assert [name for name, _ in placements(fetch(scheduler, "P"))] == ["a"]
    assert [name for name, _ in placements(fetch(scheduler, "D"))] == ["a"]
    finish(scheduler, "a")
    assert fetch(scheduler, "P") == fetch(scheduler, "D") == ()
    refused(scheduler, Submit("e", 501, 0), "500")
    assert scheduler.handle(ParametersChanged(Settings(policy=policy, patience=1))) == ()
    assert fetch(scheduler, "P") == fetch(scheduler, "D") == ()
    scheduler.handle(node("d2", hbm_tokens=650))  # b fits, c does not
    assert [name for name, _ in placements(fetch(scheduler, "P"))] == ["b"]
    assert placements(fetch(scheduler, "D")) in ([("b", "d2/0")], [("b", "d2/1")])
    finish(scheduler, "b", attempt=2)
    assert fetch(scheduler, "P") == ()
    scheduler.handle(ParametersChanged(limits={"d1": LIMITS}))  # larger limits will do as well
    assert [name for name, _ in placements(fetch(scheduler, "P"))] == ["c"]
    assert [engine[:2] for _, engine in placements(fetch(scheduler, "D"))] == ["d1"]
    finish(scheduler, "c")
    assert idle(scheduler)
    assert scheduler.requests == {}


def test_smaller_limits_park_as_a_loss_does() -> None:
    scheduler = cluster()
    submit(scheduler, "ab", prompt=600)
    fetch(scheduler, "P")
    small = ParametersChanged(limits={"d0": replace(LIMITS, hbm_tokens=500)})
    assert scheduler.handle(small) == (Returned("a", 2), Returned("b", 2))
    assert scheduler.requests["a"].parked
    assert idle(scheduler)
    stale(scheduler, small)
    scheduler.handle(NodeLost("d0"))  # no decode node at all: whatever comes may hold them
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0"), ("b", "p0/1")]


# ---- joining -------------------------------------------------------------------------------------


def test_a_new_engine_account_is_open_and_empty() -> None:
    engines = cluster().ledger.accounts().engines
    assert engines["p0/0"] == EngineAccount(free=0)
    assert engines["d0/0"] == EngineAccount(free=1000)


def test_a_newcomer_counts_as_given_the_average() -> None:
    scheduler = cluster(node("p0"), node("p1"), node("d0"))
    submit(scheduler, "abcd")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    scheduler.handle(node("d1"))
    given = {name: n.given for name, n in scheduler.ledger.accounts().nodes.items()}
    assert sum(given.values()) - given["d1"] == 4 * 80
    assert given["d1"] == 4 * 80 // 3


@pytest.mark.parametrize(
    "event, words",
    [
        (node("p0"), "node 'p0' has joined already"),
        (node("p1", group="D"), "group 'D' is of the decode pool"),
        (node("d1", group="P"), "group 'P' is of the prefill pool"),
        (replace(node("p1"), engines=("p1/0", "p0/1")), "engine 'p0/1' has joined already"),
        (replace(node("p1"), engines=("x", "x")), "give each once"),
        (replace(node("p1"), engines=()), "at least one"),
        (replace(node("p1"), engines=("x\t",)), r"engine 'x\t' is not a name"),
        (replace(node("p1"), engines=("",)), "engine '' is not a name"),
        (replace(node("p1"), engines=(None,)), "engine None is not a name"),  # type: ignore[arg-type]
        (replace(node("p1"), node=""), "node '' is not a name"),
        (replace(node("p1"), group="\udfff"), r"group '\udfff' is not a name"),
        (replace(node("p1"), group="g" * 201), "is not a name"),
        (replace(node("p1"), pool="gpu"), "pool is 'gpu'"),  # type: ignore[arg-type]
        (node("d1", hbm_tokens=0), "hbm_tokens is 0"),
        (EngineJoined("p0/1", "p0"), "engine 'p0/1' has joined already"),
        (EngineJoined("d0/1", "p0"), "engine 'd0/1' has joined already"),
        (EngineJoined("", "p0"), "engine '' is not a name"),
        (EngineJoined("x\r", "p0"), r"engine 'x\r' is not a name"),
    ],
)
def test_nodes_and_engines_that_cannot_join(event: Event, words: str) -> None:
    refused(cluster(), event, words)


BAD_LIMITS: dict[str, tuple[Any, ...]] = {
    "alpha_tokens": (-1, True, 1.0, NAN, None, 2**36 + 1),
    "beta_tokens": (-1, False, "9", INFINITY),
    "hbm_tokens": (-1, True, 1e3),
    "read_tokens_per_s": (0, -1.0, NAN, INFINITY, True, "1", None, 1e-9, 1e16),
    "engine_tokens_per_s": (0.0, -1, NAN, -INFINITY, False, [], 1e300),
    "prices": (
        Prices(read_price=-0.1),
        Prices(read_price=NAN),
        Prices(engine_price=1.1),
        Prices(resources=("dram",)),
        Prices(price=(1.0,)),
        Prices(("x",), 0.0),  # type: ignore[arg-type]
        Prices(0.0, 0.0, ("dram",), (NAN,), (1.0,), (1.0,), (1.0,)),
        Prices(0.0, 0.0, ("dram",), (1.0,), (-1.0,), (1.0,), (1.0,)),
        Prices(0.0, 0.0, ("dram",), (1.0,), (1.0,), (1e7,), (1.0,)),
        Prices(0.0, 0.0, ("dram",), (1.0,), (1.0,), (1.0,), (INFINITY,)),
        Prices(0.0, 0.0, ("dram",), (1.0,), (1.0,), (1.0,), (1.0, 1.0)),
    ),
}


@pytest.mark.parametrize("field", BAD_LIMITS)
def test_bad_limits_are_refused_where_a_node_joins_and_where_they_change(field: str) -> None:
    assert {entry.name for entry in fields(Limits)} == set(BAD_LIMITS)
    scheduler = cluster()
    for value in BAD_LIMITS[field]:
        bad = replace(LIMITS, **{field: value})
        refused(scheduler, replace(node("p1"), limits=bad), "node 'p1'", field)
        refused(scheduler, ParametersChanged(limits={"d0": LIMITS, "p0": bad}), "node 'p0'", field)


# ---- parameters ----------------------------------------------------------------------------------


def test_new_limits_hold_from_the_next_fetch() -> None:
    scheduler = cluster(node("p0", engines=1), node("d0", engines=1))
    submit(scheduler, "ab", prompt=600, hit=0)
    scheduler.handle(ParametersChanged(limits={"p0": replace(LIMITS, beta_tokens=599)}))
    assert placements(fetch(scheduler, "P")) == [("a", "p0/0")]
    scheduler.handle(ParametersChanged(limits={"p0": replace(LIMITS, beta_tokens=600)}))
    (placed,) = fetch(scheduler, "P", {}, {"p0": 1})
    assert isinstance(placed, PrefillPlaced)
    assert placed.engine_class == 2
    submit(scheduler, "c", prompt=10, hit=0)
    limits = replace(LIMITS, beta_tokens=9999, alpha_tokens=0)
    scheduler.handle(ParametersChanged(limits={"p0": limits}))
    (placed,) = fetch(scheduler, "P")
    assert isinstance(placed, PrefillPlaced)
    assert placed.engine_class == 3

    assert placements(fetch(scheduler, "D")) == [("a", "d0/0")]
    scheduler.handle(ParametersChanged(limits={"d0": replace(LIMITS, hbm_tokens=1200)}))
    assert placements(fetch(scheduler, "D")) == [("b", "d0/0")]
    # less than is held: placed requests stay, and nobody else comes until there is room
    scheduler.handle(ParametersChanged(limits={"d0": replace(LIMITS, hbm_tokens=700)}))
    assert free(scheduler, "d0/0") == 0
    refused(scheduler, Submit("z", 701, 0), "'z'", "700")
    finish(scheduler, "a")
    assert free(scheduler, "d0/0") == 100
    assert placements(fetch(scheduler, "D")) == [("c", "d0/0")]


def test_a_new_z_factor_holds_from_the_next_fetch() -> None:
    scheduler = cluster()
    submit(scheduler, "a")
    scheduler.handle(ParametersChanged(Settings(z_factor=2.0)))
    placed = fetch(scheduler, "D")[1]
    assert isinstance(placed, DecodePlaced)
    assert (placed.balanced, placed.balanced_tokens) == (True, 100)


@pytest.mark.parametrize("last", POLICIES)
@pytest.mark.parametrize("first", POLICIES)
def test_a_new_policy_loses_no_request(first: str, last: str) -> None:
    scheduler = cluster(node("p0"), node("p1", group="Q"), node("d0"), policy=first)
    submit(scheduler, "abcdefgh")
    fetch(scheduler, "P")
    assert scheduler.handle(ParametersChanged(Settings(policy=last))) == ()
    assert scheduler.ledger.policy.name == last
    submit(scheduler, "ij")
    for group in "PQD":
        fetch(scheduler, group)
    placed = [request for request in scheduler.requests.values() if request.ordered is not None]
    assert "".join(sorted(request.id for request in placed)) == "abcdefghij"
    for request in placed:
        finish(scheduler, request.id)
    assert idle(scheduler)


def test_a_change_of_nothing_changes_nothing() -> None:
    scheduler = cluster()
    submit(scheduler, "ab")
    fetch(scheduler, "D")
    stale(scheduler, ParametersChanged())


def test_transfers_are_counted_anew_when_their_costs_change() -> None:
    def priced(seconds: float) -> Limits:
        each = (seconds,)
        return replace(LIMITS, prices=Prices(0.1, 0.1, ("dram",), (0.5,), each, each, each))

    joined = [replace(node(name), limits=priced(2.0)) for name in ("p0", "d0")]
    scheduler = cluster(*joined, policy="priced")
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    scheduler.handle(ParametersChanged(limits={"p0": priced(1.0), "d0": priced(1.0)}))
    backlog = {name: n.backlog_s for name, n in scheduler.ledger.accounts().nodes.items()}
    assert backlog == {"p0": (100.0,), "d0": (100.0,)}  # 80 hits and 20 misses at 1 s
    finish(scheduler, "a")
    assert idle(scheduler)


BAD_SETTINGS: dict[str, tuple[Any, ...]] = {
    "policy": ("dualpth", "", "Basic"),
    "z_factor": (0.99, 11.0, NAN, INFINITY, None, "1", True),
    "block_tokens": (0, -1, 65537, 64.0, True, None),
    "patience": (-1, 2**32 + 1, 1.0, NAN, False),
    "hit_s_per_token": (-1e-9, NAN, INFINITY, 1e7),
    "miss_s_per_token": (-1.0, NAN, None),
    "most_work_s": (-1.0, NAN, 1e13),
    "expected_split": (-0.1, 1.1, NAN, True),
    "hit_share": (-0.1, 1.1, NAN, "0.5"),
    "price_weight_s": (-1.0, NAN, INFINITY, 1e7),
}


@pytest.mark.parametrize("field", [entry.name for entry in fields(Settings)])
def test_bad_settings_are_refused_at_the_start_and_later(field: str) -> None:
    scheduler = cluster()
    for value in BAD_SETTINGS[field]:
        bad = replace(Settings(), **{field: value})
        refused(scheduler, ParametersChanged(bad, {"p0": replace(LIMITS, beta_tokens=1)}))
        with pytest.raises(InputError, match=field):
            Scheduler(bad)


def test_an_unknown_policy_offers_the_nearest() -> None:
    with pytest.raises(InputError, match="'dualpth' is unknown; the nearest are dualpath"):
        Scheduler(Settings(policy="dualpth"))


# ---- patience ------------------------------------------------------------------------------------


def test_patience_lets_a_few_later_requests_with_less_work_go_first() -> None:
    scheduler = cluster(patience=2, most_work_s=100.0)
    scheduler.handle(Submit("long", 100, 0))
    scheduler.handle(Submit("short", 100, 99))
    scheduler.handle(Submit("shorter", 100, 100))
    found = fetch(scheduler, "P")
    keys = [(d.request, d.key) for d in found if isinstance(d, PrefillPlaced)]
    # position + 2 x work; the third ties with the first, which was there before it
    assert keys == [("short", 1.02), ("long", 2.0), ("shorter", 2.0)]
    assert [name for name, _ in placements(fetch(scheduler, "D"))] == ["short", "long", "shorter"]


def test_work_counts_in_full_up_to_its_limit_and_hits_for_what_they_cost() -> None:
    scheduler = cluster(patience=8, most_work_s=100.0, hit_s_per_token=0.5, miss_s_per_token=1.0)
    scheduler.handle(Submit("capped", 500, 0))
    scheduler.handle(Submit("hits", 100, 100))
    found = fetch(scheduler, "P")
    keys = [(d.request, d.key) for d in found if isinstance(d, PrefillPlaced)]
    assert keys == [("hits", 1 + 8 * 0.5), ("capped", 8.0)]


def test_new_patience_orders_those_that_wait_anew() -> None:
    scheduler = cluster(node("p0"), node("d0"), node("d1", group="E"))
    scheduler.handle(Submit("x", 300, 300))
    scheduler.handle(Submit("long", 100, 0))
    scheduler.handle(Submit("short", 100, 100))
    assert placements(fetch(scheduler, "D")) == [("x", "d0/0")]  # the others wait for E
    scheduler.handle(ParametersChanged(Settings(patience=9, most_work_s=100.0)))
    assert [name for name, _ in placements(fetch(scheduler, "P"))] == ["x", "short", "long"]
    found = fetch(scheduler, "E")
    assert [d.request for d in found if isinstance(d, GroupChosen)] == ["short", "long"]


def test_a_returned_request_has_its_old_key() -> None:
    scheduler = cluster(patience=2, most_work_s=100.0)
    submit(scheduler, "ab", hit=0)
    fetch(scheduler, "P")
    scheduler.handle(NodeLost("p0"))
    scheduler.handle(node("p0"))
    submit(scheduler, "c", hit=100)
    found = fetch(scheduler, "P")
    keys = [(d.request, d.key) for d in found if isinstance(d, PrefillPlaced)]
    assert keys == [("a", 2.0), ("c", 2.0), ("b", 3.0)]


# ---- snapshots -----------------------------------------------------------------------------------


def in_the_middle(policy: str = "split") -> Scheduler:
    """Return a scheduler with something of everything."""
    scheduler = cluster(
        node("p0"),
        node("p1", group="Q"),
        node("d0"),
        node("d1", group="E"),
        policy=policy,
        patience=3,
        most_work_s=50.0,
    )
    submit(scheduler, "abcdef")
    fetch(scheduler, "P")
    fetch(scheduler, "D", {"d0/1": EngineReport(free_tokens=900)})
    for request in list(scheduler.requests.values()):
        for owner in list(request.reads)[:1]:
            scheduler.handle(ReadStarted(request.id, owner))
    scheduler.handle(EngineLost("p0/0"))
    scheduler.handle(NodeLost("p1"))
    submit(scheduler, "gh", hit=100)
    with pytest.raises(InputError):
        scheduler.handle(Fetch("D", 2, {"d0/0": EngineReport(seq=-1)}))
    return scheduler


@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_scheduler_goes_on_as_if_nothing_had_happened(policy: str) -> None:
    scheduler = in_the_middle(policy)
    taken = snapshot.take(scheduler)
    restored = snapshot.restore(orjson.loads(orjson.dumps(taken)))
    assert snapshot.take(restored) == taken
    rest: tuple[Event, ...] = (
        Fetch("P", 1),
        Fetch("Q", 1),
        Submit("i", 100, 3),
        Fetch("P", 2),
        Fetch("D", 2),
        Fetch("E", 1),
        NodeLost("d1"),
        node("p1", group="Q"),
        Fetch("Q", 1),
        Fetch("D", 3, {"d0/0": EngineReport()}),
        ParametersChanged(Settings(policy="basic")),
        Submit("j", 100, 3),
        Fetch("Q", 2),
        Fetch("D", 4),
    )
    for event in rest:
        assert restored.handle(event) == scheduler.handle(event)
        assert snapshot.take(restored) == snapshot.take(scheduler)


def test_a_snapshot_does_not_share_anything_with_the_scheduler() -> None:
    scheduler = in_the_middle()
    taken = snapshot.take(scheduler)
    kept = deepcopy(taken)
    restored = snapshot.restore(taken)
    restored.handle(NodeLost("d0"))
    scheduler.handle(NodeLost("p0"))
    assert taken == kept


@pytest.mark.parametrize("data", [None, [], "x", 3, NAN, {}], ids=repr)
def test_what_is_not_a_snapshot_is_refused(data: Any) -> None:
    with pytest.raises(
        InputError, match=r"^snapshot: version is None; this scheduler reads version 1$"
    ):
        snapshot.restore(data)


@pytest.mark.parametrize("version", [2, 0, -1, True, "1", None, [1]], ids=repr)
@pytest.mark.parametrize("whole", [True, False])
def test_the_version_is_looked_at_before_the_fields(version: Any, whole: bool) -> None:
    taken = snapshot.take(cluster()) if whole else {}
    with pytest.raises(InputError) as error:
        snapshot.restore({**taken, "version": version})
    assert str(error.value) == (f"snapshot: version is {version!r}; this scheduler reads version 1")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"settings": {"z_factor": 0.5}}, "settings.z_factor is 0.5"),
        ({"settings": {"policy": "nope"}}, "policy 'nope' is unknown"),
        ({"submitted": "many"}, "submitted"),
        ({"requests": [{}]}, "requests.0.id"),
        ({"accounts": {"engines": {"p0/0": {"seq": "x"}}}}, r"accounts.engines.p0/0.seq"),
        ({"answers": {"P": [1]}}, "answers.P"),
    ],
)
def test_a_snapshot_with_a_wrong_field_names_it(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        snapshot.restore({**snapshot.take(cluster()), **change})


def test_a_snapshot_needs_every_field() -> None:
    taken = snapshot.take(in_the_middle())
    for field in set(taken) - {"version"}:
        left = {name: value for name, value in taken.items() if name != field}
        with pytest.raises(
            InputError, match=rf"^snapshot: {field}: .*; give what a scheduler wrote$"
        ):
            snapshot.restore(left)


@pytest.mark.parametrize(
    "path",
    [
        ("submitted", 0),
        ("submitted", 2**70),
        ("groups", []),
        ("groups", 0, "ghost"),
        ("groups", ["P", "P", "D", "E"]),
        ("requests", 1, "prefill", "ghost"),
        ("requests", 1, "prefill", "d0/0"),
        ("requests", 1, "decode", "ghost"),
        ("requests", 1, "decode", "p0/1"),
        ("requests", 1, "reads", {"ghost": 3}),
        ("requests", 1, "started", ["ghost"]),
        ("requests", 1, "id", "a"),
        ("requests", 1, "id", ""),
        ("requests", 1, "position", 0),
        ("requests", 1, "position", 2**40),
        ("requests", 1, "key", NAN),
        ("requests", 1, "prompt_tokens", -5),
        ("requests", 1, "prompt_tokens", 2**70),
        ("requests", 1, "hit_tokens", 101),
        ("requests", 1, "hold_tokens", 1),
        ("requests", 1, "attempt", 0),
        ("requests", 1, "parked", True),
        ("requests", 1, "ordered", None),
        ("requests", 1, "ordered", [-1, 5]),
        ("requests", -1, "ordered", [1, 1]),
        ("requests", -1, "prefill_finished", True),
        ("requests", -1, "group", {"decode": "ghost"}),
        ("requests", -1, "group", {"decode": "P"}),
        ("requests", 1, "group", {"decode": "D"}),
        ("requests", 1, "prefill", None),
        ("joined", []),
        ("joined", 0, "engines", ["p0/1", "p0/1"]),
        ("joined", 0, "limits", "alpha_tokens", -4),
        ("joined", 0, "limits", "read_tokens_per_s", 0),
        ("joined", 1, "node", "p0"),
        ("joined", 1, "group", "P"),
        ("accounts", "engines", {}),
        ("accounts", "nodes", {}),
        ("accounts", "engines", "p0/1", "tok", -7),
        ("accounts", "engines", "p0/1", "tok", 2**70),
        ("accounts", "nodes", "p0", "read_q", -3),
        ("accounts", "nodes", "p0", "reads", -1),
        ("accounts", "nodes", "p0", "backlog_s", [NAN]),
        ("accounts", "orders", 2**70),
    ],
    ids=lambda path: ".".join(map(str, path))[:60],
)
def test_a_snapshot_that_contradicts_itself_is_refused(path: tuple[Any, ...]) -> None:
    *where, last, value = path
    scheduler = in_the_middle()
    fetch(scheduler, "E")  # b, d and f have both engines now; the others wait
    data = snapshot.take(scheduler)
    assert snapshot.take(snapshot.restore(data)) == data
    place: Any = data
    for step in where:
        place = place[step]
    place[last] = value
    with pytest.raises(InputError, match=r"^snapshot: [^\n]*; [^\n]*$"):
        snapshot.restore(data)


def test_a_snapshot_with_its_keys_sorted_decides_the_same() -> None:
    scheduler = cluster(node("p0"), node("d1", group="Y"), node("d0", group="B"))
    taken = snapshot.take(scheduler)
    assert taken["groups"] == ["P", "Y", "B"]  # in the order of joining: ties go to the first
    restored = snapshot.restore(orjson.loads(orjson.dumps(taken, option=orjson.OPT_SORT_KEYS)))
    for either in (scheduler, restored):
        submit(either, "a")
    found = fetch(scheduler, "Y")
    assert placements(found) == [("a", "d1/0")]
    assert fetch(restored, "Y") == found


def test_a_snapshot_between_reads_is_restored() -> None:
    """Of two reads one has started and finished, the other has not started."""
    scheduler = cluster(policy="split", block_tokens=10)
    submit(scheduler, "a")
    fetch(scheduler, "P")
    fetch(scheduler, "D")
    scheduler.handle(ReadStarted("a", "p0"))
    scheduler.handle(ReadFinished("a", "p0"))
    restored = snapshot.restore(snapshot.take(scheduler))
    finish(restored, "a")
    assert idle(restored)
