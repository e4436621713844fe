"""The compiled scheduler decides as the plain one."""

from __future__ import annotations

from random import Random

from dualpath_model.scheduler import events
from dualpath_model.scheduler.events import Decision, EngineReport, Event, Limits
from dualpath_model.scheduler.reference import Scheduler

EVENTS = 600
GROUPS = ("P1", "P2", "D1", "D2")


class Both:
    """A plain and a compiled scheduler that are told the same."""

    def __init__(self) -> None:
        self.plain = Scheduler()
        self.compiled = Scheduler(compiled=True)
        self.decided: list[Decision] = []

    def tell(self, event: Event) -> None:
        decisions = self.plain.handle(event)
        assert self.compiled.handle(event) == decisions
        self.decided += decisions


def joined(rng: Random, node: str, group: str) -> events.NodeJoined:
    limits = Limits(rng.choice((100, 400)), rng.choice((200, 500)), rng.choice((1000, 3000)))
    engines = tuple(f"{node}.{i}" for i in range(rng.randint(1, 5)))
    return events.NodeJoined(
        node, "prefill" if group[0] == "P" else "decode", group, engines, limits
    )


def next_of(scheduler: Scheduler, name: str) -> Event | None:
    """The next thing that happens to a request."""
    request = scheduler.requests[name]
    if request.ordered is None:
        return None
    if request.reads:
        node = next(iter(request.reads))
        what = events.ReadFinished if node in request.started else events.ReadStarted
        return what(name, node, request.attempt)
    if request.prefill_finished:
        return events.DecodeFinished(name, request.attempt)
    return events.PrefillFinished(name, request.attempt)


def test_same_decisions_over_a_long_run() -> None:
    rng, both = Random(7), Both()
    for number, group in enumerate((*GROUPS, *GROUPS)):
        both.tell(joined(rng, f"n{number}", group))
    for step in range(EVENTS):
        chance = rng.random()
        if chance < 0.35:
            prompt = rng.randint(1, 300)
            both.tell(events.Submit(f"r{step}", prompt, rng.randint(0, prompt), rng.randint(0, 50)))
        elif chance < 0.6:
            group = rng.choice(GROUPS)
            nodes = [n for n in both.plain.ledger.joined.values() if n.group == group]
            chosen = [engine for node in nodes for engine in node.engines if rng.random() < 0.1]
            reports = {name: EngineReport(2, rng.randint(2, 400)) for name in chosen}
            read_q = {node.node: rng.randint(0, 500) for node in nodes if rng.random() < 0.1}
            both.tell(events.Fetch(group, step, reports, read_q))
        elif chance < 0.97:
            for name in rng.sample(list(both.plain.requests), min(3, len(both.plain.requests))):
                event = next_of(both.plain, name)
                if event is not None:
                    both.tell(event)
        else:
            node = rng.choice(list(both.plain.ledger.joined.values()))
            both.tell(events.NodeLost(node.node))
            both.tell(joined(rng, node.node, node.group))
    kinds = {decision.kind for decision in both.decided}
    assert kinds == {
        "prefill placed",
        "decode placed",
        "read ordered",
        "group chosen",
        "returned",
    }
    assert len(both.decided) > EVENTS / 2
