"""The rules of each policy by themselves: read sides, turns, classes, prices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath_model.errors import InputError
from dualpath_model.scheduler import events, paper, placement, policies, priced, round_robin, split
from dualpath_model.scheduler.arrays import Nodes
from dualpath_model.scheduler.events import Decision, Limits, Prices, Settings
from dualpath_model.scheduler.ledger import Ledger
from dualpath_model.scheduler.policies import POLICIES, policy_named
from dualpath_model.scheduler.reference import Scheduler

LIMITS = Limits(100, 1000, 1000)
queues = st.integers(0, 10**6)
rates = st.floats(0.5, 1e6)
hits = st.integers(0, 10**5)


def two_nodes(
    queue_p: int,
    queue_d: int,
    settings: Settings | None = None,
    limits: tuple[Limits, Limits] = (LIMITS, LIMITS),
) -> Nodes:
    """The arrays of prefill node 0 and decode node 1 with these read queues."""
    ledger = Ledger(settings or Settings(), compiled=False)
    ledger.join_node(events.NodeJoined("p", "prefill", "P", ("p.0",), limits[0]))
    ledger.join_node(events.NodeJoined("d", "decode", "D", ("d.0",), limits[1]))
    accounts = ledger.by_name()
    accounts.nodes["p"].read_q, accounts.nodes["d"].read_q = queue_p, queue_d
    return ledger.state().nodes


def scheduler(policy: str, prefill: list[Limits], decode: list[Limits], **more: Any) -> Scheduler:
    """One group of each pool, a node of one engine for each of the limits."""
    made = Scheduler(Settings(policy=policy, **more))
    for group, pool, each in (("P", "prefill", prefill), ("D", "decode", decode)):
        for i, limits in enumerate(each):
            node = f"{group.lower()}{i}"
            made.handle(events.NodeJoined(node, pool, group, (f"{node}.0",), limits))  # type: ignore[arg-type]
    return made


def run(made: Scheduler, requests: list[tuple[int, int]]) -> list[Decision]:
    """Submit requests of (prompt, hit) tokens, each fetched at once by both groups."""
    decided: list[Decision] = []
    for prompt, hit in requests:
        number = made.submitted
        made.handle(events.Submit(f"r{number}", prompt, hit))
        decided += made.handle(events.Fetch("P", number))
        decided += made.handle(events.Fetch("D", number))
    return decided


def of(decided: list[Decision], kind: type) -> list[Any]:
    return [decision for decision in decided if isinstance(decision, kind)]


# ---- the paper's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tok", "read_q", "expected"),
    [(11, 0, 1), (11, 21, 1), (10, 20, 2), (0, 0, 2), (10, 21, 3), (0, 21, 3)],
)
def test_classes_of_prefill_engines(tok: int, read_q: int, expected: int) -> None:
    assert paper.prefill_class(tok, 10, read_q, 20) == expected


def test_a_short_queue_comes_before_fewer_tokens() -> None:
    made = scheduler("dualpath", [LIMITS, LIMITS], [LIMITS])
    made.handle(
        events.Fetch(
            "P",
            0,
            {"p0.0": events.EngineReport(1, 1), "p1.0": events.EngineReport(9, 999)},
            {"p0": 101, "p1": 100},
        )
    )
    made.handle(events.Submit("r", 5, 5))
    placed = of(list(made.handle(events.Fetch("P", 1))), events.PrefillPlaced)[0]
    assert (placed.engine, placed.engine_class, placed.tok) == ("p1.0", 2, 999)


def test_a_long_queue_is_placed_in_one_fetch_in_order() -> None:
    made = scheduler("dualpath", [Limits(0, 500, 0)], [LIMITS])
    for i in range(1000):
        made.handle(events.Submit(f"r{i}", 1, 0))
    placed = of(list(made.handle(events.Fetch("P", 0))), events.PrefillPlaced)
    assert [decision.request for decision in placed] == [f"r{i}" for i in range(501)]


@given(queues, queues, hits)
def test_the_shorter_queue_reads_all(queue_p: int, queue_d: int, hit: int) -> None:
    nodes = two_nodes(queue_p, queue_d)
    assert paper.read_tokens(nodes, 0, 1, hit) == ((hit, 0) if queue_p <= queue_d else (0, hit))


@given(queues, hits, queues, queues)
def test_equal_queues_go_to_the_node_given_less(
    queue: int, hit: int, given_p: int, given_d: int
) -> None:
    nodes = two_nodes(queue, queue)
    nodes.given[:] = given_p, given_d
    assert paper.read_tokens(nodes, 0, 1, hit) == ((hit, 0) if given_p <= given_d else (0, hit))


@pytest.mark.parametrize(
    ("z_factor", "queued", "held", "engines", "expected"),
    [(1.05, 60, 40, 1, 105), (1.05, 60, 40, 2, 52), (1.0, 7, 0, 2, 3), (2.0, 0, 0, 4, 0)],
)
def test_balanced_tokens(
    z_factor: float, queued: int, held: int, engines: int, expected: int
) -> None:
    assert paper.balanced_tokens(z_factor, queued, held, engines) == expected


@given(st.integers(1, 30), st.lists(st.integers(1, 12), max_size=8))
def test_the_fitting_prefix_stops_at_the_first_that_does_not_fit(
    free: int, holds: list[int]
) -> None:
    ledger = Ledger(Settings(), compiled=False)
    ledger.join_node(events.NodeJoined("d", "decode", "D", ("d.0",), Limits(1, 0, free)))
    hold = np.array(holds, dtype=np.int64)
    fitting = placement.fitting_prefix(ledger.state().decode, 0, hold, hold)
    fits = [count for count in range(len(holds) + 1) if sum(holds[:count]) <= free]
    assert fitting == max(fits)


# ---- split -----------------------------------------------------------------------------------------


@given(queues, queues, rates, rates, hits, st.sampled_from((1, 16, 64, 1000)))
def test_split_finishes_together(
    queue_p: int, queue_d: int, rate_p: float, rate_d: float, hit: int, block: int
) -> None:
    limits = (Limits(1, 1, 0, rate_p), Limits(1, 0, 1, rate_d))
    nodes = two_nodes(queue_p, queue_d, Settings(policy="split", block_tokens=block), limits)
    on_p, on_d = split.read_tokens(nodes, 0, 1, hit)
    assert on_p >= 0 and on_d >= 0 and on_p + on_d == hit
    assert on_p % block == 0 or on_p == hit

    def later_side(x: float) -> float:
        return max((queue_p + x) / rate_p, (queue_d + hit - x) / rate_d)

    # no whole block more or less, and no part of a block, would finish a block's time earlier
    chosen = later_side(on_p)
    for other in (max(0, on_p - block), min(hit, on_p + block), 0, hit):
        if other % block == 0 or other == hit:
            assert chosen <= later_side(other) * (1 + 1e-9)
    even = (rate_p * (queue_d + hit) - rate_d * queue_p) / (rate_p + rate_d)
    assert abs(on_p - min(hit, max(0.0, even))) <= block * (1 + 1e-9)
    if block <= even <= hit - block:
        gap = abs((queue_p + on_p) / rate_p - (queue_d + on_d) / rate_d)
        assert gap <= block * (1 / rate_p + 1 / rate_d) * (1 + 1e-6)


def test_split_halves_on_equal_idle_nodes() -> None:
    nodes = two_nodes(0, 0, Settings(policy="split", block_tokens=64))
    assert split.read_tokens(nodes, 0, 1, 1280) == (640, 640)


# ---- priced ----------------------------------------------------------------------------------------


small = st.floats(0.0, 1.0)


@given(
    st.lists(small, min_size=6, max_size=6),
    st.lists(small, min_size=4, max_size=4),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.sampled_from(("p", "d")),
)
def test_priced_costs_are_backlog_and_price_times_seconds(
    prices: list[float], knobs: list[float], read_q: int, tok: int, node: str
) -> None:
    price, near_s, far_s, miss_s, read_price, engine_price = prices
    on_decode, hit_share, weight, backlog = knobs
    own = Prices(read_price, engine_price, ("cnic",), (price,), (near_s,), (far_s,), (miss_s,))
    limits = Limits(1, 1000, 1000, 20.0, 5.0, own)
    more = {"expected_split": on_decode, "hit_share": hit_share, "price_weight_s": weight}
    made = scheduler("priced", [limits], [limits], **more)
    accounts = made.ledger.by_name()
    accounts.nodes[f"{node}0"].read_q = read_q
    accounts.nodes[f"{node}0"].backlog_s = (backlog,)
    accounts.engines[f"{node}0.0"].tok = tok
    state = made.ledger.state()
    number, engines = state.node[f"{node}0"], state.prefill if node == "p" else state.decode
    moving = backlog + weight * price
    near = (read_q / 20.0 + weight * read_price) / 20.0 + moving * near_s
    costs = [getattr(state.nodes, name)[number] for name in ("near_cost", "far_cost", "miss_cost")]
    assert costs == pytest.approx([near, moving * far_s, moving * miss_s])
    here = on_decode if node == "d" else 1 - on_decode  # expected share of reads on this side
    hit = here * near + (1 - here) * moving * far_s
    token = (tok / 5.0 + weight * engine_price) / 5.0
    token += hit_share * hit + (1 - hit_share) * moving * miss_s
    key = priced.engine_cost(engines, state.nodes, 0)
    assert key == pytest.approx(token * 1e15, rel=1e-9, abs=1)
    assert engines.key_tree[1] == key


@given(queues, queues, hits, queues, queues)
def test_priced_without_prices_takes_the_shorter_queue(
    queue_p: int, queue_d: int, hit: int, given_p: int, given_d: int
) -> None:
    nodes = two_nodes(queue_p, queue_d, Settings(policy="priced", price_weight_s=0.0))
    nodes.given[:] = given_p, given_d
    for node in (0, 1):
        priced.refresh_node_cost(nodes, node)
    assert priced.read_tokens(nodes, 0, 1, hit) == paper.read_tokens(nodes, 0, 1, hit)


def test_priced_without_prices_places_as_dualpath_reads() -> None:
    requests = [(60, 50), (30, 30), (80, 10), (20, 20), (90, 85), (10, 5), (40, 40), (70, 60)]
    sides = []
    for policy in ("dualpath", "priced"):
        made = scheduler(policy, [LIMITS], [LIMITS], price_weight_s=0.0)
        decided = of(run(made, requests), events.ReadOrdered)
        sides.append([(read.prefill_tokens, read.decode_tokens) for read in decided])
    assert sides[0] == sides[1]
    assert len(sides[0]) == len(requests)


@pytest.mark.parametrize("fast", [0, 1])
def test_priced_prefers_the_engine_that_is_faster_in_seconds(fast: int) -> None:
    nodes = [Limits(100, 1000, 1000, 1.0, 4.0 if i == fast else 1.0) for i in range(2)]
    decided = run(scheduler("priced", nodes, nodes, hit_share=0.0), [(10, 0)] * 10)
    for kind, pool in ((events.PrefillPlaced, "p"), (events.DecodePlaced, "d")):
        placed = [decision.engine for decision in of(decided, kind)]
        # cost of a token there is tok / rate^2: 16 times the tokens on an engine 4 times as fast
        assert placed.count(f"{pool}{fast}.0") == 9
        assert len(placed) == 10
    equal = run(scheduler("dualpath", nodes, nodes), [(10, 0)] * 10)
    assert [d.engine for d in of(equal, events.PrefillPlaced)].count("p0.0") == 5


@pytest.mark.parametrize("dear", [0, 1])
def test_priced_avoids_the_side_whose_compute_nic_carries_a_price(dear: int) -> None:
    # a read crosses the own compute NIC, the other side's read does not
    def limits(price: float) -> Limits:
        own = Prices(0.0, 0.0, ("cnic",), (price,), (1.0,), (0.0,), (0.0,))
        return Limits(100, 1000, 1000, prices=own)

    sides = (limits(0.5 if dear == 0 else 0.0), limits(0.5 if dear == 1 else 0.0))
    nodes = two_nodes(0, 0, Settings(policy="priced", price_weight_s=3.0), sides)
    for node in (0, 1):
        priced.refresh_node_cost(nodes, node)
    assert priced.read_tokens(nodes, 0, 1, 7) == ((0, 7) if dear == 0 else (7, 0))
    made = scheduler("priced", [sides[0]], [sides[1]], price_weight_s=3.0)
    read = of(run(made, [(7, 7)]), events.ReadOrdered)[0]
    assert (read.prefill_tokens, read.decode_tokens) == ((0, 7) if dear == 0 else (7, 0))


def test_priced_avoids_the_side_whose_storage_nic_carries_a_price() -> None:
    cheap, dear = Limits(100, 1000, 1000), Limits(100, 1000, 1000, prices=Prices(read_price=0.5))
    for sides, expected in (((cheap, dear), (7, 0)), ((dear, cheap), (0, 7))):
        made = scheduler("priced", [sides[0]], [sides[1]])
        read = of(run(made, [(7, 7)]), events.ReadOrdered)[0]
        assert (read.prefill_tokens, read.decode_tokens) == expected


def test_priced_counts_transfers_until_prefill_has_finished() -> None:
    prices = Prices(0.0, 0.0, ("cnic",), (0.0,), (1.0,), (0.5,), (2.0,))
    made = scheduler("priced", [Limits(9, 99, 0, prices=prices)], [Limits(9, 0, 99, prices=prices)])
    read = of(run(made, [(10, 6)]), events.ReadOrdered)[0]
    assert (read.prefill_tokens, read.decode_tokens) == (6, 0)
    nodes = made.ledger.accounts().nodes
    assert nodes["p0"].backlog_s == (6 * 1.0 + 4 * 2.0,)
    assert nodes["d0"].backlog_s == (6 * 0.5 + 4 * 2.0,)
    made.handle(events.ReadFinished("r0", "p0"))
    made.handle(events.PrefillFinished("r0"))
    nodes = made.ledger.accounts().nodes
    assert nodes["p0"].backlog_s == nodes["d0"].backlog_s == (0.0,)


def test_a_change_of_prices_leaves_no_transfers_behind() -> None:
    def prices(seconds: float) -> Limits:
        own = Prices(0.0, 0.0, ("cnic",), (0.0,), (seconds,), (seconds,), (seconds,))
        return Limits(9, 99, 99, prices=own)

    made = scheduler("priced", [prices(1.0)], [prices(1.0)])
    run(made, [(10, 6)])
    made.handle(events.ParametersChanged(limits={"p0": prices(0.25), "d0": prices(0.25)}))
    made.handle(events.ReadFinished("r0", "p0"))
    made.handle(events.PrefillFinished("r0"))
    nodes = made.ledger.accounts().nodes
    assert nodes["p0"].backlog_s == nodes["d0"].backlog_s == (0.0,)


# ---- turns, basic, oracle --------------------------------------------------------------------------


def test_round_robin_takes_engines_and_sides_in_turn() -> None:
    made = scheduler("round-robin", [LIMITS] * 3, [LIMITS] * 2)
    decided = run(made, [(5 + i, 4) for i in range(7)])
    prefill = [decision.engine for decision in of(decided, events.PrefillPlaced)]
    decode = [decision.engine for decision in of(decided, events.DecodePlaced)]
    assert prefill == ["p0.0", "p1.0", "p2.0", "p0.0", "p1.0", "p2.0", "p0.0"]
    assert decode == ["d0.0", "d1.0", "d0.0", "d1.0", "d0.0", "d1.0", "d0.0"]
    sides = [read.prefill_tokens for read in of(decided, events.ReadOrdered)]
    assert sides == [4, 0, 4, 0, 4, 0, 4]


def test_round_robin_passes_over_engines_that_are_full() -> None:
    made = scheduler("basic", [Limits(9, 10), Limits(9, 100)], [Limits(9, 0, 12), Limits(9, 0, 99)])
    decided = run(made, [(11, 4)] * 5)
    prefill = [decision.engine for decision in of(decided, events.PrefillPlaced)]
    decode = [decision.engine for decision in of(decided, events.DecodePlaced)]
    assert prefill == ["p0.0", "p1.0", "p1.0", "p1.0", "p1.0"]
    assert decode == ["d0.0", "d1.0", "d1.0", "d1.0", "d1.0"]


def test_round_robin_turns_over_groups_by_their_engines() -> None:
    made = Scheduler(Settings(policy="round-robin"))
    made.handle(events.NodeJoined("a", "decode", "A", ("a.0", "a.1", "a.2"), LIMITS))
    made.handle(events.NodeJoined("b", "decode", "B", ("b.0",), LIMITS))
    for i in range(8):
        made.handle(events.Submit(f"r{i}", 5, 0))
    chosen = [d.group for d in of(list(made.handle(events.Fetch("A", 0))), events.GroupChosen)]
    assert chosen == ["A", "A", "A", "B"] * 2


@given(queues, queues, hits)
def test_basic_reads_on_the_prefill_side_and_oracle_nowhere(
    queue_p: int, queue_d: int, hit: int
) -> None:
    nodes = two_nodes(queue_p, queue_d)
    assert round_robin.read_by_prefill(nodes, 0, 1, hit) == (hit, 0)
    assert policies.read_nothing(nodes, 0, 1, hit) == (0, 0)


@pytest.mark.parametrize(("policy", "expected"), [("basic", (6, 0)), ("oracle", (0, 0))])
def test_reads_under_load(policy: str, expected: tuple[int, int]) -> None:
    decided = of(run(scheduler(policy, [LIMITS], [LIMITS]), [(9, 6)] * 6), events.ReadOrdered)
    assert [(read.prefill_tokens, read.decode_tokens) for read in decided] == [expected] * 6


def test_policies_are_found_by_name() -> None:
    assert [policy_named(name).name for name in POLICIES] == list(POLICIES)
    with pytest.raises(InputError, match="dualpath"):
        policy_named("dualpaht")
