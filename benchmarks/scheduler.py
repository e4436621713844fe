"""What a placement costs: one request's prefill engine, or its decode group and engine.

``python -m benchmarks.scheduler [--picture FILE] [--group ENGINES]`` measures the compiled decision
functions at 384 prefill and 768 decode engines, and from 12 to 100,000 engines (1/3 prefill).

One *decision* is all of ``place_prefill`` for one request (in a group drawn at random; the next one
if no engine there may take it), or ``designate_decode`` and ``place_decode`` for one request (phase 1
over all groups, phase 2 in the group). It includes the choice, all accounts, every update of the
index and, in whichever of the two comes second (drawn for each request), the read side. Fetches place
one request each: nothing is shared by a batch.

The loop is closed: once a cluster is full, every placed request makes an earlier one, drawn at
random, end its read, another its prefill and another its decode. ``finishing`` is that: giving all of
it back to the accounts and the index (and picking the requests). It is not part of ``mean_us`` and
``p99_us``; ``decisions_per_s`` is everything together on the wall clock: decisions, finishing,
drawing and clock. Prompts and hits are the paper's agents (Table 2, 64K). Alpha and beta are those of
DeepSeek 660B, decode engines hold 1.8 million tokens (64 GB); reads are kept at alpha a node in the
mean, prefill tokens at 95 % of beta, HBM at 85 %.

Each decision is timed inside the compiled loop by clock_gettime (its own cost is printed and not
subtracted). Other figures: one group for each pool (``single_group``, the most an index has to
search), a linear scan in place of the index, states made to defeat the search (``adversarial``), the
same functions as plain Python, and the reference scheduler by events.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualpath_model.compilation import bound, compilable
from dualpath_model.scheduler import events, placement
from dualpath_model.scheduler.arrays import Engines, Nodes
from dualpath_model.scheduler.index import NONE, IntArray
from dualpath_model.scheduler.paper import choose_decode
from dualpath_model.scheduler.placement import (
    add_decode,
    add_group_tokens,
    add_prefill,
    add_read,
    designate_decode,
    place_decode,
    place_prefill,
)
from dualpath_model.scheduler.reference import Scheduler
from dualpath_model.scheduler.topology import (
    Accounts,
    EngineAccount,
    NodeAccount,
    State,
    build,
)
from dualpath_model.traces.synthetic import TABLE_2, generate

PREFILL, DECODE = 384, 768
NODE_ENGINES = 8
GROUP_ENGINES = 64
ALPHA_TOKENS = 4_269_126  # `dualpath plan deepseek-660b-2p4d`
BETA_TOKENS = 2_444_577
HBM_TOKENS = 1_821_494  # 64 GB of 35,136 bytes a token
PREFILL_LOAD = 0.95  # of beta
HBM_LOAD = 0.85
Z_FACTOR = 1.05
SIZES = (12, 36, 192, 576, 1_152, 3_600, 10_000, 33_000, 100_000)
ROUNDS = 7
STEPS = 40_000  # placed requests in a round: two decisions each
SCANNED = 100_000_000  # engines looked at in a round of scans
MEAN_TARGET_US, P99_TARGET_US = 5.0, 50.0

# ---- the closed loop, compiled -------------------------------------------------------------------


class Requests(NamedTuple):
    """Live requests by row, and the rows in each stage: reading, prefill, decode."""

    prompt: IntArray
    hit: IntArray
    hold: IntArray
    prefill_engine: IntArray
    decode_engine: IntArray
    on_prefill: IntArray
    on_decode: IntArray
    spare: IntArray
    """Rows that are free, a stack."""
    spares: IntArray
    """How many, (1,)."""
    slots: IntArray
    """Rows by stage."""
    first: IntArray
    """First slot of each stage, and the end, (4,)."""
    live: IntArray
    """Rows in each stage, (3,)."""


@compilable
def decide_prefill(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    requests: Requests,
    row: int,
    first_group: int,
    placed: IntArray,
) -> bool:
    """Place one request on a prefill engine, in the first group from ``first_group`` that has one."""
    groups = prefill.group_tok.shape[0]
    prompt, hit = requests.prompt[row : row + 1], requests.hit[row : row + 1]
    other = requests.decode_engine[row : row + 1]
    for turn in range(groups):
        group = (first_group + turn) % groups
        if place_prefill(prefill, decode, nodes, group, False, prompt, hit, other, placed) == 1:
            requests.prefill_engine[row] = placed[0, 0]
            if placed[0, 2] >= 0:
                requests.on_prefill[row], requests.on_decode[row] = placed[0, 2], placed[0, 3]
            return True
    return False


@compilable
def decide_decode(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    requests: Requests,
    row: int,
    z_factor: float,
    placed: IntArray,
) -> bool:
    """Place one request on a decode engine: both phases."""
    group = designate_decode(decode, requests.prompt[row], requests.hold[row])
    prompt, hit = requests.prompt[row : row + 1], requests.hit[row : row + 1]
    hold, other = requests.hold[row : row + 1], requests.prefill_engine[row : row + 1]
    count, _ = place_decode(
        prefill, decode, nodes, group, z_factor, prompt, hit, hold, other, placed
    )
    if count == 0:
        add_group_tokens(decode, group, -requests.prompt[row])
        return False
    requests.decode_engine[row] = placed[0, 0]
    if placed[0, 2] >= 0:
        requests.on_prefill[row], requests.on_decode[row] = placed[0, 2], placed[0, 3]
    return True


@compilable
def exchange(requests: Requests, stage: int, row: int, draw: float) -> int:
    """Put a row into a stage (-1: none); return the row that leaves it, -1 while there is room."""
    first, live = requests.first[stage], requests.live[stage]
    if row < 0:
        if live == 0:
            return -1
        place = first + int(draw * live)
        leaves = requests.slots[place]
        requests.slots[place] = requests.slots[first + live - 1]
        requests.live[stage] -= 1
        return int(leaves)
    if live < requests.first[stage + 1] - first:
        requests.slots[first + live] = row
        requests.live[stage] += 1
        return -1
    place = first + int(draw * live)
    leaves = requests.slots[place]
    requests.slots[place] = row
    return int(leaves)


@compilable
def finish(
    prefill: Engines,
    decode: Engines,
    nodes: Nodes,
    requests: Requests,
    row: int,
    draws: np.ndarray,
) -> None:
    """Let a new row in (-1: none); one request each ends its read, its prefill and its decode."""
    row = exchange(requests, 0, row, draws[0])
    if row < 0:
        return
    node, other = (
        prefill.node[requests.prefill_engine[row]],
        decode.node[requests.decode_engine[row]],
    )
    add_read(prefill, decode, nodes, node, -requests.on_prefill[row])
    add_read(prefill, decode, nodes, other, -requests.on_decode[row])
    row = exchange(requests, 1, row, draws[1])
    if row < 0:
        return
    add_prefill(prefill, nodes, requests.prefill_engine[row], -1, -requests.prompt[row])
    row = exchange(requests, 2, row, draws[2])
    if row < 0:
        return
    end_decode(decode, nodes, requests, row)


@compilable
def end_decode(decode: Engines, nodes: Nodes, requests: Requests, row: int) -> None:
    """A request has its last token; its row is free."""
    engine, prompt, hold = requests.decode_engine[row], requests.prompt[row], requests.hold[row]
    add_decode(decode, nodes, engine, -1, -prompt, -hold)
    requests.spare[requests.spares[0]] = row
    requests.spares[0] += 1


@compilable
def give_up(prefill: Engines, decode: Engines, nodes: Nodes, requests: Requests, row: int) -> None:
    """Take back a request that found only one engine."""
    if requests.prefill_engine[row] >= 0:
        add_prefill(prefill, nodes, requests.prefill_engine[row], -1, -requests.prompt[row])
    if requests.decode_engine[row] >= 0:
        end_decode(decode, nodes, requests, row)
    else:
        requests.spare[requests.spares[0]] = row
        requests.spares[0] += 1


PREFILL_NS, DECODE_NS, FINISH_NS, CLASS, BALANCED = range(5)  # columns of ``took``


def loop(now: Callable[..., int], bind: Callable[..., Any], jit: Callable[..., Any]) -> Any:
    """Return the closed loop over functions that ``bind`` gave, timed by ``now``."""
    choose_pe, choose_de = bind(decide_prefill), bind(decide_decode)
    end, undo = bind(finish), bind(give_up)

    def run(
        prefill, decode, nodes, requests, prompts, hits, holds, draws, z_factor, clock, placed, took
    ):
        refused = 0
        for k in range(draws.shape[0]):
            requests.spares[0] -= 1
            row = requests.spare[requests.spares[0]]
            requests.prompt[row], requests.hit[row] = prompts[k], hits[k]
            requests.hold[row] = holds[k]
            requests.prefill_engine[row], requests.decode_engine[row] = -1, -1
            group = int(draws[k, 3] * prefill.group_tok.shape[0])
            done = True
            for turn in range(2):
                if (turn == 0) == (draws[k, 4] < 0.5):
                    start = now(clock)
                    done = choose_pe(prefill, decode, nodes, requests, row, group, placed)
                    took[k, PREFILL_NS] = now(clock) - start
                    took[k, CLASS] = placed[0, 1]
                else:
                    start = now(clock)
                    done = choose_de(prefill, decode, nodes, requests, row, z_factor, placed)
                    took[k, DECODE_NS] = now(clock) - start
                    took[k, BALANCED] = placed[0, 1]
                if not done:
                    break
            if not done:
                refused += 1
                took[k, CLASS] = -1
                undo(prefill, decode, nodes, requests, row)
                row = -1
            start = now(clock)
            end(prefill, decode, nodes, requests, row, draws[k])
            took[k, FINISH_NS] = now(clock) - start
        return refused

    return jit(run)


def attack(now: Callable[..., int], bind: Callable[..., Any], jit: Callable[..., Any]) -> Any:
    """Return a loop that times one choice of a decode engine again and again; nothing changes."""
    choose = bind(choose_decode)

    def run(decode, length, hold, balanced, clock, took):
        engine = -1
        for k in range(took.shape[0]):
            start = now(clock)
            engine, _ = choose(decode, 0, length, hold, balanced)
            took[k] = now(clock) - start
        return engine

    return jit(run)


# ---- three ways to run it ------------------------------------------------------------------------


@compilable
def set_leaf(tree: IntArray, leaf: int, value: int) -> None:
    """In place of ``set_value``: a scan needs no index."""
    tree[tree.shape[0] // 2 + leaf] = value


@compilable
def scan(
    values: IntArray,
    first: int,
    last: int,
    bounded: IntArray,
    most: int,
    rooms: IntArray,
    need: int,
) -> int:
    """In place of ``least_within``: look at every engine."""
    size = values.shape[0] // 2
    best, best_value = -1, NONE
    for i in range(first, last):
        value = values[size + i]
        if value < best_value and bounded[size + i] <= most and rooms[size + i] <= -need:
            best, best_value = i, value
    return best


def compiled_clock() -> Callable[..., int]:
    """Return a function of nanoseconds that numba compiles: the C library's monotonic clock."""
    import numba

    clock_gettime = ctypes.CDLL(None).clock_gettime
    clock_gettime.argtypes = (ctypes.c_int, ctypes.c_void_p)
    clock_gettime.restype = ctypes.c_int
    monotonic = int(time.CLOCK_MONOTONIC)

    def now(buffer):
        clock_gettime(monotonic, buffer.ctypes.data)
        return buffer[0] * 1_000_000_000 + buffer[1]

    clock: Callable[..., int] = numba.njit(now)
    return clock


