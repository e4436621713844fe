"""Everything that the event kernel reads and changes, as arrays: hardware, sessions, queues, results.

No object per event or request: a session has one turn at a time, so a request is named by its agent,
and the agents are rows of one table. Times are whole nanoseconds, durations seconds.
"""

from __future__ import annotations

from typing import NamedTuple

from dualpath_model.compilation import compilable
from dualpath_model.scheduler.arrays import Engines, FloatArray, Nodes
from dualpath_model.scheduler.index import IntArray

SECOND = 1e9
READ, LOAD, LOAD_AGAIN, MOVE, APPEND, GENERATE = PHASES = range(6)
"""Rows of ``Machine.near_s``: what a storage read, the load of hits into the prefill engine with a
prompt's first chunk and with its later ones, all that follows the first token, storing an appended and
storing a generated token pass on a node."""


class Machine(NamedTuple):
    """The hardware and the LLM on it: N nodes, K resources of a node, Ep prefill engines in Up units,
    Ed decode engines in Ud units. A unit is engines that run in step.
    """

    near_s: FloatArray
    """Seconds a hit token takes on each resource of a node that reads it, (6, N, K)."""
    far_s: FloatArray
    """The same where the other side reads it, (6, N, K)."""
    miss_s: FloatArray
    """Seconds a token takes that is not a hit, (6, N, K)."""
    own: IntArray
    """Engines that have a share of a node's resource to themselves (a GPU's NICs), 0 where all engines
    share it (DRAM), (N, K)."""
    prefill_unit: IntArray
    """Unit of each prefill engine, (Ep,)."""
    prefill_first: IntArray
    """First prefill engine of each unit, and their number, (Up + 1,)."""
    decode_unit: IntArray
    """Unit of each decode engine, (Ed,)."""
    decode_first: IntArray
    """First decode engine of each unit, and their number, (Ud + 1,)."""
    linear_s: FloatArray
    """Seconds that a miss token's matrix products take on a prefill engine, (Ep,)."""
    attention: FloatArray
    """The fields of each prefill engine's AttentionTime, (Ep, 7)."""
    quota_token_s: FloatArray
    """What the quota counts of a miss token beside its attention, (Ep,)."""
    batch_room: IntArray
    """Tokens of context that a forward batch of a prefill engine has HBM for, (Ep,)."""
    weights_s: FloatArray
    """Seconds that reading the weights takes in a decode step of n requests, (kinds, n)."""
    step_kind: IntArray
    """Row of ``weights_s``, (Ed,)."""
    kv_s: FloatArray
    """Seconds that reading a token of context takes in a decode step, (Ed,)."""
    flop_s: FloatArray
    """Seconds that a request's arithmetic takes in a decode step, (Ed,)."""
    batch_s: float
    """Seconds of a forward batch that do not depend on its tokens."""
    step_s: float
    """Seconds of a decode step beside its roofline."""
    request_step_s: float
    """What each running request adds to them."""
    quota_s: float
    token_limit: int
    layerwise: bool
    """Loads overlap with computing; otherwise they come first."""
    fetch_ns: int
    """Between two fetches of a leader."""
    z_factor: float
    block_tokens: int
    private: bool
    """The policy queues requests for prefill by group."""


class Traffic(NamedTuple):
    """The sessions: columns of turns, and what each agent runs. A agents, T turns."""

    prompt: IntArray
    """(T,)"""
    hit: IntArray
    """(T,)"""
    output: IntArray
    """(T,)"""
    think_ns: IntArray
    """Before a turn, (T,)."""
    first: IntArray
    """First turn of each agent, (A,)."""
    last: IntArray
    """One past its last, (A,)."""
    start_ns: IntArray
    """When each agent starts, (A,)."""


