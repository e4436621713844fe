"""What holds in every run, and is checked after each: conservation, and the order of times."""

from __future__ import annotations

import numpy as np

from solvers.simulator import state as arrays
from solvers.simulator.frameworks import hit_reads
from solvers.simulator.model import Simulation

_ROUNDING = 1e-9


class ConservationError(AssertionError):
    """A run broke a law that holds for every run: a bug of the simulator, never of the input."""


def check(run: Simulation, end_s: float) -> None:
    """Hold a run that stopped at ``end_s`` to the laws. Raises ConservationError.

    1. A turn's times are in order. 2. The storage NICs have read what the ended turns hit, as often
    as the table says, and no more
    than was ordered. 3. What the ended turns appended and generated is stored, in whole blocks. 4. No
    resource has done more work than it had time for. 5. Little's law: the summed time of the
    turns inside is the integral of their number. 6. When every agent is done, every account is empty:
    the scheduler's, the buffers', the engines'.
    """
    rows = run.rows
    _times_in_order(rows)
    _bytes_read(run, rows)
    _blocks_stored(run, rows)
    _resources_in_time(run, end_s)
    _little(run, rows)
    if run.ended:
        _nothing_left(run)


def _times_in_order(rows: np.ndarray) -> None:
    times = rows[:, arrays.RESULT_FIELDS.index("submitted") :]
    for column in range(times.shape[1] - 1):
        if (times[:, column] > times[:, column + 1]).any():
            name = arrays.RESULT_TIMES[column + 1]
            raise ConservationError(
                f"a turn's time '{name}' is before '{arrays.RESULT_TIMES[column]}'"
            )


def _bytes_read(run: Simulation, rows: np.ndarray) -> None:
    if run.policy.moves_nothing:
        return
    nodes = run.sim.nodes
    read = float((run.sim.world.work_s[:, -1] * nodes.read_rate).sum())
    hit = run.sim.traffic.hit[rows[:, 1]]
    first, second = hit_reads(run.table)
    there = rows[:, arrays.RESULT_FIELDS.index("on_decode")] if run.table.splits else 0
    ended = float(((hit - there) * first + there * second).sum())
    given = float(nodes.given.sum())
    if not ended * (1 - _ROUNDING) - 1 <= read <= given * (1 + _ROUNDING) + 1:
        raise ConservationError(
            f"{read} tokens were read for {ended} of ended turns, {given} ordered"
        )


def _blocks_stored(run: Simulation, rows: np.ndarray) -> None:
    traffic, block = run.sim.traffic, run.sim.machine.block_tokens
    turn = rows[:, 1]
    blocks = (traffic.prompt[turn] + traffic.output[turn]) // block - traffic.hit[turn] // block
    stored, ended = run.total(arrays.WRITTEN_TOKENS), float(blocks.sum()) * block
    if stored < ended or (run.ended and stored != ended):
        raise ConservationError(f"{stored} tokens were stored, {ended} by turns that have ended")


def _resources_in_time(run: Simulation, end_s: float) -> None:
    world = run.sim.world
    own = run.sim.machine.own
    given_ns = world.work_s[:, :-1] * arrays.SECOND
    time_ns = np.where(own > 0, _own_time_ns(run), world.busy_ns)
    time_ns = np.where(own > 0, time_ns / np.maximum(own, 1) + world.busy_ns, time_ns)
    if (given_ns > time_ns * (1 + _ROUNDING) + 1).any():
        raise ConservationError("a resource did more work than it had time for")
    agents, nodes = world.agents, run.sim.nodes
    for node, nic_s in enumerate(world.work_s[:, -1]):
        last_s = 0.0  # the read that goes on counts in full
        if world.read_queues.length[node]:
            column = arrays.ON_DECODE if nodes.decode[node] else arrays.ON_PREFILL
            tokens = agents[world.read_queues.first[node], column]
            last_s = float(tokens / nodes.read_rate[node])
        if nic_s - last_s > end_s * (1 + _ROUNDING):
            raise ConservationError(f"storage NIC {node} read for {nic_s} s of {end_s} s")


def _own_time_ns(run: Simulation) -> np.ndarray:
    """Return the time that a node's engines had for the work on their own NICs, all together, (N, K)."""
    sim = run.sim
    total = np.zeros_like(sim.world.busy_ns)
    np.add.at(total, np.concatenate((sim.prefill.node, sim.decode.node)), sim.world.own_busy_ns)
    return total


def _little(run: Simulation, rows: np.ndarray) -> None:
    """Mean number inside x time = summed time inside: the kernel counts the one, rows give the other."""
    submitted = arrays.RESULT_FIELDS.index("submitted")
    summed = float((rows[:, -1] - rows[:, submitted]).sum())
    world, traffic = run.sim.world, run.sim.traffic
    inside = world.agents[:, arrays.TURN] < traffic.last
    inside[world.sleepers[: world.sleeping[0]]] = False
    counted_at = run.total(arrays.INSIDE_SINCE_NS)
    summed += float((counted_at - world.agents[inside, arrays.SUBMITTED]).sum())
    counted = run.total(arrays.INSIDE_NS)
    if abs(counted - summed) > _ROUNDING * summed + 1e3 or inside.sum() != run.total(arrays.INSIDE):
        raise ConservationError(f"turns were inside for {summed} ns in all, counted {counted} ns")


def _nothing_left(run: Simulation) -> None:
    sim = run.sim
    accounts = {
        "requests on prefill engines": sim.prefill.seq,
        "requests on decode engines": sim.decode.seq,
        "tokens held by prefill engines": sim.prefill.held,
        "tokens held by decode engines": sim.decode.held,
        "tokens to read": sim.nodes.read_q,
        "requests decoding": sim.world.decoding,
        "requests running": sim.world.running,
        "requests ready": sim.world.ready_queues.length,
        "requests waiting for a prefill engine's HBM": sim.world.load_queues.length,
        "requests loading into a prefill engine": sim.world.loading_queues.length,
        "tokens left in prefill engines' HBM": _loaded_ahead(run),
        "requests in a forward batch": sim.world.in_batch,
        "requests waiting for a buffer": sim.world.buffer_queues.length,
        "requests waiting for a storage NIC": sim.world.read_queues.length,
        "requests moving to a decode engine": sim.world.move_queues.length,
        "tokens left in buffers": run.buffer_tokens - sim.world.buffer_free,
    }
    for name, account in accounts.items():
        if account.any():
            raise ConservationError(f"{name} at the end: {account.sum()}")


def _loaded_ahead(run: Simulation) -> np.ndarray:
    """Return the tokens in each prefill engine's HBM where hits are loaded ahead of their turn."""
    taken = run.sim.machine.batch_room - run.sim.world.hbm_free
    return taken * 0 if run.table.layerwise else taken