class Ways:
    """The loops, with the index, with a scan, and without a compiler."""

    def __init__(self) -> None:
        """Prepare; each is compiled when first called."""
        import numba

        hooks = {"set_value": set_leaf, "least_within": scan}
        self.now = compiled_clock()
        self.jit = numba.njit(error_model="numpy")

        def index(function: Callable[..., Any]) -> Callable[..., Any]:
            return bound(function, compiled=True)

        def scanned(function: Callable[..., Any]) -> Callable[..., Any]:
            return bound(function, hooks, compiled=True)

        self.index = loop(self.now, index, self.jit)
        self.scan = loop(self.now, scanned, self.jit)
        self.plain = loop(lambda _: time.perf_counter_ns(), lambda f: f, lambda f: f)
        self.attack = attack(self.now, index, self.jit)
        self.attack_scan = attack(self.now, scanned, self.jit)
        self.refresh = index(placement.refresh_all)

    def clock_ns(self) -> float:
        """Return what a timing of nothing shows, in the mean."""
        now = self.now

        def run(clock, took):
            for k in range(took.shape[0]):
                start = now(clock)
                took[k] = now(clock) - start

        took = np.zeros(200_000, dtype=np.int64)
        timed = self.jit(run)
        timed(np.zeros(2, dtype=np.int64), took[:1])
        timed(np.zeros(2, dtype=np.int64), took)
        return float(took.mean())