AGENT_FIELDS = (
    "turn",
    "prefill",
    "decode",
    "reads",  # still to do
    "on_prefill",  # hit tokens that the prefill node reads
    "on_decode",
    "computed",  # miss tokens
    "chunk",  # tokens in the forward batch that runs
    "generated",  # tokens generated at its engine's next event for it
    "submitted",  # times from here on, ns
    "placed",
    "allocated",
    "read",
    "first_token",
    "move_end",
    "admitted",
    "second_token",
    "next_prefill",  # in the queue for a prefill engine, then among the engine's ready ones
    "next_decode",  # in the queue for a decode engine, then in the decode node's transfer queue
    "next_read",  # in the prefill node's queue for its buffer, then for its storage NIC
    "next_read_decode",  # in those of the decode node
    "kept",  # tokens that the decode engine holds for the next turn (frameworks.py)
    "loaded",  # when the hits are in the prefill engine's HBM, ns, where they come before its turn
)
"""Columns of the table of agents: what each one's turn in flight is doing. One row is three cache
lines; a column each would be one line a field.
"""
(
    TURN,
    PREFILL,
    DECODE,
    READS,
    ON_PREFILL,
    ON_DECODE,
    COMPUTED,
    CHUNK,
    GENERATED,
    SUBMITTED,
    PLACED,
    ALLOCATED,
    READ_AT,
    FIRST_TOKEN,
    MOVE_END,
    ADMITTED,
    SECOND_TOKEN,
    NEXT_PREFILL,
    NEXT_DECODE,
    NEXT_READ,
    NEXT_READ_DECODE,
    KEPT,
    LOADED,
) = range(23)


class Queues(NamedTuple):
    """Linked lists of agents: first, last and length of each; an empty one has length 0."""

    first: IntArray
    last: IntArray
    length: IntArray


RESULT_FIELDS = (
    "agent",
    "turn",
    "prefill",  # engine
    "decode",  # engine
    "on_decode",  # hit tokens that the decode node read
    "submitted",
    "placed",
    "allocated",
    "read",
    "first_token",
    "admitted",
    "second_token",
    "ended",
)
"""Columns of the results; times in ns."""
RESULT_TIMES = RESULT_FIELDS[5:]

TOTALS = (
    "turns",
    "events",
    "end_ns",
    "attention_max_s",
    "attention_mean_s",
    "prefill_busy_s",
    "decode_busy_s",
    "decode_tokens",
    "batches",
    "agents_ended",
    "written_tokens",
    "inside",  # turns in flight
    "inside_ns",  # integral of their number
    "inside_since_ns",  # up to when
)
(
    TURNS,
    EVENTS,
    END_NS,
    ATTENTION_MAX_S,
    ATTENTION_MEAN_S,
    PREFILL_BUSY_S,
    DECODE_BUSY_S,
    DECODE_TOKENS,
    BATCHES,
    AGENTS_ENDED,
    WRITTEN_TOKENS,
    INSIDE,
    INSIDE_NS,
    INSIDE_SINCE_NS,
) = range(14)


class Results(NamedTuple):
    """What is kept: a row for each turn that ended, in the order of ending, and sums over the run."""

    rows: IntArray
    """See RESULT_FIELDS, (R, 13); turns beyond R are counted and not kept."""
    totals: FloatArray
    """See TOTALS."""


