"""Queue lengths, buffers, running requests and the working set over simulated time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from solvers.simulator import state as arrays
from solvers.simulator.model import Simulation

CLUSTER = (
    "time_s",
    "agents",  # started and not done
    "waiting_prefill",  # requests that wait for a prefill engine
    "waiting_decode",
    "waiting_buffer",
    "working_set_tokens",  # of KV-cache that the agents come back to
    "turns_ended",
)
NODE = (
    "read_queue_tokens",
    "buffer_tokens",  # in use
    "ready",  # prefill nodes: requests with all hits in memory
    "decoding",  # decode nodes: requests in HBM
    "held_tokens",  # of requests placed on the node's engines
    "nic_busy",  # share of the time since the sample before
)


@dataclass
class Series:
    """Samples: ``cluster`` one row of CLUSTER each, ``nodes`` one (N, len(NODE)) array each."""

    cluster: list[tuple[float, ...]] = field(default_factory=list)
    nodes: list[np.ndarray] = field(default_factory=list)
    _nic_s: np.ndarray | None = None
    _time_s: float = 0.0

    def sample(self, run: Simulation, now_s: float) -> None:
        """Add what a run looks like at ``now_s``."""
        sim = run.sim
        world, traffic = sim.world, sim.traffic
        turn = world.agents[:, arrays.TURN]
        active = (turn < traffic.last) & (traffic.start_ns <= now_s * arrays.SECOND)
        count = len(sim.nodes.decode)
        table = np.zeros((count, len(NODE)))
        table[:, 0] = sim.nodes.read_q
        table[:, 1] = run.buffer_tokens - world.buffer_free
        table[:, 2] = np.bincount(sim.prefill.node, world.ready_queues.length, count)
        table[:, 3] = np.bincount(sim.decode.node, world.running, count)
        table[:, 4] = np.bincount(sim.prefill.node, sim.prefill.held, count)
        table[:, 4] += np.bincount(sim.decode.node, sim.decode.held, count)
        nic_s = world.work_s[:, -1].copy()
        before = np.zeros(count) if self._nic_s is None else self._nic_s
        table[:, 5] = (nic_s - before) / max(now_s - self._time_s, 1e-9)
        self.cluster.append(
            (
                now_s,
                float(active.sum()),
                float(world.prefill_queues.length.sum()),
                float(world.decode_queues.length.sum()),
                float(world.buffer_queues.length.sum()),
                float(traffic.prompt[turn[active]].sum()),
                run.total(arrays.TURNS),
            )
        )
        self.nodes.append(table)
        self._nic_s, self._time_s = nic_s, now_s

    def mean(self, column: str, from_s: float) -> float:
        """Return the mean of a column of CLUSTER over the samples from ``from_s`` on (0 of none)."""
        at = CLUSTER.index(column)
        values = [row[at] for row in self.cluster if row[0] >= from_s]
        return float(np.mean(values)) if values else 0.0

    def nic_max_over_mean(self, read_rate: np.ndarray) -> float:
        """Return what the busiest storage NIC read over what all read on average, in the windows between
        samples, each window counted by what was read in it; ``read_rate``: of each NIC, tokens/s. 1 of
        none.
        """
        if not self.nodes:
            return 1.0
        read = np.array(self.nodes)[:, :, NODE.index("nic_busy")] * read_rate
        total = float(read.mean(axis=1).sum())
        return float(read.max(axis=1).sum()) / total if total > 0 else 1.0