# ---- a cluster under load ------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Microseconds: medians over rounds of each round's figures, and the worst of all."""

    mean: float
    p50: float
    p99: float
    worst: float

    def row(self) -> str:
        return f"{self.mean:10.3f}{self.p50:10.3f}{self.p99:10.3f}{self.worst:10.1f}"


def timing(rounds: list[np.ndarray]) -> Timing:
    """Summarise nanoseconds of several rounds."""
    figures = [
        (ns.mean(), np.percentile(ns, 50), np.percentile(ns, 99), ns.max())
        for ns in rounds
        if ns.size
    ]
    mean, p50, p99, _ = (statistics.median(column) / 1e3 for column in zip(*figures, strict=True))
    return Timing(mean, p50, p99, max(figure[3] for figure in figures) / 1e3)


@dataclass(frozen=True)
class Measured:
    """One cluster, one way."""

    prefill: Timing
    decode: Timing
    together: Timing
    finishing: Timing
    decisions_per_s: float
    """Two for each request, finishing and all else on the wall clock included."""
    class_3: float
    """Fraction of prefill decisions that found only engines with long read queues."""
    balanced: float
    """Fraction of decode decisions within Z."""
    refused: int


class Load:
    """A cluster in steady state."""

    def __init__(self, prefill: int, decode: int, group: int, ways: Ways) -> None:
        """Fill it up: requests arrive until every stage holds its number."""
        self.sizes = (prefill, decode)
        self.ways = ways
        self.draw = np.random.default_rng(0)
        work = generate(TABLE_2["64K"])
        order = self.draw.permutation(work.prompt_tokens.size)
        self.work = [
            np.ascontiguousarray(column[order], dtype=np.int64)
            for column in (
                work.prompt_tokens,
                work.hit_tokens,
                work.prompt_tokens + work.output_tokens,
            )
        ]
        self.position = 0
        prompt, hit, hold = (float(column.mean()) for column in self.work)
        nodes = -(-prefill // NODE_ENGINES) + -(-decode // NODE_ENGINES)
        reading = int(nodes * ALPHA_TOKENS / hit)
        in_prefill = max(1, int(prefill * BETA_TOKENS * PREFILL_LOAD / prompt) - reading)
        in_decode = max(1, int(decode * HBM_TOKENS * HBM_LOAD / hold) - reading - in_prefill)
        self.stages = (reading, in_prefill, in_decode)
        rows = sum(self.stages) + 1
        columns = [np.zeros(rows, dtype=np.int64) for _ in range(7)]
        self.requests = Requests(
            *columns,
            spare=np.arange(rows, dtype=np.int64)[::-1].copy(),
            spares=np.array([rows], dtype=np.int64),
            slots=np.zeros(rows, dtype=np.int64),
            first=np.cumsum([0, *self.stages]).astype(np.int64),
            live=np.zeros(3, dtype=np.int64),
        )
        self.state = self.built(group, None)
        left = rows + max(2_000, min(rows, 50_000))
        while left > 0:
            self.run(ways.index, min(left, STEPS))
            left -= STEPS

    def built(self, group: int, accounts: Accounts | None) -> State:
        """Return the arrays with ``group`` engines in each group (0: one group for each pool)."""
        joined = {node.node: node for node in nodes_of(*self.sizes, group)}
        if accounts is None:
            engines = [engine for node in joined.values() for engine in node.engines]
            accounts = Accounts(
                {name: EngineAccount() for name in engines},
                {name: NodeAccount() for name in joined},
            )
        queued = {node.group: 0 for node in joined.values()}
        state = build(joined, accounts, queued, events.Settings())
        self.ways.refresh(state.prefill, state.decode, state.nodes)
        return state

    def regroup(self, group: int) -> None:
        """Keep engines, requests and accounts, in groups of another size."""
        self.state = self.built(group, self.state.accounts())

    def run(self, way: Any, steps: int) -> tuple[np.ndarray, int, float]:
        """Place ``steps`` requests; return the times, how many found no engine, and wall seconds."""
        at = np.arange(self.position, self.position + steps) % self.work[0].size
        self.position += steps
        work = [column[at] for column in self.work]
        draws = self.draw.random((steps, 5))
        took = np.zeros((steps, 5), dtype=np.int64)
        placed, clock = np.zeros((1, 7), dtype=np.int64), np.zeros(2, dtype=np.int64)
        state = self.state
        start = time.perf_counter()
        refused = way(
            *(state.prefill, state.decode, state.nodes, self.requests),
            *(*work, draws, Z_FACTOR, clock, placed, took),
        )
        return took, refused, time.perf_counter() - start

    def measure(self, way: Any, steps: int = STEPS, rounds: int = ROUNDS) -> Measured:
        """Run some rounds. Raises SystemExit if the load was too high to place the requests."""
        self.run(way, max(1, steps // 4))
        found = [self.run(way, steps) for _ in range(rounds)]
        refused = sum(r for _, r, _ in found)
        if refused > 0.05 * steps * rounds:
            raise SystemExit(f"{refused} of {steps * rounds} requests found no engine")
        tooks = [took[took[:, CLASS] >= 0] for took, _, _ in found]
        return Measured(
            timing([took[:, PREFILL_NS] for took in tooks]),
            timing([took[:, DECODE_NS] for took in tooks]),
            timing([took[:, : DECODE_NS + 1].ravel() for took in tooks]),
            timing([took[:, FINISH_NS] for took in tooks]),
            statistics.median(2 * steps / seconds for _, _, seconds in found),
            float(np.mean([(took[:, CLASS] == 3).mean() for took in tooks])),
            float(np.mean([took[:, BALANCED].mean() for took in tooks])),
            refused,
        )

    def regime(self) -> str:
        """Say where the loads are."""
        prefill, decode, nodes = self.state.prefill, self.state.decode, self.state.nodes
        queues = np.percentile(nodes.read_q / nodes.alpha, (5, 50, 95))
        full = (prefill.tok > prefill.limit).mean()
        held = decode.held.sum() / decode.limit.sum()
        over = (decode.tok + self.work[0].mean() > Z_FACTOR * decode.tok.mean()).mean()
        return (
            f"{sum(self.stages):,} requests; read queues {queues[0]:.2f} / {queues[1]:.2f} / "
            f"{queues[2]:.2f} of alpha (5, 50, 95 %); above beta {full:.1%}; HBM {held:.0%}; "
            f"decode engines above Z with one prompt more {over:.0%}"
        )


def pools(engines: int, group: int) -> tuple[int, int]:
    """Return about so many engines, 1/3 prefill, in groups of one size.

    Phase 1 goes by a group's total, so a smaller group would be filled until it has no room at all.
    """
    prefill = round(engines / 3)
    if prefill > group / 2:
        prefill = max(1, round(prefill / group)) * group
    return prefill, 2 * prefill


def nodes_of(prefill: int, decode: int, group: int) -> Iterator[events.NodeJoined]:
    """Yield the nodes of both pools."""
    for pool, engines in (("prefill", prefill), ("decode", decode)):
        limits = events.Limits(ALPHA_TOKENS, BETA_TOKENS, HBM_TOKENS)
        for first in range(0, engines, NODE_ENGINES):
            number = first // group if group else 0
            names = range(first, min(first + NODE_ENGINES, engines))
            yield events.NodeJoined(
                f"{pool} {first}",
                pool,  # type: ignore[arg-type]
                f"{pool} group {number}",
                tuple(f"{pool} engine {name}" for name in names),
                limits,
            )


# ---- the worst that can be asked -----------------------------------------------------------------


def adversarial(ways: Ways, engines: int) -> dict[str, float]:
    """Time a choice among decode engines of one group that the index cannot narrow down.

    Even engines have no room but few tokens, odd ones room but too many tokens, so that every pair
    looks good and no engine is; seq and tok fall with the number. ``one_fits``: except engine 0, of
    the highest seq. ``none_fits``: no engine stays balanced, and the search by tok goes through all
    again.
    """
    falling = np.arange(engines, 0, -1)
    odd = np.arange(engines) % 2 == 1
    length, few = 30_000, 1_000_000
    tok = np.where(odd, few + 200_000, 100_000) + falling
    held = np.where(odd, 200_000, HBM_TOKENS - length + 1)
    joined = {node.node: node for node in nodes_of(0, engines, 0)}
    found = {}
    for name in ("one_fits", "none_fits"):
        if name == "one_fits":
            held[0] = 0
        else:
            held[0] = HBM_TOKENS
        names = [engine for node in joined.values() for engine in node.engines]
        rows = zip(falling.tolist(), tok.tolist(), held.tolist(), strict=True)
        accounts = Accounts(
            {n: EngineAccount(*row) for n, row in zip(names, rows, strict=True)},
            {node: NodeAccount() for node in joined},
        )
        queued = {node.group: 0 for node in joined.values()}
        state = build(joined, accounts, queued, events.Settings())
        ways.refresh(state.prefill, state.decode, state.nodes)
        chosen = []
        for key, way in (("", ways.attack), ("_scan", ways.attack_scan)):
            took = np.zeros(max(20, 2_000_000 // engines), dtype=np.int64)
            clock = np.zeros(2, dtype=np.int64)
            way(state.decode, length, length, few, clock, took[:1])
            chosen.append(way(state.decode, length, length, few, clock, took))
            found[f"{name}{key}_us"] = float(np.median(took)) / 1e3
        expected = 0 if name == "one_fits" else int(np.flatnonzero(odd)[-1])
        if chosen != [expected, expected]:
            raise SystemExit(f"{name}: chose {chosen}, expected {expected}")
    return found


# ---- the reference scheduler, by events ----------------------------------------------------------


def python_events(group: int, live: int = 10_000, requests: int = 10_000) -> dict[str, float]:
    """Drive the reference scheduler through whole lives of requests; count events on the wall clock.

    64 requests arrive, prefill groups fetch in turn until all are placed, every decode group fetches,
    reads start and end, prefill ends, and as many of the oldest requests end. Fetches bear no report;
    what one with a full report costs is separate.
    """
    scheduler = Scheduler(compiled=True)
    for node in nodes_of(PREFILL, DECODE, group):
        scheduler.handle(node)
    groups = {pool: list(dict.fromkeys(scheduler.private)) for pool in ("prefill", "decode")}
    groups = {
        pool: [name for name in names if name.startswith(pool)] for pool, names in groups.items()
    }
    numbers, names, turn = count(), count(), count()
    work = generate(TABLE_2["64K"])
    order = np.random.default_rng(0).permutation(work.prompt_tokens.size)
    columns = (work.prompt_tokens, work.hit_tokens, work.output_tokens)
    prompts, hits, outputs = (column[order].astype(int).tolist() for column in columns)
    oldest: list[str] = []
    handled = 0

    def handle(event: events.Event) -> tuple[events.Decision, ...]:
        nonlocal handled
        handled += 1
        return scheduler.handle(event)

    def batch(size: int, leave: bool) -> None:
        for _ in range(size):
            i = next(names)
            at = i % len(prompts)
            handle(events.Submit(str(i), prompts[at], hits[at], outputs[at]))
        decisions: list[events.Decision] = []
        while scheduler.waiting["prefill"]:
            name = groups["prefill"][next(turn) % len(groups["prefill"])]
            decisions += handle(events.Fetch(name, next(numbers)))
        for name in groups["decode"]:
            decisions += handle(events.Fetch(name, next(numbers)))
        ordered = [d for d in decisions if isinstance(d, events.ReadOrdered)]
        for d in ordered:
            sides = ((d.prefill_node, d.prefill_tokens), (d.decode_node, d.decode_tokens))
            for node, tokens in sides:
                if tokens:
                    handle(events.ReadStarted(d.request, node))
        for d in ordered:
            sides = ((d.prefill_node, d.prefill_tokens), (d.decode_node, d.decode_tokens))
            for node, tokens in sides:
                if tokens:
                    handle(events.ReadFinished(d.request, node))
            handle(events.PrefillFinished(d.request))
            oldest.append(d.request)
        if leave:
            for request in oldest[:size]:
                handle(events.DecodeFinished(request))
            del oldest[:size]

    for _ in range(live // 64):
        batch(64, False)
    for _ in range(10):
        batch(64, True)
    handled, start = 0, time.perf_counter()
    for _ in range(requests // 64):
        batch(64, True)
    seconds = time.perf_counter() - start
    return {
        "python_events_per_s": handled / seconds,
        "python_requests_per_s": (requests // 64) * 64 / seconds,
        "python_report_us": report_us(scheduler, groups["decode"][0], numbers),
    }


def report_us(scheduler: Scheduler, group: str, numbers: Iterator[int]) -> float:
    """Return the median time of a decode group's fetch that reports on all engines and nodes."""
    accounts = scheduler.ledger.accounts()
    owners = [node for node in scheduler.ledger.joined.values() if node.group == group]
    reports = {}
    for owner in owners:
        for engine in owner.engines:
            account = accounts.engines[engine]
            reports[engine] = events.EngineReport(account.seq, account.tok, account.free)
    queues = {owner.node: accounts.nodes[owner.node].read_q for owner in owners}
    took = []
    for _ in range(50):
        start = time.perf_counter()
        scheduler.handle(events.Fetch(group, next(numbers), reports, queues))
        took.append(time.perf_counter() - start)
    return statistics.median(took) * 1e6


# ---- report --------------------------------------------------------------------------------------


def growth(ways: Ways, group: int) -> dict[str, dict[int, Measured]]:
    """Measure every size three ways."""
    found: dict[str, dict[int, Measured]] = {"groups": {}, "single": {}, "scan": {}}
    for size in SIZES:
        prefill, decode = pools(size, group)
        engines = prefill + decode
        load = Load(prefill, decode, group, ways)
        found["groups"][engines] = load.measure(ways.index)
        if engines == PREFILL + DECODE:
            print(f"at {engines:,} engines: {load.regime()}")
        load.regroup(0)
        found["single"][engines] = load.measure(ways.index)
        steps = max(200, min(STEPS, SCANNED // (2 * engines)))
        found["scan"][engines] = load.measure(ways.scan, steps, 3)
    return found


def exponent(rows: dict[int, Measured], least: int) -> float:
    """Return the slope of log mean over log engines from ``least`` engines on."""
    sizes = [size for size in rows if size >= least]
    means = [rows[size].together.mean for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(means), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path, help="write the growth as a picture")
    parser.add_argument("--group", type=int, default=GROUP_ENGINES, help="engines in each group")
    arguments = parser.parse_args()
    if arguments.group < 1 or arguments.group % NODE_ENGINES or PREFILL % arguments.group:
        raise SystemExit(
            f"--group {arguments.group}: nodes of {NODE_ENGINES} must fill it, and groups {PREFILL}"
        )
    ways = Ways()
    warm = Load(4, 8, arguments.group, ways)
    warm.measure(ways.index, 100, 1)
    warm.measure(ways.scan, 100, 1)
    adversarial(ways, 16)

    sizes = growth(ways, arguments.group)
    head, single = sizes["groups"][PREFILL + DECODE], sizes["single"][PREFILL + DECODE]
    plain = Load(PREFILL, DECODE, arguments.group, ways).measure(ways.plain, 1_000, 3)
    worst = {str(n): adversarial(ways, n) for n in (DECODE, SIZES[-1] * 2 // 3 + 1)}
    reference = python_events(arguments.group)
    clock_ns = ways.clock_ns()

    print(
        f"{PREFILL} prefill + {DECODE} decode engines, us; the clock's own {clock_ns:.0f} ns included"
    )
    print_cluster(f"groups of {arguments.group}", head)
    print_cluster("one group for each pool", single)
    print_cluster("plain Python", plain)
    print_growth(sizes, arguments.group)
    print("\none choice of a decode engine, adversarial states, us (median)")
    print(f"{'engines':>10}{'one fits':>12}{'by scan':>12}{'none fits':>12}{'by scan':>12}")
    for engines, row in worst.items():
        print(f"{int(engines):10,}" + "".join(f"{value:12.1f}" for value in row.values()))
    print("\nreference scheduler by events, compiled decisions")
    print(
        f"{reference['python_events_per_s']:,.0f} events/s, "
        f"{reference['python_requests_per_s']:,.0f} requests/s; a fetch with a report on "
        f"{arguments.group} engines {reference['python_report_us']:,.0f} us"
    )
    if arguments.picture:
        draw(sizes, arguments.group, arguments.picture)
    result = {
        "mean_us": head.together.mean,
        "p99_us": head.together.p99,
        "decisions_per_s": head.decisions_per_s,
        "p50_us": head.together.p50,
        "max_us": head.together.worst,
        "prefill_mean_us": head.prefill.mean,
        "prefill_p99_us": head.prefill.p99,
        "decode_mean_us": head.decode.mean,
        "decode_p99_us": head.decode.p99,
        "finishing_mean_us": head.finishing.mean,
        "clock_us": clock_ns / 1e3,
        "group_engines": arguments.group,
        "plain_mean_us": plain.together.mean,
        **reference,
        "single_group": {
            "mean_us": single.together.mean,
            "p99_us": single.together.p99,
            "decisions_per_s": single.decisions_per_s,
        },
        "exponent": exponent(sizes["groups"], 1_000),
        "exponent_single_group": exponent(sizes["single"], 1_000),
        "growth": as_rows(sizes["groups"]),
        "growth_single_group": as_rows(sizes["single"]),
        "growth_scan": as_rows(sizes["scan"]),
        "adversarial": worst,
    }
    print(json.dumps(result))


def as_rows(rows: dict[int, Measured]) -> list[dict[str, float]]:
    return [
        {"engines": engines, "mean_us": row.together.mean, "p99_us": row.together.p99}
        for engines, row in rows.items()
    ]


def print_cluster(name: str, measured: Measured) -> None:
    print(f"\n{name:24}{'mean':>10}{'p50':>10}{'p99':>10}{'max':>10}")
    for row in ("prefill", "decode", "together", "finishing"):
        print(f"  {row:22}{getattr(measured, row).row()}")
    print(
        f"  {measured.decisions_per_s:,.0f} decisions/s, finishing and all else included; "
        f"class 3 {measured.class_3:.0%}, balanced {measured.balanced:.0%}, "
        f"refused {measured.refused}"
    )


def print_growth(sizes: dict[str, dict[int, Measured]], group: int) -> None:
    print(
        f"\n{'a decision, us':14}{f'groups of {group}':>20}{'one group':>20}{'scan, one group':>20}"
    )
    print(f"{'engines':>14}" + f"{'mean':>10}{'p99':>10}" * 3)
    for engines in sizes["groups"]:
        timings = [sizes[way][engines].together for way in ("groups", "single", "scan")]
        figures = "".join(f"{t.mean:10.3f}{t.p99:10.3f}" for t in timings)
        print(f"{engines:14,}{figures}")
    slopes = [exponent(sizes[way], 1_000) for way in ("groups", "single", "scan")]
    print("mean ~ engines^s" + "".join(f"{slope:18.2f}  " for slope in slopes) + " from 1,000 on")


def draw(sizes: dict[str, dict[int, Measured]], group: int, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 5), layout="constrained")
    engines = list(sizes["groups"])
    for way, label, colour in (
        ("groups", f"index, groups of {group}", "tab:blue"),
        ("single", "index, one group a pool", "tab:orange"),
        ("scan", "scan, one group a pool", "tab:gray"),
    ):
        rows = sizes[way]
        for figure_name, style in (("mean", "-"), ("p99", "--")):
            values = [getattr(rows[size].together, figure_name) for size in engines]
            axis.plot(
                engines,
                values,
                style,
                marker="o",
                ms=4,
                color=colour,
                label=f"{label}: {figure_name}",
            )
    start = sizes["groups"][engines[0]].together.mean
    axis.plot(
        engines,
        [start * size / engines[0] for size in engines],
        ":",
        color="black",
        label="linear growth",
    )
    for target, name in (
        (MEAN_TARGET_US, "target: mean 5 µs"),
        (P99_TARGET_US, "target: p99 50 µs"),
    ):
        axis.axhline(target, color="tab:red", lw=0.8)
        axis.text(engines[0], target * 1.06, name, color="tab:red", fontsize=8)
    axis.axvline(PREFILL + DECODE, color="tab:green", lw=0.8)
    axis.text((PREFILL + DECODE) * 1.05, 1.1, "384 + 768", color="tab:green", fontsize=8)
    axis.set(
        xscale="log",
        yscale="log",
        ylim=(0.05, 100),
        xlabel="engines (1/3 prefill, 2/3 decode)",
        ylabel="a decision, µs",
        title="What a placement costs as the cluster grows",
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