class World(NamedTuple):
    """Everything that changes while the kernel runs."""

    agents: IntArray
    """See AGENT_FIELDS, (A, 23)."""
    prefill_queues: Queues
    """By prefill group; the last one is the common queue."""
    decode_queues: Queues
    """By decode group; the last one is the common queue."""
    buffer_queues: Queues
    """By node: who waits for room in its DRAM buffer."""
    read_queues: Queues
    """By node."""
    ready_queues: Queues
    """By prefill engine."""
    move_queues: Queues
    """By decode node (its number among all nodes)."""
    buffer_free: IntArray
    """Tokens of room in each node's DRAM buffer, (N,)."""
    in_batch: IntArray
    """Requests of each prefill engine in the batch that runs, (Ep,)."""
    busy_ns: FloatArray
    """When each resource that a node's engines share has done what it has been given, (N, K)."""
    own_busy_ns: FloatArray
    """The same of the shares that engines have to themselves, prefill engines first, (Ep + Ed, K)."""
    work_s: FloatArray
    """Seconds of work that each resource has been given, (N, K + 1); the last column: storage NIC."""
    progress: FloatArray
    """Steps that each decode unit has made, (Ud,)."""
    since_ns: IntArray
    """When ``progress`` was brought up to date, (Ud,)."""
    decoding: IntArray
    """Requests in each decode unit, (Ud,)."""
    slowest_s: FloatArray
    """Seconds of a step of each decode unit: its slowest engine's, (Ud,)."""
    engine_step_s: FloatArray
    """Seconds of a step of each decode engine for itself, (Ed,)."""
    running: IntArray
    """Requests in each decode engine, (Ed,)."""
    context: FloatArray
    """Tokens of context of the running requests, (Ed,)."""
    end_steps: FloatArray
    """Heap of each decode unit: the step at which a request ends or completes a block, (Ud, B)."""
    end_agents: IntArray
    """Whose it is, (Ud, B)."""
    agenda: IntArray
    leader_ns: IntArray
    """When each leader fetches first, prefill leaders first, (groups,)."""
    stopped: IntArray
    """How many leaders have stopped, (1,)."""
    sleep_ns: IntArray
    sleepers: IntArray
    sleeping: IntArray
    """Length of the heap of sleepers, (1,)."""
    cached: IntArray
    """Scratch: tokens in the KV-cache of the requests that a forward batch looks at, (most,)."""
    left: IntArray
    """Scratch: tokens that they still have to compute, (most,)."""
    offered: IntArray
    """Scratch: prompt, hit, hold, prefill engine and agent of requests offered to a group, (5, B)."""
    placed: IntArray
    """Scratch: where they went, (B, 7)."""
    hbm_free: IntArray
    """Tokens of room in each prefill engine's HBM, where hits are loaded ahead of its turn, (Ep,)."""
    load_queues: Queues
    """By prefill engine: who waits for that room."""
    loading_queues: Queues
    """By prefill engine: whose hits are on their way into it, in the order of asking."""


class Sim(NamedTuple):
    """A run: what the kernel's functions pass on to each other."""

    world: World
    machine: Machine
    traffic: Traffic
    prefill: Engines
    decode: Engines
    nodes: Nodes
    results: Results
    entries: IntArray
    """First entry of each kind in the agenda, see :data:`ENTRIES`, and the number of all."""


ENTRIES = (
    "storage NICs",
    "prefill units",
    "buffers",
    "prefill leaders",
    "decode leaders",
    "transfer queues",
    "decode units",
    "sleepers",
)
"""Kinds of entries of the agenda; events at the same time happen in this order, then by number."""
(
    NIC_ENTRY,
    PREFILL_ENTRY,
    BUFFER_ENTRY,
    PREFILL_LEADER_ENTRY,
    DECODE_LEADER_ENTRY,
    MOVE_ENTRY,
    DECODE_ENTRY,
    SLEEP_ENTRY,
    ALL_ENTRIES,
) = range(9)


@compilable
def append(queues: Queues, queue: int, agents: IntArray, link: int, agent: int) -> None:
    """Put an agent at the end of a list that is linked by the column ``link``."""
    if queues.length[queue] == 0:
        queues.first[queue] = agent
    else:
        agents[queues.last[queue], link] = agent
    queues.last[queue] = agent
    queues.length[queue] += 1


@compilable
def drop(queues: Queues, queue: int, agents: IntArray, link: int, count: int) -> None:
    """Take the first ``count`` agents off a list."""
    for _ in range(count):
        queues.first[queue] = agents[queues.first[queue], link]
    queues.length[queue] -= count
